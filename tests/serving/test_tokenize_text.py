"""tokenize_text: open_clip's tokens for any text, a place for a pseudo-word, and nothing a user can break."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tercet_export import vocabulary
from tests.serving.python_models import python_model

tokens = python_model("tokenize_text", "tokens")

START, END, STAR, LENGTH, WIDTH = 49406, 49407, 265, 77, 8
DETAILS = {"kind": "clip-bpe", "vocabulary": 49408, "start": START, "end": END, "pad": 0}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """CLIP's own vocabulary, through the files that the export writes."""
    folder = tmp_path_factory.mktemp("tokenize_text")
    vocabulary.build(DETAILS, None, folder).save(str(folder / "tokenizer.json"))
    entry = {
        "context_length": LENGTH,
        "token_width": WIDTH,
        "tokenizer": {**DETAILS, "file": "tokenizer.json"},
    }
    (folder / "lineup.json").write_text(json.dumps({"roles": {"clip_text": entry}}))
    return tokens.load_vocabulary(folder)


def ids(text: str | bytes, words: Any, pseudo_token: np.ndarray | None = None) -> list[int]:
    encoded = text.encode() if isinstance(text, str) else text
    return tokens.tokenize([encoded], words, pseudo_token)["token_ids"][0].tolist()


SENTENCES = [
    "a photo of a dog",
    "",
    "   \t\n ",
    "It's the dog's; they'll, we've, I'm, you'd 're",
    "IN BLUE, ON A BEACH!!! (no. 12345)",
    "caf\u00e9 cafe\u0301 na\u00efve \u00c6sop stra\u00dfe \u0130stanbul \u017fo it\u017f",
    "\u00c3\u00a9t\u00c3\u00a9 \u00e2\u20ac\u0153mojibake\u00e2\u20ac\u009d",
    "&amp;lt;b&amp;gt; &eacute; &#128512; &nbsp; &copy",
    "\U0001f600\U0001f1e9\U0001f1ea \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \u0645\u0631\u062d\u0628\u0627 \u202eabc\u202c",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \ud55c\uad6d\uc5b4 \u0939\u093f\u0928",
    "a\x00b\x07c\x1b[31m \x7f \u200b\ufeff\u2028 d",
    "\u00a0\u2003wide\u3000space ",
    "\u2460 \u00bd \u0664 x\u00b2 \u2167",
    "supercalifragilisticexpialidocious" * 20,
    "word " * 200,
]


@pytest.mark.parametrize("text", SENTENCES)
def test_tokens_are_those_of_open_clip(text: str, words: Any) -> None:
    assert ids(text, words) == open_clip.tokenize([text])[0].tolist()


# Letters younger than a library's Unicode tables are none to it, and the tables are of several ages.
@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=60))
def test_tokens_of_any_text_are_those_of_open_clip(text: str, words: Any) -> None:
    # The cleaning itself may make one, of text decoded wrongly.
    assume(all(unicodedata.category(character) != "Cn" for character in tokens.lower(text)))
    assume("<|" not in text)
    assert ids(text, words) == open_clip.tokenize([text])[0].tolist()


def test_the_count_is_taken_before_the_text_is_cut(words: Any) -> None:
    texts = [b"", b"a dog", b"dog " * 75, b"dog " * 76, b"dog " * 10_000]
    got = tokens.tokenize(texts, words)
    assert got["token_count"].tolist() == [[2], [4], [77], [78], [10_002]]
    assert (got["token_ids"][2:, -1] == END).all()
    assert (got["token_ids"][2:, :-1] != END).all()
    assert got["token_ids"][0].tolist() == [START, END, *[0] * 75]


