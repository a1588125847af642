"""`import tercet` is light: it must cost a script, or a command's --help, next to nothing."""

import subprocess
import sys

import tercet

HEAVY = (
    "torch",
    "onnxruntime",
    "onnx",
    "tokenizers",
    "transformers",
    "open_clip",
    "faiss",
    "grpc",
    "scipy",
    "pandas",
    "httpx",
    "pyarrow",
    "matplotlib",
    "jinja2",
)


def test_nothing_heavy_is_imported() -> None:
    code = f"import sys, tercet; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_exported_exists_and_is_sorted() -> None:
    names = tercet.__all__
    assert all(hasattr(tercet, name) for name in names)
    assert names == sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))
