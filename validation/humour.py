"""One real case: how strongly a difference in funniness score shows in votes, and how much that strength varies.

    MIXLOGIT_DATA=FOLDER python validation/humour.py [--out DIR]

28,118 pairs of short texts, 113,638 votes, no annotator ids (Simpson, Do Dinh, Miller and Gurevych 2019). The score of
a text is its published win rate, 2 * wins / votes - 1. A vote for the text with the higher score has probability
E sigma(strength * score difference). Two models of where strength varies: a fresh strength for every vote, and one
strength for all votes on a pair. FOLDER holds humour_pairs/. Writes humour.md and humour.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _report import REPORTS, Report, data_folder
from rich.progress import track

from mixlogit_align import MixedLogit, PanelMixedLogit
from mixlogit_align.econometrics import ChoiceData, MixedLogitModel, MixedLogitResult

FAMILIES = ("normal", "lognormal", "gamma", "uniform", "triangular")
# The same terms, summed in another order.
SAME = 1e-12


def read_pairs(folder: Path) -> pd.DataFrame:
    """One row a pair: published and leave-pair-out score differences, votes for the first and second text.

    The published score of a text counts the votes on this very pair; the leave-pair-out score does not. Both are
    multiples of 0.001, as published.
    """
    items = pd.read_csv(folder / "humour_pairs" / "items.csv.gz")
    pairs = pd.read_csv(folder / "humour_pairs" / "pair_counts.csv.gz")
    if not (items["item"] == np.arange(len(items))).all():
        raise ValueError("items.csv.gz: expected items numbered 0, 1, 2, ... in order; try the original file")
    a, b, n_a, n_b = (pairs[column].to_numpy() for column in ("item_a", "item_b", "n_a", "n_b"))
    size = len(items)
    wins = np.bincount(a, n_a, size) + np.bincount(b, n_b, size)
    votes = np.bincount(a, n_a + n_b, size) + np.bincount(b, n_a + n_b, size)
    score = items["published_score"].to_numpy()
    without_a = 2 * (wins[a] - n_a) / (votes[a] - n_a - n_b) - 1
    without_b = 2 * (wins[b] - n_b) / (votes[b] - n_a - n_b) - 1
    return pd.DataFrame(
        {
            "published": np.round(score[a] - score[b], 3),
            "leave-pair-out": np.round(np.round(without_a, 3) - np.round(without_b, 3), 3),
            "n_a": n_a,
            "n_b": n_b,
        }
    )


def by_vote(pairs: pd.DataFrame, score: str) -> ChoiceData:
    """A fresh strength for every vote: sum over pairs of n_a log P(a) + n_b log P(b), by distinct difference."""
    x = pairs[score].to_numpy()
    differences = np.concatenate([x, -x])  # in favour of the text voted for
    counts = pd.Series(np.concatenate([pairs["n_a"], pairs["n_b"]])).groupby(differences).sum()
    counts = counts[counts > 0]
    return _pairs_as_data(counts.index.to_numpy()[:, None], np.ones((len(counts), 1)), counts.to_numpy(), panel=False)


def by_pair(pairs: pd.DataFrame, score: str) -> ChoiceData:
    """One strength for all votes on a pair: a panel, by distinct (difference, votes for the higher, for the lower)."""
    x = pairs[score].to_numpy()
    first = x >= 0
    kinds = pd.DataFrame(
        {
            "x": np.abs(x),
            "higher": np.where(first, pairs["n_a"], pairs["n_b"]),
            "lower": np.where(first, pairs["n_b"], pairs["n_a"]),
        }
    )
    counts = kinds.value_counts(sort=False).reset_index(name="pairs")
    total = (counts["higher"] + counts["lower"]).to_numpy()
    position = np.arange(total.max())
    chosen = (position < counts["higher"].to_numpy()[:, None]).astype(float)
    chosen[position >= total[:, None]] = np.nan
    x = np.broadcast_to(counts["x"].to_numpy()[:, None], chosen.shape)
    return _pairs_as_data(x, chosen, counts["pairs"].to_numpy(), panel=True)


def _pairs_as_data(x: np.ndarray, chosen: np.ndarray, weights: np.ndarray, *, panel: bool) -> ChoiceData:
    """Differences, choices (NaN: none) of shape (N, T) and frequencies (N,) as long data: the other text is 0."""
    individual, situation = np.nonzero(~np.isnan(chosen))
    base = pd.DataFrame({"individual": individual, "situation": situation, "weight": weights[individual]})
    value, choice = x[individual, situation], chosen[individual, situation]
    if not panel:
        base["situation"] = base["individual"]
    long = pd.concat(
        [
            base.assign(alternative="lower", score_difference=0.0, choice=1 - choice),
            base.assign(alternative="higher", score_difference=value, choice=choice),
        ]
    )
    return ChoiceData.from_long(
        long.drop(columns=[] if panel else "individual"),
        choice="choice",
        alternative="alternative",
        situation="situation",
        individual="individual" if panel else None,
        variables=["score_difference"],
        weights="weight",
    )


def direct_loglik(pairs: pd.DataFrame, score: str, mixing: Any, *, by_pair: bool) -> float:
    """The same log-likelihood from all pairs, without pooling equal ones."""
    x, n_a, n_b = (torch.tensor(pairs[column].to_numpy(dtype=np.float64)) for column in (score, "n_a", "n_b"))
    total = 0.0
    for part in torch.arange(len(x)).split(2048):
        if by_pair:
            position = torch.arange(int((n_a + n_b).max()))
            votes = (position < n_a[part, None]).to(torch.float64)
            observed = position < (n_a + n_b)[part, None]
            panel = PanelMixedLogit(x[part, None].expand(votes.shape), mixing, observed=observed)
            total += float(panel.log_prob(votes).sum())
        else:
            choice = MixedLogit(x[part], mixing)
            total += float(
                (n_a[part] * choice.log_prob(torch.ones(())) + n_b[part] * choice.log_prob(torch.zeros(()))).sum()
            )
    return total


def study(pairs: pd.DataFrame, score: str) -> list[tuple[str, str, MixedLogitResult]]:
    """(unit, family, result) for both units and all families."""
    found = []
    for unit, data in (("vote", by_vote(pairs, score)), ("pair", by_pair(pairs, score))):
        for family in FAMILIES:
            found.append((unit, family, MixedLogitModel(data, random={"score_difference": family}).fit()))
    return found


CAVEATS = """
- The published score of a text was computed from these very votes, those on the pair at hand included. That makes the
  score difference look stronger than it is. The leave-pair-out score repairs the direct part of this: every pair is
  explained by votes on other pairs only. Its texts are still scored with error (some 55 votes each), which biases the
  strength towards 0, and error in the scores can pass for heterogeneity of strength.
