"""Texts to CLIP's token ids, with the text cleaned as open_clip does it."""

import html
from dataclasses import dataclass

import ftfy
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

# A text of more is refused: nobody means it, and cleaning it takes the time of a thousand queries.
MOST_BYTES = 256 * 1024
PLACEHOLDER = "*</w>"


class TextError(ValueError):
    """The text cannot be used; the message says why."""


@dataclass(frozen=True)
class Tokens:
    """Ids i32 [T] of a text, the placeholder's position (-1: none), and the count before the cut."""

    ids: NDArray[np.int32]
    placeholder: int
    count: int


@dataclass(frozen=True)
class Vocabulary:
    """CLIP's byte-pair encoding as the lineup's export wrote it."""

    tokenizer: Tokenizer
    context_length: int
    start: int
    end: int
    pad: int

    def tokenize(self, content: bytes, *, placeholder: bool = False) -> Tokens:
        """Tokenize one UTF-8 text; what is too long loses its end, never the end token.

        What looks like a special token in the text is read as ordinary characters: the tokenizer knows none.

        Args:
            content: the text.
            placeholder: find the first `*` that is a word of its own.

        Raises:
            TextError: not UTF-8, too large, or no placeholder where one is needed.
        """
        ids = self.tokenizer.encode(clean(content), add_special_tokens=False).ids
        kept = ids[: self.context_length - 2]
        position = -1
        if placeholder:
            star = self.tokenizer.token_to_id(PLACEHOLDER)
            if star not in kept:
                raise TextError(
                    "a pseudo-token came with a text without a place for it: write a `*` that stands alone, "
                    f'as in "a photo of * , in blue", among the first {self.context_length - 2} tokens'
                )
            position = kept.index(star) + 1
        row = np.full(self.context_length, self.pad, np.int32)
        row[: len(kept) + 2] = [self.start, *kept, self.end]
        return Tokens(row, position, len(ids) + 2)


def clean(content: bytes) -> str:
    """As open_clip's tokenizer: mended Unicode, HTML entities resolved twice, single spaces, lower case."""
    if len(content) > MOST_BYTES:
        raise TextError(f"the text has {len(content):,} bytes; at most {MOST_BYTES:,} are taken: shorten it")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"the text is not UTF-8 ({error}): encode it as such") from error
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return " ".join(text.split()).strip().lower()
