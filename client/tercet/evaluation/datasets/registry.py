"""The data sets by name: what they are, where their files come from, and how large they are officially."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tercet.evaluation.datasets import circo, cirr, coco, fashioniq, genecis, imagenet_r, world
from tercet.evaluation.values import Dataset

__all__ = ["DATASETS", "DatasetEntry", "Option", "Size"]


@dataclass(frozen=True)
class Option:
    """A choice that a data set leaves; without `choices`, any value of the default's type."""

    default: str | int
    words: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Size:
    """How many queries a task has and how many pictures its gallery; None where that is not known."""

    queries: int | None
    gallery: int | None


@dataclass(frozen=True)
class DatasetEntry:
    """A data set.

    splits: the first is the default.
    load: a function of the root, the split and the options.
    layout: where the files are expected, in words.
    source: where to get them, and the licence, in words.
    official: by split (and by the values of the options in `sized_by`), then by task.
    """

    title: str
    splits: tuple[str, ...]
    load: Callable[..., Dataset]
    layout: str
    source: str
    options: Mapping[str, Option] = field(default_factory=dict)
    official: Mapping[tuple[str, ...], Mapping[str, Size]] = field(default_factory=dict)
    sized_by: tuple[str, ...] = ()

    def official_sizes(self, split: str, options: Mapping[str, str | int]) -> Mapping[str, Size]:
        """By task; empty where nothing is known."""
        return self.official.get((split, *(str(options[name]) for name in self.sized_by)), {})


COCO_UNLABELLED = 123_403
PHOTOS = Size(10_000, 16_983)

DATASETS: dict[str, DatasetEntry] = {
    "cirr": DatasetEntry(
        title="CIRR",
        splits=("val", "test1"),
        load=cirr.load,
        layout=(
            "cirr/captions/cap.rc2.SPLIT.json and cirr/image_splits/split.rc2.SPLIT.json with dev/ and "
            "test1/ beside cirr/ (SEARLE), or captions/, image_splits/, dev/ and test1/ together in CIRR/ or "
            "in the folder itself (Pic2Word)"
        ),
        source=(
            "annotations: branch cirr_dataset of github.com/Cuberick-Orion/CIRR, which states the licence; "
            "pictures: those of NLVR2, on request at lil.nlp.cornell.edu/nlvr"
        ),
        official={
            ("val",): {"cirr": Size(4_181, 2_297)},
            ("test1",): {"cirr": Size(4_148, 2_315)},
        },
    ),
    "fashioniq": DatasetEntry(
        title="FashionIQ",
        splits=("val",),
        load=fashioniq.load,
        layout=(
            "captions/cap.CATEGORY.val.json (or json/ in place of captions/, Pic2Word), "
            "image_splits/split.CATEGORY.val.json and images/NAME.png or .jpg, in the folder itself or in "
            "fashion-iq/ or FashionIQ/"
        ),
        source=(
            "annotations: github.com/XiaoxiaoGuo/fashion-iq, which states the licence; the official "
            "addresses of the pictures are dead, its issue 18 names copies"
        ),
        options={
            "protocol": Option(
                "original",
                "the gallery: every picture of the split file, or those that queries speak of",
                tuple(fashioniq.GALLERIES),
            )
        },
        official={
            ("val", "original"): {
                "dress": Size(2_017, 3_817),
                "shirt": Size(2_038, 6_346),
                "toptee": Size(1_961, 5_373),
            },
            ("val", "val"): {
                "dress": Size(2_017, 2_628),
                "shirt": Size(2_038, 3_089),
                "toptee": Size(1_961, 2_902),
            },
        },
        sized_by=("protocol",),
    ),
    "circo": DatasetEntry(
        title="CIRCO",
        splits=("val", "test"),
        load=circo.load,
        layout=(
            "annotations/SPLIT.json, COCO2017_unlabeled/annotations/image_info_unlabeled2017.json and "
            "COCO2017_unlabeled/unlabeled2017/NNNNNNNNNNNN.jpg, in the folder itself or in CIRCO/"
        ),
        source=(
            "annotations: github.com/miccunifi/CIRCO (CC BY-NC 4.0); pictures: 2017 Unlabeled images and "
            "Image info of cocodataset.org"
        ),
        official={
            ("val",): {"circo": Size(220, COCO_UNLABELLED)},
            ("test",): {"circo": Size(800, COCO_UNLABELLED)},
        },
    ),
    "genecis": DatasetEntry(
        title="GeneCIS",
        splits=("test",),
        load=genecis.load,
        layout=(
            "TASK.json in genecis/ or in the folder itself, val2017/ (or coco/val2017/) and VG_100K_all/ (or "
            "VG_100K/ and VG_100K_2/, also in visual_genome/)"
        ),
        source=(
            "annotations: folder genecis of github.com/facebookresearch/genecis (CC BY-NC 4.0); pictures: "
            "COCO val2017 and Visual Genome 1.2"
        ),
        # Counted in the official files: candidates of all queries together. Those of the attribute tasks were
        # not at hand.
        official={
            ("test",): {
                "focus_attribute": Size(None, None),
                "change_attribute": Size(None, None),
                "focus_object": Size(1_960, 2_192),
                "change_object": Size(1_960, 2_734),
            }
        },
    ),
    "coco": DatasetEntry(
        title="COCO object composition",
        splits=("val",),
        load=coco.load,
        layout=(
            "annotations/instances_val2017.json and val2017/, in the folder itself or in coco/; with "
            "regions=csv also coco_eval.csv and val2017_masked/ as Pic2Word's prepare_data.py writes them"
        ),
        source="2017 Val images and annotations of cocodataset.org (annotations CC BY 4.0)",
        options={
            "regions": Option(
                "drawn", "the objects to ask with: drawn with the seed, or Pic2Word's list", ("drawn", "csv")
            ),
            "seed": Option(1, "decides which object of each picture is drawn"),
        },
    ),
    "imagenet-r": DatasetEntry(
        title="ImageNet-R domain conversion",
        splits=("test",),
        load=imagenet_r.load,
        layout=(
            "imgnet_real_query.txt, imgnet_targets.txt, imagenet-r/nNNNNNNNN/ and real/nNNNNNNNN/ (the "
            "validation photos sorted by class), in imgnet/ or in the folder itself"
        ),
        source=(
            "lists: data/imgnet of github.com/google-research/composed_image_retrieval (Apache-2.0); "
            "pictures: github.com/hendrycks/imagenet-r and the validation photos of ILSVRC 2012 "
            "(image-net.org, for research only)"
        ),
        official={("test",): dict.fromkeys(imagenet_r.DOMAINS, PHOTOS)},
    ),
    "world": DatasetEntry(
        title="Synthetic world",
        splits=("val",),
        load=world.load,
        layout="queries.json and images/NNNNN.jpg",
        source="`tercet-train world FOLDER` renders it, from a seed (Apache-2.0, as this package)",
    ),
}
