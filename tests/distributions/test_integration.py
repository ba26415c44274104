"""The rules as value objects, and what each gives."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from mixlogit_align import (
    ClosedForm,
    FixedDraws,
    ImportanceSampling,
    MixedLogit,
    MonteCarlo,
    PanelMixedLogit,
    Quadrature,
    QuasiMonteCarlo,
)
from mixlogit_align.distributions import FiniteMixture
from mixlogit_align.distributions.integration import Conditional, best_rule
from mixlogit_align.distributions.mixing import family_of
from mixlogit_align.errors import IntegrationError, IntegrationWarning, InvalidInputError
from tests.distributions.cases import FAMILIES, SMOOTH, double, ids, lognormal

ONE = torch.ones(()).double()
DELTAS = torch.tensor([-8.0, -1.0, 0.3, 5.0], dtype=torch.float64)
DRAWN = [
    MonteCarlo(4096),
    MonteCarlo(4096, kind="stratified"),
    MonteCarlo(4096, kind="antithetic"),
    MonteCarlo(4096, sharing="batch"),
    QuasiMonteCarlo("halton", 4096),
    QuasiMonteCarlo("sobol", 4096),
    QuasiMonteCarlo("mlhs", 4096),
]


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f.name not in ("zero_inflated_gamma", "two_classes")], ids=ids
)
def test_the_best_rule_of_each_family(family):
    assert isinstance(best_rule(Conditional.of_comparison(DELTAS), family_of(family())), family.rule)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (ClosedForm(), "ClosedForm()"),
        (Quadrature(64), "Quadrature(num_nodes=64)"),
        (MonteCarlo(), "MonteCarlo(num_draws=16, sharing='row', seed=0, kind='pseudo')"),
        (MonteCarlo(8).at(step=3), "MonteCarlo(num_draws=8, sharing='row', seed=0, kind='pseudo', step=3)"),
        (QuasiMonteCarlo("halton", 50, 2), "QuasiMonteCarlo(kind='halton', num_draws=50, seed=2)"),
        (QuasiMonteCarlo("halton", 50, None), "QuasiMonteCarlo(kind='halton', num_draws=50, seed=None)"),
        (
            ImportanceSampling().at(step=2),
            "ImportanceSampling(num_draws=64, scale=1.2, kind='sobol', seed=0, prior_share=0.25, step=2)",
        ),
        (FixedDraws(torch.zeros(3, 5)), "FixedDraws(shape=(3, 5))"),
        (FixedDraws(torch.zeros(3, 5, 2)), "FixedDraws(shape=(3, 5, 2))"),
    ],
    ids=lambda x: str(x)[:12],
)
def test_rules_print_themselves(rule, text):
    assert repr(rule) == text


def test_a_distribution_says_which_rules_it_used():
    mixture = FiniteMixture(torch.tensor([0.5, 0.5], dtype=torch.float64), [dist.Delta(*double(0.3)), lognormal()])
    assert MixedLogit(DELTAS, dist.Gamma(*double(2.0, 3.0))).rules_used(ONE) == (ClosedForm(),)
    assert PanelMixedLogit(DELTAS, dist.Gamma(*double(2.0, 3.0))).rules_used(torch.ones(4)) == (Quadrature(),)
    assert MixedLogit(DELTAS, mixture).rules_used(ONE) == (ClosedForm(), Quadrature())
    assert MixedLogit(DELTAS, lognormal(), MonteCarlo(8)).rules_used(ONE) == (MonteCarlo(8),)


def test_rules_are_values():
    assert MonteCarlo(8, seed=1) == MonteCarlo(8, seed=1)
    assert MonteCarlo(8, seed=1) != MonteCarlo(8, seed=2)
    assert len({Quadrature(), Quadrature(), ClosedForm()}) == 2
    assert MonteCarlo(8).at(step=0) == MonteCarlo(8)
    assert Quadrature().at(step=7) == Quadrature()


@pytest.mark.parametrize("rule", DRAWN, ids=repr)
@pytest.mark.parametrize("family", SMOOTH, ids=ids)
def test_draws_converge_to_the_exact_value(rule, family):
    """At K = 4096 the sd of log P is below 1.2 / sqrt(K) where P is not small: five of them, false-failure 1e-5."""
    got = MixedLogit(DELTAS[1:], family(), rule).log_prob(ONE)
    exact = MixedLogit(DELTAS[1:], family()).log_prob(ONE)
    torch.testing.assert_close(got, exact, rtol=0, atol=5 * 1.2 / math.sqrt(4096))


@pytest.mark.parametrize("rule", [r for r in DRAWN if r not in (DRAWN[0], DRAWN[2], DRAWN[3])], ids=repr)
def test_spread_out_draws_are_far_better(rule):
    """One draw in each of K cells: error O(1/K) for a monotone integrand, not O(1/sqrt K)."""
    got = MixedLogit(DELTAS, lognormal(), rule).log_prob(ONE)
    exact = MixedLogit(DELTAS, lognormal()).log_prob(ONE)
    torch.testing.assert_close(got, exact, rtol=0, atol=4e-3)


@pytest.mark.parametrize("kind", ["pseudo", "stratified", "antithetic", "halton", "sobol", "mlhs"])
def test_draws_belong_to_seed_step_and_row(kind):
    quasi = kind in ("halton", "sobol", "mlhs")
    rule = QuasiMonteCarlo(kind, 8) if quasi else MonteCarlo(8, kind=kind)
    ids = torch.tensor([11, 5, 903, 7])
    value = MixedLogit(DELTAS, lognormal(), rule.at(step=3, rows=ids)).log_prob(ONE)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = MixedLogit(DELTAS[order], lognormal(), rule.at(step=3, rows=ids[order])).log_prob(ONE)
    assert torch.equal(shuffled, value[order])
    for other in (rule.at(step=4, rows=ids), rule.at(step=3, rows=ids + 1), rule.reseeded(1).at(step=3, rows=ids)):
        assert not torch.equal(MixedLogit(DELTAS, lognormal(), other).log_prob(ONE), value)


@pytest.mark.parametrize("family", SMOOTH, ids=ids)
def test_derivatives_through_draws(family):
    """gradcheck and gradgradcheck, which bring their own tolerances, through every base-draw transform."""
    diff = torch.tensor([-1.2, 0.7], dtype=torch.float64, requires_grad=True)
    parameters = [p.requires_grad_() for p in double(*family.parameters)]

    def log_prob(diff, *parameters):
        return MixedLogit(diff, family(*parameters), QuasiMonteCarlo("mlhs", 6)).log_prob(ONE)

    assert torch.autograd.gradcheck(log_prob, (diff, *parameters))
    assert torch.autograd.gradgradcheck(log_prob, (diff, *parameters))


def test_shared_draws_are_one_set_for_all():
    same = torch.full((3,), 1.3, dtype=torch.float64)
    shared = MixedLogit(same, lognormal(), MonteCarlo(4, sharing="batch")).log_prob(ONE)
    own = MixedLogit(same, lognormal(), MonteCarlo(4)).log_prob(ONE)
    assert shared.unique().numel() == 1
    assert own.unique().numel() == 3


def test_panel_draws_are_one_set_an_individual():
    diff = torch.full((2, 3), 1.3, dtype=torch.float64)
    base = torch.tensor([[0.1, -0.4], [0.7, 0.2]], dtype=torch.float64)
    got = PanelMixedLogit(diff, lognormal(), FixedDraws(base)).log_prob(torch.ones(3).double())
    strength = torch.exp(-0.5 + 0.8 * base)
    torch.testing.assert_close(got, (torch.sigmoid(strength * 1.3) ** 3).mean(-1).log(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("shape", [(5,), (4, 5)])
def test_fixed_draws_are_used_as_given(shape):
    z = torch.randn(shape, dtype=torch.float64)
    got = MixedLogit(DELTAS, lognormal(), FixedDraws(z)).log_prob(ONE)
    expected = torch.sigmoid(torch.exp(-0.5 + 0.8 * z) * DELTAS[:, None]).mean(-1).log()
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("mixing", "strength"),
    [
        (dist.Normal(*double(0.4, 0.7)), lambda z: 0.4 + 0.7 * z),
        (dist.Uniform(*double(-0.3, 1.1)), lambda z: 0.4 + 0.7 * z),
        (dist.LogNormal(*double(0.4, 0.7)), lambda z: torch.exp(0.4 + 0.7 * z)),
    ],
    ids=["normal", "uniform", "lognormal"],
)
def test_fixed_draws_are_standard_variables(mixing, strength):
    z = torch.tensor([-0.9, -0.2, 0.6], dtype=torch.float64)
    got = MixedLogit(DELTAS, mixing, FixedDraws(z)).log_prob(ONE)
    expected = torch.sigmoid(strength(z) * DELTAS[:, None]).mean(-1).log()
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)


def test_weights_of_fixed_draws():
    """Gauss-Hermite as another package would give it: 20 nodes, exact to 1e-6 for this mild scale."""
    import numpy as np

    x, w = np.polynomial.hermite_e.hermegauss(20)
    rule = FixedDraws(torch.tensor(x), torch.tensor(w / w.sum()))
    mixing = dist.LogNormal(*double(-0.5, 0.3))
    torch.testing.assert_close(
        MixedLogit(DELTAS, mixing, rule).log_prob(ONE), MixedLogit(DELTAS, mixing).log_prob(ONE), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MonteCarlo(0), "num_draws"),
        (lambda: MonteCarlo(2.5), "num_draws"),
        (lambda: MonteCarlo(7, kind="antithetic"), "even"),
        (lambda: MonteCarlo(8, sharing="all"), "sharing"),
        (lambda: MonteCarlo(8, kind="sobol"), "QuasiMonteCarlo"),
        (lambda: QuasiMonteCarlo("pseudo"), "MonteCarlo"),
        (lambda: Quadrature(4), "num_nodes"),
        (lambda: FixedDraws(torch.tensor([math.nan])), "finite"),
        (lambda: MonteCarlo(4, seed=1.5), "seed"),
        (lambda: MonteCarlo(4).at(step=1.7), "step"),
        (lambda: FixedDraws(torch.zeros(3), torch.ones(3)), "sum to one"),
        (lambda: FixedDraws(torch.zeros(2, 3, 4), torch.full((2, 5), 0.2)), "sum to one"),
        (lambda: QuasiMonteCarlo("sobol", 8, None), "seed"),
        (lambda: ImportanceSampling(0), "num_draws"),
        (lambda: ImportanceSampling(scale=0.0), "scale"),
        (lambda: ImportanceSampling(scale=math.nan), "scale"),
        (lambda: ImportanceSampling(kind="mlhs"), "a part is a sample"),
        (lambda: ImportanceSampling(prior_share=1.0), "prior_share"),
        (lambda: ImportanceSampling(prior_share=math.nan), "prior_share"),
    ],
    ids=lambda value: value if isinstance(value, str) else "call",
)
def test_bad_rules_are_refused(make, message):
    with pytest.raises(InvalidInputError, match=message):
        make()


@pytest.mark.parametrize(
    ("mixing", "rule", "message"),
    [
        (lognormal(), ClosedForm(), "Laplace"),
        (dist.Normal(*double(0.0, 1.0)), ClosedForm(), "Laplace"),
        (dist.StudentT(*double(5.0)), Quadrature(), "Quadrature"),
        (dist.StudentT(*double(5.0)), QuasiMonteCarlo("sobol", 8), "sobol draws by row id"),
        (dist.StudentT(*double(5.0)), FixedDraws(torch.zeros(3)), "no transform"),
        (dist.StudentT(*double(5.0)), ImportanceSampling(8), "StudentT.*no transform"),
        (dist.Poisson(*double(3.0)), None, "no rsample"),
    ],
    ids=[
        "lognormal",
        "normal",
        "student_quadrature",
        "student_sobol",
        "student_fixed",
        "student_importance",
        "poisson",
    ],
)
def test_rules_that_do_not_fit_are_refused_by_name(mixing, rule, message):
    with pytest.raises(IntegrationError, match=message):
        MixedLogit(DELTAS, mixing, rule).log_prob(ONE)


def test_fixed_draws_outside_the_range_of_the_standard_variable_are_refused():
    rule = FixedDraws(torch.tensor([-1.3, 0.2, 1.6], dtype=torch.float64))
    for mixing, message in (
        (dist.Gamma(*double(2.0, 3.0)), r"\[0, 1\]"),
        (dist.Uniform(*double(0.0, 1.0)), r"\[-1, 1\]"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            MixedLogit(DELTAS, mixing, rule).log_prob(ONE)


def test_row_ids_must_match_the_rows():
    with pytest.raises(InvalidInputError, match="row ids"):
        MixedLogit(DELTAS, lognormal(), MonteCarlo(4).at(rows=torch.arange(3))).log_prob(ONE)
    with pytest.raises(InvalidInputError, match=r"base draws of shape \(3, 5\)"):
        MixedLogit(DELTAS, lognormal(), FixedDraws(torch.zeros(3, 5))).log_prob(ONE)


def test_a_family_known_only_by_rsample_is_sampled_under_a_forked_generator():
    mixing = dist.StudentT(*double(8.0, 0.5, 0.3))
    before = torch.get_rng_state()
    with pytest.warns(IntegrationWarning, match="StudentT"):
        MixedLogit(DELTAS, mixing).log_prob(ONE)
    d = MixedLogit(DELTAS, mixing, MonteCarlo(1024))
    first, second = d.log_prob(ONE), d.log_prob(ONE)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, second)
    strength = mixing.sample((400_000,))
    expected = torch.sigmoid(strength[:, None] * DELTAS).mean(0).log()
    # K = 1024: five standard deviations of the estimated error, which is itself an estimate from eight seeds
    assert ((first - expected).abs() < 8 * d.integration_error(ONE.expand(4))).all()


@pytest.mark.parametrize(
    "rule", [MonteCarlo(16), QuasiMonteCarlo("sobol", 64), ImportanceSampling(), Quadrature(16), None], ids=repr
)
def test_the_reported_error_covers_the_true_one(rule):
    d = MixedLogit(DELTAS, dist.Gamma(*double(2.0, 3.0)), rule)
    exact = MixedLogit(DELTAS, dist.Gamma(*double(2.0, 3.0)), ClosedForm()).log_prob(ONE)
    reported = d.integration_error(ONE.expand(4))
    assert ((d.log_prob(ONE) - exact).abs() <= 2.0 * reported + 1e-14).all()


def test_certain_outcomes_keep_their_digits():
    """log P near 0 is minus the probability of the contrary, to relative accuracy."""
    diff = torch.tensor([[40.0, 60.0, 90.0]], dtype=torch.float64)
    mixing = dist.LogNormal(*double(1.0, 0.3))
    log_prob = PanelMixedLogit(diff, mixing).log_prob(torch.ones(3).double())
    contrary = sum(
        PanelMixedLogit(diff, mixing).log_prob(torch.tensor(y).double()).exp()
        for y in ([0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0])
    )
    assert float(contrary) < 1e-10
    torch.testing.assert_close(-log_prob, contrary, rtol=1e-9, atol=0)


@pytest.mark.parametrize("family", SMOOTH, ids=ids)
@pytest.mark.parametrize("panel", [False, True], ids=["single", "panel"])
def test_strength_posterior_against_draws(family, panel):
    """Posterior mean and sd by reweighting 2e5 draws: z below 5 for each, false-failure rate 1e-6 a case."""
    mixing = family()
    n = 200_000
    strength = mixing.expand((n,)).sample()
    diff = torch.tensor([1.2, -0.7, 2.0], dtype=torch.float64)
    if panel:
        d, y = PanelMixedLogit(diff, mixing), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
        weight = torch.sigmoid(strength[:, None] * torch.tensor([1.2, -0.7, -2.0], dtype=torch.float64)).prod(-1)
    else:
        d, y = MixedLogit(diff[0], mixing), ONE
        weight = torch.sigmoid(strength * 1.2)
    weight = weight / weight.sum()
    mean = (weight * strength).sum()
    second = (weight * strength**2).sum()
    got_mean, got_sd = d.strength_posterior(y)
    error_mean = ((weight * (strength - mean)) ** 2).sum().sqrt()
    error_second = ((weight * (strength**2 - second)) ** 2).sum().sqrt()
    assert abs(float((got_mean - mean) / error_mean)) < 5.0
    # heavy tails make the error of a second moment itself uncertain: twice as wide
    assert abs(float((got_sd**2 + got_mean**2 - second) / error_second)) < 10.0


def test_strength_posterior_of_a_mixture_and_a_point():
    shares = torch.tensor([0.3, 0.7], dtype=torch.float64)
    d = MixedLogit(
        torch.tensor(2.0, dtype=torch.float64),
        FiniteMixture(shares, [dist.Delta(*double(0.2)), dist.Delta(*double(1.5))]),
    )
    weight = shares * torch.sigmoid(torch.tensor([0.4, 3.0], dtype=torch.float64))
    weight = weight / weight.sum()
    mean, sd = d.strength_posterior(ONE)
    expected = weight[0] * 0.2 + weight[1] * 1.5
    torch.testing.assert_close(mean, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(sd, (weight[0] * weight[1]).sqrt() * 1.3, rtol=1e-12, atol=0)
    mean, sd = MixedLogit(DELTAS, dist.Delta(*double(0.2))).strength_posterior(ONE)
    assert torch.equal(mean, torch.full((4,), 0.2, dtype=torch.float64))
    assert torch.equal(sd, torch.zeros(4).double())


def test_plain_halton_draws_are_one_sequence_whatever_the_step():
    rule = QuasiMonteCarlo("halton", 16, seed=None)
    assert rule.at(step=3) == rule
    assert rule.reseeded(2) == QuasiMonteCarlo("halton", 16, seed=2)
    index = torch.arange(100, 164)
    u = sum(((index >> bit) & 1).double() * 0.5 ** (bit + 1) for bit in range(8)).reshape(4, 16)
    expected = MixedLogit(DELTAS, lognormal(), FixedDraws(torch.special.ndtri(u))).log_prob(ONE)
    torch.testing.assert_close(MixedLogit(DELTAS, lognormal(), rule).log_prob(ONE), expected, rtol=1e-14, atol=0)


def panel_of(mixing, t=20, n=40):
    generator = torch.Generator().manual_seed(4)
    diff = 1.5 * torch.randn((n, t), generator=generator, dtype=torch.float64)
    strength = 0.2 + 0.05 * torch.arange(n, dtype=torch.float64)[:, None]
    value = torch.bernoulli(torch.sigmoid(strength * diff), generator=generator)
    return lambda rule=None: PanelMixedLogit(diff, mixing, rule), value


@pytest.mark.parametrize("family", SMOOTH, ids=ids)
def test_importance_sampling_in_a_panel(family):
    """Root mean square error of log P over 40 individuals with 256 draws; the largest of all families is 7e-3."""
    make, value = panel_of(family())
    error = make(ImportanceSampling(256)).log_prob(value) - make().log_prob(value)
    assert float(error.square().mean().sqrt()) < 0.015


@pytest.mark.parametrize(
    "mixing", [lognormal(), dist.Normal(*double(0.5, 0.8)), dist.Gamma(*double(2.0, 3.0))], ids=repr
)
def test_importance_sampling_beats_draws_of_the_prior(mixing):
    make, value = panel_of(mixing, t=100)
    exact = make().log_prob(value)

    def error(rule):
        return float((make(rule).log_prob(value) - exact).square().mean().sqrt())

    assert error(ImportanceSampling(64)) < 0.25 * error(MonteCarlo(64))


@pytest.mark.parametrize(
    ("make", "parameters"),
    [(dist.LogNormal, (-0.5, 0.8)), (dist.Normal, (0.5, 0.8)), (dist.Gamma, (2.0, 3.0))],
    ids=["lognormal", "normal", "gamma"],
)
def test_derivatives_of_importance_sampling_are_taken_at_frozen_nodes(make, parameters):
    rule, rows = ImportanceSampling(16), torch.arange(2)
    diff = torch.tensor([[1.2, -0.7, 2.0], [0.3, 0.4, -1.5]], dtype=torch.float64)
    parameters = [p.requires_grad_() for p in double(*parameters)]
    d = PanelMixedLogit(diff, make(*parameters), rule)
    value = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    conditional = d._conditional(value)
    z, log_weight = rule.place(conditional, family_of(make(*parameters)), rows)
    assert not z.requires_grad
    assert not log_weight.requires_grad

    def frozen(*parameters):
        family = family_of(make(*parameters))
        base = z if family.base == "normal" else torch.special.ndtr(z)
        return torch.logsumexp(log_weight + conditional.loglik(family.from_base(base)), 0)

    assert torch.autograd.gradcheck(frozen, parameters)
    got = torch.autograd.grad(d.log_prob(value).sum(), parameters)
    torch.testing.assert_close(got, torch.autograd.grad(frozen(*parameters).sum(), parameters), rtol=1e-12, atol=0)


def test_importance_sampling_belongs_to_seed_step_and_row():
    make, value = panel_of(lognormal(), n=4)
    diff = make().utility_diff
    rule = ImportanceSampling(8)
    ids = torch.tensor([11, 5, 903, 7])
    first = PanelMixedLogit(diff, lognormal(), rule.at(step=3, rows=ids)).log_prob(value)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = PanelMixedLogit(diff[order], lognormal(), rule.at(step=3, rows=ids[order])).log_prob(value[order])
    torch.testing.assert_close(shuffled, first[order], rtol=1e-13, atol=0)
    for other in (rule.at(step=4, rows=ids), rule.at(step=3, rows=ids + 1), rule.reseeded(1).at(step=3, rows=ids)):
        assert not torch.equal(PanelMixedLogit(diff, lognormal(), other).log_prob(value), first)


def test_importance_sampling_of_mixtures_moments_and_error():
    shares = torch.tensor([0.3, 0.7], dtype=torch.float64)
    mixing = FiniteMixture(shares, [dist.Delta(*double(0.2)), lognormal()])
    make, value = panel_of(mixing)
    rule = ImportanceSampling(512)
    torch.testing.assert_close(make(rule).log_prob(value), make().log_prob(value), rtol=0, atol=0.01)
    for got, expected in zip(make(rule).strength_posterior(value), make().strength_posterior(value), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0.01)
    error = (make(rule).log_prob(value) - make().log_prob(value)).abs()
    torch.testing.assert_close(make(rule).integration_error(value), error, rtol=1e-9, atol=1e-12)


def test_draws_of_several_coefficients_do_not_fit_one_strength():
    rule = FixedDraws(torch.zeros(4, 5, 2), torch.full((4, 5), 0.2))
    with pytest.raises(InvalidInputError, match="models of M coefficients"):
        MixedLogit(DELTAS, lognormal(), rule).log_prob(ONE)
    with pytest.raises(InvalidInputError, match="weights of FixedDraws"):
        MixedLogit(DELTAS, lognormal(), FixedDraws(torch.zeros(4, 5), torch.full((4,), 0.25))).log_prob(ONE)
