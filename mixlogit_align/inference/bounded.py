"""Maximum likelihood in a box: Newton steps between bounds, and which of them the maximum lies at."""

# P parameters.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.inference.derivatives import LogLiks, derivatives
from mixlogit_align.inference.optimize import gradient_norm

# Shares of the largest curvature below which a direction counts as that curved, so that its step stays finite.
_FLAT = 1e-8
# Shares of a box's width within which a point lies at its bound.
_AT_BOUND = 1e-12
_SUFFICIENT = 1e-4
_HALVINGS = 40


@dataclass(frozen=True)
class BoxMaximum:
    """Where an optimisation in a box ended, and how far that can be trusted.

    Attributes
    ----------
    params : Tensor, shape (P,)
    loglik : float
    gradient : Tensor, shape (P,)
    hessian : Tensor, shape (P, P)
        Of the log-likelihood.
    at_bound : Tensor, shape (P,), int64
        -1 where a parameter is held at its lower bound, 1 at its upper, by a gradient that points out of the box; else
        0.
    gradient_norm : float
        Of the parameters that are not held, in standard errors; see
        :func:`mixlogit_align.inference.gradient_norm`. 0 where all are held.
    iterations : int
    converged : bool
        The gradient norm is within tolerance.
    """

    params: Tensor
    loglik: float
    gradient: Tensor
    hessian: Tensor
    at_bound: Tensor
    gradient_norm: float
    iterations: int
    converged: bool


def maximize_in_box(
    loglik: LogLiks,
    start: Tensor,
    lower: Tensor,
    upper: Tensor,
    *,
    gradient_tolerance: float = 1e-5,
    max_iterations: int = 50,
) -> BoxMaximum:
    """Maximise a log-likelihood of a few parameters within bounds.

    Each step maximises a quadratic model on the box: the gradient, and the Hessian's eigenvalues by their size, so that
    it climbs where the Hessian is indefinite; a parameter that would leave the box is held at its bound and the others
    are solved for again. The step is halved until the log-likelihood rises (Nocedal and Wright 2006, ch. 3 and 16).

    Parameters
    ----------
    loglik : callable, sequence of callables, or Differentiated
        As in :func:`mixlogit_align.inference.derivatives`.
    start : Tensor, shape (P,)
        Taken to the nearest point of the box.
    lower, upper : Tensor, shape (P,)
        Finite, ``lower <= upper``; a parameter does not move where they are equal.
    gradient_tolerance : float
        Largest gradient norm called converged, in standard errors.
    max_iterations : int

    Returns
    -------
    BoxMaximum
        A local maximum where ``converged``. Where log-likelihood or derivatives are not finite, or say nothing in any
        direction, it has not.

    Raises
    ------
    InvalidInputError
        If the box is empty or unbounded.
    """
    lower, upper = lower.double(), upper.double()
    if not bool((lower <= upper).all() and lower.isfinite().all() and upper.isfinite().all()):
        raise InvalidInputError(
            explain(
                "lower, upper",
                got=f"{lower.tolist()}, {upper.tolist()}",
                expected="finite bounds, lower not above upper",
                hint="the other order, or wide bounds for parameters that have none",
            )
        )
    point = start.double().clamp(lower, upper)
    at = derivatives(loglik, point)
    iterations = 0
    while True:
        held = _held(point, at.gradient, lower, upper)
        free = held == 0
        norm = gradient_norm(at.gradient[free], at.hessian[free][:, free]) if bool(free.any()) else 0.0
        converged = at.finite and norm <= gradient_tolerance
        if converged or iterations == max_iterations or not at.finite:
            break
        step = _step(at.gradient, _concave(at.hessian), point, lower, upper, held)
        slope = float(at.gradient @ step)
        for halving in range(_HALVINGS):
            trial = (point + step * 0.5**halving).clamp(lower, upper)
            there = derivatives(loglik, trial)
            if there.finite and there.value >= at.value + _SUFFICIENT * slope * 0.5**halving:
                break
        else:  # no step climbs
            break
        if bool((trial == point).all()):
            break
        point, at, iterations = trial, there, iterations + 1
    return BoxMaximum(point, at.value, at.gradient, at.hessian, held, norm, iterations, converged)


def _held(point: Tensor, gradient: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """-1, 0 or 1 (P,), see `BoxMaximum.at_bound`."""
    near = _AT_BOUND * (upper - lower)
    low = (point <= lower + near) & (gradient < 0)
    high = (point >= upper - near) & (gradient > 0)
    return high.long() - low.long()


def _concave(hessian: Tensor) -> Tensor:
    """Minus the Hessian (P, P) with its eigenvalues by their size."""
    values, vectors = torch.linalg.eigh(-hessian)
    size = values.abs()
    floor = _FLAT * size.max().clamp_min(torch.finfo(size.dtype).tiny / _FLAT)
    concave: Tensor = (vectors * size.clamp_min(floor)) @ vectors.T
    return concave


def _step(gradient: Tensor, curvature: Tensor, point: Tensor, lower: Tensor, upper: Tensor, held: Tensor) -> Tensor:
    """(P,), uphill on ``g' d - d' C d / 2``: towards its maximum, and where that leaves the box on along the bound."""
    step, free = torch.zeros_like(point), held == 0
    while bool(free.any()):
        target = step.clone()
        pull = gradient[free] - curvature[free][:, ~free] @ step[~free]
        target[free] = torch.linalg.solve(curvature[free][:, free], pull)
        way = target - step
        bound = torch.where(way > 0, upper - point, lower - point)
        share = torch.where(free & (way != 0), (bound - step) / way, torch.inf)
        first = int(share.argmin())
        if share[first] >= 1:
            return target
        step = step + share[first] * way
        step[first], free[first] = bound[first], False
    return step
