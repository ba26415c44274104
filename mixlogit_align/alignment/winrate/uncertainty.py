"""How sure win rates and their differences are: the paired bootstrap with refit, and the sign-flip test."""

# N prompts, M models, B replications.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mixlogit_align.alignment.winrate.length_control import fit_length_control
from mixlogit_align.alignment.winrate.preferences import Preferences, Vector, require_same_prompts
from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.inference import SignFlip, bootstrap, sign_flip_test


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number in percent (or percentage points) and its uncertainty.

    Parameters
    ----------
    value : float
    standard_error : float
        The sd of the replications.
    lower, upper : float
        Ends of the percentile interval.
    """

    value: float
    standard_error: float
    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True, eq=False)
class BootstrapWinRates:
    """Win rates of several models on the same resampled prompts.

    Parameters
    ----------
    models : tuple of str
        M.
    percent : array, shape (M,)
        On the data as they are.
    replications : array, shape (B - num_failed, M)
    num_failed : int
        Replications on which a model's length control could not be fitted.
    """

    models: tuple[str, ...]
    percent: Vector
    replications: Vector
    num_failed: int

    def win_rate(self, model: str, level: float = 0.95) -> Estimate:
        """The win rate of a model, with its percentile interval."""
        i = self._place(model)
        return _estimate(float(self.percent[i]), self.replications[:, i], level)

    def difference(self, model: str, other: str, level: float = 0.95) -> Estimate:
        """The win rate of a model less another's: paired, for both are of the same prompts in each replication."""
        i, j = self._place(model), self._place(other)
        value = float(self.percent[i] - self.percent[j])
        return _estimate(value, self.replications[:, i] - self.replications[:, j], level)

    def _place(self, model: str) -> int:
        if model not in self.models:
            raise InvalidInputError(
                explain("model", got=repr(model), expected=f"one of {', '.join(self.models)}", hint=self.models[0])
            )
        return self.models.index(model)


def _estimate(value: float, replications: Vector, level: float) -> Estimate:
    if not 0.0 < level < 1.0:
        raise InvalidInputError(explain("level", got=level, expected="between 0 and 1", hint="0.95"))
    lower, upper = np.quantile(replications, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Estimate(value=value, standard_error=float(replications.std(ddof=1)), lower=float(lower), upper=float(upper))


def bootstrap_win_rates(
    tables: Sequence[Preferences],
    *,
    length_control: bool = False,
    difficulty: Vector | Sequence[float] | None = None,
    inverse_penalty: float | None = None,
    num_replications: int = 1000,
    seed: int = 0,
) -> BootstrapWinRates:
    """Resample the prompts of several models' preferences together.

    With length control the GLM is refitted on every replication, the scale of the lengths included; its penalty is the
    one that cross-validation chose on the data, for in a replication one prompt would stand in several folds. On few
    prompts, where that choice varies, intervals come out somewhat narrow: ``inverse_penalty=1e4`` all but removes the
    penalty, and with it a pull of the rate towards 50 %.

    Parameters
    ----------
    tables : sequence of Preferences
        M, of the same prompts in the same order; prompts without a verdict are left out model by model.
    length_control : bool
        Length-controlled win rates, see `fit_length_control`.
    difficulty : array, shape (N,), optional
        For length control in its full form.
    inverse_penalty : float, optional
        For length control; by cross-validation, model by model, where not given.
    num_replications, seed : int
        See `mixlogit_align.inference.bootstrap_weights`.

    Returns
    -------
    BootstrapWinRates

    Raises
    ------
    InvalidInputError
        If the prompts differ, two models have one name, difficulties or a penalty come without length control, or as
        `fit_length_control`.
    ConvergenceError
        If more than half of the replications fail.
    """
    models = tuple(table.model for table in tables)
    if not models or len(set(models)) < len(models):
        raise InvalidInputError(
            explain("tables", got=f"models {list(models)}", expected="one or more, each once", hint="other names")
        )
    if not (length_control or (difficulty is None and inverse_penalty is None)):
        raise InvalidInputError(
            explain(
                "difficulty, inverse_penalty",
                got="one of them",
                expected="neither",
                hint="length_control=True to use them",
            )
        )
    require_same_prompts(tables)
    fits = (
        [fit_length_control(table, difficulty, inverse_penalty=inverse_penalty) for table in tables]
        if length_control
        else []
    )

    def rates(counts: Vector) -> list[float]:
        if not length_control:
            return [
                100.0 * float(np.average(table.values[table.judged], weights=counts[table.judged])) for table in tables
            ]
        return [
            fit_length_control(table, difficulty, inverse_penalty=fit.inverse_penalty, frequencies=counts).percent
            for table, fit in zip(tables, fits, strict=True)
        ]

    def refit(weights: torch.Tensor) -> torch.Tensor | None:
        counts = weights.numpy()
        if not all(counts[table.judged].any() for table in tables):
            return None
        try:
            return torch.tensor(rates(counts), dtype=torch.float64)
        except InvalidInputError:  # this replication has one length, or one winner, only
            return None

    percent = [fit.percent for fit in fits] or [table.win_rate().percent for table in tables]
    found = bootstrap(refit, torch.ones(len(tables[0].prompts)), num_replications=num_replications, seed=seed)
    return BootstrapWinRates(
        models=models,
        percent=np.asarray(percent),
        replications=found.estimates.numpy(),
        num_failed=found.num_failed,
    )


@dataclass(frozen=True, kw_only=True)
class SignFlipComparison:
    """A sign-flip test between two models, or of one against its opponent.

    Parameters
    ----------
    difference : float
        Percentage points.
    test : SignFlip
    num_left_out : int
        Prompts without a verdict for either model.
    """

    difference: float
    test: SignFlip
    num_left_out: int


def sign_flip(
    table: Preferences, other: Preferences | None = None, *, num_permutations: int = 100_000, seed: int = 0
) -> SignFlipComparison:
    """Test a win rate against another model's on the same prompts, or against 50 %.

    Of the differences ``value - other's value`` prompt by prompt, or ``value - 1/2``; see
    `mixlogit_align.inference.sign_flip_test`. It is about plain preferences: a length-controlled win rate is no mean of
    values that could be flipped one by one.

    Parameters
    ----------
    table : Preferences
    other : Preferences, optional
        Of the same prompts in the same order.
    num_permutations, seed : int

    Returns
    -------
    SignFlipComparison

    Raises
    ------
    InvalidInputError
        If the prompts differ, or there is no prompt with a verdict for both.
    """
    if other is not None:
        require_same_prompts([table, other])
    differences = table.values - (0.5 if other is None else other.values)
    known = differences[~np.isnan(differences)]
    test = sign_flip_test(torch.as_tensor(known), num_permutations=num_permutations, seed=seed)
    return SignFlipComparison(difference=100.0 * test.mean, test=test, num_left_out=len(differences) - len(known))
