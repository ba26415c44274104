"""What ``mixlogit-align strength`` fitted to a run's log-ratios: what is identified first, then fits and tests."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from mixlogit_align.report.figures.heterogeneity import WORDS
from mixlogit_align.report.tables import NONE, number, table

Found = Mapping[str, Any]
FITS = {
    "fixed": "one strength for all",
    **WORDS,
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
    profile = found["profile"]
    rows = [[f"{words}<br><small>{_parameters(fit)}</small>", *(_estimate(fit, name) for name in ("mean", "sd", "cv")),
             NONE if profile is None else _interval(profile["interval"].get(kind)),
             *(number(fit[name], ".2f") for name in ("loglik", "aic", "bic"))]
            for kind, words in FITS.items() if (fit := found["fits"].get(kind)) is not None]  # fmt: skip
    annotators = "" if found["annotators"] is None else f" of {found['annotators']:,} annotators"
    level = "" if profile is None else f" {profile['level']:.0%} interval: of the profile log-likelihood."
    caption = (
        f"Maximum likelihood on {found['rows']:,} comparisons{annotators}, family {escape(found['family'])}; standard "
        f"errors in parentheses.{level} A fresh strength for each comparison and one for each annotator are not inside "
        "each other: AIC and BIC compare them."
    )
    return table(["strength", "mean", "sd", "cv", "interval of the cv", "loglik", "AIC", "BIC"], rows, caption)


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
    words = ", ".join(f"{escape(name)} {number(value, '.4g')}" for name, value in fit["params"].items())
    return f"{words}; no spread is the most likely" if fit["at_boundary"] else words


def _estimate(fit: Found, name: str) -> str:
    error = fit["std_errors"].get(name)
    return number(fit[name], ".3g") + ("" if error is None else f" ({error:.2g})")


def _interval(ends: Any) -> str:
    if ends is None:
        return NONE
    low, high = ends
    return f"{low:.3g} and above" if high is None else f"{low:.3g} to {high:.3g}"


def _pvalue(value: float | None) -> str:
    return NONE if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"
