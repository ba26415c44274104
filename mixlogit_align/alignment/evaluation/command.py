"""What ``mixlogit-align evaluate`` does: tables of pairs from runs, what was measured of them as JSON and as text."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mixlogit_align.alignment.durable import write_durably
from mixlogit_align.alignment.evaluation.averages import MINIMUM, Average, Estimate
from mixlogit_align.alignment.evaluation.calibration import Calibration, Orientation
from mixlogit_align.alignment.evaluation.clusters import ClusterBy
from mixlogit_align.alignment.evaluation.metrics import pair_metrics
from mixlogit_align.alignment.evaluation.paired import Gain, Gains, gains
from mixlogit_align.alignment.evaluation.pairs import NonFinite, listed, read_pairs, write_pairs
from mixlogit_align.alignment.evaluation.scoring import PAIRS, run_pairs
from mixlogit_align.alignment.evaluation.summary import Evaluation, evaluate
from mixlogit_align.alignment.progress import Progress
from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.inference.multiplicity import Adjustment

RESULT = "evaluation.json"
GAINS = "gains-over-{}.json"  # the other's folder, or its file's stem
COLUMNS = 4  # metrics beside each other in a terminal


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A run evaluated, and held against another.

    Parameters
    ----------
    evaluation : Evaluation
    gains : Gains or None
        None without another run.
    out : Path
        Has ``evaluation.json``, pair by pair ``pairs.parquet``, and for each run that it was held against
        ``gains-over-NAME.json``, NAME being that of its folder.
    """

    evaluation: Evaluation
    gains: Gains | None
    out: Path


