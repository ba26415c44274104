"""Whether an estimation that says it converged did: derivatives by finite differences at the estimates."""

# N individuals, K draws, M base variates, P parameters.

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch

from mixlogit_align.distributions import Triangular
from mixlogit_align.econometrics import MixedLogitModel
from mixlogit_align.econometrics.estimation import Found
from mixlogit_align.econometrics.likelihood import SimulatedLoglik

# Largest gradient, in the metric of the inverse Hessian, at something to call an optimum: in standard errors.
TOLERANCE = 0.05
# And on nodes made anew at the optimum, where the nodes follow it: what importance sampling may be off.
TOLERANCE_ANEW = 0.5

Value = Callable[[np.ndarray], float]
Gradient = Callable[[np.ndarray], np.ndarray]

_MIXING: dict[str, Callable[[float, float], Any]] = {
    "normal": dist.Normal,
    "lognormal": dist.LogNormal,
    "uniform": lambda loc, scale: dist.Uniform(loc - scale, loc + scale),
    "triangular": lambda loc, scale: Triangular(loc - scale, loc + scale),
    "gamma": dist.Gamma,
}


@dataclass(frozen=True)
class Evidence:
    """What finite differences say about a point.

    Attributes
    ----------
    norm : float
        ``sqrt(g' (-H)^-1 g)``; infinite where -H is not positive definite, NaN where something is not finite.
    eigenvalue : float
        The smallest of -H scaled to a unit diagonal.
    why_not : str
        Empty if this is an optimum.
    """

    norm: float
    eigenvalue: float
    why_not: str


