"""Progress: what a terminal and what a log show of a run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mixlogit_align.alignment import RichProgress

LONG = "cv1 mixdpo lognormal monte carlo 16"
STEP = {"loss": 0.5514, "rewards/accuracies": 0.7144, "examples_per_second": 812.3, "tokens_per_second": 98_345.0}
HELD_OUT = {"eval/loss": 0.6931, "eval/rewards/accuracies": 0.5}


class Clock:
    """Goes forward when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Shown:
    """A progress on a console of 80 columns with a clock; ``text()`` is what was written."""

    def __init__(self, terminal: bool) -> None:
        self.file, self.clock = io.StringIO(), Clock()
        # no colours, so that the text is plain; the terminal still moves its cursor
        console = Console(file=self.file, width=80, force_terminal=terminal, color_system=None)
        self.progress = RichProgress(console, self.clock)

    def step(self, task: str, done: int, total: int, metrics=STEP, seconds: float = 1.0) -> None:
        self.clock.now += seconds
        self.progress(task, done, total, metrics)

    def text(self) -> str:
        return self.file.getvalue()


def last_drawing(text: str) -> str:
    """The bars as they stand at the end: what follows the last movement of the cursor, without control codes."""
    return text.rpartition("\x1b[2K")[2].replace("\x1b[?25h", "")


# --- bars ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "total"), [("preference", 10_000), ("preference", 12_345_678), (LONG, 12_345_678)], ids=str
)
def test_bars_show_everything_within_80_columns(task, total):
    shown = Shown(terminal=True)
    with shown.progress:
        shown.step(task, 0, total, {})
        shown.step(task, 64, total)
        shown.step(task, 128, total)
    drawing = last_drawing(shown.text())
    assert max(map(len, drawing.splitlines())) <= 80
    assert "…" not in drawing
    left = {10_000: "0:02:34 left", 12_345_678: "2 days, 5:34:59 left"}[total]  # 64 examples a second
    texts = [f"128/{total}", "812 examples/s", "98.3k tokens/s", "loss 0.551", "accuracy 71%", left]
    assert [text for text in texts if text not in drawing] == []
    assert set(task.split()) <= set(drawing.split())


def test_an_evaluation_leaves_the_bars_values():
    shown = Shown(terminal=True)
    with shown.progress:
        shown.step("preference", 0, 128, {})
        shown.step("preference", 64, 128)
        shown.step("preference", 64, 128, HELD_OUT)
    assert "loss 0.551" in last_drawing(shown.text())
    assert "0.693" not in shown.text()


def test_metrics_that_are_not_there_are_not_shown():
    shown = Shown(terminal=True)
    with shown.progress:
        shown.step("sft", 10, 10, {"loss": 2.5})
    assert "10/10" in last_drawing(shown.text())
    assert "loss 2.500" in shown.text()
    assert not {"accuracy", "examples/s", "tokens/s", "left"} & set(shown.text().split())


# --- lines -----------------------------------------------------------------------------------------


def test_a_log_has_start_end_evaluations_and_a_line_a_minute():
    shown = Shown(terminal=False)
    with shown.progress:
        shown.step("preference", 0, 960, {})
        shown.step("preference", 0, 960, HELD_OUT, seconds=30)
        for done in range(64, 961, 64):
            shown.step("preference", done, 960, seconds=25)
        shown.step("preference", 960, 960, {"eval/loss": 0.6, "eval/rewards/accuracies": 0.625})
    step = "812 examples/s, 98.3k tokens/s, loss 0.551, accuracy 71%"
    # Steps of 25 s: a line at every third. The clock starts after the first, so 64 examples in 25 s are its pace.
    assert shown.text().splitlines() == [
        "preference 0/960",
        "preference 0/960, held-out loss 0.693, held-out accuracy 50%",
        f"preference 128/960, 0:05:25 left, {step}",
        f"preference 320/960, 0:04:10 left, {step}",
        f"preference 512/960, 0:02:55 left, {step}",
        f"preference 704/960, 0:01:40 left, {step}",
        f"preference 896/960, 0:00:25 left, {step}",
        f"preference 960/960, {step}",
        "preference 960/960, held-out loss 0.600, held-out accuracy 62%",
    ]


def test_every_task_has_its_own_lines():
    shown = Shown(terminal=False)
    with shown.progress:
        for task in ("sft", LONG):
            shown.step(task, 0, 2, {})
            shown.step(task, 1, 2)
            shown.step(task, 2, 2, {"loss": 1.0})
    assert shown.text().splitlines() == ["sft 0/2", "sft 2/2, loss 1.000", f"{LONG} 0/2", f"{LONG} 2/2, loss 1.000"]


def test_names_are_not_markup():
    shown = Shown(terminal=False)
    with shown.progress:
        shown.step("[bold]", 0, 1, {})
    assert shown.text() == "[bold] 0/1\n"


def test_a_line_is_in_its_file_before_the_run_ends(tmp_path):
    """A run under nohup that is killed leaves its lines; files are buffered in blocks."""
    with (tmp_path / "log").open("w") as log, RichProgress(Console(file=log)) as progress:
        progress("preference", 0, 64, {})
        assert (tmp_path / "log").read_text() == "preference 0/64\n"


# --- time left -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "left"),
    [
        # (seconds since the last call, done), of 100
        pytest.param([(0, 0), (500, 10), (10, 20)], "0:01:20", id="start-up does not count"),
        pytest.param([(0, 40), (500, 50), (10, 60)], "0:00:40", id="nor what an earlier part of the run did"),
        pytest.param([(0, 0), (500, 10), (10, 20), (20, 20), (10, 30)], "0:02:20", id="evaluations do"),
        pytest.param([(0, 0), (500, 10)], None, id="one step says nothing"),
        pytest.param([(0, 100)], None, id="nothing is left"),
    ],
)
def test_time_left(calls, left):
    shown = Shown(terminal=False)
    with shown.progress:
        for seconds, done in calls:
            shown.step("preference", done, 100, {}, seconds=seconds)
        # a line is due, in no time
        shown.progress._view._last.clear()
        shown.step("preference", calls[-1][1], 100, {}, seconds=0)
    line = shown.text().splitlines()[-1]
    assert line == f"preference {calls[-1][1]}/100" + (f", {left} left" if left else "")


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.01234, "0.0123"), (9.876, "9.88"), (999.4, "999"), (999.6, "1k"), (12_345, "12.3k"), (2.5e6, "2.5M")],
    ids=str,
)
def test_rates_are_short(rate, text):
    shown = Shown(terminal=False)
    with shown.progress:
        shown.step("sft", 1, 1, {"tokens_per_second": rate})
    assert shown.text() == f"sft 1/1, {text} tokens/s\n"
