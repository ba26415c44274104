"""However many processes share a run's batches, and in however many parts: one trajectory, one policy, one refusal."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from mixlogit_align.alignment import AlignmentConfig, NonFiniteLossError, run_alignment
from mixlogit_align.alignment.config import GammaStrength, LogNormalStrength, MonteCarloRule, SolvedUpdate
from mixlogit_align.alignment.data import load_data
from mixlogit_align.alignment.data.config import SimulatedData, TableData
from mixlogit_align.alignment.logratios import SequenceLogProbs
from mixlogit_align.errors import InvalidInputError
from tests.alignment.processes import largest_differences, on_ranks, tiny_policy, tiny_run, train, trajectory

# Float32 adds up in another order when rows lie on other processes: 6e-8 a sum, carried on by the 12 steps. A row
# counted twice, or a gradient averaged wrongly, moves losses and norms by a percent and more.
TOLERANCE = 1e-5

# The last batch has a single row, so that all processes but one have none; 9 rows do not divide either.
ROWS = {"num_train": 61, "num_eval": 9}
BATCHES = {"batch_size": 12, "eval_every_examples": 36}

METHODS = {
    "gpt_neox": {"strength": LogNormalStrength(), "integration": MonteCarloRule(num_draws=16)},
    "llama": {"strength": GammaStrength()},
    "gemma": {"strength": LogNormalStrength(update=SolvedUpdate(every_steps=2, buffer_examples=30))},
}


def config(out: Path, architecture: str, policy: str, stage: dict | None = None, **changes) -> AlignmentConfig:
    return tiny_run(out, policy, **ROWS, stage={**BATCHES, **(stage or {})}, **METHODS[architecture], **changes)


def weights(run: Path) -> torch.Tensor:
    """All parameters of a policy, end to end."""
    return torch.cat([value.flatten() for value in load_file(run / "policy" / "model.safetensors").values()])


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("policies")
    return {architecture: tiny_policy(folder / architecture, architecture) for architecture in METHODS}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, policies) -> dict[str, Path]:
    """The runs of one process that takes its batches whole."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        architecture: run_alignment(config(folder / architecture, architecture, policies[architecture])).path
        for architecture in METHODS
    }


# --- one trajectory --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "size", "accumulation"),
    [
        ("gpt_neox", 1, 1),
        ("gpt_neox", 2, 2),
        ("llama", 1, 2),
        ("llama", 2, 1),
        ("llama", 3, 2),
        ("gemma", 1, 12),
        ("gemma", 2, 1),
        ("gemma", 2, 2),
    ],
)
def test_processes_and_accumulation_leave_the_trajectory_alone(
    alone, policies, tmp_path, architecture, size, accumulation
):
    run = tmp_path / "run"
    on_ranks(size, train, config(run, architecture, policies[architecture], {"accumulation": accumulation}))
    differences = largest_differences(trajectory(alone[architecture]), trajectory(run))
    assert {"sft/train/grad_norm", "preference/train/loss", "preference/eval/strength/mean"} <= differences.keys()
    assert max(differences.values()) < TOLERANCE, differences
    # RMSprop turns a gradient that is rounding alone into a step of up to 10 * lr; few parameters have such a one
    moved = (weights(alone[architecture]) - weights(run)).abs()
    assert moved.max() < 10 * 1e-4
    assert moved.mean() < 1e-6


