"""The fixed-strength losses beside TRL's: values, gradients and metrics of the same pairs.

    python validation/baselines_trl.py [--out validation/reports]

TRL 1.16, for which this is written, has no loss functions to call: they stand inside its trainers, after the forward
pass. So its trainers' own methods are run (DPOTrainer, KTOTrainer and CPOTrainer, unbound), with stand-ins for the
trainer and for the model, which gives log-probabilities made up here. TRL has neither beta-DPO nor adaptive preference
scaling nor Mallows-DPO. DPO with soft labels and IPO per sequence it has in CPOTrainer alone, whose loss takes
log-probabilities and is given log-ratios here.

Without TRL it says so and stops. Writes baselines_trl.json and .md; exits with 1 if a claim fails. Seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixlogit_align.alignment import PreferenceLoss, baselines

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _report import REPORTS, Report

# Shapes: B pairs, T tokens of the longest response. Candidates are ordered as TRL has them: (2B, T), chosen first.

NUM_PAIRS, LONGEST = 256, 60
BETA = 0.1
# Sums over the tokens are taken in another order, and float32 log-probabilities of some 100 nats lose 1e-5 each.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)


class Pairs:
    """Made-up log-probabilities: per token of the policy, and per response of the reference."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(11)
        self.lengths = torch.randint(2, LONGEST + 1, (2 * NUM_PAIRS,), generator=generator)
        self.mask = torch.arange(LONGEST) < self.lengths[:, None]
        tokens = -2 * torch.rand(2 * NUM_PAIRS, LONGEST, generator=generator, dtype=torch.float64)
        noise = torch.randn(2 * NUM_PAIRS, generator=generator, dtype=torch.float64)
        self.tokens = (tokens * self.mask).to(dtype).requires_grad_()
        self.reference = (tokens * self.mask).sum(1).add(10 * noise).to(dtype)
        # Responses to other prompts, for KTO's reference point.
        self.other_tokens = (tokens.roll(1, 0) * self.mask).to(dtype)
        self.other_reference = (self.other_tokens.sum(1) - 1.5).to(dtype)

    def sums(self) -> list[Tensor]:
        """The four (B,) log-probabilities that a loss takes."""
        return [*self.tokens.sum(1).chunk(2), *self.reference.chunk(2)]

    def response_lengths(self) -> dict[str, Tensor]:
        """Tokens of the responses, as the losses take them."""
        chosen, rejected = self.lengths.chunk(2)
        return {"chosen_lengths": chosen, "rejected_lengths": rejected}

    def gradient(self, loss: Tensor) -> Tensor:
        """With respect to the policy's log-probability of every token."""
        return torch.autograd.grad(loss, self.tokens)[0]


class Theirs(NamedTuple):
    """A loss as TRL computes it: each pair's, the batch's, and what TRL logs."""

    per_example: Tensor
    loss: Tensor
    metrics: dict[str, float]


def stand_in(**attributes: Any) -> SimpleNamespace:
    """What a trainer's loss asks of its trainer, on one process."""
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    return SimpleNamespace(
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        beta=BETA,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **attributes,
    )


def model_giving(log_probs: Tensor, others: Tensor | None = None) -> Callable[..., SimpleNamespace]:
    """A model that gives these log-probabilities per token, or ``others`` where the first token is 1."""

    def forward(input_ids: Tensor, **_: Any) -> SimpleNamespace:
        given = others if bool((input_ids[:, 0] == 1).all()) and others is not None else log_probs
        nothing = torch.zeros_like(given)
        return SimpleNamespace(log_probs=given, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())

    return forward


def sequences(pairs: Pairs, rows: Tensor, first_token: int = 0) -> dict[str, Tensor]:
    """Token ids and masks of candidates behind a prompt of one token."""
    prompt = torch.zeros(len(rows), 1, dtype=torch.int64)
    mask = torch.cat([prompt, pairs.mask[rows].long()], dim=1)
    ids = torch.zeros_like(mask)
    ids[:, 0] = first_token
    return {"input_ids": ids, "attention_mask": torch.ones_like(mask), "completion_mask": mask}


