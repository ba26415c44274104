"""Prompts and responses to token ids, under a named truncation policy that reports what it cut.

The policy: when prompt and longest response (with its end-of-text token) fit into ``max_length``, nothing
is cut. Otherwise the prompt loses what is needed, down to ``max_prompt_length`` tokens, from its start
(``keep_end``) or its end (``keep_start``); a response that still does not fit loses its end, and with it
the end-of-text token. All responses to one prompt see the same prompt. Nothing is dropped or emptied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mixlogit_align.alignment.config import TokenizationConfig
from mixlogit_align.alignment.data.batches import TokenizedComparison
from mixlogit_align.alignment.data.schema import Comparison
from mixlogit_align.errors import InvalidInputError, explain


class Tokenizer(Protocol):
    """What is needed of a tokenizer; those of transformers have it."""

    eos_token_id: int
    pad_token_id: int

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Any: ...


@dataclass(kw_only=True)
class TruncationReport:
    """How many prompts and responses the truncation policy cut, and by how many tokens.

    A response that was cut has lost its end-of-text token. ``responses_of_end_only`` counts responses that
    hold nothing but it because their text is empty, ``prompts_padded`` the empty prompts that became one
    end-of-text token, which the first response token is predicted from.
    """

    truncation: str
    max_length: int
    max_prompt_length: int
    prompts: int = 0
    prompts_cut: int = 0
    prompt_tokens_cut: int = 0
    longest_prompt: int = 0
    prompts_padded: int = 0
    responses: int = 0
    responses_cut: int = 0
    response_tokens_cut: int = 0
    longest_response: int = 0
    responses_of_end_only: int = 0

    def as_dict(self) -> dict[str, int | str]:
        """The counts by name."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.prompts_cut} of {self.prompts} prompts cut ({self.truncation}, "
            f"{self.prompt_tokens_cut} tokens), {self.responses_cut} of {self.responses} responses cut at the end "
            f"({self.response_tokens_cut} tokens); {self.responses_of_end_only} responses are empty texts"
        )


def tokenize(
    comparisons: Sequence[Comparison], tokenizer: Tokenizer, config: TokenizationConfig
) -> tuple[list[TokenizedComparison], TruncationReport]:
    """Tokenize comparisons under the truncation policy of this module.

    Parameters
    ----------
    comparisons : sequence of Comparison
    tokenizer : Tokenizer
        Prompt and response are encoded apart, without special tokens, and joined as ids.
    config : TokenizationConfig

    Returns
    -------
    rows : list of TokenizedComparison
        One for each comparison, in order.
    report : TruncationReport
    """
    report = TruncationReport(**dataclasses.asdict(config))
    if not comparisons:
        return [], report
    texts = []
    for row in comparisons:
        if not isinstance(row.prompt, str):
            raise InvalidInputError(
                explain(
                    f"prompt of pair_id {row.pair_id}",
                    got="a conversation",
                    expected="a text",
                    hint="writing the conversation out as a text",
                )
            )
        texts += [row.prompt, *row.responses]
    encoded = iter(tokenizer(texts, add_special_tokens=False).input_ids)
    rows = []
    for comparison in comparisons:
        prompt = next(encoded)
        responses = [[*next(encoded), tokenizer.eos_token_id] for _ in comparison.responses]
        if not prompt:
            prompt = [tokenizer.eos_token_id]
            report.prompts_padded += 1
        longest = max(map(len, responses))
        keep = min(len(prompt), max(config.max_prompt_length, config.max_length - longest))
        room = config.max_length - keep
        report.prompts += 1
        report.prompts_cut += len(prompt) > keep
        report.prompt_tokens_cut += len(prompt) - keep
        report.longest_prompt = max(report.longest_prompt, len(prompt))
        report.responses += len(responses)
        report.longest_response = max(report.longest_response, longest)
        for response in responses:
            report.responses_cut += len(response) > room
            report.response_tokens_cut += max(len(response) - room, 0)
            report.responses_of_end_only += len(response) == 1
        prompt = prompt[-keep:] if config.truncation == "keep_end" else prompt[:keep]
        rows.append(
            TokenizedComparison(
                comparison=comparison,
                prompt_length=keep,
                input_ids=tuple(prompt + response[:room] for response in responses),
            )
        )
    return rows, report
