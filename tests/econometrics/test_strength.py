from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pyro.distributions as dist
import pytest
import torch

from mixlogit_align import (
    FixedDraws,
    MixedLogit,
    MixedMultinomialLogit,
    MonteCarlo,
    PanelMixedLogit,
    Quadrature,
    QuasiMonteCarlo,
)
from mixlogit_align.distributions import Triangular
from mixlogit_align.econometrics import (
    ChoiceData,
    MixedLogitModel,
    SimulatedChoices,
    simulate_choices,
    strength_likelihood,
)
from mixlogit_align.errors import ConvergenceError, ConvergenceWarning, InvalidInputError


def f64(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


MIXING: dict[str, Callable[..., Any]] = {
    "normal": dist.Normal,
    "lognormal": dist.LogNormal,
    "uniform": lambda loc, scale: dist.Uniform(loc - scale, loc + scale),
    "triangular": lambda loc, scale: Triangular(loc - scale, loc + scale),
    "gamma": dist.Gamma,
}
TRUTH = {
    "normal": {"x.loc": 1.0, "x.scale": 1.0},
    "lognormal": {"x.loc": 0.3, "x.scale": 0.7},
    "uniform": {"x.loc": 1.0, "x.scale": 1.8},
    "triangular": {"x.loc": 1.0, "x.scale": 2.4},
    "gamma": {"x.concentration": 2.0, "x.rate": 1.5},
}
WIDE = dist.Normal(*f64(0.0, 1.5))


def simulated(
    family: str = "lognormal", *, individuals: int = 150, situations: int = 8, seed: int = 1
) -> SimulatedChoices:
    return simulate_choices(
        MIXING[family](*f64(*TRUTH[family].values())),
        num_individuals=individuals,
        num_situations=situations,
        attribute=WIDE,
        seed=seed,
    )


def long_columns(frame: pd.DataFrame, **changes: Any) -> ChoiceData:
    columns = {"choice": "choice", "alternative": "alternative", "situation": "situation", "individual": "individual"}
    return ChoiceData.from_long(frame, **(columns | {"variables": ["x"]} | changes))


def fit(data: ChoiceData, random: Any = "lognormal", **options: Any) -> Any:
    return MixedLogitModel(data, random={"x": random}).fit(**options)


def assert_same_fit(one: Any, other: Any, *, tolerance: float = 1e-7) -> None:
    """Equal up to the optimiser's stopping rule, 1e-6 standard errors, which are below 1 here."""
    assert one.loglik == pytest.approx(other.loglik, rel=1e-11)
    assert one.params == pytest.approx(other.params, rel=tolerance, abs=tolerance)
    assert one.std_errors == pytest.approx(other.std_errors, rel=1e-6)


@pytest.mark.parametrize(
    ("family", "individuals", "situations"),
    [
        *((family, 120, 8) for family in TRUTH),
        ("normal", 600, 1),
        ("lognormal", 2000, 1),
        ("gamma", 2000, 1),
    ],
)
def test_recovers_the_truth(family: str, individuals: int, situations: int) -> None:
    """|z| <= 4.5 of both parameters.

    Were z normal, chance would exceed that in 7e-6 of the estimates; the gamma's are skewed: over 300 other samples of
    twice this size |z| went up to 3.7.
    """
    sample = simulated(family, individuals=individuals, situations=situations)
    result = fit(sample.data, family)
    for name, true in TRUTH[family].items():
        assert abs(result.params[name] - true) <= 4.5 * result.std_errors[name], name
    assert result.converged
    assert not result.at_boundary
    assert result.gradient_norm <= 1e-6
    assert bool((result.hessian_eigenvalues > 0).all())
    assert result.loglik > result.fixed.loglik
    assert abs(result.integration.error) <= 1e-6
    assert result.nobs == individuals * situations


@pytest.mark.parametrize("family", TRUTH)
@pytest.mark.parametrize("situations", [1, 5])
def test_is_the_likelihood_of_the_distribution(family: str, situations: int) -> None:
    sample = simulated(family, individuals=40, situations=situations)
    difference = sample.attributes[..., 1] - sample.attributes[..., 0]
    mixing = MIXING[family](*f64(1.1, 0.6))
    if situations == 1:
        expected = MixedLogit(difference[:, 0], mixing).log_prob(sample.choice[:, 0].double())
    else:
        expected = PanelMixedLogit(difference, mixing).log_prob(sample.choice.double())
    ours = MixedLogitModel(sample.data, random={"x": family}).loglik(mixing)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=0)


