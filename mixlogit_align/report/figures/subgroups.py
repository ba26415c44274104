"""Margins by subgroup against the averages that hide them: micro, which counts pairs, and macro, which counts groups.

The MixDPO paper's figure 2, turned so that the names of many subgroups can be read.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.report.averages import METRICS, Row, attributes_of, require_evaluated, rows_of, said_of
from mixlogit_align.report.comparable import Setting, data_of, differences, in_common, settings_of
from mixlogit_align.report.figures.drawing import (
    INK,
    MUTED,
    PANEL,
    PAPER,
    SERIES,
    Draw,
    Figure,
    Key,
    Panel,
    Style,
    slug,
)
from mixlogit_align.report.files import Run

MICRO: Style = {"color": SERIES[0], "linestyle": "solid", "linewidth": 1.5}
MACRO: Style = {"color": SERIES[1], "linestyle": (0, (5, 1.6)), "linewidth": 1.5}
MACRO_ALL: Style = {"color": MUTED, "linestyle": (0, (1.4, 1.4)), "linewidth": 1.3}
POINT: Style = {"color": INK, "marker": "o", "markersize": 6, "linestyle": "none", "alpha": 0.4, "markeredgewidth": 0.8}
HOLLOW: Style = {**POINT, "alpha": 1.0, "markerfacecolor": PAPER}
EACH: Style = {"color": INK, "marker": "|", "markersize": 6, "linestyle": "none", "markeredgewidth": 0.8}
LARGEST, SMALLEST = 10.0, 3.0  # points across, of a marker
LEVELS = ("cell", "small", "missing")


def subgroup_margins_figure(
    runs: Sequence[Run], attribute: str | None = None, *, metric: str = "margin/sum"
) -> Figure | None:
    """Margins by subgroup, one panel a setting and attribute; None where the pairs have no subgroups.

    Parameters
    ----------
    runs : sequence of Run
        Evaluated ones. Those that differ in their seeds alone share a panel.
    attribute : str, optional
        By default every one that was evaluated.
    metric : str
        As in ``evaluation.json``.

    Returns
    -------
    Figure or None

    Raises
    ------
    InvalidInputError
        For a run that has not been evaluated, or not by the attribute or metric.
    """
    require_evaluated(runs)
    settings = settings_of(runs)
    panels = [(setting, name, _rows(setting, name, metric)) for setting in settings
              for name in (_attributes(setting) if attribute is None else [attribute])]  # fmt: skip
    if not panels:
        return None
    name = slug(f"{figure_name('margins', metric)}-{attribute or ''}-{data_of(settings)}")
    reach = _reach([row for _, _, rows in panels for row in rows])
    kinds = {row.kind for _, _, rows in panels for row in rows}
    results = [run.evaluation for run in runs if run.evaluation is not None]
    least = said_of(results, lambda result: str(result["minimum"]))
    clusters = said_of(results, lambda result: result["clusters"].partition(" ")[2])  # without their number
    which = dict(zip(map(id, settings), differences(settings), strict=True))
    several = len({by for _, by, _ in panels}) > 1

    def title(setting: Setting, by: str) -> str:
        return "; ".join(part for part in (which[id(setting)], by if several or not which[id(setting)] else "") if part)

    seeds = max(len(setting.runs) for setting in settings)
    return Figure(
        name,
        f"Margins by {attribute or 'subgroup'}, and what averages make of them",
        [
            Panel(
                f"{name}-{i}",
                title(setting, by),
                _drawing(rows, metric, reach),
                size=(PANEL[0], 0.75 + 0.3 * sum(row.kind in LEVELS for row in rows)),
            )
            for i, (setting, by, rows) in enumerate(panels)
        ],
        [
            Key("subgroup ± s.e.", POINT),
            *([Key(f"fewer than {least} clusters, or unknown", HOLLOW)]
              if kinds & {"small", "missing"} else []),
            *([Key("one seed", EACH)] if seeds > 1 else []),
            Key("micro average", MICRO),
            Key("macro average", MACRO),
            *([Key("macro average, small ones too", MACRO_ALL)] if "macro_all" in kinds else []),
        ],
        f"Each point is the mean {METRICS[metric][0]} of a subgroup of the held-out pairs, the smallest "
        "subgroups on top; its area grows with its pairs, whose number stands beside its name. The micro "
        "average counts every pair alike, so that large subgroups decide it; the macro average counts every subgroup "
        f"alike, save the hollow ones. Bars are one standard error, over {clusters}"
        + (f"; with several seeds, the mean over them with at most this error, and a tick for each of {seeds} or fewer"
           if seeds > 1 else "")
        + "."
        + in_common(settings),
    )  # fmt: skip


def _drawing(rows: Sequence[Row], metric: str, reach: tuple[float, float]) -> Draw:
    levels = sorted((row for row in rows if row.kind in LEVELS), key=lambda row: (row.kind == "missing", row.num_pairs))
    averages = {row.kind: row.seen for row in rows if row.kind not in LEVELS}

    def draw(axes: Any) -> None:
        for kind, style in (("macro_all", MACRO_ALL), ("micro", MICRO), ("macro", MACRO)):
            seen = averages.get(kind)
            if seen is not None:
                axes.axvline(seen.value, **style, zorder=1)
        most = max(row.num_pairs for row in levels)
        for y, row in enumerate(levels):
            assert row.seen is not None, "a level has pairs, and so a mean"
            if row.seen.standard_error is not None:
                ends = [row.seen.value - row.seen.standard_error, row.seen.value + row.seen.standard_error]
                axes.plot(ends, [y, y], color=INK, linewidth=1.3, zorder=5)
            if len(row.seen.each) > 1:
                axes.plot(row.seen.each, [y] * len(row.seen.each), **EACH, zorder=3)
            style = POINT if row.kind == "cell" else HOLLOW
            axes.plot(row.seen.value, y, **{**style, "markersize": marker_size(row.num_pairs, most)}, zorder=4)
        name_rows(axes, [f"{row.label} ({row.num_pairs:,.0f})" for row in levels])
        axes.set_xlim(*reach)
        axes.set_xlabel(", ".join(METRICS[metric]))

    return draw


def figure_name(what: str, metric: str) -> str:
    """What, and of which metric unless it is the paper's."""
    return what if metric == "margin/sum" else f"{what}-{metric}"


