"""Means over pairs and over subgroups, micro and macro, with standard errors that are clustered."""

# N pairs in G clusters, K levels of an attribute, P metrics.

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.stats import t as student

from mixlogit_align.alignment.evaluation.clusters import Clusters
from mixlogit_align.alignment.evaluation.pairs import Integers, PairTable, Vector
from mixlogit_align.errors import InvalidInputError, explain, require_count
from mixlogit_align.inference import clustered_covariance, standard_errors

Kind = Literal["all", "micro", "macro", "macro_all", "cell", "small", "missing"]

# Clusters that a subgroup needs to stand beside others. The standard error of g clusters has itself a relative standard
# error of 1 / sqrt(2 (g - 1)): a quarter at 10, a third at 5; and in a group of a few persons each could be recognised.
MINIMUM = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Pairs to average over.

    Parameters
    ----------
    attribute : str or None
        None for all pairs.
    kind : str
        ``"all"``: every pair; of an attribute ``"micro"``: every pair that has it; ``"cell"``: those of one level;
        ``"small"``: those of a level with fewer clusters than the minimum; ``"missing"``: those that lack it;
        ``"macro"``: the mean of the cells' means; ``"macro_all"``: that of all levels, small ones included.
    level : str or None
        Of a cell, a small one included.
    parts : tuple of arrays
        Rows of each level that counts alike; one part but for macro averages.
    """

    attribute: str | None = None
    kind: Kind = "all"
    level: str | None = None
    parts: tuple[Integers, ...]

    @property
    def rows(self) -> Integers:
        """Of all parts, in order."""
        return np.sort(np.concatenate([*self.parts, np.zeros(0, dtype=np.int64)]))

    @property
    def label(self) -> str:
        """What it is, in a word or two."""
        return {
            "all": "all pairs", "micro": "micro", "macro": "macro", "macro_all": "macro, small ones too",
            "missing": "(unknown)",
        }.get(self.kind, str(self.level))  # fmt: skip


def selections(
    table: PairTable, attributes: Sequence[str], clusters: Clusters, minimum: int = MINIMUM
) -> list[Selection]:
    """All pairs, then of each attribute its levels (largest first) and averages; every pair is in what is listed.

    Parameters
    ----------
    table : PairTable
    attributes : sequence of str
    clusters : Clusters
    minimum : int
        Clusters of a level below which it stands apart: in ``macro_all``, not in ``macro``, and in no family of tests.
        Clusters are counted, not pairs, since a thousand judgments of one person speak for one person. 2 or more.

    Raises
    ------
    InvalidInputError
        For an attribute that no pair has.
    """
    require_count("minimum", minimum, least=2, hint=f"minimum={MINIMUM}")
    found = [Selection(parts=(np.arange(len(table)),))]
    for attribute in attributes:
        found += _of_attribute(table.levels(attribute), attribute, clusters, minimum)
    return found


def _of_attribute(
    levels: Sequence[str | None], attribute: str, clusters: Clusters, minimum: int
) -> Iterator[Selection]:
    rows: dict[str | None, list[int]] = {}
    for i, level in enumerate(levels):
        rows.setdefault(level, []).append(i)
    missing = rows.pop(None, [])
    cells = {str(level): np.array(found) for level, found in rows.items()}
    cells = dict(sorted(cells.items(), key=lambda item: (-len(item[1]), item[0])))
    large = {level: part for level, part in cells.items() if len(np.unique(clusters.codes[part])) >= minimum}
    known = np.sort(np.concatenate(list(cells.values())))
    yield Selection(attribute=attribute, kind="micro", parts=(known,))
    yield Selection(attribute=attribute, kind="macro", parts=tuple(large.values()))
    if len(large) < len(cells):
        yield Selection(attribute=attribute, kind="macro_all", parts=tuple(cells.values()))
    for level, part in cells.items():
        yield Selection(attribute=attribute, kind="cell" if level in large else "small", level=level, parts=(part,))
    if missing:
        yield Selection(attribute=attribute, kind="missing", parts=(np.array(missing),))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and how sure it is.

    Parameters
    ----------
    value : float
    standard_error : float
        Clustered; NaN with fewer than two clusters.
    lower, upper : float
        Ends of an interval; NaN where there is none.
    """

    value: float
    standard_error: float
    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True)
