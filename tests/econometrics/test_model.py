"""``MixedLogitModel.fit``: what its options do, which rule it takes, what it refuses, and what must not matter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from mixlogit_align import FixedDraws, ImportanceSampling, MonteCarlo, Quadrature, QuasiMonteCarlo
from mixlogit_align.econometrics import ChoiceData, MixedLogitModel, MixedLogitResult, Random, simulate_choices
from mixlogit_align.errors import (
    ConvergenceError,
    ConvergenceWarning,
    IntegrationWarning,
    InvalidInputError,
    MixlogitError,
)

TRUTH = {"c": -0.5, "a.loc": 0.8, "a.scale": 0.9, "b.loc": -0.4, "b.scale": 0.7}
MODEL: dict[str, Any] = {"fixed": ["c"], "random": {"a": "normal", "b": "normal"}}
# 64 draws for every individual, the same ones: no ordering of individuals or situations matters.
SHARED = FixedDraws(torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
EXACTLY: dict[str, Any] = {"integration": SHARED, "num_redraws": 0}


@pytest.fixture(scope="module")
def panel() -> ChoiceData:
    """100 individuals, 5 situations, 3 alternatives."""
    return simulate_choices(TRUTH, **MODEL, num_individuals=100, num_situations=5, num_alternatives=3, seed=1).data


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """The same choices in a long table, ids of individuals and situations numbers in order."""
    return simulate_choices(TRUTH, **MODEL, num_individuals=100, num_situations=5, num_alternatives=3, seed=1).frame


def read(frame: pd.DataFrame, **options: Any) -> ChoiceData:
    return ChoiceData.from_long(
        frame,
        choice="choice",
        alternative="alternative",
        situation="situation",
        individual="individual",
        variables=["a", "b", "c"],
        **options,
    )


@pytest.fixture(scope="module")
def model(panel: ChoiceData) -> MixedLogitModel:
    return MixedLogitModel(panel, **MODEL)


@pytest.fixture(scope="module")
def fitted(model: MixedLogitModel) -> MixedLogitResult:
    return model.fit(**EXACTLY)


def assert_same(result: MixedLogitResult, other: MixedLogitResult, units: dict[str, float] | None = None) -> None:
    """Estimates to 1e-4 standard errors; ``units`` are factors of the other's parameters, 1 where not named.

    Standard errors to 1e-3: their Hessian is taken within 0.1 standard errors of the estimates.
    """
    assert result.converged, result.message
    assert other.converged, other.message
    assert result.loglik == pytest.approx(other.loglik, abs=1e-6)
    factor = {name: (units or {}).get(name, 1.0) for name in result.params}
    assert list(factor) == list(other.params)
    z = {name: (result.params[name] / factor[name] - other.params[name]) / other.std_errors[name] for name in factor}
    assert max(map(abs, z.values())) < 1e-4, z
    errors = {name: error / factor[name] for name, error in result.std_errors.items()}
    assert errors == pytest.approx(other.std_errors, rel=1e-3)


# ---------------------------------------------------------------- hold and bounds


@pytest.mark.parametrize("cov_type", ["hessian", "bhhh", "robust", "clustered(village)", "bootstrap"])
def test_a_held_parameter_keeps_its_value_and_has_no_standard_error(frame: pd.DataFrame, cov_type: str) -> None:
    data = read(frame.assign(village=frame["individual"] % 9), clusters=["village"])
    result = MixedLogitModel(data, **MODEL).fit(**EXACTLY, hold={"a.loc": 0.5}, cov_type=cov_type, num_replications=8)
    assert result.converged, result.message
    assert result.cov_type == cov_type
    assert result.held == {"a.loc": 0.5}
    assert result.params["a.loc"] == 0.5
    assert result.n_params == 4
    held = list(result.params).index("a.loc")
    assert not result.cov[held].any()
    assert not result.cov[:, held].any()
    assert math.isnan(result.zstats["a.loc"])
    assert result.conf_int().loc["a.loc"].isna().all()
    free = [i for i in range(5) if i != held]
    assert float(torch.linalg.eigvalsh(result.cov[free][:, free]).min()) > 0.0


def test_with_parameters_held_the_others_are_at_their_maximum(model: MixedLogitModel, fitted: MixedLogitResult) -> None:
    """The largest likelihood given the held values: no gradient left, less than without, more than nearby."""
    hold = {"a.loc": 0.5, "b.scale": 0.0}
    result = model.fit(**EXACTLY, hold=hold)
    names = list(result.params)
    gradient = result.scores.sum(0)
    steps = {name: float(gradient[names.index(name)]) * result.std_errors[name] for name in names if name not in hold}
    assert max(map(abs, steps.values())) < 1e-3, steps
    assert result.loglik < fitted.loglik
    free = [i for i, name in enumerate(names) if name not in hold]
    torch.testing.assert_close(
        result.cov[free][:, free], torch.linalg.inv(-result.hessian[free][:, free]), rtol=1e-3, atol=1e-6
    )
    assert float(model.loglik(result.params, SHARED).sum()) == pytest.approx(result.loglik, abs=1e-9)


@pytest.mark.parametrize("held", [0.7, -0.7])
def test_a_held_entry_of_a_column_keeps_its_sign(held: float) -> None:
    """Negative correlation: with a positive entry held, the scale of its column is negative, and the model the same."""
    truth = {"c": -0.5, "a.loc": 0.8, "b.loc": -0.4, "chol.a.a": 0.9, "chol.b.a": -0.7, "chol.b.b": 0.5}
    correlated: dict[str, Any] = {**MODEL, "correlated": True}
    sim = simulate_choices(truth, **correlated, num_individuals=200, num_situations=6, num_alternatives=3, seed=0)
    result = MixedLogitModel(sim.data, **correlated).fit(hold={"chol.b.a": held}, num_redraws=0)
    assert result.converged, result.message
    assert result.params["chol.b.a"] == held
    assert math.copysign(1.0, result.params["chol.a.a"]) == -math.copysign(1.0, held)
    assert result.moments["cor.b.a"] < -0.5
    assert result.moments["a.sd"] == pytest.approx(abs(result.params["chol.a.a"]))
    assert not result.at_boundary


@pytest.mark.parametrize(
    ("name", "bound", "end"),
    [
        ("a.loc", (-1.0, 0.5), 0.5),
        ("c", (0.0, 2.0), 0.0),
        ("b.scale", (1.5, math.inf), 1.5),
        ("a.scale", (-math.inf, 0.3), 0.3),
    ],
)
def test_an_active_bound_is_reported_and_the_rest_is_that_of_holding_it(
    model: MixedLogitModel, fitted: MixedLogitResult, name: str, bound: tuple[float, float], end: float
) -> None:
    assert not bound[0] <= fitted.params[name] <= bound[1]
    result = model.fit(**EXACTLY, bounds={name: bound})
    held = model.fit(**EXACTLY, hold={name: end})
    assert result.converged, result.message
    assert result.held == {name: end}
    assert result.params == pytest.approx(held.params, abs=1e-5)
    assert result.std_errors == pytest.approx(held.std_errors, rel=1e-3)
    assert result.std_errors[name] == 0.0
    assert math.isnan(result.zstats[name])
    assert result.n_params == 4
    # the likelihood rises out of the bounds
    slope = float(result.scores[:, list(result.params).index(name)].sum())
    assert slope * (1.0 if end == bound[1] else -1.0) > 0.0


def test_bounds_that_do_not_bind_change_nothing(model: MixedLogitModel, fitted: MixedLogitResult) -> None:
    bounds = {"a.loc": (-5.0, 5.0), "b.scale": (0.0, math.inf), "c": (-math.inf, 0.0)}
    result = model.fit(**EXACTLY, bounds=bounds)
    assert result.params == fitted.params
    assert result.std_errors == fitted.std_errors
    assert result.held == {}


def test_a_bound_that_binds_only_on_the_way_is_released() -> None:
    """Both free estimates violate their bounds, but with the other at its bound one of them is inside again."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(600, 2))
    b = 0.9 * a + 0.4 * rng.normal(size=(600, 2))
    utility = 1.0 * a + 0.15 * b + rng.gumbel(size=(600, 2))
    rows = pd.DataFrame(
        {
            "individual": np.arange(600).repeat(2),
            "situation": np.arange(600).repeat(2),
            "alternative": np.tile([0, 1], 600),
            "a": a.ravel(),
            "b": b.ravel(),
            "c": rng.normal(size=1200),
            "choice": (utility == utility.max(1, keepdims=True)).astype(int).ravel(),
        }
    )
    model = MixedLogitModel(read(rows), ["a", "b", "c"])
    free = model.fit()
    alone = model.fit(hold={"a": 0.5})
    limit = (free.params["b"] + alone.params["b"]) / 2
    assert free.params["a"] > 0.5
    assert free.params["b"] < limit < alone.params["b"]
    result = model.fit(bounds={"a": (-math.inf, 0.5), "b": (limit, math.inf)})
    assert result.held == {"a": 0.5}
    assert result.params["b"] == pytest.approx(alone.params["b"], abs=1e-6)


