"""FashionIQ (Wu et al., 2021): clothes of a shop, two captions say how the target differs.

Protocol of XiaoxiaoGuo/fashion-iq and miccunifi/SEARLE, src/validate.py: validation split, a gallery for each
category, the reference stays in it. Two galleries are in use and must not be mixed: the pictures of the split
file ("original"), or only those that queries speak of ("val"), which is smaller and inflates the numbers. A
picture that a split file repeats is in the gallery once.
"""

from collections.abc import Iterable
from pathlib import Path

from tercet.errors import DatasetError
from tercet.evaluation.datasets.files import (
    Folders,
    field,
    find_files,
    first_folder,
    inside,
    list_field,
    read_list,
)
from tercet.evaluation.datasets.order import tie_order
from tercet.evaluation.values import Dataset, Metric, PictureSource, Query, Task

CATEGORIES = ("dress", "shirt", "toptee")
GALLERIES = {
    "original": "The gallery of a category is every picture of its split file",
    "val": "The gallery of a category is the union of the references and targets of its queries (the VAL "
    "split: smaller than the original and not comparable with it)",
}
METRICS = tuple(Metric(f"recall@{k}", "recall", k) for k in (10, 50))
BASES = ("", "fashion-iq/", "FashionIQ/", "fashionIQ_dataset/")
SUFFIXES = (".png", ".jpg")
STRIPPED = ".?, "
"""What is taken off both ends of a caption, as SEARLE does."""


def load(root: Path, split: str, protocol: str) -> Dataset:
    """Read the three categories.

    Raises:
        DatasetError: files are missing or not as published.
    """
    wanted = {
        f"captions_{category}": tuple(
            f"{base}{folder}/cap.{category}.{split}.json" for base in BASES for folder in ("captions", "json")
        )
        for category in CATEGORIES
    } | {
        f"splits_{category}": tuple(f"{base}image_splits/split.{category}.{split}.json" for base in BASES)
        for category in CATEGORIES
    }
    found = find_files(root, **wanted)
    folders = Folders()
    pictures: dict[str, PictureSource] = {}
    tasks = []
    for category in CATEGORIES:
        captions, splits = found[f"captions_{category}"], found[f"splits_{category}"]
        images = first_folder(splits.parent.parent / "images", root / "images")
        queries = tuple(
            _query(entry, f"{category}-{number:04d}", category, f"{captions}, entry {number}")
            for number, entry in enumerate(read_list(captions))
        )
        spoken_of = [name for query in queries for name in (query.reference, *query.targets)]
        gallery = _split_file(splits) if protocol == "original" else spoken_of
        pictures |= _pictures(images, dict.fromkeys([*gallery, *spoken_of]), folders, splits)
        listed = set(gallery)
        for query in queries:
            if query.targets[0] not in listed:
                raise DatasetError(
                    f"query {query.name}: {splits} does not have its target {query.targets[0]!r}"
                )
        tasks.append(Task(category, tie_order(gallery), queries))
    words = (
        f"{GALLERIES[protocol]}, the reference included; both orders of the two captions are embedded and "
        "averaged; numbers are the plain mean over dress, shirt and toptee."
    )
    return Dataset("fashioniq", split, words, pictures, tuple(tasks), METRICS)


def _pictures(images: Path, names: Iterable[str], folders: Folders, where: Path) -> dict[str, PictureSource]:
    """The file of every name, with the suffix that the folder's pictures have."""
    paths: dict[str, dict[str, Path]] = {suffix: {} for suffix in SUFFIXES}
    for name in names:
        if len(Path(name).parts) != 1:
            raise DatasetError(f"{where} or its captions name {name!r}, which is no file name")
        for suffix in SUFFIXES:
            paths[suffix][name] = inside(images, f"{name}{suffix}", str(where))
    usual, other = sorted(paths.values(), key=lambda files: -sum(map(folders.has, files.values())))
    return {name: PictureSource(folders.first(path, other[name])) for name, path in usual.items()}


def _split_file(path: Path) -> list[str]:
    names = read_list(path)
    for number, name in enumerate(names):
        if not isinstance(name, str):
            raise DatasetError(f"{path}, entry {number} must be a name, not {name!r:.60}")
    return names


def _query(entry: object, name: str, category: str, where: str) -> Query:
    captions = [caption.strip(STRIPPED) for caption in list_field(entry, "captions", str, where)]
    if len(captions) != 2:
        raise DatasetError(f"{where}: field 'captions' must have two captions, not {len(captions)}")
    first, second = captions
    return Query(
        name=name,
        reference=field(entry, "candidate", str, where),
        modifications=(f"{first} and {second}", f"{second} and {first}"),
        targets=(field(entry, "target", str, where),),
        aspects=(category,),
    )
