"""Estimation with several random coefficients: time, time to accuracy, memory and growth, beside xlogit.

    python validation/benchmarks/estimation_speed.py [--quick] [--threads 2] [--repeats 5] [--out validation/reports]

The data are read from MIXLOGIT_DATA. Every measurement has a process of its own. biogeme and jaxlogit run by this
interpreter, or by the one that MIXLOGIT_PEERS names; where they are not installed the report says so. Writes
estimation_speed.md, .json and .png and exits with 1 if a bar is missed.
"""

# N individuals, T situations, J alternatives, K draws, P parameters.

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _choice_cases import BY_NAME, ChoiceCase
from _report import REPORTS, Report, data_folder

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
DRAWS = 500
ACCURATE = "P1"  # the case of the time to accuracy
CENTRED, HALTON, SEEDS = (16, 32, 64, 128), (500, 1000, 2000), 8
REFERENCE_DRAWS, REFERENCES = 2048, 6
GROWTH = {"N": (250, 500, 1000, 2000), "T": (5, 10, 20, 40), "J": (2, 4, 8, 16), "K": (64, 128, 256, 512)}
USUAL = {"N": 500, "T": 10, "J": 4, "K": 128}
# The bars and the aims.
SAME, FASTER, AIM_FASTER, TO_ACCURACY, AIM_TO_ACCURACY = 1e-6, 10.0, 20.0, 50.0, 100.0


# ---------------------------------------------------------------------- measurements, each in a process of its own


class Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def held() -> float:
    """MB of memory that the process holds."""
    return next(
        int(line.split()[1]) / 1024.0
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )


def most_held() -> float:
    """MB of memory that the process has held at the most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def equal_start(case: ChoiceCase, folder: Path) -> dict[str, float]:
    """xlogit's own: the conditional logit, and scales of 0.1."""
    import torch

    from mixlogit_align.econometrics import MixedLogitModel

    torch.set_num_threads(1)
    logit = MixedLogitModel(case.data(folder), case.variables).fit().params
    return {
        **{f"{name}.loc" if name in case.random else name: value for name, value in logit.items()},
        **{f"{name}.scale": 0.1 for name in case.random},
    }


def ours(
    case_name: str, folder: Path, start: dict[str, float] | None, rules: list[tuple[str, int, int | None]], repeats: int
) -> list[dict[str, Any]]:
    """Fits by every rule (kind, draws, seed); kind "default": no rule is named."""
    import torch

    from mixlogit_align import ImportanceSampling, QuasiMonteCarlo

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    case = BY_NAME[case_name]
    frame = case.frame(folder)
    before = held()
    found = []
    for kind, draws, seed in rules:
        rule: Any = None
        if kind == "halton":
            rule = QuasiMonteCarlo("halton", draws, seed=None)
        elif kind == "centred":
            rule = ImportanceSampling(draws, seed=seed)
        preparation, fits = [], []
        for _ in range(1 + repeats if not found else repeats):  # the very first loads libraries
            clock = Clock()
            model = case.model(case.read(frame))
            preparation.append(clock.seconds())
            clock = Clock()
            result = model.fit(integration=rule, start=start, num_redraws=0)
            fits.append(clock.seconds())
        found.append(
            {
                "kind": kind,
                "draws": draws,
                "seed": seed,
                "first": fits[0][0] if not found else None,
                "preparation": statistics.median(wall for wall, _ in preparation[-repeats:]),
                "wall": statistics.median(wall for wall, _ in fits[-repeats:]),
                "cpu": statistics.median(cpu for _, cpu in fits[-repeats:]),
                "walls": [wall for wall, _ in fits[-repeats:]],
                "loglik": result.loglik,
                "params": result.params,
                "std_errors": result.std_errors,
                "converged": result.converged,
                "evaluations": result.evaluations,
                "rule": result.integration.rule,
                "peak": most_held() - before,
            }
        )
    return found


