"""Many binary comparisons replaced by a few weighted ones."""

# S comparisons, G points, Q functions of a comparison, C cells of the grid on each side of 0.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

STEP = 0.1  # of the grid, in log |difference|
_DEGREE = 13
_PAYS = 4  # comparisons a point stands for, at least
_JOINED = 256  # most different values that are kept as they are
_SAMPLE = 1000

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Compression:
    """Weighted comparisons whose log-likelihood is that of many more.

    Attributes
    ----------
    differences : torch.Tensor, shape (G,)
        Utility differences in favour of what was chosen.
    weights : torch.Tensor, shape (G,)
        Of either sign; their sum is that of the original weights.
    expand : callable
        Values (G, Q) of functions of the comparison at ``differences`` to values (S, Q) at the original ones.
    """

    differences: torch.Tensor
    weights: torch.Tensor
    expand: Callable[[torch.Tensor], torch.Tensor]


def compress(differences: torch.Tensor, weights: torch.Tensor, step: float = STEP) -> Compression | None:
    """Replace binary comparisons by fewer of the same total log-likelihood, whatever the mixing distribution.

    The log-likelihood f of a comparison is, for either sign of its utility difference d, an analytic function of
    s = log |d|: under one strength b the singularities of log sigma(b e^s) nearest to the real axis lie at height
    pi/2. Mixing moves none closer unless the expectation vanishes in between; for d > 0 and positive strengths it
    cannot, as Re sigma > 0 there. On a grid of step h in s, f is interpolated by the Lagrange polynomials l_j
    through the 14 nearest points g_j:

        sum_i w_i f(s_i) = sum_j W_j f(g_j) + error,   W_j = sum_i w_i l_j(s_i),

    so that the W_j are computed once and serve every mixing distribution. The error of one comparison is at most
    M (13!! / 2^7)^2 (h / a)^14 where |f| <= M within distance a < pi/2 of s: 4e-11 M at h = 0.1, a = 1.5. Errors
    take both signs, and their sum is far smaller: for 1e5 comparisons below 1e-7 under point masses and normal,
    lognormal, gamma, uniform and triangular strengths, narrow and wide. The same holds for scores, and for every
    function of a comparison that is analytic in s.

    A difference of 0 stays one. Where the differences take few values, equal ones are joined instead, exactly.

    Parameters
    ----------
    differences : torch.Tensor, shape (S,), float64
        In favour of what was chosen; finite.
    weights : torch.Tensor, shape (S,), float64
    step : float
        h.

    Returns
    -------
    Compression or None
        None where a point would stand for fewer than four comparisons.
    """
    d, w = differences.numpy(), weights.numpy()
    joined = _joined(d, w)
    result = _on_grid(d, w, step) if joined is None else joined
    return result if _PAYS * len(result.weights) <= len(d) else None


def _joined(d: _Array, w: _Array) -> Compression | None:
    sample = d[:_SAMPLE]
    if 2 * len(np.unique(sample)) > max(len(sample), 2):  # hardly any are equal: spares the sorting of all
        return None
    values, index = np.unique(d, return_inverse=True)
    if len(values) > _JOINED:
        return None
    row = torch.from_numpy(index)
    return Compression(torch.from_numpy(values), torch.from_numpy(np.bincount(index, w)), lambda each: each[row])


@lru_cache
def _lagrange() -> _Array:
    """Coefficients (points, powers) of the Lagrange polynomials on the half-integers around 0."""
    nodes = np.arange(_DEGREE + 1) - _DEGREE / 2
    others = [np.delete(nodes, k) for k in range(len(nodes))]
    return np.stack([np.poly(rest)[::-1] / np.prod(node - rest) for node, rest in zip(nodes, others, strict=True)])


def _on_grid(d: _Array, w: _Array, step: float) -> Compression:
    """Cells between neighbouring points, (2, C): of positive differences, of negative ones."""
    n = _DEGREE + 1
    size = np.abs(d)
    nothing = size == 0.0
    position = np.log(np.where(nothing, 1.0, size)) / step
    floor = np.floor(position)
    offset = position - floor - 0.5
    floor = floor.astype(np.int64)
    first = int(floor.min())
    count = int(floor.max()) - first + 1
    cell = floor - first + np.where(d < 0.0, count, 0)

    power = np.where(nothing, 0.0, w)
    moments = np.empty((2 * count, n))
    for degree in range(n):
        moments[:, degree] = np.bincount(cell, power, minlength=2 * count)
        power *= offset
    occupied = np.bincount(cell[~nothing], minlength=2 * count).reshape(2, count) > 0
    share = (moments @ _lagrange().T).reshape(2, count, n)

    points = count + n - 1
    weights, touched = np.zeros((2, points)), np.zeros((2, points), dtype=bool)
    for k in range(n):
        weights[:, k : k + count] += share[..., k]
        touched[:, k : k + count] |= occupied
    grid = np.exp(step * (first - n // 2 + 1 + np.arange(points)))
    kept, kept_weights = np.stack([grid, -grid])[touched], weights[touched]
    if nothing.any():
        kept, kept_weights = np.append(kept, 0.0), np.append(kept_weights, w[nothing].sum())
    expand = partial(_interpolate, touched=touched, cell=cell, offset=offset, nothing=nothing)
    return Compression(torch.from_numpy(kept), torch.from_numpy(kept_weights), expand)


def _interpolate(
    values: torch.Tensor, *, touched: _Array, cell: _Array, offset: _Array, nothing: _Array
) -> torch.Tensor:
    n, on_grid = _DEGREE + 1, int(touched.sum())
    dense = np.zeros((*touched.shape, values.shape[1]))
    dense[touched] = values[:on_grid].numpy()
    # (2, C, Q, points) to coefficients of the powers, one polynomial a cell
    windows = np.lib.stride_tricks.sliding_window_view(dense, n, axis=1)
    polynomials = (windows @ _lagrange()).reshape(-1, values.shape[1], n)
    columns = []
    for q in range(values.shape[1]):
        result = polynomials[cell, q, n - 1]
        for degree in reversed(range(n - 1)):
            result *= offset
            result += polynomials[cell, q, degree]
        columns.append(result)
    expanded = np.stack(columns, axis=1)
    if on_grid < len(values):
        expanded[nothing] = values[-1].numpy()
    return torch.from_numpy(expanded)
