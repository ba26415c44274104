"""A run that was interrupted, killed or out of space, and resumed, is the run without a break, to the bit."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mixlogit_align.alignment import AlignmentConfig, dump_config, run_alignment
from mixlogit_align.alignment.checkpoint import CheckpointError
from mixlogit_align.alignment.config import (
    CheckpointConfig,
    GammaStrength,
    LogNormalStrength,
    MonteCarloRule,
    OptimConfig,
    SolvedUpdate,
)
from mixlogit_align.alignment.data.config import HHData, SimulatedData
from mixlogit_align.errors import InvalidInputError
from tests.alignment.processes import (
    ProcessDied,
    apart,
    largest_differences,
    on_ranks,
    tiny_policy,
    tiny_run,
    train,
    trajectory,
)

# Six steps a stage, the last with a single row; evaluated and saved after steps 2, 4 and 6.
ROWS = {"num_train": 61, "num_eval": 9}
STAGE = {"batch_size": 12, "eval_every_examples": 24, "optim": OptimConfig(name="adamw", lr=1e-4, warmup_steps=5)}
STEPS = 6

METHODS = {
    "gpt_neox": {"strength": LogNormalStrength(), "integration": MonteCarloRule(num_draws=16)},
    "llama": {"strength": GammaStrength()},
    # solved after step 5 from rows of steps 2 to 5, which a run resumed from step 4 has in its checkpoint alone
    "gemma": {"strength": LogNormalStrength(update=SolvedUpdate(every_steps=5, buffer_examples=40))},
}


def config(out: Path, architecture: str, policy: str, **changes: Any) -> AlignmentConfig:
    return tiny_run(out, policy, **ROWS, **{"stage": STAGE, **METHODS[architecture], **changes})


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("policies")
    return {architecture: tiny_policy(folder / architecture, architecture) for architecture in METHODS}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, policies) -> dict[str, Path]:
    """A run of each architecture without a break, on one process."""
    folder = tmp_path_factory.mktemp("unbroken")
    return {
        architecture: run_alignment(config(folder / architecture, architecture, policies[architecture])).path
        for architecture in METHODS
    }


@dataclasses.dataclass(frozen=True)
class Stop:
    """A progress that ends the run once so many steps of a stage are done, before what follows the step."""

    stage: str
    step: int
    kill: bool = False

    def __call__(self, stage: str, done: int, total: int, metrics: object) -> None:
        if (stage, done) == (self.stage, min(self.step * STAGE["batch_size"], total)):
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt


def outcome(run: Path) -> dict[str, Any]:
    """All that a run leaves, clocks and checkpoints aside, to be compared to the bit."""
    state = json.loads((run / "run.json").read_text())
    found: dict[str, Any] = {path.name: path.read_bytes() for path in (run / "policy").iterdir()}
    found |= {name: (run / name).read_bytes() for name in ("strength.json", "log_ratios.parquet", "truth.json")}
    return found | {"trajectory": trajectory(run), "status": state["status"], "metrics": state["metrics"]}


def assert_same(run: Path, unbroken: Path) -> None:
    """The first difference, rather than two policies in hexadecimal."""
    one, other = outcome(unbroken), outcome(run)
    assert one["trajectory"] == other["trajectory"]
    assert {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)} == set()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- interrupted -----------------------------------------------------------------------------------

STAGES = ("sft", "preference")


@pytest.mark.parametrize("architecture", METHODS)
@pytest.mark.parametrize(("stage", "step"), [("sft", 0), ("sft", 5), ("preference", 0), ("preference", 4)])
def test_an_interrupted_run_resumes_to_the_bit(unbroken, policies, tmp_path, architecture, stage, step):
    settings = config(tmp_path, architecture, policies[architecture])
    with pytest.raises(KeyboardInterrupt):
        run_alignment(settings, progress=Stop(stage, step))
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"
    run_alignment(settings, resume=True)
    assert_same(tmp_path, unbroken[architecture])


def test_a_run_killed_after_every_step_gets_on_by_its_checkpoints_alone(unbroken, policies, tmp_path):
    every_step = CheckpointConfig(every_examples=STAGE["batch_size"], keep=2)
    settings = config(tmp_path, "gemma", policies["gemma"], checkpoint=every_step)
    stops = [Stop(stage, step, kill=True) for stage in STAGES for step in range(STEPS + 1)]
    died = [death_of(settings, stop) for stop in stops]
    assert died == [True] * len(stops)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    run_alignment(settings, resume=True)
    assert_same(tmp_path, unbroken["gemma"])


def resume(config: AlignmentConfig, stop: Stop | None) -> None:
    run_alignment(config, resume=True, progress=stop)


def death_of(config: AlignmentConfig, stop: Stop) -> bool:
    """Whether a process that resumes the run is killed at the stop."""
    try:
        apart(resume, config, stop)
    except ProcessDied as death:
        return "signal 9" in str(death)
    return False


def test_a_solved_strength_resumes_with_its_buffer(unbroken, policies, tmp_path):
    """The case above is one: without the rows of steps before the break, the strength would be solved to another."""
    records = [r for r in trajectory(unbroken["gemma"]) if (r["stage"], r["split"]) == ("preference", "train")]
    strengths = [record["strength/mean"] for record in records]
    assert len(set(strengths)) == 2, "solved once"
    settings = config(tmp_path, "gemma", policies["gemma"])
    with pytest.raises(KeyboardInterrupt):
        run_alignment(settings, progress=Stop("preference", 5))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["preference-00000004"]
    run_alignment(settings, resume=True)
    assert trajectory(tmp_path) == trajectory(unbroken["gemma"])


def test_gpt_neox_resumes_with_the_head_it_had(unbroken, policies, tmp_path):
    """Trainers that load a raw state dict loosely keep the head the model began with: it goes by two names."""
    settings = config(tmp_path, "gpt_neox", policies["gpt_neox"])
    with pytest.raises(KeyboardInterrupt):
        run_alignment(settings, progress=Stop("preference", 5))
    run_alignment(settings, resume=True)
    before, resumed, whole = (
        load_file(folder / "model.safetensors")
        for folder in (Path(policies["gpt_neox"]), tmp_path / "policy", unbroken["gpt_neox"] / "policy")
    )
    (head,) = (name for name in whole if "embed_out" in name or "lm_head" in name)
    assert torch.equal(resumed[head], whole[head])
    assert not torch.equal(resumed[head], before[head])


def test_to_resume_a_finished_run_is_to_read_it(unbroken, policies):
    before = files(unbroken["llama"])
    settings = config(unbroken["llama"], "llama", policies["llama"])
    result = run_alignment(settings, resume=True)
    assert result.metrics == json.loads((unbroken["llama"] / "run.json").read_text())["metrics"]
    assert files(unbroken["llama"]) == before


# --- killed while it writes ------------------------------------------------------------------------


def train_until(config: AlignmentConfig, event: str, name: str, count: int) -> None:
    """Train, and be killed just before the so many-th such operation on a file of this name."""
    left = [count]

    def watch(kind: str, args: tuple[Any, ...]) -> None:
        if kind == event and str(args[0]).startswith(config.out) and Path(str(args[0])).name.startswith(name):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    run_alignment(config, resume=True)


WRITES = {
    "before-anything": ("open", ".config.yaml", 1),
    "before-the-first-checkpoint": ("os.mkdir", ".sft-00000002", 1),
    "a-folder-for-the-second": ("os.mkdir", ".sft-00000004", 1),
    "its-tensors": ("open", "__0_0.distcp", 2),
    "its-index": ("os.rename", ".metadata", 2),
    "its-manifest": ("open", ".manifest.json", 2),
    "the-manifest-in-place": ("os.rename", ".manifest.json", 2),
    "the-checkpoint-in-place": ("os.rename", ".preference-00000004", 1),
    "pruning": ("os.rename", "preference-00000002", 1),
    "pruning-half-done": ("os.rmdir", ".preference-00000002.removed", 1),
    "the-strength": ("os.rename", ".strength.json", 1),
    "the-truth": ("open", ".truth.json", 1),
    "the-policy": ("open", "config.json", 1),
    "the-last-word": ("os.rename", ".run.json", 2),
}


@pytest.mark.parametrize(("event", "name", "count"), WRITES.values(), ids=WRITES)
def test_a_run_killed_while_it_writes_resumes_to_the_bit(unbroken, policies, tmp_path, event, name, count):
    settings = config(tmp_path / "run", "llama", policies["llama"])
    with pytest.raises(ProcessDied, match="signal 9"):
        apart(train_until, settings, event, name, count)
    run_alignment(settings, resume=True)
    assert_same(tmp_path / "run", unbroken["llama"])
    assert sorted(path.name for path in (tmp_path / "run").rglob("*") if path.name.startswith(".")) == [".metadata"]


def command(config: AlignmentConfig, *options: str) -> list[str]:
    Path(f"{config.out}.yaml").write_text(dump_config(config))
    return [sys.executable, "-m", "mixlogit_align.cli", "train", "--config", f"{config.out}.yaml", *options]


def killed_when(condition: Callable[[], bool], arguments: list[str]) -> int:
    """The exit status of a command that is killed as soon as the condition holds."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while process.poll() is None and not condition() and time.monotonic() < end:
            time.sleep(0.0002)
        process.kill()
    return process.returncode


