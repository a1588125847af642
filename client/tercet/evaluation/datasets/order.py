"""The order of candidates, which breaks ties: by a hash, so that it cannot tell the answers.

Official files often list the answer first, or the pictures of one subject side by side; with equal scores,
such an order would give recall for nothing (GeneCIS's own evaluator puts the target at index 0).
"""

import hashlib
from collections.abc import Iterable

__all__ = ["tie_order"]


def tie_order(names: Iterable[str], salt: str = "") -> tuple[str, ...]:
    """The names, each once, by the SHA-256 of `salt` and name.

    `salt` is the name of a query that has its own candidates: each of these is ordered anew.
    """
    return tuple(
        sorted(dict.fromkeys(names), key=lambda name: hashlib.sha256(f"{salt}\0{name}".encode()).digest())
    )
