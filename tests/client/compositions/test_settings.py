"""Settings: ranges, texts as the command line gives them, and the defaults of compositions and data sets."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.composition import needs_pseudo_token, read_template
from tercet.compositions import (
    COMPOSITIONS,
    DATASET_DEFAULTS,
    Settings,
    check_needs,
    make_settings,
    read_settings,
    recipe_of,
)
from tercet.compositions.settings import FIELDS, parse_value, range_of
from tercet.errors import InputError, LineupError, TextError
from tercet.lineup import Lineup, parse_lineup
from tercet.testing import MANIFEST

NUMBERS = [name for name, knob in FIELDS.items() if knob.metadata["low"] is not None]
WHOLE = [name for name in NUMBERS if isinstance(FIELDS[name].default, int)]


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A language model's name, without which `rewrite` has no settings."""
    monkeypatch.setenv("TERCET_LLM_MODEL", "some-model")


def readers(name: str) -> list[str]:
    return [recipe.name for recipe in COMPOSITIONS.values() if name in recipe.reads]


def test_every_setting_is_read_and_explained() -> None:
    for name, knob in FIELDS.items():
        assert readers(name), name
        assert knob.metadata["help"], name
        assert range_of(name), name
    for recipe in COMPOSITIONS.values():
        assert set(recipe.reads) <= set(FIELDS)
        assert set(recipe.defaults) <= set(recipe.reads)
        assert len(set(recipe.reads)) == len(recipe.reads)


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_defaults_are_valid_and_what_a_report_says_is_what_is_read(name: str) -> None:
    settings = make_settings(name)
    said = read_settings(recipe_of(name), settings)
    assert list(said) == list(COMPOSITIONS[name].reads)
    assert make_settings(name, said) == settings


@pytest.mark.parametrize(
    ("dataset", "name"), [(dataset, name) for dataset, given in DATASET_DEFAULTS.items() for name in given]
)
def test_data_sets_defaults_are_valid(dataset: str, name: str) -> None:
    overrides = DATASET_DEFAULTS[dataset][name]
    assert set(overrides) <= set(COMPOSITIONS[name].reads)
    settings = make_settings(name, dataset=dataset)
    assert {key: getattr(settings, key) for key in overrides} == dict(overrides)
    assert not settings.increment, "a data set's factors do not switch the increment on"
    # One's own go before them.
    for key, value in overrides.items():
        if isinstance(value, float):
            assert getattr(make_settings(name, {key: 0.125}, dataset), key) == 0.125


@pytest.mark.parametrize("dataset", DATASET_DEFAULTS)
def test_data_sets_templates_go_together(dataset: str) -> None:
    """What has a caption or a pseudo-word without a template of the data set, has one with it."""
    for name in COMPOSITIONS:
        usual, given = make_settings(name), make_settings(name, dataset=dataset)
        for template in ("template", "pic2word_template"):
            before, after = getattr(usual, template), getattr(given, template)
            assert needs_pseudo_token(before) == needs_pseudo_token(after)
            assert ("{caption}" in read_template(before)) == ("{caption}" in read_template(after))


def test_the_worlds_blend_leaves_the_modification_out() -> None:
    assert make_settings("blend").text_weight == 0.2
    assert make_settings("blend", dataset="world").text_weight == 0.0
    assert make_settings("blend", {"text_weight": 0.2}, "world").text_weight == 0.2
    assert make_settings("slerp", dataset="cirr").slerp_alpha == 0.9


@given(st.sampled_from(NUMBERS), st.floats() | st.integers(-(10**12), 10**12))
def test_numbers_are_held_to_their_range(name: str, value: float) -> None:
    low, high = FIELDS[name].metadata["low"], FIELDS[name].metadata["high"]
    fits = math.isfinite(value) and low <= value <= high and (name not in WHOLE or isinstance(value, int))
    if fits:
        assert getattr(Settings(**{name: value}), name) == value  # type: ignore[arg-type]
    else:
        with pytest.raises(InputError, match=f"{name} is .*it may be a .*number from {low} to {high}"):
            Settings(**{name: value})  # type: ignore[arg-type]


