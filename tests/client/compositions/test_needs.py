"""Needs name themselves the same everywhere and for ever, and their answers survive a cache on disk."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

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
    dump,
    load,
    worth_keeping,
)
from tercet.errors import InputError
from tercet.messages import Caption

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
VECTORS = arrays(np.float32, st.integers(1, 32), elements=st.floats(-1, 1, width=32))
FINITE = st.floats(allow_nan=False, allow_infinity=False)
ANSWERS: st.SearchStrategy[Answer] = st.one_of(
    st.builds(Caption, text=TEXTS, score=FINITE, coverage=st.none() | st.floats(0, 1)),
    VECTORS,
    st.builds(EmbeddedText, embedding=VECTORS, tokens=st.integers(2, 10_000)),
    st.builds(Rewritten, text=TEXTS, failure=st.none() | TEXTS),
)
NEEDS: st.SearchStrategy[Need] = st.one_of(
    st.builds(CaptionNeed, st.sampled_from(["remove", "keep"]), st.integers(0, 9), st.integers(0, 9)),
    st.just(ImageNeed()),
    st.just(PseudoTokenNeed()),
    st.builds(TextNeed, TEXTS, st.booleans()),
    st.builds(RewriteNeed, TEXTS, TEXTS, TEXTS, TEXTS, st.sampled_from([1.0, 2.0])),
)

# Written down once: another key would throw away every cache that people have.
KEYS = {
    CaptionNeed("remove"): "caption|remove|whole",
    CaptionNeed("keep", 0, 5): "caption|keep|whole",
    CaptionNeed("keep", 2, 5): "caption|keep|view 2 of seed 5",
    ImageNeed(): "image",
    PseudoTokenNeed(): "pseudo-token",
    TextNeed("a dog"): "text|a dog",
    TextNeed("a *", True): "text with pseudo-token|a *",
    RewriteNeed("a dog", "in blue", "some-model", "{caption} {modification}"): (
        "rewrite|bc39f1bd77a3332122f1826759ea070aa513de16b216f46890dd85ed83c1ba95"
    ),
}


@pytest.mark.parametrize(("need", "key"), KEYS.items(), ids=lambda value: str(value)[:30])
def test_keys_stay_as_they_are(need: Need, key: str) -> None:
    assert need.key == key


def test_keys_do_not_depend_on_the_process() -> None:
    code = (
        "from tercet.compositions.needs import *; "
        "print(RewriteNeed('\\u00e9 dog', 'in blue', 'm', 'p').key, TextNeed('\\u00e9', True).key)"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
        ).stdout
        for seed in ("1", "2")
    }
    here = f"{RewriteNeed('é dog', 'in blue', 'm', 'p').key} {TextNeed('é', True).key}\n"
    assert printed == {here}


def asked(need: Need) -> object:
    """What an answer depends on: not how long to wait, nor the seed of the whole picture."""
    if isinstance(need, RewriteNeed):
        return ("rewrite", need.caption, need.modification, need.model, need.prompt)
    if isinstance(need, CaptionNeed) and need.view == 0:
        return ("caption", need.background)
    return need


@given(NEEDS, NEEDS)
def test_different_needs_have_different_keys(one: Need, other: Need) -> None:
    assert (one.key == other.key) == (asked(one) == asked(other))


def test_needs_of_the_reference_say_so() -> None:
    for need in KEYS:
        depends = isinstance(need, CaptionNeed | ImageNeed | PseudoTokenNeed)
        assert need.of_reference == (depends or (isinstance(need, TextNeed) and need.pseudo_token))


@given(ANSWERS)
def test_an_answer_comes_back_as_it_was_to_the_bit(answer: Answer) -> None:
    again = load(dump(answer))
    assert type(again) is type(answer)
    if isinstance(answer, np.ndarray):
        assert again.dtype == np.float32  # type: ignore[union-attr]
        np.testing.assert_array_equal(again, answer)  # type: ignore[arg-type]
    elif isinstance(answer, EmbeddedText):
        assert isinstance(again, EmbeddedText)
        np.testing.assert_array_equal(again.embedding, answer.embedding)
        assert again.tokens == answer.tokens
    elif isinstance(answer, Caption):
        assert isinstance(again, Caption)
        assert (again.text, again.score, again.coverage) == (answer.text, answer.score, answer.coverage)
    else:
        assert again == answer
    assert dump(again) == dump(answer)


def test_a_captions_pictures_are_left_out() -> None:
    caption = Caption("a dog", -1.0, np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32), 0.5)
    again = load(dump(caption))
    assert isinstance(again, Caption)
    assert (again.foreground, again.mask, again.coverage) == (None, None, 0.5)


@given(st.binary(max_size=60))
def test_what_is_no_answer_is_refused(raw: bytes) -> None:
    with pytest.raises(InputError, match="delete the cache"):
        load(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"kind": "Caption"}\n',
        b'{"kind": "Caption", "text": "a", "score": 1, "more": 2}\n',
        b'{"kind": "object"}\n',
        b'{"kind": ["ndarray"]}\n',
        b"[]\n",
        b'{"kind": "ndarray"}\n123',
    ],
)
def test_a_damaged_answer_is_refused(raw: bytes) -> None:
    with pytest.raises(InputError, match="delete the cache"):
        load(raw)


def test_failures_are_not_worth_keeping() -> None:
    assert not worth_keeping(Rewritten("", "HTTP status 500"))
    assert worth_keeping(Rewritten("a blue dog"))
    assert worth_keeping(np.zeros(3, np.float32))
