"""Limits and identities: what every correct mixed logit must satisfy."""

from __future__ import annotations

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import logsigmoid

from mixlogit_align import (
    ClosedForm,
    MixedLogit,
    MixedMultinomialLogit,
    MixedPlackettLuce,
    PanelMixedLogit,
    Quadrature,
)
from mixlogit_align.distributions import FiniteMixture, GeneralizedGamma, InverseGaussian, Triangular, TruncatedNormal
from tests.distributions.cases import CHOICES, FAMILIES, SMOOTH, double, ids, lognormal, utilities

each_choice = pytest.mark.parametrize("case", CHOICES, ids=ids)
each_family = pytest.mark.parametrize("family", FAMILIES, ids=ids)
ONE = torch.ones(()).double()
DELTAS = torch.tensor([-40.0, -3.0, -0.2, 0.0, 0.2, 3.0, 40.0], dtype=torch.float64)


def test_point_mixing_is_dpo_in_value_and_gradient():
    delta = DELTAS.clone().requires_grad_()
    ours = -MixedLogit(delta, dist.Delta(*double(0.1))).log_prob(ONE)
    dpo = -logsigmoid(0.1 * delta)
    assert torch.equal(ours, dpo)
    assert torch.equal(torch.autograd.grad(ours.sum(), delta)[0], torch.autograd.grad(dpo.sum(), delta)[0])


@each_family
def test_swapping_the_alternatives_flips_the_choice(family):
    torch.testing.assert_close(
        MixedLogit(DELTAS, family()).log_prob(ONE), MixedLogit(-DELTAS, family()).log_prob(0 * ONE), rtol=1e-13, atol=0
    )


@each_family
def test_no_difference_is_a_coin_with_half_the_mean_as_slope(family):
    delta = torch.tensor([0.0, 1e-300, -1e-300], dtype=torch.float64, requires_grad=True)
    mixing = family()
    log_prob = MixedLogit(delta, mixing).log_prob(ONE)
    torch.testing.assert_close(log_prob, torch.full((3,), -math.log(2.0), dtype=torch.float64), rtol=1e-13, atol=0)
    (slope,) = torch.autograd.grad(log_prob.sum(), delta)
    torch.testing.assert_close(slope, (0.5 * mixing.mean).expand(3), rtol=1e-11, atol=0)


@each_family
@pytest.mark.parametrize("size", [1e300, -1e300])
def test_huge_differences_stay_finite(family, size):
    delta = torch.tensor([size], dtype=torch.float64, requires_grad=True)
    parameters = [p.requires_grad_() for p in double(*family.parameters)]
    log_prob = MixedLogit(delta, family(*parameters)).log_prob(ONE)
    gradients = torch.autograd.grad(log_prob.sum(), [delta, *parameters])
    assert torch.isfinite(log_prob).all()
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("cv", [1e-2, 1e-3])
@pytest.mark.parametrize("name", ["gamma", "lognormal", "normal"])
def test_homogeneous_strength_is_the_logit(name, cv):
    mean = 0.7
    mixing = {
        "gamma": lambda: dist.Gamma(*double(cv**-2, cv**-2 / mean)),
        "lognormal": lambda: dist.LogNormal(*double(math.log(mean), cv)),
        "normal": lambda: dist.Normal(*double(mean, mean * cv)),
    }[name]()
    delta = DELTAS[1:-1]
    # second-order term: half the variance times the curvature, which is below 1 in this range
    torch.testing.assert_close(
        MixedLogit(delta, mixing).log_prob(ONE), logsigmoid(mean * delta), rtol=0, atol=2.0 * cv**2
    )


@pytest.mark.parametrize("family", [f for f in SMOOTH if f.rule is ClosedForm], ids=ids)
def test_closed_form_agrees_with_quadrature(family):
    exact = MixedLogit(DELTAS, family(), ClosedForm()).log_prob(ONE)
    torch.testing.assert_close(MixedLogit(DELTAS, family(), Quadrature()).log_prob(ONE), exact, rtol=1e-11, atol=0)


