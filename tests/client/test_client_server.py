"""The clients against a real Triton with small random networks: what comes back, and what bad input does."""

import asyncio
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tercet import AsyncClient, Client, ModelMissing, PictureError, TextError, compose
from tercet.composition import token_bound
from tercet.server import EmbeddedServer
from tercet.transport import GrpcTransport

RNG = np.random.default_rng(7)
PICTURES = [RNG.integers(0, 256, (40 + 9 * n, 70 - 5 * n, 3), dtype=np.uint8) for n in range(8)]
# Batches of another size may sum in another order.
CLOSE = {"rtol": 0, "atol": 1e-5}


def encoded(kind: str, pixels: np.ndarray = PICTURES[0], **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that claims to be of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_embeddings_are_unit_vectors_and_do_not_depend_on_neighbours(client: Client) -> None:
    together = client.embed_images(PICTURES)
    assert together.shape == (8, client.lineup().embedding_dimension)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(together, [client.embed_images(picture) for picture in PICTURES], **CLOSE)
    assert len(np.unique(together.round(5), axis=0)) == 8


def test_a_picture_embeds_alike_however_it_is_given(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded("PNG"))
    expected = client.embed_images(path)
    for picture in (str(path), path.read_bytes(), Image.open(path), PICTURES[0]):
        np.testing.assert_allclose(client.embed_images(picture), expected, **CLOSE)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_a_pillow_image_embeds_like_its_file(client: Client, tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(PICTURES[0])
    if mode == "I;16":
        image = Image.fromarray(PICTURES[0][:, :, 0].astype(np.uint16) * 257)
    elif mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(PICTURES[0][:, :, 1]))
        image = image.convert(mode)
    else:
        image = image.convert(mode)
    path = tmp_path / ("picture.tiff" if mode == "CMYK" else "picture.png")
    image.save(path)
    np.testing.assert_allclose(client.embed_images(image), client.embed_images(path), **CLOSE)


def test_exif_orientation_means_the_same_to_client_and_server(client: Client, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    path.write_bytes(encoded("PNG", exif=exif))
    upright = client.embed_images(np.rot90(PICTURES[0], -1))
    np.testing.assert_allclose(client.embed_images(path), upright, **CLOSE)
    np.testing.assert_allclose(client.embed_images(Image.open(path)), upright, **CLOSE)


def test_captions_with_and_without_background(client: Client) -> None:
    removed = client.caption(PICTURES)
    for caption in removed:
        assert isinstance(caption.text, str)
        assert np.isfinite(caption.score)
        assert caption.foreground is not None
        assert caption.mask is not None
        assert caption.foreground.dtype == np.uint8
        assert caption.foreground.shape == (*caption.mask.shape, 3)
        assert 0 <= caption.mask.min() <= caption.mask.max() <= 1
    assert [caption.text for caption in client.caption(PICTURES, foreground=False)] == [
        c.text for c in removed
    ]
    kept = client.caption(PICTURES[0], background="keep")
    assert kept.foreground is None
    assert kept.mask is None


def test_async_answers_what_sync_answers(server: EmbeddedServer, client: Client) -> None:
    async def ask() -> tuple[np.ndarray, np.ndarray, list[str]]:
        async with AsyncClient(server.grpc_address) as asynchronous:
            return (
                await asynchronous.embed_images(PICTURES),
                await asynchronous.embed_texts(["a dog", "a cat"]),
                [caption.text for caption in await asynchronous.caption(PICTURES)],
            )

    images, texts, captions = asyncio.run(ask())
    np.testing.assert_allclose(images, client.embed_images(PICTURES), **CLOSE)
    np.testing.assert_allclose(texts, client.embed_texts(["a dog", "a cat"]), **CLOSE)
    assert captions == [caption.text for caption in client.caption(PICTURES)]


BAD_PICTURES = {
    "empty.jpg": b"",
    "truncated.jpg": encoded("JPEG", RNG.integers(0, 256, (300, 300, 3), dtype=np.uint8))[:5000],
    "text.jpg": b"This is no picture.\n",
    "bomb.png": png_header(50_000, 50_000),
    "header.png": png_header(64, 64),
}


def test_bad_pictures_are_named_and_their_neighbours_unharmed(client: Client, tmp_path: Path) -> None:
    paths = []
    for name, content in BAD_PICTURES.items():
        paths += [tmp_path / f"good-{name}.png", tmp_path / name]
        paths[-2].write_bytes(encoded("PNG"))
        paths[-1].write_bytes(content)
    expected = client.embed_images(PICTURES[0])
    results = list(client.embed_images_iter(paths * 3))
    for path, result in zip(paths * 3, results, strict=True):
        if path.name.startswith("good"):
            np.testing.assert_allclose(result, expected, **CLOSE)
        else:
            assert isinstance(result, PictureError), path
            assert str(result).startswith(f"{path}: ")
    assert client.ready()


@pytest.mark.parametrize("background", ["remove", "keep"])
@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_pictures_have_no_caption(client: Client, tmp_path: Path, name: str, background: str) -> None:
    (tmp_path / name).write_bytes(BAD_PICTURES[name])
    with pytest.raises(PictureError, match=name):
        client.caption(tmp_path / name, background=background)  # type: ignore[call-overload]


def test_one_pixel_is_a_picture(client: Client) -> None:
    assert client.embed_images(np.zeros((1, 1, 3), np.uint8)).ndim == 1
    assert isinstance(client.caption(np.zeros((1, 1, 3), np.uint8)).text, str)


STRANGE_TEXTS = [
    "\U0001f436\U0001f3fd\u200d\u2640\ufe0f",
    "\u0643\u0644\u0628 \u0641\u064a \u05e2\u05d1\u05e8\u05d9\u05ea",
    "a dog\x00\x01\x1b[31m\x7f on a beach",
    "<|startoftext|> a dog <|endoftext|> in blue <|endoftext|>",
    "&lt;&amp;nGt;&#42; * {caption} %s",
    "\u0130\u0958 \ufb01 \uff0a",
    "x" * 60,
]


def test_strange_texts_work_and_change_no_neighbours_result(client: Client) -> None:
    usual = [f"a {animal} on a beach" for animal in ("dog", "cat", "horse", "cow", "bird")]
    expected = client.embed_texts(usual)
    mixed = client.embed_texts(
        [text for pair in zip(usual, STRANGE_TEXTS, strict=False) for text in pair] * 4
    )
    assert np.isfinite(mixed).all()
    np.testing.assert_allclose(mixed[::2], np.tile(expected, (4, 1)), **CLOSE)


def test_special_tokens_in_a_text_are_only_characters(client: Client) -> None:
    """Read as the end token, `<|endoftext|>` would hide what comes after it."""
    blue, red = client.embed_texts([f"a dog <|endoftext|> in {colour}" for colour in ("blue", "red")])
    assert np.abs(blue - red).max() > 1e-3
    assert client.token_counts(["<|endoftext|>"])[0] > 3


def test_texts_without_words_or_with_too_many_are_refused(client: Client) -> None:
    with pytest.raises(TextError, match="text 1 is empty"):
        client.embed_texts(["a dog", "\t\n"])
    with pytest.raises(TextError, match=r"tokens, start and end included; the text encoder reads \d+"):
        client.embed_texts("word " * 10_000)
    with pytest.raises(TextError, match="the modification alone has"):
        client.compose_queries(PICTURES[0], "word " * 10_000)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="ascii"), min_size=1, max_size=60))
