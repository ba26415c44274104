"""Replications of a study on disk: one line each, written when it is done, never twice."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

from mixlogit_align.econometrics.description import differences
from mixlogit_align.errors import InvalidInputError, explain

SETTINGS, REPLICATIONS = "study.json", "replications.jsonl"


class Quantity(NamedTuple):
    """What one replication says about one quantity.

    Attributes
    ----------
    truth : float
        NaN where the study has none.
    estimate : float
    std_error : float
        NaN where there is none: a spread estimated at 0, a parameter that ended at a bound.
    """

    truth: float
    estimate: float
    std_error: float


@dataclass(frozen=True, kw_only=True)
class Replication:
    """One data set of a study, and its estimates.

    Attributes
    ----------
    number : int
        0, 1, ...; with the study's seed it determines the data.
    seed : int
        Of the simulated choices.
    seconds : float
    failure : str, optional
        Why there is no estimate: the error's type and words.
    converged, at_boundary : bool
        As of :class:`MixedLogitResult`.
    message : str
        The grounds for ``converged``.
    loglik : float
    pvalue : float, optional
        Of the likelihood-ratio test against a fixed strength, where one strength is all there is.
    quantities : dict of str to Quantity
    warnings : tuple of str
        Others than that of convergence, each once.
    """

    number: int
    seed: int
    seconds: float
    failure: str | None = None
    converged: bool = False
    at_boundary: bool = False
    message: str = ""
    loglik: float | None = None
    pvalue: float | None = None
    quantities: Mapping[str, Quantity]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> str:
        """One line, without its end."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Replication:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ValueError, TypeError, KeyError, AttributeError
            If it is something else.
        """
        fields = json.loads(line)
        quantities = {name: Quantity(*values) for name, values in fields.pop("quantities").items()}
        return cls(quantities=quantities, warnings=tuple(fields.pop("warnings")), **fields)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


class StudyFolder:
    """The folder of one study, for one process at a time.

    A context manager. ``study.json`` holds what determines the replications and its SHA-256; ``replications.jsonl`` a
    line for each that is done, on disk before the next is taken. A line that a killed process left unfinished is
    cut off when the folder is opened; all others stand.

    Parameters
    ----------
    path : Path
        Made if it is not there.
    settings : mapping
        JSON.

    Raises
    ------
    InvalidInputError
        If it holds another study, or another process runs it now.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.done: dict[int, Replication] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        self._file = (self.path / REPLICATIONS).open("a+b")
        try:
            self._lock()
            self.done = _read_replications(self.path)
            if self.done:
                self._compare()
            else:
                self._write_settings()
            self._file.truncate(_complete(self.path))
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()  # which gives up the lock

    def append(self, replication: Replication) -> None:
        """Add one that was not there; it is on disk when this returns."""
        assert self._file is not None
        assert replication.number not in self.done
        self._file.write(replication.to_json().encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done[replication.number] = replication

    def _lock(self) -> None:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            got, hint = "a study that another process is running", "waiting for it, or another folder"
            raise _refused(self.path, got, "a folder that nobody writes to", hint) from error

    def _compare(self) -> None:
        known = read_settings(self.path)
        if fingerprint(known) == fingerprint(self.settings):
            return
        found = [f"{where} {one!r} there, {other!r} here" for where, one, other in differences(known, self.settings)]
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        got = f"another study, with {len(self.done)} replications: {'; '.join(found[:3])}{more}"
        raise _refused(self.path, got, "the same study, which goes on where it was", "another folder")

    def _write_settings(self) -> None:
        record = {"settings": self.settings, "sha256": fingerprint(self.settings)}
        unfinished = self.path / f"{SETTINGS}.new"
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps(record, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.path / SETTINGS)


def read_study(path: Path) -> tuple[dict[str, Any], dict[int, Replication]]:
    """Settings and finished replications of a folder, of which another process may be writing more.

    Parameters
    ----------
    path : Path

    Returns
    -------
    settings : dict
    replications : dict of int to Replication

    Raises
    ------
    InvalidInputError
        If it holds no study, or a damaged one.
    """
    if not (path / REPLICATIONS).is_file():
        raise _refused(path, "no study", f"{SETTINGS} and {REPLICATIONS}", "recovery_study(..., out=folder)")
    return read_settings(path), _read_replications(path)


def read_settings(path: Path) -> dict[str, Any]:
    """What determines the replications of a folder, as JSON.

    Parameters
    ----------
    path : Path

    Raises
    ------
    InvalidInputError
        If they are missing, or were changed.
    """
    try:
        record = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        settings, known = dict(record["settings"]), record["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _refused(path, f"{SETTINGS}: {error!r}", "the settings of a study", "another folder") from error
    if fingerprint(settings) != known:
        raise _refused(path, f"{SETTINGS}, which was changed", "settings as they were written", "another folder")
    return settings


def _complete(path: Path) -> int:
    """Bytes up to the end of the last finished line."""
    return (path / REPLICATIONS).read_bytes().rfind(b"\n") + 1


def _read_replications(path: Path) -> dict[int, Replication]:
    found: dict[int, Replication] = {}
    lines = (path / REPLICATIONS).read_bytes()[: _complete(path)].splitlines()
    for i, line in enumerate(lines, 1):
        try:
            replication = Replication.from_json(line.decode())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            got = f"{REPLICATIONS}, line {i}, which cannot be read ({error})"
            raise _refused(path, got, "one replication a line", "another folder") from error
        if replication.number in found:
            got = f"{REPLICATIONS}, line {i}: replication {replication.number} again"
            raise _refused(path, got, "each replication once", "another folder")
        found[replication.number] = replication
    return found


def _refused(path: Path, got: str, expected: str, hint: str) -> InvalidInputError:
    return InvalidInputError(explain(f"study in {str(path)!r}", got=got, expected=expected, hint=hint))
