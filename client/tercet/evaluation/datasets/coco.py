"""COCO object composition (Saito et al., 2023): an object cut out of a picture, and what else is in it.

Protocol of google-research/composed_image_retrieval: data/coco/prepare_data.py, src/data.py (CsvCOCO) and
src/eval_utils.py. That script draws one object of each picture with an unseeded generator, so that everybody
has other queries; here the draw follows from a seed. Its lists are read, too.
"""

import csv
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tercet.errors import DatasetError
from tercet.evaluation.datasets.files import field, find_files, inside, list_field, numbers_field, read_json
from tercet.evaluation.datasets.masks import check_segmentation, mask_of
from tercet.evaluation.datasets.order import tie_order
from tercet.evaluation.values import Dataset, Metric, PictureSource, Query, Task

PROTOCOL = (
    "The query is an object's box with all outside of its mask painted white, squeezed to a square, and the "
    "classes in its picture; the target is that picture; the gallery is the pictures of all queries. "
)
DRAWN = "One object of each picture is drawn with seed {seed} (by the SHA-256 of seed and annotation id; "
LISTED = "The objects are those of Pic2Word's coco_eval.csv, an unseeded draw ("
DIGEST = "the list of objects has the digest {digest})."
METRICS = tuple(Metric(f"recall@{k}", "recall", k) for k in (1, 5, 10))
BASES = ("", "coco/", "COCO/")
SIDE = 224
"""Pixels to which regions are squeezed: what the official loader feeds to CLIP."""

Box = tuple[float, float, float, float]


def _squeezed_region(image: Image.Image, box: Box) -> Image.Image:
    """The box (left, top, right, bottom; fractions are cut off) as a square, at least one pixel of it."""
    left, top, right, bottom = (int(edge) for edge in box)
    crop = image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    return crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class SqueezedRegion:
    """The box (left, top, right, bottom in pixels) of a picture that is painted white already."""

    box: Box

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the region, squeezed to a square."""
        return _squeezed_region(image, self.box)


@dataclass(frozen=True)
class PaintedRegion:
    """The box (left, top, right, bottom in pixels) with everything outside of the mask painted white.

    `mask` is COCO's: polygons, or ("counts", run lengths or their string). As in the official script, the
    painted picture goes through a JPEG file of Pillow's default quality before the box is cut out.
    """

    box: Box
    mask: tuple[Any, ...]

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the region, squeezed to a square."""
        height, width = image.height, image.width
        segmentation = (
            {"size": [height, width], "counts": self.mask[1]}
            if self.mask[0] == "counts"
            else [list(polygon) for polygon in self.mask]
        )
        inside_mask = mask_of(segmentation, height, width)
        painted = np.where(inside_mask[..., None], np.asarray(image.convert("RGB")), np.uint8(255))
        file = io.BytesIO()
        Image.fromarray(painted).save(file, "JPEG")
        with Image.open(file) as saved:
            return _squeezed_region(saved.convert("RGB"), self.box)


@dataclass(frozen=True)
class Region:
    """An object that a query shows: a row of coco_eval.csv. `others` are the other classes in the picture."""

    file_name: str
    box: Box
    query_class: str
    others: tuple[str, ...]
    annotation: int | None = None
    mask: tuple[Any, ...] | None = None


def load(root: Path, split: str, regions: str, seed: int) -> Dataset:
    """Read the queries: drawn with the seed, or those of Pic2Word's list with its painted pictures.

    Raises:
        DatasetError: files are missing or not as published.
    """
    if regions == "drawn":
        found = find_files(root, annotations=_at("annotations/instances_val2017.json"))
        chosen, base = draw_regions(found["annotations"], seed), found["annotations"].parent.parent
    else:
        found = find_files(root, regions=_at("coco_eval.csv"))
        chosen, base = read_regions(found["regions"]), found["regions"].parent
    pictures: dict[str, PictureSource] = {}
    queries = []
    for region in chosen:
        name = Path(region.file_name).stem
        reference = f"{name}:region"
        if name in pictures:
            raise DatasetError(f"{base}: {region.file_name} is listed twice; restore the file")
        pictures[name] = PictureSource(inside(base / "val2017", region.file_name, str(base)))
        if region.mask is None:
            painted = inside(base / "val2017_masked", region.file_name, str(base))
            pictures[reference] = PictureSource(painted, SqueezedRegion(region.box))
        else:
            pictures[reference] = PictureSource(pictures[name].path, PaintedRegion(region.box, region.mask))
        queries.append(
            Query(
                name=name,
                reference=reference,
                # Without other classes the official text ends in "and", too.
                modifications=(f"{region.query_class} and {' and '.join(region.others)}".strip(),),
                targets=(name,),
                aspects=(region.query_class,),
            )
        )
    task = Task("coco", tie_order(query.targets[0] for query in queries), tuple(queries))
    draw = DRAWN.format(seed=seed) if regions == "drawn" else LISTED
    protocol = PROTOCOL + draw + DIGEST.format(digest=digest_of(chosen))
    return Dataset("coco", split, protocol, pictures, (task,), METRICS)


