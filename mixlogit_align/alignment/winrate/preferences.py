"""Preferences between the responses of a model and of an opponent, prompt by prompt; their win rate."""

# N prompts.

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mixlogit_align.errors import InvalidInputError, explain

Vector = npt.NDArray[np.float64]
SHOWN = 3  # prompts that an error names


@dataclass(frozen=True, kw_only=True, eq=False)
class Preferences:
    """How likely a judge prefers the model's response to the opponent's, for each prompt.

    Parameters
    ----------
    model, opponent : str
        Their names.
    prompts : sequence of str
        N, each once.
    values : array, shape (N,)
        In [0, 1]: 1 where the model's response wins, 0.5 at a tie, between them where the judge gives a probability.
        NaN where there is no verdict. AlpacaEval writes ``1 + value``.
    model_lengths, opponent_lengths : array, shape (N,), optional
        Characters of the responses; length control needs them.

    Raises
    ------
    InvalidInputError
        For a prompt that stands twice, a preference outside [0, 1], or columns of different lengths.
    """

    model: str
    opponent: str
    prompts: Sequence[str]
    values: Vector
    model_lengths: Vector | None = None
    opponent_lengths: Vector | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        for name in ("values", "model_lengths", "opponent_lengths"):
            column = getattr(self, name)
            if column is None:
                continue
            column = np.asarray(column, dtype=np.float64)
            object.__setattr__(self, name, column)
            if column.shape != (len(self.prompts),):
                raise InvalidInputError(
                    explain(
                        f"{name} of {self.model!r}",
                        got=f"shape {column.shape}",
                        expected=f"({len(self.prompts)},), one a prompt",
                        hint="NaN where there is no preference",
                    )
                )
        refuse_duplicates(self.prompts, f"preferences of {self.model!r}")
        wrong = np.flatnonzero((self.values < 0.0) | (self.values > 1.0))
        if len(wrong):
            raise InvalidInputError(
                explain(
                    f"preferences of {self.model!r}",
                    got=f"{self.values[wrong[0]]} for prompt {shown(self.prompts[wrong[0]])}",
                    expected="numbers between 0 and 1",
                    hint="subtracting 1 from AlpacaEval's, which lie between 1 and 2 (`read_annotations` does)",
                )
            )

    @property
    def judged(self) -> npt.NDArray[np.bool_]:
        """(N,), whether there is a preference."""
        return ~np.isnan(self.values)

    def win_rate(self) -> WinRate:
        """The win rate of the model."""
        return win_rate(self.values)

    def reordered(self, prompts: Sequence[str]) -> Preferences:
        """The same preferences in the order of ``prompts``, which are the same prompts.

        Raises
        ------
        InvalidInputError
            If they are not.
        """
        compare_prompts(self.prompts, prompts, self.model, "prompts")
        refuse_duplicates(prompts, "prompts")
        place = {prompt: i for i, prompt in enumerate(self.prompts)}
        order = [place[prompt] for prompt in prompts]

        def taken(column: Vector | None) -> Vector | None:
            return None if column is None else column[order]

        return replace(
            self,
            prompts=tuple(prompts),
            values=self.values[order],
            model_lengths=taken(self.model_lengths),
            opponent_lengths=taken(self.opponent_lengths),
        )


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """A win rate, as AlpacaEval 2.0 reports it.

    Parameters
    ----------
    percent : float
        ``100 mean(value)``, over prompts with a verdict.
    standard_error : float
        ``100 sd(value) / sqrt(n)``, the sd with divisor n - 1; of prompts drawn from many like them. NaN for n = 1.
    num_wins, num_losses, num_ties : int
        Values above, below and at 0.5.
    num_missing : int
        Prompts without a verdict, left out of all the rest.
    """

    percent: float
    standard_error: float
    num_wins: int
    num_losses: int
    num_ties: int
    num_missing: int

    @property
    def num_judged(self) -> int:
        """Prompts with a verdict."""
        return self.num_wins + self.num_losses + self.num_ties

    @property
    def discrete_percent(self) -> float:
        """Percentage of wins, a tie counted as half of one."""
        return 100.0 * (self.num_wins + 0.5 * self.num_ties) / self.num_judged


def win_rate(values: Vector) -> WinRate:
    """Mean preference in percent with its standard error, and the counts behind it.

    Parameters
    ----------
    values : array, shape (N,)
        Preferences in [0, 1]; NaN where there is no verdict.

    Returns
    -------
    WinRate

    Raises
    ------
    InvalidInputError
        If no prompt has a verdict.
    """
    values = np.asarray(values, dtype=np.float64)
    judged = values[~np.isnan(values)]
    n = len(judged)
    if not n:
        raise InvalidInputError(
            explain(
                "preferences",
                got=f"{len(values)} prompts, none with a verdict",
                expected="one or more",
                hint="looking at the judge's faults",
            )
        )
    return WinRate(
        percent=100.0 * float(judged.mean()),
        standard_error=100.0 * float(judged.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan,
        num_wins=int((judged > 0.5).sum()),
        num_losses=int((judged < 0.5).sum()),
        num_ties=int((judged == 0.5).sum()),
        num_missing=len(values) - n,
    )


def require_same_prompts(tables: Sequence[Preferences]) -> None:
    """Refuse tables that are not about the same prompts in the same order.

    Raises
    ------
    InvalidInputError
        Naming the first prompts that one table has and another lacks.
    """
    first = tables[0]
    for other in tables[1:]:
        compare_prompts(first.prompts, other.prompts, first.model, other.model)
        if first.prompts != other.prompts:
            raise InvalidInputError(
                explain(
                    f"preferences of {first.model!r} and {other.model!r}",
                    got="the same prompts in different orders",
                    expected="one order",
                    hint="`second.reordered(first.prompts)`",
                )
            )


def compare_prompts(a: Sequence[str], b: Sequence[str], name_a: str, name_b: str) -> None:
    """Refuse two sets of prompts that differ, telling how.

    Raises
    ------
    InvalidInputError
    """
    only_a, only_b = (list(dict.fromkeys(p for p in x if p not in y)) for x, y in ((a, set(b)), (b, set(a))))
    if only_a or only_b:
        lacking = [
            f"{len(only)} of {name!r} alone, such as {', '.join(map(shown, only[:SHOWN]))}"
            for only, name in ((only_a, name_a), (only_b, name_b))
            if only
        ]
        raise InvalidInputError(
            explain(
                f"prompts of {name_a!r} and {name_b!r}",
                got="; ".join(lacking),
                expected="the same prompts",
                hint="outputs for one set of prompts, or restricting both to those that they share",
            )
        )


def refuse_duplicates(prompts: Sequence[str], what: str) -> None:
    """Refuse prompts that stand twice: which of the two is meant is unknown.

    Raises
    ------
    InvalidInputError
    """
    twice = [prompt for prompt, count in Counter(prompts).items() if count > 1]
    if twice:
        raise InvalidInputError(
            explain(
                what,
                got=f"{len(twice)} prompts more than once, such as {', '.join(map(shown, twice[:SHOWN]))}",
                expected="each prompt once",
                hint="removing the duplicates",
            )
        )


def shown(prompt: str) -> str:
    """A prompt as an error shows it."""
    return repr(prompt if len(prompt) <= 60 else f"{prompt[:57]}...")
