"""Averages over all pairs and over subgroups, of evaluations and gains, joined over the seeds of a setting."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.report.comparable import Seen, mean, over_seeds
from mixlogit_align.report.files import Run

METRICS = {  # in words, with the unit
    "margin/sum": ("preference margin", "nats"),
    "margin/avg": ("preference margin a token", "nats"),
    "margin/reward": ("reward margin", "strength × nats"),
    "log_ratio/margins": ("log-ratio margin", "nats"),
    "accuracy": ("accuracy", "share"),
    "accuracy/sum": ("accuracy of the policy alone", "share"),
    "loglik": ("log-likelihood", "nats"),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One average.

    Parameters
    ----------
    attribute : str or None
        None for all pairs.
    kind : str
        As in `mixlogit_align.alignment.evaluation.Average`; "small" where it is so for any seed.
    label : str
    num_pairs : float
        Mean over the seeds.
    seen : Seen or None
        None where there is no value, as of a macro average over no cell.
    """

    attribute: str | None
    kind: str
    label: str
    num_pairs: float
    seen: Seen | None


def rows_of(results: Sequence[Mapping[str, Any]], metric: str) -> list[Row]:
    """The averages of a metric in results of ``evaluate``, one a seed, in the order of the first that has each.

    Parameters
    ----------
    results : sequence of mapping
        ``evaluation.json`` or ``gains-over-NAME.json``. The p-value of a cell is the adjusted one.
    metric : str

    Returns
    -------
    list of Row

    Raises
    ------
    InvalidInputError
        If any result lacks the metric.
    """
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for result in results:
        for average in result["averages"]:
            if metric not in average["estimates"]:
                raise InvalidInputError(
                    explain(
                        "metric",
                        got=repr(metric),
                        expected=f"one that was measured of {result['name']}: {', '.join(average['estimates'])}",
                        hint="one of these, or `mixlogit-align evaluate` without --metrics",
                    )
                )
            is_level = average["kind"] in ("cell", "small")
            found.setdefault((average["attribute"], is_level or average["kind"], average["level"]), []).append(average)
    return [_row(averages, metric) for averages in found.values()]


def attributes_of(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """The attributes of all results, in order."""
    names = (average["attribute"] for result in results for average in result["averages"])
    return [name for name in dict.fromkeys(names) if name is not None]


def said_of(results: Iterable[Mapping[str, Any]], say: Callable[[Mapping[str, Any]], str]) -> str:
    """What a caption says of how results were made; where they differ, all that there is."""
    return " or ".join(dict.fromkeys(say(result) for result in results))


def contextual(run: Run) -> set[str]:
    """Attributes of the occasion, not of the person: those of which one annotator has several levels among the pairs.

    Read in ``log_ratios.parquet``; none where annotators or groups are unknown.
    """
    columns = run.log_ratios or {}
    levels: dict[tuple[str, str], set[str]] = {}
    for annotator, groups in zip(columns.get("annotator_id", []), columns.get("groups", []), strict=False):
        if annotator is not None and groups:
            for attribute, level in json.loads(groups).items():
                levels.setdefault((attribute, annotator), set()).add(level)
    return {attribute for (attribute, _), found in levels.items() if len(found) > 1}


def require_evaluated(runs: Iterable[Run]) -> None:
    """Refuse runs that have not been evaluated, by name."""
    lacking = [run for run in runs if run.evaluation is None]
    if lacking:
        raise InvalidInputError(
            explain(
                ", ".join(str(run.path) for run in lacking),
                got="no evaluation.json",
                expected="runs that have been evaluated",
                hint=f"`mixlogit-align evaluate {lacking[0].path}`",
            )
        )


def _row(averages: Sequence[Mapping[str, Any]], metric: str) -> Row:
    first = averages[0]
    kind = "small" if any(average["kind"] == "small" for average in averages) else first["kind"]
    estimates = [average["estimates"][metric] for average in averages]
    if first["kind"] in ("cell", "small"):
        estimates = [{**estimate, "pvalue": estimate.get("adjusted_pvalue")} for estimate in estimates]
    return Row(
        attribute=first["attribute"],
        kind=kind,
        label=first["label"],
        num_pairs=mean([average["num_pairs"] for average in averages]),
        seen=over_seeds(estimates),
    )
