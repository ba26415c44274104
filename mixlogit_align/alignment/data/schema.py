"""The one schema that every reader fills: a prompt, its candidate responses and somebody's choice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mixlogit_align.distributions import LearnableMixing
from mixlogit_align.errors import InvalidInputError, explain

Split = Literal["train", "eval"]
SPLITS: tuple[Split, ...] = ("train", "eval")
TURN = "\n\nAssistant:"  # begins each turn of the assistant in a transcript


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: who speaks ("system", "user", "assistant") and what."""

    role: str
    content: str


Prompt = str | tuple[Message, ...]


def transcript(messages: tuple[Message, ...]) -> str:
    """The messages as HH writes a prompt: "Human: ...\\n\\nAssistant: ...\\n\\nHuman: ...\\n\\nAssistant:"."""
    speakers = {"user": "Human", "assistant": "Assistant", "system": "System"}
    turns = [f"{speakers[message.role]}: {message.content.strip()}" for message in messages]
    return "\n\n".join(turns) + TURN


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One choice among the responses to a prompt.

    Parameters
    ----------
    prompt : str or tuple of Message
        A text that the responses continue, or a conversation that they answer, written out by the tokenizer's template.
    responses : tuple of str
        Two or more candidates.
    choice : int
        Index of the chosen response.
    pair_id : int
        Names the comparison within its data set; Monte Carlo draws and log-ratio tables are keyed by it.
    split : {"train", "eval"}
    annotator_id : str or None
        Who chose, where known.
    groups : mapping
        Named subgroups the comparison belongs to, e.g. ``{"subset": "helpful"}``.
    weight : float
        How often this choice counts, e.g. the number of votes for it.
    scores : tuple of float or None
        Ratings that whoever chose gave to the responses, where the data have them.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    choice: int
    pair_id: int
    split: Split
    annotator_id: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    weight: float = 1.0
    scores: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.responses) < 2 or not 0 <= self.choice < len(self.responses):
            raise InvalidInputError(
                explain(
                    f"choice of pair_id {self.pair_id}",
                    got=f"{self.choice} among {len(self.responses)} responses",
                    expected="two or more responses and the index of one of them",
                    hint="counting the responses from 0",
                )
            )
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise InvalidInputError(
                explain(
                    f"weight of pair_id {self.pair_id}",
                    got=self.weight,
                    expected="a finite number above 0",
                    hint="leaving out rows that nobody chose",
                )
            )

    @property
    def chosen(self) -> str:
        """The preferred response."""
        return self.responses[self.choice]

    @property
    def rejected(self) -> str:
        """The other response of a pair; an error for larger sets."""
        if len(self.responses) != 2:
            raise InvalidInputError(
                explain(
                    f"responses of pair_id {self.pair_id}",
                    got=len(self.responses),
                    expected="a pair",
                    hint="`responses` and `choice`",
                )
            )
        return self.responses[1 - self.choice]


@dataclass(frozen=True, kw_only=True)
class StrengthTruth:
    """What simulated annotators are made of.

    Parameters
    ----------
    family : str
        As in `mixlogit_align.LearnableMixing.from_mean_cv`.
    mean, cv : float
        Mean of the strength; standard deviation over mean, 0 for one strength for all.
    utility_diff : mapping
        pair_id -> utility of the chosen less utility of the rejected response.
    """

    family: str
    mean: float
    cv: float
    utility_diff: Mapping[int, float] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """Family, mean, sd, parameters and cv, as for a learned strength."""
        return {**self._mixing.summary(), "cv": self.cv}

    def mixing(self) -> Any:
        """The annotators' distribution of strength as a Pyro distribution, without gradient."""
        return self._mixing.requires_grad_(False)()

    @property
    def _mixing(self) -> LearnableMixing:
        return LearnableMixing.from_mean_cv(self.family, self.mean, self.cv)


@dataclass(frozen=True, kw_only=True)
class PreferenceData:
    """Comparisons with the reader's report of what it met, and the truth where it is known.

    Parameters
    ----------
    comparisons : tuple of Comparison
    report : dict
        What the reader met, by name, as JSON holds it: rows read, comparisons used, what was set aside and why.
    truth : StrengthTruth or None
    """

    comparisons: tuple[Comparison, ...]
    report: Mapping[str, Any]
    truth: StrengthTruth | None = None

    def split(self, name: Split) -> list[Comparison]:
        """The comparisons of one split, in order; an error when it is empty."""
        rows = [row for row in self.comparisons if row.split == name]
        if not rows:
            raise InvalidInputError(
                explain(
                    f"split {name!r}",
                    got=f"no comparisons ({dict(self.report)})",
                    expected="at least one",
                    hint="the reader's report above for the reason; with few prompts another seed or eval_fraction",
                )
            )
        return rows
