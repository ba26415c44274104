"""Margins and win rates of methods on data sets and models: the MixDPO paper's tables 1 and 2, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.report.comparable import NONE, Seen, Setting, is_dpo, over_seeds, settings_of, stars
from mixlogit_align.report.files import Run
from mixlogit_align.report.grid import Grid

MARGIN = "margin/sum"
PAPER_RATE = "1e-4"
BELOW = "†"  # where a star would be read as a gain
Find = Callable[[Run], "Mapping[str, Any] | None"]  # an estimate of one run, with "marks" of its difference from DPO


@dataclass(frozen=True, kw_only=True)
class _Measure:
    """What a column holds: where a run has it, and with how many decimals."""

    head: str
    find: Find
    decimals: int | None = None  # None: two digits of the smallest standard error


def results_table(runs: Sequence[Run], *, rate: str | None = None, name: str = "results") -> Grid:
    """Methods by the strength's learning rate, against data sets and models.

    Parameters
    ----------
    runs : sequence of Run
        Those that differ in their seeds alone share a cell. What was not measured of a run is `NONE`; a run without a
        preference stage has a row if anything was.
    rate : str, optional
        Keep methods whose strength was learned at this rate, as in "1e-4", and those whose strength is a number: the
        paper's table 1. By default all, its table 2.
    name : str
        Of the table.

    Returns
    -------
    Grid

    Raises
    ------
    InvalidInputError
        If no run has been evaluated or judged, or none learned at that rate.
    """
    runs = [run for run in runs if run.config.preference is not None or run.evaluation is not None or run.winrates]
    settings = [setting for setting in settings_of(runs) if rate is None or setting.rate in (rate, NONE)]
    if rate is not None and all(setting.rate != rate for setting in settings):
        raise InvalidInputError(
            explain(
                "rate",
                got=repr(rate),
                expected=f"one of {', '.join(dict.fromkeys(repr(setting.rate) for setting in settings_of(runs)))}",
                hint="a learning rate of the runs, or none for all",
            )
        )
    measures = _measures([run for setting in settings for run in setting.runs])
    rows = _ordered(settings)
    data = list(dict.fromkeys(setting.data for setting in settings))
    models = {of: list(dict.fromkeys(s.model for s in settings if s.data == of)) for of in data}
    columns = [(of, model) for of in data for model in models[of]]
    placed = {(setting.method, setting.rate, setting.data, setting.model): setting for setting in settings}
    cells = {(*column, measure.head): [_cell(placed.get((*row, *column)), measure) for row in rows]
             for column in columns for measure in measures}  # fmt: skip
    body = []
    for i, (method, own) in enumerate(rows):
        counts = {len(placed[method, own, *column].runs) for column in columns if (method, own, *column) in placed}
        seeds = NONE.join(map(str, sorted({min(counts), max(counts)})))
        shown = [cells[*column, measure.head][i].text(_decimals(measure, cells[*column, measure.head]))
                 for column in columns for measure in measures]  # fmt: skip
        body.append([method, own, seeds, *shown])
    return Grid(
        name=name,
        title="Margins and win rates of methods" + ("" if rate is None else f", strengths learned at {rate}"),
        stubs=["method", "strength lr", "seeds"],
        heads=[
            [(of, len(models[of]) * len(measures)) for of in data],
            [(model, len(measures)) for _, model in columns],
            [(measure.head, 1) for _ in columns for measure in measures],
        ],
        rows=body,
        caption=_caption(measures, settings),
    )


def _ordered(settings: Sequence[Setting]) -> list[tuple[str, str]]:
    """Methods and rates: without a preference stage, DPO, then as they come; the frozen before the learned."""
    methods = list(dict.fromkeys(setting.method for setting in settings))
    methods.sort(key=lambda method: {"SFT": 0, "DPO": 1}.get(method, 2))

    def place(row: tuple[str, str]) -> tuple[int, float]:
        rank = {NONE: -2.0, "frozen": -1.0, "solved": math.inf}
        return methods.index(row[0]), rank[row[1]] if row[1] in rank else float(row[1])

    return sorted({(setting.method, setting.rate) for setting in settings}, key=place)


# --- what runs have measured -------------------------------------------------------------------------


def _measures(runs: Sequence[Run]) -> list[_Measure]:
    """Those that any run has."""
    dpo = {run.name for run in runs if is_dpo(run.config)}
    found = []
    if any(_margin(run, dpo) is not None for run in runs):
        found.append(_Measure(head="margin", find=lambda run: _margin(run, dpo)))
    kinds = list(dict.fromkeys(kind for run in runs for kind in _judged(run)))
    for kind in kinds:
        words = f" against {kind[0]}, by {kind[1]}" if len(kinds) > 1 else ""
        for head, of in (("WR", _win_rate), ("LC-WR", _controlled)):
            found.append(_Measure(head=f"{head}{words}", find=_finder(of, kind, dpo), decimals=2))
    found = [measure for measure in found if any(measure.find(run) is not None for run in runs)]
    if not found:
        raise InvalidInputError(
            explain(
                ", ".join(str(run.path) for run in runs) or "runs",
                got="no evaluation.json and no winrate.json",
                expected="runs that have been evaluated or judged",
                hint="`mixlogit-align evaluate RUN` or `mixlogit-align winrate RUN`",
            )
        )
    return found


def _margin(run: Run, dpo: set[str]) -> Mapping[str, Any] | None:
    """Over all pairs, with the p-value of its gain over DPO."""
    if run.evaluation is None:
        return None
    estimate = _overall(run.evaluation)
    if estimate is None:
        return None
    gains = [gain for result in run.gains.values() if result["against"] in dpo and (gain := _overall(result))]
    return {**estimate, "marks": _common([_marks(gain["pvalue"], gain["value"]) for gain in gains])}


def _overall(result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    everything: Mapping[str, Any] = next(average for average in result["averages"] if average["kind"] == "all")
    found: Mapping[str, Any] | None = everything["estimates"].get(MARGIN)
    return found


def _judged(run: Run) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The run's win rates by opponent and judge; of two by the same, with the folder of each."""
    kinds = [(result["opponent"], result["judge"]) for result in run.winrates.values()]
    return {
        kind if kinds.count(kind) == 1 else (kind[0], f"{kind[1]}, {folder}"): result
        for kind, (folder, result) in zip(kinds, run.winrates.items(), strict=True)
    }