def test_choices_among_several_are_the_multinomial_distribution() -> None:
    mixing = dist.Normal(*f64(1.0, 0.8))
    sample = simulate_choices(mixing, num_individuals=800, num_alternatives=3, attribute=WIDE, seed=4)
    model = MixedLogitModel(sample.data, random={"x": "normal"})
    expected = MixedMultinomialLogit(sample.attributes[:, 0], mixing).log_prob(sample.choice[:, 0])
    torch.testing.assert_close(model.loglik(mixing), expected, rtol=1e-10, atol=0)
    result = model.fit()
    assert result.converged
    for name, true in {"x.loc": 1.0, "x.scale": 0.8}.items():
        assert abs(result.params[name] - true) <= 4.5 * result.std_errors[name], name


def test_gamma_by_closed_form_and_by_quadrature() -> None:
    data = simulated("gamma", individuals=1500, situations=1).data
    closed, quadrature = fit(data, "gamma"), fit(data, "gamma", integration=Quadrature())
    assert closed.integration.rule == "ClosedForm()"
    assert quadrature.integration.rule == repr(Quadrature())
    assert_same_fit(closed, quadrature)


@pytest.mark.parametrize("start", [{"x.loc": -1.0, "x.scale": 2.0}, {"x.loc": 1.0, "x.scale": 0.05}])
def test_the_start_does_not_matter(start: dict[str, float]) -> None:
    data = simulated().data
    assert_same_fit(fit(data, start=start), fit(data))
    assert_same_fit(fit(data, dist.LogNormal(start["x.loc"], start["x.scale"])), fit(data))


