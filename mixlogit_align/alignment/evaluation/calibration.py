"""Do choices come out as often as the choice probabilities say? Reliability curve, Brier score, calibration error."""

# N pairs, B bins.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mixlogit_align.alignment.evaluation.averages import Estimate, Selection, average
from mixlogit_align.alignment.evaluation.clusters import Clusters
from mixlogit_align.alignment.evaluation.pairs import PairTable, Vector
from mixlogit_align.errors import InvalidInputError, explain, require_count

Orientation = Literal["favoured", "shown"]
Bins = Literal["mass", "width"]


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Pairs of similar probability.

    Parameters
    ----------
    lower, upper : float
        The bin's ends.
    predicted, observed : float
        Mean probability of the event, and the share of pairs in which it happened.
    gap : Estimate
        Observed less predicted, with its clustered standard error and interval.
    num_pairs : int
    share : float
        Of the weight.
    """

    lower: float
    upper: float
    predicted: float
    observed: float
    gap: Estimate
    num_pairs: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the probabilities ``P = E sigma(strength * logratio_diff)`` compare with the choices.

    Parameters
    ----------
    orientation : {"favoured", "shown"}
        The event: the response that the policy favours is chosen; or the one that was shown first is.
    bins : tuple of ReliabilityBin
        The reliability curve; bins that hold no pair are left out.
    brier : float
        Mean of ``(P - outcome)^2``, the same whatever the orientation; 1/4 is a coin.
    expected_calibration_error : float
        ``sum_b share_b |observed_b - predicted_b|`` (Naeini et al. 2015).
    expected_by_chance : float
        What that would be on average if the probabilities were right and pairs independent,
        ``sum_b share_b sqrt(2 / pi) sd_b`` with ``sd_b^2 = sum w^2 P (1 - P) / (sum w)^2``: an absolute value is above
        0 by chance alone. More where pairs depend on each other.
    """

    orientation: Orientation
    bins: tuple[ReliabilityBin, ...]
    brier: float
    expected_calibration_error: float
    expected_by_chance: float


def calibrate(
    table: PairTable,
    clusters: Clusters,
    *,
    orientation: Orientation = "favoured",
    num_bins: int = 10,
    bins: Bins = "mass",
    level: float = 0.95,
) -> Calibration:
    """Hold the choice probabilities of a table against its choices.

    A table of chosen less rejected responses knows one outcome only, "chosen", so that its probabilities have to be
    turned to an event that could have come out either way and does not depend on how it did. With ``"favoured"`` that
    is that the favoured response, of probability ``max(P, 1 - P)``, was chosen; for a tie it counts as one half. Since
    the model gives the two orders of a pair probabilities that sum to 1, the curve below 1/2 is the mirror image, and
    left out. ``"shown"`` is that the response shown first was chosen, and sees a preference for a place, too.

    Parameters
    ----------
    table : PairTable
        With ``loglik``.
    clusters : Clusters
    orientation : {"favoured", "shown"}
        ``"shown"`` needs ``chosen_first``, not the same in all rows.
    num_bins : int
        B.
    bins : {"mass", "width"}
        Bins of as many pairs each (between quantiles; equal probabilities share a bin), or of equal width: with width
        the probabilities of a policy that is close to its reference would all be in one.
    level : float
        Of the gaps' intervals.

    Raises
    ------
    InvalidInputError
        When the table lacks what this needs.
    """
    require_count("num_bins", num_bins)
    for name, value, kinds in (("orientation", orientation, Orientation), ("bins", bins, Bins)):
        if value not in get_args(kinds):
            raise InvalidInputError(
                explain(name, got=repr(value), expected=f"one of {get_args(kinds)}", hint=repr(get_args(kinds)[0]))
            )
    if table.loglik is None or table.weights is None:
        raise InvalidInputError(
            explain(table.name, got="no loglik", expected="choice probabilities", hint="a run with a preference stage")
        )
    predicted, observed = _oriented(table, np.exp(table.loglik.clip(max=0.0)), orientation)
    low = 0.5 if orientation == "favoured" else 0.0
    edges = np.linspace(low, 1.0, num_bins + 1)
    if bins == "mass":
        edges[1:-1] = np.quantile(predicted, np.linspace(0.0, 1.0, num_bins + 1)[1:-1])
    place = np.searchsorted(edges[1:-1], predicted)
    found, error, chance = [], 0.0, 0.0
    for b in np.unique(place).tolist():
        rows = np.flatnonzero(place == b)
        values = {"predicted": predicted, "observed": observed, "gap": observed - predicted}
        mean = average(Selection(parts=(rows,)), values, table.weights, clusters, level)
        w, p = table.weights[rows], predicted[rows]
        share = mean.weight / float(table.weights.sum())
        found.append(
            ReliabilityBin(
                lower=float(edges[b]),
                upper=float(edges[b + 1]),
                predicted=mean.estimates["predicted"].value,
                observed=mean.estimates["observed"].value,
                gap=mean.estimates["gap"],
                num_pairs=len(rows),
                share=share,
            )
        )
        error += share * abs(found[-1].gap.value)
        chance += share * math.sqrt(2.0 / math.pi * float((w**2 * p * (1.0 - p)).sum())) / float(w.sum())
    brier = float(np.average(np.expm1(table.loglik) ** 2, weights=table.weights))
    return Calibration(
        orientation=orientation,
        bins=tuple(found),
        brier=brier,
        expected_calibration_error=error,
        expected_by_chance=chance,
    )


def _oriented(table: PairTable, chosen: Vector, orientation: Orientation) -> tuple[Vector, Vector]:
    """Probability of the event, and whether it happened, of each pair."""
    if orientation == "favoured":
        sign = np.sign(chosen - 0.5) if table.logratio_diff is None else np.sign(table.logratio_diff)
        return np.maximum(chosen, 1.0 - chosen), (sign + 1.0) / 2.0
    first = table.chosen_first
    if first is None or first.all() or not first.any():
        raise InvalidInputError(
            explain(
                f"chosen_first of {table.name}",
                got="unknown" if first is None else f"{bool(first[0])} in every row",
                expected="the place in which each chosen response was shown",
                hint="orientation='favoured'; data that list the chosen response first do not tell",
            )
        )
    return np.where(first, chosen, 1.0 - chosen), first.astype(np.float64)
