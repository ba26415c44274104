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


@dataclass(frozen=True)
class Bar:
    """Largest error allowed: relative where the reference exceeds `floor` in size, absolute below."""

    log_prob: float
    gradient: float
    floor: float = 1e-300


LAPLACE, SEVERAL, QUADRATURE = Bar(1e-12, 1e-11), Bar(1e-9, 1e-7), Bar(1e-9, 1e-8)
BARS = {
    "gamma": Bar(1e-12, 1e-12),
    "gamma_float32": Bar(1e-7, 1e-7, 1e-37),
    "lognormal": Bar(1e-12, 1e-11),
    **dict.fromkeys(("normal", "weibull", "generalized_gamma"), QUADRATURE),
    **dict.fromkeys(("uniform_signed", "triangular_signed", "truncated_normal_signed"), QUADRATURE),
    **dict.fromkeys(("exponential", "inverse_gaussian", "half_normal"), LAPLACE),
    **dict.fromkeys(("truncated_normal", "uniform", "triangular"), LAPLACE),
    **{
        f"{kind}_{f}": SEVERAL
        for kind in ("panel", "choice_set", "ranking")
        for f in ("lognormal", "gamma", "normal")
    },
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


def error(got: np.ndarray, expected: np.ndarray, floor: float) -> np.ndarray:
    """Relative where |expected| > floor, absolute elsewhere; NaN counts as infinite."""
    size = np.abs(expected)
    return np.nan_to_num(np.abs(got - expected) / np.where(size > floor, size, 1.0), nan=np.inf)


def errors(values: Values, tables: dict[str, np.ndarray], floor: float) -> dict[str, np.ndarray]:
    """Per quantity: log_prob (N,), by_params (N, parameters), by_inputs (entries,)."""
    return {
        key: error(getattr(values, key), tables[key], floor) for key in ("log_prob", "by_params", "by_inputs")
    }
