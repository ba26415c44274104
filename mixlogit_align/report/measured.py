"""Tables of what was measured on held-out pairs: margins, subgroups, and gains of one run over another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape, unescape
from typing import Any

from mixlogit_align.report.comparable import stars
from mixlogit_align.report.files import Run
from mixlogit_align.report.tables import MANY, NONE, number, table

Average = Mapping[str, Any]
# Metric -> what it is, and how many digits it is worth.
METRICS = {
    "margin/sum": ("log π(chosen) − log π(rejected), nats", ".3f"),
    "margin/avg": ("the same, of log-probabilities a token", ".4f"),
    "margin/reward": ("mean strength × log-ratio difference", ".3f"),
    "log_ratio/margins": ("log-ratio difference to the reference, nats", ".3f"),
    "accuracy": ("share ranked as chosen, by the log-ratio", ".3f"),
    "accuracy/sum": ("share ranked as chosen, by margin/sum", ".3f"),
    "loglik": ("log P(chosen), nats; a coin: −0.693", ".4f"),
}
# Kinds of averages in the order of a table; what stands apart has a word that says so.
APART = {"small": "few", "missing": "unknown"}


def main_metric(found: Mapping[str, Any]) -> str:
    """The margin that an evaluation is told by: the policy's own where its log-probabilities are known."""
    names: Mapping[str, Any] = found["averages"][0]["estimates"]
    return next((name for name in METRICS if name in names), next(iter(names)))


def margins_table(labels: Sequence[str], found: Sequence[Mapping[str, Any]]) -> str:
    """Every metric over all pairs; one column a run, and of one run its interval beside."""
    overall = [evaluation["averages"][0]["estimates"] for evaluation in found]
    names = _names(overall)
    rows = [[_metric(name), *(_with_interval(estimates.get(name), name) for estimates in overall)] for name in names]
    for key, what, shape in (
        ("brier", "Brier score<br><small>a coin: 0.25</small>", ".4f"),
        ("expected_calibration_error", "calibration error<br><small>and by chance alone</small>", ".4f"),
    ):
        calibrations = [evaluation.get("calibration") for evaluation in found]
        if any(calibrations):
            rows.append([what, *(NONE if c is None else _calibration(c, key, shape) for c in calibrations)])
    return _either_way(
        ["on held-out pairs", *labels], rows, f"Mean (standard error), and its interval. {_about(labels, found)}"
    )


def _calibration(found: Mapping[str, Any], key: str, shape: str) -> str:
    chance = f"<br><small>{found['expected_by_chance']:{shape}}</small>" if key == "expected_calibration_error" else ""
    return f"{found[key]:{shape}}{chance}"


def subgroups_table(attribute: str, labels: Sequence[str], found: Sequence[Mapping[str, Any]]) -> str:
    """The levels of an attribute and their averages, by the margin; one column a run. Small levels stand apart."""
    own = [{(a["kind"], a["label"]): a for a in evaluation["averages"] if a["attribute"] == attribute}
           for evaluation in found]  # fmt: skip
    metrics = [main_metric(evaluation) for evaluation in found]
    rows = []
    for key in _ordered(own):
        first = next(levels[key] for levels in own if key in levels)
        cells = [_plain(levels.get(key), metric) for levels, metric in zip(own, metrics, strict=True)]
        rows.append([_level(first), f"{first['num_pairs']:,}", f"{first['num_clusters']:,}", *cells])
    titles = labels
    if len(set(metrics)) > 1:
        titles = [f"{label}, {metric}" for label, metric in zip(labels, metrics, strict=True)]
    words = " ".join(f"{name}: {METRICS.get(name, (name,))[0]}." for name in dict.fromkeys(metrics))
    caption = f"{words} {_kinds(found[0], [kind for kind, _ in _ordered(own)])}"
    return _either_way([attribute, "pairs", "clusters", *titles], rows, caption)


def every_metric_table(found: Mapping[str, Any]) -> str:
    """All that was measured of one run's subgroups."""
    names = list(found["averages"][0]["estimates"])
    rows = [[_level(average, with_attribute=True), f"{average['num_pairs']:,}", f"{average['num_clusters']:,}",
             *(_plain(average, name) for name in names)]
            for average in found["averages"]]  # fmt: skip
    return table(["subgroup", "pairs", "clusters", *names], rows, _about([found["name"]], [found]))


def gains_table(labels: Sequence[str], found: Sequence[Mapping[str, Any]]) -> str:
    """Gains over all pairs; one column a run and opponent."""
    overall = [gains["averages"][0]["estimates"] for gains in found]
    names = _names(overall)
    rows = [
        [_metric(name), *(_with_interval(estimates.get(name), name, "+") for estimates in overall)] for name in names
    ]
    caption = (
        "Gain (standard error), and its interval (paired bootstrap of whole clusters, BCa); p of the sign-flip test. "
        "Stars: p below 0.05 (*) or 0.01 (**). They are of the pairs at hand and say nothing of another seed. "
    )
    return _either_way(["gain", *labels], rows, caption + _about(labels, found))


def gains_by_subgroup(attribute: str, label: str, found: Mapping[str, Any]) -> str:
    """Gains of one run over another by the levels of an attribute, with p-values adjusted for the number of levels."""
    averages = {(a["kind"], a["label"]): a for a in found["averages"] if a["attribute"] == attribute}
    names = list(found["averages"][0]["estimates"])
    rows = []
    for key in _ordered([averages]):
        average = averages[key]
        cells = [_plain(average, name, "+") for name in names]
        rows.append([_level(average), f"{average['num_pairs']:,}", f"{average['num_clusters']:,}", *cells])
    how = found["adjustment"].replace("_", "-").title()
    caption = (
        f"{escape(label)}: gain (standard error). Stars: p below 0.05 (*) or 0.01 (**), of a level adjusted over "
        f"{found['num_tests']} levels ({how}). {_kinds(found, [kind for kind, _ in _ordered([averages])])}"
    )
    return table([attribute, "pairs", "clusters", *names], rows, caption)


