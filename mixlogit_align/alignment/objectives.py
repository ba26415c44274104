"""What the two stages optimise: log-likelihood of chosen responses, then the preference loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixlogit_align.alignment.data.batches import Batch, Collator, TokenizedComparison
from mixlogit_align.alignment.logratios import SequenceLogProbs, candidate_logprobs
from mixlogit_align.alignment.losses import MixDPOLoss, PreferenceLoss
from mixlogit_align.alignment.strength import strength_metrics
from mixlogit_align.alignment.trainer import StageLoss, require_finite


class SFTObjective(nn.Module):
    """Negative log-likelihood of the chosen responses, per token (weighted as the comparisons are).

    Parameters
    ----------
    policy : SequenceLogProbs
    collator : Collator
    eval_batch_size : int
    """

    def __init__(self, policy: SequenceLogProbs, collator: Collator, *, eval_batch_size: int) -> None:
        super().__init__()
        self.policy = policy
        self.collator = collator
        self.eval_batch_size = eval_batch_size

    def forward(self, batch: Batch, *, step: int) -> StageLoss:
        """Loss of one batch; only the chosen responses go through the policy."""
        rows = torch.arange(len(batch), device=batch.choice.device)
        mask = batch.response_mask[rows, batch.choice]
        logps = self.policy(batch.input_ids[rows, batch.choice][:, None], mask[:, None])[:, 0]
        require_finite(logps, "log-probability of the chosen response", batch)
        count = (mask.sum(1) * batch.weights).sum()
        return StageLoss(total=-(logps * batch.weights).sum(), count=count, metrics={})

    @torch.no_grad()
    def evaluate(self, rows: Sequence[TokenizedComparison]) -> dict[str, float]:
        """``loss`` over all of ``rows``."""
        total = count = 0.0
        for start in range(0, len(rows), self.eval_batch_size):
            loss = self(self.collator(rows[start : start + self.eval_batch_size]), step=0)
            total, count = total + loss.total.item(), count + loss.count.item()
        return {"loss": total / count}

    def log_metrics(self) -> dict[str, float]:
        """Nothing beside the loss."""
        return {}


class HeldOut(NamedTuple):
    """Rows with the preference loss at them (float64, in the order of the rows)."""

    rows: Sequence[TokenizedComparison]
    loss: PreferenceLoss


class PreferenceObjective(nn.Module):
    """The preference loss of pairs: a policy, and the strength beside it.

    Parameters
    ----------
    policy : SequenceLogProbs
    preference_loss : MixDPOLoss
    collator : Collator
    eval_batch_size : int
    """

    def __init__(
        self, policy: SequenceLogProbs, preference_loss: MixDPOLoss, collator: Collator, *, eval_batch_size: int
    ) -> None:
        super().__init__()
        self.policy = policy
        self.preference_loss = preference_loss
        self.collator = collator
        self.eval_batch_size = eval_batch_size

    def forward(self, batch: Batch, *, step: int) -> StageLoss:
        """Loss of one batch, chosen and rejected responses in one forward pass."""
        logps = self.policy(batch.input_ids, batch.response_mask)
        require_finite(logps, "log-probabilities of the responses", batch)
        loss = self._loss(batch, logps, step)
        return StageLoss(total=loss.per_example.sum(), count=batch.weights.sum(), metrics=loss.metrics)

    def with_reference(self, rows: Sequence[TokenizedComparison]) -> list[TokenizedComparison]:
        """The rows with the log-probabilities that the policy gives them now, as the reference's."""
        logps = candidate_logprobs(self.policy, rows, self.collator, batch_size=self.eval_batch_size).tolist()
        return [row.with_reference(values[: len(row.input_ids)]) for row, values in zip(rows, logps, strict=True)]

    @torch.no_grad()
    def held_out(self, rows: Sequence[TokenizedComparison]) -> HeldOut:
        """The loss of every row, computed in one piece; rules with draws use those of step 0."""
        logps = candidate_logprobs(self.policy, rows, self.collator, batch_size=self.eval_batch_size)
        return HeldOut(rows, self._loss(self.collator(rows), logps.double(), step=0))

    def evaluate(self, rows: Sequence[TokenizedComparison]) -> dict[str, float]:
        """The metrics of `mixdpo_loss` over all of ``rows``."""
        return {name: value.item() for name, value in self.held_out(rows).loss.metrics.items()}

    def log_metrics(self) -> dict[str, float]:
        """The strength's summary."""
        return strength_metrics(self.preference_loss.mixing)

    def _loss(self, batch: Batch, logps: Tensor, step: int) -> PreferenceLoss:
        assert batch.reference_logps is not None, "reference log-probabilities are computed before this stage"
        loss: PreferenceLoss = self.preference_loss(
            *batch.chosen_rejected(logps),
            *batch.chosen_rejected(batch.reference_logps.to(logps.dtype)),
            weights=batch.weights,
            step=step,
            pair_ids=batch.pair_ids,
        )
        return loss
