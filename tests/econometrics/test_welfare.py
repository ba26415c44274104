from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from mixlogit_align import FixedDraws, Quadrature
from mixlogit_align.econometrics import (
    MixedLogitModel,
    MixedLogitResult,
    Random,
    consumer_surplus,
    predict,
    scenario,
    simulate_choices,
)
from mixlogit_align.errors import IntegrationWarning, InvalidInputError
from tests.econometrics import brute
from tests.econometrics.given import (
    LOGIT,
    LOGIT_MODEL,
    MIXED,
    MIXED_MODEL,
    PANEL,
    given,
    grid,
    numbers,
    posterior,
    slopes,
    softmax,
)

WEIGHTS = (PANEL.weights[PANEL.individual] / PANEL.weights[PANEL.individual].sum()).numpy()
DEARER = scenario(PANEL, {"b": {"x": lambda b: b + 1.0}})
BETTER = scenario(PANEL, {"a": {"w": lambda a: a + 0.5}})


def logsum(data: Any, coefficients: dict[str, Any]) -> np.ndarray:
    utility = sum(value * data.attribute(name).numpy() for name, value in coefficients.items())
    return np.log(np.where(data.available.numpy(), np.exp(utility), 0.0).sum(-1))


def test_conditional_logit_by_hand() -> None:
    """log sum exp / 0.7, and delta-method errors from d logsum / d b_v = mean of x_v."""
    found = consumer_surplus(LOGIT_MODEL, LOGIT, "b", after=DEARER)
    levels = {"before": PANEL, "after": DEARER}
    expected = {name: logsum(data, LOGIT.params) / 0.7 for name, data in levels.items()}
    expected["change"] = expected["after"] - expected["before"]
    np.testing.assert_allclose(np.stack([found.each[name] for name in expected]), list(expected.values()), atol=1e-13)
    assert found.means == pytest.approx({name: WEIGHTS @ values for name, values in expected.items()}, rel=1e-12)

    def slope(name: str) -> np.ndarray:
        data = levels[name]
        x = np.stack([data.attribute(v).numpy() for v in "ab"], -1)
        mean = (softmax(data, LOGIT.params)[..., None] * x).sum(1) / 0.7
        mean[:, 1] += expected[name] / 0.7
        return WEIGHTS @ mean

    gradients = {name: slope(name) for name in levels}
    gradients["change"] = gradients["after"] - gradients["before"]
    errors = {name: math.sqrt(g @ LOGIT.cov.numpy() @ g) for name, g in gradients.items()}
    assert found.std_errors == pytest.approx(errors, rel=1e-10)


@pytest.mark.parametrize("conditional", [False, True], ids=["population", "conditional"])
def test_random_price_against_a_grid(conditional: bool) -> None:
    """E[logsum / -b_price] of a lognormal price, over the population or given choices."""
    beta, weight = grid()
    values = {name: logsum(data, beta) / -beta["c"][..., 0] for name, data in (("before", PANEL), ("after", BETTER))}
    values["change"] = values["after"] - values["before"]
    own = np.broadcast_to(weight, (9, len(weight)))
    if conditional:
        own = posterior(PANEL, weight, softmax(PANEL, beta))
    expected = {name: np.einsum("sk,ks->s", own[PANEL.individual.numpy()], each) for name, each in values.items()}
    options = {"conditional": conditional, "integration": Quadrature(96)}
    found = consumer_surplus(MIXED_MODEL, MIXED, "c", after=BETTER, **options)
    np.testing.assert_allclose(
        np.stack([found.each[name] for name in expected]), list(expected.values()), rtol=1e-7, atol=1e-7
    )
    assert bool((found.each["change"] >= 0.0).all())


