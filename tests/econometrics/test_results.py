from __future__ import annotations

import math
import pickle
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import chi2, norm

from mixlogit_align.distributions import Triangular
from mixlogit_align.econometrics import (
    ChoiceData,
    FixedStrength,
    IntegrationReport,
    MixedLogitModel,
    MixedLogitResult,
    Optimum,
    compare,
    simulate_choices,
)
from mixlogit_align.errors import ConvergenceError, ConvergenceWarning, InvalidInputError


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


COV = torch.tensor([[0.04, 0.01, 0.0], [0.01, 0.09, 0.02], [0.0, 0.02, 0.25]], dtype=torch.float64)


def result(**changes: Any) -> MixedLogitResult:
    """A fixed price and a normal time, 50 individuals with 10 situations of two alternatives each."""
    params = changes.pop("params", {"price": -0.5, "time.loc": -1.2, "time.scale": 0.8})
    size = len(params)
    values: dict[str, Any] = {
        "params": params,
        "std_errors": dict(zip(params, [0.2, 0.3, 0.5] + [0.1] * size, strict=False)),
        "cov": COV if size == 3 else torch.eye(size, dtype=torch.float64) / 100,
        "moments": {"time.mean": -1.2, "time.sd": 0.8},
        "moment_std_errors": {"time.mean": 0.3, "time.sd": 0.5},
        "loglik": -280.0,
        "null_loglik": -500 * math.log(2.0),
        "converged": True,
        "gradient_norm": 1e-9,
        "hessian_eigenvalues": f64(3.5, 12.0, 40.0),
        "message": "well done",
        "at_boundary": False,
        "mixing": None,
        "fixed": None,
        "integration": IntegrationReport("Rule(100)", 1e-3, "Rule(200)"),
        "simulation_sd": {},
        "simulation_bias": {},
        "cov_type": "robust",
        "specification": "price; time normal",
        "not_in_model": (),
        "held": {},
        "scales": tuple(name for name in params if name.endswith(".scale")),
        "n_individuals": 50.0,
        "nobs": 500.0,
        "iterations": 7,
        "evaluations": 9,
        "hessian": -torch.linalg.inv(COV),
        "scores": torch.arange(150, dtype=torch.float64).reshape(50, 3),
        "weights": torch.ones(50, dtype=torch.float64),
        "optima": (),
    }
    return MixedLogitResult(**(values | changes))


def scalar(**changes: Any) -> MixedLogitResult:
    """One lognormal strength and nothing else."""
    values: dict[str, Any] = {
        "params": {"x.loc": 0.1, "x.scale": 0.5},
        "moments": {"x.mean": 1.25, "x.sd": 0.67},
        "moment_std_errors": {"x.mean": 0.1, "x.sd": 0.2},
        "mixing": dist.LogNormal(*f64(0.1, 0.5)),
        "fixed": FixedStrength(1.0, 0.05, -283.0),
        "specification": "x lognormal",
    }
    return result(**(values | changes))


def at_boundary(**changes: Any) -> MixedLogitResult:
    values: dict[str, Any] = {
        "params": {"x.loc": 0.1, "x.scale": 0.0},
        "moments": {"x.mean": 1.1, "x.sd": 0.0},
        "at_boundary": True,
    }
    return scalar(**(values | changes))


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_z_and_p() -> None:
    one = result()
    assert one.zstats == pytest.approx({"price": -2.5, "time.loc": -4.0, "time.scale": 1.6})
    assert one.pvalues == pytest.approx({name: 2 * norm.cdf(-abs(z)) for name, z in one.zstats.items()}, rel=1e-12)
    assert one.pvalues["price"] == pytest.approx(0.01241933, abs=1e-8)


@pytest.mark.parametrize(("level", "width"), [(0.95, 1.959964), (0.5, 0.6744898)])
def test_intervals(level: float, width: float) -> None:
    ends = result().conf_int(level)
    assert list(ends.columns) == ["lower", "upper"]
    assert ends.loc["time.loc"].tolist() == pytest.approx([-1.2 - width * 0.3, -1.2 + width * 0.3], abs=1e-6)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, math.nan])
