from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from mixlogit_align.econometrics import ChoiceData, MixedLogitModel, Random, simulate_choices
from mixlogit_align.econometrics.priors import CorrelationFactor, check_prior, default_priors, with_right_draws
from mixlogit_align.errors import InvalidInputError


def some_data(**units: float) -> ChoiceData:
    """Four alternatives, some of which are not offered; attributes a, b, c, d and a covariate, in units."""
    truth = {"a": 0.4, "c": 0.0, "d": 0.0, "b.loc": -0.2, "b.loc:income": 0.1, "b.scale": 0.5}
    random = {"b": Random("normal", mean_covariates=["income"])}
    data = simulate_choices(
        truth, fixed=["a", "c", "d"], random=random, num_individuals=40, num_situations=3, num_alternatives=4, seed=3
    ).data
    available = torch.rand(data.available.shape, generator=torch.Generator().manual_seed(0)) < 0.8
    available |= torch.nn.functional.one_hot(data.choice, 4).bool()
    available[:, 0] |= available.sum(1) < 2
    available[:, 1] |= available.sum(1) < 2
    attributes = torch.where(available[..., None], data.attributes, 0.0)
    scale = torch.tensor([units.get(name, 1.0) for name in data.variables], dtype=torch.float64)
    return replace(data, available=available, attributes=attributes * scale)


def priors_of(random, data: ChoiceData | None = None, **options):
    data = some_data() if data is None else data
    return default_priors(data, MixedLogitModel(data, ["a"], random, **options).specification)


def pairwise_size(data: ChoiceData, name: str) -> float:
    """Root mean square over all pairs offered together."""
    values = data.attribute(name)
    squares = [
        float(values[s, i] - values[s, j]) ** 2
        for s in range(data.num_situations)
        for i, j in combinations(data.available[s].nonzero()[:, 0].tolist(), 2)
    ]
    return math.sqrt(sum(squares) / len(squares))


def test_widths_are_in_units_of_the_attribute_s_differences() -> None:
    data = some_data()
    priors = priors_of({"b": "normal"}, data)
    a, b = pairwise_size(data, "a"), pairwise_size(data, "b")
    found = [float(x) for x in (priors["a"].scale, priors["b.loc"].scale, priors["b.scale"].scale)]
    assert found == pytest.approx([5 / a, 5 / b, 2.5 / b], rel=1e-12)


@pytest.mark.parametrize("family", ["normal", "lognormal", "uniform", "gamma", "johnson_sb", "truncated_normal"])
def test_units_change_the_coefficient_s_prior_by_their_inverse(family: str) -> None:
    # the same variates give the same utility, but for a share in (0, 1), which has no units
    factor = 1000.0
    sums = []
    for data in (some_data(), some_data(b=factor)):
        torch.manual_seed(1)
        drawn = {name: float(prior.sample()) for name, prior in priors_of({"b": family}, data).items()}
        sums.append(drawn)
    first, second = sums
    expected = {
        "normal": {"b.loc": first.get("b.loc", 0) / factor, "b.scale": first.get("b.scale", 0) / factor},
        "lognormal": {"b.loc": first.get("b.loc", 0) - math.log(factor), "b.scale": first.get("b.scale")},
        "gamma": {"b.concentration": first.get("b.concentration"), "b.rate": first.get("b.rate", 0) * factor},
        "johnson_sb": {"b.loc": first.get("b.loc"), "b.scale": first.get("b.scale")},
    }
    expected["uniform"] = expected["truncated_normal"] = expected["normal"]
    assert second == pytest.approx({"a": first["a"], **expected[family]}, rel=1e-9)


def test_choices_do_not_enter() -> None:
    data = some_data()
    other = replace(data, choice=data.available.to(torch.int8).argmax(1))
    assert not torch.equal(other.choice, data.choice)
    first, second = (priors_of({"b": "lognormal"}, each) for each in (data, other))
    assert repr(first) == repr(second)


def test_every_parameter_has_one() -> None:
    data = some_data()
    random = {"b": Random("normal", mean_covariates=["income"])}
    model = MixedLogitModel(data, ["a"], random, scale_heterogeneity=True)
    assert list(default_priors(data, model.specification)) == list(model.specification.names)


def test_slopes_of_covariates_are_in_their_units() -> None:
    data = some_data(income=50.0)
    priors = priors_of({"b": Random("normal", mean_covariates=["income"])}, data)
    sd = float(data.covariate("income").std())
    assert float(priors["b.loc:income"].scale) == pytest.approx(float(priors["b.loc"].scale) / sd, rel=1e-12)


def test_willingness_to_pay_is_in_units_of_the_price() -> None:
    data = some_data()
    priors = priors_of({"b": "normal"}, data, wtp_space="a")
    size = pairwise_size(data, "b") / pairwise_size(data, "a")
    assert float(priors["b.loc"].scale) == pytest.approx(5 / size, rel=1e-12)


