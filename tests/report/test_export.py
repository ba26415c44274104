"""Every figure and table that runs allow as files, and a reason for each that they do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixlogit_align import cli
from mixlogit_align.report import Evidence, read_evidence, write_figures
from mixlogit_align.report.figures import Figure

from .conftest import recovery_row, write_recovery
from .made_up import DPO, GAMMA, evaluation, gains, measured_run, steps, winrate


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are saved as names: how they look is tested elsewhere."""

    def save(figure: Figure, folder: Path) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{figure.name}.svg").write_text(figure.title)
        return [folder / f"{figure.name}.svg"]

    monkeypatch.setattr(Figure, "save", save)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A DPO run and a Gamma held against it."""
    measured_run(tmp_path / "runs" / "dpo", "DPO", DPO, evaluated=evaluation("DPO"), metrics=steps([1.0]),
                 judged=winrate(50.0))  # fmt: skip
    measured_run(tmp_path / "runs" / "gamma", "gamma", GAMMA, evaluated=evaluation("gamma", 1.0),
                 metrics=steps([1.1], [4.0, 3.0]), held={"dpo": gains("gamma", 1.0, 0.002)})  # fmt: skip
    return tmp_path / "runs"


@pytest.mark.usefixtures("quick")
def test_what_runs_allow_is_written_and_the_rest_has_a_reason(folder: Path, tmp_path: Path) -> None:
    written, left_out = write_figures(read_evidence([folder]), tmp_path / "out")
    data = "simulated-annotators-strength-lognormal-cv-1"
    assert [path.name for path in written] == [
        "results.txt", "results.html", "results.tex", f"margins-education-{data}.svg", f"gains-over-dpo-{data}.svg",
        f"variance-{data}.svg", "runtime.svg", f"curves-{data}.svg", f"trajectory-{data}.svg", "captions.md",
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in written)
    captions = (tmp_path / "out" / "captions.md").read_text(encoding="utf-8")
    assert [name for name in (path.name for path in written[:-1]) if name not in captions] == []
    told = {missing.what.partition(",")[0]: missing.why for missing in left_out}
    assert told.keys() == {
        "table of strengths learned at 1e-4 alone", "reliability", "fine-tuning", "density of the strength",
        "calibration", "fitted strengths", "weight of a pair",
    }  # fmt: skip
    assert "`mixlogit-align strength RUN` writes it" in told["fitted strengths"]


@pytest.mark.usefixtures("quick")
def test_runs_that_were_not_measured_are_named(tmp_path: Path) -> None:
    measured_run(tmp_path / "runs" / "a", "gamma", GAMMA, evaluated=evaluation("gamma"))
    measured_run(tmp_path / "runs" / "b", "gamma", GAMMA, seed=1)
    written, left_out = write_figures(read_evidence([tmp_path / "runs"]), tmp_path / "out")
    assert "results.txt" in [path.name for path in written]
    told = {missing.what: missing.why for missing in left_out}
    assert told[f"margins of {tmp_path / 'runs' / 'b'}"].startswith(
        "no evaluation.json there: `mixlogit-align evaluate"
    )
    assert told["gains over another run"].startswith("no run was held against another")


@pytest.mark.usefixtures("quick")
def test_no_file_is_written_twice(tmp_path: Path) -> None:
    """Recoveries of one name in two folders."""
    for name in ("a", "b"):
        write_recovery(tmp_path / name / "recovery.json", [recovery_row("a case")])
    evidence = read_evidence([tmp_path / "a", tmp_path / "b"])
    written, _ = write_figures(evidence, tmp_path / "out")
    assert [path.name for path in written] == ["recovery-recovery.svg", "recovery-recovery-2.svg", "captions.md"]


def test_nothing_is_written_of_nothing(tmp_path: Path) -> None:
    written, left_out = write_figures(Evidence(recoveries=[], runs=[]), tmp_path / "out")
    assert written == []
    assert not (tmp_path / "out").exists()
    assert "table of results" in [missing.what for missing in left_out]


@pytest.mark.usefixtures("quick")
def test_the_command_writes_and_tells(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of several runs the page lies beside the figures."""
    out = tmp_path / "paper"
    runs = [str(folder / "dpo"), str(folder / "gamma")]
    assert cli.main(["report", *runs, "--figures", str(out)]) in (cli.PASSED, cli.FAILED)
    printed = capsys.readouterr().out
    assert "left out: fitted strengths: no heterogeneity.json: `mixlogit-align strength RUN` writes it" in printed
    assert printed.endswith(f"figures and tables: 10 files in {out}\n")
    assert f"report: {out / 'report.html'}" in printed
    assert (out / "report.html").is_file()
    assert "MixDPO Gamma" in (out / "results.txt").read_text(encoding="utf-8")