def test_a_maximum_beyond_the_bounds_of_all_parameters_is_refused(panel: ChoiceData) -> None:
    with pytest.raises(InvalidInputError, match=r"bounds: got .*\['c'\].*Try wider bounds"):
        MixedLogitModel(panel, ["c"]).fit(bounds={"c": (1.0, 2.0)})


@pytest.mark.parametrize("seed", [1, 2, 11])
def test_a_scale_within_its_bounds_is_not_held_whatever_its_sign_in_the_search(seed: int) -> None:
    """Little heterogeneity: searches that end at a negative scale, which is reported positive."""
    truth = {"c": -0.5, "a.loc": 0.8, "a.scale": 0.2, "b.loc": -0.4, "b.scale": 0.3}
    data = simulate_choices(truth, **MODEL, num_individuals=60, num_situations=3, num_alternatives=3, seed=seed).data
    model = MixedLogitModel(data, **MODEL)
    rule: dict[str, Any] = {"integration": QuasiMonteCarlo("halton", 32, seed=None), "num_redraws": 0}
    free = model.fit(**rule)
    assert free.params["a.scale"] > 0.0
    bounded = model.fit(**rule, bounds={"a.scale": (0.0, 5.0)})
    assert bounded.held == {}
    assert_same(bounded, free)


