"""What processes of this machine use, read from Linux's /proc: processor time and memory."""

import os
import platform
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["cpu_seconds", "describe_machine", "is_here", "listener", "resident", "tree"]

_TICKS = os.sysconf("SC_CLK_TCK")
_LISTENING = "0A"


def cpu_seconds(processes: Sequence[int]) -> float:
    """Processor time that these processes have used, user and system; one that has ended counts nothing."""
    return sum(sum(map(int, _stat(process)[11:13])) for process in processes) / _TICKS


def resident(processes: Sequence[int]) -> int:
    """Bytes of memory in use by these processes; pages that several share count once for each."""
    return sum(int(fields[21]) for fields in map(_stat, processes) if len(fields) > 21) * os.sysconf(
        "SC_PAGE_SIZE"
    )


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for process in found:
        found += parents.get(process, [])
    return found


def is_here(host: str) -> bool:
    """Whether a host's name or address is this machine's loopback."""
    try:
        return socket.gethostbyname(host.strip("[]") or "localhost").startswith("127.") or host == "[::1]"
    except OSError:
        return False


def listener(port: int) -> int | None:
    """The process of ours that listens on a TCP port of this machine; None if none does that we may see."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{fields[9]}]")
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and sockets:
            try:
                if any(os.readlink(file) in sockets for file in (entry / "fd").iterdir()):
                    return int(entry.name)
            except OSError:
                continue  # another user's, or gone meanwhile
    return None


def describe_machine() -> dict[str, Any]:
    """The processor, how many of its threads we may use, memory, system, and how busy it is."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return {
        "processor": model or platform.machine(),
        "threads": len(os.sched_getaffinity(0)),
        "instructions": [name for name in ("avx2", "avx512f", "avx512_vnni", "amx_bf16") if name in flags],
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _stat(process: int) -> list[str]:
    """A process's fields in /proc from its state on; none where there is no such process."""
    try:
        # The command's name, in parentheses, may itself hold spaces and parentheses.
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
