"""SFT, then DPO and MixDPO, of a small policy on the HH and humour data.

    MIXLOGIT_DATA=FOLDER python validation/alignment_real.py [--out validation/reports] [--runs runs/alignment_real]

Runs configs/hh.yaml and configs/humour.yaml with each method and writes alignment_real.json and .md; exits with 1 if a
claim fails. A few minutes on two cores. The policies are far too small to judge the methods by: this shows that the
whole path works on real text, and what its record looks like.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet

from mixlogit_align.alignment import RichProgress, RunResult, load_config, run_alignment
from mixlogit_align.alignment.config import AlignmentConfig, PretrainedModel
from mixlogit_align.alignment.data import Comparison, load_data
from mixlogit_align.alignment.demo import METHODS

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _report import REPORTS, Report, data_folder

CONFIGS = Path(__file__).resolve().parent / "configs"


def accuracy(rows: Sequence[Comparison], logratio_diffs: Sequence[float]) -> tuple[float, float]:
    """Share of votes with a positive log-ratio difference, and its standard error with pairs as clusters."""
    total = math.fsum(row.weight for row in rows)
    right = [row.weight * (0.5 if d == 0 else float(d > 0)) for row, d in zip(rows, logratio_diffs, strict=True)]
    share = math.fsum(right) / total
    residual: dict[frozenset[str], float] = defaultdict(float)
    for row, r in zip(rows, right, strict=True):
        residual[frozenset((row.prompt, *row.responses))] += r - row.weight * share
    return share, math.sqrt(math.fsum(x * x for x in residual.values())) / total


def agreement(rows: Sequence[Comparison]) -> float:
    """Accuracy of a judge who always sides with the majority of a pair's votes."""
    votes: dict[frozenset[str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows:
        votes[frozenset((row.prompt, *row.responses))][row.chosen] += row.weight
    return math.fsum(max(v.values()) for v in votes.values()) / math.fsum(row.weight for row in rows)


def run_methods(config: AlignmentConfig, runs: Path, progress: RichProgress) -> list[RunResult]:
    """The supervised stage once, then every method from its policy."""

    def run(config: AlignmentConfig) -> RunResult:
        label = f"{config.data.source}, {config.name}"
        return run_alignment(config, progress=lambda stage, *rest: progress(f"{label}: {stage}", *rest), overwrite=True)

    assert config.preference is not None
    sft = run(dataclasses.replace(config, name="SFT", out=str(runs / "sft"), preference=None))
    results = [sft]
    for i, (name, (strength, integration)) in enumerate(METHODS.items()):
        preference = dataclasses.replace(config.preference, strength=strength, integration=integration)
        model = PretrainedModel(path=str(sft.path / "policy"))
        results.append(
            run(
                dataclasses.replace(
                    config, name=name, out=str(runs / f"method{i}"), model=model, sft=None, preference=preference
                )
            )
        )
    return results


def first_and_last(path: Path, stage: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Held-out metrics before the first and after the last step."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if (line["stage"], line["split"]) == (stage, "eval")]
    return held_out[0], held_out[-1]


def study(report: Report, name: str, title: str, runs: Path, progress: RichProgress, *, above_chance: bool) -> None:
    """One data set: its tables and claims; ``above_chance`` also claims that its preferences are learned."""
    config = load_config(CONFIGS / f"{name}.yaml")
    rows = load_data(config.data).split("eval")
    sft, *methods = run_methods(config, runs / name, progress)
    report.section(title)
    record = json.loads((sft.path / "data.json").read_text())
    report.table(f"{name}_reader", "What the reader met", list(record["reader"]), [list(record["reader"].values())])
    cuts = [
        [f"{split} {kind}", *counts[kind].values()]
        for split, counts in record["tokenization"].items()
        for kind in ("prompts", "responses")
    ]
    report.table(
        f"{name}_tokenization",
        f"What the truncation policy ({config.tokenization.truncation}) cut",
        ["tokens of", *record["tokenization"]["train"]["prompts"]],
        cuts,
    )
    before, after = first_and_last(sft.path, "sft")
    report.claim(
        name,
        "SFT lowers the held-out loss (nats a token: before, after)",
        [before["loss"], after["loss"]],
        after["loss"] < before["loss"] - 1.0,
    )
    if not above_chance:
        report.text("No claim is made about accuracy on these pairs: see the standard errors.")
    table = []
    for result in methods:
        start, end = first_and_last(result.path, "preference")
        columns_read = pyarrow.parquet.read_table(result.path / "log_ratios.parquet")
        assert columns_read["pair_id"].to_pylist() == [row.pair_id for row in rows]
        share, error = accuracy(rows, columns_read["logratio_diff"].to_pylist())
        strength = result.strength
        assert strength is not None
        report.claim(
            f"{name}, {result.name}",
            "before the first step the policy is its reference: |loss - log 2|",
            abs(start["loss"] - math.log(2)),
            abs(start["loss"] - math.log(2)) < 1e-5,
        )
        if above_chance:
            report.claim(
                f"{name}, {result.name}",
                "held-out accuracy is above one half by more than 4 standard errors",
                [share, error],
                share > 0.5 + 4 * error,
            )
        moved = strength["mean"] / strength["initial"]["mean"]
        table.append(
            [
                result.name, end["loss"], share, error, end["log_ratio/margins"], end["log_ratio/sd"],
                end["pair_weight"], strength["mean"], strength["cv"], moved, strength["constant_gradient_drift"],
                result.seconds,
            ]
        )  # fmt: skip
    report.table(
        name,
        f"Held-out results after one epoch (loss log 2 = {math.log(2):.4f} and accuracy 0.5 are chance; a judge who "
        f"sides with each pair's majority reaches {agreement(rows):.3f})",
        [
            "method", "loss", "accuracy", "its standard error", "logratio_diff mean", "sd", "pair weight",
            "strength mean", "strength cv", "mean / start", "drift the learning rate allows", "seconds",
        ],
        table,
    )  # fmt: skip


def main() -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPORTS)
    parser.add_argument("--runs", type=Path, default=Path("runs/alignment_real"))
    arguments = parser.parse_args()
    for name in ("hh_rlhf", "humour_pairs"):
        data_folder(name)
    report = Report(
        "alignment_real",
        "SFT, DPO and MixDPO of a small policy on HH and humour pairs",
        "A two-layer GPT-NeoX from scratch, one epoch of preferences. The per-comparison loss identifies the spread of "
        "strength only weakly and the learning rate bounds how far it moves: the strength columns describe the fit, "
        "not how people differ. Accuracies of policies of this size say nothing about the methods.",
        "pyro-ppl",
        "transformers",
    )
    with RichProgress() as progress:
        study(report, "hh", "Anthropic HH sample", arguments.runs, progress, above_chance=False)
        study(report, "humour", "Humour pairs (splits share no text)", arguments.runs, progress, above_chance=True)
    return report.finish(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
