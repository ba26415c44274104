"""Names that settings give, held against those that there are: columns of a table above all."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from mixlogit_align.alignment.data.files import Line
from mixlogit_align.errors import InvalidInputError, explain

PEEK = 100  # rows at most; in JSON lines a row need not have every column


def with_columns(lines: Iterable[Line], wanted: Iterable[str], what: str) -> Iterator[Line]:
    """The same rows, once the first ones are known to have the columns ``wanted`` between them.

    Raises
    ------
    InvalidInputError
        Names a column that is not there, and the nearest one that is.
    """
    rows = iter(lines)
    head: list[Line] = []
    wanted, known = list(wanted), dict[str, None]()
    for line in islice(rows, PEEK):
        head.append(line)
        known.update(dict.fromkeys(line[1]))
        if known.keys() >= set(wanted):
            break
    if head:
        require_known(wanted, known, what)
    return chain(head, rows)


def require_known(wanted: Iterable[str], known: Iterable[str], what: str, kind: str = "column") -> None:
    """Refuse a name that is none of the ``known`` ones, with the nearest; ``kind`` is what bears the names."""
    known = list(known)
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise InvalidInputError(
                explain(
                    what,
                    got=f"unknown {kind} {name!r}",
                    expected=f"one of {', '.join(known)}" if known else f"none: there is no {kind}",
                    hint=repr(near[0]) if near else "another table",
                )
            )
