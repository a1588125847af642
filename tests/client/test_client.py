"""What both clients ask and answer: every test runs with `Client` and with `AsyncClient`."""

import inspect
from collections.abc import Mapping

import numpy as np
import pytest

from tercet.async_client import AsyncClient
from tercet.client import Client
from tercet.errors import ModelMissing, TextError
from tercet.testing import FakeTransport, answer
from tercet.transport import Tensors
from tests.client.stand_ins import PICTURES, Connect


def test_the_clients_mirror_each_other() -> None:
    def public(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: [
                str(parameter).partition(":")[0]
                for parameter in inspect.signature(method).parameters.values()
            ]
            for name, method in methods
            if not name.startswith("_") or name == "__init__"
        }

    assert public(Client) == public(AsyncClient)


def test_one_gives_one_and_many_give_many(connect: Connect) -> None:
    client, _ = connect()
    assert client.embed_images(PICTURES[0]).shape == (16,)
    assert client.embed_images(PICTURES[:3]).shape == (3, 16)
    assert client.embed_images(iter(PICTURES[:1])).shape == (1, 16)
    assert client.embed_images([]).shape == (0, 16)
    assert client.embed_images(np.zeros((4, 4, 3), np.uint8)).shape == (16,)
    assert client.embed_images(np.zeros((2, 4, 4, 3), np.uint8)).shape == (2, 16)
    assert client.embed_texts("a dog").shape == (16,)
    assert client.embed_texts(["a dog", "a cat"]).shape == (2, 16)
    assert client.caption(PICTURES[0]).text.startswith("a picture of ")
    assert [caption.foreground.shape for caption in client.caption(PICTURES[:2])] == [(8, 8, 3)] * 2
    assert client.caption([]) == []
    assert client.token_counts(["a dog", "a dog runs"]).tolist() == [4, 5]
    assert client.token_counts("a dog").tolist() == [4]
    assert client.pseudo_tokens(PICTURES[0]).shape == (16,)
    assert client.pseudo_tokens(PICTURES[:2]).shape == (2, 16)
    assert client.lineup().name == "fake"
    assert client.ready()


@pytest.mark.parametrize("options", [{"timeout": 0}, {"retries": -1}, {"in_flight": 0}])
def test_settings_that_cannot_work_are_refused(connect: Connect, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="in_flight at least 1"):
        connect(**options)


def test_the_background_chooses_the_model(connect: Connect) -> None:
    client, traffic = connect()
    kept = client.caption(b"x", background="keep")
    assert kept.foreground is None
    assert kept.mask is None
    removed = client.caption(b"x")
    assert removed.mask.shape == (8, 8)
    assert client.caption(b"x", foreground=False).foreground is None
    assert traffic.requests == [
        ("caption_image", ("caption", "score")),
        ("caption_foreground", ("caption", "score", "foreground", "mask")),
        ("caption_foreground", ("caption", "score")),
    ]
    with pytest.raises(ValueError, match="not 'blur'"):
        client.caption(b"x", background="blur")


def test_bad_texts_are_named(connect: Connect) -> None:
    client, _ = connect()
    for texts, complaint in (
        (["a dog", " "], "text 1 is empty"),
        (["a dog", 3], "text 1 is int"),
        (["a\ud800"], "text 0 has a lone surrogate"),
        (["a dog", "word " * 10_000], "text 1 has 10002 tokens.* reads 77"),
    ):
        with pytest.raises(TextError, match=complaint):
            client.embed_texts(texts)
    with pytest.raises(TextError, match="text 0 is empty"):
        client.embed_texts("")
    good, bad = client.embed_texts_iter(["a dog", ""])
    assert good.shape == (16,)
    assert isinstance(bad, TextError)


def test_pseudo_tokens_go_with_their_texts(connect: Connect) -> None:
    client, traffic = connect()
    tokens = client.pseudo_tokens(PICTURES[:2])
    texts = ["a photo of * , blue", "a photo of * , red"]
    rows = client.embed_texts(texts, pseudo_tokens=tokens)
    assert np.array_equal(rows[1], client.embed_texts(texts[1], pseudo_tokens=tokens[1]))
    assert not np.array_equal(rows[1], client.embed_texts(texts[1], pseudo_tokens=tokens[0]))
    assert traffic.models.count("embed_text_with_token") == 4
    with pytest.raises(ValueError, match="shorter"):
        client.embed_texts(texts, pseudo_tokens=tokens[:1])


def test_a_query_is_captioned_fused_and_embedded(connect: Connect) -> None:
    client, traffic = connect()
    query = client.compose_queries(PICTURES[0], "in blue")
    assert query.composition.text == f"{query.caption.text}, in blue"
    assert traffic.models.count("embed_text") == 1
    assert np.array_equal(query.embedding, client.embed_texts(query.composition.text))
    many = client.compose_queries(PICTURES[:3], ["in blue", "in red", "at night"], background="keep")
    assert [made.composition.modification for made in many] == ["in blue", "in red", "at night"]
    assert many[0].caption.foreground is None


def test_a_text_that_fits_is_embedded_once(connect: Connect) -> None:
    client, traffic = connect()
    query = client.compose_queries(
        b"x", "\u00fcber a modification that is too long for a bound to tell, " * 2
    )
    assert not query.composition.caption_cut
    assert sorted(traffic.models) == ["caption_foreground", "describe_lineup", "embed_text"]


def test_a_long_caption_is_cut_with_the_servers_own_counts(connect: Connect) -> None:
    def wordy(model: str, inputs: Mapping[str, np.ndarray]) -> Tensors:
        given = answer(model, inputs)
        return (
            given | {"caption": np.array([["word " * 200]], dtype=np.object_)}
            if "caption" in given
            else given
        )

    client, _ = connect(wordy)
    query = client.compose_queries(b"x", "in blue, on a beach")
    assert query.composition.caption_cut
    assert query.composition.text == " ".join(["word"] * 70) + ", in blue, on a beach"
    assert np.array_equal(query.embedding, client.embed_texts(query.composition.text))
    assert client.token_counts([query.composition.text]).tolist() == [77]


def test_the_pseudo_word_template_needs_no_caption(connect: Connect) -> None:
    client, traffic = connect()
    query = client.compose_queries(b"x", "in blue", template="pic2word")
    assert query.caption is None
    assert query.composition.text == "a photo of * , in blue"
    assert sorted(traffic.models) == ["describe_lineup", "embed_text_with_token", "image_token"]
    token = client.pseudo_tokens(b"x")
    assert np.array_equal(query.embedding, client.embed_texts(query.composition.text, pseudo_tokens=token))


def test_queries_that_do_not_pair_up_are_refused(connect: Connect) -> None:
    client, _ = connect()
    with pytest.raises(TypeError, match="one modification"):
        client.compose_queries(b"x", ["a", "b"])
    with pytest.raises(TypeError, match="as many modifications"):
        client.compose_queries([b"x"], "a")
    with pytest.raises(ValueError, match="shorter"):
        client.compose_queries([b"x", b"y"], ["a"])
    with pytest.raises(TextError, match="neither one of"):
        client.compose_queries(b"x", "a", template="no such")
    with pytest.raises(TextError, match="modification is empty"):
        client.compose_queries(b"x", "")
    with pytest.raises(TextError, match="the modification alone has 102 tokens"):
        client.compose_queries(b"x", "word " * 100)


def test_the_stand_in_lacks_what_no_lineup_has() -> None:
    with pytest.raises(ModelMissing, match="nonsense"):
        FakeTransport().infer("nonsense", {}, [], 1)
