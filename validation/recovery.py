"""Recovery of known truths: bias, RMSE, coverage and standard errors of five models; and what few draws do to them.

    python validation/recovery.py [--quick] [--jobs -1] [--folder build/recovery] [--out validation/reports]

Each replication is on disk in the folder when it is done: the same command continues where it was. Quick: 20
replications of 200 individuals, to see that it runs, and no claim about few draws. Writes recovery.md, recovery.json
and two figures, and exits with 1 if a claim fails.
"""

# R replications, N individuals, T situations each, J alternatives, K draws.

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pyro.distributions as dist
import torch
from _report import REPORTS, ROOT, Report

from mixlogit_align import MonteCarlo
from mixlogit_align.econometrics import RecoveryStudy, recovery_study
from mixlogit_align.econometrics.study_figure import recovery_figure

REPLICATIONS, INDIVIDUALS, SITUATIONS = 200, 1000, 8
QUICK_REPLICATIONS, QUICK_INDIVIDUALS = 20, 200
LEVEL, FAMILYWISE = 0.95, 0.01
FEW_DRAWS = MonteCarlo(16)
# choices from nearly indifferent to nearly certain are what tell the spread of a strength
WIDE = dist.Normal(torch.zeros((), dtype=torch.float64), 1.5)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One truth and its model."""

    name: str
    truth: dict[str, float]
    random: dict[str, str]
    correlated: bool = False
    num_alternatives: int = 2
    few_draws: bool = True  # also with few draws

    def run(self, folder: Path, options: argparse.Namespace, fit: dict[str, Any]) -> RecoveryStudy:
        return recovery_study(
            self.truth,
            random=self.random,
            correlated=self.correlated,
            num_individuals=QUICK_INDIVIDUALS if options.quick else INDIVIDUALS,
            num_situations=SITUATIONS,
            num_alternatives=self.num_alternatives,
            attributes=dict.fromkeys(self.random, WIDE),
            num_replications=QUICK_REPLICATIONS if options.quick else REPLICATIONS,
            fit=fit,
            level=LEVEL,
            seed=1,
            out=folder / self.name.replace(" ", "_"),
            n_jobs=options.jobs,
            progress=sys.stdout.isatty(),
        )


TWO = {"a": "normal", "b": "lognormal"}
CASES = (
    Case(name="lognormal panel", truth={"x.loc": 0.3, "x.scale": 0.7}, random={"x": "lognormal"}),
    Case(name="gamma panel", truth={"x.concentration": 2.0, "x.rate": 1.5}, random={"x": "gamma"}),
    Case(
        name="two coefficients",
        truth={"a.loc": 0.5, "a.scale": 0.8, "b.loc": 0.0, "b.scale": 0.5},
        random=TWO,
        num_alternatives=3,
    ),
    Case(
        name="correlated",
        truth={"a.loc": 0.5, "b.loc": 0.0, "chol.a.a": 0.8, "chol.b.a": 0.3, "chol.b.b": 0.4},
        random=TWO,
        correlated=True,
        num_alternatives=3,
    ),
    Case(name="homogeneous", truth={"x.loc": 0.0, "x.scale": 0.0}, random={"x": "lognormal"}, few_draws=False),
)


def commits_of(folder: Path, commit: str) -> list[str]:
    """All commits at which this folder's replications were made, this one among them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "commits.txt"
    known = path.read_text().split() if path.exists() else []
    if commit not in known:
        path.write_text("\n".join([*known, commit]) + "\n")
    return path.read_text().split()


def show(report: Report, name: str, study: RecoveryStudy) -> None:
    """The table of one study."""
    rows = []
    for quantity, one in study.to_frame().iterrows():
        judged = quantity in study.judged
        rows.append(
            [
                quantity,
                f"{one.truth:.4g}",
                f"{one.bias:+.2g} ({one.bias_error:.1g})",
                f"{one.bias_z:+.2f}" + ("" if judged else " (not judged)"),
                f"{one.rmse:.3g} ({one.rmse_error:.1g})",
                "" if one.isna().coverage else f"{one.coverage:.3f} ({one.coverage_error:.2g})",
                "" if one.isna().se_ratio else f"{one.se_ratio:.3f} ({one.se_ratio_error:.2g})",
            ]
        )
    columns = ["", "truth", "bias", "z of bias", "RMSE", f"coverage of {LEVEL:.0%}", "standard error / sd"]
    report.table(name, name, columns, rows)
    counted = f"{len(study.replications)} replications, {len(study.converged)} of them converged"
    counted += f", {len(study.failures)} failed, {study.at_boundary.count} with a spread of 0"
    report.text(f"{counted}: {study.settings['title']}.")


