"""Cost of log_prob and its gradients, by mixing family and rule, in one run of interleaved repeats.

    python validation/benchmarks/speed.py [--device cuda] [--rounds 60] [--no-compile] [--out validation/reports]

Every round times every case once, in random order, so that whatever else the machine does falls on all alike; a ratio
is taken within a round, and its median and quartiles over rounds are reported. Forward and backward, gradients to
utility_diff and to the mixing parameters, as a training step calls it: distributions are built anew each time. Writes
speed.json and speed.md (speed_cuda on a GPU) and exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
import torch.compiler.config
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.utils._python_dispatch import TorchDispatchMode

from mixlogit_align import ClosedForm, FixedDraws, MixedLogit, MonteCarlo, Quadrature

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "oracle"))
from _report import REPORTS, Report
from oracle import Gamma, alternating
from paper import START_GAMMA, START_LOGNORMAL, paper_probability

BATCHES = (64, 4096)
SPREAD = 20.0  # standard deviation of the log-ratio differences
BASELINE = "LogNormal, MonteCarlo(16)"
FIXED = "LogNormal, FixedDraws, 16"
GAMMA = "Gamma, ClosedForm"
LOGNORMAL = "LogNormal, Quadrature"
PAPER = "Gamma, the paper's two zetas"
FLOOR = "logsigmoid(0.1 delta)"
MEASUREMENT = 0.004  # seconds that one timing should last at least, where a call is shorter

LogProb = Callable[..., Tensor]


@dataclass
class Case:
    """A function of tensors that require gradients, and how it is timed."""

    log_prob: LogProb
    inputs: list[Tensor]
    every: int = 1  # rounds between timings
    calls: int = 1
    seconds: dict[int, float] = field(default_factory=dict)  # by round, a call

    def step(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.log_prob(*self.inputs).sum(), self.inputs)


class CountOperations(TorchDispatchMode):
    """Counts what reaches the backend: each is a kernel or a view, and costs about a microsecond to dispatch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


