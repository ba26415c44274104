"""The strength beside the policy: frozen or learned, and how far its learning rate lets it go."""

from __future__ import annotations

import pytest
import torch

from mixlogit_align.alignment.config import (
    BestRule,
    FrozenUpdate,
    LearnedUpdate,
    LogNormalStrength,
    OptimConfig,
    PointStrength,
    PreferenceConfig,
)
from mixlogit_align.alignment.data import StrengthTruth
from mixlogit_align.alignment.strength import (
    build_preference_loss,
    constant_gradient_drift,
    strength_metrics,
    strength_record,
)
from mixlogit_align.alignment.trainer import ParameterGroup, build_optimizer


@pytest.mark.parametrize(("warmup_steps", "factor"), [(0, 983), (150, 822)])
def test_drift_of_a_run_of_the_papers_length(warmup_steps, factor):
    drift = constant_gradient_drift(OptimConfig(warmup_steps=warmup_steps), lr=1e-4, num_steps=859)
    assert drift == pytest.approx(factor * 1e-4, abs=0.6e-4)


@pytest.mark.parametrize("name", ["rmsprop", "adamw"])
@pytest.mark.parametrize("warmup_steps", [0, 7])
def test_drift_is_what_the_optimiser_does_under_a_constant_gradient(name, warmup_steps):
    config = OptimConfig(name=name, warmup_steps=warmup_steps)
    parameter = torch.nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
    group = ParameterGroup(name="strength", parameters=[parameter], lr=1e-2, max_grad_norm=1.0)
    optimizer = build_optimizer([group], config)
    for step in range(30):
        optimizer.param_groups[0]["lr"] = 1e-2 * min((step + 1) / max(warmup_steps, 1), 1.0)
        parameter.grad = torch.full_like(parameter, -3.0)
        optimizer.step()
    # the optimisers add 1e-8 to the gradient's size of 3
    assert parameter.item() == pytest.approx(constant_gradient_drift(config, 1e-2, 30), rel=1e-7)


@pytest.mark.parametrize(("update", "learned"), [(FrozenUpdate(), False), (LearnedUpdate(lr=1e-3), True)])
def test_gradients_reach_a_learned_strength_only(update, learned):
    loss = build_preference_loss(PreferenceConfig(strength=LogNormalStrength(update=update), integration=BestRule()))
    assert {p.requires_grad for p in loss.mixing.parameters()} == {learned}


def test_the_record_has_start_end_reach_and_truth():
    strength = LogNormalStrength(update=LearnedUpdate(lr=1e-2))
    config = PreferenceConfig(strength=strength, optim=OptimConfig(warmup_steps=0))
    mixing = build_preference_loss(config).mixing
    initial = mixing.summary()
    with torch.no_grad():
        mixing.loc.add_(0.5)
    truth = StrengthTruth(family="gamma", mean=0.2, cv=0.5, utility_diff={})
    record = strength_record(mixing, initial, config, num_steps=10, truth=truth)
    assert record["parameters"]["loc"] == pytest.approx(-1.8, abs=1e-6)
    assert record["initial"]["parameters"]["loc"] == pytest.approx(-2.3, abs=1e-6)
    assert record["cv"] == pytest.approx(record["initial"]["cv"], rel=1e-6)
    assert record["constant_gradient_drift"] == constant_gradient_drift(config.optim, 1e-2, 10) > 0.1
    assert record["truth"]["parameters"] == pytest.approx({"concentration": 4.0, "rate": 20.0}, rel=1e-6)
    assert record["truth"]["cv"] == 0.5


def test_without_truth_the_record_claims_none():
    config = PreferenceConfig(strength=PointStrength())
    mixing = build_preference_loss(config).mixing
    record = strength_record(mixing, mixing.summary(), config, num_steps=10, truth=None)
    assert "truth" not in record
    assert record["constant_gradient_drift"] == 0.0
    assert strength_metrics(mixing) == pytest.approx({"strength/mean": 0.1, "strength/sd": 0.0, "strength/v": 0.1})
