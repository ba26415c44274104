"""Prompts and responses to token ids, under a named truncation policy that reports what it cut.

A comparison whose prompt and longest response (with what ends it) fit into ``max_length`` is left alone. Else:

``keep_end``, ``keep_start``
    The prompt loses what is needed, down to ``max_prompt_length`` tokens, from its start or its end; a response that
    still does not fit loses its end, and with it the end-of-text token.
``paper``
    As the public DPO reference code does it: the prompt is cut to ``max_prompt_length`` at once, HH's from its start
    and any other data's from its end; where that does not suffice, all responses are cut to
    ``max_length - max_prompt_length``, also after a prompt short enough to leave them more. (That code goes by the
    chosen response alone in its SFT stage; here both stages see the same tokens.)
``refuse``
    An error that says what would fit.

All responses to one prompt see the same prompt. Tokens that the tokenizer itself puts before a text (Llama's and
Gemma's beginning-of-text) survive every cut. Nothing is dropped or emptied: an empty response is its end-of-text
token, and so is an empty prompt, from which the first token of the response is predicted.

A text that spells a special token, e.g. ``<|endoftext|>``, is encoded as letters, so that no response can end itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mixlogit_align.alignment.config import TokenizationConfig
from mixlogit_align.alignment.conversations import ChatTemplate, spelling, texts
from mixlogit_align.alignment.data.batches import TokenizedComparison
from mixlogit_align.alignment.data.schema import Comparison
from mixlogit_align.errors import InvalidInputError, explain

# Comparisons that the tokenizer encodes in one call: enough to keep its threads busy, few enough that what it knows
# of each token beside the id stays small.
_CHUNK = 1024


class Tokenizer(Protocol):
    """What is needed of a tokenizer; those of transformers have it."""

    eos_token_id: int | None
    bos_token_id: int | None
    chat_template: Any
    split_special_tokens: bool
    added_tokens_decoder: Any

    def __call__(
        self, text: list[str], *, add_special_tokens: bool, split_special_tokens: bool = ..., verbose: bool = ...
    ) -> Any: ...

    def decode(self, token_ids: list[int]) -> Any: ...

    def get_chat_template(self) -> str: ...

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """How long the texts of one kind are and what the policy cut of them, in tokens.

    Parameters
    ----------
    texts, empty : int
        How many there are; how many of them hold nothing but white space, or nothing.
    tokens, longest : int
        Before anything was cut, with all special tokens.
    cut : int
        How many were cut.
    tokens_cut, median_cut, ninth_decile_cut, largest_cut : int
        Tokens lost: in all, and by a text that was cut.
    shortest_left : int
        Tokens left of the shortest text: 1 or more, for nothing is emptied.
    """

    texts: int
    empty: int
    tokens: int
    longest: int
    cut: int
    tokens_cut: int
    median_cut: int
    ninth_decile_cut: int
    largest_cut: int
    shortest_left: int

    @classmethod
    def of(cls, before: Sequence[int], after: Sequence[int], empty: int) -> Cuts:
        """From the lengths before and after, one for each text."""
        lost = sorted(a - b for a, b in zip(before, after, strict=True) if a > b)

        def quantile(share: float) -> int:
            return lost[math.ceil(share * len(lost)) - 1] if lost else 0

        return cls(
            texts=len(before),
            empty=empty,
            tokens=sum(before),
            longest=max(before, default=0),
            cut=len(lost),
            tokens_cut=sum(lost),
            median_cut=quantile(0.5),
            ninth_decile_cut=quantile(0.9),
            largest_cut=quantile(1.0),
            shortest_left=min(after, default=0),
        )

    def __str__(self) -> str:
        lost = (
            f" ({self.tokens_cut} of {self.tokens} tokens; median {self.median_cut}, at most {self.largest_cut})"
            if self.cut
            else ""
        )
        return f"{self.cut} of {self.texts} cut{lost}, the longest of {self.longest} tokens, {self.empty} empty"


@dataclass(frozen=True, kw_only=True)
class TruncationReport:
    """What tokenization met and what the truncation policy cut.

    Parameters
    ----------
    truncation, max_length, max_prompt_length
        As in the settings.
    prompts_keep : {"end", "start"} or None
        The side that survives of a prompt that is cut; None where none may be.
    opening : str
        What the tokenizer itself puts before a plain prompt, e.g. beginning-of-text; it counts as the prompt's.
    conversations : int
        Prompts that the chat template wrote out.
    turn_end : str or None
        What the chat template writes after a response to one; None where there is none.
    prompts, responses : Cuts
    ends_lost : int
        Responses cut at their end, and so without (all of) what ends them; the others have it.
    spelled : int
        Comparisons with a text that spells a special token, which is encoded as letters.
    """

    truncation: str
    max_length: int
    max_prompt_length: int
    prompts_keep: str | None
    opening: str
    conversations: int
    turn_end: str | None
    prompts: Cuts
    responses: Cuts
    ends_lost: int
    spelled: int

    def as_dict(self) -> dict[str, Any]:
        """The report by name, ready for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        spelled = f"; {self.spelled} comparisons spell a special token, encoded as letters" if self.spelled else ""
        side = f", prompts keep their {self.prompts_keep}" if self.prompts_keep else ""
        return (
            f"truncation {self.truncation} to {self.max_length} tokens (prompts {self.max_prompt_length}){side}. "
            f"Prompts: {self.prompts}. Responses: {self.responses}; {self.ends_lost} lost the token that ends them. "
            f"None was emptied{spelled}."
        )


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Token ids before anything is cut; the first ``opening`` of the prompt survive every cut."""

    comparison: Comparison
    opening: int
    prompt: list[int]
    responses: list[list[int]]
    spelled: bool

    @property
    def longest(self) -> int:
        """Tokens of the longest response."""
        return max(map(len, self.responses))

    @property
    def total(self) -> int:
        """Tokens of the prompt and the longest response."""
        return len(self.prompt) + self.longest


def tokenize(
    comparisons: Sequence[Comparison], tokenizer: Tokenizer, config: TokenizationConfig, *, source: str | None = None
) -> tuple[list[TokenizedComparison], TruncationReport]:
    """Tokenize comparisons under the truncation policy of this module.

    Parameters
    ----------
    comparisons : sequence of Comparison
    tokenizer : Tokenizer
        A plain prompt and its responses are encoded apart and joined as ids (where the tokenizer begins every text with
        a space, as SentencePiece does, the response too has it); conversations by its chat template, see
        `mixlogit_align.alignment.conversations.ChatTemplate`.
    config : TokenizationConfig
    source : str, optional
        The data's ``source``; the policy ``paper`` goes by it.

    Returns
    -------
    rows : list of TokenizedComparison
        One for each comparison, in order.
    report : TruncationReport

    Raises
    ------
    InvalidInputError
        Under ``refuse``, where anything would be cut; for ``paper`` without a ``source``; for a tokenizer without an
        end-of-text token; for a ``max_prompt_length`` that the opening alone fills; for conversations that the
        tokenizer cannot write out.
    """
    if tokenizer.eos_token_id is None:
        raise InvalidInputError(
            explain(
                "tokenizer",
                got="no end-of-text token",
                expected="one, which tells the policy where a response ends",
                hint='"eos_token" in tokenizer_config.json',
            )
        )
    opening = _opening(tokenizer) if config.bos == "tokenizer" else []
    if len(opening) >= config.max_prompt_length:
        raise InvalidInputError(
            explain(
                "tokenization.max_prompt_length",
                got=config.max_prompt_length,
                expected=f"more than the {len(opening)} tokens that the tokenizer puts before every prompt",
                hint=f"max_prompt_length={len(opening) + 1}",
            )
        )
    kept_side = _kept_side(config, source)
    encoded, template = _encode(comparisons, tokenizer, opening, config)
    rooms = [_room(config, row) for row in encoded]
    if config.truncation == "refuse":
        _refuse_cuts(config, encoded, rooms)
    rows = []
    for row, (keep, room) in zip(encoded, rooms, strict=True):
        body = row.prompt[row.opening :]
        first = len(row.prompt) - keep if kept_side == "end" else 0
        prompt = row.prompt[: row.opening] + body[first : first + keep - row.opening]
        rows.append(
            TokenizedComparison(
                comparison=row.comparison,
                prompt_length=keep,
                input_ids=tuple(prompt + response[:room] for response in row.responses),
            )
        )
    prompts = Cuts.of(
        [len(row.prompt) for row in encoded],
        [row.prompt_length for row in rows],
        sum(not row.prompt.strip() for row in comparisons if isinstance(row.prompt, str)),
    )
    responses = Cuts.of(
        [len(response) for row in encoded for response in row.responses],
        [len(ids) - row.prompt_length for row in rows for ids in row.input_ids],
        sum(not response.strip() for row in comparisons for response in row.responses),
    )
    assert not rows or (prompts.shortest_left > 0 and responses.shortest_left > 0)
    return rows, TruncationReport(
        truncation=config.truncation,
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
        prompts_keep=kept_side,
        opening=tokenizer.decode(opening),
        conversations=sum(not isinstance(row.prompt, str) for row in comparisons),
        turn_end=None if template is None else template.end,
        prompts=prompts,
        responses=responses,
        ends_lost=responses.cut,
        spelled=sum(row.spelled for row in encoded),
    )


def content_hash(rows: Iterable[TokenizedComparison]) -> str:
    """SHA-256 of all that training on the rows depends on, the same on every machine.

    Parameters
    ----------
    rows : iterable of TokenizedComparison
        Hashed in order: pair id, choice, weight, prompt length and the token ids of every candidate.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for row in rows:
        pair = row.comparison
        integers = [pair.pair_id, pair.choice, *_scored(row)]
        digest.update(np.asarray(integers, dtype="<i8").tobytes() + np.asarray(pair.weight, dtype="<f8").tobytes())
    return digest.hexdigest()


