"""Linear restrictions on named parameters, read from text."""

# P parameters, Q restrictions.

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch

from mixlogit_align.errors import InvalidInputError, explain

_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# What may continue a name: "time.loc" is not found in "time.location" or "time.loc:income".
_CONTINUES = re.compile(r"[\w.:\[\]]")

Token = str | float  # an operator or a name; a number


def read_restrictions(restrictions: Sequence[str], names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and right-hand sides of restrictions such as ``"2*time.loc - cost.loc = 1"``.

    Sums of parameters, numbers and their products, with at most one ``=``; without one, ``= 0`` is meant. Names may
    hold dots, colons, spaces and brackets: the longest known name counts.

    Parameters
    ----------
    restrictions : sequence of str
    names : sequence of str
        The parameters, P of them.

    Returns
    -------
    matrix : torch.Tensor, shape (Q, P), float64
    values : torch.Tensor, shape (Q,), float64

    Raises
    ------
    InvalidInputError
        If a restriction is not linear, or names something that is no parameter.
    """
    matrix = torch.zeros(len(restrictions), len(names), dtype=torch.float64)
    values = torch.zeros(len(restrictions), dtype=torch.float64)
    for row, text in enumerate(restrictions):
        sides: list[list[Token]] = [[]]
        for token in _tokens(text, names):
            if token == "=":
                sides.append([])
            else:
                sides[-1].append(token)
        if len(sides) > 2:
            raise _unreadable(text, "a second '='", names)
        for sign, side in zip((1.0, -1.0), sides, strict=False):
            for factor, name in _terms(side, text, names):
                if name is None:
                    values[row] -= sign * factor
                else:
                    matrix[row, names.index(name)] += sign * factor
    return matrix, values


def _tokens(text: str, names: Sequence[str]) -> Iterator[Token]:
    longest_first = sorted(names, key=len, reverse=True)
    position = 0
    while position < len(text):
        here = text[position:]
        name = next((n for n in longest_first if here.startswith(n) and not _CONTINUES.match(here[len(n) :])), None)
        number = _NUMBER.match(here)
        if name is not None:
            yield name
            position += len(name)
        elif number:
            yield float(number[0])
            position += len(number[0])
        elif here[0] in "+-*/=":
            yield here[0]
            position += 1
        elif here[0].isspace():
            position += 1
        else:
            raise _unreadable(text, repr(here), names)


def _terms(side: list[Token], text: str, names: Sequence[str]) -> Iterator[tuple[float, str | None]]:
    """Products of a side, each a number and at most one name."""
    rest = list(side)
    first = True
    while rest or first:
        factor, name = 1.0, None
        if not first and rest[0] not in ("+", "-"):
            raise _unreadable(text, f"{rest[0]!r} without an operator before it", names)
        while rest and rest[0] in ("+", "-"):
            factor *= -1.0 if rest.pop(0) == "-" else 1.0
        operator: Token = "*"
        while operator in ("*", "/"):
            if not rest or rest[0] in ("+", "-", "*", "/"):
                raise _unreadable(text, "an operator without its right side", names)
            value = rest.pop(0)
            if isinstance(value, float):
                if operator == "/" and value == 0.0:
                    raise _unreadable(text, "a division by 0", names)
                factor *= 1.0 / value if operator == "/" else value
            elif name is None and operator == "*":
                name = value
            else:
                raise _unreadable(text, f"{value!r} in a product or below a line", names)
            if not rest or rest[0] not in ("*", "/"):
                break
            operator = rest.pop(0)
        yield factor, name
        first = False


def _unreadable(text: str, got: str, names: Sequence[str]) -> InvalidInputError:
    return InvalidInputError(
        explain(
            f"restriction {text!r}",
            got=got,
            expected=f"sums of numbers times parameters of {list(names)}",
            hint=f"'{names[0]} = 0'",
        )
    )
