"""Progress of training for people: bars on a terminal, a line now and then elsewhere."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_EVERY = 0.05  # of a task, where there is no terminal to draw bars on

console = Console()


class Display:
    """Progress of several tasks at once: bars on a terminal, a line now and then elsewhere."""

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown
        self.bars = Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self.tasks: dict[str, TaskID] = {}
        self.logged: dict[str, float] = {}
        self.started: dict[str, tuple[float, int]] = {}  # when it was first heard of, and how much was done

    def __call__(self, task: str, done: int, total: int, note: str) -> None:
        """Show how far a task is."""
        if not self.shown:
            return
        if task not in self.tasks:
            self.tasks[task] = self.bars.add_task(task, total=total, note="")
            self.started[task] = time.perf_counter(), done
        self.bars.update(self.tasks[task], completed=done, note=note)
        if not console.is_terminal and (done / total >= self.logged.get(task, 0.0) or done == total):
            self.logged[task] = done / total + LOG_EVERY
            began, already = self.started[task]
            pace = (time.perf_counter() - began) / max(1, done - already)
            left = f", {pace * (total - done) / 60:.0f} min left" if done > already else ""
            console.print(f"{task}: {done:,} of {total:,}, {note}{left}", soft_wrap=True)