def token_hash(row: TokenizedComparison) -> str:
    """SHA-256 of what a model scores of a row: prompt length and the token ids of every candidate, in order."""
    return hashlib.sha256(np.asarray(_scored(row), dtype="<i8").tobytes()).hexdigest()


def _scored(row: TokenizedComparison) -> list[int]:
    sizes = [len(ids) for ids in row.input_ids]
    return [row.prompt_length, len(sizes), *sizes, *(token for candidate in row.input_ids for token in candidate)]


def _opening(tokenizer: Tokenizer) -> list[int]:
    """The tokens that the tokenizer itself puts before a text."""
    bare: list[int] = tokenizer(["a"], add_special_tokens=False).input_ids[0]
    full: list[int] = tokenizer(["a"], add_special_tokens=True).input_ids[0]
    for i in range(len(full) - len(bare) + 1):
        if full[i : i + len(bare)] == bare:
            return full[:i]
    raise InvalidInputError(
        explain(
            "tokenizer",
            got=f"the ids {full} of 'a' with its own tokens around it, and {bare} without",
            expected="the second to stand within the first",
            hint="tokenization.bos='never'",
        )
    )


def _encode(
    comparisons: Sequence[Comparison], tokenizer: Tokenizer, opening: list[int], config: TokenizationConfig
) -> tuple[list[_Encoded], ChatTemplate | None]:
    """All ids, and the chat template where there are conversations."""
    template = None
    if any(not isinstance(row.prompt, str) for row in comparisons):
        template = ChatTemplate(tokenizer, config.chat_date)
    special = spelling(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    encoded = []
    for start in range(0, len(comparisons), _CHUNK):
        chunk = comparisons[start : start + _CHUNK]
        chats = [row for row in chunk if not isinstance(row.prompt, str)]
        conversations = template.encode(chats) if template else iter(())
        plain = [text for row in chunk if isinstance(row.prompt, str) for text in texts(row)]
        ids = iter(
            tokenizer(plain, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
            if plain
            else ()
        )
        for row in chunk:
            if isinstance(row.prompt, str):
                prompt = [*opening, *next(ids)] or [tokenizer.eos_token_id]
                responses = [[*next(ids), tokenizer.eos_token_id] for _ in row.responses]
                spelled = any(map(special.search, texts(row)))
                encoded.append(_Encoded(row, len(opening), prompt, responses, spelled))
            else:
                chat = next(conversations)
                begins = int(chat.prompt[0] == tokenizer.bos_token_id)
                encoded.append(_Encoded(row, begins, chat.prompt, chat.responses, chat.spelled))
    return encoded, template


def _kept_side(config: TokenizationConfig, source: str | None) -> str | None:
    match config.truncation:
        case "keep_end":
            return "end"
        case "keep_start":
            return "start"
        case "refuse":
            return None
    if source is None:
        raise InvalidInputError(
            explain(
                "tokenization.truncation",
                got="paper, for data of unknown source",
                expected="the data's source, by which this policy chooses the side of a prompt that it keeps",
                hint='tokenize(..., source="hh") for HH transcripts, or the policy keep_end',
            )
        )
    return "end" if source == "hh" else "start"


def _room(config: TokenizationConfig, row: _Encoded) -> tuple[int, int]:
    """Tokens that the prompt keeps, and the most that a response keeps."""
    length, longest = len(row.prompt), row.longest
    if row.total <= config.max_length:
        return length, longest
    if config.truncation == "paper":
        keep = min(length, config.max_prompt_length)
        return keep, longest if keep + longest <= config.max_length else config.max_length - config.max_prompt_length
    keep = min(length, max(config.max_prompt_length, config.max_length - longest))
    return keep, config.max_length - keep


def _refuse_cuts(config: TokenizationConfig, rows: Sequence[_Encoded], rooms: Sequence[tuple[int, int]]) -> None:
    """An error where ``keep_end`` or ``keep_start`` would cut anything."""
    unfit = [(row, keep, room) for row, (keep, room) in zip(rows, rooms, strict=True) if keep + room < row.total]
    if not unfit:
        return
    prompts = [len(row.prompt) for row, keep, _ in unfit if len(row.prompt) > keep]
    responses = [len(ids) for row, _, room in unfit for ids in row.responses if len(ids) > room]
    first = ", ".join(str(row.comparison.pair_id) for row, *_ in unfit[:5]) + (", ..." if len(unfit) > 5 else "")
    raise InvalidInputError(
        explain(
            "tokenization.truncation",
            got=f"refuse, and {len(unfit)} of {len(rows)} comparisons that do not fit: {len(prompts)} prompts (the "
            f"longest of {max(prompts, default=0)} tokens) and {len(responses)} responses (the longest of "
            f"{max(responses, default=0)}) are too long; pair_id {first}",
            expected=f"prompt and response of at most max_length={config.max_length} tokens together",
            hint=f"max_length={max(row.total for row, *_ in unfit)}, which fits all of them, or a policy that cuts: "
            "truncation=keep_end",
        )
    )
