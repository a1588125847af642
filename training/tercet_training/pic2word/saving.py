"""Checkpoints in the official container, with what resuming needs beside it.

`{"epoch", "name", "state_dict", "state_dict_img2text", "optimizer"}` as src/main.py writes it, every name
behind `module.` as there: some readers cut that off without looking (LinCIR's demo.py). Ours is `tercet`.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tercet.errors import CheckpointError, InputError
from tercet_export import checkpoints
from tercet_export.networks.pic2word import Im2Text
from tercet_training.pic2word.frozen import FrozenCLIP
from tercet_training.pic2word.recipe import Recipe

LATEST = "epoch_latest.pt"
FORMAT = 1


def write(path: Path, content: Mapping[str, Any], also: Path | None = None) -> None:
    """Write a checkpoint so that `path` is always a whole one, the old or the new; `also` names it too."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        if also is not None:
            link = also.with_name(f".{also.name}.partial")
            link.unlink(missing_ok=True)
            try:
                os.link(partial, link)
            except OSError:  # not every file system has links
                shutil.copyfile(partial, link)
            os.replace(link, also)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(
            f"checkpoint {path} cannot be written: {error}. Free space, then --resume"
        ) from error


def container(
    clip: FrozenCLIP,
    mapper: Im2Text,
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
    *,
    name: str,
    epoch: int,
    step: int,
    data: str,
    scaler: Mapping[str, Any],
    with_clip: bool,
) -> dict[str, Any]:
    """What is written after `step` steps, in the course of which `epoch` epochs were finished."""
    return {
        "epoch": epoch,
        "name": name,
        "state_dict": parallel(clip.state) if with_clip else {},
        "state_dict_img2text": parallel(mapper.state_dict()),
        "optimizer": optimiser.state_dict(),
        "tercet": {
            "format": FORMAT,
            "step": step,
            "recipe": asdict(recipe),
            "clip_digest": clip.digest,
            "data": data,
            "scaler": dict(scaler),
        },
    }


def parallel(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as DistributedDataParallel names it, on the CPU."""
    return {f"module.{name}": tensor.detach().cpu() for name, tensor in state.items()}


def read(path: Path, clip: FrozenCLIP, recipe: Recipe, data: str) -> checkpoints.Checkpoint:
    """A checkpoint to go on from, if it is of the same run.

    Raises:
        CheckpointError: damaged, or not written by this training.
        InputError: another recipe, other pictures or another CLIP; the message names what differs.
    """
    checkpoint = checkpoints.read(path)
    ours = checkpoint.content.get("tercet")
    if not isinstance(ours, Mapping) or ours.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} does not hold what resuming needs: only checkpoints of `tercet-train pic2word` do. "
            "Give another --output to start anew"
        )
    differing = [
        f"{name} was {ours['recipe'].get(name)!r} and is {value!r}"
        for name, value in asdict(recipe).items()
        if ours["recipe"].get(name) != value
    ]
    if ours["data"] != data:
        differing.append("the pictures are others")
    if ours["clip_digest"] != clip.digest:
        differing.append("CLIP has other weights")
    if differing:
        raise InputError(
            f"{path} is of another run: {'; '.join(differing)}. Repeat the run's own options with --resume "
            "(`batch` counts all processes), or give another --output"
        )
    return checkpoint


def save_for_a_lineup(path: Path, clip: FrozenCLIP, mapper: Im2Text) -> None:
    """The mapping network alone in f16, with a note which CLIP it is for: `tercet-export` reads that too."""
    halves = {name: tensor.detach().cpu().half().contiguous() for name, tensor in mapper.state_dict().items()}
    save_file(halves, path, {"clip_digest": clip.digest})
