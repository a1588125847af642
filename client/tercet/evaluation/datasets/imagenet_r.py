"""ImageNet-R domain conversion (Saito et al., 2023): a photo, and the domain in which its class is wanted.

Protocol and lists of google-research/composed_image_retrieval: data/imgnet/*.txt, src/eval_utils.py.
"""

from collections import defaultdict
from pathlib import Path

from tercet.errors import DatasetError
from tercet.evaluation.datasets.files import find_files, inside
from tercet.evaluation.datasets.order import tie_order
from tercet.evaluation.values import Dataset, Metric, PictureSource, Query, Task

DOMAINS = ("cartoon", "origami", "toy", "sculpture")
REAL = 6
"""Number of the domain of photos: distractors."""

CLASSES = 1000
PROTOCOL = (
    "The gallery is every picture of the four domains and every query photo, the reference included. Recall "
    "is the number of the class's pictures in the domain that are found, divided by (their number + 1e-5); a "
    "class that the domain does not have counts as 0. Numbers are the plain mean over the four domains."
)
METRICS = tuple(Metric(f"recall@{k}", "fractional_recall", k) for k in (10, 50))
PREFIX = "imgnet/"


def load(root: Path, split: str) -> Dataset:
    """Read the lists; every photo is asked for in every domain.

    Raises:
        DatasetError: files are missing or not as published.
    """
    found = find_files(
        root,
        queries=(f"{PREFIX}imgnet_real_query.txt", "imgnet_real_query.txt"),
        targets=(f"{PREFIX}imgnet_targets.txt", "imgnet_targets.txt"),
    )
    photos, candidates = _read(found["queries"]), _read(found["targets"])
    pictures = {
        name: PictureSource(inside(path.parent, name, str(path)))
        for path, names in ((found["targets"], candidates), (found["queries"], photos))
        for name in names
    }
    relevant: dict[int, list[str]] = defaultdict(list)
    for name, label in candidates.items():
        if label // CLASSES not in (*range(len(DOMAINS)), REAL):
            raise DatasetError(f"{found['targets']}: {name} has the label {label} of no known domain")
        relevant[label].append(name)
    targets = {label: tuple(names) for label, names in relevant.items()}
    gallery = tie_order(candidates)
    tasks = []
    for number, domain in enumerate(DOMAINS):
        queries = tuple(
            Query(
                name=f"{domain}/{photo}",
                reference=photo,
                modifications=(domain,),
                targets=targets.get(number * CLASSES + label, ()),
                aspects=(domain,),
            )
            for photo, label in photos.items()
        )
        tasks.append(Task(domain, gallery, queries))
    return Dataset("imagenet-r", split, PROTOCOL, pictures, tuple(tasks), METRICS)


def _read(path: Path) -> dict[str, int]:
    """File and label of every line, the folder `imgnet/` taken off."""
    entries: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}; download the file again") from error
    for number, line in enumerate(lines, start=1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 2 or not parts[1].isdecimal():
            raise DatasetError(f"{path}, line {number} must be a file and a label, not {line!r:.80}")
        name = parts[0].removeprefix(PREFIX)
        if name in entries:
            raise DatasetError(f"{path}, line {number}: {name} is listed twice")
        entries[name] = int(parts[1])
    if not entries:
        raise DatasetError(f"{path} is empty; download the file again")
    return entries
