"""Figures, one function each, for a page (panels of SVG that follow its theme) and for files (`Figure.save`)."""

from __future__ import annotations

from mixlogit_align.report.figures.calibration import calibration_figure
from mixlogit_align.report.figures.drawing import Figure, Key, Panel
from mixlogit_align.report.figures.gains import gains_figure, gains_of
from mixlogit_align.report.figures.heterogeneity import heterogeneity_figure
from mixlogit_align.report.figures.recovery import recovery_figure
from mixlogit_align.report.figures.reliability import reliability_figure
from mixlogit_align.report.figures.runtime import runtime_figure
from mixlogit_align.report.figures.strength import strength_figure
from mixlogit_align.report.figures.subgroups import subgroup_margins_figure
from mixlogit_align.report.figures.training import curves_figure, sft_figure
from mixlogit_align.report.figures.trajectories import trajectory_figure, variance_figure
from mixlogit_align.report.figures.weights import weight_figure

__all__ = [
    "Figure",
    "Key",
    "Panel",
    "calibration_figure",
    "curves_figure",
    "gains_figure",
    "gains_of",
    "heterogeneity_figure",
    "recovery_figure",
    "reliability_figure",
    "runtime_figure",
    "sft_figure",
    "strength_figure",
    "subgroup_margins_figure",
    "trajectory_figure",
    "variance_figure",
    "weight_figure",
]
