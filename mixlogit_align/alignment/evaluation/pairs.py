"""Judged pairs with what a policy and its reference say of them: the table that every evaluation starts from.

As a Parquet file it has one row a pair and the columns

- ``pair_id``; ``annotator_id``, text, null where unknown; ``groups``, JSON, attribute -> level; ``weight``;
- ``prompt``, a name for it, the same for equal prompts, and ``item``, a name for prompt and both responses, the same
  whichever was chosen; ``chosen_first``, whether the chosen response was shown first;
- in nats ``policy_chosen``, ``policy_rejected``, ``reference_chosen``, ``reference_rejected``, ``logratio_diff`` and
  ``loglik``; ``chosen_tokens`` and ``rejected_tokens``; ``strength_mean`` and ``pair_weight``.

What is unknown is no column. `write_pairs` adds ``probability``, and can add metrics, for other readers.
"""

# N pairs.

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mixlogit_align.alignment.data.columns import require_known
from mixlogit_align.alignment.durable import replacing
from mixlogit_align.errors import InvalidInputError, explain

Vector = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
NonFinite = Literal["refuse", "leave_out"]

HEADER = b"mixlogit_align.pairs"
# Field -> column of the file, where the two differ.
NAMED = {
    "pair_ids": "pair_id", "annotator_ids": "annotator_id", "prompts": "prompt", "items": "item", "weights": "weight",
}  # fmt: skip
TEXTS = ("annotator_ids", "groups", "prompts", "items")
NUMBERS = (
    "weights", "policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected", "logratio_diff",
    "loglik", "strength_mean", "pair_weight",
)  # fmt: skip
# All but the weight of a pair in the gradient, a ratio that may overflow far out and that no metric needs.
FINITE = NUMBERS[:-1]
COUNTS = ("chosen_tokens", "rejected_tokens")
ROWS = ("pair_ids", *TEXTS, "chosen_first", *NUMBERS, *COUNTS)
TOGETHER = (("policy_chosen", "policy_rejected"), ("reference_chosen", "reference_rejected"), COUNTS)
# Nats by which the logarithm of a probability of 1 may exceed 0 in float32.
ROUNDING = 1e-4
SHOWN = 5  # pairs that an error names
# Share of the log-probabilities by which their difference may be off, sums in float32 included.
AGREEMENT = 1e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class PairTable:
    """Pairs, whom they are from, and what a policy says of them. What is unknown is None.

    Parameters
    ----------
    name : str
        What reports call the policy.
    pair_ids : array, shape (N,)
        Each once.
    annotator_ids : sequence of str or None, optional
        N; who chose, None where unknown.
    groups : sequence of mapping, optional
        N; attribute -> level, e.g. ``{"education": "degree"}``. An attribute that a pair lacks is unknown of it.
    prompts : sequence of str or None, optional
        N; the same for equal prompts, None where unknown.
    items : sequence of str or None, optional
        N; the same where the prompt and the two responses are, whichever of them was chosen; None where unknown.
    chosen_first : array of bool, shape (N,), optional
        Whether the chosen response was shown first.
    weights : array, shape (N,), optional
        How often the choice counts, e.g. its votes; 1 where not given.
    policy_chosen, policy_rejected, reference_chosen, reference_rejected : array, shape (N,), optional
        Log-probabilities of the responses, in nats.
    chosen_tokens, rejected_tokens : array, shape (N,), optional
        Length of the responses as they were scored.
    logratio_diff : array, shape (N,), optional
        ``(policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)``, in nats; worked out where all
        four are known.
    loglik : array, shape (N,), optional
        ``log E sigma(strength * logratio_diff)``, in nats.
    strength_mean : array, shape (N,), optional
        Mean of the strength.
    pair_weight : array, shape (N,), optional
        See `mixlogit_align.alignment.mixdpo_loss`.
    left_out : tuple of int
        pair_ids that were set aside because of a value that is not finite, see `PairTable.of`.

    Raises
    ------
    InvalidInputError
        When columns differ in length, a pair stands twice, one of two columns that belong together is missing, a value
        is not finite, a weight or a length is not above 0, a log-probability is above 0, or ``logratio_diff``
        contradicts the four it comes from: the message names pairs.
    """

    name: str
    pair_ids: Integers
    annotator_ids: Sequence[str | None] | None = None
    groups: Sequence[Mapping[str, str]] | None = None
    prompts: Sequence[str | None] | None = None
    items: Sequence[str | None] | None = None
    chosen_first: npt.NDArray[np.bool_] | None = None
    weights: Vector | None = None
    policy_chosen: Vector | None = None
    policy_rejected: Vector | None = None
    reference_chosen: Vector | None = None
    reference_rejected: Vector | None = None
    chosen_tokens: Integers | None = None
    rejected_tokens: Integers | None = None
    logratio_diff: Vector | None = None
    loglik: Vector | None = None
    strength_mean: Vector | None = None
    pair_weight: Vector | None = None
    left_out: tuple[int, ...] = ()

    @classmethod
    def of(cls, *, non_finite: NonFinite = "refuse", **columns: Any) -> PairTable:
        """A table of these columns.

        Parameters
        ----------
        non_finite : {"refuse", "leave_out"}
            What to do about pairs of which a number is NaN or infinite: an error that names them, or set them aside,
            named in ``left_out``.
        **columns
            Of the class.
        """
        ids = np.asarray(columns["pair_ids"])
        numbers = [np.asarray(columns[name]) for name in FINITE if _known(columns, name)]
        if non_finite == "leave_out" and all(len(columns[name]) == len(ids) for name in ROWS if _known(columns, name)):
            fine = np.logical_and.reduce([np.isfinite(column) for column in numbers] or [ids == ids])
            columns |= {name: _taken(columns[name], np.flatnonzero(fine)) for name in ROWS if _known(columns, name)}
            columns["left_out"] = (*columns.get("left_out", ()), *ids[~fine].tolist())
        return cls(**columns)

    def __post_init__(self) -> None:
        num = len(self.pair_ids)
        given: dict[str, Any] = {"weights": np.ones(num)} if self.weights is None else {}
        for names, kind in ((NUMBERS, np.float64), ((*COUNTS, "pair_ids"), np.int64), (("chosen_first",), np.bool_)):
            given |= {x: np.asarray(getattr(self, x), dtype=kind) for x in names if getattr(self, x) is not None}
        given |= {x: tuple(v) for x in TEXTS if (v := getattr(self, x)) is not None}
        for name, column in given.items():
            object.__setattr__(self, name, column)
            if np.shape(column)[:1] != (num,) or (isinstance(column, np.ndarray) and column.ndim != 1):
                raise InvalidInputError(
                    explain(
                        self._column(name), got=f"shape {np.shape(column)}", expected=f"({num},), one a pair_id",
                        hint="columns of one table",
                    )
                )  # fmt: skip
        for pair in TOGETHER:
            if len(lacking := [name for name in pair if getattr(self, name) is None]) == 1:
                raise InvalidInputError(
                    explain(self.name, got=f"no {lacking[0]}", expected=" and ".join(pair), hint="both, or neither")
                )
        self._check_ids()
        self._check_numbers()
        self._settle_logratio_diff()

    def __len__(self) -> int:
        return len(self.pair_ids)

    @property
    def attributes(self) -> tuple[str, ...]:
        """What groups there are, in alphabetical order."""
        return tuple(sorted({name for groups in self.groups or () for name in groups}))

    def levels(self, attribute: str) -> tuple[str | None, ...]:
        """(N,) the level of each pair; an error for an attribute that no pair has."""
        require_known([attribute], self.attributes, f"attributes of {self.name}", "attribute")
        return tuple(groups.get(attribute) for groups in self.groups or ())

    def with_groups(self, groups: Mapping[int, Mapping[str, str]]) -> PairTable:
        """The same pairs with more attributes, of which those of an earlier name replace it.

        Parameters
        ----------
        groups : mapping
            pair_id -> attribute -> level, also of pairs that are not here; pairs that it lacks keep what they have.
        """
        before = self.groups or [{}] * len(self)
        ids = self.pair_ids.tolist()
        return dataclasses.replace(
            self, groups=[{**own, **groups.get(pair, {})} for pair, own in zip(ids, before, strict=True)]
        )

    def take(self, rows: Integers) -> PairTable:
        """The pairs in these rows, in their order."""
        columns = {name: value for name in ROWS if (value := getattr(self, name)) is not None}
        return dataclasses.replace(self, **{name: _taken(value, rows) for name, value in columns.items()})

    # --- checks ------------------------------------------------------------------------------------

    def _column(self, name: str) -> str:
        return f"{NAMED.get(name, name)} of {self.name}"

    def _check_ids(self) -> None:
        twice = [pair for pair, count in Counter(self.pair_ids.tolist()).items() if count > 1]
        if twice or not len(self):
            raise InvalidInputError(
                explain(
                    self._column("pair_ids"),
                    got=f"{len(twice)} ids more than once ({listed(twice)})" if twice else "no pair",
                    expected="one or more pairs, each once",
                    hint="one split of one data set; `weight` for how often a choice counts",
                )
            )

    def _check_numbers(self) -> None:
        rules: tuple[tuple[Sequence[str], Callable[[Any], Any], str, str], ...] = (
            (FINITE, np.isfinite, "finite numbers", "`non_finite='leave_out'` to set them aside, or mending the run"),
            (("weights", *COUNTS, "strength_mean"), lambda x: x > 0, "numbers above 0", "leaving out empty rows"),
            (("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected", "loglik"),
             lambda x: x <= ROUNDING, "logarithms of probabilities, 0 at most", "log-probabilities summed over tokens"),
        )  # fmt: skip
        for names, rule, expected, hint in rules:
            for name in names:
                column = getattr(self, name)
                if column is not None and not (fine := rule(column)).all():
                    ids = self.pair_ids[~fine].tolist()
                    got = f"{column[~fine][0]} and the like for {len(ids)} of {len(self)} pairs (pair_id {listed(ids)})"
                    raise InvalidInputError(explain(self._column(name), got=got, expected=expected, hint=hint))

    def _settle_logratio_diff(self) -> None:
        columns = (self.policy_chosen, self.policy_rejected, self.reference_chosen, self.reference_rejected)
        if any(column is None for column in columns):
            return
        chosen, rejected, reference_chosen, reference_rejected = (np.asarray(column) for column in columns)
        diff = (chosen - reference_chosen) - (rejected - reference_rejected)
        if self.logratio_diff is None:
            object.__setattr__(self, "logratio_diff", diff)
            return
        room = AGREEMENT * (1.0 - chosen - rejected - reference_chosen - reference_rejected)
        off = np.abs(self.logratio_diff - diff) > room
        if off.any():
            raise InvalidInputError(
                explain(
                    self._column("logratio_diff"),
                    got=f"{self.logratio_diff[off][0]} where the log-probabilities give {diff[off][0]} "
                    f"(pair_id {listed(self.pair_ids[off].tolist())})",
                    expected="(policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)",
                    hint="columns of one run",
                )
            )


