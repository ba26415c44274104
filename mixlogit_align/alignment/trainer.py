"""One training loop for the supervised and the preference stage, on one process or many. It knows no model class."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from mixlogit_align.alignment.compilation import CompileClock
from mixlogit_align.alignment.config import OptimConfig, StageConfig
from mixlogit_align.alignment.data.batches import Batch, Collator, TokenizedComparison
from mixlogit_align.alignment.metrics_log import MetricsLog
from mixlogit_align.alignment.parallel import World, average_gradients, clip_gradients
from mixlogit_align.alignment.progress import HELD_OUT, Progress
from mixlogit_align.errors import InvalidInputError, MixlogitError, explain

RMSPROP_SMOOTHING = 0.99
# The optimiser adds it to the size of the strength's gradient (nats for a change of 1 in a log) and divides by the sum.
# At the first step policy and reference agree, so that this gradient is rounding of some 1e-8, which would else become
# a whole step in a random direction; gradients that the data cause are a thousand times larger.
GRADIENT_EPS = 1e-6


class NonFiniteLossError(MixlogitError, RuntimeError):
    """A loss, log-probability or gradient became NaN or infinite.

    Attributes
    ----------
    stage : str
    step : int
        Steps done before.
    pair_ids : list of int
        The comparisons at fault; where the gradient is, the whole batch's.
    """

    def __init__(self, message: str, stage: str, step: int, pair_ids: list[int]) -> None:
        super().__init__(message)
        self.stage, self.step, self.pair_ids = stage, step, pair_ids


@dataclass(frozen=True, kw_only=True)
class StageLoss:
    """The loss of some rows as a sum, so that the parts of a batch and the processes add up.

    Parameters
    ----------
    total : Tensor
        0-d; divided by the count of the whole batch it is these rows' part of the loss.
    values : mapping of str to Tensor
        (B,) detached each, from which the metrics of a whole batch are computed; "loss" is among them.
    """

    total: Tensor
    values: Mapping[str, Tensor]


class Objective(Protocol):
    """What a stage optimises and how it is judged on held-out comparisons."""

    def __call__(self, batch: Batch, *, step: int) -> StageLoss: ...

    def count(self, rows: Sequence[TokenizedComparison]) -> float:
        """What the sum of losses over ``rows`` is divided by."""

    def tokens(self, rows: Sequence[TokenizedComparison]) -> int:
        """Tokens of ``rows`` that are trained on: passes without gradient take time, but count none."""

    def metrics(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics of a batch from the values of all its rows."""

    def evaluate(self, rows: Sequence[TokenizedComparison], *, step: int) -> dict[str, float]:
        """Metrics of held-out rows after ``step`` steps."""

    def state_metrics(self, step: int) -> dict[str, float]:
        """What is logged of the objective itself after ``step`` steps."""

    def before_step(self, rows: Sequence[TokenizedComparison], step: int) -> None:
        """Called with the rows of a whole batch, on every process, before its parts are trained on."""

    def after_step(self, values: Mapping[str, Tensor], step: int) -> None:
        """Called with the values of a whole batch after the optimiser's step, the ``step``-th."""


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters with a learning rate and a clipping norm of their own.

    Parameters
    ----------
    name : str
        Its gradient norm and learning rate are logged under it; those of "policy" without.
    parameters : sequence of nn.Parameter
    lr, max_grad_norm : float
    eps : float
        Added by the optimiser to the gradient's size before it divides by it.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    lr: float
    max_grad_norm: float
    eps: float = 1e-8


def build_optimizer(groups: Sequence[ParameterGroup], config: OptimConfig) -> torch.optim.Optimizer:
    """The configured optimiser with one parameter group for each of ``groups``."""
    options = [{"params": list(group.parameters), "lr": group.lr, "eps": group.eps} for group in groups]
    if config.name == "adamw":
        return torch.optim.AdamW(options, weight_decay=0.0)
    return torch.optim.RMSprop(options, alpha=RMSPROP_SMOOTHING)


