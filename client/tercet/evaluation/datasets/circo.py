"""CIRCO (Baldrati et al., 2023): queries over COCO 2017's unlabelled pictures, with several right answers.

Protocol of miccunifi/CIRCO, src/evaluation.py: average precision over all right answers, recall of the one
target; the reference stays in the gallery. `shared_concept` is not part of the query: systems that use it
(MagicLens, MegaPairs) are not comparable.
"""

from pathlib import Path

from tercet.errors import DatasetError
from tercet.evaluation.datasets.files import field, find_files, inside, list_field, read_json, read_list
from tercet.evaluation.datasets.order import tie_order
from tercet.evaluation.values import Dataset, Metric, PictureSource, Query, Task

PROTOCOL = (
    "The gallery is every unlabelled picture of COCO 2017, the reference included; AP@K is divided by "
    "min(number of right answers, K); recall counts only the one target. The shared concept is not used."
)
CUTOFFS = (5, 10, 25, 50)
METRICS = (
    *(Metric(f"mAP@{k}", "average_precision", k) for k in CUTOFFS),
    *(Metric(f"recall@{k}", "recall", k) for k in CUTOFFS),
)
BASES = ("", "CIRCO/")


def load(root: Path, split: str) -> Dataset:
    """Read the split; pictures are named by their COCO id, queries by theirs, as the server wants them.

    Raises:
        DatasetError: files are missing or not as published.
    """
    info = "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
    found = find_files(
        root,
        annotations=tuple(f"{base}annotations/{split}.json" for base in BASES),
        info=tuple(f"{base}{info}" for base in BASES),
    )
    pictures = _pictures(found["info"])
    queries = tuple(
        _query(entry, pictures, split, f"{found['annotations']}, entry {number}")
        for number, entry in enumerate(read_list(found["annotations"]))
    )
    if len({query.name for query in queries}) != len(queries):
        raise DatasetError(f"{found['annotations']}: an id occurs more than once; download the file again")
    return Dataset(
        "circo", split, PROTOCOL, pictures, (Task("circo", tie_order(pictures), queries),), METRICS
    )


def _pictures(info: Path) -> dict[str, PictureSource]:
    folder = info.parent.parent / "unlabeled2017"
    pictures: dict[str, PictureSource] = {}
    for number, image in enumerate(list_field(read_json(info), "images", dict, str(info))):
        where = f"{info}, images, entry {number}"
        name = str(field(image, "id", int, where))
        if name in pictures:
            raise DatasetError(f"{where}: the id {name} occurs twice; download the file again")
        pictures[name] = PictureSource(inside(folder, field(image, "file_name", str, where), where))
    return pictures


def _query(entry: object, pictures: dict[str, PictureSource], split: str, where: str) -> Query:
    reference = field(entry, "reference_img_id", int, where)
    answers: list[int] = []
    aspects: list[str] = []
    if split == "val":
        target = field(entry, "target_img_id", int, where)
        right = list_field(entry, "gt_img_ids", int, where)
        if target not in right:
            raise DatasetError(f"{where}: gt_img_ids {right} does not have the target_img_id {target}")
        if len(set(right)) != len(right):
            raise DatasetError(f"{where}: gt_img_ids {right} repeats a picture")
        answers = [target, *(other for other in right if other != target)]
        aspects = list_field(entry, "semantic_aspects", str, where)
    for image in (reference, *answers):
        if str(image) not in pictures:
            raise DatasetError(f"{where} speaks of picture {image}, which COCO's list does not have")
    return Query(
        name=str(field(entry, "id", int, where)),
        reference=str(reference),
        modifications=(field(entry, "relative_caption", str, where),),
        targets=tuple(map(str, answers)),
        aspects=tuple(aspects),
    )
