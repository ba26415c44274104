"""Latent classes against the likelihood written out, scipy's optimum, gmnl's printed output and known truths."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import scipy.optimize
import torch

from mixlogit_align import FixedDraws, QuasiMonteCarlo, econometrics
from mixlogit_align.econometrics import (
    ChoiceData,
    LatentClassModel,
    LatentClassResult,
    MixedLogitModel,
    MixedLogitResult,
    SimulatedClasses,
    choose_classes,
    compare,
    individual_posteriors,
    results,
    simulate_latent_classes,
    willingness_to_pay,
)
from mixlogit_align.econometrics.latent_parameters import LatentParameters
from mixlogit_align.econometrics.latent_search import LatentSearch
from mixlogit_align.errors import ConvergenceError, ConvergenceWarning, IntegrationWarning, InvalidInputError

TWO: dict[str, Any] = {"fixed": ["price", "time"], "num_classes": 2, "membership": ["income"]}
TRUTH = {
    "class1.price": -1.0,
    "class1.time": 0.5,
    "class2.price": -0.2,
    "class2.time": -1.2,
    "membership.2.constant": -0.4,
    "membership.2.income": 0.8,
}


@cache
def two_classes(individuals: int = 150, situations: int = 6, seed: int = 1) -> SimulatedClasses:
    return simulate_latent_classes(
        TRUTH,
        **TWO,
        num_individuals=individuals,
        num_situations=situations,
        num_alternatives=3,
        attributes={"price": dist.Normal(0.0, 1.5)},
        seed=seed,
    )


@cache
def fitted() -> LatentClassResult:
    return LatentClassModel(two_classes().data, **TWO).fit(num_starts=3)


def torn(weights: bool = False) -> pd.DataFrame:
    """Unbalanced panels and choice sets of two or three, individuals in turns; frequencies of one or more."""
    rng = np.random.default_rng(3)
    frame = two_classes(40).frame
    kept = rng.permutation(frame["situation"].unique())[:110]
    frame = frame[frame["situation"].isin(kept)]
    frame = frame[(frame["choice"] == 1) | (frame["alternative"] != frame["situation"] % 5)]
    frame["situation"] = frame["situation"].map(dict(zip(kept, rng.permutation(len(kept)), strict=True)))
    frame["frequency"] = 1 + frame["individual"] % 3 if weights else 1
    return frame.sort_values(["situation", "alternative"], kind="stable")


def read(frame: pd.DataFrame) -> ChoiceData:
    return ChoiceData.from_long(
        frame,
        choice="choice",
        alternative="alternative",
        situation="situation",
        individual="individual",
        weights="frequency",
    )


# ---------------------------------------------------------------------- the likelihood, written out

CASES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "membership": (TWO, TRUTH),
    "three classes, a common coefficient": (
        {"fixed": ["price", "time"], "num_classes": 3, "membership": ["income"], "common": ["price"]},
        {
            "class1.time": 0.5, "class2.time": -1.2, "class3.time": 0.1, "price": -0.7,
            "membership.2.constant": -0.4, "membership.2.income": 0.8,
            "membership.3.constant": 0.3, "membership.3.income": -0.5,
        },
    ),
    "mixed within": (
        {"fixed": ["price"], "random": {"time": "lognormal"}, "num_classes": 2, "common": ["time.scale"]},
        {
            "class1.price": -1.0, "class1.time.loc": -0.5, "class2.price": -0.2, "class2.time.loc": 0.3,
            "time.scale": 0.6, "membership.2.constant": 0.2,
        },
    ),
    "gamma within": (
        {"fixed": ["price"], "random": {"time": "-gamma"}, "num_classes": 2},
        {
            "class1.price": -1.0, "class1.time.concentration": 2.0, "class1.time.rate": 2.5, "class2.price": -0.2,
            "class2.time.concentration": 1.5, "class2.time.rate": 0.9, "membership.2.constant": 0.2,
        },
    ),
}  # fmt: skip
cases = pytest.mark.parametrize("case", CASES)


def nodes(individuals: int, case: str) -> FixedDraws:
    """Draws of each individual, standard normal or uniform."""
    uniforms = torch.rand(individuals, 5, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return FixedDraws(uniforms if case.startswith("gamma") else torch.special.ndtri(uniforms))


def written_out(frame: pd.DataFrame, case: str, params: dict[str, float], base: np.ndarray) -> list[float]:
    """Log-likelihood of each individual, one situation after the other."""
    options, _ = CASES[case]
    classes = range(1, options["num_classes"] + 1)
    found = []
    for n, (_, rows) in enumerate(frame.groupby("individual", sort=False)):
        odds = [0.0 if c == 1 else params[f"membership.{c}.constant"] for c in classes]
        if "membership" in options:
            odds = [
                odd + (0.0 if c == 1 else params[f"membership.{c}.income"] * rows["income"].iloc[0])
                for c, odd in zip(classes, odds, strict=True)
            ]
        share = np.exp(odds) / np.exp(odds).sum()
        total = 0.0
        for c, pi in zip(classes, share, strict=True):

            def value(name: str, c: int = c) -> float:
                return params.get(f"class{c}.{name}", params.get(name, math.nan))

            for z in base[n, :, 0]:
                time = {
                    "mixed within": lambda z=z: math.exp(value("time.loc") + value("time.scale") * z),
                    "gamma within": lambda z=z: (
                        -scipy.special.gammaincinv(value("time.concentration"), z) / value("time.rate")
                    ),
                }.get(case, lambda: value("time"))()
                likelihood = 1.0
                for _, one in rows.groupby("situation"):
                    u = np.exp(value("price") * one["price"] + time * one["time"])
                    likelihood *= float((u * one["choice"]).sum() / u.sum())
                total += pi * likelihood / base.shape[1]
        found.append(math.log(total))
    return found


@cases
def test_loglik_is_that_written_out(case: str) -> None:
    options, params = CASES[case]
    frame = torn()
    model = LatentClassModel(read(frame), **options)
    draws = nodes(model.data.num_individuals, case)
    expected = written_out(frame, case, params, draws.base.numpy())
    # rounding of some ten factors
    np.testing.assert_allclose(model.loglik(params, draws), expected, rtol=1e-12, atol=1e-13)


@cases
def test_scores_are_differences_of_the_loglik(case: str) -> None:
    options, params = CASES[case]
    model = LatentClassModel(read(torn()), **options)
    draws = nodes(model.data.num_individuals, case)
    found = model.scores(params, draws)
    columns = []
    for name in params:  # four-point rule: 1e-16 from the step of 1e-4, 1e-12 from rounding

        def at(step: float, name: str = name) -> torch.Tensor:
            return model.loglik({**params, name: params[name] + step}, draws)

        columns.append((8.0 * (at(1e-4) - at(-1e-4)) - at(2e-4) + at(-2e-4)) / 12e-4)
    torch.testing.assert_close(found, torch.stack(columns, 1), rtol=1e-7, atol=1e-9)


@cases
def test_hessian_is_that_of_differences_of_scores(case: str) -> None:
    options, params = CASES[case]
    model = LatentClassModel(read(torn(weights=True)), **options)
    loglik, theta = model._at(params, nodes(model.data.num_individuals, case))
    at = loglik.derivatives(theta)
    step = 1e-4 * torch.eye(len(theta), dtype=torch.float64)
    rows = [(loglik.gradient(theta + h)[1] - loglik.gradient(theta - h)[1]) / 2e-4 for h in step]
    torch.testing.assert_close(at.hessian, torch.stack(rows), rtol=1e-6, atol=1e-5)  # the square of the step
    torch.testing.assert_close(at.gradient, loglik.gradient(theta)[1], rtol=1e-10, atol=1e-11)
    assert at.value == pytest.approx(loglik.value(theta), rel=1e-13)


# ---------------------------------------------------------------------- one class


def test_one_class_is_the_conditional_logit() -> None:
    data = read(torn(weights=True))
    logit = MixedLogitModel(data, fixed=["price", "time"]).fit()
    one = LatentClassModel(data, fixed=["price", "time"], num_classes=1).fit()
    # both are at the maximum to rounding
    assert one.params == pytest.approx({f"class1.{name}": x for name, x in logit.params.items()}, abs=1e-9)
    assert one.loglik == pytest.approx(logit.loglik, abs=1e-9)
    assert one.bic == pytest.approx(logit.bic, abs=1e-8)
    torch.testing.assert_close(one.cov, logit.cov, rtol=1e-8, atol=1e-12)
    assert one.shares == {"class1": pytest.approx(1.0)}
    assert one.posterior.eq(1.0).all()
    assert math.isnan(one.entropy)


def test_one_class_is_the_mixed_logit() -> None:
    data, rule = two_classes().data, QuasiMonteCarlo("halton", 50)
    options: dict[str, Any] = {"fixed": ["price"], "random": {"time": "normal"}}
    mixed = MixedLogitModel(data, **options).fit(integration=rule)
    one = LatentClassModel(data, **options, num_classes=1).fit(integration=rule)
    assert one.loglik == pytest.approx(mixed.loglik, abs=1e-6)  # gradients of 1e-4 standard errors: 1e-8
    assert one.params == pytest.approx({f"class1.{name}": x for name, x in mixed.params.items()}, abs=1e-4)
    assert one.std_errors == pytest.approx({f"class1.{name}": x for name, x in mixed.std_errors.items()}, rel=1e-3)
    assert one.simulation_sd["class1.time.loc"] == pytest.approx(mixed.simulation_sd["time.loc"], rel=1e-3)
    assert one.simulation_bias["class1.time.loc"] == pytest.approx(mixed.simulation_bias["time.loc"], rel=1e-2)
    assert one.integration.rule == mixed.integration.rule
    assert one.moments["class1.time.sd"] == pytest.approx(mixed.moments["time.sd"], abs=1e-4)


# ---------------------------------------------------------------------- EM


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(TWO, id="conditional"),
        pytest.param({**TWO, "common": ["price"]}, id="common coefficient"),
        pytest.param({**TWO, "num_classes": 4}, id="too many classes"),
        pytest.param(
            {"fixed": ["price"], "random": {"time": "normal"}, "num_classes": 2, "membership": ["income"]}, id="mixed"
        ),
    ],
)
def test_em_never_lowers_the_log_likelihood(options: dict[str, Any]) -> None:
    model = LatentClassModel(two_classes().data, **options)
    search = LatentSearch(model.data, model.parameters, model._covariates, {})
    start = search.start(5)
    makers = search._makers(start, QuasiMonteCarlo("sobol", 16)) if "random" in options else search._makers(start, None)
    steps = islice(search._loglik(makers, start).em_steps(start, search.free), 60)
    values = [value for _, value in steps]
    assert all(after >= before for before, after in pairwise(values))
    assert values[-1] > values[0] + 1.0


def test_the_steps_of_em_are_in_the_result() -> None:
    values = fitted().em_logliks
    assert all(after >= before for before, after in pairwise(values))
    assert values[-1] <= fitted().loglik + 1e-9


def test_em_moves_only_what_is_free() -> None:
    model = LatentClassModel(two_classes().data, **TWO)
    search = LatentSearch(model.data, model.parameters, model._covariates, {"class2.price": 0.0})
    start = search.start(0)
    (after, _) = list(islice(search._loglik(search._makers(start, None), start).em_steps(start, search.free), 5))[-1]
    assert float(after[model.parameters.index["class2.price"]]) == 0.0
    assert not torch.equal(after, start)


# ---------------------------------------------------------------------- the maximum, by others


def vectorised(data: ChoiceData) -> Any:
    """Minus the log-likelihood of TWO as a function of its parameters, in numpy."""
    x = data.attributes[..., [data.variables.index("price"), data.variables.index("time")]].numpy()
    income, person, choice = data.covariate("income").numpy(), data.individual.numpy(), data.choice.numpy()

    def loss(theta: np.ndarray) -> float:
        odds = theta[4] + theta[5] * income
        share = np.stack([-np.logaddexp(0.0, odds), -np.logaddexp(0.0, -odds)])
        joint = []
        for c in (0, 1):
            u = x @ theta[2 * c : 2 * c + 2]
            log_p = u[np.arange(len(u)), choice] - np.logaddexp.reduce(u, 1)
            joint.append(share[c] + np.bincount(person, log_p))
        return -float(np.logaddexp(*joint).sum())

    return loss


def test_scipy_finds_the_same_maximum() -> None:
    result = fitted()
    loss = vectorised(two_classes().data)
    found = scipy.optimize.minimize(loss, np.array(list(TRUTH.values())), method="BFGS", options={"gtol": 1e-5})
    assert -found.fun == pytest.approx(result.loglik, abs=1e-7)
    # BFGS stops at gradients of 1e-5: about 1e-6 from the maximum
    assert list(result.params.values()) == pytest.approx(found.x.tolist(), abs=1e-4)
    assert result.converged
    assert result.gradient_norm < 1e-6
    assert float(result.hessian_eigenvalues.min()) > 0.0


def test_standard_errors_are_those_of_a_numerical_hessian() -> None:
    result = fitted()
    loss, at = vectorised(two_classes().data), np.array(list(result.params.values()))
    h = 1e-3 * np.eye(len(at))
    hessian = np.array(
        [[(loss(at + a + b) - loss(at + a - b) - loss(at - a + b) + loss(at - a - b)) / 4e-6 for b in h] for a in h]
    )
    expected = np.sqrt(np.linalg.inv(hessian).diagonal())
    assert list(result.std_errors.values()) == pytest.approx(expected.tolist(), rel=1e-4)  # the square of the step


@pytest.mark.parametrize("kind", ["bhhh", "robust", "clustered(town)"])
def test_covariances_by_their_formulas(kind: str) -> None:
    frame = torn(weights=True).assign(town=lambda rows: rows["individual"] % 7)
    model = LatentClassModel(read(frame), **{**TWO, "membership": []})
    result = model.fit(cov_type=kind, num_starts=3)
    s, w = result.scores.numpy(), result.weights.numpy()
    bread = np.linalg.inv(-result.hessian.numpy())
    outer = s.T @ (w[:, None] * s)
    town = model.data.cluster("town").numpy()
    sums = np.stack([(w[:, None] * s)[town == g].sum(0) for g in range(7)])
    expected = {
        "bhhh": np.linalg.inv(outer),
        "robust": bread @ outer @ bread,
        "clustered(town)": 7 / 6 * bread @ sums.T @ sums @ bread,
    }[kind]
    np.testing.assert_allclose(result.cov, expected, rtol=1e-9, atol=1e-12)
    assert result.cov_type == kind


def test_bootstrap() -> None:
    model = LatentClassModel(two_classes().data, **TWO)
    result = model.fit(start=fitted().params, cov_type="bootstrap", num_replications=40)
    ratio = [result.std_errors[name] / error for name, error in fitted().std_errors.items()]
    # a standard deviation of 40 has an error of 11 %: beyond a half or a double by chance in less than 1e-4 of runs
    assert min(ratio) > 0.5
    assert max(ratio) < 2.0


ELECTRICITY = ["pf", "cl", "loc", "wk", "tod", "seas"]
GMNL = [  # printed by gmnl for its documented example: the first 3,000 rows of Electricity, model = "lc", Q = 2
    *(-0.445822, -0.184654, 1.214376, 0.964074, -3.218417, -3.486496),
    *(-0.843079, -0.124183, 1.644477, 1.413870, -9.373176, -9.264694),
    -0.220005,
]


def test_gmnl_on_electricity(shared_data: Path) -> None:
    frame = pd.read_csv(shared_data / "choice" / "electricity_long.csv").iloc[:3000]
    data = ChoiceData.from_long(
        frame, choice="choice", alternative="alt", situation="chid", individual="id", variables=ELECTRICITY
    )
    model = LatentClassModel(data, ELECTRICITY, num_classes=2)
    printed = dict(zip(model.parameters.names, GMNL, strict=True))
    assert float(model.loglik(printed).sum()) == pytest.approx(-792.86, abs=5e-3)  # as printed
    near = model.fit(start=printed)  # its optimum: of the class constant gmnl's gradient is not 0
    gaps = [abs(near.params[name] - printed[name]) / near.std_errors[name] for name in list(printed)[:-1]]
    assert max(gaps) < 0.02
    assert near.loglik == pytest.approx(-792.86, abs=6e-3)
    best = model.fit(num_starts=5)
    assert best.converged
    assert best.loglik > near.loglik + 1.5  # a better one that gmnl's start does not find


# ---------------------------------------------------------------------- known truths


def test_classes_and_covariates_of_membership_are_recovered() -> None:
    sim = two_classes(800, 8, seed=11)
    result = LatentClassModel(sim.data, **TWO).fit(num_starts=3)
    z = [(result.params[name] - true) / result.std_errors[name] for name, true in TRUTH.items()]
    # six normals beyond 4.5: by chance in 4e-5 of the runs
    assert max(map(abs, z)) < 4.5
    told_apart = result.posterior.argmax(1) == sim.classes
    assert float(told_apart.double().mean()) > 0.9  # 0.95 here
    share = (result.shares["class2"] - float((sim.classes == 1).double().mean())) / result.moment_std_errors[
        "class2.share"
    ]
    assert abs(share) < 4.5


def test_mixed_logits_within_classes_are_recovered() -> None:
    options: dict[str, Any] = {"fixed": ["price"], "random": {"time": "normal"}, "num_classes": 2}
    truth = {
        "class1.price": -1.0, "class1.time.loc": 1.5, "class1.time.scale": 0.6, "class2.price": -0.3,
        "class2.time.loc": -1.5, "class2.time.scale": 0.9, "membership.2.constant": -0.6,
    }  # fmt: skip
    sim = simulate_latent_classes(truth, **options, num_individuals=500, num_situations=8, num_alternatives=3, seed=4)
    model = LatentClassModel(sim.data, **options)
    result = model.fit(num_starts=2)
    z = [(result.params[name] - true) / result.std_errors[name] for name, true in truth.items()]
    assert max(map(abs, z)) < 4.5  # seven normals: by chance in 5e-5 of the runs
    assert result.converged
    assert result.integration.rule.startswith("Quadrature")
    assert abs(result.integration.error) < 1e-6
    # individuals' coefficients: errors in posterior standard deviations have mean square 1
    found = model.individual_coefficients(result)
    error = ((found.mean[:, 1] - sim.coefficients["time"]) / found.sd[:, 1]).square().mean()
    assert float(error) == pytest.approx(1.0, abs=0.35)  # five times sqrt(2 / 500), and the estimates' own error


def test_attribute_that_one_class_does_not_attend_to() -> None:
    truth = {**TRUTH, "class2.price": 0.0}
    sim = simulate_latent_classes(truth, **TWO, num_individuals=300, num_situations=8, num_alternatives=3, seed=2)
    model = LatentClassModel(sim.data, **TWO)
    free, result = model.fit(num_starts=3), model.fit(num_starts=3, hold={"class2.price": 0.0})
    assert result.params["class2.price"] == 0.0
    assert result.std_errors["class2.price"] == 0.0
    assert result.n_params == 5
    test = free.likelihood_ratio_test(result)
    assert test.dof == 1
    assert test.pvalue > 1e-4  # of a true hypothesis: by chance in 1e-4 of the runs
    z = [(result.params[name] - true) / result.std_errors[name] for name, true in truth.items() if true]
    assert max(map(abs, z)) < 4.5


# ---------------------------------------------------------------------- labels


def test_labels_do_not_matter() -> None:
    model = LatentClassModel(two_classes().data, **TWO)
    theta = torch.tensor(list(TRUTH.values()), dtype=torch.float64)
    swapped = model.parameters.relabelled(theta, [1, 0])
    renamed = dict(zip(TRUTH, swapped.tolist(), strict=True))
    torch.testing.assert_close(model.loglik(renamed), model.loglik(TRUTH), rtol=1e-13, atol=1e-13)
    first, second = model.fit(start=TRUTH), model.fit(start=renamed)
    assert second.params == pytest.approx(first.params, abs=1e-8)  # both at the maximum to rounding
    torch.testing.assert_close(second.posterior, first.posterior, rtol=1e-6, atol=1e-8)
    assert first.shares["class1"] > first.shares["class2"]


def test_relabelling_three_classes() -> None:
    options, params = CASES["three classes, a common coefficient"]
    model = LatentClassModel(two_classes().data, **options)
    theta = torch.tensor(list(params.values()), dtype=torch.float64)
    moved = model.parameters.relabelled(theta, [2, 0, 1])
    renamed = dict(zip(params, moved.tolist(), strict=True))
    assert renamed["class1.time"] == params["class3.time"]
    torch.testing.assert_close(model.loglik(renamed), model.loglik(params), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(model.parameters.relabelled(moved, [1, 2, 0]), theta)


def test_start_and_seed_do_not_matter() -> None:
    model = LatentClassModel(two_classes().data, **TWO)
    assert model.fit(num_starts=2, seed=100).params == pytest.approx(fitted().params, abs=1e-7)


def test_frequencies_are_individuals_alike() -> None:
    frame = torn(weights=True)
    copies = []
    for times in (1, 2, 3):
        part = frame[frame["frequency"] == times]
        copies += [
            part.assign(individual=part["individual"] + 1000 * i, situation=part["situation"] + 1000 * i, frequency=1)
            for i in range(times)
        ]
    start = {name: value for name, value in TRUTH.items() if name != "membership.2.income"}
    options = {**TWO, "membership": []}
    weighted = LatentClassModel(read(frame), **options).fit(start=start)
    copied = LatentClassModel(read(pd.concat(copies)), **options).fit(start=start)
    assert weighted.params == pytest.approx(copied.params, abs=1e-7)
    assert weighted.std_errors == pytest.approx(copied.std_errors, rel=1e-6)
    assert weighted.bic_individuals == pytest.approx(copied.bic_individuals, abs=1e-7)
    assert weighted.icl == pytest.approx(copied.icl, abs=1e-6)


def test_scales_come_out_positive() -> None:
    options: dict[str, Any] = {"fixed": ["price"], "random": {"time": "normal"}, "num_classes": 2}
    model = LatentClassModel(two_classes().data, **options, common=["time.scale"])
    rule = QuasiMonteCarlo("halton", 50)
    positive = model.fit(integration=rule, num_starts=1)
    start = {**positive.params, "time.scale": -positive.params["time.scale"]}
    negative = model.fit(integration=rule, start=start)
    assert positive.params["time.scale"] >= 0.0
    assert negative.params["time.scale"] >= 0.0


# ---------------------------------------------------------------------- what goes wrong


def test_classes_alike_at_the_start_are_refused() -> None:
    alike = {**TRUTH, "class2.price": -1.0, "class2.time": 0.5}
    with pytest.raises(InvalidInputError, match=r"class1 and class2.*Try start=None"):
        LatentClassModel(two_classes().data, **TWO).fit(start=alike)


def test_classes_start_apart_where_a_family_has_the_wrong_sign() -> None:
    # prices are disliked by all: every class starts with the least that a positive coefficient may be
    model = LatentClassModel(two_classes().data, random={"price": "lognormal"}, num_classes=2, common=["price.scale"])
    start = LatentSearch(model.data, model.parameters, model._covariates, {}).start(0)
    first, second = start[model.parameters.positions]
    assert first[1] == second[1]
    assert abs(float(first[0] - second[0])) > 0.01


def test_too_many_classes_are_named() -> None:
    # a mixture of any number of classes is no more likely than one of three, here: further ones repeat them
    model = LatentClassModel(two_classes(30, 3).data, ["price", "time"], num_classes=3)
    three = model.fit(num_starts=2)
    assert three.converged
    with pytest.warns(ConvergenceWarning, match=r"not converged: .*alike.*Try fewer classes"):
        four = model.with_classes(4).fit(num_starts=2)
    assert four.loglik == pytest.approx(three.loglik, abs=1e-4)
    assert not four.converged
    assert four.degenerate == ("class2, class3 are alike",)
    assert "degenerate: class2, class3 are alike" in four.summary
    with pytest.warns(ConvergenceWarning, match="are not told apart by the data"):
        model.with_classes(5).fit(num_starts=1)


def test_a_class_with_fewer_members_than_parameters_is_named() -> None:
    with pytest.warns(ConvergenceWarning, match="Try fewer classes"):
        result = LatentClassModel(two_classes(30, 3).data, ["price", "time"], num_classes=8).fit(num_starts=2)
    assert any("members for 2 parameters of its own" in what for what in result.degenerate)


def test_classes_without_a_maximum_have_not_converged() -> None:
    # one half take what is cheapest, the others what is fastest: their coefficients have no bound
    data = two_classes(60).data
    price, time = data.attribute("price").argmin(1), data.attribute("time").argmax(1)
    data = replace(data, choice=torch.where(data.individual < 30, price, time))
    model = LatentClassModel(data, ["price", "time"], num_classes=2)
    with pytest.warns(ConvergenceWarning, match=r"not converged: .*class1.price.*move on without end"):
        result = model.fit(num_starts=2)
    assert not result.converged
    assert not any(math.isnan(x) for x in result.params.values())


def test_converged_results_have_standard_errors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        results = choose_classes(LatentClassModel(two_classes(40).data, **TWO), 4, num_starts=2).results
    told = [r.converged and any(math.isnan(x) for x in r.std_errors.values()) for r in results]
    assert told == [False] * 4


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no class": ({"num_classes": 0}, "num_classes: got 0"),
    "half a class": ({"num_classes": 1.5}, "num_classes: got 1.5"),
    "more classes than individuals": ({"num_classes": 200}, "200 classes of 150 individuals"),
    "unknown covariate": ({"membership": ["age"]}, "variable: got 'age'"),
    "covariate that varies": ({"membership": ["price"]}, "attribute 'price': got different values"),
    "covariate twice": ({"membership": ["income", "income"]}, "each covariate once"),
    "collinear covariates": ({"membership": ["income", "double"]}, r"membership by \['income', 'double'\]"),
    "constant covariate": ({"membership": ["one"]}, r"membership by \['one'\]"),
    "covariates as text": ({"membership": "income"}, r"membership: got 'income'.*Try membership=\['income'\]"),
    "unknown common": ({"common": ["age"]}, r"common: got \['age'\]"),
    "all common": ({"common": ["price", "time"]}, "not all of them"),
    "common as text": ({"common": "price"}, r"common: got 'price'"),
    "unknown attribute": ({"fixed": ["age"]}, "variable: got 'age'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_models_are_refused(case: str) -> None:
    options, says = BAD[case]
    data = two_classes().data
    income = data.attribute("income")
    more = torch.stack([2.0 * income + 1.0, torch.ones_like(income)], -1)
    data = replace(
        data, attributes=torch.cat([data.attributes, more], -1), variables=(*data.variables, "double", "one")
    )
    with pytest.raises(InvalidInputError, match=says):
        LatentClassModel(data, **{**TWO, **options})


BAD_FITS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown start": ({"start": {"price": 1.0}}, r"start: got \['price'\]"),
    "start nan": ({"start": {"class1.price": math.nan}}, r"start\['class1.price'\]: got nan"),
    "unknown hold": ({"hold": {"class3.price": 1.0}}, r"hold: got \['class3.price'\]"),
    "all held": ({"hold": TRUTH}, "all parameters"),
    "no start": ({"num_starts": 0}, "num_starts: got 0"),
    "negative redraws": ({"num_redraws": -1}, "num_redraws: got -1"),
    "one replication": ({"num_replications": 1}, "num_replications: got 1"),
    "unknown covariance": ({"cov_type": "best"}, "cov_type: got 'best'"),
    "unknown cluster": ({"cov_type": "clustered(town)"}, "cluster: got column 'town'"),
}


@pytest.mark.parametrize("case", BAD_FITS)
def test_bad_fits_are_refused(case: str) -> None:
    options, says = BAD_FITS[case]
    with pytest.raises(InvalidInputError, match=says):
        LatentClassModel(two_classes().data, **TWO).fit(**options)


def test_collinear_attributes_are_named() -> None:
    data = two_classes().data
    double = (2.0 * data.attribute("price"))[..., None]
    data = replace(data, attributes=torch.cat([data.attributes, double], -1), variables=(*data.variables, "cost"))
    with pytest.raises(ConvergenceError, match=r"coefficients of \['price', 'cost'\]"):
        LatentClassModel(data, ["price", "time", "cost"], num_classes=2).fit()


def test_names_that_meet_are_refused() -> None:
    spec = MixedLogitModel(two_classes().data, ["price"]).specification
    odd = replace(spec, fixed=("x", "class1.x"))
    with pytest.raises(InvalidInputError, match="twice"):
        LatentParameters(odd, 2, common=("class1.x",))


# ---------------------------------------------------------------------- after the fit


def test_posteriors_follow_bayes() -> None:
    result, model = fitted(), LatentClassModel(two_classes().data, **TWO)
    p = result.params
    odds = p["membership.2.constant"] + p["membership.2.income"] * model.data.covariate("income")
    prior = torch.stack([torch.sigmoid(-odds), torch.sigmoid(odds)], 1)
    logit = MixedLogitModel(model.data, ["price", "time"])
    likelihood = torch.stack(
        [logit.loglik({x: p[f"class{c}.{x}"] for x in ("price", "time")}).exp() for c in (1, 2)], 1
    )
    expected = prior * likelihood / (prior * likelihood).sum(1, keepdim=True)
    torch.testing.assert_close(result.posterior, expected, rtol=1e-10, atol=1e-12)
    frame = result.posterior_frame()
    assert list(frame.columns) == ["class1", "class2"]
    assert frame.index.tolist() == list(model.data.individuals)
    np.testing.assert_allclose(frame.sum(axis=1), 1.0, rtol=1e-12)
    # at the maximum prior and posterior shares agree, since membership has a constant
    assert float(result.posterior[:, 1].mean()) == pytest.approx(result.shares["class2"], abs=1e-8)


def test_criteria() -> None:
    result = fitted()
    h = result.posterior.numpy()
    doubt = -(h * np.log(h)).sum()
    assert result.n_params == 6
    assert result.aic == pytest.approx(12 - 2 * result.loglik)
    assert result.bic == pytest.approx(6 * math.log(900) - 2 * result.loglik)
    assert result.bic_individuals == pytest.approx(6 * math.log(150) - 2 * result.loglik)
    assert result.caic == pytest.approx(6 * (math.log(150) + 1) - 2 * result.loglik)
    assert result.icl == pytest.approx(6 * math.log(150) - 2 * result.loglik + 2 * doubt)
    assert result.entropy == pytest.approx(1 - doubt / (150 * math.log(2)))


def test_shares_have_delta_errors() -> None:
    result, model = fitted(), LatentClassModel(two_classes().data, **TWO)
    income = model.data.covariate("income")

    def share(constant: float, slope: float) -> float:
        return float(torch.sigmoid(constant + slope * income).mean())

    at = [result.params["membership.2.constant"], result.params["membership.2.income"]]
    slopes = np.array(
        [(share(at[0] + a, at[1] + b) - share(at[0] - a, at[1] - b)) / 2e-5 for a, b in ((1e-5, 0.0), (0.0, 1e-5))]
    )
    error = math.sqrt(slopes @ result.cov[-2:, -2:].numpy() @ slopes)
    assert result.shares["class2"] == pytest.approx(share(*at), rel=1e-12)
    assert result.moment_std_errors["class2.share"] == pytest.approx(error, rel=1e-6)
    assert result.moment_std_errors["class1.share"] == pytest.approx(error, rel=1e-6)


def test_individual_coefficients_are_means_over_classes() -> None:
    result, model = fitted(), LatentClassModel(two_classes().data, **TWO)
    found = model.individual_coefficients(result)
    h = result.posterior
    prices = torch.tensor([result.params["class1.price"], result.params["class2.price"]], dtype=torch.float64)
    mean = h @ prices
    torch.testing.assert_close(found.mean[:, 0], mean)
    torch.testing.assert_close(found.sd[:, 0], (h @ prices**2 - mean**2).clamp_min(0.0).sqrt(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.positive[:, 1], h @ (torch.tensor([1.0, 0.0], dtype=torch.float64)))
    assert found.to_frame().shape == (150, 6)


def test_a_class_serves_post_estimation() -> None:
    result, model = fitted(), LatentClassModel(two_classes().data, **TWO)
    second = model.class_result(result, 2)
    assert second.params == {"price": result.params["class2.price"], "time": result.params["class2.time"]}
    assert second.n_individuals == pytest.approx(150 * result.shares["class2"], rel=1e-7)
    worth = willingness_to_pay(model.within, second, "time", "price")
    assert worth.values["ratio"] == pytest.approx(-second.params["time"] / second.params["price"])
    by_class = [model.class_result(result, c) for c in (1, 2)]
    complete = sum(one.loglik for one in by_class)
    # log-likelihood = that of complete data, and what membership adds
    h = result.posterior
    membership = float((h * (result.prior.log() - h.log())).sum())
    assert complete + membership == pytest.approx(result.loglik, rel=1e-10)
    assert isinstance(second, MixedLogitResult)
    assert individual_posteriors(model.within, second).mean.shape == (150, 2)


@pytest.mark.parametrize("conditional", [False, True], ids=["population", "given choices"])
def test_probabilities_are_means_over_classes(conditional: bool) -> None:
    result, model = fitted(), LatentClassModel(two_classes().data, **TWO)
    data = model.data
    share = (result.posterior if conditional else result.prior)[data.individual]
    x = torch.stack([data.attribute("price"), data.attribute("time")], -1)
    expected = torch.zeros_like(x[..., 0])
    for c in (0, 1):
        beta = [result.params[f"class{c + 1}.{name}"] for name in ("price", "time")]
        expected += share[:, c, None] * torch.softmax(x @ torch.tensor(beta, dtype=torch.float64), 1)
    torch.testing.assert_close(model.probabilities(result, conditional=conditional), expected, rtol=1e-10, atol=1e-12)
    last = data.individual >= 140  # some of the individuals, in a scenario
    few = replace(
        data,
        attributes=data.attributes[last],
        available=data.available[last],
        choice=data.choice[last],
        individual=data.individual[last] - 140,
        weights=data.weights[140:],
        individuals=data.individuals[140:],
    )
    found = model.probabilities(result, few, conditional=conditional)
    torch.testing.assert_close(found, expected[last], rtol=1e-10, atol=1e-12)


def test_class_and_result_must_fit() -> None:
    result, model = fitted(), LatentClassModel(two_classes().data, **TWO)
    with pytest.raises(InvalidInputError, match="number: got 3; expected 1 to 2"):
        model.class_result(result, 3)
    with pytest.raises(InvalidInputError, match="those of the model"):
        model.with_classes(3).class_result(result, 1)


def test_wald_and_likelihood_ratio_tests() -> None:
    result, data = fitted(), two_classes().data
    smaller = LatentClassModel(data, **{**TWO, "membership": []}).fit(num_starts=3)
    test = result.likelihood_ratio_test(smaller)
    assert test.dof == 1
    assert test.statistic == pytest.approx(2 * (result.loglik - smaller.loglik))
    assert result.wald_test("class1.price = class2.price").dof == 1
    one = LatentClassModel(data, **{**TWO, "num_classes": 1}).fit()
    with pytest.raises(InvalidInputError, match="their number has no chi-square test"):
        result.likelihood_ratio_test(one)
    common = LatentClassModel(data, **TWO, common=["price"]).fit(num_starts=3)
    with pytest.raises(InvalidInputError, match="common to all classes"):
        result.likelihood_ratio_test(common)


def test_summary_speaks_of_classes() -> None:
    summary = fitted().summary
    assert summary.startswith("Latent classes, 2 classes of price, time; membership by income: 150 individuals, 900")
    assert "membership.2.income" in summary
    assert "class2.share" in summary
    assert "of 3 starts ended at this maximum" in summary
    assert "not in the model" not in summary
    assert summary.as_html().startswith("<table>")
    assert r"\begin{tabular}" in summary.as_latex()
    assert "class1.price" in compare([fitted()], ["two"])


def test_saved_and_loaded(tmp_path: Path) -> None:
    result = fitted()
    result.save(tmp_path / "two.safetensors")
    again = LatentClassResult.load(tmp_path / "two.safetensors")
    assert again.summary == result.summary
    assert again.individuals == result.individuals
    assert torch.equal(again.posterior, result.posterior)
    with pytest.raises(InvalidInputError, match="other fields"):
        MixedLogitResult.load(tmp_path / "two.safetensors")
    labelled = replace(result, individuals=tuple((i, "a") for i in range(150)))
    with pytest.raises(InvalidInputError, match="individuals"):
        labelled.save(tmp_path / "labels.safetensors")


def test_too_few_draws_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_COARSE", 0.0)
    options: dict[str, Any] = {"fixed": [], "random": {"price": "normal", "time": "normal"}, "num_classes": 1}
    model = LatentClassModel(two_classes(60).data, **options)
    with pytest.warns(IntegrationWarning, match="too few draws in .*Try integration= with more draws"):
        model.fit(num_redraws=1)
    assert model.fit(integration=QuasiMonteCarlo("halton", 50), num_redraws=1).coarse  # a rule that was asked for


# ---------------------------------------------------------------------- how many classes


def test_the_number_of_classes_is_found() -> None:
    model = LatentClassModel(two_classes(200, 8, seed=6).data, **TWO)
    choice = choose_classes(model, 3, num_starts=3, num_folds=2)
    logliks = [result.loglik for result in choice.results]
    assert logliks == sorted(logliks)
    # criteria that are consistent; classes this far apart are missed with a probability too small to state
    assert choice.best("bic").num_classes == 2
    assert choice.best("bic_individuals").num_classes == 2
    assert choice.best("caic").num_classes == 2
    assert choice.best("cross_validation").num_classes >= 2
    frame = choice.to_frame()
    assert frame.index.tolist() == [1, 2, 3]
    assert frame["n_params"].tolist() == [2, 6, 10]
    assert frame["smallest"].iloc[0] == pytest.approx(1.0)
    assert frame["cross_validation"].tolist() == [one.loglik for one in choice.cross_validation]
    assert f"{choice.results[1].bic:.8g}*" in choice.summary
    assert choice.summary.as_latex().count("\\\\") >= 5


@pytest.mark.parametrize("criterion", ["deviance", "cross_validation"])
def test_unknown_criteria_are_refused(criterion: str) -> None:
    choice = choose_classes(LatentClassModel(two_classes().data, **TWO), 1)
    with pytest.raises(InvalidInputError, match="criterion"):
        choice.best(criterion)


@pytest.mark.parametrize("most", [0, 2.0])
def test_bad_numbers_of_classes_are_refused(most: Any) -> None:
    with pytest.raises(InvalidInputError, match="max_classes"):
        choose_classes(LatentClassModel(two_classes().data, **TWO), most)


# ---------------------------------------------------------------------- simulation


def test_simulated_classes_follow_membership() -> None:
    sim = two_classes(4000, 1, seed=9)
    odds = TRUTH["membership.2.constant"] + TRUTH["membership.2.income"] * sim.data.covariate("income")
    p = torch.sigmoid(odds)
    z = (sim.classes - p).sum() / (p * (1 - p)).sum().sqrt()
    slope = ((sim.classes - p) * sim.data.covariate("income")).sum()
    slope = slope / (p * (1 - p) * sim.data.covariate("income") ** 2).sum().sqrt()
    assert abs(float(z)) < 5.0  # by chance in 6e-7 of the runs, both
    assert abs(float(slope)) < 5.0
    expected = torch.tensor([-1.0, -0.2], dtype=torch.float64)[sim.classes]
    assert torch.equal(sim.coefficients["price"], expected)


@pytest.mark.parametrize("c", [0, 1])
def test_simulated_choices_follow_the_logit_of_their_class(c: int) -> None:
    # Sum of (chosen - P) x over the choices of a class, in standard deviations: |z| <= 5, by chance 6e-7
    sim = two_classes(4000, 1, seed=9)
    rows = sim.classes[sim.data.individual] == c
    x = sim.data.attribute("time")[rows]
    u = sim.coefficients["price"][:, None] * sim.data.attribute("price") + sim.coefficients["time"][
        :, None
    ] * sim.data.attribute("time")
    p = torch.softmax(u[rows], 1)
    chosen = x.gather(1, sim.data.choice[rows][:, None])[:, 0]
    mean = (p * x).sum(1)
    variance = ((p * x**2).sum(1) - mean**2).sum()
    assert abs(float((chosen - mean).sum() / variance.sqrt())) < 5.0


def test_simulation_on_given_data() -> None:
    data = read(torn(weights=True))
    model = LatentClassModel(data, **TWO)
    state = torch.random.get_rng_state()
    first, again, other = (model.simulate(TRUTH, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.data.choice, again.data.choice)
    assert torch.equal(first.classes, again.classes)
    assert not torch.equal(first.data.choice, other.data.choice)
    assert torch.equal(first.data.weights, data.weights)
    assert bool(data.available.gather(1, first.data.choice[:, None]).all())
    assert torch.equal(first.data.attributes, data.attributes)
    assert first.params == TRUTH
    same = simulate_latent_classes(TRUTH, **TWO, data=data, seed=1)
    assert torch.equal(same.data.choice, first.data.choice)
    assert "income" in first.frame


BAD_TRUTHS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"truth": {"class1.price": 1.0}}, "truth: got no"),
    "unknown": ({"truth": {**TRUTH, "price": 1.0}}, r"truth: got \['price'\]"),
    "data and counts": ({"num_individuals": 5}, "beside data="),
}


@pytest.mark.parametrize("case", BAD_TRUTHS)
def test_what_cannot_be_simulated_is_refused(case: str) -> None:
    options, says = BAD_TRUTHS[case]
    with pytest.raises(InvalidInputError, match=says):
        simulate_latent_classes(**{"truth": TRUTH, **TWO, "data": two_classes().data, "seed": 0, **options})


@pytest.mark.parametrize("name", ["predict", "elasticities", "willingness_to_pay", "consumer_surplus", "posteriors"])
def test_what_a_mixed_logit_is_for_names_the_classes_of_a_latent_one(name: str) -> None:
    truth = {"class1.a": -1.0, "class1.b": 0.5, "class2.a": -0.3, "class2.b": -0.9, "membership.2.constant": -0.4}
    sim = simulate_latent_classes(truth, num_classes=2, fixed=["a", "b"], num_individuals=5, seed=1)
    model: Any = LatentClassModel(sim.data, fixed=["a", "b"], num_classes=2)
    calls = {
        "predict": lambda: econometrics.predict(model, model),
        "elasticities": lambda: econometrics.elasticities(model, model, "a"),
        "willingness_to_pay": lambda: econometrics.willingness_to_pay(model, model, "b", "a"),
        "consumer_surplus": lambda: econometrics.consumer_surplus(model, model, "a"),
        "posteriors": lambda: econometrics.individual_posteriors(model, model),
    }
    with pytest.raises(InvalidInputError, match=r"LatentClassModel; expected a MixedLogitModel. Try model.within"):
        calls[name]()
