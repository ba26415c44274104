"""The demonstration: nothing is aligned on an unproven likelihood, and whatever happens there is a page to read."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mixlogit_align import alignment, cli, demo, recovery


def arguments(out: Path) -> list[str]:
    return ["demo", "--quick", "--out", str(out)]


def page(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def good_row(case: demo.Case) -> dict[str, Any]:
    """A recovery without the work."""
    nothing = dict.fromkeys(
        ("xlogit_estimate", "loglik_rel_diff", "gradient_rel_diff", "fit_abs_diff", "xlogit_default_start")
    )
    return {"case": case.name, "true": case.true, "estimate": case.true, "std_error": dict.fromkeys(case.true, 0.1),
            "z": dict.fromkeys(case.true, 0.0), "note": "", "seconds": 0.0, "passed": True} | nothing  # fmt: skip


def test_the_whole_demonstration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real estimates (fixed seeds) and nine tiny runs; an earlier demonstration's runs are not reported."""
    old = tmp_path / demo.RUNS / "old"
    old.mkdir(parents=True)
    (old / "config.yaml").write_text("no: configuration")
    assert cli.main(arguments(tmp_path)) == 0
    assert "failed" not in capsys.readouterr().out
    recovery = json.loads((tmp_path / "recovery.json").read_text())
    assert recovery["passed"]
    assert {row["case"] for row in recovery["rows"]} == {case.name for case in demo.CASES if case.quick}
    assert {name for row in recovery["rows"] for name in row["z"]} >= {"x.loc", "x.rate", "x.mean"}
    assert recovery["versions"]["torch"]
    assert not old.exists()
    assert len(list((tmp_path / demo.RUNS).glob("*/policy"))) == 9
    assert "All 4 checks passed" in page(tmp_path)


def test_the_cases_cover_every_family_and_both_kinds_of_data() -> None:
    kinds = {(case.family, case.panel, case.heterogeneous) for case in demo.CASES}
    families = ("normal", "lognormal", "uniform", "triangular", "gamma")
    assert kinds >= {(family, panel, True) for family in families for panel in (False, True)}
    assert kinds >= {(family, panel, False) for family in ("normal", "lognormal", "gamma") for panel in (False, True)}
    assert len({case.seed for case in demo.CASES}) == len(demo.CASES) == len(kinds)


def test_nothing_is_aligned_when_recovery_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No estimate is within 0 standard errors of its truth."""
    monkeypatch.setattr(demo, "CASES", [case for case in demo.CASES if case.family == "gamma" and not case.panel][:1])
    monkeypatch.setattr(recovery, "Z_BOUND", 0.0)
    assert cli.main(arguments(tmp_path)) == cli.FAILED
    assert not (tmp_path / demo.RUNS).exists()
    assert "1 of 1 checks failed" in page(tmp_path)
    assert json.loads((tmp_path / "recovery.json").read_text())["passed"] is False


def test_heterogeneity_found_where_there_is_none_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in demo.CASES if not case.heterogeneous and case.family == "gamma" and not case.panel)
    assert demo.recover(case).row["passed"]
    monkeypatch.setattr(recovery, "LIKELIHOOD_RATIO_BOUND", -1.0)
    assert not demo.recover(case).row["passed"]


def test_ctrl_c_in_recovery_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def one_then_stop(case: demo.Case) -> SimpleNamespace:
        if done:
            raise KeyboardInterrupt
        done.append(case.name)
        return SimpleNamespace(row=good_row(case))

    monkeypatch.setattr(demo, "recover", one_then_stop)
    assert cli.main(arguments(tmp_path)) == cli.INTERRUPTED
    assert not (tmp_path / demo.RUNS).exists()
    assert "0 of 1 checks passed" in page(tmp_path)
    assert done[0] in page(tmp_path)


def test_ctrl_c_in_alignment_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes at the third progress call of the second run."""
    calls: list[str] = []

    class Stop(alignment.RichProgress):
        def __call__(self, task: str, done: int, total: int, metrics: Any) -> None:
            calls.append(task)
            if calls.count(task) == 3 and "dpo" in task:
                raise KeyboardInterrupt

    monkeypatch.setattr(demo, "recover", lambda case: SimpleNamespace(row=good_row(case)))
    monkeypatch.setattr(alignment, "RichProgress", Stop)
    assert cli.main(arguments(tmp_path)) == cli.INTERRUPTED
    statuses = {
        file.parent.name: json.loads(file.read_text())["status"] for file in (tmp_path / demo.RUNS).glob("*/run.json")
    }
    assert statuses == {"sft": "finished", "cv1-dpo": "interrupted"}
    assert "2 of 3 checks passed" in page(tmp_path)
    assert "(interrupted)" in page(tmp_path)


@pytest.mark.parametrize("passed", [True, False])
def test_first_light_is_shown_or_stops_everything(
    passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recovered: list[str] = []

    def recover(case: demo.Case) -> SimpleNamespace:
        recovered.append(case.name)
        return SimpleNamespace(row=good_row(case))

    monkeypatch.setattr(demo, "recover", recover)
    monkeypatch.setattr(alignment, "demo_runs", lambda *_: [])
    rows = [good_row(demo.CASES[0]) | {"case": "beside"}]
    content = {"versions": {}, "machine": "m", "rows": rows, "passed": passed}
    (tmp_path / "first_light.json").write_text(json.dumps(content))
    status = cli.main(["demo", "--out", str(tmp_path)])  # not --quick: the proof beside xlogit makes it short
    if passed:
        assert status == 0
        assert "beside" in page(tmp_path)
        assert set(recovered) == {case.name for case in demo.CASES if case.quick}
    else:
        assert status == cli.FAILED
        assert "first_light.json" in capsys.readouterr().err
        assert (recovered, (tmp_path / "report.html").exists()) == ([], False)
