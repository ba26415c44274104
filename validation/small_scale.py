"""The MixDPO paper at small scale: which of its claims show, which do not, and why.

    MIXLOGIT_DATA=FOLDER python validation/small_scale.py [--quick] [--jobs 1] [--train-only] [--timed]
                                                          [--runs build/small_scale] [--out validation/reports]

SFT, then DPO and MixDPO (LogNormal and Gamma; the strength frozen, learned at the paper's rate, and faster) of a small
policy on HH, on choices of people with demographics (mg2019), and on simulated annotators whose truth is known. Runs
that have finished in the folder of runs are not made again. Writes small_scale.md, small_scale.json and figures; exits
with 1 if what must hold of any such study does not. What the paper claims is judged by a rule, and fails nothing.
Half an hour on one core; quick, two minutes: two seeds of next to no training, to see that it runs.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import joblib
from _report import REPORTS, ROOT, Report, data_folder
from _small_scale_claims import (
    PEOPLE,
    QUESTION,
    WHY,
    Claim,
    benchmarked,
    gain_claims,
    runtime_claims,
    strength_claims,
    subgroup_claims,
    win_claims,
)
from _small_scale_measures import SHOWS, SHOWS_NOT, UNKNOWN, WORDS, Measured, Study, cells, measure, one, over_seeds
from _small_scale_runs import (
    BATCH,
    DATA,
    FAMILIES,
    FAST,
    FAST_RATE,
    FULL,
    HIDDEN,
    LAYERS,
    METHODS,
    OPTIM,
    PAPER,
    PAPER_RATE,
    QUICK,
    SIMULATED,
    TOKENIZATION,
    TRUE_CV,
    Sizes,
    keys,
    train_all,
)

from mixlogit_align.alignment.config import OptimConfig
from mixlogit_align.alignment.evaluation import Estimate
from mixlogit_align.alignment.strength import constant_gradient_drift
from mixlogit_align.econometrics import strength_heterogeneity
from mixlogit_align.errors import ConvergenceError
from mixlogit_align.report.figures import gains_figure, runtime_figure, subgroup_margins_figure, variance_figure
from mixlogit_align.report.figures.runtime import relative_seconds
from mixlogit_align.report.figures.trajectories import under_constant_gradient
from mixlogit_align.report.files import Run

DPI = 110
OVERHEAD = REPORTS / "overhead.json"


# --- the report ------------------------------------------------------------------------------------


def _shown(estimate: Estimate, shape: str = ".3g") -> str:
    """A mean over seeds and the ends of its interval."""
    if math.isnan(estimate.lower):
        return f"{estimate.value:{shape}}"
    return f"{estimate.value:{shape}} ({estimate.lower:{shape}} to {estimate.upper:{shape}})"


def show_claims(report: Report, claims: Sequence[Claim]) -> None:
    """One line a claim of the paper, then every measurement of it."""
    counts = {word: sum(claim.verdict == word for claim in claims) for word in WORDS}
    report.section(
        "What shows",
        "Each claim is measured as a quantity that is above 0 where it is right: it **shows** if the 95 % interval "
        "over seeds is above 0, **does not show** if it is below the least value that would matter, else it **cannot "
        f"be told**. Of {len(claims)} measurements {counts[SHOWS]} show, {counts[SHOWS_NOT]} do not, and of "
        f"{counts[UNKNOWN]} it cannot be told. Intervals are Student's over few seeds, and so wide; each is judged by "
        "itself, so that one in forty shows by chance.",
    )
    summary = []
    for name in dict.fromkeys(claim.claim for claim in claims):
        own = [claim for claim in claims if claim.claim == name]
        why = WHY[name]
        told = [
            [f"{claim.method} on {claim.data} ({claim.estimate.value:.2g})" for claim in own if claim.verdict == word]
            for word in WORDS
        ]
        summary.append([own[0].section, name, *(f"{len(x)} of {len(own)}" for x in told),
                        "; ".join(told[0]), "" if len(told[0]) == len(own) else why])  # fmt: skip
    report.table(
        "summary", "The paper's claims, one a line",
        ["paper", "claim", *WORDS, "shows for (how much)", "where it does not: why"], summary,
    )  # fmt: skip
    rows = [
        [
            claim.section, claim.claim, claim.data, claim.method, claim.quantity, claim.estimate.value,
            f"{claim.estimate.lower:.3g} to {claim.estimate.upper:.3g}", claim.least, claim.verdict, claim.note,
        ]
        for claim in claims
    ]  # fmt: skip
    report.table(
        "claims", "Every measurement",
        ["paper", "claim", "data", "method", "measured", "mean", "interval", "least", "verdict", "note"], rows,
    )  # fmt: skip


def show_aggregate(report: Report, study: Study, seeds: Sequence[int]) -> None:
    """Tables 1 and 2."""
    report.section(
        "Aggregate performance (the paper's Tables 1 and 2)",
        "Means over seeds with Student's 95 % intervals; * where the interval of the difference from DPO on the same "
        "seeds leaves out 0. Win rates are against the SFT policy, by held-out pairs: each policy answers with one of "
        "the two responses, and the annotator's vote decides (in expectation, nothing is sampled). They are no judged "
        "generation. By default the responses count as what the SFT policy came up with: it draws either half of the "
        "time, and the policy in proportion to its probability over the SFT policy's. By own probabilities, both draw "
        "in proportion to these; where responses have many tokens, both then nearly always draw the shorter. "
        "Length-controlled is AlpacaEval's GLM in its minimal form on the draws' expected lengths. The best possible "
        "rate is of a policy that always draws what most held-out votes on a pair prefer, or the truth; on HH, where a "
        "pair has one vote, nobody could reach it.",
    )
    for data in DATA:
        rows = []
        for method in METHODS:
            own = [study[data, method, seed] for seed in seeds]
            dpo = [study[data, "DPO", seed] for seed in seeds]

            def cell(of: Callable[[Measured], float], shape: str, own: Any = own, dpo: Any = dpo) -> str:
                difference = over_seeds([of(x) - of(y) for x, y in zip(own, dpo, strict=True)])
                star = "*" if difference.lower > 0 or difference.upper < 0 else ""
                return _shown(over_seeds([of(x) for x in own]), shape) + star

            row = [
                method, cell(lambda x: x.mean("margin/sum").value, ".2f"),
                cell(lambda x: 100 * x.mean("accuracy").value, ".1f"), cell(lambda x: x.loglik, ".4f"),
                cell(lambda x: x.win, ".2f"), cell(lambda x: x.controlled, ".2f"), cell(lambda x: x.own_win, ".2f"),
                f"{statistics.fmean(x.best for x in own):.1f}",
            ]  # fmt: skip
            if data in TRUE_CV:
                row += [cell(lambda x: x.true_win or math.nan, ".2f"),
                        f"{statistics.fmean(x.true_best or math.nan for x in own):.1f}"]  # fmt: skip
            rows.append(row)
        head = [
            "method", "margin, nats", "accuracy, %", "log P(chosen), nats", "win rate, %", "length-controlled, %",
            "by own probabilities, %", "best possible, %",
            *(["win rate by the truth, %", "best possible, %"] if data in TRUE_CV else []),
        ]  # fmt: skip
        report.table(f"aggregate, {data}", f"{data}: held-out pairs", head, rows)
        above = sum(
            over_seeds([study[data, method, seed].mean("accuracy").value - 0.5 for seed in seeds]).lower > 0
            for method in METHODS
        )
        report.text(f"Accuracy over seeds is above one half under {above} of {len(METHODS)} methods.")


def show_subgroups(report: Report, study: Study, seeds: Sequence[int]) -> None:
    """Figure 2, in numbers."""
    own = [study["mg2019", "DPO", seed].evaluation.averages for seed in seeds]
    found = [[x for x in averages if x.attribute == PEOPLE[0]] for averages in own]
    rows = []
    for label in dict.fromkeys(x.label for averages in found for x in averages):
        levels = [next((x for x in averages if x.label == label), None) for averages in found]
        shown = [
            "none" if x is None else
            f"{x.estimates['margin/sum'].value:.2f} ({x.estimates['margin/sum'].standard_error:.2f}; {x.num_clusters})"
            for x in levels
        ]  # fmt: skip
        rows.append([label, *shown])
    report.section("Margins by education (Fig. 2)", "DPO on mg2019. Every seed has people of its own held out.")
    report.table(
        "margins", "Mean margin in nats (its standard error over people; people)",
        ["education", *(f"seed {seed}" for seed in seeds)], rows,
    )  # fmt: skip


def show_gains(report: Report, study: Study, seeds: Sequence[int]) -> None:
    """Figures 3 and 6, in numbers: each seed with its own interval."""
    rows = []
    for family in FAMILIES:
        for seed in seeds:
            gains = study["mg2019", f"{family} {PAPER}", seed].gains
            assert gains is not None
            for attribute in (*PEOPLE, QUESTION):
                found = cells(gains.averages, attribute)
                micro, macro = (one(gains.averages, attribute, kind).estimates for kind in ("micro", "macro"))
                rows.append(
                    [
                        f"{family} {PAPER}", seed, attribute, _shown(micro["margin/sum"], "+.2f"),
                        _shown(macro["margin/sum"], "+.2f"), _shown(macro["accuracy"], "+.3f"),
                        f"{sum(x.estimates['margin/sum'].value > 0 for x in found)} of {len(found)}",
                        f"{sum(x.estimates['accuracy'].value > 0 for x in found)} of {len(found)}",
                    ]
                )  # fmt: skip
    report.section("Gains over DPO by subgroup (Figs. 3, 6)", "Each seed has people of its own held out.")
    report.table(
        "gains", "mg2019: gains over DPO on the same pairs, with BCa intervals over people",
        ["method", "seed", "attribute", "micro margin, nats", "macro margin, nats", "macro accuracy",
         "groups with more margin", "groups with more accuracy"], rows,
    )  # fmt: skip


def show_strength(report: Report, study: Study, claims: Sequence[Claim], seeds: Sequence[int]) -> None:
    """Figures 4 and 7, in numbers."""
    report.section(
        "The learned strength (Figs. 4, 7)",
        "Variance of the strength, and where a gradient that never changed its sign would have taken it: each "
        "parameter moved by the way that RMSprop then takes, in whichever direction (a gradient that grows goes "
        "further, one that changes its sign less far). A variance about the edge was still on its way when training "
        "ended: where it ended is set by the learning rate and the number of steps. Numbers of the seeds, one by one.",
    )
    rows = []
    for family in FAMILIES:
        for rate in (PAPER, FAST):
            for data in DATA:
                own = [study[data, f"{family} {rate}", seed] for seed in seeds]
                preference = own[0].run.config.preference
                assert preference is not None
                reach = under_constant_gradient(preference, own[0].strength["planned_steps"])
                shares = [max(x.strength["share_of_drift"].values()) for x in own]
                rows.append(
                    [
                        f"{family} {rate}", data, own[0].variance("start"),
                        ", ".join(f"{x.variance():.4g}" for x in own),
                        f"{reach['variance/least']:.3g} to {reach['variance/most']:.3g}",
                        ", ".join(f"{x.strength['cv']:.3f}" for x in own),
                        ", ".join(f"{x.strength['mean']:.4f}" for x in own),
                        ", ".join(f"{share:.2f}" for share in shares),
                        f"{TRUE_CV[data]:g}" if data in TRUE_CV else "unknown",
                    ]
                )  # fmt: skip
    report.table(
        "strength", "Learned strength at the end of training",
        ["method", "data", "variance at the start", "at the end", "under a constant gradient", "cv", "mean",
         "way, over that of a constant gradient", "true cv"], rows,
    )  # fmt: skip
    reversed_order = [
        claim.method for claim in claims
        if claim.claim.startswith("the variance ends") and SIMULATED[0] in claim.data and claim.estimate.upper < 0
    ]  # fmt: skip
    report.text(
        "Where the truth is known, the variance ends lower (the interval over seeds leaves out 0) for annotators who "
        f"differ than for those who are all alike, under: {', '.join(reversed_order) or 'no method'}."
    )


def show_heterogeneity(report: Report, study: Study, seeds: Sequence[int], quick: bool) -> None:
    """What the held-out log-ratios of DPO say of heterogeneity, by comparison and by person."""
    import pandas as pd

    report.section(
        "Heterogeneity as `mixlogit-align strength` fits it",
        "On held-out log-ratio differences of DPO's policies, one strength for all against a fresh one for each "
        "comparison (what MixDPO's loss assumes) and against one for each person. Only a spread between people, who "
        "judge repeatedly, is heterogeneity of people (whose tastes differ from the policy's order looks like whose "
        "strength is low); a spread between comparisons also mends the shape of the policy's log-ratios. p: of the "
        "likelihood ratio, one half of a chi-square's tail since no spread is a boundary. A true cv need not come out: "
        "log-ratios are not the true utilities.",
    )
    rows: list[list[Any]] = []
    by_person: dict[tuple[str, int], float] = {}
    for data in DATA:
        for seed in seeds:
            table = study[data, "DPO", seed].table
            frame = pd.DataFrame({"logratio_diff": table.logratio_diff, "annotator_id": table.annotator_ids})
            known = "annotator_id" if frame["annotator_id"].notna().any() else None
            try:
                found = strength_heterogeneity(frame, annotator=known, held_out=True)
            except ConvergenceError:
                rows.append([data, seed, len(table), "", "no positive strength is most likely", "", "", "", ""])
                continue
            pvalues = {test.alternative: test.p for test in found.tests if test.null == "fixed"}
            by_person[data, seed] = pvalues.get("annotator", math.nan)
            row: list[Any] = [data, seed, found.rows, found.annotators or "unknown"]
            for kind in ("comparison", "annotator"):
                fit = found.fits.get(kind)
                if fit is None:
                    row += ["", ""]
                    continue
                lower, upper = found.profile.interval[kind] if found.profile is not None else (math.nan, math.nan)
                row += [f"{fit.cv:.3g} ({lower:.3g} to {upper:.3g})", f"{pvalues[kind]:.2g}"]
            rows.append([*row, f"{TRUE_CV[data]:g}" if data in TRUE_CV else "unknown"])
    report.table(
        "heterogeneity", "cv of a LogNormal strength with its 95 % profile interval",
        ["data", "seed", "pairs", "people", "cv between comparisons", "p", "cv between people", "p", "true cv"], rows,
    )  # fmt: skip
    alike, differing = ([by_person.get((data, seed), math.nan) for seed in seeds] for data in SIMULATED)
    if not quick:
        report.claim(
            "simulated", "the test by person tells people who differ from people who are alike: largest p of cv 1, "
            "smallest of cv 0", [max(differing), min(alike)], max(differing) < min(alike),
        )  # fmt: skip


def show_alarms(report: Report, study: Study) -> None:
    """What the runs noticed about themselves."""
    found = Counter((data, alarm["name"]) for (data, _, _), x in study.items() for alarm in x.run.alarms)
    runs = Counter(data for data, _, _ in study)
    rows = [[data, name, f"{count} in {runs[data]} runs"] for (data, name), count in sorted(found.items())]
    report.section("Alarms", "What the runs noticed about themselves." if rows else "No run raised one.")
    if rows:
        report.table("alarms", "Alarms", ["data", "alarm", "how often"], rows)


def show_runtime(report: Report, study: Study, timed: bool) -> None:
    """Figure 5: of the benchmark, and of the runs where nothing else ran beside them."""
    place, columns, rows = benchmarked(OVERHEAD)
    report.section(
        "Run time (Fig. 5)",
        "From overhead.md, which alternates the steps of all methods on a machine of its own. "
        + ("The runs of this study were made one at a time on a machine of their own." if timed else
           "The runs of this study shared their machine, so that their own seconds compare nothing."),
    )  # fmt: skip
    shown = [columns.index(name) for name in ("method", "step / DPO's", "the paper's ratio")]
    report.table("runtime", f"{place}: time of a step over DPO's (95 % interval)",
                 [columns[i] for i in shown], [[row[i] for i in shown] for row in rows])  # fmt: skip
    if timed:
        ratios = relative_seconds([measured.run for measured in study.values()])
        report.table(
            "runtime here", "Seconds of training steps over DPO's: a policy as small as these leaves the loss visible",
            ["method", "median", "range", "runs"],
            [[method, statistics.median(each), f"{min(each):.2f} to {max(each):.2f}", len(each)]
             for method, each in ratios.items()],
        )  # fmt: skip


def check(report: Report, study: Study, seeds: Sequence[int], quick: bool) -> None:
    """What must hold of any such study."""
    report.section("What must hold")
    start = max(
        abs(measured.run.series("preference", "eval", "loss")[1][0] - math.log(2)) for measured in study.values()
    )
    report.claim("all runs", "before the first step the policy is its reference: |loss - log 2|", start, start < 1e-5)
    still = max(
        abs(way)
        for (_, method, _), x in study.items()
        if method.endswith("frozen")
        for way in x.strength["moved"].values()
    )
    report.claim("frozen", "the strength does not move", still, still == 0.0)
    if quick:
        return
    for data in ("mg2019", *SIMULATED):
        worst = min(
            (x.mean("accuracy").value - 0.5) / x.mean("accuracy").standard_error
            for (of, _, _), x in study.items() if of == data
        )  # fmt: skip
        report.claim(
            data,
            "every method learns: held-out accuracy above one half, in clustered standard errors",
            worst,
            worst > 4,
        )
    truth = min(study[data, method, seed].true_win or 0.0 for data in SIMULATED for method in METHODS for seed in seeds)
    report.claim("simulated", "every method wins against SFT by the truth: lowest win rate, %", truth, truth > 50.0)


def figures(report: Report, study: Study, seeds: Sequence[int], out: Path, timed: bool) -> None:
    """The paper's figures 2, 3 and 6, 4 and 7, and 5, from the run folders; and each in the report."""

    def runs(data: Iterable[str], methods: Iterable[str]) -> list[Run]:
        return [study[d, m, seed].run for d in data for m in methods for seed in seeds]

    paper, fast = ([f"{family} {rate}" for family in FAMILIES] for rate in (PAPER, FAST))
    made = {
        "margins": ("Fig. 2", subgroup_margins_figure(runs(["mg2019"], ["DPO"]), PEOPLE[0])),
        "gains": ("Figs. 3 and 6", gains_figure(runs(["mg2019"], paper))),
        "variance": ("Figs. 4 and 7", variance_figure(runs(DATA, [*paper, *fast]))),
    }
    if timed:
        made["runtime"] = ("Fig. 5", runtime_figure([measured.run for measured in study.values()]))
    report.section("Figures")
    out.mkdir(parents=True, exist_ok=True)
    for name, (place, figure) in made.items():
        assert figure is not None
        path = out / f"small_scale_{name}.png"
        figure.canvas().savefig(path, dpi=DPI)
        report.text(f"![{figure.title}]({path.name})\n\n{place} of the paper. {figure.caption}")


