"""Recovery studies: their statistics, that they resume, what they record, and a small one that finds a known bias."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from joblib._parallel_backends import ThreadingBackend
from scipy.optimize import brentq

from mixlogit_align import ImportanceSampling, MonteCarlo, Quadrature, QuasiMonteCarlo, cli
from mixlogit_align.econometrics import (
    MixedLogitModel,
    MixedLogitResult,
    Random,
    RecoveryStudy,
    recovery_study,
    simulate_choices,
)
from mixlogit_align.econometrics.description import describe
from mixlogit_align.econometrics.recovery_statistics import Chance, Recovery, Share
from mixlogit_align.econometrics.study import StudyDesign
from mixlogit_align.econometrics.study_folder import Replication, StudyFolder
from mixlogit_align.errors import ConvergenceError, ConvergenceWarning, InvalidInputError

Run = Callable[[str], tuple[int, str, str]]
# A conditional logit: its fit takes milliseconds.
QUICK: dict[str, Any] = {"truth": {"x": 0.5}, "fixed": ["x"], "num_individuals": 40, "num_replications": 5}
STRENGTH: dict[str, Any] = {"num_individuals": 40, "num_situations": 3, "num_replications": 3}


def patch_fit(monkeypatch: pytest.MonkeyPatch, fit: Callable[..., MixedLogitResult]) -> None:
    """Replace the fit by another function with the same options."""
    monkeypatch.setattr(MixedLogitModel, "fit", functools.wraps(MixedLogitModel.fit)(fit))


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


def quick(**changes: Any) -> RecoveryStudy:
    return recovery_study(**{**QUICK, **changes})


def found(study: RecoveryStudy) -> list[tuple[int, int, float | None, dict[str, Any]]]:
    """What replications found: all that does not depend on the clock."""
    return [(each.number, each.seed, each.loglik, dict(each.quantities)) for each in study.replications]


# ---------------------------------------------------------------------- statistics


def test_statistics_are_those_of_the_textbook() -> None:
    rng = np.random.default_rng(1)
    truth, error = np.full(50, 2.0), rng.uniform(0.4, 0.9, 50)
    estimate = 2.2 + rng.standard_t(5, 50)
    one = Recovery.of(truth, estimate, error, 0.9)
    gap = estimate - truth
    assert one.bias == pytest.approx(gap.mean())
    assert one.bias_error == pytest.approx(np.std(estimate, ddof=1) / np.sqrt(50))
    assert one.bias_z == pytest.approx(one.bias / one.bias_error)
    assert one.rmse == pytest.approx(np.sqrt((gap**2).mean()))
    # 1.6448536 is the 95 % point of the standard normal
    assert one.coverage == Share(int((np.abs(gap) <= 1.6448536269514722 * error).sum()), 50)
    assert one.se_ratio == pytest.approx(error.mean() / np.std(estimate, ddof=1))
    keep = [np.delete(np.arange(50), i) for i in range(50)]
    jackknife = {
        "rmse_error": [np.sqrt((gap[k] ** 2).mean()) for k in keep],
        "se_ratio_error": [error[k].mean() / np.std(estimate[k], ddof=1) for k in keep],
    }
    expected = {name: np.sqrt(49 * np.var(values)) for name, values in jackknife.items()}
    assert {name: getattr(one, name) for name in expected} == pytest.approx(expected)


def test_monte_carlo_errors_agree_with_their_formulas() -> None:
    """Morris, White and Crowther (2019), table 6, for normal estimates: the jackknife within 10 % over 4,000."""
    rng, n, sd, bias = np.random.default_rng(2), 4000, 0.7, 0.5
    estimate, error = rng.normal(bias, sd, n), rng.uniform(0.6, 0.8, n)
    one = Recovery.of(np.zeros(n), estimate, error, 0.95)
    mse = sd**2 + bias**2
    of_mse = math.sqrt((2 * sd**4 + 4 * bias**2 * sd**2) / n)
    assert one.rmse_error == pytest.approx(of_mse / (2 * math.sqrt(mse)), rel=0.1)
    of_ratio = 0.7 / sd * math.sqrt(1 / (2 * (n - 1)) + (0.2**2 / 12) / 0.7**2 / n)
    assert one.se_ratio_error == pytest.approx(of_ratio, rel=0.1)


@pytest.mark.parametrize("count", [0, 3, 19, 20])
def test_the_interval_of_a_share_is_wilsons(count: int) -> None:
    """The shares whose standard error, 1.959964 times, reaches the one that was seen."""

    def reach(share: float) -> float:
        return (share - count / 20) ** 2 - 1.959963984540054**2 * share * (1 - share) / 20

    middle = min(max(count / 20, 1e-6), 1 - 1e-6)
    low = brentq(reach, 0.0, middle) if count else 0.0
    high = brentq(reach, middle, 1.0) if count < 20 else 1.0
    assert Share(count, 20).interval() == pytest.approx((low, high), abs=1e-9)
    assert Share(count, 20).error == pytest.approx((high - low) / 2 / 1.959963984540054, abs=1e-9)


def test_the_error_of_a_share_is_the_binomial_one() -> None:
    """Wilson's is smaller by a factor 1 + O(1 / R), of 2,000 here."""
    assert Share(1500, 2000).error == pytest.approx(math.sqrt(0.75 * 0.25 / 2000), rel=2e-3)