# ---------------------------------------------------------------- starts


def test_a_start_names_some_parameters_and_the_others_start_as_ever(
    model: MixedLogitModel, fitted: MixedLogitResult
) -> None:
    result = model.fit(**EXACTLY, start={"a.loc": -2.0, "b.scale": 2.5})
    assert_same(result, fitted)
    assert result.evaluations != fitted.evaluations


def test_a_start_at_the_estimates_saves_steps(model: MixedLogitModel, fitted: MixedLogitResult) -> None:
    result = model.fit(**EXACTLY, start=fitted.params)
    assert_same(result, fitted)
    assert result.iterations < fitted.iterations


def test_every_start_is_among_the_optima(model: MixedLogitModel, fitted: MixedLogitResult) -> None:
    result = model.fit(**EXACTLY, num_starts=4, seed=1)
    assert len(result.optima) == 4
    assert fitted.optima == ()
    converged = [optimum for optimum in result.optima if optimum.converged]
    assert result.converged
    assert result.loglik == max(optimum.loglik for optimum in converged)
    best = [optimum.params for optimum in converged if optimum.loglik == result.loglik]
    assert result.params in best
    assert result.loglik >= fitted.loglik
    assert all(set(optimum.params) == set(TRUTH) for optimum in result.optima)
    assert min(optimum.params[scale] for optimum in result.optima for scale in result.scales) >= 0.0


def test_the_seed_of_starts(model: MixedLogitModel) -> None:
    ends = [model.fit(**EXACTLY, num_starts=2, seed=seed) for seed in (1, 1, 2)]
    assert ends[0].optima == ends[1].optima
    assert ends[0].evaluations != ends[2].evaluations or ends[0].optima[1] != ends[2].optima[1]


# ---------------------------------------------------------------- redraws, progress, device


def test_simulation_sd_is_the_spread_of_refits_with_other_draws(panel: ChoiceData) -> None:
    """10 refits against 10 redraws: the ratio of two such variances lies outside these limits once in 10,000."""
    model = MixedLogitModel(panel, **MODEL)
    result = model.fit(integration=QuasiMonteCarlo("sobol", 32, seed=0), num_redraws=10)
    others = [model.fit(integration=QuasiMonteCarlo("sobol", 32, seed=100 + s), num_redraws=0) for s in range(10)]
    assert set(result.simulation_sd) == {*TRUTH, "loglik"}
    limits = scipy.stats.f.ppf([0.5e-4, 1 - 0.5e-4], 9, 10)
    ratios = {
        name: np.var([other.params[name] for other in others], ddof=1) / result.simulation_sd[name] ** 2
        for name in TRUTH
    }
    ratios["loglik"] = np.var([other.loglik for other in others], ddof=1) / result.simulation_sd["loglik"] ** 2
    assert limits[0] < min(ratios.values()) <= max(ratios.values()) < limits[1], ratios
    assert result.integration.reference == "10 fresh sets of draws"
    assert result.integration.error == result.simulation_sd["loglik"]


