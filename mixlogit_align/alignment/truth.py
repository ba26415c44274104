"""What a policy and its strength learned from simulated annotators, held against the truth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixlogit_align.alignment.data.schema import StrengthTruth
from mixlogit_align.alignment.objectives import HeldOut
from mixlogit_align.distributions import MixedLogit


@torch.no_grad()
def compare_with_truth(
    held_out: HeldOut, truth: StrengthTruth, *, mixing: Any = None, integration: Any = None
) -> dict[str, float]:
    """Compare held-out predictions with the process that made the choices.

    Pairs are oriented as they were shown (first less second response), not by who won, so that luck in
    the choices cannot look like agreement.

    Parameters
    ----------
    held_out : HeldOut
    truth : StrengthTruth
    mixing : Pyro distribution or None
        Strength, common or of each pair; None for a loss without choice probabilities of this form: what they would be
        needed for is then left out.
    integration : rule or None
        The run's integration rule.

    Returns
    -------
    dict
        ``utility/correlation`` and ``utility/slope`` (through the origin) of mean strength times
        log-ratio difference on mean strength times true utility difference: only these products are
        identified, and a slope of 1 is right. ``order_agreement``: share of pairs that both rank alike.
        ``probability/rmse`` of the choice probabilities, ``kl``: mean Kullback-Leibler divergence in nats from
        the true to the learned choice, that is the expected loss beyond the attainable one.
        ``accuracy`` and ``loss`` on the held-out choices; ``attainable/accuracy`` and ``attainable/loss``,
        expected under the truth. ``strength/mean`` and ``strength/sd`` are the learned strength in the truth's
        unit: a policy is free to double its log-ratios and halve the strength, so the learned distribution is
        rescaled by the slope through the origin of log-ratio difference on true utility difference.
    """
    rows = [row.comparison for row in held_out.rows]
    sign = torch.tensor([1.0 if row.choice == 0 else -1.0 for row in rows], dtype=torch.float64)
    logratio_diff = sign * held_out.loss.logratio_diff.cpu()
    utility_diff = sign * torch.tensor([truth.utility_diff[row.pair_id] for row in rows], dtype=torch.float64)
    ids = torch.tensor([row.pair_id for row in rows])
    true = _probability(utility_diff, truth.mixing(), None)
    mean = held_out.loss.values["strength_mean"].double().cpu()
    x, y = truth.mean * utility_diff, mean * logratio_diff
    attainable_loss = -(torch.special.xlogy(true, true) + torch.special.xlogy(1 - true, 1 - true)).mean()
    distinct = utility_diff != 0
    nats_per_utility = (utility_diff * logratio_diff).sum() / utility_diff.square().sum()
    variance = held_out.loss.values["strength_variance"].double().cpu()
    values = {
        "strength/mean": mean.mean() * nats_per_utility,
        "strength/sd": variance.mean().sqrt() * nats_per_utility,
        "utility/correlation": torch.corrcoef(torch.stack([x, y]))[0, 1],
        "utility/slope": (x * y).sum() / (x * x).sum(),
        "order_agreement": (x.sign() == y.sign())[distinct].double().mean(),
        "accuracy": held_out.loss.metrics["rewards/accuracies"],
        "loss": held_out.loss.metrics["loss"],
        "attainable/accuracy": torch.maximum(true, 1 - true).mean(),
        "attainable/loss": attainable_loss,
    }
    if mixing is not None:
        rule = integration.at(step=0, rows=ids) if integration is not None else None
        learned = _probability(logratio_diff, mixing, rule)
        cross = -(true * learned.log() + (1 - true) * (-learned).log1p()).mean()
        values |= {"probability/rmse": (learned - true).square().mean().sqrt(), "kl": cross - attainable_loss}
    return {name: value.item() for name, value in values.items()}


def _probability(utility_diff: Tensor, mixing: Any, integration: Any) -> Tensor:
    log_prob = MixedLogit(utility_diff, mixing, integration).log_prob(torch.ones_like(utility_diff))
    return log_prob.exp().clamp(1e-300, 1 - 1e-16)