def test_the_command_is_killed_at_a_random_step_and_in_a_save_and_resumes(unbroken, policies, tmp_path):
    settings = config(tmp_path / "run", "gpt_neox", policies["gpt_neox"])
    lines = random.Random(0).randrange(2, 8)
    log = tmp_path / "run" / "metrics.jsonl"
    assert killed_when(lambda: log.exists() and log.read_bytes().count(b"\n") >= lines, command(settings)) == -9
    saving = tmp_path / "run" / "checkpoints"
    assert killed_when(lambda: any(saving.glob(".preference*")), command(settings, "--resume")) == -9
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"
    run_alignment(settings, resume=True)
    assert_same(tmp_path / "run", unbroken["gpt_neox"])


# --- on other processes ----------------------------------------------------------------------------


def kill_on_ranks(size: int, config: AlignmentConfig, stop: Stop) -> None:
    """Begin a run whose main process is killed at the stop, which its others notice."""
    with pytest.raises(Exception, match=r"signal 9|[Cc]onnection"):  # whichever process is heard first
        on_ranks(size, resume, config, stop)
    assert json.loads((Path(config.out) / "run.json").read_text())["status"] == "running"


@pytest.mark.parametrize("architecture", ["llama", "gemma"])
def test_two_processes_resume_to_the_bit(policies, tmp_path, architecture):
    settings = [config(tmp_path / name, architecture, policies[architecture]) for name in ("whole", "broken")]
    on_ranks(2, train, settings[0])
    kill_on_ranks(2, settings[1], Stop("preference", 3, kill=True))
    on_ranks(2, resume, settings[1], None)
    assert_same(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.parametrize(
    ("architecture", "before", "after"), [("gpt_neox", 1, 2), ("llama", 2, 1), ("gemma", 2, 3), ("gemma", 1, 2)]
)
def test_another_number_of_processes_carries_the_trajectory_on(
    unbroken, policies, tmp_path, architecture, before, after
):
    settings = config(tmp_path, architecture, policies[architecture])
    kill_on_ranks(before, settings, Stop("preference", 3, kill=True))
    on_ranks(after, resume, settings, None)
    differences = largest_differences(trajectory(unbroken[architecture]), trajectory(tmp_path))
    # as in test_distributed: sums in another order
    assert max(differences.values()) < 1e-5, differences


# --- what cannot be resumed ------------------------------------------------------------------------


@pytest.fixture
def interrupted(policies, tmp_path) -> AlignmentConfig:
    """A run interrupted after step 5 of its second stage, with the checkpoints of steps 2 and 4."""
    settings = config(tmp_path / "run", "llama", policies["llama"], checkpoint=CheckpointConfig(keep=2))
    with pytest.raises(KeyboardInterrupt):
        run_alignment(settings, progress=Stop("preference", 5))
    return settings


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated": ("__0_0.distcp", truncate),
    "flipped-bit": ("__0_0.distcp", flip),
    "missing": ("__0_0.distcp", Path.unlink),
    "index-flipped-bit": (".metadata", flip),
    "manifest-truncated": ("manifest.json", truncate),
    "manifest-missing": ("manifest.json", Path.unlink),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(unbroken, interrupted, name, damage):
    checkpoints = Path(interrupted.out) / "checkpoints"
    damage(checkpoints / "preference-00000004" / name)
    earlier = files(checkpoints / "preference-00000002")
    with pytest.raises(CheckpointError, match=rf"preference-00000004/{name}.*resumes from preference-00000002"):
        run_alignment(interrupted, resume=True)
    assert files(checkpoints / "preference-00000002") == earlier
    shutil.rmtree(checkpoints / "preference-00000004")
    run_alignment(interrupted, resume=True)
    assert_same(Path(interrupted.out), unbroken["llama"])


@pytest.mark.parametrize("damage", [truncate, Path.unlink], ids=["truncated", "missing"])
def test_a_log_shorter_than_the_checkpoint_says_is_told(interrupted, damage):
    damage(Path(interrupted.out) / "metrics.jsonl")
    before = files(Path(interrupted.out) / "checkpoints")
    with pytest.raises(InvalidInputError, match=r"metrics\.jsonl: got \d+ bytes; expected at least"):
        run_alignment(interrupted, resume=True)
    assert files(Path(interrupted.out) / "checkpoints") == before


def test_a_checkpoint_of_another_model_is_refused(interrupted, policies, tmp_path):
    other = config(tmp_path / "other", "gpt_neox", policies["gpt_neox"], **METHODS["llama"])
    with pytest.raises(KeyboardInterrupt):
        run_alignment(other, progress=Stop("preference", 5))
    mine, foreign = (Path(settings.out) / "checkpoints" for settings in (interrupted, other))
    shutil.rmtree(mine)
    shutil.copytree(foreign, mine)
    before = files(mine)
    with pytest.raises(InvalidInputError, match="another model"):
        run_alignment(interrupted, resume=True)
    assert files(mine) == before


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 1}, "seed=1, was 0"),
        ({"precision": "bfloat16"}, "precision='bfloat16', was 'float32'"),
        ({"data": SimulatedData(num_train=60, num_eval=9, num_annotators=8)}, r"data\.num_train=60, was 61"),
        ({"strength": GammaStrength(rate=20.0)}, r"preference\.strength\.rate=20\.0, was 16\.7"),
        ({"stage": {**STAGE, "batch_size": 6}}, r"preference\.batch_size=6, was 12; sft\.batch_size=6, was 12"),
    ],
    ids=["seed", "precision", "data", "strength", "batch"],
)
def test_other_settings_are_refused_by_name(interrupted, policies, tmp_path, change, name):
    before = files(tmp_path)
    changed = config(tmp_path / "run", "llama", policies["llama"], **{"checkpoint": CheckpointConfig(keep=2), **change})
    with pytest.raises(InvalidInputError, match=name):
        run_alignment(changed, resume=True)
    assert files(tmp_path) == before


