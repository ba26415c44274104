"""Conversations whose turns are judged: which turns, and how a prompt is written."""

from __future__ import annotations

from collections.abc import Sequence

from mixlogit_align.alignment.data.config import ConversationSettings
from mixlogit_align.alignment.data.schema import Message, Prompt, transcript


def wanted(config: ConversationSettings, turn: int) -> bool:
    """Whether ``turn``, counted from 0, becomes a comparison."""
    return {"first": turn == 0, "later": turn > 0, "all": True}[config.turns]


def written(
    config: ConversationSettings, messages: Sequence[Message], responses: Sequence[str]
) -> tuple[Prompt, tuple[str, ...]]:
    """Prompt and responses as ``prompts`` in the settings has them; in a transcript a response follows a space."""
    if config.prompts == "messages":
        return tuple(messages), tuple(responses)
    return transcript(tuple(messages)), tuple(f" {response.strip()}" for response in responses)
