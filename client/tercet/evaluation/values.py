"""What the parts of an evaluation hand to each other: a data set, its tasks and queries, their ranks."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tercet.errors import PictureError

__all__ = ["Dataset", "Metric", "PictureSource", "Query", "Ranking", "Task", "Treatment"]


class Treatment(Protocol):
    """What a data set's official loader does to a picture before any network sees it: a crop, a painted mask.

    A frozen dataclass: its `repr` names it in the cache of embeddings.
    """

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the picture that is searched or asked with."""


@dataclass(frozen=True)
class PictureSource:
    """A picture of a data set: a file as it is, or with its loader's treatment."""

    path: Path
    treatment: Treatment | None = None

    def encoded(self) -> bytes:
        """The file's content, or a lossless file of the treated picture.

        Raises:
            PictureError: the file cannot be read or decoded.
        """
        try:
            if self.treatment is None:
                return self.path.read_bytes()
            with Image.open(self.path) as image:
                treated = self.treatment(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise PictureError(f"{self.path} cannot be used: {error}; restore the file") from error
        file = io.BytesIO()
        treated.save(file, "PNG", compress_level=1)
        return file.getvalue()


@dataclass(frozen=True)
class Query:
    """One composed query.

    `modifications` are wordings of the same wish (FashionIQ: both orders of two captions); their embeddings
    are averaged. `targets` are the right answers, the official main one first; empty where the data set keeps
    them to itself. `candidates` are the query's own gallery (GeneCIS), in the order that breaks ties; None:
    the task's. `subset` are those that CIRR's subset recall ranks. `aspects` are what numbers are broken down
    by: category, semantic aspect, kind of modification.
    """

    name: str
    reference: str
    modifications: tuple[str, ...]
    targets: tuple[str, ...] = ()
    aspects: tuple[str, ...] = ()
    candidates: tuple[str, ...] | None = None
    subset: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """Queries over one gallery; a data set has one or several, and its headline is the mean over them.

    `gallery` is in the order that breaks ties: equal scores rank in it. It must not tell the answers.
    """

    name: str
    gallery: tuple[str, ...]
    queries: tuple[Query, ...]
    exclude_reference: bool = False


@dataclass(frozen=True)
class Metric:
    """A number of a data set: `measure` names a function of `metrics.MEASURES`, `k` its cut-off.

    Measures: `recall` (of the first target: the official main one), `recall_any` (of any target),
    `subset_recall` (`recall` within `Query.subset`), `average_precision`, `fractional_recall`, `precision`.
    The headline metric of a data set is its first.
    """

    name: str  # such as "recall@10"
    measure: str
    k: int


@dataclass(frozen=True)
class Dataset:
    """A data set as its official files describe it.

    `protocol` says in a sentence or two how its numbers come about: gallery, exclusion, averaging. `pictures`
    holds every reference and candidate by name.
    """

    name: str
    split: str
    protocol: str
    pictures: Mapping[str, PictureSource]
    tasks: tuple[Task, ...]
    metrics: tuple[Metric, ...]

    @property
    def answers_known(self) -> bool:
        """Whether the targets are there; those of test splits only their servers know.

        A single query may have none: ImageNet-R asks for classes that a domain does not have.
        """
        return any(query.targets for task in self.tasks for query in task.queries)


@dataclass(frozen=True, eq=False)
class Ranking:
    """How the queries of one task ranked.

    top: rows of the task's gallery (of the query's own candidates where it has some), best first, i64 [Q, K];
        -1 where there are fewer.
    scores: their scores, f64 [Q, K]; -inf where there are fewer.
    target_ranks: per query the rank of every target, 1 is first, in the order of `Query.targets`; inf for one
        that is no candidate. f64 [targets].
    subset_ranks: the same with the candidates reduced to the query's subset; empty where it has none.
    subset_top: per query the subset's names, best first (CIRR's second submission); empty where it has none.
    """

    top: NDArray[np.int64]
    scores: NDArray[np.float64]
    target_ranks: tuple[NDArray[np.float64], ...]
    subset_ranks: tuple[NDArray[np.float64], ...] = ()
    subset_top: tuple[tuple[str, ...], ...] = ()
