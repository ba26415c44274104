"""One alignment run from a configuration to its folder.

The folder: ``config.yaml`` (resolved), ``run.json`` (status, final held-out metrics), ``data.json`` (what the
reader and the truncation policy met), ``metrics.jsonl``, ``policy/`` (Hugging Face format) and, after a
preference stage, ``strength.json`` and ``log_ratios.parquet``; with simulated data also ``truth.json``. An
interrupted or failed run leaves what was written so far, and ``run.json`` says so.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixlogit_align.alignment.config import AlignmentConfig, OptimConfig, PreferenceConfig, StageConfig, dump_config
from mixlogit_align.alignment.data import PreferenceData, load_data
from mixlogit_align.alignment.data.batches import Collator, TokenizedComparison
from mixlogit_align.alignment.logratios import SequenceLogProbs, candidate_logprobs
from mixlogit_align.alignment.losses import MixDPOLoss
from mixlogit_align.alignment.objectives import HeldOut, PreferenceObjective, SFTObjective
from mixlogit_align.alignment.progress import Progress
from mixlogit_align.alignment.strength import build_strength, strength_record
from mixlogit_align.alignment.tokenization import tokenize
from mixlogit_align.alignment.trainer import MetricsLog, NonFiniteLossError, ParameterGroup, train
from mixlogit_align.alignment.truth import compare_with_truth
from mixlogit_align.errors import InvalidInputError, MixlogitError, explain

# Nats. Float32 noise between two ways to batch the same rows stays far below, another model far above.
REFERENCE_TOLERANCE = 1e-2


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run.

    Parameters
    ----------
    path : Path
        The run folder.
    name : str
        As in the configuration.
    metrics : mapping
        Stage -> final held-out metrics.
    strength, truth : mapping or None
        As in ``strength.json`` and ``truth.json``.
    seconds : float
        Wall-clock time of the whole run.
    """

    path: Path
    name: str
    metrics: Mapping[str, Mapping[str, float]]
    strength: Mapping[str, Any] | None
    truth: Mapping[str, Any] | None
    seconds: float


