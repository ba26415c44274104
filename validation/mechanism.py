"""The paper's mechanism where the truth is known: what strength is learned, and how the learning rate bounds it.

    python validation/mechanism.py [--quick] [--jobs 2] [--runs build/mechanism] [--out validation/reports]

A small policy is trained on simulated annotators of known strength, by DPO and by MixDPO with each family and each kind
of update, on three data sets each. Quick: one small data set, to see that it runs, and no claim that needs learning.
Writes mechanism.md, mechanism.json and mechanism.png, and exits with 1 if a claim fails. Some ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import joblib
import torch
from _report import REPORTS, ROOT, Report

from mixlogit_align.alignment import AlignmentConfig, RunResult, run_alignment
from mixlogit_align.alignment.config import (
    BestRule,
    CheckpointConfig,
    ClosedFormRule,
    FrozenUpdate,
    GammaStrength,
    IntegrationConfig,
    LearnedUpdate,
    LogNormalStrength,
    MonteCarloRule,
    NewModel,
    OptimConfig,
    PointStrength,
    PreferenceConfig,
    PretrainedModel,
    QuadratureRule,
    SolvedUpdate,
    StageConfig,
    StrengthConfig,
    UpdateConfig,
)
from mixlogit_align.alignment.data.config import SimulatedData
from mixlogit_align.alignment.strength import constant_gradient_drift
from mixlogit_align.alignment.trainer import RMSPROP_SMOOTHING

SEEDS = (0, 1, 2)
NUM_TRAIN, NUM_EVAL, EPOCHS, BATCH = 8192, 1024, 2, 64
QUICK_TRAIN, QUICK_EVAL = 1024, 128
OPTIM = OptimConfig(name="rmsprop", lr=1e-2, warmup_steps=20)
START_MEAN, START_CV = 0.12, {"LogNormal": 0.658, "Gamma": 0.707}  # the paper's

TRUTHS: Mapping[str, dict[str, Any]] = {
    "cv 0": {"strength_cv": 0.0},
    "LogNormal, cv 1": {"strength_cv": 1.0, "strength_family": "lognormal"},
    "Gamma, cv 1": {"strength_cv": 1.0, "strength_family": "gamma"},
}
FAMILIES: Mapping[str, tuple[Callable[..., StrengthConfig], IntegrationConfig]] = {
    "LogNormal, quadrature": (LogNormalStrength, QuadratureRule()),
    "LogNormal, Monte Carlo 16": (LogNormalStrength, MonteCarloRule(num_draws=16)),
    "Gamma, closed form": (GammaStrength, ClosedFormRule()),
}
RATES = (1e-5, 1e-4, 1e-3, 1e-2)
UPDATES: Mapping[str, UpdateConfig] = {
    "frozen": FrozenUpdate(),
    **{f"lr {rate:.0e}": LearnedUpdate(lr=rate) for rate in RATES},
    "solved": SolvedUpdate(),
}
LEARNED = tuple(name for name, update in UPDATES.items() if isinstance(update, LearnedUpdate))
FASTEST = LEARNED[-1]

Key = tuple[str, str, str, int]  # truth, family, update, seed
DPO = ("DPO", "frozen")


# --- runs ------------------------------------------------------------------------------------------


def data_of(truth: str, seed: int, quick: bool) -> SimulatedData:
    """Prompts and responses depend on the seed alone."""
    size = (QUICK_TRAIN, QUICK_EVAL) if quick else (NUM_TRAIN, NUM_EVAL)
    return SimulatedData(num_train=size[0], num_eval=size[1], seed=seed, **TRUTHS[truth])


def train(config: AlignmentConfig) -> RunResult:
    """One run in a thread of its own; a run takes seconds, so that none is worth a checkpoint."""
    torch.set_num_threads(1)
    return run_alignment(dataclasses.replace(config, checkpoint=CheckpointConfig(keep=0)), overwrite=True)


def sft_config(folder: Path, seed: int, quick: bool) -> AlignmentConfig:
    """The stage that all runs of a seed start from: the responses chosen at cv 0."""
    data = data_of("cv 0", seed, quick)
    return AlignmentConfig(
        out=str(folder / f"sft-{seed}"),
        data=data,
        model=NewModel(hidden_size=32, num_layers=2, vocab_size=512),
        sft=StageConfig(
            optim=OptimConfig(name="adamw", lr=3e-3, warmup_steps=20),
            batch_size=32,
            eval_every_examples=data.num_train,
            eval_batch_size=256,
        ),
        seed=seed,
    )


def preference_config(folder: Path, key: Key, quick: bool) -> AlignmentConfig:
    """The preference stage of one truth, family, update and seed."""
    truth, family, update, seed = key
    data = data_of(truth, seed, quick)
    strength: StrengthConfig = PointStrength(value=0.1)
    integration: IntegrationConfig = BestRule()
    if family != DPO[0]:
        build, integration = FAMILIES[family]
        strength = build(update=UPDATES[update])
    return AlignmentConfig(
        out=str(folder / "-".join(map(str, key)).lower().replace(",", "").replace(" ", "-")),
        name=f"{family}, {update}",
        data=data,
        model=PretrainedModel(path=str(folder / f"sft-{seed}" / "policy")),
        preference=PreferenceConfig(
            optim=OPTIM,
            num_epochs=EPOCHS,
            batch_size=BATCH,
            eval_every_examples=EPOCHS * data.num_train,
            eval_batch_size=256,
            strength=strength,
            integration=integration,
        ),
        seed=seed,
    )


def all_runs(folder: Path, jobs: int, quick: bool) -> dict[Key, RunResult]:
    """Every run, on ``jobs`` processes of one thread."""
    seeds = SEEDS[:1] if quick else SEEDS
    methods = [DPO, *((family, update) for family in FAMILIES for update in UPDATES)]
    keys = [(truth, *method, seed) for truth in TRUTHS for method in methods for seed in seeds]
    with joblib.parallel_config("loky", inner_max_num_threads=1):
        parallel = joblib.Parallel(n_jobs=jobs)
        parallel(joblib.delayed(train)(sft_config(folder, seed, quick)) for seed in seeds)
        results = parallel(joblib.delayed(train)(preference_config(folder, key, quick)) for key in keys)
    return dict(zip(keys, results, strict=True))


# --- what they say ---------------------------------------------------------------------------------


def hard_bound(lr: float, steps: int) -> float:
    """What no sequence of gradients can exceed: RMSprop moves a parameter by at most ``lr / sqrt(1 - 0.99)`` a step."""
    rates = constant_gradient_drift(dataclasses.replace(OPTIM, name="adamw"), lr, steps)
    return rates / math.sqrt(1 - RMSPROP_SMOOTHING)


def moved(result: RunResult) -> float:
    """How far the strength's parameter that went furthest went, on the scale on which it is learned."""
    assert result.strength is not None
    return max(map(abs, result.strength["moved"].values()))