class Average:
    """Means over a `Selection`.

    Parameters
    ----------
    attribute, kind, level, label
        Of the selection.
    num_pairs, num_clusters, num_levels : int
        Pairs, clusters they are of, and levels that count alike (1 but for macro averages).
    weight : float
        Of all pairs.
    estimates : mapping
        Metric -> `Estimate`.
    """

    attribute: str | None
    kind: Kind
    level: str | None
    label: str
    num_pairs: int
    num_clusters: int
    num_levels: int
    weight: float
    estimates: Mapping[str, Estimate]


def average(
    selection: Selection, values: Mapping[str, Vector], weights: Vector, clusters: Clusters, level: float = 0.95
) -> Average:
    """The means of some metrics over a selection, each with its standard error and interval.

    The mean of a part k is ``m_k = sum_k w x / W_k``, and of several their plain mean ``sum_k m_k / K``. With
    ``s_i = w_i (x_i - m_k) / (K W_k)``, what pair i pulls it by, the variance is ``G / (G - 1) sum_g (sum_{i in g}
    s_i)^2`` over the clusters g of the selection: `mixlogit_align.inference.clustered_covariance` of a mean. A cluster
    that is in several parts (a person who judges in each context) thus correlates them. The factor G / (G - 1) is the
    only small-sample correction, Stata's and statsmodels' for a mean; the interval is Student's with G - 1 degrees of
    freedom, too short where a few clusters hold most of the weight.

    Parameters
    ----------
    selection : Selection
    values : mapping of str to array, shape (N,)
    weights : array, shape (N,)
    clusters : Clusters
    level : float
        Of the intervals.

    Returns
    -------
    Average
        NaN over no part, as of a macro average without a cell that is large enough.

    Raises
    ------
    InvalidInputError
        If the level is not between 0 and 1.
    """
    if not 0.0 < level < 1.0:
        raise InvalidInputError(explain("level", got=level, expected="between 0 and 1", hint="0.95"))
    rows = selection.rows
    matrix = np.stack(list(values.values()), axis=1)
    means, scores = part_means(selection, matrix, weights)
    codes = clusters.codes[rows]
    num_clusters = len(np.unique(codes))
    errors = np.full(len(means), math.nan)
    if num_clusters > 1:
        unit = -torch.eye(len(means), dtype=torch.float64)
        covariance = clustered_covariance(unit, torch.from_numpy(scores[rows]), torch.from_numpy(codes))
        errors = standard_errors(covariance).numpy()
    half = errors * float(student.ppf((1.0 + level) / 2.0, num_clusters - 1)) if num_clusters > 1 else errors
    return Average(
        attribute=selection.attribute,
        kind=selection.kind,
        level=selection.level,
        label=selection.label,
        num_pairs=len(rows),
        num_clusters=num_clusters,
        num_levels=len(selection.parts),
        weight=float(weights[rows].sum()),
        estimates={
            name: Estimate(value=m, standard_error=e, lower=m - h, upper=m + h)
            for name, m, e, h in zip(values, means.tolist(), errors.tolist(), half.tolist(), strict=True)
        },
    )


def part_means(selection: Selection, matrix: Vector, weights: Vector) -> tuple[Vector, Vector]:
    """The selection's means (P,), and what each pair pulls them by, (N, P)."""
    scores = np.zeros_like(matrix)
    means = np.zeros(matrix.shape[1]) if selection.parts else np.full(matrix.shape[1], math.nan)
    for part in selection.parts:
        share = weights[part] / weights[part].sum()
        own = share @ matrix[part]
        means += own / len(selection.parts)
        scores[part] = share[:, None] * (matrix[part] - own) / len(selection.parts)
    return means, scores
