"""The bootstrap over individuals, and its bias-corrected and accelerated intervals."""

# N individuals (rows that stand for some individuals alike), P parameters, B replications.

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import ndtr, ndtri

from mixlogit_align.errors import ConvergenceError, InvalidInputError, explain

# Relative difference by which an estimate and its replication may differ by rounding and still count as equal.
_ROUNDING = 1e-12


class Bootstrap(NamedTuple):
    """Estimates of resampled data.

    Attributes
    ----------
    estimates : torch.Tensor, shape (B - num_failed, P)
    num_failed : int
        Replications without an estimate.
    """

    estimates: torch.Tensor
    num_failed: int


def bootstrap_weights(frequencies: torch.Tensor, num_replications: int, seed: int) -> torch.Tensor:
    """How often each individual is drawn, with replacement, into each replication.

    Multinomial with ``sum(frequencies)`` trials and probabilities in proportion to the frequencies: resampling the
    individuals behind the rows. Whole panels are drawn, never single situations.

    Parameters
    ----------
    frequencies : torch.Tensor, shape (N,)
        Whole numbers; ones where every row is one individual.
    num_replications : int
    seed : int
        The same seed, the same weights; the first replications are the same whatever their number.

    Returns
    -------
    torch.Tensor, shape (B, N), float64

    Raises
    ------
    InvalidInputError
        If frequencies are not whole, or there is no replication.
    """
    whole = bool((frequencies == frequencies.round()).all()) and bool((frequencies >= 0).all())
    total = int(frequencies.sum()) if whole else 0
    if frequencies.ndim != 1 or total < 2:
        raise InvalidInputError(
            explain(
                "frequencies",
                got=f"shape {tuple(frequencies.shape)}, values such as {frequencies.flatten()[:3].tolist()}",
                expected="one whole number a row, 2 individuals or more in all",
                hint="frequency weights, or another covariance where weights are no frequencies",
            )
        )
    if num_replications < 1:
        raise InvalidInputError(
            explain("num_replications", got=num_replications, expected="1 or more", hint="200 for standard errors")
        )
    share = frequencies.detach().double().cpu().numpy()
    counts = np.random.default_rng(seed).multinomial(total, share / share.sum(), size=num_replications)
    return torch.as_tensor(counts, dtype=torch.float64, device=frequencies.device)


def bootstrap(
    refit: Callable[[torch.Tensor], torch.Tensor | None],
    frequencies: torch.Tensor,
    *,
    num_replications: int,
    seed: int,
) -> Bootstrap:
    """Refit under the weights of every replication.

    Parameters
    ----------
    refit : callable
        Weights (N,) to estimates (P,); None or a ConvergenceError where that replication has none.
    frequencies : torch.Tensor, shape (N,)
        As in :func:`bootstrap_weights`.
    num_replications, seed : int

    Returns
    -------
    Bootstrap

    Raises
    ------
    ConvergenceError
        If more than half of the replications fail, or fewer than two succeed.
    InvalidInputError
        As :func:`bootstrap_weights`.
    """
    found = []
    for weights in bootstrap_weights(frequencies, num_replications, seed):
        try:
            estimate = refit(weights)
        except ConvergenceError:
            estimate = None
        if estimate is not None:
            found.append(estimate.detach())
    num_failed = num_replications - len(found)
    if 2 * num_failed > num_replications or len(found) < 2:
        raise ConvergenceError(
            explain(
                "bootstrap",
                got=f"{num_failed} of {num_replications} replications without an estimate",
                expected="at most half, and two with one",
                hint="the robust covariance, a model with fewer parameters, or more replications",
            )
        )
    return Bootstrap(torch.stack(found), num_failed)


def bootstrap_covariance(estimates: torch.Tensor) -> torch.Tensor:
    """Covariance of bootstrap estimates around their mean, with divisor B - 1.

    Parameters
    ----------
    estimates : torch.Tensor, shape (B, P)

    Returns
    -------
    torch.Tensor, shape (P, P)

    Raises
    ------
    InvalidInputError
        If there are fewer than two estimates.
    """
    if estimates.ndim != 2 or len(estimates) < 2:
        raise InvalidInputError(
            explain("estimates", got=f"shape {tuple(estimates.shape)}", expected="(B, P), B of 2 or more", hint="200")
        )
    deviations = estimates - estimates.mean(0)
    return deviations.T @ deviations / (len(estimates) - 1)


def bca_interval(
    estimates: torch.Tensor, replications: torch.Tensor, jackknife: torch.Tensor, level: float = 0.95
) -> torch.Tensor:
    """Bias-corrected and accelerated bootstrap intervals (Efron 1987), second-order accurate.

    The ends are the replications' quantiles at ``Phi(z0 + (z0 + z) / (1 - a (z0 + z)))``, z the normal quantile of
    each tail, ``Phi(z0)`` the share of replications below the estimate (half of those at it), and
    ``a = sum u^3 / (6 (sum u^2)^(3/2))`` with u the jackknife's mean less each of its estimates.

    Parameters
    ----------
    estimates : torch.Tensor, shape (P,)
        On the data as they are.
    replications : torch.Tensor, shape (B, P)
        As of :func:`bootstrap`.
    jackknife : torch.Tensor, shape (N, P)
        Estimates without each individual in turn: the units that were resampled, clusters for a cluster bootstrap.
    level : float
        Coverage, between 0 and 1.

    Returns
    -------
    torch.Tensor, shape (2, P), float64
        Lower and upper ends. The estimate itself where no replication differs from it; NaN where all replications lie
        on one side of it, so that its bias is beyond what they can tell.

    Raises
    ------
    InvalidInputError
        If the shapes disagree, a value is not finite, or the level is not between 0 and 1.
    """
    shapes = [tuple(x.shape) for x in (estimates, replications, jackknife)]
    arrays = [x.detach().double().cpu().numpy() for x in (estimates, replications, jackknife)]
    matching = estimates.ndim == 1 and all(len(shape) == 2 and shape[1:] == shapes[0] for shape in shapes[1:])
    if not matching or min(map(len, arrays[1:])) < 2 or not all(np.isfinite(x).all() for x in arrays):
        raise InvalidInputError(
            explain(
                "estimates, replications and jackknife",
                got=f"shapes {', '.join(map(str, shapes))}",
                expected="finite numbers, (P,), (B, P) and (N, P), B and N of 2 or more",
                hint="leaving out the replications without an estimate",
            )
        )
    if not 0.0 < level < 1.0:
        raise InvalidInputError(explain("level", got=level, expected="between 0 and 1", hint="0.95"))
    value, drawn, without = arrays
    # one mean is another's equal however their sums were ordered
    close = np.abs(drawn - value) <= _ROUNDING * np.maximum(np.abs(value), np.abs(drawn))
    drawn = np.where(close, value, drawn)
    bias = ndtri(((drawn < value).mean(0) + (drawn <= value).mean(0)) / 2.0)
    pull = without.mean(0) - without
    size = (pull**2).sum(0) ** 1.5
    skew = np.divide((pull**3).sum(0), 6.0 * size, out=np.zeros_like(size), where=size > 0.0)
    ends = np.full((2, len(value)), np.nan)
    for p in np.flatnonzero(np.isfinite(bias)):
        shifted = bias[p] + ndtri(np.array([(1.0 - level) / 2.0, (1.0 + level) / 2.0]))
        ends[:, p] = np.quantile(drawn[:, p], ndtr(bias[p] + shifted / (1.0 - skew[p] * shifted)))
    constant = (drawn == value).all(0)
    ends[:, constant] = value[constant]
    return torch.from_numpy(ends)
