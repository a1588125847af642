"""What is said of a scene: one usual wording, and many others.

A plain pattern, a medium size and, mostly, a photo go without saying. A cut-out's caption names the
subject alone.
"""

import numpy as np

from tercet_training.world.scenes import Companion, Scene, Subject, Thing
from tercet_training.world.vocabulary import BACKGROUNDS, PATTERNS, SIZES, STYLES


def one_of(rng: np.random.Generator | None, *wordings: str) -> str:
    """The first wording without a generator, any of them with one."""
    return wordings[0] if rng is None else wordings[rng.integers(len(wordings))]


def with_article(words: str) -> str:
    """'orange cup' -> 'an orange cup'."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def name_thing(thing: Thing, rng: np.random.Generator | None = None) -> str:
    """'a large red striped star', or 'a big striped star in red', or 'a large red star with stripes'."""
    sizes = SIZES[thing.size][1]
    size = f"{one_of(rng, *sizes)} " if sizes else ""
    words = PATTERNS[thing.pattern]
    if words is None:
        return one_of(
            rng,
            with_article(f"{size}{thing.colour} {thing.shape}"),
            with_article(f"{size}{thing.colour} {thing.shape}"),
            with_article(f"{size}{thing.shape} in {thing.colour}"),
        )
    adjective, noun = words
    return one_of(
        rng,
        with_article(f"{size}{thing.colour} {adjective} {thing.shape}"),
        with_article(f"{size}{adjective} {thing.colour} {thing.shape}"),
        with_article(f"{size}{thing.colour} {thing.shape} with {noun}"),
        with_article(f"{size}{thing.colour} {thing.shape}, with {noun}"),
        with_article(f"{size}{adjective} {thing.shape} in {thing.colour}"),
    )


def name_companion(companion: Companion) -> str:
    """'a blue cup'."""
    return with_article(f"{companion.colour} {companion.shape}")


def name_subject(subject: Subject, rng: np.random.Generator | None = None) -> str:
    """'a large red striped star with a blue cup'."""
    thing = name_thing(subject.thing, rng)
    if subject.companion is None:
        return thing
    link = one_of(rng, " with ", ", with ", " and ", " next to ", " beside ")
    return f"{thing}{link}{name_companion(subject.companion)}"


def name_background(background: str, rng: np.random.Generator | None = None) -> str:
    """'on a beach'."""
    return one_of(rng, *BACKGROUNDS[background])


def caption(
    scene: Scene, *, background: bool = True, style: bool = True, rng: np.random.Generator | None = None
) -> str:
    """A caption of the scene: the usual wording, or with a generator any of the many paraphrases.

    Args:
        scene: what is to be described; the subject is always named in full.
        background: say where the subject is.
        style: say that the picture is not a photo (or, now and then, that it is one).
        rng: draws a paraphrase.
    """
    subject = name_subject(scene.subject, rng)
    where = name_background(scene.background, rng) if background else ""
    plain = [f"{subject} {where}", f"{subject}, {where}", f"{where}, {subject}"] if where else [subject]
    spoken = style and (scene.style != "photo" or (rng is not None and rng.random() < 0.3))
    if not spoken:
        return one_of(rng, *plain)
    noun = STYLES[scene.style]
    styled = [f"{sentence}, as {noun}" for sentence in plain] + [
        f"{noun} of {sentence}" for sentence in plain[:2]
    ]
    if where:
        styled.append(f"{subject}, as {noun}, {where}")
    return one_of(rng, *styled)
