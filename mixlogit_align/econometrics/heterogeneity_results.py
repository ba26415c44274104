"""What judged pairs say of the distribution of strength: estimates, tests, profile, in numbers and words."""

# C values of the cv.

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mixlogit_align.econometrics.families import FAMILIES
from mixlogit_align.econometrics.heterogeneity_identification import identification
from mixlogit_align.econometrics.rendering import Summary, Table, number, probability

if TYPE_CHECKING:
    import pandas as pd

# Points of a density that is to be drawn, from this share of the mean to so many standard deviations above it.
_POINTS, _SHARE, _SDS = 200, 0.01, 4.0
_WIDTH = 110


@dataclass(frozen=True, kw_only=True)
class StrengthEstimate:
    """One model of strength, estimated.

    Attributes
    ----------
    loglik : float
    params : dict of str to float
        ``strength`` of the fixed one; else the family's natural parameters, infinite where a gamma has no spread.
    std_errors : dict of str to float
        Of ``params``, ``mean``, ``sd`` and ``cv``; NaN where there is none, as of a spread of 0.
    mean, sd, cv : float
        Of the strength, in units of one over the log-ratio (the cv, sd / mean, has none).
    at_boundary : bool
        No spread is the most likely one.
    converged : bool
    message : str
        The grounds for ``converged``.
    aic, bic : float
        The BIC counts comparisons.
    cov_type : str
        Of the standard errors: "clustered" by annotator, or "hessian".
    integration : str
        The rule that integrated the strength out.
    integration_error : float
        How far the log-likelihood may be off by it; NaN where nothing was integrated.
    """

    loglik: float
    params: dict[str, float]
    std_errors: dict[str, float]
    mean: float
    sd: float
    cv: float
    at_boundary: bool
    converged: bool
    message: str
    aic: float
    bic: float
    cov_type: str
    integration: str
    integration_error: float


@dataclass(frozen=True, kw_only=True)
class StrengthTest:
    """A likelihood-ratio test of one strength for all.

    Attributes
    ----------
    null, alternative : str
        Names of the two models.
    statistic, p : float
    distribution : str
        Of the statistic where strengths do not vary: the spread then lies on the boundary of what it may be.
    """

    null: str
    alternative: str
    statistic: float
    p: float
    distribution: str


