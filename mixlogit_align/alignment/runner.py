"""One alignment run from a configuration to its folder, on one process or many.

The folder: ``config.yaml`` (resolved), ``run.json`` (status, alarms, final held-out metrics), ``data.json`` (what the
reader and the truncation policy met), ``metrics.jsonl``, ``checkpoints/``, ``policy/`` (Hugging Face format) and, after
a preference stage, ``strength.json`` and ``log_ratios.parquet``; with simulated data also ``truth.json``. An
interrupted, killed or failed run leaves what was written so far, and can be resumed.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixlogit_align.alignment.alarms import Alarm, find_alarms, non_finite
from mixlogit_align.alignment.checkpoint import Checkpoints, Position, TrainingState, model_fingerprint
from mixlogit_align.alignment.config import (
    AlignmentConfig,
    LearnedUpdate,
    Precision,
    PreferenceConfig,
    StageConfig,
)
from mixlogit_align.alignment.conversations import texts
from mixlogit_align.alignment.data import StrengthTruth, load_data
from mixlogit_align.alignment.data.batches import Collator, TokenizedComparison
from mixlogit_align.alignment.data.schema import SPLITS, PreferenceData, Split
from mixlogit_align.alignment.folder import RunFolder
from mixlogit_align.alignment.logratios import SequenceLogProbs
from mixlogit_align.alignment.losses import MixDPOLoss
from mixlogit_align.alignment.objectives import HeldOut, PreferenceObjective, SFTObjective
from mixlogit_align.alignment.parallel import World, join, recompute_activations, resolved, shard
from mixlogit_align.alignment.progress import Progress
from mixlogit_align.alignment.strength import build_preference_loss, strength_record
from mixlogit_align.alignment.tokenization import content_hash, tokenize
from mixlogit_align.alignment.tracking import open_trackers, require_packages
from mixlogit_align.alignment.trainer import (
    MetricsLog,
    NonFiniteLossError,
    ParameterGroup,
    Trainer,
    build_optimizer,
    check_batch_size,
)
from mixlogit_align.alignment.truth import compare_with_truth
from mixlogit_align.errors import IntegrationError, InvalidInputError, MixlogitError, explain

# Nats. Float32 noise between two ways to batch the same rows stays far below, another model far above.
REFERENCE_TOLERANCE = 1e-2

Rows = dict[Split, list[TokenizedComparison]]


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
    alarms : sequence of mapping
        As in ``run.json``: what the run noticed that a person should look at.
    seconds : float
        Wall-clock time of the whole run, resumed parts together.
    """

    path: Path
    name: str
    metrics: Mapping[str, Mapping[str, float]]
    strength: Mapping[str, Any] | None
    truth: Mapping[str, Any] | None
    alarms: Sequence[Mapping[str, Any]]
    seconds: float


def run_alignment(
    config: AlignmentConfig, *, progress: Progress | None = None, overwrite: bool = False, resume: bool = False
) -> RunResult:
    """Run the stages of ``config`` and write its run folder.

    Under torchrun, or where a process group of torch.distributed exists, the processes train together: the policy is
    sharded over them (FSDP2), batches are shared out, and the main process writes.

    Parameters
    ----------
    config : AlignmentConfig
    progress : callable, optional
        Called as ``progress(stage, examples_done, examples_total, metrics)`` on the main process;
        `mixlogit_align.alignment.RichProgress` draws bars.
    overwrite : bool
        Replace an earlier run in the same folder.
    resume : bool
        Go on from the last checkpoint of the run in the folder, on any number of processes: on the same number the
        trajectory is that of a run without a break, to the bit. Where there is no run, one begins; where one has
        finished, its result is read.

    Raises
    ------
    InvalidInputError
        For a device that is not there, a rule that does not fit the strength, a batch size that the processes do not
        divide, or a folder that holds another run, before anything is written; for missing data, or larger sets than
        pairs in a preference stage.
    NonFiniteLossError
        When a loss or gradient is NaN or infinite; ``run.json`` then names the pairs.
    CheckpointError
        When a checkpoint cannot be written, or the last one is damaged.
    MixlogitError
        When the policy's log-probabilities differ from its own reference's before the first step.
    """
    with join(config.device, config.precision) as world:
        for stage, settings in (("sft", config.sft), ("preference", config.preference)):
            if settings is not None:
                check_batch_size(stage, settings, world)
        preference_loss = _preference_loss(config, world)
        require_packages(config.tracking)
        folder = RunFolder(config, world)
        if folder.begin(overwrite=overwrite, resume=resume) == "finished":
            return _read_result(folder)
        run = Run(config, folder, world, progress if progress is not None and world.is_main else _silent)
        folder.write("run.json", run.record("running"))
        try:
            result = run.stages(preference_loss)
        except KeyboardInterrupt:
            folder.write("run.json", run.record("interrupted"))
            raise
        except NonFiniteLossError as error:
            run.alarms.append(non_finite(error.stage, error.step, error.pair_ids))
            folder.write("run.json", run.record("failed", error=str(error), pair_ids=error.pair_ids))
            raise
        except Exception as error:
            folder.write("run.json", run.record("failed", error=f"{type(error).__name__}: {error}"))
            raise
        folder.write("run.json", run.record("finished", metrics=result.metrics))
        return result


