"""What a random strength costs a training step, over DPO: loss and strength update alone, and the whole step.

    python validation/benchmarks/overhead.py [--device cuda] [--rounds 20] [--quick] [--out validation/reports]

Steps are the trainer's own, on one policy and one batch; every round takes one step of each method in random order, so
that whatever else the machine does falls on all alike, and a ratio is taken within a round. On the CPU a GPT-NeoX of 70
million parameters; on a GPU the architectures of Pythia-2.8B and Llama-3.2-1B, computing in bfloat16. Weights are
random. Quick: a tiny policy and no bar, to see that it runs. Writes overhead.json and .md (overhead_cuda on a GPU) and
exits with 1 if the bar is missed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _report import REPORTS, Report

from mixlogit_align.alignment import SequenceLogProbs
from mixlogit_align.alignment.config import (
    BestRule,
    ClosedFormRule,
    GammaStrength,
    IntegrationConfig,
    LearnedUpdate,
    LogNormalStrength,
    MonteCarloRule,
    PointStrength,
    PreferenceConfig,
    QuadratureRule,
    StrengthConfig,
)
from mixlogit_align.alignment.data.batches import Collator, TokenizedComparison
from mixlogit_align.alignment.data.schema import Comparison
from mixlogit_align.alignment.metrics_log import MetricsLog
from mixlogit_align.alignment.objectives import MixDPOObjective
from mixlogit_align.alignment.parallel import World, join, shard
from mixlogit_align.alignment.strength import build_preference_loss
from mixlogit_align.alignment.trainer import ParameterGroup, Stage, Trainer

PROMPT, RESPONSE = 64, 64  # tokens
SPREAD = 20.0  # nats, standard deviation of the log-ratio differences where the policy is left out
BAR = 0.005
PAPER = {"LogNormal, Monte Carlo 16": 1.02, "Gamma, closed form": 1.1}
DPO = "DPO"
METHODS: Mapping[str, tuple[StrengthConfig, IntegrationConfig]] = {
    DPO: (PointStrength(value=0.1), BestRule()),
    "LogNormal, Monte Carlo 16": (LogNormalStrength(), MonteCarloRule(num_draws=16)),
    "LogNormal, quadrature": (LogNormalStrength(), QuadratureRule()),
    "Gamma, closed form": (GammaStrength(), ClosedFormRule()),
}
# Dense bfloat16 operations a second, by the makers.
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A policy, and the batch that it is trained on.

    Parameters
    ----------
    kind : {"gpt_neox", "llama"}
    settings : mapping
        Of transformers' configuration.
    pairs : int
    accumulation : int
        Parts of a batch, where activations of the whole are too many.
    """

    kind: str
    settings: Mapping[str, Any]
    pairs: int = 64
    accumulation: int = 1


