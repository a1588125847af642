"""Tokenizers built for the server agree with the libraries that the networks were trained with."""

import unicodedata
from pathlib import Path

import open_clip
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Tokenizer
from transformers import BertTokenizer

from tercet.errors import LineupError
from tercet_export import vocabulary
from tests.serving.python_models import python_model
from tests.tiny import VOCABULARY

CLIP = {"kind": "clip-bpe", "vocabulary": 49408}
THEIRS = SimpleTokenizer()
OURS = vocabulary.build(CLIP, None, Path())
clean = python_model("tokenize_text", "tokens").clean


@given(
    st.text(st.characters(exclude_categories=("Cs", "Cn")))
    | st.text(
        st.sampled_from("abcdefghij's\u017ftrevmldK 0123<|>!?.,;:-_*&é漢😀\u200b\u0301\u0345½²&amp;\n\t")
    )
)
@example("it's I'M we'\u017f don't they'll I'd've")
@example("a photo of * , in blue")
@example("caf\u00e9 cafe\u0301 na\u00efve \u00c3\u00a9 &lt;b&gt; 3D 12/07")
def test_clip_tokens_are_open_clips(text: str) -> None:
    cleaned = clean(text)
    # Not: letters newer than the tokenizers library, and open_clip's specials, which users may not write.
    assume(all(unicodedata.category(character) != "Cn" for character in cleaned))
    assume("<start_of_text>" not in cleaned)
    assume("<end_of_text>" not in cleaned)
    assert OURS.encode(cleaned, add_special_tokens=False).ids == THEIRS.encode(text)


@pytest.mark.parametrize("special", ["<|startoftext|>", "<|endoftext|>", "<start_of_text>", "<end_of_text>"])
def test_specials_in_a_text_are_characters(special: str) -> None:
    encoding = OURS.encode(f"a {special} b")
    assert max(encoding.ids) < 49406
    assert "".join(encoding.tokens).replace("</w>", "") == f"a{special}b"


def test_whole_tensor_is_open_clips() -> None:
    text = "a photo of a red dress"
    ids = [49406, *OURS.encode(text).ids, 49407]
    assert open_clip.tokenize([text])[0, : len(ids)].tolist() == ids


def test_fewer_merges_make_a_smaller_vocabulary_of_the_same_kind(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("#version: 0.2\ni n\nin g</w>\nt h\n")
    tokenizer = vocabulary.build({"kind": "clip-bpe", "vocabulary": 517}, "merges.txt", tmp_path)
    assert tokenizer.get_vocab_size() == 517
    assert tokenizer.encode("thing").tokens == ["th", "ing</w>"]
    assert tokenizer.get_vocab()["<|endoftext|>"] == 516
    with pytest.raises(LineupError, match=r"3 merges; a vocabulary of 600 tokens takes 86"):
        vocabulary.build({"kind": "clip-bpe", "vocabulary": 600}, "merges.txt", tmp_path)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join([*VOCABULARY, "##s", "##ing", "!", "'"]) + "\n")
    return tmp_path


def test_wordpiece_decodes_as_bert_does(words: Path) -> None:
    ours = vocabulary.build({"kind": "wordpiece"}, "vocab.txt", words)
    theirs = BertTokenizer.from_pretrained(words)
    for text in ("two red circles on the beach!", "A SMALL green squareing", "unheard of"):
        ids = ours.encode(text).ids
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode([101, 104, 106, 102, 0]) == "a red"


def test_ready_tokenizer_file_is_taken(words: Path) -> None:
    vocabulary.build({"kind": "wordpiece"}, "vocab.txt", words).save(str(words / "tokenizer.json"))
    tokenizer = vocabulary.build({"kind": "wordpiece"}, "tokenizer.json", words)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.decode([104, 106]) == "a red"


@pytest.mark.parametrize(
    ("details", "source", "cure"),
    [
        ({"kind": "sentencepiece"}, None, "wordpiece"),
        ({"kind": "wordpiece"}, None, 'tokenizer = "'),
        ({"kind": "wordpiece", "vocabulary": 50}, "vocab.txt", "trained with"),
        ({"kind": "wordpiece"}, "broken.json", "cannot be used"),
    ],
)
def test_wrong_vocabularies(details: dict, source: str | None, cure: str, words: Path) -> None:
    (words / "broken.json").write_text("{")
    with pytest.raises(LineupError, match=cure):
        vocabulary.build(details, source, words)
