from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from mixlogit_align import MonteCarlo, Quadrature
from mixlogit_align.distributions import FixedDraws
from mixlogit_align.econometrics import MixedLogitModel, simulate_choices
from mixlogit_align.econometrics.population import Coefficients, Strengths
from mixlogit_align.errors import IntegrationWarning
from tests.econometrics.brute import CASES, Case, choices, loglik, read

NUM_DRAWS = 16


def population(case: Case) -> tuple[Coefficients, dict[str, Tensor], Tensor]:
    """On given draws, at the parameters of the case."""
    model = case.of(read(choices("panel", people=5)))
    draws = case.base(5, NUM_DRAWS) if case.bases else torch.zeros(5, 1, 0)
    rule = FixedDraws(draws) if case.bases else None
    made = Coefficients(model, rule)
    params = {name: torch.tensor(value, dtype=torch.float64) for name, value in case.params.items()}
    made.place(params)
    return made, params, draws


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_likelihood_is_that_of_a_loop_over_rows(case: Case) -> None:
    made, params, draws = population(case)
    weight = torch.full((1, draws.shape[1]), 1.0 / draws.shape[1], dtype=torch.float64).log()
    expected = loglik(choices("panel", people=5), case, params, draws, weight)
    torch.testing.assert_close(made.loglik(params), expected, rtol=1e-10, atol=1e-10)  # sums of a few terms
    torch.testing.assert_close(made.total(params), made.panel.weights @ expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_derivatives_of_the_likelihood(case: Case) -> None:
    made, params, _ = population(case)
    at = torch.stack(list(params.values())).requires_grad_(True)

    def value(natural: Tensor) -> Tensor:
        return made.loglik(dict(zip(params, natural.unbind(), strict=True)))

    assert torch.autograd.gradcheck(value, at)
    # where a coefficient breaks, the Hessian is that of an average over draws
    assert "censored" in case.name or torch.autograd.gradgradcheck(value, at)


def test_cholesky_factors_are_scales_times_correlations() -> None:
    (case,) = [case for case in CASES if case.name == "one block of all"]
    made, _, _ = population(case)
    factor = dist.LKJCholesky(3, torch.tensor(1.0, dtype=torch.float64)).sample(torch.Size([4, 2]))
    sites = {"correlation": factor}
    for name in ("b", "c", "d"):
        sites |= {f"{name}.loc": torch.randn(4, 2), f"{name}.scale": torch.rand(4, 2, dtype=torch.float64) + 0.1}
    found = made.parameters({"a": torch.randn(4, 2), **sites})
    rows = [[found.get(f"chol.{row}.{col}", torch.zeros(4, 2)) for col in "bcd"] for row in "bcd"]
    lower = torch.stack([torch.stack(row, -1) for row in rows], -2)
    covariance = lower @ lower.mT
    scales = torch.stack([sites[f"{name}.scale"] for name in "bcd"], -1)
    expected = scales[..., None] * (factor @ factor.mT) * scales[..., None, :]
    torch.testing.assert_close(covariance, expected, rtol=1e-12, atol=1e-12)
    assert made.theta(found).shape == (4, 2, len(case.params))


def test_default_nodes_follow_the_parameters() -> None:
    truth = {"x.loc": 0.5, "x.scale": 0.8, "y.loc": -0.3, "y.scale": 0.5}
    sim = simulate_choices(truth, random={"x": "normal", "y": "normal"}, num_individuals=30, num_situations=6, seed=1)
    model = MixedLogitModel(sim.data, random={"x": "normal", "y": "normal"})
    made = Coefficients(model, None)
    params = {name: torch.tensor(value, dtype=torch.float64) for name, value in truth.items()}
    assert made.place(None)
    assert made.place(params)
    assert made.rule.startswith("ImportanceSampling(num_draws=128")
    exact = model.loglik(truth, Quadrature(64)).sum()
    # 128 draws an individual: errors near 0.01 for each of 30
    assert float(made.total(params)) == pytest.approx(float(exact), abs=0.2)
    anew = made.total_anew(params)
    assert anew is not None
    assert float(anew) == pytest.approx(float(exact), abs=0.2)
    assert float(anew) != float(made.total(params))


def test_strengths_of_many_pairs_are_as_likely_in_short() -> None:
    sim = simulate_choices(dist.LogNormal(0.0, 0.5), num_individuals=3000, seed=2)
    made = Strengths(sim.data, "x", dist.LogNormal, ("x.loc", "x.scale"), 1, None)
    params = {"x.loc": torch.tensor(0.1, dtype=torch.float64), "x.scale": torch.tensor(0.4, dtype=torch.float64)}
    # the error of the short form, 1e-9 of a log-likelihood of 2,000
    assert float(made.total(params)) == pytest.approx(float(made.loglik(params).sum()), abs=1e-5)


def test_strengths_without_an_exact_rule_are_told_once() -> None:
    sim = simulate_choices(dist.LogNormal(0.0, 0.5), num_individuals=10, num_situations=2, seed=2)
    names = "x.scale", "x.alpha"
    made = Strengths(sim.data, "x", dist.Pareto, names, 1, None)
    params = {"x.scale": torch.tensor(0.1, dtype=torch.float64), "x.alpha": torch.tensor(2.0, dtype=torch.float64)}
    with pytest.warns(IntegrationWarning, match="no exact rule"):
        made.place(params)
    assert made.rule == repr(MonteCarlo(1024))
    total, anew = made.total(params), made.total_anew(params)
    assert anew is not None
    assert float(anew) == pytest.approx(float(total), abs=0.5)  # 1,024 draws for each of 10
    assert float(anew) != float(total)
    more = Strengths(sim.data, "x", dist.Pareto, names, 1, MonteCarlo(4096))
    more.place(params)  # asked for, and not told
    assert float(more.total(params)) == pytest.approx(float(total), abs=0.5)
