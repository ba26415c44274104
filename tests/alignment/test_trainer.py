"""The loop: it knows no model, visits every row, logs every step, clips groups apart, and stops at NaN."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mixlogit_align.alignment import NonFiniteLossError, trainer
from mixlogit_align.alignment.compilation import CompileClock
from mixlogit_align.alignment.config import OptimConfig, StageConfig
from mixlogit_align.alignment.data import Comparison
from mixlogit_align.alignment.data.batches import Collator, TokenizedComparison
from mixlogit_align.alignment.metrics_log import MetricsLog
from mixlogit_align.alignment.parallel import World
from mixlogit_align.alignment.trainer import (
    ParameterGroup,
    Stage,
    StageLoss,
    Trainer,
    check_batch_size,
    shuffled_batches,
)
from mixlogit_align.errors import InvalidInputError


def rows(count: int) -> list[TokenizedComparison]:
    return [
        TokenizedComparison(
            comparison=Comparison(prompt="p", responses=("a", "b"), choice=0, pair_id=i, split="train"),
            input_ids=([1, 2], [1, 3]),
            prompt_length=1,
        )
        for i in range(count)
    ]


class Toy(nn.Module):
    """A "policy" of one number that wants to be 1, and a "strength" whose gradient is ``pull`` times steeper."""

    def __init__(self, pull: float = 1.0, spoil: int | None = None, where: str = "loss") -> None:
        super().__init__()
        self.policy = nn.Parameter(torch.zeros(()))
        self.strength = nn.Parameter(torch.zeros(()))
        self.pull, self.spoil, self.where = pull, spoil, where
        self.seen: list[list[int]] = []
        self.after: list[tuple[list[float], int]] = []

    def forward(self, batch, *, step):
        self.seen.append(batch.pair_ids.tolist())
        loss = ((self.policy - 1) ** 2 + self.pull * (self.strength - 1) ** 2) * batch.weights
        if step == self.spoil and self.where == "loss":
            loss = torch.where(batch.pair_ids == self.seen[-1][-1], torch.nan, loss)
        total = loss.sum()
        if step == self.spoil and self.where == "gradient":
            total = total + (self.policy * 0).sqrt()
        return StageLoss(total=total, values={"weight": batch.weights, "loss": loss.detach()})

    def count(self, rows):
        return float(len(rows))

    def tokens(self, rows):
        return 4 * len(rows)

    def metrics(self, values):
        return {"loss": values["loss"].mean().item(), "rows": len(values["loss"])}

    def evaluate(self, eval_rows, *, step):
        return {"loss": float(len(eval_rows))}

    def state_metrics(self, step):
        return {"strength/mean": self.strength.item(), "strength/steps": step}

    def before_step(self, rows, step):
        pass

    def after_step(self, values, step):
        self.after.append((values["loss"].tolist(), step))


def run(
    tmp_path,
    objective,
    num_rows=10,
    max_grad_norm=1.0,
    progress=None,
    save=None,
    save_every_examples=None,
    clock=None,
    **settings,
):
    settings = {"batch_size": 4, "eval_every_examples": 8, **settings}
    config = StageConfig(optim=OptimConfig(name="rmsprop", lr=0.1, warmup_steps=2), **settings)
    groups = [
        ParameterGroup(name="policy", parameters=[objective.policy], lr=0.1, max_grad_norm=max_grad_norm),
        ParameterGroup(name="strength", parameters=[objective.strength], lr=0.01, max_grad_norm=max_grad_norm),
    ]
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        loop = Trainer(
            collator=Collator(pad_id=0), log=log, progress=progress or (lambda *_: None), seed=5, clock=clock
        )
        stage = Stage(name="toy", config=config, objective=objective, groups=groups)
        saving = {} if save is None else {"save": save, "save_every_examples": save_every_examples}
        return loop.run(stage, rows(num_rows), rows(3), **saving)


def read(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_every_step_and_every_evaluation_is_logged(tmp_path):
    calls = []
    final = run(tmp_path, Toy(), num_rows=10, num_epochs=2, progress=lambda *call: calls.append(call[:3]))
    log = read(tmp_path)
    assert [r["examples_seen"] for r in log if r["split"] == "train"] == [4, 8, 12, 16, 20]
    assert [r["examples_seen"] for r in log if r["split"] == "eval"] == [0, 8, 16, 20]
    assert [r["step"] for r in log if r["split"] == "train"] == [1, 2, 3, 4, 5]
    assert final["loss"] == 3.0
    first = log[1]
    assert first.keys() == {
        "stage", "split", "step", "examples_seen", "loss", "rows", "strength/mean", "strength/steps", "grad_norm",
        "grad_norm/strength", "learning_rate", "learning_rate/strength", "tokens", "seconds", "examples_per_second",
        "tokens_per_second",
    }  # fmt: skip
    assert [r["tokens"] for r in log if r["split"] == "train"] == [16, 16, 16, 16, 16]
    assert [r["strength/steps"] for r in log] == [0, 0, 1, 2, 2, 3, 4, 4, 5][: len(log)]
    assert [r["learning_rate"] for r in log if r["split"] == "train"] == pytest.approx([0.05] + [0.1] * 4)
    # at the start, after every step, and after the evaluations of 0, 8, 16 and 20 examples
    assert calls == [("toy", n, 20) for n in (0, 0, 4, 8, 8, 12, 16, 16, 20, 20)]
    # the state that made this step's loss, not the one after it
    assert first["strength/mean"] == 0.0


def test_every_epoch_visits_every_row_once_in_an_order_the_seed_fixes(tmp_path):
    objective = Toy()
    run(tmp_path, objective, num_rows=10, num_epochs=2)
    stream = list(itertools.chain(*objective.seen))
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert stream[:10] != stream[10:]
    config = StageConfig(batch_size=4, eval_every_examples=4, num_epochs=2)
    assert shuffled_batches(10, config, seed=5) == objective.seen
    assert shuffled_batches(10, config, seed=6) != objective.seen


def test_the_strengths_gradient_does_not_rescale_the_policys(tmp_path):
    calm, steep = Toy(pull=1.0), Toy(pull=1e6)
    for objective in (calm, steep):
        run(tmp_path, objective, max_grad_norm=0.5)
    assert calm.policy.item() == steep.policy.item() != 0.0


def test_the_gradient_is_clipped_before_the_step(tmp_path):
    free, clipped = Toy(), Toy()
    run(tmp_path, free, max_grad_norm=100.0)
    norms = [r["grad_norm"] for r in read(tmp_path) if r["split"] == "train"]
    assert norms[0] == pytest.approx(2.0)
    run(tmp_path, clipped, max_grad_norm=0.01)
    # RMSprop divides by the gradient's running size: clipping all steps to one size makes them equal in effect, so
    # the trajectories differ once the free gradient has shrunk
    assert free.policy.item() != clipped.policy.item()


def test_a_batch_in_parts_is_the_same_batch(tmp_path):
    whole, parts = Toy(), Toy()
    run(tmp_path, whole, num_rows=11)
    before = read(tmp_path)
    run(tmp_path, parts, num_rows=11, accumulation=2)
    words = {"stage", "split", "seconds", "examples_per_second", "tokens_per_second"}  # or the clock's
    one, two = ([{k: v for k, v in r.items() if k not in words} for r in log] for log in (before, read(tmp_path)))
    assert two == [pytest.approx(record, rel=1e-6) for record in one]  # sums of float32 in another order
    assert [len(ids) for ids in parts.seen] == [2, 2, 2, 2, 2, 1]
    assert [step for _, step in parts.after] == [step for _, step in whole.after]
    assert [len(values) for values, _ in parts.after] == [4, 4, 3]


@pytest.mark.parametrize("every", [None, 4])
def test_saves_come_at_their_examples_and_at_the_end(tmp_path, every):
    saved = []

    def save(step, held_out):
        saved.append((step, held_out["loss"]))

    run(tmp_path, Toy(), num_rows=10, num_epochs=2, save=save, save_every_examples=every)
    assert saved == [(step, 3.0) for step in ((2, 4, 5) if every is None else (1, 2, 3, 4, 5))]


@pytest.mark.parametrize(("size", "accumulation"), [(3, 1), (2, 3)])
def test_a_batch_size_that_does_not_divide_is_refused(size, accumulation):
    config = StageConfig(batch_size=64, eval_every_examples=64, accumulation=accumulation)
    expected = rf"sft\.batch_size: got 64; expected a multiple of {size * accumulation}: {size} processes"
    with pytest.raises(InvalidInputError, match=expected):
        check_batch_size("sft", config, World(rank=0, size=size))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_the_run_before_it_spoils_the_parameters(tmp_path, where):
    objective = Toy(spoil=1, where=where)
    with pytest.raises(NonFiniteLossError, match="step 1") as raised:
        run(tmp_path, objective)
    assert raised.value.pair_ids == (objective.seen[1][-1:] if where == "loss" else objective.seen[1])
    assert (raised.value.stage, raised.value.step) == ("toy", 1)
    assert objective.policy.isfinite()
    assert [r["step"] for r in read(tmp_path) if r["split"] == "train"] == [1]


def test_what_torch_compiles_is_no_part_of_the_rates(tmp_path, monkeypatch):
    clock, times = CompileClock(), itertools.count()
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: float(next(times))))

    class Compiled(Toy):
        def forward(self, batch, *, step):
            clock.seconds += 0.75 if step == 0 else 0.0
            return super().forward(batch, step=step)

    run(tmp_path, Compiled(), num_rows=8, clock=clock)
    steps = [record for record in read(tmp_path) if record["split"] == "train"]
    # 4 examples a step, which takes a second of the clock above: a quarter of it, where the rest went to compiling
    assert [step["examples_per_second"] for step in steps] == [16.0, 4.0]
    assert [step["seconds/compile"] for step in steps] == [0.75, 0.0]
