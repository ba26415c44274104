"""Every figure and table of the runs as files, for a paper: PDF, SVG and PNG; text, HTML and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mixlogit_align.errors import InvalidInputError
from mixlogit_align.report import figures
from mixlogit_align.report.averages import attributes_of
from mixlogit_align.report.comparable import settings_of
from mixlogit_align.report.files import Evidence, Run, labels
from mixlogit_align.report.grid import Grid
from mixlogit_align.report.measured import main_metric
from mixlogit_align.report.paper_tables import PAPER_RATE, results_table

CAPTIONS = "captions.md"
EVALUATED = "no run has an evaluation.json: `mixlogit-align evaluate RUN` writes it"
HELD_AGAINST = "no run was held against another: `mixlogit-align evaluate RUN --against OTHER` does"
LEARNED = "no run has a strength that was learned or solved"
TIMED = "no finished run has a DPO run beside it that differs in the method alone"
FITTED = "no heterogeneity.json: `mixlogit-align strength RUN` writes it"
PROBABILITIES = "no evaluation has choice probabilities"
KNOWN = "no run with a truth that is known and a strength"
Made = figures.Figure | Grid


@dataclass(frozen=True)
class LeftOut:
    """A figure or table that the runs do not allow, and why."""

    what: str
    why: str


def write_figures(evidence: Evidence, folder: str | Path) -> tuple[list[Path], list[LeftOut]]:
    """Write the figures and tables that the evidence allows, and ``captions.md``, which says what is in each.

    Parameters
    ----------
    evidence : Evidence
    folder : path
        Made where it is not there; files of the same names are replaced.

    Returns
    -------
    list of Path, list of LeftOut
        What was written, and what was not.
    """
    folder = Path(folder)
    written: list[Path] = []
    left_out: list[LeftOut] = []
    captions = ["# Captions", ""]
    names: list[str] = []
    for made in _everything(evidence):
        if isinstance(made, LeftOut):
            left_out.append(made)
            continue
        names.append(made.name)
        if (same := names.count(made.name)) > 1:
            made = replace(made, name=f"{made.name}-{same}")
        files = made.save(folder)
        written += files
        captions += [f"## {made.title}", "", ", ".join(path.name for path in files), "", made.caption, ""]
    if written:
        written.append(folder / CAPTIONS)
        written[-1].write_text("\n".join(captions), encoding="utf-8")
    return written, left_out


def _everything(evidence: Evidence) -> Iterator[Made | LeftOut]:
    """What can be made, in the order in which a paper would show it."""
    runs = evidence.runs
    for recovery in evidence.recoveries:
        if recovery.rows:
            yield figures.recovery_figure(recovery)
    yield from _tables(runs)
    yield from _margins(runs)
    yield from _gains(runs)
    yield _or(figures.variance_figure(runs), "variance of the strength", LEARNED)
    yield _or(figures.runtime_figure(runs), "run time", TIMED)
    tuned = [run for run in runs if run.series("sft", "eval", "loss")[0]]
    yield figures.sft_figure(tuned) if tuned else LeftOut("fine-tuning", "no run with a supervised stage")
    for world, aligned in evidence.worlds.items():
        if any(run.series("preference", "eval", "loss")[0] for run in aligned):
            yield figures.curves_figure(world, aligned)
        yield _or(figures.strength_figure(world, aligned), f"density of the strength, {world}", LEARNED)
        yield _or(figures.trajectory_figure(world, aligned), f"trajectories of the strength, {world}", LEARNED)
        yield _or(figures.calibration_figure(world, aligned), f"calibration, {world}", KNOWN)
    if any(run.heterogeneity is not None for run in runs):
        yield from _fitted(runs)
    else:
        yield LeftOut("fitted strengths", FITTED)
    weights = (figures.weight_figure(aligned) for aligned in evidence.worlds.values())
    yield _or(next((figure for figure in weights if figure is not None), None), "weight of a pair", LEARNED)


def _tables(runs: Sequence[Run]) -> Iterator[Made | LeftOut]:
    yield from _tried("table of results", lambda: results_table(runs))
    rates = {setting.rate for setting in settings_of(runs)}
    if PAPER_RATE in rates and len(rates) > 2:
        yield from _tried("table of the paper's learning rate",
                          lambda: results_table(runs, rate=PAPER_RATE, name=f"results-{PAPER_RATE}"))  # fmt: skip
    else:
        yield LeftOut(f"table of strengths learned at {PAPER_RATE} alone", "it would be the table of results, or empty")


def _margins(runs: Sequence[Run]) -> Iterator[Made | LeftOut]:
    """One figure a data set and attribute, the methods beside each other; then the probabilities' reliability."""
    evaluated = [run for run in runs if run.evaluation is not None]
    if not evaluated:
        yield LeftOut("margins by subgroup", EVALUATED)
    elif len(evaluated) < len(runs):
        lacking = ", ".join(str(run.path) for run in runs if run.evaluation is None)
        yield LeftOut(f"margins of {lacking}", "no evaluation.json there: `mixlogit-align evaluate RUN` writes it")
    for data, group in _by_data(evaluated).items():
        results = [run.evaluation for run in group if run.evaluation is not None]
        attributes = attributes_of(results)
        for attribute in attributes:
            for metric, alike in _by_metric(group, results).items():
                having = [run for run in alike if run.evaluation and attribute in attributes_of([run.evaluation])]
                if having:
                    draw = partial(figures.subgroup_margins_figure, having, attribute, metric=metric)
                    yield from _tried(f"margins by {attribute}, {data}", draw)
        if not attributes:
            yield LeftOut(f"margins by subgroup, {data}", "its pairs have no groups, or `--by` named none")
        yield _or(figures.reliability_figure(data, labels(group), results), f"reliability, {data}", PROBABILITIES)


def _gains(runs: Sequence[Run]) -> Iterator[Made | LeftOut]:
    if not any(run.gains for run in runs):
        yield LeftOut("gains over another run", HELD_AGAINST)
    for data, group in _by_data(runs).items():
        for against, held in figures.gains_of(group).items():
            for metric, alike in _by_metric(*zip(*held, strict=True)).items():
                draw = partial(figures.gains_figure, alike, against, metric=metric)
                yield from _tried(f"gains over {against}, {data}", draw)


def _fitted(runs: Sequence[Run]) -> Iterator[Made | LeftOut]:
    for label, run in zip(labels(runs), runs, strict=True):
        yield _or(figures.heterogeneity_figure(run, label), f"fitted strength of {label}", FITTED)


def _by_metric(runs: Sequence[Run], results: Sequence[Mapping[str, Any]]) -> dict[str, list[Run]]:
    """The runs by the margin that each is told by."""
    found: dict[str, list[Run]] = {}
    for run, result in zip(runs, results, strict=True):
        found.setdefault(main_metric(result), []).append(run)
    return found


def _by_data(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for setting in settings_of(runs):
        found.setdefault(setting.data, []).extend(setting.runs)
    return found


def _or(figure: figures.Figure | None, what: str, why: str) -> Made | LeftOut:
    return LeftOut(what, why) if figure is None else figure


def _tried(what: str, make: Callable[[], Made | None]) -> Iterator[Made | LeftOut]:
    """What was made, or why it could not be."""
    try:
        made = make()
    except InvalidInputError as error:
        yield LeftOut(what, str(error))
    else:
        if made is not None:
            yield made
