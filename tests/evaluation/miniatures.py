"""A miniature of each data set in the exact official layout, of pictures of the synthetic world.

`write_cirr(folder, layout="searle")` and its like write the files and return a `Miniature`: the folder, and
what is true about it, put down while the files were written, not read from them by any loader. Nothing here
needs torch. `MINIATURES` names every data set's writers by layout.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from tercet_training.world import Gallery, make_gallery, mask, render
from tercet_training.world.dataset import write_world

SIZE = 64
SEED = 41


@dataclass(frozen=True)
class Truth:
    """One query; `candidates` are its own gallery, `subset` what subset recall ranks."""

    task: str
    name: str
    reference: str
    modifications: tuple[str, ...]
    targets: tuple[str, ...] = ()
    aspects: tuple[str, ...] = ()
    candidates: frozenset[str] | None = None
    subset: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Part:
    """A split: its queries, the gallery of every task, the file of every picture that is used as it is."""

    queries: tuple[Truth, ...]
    galleries: Mapping[str, frozenset[str]]
    files: Mapping[str, Path]
    exclude_reference: bool = False


@dataclass(frozen=True)
class Miniature:
    """A data set in `root`: load it as `load_dataset(name, root, split, **options)`."""

    name: str
    root: Path
    parts: Mapping[str, Part]
    options: Mapping[str, str | int] = field(default_factory=dict)


@cache
def gallery(seed: int = SEED) -> Gallery:
    """Sixty pictures with twelve queries."""
    return make_gallery(seed, 60, 12)


@cache
def encoded(number: int, kind: str, seed: int = SEED) -> bytes:
    """A picture of the gallery as a file."""
    file = io.BytesIO()
    render(gallery(seed).scenes[number], SIZE).save(file, kind, quality=92)
    return file.getvalue()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_json(path: Path, content: object) -> None:
    put(path, json.dumps(content).encode())


def fill(numbers: list[int], count: int, seed: int = SEED) -> list[int]:
    """The numbers, and others of the gallery up to `count`."""
    others = [n for n in range(len(gallery(seed).scenes)) if n not in numbers]
    return numbers + others[: count - len(numbers)]


# CIRR ------------------------------------------------------------------------------------------------------


def write_cirr(folder: Path, layout: str = "searle") -> Miniature:
    """Layouts: `searle`, `pic2word` (all in CIRR/), `inside` (the root is Pic2Word's folder)."""
    notes = folder / {"searle": "cirr", "pic2word": "CIRR", "inside": ""}[layout]
    pictures = folder if layout == "searle" else notes
    parts = {}
    for split, place, seed in (("val", "dev", SEED), ("test1", "test1", SEED + 1)):
        world = gallery(seed)
        names = [f"{place}-{number}-{number % 4}-img{number % 2}" for number in range(len(world.scenes))]
        files = {
            name: put(pictures / place / f"{name}.png", encoded(number, "PNG", seed))
            for number, name in enumerate(names)
        }
        entries, truths = [], []
        for number, query in enumerate(world.queries):
            target = min(query.targets)
            group = fill([query.reference, target], 6, seed)
            members = [names[n] for n in sorted(group)]
            entry: dict[str, object] = {
                "pairid": 12060 + 3 * number,
                "reference": names[query.reference],
                "caption": query.modification,
                "img_set": {
                    "id": number,
                    "members": members,
                    "reference_rank": members.index(names[query.reference]),
                },
            }
            if split == "val":
                entry |= {"target_hard": names[target], "target_soft": {names[target]: 1.0}}
            entries.append(entry)
            truths.append(
                Truth(
                    task="cirr",
                    name=str(12060 + 3 * number),
                    reference=names[query.reference],
                    modifications=(query.modification,),
                    targets=(names[target],) if split == "val" else (),
                    subset=frozenset(members) - {names[query.reference]},
                )
            )
        put_json(notes / "captions" / f"cap.rc2.{split}.json", entries)
        places = {name: f"./{place}/{name}.png" for name in names}
        put_json(notes / "image_splits" / f"split.rc2.{split}.json", places)
        parts[split] = Part(tuple(truths), {"cirr": frozenset(names)}, files, exclude_reference=True)
    return Miniature("cirr", folder, parts)


# FashionIQ -------------------------------------------------------------------------------------------------


def write_fashioniq(folder: Path, layout: str = "official", protocol: str = "original") -> Miniature:
    """Layouts: `official` (captions/, .jpg), `pic2word` (fashion-iq/json/, .png)."""
    base, captions, suffix, kind = {
        "official": (folder, "captions", ".jpg", "JPEG"),
        "pic2word": (folder / "fashion-iq", "json", ".png", "PNG"),
    }[layout]
    world = gallery()
    truths, galleries, files = [], {}, {}
    for part, category in enumerate(("dress", "shirt", "toptee")):
        asked = world.queries[4 * part : 4 * part + 4]
        spoken_of = [number for query in asked for number in (query.reference, min(query.targets))]
        names = {n: f"B00{category[0].upper()}{n:06d}" for n in fill(list(dict.fromkeys(spoken_of)), 20)}
        for number, name in names.items():
            files[name] = put(base / "images" / f"{name}{suffix}", encoded(number, kind))
        entries = []
        for number, query in enumerate(asked):
            first, second = query.modification, f"is better, number {number}"
            target = names[min(query.targets)]
            reference = names[query.reference]
            entries.append(
                {"target": target, "candidate": reference, "captions": [f"{first}. ", f" {second}?"]}
            )
            truths.append(
                Truth(
                    task=category,
                    name=f"{category}-{number:04d}",
                    reference=reference,
                    modifications=(f"{first} and {second}", f"{second} and {first}"),
                    targets=(target,),
                    aspects=(category,),
                )
            )
        put_json(base / captions / f"cap.{category}.val.json", entries)
        put_json(base / "image_splits" / f"split.{category}.val.json", list(names.values()))
        used = spoken_of if protocol == "val" else names
        galleries[category] = frozenset(names[number] for number in used)
    used_names = frozenset().union(*galleries.values())
    used_files = {name: path for name, path in files.items() if name in used_names}
    part_of = Part(tuple(truths), galleries, used_files)
    return Miniature("fashioniq", folder, {"val": part_of}, {"protocol": protocol})


# CIRCO -----------------------------------------------------------------------------------------------------

ASPECTS = ("cardinality", "addition", "negation", "spatial_relations_background", "viewpoint")


def write_circo(folder: Path, layout: str = "inside") -> Miniature:
    """Layouts: `inside` (the root is the folder), `beside` (in CIRCO/)."""
    base = folder / "CIRCO" if layout == "beside" else folder
    coco = base / "COCO2017_unlabeled"
    world = gallery()
    ids = [171 + 37 * number for number in range(len(world.scenes))]
    files = {
        str(ids[number]): put(coco / "unlabeled2017" / f"{ids[number]:012d}.jpg", encoded(number, "JPEG"))
        for number in range(len(world.scenes))
    }
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": SIZE, "width": SIZE} for i in ids]
    put_json(coco / "annotations" / "image_info_unlabeled2017.json", {"images": images, "categories": []})
    parts = {}
    for split in ("val", "test"):
        entries, truths = [], []
        for number, query in enumerate(world.queries):
            target = min(query.targets)
            others = [n for n in fill([query.reference, target], 2 + number % 6) if n != query.reference]
            right = [ids[target], *(ids[n] for n in others if n != target)]
            aspects = (ASPECTS[number % 5], ASPECTS[(number + 2) % 5])
            entry: dict[str, object] = {
                "reference_img_id": ids[query.reference],
                "relative_caption": query.modification,
                "shared_concept": "a thing",
                "id": number,
            }
            if split == "val":
                entry |= {
                    "target_img_id": ids[target],
                    "gt_img_ids": right,
                    "semantic_aspects": list(aspects),
                }
            entries.append(entry)
            known = split == "val"
            truths.append(
                Truth(
                    task="circo",
                    name=str(number),
                    reference=str(ids[query.reference]),
                    modifications=(query.modification,),
                    targets=tuple(map(str, right)) if known else (),
                    aspects=aspects if known else (),
                )
            )
        put_json(base / "annotations" / f"{split}.json", entries)
        parts[split] = Part(tuple(truths), {"circo": frozenset(map(str, ids))}, files)
    return Miniature("circo", folder, parts)


# GeneCIS ---------------------------------------------------------------------------------------------------

GENECIS_TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")


def write_genecis(folder: Path, layout: str = "together") -> Miniature:
    """Layouts: `together` (val2017/, VG_100K_all/), `apart` (coco/val2017/, VG_100K/ and VG_100K_2/)."""
    apart = layout == "apart"
    world = gallery()
    notes = folder if apart else folder / "genecis"
    coco = folder / ("coco/val2017" if apart else "val2017")
    files: dict[str, Path] = {}
    truths, galleries = [], {}
    for task in GENECIS_TASKS:
        entries = []
        everything: set[str] = set()
        for number, query in enumerate(world.queries[:5]):
            target = min(query.targets)
            count = 10 if task == "focus_attribute" else 15
            chosen = [n for n in fill([query.reference, target], count + 1) if n != query.reference]
            picture = partial(_genecis_picture, task, folder, coco, apart, files)
            reference, *candidates = (picture(n) for n in (query.reference, *chosen))
            listed = candidates[1:]
            if task == "change_object" and number == 0:
                listed = [*listed[:-1], candidates[0]]  # an official query lists its target again
            entries.append(
                {
                    "condition": query.modification,
                    "reference": reference[1],
                    "target": candidates[0][1],
                    "gallery": [image for _, image in listed],
                }
            )
            names = frozenset(name for name, _ in [candidates[0], *listed])
            everything |= names
            truths.append(
                Truth(
                    task=task,
                    name=f"{task}-{number:04d}",
                    reference=reference[0],
                    modifications=(query.modification,),
                    targets=(candidates[0][0],),
                    aspects=(task,),
                    candidates=names,
                )
            )
        put_json(notes / f"{task}.json", entries)
        galleries[task] = frozenset(everything)
    return Miniature("genecis", folder, {"test": Part(tuple(truths), galleries, files)})


def _genecis_picture(
    task: str, folder: Path, coco: Path, apart: bool, files: dict[str, Path], number: int
) -> tuple[str, dict[str, object]]:
    """Name and entry of a picture; a crop's box depends on its number, so that every edge case occurs."""
    if "object" in task:
        name = f"{1000 + number:012d}"
        files[name] = put(coco / f"{name}.jpg", encoded(number, "JPEG"))
        return name, {"val_image_id": 1000 + number}
    image_id = 2_300_000 + number
    place = f"VG_100K{'' if number % 2 else '_2'}" if apart else "VG_100K_all"
    put(folder / place / f"{image_id}.jpg", encoded(number, "JPEG"))
    x, y, width, height = number % 7 * 5, number % 5 * 7, 12 + number % 4 * 5, 10 + number % 3 * 9
    entry = {
        "image_id": image_id,
        "instance_id": str(9000 + number),
        "instance_bbox": [x, y, width, height],
        "object_name": "thing",
    }
    return f"{image_id}:{x},{y},{width},{height}", entry


# COCO object composition -----------------------------------------------------------------------------------

CLASSES = {1: "person", 18: "dog", 44: "bottle", 62: "chair"}


def runs_of(inside: np.ndarray) -> list[int]:
    """Run lengths of a mask bool [H, W], column by column, beginning outside."""
    runs, last, length = [], False, 0
    for value in inside.T.ravel().tolist():
        if value != last:
            runs.append(length)
            last, length = value, 0
        length += 1
    return [*runs, length]


def compress_runs(runs: list[int]) -> str:
    """COCO's string for run lengths."""
    text = []
    for place, run in enumerate(runs):
        value, more = run - runs[place - 2] if place > 2 else run, True
        while more:
            group = value & 0x1F
            value >>= 5
            more = value != (-1 if group & 0x10 else 0)
            text.append(chr(48 + group + (0x20 if more else 0)))
    return "".join(text)


def bounds(inside: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a mask, all of them inside."""
    rows, columns = np.nonzero(inside)
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def write_coco(folder: Path, layout: str = "inside") -> Miniature:
    """Layouts: `inside`, `beside` (in coco/), `csv` (with Pic2Word's coco_eval.csv and val2017_masked/).

    Pictures have one fitting object each: no draw is needed to know the queries. One picture has none.
    """
    base = folder / "coco" if layout == "beside" else folder
    world = gallery()
    images, annotations, rows, truths, files = [], [], [], [], {}
    identifier = 100
    for number in range(13):
        image_id = 139 + 146 * number
        name = f"{image_id:012d}"
        path = put(base / "val2017" / f"{name}.jpg", encoded(number, "JPEG"))
        images.append({"id": image_id, "file_name": path.name, "height": SIZE, "width": SIZE})
        things = np.asarray(mask(world.scenes[number], SIZE)) > 127
        left, top, right, bottom = bounds(things)
        right, bottom = min(right, left + 40), min(bottom, top + 40)  # no more than half of the picture
        box = [float(left), float(top), right - left + 0.5, bottom - top + 0.25]
        outline = [left, top, right + 0.5, top, right + 0.5, bottom + 0.5, left, bottom + 0.5]
        segmentation: object = [
            {"size": [SIZE, SIZE], "counts": runs_of(things)},
            {"size": [SIZE, SIZE], "counts": compress_runs(runs_of(things))},
            [outline],
        ][number % 3]
        categories = [18, *([44, 62] if number % 2 else []), *([1] if number % 3 == 0 else [])]
        for category in reversed(categories):
            fits = category == 18 and number != 12
            annotations.append(
                {
                    "id": identifier,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": box if fits else [0.0, 0.0, float(SIZE), float(SIZE)],
                    "segmentation": segmentation if fits else [[0, 0, SIZE, 0, SIZE, SIZE, 0, SIZE]],
                    "iscrowd": 0,
                }
            )
            identifier += 7
        if number == 12:
            continue
        files[name] = path
        others = [CLASSES[category] for category in reversed(categories[1:])]
        corners = (box[0], box[1], box[0] + box[2], box[1] + box[3])
        rows.append([path.name, ";".join(map(str, corners)) + " ", "dog", ";".join(others)])
        truths.append(
            Truth(
                task="coco",
                name=name,
                reference=f"{name}:region",
                modifications=(f"dog and {' and '.join(others)}" if others else "dog and",),
                targets=(name,),
                aspects=("dog",),
            )
        )
        if layout == "csv":
            inside = things
            if number % 3 == 2:
                inside = np.zeros_like(things)
                inside[top : bottom + 1, left : right + 1] = True
            white = np.asarray(Image.open(path)) * inside[..., None] + (1 - inside[..., None]) * 255
            masked = base / "val2017_masked" / path.name
            masked.parent.mkdir(exist_ok=True)
            Image.fromarray(white.astype(np.uint8)).save(masked)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in CLASSES.items()],
    }
    put_json(base / "annotations" / "instances_val2017.json", content)
    if layout == "csv":
        with (base / "coco_eval.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["id", "query_regions", "query_class", "classes"], *rows])
    part = Part(tuple(truths), {"coco": frozenset(files)}, files)
    return Miniature("coco", folder, {"val": part}, {"regions": "csv" if layout == "csv" else "drawn"})


# ImageNet-R ------------------------------------------------------------------------------------------------

DOMAINS = ("cartoon", "origami", "toy", "sculpture")
IMAGENET_CLASSES = {2: "n04086273", 5: "n02268443", 994: "n02398521"}


def write_imagenet_r(folder: Path, layout: str = "beside") -> Miniature:
    """Layouts: `beside` (in imgnet/, as the lists say), `inside` (the root is that folder).

    Three classes with four photos each; the second class has no origami and no toy.
    """
    base = folder / "imgnet" if layout == "beside" else folder
    photos: dict[str, int] = {}
    candidates: dict[str, int] = {}
    picture = 0
    files: dict[str, Path] = {}

    def add(name: str) -> str:
        nonlocal picture
        files[name] = put(base / name, encoded(picture, "JPEG"))
        picture += 1
        return name

    for label, code in IMAGENET_CLASSES.items():
        for number, domain in enumerate(DOMAINS):
            if label == 5 and domain in ("origami", "toy"):
                continue
            for count in range(1 + (label + number) % 3):
                candidates[add(f"imagenet-r/{code}/{domain}_{count}.jpg")] = 1000 * number + label
        for _ in range(4):
            photo = add(f"real/{code}/ILSVRC2012_val_{picture:08d}.JPEG")
            photos[photo] = label
            candidates[photo] = 6000 + label
    put(base / "imgnet_real_query.txt", "".join(f"imgnet/{n} {c} \n" for n, c in photos.items()).encode())
    put(base / "imgnet_targets.txt", "".join(f"imgnet/{n} {c} \n" for n, c in candidates.items()).encode())
    truths = [
        Truth(
            task=domain,
            name=f"{domain}/{photo}",
            reference=photo,
            modifications=(domain,),
            targets=tuple(name for name, of in candidates.items() if of == 1000 * number + label),
            aspects=(domain,),
        )
        for number, domain in enumerate(DOMAINS)
        for photo, label in photos.items()
    ]
    galleries = dict.fromkeys(DOMAINS, frozenset(candidates))
    return Miniature("imagenet-r", folder, {"test": Part(tuple(truths), galleries, files)})


# The synthetic world ---------------------------------------------------------------------------------------


def write_small_world(folder: Path) -> Miniature:
    """The world itself."""
    world = gallery()
    write_world(folder, world, {"seed": SEED}, size=SIZE)
    names = [f"{number:05d}" for number in range(len(world.scenes))]
    truths = tuple(
        Truth(
            task="world",
            name=f"{number:05d}-{query.kind}",
            reference=names[query.reference],
            modifications=(query.modification,),
            targets=tuple(names[target] for target in sorted(query.targets)),
            aspects=(query.kind,),
        )
        for number, query in enumerate(world.queries)
    )
    files = {name: folder / "images" / f"{name}.jpg" for name in names}
    part = Part(truths, {"world": frozenset(names)}, files, exclude_reference=True)
    return Miniature("world", folder, {"val": part})


MINIATURES: dict[str, dict[str, Callable[[Path], Miniature]]] = {
    "cirr": {name: partial(write_cirr, layout=name) for name in ("searle", "pic2word", "inside")},
    "fashioniq": {
        "official": write_fashioniq,
        "pic2word": partial(write_fashioniq, layout="pic2word"),
        "val": partial(write_fashioniq, protocol="val"),
    },
    "circo": {name: partial(write_circo, layout=name) for name in ("inside", "beside")},
    "genecis": {name: partial(write_genecis, layout=name) for name in ("together", "apart")},
    "coco": {name: partial(write_coco, layout=name) for name in ("inside", "beside", "csv")},
    "imagenet-r": {name: partial(write_imagenet_r, layout=name) for name in ("beside", "inside")},
    "world": {"world": write_small_world},
}
"""Writers by data set and layout; the first is the usual one."""