def _known(columns: Mapping[str, Any], name: str) -> bool:
    return columns.get(name) is not None


def _taken(column: Any, rows: Integers) -> Any:
    """The rows of a column."""
    return column[rows] if isinstance(column, np.ndarray) else tuple(column[i] for i in rows.tolist())


def listed(ids: Sequence[Any]) -> str:
    """The first of some ids, as errors and reports show them."""
    return ", ".join(map(str, ids[:SHOWN])) + (", ..." if len(ids) > SHOWN else "")


# --- files -----------------------------------------------------------------------------------------


def write_pairs(table: PairTable, path: str | PathLike[str], more: Mapping[str, Vector] | None = None) -> None:
    """Write a table as Parquet, whole or not at all.

    Parameters
    ----------
    table : PairTable
    path : path
        Replaced where it exists; folders above it are made.
    more : mapping of str to array, optional
        Columns (N,) for other readers, e.g. `mixlogit_align.alignment.evaluation.pair_metrics`.
    """
    import pyarrow
    import pyarrow.parquet

    groups = None if table.groups is None else [json.dumps(dict(row), sort_keys=True) for row in table.groups]
    columns = {NAMED.get(name, name): getattr(table, name) for name in ROWS} | {"groups": groups}
    if table.loglik is not None:
        columns["probability"] = np.exp(table.loglik)
    columns |= more or {}
    texts = {NAMED.get(name, name): pyarrow.string() for name in TEXTS}
    arrays = {name: pyarrow.array(x, texts.get(name)) for name, x in columns.items() if x is not None}
    header = {HEADER: json.dumps({"name": table.name, "left_out": table.left_out})}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as file:
        pyarrow.parquet.write_table(pyarrow.table(arrays).replace_schema_metadata(header), file)


