"""The cut vocabularies: the world's words are split as CLIP splits them, and every caption fits."""

import gzip
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Tokenizer

from tercet_export.vocabulary import clip_bpe
from tercet_training import texts
from tercet_training.world import caption, make_gallery, sample_scene

SEEDS = st.integers(0, 2**32)
MERGES = texts.cut_merges(texts.world_words())
CUT, WHOLE = texts.clip_tokenizer(MERGES), SimpleTokenizer()


@cache
def exported_tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "merges.txt")
        file.write_text(MERGES, encoding="utf-8")
        return clip_bpe(file, {"vocabulary": CUT.vocab_size})


def pieces(tokenizer: SimpleTokenizer, text: str) -> list[str]:
    return [tokenizer.decoder[token] for token in tokenizer.encode(text)]


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_captions_are_split_as_clip_splits_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    said = caption(sample_scene(rng), rng=rng)
    assert pieces(CUT, said) == pieces(WHOLE, said)
    assert "".join(pieces(CUT, said)).replace("</w>", " ").strip() == said.replace(",", " ,")


def test_every_word_of_a_modification_is_one_token() -> None:
    for query in make_gallery(3, 400, 160).queries:
        words = query.modification.split()
        assert pieces(CUT, query.modification) == [f"{word}</w>" for word in words]


@given(st.text())
def test_any_text_can_be_encoded(text: str) -> None:
    """256 bytes and their word-final forms come first: nothing is unknown."""
    assert all(0 <= token < CUT.vocab_size for token in CUT.encode(text))


def test_merges_are_clips_in_clips_order_and_format(tmp_path: Path) -> None:
    lines = MERGES.splitlines()
    assert lines[0].startswith('"bpe_simple_vocab_16e6.txt')
    ranks = [WHOLE.bpe_ranks[tuple(line.split())] for line in lines[1:]]
    assert ranks == sorted(ranks)
    assert CUT.vocab_size == 512 + len(lines) - 1 + 2
    file = tmp_path / "merges.txt.gz"
    file.write_bytes(gzip.compress(MERGES.rstrip("\n").encode()))
    assert SimpleTokenizer(bpe_path=str(file)).encoder == CUT.encoder


@settings(max_examples=200, deadline=None)
@given(SEEDS | st.text(st.characters(max_codepoint=0x24F), max_size=60))
def test_the_exported_tokenizer_agrees(drawn: int | str) -> None:
    text = drawn if isinstance(drawn, str) else caption(sample_scene(np.random.default_rng(drawn)))
    assert exported_tokenizer().encode(CUT.clean_fn(text)).ids == CUT.encode(text)


def test_clip_ids_begin_and_end_and_are_padded() -> None:
    ids = texts.encode_for_clip(CUT, ["a red star", "a red star on a beach"])
    assert ids.shape == (2, 8)
    assert ids[:, 0].tolist() == [CUT.sot_token_id] * 2
    assert ids[0, 4] == ids[1, 7] == CUT.eot_token_id
    assert ids[0, 5:].tolist() == [0, 0, 0]


def test_too_long_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="78 tokens"):
        texts.encode_for_clip(CUT, ["star " * 76])


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_the_captioner_can_say_every_usual_caption(seed: int) -> None:
    lines = texts.vocabulary_lines(texts.world_words())
    said = caption(sample_scene(np.random.default_rng(seed)))
    (ids,) = texts.encode_for_git({word: number for number, word in enumerate(lines)}, [said])
    assert ids[0] == texts.START
    assert len(ids) - 1 <= texts.MAX_CAPTION_TOKENS
    assert texts.UNKNOWN not in ids
    assert texts.decode_for_git(lines, ids[1:].tolist()) == said


def test_special_tokens_are_where_bert_has_them() -> None:
    lines = texts.vocabulary_lines(["star"])
    assert lines[:1] + lines[100:] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "star"]
    assert (lines[texts.START], lines[texts.END]) == ("[CLS]", "[SEP]")
    assert len(set(lines)) == len(lines)
