"""CLIP's tokens of a text, as `open_clip.tokenize` gives them, but safe for any user's text.

`<|endoftext|>` and `<|startoftext|>` in a text are ordinary characters here, never the tokens of that name.
"""

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ftfy
import numpy as np
from tokenizers import Encoding, Tokenizer

# Ten thousand words; a text encoder reads some fifty. The worst texts of this size take half a second.
MAX_BYTES = 128 * 2**10

# Where a pseudo-word goes: `*` as a word of its own. Pic2Word's training used the same.
PLACEHOLDER = re.compile(r"(?<!\S)\*(?!\S)")


class TextError(ValueError):
    """The text cannot be used; the message tells whoever sent it why, and what to do."""


@dataclass(frozen=True)
class Vocabulary:
    """The byte-pair encoding of one text encoder, and the frame its tokens are put into.

    `length` tokens in a row, `start` and `end` included; pseudo-words have `width` numbers.
    """

    encoding: Tokenizer
    start: int
    end: int
    pad: int
    length: int
    width: int


def load_vocabulary(folder: Path) -> Vocabulary:
    """Read the manifest and the tokenizer that it names from `folder`."""
    entry = json.loads((folder / "lineup.json").read_text())["roles"]["clip_text"]
    tokenizer = entry["tokenizer"]
    if tokenizer["kind"] != "clip-bpe":
        raise ValueError(f"lineup.json: a tokenizer of kind {tokenizer['kind']!r} is not supported")
    return Vocabulary(
        encoding=Tokenizer.from_file(str(folder / tokenizer["file"])),
        start=tokenizer["start"],
        end=tokenizer["end"],
        pad=tokenizer["pad"],
        length=entry["context_length"],
        width=entry["token_width"],
    )


def read_text(encoded: bytes) -> str:
    """Decode UTF-8; TextError where it is not, or is far longer than any text encoder reads."""
    if len(encoded) > MAX_BYTES:
        raise TextError(
            f"the text's {len(encoded) / 2**10:.0f} KiB are over the limit of {MAX_BYTES // 2**10} KiB: "
            "shorten it"
        )
    try:
        return encoded.decode()
    except UnicodeDecodeError as error:
        raise TextError(
            f"the text is not UTF-8 (byte {error.start} is 0x{encoded[error.start]:02X}): encode it as UTF-8"
        ) from None


def clean(text: str) -> str:
    """CLIP's cleaning: mended encoding, HTML entities, single spaces, lower case (open_clip/tokenizer.py)."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def tokenize(
    texts: Sequence[bytes], vocabulary: Vocabulary, pseudo_token: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The tensors that `clip_text` takes, and each text's number of tokens before it was cut to `length`.

    `token_ids` i32 [B, T], `pseudo_token` f32 [B, W], `pseudo_index` i32 [B, 1] and `token_count` i32 [B, 1]
    (start and end included). With `pseudo_token` [B, W] the index is the place of the first `*` that is a
    word of its own; without, the pseudo-token is zero and the index -1. A text may be empty.

    Raises:
        TextError: not UTF-8, too long, no place for the pseudo-token, or one of another width.
    """
    rows, width = len(texts), vocabulary.width
    if pseudo_token is not None and pseudo_token.shape != (rows, width):
        raise TextError(
            f"pseudo_token has shape {list(pseudo_token.shape)}, this text encoder takes {[rows, width]}: "
            "use the pseudo-words of the same lineup"
        )
    if pseudo_token is not None and not np.isfinite(pseudo_token).all():
        raise TextError("pseudo_token has values that are not finite: use what image_token returned")
    token_ids = np.full((rows, vocabulary.length), vocabulary.pad, np.int32)
    pseudo_index = np.full((rows, 1), -1, np.int32)
    token_count = np.zeros((rows, 1), np.int32)
    for row, encoded in enumerate(texts):
        text = clean(read_text(encoded))
        encoding = vocabulary.encoding.encode(text, add_special_tokens=False)
        ids = [vocabulary.start, *encoding.ids, vocabulary.end]
        token_count[row] = len(ids)
        if len(ids) > vocabulary.length:
            ids = [*ids[: vocabulary.length - 1], vocabulary.end]
        token_ids[row, : len(ids)] = ids
        if pseudo_token is not None:
            pseudo_index[row] = find_placeholder(text, encoding, vocabulary.length)
    if pseudo_token is None:
        pseudo_token = np.zeros((rows, width), np.float32)
    return {
        "token_ids": token_ids,
        "pseudo_token": pseudo_token,
        "pseudo_index": pseudo_index,
        "token_count": token_count,
    }


def find_placeholder(text: str, encoding: Encoding, length: int) -> int:
    """The place of the first `*` among the ids, start included; TextError where none is read."""
    found = PLACEHOLDER.search(text)
    if found is None:
        raise TextError(
            'the text has no place for the pseudo-token: write "*" as a word of its own, spaces around it, '
            'as in "a photo of * , at night"'
        )
    place: int = encoding.char_to_token(found.start()) + 1
    if place > length - 2:
        raise TextError(
            f'the "*" is token {place + 1}, and the text encoder reads {length}, its end included: '
            "shorten the text before it"
        )
    return place