@given(st.sampled_from(NUMBERS), st.data())
def test_numbers_read_from_texts_as_they_are_written(name: str, data: st.DataObject) -> None:
    low, high = FIELDS[name].metadata["low"], FIELDS[name].metadata["high"]
    value = data.draw(st.integers(low, high) if name in WHOLE else st.floats(low, high))
    assert parse_value(name, f" {value}\n") == value
    composition = readers(name)[0]
    assert getattr(make_settings(composition, {name: str(value)}), name) == value


@given(st.sampled_from(sorted(FIELDS)), st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_a_text_gives_a_valid_value_or_a_message_that_names_the_setting(name: str, text: str) -> None:
    composition = readers(name)[-1]
    try:
        value = getattr(make_settings(composition, {name: text}), name)
    except InputError as refused:
        named = (
            name if name not in ("pic2word_template", "llm_model") else "template|language model|llm_model"
        )
        assert re.search(named, str(refused)), refused  # noqa: PT017
    else:
        if name in NUMBERS and value is not None:
            assert FIELDS[name].metadata["low"] <= value <= FIELDS[name].metadata["high"]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("increment", "on", True),
        ("increment", "FALSE", False),
        ("exclude_near_duplicates", "none", None),
        ("exclude_near_duplicates", "", None),
        ("exclude_near_duplicates", "0.9", 0.9),
        ("background", " keep ", "keep"),
        ("template", " {modification} ", " {modification} "),
        ("captions", np.int64(3), 3),
        ("slerp_alpha", np.float32(0.5), 0.5),
    ],
)
def test_values_as_they_are_given(name: str, text: str, value: object) -> None:
    parsed = parse_value(name, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("captions", True),
        ("captions", 2.0),
        ("captions", None),
        ("captions", "2.5"),
        ("text_weight", "half"),
        ("increment", 1),
        ("increment", "maybe"),
        ("background", "blur"),
        ("background", None),
        ("template", None),
        ("exclude_near_duplicates", 0.4),
    ],
)
def test_values_that_do_not_fit_are_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{name} is {value!r}; it may be {range_of(name)}"):
        make_settings(readers(name)[0] if name != "text_weight" else "sum", {name: value})  # type: ignore[dict-item]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="no composition 'capton'; there are text, image"):
        make_settings("capton")
    with pytest.raises(
        InputError, match=r"'sum' does not read 'slerp_alpha'; it reads template, text_weight"
    ):
        make_settings("sum", {"slerp_alpha": 0.5})
    with pytest.raises(InputError, match="does not read 'weight', and no composition does"):
        make_settings("sum", {"weight": 0.5})
    with pytest.raises(InputError, match="no setting 'weight'; there are template"):
        parse_value("weight", "1")


@pytest.mark.parametrize(
    "name", [recipe.name for recipe in COMPOSITIONS.values() if "increment" in recipe.reads]
)
def test_a_factor_of_the_increment_switches_it_on(name: str) -> None:
    assert not make_settings(name).increment
    alone = make_settings(name, {"increment": True})
    assert (alone.increment_negative, alone.increment_positive) == (1.0, 0.22)  # SEIZE's, for CIRR
    circo = make_settings(name, {"increment": "on"}, dataset="circo")
    assert (circo.increment_negative, circo.increment_positive) == (2.1, 0.13)
    given = make_settings(name, {"increment_negative": "3"}, dataset="circo")
    assert (given.increment, given.increment_negative, given.increment_positive) == (True, 3.0, 0.13)
    assert not make_settings(name, {"increment": "off", "increment_positive": 1.0}).increment


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("text", {"template": "pic2word"}, r"must not hold \* as a word"),
        ("text", {"template": "photo"}, r"must not hold {caption}"),
        ("pic2word", {"template": "photo"}, r"must not hold {caption}"),
        ("pic2word", {"template": "modification"}, r"must hold \* as a word"),
        ("caption+pic2word", {"template": "photo"}, r"must hold \* as a word"),
        ("caption", {"template": "modification", "increment": True}, r"must hold {caption}"),
        ("rewrite", {"template": "caption-pic2word"}, r"must not hold \*"),
        ("blend", {"pic2word_template": "photo"}, "must not hold {caption}"),
        ("sum", {"template": "photo"}, "must not hold {caption}"),
    ],
)
def test_templates_that_do_not_fit_are_refused(name: str, settings: dict[str, str], message: str) -> None:
    with pytest.raises(TextError, match=message):
        make_settings(name, settings)  # type: ignore[arg-type]