@dataclass(frozen=True, kw_only=True)
class StrengthProfile:
    """The log-likelihood as a function of the cv, the mean estimated anew at each.

    Attributes
    ----------
    cv : tuple of float
        C of them, from 0 up; the estimates and the ends of their intervals are among them.
    loglik, mean : dict of str to tuple of float
        C, by model: the log-likelihood, and the mean there.
    interval : dict of str to (float, float)
        By model, of the cv: from 0 where no spread is within it; to infinity where the highest cv is.
    level : float
        Of the intervals.
    """

    cv: tuple[float, ...]
    loglik: dict[str, tuple[float, ...]]
    mean: dict[str, tuple[float, ...]]
    interval: dict[str, tuple[float, float]]
    level: float


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class StrengthHeterogeneity:
    """How much strengths vary, from one comparison to the next and from one annotator to the next.

    Attributes
    ----------
    family : str
    rows : int
        Comparisons.
    ties : int
        Of them, those with a log-ratio difference of 0, which tell nothing.
    annotators : int or None
        Known ones; None without a column of them.
    repeated : int
        Annotators with two comparisons or more that are no ties.
    unknown : int
        Comparisons whose annotator is missing where others' are known: each is taken as somebody's only one.
    held_out : bool or None
        Whether the policy behind the log-ratios was not trained on these pairs; None where that is not known.
    fits : dict
        ``"fixed"``, ``"comparison"`` and ``"annotator"``, the last None where no annotator has two comparisons.
    tests : tuple of StrengthTest
        Of the fixed strength against the others. Those are not inside each other; they have two parameters each, so
        that AIC and BIC compare them as their log-likelihoods do.
    profile : StrengthProfile or None
        None where it was not asked for, or a mean could not be found; ``warnings`` then says so.
    annotator_posteriors : pandas.DataFrame or None
        Columns annotator_id, comparisons, mean, sd: every known annotator's strength given its comparisons, at the
        estimates, whose own error is not counted. None without an annotator fit that converged.
    warnings : tuple of str
    """

    family: str
    rows: int
    ties: int
    annotators: int | None
    repeated: int
    unknown: int
    held_out: bool | None
    fits: Mapping[str, StrengthEstimate | None]
    tests: tuple[StrengthTest, ...]
    profile: StrengthProfile | None
    annotator_posteriors: pd.DataFrame | None
    warnings: tuple[str, ...]

    @property
    def estimates(self) -> dict[str, StrengthEstimate]:
        """The fits that there are."""
        return {name: fit for name, fit in self.fits.items() if fit is not None}

    @property
    def converged(self) -> bool:
        """Whether all fits converged."""
        return all(fit.converged for fit in self.estimates.values())

    @property
    def identification(self) -> str:
        """What is identified and what is not, in plain words."""
        return identification(self)

    @property
    def density(self) -> dict[str, list[float]]:
        """p(strength) to be drawn: ``strength``, and the density there of each fit that has one."""
        spread = {name: fit for name, fit in self.estimates.items() if fit.cv > 0.0 and math.isfinite(fit.sd)}
        if not spread:
            return {}
        low = min(fit.mean for fit in spread.values()) * _SHARE
        high = max(fit.mean + _SDS * fit.sd for fit in spread.values())
        strength = torch.logspace(math.log10(low), math.log10(high), _POINTS, dtype=torch.float64)
        family = FAMILIES[self.family]
        found = {"strength": strength.tolist()}
        for name, fit in spread.items():
            natural = torch.tensor(list(fit.params.values()), dtype=torch.float64)
            found[name] = family.mixing(family.theta(natural)).log_prob(strength).exp().tolist()
        return found

    def to_json(self) -> dict[str, Any]:
        """All but the annotators' posteriors, as JSON holds it: NaN and infinity are null."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "annotator_posteriors"
        }
        words: dict[str, Any] = _as_json(fields | {"density": self.density, "identification": self.identification})
        return words

    @property
    def summary(self) -> Summary:
        """Table of the fits; below it tests and what is identified. ``as_html()``, ``as_latex()``."""
        known = "" if self.annotators is None else f" of {self.annotators} annotators"
        title = f"Strength, {self.family}: {self.rows} comparisons{known}"
        level = "" if self.profile is None else f"{self.profile.level:.0%} interval of the cv"
        columns = ("", "mean", "sd", "cv", level, "log-likelihood", "AIC", "BIC")
        rows = tuple(self._row(name, fit) for name, fit in self.estimates.items())
        return Summary(Table(title, columns, (rows,), tuple(self._foot())))

    def __repr__(self) -> str:
        return self.summary

    def _row(self, name: str, fit: StrengthEstimate) -> tuple[str, ...]:
        interval = None if self.profile is None else self.profile.interval.get(name)
        cells = (
            f"{number(getattr(fit, what), 4)} ({number(error, 2) or '-'})"
            if not math.isnan(error := fit.std_errors[what]) or name != "fixed"
            else number(getattr(fit, what), 4)
            for what in ("mean", "sd", "cv")
        )
        label = {"fixed": "fixed", "comparison": "one a comparison", "annotator": "one an annotator"}[name]
        mark = "" if fit.converged else ", NOT converged"
        within = "" if interval is None else f"{interval[0]:.3g} to {interval[1]:.3g}".replace("to inf", "and above")
        return (label + mark, *cells, within, f"{fit.loglik:.3f}", f"{fit.aic:.2f}", f"{fit.bic:.2f}")

    def _foot(self) -> list[str]:
        lines = [
            f"{test.null} against {test.alternative}: likelihood ratio {test.statistic:.3f}, "
            f"p {probability(test.p)} by {test.distribution}"
            for test in self.tests
        ]
        errors = {fit.cov_type for name, fit in self.estimates.items() if name != "annotator"}
        lines.append(
            "standard errors in parentheses; those of fixed and of one a comparison are clustered by annotator"
            if "clustered" in errors
            else "standard errors in parentheses"
        )
        if len(self.estimates) > 2:
            lines.append("one a comparison and one an annotator are not inside each other: compare AIC or BIC, no test")
        if self.ties:
            lines.append(f"ties: {self.ties} (a difference of 0 tells nothing)")
        if self.unknown:
            lines.append(f"comparisons of unknown annotators: {self.unknown}, each taken as somebody's only one")
        return [*lines, *(f"warning: {told}" for told in self.warnings), *textwrap.wrap(self.identification, _WIDTH)]


def _as_json(found: Any) -> Any:
    if dataclasses.is_dataclass(found):
        return {field.name: _as_json(getattr(found, field.name)) for field in dataclasses.fields(found)}
    if isinstance(found, Mapping):
        return {name: _as_json(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [_as_json(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found
