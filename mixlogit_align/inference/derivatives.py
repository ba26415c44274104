"""Value, gradient, Hessian and individual scores of a log-likelihood, by automatic differentiation."""

# N individuals, P parameters.

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

LogLik = Callable[[torch.Tensor], torch.Tensor]


class Derivatives(NamedTuple):
    """A log-likelihood at one point.

    Attributes
    ----------
    value : float
        The log-likelihood.
    gradient : torch.Tensor, shape (P,)
    hessian : torch.Tensor, shape (P, P)
        Symmetrised.
    """

    value: float
    gradient: torch.Tensor
    hessian: torch.Tensor

    @property
    def finite(self) -> bool:
        """Whether value, gradient and Hessian are all finite."""
        parts = (torch.tensor(self.value), self.gradient, self.hessian)
        return all(bool(torch.isfinite(part).all()) for part in parts)


def _leaf(params: torch.Tensor) -> torch.Tensor:
    return params.detach().to(torch.float64).clone().requires_grad_(True)


def derivatives(loglik: LogLik, params: torch.Tensor) -> Derivatives:
    """Log-likelihood, gradient and Hessian at ``params``.

    Parameters
    ----------
    loglik : callable
        Maps a float64 tensor of shape (P,) to the log-likelihood, a scalar or one value an individual (summed
        here); twice differentiable by autograd.
    params : torch.Tensor, shape (P,)

    Returns
    -------
    Derivatives
    """
    theta = _leaf(params)
    value = loglik(theta).sum()
    (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
    if gradient.requires_grad:
        rows = [torch.autograd.grad(g, theta, retain_graph=True, materialize_grads=True)[0] for g in gradient]
        hessian = torch.stack(rows)
    else:  # a linear log-likelihood leaves no graph behind
        hessian = gradient.new_zeros(len(gradient), len(gradient))
    return Derivatives(float(value.detach()), gradient.detach(), (hessian + hessian.T) / 2)


def individual_scores(loglik: LogLik, params: torch.Tensor) -> torch.Tensor:
    """Each individual's score d loglik_n / d params.

    One backward pass a parameter, whatever N: the gradient of ``sum_n v_n * loglik_n`` is linear in the
    auxiliary v, and its derivative in v is a column of scores.

    Parameters
    ----------
    loglik : callable
        Maps (P,) to one log-likelihood an individual, shape (N,); twice differentiable by autograd.
    params : torch.Tensor, shape (P,)

    Returns
    -------
    torch.Tensor, shape (N, P)
    """
    theta = _leaf(params)
    values = loglik(theta)
    v = torch.zeros_like(values, requires_grad=True)
    (gradient,) = torch.autograd.grad(values, theta, grad_outputs=v, create_graph=True)
    columns = [torch.autograd.grad(g, v, retain_graph=True, materialize_grads=True)[0] for g in gradient]
    return torch.stack(columns, dim=-1)
