from __future__ import annotations

from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from mixlogit_align import PanelMixedLogit, Quadrature
from mixlogit_align.econometrics import MixedLogitModel, MixedLogitResult, individual_posteriors, simulate_choices
from mixlogit_align.errors import InvalidInputError
from tests.econometrics.given import MIXED, MIXED_MODEL, MIXED_PARAMS, PANEL, given, grid, posterior, softmax


def _by_grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Posterior means and sds (N, 2) of b and c, and the probability that b is positive (N,)."""
    beta, weight = grid()
    weights = posterior(PANEL, weight, softmax(PANEL, beta))
    values = np.stack([beta["b"].ravel(), beta["c"].ravel()], 1)
    mean = weights @ values
    return mean, np.sqrt(weights @ values**2 - mean**2), weights @ (values[:, 0] > 0)


def test_posteriors_against_a_grid() -> None:
    mean, sd, positive = _by_grid()
    found = individual_posteriors(MIXED_MODEL, MIXED, integration=Quadrature(96))
    np.testing.assert_allclose(found.mean[:, 1:], mean, atol=1e-8)
    np.testing.assert_allclose(found.sd[:, 1:], sd, atol=1e-7)
    # a step of the integrand, on nodes that are 0.17 apart: half of that times a density of 0.4 or so
    np.testing.assert_allclose(found.positive[:, 1], positive, atol=0.05)
    assert found.mean[:, 0].tolist() == [0.4] * 9
    assert found.sd[:, 0].tolist() == [0.0] * 9
    assert bool((found.positive[:, 2] == 0.0).all())


def test_tables_carry_the_labels_of_the_data() -> None:
    found = individual_posteriors(MIXED_MODEL, MIXED, integration=Quadrature(16))
    frame = found.to_frame()
    assert list(frame.index) == list(PANEL.individuals)
    assert frame.loc["p03", "b.mean"] == float(found.mean[3, 1])
    assert frame.loc["p03", "c.sd"] == float(found.sd[3, 2])
    assert repr(found) == found.summary
    assert "Quadrature(num_nodes=16)" in found.summary


def test_posteriors_by_importance_sampling_are_near_a_grid() -> None:
    """512 Sobol draws of a fixed seed: deterministic, errors near 1e-3."""
    mean, _, _ = _by_grid()
    found = individual_posteriors(MIXED_MODEL, given(MIXED_MODEL, MIXED_PARAMS, rule="ImportanceSampling(512)"))
    np.testing.assert_allclose(found.mean[:, 1:], mean, atol=0.01)
    assert float(found.effective.min()) > 100.0


@pytest.mark.parametrize("family", ["lognormal", "gamma", "normal"])
def test_scalar_strength_has_the_posterior_of_the_distribution(family: str, tmp_path: Path) -> None:
    sim = simulate_choices(dist.LogNormal(0.0, 0.6), num_individuals=150, num_situations=6, seed=3)
    model = MixedLogitModel(sim.data, random={"x": family})
    result = model.fit(num_redraws=0)
    difference, second = model.data.pairs("x")
    panel = PanelMixedLogit(difference.reshape(150, 6), result.mixing)
    mean, sd = panel.strength_posterior(second.reshape(150, 6))
    result.save(tmp_path / "result")
    found = individual_posteriors(model, MixedLogitResult.load(tmp_path / "result"))
    torch.testing.assert_close(found.mean[:, 0], mean, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.sd[:, 0], sd, rtol=1e-5, atol=1e-8)


def test_posteriors_of_true_parameters_are_calibrated() -> None:
    """z = (truth - mean) / sd over 1,000 individuals and two coefficients, at the parameters of the simulation.

    E z = 0 and E z^2 = 1 exactly, however skewed: bands of 4.5 standard errors, estimated from the sample, fail in
    7 of 10^6 seeds each.
    """
    arguments = {"fixed": ["a"], "random": {"b": "normal", "c": "-lognormal"}}
    sim = simulate_choices(
        MIXED_PARAMS, **arguments, num_individuals=1000, num_situations=6, num_alternatives=3, seed=0
    )
    model = MixedLogitModel(sim.data, **arguments)
    found = individual_posteriors(model, given(model, MIXED_PARAMS), integration=Quadrature(32))
    truth = torch.stack([sim.coefficients[name] for name in "bc"], 1)
    z = (truth - found.mean[:, 1:]) / found.sd[:, 1:]
    assert bool((z.mean(0).abs() < 4.5 * z.std(0) / 1000**0.5).all())
    square = z.square()
    assert bool(((square.mean(0) - 1.0).abs() < 4.5 * square.std(0) / 1000**0.5).all())
    # posterior means are shrunk: their variance plus the mean posterior variance is the population's
    moments = torch.tensor([0.8**2, np.exp(0.5**2 - 0.8) * np.expm1(0.5**2)], dtype=torch.float64)
    total = found.mean[:, 1:].var(0) + found.sd[:, 1:].square().mean(0)
    torch.testing.assert_close(total, moments, rtol=0.25, atol=0.0)  # 5 standard errors of a variance of 1,000 or so


def test_willingness_to_pay_of_individuals_against_a_grid() -> None:
    """-b / c and -a / c, c minus lognormal."""
    beta, weight = grid()
    weights = posterior(PANEL, weight, softmax(PANEL, beta))
    values = np.stack([-beta[name].ravel() / beta["c"].ravel() for name in "ab"], 1)
    mean = weights @ values
    found = individual_posteriors(MIXED_MODEL, MIXED, "c", integration=Quadrature(96))
    assert found.variables == ("a", "b")
    np.testing.assert_allclose(found.mean, mean, atol=1e-7)
    np.testing.assert_allclose(found.sd, np.sqrt(weights @ values**2 - mean**2), atol=1e-6)
    assert "Willingness to pay in units of 'c' given choices" in found.summary


def test_willingness_to_pay_in_wtp_space_and_preference_space_is_the_same() -> None:
    """With a fixed price: b = -price w. Nodes are the same, and so are posteriors."""
    space = MixedLogitModel(PANEL, ["a"], {"b": "normal"}, wtp_space="a")
    plain = MixedLogitModel(PANEL, ["a"], {"b": "normal"})
    rule = Quadrature(48)
    in_space = given(space, {"a": -0.5, "b.loc": 0.6, "b.scale": 1.4})
    expected = given(plain, {"a": -0.5, "b.loc": 0.3, "b.scale": 0.7})
    found = individual_posteriors(space, in_space, "a", integration=rule)
    others = individual_posteriors(plain, expected, "a", integration=rule)
    torch.testing.assert_close(found.mean, others.mean, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.sd, others.sd, rtol=1e-6, atol=1e-8)
    assert found.price == "a"


@pytest.mark.parametrize("price", ["b", "nothing"])
def test_a_price_without_inverse_moments_is_refused(price: str) -> None:
    with pytest.raises(InvalidInputError, match="price"):
        individual_posteriors(MIXED_MODEL, MIXED, price)


def test_draws_that_are_not_given_again_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="FixedDraws"):
        individual_posteriors(MIXED_MODEL, given(MIXED_MODEL, MIXED_PARAMS, rule="FixedDraws(shape=(3, 2))"))
