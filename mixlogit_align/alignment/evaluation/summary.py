"""Everything measured of one policy on a table of pairs."""

# N pairs.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mixlogit_align.alignment.evaluation.averages import MINIMUM, Average, average, selections
from mixlogit_align.alignment.evaluation.calibration import Bins, Calibration, Orientation, calibrate
from mixlogit_align.alignment.evaluation.clusters import ClusterBy, find_clusters
from mixlogit_align.alignment.evaluation.metrics import pair_metrics
from mixlogit_align.alignment.evaluation.pairs import PairTable


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A policy on held-out pairs.

    Parameters
    ----------
    name : str
    level : float
        Of the intervals.
    clusters : str
        What the standard errors take as independent.
    minimum : int
        Clusters below which a level stands apart.
    num_ties : int or None
        Pairs whose log-ratio difference is 0: equal responses, or a policy that has not moved.
    left_out : tuple of int
        pair_ids set aside because of values that are not finite.
    averages : tuple of Average
        All pairs first, then attribute by attribute, see `selections`.
    calibration : Calibration or None
        None without choice probabilities.
    """

    name: str
    level: float
    clusters: str
    minimum: int
    num_ties: int | None
    left_out: tuple[int, ...]
    averages: tuple[Average, ...]
    calibration: Calibration | None

    @property
    def overall(self) -> Average:
        """Over all pairs."""
        return self.averages[0]


def evaluate(
    table: PairTable,
    *,
    metrics: Iterable[str] | None = None,
    attributes: Sequence[str] | None = None,
    clusters: ClusterBy | None = None,
    minimum: int = MINIMUM,
    level: float = 0.95,
    orientation: Orientation = "favoured",
    num_bins: int = 10,
    bins: Bins = "mass",
) -> Evaluation:
    """Measure a policy on a table of pairs.

    Parameters
    ----------
    table : PairTable
    metrics : iterable of str, optional
        See `pair_metrics`; by default all.
    attributes : sequence of str, optional
        By default all.
    clusters : {"annotator", "prompt", "pair"}, optional
        See `find_clusters`.
    minimum : int
        See `selections`.
    level : float
        Of the intervals.
    orientation, num_bins, bins
        See `calibrate`.

    Returns
    -------
    Evaluation

    Raises
    ------
    InvalidInputError
        For a metric, attribute or kind of cluster that the table lacks.
    """
    values, found = pair_metrics(table, metrics), find_clusters(table, clusters)
    assert table.weights is not None
    weights = table.weights
    chosen = selections(table, table.attributes if attributes is None else attributes, found, minimum)
    calibration = None
    if table.loglik is not None:
        calibration = calibrate(table, found, orientation=orientation, num_bins=num_bins, bins=bins, level=level)
    return Evaluation(
        name=table.name,
        level=level,
        clusters=str(found),
        minimum=minimum,
        num_ties=None if table.logratio_diff is None else int(np.sum(table.logratio_diff == 0.0)),
        left_out=table.left_out,
        averages=tuple(average(selection, values, weights, found, level) for selection in chosen),
        calibration=calibration,
    )
