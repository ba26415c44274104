"""The preference loss: it is the mixed logit's likelihood, it is DPO at a point, and it says how it weighs pairs."""

from __future__ import annotations

import doctest
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.functional import logsigmoid

from mixlogit_align import ClosedForm, LearnableMixing, MixedLogit, MonteCarlo, Quadrature
from mixlogit_align.alignment import MixDPOLoss, losses, mixdpo_loss
from mixlogit_align.errors import InvalidInputError

FAMILIES = {
    "point": dist.Delta(torch.tensor(0.1, dtype=torch.float64)),
    "lognormal": dist.LogNormal(torch.tensor(-2.3, dtype=torch.float64), 0.6),
    "gamma": dist.Gamma(torch.tensor(2.0, dtype=torch.float64), 16.7),
}


def logps(num_pairs: int = 9, dtype: torch.dtype = torch.float64, spread: float = 20.0) -> list[torch.Tensor]:
    """Log-probabilities as a loss takes them: policy chosen, policy rejected, reference chosen, reference rejected."""
    generator = torch.Generator().manual_seed(3)
    values = -100 + spread * torch.randn(4, num_pairs, generator=generator, dtype=torch.float64)
    return [v.to(dtype).requires_grad_(i < 2) for i, v in enumerate(values)]


def delta_logps(delta: list[float]) -> list[torch.Tensor]:
    """Log-probabilities whose log-ratio differences are ``delta``."""
    chosen = torch.tensor(delta, dtype=torch.float64, requires_grad=True)
    return [chosen, *torch.zeros(3, len(delta), dtype=torch.float64)]


@pytest.mark.parametrize("mixing", ["distribution", "learnable"])
def test_point_mixing_is_dpo_in_value_and_gradient(mixing):
    given = logps(64, torch.float32 if mixing == "learnable" else torch.float64, spread=60.0)
    # a learnable strength is float32: log and exp of 0.1 round there
    tolerance = {"rtol": 1e-5, "atol": 1e-30} if mixing == "learnable" else {"rtol": 1e-12, "atol": 0.0}
    strength = LearnableMixing.point(0.1) if mixing == "learnable" else FAMILIES["point"]
    loss = mixdpo_loss(*given, mixing=strength).per_example
    gradient = torch.autograd.grad(loss.sum(), given[:2])

    policy_chosen, policy_rejected, reference_chosen, reference_rejected = given
    delta = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
    dpo = -logsigmoid(0.1 * delta)
    by_hand = 0.1 * torch.sigmoid(-0.1 * delta.double())
    torch.testing.assert_close(loss, dpo, rtol=max(tolerance["rtol"], 2e-6), atol=1e-7)
    torch.testing.assert_close(gradient[0].double(), -by_hand.detach(), **tolerance)
    torch.testing.assert_close(gradient[1].double(), by_hand.detach(), **tolerance)


@pytest.mark.parametrize(
    ("name", "integration"),
    [("point", None), ("lognormal", MonteCarlo(4)), ("lognormal", Quadrature()), ("gamma", ClosedForm())],
)
def test_the_loss_is_mixed_logit_log_prob(monkeypatch, name, integration):
    calls = []
    original = MixedLogit.log_prob

    def watched(self, value):
        result = original(self, value)
        calls.append((self.utility_diff, value, result))
        return result

    monkeypatch.setattr(MixedLogit, "log_prob", watched)
    out = mixdpo_loss(*logps(), mixing=FAMILIES[name], integration=integration)
    assert len(calls) == 1
    utility_diff, value, log_prob = calls[0]
    assert torch.equal(utility_diff, out.logratio_diff)
    assert bool((value == 1).all())
    assert torch.equal(out.per_example, -log_prob)


def test_a_learnable_mixing_is_called_once():
    class Counting(LearnableMixing):
        calls = 0

        def forward(self):
            self.calls += 1
            return super().forward()

    strength = Counting("gamma", concentration=2.0, rate=16.7)
    mixdpo_loss(*logps(dtype=torch.float32), mixing=strength)
    assert strength.calls == 1


