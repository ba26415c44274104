from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

from mixlogit_align import MonteCarlo, Quadrature
from mixlogit_align.econometrics import CrossValidation, MixedLogitModel, cross_validate, simulate_choices
from mixlogit_align.errors import InvalidInputError
from tests.econometrics import brute
from tests.econometrics.given import softmax

FRAME = brute.choices(people=20)
PANEL = brute.read(FRAME)
LOGIT = MixedLogitModel(PANEL, ["a", "b"])


@cache
def found() -> CrossValidation:
    return cross_validate(LOGIT, 4, seed=1)


def test_each_individual_is_scored_at_the_estimates_of_the_others() -> None:
    """The tables cut by hand, the probabilities by numpy."""
    cv = found()
    expected = np.zeros(20)
    for f in range(4):
        out = {PANEL.individuals[n] for n in range(20) if cv.fold[n] == f}
        fit = MixedLogitModel(brute.read(FRAME[~FRAME["person"].isin(out)]), ["a", "b"]).fit()
        assert cv.fold_params[f] == pytest.approx(fit.params, rel=1e-9)
        p = softmax(PANEL, fit.params)[np.arange(PANEL.num_situations), PANEL.choice.numpy()]
        for n in range(20):
            if PANEL.individuals[n] in out:
                expected[n] = np.log(p[PANEL.individual.numpy() == n]).sum()
    np.testing.assert_allclose(cv.by_individual, expected, rtol=1e-9)
    assert cv.loglik == pytest.approx(float(PANEL.weights.numpy() @ expected), rel=1e-9)
    assert cv.converged == (True,) * 4


def test_folds_are_of_whole_individuals_and_equal() -> None:
    cv = cross_validate(LOGIT, 3, seed=1)
    assert sorted(torch.bincount(cv.fold).tolist()) == [6, 7, 7]
    assert not torch.equal(cv.fold, cross_validate(LOGIT, 3, seed=2).fold)


def test_the_standard_error_is_that_of_a_sum_over_individuals() -> None:
    """With whole frequencies: each individual as often as it stands for."""
    cv = found()
    doubled = 2.0 * PANEL.weights
    copies = np.repeat(cv.by_individual.numpy(), doubled.to(torch.int64).numpy())
    twice = replace(cv, weights=doubled)
    other = replace(cv, by_individual=torch.zeros(20, dtype=torch.float64), weights=doubled)
    assert twice.versus(other).std_error == pytest.approx(copies.std(ddof=1) * len(copies) ** 0.5, rel=1e-12)
    equal = cross_validate(MixedLogitModel(brute.read(FRAME, weighted=False), ["a", "b"]), 4, seed=1)
    assert equal.std_error == pytest.approx(equal.by_individual.numpy().std(ddof=1) * 20**0.5, rel=1e-12)
    assert equal.null_loglik == pytest.approx(-float(PANEL.available.sum(1).double().log().sum()), rel=1e-12)


def test_models_are_compared_pairwise() -> None:
    """scipy's paired test, but for the normal in place of Student's t."""
    data = brute.read(FRAME, weighted=False)
    first, second = (cross_validate(MixedLogitModel(data, names), 4, seed=1) for names in (["a", "b"], ["c"]))
    compared = first.versus(second)
    t = scipy.stats.ttest_rel(first.by_individual.numpy(), second.by_individual.numpy()).statistic
    assert compared.difference == pytest.approx(first.loglik - second.loglik)
    assert compared.z == pytest.approx(t, rel=1e-9)
    assert compared.pvalue == pytest.approx(2 * scipy.stats.norm.sf(abs(t)), rel=1e-9)
    assert "difference of out-of-sample log-likelihoods" in str(compared)
    assert np.isnan(first.versus(first).z)


def test_the_true_model_predicts_strangers_better() -> None:
    """Heterogeneity of 1.5 standard deviations over 6 choices each: 20 standard errors or so."""
    truth = {"a": 0.5, "b.loc": -0.5, "b.scale": 1.5}
    arguments = {"fixed": ["a"], "random": {"b": "normal"}}
    sim = simulate_choices(truth, **arguments, num_individuals=150, num_situations=6, seed=0)
    mixed = cross_validate(MixedLogitModel(sim.data, **arguments), 3, integration=Quadrature(24))
    plain = cross_validate(MixedLogitModel(sim.data, ["a", "b"]), 3)
    assert mixed.versus(plain).z > 4.0
    # no better than the truth knows: the difference to the truth's own likelihood is about one per parameter
    model = MixedLogitModel(sim.data, **arguments)
    assert mixed.loglik < float(model.loglik(truth).sum()) + 3.0


@pytest.mark.parametrize("family", ["lognormal", "gamma"])
def test_scalar_strengths_are_scored_by_their_distribution(family: str) -> None:
    sim = simulate_choices(dist.LogNormal(0.0, 0.8), num_individuals=60, num_situations=5, seed=3)
    model = MixedLogitModel(sim.data, random={"x": family})
    cv = cross_validate(model, 2)
    in_sample = model.fit(num_redraws=0)
    assert cv.converged == (True, True)
    assert in_sample.loglik - 15.0 < cv.loglik < in_sample.loglik


def test_a_start_gives_the_same_scores() -> None:
    start = LOGIT.fit().params
    again = cross_validate(LOGIT, 4, seed=1, start=start)
    torch.testing.assert_close(again.by_individual, found().by_individual, rtol=1e-6, atol=1e-7)


def test_table_and_frame() -> None:
    cv = found()
    frame = cv.to_frame()
    assert list(frame.index) == list(PANEL.individuals)
    assert frame.loc["p07", "loglik"] == float(cv.by_individual[7])
    assert frame.loc["p07", "fold"] == int(cv.fold[7])
    assert repr(cv) == cv.summary
    assert f"{cv.loglik:.7g}" in cv.summary


@pytest.mark.parametrize("num_folds", [1, 21, 2.0, True], ids=str)
def test_folds_that_cannot_be_are_refused(num_folds: object) -> None:
    with pytest.raises(InvalidInputError, match="num_folds"):
        cross_validate(LOGIT, num_folds)


@pytest.mark.parametrize("change", ["seed", "weights", "individuals", "nobs"])
def test_other_individuals_or_folds_are_not_compared(change: str) -> None:
    cv = found()
    others = {
        "seed": {"fold": cv.fold.roll(1)},
        "weights": {"weights": cv.weights + 1.0},
        "individuals": {"individuals": cv.individuals[::-1]},
        "nobs": {"nobs": cv.nobs + 1.0},
    }
    with pytest.raises(InvalidInputError, match="differences are paired"):
        cv.versus(replace(cv, **others[change]))


def test_draws_of_a_seed_serve_any_number_of_individuals() -> None:
    model = MixedLogitModel(PANEL, ["a"], {"b": "normal"})
    cv = cross_validate(model, 2, integration=MonteCarlo(64, seed=2), start={"b.scale": 0.5})
    assert bool(cv.by_individual.isfinite().all())
