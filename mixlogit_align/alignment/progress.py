"""Progress of a run as events, and a terminal bar that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

SHOWN = {"loss": ("loss", ".3f"), "rewards/accuracies": ("accuracy", ".0%")}


class Progress(Protocol):
    """Called after every step with what is done, and before the first."""

    def __call__(self, task: str, done: int, total: int, metrics: Mapping[str, float], /) -> None: ...


class RichProgress:
    """A `Progress` that draws one rich bar a task, with examples per second and the time left, within 80 columns.

    A context manager; a task's bar starts at its first call.
    """

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        self._bars = Bars(
            # the only column that may give way: a long name takes several lines
            TextColumn("{task.description}", table_column=Column()),
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> RichProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, task: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Advance the bar of ``task`` to ``done`` of ``total`` examples."""
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total, rate="", shown="")
        bar = self._tasks[task]
        speed = self._bars.tasks[bar].speed
        self._bars.update(
            bar,
            completed=done,
            rate=f"{speed:.0f}/s" if speed else "",
            shown=" ".join(
                f"{label} {metrics[name]:{shape}}" for name, (label, shape) in SHOWN.items() if name in metrics
            ),
        )
