"""One alignment run from a configuration to its folder, on one process or many.

The folder: ``config.yaml`` (resolved), ``run.json`` (status, alarms, final held-out metrics), ``data.json`` (what the
reader and the truncation policy met), ``metrics.jsonl``, ``checkpoints/``, ``policy/`` (Hugging Face format) and, after
a preference stage, ``strength.json`` and ``log_ratios.parquet``; with simulated data also ``truth.json``. A run of both
stages that has no adapters keeps the policy between them as ``sft/policy/``. An interrupted, killed or failed run
leaves what was written so far, and can be resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixlogit_align.alignment import adapters
from mixlogit_align.alignment.alarms import FLOAT32_SPREAD, Alarm, bfloat16_spread, find_alarms, non_finite
from mixlogit_align.alignment.baseline_objectives import build_objective
from mixlogit_align.alignment.checkpoint import (
    Checkpoints,
    Position,
    TrainingState,
    model_fingerprint,
)
from mixlogit_align.alignment.compilation import (
    CompileClock,
    compile_blocks,
    compiling,
    require_compiler,
    try_compiled,
)
from mixlogit_align.alignment.config import (
    AlignmentConfig,
    LearnedUpdate,
    Precision,
    PreferenceConfig,
    PretrainedModel,
    StageConfig,
)
from mixlogit_align.alignment.conversations import texts
from mixlogit_align.alignment.data import load_data
from mixlogit_align.alignment.data.batches import Collator, TokenizedComparison
from mixlogit_align.alignment.data.schema import SPLITS, Split
from mixlogit_align.alignment.durable import write_durably
from mixlogit_align.alignment.environment import machine, versions
from mixlogit_align.alignment.evaluation import PairTable, held_out_pairs, write_pairs
from mixlogit_align.alignment.finished import SUPERVISED
from mixlogit_align.alignment.folder import RunFolder
from mixlogit_align.alignment.logratios import SequenceLogProbs
from mixlogit_align.alignment.loss_config import LossConfig
from mixlogit_align.alignment.losses import MixDPOLoss, PreferenceLoss
from mixlogit_align.alignment.metrics_log import MetricsLog
from mixlogit_align.alignment.objectives import HeldOut, MixDPOObjective, PreferenceObjective, SFTObjective
from mixlogit_align.alignment.parallel import World, join, recompute_activations, resolved, shard
from mixlogit_align.alignment.progress import Progress
from mixlogit_align.alignment.reference import ReferenceKey, read_reference, require_cache, write_reference
from mixlogit_align.alignment.settings import load_config
from mixlogit_align.alignment.strength import build_preference_loss, fixed_strength_record, strength_record
from mixlogit_align.alignment.tokenization import content_hash, tokenize
from mixlogit_align.alignment.tracking import open_trackers, require_packages
from mixlogit_align.alignment.trainer import (
    GRADIENT_EPS,
    NonFiniteLossError,
    ParameterGroup,
    Stage,
    Trainer,
    check_batch_size,
)
from mixlogit_align.alignment.truth import compare_with_truth
from mixlogit_align.errors import IntegrationError, InvalidInputError, MixlogitError, explain

Rows = dict[Split, list[TokenizedComparison]]
PairLoss = Callable[..., PreferenceLoss]


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
    was_finished : bool
        It had finished before: nothing was trained, and this is read from its folder.
    """

    path: Path
    name: str
    metrics: Mapping[str, Mapping[str, float]]
    strength: Mapping[str, Any] | None
    truth: Mapping[str, Any] | None
    alarms: Sequence[Mapping[str, Any]]
    seconds: float
    was_finished: bool = False


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
        Replace an earlier run in the same folder, with its results; refused where the folder holds anything else.
    resume : bool
        Go on from the last checkpoint of the run in the folder, on any number of processes: on the same number the
        trajectory is that of a run without a break, to the bit. Where there is no run, one begins; where one has
        finished, its result is read.

    Raises
    ------
    InvalidInputError
        For a device that is not there, a rule that does not fit the strength, a batch size that the processes do not
        divide, blocks that torch cannot compile where it should, or a folder that holds another run or no run but
        something else, before anything is written; for missing data, or larger sets than pairs in a preference stage.
    NonFiniteLossError
        When a loss, log-probability or gradient is NaN or infinite; ``run.json`` then names the pairs.
    CheckpointError
        When a checkpoint cannot be written, or the last one is damaged.
    MixlogitError
        When the policy's log-probabilities differ from its own reference's before the first step.
    """
    config = config.named()
    clock = compiling() if config.compile else contextlib.nullcontext()
    with join(config.device, config.precision) as world, clock as compile_clock:
        for stage, settings in (("sft", config.sft), ("preference", config.preference)):
            if settings is not None:
                check_batch_size(stage, settings, world)
        preference_loss = _preference_loss(config, world)
        require_packages(config.tracking)
        if config.lora is not None:
            adapters.require_peft()
        folder = RunFolder(config, world)
        status = folder.found(overwrite=overwrite, resume=resume)
        if status == "finished":
            return _read_result(folder)
        shown = progress if progress is not None and world.is_main else _silent
        run = Run(config, folder, world, shown, compile_clock)  # its seconds begin before any compiling
        if config.compile:
            require_compiler(world)
        run.build(resume=status != "new")
        folder.begin(replace=overwrite)
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


def export_checkpoint(run: str | Path, out: str | Path) -> Path:
    """Write the policy of a run's last checkpoint in Hugging Face format, also of a run that was interrupted.

    Parameters
    ----------
    run : path
        The run folder.
    out : path
        Gets ``policy/`` and, of a preference stage, ``strength.json`` beside it.

    Returns
    -------
    Path
        ``out/policy``, which ``from_pretrained`` loads; ``out/adapter`` where the run's ``lora.export`` says so.

    Raises
    ------
    InvalidInputError
        When the run has no checkpoint, or its data or model are no longer those it was begun with.
    CheckpointError
        When the checkpoint is damaged.
    """
    config = dataclasses.replace(load_config(Path(run) / "config.yaml"), out=str(run), compile=False)
    with join(config.device, config.precision) as world:
        exported = Run(config, RunFolder(config, world), world, _silent)
        exported.build(resume=True)
        return exported.export(Path(out), _preference_loss(config, world))


@dataclass(kw_only=True)
class _Stage(Stage):
    """A stage with what checkpoints hold of it beside its optimizer; see `TrainingState`."""

    objective: SFTObjective | PreferenceObjective
    extra: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    fixed: Set[str]

    @property
    def state(self) -> TrainingState:
        """What a checkpoint restores."""
        return TrainingState(module=self.objective, optimizer=self.optimizer, extra=self.extra, fixed=self.fixed)


class Run:
    """A run under way: what its stages share.

    Parameters
    ----------
    config : AlignmentConfig
    folder : RunFolder
    world : World
    progress : Progress
    clock : CompileClock, optional
        Where its blocks are compiled.
    """

    def __init__(
        self,
        config: AlignmentConfig,
        folder: RunFolder,
        world: World,
        progress: Progress,
        clock: CompileClock | None = None,
    ) -> None:
        self.config, self.folder, self.world, self.progress, self.clock = config, folder, world, progress, clock
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
            "versions": versions(),
            "machine": machine(self.config.device),
            **({} if self.clock is None else {"compile_seconds": round(self.clock.seconds, 3)}),
            "alarms": [alarm.as_dict() for alarm in self.alarms],
            **details,
        }

    def build(self, *, resume: bool) -> None:
        """Read and tokenize the data, build the policy, and see how far the run has come; nothing is written."""
        from mixlogit_align.alignment import hf

        config, world = self.config, self.world
        self.data = load_data(config.data)
        data_hash = self._tokenize()
        if config.preference is not None:
            _require_pairs(self.rows)
        self.collator = Collator(pad_id=self.tokenizer.pad_token_id, device=world.device)
        model = hf.skeleton(config.model, self.tokenizer, config.seed)
        lengths = (len(ids) for split in self.rows.values() for row in split for ids in row.input_ids)
        self.longest = max(lengths)
        hf.require_positions(model, self.longest)
        if config.preference is not None and (own := _reference_model(config.preference)) is not None:
            hf.require_vocabulary(own, self.tokenizer)
        self.policy = self._sharded(model, self.precision)
        hf.load_weights(self.policy.policy, config.model, world.device, _dtype(self.precision))
        identity = {"data": data_hash}
        if config.lora is not None:
            self.base = hf.fingerprint(self.policy.policy, world=world)
            identity["base"] = self.base["weights"]  # which checkpoints are without
            adapters.add_adapters(self.policy.policy, config.lora, config.seed)
        self.checkpoints = Checkpoints(
            self.folder.path / "checkpoints",
            keep=config.checkpoint.keep,
            identity={**identity, "model": model_fingerprint(self.policy)},
            world=world,
        )
        self.reached = self.checkpoints.latest() if resume else None
        if self.reached is None:
            world.on_main(lambda: require_cache(config.preference))
        else:
            self.held_out.update(self.reached.held_out)
        self._try_compiled(self.policy, self.precision, training=True)

    def stages(self, preference_loss: PairLoss | None) -> RunResult:
        """Train what is left to train, and write what it became."""
        config = self.config
        self.checkpoints.sweep()
        self.folder.write("data.json", self.data_record)
        strength = truth = None
        with self._open_log() as self.log:
            self._watch()
            self.trainer = Trainer(
                collator=self.collator,
                log=self.log,
                progress=self.progress,
                seed=config.seed,
                world=self.world,
                evaluated=self._watch,
                clock=self.clock,
            )
            if config.sft is not None and (self.reached is None or self.reached.stage == "sft"):
                stage = self._sft(config.sft)
                self._train(stage, self.rows, self._restore(stage))
                if config.preference is not None and config.lora is None:
                    self._export(self.folder.path / SUPERVISED.parent)
            if config.preference is not None and preference_loss is not None:
                strength, truth = self._preference(self._preference_stage(config.preference, preference_loss))
        self._export(self.folder.path)
        return RunResult(
            path=self.folder.path,
            name=config.name,
            metrics=self.held_out,
            strength=strength,
            truth=truth,
            alarms=[alarm.as_dict() for alarm in self.alarms],
            seconds=self.log.seconds,
        )

    def export(self, out: Path, preference_loss: PairLoss | None) -> Path:
        """Write the policy of the last checkpoint, and the strength beside it; returns the policy's folder."""
        if self.reached is None:
            raise InvalidInputError(
                explain(
                    str(self.folder.path),
                    got="no checkpoint",
                    expected="a run that has saved one",
                    hint="a run with `checkpoint.keep` of at least 1",
                )
            )
        if self.reached.stage == "sft":
            assert self.config.sft is not None
            self._restore(self._sft(self.config.sft))
        else:
            assert self.config.preference is not None
            assert preference_loss is not None
            stage = self._preference_stage(self.config.preference, preference_loss)
            self._restore(stage)
            if self.world.is_main:
                out.mkdir(parents=True, exist_ok=True)
                write_durably(out / "strength.json", json.dumps(self._strength_record(stage), indent=2) + "\n")
        return self._export(out)

    def _export(self, out: Path) -> Path:
        """Write the policy into ``out``, or the adapters alone where that is what is asked for."""
        from mixlogit_align.alignment import hf

        lora, model = self.config.lora, self.config.model
        if lora is not None and lora.export == "adapter":
            assert isinstance(model, PretrainedModel)
            adapters.export_adapters(self.policy.policy, lora, model.path, out / "adapter", self.world)
            return out / "adapter"
        if lora is not None:
            adapters.merge_adapters(self.policy.policy)
        hf.export(self.policy.policy, self.tokenizer, out / "policy", self.world)
        return out / "policy"

    # --- what is trained -------------------------------------------------------------------------------

    def _tokenize(self) -> str:
        """Make the tokenizer and the rows of each split as ids; returns the hash of all of them."""
        from mixlogit_align.alignment import hf

        splits = {name: self.data.split(name) for name in SPLITS}
        self.tokenizer = hf.load_tokenizer(self.config.model, (text for row in splits["train"] for text in texts(row)))
        self.rows: Rows = {}
        reports = {}
        for name, split in splits.items():
            settings, source = self.config.tokenization, self.config.data.source
            self.rows[name], report = tokenize(split, self.tokenizer, settings, source=source)
            reports[name] = report.as_dict()
        data_hash = content_hash([row for name in SPLITS for row in self.rows[name]])
        self.data_record = {"reader": dict(self.data.report), "tokenization": reports, "hash": data_hash}
        return data_hash

    def _sharded(self, model: nn.Module, precision: Precision) -> SequenceLogProbs:
        """The model as it computes: dropout stays off, since policy and reference must agree where they start."""
        policy = SequenceLogProbs(model.eval())
        if self.config.compile:
            compile_blocks(policy)
        if self.config.activation_checkpointing:
            recompute_activations(policy)
        shard(policy, self.world, precision)
        return policy

    def _try_compiled(self, model: SequenceLogProbs, precision: Precision, *, training: bool) -> None:
        """Compile the model's blocks now, where they are to be, and see that they compute what they did."""
        if self.config.compile:
            limit = FLOAT32_SPREAD if precision == "float32" else bfloat16_spread(self.longest)
            batch = self.collator(self.rows["train"][:2])
            try_compiled(model, batch, self.world, limit=limit, training=training)

    def _reference(self, config: PreferenceConfig) -> SequenceLogProbs:
        """The reference: a model of its own, or the policy as it is now, whose float32 parameters it shares."""
        from mixlogit_align.alignment import hf

        precision = self._reference_precision(config)
        own = _reference_model(config)
        if own is None and precision == self.precision:
            return self.policy
        model = hf.skeleton(own or self.config.model, self.tokenizer, self.config.seed)
        if own is not None:
            hf.require_positions(model, self.longest)
        reference = self._sharded(model, precision)
        if own is not None:
            hf.load_weights(reference.policy, own, self.world.device, _dtype(precision))
            return reference
        if self.config.lora is not None:
            adapters.add_adapters(reference.policy, self.config.lora, self.config.seed)
        now = {name: value.float() for name, value in self.policy.state_dict().items()}
        reference.load_state_dict(now, assign=True)
        for buffer in reference.buffers():
            buffer.data = buffer.data.to(self.world.device)
        return reference

    def _reference_scores(self, objective: PreferenceObjective) -> dict[Split, Tensor]:
        """What the reference says of all rows: read from its file, or computed and written there."""
        config = objective.config

        def compute() -> dict[Split, Tensor]:
            reference = self._reference(config)
            if reference is not self.policy:
                self._try_compiled(reference, self._reference_precision(config), training=False)
            return {name: objective.scores(reference, self.rows[name]) for name in SPLITS}

        if config.reference_cache is None:
            return compute()
        path, key = Path(config.reference_cache), self._reference_key(config)
        rows = [row for name in SPLITS for row in self.rows[name]]
        known = self.world.on_main(lambda: read_reference(path, key, rows) if path.exists() else None)
        if known is None:
            known = torch.cat(list(compute().values()))
            self.world.on_main(lambda: write_reference(path, key, rows, known))
        return dict(zip(SPLITS, known.split([len(self.rows[name]) for name in SPLITS]), strict=True))

    def _reference_key(self, config: PreferenceConfig) -> ReferenceKey:
        from mixlogit_align.alignment import hf

        own = _reference_model(config)
        if own is None and self.config.lora is not None and self.config.sft is None:
            names = self.base  # adapters are fresh, and change nothing
        elif own is None:
            names = hf.fingerprint(self.policy.policy, world=self.world)
        else:
            model = hf.skeleton(own, self.tokenizer, self.config.seed)
            names = self.world.on_main(lambda: hf.fingerprint(model, own))
        return ReferenceKey(
            **names,
            precision=self._reference_precision(config),
            tokenizer=hf.tokenizer_fingerprint(self.tokenizer),
            truncation=dataclasses.asdict(self.config.tokenization),
        )

    def _reference_precision(self, config: PreferenceConfig) -> Precision:
        return self.precision if config.reference_precision == "match" else "float32"

    # --- stages ----------------------------------------------------------------------------------------

    def _sft(self, config: StageConfig) -> _Stage:
        size = config.eval_batch_size
        objective = SFTObjective(self.policy, self.collator, eval_batch_size=size, world=self.world)
        groups = [self._policy_group(config)]
        return _Stage(name="sft", config=config, objective=objective, groups=groups, fixed=self._fixed())

    def _preference_stage(self, config: PreferenceConfig, preference_loss: PairLoss) -> _Stage:
        objective = build_objective(self.policy, preference_loss, self.collator, config=config, world=self.world)
        groups = [self._policy_group(config)]
        update = config.update
        if isinstance(update, LearnedUpdate):
            assert isinstance(preference_loss, MixDPOLoss)
            groups.append(
                ParameterGroup(
                    name="strength",
                    parameters=list(preference_loss.mixing.parameters()),
                    lr=update.lr,
                    max_grad_norm=update.max_grad_norm,
                    eps=GRADIENT_EPS,
                )
            )
        reference = {
            f"reference/{name}": torch.zeros(
                len(self.rows[name]), objective.num_scores, dtype=torch.float64, device=self.world.device
            )
            for name in SPLITS
            if config.loss.has_reference
        }
        return _Stage(
            name="preference",
            config=config,
            objective=objective,
            groups=groups,
            extra=reference,
            fixed=self._fixed(),
        )

    def _fixed(self) -> Set[str]:
        """Names in a stage's objective of what adapters leave as it is."""
        named = self.policy.named_parameters(remove_duplicate=False)
        return {f"policy.{name}" for name, parameter in named if not parameter.requires_grad}

    def _policy_group(self, config: StageConfig) -> ParameterGroup:
        return ParameterGroup(
            name="policy",
            parameters=[parameter for parameter in self.policy.parameters() if parameter.requires_grad],
            lr=config.optim.lr,
            max_grad_norm=config.optim.max_grad_norm,
        )

    def _preference(self, stage: _Stage) -> tuple[dict[str, Any], dict[str, Any] | None]:
        objective, config, known = stage.objective, stage.config, self.data.truth
        assert isinstance(objective, PreferenceObjective)
        assert isinstance(config, PreferenceConfig)
        start = self._restore(stage)
        rows = self.rows
        if config.loss.has_reference:
            if start == 0:
                for name, scores in self._reference_scores(objective).items():
                    stage.extra[f"reference/{name}"].copy_(scores)
            rows = {name: objective.with_scores(self.rows[name], stage.extra[f"reference/{name}"]) for name in SPLITS}
        agree = config.loss.has_reference and config.reference_path is None
        if start == 0 and self.precision == "float32" and agree:
            _check_start(objective, rows["eval"][: config.eval_batch_size])
        try:
            self._train(stage, rows, start)
        finally:
            strength = self._strength_record(stage)
            self.folder.write("strength.json", strength)
        held_out = objective.held_out(rows["eval"], step=config.num_steps(len(rows["train"])))
        if self.world.is_main:
            path = self.folder.path / "log_ratios.parquet"
            if isinstance(objective, MixDPOObjective):
                write_pairs(held_out_pairs(held_out, self.config.name), path)
            else:
                _write_log_ratios(path, held_out, self.config, config.loss)
        truth = None
        if known is not None:
            comparison = compare_with_truth(held_out, known, **objective.choice_model(held_out))
            truth = {"strength": known.summary(), "held_out": comparison}
            self.folder.write("truth.json", truth)
        return strength, truth

    def _strength_record(self, stage: _Stage) -> dict[str, Any]:
        objective, config = stage.objective, stage.config
        assert isinstance(objective, PreferenceObjective)
        assert isinstance(config, PreferenceConfig)
        steps = config.num_steps(len(self.rows["train"]))
        if not isinstance(objective, MixDPOObjective):
            return fixed_strength_record(config, steps, self.data.truth, self.held_out.get("preference", {}))
        return strength_record(objective.preference_loss.mixing, config, steps, self.data.truth, objective.solver)

    def _restore(self, stage: _Stage) -> int:
        """Steps of this stage that were done before; all that it trains is then as it was after them."""
        if self.reached is None or self.reached.stage != stage.name:
            return 0
        self.checkpoints.load(stage.state, self.reached)
        return self.reached.step

    def _train(self, stage: _Stage, rows: Rows, start: int) -> None:
        def save(step: int, latest: Mapping[str, float]) -> None:
            self.held_out[stage.name] = latest
            log_bytes = self.world.on_main(self.log.durable_bytes)
            position = Position(stage=stage.name, step=step, log_bytes=log_bytes, held_out=self.held_out)
            self.checkpoints.save(stage.state, position)

        self.held_out[stage.name] = self.trainer.run(
            stage,
            rows["train"],
            rows["eval"],
            start=start,
            held_out=self.held_out.get(stage.name),
            save=save,
            save_every_examples=self.config.checkpoint.every_examples,
        )

    # --- what is written -------------------------------------------------------------------------------

    def _open_log(self) -> MetricsLog:
        """``metrics.jsonl`` up to the last checkpoint, and the trackers beside it; on the main process."""
        path, keep = self.folder.path / "metrics.jsonl", 0 if self.reached is None else self.reached.log_bytes
        found = self.world.on_main(lambda: path.stat().st_size if path.exists() else 0)
        if found < keep:
            raise InvalidInputError(
                explain(
                    str(path),
                    got=f"{found} bytes",
                    expected=f"at least the {keep} that the last checkpoint goes on from",
                    hint="putting the file back, or --overwrite to begin anew",
                )
            )
        if not self.world.is_main:
            return MetricsLog(None, begun=self.begun)
        log = MetricsLog(path, keep_bytes=keep, begun=self.begun)
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


