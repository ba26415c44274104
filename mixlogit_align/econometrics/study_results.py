"""What a recovery study found: tables and plots."""

# R replications.

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixlogit_align.econometrics.recovery_statistics import FEWEST, Chance, Recovery, Share
from mixlogit_align.econometrics.rendering import Summary, Table, number
from mixlogit_align.econometrics.study_folder import Quantity, Replication, read_study
from mixlogit_align.errors import InvalidInputError, explain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# What stands for a strength without heterogeneity, estimated without any.
FIXED_STRENGTH = "fixed strength"
FAMILYWISE = 0.01


@dataclass(frozen=True, eq=False, repr=False)
class RecoveryStudy:
    """Replications of a known truth, and what they say about the estimator.

    Attributes
    ----------
    settings : dict
        What determines the replications, as JSON; the same as in the folder.
    replications : tuple of Replication
        Every one, by number, those that failed or did not converge included.
    level : float
        Of the confidence intervals.

    Notes
    -----
    Statistics are over the replications that converged; the summary counts the others.

    Where a true spread is 0, it lies on the boundary of what it may be. Its estimate is 0 in about half of the
    replications and has no normal distribution, nor have the other parameters beside it, being mixtures of two cases
    (Self and Liang 1987). So the spread's coverage and SE ratio are left out, no quantity but the fixed strength (the
    model without heterogeneity) is held against bands, and where one strength is all there is, the size of the
    likelihood-ratio test of no heterogeneity is reported. Where a true spread is above 0 but estimated at 0, it
    has no standard error and counts as not covered.
    """

    settings: Mapping[str, Any]
    replications: tuple[Replication, ...]
    level: float = 0.95

    def __post_init__(self) -> None:
        if not 0.0 < self.level < 1.0:
            raise InvalidInputError(explain("level", got=self.level, expected="between 0 and 1", hint="0.95"))

    @classmethod
    def load(cls, out: str | PathLike[str], level: float = 0.95) -> RecoveryStudy:
        """Read a study from its folder, as far as it has come; nothing is run.

        Parameters
        ----------
        out : path
        level : float
            Of the confidence intervals.

        Returns
        -------
        RecoveryStudy

        Raises
        ------
        InvalidInputError
            If there is none, or it is damaged.
        """
        settings, replications = read_study(Path(out))
        return cls(settings, tuple(replications[i] for i in sorted(replications)), level)

    # ------------------------------------------------------------------ what happened

    @property
    def converged(self) -> tuple[Replication, ...]:
        """The replications that statistics are about."""
        return tuple(each for each in self.replications if each.converged)

    @property
    def failures(self) -> dict[int, str]:
        """Why replications have no estimate, by their number."""
        return {each.number: each.failure for each in self.replications if each.failure is not None}

    @property
    def not_converged(self) -> dict[int, str]:
        """What the fits said that did not converge, by the number of the replication."""
        return {each.number: each.message for each in self.replications if each.failure is None and not each.converged}

    @property
    def at_boundary(self) -> Share:
        """Converged replications in which a spread was estimated at 0."""
        return Share(sum(each.at_boundary for each in self.converged), len(self.converged))

    @property
    def rejections(self) -> Share | None:
        """Converged replications in which the likelihood-ratio test at 1 - level rejects one strength for all.

        None where one strength is not all there is. Its expectation is 1 - level where the truth has no heterogeneity.
        """
        pvalues = [each.pvalue for each in self.converged if each.pvalue is not None]
        return Share(sum(value < 1.0 - self.level for value in pvalues), len(pvalues)) if pvalues else None

    # ------------------------------------------------------------------ statistics

    @cached_property
    def statistics(self) -> dict[str, Recovery]:
        """Of every quantity: parameters, then moments."""
        names = dict.fromkeys(name for each in self.converged for name in each.quantities)
        found = {}
        for name in names:
            values = np.array([each.quantities[name] for each in self.converged], dtype=np.float64)
            truth, estimate, std_error = values.T
            found[name] = Recovery.of(truth, estimate, std_error, self.level)
        return found

    @property
    def without_heterogeneity(self) -> bool:
        """Whether a true spread is 0."""
        return bool(self.settings["zero_spreads"])

    @property
    def judged(self) -> tuple[str, ...]:
        """Quantities with a truth and, where the model is right, nearly normal estimates."""
        names = (name for name, found in self.statistics.items() if not math.isnan(found.truth))
        return tuple(name for name in names if not self.without_heterogeneity or name == FIXED_STRENGTH)

    def chance(self, comparisons: int | None = None, familywise: float = FAMILYWISE) -> Chance:
        """Bands that bias and coverage keep to where the estimator and its errors are right.

        Parameters
        ----------
        comparisons : int, optional
            How many quantities are judged together; None: those of this study.
        familywise : float
            Probability that any of them falls outside, for coverage and for bias each.

        Returns
        -------
        Chance
            NaN with fewer than 3 replications.
        """
        total = len(self.converged)
        if total < FEWEST:
            return Chance(math.nan, math.nan, math.nan)
        return Chance.of(total, len(self.judged) if comparisons is None else comparisons, self.level, familywise)

    def beyond_chance(self, comparisons: int | None = None, familywise: float = FAMILYWISE) -> dict[str, list[str]]:
        """Judged quantities outside the bands of :meth:`chance`.

        Parameters
        ----------
        comparisons, familywise
            As of :meth:`chance`.

        Returns
        -------
        dict of str to list of str
            ``{"x.scale": ["bias", "coverage"]}``; empty where nothing is outside.
        """
        band = self.chance(comparisons, familywise)
        found = {}
        for name in self.judged:
            one = self.statistics[name]
            outside = ["bias"] * (abs(one.bias_z) > band.z)
            outside += ["coverage"] * (not band.lowest <= one.coverage.value <= band.highest)
            if outside and not math.isnan(band.z):
                found[name] = outside
        return found

    def to_frame(self) -> pd.DataFrame:
        """One row a quantity.

        Returns
        -------
        pandas.DataFrame
            Columns ``truth``, ``estimate``, ``sd``, ``bias``, ``bias_error``, ``bias_z``, ``rmse``, ``rmse_error``,
            ``coverage``, ``coverage_error``, ``coverage_lower``, ``coverage_upper`` (Wilson, 95%), ``std_error``,
            ``se_ratio``, ``se_ratio_error``, ``replications``; NaN where there is none.
        """
        import pandas as pd

        rows = {}
        for name, one in self.statistics.items():
            lower, upper = one.coverage.interval()
            row = {
                "truth": one.truth,
                "estimate": one.estimate,
                "sd": one.sd,
                "bias": one.bias,
                "bias_error": one.bias_error,
                "bias_z": one.bias_z,
                "rmse": one.rmse,
                "rmse_error": one.rmse_error,
                "coverage": one.coverage.value,
                "coverage_error": one.coverage.error,
                "coverage_lower": lower,
                "coverage_upper": upper,
                "std_error": one.std_error,
                "se_ratio": one.se_ratio,
                "se_ratio_error": one.se_ratio_error,
                "replications": one.total,
            }
            if self._no_interval(name):
                without = ("coverage", "se_ratio", "std_error")
                row |= {key: math.nan for key in row if key.startswith(without)}
            rows[name] = row
        return pd.DataFrame.from_dict(rows, orient="index")

    def estimates(self) -> pd.DataFrame:
        """One row a quantity of a replication, those that did not converge included.

        Returns
        -------
        pandas.DataFrame
            Columns ``replication``, ``quantity``, ``truth``, ``estimate``, ``std_error``, ``converged``,
            ``at_boundary``.
        """
        import pandas as pd

        columns = ["replication", "quantity", *Quantity._fields, "converged", "at_boundary"]
        rows = [
            (each.number, name, *values, each.converged, each.at_boundary)
            for each in self.replications
            for name, values in each.quantities.items()
        ]
        return pd.DataFrame(rows, columns=columns)

    def _no_interval(self, name: str) -> bool:
        return name in self.settings["zero_spreads"]

    # ------------------------------------------------------------------ for reading

    @property
    def summary(self) -> Summary:
        """Table of bias, RMSE, coverage and SE ratio, Monte Carlo errors in parentheses.

        Prints as text; ``as_html()``, ``as_latex()``. A star marks what is beyond chance.
        """
        outside = self.beyond_chance()

        def row(name: str) -> tuple[str, ...]:
            one = self.statistics[name]
            star = {
                key: "*" if key in outside.get(name, ()) else " " if outside else "" for key in ("bias", "coverage")
            }
            dashed = self._no_interval(name)
            coverage = "" if dashed else _with_error(one.coverage.value, one.coverage.error, ".3f")
            return (
                name,
                number(one.truth),
                _with_error(one.bias, one.bias_error, ".2g"),
                ("" if math.isnan(one.bias_z) else f"{one.bias_z:.2f}") + star["bias"],
                _with_error(one.rmse, one.rmse_error, ".3g"),
                coverage + star["coverage"],
                "" if dashed else _with_error(one.se_ratio, one.se_ratio_error, ".3f"),
            )

        columns = ("", "truth", "bias", "z", "RMSE", f"coverage of {self.level:.4g}", "SE / sd")
        of_the_model = self.settings["parameters"]
        table = Table(
            title=f"Recovery: {self.settings['title']}",
            columns=columns,
            blocks=(
                tuple(row(name) for name in self.statistics if name in of_the_model),
                tuple(row(name) for name in self.statistics if name not in of_the_model),
            ),
            foot=tuple(self._foot(bool(outside))),
        )
        return Summary(table)

    def _foot(self, starred: bool) -> list[str]:
        total, good = len(self.replications), len(self.converged)
        lines = [
            f"{total} replications: {good} converged, {len(self.not_converged)} did not, {len(self.failures)} failed; "
            f"{self.at_boundary.count} with a spread of 0",
            "statistics of those that converged, Monte Carlo errors in parentheses; z: bias in its errors; SE / sd: "
            "mean standard error over the estimates' standard deviation",
        ]
        if good >= FEWEST and self.judged:
            band = self.chance()
            lines.append(
                f"{'* beyond chance: ' if starred else 'nothing judged is beyond chance: '}{FAMILYWISE:.0%} familywise "
                f"over {len(self.judged)} quantities, |z| up to {band.z:.2f}, coverage {band.lowest:.3f} to "
                f"{band.highest:.3f}"
            )
        if self.rejections is not None and good:
            lines.append(
                f"likelihood ratio: one strength for all is rejected at {1.0 - self.level:.3g} in a share of "
                f"{_with_error(self.rejections.value, self.rejections.error, '.3f')}"
            )
        if self.without_heterogeneity:
            names = ", ".join(self.settings["zero_spreads"])
            lines.append(
                f"the truth has no heterogeneity ({names}), the boundary of what it may be: a spread of 0 has no "
                "normal interval, and what stands beside it is not normal either, so neither is judged"
            )
        for what, found in (("failed", self.failures), ("not converged", self.not_converged)):
            lines += [f"{what}, replication {i}: {why}" for i, why in list(found.items())[:1]]
        warned = [(each.number, text) for each in self.replications for text in each.warnings]
        if warned:
            lines.append(f"{len(warned)} warnings; replication {warned[0][0]}: {warned[0][1]}")
        return lines

    def plot(self) -> Figure:
        """Bias in standard deviations of the estimates, coverage, and SE ratio, with their Monte Carlo errors.

        Returns
        -------
        matplotlib.figure.Figure
            Bars are 95 % Monte Carlo intervals; grey bands what chance alone does, 1 % familywise.
        """
        from mixlogit_align.econometrics.study_figure import recovery_figure

        return recovery_figure({"": self})

    def __repr__(self) -> str:
        return self.summary


def _with_error(value: float, error: float, shape: str) -> str:
    if math.isnan(value):
        return ""
    return f"{value:{shape}}" + ("" if math.isnan(error) else f" ({error:.2g})")
