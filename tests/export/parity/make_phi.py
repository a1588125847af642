"""What SEARLE's official network makes of deterministic weights: writes phi.npz.

Needs a clone of https://github.com/miccunifi/SEARLE (commit a9c314b was used) and torch; LinCIR's class is a
copy of that one. Run: python -m tests.export.parity.make_phi CLONE
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch

from tests.export import parity

# CLIP ViT-B/32 and ViT-L/14, as the official hubconf.py has them: features, middle, width.
SIZES = {"b32": (512, 2048, 512), "l14": (768, 3072, 768)}


def main(clone: Path) -> None:
    """Run the official class on both sizes."""
    spec = importlib.util.spec_from_file_location("phi", clone / "src" / "phi.py")
    assert spec is not None
    assert spec.loader is not None
    official = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(official)
    arrays = {}
    for name, (features, middle, width) in SIZES.items():
        network = official.Phi(features, middle, width, dropout=0.5).eval()
        network.load_state_dict(parity.phi(features, middle, width)["Phi"])
        given = parity.normal(f"phi.{name}", (4, features))
        with torch.inference_mode():
            arrays |= {f"{name}_input": given.numpy(), f"{name}_output": network(given).numpy()}
    np.savez_compressed(parity.FOLDER / "phi.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
