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

import torch

from mixlogit_align.alignment.config import AlignmentConfig, LearnedUpdate, PreferenceConfig, StageConfig
from mixlogit_align.alignment.data import StrengthTruth, load_data
from mixlogit_align.alignment.data.batches import Collator, TokenizedComparison
from mixlogit_align.alignment.data.schema import SPLITS
from mixlogit_align.alignment.logratios import SequenceLogProbs
from mixlogit_align.alignment.losses import MixDPOLoss
from mixlogit_align.alignment.objectives import HeldOut, PreferenceObjective, SFTObjective
from mixlogit_align.alignment.progress import Progress
from mixlogit_align.alignment.settings import dump_config
from mixlogit_align.alignment.strength import build_preference_loss, strength_record
from mixlogit_align.alignment.tokenization import tokenize
from mixlogit_align.alignment.trainer import MetricsLog, NonFiniteLossError, ParameterGroup, Trainer
from mixlogit_align.alignment.truth import compare_with_truth
from mixlogit_align.errors import IntegrationError, InvalidInputError, MixlogitError, explain

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
        For a device that is not there, a rule that does not fit the strength, or a folder that holds another run,
        before anything is written; for missing data, or larger sets than pairs in a preference stage.
    NonFiniteLossError
        When a loss or gradient is NaN or infinite; ``run.json`` then names the pairs.
    MixlogitError
        When the policy's log-probabilities differ from its own reference's before the first step.
    """
    preference_loss = _preference_loss(config)
    out = Path(config.out)
    if (out / "config.yaml").exists():
        if not overwrite:
            raise InvalidInputError(
                explain(
                    "out",
                    got=f"{out}, which holds a run (status: {_status(out)})",
                    expected="a new folder",
                    hint="another `out`, or --overwrite (in Python, overwrite=True) to replace that run",
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
        metrics, strength, truth = _stages(config, preference_loss, out, progress or (lambda *_: None))
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


def _preference_loss(config: AlignmentConfig) -> MixDPOLoss | None:
    """The loss of the preference stage, tried once on its device: what cannot work is refused before any training."""
    try:
        torch.empty(0, device=config.device)
    except (AssertionError, RuntimeError) as error:  # torch raises either
        raise InvalidInputError(
            explain(
                "device",
                got=f"{config.device!r} ({str(error).splitlines()[0].rstrip('.')})",
                expected="a device that torch can use on this machine",
                hint="`device: cpu`",
            )
        ) from error
    if config.preference is None:
        return None
    preference_loss = build_preference_loss(config.preference).to(config.device)
    try:
        preference_loss(*torch.zeros(4, 1, device=config.device))
    except IntegrationError as error:
        raise InvalidInputError(
            explain(
                "preference.integration",
                got=f"`rule: {config.preference.integration.rule}` "
                f"for a strength of `family: {config.preference.strength.family}`",
                expected="a rule that fits the family",
                hint="`integration: {rule: best}`",
            )
        ) from error
    return preference_loss


def _status(out: Path) -> str:
    """What the run in a folder says of itself; a run that was killed still says "running"."""
    try:
        return str(json.loads((out / "run.json").read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, KeyError):
        return "unknown"


def _stages(
    config: AlignmentConfig, preference_loss: MixDPOLoss | None, out: Path, progress: Progress
) -> tuple[dict[str, dict[str, float]], dict[str, Any] | None, dict[str, Any] | None]:
    from mixlogit_align.alignment import hf

    data = load_data(config.data)
    splits = {name: data.split(name) for name in SPLITS}
    texts = (text for row in splits["train"] for text in (row.prompt, *row.responses))
    model, tokenizer = hf.load(config.model, texts, config.seed)
    # Dropout stays off in both stages: policy and reference must agree where they start.
    policy = SequenceLogProbs(model.to(config.device).eval())
    collator = Collator(pad_id=tokenizer.pad_token_id, device=config.device)
    rows, reports = {}, {}
    for name, split in splits.items():
        rows[name], report = tokenize(split, tokenizer, config.tokenization)
        reports[name] = report.as_dict()
    _write_json(out / "data.json", {"reader": dict(data.report), "tokenization": reports})
    metrics: dict[str, dict[str, float]] = {}
    strength = truth = None
    with MetricsLog(out / "metrics.jsonl") as log:
        trainer = Trainer(collator=collator, log=log, progress=progress, seed=config.seed)
        if config.sft is not None:
            objective = SFTObjective(policy, collator, eval_batch_size=config.sft.eval_batch_size)
            groups = [_policy_group(policy, config.sft)]
            metrics["sft"] = trainer.run("sft", config.sft, objective, groups, rows["train"], rows["eval"])
        if config.preference is not None and preference_loss is not None:
            objective_ = PreferenceObjective(
                policy, preference_loss, collator, eval_batch_size=config.preference.eval_batch_size
            )
            metrics["preference"], strength, truth = _preference(
                trainer, objective_, config.preference, rows["train"], rows["eval"], data.truth, out
            )
    hf.save(model, tokenizer, out / "policy")
    return metrics, strength, truth


def _preference(
    trainer: Trainer,
    objective: PreferenceObjective,
    config: PreferenceConfig,
    train_rows: Sequence[TokenizedComparison],
    eval_rows: Sequence[TokenizedComparison],
    known: StrengthTruth | None,
    out: Path,
) -> tuple[dict[str, float], dict[str, Any], dict[str, Any] | None]:
    train_rows, eval_rows = (objective.with_reference(rows) for rows in (train_rows, eval_rows))
    _check_start(objective, train_rows[: config.eval_batch_size])
    mixing = objective.preference_loss.mixing
    initial = mixing.summary()
    groups = [_policy_group(objective.policy, config)]
    update = config.strength.update
    if isinstance(update, LearnedUpdate):
        groups.append(
            ParameterGroup(
                name="strength",
                parameters=list(mixing.parameters()),
                lr=update.lr,
                max_grad_norm=update.max_grad_norm,
            )
        )
    try:
        metrics = trainer.run("preference", config, objective, groups, train_rows, eval_rows)
    finally:
        strength = strength_record(mixing, initial, config, config.num_steps(len(train_rows)), known)
        _write_json(out / "strength.json", strength)
    held_out = objective.held_out(eval_rows)
    _write_log_ratios(out / "log_ratios.parquet", held_out)
    truth = None
    if known is not None:
        comparison = compare_with_truth(held_out, mixing.cpu()(), objective.preference_loss.integration, known)
        truth = {"strength": known.summary(), "held_out": comparison}
        _write_json(out / "truth.json", truth)
    return metrics, strength, truth


def _policy_group(policy: SequenceLogProbs, config: StageConfig) -> ParameterGroup:
    return ParameterGroup(
        name="policy",
        parameters=list(policy.parameters()),
        lr=config.optim.lr,
        max_grad_norm=config.optim.max_grad_norm,
    )


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
