"""A captioner's token ids as text, as the official decoding gives it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """The words of one captioner, and the id that ends a caption."""

    words: Tokenizer
    end: int


def load_vocabulary(folder: Path) -> Vocabulary:
    """Read the manifest and the tokenizer that it names from `folder`."""
    tokenizer = json.loads((folder / "lineup.json").read_text())["roles"]["captioner"]["tokenizer"]
    return Vocabulary(Tokenizer.from_file(str(folder / tokenizer["file"])), tokenizer["end"])


def detokenize(token_ids: Iterable[np.ndarray], vocabulary: Vocabulary) -> list[str]:
    """The text of each caption [B, L]: what stands before its first end token, without special tokens."""
    return [
        vocabulary.words.decode(caption(row, vocabulary.end), skip_special_tokens=True) for row in token_ids
    ]


def caption(ids: np.ndarray, end: int) -> list[int]:
    """The ids of one row [L] up to its end token."""
    ended = np.flatnonzero(ids == end)
    return ids[: ended[0] if len(ended) else None].tolist()