def test_the_bound_on_tokens_holds_for_the_servers_tokenizer(client: Client, text: str) -> None:
    bound = token_bound(text)
    if bound is not None and text.strip():
        assert client.token_counts([text])[0] <= bound


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=60).map(" ".join))
def test_what_is_composed_fits_the_encoder(client: Client, caption: str) -> None:
    limit = client.lineup().context_length
    made = compose(caption, "in blue, on a beach", count_tokens=client.token_counts, limit=limit)
    assert client.token_counts([made.text])[0] <= limit
    assert made.text.endswith("in blue, on a beach")


def test_composed_queries_are_caption_fusion_and_embedding(client: Client) -> None:
    queries = client.compose_queries(PICTURES[:3], ["in blue", "at night", "\u00fcber * {caption}"])
    captions = client.caption(PICTURES[:3])
    for query, caption in zip(queries, captions, strict=True):
        assert query.caption is not None
        assert query.caption.text == caption.text
        np.testing.assert_allclose(query.embedding, client.embed_texts(query.composition.text), **CLOSE)


def test_a_model_that_is_not_served_is_named(server: EmbeddedServer) -> None:
    transport = GrpcTransport(server.grpc_address)
    with pytest.raises(ModelMissing, match=r"does not serve 'no_such_model'.*tercet-export"):
        transport.infer("no_such_model", {"text": np.array([[b"x"]], dtype=np.object_)}, ["embedding"], 10)
    transport.close()


def test_a_pseudo_token_changes_the_text_it_stands_in(client: Client) -> None:
    if "image_to_token" not in client.lineup().roles:
        with pytest.raises(ModelMissing, match="image_token"):
            client.pseudo_tokens(PICTURES[0])
        return
    first, second = client.compose_queries(PICTURES[:2], ["* in blue"] * 2, template="pic2word")
    assert np.abs(first.embedding - second.embedding).max() > 1e-4
    with pytest.raises(TextError, match=r"\*"):
        client.embed_texts("no placeholder", pseudo_tokens=client.pseudo_tokens(PICTURES[0]))
