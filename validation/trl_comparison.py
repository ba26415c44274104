"""DPO here and in TRL: the same policy, pairs, batches and settings; losses, examples a second, peak memory.

    MIXLOGIT_DATA=FOLDER python validation/trl_comparison.py [--rounds 6] [--quick] [--out validation/reports]

A GPT-NeoX of nine million parameters with random weights is trained by DPO on Anthropic HH pairs, in float32 on the
CPU: by `run_alignment`, and by TRL's DPOTrainer, which is handed the very token ids in the very order. TRL is timed in
three ways: with the reference's log-probabilities computed before training, as here; with a reference model that is
asked in every step, which is its default; and with activations recomputed as well, which is its default, too. Every run
has a process of its own; every round runs each once, in random order, so that whatever else the machine does falls on
all alike, and a ratio is taken within a round.

Quick: one round of a tiny policy without bars, to see that it runs. Writes trl_comparison.json and .md; exits with 1 if
a claim fails. Half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _report import REPORTS, Report, data_folder

STEPS, COMPARED, WARM = 30, 20, 5  # steps of a run; those whose losses are compared; those that no time is taken of
BATCH, LENGTH, PROMPT = 8, 128, 64
LR, BETA, CLIP, SEED = 1e-5, 0.1, 1.0, 0
TOLERANCE, FASTER = 1e-5, 1.1
SIZES = {
    False: {"hidden_size": 256, "num_layers": 6, "num_heads": 8, "vocab_size": 8192},
    True: {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 512},
}
HERE = "mixlogit_align"
PRECOMPUTED = "TRL, reference computed before"
ASKED = "TRL, reference asked in every step"
RECOMPUTED = "TRL as it comes: reference asked in every step, activations recomputed"
THEIRS: dict[str, dict[str, bool]] = {
    PRECOMPUTED: {"precompute_ref_log_probs": True, "activation_checkpointing": False},
    ASKED: {"precompute_ref_log_probs": False, "activation_checkpointing": False},
    RECOMPUTED: {"precompute_ref_log_probs": False, "activation_checkpointing": True},
}


# --- what both are given ---------------------------------------------------------------------------


def config(folder: Path) -> Any:
    """The run here; its supervised stage left out."""
    from mixlogit_align.alignment import AlignmentConfig
    from mixlogit_align.alignment.config import (
        CheckpointConfig,
        OptimConfig,
        PointStrength,
        PreferenceConfig,
        PretrainedModel,
        TokenizationConfig,
    )
    from mixlogit_align.alignment.data.config import HHData

    return AlignmentConfig(
        out=str(folder / "run"),
        data=HHData(max_train=STEPS * BATCH, max_eval=BATCH),
        model=PretrainedModel(path=str(folder / "policy")),
        tokenization=TokenizationConfig(max_length=LENGTH, max_prompt_length=PROMPT),
        sft=None,
        preference=PreferenceConfig(
            optim=OptimConfig(name="rmsprop", lr=LR, warmup_steps=0, max_grad_norm=CLIP),
            batch_size=BATCH,
            eval_batch_size=BATCH,
            eval_every_examples=STEPS * BATCH,
            strength=PointStrength(value=BETA),
        ),
        checkpoint=CheckpointConfig(keep=0),
        precision="float32",
        device="cpu",
        seed=SEED,
    )


def prepare(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Write the policy, and the training pairs as token ids in the order of the run here; returns facts of both."""
    from mixlogit_align.alignment import hf
    from mixlogit_align.alignment.config import NewModel
    from mixlogit_align.alignment.conversations import texts
    from mixlogit_align.alignment.data import load_data
    from mixlogit_align.alignment.data.config import HHData
    from mixlogit_align.alignment.tokenization import tokenize
    from mixlogit_align.alignment.trainer import shuffled_batches

    many = load_data(HHData(max_train=4000, max_eval=BATCH)).split("train")  # for the tokenizer's merges
    sizes = NewModel(**SIZES[quick], max_positions=LENGTH)
    model, tokenizer = hf.load(sizes, (text for row in many for text in texts(row)), SEED)
    hf.export(model, tokenizer, folder / "policy")
    run = config(folder)
    rows, _ = tokenize(load_data(run.data).split("train"), tokenizer, run.tokenization, source=run.data.source)
    pairs = []
    for row in (rows[i] for batch in shuffled_batches(len(rows), run.preference, run.seed) for i in batch):
        cut, choice = row.prompt_length, row.comparison.choice
        chosen, rejected = row.input_ids[choice], row.input_ids[1 - choice]
        pairs.append({"prompt_ids": chosen[:cut], "chosen_ids": chosen[cut:], "rejected_ids": rejected[cut:]})
    (folder / "pairs.json").write_text(json.dumps(pairs))
    tokens = sum(2 * len(pair["prompt_ids"]) + len(pair["chosen_ids"]) + len(pair["rejected_ids"]) for pair in pairs)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
        "pairs": len(pairs),
        "tokens a pair": tokens / len(pairs),
    }