def gradient_by_differences(value: Value, at: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Central differences, (P,)."""
    return np.array([(value(at + h) - value(at - h)) / (2.0 * h.sum()) for h in np.diag(steps)])


def hessian_by_differences(gradient: Gradient, at: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Central differences of a gradient, made symmetric, (P, P)."""
    rows = np.stack([(gradient(at + h) - gradient(at - h)) / (2.0 * h.sum()) for h in np.diag(steps)])
    return (rows + rows.T) / 2.0


def judge(gradient: np.ndarray, hessian: np.ndarray, std_errors: Sequence[float]) -> Evidence:
    """The rule for everybody: finite numbers, a positive definite -H and a small gradient."""
    if not (np.isfinite(gradient).all() and np.isfinite(hessian).all()):
        return Evidence(math.nan, math.nan, "derivatives not finite")
    diagonal = -hessian.diagonal()
    if (diagonal <= 0.0).any():
        return Evidence(math.inf, -math.inf, "Hessian not negative definite")
    scale = diagonal**-0.5
    unit = -scale[:, None] * hessian * scale
    smallest = float(np.linalg.eigvalsh(unit)[0])
    if smallest <= 0.0:
        return Evidence(math.inf, smallest, "Hessian not negative definite")
    norm = float(np.sqrt((scale * gradient) @ np.linalg.solve(unit, scale * gradient)))
    why = f"gradient of {norm:.2g} standard errors" if norm > TOLERANCE else ""
    if not why and not np.isfinite(np.asarray(std_errors)).all():
        why = "standard errors not finite"
    return Evidence(norm, smallest, why)


class Observed(MixedLogitModel):
    """A model that remembers where its search ended: the very log-likelihood that was maximised."""

    found: Found | None = None

    def _result(self, best: Found, *arguments: Any) -> Any:
        self.found = best
        return super()._result(best, *arguments)


def evidence(model: Observed, result: Any) -> Evidence:
    """Whether a result's estimates are an optimum of the log-likelihood, values of which are all that is trusted.

    Of the log-likelihood on the nodes of the search. A scale at its boundary of 0 is no interior optimum: there the
    log-likelihood must not rise with it.
    """
    if model.found is None:
        return _of_strength(model, result)
    return _of_nodes(model.found.loglik, model.found.params, result)


def evidence_anew(model: Observed, result: Any) -> Evidence | None:
    """The same where nodes follow individuals' modes, on nodes made anew at the estimates; else None.

    The nodes of the search were made at parameters nearby. If they covered the likelihood, new ones give nearly the
    same function. Its gradient is measured in the metric of the search's Hessian: how far estimates would move.
    """
    if model.found is None or not model.found.maker.centred:
        return None
    maker, theta = model.found.maker, model.found.params
    maker.data.modes = None
    loglik = SimulatedLoglik(maker.data, model.specification, maker.nodes(theta))
    errors = _errors(loglik, result)
    if not np.isfinite(errors).all():
        return Evidence(math.nan, math.nan, "standard errors not finite")
    gradient = gradient_by_differences(_value(loglik), theta.numpy(), 1e-3 * errors)
    return judge(gradient, model.found.maximum.hessian.numpy(), errors.tolist())


def reversals(model: Observed) -> tuple[bool, ...]:
    """Which scales ended negative and were reported positive, with base draws reversed."""
    assert model.found is not None
    spec = model.specification
    return tuple(float(model.found.params[spec.index[name]]) < 0.0 for name in spec.mirrored)


def _errors(loglik: SimulatedLoglik, result: Any) -> np.ndarray:
    """Standard errors of the estimated coordinates."""
    names = loglik.specification.names
    slopes = [result.params[name] if name in loglik.specification.logged else 1.0 for name in names]
    return np.array([result.std_errors[name] / slope for name, slope in zip(names, slopes, strict=True)])


def _value(loglik: SimulatedLoglik) -> Value:
    return lambda point: float(loglik.weights @ loglik.values(torch.from_numpy(point)))


def _of_nodes(loglik: SimulatedLoglik, params: torch.Tensor, result: Any) -> Evidence:
    """By differences over a thousandth of a standard error.

    Where coefficients break, gradients jump from draw to draw: a short stretch meets too few of them to tell the
    curvature, so that one of a tenth may tell it, and the gradient is taken within a ten-thousandth.
    """
    errors = _errors(loglik, result)
    if not np.isfinite(errors).all():
        return Evidence(math.nan, math.nan, "standard errors not finite")

    def score(point: np.ndarray) -> np.ndarray:
        return loglik.gradient(torch.from_numpy(point))[1].numpy()

    at, breaks = params.numpy(), loglik.specification.breaks
    gradient = gradient_by_differences(_value(loglik), at, (1e-4 if breaks else 1e-3) * errors)
    curvatures = [hessian_by_differences(score, at, w * errors) for w in ((1e-3, 0.1) if breaks else (1e-3,))]
    found = [judge(gradient, hessian, errors.tolist()) for hessian in curvatures]
    return min(found, key=lambda evidence: bool(evidence.why_not))


def _of_strength(model: MixedLogitModel, result: Any) -> Evidence:
    (random,) = model.specification.random.values()
    if result.at_boundary:
        return _at_boundary(model, result)
    names = list(result.params)
    at = np.array([result.params[name] for name in names])
    errors = np.array([result.std_errors[name] for name in names])
    if not np.isfinite(errors).all():
        return Evidence(math.nan, math.nan, "standard errors not finite")

    def value(point: np.ndarray) -> float:
        mixing = _MIXING[random.family](*torch.from_numpy(point))
        return float(model.data.weights @ model.loglik(mixing))

    # a scale is positive: steps that stay inside
    bound = np.array([math.inf if name.endswith(".loc") else abs(result.params[name]) for name in names])
    steps = np.minimum(1e-3 * errors, 0.1 * bound)
    gradient = gradient_by_differences(value, at, steps)
    wide = np.minimum(3e-2 * errors, 0.1 * bound)
    hessian = hessian_by_differences(lambda point: gradient_by_differences(value, point, wide), at, wide)
    return judge(gradient, hessian, errors.tolist())


def _at_boundary(model: MixedLogitModel, result: Any) -> Evidence:
    """No strength, nor a little heterogeneity about it, is more likely."""
    strength = float(result.fixed.estimate)
    (random,) = model.specification.random.values()
    strength *= random.sign
    error = result.fixed.std_error

    def value(mixing: Any) -> float:
        return float(model.data.weights @ model.loglik(mixing))

    def fixed(x: np.ndarray) -> float:
        return value(dist.Delta(torch.tensor(x[0])))

    at = np.array([strength])
    gradient = gradient_by_differences(fixed, at, np.array([1e-3 * error]))
    wide = np.array([3e-2 * error])
    found = judge(
        gradient, hessian_by_differences(lambda x: gradient_by_differences(fixed, x, wide), at, wide), [error]
    )
    some = value(dist.Normal(torch.tensor(strength), torch.tensor(0.3 * error)))
    if random.family in ("normal", "uniform", "triangular") and some > fixed(at) + 1e-6:
        return Evidence(found.norm, found.eigenvalue, "the log-likelihood rises with heterogeneity")
    return found
