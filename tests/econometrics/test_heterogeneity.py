"""How strengths vary behind judged pairs: the fits, tests and profile, what is said of them, and the command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit

from mixlogit_align import cli
from mixlogit_align.distributions.learnable import mixing_of_mean_cv
from mixlogit_align.econometrics import (
    ChoiceData,
    MixedLogitModel,
    MixedLogitResult,
    StrengthHeterogeneity,
    simulate_choices,
    strength_heterogeneity,
)
from mixlogit_align.econometrics.command import read_table
from mixlogit_align.econometrics.heterogeneity_profile import CvProfile
from mixlogit_align.econometrics.heterogeneity_results import StrengthEstimate
from mixlogit_align.errors import ConvergenceError, InvalidInputError

MEAN, SPREAD = 0.1, 10.0  # of the strength; of log-ratios, in nats: from nearly indifferent to nearly certain
MODELS = ("fixed", "comparison", "annotator")


def table(family: str, cv: float, annotators: int, each: int, seed: int) -> pd.DataFrame:
    """Judged pairs of annotators of known strength."""
    mean = torch.tensor(MEAN, dtype=torch.float64)
    mixing = mixing_of_mean_cv(family, mean, mean.new_tensor(cv)) if cv else dist.Delta(mean)
    frame = simulate_choices(
        mixing,
        num_individuals=annotators,
        num_situations=each,
        attribute=dist.Normal(mean.new_zeros(()), SPREAD),
        seed=seed,
    ).logratios
    return frame.assign(annotator_id=[f"annotator {code}" for code in frame["annotator_id"]])[
        ["logratio_diff", "annotator_id"]
    ]


@cache
def found(
    family: str = "lognormal", cv: float = 1.0, annotators: int = 60, each: int = 6, seed: int = 1
) -> StrengthHeterogeneity:
    return strength_heterogeneity(table(family, cv, annotators, each, seed), annotator="annotator_id", family=family)


def fit(result: StrengthHeterogeneity, name: str) -> StrengthEstimate:
    estimate = result.fits[name]
    assert estimate is not None
    return estimate


def frozen(family: str, params: dict[str, float]) -> Any:
    """SciPy's distribution."""
    if family == "gamma":
        return scipy.stats.gamma(params["concentration"], scale=1 / params["rate"])
    return scipy.stats.lognorm(params["scale"], scale=math.exp(params["loc"]))


def integral(density: Any, differences: np.ndarray[Any, Any], power: int = 0) -> float:
    """E b^power prod_t sigma(b d_t), by SciPy's quadrature in the quantile of b."""

    def at(share: float) -> float:
        b = density.ppf(share)
        return float(b**power * np.exp(log_expit(b * differences).sum()))

    return quad(at, 0.0, 1.0, epsabs=0.0, epsrel=1e-9, limit=200)[0]


# --- the fits --------------------------------------------------------------------------------------


def test_the_fixed_strength_is_the_logit_s() -> None:
    d = table("lognormal", 1.0, 60, 6, 1)["logratio_diff"].to_numpy()
    best = minimize_scalar(lambda b: -log_expit(b * d).sum(), bounds=(0, 1), method="bounded", options={"xatol": 1e-10})
    ours = fit(found(), "fixed")
    assert ours.mean == pytest.approx(best.x, rel=1e-6)  # the search's tolerance
    assert ours.loglik == pytest.approx(-best.fun, rel=1e-12)
    assert (ours.sd, ours.cv, ours.params) == (0.0, 0.0, {"strength": ours.mean})
    # the sandwich clustered by annotator, by hand
    scores = pd.Series(d * expit(-ours.mean * d)).groupby(table("lognormal", 1.0, 60, 6, 1)["annotator_id"]).sum()
    information = (d**2 * expit(ours.mean * d) * expit(-ours.mean * d)).sum()
    assert ours.cov_type == "clustered"
    assert ours.std_errors["mean"] == pytest.approx(math.sqrt(60 / 59 * (scores**2).sum()) / information, rel=1e-6)