def _reference_model(config: PreferenceConfig) -> PretrainedModel | None:
    """The reference where it is a model of its own."""
    return None if config.reference_path is None else PretrainedModel(path=config.reference_path)


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


def _preference_loss(config: AlignmentConfig, world: World) -> PairLoss | None:
    """The loss of the preference stage, tried once on its device: what cannot work is refused before any training."""
    if config.preference is None:
        return None
    preference_loss = build_preference_loss(config.preference)
    if not isinstance(preference_loss, MixDPOLoss):
        return preference_loss
    assert config.preference.strength is not None
    assert config.preference.integration is not None
    preference_loss.to(world.device)
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


def _check_start(objective: PreferenceObjective, rows: Sequence[TokenizedComparison]) -> None:
    """The policy is its own reference before the first step: its log-ratio differences are 0."""
    largest = objective.held_out(rows, step=0).loss.logratio_diff.abs().max().item()
    if largest > FLOAT32_SPREAD:
        raise MixlogitError(
            explain(
                "logratio_diff before the first step",
                got=f"up to {largest:.3g} nats",
                expected=f"0, within {FLOAT32_SPREAD}",
                hint="switching off dropout or other randomness in the policy",
            )
        )


def _write_log_ratios(path: Path, held_out: HeldOut, config: AlignmentConfig, loss: LossConfig) -> None:
    """The differences that the loss compared, under a name that says what they are."""
    rows = [row.comparison for row in held_out.rows]
    table = PairTable(
        name=config.name,
        pair_ids=np.array([row.pair_id for row in rows]),
        annotator_ids=[row.annotator_id for row in rows],
        groups=[dict(row.groups) for row in rows],
        weights=np.array([row.weight for row in rows]),
        pair_weight=held_out.loss.pair_weight.double().cpu().numpy(),
    )
    write_pairs(table, path, {loss.compares: held_out.loss.logratio_diff.double().cpu().numpy()})


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
        was_finished=True,
        **found,
    )


def _silent(task: str, done: int, total: int, metrics: Mapping[str, float], /) -> None:
    """The progress of processes other than the main one."""
