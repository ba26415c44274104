"""Maximum likelihood with evidence of convergence."""

# P parameters.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize

from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.inference.derivatives import Derivatives, Differentiated, LogLiks, derivatives

# An eigenvalue of the unit-diagonal information below this is a direction that the data say nothing about.
_SINGULAR = 1e-10
_NEWTON_STEPS = 10
# Distance from the maximum, in standard errors, within which one Hessian serves all that is left to do.
_NEAR = 0.02
# Iterations of the trust region where gradients alone did not arrive: from near a maximum it needs a few, and goes on
# without end only where there is none.
_LAST_RESORT = 40


@dataclass(frozen=True)
class MaximumLikelihood:
    """Where an optimisation ended, and how far that can be trusted.

    Attributes
    ----------
    params : torch.Tensor, shape (P,)
    loglik : float
    gradient : torch.Tensor, shape (P,)
    gradient_norm : float
        ``sqrt(g' (-H)^-1 g)``: the remaining Newton step measured in standard errors; half its square is the
        log-likelihood still to be gained. Free of the units of the parameters. Infinite where -H is not
        positive definite.
    hessian : torch.Tensor, shape (P, P)
        Of the log-likelihood: negative definite at a maximum.
    eigenvalues : torch.Tensor, shape (P,)
        Of minus the Hessian, ascending: all positive at a maximum.
    iterations, evaluations : int
        Steps taken, and points at which log-likelihood and derivatives were computed.
    converged : bool
        Everything is finite, -H is positive definite and the gradient norm is within tolerance.
    message : str
        The grounds for ``converged``.
    """

    params: torch.Tensor
    loglik: float
    gradient: torch.Tensor
    gradient_norm: float
    hessian: torch.Tensor
    eigenvalues: torch.Tensor
    iterations: int
    evaluations: int
    converged: bool
    message: str


def gradient_norm(gradient: torch.Tensor, hessian: torch.Tensor) -> float:
    """Gradient in the metric of the inverse Hessian, ``sqrt(g' (-H)^-1 g)``.

    Parameters
    ----------
    gradient : torch.Tensor, shape (P,)
    hessian : torch.Tensor, shape (P, P)
        Of the log-likelihood.

    Returns
    -------
    float
        Infinite where -H is not finite and positive definite.
    """
    step = _newton_step(gradient, hessian)
    return float("inf") if step is None else float((gradient @ step).clamp_min(0.0).sqrt())


