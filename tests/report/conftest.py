"""A demonstration's folder as the other rooms write it, with small made-up numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mixlogit_align.alignment.config import (
    AlignmentConfig,
    GammaStrength,
    LogNormalStrength,
    PointStrength,
    PreferenceConfig,
    StageConfig,
)
from mixlogit_align.alignment.data import load_data
from mixlogit_align.alignment.data.config import SimulatedData
from mixlogit_align.alignment.settings import dump_config

DATA = SimulatedData(num_train=8, num_eval=600, num_annotators=4)
STRENGTHS: dict[str, tuple[Any, dict[str, Any]]] = {
    "DPO": (PointStrength(), {"family": "point", "mean": 0.1, "sd": 0.0, "parameters": {"v": 0.1}}),
    "MixDPO <lognormal>": (
        LogNormalStrength(),
        {"family": "lognormal", "mean": 0.12, "sd": 0.079, "parameters": {"loc": -2.3, "scale": 0.6}},
    ),
    "MixDPO gamma": (
        GammaStrength(),
        {"family": "gamma", "mean": 2 / 16.7, "sd": math.sqrt(2) / 16.7,
         "parameters": {"concentration": 2.0, "rate": 16.7}},
    ),
}  # fmt: skip


def recovery_row(case: str, **changes: Any) -> dict[str, Any]:
    """A row of first_light.json."""
    row = {
        "case": case, "family": "normal", "panel": False, "n_individuals": 10, "n_choices": 10,
        "true": {"x.loc": 1.0, "x.scale": 0.5}, "estimate": {"x.loc": 1.2345, "x.scale": 0.4},
        "std_error": {"x.loc": 0.1, "x.scale": 0.1}, "z": {"x.loc": 2.345, "x.scale": -1.0}, "loglik": -7.0,
        "xlogit_estimate": {"x.loc": 1.2301, "x.scale": 0.41}, "xlogit_loglik": -7.1, "loglik_rel_diff": 3e-15,
        "gradient_rel_diff": 4e-14, "fit_abs_diff": 5e-9, "xlogit_default_start": "converged", "note": "a & b",
        "seconds": 0.5, "passed": True,
    }  # fmt: skip
    return row | changes


def write_recovery(path: Path, rows: list[dict[str, Any]], passed: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"versions": {"torch": "2.13.0", "xlogit": "0.2.7"}, "machine": "a machine", "rows": rows}
    path.write_text(json.dumps(content | {"passed": passed}))
    return path


def write_run(folder: Path, config: AlignmentConfig, metrics: list[dict[str, Any]], status: str = "finished") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "run.json").write_text(json.dumps({"name": config.name, "status": status, "seconds": 12.0}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return folder


def losses(stage: str, values: list[float], **more: float) -> list[dict[str, Any]]:
    rows = []
    for step, loss in enumerate(values):
        rows += [
            {"stage": stage, "split": split, "step": step, "examples_seen": 32 * step, "loss": loss, **more}
            for split in ("train", "eval")
        ]
    return rows


def write_preference_run(folder: Path, name: str, data: SimulatedData = DATA, end: float = 0.5221) -> Path:
    """A finished preference run whose policy has log-ratios twice the true utility."""
    strength, learned = STRENGTHS[name]
    config = AlignmentConfig(out=str(folder), name=name, data=data, preference=PreferenceConfig(strength=strength))
    more = {"rewards/accuracies": 0.7, "rewards/margins": 0.8}
    more |= {"strength/mean": learned["mean"], "strength/sd": learned["sd"]}
    write_run(folder, config, losses("preference", [0.6931, 0.6, end], **more))
    cv = learned["sd"] / learned["mean"]
    record = {**learned, "cv": cv, "initial": {**learned, "cv": cv}, "learning_rate": 1e-4, "steps": 2,
              "update": strength.update.kind,
              "constant_gradient_drift": 0.321, "caution": "spread is no measurement"}  # fmt: skip
    simulated = load_data(data)
    assert simulated.truth is not None
    truth = simulated.truth.summary()
    held_out = {"strength/mean": 2 * learned["mean"], "strength/sd": 2 * learned["sd"], "utility/correlation": 0.914,
                "probability/rmse": 0.123, "kl": 0.0367, "attainable/loss": 0.4991,
                "attainable/accuracy": 0.770}  # fmt: skip
    (folder / "strength.json").write_text(json.dumps(record | {"truth": truth}))
    (folder / "truth.json").write_text(json.dumps({"strength": truth, "held_out": held_out}))
    rows = simulated.split("eval")
    table = {
        "pair_id": [row.pair_id for row in rows],
        "weight": [row.weight for row in rows],
        "logratio_diff": [2 * simulated.truth.utility_diff[row.pair_id] for row in rows],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "log_ratios.parquet")
    return folder


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both recoveries, fine-tuning, and three methods on annotators with and without heterogeneity; only to be read."""
    folder = tmp_path_factory.mktemp("demonstration")
    failed = "failed: Local search could not find a higher log likelihood value"
    write_recovery(
        folder / "first_light.json",
        [recovery_row("normal, cross-section"), recovery_row("lognormal, panel", xlogit_default_start=failed)],
    )
    alone = dict.fromkeys(
        ("xlogit_estimate", "loglik_rel_diff", "gradient_rel_diff", "fit_abs_diff", "xlogit_default_start")
    )
    fixed = {"true": {"x.mean": 1.0, "x.sd": 0.0}, "estimate": {"x.mean": 0.987, "x.sd": 0.0},
             "std_error": {"x.mean": 0.02, "x.sd": 0.1}, "z": {"x.mean": -0.65}}  # fmt: skip
    write_recovery(folder / "recovery.json", [recovery_row("gamma, panel", **alone, **fixed)])
    sft = AlignmentConfig(out="sft", name="SFT", data=DATA, sft=StageConfig())
    write_run(folder / "alignment" / "sft", sft, losses("sft", [5.9534, 2.0, 0.6638]))
    for cv in (1.0, 0.0):
        for i, name in enumerate(STRENGTHS):
            data = SimulatedData(**{**vars(DATA), "strength_cv": cv})
            write_preference_run(folder / "alignment" / f"cv{cv:g}-{i}", name, data)
    return folder