def dpo(pairs: Pairs, kind: str, label_smoothing: float = 0.0) -> Theirs:
    """DPOTrainer's loss of this kind."""
    from trl import DPOTrainer

    def loss(rows: Tensor) -> tuple[Tensor, dict[str, float]]:
        both = torch.cat([rows, rows + NUM_PAIRS])
        trainer = stand_in(
            loss_types=[kind],
            loss_weights=[1.0],
            label_smoothing=label_smoothing,
            f_divergence_type="reverse_kl",
            ld_alpha=None,
            use_weighting=False,
            precompute_ref_logps=True,
        )
        chosen, rejected = pairs.reference[both].chunk(2)
        inputs = {**sequences(pairs, both), "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        value = DPOTrainer._compute_loss(trainer, model_giving(pairs.tokens[both]), inputs, False)
        return value, {name: x[-1] for name, x in trainer._metrics["train"].items()}

    return one_by_one(loss)


def kto(pairs: Pairs, desirable_weight: float, undesirable_weight: float) -> Theirs:
    """KTOTrainer's loss, its reference point from all pairs."""
    from trl import KTOTrainer

    every = torch.arange(2 * NUM_PAIRS)

    def loss(rows: Tensor) -> tuple[Tensor, dict[str, float]]:
        both = torch.cat([rows, rows + NUM_PAIRS])
        trainer = stand_in(
            loss_type="kto",
            desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight,
            calculate_KL=True,
            precompute_ref_logps=True,
        )
        trainer._compute_kl_logps = MethodType(KTOTrainer._compute_kl_logps, trainer)
        inputs = {
            **sequences(pairs, both),
            **{f"KL_{name}": x for name, x in sequences(pairs, every, first_token=1).items()},
            "label": torch.arange(len(both)) < len(rows),
            "ref_logps": pairs.reference[both],
            "ref_KL_logps": pairs.other_reference,
        }
        value = KTOTrainer._compute_loss(trainer, model_giving(pairs.tokens[both], pairs.other_tokens), inputs, False)
        return value, {name: x[-1] for name, x in trainer._metrics["train"].items()}

    return one_by_one(loss)


def cpo(pairs: Pairs, kind: str, chosen: Tensor, rejected: Tensor, **settings: float) -> Theirs:
    """CPOTrainer's loss of this kind, at the numbers it is to compare."""
    from trl.experimental.cpo import CPOTrainer

    given = {"beta": BETA, "label_smoothing": 0.0, "simpo_gamma": 0.0, "alpha": 0.0, **settings}
    trainer = SimpleNamespace(**{**vars(stand_in()), "loss_type": kind, **given})
    losses, chosen_rewards, rejected_rewards = CPOTrainer.cpo_loss(trainer, chosen, rejected)
    metrics = {
        "rewards/chosen": chosen_rewards.mean().item(),
        "rewards/rejected": rejected_rewards.mean().item(),
        "rewards/margins": (chosen_rewards - rejected_rewards).mean().item(),
        "rewards/accuracies": (chosen_rewards > rejected_rewards).double().mean().item(),
    }
    return Theirs(losses.detach(), losses.mean(), metrics)


def one_by_one(loss: Callable[[Tensor], tuple[Tensor, dict[str, float]]]) -> Theirs:
    """The loss of all pairs, and of each alone: what these trainers return is a mean."""
    whole, metrics = loss(torch.arange(NUM_PAIRS))
    with torch.no_grad():
        per_example = torch.stack([loss(torch.tensor([row]))[0] for row in range(NUM_PAIRS)])
    return Theirs(per_example, whole, metrics)


class Case(NamedTuple):
    """One of our losses, TRL's, and which metrics of TRL's mean the same."""

    ours: Callable[[Pairs], PreferenceLoss]
    theirs: Callable[[Pairs], Theirs]
    metrics: tuple[str, ...] = METRICS


def log_ratios(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Of chosen and rejected responses, summed over tokens."""
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = pairs.sums()
    return policy_chosen - reference_chosen, policy_rejected - reference_rejected


def per_token(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The policy's log-probability per token of chosen and rejected responses."""
    lengths = pairs.response_lengths()
    chosen, rejected = pairs.sums()[:2]
    return chosen / lengths["chosen_lengths"], rejected / lengths["rejected_lengths"]


def our_kto(pairs: Pairs) -> PreferenceLoss:
    """`kto_loss` at the reference point that the same mismatched responses give."""
    point = baselines.kto_reference_point(pairs.other_tokens.sum(1) - pairs.other_reference)
    return baselines.kto_loss(*pairs.sums(), reference_point=point, desirable_weight=1.0, undesirable_weight=1.3)


REWARDS = METRICS[:4]
CASES: dict[str, Case] = {
    "DPO: DPOTrainer, sigmoid": Case(lambda p: baselines.dpo_loss(*p.sums()), lambda p: dpo(p, "sigmoid")),
    "conservative DPO: CPOTrainer, sigmoid at log-ratios": Case(
        lambda p: baselines.conservative_dpo_loss(*p.sums(), label_smoothing=0.2),
        lambda p: cpo(p, "sigmoid", *log_ratios(p), label_smoothing=0.2),
        REWARDS,
    ),
    "robust DPO: DPOTrainer, robust": Case(
        lambda p: baselines.robust_dpo_loss(*p.sums(), label_smoothing=0.2), lambda p: dpo(p, "robust", 0.2)
    ),
    # TRL's rewards are sums over tokens even where its loss is of means.
    "IPO per token: DPOTrainer, ipo": Case(
        lambda p: baselines.ipo_loss(*p.sums(), **p.response_lengths()), lambda p: dpo(p, "ipo"), METRICS[4:]
    ),
    "IPO per sequence: CPOTrainer, ipo at log-ratios": Case(
        lambda p: baselines.ipo_loss(*p.sums(), per="sequence"), lambda p: cpo(p, "ipo", *log_ratios(p)), REWARDS
    ),
    "SimPO: CPOTrainer, simpo": Case(
        lambda p: baselines.simpo_loss(*p.sums()[:2], **p.response_lengths(), beta=2.0, gamma=0.5),
        lambda p: cpo(p, "simpo", *per_token(p), beta=2.0, simpo_gamma=0.5),
        REWARDS,
    ),
    "KTO: KTOTrainer, kto": Case(our_kto, lambda p: kto(p, 1.0, 1.3), (*METRICS[:3], *METRICS[4:])),
}


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest, relative to the largest of theirs."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def main() -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPORTS)
    arguments = parser.parse_args()
    if importlib.util.find_spec("trl") is None:
        print("skipped. trl: got no such package; expected one. Try pip install 'mixlogit_align[trl]'", file=sys.stderr)
        return 0
    report = Report(
        "baselines_trl",
        "Losses of fixed strength beside TRL's",
        f"{NUM_PAIRS} made-up pairs of responses of 2 to {LONGEST} tokens. TRL's own trainer methods, at the same "
        "log-probabilities. Differences are the largest, relative to the largest value of TRL's; gradients are with "
        "respect to the policy's log-probability of every token.",
        "trl",
        "transformers",
        "accelerate",
    )
    rows = []
    for dtype, tolerance in TOLERANCE.items():
        precision = str(dtype).removeprefix("torch.")
        report.section(f"Claims in {precision}")
        for name, case in CASES.items():
            pairs = Pairs(dtype)
            ours, theirs = case.ours(pairs), case.theirs(pairs)
            value = difference(ours.per_example.detach(), theirs.per_example)
            gradient = difference(pairs.gradient(ours.per_example.mean()), pairs.gradient(theirs.loss))
            expected = torch.tensor([theirs.metrics[metric] for metric in case.metrics], dtype=torch.float64)
            logged = difference(torch.stack([ours.metrics[metric] for metric in case.metrics]), expected)
            rows.append([name, precision, value, gradient, logged])
            worst = max(value, gradient, logged)
            report.claim(
                name, f"values, gradients and metrics differ by at most {tolerance}", worst, worst <= tolerance
            )
    report.section("Differences")
    report.table(
        "differences", "Largest relative differences", ["loss", "precision", "values", "gradients", "metrics"], rows
    )
    return report.finish(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
