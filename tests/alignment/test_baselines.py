"""Losses of fixed strength: hand-derived numbers, what each turns into at its limits, and what all of them share."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from scipy.optimize import minimize_scalar

from mixlogit_align.alignment import baselines, mixdpo_loss
from mixlogit_align.errors import InvalidInputError
from tests.alignment.test_losses import delta_logps, logps

LOG3 = math.log(3)  # sigma(log 3) = 3/4
PLAIN = ["dpo", "conservative", "robust", "ipo_sequence", "kto", "beta", "adaptive", "mallows"]
NAMES = [*PLAIN, "ipo_token", "simpo"]


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def settings(name: str, num_pairs: int) -> dict[str, Any]:
    """Settings of a case; what varies by pair differs from pair to pair."""
    pairs = torch.arange(num_pairs)
    if name in ("ipo_token", "simpo"):
        return {"chosen_lengths": 5 + pairs, "rejected_lengths": 40 - 3 * pairs}
    given: dict[str, dict[str, Any]] = {
        "ipo_sequence": {"per": "sequence"},
        "kto": {"reference_point": 2.5, "desirable_weight": 1.2},
        # the mean of the whole batch, so that a pair's loss depends on that pair alone
        "beta": {"threshold": 1.0, "alpha": 0.1, "batch_margin": 4.0},
        "mallows": {"dispersion": 0.2 + 0.6 * pairs.double() / num_pairs},
    }
    return given.get(name, {})


FUNCTIONS = {
    "dpo": baselines.dpo_loss,
    "conservative": baselines.conservative_dpo_loss,
    "robust": baselines.robust_dpo_loss,
    "ipo_sequence": baselines.ipo_loss,
    "ipo_token": baselines.ipo_loss,
    "simpo": baselines.simpo_loss,
    "kto": baselines.kto_loss,
    "beta": baselines.beta_dpo_loss,
    "adaptive": baselines.adaptive_dpo_loss,
    "mallows": baselines.mallows_dpo_loss,
}


def run(name: str, given: list[torch.Tensor], rows: torch.Tensor | None = None, **more: Any) -> Any:
    """The loss of a case at these log-probabilities, or at some of their rows."""
    beside = {**settings(name, len(given[0])), **more}
    if rows is not None:
        given = [x[rows] for x in given]
        beside = {key: x[rows] if isinstance(x, torch.Tensor) and x.ndim else x for key, x in beside.items()}
    return FUNCTIONS[name](*given[: 2 if name == "simpo" else 4], **beside)


def test_every_loss_of_the_family_is_a_case_here():
    public = {f for n, f in inspect.getmembers(baselines, inspect.isfunction) if n.endswith("_loss")}
    assert public - {mixdpo_loss} == set(FUNCTIONS.values())


# --- DPO -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_dpo_is_mixdpo_at_a_point(dtype):
    strength = dist.Delta(torch.tensor(0.1, dtype=torch.float64))
    given = logps(64, dtype, spread=60.0)
    fixed, mixed = baselines.dpo_loss(*given, beta=0.1), mixdpo_loss(*given, mixing=strength)
    gradients = [torch.autograd.grad(out.per_example.sum(), given[:2]) for out in (fixed, mixed)]
    # Both compute in float64; what differs is the order of rounding, and at the end the dtype's own.
    tolerance = {"rtol": 1e-12 if dtype == torch.float64 else 1e-6, "atol": 1e-30}
    torch.testing.assert_close(fixed.per_example, mixed.per_example, **tolerance)
    torch.testing.assert_close(gradients[0], gradients[1], **tolerance)
    torch.testing.assert_close(fixed.logratio_diff, mixed.logratio_diff, rtol=0, atol=0)
    torch.testing.assert_close(fixed.pair_weight, mixed.pair_weight, **tolerance)
    torch.testing.assert_close(fixed.metrics, mixed.metrics, **tolerance)
    assert fixed.values.keys() == mixed.values.keys()


def test_dpo_by_hand():
    out = baselines.dpo_loss(*(given := delta_logps([10 * LOG3, -10 * LOG3])), beta=0.1)
    (gradient,) = torch.autograd.grad(out.per_example.sum(), given[0])
    torch.testing.assert_close(out.per_example, double(math.log(4 / 3), math.log(4)), rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, double(-0.025, -0.075), rtol=1e-14, atol=0)
    torch.testing.assert_close(out.pair_weight, double(1, 1), rtol=1e-13, atol=0)


# --- label smoothing -------------------------------------------------------------------------------


def test_conservative_dpo_by_hand():
    out = baselines.conservative_dpo_loss(*(given := delta_logps([10 * LOG3])), label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(out.per_example.sum(), given[0])
    assert out.per_example.item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4), rel=1e-14)
    assert gradient.item() == pytest.approx(0.1 * (-0.9 / 4 + 0.1 * 3 / 4), rel=1e-14)
    assert out.pair_weight.item() == pytest.approx(0.9 - 0.1 * 3, rel=1e-13)


def test_robust_dpo_by_hand():
    out = baselines.robust_dpo_loss(*(given := delta_logps([10 * LOG3])), label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(out.per_example.sum(), given[0])
    assert out.per_example.item() == pytest.approx((0.9 * math.log(4 / 3) - 0.1 * math.log(4)) / 0.8, rel=1e-14)
    assert gradient.item() == pytest.approx(-0.1 * (0.9 / 4 + 0.1 * 3 / 4) / 0.8, rel=1e-14)


@pytest.mark.parametrize("name", ["conservative", "robust"])
def test_without_smoothing_it_is_dpo(name):
    given = logps(16)
    smoothed = run(name, given, label_smoothing=0.0).per_example
    assert torch.equal(smoothed, baselines.dpo_loss(*given).per_example)


def test_conservative_dpo_is_least_where_the_choice_is_as_sure_as_its_label():
    delta = delta_logps([10 * math.log(0.9 / 0.1)])
    out = baselines.conservative_dpo_loss(*delta, label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(out.per_example.sum(), delta[0])
    assert gradient.item() == pytest.approx(0, abs=1e-16)
    assert out.pair_weight.item() == pytest.approx(0, abs=1e-13)


def test_robust_dpo_has_dpos_mean_over_the_noise():
    delta = [-80.0, -3.0, 0.0, 7.0, 200.0]
    right = baselines.robust_dpo_loss(*delta_logps(delta), label_smoothing=0.3).per_example
    flipped = baselines.robust_dpo_loss(*delta_logps([-x for x in delta]), label_smoothing=0.3).per_example
    clean = baselines.dpo_loss(*delta_logps(delta)).per_example
    torch.testing.assert_close(0.7 * right + 0.3 * flipped, clean, rtol=1e-12, atol=1e-13)


# --- IPO -------------------------------------------------------------------------------------------


def test_ipo_by_hand():
    chosen, rejected = double(-10.0, -30.0), double(-12.0, -20.0)
    reference = [double(-14.0, -24.0), double(-20.0, -22.0)]
    sums = baselines.ipo_loss(chosen, rejected, *reference, beta=0.1, per="sequence")
    lengths = {"chosen_lengths": torch.tensor([2, 3]), "rejected_lengths": torch.tensor([4, 1])}
    means = baselines.ipo_loss(chosen, rejected, *reference, beta=0.1, per="token", **lengths)
    # log-ratios: chosen 4, -6; rejected 8, 2
    torch.testing.assert_close(sums.per_example, double((4 - 8 - 5) ** 2, (-6 - 2 - 5) ** 2), rtol=1e-15, atol=0)
    torch.testing.assert_close(means.per_example, double((2 - 2 - 5) ** 2, (-2 - 2 - 5) ** 2), rtol=1e-15, atol=0)
    torch.testing.assert_close(means.logratio_diff, double(0, -4), rtol=0, atol=1e-15)
    assert means.metrics["rewards/margins"].item() == pytest.approx(-0.2, rel=1e-14)
    assert means.metrics["margin/sum"].item() == pytest.approx((2 - 10) / 2, rel=1e-14)


def test_ipo_has_its_optimum_at_one_half_over_beta():
    out = run("ipo_sequence", delta := delta_logps([1 / (2 * 0.1)]), beta=0.1)
    (gradient,) = torch.autograd.grad(out.per_example.sum(), delta[0])
    assert (out.per_example.item(), gradient.item(), out.pair_weight.item()) == (0.0, 0.0, 0.0)


def test_ipo_fits_a_linear_probability():
    share, beta = 0.7, 0.1
    delta = [(share - 0.5) / beta]
    ways = [delta_logps(delta), delta_logps([-delta[0]])]
    slopes = [torch.autograd.grad(run("ipo_sequence", w, beta=beta).per_example.sum(), w[0])[0].item() for w in ways]
    assert share * slopes[0] - (1 - share) * slopes[1] == pytest.approx(0, abs=1e-14)


# --- SimPO -----------------------------------------------------------------------------------------


def test_simpo_by_hand():
    # per token: -1 and -2 - log 3 / 2, so that beta * delta - gamma = 2 * (1 + log 3 / 2) - 2 = log 3
    chosen, rejected = double(-4.0).requires_grad_(), double(-5 * (2 + LOG3 / 2)).requires_grad_()
    lengths = {"chosen_lengths": torch.tensor([4]), "rejected_lengths": torch.tensor([5])}
    out = baselines.simpo_loss(chosen, rejected, **lengths, beta=2.0, gamma=2.0)
    gradients = torch.autograd.grad(out.per_example.sum(), (chosen, rejected))
    assert out.per_example.item() == pytest.approx(math.log(4 / 3), rel=1e-13)
    assert [g.item() for g in gradients] == pytest.approx([-2 / 4 / 4, 2 / 4 / 5], rel=1e-13)
    assert out.metrics["rewards/chosen"].item() == pytest.approx(-2.0, rel=1e-14)
    assert out.logratio_diff.item() == pytest.approx(1 + LOG3 / 2, rel=1e-14)


def test_simpo_of_one_token_without_margin_is_dpo_under_an_even_reference():
    policy = logps(12)[:2]
    even = torch.full((12,), -3.0, dtype=torch.float64)
    ones = torch.ones(12, dtype=torch.int64)
    out = baselines.simpo_loss(*policy, chosen_lengths=ones, rejected_lengths=ones, beta=0.1, gamma=0.0)
    torch.testing.assert_close(
        out.per_example, baselines.dpo_loss(*policy, even, even).per_example, rtol=1e-12, atol=1e-15
    )


# --- KTO -------------------------------------------------------------------------------------------


def test_kto_by_hand():
    # around z = 2: 0.1 * (r_chosen - z) = log 3 and 0.1 * (z - r_rejected) = log 3
    chosen = double(2 + 10 * LOG3).requires_grad_()
    rejected = double(2 - 10 * LOG3).requires_grad_()
    out = baselines.kto_loss(
        chosen, rejected, double(0), double(0), reference_point=2.0, desirable_weight=2.0, undesirable_weight=3.0
    )
    gradients = torch.autograd.grad(out.per_example.sum(), (chosen, rejected))
    assert out.per_example.item() == pytest.approx((2 / 4 + 3 / 4) / 2, rel=1e-14)
    assert [g.item() for g in gradients] == pytest.approx([-2 * 0.1 * 3 / 32, 3 * 0.1 * 3 / 32], rel=1e-13)
    # its pull: half the difference of the two, beside DPO's at delta = 20 log 3
    assert out.pair_weight.item() == pytest.approx(0.5 * 5 * 0.1 * 3 / 32 / (0.1 / 10), rel=1e-12)


@pytest.mark.parametrize(
    ("log_ratios", "weights", "point"),
    [([1.0, 2.0, 6.0], None, 3.0), ([1.0, 2.0, -6.0], None, 0.0), ([1.0, 2.0, 6.0], [3.0, 0.0, 1.0], 2.25)],
    ids=["mean", "not below 0", "weighted"],
)
def test_the_reference_point_is_the_positive_part_of_the_mean(log_ratios, weights, point):
    given = double(*log_ratios).requires_grad_()
    found = baselines.kto_reference_point(given, None if weights is None else double(*weights))
    assert not found.requires_grad
    assert found.item() == pytest.approx(point, rel=1e-15)


@pytest.mark.parametrize(
    "bad",
    [
        {"log_ratios": double(1.0, math.nan)},
        {"log_ratios": torch.zeros(2, 2)},
        {"log_ratios": double(1.0), "weights": double(1.0, 2.0)},
        {"log_ratios": double(1.0), "weights": double(-1.0)},
        {"log_ratios": double(1.0), "weights": double(0.0)},
    ],
    ids=["nan", "tokens", "too many weights", "negative weight", "no weight"],
)
def test_a_reference_point_needs_finite_numbers(bad):
    with pytest.raises(InvalidInputError, match=r"^(log_ratios|weights|sum of weights): got"):
        baselines.kto_reference_point(**bad)


# --- beta-DPO --------------------------------------------------------------------------------------


def test_beta_dpo_by_hand():
    # M = 3, so beta = 0.1 * (1 + 0.5 * (3 - 1)) = 0.2
    delta = [5 * LOG3, 6 - 5 * LOG3]
    out = baselines.beta_dpo_loss(*(given := delta_logps(delta)), threshold=1.0, alpha=0.5)
    (gradient,) = torch.autograd.grad(out.per_example.sum(), given[0])
    assert out.metrics["strength/mean"].item() == pytest.approx(0.2, rel=1e-14)
    assert out.per_example[0].item() == pytest.approx(math.log(4 / 3), rel=1e-13)
    assert gradient[0].item() == pytest.approx(-0.2 / 4, rel=1e-13)  # none through beta


def test_beta_dpo_without_alpha_is_dpo():
    given = logps(16)
    out = baselines.beta_dpo_loss(*given, threshold=5.0, alpha=0.0)
    assert torch.equal(out.per_example, baselines.dpo_loss(*given).per_example)


def test_beta_of_a_part_is_that_of_the_whole_batch():
    given = [x.detach() for x in logps(8)]
    weights = double(1, 2, 0, 1, 3, 1, 1, 2)
    whole = baselines.beta_dpo_loss(*given, threshold=-2.0, alpha=0.05, weights=weights)
    margin = (whole.logratio_diff * weights).sum() / weights.sum()
    parts = [
        baselines.beta_dpo_loss(
            *(x[rows] for x in given), threshold=-2.0, alpha=0.05, batch_margin=margin, weights=weights[rows]
        )
        for rows in (slice(0, 3), slice(3, 8))
    ]
    joined = torch.cat([part.per_example for part in parts])
    torch.testing.assert_close(joined, whole.per_example, rtol=1e-13, atol=0)


def test_beta_has_a_lower_bound():
    out = baselines.beta_dpo_loss(*delta_logps([-500.0]), threshold=0.0, min_beta=0.01)
    assert out.metrics["strength/mean"].item() == pytest.approx(0.01, rel=1e-14)


# --- adaptive preference scaling -------------------------------------------------------------------

RHO = 0.75 * LOG3 - math.log(2)  # KL of a 3/4 coin from a fair one, so that s = log 3


def test_adaptive_scaling_by_hand():
    # tau = |u| / log 3; loss -u / 4 for the right order and 3 / 4 * -u for the wrong one
    out = baselines.adaptive_dpo_loss(*(given := delta_logps([20.0, -20.0])), beta=0.1, rho=RHO)
    (gradient,) = torch.autograd.grad(out.per_example.sum(), given[0])
    torch.testing.assert_close(out.per_example, double(-0.5, 1.5), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, double(-0.025, -0.075), rtol=1e-12, atol=0)
    torch.testing.assert_close(out.pair_weight, double(2 / LOG3, 2 / LOG3), rtol=1e-12, atol=0)
    assert out.metrics["strength/mean"].item() == pytest.approx(0.1 / (2 / LOG3), rel=1e-12)


@pytest.mark.parametrize("rho", [1e-3, 0.1, 0.5, math.log(2), 2.0], ids=["1e-3", "0.1", "0.5", "log 2", "2"])
@pytest.mark.parametrize("delta", [-3000.0, -20.0, -0.5, 0.0, 0.5, 20.0, 3000.0])
def test_scale_minimises_the_inner_objective(rho, delta):
    u = 0.1 * delta

    def objective(tau: float) -> float:
        return tau * (math.log1p(math.exp(-abs(u) / tau)) + max(-u / tau, 0.0) + rho - math.log(2))

    best = minimize_scalar(objective, bounds=(0.1, 5.0), method="bounded", options={"xatol": 1e-11})
    out = baselines.adaptive_dpo_loss(*delta_logps([delta]), beta=0.1, rho=rho)
    tau = 0.1 / out.metrics["strength/mean"].item()
    # An objective of hundreds is summed from terms that rounding leaves uncertain by 1e-13 of it.
    assert out.per_example.item() == pytest.approx(objective(tau), rel=1e-12, abs=1e-14)
    assert out.per_example.item() <= best.fun + 1e-12 * max(1.0, abs(best.fun))
    # The search stops within 2e-8 * tau of a bound, where the slope is at most rho < 3: 5 * 2e-8 * 3 < 1e-6.
    assert out.per_example.item() >= best.fun - 1e-6


@pytest.mark.parametrize("u", [-3.0, 0.7, 40.0])
def test_adaptive_loss_is_the_worst_mean_over_a_kl_ball(u):
    rho = 0.1
    out = baselines.adaptive_dpo_loss(*delta_logps([10 * u]), rho=rho, min_scale=1e-6, max_scale=1e6)
    p = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    divergence = math.log(2) + torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)
    worst = (-u * p)[divergence <= rho].max().item()
    assert out.per_example.item() == pytest.approx(worst, abs=abs(u) * 1e-5)  # the grid is 5e-6 wide


def test_without_room_for_the_scale_it_is_dpo():
    given = logps(16)
    dpo = baselines.dpo_loss(*given).per_example
    out = baselines.adaptive_dpo_loss(*given, rho=0.1, min_scale=1.0, max_scale=1.0)
    torch.testing.assert_close(out.per_example, dpo + 0.1 - math.log(2), rtol=1e-13, atol=1e-15)
    exact = baselines.adaptive_dpo_loss(*given, rho=math.log(2), min_scale=1.0)
    torch.testing.assert_close(exact.per_example, dpo, rtol=1e-13, atol=0)


# --- Mallows-DPO -----------------------------------------------------------------------------------


def test_constant_dispersion_is_dpo_at_another_beta():
    given = logps(16)
    dispersion = torch.full((16,), math.exp(-3.0), dtype=torch.float64)
    out = baselines.mallows_dpo_loss(*given, dispersion=dispersion, beta=0.1, scale=2.0)
    torch.testing.assert_close(out.per_example, baselines.dpo_loss(*given, beta=0.6).per_example, rtol=1e-12, atol=0)


def test_mallows_dpo_by_hand():
    # the more dispersed a prompt's choices, the weaker: strengths 0.2 and 0.1
    out = baselines.mallows_dpo_loss(
        *(given := delta_logps([5 * LOG3, 5 * LOG3])), dispersion=double(math.exp(-2), math.exp(-1)), beta=0.1
    )
    (gradient,) = torch.autograd.grad(out.per_example.sum(), given[0])
    even = 1 / (1 + math.sqrt(3))
    torch.testing.assert_close(out.per_example, double(math.log(4 / 3), -math.log(1 - even)), rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient, double(-0.2 / 4, -0.1 * even), rtol=1e-13, atol=0)
    assert out.metrics["strength/mean"].item() == pytest.approx(0.15, rel=1e-14)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.5])
def test_dispersion_lies_between_agreement_and_chance(bad):
    with pytest.raises(InvalidInputError, match="dispersion: got"):
        run("mallows", logps(2), dispersion=double(0.5, bad))


# --- what they share -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_same_metrics_as_mixdpo(name):
    out = run(name, logps(9))
    mixed = mixdpo_loss(*logps(9), mixing=dist.Gamma(double(2.0), 16.7))
    assert out.metrics.keys() == mixed.metrics.keys()
    assert out.values.keys() == mixed.values.keys()
    assert {x.requires_grad for x in (*out.metrics.values(), *out.values.values(), out.pair_weight)} == {False}
    per_example, logratio_diff, metrics = out
    assert {x.shape for x in (per_example, logratio_diff, out.pair_weight, *out.values.values())} == {(9,)}
    assert metrics["loss"].item() == pytest.approx(per_example.mean().item(), rel=1e-12)
    assert metrics["strength/sd"].item() == 0


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    given = logps(5)
    # kinks of the scale aside, where no delta lies
    assert torch.autograd.gradcheck(lambda *policy: run(name, [*policy, *given[2:]]).per_example, given[:2])
    assert torch.autograd.gradgradcheck(lambda *policy: run(name, [*policy, *given[2:]]).per_example, given[:2])


@pytest.mark.parametrize("name", NAMES)
def test_pull_is_the_slope_in_delta_at_a_constant_sum(name):
    given = [x.detach() for x in logps(6)]
    lengths = settings(name, 6)
    per = [lengths.get(f"{side}_lengths", torch.ones(6)) for side in ("chosen", "rejected")]
    shift = 1e-4
    up, down = (
        run(name, [given[0] + s * per[0] / 2, given[1] - s * per[1] / 2, *given[2:]]).per_example
        for s in (shift, -shift)
    )
    # central difference: third derivatives of these losses are at most of order 1, so that it is exact to 1e-8
    torch.testing.assert_close(run(name, given).values["pull"], (down - up) / (2 * shift), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["dpo", "beta", "mallows"])
def test_pair_weight_of_bradley_terry_is_one(name):
    out = run(name, delta_logps([-500.0, -50.0, 0.0, 0.3, 200.0, 500.0]))
    torch.testing.assert_close(out.pair_weight, torch.ones(6, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_weights_count_a_pair_as_often_as_they_say(name):
    given = [x.detach() for x in logps(4)]
    weights = double(1, 3, 2, 0)
    rows = torch.tensor([0, 1, 1, 1, 2, 2])
    weighted, repeated = run(name, given, weights=weights), run(name, given, rows)
    assert weighted.per_example.sum().item() == pytest.approx(repeated.per_example.sum().item(), rel=1e-12)
    torch.testing.assert_close(weighted.metrics, repeated.metrics, rtol=1e-12, atol=1e-12)


def test_weights_count_in_the_batchs_own_beta():
    given = [x.detach() for x in logps(4)]
    weights, rows = double(1, 3, 2, 0), torch.tensor([0, 1, 1, 1, 2, 2])
    free = {"alpha": 0.02, "threshold": 1.0}
    weighted = baselines.beta_dpo_loss(*given, **free, weights=weights)
    repeated = baselines.beta_dpo_loss(*(x[rows] for x in given), **free)
    torch.testing.assert_close(weighted.metrics, repeated.metrics, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_pairs_does_not_matter(name):
    given = [x.detach() for x in logps(8)]
    order = torch.tensor([3, 0, 7, 1, 2, 6, 5, 4])
    assert torch.equal(run(name, given, order).per_example, run(name, given).per_example[order])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_far_out_gradients_are_finite(name, dtype):
    chosen = torch.tensor([-1e4, -1e3, 0.0, 1e3, 1e4], dtype=dtype, requires_grad=True)
    given = [chosen, *(-chosen / 2).detach()[None].expand(3, 5)]
    given[1] = given[1].clone().requires_grad_()
    out = run(name, given)
    gradients = torch.autograd.grad(out.per_example.sum(), given[:2])
    assert out.per_example.dtype == dtype
    assert bool(torch.stack([out.per_example, *gradients]).isfinite().all())
    assert all(bool(x.isfinite().all()) for x in out.values.values())


@pytest.mark.parametrize("name", NAMES)
def test_no_pairs_no_losses(name):
    out = run(name, [torch.zeros(0) for _ in range(4)])
    assert out.per_example.shape == out.pair_weight.shape == (0,)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_widened_before_differences_are_taken(name, half):
    given = [x.detach().to(half) for x in logps(6)]
    out, wide = run(name, given), run(name, [x.float() for x in given])
    assert out.per_example.dtype == torch.float32
    assert torch.equal(out.per_example, wide.per_example)


@pytest.mark.parametrize("name", NAMES)
def test_without_gradient_the_same_numbers(name):
    out = run(name, logps(6))
    with torch.no_grad():
        silent = run(name, logps(6))
    assert not silent.per_example.requires_grad
    assert torch.equal(silent.per_example, out.per_example.detach())
    assert torch.equal(silent.pair_weight, out.pair_weight)


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_numbers_are_checked_as_mixdpo_does(name):
    given = [x.detach() for x in logps(5)]
    nan = given[1].clone()
    nan[3] = math.nan
    with pytest.raises(InvalidInputError, match=r"policy_rejected_logps: got nan in rows \[3\]"):
        run(name, [given[0], nan, *given[2:]])
    with pytest.raises(InvalidInputError, match=r"policy_rejected_logps: got shape \(4,\)"):
        run(name, [given[0], given[1][:4], *given[2:]])
    with pytest.raises(InvalidInputError, match=r"^policy_rejected_logps: got None"):
        run(name, [given[0], None, *given[2:]])
    with pytest.raises(InvalidInputError, match="0 or more"):
        run(name, given, weights=double(1, 1, -1, 1, 1))


@pytest.mark.parametrize("name", PLAIN)
def test_a_missing_reference_is_refused(name):
    given = logps(5)
    with pytest.raises(InvalidInputError, match="reference_chosen_logps: got None"):
        run(name, [*given[:2], None, given[3]])


@pytest.mark.parametrize("name", NAMES)
def test_beta_is_positive(name):
    with pytest.raises(InvalidInputError, match="beta: got 0"):
        run(name, logps(2), beta=0.0)


OUT_OF_RANGE: dict[str, tuple[str, dict[str, Any], str]] = {
    "conservative, smoothing of a half": ("conservative", {"label_smoothing": 0.5}, "label_smoothing: got 0.5"),
    "robust, negative smoothing": ("robust", {"label_smoothing": -0.1}, "label_smoothing: got -0.1"),
    "ipo, unknown choice": ("ipo_sequence", {"per": "batch"}, "per: got 'batch'"),
    "ipo, unused lengths": ("ipo_sequence", {"chosen_lengths": torch.ones(3)}, "chosen_lengths: got 'a value'"),
    "ipo, missing lengths": ("ipo_token", {"rejected_lengths": None}, "rejected_lengths: got None"),
    "ipo, empty response": ("ipo_token", {"chosen_lengths": torch.tensor([3, 0, 4])}, r"chosen_lengths: got \[0\]"),
    "simpo, too few lengths": ("simpo", {"rejected_lengths": torch.ones(2)}, r"rejected_lengths: got shape \(2,\)"),
    "simpo, missing lengths": ("simpo", {"chosen_lengths": None}, "chosen_lengths: got None"),
    "simpo, negative margin": ("simpo", {"gamma": -1.0}, "gamma: got -1.0"),
    "kto, negative point": ("kto", {"reference_point": -1.0}, "reference_point: got -1.0"),
    "kto, point not a number": ("kto", {"reference_point": math.nan}, "reference_point: got nan"),
    "kto, several points": ("kto", {"reference_point": torch.ones(3)}, "reference_point: got tensor"),
    "kto, no weight": ("kto", {"undesirable_weight": 0.0}, "undesirable_weight: got 0.0"),
    "beta, negative alpha": ("beta", {"alpha": -0.1}, "alpha: got -0.1"),
    "beta, infinite threshold": ("beta", {"threshold": math.inf}, "threshold: got inf"),
    "beta, no mean": ("beta", {"batch_margin": None, "weights": torch.zeros(3)}, "sum of weights: got 0"),
    "beta, no lower bound": ("beta", {"min_beta": 0.0}, "min_beta: got 0.0"),
    "adaptive, no ball": ("adaptive", {"rho": 0.0}, "rho: got 0.0"),
    "adaptive, crossed bounds": ("adaptive", {"min_scale": 6.0}, "min_scale: got 6.0"),
    "mallows, no scale": ("mallows", {"scale": 0.0}, "scale: got 0.0"),
    "mallows, one dispersion": ("mallows", {"dispersion": 0.5}, "dispersion: got an object of type float"),
}


@pytest.mark.parametrize("case", OUT_OF_RANGE)
def test_settings_out_of_range_are_refused(case):
    name, bad, message = OUT_OF_RANGE[case]
    with pytest.raises(InvalidInputError, match=message):
        run(name, logps(3), **bad)
