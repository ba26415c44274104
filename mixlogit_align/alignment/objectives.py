"""What the two stages optimise: log-likelihood of chosen responses, then the preference loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta
from torch import Tensor, nn

from mixlogit_align.alignment.config import PreferenceConfig, SolvedUpdate
from mixlogit_align.alignment.data.batches import Batch, Collator, TokenizedComparison
from mixlogit_align.alignment.logratios import SequenceLogProbs, candidate_logprobs
from mixlogit_align.alignment.losses import MixDPOLoss, PreferenceLoss, preference_metrics
from mixlogit_align.alignment.parallel import World
from mixlogit_align.alignment.strength import StrengthSolver, drift_metrics, strength_metrics
from mixlogit_align.alignment.trainer import StageLoss, require_finite

HELD_OUT_LOGPS = "held-out log-probability"


class SFTObjective(nn.Module):
    """Negative log-likelihood of the chosen responses, per token (weighted as the comparisons are).

    Parameters
    ----------
    policy : SequenceLogProbs
    collator : Collator
    eval_batch_size : int
    world : World, optional
    """

    def __init__(
        self, policy: SequenceLogProbs, collator: Collator, *, eval_batch_size: int, world: World | None = None
    ) -> None:
        super().__init__()
        self.policy = policy
        self.collator = collator
        self.eval_batch_size = eval_batch_size
        self.world = world or World()

    def forward(self, batch: Batch, *, step: int) -> StageLoss:
        """Loss of one batch; only the chosen responses go through the policy."""
        rows = torch.arange(len(batch), device=batch.choice.device)
        mask = batch.response_mask[rows, batch.choice]
        logps = self.policy(batch.input_ids[rows, batch.choice][:, None], mask[:, None])[:, 0]
        values = {"weight": batch.weights, "loss": -logps.detach(), "tokens": mask.sum(1)}
        return StageLoss(total=-(logps * batch.weights).sum(), values=values)

    def count(self, rows: Sequence[TokenizedComparison]) -> float:
        """Response tokens, weighted."""
        return sum((len(_chosen(row)) - row.prompt_length) * row.comparison.weight for row in rows)

    def tokens(self, rows: Sequence[TokenizedComparison]) -> int:
        """Tokens that go through the policy."""
        return sum(len(_chosen(row)) for row in rows)

    def metrics(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """``loss`` of the rows whose values these are, in nats a token."""
        weight = values["weight"].double()
        return {"loss": ((values["loss"] * weight).sum() / (values["tokens"] * weight).sum()).item()}

    def evaluate(self, rows: Sequence[TokenizedComparison], *, step: int) -> dict[str, float]:
        """``loss`` over all of ``rows``; `NonFiniteLossError`, with the rows at fault, where it is not finite."""
        chosen = [replace(row, input_ids=(_chosen(row),), reference_logps=None) for row in rows]
        logps = candidate_logprobs(
            self.policy, chosen, self.collator, batch_size=self.eval_batch_size, world=self.world
        )
        logps = logps[:, 0].cpu()
        weights = torch.tensor([row.comparison.weight for row in rows], dtype=torch.float64)
        ids = torch.tensor([row.comparison.pair_id for row in rows])
        require_finite(HELD_OUT_LOGPS, "sft", step, logps, ids)
        return {"loss": -(logps * weights).sum().item() / self.count(rows)}

    def state_metrics(self, step: int) -> dict[str, float]:
        """Nothing beside the loss."""
        return {}

    def before_step(self, rows: Sequence[TokenizedComparison], step: int) -> None:
        """Nothing to do."""

    def after_step(self, values: Mapping[str, Tensor], step: int) -> None:
        """Nothing to do."""


class HeldOut(NamedTuple):
    """Rows with the preference loss at them (float64, in the order of the rows)."""

    rows: Sequence[TokenizedComparison]
    loss: PreferenceLoss


class PreferenceObjective(nn.Module):
    """The preference loss of pairs, whose every pair has a loss of its own.

    Parameters
    ----------
    policy : SequenceLogProbs
    preference_loss : callable
        As `mixlogit_align.alignment.strength.build_preference_loss` makes it.
    collator : Collator
    config : PreferenceConfig
    world : World, optional

    Attributes
    ----------
    of_batch : dict of str to float
        What the loss takes that belongs to the whole batch under way; metrics tell it.
    """

    num_scores = 2

    def __init__(
        self,
        policy: SequenceLogProbs,
        preference_loss: Callable[..., PreferenceLoss],
        collator: Collator,
        *,
        config: PreferenceConfig,
        world: World | None = None,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.preference_loss = preference_loss
        self.collator = collator
        self.config = config
        self.world = world or World()
        self.of_batch: dict[str, float] = {}

    def forward(self, batch: Batch, *, step: int) -> StageLoss:
        """Loss of one batch, chosen and rejected responses in one forward pass."""
        logps = self.policy(batch.input_ids, batch.response_mask)
        finite = logps.detach().isfinite().all(1)
        # the trainer stops at these rows, on every process at once; until then they must not raise here
        logps = torch.where(finite[:, None], logps, 0.0)
        loss = self._loss(batch, logps, step)
        values = {**loss.values, "loss": torch.where(finite, loss.values["loss"], torch.nan)}
        return StageLoss(total=loss.per_example.sum(), values=values)

    def count(self, rows: Sequence[TokenizedComparison]) -> float:
        """Sum of the weights."""
        return sum(row.comparison.weight for row in rows)

    def tokens(self, rows: Sequence[TokenizedComparison]) -> int:
        """Tokens that the loss is trained on; passes without gradient, as some losses take, are left out."""
        return sum(len(ids) for row in rows for ids in row.input_ids)

    def metrics(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """The metrics of `mixdpo_loss`, and what the loss took of the whole batch."""
        of_batch = {f"{self.config.loss.kind}/{name}": value for name, value in self.of_batch.items()}
        return {**{name: value.item() for name, value in preference_metrics(values).items()}, **of_batch}

    def logps(self, model: SequenceLogProbs, rows: Sequence[TokenizedComparison]) -> Tensor:
        """(N, 2) float64 log-probabilities of the candidates under ``model``."""
        return candidate_logprobs(model, rows, self.collator, batch_size=self.config.eval_batch_size, world=self.world)

    def scores(self, reference: SequenceLogProbs, rows: Sequence[TokenizedComparison]) -> Tensor:
        """All that the loss asks of the reference about rows: (N, num_scores) float64, log-probabilities first."""
        return self.logps(reference, rows)

    def with_scores(self, rows: Sequence[TokenizedComparison], scores: Tensor) -> list[TokenizedComparison]:
        """The rows with what `scores` found, so that they can be trained on and judged."""
        return [row.with_reference(logps) for row, logps in zip(rows, scores[:, :2].tolist(), strict=True)]

    @torch.no_grad()
    def held_out(self, rows: Sequence[TokenizedComparison], *, step: int) -> HeldOut:
        """The loss of every row after ``step`` steps, computed in one piece; rules with draws use those of step 0."""
        batch, logps = self.held_out_logps(rows, step)
        return HeldOut(rows, self._loss(batch, logps, step=0))

    def held_out_logps(self, rows: Sequence[TokenizedComparison], step: int) -> tuple[Batch, Tensor]:
        """The rows and the policy's `logps` of them, which must be finite."""
        batch, logps = self.collator(rows), self.logps(self.policy, rows)
        require_finite(HELD_OUT_LOGPS, "preference", step, logps.sum(1), batch.pair_ids)
        return batch, logps

    def choice_model(self, held_out: HeldOut) -> dict[str, Any]:
        """The distribution of strength and the rule by which choice probabilities follow; empty where they do not."""
        if not self.config.loss.is_logit:
            return {}
        return {"mixing": Delta(held_out.loss.values["strength_mean"].cpu())}

    def evaluate(self, rows: Sequence[TokenizedComparison], *, step: int) -> dict[str, float]:
        """The metrics over all of ``rows``."""
        return self.metrics(self.held_out(rows, step=step).loss.values)

    def state_metrics(self, step: int) -> dict[str, float]:
        """Nothing beside the loss."""
        return {}

    def before_step(self, rows: Sequence[TokenizedComparison], step: int) -> None:
        """Nothing to do."""

    def after_step(self, values: Mapping[str, Tensor], step: int) -> None:
        """Nothing to do."""

    def _loss(self, batch: Batch, logps: Tensor, step: int) -> PreferenceLoss:
        reference: tuple[Tensor, ...] = ()
        if self.config.loss.has_reference:
            assert batch.reference_logps is not None, "the reference has scored the rows before this stage"
            reference = batch.chosen_rejected(batch.reference_logps.to(logps.dtype))
        return self.preference_loss(
            *batch.chosen_rejected(logps), *reference, weights=batch.weights, **self._beside(batch, step)
        )

    def _beside(self, batch: Batch, step: int) -> dict[str, Any]:
        """What the loss takes beside log-probabilities and weights."""
        if not self.config.loss.per_token:
            return dict(self.of_batch)
        chosen, rejected = batch.chosen_rejected(batch.response_mask.sum(-1))
        return {"chosen_lengths": chosen, "rejected_lengths": rejected}


