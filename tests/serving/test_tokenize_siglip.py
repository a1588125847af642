"""tokenize_text with SigLIP's and SigLIP 2's tokenizers: what open_clip's HFTokenizer gives, for any text."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, canonicalize_text

from tercet_export import vocabulary
from tercet_export.networks.clip_architecture import Architecture, tokenizer_details
from tests.serving.python_models import python_model
from tests.tiny_siglip import LENGTH, TOKENIZERS, siglip, write_siglip

tokens = python_model("tokenize_text", "tokens")

WIDTH = 32
LETTERS = "abcdefgimnorst '*_-.,<>/&;#|0123456789\u00e9\u72d7\n\tAIR"


class Pair:
    """Our vocabulary and theirs, from the same files."""

    def __init__(self, folder: Path, family: str, clean: str) -> None:
        write_siglip(folder, family)
        config = siglip(family)
        config["text_cfg"]["tokenizer_kwargs"] = {"clean": clean}
        size = config["text_cfg"]["vocab_size"]
        self.details = tokenizer_details(Architecture("tiny", config, {}), size)
        entry = {
            "context_length": LENGTH,
            "token_width": WIDTH,
            "tokenizer": {**self.details, "file": "ours.json"},
        }
        vocabulary.build(self.details, "tokenizer.json", folder).save(str(folder / "ours.json"))
        (folder / "lineup.json").write_text(json.dumps({"roles": {"clip_text": entry}}))
        self.ours = tokens.load_vocabulary(folder)
        self.theirs = HFTokenizer(str(folder), context_length=LENGTH, clean=clean)

    def ids(self, text: str) -> list[int]:
        return tokens.tokenize([text.encode()], self.ours)["token_ids"][0].tolist()

    def expected(self, text: str) -> list[int]:
        return self.theirs(text)[0].tolist()


@pytest.fixture(scope="module", params=TOKENIZERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp(request.param), request.param, "canonicalize")


@pytest.mark.parametrize(
    "text",
    [
        "a red circle on the beach",
        "",
        "  \t ",
        "It's RED; in_the-sky! (no. 12)",
        "caf\u00e9 \u72d7 \U0001f600 na\u00efve",
        "&amp;lt;b&amp;gt; \u00c3\u00a9 \u00a0 wide\u3000space",
        "a <eos> b </s> c <pad> <bos> <unk> <0x41>",
        "ring " * 100,
        "supercalifragilistic" * 20,
    ],
)
def test_tokens_are_those_of_open_clip(text: str, pair: Pair) -> None:
    assert pair.ids(text) == pair.expected(text)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=60) | st.text(LETTERS, max_size=120)
)
def test_tokens_of_any_text_are_those_of_open_clip(text: str, pair: Pair) -> None:
    # Characters younger than a library's Unicode tables, as in test_tokenize_text.
    assume(all(unicodedata.category(character) != "Cn" for character in tokens.canonicalize(text)))
    assert pair.ids(text) == pair.expected(text)


@given(text=st.text(max_size=80))
def test_texts_are_cleaned_as_by_big_vision(text: str) -> None:
    assert tokens.canonicalize(text) == canonicalize_text(tokens.mend(text))


def test_the_frame_is_an_end_and_the_familys_padding(pair: Pair) -> None:
    pad = pair.details["pad"]
    got = tokens.tokenize([b"a", b"", b"a " * 63, b"a " * 64, b"a " * 5000], pair.ours)
    assert got["token_ids"][0, 1:3].tolist() == [1, pad]
    assert got["token_ids"][1].tolist() == [1] + [pad] * (LENGTH - 1)
    assert got["token_count"].ravel().tolist() == [2, 1, 64, 65, 5001]
    assert (got["token_ids"][2:, -1] == 1).all()
    assert pad == {"SigLIP": 1, "SigLIP2": 0}[pair.details["published"].rpartition("-")[2]]


def test_pseudo_words_are_refused(pair: Pair) -> None:
    with pytest.raises(tokens.TextError, match="takes no pseudo-words"):
        tokens.tokenize([b"a photo of *"], pair.ours, np.ones((1, WIDTH), np.float32))


@pytest.mark.parametrize("family", TOKENIZERS)
def test_special_tokens_in_a_text_are_ordinary_characters(family: str, tmp_path: Path) -> None:
    """Where the cleaning leaves them in."""
    pair = Pair(tmp_path, family, "whitespace")
    assert pair.ids("a red star") == pair.expected("a red star")
    ids = pair.ids("a <eos> b </s> c")
    assert ids.index(1) > 5
    assert 2 not in ids or family == "SigLIP"  # the unigram's <unk>


def test_a_token_that_the_network_has_not_is_refused(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "SigLIP", "canonicalize")
    manifest = json.loads((tmp_path / "lineup.json").read_text())
    manifest["roles"]["clip_text"]["tokenizer"]["vocabulary"] -= 1
    (tmp_path / "lineup.json").write_text(json.dumps(manifest))
    fewer = tokens.load_vocabulary(tmp_path)
    last = TOKENIZERS["SigLIP"][0].id_to_token(pair.ours.size - 1)
    assert last == "\u72d7"
    with pytest.raises(tokens.TextError, match="never taught"):
        tokens.tokenize([last.encode()], fewer)
    assert tokens.tokenize([b"a red star"], fewer)["token_count"].item() == 4