def test_simulation_bias_is_how_far_few_draws_lead_astray(panel: ChoiceData) -> None:
    """12 samples of 32 pseudo draws beside quadrature; 4.5 standard errors are exceeded once in 100,000.

    Estimates: half the draws tell the first order in 1 / K, the next may be as large again.
    """
    model = MixedLogitModel(panel, **MODEL)
    exact = model.fit(integration=Quadrature(32), num_redraws=0)
    drawn = [model.fit(integration=MonteCarlo(32, seed=s), num_redraws=1) for s in range(12)]

    def mean(values: list[float]) -> tuple[float, float]:
        return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))

    told = {name: mean([r.simulation_bias[name] for r in drawn]) for name in (*TRUTH, "loglik")}
    moved = {name: mean([r.params[name] - exact.params[name] for r in drawn]) for name in TRUTH}
    moved["loglik"] = mean([r.loglik - exact.loglik for r in drawn])
    room = {name: 4.5 * math.hypot(told[name][1], moved[name][1]) for name in told}
    away = {name: abs(moved[name][0] - told[name][0]) for name in told}
    assert told["loglik"][0] < -1.0
    assert away["loglik"] < room["loglik"], (told, moved)
    assert max(away[name] - room[name] - abs(told[name][0]) for name in TRUTH) < 0.0, (told, moved)


