"""What one policy gains over another on the same pairs: intervals and tests, overall and by subgroup."""

# N pairs in G clusters, P metrics, B replications.

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from mixlogit_align.alignment.evaluation.averages import (
    MINIMUM,
    Average,
    Estimate,
    Selection,
    average,
    part_means,
    selections,
)
from mixlogit_align.alignment.evaluation.clusters import ClusterBy, Clusters, find_clusters
from mixlogit_align.alignment.evaluation.metrics import METRICS, pair_metrics
from mixlogit_align.alignment.evaluation.pairs import PairTable, Vector, listed
from mixlogit_align.errors import InvalidInputError, explain, require_count
from mixlogit_align.inference import adjusted_pvalues, bca_interval, bootstrap_weights, sign_flip_test
from mixlogit_align.inference.multiplicity import Adjustment


@dataclass(frozen=True, kw_only=True)
class Gain(Estimate):
    """A difference of means and how sure it is.

    Parameters
    ----------
    value, standard_error : float
        As of `Estimate`.
    lower, upper : float
        Ends of the BCa interval of the paired cluster bootstrap; NaN for selections that are too small, and where more
        than half of the replications lack a part.
    num_replications : int
        In which every part of the selection was drawn; the others say nothing of it.
    pvalue : float
        Two-sided, of the sign-flip test by clusters; NaN for selections that are too small.
    exact : bool
        Whether all patterns of signs were counted for it.
    adjusted_pvalue : float
        Of a cell, within the family of all cells of all attributes; NaN elsewhere.
    """

    num_replications: int
    pvalue: float
    exact: bool
    adjusted_pvalue: float


@dataclass(frozen=True, kw_only=True)
class Gains:
    """What one policy gains over another.

    Parameters
    ----------
    name, against : str
        The two policies; gains are the first's values less the second's.
    level : float
        Of the intervals.
    clusters : str
        What was resampled.
    minimum : int
        Clusters below which a selection is not tested.
    adjustment : str
        Of the p-values of the cells, for each metric.
    num_tests : int
        Cells in that family.
    num_replications, num_permutations, seed : int
    only, only_against : tuple of int
        pair_ids that one table alone has; they are in no gain.
    left_out : tuple of int
        pair_ids that either table has set aside because of values that are not finite.
    averages : tuple of Average
        With `Gain` as estimates.
    """

    name: str
    against: str
    level: float
    clusters: str
    minimum: int
    adjustment: Adjustment
    num_tests: int
    num_replications: int
    num_permutations: int
    seed: int
    only: tuple[int, ...]
    only_against: tuple[int, ...]
    left_out: tuple[int, ...]
    averages: tuple[Average, ...]


