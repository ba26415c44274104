"""AlpacaEval's tables of the shared data, for tests."""

from __future__ import annotations

import csv
import functools
import gzip
from pathlib import Path

import numpy as np

from mixlogit_align.alignment.winrate import LengthWeights, Preferences, read_leaderboard, read_weights

NUM_PROMPTS = 805
NUM_MODELS = 28  # with a row of the leaderboard


@functools.cache
def tables(folder: Path) -> dict[str, Preferences]:
    """Preferences of every model by name, over the baseline."""
    columns: dict[str, list[list[float]]] = {}
    with gzip.open(folder / "preferences.csv.gz", "rt", newline="") as text:
        for row in csv.DictReader(text):
            numbers = [float(row[name]) for name in ("index", "preference", "len_2", "len_1")]
            columns.setdefault(row["model"], []).append(numbers)
    found = {}
    for model, rows in columns.items():
        index, preference, model_lengths, opponent_lengths = np.array(rows).T
        found[model] = Preferences(
            model=model,
            opponent="gpt4_1106_preview",
            prompts=[str(int(i)) for i in index],
            values=preference - 1.0,
            model_lengths=model_lengths,
            opponent_lengths=opponent_lengths,
        )
    return found


@functools.cache
def published(folder: Path) -> dict[str, dict[str, str | float | None]]:
    """Rows of the leaderboard by model."""
    return read_leaderboard(folder / "leaderboard.csv")


@functools.cache
def published_weights(folder: Path) -> dict[str, LengthWeights]:
    """Weights of the GLM by model."""
    return read_weights(folder / "glm_weights.csv")


@functools.cache
def _difficulties(folder: Path) -> dict[str, float]:
    with (folder / "instruction_difficulty.csv").open(newline="") as text:
        return {row["index"]: float(row["instruction_difficulty"]) for row in csv.DictReader(text)}


def difficulty(folder: Path, table: Preferences) -> np.ndarray:
    """Difficulties of a table's instructions."""
    known = _difficulties(folder)
    return np.array([known[prompt] for prompt in table.prompts])
