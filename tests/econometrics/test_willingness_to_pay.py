from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from mixlogit_align.econometrics import MixedLogitModel, Random, WillingnessToPay, willingness_to_pay
from mixlogit_align.errors import InvalidInputError
from tests.econometrics import brute
from tests.econometrics.given import LOGIT, LOGIT_MODEL, PANEL, given, numbers, slopes

# A quantile of the ratio over individuals is the mean of 82 of 4,096 Sobol draws: 1e-3 of the standard deviation.
QUANTILE = 2e-3


def found_for(
    arguments: Mapping[str, Any], params: Mapping[str, float], cov: torch.Tensor | None = None, **options: Any
) -> WillingnessToPay:
    """Of attribute b in units of a; few draws of the estimates where these are not the point."""
    model = MixedLogitModel(PANEL, **arguments)
    return willingness_to_pay(model, given(model, params, cov), "b", "a", **({"num_draws": 20} | options))


# ------------------------------------------------------------------ a ratio of two numbers


def test_conditional_logit_by_hand() -> None:
    a, b, v = 0.4, -0.7, LOGIT.cov
    found = willingness_to_pay(LOGIT_MODEL, LOGIT, "a", "b", level=0.9)
    variance = v[0, 0] / b**2 + a**2 * v[1, 1] / b**4 - 2.0 * a * v[0, 1] / b**3
    error = math.sqrt(float(variance))
    assert found.values == pytest.approx({"ratio": -a / b}, rel=1e-14)
    assert found.std_errors == pytest.approx({"ratio": error}, rel=1e-12)
    half = scipy.stats.norm.ppf(0.95) * error
    assert found.delta["ratio"] == pytest.approx((-a / b - half, -a / b + half), rel=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_krinsky_robb_ends_are_quantiles_of_a_ratio_of_normals(level: float) -> None:
    """P(-A / B <= r) = Phi(-(a + r b) / sd(A + r B)) where B < 0 (Fieller, Hinkley); P(B > 0) = 1e-12 here.

    Of 4,000 draws the share below a quantile errs by sqrt(p (1 - p) / 4000): bands of 4.5 of these fail for one seed
    in 150,000.
    """
    a, b, v = 0.4, -0.7, LOGIT.cov.numpy()
    ends = willingness_to_pay(LOGIT_MODEL, LOGIT, "a", "b", level=level, num_draws=4000, seed=1).krinsky_robb["ratio"]
    r = np.array(ends)
    below = scipy.stats.norm.cdf(-(a + r * b) / np.sqrt(v[0, 0] + 2.0 * r * v[0, 1] + r**2 * v[1, 1]))
    tail = (1.0 - level) / 2.0
    assert below == pytest.approx([tail, 1.0 - tail], abs=4.5 * math.sqrt(tail * (1.0 - tail) / 4000))


def test_a_positive_price_is_told() -> None:
    assert "the coefficient of the price is positive" in found_for({"fixed": ["a", "b"]}, {"a": 0.4, "b": 1.0}).notes


# ------------------------------------------------------------------ distributions over individuals


def of_scipy(law: Any) -> tuple[float, float, float]:
    return float(law.median()), float(law.mean()), float(law.std())


def of_sample(price: Callable[[np.ndarray], np.ndarray], attribute: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Median of a product rule, mean and sd, of independent -attribute / price."""
    u = (np.arange(4000) + 0.5) / 4000
    p, a = 1.0 / price(u), attribute(u)
    mean = -a.mean() * p.mean()
    square = (a**2).mean() * (p**2).mean()
    grid = -np.multiply.outer(p[::4], a[::4]).ravel()
    return float(np.median(grid)), float(mean), math.sqrt(square - mean**2)


PRICE = {"a.loc": -0.4, "a.scale": 0.3}  # of -exp(N)
CORRELATED = {"a.loc": -0.4, "b.loc": 0.3, "chol.a.a": 0.5, "chol.b.a": 0.3, "chol.b.b": 0.4}
_spread = math.sqrt((0.3 - 0.5) ** 2 + 0.4**2)
_gamma_ratio = (-0.8 * 2.0 / 4.0, -0.8 * 2.0 / 3.0 / 1.0)
CASES: dict[str, tuple[dict[str, Any], dict[str, float], tuple[float, float, float], float]] = {
    "normal / fixed": (
        {"fixed": ["a"], "random": {"b": "normal"}},
        {"a": -0.5, "b.loc": 0.6, "b.scale": 0.3},
        of_scipy(scipy.stats.norm(1.2, 0.6)),
        1e-9,
    ),
    "-lognormal / fixed": (
        {"fixed": ["a"], "random": {"b": "-lognormal"}},
        {"a": 0.5, "b.loc": 0.6, "b.scale": 0.3},
        of_scipy(scipy.stats.lognorm(0.3, scale=math.exp(0.6) / 0.5)),
        1e-9,
    ),
    "fixed / -lognormal": (
        {"fixed": ["b"], "random": {"a": "-lognormal"}},
        {"b": 0.8, **PRICE},
        of_scipy(scipy.stats.lognorm(0.3, scale=0.8 * math.exp(0.4))),
        1e-9,
    ),
    "lognormal / -lognormal, correlated": (
        {"random": {"a": "-lognormal", "b": "lognormal"}, "correlated": True},
        CORRELATED,
        of_scipy(scipy.stats.lognorm(_spread, scale=math.exp(0.3 + 0.4))),
        1e-9,
    ),
    "fixed / -gamma": (
        {"fixed": ["b"], "random": {"a": "-gamma"}},
        {"b": 0.8, "a.concentration": 4.5, "a.rate": 6.0},
        of_scipy(scipy.stats.invgamma(4.5, scale=0.8 * 6.0)),
        1e-9,
    ),
    "normal / uniform away from 0": (
        {"random": {"a": "uniform", "b": "normal"}},
        {"a.loc": -1.0, "a.scale": 0.6, "b.loc": 0.5, "b.scale": 0.4},
        of_sample(lambda u: -1.0 + 0.6 * (2 * u - 1), scipy.stats.norm(0.5, 0.4).ppf),
        3e-4,  # midpoints of the tails of a normal
    ),
    "johnson_sb / -truncated_normal away from 0": (
        {"random": {"a": Random("truncated_normal", -1, bounds=(0.5, 2.0)), "b": "johnson_sb"}},
        {"a.loc": 1.0, "a.scale": 0.5, "b.loc": 0.5, "b.scale": 0.8},
        of_sample(
            lambda u: -scipy.stats.truncnorm(-1.0, 2.0, 1.0, 0.5).ppf(u),
            lambda u: 1 / (1 + np.exp(-0.5 - 0.8 * scipy.stats.norm.ppf(u))),
        ),
        1e-4,
    ),
    "censored_normal / fixed": (
        {"fixed": ["a"], "random": {"b": "censored_normal"}},
        {"a": -1.0, "b.loc": 0.3, "b.scale": 0.8},
        of_sample(lambda u: -np.ones_like(u), lambda u: np.maximum(0.0, 0.3 + 0.8 * scipy.stats.norm.ppf(u))),
        2e-4,  # a kink on 512 nodes
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_median_mean_and_sd_are_those_of_the_distribution(case: str) -> None:
    arguments, params, (median, mean, sd), tolerance = CASES[case]
    found = found_for(arguments, params)
    assert found.values["median"] == pytest.approx(median, abs=QUANTILE * sd)
    assert found.values["mean"] == pytest.approx(mean, rel=tolerance)
    assert found.values["sd"] == pytest.approx(sd, rel=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_standard_errors_are_those_of_numerical_derivatives(case: str) -> None:
    """Of the very statistics: 20 draws move a window's order statistics by less than 1e-3."""
    arguments, params, _, _ = CASES[case]
    model = MixedLogitModel(PANEL, **arguments)
    result = given(model, params)

    def statistics(at: Any) -> torch.Tensor:
        return numbers(willingness_to_pay(model, at, "b", "a", num_draws=2).values)

    slope = slopes(statistics, result)
    expected = ((slope @ result.cov) * slope).sum(1).sqrt()
    found = numbers(willingness_to_pay(model, result, "b", "a", num_draws=2).std_errors)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-8)


def test_the_median_of_a_ratio_of_lognormals_has_the_exact_error_and_interval() -> None:
    """log median = b.loc - a.loc + const: its variance is exact, its draws are normal.

    The error of the derivative of a window's mean: base variates of 82 draws average 0 to 3 % of a standard deviation.
    500 draws of the estimates, bands of 4.5 standard errors: one seed in 150,000 fails.
    """
    arguments = {"random": {"a": "-lognormal", "b": "lognormal"}, "correlated": True}
    found = found_for(arguments, CORRELATED, num_draws=500)
    sd = math.sqrt(0.01 + 0.01 - 2 * 0.003)
    median = math.exp(0.7)
    assert found.std_errors["median"] == pytest.approx(median * sd, rel=0.05)
    below = scipy.stats.norm.cdf(np.log(np.array(found.krinsky_robb["median"]) / median) / sd)
    assert below == pytest.approx([0.025, 0.975], abs=4.5 * math.sqrt(0.025 * 0.975 / 500) + 0.005)


# ------------------------------------------------------------------ moments that do not exist


@pytest.mark.parametrize(
    ("price", "params", "gone"),
    [
        ("normal", {"a.loc": -3.0, "a.scale": 0.1}, ["mean", "sd"]),
        ("uniform", {"a.loc": -0.5, "a.scale": 0.6}, ["mean", "sd"]),
        ("uniform", {"a.loc": -0.5, "a.scale": 0.4}, []),
        ("-truncated_normal", {"a.loc": 1.0, "a.scale": 0.4}, ["mean", "sd"]),
        ("-johnson_sb", {"a.loc": 1.0, "a.scale": 0.4}, []),
        ("-gamma", {"a.concentration": 0.9, "a.rate": 1.0}, ["mean", "sd"]),
        ("-gamma", {"a.concentration": 1.9, "a.rate": 1.0}, ["sd"]),
        ("-gamma", {"a.concentration": 2.1, "a.rate": 1.0}, []),
        ("normal", {"a.loc": -3.0, "a.scale": 0.0}, []),
    ],
    ids=[
        "normal",
        "uniform-over-0",
        "uniform",
        "truncated",
        "johnson",
        "gamma-0.9",
        "gamma-1.9",
        "gamma-2.1",
        "spread-0",
    ],
)
def test_moments_that_do_not_exist_are_named(price: str, params: dict[str, float], gone: list[str]) -> None:
    model = MixedLogitModel(PANEL, ["b"], {"a": price})
    result = given(model, {"b": 0.8, **params}, 1e-6 * torch.eye(3, dtype=torch.float64))
    found = willingness_to_pay(model, result, "b", "a", num_draws=20)
    assert [name for name, value in found.values.items() if math.isnan(value)] == gone
    assert [name for name, value in found.std_errors.items() if math.isnan(value)] == gone
    assert [name for name, ends in found.krinsky_robb.items() if math.isnan(ends[0])] == gone
    assert [note.split()[1] for note in found.notes] == gone
    assert all(f"the coefficient of 'a' is {price}" in note for note in found.notes)


def test_draws_of_the_estimates_without_a_moment_leave_the_interval_open() -> None:
    """A uniform price that covers 0 in a sixth of the draws: E[1 / b] exists at the estimates and not there."""
    params = {"b": 0.8, "a.loc": -0.5, "a.scale": 0.4}
    found = found_for({"fixed": ["b"], "random": {"a": "uniform"}}, params, num_draws=200)
    assert found.krinsky_robb["mean"] == (-math.inf, math.inf)
    assert math.isfinite(found.std_errors["mean"])
    assert all(map(math.isfinite, found.krinsky_robb["median"]))


def test_bounds_that_means_cross_with_covariates_count() -> None:
    model = MixedLogitModel(PANEL, ["b"], {"a": Random("uniform", mean_covariates="age")})
    result = given(
        model, {"b": 0.8, "a.loc": -1.0, "a.loc:age": 0.5, "a.scale": 0.6}, 1e-6 * torch.eye(4, dtype=torch.float64)
    )
    at = {age: willingness_to_pay(model, result, "b", "a", covariates={"age": age}, num_draws=2) for age in (0.0, 1.0)}
    assert not math.isnan(at[0.0].values["mean"])
    assert math.isnan(at[1.0].values["mean"])


# ------------------------------------------------------------------ WTP space, scale heterogeneity, covariates

IN_WTP_SPACE = next(case for case in brute.CASES if case.name == "WTP space, random price")
EVERYTHING = next(case for case in brute.CASES if case.name == "everything at once")


def test_in_wtp_space_it_is_the_coefficient() -> None:
    model = IN_WTP_SPACE.of(PANEL)
    result = given(model, IN_WTP_SPACE.params)
    fixed = willingness_to_pay(model, result, "b", num_draws=20)
    assert fixed.values == pytest.approx({"ratio": 0.8}, rel=1e-14)
    assert fixed.std_errors == pytest.approx({"ratio": 0.1}, rel=1e-12)
    varying = willingness_to_pay(model, result, "c", num_draws=20)
    assert varying.values == pytest.approx({"median": 0.5, "mean": 0.5, "sd": 0.7}, abs=QUANTILE * 0.7)
    assert varying.price == "a"


def test_in_wtp_space_in_units_of_another_attribute() -> None:
    """-w_c / w_b, and 1 / w_b for the price itself."""
    model = IN_WTP_SPACE.of(PANEL)
    result = given(model, IN_WTP_SPACE.params)
    found = willingness_to_pay(model, result, "c", "b", num_draws=20)
    assert found.values["mean"] == pytest.approx(-0.5 / 0.8, rel=1e-12)
    assert found.values["sd"] == pytest.approx(0.7 / 0.8, rel=1e-9)
    assert willingness_to_pay(model, result, "a", "b", num_draws=20).values == pytest.approx({"ratio": 1 / 0.8})


def test_a_factor_of_all_coefficients_cancels_and_means_are_at_covariates() -> None:
    model = EVERYTHING.of(PANEL)
    result = given(model, EVERYTHING.params)
    found = willingness_to_pay(model, result, "c", covariates={"age": 2.0}, num_draws=20)
    sd = math.hypot(0.2, 0.5)
    assert found.values["mean"] == pytest.approx(0.5 - 0.3 * 2.0, rel=1e-9)
    assert found.values["sd"] == pytest.approx(sd, rel=1e-9)
    weights = PANEL.weights / PANEL.weights.sum()
    age = float(weights @ PANEL.covariate("age"))
    usual = willingness_to_pay(model, result, "c", num_draws=20)
    assert usual.values["mean"] == pytest.approx(0.5 - 0.3 * age, rel=1e-9)


# ------------------------------------------------------------------ boundary, missing errors, tables, refusals


def test_a_spread_held_at_0_has_an_sd_of_0_without_error() -> None:
    cov = torch.diag(torch.tensor([0.01, 0.01, 0.0], dtype=torch.float64))
    params = {"a": -0.5, "b.loc": 0.6, "b.scale": 0.0}
    found = found_for({"fixed": ["a"], "random": {"b": "normal"}}, params, cov)
    assert found.values == pytest.approx({"median": 1.2, "mean": 1.2, "sd": 0.0}, abs=1e-12)
    assert found.std_errors["sd"] == pytest.approx(0.0, abs=1e-12)
    assert found.krinsky_robb["sd"] == pytest.approx((0.0, 0.0), abs=1e-12)


def test_without_standard_errors_there_are_no_intervals() -> None:
    cov = torch.full((2, 2), math.nan, dtype=torch.float64)
    found = found_for({"fixed": ["a", "b"]}, {"a": -0.5, "b": 0.6}, cov)
    assert found.values == pytest.approx({"ratio": 1.2})
    assert np.isnan([*found.delta["ratio"], *found.krinsky_robb["ratio"], found.std_errors["ratio"]]).all()
    assert "1.2" in found.summary


def test_table_and_seed() -> None:
    found = found_for({"fixed": ["a"], "random": {"b": "normal"}}, {"a": -0.5, "b.loc": 0.6, "b.scale": 0.3}, seed=3)
    frame = found.to_frame()
    assert frame.loc["sd", "krinsky_robb_upper"] == found.krinsky_robb["sd"][1]
    assert frame.loc["mean", "delta_lower"] == found.delta["mean"][0]
    assert repr(found) == found.summary
    assert "Willingness to pay for 'b', in units of 'a'" in found.summary
    again = found_for({"fixed": ["a"], "random": {"b": "normal"}}, {"a": -0.5, "b.loc": 0.6, "b.scale": 0.3}, seed=4)
    assert again.krinsky_robb["mean"] != found.krinsky_robb["mean"]
    assert again.delta == found.delta


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no price": ({"price": None}, "price"),
    "unknown price": ({"price": "cost"}, "'cost'"),
    "unknown attribute": ({"attribute": "comfort"}, "'comfort'"),
    "price of itself": ({"attribute": "b"}, "beside the price"),
    "unknown covariate": ({"covariates": {"age": 1.0}}, "covariates"),
    "level": ({"level": 1.0}, "level"),
    "level in percent": ({"level": 95.0}, "level"),
    "too few draws": ({"num_draws": 1}, "num_draws"),
}


@pytest.mark.parametrize("misuse", REFUSED)
def test_misuse_is_refused_by_name(misuse: str) -> None:
    changed, message = REFUSED[misuse]
    options = {"attribute": "a", "price": "b"} | changed
    with pytest.raises(InvalidInputError, match=message):
        willingness_to_pay(LOGIT_MODEL, LOGIT, **options)


@pytest.mark.parametrize("price", ["-censored_normal", "fixed"])
def test_a_price_that_may_be_exactly_0_is_refused(price: str) -> None:
    fixed = ["a", "b"] if price == "fixed" else ["b"]
    model = MixedLogitModel(PANEL, fixed, {} if price == "fixed" else {"a": price})
    params = {"a": 0.0, "b": 1.0} if price == "fixed" else {"b": 1.0, "a.loc": 1.0, "a.scale": 0.5}
    with pytest.raises(InvalidInputError, match="0 with positive probability"):
        willingness_to_pay(model, given(model, params), "b", "a")
