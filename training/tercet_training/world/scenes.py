"""A scene: what can be said of a picture, and one seed for all that cannot."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tercet_training.world.vocabulary import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, SIZES, STYLES

SECOND_THING_SHARE = 0.2
PHOTO_SHARE = 0.5


@dataclass(frozen=True)
class Thing:
    """The main thing of a scene; the fields are keys of the vocabulary."""

    shape: str
    colour: str
    pattern: str = "plain"
    size: str = "medium"


@dataclass(frozen=True)
class Companion:
    """A second, smaller thing, always plain."""

    shape: str
    colour: str


@dataclass(frozen=True)
class Subject:
    """The foreground: a thing, and perhaps another beside it. It is what a cut-out shows."""

    thing: Thing
    companion: Companion | None = None


@dataclass(frozen=True)
class Scene:
    """A subject before a background, drawn in a style.

    `seed` decides everything that captions do not speak of: position, rotation, light, clutter, grain.
    """

    subject: Subject
    background: str
    style: str
    seed: int


def choose(rng: np.random.Generator, values: Iterable[str], *, other_than: str = "") -> str:
    """One of `values` at random, and never `other_than`."""
    left = [value for value in values if value != other_than]
    return left[rng.integers(len(left))]


def sample_seed(rng: np.random.Generator) -> int:
    """A seed for a scene's nuisance."""
    return int(rng.integers(2**62))


def sample_style(rng: np.random.Generator) -> str:
    """Photos are as frequent as all other styles together."""
    return "photo" if rng.random() < PHOTO_SHARE else choose(rng, STYLES, other_than="photo")


def sample_companion(rng: np.random.Generator, thing: Thing) -> Companion:
    """A second thing of another shape and colour than the first."""
    return Companion(
        choose(rng, SHAPES, other_than=thing.shape), choose(rng, COLOURS, other_than=thing.colour)
    )


def sample_subject(rng: np.random.Generator, *, companion: bool = False, small: bool = True) -> Subject:
    """A thing, with a companion if asked for: then it is not small, so that it is clearly the main one."""
    size = choose(rng, SIZES, other_than="small" if companion or not small else "")
    thing = Thing(choose(rng, SHAPES), choose(rng, COLOURS), choose(rng, PATTERNS), size)
    return Subject(thing, sample_companion(rng, thing) if companion else None)


def sample_scene(rng: np.random.Generator) -> Scene:
    """A scene with every aspect drawn independently."""
    subject = sample_subject(rng, companion=rng.random() < SECOND_THING_SHARE)
    return Scene(subject, choose(rng, BACKGROUNDS), sample_style(rng), sample_seed(rng))