def test_a_blend_of_nothing_is_refused() -> None:
    weights = dict.fromkeys(("caption_weight", "pic2word_weight", "text_weight", "image_weight"), 0.0)
    with pytest.raises(InputError, match="all weights of the blend are 0"):
        make_settings("blend", weights)


def test_the_language_model_is_named_by_request_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_settings("rewrite").llm_model == "some-model"
    assert make_settings("rewrite", {"llm_model": "other"}).llm_model == "other"
    monkeypatch.delenv("TERCET_LLM_MODEL")
    with pytest.raises(InputError, match="set llm_model, or TERCET_LLM_MODEL"):
        make_settings("rewrite")
    with pytest.raises(TextError, match="lone surrogate"):
        make_settings("rewrite", {"llm_model": "a\udc80"})
    with pytest.raises(InputError, match=r"prompt nowhere\.txt cannot be read"):
        make_settings("rewrite", {"llm_model": "other", "prompt": "nowhere.txt"})


def lineup_of(*roles: str) -> Lineup:
    return parse_lineup(json.dumps({**MANIFEST, "roles": {role: MANIFEST["roles"][role] for role in roles}}))


ALL = ("background_remover", "captioner", "clip_image", "clip_text", "image_to_token")


@pytest.mark.parametrize(
    ("name", "settings", "roles"),
    [
        ("text", {}, {"clip_text"}),
        ("text", {"exclude_near_duplicates": 0.9}, {"clip_text", "clip_image"}),
        ("image", {}, {"clip_image"}),
        ("sum", {}, {"clip_text", "clip_image"}),
        ("slerp", {}, {"clip_text", "clip_image"}),
        ("product", {}, {"clip_text", "clip_image"}),
        ("pic2word", {}, {"clip_text", "clip_image", "image_to_token"}),
        ("caption", {}, {"clip_text", "captioner", "background_remover"}),
        ("caption", {"background": "remove"}, {"clip_text", "captioner", "background_remover"}),
        ("caption", {"background": "keep"}, {"clip_text", "captioner"}),
        ("caption+pic2word", {}, set(ALL)),
        ("rewrite", {"background": "keep"}, {"clip_text", "captioner"}),
        ("blend", {}, set(ALL)),
        ("blend", {"caption_weight": 0, "pic2word_weight": 0}, {"clip_text", "clip_image"}),
        (
            "blend",
            {"caption_weight": 0, "pic2word_weight": 0, "text_weight": 0},
            {"clip_image"},
        ),
    ],
)
def test_a_composition_says_what_it_lacks(name: str, settings: dict[str, float], roles: set[str]) -> None:
    recipe, chosen = recipe_of(name), make_settings(name, settings)
    assert recipe.roles(chosen) == roles
    check_needs(recipe, chosen, lineup_of(*roles))
    for missing in roles:
        with pytest.raises(
            LineupError, match=f"'{name.replace('+', '.')}' needs {missing}, which lineup 'fake'"
        ):
            check_needs(recipe, chosen, lineup_of(*(roles - {missing})))


def test_every_composition_says_what_it_needs() -> None:
    for recipe in COMPOSITIONS.values():
        roles = recipe.roles(make_settings(recipe.name))
        assert roles
        assert roles <= set(ALL)