def measured(runs: Sequence[Run], labels: Sequence[str]) -> tuple[list[str], list[Mapping[str, Any]]]:
    """Labels and evaluations of the runs that have been evaluated."""
    pairs = [(label, run.evaluation) for label, run in zip(labels, runs, strict=True) if run.evaluation is not None]
    return [label for label, _ in pairs], [evaluation for _, evaluation in pairs]


def gained(runs: Sequence[Run], labels: Sequence[str]) -> tuple[list[str], list[Mapping[str, Any]]]:
    """Labels and gains of the runs that have been held against others."""
    pairs = [(f"{label} over {gains['against']}", gains)
             for label, run in zip(labels, runs, strict=True) for gains in run.gains.values()]  # fmt: skip
    return [label for label, _ in pairs], [gains for _, gains in pairs]


def _either_way(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table; with more columns than a sheet has room for, and fewer rows, turned so that each run is a row."""
    if len(head) <= MANY or len(head) <= len(rows):
        return table(head, rows, caption)
    titles = [unescape(re.sub(r"<br>.*|<[^>]+>", "", first)) for first, *_ in rows]
    columns = zip(*(cells for _, *cells in rows), strict=True)
    turned = [[escape(label), *cells] for label, cells in zip(head[1:], columns, strict=True)]
    return table([head[0], *titles], turned, caption)


def _names(overall: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics of all, in the order of `METRICS`."""
    found = dict.fromkeys(name for estimates in overall for name in estimates)
    return [*(name for name in METRICS if name in found), *(name for name in found if name not in METRICS)]


# --- cells -------------------------------------------------------------------------------------------


def _metric(name: str) -> str:
    words = METRICS.get(name, ("", ""))[0]
    return f"{escape(name)}<br><small>{words}</small>"


def _shape(metric: str, sign: str = "") -> str:
    return sign + METRICS.get(metric, ("", ".4g"))[1]


def _estimate(found: Mapping[str, Any], metric: str, sign: str) -> str:
    shape = _shape(metric, sign)
    return f"{number(found['value'], shape)} ({number(found['standard_error'], shape.lstrip('+'))})"


def _with_interval(found: Mapping[str, Any] | None, metric: str, sign: str = "") -> str:
    """A mean with its standard error, and below it the interval and, of a gain, the p-value."""
    if found is None or found["value"] is None:
        return NONE
    shape = _shape(metric, sign)
    interval = NONE if found["lower"] is None else f"{found['lower']:{shape}} to {found['upper']:{shape}}"
    pvalue = found.get("pvalue")
    test = "" if pvalue is None else f"; p {_pvalue(pvalue)}"
    return f"{_estimate(found, metric, sign)}{stars(pvalue)}<br><small>{interval}{test}</small>"


def _plain(average: Average | None, metric: str, sign: str = "") -> str:
    """A mean with its standard error, with the stars of a gain."""
    found = None if average is None else average["estimates"].get(metric)
    if found is None or found["value"] is None:
        return NONE
    adjusted = found.get("adjusted_pvalue")
    return _estimate(found, metric, sign) + stars(found.get("pvalue") if adjusted is None else adjusted)


def _pvalue(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _level(average: Average, *, with_attribute: bool = False) -> str:
    """The name of a row; a level that stands apart is marked by a word."""
    word = f" <small>({APART[average['kind']]})</small>" if average["kind"] == "small" else ""
    above = f"{escape(average['attribute'])}: " if with_attribute and average["attribute"] is not None else ""
    label = escape(average["label"])
    return f"{above}{label if average['kind'] in ('cell', 'small', 'missing') else f'<b>{label}</b>'}{word}"


def _ordered(own: Sequence[Mapping[tuple[str, str], Average]]) -> list[tuple[str, str]]:
    """Averages first, then levels, last those that stand apart; each once."""
    keys = list(dict.fromkeys(key for levels in own for key in levels))
    return sorted(keys, key=lambda key: (key[0] in APART, key[0] == "missing"))


def _kinds(found: Mapping[str, Any], kinds: Sequence[str]) -> str:
    words = "micro: the mean over all pairs; macro: the mean of the levels' means."
    if "small" in kinds:
        words += (
            f" Levels of fewer than {found['minimum']} clusters (few) stand apart: they are in the macro average "
            "that says so alone, and in no test."
        )
    return words


def _about(labels: Sequence[str], found: Sequence[Mapping[str, Any]]) -> str:
    """How many pairs, what standard errors take as independent, and what was left out; said once where it is equal."""
    said: dict[str, list[str]] = {}
    for label, one in zip(labels, found, strict=True):
        said.setdefault("; ".join(_words(one)), []).append(label)
    return " ".join(
        f"{escape(words)}." if len(said) == 1 else f"{escape(', '.join(names))}: {escape(words)}."
        for words, names in said.items()
    )


def _words(found: Mapping[str, Any]) -> Iterator[str]:
    overall = found["averages"][0]
    yield f"{overall['num_pairs']:,} pairs, standard errors over {found['clusters']}, {found['level']:.0%} intervals"
    if found.get("num_ties"):
        yield f"{found['num_ties']:,} ties, which count one half in the accuracy"
    if found.get("left_out"):
        yield f"{len(found['left_out']):,} pairs left out, of values that are not finite"
    for key, whose in (("only", found["name"]), ("only_against", found.get("against"))):
        if found.get(key):
            yield f"{len(found[key]):,} pairs of {whose} alone are in no gain"
