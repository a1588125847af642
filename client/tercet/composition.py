"""Fusing the reference's caption with the user's modification into one text that CLIP's encoder reads whole.

CLIP reads 77 tokens, start and end included, and a longer text would lose its end: the modification. So the
caption gives way instead, word by word from its own end, and the `Composition` says so.
"""

import html
import re
import unicodedata
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tercet.errors import TextError

__all__ = [
    "CONTEXT_LENGTH",
    "DEFAULT_TEMPLATE",
    "TEMPLATES",
    "Composition",
    "check_text",
    "compose",
    "composing",
    "needs_pseudo_token",
    "read_template",
    "token_bound",
]

CONTEXT_LENGTH = 77
"""Tokens that CLIP's text encoders read, the start and end tokens included."""

DEFAULT_TEMPLATE = "caption-modification"

TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        # Training-free baselines of composed retrieval: caption and modification side by side.
        "caption-modification": "{caption}, {modification}",
        "caption-that": "{caption} that {modification}",
        "caption-but": "{caption}, but {modification}",
        "photo": "a photo of {caption}, {modification}",
        "photo-that": "a photo of {caption} that {modification}",
        "modification-caption": "{modification}, {caption}",
        # The text-only baseline.
        "modification": "{modification}",
        # The picture as one pseudo-word, no caption: Pic2Word (Saito et al., 2023), SEARLE (Baldrati et al.,
        # 2023), LinCIR (Gu et al., 2024), which asks as SEARLE does. The spaces around * matter: CLIP's
        # tokenizer reads "*," as one piece.
        "pic2word": "a photo of * , {modification}",
        "searle": "a photo of * that {modification}",
        "lincir": "a photo of * that {modification}",
        # Both: the pseudo-word shows what the caption does not say.
        "caption-pic2word": "a photo of * , {caption}, {modification}",
    }
)
"""Ways to fuse caption and modification, by name; a template of your own is given as its text instead."""

_FIELD = re.compile(r"\{([^{}]*)\}")
_PSEUDO_WORD = re.compile(r"(?<!\S)\*(?!\S)")


@dataclass(frozen=True)
class Composition:
    """A text to embed, and what it was made of; the text is empty where a query embeds none.

    `caption` is the part of the caption that is in `text`: all of it unless `caption_cut`.
    """

    text: str
    caption: str
    modification: str
    template: str
    caption_cut: bool


def needs_pseudo_token(template: str) -> bool:
    """Whether `template` (a name or a text) holds Pic2Word's placeholder, `*` as a word of its own."""
    return _PSEUDO_WORD.search(_FIELD.sub("x", read_template(template))) is not None


def read_template(template: str) -> str:
    """Return the text of `template`: a name from `TEMPLATES`, or a text with `{modification}`, `{caption}`.

    The placeholder `*` may come before or after the fields ("a {modification} of *"). The server takes the
    first one in the text, so what is filled in before it may hold none: see `composing`.

    Raises:
        TextError: unknown name, missing, repeated or unknown field, a stray brace, more than one `*`.
    """
    text = TEMPLATES.get(template, template)
    fields = _FIELD.findall(text)
    if "modification" not in fields:
        raise TextError(
            f"template {template!r} is neither one of {', '.join(TEMPLATES)} nor a text with {{modification}}"
        )
    if len(set(fields)) != len(fields) or not {"caption", "modification"}.issuperset(fields):
        raise TextError(
            f"template {template!r} may hold {{modification}} and {{caption}}, once each, and nothing else"
        )
    if re.search(r"[{}]", _FIELD.sub("", text)):
        raise TextError(f"template {template!r} has a brace that belongs to no field; remove it")
    check_text(text)
    if len(_PSEUDO_WORD.findall(_FIELD.sub("x", text))) > 1:
        raise TextError(f"template {template!r} may hold one * as a word of its own, not several")
    return text


def check_text(text: str, name: str = "text") -> str:
    """Return `text` if it can be sent.

    Raises:
        TextError: not a string, empty or blank, or with a lone surrogate, which UTF-8 cannot carry.
    """
    if not isinstance(text, str):
        raise TextError(f"{name} is {type(text).__name__}, not a string")
    if not text.strip():
        raise TextError(f"{name} is empty; say what to look for")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(
            f"{name} has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}; "
            "it was decoded wrongly: decode the bytes as the encoding they are in"
        ) from None
    return text


def token_bound(text: str) -> int | None:
    """The most tokens, start and end included, that `text` can have; None where only the tokenizer can tell.

    A token covers at least one byte, but after a cleaning that may lengthen text: Unicode normalisation,
    lower case (`İ`), HTML entities (`&nGt;`). None of these lengthens ASCII without `&`.
    """
    return len(text) + 2 if text.isascii() and "&" not in text else None


