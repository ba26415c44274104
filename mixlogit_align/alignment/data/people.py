"""Tables of people, one row a person, whose columns become groups of what they judge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mixlogit_align.alignment.data.columns import with_columns
from mixlogit_align.alignment.data.files import Line
from mixlogit_align.alignment.data.rows import BadRows, Row, once


def read_people(
    lines: Iterable[Line], groups: tuple[str, ...], bad: BadRows, *, key: str, what: str
) -> dict[str, dict[str, str]]:
    """The person's id in the column ``key`` -> the person's groups.

    Nested columns are named with an underscore, e.g. ``religion_simplified``. An id twice is a bad row; a group that is
    no column is an error that begins with ``what``.
    """
    people: dict[str, dict[str, str]] = {}
    seen: dict[str, str] = {}
    flat = ((where, _flat(values)) for where, values in lines)
    for number, (where, values) in enumerate(with_columns(flat, (key, *groups), what)):
        row = Row(number=number, where=where, values=values)
        with bad.leaving_out(where):
            person = row.text(key)
            once(seen, person, where, key)
            people[person] = row.labels(groups)
    return people


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}_{key}": inner for key, inner in value.items()})
        else:
            flat[name] = value
    return flat