def test_a_level_is_a_probability(level: float) -> None:
    with pytest.raises(InvalidInputError, match="level"):
        result().conf_int(level)


def test_criteria_by_hand() -> None:
    one = result()
    assert one.n_params == 3
    assert one.aic == pytest.approx(566.0)
    assert one.bic == pytest.approx(560.0 + 3 * math.log(500.0))
    null = -500 * math.log(2.0)
    assert one.rho_squared == pytest.approx(1 + 280.0 / null)
    assert one.adjusted_rho_squared == pytest.approx(1 + 283.0 / null)


def test_held_parameters_are_not_counted_and_not_tested() -> None:
    one = result(held={"price": -0.5}, std_errors={"price": 0.0, "time.loc": 0.3, "time.scale": 0.5})
    assert one.n_params == 2
    assert math.isnan(one.zstats["price"])
    assert one.conf_int().loc["price"].isna().all()
    assert next(line for line in one.summary.splitlines() if line.startswith("price")).split() == [
        "price",
        "-0.5",
        "held",
    ]


def test_no_test_of_a_spread_at_the_boundary() -> None:
    one = at_boundary()
    assert one.without_std_error == ("x.scale", "x.sd")
    assert math.isnan(one.pvalues["x.scale"])
    assert not math.isnan(one.pvalues["x.loc"])
    assert one.to_frame()["lower"].isna().tolist() == [False, True]


def test_the_frame_has_it_all() -> None:
    bias = {"time.loc": -0.02, "loglik": -0.3}
    frame = result(simulation_sd={"time.loc": 0.01, "loglik": 0.2}, simulation_bias=bias).to_frame()
    assert list(frame.columns) == [
        "estimate",
        "std_error",
        "z",
        "pvalue",
        "lower",
        "upper",
        "simulation_sd",
        "simulation_bias",
    ]
    assert list(frame.index) == ["price", "time.loc", "time.scale"]
    assert frame["estimate"].tolist() == [-0.5, -1.2, 0.8]
    assert frame.loc["time.loc", "simulation_sd"] == 0.01
    assert frame.loc["time.loc", "simulation_bias"] == -0.02
    assert math.isnan(frame.loc["price", "simulation_sd"])


# --- summary ---------------------------------------------------------------------------------------------------------

GOLDEN = """\
Mixed logit, price; time normal: 50 individuals, 500 situations
            estimate  std. error      z        p  simulation sd  simulation bias
price           -0.5         0.2  -2.50   0.0124
time.loc        -1.2         0.3  -4.00  <0.0001          0.012            -0.16
time.scale       0.8         0.5   1.60   0.1096

time.mean       -1.2         0.3
time.sd          0.8         0.5
not in the model: age, income
log-likelihood -280.000000; with equal shares -346.573590
rho-squared 0.1921, adjusted 0.1834; AIC 566.000, BIC 578.644; 3 parameters estimated
covariance: robust
NOT converged: well done
gradient norm 1.0e-09, smallest eigenvalue of minus the Hessian 3.5; 7 iterations, 9 evaluations
integration: Rule(100), error of the log-likelihood 1.0e-03 (against Rule(200))
smallest effective sample size 61.2
simulation sd of the log-likelihood 0.25, bias -1.5
TOO FEW DRAWS: they leave time.loc uncertain by 0.53 standard errors
log-likelihoods from 2 starts: -280.0000, -281.5000 (not converged)"""


def full() -> MixedLogitResult:
    return result(
        converged=False,
        not_in_model=("age", "income"),
        integration=IntegrationReport("Rule(100)", 1e-3, "Rule(200)", ess=61.23),
        simulation_sd={"time.loc": 0.0123, "loglik": 0.25},
        simulation_bias={"time.loc": -0.16, "loglik": -1.5},
        optima=(Optimum({"price": -0.5}, -280.0, True), Optimum({"price": 0.0}, -281.5, False)),
    )