def gains(
    table: PairTable,
    against: PairTable,
    *,
    metrics: Iterable[str] | None = None,
    attributes: Sequence[str] | None = None,
    clusters: ClusterBy | None = None,
    minimum: int = MINIMUM,
    level: float = 0.95,
    adjustment: Adjustment = "holm",
    num_replications: int = 2000,
    num_permutations: int = 10_000,
    seed: int = 0,
    mismatched: Literal["refuse", "shared"] = "refuse",
    progress: Callable[[int, int], None] | None = None,
) -> Gains:
    """Gains of one policy over another, paired by ``pair_id``.

    The interval resamples whole clusters, the same for both policies and all averages, and is bias-corrected and
    accelerated. As every bootstrap it is too short where clusters are few, at ten still visibly: Student's interval on
    the standard error is then safer, and the test the safest. The test flips the sign of each cluster's pull on the
    gain: exact where, without a true gain, a cluster's pull is as likely positive as negative, and else right in large
    samples, without need of equal cluster sizes (Canay, Romano and Shaikh 2017). All are of the pairs at hand: they say
    nothing of the policy that another seed would give.

    Parameters
    ----------
    table, against : PairTable
        Of the same pairs, in any order. Whom pairs are from is read in the first.
    metrics : iterable of str, optional
        See `pair_metrics`; by default all that both tables allow.
    attributes : sequence of str, optional
        By default all.
    clusters : {"annotator", "prompt", "pair"}, optional
        See `find_clusters`.
    minimum : int
        See `selections`. Smaller ones, and averages with a smaller one in them, have a value and a standard error, but
        no interval and no p-value.
    level : float
    adjustment : {"holm", "benjamini_hochberg"}
        See `mixlogit_align.inference.adjusted_pvalues`; within each metric, over the cells of all attributes together.
        Averages over all pairs and macro averages are not part of that family.
    num_replications : int
        B; B x G numbers are held in memory.
    num_permutations : int
        Sign patterns, where there are too many to count all: no p-value is below ``1 / (1 + num_permutations)``.
    seed : int
    mismatched : {"refuse", "shared"}
        What to do where one table has pairs that the other lacks: an error that counts them, or compare on those that
        they share, and name the others.
    progress : callable, optional
        Called as ``progress(done, total)``, in averages.

    Returns
    -------
    Gains

    Raises
    ------
    InvalidInputError
        When the pairs differ, or differ in weight, annotator or which response was chosen; for a metric, attribute or
        kind of cluster that the tables lack.
    """
    require_count("num_replications", num_replications, least=200)
    table, against, only, only_against = _paired(table, against, mismatched)
    names = list(metrics) if metrics is not None else [
        name for name in METRICS if METRICS[name](table) is not None and METRICS[name](against) is not None
    ]  # fmt: skip
    if not names:
        raise InvalidInputError(
            explain(
                f"metrics of {table.name} and {against.name}", got="none in common", expected="one or more",
                hint="scoring both policies, see `mixlogit_align.alignment.evaluation.run_pairs`",
            )
        )  # fmt: skip
    ours, theirs = pair_metrics(table, names), pair_metrics(against, names)
    differences = {name: ours[name] - theirs[name] for name in names}
    found_clusters = find_clusters(table, clusters)
    chosen = selections(table, table.attributes if attributes is None else attributes, found_clusters, minimum)
    counts = np.ones((num_replications, 1))
    if len(found_clusters) > 1:
        counts = bootstrap_weights(torch.ones(len(found_clusters)), num_replications, seed).numpy()
    assert table.weights is not None
    plain: list[Average] = []
    found: list[dict[str, Gain]] = []
    for done, selection in enumerate(chosen):
        if progress is not None:
            progress(done, len(chosen))
        plain.append(average(selection, differences, table.weights, found_clusters, level))
        found.append({name: _untested(estimate) for name, estimate in plain[-1].estimates.items()})
        sizes = [len(np.unique(found_clusters.codes[part])) for part in selection.parts]
        if sizes and min(sizes) >= minimum:
            replicated = _replicated(selection, differences, table.weights, found_clusters, counts)
            for p, name in enumerate(differences):
                found[-1][name] = _tested(found[-1][name], replicated, p, level, num_permutations, seed)
    family = [estimates for one, estimates in zip(plain, found, strict=True) if one.kind == "cell"]
    for name in names:
        raw = torch.tensor([estimates[name].pvalue for estimates in family], dtype=torch.float64)
        for estimates, pvalue in zip(family, adjusted_pvalues(raw, adjustment).tolist(), strict=True):
            estimates[name] = dataclasses.replace(estimates[name], adjusted_pvalue=pvalue)
    if progress is not None:
        progress(len(chosen), len(chosen))
    return Gains(
        name=table.name,
        against=against.name,
        level=level,
        clusters=str(found_clusters),
        minimum=minimum,
        adjustment=adjustment,
        num_tests=len(family),
        num_replications=num_replications,
        num_permutations=num_permutations,
        seed=seed,
        only=only,
        only_against=only_against,
        left_out=tuple(sorted({*table.left_out, *against.left_out})),
        averages=tuple(dataclasses.replace(a, estimates=e) for a, e in zip(plain, found, strict=True)),
    )


def _untested(estimate: Estimate) -> Gain:
    return Gain(
        value=estimate.value, standard_error=estimate.standard_error, lower=math.nan, upper=math.nan,
        num_replications=0, pvalue=math.nan, exact=False, adjusted_pvalue=math.nan,
    )  # fmt: skip


class _Replicated(NamedTuple):
    """A selection's means, (P,), on resampled clusters (B, P), without each cluster (G, P), and each cluster's pull.

    NaN in a replication in which a part was not drawn.
    """

    means: Vector
    drawn: Vector
    without: Vector
    pull: Vector


