"""Covariance matrices of maximum-likelihood estimates, and the delta method."""

# N individuals, G clusters of them, P parameters, Q functions of them.

from __future__ import annotations

from collections.abc import Callable

import torch

from mixlogit_align.errors import ConvergenceError, InvalidInputError, explain


def _inverse(information: torch.Tensor, what: str) -> torch.Tensor:
    finite = bool(torch.isfinite(information).all())
    factor, failed = torch.linalg.cholesky_ex(information) if finite else (information, torch.ones(()))
    if failed:
        spectrum = torch.linalg.eigvalsh(information).tolist() if finite else "entries that are not finite"
        raise ConvergenceError(
            explain(
                what,
                got=f"eigenvalues {spectrum}",
                expected="a positive definite matrix",
                hint="another start, fewer parameters, or data that tell the parameters apart",
            )
        )
    return torch.cholesky_inverse(factor)


def hessian_covariance(hessian: torch.Tensor) -> torch.Tensor:
    """Inverse of the observed information, ``(-H)^-1``.

    Parameters
    ----------
    hessian : torch.Tensor, shape (P, P)
        Of the log-likelihood at its maximum.

    Returns
    -------
    torch.Tensor, shape (P, P)

    Raises
    ------
    ConvergenceError
        If -H is not positive definite.
    """
    return _inverse(-hessian, "minus the Hessian")


def bhhh_covariance(scores: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Inverse of the outer product of scores, ``(sum_n w_n s_n s_n')^-1``.

    Berndt, Hall, Hall and Hausman (1974).

    Parameters
    ----------
    scores : torch.Tensor, shape (N, P)
        One score an individual: of the whole panel, never one a choice situation.
    weights : torch.Tensor, shape (N,), optional
        Frequencies: row n stands for w_n individuals alike.

    Returns
    -------
    torch.Tensor, shape (P, P)

    Raises
    ------
    ConvergenceError
        If the outer product is not positive definite.
    InvalidInputError
        If the shapes disagree.
    """
    return _inverse(_outer(scores, weights), "the outer product of scores")


def robust_covariance(hessian: torch.Tensor, scores: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Sandwich ``(-H)^-1 (sum_n w_n s_n s_n') (-H)^-1`` over individuals (Huber 1967).

    No small-sample factor.

    Parameters
    ----------
    hessian : torch.Tensor, shape (P, P)
    scores : torch.Tensor, shape (N, P)
    weights : torch.Tensor, shape (N,), optional
        Frequencies, as in :func:`bhhh_covariance`.

    Returns
    -------
    torch.Tensor, shape (P, P)

    Raises
    ------
    ConvergenceError
        If -H is not positive definite.
    InvalidInputError
        If the shapes disagree.
    """
    bread = hessian_covariance(hessian)
    return bread @ _outer(scores, weights) @ bread


def clustered_covariance(
    hessian: torch.Tensor, scores: torch.Tensor, clusters: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Sandwich whose scores may be correlated within clusters of individuals.

    ``G/(G-1) * (-H)^-1 (sum_g s_g s_g') (-H)^-1`` with ``s_g = sum_{n in g} w_n s_n`` (Liang and Zeger 1986). The
    factor G/(G-1) is the only small-sample correction; trust it with some 40 clusters or more.

    Parameters
    ----------
    hessian : torch.Tensor, shape (P, P)
    scores : torch.Tensor, shape (N, P)
        One score an individual: of the whole panel.
    clusters : torch.Tensor, shape (N,)
        A label an individual; equal labels, one cluster.
    weights : torch.Tensor, shape (N,), optional
        Frequencies: row n stands for w_n individuals of the same cluster.

    Returns
    -------
    torch.Tensor, shape (P, P)

    Raises
    ------
    ConvergenceError
        If -H is not positive definite.
    InvalidInputError
        If the shapes disagree, or there is only one cluster.
    """
    weighted = _weighted(scores, weights)
    if clusters.shape != scores.shape[:1]:
        raise InvalidInputError(
            explain(
                "clusters",
                got=f"shape {tuple(clusters.shape)} for {len(scores)} scores",
                expected="(N,)",
                hint="one label an individual",
            )
        )
    labels, index = clusters.unique(return_inverse=True)
    if len(labels) < 2:
        raise InvalidInputError(
            explain("clusters", got="one cluster", expected="two or more", hint="the robust covariance")
        )
    sums = scores.new_zeros(len(labels), scores.shape[1]).index_add_(0, index, weighted)
    bread = hessian_covariance(hessian)
    return len(labels) / (len(labels) - 1) * bread @ (sums.T @ sums) @ bread


def _outer(scores: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return _weighted(scores, weights).T @ scores


def _weighted(scores: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    if scores.ndim != 2 or (weights is not None and weights.shape != scores.shape[:1]):
        shape = None if weights is None else tuple(weights.shape)
        raise InvalidInputError(
            explain(
                "scores and weights",
                got=f"shapes {tuple(scores.shape)} and {shape}",
                expected="(N, P) and (N,)",
                hint="one row of scores and one weight an individual",
            )
        )
    return scores if weights is None else scores * weights[:, None]


def standard_errors(covariance: torch.Tensor) -> torch.Tensor:
    """Square roots of the diagonal.

    Parameters
    ----------
    covariance : torch.Tensor, shape (P, P)

    Returns
    -------
    torch.Tensor, shape (P,)
    """
    return covariance.diagonal().sqrt()


def delta_method(
    transform: Callable[[torch.Tensor], torch.Tensor], params: torch.Tensor, covariance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and covariance of a differentiable function of the estimates, ``J V J'``.

    Parameters
    ----------
    transform : callable
        (P,) to (Q,), differentiable by autograd.
    params : torch.Tensor, shape (P,)
    covariance : torch.Tensor, shape (P, P)

    Returns
    -------
    values : torch.Tensor, shape (Q,)
    covariance : torch.Tensor, shape (Q, Q)
    """
    params = params.detach()
    values = transform(params)
    if not len(values):  # autograd refuses a function without values
        return values, covariance.new_zeros(0, 0)
    jacobian = torch.autograd.functional.jacobian(transform, params)
    return values, jacobian @ covariance @ jacobian.T
