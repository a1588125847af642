"""Stands between our process and Triton, so that nothing is left behind however either of them ends.

Run as a script by :class:`tercet.server.EmbeddedServer`, with the standard library only::

    python -I -S guard.py OWNER_PID RUNTIME_FOLDER GRACE_SECONDS COMMAND...

The guard starts COMMAND (Triton) and waits. When Triton ends, when the owner asks (SIGTERM), or when the
owner is gone (killed with SIGKILL, say), it stops Triton, kills what Triton leaves running (its Python stubs)
and removes the shared memory whose names begin with the runtime folder's. Were the guard itself killed, the
kernel tells Triton to end, and the next server that starts sweeps up (`tercet.server.runtime.sweep`).
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = 0.1
LINGER_SECONDS = 0.3
# A server that is still loading does not listen to SIGTERM; nobody waits for its answers.
AT_ONCE = signal.SIGINT
ENDING = (signal.SIGTERM, signal.SIGHUP, AT_ONCE)
SHARED_MEMORY = Path("/dev/shm")


def remove_shared_memory(prefix: str) -> None:
    """Remove the shared-memory files whose names begin with `prefix`."""
    for file in SHARED_MEMORY.glob(f"{prefix}*"):
        file.unlink(missing_ok=True)


def _status(process: int | str) -> list[str]:
    """Return a process's fields in /proc from its state on; none where there is no such process."""
    try:
        # The command's name, in parentheses, may itself hold spaces and parentheses.
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def children(parent: int) -> list[int]:
    """Return the processes whose parent is `parent`."""
    processes = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [int(process) for process in processes if _status(process)[1:2] == [str(parent)]]


def ended(process: int) -> bool:
    """Whether a process has ended, even if its parent has not taken note."""
    return _status(process)[:1] in ([], ["Z"])


def kill_children() -> None:
    """Kill and reap every child of this process (orphans that it adopted too), until none is left."""
    while True:
        for child in children(os.getpid()):
            os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, 0):
                pass
        except ChildProcessError:
            return


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start `command`; should the guard die, the kernel sends it SIGTERM."""
    process_control = ctypes.CDLL(None, use_errno=True).prctl
    guard = os.getpid()

    def prepare() -> None:
        process_control(PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        if os.getppid() != guard:
            os._exit(1)

    process_control(PR_SET_CHILD_SUBREAPER, 1)
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=prepare)


def wait(server: subprocess.Popen[bytes], owner: int, grace: float) -> None:
    """Wait until the server has ended; have it end when asked to, or when the owner is gone."""
    deadline = idle_since = None
    while server.poll() is None:
        received = signal.sigtimedwait({*ENDING, signal.SIGCHLD}, POLL_SECONDS)
        now = time.monotonic()
        asked = received.si_signo if received and received.si_signo in ENDING else None
        if asked == AT_ONCE:
            server.kill()
        elif deadline is None and (asked or os.getppid() != owner):
            server.terminate()
            deadline = now + grace
        elif deadline is not None:
            # Triton answers what is in flight, ends its stubs, and then sleeps on for a second or two.
            idle_since = None if children(server.pid) else idle_since or now
            if now > deadline or (idle_since is not None and now > idle_since + LINGER_SECONDS):
                server.kill()


def main() -> int:
    """Run the command to its end, or to the owner's; return its exit status."""
    owner, runtime, grace, command = int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
    signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDING, signal.SIGCHLD})
    server = _start(command)
    wait(server, owner, grace)
    kill_children()
    remove_shared_memory(runtime.name)
    if os.getppid() != owner:
        shutil.rmtree(runtime, ignore_errors=True)
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


if __name__ == "__main__":
    sys.exit(main())
