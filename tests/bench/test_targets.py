"""What is sent: inputs, requests, and the refusal of what is not served."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc.service_pb2 import ModelInferRequest

from tercet.bench.inputs import MOST, SIZE, make_pictures, make_texts, read_pictures
from tercet.bench.targets import Inputs, check_served, requests_for
from tercet.errors import InputError, ModelMissing


def test_pictures_are_the_size_of_photographs_and_all_different() -> None:
    pictures = make_pictures(count=6)
    assert len(set(pictures)) == 6
    assert all(40_000 < len(picture) < 120_000 for picture in pictures)
    assert pictures == make_pictures(count=6)
    for picture in pictures:
        with Image.open(io.BytesIO(picture)) as image:
            assert (image.format, image.size) == ("JPEG", SIZE)
            assert np.asarray(image).std() > 20


def test_texts_are_different_and_as_long_as_wishes_are() -> None:
    texts = make_texts()
    assert len(set(texts)) == len(texts) == 96
    assert all(6 <= len(text.split()) <= 24 for text in texts)


def test_a_folder_gives_its_files_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    pictures = make_pictures(count=2)
    (tmp_path / "a.jpg").write_bytes(pictures[0])
    (tmp_path / "deeper" / "b.JPG").write_bytes(pictures[1])
    (tmp_path / "notes.txt").write_text("no picture")
    assert read_pictures(tmp_path) == pictures


def test_of_a_large_folder_a_part_is_taken_evenly(tmp_path: Path) -> None:
    for number in range(MOST * 2):
        (tmp_path / f"{number:04}.jpg").write_bytes(b"%d" % number)
    taken = [int(file) for file in read_pictures(tmp_path)]
    assert (len(taken), taken[0], taken[-1]) == (MOST, 0, MOST * 2 - 1)
    assert set(np.diff(taken)) <= {1, 2, 3}


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_a_folder_without_pictures_is_refused_by_name(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"nothing.*leave --pictures out"):
        read_pictures(tmp_path / "nothing")


def test_requests_carry_what_the_client_would_send() -> None:
    inputs = Inputs([b"one", b"two"], ["a red dress"], pseudo_tokens=lambda: np.ones((2, 4), np.float32))
    requests = [ModelInferRequest.FromString(data) for data in requests_for("embed_image", inputs, 7.0)]
    assert [request.raw_input_contents[0] for request in requests] == [b"\x03\0\0\0one", b"\x03\0\0\0two"]
    first = requests[0]
    assert (first.model_name, first.parameters["timeout"].int64_param) == ("embed_image", 7_000_000)
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in first.inputs] == [
        ("image", "BYTES", [1, 1])
    ]
    assert [output.name for output in first.outputs] == ["embedding"]

    (data,) = requests_for("embed_text_with_token", inputs, 7.0)
    request = ModelInferRequest.FromString(data)
    assert request.raw_input_contents[0][4:] == b"a photo of * , a red dress"
    assert np.frombuffer(request.raw_input_contents[1], np.float32).tolist() == [1, 1, 1, 1]
    assert [(tensor.datatype, list(tensor.shape)) for tensor in request.inputs] == [
        ("BYTES", [1, 1]),
        ("FP32", [1, 4]),
    ]

    (data, _) = requests_for("caption_foreground", inputs, 7.0)
    assert [output.name for output in ModelInferRequest.FromString(data).outputs] == ["caption", "score"]


def test_what_is_not_served_is_refused_with_what_is() -> None:
    served = ["embed_text", "clip_text", "tokenize_text"]
    check_served("embed_text", served, "here:8001")
    with pytest.raises(ModelMissing, match=r"does not serve embed_image, .* it serves embed_text: choose"):
        check_served("embed_image", served, "here:8001")
    with pytest.raises(ModelMissing, match="caption_foreground, embed_image, which query needs"):
        check_served("query", served, "here:8001")
