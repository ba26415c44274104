"""Accuracy of log P and its gradients on fresh points, against the high-precision oracle run live.

    python validation/accuracy.py [--share 1.0] [--workers 2] [--out validation/reports]

The full size of what the golden files hold a part of: 5,000 Gamma points and more, other families as time allows.
Writes accuracy.md and accuracy.json and exits with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "oracle"))

import generate
import measure
import torch
from generate import Point
from oracle import Reference

ROOT = Path(__file__).resolve().parents[1]
SEED = 20240608  # not the golden files'
POINTS = {
    name: 400 if group.method == "alternating" else 150 if group.kind == "binary" else 30
    for name, group in generate.GROUPS.items()
} | {
    "gamma": 5000,
    "gamma_float32": 1000,
    "lognormal": 1000,
    **dict.fromkeys(("normal", "weibull", "generalized_gamma"), 400),
}


def reference(job: tuple[str, Point]) -> Reference:
    name, point = job
    # 1e-11: the rule's error is about the square of its last change.
    return generate.reference(generate.GROUPS[name], point, stable=1e-11)


def study(name: str, count: int, workers: int) -> dict[str, Any]:
    """Errors of the package on `count` fresh points of a group, and whether they meet the bar."""
    start = time.perf_counter()
    group, bar = generate.GROUPS[name], measure.BARS[name]
    rows = list(generate.points(name, count, SEED))
    jobs = [(name, point) for point in rows]
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            references = list(pool.map(reference, jobs, chunksize=max(1, count // (8 * workers))))
    else:
        references = [reference(job) for job in jobs]
    oracle_seconds = time.perf_counter() - start
    tables = generate.arrays(rows, references)
    dtype = torch.float32 if name.endswith("float32") else torch.float64
    values = measure.evaluate(group.family, group.kind, tables, dtype)
    errors = measure.errors(values, tables, bar)
    names = generate.FAMILIES[group.family].names
    gradients = {
        **{f"by {p}": float(e) for p, e in zip(names, errors.by_params.max(0), strict=True)},
        "by inputs": float(errors.by_inputs.max()),
    }
    strict = {
        **{f"by {p}": float(e) for p, e in zip(names, errors.strict_by_params.max(0), strict=True)},
        "by inputs": float(errors.strict_by_inputs.max()),
    }
    beyond = int((errors.strict_by_params > bar.gradient).sum() + (errors.strict_by_inputs > bar.gradient).sum())
    log_prob = float(errors.log_prob.max())
    return {
        "group": name,
        "points": count,
        "log_prob": log_prob,
        "log_prob_bar": bar.log_prob,
        "gradients": gradients,
        "strict_gradients": strict,
        "strict_entries_beyond": beyond,
        "gradient_entries": int(errors.by_params.size + errors.by_inputs.size),
        "gradient_bar": bar.gradient,
        "seconds": round(oracle_seconds, 1),
        "passed": log_prob <= bar.log_prob and max(gradients.values()) <= bar.gradient,
    }


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]}, {len(models)} cores" if models else platform.processor() or platform.machine()


def commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip() or "no git"


def table_row(row: dict[str, Any]) -> str:
    worst = max(row["gradients"], key=row["gradients"].get)
    cells = [
        row["group"],
        str(row["points"]),
        f"{row['log_prob']:.1e}",
        f"{row['log_prob_bar']:.0e}",
        f"{row['gradients'][worst]:.1e} ({worst})",
        f"{row['gradient_bar']:.0e}",
        f"{row['strict_entries_beyond']} of {row['gradient_entries']}, {max(row['strict_gradients'].values()):.1e}",
        "yes" if row["passed"] else "NO",
    ]
    return f"| {' | '.join(cells)} |"


def markdown(report: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Accuracy against the oracle",
        "",
        f"{report['date']}, commit {report['commit']}, {report['machine']}, "
        + ", ".join(f"{k} {v}" for k, v in report["versions"].items()),
        "",
        f"`{report['command']}`: {report['seconds']:.0f} s, seed {report['seed']}.",
        "",
        "Largest error over the points: relative where the reference exceeds 1e-300 (float32: 1e-37) in size, absolute",
        "below. A gradient's error is relative to at least 1 % of the absolute sum of its contributions (near a sign",
        "change what is left has no accuracy of its own) and, by one of several inputs, to at least 1e-12 of the row's",
        "largest; that by a bound of a truncated normal, to the row's largest by a parameter. *Strict* is without any",
        "of this: how many gradient entries are then beyond the bar, and the largest error.",
        "Ranges of the points: `tests/oracle/generate.py`.",
        "",
        "| group | points | log P | bar | gradients, worst | bar | strict: beyond, worst | passed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [table_row(row) for row in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="share of the points, for a quick look")
    parser.add_argument("--workers", type=int, default=2, help="processes of the oracle")
    parser.add_argument("--out", type=Path, default=ROOT / "validation" / "reports")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, rows = time.perf_counter(), []
    for name, count in POINTS.items():
        rows.append(study(name, max(2, round(options.share * count)), options.workers))
        print(table_row(rows[-1]), flush=True)
    versions = {p: importlib.metadata.version(p) for p in ("torch", "pyro-ppl", "mpmath", "numpy")}
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": cpu(),
        "versions": {"python": platform.python_version(), **versions},
        "command": " ".join(["python", "validation/accuracy.py", *sys.argv[1:]]),
        "seed": SEED,
        "seconds": time.perf_counter() - start,
        "passed": all(row["passed"] for row in rows),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "accuracy.json").write_text(json.dumps({**report, "rows": rows}, indent=1) + "\n")
    (options.out / "accuracy.md").write_text(markdown(report, rows))
    print(markdown(report, rows))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
