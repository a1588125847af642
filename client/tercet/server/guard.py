"""Stands between our process and Triton, so that nothing is left behind however either of them ends.

Run as a script by :class:`tercet.server.EmbeddedServer`, with the standard library only::

    python -I -S guard.py OWNER_PID RUNTIME_FOLDER GRACE_SECONDS COMMAND...

The guard starts COMMAND (Triton) and waits. When Triton ends, when the owner asks (SIGTERM), or when the owner is gone (killed
with SIGKILL, say), it stops Triton, kills whatever Triton leaves running (its Python stubs) and removes the shared memory whose
names begin with the runtime folder's. Were the guard itself killed, the kernel tells Triton to end, and the next server
that starts sweeps up (:func:`tercet.server.runtime.sweep`).
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
POLL_SECONDS = 0.2
SHARED_MEMORY = Path("/dev/shm")


def remove_shared_memory(prefix: str) -> None:
    """Remove the shared-memory files whose names begin with `prefix`."""
    for file in SHARED_MEMORY.glob(f"{prefix}*"):
        file.unlink(missing_ok=True)


def _children() -> list[int]:
    """Return the processes whose parent is this one (adopted orphans too)."""
    own = str(os.getpid())
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command's name, in parentheses, may itself hold spaces and parentheses.
            parent = status.read_text(errors="replace").rpartition(")")[2].split()[1]
        except OSError:
            continue  # ended meanwhile
        if parent == own:
            found.append(int(status.parent.name))
    return found


def _kill_children() -> None:
    """Kill and reap every remaining child, until none is left."""
    while True:
        for child in _children():
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


def main() -> int:
    """Run the command to its end, or to the owner's; return its exit status."""
    owner, runtime, grace, command = int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
    asked = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, {*asked, signal.SIGCHLD})
    server = _start(command)
    deadline = None
    while server.poll() is None:
        received = signal.sigtimedwait({*asked, signal.SIGCHLD}, POLL_SECONDS)
        if deadline is None and ((received and received.si_signo in asked) or os.getppid() != owner):
            server.terminate()
            deadline = time.monotonic() + grace
        elif deadline is not None and time.monotonic() > deadline:
            server.kill()
    _kill_children()
    remove_shared_memory(runtime.name)
    if os.getppid() != owner:
        shutil.rmtree(runtime, ignore_errors=True)
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


if __name__ == "__main__":
    sys.exit(main())