@dataclass(kw_only=True)
class Stage:
    """A stage ready to be trained.

    Parameters
    ----------
    name : str
        "sft" or "preference".
    config : StageConfig
    objective : Objective
    groups : sequence of ParameterGroup

    Attributes
    ----------
    optimizer : torch.optim.Optimizer
        With one parameter group for each of ``groups``.
    """

    name: str
    config: StageConfig
    objective: Objective
    groups: Sequence[ParameterGroup]
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = build_optimizer(self.groups, self.config.optim)


def shuffled_batches(num_rows: int, config: StageConfig, seed: int) -> list[list[int]]:
    """Row numbers, batch by batch: one seeded permutation an epoch, end to end; only the last batch can be short."""
    generator = torch.Generator().manual_seed(seed)
    stream = [i for _ in range(config.num_epochs) for i in torch.randperm(num_rows, generator=generator).tolist()]
    return [stream[start : start + config.batch_size] for start in range(0, len(stream), config.batch_size)]


def check_batch_size(stage: str, config: StageConfig, world: World) -> None:
    """Refuse a batch size that processes times accumulation do not divide."""
    parts = world.size * config.accumulation
    if config.batch_size % parts:
        nearest = max(round(config.batch_size / parts), 1) * parts
        raise InvalidInputError(
            explain(
                f"{stage}.batch_size",
                got=config.batch_size,
                expected=f"a multiple of {parts}: {world.size} processes, each {config.accumulation} parts a batch",
                hint=f"{stage}.batch_size={nearest}, another number of processes, or another `accumulation`",
            )
        )


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The loop, with what its stages share.

    Parameters
    ----------
    collator : Collator
    log : MetricsLog
    progress : Progress
    seed : int
        Fixes the order of the examples.
    world : World
    evaluated : callable
        Called after every evaluation was logged.
    clock : CompileClock or None
        Where torch compiles: what a step has of that is logged apart, as ``seconds/compile``, and is no part of its
        rates.
    """

    collator: Collator
    log: MetricsLog
    progress: Progress
    seed: int
    world: World = field(default_factory=World)
    evaluated: Callable[[], None] = lambda: None
    clock: CompileClock | None = None

    def run(
        self,
        stage: Stage,
        train_rows: Sequence[TokenizedComparison],
        eval_rows: Sequence[TokenizedComparison],
        *,
        start: int = 0,
        held_out: Mapping[str, float] | None = None,
        save: Callable[[int, Mapping[str, float]], None] = lambda step, held_out: None,
        save_every_examples: int | None = None,
    ) -> dict[str, float]:
        """Run one stage and return its final held-out metrics.

        Every step is logged (split "train"); the held-out rows are judged before the first step, every
        its ``eval_every_examples`` and after the last step (split "eval"). Each group's gradient is clipped apart
        from the others'. The order of the rows and the learning rates are functions of the seed and the step alone.

        Parameters
        ----------
        stage : Stage
        train_rows, eval_rows : sequence of TokenizedComparison
        start : int
            Steps that were done before; ``held_out`` are then the last held-out metrics.
        save : callable
            Called with the steps done and the last held-out metrics, at every multiple of ``save_every_examples``
            (by default at every evaluation) and after the last step.

        Raises
        ------
        NonFiniteLossError
            Before the step that a NaN or infinite loss or gradient would have spoiled, or where held-out rows have no
            finite loss; on every process.
        """
        config, objective = stage.config, stage.objective
        batches = shuffled_batches(len(train_rows), config, self.seed)
        total = len(train_rows) * config.num_epochs
        save_every = save_every_examples or config.eval_every_examples

        def evaluate(step: int, seen: int) -> dict[str, float]:
            metrics = {**objective.evaluate(eval_rows, step=step), **objective.state_metrics(step)}
            self.log.write(stage=stage.name, split="eval", step=step, examples_seen=seen, **metrics)
            self.progress(stage.name, seen, total, {HELD_OUT + name: value for name, value in metrics.items()})
            self.evaluated()
            return metrics

        seen = min(start * config.batch_size, total)
        self.progress(stage.name, seen, total, {})
        latest = dict(held_out or {}) if start else evaluate(0, 0)
        for step in range(start, len(batches)):
            begun, compiled = time.perf_counter(), 0.0 if self.clock is None else self.clock.seconds
            rows = [train_rows[i] for i in batches[step]]
            logged = self.step(stage, rows, step)
            seconds = time.perf_counter() - begun
            if self.clock is not None:
                compiled = self.clock.seconds - compiled
                seconds -= compiled
                logged["seconds/compile"] = round(compiled, 3)
            seen += len(rows)
            tokens = objective.tokens(rows)
            rates = {"examples_per_second": len(rows) / seconds, "tokens_per_second": tokens / seconds}
            logged |= {"tokens": tokens, **{name: round(rate, 3) for name, rate in rates.items()}}
            self.log.write(stage=stage.name, split="train", step=step + 1, examples_seen=seen, **logged)
            self.progress(stage.name, seen, total, logged)
            if seen % config.eval_every_examples == 0 or seen == total:
                latest = evaluate(step + 1, seen)
            if seen % save_every == 0 or seen == total:
                save(step + 1, latest)
        return latest

    def step(self, stage: Stage, rows: Sequence[TokenizedComparison], step: int) -> dict[str, float]:
        """Take one step on a whole batch, of which each process has its share of every part; returns what to log.

        Parameters
        ----------
        stage : Stage
        rows : sequence of TokenizedComparison
        step : int
            Steps done before.
        """
        config, objective, optimizer = stage.config, stage.objective, stage.optimizer
        for group, options in zip(stage.groups, optimizer.param_groups, strict=True):
            options["lr"] = group.lr * min((step + 1) / max(config.optim.warmup_steps, 1), 1.0)
        state = objective.state_metrics(step)
        objective.before_step(rows, step)
        count = objective.count(rows)
        size = config.batch_size // config.accumulation
        joined: list[Tensor] = []
        names: list[str] = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            mine = self.world.share(part)
            # a sharded model runs on every process or on none: a process without rows lends a hand with weight 0
            batch = self.collator(mine or part[:1])
            if not mine:
                batch = replace(batch, weights=torch.zeros_like(batch.weights))
            loss = objective(batch, step=step)
            # gradients are averaged over processes, and the loss is a sum over them
            (loss.total * (self.world.size / count)).backward()
            names = list(loss.values)
            table = torch.stack([value.double() for value in loss.values.values()], dim=1)
            joined.append(self.world.gather(table[: len(mine)], len(part)))
        values = dict(zip(names, torch.cat(joined).unbind(1), strict=True))
        ids = torch.tensor([row.comparison.pair_id for row in rows])
        require_finite("loss", stage.name, step, values["loss"], ids)
        logged = {**objective.metrics(values), **state}
        for group, options in zip(stage.groups, optimizer.param_groups, strict=True):
            average_gradients(group.parameters, self.world)
            norm = clip_gradients(group.parameters, group.max_grad_norm)
            require_finite(f"gradient of the {group.name}", stage.name, step, norm.expand(len(rows)), ids)
            suffix = "" if group.name == "policy" else f"/{group.name}"
            logged |= {f"grad_norm{suffix}": norm.item(), f"learning_rate{suffix}": options["lr"]}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        objective.after_step(values, step + 1)
        return logged


def require_finite(what: str, stage: str, step: int, values: Tensor, pair_ids: Tensor) -> None:
    """Raise `NonFiniteLossError` unless all (B,) ``values`` are finite, naming the pairs whose are not."""
    bad = ~values.detach().isfinite()
    if not bool(bad.any()):
        return
    ids = pair_ids.cpu()[bad.cpu()].tolist()
    raise NonFiniteLossError(
        explain(
            f"{stage} {what} after step {step}",
            got=f"NaN or infinity, pair_ids {ids[:8]} ({len(ids)} in all)",
            expected="finite numbers",
            hint="looking at these pairs, or a smaller learning rate",
        ),
        stage,
        step,
        ids,
    )
