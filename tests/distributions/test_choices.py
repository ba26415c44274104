"""Properties that all four choice distributions share."""

from __future__ import annotations

import copy
import pickle

import pyro.distributions as dist
import pytest
import torch

from mixlogit_align import MixedLogit, MixedMultinomialLogit, MixedPlackettLuce, MonteCarlo, PanelMixedLogit
from mixlogit_align.errors import InvalidInputError
from tests.distributions.cases import CHOICES, FAMILIES, double, ids, lognormal, utilities

each_choice = pytest.mark.parametrize("case", CHOICES, ids=ids)
each_family = pytest.mark.parametrize("family", FAMILIES, ids=ids)


@each_choice
@each_family
def test_probabilities_of_all_values_sum_to_one(case, family):
    d = case.make(utilities(case, 5), family())
    values = case.values().unsqueeze(1).expand(-1, 5, *case.event_shape)
    # rounding alone: each P is within 1e-12 for these mild cases
    torch.testing.assert_close(d.log_prob(values).exp().sum(0), torch.ones(5).double(), rtol=0, atol=1e-11)


@each_choice
def test_shapes(case):
    d = case.make(utilities(case, 4, 5), dist.LogNormal(torch.zeros(5).double(), torch.ones(5).double()))
    assert d.batch_shape == (4, 5)
    assert d.event_shape == case.event_shape
    sample = d.sample((3,))
    assert sample.shape == (3, 4, 5, *case.event_shape)
    assert d.log_prob(sample).shape == (3, 4, 5)
    mean, sd = d.strength_posterior(sample)
    assert mean.shape == sd.shape == (3, 4, 5)
    assert d.integration_error(sample).shape == (3, 4, 5)


@each_choice
def test_parameters_may_have_more_dimensions_than_the_data(case):
    loc = torch.tensor([[-1.0], [0.0], [0.5]], dtype=torch.float64)
    d = case.make(utilities(case, 5), dist.LogNormal(loc, torch.ones(()).double()))
    assert d.batch_shape == (3, 5)
    value = d.sample()
    rows = [
        case.make(utilities(case, 5), dist.LogNormal(x, torch.ones(()).double())).log_prob(v)
        for x, v in zip(loc[:, 0], value, strict=True)
    ]
    torch.testing.assert_close(d.log_prob(value), torch.stack(rows), rtol=1e-12, atol=1e-13)


@each_choice
@pytest.mark.parametrize("rule", [None, MonteCarlo(8)], ids=["best", "draws"])
def test_expand_widens_the_data_and_keeps_the_draws(case, rule):
    d = case.make(utilities(case, 5), lognormal(), rule)
    wide = d.expand((3, 5))
    value = d.sample()
    assert wide.batch_shape == (3, 5)
    torch.testing.assert_close(wide.log_prob(value), d.log_prob(value).expand(3, 5), rtol=0, atol=0)
    torch.testing.assert_close(wide.expand((2, 3, 5)).log_prob(value)[1, 2], d.log_prob(value), rtol=0, atol=0)


@each_choice
def test_to_event_sums(case):
    d = case.make(utilities(case, 4, 5), lognormal())
    value = d.sample()
    torch.testing.assert_close(d.to_event(1).log_prob(value), d.log_prob(value).sum(-1))


@each_choice
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))], ids=["deepcopy", "pickle"])
def test_copies_are_equal(case, clone):
    d = case.make(utilities(case, 5), lognormal(), MonteCarlo(4))
    value = d.sample()
    torch.testing.assert_close(clone(d).log_prob(value), d.log_prob(value), rtol=0, atol=0)


@each_choice
def test_log_prob_is_deterministic(case):
    d = case.make(utilities(case, 5), lognormal(), MonteCarlo(4))
    value = d.sample()
    first = d.log_prob(value)
    torch.rand(7)
    assert torch.equal(first, d.log_prob(value))


@each_choice
def test_samples_follow_the_probabilities(case):
    n = 40_000
    d = case.make(utilities(case, seed=3), lognormal())
    values = case.values()
    sample = d.sample((n,)).to(values.dtype)
    same = (sample.unsqueeze(0) == values.unsqueeze(1)).reshape(len(values), n, -1).all(-1)
    p = d.log_prob(values).exp()
    z = (same.double().mean(1) - p) / torch.sqrt(p * (1 - p) / n)
    # at most 8 cells: P(max |z| > 4.5) < 8 * 7e-6 = 6e-5
    assert z.abs().max() < 4.5


