"""Running an evaluation: gallery embedded, queries composed and ranked; whatever a server answers is kept."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from tercet.client import Client
from tercet.compositions.driving import drive
from tercet.compositions.needs import (
    Answer,
    ImageNeed,
    Need,
    PseudoTokenNeed,
    TextNeed,
    dump,
    load,
    worth_keeping,
)
from tercet.compositions.registry import Recipe, check_needs
from tercet.compositions.scoring import ComposedQuery, unit
from tercet.compositions.settings import Settings
from tercet.errors import DatasetError, InferenceError, InputError
from tercet.evaluation.cache import AnswerCache, key_of
from tercet.evaluation.gallery import embed_gallery, encoder_key, picture_key
from tercet.evaluation.ranking import near, rank
from tercet.evaluation.values import Dataset, PictureSource, Query, Ranking, Task
from tercet.lineup import Lineup

__all__ = ["Chosen", "Progress", "TaskRun", "evaluate"]

Vector = NDArray[np.float32]
Progress = Callable[[str, int, int], None]
"""Called with the step, how much of it is done, and how much there is."""

ANSWERS = "answers.sqlite"
NAMED = 5
"""Queries that an error names; it counts all."""


@dataclass(frozen=True)
class Chosen:
    """A composition to evaluate; `label` is what tables call it."""

    label: str
    recipe: Recipe
    settings: Settings


@dataclass(frozen=True, eq=False)
class TaskRun:
    """One task under one composition: what each query was composed to, by wording, and how it ranked."""

    task: Task
    composed: tuple[tuple[ComposedQuery, ...], ...]
    ranking: Ranking


def evaluate(
    dataset: Dataset,
    client: Client,
    chosen: Sequence[Chosen],
    cache_folder: Path,
    *,
    top: int = 50,
    in_flight: int = 32,
    on_progress: Progress = lambda step, done, total: None,
) -> dict[str, tuple[TaskRun, ...]]:
    """Compose and rank every query of `dataset` in every chosen way; by label, the tasks' runs.

    What the server answers is kept in `cache_folder`: a run that was killed goes on where it was, and
    compositions share captions and embeddings.

    Args:
        dataset: from `load_dataset`.
        client: of the server whose networks are evaluated.
        chosen: the compositions, their labels all different.
        cache_folder: made if missing; several data sets and lineups may share one.
        top: how many of the best candidates of every query to return.
        in_flight: queries composed at once. With 1 the server never batches, and two runs of one machine give
            the same numbers to the last bit.
        on_progress: called after every picture and query.

    Raises:
        LineupError: the server lacks a role that a composition needs.
        DatasetError: pictures or queries cannot be used: the first few are named, all counted. All that could
            be done is kept.
        ServerError: the server failed; the same call goes on from there.
    """
    lineup = client.lineup()
    for choice in chosen:
        check_needs(choice.recipe, choice.settings, lineup)
    names = sorted({name for task in dataset.tasks for name in _candidates(task)})
    rows = {name: row for row, name in enumerate(names)}
    gallery = embed_gallery(
        names, dataset.pictures, client, cache_folder, partial(on_progress, "embedding the gallery")
    )
    runs: dict[str, tuple[TaskRun, ...]] = {}
    with AnswerCache(cache_folder / ANSWERS) as cache:
        answers = Answers(client, cache, lineup, dataset.pictures, rows, gallery)
        for choice in chosen:
            composed = _compose(dataset, choice, answers, in_flight, partial(on_progress, choice.label))
            runs[choice.label] = tuple(
                TaskRun(task, of_task, _rank(task, of_task, gallery, rows, top))
                for task, of_task in zip(dataset.tasks, composed, strict=True)
            )
    return runs


class Answers:
    """What a plan asks for: from the gallery, from the cache, or from the server and then kept."""

    def __init__(
        self,
        client: Client,
        cache: AnswerCache,
        lineup: Lineup,
        pictures: Mapping[str, PictureSource],
        rows: Mapping[str, int],
        gallery: Vector,
    ) -> None:
        self.limit = lineup.context_length
        self._client, self._cache, self._lineup = client, cache, lineup
        self._whole = f"{lineup.fingerprint}|{sorted(lineup.engines.items())}"
        self._pictures, self._rows, self._gallery = pictures, rows, gallery
        # Queries that need the same answer at the same time ask for it once.
        self._locks = [Lock() for _ in range(4096)]

    def __call__(self, reference: str, need: Need) -> Answer:
        """The answer to a need of a query about the picture `reference`."""
        if isinstance(need, ImageNeed) and reference in self._rows:
            return np.array(self._gallery[self._rows[reference]])
        source = self._pictures[reference]
        encoder_only = isinstance(need, ImageNeed) or (isinstance(need, TextNeed) and not need.pseudo_token)
        made_by = encoder_key(self._lineup) if encoder_only else self._whole
        key = key_of(made_by, need.key, picture_key(source) if need.of_reference else "")
        token = None
        if isinstance(need, TextNeed) and need.pseudo_token:
            given = self(reference, PseudoTokenNeed())
            token = given if isinstance(given, np.ndarray) else None
        with self._locks[int(key[:8], 16) % len(self._locks)]:
            kept = self._cache.get(key)
            if kept is not None:
                return load(kept)
            picture = source.path if source.treatment is None else source.encoded()
            answer = self._client.answer(need, picture, pseudo_token=token)
            if worth_keeping(answer):
                self._cache.put(key, dump(answer))
        return answer


def _candidates(task: Task) -> set[str]:
    own = (query.candidates for query in task.queries if query.candidates is not None)
    return set(task.gallery).union(*own)


def _compose(
    dataset: Dataset,
    choice: Chosen,
    answers: Answers,
    in_flight: int,
    on_progress: Callable[[int, int], None],
) -> list[tuple[tuple[ComposedQuery, ...], ...]]:
    """By task and query, one composed query for each wording."""

    def attempt(query: Query) -> tuple[ComposedQuery, ...] | InputError | InferenceError:
        def compose(modification: str) -> ComposedQuery:
            plan = choice.recipe.plan(modification, choice.settings, answers.limit)
            return drive(plan, partial(answers, query.reference))

        try:
            return tuple(compose(modification) for modification in query.modifications)
        except (InputError, InferenceError) as error:
            return error

    queries = [query for task in dataset.tasks for query in task.queries]
    results: list[tuple[ComposedQuery, ...]] = []
    failed: list[str] = []
    on_progress(0, len(queries))
    with ThreadPoolExecutor(in_flight, thread_name_prefix="evaluate") as pool:
        try:
            for done, (query, result) in enumerate(zip(queries, pool.map(attempt, queries), strict=True), 1):
                if isinstance(result, tuple):
                    results.append(result)
                else:
                    failed.append(f"query {query.name} ({result})")
                on_progress(done, len(queries))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    if failed:
        raise DatasetError(
            f"{len(failed):,} of {len(queries):,} queries cannot be composed by {choice.label!r}, and fewer "
            f"would give other numbers: {'; '.join(failed[:NAMED])}{' ...' if len(failed) > NAMED else ''}"
        )
    ends = np.cumsum([0] + [len(task.queries) for task in dataset.tasks]).tolist()
    return [tuple(results[start:end]) for start, end in itertools.pairwise(ends)]


def _rank(
    task: Task,
    composed: Sequence[tuple[ComposedQuery, ...]],
    gallery: Vector,
    rows: Mapping[str, int],
    top: int,
) -> Ranking:
    """Rank a task's queries; the vectors of several wordings are averaged, place by place."""
    vectors = [
        wordings[0].vectors
        if len(wordings) == 1
        else unit(np.mean([wording.vectors.astype(np.float64) for wording in wordings], axis=0))
        for wordings in composed
    ]
    return rank(
        task,
        vectors,
        gallery,
        rows,
        scorings=[wordings[0].scoring for wordings in composed],
        exclude=_near_duplicates(composed, gallery),
        top=top,
    )


def _near_duplicates(
    composed: Sequence[tuple[ComposedQuery, ...]], gallery: Vector
) -> list[NDArray[np.int64]]:
    """Per query the rows that its exclusion names."""
    excluded: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(composed)
    by_similarity: dict[float, list[int]] = {}
    for number, (first, *_) in enumerate(composed):
        if first.exclusion is not None:
            by_similarity.setdefault(first.exclusion.similarity, []).append(number)
    for similarity, numbers in by_similarity.items():
        references = np.stack([composed[number][0].exclusion.reference for number in numbers])  # type: ignore[union-attr]
        for number, of_query in zip(numbers, near(references, gallery, similarity), strict=True):
            excluded[number] = of_query
    return excluded