def run_alignment(config: AlignmentConfig, *, progress: Progress | None = None, overwrite: bool = False) -> RunResult:
    """Run the stages of ``config`` and write its run folder.

    Parameters
    ----------
    config : AlignmentConfig
    progress : callable, optional
        Called as ``progress(stage, examples_done, examples_total, metrics)``;
        `mixlogit_align.alignment.RichProgress` draws bars.
    overwrite : bool
        Replace an earlier run in the same folder.

    Raises
    ------
    InvalidInputError
        For a folder that holds another run, missing data, or larger sets than pairs in a preference stage.
    NonFiniteLossError
        When a loss or gradient is NaN or infinite; ``run.json`` then names the pairs.
    MixlogitError
        When the policy's log-probabilities differ from its own reference's before the first step.
    """
    out = Path(config.out)
    if (out / "config.yaml").exists():
        if not overwrite:
            raise InvalidInputError(
                explain(
                    "out",
                    got=f"{out}, which holds a run",
                    expected="a new folder",
                    hint="another `out`, or overwriting it",
                )
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    start = time.perf_counter()

    def record(status: str, **details: Any) -> None:
        _write_json(
            out / "run.json",
            {"name": config.name, "status": status, "seconds": round(time.perf_counter() - start, 3), **details},
        )

    record("running")
    try:
        metrics, strength, truth = _stages(config, out, progress or (lambda *_: None))
    except KeyboardInterrupt:
        record("interrupted")
        raise
    except NonFiniteLossError as error:
        record("failed", error=str(error), pair_ids=error.pair_ids)
        raise
    except Exception as error:
        record("failed", error=f"{type(error).__name__}: {error}")
        raise
    record("finished", metrics=metrics)
    return RunResult(
        path=out, name=config.name, metrics=metrics, strength=strength, truth=truth, seconds=time.perf_counter() - start
    )


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """What both stages of a run share."""

    config: AlignmentConfig
    out: Path
    policy: SequenceLogProbs
    collator: Collator
    log: MetricsLog
    progress: Progress

    def train(
        self,
        objective: Any,
        groups: Sequence[ParameterGroup],
        train_rows: Sequence[TokenizedComparison],
        eval_rows: Sequence[TokenizedComparison],
        stage: str,
        config: StageConfig,
    ) -> dict[str, float]:
        return train(
            objective,
            groups,
            train_rows,
            eval_rows,
            stage=stage,
            config=config,
            seed=self.config.seed,
            collator=self.collator,
            log=self.log,
            progress=self.progress,
        )

    def policy_group(self, optim: OptimConfig) -> ParameterGroup:
        return ParameterGroup(
            name="policy", parameters=list(self.policy.parameters()), lr=optim.lr, max_grad_norm=optim.max_grad_norm
        )


def _stages(
    config: AlignmentConfig, out: Path, progress: Progress
) -> tuple[dict[str, dict[str, float]], dict[str, Any] | None, dict[str, Any] | None]:
    from mixlogit_align.alignment import hf

    data = load_data(config.data)
    train_split, eval_split = data.split("train"), data.split("eval")
    texts = (text for row in train_split for text in (row.prompt, *row.responses))
    model, tokenizer = hf.load(config.model, texts, config.seed)
    # Dropout stays off in both stages: policy and reference must agree where they start.
    model.to(config.device).eval()
    train_rows, train_report = tokenize(train_split, tokenizer, config.tokenization)
    eval_rows, eval_report = tokenize(eval_split, tokenizer, config.tokenization)
    _write_json(
        out / "data.json",
        {"reader": dict(data.report), "tokenization": {"train": train_report.as_dict(), "eval": eval_report.as_dict()}},
    )
    metrics: dict[str, dict[str, float]] = {}
    strength = truth = None
    with MetricsLog(out / "metrics.jsonl") as log:
        setting = _Setting(
            config=config,
            out=out,
            policy=SequenceLogProbs(model),
            log=log,
            progress=progress,
            collator=Collator(pad_id=tokenizer.pad_token_id, device=config.device),
        )
        if config.sft is not None:
            objective = SFTObjective(setting.policy, setting.collator, eval_batch_size=config.sft.eval_batch_size)
            groups = [setting.policy_group(config.sft.optim)]
            metrics["sft"] = setting.train(objective, groups, train_rows, eval_rows, "sft", config.sft)
        if config.preference is not None:
            metrics["preference"], strength, truth = _preference(
                setting, config.preference, train_rows, eval_rows, data
            )
    hf.save(model, tokenizer, out / "policy")
    return metrics, strength, truth


def _preference(
    setting: _Setting,
    config: PreferenceConfig,
    train_rows: Sequence[TokenizedComparison],
    eval_rows: Sequence[TokenizedComparison],
    data: PreferenceData,
) -> tuple[dict[str, float], dict[str, Any], dict[str, Any] | None]:
    train_rows, eval_rows = (_with_reference(setting, rows, config.eval_batch_size) for rows in (train_rows, eval_rows))
    mixing = build_strength(config)
    initial = mixing.summary()
    objective = PreferenceObjective(
        setting.policy,
        MixDPOLoss(mixing, config.integration.build()),
        setting.collator,
        eval_batch_size=config.eval_batch_size,
    )
    _check_start(objective, train_rows[: config.eval_batch_size])
    groups = [setting.policy_group(config.optim)]
    if config.strength.lr > 0:
        groups.append(
            ParameterGroup(
                name="strength",
                parameters=list(mixing.parameters()),
                lr=config.strength.lr,
                max_grad_norm=config.strength.max_grad_norm,
            )
        )
    try:
        metrics = setting.train(objective, groups, train_rows, eval_rows, "preference", config)
    finally:
        strength = strength_record(mixing, initial, config, config.num_steps(len(train_rows)), data.truth)
        _write_json(setting.out / "strength.json", strength)
    held_out = objective.held_out(eval_rows)
    _write_log_ratios(setting.out / "log_ratios.parquet", held_out)
    truth = None
    if data.truth is not None:
        comparison = compare_with_truth(held_out, mixing(), objective.preference_loss.integration, data.truth)
        truth = {"strength": data.truth.summary(), "held_out": comparison}
        _write_json(setting.out / "truth.json", truth)
    return metrics, strength, truth


def _with_reference(
    setting: _Setting, rows: Sequence[TokenizedComparison], batch_size: int
) -> list[TokenizedComparison]:
    """The rows with the log-probabilities that the policy gives them now, as the reference's."""
    logps = candidate_logprobs(setting.policy, rows, setting.collator, batch_size=batch_size).tolist()
    return [row.with_reference(values[: len(row.input_ids)]) for row, values in zip(rows, logps, strict=True)]


def _check_start(objective: PreferenceObjective, rows: Sequence[TokenizedComparison]) -> None:
    """The policy is its own reference before the first step: its log-ratio differences are 0."""
    largest = objective.held_out(rows).loss.logratio_diff.abs().max().item()
    if largest > REFERENCE_TOLERANCE:
        raise MixlogitError(
            explain(
                "logratio_diff before the first step",
                got=f"up to {largest:.3g} nats",
                expected=f"0, within {REFERENCE_TOLERANCE}",
                hint="switching off dropout or other randomness in the policy",
            )
        )


def _write_log_ratios(path: Path, held_out: HeldOut) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [row.comparison for row in held_out.rows]
    table = pyarrow.table(
        {
            "pair_id": pyarrow.array([row.pair_id for row in rows], pyarrow.int64()),
            "annotator_id": pyarrow.array([row.annotator_id for row in rows], pyarrow.string()),
            "groups": pyarrow.array([json.dumps(dict(row.groups), sort_keys=True) for row in rows], pyarrow.string()),
            "weight": pyarrow.array([row.weight for row in rows], pyarrow.float64()),
            "logratio_diff": pyarrow.array(held_out.loss.logratio_diff.tolist(), pyarrow.float64()),
            "pair_weight": pyarrow.array(held_out.loss.pair_weight.tolist(), pyarrow.float64()),
        }
    )
    pyarrow.parquet.write_table(table, path)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
