"""What the paper at small scale measures of its runs: the package's own evaluation, win rates, intervals over seeds.

A win rate without a judge. Each policy answers a held-out pair by drawing one of its two responses, and the annotator's
vote decides: a draw of the same response by both is a tie. With p and q the probabilities that the policy and its
opponent draw the chosen response, the expected preference for the policy is
``p (1 - q) + (p q + (1 - p)(1 - q)) / 2 = 1/2 + (p - q) / 2``; nothing is sampled. Where the truth is known, the
probability P that a judge prefers the chosen response stands for the vote: ``1/2 + (p - q)(2 P - 1) / 2``. It is no
judged generation: neither policy writes anything of its own.

A policy draws in one of two ways. By resampling: the two responses are taken as what the SFT policy came up with, which
draws either half of the time, and the policy in proportion to its probability over the SFT policy's, so that p is
``sigma(logratio_diff)``. Or by its own probabilities alone, ``sigma(log pi(chosen) - log pi(rejected))``: of responses
of many tokens that is nearly always the shorter, whatever was learned.
"""

# N pairs, S seeds, K levels of an attribute.

from __future__ import annotations

import math
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import numpy.typing as npt
import torch
from _small_scale_runs import TRUE_CV, Key, folder_of
from scipy.special import expit
from scipy.stats import t as student

from mixlogit_align import MixedLogit
from mixlogit_align.alignment.data import PreferenceData, load_data
from mixlogit_align.alignment.evaluation import (
    Average,
    Estimate,
    Evaluation,
    Gains,
    PairTable,
    evaluate_run,
    read_strength,
    run_pairs,
    with_strength,
)
from mixlogit_align.alignment.settings import load_config
from mixlogit_align.alignment.winrate import Preferences, fit_length_control
from mixlogit_align.report.files import Run, read_run

Vector = npt.NDArray[np.float64]

UNPENALISED = 1e4  # scikit-learn's C, the largest of AlpacaEval's
METRICS = ("margin/sum", "accuracy", "loglik")
WORDS = SHOWS, SHOWS_NOT, UNKNOWN = "shows", "does not show", "cannot be told"


def draws(table: PairTable, *, resampled: bool) -> tuple[Vector, Vector]:
    """(N,) probabilities that the policy and its reference draw the chosen response of a pair, see above."""
    assert table.logratio_diff is not None
    if resampled:
        return expit(table.logratio_diff), np.full(len(table), 0.5)
    assert table.policy_chosen is not None
    assert table.policy_rejected is not None
    assert table.reference_chosen is not None
    assert table.reference_rejected is not None
    return expit(table.policy_chosen - table.policy_rejected), expit(table.reference_chosen - table.reference_rejected)


def preferences(table: PairTable, prefers_chosen: Vector | None = None, *, resampled: bool = True) -> Preferences:
    """The policy against its reference, pair by pair, with expected lengths in tokens.

    Parameters
    ----------
    table : PairTable
        With the log-probabilities of both, and lengths.
    prefers_chosen : array, shape (N,), optional
        Probability that the judge prefers the chosen response; 1, the vote itself, where not given.
    resampled : bool
        How both draw.
    """
    assert table.chosen_tokens is not None
    assert table.rejected_tokens is not None
    p, q = draws(table, resampled=resampled)
    sign = 1.0 if prefers_chosen is None else 2.0 * prefers_chosen - 1.0
    chosen, rejected = table.chosen_tokens, table.rejected_tokens
    return Preferences(
        model=table.name,
        opponent="SFT",
        prompts=[str(pair) for pair in table.pair_ids.tolist()],
        values=0.5 + (p - q) * sign / 2.0,
        model_lengths=p * chosen + (1.0 - p) * rejected,
        opponent_lengths=q * chosen + (1.0 - q) * rejected,
    )


def win_rate(table: PairTable, prefers_chosen: Vector | None = None, *, resampled: bool = True) -> float:
    """Win rate against the reference, in percent."""
    return 100.0 * float(preferences(table, prefers_chosen, resampled=resampled).values.mean())


def controlled_win_rate(table: PairTable) -> float:
    """AlpacaEval's length-controlled win rate by resampled draws, in percent; their expected lengths are in tokens.

    In its minimal form, see `fit_length_control`, without penalty. Where both responses of every pair are equally long
    there is nothing to control: it is the win rate.
    """
    assert table.chosen_tokens is not None
    if np.array_equal(table.chosen_tokens, np.asarray(table.rejected_tokens)):
        return win_rate(table)
    return fit_length_control(preferences(table), inverse_penalty=UNPENALISED).percent


def best_win_rate(table: PairTable, prefers_chosen: Vector | None = None) -> float:
    """What a policy would reach that always draws the better response, against resampled draws, in percent.

    Better is what most held-out votes on a pair prefer (ties: either), which are then also the judges; where the
    truth is known, what it prefers.
    """
    if prefers_chosen is not None:
        return 100.0 * (0.5 + float(np.abs(2.0 * prefers_chosen - 1.0).mean()) / 4.0)
    assert table.items is not None
    assert table.chosen_first is not None
    shown = list(zip(table.items, table.chosen_first.tolist(), strict=True))
    votes = Counter(shown)
    lead = [np.sign(votes[item, first] - votes[item, not first]) for item, first in shown]
    return 100.0 * (0.5 + float(np.mean(lead)) / 4.0)