@pytest.mark.parametrize("family", ["lognormal", "gamma"])
@pytest.mark.parametrize("name", ["comparison", "annotator"])
def test_likelihoods_are_integrals_over_the_strength(family: str, name: str) -> None:
    """SciPy's adaptive quadrature, told to be right to 1e-9 of each integral."""
    frame = table(family, 1.0, 60, 6, 1)
    ours = fit(found(family), name)
    density = frozen(family, ours.params)
    groups = frame.groupby("annotator_id" if name == "annotator" else frame.index)["logratio_diff"]
    rows = [own.to_numpy() for _, own in groups][:12]
    column = "annotator_id" if name == "annotator" else None
    data = ChoiceData.from_logratios(
        frame.sort_values("annotator_id", kind="stable") if column else frame, individual=column
    )
    mixing = mixing_of_mean_cv(family, *torch.tensor([ours.mean, ours.cv], dtype=torch.float64))
    loglik = MixedLogitModel(data, random={"logratio_diff": family}).loglik(mixing)
    assert float(loglik.sum()) == pytest.approx(ours.loglik, abs=1e-6)  # the error of integration, told as such
    assert loglik[:12].tolist() == pytest.approx([math.log(integral(density, own)) for own in rows], abs=1e-7)
    assert (ours.mean, ours.sd) == pytest.approx((density.mean(), density.std()), rel=1e-9)
    assert ours.cv == pytest.approx(density.std() / density.mean(), rel=1e-9)


@pytest.mark.parametrize("family", ["lognormal", "gamma"])
def test_posteriors_are_ratios_of_integrals(family: str) -> None:
    """On 64 nodes about each mode: right to about 1e-5."""
    frame = table(family, 1.0, 60, 6, 1)
    result = found(family)
    posteriors = result.annotator_posteriors
    assert posteriors is not None
    density = frozen(family, fit(result, "annotator").params)
    expected = []
    for name in posteriors["annotator_id"][:4]:
        own = frame.loc[frame["annotator_id"] == name, "logratio_diff"].to_numpy()
        zeroth, first, second = (integral(density, own, power) for power in range(3))
        expected.append((len(own), first / zeroth, math.sqrt(second / zeroth - (first / zeroth) ** 2)))
    assert list(posteriors.columns) == ["annotator_id", "comparisons", "mean", "sd"]
    assert len(posteriors) == 60
    given = posteriors[["comparisons", "mean", "sd"]][:4].to_numpy()
    assert given == pytest.approx(np.array(expected), rel=1e-5)


def test_standard_errors_of_the_cv_by_hand() -> None:
    """d cv / d scale = scale exp(scale^2) / cv of a lognormal; d cv / d concentration = -cv^3 / 2 of a gamma."""
    lognormal, gamma = fit(found("lognormal"), "annotator"), fit(found("gamma"), "annotator")
    scale = lognormal.params["scale"]
    slope = scale * math.exp(scale**2) / lognormal.cv
    assert lognormal.std_errors["cv"] == pytest.approx(slope * lognormal.std_errors["scale"], rel=1e-9)
    assert gamma.std_errors["cv"] == pytest.approx(gamma.cv**3 / 2 * gamma.std_errors["concentration"], rel=1e-9)


RECOVERY = [("lognormal", 0.5, 20), ("lognormal", 1.0, 5), ("gamma", 0.5, 5), ("gamma", 1.0, 20)]


