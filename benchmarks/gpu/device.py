"""What is measured on: the card, its driver, and the versions of what runs the networks."""

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version

__all__ = ["NoDevice", "card", "check_device", "describe_versions", "driver", "load_average", "memory_in_use"]

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch", "transformers", "tensorrt")
SETUP = "see benchmarks/gpu/setup.sh"


class NoDevice(Exception):
    """The device cannot be measured on; the message says what is missing."""


def check_device(device: str) -> None:
    """Raise NoDevice, with what to do, unless PyTorch and ONNX Runtime can use the device."""
    if device == "cpu":
        return
    import onnxruntime
    import torch

    if not torch.cuda.is_available():
        raise NoDevice(
            "there is no NVIDIA GPU that PyTorch can use. This measures GPUs: it needs a card, its driver "
            f"(does nvidia-smi show them?) and a PyTorch with CUDA ({SETUP}). To see that it works without "
            "one: --device cpu --tiny"
        )
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise NoDevice(
            f"the installed onnxruntime {onnxruntime.__version__} has no CUDA provider: onnxruntime-gpu must "
            f"be installed in its place, not beside it ({SETUP})"
        )


def card(device: str) -> str:
    """The card's name, or the processor's."""
    if device == "cpu":
        from tercet.bench.processes import describe_machine

        return str(describe_machine()["processor"])
    import torch

    return torch.cuda.get_device_name(0)


def driver(device: str) -> str:
    """The driver's version as nvidia-smi tells it; empty where there is none."""
    if device == "cpu":
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def describe_versions() -> str:
    """The packages that matter with their versions, and CUDA's that PyTorch came with."""
    import torch

    found = [f"CUDA {torch.version.cuda}"] if torch.version.cuda else []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def memory_in_use(device: str) -> int:
    """Megabytes of the device's memory in use, by whatever; 0 for the processor."""
    if device == "cpu":
        return 0
    import torch

    free, total = torch.cuda.mem_get_info()
    return (total - free) // 1_000_000


def load_average() -> float:
    """The machine's, of the last minute."""
    return round(os.getloadavg()[0], 2)
