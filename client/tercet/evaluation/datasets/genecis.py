"""GeneCIS (Vaze et al., 2023): four tasks, each query with its own small gallery of hard candidates.

Protocol of facebookresearch/genecis: eval/eval_functions.py, datasets/{coco,vaw}_dataset.py. Pictures of the
object tasks are COCO val2017, those of the attribute tasks are crops of Visual Genome.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tercet.errors import DatasetError
from tercet.evaluation.datasets.files import (
    Folders,
    field,
    find_files,
    first_folder,
    list_field,
    numbers_field,
    read_list,
)
from tercet.evaluation.datasets.order import tie_order
from tercet.evaluation.values import Dataset, Metric, PictureSource, Query, Task

TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")
PROTOCOL = (
    "Each query ranks its own candidates, the target among them; their order, which breaks ties, is by a "
    "hash of query and candidate, not with the target first. A candidate that is listed twice counts once. "
    "Numbers are the plain mean over the four tasks."
)
METRICS = tuple(Metric(f"recall@{k}", "recall", k) for k in (1, 2, 3))
DILATION = 0.7


@dataclass(frozen=True)
class DilatedSquare:
    """The box (x, y, width, height in pixels), dilated and padded to a square with black.

    Official quirk: the right and the lower edge are reckoned from the left and the upper edge after these
    were moved, so that the box grows to the left and upwards only, unless the picture ends there.
    (facebookresearch/genecis, datasets/vaw_dataset.py)
    """

    box: tuple[float, float, float, float]

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the square crop."""
        x, y, width, height = self.box
        left, top = max(0, x - DILATION * width), max(0, y - DILATION * height)
        right = min(image.width, left + (1 + DILATION) * width)
        bottom = min(image.height, top + (1 + DILATION) * height)
        crop = image.crop((left, top, right, bottom))  # Pillow rounds them
        side = max(crop.size)
        square = Image.new(crop.mode, (side, side))
        square.paste(crop, ((side - crop.width) // 2, (side - crop.height) // 2))
        return square


def load(root: Path, split: str) -> Dataset:
    """Read the four tasks.

    Raises:
        DatasetError: files are missing or not as published.
    """
    found = find_files(root, **{task: (f"genecis/{task}.json", f"{task}.json") for task in TASKS})
    folders = Folders()
    coco = first_folder(*(root / place for place in ("val2017", "coco/val2017", "COCO/val2017")))
    places = [
        root / base / place
        for base in ("", "visual_genome", "VisualGenome", "VisualGenome1.2")
        for place in ("VG_100K_all", "VG_100K", "VG_100K_2")
    ]
    genome = [place for place in places if place.is_dir()] or places[:1]

    def whole(image: object, where: str) -> tuple[str, PictureSource]:
        name = f"{field(image, 'val_image_id', int, where):012d}"
        return name, PictureSource(coco / f"{name}.jpg")

    def crop(image: object, where: str) -> tuple[str, PictureSource]:
        number = field(image, "image_id", int, where)
        x, y, width, height = numbers_field(image, "instance_bbox", 4, where)
        if width <= 0 or height <= 0:
            raise DatasetError(f"{where}: field 'instance_bbox' must have a width and a height above 0")
        path = folders.first(*(folder / f"{number}.jpg" for folder in genome))
        name = f"{number}:{x:g},{y:g},{width:g},{height:g}"
        return name, PictureSource(path, DilatedSquare((x, y, width, height)))

    pictures: dict[str, PictureSource] = {}
    tasks = tuple(_task(name, found[name], whole if "object" in name else crop, pictures) for name in TASKS)
    return Dataset("genecis", split, PROTOCOL, pictures, tasks, METRICS)


def _task(
    name: str,
    path: Path,
    picture: Callable[[object, str], tuple[str, PictureSource]],
    pictures: dict[str, PictureSource],
) -> Task:
    queries = []
    for number, entry in enumerate(read_list(path)):
        where, query = f"{path}, entry {number}", f"{name}-{number:04d}"
        reference = picture(field(entry, "reference", dict, where), f"{where}, reference")
        target = picture(field(entry, "target", dict, where), f"{where}, target")
        others = [
            picture(image, f"{where}, gallery, entry {place}")
            for place, image in enumerate(list_field(entry, "gallery", dict, where))
        ]
        if not others:
            raise DatasetError(f"{where}: field 'gallery' is empty")
        pictures.update([reference, target, *others])
        queries.append(
            Query(
                name=query,
                reference=reference[0],
                modifications=(field(entry, "condition", str, where),),
                targets=(target[0],),
                aspects=(name,),
                candidates=tie_order((other for other, _ in [target, *others]), salt=query),
            )
        )
    gallery = tie_order(candidate for query in queries for candidate in query.candidates or ())
    return Task(name, gallery, tuple(queries))