def renamed(frame: pd.DataFrame) -> pd.DataFrame:
    shuffled = frame.sample(frac=1.0, random_state=0)
    return shuffled.assign(
        individual=shuffled["individual"].map("person {}".format),
        alternative=shuffled["alternative"].map({0: "a", 1: "b"}),
    )


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(renamed, id="order and type of ids"),
        pytest.param(lambda f: f.assign(alternative=1 - f["alternative"]), id="names of the alternatives"),
        pytest.param(lambda f: f.assign(x=f["x"] + 5.0 * (f["situation"] % 3)), id="what both alternatives share"),
        pytest.param(lambda f: f.assign(situation=f["situation"] % 8), id="situations numbered anew"),
    ],
)
def test_cosmetic_changes_do_not_matter(change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    frame = simulated().frame
    assert_same_fit(fit(long_columns(change(frame))), fit(long_columns(frame)))


@pytest.mark.parametrize("units", [1e-4, 1e4])
def test_units_rescale_the_strength(units: float) -> None:
    frame = simulated("normal", individuals=60).frame
    plain, scaled = fit(long_columns(frame), "normal"), fit(long_columns(frame.assign(x=frame["x"] * units)), "normal")
    assert scaled.loglik == pytest.approx(plain.loglik, rel=1e-10)
    assert {k: v * units for k, v in scaled.params.items()} == pytest.approx(plain.params, rel=1e-6)
    assert {k: v * units for k, v in scaled.std_errors.items()} == pytest.approx(plain.std_errors, rel=1e-6)


def test_minus_a_lognormal_is_a_lognormal_of_minus_the_attribute() -> None:
    frame = simulated().frame
    positive, negative = fit(long_columns(frame)), fit(long_columns(frame.assign(x=-frame["x"])), "-lognormal")
    assert_same_fit(negative, positive)
    assert negative.moments["x.mean"] == pytest.approx(-positive.moments["x.mean"], rel=1e-7)
    assert negative.fixed.estimate == pytest.approx(-positive.fixed.estimate, rel=1e-7)


@pytest.mark.parametrize("cov_type", ["hessian", "bhhh", "robust"])
@pytest.mark.parametrize("situations", [1, 6])
def test_a_frequency_is_so_many_individuals(cov_type: str, situations: int) -> None:
    frame = simulated(individuals=300 if situations == 1 else 60, situations=situations).frame
    times = frame["individual"] % 3 + 1
    copies = [frame[times > k].assign(individual=lambda f, k=k: f["individual"] + 1000 * k) for k in range(3)]
    repeated = pd.concat(copies).assign(situation=lambda f: f["situation"] + 100_000 * (f["individual"] // 1000))
    individual = {} if situations > 1 else {"individual": None}
    weighted = long_columns(frame.assign(times=times), weights="times", **individual)
    one, other = (fit(data, cov_type=cov_type) for data in (weighted, long_columns(repeated, **individual)))
    assert_same_fit(one, other)
    assert one.n_individuals == other.n_individuals


def test_an_unbalanced_panel_is_the_product_over_its_individuals() -> None:
    frame = simulated(individuals=12, situations=6).frame
    uneven = frame[frame["situation"] % 6 <= frame["individual"] % 6]
    mixing = dist.LogNormal(*f64(0.2, 0.9))
    ours = MixedLogitModel(long_columns(uneven), random={"x": "lognormal"}).loglik(mixing)
    for n, (_, rows) in enumerate(uneven.groupby("individual")):
        x = torch.tensor(rows["x"].to_numpy()).reshape(-1, 2)
        second = torch.tensor(rows["choice"].to_numpy()).reshape(-1, 2)[:, 1].double()
        alone = PanelMixedLogit(x[:, 1] - x[:, 0], mixing).log_prob(second)
        torch.testing.assert_close(ours[n], alone, rtol=1e-10, atol=0)


@pytest.mark.parametrize("situations", [1, 4])
@pytest.mark.parametrize(
    "rule",
    [
        None,
        MonteCarlo(8, seed=3),
        MonteCarlo(8, sharing="batch", seed=3),
        QuasiMonteCarlo("halton", 8),
        FixedDraws(torch.linspace(-2, 2, 50, dtype=torch.float64)),
        FixedDraws(torch.linspace(-2, 2, 150, dtype=torch.float64).reshape(50, 3)),
        FixedDraws(
            torch.linspace(-2, 2, 150, dtype=torch.float64).reshape(50, 3),
            torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64).expand(50, 3),
        ),
    ],
    ids=str,
)
def test_chunks_do_not_matter(rule: Any, situations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = simulated(individuals=50, situations=situations).data
    mixing = dist.LogNormal(*f64(0.2, 0.9))
    whole = MixedLogitModel(data, random={"x": "lognormal"}).loglik(mixing, rule)
    monkeypatch.setattr(strength_likelihood, "_CHUNK", 7 * situations)
    torch.testing.assert_close(MixedLogitModel(data, random={"x": "lognormal"}).loglik(mixing, rule), whole)


def test_standard_errors_by_finite_differences() -> None:
    """All three covariances from scores and Hessian by central differences in the natural parameters."""
    data = simulated(individuals=80).data
    model = MixedLogitModel(data, random={"x": "lognormal"})
    result = model.fit()
    at = torch.tensor(list(result.params.values()), dtype=torch.float64)
    step = 1e-3  # the error of a central difference is about its square

    def loglik(params: torch.Tensor) -> torch.Tensor:
        return model.loglik(dist.LogNormal(params[0], params[1]))

    unit = torch.eye(2, dtype=torch.float64) * step
    scores = torch.stack([(loglik(at + e) - loglik(at - e)) / (2 * step) for e in unit], -1)
    hessian = torch.stack(
        [
            torch.stack(
                [
                    (loglik(at + e + f) - loglik(at + e - f) - loglik(at - e + f) + loglik(at - e - f)).sum()
                    for f in unit
                ]
            )
            for e in unit
        ]
    ) / (4 * step**2)
    bread, meat = torch.linalg.inv(-hessian), scores.T @ scores
    expected = {"hessian": bread, "bhhh": torch.linalg.inv(meat), "robust": bread @ meat @ bread}
    for cov_type, covariance in expected.items():
        torch.testing.assert_close(model.fit(cov_type=cov_type).cov, covariance, rtol=1e-3, atol=0)


@pytest.mark.parametrize("family", ["lognormal", "gamma"])
def test_moments_are_the_mixings(family: str) -> None:
    result = fit(simulated(family, individuals=80).data, family)
    mixing = MIXING[family](*f64(*result.params.values()))
    assert result.moments == pytest.approx({"x.mean": float(mixing.mean), "x.sd": float(mixing.stddev)}, rel=1e-12)
    assert float(result.mixing.mean) == pytest.approx(result.moments["x.mean"], rel=1e-12)


def test_the_integration_error_is_what_a_finer_rule_changes() -> None:
    data = simulated(individuals=60).data
    model = MixedLogitModel(data, random={"x": "lognormal"})
    rough = model.fit(integration=QuasiMonteCarlo("halton", 32))
    mixing = dist.LogNormal(*f64(*rough.params.values()))
    assert rough.integration.error == pytest.approx(float(model.loglik(mixing).sum()) - rough.loglik, abs=1e-7)
    assert abs(rough.integration.error) > 1e-3
    assert "QuasiMonteCarlo" in rough.integration.rule
    assert "Quadrature" in rough.integration.reference


def test_the_summary_says_it_all() -> None:
    result = fit(simulated(individuals=60).data)
    assert repr(result) == result.summary
    for word in (
        "x.loc",
        "x.scale",
        "x.mean",
        "fixed strength",
        "log-likelihood",
        "converged",
        "Quadrature",
        "hessian",
    ):
        assert word in result.summary
    assert "NOT converged" in replace(result, converged=False).summary
    for absent in ("†", "not in the model"):
        assert absent not in result.summary


def test_the_summary_names_attributes_without_a_coefficient() -> None:
    frame = simulated(individuals=60).frame.assign(age=40, cost=lambda f: f["x"] ** 2)
    result = fit(long_columns(frame, variables=None))
    assert "not in the model: age, cost" in result.summary.splitlines()
    assert result.params == fit(long_columns(frame)).params


def no_heterogeneity(seed: int, *, individuals: int = 400, situations: int = 1) -> ChoiceData:
    mixing = dist.Delta(*f64(1.0))
    return simulate_choices(
        mixing, num_individuals=individuals, num_situations=situations, attribute=WIDE, seed=seed
    ).data


@pytest.mark.parametrize("family", ["lognormal", "gamma", "normal"])
@pytest.mark.parametrize("cov_type", ["hessian", "bhhh", "robust"])
def test_no_heterogeneity_ends_at_the_boundary_with_finite_answers(family: str, cov_type: Any) -> None:
    data = no_heterogeneity(3, individuals=60, situations=8)
    result = fit(data, family, cov_type=cov_type)
    assert result.at_boundary
    assert result.converged
    assert "boundary" in result.summary
    marked = [line.split()[0] for line in result.summary.splitlines() if line.endswith("†")]
    assert marked == (["x.sd"] if family == "gamma" else ["x.scale", "x.sd"])
    assert "† no standard error" in result.summary
    assert result.loglik == pytest.approx(result.fixed.loglik, abs=1e-7)
    assert result.moments == pytest.approx({"x.mean": result.fixed.estimate, "x.sd": 0.0})
    assert not any(math.isnan(v) for v in (*result.params.values(), *result.std_errors.values()))
    assert all(0.0 < v < 1.0 for v in result.moment_std_errors.values())
    assert bool((result.hessian_eigenvalues > 0).all())
    expected = {"x.concentration": math.inf, "x.rate": math.inf} if family == "gamma" else {"x.scale": 0.0}
    assert {name: result.params[name] for name in expected} == expected
    # beside the spread stands where the log-likelihood has fallen by 1/2
    model = MixedLogitModel(data, random={"x": family})
    spread = result.moment_std_errors["x.sd"] / (result.fixed.estimate if family != "normal" else 1.0)
    centre = torch.tensor(result.fixed.estimate, dtype=torch.float64)
    centre = centre if family == "normal" else centre.log()
    mixing = model._strength._family.mixing(torch.stack([centre, torch.tensor(spread, dtype=torch.float64).log()]))
    assert float(model.loglik(mixing).sum()) == pytest.approx(result.loglik - 0.5, abs=0.01)


def test_half_of_the_samples_without_heterogeneity_end_at_the_boundary() -> None:
    """The score of the squared spread is positive in half of the samples: of 12, all or none with chance 5e-4.

    2 (loglik - fixed) is 0 or chi-squared(1), half and half: above 12 in one of the 12 with chance 0.3 %.
    """
    results = [fit(no_heterogeneity(seed)) for seed in range(12)]
    assert 0 < sum(result.at_boundary for result in results) < 12
    assert all(result.converged for result in results)
    assert max(2 * (result.loglik - result.fixed.loglik) for result in results) < 12
    assert all(abs(r.moments["x.mean"] - 1.0) <= 4.5 * r.moment_std_errors["x.mean"] for r in results)


def test_an_attribute_of_one_size_does_not_tell_heterogeneity() -> None:
    frame = simulated(situations=1).frame.assign(x=lambda f: f["alternative"].astype(float))
    frame["choice"] = (frame["alternative"] == (frame["situation"] % 3 > 0)).astype(int)
    with pytest.warns(ConvergenceWarning, match="too few values"):
        result = fit(long_columns(frame, individual=None))
    assert not result.converged
    assert math.isnan(result.std_errors["x.scale"])


def test_a_likelihood_without_a_maximum_is_never_converged() -> None:
    # in this small sample the lognormal's log-likelihood rises for ever with its scale
    data = simulate_choices(dist.LogNormal(*f64(0.0, 0.5)), num_individuals=20, attribute=WIDE, seed=2).data
    with pytest.warns(ConvergenceWarning):
        result = fit(data)
    assert not result.converged
    assert "NOT converged" in result.summary


def test_separated_choices_have_no_estimate() -> None:
    frame = simulated(individuals=30).frame
    best = frame.groupby("situation")["x"].transform("max")
    with pytest.raises(ConvergenceError, match="fixed strength of 'x'"):
        fit(long_columns(frame.assign(choice=(frame["x"] == best).astype(int))))


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_an_attribute_that_does_not_vary_has_no_estimate(value: float) -> None:
    with pytest.raises(InvalidInputError, match="var"):
        fit(long_columns(simulated(individuals=30).frame.assign(x=value)))


def test_a_positive_family_needs_a_positive_effect() -> None:
    frame = simulated(individuals=30).frame
    with pytest.raises(InvalidInputError, match="sign=-1"):
        fit(long_columns(frame.assign(x=-frame["x"])))


@pytest.mark.parametrize(
    ("random", "says"),
    [
        ({}, "no coefficient"),
        ({"speed": "normal"}, "'speed'.*'x'"),
        ({"x": "cauchy"}, "'cauchy'"),
    ],
)
def test_specifications_that_are_refused(random: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        MixedLogitModel(simulated(individuals=5).data, random=random)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cov_type": "clustered"}, "'clustered'.*hessian"),
        ({"start": {"loc": 0.0, "scale": 1.0}}, r"x\.loc"),
        ({"start": {"x.loc": 0.0, "x.scale": -1.0}}, "start.*-1.0"),
        ({"start": {"x.loc": math.nan, "x.scale": 1.0}}, "start.*nan"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        fit(simulated(individuals=20).data, **options)


@pytest.mark.parametrize("family", ["lognormal", "gamma"])
def test_simulation_sd_is_how_far_estimates_move_with_other_draws(family: str) -> None:
    """A Newton step from the estimates and a refit agree to a fifth: the step is of second order in the distance."""
    data = simulated(family).data
    rule = QuasiMonteCarlo("mlhs", 64, 0)
    told = fit(data, family, integration=rule, num_redraws=3)
    refits = [fit(data, family, integration=rule.reseeded(i), num_redraws=0) for i in range(4)]
    logliks = torch.tensor([refit.loglik for refit in refits])
    assert refits[0].simulation_sd == {}
    # the log-likelihood at other draws' estimates is higher than at these, by half the squared step
    assert told.simulation_sd["loglik"] == pytest.approx(float(logliks.std()), rel=0.2)
    moved = {name: float(torch.tensor([refit.params[name] for refit in refits]).std()) for name in told.params}
    assert {name: told.simulation_sd[name] for name in moved} == pytest.approx(moved, rel=0.2)


def test_a_rule_without_draws_is_compared_with_more_nodes() -> None:
    data = simulated().data
    coarse = fit(data, integration=Quadrature(24))
    fine = fit(data, integration=Quadrature(400))
    moved = {name: abs(coarse.params[name] - fine.params[name]) for name in fine.params}
    assert {name: coarse.simulation_sd[name] for name in moved} == pytest.approx(moved, rel=0.2)
    assert coarse.simulation_sd["loglik"] == pytest.approx(abs(coarse.integration.error), rel=1e-9)
    assert max(fine.simulation_sd.values()) < 1e-9


def test_progress_shows_the_search(capsys: pytest.CaptureFixture[str]) -> None:
    fit(simulated(individuals=30).data, progress=True)
    assert "search: " in capsys.readouterr().out
