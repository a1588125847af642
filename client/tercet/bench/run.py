"""A whole measurement: every target under every load, one point after another."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tercet.bench.ceilings import Ceiling, ceiling_of
from tercet.bench.load import ClosedLoop, Load, OpenLoop
from tercet.bench.measure import Interrupted, Progress, Reading, Split, measure
from tercet.bench.server import LOCAL, Server, Step, stages
from tercet.bench.statistics import arrival_gaps
from tercet.bench.targets import (
    QUERY,
    EnsembleTarget,
    Inputs,
    QueryTarget,
    check_served,
    requests_for,
)
from tercet.bench.values import Mode, Point, Settings, Stage
from tercet.client import Client

__all__ = ["Plan", "Rate", "describe_server", "run", "with_pseudo_tokens"]

SLACK, SPARE = 0.1, 64
"""So many more requests than ours, in part of ours and at least, and the server had other clients."""


@dataclass(frozen=True)
class Rate:
    """Arrivals a second, or (`relative`) so much of the target's best closed-loop throughput in this run."""

    value: float
    relative: bool = False


@dataclass(frozen=True)
class Plan:
    """What to measure: each of `models` at each of `concurrency` and at each of `rates`, in this order."""

    models: Sequence[str]
    concurrency: Sequence[int]
    rates: Sequence[Rate] = ()
    index: Path | None = None


def run(
    server: Server,
    plan: Plan,
    inputs: Inputs,
    settings: Settings,
    *,
    ceilings: Sequence[Ceiling] = (),
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[Point]:
    """Measure point by point, each yielded when it is done.

    Raises:
        Interrupted: on Ctrl-C, with what was measured of the point under way.
        ModelMissing: before anything is measured, where the server lacks a model of the plan.
        TercetError: the server failed meanwhile.
    """
    served = server.counters().keys()
    for model in plan.models:
        check_served(model, served, server.address)
    for model in plan.models:
        most = max([*plan.concurrency, settings.outstanding if plan.rates else 1])
        with closing(_target(model, server.address, plan, inputs, settings, most)) as target:
            ceiling = _ceiling(server, target, ceilings)
            take = partial(_take, server, target, settings, on_progress, ceiling)
            best = 0.0
            for workers in plan.concurrency:
                point = take(ClosedLoop(target, workers), "closed", workers)
                best = max(best, point.throughput)
                yield point
            for number, rate in enumerate(plan.rates):
                amount = rate.value * best if rate.relative else rate.value
                gaps = arrival_gaps(amount, settings.seed + number)
                yield take(OpenLoop(target, gaps, settings.outstanding), "open", round(amount, 3))


def _take(
    server: Server,
    target: EnsembleTarget | QueryTarget,
    settings: Settings,
    on_progress: Callable[[Progress], None],
    ceiling: float | None,
    load: Load,
    mode: Mode,
    amount: float,
) -> Point:
    """One point with its ceiling, and a note if the server had other clients meanwhile."""

    def finished(point: Point) -> Point:
        foreign = [
            stage
            for stage in point.stages
            if (stage.requests - 1) * point.answers > SLACK * point.answers + SPARE
        ]
        alone = not foreign or target.name == QUERY
        notes = point.notes if alone else (*point.notes, "other clients asked the server too")
        return replace(point, ceiling=ceiling, notes=notes)

    try:
        return finished(
            measure(
                load,
                target.name,
                mode,
                amount,
                server,
                settings,
                stages_of=_stages_of(server, target),
                on_progress=on_progress,
            )
        )
    except Interrupted as stopped:
        raise Interrupted(stopped.point and finished(stopped.point)) from None


def _target(
    model: str, address: str, plan: Plan, inputs: Inputs, settings: Settings, most: int
) -> EnsembleTarget | QueryTarget:
    if model == QUERY:
        return QueryTarget(address, inputs, plan.index, settings.timeout, most)
    requests = requests_for(model, inputs, settings.timeout)
    return EnsembleTarget(model, address, requests, settings.timeout)


def _stages_of(server: Server, target: EnsembleTarget | QueryTarget) -> Split:
    """How to split a target's time: an ensemble's steps; for a query whatever it asked, and the search."""
    if isinstance(target, EnsembleTarget):
        steps = [step.model for step in server.steps(target.name)]
        return partial(stages, steps, True)

    def split(earlier: Reading, later: Reading, answers: int) -> tuple[Stage, ...]:
        models = [name for name in _in_order(server, later) if name not in LOCAL]
        searches, seconds = target.searching()
        search = (Stage("search", 1.0, 1.0, 0.0, 0.0, seconds / searches * 1e3, 0.0),) if searches else ()
        return stages(models, False, earlier, later, answers) + search

    return split


def _in_order(server: Server, models: Iterable[str]) -> list[str]:
    """The models that are no ensembles, in the order in which a query meets them."""
    order = [step.model for name in ("caption_foreground", "embed_text") for step in server.steps(name)]
    plain = [name for name in models if not server.steps(name)]
    return sorted(plain, key=lambda name: order.index(name) if name in order else len(order))


def _ceiling(server: Server, target: EnsembleTarget | QueryTarget, rows: Sequence[Ceiling]) -> float | None:
    gallery = target.gallery if isinstance(target, QueryTarget) else 0
    names = ("caption_foreground", "embed_text") if gallery else (target.name,)
    steps: list[Step] = [step for name in names for step in server.steps(name)]
    return ceiling_of(steps, rows, gallery)


def with_pseudo_tokens(inputs: Inputs, client: Client) -> Inputs:
    """`inputs` with what the server makes of its pictures, for the ensemble that takes such."""
    return replace(inputs, pseudo_tokens=lambda: client.pseudo_tokens(list(inputs.pictures)))


def describe_server(server: Server, client: Client) -> dict[str, Any]:
    """What the report says of the server: versions, lineup, networks."""
    lineup = client.lineup()
    return {
        "address": server.address,
        "triton": server.version(),
        "on_this_machine": server.processes is not None,
        "processes": None if server.processes is None else len(server.processes),
        "lineup": lineup.name,
        "fingerprint": lineup.fingerprint,
        "networks": {
            role: {"network": entry.network, "precision": entry.precision}
            for role, entry in lineup.roles.items()
        },
    }
