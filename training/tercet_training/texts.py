"""The demo's vocabularies: CLIP's byte pairs and BERT's word pieces, cut to the words of the world."""

import gzip
import re
import tempfile
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer, default_bpe

from tercet_training.world.vocabulary import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, SIZES, STYLES

# What captions, templates and people say besides the world's own words.
OTHER_WORDS = (
    "a an and of in on at with next to beside as but that the same it is now photo picture image instead of"
)

# BERT's ids of its special tokens; the words follow.
PAD, UNKNOWN, START, END, MASK = 0, 100, 101, 102, 103
MAX_CAPTION_TOKENS = 24  # the longest usual caption and its end token


def world_words() -> list[str]:
    """Every word that captions and modifications are made of, in alphabetical order, punctuation last."""
    phrases = [
        *COLOURS,
        *SHAPES,
        *(word for words in PATTERNS.values() if words for word in words),
        *(word for _, words in SIZES.values() for word in words),
        *(phrase for phrases in BACKGROUNDS.values() for phrase in phrases),
        *STYLES.values(),
        OTHER_WORDS,
    ]
    return [*sorted(set(re.findall(r"[a-z]+", " ".join(phrases)))), ","]


def cut_merges(words: Iterable[str]) -> str:
    """CLIP's merges that these words need, in CLIP's order and file format: a header, then a pair a line.

    The cut tokenizer splits these words exactly as CLIP's does: a merge that CLIP's would apply is kept, and
    one that is left out never came first. Ids: 256 bytes, 256 bytes that end a word, the merges, start, end.
    """
    clip = SimpleTokenizer()
    wanted = {pair for word in words for pair in merges_on_the_way(clip, word)}
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        header, *lines = file.read().split("\n")[: 49152 - 256 - 2 + 1]
    return "\n".join([header, *(line for line in lines if tuple(line.split()) in wanted)]) + "\n"


def merges_on_the_way(tokenizer: SimpleTokenizer, word: str) -> set[tuple[str, str]]:
    """The merges that byte-pair encoding applies to a lower-case ASCII word."""
    parts = [*word[:-1], word[-1] + "</w>"]
    applied: set[tuple[str, str]] = set()
    while len(parts) > 1:
        pairs = list(pairwise(parts))
        best = min(pairs, key=lambda pair: tokenizer.bpe_ranks.get(pair, float("inf")))
        if best not in tokenizer.bpe_ranks:
            break
        merged: list[str] = []
        for part in parts:
            if merged and (merged[-1], part) == best:
                merged[-1] += part
            else:
                merged.append(part)
        parts = merged
        applied.add(best)
    return applied


def clip_tokenizer(merges: str) -> SimpleTokenizer:
    """open_clip's own tokenizer over the text of a merges file."""
    with tempfile.NamedTemporaryFile(suffix=".txt.gz") as file:
        # An empty last line would become a token of its own.
        file.write(gzip.compress(merges.rstrip("\n").encode()))
        file.flush()
        return SimpleTokenizer(bpe_path=file.name)


def encode_for_clip(tokenizer: SimpleTokenizer, texts: Sequence[str]) -> NDArray[np.int64]:
    """Ids with start and end, padded with 0 to the longest text: (B, T), T at most the context length."""
    rows = [[tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id] for text in texts]
    length = max(len(row) for row in rows)
    if length > (tokenizer.context_length or 77):
        raise ValueError(f"a text of {length} tokens is longer than the context")
    ids = np.zeros((len(rows), length), np.int64)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    return ids


def vocabulary_lines(words: Iterable[str]) -> list[str]:
    """The lines of `vocab.txt`: BERT's special tokens where BERT has them, then the words."""
    lines = ["[PAD]", *(f"[unused{n}]" for n in range(UNKNOWN - 1)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return [*lines, *words]


def encode_for_git(vocabulary: dict[str, int], texts: Sequence[str]) -> NDArray[np.int64]:
    """Ids with start and end, padded with 0 to the longest text: (B, T)."""
    rows = [[START, *(vocabulary[word] for word in re.findall(r"[a-z]+|,", text)), END] for text in texts]
    ids = np.full((len(rows), max(len(row) for row in rows)), PAD, np.int64)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    return ids


def decode_for_git(lines: Sequence[str], ids: Iterable[int]) -> str:
    """The words before the end token."""
    words: list[str] = []
    for token in ids:
        if token == END:
            break
        words.append(lines[token])
    return " ".join(words).replace(" ,", ",")
