"""Stage lines and progress bars on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

PATIENCE = 2.0
"""Seconds after which something that is running is shown."""


class _Count(MofNCompleteColumn):
    """`3/10`, and nothing where nobody knows how much there is to do."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


class _Patient(Progress):
    """Shows a task only when it has taken a while."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table([task for task in self.tasks if (task.elapsed or 0.0) >= PATIENCE])


class Stages:
    """What `progress=` of the API gets: `stages(task, done, total)`; a total of 0 begins a stage.

    A stage ends when the next one begins; it then gets a line with its notes and seconds.

    Args:
        console: standard error.
        live: draw bars (only where somebody looks).
        lines: print a line for each stage.
    """

    def __init__(self, console: Console, live: bool, lines: bool) -> None:
        self.console, self.lines = console, lines
        self._stage: str | None = None
        self._notes: list[str] = []
        self._started = 0.0
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = None
        if live:
            columns = (
                TextColumn("{task.description:<12}"),
                BarColumn(24),
                _Count(),
                TimeElapsedColumn(),
            )
            self._bars = _Patient(*columns, console=console, transient=True)
            self._bars.start()

    def __call__(self, task: str, done: int, total: int) -> None:
        if total <= 0:
            self._end()
            self._stage, self._started = task, time.perf_counter()
        if self._bars is None:
            return
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total or None)
        self._bars.update(self._tasks[task], completed=done, total=total or None)
        if 0 < total <= done:
            self._bars.remove_task(self._tasks.pop(task))

    def note(self, text: str) -> None:
        """Add a fact to the line of the stage that is running."""
        self._notes.append(text)

    def close(self) -> None:
        """End the last stage and take the bars away."""
        self._end()
        self.abandon()

    def abandon(self) -> None:
        """Take the bars away; the running stage did not finish and gets no line."""
        self._stage = None
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _end(self) -> None:
        if self._stage is not None and self.lines:
            seconds = time.perf_counter() - self._started
            line = f"{self._stage:<12}{', '.join(self._notes):<52}{seconds:8.1f} s"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._stage = None
        self._notes.clear()
        if self._bars is not None:
            for name in list(self._tasks):
                self._bars.remove_task(self._tasks.pop(name))
