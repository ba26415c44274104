"""One run in several ways: on one process, on two, with its batches in parts, killed and resumed.

    python validation/trajectory.py [--out validation/reports]

50 steps of the supervised stage and 50 of the preference stage, in float32, at a learning rate of 1e-4, of a two-layer
policy of each of four architectures. Writes trajectory.json and .md; exits with 1 if a claim fails. Some minutes on two
cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mixlogit_align.alignment import AlignmentConfig, run_alignment
from mixlogit_align.alignment.config import LogNormalStrength, MonteCarloRule

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.alignment.processes import (
    ARCHITECTURES,
    apart,
    largest_differences,
    on_ranks,
    tiny_policy,
    tiny_run,
    trajectory,
)
from validation._report import REPORTS, Report

STEPS, BATCH = 50, 8
ROWS = STEPS * BATCH - 3  # the last batch has five: two processes, or two parts, do not halve it
TOLERANCE = 1e-5
STAGES = ("sft", "preference")
COLUMNS = {
    "loss": ("loss",),
    "gradient norm": ("grad_norm",),
    "strength's gradient norm": ("grad_norm/strength",),
    "strength": ("strength/mean", "strength/sd", "strength/loc", "strength/scale"),
}


@dataclass(frozen=True)
class Killed:
    """A progress that kills its process once so many steps of a stage are done."""

    stage: str
    step: int

    def __call__(self, stage: str, done: int, total: int, metrics: object) -> None:
        if (stage, done) == (self.stage, self.step * BATCH):
            os.kill(os.getpid(), signal.SIGKILL)


def run(config: AlignmentConfig, killed: Killed | None) -> None:
    """A run, or what is left of it."""
    run_alignment(config, resume=True, progress=killed)


def start(size: int, config: AlignmentConfig, killed: Killed | None = None) -> None:
    """A run on processes of its own; a kill ends them all."""
    work: Callable[..., object] = apart if size == 1 else lambda *args, **options: on_ranks(size, *args, **options)
    try:
        work(run, config, killed, seconds=300.0)
    except Exception:
        # the killed process had no time to say that it ended
        if killed is None or json.loads((Path(config.out) / "run.json").read_text())["status"] != "running":
            raise
    else:
        assert killed is None, "the run ended without its kill"


@dataclass(frozen=True)
class Way:
    """How a run is made, and what it must be like.

    Parameters
    ----------
    processes, parts : int
        Parts that every process cuts its share of a batch into.
    like : str
        Name of the way it is compared with.
    killed : Killed or None
    resumed_by : int or None
        Processes that resume it, once it was killed.
    """

    processes: int
    parts: int
    like: str
    killed: Killed | None = None
    resumed_by: int | None = None

    @property
    def exact(self) -> bool:
        """Whether a resumed run must be to the bit the one it is like."""
        return self.resumed_by == self.processes


def ways(chance: random.Random) -> dict[str, Way]:
    """All ways by name, those that others are compared with first."""

    def kill() -> Killed:
        return Killed(chance.choice(STAGES), chance.randrange(1, STEPS))

    return {
        "one process": Way(1, 1, ""),
        "two processes": Way(2, 1, "one process"),
        "one process, two parts": Way(1, 2, "one process"),
        "two processes, two parts": Way(2, 2, "one process"),
        "one process, resumed": Way(1, 1, "one process", kill(), 1),
        "two processes, resumed": Way(2, 1, "two processes", kill(), 2),
        "one process, resumed by two": Way(1, 1, "one process", kill(), 2),
        "two processes, resumed by one": Way(2, 1, "one process", kill(), 1),
    }


def study(report: Report, architecture: str, folder: Path, chance: random.Random) -> list[list[object]]:
    """One architecture's run in all ways: its claims, and its rows of the table."""
    policy = tiny_policy(folder / "policy", architecture)
    rows: list[list[object]] = []
    runs: dict[str, Path] = {}
    for name, way in ways(chance).items():
        runs[name] = folder / name.replace(", ", "_").replace(" ", "_")
        stage = {"batch_size": BATCH, "eval_every_examples": 10 * BATCH, "accumulation": way.parts}
        config = tiny_run(
            runs[name], policy, num_train=ROWS, num_eval=21, stage=stage,
            strength=LogNormalStrength(), integration=MonteCarloRule(num_draws=16),
        )  # fmt: skip
        start(way.processes, config, way.killed)
        if way.resumed_by is not None:
            start(way.resumed_by, config)
        where = f"{way.killed.stage} {way.killed.step}" if way.killed else ""
        print(f"{architecture}: {name} {where}", flush=True)
        if not way.like:
            continue
        one, other = trajectory(runs[way.like]), trajectory(runs[name])
        assert [record["step"] for record in other if record["split"] == "train"] == [*range(1, STEPS + 1)] * 2
        differences = largest_differences(one, other)
        rows.append([architecture, name, way.like, where, *(largest(differences, names) for names in COLUMNS.values())])
        if way.exact:
            files = [run / "policy" / "model.safetensors" for run in (runs[way.like], runs[name])]
            same = one == other and files[0].read_bytes() == files[1].read_bytes()
            what, shown, holds = "to the bit, in every number logged and in the final policy,", same, same
        else:
            shown = max(differences.values())
            what, holds = f"within {TOLERANCE:g} in losses, gradient norms and strength", shown < TOLERANCE
        report.claim(f"{architecture}, {name}", f"{what} the run on {way.like}", shown, holds)
    return rows


def largest(differences: dict[str, float], names: tuple[str, ...]) -> float:
    """The largest difference of metrics of these names, in any stage and split."""
    return max(value for key, value in differences.items() if key.split("/", 2)[2] in names)


def main() -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPORTS)
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = Report(
        "trajectory",
        "One trajectory: processes, parts of a batch, and resumption",
        f"{STEPS} steps of each stage in batches of {BATCH} over {ROWS} rows, float32, RMSprop at 1e-4 for policy and "
        "strength, LogNormal strength by Monte Carlo with 16 draws a pair. Two processes are two ranks of a gloo group "
        "with the policy sharded by FSDP2. A killed run gets SIGKILL at a random step and has a checkpoint every ten. "
        "A difference is relative to the largest value that the metric takes in its stage; that of the strength's "
        "gradient norm, which is what terms of both signs leave over, to the largest loss.",
        "transformers",
    )
    chance = random.Random(0)
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in arguments.architectures:
            rows += study(report, architecture, Path(folder) / architecture, chance)
    report.table(
        "differences",
        "Largest relative differences between trajectories",
        ["architecture", "run", "compared with", "killed after step", *COLUMNS],
        rows,
    )
    return report.finish(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
