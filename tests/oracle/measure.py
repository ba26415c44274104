"""The package's values at the oracle's points, and how far they are from the references."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch

import mixlogit_align as ma
from mixlogit_align import distributions as ours

GOLDEN = Path(__file__).parent / "golden"
MIXING = {
    name: getattr(ours if hasattr(ours, name) else dist, name)
    for name in (
        *(
            "Gamma",
            "Exponential",
            "InverseGaussian",
            "HalfNormal",
            "TruncatedNormal",
            "Uniform",
            "Triangular",
        ),
        *("Normal", "LogNormal", "Weibull", "GeneralizedGamma"),
    )
}


def weights(first: torch.Tensor) -> torch.Tensor:
    return torch.stack([first, 1 - first], -1)


MIXING |= {
    "ZeroInflatedGamma": lambda gate, k, rate: dist.ZeroInflatedDistribution(dist.Gamma(k, rate), gate=gate),
    "GammaMixture": lambda w, k, rate, k2, rate2: dist.MixtureSameFamily(
        dist.Categorical(weights(w)), dist.Gamma(torch.stack([k, k2], -1), torch.stack([rate, rate2], -1))
    ),
    "GaussianUniformMixture": lambda w, m, c, low, high: ours.FiniteMixture(
        weights(w), [ours.InverseGaussian(m, c), dist.Uniform(low, high)]
    ),
}


@dataclass(frozen=True)
class Bar:
    """Largest error allowed: relative where the reference exceeds `floor` in size, absolute below.

    Gradients by the parameters in `columns_of_row` are judged beside the row's largest gradient by a parameter.
    """

    log_prob: float
    gradient: float
    floor: float = 1e-300
    columns_of_row: tuple[int, ...] = ()


# What a sum in float64 leaves of a small relative error; strict errors, without regard to this, are kept beside.
# A gradient below this part of the absolute sum of its contributions is near a sign change: the error is relative
# to that part.
CANCELLED = 1e-2
# A gradient by one of several inputs below this part of the row's largest comes from strengths whose posterior weight
# is of that size, which a rule that cuts its tails at float64 accuracy does not visit: likewise.
NEGLIGIBLE = 1e-12

# A truncated normal's gradient by a bound that holds next to no mass is a tiny difference: it is judged beside the
# row's largest gradient by a parameter.
BOUNDS = {"columns_of_row": (2, 3)}

LAPLACE, SEVERAL, QUADRATURE = Bar(1e-12, 1e-11), Bar(1e-9, 1e-7), Bar(1e-9, 1e-8)
BARS = {
    "gamma": Bar(1e-12, 1e-12),
    "gamma_float32": Bar(1e-7, 1e-7, 1e-37),
    "lognormal": Bar(1e-12, 1e-11),
    **dict.fromkeys(("normal", "weibull", "generalized_gamma"), QUADRATURE),
    **dict.fromkeys(("uniform_signed", "triangular_signed"), QUADRATURE),
    "truncated_normal_signed": Bar(1e-9, 1e-8, **BOUNDS),
    **dict.fromkeys(("exponential", "inverse_gaussian", "half_normal"), LAPLACE),
    **dict.fromkeys(("uniform", "triangular"), LAPLACE),
    "truncated_normal": Bar(1e-12, 1e-11, **BOUNDS),
    **dict.fromkeys(("zero_inflated_gamma", "gamma_mixture", "gaussian_uniform_mixture"), LAPLACE),
    **{f"{kind}_{f}": SEVERAL for kind in ("panel", "choice_set", "ranking") for f in ("lognormal", "gamma", "normal")},
}


def load(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        tables = {key: file[key] for key in file.files}
    return json.loads(str(tables.pop("meta"))), tables


@dataclass(frozen=True)
class Values:
    """The package's log P and gradients in the layout of a golden file."""

    log_prob: np.ndarray
    by_params: np.ndarray
    by_inputs: np.ndarray


def evaluate(
    family: str,
    kind: str,
    tables: dict[str, np.ndarray],
    dtype: torch.dtype = torch.float64,
    integration: Any = None,
) -> Values:
    """Rows of one size are one batch, as a user would put them."""
    sizes = tables["sizes"]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    out = Values(*(np.empty(tables[key].shape) for key in ("log_prob", "by_params", "by_inputs")))
    choices = np.concatenate([[0], np.cumsum(np.ones_like(sizes) if kind == "choice_set" else sizes)])
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        entries = starts[rows][:, None] + np.arange(size)
        inputs = torch.tensor(tables["inputs"][entries], dtype=dtype, requires_grad=True)
        params = [torch.tensor(p, dtype=dtype, requires_grad=True) for p in tables["params"][rows].T]
        length = 1 if kind in ("binary", "choice_set") else int(size)
        y = torch.tensor(tables["choice"][choices[rows][:, None] + np.arange(length)])
        mixing = MIXING[family](*params)
        if kind == "binary":
            value = ma.MixedLogit(inputs[:, 0], mixing, integration).log_prob(y[:, 0].to(dtype))
        elif kind == "panel":
            value = ma.PanelMixedLogit(inputs, mixing, integration).log_prob(y.to(dtype))
        elif kind == "choice_set":
            value = ma.MixedMultinomialLogit(inputs, mixing, integration).log_prob(y[:, 0].long())
        else:
            value = ma.MixedPlackettLuce(inputs, mixing, integration).log_prob(y.long())
        *by_params, by_inputs = torch.autograd.grad(value.sum(), [*params, inputs])
        out.log_prob[rows] = value.detach().double().numpy()
        out.by_params[rows] = torch.stack(by_params, -1).double().numpy()
        out.by_inputs[entries] = by_inputs.double().numpy()
    return out


def error(got: np.ndarray, expected: np.ndarray, floor: float, least: np.ndarray | float = 0.0) -> np.ndarray:
    """Relative where the reference exceeds `floor` in size, absolute below; NaN counts as infinite.

    The error is relative to `least` where the reference is smaller than that.
    """
    size = np.maximum(np.abs(expected), least)
    with np.errstate(invalid="ignore"):
        distance = np.abs(got - expected) / np.where(size > floor, size, 1.0)
    return np.nan_to_num(distance, nan=np.inf)


@dataclass(frozen=True)
class Errors:
    """Per quantity, in the layout of `Values`; strict_* are relative to the reference however small."""

    log_prob: np.ndarray
    by_params: np.ndarray
    by_inputs: np.ndarray
    strict_by_params: np.ndarray
    strict_by_inputs: np.ndarray


def errors(values: Values, tables: dict[str, np.ndarray], bar: Bar) -> Errors:
    row = np.repeat(np.arange(len(tables["sizes"])), tables["sizes"])
    largest = np.zeros(len(tables["sizes"]))
    np.maximum.at(largest, row, np.abs(tables["by_inputs"]))
    by_params = CANCELLED * tables["condition_params"]
    of_row = np.abs(tables["by_params"]).max(1)
    for column in bar.columns_of_row:
        by_params[:, column] = np.maximum(by_params[:, column], of_row)
    least = {
        "log_prob": 0.0,
        "by_params": by_params,
        "by_inputs": np.maximum(CANCELLED * tables["condition_inputs"], NEGLIGIBLE * largest[row]),
    }

    def of(key: str, strict: bool) -> np.ndarray:
        return error(getattr(values, key), tables[key], bar.floor, 0.0 if strict else least[key])

    return Errors(
        of("log_prob", False),
        of("by_params", False),
        of("by_inputs", False),
        of("by_params", True),
        of("by_inputs", True),
    )
