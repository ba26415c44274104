"""Compiled blocks: they train as the blocks as they are, alone and sharded; what cannot be compiled is refused."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from mixlogit_align.alignment import AlignmentConfig, compilation, export_checkpoint, run_alignment
from mixlogit_align.alignment.compilation import compile_blocks, compiling, try_compiled
from mixlogit_align.alignment.config import LoRAConfig
from mixlogit_align.alignment.folder import RunFolder
from mixlogit_align.alignment.parallel import World
from mixlogit_align.errors import InvalidInputError

from .processes import apart, on_ranks, tiny_policy, tiny_run, train, trajectory
from .processes import largest_differences as apart_by

# Float32 rounding is 6e-8; a trajectory of some steps at a learning rate of 1e-4 lets it grow a hundredfold.
ROUNDING = 1e-5
SECONDS = 300.0  # torch compiles for some seconds on an idle core
STAGE = {"batch_size": 6, "eval_every_examples": 12}


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    return tiny_policy(tmp_path_factory.mktemp("policies") / "gpt_neox", "gpt_neox")


def config(out: Path, policy: str, **changes: Any) -> AlignmentConfig:
    return tiny_run(out, policy, num_train=24, num_eval=4, stage=STAGE, **changes)


def train_compiled(backend: str, config: AlignmentConfig, stop_at: int | None = None, **options: Any) -> None:
    """`run_alignment` with another backend, interrupted in the preference stage after so many examples.

    "eager" runs what torch traced as it is, "aot_eager" with the backward pass that torch derived: both in the order of
    the blocks, so that rounding is theirs, and in a few seconds.
    """
    compilation.BACKEND = backend

    def stop(stage: str, done: int, total: int, metrics: Any) -> None:
        if stage == "preference" and done == stop_at:
            raise KeyboardInterrupt

    try:
        run_alignment(config, progress=stop, **options)
    except KeyboardInterrupt:
        assert stop_at is not None


# --- the same training -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(policy, tmp_path_factory) -> tuple[Path, Path]:
    """One run without, and one that is compiled, interrupted, exported, and resumed without."""
    folder = tmp_path_factory.mktemp("runs")
    plain, other = folder / "plain", folder / "other"
    apart(train, config(plain, policy))
    apart(train_compiled, "eager", config(other, policy, compile=True), 18, seconds=SECONDS)
    export_checkpoint(other, folder / "exported")
    (folder / "interrupted.json").write_text((other / "run.json").read_text())
    (folder / "interrupted.jsonl").write_text((other / "metrics.jsonl").read_text())
    apart(resume, config(other, policy))
    return plain, other


def resume(config: AlignmentConfig) -> None:
    run_alignment(config, resume=True)


def test_a_compiled_run_trains_as_one_without_and_resumes_without(runs):
    plain, other = runs
    assert max(apart_by(trajectory(plain), trajectory(other)).values()) < ROUNDING


def test_names_of_weights_are_those_without(runs):
    def names(folder: Path) -> list[str]:
        with safe_open(folder / "policy" / "model.safetensors", framework="pt") as file:
            return sorted(file.keys())

    plain, other = runs
    assert names(other.parent / "exported") == names(other) == names(plain)


def test_the_time_of_compiling_is_told_apart(runs):
    _, other = runs
    told = json.loads((other.parent / "interrupted.json").read_text())
    records = [json.loads(line) for line in (other.parent / "interrupted.jsonl").read_text().splitlines()]
    in_steps = [record["seconds/compile"] for record in records if record["split"] == "train"]
    assert told["compile_seconds"] > 0
    # all of it before the first step
    assert in_steps == [0.0] * 7
    assert "compile_seconds" not in json.loads((other / "run.json").read_text())


def test_two_processes_train_compiled_as_they_do_without(policy, tmp_path):
    changes = {"sft": None}
    plain, other = (config(tmp_path / str(on), policy, compile=on, **changes) for on in (False, True))
    on_ranks(2, train, plain)
    on_ranks(2, train_compiled, "aot_eager", other, seconds=SECONDS)
    assert max(apart_by(trajectory(Path(plain.out)), trajectory(Path(other.out))).values()) < ROUNDING


def test_adapters_on_bfloat16_with_recomputed_activations_train_compiled_as_they_do_without(policy, tmp_path):
    changes = {"sft": None, "precision": "bfloat16", "lora": LoRAConfig(rank=2), "activation_checkpointing": True}
    plain, other = (config(tmp_path / str(on), policy, compile=on, **changes) for on in (False, True))
    apart(train, plain)
    apart(train_compiled, "eager", other, seconds=SECONDS)
    assert max(apart_by(trajectory(Path(plain.out)), trajectory(Path(other.out))).values()) < ROUNDING


class Blocks(nn.Module):
    """Two blocks that add to what they get, on scaled numbers; the second may hold ``odd`` code."""

    def __init__(self, *, odd: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))
        self.layers = nn.ModuleList([Block(), Block(odd=odd)])

    def forward(self, input_ids: torch.Tensor, response_mask: torch.Tensor) -> torch.Tensor:
        x = self.scale * (input_ids[..., None] + torch.arange(5.0))
        for layer in self.layers:
            x = layer(x)
        return (x.sum(-1) * response_mask).sum(-1)


class Block(nn.Module):
    def __init__(self, *, odd: bool = False) -> None:
        super().__init__()
        self.linear, self.odd = nn.Linear(5, 5), odd

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.odd and x.sum().item() > 0:  # Python that depends on values
            x = x + 1
        return x + nn.functional.gelu(self.linear(x))


def batch(rows: int, length: int) -> Any:
    ids = torch.arange(rows * 2 * length).view(rows, 2, length)
    return types.SimpleNamespace(input_ids=ids, response_mask=torch.ones(rows, 2, length, dtype=torch.bool))


def test_code_of_inductor_gives_what_the_blocks_give():
    model = Blocks()
    names = list(model.state_dict())
    given = [batch(5, 5), batch(6, 7)]  # five features, too: equal by chance
    expected = [model(each.input_ids, each.response_mask) for each in given]
    gradients = [torch.autograd.grad(each.sum(), list(model.parameters())) for each in expected]
    times = []
    with compiling() as clock:
        compile_blocks(model)
        found, slopes = [], []
        for each in given:
            found.append(model(each.input_ids, each.response_mask))
            slopes.append(torch.autograd.grad(found[-1].sum(), list(model.parameters())))
            times.append(clock.seconds)
    # lengths and numbers of rows are symbols: nothing was compiled again
    assert 0 < times[0] == times[1]
    # sums of some dozen float32 numbers, in another order
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slopes, gradients, rtol=1e-5, atol=1e-4)
    assert list(model.state_dict()) == names


# --- what is refused -------------------------------------------------------------------------------


@pytest.fixture
def traced_alone(monkeypatch):
    """Blocks are traced, and their operations run as they are."""
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    with compiling() as clock:
        yield clock


def test_a_block_that_does_not_go_into_one_graph_is_refused(traced_alone):
    model = Blocks(odd=True)
    compile_blocks(model)
    with pytest.raises(InvalidInputError, match=r"compile: got true, where torch cannot \(.*Try `compile: false`"):
        try_compiled(model, batch(2, 3), World(), limit=1e-2, training=True)


def test_a_block_that_computes_something_else_is_refused(traced_alone):
    model = Blocks()
    compile_blocks(model)
    with pytest.raises(InvalidInputError, match="compile: got true, which changes log-probabilities by up to 0 nats"):
        try_compiled(model, batch(2, 3), World(), limit=-1.0, training=False)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(InvalidInputError, match="compile: got true for a model without blocks"):
        compile_blocks(nn.Linear(2, 2))


def test_a_machine_without_a_compiler_is_refused_before_the_folder_is_made(policy, tmp_path):
    from torch._inductor import config as inductor

    refused = pytest.raises(InvalidInputError, match=r"compile: got true, where torch cannot \(.*a C\+\+ compiler")
    with inductor.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}), refused:
        run_alignment(config(tmp_path / "run", policy, compile=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("first", [False, True])
def test_bfloat16_does_not_resume_with_another_rounding(policy, tmp_path, first):
    begun, now = (
        config(tmp_path / "run", policy, precision="bfloat16", compile=compiled) for compiled in (first, not first)
    )
    RunFolder(begun, World()).begin(replace=False)
    with pytest.raises(InvalidInputError, match=f"compile={not first}, was {first}"):
        RunFolder(now, World()).found(overwrite=False, resume=True)
