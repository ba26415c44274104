"""What fits arrive at: published tables, an independent program's golden file, scipy, and the truth of simulations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from mixlogit_align import ImportanceSampling, QuasiMonteCarlo
from mixlogit_align.econometrics import ChoiceData, MixedLogitModel, Random, simulate_choices
from tests.econometrics.brute import choices, choose, read
from validation._choice_cases import BY_NAME

GOLDEN = Path(__file__).parent / "golden"


# ---------------------------------------------------------------- published


@pytest.mark.parametrize("name", ["P1", "P5", "E7"])
def test_published_estimates(shared_data: Path, name: str) -> None:
    """On the Halton draws of the publication from the default start; E7 is exact, by the default rule."""
    case = BY_NAME[name]
    result = case.model(case.data(shared_data / "choice")).fit(integration=case.integration, num_redraws=0)
    assert result.converged, result.message
    assert result.loglik == pytest.approx(case.loglik, abs=1e-4)
    assert {name: result.params[name] for name in case.params} == pytest.approx(case.params, abs=case.param_tolerance)
    # within 1 % of the printed digits
    errors = {name: result.std_errors[name] for name in case.std_errors}
    assert errors == pytest.approx(case.std_errors, rel=0.01, abs=5e-5)


def test_published_robust_errors(shared_data: Path) -> None:
    case = BY_NAME["E7"]
    result = case.model(case.data(shared_data / "choice")).fit(cov_type="robust", num_redraws=0)
    assert result.std_errors == pytest.approx(case.robust_errors, rel=0.01)


@pytest.mark.parametrize("cov_type", ["hessian", "robust"])
def test_default_fit_of_electricity_against_an_independent_program(shared_data: Path, cov_type: str) -> None:
    """golden/electricity.py says how its values were computed and why these tolerances."""
    golden = json.loads((GOLDEN / "electricity.json").read_text())
    frame = pd.read_csv(shared_data / "choice" / golden["file"])
    kept = sorted(frame["id"].unique())[: golden["households"]]
    case = BY_NAME["P1"]
    result = case.model(case.read(frame[frame["id"].isin(kept)])).fit(cov_type=cov_type, num_redraws=0)
    assert result.converged, result.message
    assert result.integration.rule.startswith("ImportanceSampling(")
    tolerance = golden["tolerance"]
    assert golden["rounds_differ"] < tolerance["estimates in standard errors"] / 10
    assert result.loglik == pytest.approx(golden["loglik"], abs=tolerance["loglik"])
    z = {name: (result.params[name] - golden["params"][name]) / golden["std_errors"][name] for name in result.params}
    assert max(map(abs, z.values())) < tolerance["estimates in standard errors"], z
    errors = golden["std_errors" if cov_type == "hessian" else "robust_errors"]
    assert result.std_errors == pytest.approx(errors, rel=tolerance["standard errors, relative"])


# ---------------------------------------------------------------- the conditional logit


@pytest.fixture(scope="module")
def logit_frame() -> pd.DataFrame:
    """Choice sets of 2 to 4, panels of 1 to 7 situations, weights 1/2, 1 and 3/2."""
    return choose(choices(people=80, seed=4), {"a": 0.8, "b": -0.5, "c": 0.2}, seed=5)


@pytest.fixture(scope="module")
def by_scipy(logit_frame: pd.DataFrame) -> dict[str, Any]:
    """Newton's method on the conditional logit, with its information, in numpy."""
    offered = logit_frame[logit_frame["offered"] == 1]
    sets = [
        (rows[["a", "b", "c"]].to_numpy(), int(rows["chosen"].to_numpy().argmax()), rows["frequency"].iloc[0])
        for _, rows in offered.groupby("situation", sort=False)
    ]

    def parts(b: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        value, gradient, information = 0.0, np.zeros(3), np.zeros((3, 3))
        for x, chosen, weight in sets:
            u = x @ b
            p = np.exp(u - u.max())
            p /= p.sum()
            mean = p @ x
            value += weight * np.log(p[chosen])
            gradient += weight * (x[chosen] - mean)
            information += weight * (x - mean).T @ (p[:, None] * (x - mean))
        return value, gradient, information

    found = scipy.optimize.minimize(
        lambda b: -parts(b)[0],
        np.zeros(3),
        jac=lambda b: -parts(b)[1],
        hess=lambda b: parts(b)[2],
        method="trust-exact",
        options={"gtol": 1e-10},
    )
    return {
        "loglik": -found.fun,
        "params": found.x.tolist(),
        "std_errors": np.sqrt(np.linalg.inv(parts(found.x)[2]).diagonal()).tolist(),
        "null_loglik": -sum(weight * np.log(len(x)) for x, _, weight in sets),
    }


@pytest.mark.parametrize(
    ("model", "options", "names"),
    [
        pytest.param({"fixed": ["a", "b", "c"]}, {}, ["a", "b", "c"], id="no random coefficient"),
        pytest.param(
            {"fixed": ["b"], "random": {"a": "normal", "c": "triangular"}},
            {"hold": {"a.scale": 0.0, "c.scale": 0.0}, "integration": QuasiMonteCarlo("sobol", 16)},
            ["a.loc", "b", "c.loc"],
            id="scales held at 0",
        ),
        pytest.param(
            {"fixed": ["a", "b", "c"], "scale_heterogeneity": True},
            {"hold": {"tau": 0.0}},
            ["a", "b", "c"],
            id="tau held at 0",
        ),
    ],
)
def test_without_heterogeneity_it_is_the_conditional_logit(
    logit_frame: pd.DataFrame,
    by_scipy: dict[str, Any],
    model: dict[str, Any],
    options: dict[str, Any],
    names: list[str],
) -> None:
    result = MixedLogitModel(read(logit_frame), **model).fit(**options)
    assert result.converged, result.message
    assert result.loglik == pytest.approx(by_scipy["loglik"], abs=1e-9)
    assert result.null_loglik == pytest.approx(by_scipy["null_loglik"], abs=1e-9)
    assert [result.params[name] for name in names] == pytest.approx(by_scipy["params"], abs=1e-5)
    assert [result.std_errors[name] for name in names] == pytest.approx(by_scipy["std_errors"], rel=1e-4)
    assert result.n_params == 3


def test_the_conditional_logit_is_exact(logit_frame: pd.DataFrame) -> None:
    result = MixedLogitModel(read(logit_frame), ["a", "b", "c"]).fit()
    assert (result.integration.rule, result.integration.error) == ("exact", 0.0)
    assert (result.simulation_sd, result.moments) == ({}, {})


# ---------------------------------------------------------------- the truth of simulations

TRUTHS: dict[str, tuple[dict[str, float], dict[str, Any]]] = {
    "scale heterogeneity": (
        {"a": -1.0, "b": 1.5, "c": 0.7, "tau": 0.7},
        {"fixed": ["a", "b", "c"], "scale_heterogeneity": True},
    ),
    "means by a covariate": (
        {"a": -0.5, "b.loc": 0.4, "b.loc:age": 0.6, "b.scale": 0.8, "c.loc": -0.5, "c.loc:age": 0.3, "c.scale": 0.5},
        {
            "fixed": ["a"],
            "random": {
                "b": Random("normal", mean_covariates=("age",)),
                "c": Random("lognormal", sign=-1, mean_covariates="age"),
            },
        },
    ),
    "a correlated block": (
        {
            "a": -0.5,
            "b.loc": 0.6,
            "c.loc": -0.4,
            "d.loc": 0.2,
            "d.scale": 0.5,
            "chol.b.b": 0.9,
            "chol.c.b": -0.7,
            "chol.c.c": 0.6,
        },
        {
            "fixed": ["a"],
            "random": {"b": "normal", "c": "normal", "d": "normal"},
            "correlated": [["b", "c"]],
        },
    ),
    "willingness to pay, random price": (
        {"a.loc": -0.3, "a.scale": 0.5, "b.loc": 0.8, "b.scale": 0.6, "c": -0.5},
        {"fixed": ["c"], "random": {"a": "-lognormal", "b": "normal"}, "wtp_space": "a"},
    ),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_the_truth_is_recovered(name: str) -> None:
    """By the Wald statistic of the truth: another seed than this would fail once in 10,000."""
    truth, model = TRUTHS[name]
    sim = simulate_choices(truth, **model, num_individuals=400, num_situations=8, num_alternatives=3, seed=11)
    result = MixedLogitModel(sim.data, **model).fit(num_redraws=0)
    assert result.converged, result.message
    assert list(result.params) == list(sim.params)
    miss = np.array([result.params[name] - truth[name] for name in result.params])
    wald = float(miss @ np.linalg.solve(result.cov.numpy(), miss))
    assert wald < scipy.stats.chi2.isf(1e-4, len(truth)), miss / np.sqrt(result.cov.diagonal().numpy())
    # and tightly enough that no heterogeneity is no candidate
    assert min(result.params[scale] / result.std_errors[scale] for scale in result.scales) > 3.0


def censored_loglik(x: np.ndarray, chosen: np.ndarray) -> Callable[[np.ndarray], float]:
    """Of (fixed, loc, scale), pairs (N, T, 2): the mass at 0, and Gauss and Legendre's rule above it."""
    points, weights = np.polynomial.legendre.leggauss(300)
    sign = np.where(chosen, 1.0, -1.0)

    def loglik(params: np.ndarray) -> float:
        fixed, loc, scale = params
        half = (max(loc, 0.0) + 9.0 * scale) / 2
        b = half * (points + 1)
        density = scipy.stats.norm.pdf(b, loc, scale)

        def likelihood(b: np.ndarray) -> np.ndarray:
            u = sign[..., None] * (fixed * x[..., 0, None] + b * x[..., 1, None])
            return scipy.special.expit(u).prod(1)

        inside = likelihood(b) @ (half * weights * density)
        return float(np.log(inside + scipy.stats.norm.cdf(-loc / scale) * likelihood(np.zeros(1))[:, 0]).sum())

    return loglik


@pytest.mark.parametrize(
    "rule", [None, QuasiMonteCarlo("sobol", 2048), ImportanceSampling(512)], ids=["default", "sobol", "importance"]
)
def test_a_censored_normal_against_the_exact_likelihood(rule: Any) -> None:
    """Its break at 0 counts in the curvature: without it standard errors would be half as large again."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(200, 5, 2))
    taste = np.maximum(0.0, 0.5 + rng.normal(size=200))
    chosen = -0.5 * x[..., 0] + taste[:, None] * x[..., 1] + rng.logistic(size=(200, 5)) > 0
    frame = pd.DataFrame(
        {
            "person": np.repeat(np.arange(200), 10),
            "situation": np.repeat(np.arange(1000), 2),
            "alternative": np.tile([0, 1], 1000),
            "choice": np.stack([~chosen, chosen], -1).ravel().astype(int),
            "c": np.stack([0 * x[..., 0], x[..., 0]], -1).ravel(),
            "a": np.stack([0 * x[..., 1], x[..., 1]], -1).ravel(),
        }
    )
    data = ChoiceData.from_long(
        frame, choice="choice", alternative="alternative", situation="situation", individual="person"
    )
    result = MixedLogitModel(data, ["c"], {"a": "censored_normal"}).fit(integration=rule)
    exact = censored_loglik(x, chosen)
    found = scipy.optimize.minimize(lambda p: -exact(p), list(result.params.values()), tol=1e-9)
    hessian = scipy.optimize.approx_fprime(found.x, lambda p: scipy.optimize.approx_fprime(p, exact, 1e-5), 1e-3)
    errors = np.sqrt(np.diag(np.linalg.inv(-(hessian + hessian.T) / 2)))
    assert result.converged, result.message
    off = np.abs(np.array(list(result.params.values())) - found.x) / errors
    # 512 nodes and 2048 draws integrate what breaks to a few thousandths; differences to 1 %
    assert off.max() < 0.03, off
    np.testing.assert_allclose(list(result.std_errors.values()), errors, rtol=0.03)
    assert result.loglik == pytest.approx(-found.fun, abs=0.02)
