from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

from mixlogit_align import MixedLogit
from mixlogit_align.econometrics import ChoiceData, MixedLogitModel, Random, simulate_choices
from mixlogit_align.errors import InvalidInputError


def f64(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def test_the_seed_decides_and_the_global_generator_does_not() -> None:
    torch.manual_seed(1)
    first = simulate_choices(dist.LogNormal(*f64(0.0, 0.5)), num_individuals=20, num_situations=3, seed=7)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)  # untouched
    again = simulate_choices(dist.LogNormal(*f64(0.0, 0.5)), num_individuals=20, num_situations=3, seed=7)
    other = simulate_choices(dist.LogNormal(*f64(0.0, 0.5)), num_individuals=20, num_situations=3, seed=8)
    assert torch.equal(first.choice, again.choice)
    assert torch.equal(first.strength, again.strength)
    assert not torch.equal(first.strength, other.strength)


def test_the_table_holds_what_was_drawn() -> None:
    simulated = simulate_choices(dist.Gamma(*f64(2.0, 1.0)), num_individuals=4, num_situations=3, seed=1)
    frame, data = simulated.frame, simulated.data
    assert list(frame.columns) == ["individual", "situation", "alternative", "x", "choice"]
    assert len(frame) == 4 * 3 * 2
    assert frame.groupby("situation")["choice"].sum().eq(1).all()
    torch.testing.assert_close(data.attribute("x"), simulated.attributes.flatten(0, 1))
    assert data.choice.tolist() == simulated.choice.flatten().tolist()
    assert data.is_panel
    assert not simulate_choices(dist.Gamma(*f64(2.0, 1.0)), num_individuals=4, seed=1).data.is_panel


def test_one_distribution_for_each_individual() -> None:
    strengths = torch.arange(1.0, 6.0, dtype=torch.float64)
    simulated = simulate_choices(dist.Delta(strengths), num_individuals=5, num_situations=2, seed=0)
    assert torch.equal(simulated.strength, strengths)


@pytest.mark.parametrize("mixing", [dist.LogNormal(*f64(0.3, 0.8)), dist.Normal(*f64(0.5, 1.0)), dist.Delta(*f64(1.0))])
def test_strengths_are_drawn_from_the_mixing(mixing: dist.TorchDistribution) -> None:
    # The mean of sigma(strength) estimates P(1) at a difference of 1: |z| <= 5 fails by chance in 6e-7 of the runs.
    simulated = simulate_choices(mixing, num_individuals=40_000, seed=5)
    probability = MixedLogit(torch.ones((), dtype=torch.float64), mixing).probs
    drawn = torch.sigmoid(simulated.strength)
    spread = float(drawn.std()) / math.sqrt(40_000)
    assert abs(float(drawn.mean() - probability)) <= 5.0 * spread + 1e-12  # a point mass has no spread


@pytest.mark.parametrize("num_alternatives", [2, 4])
def test_choices_follow_the_softmax_of_strength_times_attribute(num_alternatives: int) -> None:
    # Sum of (chosen - P) * x over 20,000 choices has variance sum of Var_P(x): |z| <= 5, by chance 6e-7.
    simulated = simulate_choices(
        dist.LogNormal(*f64(0.0, 0.7)), num_individuals=20_000, num_alternatives=num_alternatives, seed=11
    )
    x = simulated.attributes[:, 0]
    p = torch.softmax(simulated.strength[:, None] * x, -1)
    chosen = x.gather(1, simulated.choice)[:, 0]
    mean = (p * x).sum(-1)
    variance = (p * x**2).sum(-1) - mean**2
    assert abs(float((chosen - mean).sum() / variance.sum().sqrt())) <= 5.0
    assert set(simulated.choice.flatten().tolist()) == set(range(num_alternatives))


