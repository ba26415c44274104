"""Estimates from simulated choices against what they should have been."""

from __future__ import annotations

import textwrap
from typing import Any

from mixlogit_align.report.figures.drawing import GRID, PANEL, SERIES, TRUTH, Figure, Panel, slug
from mixlogit_align.report.files import Recovery


def recovery_figure(recovery: Recovery) -> Figure:
    """Distance of every estimate from its truth, in standard errors; one line a case."""
    marks = [(y, z, row["passed"]) for y, row in enumerate(recovery.rows) for z in row["z"].values()]

    def draw(axes: Any) -> None:
        axes.axvspan(-2, 2, color=GRID, alpha=0.5, linewidth=0)
        axes.axvline(0, **TRUTH)
        for y, z, passed in marks:
            axes.plot(z, y, color=SERIES[0 if passed else 1], marker="o" if passed else "X", markersize=5.5, alpha=0.85)
        labels = [textwrap.fill(row["case"], 26, break_on_hyphens=False) for row in recovery.rows]
        axes.set_yticks(range(len(labels)), labels, linespacing=0.95)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        reach = max(3.2, recovery.largest_z * 1.1)
        axes.set_xlim(-reach, reach)
        axes.set_xlabel("z = (estimate − truth) / s.e.")
        axes.grid(axis="y", visible=False)

    outside = sum(abs(z) > 2 for _, z, _ in marks)
    name = f"recovery-{slug(recovery.path.stem)}"
    return Figure(
        name,
        "Every estimate against its truth",
        [Panel(name, "", draw, size=(PANEL[0], 0.8 + 0.33 * len(recovery.rows)))],
        [],
        f"Each dot is one parameter, estimated from simulated choices. If the method is right, dots scatter around 0 "
        f"and about 1 in 20 falls outside the grey band; here {outside} of {len(marks)} do. A dot far outside, or "
        f"nearly all dots on one side, would be a fault.",
    )
