"""The sign-flip permutation test of paired differences."""

# N differences, of which M are not zero; K sign patterns.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from mixlogit_align.errors import InvalidInputError, explain, require_count

EXACT_UP_TO = 20  # differences; a million patterns
# Share of the largest possible sum by which two sums may differ by rounding and still count as equal.
_ROUNDING = 1e-12
_CHUNK = 1 << 22  # signs drawn at a time


class SignFlip(NamedTuple):
    """A sign-flip test.

    Attributes
    ----------
    mean : float
        Of the differences.
    pvalue : float
        Two-sided.
    exact : bool
        All ``2^M`` patterns were counted; otherwise a seeded sample of them.
    num_nonzero : int
        M: a difference of zero is the same with either sign, and says nothing.
    """

    mean: float
    pvalue: float
    exact: bool
    num_nonzero: int


def sign_flip_test(differences: torch.Tensor, *, num_permutations: int = 100_000, seed: int = 0) -> SignFlip:
    """Test that differences are as likely positive as negative, size by size.

    Under the null hypothesis each difference keeps its distribution when its sign is flipped, so that all sign patterns
    of the observed sizes are equally likely. The p-value is the share of patterns whose mean is at least as far from 0
    as the observed one: exact up to 20 non-zero differences, and beyond that ``(1 + count) / (1 + K)`` over K random
    patterns, which is valid at every level (Phipson and Smyth 2010) and has a standard error of at most
    ``sqrt(p (1 - p) / K)``.

    Parameters
    ----------
    differences : torch.Tensor, shape (N,)
        One a pair, finite.
    num_permutations : int
        K.
    seed : int
        Of the random patterns.

    Returns
    -------
    SignFlip
        With a p-value of 1 where all differences are zero.

    Raises
    ------
    InvalidInputError
        If there is no difference, or one is not finite.
    """
    require_count("num_permutations", num_permutations)
    values = torch.as_tensor(differences).detach().double().cpu().numpy()
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InvalidInputError(
            explain(
                "differences",
                got=f"shape {values.shape}, {int((~np.isfinite(values)).sum())} not finite",
                expected="a vector (N,) of finite numbers, N of 1 or more",
                hint="leaving out pairs of which one value is missing",
            )
        )
    sizes = np.abs(values[values != 0.0])
    threshold = abs(float(values.sum())) - _ROUNDING * float(sizes.sum())
    exact = len(sizes) <= EXACT_UP_TO
    if exact:
        sums = np.zeros(1)
        for size in sizes:
            sums = np.concatenate([sums + size, sums - size])
        pvalue = float((np.abs(sums) >= threshold).mean())
    else:
        rng = np.random.default_rng(seed)
        rows, count = max(_CHUNK // len(sizes), 1), 0
        for start in range(0, num_permutations, rows):
            signs = rng.integers(0, 2, size=(min(rows, num_permutations - start), len(sizes)), dtype=np.int8)
            count += int((np.abs((2.0 * signs - 1.0) @ sizes) >= threshold).sum())
        pvalue = (1 + count) / (1 + num_permutations)
    return SignFlip(float(values.mean()), pvalue, exact, len(sizes))