class Run:
    """A run under way: what its stages share.

    Parameters
    ----------
    config : AlignmentConfig
    folder : RunFolder
    world : World
    progress : Progress
    """

    def __init__(self, config: AlignmentConfig, folder: RunFolder, world: World, progress: Progress) -> None:
        self.config, self.folder, self.world, self.progress = config, folder, world, progress
        self.precision = resolved(config.precision, config.device)
        self.begun = time.perf_counter()
        self.log = MetricsLog(None, begun=self.begun)
        self.alarms: list[Alarm] = []
        self.held_out: dict[str, Mapping[str, float]] = {}

    def record(self, status: str, **details: Any) -> dict[str, Any]:
        """What ``run.json`` says."""
        return {
            "name": self.config.name,
            "status": status,
            "seconds": round(self.log.seconds, 3),
            "processes": self.world.size,
            "precision": self.precision,
            "alarms": [alarm.as_dict() for alarm in self.alarms],
            **details,
        }

    def stages(self, preference_loss: MixDPOLoss | None) -> RunResult:
        """Build what is trained, train it, and write what it became."""
        from mixlogit_align.alignment import hf

        config, world = self.config, self.world
        data = load_data(config.data)
        self.tokenizer, rows, data_hash = self._tokenized(data)
        if preference_loss is not None:
            _require_pairs(rows)
        policy = self._sharded(hf.skeleton(config.model, self.tokenizer, config.seed), self.precision)
        hf.load_weights(policy.policy, config.model, world.device, _dtype(self.precision))
        self.checkpoints = Checkpoints(
            self.folder.path / "checkpoints",
            keep=config.checkpoint.keep,
            identity={"data": data_hash, "model": model_fingerprint(policy)},
            world=world,
        )
        self.reached = self.checkpoints.latest()
        if self.reached is not None:
            self.held_out.update(self.reached.held_out)
        strength = truth = None
        with self._open_log() as self.log:
            self._watch()
            self.trainer = Trainer(
                collator=Collator(pad_id=self.tokenizer.pad_token_id, device=world.device),
                log=self.log,
                progress=self.progress,
                seed=config.seed,
                world=world,
                evaluated=self._watch,
            )
            if config.sft is not None and (self.reached is None or self.reached.stage == "sft"):
                self._sft(policy, config.sft, rows)
            if config.preference is not None and preference_loss is not None:
                strength, truth = self._preference(policy, preference_loss, config.preference, rows, data.truth)
        hf.export(policy.policy, self.tokenizer, self.folder.path / "policy", world)
        return RunResult(
            path=self.folder.path,
            name=config.name,
            metrics=self.held_out,
            strength=strength,
            truth=truth,
            alarms=[alarm.as_dict() for alarm in self.alarms],
            seconds=self.log.seconds,
        )

    # --- what is trained -------------------------------------------------------------------------------

    def _tokenized(self, data: PreferenceData) -> tuple[Any, Rows, str]:
        """The tokenizer, the rows of each split as ids, and the hash of all of them."""
        from mixlogit_align.alignment import hf

        splits = {name: data.split(name) for name in SPLITS}
        tokenizer = hf.load_tokenizer(self.config.model, (text for row in splits["train"] for text in texts(row)))
        tokenized = {
            name: tokenize(split, tokenizer, self.config.tokenization, source=self.config.data.source)
            for name, split in splits.items()
        }
        rows: Rows = {name: found for name, (found, _) in tokenized.items()}
        data_hash = content_hash([row for name in SPLITS for row in rows[name]])
        reports = {name: report.as_dict() for name, (_, report) in tokenized.items()}
        self.folder.write("data.json", {"reader": dict(data.report), "tokenization": reports, "hash": data_hash})
        return tokenizer, rows, data_hash

    def _sharded(self, model: nn.Module, precision: Precision) -> SequenceLogProbs:
        """The model as it computes: dropout stays off, since policy and reference must agree where they start."""
        policy = SequenceLogProbs(model.eval())
        if self.config.activation_checkpointing:
            recompute_activations(policy)
        shard(policy, self.world, precision)
        return policy

    def _reference(self, policy: SequenceLogProbs, precision: str) -> SequenceLogProbs:
        """The policy as it is now, in the reference's precision; it shares the policy's float32 parameters."""
        from mixlogit_align.alignment import hf

        if precision == "match" or self.precision == "float32":
            return policy
        reference = self._sharded(hf.skeleton(self.config.model, self.tokenizer, self.config.seed), "float32")
        reference.load_state_dict({name: value.float() for name, value in policy.state_dict().items()}, assign=True)
        return reference

    # --- stages ----------------------------------------------------------------------------------------

    def _sft(self, policy: SequenceLogProbs, config: StageConfig, rows: Rows) -> None:
        objective = SFTObjective(
            policy, self.trainer.collator, eval_batch_size=config.eval_batch_size, world=self.world
        )
        groups = [_policy_group(policy, config)]
        state = TrainingState(module=objective, optimizer=build_optimizer(groups, config.optim))
        self._train("sft", config, objective, groups, state, rows, self._restore("sft", state))

    def _preference(
        self,
        policy: SequenceLogProbs,
        preference_loss: MixDPOLoss,
        config: PreferenceConfig,
        rows: Rows,
        known: StrengthTruth | None,
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        objective = PreferenceObjective(policy, preference_loss, self.trainer.collator, config=config, world=self.world)
        mixing = preference_loss.mixing
        groups = [_policy_group(policy, config)]
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
        reference = {
            name: torch.zeros(len(rows[name]), 2, dtype=torch.float64, device=self.world.device) for name in SPLITS
        }
        extra = {f"reference/{name}": logps for name, logps in reference.items()}
        state = TrainingState(module=objective, optimizer=build_optimizer(groups, config.optim), extra=extra)
        start = self._restore("preference", state)
        if start == 0:
            judge = self._reference(policy, config.reference_precision)
            for name in SPLITS:
                reference[name].copy_(objective.logps(judge, rows[name]))
            del judge
        rows = {
            name: [row.with_reference(logps) for row, logps in zip(rows[name], reference[name].tolist(), strict=True)]
            for name in SPLITS
        }
        if start == 0 and self.precision == "float32":
            _check_start(objective, rows["eval"][: config.eval_batch_size])
        try:
            self._train("preference", config, objective, groups, state, rows, start)
        finally:
            steps = config.num_steps(len(rows["train"]))
            strength = strength_record(mixing, config, steps, known, objective.solver)
            self.folder.write("strength.json", strength)
        held_out = objective.held_out(rows["eval"])
        if self.world.is_main:
            _write_log_ratios(self.folder.path / "log_ratios.parquet", held_out)
        truth = None
        if known is not None:
            comparison = compare_with_truth(held_out, mixing.cpu()(), preference_loss.integration, known)
            truth = {"strength": known.summary(), "held_out": comparison}
            self.folder.write("truth.json", truth)
        return strength, truth

    def _restore(self, stage: str, state: TrainingState) -> int:
        """Steps of this stage that were done before; ``state`` is then as it was after them."""
        if self.reached is None or self.reached.stage != stage:
            return 0
        self.checkpoints.load(state, self.reached)
        return self.reached.step

    def _train(
        self,
        stage: str,
        config: StageConfig,
        objective: SFTObjective | PreferenceObjective,
        groups: Sequence[ParameterGroup],
        state: TrainingState,
        rows: Rows,
        start: int,
    ) -> None:
        def save(step: int, latest: Mapping[str, float]) -> None:
            self.held_out[stage] = latest
            log_bytes = self.world.on_main(self.log.durable_bytes)
            position = Position(stage=stage, step=step, log_bytes=log_bytes, held_out=self.held_out)
            self.checkpoints.save(state, position)

        self.held_out[stage] = self.trainer.run(
            stage,
            config,
            objective,
            groups,
            state.optimizer,
            rows["train"],
            rows["eval"],
            start=start,
            held_out=self.held_out.get(stage),
            save=save,
            save_every_examples=self.config.checkpoint.every_examples,
        )

    # --- what is written -------------------------------------------------------------------------------

    def _open_log(self) -> MetricsLog:
        """``metrics.jsonl`` up to the last checkpoint, and the trackers beside it; on the main process."""
        if not self.world.is_main:
            return MetricsLog(None, begun=self.begun)
        keep = 0 if self.reached is None else self.reached.log_bytes
        log = MetricsLog(self.folder.path / "metrics.jsonl", keep_bytes=keep, begun=self.begun)
        log.trackers = open_trackers(
            self.config.tracking,
            self.folder.path,
            config=dataclasses.asdict(self.config),
            name=self.config.name,
            kept=log.records,
        )
        return log

    def _watch(self) -> None:
        """Look for alarms; new ones are logged, and in ``run.json``, at once."""
        found = find_alarms(self.log.records, self.config)
        if found != self.alarms:
            for alarm in found[len(self.alarms) :]:
                logging.getLogger(__name__).warning("%s", alarm)
            self.alarms = found
            self.folder.write("run.json", self.record("running"))


def _dtype(precision: Precision) -> torch.dtype:
    """What parameters are stored in."""
    if precision != "bfloat16_parameters":
        return torch.float32
    warnings.warn(
        "precision: bfloat16_parameters stores the policy in bfloat16, where updates below a relative 0.4 % are lost: "
        "RMSprop at a learning rate of 5e-7 moves a few per cent of the weights and leaves the others where they were. "
        "`precision: bfloat16` computes in bfloat16 over float32 parameters.",
        UserWarning,
        stacklevel=2,
    )
    return torch.bfloat16


def _require_pairs(rows: Rows) -> None:
    for row in (row for name in SPLITS for row in rows[name]):
        if len(row.input_ids) != 2:
            raise InvalidInputError(
                explain(
                    f"responses of pair_id {row.comparison.pair_id}",
                    got=len(row.input_ids),
                    expected="pairs in a preference stage",
                    hint="`sets: pairs` in the data's settings",
                )
            )


def _preference_loss(config: AlignmentConfig, world: World) -> MixDPOLoss | None:
    """The loss of the preference stage, tried once on its device: what cannot work is refused before any training."""
    if config.preference is None:
        return None
    preference_loss = build_preference_loss(config.preference).to(world.device)
    try:
        preference_loss(*torch.zeros(4, 1, device=world.device))
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


def _read_result(folder: RunFolder) -> RunResult:
    """The result of a run that has finished before."""
    state = folder.read("run.json")
    found = {name: folder.read(f"{name}.json") if (folder.path / f"{name}.json").exists() else None
             for name in ("strength", "truth")}  # fmt: skip
    return RunResult(
        path=folder.path,
        name=state["name"],
        metrics=state["metrics"],
        alarms=state["alarms"],
        seconds=state["seconds"],
        **found,
    )


def _silent(task: str, done: int, total: int, metrics: Mapping[str, float], /) -> None:
    """The progress of processes other than the main one."""
