"""Every recipe of the paper tried without its data, its weights or a network.

    python validation/recipes.py [--out validation/reports] [--only TEXT]

Runs the dry run of all 108 recipes, or of those whose name has TEXT in it, with every connection refused, and writes
recipes.json and .md; exits with 1 if a claim fails. Some minutes on one core.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

from mixlogit_align.alignment.dry_run import UNITS, DryRun, dry_run
from mixlogit_align.alignment.recipes import MAIN, NAMES, load_recipe

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _report import REPORTS, Report

PROCESSES = (1, 8)
# Numbers of parameters as the models' cards and files say.
PUBLISHED = {
    "pythia-2.8b": 2_775_208_960,
    "llama-3.2-1b": 1_235_814_400,
    "gemma-2b": 2_506_172_416,
    "phi-2": 2_779_683_840,
}
# The policy computes in bfloat16, its reference in float32: the first loss is log 2 up to that difference.
BFLOAT16_NOISE = 1e-2
# How the comments of recipes begin; the first that fits.
ORIGINS = ("[paper", "[DPO reference code]", "[ours] the package's default", "[ours]")


def refuse(*_: Any, **__: Any) -> None:
    """Stands in for every connection."""
    raise AssertionError("a connection was tried")


def try_all(names: list[str]) -> dict[str, DryRun]:
    """The dry runs of all ``names`` that end without an error."""
    found = {}
    begun = time.perf_counter()
    for i, name in enumerate(names, start=1):
        try:
            found[name] = dry_run(load_recipe(name).config(), processes=PROCESSES[-1])
        except Exception as error:  # whatever it is, the claim about all of them fails
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        print(f"{i} of {len(names)}, {time.perf_counter() - begun:.0f} s: {name}", file=sys.stderr, flush=True)
    return found


def origin_of(line: str) -> str:
    """Where a line of a recipe is from, in one of `ORIGINS`."""
    comment = line.partition("  # ")[2]
    return next((origin for origin in ORIGINS if comment.startswith(origin)), "")


def tell_origins(report: Report, names: list[str]) -> None:
    """How many lines of recipes are from where."""
    lines: Counter[str] = Counter()
    for name in names:
        recipe = load_recipe(name)
        lines.update(origin_of(line) for line in recipe.annotated(recipe.config()).splitlines() if "  # " in line)
    report.section("Where the settings are from")
    report.claim("all recipes", "no setting is without its origin", lines[""], lines[""] == 0)
    rows = [
        [f"{origin} ...]" if origin == "[paper" else origin, lines[origin], lines[origin] / lines.total()]
        for origin in ORIGINS
    ]
    report.table("origins", "Settings of all recipes together", ["origin", "settings", "share"], rows)


def tell_models(report: Report, found: dict[str, DryRun]) -> None:
    """Sizes, memory and operations of the models."""
    report.section(
        "Models",
        "Memory is estimated for each process in the preference stage, all sequences of 128 tokens; see "
        "`mixlogit_align.alignment.footprint.training_memory` for the formula. Nothing was measured on a GPU here.",
    )
    rows = []
    for model, published in PUBLISHED.items():
        name = next((name for name in found if f"/{model}/" in name), None)
        if name is None:
            continue
        config = load_recipe(name).config()
        counted = found[name].parameters
        report.claim(model, "the architecture has the published number of parameters", counted, counted == published)
        for processes in PROCESSES:
            stage = (found[name] if processes == PROCESSES[-1] else dry_run(config, processes=processes)).stages
            memory = stage["preference"].memory
            sizes = (memory.parameters, memory.gradients, memory.optimizer, memory.gathered, memory.activations)
            gib = [size / UNITS for size in (*sizes, memory.logits, memory.peak)]
            rows.append([model, counted, processes, *gib, stage["preference"].step_flops / 1e12])
    columns = ["model", "parameters", "processes", "GiB of parameters", "gradients", "optimizer", "gathered"]
    columns += ["activations", "logits", "peak", "TFLOP a step"]
    report.table("models", "Estimates", columns, rows)


def main() -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPORTS)
    parser.add_argument("--only", default="", help="recipes with this in their name")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # alarms, which the small models of a dry run may well raise
    socket.socket.connect = refuse  # type: ignore[method-assign, assignment]
    socket.getaddrinfo = refuse  # type: ignore[assignment]
    names = [name for name in NAMES if arguments.only in name]
    report = Report(
        "recipes",
        "The paper's recipes, tried dry",
        "Two steps of each stage on a small model of the policy's own class and on made-up rows in the data's schema, "
        "every other setting as in the recipe; and what the run itself would take, counted from the architecture. That "
        "a recipe runs says nothing about what it learns.",
        "transformers",
        "tokenizers",
    )
    found = try_all(names)
    report.section("Dry runs")
    claim = "the dry run ends without an error and without a connection"
    report.claim("all recipes", f"{claim}, {len(names)} in all", len(found), len(found) == len(names))
    main_ones, tried = (sum(name in MAIN for name in some) for some in (names, found))
    report.claim("main settings", f"of the paper's Table 1, {main_ones} in all", tried, tried == main_ones)
    first = max(abs(run.tried["preference"][0] - math.log(2)) for run in found.values())
    about = "before the first step the policy is its reference: largest |loss - log 2|"
    report.claim("all recipes", about, first, first < BFLOAT16_NOISE)
    rows = [[name, *run.tried["sft"], *run.tried["preference"], run.seconds] for name, run in found.items()]
    columns = ["recipe", "SFT loss before", "after two steps", "preference loss before", "after two steps", "seconds"]
    tell_origins(report, names)
    tell_models(report, found)
    report.section("All dry runs")
    report.table("recipes", "Held-out losses of the small models", columns, rows)
    return report.finish(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
