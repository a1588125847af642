"""CIRR (Liu et al., 2021): real-life pictures in groups of six alike, one modification each.

Protocol of the official server (Cuberick-Orion/CIRR, Test-split_server.md) and of miccunifi/SEARLE,
src/validate.py: all pictures of the split are ranked, and the reference is removed; the subset recall keeps
of that ranking the other five of the query's group.
"""

from pathlib import Path

from tercet.errors import DatasetError
from tercet.evaluation.datasets.files import (
    field,
    find_files,
    first_folder,
    inside,
    list_field,
    read_json,
    read_list,
)
from tercet.evaluation.datasets.order import tie_order
from tercet.evaluation.values import Dataset, Metric, PictureSource, Query, Task

PROTOCOL = (
    "The gallery is every picture of the split, the query's reference removed; recall counts the one target "
    "(target_hard). The subset recall ranks the other five of the query's group of six."
)
METRICS = (
    *(Metric(f"recall@{k}", "recall", k) for k in (1, 5, 10, 50)),
    *(Metric(f"recall_subset@{k}", "subset_recall", k) for k in (1, 2, 3)),
)
BASES = ("cirr/", "CIRR/", "")


def load(root: Path, split: str) -> Dataset:
    """Read the split; the names of queries are their pair ids.

    Raises:
        DatasetError: files are missing or not as published.
    """
    found = find_files(
        root,
        captions=tuple(f"{base}captions/cap.rc2.{split}.json" for base in BASES),
        splits=tuple(f"{base}image_splits/split.rc2.{split}.json" for base in BASES),
    )
    pictures = _pictures(root, found["splits"])
    queries = tuple(
        _query(entry, pictures, split, f"{found['captions']}, entry {number}")
        for number, entry in enumerate(read_list(found["captions"]))
    )
    if len({query.name for query in queries}) != len(queries):
        raise DatasetError(f"{found['captions']}: a pairid occurs more than once; download the file again")
    task = Task("cirr", tie_order(pictures), queries, exclude_reference=True)
    return Dataset("cirr", split, PROTOCOL, pictures, (task,), METRICS)


def _pictures(root: Path, splits: Path) -> dict[str, PictureSource]:
    """The pictures of the split: beside `cirr/` in SEARLE's layout, inside of it in Pic2Word's."""
    places = read_json(splits)
    if not isinstance(places, dict) or not places:
        raise DatasetError(f"{splits} must be an object of names and files; download it again")
    base = splits.parent.parent
    pictures: dict[str, PictureSource] = {}
    homes: dict[str, Path] = {}
    for name in places:
        where = f"{splits}, entry {name!r}"
        relative = inside(Path(), field(places, name, str, where), where)
        top = relative.parts[0]
        if top not in homes:
            homes[top] = first_folder(root / top, base / top).parent
        pictures[name] = PictureSource(homes[top] / relative)
    return pictures


def _query(entry: object, pictures: dict[str, PictureSource], split: str, where: str) -> Query:
    reference = field(entry, "reference", str, where)
    members = list_field(field(entry, "img_set", dict, where), "members", str, f"{where}, img_set")
    target = None if split == "test1" else field(entry, "target_hard", str, where)
    for name in (reference, *members, *([] if target is None else [target])):
        if name not in pictures:
            raise DatasetError(f"{where} speaks of {name!r}, which the list of pictures does not have")
    subset = tie_order(name for name in members if name != reference)
    if reference not in members or len(subset) != 5 or (target is not None and target not in subset):
        raise DatasetError(
            f"{where}: img_set.members must be six pictures, with the reference and the target among them, "
            f"not {members}"
        )
    return Query(
        name=str(field(entry, "pairid", int, where)),
        reference=reference,
        modifications=(field(entry, "caption", str, where),),
        targets=() if target is None else (target,),
        subset=subset,
    )
