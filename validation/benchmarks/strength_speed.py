"""A lognormal strength from 1e5 and 1e6 comparisons: time, accuracy and memory, beside xlogit at 1e5.

    python validation/benchmarks/strength_speed.py [--skip-xlogit] [--repeats 5] [--out validation/reports]

Every measurement has a process of its own, with one thread. A fit is timed on a new model, the first one in a process
apart: it loads libraries. The log-likelihood is held against quadrature of every comparison with 384 nodes. xlogit fits
once, with 500 Halton draws and L-BFGS-B, on two rows a comparison. Writes strength_speed.json and strength_speed.md and
exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _report import REPORTS, Report

COUNTS = (100_000, 1_000_000)
LOC, SCALE, SPREAD = 0.0, 0.7, 1.5
DRAWS = 500
NODES, PART = 384, 2000
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# The bars.
FASTER, ERROR, GROWTH = 250.0, 1e-5, 12.0


def comparisons(count: int) -> Any:
    """Utility differences (count,) in favour of what was chosen: N(0, SPREAD^2) before the choice."""
    import numpy as np

    rng = np.random.default_rng(0)
    difference = SPREAD * rng.standard_normal(count)
    strength = np.exp(LOC + SCALE * rng.standard_normal(count))
    chosen = rng.random(count) < 1.0 / (1.0 + np.exp(-strength * difference))
    return np.where(chosen, difference, -difference)


def memory(field: str) -> float:
    """MB: VmRSS, held now, or VmHWM, held at the most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024.0
    return float("nan")


def ours(count: int, repeats: int) -> dict[str, Any]:
    """Reading, construction and fit in seconds, the estimates, and the error of the log-likelihood."""
    import pandas as pd
    import torch

    from mixlogit_align import MixedLogit, Quadrature
    from mixlogit_align.econometrics import ChoiceData, MixedLogitModel

    difference = comparisons(count)
    frame = pd.DataFrame({"logratio_diff": difference})
    before = memory("VmRSS")
    start = time.perf_counter()
    data = ChoiceData.from_logratios(frame)
    reading = time.perf_counter() - start
    construction, fit = [], []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        model = MixedLogitModel(data, random={"logratio_diff": "lognormal"})
        built = time.perf_counter()
        result = model.fit()
        fit.append(time.perf_counter() - built)
        construction.append(built - start)
    peak = memory("VmHWM") - before
    parts = torch.from_numpy(difference).split(PART)
    with torch.no_grad():
        each = [MixedLogit(part, result.mixing, Quadrature(NODES)).log_prob(torch.ones(())).sum() for part in parts]
    exact = math.fsum(float(one) for one in each)
    names = ("logratio_diff.loc", "logratio_diff.scale")
    return {
        "reading": reading,
        "construction": statistics.median(construction[1:]),
        "fit": statistics.median(fit[1:]),
        "fastest": min(fit[1:]),
        "slowest": max(fit[1:]),
        "first": construction[0] + fit[0],
        "peak": peak,
        "estimates": [result.params[name] for name in names],
        "std_errors": [result.std_errors[name] for name in names],
        "loglik": result.loglik,
        "error": result.loglik - exact,
        "told": result.integration.error,
        "converged": result.converged,
        "evaluations": result.evaluations,
    }


def xlogit(count: int) -> dict[str, Any]:
    """xlogit's fit in seconds, its data arranged beforehand."""
    import numpy as np
    from xlogit import MixedLogit

    difference = comparisons(count)
    x = np.zeros((2 * count, 1))
    x[::2, 0] = difference
    before = memory("VmRSS")
    model = MixedLogit()
    start = time.perf_counter()
    model.fit(
        x,
        np.tile([1, 0], count),
        varnames=["delta"],
        alts=np.tile([1, 2], count),
        ids=np.repeat(np.arange(count), 2),
        randvars={"delta": "ln"},
        n_draws=DRAWS,
        halton=True,
        optim_method="L-BFGS-B",
        verbose=0,
    )
    return {
        "fit": time.perf_counter() - start,
        "peak": memory("VmHWM") - before,
        "estimates": model.coeff_.tolist(),
        "std_errors": model.stderr.tolist(),
        "loglik": float(model.loglikelihood),
        "converged": bool(model.convergence),
    }