def evaluate_run(
    run: str | Path,
    against: str | Path | None = None,
    *,
    out: str | Path | None = None,
    metrics: Sequence[str] | None = None,
    attributes: Sequence[str] | None = None,
    clusters: ClusterBy | None = None,
    minimum: int = MINIMUM,
    level: float = 0.95,
    orientation: Orientation = "favoured",
    adjustment: Adjustment = "holm",
    num_replications: int = 2000,
    seed: int = 0,
    mismatched: Literal["refuse", "shared"] = "refuse",
    non_finite: NonFinite = "refuse",
    device: str = "cpu",
    progress: Progress | None = None,
) -> Evaluated:
    """Evaluate a run on its held-out pairs, and write what was found.

    Parameters
    ----------
    run, against : path
        Folders of finished runs, or Parquet tables of pairs, see `read_pairs`.
    out : path, optional
        By default the run's folder; that of a table.
    metrics, attributes, clusters, minimum, level
        See `evaluate` and `gains`.
    orientation
        See `calibrate`.
    adjustment, num_replications, seed, mismatched
        See `gains`.
    non_finite : {"refuse", "leave_out"}
        See `PairTable.of`.
    device : str
        Where a policy is scored.
    progress : callable, optional
        `mixlogit_align.alignment.RichProgress` draws bars.

    Returns
    -------
    Evaluated

    Raises
    ------
    InvalidInputError
        If a run is held against itself; and as `run_pairs`, `evaluate` and `gains`.
    """

    def reported(what: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(what, done, total, {})

    paths = [Path(path) for path in (run, against) if path is not None]
    if len({path.resolve() for path in paths}) < len(paths):
        raise InvalidInputError(
            explain("against", got=f"{against}, which is the run itself", expected="another run", hint="its baseline")
        )
    tables = [
        read_pairs(path, non_finite=non_finite)
        if path.is_file()
        else run_pairs(path, device=device, non_finite=non_finite, progress=reported(f"scoring {path.name}"))
        for path in paths
    ]
    folder = Path(out) if out is not None else paths[0] if paths[0].is_dir() else paths[0].parent
    evaluation = evaluate(
        tables[0], metrics=metrics, attributes=attributes, clusters=clusters, minimum=minimum, level=level,
        orientation=orientation,
    )  # fmt: skip
    found = None
    if len(tables) == 2:
        found = gains(
            tables[0], tables[1], metrics=metrics, attributes=attributes, clusters=clusters, minimum=minimum,
            level=level, adjustment=adjustment, num_replications=num_replications, seed=seed, mismatched=mismatched,
            progress=reported("resampling"),
        )  # fmt: skip
    if (folder / PAIRS).resolve() != paths[0].resolve():
        write_pairs(tables[0], folder / PAIRS, pair_metrics(tables[0]))
    write_durably(folder / RESULT, json.dumps(as_json(evaluation), indent=1, allow_nan=False) + "\n")
    if found is not None:
        path = folder / GAINS.format(paths[1].stem if paths[1].is_file() else paths[1].resolve().name)
        write_durably(path, json.dumps(as_json(found), indent=1, allow_nan=False) + "\n")
    return Evaluated(evaluation=evaluation, gains=found, out=folder)


def as_json(found: Any) -> Any:
    """A result as JSON holds it: dataclasses as objects, NaN as null."""
    if dataclasses.is_dataclass(found):
        return {field.name: as_json(getattr(found, field.name)) for field in dataclasses.fields(found)}
    if isinstance(found, Mapping):
        return {name: as_json(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [as_json(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found


# --- as text ---------------------------------------------------------------------------------------


def as_text(found: Evaluated) -> str:
    """What was found, for a terminal."""
    evaluation, parts = found.evaluation, []
    head = (
        f"{evaluation.name}: {evaluation.overall.num_pairs} pairs, standard errors over {evaluation.clusters}, "
        f"{evaluation.level:.0%} intervals"
    )
    if evaluation.left_out:
        head += (
            f"\n{len(evaluation.left_out)} pairs left out, of values that are not finite "
            f"(pair_id {listed(evaluation.left_out)})"
        )
    if evaluation.num_ties:
        head += f"\n{evaluation.num_ties} ties, which count one half in the accuracy"
    if evaluation.overall.num_clusters < 2:
        head += "\nno standard error and no interval (-): all pairs are of one cluster"
    parts += [head, _overall(evaluation.overall)]
    parts += [_calibration(evaluation.calibration)] if evaluation.calibration is not None else []
    parts += _attributes(evaluation.averages, _estimated, evaluation.minimum)
    if found.gains is not None:
        parts += _gained(found.gains)
    return "\n\n".join(parts) + "\n"


def _overall(average: Average) -> str:
    rows = [
        [name, _number(e.value, ".4g"), _number(e.standard_error, ".2g"), _interval(e, ".4g")]
        for name, e in average.estimates.items()
    ]
    return _table([["", "mean", "s.e.", "interval"], *rows])


def _calibration(found: Calibration) -> str:
    event = "the favoured response" if found.orientation == "favoured" else "the response shown first"
    rows = [
        [f"{b.lower:.4f} to {b.upper:.4f}", str(b.num_pairs), f"{b.predicted:.4f}", f"{b.observed:.4f}",
         f"{b.gap.value:+.4f}", _number(b.gap.standard_error, ".4f")]
        for b in found.bins
    ]  # fmt: skip
    return (
        f"calibration: Brier {found.brier:.4f} (a coin: 0.25), expected calibration error "
        f"{found.expected_calibration_error:.4f} (by chance alone: {found.expected_by_chance:.4f})\n"
        + _table([[f"P({event})", "pairs", "predicted", "chosen", "gap", "s.e."], *rows])
    )


def _gained(found: Gains) -> Iterator[str]:
    head = (
        f"gains of {found.name} over {found.against}, paired; {found.num_replications} replications of "
        f"{found.clusters}; p-values of {found.num_tests} subgroups adjusted by {found.adjustment}"
    )
    for ids, what in (
        (found.only, f"of {found.name} alone"),
        (found.only_against, f"of {found.against} alone"),
        (found.left_out, "with values that are not finite"),
    ):
        head += f"\n{len(ids)} pairs {what} are in no gain (pair_id {listed(ids)})" if ids else ""
    overall = found.averages[0]
    estimates: Mapping[str, Any] = overall.estimates
    if overall.num_clusters < found.minimum:
        head += (
            f"\nno interval and no p-value (-) over all pairs: {overall.num_clusters} clusters, where {found.minimum} "
            "are the least (--minimum)"
        )
    elif any(math.isnan(g.lower) for g in estimates.values()):
        head += "\nno interval (-) where all replications lie on one side of the gain"
    rows = [
        [name, _number(g.value, "+.4g"), _number(g.standard_error, ".2g"), _interval(g, "+.4g"),
         _number(g.pvalue, ".4g")]
        for name, g in estimates.items()
    ]  # fmt: skip
    yield head + "\n" + _table([["", "gain", "s.e.", "interval", "p"], *rows])
    yield from _attributes(found.averages, _won, found.minimum)


def _attributes(averages: Sequence[Average], cell: Callable[[Any], str], minimum: int) -> Iterator[str]:
    """One table an attribute, its small levels apart."""
    for attribute in dict.fromkeys(average.attribute for average in averages if average.attribute is not None):
        own = [average for average in averages if average.attribute == attribute]
        metrics = list(own[0].estimates)
        for start in range(0, len(metrics), COLUMNS):
            yield _attribute(attribute, own, metrics[start : start + COLUMNS], cell, minimum)


def _attribute(
    attribute: str, averages: Sequence[Average], metrics: Sequence[str], cell: Callable[[Any], str], minimum: int
) -> str:
    rows = [[attribute, "pairs", "clusters", *metrics]]
    for kinds, title in (
        (("micro", "macro", "macro_all", "cell"), None),
        (("small",), f"fewer than {minimum} clusters:"),
        (("missing",), "unknown:"),
    ):
        chosen = [average for average in averages if average.kind in kinds]
        rows += [[title, "", "", *[""] * len(metrics)]] if title is not None and chosen else []
        for average in chosen:
            cells = [cell(average.estimates[name]) for name in metrics]
            rows.append([average.label, str(average.num_pairs), str(average.num_clusters), *cells])
    return _table(rows)


def _estimated(estimate: Any) -> str:
    return f"{_number(estimate.value, '.4g')} ({_number(estimate.standard_error, '.2g')})"


def _won(gain: Gain) -> str:
    """A gain with its standard error; one star below 0.05, of a cell after adjustment, two below 0.01."""
    pvalue = gain.pvalue if math.isnan(gain.adjusted_pvalue) else gain.adjusted_pvalue
    stars = "**" if pvalue < 0.01 else "*" if pvalue < 0.05 else ""
    return f"{_estimated(gain)}{stars}"


def _number(value: float, shape: str) -> str:
    """A number; "-" where there is none."""
    return "-" if math.isnan(value) else f"{value:{shape}}"


def _interval(estimate: Estimate, shape: str) -> str:
    return "-" if math.isnan(estimate.lower) else f"{estimate.lower:{shape}} to {estimate.upper:{shape}}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *cells in rows:
        right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *right]).rstrip())
    return "\n".join(lines)
