"""AlpacaEval's files: annotations.json, model_outputs.json, rows of the leaderboard, weights of the GLM."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixlogit_align.alignment.data.files import read_table
from mixlogit_align.alignment.data.rows import BadRows
from mixlogit_align.alignment.durable import write_durably
from mixlogit_align.alignment.winrate.judges import TableJudge
from mixlogit_align.alignment.winrate.length_control import LengthControl, LengthWeights
from mixlogit_align.alignment.winrate.pairs import Outputs, ResponsePair
from mixlogit_align.alignment.winrate.preferences import Preferences, shown
from mixlogit_align.errors import InvalidInputError, explain

LENGTH, DIFFICULTY, QUALITY = (
    "np.tanh(std_delta_len)", "instruction_difficulty", "not_gamed_baseline.astype(float)"
)  # fmt: skip


def read_outputs(path: str | Path, name: str | None = None) -> Outputs:
    """Read model_outputs.json: a list of objects with ``instruction``, ``output`` and ``generator``.

    Parameters
    ----------
    path : path
    name : str, optional
        Of the model; ``generator`` where not given.

    Raises
    ------
    InvalidInputError
        For a file that is no such list, a missing or empty field, an instruction that stands twice, several generators.
    """
    rows = _rows(path)
    prompts = [_text(row, "instruction", where) for where, row in rows]
    responses = [_text(row, "output", where) for where, row in rows]
    return Outputs(name=name or _only(rows, "generator", path), prompts=tuple(prompts), responses=tuple(responses))


def write_outputs(path: str | Path, outputs: Outputs, dataset: str | None = None) -> None:
    """Write model_outputs.json, whole or not at all."""
    extra = {} if dataset is None else {"dataset": dataset}
    rows = [
        {**extra, "instruction": prompt, "output": response, "generator": outputs.name}
        for prompt, response in zip(outputs.prompts, outputs.responses, strict=True)
    ]
    _write(path, rows)


def read_annotations(path: str | Path) -> Preferences:
    """Read annotations.json: preferences in [1, 2] of ``output_2``, of the model, over ``output_1``, of the baseline.

    Preference 0, an old way to say a draw, is read as 1.5; null and NaN as no verdict.

    Returns
    -------
    Preferences
        With the lengths of the outputs.

    Raises
    ------
    InvalidInputError
        As `read_outputs`; also for another preference, or several annotators, whose verdicts are not pooled.
    """
    rows = _rows(path)
    if any("annotator" in row for _, row in rows):
        _only(rows, "annotator", path)
    return Preferences(
        model=_only(rows, "generator_2", path),
        opponent=_only(rows, "generator_1", path),
        prompts=[_text(row, "instruction", where) for where, row in rows],
        values=np.array([_preference(row, where) for where, row in rows]) - 1.0,
        model_lengths=np.array([float(len(_text(row, "output_2", where))) for where, row in rows]),
        opponent_lengths=np.array([float(len(_text(row, "output_1", where))) for where, row in rows]),
    )


def read_stored_judge(path: str | Path) -> TableJudge:
    """Read annotations.json as a judge of the very responses that stand in it; errors as `read_annotations`."""
    table, rows = read_annotations(path), _rows(path)
    pairs = [
        ResponsePair(prompt=row["instruction"], response=row["output_2"], opponent_response=row["output_1"])
        for _, row in rows
    ]
    name = str(rows[0][1].get("annotator", Path(path).name))
    return TableJudge(name=name, annotations=dict(zip(pairs, table.values.tolist(), strict=True)))


def write_annotations(
    path: str | Path,
    pairs: Sequence[ResponsePair],
    table: Preferences,
    annotator: str,
    *,
    control: LengthControl | None = None,
) -> None:
    """Write annotations.json, whole or not at all; no verdict is null.

    Parameters
    ----------
    path : path
    pairs : sequence of ResponsePair
        The texts, in the order of the table.
    table : Preferences
    annotator : str
        The judge's name.
    control : LengthControl, optional
        Adds ``glm_preference``, the length-controlled preferences (in [0, 1], as AlpacaEval does).
    """
    if tuple(pair.prompt for pair in pairs) != tuple(table.prompts):
        raise InvalidInputError(
            explain(
                "pairs",
                got="other prompts than the table's, or another order",
                expected="those of the table",
                hint="the pairs that were judged",
            )
        )
    rows = []
    for i, (pair, value) in enumerate(zip(pairs, table.values.tolist(), strict=True)):
        row = {
            "instruction": pair.prompt,
            "output_1": pair.opponent_response,
            "generator_1": table.opponent,
            "output_2": pair.response,
            "generator_2": table.model,
            "annotator": annotator,
            "preference": None if math.isnan(value) else 1.0 + value,
        }
        rows.append(row if control is None else {**row, "glm_preference": float(control.preferences[i])})
    _write(path, rows)


def leaderboard_row(
    table: Preferences, control: LengthControl | None = None, mode: str = "community"
) -> dict[str, str | float | int | None]:
    """A row of the leaderboard, by AlpacaEval's names and in its units (percent, characters)."""
    rate = table.win_rate()
    return {
        "win_rate": rate.percent,
        "standard_error": rate.standard_error,
        "n_wins": rate.num_wins,
        "n_wins_base": rate.num_losses,
        "n_draws": rate.num_ties,
        "n_total": rate.num_judged,
        "discrete_win_rate": rate.discrete_percent,
        "mode": mode,
        "avg_length": None if table.model_lengths is None else int(table.model_lengths.mean()),
        "length_controlled_winrate": None if control is None else control.percent,
        "lc_standard_error": None if control is None else control.spread_error,
    }


