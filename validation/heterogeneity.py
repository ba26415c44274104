"""How strengths vary, from tables of judged pairs of known truth: recovery, and the size and power of the tests.

    python validation/heterogeneity.py [--quick] [--jobs -1] [--out validation/reports]

Annotators of known strength judge pairs, once each or several times, and `strength_heterogeneity` is asked. Quick: few
tables, to see that it runs, and no claim about shares. Writes heterogeneity.md and heterogeneity.json, and exits with 1
if a claim fails. Some ten minutes on two cores.
"""

# R tables, N annotators, T comparisons of each.

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import joblib
import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch
from _report import REPORTS, Report
from scipy.stats import binom, chi2

from mixlogit_align.distributions.learnable import mixing_of_mean_cv
from mixlogit_align.econometrics import ChoiceData, simulate_choices, strength_heterogeneity
from mixlogit_align.econometrics.heterogeneity_profile import CvProfile

REPLICATIONS, QUICK_REPLICATIONS = 120, 4
FAMILIES, CVS = ("lognormal", "gamma"), (0.0, 0.5, 1.0)
DESIGNS = ((500, 1), (100, 5), (40, 20))  # N, T
MODELS = ("comparison", "annotator")
MEAN, SPREAD = 0.1, 10.0  # of the strength; of a response's log-ratio, in nats
LEVEL, FAMILYWISE = 0.95, 0.01
SIZES, QUICK_SIZES = ((1000, 5), (5000, 20)), ((100, 5),)  # N, T of tables that are timed
COLUMN, ANNOTATOR = "logratio_diff", "annotator_id"


@dataclass(frozen=True, order=True)
class Cell:
    """One truth and design."""

    family: str
    cv: float
    annotators: int
    each: int

    @property
    def name(self) -> str:
        return f"{self.family}, cv {self.cv:g}, {self.annotators} annotators, {self.each} each"

    @property
    def models(self) -> tuple[str, ...]:
        return MODELS if self.each > 1 else MODELS[:1]


@dataclass(frozen=True)
class Found:
    """What one table said by one model."""

    mean: float
    cv: float
    converged: bool
    at_boundary: bool
    p: float
    covered: bool  # the true cv, by the profile's interval
    mean_covered: bool  # the true mean, by its standard error


def table(family: str, cv: float, annotators: int, each: int, seed: int) -> pd.DataFrame:
    """Judged pairs of annotators whose strengths have this mean and cv."""
    mean = torch.tensor(MEAN, dtype=torch.float64)
    mixing = mixing_of_mean_cv(family, mean, mean.new_tensor(cv)) if cv else dist.Delta(mean)
    return simulate_choices(
        mixing,
        num_individuals=annotators,
        num_situations=each,
        attribute=dist.Normal(mean.new_zeros(()), SPREAD),
        seed=seed,
    ).logratios


def measure(cell: Cell, seed: int) -> dict[str, Found]:
    """One table of a cell, by each model."""
    torch.set_num_threads(1)
    frame = table(cell.family, cell.cv, cell.annotators, cell.each, seed)
    found = strength_heterogeneity(frame, annotator=ANNOTATOR, family=cell.family, profiled=False)
    fixed = found.estimates["fixed"].mean
    tests = {test.alternative: test.p for test in found.tests}
    result = {}
    for name in cell.models:
        fit = found.estimates[name]
        data = ChoiceData.from_logratios(frame, individual=ANNOTATOR if name == "annotator" else None)
        at_truth = CvProfile(data, COLUMN, cell.family, fixed).at(cell.cv).loglik
        error = fit.std_errors["mean"]
        result[name] = Found(
            mean=fit.mean,
            cv=fit.cv,
            converged=fit.converged,
            at_boundary=fit.at_boundary,
            p=tests[name],
            covered=2.0 * (fit.loglik - at_truth) <= float(chi2.ppf(LEVEL, 1)),
            mean_covered=abs(fit.mean - MEAN) <= 1.96 * error,
        )
    return result


