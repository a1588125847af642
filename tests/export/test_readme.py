"""export/README.md: its network is a real one, and its command exports it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import onnxruntime
import safetensors.torch
import torch

README = Path(__file__).parents[2] / "export" / "README.md"
BLOCKS = dict(re.findall(r"^```(python|bash)\n(.*?)^```", README.read_text(), flags=re.M | re.S))

# What a file under networks/ goes through: import, then the command line in the same process.
RUN = "import linear, sys; from tercet_export.cli import main; main()"


def test_the_example_is_exported_and_computes_its_matrix(tmp_path: Path) -> None:
    (tmp_path / "linear.py").write_text(BLOCKS["python"])
    weight, bias = torch.randn(4, 6), torch.randn(4)
    safetensors.torch.save_file({"map.weight": weight, "map.bias": bias}, tmp_path / "linear.safetensors")
    program, *arguments = BLOCKS["bash"].split()
    assert program == "tercet-export"
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    features = torch.randn(3, 6)
    (word,) = onnxruntime.InferenceSession(tmp_path / "linear.onnx").run(None, {"features": features.numpy()})
    torch.testing.assert_close(torch.from_numpy(word), features @ weight.T + bias)


def test_files_and_folders_it_names_exist() -> None:
    package = README.parent / "tercet_export"
    for name in re.findall(r"`((?:networks/)?[\w]+\.py)`", README.read_text()):
        assert (package / name).is_file() or name == "networks/linear.py", name