NEOX = {"vocab_size": 50304, "rotary_pct": 0.25, "max_position_embeddings": 2048}
CPU = {
    "GPT-NeoX, 70M": Architecture(
        kind="gpt_neox",
        settings=NEOX
        | {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048},
        pairs=8,
    )
}
QUICK = {
    "GPT-NeoX, tiny": Architecture(
        kind="gpt_neox",
        settings=NEOX
        | {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        | {"vocab_size": 512},
        pairs=8,
    )
}
CUDA = {
    "Pythia-2.8B": Architecture(
        kind="gpt_neox",
        settings=NEOX
        | {"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 10240},
        accumulation=4,
    ),
    "Llama-3.2-1B": Architecture(
        kind="llama",
        settings={
            "vocab_size": 128256,
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "intermediate_size": 8192,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
        accumulation=2,
    ),
}


# --- steps -----------------------------------------------------------------------------------------


class GivenLogProbs(nn.Module):
    """In place of a policy: log-probabilities that are parameters, so that all of a step but the policy is left."""

    def __init__(self, logps: Tensor) -> None:
        super().__init__()
        self.logps = nn.Parameter(logps)

    def forward(self, input_ids: Tensor, response_mask: Tensor) -> Tensor:
        """The log-probabilities of as many rows as there are."""
        return self.logps[: len(input_ids)]


def build(architecture: Architecture, device: torch.device) -> SequenceLogProbs:
    """The policy with random float32 weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(architecture.kind, **architecture.settings, use_cache=False)
    torch.manual_seed(0)
    with device:
        return SequenceLogProbs(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())


def random_rows(architecture: Architecture) -> list[TokenizedComparison]:
    """Pairs of random tokens, all of the same length."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(2, architecture.settings["vocab_size"], (count,), generator=generator).tolist()

    rows = []
    for i in range(architecture.pairs):
        prompt = ids(PROMPT)
        comparison = Comparison(prompt="", responses=("first", "second"), choice=0, pair_id=i, split="train")
        candidates = (prompt + ids(RESPONSE), prompt + ids(RESPONSE))
        rows.append(TokenizedComparison(comparison=comparison, input_ids=candidates, prompt_length=PROMPT))
    return rows


def steps(
    policy: nn.Module, rows: Sequence[TokenizedComparison], accumulation: int, world: World
) -> dict[str, Callable[[], None]]:
    """A step of each method on the same policy, which they share with the state of its optimiser."""
    collator = Collator(pad_id=0, device=world.device)
    state: Any = None
    found = {}
    for name, (strength, integration) in METHODS.items():
        config = PreferenceConfig(
            batch_size=len(rows),
            eval_batch_size=len(rows),
            accumulation=accumulation,
            eval_every_examples=len(rows),
            strength=strength,
            integration=integration,
        )
        preference_loss = build_preference_loss(config).to(world.device)
        objective = MixDPOObjective(policy, preference_loss, collator, config=config, world=world)
        if rows[0].reference_logps is None:
            reference = objective.logps(policy, rows).tolist()
            rows = [row.with_reference(logps) for row, logps in zip(rows, reference, strict=True)]
        groups = [ParameterGroup(name="policy", parameters=list(policy.parameters()), lr=5e-7, max_grad_norm=1.0)]
        if isinstance(strength.update, LearnedUpdate):
            learned = list(preference_loss.mixing.parameters())
            groups.append(ParameterGroup(name="strength", parameters=learned, lr=strength.update.lr, max_grad_norm=1.0))
        stage = Stage(name="preference", config=config, objective=objective, groups=groups)
        if state is not None:
            stage.optimizer.state.update({parameter: state[parameter] for parameter in policy.parameters()})
        trainer = Trainer(collator=collator, log=MetricsLog(None), progress=lambda *_: None, seed=0, world=world)

        def step(trainer: Any = trainer, stage: Any = stage, rows: Any = rows) -> None:
            trainer.step(stage, rows, step=0)

        step()  # the first makes the optimiser's state and loads libraries
        state = stage.optimizer.state
        found[name] = step
    return found


def timed(methods: Mapping[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each method's step, round by round, in an order that changes."""

    def synchronised() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name in order.sample(list(methods), len(methods)):
            start = synchronised()
            methods[name]()
            seconds[name].append(synchronised() - start)
    return seconds


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median and its 95 % bootstrap interval over rounds."""
    found = stats.bootstrap((np.array(values),), np.median, method="percentile", rng=0, n_resamples=4000)
    low, high = found.confidence_interval
    return float(np.median(values)), float(low), float(high)


# --- arithmetic ------------------------------------------------------------------------------------


def operations(policy: SequenceLogProbs, architecture: Architecture) -> float:
    """Multiplications and additions of one step: 6 a weight and token, 12 a layer, width and pair of positions.

    The vocabulary projection counts for response tokens alone, the embedding not at all, attention in full though a
    causal one needs half (Chowdhery et al., 2022, appendix B).
    """
    settings = architecture.settings
    embeddings = settings["vocab_size"] * settings["hidden_size"]
    head = 1 if settings.get("tie_word_embeddings") else 2
    blocks = sum(parameter.numel() for parameter in policy.parameters()) - head * embeddings
    sequences, length = 2 * architecture.pairs, PROMPT + RESPONSE
    attention = 12 * settings["num_hidden_layers"] * settings["hidden_size"] * length
    return sequences * (length * (6 * blocks + attention) + RESPONSE * 6 * embeddings)


def peak(device: torch.device) -> float | None:
    """Operations a second that the GPU's maker states; None where it is not known here."""
    if device.type != "cuda":
        return None
    return next((value for name, value in PEAK.items() if name in torch.cuda.get_device_name()), None)


# --- the study -------------------------------------------------------------------------------------


def study(report: Report, name: str, architecture: Architecture, rounds: int, world: World, *, bar: bool) -> None:
    """One architecture: its table, and its claims where there is a bar."""
    on_gpu = world.device.type == "cuda"
    policy = build(architecture, world.device)
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    work = operations(policy, architecture)
    shard(policy, world, "bfloat16" if on_gpu else "float32")
    rows = random_rows(architecture)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    whole = timed(steps(policy, rows, architecture.accumulation, world), rounds, world.device)
    memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    del policy

    generator = torch.Generator().manual_seed(0)
    logps = SPREAD / 2**0.5 * torch.randn(len(rows), 2, generator=generator)
    given = GivenLogProbs(logps.to(world.device))
    rows = [row.with_reference((0.0, 0.0)) for row in rows]
    alone = timed(steps(given, rows, architecture.accumulation, world), 20 * rounds, world.device)

    report.section(f"{name}: {parameters / 1e6:,.0f} million parameters, {architecture.pairs} pairs")
    step = statistics.median(whole[DPO])
    table = []
    for method in METHODS:
        ratio, low, high = median_interval([a / b for a, b in zip(whole[method], whole[DPO], strict=True)])
        over = [(a - b) / step for a, b in zip(alone[method], alone[DPO], strict=True)]
        share, share_low, share_high = median_interval(over)
        if method != DPO and bar:
            report.claim(
                method,
                f"loss and strength update take at most {BAR:.1%} of the step over DPO's: share, 95 % interval",
                [share, share_low, share_high],
                share_high <= BAR,
            )
        is_dpo = method == DPO
        table.append(
            [
                method, statistics.median(whole[method]), 1000 * statistics.median(alone[method]),
                "" if is_dpo else f"{share:.3%} ({share_low:.3%} to {share_high:.3%})",
                "" if is_dpo else f"{ratio:.4f} ({low:.4f} to {high:.4f})", PAPER.get(method, ""),
            ]
        )  # fmt: skip
    report.table(
        name,
        "Medians; in parentheses 95 % bootstrap intervals over rounds, of differences and ratios within a round",
        [
            "method", "step, s", "apart from the policy, ms", "of the step, over DPO's", "step / DPO's",
            "the paper's ratio",
        ],
        table,
    )  # fmt: skip
    best = peak(world.device)
    report.table(
        f"{name}_rates",
        f"DPO's step, {2 * architecture.pairs} sequences of {PROMPT + RESPONSE} tokens, {architecture.accumulation} "
        "parts a batch",
        ["examples/s", "tokens/s", "operations a step", "operations/s", "model FLOP utilisation", "peak memory, GiB"],
        [
            [
                architecture.pairs / step, 2 * architecture.pairs * (PROMPT + RESPONSE) / step, f"{work:.3g}",
                f"{work / step:.3g}", "" if best is None else work / step / best, "" if memory is None else memory,
            ]
        ],
    )  # fmt: skip


def read_options(description: str | None, quick: str) -> argparse.Namespace | None:
    """The command line of a benchmark of training steps; None, and a word about it, where its device is not there."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each kind")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the reports")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return None
    return options


def main() -> int:
    """Run the study."""
    options = read_options(__doc__, "a tiny policy and no bar")
    if options is None:
        return 0
    on_gpu = options.device == "cuda"
    report = Report(
        "overhead_cuda" if on_gpu else "overhead",
        "What a random strength costs a training step",
        f"Steps of the trainer on {PROMPT} prompt and {RESPONSE} response tokens, RMSprop, the strength learned at "
        f"1e-4. {options.rounds} rounds of one step of each method in random order. Apart from the policy: the same "
        f"step with log-probabilities given in its place ({20 * options.rounds} rounds), that is collation, loss, its "
        "backward pass, metrics, clipping and the strength's update. The ratio of whole steps carries the noise of the "
        "policy's own passes, which a difference of steps without it does not."
        + (f" {torch.cuda.get_device_name()}, bfloat16 over float32 parameters." if on_gpu else ""),
        "transformers",
        "pyro-ppl",
    )
    with join(options.device, "bfloat16" if on_gpu else "float32") as world:
        for name, architecture in (QUICK if options.quick else CUDA if on_gpu else CPU).items():
            study(report, name, architecture, options.rounds, world, bar=not on_gpu and not options.quick)
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
