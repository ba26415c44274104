"""The verdict: passed, failed, or left open by an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixlogit_align import recovery
from mixlogit_align.report import checks, read_evidence
from mixlogit_align.report.checks import Z_BOUND

from .conftest import DATA, losses, recovery_row, write_preference_run, write_recovery, write_run
from .test_files import SFT


def test_a_good_demonstration_passes(demonstration: Path) -> None:
    found = checks(read_evidence([demonstration]))
    assert [check.passed for check in found] == [True] * 6
    texts = " ".join(check.text for check in found)
    wanted = ["2 of 2 cases", "worst estimate 2.3 standard errors from the truth (allowed: 4.5)",
              "log-likelihood to 3e-15", "gradient to 4e-14", "to 5e-09",
              "SFT 5.9534 to 0.6638", "DPO 0.6931 to 0.5221"]  # fmt: skip
    assert [words for words in wanted if words not in texts] == []


@pytest.mark.parametrize(
    "rows, passed, expected",
    [
        ([recovery_row("a")], True, True),
        ([recovery_row("a")], False, None),  # interrupted before the rest
        ([], False, None),
        ([recovery_row("a"), recovery_row("b", passed=False)], False, False),
    ],
)
def test_recovery(tmp_path: Path, rows: list, passed: bool, expected: bool | None) -> None:
    write_recovery(tmp_path / "recovery.json", rows, passed)
    assert checks(read_evidence([tmp_path]))[0].passed is expected


@pytest.mark.parametrize(
    "values, status, expected",
    [
        ([3.0, 2.0], "finished", True),
        ([3.0, 3.1], "finished", False),
        ([3.0, 2.0], "interrupted", None),
        ([], "running", None),
        ([3.0, 2.0], "failed", False),
    ],
)
def test_training(tmp_path: Path, values: list[float], status: str, expected: bool | None) -> None:
    write_run(tmp_path / "sft", SFT, losses("sft", values), status=status)
    (check,) = checks(read_evidence([tmp_path]))
    assert check.passed is expected


def test_one_bad_run_fails_its_world(tmp_path: Path) -> None:
    write_preference_run(tmp_path / "a", "DPO")
    write_preference_run(tmp_path / "b", "MixDPO gamma", DATA, end=0.7)
    (check,) = checks(read_evidence([tmp_path]))
    assert check.passed is False
    assert "MixDPO gamma 0.6931 to 0.7000" in check.text


def test_the_bound_is_the_recoverys_own() -> None:
    assert Z_BOUND == recovery.Z_BOUND


@pytest.mark.parametrize("has_log_ratios, end, expected", [
    (True, 0.69, None),
    (True, 0.40, True),
    (False, 0.69, None),  # less than 1 % of log 2
    (False, 0.68, True),
])  # fmt: skip
def test_a_loss_that_hardly_moved_is_open(
    tmp_path: Path, has_log_ratios: bool, end: float, expected: bool | None
) -> None:
    """With 600 pairs two standard errors are 0.12; the loss falls from 0.6931."""
    folder = write_preference_run(tmp_path / "a", "DPO", end=end)
    if not has_log_ratios:
        (folder / "log_ratios.parquet").unlink()
    (check,) = checks(read_evidence([tmp_path]))
    assert check.passed is expected
    assert ("hardly moved" in check.text) == (expected is None)
