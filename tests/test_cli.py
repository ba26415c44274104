"""The command line: exit statuses, errors in one line, and runs that end in a report."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mixlogit_align import cli
from mixlogit_align.alignment import AlignmentConfig, RunResult
from mixlogit_align.alignment.config import DataConfig, IntegrationConfig, ModelConfig, StrengthConfig, UpdateConfig
from mixlogit_align.alignment.settings import parse_config
from mixlogit_align.errors import ConvergenceError, IntegrationError, InvalidInputError, MixlogitError
from tests.alignment.processes import on_ranks

TINY = """
out: {out}
name: tiny
data: {{source: simulated, num_train: 16, num_eval: 16, num_annotators: 4}}
model: {{kind: new, hidden_size: 16, num_layers: 1, num_heads: 2, max_positions: 64, vocab_size: 300}}
tokenization: {{max_length: 48, max_prompt_length: 24}}
sft: {{batch_size: 8, eval_batch_size: 16, eval_every_examples: 8, optim: {{lr: 1e-3, warmup_steps: 1}}}}
preference:
  batch_size: 8
  eval_batch_size: 16
  eval_every_examples: 8
  strength: {{family: gamma, update: {{kind: learned, lr: 1e-2}}}}
  optim: {{lr: 1e-3, warmup_steps: 1}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(TINY.format(out=tmp_path / "run"))
    return tmp_path / "run.yaml"


COMMANDS = ["demo", "simulate", "study", "fit", "sft", "train", "evaluate", "winrate", "report"]


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS), ["--version"]])
def test_help_succeeds(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    script = f"""
import sys
from mixlogit_align import cli
try:
    cli.main([{command!r}, "--help"])
except SystemExit:
    print([name for name in ("torch", "numpy", "pandas", "pyro", "scipy", "rich") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["simulate", "study", "fit", "evaluate", "winrate"])
def test_the_examples_of_help_are_accepted(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    examples = capsys.readouterr().out.partition("examples:\n")[2].partition("\n\n")[0].replace("\\\n", " ")
    lines = [shlex.split(line) for line in examples.splitlines()]
    assert [line[:2] for line in lines] == [["mixlogit-align", command]] * len(lines)
    parsed = [cli._parser().parse_args(line[1:]) for line in lines]
    assert len(parsed) >= 3


def test_help_names_every_command_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    wanted = [*COMMANDS, "examples:", "130 interrupted"]
    assert [word for word in wanted if word not in text] == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "COMMAND"),
        (["dance"], "invalid choice"),
        (["report"], "RUN"),
        (["fit"], "TABLE"),
        (["fit", "c.csv", "--fix", "price"], "unrecognized arguments: --fix price"),
        (["simulate", "--fixed", "price=-1"], "--individuals"),
        (["study", "--fixed", "price=-1"], "--individuals"),
        (["simulate", "--individuals", "many"], "invalid int value: 'many'"),
        (["train"], "--config"),
        (["demo", "--quik"], "unrecognized arguments: --quik"),
        (["report", "somewhere", "--strength.lr", "1"], "unrecognized arguments: --strength.lr 1"),
        (["train", "--config", "run.yaml", "stray"], "unrecognized argument: stray"),
        (["train", "--config", "run.yaml", "--seed"], "no value for --seed"),
        (["train", "--config", "run.yaml", "--seed", "--name", "x"], "no value for --seed"),
        (["train", "--config", "run.yaml", "--resme", "--seed", "1"], "unrecognized argument: --resme; try --resume"),
        (["sft", "--config", "run.yaml", "--resume", "--overwrite"], "not allowed with argument --resume"),
        (["train", "--config", "run.yaml", "--recipe", "hh/phi-2/dpo"], "not allowed with argument --config"),
        (["train", "--recipe", "hh/phi-2/dpo", "--dry-run", "many"], "invalid int value: 'many'"),
        (["train", "--settings", "preference.lr"], "preference.optim.lr"),
        (["train", "run.yaml"], "is required; try --config run.yaml"),
        (["train", "--config", "a.yaml", "--config=b.yaml"], "--config given twice, a.yaml and b.yaml"),
        (["train", "--recipe", "hh/phi-2/dpo", "--recipe", "hh/phi-2/gamma"], "--recipe given twice"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == cli.USAGE
    assert message in capsys.readouterr().err


def one_line(text: str) -> bool:
    return text.count("\n") == 1 and text.endswith("\n") and "Traceback" not in text


@pytest.mark.parametrize(
    "more, message",
    [
        (["--preference.optim.lr", "fast"], "preference.optim.lr: got 'fast'"),
        (["--preferenc.optim.lr=1"], "unknown preferenc"),
        (["--preference.strength.family", "cauchy"], "expected one of point, lognormal, gamma"),
        (["--preference.strength.sigma", "1"], "unknown preference.strength.sigma"),
        (["--preference.batch_size", "2.5"], "preference.batch_size: got '2.5'; expected a value of type int"),
        (["--preference.batch_size", "0"], "preference.batch_size: got 0"),
        (["--optim.lr", "1"], "Try sft.optim or preference.optim"),
        (["--seed="], "seed: got ''; expected a value of type int"),
        (["--seed.x", "1"], "seed: got {'x': '1'}; expected a value of type int"),
        (["--data", "{source: hh"], "data: got expected ',' or '}'"),
        (["--device", "abacus"], "device: got 'abacus'"),
    ],
)
def test_a_wrong_setting_is_one_line(
    config: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--config", str(config), *more]) == cli.USAGE
    error = capsys.readouterr().err
    assert message in error
    assert one_line(error)
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize("setting", ["data={source: hh, path: absent}", "model={kind: pretrained, path: absent}"])
def test_missing_data_or_policy_is_one_line(config: Path, setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", str(config), f"--{setting}"]) == cli.USAGE
    error = capsys.readouterr().err
    assert "absent" in error
    assert one_line(error)


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", str(tmp_path / "none.yaml")]) == cli.USAGE
    error = capsys.readouterr().err
    assert "none.yaml" in error
    assert one_line(error)


@pytest.mark.parametrize("command", ["train", "sft"])
def test_help_shows_a_complete_configuration(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert cli.EXAMPLE_CONFIG in textwrap.dedent(capsys.readouterr().out.partition("a complete configuration:\n\n")[2])
    config = parse_config(yaml.safe_load(cli.EXAMPLE_CONFIG))
    assert config.sft is not None
    assert config.preference is not None
    options = (
        *DataConfig.__args__,
        *StrengthConfig.__args__,
        *IntegrationConfig.__args__,
        *UpdateConfig.__args__,
        *ModelConfig.__args__,
    )
    tags = [dataclasses.fields(option)[0].default for option in options]
    assert [tag for tag in tags if tag not in cli.EXAMPLE_CONFIG] == []


def test_the_supervised_command_asks_for_its_section(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sft", "--config", str(config), "--sft", "null"]) == cli.USAGE
    error = capsys.readouterr().err
    assert "no section `sft:`" in error
    assert one_line(error)


def test_a_rule_that_does_not_fit_is_a_wrong_setting(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--preference.strength", "{family: lognormal}", "--preference.integration", "{rule: closed_form}"]
    assert cli.main(["train", "--config", str(config), *more]) == cli.USAGE
    error = capsys.readouterr().err
    assert "integration: {rule: best}" in error
    assert one_line(error)
    assert not (config.parent / "run").exists()


def test_no_evidence_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == cli.USAGE
    assert one_line(capsys.readouterr().err)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "error, status",
    [
        (InvalidInputError("x"), cli.USAGE),
        (IntegrationError("x"), cli.USAGE),
        (ConvergenceError("x"), cli.FAILED),
        (KeyboardInterrupt(), cli.INTERRUPTED),
        (FileNotFoundError("x"), cli.USAGE),
    ],
)
def test_exit_status_of_errors(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: Any) -> int:
        raise error

    monkeypatch.setattr(cli, "_report", fail)
    assert cli.main(["report", "somewhere"]) == status
    assert one_line(capsys.readouterr().err)


def test_our_own_faults_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: Any) -> int:
        raise AssertionError("an invariant")

    monkeypatch.setattr(cli, "_report", fail)
    with pytest.raises(AssertionError, match="an invariant"):
        cli.main(["report", "somewhere"])


@pytest.mark.parametrize(
    "rest, settings",
    [
        ([], []),
        (["--optim.lr", "1e-6", "--seed=3"], ["optim.lr=1e-6", "seed=3"]),
        (["--loc", "-2.3"], ["loc=-2.3"]),
        (["--a=--b"], ["a=--b"]),
        (["--tracking", "[wandb]", "--sft=null"], ["tracking=[wandb]", "sft=null"]),
        (["--out", "x=y"], ["out=x=y"]),
    ],
)
def test_overrides(rest: list[str], settings: list[str]) -> None:
    assert cli._overrides(cli._parser(), rest) == settings


def test_train_then_report(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "--config", str(config)]
    assert cli.main([*train, "--name", "renamed", "--preference.strength.update.lr", "0.02"]) == 0
    run = tmp_path / "run"
    printed = capsys.readouterr().out
    assert "data: simulated, " in printed
    assert " held out" in printed
    assert "preference: held-out loss" in printed
    assert json.loads((run / "run.json").read_text())["name"] == "renamed"
    assert json.loads((run / "strength.json").read_text())["learning_rate"] == 0.02
    assert "renamed" in (run / "report.html").read_text(encoding="utf-8")

    assert cli.main(train) == cli.USAGE  # the folder holds a run
    assert one_line(capsys.readouterr().err)
    assert "already finished" not in printed
    assert cli.main([*train, "--resume", "--preference.strength.update.lr", "0.02"]) == 0
    already, *again, _ = capsys.readouterr().out.splitlines()  # without the last, which rounds the seconds
    assert already == f"already finished: nothing was trained, and what follows is read from {run}"
    assert again[0].startswith("data: simulated, ")
    assert again == printed.splitlines()[-len(again) - 1 : -1]  # after the progress
    assert cli.main(["sft", "--config", str(config), "--overwrite"]) == 0
    assert "preference" not in capsys.readouterr().out
    assert not (run / "strength.json").exists()

    page = tmp_path / "elsewhere" / "page.html"
    assert cli.main(["report", str(run), "--out", str(page)]) == 0
    assert page.stat().st_size > 1000


@pytest.fixture
def recovery(tmp_path: Path) -> Path:
    """The file of a recovery that failed."""
    names: Callable[..., dict[str, None]] = dict.fromkeys
    row = {
        "case": "a", "true": {"x.loc": 1.0}, "estimate": {"x.loc": 9.0}, "std_error": {"x.loc": 0.1},
        "z": {"x.loc": 80.0}, "note": "", "seconds": 1.0, "passed": False, "xlogit_estimate": None,
    } | names(("loglik_rel_diff", "gradient_rel_diff", "fit_abs_diff", "xlogit_default_start"))  # fmt: skip
    content = {"versions": {}, "machine": "m", "rows": [row], "passed": False}
    path = tmp_path / "recovery.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("named", ["folder", "file"])
def test_report_of_a_failure_fails(recovery: Path, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(recovery if named == "file" else recovery.parent)]) == cli.FAILED
    assert "FAILED Known strengths recovered: 0 of 1 cases" in capsys.readouterr().out
    assert (recovery.parent / "report.html").exists()


def test_a_report_of_several_leaves_that_of_the_first_alone(recovery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(recovery), str(recovery.parent)]) == cli.USAGE
    error = capsys.readouterr().err
    assert "--out: got nothing, with 2 RUNs" in error
    assert one_line(error)
    assert not (recovery.parent / "report.html").exists()


def test_a_place_that_cannot_be_written_is_told(recovery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(recovery), "--out", str(recovery / "page.html")]) == cli.USAGE
    error = capsys.readouterr().err
    assert f"{recovery}: got file exists; expected a place" in error
    assert one_line(error)


@pytest.mark.parametrize("module", ["mixlogit_align", "mixlogit_align.cli"])
def test_it_runs_as_a_program(module: str) -> None:
    words = [sys.executable, "-m", module, "train", "--config", "run.yaml", "--seed"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == cli.USAGE
    assert done.stderr.endswith("error: no value for --seed; a value that begins with -- is written --seed=VALUE\n")


# --- train and sft, without training ---------------------------------------------------------------


class Runs:
    """Stands in for `run_alignment`: remembers its arguments, and raises or returns what it is told."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.answer: BaseException | RunResult = KeyboardInterrupt()

    def __call__(self, config: AlignmentConfig, **options: Any) -> RunResult:
        self.calls.append({"config": config, **options})
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    stand_in = Runs()
    monkeypatch.setattr("mixlogit_align.alignment.run_alignment", stand_in)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return stand_in


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the second of two processes under torchrun."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "TURN_SECONDS", 0.0)


@pytest.mark.parametrize(
    "flags, options",
    [
        ([], {"resume": False, "overwrite": False}),
        (["--resume"], {"resume": True, "overwrite": False}),
        (["--overwrite"], {"resume": False, "overwrite": True}),
    ],
    ids=["new", "resume", "overwrite"],
)
def test_flags_reach_the_run(config: Path, runs: Runs, flags: list[str], options: dict[str, bool]) -> None:
    assert cli.main(["train", "--config", str(config), *flags]) == cli.INTERRUPTED
    assert [{name: call[name] for name in options} for call in runs.calls] == [options]


@pytest.mark.parametrize(
    "environment, launcher",
    [
        ({}, "mixlogit-align"),
        ({"RANK": "0", "LOCAL_WORLD_SIZE": "2"}, "torchrun --standalone --nproc-per-node 2 -m mixlogit_align"),
        (
            {"RANK": "0", "LOCAL_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"},
            "torchrun ... (as before, on every node) -m mixlogit_align",
        ),
    ],
    ids=["alone", "processes", "nodes"],
)
def test_an_interrupted_run_tells_how_to_go_on(
    config: Path, runs: Runs, environment: dict[str, str], launcher: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    words = ["train", "--config", str(config), "--overwrite", "--name", "a b", "--seed=3"]
    assert cli.main(words) == cli.INTERRUPTED
    told, command = capsys.readouterr().err.splitlines()
    assert f"the run so far is in {config.parent / 'run'}" in told
    assert command == f"  {launcher} train --config {config} --name 'a b' --seed=3 --resume"


def test_the_command_that_goes_on_is_accepted(config: Path, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["sft", "--config", str(config), "--name", "a b"])
    program, *words = shlex.split(capsys.readouterr().err.splitlines()[-1])
    assert program == "mixlogit-align"
    assert cli.main(words) == cli.INTERRUPTED
    assert [call["config"] for call in runs.calls] == [runs.calls[0]["config"]] * 2
    assert [call["resume"] for call in runs.calls] == [False, True]


@pytest.mark.parametrize("command", ["train", "sft"])
def test_the_examples_of_training_are_accepted(
    config: Path, runs: Runs, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(config.parent)
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    examples = capsys.readouterr().out.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    words = [shlex.split(line.strip().partition("   ")[0].partition("mixlogit")[2])[1:] for line in examples]
    shows = [line for line in words if "--settings" in line]
    with pytest.raises(SystemExit) as stop:
        cli.main(*shows)
    assert stop.value.code == cli.PASSED
    assert capsys.readouterr().out.startswith("data: a section, one of source: simulated, ")
    monkeypatch.setattr("mixlogit_align.alignment.dry_run.dry_run", lambda config, processes: "tried")
    statuses = [cli.main(line) for line in words if line not in shows]
    assert sorted(statuses) == [cli.PASSED, cli.PASSED, *[cli.INTERRUPTED] * (len(examples) - 3)]


RESULT = RunResult(
    path=Path("r"),
    name="a",
    metrics={"preference": {"loss": 0.5, "rewards/accuracies": 0.75}},
    strength={"family": "gamma", "mean": 0.2, "sd": 0.1, "initial": {"mean": 0.1, "sd": 0.05}},
    truth=None,
    alarms=[{"name": "both_logps_falling", "stage": "preference", "step": 40, "message": "Look."}],
    seconds=3.0,
)


def test_a_result_is_a_few_lines(
    config: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mixlogit_align.report.write_report", lambda *_: [])
    runs.answer = RESULT
    assert cli.main(["train", "--config", str(config)]) == cli.PASSED
    assert capsys.readouterr().out.splitlines() == [
        "data: simulated",
        "preference: held-out loss 0.5000, rewards/accuracies 0.7500",
        "strength: gamma, mean 0.2000 (at first 0.1000), sd 0.1000 (at first 0.0500)",
        "ALARM both_logps_falling (preference, step 40): Look.",
        "run folder: r, with a report.html (3 s)",
    ]


def test_only_the_main_process_prints(
    config: Path, runs: Runs, second: None, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.answer = RESULT
    assert cli.main(["train", "--config", str(config)]) == cli.PASSED
    runs.answer = KeyboardInterrupt()
    assert cli.main(["train", "--config", str(config)]) == cli.INTERRUPTED
    assert cli.main(["train", "--config", str(config), "--print-config"]) == cli.PASSED
    assert [call["progress"] for call in runs.calls] == [None, None]
    assert capsys.readouterr() == ("", "")


def test_an_error_of_another_process_waits_its_turn_and_names_it(
    config: Path, runs: Runs, second: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(cli, "TURN_SECONDS", 7.0)
    monkeypatch.setattr("time.sleep", waited.append)
    runs.answer = MixlogitError("no memory")
    assert cli.main(["train", "--config", str(config)]) == cli.FAILED
    assert capsys.readouterr().err == "mixlogit-align: process 1: failed: no memory\n"
    with pytest.raises(SystemExit):
        cli.main(["train"])
    assert waited == [7.0, 7.0]


def test_the_first_process_of_another_machine_speaks_at_once(
    config: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("waited"))
    assert cli.main(["train", "--config", str(config), "--sft.seed", "1"]) == cli.USAGE
    assert capsys.readouterr().err.startswith("mixlogit-align: process 8: error: settings: got unknown sft.seed")


def test_printed_settings_are_the_resolved_ones(config: Path, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--config", str(config), "--seed", "5"]
    assert cli.main([*words, "--print-config"]) == cli.PASSED
    printed = parse_config(yaml.safe_load(capsys.readouterr().out))
    cli.main(words)
    assert [call["config"] for call in runs.calls] == [printed]
    assert printed.seed == 5


@pytest.mark.parametrize("section, first", [([], "out: str, required"), (["preference.optim"], "preference.optim: a")])
def test_settings_are_listed(section: list[str], first: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--settings", *section])
    assert stop.value.code == cli.PASSED
    text = capsys.readouterr().out
    assert text.startswith(first)
    assert "preference.optim.lr: float (default: 5e-07)\n    Learning rate after the warm-up.\n" in text


def train_on_a_rank(words: list[str]) -> tuple[int, str]:
    """As under torchrun; its environment is set up late, since the process group is there already."""
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(torch.distributed.get_rank())
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = cli.main(["train", *words])
    return status, printed.getvalue()


def test_two_processes_train_and_speak_with_one_voice(config: Path) -> None:
    words = ["--config", str(config), "--sft", "null", "--preference.eval_every_examples", "16"]
    first, other = on_ranks(2, train_on_a_rank, words)
    assert other == (cli.PASSED, "")
    assert first[0] == cli.PASSED
    told = [line.partition(":")[0] for line in first[1].splitlines()]
    assert told[-4:] == ["data", "preference", "strength", "run folder"]
    assert json.loads((config.parent / "run" / "run.json").read_text())["processes"] == 2


# --- recipes and dry runs ------------------------------------------------------------------------------


def test_a_recipe_is_run(runs: Runs) -> None:
    words = ["train", "--recipe", "hh/llama-3.2-1b/gamma-frozen", "--resume", "--out", "elsewhere"]
    assert cli.main(words) == cli.INTERRUPTED
    (call,) = runs.calls
    assert (call["config"].name, call["config"].out) == ("hh/llama-3.2-1b/gamma-frozen", "elsewhere")
    assert call["resume"]


@pytest.mark.parametrize(
    ("command", "given"), [("train", ["seed"]), ("sft", ["preference", "seed"])], ids=["train", "sft"]
)
def test_a_recipe_is_shown_with_where_each_line_is_from(
    command: str, given: list[str], runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, "--recipe", "prism/pythia-2.8b/gamma", "--seed", "7"]
    assert cli.main([*words, "--print-config"]) == cli.PASSED
    shown = capsys.readouterr().out
    assert "max_length: 128 # [paper App. E]" in [" ".join(line.split()) for line in shown.splitlines()]
    assert [line.partition(":")[0] for line in shown.splitlines() if line.endswith("# [given]")] == given
    (tmp_path / "run.yaml").write_text(shown)
    assert cli.main(words) == cli.main([command, "--config", str(tmp_path / "run.yaml")]) == cli.INTERRUPTED
    assert [call["config"] for call in runs.calls] == [runs.calls[0]["config"]] * 2


def test_a_recipe_without_a_name_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--recipe"])
    assert stop.value.code == cli.PASSED
    listed = capsys.readouterr().out
    assert [word for word in ("prism ", "phi-2 ", "gamma-lr1e-3 ") if word not in listed] == []


def test_an_unknown_recipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--recipe", "hh/pythia/dpo"]) == cli.USAGE
    error = capsys.readouterr().err
    assert "`--recipe hh/pythia-2.8b/dpo`" in error
    assert one_line(error)


def test_a_dry_run_writes_nothing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(config.parent.iterdir())
    assert cli.main(["train", "--config", str(config), "--dry-run", "2"]) == cli.PASSED
    told = capsys.readouterr().out
    assert told.startswith("dry run of tiny\n")
    assert "memory, estimated for 2 processes" in told
    assert sorted(config.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dry-run", "3"], "sft.batch_size"),
        (["--dry-run", "--preference.strength.family", "cauchy"], "expected one of point, lognormal, gamma"),
        (["--model={kind: pretrained, path: some/one}", "--dry-run"], "model.path of a dry run: got 'some/one'"),
        (["--dry-run", "--preference.strength", "{family: lognormal}", "--preference.integration.rule=closed_form"],
         "`rule: closed_form` for a strength of `family: lognormal`"),
    ],
    ids=["processes", "setting", "model", "rule"],
)  # fmt: skip
def test_a_dry_run_refuses_what_a_run_would(
    config: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--config", str(config), *more]) == cli.USAGE
    error = capsys.readouterr().err
    assert message in error
    assert one_line(error)


def test_a_dry_run_is_one_process(config: Path, second: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", str(config), "--dry-run"]) == cli.USAGE
    assert "--dry-run: got torchrun" in capsys.readouterr().err