def test_a_block_has_scales_and_correlations() -> None:
    priors = priors_of({"b": "normal", "c": "normal", "d": "normal"}, correlated=True)
    assert list(priors) == ["a", "b.loc", "b.scale", "c.loc", "c.scale", "d.loc", "d.scale", "correlation"]
    assert repr(priors["b.scale"]) == repr(priors_of({"b": "normal"})["b.scale"])


@pytest.mark.parametrize("concentration", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("dim", [2, 3, 5])
def test_draws_of_correlations_follow_their_density(dim: int, concentration: float) -> None:
    torch.manual_seed(0)
    factor = CorrelationFactor(dim, torch.tensor(concentration, dtype=torch.float64)).sample(torch.Size([2000]))
    correlation = (factor @ factor.mT).numpy()
    # each by itself: (r + 1) / 2 ~ Beta(a, a), a = concentration + (dim - 2) / 2; false-failure rate 1e-3 over all
    a = concentration + (dim - 2) / 2
    rows, columns = np.tril_indices(dim, -1)
    law = stats.beta(a, a, loc=-1, scale=2)
    pvalues = [stats.kstest(correlation[:, i, j], law.cdf).pvalue for i, j in zip(rows, columns, strict=True)]
    assert min(pvalues) > 1e-3 / len(pvalues)


def test_density_of_correlations() -> None:
    # that of R times the Jacobian of factor -> R, prod of diagonal^(b - row), row = 1..b: up to a constant
    torch.manual_seed(0)
    law = CorrelationFactor(3, torch.tensor(2.5, dtype=torch.float64))
    factor = law.sample(torch.Size([6]))
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    determinant = diagonal.square().prod(-1)
    expected = 1.5 * determinant.log() + (torch.tensor([2.0, 1.0, 0.0]) * diagonal.log()).sum(-1)
    difference = law.log_prob(factor) - expected
    torch.testing.assert_close(difference, difference[:1].expand(6), rtol=0, atol=1e-12)


def test_torch_s_draws_of_correlations_are_replaced() -> None:
    given = dist.LKJCholesky(3, torch.tensor(2.0, dtype=torch.float64))
    used = with_right_draws(given)
    assert isinstance(used, CorrelationFactor)
    point = given.sample()
    assert float(used.log_prob(point)) == float(given.log_prob(point))
    assert with_right_draws(other := dist.Normal(0.0, 1.0)) is other


def test_two_blocks_have_two_sites() -> None:
    data = some_data()
    model = MixedLogitModel(data, [], dict.fromkeys("abcd", "normal"), [["a", "b"], ["c", "d"]])
    priors = default_priors(data, model.specification)
    assert [name for name in priors if name.startswith("corr")] == ["correlation.1", "correlation.2"]


@pytest.mark.parametrize(
    "prior, options, expected",
    [
        pytest.param(1.0, {}, "scalar continuous", id="a number"),
        pytest.param(dist.Normal(torch.zeros(2), 1.0), {}, "scalar continuous", id="a vector"),
        pytest.param(dist.Poisson(1.0), {}, "scalar continuous", id="discrete"),
        pytest.param(dist.Delta(torch.tensor(1.0)), {}, "scalar continuous", id="a point"),
        pytest.param(dist.Normal(0.0, 1.0), {"nonnegative": True}, "positive numbers", id="negative"),
        pytest.param(dist.Uniform(-0.1, 1.0), {"nonnegative": True}, "positive numbers", id="a bit negative"),
        pytest.param(dist.HalfNormal(1.0), {"correlated": 2}, "LKJCholesky", id="no correlations"),
        pytest.param(dist.LKJCholesky(3, 1.0), {"correlated": 2}, "LKJCholesky", id="too many correlations"),
        pytest.param(torch.distributions.Normal(0.0, 1.0), {}, "scalar continuous", id="of torch"),
    ],
)
def test_a_prior_that_does_not_fit_is_refused(prior, options, expected: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"priors\['x'\].*{expected}"):
        check_prior("x", prior, **options)


@pytest.mark.parametrize(
    "prior, options",
    [
        pytest.param(dist.StudentT(3.0, 0.0, 1.0), {}, id="heavy tails"),
        pytest.param(dist.Uniform(0.0, 1.0), {"nonnegative": True}, id="an interval"),
        pytest.param(dist.HalfCauchy(1.0), {"nonnegative": True}, id="half"),
        pytest.param(dist.LKJCholesky(2, 3.0), {"correlated": 2}, id="correlations"),
        pytest.param(
            dist.TransformedDistribution(dist.Normal(0.0, 1.0), [torch.distributions.ExpTransform()]),
            {"nonnegative": True},
            id="transformed",
        ),
    ],
)
def test_a_prior_that_fits_passes(prior, options) -> None:
    check_prior("x", prior, **options)
