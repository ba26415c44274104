"""Reading what recoveries and runs leave, complete or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixlogit_align.alignment.config import AlignmentConfig, StageConfig
from mixlogit_align.errors import InvalidInputError
from mixlogit_align.report import read_evidence
from mixlogit_align.report.files import read_recovery, read_run

from .conftest import DATA, losses, recovery_row, write_recovery, write_run

SFT = AlignmentConfig(out="sft", name="SFT", data=DATA, sft=StageConfig())


def test_a_demonstration_is_read_whole(demonstration: Path) -> None:
    evidence = read_evidence([demonstration])
    assert [recovery.beside_xlogit for recovery in evidence.recoveries] == [True, False]
    assert [run.name for run in evidence.runs] == ["SFT", *2 * ["DPO", "MixDPO <lognormal>", "MixDPO gamma"]]
    assert {world: len(runs) for world, runs in evidence.worlds.items()} == {
        "simulated annotators, strength lognormal, cv 1": 3,
        "simulated annotators, strength the same for all (cv 0)": 3,
    }


def test_series_and_final(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "sft", SFT, losses("sft", [5.0, 3.0, 2.0])))
    assert run.series("sft", "eval", "loss") == ([0, 32, 64], [5.0, 3.0, 2.0])
    assert run.final("sft", "loss") == 2.0
    assert run.final("preference", "loss") is None
    assert run.series("sft", "eval", "rewards/accuracies") == ([], [])


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sft", SFT, losses("sft", [5.0, 3.0]), status="interrupted")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "sft", "split": "ev')
    run = read_run(folder)
    assert (len(run.metrics), run.status, run.strength, run.log_ratios) == (4, "interrupted", None, None)


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sft", SFT, [])
    for name in ("run.json", "metrics.jsonl"):
        (folder / name).unlink()
    run = read_run(folder)
    assert (run.status, list(run.metrics), run.seconds) == ("running", [], 0.0)


def test_largest_z(tmp_path: Path) -> None:
    recovery = read_recovery(write_recovery(tmp_path / "recovery.json", [recovery_row("a", z={"x.loc": -3.5})]))
    assert recovery.largest_z == 3.5
    assert read_recovery(write_recovery(tmp_path / "recovery.json", [])).largest_z == 0.0


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("elsewhere.txt", "", "expected the folder of a run"),
        ("recovery.json", "{", "expected JSON"),
        ("recovery.json", "[]", "expected a JSON object"),
        ("recovery.json", '{"rows": []}', "expected a recovery file"),
    ],
)
def test_what_is_no_evidence_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        read_evidence([tmp_path])
