"""Metrics for TensorBoard and W&B: views of ``metrics.jsonl``, which holds everything they get."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mixlogit_align.errors import InvalidInputError, explain

Record = Mapping[str, Any]  # a line of metrics.jsonl
PLACE = ("stage", "split", "step", "examples_seen")  # where a record belongs; its other fields are metrics


class Tracker(Protocol):
    """Takes the records of ``metrics.jsonl`` as they are written."""

    def write(self, record: Record, /) -> None: ...

    def close(self, *, failed: bool = False) -> None: ...


def open_trackers(
    names: Sequence[str], folder: Path, *, config: Mapping[str, Any], name: str, kept: Sequence[Record] = ()
) -> list[Tracker]:
    """The trackers of a run, ready for its next record.

    Parameters
    ----------
    names : sequence of {"tensorboard", "wandb"}
    folder : Path
        The run folder.
    config : mapping
        The resolved configuration, as plain values; W&B keeps it with the run.
    name : str
        What W&B calls the run.
    kept : sequence of mapping
        The records that a resumed run goes on from: ``metrics.jsonl``, cut back. What was tracked after them is
        superseded.

    Raises
    ------
    InvalidInputError
        A package is not installed, or W&B could not start.
    """
    require_packages(names)
    trackers: list[Tracker] = []
    for kind in names:
        if kind == "tensorboard":
            trackers.append(TensorBoardTracker(folder / "tensorboard", kept))
        else:
            trackers.append(WandbTracker(folder, config=config, name=name, kept=len(kept)))
    return trackers


def require_packages(names: Sequence[str]) -> None:
    """Refuse trackers whose package cannot be imported; to be called before anything is written."""
    for name in names:
        try:
            if name == "tensorboard":
                import torch.utils.tensorboard  # noqa: F401
            else:
                import wandb  # noqa: F401
        except ImportError as error:
            raise InvalidInputError(
                explain(
                    "tracking",
                    got=f"{name!r}, which cannot be imported ({error})",
                    expected=f"the package {name}, installed",
                    hint='pip install "mixlogit_align[tracking]"',
                )
            ) from error


def metrics_of(record: Record) -> dict[str, float]:
    """The metrics of a record, without where it belongs."""
    return {name: value for name, value in record.items() if name not in PLACE}


class TensorBoardTracker:
    """Event files ``<folder>/<stage>/<split>``: TensorBoard then draws training and held-out curves in one chart.

    Every scalar stands over ``examples_seen``. Each file's first record hides what an interrupted run wrote beyond
    the records that were kept; every record is on disk once it is written.

    Parameters
    ----------
    folder : Path
    kept : sequence of mapping
        See `open_trackers`.
    """

    def __init__(self, folder: Path, kept: Sequence[Record] = ()) -> None:
        self._folder = folder
        self._purge = {(record["stage"], record["split"]): record["examples_seen"] + 1 for record in kept}
        self._writers: dict[tuple[str, str], Any] = {}

    def write(self, record: Record) -> None:
        """Append the record's metrics to the event file of its stage and split."""
        from torch.utils.tensorboard import SummaryWriter

        key = record["stage"], record["split"]
        if key not in self._writers:
            self._writers[key] = SummaryWriter(self._folder.joinpath(*key), purge_step=self._purge.get(key, 0))
        for name, value in metrics_of(record).items():
            self._writers[key].add_scalar(name, value, record["examples_seen"])
        self._writers[key].flush()

    def close(self, *, failed: bool = False) -> None:
        """Close the event files."""
        for writer in self._writers.values():
            writer.close()


class WandbTracker:
    """A W&B run, with its files and its id in the run folder, so that a resumed run goes on with it.

    Metrics are named stage/split/metric and drawn over the stage's ``examples_seen``. W&B's own environment variables
    hold: ``WANDB_MODE=offline`` writes to the folder alone, for ``wandb sync``; ``WANDB_PROJECT`` names the project
    ("mixlogit_align" without it). Neither terminal output nor code nor the git remote, which may hold a password, is
    recorded. A record's number is its W&B step, and W&B cannot unwrite: what an interrupted run sent beyond the
    records that were kept stays, and is not sent again. (Offline, W&B does not know what it had; the rows are written
    again, equal but for the clock.)

    Parameters
    ----------
    folder : Path
        The run folder.
    config : mapping
    name : str
    kept : int
        How many records a resumed run goes on from.
    """

    def __init__(self, folder: Path, *, config: Mapping[str, Any], name: str, kept: int = 0) -> None:
        import wandb

        known = folder / "wandb_id.txt"
        if not known.exists():
            known.write_text(uuid.uuid4().hex[:8] + "\n", encoding="utf-8")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "mixlogit_align"),
                name=name,
                id=known.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=str(folder),
                config=dict(config),
                settings=wandb.Settings(console="off", disable_git=True, disable_code=True),
            )
        except wandb.Error as error:
            raise InvalidInputError(
                explain(
                    "tracking",
                    got=f"'wandb', which says: {str(error).splitlines()[0].rstrip('.')}",
                    expected="a W&B account that can be reached",
                    hint="`wandb login`, or WANDB_MODE=offline",
                )
            ) from error
        self._next = kept
        self._first_new = self._run.step
        self._stages: set[str] = set()

    def write(self, record: Record) -> None:
        """Log the record's metrics under its number."""
        stage, split, number = record["stage"], record["split"], self._next
        self._next += 1
        if number < self._first_new:
            return
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/examples_seen")
        values = {f"{stage}/{split}/{name}": value for name, value in metrics_of(record).items()}
        self._run.log({f"{stage}/examples_seen": record["examples_seen"], **values}, step=number)

    def close(self, *, failed: bool = False) -> None:
        """Finish the run; W&B shows one that ``failed`` so."""
        self._run.finish(exit_code=int(failed))