@pytest.mark.parametrize(
    ("mixing", "counts", "says"),
    [
        (dist.Delta(*f64(1.0)), {"num_individuals": 0}, "num_individuals"),
        (dist.Delta(*f64(1.0)), {"num_individuals": 5, "num_situations": 0}, "num_situations"),
        (dist.Delta(*f64(1.0)), {"num_individuals": 5, "num_alternatives": 1}, "num_alternatives"),
        (dist.Delta(torch.ones(3)), {"num_individuals": 5}, r"shape \(3,\)"),
        (dist.Normal(torch.zeros(5), 1.0).to_event(1), {"num_individuals": 3}, r"shape \(5,\)"),
    ],
)
def test_what_cannot_be_simulated_is_refused(mixing: dist.TorchDistribution, counts: dict[str, int], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        simulate_choices(mixing, **counts, seed=0)


# ---------------------------------------------------------------------- models of several coefficients

PANEL: dict[str, Any] = {
    "truth": {"price": -1.0, "time.loc": -0.5, "time.scale": 0.8, "comfort.loc": 0.0, "comfort.scale": 0.6},
    "fixed": ["price"],
    "random": {"time": "normal", "comfort": "-lognormal"},
}
EVERYTHING: dict[str, Any] = {
    "truth": {
        "asc": 0.3, "price.loc": -0.4, "time.loc": 0.5, "time.loc:income": 0.4,
        "chol.price.price": 0.3, "chol.time.price": -0.4, "chol.time.time": 0.6, "tau": 0.4,
    },
    "fixed": ["asc"],
    "random": {"price": "-lognormal", "time": Random("normal", mean_covariates=("income",))},
    "correlated": True,
    "wtp_space": "price",
    "scale_heterogeneity": True,
}  # fmt: skip


def simulated(model: dict[str, Any], **design: Any) -> Any:
    return simulate_choices(**(model | {"seed": 1} | design))


@pytest.mark.parametrize(
    ("model", "design"),
    [
        (PANEL, {"num_individuals": 250, "num_situations": 8, "num_alternatives": 3}),
        (
            {"truth": {"asc": 0.5, "time.loc": 1.0, "time.scale": 0.5, "price": -1.0}, "fixed": ["asc", "price"],
             "random": {"time": "normal"}, "wtp_space": "price"},
            {"num_individuals": 150, "num_situations": 6, "attributes": {"asc": dist.Delta(torch.tensor([0.0, 1.0]))}},
        ),
    ],
    ids=["panel", "wtp space"],
)  # fmt: skip
def test_a_fit_recovers_the_truth(model: dict[str, Any], design: dict[str, Any]) -> None:
    """The Wald statistic of the truth lies below the 1 - 1e-6 quantile of its chi-square: that rate, asymptotically."""
    sample = simulated(model, **design)
    rest = {name: value for name, value in model.items() if name != "truth"}
    result = MixedLogitModel(sample.data, **rest).fit(num_redraws=0)
    assert result.converged
    assert sample.params == model["truth"]
    off = torch.tensor([result.params[name] - true for name, true in model["truth"].items()], dtype=torch.float64)
    order = [list(result.params).index(name) for name in model["truth"]]
    wald = float(off @ torch.linalg.solve(result.cov[order][:, order], off))
    assert wald <= scipy.stats.chi2.isf(1e-6, len(off))


NORMAL = scipy.stats.norm
FAMILY_CASES = [
    ("normal", (0.5, 2.0), None, NORMAL(0.5, 2.0).cdf),
    ("lognormal", (0.2, 0.7), None, scipy.stats.lognorm(0.7, scale=math.exp(0.2)).cdf),
    ("-lognormal", (0.2, 0.7), None, lambda x: scipy.stats.lognorm(0.7, scale=math.exp(0.2)).sf(-x)),
    ("uniform", (1.0, 2.0), None, scipy.stats.uniform(-1.0, 4.0).cdf),
    ("triangular", (1.0, 2.0), None, scipy.stats.triang(0.5, -1.0, 4.0).cdf),
    ("truncated_normal", (1.0, 2.0), (-0.5, 3.0), scipy.stats.truncnorm(-0.75, 1.0, 1.0, 2.0).cdf),
    ("johnson_sb", (0.3, 1.5), (0.0, 2.0), scipy.stats.johnsonsb(-0.3 / 1.5, 1 / 1.5, 0.0, 2.0).cdf),
    ("gamma", (2.0, 4.0), None, scipy.stats.gamma(2.0, scale=0.25).cdf),
]


@pytest.mark.parametrize(
    ("family", "numbers", "bounds", "cdf"), FAMILY_CASES, ids=[f"{case[0]}" for case in FAMILY_CASES]
)
def test_coefficients_have_their_distribution(family: str, numbers: Any, bounds: Any, cdf: Any) -> None:
    # Kolmogorov-Smirnov with p >= 1e-6: that rate.
    random = Random(family.removeprefix("-"), sign=-1 if family.startswith("-") else 1, bounds=bounds)
    names = [f"x.{part}" for part in random.parameters]
    truth = dict(zip(names, numbers, strict=True))
    sample = simulate_choices(truth, random={"x": random}, num_individuals=20_000, seed=3)
    assert scipy.stats.kstest(sample.coefficients["x"].numpy(), cdf).pvalue >= 1e-6


def test_a_censored_normal_has_its_mass_at_zero() -> None:
    # P(0) = Phi(-loc / scale), binomial: |z| <= 5, by chance 6e-7; the rest is a normal above 0, p >= 1e-6.
    truth = {"x.loc": 0.5, "x.scale": 1.0}
    sample = simulate_choices(truth, random={"x": "censored_normal"}, num_individuals=20_000, seed=3)
    drawn = sample.coefficients["x"].numpy()
    at_zero = NORMAL.cdf(-0.5)
    assert abs((drawn == 0.0).mean() - at_zero) <= 5 * math.sqrt(at_zero * (1 - at_zero) / 20_000)
    above = scipy.stats.truncnorm(-0.5, np.inf, 0.5, 1.0).cdf
    assert scipy.stats.kstest(drawn[drawn > 0.0], above).pvalue >= 1e-6


def test_everything_together_has_the_moments_of_its_definition() -> None:
    """Each |z| <= 5.5: by chance 4e-8 each."""
    n = 40_000
    sample = simulated(EVERYTHING, num_individuals=n)
    income = sample.data.covariate("income")
    price = sample.coefficients["price"]
    # log(-price) = loc + L v + tau u - tau^2 / 2, since scale multiplies all
    scaled = torch.log(-price) - (-0.4 - 0.4**2 / 2)
    wtp_time = sample.coefficients["time"] / -price - (0.5 + 0.4 * income)
    moments = {
        "log price": (scaled, 0.0, math.hypot(0.3, 0.4)),
        "log price squared": (scaled**2, 0.25, 0.25 * math.sqrt(2)),
        "wtp": (wtp_time, 0.0, math.hypot(0.4, 0.6)),
        "wtp squared": (wtp_time**2, 0.52, 0.52 * math.sqrt(2)),
        "wtp and income": (wtp_time * income, 0.0, math.sqrt(0.52)),
        # Var(ab) = Var a Var b + Cov(a, b)^2 of centred normals
        "price and wtp": (scaled * wtp_time, -0.12, math.sqrt(0.25 * 0.52 + 0.12**2)),
    }
    z = {name: (float(x.mean()) - mean) / (sd / math.sqrt(n)) for name, (x, mean, sd) in moments.items()}
    assert {name: value for name, value in z.items() if abs(value) > 5.5} == {}
    torch.testing.assert_close(sample.coefficients["asc"], -0.3 * price)


def design_with_gaps() -> ChoiceData:
    """Unbalanced panels in turns, missing alternatives, weights."""
    generator = torch.Generator().manual_seed(5)
    s, j, n = 12_000, 4, 1500
    available = torch.rand(s, j, generator=generator) < 0.7
    available[:, :2] = True
    individual = torch.cat([torch.arange(n), torch.randint(n, (s - n,), generator=generator)])
    attributes = torch.randn(s, j, 3, generator=generator, dtype=torch.float64) * available[..., None]
    return ChoiceData(
        attributes=attributes, available=available, choice=torch.zeros(s, dtype=torch.int64), individual=individual,
        weights=1.0 + torch.rand(n, generator=generator, dtype=torch.float64), variables=("price", "time", "comfort"),
        alternatives=("a", "b", "c", "d"), individuals=tuple(f"p{i}" for i in range(n)), is_panel=True,
    )  # fmt: skip


def test_on_given_data_only_the_choices_are_new() -> None:
    data = design_with_gaps()
    sample = simulated(PANEL, data=data)
    sample.data.validate(data.variables)
    kept = replace(sample.data, choice=data.choice)
    assert {name for name, value in vars(kept).items() if value is not getattr(data, name)} == set()
    again = simulate_choices(**PANEL, data=sample.data, seed=1)
    assert torch.equal(again.data.choice, sample.data.choice)  # the choices that were there do not matter
    with pytest.raises(InvalidInputError, match="one individual after the other"):
        _ = sample.choice
    with pytest.raises(InvalidInputError, match="expected one, the strength"):
        _ = sample.strength


def test_choices_follow_the_softmax_of_what_individuals_value() -> None:
    """Score of each attribute at the individuals' own coefficients: |z| <= 5.5, by chance 4e-8 each."""
    data = design_with_gaps()
    sample = simulated(PANEL, data=data)
    b = np.stack([sample.coefficients[name].numpy() for name in data.variables], -1)[data.individual.numpy()]
    x, offered = data.attributes.numpy(), data.available.numpy()
    weight = np.where(offered, np.exp(np.einsum("sjv,sv->sj", x, b)), 0.0)
    p = weight / weight.sum(1, keepdims=True)
    mean = np.einsum("sj,sjv->sv", p, x)
    variance = (np.einsum("sj,sjv->sv", p, x**2) - mean**2).sum(0)
    chosen = x[np.arange(len(x)), sample.data.choice.numpy()]
    z = (chosen - mean).sum(0) / np.sqrt(variance)
    assert np.abs(z).max() <= 5.5
    counts = np.bincount(sample.data.choice.numpy(), minlength=4)
    z = (counts - p.sum(0)) / np.sqrt((p * (1 - p)).sum(0))
    assert np.abs(z).max() <= 5.5


def test_a_scalar_strength_is_the_model_of_its_family() -> None:
    """Two-sample Kolmogorov-Smirnov of strengths, p >= 1e-6; the frequencies of a choice, |z| <= 5 (6e-7)."""
    data = simulate_choices(dist.Delta(*f64(1.0)), num_individuals=20_000, seed=1).data
    one = simulate_choices(dist.LogNormal(*f64(0.3, 0.8)), data=data, seed=2)
    truth = {"x.loc": 0.3, "x.scale": 0.8}
    other = simulate_choices(truth, random={"x": "lognormal"}, data=data, seed=3)
    assert scipy.stats.ks_2samp(one.strength.numpy(), other.strength.numpy()).pvalue >= 1e-6
    assert abs(float((one.choice - other.choice).double().sum())) <= 5 * math.sqrt(2 * 20_000 / 4)


@pytest.mark.parametrize("model", [PANEL, EVERYTHING], ids=["panel", "everything"])
def test_the_seed_decides_for_models_too(model: dict[str, Any]) -> None:
    torch.manual_seed(1)
    first = simulated(model, num_individuals=20, num_situations=3, num_alternatives=3)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)  # untouched
    again = simulated(model, num_individuals=20, num_situations=3, num_alternatives=3)
    other = simulated(model, num_individuals=20, num_situations=3, num_alternatives=3, seed=2)
    assert torch.equal(first.data.attributes, again.data.attributes)
    assert torch.equal(first.choice, again.choice)
    assert not torch.equal(first.choice, other.choice)