@each_choice
def test_posterior_averages_to_the_mixing_distribution(case):
    mixing = lognormal()
    d = case.make(utilities(case, seed=4), mixing)
    values = case.values()
    p = d.log_prob(values).exp()
    mean, sd = d.strength_posterior(values)
    torch.testing.assert_close((p * mean).sum(), mixing.mean, rtol=1e-10, atol=0)
    torch.testing.assert_close((p * (sd**2 + mean**2)).sum(), mixing.variance + mixing.mean**2, rtol=1e-10, atol=0)


@each_choice
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_is_upcast_first(case, dtype):
    low = utilities(case, 6).to(dtype)
    d = case.make(low, dist.LogNormal(-0.5, 0.8))
    value = d.sample()
    assert d.log_prob(value).dtype == torch.float32
    exact = case.make(low.double(), dist.LogNormal(*(x.float().double() for x in double(-0.5, 0.8)))).log_prob(value)
    torch.testing.assert_close(d.log_prob(value), exact.float(), rtol=1e-7, atol=0)


@each_choice
def test_empty_batch(case):
    d = case.make(utilities(case, 0), lognormal())
    value = d.sample()
    assert value.shape == (0, *case.event_shape)
    assert d.log_prob(value).shape == (0,)
    assert d.probs.shape[0] == 0


@each_choice
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_utilities_are_named(case, bad):
    u = utilities(case, 5)
    u.reshape(-1)[-1] = bad
    index = tuple(n - 1 for n in u.shape)
    with pytest.raises(InvalidInputError, match="finite") as caught:
        case.make(u, lognormal(), validate_args=True)
    assert f"at index {index}" in str(caught.value)


@each_choice
@pytest.mark.parametrize(
    ("mixing", "message"),
    [(0.1, "float"), (dist.Normal(torch.zeros(3), 1.0).to_event(1), "event_shape"), ("lognormal", "str")],
    ids=["number", "vector", "string"],
)
def test_bad_mixing_is_named(case, mixing, message):
    with pytest.raises(InvalidInputError, match=message):
        case.make(utilities(case, 5), mixing)


@each_choice
def test_bad_rule_is_named(case):
    with pytest.raises(InvalidInputError, match="integration"):
        case.make(utilities(case, 5), lognormal(), 16)


@each_choice
@each_family
def test_gradients(case, family):
    """Against finite differences; gradcheck's own tolerances, which the differences need."""
    u = utilities(case, 2, seed=7).requires_grad_()
    parameters = [p.requires_grad_() for p in double(*family.parameters)]
    value = case.values()[1].expand(2, *case.event_shape)

    def log_prob(u, *parameters):
        return case.make(u, family(*parameters)).log_prob(value)

    assert torch.autograd.gradcheck(log_prob, (u, *parameters))


SECOND = ["gamma", "inverse_gaussian", "truncated_normal", "uniform", "lognormal", "weibull", "normal", "two_classes"]


@each_choice
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name in SECOND], ids=ids)
def test_second_derivatives(case, family):
    u = utilities(case, 1, seed=7).requires_grad_()
    parameters = [p.requires_grad_() for p in double(*family.parameters)]
    value = case.values()[1].expand(1, *case.event_shape)

    def log_prob(u, *parameters):
        return case.make(u, family(*parameters)).log_prob(value)

    assert torch.autograd.gradgradcheck(log_prob, (u, *parameters))


@each_choice
@pytest.mark.parametrize("make", [dist.LogNormal, dist.Gamma, dist.Normal])
def test_functional_gradient_and_vmap(case, make):
    u = utilities(case, 5)
    parameters = double(0.5, 0.8)
    value = case.values()[1]

    def log_prob(u, *parameters):
        return case.make(u, make(*parameters, validate_args=False), validate_args=False).log_prob(value)

    batched = torch.func.vmap(torch.func.grad(log_prob), in_dims=(0, None, None))(u, *parameters)
    leaf = u.clone().requires_grad_()
    (expected,) = torch.autograd.grad(log_prob(leaf, *parameters).sum(), leaf)
    torch.testing.assert_close(batched, expected, rtol=1e-10, atol=1e-14)
    total = torch.func.jacrev(torch.func.jacrev(lambda u: log_prob(u, *parameters).sum()))(u[:2])
    by_autograd = torch.autograd.functional.hessian(lambda u: log_prob(u, *parameters).sum(), u[:2])
    torch.testing.assert_close(total, by_autograd, rtol=1e-9, atol=1e-12)


