"""The demonstration: recover known strengths from choices; only then align a policy; then one page about both."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUNS = "alignment"
# |z| beyond this happens by chance once in 150,000 estimates; the seeds are fixed, so it happens always or never.
Z_BOUND = 4.5
# With no heterogeneity, 2 (loglik - fixed loglik) exceeds this in 1 of 100,000 data sets (half of chi-squared, 1 df).
LIKELIHOOD_RATIO_BOUND = 18.2
VERSIONS = ("torch", "pyro-ppl", "transformers", "numpy", "scipy")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A known strength, and how many choices are made under it.

    Parameters
    ----------
    family : str
        As ``MixedLogitModel`` names it.
    true : dict
        Natural parameters of the family, or mean and an sd of 0: a strength that does not vary.
    panel : bool
        400 individuals with 10 choices each; else a cross-section.
    seed : int
    quick : bool
        Whether a short demonstration has it too.
    """

    family: str
    true: dict[str, float]
    panel: bool
    seed: int
    quick: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        kind = "panel" if self.panel else "cross-section"
        return f"{self.family}, {kind}" + ("" if self.heterogeneous else ", cv 0")

    @property
    def heterogeneous(self) -> bool:
        """Whether the strength varies."""
        return self.true.get("x.sd") != 0.0

    def mixing(self) -> Any:
        """The true distribution of strength."""
        import pyro.distributions as dist
        import torch

        from mixlogit_align.distributions import Triangular

        first, second = (torch.tensor(value, dtype=torch.float64) for value in self.true.values())
        if not self.heterogeneous:
            return dist.Delta(first)
        return {
            "normal": dist.Normal,
            "lognormal": dist.LogNormal,
            "uniform": lambda loc, scale: dist.Uniform(loc - scale, loc + scale),
            "triangular": lambda loc, scale: Triangular(loc - scale, loc + scale),
            "gamma": dist.Gamma,
        }[self.family](first, second)


TRUTHS = {
    "normal": {"x.loc": 1.0, "x.scale": 1.0},
    "lognormal": {"x.loc": 0.3, "x.scale": 0.7},
    "uniform": {"x.loc": 1.0, "x.scale": 1.8},
    "triangular": {"x.loc": 1.0, "x.scale": 2.4},
    "gamma": {"x.concentration": 2.0, "x.rate": 1.5},
}
# Individuals; strengths of both signs take the slower quadrature.
CROSS_SECTION = {"normal": 2000, "lognormal": 4000, "uniform": 2000, "triangular": 2000, "gamma": 4000}
FIXED = {"x.mean": 1.0, "x.sd": 0.0}
QUICK = (("lognormal", False), ("gamma", False), ("normal", True))  # (family, panel)
CASES = tuple(
    [
        Case(family=family, true=true, panel=panel, seed=100 + 100 * panel + i, quick=(family, panel) in QUICK)
        for i, (family, true) in enumerate(TRUTHS.items())
        for panel in (False, True)
    ]
    + [
        Case(family=family, true=FIXED, panel=panel, seed=300 + 100 * panel + i, quick=(i, panel) == (1, True))
        for i, family in enumerate(("normal", "lognormal", "gamma"))
        for panel in (False, True)
    ]
)


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


def recover(case: Case) -> dict[str, Any]:
    """Simulate choices of a known strength, estimate it, and say how far off the estimate is.

    Returns
    -------
    dict
        A row as `mixlogit_align.report.Recovery` has it; ``passed`` if the fit converged, every estimate is
        within 4.5 standard errors of its truth, and no heterogeneity is found where there is none.
    """
    import pyro.distributions as dist
    import torch

    from mixlogit_align.econometrics import MixedLogitModel, simulate_choices

    start = time.perf_counter()
    # a wide attribute: choices from nearly indifferent to nearly certain are what tell the spread
    attribute = dist.Normal(torch.zeros((), dtype=torch.float64), 1.5)
    individuals, situations = (400, 10) if case.panel else (CROSS_SECTION[case.family], 1)
    simulated = simulate_choices(
        case.mixing(),
        num_individuals=individuals,
        num_situations=situations,
        attribute=attribute,
        seed=case.seed,
    )
    fit = MixedLogitModel(simulated.data, random={"x": case.family}).fit()
    if case.heterogeneous:
        estimate, errors, judged = fit.params, fit.std_errors, list(case.true)
    else:  # the spread's error is no normal one at the boundary; the likelihood ratio judges it
        estimate, errors, judged = fit.moments, fit.moment_std_errors, ["x.mean"]
    z = {name: (estimate[name] - case.true[name]) / errors[name] for name in judged}
    ratio = 2.0 * (fit.loglik - fit.fixed.loglik)
    passed = fit.converged and all(abs(value) <= Z_BOUND for value in z.values())
    note = f"{fit.integration.rule}, integration error {fit.integration.error:.0e}; {fit.message}"
    if not case.heterogeneous:
        passed = passed and ratio <= LIKELIHOOD_RATIO_BOUND
        note += f"; likelihood ratio against a fixed strength {ratio:.2f}"
    unknown = ("xlogit_estimate", "xlogit_loglik", "loglik_rel_diff", "gradient_rel_diff", "fit_abs_diff",
               "xlogit_default_start")  # fmt: skip
    return {
        "case": case.name,
        "family": case.family,
        "panel": case.panel,
        "n_individuals": individuals,
        "n_choices": simulated.choice.numel(),
        "true": case.true,
        "estimate": estimate,
        "std_error": errors,
        "z": z,
        "loglik": fit.loglik,
        **dict.fromkeys(unknown),
        "note": note,
        "seconds": time.perf_counter() - start,
        "passed": passed,
    }


def _recover_all(cases: Iterable[Case], file: Path, console: Any) -> bool:
    """Recover every case; the file is written anew after each, so that an interrupted run leaves what it has."""
    from rich.progress import Progress

    cases = list(cases)
    report = {"versions": _versions(), "machine": _machine(), "rows": [], "passed": False}

    def save() -> None:
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    rows: list[dict[str, Any]] = []
    report["rows"] = rows
    save()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=case.name)
            rows.append(recover(case))
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


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    from mixlogit_align import __version__

    return {"mixlogit_align": __version__, "python": platform.python_version(), **{k: version(k) for k in VERSIONS}}


def _machine() -> str:
    import os

    import torch

    system = f"{platform.system()} {platform.machine()}"
    return f"{system}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
