"""The field's metrics, each a function of the ranks of one query's targets; in 0..1, times 100 when shown.

Ranks are those of `Ranking`: 1 is first, infinite where a target is no candidate.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from tercet.errors import InputError
from tercet.evaluation.values import Metric, Query, Ranking

__all__ = [
    "MEASURES",
    "average_precision",
    "by_aspect",
    "fractional_recall",
    "mean_over_tasks",
    "measure",
    "precision",
    "recall",
    "recall_any",
    "subset_recall",
]

Ranks = NDArray[np.float64]


def recall(ranks: Ranks, k: int) -> float:
    """Recall@K of the main target: 1 if the first of the targets ranks among the first K.

    For CIRR and FashionIQ (SEARLE, src/validate.py), COCO object composition (Pic2Word, src/eval_utils.py)
    and GeneCIS, whose queries have one target; for CIRCO (CIRCO, src/evaluation.py) its `target_img_id`.
    """
    return float(len(ranks) > 0 and ranks[0] <= k)


def recall_any(ranks: Ranks, k: int) -> float:
    """Recall@K as a hit rate: 1 if any target ranks among the first K (MagicLens's ImageNet-R counts so)."""
    return float(_hits(ranks, k).size > 0)


def subset_recall(ranks: Ranks, k: int) -> float:
    """CIRR's Recall_subset@K: `recall` among the group of pictures similar to the reference, without it.

    `ranks` are those within the query's subset (SEARLE, src/validate.py: the ranking reduced to the group).
    """
    return recall(ranks, k)


def average_precision(ranks: Ranks, k: int) -> float:
    """AP@K = sum over the targets among the first K of (targets up to it / its rank) / min(targets, K).

    CIRCO, src/evaluation.py; its mean over queries is mAP@K. A target named twice counts once above, twice
    below, as there.
    """
    hits = _hits(ranks, k)
    if not len(hits):
        return 0.0
    return float(np.sum(np.arange(1, len(hits) + 1) / hits) / min(len(ranks), k))


def fractional_recall(ranks: Ranks, k: int) -> float:
    """Targets among the first K / (targets + 1e-5): the share that is found; 0 where there is no target.

    ImageNet-R domain conversion (Pic2Word, src/eval_utils.py, which adds 1e-5 against division by 0).
    """
    return float(len(_hits(ranks, k)) / (len(ranks) + 1e-5))


def precision(ranks: Ranks, k: int) -> float:
    """P@K: targets among the first K / K (Pic2Word, src/eval_utils.py, for ImageNet-R)."""
    return len(_hits(ranks, k)) / k


MEASURES: Mapping[str, Callable[[Ranks, int], float]] = MappingProxyType(
    {
        function.__name__: function
        for function in (recall, recall_any, subset_recall, average_precision, fractional_recall, precision)
    }
)
"""The measures that `Metric.measure` names."""


def measure(metric: Metric, queries: Sequence[Query], ranking: Ranking) -> NDArray[np.float64]:
    """The metric of every query of a task, f64 [Q] in 0..1.

    Raises:
        InputError: there is no such measure, no query has a target, or a query lacks the subset that
            `subset_recall` ranks.
    """
    if metric.measure not in MEASURES:
        raise InputError(f"there is no measure {metric.measure!r}; there are {', '.join(MEASURES)}")
    if queries and not any(query.targets for query in queries):
        raise InputError(
            f"{metric.name} needs the right answers, which this split keeps to its server; "
            "write a submission for it instead"
        )
    ranks = ranking.target_ranks
    if metric.measure == "subset_recall":
        if without := [query.name for query in queries if not query.subset]:
            raise InputError(f"{metric.name} needs a subset for every query; {without[0]} has none")
        ranks = ranking.subset_ranks
    function = MEASURES[metric.measure]
    return np.array([function(of_query, metric.k) for of_query in ranks], np.float64)


def by_aspect(queries: Sequence[Query], values: NDArray) -> dict[str, NDArray]:
    """The values [Q] of the queries that have each aspect, in the order in which the aspects first appear.

    Its means are CIRCO's semantic mAP: a query of several aspects counts in each.
    """
    numbers: dict[str, list[int]] = {}
    for number, query in enumerate(queries):
        for aspect in dict.fromkeys(query.aspects):
            numbers.setdefault(aspect, []).append(number)
    return {aspect: values[of_aspect] for aspect, of_aspect in numbers.items()}


def mean_over_tasks(values: Iterable[NDArray]) -> float:
    """The plain mean of the tasks' means, so that every task counts the same (FashionIQ, GeneCIS)."""
    return float(np.mean([np.mean(of_task) for of_task in values]))


def _hits(ranks: Ranks, k: int) -> Ranks:
    """The ranks of the targets among the first K, ascending; a target named twice is one."""
    return np.unique(ranks[ranks <= k])
