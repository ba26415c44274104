"""Tables of pairs with choice probabilities; what runs and policies say of their pairs is in test_evaluation.py."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import torch

from mixlogit_align.alignment.evaluation import PairTable, read_pairs, with_strength, write_pairs


def test_a_strength_for_a_table_from_a_file(tmp_path):
    """Columns of a file are read-only, of which torch warns where it shares their memory; warnings are errors here."""
    table = PairTable(name="policy", pair_ids=np.arange(3), logratio_diff=np.array([1.0, -2.0, 0.5]))
    write_pairs(table, tmp_path / "pairs.parquet")
    found = with_strength(read_pairs(tmp_path / "pairs.parquet"), dist.Delta(torch.tensor(0.5)))
    expected = -np.log1p(np.exp(-0.5 * table.logratio_diff))
    np.testing.assert_allclose(found.loglik, expected, rtol=1e-12)  # float64 throughout