def intro(sizes: Sizes) -> str:
    """What was done, and how it differs from the paper."""
    steps = math.ceil(sizes.train / BATCH)
    here = [constant_gradient_drift(OPTIM, rate, steps) for rate in (PAPER_RATE, FAST_RATE)]
    there = constant_gradient_drift(OptimConfig(), PAPER_RATE, 859)
    return (
        f"A GPT-NeoX of {LAYERS} layers and {HIDDEN} channels, made from nothing: SFT on the chosen responses "
        f"({sizes.sft_epochs} epochs), then one epoch of preferences, {sizes.train:,} comparisons in {steps} steps of "
        f"{BATCH} (the paper: 55,000 in 859 of 64, Pythia-2.8B and Llama-3.2-1B). RMSprop at {OPTIM.lr:g} for the "
        "policy (the paper: 5e-7, from a pretrained one); the strength starts where the paper's does, "
        "LogNormal(-2.3, 0.6) with 16 draws or Gamma(2, 16.7) in closed form, and is frozen, learned at the paper's "
        f"1e-4, or at 1e-2. A constant gradient moves a parameter by {here[0]:.2g} and {here[1]:.2g} at these rates in "
        f"{steps} steps, and by {there:.2g} at 1e-4 in the paper's 859. {len(sizes.seeds)} seeds, each with "
        "comparisons, held-out people, first weights and order of its own.\n\n"
        f"Data: HH (a sample of the paper's control, cut to {TOKENIZATION.max_length} tokens; the seeds share many of "
        f"its {sizes.held_out_hh} held-out pairs); mg2019 in the place of PRISM and Community Alignment, which cannot "
        "be had here: votes of 1,760 people with demographics on 16 questions with short answers, evaluated on people "
        "that were held out; and simulated annotators of mean strength 0.1 who are all alike (cv 0) or differ "
        "(LogNormal, cv 1)."
    )


