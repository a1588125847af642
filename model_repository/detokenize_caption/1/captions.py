"""A captioner's token ids as text, as the official decoding gives it."""

import json
import string
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

# Spaces that BERT's words leave around punctuation, taken out in this order (`clean_up_tokenization` in
# transformers, on by default when GIT and mPLUG were published): "it ' s" is "it's".
TIGHTENED = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)

REPLACED = {
    "wordpiece": TIGHTENED,
    # OFA's evaluation takes out all punctuation (utils/eval_utils.py, eval_caption).
    "ofa-bpe": tuple((mark, "") for mark in string.punctuation),
}


@dataclass(frozen=True)
class Vocabulary:
    """The words of one captioner, the id that ends a caption, and what to mend in the text at last."""

    words: Tokenizer
    end: int
    replaced: tuple[tuple[str, str], ...]
    stripped: bool


def load_vocabulary(folder: Path) -> Vocabulary:
    """Read the manifest and the tokenizer that it names from `folder`."""
    tokenizer = json.loads((folder / "lineup.json").read_text())["roles"]["captioner"]["tokenizer"]
    return Vocabulary(
        words=Tokenizer.from_file(str(folder / tokenizer["file"])),
        end=tokenizer["end"],
        replaced=REPLACED.get(tokenizer["kind"], ()),
        stripped=tokenizer["kind"] == "ofa-bpe",
    )


def detokenize(token_ids: Iterable[np.ndarray], vocabulary: Vocabulary) -> list[str]:
    """The text of each caption [B, L]: what stands before its first end token, without special tokens."""
    texts = []
    for row in token_ids:
        text = vocabulary.words.decode(caption(row, vocabulary.end), skip_special_tokens=True)
        for old, new in vocabulary.replaced:
            text = text.replace(old, new)
        texts.append(text.strip() if vocabulary.stripped else text)
    return texts


def caption(ids: np.ndarray, end: int) -> list[int]:
    """The ids of one row [L] up to its end token."""
    ended = np.flatnonzero(ids == end)
    return ids[: ended[0] if len(ended) else None].tolist()
