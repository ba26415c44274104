"""Columns of tables, checked row by row."""

# R rows.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mixlogit_align.errors import InvalidInputError, explain

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, Any]


def require_frame(frame: object, name: str) -> None:
    """Raise if it is no table."""
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise InvalidInputError(
            explain(name, got=f"a {type(frame).__name__}", expected="a pandas DataFrame", hint="pandas.DataFrame(rows)")
        )


def require_columns(frame: pd.DataFrame, roles: Mapping[str, Sequence[str]]) -> None:
    """Raise if a column of any role is missing or ambiguous."""
    columns = list(frame.columns)
    for role, wanted in roles.items():
        for column in wanted:
            if columns.count(column) != 1:
                raise InvalidInputError(
                    explain(
                        role,
                        got=f"column {column!r} ({columns.count(column)} such columns)",
                        expected=f"one of {columns}",
                        hint="the name of a column of the table",
                    )
                )


def label_codes(frame: pd.DataFrame, column: str) -> tuple[Array, tuple[Any, ...]]:
    """Number the labels of a column in the order in which they first appear."""
    import pandas as pd

    codes, labels = pd.factorize(frame[column])
    reject_rows(frame, column, codes < 0, "a label in every row")
    return codes.astype(np.int64, copy=False), tuple(labels.tolist())


def numeric_columns(frame: pd.DataFrame, columns: Sequence[str]) -> Array:
    """(R, C) float64."""
    values = [finite_numbers(frame, column) for column in columns]
    return np.stack(values, axis=-1) if values else np.zeros((len(frame), 0))


def finite_numbers(frame: pd.DataFrame, column: str) -> Array:
    """(R,) float64."""
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(frame[column]):
        raise InvalidInputError(
            explain(
                f"column {column!r}",
                got=f"type {frame[column].dtype}",
                expected="numbers",
                hint="pandas.to_numeric, or dummy columns for a category",
            )
        )
    values: Array = frame[column].to_numpy(dtype=np.float64, na_value=np.nan)
    reject_rows(frame, column, ~np.isfinite(values), "a finite number in every row")
    return values


def zero_or_one(frame: pd.DataFrame, column: str) -> Array:
    """(R,) bool, of a column of 0 and 1 or False and True."""
    values = finite_numbers(frame, column)
    reject_rows(frame, column, (values != 0) & (values != 1), "0 or 1")
    ones: Array = values == 1
    return ones


def reject_rows(frame: pd.DataFrame, column: str, bad: Any, expected: str, hint: str | None = None) -> None:
    """Raise if any row is bad, naming the first by its index label and counting the rest."""
    rows = np.flatnonzero(np.asarray(bad))
    if len(rows):
        value = frame[column].iloc[rows[0]]
        raise InvalidInputError(
            explain(
                f"column {column!r}",
                got=f"{show(value)} in row {show(frame.index[rows[0]])} ({len(rows)} such rows)",
                expected=expected,
                hint=hint or "correcting or removing these rows, or naming another column",
            )
        )


def show(label: Any) -> str:
    """As Python writes it, without NumPy's types."""
    return repr(label.item() if isinstance(label, np.generic) else label)
