"""Inert objects in the place of the classes that trainers pickle beside their weights.

fairseq's checkpoints hold its configuration: an argparse.Namespace, OmegaConf's containers, members of its
own enumerations. torch's reader of weights refuses every class that it does not know. Given the names of
these, it makes a `StandIn` for each: an object that keeps what it is given and has no code to run. The names
are never imported.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Packages all of whose classes are only ever looked at, and single names.
PACKAGES = ("fairseq.", "omegaconf.", "typing.", "tasks.", "criterions.")
NAMES = frozenset(
    {
        "argparse.Namespace",
        "_operator.getitem",  # of a type: List[int]
        "pathlib.PosixPath",
        *(f"builtins.{kind}" for kind in ("bool", "dict", "float", "int", "list", "object", "str", "tuple")),
    }
)


class StandIn:
    """Stands for an object of a class that is not needed: keeps its attributes and does nothing."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def empty(*arguments: object) -> dict[object, object]:
    """Stands for collections.defaultdict: torch's reader fills none but plain dictionaries."""
    return {}


def stand_ins(path: Path) -> list[tuple[Callable[..., Any], str]]:
    """For `torch.serialization.safe_globals`: each name that a zip file asks for and that may be replaced."""
    asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    made: list[tuple[Callable[..., Any], str]] = [
        (StandIn, name) for name in sorted(asked) if name in NAMES or name.startswith(PACKAGES)
    ]
    return [*made, (empty, "collections.defaultdict")]
