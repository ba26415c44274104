"""The bootstrap over individuals."""

# N individuals (rows that stand for some individuals alike), P parameters, B replications.

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from mixlogit_align.errors import ConvergenceError, InvalidInputError, explain


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
