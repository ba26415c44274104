from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from mixlogit_align.errors import InvalidInputError
from mixlogit_align.inference import (
    Derivatives,
    Restricted,
    approach_loglik,
    derivatives,
    gradient_norm,
    maximize_loglik,
    refine_loglik,
)


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


# ---------------------------------------------------------------- from near a maximum, by gradients


@dataclass
class Counted:
    """A log-likelihood that brings its derivatives, by autograd, and counts what it is asked for."""

    loglik: Callable[[torch.Tensor], torch.Tensor]
    gradients: int = 0
    hessians: int = 0
    seen: list[torch.Tensor] = field(default_factory=list)

    def gradient(self, params: torch.Tensor) -> tuple[float, torch.Tensor]:
        self.gradients += 1
        self.seen.append(params)
        found = derivatives(self.loglik, params)
        return found.value, found.gradient

    def derivatives(self, params: torch.Tensor) -> Derivatives:
        self.hessians += 1
        self.seen.append(params)
        return derivatives(self.loglik, params)


QUADRATIC = torch.tensor([[4.0, 1.0, 0.0], [1.0, 9.0, 2.0], [0.0, 2.0, 100.0]], dtype=torch.float64)
TOP = f64(1.0, -2.0, 0.5)


def quadratic(t: torch.Tensor) -> torch.Tensor:
    return -0.5 * (t - TOP) @ QUADRATIC @ (t - TOP)