def test_draws_too_few_are_told(panel: ChoiceData, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MixedLogitModel(panel, **MODEL)
    few = model.fit(integration=QuasiMonteCarlo("halton", 4))  # the user's own rule: the result tells
    assert few.coarse
    assert "TOO FEW DRAWS: they leave" in few.summary
    worst = max(few.coarse, key=few.simulation_error.__getitem__)
    error = math.hypot(few.simulation_sd[worst], few.simulation_bias[worst]) / few.std_errors[worst]
    assert few.simulation_error[worst] == pytest.approx(error, rel=1e-12)
    assert error > 0.5
    many = model.fit(integration=QuasiMonteCarlo("sobol", 1024))
    assert many.coarse == ()
    assert "TOO FEW" not in many.summary
    monkeypatch.setattr("mixlogit_align.econometrics.nodes._LEAST_EFFECTIVE", 2.0)  # no importance sampling does
    monkeypatch.setattr("mixlogit_align.econometrics.nodes._DRAWS", 4)
    with pytest.warns(IntegrationWarning, match=r"too few draws in QuasiMonteCarlo.*standard errors. Try integration="):
        model.fit()


def test_without_redraws_no_simulation_sd(fitted: MixedLogitResult) -> None:
    assert fitted.simulation_sd == {}
    assert fitted.simulation_bias == {}
    assert math.isnan(fitted.integration.error)
    assert fitted.integration.reference == "no other draws to compare with"


def test_quadrature_is_compared_with_twice_the_nodes(panel: ChoiceData) -> None:
    result = MixedLogitModel(panel, ["c", "b"], {"a": "normal"}).fit(integration=Quadrature(12))
    assert result.integration.reference == "Quadrature(num_nodes=24)"
    finer = MixedLogitModel(panel, ["c", "b"], {"a": "normal"}).fit(integration=Quadrature(24), num_redraws=0)
    assert set(result.simulation_sd) == {"c", "b", "a.loc", "a.scale", "loglik"}
    moved = {name: abs(finer.params[name] - value) for name, value in result.params.items()}
    # a Newton step against a refit, and the step between optima stopped at 1e-4 standard errors
    floor = {name: 2e-4 * error for name, error in result.std_errors.items()}
    excess = {name: abs(result.simulation_sd[name] - moved[name]) - floor[name] for name in moved}
    assert max(excess[name] - 0.2 * moved[name] for name in moved) < 0.0, (moved, result.simulation_sd)


@pytest.mark.parametrize("num_situations", [1, 3], ids=["one strength", "general"])
def test_progress_shows_stages_and_changes_nothing(capsys: pytest.CaptureFixture[str], num_situations: int) -> None:
    sim = simulate_choices(
        {"a.loc": 0.8, "a.scale": 1.5},
        random={"a": "normal"},
        num_individuals=300,
        num_situations=num_situations,
        num_alternatives=3,
        seed=0,
    )
    model = MixedLogitModel(sim.data, random={"a": "normal"})
    quiet = model.fit()
    assert capsys.readouterr().out == ""
    shown = model.fit(progress=True)
    assert "evaluations, log-likelihood" in capsys.readouterr().out
    assert shown.params == quiet.params


def test_on_the_cpu_by_name_the_numbers_are_the_same(model: MixedLogitModel, fitted: MixedLogitResult) -> None:
    result = model.fit(**EXACTLY, device="cpu")
    assert result.params == fitted.params
    assert result.std_errors == fitted.std_errors
    assert torch.equal(result.scores, fitted.scores)


def test_the_same_fit_twice_gives_the_same_numbers(model: MixedLogitModel) -> None:
    first, second = model.fit(), model.fit()
    assert first.params == second.params
    assert first.simulation_sd == second.simulation_sd


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cov_type": "white"}, "cov_type: got 'white'; expected one of"),
        ({"cov_type": "clustered(village)"}, "'village'"),
        ({"num_starts": 0}, "num_starts: got 0; expected 1 or more"),
        ({"num_starts": True}, "num_starts: got True"),
        ({"num_redraws": -1}, "num_redraws: got -1; expected 0 or more"),
        ({"num_redraws": 1.0}, "num_redraws: got 1.0"),
        ({"num_replications": 1}, "num_replications: got 1; expected 2 or more"),
        ({"start": {"price": 1.0}}, r"start: got \['price'\]; expected parameters of"),
        ({"start": {"a.loc": math.nan}}, "start: got .*nan.*; expected finite"),
        ({"hold": {"price": 1.0}}, r"hold: got \['price'\]"),
        ({"hold": {"a.loc": math.inf}}, r"hold\['a.loc'\]: got inf"),
        ({"hold": {"a.scale": -0.5}}, r"hold\['a.scale'\]: got -0.5"),
        ({"hold": TRUTH}, "hold: got all parameters; expected at least one that is free"),
        ({"bounds": {"price": (0.0, 1.0)}}, r"bounds: got \['price'\]"),
        ({"bounds": {"c": (1.0, 0.0)}}, r"bounds\['c'\]: got \(1, 0\); expected low < high"),
        ({"bounds": {"c": (math.nan, 0.0)}}, r"bounds\['c'\]: got \(nan, 0\)"),
        ({"bounds": {"c": (0.0, 1.0)}, "hold": {"c": 0.5}}, r"bounds\['c'\]: got .* for a held parameter"),
        ({"bounds": {"a.scale": (-2.0, -1.0)}}, r"bounds\['a.scale'\]: got \(-2, -1\)"),
        ({"device": "nowhere"}, "device: got 'nowhere'"),
        ({"integration": "halton"}, "integration: got 'halton'"),
        ({"integration": Quadrature(2000)}, "4000000 nodes; expected at most a million"),
        ({"integration": FixedDraws(torch.zeros(3, 7, 2))}, r"FixedDraws: got base draws of shape \(3, 7, 2\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_advice(
    model: MixedLogitModel, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(MixlogitError, match=f"(?s){says}.*Try "):
        model.fit(**options)


@pytest.mark.parametrize("what", ["start", "hold"])
def test_what_must_be_positive_is(panel: ChoiceData, what: str) -> None:
    model = MixedLogitModel(panel, ["c"], {"a": "gamma"})
    with pytest.raises(InvalidInputError, match=rf"{what}.*got .*-?0"):
        model.fit(**{what: {"a.rate": 0.0}})


def two_alternatives(x: np.ndarray, chosen: np.ndarray, **more: np.ndarray) -> ChoiceData:
    """Panels (N, T) of two alternatives with x and -x; more attributes (N, T, 2)."""
    n, t = x.shape
    columns = {"x": np.stack([x, -x], -1), **more}
    return ChoiceData(
        attributes=torch.tensor(np.stack(list(columns.values()), -1).reshape(n * t, 2, -1)),
        available=torch.ones(n * t, 2, dtype=torch.bool),
        choice=torch.tensor(chosen.ravel()),
        individual=torch.arange(n).repeat_interleave(t),
        weights=torch.ones(n, dtype=torch.float64),
        variables=tuple(columns),
        alternatives=(0, 1),
        individuals=tuple(range(n)),
        is_panel=t > 1,
    )


@pytest.mark.parametrize(
    "model",
    [
        pytest.param({"fixed": ["x", "y"]}, id="fixed"),
        pytest.param({"fixed": ["y"], "random": {"x": "normal"}}, id="random"),
        pytest.param({"fixed": ["y"], "random": {"x": "lognormal"}, "wtp_space": "y"}, id="WTP space"),
    ],
)
def test_separated_choices_are_named(model: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4))
    data = two_alternatives(x, (x < 0).astype(int), y=rng.normal(size=(40, 4, 2)))
    with pytest.raises(ConvergenceError, match=r"coefficients of \[.*'x'.*separate the choices.*Try leaving out"):
        MixedLogitModel(data, **model).fit()


@pytest.mark.parametrize(
    "model",
    [
        pytest.param({"fixed": ["x", "y", "z"]}, id="fixed"),
        pytest.param({"fixed": ["y"], "random": {"x": "normal", "z": "normal"}}, id="random"),
    ],
)
def test_collinear_variables_are_named(model: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 4)), rng.normal(size=(40, 4, 2))
    z = 2.0 * np.stack([x, -x], -1) - 3.0 * y
    data = two_alternatives(x, rng.integers(0, 2, (40, 4)), y=y, z=z, w=rng.normal(size=(40, 4, 2)))
    with pytest.raises(ConvergenceError, match=r"coefficients of \['.', '.', '.'\].*collinear.*Try leaving out one"):
        MixedLogitModel(data, **model).fit()


