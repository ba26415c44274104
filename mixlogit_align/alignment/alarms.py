"""Alarms: what a run's own metrics say is going wrong, found in the records of ``metrics.jsonl`` alone.

A clipped gradient is no alarm: both optimisers divide the scale of the gradient away, and log-probabilities summed
over tokens have gradients far above 1 in a healthy run. Nor is a high accuracy, without knowing how many held-out
comparisons there are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mixlogit_align.alignment.config import AlignmentConfig, LearnedUpdate, PreferenceConfig, SolvedUpdate
from mixlogit_align.alignment.tracking import Record

# Evaluations over which a trend must hold: two of one sign can be one noisy value between them.
TREND = 3
# Share of their starting log-probability that both responses lose. After supervised training on the chosen responses
# nearly any other objective lowers them a little, and the rejected ones are meant to fall; at a tenth, the chosen
# responses' perplexity is its 1.1th power.
FALL_SHARE = 0.1
# Nats; so that very short responses, of a token or two, do not trip over FALL_SHARE.
FALL_LEAST = 1.0
# Of `strength/drift_share`, the way gone over that under a constant gradient. Steps of unit size with mean 0.8 have
# standard deviation 0.6: nine in ten pull the same way. A parameter that has found its place wanders by the square
# root of the steps.
BOUND_SHARE = 0.8
# Steps after the warm-up before a strength is judged to be at a bound: RMSprop's memory, 1 / (1 - 0.99). While the
# policy has hardly left its reference, its log-ratios say little of the strength.
BOUND_STEPS = 100
# Solves in a row that end at a bound.
BOUND_SOLVES = 3
# sd / mean of strength. Here no choice probability differs by more than 0.0005 from a point's, DPO's (by its
# second-order term).
CV_COLLAPSED = 0.05
# Reached by a LogNormal of scale 1.8 or a Gamma of concentration 0.04: most of its mass near 0 and a mean made of the
# tail. On real comparisons the weakly identified spread ran there (a scale of 2.8) where nothing held it back.
CV_EXPLODED = 5.0
# Times, up or down; rewards, which are proportional to the mean, have then lost their unit.
MEAN_FACTOR = 10.0
# Nats. Float32 noise between two ways to batch the same responses stays below a thousandth; another model is far above.
FLOAT32_SPREAD = 1e-2
# Nats, for responses of up to 128 tokens. A bfloat16 policy against a float32 reference has 0.07 to 0.10.
BFLOAT16_SPREAD = 0.3
BFLOAT16_TOKENS = 128
# Nats a comparison (or a token) above the held-out loss before the first step.
LOSS_MARGIN = 0.02


@dataclass(frozen=True)
class Alarm:
    """Something a run's owner should look at.

    Parameters
    ----------
    name : str
        Of the rule, e.g. "both_logps_falling".
    stage : str
    step : int
        Where the rule first held.
    message : str
        What was seen, why it matters, what to try.
    """

    name: str
    stage: str
    step: int
    message: str

    def __str__(self) -> str:
        return f"{self.stage}, step {self.step}, {self.name}: {self.message}"

    def as_dict(self) -> dict[str, Any]:
        """As ``run.json`` holds it."""
        return asdict(self)


@dataclass(frozen=True)
class _Series:
    """Records of one stage, in order."""

    stage: str
    records: Sequence[Record]

    def first(self, name: str, rule: Callable[[int], str | None]) -> Iterator[Alarm]:
        """An alarm where ``rule``, given the number of a record, first has a message."""
        for i, record in enumerate(self.records):
            message = rule(i)
            if message is not None:
                yield Alarm(name, self.stage, record["step"], message)
                return


def find_alarms(records: Sequence[Record], config: AlignmentConfig) -> list[Alarm]:
    """Every alarm that the records of ``metrics.jsonl`` give rise to, in the order of their steps.

    A pure function: a resumed run finds what the uninterrupted one did. An alarm stands where its rule first held,
    once a stage, and more records never take it back; those of an earlier call are therefore all among a later
    call's, and the others are new.

    Parameters
    ----------
    records : sequence of mapping
        All records so far.
    config : AlignmentConfig
        Of the run.

    Returns
    -------
    list of Alarm
    """
    alarms: list[Alarm] = []
    for stage in ("sft", "preference"):
        every = _Series(stage, [record for record in records if record["stage"] == stage])
        held_out = _Series(stage, [record for record in every.records if record["split"] == "eval"])
        if not held_out.records:
            continue
        found = [*_loss_above_start(held_out)]
        if stage == "preference" and config.preference is not None:
            if config.preference.loss.has_reference and config.preference.reference_path is None:  # else two models
                found += _start_spread(held_out, config)
            found += _both_falling(held_out)
            found += _strength_at_bound(every, config.preference)
            if isinstance(config.preference.update, LearnedUpdate):
                found += _strength_left_its_range(held_out)
        alarms += sorted(found, key=lambda alarm: alarm.step)
    return alarms


def non_finite(stage: str, step: int, pair_ids: Sequence[int]) -> Alarm:
    """The alarm of a run that `NonFiniteLossError` stopped."""
    return Alarm(
        "non_finite",
        stage,
        step,
        f"a loss, log-probability or gradient became NaN or infinite on {len(pair_ids)} comparisons, which run.json "
        "names. The run stopped there, and exported no policy. Try a smaller learning rate or "
        "precision: float32, and look at these comparisons.",
    )


def bfloat16_spread(max_length: int) -> float:
    """Nats by which a response of up to so many tokens may differ by rounding to bfloat16."""
    return BFLOAT16_SPREAD * max(1.0, math.sqrt(max_length / BFLOAT16_TOKENS))


def _start_spread(held_out: _Series, config: AlignmentConfig) -> Iterator[Alarm]:
    """Policy and reference differ before the first step; the size tells by what."""
    precision_limit = bfloat16_spread(config.tokenization.max_length)

    def rule(i: int) -> str | None:
        spread = held_out.records[i]["log_ratio/sd"]
        if i > 0 or spread <= FLOAT32_SPREAD:
            return None
        seen = f"before the first step log_ratio/sd is {spread:.2g} nats, where policy and reference should agree"
        if spread <= precision_limit:
            return (
                f"{seen}. That is the size of bfloat16 rounding: the two are computed in different precisions, and "
                "every log-ratio carries this noise through the whole run. It matters where the log-ratios themselves "
                "are small. Try preference.reference_precision: match, or precision: float32."
            )
        return (
            f"{seen}. Rounding does not reach this size (bfloat16: below {precision_limit:.2g}): weights, tokens or "
            "dropout differ, so the loss is not measured from the policy that is trained. Try to find what the "
            "reference was computed with."
        )

    return held_out.first("start_log_ratio_spread", rule)


def _both_falling(held_out: _Series) -> Iterator[Alarm]:
    """Held-out chosen and rejected responses both lose probability, much of it, and go on."""
    names = ("logps/chosen", "logps/rejected")
    records = held_out.records

    def rule(i: int) -> str | None:
        if i + 1 < TREND:
            return None
        for name in names:
            recent = [record[name] for record in records[i + 1 - TREND : i + 1]]
            lost = records[0][name] - recent[-1]
            falling = all(later < earlier for earlier, later in itertools.pairwise(recent))
            if not falling or lost <= max(FALL_LEAST, FALL_SHARE * abs(records[0][name])):
                return None
        fell = ", ".join(f"{name} from {records[0][name]:.4g} to {records[i][name]:.4g}" for name in names)
        return (
            f"held-out {fell} nats, still falling. The policy tells the two apart by making both unlikely, and the "
            "probability goes to responses that nobody compared. Try a smaller optim.lr, fewer steps, a larger mean "
            "strength, or a supervised stage on the chosen responses first."
        )

    return held_out.first("both_logps_falling", rule)


def _strength_left_its_range(held_out: _Series) -> Iterator[Alarm]:
    """A learned strength, which has no bounds, is far from where it started; a solved one has them."""
    records = held_out.records
    start_mean, start_cv = records[0]["strength/mean"], _cv(records[0])

    def collapsed(i: int) -> str | None:
        cv = _cv(records[i])
        if not cv < CV_COLLAPSED <= start_cv:
            return None
        return (
            f"the strength's sd is {cv:.2g} of its mean (at the start {start_cv:.2g}). The loss is DPO's with "
            f"beta {records[i]['strength/mean']:.3g}, and the spread hardly has a gradient left to come back. Try "
            "family: point, if that is the data's answer, or a smaller strength.update.lr."
        )

    def exploded(i: int) -> str | None:
        cv = _cv(records[i])
        if not cv > CV_EXPLODED >= start_cv:
            return None
        return (
            f"the strength's sd is {cv:.3g} times its mean (at the start {start_cv:.2g}). One comparison at a time "
            "identifies the spread only weakly, and it runs to where most pairs have no pull. Try a smaller "
            "strength.update.lr or update: {kind: frozen}; do not report this spread as heterogeneity."
        )

    def ran_off(i: int) -> str | None:
        mean = records[i]["strength/mean"]
        if 1 / MEAN_FACTOR <= mean / start_mean <= MEAN_FACTOR:
            return None
        return (
            f"the mean strength went from {start_mean:.3g} to {mean:.3g}. Strength and the policy's log-ratios share "
            "one scale, so a policy that barely moves, or one that moves without bound, shows here first; rewards of "
            "different steps have no common unit. Try a smaller strength.update.lr or update: {kind: frozen}."
        )

    yield from held_out.first("strength_spread_collapsed", collapsed)
    yield from held_out.first("strength_spread_exploded", exploded)
    yield from held_out.first("strength_mean_ran_off", ran_off)


def _strength_at_bound(every: _Series, preference: PreferenceConfig) -> Iterator[Alarm]:
    """The learning rate, or a bound of the solve, decides where the strength stands, not the data."""
    records, update = every.records, preference.update
    judged_from = preference.optim.warmup_steps + BOUND_STEPS
    solves: dict[float, float] = {}  # how many there were -> whether the last one ended at a bound

    def learned(i: int) -> str | None:
        share = records[i].get("strength/drift_share", 0.0)
        if share < BOUND_SHARE or records[i]["step"] < judged_from:
            return None
        return (
            f"the strength has gone {share:.0%} of the way that its learning rate allows under a gradient which never "
            "changes its sign. The learning rate decides where it stands, not the data. Try a larger "
            "strength.update.lr, more steps, or update: {kind: solved}."
        )

    def solved(i: int) -> str | None:
        if records[i].get("strength/solves", 0) > 0:
            solves[records[i]["strength/solves"]] = records[i]["strength/at_bound"]
        recent = list(solves.values())[-BOUND_SOLVES:]
        if len(recent) < BOUND_SOLVES or not all(recent) or records[i]["step"] < judged_from:
            return None
        return (
            f"the last {BOUND_SOLVES} solves ended at a bound of the strength's search, now with mean "
            f"{records[i]['strength/mean']:.3g} and sd {records[i]['strength/sd']:.3g}. The bound decides where it "
            "stands, not the data. strength.json names the bound; try a wider one (max_mean_factor, min_cv, max_cv of "
            "strength.update), or family: point where the spread is at its lower one."
        )

    if isinstance(update, LearnedUpdate):
        yield from every.first("strength_at_bound", learned)
    elif isinstance(update, SolvedUpdate):
        yield from every.first("strength_at_bound", solved)


def _loss_above_start(held_out: _Series) -> Iterator[Alarm]:
    """Held-out comparisons are worse off than without any training."""
    losses = [record["loss"] for record in held_out.records]
    # a squared or reweighted loss is in no nats: its own size is its measure
    margin = LOSS_MARGIN * (max(1.0, abs(losses[0])) if held_out.stage == "preference" else 1.0)
    likelihood = abs(losses[0] - math.log(2)) < FLOAT32_SPREAD

    def rule(i: int) -> str | None:
        # The one before tells a transient from a trend.
        if i < 2 or min(losses[i - 1 : i + 1]) <= losses[0] + margin:
            return None
        coin = " (log 2 is a coin's)" if held_out.stage == "preference" and likelihood else ""
        return (
            f"the held-out loss is {losses[i]:.4g}, and was {losses[0]:.4g} before the first step{coin}. What is "
            "learned does not carry over to held-out comparisons, or is held with too much confidence. Try a smaller "
            "optim.lr, fewer epochs, or more warm-up."
        )

    return held_out.first("held_out_loss_above_start", rule)


def _cv(record: Record) -> float:
    return float(record["strength/sd"] / record["strength/mean"])
