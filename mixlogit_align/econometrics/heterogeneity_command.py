"""What ``mixlogit-align strength`` does: the strength behind a table of pairs or a run, as files and as text."""

from __future__ import annotations

import dataclasses
import json
import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from mixlogit_align.econometrics.command import read_table
from mixlogit_align.econometrics.heterogeneity import (
    VARIABLE,
    Progress,
    no_progress,
    require_comparisons,
    strength_heterogeneity,
)
from mixlogit_align.econometrics.heterogeneity_results import StrengthHeterogeneity
from mixlogit_align.errors import InvalidInputError, explain

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "heterogeneity"
RESULT, ANNOTATORS = "heterogeneity.json", "annotators.parquet"
HELD_OUT = "log_ratios.parquet"  # of a run
ANNOTATOR = "annotator_id"


def measure_strength(options: Namespace, progress: Progress = no_progress) -> tuple[StrengthHeterogeneity, Path]:
    """Fit strengths to a table, and write what was found.

    Parameters
    ----------
    options : argparse.Namespace
        table : Path, a table or the folder of a run; annotator : str or None, the column, None for ``annotator_id``
        where there is one; no_annotator : bool; family, weights, level; out : Path or None; overwrite : bool.
    progress : callable, optional
        As of :func:`strength_heterogeneity`.

    Returns
    -------
    found : StrengthHeterogeneity
    folder : Path
        Has ``heterogeneity.json`` and, with a strength an annotator, ``annotators.parquet``.

    Raises
    ------
    InvalidInputError
        If the table or an option breaks a rule, or results are there that are not to be replaced.
    ConvergenceError
        If no strength is most likely.
    """
    is_run = options.table.is_dir()
    path = options.table / HELD_OUT if is_run else options.table
    if is_run and not path.is_file():
        raise InvalidInputError(
            explain(
                str(options.table),
                got=f"no {HELD_OUT} there",
                expected="the folder of a run that has finished a preference stage",
                hint="the `out` of the run's configuration, or a table",
            )
        )
    frame = read_table(path)
    require_comparisons(frame, options.annotator, options.weights)
    own = (
        FOLDER if is_run else f"{path.name.removesuffix('.gz').removesuffix('.csv').removesuffix('.parquet')}-{FOLDER}"
    )
    folder = options.out or path.parent / own
    result = folder / RESULT
    if result.exists() and not options.overwrite:
        raise InvalidInputError(
            explain(
                "--out", got=f"{folder}, which holds results", expected="a new folder", hint="--overwrite, or another"
            )
        )
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(explain("--out", got=f"the file {folder}", expected="a folder", hint="another name"))
    annotator = options.annotator
    if annotator is None and not options.no_annotator and ANNOTATOR in frame.columns:
        annotator = None if bool(frame[ANNOTATOR].isna().all()) else ANNOTATOR  # a run that knows none has it empty
    found = strength_heterogeneity(
        frame,
        annotator=annotator,
        family=options.family,
        weights=options.weights,
        level=options.level,
        held_out=True if is_run else None,
        progress=progress,
    )
    if annotator is None and not options.no_annotator:
        found = dataclasses.replace(found, warnings=(*found.warnings, *_perhaps_annotators(frame, options.weights)))
    folder.mkdir(parents=True, exist_ok=True)
    result.unlink(missing_ok=True)  # it is written last: where it stands, all is whole
    if found.annotator_posteriors is None:
        (folder / ANNOTATORS).unlink(missing_ok=True)
    else:
        found.annotator_posteriors.to_parquet(folder / ANNOTATORS, index=False)
    record = {"table": os.fspath(path)} | found.to_json()
    partial = result.with_name(f".{RESULT}.partial")
    partial.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(result)
    return found, folder


def _perhaps_annotators(frame: pd.DataFrame, weights: str | None) -> list[str]:
    """Where nobody is known: columns that might say who judged, texts or whole numbers that come again."""
    from pandas.api.types import is_integer_dtype, is_object_dtype, is_string_dtype

    if ANNOTATOR in frame.columns:
        return []
    names = [
        str(name)
        for name, column in frame.items()
        if name not in (VARIABLE, weights)
        and (is_integer_dtype(column) or is_string_dtype(column) or is_object_dtype(column))
        and 1 < column.astype(str).nunique() < len(column)
    ]
    if not names:
        return []
    return [f"no column {ANNOTATOR}: if one of {', '.join(names)} says who judged, name it with --annotator COLUMN"]
