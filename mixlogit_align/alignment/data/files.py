"""Where rows come from: local files and folders, and what ``datasets`` loads from a hub."""

from __future__ import annotations

import csv
import glob
import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mixlogit_align.alignment.data.rows import BadRows
from mixlogit_align.errors import InvalidInputError, explain

Line = tuple[str, Mapping[str, Any]]  # where a row stands, and its fields
FORMATS = (".jsonl", ".json", ".csv", ".parquet")
HUB = "hub:"
PEEK = 1000  # characters, enough to see how a JSON file begins
OTHER_SEPARATORS = ";\t|"  # than the comma of CSV


def data_folder(name: str) -> Path:
    """The folder ``name`` with environment variables and ``~`` expanded; an error when it is not there."""
    if name.startswith(HUB):
        raise InvalidInputError(
            explain("data folder", got=repr(name), expected="a local folder", hint="a copy of its files")
        )
    folder = Path(_expanded(name))
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


def read_table(path: str, bad: BadRows, *, name: str | None = None, streaming: bool = False) -> Iterable[Line]:
    """The rows of a table, one after the other.

    Parameters
    ----------
    path : str
        As in the settings: a file, a folder, a pattern, or ``hub:NAME:CONFIGURATION@REVISION#SPLIT``. Several files are
        read in the order of their names.
    bad : BadRows
        Gets the lines that cannot be parsed.
    name : str, optional
        Of a folder or hub, only the files of this name, their ending aside, or of this name and a number
        ("train-00001-of-00004.parquet"); may begin with folders below.
    streaming : bool
        Download a hub's rows as they are read, instead of all ahead.

    Raises
    ------
    InvalidInputError
        Where there is no such file, or one that cannot be read; for a hub that cannot be reached.
    """
    if path.startswith(HUB):
        return _hub_lines(path.removeprefix(HUB), name, streaming)
    files = local_files(path, name)
    place = Path(_expanded(path))
    top = place if place.is_dir() else os.path.commonpath([file.parent for file in files])
    return (line for file in files for line in _file_lines(file, str(file.relative_to(top)), bad))


def local_files(path: str, name: str | None = None) -> list[Path]:
    """The files of a table, see `read_table`."""
    place = Path(_expanded(path))
    if place.is_file() and name is None:
        return [place]
    if place.is_dir():
        folder = place / name if name else place / "_"
        files = [file for file in folder.parent.glob("*") if file.is_file() and _format(file)]
        if name:
            files = [file for file in files if _stem(file) == folder.name or file.match(f"{folder.name}-[0-9]*")]
    else:
        files = [Path(file) for file in glob.glob(str(place)) if name is None and Path(file).is_file()]
    if not files:
        wanted = f"{name}{' or '.join(FORMATS)}" if name else "a file, a folder of files or a pattern"
        raise InvalidInputError(
            explain(
                f"data {path!r} ({place})",
                got=f"no {name or 'such file'}",
                expected=f"{wanted}, with or without .gz",
                hint=f"another path, or {HUB}NAME for a data set of a hub",
            )
        )
    stems = Counter((file.parent, _stem(file)) for file in files)
    if len(stems) < len(files):
        twice = [str(folder / stem) for (folder, stem), count in stems.items() if count > 1]
        raise InvalidInputError(
            explain(f"data {path!r}", got=f"{twice[0]} in two formats", expected="one", hint="removing the other")
        )
    return sorted(files)


def open_text(folder: Path, name: str) -> TextIO:
    """Open ``name`` or ``name.gz`` in ``folder`` as UTF-8 text."""
    path, packed = folder / name, folder / f"{name}.gz"
    if path.is_file():
        return _text(path)
    if packed.is_file():
        return _text(packed)
    raise InvalidInputError(
        explain(str(folder), got=f"no {name}", expected=f"{name} or {name}.gz", hint="another folder")
    )


def _text(file: Path) -> TextIO:
    encoding = "utf-8-sig"  # with or without the mark that some write first
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding=encoding, newline="")
    return file.open(encoding=encoding, newline="")


