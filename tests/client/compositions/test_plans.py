"""What each composition makes of a query: against formulas, with both clients and a stand-in server."""

import itertools
from collections.abc import Mapping

import numpy as np
import pytest

from tercet.composition import TEMPLATES
from tercet.compositions import COMPOSITIONS, Settings, make_settings, recipe_of
from tercet.compositions.driving import drive
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
from tercet.compositions.plans import slerp
from tercet.compositions.scoring import Increment, Linear, Product
from tercet.errors import InputError, LineupError, TextError
from tercet.messages import Caption
from tercet.testing import DIMENSION, answer
from tercet.transport import Tensors
from tests.client.compositions.formulas import CASES, MODIFICATION, Case, Parts, make_picture, rewrite
from tests.client.stand_ins import Connect

PICTURE = make_picture()
GALLERY = np.random.default_rng(0).standard_normal((500, DIMENSION))
GALLERY /= np.linalg.norm(GALLERY, axis=1, keepdims=True)


def test_every_composition_has_a_formula() -> None:
    assert {case.composition for case in CASES} == set(COMPOSITIONS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_query_scores_by_its_formula(connect: Connect, case: Case) -> None:
    client, _ = connect(rewriter=rewrite)
    query = client.compose_queries(
        PICTURE, MODIFICATION, composition=case.composition, settings=case.settings
    )
    assert query.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(query.vectors, axis=1), 1, atol=1e-6)
    found = query.scoring.combine(query.vectors.astype(np.float64) @ GALLERY.T)
    expected = case.formula(Parts(client, PICTURE), GALLERY)
    if isinstance(query.scoring, Linear):  # whose scores are similarities to the sum's direction
        expected = expected * (np.linalg.norm(found) / np.linalg.norm(expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_query_is_the_same_to_the_bit(connect: Connect, case: Case) -> None:
    client, _ = connect(rewriter=rewrite)
    first, second = client.compose_queries(
        [PICTURE] * 2, [MODIFICATION] * 2, composition=case.composition, settings=case.settings
    )
    np.testing.assert_array_equal(first.vectors, second.vectors)
    assert first.composition == second.composition
    assert [caption.text for caption in first.captions] == [caption.text for caption in second.captions]


def test_a_query_of_one_vector_is_that_vector_to_the_bit(connect: Connect) -> None:
    client, _ = connect()
    text, image = client.embed_texts(MODIFICATION), client.embed_images(PICTURE)
    for composition, settings, vector in (
        ("text", {}, text),
        ("image", {}, image),
        ("sum", {"text_weight": 1}, text),
        ("sum", {"text_weight": 0}, image),
        ("slerp", {"slerp_alpha": 1}, text),
        ("slerp", {"slerp_alpha": 0}, image),
        ("caption", {"modification_share": 1}, text),
        ("blend", {"caption_weight": 0, "pic2word_weight": 0, "image_weight": 0}, text),
        ("blend", {"caption_weight": 0, "pic2word_weight": 0, "text_weight": 0}, image),
    ):
        query = client.compose_queries(PICTURE, MODIFICATION, composition=composition, settings=settings)
        np.testing.assert_array_equal(query.embedding, vector, err_msg=f"{composition} {settings}")


def test_only_what_is_needed_is_asked(connect: Connect) -> None:
    for composition, settings, models in (
        ("text", {}, ["embed_text"]),
        ("image", {}, ["embed_image"]),
        ("sum", {}, ["embed_image", "embed_text"]),
        ("pic2word", {}, ["embed_text_with_token", "image_token"]),
        ("caption", {}, ["caption_foreground", "embed_text"]),
        ("caption", {"background": "keep"}, ["caption_image", "embed_text"]),
        ("caption", {"exclude_near_duplicates": 0.9}, ["caption_foreground", "embed_image", "embed_text"]),
        (
            "blend",
            {"exclude_near_duplicates": 0.9},
            [
                "caption_foreground",
                "embed_image",
                "image_token",
                "embed_text_with_token",
                *["embed_text"] * 2,
            ],
        ),
        (
            "caption",
            {"captions": 3},
            ["caption_foreground"] * 3 + ["embed_text"] * 3,
        ),
    ):
        client, traffic = connect()
        client.compose_queries(PICTURE, MODIFICATION, composition=composition, settings=settings)
        assert sorted(traffic.models) == sorted(["describe_lineup", *models]), composition


def test_a_query_says_how_it_came_about(connect: Connect) -> None:
    client, _ = connect()
    query = client.compose_queries(PICTURE, "in blue", settings={"captions": 2, "increment": True})
    assert [caption.text for caption in query.captions] == [
        Parts(client, PICTURE).caption(view=view) for view in range(2)
    ]
    assert query.caption is query.captions[0]
    assert query.caption.foreground is not None
    assert query.composition.text == f"{query.caption.text}, in blue"
    assert query.texts == tuple(f"{caption.text}, in blue" for caption in query.captions)
    assert (query.background, query.exclusion, query.notes) == ("remove", None, ())
    assert query.scoring == Increment(1.0, 0.22)
    query = client.compose_queries(PICTURE, " in blue ", composition="product")
    assert (query.caption, query.background, query.background_reason) == (None, None, "")
    assert (query.composition.text, query.scoring) == ("in blue", Product(0.0, 0.0))
    query = client.compose_queries(PICTURE, " in blue ", composition="image")
    assert (query.composition.text, query.composition.modification, query.texts) == ("", "in blue", ())


def test_near_duplicates_of_the_reference_are_left_out(connect: Connect) -> None:
    client, _ = connect()
    for composition in COMPOSITIONS:
        settings = {"exclude_near_duplicates": 0.9}
        if composition == "rewrite":
            continue
        query = client.compose_queries(PICTURE, "in blue", composition=composition, settings=settings)
        np.testing.assert_array_equal(query.exclusion.reference, client.embed_images(PICTURE))
        assert query.exclusion.similarity == 0.9
        assert client.compose_queries(PICTURE, "in blue", composition=composition).exclusion is None
    query = client.compose_queries(
        PICTURE, "in blue", composition="image", settings={"exclude_near_duplicates": 1}
    )
    itself = np.sum(query.exclusion.reference.astype(np.float64) ** 2)
    assert query.exclusion.similarity <= itself, "a copy is a near-duplicate"


# The background


def masked(coverage: float):  # type: ignore[no-untyped-def]
    """A stand-in server whose masks leave that share of a picture."""

    def respond(model: str, inputs: Mapping[str, np.ndarray]) -> Tensors:
        given = dict(answer(model, inputs))
        if "caption" in given:
            given["caption"] = np.array([[f"made by {model}"]], dtype=np.object_)
            given["mask"] = np.full((1, 8, 8), coverage, np.float32)
        return given

    return respond


@pytest.mark.parametrize(
    ("coverage", "modification", "background", "done", "reason"),
    [
        (0.5, "in blue", None, "remove", "does not speak of"),
        (0.5, "in the same place", None, "keep", '"same place"'),
        (0.0, "in blue", None, "keep", "the mask is empty: it leaves 0.0% of the picture"),
        (1.0, "in blue", None, "keep", "the mask is full: it leaves 100.0%"),
        (0.0, "in blue", "remove", "remove", "as asked"),
        (0.5, "in the same place", "remove", "remove", "as asked"),
        (0.5, "in blue", "keep", "keep", "as asked"),
    ],
)
@pytest.mark.parametrize("captions", [1, 3])
def test_the_background_is_removed_unless_it_is_spoken_of_or_the_mask_is_useless(
    connect: Connect,
    coverage: float,
    modification: str,
    background: str | None,
    done: str,
    reason: str,
    captions: int,
) -> None:
    client, traffic = connect(masked(coverage))
    query = client.compose_queries(
        PICTURE, modification, background=background, settings={"captions": captions}
    )
    assert query.background == done
    assert reason in query.background_reason
    model = "caption_foreground" if done == "remove" else "caption_image"
    assert {caption.text for caption in query.captions} == {f"made by {model}"}
    assert query.composition.text == f"made by {model}, {modification}"
    assert traffic.models.count(model) == captions
    assert (query.caption.mask is None) == (done == "keep")


# Long texts and the pseudo-word


def test_long_captions_are_cut_in_every_part(connect: Connect) -> None:
    def wordy(model: str, inputs: Mapping[str, np.ndarray]) -> Tensors:
        given = dict(answer(model, inputs))
        if "caption" in given:
            given["caption"] = np.array([["word " * 200]], dtype=np.object_)
        return given

    client, _ = connect(wordy, rewriter=lambda need: Rewritten("new " * 200))
    for composition, text in (
        ("caption", " ".join(["word"] * 73) + ", in blue"),
        ("caption+pic2word", "a photo of * , " + " ".join(["word"] * 68) + ", in blue"),
        ("blend", " ".join(["word"] * 73) + ", in blue"),
    ):
        query = client.compose_queries(PICTURE, "in blue", composition=composition)
        assert (query.composition.text, query.caption_cut) == (text, True)
    query = client.compose_queries(
        PICTURE, "in blue", composition="rewrite", settings={"llm_model": "some-model"}
    )
    assert query.composition.text == " ".join(["new"] * 75)
    assert query.notes == ("the end of the rewritten caption was cut to what the text encoder reads",)
    np.testing.assert_array_equal(query.embedding, client.embed_texts(query.composition.text))


@pytest.mark.parametrize("composition", sorted(COMPOSITIONS))
@pytest.mark.parametrize("modification", ["", " \n", "\ud800"])
def test_a_modification_that_cannot_be_used_is_refused(
    connect: Connect, composition: str, modification: str
) -> None:
    client, _ = connect(rewriter=rewrite)
    settings = {"llm_model": "some-model"} if composition == "rewrite" else {}
    with pytest.raises(TextError, match=r"modification (is empty|has a lone surrogate)"):
        client.compose_queries(PICTURE, modification, composition=composition, settings=settings)


@pytest.mark.parametrize("star", ["*", "a five * hotel", "\uff0a", "&ast; &amp;#42;"])
def test_a_star_of_the_users_own_before_the_templates_is_refused(connect: Connect, star: str) -> None:
    client, traffic = connect()
    with pytest.raises(TextError, match=r"has a \* of its own.*write it in words, such as star, or use"):
        client.compose_queries(PICTURE, star, composition="pic2word", template="a {modification} of *")
    assert "embed_text_with_token" not in traffic.models
    # Behind the template's own it is a character like others.
    query = client.compose_queries(PICTURE, star, composition="pic2word")
    assert query.composition.text == f"a photo of * , {star}"
    token = client.pseudo_tokens(PICTURE)
    np.testing.assert_array_equal(
        query.embedding, client.embed_texts(query.composition.text, pseudo_tokens=token)
    )
    assert client.compose_queries(PICTURE, star).composition.text.endswith(star)


# Arguments


def test_settings_may_be_given_by_name_or_whole(connect: Connect) -> None:
    client, _ = connect()
    whole = Settings(template="modification", slerp_alpha=0.3)
    by_name = client.compose_queries(PICTURE, "in blue", composition="slerp", settings={"slerp_alpha": 0.3})
    given = client.compose_queries(PICTURE, "in blue", composition="slerp", settings=whole)
    np.testing.assert_array_equal(by_name.vectors, given.vectors)
    with pytest.raises(InputError, match="template is in the settings already"):
        client.compose_queries(PICTURE, "x", composition="slerp", settings=whole, template="modification")
    with pytest.raises(InputError, match="background and template is in the settings already"):
        client.compose_queries(PICTURE, "x", settings=Settings(), background="keep", template="photo")
    with pytest.raises(InputError, match="background is in the settings already"):
        client.compose_queries(PICTURE, "x", settings={"background": "keep"}, background="remove")
    with pytest.raises(InputError, match="no composition 'mean'"):
        client.compose_queries(PICTURE, "x", composition="mean")
    with pytest.raises(InputError, match="does not read 'background'"):
        client.compose_queries(PICTURE, "x", composition="sum", background="keep")


def test_a_server_that_lacks_a_network_is_named(connect: Connect) -> None:
    def without_words(model: str, inputs: Mapping[str, np.ndarray]) -> Tensors:
        given = dict(answer(model, inputs))
        if model == "describe_lineup":
            text = given["lineup"].item().replace(b'"image_to_token"', b'"another"')
            given["lineup"] = np.array([[text]], dtype=np.object_)
        return given

    client, _ = connect(without_words)
    with pytest.raises(LineupError, match="'pic2word' needs image_to_token, which lineup 'fake' lacks"):
        client.compose_queries(PICTURE, "x", composition="pic2word")
    client.compose_queries(PICTURE, "x")


# The language model


def test_a_language_model_that_fails_leaves_the_template(connect: Connect) -> None:
    replies = itertools.cycle([Rewritten("", "HTTP status 500"), Rewritten("a blue thing")])
    client, _ = connect(rewriter=lambda need: next(replies))
    settings = {"llm_model": "some-model", "captions": 2}
    query = client.compose_queries(PICTURE, "in blue", composition="rewrite", settings=settings)
    fused = f"{query.caption.text}, in blue"
    assert query.texts == (fused, "a blue thing")
    assert query.notes == ("caption not rewritten (HTTP status 500); fused by the template instead",)
    expected = client.embed_texts(fused) + client.embed_texts("a blue thing")
    np.testing.assert_allclose(query.embedding, expected / np.linalg.norm(expected), atol=1e-6)


def test_a_rewritten_text_of_one_endless_word_leaves_the_template(connect: Connect) -> None:
    def counted(model: str, inputs: Mapping[str, np.ndarray]) -> Tensors:
        given = dict(answer(model, inputs))
        if "token_count" in given and inputs["text"].item() == b"x" * 500:
            given["token_count"] = np.array([[200]], np.int32)
        return given

    client, _ = connect(counted, rewriter=lambda need: Rewritten("x" * 500))
    query = client.compose_queries(
        PICTURE, "in blue", composition="rewrite", settings={"llm_model": "some-model"}
    )
    assert query.composition.text == f"{query.caption.text}, in blue"
    assert "its text cannot be cut" in query.notes[0]


def test_the_language_model_is_asked_with_caption_modification_and_prompt(connect: Connect) -> None:
    asked: list[RewriteNeed] = []

    def remember(need: RewriteNeed) -> Rewritten:
        asked.append(need)
        return Rewritten("a blue thing")

    client, _ = connect(rewriter=remember)
    settings = {"llm_model": "some-model", "llm_seconds": 2.5}
    query = client.compose_queries(PICTURE, " in blue ", composition="rewrite", settings=settings)
    (need,) = asked
    assert (need.caption, need.modification, need.model) == (query.caption.text, "in blue", "some-model")
    assert need.seconds == 2.5
    assert "{caption}" in need.prompt
    assert (query.composition.caption, query.composition.template) == (query.caption.text, "rewrite")


# Plans and their drivers


def answers(need: Need) -> Answer:
    """Answers to needs without a client."""
    noise = np.random.default_rng(list(need.key.encode()))
    vector = noise.standard_normal(DIMENSION).astype(np.float32)
    vector /= np.linalg.norm(vector)
    if isinstance(need, CaptionNeed):
        return Caption(f"caption {need.view}", 0.0, coverage=0.5)
    if isinstance(need, TextNeed):
        return EmbeddedText(vector, len(need.text.split()) + 2)
    return Rewritten("a blue thing") if isinstance(need, RewriteNeed) else vector


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_need_is_asked_once_and_a_pseudo_token_before_its_texts(case: Case) -> None:
    asked: list[Need] = []

    def remember(need: Need) -> Answer:
        asked.append(need)
        return answers(need)

    settings = make_settings(case.composition, {**case.settings, "exclude_near_duplicates": 0.9})
    drive(recipe_of(case.composition).plan(MODIFICATION, settings, 77), remember)
    assert len(set(asked)) == len(asked)
    assert ImageNeed() in asked
    with_word = [
        place for place, need in enumerate(asked) if isinstance(need, TextNeed) and need.pseudo_token
    ]
    if with_word:
        assert asked.index(PseudoTokenNeed()) < min(with_word)
    else:
        assert PseudoTokenNeed() not in asked


def test_a_failure_closes_the_plan() -> None:
    plan = recipe_of("caption").plan(MODIFICATION, make_settings("caption"), 77)

    def fail(need: Need) -> Answer:
        raise InputError(f"nothing for {need.key}")

    with pytest.raises(InputError, match=r"nothing for caption\|remove\|whole"):
        drive(plan, fail)
    assert plan.gi_frame is None


def test_slerp_of_vectors_that_have_no_arc() -> None:
    one = np.eye(4, dtype=np.float32)[0]
    np.testing.assert_array_equal(slerp(one, one, 0.3), one)
    near = np.array([1, 0.001, 0, 0], np.float32)
    np.testing.assert_allclose(slerp(one, near, 0.5), [1, 0.0005, 0, 0], atol=1e-6)
    with pytest.raises(InputError, match="cancel each other"):
        slerp(one, -one, 0.5)


def test_every_named_template_has_a_composition_that_takes_it() -> None:
    for template in TEMPLATES:
        taken = []
        for name in COMPOSITIONS:
            try:
                make_settings(name, {"template": template})
            except InputError:
                continue
            taken.append(name)
        assert taken, template