def compose(
    caption: str,
    modification: str,
    *,
    count_tokens: Callable[[list[str]], Sequence[int]],
    template: str = DEFAULT_TEMPLATE,
    limit: int = CONTEXT_LENGTH,
) -> Composition:
    """Fuse `caption` and `modification` into one text of at most `limit` tokens, the modification whole.

    Both are inserted as they are: braces, `*` or `<|endoftext|>` in them mean nothing. The caption is cut
    from its end where the whole does not fit; without any caption left the text is the modification alone,
    or Pic2Word's prompt where the template holds `*`.

    One exception: where a template's `*` follows a field, a `*` that is a word of its own in that field
    would be taken for it. In a caption it is left out; a modification that has one is refused.

    Args:
        caption: what the captioner says of the reference; may be empty.
        modification: the user's text.
        count_tokens: tokens of each text, start and end included, such as `Client.token_counts`. Not
            called where a cheap bound shows that the text fits.
        template: a name from `TEMPLATES` or a template's text.
        limit: the text encoder's context length in tokens, start and end included.

    Raises:
        TextError: the modification is empty, does not fit even alone, or has a `*` where the template's own
            must be the first; the template is not valid.
    """
    steps = composing(caption, modification, template=template, limit=limit)
    try:
        texts = next(steps)
        while True:
            texts = steps.send(count_tokens(texts))
    except StopIteration as done:
        return done.value


def composing(
    caption: str, modification: str, *, template: str = DEFAULT_TEMPLATE, limit: int = CONTEXT_LENGTH
) -> Generator[list[str], Sequence[int], Composition]:
    """`compose` as a generator that yields texts and is sent their token counts."""
    template_text = read_template(template)
    pseudo_word = needs_pseudo_token(template)
    modification = check_text(modification, "modification").strip()
    if pseudo_word:
        before = _fields_before_pseudo_word(template_text)
        if "modification" in before and _reads_as_pseudo_word(modification):
            raise TextError(
                f"the modification has a * of its own, which template {template!r} would take for the "
                "picture; write it in words, such as star, or use a template that begins with *"
            )
        if "caption" in before and _reads_as_pseudo_word(caption):
            caption = " ".join(word for word in caption.split() if not _reads_as_pseudo_word(word))
    words = [(word.start(), word.end()) for word in re.finditer(r"\S+", caption)]
    if words:
        check_text(caption, "caption")

    def composition(kept: int) -> Composition:
        part = caption[words[0][0] : words[kept - 1][1]] if kept else ""
        if "{caption}" in template_text and not kept:
            alone = TEMPLATES["pic2word"] if pseudo_word else "{modification}"
            text = _fill(alone, {"modification": modification})
        else:
            text = _fill(template_text, {"caption": part, "modification": modification})
        return Composition(text, part, modification, template, caption_cut=kept < len(words))

    if "{caption}" not in template_text:
        words = []
    whole = composition(len(words))
    bound = token_bound(whole.text)
    if bound is not None and bound <= limit:
        return whole
    (count,) = yield [whole.text]
    if count <= limit:
        return whole
    (count,) = yield [composition(0).text]
    if count > limit:
        alone = "{caption}" in template_text and not pseudo_word
        what = "the modification alone" if alone else "the modification in its template"
        raise TextError(
            f"{what} has {count} tokens, start and end included; the text encoder reads {limit}: "
            f"shorten it by about {count - limit} tokens"
        )
    fits, too_long = 0, len(words)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        (count,) = yield [composition(middle).text]
        fits, too_long = (middle, too_long) if count <= limit else (fits, middle)
    return composition(fits)


def _fields_before_pseudo_word(template_text: str) -> set[str]:
    filled = _FIELD.sub(lambda field: "x" * len(field[0]), template_text)
    word = _PSEUDO_WORD.search(filled)
    end = word.start() if word else 0
    return {field[1] for field in _FIELD.finditer(template_text) if field.start() < end}


def _reads_as_pseudo_word(text: str) -> bool:
    # As the tokenizers clean text: HTML entities, twice, and full-width characters.
    plain = unicodedata.normalize("NFKC", html.unescape(html.unescape(text)))
    return _PSEUDO_WORD.search(plain) is not None


def _fill(template_text: str, values: Mapping[str, str]) -> str:
    # One pass over the template alone, so that nothing inserted is read as a field.
    return _FIELD.sub(lambda field: values[field[1]], template_text)
