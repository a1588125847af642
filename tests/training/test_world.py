"""The picture world: one picture a scene, captions that say what is there, answers without doubt."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet_training.world import (
    Companion,
    Scene,
    Subject,
    Thing,
    caption,
    make_gallery,
    mask,
    render,
    sample_scene,
)
from tercet_training.world.queries import KINDS, SAME_PLACE, SETTING, Wish
from tercet_training.world.rendering import PAINTERS
from tercet_training.world.shapes import OUTLINES
from tercet_training.world.styles import FILTERS
from tercet_training.world.vocabulary import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, SIZES, STYLES

THINGS = st.builds(
    Thing,
    st.sampled_from(SHAPES),
    st.sampled_from(list(COLOURS)),
    st.sampled_from(list(PATTERNS)),
    st.sampled_from(list(SIZES)),
)
COMPANIONS = st.none() | st.builds(Companion, st.sampled_from(SHAPES), st.sampled_from(list(COLOURS)))
SCENES = st.builds(
    Scene,
    st.builds(Subject, THINGS, COMPANIONS),
    st.sampled_from(list(BACKGROUNDS)),
    st.sampled_from(list(STYLES)),
    st.integers(0, 2**62),
)
SEEDS = st.integers(0, 2**32)


def test_every_word_can_be_drawn() -> None:
    assert set(PAINTERS) == set(BACKGROUNDS)
    assert set(FILTERS) == set(STYLES)
    assert set(OUTLINES) == set(SHAPES)


@settings(max_examples=10, deadline=None)
@given(SCENES)
def test_a_scene_has_one_picture(scene: Scene) -> None:
    picture = render(scene)
    assert picture.size == (128, 128)
    assert picture.mode == "RGB"
    assert picture.tobytes() == render(scene).tobytes()
    assert picture.tobytes() != render(replace(scene, seed=scene.seed + 1)).tobytes()


@settings(max_examples=10, deadline=None)
@given(SCENES, st.sampled_from(list(COLOURS)))
def test_the_mask_is_where_the_thing_is(scene: Scene, colour: str) -> None:
    """Another colour of the thing changes the photo where the mask is, and nothing elsewhere."""
    scene = replace(scene, style="photo")
    thing = scene.subject.thing
    other = replace(scene, subject=replace(scene.subject, thing=replace(thing, colour=colour)))
    before, after = (np.asarray(render(each), np.int16) for each in (scene, other))
    changed = np.abs(before - after).max(axis=2) > 8
    inside = np.asarray(mask(scene)) > 0
    assert not (changed & ~inside).any()
    assert colour == thing.colour or changed.any()


@settings(max_examples=10, deadline=None)
@given(SCENES)
def test_the_foreground_does_not_depend_on_what_is_behind(scene: Scene) -> None:
    for other in (replace(scene, background="snow"), replace(scene, style="comic")):
        assert mask(other).tobytes() == mask(scene).tobytes()
    covered = np.asarray(mask(scene)).mean() / 255
    assert 0.01 < covered < 0.65


@settings(max_examples=200, deadline=None)
@given(SCENES, SEEDS)
def test_every_paraphrase_names_the_subject_and_only_what_is_there(scene: Scene, seed: int) -> None:
    said = caption(scene, rng=np.random.default_rng(seed))
    words = set(re.findall(r"[a-z]+", said))
    subject = scene.subject
    shapes, colours = {subject.thing.shape}, {subject.thing.colour}
    if subject.companion is not None:
        shapes, colours = shapes | {subject.companion.shape}, colours | {subject.companion.colour}
    assert words & set(SHAPES) == shapes
    assert words & set(COLOURS) == colours
    for pattern, spoken in PATTERNS.items():
        assert spoken is None or bool(words & set(spoken)) == (pattern == subject.thing.pattern)
    for size, (_, spoken) in SIZES.items():
        assert bool(words & set(spoken)) == (size == subject.thing.size and bool(spoken))
    assert [name for name, phrases in BACKGROUNDS.items() if any(phrase in said for phrase in phrases)] == [
        scene.background
    ]
    for style, noun in STYLES.items():
        assert style == "photo" or (noun in said) == (style == scene.style)


@settings(max_examples=100, deadline=None)
@given(SCENES)
def test_usual_captions_tell_different_things_apart(scene: Scene) -> None:
    thing = scene.subject.thing
    captions = {
        caption(replace(scene, subject=replace(scene.subject, thing=other)))
        for other in (
            *(replace(thing, shape=shape) for shape in SHAPES),
            *(replace(thing, colour=colour) for colour in COLOURS),
            *(replace(thing, pattern=pattern) for pattern in PATTERNS),
            *(replace(thing, size=size) for size in SIZES),
        )
    }
    # The four lists share the thing itself.
    assert len(captions) == len(SHAPES) + len(COLOURS) + len(PATTERNS) + len(SIZES) - 3


@settings(max_examples=100, deadline=None)
@given(SCENES)
def test_a_cut_out_is_captioned_without_its_background(scene: Scene) -> None:
    said = caption(scene, background=False, style=False)
    assert said == caption(
        replace(scene, background="beach", style="comic", seed=0), background=False, style=False
    )
    assert not any(phrase in said for phrases in BACKGROUNDS.values() for phrase in phrases)


def test_sampling_is_decided_by_the_generator() -> None:
    first, second = (sample_scene(np.random.default_rng(7)) for _ in range(2))
    assert first == second


@settings(max_examples=8, deadline=None)
@given(SEEDS, st.integers(1, 40))
def test_galleries_have_as_many_pictures_and_queries_as_asked(seed: int, queries: int) -> None:
    pictures = 3 * queries + 5
    gallery = make_gallery(seed, pictures, queries)
    assert gallery == make_gallery(seed, pictures, queries)
    assert len(gallery.scenes) == pictures
    assert [query.kind for query in gallery.queries] == [KINDS[n % len(KINDS)] for n in range(queries)]


def changes(reference: Scene, target: Scene, modification: str) -> set[str]:
    """Aspects in which target and reference differ and of which the modification speaks."""
    differ = set()
    if any(phrase in modification for phrase in BACKGROUNDS[target.background]):
        differ.add("background")
    if STYLES[target.style] in modification:
        differ.add("style")
    if target.subject.companion != reference.subject.companion:
        differ.add("addition")
    if target.subject.thing != reference.subject.thing:
        differ.add("attribute")
    return differ


@settings(max_examples=5, deadline=None)
@given(SEEDS)
def test_answers_follow_from_reference_and_modification(seed: int) -> None:
    gallery = make_gallery(seed, 200, 60)
    for query in gallery.queries:
        reference = gallery.scenes[query.reference]
        assert query.targets
        assert query.reference not in query.targets
        for target in (gallery.scenes[index] for index in query.targets):
            assert changes(reference, target, query.modification) == {query.kind}
            if query.kind in ("background", "style"):
                assert target.subject == reference.subject
                assert getattr(target, query.kind) != getattr(reference, query.kind)
            if query.kind == "addition":
                companion = target.subject.companion
                assert companion is not None
                assert {companion.shape, companion.colour} < set(query.modification.split())
            if query.kind == "attribute":
                thing, before = target.subject.thing, reference.subject.thing
                assert sum(getattr(thing, name) != getattr(before, name) for name in vars(before)) == 1


def test_all_that_fits_is_a_target() -> None:
    gallery = make_gallery(5, 1200, 400)
    for query in gallery.queries:
        target = gallery.scenes[min(query.targets)]
        wish = Wish(
            target.subject,
            background=target.background if query.kind == "background" else None,
            style=target.style if query.kind == "style" else None,
        )
        assert query.targets == {index for index, scene in enumerate(gallery.scenes) if wish.fits(scene)}


def test_the_gallery_is_full_of_hard_negatives() -> None:
    gallery = make_gallery(6, 1200, 400)
    for query in gallery.queries:
        reference = gallery.scenes[query.reference]
        others = [scene for index, scene in enumerate(gallery.scenes) if index != query.reference]
        wrong = [scene for index, scene in enumerate(gallery.scenes) if index not in query.targets]
        assert any(scene.subject.thing == reference.subject.thing for scene in others)
        if query.kind == "background":
            target = gallery.scenes[min(query.targets)]
            assert any(scene.background == target.background and near(scene, target) for scene in wrong)


def near(scene: Scene, target: Scene) -> bool:
    """Whether the things differ in exactly one aspect."""
    thing, other = scene.subject.thing, target.subject.thing
    return sum(getattr(thing, name) != getattr(other, name) for name in vars(thing)) == 1


def test_too_small_a_gallery_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 225"):
        make_gallery(0, 224, 100)


def test_the_setting_kind_speaks_of_the_reference_s_own_background() -> None:
    kinds = (*KINDS, SETTING)
    gallery = make_gallery(7, 400, 100, kinds)
    asked = [query for query in gallery.queries if query.kind == SETTING]
    assert len(asked) == 20
    for query in asked:
        reference = gallery.scenes[query.reference]
        assert query.modification.endswith(SAME_PLACE)
        for target in (gallery.scenes[index] for index in query.targets):
            assert (target.subject, target.background) == (reference.subject, reference.background)
            assert target.style != reference.style
            assert f"as {STYLES[target.style]}, " in query.modification
        style = gallery.scenes[min(query.targets)].style
        elsewhere = [s for s in gallery.scenes if s.subject == reference.subject and s.style == style]
        assert any(scene.background != reference.background for scene in elsewhere)
