"""The package against the oracle's golden files, at the bars of accuracy (tests/oracle/README.md)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "oracle"))  # its modules lie beside its golden files

import measure


@pytest.fixture(scope="module")
def golden():
    """Golden file and the package's errors there, measured once a group."""
    known = {}

    def at(name):
        if name not in known:
            meta, tables = measure.load(name)
            dtype = torch.float32 if name.endswith("float32") else torch.float64
            values = measure.evaluate(meta["family"], meta["kind"], tables, dtype)
            known[name] = meta, tables, measure.errors(values, tables, measure.BARS[name])
        return known[name]

    return at


def worst(errors: np.ndarray, rows: np.ndarray) -> str:
    i = int(errors.argmax())
    return f"error {errors[i]:.1e} at row {i} of {len(errors)}, parameters {rows[i]}"


@pytest.mark.parametrize("name", measure.BARS)
def test_log_prob(golden, name):
    _, tables, errors = golden(name)
    assert errors.log_prob.max() <= measure.BARS[name].log_prob, worst(errors.log_prob, tables["params"])


@pytest.mark.parametrize("name", measure.BARS)
def test_gradients_by_parameters(golden, name):
    meta, tables, errors = golden(name)
    for parameter, column in zip(meta["parameters"], errors.by_params.T, strict=True):
        assert column.max() <= measure.BARS[name].gradient, f"{parameter}: {worst(column, tables['params'])}"


@pytest.mark.parametrize("name", measure.BARS)
def test_gradients_by_inputs(golden, name):
    _, tables, errors = golden(name)
    rows = np.repeat(tables["params"], tables["sizes"], axis=0)
    assert errors.by_inputs.max() <= measure.BARS[name].gradient, worst(errors.by_inputs, rows)


# Held relative to the reference however small it is, without regard to cancellation (see measure.py).
STRICT = [
    "gamma",
    "gamma_float32",
    "exponential",
    "half_normal",
    "uniform",
    "triangular",
    "lognormal",
    "weibull",
]


@pytest.mark.parametrize("name", STRICT)
def test_strictly_relative_gradients(golden, name):
    _, _, errors = golden(name)
    bar = measure.BARS[name].gradient
    assert errors.strict_by_params.max() <= bar
    assert errors.strict_by_inputs.max() <= bar


def test_bfloat16_gives_the_result_of_the_upcast_input():
    _, tables = measure.load("gamma_float32")
    half = torch.tensor(tables["inputs"], dtype=torch.bfloat16)
    concentration, rate = (torch.tensor(p, dtype=torch.bfloat16) for p in tables["params"].T)
    y = torch.tensor(tables["choice"])
    mixing = measure.MIXING["Gamma"]
    low = measure.ma.MixedLogit(half, mixing(concentration.float(), rate.float())).log_prob(y.float())
    single = measure.ma.MixedLogit(half.float(), mixing(concentration.float(), rate.float())).log_prob(y.float())
    assert low.dtype == single.dtype == torch.float32
    assert torch.equal(low, single)
