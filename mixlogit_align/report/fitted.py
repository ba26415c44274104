"""What ``mixlogit-align strength`` fitted to a run's log-ratios: what is identified first, then fits and tests."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from mixlogit_align.report.tables import NONE, number, table

Found = Mapping[str, Any]
FITS = {
    "fixed": "one strength for all",
    "comparison": "a fresh strength for each comparison",
    "annotator": "one strength for each annotator",
}


def identification(found: Found) -> str:
    """What the choices can tell of the strength, in a sentence to be read before any number."""
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in found["warnings"])
    return (
        f'<div class="callout"><p><strong>What is identified.</strong> {escape(found["identification"])}</p>'
        + (f"<ul>{warnings}</ul>" if warnings else "")
        + "</div>"
    )


def fits_table(found: Found) -> str:
    """The fits, one row each."""
    rows = [[words, number(fit["loglik"], ".2f"), number(fit["mean"], ".4g"), number(fit["sd"], ".4g"),
             number(fit["cv"], ".3g"), _parameters(fit)]
            for kind, words in FITS.items() if (fit := found["fits"].get(kind)) is not None]  # fmt: skip
    annotators = "" if found["annotators"] is None else f" of {found['annotators']:,} annotators"
    caption = (
        f"Maximum likelihood on {found['rows']:,} comparisons{annotators}, family {escape(found['family'])}. "
        "Parameters (standard errors); at its bound: the spread went to 0, where a standard error says little."
    )
    return table(["strength", "log-likelihood", "mean", "sd", "cv", "parameters"], rows, caption)


def tests_table(found: Found) -> str:
    """Likelihood-ratio tests, one row each; empty where none could be made."""
    rows = [[f"{FITS.get(test['null'], escape(test['null']))}<br><small>against "
             f"{FITS.get(test['alternative'], escape(test['alternative']))}</small>",
             number(test["statistic"], ".2f"), _pvalue(test["p"]),
             f'<div class="words">{escape(test["distribution"])}</div>']
            for test in found["tests"]]  # fmt: skip
    caption = (
        "Likelihood-ratio tests of no spread. A spread cannot be below 0, so that under the null half the statistics "
        "are 0: the distribution says so."
    )
    return table(["null", "statistic", "p", "its distribution"], rows, caption) if rows else ""


def _parameters(fit: Found) -> str:
    lines = [f"{escape(name)} {value:.4g} ({number(fit['std_errors'].get(name), '.2g')})"
             for name, value in fit["params"].items()]  # fmt: skip
    if fit["at_boundary"]:
        lines.append("at its bound")
    return "<br>".join(lines) or NONE


def _pvalue(value: float | None) -> str:
    return NONE if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"
