"""The verdict: passed, failed, or left open by an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixlogit_align import recovery
from mixlogit_align.report import checks, read_evidence
from mixlogit_align.report.checks import Z_BOUND

from .conftest import DATA, losses, recovery_row, write_preference_run, write_recovery, write_run
from .measures import write_winrate
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


def estimate(*ends: float | None) -> dict[str, Any]:
    """With these ends of its interval."""
    middle = None if None in ends else sum(end for end in ends if end is not None) / 2
    return {"value": middle or 0.0, "standard_error": 0.1, "lower": ends[0], "upper": ends[1], "pvalue": None}


@pytest.mark.parametrize(
    "margin, loglik, expected, words",
    [
        ((0.1, 0.3), (-0.1, 0.1), True, "margin/sum +0.2 (+0.1 to +0.3), loglik"),
        ((0.1, 0.3), (0.1, 0.2), True, "loglik +0.15 (+0.1 to +0.2)."),
        ((-0.3, -0.1), (-0.1, 0.1), False, "margin/sum -0.2 (-0.3 to -0.1)"),
        ((-0.1, 0.3), (0.1, 0.2), None, "margin/sum +0.1"),
        ((0.1, 0.3), (-0.2, -0.1), None, "(margin and likelihood disagree)"),
        ((-0.3, -0.1), (0.1, 0.2), None, "(margin and likelihood disagree)"),
        ((None, None), (None, None), None, "no interval"),
    ],
    ids=["margin", "both", "loss", "open", "overconfident", "modest", "few"],
)
def test_gain_over_another_run(tmp_path: Path, margin: tuple, loglik: tuple, expected: bool | None, words: str) -> None:
    folder = write_preference_run(tmp_path / "a", "DPO")
    estimates = {"accuracy": estimate(-0.9, -0.8), "margin/sum": estimate(*margin), "loglik": estimate(*loglik)}
    content = {"name": "DPO", "against": "SFT", "level": 0.95, "clusters": "9 clusters", "minimum": 10,
               "adjustment": "holm", "num_tests": 0,
               "averages": [{"attribute": None, "num_pairs": 1234, "estimates": estimates}]}  # fmt: skip
    (folder / "gains-over-sft.json").write_text(json.dumps(content))
    check = checks(read_evidence([folder]))[-1]
    assert check.passed is expected
    assert check.text.startswith("Gains over SFT (1,234 held-out pairs): DPO margin/sum ")
    assert words in check.text


@pytest.mark.parametrize("wins, expected", [(0.8, True), (0.2, False), (0.5, None)])
def test_win_rate(tmp_path: Path, wins: float, expected: bool | None) -> None:
    """Of 40 prompts, where the 95 % interval is some 15 points to each side."""
    folder = write_preference_run(tmp_path / "a", "DPO")
    write_winrate(folder, wins)
    check = checks(read_evidence([folder]))[-1]
    assert check.passed is expected
    assert check.text.startswith(f"Win rates against the <opponent>: DPO {100 * wins:.1f} %")
    # at one half the penalty leaves nothing of the preference at equal lengths
    assert ("at equal lengths" in check.text) is (wins != 0.5)
    assert check.text.endswith("judged by judge & co.")


def test_a_rate_that_falls_at_equal_lengths_is_open(tmp_path: Path) -> None:
    folder = write_preference_run(tmp_path / "a", "DPO")
    write_winrate(folder, 0.8)
    file = folder / "winrate-sft" / "winrate.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"controlled": estimate(20.0, 40.0)}))
    assert checks(read_evidence([folder]))[-1].passed is None


def test_a_run_that_says_running_may_have_been_killed(tmp_path: Path) -> None:
    write_run(tmp_path / "sft", SFT, losses("sft", [3.0, 2.0]), status="running")
    (check,) = checks(read_evidence([tmp_path]))
    assert "3.0000 to 2.0000 (running, or killed)" in check.text


def test_no_check_takes_a_learned_spread_for_heterogeneity(demonstration: Path) -> None:
    texts = " ".join(check.text for check in checks(read_evidence([demonstration])))
    assert [word for word in ("heterogen", "spread", "sd ") if word in texts] == []


def test_of_many_runs_those_that_did_not_pass_are_named(tmp_path: Path) -> None:
    ends = [2.0] * 9 + [4.0]
    for i, end in enumerate(ends):
        write_run(tmp_path / f"run{i}", SFT, losses("sft", [3.0, end]), status="running" if i == 0 else "finished")
    (check,) = checks(read_evidence([tmp_path]))
    assert check.passed is False
    assert check.text.endswith(
        "held-out loss: 8 of 10 runs passed; failed: SFT (run9) 3.0000 to 4.0000; "
        "open: SFT (run0) 3.0000 to 2.0000 (running, or killed)."
    )


def test_of_very_many_the_rest_is_counted(tmp_path: Path) -> None:
    for i in range(20):
        write_run(tmp_path / f"run{i:02}", SFT, losses("sft", [3.0, 4.0]))
    (check,) = checks(read_evidence([tmp_path]))
    assert "0 of 20 runs passed; failed: SFT (run00)" in check.text
    assert check.text.endswith("and 14 more.")
