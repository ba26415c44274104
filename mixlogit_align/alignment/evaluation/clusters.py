"""Which pairs are independent of each other: those of different annotators, as far as these are known."""

# N pairs in G clusters.

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mixlogit_align.alignment.evaluation.pairs import Integers, PairTable
from mixlogit_align.errors import InvalidInputError, explain

ClusterBy = Literal["annotator", "prompt", "pair"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Clusters:
    """Pairs that may depend on each other share a cluster.

    Parameters
    ----------
    by : {"annotator", "prompt", "pair"}
    codes : array, shape (N,)
        The cluster of each pair, from 0 to G - 1.
    num_unknown : int
        Pairs whose annotator (or prompt) is unknown where others' are. They are clustered as if those of none were
        known.
    """

    by: ClusterBy
    codes: Integers
    num_unknown: int = 0

    def __len__(self) -> int:
        return int(self.codes.max()) + 1

    def __str__(self) -> str:
        alone = f", {self.num_unknown} pairs without one by prompt or pair" if self.num_unknown else ""
        return f"{len(self)} clusters by {self.by}{alone}"


def find_clusters(table: PairTable, by: ClusterBy | None = None) -> Clusters:
    """Cluster the pairs of a table.

    One person's judgments agree with each other for reasons of that person's own, so that standard errors that take
    them as independent are too small; so do judgments about one prompt, and those for and against the same two
    responses. Clusters go one way only: that several annotators judge one prompt is not accounted for when they are
    annotators.

    Parameters
    ----------
    table : PairTable
    by : {"annotator", "prompt", "pair"}, optional
        By default annotators where any is known, else prompts where there are several, else pairs: those of the same
        prompt and responses where these are known (``items``), else each row.

    Returns
    -------
    Clusters

    Raises
    ------
    InvalidInputError
        When it is asked for clusters that the table has no column for.
    """
    columns = (("pair", table.items), ("prompt", table.prompts), ("annotator", table.annotator_ids))
    names = {kind: column for kind, column in columns if column is not None and any(x is not None for x in column)}
    several = len(set(names.get("prompt", ()))) > 1
    if by is None:
        by = "annotator" if "annotator" in names else "prompt" if several else "pair"
    if by not in get_args(ClusterBy):
        raise InvalidInputError(
            explain("clusters", got=repr(by), expected=f"one of {get_args(ClusterBy)}", hint="'annotator'")
        )
    if by != "pair" and by not in names:
        raise InvalidInputError(
            explain(
                f"clusters of {table.name}",
                got=f"no {by} of any pair",
                expected=f"a table that names the {by} of its pairs",
                hint="clusters by 'pair', whose standard errors take every pair as independent",
            )
        )
    labels: list[Hashable] = [("row", pair) for pair in table.pair_ids.tolist()]
    for kind, column in names.items():
        if kind == by or kind == "pair" or (kind == "prompt" and by == "annotator" and several):
            labels = [label if name is None else (kind, name) for name, label in zip(column, labels, strict=True)]
    num_unknown = 0 if by == "pair" else sum(name is None for name in names[by])
    return Clusters(by=by, codes=_coded(labels), num_unknown=num_unknown)


def _coded(labels: Sequence[Hashable]) -> Integers:
    """Labels as numbers, in the order in which they first appear."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)