def test_logratio_diff_is_chosen_less_rejected_against_the_reference():
    given = [torch.tensor([x], dtype=torch.float64) for x in (-10.0, -12.0, -11.0, -9.0)]
    out = mixdpo_loss(*given, mixing=FAMILIES["point"])
    assert out.logratio_diff.item() == pytest.approx(4.0, abs=1e-12)
    assert out.metrics["margin/sum"].item() == pytest.approx(2.0, abs=1e-12)
    assert out.metrics["rewards/chosen"].item() == pytest.approx(0.1, abs=1e-12)
    assert out.metrics["rewards/rejected"].item() == pytest.approx(-0.3, abs=1e-12)
    assert out.metrics["rewards/margins"].item() == pytest.approx(0.4, abs=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_count_a_pair_as_often_as_they_say(name):
    given = [v.detach() for v in logps(4)]
    weights = torch.tensor([1.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    repeated = [v.repeat_interleave(weights.long()) for v in given]
    weighted = mixdpo_loss(*given, mixing=FAMILIES[name], weights=weights)
    plain = mixdpo_loss(*repeated, mixing=FAMILIES[name])
    assert weighted.per_example.sum().item() == pytest.approx(plain.per_example.sum().item(), rel=1e-13)
    assert weighted.metrics.keys() == plain.metrics.keys()
    for metric, value in plain.metrics.items():
        torch.testing.assert_close(weighted.metrics[metric], value, rtol=1e-12, atol=1e-12, msg=metric)


def test_metrics_are_plain_numbers_without_a_graph():
    out = mixdpo_loss(*logps(), mixing=LearnableMixing.gamma())
    assert {value.requires_grad for value in (*out.metrics.values(), out.pair_weight)} == {False}
    assert {value.shape for value in out.metrics.values()} == {torch.Size()}
    assert out.metrics["rewards/accuracies"].item() == (out.logratio_diff > 0).double().mean().item()
    assert out.metrics["log_ratio/sd"].item() == pytest.approx(out.logratio_diff.std(correction=0).item())
    assert out.metrics["strength/mean"].item() == pytest.approx(2 / 16.7, rel=1e-6)
    assert out.metrics["strength/sd"].item() == pytest.approx(math.sqrt(2) / 16.7, rel=1e-6)
    assert out.metrics["loss"].item() == pytest.approx(out.per_example.mean().item(), rel=1e-12)


def test_a_tie_is_half_right():
    out = mixdpo_loss(*delta_logps([0.0, 2.0]), mixing=FAMILIES["gamma"])
    assert out.metrics["rewards/accuracies"].item() == 0.75


# --- pair_weight -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_pair_weight_is_one_where_training_starts(name):
    out = mixdpo_loss(*delta_logps([0.0]), mixing=FAMILIES[name])
    assert out.pair_weight.item() == pytest.approx(1.0, rel=1e-9)


def test_pair_weight_of_a_point_is_one_everywhere():
    out = mixdpo_loss(*delta_logps([-1e4, -50.0, 0.3, 200.0, 6000.0]), mixing=FAMILIES["point"])
    torch.testing.assert_close(out.pair_weight, torch.ones(5, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("delta", "gamma_pull", "dpo_pull"),
    [(-10.0, 0.062, 0.092), (-50.0, 0.029, 0.120), (-200.0, 0.009, 0.120), (50.0, 0.0015, 0.0003)],
)
def test_pulls_of_gamma_and_dpo_at_the_same_mean(delta, gamma_pull, dpo_pull):
    # The reference figures are rounded to their last digit, some of them up from less than half of it.
    out = mixdpo_loss(*(given := delta_logps([delta])), mixing=FAMILIES["gamma"])
    (pull,) = torch.autograd.grad(-out.per_example.sum(), given[0])
    digit = 0.0001 if delta > 0 else 0.001
    assert pull.item() == pytest.approx(gamma_pull, abs=digit)
    assert pull.item() / out.pair_weight.item() == pytest.approx(dpo_pull, abs=digit)


def test_mean_pair_weight_is_the_ratio_of_mean_pulls():
    out = mixdpo_loss(*(given := delta_logps([-30.0, 5.0, 80.0])), mixing=FAMILIES["lognormal"])
    (pull,) = torch.autograd.grad(-out.per_example.sum(), given[0])
    dpo_pull = pull / out.pair_weight
    assert out.metrics["pair_weight"].item() == pytest.approx((pull.sum() / dpo_pull.sum()).item(), rel=1e-12)


def test_without_gradient_the_same_numbers():
    given = logps()
    out = mixdpo_loss(*given, mixing=FAMILIES["lognormal"])
    with torch.no_grad():
        silent = mixdpo_loss(*given, mixing=FAMILIES["lognormal"])
    assert not silent.per_example.requires_grad
    assert torch.equal(silent.per_example, out.per_example.detach())
    assert torch.equal(silent.pair_weight, out.pair_weight)


# --- draws -----------------------------------------------------------------------------------------


def test_draws_follow_seed_step_and_pair_not_the_order_of_the_batch():
    given = [v.detach() for v in logps(8)]
    ids = torch.tensor([5, 17, 3, 99, 4, 8, 1, 1000])
    order = torch.tensor([3, 0, 7, 1, 2, 6, 5, 4])

    def loss(rows: torch.Tensor, seed: int = 0, step: int = 7) -> torch.Tensor:
        return mixdpo_loss(
            *(v[rows] for v in given),
            mixing=FAMILIES["lognormal"],
            integration=MonteCarlo(16, seed=seed),
            step=step,
            pair_ids=ids[rows],
        ).per_example

    every = torch.arange(8)
    base = loss(every)
    assert torch.equal(loss(order), base[order])
    assert torch.equal(torch.cat([loss(every[:3]), loss(every[3:])]), base)
    assert bool((loss(every, step=8) != base).all())
    assert bool((loss(every, seed=1) != base).all())


def test_deterministic_rules_ignore_step_and_pair():
    given = logps()
    first = mixdpo_loss(*given, mixing=FAMILIES["gamma"], integration=ClosedForm(), step=1, pair_ids=torch.arange(9))
    second = mixdpo_loss(*given, mixing=FAMILIES["gamma"])
    assert torch.equal(first.per_example, second.per_example)


# --- dtype, learning -------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [LearnableMixing.lognormal(), LearnableMixing.gamma(), LearnableMixing.point()])
def test_float32_in_and_out_with_gradients_to_policy_and_strength(strength):
    given = logps(dtype=torch.float32)
    module = MixDPOLoss(strength)
    out = module(*given)
    assert out.per_example.dtype == torch.float32
    out.per_example.mean().backward()
    gradients = [p.grad for p in (*given[:2], *module.parameters())]
    assert all(g is not None and bool(g.isfinite().all()) and bool((g != 0).any()) for g in gradients)


def test_the_modules_default_is_the_papers_start():
    module = MixDPOLoss()
    assert isinstance(module.mixing, LearnableMixing)
    assert module.mixing.summary()["parameters"] == pytest.approx({"loc": -2.3, "scale": 0.6}, rel=1e-6)
    assert "integration=None" in repr(module)


def test_the_documented_training_loop_runs():
    examples = doctest.DocTestFinder().find(losses.MixDPOLoss, "MixDPOLoss", globs={})
    results = doctest.DocTestRunner(verbose=False).run(examples[0])
    assert results.failed == 0
    assert results.attempted >= 8


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(4))
def test_shapes_must_agree(place):
    given = logps(5)
    given[place] = given[place][:4]
    with pytest.raises(InvalidInputError, match="shape"):
        mixdpo_loss(*given, mixing=FAMILIES["gamma"])


def test_log_probabilities_of_tokens_are_refused():
    with pytest.raises(
        InvalidInputError, match=r"got shape \(5, 3\); expected shape \(B,\), one number a pair\. Try summing"
    ):
        mixdpo_loss(*torch.zeros(4, 5, 3), mixing=FAMILIES["gamma"])


@pytest.mark.parametrize("place", range(4))
def test_lists_are_refused(place):
    given = logps(5)
    given[place] = given[place].tolist()
    with pytest.raises(InvalidInputError, match="got an object of type list; expected a tensor"):
        mixdpo_loss(*given, mixing=FAMILIES["gamma"])


@pytest.mark.parametrize("mixing", [0.1, "gamma"])
def test_what_is_no_distribution_is_refused(mixing):
    with pytest.raises(InvalidInputError, match="mixing: got an object of type"):
        mixdpo_loss(*logps(2), mixing=mixing)


@pytest.mark.parametrize("name", ["weights", "pair_ids"])
def test_weights_and_ids_are_one_a_pair(name):
    with pytest.raises(InvalidInputError, match=name):
        mixdpo_loss(*logps(5), mixing=FAMILIES["gamma"], **{name: torch.ones(4)})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", range(4))
def test_what_is_not_finite_is_named_by_its_pair(place, bad):
    given = [v.detach().clone() for v in logps(5)]
    given[place][3] = bad
    with pytest.raises(InvalidInputError, match=r"rows \[3\], pair_ids \[203\]"):
        mixdpo_loss(*given, mixing=FAMILIES["gamma"], pair_ids=torch.arange(200, 205))


def test_negative_weights_are_refused():
    with pytest.raises(InvalidInputError, match="0 or more"):
        mixdpo_loss(*logps(2), mixing=FAMILIES["gamma"], weights=torch.tensor([1.0, -1.0]))


def test_a_negative_strength_has_no_pair_weight_to_compare_with():
    with pytest.raises(InvalidInputError, match="mean strength"):
        mixdpo_loss(*logps(2), mixing=dist.Normal(-1.0, 1.0))


def test_the_loss_is_a_module_without_buffers():
    assert isinstance(MixDPOLoss(), nn.Module)
    assert list(MixDPOLoss().buffers()) == []


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_before_differences_are_taken(half):
    given = [v.detach().to(half) for v in logps(6)]
    out = mixdpo_loss(*given, mixing=LearnableMixing.gamma())
    wide = mixdpo_loss(*(v.float() for v in given), mixing=LearnableMixing.gamma())
    assert out.per_example.dtype == torch.float32
    assert torch.equal(out.per_example, wide.per_example)