def test_bands_leave_out_no_more_than_they_may() -> None:
    band = Chance.of(200, 7, 0.95, 0.01)
    low, high = round(200 * band.lowest), round(200 * band.highest)
    mass = [math.comb(200, k) * 0.95**k * 0.05 ** (200 - k) for k in range(201)]
    tail = 0.01 / 14
    assert sum(mass[:low]) <= tail < sum(mass[: low + 1])
    assert sum(mass[high + 1 :]) <= tail < sum(mass[high:])
    # Student's t with 2 degrees of freedom has a closed form: P(T > t) = 1/2 - t / (2 sqrt(2 + t^2))
    z = Chance.of(3, 1, 0.95, 0.1).z
    assert 0.5 - z / (2 * math.sqrt(2 + z * z)) == pytest.approx(0.05)


def test_an_estimate_without_a_standard_error_does_not_cover() -> None:
    nan = math.nan
    one = Recovery.of(np.ones(4), np.array([1.0, 1.1, 0.9, 0.0]), np.array([0.5, 0.5, 0.5, nan]), 0.95)
    assert one.coverage == Share(3, 4)
    assert one.std_error == 0.5
    assert one.se_ratio == pytest.approx(0.5 / np.std([1.0, 1.1, 0.9], ddof=1))


@pytest.mark.parametrize("total", [0, 1, 2])
def test_too_few_replications_have_no_monte_carlo_error(total: int) -> None:
    one = Recovery.of(np.zeros(total), np.arange(total) + 1.0, np.ones(total), 0.95)
    unknown = (one.sd, one.bias_error, one.bias_z, one.rmse, one.rmse_error, one.se_ratio, one.se_ratio_error)
    assert [math.isnan(value) for value in unknown] == [True] * 7
    assert math.isnan(one.bias) == (total == 0)


# ---------------------------------------------------------------------- a small study


@pytest.fixture(scope="module")
def small() -> Callable[[dict[str, Any], int], RecoveryStudy]:
    def run(fit: dict[str, Any], num_replications: int) -> RecoveryStudy:
        return recovery_study(
            {"p": -1.0, "t.loc": 0.5, "t.scale": 1.0},
            fixed=["p"],
            random={"t": "normal"},
            num_individuals=150,
            num_situations=6,
            num_replications=num_replications,
            fit=fit,
        )

    return run


def test_the_default_rule_recovers_the_truth(small: Callable[[dict[str, Any], int], RecoveryStudy]) -> None:
    """By chance outside in 1 of 10,000 studies, if estimates were normal with the standard errors reported."""
    study = small({}, 20)
    assert len(study.converged) == 20
    assert study.judged == ("p", "t.loc", "t.scale", "t.mean", "t.sd")
    assert study.beyond_chance(familywise=1e-4) == {}
    ratio = {name: (one.se_ratio - 1.0) / one.se_ratio_error for name, one in study.statistics.items()}
    # the jackknife of 20 values: 6 errors is beyond what chance does once in 10,000
    assert {name: z for name, z in ratio.items() if abs(z) > 6.0} == {}


def test_few_draws_leave_a_bias(small: Callable[[dict[str, Any], int], RecoveryStudy]) -> None:
    """Four draws: the scale is too small by more than two standard deviations of its estimates; t > 4 in 12 of them."""
    study = small({"integration": MonteCarlo(4)}, 12)
    assert study.statistics["t.scale"].bias_z < -4.0
    assert study.statistics["p"].bias_z > 4.0
    assert study.statistics["t.scale"].coverage.value < 0.8


# ---------------------------------------------------------------------- which numbers


