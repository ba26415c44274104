"""What recoveries and runs found, as one self-contained HTML page. Numbers come from their files alone."""

from __future__ import annotations

from mixlogit_align.report.checks import Check, checks
from mixlogit_align.report.files import Evidence, Recovery, Run, read_evidence
from mixlogit_align.report.page import build_page, write_report

__all__ = ["Check", "Evidence", "Recovery", "Run", "build_page", "checks", "read_evidence", "write_report"]
