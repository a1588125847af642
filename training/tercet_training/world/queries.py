"""Galleries with composed queries whose answers are known.

A query is a reference picture and a modification. The subject after the modification decides the answer: what
neither the subject nor the modification says (the other background, the other style) is free, as in the
object composition and domain conversion protocols of Pic2Word (Saito et al., 2023). Every picture of the
gallery that fits is a target; one with a companion that nobody asked for does not fit. The reference never
fits and is not a candidate of its own query (CIRR): leave it out when searching.

Hard negatives by construction: the reference's subject on other backgrounds, in other styles and with other
companions (the other queries' answers), and for every query a near variant that follows the modification with
a subject that is off in one aspect.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tercet_training.world.captions import name_background, name_companion
from tercet_training.world.scenes import (
    Scene,
    Subject,
    Thing,
    choose,
    sample_companion,
    sample_scene,
    sample_seed,
    sample_style,
    sample_subject,
)
from tercet_training.world.vocabulary import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, SIZES, STYLES

# Every reference is asked one query of each kind.
KINDS = ("background", "addition", "style", "attribute")

SETTING = "setting"
"""For ablations: another style "in the same place": it speaks of what background removal takes away."""

SAME_PLACE = ("in the same place", "with the same background", "in the same setting", "same scene")


@dataclass(frozen=True)
class Query:
    """`reference` and `targets` are indices into the gallery's scenes; the targets are never empty."""

    reference: int
    modification: str
    targets: frozenset[int]
    kind: str


@dataclass(frozen=True)
class Gallery:
    """Scenes to be rendered, and queries about them."""

    scenes: list[Scene]
    queries: list[Query]


@dataclass(frozen=True)
class Wish:
    """What a query asks for: a subject, and a background or a style where the modification names one."""

    subject: Subject
    background: str | None = None
    style: str | None = None

    def fits(self, scene: Scene) -> bool:
        """Whether the scene is an answer."""
        return (
            scene.subject == self.subject
            and self.background in (None, scene.background)
            and self.style in (None, scene.style)
        )


def fulfil(wish: Wish, rng: np.random.Generator) -> Scene:
    """A scene that fits, with everything free drawn at random."""
    background = wish.background or choose(rng, BACKGROUNDS)
    return Scene(wish.subject, background, wish.style or sample_style(rng), sample_seed(rng))


def vary(subject: Subject, rng: np.random.Generator) -> Subject:
    """The subject with the shape, the colour or the pattern of its thing exchanged."""
    thing = subject.thing
    variants = (
        replace(thing, shape=choose(rng, SHAPES, other_than=thing.shape)),
        replace(thing, colour=choose(rng, COLOURS, other_than=thing.colour)),
        replace(thing, pattern=choose(rng, PATTERNS, other_than=thing.pattern)),
    )
    return replace(subject, thing=variants[rng.integers(len(variants))])


def replace_attribute(thing: Thing, rng: np.random.Generator) -> tuple[Thing, str]:
    """The thing with another colour, pattern or size, and the words that ask for it."""
    aspect = choose(rng, ("colour", "colour", "pattern", "size"))
    if aspect == "colour":
        colour = choose(rng, COLOURS, other_than=thing.colour)
        return replace(thing, colour=colour), f"in {colour}"
    if aspect == "pattern":
        spoken = {pattern: words for pattern, words in PATTERNS.items() if words and pattern != thing.pattern}
        pattern = choose(rng, list(spoken))
        return replace(thing, pattern=pattern), f"with {spoken[pattern][1]}"
    size = choose(rng, [size for size in ("small", "large") if size != thing.size])
    return replace(thing, size=size), SIZES[size][1][0]


def modify(reference: Scene, kind: str, rng: np.random.Generator) -> tuple[str, Wish]:
    """A modification of the reference, of the given kind, and what it asks for."""
    subject = reference.subject
    if kind == "background":
        background = choose(rng, BACKGROUNDS, other_than=reference.background)
        return name_background(background, rng), Wish(subject, background=background)
    if kind == "style":
        style = choose(rng, STYLES, other_than=reference.style)
        return f"as {STYLES[style]}", Wish(subject, style=style)
    if kind == "addition":
        companion = sample_companion(rng, subject.thing)
        return f"with {name_companion(companion)}", Wish(replace(subject, companion=companion))
    if kind == SETTING:
        style = choose(rng, STYLES, other_than=reference.style)
        place = choose(rng, SAME_PLACE)
        return f"as {STYLES[style]}, {place}", Wish(subject, reference.background, style)
    thing, words = replace_attribute(subject.thing, rng)
    return words, Wish(replace(subject, thing=thing))


def near_variant(wish: Wish, kind: str, rng: np.random.Generator) -> Scene:
    """A scene that misses the wish by one aspect: for `setting` the background, else one of its subject's."""
    if kind == SETTING:
        elsewhere = choose(rng, BACKGROUNDS, other_than=wish.background or "")
        return fulfil(replace(wish, background=elsewhere), rng)
    return fulfil(replace(wish, subject=vary(wish.subject, rng)), rng)


def make_gallery(seed: int, pictures: int, queries: int, kinds: Sequence[str] = KINDS) -> Gallery:
    """`pictures` scenes in random order and `queries` composed queries; equal arguments, equal galleries.

    Raises:
        ValueError: too few pictures: a query needs a target and a near variant, and one query of each of
            `kinds` share a reference.
    """
    needed = 2 * queries + -(-queries // len(kinds))
    if pictures < needed:
        raise ValueError(f"{queries} queries need a gallery of at least {needed} pictures, not {pictures}")
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    asked: list[tuple[int, str, Wish, str]] = []
    for number in range(queries):
        kind = kinds[number % len(kinds)]
        if number % len(kinds) == 0:
            subject = sample_subject(rng, small=False)  # a companion may come to stand beside it
            home = len(scenes)
            scenes.append(fulfil(Wish(subject), rng))
        modification, wish = modify(scenes[home], kind, rng)
        asked.append((home, modification, wish, kind))
        scenes.append(fulfil(wish, rng))
        scenes.append(near_variant(wish, kind, rng))
    while len(scenes) < pictures:
        scenes.append(sample_scene(rng))
    order = rng.permutation(len(scenes))
    place = np.argsort(order)  # old index -> new index
    found = [
        Query(
            int(place[home]),
            modification,
            frozenset(int(place[index]) for index, scene in enumerate(scenes) if wish.fits(scene)),
            kind,
        )
        for home, modification, wish, kind in asked
    ]
    return Gallery([scenes[index] for index in order], found)
