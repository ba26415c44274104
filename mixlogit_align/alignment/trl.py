"""MixDPO in TRL's trainer; nothing else imports this module, which needs the extra ``trl``."""

# Shapes: B pairs of one process's part of a batch.

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, nn
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from mixlogit_align.alignment.checkpoint import CheckpointError
from mixlogit_align.alignment.config import FrozenUpdate, LearnedUpdate
from mixlogit_align.alignment.durable import write_durably
from mixlogit_align.alignment.losses import MixDPOLoss, preference_metrics
from mixlogit_align.alignment.parallel import World, average_gradients, clip_gradients
from mixlogit_align.alignment.strength import CAUTIONS, strength_metrics
from mixlogit_align.distributions import LearnableMixing
from mixlogit_align.errors import IntegrationError, InvalidInputError, explain

TESTED = ("1.16", "1.17")  # versions of trl from the first on and below the second
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "rmsprop")
STRENGTH = "strength.json"

# Settings of DPOConfig that must be as TRL has them by default, and why or what to try instead.
DEFAULTS = {
    "beta": "the strength in its place: `mixing=LearnableMixing.point(...)` is DPO's",
    "loss_type": "TRL's own DPOTrainer for another loss",
    "loss_weights": "TRL's own DPOTrainer for sums of losses",
    "label_smoothing": "TRL's own DPOTrainer for another loss",
    "f_divergence_type": "TRL's own DPOTrainer for another loss",
    "ld_alpha": "log-probabilities of whole responses",
    "use_weighting": "TRL's own DPOTrainer for weighted losses",
    "sync_ref_model": "a reference that stays",
    "padding_free": "padding",
    "use_liger_kernel": "the model as it is",
    "activation_offloading": "`gradient_checkpointing` to save memory",
    "fp16": "bf16, or neither",
    "torch_compile": "the model as it is",
    "auto_find_batch_size": "a batch size that fits: a second try would begin with the strength of the first",
}


