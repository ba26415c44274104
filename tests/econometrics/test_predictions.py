from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from mixlogit_align import FixedDraws, MixedLogit, MonteCarlo, Quadrature, QuasiMonteCarlo
from mixlogit_align.econometrics import (
    ChoiceData,
    MixedLogitModel,
    MixedLogitResult,
    elasticities,
    predict,
    scenario,
    simulate_choices,
)
from mixlogit_align.econometrics.expectations import rule_of
from mixlogit_align.errors import InvalidInputError
from tests.econometrics import brute
from tests.econometrics.given import (
    LOGIT,
    LOGIT_MODEL,
    MIXED,
    MIXED_MODEL,
    MIXED_PARAMS,
    PANEL,
    given,
    grid,
    numbers,
    posterior,
    slopes,
    softmax,
)

# ------------------------------------------------------------------ probabilities and shares


def test_conditional_logit_predicts_softmax_shares_with_errors_by_hand() -> None:
    found = predict(LOGIT_MODEL, LOGIT)
    p = softmax(PANEL, LOGIT.params)
    weights = (PANEL.weights[PANEL.individual] / PANEL.weights[PANEL.individual].sum()).numpy()
    # d P_j / d b_v = P_j (x_jv - mean of x_v)
    x = np.stack([PANEL.attribute(name).numpy() for name in "ab"], -1)
    slope = p[..., None] * (x - (p[..., None] * x).sum(1, keepdims=True))
    slope = np.einsum("s,sjv->jv", weights, slope)
    variance = np.einsum("jv,vw,jw->j", slope, LOGIT.cov.numpy(), slope)
    np.testing.assert_allclose(found.probabilities, p, atol=1e-14)
    np.testing.assert_allclose(numbers(found.shares), weights @ p, rtol=1e-12)
    np.testing.assert_allclose(numbers(found.share_std_errors), np.sqrt(variance), rtol=1e-10)
    assert list(found.shares) == list(PANEL.alternatives)


