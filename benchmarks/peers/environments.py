"""A Python environment for each peer, with pip, from the pinned versions kept in `requirements/`.

PyTorch is 5 GB with the CUDA libraries that PyPI's wheels bring, so all peers see one copy of it: the
environment `torch`, whose packages a .pth file appends to those of their own. What a peer pins itself comes
first.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

__all__ = ["NAMES", "REQUIREMENTS", "install"]

REQUIREMENTS = Path(__file__).parent / "requirements"
BASE = "torch"
NAMES = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))


def install(name: str, folder: Path) -> Path:
    """The environment's folder, made or renewed if it is not what the requirements say.

    Raises:
        subprocess.CalledProcessError: pip failed; its output went to this program's.
    """
    environment, wanted = folder / name, REQUIREMENTS / f"{name}.txt"
    digest = hashlib.sha256(wanted.read_bytes() + sys.version.encode()).hexdigest()
    stamp = environment / "installed"
    if stamp.is_file() and stamp.read_text() == digest:
        return environment
    subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
    if name != BASE:
        shared = site_packages(install(BASE, folder))
        (site_packages(environment) / f"{BASE}.pth").write_text(f"{shared}\n")
    print(f"Installing {name} into {environment}", flush=True)
    # The file lists everything, so that nothing is left to resolve.
    pip = [f"{environment}/bin/python", "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--requirement", wanted], check=True)
    stamp.write_text(digest)
    return environment


def site_packages(environment: Path) -> Path:
    """Where an environment keeps its packages."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return environment / "lib" / version / "site-packages"