def main() -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds of next to no training")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the runs")
    parser.add_argument("--train-only", action="store_true", help="make the runs and no report")
    parser.add_argument("--timed", action="store_true", help="nothing ran beside the runs: show their seconds, too")
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "small_scale", help="where run folders are kept")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args()
    for name in ("hh_rlhf", "mg2019"):
        data_folder(name)
    sizes: Sizes = QUICK if options.quick else FULL
    report = Report("small_scale", "The paper at small scale", intro(sizes), "pyro-ppl", "transformers", "scikit-learn")
    train_all(options.runs, sizes, options.jobs)
    if options.train_only:
        return 0
    measured = joblib.Parallel(n_jobs=options.jobs)(joblib.delayed(measure)(options.runs, key) for key in keys(sizes))
    study: Study = dict(zip(keys(sizes), measured, strict=True))
    claims = [
        claim
        for make in (subgroup_claims, gain_claims, win_claims, strength_claims)
        for claim in make(study, sizes.seeds)
    ] + runtime_claims(OVERHEAD)
    show_claims(report, claims)
    check(report, study, sizes.seeds, options.quick)
    show_aggregate(report, study, sizes.seeds)
    show_subgroups(report, study, sizes.seeds)
    show_gains(report, study, sizes.seeds)
    show_strength(report, study, claims, sizes.seeds)
    show_heterogeneity(report, study, sizes.seeds, options.quick)
    show_runtime(report, study, options.timed)
    show_alarms(report, study)
    figures(report, study, sizes.seeds, options.out, options.timed)
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