def _newton_step(gradient: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor | None:
    """``(-H)^-1 g`` (P,); None where -H is not positive definite, to rounding, or anything is not finite."""
    if not (torch.isfinite(gradient).all() and _smallest_scaled_eigenvalue(hessian) > 0.0):
        return None
    scale = (-hessian.diagonal()).rsqrt()
    factor, failed = torch.linalg.cholesky_ex(scale[:, None] * -hessian * scale)
    return None if failed else scale * torch.cholesky_solve((scale * gradient)[:, None], factor)[:, 0]


def _smallest_scaled_eigenvalue(hessian: torch.Tensor) -> float:
    """Smallest eigenvalue of -H scaled to a unit diagonal, free of units; -inf if that is impossible."""
    information = -hessian
    diagonal = information.diagonal()
    if not torch.isfinite(information).all() or bool((diagonal <= 0.0).any()):
        return float("-inf")
    scale = diagonal.rsqrt()
    return float(torch.linalg.eigvalsh(scale[:, None] * information * scale).min())


class _Objective:
    """Minus the log-likelihood in scaled coordinates, for scipy; remembers the last derivatives."""

    def __init__(self, loglik: LogLiks, scale: torch.Tensor) -> None:
        self.loglik = loglik
        self.scale = scale
        self.evaluations = 0
        self._last: tuple[np.ndarray[Any, Any], Derivatives] | None = None

    def params(self, x: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.as_tensor(x, dtype=torch.float64) * self.scale

    # Nearly every trial point is accepted, and scipy asks for all three at each: they come together. A point where
    # one is not finite is outside the domain: an infinite value refuses it, and scipy accepts only finite company.
    def value(self, x: np.ndarray[Any, Any]) -> float:
        at = self.derivatives(x)
        return -at.value if at.finite else float("inf")

    def gradient(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        at = self.derivatives(x)
        return np.asarray(-at.gradient * self.scale) if at.finite else np.zeros_like(x)

    def hessian(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        at = self.derivatives(x)
        return np.asarray(-self.scale[:, None] * at.hessian * self.scale) if at.finite else np.diag(np.zeros_like(x))

    def derivatives(self, x: np.ndarray[Any, Any]) -> Derivatives:
        if self._last is None or not np.array_equal(self._last[0], x):
            self.evaluations += 1
            self._last = x.copy(), derivatives(self.loglik, self.params(x))
        return self._last[1]


def maximize_loglik(
    loglik: LogLiks,
    start: torch.Tensor,
    *,
    gradient_tolerance: float = 1e-6,
    max_iterations: int = 200,
    give_up: Callable[[torch.Tensor, float], bool] | None = None,
    polish: bool = True,
) -> MaximumLikelihood:
    """Maximise a log-likelihood: trust region with exact Hessians, then Newton steps.

    Coordinates are scaled by the curvature at the start, so the path does not depend on the units of the
    parameters. The trust region (Conn, Gould and Toint 2000, via scipy's ``trust-exact``) copes with starts
    where the Hessian is indefinite; its acceptance test loses its digits near the top, where Newton steps
    finish the work.

    Parameters
    ----------
    loglik : callable or sequence of callables
        As in :func:`mixlogit_align.inference.derivatives`. Where it or a derivative is not finite is taken as
        outside the domain.
    start : torch.Tensor, shape (P,)
        Must have a finite log-likelihood, gradient and Hessian.
    gradient_tolerance : float
        Largest :func:`gradient_norm` called converged, in standard errors.
    max_iterations : int
        Of the trust region.
    give_up : callable, optional
        (parameters, log-likelihood) to bool, asked after every step: True ends the search where it stands.
    polish : bool
        False: without the Newton steps; the end is within about 0.1 standard errors of the maximum.

    Returns
    -------
    MaximumLikelihood

    Raises
    ------
    InvalidInputError
        If ``start`` is not a vector, or the log-likelihood or a derivative is not finite there.
    """
    start = torch.as_tensor(start, dtype=torch.float64).detach()
    if start.ndim != 1 or not len(start):
        raise InvalidInputError(
            explain("start", got=f"shape {tuple(start.shape)}", expected="a vector (P,)", hint="start.reshape(-1)")
        )
    first = derivatives(loglik, start)
    if not first.finite:
        raise InvalidInputError(
            explain(
                "start",
                got=f"{start.tolist()} with log-likelihood {first.value}, gradient {first.gradient.tolist()}",
                expected="a finite log-likelihood with finite derivatives",
                hint="a start nearer to 0, or data in units that keep utilities below about 100",
            )
        )

    curvature = first.hessian.diagonal().abs()
    scale = torch.where(curvature > 0.0, curvature, torch.ones_like(curvature)).rsqrt()
    objective = _Objective(loglik, scale)

    def callback(intermediate_result: OptimizeResult) -> None:
        if give_up is not None and give_up(objective.params(intermediate_result.x), -float(intermediate_result.fun)):
            raise StopIteration

    found = minimize(
        objective.value,
        np.asarray(start / scale),
        jac=objective.gradient,
        hess=objective.hessian,
        callback=callback,
        method="trust-exact",
        # radii in standard errors: 10 is a bold first step, and each good step may double it
        options={
            "initial_trust_radius": 10.0,
            "max_trust_radius": 1e6,
            "gtol": 1e-3 if polish else 0.1,
            "maxiter": max_iterations,
        },
    )
    point = objective.params(found.x)
    at = objective.derivatives(found.x)
    iterations, evaluations = int(found.nit), objective.evaluations + 1
    norm = gradient_norm(at.gradient, at.hessian)
    given_up = give_up is not None and give_up(point, at.value)
    for _ in range(_NEWTON_STEPS if polish and not given_up else 0):
        step = _newton_step(at.gradient, at.hessian)
        if step is None or norm == 0.0:
            break
        trial = point + step
        there = derivatives(loglik, trial)
        evaluations += 1
        trial_norm = gradient_norm(there.gradient, there.hessian) if there.finite else float("inf")
        if not trial_norm < norm:  # no further progress: rounding decides from here on
            break
        point, at, norm = trial, there, trial_norm
        iterations += 1

    doubts = ["given up"] if given_up else _doubts(at, norm, gradient_tolerance)
    return _evidence(point, at, norm, gradient_tolerance, iterations, evaluations, doubts)


@dataclass(frozen=True)
class Approach:
    """A point near a maximum.

    Attributes
    ----------
    params : torch.Tensor, shape (P,)
    covariance : torch.Tensor, shape (P, P)
        About the inverse of minus the Hessian.
    iterations, evaluations : int
    """

    params: torch.Tensor
    covariance: torch.Tensor
    iterations: int
    evaluations: int


def approach_loglik(
    loglik: Differentiated,
    start: torch.Tensor,
    covariance: torch.Tensor,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 30,
) -> Approach:
    """Climb to a gradient of ``tolerance`` standard errors by gradients alone.

    BFGS (scipy) in coordinates in which ``covariance`` is the identity, so that a step of length 1 is one standard
    error.

    Parameters
    ----------
    loglik : Differentiated
    start : torch.Tensor, shape (P,)
    covariance : torch.Tensor, shape (P, P)
        About the inverse of minus the Hessian; where it is not positive definite, that of the Hessian at ``start``
        after the steps of :func:`maximize_loglik`.
    tolerance : float
    max_iterations : int
        Three times as many evaluations end the work, too.

    Returns
    -------
    Approach
    """
    whiten, failed = torch.linalg.cholesky_ex(torch.nan_to_num(covariance))
    if failed:
        there = maximize_loglik(loglik, start, polish=False)
        inverse = torch.linalg.pinv(-there.hessian, hermitian=True)
        return Approach(there.params, inverse, there.iterations, there.evaluations)
    evaluations = 0
    best = start, -np.inf

    def objective(x: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        nonlocal evaluations, best
        evaluations += 1
        if evaluations > 3 * max_iterations:  # a line search that finds nothing asks again and again
            return -best[1], np.zeros_like(x)
        point = start + whiten @ torch.as_tensor(x, dtype=start.dtype)
        value, gradient = loglik.gradient(point)
        if not (np.isfinite(value) and bool(torch.isfinite(gradient).all())):
            return float("inf"), np.zeros_like(x)
        if value > best[1]:
            best = point, value
        return -value, np.asarray(-(gradient @ whiten))

    found = minimize(
        objective,
        np.zeros(len(start)),
        jac=True,
        method="BFGS",
        options={"gtol": tolerance, "norm": 2, "maxiter": max_iterations},
    )
    inverse = torch.as_tensor(found.hess_inv, dtype=start.dtype)
    return Approach(best[0], whiten @ inverse @ whiten.T, int(found.nit), evaluations)


def refine_loglik(
    loglik: Differentiated,
    start: torch.Tensor,
    covariance: torch.Tensor,
    *,
    gradient_tolerance: float = 1e-3,
    max_iterations: int = 30,
) -> MaximumLikelihood:
    """Maximise a log-likelihood from near its maximum, with one Hessian.

    :func:`approach_loglik`, there the exact Hessian, with which Newton steps end the work. Where this does not arrive,
    :func:`maximize_loglik` goes on from the best point.

    Parameters
    ----------
    loglik : Differentiated
    start : torch.Tensor, shape (P,)
    covariance : torch.Tensor, shape (P, P)
        About the inverse of minus the Hessian, such as that of a log-likelihood simulated with fewer draws.
    gradient_tolerance : float
        As in :func:`maximize_loglik`; steps go on to a hundredth of it where they can.
    max_iterations : int
        As in :func:`approach_loglik`; where :func:`maximize_loglik` goes on, it has 40.

    Returns
    -------
    MaximumLikelihood
        Its Hessian is the exact one at a point within 0.02 standard errors of ``params``.
    """
    near = approach_loglik(loglik, start, covariance, tolerance=2e-3, max_iterations=max_iterations)
    point, iterations, evaluations = near.params, near.iterations, near.evaluations + 1
    at = loglik.derivatives(point)
    norm = gradient_norm(at.gradient, at.hessian)

    def from_here(point: torch.Tensor) -> MaximumLikelihood:
        there = maximize_loglik(loglik, point, gradient_tolerance=gradient_tolerance, max_iterations=_LAST_RESORT)
        return replace(there, evaluations=there.evaluations + evaluations, iterations=there.iterations + iterations)

    if not at.finite:  # nothing can start from here
        return _evidence(point, at, norm, gradient_tolerance, iterations, evaluations)
    if not norm < _NEAR:
        return from_here(point)
    while norm > gradient_tolerance / 100:  # the Hessian stands: so close by it hardly changes
        step = _newton_step(at.gradient, at.hessian)
        assert step is not None, "the norm would be infinite"
        trial = point + step
        value, gradient = loglik.gradient(trial)
        evaluations += 1
        trial_norm = gradient_norm(gradient, at.hessian)
        if not trial_norm < norm / 2:
            break
        point, at, norm = trial, Derivatives(value, gradient, at.hessian), trial_norm
        iterations += 1
    if norm > gradient_tolerance:
        return from_here(point)
    return _evidence(point, at, norm, gradient_tolerance, iterations, evaluations)


def _evidence(
    point: torch.Tensor,
    at: Derivatives,
    norm: float,
    tolerance: float,
    iterations: int,
    evaluations: int,
    doubts: list[str] | None = None,
) -> MaximumLikelihood:
    doubts = _doubts(at, norm, tolerance) if doubts is None else doubts
    return MaximumLikelihood(
        params=point,
        loglik=at.value,
        gradient=at.gradient,
        gradient_norm=norm,
        hessian=at.hessian,
        eigenvalues=torch.linalg.eigvalsh(-at.hessian) if at.finite else torch.full_like(at.gradient, float("nan")),
        iterations=iterations,
        evaluations=evaluations,
        converged=not doubts,
        message="; ".join(doubts)
        or f"gradient norm {norm:.1e} standard errors, minus the Hessian is positive definite",
    )


def _doubts(at: Derivatives, norm: float, tolerance: float) -> list[str]:
    if not at.finite:
        return ["the log-likelihood or a derivative is not finite"]
    doubts = []
    smallest = _smallest_scaled_eigenvalue(at.hessian)
    if not smallest > _SINGULAR:
        doubts.append(f"minus the Hessian is not positive definite (smallest scaled eigenvalue {smallest:.1e})")
    elif not norm <= tolerance:
        doubts.append(f"gradient norm {norm:.1e} standard errors exceeds {tolerance:.1e}")
    return doubts
