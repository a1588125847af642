"""Every data set, read from a miniature in its official layout: what it gives, and what it refuses."""

import contextlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from tercet.errors import DatasetError
from tercet.evaluation.datasets import DATASETS, Size, check_dataset, load_dataset, tie_order
from tercet.evaluation.metrics import MEASURES
from tests.evaluation.miniatures import MINIATURES, Miniature, Part

Miniatures = Callable[..., Miniature]

EVERY_LAYOUT = [(name, layout) for name, layouts in MINIATURES.items() for layout in layouts]
EVERY_PART = [(name, layout, split) for name, layout in EVERY_LAYOUT for split in DATASETS[name].splits]


def test_every_registered_data_set_has_a_miniature_of_every_split(miniature: Miniatures) -> None:
    assert set(MINIATURES) == set(DATASETS)
    for name, entry in DATASETS.items():
        assert set(miniature(name).parts) == set(entry.splits)


@pytest.mark.parametrize(("name", "layout", "split"), EVERY_PART)
def test_what_is_read_is_what_was_written(miniature: Miniatures, name: str, layout: str, split: str) -> None:
    small = miniature(name, layout)
    part: Part = small.parts[split]
    dataset = load_dataset(name, small.root, split, **small.options)
    assert (dataset.name, dataset.split) == (name, split)
    assert [task.name for task in dataset.tasks] == list(part.galleries)
    found = {query.name: (task.name, query) for task in dataset.tasks for query in task.queries}
    assert list(found) == [truth.name for truth in part.queries]
    for truth in part.queries:
        task, query = found[truth.name]
        assert task == truth.task
        assert query.reference == truth.reference
        assert query.modifications == truth.modifications
        assert query.targets == truth.targets
        assert query.aspects == truth.aspects
        assert (None if query.candidates is None else frozenset(query.candidates)) == truth.candidates
        assert frozenset(query.subset) == truth.subset
        assert len(set(query.subset)) == len(query.subset)
    for task in dataset.tasks:
        assert frozenset(task.gallery) == part.galleries[task.name]
        assert len(set(task.gallery)) == len(task.gallery)
        assert task.exclude_reference == part.exclude_reference
        for query in task.queries:
            assert query.reference in dataset.pictures
            assert set(query.targets) <= set(query.candidates or task.gallery)
            assert set(query.subset) <= set(task.gallery)
            assert len(set(query.candidates or ())) == len(query.candidates or ())
        assert set(task.gallery) <= set(dataset.pictures)
    for picture, path in part.files.items():
        assert dataset.pictures[picture].path == path
        assert dataset.pictures[picture].treatment is None
    assert dataset.answers_known == any(truth.targets for truth in part.queries)


@pytest.mark.parametrize(("name", "layout", "split"), EVERY_PART)
def test_every_picture_can_be_used(miniature: Miniatures, name: str, layout: str, split: str) -> None:
    small = miniature(name, layout)
    for source in load_dataset(name, small.root, split, **small.options).pictures.values():
        assert source.encoded()


@pytest.mark.parametrize("name", DATASETS)
def test_metrics_name_measures_and_the_headline_comes_first(miniature: Miniatures, name: str) -> None:
    metrics = load_dataset(name, miniature(name).root, **miniature(name).options).metrics
    assert {metric.measure for metric in metrics} <= set(MEASURES)
    assert len({metric.name for metric in metrics}) == len(metrics)
    assert all(metric.name.endswith(f"@{metric.k}") for metric in metrics)


@pytest.mark.parametrize("name", DATASETS)
def test_order_of_candidates_is_by_hash_and_not_that_of_the_file(miniature: Miniatures, name: str) -> None:
    for task in load_dataset(name, miniature(name).root, **miniature(name).options).tasks:
        assert task.gallery == tie_order(reversed(task.gallery))
        for query in task.queries:
            if query.candidates is not None:
                assert query.candidates == tie_order(sorted(query.candidates), salt=query.name)


def test_tie_order_depends_on_the_salt_and_keeps_each_name_once() -> None:
    names = [f"picture {number}" for number in range(50)]
    assert sorted(tie_order(names)) == sorted(names)
    assert tie_order(names) == tie_order(reversed(names)) == tie_order(names * 2)
    assert tie_order(names) != tie_order(names, salt="a query")
    assert tie_order(names) != tuple(names)
    # Written down, so that runs of different versions break ties alike.
    assert tie_order(names)[:3] == ("picture 49", "picture 42", "picture 37")


