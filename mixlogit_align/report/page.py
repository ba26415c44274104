"""One self-contained HTML page: the verdict first, then the evidence. It asks nothing of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from mixlogit_align.alignment.settings import dump_config
from mixlogit_align.report import figures, tables
from mixlogit_align.report.checks import Check, checks
from mixlogit_align.report.files import Evidence, Recovery, Run, data_names, read_evidence

TITLE = "Mixed logit: recovery and alignment"


def write_report(paths: Sequence[Path], out: Path) -> list[Check]:
    """Read folders and write the page.

    Parameters
    ----------
    paths : sequence of Path
        As for `read_evidence`.
    out : Path
        The HTML file.

    Returns
    -------
    list of Check
        The verdict that stands at its top.

    Raises
    ------
    InvalidInputError
        As `read_evidence`.
    """
    evidence = read_evidence(paths)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(build_page(evidence), encoding="utf-8")
    return checks(evidence)


def build_page(evidence: Evidence) -> str:
    """Return the page as HTML; a pure function of the evidence."""
    sections = [
        _verdict(checks(evidence), evidence),
        *_alarms(evidence.runs),
        *(_recovery(recovery) for recovery in evidence.recoveries if recovery.rows),
        *_fine_tuning(evidence.runs),
        *(_world(world, runs) for world, runs in evidence.worlds.items()),
        *_weights(evidence),
        _settings(evidence),
    ]
    style = resources.files("mixlogit_align.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{TITLE}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _verdict(found: Sequence[Check], evidence: Evidence) -> str:
    failed = sum(check.passed is False for check in found)
    open_ = sum(check.passed is None for check in found)
    if failed:
        kind, words = "bad", f"{failed} of {len(found)} checks failed"
    elif open_ or not found:
        kind, words = "open", f"{len(found) - open_} of {len(found)} checks passed, the rest is open"
    else:
        kind, words = "good", f"All {len(found)} checks passed" if len(found) > 1 else "The one check passed"
    data = f"<p>Data: {escape(data_names(evidence.runs))}.</p>\n" if evidence.runs else ""
    order = (
        " First the likelihood of this model is held against known truths; only then is a language model aligned "
        "with the same likelihood."
        if evidence.recoveries
        else ""
    )
    items = "".join(f"<li>{tables.mark(check.passed)} <span>{escape(check.text)}</span></li>" for check in found)
    return (
        f'<header class="{kind}"><h1>{TITLE}</h1>\n<p class="verdict">{words}.</p>\n<ul class="checks">{items}</ul>\n'
        f"{data}<p>A person of strength b prefers the first of two alternatives with probability σ(b · difference in "
        f"utility), and b varies between people.{order}</p></header>"
    )


def _alarms(runs: Sequence[Run]) -> list[str]:
    """Each kind once, with the runs that it was raised in and the words of the first."""
    raised: dict[str, list[tuple[Run, Mapping[str, Any]]]] = {}
    for run in runs:
        for alarm in run.alarms:
            raised.setdefault(alarm["name"], []).append((run, alarm))
    items = "".join(
        f"<li><code>{escape(name)}</code>: {escape(found[0][1]['message'])} <small>"
        + "; ".join(
            f"{escape(run.name)} ({escape(run.data_name)}), {escape(a['stage'])} step {a['step']}" for run, a in found
        )
        + "</small></li>"
        for name, found in raised.items()
    )
    words = "<p>What the runs noticed themselves: look before you trust them. Numbers are the first run's.</p>"
    return [_section("Alarms", f"{words}<ul>{items}</ul>")] if items else []


def _recovery(recovery: Recovery) -> str:
    what, starts = "by this package alone", ""
    if recovery.beside_xlogit:
        what = "beside xlogit"
        outcomes = [row["xlogit_default_start"] for row in recovery.rows if row["xlogit_default_start"] is not None]
        failures = sum(outcome.startswith("failed") for outcome in outcomes)
        starts = (
            f"<p>From its own default start xlogit failed in {failures} of {len(outcomes)} cases, as the last column "
            "says; for the comparison it was given a start that works.</p>"
        )
    return _section(
        f"Known strengths recovered, {what}",
        tables.recovery_table(recovery)
        + starts
        + _figure(figures.recovery_figure(recovery))
        + _details("Notes on every case", tables.recovery_notes(recovery)),
    )


def _fine_tuning(runs: Sequence[Run]) -> list[str]:
    tuned = [run for run in runs if run.series("sft", "eval", "loss")[0]]
    return [_section("Supervised fine-tuning", _figure(figures.sft_figure(tuned)))] if tuned else []


def _world(world: str, runs: Sequence[Run]) -> str:
    drawn = [
        figures.curves_figure(world, runs),
        figures.calibration_figure(world, runs),
        figures.strength_figure(world, runs),
        figures.trajectory_figure(world, runs),
    ]
    body = tables.methods_table(runs) + "".join(_figure(figure) for figure in drawn if figure is not None)
    return _section(f"Alignment: {escape(world)}", body)


def _weights(evidence: Evidence) -> list[str]:
    runs = next(iter(evidence.worlds.values()), [])
    figure = figures.weight_figure(runs)
    return [] if figure is None else [_section("The loss", _figure(figure))]


def _settings(evidence: Evidence) -> str:
    versions = [
        tables.versions_table(recovery.versions, recovery.machine, f"What {escape(recovery.path.name)} was made with")
        for recovery in evidence.recoveries
    ]
    configs = [
        _details(
            f"{escape(run.name)} ({escape(run.data_name)}): config.yaml",
            f"<pre>{escape(dump_config(run.config))}</pre>",
        )
        for run in evidence.runs
    ]
    return _section("Settings and versions", "".join([*versions, *configs]))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>\n{body}\n</section>"


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>{body}</details>"


def _figure(figure: figures.Figure) -> str:
    keys = "".join(f"<li>{key.svg}<span>{escape(key.label)}</span></li>" for key in figure.keys)
    legend = f'<ul class="keys">{keys}</ul>' if keys else ""
    panels = "".join(
        f'<div class="panel">{f"<h4>{escape(panel.title)}</h4>" if panel.title else ""}{panel.svg}</div>'
        for panel in figure.panels
    )
    return (
        f'<figure id="{figure.name}" class="panels-{min(len(figure.panels), 3)}">'
        f'<h3>{escape(figure.title)}</h3>{legend}<div class="panels">{panels}</div>'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>\n"
    )