def test_a_replication_is_the_fit_of_its_simulated_choices() -> None:
    study = recovery_study(
        {"x.loc": 0.3, "x.scale": 0.7}, random={"x": "lognormal"}, seed=3, fit={"cov_type": "robust"}, **STRENGTH
    )
    one = study.replications[2]
    data = simulate_choices(
        {"x.loc": 0.3, "x.scale": 0.7}, random={"x": "lognormal"}, num_individuals=40, num_situations=3, seed=one.seed
    ).data
    result = MixedLogitModel(data, random={"x": "lognormal"}).fit(cov_type="robust")
    assert {name: values.estimate for name, values in one.quantities.items()} == result.params | result.moments
    errors = result.std_errors | result.moment_std_errors
    assert {name: values.std_error for name, values in one.quantities.items()} == errors
    assert one.loglik == result.loglik
    assert one.pvalue == result.likelihood_ratio_test().pvalue
    # of a lognormal: exp(loc + scale^2 / 2) and that times sqrt(exp(scale^2) - 1)
    mean = math.exp(0.3 + 0.245)
    truth = {"x.loc": 0.3, "x.scale": 0.7, "x.mean": mean, "x.sd": mean * math.sqrt(math.expm1(0.49))}
    assert {name: values.truth for name, values in one.quantities.items()} == pytest.approx(truth)


def test_the_truth_of_a_mean_that_depends_on_covariates_is_that_of_the_data() -> None:
    truth = {"x.loc": 0.2, "x.loc:z": 0.5, "x.scale": 0.4}
    random = {"x": Random("lognormal", mean_covariates="z")}
    study = recovery_study(truth, random=random, **(STRENGTH | {"num_replications": 1}))
    (one,) = study.replications
    data = simulate_choices(truth, random=random, num_individuals=40, num_situations=3, seed=one.seed).data
    expected = math.exp(0.2 + 0.5 * float(data.covariate("z").mean()) + 0.08)
    assert one.quantities["x.mean"].truth == pytest.approx(expected)


def test_a_distribution_is_held_against_the_moments_of_another_family() -> None:
    two = dist.Gamma(f64(2.0, 3.0).repeat(20), f64(1.5))  # of two kinds of individuals
    study = recovery_study(two, random={"x": "lognormal"}, **STRENGTH)
    quantities = study.replications[0].quantities
    means, variances = [2 / 1.5, 3 / 1.5], [2 / 2.25, 3 / 2.25]
    sd = math.sqrt(np.mean(variances) + np.var(means))
    assert (quantities["x.mean"].truth, quantities["x.sd"].truth) == pytest.approx((np.mean(means), sd))
    assert math.isnan(quantities["x.loc"].truth)
    assert study.judged == ("x.mean", "x.sd")


def test_attributes_and_panels_that_are_given_stay() -> None:
    data = simulate_choices({"x": 0.5}, fixed=["x"], num_individuals=30, num_situations=2, seed=1).data
    study = recovery_study({"x": 0.5}, fixed=["x"], data=data, num_replications=2)
    again = [simulate_choices({"x": 0.5}, fixed=["x"], data=data, seed=each.seed).data for each in study.replications]
    fits = [MixedLogitModel(each, ["x"]).fit().params["x"] for each in again]
    assert [each.quantities["x"].estimate for each in study.replications] == fits
    assert "30 individuals, 60 situations in all" in study.summary


def test_seeds_give_other_data_and_the_same_ones_again() -> None:
    first, again, other = (found(quick(seed=seed)) for seed in (0, 0, 1))
    assert first == again
    seeds = [each[1] for each in first + other]
    assert len(set(seeds)) == 10
    assert min(seeds) >= 0