@pytest.mark.parametrize(("name", "layout"), EVERY_LAYOUT)
def test_a_miniature_is_complete_and_said_not_to_be_of_the_official_size(
    miniature: Miniatures, name: str, layout: str
) -> None:
    small = miniature(name, layout)
    for split in small.parts:
        check = check_dataset(name, small.root, split, **small.options)
        protocol = load_dataset(name, small.root, split, **small.options).protocol
        assert check.complete
        assert not check.official
        known = DATASETS[name].official_sizes(split, {"protocol": "original"} | dict(small.options))
        assert ("NOT THE OFFICIAL SIZE" in check.report()) == bool(known)
        assert ("NOT THE OFFICIAL SIZE" in protocol) == bool(known)
        unknown = [
            task for task in small.parts[split].galleries if task not in known or None in pair(known[task])
        ]
        assert ("No official size is known of" in check.report()) == bool(unknown)
        for size, task in zip(check.sizes, small.parts[split].galleries, strict=True):
            assert size.task == task
            assert size.found.gallery == len(small.parts[split].galleries[task])
            assert size.found.queries == sum(truth.task == task for truth in small.parts[split].queries)


def pair(size: Size) -> tuple[int | None, int | None]:
    return size.queries, size.gallery


def test_official_sizes() -> None:
    def sizes(name: str, split: str, **options: str) -> dict[str, tuple[int | None, int | None]]:
        official = DATASETS[name].official_sizes(split, options)
        return {task: pair(size) for task, size in official.items()}

    assert sizes("cirr", "val") == {"cirr": (4181, 2297)}
    assert sizes("cirr", "test1") == {"cirr": (4148, 2315)}
    assert sizes("fashioniq", "val", protocol="original") == {
        "dress": (2017, 3817),
        "shirt": (2038, 6346),
        "toptee": (1961, 5373),
    }
    assert sizes("fashioniq", "val", protocol="val") == {
        "dress": (2017, 2628),
        "shirt": (2038, 3089),
        "toptee": (1961, 2902),
    }
    assert sizes("circo", "val") == {"circo": (220, 123_403)}
    assert sizes("circo", "test") == {"circo": (800, 123_403)}
    assert set(sizes("imagenet-r", "test").values()) == {(10_000, 16_983)}
    assert sizes("genecis", "test")["focus_object"][0] == sizes("genecis", "test")["change_object"][0] == 1960


