"""Driving a plan: asking for each need once and sending the answers back."""

import asyncio
from collections.abc import Awaitable, Callable

from tercet.compositions.needs import Answer, Need
from tercet.compositions.plans import Plan
from tercet.compositions.scoring import ComposedQuery

__all__ = ["drive", "drive_async"]


def drive(plan: Plan, answer: Callable[[Need], Answer]) -> ComposedQuery:
    """Run `plan` with `answer`, which is called once for each need that differs, and return its query."""
    known: dict[Need, Answer] = {}
    try:
        needs = next(plan)
        while True:
            for need in needs:
                if need not in known:
                    known[need] = answer(need)
            needs = plan.send([known[need] for need in needs])
    except StopIteration as done:
        return done.value
    finally:
        plan.close()


async def drive_async(plan: Plan, answer: Callable[[Need], Awaitable[Answer]]) -> ComposedQuery:
    """`drive` for asyncio: what a plan asks for together is under way together."""
    known: dict[Need, Answer] = {}
    try:
        needs = next(plan)
        while True:
            missing = [need for need in dict.fromkeys(needs) if need not in known]
            answers = await asyncio.gather(*map(answer, missing))
            known |= dict(zip(missing, answers, strict=True))
            needs = plan.send([known[need] for need in needs])
    except StopIteration as done:
        return done.value
    finally:
        plan.close()
