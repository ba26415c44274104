"""What compiling the transformer blocks gains a training step, what it costs before, and how near the two agree.

    python validation/benchmarks/compile.py [--device cuda] [--rounds 20] [--quick] [--out validation/reports]

Steps are the trainer's own, of DPO, on the policies of overhead.py: one as it is and one compiled, with equal weights
and on one batch. Every round takes one step of each in random order, and a ratio is taken within a round. The time of
compiling is told apart. Quick: a tiny policy, to see that it runs. Writes compile.json and .md (compile_cuda on a GPU)
and exits with 1 where the two do not agree, or another length is compiled anew.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import torch
from overhead import (
    CPU,
    CUDA,
    DPO,
    PROMPT,
    QUICK,
    RESPONSE,
    Architecture,
    build,
    median_interval,
    random_rows,
    read_options,
    steps,
)
from overhead import timed as timed_steps
from torch import Tensor
from torch._inductor import config as inductor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _report import Report

from mixlogit_align.alignment import SequenceLogProbs
from mixlogit_align.alignment.compilation import CompileClock, compile_blocks, compiling, require_compiler, try_compiled
from mixlogit_align.alignment.data.batches import Batch, Collator
from mixlogit_align.alignment.parallel import World, join, shard

PLAIN, COMPILED = "as they are", "compiled"
GPU = {"Llama-3.2-1B": CUDA["Llama-3.2-1B"]}  # of the larger one, two do not fit beside each other
# Float32: rounding of 6e-8 through some layers and sums over 64 tokens of 10 nats; bfloat16: of 4e-3.
LIMITS = {"float32": (1e-2, 1e-4), "bfloat16": (1.0, 0.1)}


def gradient(policy: SequenceLogProbs, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probabilities, and the gradient of their sum as one vector."""
    logps = policy(batch.input_ids, batch.response_mask)
    logps.sum().backward()
    parts = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in policy.parameters()]
    joined = torch.cat([part.flatten().double() for part in parts if part is not None])
    policy.zero_grad(set_to_none=True)
    return logps.detach(), joined


def study(
    report: Report, name: str, architecture: Architecture, rounds: int, world: World, clock: CompileClock
) -> None:
    """One architecture: that the two agree, and how long their steps take."""
    precision = "bfloat16" if world.device.type == "cuda" else "float32"
    rows = random_rows(architecture)
    batch = Collator(pad_id=0, device=world.device)(rows)
    half = batch.input_ids.shape[-1] - RESPONSE // 2
    policies = {}
    for kind in (PLAIN, COMPILED):
        policy = build(architecture, world.device)
        if kind == COMPILED:
            compile_blocks(policy)
        shard(policy, world, precision)
        policies[kind] = policy
    nats, share = LIMITS[precision]
    try_compiled(policies[COMPILED], batch, world, limit=nats, training=True)
    took = clock.seconds

    report.section(f"{name}: {sum(p.numel() for p in policy.parameters()) / 1e6:,.0f} million parameters, {precision}")
    (logps, slope), (found, other) = (gradient(policies[kind], batch) for kind in (PLAIN, COMPILED))
    apart = (found - logps).abs().max().item()
    report.claim(name, f"log-probabilities of responses agree to {nats} nats", apart, apart <= nats)
    apart = ((other - slope).norm() / slope.norm()).item()
    report.claim(name, f"gradients agree to a relative {share} of their norm", apart, apart <= share)
    shorter = (batch.input_ids[:-1, :, :half], batch.response_mask[:-1, :, :half])
    with torch.no_grad():
        policies[COMPILED](*shorter)
    again = clock.seconds - took
    report.claim(name, "fewer and shorter sequences compile nothing: seconds", again, again == 0)

    methods = {kind: steps(policy, rows, architecture.accumulation, world)[DPO] for kind, policy in policies.items()}
    seconds = timed_steps(methods, rounds, world.device)
    ratio, low, high = median_interval([a / b for a, b in zip(seconds[PLAIN], seconds[COMPILED], strict=True)])
    plain, compiled = (statistics.median(seconds[kind]) for kind in (PLAIN, COMPILED))
    gain = plain - compiled
    report.table(
        name,
        f"Median of a step; in parentheses the 95 % bootstrap interval over {rounds} rounds, of ratios within a round",
        ["blocks", "step, s", "examples/s", "times as fast", "compiling, s", "steps until that is won back"],
        [
            [PLAIN, plain, architecture.pairs / plain, "", "", ""],
            [
                COMPILED, compiled, architecture.pairs / compiled, f"{ratio:.3f} ({low:.3f} to {high:.3f})", took,
                f"{took / gain:.0f}" if gain > 0 else "never",
            ],
        ],
    )  # fmt: skip


def main() -> int:
    """Run the study."""
    options = read_options(__doc__, "a tiny policy")
    if options is None:
        return 0
    on_gpu = options.device == "cuda"
    report = Report(
        "compile_cuda" if on_gpu else "compile",
        "What compiled transformer blocks gain a training step",
        f"Steps of the trainer on pairs of {PROMPT} prompt and {RESPONSE} response tokens, DPO, RMSprop: "
        f"{options.rounds} rounds of one step with compiled blocks and one without, in random order. Compiling is what "
        "torch took before the first step, for passes with and without gradients; its cache on the disk was left out."
        + (f" {torch.cuda.get_device_name()}, bfloat16 over float32 parameters." if on_gpu else ""),
        "transformers",
    )
    with join(options.device, "bfloat16" if on_gpu else "float32") as world:
        require_compiler(world)
        for name, architecture in (QUICK if options.quick else GPU if on_gpu else CPU).items():
            with compiling() as clock, inductor.patch(force_disable_caches=True):
                study(report, name, architecture, options.rounds, world, clock)
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