def _expanded(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").rpartition(".")[0]


def _format(file: Path) -> str | None:
    ending = Path(file.name.removesuffix(".gz")).suffix
    return ending if ending in FORMATS else None


def _file_lines(file: Path, label: str, bad: BadRows) -> Iterator[Line]:
    kind = _format(file)
    with readable(str(file)):
        if kind == ".parquet":
            yield from _parquet_lines(file, label)
        elif kind == ".csv":
            yield from _csv_lines(file, label, bad)
        elif kind == ".jsonl":
            yield from _json_lines(file, label, bad)
        elif kind == ".json":
            yield from _json_rows(file, label, bad)
        else:
            raise InvalidInputError(
                explain(str(file), got="an unknown format", expected=", ".join(FORMATS), hint="another ending")
            )


def _json_lines(file: Path, label: str, bad: BadRows) -> Iterator[Line]:
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{label}:{number}"
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                bad.add(where, "unparsable_line", str(error))
                continue
            if isinstance(values, dict):
                yield where, values
            else:
                bad.add(where, "unparsable_line", f"a {type(values).__name__}, not an object")


def _json_rows(file: Path, label: str, bad: BadRows) -> Iterator[Line]:
    """A list of objects; or lines of them, as some write under this ending."""
    with _text(file) as text:
        if not text.read(PEEK).lstrip().startswith("["):
            yield from _json_lines(file, label, bad)
            return
        text.seek(0)
        for number, values in enumerate(json.load(text), start=1):
            if isinstance(values, dict):
                yield f"{label}:{number}", values
            else:
                bad.add(f"{label}:{number}", "unparsable_line", f"a {type(values).__name__}, not an object")


def _csv_lines(file: Path, label: str, bad: BadRows) -> Iterator[Line]:
    with _text(file) as text:
        rows = csv.DictReader(text)
        columns = Counter(rows.fieldnames or ())
        if len(columns) < columns.total():
            raise InvalidInputError(
                explain(
                    str(file), got=f"column {columns.most_common(1)[0][0]!r} twice", expected="one", hint="renaming"
                )
            )
        if len(columns) == 1 and any(mark in name for name in columns for mark in OTHER_SEPARATORS):
            raise InvalidInputError(
                explain(
                    str(file),
                    got=f"one column, {next(iter(columns))!r}",
                    expected="columns separated by commas",
                    hint="writing the table with commas; the separator of this one is another",
                )
            )
        for values in rows:
            where = f"{label}:{rows.line_num}"
            if None in values or None in values.values():
                bad.add(where, "unparsable_line", "its cells are not as many as the columns")
            else:
                yield where, values


def _parquet_lines(file: Path, label: str) -> Iterator[Line]:
    import pyarrow.parquet

    number = 0
    with pyarrow.parquet.ParquetFile(file) as table:
        for batch in table.iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield f"{label}:{number}", values


def _hub_lines(address: str, name: str | None, streaming: bool) -> Iterator[Line]:
    import datasets

    address, _, split = address.partition("#")
    address, _, revision = address.partition("@")
    address, _, config = address.partition(":")
    split = split or "train"
    files = {"data_files": {split: [f"{name}.*", f"{name}-[0-9]*"]}} if name else {}
    label = f"{address}/{name}" if name else f"{address}#{split}"
    with readable(f"data set {HUB}{label}", Exception):  # a hub has its own ways to fail
        table = datasets.load_dataset(
            address, config or None, split=split, revision=revision or None, streaming=streaming, **files
        )
        for number, values in enumerate(table, start=1):
            yield f"{label}:{number}", values


@contextmanager
def readable(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Say in our words that a file or hub cannot be read."""
    unreadable: tuple[type[Exception], ...] = (
        OSError,
        ValueError,
        EOFError,
        RecursionError,
        zlib.error,
        csv.Error,
        *errors,
    )
    try:
        yield
    except InvalidInputError:
        raise
    except unreadable as error:
        raise InvalidInputError(
            explain(
                what,
                got=f"{type(error).__name__}: {error}",
                expected="a data set that can be read",
                hint="its path or name, whether it is whole, and for a hub the connection",
            )
        ) from error
