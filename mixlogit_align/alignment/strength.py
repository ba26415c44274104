"""The learnable strength beside the policy: its place in training, its record, what its learning rate allows."""

from __future__ import annotations

import math
from typing import Any

import torch

from mixlogit_align.alignment.config import LearnedUpdate, OptimConfig, PreferenceConfig
from mixlogit_align.alignment.data.schema import StrengthTruth
from mixlogit_align.alignment.losses import MixDPOLoss
from mixlogit_align.distributions import LearnableMixing

RMSPROP_SMOOTHING = 0.99


def build_preference_loss(config: PreferenceConfig) -> MixDPOLoss:
    """The loss with the strength that ``config`` describes; gradients reach it where it is learned by them."""
    learned = isinstance(config.strength.update, LearnedUpdate)
    strength = config.strength.build().requires_grad_(learned)
    return MixDPOLoss(strength, config.integration.build())


def constant_gradient_drift(optim: OptimConfig, lr: float, num_steps: int) -> float:
    """How far an unconstrained strength parameter moves in ``num_steps`` under a constant gradient.

    Both optimisers normalise the gradient away, so the learning rate bounds what can be learned:
    RMSprop moves ``sum_t lr_t / sqrt(1 - 0.99**t)``, Adam ``sum_t lr_t``, with ``lr_t`` in the warm-up.
    A growing gradient moves RMSprop further, at most ``10 * lr`` a step.

    Parameters
    ----------
    optim : OptimConfig
    lr : float
        The strength's own learning rate.
    num_steps : int

    Returns
    -------
    float
        In units of the unconstrained parameter, e.g. the LogNormal's loc or the log of its scale.
    """
    steps = range(1, num_steps + 1)
    rates = [lr * min(step / max(optim.warmup_steps, 1), 1.0) for step in steps]
    if optim.name == "adamw":
        return math.fsum(rates)
    return math.fsum(rate / math.sqrt(1 - RMSPROP_SMOOTHING**step) for rate, step in zip(rates, steps, strict=True))


def strength_record(
    strength: LearnableMixing,
    initial: dict[str, Any],
    config: PreferenceConfig,
    num_steps: int,
    truth: StrengthTruth | None,
) -> dict[str, Any]:
    """What ``strength.json`` holds: the learned summary, where it started, and what it could have reached.

    Parameters
    ----------
    strength : LearnableMixing
    initial : dict
        Its summary before the first step.
    config : PreferenceConfig
    num_steps : int
        Steps the stage takes.
    truth : StrengthTruth or None
        The simulated annotators' own distribution, where there is one.
    """
    learned = strength.summary()
    update = config.strength.update
    lr = update.lr if isinstance(update, LearnedUpdate) else 0.0
    record = {
        **learned,
        "cv": learned["sd"] / learned["mean"],
        "initial": {**initial, "cv": initial["sd"] / initial["mean"]},
        "update": update.kind,
        "learning_rate": lr,
        "planned_steps": num_steps,
        "constant_gradient_drift": constant_gradient_drift(config.optim, lr, num_steps),
        "caution": "A loss that sees one comparison at a time identifies the spread of strength only weakly, and "
        "its learning rate bounds how far it can move; the spread is no measurement of heterogeneity.",
    }
    if truth is not None:
        record["truth"] = truth.summary()
    return record


@torch.no_grad()
def strength_metrics(strength: LearnableMixing) -> dict[str, float]:
    """``strength/mean``, ``strength/sd`` and ``strength/<parameter>`` as numbers."""
    summary = strength.summary()
    named = {"mean": summary["mean"], "sd": summary["sd"], **summary["parameters"]}
    return {f"strength/{name}": float(value) for name, value in named.items()}