def test_settings_that_leave_the_trajectory_alone_may_change(unbroken, interrupted, policies):
    stage = {**STAGE, "accumulation": 2, "eval_batch_size": 3}
    changed = config(
        Path(interrupted.out), "llama", policies["llama"], name="again", stage=stage, activation_checkpointing=True,
        checkpoint=CheckpointConfig(every_examples=12, keep=3),
    )  # fmt: skip
    run_alignment(changed, resume=True)
    assert max(largest_differences(trajectory(unbroken["llama"]), trajectory(Path(changed.out))).values()) < 1e-5
    assert len(list((Path(changed.out) / "checkpoints").iterdir())) == 3


def transcripts(path: Path, answers: list[str]) -> None:
    asked = [f"\n\nHuman: {path.stem} {i}?\n\nAssistant:" for i in range(len(answers))]
    rows = [{"chosen": f"{x} {y}", "rejected": f"{x} no"} for x, y in zip(asked, answers, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_data_that_changed_on_the_disk_are_refused(policies, tmp_path):
    for name in ("train", "test"):
        transcripts(tmp_path / f"{name}.jsonl", ["yes"] * 36)
    settings = config(tmp_path / "run", "llama", policies["llama"], data=HHData(path=str(tmp_path)))
    with pytest.raises(KeyboardInterrupt):
        run_alignment(settings, progress=Stop("sft", 3))
    transcripts(tmp_path / "train.jsonl", ["yes"] * 35 + ["yet"])
    before = files(tmp_path / "run" / "checkpoints")
    with pytest.raises(InvalidInputError, match="another data"):
        run_alignment(settings, resume=True)
    assert files(tmp_path / "run" / "checkpoints") == before


# --- a full disk -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FullDisk:
    """A progress after which no file can grow beyond so many bytes, once so many steps of a stage are done."""

    stage: str
    step: int
    bytes: int

    def __call__(self, stage: str, done: int, total: int, metrics: object) -> None:
        if (stage, done) == (self.stage, min(self.step * STAGE["batch_size"], total)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.bytes, resource.RLIM_INFINITY))


@pytest.mark.parametrize("size", [1, 2])
def test_a_full_disk_is_told_and_the_last_checkpoint_serves(unbroken, policies, tmp_path, size):
    settings = config(tmp_path, "llama", policies["llama"])
    with pytest.raises(CheckpointError, match=r"preference-00000004.*File too large.*from preference-00000002"):
        on_ranks(size, resume, settings, FullDisk("preference", 3, 1 << 14))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["preference-00000002"]
    state = json.loads((tmp_path / "run.json").read_text())
    assert state["status"] == "failed"
    assert "preference-00000004" in state["error"]
    on_ranks(size, resume, settings, None)
    assert max(largest_differences(trajectory(unbroken["llama"]), trajectory(tmp_path)).values()) < 1e-5