def test_on_next_to_no_draws_nothing_is_claimed(model: MixedLogitModel) -> None:
    with pytest.warns(ConvergenceWarning, match="not converged: .*effective draws.*Try "):
        result = model.fit(integration=ImportanceSampling(4), num_redraws=0)
    assert result.converged is False
    assert "effective draws of importance sampling" in result.message


@pytest.mark.parametrize("family", ["normal", "uniform", "triangular"])
@pytest.mark.parametrize("rule", [None, QuasiMonteCarlo("sobol", 64)], ids=["default", "sobol"])
def test_where_heterogeneity_has_no_finite_maximum_nothing_is_claimed(family: str, rule: Any) -> None:
    """Everyone always decides by the sign of x, two thirds for and one third against: only the mixture separates."""
    with pytest.warns(ConvergenceWarning, match="not converged: .*Try "):
        result = MixedLogitModel(always_for_or_against(), ["y"], {"x": family}).fit(integration=rule)
    assert result.converged is False


@pytest.mark.filterwarnings(
    "ignore::mixlogit_align.errors.ConvergenceWarning", "ignore::mixlogit_align.errors.IntegrationWarning"
)
@pytest.mark.parametrize("cov_type", ["hessian", "bhhh", "robust"])
@pytest.mark.parametrize("family", ["normal", "uniform", "triangular", "lognormal", "censored_normal"])
def test_never_converged_without_finite_standard_errors(family: str, cov_type: str) -> None:
    result = MixedLogitModel(always_for_or_against(), ["y"], {"x": family}).fit(cov_type=cov_type)
    finite = all(math.isfinite(error) for error in (*result.std_errors.values(), *result.moment_std_errors.values()))
    assert finite or not result.converged


def test_a_family_of_the_wrong_sign_is_told() -> None:
    truth = {"t": 0.5, "p.loc": -0.3, "p.scale": 0.4}
    random = {"p": "-lognormal"}
    data = simulate_choices(truth, fixed=["t"], random=random, num_individuals=100, num_situations=5, seed=1).data
    with pytest.warns(ConvergenceWarning, match="Try p=-lognormal, since the conditional logit's coefficient is -0"):
        MixedLogitModel(data, ["t"], {"p": "lognormal"}).fit()


def always_for_or_against() -> ChoiceData:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 10))
    against = (np.arange(30) % 3 == 0)[:, None]
    return two_alternatives(x, ((x < 0) != against).astype(int), y=rng.normal(size=(30, 10, 2)))


# ---------------------------------------------------------------- the default rule