- There are no annotator ids. "Fresh strength for every vote" and "one strength for all votes on a pair" are two
  models of the same votes; neither says how much people differ. Heterogeneity by pair may be heterogeneity of texts.
- At most five votes a pair: the spread by pair comes from agreement among few votes, the spread by vote from the
  shape of the curve alone.
- Log-likelihoods are of the votes in order, without binomial coefficients, so all of them compare with each other.
  Twice the gain over a fixed strength is, without heterogeneity, 0 or chi-squared with one degree, half and half.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPORTS)
    options = parser.parse_args()
    pairs = read_pairs(data_folder("humour_pairs").parent)
    votes = int((pairs["n_a"] + pairs["n_b"]).sum())
    report = Report(
        "humour",
        "Humour pairs: the strength of a score difference",
        f"{len(pairs)} pairs, {votes} votes. P(vote for the higher score) = E sigma(strength * score difference).",
        "pyro-ppl",
        "scipy",
        "pandas",
    )
    report.section("What these figures are not", CAVEATS.strip())
    for score in track(("published", "leave-pair-out"), "fitting"):
        fits = study(pairs, score)
        fixed = fits[0][2].fixed
        report.section(f"Score: {score}")
        rows: list[list[Any]] = [
            ["any", "fixed", fixed.estimate, fixed.std_error, 0.0, "", f"{fixed.loglik:.2f}", 0.0, ""]
        ]
        for unit, family, fit in fits:
            (mean, sd), (mean_error, sd_error) = fit.moments.values(), fit.moment_std_errors.values()
            estimates = ", ".join(f"{name.split('.')[1]} {value:.4f}" for name, value in fit.params.items())
            gain = fit.loglik - fit.fixed.loglik
            rows.append([unit, family, mean, mean_error, sd, sd_error, f"{fit.loglik:.2f}", gain, estimates])
        report.table(
            score,
            f"Strength by {score} score; log-likelihood of guessing {-votes * np.log(2):.2f}",
            ["strength varies by", "mixing", "mean", "(s.e.)", "sd", "(s.e.)", "log-likelihood", "gain", "estimates"],
            rows,
        )
        report.claim(
            score, "every fit converged", sum(fit.converged for *_, fit in fits), all(f.converged for *_, f in fits)
        )
        worst = max(abs(fit.integration.error) for *_, fit in fits)
        report.claim(score, "integration error of every log-likelihood below 1e-6", worst, worst < 1e-6)
        apart = 0.0
        for unit, family, fit in fits:
            if family in ("normal", "lognormal"):
                direct = direct_loglik(pairs, score, fit.mixing, by_pair=unit == "pair")
                apart = max(apart, abs(direct / fit.loglik - 1))
        report.claim(score, "pooling equal pairs changes no log-likelihood (relative)", apart, apart <= SAME)
        by_pair_fits = [fit for unit, _, fit in fits if unit == "pair"]
        boundary = sum(fit.at_boundary for fit in by_pair_fits)
        most = max(fit.loglik - fit.fixed.loglik for fit in by_pair_fits)
        report.text(
            f"With the {score} score, {boundary} of {len(by_pair_fits)} families find no heterogeneity between pairs; "
            f"the largest gain over a fixed strength is {most:.1f} points of log-likelihood."
        )
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
