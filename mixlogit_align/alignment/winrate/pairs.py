"""Outputs of two models, paired by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixlogit_align.alignment.winrate.preferences import compare_prompts, refuse_duplicates
from mixlogit_align.errors import InvalidInputError, explain


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """One response of a model to each prompt.

    Parameters
    ----------
    name : str
        Of the model.
    prompts, responses : sequence of str
        Each prompt once. A response may be empty (models do end at once); it is judged as it is.

    Raises
    ------
    InvalidInputError
        For a prompt that stands twice or has no text, or responses that are not as many.
    """

    name: str
    prompts: Sequence[str]
    responses: Sequence[str]

    def __post_init__(self) -> None:
        what = f"outputs of {self.name!r}"
        if not self.prompts or len(self.prompts) != len(self.responses):
            raise InvalidInputError(
                explain(
                    what,
                    got=f"{len(self.prompts)} prompts and {len(self.responses)} responses",
                    expected="one response a prompt, and one prompt or more",
                    hint="generating the missing ones",
                )
            )
        refuse_duplicates(self.prompts, what)
        blank = sum(not prompt.strip() for prompt in self.prompts)
        if blank:
            raise InvalidInputError(
                explain(what, got=f"{blank} prompts without a text", expected="none", hint="removing them")
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponsePair:
    """What a judge compares.

    Parameters
    ----------
    prompt, response, opponent_response : str
    """

    prompt: str
    response: str
    opponent_response: str

    def swapped(self) -> ResponsePair:
        """The pair from the opponent's side."""
        return ResponsePair(prompt=self.prompt, response=self.opponent_response, opponent_response=self.response)


def pair_outputs(outputs: Outputs, opponent: Outputs) -> list[ResponsePair]:
    """Pair the responses of two models to the same prompts, in the order of the first.

    Raises
    ------
    InvalidInputError
        Naming prompts that only one of them answers.
    """
    compare_prompts(outputs.prompts, opponent.prompts, outputs.name, opponent.name)
    responses = dict(zip(opponent.prompts, opponent.responses, strict=True))
    return [
        ResponsePair(prompt=prompt, response=response, opponent_response=responses[prompt])
        for prompt, response in zip(outputs.prompts, outputs.responses, strict=True)
    ]