def excess_variance(means: Sequence[float], errors: Sequence[float]) -> float:
    """Variance of K true means beyond their standard errors: DerSimonian and Laird's moment estimate, not cut at 0."""
    m, w = np.asarray(means), 1.0 / np.square(errors)
    q = float(w @ np.square(m - (w @ m) / w.sum()))
    return (q - (len(m) - 1)) / float(w.sum() - np.square(w).sum() / w.sum())


def over_seeds(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean and Student's interval of S seeds, which differ in data, people, first weights and order.

    With three seeds the interval is 2.5 standard deviations to each side; NaN with one.
    """
    mean, num = statistics.fmean(values), len(values)
    if num < 2:
        return Estimate(value=mean, standard_error=math.nan, lower=math.nan, upper=math.nan)
    error = statistics.stdev(values) / math.sqrt(num)
    half = float(student.ppf((1.0 + level) / 2.0, num - 1)) * error
    return Estimate(value=mean, standard_error=error, lower=mean - half, upper=mean + half)


def verdict(estimate: Estimate, least: float) -> str:
    """What an interval says of the claim that a quantity is above 0.

    "shows": all of it is above 0. "does not show": all of it is below ``least``, the smallest value that would matter.
    Else "cannot be told".
    """
    if estimate.lower > 0.0:
        return SHOWS
    return SHOWS_NOT if estimate.upper < least else UNKNOWN


# --- what is measured of a run ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One preference run.

    Parameters
    ----------
    run : Run
    table : PairTable
        Its held-out pairs; choice probabilities by the exact rule of the family, not by the draws it was trained with.
    evaluation : Evaluation
    gains : Gains or None
        Over DPO; None of DPO.
    win, controlled, own_win, best : float
        Win rates against the SFT policy by held-out votes, percent: by resampled draws, plain and length-controlled; by
        draws from own probabilities; and the best possible one.
    true_win, true_best : float or None
        The same by the true probabilities, where they are known.
    """

    run: Run
    table: PairTable
    evaluation: Evaluation
    gains: Gains | None
    win: float
    controlled: float
    own_win: float
    best: float
    true_win: float | None
    true_best: float | None

    @property
    def strength(self) -> dict[str, Any]:
        assert self.run.strength is not None
        return dict(self.run.strength)

    @property
    def loglik(self) -> float:
        assert self.table.loglik is not None
        return float(self.table.loglik.mean())

    def mean(self, metric: str) -> Estimate:
        """Over all pairs."""
        return self.evaluation.overall.estimates[metric]

    def variance(self, when: str = "end") -> float:
        """Of the strength, at the end or at the start."""
        record = self.strength if when == "end" else self.strength["initial"]
        return float(record["sd"] ** 2)


Study = dict[Key, Measured]


@lru_cache(maxsize=8)
def _data(config_path: Path) -> PreferenceData:
    return load_data(load_config(config_path).data)


def measure(runs: Path, key: Key) -> Measured:
    """Evaluate a run, and against DPO of its data and seed; results stay in its folder, for figures."""
    data, method, seed = key
    folder = folder_of(runs, *key)
    dpo = None if method == "DPO" else folder_of(runs, data, "DPO", seed)
    found = evaluate_run(folder, dpo, metrics=METRICS)
    run = read_run(folder)
    table = with_strength(run_pairs(folder), read_strength(folder / "strength.json"))
    true_win = true_best = None
    if data in TRUE_CV:
        truth = _data(folder_of(runs, data, "SFT", seed) / "config.yaml").truth
        assert truth is not None
        utility_diff = torch.tensor([truth.utility_diff[pair] for pair in table.pair_ids.tolist()], dtype=torch.float64)
        prefers_chosen = MixedLogit(utility_diff, truth.mixing()).log_prob(torch.ones_like(utility_diff)).exp().numpy()
        true_win, true_best = win_rate(table, prefers_chosen), best_win_rate(table, prefers_chosen)
    return Measured(
        run=run, table=table, evaluation=found.evaluation, gains=found.gains, win=win_rate(table),
        controlled=controlled_win_rate(table), own_win=win_rate(table, resampled=False), best=best_win_rate(table),
        true_win=true_win, true_best=true_best,
    )  # fmt: skip


def cells(averages: Iterable[Average], attribute: str) -> list[Average]:
    """The levels of an attribute that are large enough."""
    return [average for average in averages if average.attribute == attribute and average.kind == "cell"]


def one(averages: Iterable[Average], attribute: str, kind: str) -> Average:
    """The micro or macro average of an attribute."""
    return next(average for average in averages if average.attribute == attribute and average.kind == kind)
