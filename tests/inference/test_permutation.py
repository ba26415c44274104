"""The sign-flip test against scipy's, against counts by hand, and its level."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest, permutation_test

from mixlogit_align.errors import InvalidInputError
from mixlogit_align.inference import sign_flip_test


def drawn(n: int, shift: float, seed: int) -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng(seed).normal(shift, 1.0, n))


@pytest.mark.parametrize("shift", [0.0, 0.5, -1.0])
@pytest.mark.parametrize("n", [2, 5, 11])
def test_exact_test_is_scipy_s(n: int, shift: float) -> None:
    values = drawn(n, shift, seed=n)
    theirs = permutation_test(
        (values.numpy(),), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    ours = sign_flip_test(values)
    assert ours.exact
    # both are a count over 2^n; scipy doubles the smaller tail, the same by symmetry, and stops at 1
    assert ours.pvalue == pytest.approx(theirs.pvalue, abs=1e-12)


@pytest.mark.parametrize(
    ("values", "pvalue", "num_nonzero"),
    [
        pytest.param([1.0, 1.0, 1.0], 2 / 8, 3, id="all one way: both extremes of eight"),
        pytest.param([1.0, 2.0, -0.5], 4 / 8, 3, id="2.5 or more: 3.5 and 2.5 of eight, both ways"),
        pytest.param([0.1, 0.2, -0.3], 1.0, 3, id="sums of 0 up to rounding are all as far as it"),
        pytest.param([0.0, 1.0, 0.0, 1.0], 2 / 4, 2, id="zeros say nothing"),
        pytest.param([0.0, 0.0], 1.0, 0, id="nothing differs"),
    ],
)
def test_exact_pvalue_by_hand(values: list[float], pvalue: float, num_nonzero: int) -> None:
    found = sign_flip_test(torch.tensor(values, dtype=torch.float64))
    assert (found.pvalue, found.num_nonzero, found.exact) == (pvalue, num_nonzero, True)


@pytest.mark.parametrize(("n", "exact"), [(20, True), (21, False)])
def test_exact_up_to_twenty(n: int, exact: bool) -> None:
    assert sign_flip_test(drawn(n, 0.4, seed=1), num_permutations=1000).exact is exact


def test_sampled_patterns_agree_with_the_exact_count() -> None:
    values = drawn(20, 0.3, seed=3)
    exact = sign_flip_test(values).pvalue
    # the 21st difference is too small to matter: 2e5 patterns then estimate the exact p-value
    sampled = sign_flip_test(torch.cat([values, torch.tensor([1e-9])]), num_permutations=200_000, seed=0)
    # five standard errors of a share: false-failure rate below 6e-7, at a fixed seed
    assert abs(sampled.pvalue - exact) < 5 * np.sqrt(exact * (1 - exact) / 200_000)


def test_same_seed_same_pvalue_and_another_seed_another() -> None:
    values = drawn(40, 0.2, seed=5)
    first, again, other = (sign_flip_test(values, num_permutations=999, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.pvalue != other.pvalue


def test_no_sampled_pvalue_is_zero() -> None:
    assert sign_flip_test(torch.ones(40), num_permutations=99).pvalue == 1 / 100


def test_pvalues_are_uniform_under_the_null() -> None:
    # 200 samples of 16 normal differences: 2^15 equally likely values, as good as continuous for a test of this size
    pvalues = [sign_flip_test(drawn(16, 0.0, seed=100 + i)).pvalue for i in range(200)]
    # false-failure rate 1e-4, at fixed seeds
    assert kstest(pvalues, "uniform").pvalue > 1e-4


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        pytest.param([], {}, "N of 1 or more", id="none"),
        pytest.param([1.0, float("nan")], {}, "1 not finite", id="nan"),
        pytest.param([[1.0]], {}, "a vector", id="matrix"),
        pytest.param([1.0], {"num_permutations": 0}, "num_permutations", id="no patterns"),
    ],
)
def test_bad_differences_are_refused(values: list[float], settings: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        sign_flip_test(torch.tensor(values), **settings)
