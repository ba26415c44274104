"""One self-contained HTML page: the verdict first, then the evidence. It asks nothing of a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from mixlogit_align.alignment.durable import write_durably
from mixlogit_align.alignment.settings import dump_config
from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.report import figures, fitted, measured, tables, wins
from mixlogit_align.report.averages import attributes_of
from mixlogit_align.report.checks import Check, checks
from mixlogit_align.report.described import described
from mixlogit_align.report.figures.drawing import slug
from mixlogit_align.report.figures.gains import gains_of
from mixlogit_align.report.figures.heterogeneity import heterogeneity_figure
from mixlogit_align.report.figures.reliability import reliability_figure
from mixlogit_align.report.files import Evidence, Recovery, Run, data_names, labels, read_evidence

TITLE = "Mixed logit: recovery and alignment"
MOST_BYTES = 5_000_000  # what a mailbox takes and a phone opens at once
MOST_SINGLE = 12  # runs of which each has a figure of its fits, of some 50 kB
# What adds to a run's folder, and to the next page about it.
MEASURES = {
    "evaluate": "margins with their standard errors, by subgroup, and with --against the gains over another run",
    "winrate": "how often a judge prefers its responses to an opponent's",
    "strength": "what its log-ratios say of the strength: for each comparison, and for each annotator",
}


def write_report(paths: Sequence[Path], out: Path) -> list[Check]:
    """Read folders and write the page.

    Parameters
    ----------
    paths : sequence of Path
        As for `read_evidence`.
    out : Path
        The HTML file; one that is there is replaced, whole.

    Returns
    -------
    list of Check
        The verdict that stands at its top.

    Raises
    ------
    InvalidInputError
        As `read_evidence`; for a page of 5 MB or more, which is not written, and a folder in the place of the file.
    OSError
        If it cannot be written.
    """
    if out.is_dir():
        raise InvalidInputError(
            explain(str(out), got="a folder", expected="the page's file", hint=str(out / "report.html"))
        )
    evidence = read_evidence(paths)
    page = build_page(evidence)
    size = len(page.encode())
    if size >= MOST_BYTES:
        raise InvalidInputError(
            explain(
                str(out),
                got=f"a page of {size / 1e6:.1f} MB (runs: {len(evidence.runs)})",
                expected=f"less than {MOST_BYTES / 1e6:.0f} MB",
                hint="fewer RUNs, and a page for each group of them",
            )
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_durably(out, page)
    return checks(evidence)


def build_page(evidence: Evidence) -> str:
    """Return the page as HTML; a pure function of the evidence."""
    sections = [
        *_trained(evidence.runs),
        *_alarms(evidence.runs),
        *(_recovery(recovery) for recovery in evidence.recoveries if recovery.rows),
        *_fine_tuning(evidence.runs),
        *(section for world, runs in evidence.by_data.items() for section in _world(world, runs, evidence)),
        *_weights(evidence),
        *_runtime(evidence.runs),
        *_unmeasured(evidence.runs),
        _settings(evidence),
    ]
    title = _title(evidence)
    style = resources.files("mixlogit_align.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join([_verdict(title, checks(evidence), evidence), _contents(sections), *map(str, sections)])
        + "\n</main>\n</body>\n</html>\n"
    )


@dataclass(frozen=True)
class _Section:
    """A part of the page under a heading."""

    title: str
    body: str

    @property
    def anchor(self) -> str:
        """Its id."""
        return f"section-{slug(self.title)}"

    def __str__(self) -> str:
        return f'<section id="{self.anchor}"><h2>{escape(self.title)}</h2>\n{self.body}\n</section>'


def _title(evidence: Evidence) -> str:
    if evidence.recoveries or not evidence.runs:
        return TITLE
    return evidence.runs[0].name if len(evidence.runs) == 1 else f"{len(evidence.runs)} alignment runs"


def _contents(sections: Sequence[_Section]) -> str:
    links = "".join(f'<li><a href="#{section.anchor}">{escape(section.title)}</a></li>' for section in sections)
    return f'<nav aria-label="Contents"><details><summary>Contents</summary><ul>{links}</ul></details></nav>'


def _verdict(title: str, found: Sequence[Check], evidence: Evidence) -> str:
    failed = sum(check.passed is False for check in found)
    open_ = sum(check.passed is None for check in found)
    alarms = sum(len(run.alarms) for run in evidence.runs)
    if failed:
        kind, words = "bad", f"{failed} of {len(found)} checks failed"
    elif open_ or not found:
        kind, words = "open", f"{len(found) - open_} of {len(found)} checks passed, the rest is open"
    else:
        kind, words = "good", f"All {len(found)} checks passed" if len(found) > 1 else "The one check passed"
    if alarms:
        kind = "open" if kind == "good" else kind
        words += f"; {alarms} alarms to look at" if alarms > 1 else "; 1 alarm to look at"
    data = f"<p>Data: {escape(data_names(evidence.runs))}.</p>\n" if evidence.runs else ""
    quiet = "<p>No alarm was raised while training.</p>\n" if evidence.runs and not alarms else ""
    order = (
        " First the likelihood of this model is held against known truths; only then is a language model aligned "
        "with the same likelihood."
        if evidence.recoveries
        else ""
    )
    items = "".join(f"<li>{tables.mark(check.passed)} <span>{escape(check.text)}</span></li>" for check in found)
    return (
        f'<header class="{kind}"><h1>{escape(title)}</h1>\n<p class="verdict">{words}.</p>\n'
        f'<ul class="checks">{items}</ul>\n{quiet}{data}<p>A person of strength b prefers the first of two '
        f"alternatives with probability σ(b · difference in utility), and b varies between people.{order}</p></header>"
    )


def _trained(runs: Sequence[Run]) -> list[_Section]:
    return [_Section("What was trained", described(runs))] if runs else []


def _alarms(runs: Sequence[Run]) -> list[_Section]:
    """Each kind once, with the runs that it was raised in and the words of the first."""
    raised: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for run, label in zip(runs, labels(runs), strict=True):
        for alarm in run.alarms:
            raised.setdefault(alarm["name"], []).append((label, alarm))
    items = "".join(
        f"<li><code>{escape(name)}</code>: {escape(found[0][1]['message'])} <small>"
        + "; ".join(f"{escape(label)}, {escape(alarm['stage'])} step {alarm['step']}" for label, alarm in found)
        + "</small></li>"
        for name, found in raised.items()
    )
    words = "<p>What the runs noticed themselves: look before you trust them. Numbers are the first run's.</p>"
    return [_Section("Alarms", f"{words}<ul>{items}</ul>")] if items else []


def _recovery(recovery: Recovery) -> _Section:
    what, starts = "by this package alone", ""
    if recovery.beside_xlogit:
        what = "beside xlogit"
        outcomes = [row["xlogit_default_start"] for row in recovery.rows if row["xlogit_default_start"] is not None]
        failures = sum(outcome.startswith("failed") for outcome in outcomes)
        starts = (
            f"<p>From its own default start xlogit failed in {failures} of {len(outcomes)} cases, as the last column "
            "says; for the comparison it was given a start that works.</p>"
        )
    return _Section(
        f"Known strengths recovered, {what}",
        tables.recovery_table(recovery)
        + starts
        + _figure(figures.recovery_figure(recovery))
        + _details("Notes on every case", tables.recovery_notes(recovery)),
    )


def _fine_tuning(runs: Sequence[Run]) -> list[_Section]:
    tuned = [run for run in runs if run.series("sft", "eval", "loss")[0]]
    return [_Section("Supervised fine-tuning", _figure(figures.sft_figure(tuned)))] if tuned else []


def _world(world: str, runs: Sequence[Run], evidence: Evidence) -> Iterator[_Section]:
    """What runs on the same kind of data did and how they compare."""
    names, aligned = labels(runs), [run for run in runs if run.config.preference is not None]
    where = f": {world}" if len(evidence.by_data) > 1 else ""
    if aligned:
        drawn = [figures.curves_figure(world, aligned), figures.calibration_figure(world, aligned)]
        yield _Section(f"Alignment: {world}", tables.methods_table(aligned) + "".join(map(_figure, drawn)))
    for title, body in (
        ("Margins on held-out pairs", _margins(world, runs, names)),
        ("Subgroups", _subgroups(runs, names)),
        ("Gains over other runs", _gains(runs, names)),
        ("Strength", _strength(world, runs, names)),
        ("Win rates", _winrates(runs, names)),
    ):
        if body:
            yield _Section(f"{title}{where}", body)


def _margins(world: str, runs: Sequence[Run], names: Sequence[str]) -> str:
    labelled, found = measured.measured(runs, names)
    if not found:
        return ""
    return measured.margins_table(labelled, found) + _figure(reliability_figure(world, labelled, found))


def _subgroups(runs: Sequence[Run], names: Sequence[str]) -> str:
    labelled, found = measured.measured(runs, names)
    attributes = attributes_of(found)
    if not attributes:
        return ""
    evaluated = [run for run in runs if run.evaluation is not None]
    drawn = [figures.subgroup_margins_figure(alike, metric=metric)
             for metric, alike in _by_metric(evaluated, found).items()]  # fmt: skip
    return (
        "".join(map(_figure, drawn))
        + "".join(f"<h3>{escape(name)}</h3>{measured.subgroups_table(name, labelled, found)}" for name in attributes)
        + "".join(_details(f"{escape(label)}: every metric", measured.every_metric_table(evaluation))
                  for label, evaluation in zip(labelled, found, strict=True))
    )  # fmt: skip


def _gains(runs: Sequence[Run], names: Sequence[str]) -> str:
    labelled, found = measured.gained(runs, names)
    if not found:
        return ""
    drawn = [figures.gains_figure(alike, against, metric=metric)
             for against, held in gains_of(runs).items()
             for metric, alike in _by_metric(*zip(*held, strict=True)).items()]  # fmt: skip
    by_subgroup = [(f"{escape(label)}, by {escape(attribute)}", measured.gains_by_subgroup(attribute, label, gains))
                   for label, gains in zip(labelled, found, strict=True)
                   for attribute in attributes_of([gains])]  # fmt: skip
    return (
        measured.gains_table(labelled, found)
        + "".join(map(_figure, drawn))
        + "".join(_details(summary, body) for summary, body in by_subgroup)
    )


def _by_metric(runs: Sequence[Run], found: Sequence[Mapping[str, Any]]) -> dict[str, list[Run]]:
    """Runs by the margin that they are told by."""
    groups: dict[str, list[Run]] = {}
    for run, result in zip(runs, found, strict=True):
        groups.setdefault(measured.main_metric(result), []).append(run)
    return groups


def _strength(world: str, runs: Sequence[Run], names: Sequence[str]) -> str:
    """What was fitted to the log-ratios, then what training learned; no spread is shown without what it is worth."""
    fitted_runs = [(run, name) for run, name in zip(runs, names, strict=True) if run.heterogeneity is not None]
    single = len(fitted_runs) <= MOST_SINGLE
    parts = [_fitted(run, name, drawn=single) for run, name in fitted_runs]
    if not single:
        parts.append(f"<p>Of more than {MOST_SINGLE} runs the figures of these fits are on pages of fewer runs.</p>")
    drawn = [figures.strength_figure(world, runs), figures.trajectory_figure(world, runs)]
    return "".join([*parts, *map(_figure, drawn)])


def _fitted(run: Run, name: str, *, drawn: bool) -> str:
    found = run.heterogeneity
    assert found is not None
    return (
        f"<h3>{escape(name)}: fitted to its{' held-out' if found.get('held_out') else ''} log-ratios</h3>"
        f"{fitted.identification(found)}{fitted.fits_table(found)}{fitted.tests_table(found)}"
        f"{_figure(heterogeneity_figure(run, name) if drawn else None)}"
    )


def _winrates(runs: Sequence[Run], names: Sequence[str]) -> str:
    labelled, found = wins.judged(runs, names)
    return wins.winrate_table(labelled, found) if found else ""


def _weights(evidence: Evidence) -> list[_Section]:
    runs = next(iter(evidence.worlds.values()), [])
    figure = figures.weight_figure(runs)
    return [] if figure is None else [_Section("The loss", _figure(figure))]


def _runtime(runs: Sequence[Run]) -> list[_Section]:
    figure = figures.runtime_figure(runs)
    return [] if figure is None else [_Section("Run time", _figure(figure))]


def _unmeasured(runs: Sequence[Run]) -> list[_Section]:
    """Which commands would add to the page, in a line each; those that would serve no run are left out."""
    finished = [run for run in runs if run.config.preference is not None and run.status == "finished"]
    lacking = {
        "evaluate": [run for run in finished if run.evaluation is None],
        "winrate": [] if any(run.winrates for run in finished) else finished,
        "strength": [run for run in finished if run.heterogeneity is None and run.log_ratios is not None],
    }
    lines = [f"<li><code>mixlogit-align {command} {escape(str(without[0].path))}</code> adds {MEASURES[command]}"
             + (f" <small>(and {len(without) - 1} more runs)</small>" if len(without) > 1 else "") + "</li>"
             for command, without in lacking.items() if without]  # fmt: skip
    return [_Section("Not measured yet", f"<ul>{''.join(lines)}</ul>")] if lines else []


def _settings(evidence: Evidence) -> _Section:
    versions = [
        tables.versions_table(recovery.versions, recovery.machine, f"What {escape(recovery.path.name)} was made with.")
        for recovery in evidence.recoveries
    ]
    made: dict[tuple[Any, ...], list[Run]] = {}
    for run in evidence.runs:
        if run.machine is not None:
            made.setdefault((*run.versions.items(), run.machine), []).append(run)
    for runs in made.values():
        names = escape("; ".join(dict.fromkeys(run.name for run in runs)))
        assert runs[0].machine is not None
        versions.append(tables.versions_table(runs[0].versions, runs[0].machine, f"What was trained with: {names}."))
    configs = [
        _details(f"{escape(name)}: config.yaml", f'<pre tabindex="0">{escape(dump_config(run.config))}</pre>')
        for name, run in zip(labels(evidence.runs), evidence.runs, strict=True)
    ]
    return _Section("Settings and versions", "".join([*versions, *configs]))


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>{body}</details>"


def _figure(figure: figures.Figure | None) -> str:
    """A figure as HTML; nothing for none."""
    if figure is None:
        return ""
    keys = "".join(f"<li>{key.svg}<span>{escape(key.label)}</span></li>" for key in figure.keys)
    legend = f'<ul class="keys">{keys}</ul>' if keys else ""
    panels = "".join(
        f'<div class="panel">{f"<h4>{escape(panel.title)}</h4>" if panel.title else ""}{panel.svg}</div>'
        for panel in figure.panels
    )
    return (
        f'<figure id="{figure.name}" class="panels-{min(len(figure.panels), 3)}" aria-label="{escape(figure.title)}">'
        f'<h3>{escape(figure.title)}</h3>{legend}<div class="panels">{panels}</div>'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>\n"
    )
