"""The synthetic picture world on disk: composed queries with known answers, by kind of modification.

`tercet-train world FOLDER` writes it:

    queries.json            {"format": "tercet-world", "version": 1, "pictures": N, ..., "queries": [...]}
    images/00000.jpg ...    N pictures, numbered from 0; all of them are the gallery

A query is {"reference": "00017", "modification": "as a pencil sketch", "targets": ["00003", ...],
"kind": "style"}; pictures are named by their number in five digits. Every target is as right as any other.
"""

from pathlib import Path

from tercet.errors import DatasetError
from tercet.evaluation.datasets.files import field, find_files, list_field, read_json
from tercet.evaluation.datasets.order import tie_order
from tercet.evaluation.values import Dataset, Metric, PictureSource, Query, Task

FORMAT = "tercet-world"
VERSION = 1
QUERIES = "queries.json"
IMAGES = "images"
LARGEST = 1_000_000
"""Pictures of a world; more is a mistake."""

PROTOCOL = (
    "The gallery is every picture of the world, the query's reference removed; recall counts a query as "
    "found where any of its targets is."
)
METRICS = (
    *(Metric(f"recall@{k}", "recall_any", k) for k in (1, 5, 10, 50)),
    Metric("mAP@10", "average_precision", 10),
)


def picture_name(number: int) -> str:
    """The name of a picture: its number in five digits."""
    return f"{number:05d}"


def load(root: Path, split: str) -> Dataset:
    """Read the world.

    Raises:
        DatasetError: files are missing or not as documented.
    """
    path = find_files(root, queries=(QUERIES,))["queries"]
    content, where = read_json(path), str(path)
    if field(content, "format", str, where) != FORMAT or field(content, "version", int, where) != VERSION:
        raise DatasetError(
            f"{path} must have the format {FORMAT} {VERSION}; write it with `tercet-train world`"
        )
    count = field(content, "pictures", int, where)
    if not 0 < count <= LARGEST:
        raise DatasetError(f"{where}: field 'pictures' must be from 1 to {LARGEST:,}, not {count}")
    names = [picture_name(number) for number in range(count)]
    pictures = {name: PictureSource(root / IMAGES / f"{name}.jpg") for name in names}
    queries = []
    for number, entry in enumerate(list_field(content, "queries", dict, where)):
        place = f"{path}, queries, entry {number}"
        kind = field(entry, "kind", str, place)
        query = Query(
            name=f"{number:05d}-{kind}",
            reference=field(entry, "reference", str, place),
            modifications=(field(entry, "modification", str, place),),
            targets=tuple(list_field(entry, "targets", str, place)),
            aspects=(kind,),
        )
        if not query.targets:
            raise DatasetError(f"{place} has no targets")
        for name in (query.reference, *query.targets):
            if name not in pictures:
                raise DatasetError(f"{place} speaks of picture {name!r}, which is not there")
        queries.append(query)
    if not queries:
        raise DatasetError(f"{path} has no queries; write it with `tercet-train world`")
    task = Task("world", tie_order(pictures), tuple(queries), exclude_reference=True)
    return Dataset("world", split, PROTOCOL, pictures, (task,), METRICS)
