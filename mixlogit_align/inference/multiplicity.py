"""P-values of several tests, adjusted for their number."""

# M tests.

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from scipy.stats import false_discovery_control

from mixlogit_align.errors import InvalidInputError, explain

Adjustment = Literal["holm", "benjamini_hochberg"]


def adjusted_pvalues(pvalues: torch.Tensor, method: Adjustment = "holm") -> torch.Tensor:
    """Adjusted p-values of a family of tests: rejecting those of at most alpha keeps the family's error rate.

    ``"holm"`` bounds the chance of any false rejection by alpha, whatever the tests' dependence: the k-th smallest
    becomes the largest ``(M - j + 1) p_(j)`` of j up to k, at most 1 (Holm 1979). ``"benjamini_hochberg"`` bounds the
    expected share of false rejections among all, for tests that are independent or positively dependent: the smallest
    ``M p_(j) / j`` of j from k on (Benjamini and Hochberg 1995).

    Parameters
    ----------
    pvalues : torch.Tensor, shape (M,)
    method : {"holm", "benjamini_hochberg"}

    Returns
    -------
    torch.Tensor, shape (M,), float64
        In the order of the tests.

    Raises
    ------
    InvalidInputError
        If a p-value is not between 0 and 1, or the method is another.
    """
    values = pvalues.detach().double().cpu().numpy()
    if values.ndim != 1 or not ((values >= 0.0) & (values <= 1.0)).all():
        raise InvalidInputError(
            explain(
                "pvalues",
                got=f"shape {values.shape}, values such as {values.flatten()[:3].tolist()}",
                expected="a vector (M,) of numbers between 0 and 1",
                hint="leaving out what was not tested",
            )
        )
    if method not in get_args(Adjustment):
        raise InvalidInputError(
            explain("method", got=repr(method), expected=f"one of {get_args(Adjustment)}", hint="'holm'")
        )
    if not len(values) or method == "benjamini_hochberg":
        return torch.from_numpy(false_discovery_control(values) if len(values) else values)
    order = values.argsort()
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(np.arange(len(values), 0, -1) * values[order]).clip(max=1.0)
    return torch.from_numpy(adjusted)