@pytest.mark.parametrize(
    ("situations", "model", "params", "rule"),
    [
        (1, {"fixed": ["a"], "random": {"b": "normal"}}, ["a", "b.loc", "b.scale"], "Quadrature(num_nodes=64)"),
        (4, {"fixed": ["a"], "random": {"b": "normal"}}, ["a", "b.loc", "b.scale"], "Quadrature(num_nodes=64)"),
        (4, {"fixed": ["a", "b"], "scale_heterogeneity": True}, ["a", "b", "tau"], "Quadrature(num_nodes=64)"),
        (
            1,
            {"random": {"a": "normal", "b": "normal"}},
            ["a.loc", "a.scale", "b.loc", "b.scale"],
            "Quadrature(num_nodes=64)",
        ),
        (
            4,
            {"random": {"a": "normal", "b": "normal"}},
            ["a.loc", "a.scale", "b.loc", "b.scale"],
            "ImportanceSampling(",
        ),
        (
            1,
            {"random": {"a": "normal", "b": "normal", "c": "normal"}},
            ["a.loc", "a.scale", "b.loc", "b.scale", "c.loc", "c.scale"],
            "QuasiMonteCarlo(kind='sobol', num_draws=1024",
        ),
        (4, {"fixed": ["a", "b"]}, ["a", "b"], "exact"),
    ],
    ids=[
        "one, cross-section",
        "one, panel",
        "scale heterogeneity, panel",
        "two, cross-section",
        "two, panel",
        "three, cross-section",
        "none",
    ],
)
def test_the_default_rule(situations: int, model: dict[str, Any], params: list[str], rule: str) -> None:
    truth = dict.fromkeys(params, 1.0)
    data = simulate_choices(
        truth, **model, num_individuals=400 // situations, num_situations=situations, num_alternatives=3, seed=0
    ).data
    result = MixedLogitModel(data, **model).fit(num_redraws=0)
    assert list(result.params) == params
    assert result.integration.rule.startswith(rule)
    assert (result.integration.ess is not None) == rule.startswith("ImportanceSampling")


# ---------------------------------------------------------------- what must not matter


@pytest.mark.parametrize("factor", [1e-3, 1e3])
@pytest.mark.parametrize(
    "rule", [pytest.param(EXACTLY, id="shared draws"), pytest.param({"num_redraws": 0}, id="default")]
)
def test_units_of_an_attribute(panel: ChoiceData, factor: float, rule: dict[str, Any]) -> None:
    scaled = MixedLogitModel(rescaled(panel, {"a": factor, "c": 1.0 / factor}), **MODEL).fit(**rule)
    plain = MixedLogitModel(panel, **MODEL).fit(**rule)
    assert_same(scaled, plain, {"a.loc": 1.0 / factor, "a.scale": 1.0 / factor, "c": factor})


def rescaled(data: ChoiceData, factors: dict[str, float]) -> ChoiceData:
    by = torch.tensor([factors.get(name, 1.0) for name in data.variables], dtype=torch.float64)
    return replace(data, attributes=data.attributes * by)


def shuffled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sample(frac=1.0, random_state=0)


def individuals_in_another_order(frame: pd.DataFrame) -> pd.DataFrame:
    order = np.random.default_rng(0).permutation(frame["individual"].nunique())
    return frame.assign(individual=order[frame["individual"]]).sort_values(["individual", "situation"])


def alternatives_in_another_order(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(alternative=(frame["alternative"] + frame["situation"]) % 3)


def ids_are_words(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(
        individual=[f"person {(7 * i) % 101}" for i in frame["individual"]],
        situation=[f"s{-i}" for i in frame["situation"]],
        alternative=frame["alternative"].map({0: "train", 1: "bus", 2: "car"}),
    )


CHANGES = [shuffled, individuals_in_another_order, alternatives_in_another_order, ids_are_words]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param(MODEL, EXACTLY, id="shared draws"),
        pytest.param({"fixed": ["b", "c"], "random": {"a": "normal"}}, {"num_redraws": 0}, id="default quadrature"),
    ],
)
def test_order_and_labels_of_rows(
    frame: pd.DataFrame,
    change: Callable[[pd.DataFrame], pd.DataFrame],
    model: dict[str, Any],
    options: dict[str, Any],
) -> None:
    changed = MixedLogitModel(read(change(frame)), **model).fit(**options)
    assert_same(changed, MixedLogitModel(read(frame), **model).fit(**options))


@pytest.mark.parametrize("cov_type", ["hessian", "bhhh", "robust"])
def test_each_individual_twice_is_a_weight_of_two(frame: pd.DataFrame, cov_type: str) -> None:
    again = frame.assign(individual=frame["individual"] + 1000, situation=frame["situation"] + 100_000)
    twice = MixedLogitModel(read(pd.concat([frame, again])), **MODEL).fit(**EXACTLY, cov_type=cov_type)
    weighted = MixedLogitModel(read(frame.assign(w=2.0), weights="w"), **MODEL).fit(**EXACTLY, cov_type=cov_type)
    assert_same(twice, weighted)
    assert (twice.n_individuals, twice.nobs) == (weighted.n_individuals, weighted.nobs) == (200.0, 1000.0)
    assert twice.null_loglik == pytest.approx(-1000.0 * math.log(3.0), rel=1e-12)
    assert weighted.null_loglik == pytest.approx(twice.null_loglik, rel=1e-12)