@pytest.mark.parametrize(
    ("rule", "used"),
    [
        (None, [None, None]),
        (Quadrature(20), [Quadrature(20), Quadrature(20)]),
        (MonteCarlo(8, seed=5), [MonteCarlo(8, seed=5), MonteCarlo(8, seed=6)]),
        (QuasiMonteCarlo("sobol", 8), [QuasiMonteCarlo("sobol", 8, seed=0), QuasiMonteCarlo("sobol", 8, seed=1)]),
        (QuasiMonteCarlo("halton", 8, None), [QuasiMonteCarlo("halton", 8, None)] * 2),
        (ImportanceSampling(8, seed=2), [ImportanceSampling(8, seed=2), ImportanceSampling(8, seed=3)]),
    ],
    ids=["default", "quadrature", "pseudo", "sobol", "plain halton", "importance"],
)
def test_draws_are_made_anew_where_they_are_random(rule: Any, used: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen, fitted = [], MixedLogitModel.fit

    def fit(self: MixedLogitModel, **options: Any) -> MixedLogitResult:
        seen.append(options.pop("integration"))
        return fitted(self, **options)

    patch_fit(monkeypatch, fit)
    design = StudyDesign(
        truth=QUICK["truth"],
        specification=MixedLogitModel(_data(), ["x"]).specification,
        sizes={"data": _data()},
        fit={"integration": rule, "num_redraws": 0, "hold": None},
        seed=0,
    )
    assert [design.replicate(i).failure for i in range(2)] == [None, None]
    assert seen == used


def _data() -> Any:
    return simulate_choices({"x": 0.5}, fixed=["x"], num_individuals=30, seed=1).data


def test_what_is_held_is_not_estimated_and_what_ends_at_a_bound_has_no_error() -> None:
    truth = {"a": 1.0, "b": -1.0, "c": 0.5}
    study = recovery_study(
        truth,
        fixed=["a", "b", "c"],
        num_individuals=200,
        num_replications=3,
        fit={"hold": {"a": 1.0}, "bounds": {"b": (-10.0, -3.0)}},
    )
    assert list(study.statistics) == ["b", "c"]
    one = study.statistics["b"]
    assert (one.estimate, one.coverage, one.se_ratio) == (-3.0, Share(0, 3), pytest.approx(math.nan, nan_ok=True))
    assert study.statistics["c"].coverage.total == 3


# ---------------------------------------------------------------------- no heterogeneity


@pytest.mark.parametrize(
    ("truth", "family", "zero"),
    [
        ({"x.loc": 0.0, "x.scale": 0.0}, "lognormal", ["x.scale", "x.sd"]),
        (dist.Delta(f64(1.0)), "gamma", ["x.concentration", "x.rate", "x.sd"]),
    ],
    ids=["lognormal", "gamma"],
)
def test_without_heterogeneity_the_fixed_strength_is_judged(truth: Any, family: str, zero: list[str]) -> None:
    study = recovery_study(truth, random={"x": family}, seed=1, **STRENGTH)
    assert study.settings["zero_spreads"] == zero
    assert study.judged == ("fixed strength",)
    fixed = study.statistics["fixed strength"]
    assert (fixed.truth, fixed.coverage.total) == (1.0, 3)
    assert study.at_boundary.count > 0
    assert study.rejections is not None
    assert study.rejections.total == 3
    blank = study.to_frame().loc[zero, ["coverage", "coverage_error", "coverage_lower", "se_ratio", "std_error"]]
    assert blank.isna().all().all()
    assert "the truth has no heterogeneity" in study.summary
    assert "one strength for all is rejected at 0.05" in study.summary
    assert len(study.plot().axes) == 3


def test_a_block_without_spread_is_told() -> None:
    truth = {"a.loc": 0.5, "b.loc": 0.5, "chol.a.a": 0.8, "chol.b.a": 0.4, "chol.b.b": 0.0}
    study = recovery_study(
        truth,
        random={"a": "normal", "b": "normal"},
        correlated=True,
        num_individuals=60,
        num_situations=4,
        num_replications=1,
    )
    assert study.settings["zero_spreads"] == ["chol.b.b"]
    assert study.judged == ()
    assert study.rejections is None


# ---------------------------------------------------------------------- failures


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, Any]], None]:
    """Make replications fail, by their number: an error, or a message of what did not converge."""

    def install(what: dict[int, Any]) -> None:
        replicate, fitted = StudyDesign.replicate, MixedLogitModel.fit
        now: list[int] = []

        def number(self: StudyDesign, number: int) -> Replication:
            now[:] = [number]
            return replicate(self, number)

        def fit(self: MixedLogitModel, **options: Any) -> MixedLogitResult:
            outcome = what.get(now[0])
            if isinstance(outcome, BaseException):
                raise outcome
            result = fitted(self, **options)
            if outcome is None:
                return result
            warnings.warn(outcome, ConvergenceWarning, stacklevel=2)
            return replace(result, converged=False, message=outcome)

        monkeypatch.setattr(StudyDesign, "replicate", number)
        patch_fit(monkeypatch, fit)

    return install


def test_failures_are_recorded_and_counted(failing: Callable[[dict[int, Any]], None], tmp_path: Path) -> None:
    failing({0: ConvergenceError("nowhere"), 2: "flat", 4: RuntimeError("singular"), 5: ValueError("?")})
    with pytest.raises(ValueError, match=r"^\?$"):  # no failure of an estimation: a fault, which is not hidden
        quick(num_replications=6, out=tmp_path)
    failing({5: InvalidInputError("one value")})  # of the data, as others could be estimated
    study = quick(num_replications=6, out=tmp_path)
    assert study.failures == {
        0: "ConvergenceError: nowhere",
        4: "RuntimeError: singular",
        5: "InvalidInputError: one value",
    }
    assert study.not_converged == {2: "flat"}
    assert [each.number for each in study.converged] == [1, 3]
    assert study.statistics["x"].total == 2
    assert "6 replications: 2 converged, 1 did not, 3 failed" in study.summary
    assert "failed, replication 0: ConvergenceError: nowhere" in study.summary
    assert "not converged, replication 2: flat" in study.summary
    frame = study.estimates()
    assert frame["replication"].tolist() == [1, 2, 3]
    assert frame["converged"].tolist() == [True, False, True]
    assert found(RecoveryStudy.load(tmp_path)) == found(study)


