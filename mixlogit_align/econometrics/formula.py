"""Utilities written as a formula, in the manner of R."""

# R rows of the table.

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from mixlogit_align.econometrics.columns import Array, reject_rows, require_columns, require_frame, zero_or_one
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.errors import InvalidInputError, explain

if TYPE_CHECKING:
    import pandas as pd

_CONSTANT = "Intercept"  # formulaic's name


def data_from_formula(
    formula: str,
    frame: pd.DataFrame,
    *,
    alternative: str,
    situation: str,
    individual: str | None = None,
    availability: str | None = None,
    weights: str | None = None,
    clusters: Sequence[str] = (),
    base: Any = None,
    others: Sequence[str] = (),
) -> tuple[ChoiceData, list[str]]:
    """Read a long table as a formula says.

    Parameters
    ----------
    formula : str
        ``"choice ~ price + I(time**2) | income"``: the column of choices; terms of the alternatives, each with
        one coefficient; after the bar, terms of the individual or the situation, each with a coefficient for every
        alternative but ``base``. A bar also adds the constants of these alternatives, as in R (``| 1``: only
        them), unless it says ``0 +`` or ``- 1``; without a bar there are none. Terms are those of formulaic:
        interactions ``price:income``, categories ``C(mode)``, functions ``log(price)``.
    frame : pandas.DataFrame
        One row for each alternative of each situation.
    alternative, situation, individual, availability, weights, clusters
        As in :meth:`ChoiceData.from_long`.
    base : label of an alternative, optional
        None: the first.
    others : sequence of str
        Numeric columns to read besides, such as covariates of the means of coefficients.

    Returns
    -------
    data : ChoiceData
    names : list of str
        Attributes of the utilities, as the formula orders them: ``"price"``, ``"I(time ** 2)"``, then
        ``"asc.<alternative>"`` and ``"income:<alternative>"``.

    Raises
    ------
    InvalidInputError
        If the formula cannot be read or has no coefficient; naming column and row, as
        :meth:`ChoiceData.from_long` does, for values that are missing.
    """
    require_frame(frame, "frame")
    choice, terms, individual_terms = _parse(formula)
    used = [column for part in (terms, individual_terms) for column in sorted(part.required_variables)]
    roles = [choice, alternative, situation, *clusters]
    roles += [column for column in (individual, availability, weights) if column is not None]
    require_columns(frame, {"formula": [choice, *used], "columns": roles, "others": others})
    offered = np.ones(len(frame), dtype=bool) if availability is None else zero_or_one(frame, availability)
    read = frame if availability is None else frame[offered]
    for column in used:  # formulaic would leave these rows out, or take a missing label for the first category
        reject_rows(read, column, read[column].isna(), "a value in every row")

    columns = _evaluate(formula, terms, read)
    columns.pop(_CONSTANT)
    by_alternative = _evaluate(formula, individual_terms, read)
    constants = by_alternative.pop(_CONSTANT, None) is not None
    variables = list(dict.fromkeys([*columns, *by_alternative, *others]))
    if not variables:
        _refuse(formula, "no attribute")
    table = frame[list(dict.fromkeys([*roles, *others]))].copy()
    for name, values in (columns | by_alternative).items():
        if name not in table:  # else it is that very column
            table[name] = np.nan
            table.loc[offered, name] = values

    data = ChoiceData.from_long(
        table,
        choice=choice,
        alternative=alternative,
        situation=situation,
        individual=individual,
        variables=variables,
        availability=availability,
        weights=weights,
        clusters=clusters,
    )
    if constants:
        data = data.with_constants(base)
    for name in by_alternative:
        data = data.with_interactions(name, base)
    return data, [*columns, *data.variables[len(variables) :]]


def _parse(formula: str) -> tuple[str, Any, Any]:
    """The column of choices, the terms of alternatives (with a constant) and those of individuals."""
    from formulaic import Formula
    from formulaic.errors import FormulaicError

    if not isinstance(formula, str):
        _refuse(formula, f"of type {type(formula).__name__}")
    try:
        parsed = Formula(formula)
    except FormulaicError as error:
        _refuse(formula, error)
    parts = getattr(parsed, "rhs", ())
    parts = parts if isinstance(parts, tuple) else (parts,)
    if not hasattr(parsed, "lhs") or len(parsed.lhs) != 1 or len(parts) not in (1, 2):
        _refuse(formula, "another structure")
    # a constant makes every category lose a level, without which the levels would sum to it
    terms = Formula(["1", *(term for term in parts[0] if term.degree)])
    return str(parsed.lhs[0]), terms, parts[1] if len(parts) == 2 else Formula([])


def _evaluate(formula: str, terms: Any, frame: pd.DataFrame) -> dict[str, Array]:
    """Columns (R,) of the terms by name."""
    from formulaic.errors import FormulaicError

    if not len(terms):
        return {}
    try:
        # an empty context: names are columns or formulaic's functions, never variables of the caller
        with np.errstate(all="ignore"):  # what is not finite is refused later, by row
            matrix = terms.get_model_matrix(frame, context={}, na_action="ignore")
    except FormulaicError as error:
        _refuse(formula, error)
    return {name: matrix[name].to_numpy(dtype=np.float64) for name in matrix.columns}


def _refuse(formula: object, why: object) -> NoReturn:
    raise InvalidInputError(
        explain(
            "formula",
            got=f"{formula!r}: {str(why).splitlines()[0]}",
            expected="'choice ~ terms of alternatives | terms of individuals', in columns of the table",
            hint="'choice ~ price + time', or 'choice ~ price + time | income'",
        )
    )