def judge(report: Report, name: str, study: RecoveryStudy, comparisons: int) -> None:
    """Convergence, coverage and bias of one study, all of them together held against chance."""
    total, good = len(study.replications), len(study.converged)
    report.claim(name, f"all {total} replications converged", good, good == total)
    band = study.chance(comparisons, FAMILYWISE)
    judged = {quantity: study.statistics[quantity] for quantity in study.judged}
    shares = [one.coverage.value for one in judged.values()]
    inside = all(band.lowest <= share <= band.highest for share in shares)
    claim = f"coverage of {LEVEL:.0%} intervals between {band.lowest:.3f} and {band.highest:.3f}"
    report.claim(name, claim, f"{min(shares):.3f} to {max(shares):.3f} over {len(judged)}", inside)
    worst = max(judged, key=lambda quantity: abs(judged[quantity].bias_z))
    z = judged[worst].bias_z
    claim = f"bias below {band.z:.2f} Monte Carlo errors"
    report.claim(name, claim, f"{z:+.2f}, the largest of {len(judged)} ({worst})", abs(z) <= band.z)
    if study.without_heterogeneity:
        rejected = study.rejections
        assert rejected is not None
        low, high = 1.0 - band.highest, 1.0 - band.lowest
        claim = f"the likelihood-ratio test at {1 - LEVEL:.0%} rejects in a share between {low:.3f} and {high:.3f}"
        report.claim(name, claim, f"{rejected.value:.3f}", low <= rejected.value <= high)


def show_bias(report: Report, name: str, study: RecoveryStudy, exact: RecoveryStudy, comparisons: int) -> None:
    """That few draws leave a bias that the default rule does not have."""
    band = study.chance(comparisons, FAMILYWISE)
    model = {quantity: study.statistics[quantity] for quantity in study.settings["parameters"]}
    worst = max(model, key=lambda quantity: abs(model[quantity].bias_z))
    z, before = model[worst].bias_z, exact.statistics[worst].bias_z
    text = f"{worst}: {z:+.1f}; coverage {model[worst].coverage.value:.3f}; by the default rule {before:+.1f}"
    report.claim(name, f"some bias beyond {band.z:.2f} Monte Carlo errors", text, abs(z) > band.z)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few replications of few individuals")
    parser.add_argument("--jobs", type=int, default=-1, help="processes that share the replications; -1: one a core")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "recovery", help="where replications are kept")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args()
    folder = options.folder / ("quick" if options.quick else "full")
    report = Report(
        "recovery",
        "Recovery of known truths",
        "Choices are simulated under a known truth and estimated by the default rule of integration, many times over; "
        "attributes are drawn anew each time, normal with a standard deviation of 1.5. Monte Carlo standard errors "
        "stand in parentheses.",
        "scipy",
        "joblib",
    )
    commits = commits_of(folder, str(report.provenance["commit"]))
    studies, few = {}, {}
    for case in CASES:
        studies[case.name] = case.run(folder / "default", options, {})
        print(studies[case.name].summary, flush=True)
    for case in CASES:
        if case.few_draws:
            few[case.name] = case.run(folder / "few_draws", options, {"integration": FEW_DRAWS})
            print(few[case.name].summary, flush=True)

    report.text(f"The replications were made at {'commit' if len(commits) == 1 else 'commits'} {', '.join(commits)}.")
    comparisons = sum(len(study.judged) + study.without_heterogeneity for study in studies.values())
    report.section(
        "The default rule",
        f"Bands are familywise: an estimator that is unbiased, and intervals that cover {LEVEL:.0%}, fall outside "
        f"anywhere among all {comparisons} comparisons with probability {FAMILYWISE:.0%} at the most, for bias and for "
        "coverage each (Bonferroni; the coverage by the binomial distribution exactly, the bias by Student's t). "
        "Without heterogeneity the spread lies on the boundary of what it may be, where neither it nor what is "
        "estimated beside it is normal: there the fixed strength is judged, and the size of the likelihood-ratio test "
        "whose null distribution is half of a chi-square.",
    )
    for name, study in studies.items():
        judge(report, name, study, comparisons)
    for name, study in studies.items():
        show(report, name, study)
    report.text(f"![Bias, coverage and standard errors by the default rule]({report.name}.png)")
    report.section(
        f"{FEW_DRAWS.num_draws} pseudo-random draws",
        f"The same data, integrated by {FEW_DRAWS.num_draws} pseudo-random draws an individual, new ones in each "
        "replication. The logarithm of a simulated probability is biased downwards, by about half of its squared "
        "relative error; more draws help, more data do not.",
    )
    for name, study in few.items() if not options.quick else ():
        show_bias(report, name, study, studies[name], comparisons)
    for name, study in few.items():
        show(report, f"{name}, {FEW_DRAWS.num_draws} draws", study)
    report.text(f"![Bias, coverage and standard errors with few draws]({report.name}_few_draws.png)")
    options.out.mkdir(parents=True, exist_ok=True)
    for shown, suffix in ((studies, ""), (few, "_few_draws")):
        recovery_figure(shown, comparisons).savefig(options.out / f"{report.name}{suffix}.png", dpi=110)
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
