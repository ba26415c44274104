"""Functions run in processes of their own, alone or as ranks of a gloo group; tiny policies and runs to compare.

Processes are forked from a server that has torch and transformers loaded already, so that one more costs a twentieth
of a second, starts from a clean state, and may be killed.
"""

from __future__ import annotations

import faulthandler
import json
import math
import multiprocessing
import pickle
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from mixlogit_align.alignment import AlignmentConfig, run_alignment
from mixlogit_align.alignment.config import (
    OptimConfig,
    PreferenceConfig,
    PretrainedModel,
    StageConfig,
    TokenizationConfig,
)
from mixlogit_align.alignment.data.config import SimulatedData

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mixlogit_align.alignment.runner", "mixlogit_align.alignment.hf", __name__])
PATIENCE = 180.0  # seconds; many times what a run here takes, for machines that do other work beside
GRACE_SECONDS = 5.0  # for the other ranks once one has failed: they may wait for it forever

# --- processes -------------------------------------------------------------------------------------


class ProcessDied(RuntimeError):
    """A process ended without an answer: killed, or stopped where its time was up."""


def apart(function: Callable[..., Any], *args: Any, seconds: float = PATIENCE) -> Any:
    """``function(*args)`` in a process of its own, without a process group; see `on_ranks`."""
    return _run([None], 1, function, args, seconds)[0]


def on_ranks(size: int, function: Callable[..., Any], *args: Any, seconds: float = PATIENCE) -> list[Any]:
    """``function(*args)`` on every rank of a new gloo group of ``size`` processes, in which warnings are errors.

    Parameters
    ----------
    size : int
    function : callable
        Found in its module by name, so no lambda and nothing local. Arguments and result are pickled.
    seconds : float
        A rank that takes longer is stopped.

    Returns
    -------
    list
        Each rank's result.

    Raises
    ------
    Exception
        What the first rank to fail raised; notes hold its traceback, and what others raised before they were stopped.
    ProcessDied
        When it ended without an answer; with its stack where its time was up, or it met a fatal error.
    """
    return _run(range(size), size, function, args, seconds)


def _run(
    ranks: Iterable[int | None], size: int, function: Callable[..., Any], args: tuple[Any, ...], seconds: float
) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        processes, waiting = [], {}
        for index, rank in enumerate(ranks):
            receiver, sender = CONTEXT.Pipe(duplex=False)
            stack = Path(folder, f"stack{index}")
            meeting = None if rank is None else (f"file://{folder}/meeting", rank, size)
            answer = (sender, stack, torch.get_num_threads(), meeting, seconds, function, args)
            processes.append(CONTEXT.Process(target=_answer, args=answer, daemon=True))
            processes[-1].start()
            sender.close()  # so that the end of the process is the end of the pipe
            waiting[receiver] = (index, stack)
        results: dict[int, Any] = {}
        failures: list[BaseException] = []
        deadline = math.inf
        try:
            while waiting and time.monotonic() < deadline:
                for receiver in wait(list(waiting), min(deadline - time.monotonic(), seconds + GRACE_SECONDS)):
                    assert isinstance(receiver, Connection)
                    index, stack = waiting.pop(receiver)
                    try:
                        done, result = pickle.loads(receiver.recv_bytes())
                    except EOFError:
                        processes[index].join()
                        done, result = False, _death(index, processes[index].exitcode, stack)
                    if done:
                        results[index] = result
                    else:
                        failures.append(result)
                        deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        finally:
            for process in processes:
                process.kill()
                process.join()
        if failures:
            for failure in failures[1:]:
                failures[0].add_note(f"and another process: {type(failure).__name__}: {failure}")
            raise failures[0]
    return [results[index] for index in range(len(processes))]


def _death(index: int, exitcode: int | None, stack: Path) -> ProcessDied:
    how = f"by signal {-exitcode}" if exitcode is not None and exitcode < 0 else f"with exit status {exitcode}"
    return ProcessDied(f"process {index} ended {how} without an answer\n{stack.read_text() if stack.exists() else ''}")


def _answer(
    sender: Connection,
    stack: Path,
    threads: int,
    meeting: tuple[str, int, int] | None,
    seconds: float,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(threads)
    with stack.open("w") as file:
        faulthandler.enable(file)
        faulthandler.dump_traceback_later(seconds, exit=True, file=file)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                if meeting is not None:
                    place, rank, size = meeting
                    torch.distributed.init_process_group(
                        "gloo", init_method=place, rank=rank, world_size=size, timeout=timedelta(seconds=seconds)
                    )
                answer = pickle.dumps((True, function(*args)))
        except BaseException as error:
            answer = pickle.dumps((False, _portable(error)))
        sender.send_bytes(answer)
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()


def _portable(error: BaseException) -> BaseException:
    """The error, or one that says the same where it does not survive pickling; its traceback as a note."""
    where = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(where)
    return error


# --- policies --------------------------------------------------------------------------------------

# What transformers calls the architecture -> what it needs beyond the sizes.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt_neox": {},
    "llama": {"tie_word_embeddings": True},
    "gemma": {"num_key_value_heads": 1, "head_dim": 8},  # tied too, embeddings scaled
    "phi": {},  # a bias in the head
}
VOCABULARY = 301  # prime: no number of processes cuts it evenly


