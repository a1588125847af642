"""What the embedded Triton needs: the wheel's binary, a Python for its stubs, a private folder."""

import fcntl
import importlib.util
import os
import re
import shutil
import site
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tercet.errors import ServerStartError
from tercet.server.guard import SHARED_MEMORY, remove_shared_memory

PREFIX = "tercet-server-"
LEAST_SHARED_MEMORY = 128 * 2**20
INSTALL = 'pip install "tercet[serve]"'
BACKEND = Path(__file__).parent.parent / "backends" / "onnxruntime"
"""The Python onnxruntime backend: `model.py` and what it imports, the modules called `backend_...`."""


@dataclass(frozen=True)
class Installation:
    """Where the parts of the embedded Triton lie on this machine."""

    binary: Path
    python_backend: Path
    stub: Path
    libraries: Path
    libpython: Path


def _package_folder(name: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ServerStartError(
            f"the embedded server needs the package {name}, which is not installed: {INSTALL}"
        )
    return Path(found.submodule_search_locations[0])


def _libpython() -> Path:
    """Return the shared library of the running Python, which Triton's stub is linked to."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = f"libpython{version}.so.1.0"
    folder = sysconfig.get_config_var("LIBDIR") or "/usr/lib"
    multiarch = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    for candidate in (Path(folder), Path(folder) / multiarch, Path(sys.base_prefix) / "lib"):
        if (candidate / name).exists():
            return candidate / name
    raise ServerStartError(
        f"Triton's Python backend needs {name}, and the Python at {sys.base_prefix} has none: "
        f"on Debian or Ubuntu `apt install libpython{version}`, "
        f"with pyenv `PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install {version}`"
    )


def _check_numpy() -> None:
    """Refuse NumPy 2, under which the stub of this Triton silently empties every output."""
    import numpy

    if int(numpy.__version__.split(".")[0]) >= 2:
        raise ServerStartError(
            f"NumPy {numpy.__version__} is installed, under which the Python backend of this Triton silently "
            f'returns empty tensors: pip install "numpy<2" (or {INSTALL}) in this environment'
        )


def find_installation() -> Installation:
    """Find the binary and its Python backend in the nvidia-pytriton wheel, and check that they can run here.

    Raises:
        ServerStartError: a part is missing or unfit; the message says what to install.
    """
    if sys.platform != "linux":
        raise ServerStartError(
            f"the embedded server runs on Linux only, not on {sys.platform}: use a remote Triton"
        )
    if shutil.which("bash") is None:
        raise ServerStartError(
            "Triton starts its Python processes through bash, which is not on PATH: install bash"
        )
    if not SHARED_MEMORY.is_dir() or shutil.disk_usage(SHARED_MEMORY).free < LEAST_SHARED_MEMORY:
        raise ServerStartError(
            f"{SHARED_MEMORY}, through which models get their tensors, has less than "
            f"{LEAST_SHARED_MEMORY // 2**20} MiB free: enlarge it (docker run --shm-size=1g)"
        )
    _check_numpy()
    _package_folder("onnxruntime")
    package = _package_folder("pytriton")
    triton = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    installation = Installation(
        binary=triton / "bin" / "tritonserver",
        python_backend=triton / "backends" / "python",
        stub=triton / "python_backend_stubs" / version / "triton_python_backend_stub",
        libraries=package.parent / "nvidia_pytriton.libs",
        libpython=_libpython(),
    )
    for part in (installation.binary, installation.stub, installation.python_backend, installation.libraries):
        if not part.exists():
            raise ServerStartError(
                f"the nvidia-pytriton wheel lacks {part}: pip install --force-reinstall nvidia-pytriton"
            )
    return installation


def _temporary_folder() -> Path:
    """Return a folder for temporary files whose path needs no quotes in a shell: Triton uses none."""
    for candidate in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if re.fullmatch(r"[\w./+-]+", candidate, re.ASCII) and os.access(candidate, os.W_OK):
            return Path(candidate)
    raise ServerStartError(
        f"Triton cannot use the temporary folder {tempfile.gettempdir()!r}: "
        "set TMPDIR to a writable one without spaces and special characters"
    )


def create_runtime(installation: Installation) -> tuple[Path, int]:
    """Lay out a server's private folder; return it and the descriptor whose lock says that the server lives.

    Its name begins the names of the server's shared memory. It holds the backends (copied: Triton refuses
    links there) and a link to the Python library. `repository` in it is for links to the models (whose own
    path may have spaces, which Triton's Python backend does not bear).
    """
    parent = _temporary_folder()
    new = Path(tempfile.mkdtemp(prefix="tercet-new-", dir=parent))
    # Locked before it gets the name that `sweep` looks for: no other server takes it for a dead one's.
    lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    runtime = new.rename(parent / new.name.replace("tercet-new-", PREFIX))
    python, onnxruntime = runtime / "backends" / "python", runtime / "backends" / "onnxruntime"
    libraries = runtime / "libraries"
    for folder in (python, onnxruntime, libraries):
        folder.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy(installation.python_backend / name, python / name)
    for module in (BACKEND / "model.py", *BACKEND.glob("backend_*.py")):
        shutil.copy(module, onnxruntime / module.name)
    (python / "triton_python_backend_stub").symlink_to(installation.stub)
    (libraries / installation.libpython.name).symlink_to(installation.libpython)
    lay_out_python(runtime / "python")
    return runtime, lock


def lay_out_python(folder: Path) -> None:
    """Make a virtual environment whose interpreter finds the packages that this one finds.

    The interpreter inside a stub learns from the first `python3` on PATH where it belongs; it ignores
    PYTHONPATH and the user's own packages, which are therefore listed here.
    """
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    base = Path(getattr(sys, "_base_executable", sys.executable))
    (folder / "bin" / "python3").symlink_to(base)
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    found = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    added = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    lines = [*map(os.path.abspath, added), *(f"import site; site.addsitedir({path!r})" for path in found)]
    (packages / "tercet.pth").write_text("\n".join([*lines, ""]))


def processors() -> int:
    """Return how many processors this process may use: what it is bound to, or its container's limit."""
    bound = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(bound, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return bound  # no control groups, or no limit ("max")


def thread_settings() -> dict[str, str]:
    """Return the environment's variables that say how many threads a model's process may use."""
    return {
        "TERCET_THREADS": os.environ.get("TERCET_THREADS", str(processors())),
        # Stubs are many: their numerical libraries should not each start a thread for every processor.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def environment(installation: Installation, runtime: Path) -> dict[str, str]:
    """Return the environment of the server and its stubs: ours, with the libraries and Python laid out."""
    ours = {
        **thread_settings(),
        "PATH": os.pathsep.join([str(runtime / "python" / "bin"), os.environ.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join(
            [str(runtime / "libraries"), str(installation.libraries), os.environ.get("LD_LIBRARY_PATH", "")]
        ).rstrip(os.pathsep),
    }
    return {**os.environ, **ours}


def remove_runtime(runtime: Path) -> None:
    """Remove a server's private folder and its shared memory."""
    remove_shared_memory(runtime.name)
    shutil.rmtree(runtime, ignore_errors=True)


def sweep() -> None:
    """Remove what dead servers of this user left behind: those whose folder nobody holds the lock of."""
    for runtime in _temporary_folder().glob(f"{PREFIX}*"):
        try:
            lock = os.open(runtime, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue  # another user's, or gone meanwhile
        try:
            if os.fstat(lock).st_uid == os.getuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_runtime(runtime)
        except BlockingIOError:
            pass  # it lives
        finally:
            os.close(lock)