def share(result: RunResult) -> float:
    """Of the drift that the learning rate allows under a constant gradient, by the parameter that went furthest."""
    assert result.strength is not None
    drift = result.strength["constant_gradient_drift"]
    return moved(result) / drift if drift else math.nan


def ends_at_bound(result: RunResult) -> bool:
    """Whether the last solve met a bound of mean or cv."""
    assert result.strength is not None
    last = result.strength["last_solve"]
    return bool(last["mean_at_bound"] or last["cv_at_bound"])


def of(results: Sequence[RunResult], name: str) -> list[float]:
    """A number of the comparison with the truth, run by run."""
    return [result.truth["held_out"][name] for result in results if result.truth is not None]


def strength(results: Sequence[RunResult], name: str) -> list[float]:
    """A number of the learned strength, run by run."""
    return [result.strength[name] for result in results if result.strength is not None]


def listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def show(report: Report, truth: str, runs: Mapping[Key, RunResult]) -> None:
    """The table of one truth: a row a method, over the seeds."""
    rows = []
    for family, update in dict.fromkeys(key[1:3] for key in runs):
        found = [result for key, result in runs.items() if key[:3] == (truth, family, update)]
        average = {name: statistics.fmean(of(found, name)) for name in ("strength/mean", "loss", "attainable/loss")}
        learned = update in LEARNED
        rows.append(
            [
                family, update, statistics.fmean(strength(found, "mean")), average["strength/mean"],
                listed(strength(found, "cv")),
                f"{strength(found, 'constant_gradient_drift')[0]:.3g}" if learned else "",
                listed([share(result) for result in found]) if learned else "",
                f"{sum(ends_at_bound(result) for result in found)} of {len(found)}" if update == "solved" else "",
                statistics.fmean(of(found, "utility/correlation")), average["loss"], average["attainable/loss"],
                listed(of(found, "kl")),
            ]
        )  # fmt: skip
    report.table(
        truth,
        f"Annotators: {truth}, mean 0.1. Means over the data sets, or one number for each of them",
        [
            "strength", "update", "mean, policy's unit", "mean, truth's unit", "cv", "drift allowed", "share used",
            "ends at a bound", "utility correlation", "held-out loss", "attainable", "KL to the truth, nats",
        ],
        rows,
    )  # fmt: skip


