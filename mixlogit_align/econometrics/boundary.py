"""What the likelihood does where heterogeneity vanishes."""

# N individuals.

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from scipy.optimize import brentq

from mixlogit_align.econometrics.families import Family
from mixlogit_align.econometrics.strength_likelihood import Chunk

# Sums of cancelling terms below this share of their size are rounding.
_ROUNDING = 1e-10


def spread_slope(chunks: Sequence[Chunk], family: Family, centre: torch.Tensor) -> float:
    """Derivative of the log-likelihood in the squared spread at 0.

    With f_n the likelihood of individual n at one strength, E f_n = f_n + spread^2 Var(z) f_n'' / 2 + O(spread^3),
    so the derivative is Var(z) / 2 * sum_n (l_n'' + l_n'^2), l_n = log f_n: the score against neglected
    heterogeneity of Chesher (1984).

    Parameters
    ----------
    chunks : sequence of Chunk
    family : Family
    centre : torch.Tensor, shape ()

    Returns
    -------
    float
        Positive: some heterogeneity is more likely than none. Exactly 0.0 where the terms cancel but for rounding:
        the data do not tell.
    """
    total = size = 0.0
    for chunk in chunks:
        deviation = torch.zeros(len(chunk.weights), dtype=torch.float64, requires_grad=True)
        loglik = chunk.loglik(dist.Delta(family.strength(centre, deviation)))
        (first,) = torch.autograd.grad(loglik.sum(), deviation, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), deviation)
        squared = first.detach() ** 2
        total += float((chunk.weights * (second + squared)).sum())
        size += float((chunk.weights * (second.abs() + squared)).sum())
    return total * family.deviate_variance / 2 if abs(total) > _ROUNDING * size else 0.0


def noticed_spread(loglik: Callable[[float], float], top: float, start: float) -> float:
    """Spread at which the log-likelihood has fallen by 1/2 from its value without heterogeneity.

    One standard error means such a fall where the log-likelihood is quadratic. At the boundary it is a function of
    the squared spread whose slope may be close to 0: there the fall is looked up.

    Parameters
    ----------
    loglik : callable
        log spread to log-likelihood, all else held.
    top : float
        Log-likelihood without heterogeneity.
    start : float
        log spread from which to search.

    Returns
    -------
    float
        Infinite if there is none between exp(start - 10) and exp(start + 5).
    """

    def fall(log_spread: float) -> float:
        return top - 0.5 - loglik(log_spread)

    bracket = (start - 10.0, start + 5.0)
    if fall(bracket[0]) > 0.0 or not fall(bracket[1]) > 0.0:
        return math.inf
    return math.exp(brentq(fall, *bracket, xtol=1e-3))
