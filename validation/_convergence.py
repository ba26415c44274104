"""Whether an estimation that says it converged did: derivatives by finite differences at the estimates."""

# N individuals, K draws, M base variates, P parameters.

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch

import mixlogit_align
from mixlogit_align.distributions import Triangular
from mixlogit_align.econometrics import MixedLogitModel
from mixlogit_align.econometrics.likelihood import Nodes, PanelData, SimulatedLoglik
from mixlogit_align.econometrics.nodes import NodeMaker

# Largest gradient, in the metric of the inverse Hessian, at something to call an optimum: in standard errors.
TOLERANCE = 0.05

_RULES = ("Quadrature", "MonteCarlo", "QuasiMonteCarlo", "ImportanceSampling", "FixedDraws")

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


def evidence(model: MixedLogitModel, result: Any) -> Evidence:
    """Whether a result's estimates are an optimum of the log-likelihood, values of which are all that is trusted.

    The nodes are made anew by the rule that the result names. Scales are reported positive with the base draws
    reversed, so that the pattern of reversals is sought that gives the result's log-likelihood. A scale at its boundary
    of 0 is no interior optimum: there the log-likelihood must not rise with it.
    """
    return _of_strength(model, result) if result.mixing is not None else _of_nodes(model, result)


def reversals(model: MixedLogitModel, result: Any) -> tuple[float, ...]:
    """Signs of the base draws behind positive scales, in the order of the scales that can have either sign."""
    return _simulated(model, result)[1]


def _simulated(model: MixedLogitModel, result: Any) -> tuple[SimulatedLoglik, tuple[float, ...]]:
    """The log-likelihood that was maximised, on nodes made anew, scales positive; and the signs of its base draws."""
    spec = model.specification
    theta = spec.theta(torch.tensor([result.params[name] for name in spec.names], dtype=torch.float64))
    data = PanelData(model.data, spec)
    if not spec.num_dims:
        return SimulatedLoglik(data, spec, NodeMaker(mixlogit_align.Quadrature(), data, spec).nodes(theta)), ()
    rule = eval(
        result.integration.rule, {name: getattr(mixlogit_align, name) for name in _RULES}
    )  # a rule prints itself
    best, distance = None, math.inf
    for signs in itertools.product((1.0, -1.0), repeat=len(spec.mirrored)):
        data.modes = None
        there = theta.clone()
        reversal = torch.ones(spec.num_dims, dtype=torch.float64)
        for sign, (column, together) in zip(signs, spec.mirrored.values(), strict=True):
            reversal[column] = sign
            for name in together:
                there[spec.index[name]] *= sign
        nodes = NodeMaker(rule, data, spec).nodes(there)
        found = SimulatedLoglik(data, spec, Nodes(nodes.base * reversal, nodes.log_weight))
        gap = abs(float(found.weights @ found.values(theta)) - result.loglik)
        if gap < distance:
            best, distance = (found, signs), gap
        if gap < 1e-7 * (1.0 + abs(result.loglik)):
            break
    assert best is not None
    return best


def _of_nodes(model: MixedLogitModel, result: Any) -> Evidence:
    spec, loglik = model.specification, _simulated(model, result)[0]
    natural = torch.tensor([result.params[name] for name in spec.names], dtype=torch.float64)
    theta = spec.theta(natural)
    slopes = torch.tensor([result.params[n] if n in spec.logged else 1.0 for n in spec.names], dtype=torch.float64)
    errors = torch.tensor([result.std_errors[name] for name in spec.names], dtype=torch.float64) / slopes
    if not bool(torch.isfinite(errors).all()):
        return Evidence(math.nan, math.nan, "standard errors not finite")

    def value(point: np.ndarray) -> float:
        return float(loglik.weights @ loglik.values(torch.from_numpy(point)))

    def score(point: np.ndarray) -> np.ndarray:
        return loglik.gradient(torch.from_numpy(point))[1].numpy()

    at, steps = theta.numpy(), 1e-3 * errors.numpy()
    gradient = gradient_by_differences(value, at, steps)
    return judge(gradient, hessian_by_differences(score, at, steps), list(result.std_errors.values()))


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
