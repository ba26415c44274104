"""Results with given parameters, and what they say by numpy on a grid: for tests of what is computed from results."""

# N individuals, S situations, J alternatives, K grid points, P parameters.

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from mixlogit_align.econometrics import (
    ChoiceData,
    IntegrationReport,
    MixedLogitModel,
    MixedLogitResult,
    simulate_choices,
)
from tests.econometrics import brute


@cache
def _any_result() -> MixedLogitResult:
    sim = simulate_choices({"x": 1.0}, fixed=["x"], num_individuals=50, seed=0)
    return MixedLogitModel(sim.data, fixed=["x"]).fit()


def given(
    model: MixedLogitModel,
    params: Mapping[str, float],
    cov: Tensor | None = None,
    rule: str = "Quadrature(num_nodes=None)",
) -> MixedLogitResult:
    """A result of these natural parameters; no cov: standard errors of 0.1, correlations of 0.3."""
    p = len(params)
    if cov is None:
        cov = 0.01 * (0.7 * torch.eye(p, dtype=torch.float64) + 0.3)
    return replace(
        _any_result(),
        params=dict(params),
        cov=cov,
        specification=str(model.specification),
        integration=IntegrationReport(rule=rule, error=0.0, reference=""),
    )


def slopes(function: Callable[[MixedLogitResult], Tensor], result: MixedLogitResult, step: float = 1e-5) -> Tensor:
    """Central differences of a tensor (Q,) in every parameter, (Q, P)."""

    def at(name: str, value: float) -> Tensor:
        return function(replace(result, params={**result.params, name: value}))

    columns = [(at(x, value + step) - at(x, value - step)) / (2 * step) for x, value in result.params.items()]
    return torch.stack(columns, -1)


def numbers(values: Mapping[object, float]) -> Tensor:
    """(Q,) float64, of what a result keeps by name."""
    return torch.tensor(list(values.values()), dtype=torch.float64)


# ------------------------------------------------------------------ two models of one panel


PANEL = brute.read(brute.choices())

LOGIT_MODEL = MixedLogitModel(PANEL, ["a", "b"])
LOGIT = given(LOGIT_MODEL, {"a": 0.4, "b": -0.7}, rule="exact")

MIXED_PARAMS = {"a": 0.4, "b.loc": -0.3, "b.scale": 0.8, "c.loc": -0.4, "c.scale": 0.5}
MIXED_MODEL = MixedLogitModel(PANEL, ["a"], {"b": "normal", "c": "-lognormal"})
MIXED = given(MIXED_MODEL, MIXED_PARAMS)


def softmax(data: ChoiceData, coefficients: Mapping[str, float | np.ndarray]) -> np.ndarray:
    """Probabilities (..., S, J), in numpy; coefficients are numbers, or (..., 1, 1)."""
    utility = sum(value * data.attribute(name).numpy() for name, value in coefficients.items())
    odds = np.where(data.available.numpy(), np.exp(utility), 0.0)
    return odds / odds.sum(-1, keepdims=True)


def grid(params: Mapping[str, float] = MIXED_PARAMS, num: int = 161) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Coefficients of the mixed model on a grid of standard normals, (K, 1, 1), and weights (K,)."""
    z = np.linspace(-8.0, 8.0, num)
    first, second = (axis.ravel()[:, None, None] for axis in np.meshgrid(z, z, indexing="ij"))
    weight = np.exp(-0.5 * (first**2 + second**2)).ravel()
    b = params["b.loc"] + params["b.scale"] * first
    c = -np.exp(params["c.loc"] + params["c.scale"] * second)
    return {"a": np.full_like(b, params["a"]), "b": b, "c": c}, weight / weight.sum()


def posterior(data: ChoiceData, weight: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """(N, K) weights of grid points (K,) given choices of probabilities (K, S, J), one individual after the other."""
    chosen = np.log(probability[:, np.arange(data.num_situations), data.choice.numpy()])
    rows = [np.log(weight) + chosen[:, (data.individual == n).numpy()].sum(1) for n in range(data.num_individuals)]
    joint = np.exp(np.stack(rows) - np.max(rows, axis=1, keepdims=True))
    return joint / joint.sum(1, keepdims=True)