def share(flags: list[bool]) -> str:
    """With its Monte Carlo error."""
    value = float(np.mean(flags))
    return f"{value:.3f} ({math.sqrt(value * (1 - value) / len(flags)):.2g})"


def rejected(found: list[Found]) -> list[bool]:
    return [one.p < 1.0 - LEVEL for one in found]


def show_recovery(report: Report, results: dict[tuple[Cell, str], list[Found]]) -> None:
    rows = []
    for (cell, model), found in results.items():
        good = [one for one in found if one.converged]
        means, cvs = (np.array([getattr(one, what) for one in good]) for what in ("mean", "cv"))
        rows.append(
            [
                cell.name, model, f"{len(good)} of {len(found)}", share([one.at_boundary for one in found]),
                float(np.median(means)), float(np.median(cvs)), float(np.median(abs(cvs - cell.cv))),
                share([one.covered for one in found]),
                share([one.mean_covered for one in good]),
            ]
        )  # fmt: skip
    report.table(
        "recovery",
        f"Medians of mean (true: {MEAN:g}), cv and its absolute error, of the fits that converged; shares with Monte "
        "Carlo errors",
        [
            "truth", "one strength for each", "converged", "no spread most likely", "mean", "cv", "error of the cv",
            "true cv in the profile's interval", "true mean within 1.96 s.e.",
        ],
        rows,
    )  # fmt: skip


def show_rejections(report: Report, results: dict[tuple[Cell, str], list[Found]]) -> None:
    rows = []
    for family, (annotators, each), model in itertools.product(FAMILIES, DESIGNS, MODELS):
        cells = [Cell(family, cv, annotators, each) for cv in CVS]
        if model in cells[0].models:
            shares = [share(rejected(results[cell, model])) for cell in cells]
            rows.append([family, annotators, each, model, *shares])
    report.table(
        "rejections",
        f"Share of tables in which one strength for all is rejected at {1 - LEVEL:.0%}",
        ["family", "annotators", "comparisons of each", "one strength for each", *(f"cv {cv:g}" for cv in CVS)],
        rows,
    )


def judge(report: Report, results: dict[tuple[Cell, str], list[Found]]) -> None:
    """The claims, those about one share together held against chance."""
    homogeneous = {key: found for key, found in results.items() if key[0].cv == 0.0}
    num = len(next(iter(results.values())))
    tail = FAMILYWISE / len(homogeneous) / 2
    low, high = (int(binom.ppf(at, num, 1.0 - LEVEL)) for at in (tail, 1.0 - tail))
    counts = [sum(rejected(found)) for found in homogeneous.values()]
    report.claim(
        "size", f"without heterogeneity every test rejects in {low} to {high} of {num} tables: fewest, most",
        [min(counts), max(counts)], low <= min(counts) and max(counts) <= high,
    )  # fmt: skip
    least = int(binom.ppf(FAMILYWISE / len(results), num, LEVEL))
    covered = {key: sum(one.covered for one in found) for key, found in results.items()}
    worst = min(covered, key=covered.__getitem__)
    report.claim(
        "profile", f"the {LEVEL:.0%} interval has the true cv, 0 too, in {least} of {num} tables or more: fewest "
        f"({worst[0].name}, {worst[1]})", covered[worst], covered[worst] >= least,
    )  # fmt: skip
    several = [cell for cell, model in results if model == "annotator"]
    converged = [sum(one.converged for one in results[cell, "annotator"]) for cell in several]
    report.claim(
        "annotator", f"one strength an annotator converges in all {num} tables: fewest", min(converged),
        min(converged) == num,
    )  # fmt: skip
    off = {cell: abs(float(np.median([one.cv for one in results[cell, "annotator"]])) - cell.cv) for cell in several}
    report.claim(
        "annotator",
        "the median cv is within 0.15 of the true one: furthest",
        max(off.values()),
        max(off.values()) < 0.15,
    )
    varying = [cell for cell in several if cell.cv > 0.0]
    gained = [
        sum(rejected(results[cell, "annotator"])) - sum(rejected(results[cell, "comparison"])) for cell in varying
    ]
    report.claim(
        "power", "one strength an annotator is told from a fixed one in more tables than one strength a comparison, of "
        "the same pairs: smallest difference in tables", min(gained), min(gained) > 0,
    )  # fmt: skip
    most = [
        float(np.mean(rejected(results[cell, "annotator"]))) for cell in varying if (cell.cv, cell.each) == (1.0, 20)
    ]
    report.claim(
        "power", "at cv 1, of annotators with 20 comparisons each, it is in 80 % of tables or more: least share",
        min(most), min(most) >= 0.8,
    )  # fmt: skip


