"""Twenty times SIGKILL: a run of the command line, killed at random times and while it saves, and resumed.

    python validation/resume.py [--out validation/reports] [--kills 10]

One run on one process and one under torchrun on two are killed ten times each, every second time in the middle of a
save, and finished; each is compared with the same run without a break. Writes resume.json and .md; exits with 1 if a
claim fails. Some minutes on two cores. Linux only: it finds the processes of torchrun in /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixlogit_align.alignment import AlignmentConfig, dump_config
from mixlogit_align.alignment.config import CheckpointConfig, GammaStrength

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.alignment.processes import tiny_policy, tiny_run, trajectory, without_clock
from validation._report import REPORTS, Report

STEPS, BATCH, SAVE_EVERY = 200, 8, 5  # steps of each stage; rows; steps
PATIENCE_SECONDS = 300
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def command(config: AlignmentConfig, processes: int) -> list[str]:
    """The command that begins the run or goes on with it."""
    Path(f"{config.out}.yaml").write_text(dump_config(config))
    launcher = TORCHRUN if processes == 2 else []
    return [
        sys.executable,
        *launcher,
        "-m",
        "mixlogit_align.cli",
        "train",
        "--config",
        f"{config.out}.yaml",
        "--resume",
    ]


def family(process: int) -> list[int]:
    """A process and all that descend from it, the youngest first."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[::-1]


def run(arguments: list[str], log: Path, killed_when: Callable[[], bool] | None = None) -> int:
    """Run a command until it ends, or with all its processes until the condition holds; its exit status."""
    with log.open("a") as output, subprocess.Popen(arguments, stdout=output, stderr=output) as process:
        end = time.monotonic() + PATIENCE_SECONDS
        while process.poll() is None and time.monotonic() < end:
            if killed_when is not None and killed_when():
                break
            time.sleep(0.0005)
        for member in family(process.pid) if process.poll() is None else []:
            os.kill(member, signal.SIGKILL)
    return process.returncode


def logged(config: AlignmentConfig) -> list[dict[str, Any]]:
    """The whole lines of the log; a kill can leave half a line at its end."""
    try:
        text = Path(config.out, "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [without_clock(json.loads(line)) for line in text.split("\n")[:-1]]


def checkpoints(config: AlignmentConfig) -> list[str]:
    """Whole checkpoints and remains of broken saves."""
    return sorted(path.name for path in Path(config.out, "checkpoints").glob("*"))


def study(report: Report, processes: int, folder: Path, kills: int) -> list[list[object]]:
    """The run on so many processes, without a break and killed so many times: its claims, and its rows of the table."""
    name = {1: "one process", 2: "two processes"}[processes]
    policy = tiny_policy(folder / "policy", "gpt_neox")
    stage = {"batch_size": BATCH, "eval_every_examples": 4 * SAVE_EVERY * BATCH}

    def config(run: str) -> AlignmentConfig:
        return tiny_run(
            folder / run, policy, num_train=STEPS * BATCH - 3, num_eval=21, stage=stage, strength=GammaStrength(),
            checkpoint=CheckpointConfig(every_examples=SAVE_EVERY * BATCH, keep=2),
        )  # fmt: skip

    whole, broken = config("whole"), config("broken")
    started = time.monotonic()
    status = run(command(whole, processes), folder / "output")
    print(f"{name}: without a break in {time.monotonic() - started:.0f} s")
    assert status == 0, (folder / "output").read_text()
    truth = trajectory(Path(whole.out))
    chance = random.Random(processes)
    rows: list[list[object]] = []
    for kill in range(kills):
        before = len(logged(broken))
        lines = before + chance.randrange(1, max(2 * (len(truth) - before) // (kills - kill), 2))
        saving = kill % 2 == 1
        delay = chance.uniform(0.0, 0.02)

        def due(lines: int = lines, saving: bool = saving, delay: float = delay) -> bool:
            log = Path(broken.out, "metrics.jsonl")
            if not log.exists() or log.read_bytes().count(b"\n") < lines:
                return False
            if saving and not any(Path(broken.out, "checkpoints").glob(".*")):
                return False
            time.sleep(delay)
            return True

        status = run(command(broken, processes), folder / "output", due)
        assert status == -signal.SIGKILL, (folder / "output").read_text()
        found = logged(broken)
        exact = found == truth[: len(found)]
        last = next((record for record in reversed(found) if record["split"] == "train"), {"stage": "", "step": 0})
        kept = checkpoints(broken)
        print(f"{name}: kill {kill + 1} at {last['stage']} step {last['step']}, {', '.join(kept)}")
        whole_ones, torn = ([x for x in kept if x.startswith(".") is torn] for torn in (False, True))
        lost = steps_done(last["stage"], last["step"]) - max((steps_done(*x.split("-")) for x in whole_ones), default=0)
        rows.append(
            [
                name, kill + 1, "in a save" if saving else "at a step", f"{last['stage']} {last['step']}",
                ", ".join(whole_ones), ", ".join(torn), lost, exact,
            ]
        )  # fmt: skip
    report.claim(
        name,
        "killed: every number logged until then is to the bit that of the run without a break",
        f"{sum(bool(row[-1]) for row in rows)} of {kills}",
        all(row[-1] for row in rows),
    )
    report.claim(
        name,
        f"killed: no more steps to do again than the {SAVE_EVERY} between two checkpoints",
        largest := max(int(str(row[-2])) for row in rows),
        largest <= SAVE_EVERY,
    )
    status = run(command(broken, processes), folder / "output")
    assert status == 0, (folder / "output").read_text()
    report.claim(
        name,
        f"resumed for the last time, after {kills} kills: all records are to the bit those of the run without a break",
        len(trajectory(Path(broken.out))),
        trajectory(Path(broken.out)) == truth,
    )
    results = ["policy/model.safetensors", "strength.json", "log_ratios.parquet", "truth.json"]
    same = [Path(whole.out, result).read_bytes() == Path(broken.out, result).read_bytes() for result in results]
    report.claim(name, "so are " + ", ".join(results), all(same), all(same))
    return rows


def steps_done(stage: str, step: int | str) -> int:
    """Steps since the run began."""
    return int(step) + (STEPS if stage == "preference" else 0)


def main() -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPORTS)
    parser.add_argument("--kills", type=int, default=10, help="of each of the two runs (default: %(default)s)")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    report = Report(
        "resume",
        "SIGKILL at random times and in saves: nothing lost, every resumption exact",
        f"`mixlogit-align train --resume` of a tiny GPT-NeoX, {STEPS} steps of each stage in batches of {BATCH}, a "
        f"checkpoint every {SAVE_EVERY} steps, two kept; on one process, and on two by torchrun (gloo, FSDP2). All "
        "processes of a run are killed at once; every second kill waits for a save to begin.",
        "transformers",
    )
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for processes in (1, 2):
            (Path(folder) / str(processes)).mkdir()
            rows += study(report, processes, Path(folder) / str(processes), arguments.kills)
    report.table(
        "kills",
        "Every kill",
        ["run", "kill", "when", "last step logged", "checkpoints", "broken save", "steps to do again", "log exact"],
        rows,
    )
    return report.finish(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
