"""What settings are held to, where they are made."""

from __future__ import annotations

import math
from typing import Any

from mixlogit_align.errors import InvalidInputError, explain, require_count


def require(condition: bool, name: str, got: Any, expected: str, hint: str = "another value") -> None:
    """Refuse a setting unless ``condition`` holds."""
    if not condition:
        raise InvalidInputError(explain(name, got=repr(got), expected=expected, hint=hint))


def positive(**settings: float) -> None:
    """Refuse settings that are not finite and above 0."""
    for name, value in settings.items():
        require(value > 0 and math.isfinite(value), name, value, "a finite number above 0")


def counts(least: int = 1, **settings: int) -> None:
    """Refuse settings that are no whole numbers of at least ``least``."""
    for name, value in settings.items():
        require_count(name, value, least)


def not_negative(**settings: float) -> None:
    """Refuse settings that are not finite, or below 0."""
    for name, value in settings.items():
        require(value >= 0 and math.isfinite(value), name, value, "a finite number, 0 or more")


def below_half(**settings: float) -> None:
    """Refuse settings that are below 0, or 1/2 or more."""
    for name, value in settings.items():
        require(0 <= value < 0.5, name, value, "0 or more, below 1/2")
