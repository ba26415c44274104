from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats
import torch

from mixlogit_align import Quadrature
from mixlogit_align.econometrics import HeterogeneityTest, MixedLogitModel, mcfadden_train_test, simulate_choices
from mixlogit_align.errors import ConvergenceError, InvalidInputError
from tests.econometrics import brute
from tests.econometrics.given import softmax

PANEL = brute.read(brute.choices(people=30))
MODEL = MixedLogitModel(PANEL, ["a", "b"], {"c": "normal"})


def by_artificial_regression(variables: list[str], tested: list[str]) -> float:
    """Explained sum of squares of (y - p) / sqrt(p) on sqrt(p) (x - mean of x): the score test of a logit.

    The logit by scipy, the artificial variables by hand (McFadden and Train 2000; Davidson and MacKinnon's regression).
    """
    x = np.stack([PANEL.attribute(name).numpy() for name in variables], -1)
    offered, choice = PANEL.available.numpy(), PANEL.choice.numpy()
    weights = PANEL.weights[PANEL.individual].numpy()
    situation = np.arange(len(choice))

    def loss(beta: np.ndarray) -> float:
        p = softmax(PANEL, dict(zip(variables, beta, strict=True)))
        return -float(weights @ np.log(p[situation, choice]))

    beta = scipy.optimize.minimize(loss, np.zeros(len(variables)), method="BFGS", options={"gtol": 1e-9}).x
    p = softmax(PANEL, dict(zip(variables, beta, strict=True)))
    own = x[..., [variables.index(name) for name in tested]]
    centred = own - (p[..., None] * own).sum(1, keepdims=True)
    both = np.concatenate([x, centred**2 / 2], -1)
    both = both - (p[..., None] * both).sum(1, keepdims=True)
    root = np.sqrt(weights[:, None] * p)
    regressors = (root[..., None] * both)[offered]
    y = np.zeros_like(p)
    y[situation, choice] = 1.0
    response = (np.sqrt(weights)[:, None] * (y - p) / np.sqrt(np.where(offered, p, 1.0)))[offered]
    fitted = regressors @ np.linalg.lstsq(regressors, response, rcond=None)[0]
    return float(fitted @ fitted)


@pytest.mark.parametrize("tested", [["a", "b", "c"], ["c"], ["c", "a"]], ids=" ".join)
def test_the_statistic_is_that_of_an_artificial_regression(tested: list[str]) -> None:
    """BFGS leaves a gradient of 1e-6, and the statistic is second order in it."""
    found = mcfadden_train_test(MODEL, tested)
    expected = by_artificial_regression(["a", "b", "c"], tested)
    assert found.statistic == pytest.approx(expected, rel=1e-6)
    assert found.dof == len(tested)
    assert found.pvalue == pytest.approx(scipy.stats.chi2.sf(expected, len(tested)), rel=1e-5)
    single = {name: by_artificial_regression(["a", "b", "c"], [name]) for name in tested}
    assert found.statistics == pytest.approx(single, rel=1e-6)


def test_the_score_is_the_slope_of_the_mixed_loglik_in_a_variance() -> None:
    """The statistic's score against differences of the log-likelihood of a cross-section, by quadrature."""
    frame = brute.choices("cross-section", people=40)
    data = brute.read(frame)
    plain = MixedLogitModel(data, ["a", "b"])
    params = plain.fit().params
    mixed = MixedLogitModel(data, ["a"], {"b": "normal"})

    def loglik(variance: float) -> float:
        at = {"a": params["a"], "b.loc": params["b"], "b.scale": variance**0.5}
        return float(data.weights @ mixed.loglik(at, Quadrature(40)))

    h = 1e-4
    slope = (4.0 * loglik(h) - loglik(2.0 * h) - 3.0 * loglik(0.0)) / (2.0 * h)
    p = softmax(data, params)
    x = data.attribute("b").numpy()
    z = (x - (p * x).sum(1, keepdims=True)) ** 2 / 2
    score = data.weights.numpy() @ (z[np.arange(40), data.choice.numpy()] - (p * z).sum(1))
    # a one-sided difference of second order: errors of h^2 times the third derivative
    assert slope == pytest.approx(score, rel=1e-4)


