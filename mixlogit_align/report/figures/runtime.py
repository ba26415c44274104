"""Run time of methods relative to DPO: the MixDPO paper's figure 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixlogit_align.report.comparable import is_dpo, mean, sd, settings_of, without_method
from mixlogit_align.report.figures.drawing import INK, MUTED, PANEL, PAPER, SERIES, TRUTH, Figure, Key, Panel, Style
from mixlogit_align.report.figures.subgroups import around, name_rows
from mixlogit_align.report.files import Run

MEAN: Style = {"color": SERIES[0], "marker": "s", "markersize": 7, "linestyle": "solid", "linewidth": 1.4}
EACH: Style = {"color": MUTED, "marker": "o", "markersize": 3.5, "linestyle": "none", "alpha": 0.8}


def runtime_figure(runs: Sequence[Run]) -> Figure | None:
    """Run time relative to DPO, its mean and standard deviation over pairs of runs; None where no run has a DPO beside.

    Parameters
    ----------
    runs : sequence of Run
        Each finished run is divided by the DPO runs that differ from it in the method alone: of the same data, model,
        sizes, seeds, precision, processes and machine. Runs without such a one are not drawn.
    """
    ratios = relative_seconds(runs)
    if not ratios:
        return None
    counts = {len(each) for each in ratios.values()}

    def draw(axes: Any) -> None:
        axes.axvline(1.0, **TRUTH, zorder=1)
        for y, each in enumerate(ratios.values()):
            middle, spread = mean(each), sd(each)
            axes.plot(each, [y] * len(each), **EACH, zorder=2)
            if spread is not None:
                axes.errorbar(middle, y, xerr=spread, color=INK, capsize=3, linewidth=1.2, zorder=3)
            axes.plot(middle, y, **{**MEAN, "linestyle": "none"}, zorder=4)
            axes.annotate(f"{middle:.2f}×", (middle, y), xytext=(0, 7), textcoords="offset points", ha="center",
                          color=INK, fontsize="small", zorder=5,
                          bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6})  # fmt: skip
        name_rows(axes, list(ratios))
        low, high = around([1.0, *(end for each in ratios.values() for end in _ends(each))])
        air = 0.08 * (high - low)  # for the numbers over the outermost
        axes.set_xlim(low - air, high + air)
        axes.set_xlabel("run time relative to DPO")

    return Figure(
        "runtime",
        "Run time beside DPO",
        [Panel("runtime-relative", "", draw, size=(PANEL[0], 0.9 + 0.5 * len(ratios)))],
        [
            *([Key("mean ± 1 sd", MEAN)] if max(counts) > 1 else [Key("run time", MEAN)]),
            *([Key("one pair of runs", EACH)] if max(counts) > 1 else []),
            Key("DPO", TRUTH),
        ],
        "Seconds that the steps of the preference stage took, an example, divided by those of the DPO run that differs "
        "in the method alone. A step is counted from its batch to the optimiser's update, as the runs timed it; "
        "reading, the reference's scoring, evaluation and saving are not counted. The runs must have had their machine "
        "to themselves: nothing here can tell. "
        + (f"Means and standard deviations are over {_counted(counts)} pairs of runs, of all data, models and seeds."
           if max(counts) > 1 else "There is one pair of runs for each method: nothing is known of the spread."),
    )  # fmt: skip


def relative_seconds(runs: Sequence[Run]) -> dict[str, list[float]]:
    """By method, the seconds an example of each run over those of the DPO run beside it (their mean, where several)."""
    timed = [(run, seconds) for run in runs if (seconds := seconds_an_example(run)) is not None]
    beside: dict[str, list[float]] = {}
    for run, seconds in timed:
        if is_dpo(run.config):
            beside.setdefault(_alike(run), []).append(seconds)
    methods = {id(run): setting.label for setting in settings_of(run for run, _ in timed) for run in setting.runs}
    found: dict[str, list[float]] = {}
    for run, seconds in timed:
        if not is_dpo(run.config) and _alike(run) in beside:
            found.setdefault(methods[id(run)], []).append(seconds / mean(beside[_alike(run)]))
    return found


def seconds_an_example(run: Run) -> float | None:
    """What a training example of the preference stage took; None for a run that has not finished, or was not timed."""
    rows = [row for row in run.metrics if row["stage"] == "preference" and row["split"] == "train"]
    if run.status != "finished" or not rows or any(not row.get("examples_per_second") for row in rows):
        return None
    before, seconds = 0.0, 0.0
    for row in rows:
        seconds += (row["examples_seen"] - before) / row["examples_per_second"]
        before = row["examples_seen"]
    return seconds / before


def _alike(run: Run) -> str:
    return f"{without_method(run.config)} {run.precision} {run.processes} {run.machine}"


def _ends(each: Sequence[float]) -> list[float]:
    middle, spread = mean(each), sd(each) or 0.0
    return [*each, middle - spread, middle + spread]


def _counted(counts: set[int]) -> str:
    return str(max(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
