"""Contact sheets of some queries: a sheet for each kind of modification, and one of failures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tercet.index import GalleryIndex
from tercet.sheet import SheetRow, draw_sheet
from tercet_training.demo.methods import REMOVED, Answers
from tercet_training.world import Gallery

QUERIES_A_SHEET = 4
RESULTS = 5


def draw_examples(
    folder: Path,
    gallery: Gallery,
    paths: Sequence[Path],
    index: GalleryIndex,
    rows: Sequence[int],
    answers: Answers,
    ranks: NDArray[np.int64],
) -> list[Path]:
    """Draw the first queries of each kind, right or wrong, and some that failed; return the sheets' paths.

    Args:
        folder: where the sheets go.
        gallery: the scenes and queries.
        paths: each scene's picture.
        index: the index of these pictures.
        rows: each scene's row in the index.
        answers: what the method made of the queries.
        ranks: rank of the first right answer of each query, by the method.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def row(number: int) -> SheetRow:
        query, composed = gallery.queries[number], answers.removed[number]
        scores, found = index.search(
            answers.embeddings[REMOVED][number : number + 1], RESULTS, exclude=[[rows[query.reference]]]
        )
        return SheetRow(
            results=[
                (index.paths[place], float(score)) for place, score in zip(found[0], scores[0], strict=True)
            ],
            modification=query.modification,
            reference=paths[query.reference],
            foreground=composed.caption.foreground if composed.caption else None,
            caption=composed.composition.caption or "",
            composed=composed.composition.text,
            relevant={index.paths[rows[target]] for target in query.targets},
        )

    choices = {
        f"Change the {kind}" if kind != "addition" else "Add something": [
            number for number, query in enumerate(gallery.queries) if query.kind == kind
        ]
        for kind in sorted({query.kind for query in gallery.queries})
    }
    choices["Queries that failed"] = [int(number) for number in np.flatnonzero(ranks > RESULTS)]
    sheets = []
    for title, numbers in choices.items():
        # Every fifth: neighbours share their reference.
        chosen = numbers[::5][:QUERIES_A_SHEET] or numbers[:QUERIES_A_SHEET]
        if chosen:
            sheets.append(folder / f"{title.lower().replace(' ', '-')}.png")
            draw_sheet([row(number) for number in chosen], sheets[-1], title=title)
    return sheets