def judge(report: Report, runs: Mapping[Key, RunResult], quick: bool) -> None:
    """The claims: what must hold, then what learning shows."""

    def select(**wanted: str) -> list[RunResult]:
        fields = dict(zip(("truth", "family", "update", "seed"), range(4), strict=True))
        return [run for key, run in runs.items() if all(key[fields[name]] == value for name, value in wanted.items())]

    report.section("What the learning rate bounds")
    frozen = max(moved(run) for run in select(update="frozen"))
    report.claim("frozen", "the strength does not move at all", frozen, frozen == 0.0)
    rows = []
    for name in LEARNED:
        found = select(update=name)
        record = found[0].strength
        assert record is not None
        bound = hard_bound(record["learning_rate"], record["planned_steps"])
        furthest = max(map(moved, found))
        report.claim(
            name, "no parameter moves further than RMSprop can: furthest, bound", [furthest, bound], furthest <= bound
        )
        shares = [share(result) for result in found]
        rows.append([name, record["constant_gradient_drift"], furthest, statistics.median(shares), max(shares)])
    slowest = select(update=LEARNED[0])
    for name in ("mean", "cv"):
        changes = [abs(end / start[name] - 1) for end, start in
                   zip(strength(slowest, name), strength(slowest, "initial"), strict=True)]  # fmt: skip
        report.claim(
            LEARNED[0], f"the {name} ends within 1 % of where it began, whatever the data: largest change",
            max(changes), max(changes) < 0.01,
        )  # fmt: skip
    report.table(
        "rates",
        "On the scale on which parameters are learned (the LogNormal's loc, the log of the others), over all runs. A "
        "gradient that grows moves RMSprop further than a constant one, one that changes sign less far",
        ["update", "drift under a constant gradient", "furthest moved", "share of the drift, median", "largest"],
        rows,
    )
    if quick:
        return

    report.section(
        "Is the learned spread ordered as the true one is?",
        "Learned cv from annotators of cv 1 less that from annotators of cv 0, on the same prompts and responses; the "
        "smallest and the largest of the data sets and of the two families of annotators.",
    )
    rows = []
    for family in FAMILIES:
        for update in UPDATES:
            gaps = [
                strength([run], "cv")[0] - strength([runs["cv 0", family, update, key[3]]], "cv")[0]
                for key, run in runs.items()
                if key[1:3] == (family, update) and key[0] != "cv 0"
            ]
            rows.append([family, update, min(gaps), max(gaps), all(gap > 0 for gap in gaps)])
            if update in (FASTEST, "solved"):
                report.claim(
                    f"{family}, {update}", "more spread is learned from cv 1 than from cv 0 on every data set: "
                    "smallest difference in cv", min(gaps), min(gaps) > 0,
                )  # fmt: skip
            if update in LEARNED[:2]:
                largest = max(map(abs, gaps))
                report.claim(
                    f"{family}, {update}", "the two cannot be told apart by more than 0.1 in cv: largest difference",
                    largest, largest < 0.1,
                )  # fmt: skip
    report.table("order", "Difference in learned cv", ["strength", "update", "smallest", "largest", "ordered"], rows)

    report.section(
        "Solved or learned?",
        "How far the cv ends from the annotators' own, on average over the data sets. From one comparison at a time "
        "the spread is weakly identified, so that at cv 1 neither is expected to find it; at cv 0 the likelihood rises "
        "down to the solve's lower bound.",
    )
    rows = []
    for truth, settings in TRUTHS.items():
        for family in FAMILIES:
            off = {
                update: statistics.fmean(
                    abs(cv - settings["strength_cv"])
                    for cv in strength(select(truth=truth, family=family, update=update), "cv")
                )
                for update in UPDATES
            }
            rows.append([truth, family, *off.values()])
            if truth == "cv 0":
                pair = [off["solved"], off[FASTEST]]
                report.claim(
                    f"{truth}, {family}", f"solved ends nearer the truth than {FASTEST}: distance in cv of each",
                    pair, pair[0] < pair[1],
                )  # fmt: skip
    report.table("distance", "Distance of the cv from the annotators'", ["annotators", "strength", *UPDATES], rows)


