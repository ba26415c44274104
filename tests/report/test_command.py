"""`mixlogit-align report`: exit statuses, errors in one line, and reports of runs that are not finished."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from mixlogit_align import cli

from .conftest import losses, write_run
from .test_files import SFT


def report(*arguments: str | Path) -> int:
    return cli.main(["report", *map(str, arguments)])


@pytest.mark.parametrize(
    "status, ends, expected, line",
    [
        ("finished", [3.0, 2.0], cli.PASSED, "passed Supervised fine-tuning"),
        ("finished", [2.0, 3.0], cli.FAILED, "FAILED Supervised fine-tuning"),
        ("running", [3.0, 2.0], cli.PASSED, "open Supervised fine-tuning"),
        ("failed", [3.0, 2.0], cli.FAILED, "(NonFiniteLossError: pair_id 3)"),
    ],
    ids=["finished", "worse", "running", "failed"],
)
def test_the_exit_status_is_the_verdicts(
    tmp_path: Path, status: str, ends: list[float], expected: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "sft", SFT, losses("sft", ends), status=status)
    state = json.loads((folder / "run.json").read_text())
    if status == "failed":
        (folder / "run.json").write_text(json.dumps(state | {"error": "NonFiniteLossError: pair_id 3"}))
    assert report(folder) == expected
    told = capsys.readouterr().out
    assert line in told
    assert f"report: {folder / 'report.html'}" in told
    assert "Supervised fine-tuning" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("absent", "got nothing there; expected the folder of a run"),
        ("damaged", "evaluation.json: got Expecting"),
        ("foreign", "evaluation.json: got no level"),
        ("folder", "got a folder; expected the page's file"),
        ("file", "got not a directory; expected a place that can be"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(
    tmp_path: Path, wrong: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "sft", SFT, losses("sft", [3.0, 2.0]))
    if wrong in ("damaged", "foreign"):
        (folder / "evaluation.json").write_text({"damaged": "{", "foreign": '{"name": "x"}'}[wrong])
    out = {"folder": folder, "file": folder / "config.yaml" / "below" / "page.html"}.get(wrong, tmp_path / "page.html")
    assert report(tmp_path / "absent" if wrong == "absent" else folder, "--out", out) == cli.USAGE
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_help_has_examples_that_parse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report("--help")
    lines = capsys.readouterr().out.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    words = [shlex.split(line.strip().partition("   ")[0]) for line in lines]
    assert len(words) == 3
    assert {tuple(each[:2]) for each in words} == {("mixlogit-align", "report")}
    parsed = [cli._parser().parse_args(each[1:]) for each in words]
    assert [len(options.runs) for options in parsed] == [1, 2, 1]
