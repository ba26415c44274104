"""Bias, coverage and standard errors of recovery studies, drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scipy.stats import norm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mixlogit_align.econometrics.study_results import RecoveryStudy

# Safe for colour-blind readers.
_GOOD, _BEYOND, _NOT_JUDGED, _BAND = "#0072b2", "#d55e00", "#8c8c8c", "#e4e4e4"
_INTERVAL = float(norm.isf(0.025))


def recovery_figure(studies: Mapping[str, RecoveryStudy], comparisons: int | None = None) -> Figure:
    """Three panels side by side, one line a quantity.

    Parameters
    ----------
    studies : mapping of str to RecoveryStudy
        By what to call them; each has its own bands.
    comparisons : int, optional
        How many quantities are judged together; None: those of each study.

    Returns
    -------
    matplotlib.figure.Figure
        Bias in standard deviations of the estimates, coverage, and mean standard error over standard deviation, each
        with a 95 % Monte Carlo interval. Orange: beyond chance; grey: not judged.
    """
    from matplotlib.figure import Figure

    rows = [(title, study, name) for title, study in studies.items() for name in study.statistics]
    figure = Figure(figsize=(9.0, 1.3 + 0.24 * max(len(rows), 4)), layout="constrained")
    bias, coverage, ratio = figure.subplots(1, 3, sharey=True)
    outside = {title: study.beyond_chance(comparisons) for title, study in studies.items()}
    for y, (title, study, name) in enumerate(rows):
        one, band = study.statistics[name], study.chance(comparisons)
        judged, beyond = name in study.judged, outside[title].get(name, ())
        root = math.sqrt(max(one.total, 1))
        colour = {key: _BEYOND if key in beyond else _GOOD if judged else _NOT_JUDGED for key in ("bias", "coverage")}
        if judged:
            _band(bias, y, -band.z / root, band.z / root)
            _band(coverage, y, band.lowest, band.highest)
        _mark(bias, y, one.bias_z / root, -_INTERVAL / root, _INTERVAL / root, colour["bias"])
        if name not in study.settings["zero_spreads"]:
            lower, upper = one.coverage.interval()
            share = one.coverage.value
            _mark(coverage, y, share, lower - share, upper - share, colour["coverage"])
            half = _INTERVAL * one.se_ratio_error
            _mark(ratio, y, one.se_ratio, -half, half, _GOOD if judged else _NOT_JUDGED)
    labels = [f"{title}: {name}" if title else name for title, _, name in rows]
    bias.set_yticks(range(len(rows)), labels)
    bias.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    levels = {study.level for study in studies.values()}
    for axes, title, wanted in (
        (bias, "bias / sd", {0.0}),
        (coverage, "coverage", levels),
        (ratio, "mean standard error / sd", {1.0}),
    ):
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        for value in wanted:
            axes.axvline(value, color="#1b1b1b", linewidth=1.0, linestyle=(0, (3, 2)), zorder=1)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure


def _band(axes: Any, y: int, low: float, high: float) -> None:
    if not math.isnan(low):
        axes.fill_betweenx([y - 0.5, y + 0.5], low, high, color=_BAND, linewidth=0, zorder=0)


def _mark(axes: Any, y: int, value: float, low: float, high: float, colour: str) -> None:
    """A dot with a bar from value + low to value + high."""
    if math.isfinite(value):
        if math.isfinite(low):
            axes.plot([value + low, value + high], [y, y], color=colour, linewidth=1.3, zorder=2)
        axes.plot(value, y, marker="o", markersize=4, color=colour, zorder=3)
