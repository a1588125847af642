"""A captioner's ids back to text."""

from collections.abc import Sequence

from tokenizers import Tokenizer


def detokenize(tokenizer: Tokenizer, ids: Sequence[int], end: int) -> str:
    """The text of `ids` up to the first `end`, without special tokens."""
    ids = list(ids)
    kept = ids[: ids.index(end)] if end in ids else ids
    return tokenizer.decode(kept, skip_special_tokens=True).strip()