def xlogits(case_name: str, folder: Path, start: dict[str, float], draws: int, repeats: int) -> dict[str, Any]:
    """xlogit's fits with the optimiser that is its default; its first run loads nothing that is not there."""
    case = BY_NAME[case_name]
    frame = case.frame(folder)
    import xlogit  # noqa: F401  (before the memory is read)

    before = held()
    preparation, fits = [], []
    for _ in range(repeats):
        clock = Clock()
        peer = case.beside(frame)
        preparation.append(clock.seconds()[0])
        clock = Clock()
        model = peer.fit(draws, start)
        fits.append(clock.seconds())
    params = peer.params(model)
    return {
        "kind": "xlogit",
        "draws": draws,
        "preparation": statistics.median(preparation),
        "wall": statistics.median(wall for wall, _ in fits),
        "cpu": statistics.median(cpu for _, cpu in fits),
        "walls": [wall for wall, _ in fits],
        "loglik": float(model.loglikelihood),
        # a scale's sign is a pattern of draws
        "params": {name: abs(value) if name.endswith(".scale") else value for name, value in params.items()},
        "signs": sum(value < 0.0 for name, value in params.items() if name.endswith(".scale")),
        "converged": bool(model.convergence),
        "evaluations": int(model.total_fun_eval) if hasattr(model, "total_fun_eval") else None,
        "peak": most_held() - before,
    }


def grown(sizes: dict[str, int], repeats: int) -> dict[str, Any]:
    """One of our fits to a simulated panel, four normal coefficients."""
    import numpy as np
    import torch

    from mixlogit_align import ImportanceSampling
    from mixlogit_align.econometrics import ChoiceData, MixedLogitModel

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    n, t, j, k = (sizes[letter] for letter in "NTJK")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n * t, j, 4))
    beta = [1.0, -1.0, 0.5, 0.5] + rng.standard_normal((n, 4)) * [0.5, 0.5, 1.0, 0.3]
    individual = np.repeat(np.arange(n), t)
    utilities = (x * beta[individual][:, None]).sum(-1) + rng.gumbel(size=(n * t, j))
    names = tuple("abcd")
    data = ChoiceData(
        attributes=torch.from_numpy(x),
        available=torch.ones(n * t, j, dtype=torch.bool),
        choice=torch.from_numpy(utilities.argmax(1)),
        individual=torch.from_numpy(individual),
        weights=torch.ones(n, dtype=torch.float64),
        variables=names,
        alternatives=tuple(range(j)),
        individuals=tuple(range(n)),
        is_panel=True,
    )
    before, walls = held(), []
    for _ in range(1 + repeats):
        clock = Clock()
        result = MixedLogitModel(data, random=dict.fromkeys(names, "normal")).fit(
            integration=ImportanceSampling(k, prior_share=0.1), num_redraws=0
        )
        walls.append(clock.seconds()[0])
    return {
        "wall": statistics.median(walls[1:]),
        "evaluations": result.evaluations,
        "converged": result.converged,
        "peak": most_held() - before,
    }