@pytest.mark.parametrize("family", ["lognormal", "gamma", "johnson_sb"])
def test_minus_a_positive_family_is_the_family_of_the_reversed_column(panel: ChoiceData, family: str) -> None:
    reversed_ = rescaled(panel, {"b": -1.0})
    minus = MixedLogitModel(panel, ["c", "a"], {"b": f"-{family}"}).fit(num_redraws=0)
    plain = MixedLogitModel(reversed_, ["c", "a"], {"b": family}).fit(num_redraws=0)
    assert_same(minus, plain)
    assert minus.moments["b.mean"] == pytest.approx(-plain.moments["b.mean"], rel=1e-4)
    assert minus.moments["b.sd"] == pytest.approx(plain.moments["b.sd"], rel=1e-4)


# ---------------------------------------------------------------- the same model by another way


def test_a_result_is_the_same_after_it_was_saved(panel: ChoiceData, tmp_path: Path) -> None:
    model = MixedLogitModel(panel, ["c"], {"a": "normal", "b": Random("lognormal", sign=-1)}, correlated=True)
    result = model.fit(num_starts=2, bounds={"c": (0.0, math.inf)}, cov_type="robust")
    result.save(tmp_path / "result.safetensors")
    loaded = MixedLogitResult.load(tmp_path / "result.safetensors")
    for name in ("cov", "hessian_eigenvalues", "hessian", "scores", "weights"):
        assert torch.equal(getattr(loaded, name), getattr(result, name))
    rest = [name for name, value in vars(result).items() if not isinstance(value, torch.Tensor)]
    assert {name: getattr(loaded, name) for name in rest} == {name: getattr(result, name) for name in rest}
    assert loaded.summary == result.summary
    assert loaded.held == {"c": 0.0}
    assert len(loaded.optima) == 2


def test_a_formula_is_the_model_it_writes(frame: pd.DataFrame) -> None:
    where = {"alternative": "alternative", "situation": "situation", "individual": "individual"}
    income = np.random.default_rng(0).normal(size=100)
    table = frame.assign(income=income[frame["individual"]])
    random = {"a": Random("normal", mean_covariates="income"), "b": "normal"}
    written = MixedLogitModel.from_formula("choice ~ a + b + c", table, random=random, correlated=True, **where)
    data = ChoiceData.from_long(table, choice="choice", variables=["a", "b", "c", "income"], **where)
    explicit = MixedLogitModel(data, ["c"], random, correlated=True)
    results = [model.fit(**EXACTLY) for model in (written, explicit)]
    assert results[0].params == pytest.approx(results[1].params, abs=1e-6)
    assert results[0].loglik == pytest.approx(results[1].loglik, abs=1e-8)
    assert results[0].specification == results[1].specification
    assert set(results[0].params) >= {"a.loc:income", "chol.b.a", "c"}


def test_wtp_space_with_a_fixed_price_is_preference_space_in_other_parameters(panel: ChoiceData) -> None:
    """b_x = -b_price w_x: normal coefficients are normal willingness to pay, and the draws need no change."""
    preference = MixedLogitModel(panel, **MODEL).fit(**EXACTLY)
    wtp = MixedLogitModel(panel, **MODEL, wtp_space="c").fit(**EXACTLY)
    price = preference.params["c"]
    assert price < 0.0
    assert wtp.converged, wtp.message
    assert wtp.loglik == pytest.approx(preference.loglik, abs=1e-7)
    ratios = {name: value if name == "c" else -value / price for name, value in preference.params.items()}
    assert wtp.params == pytest.approx(ratios, abs=1e-4)
    # the delta method from preference space
    names = list(preference.params)
    jacobian = torch.eye(5, dtype=torch.float64)
    for i, name in enumerate(names):
        if name != "c":
            jacobian[i, i] = -1.0 / price
            jacobian[i, names.index("c")] = preference.params[name] / price**2
    errors = (jacobian @ preference.cov @ jacobian.T).diagonal().sqrt().tolist()
    assert wtp.std_errors == pytest.approx(dict(zip(names, errors, strict=True)), rel=1e-3)