def cvs_within(family: str, drift: float) -> list[float]:
    """Lowest and highest cv that a drift of the log of the scale (up to 1), or of the concentration, reaches."""
    if family.startswith("Gamma"):
        return [START_CV["Gamma"] * math.exp(sign * drift / 2) for sign in (-1, 1)]
    scale = math.sqrt(math.log1p(START_CV["LogNormal"] ** 2))
    return [math.sqrt(math.expm1((scale * math.exp(sign * min(drift, 1.0))) ** 2)) for sign in (-1, 1)]


def figure(runs: Mapping[Key, RunResult], path: Path) -> None:
    """Learned cv and mean by update, over what the learning rate allows."""
    from matplotlib.figure import Figure

    looks = dict(zip(FAMILIES, (("#E69F00", "^"), ("#009E73", "s"), ("#D55E00", "o")), strict=True))
    shown = Figure(figsize=(11, 6), layout="constrained")
    axes = shown.subplots(2, len(TRUTHS), sharex=True, sharey="row")
    for column, (truth, settings) in enumerate(TRUTHS.items()):
        top, bottom = axes[:, column]
        for i, (family, (colour, marker)) in enumerate(looks.items()):
            for x, update in enumerate(UPDATES):
                at = x + 0.22 * (i - 1)
                found = [run for key, run in runs.items() if key[:3] == (truth, family, update)]
                label = {"label": family} if column == x == 0 else {}
                options = {"color": colour, "ls": "", "ms": 4.5}
                top.plot([at] * len(found), strength(found, "cv"), marker, **options, **label)
                bottom.plot([at] * len(found), of(found, "strength/mean"), marker, **options)
                if update in LEARNED:
                    reach = cvs_within(family, strength(found, "constant_gradient_drift")[0])
                    top.plot([at] * 2, reach, color=colour, lw=5, alpha=0.25, solid_capstyle="butt")
        top.axhline(settings["strength_cv"], color="black", ls=":", lw=1)
        bottom.axhline(0.1, color="black", ls=":", lw=1)
        top.set(title=f"annotators: {truth}", ylim=(-0.05, 1.6))
        bottom.set_xticks(range(len(UPDATES)), list(UPDATES), rotation=45, ha="right")
    axes[0, 0].set_ylabel("cv of strength")
    axes[1, 0].set(ylabel="mean strength, truth's unit", ylim=(0, 0.2))
    axes[0, 0].legend(fontsize=8.5, frameon=False, loc="upper left")
    shown.savefig(path, dpi=110)


def main() -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small data set")
    parser.add_argument("--jobs", type=int, default=2, help="processes that share the runs")
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "mechanism", help="where run folders go")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args()
    size = QUICK_TRAIN if options.quick else NUM_TRAIN
    steps = size * EPOCHS // BATCH
    report = Report(
        "mechanism",
        "The paper's mechanism on annotators of known strength",
        f"Simulated annotators of mean strength 0.1 who all have the same (cv 0) or differ (cv 1, LogNormal or Gamma). "
        f"A two-layer GPT-NeoX, SFT, then {steps} steps of preferences ({size:,} comparisons, {EPOCHS} epochs, batches "
        f"of {BATCH}; RMSprop, {OPTIM.lr:g} for the policy, {OPTIM.warmup_steps} steps of warm-up) from the paper's "
        f"start of mean {START_MEAN} and cv {START_CV['LogNormal']} (LogNormal) or {START_CV['Gamma']} (Gamma). Only "
        "strength times log-ratio is identified: the mean is also given in the truth's unit, by the slope of log-ratio "
        "on utility. The KL divergence is from the true to the learned choice probabilities, the expected loss beyond "
        f"the attainable one ({'one data set' if options.quick else f'{len(SEEDS)} data sets'} a cell; with Monte "
        "Carlo it includes the noise of 16 draws).",
        "pyro-ppl",
        "transformers",
        "joblib",
    )
    runs = all_runs(options.runs, options.jobs, options.quick)
    judge(report, runs, options.quick)
    report.section("What is learned")
    report.text(
        "![Learned cv and mean by update](mechanism.png)\n\nDotted: the annotators'. Pale bars: what the learning rate "
        "allows the cv to reach under a constant gradient (cut off at a drift of 1 for the LogNormal)."
    )
    for truth in TRUTHS:
        show(report, truth, runs)
    options.out.mkdir(parents=True, exist_ok=True)
    figure(runs, options.out / "mechanism.png")
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