def _tests(scale: float, count: int) -> list[HeterogeneityTest]:
    found = []
    for seed in range(count):
        truth = {"a": 0.5, "b.loc": -0.8, "b.scale": scale}
        sim = simulate_choices(
            truth, fixed=["a"], random={"b": "normal"}, num_individuals=300, num_alternatives=3, seed=seed
        )
        found.append(mcfadden_train_test(MixedLogitModel(sim.data, ["a", "b"])))
    return found


def test_p_values_are_uniform_without_heterogeneity_and_small_with() -> None:
    """60 and 20 data sets. Kolmogorov-Smirnov at 1e-4: one seed in 10,000; with an sd of 2, power is near 1."""
    without = [test.pvalue for test in _tests(0.0, 60)]
    assert scipy.stats.kstest(without, "uniform").pvalue > 1e-4
    assert np.median([test.pvalues["b"] for test in _tests(2.0, 20)]) < 0.01


def test_which_are_random_makes_no_difference() -> None:
    others = MixedLogitModel(PANEL, ["c"], {"a": "lognormal", "b": "uniform"}, scale_heterogeneity=True)
    assert mcfadden_train_test(others, ["c", "a"]).statistic == pytest.approx(
        mcfadden_train_test(MODEL, ["c", "a"]).statistic, rel=1e-6
    )


def test_frequencies_count_as_copies() -> None:
    frame = brute.choices(people=20).assign(frequency=1.0)
    copies = frame.assign(person=frame["person"] + "'", situation=frame["situation"] + "'")
    twice = frame.assign(frequency=2.0)
    tests = [
        mcfadden_train_test(MixedLogitModel(brute.read(table), ["a", "b"]))
        for table in (pd.concat([frame, copies]), twice)
    ]
    assert tests[0].statistic == pytest.approx(tests[1].statistic, rel=1e-9)
    assert tests[0].statistics == pytest.approx(tests[1].statistics, rel=1e-9)


def test_table() -> None:
    found = mcfadden_train_test(MODEL)
    frame = found.to_frame()
    assert list(frame.index) == ["a", "b", "c", "all"]
    assert frame.loc["c", "statistic"] == found.statistics["c"]
    assert frame.loc["all", "dof"] == 3
    assert repr(found) == found.summary


@pytest.mark.parametrize("variables", [["nothing"], []], ids=["unknown", "none"])
def test_variables_without_a_coefficient_are_refused(variables: list[str]) -> None:
    with pytest.raises(InvalidInputError, match="variables"):
        mcfadden_train_test(MODEL, variables)


def test_artificial_variables_that_go_together_are_refused_by_name() -> None:
    """In pairs, squares of an attribute and of twice of it are proportional; so are those of two values with signs."""
    sim = simulate_choices({"x": 0.5}, fixed=["x"], num_individuals=200, seed=0)
    x = sim.data.attribute("x")
    sign = torch.where(torch.arange(200)[:, None] % 2 == 0, 1.0, -1.0)
    data = replace(sim.data, variables=("x", "y"), attributes=torch.stack([x, sign * x], -1))
    with pytest.raises(InvalidInputError, match=r"\['x', 'y'\], whose artificial variables"):
        mcfadden_train_test(MixedLogitModel(data, ["x", "y"]))


def test_choices_that_an_attribute_separates_are_refused() -> None:
    frame = brute.choices("cross-section", people=30)
    with pytest.raises(ConvergenceError, match="separate"):
        mcfadden_train_test(MixedLogitModel(brute.read(frame.assign(a=1.0 * frame["chosen"])), ["a", "b"]))