def write_leaderboard(path: str | Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a leaderboard (CSV, the models' names in an unnamed first column), whole or not at all.

    Parameters
    ----------
    path : path
    rows : mapping
        Of a model's name to its `leaderboard_row`. AlpacaEval orders by the length-controlled win rate; here they keep
        the order given.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines: list[list[Any]] = [
        ["", *names],
        *([model, *(row.get(name) for name in names)] for model, row in rows.items()),
    ]
    text = "\n".join(",".join(_cell(value) for value in line) for line in lines)
    write_durably(Path(path), text + "\n")


def read_leaderboard(path: str | Path) -> dict[str, dict[str, str | float | None]]:
    """Read a leaderboard: numbers as floats, empty cells as None, all else as text.

    Raises
    ------
    InvalidInputError
        For a file that cannot be read, or a model that stands twice.
    """
    found: dict[str, dict[str, str | float | None]] = {}
    bad = BadRows(source="leaderboard", policy="leave_out")
    for where, row in read_table(str(path), bad):
        (_, model), *cells = row.items()
        if model in found:
            raise _bad(where, f"{model!r} a second time", "each model once")
        found[model] = {name: _value(cell) for name, cell in cells}
    if bad.first:
        wrong = [line for lines in bad.first.values() for line in lines]
        raise _bad(str(path), "; ".join(wrong), "lines that can be read")
    return found


def read_weights(path: str | Path) -> dict[str, LengthWeights]:
    """Read published weights of the GLM by model.

    Raises
    ------
    InvalidInputError
        For a file without their columns.
    """
    found = {}
    for model, row in read_leaderboard(path).items():
        values = {name: row.get(name) for name in (LENGTH, DIFFICULTY, QUALITY)}
        length, difficulty, quality = values.values()
        if not (isinstance(length, float) and isinstance(difficulty, float) and isinstance(quality, float)):
            raise _bad(f"{path}, {model!r}", f"{values}", "a number in each of these columns")
        found[model] = LengthWeights(quality=quality, length=length, difficulty=difficulty)
    return found


def _cell(value: Any) -> str:
    text = "" if value is None else repr(value) if isinstance(value, float) else str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n\r') else text


def _value(cell: str) -> str | float | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def _write(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_durably(Path(path), json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _rows(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise _bad(str(path), f"{type(error).__name__}: {error}", "a JSON file that can be read") from error
    if not isinstance(content, list) or not content or not all(isinstance(row, dict) for row in content):
        raise _bad(str(path), f"a {type(content).__name__}", "a list of one object or more")
    for i, row in enumerate(content):
        if row.get("input"):
            raise _bad(f"{path}, row {i}", f"input={row['input']!r:.40}", "all of the prompt in `instruction`")
    return [(f"{path}, row {i}", row) for i, row in enumerate(content)]


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise _bad(where, f"{name}={value!r:.40}", "a text")
    return value


def _only(rows: Sequence[tuple[str, Mapping[str, Any]]], name: str, path: str | Path) -> str:
    """The text that a field holds on every row."""
    values = list(dict.fromkeys(_text(row, name, where) for where, row in rows))
    if len(values) > 1:
        raise _bad(str(path), f"{name} is {', '.join(map(shown, values[:3]))}", "one for the whole file")
    return values[0]


def _preference(row: Mapping[str, Any], where: str) -> float:
    value = row.get("preference", "nothing")
    if value is None:
        return math.nan
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (1 <= value <= 2 or value == 0 or value != value)
    ):
        raise _bad(where, f"preference={value!r:.40}", "a number from 1 to 2, 0 for a draw, or null")
    return 1.5 if value == 0 else float(value)


def _bad(where: str, got: str, expected: str) -> InvalidInputError:
    return InvalidInputError(explain(where, got=got, expected=expected, hint="a file as AlpacaEval writes it"))