@pytest.mark.parametrize("conditional", [False, True], ids=["population", "conditional"])
def test_errors_of_shares_are_those_of_numerical_derivatives(conditional: bool) -> None:
    # nodes that stay where they are when parameters move
    draws = torch.randn(1, 40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def found(result: MixedLogitResult) -> object:
        return predict(MIXED_MODEL, result, conditional=conditional, integration=FixedDraws(draws))

    slope = slopes(lambda result: numbers(found(result).shares), MIXED)
    expected = ((slope @ MIXED.cov) * slope).sum(1).sqrt()
    torch.testing.assert_close(numbers(found(MIXED).share_std_errors), expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("case", brute.CASES, ids=lambda case: case.name)
def test_every_specification_predicts_what_it_means(case: brute.Case) -> None:
    frame = brute.choices("balanced", people=4)
    model = case.of(brute.read(frame))
    base = case.base(4, 7) if case.bases else torch.zeros(4, 1, 0, dtype=torch.float64)
    rule = FixedDraws(base) if case.bases else None
    found = predict(model, given(model, case.params, rule="exact"), integration=rule)
    params = {name: torch.tensor(value, dtype=torch.float64) for name, value in case.params.items()}
    expected = []
    for n, (_, rows) in enumerate(frame.groupby("person", sort=False)):
        covariates = {name: float(rows[name].iloc[0]) for name in ("age", "size")}
        beta = case.coefficients(params, base[n].unbind(-1), covariates)
        for _, offered in rows.groupby("situation", sort=False):
            terms = [torch.tensor(offered[name].to_numpy())[:, None] * value for name, value in beta.items()]
            expected.append(torch.softmax(sum(terms), 0).mean(1))
    torch.testing.assert_close(found.probabilities[:, :3], torch.stack(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "used", "tolerance"),
    [
        ("Quadrature(num_nodes=64)", "Quadrature(num_nodes=64)", 1e-9),
        # lies about modes; 32 nodes of the population in its place: a step of 0.53 gives exp(-2 pi a / 0.53), a = 1 or
        # more here, the distance of the logistic function's poles
        ("ImportanceSampling(num_draws=128, prior_share=0.1)", "Quadrature(num_nodes=32)", 1e-5),
    ],
    ids=["quadrature", "importance-sampling"],
)
def test_population_probabilities_against_a_grid(rule: str, used: str, tolerance: float) -> None:
    beta, weight = grid()
    found = predict(MIXED_MODEL, given(MIXED_MODEL, MIXED_PARAMS, rule=rule))
    expected = np.einsum("k,ksj->sj", weight, softmax(PANEL, beta))
    np.testing.assert_allclose(found.probabilities, expected, rtol=0.0, atol=tolerance)
    assert found.integration == used


def test_conditional_probabilities_against_a_grid() -> None:
    """96 nodes about the prior, not the mode, resolve posteriors of up to 7 choices to 1e-9."""
    beta, weight = grid()
    probability = softmax(PANEL, beta)
    own = posterior(PANEL, weight, probability)[PANEL.individual.numpy()]
    found = predict(MIXED_MODEL, MIXED, conditional=True, integration=Quadrature(96))
    np.testing.assert_allclose(found.probabilities, np.einsum("sk,ksj->sj", own, probability), atol=1e-8)


def test_conditional_prediction_of_some_individuals_of_another_table() -> None:
    frame = brute.choices()
    some = brute.read(frame[frame["person"].isin(["p06", "p02"])])
    options = {"conditional": True, "integration": Quadrature(24)}
    everyone = predict(MIXED_MODEL, MIXED, **options)
    found = predict(MIXED_MODEL, MIXED, some, **options)
    own = torch.tensor([PANEL.individuals[n] in ("p02", "p06") for n in PANEL.individual.tolist()])
    torch.testing.assert_close(found.probabilities, everyone.probabilities[own], rtol=1e-12, atol=1e-14)


def test_more_coefficients_than_a_product_rule_can_have() -> None:
    """Three normals: 1,024 Sobol draws of the population, whose error at this seed is below 1e-3, against 2**15."""
    params = {f"{x}.{part}": value for x in "abc" for part, value in (("loc", 0.3), ("scale", 0.8))}
    model = MixedLogitModel(PANEL, random=dict.fromkeys("abc", "normal"))
    found = predict(model, given(model, params, rule="ImportanceSampling(num_draws=128)"))
    expected = predict(model, given(model, params), integration=QuasiMonteCarlo("sobol", 2**15))
    assert found.integration.startswith("QuasiMonteCarlo(kind='sobol', num_draws=1024")
    torch.testing.assert_close(found.probabilities, expected.probabilities, atol=2e-3, rtol=0.0)


@pytest.mark.parametrize("conditional", [False, True], ids=["population", "conditional"])
def test_work_in_parts_is_work_at_once(monkeypatch: pytest.MonkeyPatch, conditional: bool) -> None:
    options = {"conditional": conditional, "integration": MonteCarlo(50)}
    at_once = elasticities(MIXED_MODEL, MIXED, "c", **options)
    monkeypatch.setattr("mixlogit_align.econometrics.expectations._CHUNK", 900)
    in_parts = elasticities(MIXED_MODEL, MIXED, "c", **options)
    torch.testing.assert_close(in_parts.each, at_once.each, rtol=1e-12, atol=1e-14, equal_nan=True)
    torch.testing.assert_close(in_parts.std_errors, at_once.std_errors, rtol=1e-10, atol=1e-14)


# ------------------------------------------------------------------ one strength


def test_scalar_strength_predicts_the_probabilities_of_the_distribution() -> None:
    sim = simulate_choices(dist.LogNormal(0.0, 0.6), num_individuals=150, num_situations=6, seed=3)
    model = MixedLogitModel(sim.data, random={"x": "gamma"})
    result = model.fit()
    difference, _ = model.data.pairs("x")
    expected = MixedLogit(difference, result.mixing).mean
    torch.testing.assert_close(predict(model, result).probabilities[:, 1], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("family", ["gamma", "lognormal", "normal"])
def test_a_strength_at_the_boundary_predicts_as_the_logit(family: str) -> None:
    sim = simulate_choices(dist.Delta(torch.tensor(1.0)), num_individuals=100, num_situations=5, seed=4)
    model, plain = MixedLogitModel(sim.data, random={"x": family}), MixedLogitModel(sim.data, ["x"])
    result = model.fit()
    assert result.at_boundary
    expected = predict(plain, plain.fit())
    found = predict(model, result)
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-6, atol=1e-7)
    assert found.share_std_errors == pytest.approx(expected.share_std_errors, rel=1e-4)


def test_a_saved_result_predicts_the_same(tmp_path: Path) -> None:
    MIXED.save(tmp_path / "result")
    loaded = MixedLogitResult.load(tmp_path / "result")
    assert torch.equal(predict(MIXED_MODEL, loaded).probabilities, predict(MIXED_MODEL, MIXED).probabilities)


# ------------------------------------------------------------------ rules


@pytest.mark.parametrize("rule", ["exact", "ClosedForm()"])
def test_exact_results_have_no_rule_to_repeat(rule: str) -> None:
    assert rule_of(given(LOGIT_MODEL, LOGIT.params, rule=rule)) is None


@pytest.mark.parametrize(
    "rule",
    [
        Quadrature(),
        Quadrature(17),
        MonteCarlo(16, seed=3),
        MonteCarlo(8, kind="antithetic", sharing="batch"),
        QuasiMonteCarlo("halton", 20, seed=None),
    ],
    ids=repr,
)
def test_a_rule_is_read_from_its_name(rule: object) -> None:
    assert rule_of(given(LOGIT_MODEL, LOGIT.params, rule=repr(rule))) == rule


@pytest.mark.parametrize("rule", [repr(FixedDraws(torch.zeros(3, 2))), "strange"], ids=["FixedDraws", "strange"])
def test_a_rule_that_its_name_does_not_give_is_refused(rule: str) -> None:
    with pytest.raises(InvalidInputError, match="the draws again"):
        rule_of(given(LOGIT_MODEL, LOGIT.params, rule=rule))


# ------------------------------------------------------------------ tables, scenarios, refusals


def test_tables_carry_the_labels_of_the_data() -> None:
    found = predict(MIXED_MODEL, MIXED)
    frame = found.to_frame()
    assert list(frame.columns) == ["individual", "situation", "alternative", "probability"]
    assert set(frame["individual"]) == {f"p{n:02}" for n in range(9)}
    assert len(frame) == int(PANEL.available.sum())
    np.testing.assert_allclose(frame.groupby("situation")["probability"].sum(), 1.0, rtol=1e-12)
    assert repr(found) == found.summary
    assert "over the population" in found.summary
    assert "Quadrature(num_nodes=64)" in found.summary
    assert found.summary.as_html().startswith("<table>")


CHANGES = {
    "number": 2.0,
    "by-alternative": torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64),
    "function": lambda b: b + 2.0,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_scenario_changes_available_alternatives_only(change: str) -> None:
    changed = scenario(PANEL, {"b": CHANGES[change]})
    old = PANEL.attribute("b")
    new = old + 2.0 if change == "function" else torch.as_tensor(CHANGES[change]).to(old).expand_as(old)
    assert torch.equal(changed.attribute("b"), torch.where(PANEL.available, new, 0.0))
    assert torch.equal(changed.attribute("a"), PANEL.attribute("a"))


def test_a_scenario_of_single_alternatives() -> None:
    changed = scenario(PANEL, {"b": {"x": lambda b: 2.0 * b, "z": 3.0}})
    factor = torch.tensor([1.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    shift = torch.tensor([0.0, 0.0, 0.0, 3.0], dtype=torch.float64)
    assert torch.equal(changed.attribute("b"), factor * PANEL.attribute("b") + shift * PANEL.available)


def test_without_an_alternative_the_others_share_its_choices() -> None:
    """The logit's independence: shares of the others rise in proportion; and no choice is left of what is gone."""
    frame = brute.choices("balanced", people=6)
    data = brute.read(frame)
    model = MixedLogitModel(data, ["a", "b"])
    result = given(model, LOGIT.params, rule="exact")
    w, x, y = predict(model, result).probabilities.unbind(1)[:3]
    fewer = scenario(data, {"a": lambda a: a}, without=["x"])
    found = predict(model, result, fewer).probabilities
    torch.testing.assert_close(found[:, :3], torch.stack([w / (1 - x), 0.0 * x, y / (1 - x)], 1))
    gone = data.alternatives.index("x")
    assert not bool((fewer.choice == gone).any())
    kept = data.choice != gone
    assert torch.equal(fewer.choice[kept], data.choice[kept])


def test_past_choices_of_a_cross_section_are_those_of_its_own_situations() -> None:
    data = brute.read(brute.choices("cross-section"), panel=False)
    model = MixedLogitModel(data, ["a"], {"b": "normal", "c": "-lognormal"})
    result = given(model, MIXED_PARAMS)
    options = {"conditional": True, "integration": Quadrature(16)}
    own = predict(model, result, scenario(data, {"a": lambda a: a}), **options)
    assert torch.equal(own.probabilities, predict(model, result, **options).probabilities)
    some = brute.read(brute.choices("cross-section", people=4), panel=False)
    with pytest.raises(InvalidInputError, match="individuals without names"):
        predict(model, result, some, **options)


def _another_individual(data: ChoiceData) -> ChoiceData:
    return replace(data, individuals=(*data.individuals[:-1], "stranger"))


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "another model's result": (lambda: predict(MIXED_MODEL, LOGIT), "the model that was fitted"),
    "another family": (
        lambda: predict(MixedLogitModel(PANEL, ["a"], {"b": "uniform", "c": "-lognormal"}), MIXED),
        "the model that was fitted",
    ),
    "a stranger": (
        lambda: predict(MIXED_MODEL, MIXED, _another_individual(PANEL), conditional=True),
        "'stranger'",
    ),
    "no such attribute": (
        lambda: predict(MIXED_MODEL, MIXED, brute.read(brute.choices(), variables=["a", "b"])),
        "'c'",
    ),
    "NaN": (lambda: scenario(PANEL, {"b": float("nan")}), "finite"),
    "unknown change": (lambda: scenario(PANEL, {"nothing": 1.0}), "nothing"),
    "unknown alternative": (lambda: scenario(PANEL, {"a": {"bus": 1.0}}), "'bus'"),
    "nothing to leave out": (lambda: scenario(PANEL, without=["bus"]), "'bus'"),
    "too few left": (lambda: scenario(PANEL, without=["w"]), "fewer than two alternatives"),
    "wrong shape": (lambda: scenario(PANEL, {"a": torch.ones(3)}), "shape"),
    "draws not given": (
        lambda: predict(MIXED_MODEL, given(MIXED_MODEL, MIXED_PARAMS, rule="FixedDraws(shape=(3, 2))")),
        "FixedDraws",
    ),
}


@pytest.mark.parametrize("misuse", REFUSED)
def test_misuse_is_refused_by_name(misuse: str) -> None:
    call, message = REFUSED[misuse]
    with pytest.raises(InvalidInputError, match=message):
        call()
