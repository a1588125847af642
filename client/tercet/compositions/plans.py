"""The plans: how each composition gets from a reference and a modification to vectors.

A plan is a generator that yields lists of needs, is sent the list of their answers, and returns a
`ComposedQuery`. It asks no server itself. `PseudoTokenNeed` comes before the texts that use its answer.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from tercet.composition import Composition, check_text, composing, needs_pseudo_token, read_template
from tercet.compositions.background import choose_by_mask, choose_by_text
from tercet.compositions.needs import (
    Answer,
    CaptionNeed,
    EmbeddedText,
    ImageNeed,
    Need,
    PseudoTokenNeed,
    RewriteNeed,
    Rewritten,
    TextNeed,
)
from tercet.compositions.rewrite import read_prompt
from tercet.compositions.scoring import (
    ComposedQuery,
    Exclusion,
    Increment,
    Linear,
    Product,
    Scoring,
    blend,
)
from tercet.compositions.settings import Settings
from tercet.messages import Background, Caption

Vector = NDArray[np.float32]
Result = TypeVar("Result")
Steps: TypeAlias = Generator[Sequence[Need], Sequence[Answer], Result]
Plan: TypeAlias = Steps[ComposedQuery]

NEARLY_PARALLEL = 0.9995
"""|cosine| above which the arc between two vectors is too short, or too ambiguous, to divide by its sine."""

COPY = 1 - 1e-6
"""What counts as a similarity of 1: a float32 vector of unit length is not quite that similar to itself."""


@dataclass(frozen=True, eq=False)
class Described:
    """The captions of a reference, and what was done to its background before."""

    captions: tuple[Caption, ...] = ()
    background: Background | None = None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Fused:
    """A text and its embedding, f32 [D]."""

    composition: Composition
    embedding: Vector


# The plans


def plan_fused(modification: str, settings: Settings, limit: int) -> Plan:
    """Caption, `*` and modification as the template fuses them: text, Pic2Word, the method, both in one."""
    described = Described()
    if "{caption}" in read_template(settings.template):
        described = yield from _describe(modification, settings)
    captions = [caption.text for caption in described.captions] or [""]
    parts = yield from _fuse_all(captions, modification, settings.template, limit)
    return (yield from _finish(parts, modification, settings, described, limit))


def plan_rewritten(modification: str, settings: Settings, limit: int) -> Plan:
    """Each caption rewritten by a language model (CIReVL's idea); fused by the template where it fails."""
    check_text(modification, "modification")
    described = yield from _describe(modification, settings)
    prompt = read_prompt(settings.prompt)
    asked = [
        RewriteNeed(caption.text, modification.strip(), settings.llm_model, prompt, settings.llm_seconds)
        for caption in described.captions
    ]
    parts, notes = [], []
    for need, rewritten in zip(asked, (yield asked), strict=True):
        assert isinstance(rewritten, Rewritten)
        part = None
        if rewritten.failure is None:
            part = yield from _embed_cut(rewritten.text, limit)
        if part is None:
            reason = rewritten.failure or "its text cannot be cut to what the text encoder reads"
            notes.append(f"caption not rewritten ({reason}); fused by the template instead")
            parts.append((yield from _fuse(need.caption, modification, settings.template, limit)))
            continue
        text, embedding = part
        if text != rewritten.text:
            notes.append("the end of the rewritten caption was cut to what the text encoder reads")
        composition = Composition(text, need.caption, need.modification, "rewrite", caption_cut=False)
        parts.append(Fused(composition, embedding))
    return (yield from _finish(parts, modification, settings, described, limit, tuple(dict.fromkeys(notes))))


def plan_image(modification: str, settings: Settings, limit: int) -> Plan:
    """The reference's embedding alone: the baseline that does not read the modification."""
    nothing = _nothing(modification)
    image = yield from _image()
    return (yield from _exclude(_query(image[None], Linear(), nothing), settings))


def plan_sum(modification: str, settings: Settings, limit: int) -> Plan:
    """`text_weight * text + (1 - text_weight) * image` of unit vectors; 0.5 is Pic2Word's mixture."""
    text = yield from _fuse("", modification, settings.template, limit)
    image = yield from _image()
    mixed = blend([text.embedding, image], [settings.text_weight, 1 - settings.text_weight])
    return (yield from _exclude(_query(mixed[None], Linear(), text.composition), settings))


def plan_slerp(modification: str, settings: Settings, limit: int) -> Plan:
    """The point `slerp_alpha` of the way on the arc from image to text: youngkyunJang/SLERP-TAT, slerp.py."""
    text = yield from _fuse("", modification, settings.template, limit)
    image = yield from _image()
    mixed = slerp(image, text.embedding, settings.slerp_alpha)
    return (yield from _exclude(_query(mixed[None], Linear(), text.composition), settings))


def plan_product(modification: str, settings: Settings, limit: int) -> Plan:
    """Similarity to the text times similarity to the reference, above their floors: see `Product`."""
    text = yield from _fuse("", modification, settings.template, limit)
    image = yield from _image()
    scoring = Product(settings.text_floor, settings.image_floor)
    query = _query(np.stack([text.embedding, image]), scoring, text.composition)
    return (yield from _exclude(query, settings))


def plan_blend(modification: str, settings: Settings, limit: int) -> Plan:
    """The weighted sum of similarities to caption fusion, Pic2Word's prompt, reference and modification."""
    nothing = _nothing(modification)
    described = Described()
    fused: list[Fused] = []
    weights: list[float] = []
    if settings.caption_weight:
        described = yield from _describe(modification, settings)
        captions = [caption.text for caption in described.captions]
        fused += yield from _fuse_all(captions, modification, settings.template, limit)
        weights += [settings.caption_weight / len(captions)] * len(captions)
    if settings.pic2word_weight:
        fused.append((yield from _fuse("", modification, settings.pic2word_template, limit)))
        weights.append(settings.pic2word_weight)
    if settings.text_weight:
        fused.append((yield from _fuse("", modification, "modification", limit)))
        weights.append(settings.text_weight)
    vectors = [part.embedding for part in fused]
    if settings.image_weight:
        vectors.append((yield from _image()))
        weights.append(settings.image_weight)
    compositions = [part.composition for part in fused] or [nothing]
    made = _query(blend(vectors, weights)[None], Linear(), *compositions)
    return (yield from _exclude(_described(made, described), settings))


def slerp(start: Vector, end: Vector, share: float) -> Vector:
    """Spherical interpolation of unit vectors f32 [D]: `(sin((1-a) w) start + sin(a w) end) / sin(w)`.

    Shoemake, "Animating rotation with quaternion curves" (1985). Nearly parallel vectors are interpolated
    in a straight line; the result has unit length in any case.
    """
    cosine = float(np.dot(start.astype(np.float64), end.astype(np.float64)))
    if abs(cosine) > NEARLY_PARALLEL:
        return blend([start, end], [1 - share, share])
    angle = np.arccos(cosine)
    return blend([start, end], [np.sin((1 - share) * angle), np.sin(share * angle)])


# Their steps


def _describe(modification: str, settings: Settings) -> Steps[Described]:
    choice = choose_by_text(modification, settings.background)
    needs = [CaptionNeed(choice.background, view, settings.seed) for view in range(settings.captions)]
    first = yield from _captions(needs[:1])
    if settings.background == "auto" and choice.background == "remove":
        choice = choose_by_mask(first[0].coverage) or choice
        if choice.background == "keep":
            needs = [replace(need, background="keep") for need in needs]
            first = yield from _captions(needs[:1])
    others = (yield from _captions(needs[1:])) if needs[1:] else ()
    return Described((*first, *others), choice.background, choice.reason)


def _captions(needs: Sequence[CaptionNeed]) -> Steps[tuple[Caption, ...]]:
    answers = yield needs
    captions = tuple(answer for answer in answers if isinstance(answer, Caption))
    assert len(captions) == len(needs)
    return captions


def _image() -> Steps[Vector]:
    (answer,) = yield [ImageNeed()]
    assert isinstance(answer, np.ndarray)
    return answer


def _embed(texts: Sequence[str], pseudo_token: bool = False) -> Steps[list[EmbeddedText]]:
    if pseudo_token:
        yield [PseudoTokenNeed()]
    answers = yield [TextNeed(text, pseudo_token) for text in texts]
    embedded = [answer for answer in answers if isinstance(answer, EmbeddedText)]
    assert len(embedded) == len(texts)
    return embedded


def _fuse(caption: str, modification: str, template: str, limit: int) -> Steps[Fused]:
    """Fuse and embed. Embedding a text counts its tokens, too, and the first tried is mostly the last."""
    pseudo_token = needs_pseudo_token(template)
    steps = composing(caption, modification, template=template, limit=limit)
    embedded: dict[str, Vector] = {}

    def embed(texts: Sequence[str]) -> Steps[list[int]]:
        answers = yield from _embed(texts, pseudo_token)
        embedded.update((text, answer.embedding) for text, answer in zip(texts, answers, strict=True))
        return [answer.tokens for answer in answers]

    try:
        texts = next(steps)
        while True:
            texts = steps.send((yield from embed(texts)))
    except StopIteration as done:
        composition: Composition = done.value
    if composition.text not in embedded:
        yield from embed([composition.text])
    return Fused(composition, embedded[composition.text])


def _fuse_all(captions: Sequence[str], modification: str, template: str, limit: int) -> Steps[list[Fused]]:
    parts: list[Fused] = []
    for caption in captions:
        part = yield from _fuse(caption, modification, template, limit)
        parts.append(part)
    return parts


def _embed_cut(text: str, limit: int) -> Steps[tuple[str, Vector] | None]:
    """As many words of `text` as the encoder reads, and their embedding; None where not even one fits."""
    words = text.split()
    (whole,) = yield from _embed([text])
    if whole.tokens <= limit:
        return text, whole.embedding
    best: tuple[str, Vector] | None = None
    fits, too_long = 0, len(words)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        part = " ".join(words[:middle])
        (answer,) = yield from _embed([part])
        if answer.tokens <= limit:
            fits, best = middle, (part, answer.embedding)
        else:
            too_long = middle
    return best


def _finish(
    parts: Sequence[Fused],
    modification: str,
    settings: Settings,
    described: Described,
    limit: int,
    notes: tuple[str, ...] = (),
) -> Plan:
    """Average the parts, then apply the modifiers that are switched on."""
    edited = blend([part.embedding for part in parts], [1.0] * len(parts))
    if settings.modification_share:
        # STiTch's transition: (1 - a) t + a f(modification); PDV adds a direction in the same place.
        own = yield from _fuse("", modification, "modification", limit)
        share = settings.modification_share
        edited = blend([edited, own.embedding], [1 - share, share])
    made = _query(edited[None], Linear(), *(part.composition for part in parts), notes=notes)
    if settings.increment:
        originals = [part.composition.caption for part in parts if part.composition.caption.strip()]
        if originals:
            # A long one's end is lost in the encoder, which harms nothing here.
            answers = yield from _embed(originals)
            original = blend([answer.embedding for answer in answers], [1.0] * len(answers))
            made = replace(
                made,
                vectors=np.stack([edited, original]),
                scoring=Increment(settings.increment_negative, settings.increment_positive),
            )
        else:
            made = replace(made, notes=(*notes, "no increment: there is no caption to compare with"))
    return (yield from _exclude(_described(made, described), settings))


def _exclude(query: ComposedQuery, settings: Settings) -> Plan:
    if settings.exclude_near_duplicates is None:
        return query
    image = yield from _image()
    return replace(query, exclusion=Exclusion(image, min(settings.exclude_near_duplicates, COPY)))


def _described(query: ComposedQuery, described: Described) -> ComposedQuery:
    return replace(
        query,
        captions=described.captions,
        background=described.background,
        background_reason=described.reason,
    )


def _nothing(modification: str) -> Composition:
    """What a query is made of that embeds no text."""
    return Composition("", "", check_text(modification, "modification").strip(), "", caption_cut=False)


def _query(
    vectors: Vector, scoring: Scoring, *compositions: Composition, notes: tuple[str, ...] = ()
) -> ComposedQuery:
    texts = tuple(composition.text for composition in compositions if composition.text)
    return ComposedQuery(vectors, scoring, compositions[0], texts=texts, notes=notes)
