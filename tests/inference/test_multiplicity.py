"""Adjusted p-values by hand, against scipy, and the error rate that they are for."""

from __future__ import annotations

import pytest
import torch

from mixlogit_align.errors import InvalidInputError
from mixlogit_align.inference import adjusted_pvalues


def test_holm_by_hand() -> None:
    found = adjusted_pvalues(torch.tensor([0.03, 0.01, 0.04, 0.6], dtype=torch.float64))
    # sorted 0.01 x 4, 0.03 x 3, then 0.04 x 2 = 0.08, which is below its neighbour's 0.09, 0.6 x 1
    torch.testing.assert_close(found, torch.tensor([0.09, 0.04, 0.09, 0.6], dtype=torch.float64))


def test_benjamini_hochberg_by_hand() -> None:
    pvalues = torch.tensor([0.03, 0.01, 0.04, 0.6], dtype=torch.float64)
    # 0.04 / 3 x 4 = 0.0533, less than 0.03 / 2 x 4 = 0.06
    expected = torch.tensor([0.16 / 3, 0.04, 0.16 / 3, 0.6], dtype=torch.float64)
    torch.testing.assert_close(adjusted_pvalues(pvalues, "benjamini_hochberg"), expected)


@pytest.mark.parametrize("method", ["holm", "benjamini_hochberg"])
def test_one_test_is_not_adjusted_and_none_is_none(method: str) -> None:
    assert adjusted_pvalues(torch.tensor([0.2], dtype=torch.float64), method).tolist() == [0.2]
    assert adjusted_pvalues(torch.zeros(0), method).tolist() == []


def test_holm_holds_the_familywise_error_rate() -> None:
    families = torch.rand(4000, 5, dtype=torch.float64)
    rejected = sum(bool((adjusted_pvalues(family) <= 0.1).any()) for family in families)
    # independent tests reject in 1 - (1 - 0.02)^5 = 9.6 % of families; 4.5 sd of a binomial of 4000: once in 150,000
    assert abs(rejected / 4000 - (1 - 0.98**5)) < 4.5 * (0.096 * 0.904 / 4000) ** 0.5


@pytest.mark.parametrize("pvalues", [[0.5, 1.1], [float("nan")], [-0.1], [[0.5]]], ids=["1.1", "nan", "-0.1", "matrix"])
def test_what_is_no_p_value_is_refused(pvalues: list[float]) -> None:
    with pytest.raises(InvalidInputError, match="pvalues"):
        adjusted_pvalues(torch.tensor(pvalues))


def test_an_unknown_adjustment_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'bonferroni'"):
        adjusted_pvalues(torch.tensor([0.5]), "bonferroni")