def test_the_summary_as_text() -> None:
    assert full().summary == GOLDEN
    assert repr(full()) == GOLDEN


def test_the_summary_without_what_there_is_not() -> None:
    text = result().summary
    for absent in ("simulation", "starts", "effective", "fixed strength", "not in the model", "†", "NOT"):
        assert absent not in text
    assert "fixed strength" in scalar().summary
    assert "with a fixed strength -283.000000" in scalar().summary


def test_the_dagger_marks_spreads_of_zero() -> None:
    lines = at_boundary().summary.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("†")] == ["x.scale", "x.sd"]
    assert sum(line.startswith("† no standard error") for line in lines) == 1
    assert "but for rounding" not in at_boundary().summary
    assert "at the boundary: a scale is 0 but for rounding" in result(at_boundary=True).summary


def odd_names() -> MixedLogitResult:
    return result(params={"in_come": 1.0, "a<b.loc": 2.0, "[c]:d&e.scale": 3.0}, moments={}, specification="50% {x}")


def test_html_holds_every_cell_escaped() -> None:
    page = odd_names().summary.as_html()
    assert page.startswith("<table>")
    assert page.endswith("</table>")
    for text in ("in_come", "a&lt;b.loc", "[c]:d&amp;e.scale", "50% {x}", "<td", "covariance: robust"):
        assert text in page
    assert "a<b" not in page
    assert odd_names().summary._repr_html_() == page


def test_latex_holds_every_cell_escaped() -> None:
    text = odd_names().summary.as_latex()
    for part in (r"in\_come", r"a\textless{}b.loc", r"{[}c]:d\&e.scale", r"50\% \{x\}", r"\end{tabular}"):
        assert part in text
    assert r"{lrrrr}" in text
    # as many separators in every row of cells
    rows = [line for line in text.splitlines() if line.endswith(r" \\") and "multicolumn" not in line]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {4}
    assert len(rows) == 4
    assert r"0.3$\dagger$" in at_boundary().summary.as_latex()


def test_a_summary_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(full().summary))
    assert again == GOLDEN
    assert again.as_html() == full().summary.as_html()


# --- file ------------------------------------------------------------------------------------------------------------

MIXINGS = [
    None,
    dist.Delta(torch.tensor(0.3, dtype=torch.float64)),
    dist.Normal(*f64(0.1, 0.5)),
    dist.LogNormal(*f64(0.1, 0.5)),
    dist.Gamma(*f64(2.0, 1.5)),
    dist.Uniform(*f64(-1.0, 2.5)),
    Triangular(*f64(-1.0, 2.5)),
]


@pytest.mark.parametrize("mixing", MIXINGS, ids=lambda mixing: type(mixing).__name__)
def test_a_result_comes_back_from_its_file(mixing: Any, tmp_path: Path) -> None:
    saved = replace(
        full(),
        mixing=mixing,
        fixed=FixedStrength(0.1 + 0.2, 0.05, -1 / 3),
        held={"price": -0.5},
        gradient_norm=math.inf,
    )
    saved.save(tmp_path / "one.result")
    loaded = MixedLogitResult.load(tmp_path / "one.result")
    assert loaded.summary == saved.summary
    for field in fields(MixedLogitResult):
        one, other = getattr(saved, field.name), getattr(loaded, field.name)
        if field.name == "mixing":
            assert type(one) is type(other)
            assert mixing is None or (float(one.mean), float(one.variance)) == (
                float(other.mean),
                float(other.variance),
            )
        elif isinstance(one, torch.Tensor):
            assert torch.equal(one, other), field.name
        else:
            assert one == other, field.name
            assert type(one) is type(other), field.name
    assert list(loaded.params) == list(saved.params)


