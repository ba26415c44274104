"""Objectives of the fixed-strength losses that look beyond a pair: at its batch, its prompt, or other prompts."""

# Shapes: N rows.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mixlogit_align.alignment.baselines import kto_reference_point
from mixlogit_align.alignment.checks import require
from mixlogit_align.alignment.config import PreferenceConfig
from mixlogit_align.alignment.data.batches import Batch, Collator, TokenizedComparison
from mixlogit_align.alignment.logratios import SequenceLogProbs, candidate_logprobs
from mixlogit_align.alignment.loss_config import KTO, BetaDPO, MallowsDPO, MixDPO
from mixlogit_align.alignment.losses import PreferenceLoss
from mixlogit_align.alignment.objectives import HeldOut, MixDPOObjective, PreferenceObjective
from mixlogit_align.alignment.parallel import World
from mixlogit_align.alignment.trainer import require_finite

THRESHOLD_MEMORY = 0.9  # the authors' of beta-DPO
OTHERS = "log-probability of responses to other prompts"


def build_objective(
    policy: SequenceLogProbs,
    preference_loss: Callable[..., PreferenceLoss],
    collator: Collator,
    *,
    config: PreferenceConfig,
    world: World | None = None,
) -> PreferenceObjective:
    """The objective of a preference stage; parameters as of `PreferenceObjective`."""
    kinds = {MixDPO: MixDPOObjective, KTO: KTOObjective, BetaDPO: BetaDPOObjective, MallowsDPO: MallowsDPOObjective}
    kind: type[PreferenceObjective] = kinds.get(type(config.loss), PreferenceObjective)
    return kind(policy, preference_loss, collator, config=config, world=world)


class BetaDPOObjective(PreferenceObjective):
    """Beta-DPO: each batch's beta, from the mean of its log-ratio differences over all processes and parts.

    Attributes
    ----------
    threshold : Tensor
        0-d float64, the running mean of the batches' means, which checkpoints restore.
    """

    threshold: Tensor

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float64))

    def before_step(self, rows: Sequence[TokenizedComparison], step: int) -> None:
        """Know the batch's mean before its first part is trained on; a batch in one part shows it by itself."""
        self.of_batch = {}
        if self.config.accumulation > 1:
            batch, logps = self.collator(rows), self.logps(self.policy, rows)
            require_finite("log-probability", "preference", step, logps.sum(1), batch.pair_ids)
            self._follow(_sums(batch, logps))

    def after_step(self, values: Mapping[str, Tensor], step: int) -> None:
        """Keep the threshold."""
        self.threshold.fill_(self.of_batch["threshold"])

    @torch.no_grad()
    def held_out(self, rows: Sequence[TokenizedComparison], *, step: int) -> HeldOut:
        """The loss of every row with the mean of all of them, and the threshold as training left it."""
        batch, logps = self.held_out_logps(rows, step)
        total, weight = _sums(batch, logps).tolist()
        self.of_batch = {"threshold": self.threshold.item(), "batch_margin": total / weight}
        return HeldOut(rows, self._loss(batch, logps, step=0))

    def _loss(self, batch: Batch, logps: Tensor, step: int) -> PreferenceLoss:
        if not self.of_batch:
            self._follow(self.world.add_up(_sums(batch, logps.detach())))
        return super()._loss(batch, logps, step)

    def _follow(self, sums: Tensor) -> None:
        total, weight = sums.tolist()
        margin = total / weight
        threshold = THRESHOLD_MEMORY * self.threshold.item() + (1 - THRESHOLD_MEMORY) * margin
        self.of_batch = {"threshold": threshold, "batch_margin": margin}


def _sums(batch: Batch, logps: Tensor) -> Tensor:
    """Of weight times log-ratio difference, and of weights: (2,) float64."""
    assert batch.reference_logps is not None, "the reference has scored the rows before this stage"
    chosen, rejected = batch.chosen_rejected(logps.double() - batch.reference_logps)
    weights = batch.weights.double()
    return torch.stack([(weights * (chosen - rejected)).sum(), weights.sum()])


