"""The length-controlled win rate: preferences as a GLM has them when both responses are equally long."""

# N prompts.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_expit

from mixlogit_align.alignment.winrate.preferences import Preferences, Vector
from mixlogit_align.errors import InvalidInputError, explain

FOLDS = 5
INVERSE_PENALTIES = np.logspace(-4, 4, 10)  # scikit-learn's for `LogisticRegressionCV`, which AlpacaEval takes
# Of liblinear, relative to its gradient at 0; AlpacaEval's 1e-4 leaves digits to the order of the rows.
_TOLERANCE = 1e-8
_ITERATIONS = 100_000
_LEAST = 2 * FOLDS


@dataclass(frozen=True, kw_only=True)
class LengthWeights:
    """Weights of the GLM for one model against one opponent.

    Parameters
    ----------
    quality : float
        Log-odds of the model against the opponent at equal lengths, on a prompt of difficulty 0.
    length : float
        Of ``tanh((opponent's length - model's) / sd)``; negative where the judge favours length.
    difficulty : float or None
        Of the instruction's difficulty; None in the minimal form.
    """

    quality: float
    length: float
    difficulty: float | None = None

    def preferences(self, difficulty: Vector) -> Vector:
        """Length-controlled preferences ``sigma(quality + difficulty weight * difficulty)``.

        Parameters
        ----------
        difficulty : array, shape (N,)
            Of each instruction. In the minimal form, which has no such weight, it does not enter.

        Returns
        -------
        array, shape (N,)
        """
        preferences: Vector = expit(self.quality + (self.difficulty or 0.0) * np.asarray(difficulty, dtype=np.float64))
        return preferences


@dataclass(frozen=True, kw_only=True, eq=False)
class LengthControl:
    """A fitted GLM and what it says of every prompt.

    Parameters
    ----------
    weights : LengthWeights
    preferences : array, shape (N,)
        Length-controlled, of all prompts, those without a verdict too.
    inverse_penalty : float
        Of the fit: scikit-learn's C.
    """

    weights: LengthWeights
    preferences: Vector
    inverse_penalty: float

    @property
    def percent(self) -> float:
        """The length-controlled win rate."""
        return 100.0 * float(self.preferences.mean())

    @property
    def spread_error(self) -> float:
        """AlpacaEval's ``lc_standard_error``: ``100 sd / sqrt(N)`` of the length-controlled preferences.

        It takes the weights as known, so it is far too small as an uncertainty of `percent`, and 0 in the minimal
        form: `bootstrap_win_rates` refits.
        """
        return 100.0 * float(self.preferences.std(ddof=1)) / math.sqrt(len(self.preferences))

    def require_weight(self) -> None:
        """Refuse a minimal form of which the penalty has left nothing: 50 % in every replication, which is no finding.

        An L1 penalty sets a weight that it outweighs to exactly 0.

        Raises
        ------
        InvalidInputError
        """
        if self.weights.quality == 0.0 and self.weights.difficulty is None:
            raise InvalidInputError(
                explain(
                    "win rate at equal lengths",
                    got="one not told apart from 50 %: the penalty left nothing of the preference "
                    f"(C={self.inverse_penalty:.4g}, by cross-validation)",
                    expected="a weight other than 0",
                    hint="the plain win rate, or more prompts",
                )
            )


