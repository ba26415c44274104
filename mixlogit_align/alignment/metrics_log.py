"""``metrics.jsonl``: every number of a run, cut back to the last checkpoint where the run is resumed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mixlogit_align.alignment.tracking import Tracker


class MetricsLog:
    """``metrics.jsonl``: one JSON object a line, on disk as soon as it is written. A context manager.

    Parameters
    ----------
    path : Path or None
        None writes nothing: processes other than the main one.
    keep_bytes : int
        What lies beyond this is cut off: a resumed run writes it again.
    begun : float, optional
        When this part of the run began, by `time.perf_counter`; now by default.

    Attributes
    ----------
    records : list of dict
        What the file holds.
    trackers : sequence of Tracker
        Get every record too, and are closed with the log.
    """

    def __init__(self, path: Path | None, *, keep_bytes: int = 0, begun: float | None = None) -> None:
        self.records: list[dict[str, Any]] = []
        self.trackers: Sequence[Tracker] = ()
        self._file = None
        self._before = 0.0
        if path is not None:
            self._file = path.open("a+", encoding="utf-8", buffering=1)
            self._file.truncate(keep_bytes)
            self._file.seek(0)
            self.records = [json.loads(line) for line in self._file]
            self._before = self.records[-1]["seconds"] if self.records else 0.0
        self._start = time.perf_counter() if begun is None else begun

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self.trackers:
            tracker.close(failed=kind is not None)
        if self._file is not None:
            self._file.close()

    @property
    def seconds(self) -> float:
        """What the run has taken so far, resumed parts together."""
        return self._before + time.perf_counter() - self._start

    def write(self, **record: Any) -> None:
        """Append one record and the seconds that the run has taken."""
        if self._file is not None:
            self.records.append({**record, "seconds": round(self.seconds, 3)})
            self._file.write(json.dumps(self.records[-1]) + "\n")
            for tracker in self.trackers:
                tracker.write(self.records[-1])

    def durable_bytes(self) -> int:
        """Length of the file, after all of it has reached the disk."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()
