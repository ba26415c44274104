from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2, norm

from mixlogit_align.errors import InvalidInputError
from mixlogit_align.inference import likelihood_ratio_pvalue, mixture_weights, wald


def f64(*values: float | list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("interior", "boundary", "weights"),
    [
        (1, 0, {1: 1.0}),
        (3, 0, {3: 1.0}),
        (0, 1, {0: 0.5, 1: 0.5}),
        (2, 1, {2: 0.5, 3: 0.5}),
        (0, 2, {0: 0.25, 1: 0.5, 2: 0.25}),
        (1, 3, {1: 0.125, 2: 0.375, 3: 0.375, 4: 0.125}),
    ],
)
def test_the_mixture_of_chi_squares(interior: int, boundary: int, weights: dict[int, float]) -> None:
    assert mixture_weights(interior, boundary) == weights


@pytest.mark.parametrize("tested", [(0, 0), (-1, 2), (2, -1)])
def test_a_mixture_needs_a_hypothesis(tested: tuple[int, int]) -> None:
    with pytest.raises(InvalidInputError, match="tested parameters"):
        mixture_weights(*tested)


# 5% points, rounded to three digits: half a unit of the last moves the probability by less than 2e-5.
@pytest.mark.parametrize(
    ("interior", "boundary", "critical"), [(1, 0, 3.841), (0, 1, 2.706), (1, 1, 5.138), (0, 2, 4.231)]
)
def test_critical_values_of_the_literature(interior: int, boundary: int, critical: float) -> None:
    assert likelihood_ratio_pvalue(critical, mixture_weights(interior, boundary)) == pytest.approx(0.05, abs=2e-5)


@pytest.mark.parametrize("statistic", [1e-3, 0.7, 4.0, 30.0])
def test_one_mean_that_cannot_be_negative_is_a_one_sided_test(statistic: float) -> None:
    # x ~ N(theta, 1), theta >= 0: the likelihood ratio against 0 is max(x, 0)^2
    expected = norm.sf(statistic**0.5)
    assert likelihood_ratio_pvalue(statistic, mixture_weights(0, 1)) == pytest.approx(expected, rel=1e-12)


def test_a_likelihood_ratio_of_zero_is_no_evidence() -> None:
    assert likelihood_ratio_pvalue(0.0, mixture_weights(0, 1)) == 1.0
    assert likelihood_ratio_pvalue(0.0, mixture_weights(2, 0)) == 1.0


@pytest.mark.parametrize("statistic", [-1e-9, float("nan")])
def test_a_negative_likelihood_ratio_is_refused(statistic: float) -> None:
    with pytest.raises(InvalidInputError, match="statistic"):
        likelihood_ratio_pvalue(statistic, {1: 1.0})


ESTIMATES = f64(1.0, -0.5, 2.0)
COVARIANCE = f64([0.5, 0.1, 0.0], [0.1, 0.3, -0.1], [0.0, -0.1, 0.4])


def test_the_test_of_one_parameter_is_its_squared_z() -> None:
    found = wald(ESTIMATES, COVARIANCE, f64([0.0, 1.0, 0.0]), f64(0.25))
    assert found.statistic == pytest.approx(0.75**2 / 0.3, rel=1e-12)
    assert found.dof == 1
    assert found.pvalue == pytest.approx(2 * norm.sf(0.75 / 0.3**0.5), rel=1e-12)


def test_a_quadratic_log_likelihood_has_the_wald_statistic_for_likelihood_ratio() -> None:
    matrix, values = f64([1.0, 1.0, 0.0], [0.0, 2.0, -1.0]), f64(1.0, 0.5)
    precision = torch.linalg.inv(COVARIANCE)
    # the constrained maximum by its Lagrange equations
    system = torch.cat([torch.cat([precision, matrix.T], 1), torch.cat([matrix, torch.zeros(2, 2)], 1)])
    constrained = torch.linalg.solve(system, torch.cat([precision @ ESTIMATES, values]))[:3]
    away = constrained - ESTIMATES
    found = wald(ESTIMATES, COVARIANCE, matrix, values)
    assert found.statistic == pytest.approx(float(away @ precision @ away), rel=1e-12)
    assert found.pvalue == pytest.approx(chi2.sf(found.statistic, 2), rel=1e-12)


def test_units_do_not_matter() -> None:
    matrix, values, units = f64([1.0, 1.0, 0.0], [0.0, 2.0, -1.0]), f64(1.0, 0.5), f64(1e6, 1e-6)
    plain = wald(ESTIMATES, COVARIANCE, matrix, values)
    scaled = wald(ESTIMATES, COVARIANCE, matrix * units[:, None], values * units)
    assert scaled.statistic == pytest.approx(plain.statistic, rel=1e-9)


def test_what_is_not_asked_for_may_be_unknown() -> None:
    covariance = COVARIANCE.clone()
    covariance[2, :] = covariance[:, 2] = torch.nan
    restriction = f64([1.0, 1.0, 0.0])
    assert wald(ESTIMATES, covariance, restriction, f64(0.0)) == wald(ESTIMATES, COVARIANCE, restriction, f64(0.0))


@pytest.mark.parametrize(
    ("covariance", "matrix", "values", "message"),
    [
        (COVARIANCE, f64([1.0, 0.0]), f64(0.0), "shapes"),
        (COVARIANCE, f64([1.0, 0.0, 0.0]), f64(0.0, 1.0), "shapes"),
        (COVARIANCE, f64(1.0, 0.0, 0.0), f64(0.0), "shapes"),
        (COVARIANCE, f64([1.0, 1.0, 0.0], [2.0, 2.0, 0.0]), f64(0.0, 1.0), "follows from the others"),
        (COVARIANCE, f64([0.0, 0.0, 0.0]), f64(0.0), "finite positive variance"),
        (torch.zeros(3, 3).double(), f64([1.0, 0.0, 0.0]), f64(0.0), "finite positive variance"),
        (torch.full((3, 3), torch.inf).double(), f64([1.0, 0.0, 0.0]), f64(0.0), "finite positive variance"),
        (COVARIANCE, torch.zeros(0, 3).double(), torch.zeros(0).double(), "finite positive variance"),
    ],
    ids=["columns", "values", "vector", "redundant", "empty row", "held", "unknown", "none"],
)
def test_restrictions_that_cannot_be_tested(
    covariance: torch.Tensor, matrix: torch.Tensor, values: torch.Tensor, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        wald(ESTIMATES, covariance, matrix, values)