def apart(measurement: Any, *arguments: Any) -> dict[str, Any]:
    """The measurement in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        result: dict[str, Any] = pool.submit(measurement, *arguments).result()
        return result


def shown(found: dict[str, Any]) -> str:
    pairs = zip(found["estimates"], found["std_errors"], strict=True)
    return ", ".join(f"{estimate:.4f} ({error:.4f})" for estimate, error in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip-xlogit", action="store_true", help="leave the comparison with xlogit out")
    parser.add_argument("--repeats", type=int, default=5, help="fits whose median is taken")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the reports")
    options = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS, "1"))
    report = Report(
        "strength_speed",
        "Speed of a lognormal strength from many comparisons",
        f"Simulated pairs, one an individual: utility differences N(0, {SPREAD:g}²), strength lognormal({LOC:g}, "
        f"{SCALE:g}). One thread. Model and fit are medians of {options.repeats} in one process after a first, which "
        f"loads libraries; the error of the log-likelihood is against {NODES} nodes for every comparison; peak memory "
        "is what the process holds at most beyond what it held with the table of comparisons in memory.",
        "xlogit",
    )
    found = {count: apart(ours, count, options.repeats) for count in COUNTS}
    few, many = (found[count] for count in COUNTS)
    columns = ["comparisons", "reading the table, s", "model, s", "fit, s", "fit, fastest to slowest, s"]
    columns += ["first model and fit, s", "evaluations", "peak memory, MB"]
    rows = [
        [
            f"{count:.0e}",
            *(one[key] for key in ("reading", "construction", "fit")),
            f"{one['fastest']:.3g} to {one['slowest']:.3g}",
            *(one[key] for key in ("first", "evaluations", "peak")),
        ]
        for count, one in found.items()
    ]
    report.table("time", "Time and memory", columns, rows)
    columns = ["comparisons", "loc, scale (standard errors)", "log-likelihood", "error", "error told by the result"]
    rows = [
        [f"{n:.0e}", shown(one), f"{one['loglik']:.5f}", f"{one['error']:.1e}", f"{one['told']:.1e}"]
        for n, one in found.items()
    ]
    report.table("accuracy", "Estimates and accuracy", columns, rows)
    converged = all(one["converged"] for one in found.values())
    report.claim("both", "the fits converged", converged, converged)
    report.claim(
        "1e5", f"the log-likelihood is off by less than {ERROR:g}", f"{few['error']:.1e}", abs(few["error"]) < ERROR
    )
    growth = many["fit"] / few["fit"]
    report.claim("1e6", f"the fit takes at most {GROWTH:g} times as long as at 1e5", growth, growth <= GROWTH)
    if options.skip_xlogit:
        report.text("xlogit was left out of this run.")
    else:
        peer = apart(xlogit, COUNTS[0])
        columns = ["", "fit, s", "peak memory, MB", "loc, scale (standard errors)", "log-likelihood", "converged"]
        report.table(
            "xlogit",
            f"1e5 comparisons beside xlogit, {DRAWS} Halton draws",
            columns,
            [
                [name, one["fit"], one["peak"], shown(one), f"{one['loglik']:.4f}", one["converged"]]
                for name, one in (("here", few), ("xlogit", peer))
            ],
        )
        ratio = peer["fit"] / few["fit"]
        report.claim("1e5", f"the fit is at least {FASTER:g} times as fast as xlogit's", ratio, ratio >= FASTER)
        everything = peer["fit"] / (few["construction"] + few["fit"])
        report.text(
            f"Model construction counted too: {everything:.0f} times; from the table of comparisons on: "
            f"{peer['fit'] / (few['reading'] + few['construction'] + few['fit']):.0f} times."
        )
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
