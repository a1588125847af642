"""Compositions as the command line names them, such as `caption background=keep`."""

import shlex
from collections.abc import Sequence

from tercet.compositions.registry import COMPOSITIONS, check_needs, make_settings, recipe_of
from tercet.compositions.settings import Value
from tercet.errors import InputError, TercetError
from tercet.evaluation.run import Chosen
from tercet.lineup import Lineup

__all__ = ["choose", "choose_all"]


def choose(words: str, dataset: str) -> Chosen:
    """The composition that `words` name, with the data set's defaults; its label is `words`.

    Words are split as a shell does: the name, then any number of `setting=value`.

    Raises:
        InputError: no such composition, or a setting that it does not read or that is out of its range.
    """
    try:
        name, *given = shlex.split(words) or [""]
    except ValueError as error:
        raise InputError(f"composition {words!r} cannot be read: {error}; close the quote") from error
    overrides: dict[str, Value] = {}
    for setting in given:
        key, equals, value = setting.partition("=")
        if not equals or key in overrides:
            what = "is given twice" if equals else "has no value"
            raise InputError(f"composition {words!r}: {key!r} {what}; write setting=value, each once")
        overrides[key] = value
    return Chosen(" ".join(words.split()), recipe_of(name), make_settings(name, overrides, dataset))


def choose_all(dataset: str, lineup: Lineup) -> tuple[list[Chosen], dict[str, str]]:
    """Every composition that the server can serve, and by name why the others are left out."""
    chosen, left_out = [], {}
    for name in COMPOSITIONS:
        try:
            choice = choose(name, dataset)
            check_needs(choice.recipe, choice.settings, lineup)
        except TercetError as error:
            left_out[name] = str(error)
        else:
            chosen.append(choice)
    return chosen, left_out


def check_labels(chosen: Sequence[Chosen]) -> None:
    """Refuse compositions that are asked for twice.

    Raises:
        InputError: two have the same label.
    """
    labels = [choice.label for choice in chosen]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise InputError(f"composition {twice[0]!r} is given twice; give each once")
