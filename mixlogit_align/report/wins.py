"""The table of win rates: plain and at equal lengths, with their intervals, the opponent and the judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from mixlogit_align.report.files import Run
from mixlogit_align.report.tables import NONE, number, table

Judged = Mapping[str, Any]


def winrate_table(labels: Sequence[str], found: Sequence[Judged]) -> str:
    """One row a run and opponent."""
    rows = [[f"{escape(label)}<br><small>against {escape(judged['opponent'])}</small>", _rate(judged),
             _percent(judged["controlled"]), _counts(judged), _pvalue(judged["test"]["test"]),
             f'<div class="words">{escape(judged["judge"])}</div>']
            for label, judged in zip(labels, found, strict=True)]  # fmt: skip
    caption = (
        "Percent of held-out prompts on which the judge prefers the run's response, a probability where it gives one "
        "(standard error), and the 95 % interval of the bootstrap. At equal lengths: what AlpacaEval 2.0's GLM, in its "
        "minimal form, predicts where both responses are equally long. p: of the sign-flip test against 50 %."
    )
    notes = "".join(f"<li>{escape(label)}: {escape(note)}.</li>"
                    for label, judged in zip(labels, found, strict=True) for note in _notes(judged))  # fmt: skip
    head = ["run", "win rate, %", "at equal lengths, %", "won, lost, tied", "p", "judge"]
    return table(head, rows, caption) + (f'<ul class="notes">{notes}</ul>' if notes else "")


def judged(runs: Sequence[Run], labels: Sequence[str]) -> tuple[list[str], list[Judged]]:
    """Labels and results of the runs that a judge has compared with an opponent."""
    pairs = [(label, found) for label, run in zip(labels, runs, strict=True) for found in run.winrates.values()]
    return [label for label, _ in pairs], [found for _, found in pairs]


def _rate(found: Judged) -> str:
    rate, interval = found["win_rate"], found["interval"]
    return _percent({**interval, "value": rate["percent"], "standard_error": rate["standard_error"]})


def _percent(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return NONE
    error = number(found["standard_error"], ".1f")
    return f"{found['value']:.1f} ({error})<br><small>{found['lower']:.1f} to {found['upper']:.1f}</small>"


def _counts(found: Judged) -> str:
    rate = found["win_rate"]
    return f"{rate['num_wins']:,}, {rate['num_losses']:,}, {rate['num_ties']:,}"


def _pvalue(test: Mapping[str, Any]) -> str:
    return f"{test['pvalue']:.4f}" if test["pvalue"] >= 0.0001 else "< 0.0001"


def _notes(found: Judged) -> Iterator[str]:
    """What a reader of the row has to know: what is missing, cut, or compared beside."""
    if found["controlled"] is None:
        yield f"no win rate at equal lengths: {str(found['not_controlled']).rstrip('.')}"
    for fault, seen in found.get("faults", {}).items():
        yield f"{seen['count']} prompts without a verdict, {fault}"
    judged_of = sum(found["win_rate"][name] for name in ("num_wins", "num_losses", "num_ties", "num_missing"))
    for side, how in found.get("generation", {}).items():
        if how["num_unfinished"]:
            yield f"{how['num_unfinished']} of {judged_of} responses of the {side} met the length limit without an end"
        if cut := how["truncation"]["prompts"]["cut"]:
            yield f"{cut} prompts were cut before the {side} answered them"
    if (paired := found["compared"]) is not None:
        difference = paired["difference"]
        yield (
            f"less {paired['other']}'s win rate, paired by prompt: {difference['value']:+.1f} points "
            f"({difference['lower']:+.1f} to {difference['upper']:+.1f}), p {_pvalue(paired['test']['test'])}"
        )
