"""Numbers that others published, as data with their sources, to stand beside ours."""

import functools
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from tercet.evaluation.results import DatasetFacts

__all__ = [
    "OPENAI_BACKBONES",
    "PublishedRow",
    "all_published",
    "backbone_of",
    "beside",
    "may_be_openai",
    "published_rows",
]

TEST_SPLITS = {"cirr": "test1", "circo": "test"}
"""What papers report; other splits of these data sets give other numbers."""

BACKBONES = {
    "ViT-B-32": "ViT-B/32",
    "ViT-L-14": "ViT-L/14",
    "ViT-H-14": "ViT-H/14",
    "ViT-g-14": "ViT-g/14",
    "ViT-bigG-14": "ViT-G/14",
}


OPENAI_BACKBONES = ("ViT-B/32", "ViT-L/14")
"""Of these papers mean OpenAI's weights; the larger ones are only OpenCLIP's."""


@dataclass(frozen=True)
class PublishedRow:
    """A method's published numbers, in percent.

    values: by metric, named as in `Metric.name`; tasks: the same by task (FashionIQ's categories).
    unverified: numbers that were written down from memory and not seen again: `recall@10`, or with the task
        before it `dress recall@10`.
    options: of the data set that they hold for.
    not_comparable: why they do not compare with ours, in words; empty where they do.
    source: where they were read.
    """

    dataset: str
    split: str
    backbone: str
    method: str
    training_free: bool | None
    values: Mapping[str, float]
    source: str
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    not_comparable: str = ""


@functools.cache
def all_published() -> tuple[PublishedRow, ...]:
    """Every row of `published.json`, in its order."""
    text = importlib.resources.files("tercet.evaluation").joinpath("published.json").read_text("utf-8")
    content = json.loads(text)
    return tuple(
        PublishedRow(
            **{
                **row,
                "unverified": tuple(row.get("unverified", ())),
                "source": content["sources"][row["source"]],
            }
        )
        for row in content["rows"]
    )


def published_rows(dataset: str, split: str, backbone: str | None = None) -> tuple[PublishedRow, ...]:
    """The rows of a data set's split; of one backbone, such as `ViT-L/14`, if it is given."""
    return tuple(
        row
        for row in all_published()
        if (row.dataset, row.split) == (dataset, split) and backbone in (None, row.backbone)
    )


def backbone_of(lineup: Mapping[str, object]) -> str | None:
    """How papers call the lineup's image encoder, from a report's lineup; None where they do not."""
    return BACKBONES.get(_architecture(lineup).removesuffix("-quickgelu"))


def may_be_openai(lineup: Mapping[str, object]) -> bool:
    """Whether the image encoder may be OpenAI's: it has their activation function, which few others have."""
    return _architecture(lineup).endswith("-quickgelu")


def _architecture(lineup: Mapping[str, object]) -> str:
    roles = lineup.get("roles")
    role = roles.get("clip_image") if isinstance(roles, Mapping) else None
    options = role.get("options") if isinstance(role, Mapping) else None
    return str(options.get("arch", "")) if isinstance(options, Mapping) else ""


def beside(
    dataset: DatasetFacts, backbone: str | None = None
) -> tuple[tuple[PublishedRow, ...], tuple[str, ...]]:
    """The rows to show beside a report's numbers, and what to know when comparing, in sentences.

    Where papers report another split, its rows are shown, and the first sentence says so.
    """
    split, warnings = dataset.split, []
    usual = TEST_SPLITS.get(dataset.name, split)
    rows = published_rows(dataset.name, usual, backbone)
    if usual != split:
        rows = published_rows(dataset.name, split, backbone) + rows
        warnings.append(
            f"Published numbers are of {usual}, ours of {split}: other queries, not comparable to the digit."
        )
    for row in rows:
        for name, value in row.options.items():
            ours = dataset.options.get(name, value)
            if ours != value:
                warnings.append(
                    f"Published numbers are of {name}={value}, ours of {name}={ours}: not comparable."
                )
    return rows, tuple(dict.fromkeys(warnings))
