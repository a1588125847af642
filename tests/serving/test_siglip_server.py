"""A SigLIP lineup on a real Triton: embeddings equal open_clip's, its context of 64 tokens is the limit."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from tercet.client import Client
from tercet.composition import compose
from tercet.errors import TextError
from tercet.server import EmbeddedServer
from tercet_export.lineup import export_lineup
from tests.tiny import SIZE
from tests.tiny_siglip import LENGTH, PREPROCESS, TOKENIZERS, network, write_siglip


class Served:
    """One family's lineup, served, and what it was made of."""

    def __init__(self, family: str, folder: Path, server: EmbeddedServer, client: Client) -> None:
        self.server, self.client, self.theirs = server, client, network(family)
        self.tokenizer = HFTokenizer(str(folder), context_length=LENGTH, clean="canonicalize")
        self.transform = image_transform_v2(PreprocessCfg(size=SIZE, **PREPROCESS), is_train=False)


@pytest.fixture(scope="module", params=TOKENIZERS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp(request.param)
    repository = folder / "model_repository"
    export_lineup(write_siglip(folder, request.param), repository)
    with EmbeddedServer(repository) as server, Client(server.grpc_address) as client:
        yield Served(request.param, folder, server, client)


def encoded_picture(seed: int, size: tuple[int, int]) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize(size).save(file, "PNG")
    return file.getvalue()


def test_pictures_are_embedded_as_by_open_clip(served: Served) -> None:
    pictures = [encoded_picture(0, (150, 90)), encoded_picture(1, (64, 64)), encoded_picture(2, (70, 300))]
    got = served.client.embed_images(pictures)
    with torch.inference_mode():
        pixels = torch.stack([served.transform(Image.open(io.BytesIO(encoded))) for encoded in pictures])
        expected = served.theirs.encode_image(pixels, normalize=True)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_texts_are_embedded_as_by_open_clip(served: Served) -> None:
    texts = ["a red circle", "It's a SMALL star; on the_beach!", "two squares " * 5, "caf\u00e9 \u72d7"]
    with torch.inference_mode():
        expected = served.theirs.encode_text(served.tokenizer(texts), normalize=True)
    np.testing.assert_allclose(served.client.embed_texts(texts), expected, atol=1e-5)


def test_the_manifest_tells_a_client_how_cosines_become_probabilities(served: Served) -> None:
    entry = served.client.lineup().roles["clip_text"].details
    picture, text = encoded_picture(3, (80, 80)), "a red circle"
    cosine = (served.client.embed_images([picture]) @ served.client.embed_texts([text]).T).item()
    with torch.inference_mode():
        pixels = served.transform(Image.open(io.BytesIO(picture)))[None]
        logits, _ = served.theirs.get_logits(pixels, served.tokenizer([text]))
    assert entry["logit_scale"] * cosine + entry["logit_bias"] == pytest.approx(logits.item(), abs=1e-2)


def test_the_context_of_64_tokens_is_what_captions_are_cut_to(served: Served) -> None:
    limit = served.client.lineup().context_length
    assert limit == LENGTH
    count_tokens, words = served.client.token_counts, "star on the red wall in the small sky "
    composed = compose(words * 20, "in blue, on a beach", count_tokens=count_tokens, limit=limit)
    assert composed.caption_cut
    assert composed.modification in composed.text
    (count,) = count_tokens([composed.text])
    assert LENGTH - 12 < count <= LENGTH
    with pytest.raises(TextError, match="reads 64"):
        compose("a star", words * 20, count_tokens=count_tokens, limit=limit)


def test_what_a_lineup_without_a_captioner_cannot_serve_is_left_out(served: Served) -> None:
    left_out = served.server.left_out
    assert {"captioner", "detokenize_caption", "caption_image", "image_token"} <= left_out.keys()
    assert "1/tokenizer.json is missing" in left_out["detokenize_caption"]
    assert {"embed_image", "embed_text", "tokenize_text"} <= set(served.server.models)


def test_pseudo_words_are_refused_and_harm_nobody(served: Served) -> None:
    text = grpc.InferInput("text", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[b"a photo of * , at night"]], np.object_))
    token = grpc.InferInput("pseudo_token", [1, 32], "FP32")
    token.set_data_from_numpy(np.ones((1, 32), np.float32))
    connection = grpc.InferenceServerClient(served.server.grpc_address)
    with pytest.raises(InferenceServerException, match="takes no pseudo-words") as caught:
        connection.infer("embed_text_with_token", [text, token])
    connection.close()
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert len(served.client.embed_texts(["a star"])) == 1
