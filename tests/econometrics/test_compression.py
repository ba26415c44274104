from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch

from mixlogit_align import FixedDraws, MixedLogit, MonteCarlo
from mixlogit_align.distributions import Triangular
from mixlogit_align.econometrics import ChoiceData, Random, simulate_choices
from mixlogit_align.econometrics.compression import STEP, Compression, compress
from mixlogit_align.econometrics.strength import StrengthModel

COV_TYPES = ("hessian", "bhhh", "robust")


def f64(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def normal(count: int, spread: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(count, generator=generator, dtype=torch.float64)


def frequencies(count: int) -> torch.Tensor:
    return 1.0 + torch.arange(count, dtype=torch.float64) % 3


def must(differences: torch.Tensor, weights: torch.Tensor) -> Compression:
    result = compress(differences, weights)
    assert result is not None
    return result


def loglik(differences: torch.Tensor, mixing: Any) -> torch.Tensor:
    chosen = torch.ones((), dtype=torch.float64)
    parts = [MixedLogit(part, mixing, validate_args=False).log_prob(chosen) for part in differences.split(2000)]
    return torch.cat(parts)


def gamma(mean: float, cv: float) -> dist.Gamma:
    return dist.Gamma(*f64(cv**-2, cv**-2 / mean))


MIXING = {
    **{f"point {b}": dist.Delta(torch.tensor(b, dtype=torch.float64)) for b in (0.0, 0.1, 1.0, 100.0)},
    "point -2": dist.Delta(torch.tensor(-2.0, dtype=torch.float64)),
    **{f"normal {p}": dist.Normal(*f64(*p)) for p in ((0.0, 1.0), (1.0, 0.05), (0.2, 3.0), (3.0, 1.0))},
    **{f"lognormal {p}": dist.LogNormal(*f64(*p)) for p in ((0.0, 0.05), (1.0, 1.0), (-3.0, 0.5), (0.0, 4.0))},
    **{f"gamma {p}": gamma(*p) for p in ((1.0, 0.05), (1.0, 1.0), (10.0, 3.0))},
    **{f"uniform {p}": dist.Uniform(*f64(*p)) for p in ((0.95, 1.05), (-2.0, 4.0), (0.0, 20.0))},
    **{f"triangular {p}": Triangular(*f64(*p)) for p in ((0.95, 1.05), (-2.0, 4.0), (0.0, 20.0))},
}


@pytest.mark.parametrize("name", MIXING)
def test_keeps_the_total_loglik_whatever_the_mixing(name: str) -> None:
    """As far as rounding of the rules allows, 4e-13 of each comparison: 1e-8, or 1e-12 of the total."""
    differences, weights = normal(4000, 1.5), frequencies(4000)
    differences[::1000] = 0.0
    short = must(differences, weights)
    exact = (weights * loglik(differences, MIXING[name])).sum()
    ours = (short.weights * loglik(short.differences, MIXING[name])).sum()
    assert len(short.weights) < 1000
    assert float(ours) == pytest.approx(float(exact), rel=1e-12, abs=1e-8)


@pytest.mark.parametrize(
    "mixing",
    [
        pytest.param(dist.LogNormal(*f64(0.0, 0.05)), id="lognormal, narrow"),
        pytest.param(dist.LogNormal(*f64(0.3, 0.7)), id="lognormal"),
        pytest.param(gamma(2.0, 0.7), id="gamma"),
        pytest.param(dist.Delta(*f64(2.0)), id="point"),
    ],
)
def test_the_stated_error_at_1e5_comparisons(mixing: Any) -> None:
    differences, weights = normal(100_000, 1.5), torch.ones(100_000, dtype=torch.float64)
    short = must(differences, weights)
    error = (short.weights * loglik(short.differences, mixing)).sum() - loglik(differences, mixing).sum()
    assert abs(float(error)) < 1e-7


@pytest.mark.parametrize("spread", [1e-200, 1e-6, 1.0, 1e6, 1e200])
def test_any_units(spread: float) -> None:
    differences, weights = normal(4000, spread), frequencies(4000)
    mixing = dist.Delta(*f64(1.0 / spread))
    short = must(differences, weights)
    exact = (weights * loglik(differences, mixing)).sum()
    ours = (short.weights * loglik(short.differences, mixing)).sum()
    assert float(ours) == pytest.approx(float(exact), rel=1e-12)


def values_and_scores(differences: torch.Tensor) -> torch.Tensor:
    """log sigma(d) and its derivative in the strength at 1."""
    return torch.stack([torch.nn.functional.logsigmoid(differences), differences * torch.sigmoid(-differences)], 1)


@pytest.mark.parametrize(
    "differences",
    [
        pytest.param(normal(4000, 1.5), id="distinct"),
        pytest.param(normal(4000, 1.5) * (torch.arange(4000) % 7 > 0), id="some 0"),
        pytest.param(normal(4000, 1.5).abs(), id="one sign"),
        pytest.param(torch.arange(4000).double() % 5 - 2.0, id="five values"),
        pytest.param(torch.zeros(50, dtype=torch.float64), id="all 0"),
    ],
)
def test_expands_to_the_values_of_each_comparison(differences: torch.Tensor) -> None:
    """Within the bound 4e-11 M of the docstring, where scores have M = 6."""
    short = must(differences, frequencies(len(differences)))
    expanded = short.expand(values_and_scores(short.differences))
    torch.testing.assert_close(expanded, values_and_scores(differences), rtol=0.0, atol=2e-10)
    assert float(short.weights.sum()) == pytest.approx(float(frequencies(len(differences)).sum()), rel=1e-13)


def test_the_error_falls_with_the_fourteenth_power_of_the_step() -> None:
    """Ten times from a step to 3/4 of it at the least; (3/4)^14 is 1/56."""
    differences, weights = normal(20_000, 1.5), torch.ones(20_000, dtype=torch.float64)
    errors = []
    for step in (4 * STEP, 3 * STEP, 2.25 * STEP):
        short = compress(differences, weights, step)
        assert short is not None
        error = short.expand(values_and_scores(short.differences)) - values_and_scores(differences)
        errors.append(float(error.abs().max()))
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


@pytest.mark.parametrize("values", [[0.0], [1.0], [-2.0, 0.0, 0.5]])
def test_equal_differences_are_joined(values: list[float]) -> None:
    differences = torch.tensor(values, dtype=torch.float64).repeat(100)
    short = must(differences, frequencies(len(differences)))
    assert sorted(short.differences.tolist()) == sorted(values)
    expected = [float(frequencies(len(differences))[differences == value].sum()) for value in short.differences]
    assert short.weights.tolist() == expected


@pytest.mark.parametrize("count", [1, 3, 300])
def test_few_comparisons_stay_as_they_are(count: int) -> None:
    assert compress(normal(count, 1.0), frequencies(count)) is None


def cross_section(spread: float, count: int = 4000, alternatives: int = 2) -> ChoiceData:
    mixing = dist.LogNormal(*f64(0.3, spread)) if spread else dist.Delta(*f64(1.0))
    return simulate_choices(mixing, num_individuals=count, num_alternatives=alternatives, seed=3).data


def model_of(data: ChoiceData, family: str = "lognormal") -> StrengthModel:
    return StrengthModel(data, "x", Random(family))


def fit(data: ChoiceData, *, by_row: bool = False, family: str = "lognormal", **options: Any) -> Any:
    model = model_of(data, family)
    if by_row:
        model.__dict__["_compressed"] = None
    return model.fit(**options)


@pytest.mark.parametrize(
    ("family", "spread", "cov_type", "count"),
    [
        *((family, 0.7, cov_type, 4000) for family in ("lognormal", "gamma") for cov_type in COV_TYPES),
        *(("lognormal", 0.0, cov_type, 4000) for cov_type in COV_TYPES),
        ("gamma", 0.0, "robust", 4000),
        ("normal", 0.0, "hessian", 1200),
    ],
)
def test_the_fit_is_that_by_row(family: str, spread: float, cov_type: str, count: int) -> None:
    data = cross_section(spread, count)
    assert model_of(data, family)._compressed is not None
    ours, theirs = (fit(data, by_row=by_row, family=family, cov_type=cov_type) for by_row in (False, True))
    assert ours.at_boundary == theirs.at_boundary
    assert ours.converged
    assert theirs.converged
    assert ours.loglik == pytest.approx(theirs.loglik, abs=1e-8)
    assert ours.fixed.loglik == pytest.approx(theirs.fixed.loglik, abs=1e-8)
    assert ours.params == pytest.approx(theirs.params, rel=1e-7)
    # at the boundary the spread is where the log-likelihood has fallen by 1/2, searched to 1e-3
    assert ours.std_errors == pytest.approx(theirs.std_errors, rel=2e-3 if ours.at_boundary else 1e-7)
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-7, atol=1e-7, equal_nan=True)


def test_the_report_says_what_the_grid_costs() -> None:
    data = cross_section(0.7)
    model = model_of(data)
    result = model.fit()
    exact = float((data.weights * model.loglik(result.mixing)).sum())
    assert result.integration.error == pytest.approx(exact - result.loglik, abs=1e-9)
    assert result.integration.reference.endswith("on a grid twice as fine")
    assert not fit(data, by_row=True).integration.reference.endswith("grid twice as fine")


@pytest.mark.parametrize(
    "rule", [MonteCarlo(32), FixedDraws(normal(64, 1.0)), FixedDraws(normal(4000 * 64, 1.0).reshape(4000, 64))]
)
def test_draws_are_the_users_and_stay_by_row(rule: Any) -> None:
    data = cross_section(0.7)
    result = fit(data, integration=rule)
    by_row = model_of(data).loglik(result.mixing, rule)
    assert result.loglik == pytest.approx(float((data.weights * by_row).sum()), rel=1e-13)


@pytest.mark.parametrize("kind", ["panel", "several alternatives"])
def test_only_single_pairs_are_compressed(kind: str) -> None:
    if kind == "panel":
        mixing = dist.LogNormal(*f64(0.3, 0.7))
        data = simulate_choices(mixing, num_individuals=500, num_situations=10, seed=1).data
    else:
        data = cross_section(0.7, alternatives=3)
    assert model_of(data, "normal")._compressed is None


def test_a_difference_of_0_is_a_coin() -> None:
    differences = torch.cat([normal(4000, 1.0), torch.zeros(1000, dtype=torch.float64)])
    weights = torch.cat([torch.zeros(4000, dtype=torch.float64), torch.ones(1000, dtype=torch.float64)])
    short = must(differences, weights)
    total = (short.weights * loglik(short.differences, dist.LogNormal(*f64(0.0, 1.0)))).sum()
    assert float(total) == pytest.approx(-1000 * math.log(2.0), rel=1e-15)
