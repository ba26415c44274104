"""Gains of runs over another run on the same pairs: by subgroup, by context, and on average.

The MixDPO paper's figures 3 and 6, turned so that the names of many subgroups can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.report.averages import METRICS, Row, attributes_of, contextual, rows_of, said_of
from mixlogit_align.report.comparable import data_of, differences, in_common, settings_of
from mixlogit_align.report.figures.drawing import (
    MUTED,
    PANEL,
    PAPER,
    TRUTH,
    Draw,
    Figure,
    Key,
    Panel,
    Style,
    slug,
    styles_of,
)
from mixlogit_align.report.figures.subgroups import around, figure_name, marker_size, name_rows
from mixlogit_align.report.files import Run

LEVELS = ("cell", "small", "missing")
NO_INTERVAL: Style = {"color": MUTED, "marker": "o", "markersize": 6, "linestyle": "none", "markerfacecolor": PAPER}
Series = Mapping[str, Sequence[Row]]  # what each method gains
Place = tuple[str | None, bool, str]  # attribute, whether it is a level of it, and which


def gains_of(runs: Sequence[Run]) -> dict[str, list[tuple[Run, Mapping[str, Any]]]]:
    """What runs have been held against, by that run's name, with the results of ``evaluate --against``.

    Two runs of one name that a run was held against are told apart by their folders.
    """
    found: dict[str, list[tuple[Run, Mapping[str, Any]]]] = {}
    for run in runs:
        names = [result["against"] for result in run.gains.values()]
        for folder, result in run.gains.items():
            name = result["against"]
            found.setdefault(name if names.count(name) == 1 else f"{name} ({folder})", []).append((run, result))
    return found


def gains_figure(runs: Sequence[Run], against: str | None = None, *, metric: str = "margin/sum") -> Figure | None:
    """Gains over another run: one panel an attribute, those of the occasion after those of the person, then averages.

    Parameters
    ----------
    runs : sequence of Run
        Held against the other by ``mixlogit-align evaluate RUN --against OTHER``; runs that were not are not drawn.
        Those that differ in their seeds alone are one series.
    against : str, optional
        Name of the other run. By default the only one that there is.
    metric : str
        As in ``gains-over-NAME.json``.

    Returns
    -------
    Figure or None
        None where no run was held against another.

    Raises
    ------
    InvalidInputError
        For a name that no run was held against, or none where there are several; a metric that was not measured.
    """
    found = gains_of(runs)
    if not found:
        return None
    if against is None and len(found) == 1:
        (against,) = found
    if against not in found:
        raise InvalidInputError(
            explain(
                "against",
                got=repr(against),
                expected=f"one of {', '.join(map(repr, found))}",
                hint="one of these, or `mixlogit-align evaluate RUN --against OTHER`",
            )
        )
    results = {id(run): result for run, result in found[against]}
    settings = settings_of(run for run, _ in found[against])
    series = {
        label or setting.label: rows_of([results[id(run)] for run in setting.runs], metric)
        for label, setting in zip(differences(settings), settings, strict=True)
    }
    styles = styles_of(list(series))
    name = slug(f"{figure_name(f'gains-over-{against}', metric)}-{data_of(settings)}")
    occasions = set().union(*(contextual(run) for run, _ in found[against]))
    attributes = sorted(attributes_of(results.values()), key=lambda attribute: attribute in occasions)
    reach = _reach(series)
    panels = []
    for attribute in attributes:
        labels = _levels(series, attribute)
        title = f"{attribute} (of the occasion)" if attribute in occasions else attribute
        draw = _drawing(series, styles, attribute, labels, metric, reach)
        panels.append(Panel(f"{name}-{slug(attribute)}", title, draw, size=_size(len(labels), len(series))))
    averages = _averages(series)
    draw = _drawing(series, styles, None, averages, metric, reach)
    panels.append(Panel(f"{name}-averages", "on average", draw, size=_size(len(averages), len(series))))
    levels = said_of(results.values(), lambda result: f"{result['level']:.0%}")
    least = said_of(results.values(), lambda result: str(result["minimum"]))
    adjustment = said_of(results.values(), lambda result: result["adjustment"].replace("_", " "))
    seeds = max(len(setting.runs) for setting in settings)
    untested = any(row.seen is not None and row.seen.lower is None for rows in series.values() for row in rows)
    return Figure(
        name,
        f"Gains over {against}",
        panels,
        [
            *(Key(label, {**style, "linestyle": "solid", "markersize": 6}) for label, style in styles.items()),
            *([Key("no interval: too few clusters", NO_INTERVAL)] if untested else []),
            Key(f"no gain over {against}", TRUTH),
        ],
        f"Each point is the mean {METRICS[metric][0]}, less that of {against} on the same pairs; its area grows with "
        f"the subgroup's pairs, whose number stands beside its name. Bars are {levels} intervals of the "
        f"paired bootstrap by clusters; hollow points have none, and no test, since a group has fewer than "
        f"{least} clusters. Stars: p below 0.05 (*) or 0.01 (**) by the sign-flip test, of subgroups "
        f"adjusted for their number ({adjustment}). Micro averages count pairs, macro "
        "averages subgroups alike."
        + (
            " With several seeds: means of their gains and of their intervals' ends, and the stars that every seed has."
            if seeds > 1
            else " The intervals know nothing of how another seed would have come out."
        )
        + in_common(settings),
    )


def _drawing(
    series: Series,
    styles: Mapping[str, Style],
    attribute: str | None,
    labels: Mapping[Place, str],
    metric: str,
    reach: tuple[float, float],
) -> Draw:
    """Draw the rows named, those of one attribute or, for None, the averages; the methods below each other in each."""
    most = max(row.num_pairs for rows in series.values() for row in rows if row.kind in LEVELS or attribute is None)
    step = 0.72 / len(series)

    def draw(axes: Any) -> None:
        axes.axvline(0.0, **TRUTH, zorder=1)
        for i, (label, rows) in enumerate(series.items()):
            style = {**styles[label], "linestyle": "none", "markeredgewidth": 0.8}
            placed = {_key(row): row for row in rows}
            for y, key in enumerate(labels):
                row = placed.get(key)
                if row is None or row.seen is None:
                    continue
                seen, at = row.seen, y + (i - (len(series) - 1) / 2) * step
                right = seen.value
                if seen.lower is None or seen.upper is None:
                    style = {**style, "markerfacecolor": PAPER, "alpha": 1.0}
                else:
                    style = {**style, "markerfacecolor": style["color"], "alpha": 0.4}
                    axes.plot([seen.lower, seen.upper], [at, at], color=style["color"], linewidth=1.4, zorder=5)
                    right = max(seen.upper, right)
                size = marker_size(row.num_pairs, most) if attribute is not None else 6.5
                axes.plot(seen.value, at, **{**style, "markersize": size}, zorder=4)
                if seen.stars:
                    axes.annotate(
                        seen.stars, (right, at), xytext=(3, -3.5), textcoords="offset points", color=style["color"]
                    )
        name_rows(axes, list(labels.values()))
        axes.set_xlim(*reach)
        axes.set_xlabel(f"gain, {METRICS[metric][1]}")

    return draw


def _key(row: Row) -> Place:
    return row.attribute, row.kind in LEVELS, row.label


def _levels(series: Series, attribute: str) -> dict[Place, str]:
    """The levels of an attribute, the smallest first, those of unknown level last; each with its name and size."""
    rows = {_key(row): row for rows in series.values() for row in rows
            if row.attribute == attribute and row.kind in LEVELS}  # fmt: skip
    ordered = sorted(rows.items(), key=lambda item: (item[1].kind == "missing", item[1].num_pairs))
    return {key: f"{row.label} ({row.num_pairs:,.0f})" for key, row in ordered}


def _averages(series: Series) -> dict[Place, str]:
    """All pairs, and the averages of each attribute; a micro average only where some pairs lack the attribute."""
    rows = {_key(row): row for rows in series.values() for row in rows if row.kind not in LEVELS}
    everything = max(row.num_pairs for row in rows.values() if row.attribute is None)
    return {
        key: f"{row.label if row.attribute is None else f'{row.attribute}, {row.label}'} ({row.num_pairs:,.0f})"
        for key, row in rows.items()
        if row.seen is not None and not (row.kind == "micro" and row.num_pairs == everything)
    }


def _reach(series: Series) -> tuple[float, float]:
    """Limits that all panels share, with room for stars."""
    seen = [row.seen for rows in series.values() for row in rows if row.seen is not None]
    ends = [end for one in seen for end in (one.lower, one.value, one.upper) if end is not None]
    low, high = around([0.0, *ends])
    return low, high + 0.05 * (high - low)


def _size(num_rows: int, num_series: int) -> tuple[float, float]:
    return PANEL[0], 0.75 + num_rows * max(0.3, 0.15 * num_series + 0.1)