class MixDPOTrainer(DPOTrainer):
    """TRL's `DPOTrainer` with a distribution of strength, learned beside the policy, in place of beta.

    The loss is `mixlogit_align.alignment.mixdpo_loss` of the log-probabilities that TRL computes; with
    ``LearnableMixing.point(0.1)`` and ``strength_lr=None`` it is DPO's with beta 0.1. It is averaged over the pairs of
    all processes and accumulated parts together. The strength is a parameter group of its own, without weight decay,
    under the policy's schedule; its gradient is averaged over processes and clipped apart from the policy's.

    To TRL's metrics it adds those of `mixdpo_loss` and ``strength/<parameter>``, and in training
    ``grad_norm/strength`` and ``learning_rate/strength``. Metrics of the same name, ``rewards/...``, ``logps/...`` and
    ``loss``, are over the pairs since the last record, each pair once, and a tie counts one half.

    Every saved model and checkpoint has ``strength.json`` beside it. Training resumes from a checkpoint with the
    policy as `from_pretrained` reads it, since the Trainer of transformers leaves out weights that have
    been renamed, such as the head of GPT-NeoX.

    Parameters
    ----------
    model, ref_model, args, train_dataset, eval_dataset, processing_class, callbacks
        As of `DPOTrainer`. ``args.precompute_ref_log_probs`` is supported, and gradient accumulation.
    mixing : LearnableMixing, optional
        Trained in place; it begins with LogNormal(-2.3, 0.6) by default.
    integration : rule, optional
        The exact or most accurate one of the family by default. A rule with draws takes those of the step and of the
        pair's place in it, whatever the number of processes; held-out pairs those of step 0.
    strength_lr : float or None
        The strength's own learning rate, which says about how far it moves
        (`mixlogit_align.alignment.strength.constant_gradient_drift`); None leaves it as it is.
    strength_max_grad_norm : float

    Raises
    ------
    InvalidInputError
        For a version of trl that this was not tested with (its internals move); for settings that it would not follow,
        or not rightly: another loss, PEFT, FSDP, DeepSpeed, half precision with scaling, optimizers or collators given
        as objects, data without a length; for a rule that does not fit the strength. On resuming, when the
        checkpoint's strength is of other settings.
    CheckpointError
        On resuming, when a checkpoint lacks the strength or weights.
    """

    _tag_names = ["trl", "dpo", "mixdpo"]
    _name = "MixDPO"
    _paper: dict[str, str] = {}
    loss_is_scaled_for_ga = True  # compute_loss divides by the pairs of the whole step
    model: Any

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: DPOConfig | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: Any = None,
        mixing: LearnableMixing | None = None,
        integration: Any = None,
        strength_lr: float | None = 1e-4,
        strength_max_grad_norm: float = 1.0,
        **other: Any,
    ) -> None:
        _check_version()
        _check_given(other, model, train_dataset, eval_dataset)
        if args is not None:
            _check_settings(args)
        self.update: LearnedUpdate | FrozenUpdate = FrozenUpdate()
        if strength_lr is not None:
            self.update = LearnedUpdate(lr=strength_lr, max_grad_norm=strength_max_grad_norm)
        self.preference_loss = _preference_loss(mixing, integration)
        self.mixing: LearnableMixing = self.preference_loss.mixing.requires_grad_(strength_lr is not None)
        self._initial = self.mixing.summary()
        self._values: dict[str, list[dict[str, Tensor]]] = {"train": [], "eval": []}
        self._place: tuple[Any, int] = (None, 0)
        self._stepped: dict[str, float] = {}
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        self._check_built()
        accelerator = self.accelerator
        self.world = World(rank=accelerator.process_index, size=accelerator.num_processes, device=accelerator.device)
        self.preference_loss.to(self.world.device)
        if self.world.size > 1:
            for parameter in self.mixing.parameters():
                torch.distributed.broadcast(parameter.data, 0)

    # --- the loss ----------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], int]:
        """The parts of a step, and the pairs in them; every process has as many."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(len(batch["input_ids"]) // 2 for batch in batches)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """This process's part of the loss: a sum over pairs, divided by the pairs of the step on one process."""
        if return_outputs:
            raise InvalidInputError(
                explain("outputs", got="a call for logits", expected="the loss alone", hint="`evaluate` for metrics")
            )
        # TRL's own loss is left alone; its forward passes are wanted, and its metrics
        with _outputs(model) as policy, _outputs(self.ref_model) as reference:
            super().compute_loss(model, inputs)
        chosen, rejected = policy[0].log_probs.sum(1).chunk(2)
        if self.precompute_ref_logps:
            reference_logps = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            reference_logps = reference[0].log_probs.sum(1).chunk(2)
        training = self.model.training
        step = self.state.global_step if training else 0
        pair_ids = self._pair_ids(len(chosen)).to(chosen.device)
        loss = self.preference_loss(chosen, rejected, *reference_logps, step=step, pair_ids=pair_ids)
        # what accelerate repeats to fill a last batch is trained on, but not evaluated
        gather = self.accelerator.gather if training else self.accelerator.gather_for_metrics
        self._values["train" if training else "eval"].append(gather(loss.values))
        total: Tensor = loss.per_example.sum()
        return total / (len(chosen) if num_items_in_batch is None else num_items_in_batch)

    def _pair_ids(self, count: int) -> Tensor:
        """(B,) place of each pair in the step, or in the held-out data, whichever process has it."""
        now = (self.model.training, self.state.global_step)
        before, seen = self._place
        seen = seen if before == now else 0
        self._place = (now, seen + count * self.world.size)
        return seen + self.world.rank * count + torch.arange(count)

    # --- the strength's own group ------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """TRL's optimizer, with a last parameter group for the strength."""
        fresh = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if fresh and isinstance(self.update, LearnedUpdate):
            group = {"params": list(self.mixing.parameters()), "lr": self.update.lr, "weight_decay": 0.0}
            optimizer.add_param_group(group)
            optimizer.register_step_pre_hook(self._before_step)
            optimizer.register_step_post_hook(self._after_step)
        return optimizer

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Average the strength's gradient over processes (the model's own hooks do not know it), and clip it."""
        assert isinstance(self.update, LearnedUpdate)
        parameters = list(self.mixing.parameters())
        average_gradients(parameters, self.world)
        norm = clip_gradients(parameters, self.update.max_grad_norm)
        self._stepped = {
            "grad_norm/strength": norm.item(),
            "learning_rate/strength": optimizer.param_groups[-1]["lr"],
        }

    def _after_step(self, *_: Any) -> None:
        """The Trainer clears the model's gradients alone."""
        self.mixing.zero_grad(set_to_none=True)

    # --- metrics -----------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of the pairs since the last record to TRL's."""
        mode = "train" if self.model.training else "eval"
        values, self._values[mode] = self._values[mode], []
        self._place = (None, 0)
        if values:
            joined = {name: torch.cat([part[name] for part in values]).cpu() for name in values[0]}
            metrics = {name: value.item() for name, value in preference_metrics(joined).items()}
            metrics |= strength_metrics(self.mixing)
            for name in metrics:
                self._metrics[mode].pop(name, None)
            if mode == "train":
                metrics |= self._stepped
            # evaluate() names its records after the data: "eval_", or "eval_<name>_"
            named = (name.removesuffix("runtime") for name in logs if name.endswith("_runtime"))
            prefix = "" if mode == "train" else next(named, "eval_")
            logs.update({prefix + name: value for name, value in metrics.items()})
        super().log(logs, start_time)

    # --- checkpoints -------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            record = {
                **self.mixing.summary(),
                "initial": self._initial,
                "settings": self._settings(),
                "unconstrained": {name: value.item() for name, value in self.mixing.named_parameters()},
                "caution": CAUTIONS[self.update.kind],
            }
            folder: Any = output_dir or self.args.output_dir
            write_durably(Path(folder, STRENGTH), json.dumps(record, indent=2) + "\n")

    def _settings(self) -> dict[str, Any]:
        """What a resumed run must share with the checkpoint."""
        return {
            "family": self.mixing.family,
            "transform": self.mixing.transform,
            "integration": repr(self.preference_loss.integration),
            "update": dataclasses.asdict(self.update),
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._restore(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._restore(Path(self.state.best_model_checkpoint))

    @torch.no_grad()
    def _restore(self, folder: Path) -> None:
        """Set strength and policy, in place, to what a checkpoint holds."""
        path = folder / STRENGTH
        if not path.is_file():
            raise CheckpointError(
                explain(
                    str(folder),
                    got=f"no {STRENGTH}",
                    expected="a checkpoint that this trainer saved",
                    hint="another checkpoint, or training from the start",
                )
            )
        saved = json.loads(path.read_text(encoding="utf-8"))
        here = self._settings()
        for name, value in here.items():
            if saved["settings"][name] != value:
                raise InvalidInputError(
                    explain(
                        f"{name} of the strength",
                        got=value,
                        expected=f"{saved['settings'][name]}, as in {path}",
                        hint="the settings that the run was begun with",
                    )
                )
        policy, found = type(self.model).from_pretrained(folder, dtype="auto", output_loading_info=True)
        amiss = {what: sorted(map(str, names)) for what, names in found.items() if names}
        if amiss:
            raise CheckpointError(
                explain(
                    str(folder),
                    got="; ".join(f"{what}: {', '.join(names[:5])}" for what, names in amiss.items()),
                    expected="exactly the policy's weights",
                    hint="another checkpoint",
                )
            )
        self.model.load_state_dict(policy.state_dict())
        for name, parameter in self.mixing.named_parameters():
            parameter.fill_(saved["unconstrained"][name])
        self._initial = saved["initial"]

    # --- what is refused ---------------------------------------------------------------------------

    def _check_built(self) -> None:
        """Refuse what only shows once TRL has set everything up."""
        kind = self.accelerator.distributed_type.name
        data: Any = self.args.accelerator_config
        faults = {
            "distributed training": (kind, kind in ("NO", "MULTI_CPU", "MULTI_GPU"), "one process, or DDP"),
            "parallelism of the model": (
                "tensor, expert or sharded parallelism",
                self.accelerator.parallelism_config is None
                and not getattr(self, "is_distributed_loading_by_transformers", False),
                "a whole model on every process",
            ),
            "accelerator_config": (
                data,
                data.even_batches and not data.split_batches and not data.dispatch_batches,
                "batches of equal size, each read by its own process",
            ),
            "model": ("a model with images", not self._is_vlm, "text alone"),
            "router_aux_loss_coef": ("an auxiliary loss of a router", not self.aux_loss_enabled, "0.0"),
        }
        for what, (got, passed, expected) in faults.items():
            if not passed:
                raise InvalidInputError(
                    explain(what, got=got, expected=expected, hint="`mixlogit-align train`, which shards with FSDP2")
                )


@contextlib.contextmanager
def _outputs(module: nn.Module | None) -> Iterator[list[Any]]:
    """What a module returns meanwhile."""
    seen: list[Any] = []
    if module is None:
        yield seen
        return
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


def _check_version() -> None:
    here = version("trl")
    if not Version(TESTED[0]) <= Version(here) < Version(TESTED[1]):
        wanted = f"trl>={TESTED[0]},<{TESTED[1]}"
        raise InvalidInputError(
            explain("trl", got=here, expected=f"{wanted}, whose internals this was tested with", hint=f'"{wanted}"')
        )


def _check_given(other: dict[str, Any], model: Any, *datasets: Any) -> None:
    """Refuse arguments of DPOTrainer that are not supported."""
    given = [name for name, value in other.items() if value is not None]
    if given or getattr(model, "peft_config", None) is not None:
        raise InvalidInputError(
            explain(
                ", ".join(given) or "model",
                got=", ".join(type(other[name]).__name__ for name in given) or "a model with PEFT adapters",
                expected="a whole model, trained by an optimizer that `args.optim` names",
                hint="`mixdpo_loss` in a `compute_loss` of your own",
            )
        )
    for data in (part for each in datasets for part in (each.values() if isinstance(each, dict) else [each])):
        if data is not None and not hasattr(data, "__len__"):
            raise InvalidInputError(
                explain("dataset", got=type(data).__name__, expected="data with a length", hint="`datasets.Dataset`")
            )


def _check_settings(args: DPOConfig) -> None:
    fields = {field.name: field for field in dataclasses.fields(args)}
    for name, hint in DEFAULTS.items():
        field = fields[name]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if getattr(args, name) != default:
            raise InvalidInputError(explain(f"args.{name}", got=getattr(args, name), expected=str(default), hint=hint))
    if str(getattr(args.optim, "value", args.optim)) not in OPTIMIZERS:
        raise InvalidInputError(
            explain("args.optim", got=args.optim, expected=f"one of {OPTIMIZERS}", hint="`optim='rmsprop'`")
        )
    if args.precompute_ref_log_probs and args.truncation_mode != "keep_start":
        raise InvalidInputError(
            explain(
                "args.precompute_ref_log_probs",
                got=f"True with truncation_mode={args.truncation_mode!r}",
                expected="truncation_mode='keep_start': TRL's cache does not know how long the others were cut",
                hint="precompute_ref_log_probs=False",
            )
        )


def _preference_loss(mixing: LearnableMixing | None, integration: Any) -> MixDPOLoss:
    """The loss, tried once: what cannot work is refused before anything is loaded."""
    if mixing is not None and not isinstance(mixing, LearnableMixing):
        raise InvalidInputError(
            explain(
                "mixing",
                got=type(mixing).__name__,
                expected="a LearnableMixing",
                hint="`LearnableMixing.lognormal()`; with `strength_lr=None` it stays as it is",
            )
        )
    preference_loss = MixDPOLoss(mixing, integration)
    try:
        preference_loss(*torch.zeros(4, 1))
    except IntegrationError as error:
        raise InvalidInputError(
            explain(
                "integration",
                got=f"{integration!r} for a {preference_loss.mixing.family} strength",
                expected="a rule that fits the family",
                hint="`integration=None`",
            )
        ) from error
    return preference_loss
