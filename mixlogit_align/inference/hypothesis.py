"""Likelihood-ratio tests, at the boundary too, and Wald tests: arrays only."""

# P parameters, Q restrictions.

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.stats import chi2

from mixlogit_align.errors import InvalidInputError, explain

# A restriction whose pivot is below this share of its variance says nothing that the others do not say.
_REDUNDANT = 1e-10


class WaldStatistic(NamedTuple):
    """A Wald test.

    Attributes
    ----------
    statistic : float
    dof : int
    pvalue : float
    """

    statistic: float
    dof: int
    pvalue: float


def mixture_weights(num_interior: int, num_boundary: int) -> dict[int, float]:
    """Weights of the chi-squares in the null distribution of a likelihood ratio, by degrees of freedom.

    Under the null hypothesis ``num_boundary`` parameters lie on the boundary of what they may be (a scale at 0) and
    ``num_interior`` tested ones do not. With one on the boundary the distribution is exactly
    ``chi2(q)/2 + chi2(q+1)/2``, q = ``num_interior`` (Self and Liang 1987, cases 5 and 6; Stram and Lee 1994). With s
    on the boundary ``chi2(q+k)`` has weight ``C(s,k)/2^s``: right where the information about the s, the other
    parameters partialled out, is diagonal (case 7 of Self and Liang with s = 2), an approximation elsewhere.

    Parameters
    ----------
    num_interior, num_boundary : int

    Returns
    -------
    dict of int to float
        Sums to 1; chi2(0) is a point mass at 0.

    Raises
    ------
    InvalidInputError
        If either is negative, or both are 0.
    """
    if num_interior < 0 or num_boundary < 0 or num_interior + num_boundary == 0:
        raise InvalidInputError(
            explain(
                "tested parameters",
                got=f"{num_interior} inside and {num_boundary} on the boundary",
                expected="at least one",
                hint="a restricted model with fewer parameters",
            )
        )
    return {num_interior + k: math.comb(num_boundary, k) / 2**num_boundary for k in range(num_boundary + 1)}


def likelihood_ratio_pvalue(statistic: float, weights: dict[int, float]) -> float:
    """Probability of a likelihood ratio at least this large under a mixture of chi-squares.

    Parameters
    ----------
    statistic : float
        Twice the difference of log-likelihoods, not negative.
    weights : dict of int to float
        Degrees of freedom to weight, of :func:`mixture_weights`.

    Returns
    -------
    float

    Raises
    ------
    InvalidInputError
        If the statistic is negative or NaN.
    """
    if not statistic >= 0.0:
        raise InvalidInputError(
            explain(
                "statistic",
                got=statistic,
                expected="0 or more",
                hint="the larger model first, at its maximum",
            )
        )

    def tail(dof: int) -> float:
        return float(chi2.sf(statistic, dof)) if dof else float(statistic == 0.0)

    return math.fsum(weight * tail(dof) for dof, weight in weights.items())


def wald(
    estimates: torch.Tensor, covariance: torch.Tensor, restrictions: torch.Tensor, values: torch.Tensor
) -> WaldStatistic:
    """Wald test of linear restrictions ``R theta = r``.

    ``(R theta - r)' (R V R')^-1 (R theta - r)``, chi-square with Q degrees of freedom. Holds in the interior only:
    not for a scale whose hypothesised value is 0.

    Parameters
    ----------
    estimates : torch.Tensor, shape (P,)
    covariance : torch.Tensor, shape (P, P)
    restrictions : torch.Tensor, shape (Q, P)
        R.
    values : torch.Tensor, shape (Q,)
        r.

    Returns
    -------
    WaldStatistic

    Raises
    ------
    InvalidInputError
        If the shapes disagree, the restrictions are redundant, or one of them is about parameters without a variance.
    """
    num_params = len(estimates)
    if restrictions.ndim != 2 or restrictions.shape[1] != num_params or values.shape != restrictions.shape[:1]:
        raise InvalidInputError(
            explain(
                "restrictions and values",
                got=f"shapes {tuple(restrictions.shape)} and {tuple(values.shape)}",
                expected=f"(Q, {num_params}) and (Q,)",
                hint="one row a restriction, one column a parameter",
            )
        )
    # a variance may be infinite or unknown where it is not asked for
    used = (restrictions != 0).any(0)
    spread = restrictions[:, used] @ covariance[used][:, used] @ restrictions[:, used].T
    deviation = restrictions[:, used] @ estimates[used] - values
    size = spread.diagonal().sqrt()
    known = len(values) > 0 and bool(torch.isfinite(spread).all() and torch.isfinite(deviation).all())
    if not known or not bool((size > 0.0).all()):
        raise InvalidInputError(
            explain(
                "restrictions",
                got=f"variances {spread.diagonal().tolist()}",
                expected="a finite positive variance of each restriction",
                hint="restrictions on parameters that were estimated, of a fit that converged",
            )
        )
    factor, failed = torch.linalg.cholesky_ex(spread / (size[:, None] * size))
    if failed or bool((factor.diagonal().square() < _REDUNDANT).any()):
        raise InvalidInputError(
            explain(
                "restrictions",
                got=f"{len(values)} of which one follows from the others",
                expected="linearly independent restrictions",
                hint="leaving out the redundant one",
            )
        )
    standardised = torch.linalg.solve_triangular(factor, (deviation / size)[:, None], upper=False)
    statistic = float(standardised.square().sum())
    return WaldStatistic(statistic, len(values), float(chi2.sf(statistic, len(values))))
