"""The whole model repository on a real Triton over tiny networks, asked with tritonclient alone."""

import io
import itertools
import json
import queue
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tercet.server import EmbeddedServer

Tensors = dict[str, np.ndarray]

OUTPUTS = {
    "caption_foreground": ("caption", "score", "foreground", "mask"),
    "caption_image": ("caption", "score"),
    "embed_image": ("embedding",),
    "image_token": ("pseudo_token",),
    "embed_text": ("embedding", "token_count"),
    "embed_text_with_token": ("embedding", "token_count"),
}
SUBSETS = [
    (ensemble, subset)
    for ensemble, outputs in OUTPUTS.items()
    for length in range(1, len(outputs) + 1)
    for subset in itertools.combinations(outputs, length)
]


class Asker:
    """tritonclient, with arrays in and arrays out."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.grpc = grpc.InferenceServerClient(server.grpc_address)

    def __call__(self, model: str, outputs: tuple[str, ...] = (), **inputs: Any) -> Tensors:
        """`model` asked once; bytes, or a list of them, become BYTES [B, 1]. All outputs if none is named."""
        tensors = []
        for name, value in inputs.items():
            array = value
            if not isinstance(value, np.ndarray):
                rows = [value] if isinstance(value, bytes) else value
                array = np.array([[row] for row in rows], np.object_)
            tensor = grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        wanted = [grpc.InferRequestedOutput(name) for name in outputs] or None
        result = self.grpc.infer(model, tensors, outputs=wanted, client_timeout=120)
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    def all_at_once(self, model: str, output: str, name: str, files: list[bytes]) -> list[np.ndarray]:
        """`output` for each file, all sent before the first answer is waited for."""
        answers: list[queue.Queue[Any]] = [queue.Queue() for _ in files]
        for encoded, answer in zip(files, answers, strict=True):
            tensor = grpc.InferInput(name, [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[encoded]], np.object_))
            self.grpc.async_infer(
                model, [tensor], lambda result, error, answer=answer: answer.put(error or result)
            )
        return [answer.get(timeout=120).as_numpy(output) for answer in answers]

    def executions(self, model: str) -> tuple[int, int]:
        """Rows answered and batches run so far. Triton counts after it has answered: wait till it is done."""
        last = None
        while True:
            (statistics,) = self.grpc.get_inference_statistics(model).model_stats
            now = statistics.inference_count, statistics.execution_count
            if now == last:
                return now
            last = now
            time.sleep(0.5)


@pytest.fixture(scope="module")
def ask(server: EmbeddedServer) -> Iterator[Asker]:
    """A client that knows nothing of Tercet."""
    asker = Asker(server)
    yield asker
    asker.grpc.close()


def picture(seed: int, width: int = 90, height: int = 70) -> bytes:
    """A PNG file of coarse random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize((width, height)).save(file, "PNG")
    return file.getvalue()


def inputs_for(ensemble: str, ask: Asker) -> dict[str, Any]:
    if "image" in ensemble or "foreground" in ensemble:
        return {"image": picture(0)}
    if ensemble == "embed_text":
        return {"text": b"a red circle on a beach"}
    return {
        "text": b"a photo of * , at night",
        "pseudo_token": ask("image_token", image=picture(0))["pseudo_token"],
    }


@pytest.fixture(scope="module")
def whole(ask: Asker) -> dict[str, Tensors]:
    """What every ensemble answers when all of its outputs are asked for."""
    return {ensemble: ask(ensemble, **inputs_for(ensemble, ask)) for ensemble in OUTPUTS}


def test_every_model_is_served(server: EmbeddedServer) -> None:
    assert set(OUTPUTS) < set(server.models)
    assert not server.left_out