def show_times(report: Report, sizes: tuple[tuple[int, int], ...]) -> None:
    rows = []
    for annotators, each in sizes:
        frame = table("lognormal", 1.0, annotators, each, 1)
        first: dict[str, float] = {}

        def noted(what: str, done: int, total: int, first: dict[str, float] = first) -> None:
            first.setdefault(what, time.process_time())

        strength_heterogeneity(frame, annotator=ANNOTATOR, progress=noted)
        seconds = [first["profile"] - first["fits"], time.process_time() - first["profile"]]
        rows.append([annotators * each, annotators, *(f"{one:.1f}" for one in seconds)])
    columns = ["comparisons", "annotators", "fits, tests and posteriors", "profile"]
    report.table("times", "Seconds of processor time, LogNormal, one torch thread", columns, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few tables, and no claim about shares")
    parser.add_argument("--jobs", type=int, default=-1, help="processes; -1: one a core")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args()
    torch.set_num_threads(1)
    num = QUICK_REPLICATIONS if options.quick else REPLICATIONS
    report = Report(
        "heterogeneity",
        "How strengths vary: recovery, size and power",
        f"Strengths of mean {MEAN:g} per nat and known cv, differences of log-ratios with a standard deviation of "
        f"{SPREAD * math.sqrt(2):.3g} nats, {num} tables of each kind, fitted by the family that made them. An "
        "annotator keeps a strength over all comparisons.",
        "scipy", "joblib",
    )  # fmt: skip
    cells = [Cell(family, cv, *design) for family in FAMILIES for cv in CVS for design in DESIGNS]
    keys = [(cell, num * i + r) for i, cell in enumerate(cells) for r in range(num)]
    with joblib.parallel_config("loky", inner_max_num_threads=1), warnings.catch_warnings():
        measured = joblib.Parallel(n_jobs=options.jobs)(joblib.delayed(measure)(*key) for key in keys)
    results: dict[tuple[Cell, str], list[Found]] = {(cell, model): [] for cell in cells for model in cell.models}
    for (cell, _), found in zip(keys, measured, strict=True):
        for model, one in found.items():
            results[cell, model].append(one)

    report.section(
        "What holds",
        f"Bands are familywise: where a share is what it is claimed to be, any of them is left with probability "
        f"{FAMILYWISE:.0%} at the most (Bonferroni, binomial).",
    )
    if not options.quick:
        judge(report, results)
    report.section(
        "Tests",
        "Of one strength for all against one strength for each comparison, or annotator; the spread is on its boundary "
        "under the hypothesis, and the statistic half of a chi-square.",
    )
    show_rejections(report, results)
    report.section(
        "Recovery",
        "With one comparison an annotator the two models are one. One strength a comparison is right about each "
        "comparison by itself also where annotators have several; its likelihood takes them as independent, its "
        "standard errors are clustered. Medians, since a cv that is hardly told may be estimated far out.",
    )
    show_recovery(report, results)
    report.section("Time")
    show_times(report, QUICK_SIZES if options.quick else SIZES)
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