def read_pairs(
    path: str | PathLike[str],
    *,
    name: str | None = None,
    groups: Sequence[str] = (),
    non_finite: NonFinite = "refuse",
) -> PairTable:
    """Read a table from Parquet.

    Parameters
    ----------
    path : path
        What `write_pairs` wrote, a run's ``log_ratios.parquet``, or any table with ``pair_id`` and some of the columns
        that this module lists; others are left alone.
    name : str, optional
        Of the policy; by default what the file says, else the file's own.
    groups : sequence of str
        Columns to take as attributes beside those in ``groups``; null is unknown.
    non_finite : {"refuse", "leave_out"}
        See `PairTable.of`.

    Raises
    ------
    InvalidInputError
        When it cannot be read, has no ``pair_id``, or lacks one of ``groups``; and as `PairTable`.
    """
    import pyarrow
    import pyarrow.parquet

    file = None
    try:
        file = pyarrow.parquet.read_table(path)
        header = json.loads((file.schema.metadata or {}).get(HEADER, b"{}"))
        require_known(["pair_id", *groups], file.column_names, f"columns of {path}")
        columns: dict[str, Any] = {
            field: _column_of(file.column(column), field, str(path))
            for field in ROWS
            if (column := NAMED.get(field, field)) in file.column_names
        }
        attributes: list[dict[str, str]] = [
            json.loads(text or "{}") for text in columns.pop("groups", [None] * len(file))
        ]
        for attribute in groups:
            for known, level in zip(attributes, file.column(attribute).to_pylist(), strict=True):
                known |= {} if level is None else {attribute: str(level)}
        if any(attributes):
            columns["groups"] = attributes
    except (OSError, ValueError, TypeError, pyarrow.ArrowException) as error:
        if isinstance(error, InvalidInputError):
            raise
        why = f"{type(error).__name__}: {str(error).strip().splitlines()[0].rstrip('.')}"
        raise InvalidInputError(
            explain(
                str(path),
                got="no whole Parquet file" if file is None and isinstance(error, pyarrow.ArrowInvalid) else why,
                expected="a Parquet table of pairs",
                hint="a file that `mixlogit-align evaluate` wrote",
            )
        ) from error
    return PairTable.of(
        non_finite=non_finite,
        name=name or header.get("name") or Path(path).stem,
        left_out=tuple(header.get("left_out", ())),
        **columns,
    )


def _column_of(column: Any, field: str, path: str) -> Any:
    """Texts as a list, in which null is None; numbers as an array, in which it is NaN; ids and truth need a value."""
    from pyarrow import types

    kind = column.type
    if field in TEXTS:
        fine, expected = types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind), "texts"
    elif field == "chosen_first":
        fine, expected = types.is_boolean(kind) and not column.null_count, "true or false in every row"
    elif field in (*COUNTS, "pair_ids"):
        fine, expected = types.is_integer(kind) and not column.null_count, "a whole number in every row"
    else:
        fine, expected = types.is_floating(kind) or types.is_integer(kind), "numbers"
    if not fine:
        raise InvalidInputError(
            explain(
                f"column {NAMED.get(field, field)!r} of {path}",
                got=f"type {kind} with {column.null_count} nulls of {len(column)}",
                expected=expected,
                hint="another type of the column, or leaving it out",
            )
        )
    return column.to_pylist() if expected == "texts" else column.to_numpy()