def logit(t: torch.Tensor) -> torch.Tensor:
    """A binary logit on 200 observations with known design."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, dtype=torch.float64, generator=generator)
    y = torch.bernoulli(torch.sigmoid(x @ TOP), generator=generator)
    return torch.nn.functional.logsigmoid((2 * y - 1) * (x @ t))


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-5])
def test_approach_ends_within_its_tolerance_of_standard_errors(tolerance: float) -> None:
    counted = Counted(logit)
    start = f64(0.5, -1.0, 0.0)
    covariance = torch.linalg.inv(-derivatives(logit, start).hessian)
    found = approach_loglik(counted, start, covariance, tolerance=tolerance)
    top = derivatives(logit, found.params)
    whitened = torch.linalg.cholesky(covariance).T @ top.gradient
    assert float(whitened.norm()) <= tolerance
    assert (counted.hessians, counted.gradients) == (0, found.evaluations)
    assert found.iterations <= found.evaluations


def test_approach_with_the_right_covariance_is_a_newton_step() -> None:
    counted = Counted(quadratic)
    # less than one standard error away, so that BFGS first tries the whole step of its Hessian, the identity
    start = TOP + 0.6 * torch.linalg.cholesky(torch.linalg.inv(QUADRATIC)) @ f64(0.6, 0.0, 0.8)
    found = approach_loglik(counted, start, torch.linalg.inv(QUADRATIC), tolerance=1e-8)
    torch.testing.assert_close(found.params, TOP, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.covariance, torch.linalg.inv(QUADRATIC), rtol=1e-6, atol=1e-8)
    assert found.evaluations <= 3


@pytest.mark.parametrize("units", [1e-6, 1.0, 1e6])
def test_approach_does_not_depend_on_units(units: float) -> None:
    scale = f64(1.0, units, 1.0 / units)
    information = -derivatives(logit, f64(0.0, 0.0, 0.0)).hessian
    covariance = scale[:, None] * torch.linalg.inv(information) * scale
    found = approach_loglik(Counted(lambda t: logit(t / scale)), torch.zeros(3, dtype=torch.float64), covariance)
    plain = approach_loglik(Counted(logit), torch.zeros(3, dtype=torch.float64), torch.linalg.inv(information))
    torch.testing.assert_close(found.params / scale, plain.params, rtol=1e-7, atol=1e-9)
    assert found.evaluations == plain.evaluations


@pytest.mark.parametrize(
    "covariance",
    [
        pytest.param(torch.diag(f64(1.0, -1.0, 1.0)), id="indefinite"),
        pytest.param(torch.full((3, 3), math.nan, dtype=torch.float64), id="not a number"),
    ],
)
def test_approach_without_a_covariance_takes_the_hessians(covariance: torch.Tensor) -> None:
    counted = Counted(quadratic)
    found = approach_loglik(counted, f64(0.0, 0.0, 0.0), covariance)
    assert counted.hessians == found.evaluations > 0
    torch.testing.assert_close(found.covariance, torch.linalg.inv(QUADRATIC), rtol=1e-9, atol=1e-12)
    assert float((found.params - TOP) @ QUADRATIC @ (found.params - TOP)) < 0.1**2


def test_approach_keeps_the_best_point_where_a_trial_is_outside_the_domain() -> None:
    # log t - t: the first trial from 2.5 with a covariance 30 times too large is below 0
    counted = Counted(lambda t: t[0].log() - t[0])
    found = approach_loglik(counted, f64(2.5), f64(200.0)[:, None], tolerance=1e-6)
    assert min(float(point) for point in counted.seen) < 0.0
    torch.testing.assert_close(found.params, f64(1.0), rtol=1e-5, atol=0)


def test_approach_stops_at_its_budget_with_the_best_point() -> None:
    counted = Counted(lambda t: -((t[0] - 3.0) ** 4) - (t[1] - t[0] ** 2) ** 2)
    found = approach_loglik(counted, f64(-8.0, 8.0), torch.eye(2, dtype=torch.float64), max_iterations=2)
    assert found.iterations <= 2
    values = [float(counted.loglik(point)) for point in counted.seen]
    assert float(counted.loglik(found.params)) == max(values)


@pytest.mark.parametrize("shift", [0.0, 0.3, 3.0], ids=["there", "near", "3 standard errors away"])
def test_refine_finds_the_maximum_that_maximize_finds(shift: float) -> None:
    top = maximize_loglik(logit, f64(0.0, 0.0, 0.0))
    covariance = torch.linalg.inv(-top.hessian)
    counted = Counted(logit)
    found = refine_loglik(counted, top.params + shift * covariance.diagonal().sqrt(), covariance)
    assert found.converged, found.message
    assert found.gradient_norm <= 1e-4
    step = found.params - top.params
    assert float((step @ -top.hessian @ step).sqrt()) <= 2e-4
    # half its square is the log-likelihood still to be gained
    assert abs(top.loglik - found.loglik) <= 1e-8
    torch.testing.assert_close(found.hessian, top.hessian, rtol=0.05, atol=0.05)
    assert counted.hessians == 1
    assert counted.hessians + counted.gradients == found.evaluations


def test_refine_goes_on_with_hessians_from_a_bad_start() -> None:
    """A covariance that knows nothing of the curvature: the gradient steps end their budget, others arrive."""
    counted = Counted(logit)
    found = refine_loglik(counted, f64(8.0, 9.0, -7.0), 1e-6 * torch.eye(3, dtype=torch.float64), max_iterations=1)
    top = maximize_loglik(logit, f64(0.0, 0.0, 0.0))
    assert found.converged, found.message
    torch.testing.assert_close(found.params, top.params, rtol=1e-5, atol=1e-6)
    assert counted.hessians > 1


@pytest.mark.parametrize(
    ("loglik", "size", "says"),
    [
        pytest.param(flat, 2, "positive definite", id="a flat direction"),
        pytest.param(lambda t: (t[0] - 1.0) ** 2 - t[1] ** 2, 2, "positive definite", id="a saddle"),
        pytest.param(lambda t: torch.full((), math.nan, dtype=torch.float64) * t.sum(), 1, "finite", id="no number"),
    ],
)
def test_refine_never_claims_what_is_no_maximum(
    loglik: Callable[[torch.Tensor], torch.Tensor], size: int, says: str
) -> None:
    start, covariance = torch.ones(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)
    found = refine_loglik(Counted(loglik), start, covariance, max_iterations=3)
    assert not found.converged
    assert says in found.message


@pytest.mark.parametrize("free", [[0, 1, 2], [2, 0], [1]])
def test_restricted_is_the_function_of_some_parameters(free: list[int]) -> None:
    at = f64(0.3, -0.6, 0.9)
    index = torch.tensor(free)
    params = f64(1.0, 2.0, -1.0)[: len(free)]

    def by_hand(t: torch.Tensor) -> torch.Tensor:
        whole = list(at.unbind())
        for i, value in zip(free, t.unbind(), strict=True):
            whole[i] = value
        return logit(torch.stack(whole))

    restricted = Restricted(Counted(logit), index, at)
    expected = derivatives(by_hand, params)
    torch.testing.assert_close(restricted.derivatives(params), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(restricted.gradient(params), (expected.value, expected.gradient), rtol=1e-12, atol=1e-12)
    assert restricted.full(params)[index].tolist() == params.tolist()
    held = [i for i in range(3) if i not in free]
    assert restricted.full(params)[held].tolist() == at[held].tolist()
    assert at.tolist() == [0.3, -0.6, 0.9]


def test_a_restricted_maximum_is_that_of_the_rest() -> None:
    at = f64(0.0, 4.0, 0.0)
    free = torch.tensor([0, 2])
    found = refine_loglik(Restricted(Counted(quadratic), free, at), f64(0.0, 0.0), torch.eye(2, dtype=torch.float64))
    # quadratic: x_f = top_f - Q_ff^-1 Q_fh (x_h - top_h)
    shift = torch.linalg.solve(QUADRATIC[free][:, free], QUADRATIC[free][:, 1]) * (4.0 - float(TOP[1]))
    torch.testing.assert_close(found.params, TOP[free] - shift, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.hessian, -QUADRATIC[free][:, free], rtol=1e-12, atol=1e-12)
