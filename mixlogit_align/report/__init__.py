"""What recoveries and runs found: one self-contained HTML page, and figures and tables as files.

Numbers come from the files of runs alone. `mixlogit_align.report.figures` has one function a figure.
"""

from __future__ import annotations

from mixlogit_align.report.checks import Check, checks
from mixlogit_align.report.export import LeftOut, write_figures
from mixlogit_align.report.files import Evidence, Recovery, Run, read_evidence
from mixlogit_align.report.grid import Grid
from mixlogit_align.report.page import build_page, write_report
from mixlogit_align.report.paper_tables import results_table

__all__ = [
    "Check",
    "Evidence",
    "Grid",
    "LeftOut",
    "Recovery",
    "Run",
    "build_page",
    "checks",
    "read_evidence",
    "results_table",
    "write_figures",
    "write_report",
]
