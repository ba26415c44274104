"""What the readers share: finding a data folder, opening its files, keeping a random part."""

from __future__ import annotations

import gzip
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO, TypeVar

from mixlogit_align.errors import InvalidInputError, explain

T = TypeVar("T")


def data_folder(name: str) -> Path:
    """The folder ``name`` with environment variables and ``~`` expanded; an error when it is not there."""
    folder = Path(os.path.expandvars(os.path.expanduser(name)))
    if not folder.is_dir():
        raise InvalidInputError(
            explain(
                "data folder",
                got=f"{name!r} ({folder})",
                expected="a folder that exists",
                hint="setting the environment variable in it, or writing the whole path",
            )
        )
    return folder


def open_text(folder: Path, name: str) -> TextIO:
    """Open ``name`` or ``name.gz`` in ``folder`` as UTF-8 text."""
    path, packed = folder / name, folder / f"{name}.gz"
    if path.is_file():
        return path.open(encoding="utf-8", newline="")
    if packed.is_file():
        return gzip.open(packed, "rt", encoding="utf-8", newline="")
    raise InvalidInputError(
        explain(str(folder), got=f"no {name}", expected=f"{name} or {name}.gz", hint="another folder")
    )


def keep_random(rows: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """A random part of ``rows`` of size ``limit``, in their order; all of them when ``limit`` is None."""
    if limit is None or limit >= len(rows):
        return list(rows)
    kept = sorted(random.Random(seed).sample(range(len(rows)), limit))
    return [rows[i] for i in kept]
