"""Estimation on a CUDA device beside the CPU: the same numbers, and how long they take.

    python validation/cuda.py [--repeats 3] [--out validation/reports]

The data are read from MIXLOGIT_DATA. Without a CUDA device it says so and stops. Writes cuda.md and .json and exits
with 1 if numbers differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mixlogit_align import ImportanceSampling, QuasiMonteCarlo
from mixlogit_align.econometrics import MixedLogitModel, MixedLogitResult, simulate_choices

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _choice_cases import BY_NAME
from _report import REPORTS, Report, data_folder

# Sums are taken in another order: log-likelihoods differ by rounding, estimates by what the search leaves.
LOGLIK, ESTIMATES, ERRORS = 1e-9, 1e-3, 1e-3


def cases(folder: Path) -> dict[str, tuple[MixedLogitModel, Any]]:
    """Models and rules, of every kind of kernel."""
    read = {name: BY_NAME[name].model(BY_NAME[name].data(folder)) for name in ("P1", "E7", "P5", "P6", "P3c")}
    random = {"time": "-gamma", "comfort": "johnson_sb", "noise": "truncated_normal"}
    truth = {
        "price": -1.0,
        "time.concentration": 2.0,
        "time.rate": 2.0,
        "comfort.loc": 0.3,
        "comfort.scale": 0.8,
        "noise.loc": 0.4,
        "noise.scale": 0.7,
    }
    simulated = simulate_choices(truth, fixed=["price"], random=random, num_individuals=500, num_situations=8, seed=1)
    large = simulate_choices(
        {"price": -1.0, "time.loc": -0.5, "time.scale": 0.8, "comfort.loc": 0.4, "comfort.scale": 0.6},
        fixed=["price"],
        random={"time": "normal", "comfort": "normal"},
        num_individuals=20_000,
        num_situations=10,
        num_alternatives=4,
        seed=2,
    )
    return {
        "electricity, six normals, default rule": (read["P1"], None),
        "electricity, six normals, 500 Halton draws": (read["P1"], QuasiMonteCarlo("halton", 500, seed=None)),
        "electricity, five correlated, default rule": (read["P3c"], None),
        "fishing, two normals, quadrature": (read["E7"], None),
        "artificial, three normals, 1024 Sobol draws": (read["P5"], None),
        "cars, two lognormals, default rule": (read["P6"], None),
        "simulated gamma, Johnson, truncated normal": (
            MixedLogitModel(simulated.data, ["price"], random),
            ImportanceSampling(256),
        ),
        "simulated, 20,000 individuals, 800,000 utilities": (
            MixedLogitModel(large.data, ["price"], {"time": "normal", "comfort": "normal"}),
            None,
        ),
    }


def timed(model: MixedLogitModel, rule: Any, device: str | None, repeats: int) -> tuple[MixedLogitResult, float]:
    """The fit, and the median of its times after a first one."""
    model.fit(integration=rule, device=device, num_redraws=0)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = model.fit(integration=rule, device=device, num_redraws=0)
        if device is not None:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the reports")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return 0
    report = Report(
        "cuda",
        "Estimation on a CUDA device beside the CPU",
        f"{torch.cuda.get_device_name()}; the CPU with {torch.get_num_threads()} threads. Medians of {options.repeats} "
        "fits after a first one, standard errors included.",
        "scipy",
    )
    rows = []
    for name, (model, rule) in cases(data_folder("choice")).items():
        here, seconds = timed(model, rule, None, options.repeats)
        there, on_device = timed(model, rule, "cuda", options.repeats)
        off = max(abs(there.params[key] - value) / here.std_errors[key] for key, value in here.params.items())
        errors = max(abs(there.std_errors[key] / value - 1.0) for key, value in here.std_errors.items())
        loglik = abs(there.loglik / here.loglik - 1.0)
        report.claim(name, "both converged", here.converged and there.converged, here.converged and there.converged)
        report.claim(name, f"log-likelihoods the same to {LOGLIK:g}, relative", loglik, loglik <= LOGLIK)
        report.claim(name, f"estimates the same to {ESTIMATES:g} standard errors", off, off <= ESTIMATES)
        report.claim(name, f"standard errors the same to {ERRORS:g}, relative", errors, errors <= ERRORS)
        rows.append([name, here.integration.rule, here.loglik, seconds, on_device, seconds / on_device])
    columns = ["case", "rule", "log-likelihood", "CPU, s", "CUDA, s", "ratio"]
    report.table("times", "Times of a fit", columns, rows)
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