# --- one run, in a process of its own --------------------------------------------------------------


def here(folder: Path) -> dict[str, Any]:
    """By `run_alignment`: a step's time is what it logs; the reference's, what scoring the training pairs takes."""
    from mixlogit_align.alignment import run_alignment
    from mixlogit_align.alignment.objectives import PreferenceObjective

    score, reference = PreferenceObjective.logps, []

    def timed(*args: Any) -> Any:
        begun = time.perf_counter()
        logps = score(*args)
        if len(logps) == STEPS * BATCH:
            reference.append(time.perf_counter() - begun)
        return logps

    PreferenceObjective.logps = timed  # type: ignore[method-assign]
    run_alignment(config(folder), overwrite=True)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["split"] == "train"]
    (seconds,) = reference
    return {
        "losses": [step["loss"] for step in steps],
        "seconds": [BATCH / step["examples_per_second"] for step in steps],
        "reference": seconds,
    }


def theirs(folder: Path, options: dict[str, bool]) -> dict[str, Any]:
    """By TRL's DPOTrainer: a step's time is that between its callbacks, without reading the batch."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    # This trl still uses names that this transformers deprecates.
    warnings.filterwarnings("ignore", ".*is deprecated and will be removed in v6", FutureWarning)
    seconds: list[float] = []
    reference: list[float] = []

    class Clock(TrainerCallback):
        begun = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.begun)

    class TokenizedTrainer(DPOTrainer):
        """Takes token ids in place of texts."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, *args: Any) -> Any:
            begun = time.perf_counter()
            found = super()._precompute_ref_logps(*args)
            reference.append(time.perf_counter() - begun)
            return found

    trainer = TokenizedTrainer(
        str(folder / "policy"),
        args=DPOConfig(
            output_dir=str(folder / "trl"),
            optim="rmsprop",
            optim_args="alpha=0.99",
            learning_rate=LR,
            lr_scheduler_type="constant",
            beta=BETA,
            max_grad_norm=CLIP,
            max_length=None,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            model_init_kwargs={"dtype": "float32"},
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=SEED,
            **options,
        ),
        train_dataset=Dataset.from_list(json.loads((folder / "pairs.json").read_text())),
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
        callbacks=[Clock()],
    )
    trainer.train()
    return {
        "losses": [record["loss"] for record in trainer.state.log_history if "loss" in record],
        "seconds": seconds,
        "reference": sum(reference),
    }


def peak_mib() -> float:
    """The most memory that this process has had resident; what a parent had does not count, as it does in ru_maxrss."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def run_one(name: str, folder: Path) -> None:
    """Run it here and now, and write what it took."""
    found = here(folder) if name == HERE else theirs(folder, THEIRS[name])
    (folder / "found.json").write_text(json.dumps(found | {"peak": peak_mib()}))


def in_a_process(name: str, folder: Path) -> dict[str, Any]:
    """`run_one` in a new process, which reaches for no network."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--one", name, "--work", str(folder)]
    done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name}: exit status {done.returncode}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    assert len(found["losses"]) == len(found["seconds"]) == STEPS
    return found


# --- what they took, side by side ------------------------------------------------------------------


def examples_a_second(found: dict[str, Any]) -> float:
    """Of the median step."""
    return BATCH / statistics.median(found["seconds"][WARM:])


def with_reference(found: dict[str, Any]) -> float:
    """Of one epoch: all steps at the median step's time, and the reference's log-probabilities of its pairs."""
    return STEPS * BATCH / (STEPS * statistics.median(found["seconds"][WARM:]) + found["reference"])


def peak(found: dict[str, Any]) -> float:
    return float(found["peak"])