def marker_size(num_pairs: float, most: float) -> float:
    """Points across: the area is in proportion to the pairs, but never too small to be seen."""
    return max(LARGEST * math.sqrt(num_pairs / most), SMALLEST)


def name_rows(axes: Any, labels: Sequence[str]) -> None:
    """Names on the vertical axis, the first on top."""
    axes.set_yticks(range(len(labels)), [textwrap.fill(label, 25) for label in labels], linespacing=0.95)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def around(ends: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis with some air about what is drawn."""
    low, high = min(ends), max(ends)
    air = 0.06 * (high - low) or 0.5
    return low - air, high + air


def _reach(rows: Sequence[Row]) -> tuple[float, float]:
    """Limits that all panels share."""
    ends = []
    for seen in (row.seen for row in rows if row.seen is not None):
        error = seen.standard_error or 0.0
        ends += [seen.value - error, seen.value + error, *seen.each]
    return around(ends)


def _attributes(setting: Setting) -> list[str]:
    return attributes_of(run.evaluation for run in setting.runs if run.evaluation is not None)


def _rows(setting: Setting, attribute: str, metric: str) -> list[Row]:
    results = [run.evaluation for run in setting.runs if run.evaluation is not None]
    rows = [row for row in rows_of(results, metric) if row.attribute == attribute]
    if not rows:
        known = attributes_of(results)
        raise InvalidInputError(
            explain(
                f"attribute of {setting.runs[0].path}",
                got=repr(attribute),
                expected=f"one of {', '.join(known)}" if known else "pairs with subgroups",
                hint=f"`mixlogit-align evaluate {setting.runs[0].path} --by {attribute}`",
            )
        )
    return rows