def test_weights_are_shared_out_with_their_rows(policies, tmp_path):
    """Sums are divided by the whole batch's weight, not by a mean of the processes' or the parts'."""
    rows = [
        {"prompt": f"{i}: {row.prompt}", "chosen": row.chosen, "rejected": row.rejected, "split": row.split,
         "votes": 0.5 + 3.0 * (i % 5 == 0)} for i, row in enumerate(load_data(SimulatedData(**ROWS)).comparisons)
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = TableData(path=str(path), weight="votes", split="split")
    runs = [tmp_path / "one", tmp_path / "two"]
    for size, run in enumerate(runs, start=1):
        on_ranks(size, train, config(run, "llama", policies["llama"], {"accumulation": size}, data=data))
    assert max(largest_differences(*map(trajectory, runs)).values()) < TOLERANCE


def final_metrics(config: AlignmentConfig) -> dict[str, dict[str, float]]:
    return {stage: dict(values) for stage, values in run_alignment(config).metrics.items()}


@pytest.fixture(scope="module")
def two(tmp_path_factory, policies) -> tuple[Path, list[dict[str, dict[str, float]]]]:
    """A run of two processes, and the metrics that each of them returns."""
    run = tmp_path_factory.mktemp("two") / "run"
    return run, on_ranks(2, final_metrics, config(run, "gpt_neox", policies["gpt_neox"]))


def test_what_two_processes_write_is_what_one_does(alone, two):
    runs = [alone["gpt_neox"], two[0]]
    one, other = (pyarrow.parquet.read_table(run / "log_ratios.parquet") for run in runs)
    same = ["pair_id", "annotator_id", "groups", "weight"]
    assert one.select(same) == other.select(same)
    # of sums of 30 float32 log-probabilities each
    difference = one["logratio_diff"].to_numpy() - other["logratio_diff"].to_numpy()
    assert abs(difference).max() < 1e-4
    records = [json.loads((run / "strength.json").read_text()) for run in runs]
    assert records[1].keys() == records[0].keys()
    assert records[1]["mean"] == pytest.approx(records[0]["mean"], rel=TOLERANCE)
    files = [{path.relative_to(run) for path in run.rglob("*") if "checkpoints" not in path.parts} for run in runs]
    assert files[0] == files[1]


def test_every_process_knows_the_metrics_of_all(two):
    run, (first, second) = two
    assert first == second
    last = [record for record in trajectory(run) if record["split"] == "eval"][-1]
    assert first["preference"].items() <= last.items()


def test_processes_repeat_themselves_to_the_bit(two, policies, tmp_path):
    on_ranks(2, train, config(tmp_path, "gpt_neox", policies["gpt_neox"]))
    assert trajectory(tmp_path) == trajectory(two[0])
    assert torch.equal(weights(tmp_path), weights(two[0]))


# --- memory and precision --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2])
def test_recomputed_activations_are_those_that_were_stored(policies, tmp_path, size):
    runs = [tmp_path / "stored", tmp_path / "recomputed"]
    for run, recomputed in zip(runs, (False, True), strict=True):
        on_ranks(size, train, config(run, "llama", policies["llama"], activation_checkpointing=recomputed))
    # the same operations on the same numbers
    assert trajectory(runs[0]) == trajectory(runs[1])
    assert torch.equal(weights(runs[0]), weights(runs[1]))


def test_bfloat16_computes_over_float32_parameters(alone, policies, tmp_path):
    run = tmp_path / "run"
    on_ranks(2, train, config(run, "llama", policies["llama"], precision="bfloat16"))
    assert weights(run).dtype == torch.float32
    before, after = trajectory(alone["llama"]), trajectory(run)
    losses = torch.tensor([[record["loss"] for record in records] for records in (before, after)])
    # bfloat16 has 8 bits: a log-probability of a token is off by up to 0.4 %, a mean over hundreds by less
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    assert not torch.equal(losses[0], losses[1])


# --- what is refused, on every process at once -----------------------------------------------------


@pytest.mark.parametrize(
    ("size", "stage", "expected"),
    [
        (2, {"batch_size": 9, "eval_every_examples": 36}, "batch_size: got 9; expected a multiple of 2"),
        (2, {"accumulation": 4}, "batch_size: got 12; expected a multiple of 8"),
        (1, {"accumulation": 5}, "batch_size: got 12; expected a multiple of 5"),
    ],
    ids=["processes", "processes-and-accumulation", "accumulation"],
)
def test_a_batch_that_does_not_divide_is_refused_before_anything_is_written(policies, tmp_path, size, stage, expected):
    with pytest.raises(InvalidInputError, match=expected):
        on_ranks(size, train, config(tmp_path / "run", "llama", policies["llama"], stage))
    assert not (tmp_path / "run").exists()


def train_with_a_fault(config: AlignmentConfig, rank: int, fault: float | Exception) -> None:
    """In the third forward pass that has a gradient, one process's first log-probabilities are at fault."""
    forward, calls = SequenceLogProbs.forward, []

    def faulty(self: SequenceLogProbs, *args: torch.Tensor) -> torch.Tensor:
        logps = forward(self, *args)
        calls.extend([1] * torch.is_grad_enabled())
        if len(calls) != 3 or not torch.is_grad_enabled() or dist.get_rank() != rank:
            return logps
        if isinstance(fault, Exception):
            raise fault
        return logps * torch.where(torch.arange(len(logps)) == 0, fault, 1.0)[:, None]

    SequenceLogProbs.forward = faulty
    run_alignment(config)


def pair_ids_at_fault(config: AlignmentConfig, rank: int) -> list[int]:
    with pytest.raises(NonFiniteLossError) as caught:
        train_with_a_fault(config, rank, math.nan)
    return caught.value.pair_ids


@pytest.mark.parametrize(("stage", "rank"), [("sft", 0), ("preference", 1)])
def test_nan_on_one_process_stops_all_and_is_told_by_its_pair(policies, tmp_path, stage, rank):
    whole = config(tmp_path / "run", "llama", policies["llama"])
    left_out = {"sft": {"preference": None}, "preference": {"sft": None}}[stage]
    ids = on_ranks(2, pair_ids_at_fault, dataclasses.replace(whole, **left_out), rank)
    assert ids[0] == ids[1]
    assert len(ids[0]) == 1
    status = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (status["status"], status["pair_ids"]) == ("failed", ids[0])
    assert [record["step"] for record in trajectory(tmp_path / "run") if record["split"] == "train"] == [1, 2]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_fails_on_one_process_stops_all(policies, tmp_path, rank):
    settings = config(tmp_path / "run", "llama", policies["llama"])
    with pytest.raises(Exception, match=r".") as caught:  # of the one that failed, or of the one that lost it
        on_ranks(2, train_with_a_fault, settings, rank, MemoryError("no room for activations"))
    assert "no room for activations" in f"{caught.value} {caught.value.__notes__}"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
