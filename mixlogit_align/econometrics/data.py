"""Choices as tensors, checked row by row."""

# N individuals, T situations of an individual (at most), S situations in all, J alternatives, V attributes.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mixlogit_align.errors import InvalidInputError, explain

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class ChoiceData:
    """Who chose what from which alternatives.

    Made by :meth:`from_long` or :meth:`from_logratios`, which check it; individuals, situations and
    alternatives keep the order in which they first appear.

    Attributes
    ----------
    attributes : torch.Tensor, shape (S, J, V), float64
        Attribute v of alternative j in situation s; 0 where the alternative is not available.
    available : torch.Tensor, shape (S, J), bool
    choice : torch.Tensor, shape (S,), int64
        Index of the alternative chosen.
    individual : torch.Tensor, shape (S,), int64
        Index of who chose, 0..N-1.
    weights : torch.Tensor, shape (N,), float64
        Frequencies: individual n stands for ``weights[n]`` individuals alike.
    variables, alternatives, individuals : tuple
        Names along V, J and N.
    is_panel : bool
        Whether individuals were named, so that one individual may face several situations.
    """

    attributes: torch.Tensor
    available: torch.Tensor
    choice: torch.Tensor
    individual: torch.Tensor
    weights: torch.Tensor
    variables: tuple[str, ...]
    alternatives: tuple[Any, ...]
    individuals: tuple[Any, ...]
    is_panel: bool

    @property
    def num_situations(self) -> int:
        """S."""
        return len(self.choice)

    @property
    def num_individuals(self) -> int:
        """N, rows of the data; frequencies not counted."""
        return len(self.individuals)

    @property
    def num_alternatives(self) -> int:
        """J, over all situations."""
        return len(self.alternatives)

    @property
    def is_binary(self) -> bool:
        """Whether every situation offers exactly two alternatives."""
        return bool((self.available.sum(-1) == 2).all())

    def __repr__(self) -> str:
        kind = "panel" if self.is_panel else "cross-section"
        return (
            f"ChoiceData({kind}: {self.num_individuals} individuals, {self.num_situations} situations, "
            f"{self.num_alternatives} alternatives, variables {list(self.variables)})"
        )

    def attribute(self, variable: str) -> torch.Tensor:
        """Values of one attribute.

        Parameters
        ----------
        variable : str

        Returns
        -------
        torch.Tensor, shape (S, J)

        Raises
        ------
        InvalidInputError
            If no such numeric attribute was read.
        """
        if variable not in self.variables:
            raise InvalidInputError(
                explain(
                    "variable",
                    got=repr(variable),
                    expected=f"one of {list(self.variables)}",
                    hint="a numeric column of the table that the data were read from",
                )
            )
        return self.attributes[..., self.variables.index(variable)]

    def pairs(self, variable: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Binary choices as differences: the second available alternative less the first.

        Parameters
        ----------
        variable : str

        Returns
        -------
        difference : torch.Tensor, shape (S,)
        second : torch.Tensor, shape (S,), float64
            1.0 where the second was chosen.

        Raises
        ------
        InvalidInputError
            If a situation offers another number than two.
        """
        values = self.attribute(variable)
        if not self.is_binary:
            sizes = sorted(set(self.available.sum(-1).tolist()))
            raise InvalidInputError(
                explain(
                    "choice sets",
                    got=f"sizes {sizes}",
                    expected="two alternatives in every situation",
                    hint="keep the pairs only, or treat the data as choices among several",
                )
            )
        index = self.available.nonzero()[:, 1].reshape(-1, 2)
        first, second = values.gather(1, index).unbind(1)
        return second - first, (self.choice == index[:, 1]).to(torch.float64)

    def by_individual(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lay one value a situation out as a row an individual.

        Parameters
        ----------
        values : torch.Tensor, shape (S,)

        Returns
        -------
        rows : torch.Tensor, shape (N, T)
            Situations in their order of appearance, then zeros.
        observed : torch.Tensor, shape (N, T), bool
        """
        order = torch.argsort(self.individual, stable=True)
        counts = torch.bincount(self.individual, minlength=self.num_individuals)
        observed = torch.arange(int(counts.max())) < counts[:, None]
        rows = values.new_zeros(observed.shape)
        rows[observed] = values[order]
        return rows, observed

    @classmethod
    def from_long(
        cls,
        frame: pd.DataFrame,
        *,
        choice: str,
        alternative: str,
        situation: str,
        individual: str | None = None,
        variables: Sequence[str] | None = None,
        availability: str | None = None,
        weights: str | None = None,
    ) -> ChoiceData:
        """Read a table with one row for each alternative of each situation.

        Parameters
        ----------
        frame : pandas.DataFrame
            Rows in any order.
        choice : str
            Column that is 1 (or True) in the row of the alternative chosen, 0 (or False) in the others.
        alternative, situation : str
            Columns of labels, of any type.
        individual : str, optional
            Column that names who chose; None: a cross-section, every situation its own individual. With
            individuals, situations may be numbered anew for each.
        variables : sequence of str, optional
            Attributes to read; None: every other numeric column.
        availability : str, optional
            Column that is 0 (or False) in rows of alternatives that could not be chosen; attributes in such
            rows are not read. A choice set may also simply lack rows.
        weights : str, optional
            Column of frequencies (positive, not necessarily whole), one value an individual (a situation
            in a cross-section): the individual counts as that many alike.

        Returns
        -------
        ChoiceData

        Raises
        ------
        InvalidInputError
            If ``frame`` is no table. Naming the column, the row (its index label) and the rule broken: missing
            ids, values that are not finite numbers, an alternative twice in a situation, none or several chosen,
            fewer than two available.
        """
        import pandas as pd

        _require_frame(frame, "frame")
        roles = {
            "choice": choice,
            "alternative": alternative,
            "situation": situation,
            "individual": individual,
            "availability": availability,
            "weights": weights,
        }
        named = {role: column for role, column in roles.items() if column is not None}
        for role, column in named.items():
            _require_column(frame, column, role)
        if variables is None:
            others = [column for column in frame.columns if column not in named.values()]
            variables = [column for column in others if pd.api.types.is_numeric_dtype(frame[column])]
        for column in variables:
            _require_column(frame, column, "variables")
        if not len(frame) or not len(variables):
            raise InvalidInputError(
                explain(
                    "frame",
                    got=f"{len(frame)} rows, attributes {list(variables)}",
                    expected="at least one situation and one numeric attribute",
                    hint="checking the filter that made the table, and the types of its columns",
                )
            )

        for role in ("alternative", "situation", "individual"):
            if role in named:
                _reject_rows(frame, named[role], frame[named[role]].isna(), "a label in every row")
        chosen = _indicator(frame, choice)
        offered = np.ones_like(chosen) if availability is None else _indicator(frame, availability)
        _reject_rows(frame, choice, chosen & ~offered, "the chosen alternative to be available")
        values = np.stack([_numbers(frame[offered], column) for column in variables], axis=-1)

        keys = [situation] if individual is None else [individual, situation]
        groups = frame.groupby(keys, sort=False, observed=True)
        situation_code = groups.ngroup().to_numpy()
        alternative_code, alternatives = pd.factorize(frame[alternative])
        s, j = int(situation_code.max()) + 1, len(alternatives)

        twice = frame.duplicated([*keys, alternative]).to_numpy()
        anew = (
            "naming individual=, if situations are numbered anew for each person"
            if individual is None
            else "ids of situations that differ within an individual"
        )
        _reject_rows(frame, alternative, twice, "each alternative once in a situation", hint=anew)
        available = np.zeros((s, j), dtype=bool)
        available[situation_code, alternative_code] = offered
        first_row = np.unique(situation_code, return_index=True)[1]
        sizes = available.sum(-1)
        _reject_situations(frame, first_row, keys, sizes, sizes < 2, "two or more alternatives to choose from")
        taken = np.bincount(situation_code[chosen], minlength=s)
        _reject_situations(frame, first_row, keys, taken, taken != 1, "one chosen alternative", hint=anew)

        attributes = np.zeros((s, j, len(variables)))
        attributes[situation_code[offered], alternative_code[offered]] = values
        choice_index = np.empty(s, dtype=np.int64)
        choice_index[situation_code[chosen]] = alternative_code[chosen]

        if individual is None:
            person, people = np.arange(s), frame[situation].iloc[first_row]
        else:
            person, people = pd.factorize(frame[individual].iloc[first_row])
        if weights is None:
            frequency = np.ones(len(people))
        else:
            numbers = _numbers(frame, weights)
            _reject_rows(frame, weights, numbers <= 0, "a positive frequency")
            row_person = person[situation_code]
            frequency = numbers[np.unique(row_person, return_index=True)[1]]
            unit = "an individual" if individual is not None else "a situation"
            _reject_rows(frame, weights, numbers != frequency[row_person], f"one value within {unit}")

        return cls(
            attributes=torch.from_numpy(attributes),
            available=torch.from_numpy(available),
            choice=torch.from_numpy(choice_index),
            individual=torch.as_tensor(person, dtype=torch.int64),
            weights=torch.from_numpy(frequency),
            variables=tuple(variables),
            alternatives=tuple(pd.Index(alternatives).tolist()),
            individuals=tuple(pd.Index(people).tolist()),
            is_panel=individual is not None,
        )

    @classmethod
    def from_logratios(
        cls,
        source: str | PathLike[str] | pd.DataFrame,
        *,
        individual: str | None = None,
        weights: str | None = None,
    ) -> ChoiceData:
        """Read a table of policy-against-reference log-ratio differences, one row a judged pair.

        Each row is a binary choice of ``chosen`` over ``rejected`` whose attribute ``logratio_diff`` is the
        difference in favour of the chosen response.

        Parameters
        ----------
        source : path of a Parquet file, or pandas.DataFrame
            With a column ``logratio_diff``.
        individual : str, optional
            Column that names who judged (``"annotator_id"``); None: a fresh strength for every row.
        weights : str, optional
            Column of frequencies, as in :meth:`from_long` (``pair_weight`` of a run is the slope of the loss,
            not a frequency).

        Returns
        -------
        ChoiceData
            Alternatives ``("rejected", "chosen")``, one variable ``"logratio_diff"``.

        Raises
        ------
        InvalidInputError
            Naming the column and the row, or the file that is none.
        """
        import pandas as pd

        table = _read_parquet(source) if isinstance(source, str | PathLike) else source
        _require_frame(table, "source")
        for role, column in (
            ("logratio_diff", "logratio_diff"),
            ("individual", individual),
            ("weights", weights),
        ):
            if column is not None:
                _require_column(table, column, role)
        kept = [column for column in (individual, weights) if column is not None]
        # one row an alternative: the rejected response is the origin
        difference = _numbers(table, "logratio_diff")
        rejected = table[kept].assign(logratio_diff=0.0, alternative="rejected", choice=0)
        chosen = table[kept].assign(logratio_diff=difference, alternative="chosen", choice=1)
        long = pd.concat([part.assign(situation=range(len(table))) for part in (rejected, chosen)])
        return cls.from_long(
            long,
            choice="choice",
            alternative="alternative",
            situation="situation",
            individual=individual,
            variables=["logratio_diff"],
            weights=weights,
        )


def _require_frame(frame: object, name: str) -> None:
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise InvalidInputError(
            explain(name, got=f"a {type(frame).__name__}", expected="a pandas DataFrame", hint="pandas.DataFrame(rows)")
        )


def _read_parquet(path: str | PathLike[str]) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # no such file, or another format
        raise InvalidInputError(
            explain(
                "source",
                got=f"{str(path)!r}, which cannot be read ({error})",
                expected="a Parquet file",
                hint="log_ratios.parquet of a run's folder, or a pandas DataFrame",
            )
        ) from error


def _require_column(frame: pd.DataFrame, column: str, role: str) -> None:
    if column not in frame.columns:
        raise InvalidInputError(
            explain(
                role,
                got=f"column {column!r}",
                expected=f"one of {list(frame.columns)}",
                hint="the name of a column of the table",
            )
        )


def _reject_rows(frame: pd.DataFrame, column: str, bad: Any, expected: str, hint: str | None = None) -> None:
    """Raise if any row is bad, naming the first by its index label and counting the rest."""
    rows = np.flatnonzero(np.asarray(bad))
    if len(rows):
        value = frame[column].iloc[rows[0]]
        raise InvalidInputError(
            explain(
                f"column {column!r}",
                got=f"{_show(value)} in row {_show(frame.index[rows[0]])} ({len(rows)} such rows)",
                expected=expected,
                hint=hint or "correcting or removing these rows, or naming another column",
            )
        )


def _reject_situations(
    frame: pd.DataFrame,
    first_row: Any,
    keys: list[str],
    counts: Any,
    bad: Any,
    expected: str,
    hint: str = "completing or removing these situations",
) -> None:
    """Raise if any situation is bad, naming the first by its ids and the row where it starts."""
    situations = np.flatnonzero(bad)
    if len(situations):
        row = first_row[situations[0]]
        where = ", ".join(f"{key}={_show(frame[key].iloc[row])}" for key in keys)
        raise InvalidInputError(
            explain(
                f"situation {where}, from row {_show(frame.index[row])}",
                got=f"{counts[situations[0]]} ({len(situations)} such situations)",
                expected=expected,
                hint=hint,
            )
        )


def _show(label: Any) -> str:
    return repr(label.item() if isinstance(label, np.generic) else label)


def _numbers(frame: pd.DataFrame, column: str) -> np.ndarray[Any, Any]:
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
    values: np.ndarray[Any, Any] = frame[column].to_numpy(dtype=np.float64, na_value=np.nan)
    _reject_rows(frame, column, ~np.isfinite(values), "a finite number in every row")
    return values


def _indicator(frame: pd.DataFrame, column: str) -> np.ndarray[Any, Any]:
    values = _numbers(frame, column)
    _reject_rows(frame, column, (values != 0) & (values != 1), "0 or 1")
    indicator: np.ndarray[Any, Any] = values == 1
    return indicator