class MixDPOObjective(PreferenceObjective):
    """The mixed-logit loss: a policy, and the strength beside it.

    Parameters
    ----------
    policy, preference_loss, collator, config, world
        As of `PreferenceObjective`, with a `MixDPOLoss`.

    Attributes
    ----------
    solver : StrengthSolver or None
        Sets the strength where it is solved for; its state is part of the module's.
    """

    preference_loss: MixDPOLoss

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        strength = self.config.strength
        assert strength is not None
        self.solver = StrengthSolver(strength) if isinstance(strength.update, SolvedUpdate) else None

    def choice_model(self, held_out: HeldOut) -> dict[str, Any]:
        """The strength and the integration rule."""
        mixing = copy.deepcopy(self.preference_loss.mixing).cpu()  # `cpu` moves a module itself
        return {"mixing": mixing(), "integration": self.preference_loss.integration}

    def state_metrics(self, step: int) -> dict[str, float]:
        """The strength's summary and how it moves."""
        mixing = self.preference_loss.mixing
        solves = self.solver.metrics() if self.solver is not None else {}
        return {**strength_metrics(mixing), **drift_metrics(mixing, self.config, step), **solves}

    def after_step(self, values: Mapping[str, Tensor], step: int) -> None:
        """Let the solver see the batch."""
        if self.solver is not None:
            logratio_diff = values["log_ratio_chosen"] - values["log_ratio_rejected"]
            self.solver.after_step(self.preference_loss.mixing, logratio_diff, values["weight"], step)

    def _beside(self, batch: Batch, step: int) -> dict[str, Any]:
        return {"step": step, "pair_ids": batch.pair_ids}


def _chosen(row: TokenizedComparison) -> list[int]:
    return row.input_ids[row.comparison.choice]