def test_the_frame_reads_back_as_the_data() -> None:
    sample = simulated(PANEL, data=design_with_gaps())
    read = ChoiceData.from_long(
        sample.frame, choice="choice", alternative="alternative", situation="situation", individual="individual"
    )
    assert read.variables == sample.data.variables
    labels = [read.alternatives[j] for j in read.choice.tolist()]
    assert labels == [sample.data.alternatives[j] for j in sample.data.choice.tolist()]
    order = [read.alternatives.index(label) for label in sample.data.alternatives]
    torch.testing.assert_close(read.attributes[:, order], sample.data.attributes)


WIDE_DELTA = dist.Delta(torch.zeros(3))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"truth": {"price": -1.0}}, r"truth: got no \['time.loc', 'time.scale', 'comfort.loc', 'comfort.scale'\]"),
        ({"truth": PANEL["truth"] | {"cost": 1.0}}, r"truth: got \['cost'\]"),
        ({"truth": PANEL["truth"] | {"time.scale": -1.0}}, r"truth\['time.scale'\]: got -1.0; expected 0 or more"),
        ({"truth": PANEL["truth"] | {"price": math.nan}}, r"truth\['price'\]: got nan"),
        ({"num_individuals": None}, "num_individuals: got None"),
        ({"num_alternatives": 2.5}, "num_alternatives: got 2.5"),
        ({"attribute": dist.Normal(0.0, 1.0)}, "attribute=, which belongs to a strength"),
        ({"attributes": {"cost": dist.Normal(0.0, 1.0)}}, r"attributes: got \['cost'\]; expected some of"),
        ({"attributes": {"price": WIDE_DELTA}}, r"attributes\['price'\]: got shape \(3,\).*\(5, 1, 2\)"),
        ({"attributes": {"price": dist.Delta(torch.zeros(()))}}, "attribute 'price': got one value"),
        ({"data": design_with_gaps()}, "num_individuals beside data="),
        ({"data": design_with_gaps(), "num_individuals": None, "attributes": {}}, "attributes beside data="),
        ({"truth": dist.Normal(0.0, 1.0)}, "a model beside the distribution"),
        ({"random": {"time": "gamma", "comfort": "-lognormal"}}, r"got \['time.loc', 'time.scale'\]"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        simulate_choices(**(PANEL | {"num_individuals": 5, "seed": 0} | changes))


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_parameters_of_a_gamma_are_positive(value: float) -> None:
    truth = {"x.concentration": value, "x.rate": 1.0}
    with pytest.raises(InvalidInputError, match=r"truth\['x.concentration'\].*a positive number"):
        simulate_choices(truth, random={"x": "gamma"}, num_individuals=5, seed=0)


def test_two_attributes_for_one_strength_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="got \\['price', 'time', 'comfort'\\]; expected one"):
        simulate_choices(dist.Delta(*f64(1.0)), data=design_with_gaps(), seed=0)
    both = {"attribute": dist.Normal(0.0, 1.0), "attributes": {"x": dist.Normal(0.0, 1.0)}}
    with pytest.raises(InvalidInputError, match="attribute= and attributes="):
        simulate_choices(dist.Delta(*f64(1.0)), num_individuals=5, seed=0, **both)


def test_an_attribute_may_not_be_called_as_a_column_of_the_table() -> None:
    sample = simulate_choices({"choice": 1.0}, fixed=["choice"], num_individuals=5, seed=0)
    with pytest.raises(InvalidInputError, match=r"attributes: got \['choice'\]"):
        _ = sample.frame


def test_pairs_as_log_ratios_are_the_choices_of_the_long_table():
    truth, random = {"x.loc": 0.0, "x.scale": 0.5}, {"x": "lognormal"}
    sample = simulate_choices(truth, random=random, num_individuals=7, num_situations=3, seed=4)
    wide = sample.frame.pivot(index="situation", columns="choice", values="x")  # 1: chosen, 0: the other
    assert sample.logratios["logratio_diff"].tolist() == (wide[1] - wide[0]).tolist()
    assert sample.logratios["annotator_id"].tolist() == sample.frame["individual"][::2].tolist()
    three = simulate_choices(truth, random=random, num_individuals=7, num_alternatives=3, seed=4)
    with pytest.raises(InvalidInputError, match=r"3 alternatives.*expected two in each"):
        _ = three.logratios