def test_unknown_numbers_come_back_unknown(tmp_path: Path) -> None:
    saved = replace(result(), std_errors={"price": math.nan, "time.loc": 1.0, "time.scale": 2.0}, scores=COV * math.nan)
    saved.save(tmp_path / "one.result")
    loaded = MixedLogitResult.load(tmp_path / "one.result")
    assert math.isnan(loaded.std_errors["price"])
    assert bool(loaded.scores.isnan().all())


def damage(file: Path, how: str) -> None:
    if how == "missing":
        file.unlink()
    elif how == "text":
        file.write_text("not a result")
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "cut short":
        file.write_bytes(file.read_bytes()[:-20])
    elif how == "tensors of another":
        save_file({"weight": torch.ones(3)}, str(file))
    else:
        tensors = load_file(str(file))
        record = '{"params": {}}' if how == "other fields" else "{"
        save_file(tensors, str(file), {"format": "mixlogit_align result 1", "mixing": "null", "record": record})


@pytest.mark.parametrize(
    "how", ["missing", "text", "empty", "cut short", "tensors of another", "other fields", "broken header"]
)
def test_another_file_is_refused_by_name(how: str, tmp_path: Path) -> None:
    file = tmp_path / "one.result"
    result().save(file)
    damage(file, how)
    with pytest.raises(InvalidInputError, match=r"one\.result: got .*; expected .*\. Try "):
        MixedLogitResult.load(file)


def test_a_mixing_that_cannot_be_rebuilt_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="mixing"):
        scalar(mixing=dist.HalfNormal(*f64(1.0))).save(tmp_path / "one.result")


# --- likelihood ratio ------------------------------------------------------------------------------------------------


def smaller(*names: str, loglik: float = -283.0, **changes: Any) -> MixedLogitResult:
    return result(params=dict.fromkeys(names, 0.5), loglik=loglik, moments={}, **changes)


TIME = ("price", "time.loc", "time.scale")
TWO = (*TIME, "cost.loc", "cost.scale")
CHOL = ("price", "time.loc", "cost.loc", "chol.time.time", "chol.cost.time", "chol.cost.cost")


@pytest.mark.parametrize(
    ("larger", "restricted", "tested", "weights"),
    [
        (TIME, ("time.loc", "time.scale"), ("price",), {1: 1.0}),
        (TIME, ("price", "time"), ("time.scale",), {0: 0.5, 1: 0.5}),
        (TIME, ("time",), ("price", "time.scale"), {1: 0.5, 2: 0.5}),
        (TIME, ("price",), ("time.loc", "time.scale"), {1: 0.5, 2: 0.5}),
        (TWO, ("price", "time", "cost"), ("time.scale", "cost.scale"), {0: 0.25, 1: 0.5, 2: 0.25}),
        (("x.concentration", "x.rate", "price"), ("x", "price"), ("x.rate",), {0: 0.5, 1: 0.5}),
        (CHOL, TWO, ("chol.cost.time",), {1: 1.0}),
        (CHOL, ("price", "time", "cost"), CHOL[3:], {3: 1.0}),
        (CHOL, ("price", "time.loc", "time.scale", "cost"), CHOL[4:], {2: 1.0}),
    ],
)
def test_what_is_tested_and_its_null_distribution(
    larger: tuple[str, ...], restricted: tuple[str, ...], tested: tuple[str, ...], weights: dict[int, float]
) -> None:
    diagonal = tuple(name for name in larger if name in ("chol.time.time", "chol.cost.cost") or name.endswith(".scale"))
    one = smaller(*larger, loglik=-280.0, scales=diagonal)
    found = one.likelihood_ratio_test(smaller(*restricted))
    assert (found.statistic, found.dof) == (6.0, len(tested))
    assert set(found.tested) == set(tested)
    assert found.weights == weights
    tails = {dof: chi2.sf(6.0, dof) if dof else 0.0 for dof in weights}
    assert found.pvalue == pytest.approx(sum(w * tails[dof] for dof, w in weights.items()), rel=1e-12)
    assert ("conservative" in found.note) == (len(tested) > 1 and "chol.cost.cost" in tested)
    assert "chi2(" in str(found)


