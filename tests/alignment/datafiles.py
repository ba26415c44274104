"""Writing the small data sets that tests of the readers read."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

TURN = "\n\nAssistant:"
Rows = Iterable[Mapping[str, Any]]


def write(path: Path, rows: Rows) -> Path:
    """Write rows in the format that the ending of ``path`` names."""
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        ending = Path(path.name.removesuffix(".gz")).suffix
        if ending == ".json":
            json.dump(rows, file)
        elif ending == ".jsonl":
            file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        else:
            table = csv.DictWriter(file, rows[0].keys())
            table.writeheader()
            table.writerows(
                {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()} for row in rows
            )
    return path


def asked(question: object, answer: str) -> str:
    """A transcript of one turn."""
    return f"\n\nHuman: {question}{TURN} {answer}" if answer else f"\n\nHuman: {question}{TURN}"
