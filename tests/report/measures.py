"""What `evaluate`, `winrate` and `strength` leave in a run's folder, of made-up pairs and responses."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

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
from mixlogit_align.econometrics.heterogeneity_command import measure_strength

NUM_PAIRS, NUM_ANNOTATORS = 240, 60


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
    """As ``mixlogit-align strength`` writes it, on choices of annotators of whom some are surer than others."""
    rng = np.random.default_rng(4)
    annotators = np.arange(480) // 8
    strength = rng.lognormal(-2.0, 0.9, 60)[annotators]
    utility = rng.normal(0.0, 20.0, 480)
    chosen = rng.uniform(size=480) < 1 / (1 + np.exp(-strength * utility))
    columns = {"annotator_id": [f"a{i}" for i in annotators], "logratio_diff": np.where(chosen, utility, -utility)}
    (folder / "judged").mkdir()
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "judged" / "pairs.parquet")
    options = Namespace(
        table=folder / "judged" / "pairs.parquet", annotator=None, no_annotator=not with_annotators,
        family="lognormal", weights=None, level=0.95, out=folder / "heterogeneity", overwrite=False,
    )  # fmt: skip
    measure_strength(options)
