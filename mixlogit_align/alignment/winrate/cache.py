"""Answers of an endpoint on disk: a rerun asks nothing twice, and an interrupted one loses nothing."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mixlogit_align.errors import InvalidInputError, explain


def fingerprint(request: Mapping[str, Any]) -> str:
    """SHA-256 of a request: its URL, model, messages and every setting, in any order."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class AnswerCache:
    """Answers by the fingerprint of their request, one JSON line each. A context manager.

    A line is on disk when `put` returns. A last line that a kill cut short is removed when the file is opened, and its
    request is asked again. One process at a time may hold the file.

    Parameters
    ----------
    path : path or None
        None keeps the answers in memory alone.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._answers: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._file: Any = None

    def __enter__(self) -> AnswerCache:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
            try:
                self._hold()
                self._read()
            except BaseException:
                self._file.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer to a request, if it is known."""
        with self._lock:
            return self._answers.get(key)

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep an answer."""
        with self._lock:
            self._answers[key] = dict(answer)
            if self._file is not None:
                self._file.write(json.dumps({"key": key, "answer": answer}).encode() + b"\n")
                self._file.flush()
                os.fsync(self._file.fileno())

    def _hold(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InvalidInputError(
                explain(
                    f"cache {self.path}",
                    got="a file that another process holds",
                    expected="one judge at a time",
                    hint="waiting for it to end, or another cache",
                )
            ) from error

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                record = json.loads(line)
                self._answers[record["key"]] = dict(record["answer"])
            except (ValueError, TypeError, KeyError) as error:
                raise InvalidInputError(
                    explain(
                        f"cache {self.path}:{number}",
                        got=f"{line[:40]!r}",
                        expected="an answer as this package writes it",
                        hint="removing the line, whose request is then asked again, or another file",
                    )
                ) from error
