"""Whether intervals and tests of preference margins keep their promises, by number of annotators; and a run's margins.

    python validation/evaluation.py [--out validation/reports] [--trials 400] [--runs runs/evaluation] [--full]

Writes evaluation.json and .md; exits with 1 if a claim fails. Some minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from mixlogit_align.alignment import RichProgress, demo_runs
from mixlogit_align.alignment.evaluation import Gain, Gains, PairTable, evaluate, gains, pair_metrics, run_pairs

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _report import REPORTS, Report

METRIC = "log_ratio/margins"
GROUPS = 20
Draw = Callable[[np.random.Generator, int], np.ndarray]
LAWS: dict[str, Draw] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "skewed (exponential)": lambda rng, size: rng.exponential(size=size) - 1.0,
}
SIZES: dict[str, Draw] = {
    "5 pairs each": lambda rng, size: np.full(size, 5),
    "1 to 40 pairs": lambda rng, size: np.exp(rng.uniform(0.0, np.log(41.0), size=size)).astype(int),
}


def gain_of_people(rng: np.random.Generator, sizes: np.ndarray, law: Draw, shift: float, **settings) -> Gains:
    """Gains of people who differ (a person's own mean, and pair by pair), with a true mean of ``shift``."""
    people = np.repeat(np.arange(len(sizes)), sizes)
    values = law(rng, len(sizes))[people] + law(rng, len(people)) + shift
    columns = {"pair_ids": np.arange(len(people)), "annotator_ids": [f"a{i}" for i in people]}
    columns["groups"] = [{"group": str(i % GROUPS)} for i in people]
    one, other = (
        PairTable(name=name, logratio_diff=x, **columns) for name, x in (("one", values), ("other", 0 * values))
    )
    return gains(one, other, metrics=[METRIC], **settings)


def coverage(report: Report, trials: int) -> None:
    """Intervals and the test, by number of clusters."""
    report.section(
        "Intervals and tests by number of annotators",
        "Pairs of annotators who have a mean of their own, as spread out as their pairs; the true gain is 0. Coverage "
        "of 95 % intervals, Student's on clustered standard errors and the BCa one, and how often the sign-flip test "
        f"rejects at 5 %. {trials} samples each: a standard error of {np.sqrt(0.05 * 0.95 / trials):.1%}.",
    )
    rows = []
    for law, draw in LAWS.items():
        for size, how_many in SIZES.items():
            for num in (5, 10, 20, 40, 80):
                rng = np.random.default_rng(num)
                plain = bca = rejected = 0
                for _ in range(trials):
                    found = gain_of_people(
                        rng, how_many(rng, num), draw, 0.0, attributes=[], minimum=2, num_replications=500,
                        num_permutations=1000,
                    ).averages[0]  # fmt: skip
                    gain = found.estimates[METRIC]
                    assert isinstance(gain, Gain)
                    half = float(student.ppf(0.975, num - 1)) * gain.standard_error
                    plain += abs(gain.value) <= half
                    bca += gain.lower <= 0.0 <= gain.upper
                    rejected += gain.pvalue <= 0.05
                rows.append([law, size, num, plain / trials, bca / trials, rejected / trials])
    report.table(
        "coverage", "Coverage and size", ["law", "pairs", "annotators", "Student", "BCa", "rejects at 5 %"], rows
    )
    # 4.5 standard errors of a binomial, and two points for what is asymptotic
    slack = 4.5 * np.sqrt(0.05 * 0.95 / trials) + 0.02
    symmetric = [row for row in rows if row[0] == "normal"]
    worst = max(row[5] for row in symmetric)
    report.claim("normal, 5 to 80 annotators", "the test rejects in 5 % at most (worst)", worst, worst <= 0.05 + slack)
    equal = [row for row in rows if row[1] == "5 pairs each" and row[0] == "normal" and row[2] >= 10]
    least = min(row[3] for row in equal)
    report.claim("normal, 5 pairs each, 10 or more", "Student covers in 95 % (least)", least, least >= 0.95 - slack)
    large = [row for row in rows if row[2] == 80]
    least = min(min(row[3], row[4]) for row in large)
    report.claim(
        "80 annotators, all designs", "both intervals cover in 95 %, less 3 (least)", least, least >= 0.92 - slack
    )


def families(report: Report, trials: int) -> None:
    """False rejections among many subgroups."""
    report.section(
        "Many subgroups",
        f"{GROUPS} subgroups of 10 annotators with 5 pairs each. A family of tests without any true gain, and one of "
        "which the first quarter gains 1.5.",
    )
    rows = []
    for adjustment in ("holm", "benjamini_hochberg"):
        for num_true in (0, GROUPS // 4):
            rng = np.random.default_rng(7)
            any_false, share_false, power = 0, 0.0, 0
            for _ in range(trials):
                sizes = np.full(10 * GROUPS, 5)
                real = np.arange(10 * GROUPS) % GROUPS < num_true
                shift = 1.5 * np.repeat(real, sizes)
                found = gain_of_people(
                    rng, sizes, LAWS["normal"], shift, num_replications=200, num_permutations=2000,
                    adjustment=adjustment,
                )  # fmt: skip
                cells = [a for a in found.averages if a.kind == "cell"]
                rejected = {int(a.level) for a in cells if a.estimates[METRIC].adjusted_pvalue <= 0.05}
                false = [g for g in rejected if g >= num_true]
                any_false += bool(false)
                share_false += len(false) / max(len(rejected), 1)
                power += len(rejected) - len(false)
            shown = power / (trials * num_true) if num_true else float("nan")
            rows.append([adjustment, num_true, any_false / trials, share_false / trials, shown])
    report.table(
        "families", "Rejections at 5 %", ["adjustment", "true gains", "any false", "false share", "power"], rows
    )
    slack = 4.5 * np.sqrt(0.05 * 0.95 / trials)
    worst = max(row[2] for row in rows if row[0] == "holm")
    report.claim("holm", "any false rejection in 5 % of families at most (worst)", worst, worst <= 0.05 + slack)
    worst = max(row[3] for row in rows if row[0] != "holm")
    report.claim("Benjamini and Hochberg", "5 % of rejections false at most (worst)", worst, worst <= 0.05 + slack)


def runs(report: Report, folder: Path, full: bool) -> None:
    """Margins of small runs on simulated annotators, whose cohort is the weaker or stronger half by true strength."""
    report.section("Runs on simulated annotators", "Policies far too small to judge the methods by.")
    with RichProgress() as progress:
        results = demo_runs(folder, progress, quick=not full)
    policies = [result for result in results if result.path.name.startswith("cv1")]
    tables = [run_pairs(result.path) for result in policies]
    rows = []
    for result, table in zip(policies, tables, strict=True):
        logged, found = result.metrics["preference"], evaluate(table)
        values = pair_metrics(table)
        for name, other in (("margin/sum", "margin/sum"), ("margin/reward", "rewards/margins")):
            off = abs(values[name].mean() - logged[other])
            report.claim(result.name, f"the mean {name} is the run's own {other} (difference)", off, off < 1e-4)
        for average in found.averages:
            margin, accuracy = (average.estimates[name] for name in ("margin/sum", "accuracy"))
            cells = [average.num_pairs, average.num_clusters, margin.value, margin.standard_error, accuracy.value]
            rows.append([result.name, average.label, *cells])
    report.table(
        "margins",
        "Margins (nats) and accuracy",
        ["method", "of", "pairs", "annotators", "margin/sum", "s.e.", "accuracy"],
        rows,
    )
    rows = []
    for result, table in zip(policies[1:], tables[1:], strict=True):
        for average in gains(table, tables[0]).averages:
            for name in ("margin/sum", "loglik"):
                gain = average.estimates[name]
                interval = f"{gain.lower:.4f} to {gain.upper:.4f}"
                rows.append([result.name, average.label, name, gain.value, interval, gain.pvalue, gain.adjusted_pvalue])
    report.table(
        "gains", f"Gains over {policies[0].name}, paired", ["method", "of", "metric", "gain", "95 %", "p", "Holm"], rows
    )


def main() -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPORTS)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--runs", type=Path, default=Path("runs/evaluation"))
    parser.add_argument("--full", action="store_true", help="runs of the size of `mixlogit-align demo`")
    arguments = parser.parse_args()
    report = Report(
        "evaluation",
        "Intervals and tests of preference margins",
        "What `mixlogit_align.alignment.evaluation` says of gains, where the truth is known.",
        "numpy",
        "scipy",
    )
    coverage(report, arguments.trials)
    families(report, arguments.trials)
    runs(report, arguments.runs, arguments.full)
    return report.finish(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