def test_a_scale_held_at_0_is_on_the_boundary_and_one_held_elsewhere_is_not() -> None:
    held = [smaller(*TIME, held={"time.scale": value}) for value in (0.0, 0.7)]
    tests = [result().likelihood_ratio_test(restricted) for restricted in held]
    assert [test.weights for test in tests] == [{0: 0.5, 1: 0.5}, {1: 1.0}]


def test_what_both_hold_alike_is_not_tested() -> None:
    larger = result(held={"price": 0.5})
    found = larger.likelihood_ratio_test(smaller("price", "time", held={"price": 0.5}))
    assert found.tested == ("time.scale",)


def test_against_one_strength_for_all() -> None:
    found = scalar().likelihood_ratio_test()
    assert found.tested == ("x.sd",)
    assert found.statistic == pytest.approx(6.0)
    assert found.pvalue == pytest.approx(norm.sf(6.0**0.5), rel=1e-9)
    assert at_boundary(loglik=-283.0).likelihood_ratio_test().pvalue == 1.0
    with pytest.raises(InvalidInputError, match="restricted"):
        result().likelihood_ratio_test()


@pytest.mark.parametrize(
    "restricted",
    [
        smaller("price", "cost"),
        smaller(*TIME),
        smaller(*TWO),
        smaller("price", "cost", held={"cost": 2.0}),
    ],
    ids=["another coefficient", "the same", "larger", "held elsewhere"],
)
def test_models_that_are_not_nested(restricted: MixedLogitResult) -> None:
    with pytest.raises(InvalidInputError, match="a model inside that of"):
        result().likelihood_ratio_test(restricted)


def test_what_the_larger_model_holds_the_smaller_must_hold() -> None:
    with pytest.raises(InvalidInputError, match=r"'price'.* do not fit"):
        result(held={"price": 0.5}).likelihood_ratio_test(smaller("price", "time"))


@pytest.mark.parametrize("other", [{"nobs": 499.0}, {"n_individuals": 49.0}, {"null_loglik": -300.0}])
def test_models_of_other_data(other: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match="same choices"):
        result().likelihood_ratio_test(smaller("price", "time", **other))


def test_a_larger_model_that_is_less_likely_missed_its_maximum() -> None:
    with pytest.raises(ConvergenceError, match="larger model, which did not reach its maximum"):
        result().likelihood_ratio_test(smaller("price", "time", loglik=-279.9))
    # both integration errors together, 2e-3, allow for this
    found = result().likelihood_ratio_test(smaller("price", "time", loglik=-279.9985))
    assert (found.statistic, found.error) == (0.0, pytest.approx(4e-3))
    assert "up to 4.0e-03" in str(found)


def test_a_test_with_a_fit_that_did_not_converge_warns() -> None:
    with pytest.warns(ConvergenceWarning, match="restricted model did not converge"):
        result().likelihood_ratio_test(smaller("price", "time", converged=False))


def test_the_likelihood_ratio_of_a_real_fit_is_that_of_its_logliks() -> None:
    sample = simulate_choices(dist.LogNormal(*f64(0.0, 0.8)), num_individuals=60, num_situations=10, seed=1)
    fit = MixedLogitModel(sample.data, random={"x": "lognormal"}).fit()
    assert fit.fixed is not None
    statistic = 2 * (fit.loglik - fit.fixed.loglik)
    assert fit.likelihood_ratio_test().pvalue == pytest.approx(norm.sf(math.sqrt(statistic)), rel=1e-6)
    torch.testing.assert_close(torch.linalg.inv(-fit.hessian), fit.cov, rtol=1e-6, atol=0)
    assert float((fit.weights @ fit.scores).abs().max()) < 1e-6
    assert fit.null_loglik == pytest.approx(-600 * math.log(2.0))


