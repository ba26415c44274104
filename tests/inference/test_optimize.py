from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch

from mixlogit_align.errors import InvalidInputError
from mixlogit_align.inference import gradient_norm, maximize_loglik


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal_sample() -> torch.Tensor:
    return 3.0 + 2.0 * torch.randn(500, dtype=torch.float64)


def normal_loglik(sample: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """loc and log scale of a normal sample: the maximum is known in closed form."""
    z = (sample - params[0]) * (-params[1]).exp()
    return -0.5 * z**2 - params[1]


@pytest.mark.parametrize("start", [(0.0, 0.0), (50.0, 3.0), (-400.0, 6.0), (3.0, -2.0)])
def test_finds_a_known_maximum_from_far(start: tuple[float, float]) -> None:
    sample = normal_sample()
    found = maximize_loglik(lambda t: normal_loglik(sample, t), f64(*start))
    sd = sample.std(correction=0)
    torch.testing.assert_close(found.params, torch.stack([sample.mean(), sd.log()]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.hessian, torch.diag(f64(-500.0 / float(sd) ** 2, -1000.0)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh(-found.hessian))
    assert found.converged, found.message
    assert found.gradient_norm <= 1e-6
    assert found.iterations <= found.evaluations


@pytest.mark.parametrize("units", [1e-6, 1e6])
def test_the_units_of_the_data_do_not_matter(units: float) -> None:
    x = torch.randn(300, 2, dtype=torch.float64)
    y = torch.bernoulli(torch.sigmoid(x @ f64(1.0, -0.5)))

    def loglik(t: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.logsigmoid((2 * y - 1) * ((x * scale) @ t))

    plain = maximize_loglik(lambda t: loglik(t, f64(1.0, 1.0)), f64(0.0, 0.0))
    scaled = maximize_loglik(lambda t: loglik(t, f64(1.0, units)), f64(0.0, 0.0))
    torch.testing.assert_close(scaled.params * f64(1.0, units), plain.params, rtol=1e-8, atol=1e-8)
    assert scaled.evaluations == plain.evaluations
    assert scaled.converged
    assert plain.converged


def test_leaves_a_start_where_the_hessian_is_indefinite() -> None:
    # log of a mixture with its modes at t0 = -2 and 2; at t0 = 0.1 it is convex in t0
    def loglik(t: torch.Tensor) -> torch.Tensor:
        return 50 * (torch.logaddexp(-((t[0] - 2) ** 2), -((t[0] + 2) ** 2)) - t[1] ** 2)

    found = maximize_loglik(loglik, f64(0.1, 1.0))
    torch.testing.assert_close(found.params, f64(2.0, 0.0), rtol=1e-2, atol=1e-6)
    assert found.converged


@pytest.mark.parametrize(
    ("loglik", "start"),
    [
        pytest.param(lambda t: t[0].log() - t[0], 2.5, id="no value"),
        pytest.param(lambda t: 2 * t[0].sqrt() - t[0], 5.0, id="no value, no derivatives"),
    ],
)
def test_stays_inside_the_domain(loglik: Callable[[torch.Tensor], torch.Tensor], start: float) -> None:
    # Newton's first step from the start, t - f' / f'', leads below 0
    found = maximize_loglik(loglik, f64(start))
    torch.testing.assert_close(found.params, f64(1.0))
    assert found.converged


def separated(t: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.logsigmoid(t[0] * torch.linspace(0.1, 1.0, 20, dtype=torch.float64))


def flat(t: torch.Tensor) -> torch.Tensor:
    return -((t[0] + t[1] - 1.0) ** 2)


@pytest.mark.parametrize(
    ("loglik", "start", "says"),
    [
        pytest.param(separated, (0.0,), "gradient norm|positive definite", id="no maximum"),
        pytest.param(flat, (0.0, 0.0), "positive definite", id="a flat direction"),
    ],
)
def test_never_claims_what_is_no_maximum(loglik: object, start: tuple[float, ...], says: str) -> None:
    found = maximize_loglik(loglik, f64(*start), max_iterations=20)  # type: ignore[arg-type]
    assert not found.converged
    assert re.search(says, found.message)


def test_an_exhausted_budget_is_no_convergence() -> None:
    # a quartic: each of the 1 + 10 steps removes a third of the distance, which leaves 0.4 of 37
    found = maximize_loglik(lambda t: -((t[0] - 3.0) ** 4), f64(40.0), max_iterations=1)
    assert not found.converged
    assert "gradient norm" in found.message


@pytest.mark.parametrize(
    ("start", "loglik"),
    [
        pytest.param(torch.zeros(1), lambda t: t.log().sum(), id="infinite value"),
        pytest.param(torch.zeros(1), lambda t: -t.abs().sqrt().sum(), id="infinite gradient"),
        pytest.param(torch.zeros(2, 2), lambda t: -(t**2).sum(), id="a matrix"),
        pytest.param(torch.zeros(0), lambda t: -(t**2).sum(), id="nothing"),
    ],
)
def test_refuses_a_start_that_is_none(start: torch.Tensor, loglik: object) -> None:
    with pytest.raises(InvalidInputError, match="start"):
        maximize_loglik(loglik, start)  # type: ignore[arg-type]


def test_gradient_norm_is_the_newton_step_in_standard_errors() -> None:
    hessian = -torch.diag(f64(4.0, 100.0))
    step = f64(0.5, 0.2)  # one and two standard errors
    assert gradient_norm(-hessian @ step, hessian) == pytest.approx(math.sqrt(1.0 + 4.0), rel=1e-12)


@pytest.mark.parametrize(
    "hessian", [[[1.0, 0.0], [0.0, -1.0]], [[-1.0, 2.0], [2.0, -1.0]], [[math.nan, 0.0], [0.0, -1.0]]]
)
def test_gradient_norm_is_infinite_without_a_maximum(hessian: list[list[float]]) -> None:
    assert gradient_norm(f64(0.0, 0.0), torch.tensor(hessian, dtype=torch.float64)) == math.inf