def test_progress_counts_what_was_done_before_and_what_failed(
    failing: Callable[[dict[int, Any]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing({4: ConvergenceError("nowhere")})
    quick(num_replications=3, out=tmp_path)
    assert capsys.readouterr().out == ""
    quick(out=tmp_path, progress=True)
    shown = capsys.readouterr().out
    assert "5/5" in shown
    assert "(1 without estimates)" in shown


def test_no_replication_converged(failing: Callable[[dict[int, Any]], None]) -> None:
    failing(dict.fromkeys(range(5), ConvergenceError("nowhere")))
    study = quick()
    assert (study.statistics, study.judged, study.beyond_chance()) == ({}, (), {})
    assert "5 replications: 0 converged, 0 did not, 5 failed" in study.summary
    assert study.to_frame().empty
    assert len(study.plot().axes) == 3


def test_a_likelihood_ratio_that_draws_forbid_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def test(self: MixedLogitResult) -> Any:
        raise ConvergenceError("less likely")

    monkeypatch.setattr(MixedLogitResult, "likelihood_ratio_test", test)
    study = recovery_study({"x.loc": 0.0, "x.scale": 0.5}, random={"x": "lognormal"}, **STRENGTH)
    assert (len(study.converged), study.rejections) == (3, None)
    assert "3 warnings; replication 0: no likelihood-ratio test: less likely" in study.summary


def test_warnings_of_replications_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = MixedLogitModel.fit

    def fit(self: MixedLogitModel, **options: Any) -> MixedLogitResult:
        warnings.warn("coarse", UserWarning, stacklevel=2)
        return fitted(self, **options)

    patch_fit(monkeypatch, fit)
    assert "5 warnings; replication 0: coarse" in quick().summary


MISUSE: list[tuple[dict[str, Any], str]] = [
    ({"num_replications": 0}, "num_replications: got 0"),
    ({"num_replications": True}, "num_replications: got True"),
    ({"n_jobs": 0}, "n_jobs: got 0"),
    ({"seed": -1}, "seed: got -1"),
    ({"level": 1.0}, "level: got 1.0"),
    ({"fit": {"draws": 5}}, r"fit: got \['draws'\]; expected some of \['integration'"),
    ({"fit": {"progress": True}}, "progress= of the study"),
    ({"fit": {"num_starts": 0}}, "^num_starts: got 0"),
    ({"fit": {"hold": {"y": 1.0}}}, "^hold: got"),
    ({"fit": {"cov_type": "sandwich"}}, "cov_type: got 'sandwich'"),
    ({"truth": {}}, r"truth: got no \['x'\]"),
    ({"fixed": []}, "coefficients: got no coefficient"),
    ({"truth": dist.Gamma(2.0, 1.0)}, "model: got x; expected one random coefficient"),
    ({"num_individuals": None}, "num_individuals: got None"),
    ({"num_individuals": 0}, "num_individuals: got 0"),
    ({"attributes": {"y": dist.Normal(0.0, 1.0)}}, r"attributes: got \['y'\]"),
    ({"attributes": {"x": dist.Delta(f64(1.0))}}, "attribute 'x': got one value"),
]


@pytest.mark.parametrize(("changes", "says"), MISUSE, ids=[says for _, says in MISUSE])
def test_misuse_is_told_before_anything_is_kept(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=says):
        quick(out=tmp_path / "study", **changes)
    # the folder is free for the call as it was meant
    assert len(quick(out=tmp_path / "study").converged) == 5


@pytest.mark.parametrize(
    "truth",
    [
        dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.AbsTransform()]),
        dist.HalfCauchy(1.0),
        dist.Pareto(1.0, 2.0),
    ],
    ids=["unknown", "none", "infinite"],
)
def test_a_truth_without_moments_is_refused(truth: dist.TorchDistribution) -> None:
    with pytest.raises(InvalidInputError, match="without moments"):
        recovery_study(truth, random={"x": "lognormal"}, **STRENGTH)


# ---------------------------------------------------------------------- the folder


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the replications that are run."""
    ran: list[int] = []
    replicate = StudyDesign.replicate

    def record(self: StudyDesign, number: int) -> Replication:
        ran.append(number)
        return replicate(self, number)

    monkeypatch.setattr(StudyDesign, "replicate", record)
    return ran


def test_a_study_continues_and_runs_nothing_twice(numbers: list[int], tmp_path: Path) -> None:
    whole = quick(num_replications=8)
    del numbers[:]
    first = quick(num_replications=3, out=tmp_path)
    again = quick(num_replications=3, out=tmp_path)
    more = quick(num_replications=8, out=tmp_path)
    fewer = quick(num_replications=2, out=tmp_path)
    assert numbers == list(range(8))
    assert [found(each) for each in (first, again, more, fewer)] == [
        found(whole)[:3], found(whole)[:3], found(whole), found(whole)[:2]
    ]  # fmt: skip
    loaded = RecoveryStudy.load(tmp_path)
    assert loaded.summary == more.summary
    assert RecoveryStudy.load(tmp_path, level=0.5).statistics["x"].coverage.count < 8


def test_an_interrupted_study_keeps_what_was_done(
    numbers: list[int], failing: Callable[[dict[int, Any]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as now:
        fitted = MixedLogitModel.fit

        def fit(self: MixedLogitModel, **options: Any) -> MixedLogitResult:
            if len(numbers) == 3:
                raise KeyboardInterrupt
            return fitted(self, **options)

        patch_fit(now, fit)
        with pytest.raises(KeyboardInterrupt):
            quick(out=tmp_path)
    assert numbers == [0, 1, 2]
    assert found(quick(out=tmp_path)) == found(quick())
    assert numbers[3:6] == [2, 3, 4]


ENDLESS = """
import sys
from mixlogit_align.econometrics import recovery_study
recovery_study({"x": 0.5}, fixed=["x"], num_individuals=40, num_replications=10**6, out=sys.argv[1])
"""


def test_a_killed_study_continues_where_it_was(numbers: list[int], tmp_path: Path) -> None:
    """Killed without warning at some point after 5 replications; then 4 more than it had done are asked for."""
    lines = tmp_path / "replications.jsonl"
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)])
    try:
        deadline = time.monotonic() + 120.0
        while time.monotonic() < deadline and not (lines.exists() and lines.read_bytes().count(b"\n") >= 5):
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    before = lines.read_bytes()
    kept = before.count(b"\n")
    assert kept >= 5
    study = quick(num_replications=kept + 4, out=tmp_path)
    assert numbers == list(range(kept, kept + 4))
    whole = before[: before.rfind(b"\n") + 1]
    assert lines.read_bytes().startswith(whole)
    assert found(study) == found(quick(num_replications=kept + 4))


def test_a_line_that_was_cut_short_is_run_again(numbers: list[int], tmp_path: Path) -> None:
    whole = quick(out=tmp_path)
    path = tmp_path / "replications.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert len(RecoveryStudy.load(tmp_path).replications) == 4
    assert found(quick(out=tmp_path)) == found(whole)
    assert numbers == [0, 1, 2, 3, 4, 4]
    assert path.read_bytes().count(b"\n") == 5


OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("seed 0 there, 1 here", {"seed": 1}),
    ("truth.x 0.5 there, 0.4 here", {"truth": {"x": 0.4}}),
    ("design.num_individuals 40 there, 41 here", {"num_individuals": 41}),
    ("fit.cov_type 'hessian' there, 'robust' here", {"fit": {"cov_type": "robust"}}),
    ("design.attributes None there", {"attributes": {"x": dist.Normal(f64(0.0), 2.0)}}),
    ("and .* more", {"truth": {"y": 0.5}, "fixed": ["y"]}),
]


@pytest.mark.parametrize(("says", "changes"), OTHERS, ids=[says for says, _ in OTHERS])
def test_another_study_is_refused_by_name(says: str, changes: dict[str, Any], tmp_path: Path) -> None:
    quick(out=tmp_path)
    before = (tmp_path / "replications.jsonl").read_bytes()
    with pytest.raises(InvalidInputError, match=f"another study, with 5 replications: .*{says}"):
        quick(out=tmp_path, **changes)
    assert (tmp_path / "replications.jsonl").read_bytes() == before


def test_a_study_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(out=tmp_path)
    monkeypatch.setattr("mixlogit_align.econometrics.study.__version__", "99")
    with pytest.raises(InvalidInputError, match=r"versions.mixlogit_align '.*' there, '99' here"):
        quick(out=tmp_path)


def test_a_folder_serves_one_process_at_a_time(tmp_path: Path) -> None:
    with StudyFolder(tmp_path, {}), pytest.raises(InvalidInputError, match="another process is running"):
        quick(out=tmp_path)
    assert len(quick(out=tmp_path).converged) == 5


def _twice(path: Path) -> None:
    lines = path.read_bytes()
    path.write_bytes(lines + lines)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "line 2, which cannot be read": lambda path: (path / "replications.jsonl").write_bytes(b'{"number"\n' * 2),
    "line 6: replication 0 again": lambda path: _twice(path / "replications.jsonl"),
    "study.json: ": lambda path: (path / "study.json").unlink(),
    "study.json, which was changed": lambda path: (path / "study.json").write_text(
        (path / "study.json").read_text().replace('"seed": 0', '"seed": 1')
    ),
}


@pytest.mark.parametrize("says", DAMAGES)
def test_a_damaged_folder_is_told(says: str, tmp_path: Path) -> None:
    quick(out=tmp_path)
    DAMAGES[says](tmp_path)
    says = says.replace("line 2", "line 1")
    with pytest.raises(InvalidInputError, match=says):
        quick(out=tmp_path)
    with pytest.raises(InvalidInputError, match=says):
        RecoveryStudy.load(tmp_path)


def test_no_study_to_load(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="got no study"):
        RecoveryStudy.load(tmp_path)


# ---------------------------------------------------------------------- what settings tell apart


def _asked() -> dist.Distribution:
    """A distribution whose logits were looked at, which makes and keeps them."""
    coin = dist.Bernoulli(f64(0.25))
    assert float(coin.logits) < 0.0
    return coin


def _mixture(share: float) -> dist.Distribution:
    kinds = dist.Normal(f64(0.0, 1.0), f64(1.0))
    return dist.MixtureSameFamily(dist.Categorical(f64(share, 1.0 - share)), kinds)


SAME: dict[str, Callable[[], Any]] = {
    "normal": lambda: dist.Normal(f64(0.0), f64(1.0)),
    "another normal": lambda: dist.Normal(f64(0.0), f64(1.1)),
    "lognormal": lambda: dist.LogNormal(f64(0.0), f64(1.0)),
    "coin": _asked,
    "another coin": lambda: dist.Bernoulli(f64(0.3)),
    "mixture": lambda: _mixture(0.3),
    "another mixture": lambda: _mixture(0.4),
    "transformed": lambda: dist.TransformedDistribution(
        dist.Normal(f64(0.0), f64(1.0)), [dist.transforms.AffineTransform(1.0, 2.0)]
    ),
    "transformed otherwise": lambda: dist.TransformedDistribution(
        dist.Normal(f64(0.0), f64(1.0)), [dist.transforms.AffineTransform(1.0, 3.0)]
    ),
    "many": lambda: torch.arange(40.0),
    "many others": lambda: torch.arange(40.0) + 1.0,
    "data": _data,
    "coefficient": lambda: Random("johnson_sb", bounds=(0.0, 2.0)),
    "rule": lambda: MonteCarlo(8),
}


@pytest.mark.parametrize("name", SAME)
def test_descriptions_are_equal_for_equals_and_for_no_others(name: str) -> None:
    texts = {key: json.dumps(describe(key, make())) for key, make in SAME.items()}
    assert [key for key, text in texts.items() if text == json.dumps(describe(name, SAME[name]()))] == [name]


def test_a_coin_is_the_same_whether_its_logits_were_asked_for() -> None:
    assert describe("", _asked()) == describe("", dist.Bernoulli(f64(0.25)))


@pytest.mark.parametrize("value", [object(), {"a": object()}], ids=["object", "inside"])
def test_what_cannot_be_described_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInputError, match="got <object"):
        describe("attributes", value)


# ---------------------------------------------------------------------- workers


class Lists(ThreadingBackend):
    """Hands back lists only, as ray's backend does."""

    supports_return_generator = False


@pytest.fixture
def backends() -> Iterator[Callable[[str], Any]]:
    joblib.register_parallel_backend("lists", Lists)
    yield lambda name: joblib.parallel_config(backend=name, n_jobs=2)
    del joblib.parallel.BACKENDS["lists"]


@pytest.mark.parametrize("name", ["loky", "threading", "lists"])
def test_results_are_the_same_whoever_does_the_work(name: str, backends: Callable[[str], Any], tmp_path: Path) -> None:
    with backends(name):
        study = quick(num_replications=8, out=tmp_path)
    assert found(study) == found(quick(num_replications=8))
    assert found(RecoveryStudy.load(tmp_path)) == found(study)


def test_work_that_was_begun_is_given_up_without_a_word(backends: Callable[[str], Any]) -> None:
    with backends("threading"), pytest.raises(InvalidInputError, match=r"^num_starts: got 0"):
        quick(num_replications=50, fit={"num_starts": 0})


def test_dask_does_the_work(tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    cluster = LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None)
    with cluster, Client(cluster), joblib.parallel_config(backend="dask"):
        study = quick(num_replications=8, out=tmp_path)
    assert found(study) == found(quick(num_replications=8))


def test_a_worker_has_one_thread_and_the_caller_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, fitted, before = [], MixedLogitModel.fit, torch.get_num_threads()

    def fit(self: MixedLogitModel, **options: Any) -> MixedLogitResult:
        seen.append(torch.get_num_threads())
        return fitted(self, **options)

    patch_fit(monkeypatch, fit)
    torch.set_num_threads(2)
    try:
        quick()
        assert seen == [1] * 5
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------------- for reading


def test_tables_and_plots_say_the_same() -> None:
    study = quick(num_replications=12)
    frame = study.to_frame()
    one = study.statistics["x"]
    assert list(frame.index) == ["x"]
    assert frame.loc["x", ["bias", "rmse", "coverage", "se_ratio", "replications"]].tolist() == [
        one.bias, one.rmse, one.coverage.value, one.se_ratio, 12.0
    ]  # fmt: skip
    row = next(line for line in study.summary.splitlines() if line.startswith("x "))
    assert f"{one.bias:.2g} ({one.bias_error:.2g})" in row
    assert f"{one.coverage.value:.3f}" in row
    assert '<th style="text-align:left">x</th>' in study.summary.as_html()
    assert study.summary.as_latex().startswith(r"\begin{tabular}")
    assert repr(study) == study.summary
    bias, coverage, _ = study.plot().axes
    assert [text.get_text() for text in bias.get_yticklabels()] == ["x"]
    dots = [line.get_xdata()[0] for line in coverage.lines if line.get_marker() == "o"]
    assert dots == [one.coverage.value]


def test_what_is_beyond_chance_is_starred() -> None:
    study = quick(num_replications=30)
    wrong = tuple(
        replace(each, quantities={name: v._replace(truth=v.truth + 2.0, std_error=0.01) for name, v in q.items()})
        for each in study.replications
        for q in [each.quantities]
    )
    shifted = RecoveryStudy(study.settings, wrong)
    assert shifted.beyond_chance() == {"x": ["bias", "coverage"]}
    row = next(line for line in shifted.summary.splitlines() if line.startswith("x "))
    assert row.count("*") == 2
    assert "* beyond chance: 1% familywise over 1 quantities" in shifted.summary


# ---------------------------------------------------------------------- the command

COMMAND = "study --fixed x=0.5 --individuals 40 --situations 2 --jobs 1 --out here"


def test_the_command_is_the_function_and_continues(run: Run, tmp_path: Path, numbers: list[int]) -> None:
    status, _, err = run(f"{COMMAND} --replications 3")
    assert (status, err) == (cli.PASSED, "")
    status, out, err = run(f"{COMMAND} --replications 4")
    assert (status, err) == (cli.PASSED, "")
    assert numbers == [0, 1, 2, 3]
    study = quick(num_situations=2, num_replications=4)
    assert out.startswith(study.summary)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "here/statistics.csv", index_col="quantity"), study.to_frame(),
                                  check_names=False)  # fmt: skip
    assert len(pd.read_csv(tmp_path / "here/estimates.csv")) == 4
    quick(num_situations=2, num_alternatives=2, num_replications=5, out=tmp_path / "here")  # which goes on, too
    assert numbers[-1] == 4
    page = (tmp_path / "here/summary.html").read_text(encoding="utf-8")
    assert study.summary.as_html() in page
    assert "data:image/png;base64," in page
    assert (tmp_path / "here/recovery.png").stat().st_size > 1000


def test_an_estimation_of_the_command_does_not_begin_at_the_truth(run: Run, tmp_path: Path) -> None:
    line = 'study --random "t=normal(0.5, 1)" --individuals 30 --jobs 1 --replications 1 --out here'
    assert run(line)[0] == cli.FAILED  # one replication has no statistics
    settings = json.loads((tmp_path / "here/study.json").read_text())["settings"]
    assert settings["truth"] == {"t.loc": 0.5, "t.scale": 1.0}
    assert settings["model"]["random"]["t"]["start"] is None


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("--seed 1", "another study, with 2 replications: seed 0 there, 1 here"),
        ("--replications 0", "num_replications: got 0"),
        ("--integration simpson", "--integration: got 'simpson'"),
        ("--level 2", "level: got 2.0"),
        ("--cov-type sandwich --out elsewhere", "cov_type: got 'sandwich'"),
    ],
)
def test_what_cannot_be_studied_is_one_line(more: str, says: str, run: Run) -> None:
    assert run(f"{COMMAND} --replications 2")[0] == cli.FAILED  # two are too few for statistics
    status, out, err = run(f"{COMMAND} {more}")
    assert (status, out) == (cli.USAGE, "")
    assert says in err
    assert err.count("\n") == 1