def test_nested_fits_of_several_coefficients(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    individual = np.repeat(np.arange(80), 8 * 3)
    values = generator.normal(size=(len(individual), 2))
    strengths = generator.normal([1.0, -1.0], [1.2, 0.0], size=(80, 2))[individual]
    utility = ((values * strengths).sum(1) + generator.gumbel(size=len(individual))).reshape(-1, 3)
    frame = pd.DataFrame(values, columns=["time", "cost"]).assign(
        id=individual,
        chid=np.arange(len(individual)) // 3,
        alt=np.arange(len(individual)) % 3,
        choice=(utility == utility.max(1, keepdims=True)).reshape(-1).astype(int),
    )
    data = ChoiceData.from_long(frame, choice="choice", alternative="alt", situation="chid", individual="id")
    logit = MixedLogitModel(data, fixed=["time", "cost"], random={}).fit()
    mixed = MixedLogitModel(data, fixed=["cost"], random={"time": "normal"}).fit()
    found = mixed.likelihood_ratio_test(logit)
    assert (found.tested, found.weights) == (("time.scale",), {0: 0.5, 1: 0.5})
    assert found.statistic == pytest.approx(2 * (mixed.loglik - logit.loglik))
    assert found.pvalue < 1e-6
    assert logit.wald_test("time + cost").statistic == pytest.approx(
        (logit.params["time"] + logit.params["cost"]) ** 2 / float(logit.cov.sum()), rel=1e-9
    )
    mixed.save(tmp_path / "one.result")
    assert MixedLogitResult.load(tmp_path / "one.result").summary == mixed.summary


# --- Wald ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "row", "value"),
    [
        ("price", [1, 0, 0], 0),
        ("time.loc = 0", [0, 1, 0], 0),
        ("time.loc = price", [-1, 1, 0], 0),
        ("2*time.loc - time.scale*3 = 1", [0, 2, -3], 1),
        ("-price + 0.5 = 2 - 1e-1*time.loc", [-1, 0.1, 0], 1.5),
        ("time.loc/4 = .25", [0, 0.25, 0], 0.25),
        ("1 = price + price", [-2, 0, 0], -1),
        ("price - -time.loc=-3", [1, 1, 0], -3),
    ],
)
def test_restrictions_in_words(text: str, row: list[float], value: float) -> None:
    one = result()
    matrix = torch.tensor([row], dtype=torch.float64)
    expected = one.wald_test(matrix, [float(value)])
    found = one.wald_test(text)
    assert (found.statistic, found.dof) == (pytest.approx(expected.statistic, rel=1e-12), 1)
    difference = float(matrix @ f64(*one.params.values())) - value
    assert found.statistic == pytest.approx(difference**2 / float(matrix @ COV @ matrix.T), rel=1e-9)
    assert found.pvalue == pytest.approx(chi2.sf(found.statistic, 1), rel=1e-12)


def test_restrictions_hold_jointly() -> None:
    matrix = torch.tensor([[1, 0, 0], [0, 1, -1]], dtype=torch.float64)
    texts = ["price = -1", "time.loc - time.scale = -1"]
    found = result().wald_test(texts)
    assert found.dof == 2
    assert found == result().wald_test(matrix, f64(-1.0, -1.0)) == result().wald_test(matrix, -1.0)
    assert found == result().wald_test(["price", "time.loc - time.scale"], -1.0)
    assert "chi2(2)" in str(found)
    assert "robust" in str(found)