def test_without_a_pseudo_token_there_is_a_zero_one_for_no_place(words: Any) -> None:
    got = tokens.tokenize([b"a photo of *", b"a dog"], words)
    assert got["pseudo_index"].tolist() == [[-1], [-1]]
    np.testing.assert_array_equal(got["pseudo_token"], np.zeros((2, WIDTH)))
    assert {name: (array.dtype.name, array.shape) for name, array in got.items()} == {
        "token_ids": ("int32", (2, LENGTH)),
        "pseudo_token": ("float32", (2, WIDTH)),
        "pseudo_index": ("int32", (2, 1)),
        "token_count": ("int32", (2, 1)),
    }


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a photo of * , in blue", 4),
        ("*", 1),
        ("* * *", 1),
        ("caf\u00e9 \U0001f600 * x", 3),
        ("** *, a*b (*) *", 8),
        (" \u00a0&#42;  dog", 1),
        ("dog " * 74 + "*", 75),
        ("* " + "dog " * 500, 1),
    ],
)
def test_the_pseudo_token_goes_to_the_first_star_that_stands_alone(text: str, place: int, words: Any) -> None:
    pseudo_token = np.ones((1, WIDTH), np.float32)
    got = tokens.tokenize([text.encode()], words, pseudo_token)
    assert got["token_ids"][0, place] == STAR
    assert got["pseudo_index"].tolist() == [[place]]
    np.testing.assert_array_equal(got["pseudo_token"], pseudo_token)


def test_each_row_has_its_own_place(words: Any) -> None:
    pseudo_token = np.arange(2 * WIDTH, dtype=np.float32).reshape(2, WIDTH)
    got = tokens.tokenize([b"* at night", b"a drawing of *"], words, pseudo_token)
    assert got["pseudo_index"].tolist() == [[1], [4]]
    np.testing.assert_array_equal(got["pseudo_token"], pseudo_token)


def refusal(text: bytes, words: Any, pseudo_token: np.ndarray | None = None) -> str:
    with pytest.raises(tokens.TextError) as caught:
        tokens.tokenize([text], words, pseudo_token)
    return str(caught.value)


@pytest.mark.parametrize("text", ["a dog", "", "a photo of *, in blue", "a*b", "<*>"])
def test_a_text_without_a_place_for_the_pseudo_token_is_refused(text: str, words: Any) -> None:
    assert 'write "*" as a word of its own' in refusal(text.encode(), words, np.ones((1, WIDTH), np.float32))


def test_a_place_past_the_end_is_refused(words: Any) -> None:
    message = refusal(b"dog " * 75 + b"*", words, np.ones((1, WIDTH), np.float32))
    assert "is token 77, and the text encoder reads 77" in message


def test_a_pseudo_token_that_does_not_fit_is_refused(words: Any) -> None:
    assert "of the same lineup" in refusal(b"*", words, np.ones((1, WIDTH + 1), np.float32))
    assert "not finite" in refusal(b"*", words, np.full((1, WIDTH), np.nan, np.float32))


def test_special_tokens_in_a_text_are_ordinary_characters(words: Any) -> None:
    for text in (
        "<|endoftext|>",
        "a <|startoftext|> b <|endoftext|> c",
        "&lt;|endoftext|&gt;",
        "<|ENDOFTEXT|>",
    ):
        got = ids(text, words)
        assert got.count(START) == 1
        assert got.count(END) == 1
        assert got.index(END) > 4
    # The text after it still counts.
    assert ids("<|endoftext|> in blue", words) != ids("<|endoftext|> in red", words)


def test_what_is_not_utf_8_is_refused(words: Any) -> None:
    assert "not UTF-8 (byte 3 is 0xFF)" in refusal(b"abc\xff", words)
    assert "not UTF-8" in refusal("\ud800".encode("utf-8", "surrogatepass"), words)
    assert "not UTF-8" in refusal("text".encode("utf-16"), words)


def test_a_text_far_too_long_is_refused(words: Any) -> None:
    assert "the text's 1024 KiB are over the limit of 128 KiB" in refusal(b"a " * 2**19, words)


def test_a_cleaning_that_is_not_known_is_refused(tmp_path: Path) -> None:
    entry = {"context_length": 64, "token_width": 8, "tokenizer": {"clean": "polish", "file": "x"}}
    (tmp_path / "lineup.json").write_text(json.dumps({"roles": {"clip_text": entry}}))
    with pytest.raises(ValueError, match="cleaned by 'polish', known are lower, canonicalize"):
        tokens.load_vocabulary(tmp_path)
