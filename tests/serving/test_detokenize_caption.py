"""detokenize_caption: ids to the text that BERT's tokenizer decodes, or that OFA's evaluation does."""

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tercet_export import vocabulary
from tests.serving.python_models import python_model

captions = python_model("detokenize_caption", "captions")

SPEECH = "a dog play ##ing ##s it ' s don t i m do not n , . ! ? - ( ) caf\u00e9 \u72d7 ##e 1"
WORDS = SPEECH.split()
TOKENS = ["[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
END = 102


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the export writes beside the model, and BERT's own vocabulary file."""
    folder = tmp_path_factory.mktemp("detokenize_caption")
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    details = {"kind": "wordpiece", "vocabulary": len(TOKENS), "end": END}
    vocabulary.build(details, "vocab.txt", folder).save(str(folder / "tokenizer.json"))
    manifest = {"roles": {"captioner": {"tokenizer": {**details, "file": "tokenizer.json"}}}}
    (folder / "lineup.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def words(folder: Path) -> Any:
    return captions.load_vocabulary(folder)


def row(text: str, length: int = 20) -> list[int]:
    ids = [TOKENS.index(token) for token in text.split()]
    return ids + [END] * (length - len(ids))


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ("a dog play ##ing", "a dog playing"),
        ("it ' s a dog , not a dog ##s .", "it's a dog, not a dogs."),
        ("caf\u00e9 ##s \u72d7 !", "caf\u00e9s \u72d7!"),
        ("[PAD] a [UNK] dog [MASK]", "a dog"),
        ("", ""),
    ],
)
def test_ids_become_text(ids: str, text: str, words: Any) -> None:
    assert captions.detokenize(np.array([row(ids)]), words) == [text]


def test_what_follows_the_end_is_not_said(words: Any) -> None:
    ids = [[*row("a dog", 3), *row("play", 3)], [*row("dog", 1), *row("a a a a a", 5)]]
    assert captions.detokenize(np.array(ids), words) == ["a dog", "dog a a a a a"]


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(100, len(TOKENS) - 1).filter(lambda token: token != END), max_size=20))
def test_any_ids_become_what_bert_decodes(ids: list[int], words: Any, folder: Path) -> None:
    bert = official(folder)
    padded = np.array([[*ids, *[END] * (21 - len(ids))]])
    assert captions.detokenize(padded, words) == [
        bert.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)
    ]


OFFICIAL: dict[Path, BertTokenizer] = {}


def official(folder: Path) -> BertTokenizer:
    if folder not in OFFICIAL:
        OFFICIAL[folder] = BertTokenizer(str(folder / "vocab.txt"))
    return OFFICIAL[folder]


OFA_WORDS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<bin_7>", "<code_12>", *bytes_to_unicode().values()]
OFA_WORDS += ["\u0120dog", "\u0120cat", "'s", "\u00e7\u012d", "\u0120\u0120", "ing"]


@pytest.fixture(scope="module")
def ofa(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("ofa")
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(OFA_WORDS)}))
    details = {"kind": "ofa-bpe", "vocabulary": len(OFA_WORDS), "end": 2}
    vocabulary.build(details, "vocab.json", folder).save(str(folder / "tokenizer.json"))
    manifest = {"roles": {"captioner": {"tokenizer": {**details, "file": "tokenizer.json"}}}}
    (folder / "lineup.json").write_text(json.dumps(manifest))
    return captions.load_vocabulary(folder)


def ofa_evaluation(ids: list[int]) -> str:
    """As OFA's eval_caption: fairseq's symbols but start and end, GPT-2's bytes, no punctuation."""
    as_byte = {character: byte for byte, character in bytes_to_unicode().items()}
    symbols = "".join(OFA_WORDS[token] for token in ids if token not in (0, 2))
    text = bytearray(as_byte[character] for character in symbols).decode("utf-8", errors="replace")
    return text.translate(str.maketrans(dict.fromkeys(string.punctuation))).strip()


def test_ofa_captions_as_evaluated(ofa: Any) -> None:
    said = ["\u0120dog", "'s", ",", "\u0120cat", "<bin_7>", "<unk>", ".", "\u0120\u0120"]
    ids = [[*(OFA_WORDS.index(word) for word in said), 2, 2]]
    assert captions.detokenize(np.array(ids), ofa) == ["dogs catbin7unk"]


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.sampled_from([0, *range(3, len(OFA_WORDS))]), max_size=16))
def test_any_ids_become_what_ofa_evaluates(ids: list[int], ofa: Any) -> None:
    padded = np.array([[*ids, *[2] * (17 - len(ids))]])
    assert captions.detokenize(padded, ofa) == [ofa_evaluation(ids)]
