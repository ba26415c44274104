"""Log-probabilities under a reference in a file of their own, so that runs that share it need not hold the reference.

A Parquet table, one row a comparison: ``pair_id``; ``tokens``, the SHA-256 of the ids that were scored
(`mixlogit_align.alignment.tokenization.token_hash`); ``logps``, in nats, one for each candidate. Its metadata
``mixlogit_align.reference`` hold what they were computed with, as JSON. Any reader of Parquet reads it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixlogit_align.alignment.config import PreferenceConfig
from mixlogit_align.alignment.data.batches import TokenizedComparison
from mixlogit_align.alignment.durable import replacing
from mixlogit_align.alignment.tokenization import token_hash
from mixlogit_align.errors import InvalidInputError, MixlogitError, explain

HEADER = b"mixlogit_align.reference"
LIBRARIES = ("mixlogit_align", "torch", "transformers")
COLUMNS = ("pair_id", "tokens", "logps")


@dataclass(frozen=True, kw_only=True)
class ReferenceKey:
    """What log-probabilities were, or are to be, computed with.

    The first three decide them, together with the tokens of each row. The others decided the tokens: where those
    differ, they tell why.

    Parameters
    ----------
    weights, architecture : str
        Of the reference, as `mixlogit_align.alignment.hf.fingerprint` names them.
    precision : str
        Of the computation.
    tokenizer : str
        As `mixlogit_align.alignment.hf.tokenizer_fingerprint` names it.
    truncation : mapping
        The settings of the tokenization.
    """

    weights: str
    architecture: str
    precision: str
    tokenizer: str
    truncation: Mapping[str, Any]


def write_reference(path: Path, key: ReferenceKey, rows: Sequence[TokenizedComparison], logps: Tensor) -> None:
    """Write the log-probabilities of ``rows``, whole or not at all.

    Parameters
    ----------
    path : Path
        Replaced where it exists; folders above it are made.
    key : ReferenceKey
    rows : sequence of TokenizedComparison
    logps : Tensor
        (N, J) float64, in the order of the rows; beyond a row's candidates it is not written.

    Raises
    ------
    MixlogitError
        When it cannot be written, e.g. because the disk is full.
    """
    import pyarrow
    import pyarrow.parquet

    header = {**dataclasses.asdict(key), "libraries": {name: version(name) for name in LIBRARIES}}
    table = pyarrow.table(
        {
            "pair_id": pyarrow.array([row.comparison.pair_id for row in rows], pyarrow.int64()),
            "tokens": pyarrow.array([token_hash(row) for row in rows], pyarrow.string()),
            "logps": pyarrow.array(
                [values[: len(row.input_ids)] for row, values in zip(rows, logps.tolist(), strict=True)],
                pyarrow.list_(pyarrow.float64()),
            ),
        }
    ).replace_schema_metadata({HEADER: json.dumps(header)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            pyarrow.parquet.write_table(table, file, write_page_checksum=True)
    except OSError as error:
        raise MixlogitError(
            explain(
                _named(path),
                got=f"{type(error).__name__}: {error}",
                expected="a place where it can be written",
                hint="freeing space, or another `preference.reference_cache`, and resuming the run",
            )
        ) from error


def require_cache(config: PreferenceConfig | None) -> None:
    """Refuse a ``reference_cache`` that is there and no such file, by its header; before anything is trained."""
    import pyarrow.parquet

    if config is None or config.reference_cache is None:
        return
    path = Path(config.reference_cache)
    if path.exists():
        with _refusing_damage(path):
            _header(pyarrow.parquet.read_schema(path))


def read_reference(path: Path, key: ReferenceKey, rows: Sequence[TokenizedComparison]) -> Tensor:
    """Read the log-probabilities of ``rows``.

    Parameters
    ----------
    path : Path
        What `write_reference` wrote; it may hold other rows too.
    key : ReferenceKey
        Must be that of the file in weights, architecture and precision.
    rows : sequence of TokenizedComparison
        Each must be in the file, with the same tokens.

    Returns
    -------
    Tensor
        (N, J) float64, in the order of the rows; 0 beyond a row's candidates.

    Raises
    ------
    InvalidInputError
        When the file is damaged, was computed with something else, or lacks rows: the message names what differs.
    """
    import pyarrow.parquet

    with _refusing_damage(path):
        table = pyarrow.parquet.read_table(path, page_checksum_verification=True)
        header = _header(table.schema)
        columns = (table.column(name).to_pylist() for name in COLUMNS)
        known = {(pair_id, tokens): logps for pair_id, tokens, logps in zip(*columns, strict=True)}
    now = dataclasses.asdict(key)
    foreign = [name for name in ("weights", "architecture", "precision") if header[name] != now[name]]
    if foreign:
        raise InvalidInputError(
            explain(
                _named(path),
                got=f"another reference's, of {_listed(foreign, header)}",
                expected=f"that of this run's reference, {_listed(foreign, now)}",
                hint=_anew(path),
            )
        )
    wanted = [(row.comparison.pair_id, token_hash(row)) for row in rows]
    if any(row not in known for row in wanted):
        raise InvalidInputError(
            explain(
                _named(path),
                got=_what_differs(wanted, known, header, now),
                expected=f"all {len(wanted)} comparisons of this run, as it tokenizes them",
                hint=_anew(path),
            )
        )
    width = max(len(row.input_ids) for row in rows)
    found = [known[row] for row in wanted]
    return torch.tensor([[*logps, *[0.0] * (width - len(logps))] for logps in found], dtype=torch.float64)


@contextlib.contextmanager
def _refusing_damage(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, pyarrow.ArrowException) as error:
        raise InvalidInputError(
            explain(
                _named(path),
                got=f"{type(error).__name__}: {str(error).strip().splitlines()[0].rstrip('.')}",
                expected="a whole file as an earlier run wrote it",
                hint="another `preference.reference_cache`: a file that is not there yet is computed and written",
            )
        ) from error


def _header(schema: Any) -> dict[str, Any]:
    """What the log-probabilities of a file were computed with; an error where it has none, or lacks a column."""
    for name in COLUMNS:
        schema.field(name)
    header = json.loads(schema.metadata[HEADER])
    return {field.name: header[field.name] for field in dataclasses.fields(ReferenceKey)}


def _what_differs(
    wanted: Sequence[tuple[int, str]],
    known: Mapping[tuple[int, str], Any],
    header: Mapping[str, Any],
    now: Mapping[str, Any],
) -> str:
    """Which comparisons a file lacks, and which it has with other tokens, with what made them differ."""
    ids = {pair_id for pair_id, _ in known}
    missing = [pair_id for pair_id, tokens in wanted if (pair_id, tokens) not in known]
    lacking = [pair_id for pair_id in missing if pair_id not in ids]
    changed = [pair_id for pair_id in missing if pair_id in ids]
    parts = [f"no log-probabilities of {_pairs(lacking)}"] if lacking else []
    if changed:
        causes = ["another tokenizer"] if header["tokenizer"] != now["tokenizer"] else []
        causes += [
            f"another truncation: {name}={header['truncation'].get(name)!r}, now {value!r}"
            for name, value in now["truncation"].items()
            if header["truncation"].get(name) != value
        ]
        parts.append(f"other tokens of {_pairs(changed)} ({'; '.join(causes) or 'other texts'})")
    return ", and ".join(parts)


def _pairs(ids: Sequence[int], most: int = 5) -> str:
    return f"{len(ids)} pairs (pair_id {', '.join(map(str, ids[:most]))}{', ...' if len(ids) > most else ''})"


def _listed(names: Sequence[str], values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {str(values[name])[:12]}" for name in names)


def _named(path: Path) -> str:
    return f"reference cache {path}"


def _anew(path: Path) -> str:
    return f"another `preference.reference_cache`; or removing {path.name}, so that the run computes and writes it anew"
