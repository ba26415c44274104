"""Value, gradient, Hessian and individual scores of a log-likelihood, by automatic differentiation."""

# N individuals, P parameters.

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from mixlogit_align.numerics.threads import in_threads

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


@runtime_checkable
class Differentiated(Protocol):
    """A log-likelihood that brings its own derivatives."""

    def gradient(self, params: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Log-likelihood and gradient (P,)."""

    def derivatives(self, params: torch.Tensor) -> Derivatives:
        """Log-likelihood, gradient and Hessian."""


# One function, or several whose sum is meant: chunks of individuals, differentiated one after the other.
Functions = LogLik | Sequence[LogLik]
LogLiks = Functions | Differentiated


class Restricted:
    """A log-likelihood as a function of some of its parameters, the others held.

    Parameters
    ----------
    loglik : Differentiated
    free : torch.Tensor, shape (Q,), int64
        Positions of the parameters that move.
    at : torch.Tensor, shape (P,)
        Values of those that do not.
    """

    def __init__(self, loglik: Differentiated, free: torch.Tensor, at: torch.Tensor) -> None:
        self.loglik = loglik
        self.free = free
        self.at = at

    def full(self, params: torch.Tensor) -> torch.Tensor:
        """All parameters (P,) from the free ones (Q,)."""
        return self.at.index_copy(0, self.free, params)

    def gradient(self, params: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Log-likelihood and gradient (Q,)."""
        value, gradient = self.loglik.gradient(self.full(params))
        return value, gradient[self.free]

    def derivatives(self, params: torch.Tensor) -> Derivatives:
        """Log-likelihood, gradient (Q,) and Hessian (Q, Q)."""
        value, gradient, hessian = self.loglik.derivatives(self.full(params))
        return Derivatives(value, gradient[self.free], hessian[self.free][:, self.free])


def parts_of(loglik: Functions) -> Sequence[LogLik]:
    """The functions whose sum is meant.

    Parameters
    ----------
    loglik : callable or sequence of callables

    Returns
    -------
    sequence of callables
    """
    return [loglik] if callable(loglik) else loglik


def _leaf(params: torch.Tensor) -> torch.Tensor:
    return params.detach().to(torch.float64).clone().requires_grad_(True)


def derivatives(loglik: LogLiks, params: torch.Tensor) -> Derivatives:
    """Log-likelihood, gradient and Hessian at ``params``.

    Parameters
    ----------
    loglik : callable, sequence of callables, or Differentiated
        Each maps a float64 tensor of shape (P,) to a log-likelihood, a scalar or one value an individual; all
        are summed. Twice differentiable by autograd. Several bound the memory that second derivatives take.
    params : torch.Tensor, shape (P,)

    Returns
    -------
    Derivatives
    """
    if isinstance(loglik, Differentiated):
        return loglik.derivatives(params)
    each = in_threads(lambda part: _derivatives(part, params), parts_of(loglik))
    values, gradients, hessians = zip(*each, strict=True)
    return Derivatives(math.fsum(values), torch.stack(gradients).sum(0), torch.stack(hessians).sum(0))


def _derivatives(loglik: LogLik, params: torch.Tensor) -> Derivatives:
    theta = _leaf(params)
    value = loglik(theta).sum()
    (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
    if gradient.requires_grad:
        rows = [torch.autograd.grad(g, theta, retain_graph=True, materialize_grads=True)[0] for g in gradient]
        hessian = torch.stack(rows)
    else:  # a linear log-likelihood leaves no graph behind
        hessian = gradient.new_zeros(len(gradient), len(gradient))
    return Derivatives(float(value.detach()), gradient.detach(), (hessian + hessian.T) / 2)


def gradient_of(loglik: Functions, params: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Log-likelihood and gradient at ``params``.

    Parameters
    ----------
    loglik : callable or sequence of callables
        As in :func:`derivatives`, once differentiable.
    params : torch.Tensor, shape (P,)

    Returns
    -------
    value : float
    gradient : torch.Tensor, shape (P,)
    """
    theta = _leaf(params)
    values = []
    for part in parts_of(loglik):  # one graph at a time
        value = part(theta).sum()
        value.backward()
        values.append(float(value.detach()))
    assert theta.grad is not None
    return math.fsum(values), theta.grad


def individual_scores(loglik: Functions, params: torch.Tensor) -> torch.Tensor:
    """Each individual's score d loglik_n / d params.

    One backward pass a parameter, whatever N: the gradient of ``sum_n v_n * loglik_n`` is linear in the
    auxiliary v, and its derivative in v is a column of scores.

    Parameters
    ----------
    loglik : callable or sequence of callables
        Each maps (P,) to one log-likelihood an individual, shapes (N_1,), (N_2,), ... of sum N; twice
        differentiable by autograd.
    params : torch.Tensor, shape (P,)

    Returns
    -------
    torch.Tensor, shape (N, P)
    """
    return torch.cat(in_threads(lambda part: _scores(part, params), parts_of(loglik)))


def _scores(loglik: LogLik, params: torch.Tensor) -> torch.Tensor:
    theta = _leaf(params)
    values = loglik(theta)
    v = torch.zeros_like(values, requires_grad=True)
    (gradient,) = torch.autograd.grad(values, theta, grad_outputs=v, create_graph=True)
    columns = [torch.autograd.grad(g, v, retain_graph=True, materialize_grads=True)[0] for g in gradient]
    return torch.stack(columns, dim=-1)
