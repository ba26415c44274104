"""AlpacaEval's files: what is written is read back, and what it would not read is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mixlogit_align.alignment.winrate import (
    Outputs,
    Preferences,
    fit_length_control,
    leaderboard_row,
    pair_outputs,
    read_annotations,
    read_leaderboard,
    read_outputs,
    read_weights,
    write_annotations,
    write_leaderboard,
    write_outputs,
)
from mixlogit_align.errors import InvalidInputError

# As AlpacaEval writes a row of annotations.json, with its names and types.
ROW = {
    "instruction": "Name a colour.",
    "output_1": "Red is one.",
    "generator_1": "gpt4_1106_preview",
    "dataset": "helpful_base",
    "output_2": "Bl\u00fce",
    "generator_2": "mine",
    "annotator": "weighted_alpaca_eval_gpt4_turbo",
    "preference": 1.25,
    "raw_completion": {"logprobs": {"content": []}},
    "price_per_example": 0.006,
    "time_per_example": 0.8,
}


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def outputs(name: str, n: int = 12) -> Outputs:
    return Outputs(
        name=name,
        prompts=[f"Say {i}, \u201cplease\u201d\n" for i in range(n)],
        responses=[name * (i + 1) for i in range(n)],
    )


def test_annotations_of_alpaca_eval_are_read(tmp_path: Path) -> None:
    draw = {**ROW, "instruction": "Another.", "preference": 0}
    missing = {**ROW, "instruction": "A third.", "preference": float("nan")}
    null = {**ROW, "instruction": "A fourth.", "preference": None}
    table = read_annotations(written(tmp_path / "annotations.json", [ROW, draw, missing, null]))
    assert (table.model, table.opponent) == ("mine", "gpt4_1106_preview")
    assert table.prompts == ("Name a colour.", "Another.", "A third.", "A fourth.")
    assert table.values.tolist()[:2] == [0.25, 0.5]
    assert np.isnan(table.values[2:]).all()
    # characters, not bytes
    assert (table.model_lengths.tolist(), table.opponent_lengths.tolist()) == ([4.0] * 4, [11.0] * 4)


def test_annotations_come_back_as_they_were_written(tmp_path: Path) -> None:
    pairs = pair_outputs(outputs("ours"), outputs("them"))
    values = np.linspace(0.0, 1.0, 12)
    values[3] = np.nan
    table = Preferences(
        model="ours",
        opponent="them",
        prompts=[pair.prompt for pair in pairs],
        values=values,
        model_lengths=[len(pair.response) for pair in pairs],
        opponent_lengths=[len(pair.opponent_response) for pair in pairs],
    )
    write_annotations(tmp_path / "annotations.json", pairs, table, "a judge")
    again = read_annotations(tmp_path / "annotations.json")
    assert (again.model, again.opponent, again.prompts) == ("ours", "them", table.prompts)
    # 1 + value - 1 loses a digit
    np.testing.assert_allclose(again.values, values, atol=1e-15)
    rows = json.loads((tmp_path / "annotations.json").read_text(encoding="utf-8"))
    assert rows[3]["preference"] is None
    assert (rows[1]["output_2"], rows[1]["output_1"], rows[1]["annotator"]) == ("oursours", "themthem", "a judge")


def test_controlled_preferences_are_written_under_alpaca_eval_s_name(tmp_path: Path) -> None:
    ours = outputs("ours")
    pairs = pair_outputs(ours, outputs("them!"))
    table = Preferences(
        model="ours", opponent="them!", prompts=ours.prompts, values=np.linspace(0.1, 0.9, 12),
        model_lengths=np.arange(12), opponent_lengths=np.zeros(12),
    )  # fmt: skip
    control = fit_length_control(table)
    write_annotations(tmp_path / "annotations.json", pairs, table, "a judge", control=control)
    rows = json.loads((tmp_path / "annotations.json").read_text(encoding="utf-8"))
    assert [row["glm_preference"] for row in rows] == control.preferences.tolist()


def test_files_that_begin_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    mark = "\ufeff"
    table = read_annotations(written(tmp_path / "annotations.json", mark + json.dumps([ROW])))
    assert table.model == "mine"
    assert read_leaderboard(written(tmp_path / "leaderboard.csv", mark + ",a\nx,1\n")) == {"x": {"a": 1.0}}


def test_outputs_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_outputs(tmp_path / "model_outputs.json", outputs("ours"), dataset="mine")
    again = read_outputs(tmp_path / "model_outputs.json")
    assert (again.name, list(again.prompts), list(again.responses)) == (
        "ours", list(outputs("ours").prompts), list(outputs("ours").responses)
    )  # fmt: skip
    assert read_outputs(tmp_path / "model_outputs.json", name="another").name == "another"
    rows = json.loads((tmp_path / "model_outputs.json").read_text(encoding="utf-8"))
    assert {tuple(row) for row in rows} == {("dataset", "instruction", "output", "generator")}


def test_leaderboard_comes_back_and_pandas_reads_it(tmp_path: Path) -> None:
    table = Preferences(
        model="ours", opponent="them", prompts=[str(i) for i in range(12)], values=np.linspace(0.1, 0.95, 12),
        model_lengths=np.arange(12), opponent_lengths=np.zeros(12),
    )  # fmt: skip
    rows = {
        'with "quotes", and comma': leaderboard_row(table, fit_length_control(table)),
        "plain": leaderboard_row(table),
    }
    write_leaderboard(tmp_path / "leaderboard.csv", rows)
    again = read_leaderboard(tmp_path / "leaderboard.csv")
    assert again == {model: dict(row) for model, row in rows.items()}
    theirs = pd.read_csv(tmp_path / "leaderboard.csv", index_col=0)
    assert theirs.loc["plain", "win_rate"] == rows["plain"]["win_rate"]
    assert theirs["lc_standard_error"].isna().tolist() == [False, True]


def test_columns_are_those_of_the_leaderboard(shared_data: Path) -> None:
    with (shared_data / "alpaca_eval" / "leaderboard.csv").open(newline="") as text:
        _, *names = next(csv.reader(text))
    table = Preferences(model="a", opponent="b", prompts=["x"], values=[1.0], model_lengths=[1], opponent_lengths=[1])
    assert list(leaderboard_row(table)) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("{", "JSONDecodeError", id="broken"),
        pytest.param({}, "got a dict", id="an object"),
        pytest.param([], "got a list", id="empty"),
        pytest.param([ROW, ROW], "1 prompts more than once, such as 'Name a colour.'", id="twice"),
        pytest.param([{**ROW, "preference": 2.5}], "preference=2.5", id="out of range"),
        pytest.param([{**ROW, "preference": "1"}], "preference='1'", id="text"),
        pytest.param([{**ROW, "preference": True}], "preference=True", id="truth value"),
        pytest.param([{k: v for k, v in ROW.items() if k != "preference"}], "preference='nothing'", id="none"),
        pytest.param([{**ROW, "output_2": None}], "output_2=None", id="missing output"),
        pytest.param([{**ROW, "input": "more"}], "input='more'", id="a prompt in two fields"),
        pytest.param(
            [ROW, {**ROW, "instruction": "x", "annotator": "other"}], "annotator is '.*', 'other'", id="two judges"
        ),
        pytest.param([ROW, {**ROW, "instruction": "x", "generator_2": "other"}], "generator_2 is", id="two models"),
    ],
)
def test_bad_annotations_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read_annotations(written(tmp_path / "annotations.json", content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(",a,b\nx,1\n", r"csv:2 \(its cells are not as many as the columns", id="short line"),
        pytest.param(",a,a\nx,1,2\n", "column 'a' twice", id="column twice"),
        pytest.param(";a\nx;1\n", "columns separated by commas", id="semicolons"),
        pytest.param(",a\nx,1\nx,2\n", "'x' a second time", id="twice"),
    ],
)
def test_bad_leaderboards_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read_leaderboard(written(tmp_path / "leaderboard.csv", content))


def test_weights_without_a_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"'x': got .*None.*expected a number in each of these columns"):
        read_weights(written(tmp_path / "weights.csv", ",np.tanh(std_delta_len)\nx,1\n"))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="FileNotFoundError"):
        read_outputs(tmp_path / "nothing.json")


# --- pairing ---


def test_pairs_are_in_the_first_model_s_order() -> None:
    a = Outputs(name="a", prompts=["x", "y"], responses=["ax", "ay"])
    b = Outputs(name="b", prompts=["y", "x"], responses=["by", "bx"])
    assert [(p.prompt, p.response, p.opponent_response) for p in pair_outputs(a, b)] == [
        ("x", "ax", "bx"), ("y", "ay", "by")
    ]  # fmt: skip


def test_prompts_that_only_one_model_answers_are_named() -> None:
    a = Outputs(name="a", prompts=["x", "y"], responses=["", "ay"])
    b = Outputs(name="b", prompts=["y", "z" * 80], responses=["by", "bz"])
    with pytest.raises(InvalidInputError, match=r"1 of 'a' alone, such as 'x'; 1 of 'b' alone, such as 'z{57}\.\.\.'"):
        pair_outputs(a, b)


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        pytest.param(["x", "x"], ["1", "2"], "1 prompts more than once", id="duplicate"),
        pytest.param(["x", "y"], ["1"], "2 prompts and 1 responses", id="missing output"),
        pytest.param([], [], "0 prompts", id="none"),
        pytest.param(["x", " "], ["1", "2"], "1 prompts without a text", id="blank prompt"),
    ],
)
def test_bad_outputs_are_refused(prompts: list[str], responses: list[str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Outputs(name="a", prompts=prompts, responses=responses)
