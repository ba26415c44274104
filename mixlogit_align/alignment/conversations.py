"""Conversations as token ids: the tokenizer's own chat template writes them out and ends the response.

What the template writes is encoded as the template means it, control tokens included; a text within the conversation
that spells a control token is encoded as letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from jinja2 import TemplateError

from mixlogit_align.alignment.data.schema import Comparison, Message
from mixlogit_align.errors import InvalidInputError, explain

# Stands for a response where the template's end of the assistant's turn is looked up: a character for private use,
# which no template trims.
_RESPONSE = "\ue000"


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """Token ids of a prompt and, for every candidate, of the response with the end of its turn.

    ``spelled`` says that a text spells a control token, which is encoded as letters.
    """

    prompt: list[int]
    responses: list[list[int]]
    spelled: bool


def texts(row: Comparison) -> tuple[str, ...]:
    """Every text of a comparison: of its prompt, or of each message in it, then of its responses."""
    prompt = (row.prompt,) if isinstance(row.prompt, str) else (message.content for message in row.prompt)
    return (*prompt, *row.responses)


def spelling(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of the tokens in a text."""
    return re.compile("|".join(re.escape(token) for token in tokens) or "(?!)")


class ChatTemplate:
    """Writes conversations out by a tokenizer's chat template and encodes them.

    The ids of prompt + response are those of ``apply_chat_template(..., tokenize=True)`` wherever the prompt's own
    ids are their beginning. They are not where white space at the start of a response would merge into the prompt's
    last token; there the response is encoded apart, since the policy generates from the prompt's ids.

    Parameters
    ----------
    tokenizer : Tokenizer
        See `mixlogit_align.alignment.tokenization.Tokenizer`.
    today : str
        ISO date that the template writes where it writes the day's, so that the ids do not change overnight.

    Attributes
    ----------
    end : str
        What the template writes after a response. Where it writes nothing but white space, the tokenizer's
        end-of-text token follows it, as after a plain text.

    Raises
    ------
    InvalidInputError
        For a tokenizer without a template, or one whose template does not write a response verbatim after the prompt.
    """

    def __init__(self, tokenizer: Any, today: str) -> None:
        if not tokenizer.chat_template:
            raise InvalidInputError(
                explain(
                    "prompts",
                    got="conversations, and a tokenizer without a chat template",
                    expected="a tokenizer with one",
                    hint="a model tuned on conversations, a file chat_template.jinja in the model's folder, or prompts "
                    "as plain texts",
                )
            )
        if tokenizer.split_special_tokens:
            raise InvalidInputError(
                explain(
                    "prompts",
                    got="conversations, and a tokenizer that splits special tokens into letters, its template's too",
                    expected="a tokenizer that keeps them whole",
                    hint='"split_special_tokens": false in tokenizer_config.json',
                )
            )
        self._tokenizer = tokenizer
        day = date.fromisoformat(today)
        self._template = re.sub(
            r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""",
            lambda call: repr(day.strftime(call[2])),
            tokenizer.get_chat_template(),
        )
        if "strftime_now(" in self._template:
            raise InvalidInputError(
                explain(
                    "chat template",
                    got="one that writes the day's date in a format of its own making, so that every day has other ids",
                    expected="no date, or one with a literal format",
                    hint="a chat_template.jinja with a fixed date in the model's folder",
                )
            )
        self._control = spelling(
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.special or (token.content in self._template and not token.content.isspace())
        )
        self._start = self.end = ""
        _, answer = self._write((Message("user", "?"),), (_RESPONSE,), "one question")
        self._start, found, self.end = answer[0].partition(_RESPONSE)
        if not found:
            raise InvalidInputError(
                explain(
                    "chat template",
                    got=f"one that writes {self._start!r} for a response",
                    expected="the response's own text in it",
                    hint="another chat_template.jinja in the model's folder",
                )
            )

    def encode(self, rows: Sequence[Comparison]) -> Iterator[EncodedConversation]:
        """Encode comparisons whose prompts are conversations, in order; the tokenizer sees them together.

        Raises
        ------
        InvalidInputError
            For a conversation that the template refuses, or writes otherwise once a response follows; the message
            names its ``pair_id``.
        """
        written = [self._write(row.prompt, row.responses, f"pair_id {row.pair_id}") for row in rows]
        encoded = iter(self._ids([prompt + tail for prompt, tails in written for tail in ("", *tails)]))
        for row, (_, tails) in zip(rows, written, strict=True):
            prompt, *wholes = (next(encoded) for _ in range(1 + len(tails)))
            spelled = any(map(self._control.search, texts(row)))
            if spelled:
                prompt, *wholes = self._sanitized(row)
            responses = []
            for tail, whole in zip(tails, wholes, strict=True):
                begins = whole[: len(prompt)] == prompt
                response = whole[len(prompt) :] if begins else self._apart(tail, spelled)
                responses.append(response if self.end.strip() else [*response, self._tokenizer.eos_token_id])
            yield EncodedConversation(prompt, responses, spelled)

    def _write(
        self, prompt: str | tuple[Message, ...], responses: Sequence[str], where: str
    ) -> tuple[str, tuple[str, ...]]:
        """The prompt up to where the response begins, and what the template writes from there for each response."""
        try:
            written = self._apply(prompt, add_generation_prompt=True, tokenize=False)
            wholes = [self._apply(prompt, response, tokenize=False) for response in responses]
        except (TemplateError, TypeError, ValueError) as error:
            raise InvalidInputError(
                explain(
                    f"conversation of {where}",
                    got=f"what the chat template refuses: {error}",
                    expected="messages that it writes out",
                    hint="roles as the template expects them: often user and assistant in turn, the user's last",
                )
            ) from error
        before = written + self._start
        for whole in wholes:
            if not (whole.startswith(before) and whole[len(before) :].endswith(self.end)):
                raise InvalidInputError(
                    explain(
                        f"conversation of {where}",
                        got=f"{whole!r}",
                        expected=f"a chat template that writes {before!r}, the response and {self.end!r}",
                        hint="another chat_template.jinja in the model's folder",
                    )
                )
        return written, tuple(whole[len(written) :] for whole in wholes)

    def _apply(self, prompt: str | tuple[Message, ...], response: str | None = None, **options: Any) -> Any:
        messages = [asdict(message) for message in prompt if isinstance(message, Message)]
        if response is not None:
            messages.append({"role": "assistant", "content": response})
        return self._tokenizer.apply_chat_template(messages, chat_template=self._template, **options)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
        return ids

    def _apart(self, tail: str, spelled: bool) -> list[int]:
        """Ids of what the template writes for a response, encoded without the prompt."""
        if not spelled:
            return self._ids([tail])[0]
        stop = len(tail) - len(self.end)
        letters = self._tokenizer([tail[len(self._start) : stop]], add_special_tokens=False, split_special_tokens=True)
        start, end = self._ids([self._start, tail[stop:]])
        return [*start, *letters.input_ids[0], *end]

    def _sanitized(self, row: Comparison) -> list[list[int]]:
        """Ids of the prompt and of prompt + response, control tokens that the texts spell written as letters."""
        options: dict[str, Any] = {"tokenize": True, "return_dict": False, "sanitize_control_tokens": True}
        prompt = self._apply(row.prompt, add_generation_prompt=True, **options)
        return [prompt, *(self._apply(row.prompt, response, **options) for response in row.responses)]
