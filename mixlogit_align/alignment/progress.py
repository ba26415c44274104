"""Progress of a run as events, and what a terminal or a log shows of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import TaskID

HELD_OUT = "eval/"  # prefix of an evaluation's metrics
METRICS = {"loss": ("loss", ".3f"), "rewards/accuracies": ("accuracy", ".0%")}
RATES = {"examples_per_second": "examples/s", "tokens_per_second": "tokens/s"}
LINE_SECONDS = 60.0  # between two lines of a log, evaluations aside


class Progress(Protocol):
    """Called before the first step, after every step, and after an evaluation, whose metrics begin with ``eval/``.

    Its arguments: the task, how many of its examples are done, how many there are, and metrics, among them
    ``examples_per_second`` and ``tokens_per_second``.
    """

    def __call__(self, task: str, done: int, total: int, metrics: Mapping[str, float], /) -> None: ...


class RichProgress:
    """A `Progress` for people: examples/s, tokens/s, time left, loss and accuracy. A context manager.

    On a terminal, one bar a task within 80 columns. Elsewhere (a pipe, a file, nohup), plain lines: one where a task
    starts and ends and one a minute, and beside them one an evaluation.

    Parameters
    ----------
    console : rich.console.Console, optional
        Standard output where not given.
    clock : callable, optional
        Seconds; the system's where not given.
    """

    def __init__(self, console: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console

        console = Console() if console is None else console
        drawn = console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)
        self._view: _Bars | _Lines = _Bars(console) if drawn else _Lines(console)
        self._clock = clock
        self._pace: dict[str, _Pace] = {}

    def __enter__(self) -> RichProgress:
        self._view.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.stop()

    def __call__(self, task: str, done: int, total: int, metrics: Mapping[str, float], /) -> None:
        """Show that ``done`` of ``total`` examples of ``task`` are done."""
        now = self._clock()
        left = self._pace.setdefault(task, _Pace()).left(done, total, now)
        self._view.show(_State(task, done, total, left, metrics, now))


@dataclass
class _Pace:
    """A task's own clock. It starts after the first step: start-up does not count, evaluations and saves do."""

    start_done: int | None = None
    start: float | None = None

    def left(self, done: int, total: int, now: float) -> str:
        """The time left at the pace since the clock started; empty before two steps are done, and at the end."""
        if self.start_done is None:
            self.start_done = done
        elif self.start is None and done > self.start_done:
            self.start_done, self.start = done, now
        if self.start is None or not self.start_done < done < total:
            return ""
        return str(timedelta(seconds=round((now - self.start) * (total - done) / (done - self.start_done))))


@dataclass(frozen=True)
class _State:
    """A task at one call."""

    task: str
    done: int
    total: int
    left: str
    metrics: Mapping[str, float]
    now: float

    def rates(self) -> list[str]:
        """E.g. "812 examples/s"."""
        return [f"{_short(self.metrics[name])} {unit}" for name, unit in RATES.items() if name in self.metrics]

    def values(self, prefix: str = "") -> list[str]:
        """E.g. "loss 0.551"."""
        named = {prefix + name: shape for name, shape in METRICS.items()}
        return [
            f"{label} {self.metrics[name]:{shape}}" for name, (label, shape) in named.items() if name in self.metrics
        ]


class _Bars:
    """Two lines a task, so that everything fits 80 columns."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        self._bars = Progress(
            # the only column that may give way: a long name takes several lines
            TextColumn("{task.description}", table_column=Column()),
            BarColumn(bar_width=8),
            *(TextColumn(f"{{task.fields[{name}]}}") for name in ("position", "rates", "values")),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def start(self) -> None:
        self._bars.start()

    def stop(self) -> None:
        self._bars.stop()

    def show(self, state: _State) -> None:
        fields: dict[str, Any] = {
            "position": f"{state.done}/{state.total}" + (f"\n{state.left} left" if state.left else ""),
            "rates": "\n".join(state.rates()),
            "values": "\n".join(state.values()),
        }
        if state.task not in self._tasks:
            self._tasks[state.task] = self._bars.add_task(state.task, total=state.total, **fields)
        # an evaluation has neither rates nor values, and leaves what the last step showed
        shown = {name: text for name, text in fields.items() if text}
        self._bars.update(self._tasks[state.task], completed=state.done, **shown)


class _Lines:
    """One line now and then, written through at once."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self._last: dict[str, float] = {}

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def show(self, state: _State) -> None:
        held_out = [f"held-out {value}" for value in state.values(HELD_OUT)]
        due = state.now - self._last.get(state.task, -math.inf) >= LINE_SECONDS
        if not (held_out or due or state.done == state.total):
            return
        if not held_out:
            self._last[state.task] = state.now
        left = [f"{state.left} left"] if state.left else []
        parts = [f"{state.task} {state.done}/{state.total}", *(held_out or [*left, *state.rates(), *state.values()])]
        self._console.print(", ".join(parts), soft_wrap=True, markup=False, highlight=False)


def _short(value: float) -> str:
    """Three significant digits, thousands and millions by letter."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