@pytest.mark.parametrize("k", range(4))
@pytest.mark.parametrize("conditional", [False, True], ids=["population", "conditional"])
def test_a_dearer_alternative_costs_its_probability(conditional: bool, k: int) -> None:
    """Roy's identity, for a random price too: d E[logsum / -b] / d price_k = -E[P_k]; central differences of 1e-4."""
    options = {"conditional": conditional, "integration": Quadrature(20)}
    h, label = 1e-4, PANEL.alternatives[k]
    up, down = (scenario(PANEL, {"c": {label: lambda c, step=step: c + step}}) for step in (h, -h))
    change = consumer_surplus(MIXED_MODEL, MIXED, "c", down, after=up, **options).each["change"] / (2 * h)
    probability = predict(MIXED_MODEL, MIXED, **options).probabilities[:, k]
    torch.testing.assert_close(change, -probability, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("conditional", [False, True], ids=["population", "conditional"])
def test_standard_errors_are_those_of_numerical_derivatives(conditional: bool) -> None:
    draws = torch.randn(1, 40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"conditional": conditional, "integration": FixedDraws(draws), "after": BETTER}

    def means(result: MixedLogitResult) -> torch.Tensor:
        return numbers(consumer_surplus(MIXED_MODEL, result, "c", **options).means)

    slope = slopes(means, MIXED)
    expected = ((slope @ MIXED.cov) * slope).sum(1).sqrt()
    found = numbers(consumer_surplus(MIXED_MODEL, MIXED, "c", **options).std_errors)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10)


def test_units_are_those_of_the_price_in_wtp_space() -> None:
    """The same model in WTP space and in preference space has the same surplus."""
    space = MixedLogitModel(PANEL, ["a", "b"], wtp_space="b")
    result = given(space, {"a": 0.4 / 0.7, "b": -0.7}, rule="exact")
    expected = consumer_surplus(LOGIT_MODEL, LOGIT, "b", after=DEARER)
    found = consumer_surplus(space, result, after=DEARER)
    assert found.price == "b"
    torch.testing.assert_close(found.each["change"], expected.each["change"], rtol=1e-12, atol=1e-14)


def test_an_alternative_more_is_worth_minus_the_log_of_the_others_share() -> None:
    """Logit: logsum rises by -log(1 - P of the new one) / 0.7."""
    three = PANEL.available.sum(1) == 3
    gone = _not_chosen(PANEL)
    fewer = PANEL.available.clone()
    fewer[three] &= torch.arange(4) != gone[three][:, None]
    before = replace(PANEL, available=fewer, attributes=PANEL.attributes * fewer[..., None])
    found = consumer_surplus(LOGIT_MODEL, LOGIT, "b", before, after=PANEL)
    p = torch.from_numpy(softmax(PANEL, LOGIT.params)).gather(1, gone[:, None])[:, 0]
    expected = torch.where(three, -torch.log1p(-p) / 0.7, 0.0)
    torch.testing.assert_close(found.each["change"], expected, rtol=1e-12, atol=1e-14)


def _not_chosen(data: Any) -> torch.Tensor:
    """The first available alternative that was not chosen, (S,)."""
    others = data.available & (torch.arange(data.num_alternatives) != data.choice[:, None])
    return others.to(torch.int64).argmax(1)


def test_level_alone_table_and_frame() -> None:
    found = consumer_surplus(LOGIT_MODEL, LOGIT, "b")
    assert list(found.each) == list(found.means) == ["before"]
    both = consumer_surplus(LOGIT_MODEL, LOGIT, "b", after=DEARER)
    frame = both.to_frame()
    assert list(frame.columns) == ["individual", "situation", "before", "after", "change"]
    assert frame.loc[3, "change"] == float(both.each["change"][3])
    assert repr(both) == both.summary
    assert "Consumer surplus in units of 'b' over the population: 31 situations" in both.summary
    total = both.means["change"] * float(PANEL.weights[PANEL.individual].sum())
    assert f"{total:.6g}" in both.summary


# ------------------------------------------------------------------ refusals


def of_price(random: str | Random, params: dict[str, float]) -> Callable[[], object]:
    def call() -> object:
        model = MixedLogitModel(PANEL, ["a"], {"b": random})
        return consumer_surplus(model, given(model, {"a": 0.4, **params}), "b")

    return call