def _at(place: str) -> tuple[str, ...]:
    return tuple(f"{base}{place}" for base in BASES)


def draw_regions(annotations: Path, seed: int) -> list[Region]:
    """One object of each picture that has one of a fitting size, by the pictures' ids.

    Fitting: the area of the box lies between 0.05 square pixels and half of the picture, as in the official
    script. Of a picture's fitting objects the one whose SHA-256 of "seed:annotation id" is least is drawn, so
    that a draw depends neither on the order of the file nor on a generator.

    Raises:
        DatasetError: the file is not as published.
    """
    content = read_json(annotations)
    where = str(annotations)
    classes = {
        field(category, "id", int, f"{where}, categories"): field(
            category, "name", str, f"{where}, categories"
        )
        for category in list_field(content, "categories", dict, where)
    }
    images = {
        field(image, "id", int, f"{where}, images"): image
        for image in list_field(content, "images", dict, where)
    }
    objects: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for number, annotation in enumerate(list_field(content, "annotations", dict, where)):
        place = f"{where}, annotations, entry {number}"
        for name in ("id", "category_id", "image_id"):
            field(annotation, name, int, place)
        if annotation["image_id"] not in images or annotation["category_id"] not in classes:
            raise DatasetError(f"{place} speaks of an image or a category that the file does not have")
        numbers_field(annotation, "bbox", 4, place)
        objects[annotation["image_id"]].append(annotation)

    def chance(annotation: Mapping[str, Any]) -> str:
        return hashlib.sha256(f"{seed}:{annotation['id']}".encode()).hexdigest()

    regions = []
    for image_id in sorted(objects):
        image, place = images[image_id], f"{where}, images, id {image_id}"
        height, width = field(image, "height", int, place), field(image, "width", int, place)
        fitting = [
            annotation
            for annotation in objects[image_id]
            if 0.05 < annotation["bbox"][2] * annotation["bbox"][3] < 0.5 * height * width
        ]
        if not fitting:
            continue
        drawn = min(fitting, key=chance)
        left, top, across, down = map(float, drawn["bbox"])
        query_class = classes[drawn["category_id"]]
        present = dict.fromkeys(classes[annotation["category_id"]] for annotation in objects[image_id])
        regions.append(
            Region(
                file_name=field(image, "file_name", str, place),
                box=(left, top, left + across, top + down),
                query_class=query_class,
                others=tuple(name for name in present if name != query_class),
                annotation=drawn["id"],
                mask=_mask(drawn, height, width, f"{where}, annotation {drawn['id']}"),
            )
        )
    if not regions:
        raise DatasetError(f"{annotations} has no object of a fitting size; download the file again")
    return regions


def _mask(annotation: Mapping[str, Any], height: int, width: int, where: str) -> tuple[Any, ...]:
    """The segmentation as `PaintedRegion` keeps it, known to be sound."""
    segmentation = annotation.get("segmentation")
    try:
        check_segmentation(segmentation, height, width)
    except ValueError as error:
        raise DatasetError(f"{where}: field 'segmentation' cannot be used: {error}") from error
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return ("counts", counts if isinstance(counts, str) else tuple(counts))
    return tuple(tuple(polygon) for polygon in segmentation or ())


def read_regions(path: Path) -> list[Region]:
    """The rows of the official script's coco_eval.csv: id, query_regions, query_class, classes.

    Raises:
        DatasetError: a column is missing, or a row is not as that script writes it.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if missing := {"id", "query_regions", "query_class", "classes"} - set(rows.fieldnames or ()):
            raise DatasetError(f"{path} lacks the columns {', '.join(sorted(missing))}; write it again")
        regions = []
        for number, row in enumerate(rows, start=2):
            try:
                left, top, right, bottom = (float(edge) for edge in row["query_regions"].split(";"))
            except (ValueError, AttributeError) as error:
                raise DatasetError(
                    f"{path}, line {number}: query_regions must be left;top;right;bottom, not "
                    f"{row['query_regions']!r}"
                ) from error
            others = tuple(name for name in (row["classes"] or "").split(";") if name)
            regions.append(Region(row["id"], (left, top, right, bottom), row["query_class"], others))
    if not regions:
        raise DatasetError(f"{path} has no rows; write it again")
    return regions


def digest_of(regions: Iterable[Region]) -> str:
    """Twelve hexadecimal digits that two lists of regions share only if they ask the same."""
    rows = [[region.file_name, region.box, region.query_class, region.others] for region in regions]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]


def write_regions(path: Path, regions: Iterable[Region]) -> None:
    """Write regions down as coco_eval.csv, with their annotations' ids: to publish what was drawn."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["id", "query_regions", "query_class", "classes", "annotation"])
        for region in regions:
            box = ";".join(str(edge) for edge in region.box) + " "
            annotation = "" if region.annotation is None else region.annotation
            table.writerow([region.file_name, box, region.query_class, ";".join(region.others), annotation])
