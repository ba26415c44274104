"""Maxima between bounds: against scipy, at corners, from where the likelihood curves the wrong way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from mixlogit_align.errors import InvalidInputError
from mixlogit_align.inference.bounded import maximize_in_box


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("width", [0.05, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_least_squares_between_bounds_are_scipys(seed: int, width: float) -> None:
    rng = np.random.default_rng(seed)
    # nearly collinear columns: clipping each parameter by itself would end far from the maximum
    x = rng.normal(size=(40, 1)) + 0.2 * rng.normal(size=(40, 4))
    y = x @ rng.normal(size=4) + rng.normal(size=40)
    expected = lsq_linear(x, y, (-width, width), tol=1e-14)
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    found = maximize_in_box(lambda t: -0.5 * (a @ t - b) ** 2, f64(0, 0, 0, 0), f64(*[-width] * 4), f64(*[width] * 4))
    assert found.converged
    # lsq_linear approaches bounds from inside
    np.testing.assert_allclose(found.params.numpy(), expected.x, atol=1e-6)
    assert found.loglik == pytest.approx(-expected.cost, rel=1e-9)
    assert found.at_bound.tolist() == expected.active_mask.tolist()


def double_well(t: torch.Tensor) -> torch.Tensor:
    return -((t[0] ** 2 - 1) ** 2) - (t[1] - 0.5 * t[0]) ** 2


@pytest.mark.parametrize(
    ("start", "upper", "params", "at_bound"),
    [
        pytest.param((0.01, 1.0), 3.0, (1.0, 0.5), (0, 0), id="from-a-ridge"),
        pytest.param((-2.5, 2.5), 3.0, (-1.0, -0.5), (0, 0), id="from-a-corner"),
        pytest.param((0.01, 0.2), 0.8, (0.8, 0.4), (1, 0), id="one-bound"),
        pytest.param((9.0, 9.0), 0.3, (0.3, 0.15), (1, 0), id="from-outside"),
    ],
)
def test_climbs_where_the_hessian_is_indefinite(
    start: tuple[float, float], upper: float, params: tuple[float, float], at_bound: tuple[int, int]
) -> None:
    found = maximize_in_box(double_well, f64(*start), f64(-3, -3), f64(upper, upper))
    assert found.converged
    assert tuple(found.at_bound.tolist()) == at_bound
    torch.testing.assert_close(found.params, f64(*params), rtol=1e-5, atol=1e-5)  # the gradient tolerance


def test_a_corner_is_a_maximum() -> None:
    found = maximize_in_box(lambda t: 3 * t[0] - 2 * t[1], f64(0, 0), f64(-1, -2), f64(4, 5))
    assert (found.params.tolist(), found.at_bound.tolist()) == ([4.0, -2.0], [1, -1])
    assert (found.converged, found.gradient_norm, found.loglik) == (True, 0.0, 16.0)


@pytest.mark.parametrize("value", [-2.0, 0.0, 0.4])
def test_a_parameter_without_room_stays(value: float) -> None:
    found = maximize_in_box(double_well, f64(value, 1.0), f64(value, -3), f64(value, 3))
    assert found.converged
    torch.testing.assert_close(found.params, f64(value, 0.5 * value), rtol=1e-5, atol=1e-5)  # the gradient tolerance
    assert found.at_bound[1] == 0


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(0.0, id="constant"),
        pytest.param(math.nan, id="nan"),
    ],
)
def test_a_likelihood_that_says_nothing_does_not_converge(value: float) -> None:
    found = maximize_in_box(lambda t: t.sum() * value, f64(0.5), f64(0), f64(1))
    assert (found.converged, found.iterations, found.params.item()) == (False, 0, 0.5)


def test_too_few_iterations_do_not_converge() -> None:
    found = maximize_in_box(double_well, f64(0.01, 1.0), f64(-3, -3), f64(3, 3), max_iterations=2)
    assert (found.converged, found.iterations) == (False, 2)


@pytest.mark.parametrize(("lower", "upper"), [(2.0, 1.0), (-math.inf, 1.0), (math.nan, 1.0)])
def test_refuses_an_empty_or_unbounded_box(lower: float, upper: float) -> None:
    with pytest.raises(InvalidInputError, match="finite bounds, lower not above upper"):
        maximize_in_box(double_well, f64(0, 0), f64(-1, lower), f64(1, upper))