class KTOObjective(PreferenceObjective):
    """KTO: each response against a reference point, estimated by responses to other prompts.

    Attributes
    ----------
    mismatched : dict of int to TokenizedComparison
        By pair_id: its prompt with both responses to another one (`mismatched`), and the reference's log-probabilities
        once they are known.
    """

    num_scores = 4

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.mismatched: dict[int, TokenizedComparison] = {}

    def scores(self, reference: SequenceLogProbs, rows: Sequence[TokenizedComparison]) -> Tensor:
        """Log-probabilities of the responses, then of those to another prompt: (N, 4)."""
        return torch.cat([self.logps(reference, rows), self.logps(reference, self._others(rows))], dim=1)

    def with_scores(self, rows: Sequence[TokenizedComparison], scores: Tensor) -> list[TokenizedComparison]:
        """The rows with the reference's log-probabilities, as the mismatched ones have them from now on."""
        for row, logps in zip(self._others(rows), scores[:, 2:].tolist(), strict=True):
            self.mismatched[row.comparison.pair_id] = row.with_reference(logps)
        return super().with_scores(rows, scores)

    def _others(self, rows: Sequence[TokenizedComparison]) -> list[TokenizedComparison]:
        """The mismatched rows of a whole split, made when they are first asked for."""
        ids = [row.comparison.pair_id for row in rows]
        if not all(pair_id in self.mismatched for pair_id in ids):
            self.mismatched |= dict(zip(ids, mismatched(rows), strict=True))
        return [self.mismatched[pair_id] for pair_id in ids]

    def before_step(self, rows: Sequence[TokenizedComparison], step: int) -> None:
        """Estimate the reference point of the whole batch."""
        self._look_at_others(rows, step, OTHERS)

    @torch.no_grad()
    def held_out(self, rows: Sequence[TokenizedComparison], *, step: int) -> HeldOut:
        """The loss of every row, with a reference point from all of them."""
        self._look_at_others(rows, step, f"held-out {OTHERS}")
        return super().held_out(rows, step=step)

    def _look_at_others(self, rows: Sequence[TokenizedComparison], step: int, what: str) -> None:
        """Estimate the reference point from the responses to other prompts."""
        batch, log_ratios = self._look_around(rows)
        require_finite(what, "preference", step, log_ratios.sum(1), batch.pair_ids)
        self._judge_against(log_ratios, batch)

    def _look_around(self, rows: Sequence[TokenizedComparison]) -> tuple[Batch, Tensor]:
        """The rows' prompts with responses to other ones, and the (N, 2) log-ratios of these."""
        others = [self.mismatched[row.comparison.pair_id] for row in rows]
        batch, logps = self.collator(others), self.logps(self.policy, others)
        assert batch.reference_logps is not None
        return batch, logps - batch.reference_logps

    def _judge_against(self, log_ratios: Tensor, batch: Batch) -> None:
        point = kto_reference_point(log_ratios.flatten(), batch.weights.repeat_interleave(2))
        self.of_batch = {"reference_point": point.item()}


def mismatched(rows: Sequence[TokenizedComparison]) -> list[TokenizedComparison]:
    """Every row's prompt with the responses to another prompt, in the order of the rows.

    One fixed shuffle puts the rows in a circle, in which each takes the responses of the nearest before it that has
    another prompt. They are cut at their end where prompt and response would exceed the longest sequence of ``rows``.

    Raises
    ------
    InvalidInputError
        When all have the same prompt.
    """
    prompts = [tuple(row.input_ids[0][: row.prompt_length]) for row in rows]
    longest = max(len(ids) for row in rows for ids in row.input_ids)
    require(len(set(prompts)) > 1, "prompts", f"one in {len(rows)} comparisons", "two or more for `kind: kto`")
    circle = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    donor = {}
    for place, row in enumerate(circle):
        before = place - 1
        while prompts[circle[before]] == prompts[row]:
            before -= 1
        donor[row] = rows[circle[before]]
    return [
        replace(
            row,
            input_ids=tuple([*prompts[i], *ids[donor[i].prompt_length :]][:longest] for ids in donor[i].input_ids),
            reference_logps=None,
        )
        for i, row in enumerate(rows)
    ]


class MallowsDPOObjective(PreferenceObjective):
    """Mallows-DPO: a strength for each pair, from the dispersion that the reference shows on its prompt.

    Attributes
    ----------
    dispersion : dict of int to float
        By pair_id.
    """

    num_scores = 4

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        assert isinstance(self.config.loss, MallowsDPO)
        self.scale = self.config.loss.scale
        self.dispersion: dict[int, float] = {}

    def scores(self, reference: SequenceLogProbs, rows: Sequence[TokenizedComparison]) -> Tensor:
        """Log-probabilities of the responses, then their mean entropy per token as a share of the largest: (N, 4)."""
        size = self.config.eval_batch_size
        sums = candidate_logprobs(reference, rows, self.collator, batch_size=size, world=self.world, entropy=True)
        lengths = torch.tensor([[len(ids) - row.prompt_length for ids in row.input_ids] for row in rows]).to(sums)
        return torch.cat([self.logps(reference, rows), sums / lengths], dim=1)

    def with_scores(self, rows: Sequence[TokenizedComparison], scores: Tensor) -> list[TokenizedComparison]:
        """The rows with the reference's log-probabilities; their dispersion is kept here."""
        dispersion = scores[:, 2:].mean(1)
        self.dispersion |= dict(zip((row.comparison.pair_id for row in rows), dispersion.tolist(), strict=True))
        if self.scale is None and rows[0].comparison.split == "train":
            self.scale = 1 / -dispersion.log().mean().item()
        return super().with_scores(rows, scores)

    def _beside(self, batch: Batch, step: int) -> dict[str, Any]:
        values = [self.dispersion[pair_id] for pair_id in batch.pair_ids.tolist()]
        return {
            "dispersion": torch.tensor(values, dtype=torch.float64, device=batch.weights.device),
            "scale": self.scale,
        }