def mean_ratio(values: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean over rounds and its 95 % interval (Student's t on logarithms)."""
    logs = np.log(values)
    width = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)) if len(logs) > 1 else np.inf
    center = logs.mean()
    return float(np.exp(center)), float(np.exp(center - width)), float(np.exp(center + width))


def compare_losses(report: Report, rounds: list[dict[str, dict[str, Any]]]) -> None:
    first = rounds[0]
    report.section("Losses", f"Of each of the first {COMPARED} steps, on the batch before the step.")
    losses = {name: found["losses"][:COMPARED] for name, found in first.items()}
    for name in THEIRS:
        apart = max(abs(a - b) for a, b in zip(losses[HERE], losses[name], strict=True))
        report.claim(
            name, f"losses differ by {TOLERANCE:g} at most (the largest difference)", apart, apart <= TOLERANCE
        )
    report.claim(
        HERE,
        "the policy moves meanwhile (standard deviation of the losses over the steps)",
        statistics.stdev(losses[HERE]),
        statistics.stdev(losses[HERE]) > 100 * TOLERANCE,
    )
    again = all(found["losses"] == first[name]["losses"] for each in rounds for name, found in each.items())
    report.claim("all", "every round repeats the first one's losses to the bit", again, again)
    report.table(
        "losses",
        "Losses",
        ["step", *losses],
        [[i + 1, *(f"{values[i]:.7f}" for values in losses.values())] for i in range(COMPARED)],
    )


def compare_cost(report: Report, rounds: list[dict[str, dict[str, Any]]], *, bars: bool) -> None:
    report.section(
        "Speed and memory",
        "Ratios are geometric means over rounds of ratios within a round, with 95 % intervals. A claim is about the "
        "interval's end that is against it. Peak memory is all that is resident in the process, "
        "libraries included.",
    )

    def ratios(measure: Callable[[dict[str, Any]], float], name: str) -> tuple[float, float, float]:
        return mean_ratio([measure(each[HERE]) / measure(each[name]) for each in rounds])

    table = []
    for name in (HERE, *THEIRS):
        row: list[Any] = [name]
        for measure in (examples_a_second, with_reference, peak):
            values = [measure(each[name]) for each in rounds]
            row.append(f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})")
        table.append(row)
    report.table(
        "cost",
        f"Medians over {len(rounds)} round{'s' * (len(rounds) > 1)}, with ranges",
        ["", "examples a second, steps alone", "examples a second, an epoch with its reference", "peak memory, MiB"],
        table,
    )
    if not bars:
        return
    for name in THEIRS:
        for what, measure in (("steps alone", examples_a_second), ("an epoch with its reference", with_reference)):
            mean, low, high = ratios(measure, name)
            claim = f"examples a second here over there, {what}: at least {FASTER} (mean, interval)"
            report.claim(name, claim, [mean, low, high], low >= FASTER)
        mean, low, high = ratios(peak, name)
        report.claim(name, "peak memory here over there: 1 at most (mean, interval)", [mean, low, high], high <= 1.0)


def main() -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=REPORTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        run_one(arguments.one, arguments.work)
        return 0
    data_folder("hh_rlhf")
    order = random.Random(0)
    rounds: list[dict[str, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        facts = prepare(folder, quick=arguments.quick)
        report = Report(
            "trl_comparison",
            "DPO beside TRL's trainer",
            f"A GPT-NeoX of {facts['parameters'] / 1e6:.1f} million parameters and a vocabulary of "
            f"{facts['vocabulary']}, random weights; {facts['pairs']} pairs of the HH sample in batches of {BATCH}, "
            f"{facts['tokens a pair']:.0f} tokens a pair, {LENGTH} a sequence at most; {STEPS} steps of RMSprop at "
            f"{LR:g}, gradients clipped at {CLIP:g}, DPO with beta {BETA:g}; float32, no dropout. TRL is handed the "
            "token ids, in the order of the run here. No time is taken of reading them, evaluating or saving, nor of "
            f"the first {WARM} steps. Every run has a process of its own; a round has one run of each, in random "
            "order.",
            "transformers",
            "trl",
            "accelerate",
        )
        for turn in range(1 if arguments.quick else arguments.rounds):
            names = [HERE, *THEIRS]
            order.shuffle(names)
            rounds.append({name: in_a_process(name, folder) for name in names})
            print(f"round {turn + 1} done", file=sys.stderr)
    compare_losses(report, rounds)
    compare_cost(report, rounds, bars=not arguments.quick)
    return report.finish(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