# tracing takes seconds a case: every family's kind once, every distribution once
COMPILED = [(CHOICES[0], "gamma"), (CHOICES[0], "normal"), *((case, "lognormal") for case in CHOICES)]


@pytest.mark.parametrize(("case", "name"), COMPILED, ids=[f"{case.name}-{name}" for case, name in COMPILED])
def test_compiles_without_a_graph_break(case, name):
    family = next(f for f in FAMILIES if f.name == name)
    u, parameters = utilities(case, 5), double(*family.parameters)
    value = case.values()[1].expand(5, *case.event_shape)

    def log_prob(u, *parameters):
        return case.make(u, family.make(*parameters, validate_args=False), validate_args=False).log_prob(value)

    torch._dynamo.reset()
    compiled = torch.compile(log_prob, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(u, *parameters), log_prob(u, *parameters), rtol=1e-12, atol=1e-14)


def test_enumerated_support():
    u = torch.zeros(3, 4)
    assert MixedLogit(u, lognormal()).enumerate_support().shape == (2, 3, 4)
    assert MixedLogit(u, lognormal()).enumerate_support(expand=False).shape == (2, 1, 1)
    assert MixedMultinomialLogit(u, lognormal()).enumerate_support().shape == (4, 3)
    assert MixedMultinomialLogit(u, lognormal()).enumerate_support(expand=False).tolist() == [[0], [1], [2], [3]]


@pytest.mark.parametrize("value", [0.5, 2.0, -1.0])
def test_values_outside_the_support_are_refused(value):
    with pytest.raises(InvalidInputError, match=r"choice at index \(0,\).*expected 0 or 1"):
        MixedLogit(torch.zeros(2), lognormal(), validate_args=True).log_prob(torch.tensor([value, 1.0]))
    with pytest.raises(InvalidInputError, match=r"choice at index \(0,\).*expected 0 or 1"):
        PanelMixedLogit(torch.zeros(2), lognormal(), validate_args=True).log_prob(torch.tensor([value, 1.0]))


@pytest.mark.parametrize("value", [4.0, -1.0, 1.5])
def test_choices_outside_the_set_are_refused(value):
    with pytest.raises(InvalidInputError, match=r"choice at index \(1,\).*0\.\.3"):
        MixedMultinomialLogit(torch.zeros(2, 4), lognormal(), validate_args=True).log_prob(torch.tensor([1.0, value]))


def test_choice_of_an_unavailable_alternative_is_named():
    available = torch.tensor([[True, True, False], [True, True, True]])
    u = torch.zeros(2, 3)
    with pytest.raises(InvalidInputError, match=r"choice at index \(0,\)"):
        MixedMultinomialLogit(u, lognormal(), available=available, validate_args=True).log_prob(torch.tensor([2, 2]))
    with pytest.raises(InvalidInputError, match=r"choice at index \(0,\)"):
        MixedPlackettLuce(u, lognormal(), available=available, validate_args=True).log_prob(
            torch.tensor([[0, 2], [0, 2]])
        )


def test_nothing_available_is_named():
    available = torch.tensor([[True, True], [False, False]])
    with pytest.raises(InvalidInputError, match=r"available at index \(1,\)"):
        MixedMultinomialLogit(torch.zeros(2, 2), lognormal(), available=available, validate_args=True)


@pytest.mark.parametrize(
    "ranking",
    [[0, 0, 1], [0, 3, 1], [0, 7, 1], [-1, 0, 1], [0, -1, 1], [-2, 0, 1], [0.0, 1.5, 2.0]],
    ids=["twice", "too_large", "far_too_large", "starts_unranked", "gap", "negative", "no_integer"],
)
def test_bad_rankings_are_named(ranking):
    with pytest.raises(InvalidInputError, match=r"ranking at index \(1,\)"):
        MixedPlackettLuce(torch.zeros(2, 3), lognormal(), validate_args=True).log_prob(
            torch.tensor([[0, 1, 2], ranking])
        )


@pytest.mark.parametrize("name", ["available", "observed"])
def test_masks_must_be_boolean_and_of_the_right_shape(name):
    u = torch.zeros(2, 3)
    make = PanelMixedLogit if name == "observed" else MixedMultinomialLogit
    with pytest.raises(InvalidInputError, match=name):
        make(u, lognormal(), **{name: torch.ones(2, 3)})
    with pytest.raises(InvalidInputError, match=name):
        make(u, lognormal(), **{name: torch.ones(3, 3, dtype=torch.bool)})
