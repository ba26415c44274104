"""Choices as tensors, checked row by row."""

# N individuals, T situations of an individual (at most), S situations in all, J alternatives, V attributes.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from mixlogit_align.econometrics.columns import (
    Array,
    finite_numbers,
    label_codes,
    numeric_columns,
    reject_rows,
    require_columns,
    require_frame,
    show,
    zero_or_one,
)
from mixlogit_align.errors import InvalidInputError, explain

if TYPE_CHECKING:
    import pandas as pd


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
    def situation_weights(self) -> torch.Tensor:
        """Frequencies of situations, (S,): of their individuals."""
        return self.weights[self.individual]

    @property
    def null_loglik(self) -> float:
        """Log-likelihood where the alternatives on offer have equal shares."""
        return -float(self.situation_weights @ self.available.sum(-1, dtype=torch.float64).log())

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
            got="different values",
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
            got="different values",
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

        nobody = (self.individual < 0) | (self.individual >= n)
        self._require("situations", nobody, what="individual", got="another index", expected=f"one of 0..{n - 1}")
        idle = torch.bincount(self.individual, minlength=n) == 0
        self._require("individuals", idle, what="individual", got="no situation", expected="one or more")
        bad = ~(self.weights.isfinite() & (self.weights > 0))
        self._require("individuals", bad, what="weights", got="another number", expected="a positive frequency")
        bad = self.available.sum(1) < 2
        self._require("situations", bad, what="available", got="fewer than two alternatives", expected="a choice")
        bad = ~self.attributes.isfinite().flatten(1).all(1)
        self._require("situations", bad, what="attributes", got="nan or infinity", expected="finite numbers")
        bad = (self.attributes * ~self.available[..., None]).flatten(1).any(1)
        self._require(
            "situations", bad, what="attributes", got="values of absent alternatives", expected="0 where not available"
        )
        bad = (self.choice < 0) | (self.choice >= j)
        self._require("situations", bad, what="choice", got="another index", expected=f"one of 0..{j - 1}")
        bad = ~self.available.gather(1, self.choice[:, None])[:, 0]
        self._require("situations", bad, what="choice", got="an absent alternative", expected="an available one")

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
        got: str,
        expected: str,
        hint: str = "correcting or leaving out these rows",
    ) -> None:
        """Raise if any situation (S,) or individual (N,) is bad, naming the first."""
        if bool(bad.any()):
            first = int(bad.nonzero()[0, 0])
            person = first if along == "individuals" else int(self.individual[first])
            where = f"individual {self.individuals[person]!r}" if 0 <= person < len(self.individuals) else "nobody"
            if along == "situations":
                where += f" in situation {first}"
            count = f"{int(bad.sum())} such {along}"
            raise InvalidInputError(explain(what, got=f"{got} for {where} ({count})", expected=expected, hint=hint))

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

        require_frame(frame, "frame")
        require_columns(
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

        row_alternative, alternatives = label_codes(frame, alternative)
        label, people = label_codes(frame, situation)
        row_person = row_situation = label
        if individual is not None:
            row_person, people = label_codes(frame, individual)
            row_situation = pd.factorize(row_person * (label.max() + 1) + label)[0]
        chosen = _chosen(frame, choice, alternative, row_situation)
        offered = np.ones_like(chosen) if availability is None else zero_or_one(frame, availability)
        reject_rows(frame, choice, chosen & ~offered, "the chosen alternative to be available")
        table = frame[list(variables)]
        values = numeric_columns(table if availability is None else table[offered], variables)

        first_row = _first(row_situation)
        s, j = len(first_row), len(alternatives)
        cell = row_situation * j + row_alternative
        if individual is None:
            anew = "naming individual=, if situations are numbered anew for each person"
        else:
            anew = "correcting these rows, or ids of situations that differ within an individual"
        times = np.bincount(cell, minlength=s * j)
        if times.max() > 1:
            twice = pd.Series(cell).duplicated().to_numpy()
            reject_rows(frame, alternative, twice, "each alternative once in a situation", hint=anew)
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

        require_frame(frame, "frame")
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
        require_columns(
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
            available[:, labels.index(name)] = zero_or_one(frame, column)
        chosen = pd.Index(list(names), tupleize_cols=False).get_indexer(frame[choice])
        reject_rows(frame, choice, chosen < 0, f"one of the alternatives {list(names)}")
        refused = ~available[np.arange(len(frame)), chosen]
        reject_rows(frame, choice, refused, "the chosen alternative to be available")
        sizes = available.sum(1)
        reject_rows(frame, choice, sizes < 2, "two or more alternatives to choose from in its row")
        attributes = np.zeros((*available.shape, len(variables)))
        for v, by in enumerate(attribute_columns.values()):
            for name, column in by.items():
                j = labels.index(name)
                attributes[available[:, j], j, v] = finite_numbers(frame.loc[available[:, j], [column]], column)
        attributes[..., len(varying) :] = numeric_columns(frame, constant)[:, None] * available[..., None]

        keys = [*_maybe(individual), *_maybe(situation)]
        if situation is not None:
            situations = label_codes(frame, situation)[1]
            twice = frame.duplicated(keys).to_numpy()
            reject_rows(frame, situation, twice, "one row a situation", hint="from_long, if rows are alternatives")
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
        require_frame(table, "source")
        require_columns(
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
        attributes[:, 1, 0] = finite_numbers(table, "logratio_diff")
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
    attributes: Array,
    available: Array,
    choice: Array,
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
        person, people = label_codes(frame, individual)
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


def _first(codes: Array) -> Array:
    """First row of each code, where codes are numbered in the order in which they first appear."""
    return np.flatnonzero(np.diff(np.maximum.accumulate(codes), prepend=-1))


def _frequencies(frame: pd.DataFrame, column: str | None, person: Array) -> torch.Tensor:
    first = _first(person)
    if column is None:
        return torch.ones(len(first), dtype=torch.float64)
    values = finite_numbers(frame, column)
    reject_rows(frame, column, values <= 0, "a positive frequency")
    return torch.from_numpy(_constant(frame, column, values, person, first))


def _clusters(frame: pd.DataFrame, columns: Sequence[str], person: Array) -> dict[str, torch.Tensor]:
    first = _first(person)
    return {
        column: torch.from_numpy(_constant(frame, column, label_codes(frame, column)[0], person, first))
        for column in columns
    }


def _constant(frame: pd.DataFrame, column: str, values: Array, person: Array, first: Array) -> Array:
    """One value an individual."""
    kept: Array = values[first]
    reject_rows(
        frame, column, values != kept[person], "one value within an individual (a situation, where none is named)"
    )
    return kept


def _chosen(frame: pd.DataFrame, choice: str, alternative: str, situation: Array) -> Array:
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
        reject_rows(frame, choice, strange if strange.any() else ~indicator, expected)
    codes = pd.factorize(column)[0]
    torn = codes != codes[_first(situation)][situation]
    reject_rows(frame, choice, torn, "0 or 1, or the label of the chosen alternative in every row of a situation")
    return (column.astype(object) == labels.astype(object)).to_numpy(dtype=bool)  # type: ignore[no-any-return]


def _reject_torn(
    frame: pd.DataFrame, individual: str, situation: str, alternative: str, same: Array, chosen: Array
) -> None:
    """Raise if the rows (R,) bool of one label of a situation, whoever's they are, make one whole situation."""
    rows = frame[same]
    people = list(dict.fromkeys(rows[individual]))
    if len(people) > 1 and chosen[same].sum() == 1 and not rows[alternative].duplicated().any():
        raise InvalidInputError(
            explain(
                f"situation {situation}={show(rows[situation].iloc[0])}, from row {show(rows.index[0])}",
                got=f"rows under {len(people)} individuals, {', '.join(map(show, people[:3]))}",
                expected="all rows of a situation under one individual",
                hint=f"correcting column {individual!r} in these rows",
            )
        )


def _reject_situations(
    frame: pd.DataFrame,
    first_row: Array,
    keys: list[str],
    counts: Array,
    bad: Array,
    expected: str,
    hint: str = "completing or removing these situations",
) -> None:
    """Raise if any situation is bad, naming the first by its ids and the row where it starts."""
    situations = np.flatnonzero(bad)
    if len(situations):
        row = first_row[situations[0]]
        where = ", ".join(f"{key}={show(frame[key].iloc[row])}" for key in keys)
        raise InvalidInputError(
            explain(
                f"situation {where}, from row {show(frame.index[row])}",
                got=f"{counts[situations[0]]} ({len(situations)} such situations)",
                expected=expected,
                hint=hint,
            )
        )