def apart(measurement: Any, *arguments: Any) -> Any:
    """The measurement in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measurement, *arguments).result()


# ---------------------------------------------------------------------- the studies


def same_draws(report: Report, folder: Path, starts: dict[str, dict[str, float]], repeats: int) -> None:
    """The same function of the parameters, maximised."""
    report.section(
        f"Same draws, {DRAWS} Halton",
        "Both begin at the conditional logit with scales of 0.1 and compute standard errors. Data preparation: from "
        "the table in memory to what is fitted; the fit makes its draws itself. Medians; the first fit here, "
        "which loads libraries, is told apart. Nothing is compiled.",
    )
    rows = []
    for name, start in starts.items():
        case = BY_NAME[name]
        (here,) = apart(ours, name, folder, start, [("halton", DRAWS, None)], repeats)
        there = apart(xlogits, name, folder, start, DRAWS, max(1, min(3, repeats)))
        for who, one in (("here", here), ("xlogit", there)):
            rows.append(
                [
                    case.title,
                    who,
                    one["preparation"],
                    one["wall"],
                    one["cpu"],
                    one.get("first") or "",
                    f"{min(one['walls']):.3g} to {max(one['walls']):.3g}",
                    f"{one['loglik']:.7f}",
                    one["converged"],
                    one["evaluations"],
                    one["peak"],
                ]
            )
        gap, ratio = abs(here["loglik"] - there["loglik"]), there["wall"] / here["wall"]
        report.claim(case.title, f"log-likelihoods within {SAME:g} of each other", gap, gap <= SAME)
        report.claim(
            case.title, f"the fit is at least {FASTER:g} times as fast (aim: {AIM_FASTER:g})", ratio, ratio >= FASTER
        )
        report.text(f"In CPU time: {there['cpu'] / here['cpu']:.1f} times.")
    columns = ["case", "", "data preparation, s", "fit, s", "fit, CPU s", "first fit, s", "fastest to slowest, s"]
    columns += ["log-likelihood", "converged", "evaluations", "peak memory, MB"]
    report.table("same_draws", "One fit", columns, rows)


def to_accuracy(report: Report, folder: Path, start: dict[str, float], quick: bool) -> None:
    """How long until the estimates are near those without simulation error."""
    case = BY_NAME[ACCURATE]
    draws, count = (256, 3) if quick else (REFERENCE_DRAWS, REFERENCES)
    references = apart(ours, ACCURATE, folder, None, [("centred", draws, 1000 + i) for i in range(count)], 1)
    names = list(references[0]["params"])
    centre = {name: statistics.fmean(one["params"][name] for one in references) for name in names}
    errors = {name: statistics.fmean(one["std_errors"][name] for one in references) for name in names}

    def off(params: dict[str, float]) -> float:
        """Root mean square over parameters, in standard errors."""
        return math.sqrt(statistics.fmean(((params[name] - centre[name]) / errors[name]) ** 2 for name in names))

    own = math.sqrt(statistics.fmean(off(one["params"]) ** 2 for one in references) / (count - 1))
    report.section(
        "Time to accuracy",
        f"{case.title}. The reference is the mean of {count} fits with {draws} centred draws, of mean log-likelihood "
        f"{statistics.fmean(one['loglik'] for one in references):.4f}; its own error is {own:.4f} standard errors. "
        "Errors of estimates are root mean squares over parameters (and over seeds), in standard errors; times are "
        "medians over seeds. Fits here begin from their default start, xlogit's from the conditional logit with scales "
        "of 0.1; all compute standard errors.",
    )
    seeds = range(3 if quick else SEEDS)
    rows, here = [], []
    for k in CENTRED:
        fits = apart(ours, ACCURATE, folder, None, [("centred", k, 0), *(("centred", k, seed) for seed in seeds)], 1)[
            1:
        ]
        here.append((f"centred draws, {k}", fits))
    # the first loads libraries
    here.append(("default rule", apart(ours, ACCURATE, folder, None, [("default", 0, None)] * 2, 3)[1:]))
    there = [
        (f"xlogit, {k} Halton draws", [apart(xlogits, ACCURATE, folder, start, k, 1)])
        for k in (HALTON[:2] if quick else HALTON)
    ]
    measured = {}
    for who, fits in (*here, *there):
        measured[who] = (
            math.sqrt(statistics.fmean(off(one["params"]) ** 2 for one in fits)),
            statistics.median(one["wall"] for one in fits),
            statistics.median(one["cpu"] for one in fits),
        )
        worst = max(off(one["params"]) for one in fits)
        rows.append([who, len(fits), *measured[who], worst, all(one["converged"] for one in fits)])
    columns = ["", "fits", "error of estimates, standard errors", "wall s", "CPU s", "largest error of a fit"]
    report.table("accuracy", "Accuracy and time", [*columns, "converged"], rows)
    bar, wall, cpu = measured["xlogit, 1000 Halton draws"]
    better = {who: values for who, values in measured.items() if not who.startswith("xlogit") and values[0] < bar}
    fastest = min(better, key=lambda who: better[who][1], default="")
    if not fastest:
        report.claim("time to accuracy", "some fit here is nearer than xlogit with 1000 draws", "none", False)
        return
    ratio = wall / better[fastest][1]
    report.claim(
        "time to accuracy",
        f"nearer than xlogit with 1000 draws in at least {TO_ACCURACY:g} times less time "
        f"(aim: {AIM_TO_ACCURACY:g}): {fastest}",
        ratio,
        ratio >= TO_ACCURACY,
    )
    report.text(f"In CPU time: {cpu / better[fastest][2]:.0f} times.")
    chosen = measured["default rule"]
    report.text(
        f"The default rule: {wall / chosen[1]:.0f} times less time than xlogit with 1000 draws ({cpu / chosen[2]:.0f} "
        f"in CPU time), its error {bar / chosen[0]:.1f} times smaller."
    )


def memory(report: Report, folder: Path, start: dict[str, float], quick: bool) -> None:
    """What a fit holds at the most, beyond libraries and the table."""
    report.section(
        "Peak memory", "Of the process at the most, beyond what it held with libraries and the table loaded."
    )
    case, draws = BY_NAME[ACCURATE], (DRAWS,) if quick else (DRAWS, 1000)
    rows = []
    for k in draws:
        (here,) = apart(ours, ACCURATE, folder, start, [("halton", k, None)], 1)
        there = apart(xlogits, ACCURATE, folder, start, k, 1)
        rows.append([f"{k} Halton draws", here["peak"], there["peak"], there["peak"] / here["peak"]])
        report.claim(
            f"{case.title}, {k} draws", "less than xlogit holds", rows[-1][3], bool(here["peak"] < there["peak"])
        )
    (default,) = apart(ours, ACCURATE, folder, None, [("default", 0, None)], 1)
    rows.append([f"default rule: {default['rule']}", default["peak"], "", ""])
    report.table("memory", case.title, ["", "here, MB", "xlogit, MB", "ratio"], rows)


def growth(report: Report, folder: Path, repeats: int, quick: bool) -> None:
    """Time as one size changes, the others as usual."""
    report.section(
        "Growth",
        "Simulated panels, four normal coefficients, centred draws; one size changes and the others are "
        + ", ".join(f"{letter} = {value}" for letter, value in USUAL.items())
        + ": N individuals, T situations, J alternatives, K draws.",
    )
    rows, curves = [], {}
    for letter, values in GROWTH.items():
        chosen = values[:2] if quick else values
        found = [apart(grown, USUAL | {letter: value}, repeats) for value in chosen]
        curves[letter] = (chosen, [one["wall"] for one in found])
        slope = math.log(found[-1]["wall"] / found[0]["wall"]) / math.log(chosen[-1] / chosen[0])
        for value, one in zip(chosen, found, strict=True):
            last = f"{slope:.2f}" if value == chosen[-1] else ""
            rows.append([letter, value, one["wall"], one["evaluations"], one["peak"], one["converged"], last])
    columns = ["size", "value", "fit, s", "evaluations", "peak memory, MB", "converged", "power of growth"]
    report.table("growth", "Time of a fit", columns, rows)
    report.text("![time of a fit by N, T, J and K](estimation_speed.png)")
    _plot(curves, folder / "estimation_speed.png")


def _plot(curves: dict[str, tuple[Any, list[float]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    words = {"N": "individuals N", "T": "situations T", "J": "alternatives J", "K": "draws K"}
    figure, axes = plt.subplots(1, len(curves), figsize=(11, 3), sharey=True)
    for axis, (letter, (values, walls)) in zip(axes, curves.items(), strict=True):
        axis.loglog(values, walls, "o-")
        axis.loglog(values, [walls[0] * value / values[0] for value in values], ":", color="grey")
        axis.set_xlabel(words[letter])
        axis.set_xticks(values, map(str, values))
        axis.set_yticks([0.1, 0.2, 0.5, 1.0, 2.0, 5.0], ["0.1", "0.2", "0.5", "1", "2", "5"])
        axis.minorticks_off()
    least = min(min(walls) for _, walls in curves.values())
    most = max(walls[0] * values[-1] / values[0] for values, walls in curves.values())
    axes[0].set_ylim(0.8 * least, 1.2 * most)
    axes[0].set_ylabel("seconds of a fit")
    figure.suptitle("Time of a fit; dotted: in proportion")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def others(report: Report, folder: Path, start: dict[str, float], quick: bool) -> None:
    """biogeme and jaxlogit, where they are installed."""
    import numpy as np

    case, draws = BY_NAME[ACCURATE], 20 if quick else DRAWS
    limit = 120 if quick else 1800
    interpreter = os.environ.get("MIXLOGIT_PEERS", sys.executable)
    report.section(
        "biogeme and jaxlogit",
        f"{case.title}, {draws} draws, from the conditional logit with scales of 0.1, standard errors included; each "
        f"stopped after {limit} s. biogeme draws its own Latin hypercube, so that its log-likelihood is of another "
        "sample of draws; jaxlogit's first fit, which compiles, is told apart.",
    )
    frame, names = case.frame(folder), list(case.random)
    rows = []
    (here,) = apart(ours, ACCURATE, folder, start, [("halton", draws, None)], 3)
    rows.append(["here", "", here["wall"], here["first"], f"{here['loglik']:.4f}", ""])
    for name, repeats in (("jaxlogit", 1), ("biogeme", 1)):
        known = subprocess.run([interpreter, "-c", f"import {name}"], capture_output=True, check=False)
        if known.returncode:
            rows.append([name, "not installed", "", "", "", ""])
            continue
        with tempfile.TemporaryDirectory() as work:
            source, target = Path(work) / "in.npz", Path(work) / "out.json"
            np.savez(
                source,
                x=frame[names].to_numpy(float),
                choice=frame["choice"].to_numpy().astype(int),
                individual=frame[case.individual].to_numpy(),
                start=np.array([start[f"{v}.{part}"] for part in ("loc", "scale") for v in names]),
                names=np.array(names),
                alternatives=frame["alt"].nunique(),
                draws=draws,
                repeats=repeats,
            )
            script = Path(__file__).resolve().with_name("_peers.py")
            try:
                done = subprocess.run(
                    [interpreter, script, name, source, target], cwd=work, capture_output=True, text=True,
                    timeout=limit, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                rows.append([name, f"stopped after {limit} s", "", "", "", ""])
                continue
            if done.returncode:
                rows.append([name, f"failed: {done.stderr.strip().splitlines()[-1]}", "", "", "", ""])
                continue
            found = json.loads(target.read_text())
        seconds = statistics.median(found["seconds"][-repeats:])
        first = found["seconds"][0] if len(found["seconds"]) > repeats else ""
        rows.append([name, found["version"], seconds, first, f"{found['loglik']:.4f}", f"{seconds / here['wall']:.0f}"])
    columns = ["", "version", "fit, s", "first fit, s", "log-likelihood", "times the time here"]
    report.table("others", case.title, columns, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short check: bars are not meant to hold")
    parser.add_argument("--threads", type=int, default=2, help="of every process")
    parser.add_argument("--repeats", type=int, default=5, help="fits whose median is taken; of xlogit at most 3")
    parser.add_argument("--only", nargs="+", help="some of: same accuracy memory growth others")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the reports")
    options = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS, str(options.threads)))
    folder, repeats = data_folder("choice"), 1 if options.quick else options.repeats
    report = Report(
        "estimation_speed",
        "Speed of estimation",
        f"Estimation of several random coefficients, {options.threads} threads for each package, one run; every ratio "
        "is of times in this report.",
        "xlogit",
        "numpy",
    )
    electricity = apart(equal_start, BY_NAME[ACCURATE], folder)
    starts = {"P1b": electricity, "P5": apart(equal_start, BY_NAME["P5"], folder)}
    studies = {
        "same": partial(same_draws, report, folder, starts, repeats),
        "accuracy": partial(to_accuracy, report, folder, electricity, options.quick),
        "memory": partial(memory, report, folder, electricity, options.quick),
        "growth": partial(growth, report, options.out, min(repeats, 3), options.quick),
        "others": partial(others, report, folder, electricity, options.quick),
    }
    for name, study in studies.items():
        if options.only is None or name in options.only:
            start = time.perf_counter()
            study()
            print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
