"""Miniatures of the data sets, written once for all tests; read-only."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.evaluation.miniatures import MINIATURES, Miniature


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Miniature]:
    """miniature("cirr") or miniature("cirr", "pic2word"): in that layout; left out, the usual one."""
    written: dict[tuple[str, str], Miniature] = {}

    def of(name: str, layout: str | None = None) -> Miniature:
        layout = layout or next(iter(MINIATURES[name]))
        if (name, layout) not in written:
            folder: Path = tmp_path_factory.mktemp(f"{name}-{layout}")
            written[name, layout] = MINIATURES[name][layout](folder)
        return written[name, layout]

    return of
