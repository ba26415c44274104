"""Reading what recoveries and runs leave, complete or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file

from mixlogit_align.alignment.config import AlignmentConfig, StageConfig
from mixlogit_align.alignment.data.config import SimulatedData
from mixlogit_align.econometrics import heterogeneity_command
from mixlogit_align.errors import InvalidInputError
from mixlogit_align.report import read_evidence
from mixlogit_align.report.files import (
    EVALUATION,
    FITTED,
    GAINS,
    HETEROGENEITY,
    WINRATE,
    labels,
    read_recovery,
    read_run,
)

from .conftest import DATA, losses, recovery_row, write_preference_run, write_recovery, write_run

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


# Where each result of a measurement lies in a run's folder, what it is read as, and what writes it.
MEASURED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "evaluation.json": ("evaluation", EVALUATION, "evaluate"),
    "gains-over-dpo.json": ("gains", GAINS, "evaluate"),
    "winrate-sft/winrate.json": ("winrates", WINRATE, "winrate"),
    "heterogeneity/heterogeneity.json": ("heterogeneity", FITTED, "strength"),
}


def write_measured(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)


def test_results_of_measurements_are_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sft", SFT, [])
    contents: dict[str, dict[str, Any]] = {
        name: {**dict.fromkeys(keys), "mine": name} for name, (_, keys, _) in MEASURED.items()
    }
    for name, content in contents.items():
        write_measured(folder, name, json.dumps(content))
    pyarrow.parquet.write_table(pyarrow.table({"mean": [0.5]}), folder / "heterogeneity" / "annotators.parquet")
    run = read_run(folder)
    evaluation, gains, winrate, fitted = contents.values()
    assert (run.evaluation, run.heterogeneity, run.annotators) == (evaluation, fitted, {"mean": [0.5]})
    assert (run.gains, run.winrates) == ({"dpo": gains}, {"winrate-sft": winrate})


def test_the_folder_of_fits_is_that_of_the_command() -> None:
    assert HETEROGENEITY == heterogeneity_command.FOLDER


def test_nothing_measured_is_nothing(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "sft", SFT, []))
    assert [run.evaluation, run.heterogeneity, run.annotators, run.num_parameters] == [None] * 4
    assert (run.gains, run.winrates, run.versions) == ({}, {}, {})


@pytest.mark.parametrize("content", ["{", "[]", "{}"], ids=["cut", "list", "keys"])
@pytest.mark.parametrize("name", list(MEASURED))
def test_a_damaged_result_is_named_with_the_command_that_writes_it(tmp_path: Path, name: str, content: str) -> None:
    folder = write_run(tmp_path / "sft", SFT, [])
    write_measured(folder, name, content)
    attribute, _, command = MEASURED[name]
    with pytest.raises(InvalidInputError, match=rf"{name}: got .*Try `mixlogit-align {command} {folder}`"):
        getattr(read_run(folder), attribute)


@pytest.mark.parametrize(
    "name, attribute", [("log_ratios.parquet", "log_ratios"), ("heterogeneity/annotators.parquet", "annotators")]
)
def test_a_damaged_table_is_named(tmp_path: Path, name: str, attribute: str) -> None:
    folder = write_run(tmp_path / "sft", SFT, [])
    write_measured(folder, name, "PAR1")
    with pytest.raises(InvalidInputError, match=f"{name}: got .*expected a Parquet table"):
        getattr(read_run(folder), attribute)


def test_a_damaged_line_of_metrics_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sft", SFT, [])
    (folder / "metrics.jsonl").write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(InvalidInputError, match=r"metrics.jsonl, line 2: got .*Try .*--resume"):
        read_run(folder)


def test_parameters_are_counted_in_the_policy_that_was_written(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sft", SFT, [])
    (folder / "policy").mkdir()
    for shard, shapes in {"a": [(3, 5), (7,)], "b": [()]}.items():
        tensors = {str(i): torch.zeros(shape) for i, shape in enumerate(shapes)}
        save_file(tensors, folder / "policy" / f"model-{shard}.safetensors", metadata={"format": "pt"})
    assert read_run(folder).num_parameters == 3 * 5 + 7 + 1
    (folder / "policy" / "model-c.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    with pytest.raises(InvalidInputError, match=r"model-c\.safetensors: got a damaged header"):
        _ = read_run(folder).num_parameters


def test_a_run_is_read_once(tmp_path: Path) -> None:
    write_run(tmp_path / "a", SFT, [])
    write_run(tmp_path / "b", SFT, [])
    paths = [tmp_path / "b", tmp_path, tmp_path / "a" / ".." / "a"]
    assert [run.path.name for run in read_evidence(paths).runs] == ["b", "a"]


def test_labels_tell_runs_apart(tmp_path: Path) -> None:
    other = SimulatedData(**{**vars(DATA), "strength_cv": 0.0})
    for folder, name, data in (("a", "DPO", DATA), ("b", "DPO", other), ("c", "DPO", other)):
        write_preference_run(tmp_path / folder, name, data)
    write_run(tmp_path / "d", SFT, [])
    names = labels(read_evidence([tmp_path]).runs)
    assert names[0] == "DPO (simulated annotators, strength lognormal, cv 1)"
    assert names[1:] == ["DPO (b)", "DPO (c)", "SFT"]
