"""One training loop for the supervised and the preference stage. It knows no model class."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mixlogit_align.alignment.config import OptimConfig, StageConfig
from mixlogit_align.alignment.data.batches import Batch, Collator, TokenizedComparison
from mixlogit_align.alignment.progress import Progress
from mixlogit_align.alignment.strength import RMSPROP_SMOOTHING
from mixlogit_align.errors import MixlogitError, explain


class NonFiniteLossError(MixlogitError, RuntimeError):
    """A loss or gradient became NaN or infinite; ``pair_ids`` names the batch's comparisons."""

    def __init__(self, message: str, pair_ids: list[int]) -> None:
        super().__init__(message)
        self.pair_ids = pair_ids


@dataclass(frozen=True, kw_only=True)
class StageLoss:
    """A batch's loss as a sum and what to divide it by, so that batches and processes add up.

    Parameters
    ----------
    total, count : Tensor
        0-d; the loss is ``total / count``.
    metrics : mapping of str to Tensor
        Detached scalars to log.
    """

    total: Tensor
    count: Tensor
    metrics: Mapping[str, Tensor]


class Objective(Protocol):
    """What a stage optimises and how it is judged on held-out comparisons."""

    def __call__(self, batch: Batch, *, step: int) -> StageLoss: ...

    def evaluate(self, rows: Sequence[TokenizedComparison]) -> dict[str, float]: ...

    def log_metrics(self) -> dict[str, float]: ...


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters with a learning rate and a clipping norm of their own."""

    name: str
    parameters: Sequence[nn.Parameter]
    lr: float
    max_grad_norm: float


class MetricsLog:
    """``metrics.jsonl``: one JSON object a line, on disk as soon as it is written. A context manager."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", buffering=1)
        self._start = time.perf_counter()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, **record: Any) -> None:
        """Append one record and the seconds since the log was opened."""
        self._file.write(json.dumps({**record, "seconds": round(time.perf_counter() - self._start, 3)}) + "\n")


def build_optimizer(groups: Sequence[ParameterGroup], config: OptimConfig) -> torch.optim.Optimizer:
    """The configured optimiser with one parameter group for each of ``groups``."""
    options = [{"params": list(group.parameters), "lr": group.lr} for group in groups]
    if config.name == "adamw":
        return torch.optim.AdamW(options, weight_decay=0.0)
    return torch.optim.RMSprop(options, alpha=RMSPROP_SMOOTHING)


def shuffled_batches(num_rows: int, config: StageConfig, seed: int) -> Iterator[list[int]]:
    """Row numbers, batch by batch: one seeded permutation an epoch, end to end; only the last batch can be short."""
    generator = torch.Generator().manual_seed(seed)
    stream = [i for _ in range(config.num_epochs) for i in torch.randperm(num_rows, generator=generator).tolist()]
    for start in range(0, len(stream), config.batch_size):
        yield stream[start : start + config.batch_size]


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
    """

    collator: Collator
    log: MetricsLog
    progress: Progress
    seed: int

    def run(
        self,
        stage: str,
        config: StageConfig,
        objective: Objective,
        groups: Sequence[ParameterGroup],
        train_rows: Sequence[TokenizedComparison],
        eval_rows: Sequence[TokenizedComparison],
    ) -> dict[str, float]:
        """Run one stage and return its final held-out metrics.

        Every step is logged (split "train"); the held-out rows are judged before the first step, every
        ``config.eval_every_examples`` and after the last step (split "eval"). Each group's gradient is clipped apart
        from the others'.

        Raises
        ------
        NonFiniteLossError
            Before the step that a NaN or infinite loss or gradient would have spoiled.
        """
        optimizer = build_optimizer(groups, config.optim)
        warmup = max(config.optim.warmup_steps, 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min((done + 1) / warmup, 1.0))
        total = len(train_rows) * config.num_epochs
        seen = step = 0

        def evaluate() -> dict[str, float]:
            metrics = {**objective.evaluate(eval_rows), **objective.log_metrics()}
            self.log.write(stage=stage, split="eval", step=step, examples_seen=seen, **metrics)
            return metrics

        self.progress(stage, 0, total, {})
        held_out = evaluate()
        for indices in shuffled_batches(len(train_rows), config, self.seed):
            batch = self.collator([train_rows[i] for i in indices])
            state = objective.log_metrics()
            loss = objective(batch, step=step)
            mean_loss = loss.total / loss.count
            require_finite(mean_loss, f"{stage} loss at step {step}", batch)
            optimizer.zero_grad(set_to_none=True)
            mean_loss.backward()
            logged = {**{name: value.item() for name, value in loss.metrics.items()}, **state, "loss": mean_loss.item()}
            for group, options in zip(groups, optimizer.param_groups, strict=True):
                norm = nn.utils.clip_grad_norm_(group.parameters, group.max_grad_norm)
                require_finite(norm, f"{stage} gradient of the {group.name} at step {step}", batch)
                suffix = "" if group.name == "policy" else f"/{group.name}"
                logged[f"grad_norm{suffix}"] = norm.item()
                logged[f"learning_rate{suffix}"] = options["lr"]
            optimizer.step()
            schedule.step()
            step += 1
            seen += len(indices)
            self.log.write(stage=stage, split="train", step=step, examples_seen=seen, **logged)
            self.progress(stage, seen, total, logged)
            if seen % config.eval_every_examples == 0 or seen == total:
                held_out = evaluate()
        return held_out


def require_finite(values: Tensor, what: str, batch: Batch) -> None:
    """Raise `NonFiniteLossError` unless ``values`` are finite, naming the pairs (all of them for a 0-d value)."""
    finite = values.detach().isfinite()
    if bool(finite.all()):
        return
    bad = ~finite.flatten(1).all(1) if values.ndim > 1 else ~finite.expand(len(batch))
    ids = batch.pair_ids[bad].tolist()
    raise NonFiniteLossError(
        explain(
            what,
            got=f"NaN or infinity, pair_ids {ids[:8]} ({len(ids)} in all)",
            expected="finite numbers",
            hint="a smaller learning rate",
        ),
        ids,
    )
