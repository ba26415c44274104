"""The demonstration: recover known strengths from choices; only then align a policy; then one page about both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mixlogit_align.recovery import CASES, Case, recover

RUNS = "alignment"


def run_demo(out: Path, *, quick: bool = False) -> bool:
    """Recover, align, report.

    Parameters
    ----------
    out : Path
        Gets ``recovery.json``, ``alignment/`` with one folder a run, and ``report.html``. A ``first_light.json`` in
        it, the same recovery beside xlogit, is shown too; the recovery here is then a short one.
    quick : bool
        Fewer cases and examples: shows that everything runs, not what is learned.

    Returns
    -------
    bool
        Whether every check passed. When recovery fails, nothing is aligned. However it ends, Ctrl-C included, the
        page shows what was done.

    Raises
    ------
    MixlogitError
        When ``first_light.json`` says that it failed, or a run goes wrong.
    """
    from rich.console import Console

    from mixlogit_align.alignment import RichProgress, demo_runs
    from mixlogit_align.report import write_report

    console = Console(highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    shown_beside_xlogit = _first_light(out / "first_light.json")
    for config in (out / RUNS).glob("*/config.yaml"):  # an earlier demonstration's, which this page is not about
        shutil.rmtree(config.parent)
    page = out / "report.html"
    try:
        cases = [case for case in CASES if case.quick or not (quick or shown_beside_xlogit)]
        console.rule("1. Known strengths are recovered from choices")
        recovered = _recover_all(cases, out / "recovery.json", console)
        if recovered:
            console.rule("2. A policy is aligned with the same likelihood")
            with RichProgress() as progress:
                demo_runs(out / RUNS, progress, quick)
        else:
            console.print("Recovery failed, so nothing is aligned.", style="bold red")
    finally:
        found = write_report([out], page)
        console.rule("3. The report")
        for check in found:
            sign = {True: "[green]passed[/]", False: "[red]failed[/]", None: "[yellow]open[/]"}[check.passed]
            console.print(sign, check.text)
        console.print(f"Open {page}")
    return all(check.passed for check in found)


def _recover_all(cases: Iterable[Case], file: Path, console: Any) -> bool:
    """Recover every case; the file is written anew after each, so that an interrupted run leaves what it has."""
    from rich.progress import Progress

    from mixlogit_align.alignment.environment import machine, versions

    cases = list(cases)
    report = {"versions": versions(), "machine": machine(), "rows": [], "passed": False}

    def save() -> None:
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    rows: list[dict[str, Any]] = []
    report["rows"] = rows
    save()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=case.name)
            rows.append(recover(case).row)
            save()
            progress.advance(task)
            progress.console.print(_line(rows[-1]))
    report["passed"] = all(row["passed"] for row in rows)
    save()
    return bool(report["passed"])


def _line(row: dict[str, Any]) -> str:
    estimates = ", ".join(
        f"{name.partition('.')[2]} {row['estimate'][name]:.3f} (truth {true:g})" for name, true in row["true"].items()
    )
    return f"{'[green]ok[/]' if row['passed'] else '[red]FAILED[/]'} {row['case']}: {estimates}"


def _first_light(file: Path) -> bool:
    """Whether the recovery beside xlogit lies there and passed; an error if it failed."""
    from mixlogit_align.errors import MixlogitError, explain
    from mixlogit_align.report.files import read_recovery

    if not file.exists():
        return False
    if not read_recovery(file).passed:
        raise MixlogitError(
            explain(
                str(file),
                got="a recovery that failed or was interrupted",
                expected="one that passed",
                hint="running it again, or removing the file to recover without xlogit",
            )
        )
    return True
