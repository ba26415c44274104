"""Rows of data sets, the rules they must keep, and what becomes of those that break one."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from mixlogit_align.alignment.data.schema import Split
from mixlogit_align.errors import InvalidInputError, explain

RULES: Mapping[str, str] = {
    "unparsable_line": "a line is a row in the format of its file",
    "missing_field": "a row has the fields that it is read by",
    "wrong_type": "a field holds what its name promises",
    "empty_prompt": "a prompt has a text",
    "empty_response": "a response has a text",
    "prompts_differ": "responses that repeat the prompt repeat the same one",
    "too_few_candidates": "there are two candidates or more",
    "choice_not_in_set": "the chosen candidate is one of those shown",
    "none_chosen": "a turn has a chosen response",
    "several_chosen": "a turn has one chosen response",
    "history_unclear": "every turn before has one chosen response, so that the conversation so far is known",
    "weight_not_positive": "a weight is a finite number above 0",
    "conflicting_ids": "an id stands for one row",
    "unknown_id": "what a row refers to exists",
    "prompt_in_both_splits": "a prompt that is evaluated on is not trained on",
}
FIRST = 5  # bad rows of each rule that are named


class BadRow(Exception):
    """A row breaks one of `RULES`; it is caught and counted by `BadRows`."""

    def __init__(self, rule: str, detail: str = "") -> None:
        assert rule in RULES, rule
        super().__init__(rule, detail)
        self.rule, self.detail = rule, detail


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a data set.

    Parameters
    ----------
    number : int
        Unique within the data set, and the same whenever it is read.
    where : str
        Where a user finds it, e.g. "train.jsonl.gz:17" (lines and rows count from 1).
    values : mapping
        Its fields.
    split : {"train", "eval"} or None
        The split of the data's own that it stands in.
    """

    number: int
    where: str
    values: Mapping[str, Any]
    split: Split | None = None

    def value(self, name: str) -> Any:
        """The field ``name``; a bad row where it is missing or null."""
        value = self.values.get(name)
        if _null(value):
            raise BadRow("missing_field", name)
        return value

    def text(self, name: str, empty: str | None = None) -> str:
        """The field as text; a bad row for anything else, and by the rule ``empty`` for nothing but white space."""
        return as_text(self.value(name), name, empty)

    def label(self, name: str) -> str | None:
        """The field as the text of a group or an id: a text, a number or a truth value; None where it is empty."""
        value = self.values.get(name)
        if _null(value) or value == "":
            return None
        if not isinstance(value, str | bool | int | float):
            raise BadRow("wrong_type", f"{name} is of type {type(value).__name__}")
        return str(value)

    def labels(self, names: tuple[str, ...]) -> dict[str, str]:
        """The fields that hold a label."""
        return {name: label for name in names if (label := self.label(name)) is not None}

    def flag(self, name: str) -> bool:
        """The field as a truth value; False where it is empty."""
        truth = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
        label = self.label(name)
        if label is not None and label.lower() not in truth:
            raise BadRow("wrong_type", f"{name} is {label!r:.40}")
        return label is not None and truth[label.lower()]

    def number_in(self, name: str) -> float:
        """The field as a finite number."""
        return as_number(self.value(name), name)


def _null(value: Any) -> bool:
    """Whether a field holds nothing; NaN is how tables of numbers say so."""
    return value is None or value != value


def as_text(value: Any, name: str, empty: str | None = None) -> str:
    """``value`` if it is a text, see `Row.text`."""
    if value is None:
        raise BadRow("missing_field", name)
    if not isinstance(value, str):
        raise BadRow("wrong_type", f"{name} is of type {type(value).__name__}")
    if empty and not value.strip():
        raise BadRow(empty, name)
    return value


def as_number(value: Any, name: str) -> float:
    """``value`` as a finite number, written out as in CSV or not."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow("wrong_type", f"{name} is {value!r:.40}")
    return number


def once(seen: dict[Any, str], key: Any, where: str, name: str) -> None:
    """Note where ``key`` stands; a bad row, which names the first one, where it was seen before."""
    if key in seen:
        raise BadRow("conflicting_ids", f"{name} {key}, as in {seen[key]}")
    seen[key] = where


def as_whole(value: Any, name: str) -> int:
    """``value`` as a whole number."""
    if as_number(value, name) % 1:
        raise BadRow("wrong_type", f"{name} is {value!r:.40}")
    try:
        return int(value)  # exact, however large
    except ValueError:  # "3.0"
        return int(float(value))


@dataclass(kw_only=True)
class BadRows:
    """Counts the rows that break a rule, names the first of each, and refuses them or lets them be left out.

    Parameters
    ----------
    source : str
        Named in the error.
    policy : {"refuse", "leave_out"}
    """

    source: str
    policy: Literal["refuse", "leave_out"]
    counts: Counter[str] = field(default_factory=Counter)
    first: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, where: str, rule: str, detail: str = "") -> None:
        """Count one bad row."""
        assert rule in RULES, rule
        self.counts[rule] += 1
        if len(self.first[rule]) < FIRST:
            self.first[rule].append(f"{where} ({detail})" if detail else where)

    @contextmanager
    def leaving_out(self, where: str) -> Iterator[None]:
        """Run a block that reads a row; count it as bad where the block raises `BadRow`, and go on."""
        try:
            yield
        except BadRow as bad:
            self.add(where, bad.rule, bad.detail)

    def settle(self) -> dict[str, Any]:
        """The report's entries, once all rows are read.

        Raises
        ------
        InvalidInputError
            Where there are bad rows and the policy is to refuse them.
        """
        if self.counts and self.policy == "refuse":
            found = "\n".join(
                f"  {rule}: {count} ({', '.join(self.first[rule])}{', ...' if count > FIRST else ''}). "
                f"Rule: {RULES[rule]}."
                for rule, count in self.counts.items()
            )
            raise InvalidInputError(
                explain(
                    f"{self.source} data",
                    got="rows that break a rule",
                    expected="none",
                    hint=f"mending them, or `bad_rows: leave_out` to go on without them:\n{found}",
                )
            )
        return {"bad_rows": dict(self.counts), **({"first_bad_rows": dict(self.first)} if self.first else {})}