def test_names_with_colons_brackets_and_common_beginnings() -> None:
    names = ("time", "time.loc", "time.loc:C(age)[T.old]")
    one = result(params=dict(zip(names, (1.0, 2.0, 3.0), strict=True)))
    assert one.wald_test("time.loc:C(age)[T.old] = 2*time").statistic == pytest.approx(1 / float(COV[2, 2] + 4 * 0.04))
    assert one.wald_test("time.loc = 1").statistic == pytest.approx(1 / 0.09)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cost = 0", "'cost = 0'"),
        ("time = 0", "restriction"),
        ("time.location = 0", "restriction"),
        ("2 price", "without an operator"),
        ("price * time.loc", "in a product"),
        ("1 / price", "below a line"),
        ("price / 0", "division by 0"),
        ("price = 0 = time.loc", "a second '='"),
        ("price +", "without its right side"),
        ("price = ", "without its right side"),
        ("", "without its right side"),
        ("price ** 2", "without its right side"),
        ("price > 0", "restriction"),
        ("1 = 1", "finite positive variance"),
        (["price = 0", "2*price = 0"], "follows from the others"),
    ],
)
def test_restrictions_that_cannot_be_read(text: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        result().wald_test(text)


def test_right_hand_sides_stand_in_one_place() -> None:
    with pytest.raises(InvalidInputError, match="values"):
        result().wald_test("price = 1", 2.0)


# --- comparison ------------------------------------------------------------------------------------------------------

TABLE = """\
Mixed logit models
                          logit      random    at bound
price                0.5 (held)  -0.5 (0.2)
time                  0.5 (0.3)
time.loc                         -1.2 (0.3)
time.scale                        0.8 (0.5)
x.loc                                         0.1 (0.2)
x.scale                                        0 (0.3†)

time.mean                        -1.2 (0.3)
time.sd                           0.8 (0.5)
x.mean                                        1.1 (0.1)
x.sd                                           0 (0.2†)

log-likelihood             -283        -280        -280
null log-likelihood  -346.57359  -346.57359  -346.57359
rho-squared          0.18343461  0.19209078  0.19209078
AIC                         568         566         564
BIC                   572.21461   578.64382   572.42922
parameters                    1           3           2
individuals                  50          50          50
situations                  500         500         500
converged                    NO         yes         yes
covariance               robust      robust      robust
logit: price; time normal
random: price; time normal
at bound: x lognormal
standard errors in parentheses
† no standard error, but the spread at which the log-likelihood has fallen by 1/2"""


def three() -> list[MixedLogitResult]:
    return [smaller("price", "time", held={"price": 0.5}, converged=False), result(), at_boundary()]


def test_models_side_by_side() -> None:
    table = compare(three(), names=["logit", "random", "at bound"])
    assert table == TABLE
    for text in (table.as_html(), table.as_latex()):
        assert text.count("(held)") == 1
        assert "time.sd" in text


def test_the_comparison_as_numbers() -> None:
    frame = compare(three()).to_frame()
    assert [str(name) for name in frame.columns.get_level_values(0).unique()] == ["(1)", "(2)", "(3)"]
    assert frame.loc["time.loc", ("(2)", "estimate")] == -1.2
    assert frame.loc["time.loc", ("(2)", "std_error")] == 0.3
    assert math.isnan(frame.loc["time.loc", ("(1)", "estimate")])
    assert math.isnan(frame.loc["price", ("(1)", "std_error")])
    assert frame.loc["AIC", ("(3)", "estimate")] == pytest.approx(564.0)
    assert frame.loc["converged"].dropna().tolist() == [0.0, 1.0, 1.0]
    assert len(frame) == 6 + 4 + 9


def test_a_comparison_across_data_says_so() -> None:
    assert "not the same data" in compare([result(), result(nobs=400.0)])
    assert "not the same data" not in compare([result(), result()])


def test_a_comparison_survives_pickling() -> None:
    table = compare(three())
    assert pickle.loads(pickle.dumps(table)) == table


@pytest.mark.parametrize(
    ("number", "names"), [(0, None), (2, ["one"]), (2, ["one", "one"])], ids=["none", "too few", "twice"]
)
def test_every_model_has_a_name_of_its_own(number: int, names: list[str] | None) -> None:
    with pytest.raises(InvalidInputError, match="compare"):
        compare([result()] * number, names)