@each_family
def test_panel_of_one_is_a_single_comparison(family):
    panel = PanelMixedLogit(DELTAS.unsqueeze(-1), family())
    torch.testing.assert_close(
        panel.log_prob(torch.ones(7, 1).double()), MixedLogit(DELTAS, family()).log_prob(ONE), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("family", SMOOTH, ids=ids)
def test_panel_with_one_observed_is_a_single_comparison(family):
    diff = torch.stack([DELTAS, torch.full_like(DELTAS, math.nan)], -1)
    observed = torch.tensor([True, False])
    panel = PanelMixedLogit(diff, family(), observed=observed, validate_args=True)
    torch.testing.assert_close(
        panel.log_prob(torch.ones(7, 2).double()), MixedLogit(DELTAS, family()).log_prob(ONE), rtol=1e-10, atol=0
    )


@each_family
def test_nothing_observed_costs_nothing(family):
    diff = torch.full((2, 3), math.nan, dtype=torch.float64, requires_grad=True)
    parameters = [p.requires_grad_() for p in double(*family.parameters)]
    panel = PanelMixedLogit(diff, family(*parameters), observed=torch.zeros(2, 3, dtype=torch.bool))
    log_prob = panel.log_prob(torch.full((2, 3), math.nan).double())
    gradients = torch.autograd.grad(log_prob.sum(), [diff, *parameters], allow_unused=True)
    assert torch.equal(log_prob.detach(), torch.zeros(2).double())
    assert all(g is None or torch.equal(g, torch.zeros_like(g)) for g in gradients)


@each_family
def test_order_of_situations_does_not_matter(family):
    diff = utilities(CHOICES[1], 4)
    y = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    order = [2, 0, 1]
    torch.testing.assert_close(
        PanelMixedLogit(diff, family()).log_prob(y),
        PanelMixedLogit(diff[:, order], family()).log_prob(y[order]),
        rtol=1e-12,
        atol=0,
    )


@each_family
def test_two_alternatives_are_the_binary_case(family):
    u = torch.stack([DELTAS, torch.zeros_like(DELTAS)], -1)
    binary = MixedLogit(DELTAS, family()).log_prob(ONE)
    first = torch.zeros(7, dtype=torch.int64)
    offered = torch.ones(7, 2, dtype=torch.bool)
    ranking = torch.tensor([0, 1]).expand(7, 2)
    torch.testing.assert_close(MixedMultinomialLogit(u, family()).log_prob(first), binary, rtol=1e-13, atol=0)
    torch.testing.assert_close(
        MixedMultinomialLogit(u, family(), available=offered).log_prob(first), binary, rtol=1e-10, atol=0
    )
    torch.testing.assert_close(MixedPlackettLuce(u, family()).log_prob(ranking), binary, rtol=1e-10, atol=0)


@each_family
def test_top_one_is_a_choice_and_the_last_place_is_free(family):
    u = utilities(CHOICES[3], 5)
    ranking = MixedPlackettLuce(u, family())
    choice = MixedMultinomialLogit(u, family())
    index = torch.tensor([0, 1, 2, 1, 0])
    torch.testing.assert_close(ranking.log_prob(index.unsqueeze(-1)), choice.log_prob(index), rtol=1e-11, atol=1e-14)
    padded = torch.tensor([[2, -1, -1]]).expand(5, 3)
    torch.testing.assert_close(ranking.log_prob(padded), choice.log_prob(torch.full((5,), 2)), rtol=1e-11, atol=1e-14)
    full = torch.tensor([2, 0, 1]).expand(5, 3)
    torch.testing.assert_close(ranking.log_prob(full), ranking.log_prob(full[:, :2]), rtol=1e-12, atol=1e-14)


def test_unavailable_alternatives_do_not_count():
    u = utilities(CHOICES[2], 6)
    wide = torch.cat([u, torch.full((6, 2), math.nan).double()], -1)
    offered = torch.tensor([True] * 4 + [False] * 2)
    narrow, masked = MixedMultinomialLogit(u, lognormal()), MixedMultinomialLogit(wide, lognormal(), available=offered)
    torch.testing.assert_close(masked.probs[:, :4], narrow.probs, rtol=1e-10, atol=0)
    assert torch.equal(masked.probs[:, 4:], torch.zeros(6, 2).double())
    assert int(masked.sample((200,)).max()) < 4
    ranking = MixedPlackettLuce(wide, lognormal(), available=offered)
    sample = ranking.sample((50,))
    assert (sample[..., 4:] == -1).all()
    torch.testing.assert_close(
        ranking.log_prob(sample), MixedPlackettLuce(u, lognormal()).log_prob(sample[..., :4]), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("case", CHOICES[2:], ids=ids)
def test_adding_a_constant_to_all_utilities_changes_nothing(case):
    u = utilities(case, 5)
    value = case.values()[1].expand(5, *case.event_shape)
    torch.testing.assert_close(
        case.make(u + 13.0, lognormal()).log_prob(value), case.make(u, lognormal()).log_prob(value), rtol=1e-11, atol=0
    )


@each_choice
def test_strength_and_utility_scale_against_each_other(case):
    u = utilities(case, 5)
    value = case.values()[1].expand(5, *case.event_shape)
    torch.testing.assert_close(
        case.make(u, dist.Gamma(*double(2.0, 3.0))).log_prob(value),
        case.make(10.0 * u, dist.Gamma(*double(2.0, 30.0))).log_prob(value),
        rtol=1e-11,
        atol=0,
    )


@pytest.mark.parametrize(
    ("general", "special"),
    [
        (GeneralizedGamma(*double(2.0, 0.4, 1.0)), dist.Gamma(*double(2.0, 2.5))),
        (GeneralizedGamma(*double(1.0, 0.4, 1.7)), dist.Weibull(*double(0.4, 1.7))),
        (GeneralizedGamma(*double(0.5, 0.4 * math.sqrt(2.0), 2.0)), dist.HalfNormal(*double(0.4))),
        (dist.Gamma(*double(1.0, 2.5)), dist.Exponential(*double(2.5))),
        (TruncatedNormal(*double(0.0, 0.4)), dist.HalfNormal(*double(0.4))),
        (TruncatedNormal(*double(0.5, 1e4, 0.2, 1.4)), dist.Uniform(*double(0.2, 1.4))),
        (TruncatedNormal(*double(0.5, 0.3, -9.0, 9.0)), dist.Normal(*double(0.5, 0.3))),
        (FiniteMixture(torch.tensor([0.5, 0.5], dtype=torch.float64), [lognormal(), lognormal()]), lognormal()),
        (
            FiniteMixture(
                torch.tensor([0.5, 0.5], dtype=torch.float64),
                [dist.Uniform(*double(0.2, 0.8)), dist.Uniform(*double(0.8, 1.4))],
            ),
            dist.Uniform(*double(0.2, 1.4)),
        ),
    ],
    ids=["gamma", "weibull", "half_normal", "exponential", "truncated", "flat", "wide", "same_classes", "two_halves"],
)
@each_choice
def test_special_cases_of_families(case, general, special):
    u = utilities(case, 5)
    value = case.values()[1].expand(5, *case.event_shape)
    # a normal 1e4 wide is flat on (0.2, 1.4) to 1e-8
    rtol = 1e-7 if isinstance(general, TruncatedNormal) and general.scale > 1e3 else 1e-10
    torch.testing.assert_close(
        case.make(u, general).log_prob(value), case.make(u, special).log_prob(value), rtol=rtol, atol=0
    )


def test_triangular_is_the_mean_of_two_uniforms():
    """E over Tri(-1, 0, 1) as a double sum: (U1 + U2) / 2 on a midpoint grid, error O(1 / n^2)."""
    n = 400
    grid = (torch.arange(n).double() + 0.5) / n
    strength = (grid[:, None] + grid[None, :]) / 2 * 1.2 + 0.2
    expected = torch.sigmoid(strength[..., None] * DELTAS).mean((0, 1)).log()
    got = MixedLogit(DELTAS, Triangular(*double(0.2, 1.4))).log_prob(ONE)
    torch.testing.assert_close(got[1:], expected[1:], rtol=0, atol=1e-5)


def test_all_rankings_of_four_sum_to_one():
    u = utilities(CHOICES[2])
    values = torch.tensor(list(itertools.permutations(range(4))))
    total = MixedPlackettLuce(u, lognormal()).log_prob(values).exp().sum()
    torch.testing.assert_close(total, torch.ones(()).double(), rtol=1e-12, atol=0)


def test_pyro_mixtures_are_understood():
    shares = torch.tensor([0.3, 0.7], dtype=torch.float64)
    same = dist.MixtureSameFamily(
        dist.Categorical(shares),
        dist.Gamma(*[torch.stack(p) for p in zip(double(2.0, 3.0), double(4.0, 2.0), strict=True)]),
    )
    ours = FiniteMixture(shares, [dist.Gamma(*double(2.0, 3.0)), dist.Gamma(*double(4.0, 2.0))])
    torch.testing.assert_close(
        MixedLogit(DELTAS, same).log_prob(ONE), MixedLogit(DELTAS, ours).log_prob(ONE), rtol=1e-13, atol=0
    )
    inflated = dist.ZeroInflatedDistribution(dist.Gamma(*double(2.0, 3.0)), gate=shares[0])
    ours = FiniteMixture(shares, [dist.Delta(*double(0.0)), dist.Gamma(*double(2.0, 3.0))])
    torch.testing.assert_close(
        MixedLogit(DELTAS, inflated).log_prob(ONE), MixedLogit(DELTAS, ours).log_prob(ONE), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("panel", [False, True], ids=["single", "panel"])
@pytest.mark.parametrize("cv", [1e-6, 1e-8, 1e-11, 1e-14])
@pytest.mark.parametrize("name", ["normal", "lognormal", "gamma", "inverse_gaussian", "weibull", "gumbel"])
def test_narrow_strengths_are_points(name, cv, panel):
    """What a spread adds is of second order, below 1e-12; what rounding leaves of nodes is below 1e-8."""
    mean = 0.7
    mixing = {
        "normal": lambda: dist.Normal(*double(mean, mean * cv)),
        "lognormal": lambda: dist.LogNormal(*double(math.log(mean), cv)),
        "gamma": lambda: dist.Gamma(*double(cv**-2, cv**-2 / mean)),
        "inverse_gaussian": lambda: InverseGaussian(*double(mean, mean * cv**-2)),
        "weibull": lambda: dist.Weibull(*double(mean, 1.0 / cv)),
        "gumbel": lambda: dist.Gumbel(*double(mean, mean * cv)),
    }[name]()
    # the mean of a Gumbel or Weibull is off its centre by less than one spread
    atol = 1e-8 if name not in ("weibull", "gumbel") else 1e-8 + 3.0 * max(cv, 1e-7)
    diff = torch.tensor([1.0, -0.4, 2.0], dtype=torch.float64)
    if panel:
        got = PanelMixedLogit(diff, mixing).log_prob(torch.ones(3).double())
        expected = logsigmoid(mean * diff).sum()
    else:
        got, expected = MixedLogit(diff, mixing).log_prob(ONE), logsigmoid(mean * diff)
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("shares", [[0.0, 0.4, 0.6], [0.4, 0.6, 0.0], [1.0, 0.0, 0.0]])
@pytest.mark.parametrize("delta", [-2.0, 0.0, 40.0])
def test_gradients_by_shares_at_the_edge_of_the_simplex(shares, delta):
    parts = [dist.Gamma(*double(2.0, 3.0)), lognormal(), dist.Delta(*double(0.7))]
    p = torch.tensor(shares, dtype=torch.float64, requires_grad=True)
    diff = torch.tensor(delta, dtype=torch.float64)
    log_prob = MixedLogit(diff, FiniteMixture(p, parts)).log_prob(ONE)
    (got,) = torch.autograd.grad(log_prob, p)
    each = torch.stack([MixedLogit(diff, part).log_prob(ONE) for part in parts]).exp()
    expected = each / (p.detach() * each).sum()
    # near certainty the gradient is that of the complement: the same up to what all shares have in common
    torch.testing.assert_close(got - got[0], expected - expected[0], rtol=1e-9, atol=1e-12)


def test_second_derivatives_of_padded_rankings():
    u = torch.tensor([0.3, 1.0, -0.7, 0.2], dtype=torch.float64)
    offered = torch.tensor([True, False, True, True])

    def log_prob(concentration, ranking, available=None):
        mixing = dist.Gamma(concentration, torch.ones(()).double())
        return MixedPlackettLuce(u, mixing, available=available).log_prob(torch.tensor(ranking))

    k = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    hessian = torch.autograd.functional.hessian
    padded, cut = (hessian(lambda k, r=r: log_prob(k, r), k) for r in ([2, 0, -1, -1], [2, 0]))
    torch.testing.assert_close(padded, cut, rtol=1e-10, atol=0)
    assert torch.autograd.gradgradcheck(lambda k: log_prob(k, [2, 0, 3, -1], offered), k)