def tiny_policy(folder: Path, architecture: str, *, seed: int = 0) -> str:
    """Write two layers of an architecture, with random weights, and a tokenizer as a Hugging Face folder.

    Returns
    -------
    str
        The folder, for `mixlogit_align.alignment.config.PretrainedModel`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from mixlogit_align.alignment import hf

    tokenizer = hf.build_tokenizer(["the quick brown fox jumps over the lazy dog; pack my box with jugs"], VOCABULARY)
    config = AutoConfig.for_model(
        architecture, vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=128, initializer_range=0.1, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **ARCHITECTURES[architecture],
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = AutoModelForCausalLM.from_config(config)
    hf.export(policy, tokenizer, folder)
    return str(folder)


# --- runs ------------------------------------------------------------------------------------------


def tiny_run(
    out: Path, policy: str, *, num_train: int, num_eval: int, stage: dict[str, Any], **changes: Any
) -> AlignmentConfig:
    """Settings of a run on simulated annotators, both stages at a learning rate of 1e-4.

    Parameters
    ----------
    out : Path
    policy : str
        A folder that `tiny_policy` wrote.
    num_train, num_eval : int
    stage : dict
        Settings of both stages, ``batch_size`` among them.
    **changes
        Settings of the run in place of these, and ``strength`` and ``integration`` of the preference stage.
    """
    stage = {"optim": OptimConfig(lr=1e-4, warmup_steps=5), "eval_batch_size": 4, **stage}
    method = {name: changes.pop(name) for name in ("strength", "integration") if name in changes}
    settings: dict[str, Any] = {
        "name": "run",  # not its folder's: files of runs in several are compared
        "data": SimulatedData(num_train=num_train, num_eval=num_eval, num_annotators=8),
        "model": PretrainedModel(path=policy),
        "tokenization": TokenizationConfig(max_length=48, max_prompt_length=24),
        "sft": StageConfig(**stage),
        "preference": PreferenceConfig(**stage, **method),
        "precision": "float32",
    }
    return AlignmentConfig(out=str(out), **{**settings, **changes})


def train(config: AlignmentConfig, **options: Any) -> None:
    """`run_alignment` for `on_ranks` and `apart`, which pickle what comes back."""
    run_alignment(config, **options)


CLOCK = frozenset({"seconds", "examples_per_second", "tokens_per_second", "seconds/compile"})


def trajectory(run: Path) -> list[dict[str, Any]]:
    """The records of ``metrics.jsonl`` without what the clock says."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [without_clock(json.loads(line)) for line in lines]


def without_clock(record: dict[str, Any]) -> dict[str, Any]:
    """A record of ``metrics.jsonl`` without what differs when a run is repeated."""
    return {name: value for name, value in record.items() if name not in CLOCK}


PREFIXES = ("loss", "grad_norm", "strength/", "learning_rate", "tokens")


def largest_differences(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, float]:
    """How far two trajectories are apart in losses, gradient norms, strength and what fixes them, metric by metric.

    A difference is relative to the largest value that the metric takes in its stage on the first trajectory; that of
    the strength's gradient norm to the largest loss, of which it is the derivative: it is what terms of both signs
    leave over, and 0 where policy and reference agree. Other metrics are differences of much larger numbers, and shares
    of what can tie: they must be there, and finite.

    Returns
    -------
    dict
        "stage/split/metric" -> largest relative difference.
    """
    scale: dict[str, float] = {}
    difference: dict[str, float] = {}
    for a, b in zip(one, other, strict=True):
        where = {name: a[name] for name in ("stage", "split", "step", "examples_seen")}
        assert a.keys() == b.keys(), f"{where}: {sorted(a.keys() ^ b.keys())} in one record only"
        assert where == {name: b[name] for name in where}
        for name in a.keys() - where.keys():
            assert math.isfinite(a[name] - b[name]), f"{where}: {name} is {a[name]} and {b[name]}"
            if name.startswith(PREFIXES) and name != "strength/drift_share":
                key = f"{a['stage']}/{a['split']}/{name}"
                unit = a["loss"] if name == "grad_norm/strength" else a[name]
                scale[key] = max(scale.get(key, 0.0), abs(unit))
                difference[key] = max(difference.get(key, 0.0), abs(a[name] - b[name]))
    return {key: difference[key] and difference[key] / (scale[key] or math.ulp(0.0)) for key in sorted(difference)}