def test_the_official_size_is_recognised(miniature: Miniatures, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(DATASETS["cirr"], official={("val",): {"cirr": Size(12, 60)}})
    monkeypatch.setitem(DATASETS, "cirr", small)
    check = check_dataset("cirr", miniature("cirr").root)
    assert check.official
    assert "Complete, and of the official size" in str(check)
    assert "NOT" not in load_dataset("cirr", miniature("cirr").root).protocol


@pytest.fixture
def copy_of(miniature: Miniatures, tmp_path: Path) -> Callable[..., Miniature]:
    """A copy of a miniature, to damage."""

    def copy(name: str, layout: str | None = None) -> Miniature:
        small = miniature(name, layout)
        shutil.copytree(small.root, tmp_path / name)
        return Miniature(name, tmp_path / name, small.parts, small.options)

    return copy


@pytest.mark.parametrize("name", DATASETS)
def test_every_missing_picture_is_counted_and_the_first_are_named(copy_of: Miniatures, name: str) -> None:
    small = copy_of(name)
    split = DATASETS[name].splits[0]
    pictures = load_dataset(name, small.root, **small.options).pictures
    paths = sorted({source.path for source in pictures.values()})
    gone = paths[::5]
    for path in gone:
        path.unlink()
    with pytest.raises(DatasetError, match=rf"lacks {len(gone)} picture files") as error:
        load_dataset(name, small.root, **small.options)
    for path in gone[:5]:
        assert str(path) in str(error.value)
    assert DATASETS[name].layout in str(error.value)
    check = check_dataset(name, small.root, split, **small.options)
    assert not check.complete
    assert len(check.missing) == len(gone)
    assert f"MISSING: {len(gone)} files" in check.report(shown=2)
    if len(gone) > 2:
        assert f"and {len(gone) - 2} more" in check.report(shown=2)


@pytest.mark.parametrize("name", DATASETS)
def test_every_missing_annotation_is_named_with_both_places(tmp_path: Path, name: str) -> None:
    check = check_dataset(name, tmp_path)
    assert check.missing
    assert not check.sizes
    with pytest.raises(DatasetError) as error:
        load_dataset(name, tmp_path)
    for text in (str(check), str(error.value)):
        assert DATASETS[name].layout in text
        assert DATASETS[name].source in text
        assert all(description in text for description in check.missing)


@pytest.mark.parametrize("name", DATASETS)
def test_broken_annotations_are_reported_with_their_place(copy_of: Miniatures, name: str) -> None:
    small = copy_of(name)
    for path in [*small.root.rglob("*.json"), *small.root.rglob("imgnet*.txt")]:
        kept = path.read_bytes()
        path.write_bytes(kept[: len(kept) // 2])
        check = check_dataset(name, small.root, **small.options)
        if check.complete:  # a file of another split; or a list of lines, cut between two
            assert path.suffix == ".txt" or len(DATASETS[name].splits) == 2
        else:
            assert check.problem is not None
            assert str(path) in check.problem
            assert "line" in check.problem
            with pytest.raises(DatasetError, match="line"):
                load_dataset(name, small.root, **small.options)
        path.write_bytes(kept)
    assert check_dataset(name, small.root, **small.options).complete


def damage(small: Miniature, file: str, change: Callable[[object], object]) -> Path:
    """Change the content of a JSON file."""
    path = small.root / file
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))
    return path


def entry(number: int, **fields: object) -> Callable[[list[dict[str, object]]], None]:
    """Set fields of an entry of a list; None removes one."""

    def change(content: list[dict[str, object]]) -> None:
        for name, value in fields.items():
            if value is None:
                del content[number][name]
            else:
                content[number][name] = value

    return change


CIRR = "cirr/captions/cap.rc2.val.json"
CIRR_SPLIT = "cirr/image_splits/split.rc2.val.json"
FASHION = "captions/cap.shirt.val.json"
CIRCO = "annotations/val.json"
CIRCO_INFO = "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
GENECIS = "genecis/change_attribute.json"
GENECIS_OBJECT = "genecis/focus_object.json"
COCO = "annotations/instances_val2017.json"

DAMAGE = [
    ("cirr", CIRR, entry(3, reference=None), "entry 3 has no field 'reference'"),
    ("cirr", CIRR, entry(3, caption=7), "entry 3: field 'caption' must be of type str, not int"),
    ("cirr", CIRR, entry(3, pairid=True), "entry 3: field 'pairid' must be of type int, not bool"),
    ("cirr", CIRR, entry(3, target_hard="dev-no"), "entry 3 speaks of 'dev-no'"),
    ("cirr", CIRR, entry(3, img_set={"members": ["dev-0-0-img0"]}), "entry 3: img_set.members must be six"),
    ("cirr", CIRR, entry(3, img_set=[]), "entry 3: field 'img_set' must be of type dict"),
    ("cirr", CIRR, entry(3, pairid=12060), "a pairid occurs more than once"),
    ("cirr", CIRR, lambda content: [7], "entry 0 must be an object, not a int"),
    ("cirr", CIRR, lambda content: [], "must be a list of entries and is empty"),
    ("cirr", CIRR, lambda content: {}, "must be a list of entries and is a dict"),
    ("cirr", CIRR_SPLIT, lambda content: [], "must be an object of names and files"),
    (
        "cirr",
        CIRR_SPLIT,
        lambda content: content | {"dev-x": "../../secret.png"},
        "'dev-x' names '../../secret",
    ),
    ("cirr", CIRR_SPLIT, lambda content: content | {"dev-x": "/etc/passwd"}, "no file inside"),
    (
        "cirr",
        CIRR_SPLIT,
        lambda content: content | {"dev-x": "dev/../../a.png"},
        "no file inside",
    ),
    (
        "cirr",
        CIRR_SPLIT,
        lambda content: content | {"dev-x": "dev\\..\\a.png"},
        "no file inside",
    ),
    ("cirr", CIRR_SPLIT, lambda content: content | {"dev-x": "."}, "no file inside"),
    ("cirr", CIRR_SPLIT, lambda content: content | {"dev-x": "dev/\0.png"}, "no file inside"),
    (
        "fashioniq",
        FASHION,
        entry(1, captions=["one"]),
        "entry 1: field 'captions' must have two",
    ),
    ("fashioniq", FASHION, entry(1, captions=["one", 2]), "entry 1: element 1 of field 'captions' must be"),
    ("fashioniq", FASHION, entry(1, target="B00"), "shirt.val.json does not have its target 'B00'"),
    ("fashioniq", FASHION, entry(1, candidate="../B00"), "'../B00', which is no file name"),
    ("fashioniq", FASHION, entry(1, candidate="/B00"), "'/B00', which is no file name"),
    (
        "circo",
        CIRCO,
        entry(2, target_img_id=1),
        "does not have the target_img_id 1",
    ),
    ("circo", CIRCO, entry(2, reference_img_id=1), "entry 2 speaks of picture 1"),
    ("circo", CIRCO, entry(2, id=1), "an id occurs more than once"),
    (
        "circo",
        CIRCO,
        entry(2, semantic_aspects="addition"),
        "field 'semantic_aspects' must be of type",
    ),
    ("circo", CIRCO, entry(2, relative_caption=None), "entry 2 has no field 'relative_caption'; it has"),
    ("circo", CIRCO_INFO, lambda c: c["images"].append(c["images"][0]), "occurs twice"),
    ("circo", CIRCO_INFO, lambda c: c["images"][4].update(file_name="../a.jpg"), "entry 4 names '../a.jpg'"),
    ("genecis", GENECIS, entry(1, gallery=[]), "entry 1: field 'gallery' is empty"),
    ("genecis", GENECIS, entry(1, target={"image_id": 3}), "entry 1, target has no field 'instance_bbox'"),
    (
        "genecis",
        GENECIS,
        entry(1, target={"image_id": 3, "instance_bbox": [0, 0, 5]}),
        "entry 1, target: field 'instance_bbox' must be 4 numbers",
    ),
    (
        "genecis",
        GENECIS,
        entry(1, target={"image_id": 3, "instance_bbox": [0, 0, 5, 0]}),
        "must have a width and a height above 0",
    ),
    (
        "genecis",
        GENECIS_OBJECT,
        entry(0, target={"val_image_id": "7"}),
        "'val_image_id' must",
    ),
    (
        "coco",
        COCO,
        lambda c: c["annotations"][0].update(category_id=99),
        "entry 0 speaks of",
    ),
    (
        "coco",
        COCO,
        lambda c: c["annotations"][1].update(bbox=[1, 2, 3, None]),
        "field 'bbox' must be 4",
    ),
    ("coco", COCO, lambda c: c["images"][0].update(file_name="/a.jpg"), "names '/a.jpg'"),
    ("coco", COCO, lambda c: c | {"categories": 3}, "field 'categories' must be of type list"),
    ("world", "queries.json", lambda c: c.update(version=2), "must have the format tercet-world 1"),
    ("world", "queries.json", lambda c: c.update(pictures=10**20), "field 'pictures' must be from 1 to"),
    ("world", "queries.json", lambda c: c["queries"][5].update(targets=[]), "entry 5 has no targets"),
    (
        "world",
        "queries.json",
        lambda c: c["queries"][5].update(reference="../1"),
        "speaks of picture",
    ),
]


@pytest.mark.parametrize(("name", "file", "change", "message"), DAMAGE)
def test_entries_that_are_not_as_published_are_named(
    copy_of: Miniatures, name: str, file: str, change: Callable[[object], object], message: str
) -> None:
    small = copy_of(name)
    damage(small, file, change)
    with pytest.raises(DatasetError, match=message):
        load_dataset(name, small.root, **small.options)
    check = check_dataset(name, small.root, **small.options)
    assert not check.complete
    assert "UNUSABLE" in str(check)


SOMETHING_ELSE = (
    *(None, True, -1, 0, 7, 10**20, 1.5, float("nan"), "", "x", "..", "../a", "/a", "\0", "dev/../a"),
    *([], {}, [1], ["a"], [None], [[1]], {"a": 1}, {"size": [64, 64], "counts": "0"}),
)


def places(content: object, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the values of a JSON file are; of a list the first six."""
    yield place
    inner = content.items() if isinstance(content, dict) else []
    if isinstance(content, list):
        inner = enumerate(content[:6])
    for key, value in inner:
        yield from places(value, (*place, key))


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "imagenet-r"])  # which has no JSON
def test_whatever_the_annotations_say_nothing_leaves_the_folder(copy_of: Miniatures, name: str) -> None:
    """Any value exchanged for any other: the data set loads, or a DatasetError says why not."""
    small = copy_of(name)
    dice = random.Random(1)
    for path in sorted(small.root.rglob("*.json")):
        kept = path.read_text()
        everywhere = list(places(json.loads(kept)))[1:]
        for _ in range(30):
            content = inner = json.loads(kept)
            *way, last = dice.choice(everywhere)
            for key in way:
                inner = inner[key]
            inner[last] = dice.choice(SOMETHING_ELSE)
            path.write_text(json.dumps(content))
            for split in small.parts:
                with contextlib.suppress(DatasetError):
                    dataset = load_dataset(name, small.root, split, **small.options)
                    for source in dataset.pictures.values():
                        assert small.root in source.path.parents
                        assert ".." not in source.path.parts
        path.write_text(kept)


def test_nothing_here_needs_torch_or_an_extra() -> None:
    script = (
        "import sys, tercet.evaluation.datasets, tests.evaluation.miniatures; "
        "print({'torch', 'pyarrow', 'matplotlib', 'httpx', 'jinja2', 'pycocotools'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_lines_of_imagenet_r_that_are_not_as_published_are_named(copy_of: Miniatures) -> None:
    small = copy_of("imagenet-r")
    path = small.root / "imgnet" / "imgnet_targets.txt"
    kept = path.read_text()
    for line, message in (
        ("imgnet/real/a.JPEG", "line 1 must be a file and a label"),
        ("imgnet/real/a.JPEG x", "line 1 must be a file and a label"),
        ("imgnet/../../a.JPEG 2", "no file inside"),
        ("imgnet/real/a.JPEG 4002", "label 4002 of no known domain"),
        (kept.splitlines()[0], "line 2: .* is listed twice"),
    ):
        path.write_text(f"{line}\n{kept}")
        with pytest.raises(DatasetError, match=message):
            load_dataset("imagenet-r", small.root)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no folder"):
        load_dataset("cirr", tmp_path / "no")
    assert "there is no folder" in str(check_dataset("cirr", tmp_path / "no"))


def test_names_that_are_not_there() -> None:
    with pytest.raises(DatasetError, match="there is no data set 'cir'; there are cirr, fashioniq"):
        load_dataset("cir", ".")
    with pytest.raises(DatasetError, match="CIRR has no split 'test'; it has val, test1"):
        load_dataset("cirr", ".", "test")
    with pytest.raises(DatasetError, match="CIRR has no option seed; it has none"):
        check_dataset("cirr", ".", seed=3)
    with pytest.raises(DatasetError, match="option protocol must be original or val, not 'VAL'"):
        load_dataset("fashioniq", ".", protocol="VAL")
    with pytest.raises(DatasetError, match="seed must be a whole number, not 'one'"):
        load_dataset("coco", ".", seed="one")


def test_a_hundred_thousand_pictures_are_checked_by_listing_folders(
    miniature: Miniatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is looked at by itself: that would take minutes on a network file system."""
    small = miniature("circo")
    looked: list[str] = []
    stat = Path.stat

    def counted(path: Path, **options: bool) -> object:
        looked.append(str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", counted)
    check_dataset("circo", small.root)
    assert not [path for path in looked if path.endswith(".jpg")]


def test_fashioniq_galleries_are_named_and_differ(miniature: Miniatures) -> None:
    root = miniature("fashioniq").root
    original = load_dataset("fashioniq", root)
    val = load_dataset("fashioniq", root, protocol="val")
    assert original.protocol.startswith("The gallery of a category is every picture of its split file")
    assert "the union of the references and targets" in val.protocol
    for large, small in zip(original.tasks, val.tasks, strict=True):
        assert set(small.gallery) < set(large.gallery)
        assert small.queries == large.queries


def test_published_numbers_name_our_splits_tasks_metrics_and_options(miniature: Miniatures) -> None:
    """Otherwise they would silently not stand beside ours."""
    rows = json.loads((files("tercet.evaluation") / "published.json").read_text())["rows"]
    assert {row["dataset"] for row in rows} == set(DATASETS) - {"world"}
    for row in rows:
        options = {**miniature(row["dataset"]).options, **row.get("options", {})}
        dataset = load_dataset(row["dataset"], miniature(row["dataset"]).root, row["split"], **options)
        by_task = row.get("tasks", {})
        assert set(by_task) <= {task.name for task in dataset.tasks}
        named = {name for values in (row["values"], *by_task.values()) for name in values}
        assert named <= {metric.name for metric in dataset.metrics}