@pytest.mark.parametrize(("family", "cv", "each"), RECOVERY, ids=[f"{f}-{c}-{e}" for f, c, e in RECOVERY])
def test_recovers_the_truth(family: str, cv: float, each: int) -> None:
    """|z| <= 4.5 of mean and cv: by chance 7e-6 of each, if they were normal; the cv's skew makes it some 1e-4."""
    frame = table(family, cv, 600 // each, each, 3)
    result = strength_heterogeneity(frame, annotator="annotator_id", family=family, profiled=False)
    annotator = fit(result, "annotator")
    truth = {"mean": MEAN, "cv": cv}
    z = {what: (getattr(annotator, what) - true) / annotator.std_errors[what] for what, true in truth.items()}
    assert {what: value for what, value in z.items() if not abs(value) <= 4.5} == {}
    assert annotator.converged


# --- the tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cv", "seed"), [(0.0, 3), (1.0, 1)], ids=["at the boundary", "inside"])
def test_p_values_know_the_boundary(cv: float, seed: int) -> None:
    """Half of a chi-square's tail, and 1 where no spread is the most likely."""
    result = found(cv=cv, seed=seed)
    assert [(test.null, test.alternative) for test in result.tests] == [("fixed", name) for name in MODELS[1:]]
    gains = [2 * (fit(result, name).loglik - fit(result, "fixed").loglik) for name in MODELS[1:]]
    assert [test.statistic for test in result.tests] == pytest.approx(gains, abs=1e-6)  # rounding of sums
    halves = [0.5 * scipy.stats.chi2.sf(test.statistic, 1) if test.statistic else 1.0 for test in result.tests]
    assert [test.p for test in result.tests] == pytest.approx(halves, rel=1e-12)
    assert {test.distribution for test in result.tests} == {"0.5 chi2(0) + 0.5 chi2(1)"}


def rejections(cv: float, num: int) -> np.ndarray[Any, Any]:
    """Of the tests of one strength a comparison, and an annotator, at 5 %."""
    found = [
        strength_heterogeneity(
            table("gamma", cv, 50, 8, seed), annotator="annotator_id", family="gamma", profiled=False
        )
        for seed in range(num)
    ]
    rejected: np.ndarray[Any, Any] = np.array([[test.p < 0.05 for test in result.tests] for result in found]).sum(0)
    return rejected


def test_the_size_of_the_tests() -> None:
    """Of 10 data sets without heterogeneity, 4 rejections or more have chance 1e-3 for either test."""
    assert (rejections(0.0, 10) < 4).all()


def test_the_power_of_the_test_of_one_strength_an_annotator() -> None:
    """At a cv of 1 it is above 0.8 here: fewer than 3 rejections in 8 data sets have chance 1.2e-3."""
    assert rejections(1.0, 8)[1] >= 3


# --- the profile -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "cv"), [("lognormal", 0.3), ("gamma", 2.0)])
def test_the_profile_is_the_maximum_over_the_mean(family: str, cv: float) -> None:
    d = table(family, 1.0, 3, 6, 2)["logratio_diff"].to_numpy().reshape(3, 6)
    frame = pd.DataFrame({"logratio_diff": d.flatten(), "who": np.arange(18) // 6})
    point = CvProfile(ChoiceData.from_logratios(frame, individual="who"), "logratio_diff", family, MEAN).at(cv)

    def minus(log_mean: float) -> float:
        params = {"concentration": cv**-2, "rate": cv**-2 / math.exp(log_mean)}
        scale = math.sqrt(math.log1p(cv**2))
        params |= {"loc": log_mean - scale**2 / 2, "scale": scale}
        density = frozen(family, params)
        return -sum(math.log(integral(density, own)) for own in d)

    best = minimize_scalar(minus, bounds=(-4, 2), method="bounded", options={"xatol": 1e-4})
    assert point.loglik == pytest.approx(-best.fun, abs=1e-6)  # both stop within 1e-3 standard errors
    assert math.log(point.mean) == pytest.approx(best.x, abs=2e-3)


@pytest.mark.parametrize("family", ["lognormal", "gamma"])
def test_intervals_end_where_the_likelihood_has_fallen(family: str) -> None:
    result = found(family)
    profile = result.profile
    assert profile is not None
    assert list(profile.cv) == sorted(set(profile.cv))
    assert profile.cv[0] == 0.0
    fallen = {
        (name, end): 2 * (fit(result, name).loglik - profile.loglik[name][profile.cv.index(end)])
        for name in MODELS[1:]
        for end in profile.interval[name]
        if 0.0 < end < math.inf
    }
    assert len(fallen) >= 2
    # ends are found to a thousandth of themselves
    assert list(fallen.values()) == pytest.approx([scipy.stats.chi2.ppf(0.95, 1)] * len(fallen), abs=0.02)
    for_each = [fit(result, name) for name in MODELS[1:]]
    at_estimates = [profile.loglik[name][profile.cv.index(fit(result, name).cv)] for name in MODELS[1:]]
    assert at_estimates == pytest.approx([estimate.loglik for estimate in for_each], abs=1e-5)
    at_none = [profile.loglik[name][0] for name in MODELS[1:]]
    assert at_none == pytest.approx([fit(result, "fixed").loglik] * 2, abs=1e-5)


def test_no_spread_is_an_estimate_with_an_upper_end() -> None:
    result = found(cv=0.0, seed=3)
    assert result.profile is not None
    low, high = result.profile.interval["annotator"]
    assert low == 0.0 < high < 10.0
    estimate = fit(result, "annotator")
    assert estimate.at_boundary
    assert (estimate.cv, estimate.sd) == (0.0, 0.0)
    assert estimate.mean == pytest.approx(fit(result, "fixed").mean)
    assert math.isnan(estimate.std_errors["cv"])
    assert "no spread between annotators is the most likely" in result.identification
    assert result.annotator_posteriors is not None
    assert result.annotator_posteriors["sd"].tolist() == [0.0] * 60


def test_differences_of_one_size_leave_the_likelihood_flat() -> None:
    frame = pd.DataFrame({"logratio_diff": [2.0] * 70 + [-2.0] * 30})
    result = strength_heterogeneity(frame)
    assert not result.converged
    assert result.profile is not None
    assert result.profile.interval["comparison"] == (0.0, math.inf)
    loglik = result.profile.loglik["comparison"]
    # whatever the cv, some mean gives P = 0.7; each found to 1e-6 of a standard error's square
    assert loglik == pytest.approx([70 * math.log(0.7) + 30 * math.log(0.3)] * len(loglik), abs=1e-5)
    assert "too few values" in " ".join(result.warnings)
    assert "has no estimate to rely on" in result.identification


def test_the_density_is_that_of_the_fits() -> None:
    result = found("gamma")
    density = result.density
    strength = np.array(density["strength"])
    params = fit(result, "annotator").params
    assert density["annotator"] == pytest.approx(frozen("gamma", params).pdf(strength), rel=1e-9)
    assert set(density) == {"strength", "comparison", "annotator"}


# --- who judged ------------------------------------------------------------------------------------


def test_without_ids_people_are_not_identified() -> None:
    result = strength_heterogeneity(table("lognormal", 1.0, 60, 6, 1))
    assert (result.annotators, result.fits["annotator"], result.annotator_posteriors) == (None, None, None)
    assert result.identification.startswith("How people differ is NOT identified: no annotator ids were given.")
    ours, theirs = fit(result, "comparison"), fit(found(), "comparison")
    assert ours.params == pytest.approx(theirs.params, rel=1e-9)
    assert (ours.cov_type, theirs.cov_type) == ("hessian", "clustered")


def test_one_comparison_each_does_not_identify_people() -> None:
    frame = table("lognormal", 1.0, 200, 1, 1)
    frame.loc[len(frame)] = (0.0, "annotator 0")  # a second comparison that tells nothing
    result = strength_heterogeneity(frame, annotator="annotator_id")
    assert (result.annotators, result.repeated, result.fits["annotator"]) == (200, 0, None)
    assert "none of the 200 annotators has two comparisons that are no ties" in result.identification


def test_unknown_annotators_are_somebody_each() -> None:
    frame = table("gamma", 1.0, 40, 4, 1)
    frame.loc[3:12, "annotator_id"] = None
    named = frame.assign(annotator_id=frame["annotator_id"].fillna(pd.Series(frame.index.astype(str))))
    ours, theirs = (
        strength_heterogeneity(one, annotator="annotator_id", family="gamma", profiled=False) for one in (frame, named)
    )
    assert fit(ours, "annotator").loglik == pytest.approx(fit(theirs, "annotator").loglik, abs=1e-9)
    assert (ours.unknown, theirs.unknown) == (10, 0)
    known = frame["annotator_id"].dropna()
    assert ours.annotator_posteriors is not None
    counts = ours.annotator_posteriors.set_index("annotator_id")["comparisons"]
    assert counts.to_dict() == known.value_counts().to_dict()
    assert ours.annotators == known.nunique()


@pytest.mark.parametrize("by", ["comparison", "annotator"])
def test_a_weight_is_so_many_alike(by: str) -> None:
    frame = table("gamma", 1.0, 30, 4, 1)
    twice = frame["annotator_id"].isin([f"annotator {n}" for n in range(10)])
    again = frame[twice].assign(annotator_id=frame["annotator_id"] + " again")
    options: dict[str, Any] = {"family": "gamma", "profiled": False}
    if by == "annotator":
        options["annotator"] = "annotator_id"
    ours = strength_heterogeneity(frame.assign(times=1 + twice), weights="times", **options)
    theirs = strength_heterogeneity(pd.concat([frame, again], ignore_index=True), **options)
    assert fit(ours, by).params == pytest.approx(fit(theirs, by).params, rel=1e-6)
    assert fit(ours, by).loglik == pytest.approx(fit(theirs, by).loglik, abs=1e-8)


# --- what is said ----------------------------------------------------------------------------------


def with_fit(result: StrengthHeterogeneity, name: str, **changes: Any) -> StrengthHeterogeneity:
    return replace(result, fits={**result.fits, name: replace(fit(result, name), **changes)})


def with_p(result: StrengthHeterogeneity, p: float) -> StrengthHeterogeneity:
    return replace(result, tests=tuple(replace(test, p=p) for test in result.tests))


def with_interval(result: StrengthHeterogeneity, low: float, high: float) -> StrengthHeterogeneity:
    assert result.profile is not None
    return replace(result, profile=replace(result.profile, interval=dict.fromkeys(MODELS[1:], (low, high))))


Change = Callable[[StrengthHeterogeneity], StrengthHeterogeneity]
SAID: dict[str, tuple[Change, str]] = {
    "a spread": (lambda r: with_p(r, 0.01), "A spread of strengths between annotators is identified: cv"),
    "none rejected": (lambda r: with_p(r, 0.2), "That people differ is NOT established: no spread"),
    "flat": (
        lambda r: with_p(with_interval(r, 0.0, math.inf), 0.2),
        "NOT identified: the likelihood is flat, every cv is within",
    ),
    "flat comparison": (lambda r: with_p(with_interval(r, 0.0, math.inf), 0.2), "these pairs tell no cv from another"),
    "flat but for the test": (lambda r: with_p(with_interval(r, 0.0, math.inf), 0.01), "from 0 without an upper end"),
    "a taste": (lambda r: with_p(r, 0.01), "A taste that the policy does not share counts as a low strength"),
    "no upper end": (lambda r: with_p(with_interval(r, 0.4, math.inf), 0.01), "from 0.4 without an upper end"),
    "no estimate": (lambda r: with_fit(r, "annotator", converged=False, message="why"), "is NOT told: one strength"),
    "no comparison": (lambda r: with_fit(r, "comparison", converged=False, message="why"), "rely on (why)"),
    "no profile": (lambda r: replace(r, profile=None), "between annotators; it rests on 60 of 60"),
    "the bend": (lambda r: with_fit(r, "comparison", loglik=0.0), "One strength a comparison is the more likely"),
    "no bend": (lambda r: with_fit(r, "comparison", at_boundary=True), "With one strength a comparison no spread"),
    "a measure": (lambda r: r, "is no measure of how people differ"),
    "few": (lambda r: replace(r, repeated=4), "With fewer than 10 such annotators"),
    "held out": (lambda r: replace(r, held_out=True), "was not trained on these pairs"),
    "trained on": (lambda r: r, "If a policy was trained on these very pairs"),
    "the unit": (lambda r: r, "The mean is in the unit of these log-ratios"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_is_identified_is_said(case: str) -> None:
    change, says = SAID[case]
    assert says in change(found()).identification


def test_the_summary_says_it_all() -> None:
    result = replace(found(), ties=2, unknown=3, warnings=("careful",))
    words = result.summary
    assert repr(result) == words
    expected = [
        "360 comparisons of 60 annotators", "fixed against annotator: likelihood ratio", "95% interval of the cv",
        "ties: 2", "unknown annotators: 3", "warning: careful", "clustered by annotator", "not inside each other",
    ]  # fmt: skip
    assert [one for one in expected if one not in words] == []
    assert "NOT converged" in with_fit(result, "comparison", converged=False).summary
    assert "<table>" in words.as_html()


# --- what cannot be ---------------------------------------------------------------------------------


def changed(**columns: Any) -> Callable[[], pd.DataFrame]:
    return lambda: table("lognormal", 1.0, 20, 3, 1).assign(**columns)


def one_bad(value: float) -> Callable[[], pd.DataFrame]:
    def make() -> pd.DataFrame:
        frame = table("lognormal", 1.0, 20, 3, 1)
        frame.loc[[7, 9], "logratio_diff"] = value
        return frame

    return make


good = changed()
BAD: dict[str, tuple[Callable[[], pd.DataFrame], dict[str, Any], type[Exception], str]] = {
    "missing": (one_bad(math.nan), {}, InvalidInputError, "got nan in row 7 (2 such rows)"),
    "infinite": (one_bad(math.inf), {}, InvalidInputError, "got inf in row 7 (2 such rows)"),
    "text": (changed(logratio_diff="a"), {}, InvalidInputError, "column 'logratio_diff': got type"),
    "no rows": (lambda: good()[:0], {}, InvalidInputError, "table: got no rows"),
    "one row": (lambda: good()[:1], {}, ConvergenceError, "choices that all"),
    "ties": (changed(logratio_diff=0.0), {}, InvalidInputError, "got 0 in all of 60 rows"),
    "all agree": (changed(logratio_diff=1.0), {}, ConvergenceError, "all agree with the log-ratios (60 of 60 rows"),
    "all disagree": (changed(logratio_diff=-1.0), {}, ConvergenceError, "all disagree"),
    "negative": (lambda: good().assign(logratio_diff=lambda f: -f["logratio_diff"]), {}, ConvergenceError, "favoured"),
    "no column": (lambda: good()[["annotator_id"]], {}, InvalidInputError, "table: got no column logratio_diff"),
    "annotator": (good, {"annotator": "judge"}, InvalidInputError, "annotator: got column 'judge' (0 such columns)"),
    "weights": (good, {"weights": "votes"}, InvalidInputError, "weights: got column 'votes'"),
    "a weight of 0": (changed(votes=0.0), {"weights": "votes"}, InvalidInputError, "a positive frequency"),
    "weights differ": (
        lambda: good().assign(votes=lambda f: 1 + f.index % 2),
        {"weights": "votes", "annotator": "annotator_id"}, InvalidInputError, "one value within an individual",
    ),
    "family": (good, {"family": "normal"}, InvalidInputError, "family: got 'normal'"),
    "level": (good, {"level": 1.0}, InvalidInputError, "level: got 1.0"),
    "no table": (lambda: None, {}, InvalidInputError, "expected a pandas DataFrame"),  # type: ignore[return-value, dict-item]
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(case: str) -> None:
    make, options, kind, says = BAD[case]
    with pytest.raises(kind) as told:
        strength_heterogeneity(make(), **options)
    assert says in str(told.value)


# --- the command -----------------------------------------------------------------------------------

Run = Callable[[str], tuple[int, str, str]]


def test_the_command_writes_what_was_found(run: Run, tmp_path: Path) -> None:
    frame = table("lognormal", 1.0, 60, 6, 1)
    frame.to_csv("pairs.csv", index=False)
    status, out, err = run("strength pairs.csv")
    assert (status, err) == (cli.PASSED, "")
    assert found().summary in out
    written = json.loads((tmp_path / "pairs-heterogeneity" / "heterogeneity.json").read_text())
    assert written["table"] == "pairs.csv"
    keys = ("rows", "annotators", "family", "fits", "tests", "profile", "identification", "warnings", "density")
    assert {key: written[key] for key in keys} == {key: found().to_json()[key] for key in keys}
    posteriors = pd.read_parquet(tmp_path / "pairs-heterogeneity" / "annotators.parquet")
    expected = found().annotator_posteriors
    assert expected is not None
    pd.testing.assert_frame_equal(posteriors, expected)


def test_the_contract_of_the_file() -> None:
    record = json.loads(json.dumps(found(cv=0.0, seed=3).to_json(), allow_nan=False))
    least = {"loglik", "params", "std_errors", "mean", "sd", "cv", "at_boundary"}
    assert {name: least - set(values) for name, values in record["fits"].items()} == {name: set() for name in MODELS}
    assert set(record["tests"][0]) == {"null", "alternative", "statistic", "p", "distribution"}
    profile = record["profile"]
    assert {len(profile["loglik"][name]) for name in MODELS[1:]} == {len(profile["cv"])}


def test_a_run_is_its_held_out_pairs(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    frame = table("gamma", 1.0, 30, 4, 1).assign(annotator_id=None, weight=2.0)
    frame.to_parquet(tmp_path / "run" / "log_ratios.parquet")
    status, _, err = run("strength run --family gamma --level 0.9")
    assert (status, err) == (cli.PASSED, "")
    record = json.loads((tmp_path / "run" / "heterogeneity" / "heterogeneity.json").read_text())
    assert (record["annotators"], record["family"], record["held_out"]) == (None, "gamma", True)
    assert record["profile"]["level"] == 0.9
    assert record["warnings"] == [
        "column 'weight' is not used: every row counts once, unless it is named as the weights"
    ]
    assert "was not trained on these pairs" in record["identification"]
    assert not (tmp_path / "run" / "heterogeneity" / "annotators.parquet").exists()


def test_results_are_replaced_only_when_told_to(run: Run, tmp_path: Path) -> None:
    table("gamma", 1.0, 30, 4, 1).to_parquet(tmp_path / "pairs.parquet")
    assert run("strength pairs.parquet --out there")[0] == cli.PASSED
    before = (tmp_path / "there" / "heterogeneity.json").read_bytes()
    status, out, err = run("strength pairs.parquet --out there --no-annotator")
    assert (status, out) == (cli.USAGE, "")
    assert "there, which holds results" in err
    assert (tmp_path / "there" / "heterogeneity.json").read_bytes() == before
    assert run("strength pairs.parquet --out there --no-annotator --overwrite")[0] == cli.PASSED
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["heterogeneity.json"]


def test_what_did_not_converge_fails_and_is_written(run: Run, tmp_path: Path) -> None:
    pd.DataFrame({"logratio_diff": [2.0] * 70 + [-2.0] * 30}).to_csv("flat.csv", index=False)
    status, out, _ = run("strength flat.csv")
    assert status == cli.FAILED
    assert "NOT converged" in out
    record = json.loads((tmp_path / "flat-heterogeneity" / "heterogeneity.json").read_text())
    assert record["profile"]["interval"]["comparison"] == [0.0, None]


def test_there_are_no_posteriors_of_a_fit_that_did_not_converge(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = MixedLogitModel.fit

    def short(self: MixedLogitModel, **options: Any) -> MixedLogitResult:
        return replace(fitted(self, **options), converged=not self.data.is_panel)

    monkeypatch.setattr(MixedLogitModel, "fit", short)
    table("gamma", 1.0, 30, 4, 1).to_csv("pairs.csv", index=False)
    status, out, _ = run("strength pairs.csv --family gamma")
    assert status == cli.FAILED
    assert "warning: no posterior strengths of annotators" in out
    assert [path.name for path in (tmp_path / "pairs-heterogeneity").iterdir()] == ["heterogeneity.json"]


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        ("nowhere.csv", cli.USAGE, "'nowhere.csv', which is not there"),
        ("pairs.txt", cli.USAGE, "expected a file .csv, .csv.gz or .parquet"),
        ("empty", cli.USAGE, "no log_ratios.parquet there"),
        ("pairs.csv --annotator judge", cli.USAGE, "annotator: got column 'judge'"),
        ("pairs.csv --out pairs.csv", cli.USAGE, "the file pairs.csv"),
        ("rows.csv", cli.USAGE, "table: got no rows"),
        ("margin.csv", cli.USAGE, "no column logratio_diff; its columns are margin"),
        ("margin.csv --out empty/..", cli.USAGE, "no column logratio_diff"),
        ("agree.csv", cli.FAILED, "choices that all agree"),
    ],
    ids=[
        "no file",
        "no table",
        "no run",
        "no column",
        "no folder",
        "no rows",
        "no difference",
        "table first",
        "no estimate",
    ],
)
def test_what_cannot_be_measured_is_one_line(line: str, status: int, says: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    table("gamma", 1.0, 10, 2, 1).to_csv("pairs.csv", index=False)
    pd.DataFrame({"logratio_diff": [1.0, 2.0]}).to_csv("agree.csv", index=False)
    pd.DataFrame({"logratio_diff": []}).to_csv("rows.csv", index=False)
    pd.DataFrame({"margin": [1.0, -2.0]}).to_csv("margin.csv", index=False)
    before = [path.name for path in tmp_path.iterdir()]
    ended, _, err = run(f"strength {line}")
    assert ended == status
    assert says in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(before)


def test_two_tables_of_a_folder_have_results_of_their_own(run: Run, tmp_path: Path) -> None:
    frame = table("gamma", 1.0, 30, 4, 1)
    frame.to_csv("a.csv.gz", index=False)
    frame.to_parquet("b.c.parquet")
    assert [run(f"strength {name} --family gamma")[0] for name in ("a.csv.gz", "b.c.parquet")] == [cli.PASSED] * 2
    assert sorted(path.parent.name for path in tmp_path.glob("*/heterogeneity.json")) == [
        "a-heterogeneity", "b.c-heterogeneity",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", ["no column annotator_id: if one of judge, round says who judged, name it with --annotator COLUMN"]),
        ("--no-annotator", []),
        ("--annotator judge", []),
    ],
    ids=["nobody named", "nobody known", "named"],
)
def test_columns_that_may_say_who_judged_are_named(line: str, told: list[str], run: Run, tmp_path: Path) -> None:
    """Texts and whole numbers that come again; no fractions, no id of the row, no column that says one thing."""
    frame = table("gamma", 1.0, 30, 4, 1).rename(columns={"annotator_id": "judge"})
    frame = frame.assign(round=frame.index % 4, row=frame.index, share=0.5, source="web")
    frame.to_csv("pairs.csv", index=False)
    status, out, _ = run(f"strength pairs.csv --family gamma {line}")
    record = json.loads((tmp_path / "pairs-heterogeneity" / "heterogeneity.json").read_text())
    assert (status, record["warnings"]) == (cli.PASSED, told)
    assert [words in " ".join(out.split()) for words in told] == [True] * len(told)


def test_ids_of_a_csv_file_have_one_type(tmp_path: Path) -> None:
    """Of a long file pandas may read 7 in one part and "7" in another, which would be two annotators."""
    ids = [7] * 300_000 + ["x", 7]
    pd.DataFrame({"annotator_id": ids}).to_csv(tmp_path / "long.csv", index=False)
    assert set(read_table(tmp_path / "long.csv")["annotator_id"]) == {"7", "x"}


def test_help_has_examples_and_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["strength", "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert "mixlogit-align strength runs/gamma" in told
    assert "exit status: 0 done" in told
