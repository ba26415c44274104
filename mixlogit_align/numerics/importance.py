"""Importance sampling around the mode: one Gaussian proposal an individual.

Shapes: N individuals, z (N, M) their standard normal variables, K draws. All float64.

E f(z), z ~ N(0, I), is the mean over draws of q = N(mode, scale^2 L L') of f(z) phi(z) / q(z): unbiased whatever q is,
and of small variance where q resembles phi(z) f(z). With f the likelihood of an individual's choices that is Laplace's
approximation of the posterior of z; ``scale`` > 1, and a share of draws from phi itself (Hesterberg's defensive
mixture), keep the weights bounded where the tails of q are too light.

It pays in panels. On a single choice a likelihood does not decay in z: the integrand has the tails of phi, a proposal
narrower than phi misses them, and a quadrature rule is right.

References
----------
Train (2009), Discrete choice methods with simulation, ch. 9.2.7 and 9.9; Geweke (1989), Bayesian inference in
econometric models using Monte Carlo integration, Econometrica 57(6); Hesterberg (1995), Weighted average importance
sampling and defensive mixture distributions, Technometrics 37(2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mixlogit_align.errors import InvalidInputError, explain

_DECREMENT = 1e-6
_STRONGER = 8.0
_WEAKEST = 1e-2
_STRENGTHENINGS = 40


@dataclass(frozen=True)
class Proposals:
    """Gaussian proposals N(mode, factor factor'), one an individual.

    Attributes
    ----------
    mode : Tensor
        (N, M).
    factor : Tensor
        (N, M, M), lower triangular, positive diagonal.
    found : Tensor
        (N,), bool: false where no mode was found and the proposal is the prior N(0, I).
    """

    mode: Tensor
    factor: Tensor
    found: Tensor


def _damped_factor(precision: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factor of ``precision + damping I`` (N, M, M), with the damping raised to where there is one."""
    eye = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    precision = torch.where(torch.isfinite(precision).all(-1).all(-1)[:, None, None], precision, eye)
    factor, failed = torch.linalg.cholesky_ex(precision + damping[:, None, None] * eye)
    for _ in range(_STRENGTHENINGS):
        if not bool(failed.any()):
            break
        damping = torch.where(failed > 0, (_STRONGER * damping).clamp_min(1.0), damping)
        factor, failed = torch.linalg.cholesky_ex(precision + damping[:, None, None] * eye)
    return factor, damping


def laplace_proposals(
    log_target: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], start: Tensor, max_iterations: int = 50
) -> Proposals:
    """Modes and curvatures of N log-densities by Newton's method, all at once, damped each by itself.

    The step solves (-H + damping I) step = gradient (Levenberg), damping > 0 only where -H is not positive definite or
    the last step went down; a step that goes down is not taken. The search stops when every decrement, gradient'
    (-H)^-1 gradient, is below 1e-6: modes to a thousandth of a standard deviation.

    Parameters
    ----------
    log_target : callable
        z (N, M) to value (N,), gradient (N, M) and Hessian (N, M, M) of log N(z; 0, I) + loglik_n(z). May return
        infinities or NaN away from the mode.
    start : Tensor
        (N, M).
    max_iterations : int
        Evaluations of ``log_target`` after the first.

    Returns
    -------
    Proposals
        The covariance is the inverse of -H at the mode. Where the search did not converge, or -H there is not positive
        definite, the prior: mode 0, factor I, ``found`` false. No gradients are attached.
    """
    num_dims = start.shape[-1]
    eye = torch.eye(num_dims, dtype=start.dtype, device=start.device)
    with torch.no_grad():
        z = start.detach()
        value, gradient, hessian = (x.detach() for x in log_target(z))
        damping = torch.zeros_like(value)
        for _ in range(max_iterations):
            factor, damping = _damped_factor(-hessian, damping)
            step = torch.cholesky_solve(gradient[..., None], factor).squeeze(-1)
            waiting = ~((damping == 0) & ((gradient * step).sum(-1) < _DECREMENT))
            if not bool(waiting.any()):
                break
            trial = z + step
            new_value, new_gradient, new_hessian = (x.detach() for x in log_target(trial))
            # near the mode a gain drowns in rounding
            up = waiting & (new_value >= value - 1e-12 * (1.0 + value.abs()))
            z = torch.where(up[:, None], trial, z)
            value = torch.where(up, new_value, value)
            gradient = torch.where(up[:, None], new_gradient, gradient)
            hessian = torch.where(up[:, None, None], new_hessian, hessian)
            weaker = torch.where(damping > _STRONGER * _WEAKEST, damping / _STRONGER, 0.0)
            damping = torch.where(waiting, torch.where(up, weaker, (_STRONGER * damping).clamp_min(1.0)), damping)
        precision, failed = torch.linalg.cholesky_ex(torch.nan_to_num(-hessian))
        covariance = torch.cholesky_inverse(torch.where((failed > 0)[:, None, None], eye, precision))
        decrement = (gradient[:, None] @ covariance @ gradient[..., None]).reshape(-1)
        factor, singular = torch.linalg.cholesky_ex(covariance)
        found = (failed == 0) & (singular == 0) & (decrement < _DECREMENT) & torch.isfinite(value)
        return Proposals(torch.where(found[:, None], z, 0.0), torch.where(found[:, None, None], factor, eye), found)


