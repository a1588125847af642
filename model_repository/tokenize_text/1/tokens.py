"""A text's tokens for the text encoder of the lineup, as open_clip gives them, but safe for any user's text.

The manifest says how texts are cleaned and framed, so that CLIP's and SigLIP's are the same code.
`<|endoftext|>` or `</s>` in a text are ordinary characters here, never the tokens of that name.
"""

import html
import json
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ftfy
import numpy as np
from tokenizers import Encoding, Tokenizer

# Ten thousand words; a text encoder reads some fifty. The worst texts of this size take half a second.
MAX_BYTES = 128 * 2**10


class TextError(ValueError):
    """The text cannot be used; the message tells whoever sent it why, and what to do."""


def mend(text: str) -> str:
    """What every cleaning begins with: mended encoding, HTML entities (open_clip/tokenizer.py)."""
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def lower(text: str) -> str:
    """CLIP's cleaning: single spaces and lower case."""
    return " ".join(mend(text).split()).lower()


def canonicalize(text: str) -> str:
    """SigLIP's cleaning: no ASCII punctuation, lower case, single spaces."""
    text = mend(text).strip().replace("_", " ").translate(NO_PUNCTUATION)
    return " ".join(text.lower().split())


def whitespace(text: str) -> str:
    """Single spaces."""
    return " ".join(mend(text).split())


NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
CLEANINGS: dict[str, Callable[[str], str]] = {
    "lower": lower,
    "canonicalize": canonicalize,
    "whitespace": whitespace,
}


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one text encoder, and the frame that they are put into.

    The encoder knows `size` ids and reads `length` of them in a row, `start` (None: there is none) and `end`
    included, the rest `pad`. Pseudo-words have `width` numbers and replace the first `placeholder` that is a
    word of its own (None: the encoder takes no pseudo-words).
    """

    encoding: Tokenizer
    clean: Callable[[str], str]
    start: int | None
    end: int
    pad: int
    size: int
    length: int
    width: int
    placeholder: str | None

    def frame(self, ids: Sequence[int]) -> list[int]:
        """The ids of a text between start and end; may be longer than `length`."""
        return [*([] if self.start is None else [self.start]), *ids, self.end]


def load_vocabulary(folder: Path) -> Vocabulary:
    """Read the manifest and the tokenizer that it names from `folder`.

    KeyError where the lineup has no text encoder, ValueError for a cleaning that is not known.
    """
    entry = json.loads((folder / "lineup.json").read_text())["roles"]["clip_text"]
    tokenizer = entry["tokenizer"]
    clean = tokenizer.get("clean", "lower")
    if clean not in CLEANINGS:
        raise ValueError(
            f"lineup.json: texts are cleaned by {clean!r}, known are {', '.join(CLEANINGS)}: export the "
            "lineup again with the tercet-export of this model repository"
        )
    encoding = Tokenizer.from_file(str(folder / tokenizer["file"]))
    encoding.encode_special_tokens = True  # those in a text are the user's characters
    return Vocabulary(
        encoding=encoding,
        clean=CLEANINGS[clean],
        start=tokenizer["start"],
        end=tokenizer["end"],
        pad=tokenizer["pad"],
        size=tokenizer.get("vocabulary", encoding.get_vocab_size()),
        length=entry["context_length"],
        width=entry["token_width"],
        placeholder=tokenizer.get("placeholder", "*"),
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


def tokenize(
    texts: Sequence[bytes], vocabulary: Vocabulary, pseudo_token: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The tensors that `clip_text` takes, and each text's number of tokens before it was cut to `length`.

    `token_ids` i32 [B, T], `pseudo_token` f32 [B, W], `pseudo_index` i32 [B, 1] and `token_count` i32 [B, 1]
    (start and end included). With `pseudo_token` [B, W] the index is the place of the first placeholder that
    is a word of its own; without, the pseudo-token is zero and the index -1. A text may be empty.

    Raises:
        TextError: not UTF-8, too long, a token that the encoder has not; a pseudo-token without a place, of
            another width, or for an encoder that takes none.
    """
    rows, width = len(texts), vocabulary.width
    if pseudo_token is not None and vocabulary.placeholder is None:
        raise TextError(
            "this lineup's text encoder takes no pseudo-words: send the text alone, or serve a lineup with "
            "CLIP and image_to_token"
        )
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
        text = vocabulary.clean(read_text(encoded))
        encoding = vocabulary.encoding.encode(text, add_special_tokens=False)
        ids = vocabulary.frame(encoding.ids)
        if max(ids) >= vocabulary.size:  # would fail every text of the batch
            raise TextError(
                "the text has a mark that its encoder was never taught: leave out what looks like a tag"
            )
        token_count[row] = len(ids)
        if len(ids) > vocabulary.length:
            ids = [*ids[: vocabulary.length - 1], vocabulary.end]
        token_ids[row, : len(ids)] = ids
        if pseudo_token is not None:
            pseudo_index[row] = find_placeholder(text, encoding, vocabulary)
    if pseudo_token is None:
        pseudo_token = np.zeros((rows, width), np.float32)
    return {
        "token_ids": token_ids,
        "pseudo_token": pseudo_token,
        "pseudo_index": pseudo_index,
        "token_count": token_count,
    }


def find_placeholder(text: str, encoding: Encoding, vocabulary: Vocabulary) -> int:
    """The place of the first placeholder among the framed ids; TextError where none is read."""
    mark = vocabulary.placeholder or ""
    found = re.search(rf"(?<!\S){re.escape(mark)}(?!\S)", text)
    if found is None:
        raise TextError(
            f'the text has no place for the pseudo-token: write "{mark}" as a word of its own, spaces '
            f'around it, as in "a photo of {mark} , at night"'
        )
    place: int = encoding.char_to_token(found.start()) + (vocabulary.start is not None)
    if place > vocabulary.length - 2:
        raise TextError(
            f'the "{mark}" is token {place + 1}, and the text encoder reads {vocabulary.length}, its end '
            "included: shorten the text before it"
        )
    return place
