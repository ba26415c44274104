"""Choices among several candidates: as pairs, with or without candidates of equal text; ids of what a row becomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from mixlogit_align.alignment.data.schema import Comparison

SLOTS = 100  # turns in a row, and comparisons in a turn, at most


def numbered(row: int, turn: int = 0, index: int = 0) -> int:
    """The pair_id of comparison ``index`` of a row's ``turn``: of row 17, turn 2, index 3 it is 170203."""
    assert max(turn, index) < SLOTS, (turn, index)
    return (row * SLOTS + turn) * SLOTS + index


def distinct(
    responses: Sequence[str], chosen: Sequence[int], identical: Literal["keep", "pool"], counts: Counter[str]
) -> list[int]:
    """Indices of the candidates to compare, under the rule ``identical`` of the settings.

    Of candidates with equal text ``pool`` takes one, a chosen one if there is one, else the first. ``counts`` gets
    ``identical_responses``, choices with candidates of equal text, and with ``pool`` ``only_identical_responses``,
    those in which no two candidates differ.
    """
    everyone = list(range(len(responses)))
    different = len(set(responses))
    if different == len(responses):
        return everyone
    counts["identical_responses"] += 1
    if identical == "keep":
        return everyone
    counts["only_identical_responses"] += different < 2
    return sorted({responses[i]: i for i in [*reversed(everyone), *chosen]}.values())


def compare(
    choice: Comparison,
    *,
    sets: Literal["pairs", "sets"],
    identical: Literal["keep", "pool"],
    counts: Counter[str],
) -> Iterator[Comparison]:
    """One choice as pairs or as it is; nothing where no two candidates differ and equal ones are pooled.

    Parameters
    ----------
    choice : Comparison
        Its pairs are named ``pair_id`` + index of the rejected candidate; where it stays as it is, or is a pair
        already, it keeps its ``pair_id``.
    sets, identical : str
        As in the settings.
    counts : Counter
        See `distinct`.
    """
    kept = distinct(choice.responses, [choice.choice], identical, counts)
    if len(kept) < 2:
        return
    if sets == "sets" or len(choice.responses) == 2:
        yield _among(choice, kept, choice.pair_id)
        return
    for other in kept:
        if other != choice.choice:
            yield _among(choice, [choice.choice, other], choice.pair_id + other)


def _among(choice: Comparison, indices: list[int], pair_id: int) -> Comparison:
    """The choice among the candidates ``indices`` alone."""
    return replace(
        choice,
        responses=tuple(choice.responses[i] for i in indices),
        scores=choice.scores and tuple(choice.scores[i] for i in indices),
        choice=indices.index(choice.choice),
        pair_id=pair_id,
    )