SPREAD = {"b.loc": -1.0, "b.scale": 0.3}
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no price": (lambda: consumer_surplus(LOGIT_MODEL, LOGIT), "price: got None"),
    "unknown price": (lambda: consumer_surplus(LOGIT_MODEL, LOGIT, "cost"), "'cost'"),
    "positive": (lambda: consumer_surplus(LOGIT_MODEL, LOGIT, "a"), "fixed, between 0.4 and 0.4.*a negative one"),
    "normal": (of_price("normal", SPREAD), "normal, between -inf and inf; expected a negative one"),
    "lognormal": (of_price("lognormal", SPREAD), "lognormal, between 0 and inf"),
    "uniform": (of_price("uniform", SPREAD | {"b.scale": 1.1}), "uniform, between -2.1 and 0.1"),
    "covariates": (
        of_price(Random("uniform", mean_covariates="age"), {"b.loc": -1.0, "b.loc:age": 5.0, "b.scale": 0.3}),
        "uniform by age, between",
    ),
    "truncated": (of_price("-truncated_normal", SPREAD), r"E\[1 / coefficient\] does not exist"),
    "censored": (of_price("-censored_normal", SPREAD), r"E\[1 / coefficient\] does not exist"),
    "gamma": (of_price("-gamma", {"b.concentration": 0.9, "b.rate": 1.0}), r"E\[1 / coefficient\] does not exist"),
    "others": (
        lambda: consumer_surplus(LOGIT_MODEL, LOGIT, "b", after=replace(PANEL, individual=PANEL.individual.flip(0))),
        "one by one",
    ),
    "another model": (lambda: consumer_surplus(MIXED_MODEL, LOGIT, "c"), "the model that was fitted"),
}


@pytest.mark.parametrize("misuse", REFUSED)
def test_misuse_is_refused_by_name(misuse: str) -> None:
    call, message = REFUSED[misuse]
    with pytest.raises(InvalidInputError, match=message):
        call()


@pytest.mark.parametrize(
    ("random", "params"),
    [
        ("uniform", {"b.loc": -1.0, "b.scale": 0.9}),
        ("-johnson_sb", {"b.loc": -1.0, "b.scale": 0.9}),
        (Random("truncated_normal", bounds=(-3.0, -0.5)), {"b.loc": -1.0, "b.scale": 0.9}),
        ("-gamma", {"b.concentration": 2.0, "b.rate": 1.0}),
        ("normal", {"b.loc": -1.0, "b.scale": 0.0}),
    ],
    ids=["uniform", "johnson", "truncated", "gamma", "spread-0"],
)
def test_prices_that_are_negative_for_everybody_are_taken(random: str | Random, params: dict[str, float]) -> None:
    """All alternatives cheaper by half a unit: a gain of just that, whatever the coefficient."""
    model = MixedLogitModel(PANEL, ["a"], {"b": random})
    cheaper = scenario(PANEL, {"b": lambda b: b - 0.5})
    found = consumer_surplus(model, given(model, {"a": 0.4, **params}), "b", after=cheaper)
    torch.testing.assert_close(found.each["change"], torch.full_like(found.each["change"], 0.5), rtol=1e-9, atol=0.0)


def test_a_gamma_price_often_near_0_warns() -> None:
    with pytest.warns(IntegrationWarning, match="concentration 1.3"):
        of_price("-gamma", {"b.concentration": 1.3, "b.rate": 1.0})()


def test_a_strength_at_the_boundary_has_the_surplus_of_the_logit() -> None:
    sim = simulate_choices(dist.Delta(torch.tensor(1.0)), num_individuals=100, num_situations=5, seed=4)
    data = replace(sim.data, attributes=-sim.data.attributes)
    model, plain = MixedLogitModel(data, random={"x": "-gamma"}), MixedLogitModel(data, ["x"])
    result = model.fit(num_redraws=0)
    assert result.at_boundary
    found, expected = consumer_surplus(model, result, "x"), consumer_surplus(plain, plain.fit(), "x")
    assert found.means == pytest.approx(expected.means, rel=1e-6)
    assert found.std_errors == pytest.approx(expected.std_errors, rel=1e-4)


def test_scale_heterogeneity_and_wtp_space_by_brute_force() -> None:
    case = next(case for case in brute.CASES if case.name == "everything at once")
    model = case.of(PANEL)
    base = case.base(1, 25)
    found = consumer_surplus(model, given(model, case.params), integration=FixedDraws(base))
    params = {name: torch.tensor(value, dtype=torch.float64) for name, value in case.params.items()}
    expected = []
    for s in range(PANEL.num_situations):
        n = int(PANEL.individual[s])
        beta = case.coefficients(params, base[0].unbind(-1), {"age": float(PANEL.covariate("age")[n])})
        utility = sum(PANEL.attribute(name)[s][:, None] * value for name, value in beta.items())
        inside = utility[PANEL.available[s]]
        expected.append((torch.logsumexp(inside, 0) / -beta["a"]).mean())
    torch.testing.assert_close(found.each["before"], torch.stack(expected), rtol=1e-10, atol=1e-12)
