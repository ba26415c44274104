"""What `evaluate`, `winrate` and `strength` leave in a run's folder, of made-up pairs and responses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from mixlogit_align.alignment.evaluation.command import as_json
from mixlogit_align.alignment.evaluation.paired import gains
from mixlogit_align.alignment.evaluation.pairs import PairTable
from mixlogit_align.alignment.evaluation.summary import evaluate
from mixlogit_align.alignment.winrate import Outputs, write_outputs
from mixlogit_align.alignment.winrate.command import judge_run
from mixlogit_align.alignment.winrate.judges import RewardJudge

NUM_PAIRS, NUM_ANNOTATORS = 240, 60
IDENTIFICATION = "40 annotators made 2 or more comparisons each, so that their strengths are told apart <from noise>."


def pair_table(name: str, gain: float) -> PairTable:
    """Pairs of annotators of some education, three of them in a level of their own; larger margins with the gain."""
    rng = np.random.default_rng(5)
    annotators = np.arange(NUM_PAIRS) % NUM_ANNOTATORS
    level = np.where(annotators < 3, "doctorate <rare>", np.where(annotators < 30, "school", "degree"))
    delta = rng.normal(3.0, 6.0, NUM_PAIRS) * (1.0 + gain) + gain
    rejected = rng.uniform(-60.0, -40.0, NUM_PAIRS)
    groups = [{} if i % 40 == 7 else {"education": str(level[i])} for i in range(NUM_PAIRS)]
    return PairTable(
        name=name,
        pair_ids=np.arange(NUM_PAIRS),
        annotator_ids=[f"a{i}" for i in annotators],
        groups=groups,
        policy_chosen=rejected + delta - 30.0,
        policy_rejected=rejected - 30.0,
        reference_chosen=rejected,
        reference_rejected=rejected,
        chosen_tokens=np.full(NUM_PAIRS, 12),
        rejected_tokens=np.full(NUM_PAIRS, 10),
        loglik=-np.log1p(np.exp(-0.1 * delta)),
        strength_mean=np.full(NUM_PAIRS, 0.1),
    )


def write_evaluation(folder: Path, name: str, gain: float, against: str | None = None) -> None:
    """As ``mixlogit-align evaluate`` writes it, with gains over another run where it is named."""
    table = pair_table(name, gain)
    (folder / "evaluation.json").write_text(json.dumps(as_json(evaluate(table)), allow_nan=False))
    if against is not None:
        found = gains(table, pair_table(against, 0.0), num_replications=200, num_permutations=999)
        (folder / f"gains-over-{against.lower()}.json").write_text(json.dumps(as_json(found), allow_nan=False))


def write_winrate(folder: Path, wins: float, *, lengths: bool = True) -> None:
    """As ``mixlogit-align winrate`` writes it: of 40 prompts this share is won; without `lengths`, by length alone."""
    rng = np.random.default_rng(3)
    prompts = [f"prompt {i}" for i in range(40)]
    won = np.arange(40) < 40 * wins
    sizes = rng.integers(5, 30, (2, 40)) if lengths else np.full((2, 40), 12)
    ours = ["w" * size if win else "l" * size for size, win in zip(sizes[0], won, strict=True)]
    files = [folder / "ours.json", folder / "theirs.json"]
    write_outputs(files[0], Outputs(name="ours", prompts=prompts, responses=ours))
    write_outputs(
        files[1], Outputs(name="the <opponent>", prompts=prompts, responses=["o" * size for size in sizes[1]])
    )
    judge = RewardJudge(name="judge & co", score=lambda texts: ["low".index(r[0]) for _, r in texts], soft=False)
    judge_run(*files, lambda _: judge, num_replications=100, out=folder / "winrate-sft")


def write_heterogeneity(folder: Path, *, with_annotators: bool = True) -> None:
    """As ``mixlogit-align strength`` writes it."""
    (folder / "heterogeneity").mkdir()
    cvs = [0.0, 0.25, 0.5, 1.0, 1.5, 2.0]
    fit = {"params": {"loc": -2.3, "scale": 0.6}, "std_errors": {"loc": 0.05, "scale": 0.111}, "mean": 0.12,
           "sd": 0.079, "cv": 0.66, "at_boundary": False}  # fmt: skip
    point = {"params": {"value": 0.1}, "std_errors": {"value": 0.0123}, "mean": 0.1, "sd": 0.0, "cv": 0.0}
    content: dict[str, Any] = {
        "table": "log_ratios.parquet", "rows": 600, "annotators": 60 if with_annotators else None,
        "family": "lognormal",
        "fits": {
            "fixed": {**point, "loglik": -400.25, "at_boundary": False},
            "comparison": {**fit, "loglik": -399.5},
            "annotator": {**fit, "loglik": -391.75} if with_annotators else None,
        },
        "tests": [
            {"null": "fixed", "alternative": "annotator", "statistic": 17.0, "p": 1.9e-5,
             "distribution": "half chi-squared with 1 degree of freedom, half 0"},
        ] if with_annotators else [],
        "profile": {"cv": cvs, "loglik": {
            "comparison": [-400.25, -399.9, -399.6, -399.5, -399.6, None],
            "annotator": [-400.25, -396.0, -392.0, -394.0, -398.0, -402.0] if with_annotators else [],
        }},
        "identification": IDENTIFICATION,
        "warnings": ["12 ties say nothing of the strength"],
    }  # fmt: skip
    (folder / "heterogeneity" / "heterogeneity.json").write_text(json.dumps(content))
    if with_annotators:
        means = np.linspace(0.05, 0.3, 60)
        columns = {
            "annotator_id": [f"a{i}" for i in range(60)],
            "comparisons": [4] * 60,
            "mean": means,
            "sd": means / 3,
        }
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "heterogeneity" / "annotators.parquet")