def fit_length_control(
    table: Preferences,
    difficulty: Vector | Sequence[float] | None = None,
    *,
    inverse_penalty: float | None = None,
    frequencies: Vector | None = None,
) -> LengthControl:
    """Fit the GLM of length-controlled AlpacaEval (Dubois, Galambosi, Liang and Hashimoto 2024).

    The full form is ``P(model preferred on prompt i) = sigma(q + l tanh(d_i / sd(d)) + w z_i)`` with ``d_i`` the
    opponent's length less the model's in characters and ``z_i`` the difficulty of the instruction; the
    length-controlled preference leaves out the middle term. As there, the weights maximise the log-likelihood of the
    preferences, taken as probabilities, with an L1 penalty ``(|q| + |l| + |w|) / C`` whose C is one of ten between 1e-4
    and 1e4, by 5-fold cross-validated log loss (prompt i in fold i mod 5).

    Without difficulties the minimal form ``sigma(q + l tanh(d_i / sd(d)))`` is fitted. The full form is ill-defined on
    prompts of one's own: difficulties are parameters of a joint fit over the responses of many models to the same
    instructions. From one model's N preferences, N difficulties and their weight cannot be told apart (each difficulty
    would fit its own prompt's preference exactly, and their scale and sign trade against w), so they are either given
    or left out. The minimal form gives every prompt the same preference, and moves more where length and difficulty go
    together.

    AlpacaEval also adds, at weight 0.1, its stored judgments of the baseline told to be brief or verbose, without the
    quality term. They pull the length weight to a value typical of the judge and are not included here: where lengths
    hardly overlap (a model that always answers in one line), this fit takes all of a difference for length or all for
    quality, and AlpacaEval's does not.

    Parameters
    ----------
    table : Preferences
        With lengths. Prompts without a verdict do not enter the likelihood, but are predicted.
    difficulty : array, shape (N,), optional
        Of each prompt; the minimal form without it.
    inverse_penalty : float, optional
        C; by cross-validation where not given.
    frequencies : array, shape (N,), optional
        How often each prompt counts; once where not given. Those of a bootstrap need ``inverse_penalty``: one prompt
        would stand in several folds.

    Returns
    -------
    LengthControl
        With frequencies, its preferences are repeated accordingly.

    Raises
    ------
    InvalidInputError
        If there are no lengths, fewer than 10 prompts with a verdict, or all differences of length are equal.
    """
    lengths, z = _checked(table, difficulty)
    counts = np.ones(len(lengths)) if frequencies is None else np.asarray(frequencies, dtype=np.float64)
    mean = np.average(lengths, weights=counts)
    sd = math.sqrt(float(counts @ (lengths - mean) ** 2) / (counts.sum() - 1.0))
    if not sd > 0.0:
        raise InvalidInputError(
            explain(
                f"lengths of {table.model!r} and {table.opponent!r}",
                got=f"the same difference ({mean:g} characters) on every prompt",
                expected="differences that vary: without, length and quality cannot be told apart",
                hint="the plain win rate",
            )
        )
    columns = [np.tanh(lengths / sd), np.ones(len(lengths)), *([] if z is None else [z])]
    features, judged = np.stack(columns, axis=1), table.judged & (counts > 0.0)
    x, y, n = features[judged], table.values[judged], counts[judged]
    if inverse_penalty is None:
        assert frequencies is None, "frequencies of a bootstrap need an inverse_penalty"
        inverse_penalty = _cross_validated(x, y)
    length, quality, *rest = _fit(x, y, n, inverse_penalty)
    weights = LengthWeights(quality=quality, length=length, difficulty=rest[0] if rest else None)
    every = weights.preferences(np.zeros(len(lengths)) if z is None else z)
    if frequencies is not None:
        every = np.repeat(every, counts.astype(np.int64))
    return LengthControl(weights=weights, preferences=every, inverse_penalty=inverse_penalty)


def _checked(table: Preferences, difficulty: Vector | Sequence[float] | None) -> tuple[Vector, Vector | None]:
    """Opponent's length less the model's (N,), and the difficulties (N,)."""
    if table.model_lengths is None or table.opponent_lengths is None:
        raise InvalidInputError(
            explain(
                f"preferences of {table.model!r}",
                got="no lengths of the responses",
                expected="the characters of both responses to each prompt",
                hint="`Preferences(..., model_lengths=..., opponent_lengths=...)`",
            )
        )
    num_judged = int(table.judged.sum())
    if num_judged < _LEAST:
        raise InvalidInputError(
            explain(
                f"preferences of {table.model!r}",
                got=f"{num_judged} prompts with a verdict",
                expected=f"{_LEAST} or more for a length-controlled win rate",
                hint="the plain win rate, or more prompts",
            )
        )
    lengths = table.opponent_lengths - table.model_lengths
    z = None if difficulty is None else np.asarray(difficulty, dtype=np.float64)
    if z is not None and (z.shape != lengths.shape or not np.isfinite(z).all()):
        raise InvalidInputError(
            explain(
                "difficulty",
                got=f"shape {z.shape}, {int((~np.isfinite(z)).sum())} not finite",
                expected=f"one finite number a prompt, ({len(lengths)},)",
                hint="no difficulties, for the minimal form",
            )
        )
    return lengths, z


def _fit(x: Vector, y: Vector, counts: Vector, inverse_penalty: float) -> list[float]:
    """Weights (P,) of features (N, P) for probabilities (N,): each row stands once as a win and once as a loss."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=inverse_penalty, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=123,
        tol=_TOLERANCE, max_iter=_ITERATIONS,
    )  # fmt: skip
    labels, shares = np.repeat([1, 0], len(y)), np.concatenate([counts * y, counts * (1.0 - y)])
    if not (shares[: len(y)].any() and shares[len(y) :].any()):
        raise InvalidInputError(
            explain(
                "preferences",
                got="the same side certain to win on every prompt",
                expected="some preference for either side",
                hint="the plain win rate: there is nothing that length could explain",
            )
        )
    model.fit(np.concatenate([x, x]), labels, sample_weight=shares)
    return [float(weight) for weight in model.coef_[0]]


def _cross_validated(x: Vector, y: Vector) -> float:
    """The inverse penalty of the lowest held-out log loss, the mean of the folds' means; the smaller one of equals."""
    folds = np.arange(len(y)) % FOLDS

    def loss(inverse_penalty: float) -> float:
        losses = []
        for fold in range(FOLDS):
            train, test = folds != fold, folds == fold
            utility = x[test] @ _fit(x[train], y[train], np.ones(int(train.sum())), inverse_penalty)
            losses.append(-(y[test] * log_expit(utility) + (1.0 - y[test]) * log_expit(-utility)).mean())
        return float(np.mean(losses))

    return float(min(INVERSE_PENALTIES, key=loss))
