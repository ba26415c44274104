"""How well estimates recover a truth, with the Monte Carlo error of every figure."""

# R replications.

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, norm, t

Array = NDArray[np.float64]
# Nothing is said about a spread over fewer.
FEWEST = 3


@dataclass(frozen=True)
class Share:
    """How many of how many replications.

    Attributes
    ----------
    count, total : int
    """

    count: int
    total: int

    @property
    def value(self) -> float:
        """NaN of none."""
        return self.count / self.total if self.total else math.nan

    @property
    def error(self) -> float:
        """Monte Carlo standard error: half of Wilson's interval over its normal quantile.

        ``sqrt(p (1 - p) / R)`` but for terms in 1 / R, which keep it from being 0 at a share of 0 or 1.
        """
        low, high = self.interval()
        return (high - low) / (2.0 * float(norm.isf(0.025)))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Interval of the share by Wilson's score, which is none too short at 0 and 1.

        Parameters
        ----------
        level : float

        Returns
        -------
        (float, float)
            NaN of none.
        """
        if not self.total:
            return math.nan, math.nan
        found = binomtest(self.count, self.total).proportion_ci(level, method="wilson")
        return float(found.low), float(found.high)


@dataclass(frozen=True)
class Chance:
    """What chance alone does to estimates and intervals that are right.

    Attributes
    ----------
    lowest, highest : float
        Share of intervals that cover.
    z : float
        Bias in Monte Carlo errors.
    """

    lowest: float
    highest: float
    z: float

    @classmethod
    def of(cls, total: int, comparisons: int, level: float, familywise: float) -> Chance:
        """Bands that all of ``comparisons`` quantities keep to, but with probability ``familywise`` (Bonferroni).

        Of the coverage by the binomial distribution, exactly: at most ``familywise / (2 comparisons)`` below the
        lowest share and above the highest. Of the bias by Student's t with R - 1 degrees of freedom.

        Parameters
        ----------
        total : int
            R.
        comparisons : int
            Quantities that are judged together.
        level : float
            Of the intervals.
        familywise : float
        """
        tail = familywise / (2.0 * max(comparisons, 1))
        lowest, highest = binom.ppf(tail, total, level), binom.isf(tail, total, level)
        return cls(float(lowest) / total, float(highest) / total, float(t.isf(tail, total - 1)))


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """One quantity over the replications that converged; Monte Carlo standard errors end in ``_error``.

    Attributes
    ----------
    truth : float
        The mean, where it depends on the data; NaN where there is none.
    estimate, sd : float
        Mean and standard deviation of the estimates.
    bias, bias_error, bias_z : float
        Mean of estimate less truth; ``sd / sqrt(R)``; their ratio.
    rmse, rmse_error : float
        Root mean squared difference from the truth; by the jackknife.
    coverage : Share
        Intervals that hold the truth. One without a standard error does not, unless it is the truth that has none.
    std_error, se_ratio, se_ratio_error : float
        Mean reported standard error, and its ratio to the sd of the same estimates; by the jackknife. Replications
        without a standard error are not in these.
    total : int
        R.
    """

    truth: float
    estimate: float
    sd: float
    bias: float
    bias_error: float
    bias_z: float
    rmse: float
    rmse_error: float
    coverage: Share
    std_error: float
    se_ratio: float
    se_ratio_error: float
    total: int

    @classmethod
    def of(cls, truth: Array, estimate: Array, std_error: Array, level: float) -> Recovery:
        """Compute all of it.

        Parameters
        ----------
        truth, estimate, std_error : array, shape (R,)
            Standard errors NaN or infinite where there are none.
        level : float
            Of the normal intervals.
        """
        total = len(estimate)
        difference = estimate - truth
        known = np.isfinite(std_error)
        half = norm.isf((1.0 - level) / 2.0) * np.where(known, std_error, 0.0)
        judged = not np.isnan(truth).any()
        with np.errstate(invalid="ignore"):  # infinite estimates, of a gamma without spread
            covered = known & (np.abs(difference) <= half)
            bias, bias_error = _mean(difference)
            sd = float(estimate.std(ddof=1)) if total >= FEWEST else math.nan
            rmse, rmse_error = _rmse(difference)
            mean_error, se_ratio, se_ratio_error = _se_ratio(estimate[known], std_error[known])
        return cls(
            truth=float(truth.mean()) if total else math.nan,
            estimate=float(estimate.mean()) if total else math.nan,
            sd=sd,
            bias=bias,
            bias_error=bias_error,
            bias_z=bias / bias_error if bias_error > 0.0 else math.nan,
            rmse=rmse,
            rmse_error=rmse_error,
            coverage=Share(int(covered.sum()), total if judged else 0),
            std_error=mean_error,
            se_ratio=se_ratio,
            se_ratio_error=se_ratio_error,
            total=total,
        )


def _mean(values: Array) -> tuple[float, float]:
    if len(values) < FEWEST:
        return (float(values.mean()) if len(values) else math.nan), math.nan
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))


def _rmse(difference: Array) -> tuple[float, float]:
    n = len(difference)
    if n < FEWEST:
        return math.nan, math.nan
    squares = difference**2
    return math.sqrt(float(squares.mean())), _jackknife(np.sqrt((squares.sum() - squares) / (n - 1)))


def _se_ratio(estimate: Array, std_error: Array) -> tuple[float, float, float]:
    """Mean standard error, its ratio to the sd of the estimates, and the error of that."""
    n = len(estimate)
    if n < FEWEST:
        return (float(std_error.mean()) if n else math.nan), math.nan, math.nan
    mean, sd = float(std_error.mean()), float(estimate.std(ddof=1))
    if not sd > 0.0:
        return mean, math.nan, math.nan
    centred = estimate - estimate.mean()
    # without one of them the sum of squares about the new mean is smaller by n / (n - 1) times its square
    squares = (centred**2).sum() - centred**2 * n / (n - 1)
    others = (std_error.sum() - std_error) / (n - 1)
    return mean, mean / sd, _jackknife(others / np.sqrt(squares / (n - 2)))


def _jackknife(without_one: Array) -> float:
    """Standard error from the R values that leave one replication out each (Efron and Stein 1981)."""
    n = len(without_one)
    return math.sqrt((n - 1) / n * float(((without_one - without_one.mean()) ** 2).sum()))
