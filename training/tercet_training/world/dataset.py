"""Writing a gallery of the world to disk, as `tercet.evaluation.datasets.world` reads it."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from tercet.errors import InputError
from tercet.evaluation.datasets.world import FORMAT, IMAGES, QUERIES, VERSION, picture_name
from tercet_training.world.queries import Gallery
from tercet_training.world.rendering import render

QUALITY = 92
"""Of the JPEG files."""

SIZE = 128
"""Pixels on a side."""


def write_world(
    folder: Path,
    gallery: Gallery,
    origin: Mapping[str, object] | None = None,
    size: int = SIZE,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Render a gallery and its queries into `folder`; pictures that an earlier, killed run wrote are kept.

    `origin` is written down with the queries: how the gallery was made. The queries are written first, so
    that a folder with another gallery's pictures is noticed.

    Raises:
        InputError: the folder has another world.
    """
    content = describe(gallery, origin, size)
    queries = folder / QUERIES
    if queries.exists() and queries.read_text(encoding="utf-8") != content:
        raise InputError(
            f"{folder} has another world; give an empty folder, or delete {queries} and {IMAGES}/"
        )
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    _write(queries, content.encode())
    total = len(gallery.scenes)
    for number, scene in enumerate(gallery.scenes):
        path = folder / IMAGES / f"{picture_name(number)}.jpg"
        if not path.exists():
            file = io.BytesIO()
            render(scene, size).save(file, format="JPEG", quality=QUALITY)
            _write(path, file.getvalue())
        on_progress(number + 1, total)


def describe(gallery: Gallery, origin: Mapping[str, object] | None = None, size: int = SIZE) -> str:
    """The content of queries.json."""
    queries = [
        {
            "reference": picture_name(query.reference),
            "modification": query.modification,
            "targets": [picture_name(target) for target in sorted(query.targets)],
            "kind": query.kind,
        }
        for query in gallery.queries
    ]
    content = {
        "format": FORMAT,
        "version": VERSION,
        "origin": dict(origin or {}),
        "size": size,
        "pictures": len(gallery.scenes),
        "queries": queries,
    }
    return json.dumps(content, indent=1) + "\n"


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f"{path.name}.partial")
    unfinished.write_bytes(content)
    unfinished.replace(path)