def test_answers_have_the_shapes_that_the_design_says(whole: dict[str, Tensors]) -> None:
    view = whole["caption_foreground"]["mask"].shape[1]
    dimension = whole["embed_image"]["embedding"].shape[1]
    expected = {
        "caption": ("object", (1, 1)),
        "score": ("float32", (1, 1)),
        "foreground": ("uint8", (1, view, view, 3)),
        "mask": ("float32", (1, view, view)),
        "embedding": ("float32", (1, dimension)),
        "token_count": ("int32", (1, 1)),
    }
    for ensemble, tensors in whole.items():
        assert set(tensors) == set(OUTPUTS[ensemble])
        for name, array in tensors.items():
            if name in expected:
                assert (array.dtype.name, array.shape) == expected[name], (ensemble, name)
    assert whole["embed_text"]["token_count"].item() > 2
    for ensemble in ("embed_image", "embed_text", "embed_text_with_token"):
        assert np.linalg.norm(whole[ensemble]["embedding"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("ensemble", "subset"), SUBSETS, ids=lambda value: str(value))
def test_any_subset_of_the_outputs_can_be_asked_for(
    ensemble: str, subset: tuple[str, ...], ask: Asker, whole: dict[str, Tensors]
) -> None:
    got = ask(ensemble, subset, **inputs_for(ensemble, ask))
    assert set(got) == set(subset)
    for name in subset:
        if got[name].dtype == np.object_:
            assert got[name].tolist() == whole[ensemble][name].tolist()
        else:
            np.testing.assert_allclose(got[name], whole[ensemble][name], atol=1e-5)


def test_a_batch_in_one_request_is_answered_row_by_row(ask: Asker) -> None:
    pictures = [picture(seed) for seed in range(4)]
    for ensemble in ("caption_foreground", "caption_image", "embed_image", "image_token"):
        together = ask(ensemble, image=pictures)
        for row, encoded in enumerate(pictures):
            for name, array in ask(ensemble, image=encoded).items():
                if array.dtype == np.object_:
                    assert array[0].tolist() == together[name][row].tolist()
                else:
                    # A grey level where a value lies between two.
                    tolerance = 1 if array.dtype == np.uint8 else 1e-4
                    np.testing.assert_allclose(together[name][row], array[0], atol=tolerance)


def test_the_pseudo_word_counts_only_where_it_is_placed(ask: Asker) -> None:
    tokens = [ask("image_token", image=picture(seed))["pseudo_token"] for seed in (0, 1)]
    plain = ask("embed_text", text=b"a photo of * , at night")["embedding"]
    first, second = (
        ask("embed_text_with_token", text=b"a photo of * , at night", pseudo_token=token)["embedding"]
        for token in tokens
    )
    assert np.abs(first - second).max() > 1e-3
    assert np.abs(first - plain).max() > 1e-3


def test_sixty_four_requests_at_once_are_batched_and_answered_as_if_alone(ask: Asker) -> None:
    pictures = [picture(seed) for seed in range(64)]
    alone = [ask("embed_image", image=encoded)["embedding"] for encoded in pictures]
    # Decoding gains nothing from batches and begins with what has come; the network's batches fill meanwhile.
    most = {"decode_image": 48, "clip_image": 32}
    before = {model: ask.executions(model) for model in most}
    together = ask.all_at_once("embed_image", "embedding", "image", pictures)
    np.testing.assert_allclose(np.concatenate(together), np.concatenate(alone), atol=1e-5)
    for model, (rows, batches) in before.items():
        more_rows, more_batches = ask.executions(model)
        assert more_rows - rows == 64
        assert more_batches - batches <= most[model], model


def test_texts_at_once_are_answered_as_if_alone_with_and_without_pseudo_words(ask: Asker) -> None:
    token = ask("image_token", image=picture(0))["pseudo_token"]
    requests: list[tuple[str, dict[str, Any]]] = []
    for number in range(32):
        requests.append(("embed_text", {"text": f"a photo of {number} dogs".encode()}))
        text = f"a photo of * , {number} times".encode()
        requests.append(("embed_text_with_token", {"text": text, "pseudo_token": token}))
    alone = [ask(model, **inputs)["embedding"] for model, inputs in requests]
    with ThreadPoolExecutor(64) as threads:
        together = list(threads.map(lambda request: ask(request[0], **request[1])["embedding"], requests))
    np.testing.assert_allclose(np.concatenate(together), np.concatenate(alone), atol=1e-5)


def refusal(ask: Asker, model: str, **inputs: Any) -> str:
    with pytest.raises(InferenceServerException) as caught:
        ask(model, **inputs)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    return str(caught.value)


def test_bad_pictures_among_good_ones_harm_nobody_but_themselves(ask: Asker) -> None:
    good = picture(0)
    causes = {
        b"": "the file is empty",
        b"hello, I am a text": "the file is not a",
        good[: len(good) // 2]: "the picture is truncated",
    }
    for ensemble in ("embed_image", "caption_foreground", "caption_image", "image_token"):
        expected = ask(ensemble, (OUTPUTS[ensemble][-1],), image=good)
        sent = [bad for bad in causes for _ in range(4)] + [good] * 12
        order = np.random.default_rng(0).permutation(len(sent))

        def send(encoded: bytes, ensemble: str = ensemble) -> Tensors | str:
            if encoded != good:
                return refusal(ask, ensemble, image=encoded)
            return ask(ensemble, (OUTPUTS[ensemble][-1],), image=encoded)

        with ThreadPoolExecutor(len(sent)) as threads:
            answers = list(threads.map(send, [sent[place] for place in order]))
        for place, answer in zip(order, answers, strict=True):
            if isinstance(answer, str):
                assert causes[sent[place]] in answer
            else:
                for name, array in expected.items():
                    np.testing.assert_allclose(answer[name], array, atol=1e-5)


def test_a_bad_row_of_a_request_is_named(ask: Asker) -> None:
    message = refusal(ask, "embed_image", image=[picture(0), b"", picture(1)])
    assert "picture 1 of the request: the file is empty" in message


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_a_picture_of_one_pixel_or_one_line_works(size: tuple[int, int], ask: Asker) -> None:
    for ensemble in ("embed_image", "caption_foreground"):
        for array in ask(ensemble, image=picture(0, *size)).values():
            assert array.dtype == np.object_ or np.isfinite(array).all()


def test_bad_texts_are_refused_and_odd_ones_read(ask: Asker) -> None:
    assert "not UTF-8" in refusal(ask, "embed_text", text=b"\xff\xfe")
    assert "over the limit" in refusal(ask, "embed_text", text=b"a" * 2**20)
    with_token = {"pseudo_token": ask("image_token", image=picture(0))["pseudo_token"]}
    assert '"*" as a word' in refusal(ask, "embed_text_with_token", text=b"no place", **with_token)
    narrow = {"pseudo_token": with_token["pseudo_token"][:, 1:]}
    assert "the same lineup" in refusal(ask, "embed_text_with_token", text=b"a *", **narrow)
    for text in (
        "",
        "\N{GRINNING FACE}",
        "\u05e9\u05dc\u05d5\u05dd",
        "a\x00b",
        "<|endoftext|>",
        "word " * 10_000,
    ):
        assert np.isfinite(ask("embed_text", text=text.encode())["embedding"]).all()
    assert ask("embed_text", text=b"word " * 10_000)["token_count"].item() >= 10_002


def test_the_lineup_is_described_with_and_without_an_input(ask: Asker, server: EmbeddedServer) -> None:
    described = json.loads(ask("describe_lineup")["lineup"].item())
    assert described["name"] == "tiny"
    assert described == json.loads(ask("describe_lineup", request=b"")["lineup"].item())
    request = urllib.request.Request(
        f"http://{server.http_address}/v2/models/describe_lineup/infer", data=b'{"inputs": []}'
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        (output,) = json.load(answer)["outputs"]
    assert json.loads(output["data"][0]) == described


def test_a_request_that_waits_longer_than_its_client_is_dropped(ask: Asker) -> None:
    tensor = grpc.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[picture(0)]], np.object_))

    def send(_: int) -> str:
        try:
            ask.grpc.infer("caption_foreground", [tensor], timeout=1)
        except InferenceServerException as error:
            return str(error)
        return "answered"

    with ThreadPoolExecutor(32) as threads:
        answers = set(threads.map(send, range(32)))
    assert any("timeout expired" in answer for answer in answers), answers
    assert np.isfinite(ask("caption_foreground", image=picture(0))["score"]).all()