def importance_nodes(
    proposals: Proposals,
    eps: Tensor,
    scale: float = 1.2,
    log_weight: Tensor | None = None,
    *,
    prior_share: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Nodes z and log-weights of E f(z), z ~ N(0, I), as a weighted sum over nodes.

    z = mode + scale L eps, and z = eps for the last ``prior_share`` of the K draws: together a sample of the mixture
    (1 - share) q + share phi, and log_weight = log phi(z) - log mixture(z) + (base log-weight of eps).

    Parameters
    ----------
    proposals : Proposals
        Of N individuals in M dimensions.
    eps : Tensor
        (N, K, M), or (1, K, M) shared: draws of N(0, I), or nodes of a rule for it. With ``prior_share`` any stretch
        of the draws must itself be a sample: pseudo, halton or sobol.
    scale : float
        > 0; factor on the standard deviations of the proposals.
    log_weight : Tensor, optional
        (N, K), (1, K) or (K,), log-weights of a quadrature rule behind ``eps``; by default -log K, for draws.
    prior_share : float
        In [0, 1), rounded to whole draws; 0 with ``log_weight``. No weight exceeds 1 / (K share), however much
        heavier than the proposal the tails of the integrand are: skewed posteriors (a lognormal near 0) need it.

    Returns
    -------
    tuple of Tensor
        z (N, K, M) and log-weights (N, K). The weights sum to one in expectation, not exactly.
    """
    num_draws, num_dims = eps.shape[-2:]
    if log_weight is not None and prior_share > 0:
        raise InvalidInputError(
            explain("prior_share", got=prior_share, expected="0 for nodes of a quadrature rule", hint="draws")
        )
    from_prior = round(prior_share * num_draws)
    own = eps[:, : num_draws - from_prior].expand(len(proposals.mode), -1, -1)
    prior = eps[:, num_draws - from_prior :].expand(len(proposals.mode), -1, -1)
    mode = proposals.mode[:, None]
    z = torch.cat((mode + scale * (own @ proposals.factor.mT), prior), 1)
    standardised = torch.linalg.solve_triangular(proposals.factor, (prior - mode).mT, upper=False).mT / scale
    eps = torch.cat((own, standardised), 1)
    log_volume = num_dims * math.log(scale) + proposals.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_ratio = 0.5 * ((eps * eps).sum(-1) - (z * z).sum(-1)) + log_volume[:, None]
    if from_prior:
        share = from_prior / num_draws
        log_ratio = -torch.logaddexp(math.log1p(-share) - log_ratio, torch.full_like(log_ratio, math.log(share)))
    return z, log_ratio + (-math.log(num_draws) if log_weight is None else log_weight)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 over the K draws of each row: (N, K) to (N,), between 1 and K.

    For the accuracy of a log-likelihood pass log-weight plus log-likelihood at each node. Equally weighted terms give
    K; a row near 1 hangs on a single node.
    """
    return torch.exp(2.0 * torch.logsumexp(log_weights, -1) - torch.logsumexp(2.0 * log_weights, -1))