# torch.compile switches the default of validate_args off for the whole process: it is said each time.
def lognormal(rule: Any, validate: bool = True) -> LogProb:
    def log_prob(delta: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        mixing = dist.LogNormal(loc, scale, validate_args=validate)
        return MixedLogit(delta, mixing, rule, validate_args=validate).log_prob(torch.ones_like(delta))

    return log_prob


def gamma(rule: Any, validate: bool = True) -> LogProb:
    def log_prob(delta: Tensor, concentration: Tensor, rate: Tensor) -> Tensor:
        mixing = dist.Gamma(concentration, rate, validate_args=validate)
        return MixedLogit(delta, mixing, rule, validate_args=validate).log_prob(torch.ones_like(delta))

    return log_prob


def bare_monte_carlo(delta: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Eq. 8 as one would write it in a training loop: no checks, torch's own generator, the input's dtype."""
    strength = torch.exp(loc + scale * torch.randn(16, *delta.shape, dtype=delta.dtype, device=delta.device))
    return torch.logsumexp(logsigmoid(strength * delta), 0) - math.log(16.0)


def paper(delta: Tensor, concentration: Tensor, rate: Tensor) -> Tensor:
    return torch.log(paper_probability(delta, concentration, rate))


def utility_diff(batch: int, device: str, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return (SPREAD * torch.randn(batch, generator=generator, dtype=torch.float64)).to(device, dtype)


def cases(batch: int, device: str, dtype: torch.dtype) -> dict[str, Case]:
    """Every case of one batch size."""
    delta = utility_diff(batch, device, dtype)
    base = torch.randn(batch, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)

    def case(log_prob: LogProb, values: Sequence[float], every: int = 1) -> Case:
        inputs = [delta, *(torch.tensor(v, device=device, dtype=dtype) for v in values)]
        return Case(log_prob, [x.clone().requires_grad_() for x in inputs], every)

    return {
        FLOOR: case(lambda x: logsigmoid(0.1 * x), ()),
        "LogNormal, bare torch, 16": case(bare_monte_carlo, START_LOGNORMAL),
        FIXED: case(lognormal(FixedDraws(base)), START_LOGNORMAL),
        BASELINE: case(lognormal(MonteCarlo(16, sharing="row")), START_LOGNORMAL),
        GAMMA: case(gamma(ClosedForm()), START_GAMMA),
        LOGNORMAL: case(lognormal(Quadrature()), START_LOGNORMAL),
        f"{BASELINE}, unchecked": case(lognormal(MonteCarlo(16, sharing="row"), False), START_LOGNORMAL),
        f"{GAMMA}, unchecked": case(gamma(ClosedForm(), False), START_GAMMA),
        f"{LOGNORMAL}, unchecked": case(lognormal(Quadrature(), False), START_LOGNORMAL),
        PAPER: case(paper, START_GAMMA, every=6 if batch > 1000 else 1),
    }


def add_compiled(found: dict[str, Case]) -> dict[str, float]:
    """Add the exact rules under torch.compile; seconds of the first forward and backward, by name.

    Monte Carlo is left out: inductor takes the products of row number and 64-bit constant behind its draws for loop
    indices, whose overflow is undefined in C++, and the compiled function crashes.
    """
    seconds = {}
    for rule in (GAMMA, LOGNORMAL):
        eager, compiled_name = found[f"{rule}, unchecked"], f"{rule}, compiled"
        torch.compiler.reset()
        torch.compiler.config.force_disable_caches = True  # the time to compile is a result
        compiled = Case(torch.compile(eager.log_prob, fullgraph=True, dynamic=False), eager.inputs)
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # inductor's remarks on the machine
            gradients = compiled.step()
        seconds[compiled_name] = time.perf_counter() - start
        for got, expected in zip(gradients, eager.step(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=0.0)
        found[compiled_name] = compiled
    return seconds


def measure(found: dict[str, Case], rounds: int, synchronize: Callable[[], None]) -> None:
    """Fill in ``seconds`` of every case."""

    def timed(case: Case) -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(case.calls):
            case.step()
        synchronize()
        return (time.perf_counter() - start) / case.calls

    for case in found.values():
        for _ in range(2 if case.every > 1 else 5):
            warm = timed(case)
        case.calls = max(1, round(MEASUREMENT / warm))
    order = random.Random(0)
    for turn in range(rounds):
        names = [name for name in found if turn % found[name].every == 0]
        order.shuffle(names)
        for name in names:
            found[name].seconds[turn] = timed(found[name])


def quartiles(case: Case, baseline: Case) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratio within rounds."""
    ratios = [seconds / baseline.seconds[turn] for turn, seconds in case.seconds.items()]
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def shown(ratio: tuple[float, float, float]) -> str:
    low, middle, high = ratio
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def errors(found: dict[str, Case], count: int) -> dict[str, dict[str, float]]:
    """Relative errors of log P and its gradient by delta, on ``count`` elements, against 60-digit references."""
    delta = found[GAMMA].inputs[0].detach()
    rows = range(0, len(delta), len(delta) // count)
    references = [alternating(Gamma, START_GAMMA, float(delta[i]), 1) for i in rows]
    true = np.array([[float(r.log_prob), float(r.by_inputs[0])] for r in references])
    result = {}
    for name in (GAMMA, PAPER):
        case = found[name]
        value = case.log_prob(*case.inputs).detach()
        got = torch.stack((value, case.step()[0]), -1)[list(rows)].cpu().double().numpy()
        error = np.abs(got / true - 1.0)
        result[name] = {
            "log P, largest": float(error[:, 0].max()),
            "log P, median": float(np.median(error[:, 0])),
            "gradient, largest": float(error[:, 1].max()),
            "gradient, median": float(np.median(error[:, 1])),
        }
    return result


def operations(case: Case) -> int:
    with CountOperations() as counter:
        case.step()
    return counter.count


def study(report: Report, batch: int, options: argparse.Namespace) -> None:
    """One batch size: time, table, bars."""
    dtype = getattr(torch, options.dtype)
    found = cases(batch, options.device, dtype)
    counts = {name: operations(case) for name, case in found.items()}
    compile_seconds = {} if options.no_compile else add_compiled(found)
    synchronize = torch.cuda.synchronize if options.device.startswith("cuda") else (lambda: None)
    measure(found, options.rounds, synchronize)

    report.section(f"Batch {batch}")
    rows = []
    for name, case in found.items():
        rows.append(
            [
                name,
                *(f"{1e6 * float(f(list(case.seconds.values()))):.0f}" for f in (np.median, np.min)),
                *(shown(quartiles(case, found[other])) for other in (BASELINE, FIXED, FLOOR)),
                counts.get(name, ""),
                f"{compile_seconds[name]:.0f}" if name in compile_seconds else "",
            ]
        )
    times = ["median, µs", "fastest, µs"]
    ratios = [f"to {BASELINE}", "to FixedDraws", f"to {FLOOR}"]
    caption = f"Forward and backward, {options.rounds} rounds: times of a call, and ratios as median (quartiles)"
    report.table(f"batch_{batch}", caption, ["case", *times, *ratios, "operations", "first compiled call, s"], rows)

    bars = {64: ((GAMMA, 2.5), (LOGNORMAL, 5.0)), 4096: ((GAMMA, 1.0),)}[batch]
    for name, bar in bars:
        ratio = quartiles(found[name], found[BASELINE])
        claim = f"{name} takes at most {bar:g} times {BASELINE}"
        report.claim(f"batch {batch}", claim, shown(ratio), ratio[1] <= bar)
    if batch == max(BATCHES):
        ratio = quartiles(found[PAPER], found[GAMMA])
        claim = "the closed form is at least 250 times faster than the paper's evaluation"
        report.claim(f"batch {batch}", claim, shown(ratio), ratio[1] >= 250.0)
        accuracy = errors(found, 256)
        names = list(accuracy[GAMMA])
        report.table(
            "errors",
            "Relative errors on 256 of the 4096, against 60 digits",
            ["case", *names],
            [[name, *(f"{accuracy[name][what]:.1e}" for what in names)] for name in accuracy],
        )
        factors = {what: accuracy[PAPER][what] / accuracy[GAMMA][what] for what in names}
        report.claim(
            f"batch {batch}",
            "and its errors are at least 1e6 times smaller",
            [f"{what} {factor:.0e}" for what, factor in factors.items()],
            min(factors.values()) >= 1e6,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float64", choices=("float64", "float32"), help="of inputs and parameters")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the reports")
    options = parser.parse_args()
    kind = options.device.split(":")[0]
    report = Report(
        "speed" if kind == "cpu" else f"speed_{kind}",
        "Speed of log_prob and its gradients",
        f"Forward and backward in {options.dtype} (float64 inside), utility differences N(0, {SPREAD:g}²), the paper's "
        f"starts, gradients to utility_diff and the mixing parameters. The baseline, {BASELINE}, draws per row. "
        "‘Unchecked’ is with validate_args=False; ‘bare torch’ is eq. 8 in five lines, without float64, checks or "
        "draws by row; ‘operations’ counts what is dispatched in one forward and backward.",
        "pyro-ppl",
    )
    if kind == "cuda":
        report.provenance["machine"]["device"] = torch.cuda.get_device_name(options.device)
    for batch in BATCHES:
        study(report, batch, options)
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