def _replicated(
    selection: Selection, differences: Mapping[str, Vector], weights: Vector, clusters: Clusters, counts: Vector
) -> _Replicated:
    """Replicate one selection; ``counts``, (B, G), is how often each replication draws each cluster."""
    matrix = np.stack(list(differences.values()), axis=1)
    active, codes = np.unique(clusters.codes[selection.rows], return_inverse=True)
    place = np.full(len(weights), -1)
    place[selection.rows] = codes
    counts = counts[:, active]
    drawn, without, pull = (np.zeros((num, matrix.shape[1])) for num in (len(counts), len(active), len(active)))
    num_parts = len(selection.parts)
    for part in selection.parts:
        sums, totals = np.zeros_like(pull), np.bincount(place[part], weights[part], len(active))
        np.add.at(sums, place[part], weights[part, None] * matrix[part])
        with np.errstate(invalid="ignore"):  # 0 / 0: the part was not drawn
            drawn += (counts @ sums) / (counts @ totals)[:, None] / num_parts
        without += (sums.sum(0) - sums) / (totals.sum() - totals)[:, None] / num_parts
        pull += sums / totals.sum() / num_parts
    means, _ = part_means(selection, matrix, weights)
    return _Replicated(means, drawn, without, pull)


def _tested(gain: Gain, replicated: _Replicated, p: int, level: float, num_permutations: int, seed: int) -> Gain:
    """The gain with its interval and p-value; ``p`` is the place of its metric."""
    means, every, without, pull = (torch.from_numpy(x) for x in replicated)
    drawn, lower, upper = every[torch.isfinite(every).all(1)], math.nan, math.nan
    if 2 * len(drawn) >= len(every):
        lower, upper = bca_interval(means[p, None], drawn[:, p, None], without[:, p, None], level)[:, 0].tolist()
    test = sign_flip_test(pull[:, p], num_permutations=num_permutations, seed=seed)
    return dataclasses.replace(
        gain, lower=lower, upper=upper, num_replications=len(drawn), pvalue=test.pvalue, exact=test.exact
    )


def _paired(
    table: PairTable, against: PairTable, mismatched: str
) -> tuple[PairTable, PairTable, tuple[int, ...], tuple[int, ...]]:
    """Both tables' shared pairs in the first's order, and the pair_ids of the others."""
    if mismatched not in ("refuse", "shared"):
        raise InvalidInputError(
            explain("mismatched", got=repr(mismatched), expected="'refuse' or 'shared'", hint="'refuse'")
        )
    place = {pair: i for i, pair in enumerate(against.pair_ids.tolist())}
    own = table.pair_ids.tolist()
    mine = set(own)
    only = tuple(pair for pair in own if pair not in place)
    only_against = tuple(pair for pair in place if pair not in mine)
    rows = [i for i, pair in enumerate(own) if pair in place]
    if not rows or ((only or only_against) and mismatched == "refuse"):
        lacking = [
            f"{len(ids)} pairs of {name} alone (pair_id {listed(ids)})"
            for ids, name in ((only, table.name), (only_against, against.name))
            if ids
        ]
        raise InvalidInputError(
            explain(
                f"pairs of {table.name} and {against.name}",
                got=f"{'; '.join(lacking)}; {len(rows)} of both",
                expected="the same pairs",
                hint="runs with the same data settings, or mismatched='shared' to compare on the pairs of both"
                if rows
                else "runs with the same data settings",
            )
        )
    first = table.take(np.array(rows))
    second = against.take(np.array([place[own[i]] for i in rows]))
    _refuse_other_rows(first, second)
    return first, second, only, only_against


def _refuse_other_rows(table: PairTable, against: PairTable) -> None:
    """Equal pair_ids must stand for equal pairs."""
    for name in ("weights", "annotator_ids", "items", "chosen_first"):
        one, two = getattr(table, name), getattr(against, name)
        if one is None or two is None:
            continue
        off = [i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
        if off:
            raise InvalidInputError(
                explain(
                    f"{name} of {table.name} and {against.name}",
                    got=f"{one[off[0]]!r} and {two[off[0]]!r} for pair_id {table.pair_ids[off[0]]}, "
                    f"and {len(off) - 1} more that differ",
                    expected="the same pairs under the same pair_ids",
                    hint="runs on the same data",
                )
            )
