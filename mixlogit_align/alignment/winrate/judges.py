"""Judges behind one protocol, and what becomes of their verdicts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.special import expit

from mixlogit_align.alignment.progress import Progress
from mixlogit_align.alignment.winrate.pairs import Outputs, ResponsePair, pair_outputs
from mixlogit_align.alignment.winrate.preferences import Preferences
from mixlogit_align.errors import InvalidInputError, MixlogitError, explain

OTHERS = "another seed, temperature or batch size makes other responses"
FAULTS: Mapping[str, str] = {
    "not_annotated": f"the table has a preference between these two responses to this prompt ({OTHERS})",
    "score_not_finite": "the reward model gives both responses a finite score (a text longer than it takes has none)",
    "refusal": "the judge is willing to judge",
    "truncated": "the judge ends its answer within max_tokens",
    "malformed_verdict": "the answer is a verdict in the form asked for",
    "no_logprobs": "the endpoint gives the log-probabilities that weighted verdicts are made of",
    "rejected_request": "the endpoint accepts the request",
    "no_answer": "the endpoint answers within the retries",
}
FIRST = 5  # faults of each rule that are named


class JudgeError(MixlogitError, RuntimeError):
    """A judge has no verdict on any pair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a judge says of one pair.

    Parameters
    ----------
    preference : float
        How likely the response beats the opponent's, in [0, 1]; NaN where the judge has no verdict.
    fault : str or None
        The rule of `FAULTS` that was broken where there is no verdict.
    detail : str
        What was seen.
    """

    preference: float
    fault: str | None = None
    detail: str = ""

    def __post_init__(self) -> None:
        assert (self.fault is not None) == math.isnan(self.preference), self
        assert self.fault is None or self.fault in FAULTS, self.fault


def no_verdict(fault: str, detail: str = "") -> Verdict:
    """The verdict of a judge that gave none, by which rule."""
    return Verdict(preference=math.nan, fault=fault, detail=detail)


class Judge(Protocol):
    """Compares responses."""

    @property
    def name(self) -> str:
        """Written to annotations.json."""
        ...

    def judge(self, pairs: Sequence[ResponsePair], progress: Progress | None = None) -> list[Verdict]:
        """One verdict a pair, in order."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """Verdicts of a judge on the outputs of a model and its opponent.

    Parameters
    ----------
    preferences : Preferences
        NaN where the judge has no verdict.
    pairs : list of ResponsePair
    verdicts : list of Verdict
    """

    preferences: Preferences
    pairs: list[ResponsePair]
    verdicts: list[Verdict]

    def require_a_verdict(self) -> None:
        """Refuse a judge who has none at all.

        Raises
        ------
        JudgeError
            With the faults, and the first of each.
        """
        if not self.preferences.judged.any():
            seen = [
                f"{name}: {each['count']} (first: {each['first'][0]['detail']})" for name, each in self.faults().items()
            ]
            raise JudgeError(
                explain(
                    f"verdicts on {self.preferences.model!r} against {self.preferences.opponent!r}",
                    got="; ".join(seen),
                    expected="some verdicts",
                    hint="another judge, or other settings of it",
                )
            )

    def faults(self) -> dict[str, dict[str, Any]]:
        """By rule: what the rule is, how many verdicts broke it, and the first of them."""
        counts = Counter(verdict.fault for verdict in self.verdicts if verdict.fault is not None)
        return {
            fault: {
                "rule": FAULTS[fault],
                "count": count,
                "first": [
                    {"prompt": pair.prompt, "detail": verdict.detail}
                    for pair, verdict in zip(self.pairs, self.verdicts, strict=True)
                    if verdict.fault == fault
                ][:FIRST],
            }
            for fault, count in counts.items()
        }


def judge_outputs(judge: Judge, outputs: Outputs, opponent: Outputs, progress: Progress | None = None) -> Judged:
    """Have a judge compare the responses of a model and its opponent to the same prompts.

    Parameters
    ----------
    judge : Judge
    outputs, opponent : Outputs
    progress : Progress, optional

    Returns
    -------
    Judged

    Raises
    ------
    InvalidInputError
        As `pair_outputs`.
    """
    pairs = pair_outputs(outputs, opponent)
    verdicts = judge.judge(pairs, progress)
    return Judged(
        preferences=Preferences(
            model=outputs.name,
            opponent=opponent.name,
            prompts=outputs.prompts,
            values=np.array([verdict.preference for verdict in verdicts]),
            model_lengths=np.array([float(len(pair.response)) for pair in pairs]),
            opponent_lengths=np.array([float(len(pair.opponent_response)) for pair in pairs]),
        ),
        pairs=pairs,
        verdicts=verdicts,
    )


@dataclass(frozen=True, kw_only=True)
class TableJudge:
    """Stored verdicts, found by prompt and both responses; those of swapped responses are mirrored.

    Parameters
    ----------
    name : str
    annotations : mapping of ResponsePair to float
        Preferences in [0, 1], or NaN; see `read_stored_judge`.
    """

    name: str
    annotations: Mapping[ResponsePair, float]

    def judge(self, pairs: Sequence[ResponsePair], progress: Progress | None = None) -> list[Verdict]:
        """The stored verdicts; "not_annotated" where there is none on these very responses."""
        prompts = {pair.prompt for pair in self.annotations}
        verdicts = []
        for i, pair in enumerate(pairs):
            known = self.annotations.get(pair)
            if known is None:
                known = 1.0 - self.annotations.get(pair.swapped(), math.nan)
            if math.isnan(known):
                detail = (
                    f"a stored preference of null, or other responses: {OTHERS}"
                    if pair.prompt in prompts
                    else "no such prompt"
                )
                verdicts.append(no_verdict("not_annotated", detail))
            else:
                verdicts.append(Verdict(preference=known))
            if progress is not None:
                progress("judge", i + 1, len(pairs), {})
        return verdicts


Scorer = Callable[[Sequence[tuple[str, str]]], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class RewardJudge:
    """Prefers the response with the higher reward.

    Parameters
    ----------
    name : str
    score : callable
        Rewards of a batch of (prompt, response), one a tuple; `mixlogit_align.alignment.hf_reward.RewardModel` is one.
    soft : bool
        Preferences ``sigma(reward - opponent's reward)``, the probability that a reward model of the Bradley-Terry kind
        stands for; otherwise 1, 0, and 1/2 at equal rewards.
    batch_size : int
        Pairs scored at a time.
    """

    name: str
    score: Scorer
    soft: bool = True
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InvalidInputError(explain("batch_size", got=self.batch_size, expected="1 or more", hint="16"))

    def judge(self, pairs: Sequence[ResponsePair], progress: Progress | None = None) -> list[Verdict]:
        """Score both responses to each prompt."""
        verdicts: list[Verdict] = []
        for start in range(0, len(pairs), self.batch_size):
            batch = pairs[start : start + self.batch_size]
            texts = [(p.prompt, p.response) for p in batch] + [(p.prompt, p.opponent_response) for p in batch]
            rewards = [float(reward) for reward in self.score(texts)]
            if len(rewards) != len(texts):
                raise InvalidInputError(
                    explain(
                        f"score of {self.name!r}",
                        got=f"{len(rewards)} rewards for {len(texts)} responses",
                        expected="one a response",
                        hint="a score that returns a sequence of numbers",
                    )
                )
            verdicts += map(self._verdict, rewards[: len(batch)], rewards[len(batch) :])
            if progress is not None:
                progress("judge", len(verdicts), len(pairs), {})
        return verdicts

    def _verdict(self, reward: float, opponent: float) -> Verdict:
        if not (math.isfinite(reward) and math.isfinite(opponent)):
            return no_verdict("score_not_finite", f"rewards {reward} and {opponent}")
        difference = reward - opponent
        return Verdict(preference=float(expit(difference)) if self.soft else 0.5 + 0.5 * float(np.sign(difference)))
