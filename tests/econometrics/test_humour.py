"""The real case: votes on pairs of texts, pooled, against the same votes one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pandas as pd
import pyro.distributions as dist
import pytest
import torch

from mixlogit_align import MixedLogit
from mixlogit_align.econometrics import MixedLogitModel


@pytest.fixture
def pairs(shared_data: Path, study: Callable[[str], ModuleType]) -> pd.DataFrame:
    return study("humour").read_pairs(shared_data)


def test_scores_and_votes(pairs: pd.DataFrame) -> None:
    assert len(pairs) == 28_118
    assert int(pairs[["n_a", "n_b"]].to_numpy().sum()) == 113_638
    # a text's own votes are in its published score: leaving them out brings the scores nearer to each other
    towards = ((pairs["n_a"] - pairs["n_b"]) * pairs["published"]).sum()
    without = ((pairs["n_a"] - pairs["n_b"]) * pairs["leave-pair-out"]).sum()
    assert 0 < without < towards


@pytest.mark.parametrize("unit", ["by_vote", "by_pair"])
def test_pooled_votes_have_the_likelihood_of_all_votes(
    pairs: pd.DataFrame, study: Callable[[str], ModuleType], unit: str
) -> None:
    humour = study("humour")
    mixing = dist.Gamma(torch.tensor(3.0, dtype=torch.float64), 1.1)
    some = pairs.head(3000)
    data = getattr(humour, unit)(some, "published")
    pooled = (data.weights * MixedLogitModel(data, random={"score_difference": "gamma"}).loglik(mixing)).sum()
    direct = humour.direct_loglik(some, "published", mixing, by_pair=unit == "by_pair")
    assert pooled.item() == pytest.approx(direct, rel=1e-12)


def test_heterogeneity_of_the_votes(pairs: pd.DataFrame, study: Callable[[str], ModuleType]) -> None:
    """A fresh strength for every vote: weighted counts n_a log P(a) + n_b log P(b), all votes, gamma and fixed."""
    humour = study("humour")
    fit = MixedLogitModel(humour.by_vote(pairs, "published"), random={"score_difference": "gamma"}).fit()
    x, n_a, n_b = (torch.tensor(pairs[c].to_numpy(), dtype=torch.float64) for c in ("published", "n_a", "n_b"))
    choice = MixedLogit(x, fit.mixing)
    direct = (n_a * choice.log_prob(torch.ones(())) + n_b * choice.log_prob(torch.zeros(()))).sum()
    assert fit.loglik == pytest.approx(direct.item(), rel=1e-11)
    assert fit.converged
    assert fit.n_individuals == 113_638
    assert fit.loglik >= fit.fixed.loglik
    assert fit.fixed.estimate > 20 * fit.fixed.std_error  # funnier texts win