def _finder(of: Callable[[Mapping[str, Any], bool], Any], kind: tuple[str, str], dpo: set[str]) -> Find:
    def find(run: Run) -> Mapping[str, Any] | None:
        result = _judged(run).get(kind)
        compared = None if result is None else result["compared"]
        beside = compared is not None and compared["other"].partition(" (")[0] in dpo
        found: Mapping[str, Any] | None = None if result is None else of(result, beside)
        return found

    return find


def _win_rate(result: Mapping[str, Any], beside: bool) -> Mapping[str, Any]:
    rate, paired = result["win_rate"], result["compared"]["test"] if beside else None
    return {
        "value": rate["percent"],
        "standard_error": rate["standard_error"],
        "marks": "" if paired is None else _marks(paired["test"]["pvalue"], paired["difference"]),
    }


def _controlled(result: Mapping[str, Any], beside: bool) -> Mapping[str, Any] | None:
    """There is no test of it, but an interval of the difference: a mark where it has no 0."""
    if result["controlled"] is None:
        return None
    difference = result["compared"]["controlled"] if beside else None
    above = difference is not None and difference["lower"] > 0.0
    below = difference is not None and difference["upper"] < 0.0
    return {**result["controlled"], "marks": "*" if above else BELOW if below else ""}


def _marks(pvalue: float | None, difference: float) -> str:
    """Stars of a difference from DPO above 0, daggers of one below."""
    found = stars(pvalue)
    return found.replace("*", BELOW) if found and difference < 0.0 else found


def _common(marks: Sequence[str]) -> str:
    """The fewest marks, which all have; none where some are above DPO and some below."""
    return "" if len(set("".join(marks))) > 1 else min(marks, key=len, default="")


# --- cells -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cell:
    """What the runs of a setting have found, the marks that each of them has, and how many have not measured it."""

    seen: Seen | None
    marks: str
    lacking: int

    def text(self, decimals: int) -> str:
        """Value and marks, then in parentheses the errors."""
        if self.seen is None:
            return NONE
        errors = [number for number in (self.seen.standard_error, self.seen.spread) if number is not None]
        inside = f" ({'; '.join(f'{number:.{decimals}f}' for number in errors)})" if errors else ""
        measured = len(self.seen.each)
        told = f" [{measured} of {measured + self.lacking}]" if self.lacking else ""
        return f"{self.seen.value:.{decimals}f}{self.marks}{inside}{told}".replace("-", "−")


def _cell(setting: Setting | None, measure: _Measure) -> _Cell:
    if setting is None:
        return _Cell(None, "", 0)
    estimates = [found for run in setting.runs if (found := measure.find(run)) is not None]
    marks = _common([estimate["marks"] for estimate in estimates])
    return _Cell(over_seeds(estimates), marks, len(setting.runs) - len(estimates))


def _decimals(measure: _Measure, column: Iterable[_Cell]) -> int:
    """As many as show two digits of the smallest standard error."""
    if measure.decimals is not None:
        return measure.decimals
    errors = [cell.seen.standard_error for cell in column if cell.seen is not None and cell.seen.standard_error]
    return min(max(1 - math.floor(math.log10(min(errors))), 0), 6) if errors else 3


def _caption(measures: Sequence[_Measure], settings: Sequence[Setting]) -> str:
    runs = [run for setting in settings for run in setting.runs]
    heads = [measure.head for measure in measures]
    kinds = list(dict.fromkeys(kind for run in runs for kind in _judged(run)))
    said = ["Means on held-out data, with standard errors in parentheses."]
    if any(len(setting.runs) > 1 for setting in settings):
        said.append("With several seeds, means over them, and behind the mean of their standard errors the standard "
                    "deviation between seeds.")  # fmt: skip
    tests = []
    if "margin" in heads:
        said.append("Margin: log π(chosen) − log π(rejected) in nats.")
        tests.append("margins by the sign-flip test over clusters of pairs, where gains over DPO were evaluated")
    if kinds:
        who = f" against {kinds[0][0]}, judged by {kinds[0][1]}" if len(kinds) == 1 else ""
        said.append(f"WR: win rate{who}, in percent.")
        tests.append("win rates by the sign-flip test over prompts, where the runs were compared")
    if any(head.startswith("LC-WR") for head in heads):
        said.append("LC-WR: the same at equal lengths.")
        tests.append("one mark at most for LC-WR, where the 95 % interval of the paired bootstrap has no 0")
    said.append(
        f"Stars: above DPO with p below 0.05 (*) or 0.01 (**); daggers: below DPO with p below 0.05 ({BELOW}) or 0.01 "
        f"({2 * BELOW})"
        f"{', for every seed' if any(len(setting.runs) > 1 for setting in settings) else ''}: {'; '.join(tests)}. "
        f"They are not adjusted for the number of cells. {NONE}: not measured."
    )  # fmt: skip
    every = [_cell(setting, measure) for setting in settings for measure in measures]
    if any(cell.lacking and cell.seen is not None for cell in every):
        said.append("In brackets: how many of the seeds have been measured.")
    return " ".join(said)
