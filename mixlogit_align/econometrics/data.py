"""Choices as tensors, checked row by row."""

# N individuals, T situations of an individual (at most), S situations in all, J alternatives, V attributes.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from mixlogit_align.errors import InvalidInputError, explain

if TYPE_CHECKING:
    import pandas as pd

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class ChoiceData:
    """Who chose what from which alternatives.

    Made by :meth:`from_long`, :meth:`from_wide` or :meth:`from_logratios`, which check it; individuals,
    situations and alternatives keep the order in which they first appear. Made by hand, it is checked by
    :meth:`validate`.

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
    clusters : dict of str to torch.Tensor, shape (N,), int64
        Which cluster each individual belongs to, by the name of the column.
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
    clusters: dict[str, torch.Tensor] = field(default_factory=dict)

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

    def covariate(self, variable: str) -> torch.Tensor:
        """Values of an attribute that belongs to the individual.

        Parameters
        ----------
        variable : str

        Returns
        -------
        torch.Tensor, shape (N,), float64

        Raises
        ------
        InvalidInputError
            Naming the first individual within whom it varies.
        """
        values = self.attribute(variable)
        lowest, highest = (
            values.new_zeros(self.num_individuals).scatter_reduce(0, self.individual, extreme, how, include_self=False)
            for extreme, how in zip(self._extremes(values), ("amin", "amax"), strict=True)
        )
        self._require(
            "individuals",
            lowest != highest,
            what=f"attribute {variable!r}",
            expected="one value within an individual, over situations and available alternatives",
            hint="a column of the individual, or a coefficient of its own for this attribute",
        )
        return lowest

    def cluster(self, column: str) -> torch.Tensor:
        """Which cluster each individual belongs to.

        Parameters
        ----------
        column : str
            One of those read as ``clusters``, or an attribute that is constant within individuals.

        Returns
        -------
        torch.Tensor, shape (N,), int64
            Codes 0, 1, ...

        Raises
        ------
        InvalidInputError
            If the column was not read, or varies within an individual.
        """
        if column in self.clusters:
            return self.clusters[column]
        if column not in self.variables:
            raise InvalidInputError(
                explain(
                    "cluster",
                    got=f"column {column!r}",
                    expected=f"one of the clusters {list(self.clusters)}, or an attribute of the individual",
                    hint=f"clusters=[{column!r}] where the data are read",
                )
            )
        codes: torch.Tensor = torch.unique(self.covariate(column), return_inverse=True)[1]
        return codes

    def with_constants(self, base: Any = None) -> ChoiceData:
        """The same data with a constant for every alternative but one.

        Parameters
        ----------
        base : label of an alternative, optional
            The one without; None: the first.

        Returns
        -------
        ChoiceData
            With J - 1 more attributes ``"asc.<alternative>"``: 1 for that alternative, 0 for the others.

        Raises
        ------
        InvalidInputError
            If ``base`` is no alternative, or a name is taken.
        """
        return self._by_alternative(torch.ones_like(self.available, dtype=torch.float64), "asc.", base)

    def with_interactions(self, variable: str, base: Any = None) -> ChoiceData:
        """The same data with an attribute of the situation, such as income, interacted with the alternatives.

        Parameters
        ----------
        variable : str
            Constant over the alternatives of every situation.
        base : label of an alternative, optional
            The one without; None: the first.

        Returns
        -------
        ChoiceData
            With J - 1 more attributes ``"<variable>:<alternative>"``: the value for that alternative, 0 for the
            others.

        Raises
        ------
        InvalidInputError
            Naming the first situation in which the attribute varies; or if ``base`` is no alternative, or a name
            is taken.
        """
        values = self.attribute(variable)
        lowest, highest = self._extremes(values)
        self._require(
            "situations",
            lowest != highest,
            what=f"attribute {variable!r}",
            expected="one value over the alternatives",
            hint="the attribute itself in the utilities, or only columns of the individual or the situation here",
        )
        return self._by_alternative(values, f"{variable}:", base)

    def _by_alternative(self, values: torch.Tensor, prefix: str, base: Any) -> ChoiceData:
        """Append values (S, J) split by alternative, one attribute each but for the base."""
        if base is None:
            base = self.alternatives[0]
        if base not in self.alternatives:
            raise InvalidInputError(
                explain("base", got=repr(base), expected=f"one of {list(self.alternatives)}", hint="a label as read")
            )
        kept = [j for j, label in enumerate(self.alternatives) if label != base]
        names = [f"{prefix}{self.alternatives[j]}" for j in kept]
        taken = [new for new in names if new in self.variables]
        if taken:
            raise InvalidInputError(
                explain("attributes", got=f"{taken} twice", expected="each name once", hint="adding them once only")
            )
        columns = values.new_zeros(*values.shape, len(kept))
        columns[:, kept, range(len(kept))] = values[:, kept] * self.available[:, kept]
        return replace(
            self, attributes=torch.cat([self.attributes, columns], dim=-1), variables=(*self.variables, *names)
        )

    def _extremes(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Least and greatest of (S, J) over the available alternatives of each situation."""
        lowest = values.masked_fill(~self.available, torch.inf).amin(1)
        return lowest, values.masked_fill(~self.available, -torch.inf).amax(1)

    def validate(self, variables: Sequence[str] = ()) -> None:
        """Check the tensors, and that attributes can have a coefficient.

        Parameters
        ----------
        variables : sequence of str
            Attributes of the utilities: each must vary over the alternatives of some situation.

        Raises
        ------
        InvalidInputError
            Naming the tensor, the situation or individual and the rule broken, or the attribute whose
            coefficient is not identified.
        """
        s, n, j, v = len(self.choice), len(self.individuals), len(self.alternatives), len(self.variables)
        tensors = {
            "attributes": (self.attributes, (s, j, v), torch.float64),
            "available": (self.available, (s, j), torch.bool),
            "choice": (self.choice, (s,), torch.int64),
            "individual": (self.individual, (s,), torch.int64),
            "weights": (self.weights, (n,), torch.float64),
        } | {f"clusters[{name!r}]": (codes, (n,), torch.int64) for name, codes in self.clusters.items()}
        for name, (tensor, shape, dtype) in tensors.items():
            if tensor.shape != shape or tensor.dtype != dtype:
                raise InvalidInputError(
                    explain(
                        name,
                        got=f"shape {tuple(tensor.shape)}, {tensor.dtype}",
                        expected=f"{shape}, {dtype}",
                        hint="as many rows as choices, and one column a name",
                    )
                )
        for name, labels in (("variables", self.variables), ("alternatives", self.alternatives)):
            if len(set(labels)) < len(labels):
                raise InvalidInputError(
                    explain(name, got=list(labels), expected="each name once", hint="joining or renaming the double")
                )

        strangers = (self.individual < 0) | (self.individual >= n)
        self._require("situations", strangers, what="individual", expected=f"an index 0..{n - 1}")
        numbers = torch.bincount(self.individual, minlength=n)
        self._require("individuals", numbers == 0, what="individual", expected="one situation or more")
        positive = self.weights.isfinite() & (self.weights > 0)
        self._require("individuals", ~positive, what="weights", expected="a positive frequency")
        infinite = ~self.attributes.isfinite().flatten(1).all(1)
        self._require("situations", infinite, what="attributes", expected="finite numbers")
        hidden = (self.attributes * ~self.available[..., None]).flatten(1).any(1)
        self._require("situations", hidden, what="attributes", expected="0 where an alternative is not available")
        small = self.available.sum(1) < 2
        self._require("situations", small, what="available", expected="two or more alternatives to choose from")
        outside = (self.choice < 0) | (self.choice >= j)
        self._require("situations", outside, what="choice", expected=f"an index 0..{j - 1}")
        refused = ~self.available.gather(1, self.choice[:, None])[:, 0]
        self._require("situations", refused, what="choice", expected="the chosen alternative to be available")

        for variable in variables:
            lowest, highest = self._extremes(self.attribute(variable))
            if bool((lowest == highest).all()):
                raise InvalidInputError(
                    explain(
                        f"attribute {variable!r}",
                        got="one value for all alternatives in every situation",
                        expected="an attribute that varies over alternatives; a constant's coefficient is not "
                        "identified, since it drops out of utility differences",
                        hint=f"with_interactions({variable!r}), with_constants(), or a mean covariate",
                    )
                )

    def _require(
        self,
        along: Literal["situations", "individuals"],
        bad: torch.Tensor,
        *,
        what: str,
        expected: str,
        hint: str = "correcting or leaving out these rows",
    ) -> None:
        """Raise if any situation (S,) or individual (N,) is bad, naming the first."""
        if bool(bad.any()):
            first = int(bad.nonzero()[0, 0])
            person = first if along == "individuals" else int(self.individual[first])
            who = f"individual {self.individuals[person]!r}" if 0 <= person < len(self.individuals) else "nobody"
            where = f"{who}, situation {first}" if along == "situations" else who
            raise InvalidInputError(
                explain(
                    what, got=f"otherwise for {where} ({int(bad.sum())} such {along})", expected=expected, hint=hint
                )
            )

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
        clusters: Sequence[str] = (),
    ) -> ChoiceData:
        """Read a table with one row for each alternative of each situation.

        Parameters
        ----------
        frame : pandas.DataFrame
            Rows in any order.
        choice : str
            Column that is 1 (or True) in the row of the alternative chosen, 0 (or False) in the others; or that
            holds the label of the alternative chosen, the same in every row of a situation.
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
        clusters : sequence of str
            Columns of labels of any type, one value an individual: groups of individuals that may depend on
            each other, for clustered standard errors.

        Returns
        -------
        ChoiceData

        Raises
        ------
        InvalidInputError
            If ``frame`` is no table. Naming the column, the row (its index label) and the rule broken: missing
            ids, values that are not finite numbers, an alternative twice in a situation, none or several chosen,
            fewer than two available, a situation of two individuals.
        """
        import pandas as pd

        _require_frame(frame, "frame")
        _require_columns(
            frame,
            {
                "choice": [choice],
                "alternative": [alternative],
                "situation": [situation],
                "individual": _maybe(individual),
                "availability": _maybe(availability),
                "weights": _maybe(weights),
                "clusters": clusters,
                "variables": () if variables is None else variables,
            },
        )
        if variables is None:
            roles = {choice, alternative, situation, individual, availability, weights, *clusters}
            others = [column for column in frame.columns if column not in roles]
            variables = [column for column in others if pd.api.types.is_numeric_dtype(frame[column])]
        _require_content(frame, variables)

        row_alternative, alternatives = _codes(frame, alternative)
        label, people = _codes(frame, situation)
        row_person = row_situation = label
        if individual is not None:
            row_person, people = _codes(frame, individual)
            row_situation = pd.factorize(row_person * (label.max() + 1) + label)[0]
        chosen = _chosen(frame, choice, alternative, row_situation)
        offered = np.ones_like(chosen) if availability is None else _indicator(frame, availability)
        _reject_rows(frame, choice, chosen & ~offered, "the chosen alternative to be available")
        table = frame[list(variables)]
        values = _columns(table if availability is None else table[offered], variables)

        first_row = _first(row_situation)
        s, j = len(first_row), len(alternatives)
        cell = row_situation * j + row_alternative
        if individual is None:
            anew = "naming individual=, if situations are numbered anew for each person"
        else:
            anew = "ids of situations that differ within an individual"
        times = np.bincount(cell, minlength=s * j)
        if times.max() > 1:
            twice = pd.Series(cell).duplicated().to_numpy()
            _reject_rows(frame, alternative, twice, "each alternative once in a situation", hint=anew)
        available = np.zeros(s * j, dtype=bool)
        available[cell] = offered
        sizes = available.reshape(s, j).sum(1)
        taken = np.bincount(row_situation[chosen], minlength=s)
        incomplete = (sizes < 2) | (taken != 1)
        keys = [*_maybe(individual), situation]
        if individual is not None and incomplete.any():
            same = label == label[first_row[incomplete][0]]
            _reject_torn(frame, individual, situation, alternative, same, chosen)
        _reject_situations(frame, first_row, keys, sizes, sizes < 2, "two or more alternatives to choose from")
        _reject_situations(frame, first_row, keys, taken, taken != 1, "one chosen alternative", hint=anew)

        attributes = np.zeros((s * j, len(variables)))
        attributes[cell[offered]] = values
        choice_index = np.empty(s, dtype=np.int64)
        choice_index[row_situation[chosen]] = row_alternative[chosen]
        return cls(
            attributes=torch.from_numpy(attributes.reshape(s, j, -1)),
            available=torch.from_numpy(available.reshape(s, j)),
            choice=torch.from_numpy(choice_index),
            individual=torch.from_numpy(row_person[first_row]),
            weights=_frequencies(frame, weights, row_person),
            variables=tuple(variables),
            alternatives=alternatives,
            individuals=people,
            is_panel=individual is not None,
            clusters=_clusters(frame, clusters, row_person),
        )

    @classmethod
    def from_wide(
        cls,
        frame: pd.DataFrame,
        *,
        choice: str,
        alternatives: Sequence[Any] | Mapping[Any, Any],
        varying: Mapping[str, str | Mapping[Any, str]],
        constant: Sequence[str] = (),
        individual: str | None = None,
        situation: str | None = None,
        availability: str | Mapping[Any, str] | None = None,
        weights: str | None = None,
        clusters: Sequence[str] = (),
    ) -> ChoiceData:
        """Read a table with one row a situation and columns for each alternative.

        Parameters
        ----------
        frame : pandas.DataFrame
            Rows in any order.
        choice : str
            Column that holds the label of the alternative chosen.
        alternatives : sequence of labels, or mapping of label to name
            What ``choice`` may hold; a mapping such as ``{1: "train", 2: "car"}`` names coded labels.
        varying : mapping of attribute to columns
            Either a pattern for all alternatives, ``{"price": "price_{alternative}"}``, or the column of each,
            ``{"price": {"car": "price_car", "bus": "fare"}}``, where an alternative left out has 0.
        constant : sequence of str
            Columns of the individual or the situation, such as income: attributes equal for all alternatives.
        individual : str, optional
            Column that names who chose; None: a cross-section.
        situation : str, optional
            Column that names the situations, each once (within an individual); None: rows are numbered from 0.
        availability : str or mapping of alternative to column, optional
            A pattern such as ``"{alternative}_AV"`` or columns: 0 (or False) where the alternative could not be
            chosen; its attributes are not read there. Alternatives left out of a mapping are always available.
        weights, clusters : optional
            As in :meth:`from_long`.

        Returns
        -------
        ChoiceData

        Raises
        ------
        InvalidInputError
            Naming the column, the row (its index label) and the rule broken.
        """
        import pandas as pd

        _require_frame(frame, "frame")
        names = alternatives if isinstance(alternatives, Mapping) else {label: label for label in alternatives}
        labels = tuple(names.values())
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise InvalidInputError(
                explain(
                    "alternatives",
                    got=list(labels),
                    expected="two or more, each name once",
                    hint="the values of the column of choices",
                )
            )
        attribute_columns = {variable: _of_alternatives(variable, spec, labels) for variable, spec in varying.items()}
        offer_columns = {} if availability is None else _of_alternatives("availability", availability, labels)
        variables = [*varying, *constant]
        _require_columns(
            frame,
            {
                "choice": [choice],
                **{f"varying {variable!r}": list(by.values()) for variable, by in attribute_columns.items()},
                "constant": constant,
                "individual": _maybe(individual),
                "situation": _maybe(situation),
                "availability": list(offer_columns.values()),
                "weights": _maybe(weights),
                "clusters": clusters,
            },
        )
        _require_content(frame, variables)

        available = np.ones((len(frame), len(labels)), dtype=bool)
        for name, column in offer_columns.items():
            available[:, labels.index(name)] = _indicator(frame, column)
        chosen = pd.Index(list(names), tupleize_cols=False).get_indexer(frame[choice])
        _reject_rows(frame, choice, chosen < 0, f"one of the alternatives {list(names)}")
        refused = ~available[np.arange(len(frame)), chosen]
        _reject_rows(frame, choice, refused, "the chosen alternative to be available")
        sizes = available.sum(1)
        _reject_rows(frame, choice, sizes < 2, "two or more alternatives to choose from in its row")
        attributes = np.zeros((*available.shape, len(variables)))
        for v, by in enumerate(attribute_columns.values()):
            for name, column in by.items():
                j = labels.index(name)
                attributes[available[:, j], j, v] = _numbers(frame.loc[available[:, j], [column]], column)
        attributes[..., len(varying) :] = _columns(frame, constant)[:, None] * available[..., None]

        keys = [*_maybe(individual), *_maybe(situation)]
        if situation is not None:
            situations = _codes(frame, situation)[1]
            twice = frame.duplicated(keys).to_numpy()
            _reject_rows(frame, situation, twice, "one row a situation", hint="from_long, if rows are alternatives")
        else:
            situations = tuple(range(len(frame)))
        return _from_situations(
            cls,
            frame,
            attributes=attributes,
            available=available,
            choice=chosen,
            variables=variables,
            alternatives=labels,
            situations=situations,
            individual=individual,
            weights=weights,
            clusters=clusters,
        )

    @classmethod
    def from_logratios(
        cls,
        source: str | PathLike[str] | pd.DataFrame,
        *,
        individual: str | None = None,
        weights: str | None = None,
        clusters: Sequence[str] = (),
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
        clusters : sequence of str
            Columns of labels, as in :meth:`from_long`.

        Returns
        -------
        ChoiceData
            Alternatives ``("rejected", "chosen")``, one variable ``"logratio_diff"``.

        Raises
        ------
        InvalidInputError
            Naming the column and the row, or the file that is none.
        """
        table = _read_parquet(source) if isinstance(source, str | PathLike) else source
        _require_frame(table, "source")
        _require_columns(
            table,
            {
                "logratio_diff": ["logratio_diff"],
                "individual": _maybe(individual),
                "weights": _maybe(weights),
                "clusters": clusters,
            },
        )
        _require_content(table, ["logratio_diff"])
        attributes = np.zeros((len(table), 2, 1))  # the rejected response is the origin
        attributes[:, 1, 0] = _numbers(table, "logratio_diff")
        return _from_situations(
            cls,
            table,
            attributes=attributes,
            available=np.ones((len(table), 2), dtype=bool),
            choice=np.ones(len(table), dtype=np.int64),
            variables=["logratio_diff"],
            alternatives=("rejected", "chosen"),
            situations=tuple(range(len(table))),
            individual=individual,
            weights=weights,
            clusters=clusters,
        )


def _from_situations(
    cls: type[ChoiceData],
    frame: pd.DataFrame,
    *,
    attributes: _Array,
    available: _Array,
    choice: _Array,
    variables: Sequence[str],
    alternatives: tuple[Any, ...],
    situations: tuple[Any, ...],
    individual: str | None,
    weights: str | None,
    clusters: Sequence[str],
) -> ChoiceData:
    """Data of a table whose rows are the situations."""
    if individual is None:
        person, people = np.arange(len(frame)), situations
    else:
        person, people = _codes(frame, individual)
    return cls(
        attributes=torch.from_numpy(attributes),
        available=torch.from_numpy(available),
        choice=torch.from_numpy(choice),
        individual=torch.from_numpy(person),
        weights=_frequencies(frame, weights, person),
        variables=tuple(variables),
        alternatives=alternatives,
        individuals=people,
        is_panel=individual is not None,
        clusters=_clusters(frame, clusters, person),
    )


def _maybe(column: str | None) -> list[str]:
    return [] if column is None else [column]


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


def _require_columns(frame: pd.DataFrame, roles: Mapping[str, Sequence[str]]) -> None:
    columns = list(frame.columns)
    for role, wanted in roles.items():
        for column in wanted:
            if columns.count(column) != 1:
                raise InvalidInputError(
                    explain(
                        role,
                        got=f"column {column!r}, which the table has {columns.count(column)} times",
                        expected=f"one of {columns}",
                        hint="the name of a column of the table",
                    )
                )


def _require_content(frame: pd.DataFrame, variables: Sequence[str]) -> None:
    if not len(frame) or not len(variables) or len(set(variables)) < len(variables):
        raise InvalidInputError(
            explain(
                "frame",
                got=f"{len(frame)} rows, attributes {list(variables)}",
                expected="at least one situation and one numeric attribute, each attribute once",
                hint="checking the filter that made the table, and the types of its columns",
            )
        )


def _of_alternatives(role: str, spec: str | Mapping[Any, str], labels: tuple[Any, ...]) -> Mapping[Any, str]:
    """The column of each alternative, from a pattern or as given."""
    if isinstance(spec, str):
        if "{alternative}" in spec:
            return {label: spec.replace("{alternative}", str(label)) for label in labels}
        raise InvalidInputError(
            explain(
                role,
                got=repr(spec),
                expected="a pattern with {alternative} in it, or a mapping of alternative to column",
                hint="constant=, if the column belongs to the individual",
            )
        )
    unknown = [label for label in spec if label not in labels]
    if unknown:
        raise InvalidInputError(
            explain(role, got=f"columns of {unknown}", expected=f"alternatives {list(labels)}", hint="their names")
        )
    return spec


def _codes(frame: pd.DataFrame, column: str) -> tuple[_Array, tuple[Any, ...]]:
    """Number the labels of a column in the order in which they first appear."""
    import pandas as pd

    codes, labels = pd.factorize(frame[column])
    _reject_rows(frame, column, codes < 0, "a label in every row")
    return codes.astype(np.int64, copy=False), tuple(labels.tolist())


def _first(codes: _Array) -> _Array:
    """First row of each code, where codes are numbered in the order in which they first appear."""
    return np.flatnonzero(np.diff(np.maximum.accumulate(codes), prepend=-1))


def _frequencies(frame: pd.DataFrame, column: str | None, person: _Array) -> torch.Tensor:
    first = _first(person)
    if column is None:
        return torch.ones(len(first), dtype=torch.float64)
    numbers = _numbers(frame, column)
    _reject_rows(frame, column, numbers <= 0, "a positive frequency")
    return torch.from_numpy(_constant(frame, column, numbers, person, first))


def _clusters(frame: pd.DataFrame, columns: Sequence[str], person: _Array) -> dict[str, torch.Tensor]:
    first = _first(person)
    return {
        column: torch.from_numpy(_constant(frame, column, _codes(frame, column)[0], person, first))
        for column in columns
    }


def _constant(frame: pd.DataFrame, column: str, values: _Array, person: _Array, first: _Array) -> _Array:
    """One value an individual."""
    kept: _Array = values[first]
    _reject_rows(
        frame, column, values != kept[person], "one value within an individual (a situation, where none is named)"
    )
    return kept


def _chosen(frame: pd.DataFrame, choice: str, alternative: str, situation: _Array) -> _Array:
    """Which rows are chosen, from an indicator or from the label of the alternative chosen.

    An indicator is read first; labels 0 and 1 cannot be mistaken for one silently, since no situation would have
    exactly one row chosen.
    """
    import pandas as pd

    column, labels = frame[choice], frame[alternative]
    indicator = column.isin((0, 1))
    if indicator.all():
        return (column == 1).to_numpy(dtype=bool)  # type: ignore[no-any-return]
    labelled = column.isin(labels.unique())
    if not labelled.all():
        strange = ~(indicator | labelled)
        expected = f"0 or 1, or a label of column {alternative!r}"
        _reject_rows(frame, choice, strange if strange.any() else ~indicator, expected)
    codes = pd.factorize(column)[0]
    torn = codes != codes[_first(situation)][situation]
    _reject_rows(frame, choice, torn, "0 or 1, or the label of the chosen alternative in every row of a situation")
    return (column.astype(object) == labels.astype(object)).to_numpy(dtype=bool)  # type: ignore[no-any-return]


def _reject_torn(
    frame: pd.DataFrame, individual: str, situation: str, alternative: str, same: _Array, chosen: _Array
) -> None:
    """Raise if the rows (R,) bool of one label of a situation, whoever's they are, make one whole situation."""
    rows = frame[same]
    people = list(dict.fromkeys(rows[individual]))
    if len(people) > 1 and chosen[same].sum() == 1 and not rows[alternative].duplicated().any():
        raise InvalidInputError(
            explain(
                f"situation {situation}={_show(rows[situation].iloc[0])}, from row {_show(rows.index[0])}",
                got=f"rows under {len(people)} individuals, {', '.join(map(_show, people[:3]))}",
                expected="all rows of a situation under one individual",
                hint=f"correcting column {individual!r} in these rows",
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
    first_row: _Array,
    keys: list[str],
    counts: _Array,
    bad: _Array,
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


def _columns(frame: pd.DataFrame, columns: Sequence[str]) -> _Array:
    """(R, C) numbers."""
    return np.stack([_numbers(frame, column) for column in columns], -1) if columns else np.zeros((len(frame), 0))


def _numbers(frame: pd.DataFrame, column: str) -> _Array:
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
    values: _Array = frame[column].to_numpy(dtype=np.float64, na_value=np.nan)
    _reject_rows(frame, column, ~np.isfinite(values), "a finite number in every row")
    return values


def _indicator(frame: pd.DataFrame, column: str) -> _Array:
    values = _numbers(frame, column)
    _reject_rows(frame, column, (values != 0) & (values != 1), "0 or 1")
    indicator: _Array = values == 1
    return indicator
