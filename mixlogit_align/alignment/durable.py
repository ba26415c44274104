"""Files and folders written whole or not at all: under another name, on disk, and only then renamed.

A kill at any moment leaves what stood there before, or all that is new.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from mixlogit_align.alignment.parallel import World
from mixlogit_align.errors import MixlogitError, explain


def write_durably(path: Path, text: str) -> None:
    """Replace a file by ``text``: after a kill at any moment it holds the old or the new text, whole."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write what ``path`` is to hold; several processes may do so at once, and the last one stands."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink()


class WholeFolder:
    """A folder that the main process writes in steps.

    Parameters
    ----------
    folder : Path
        Replaced where it exists.
    what : str
        What is being done, for the error where it cannot be.
    world : World
        Every process takes every step.
    """

    def __init__(self, folder: Path, what: str, world: World) -> None:
        self.folder, self.what, self.world = folder, what, world
        self.partial = folder.with_name(f".{folder.name}.partial")

    @contextmanager
    def step(self) -> Iterator[None]:
        """What fails on the main process fails on all, and leaves nothing half written.

        Raises
        ------
        MixlogitError
            When a file cannot be written, e.g. because the disk is full; what stood there before still does.
        """
        met: Exception | None = None
        try:
            yield
        except (OSError, SafetensorError) as error:
            met = MixlogitError(
                explain(
                    self.what,
                    got=f"{type(error).__name__}: {error}",
                    expected="room for it",
                    hint="freeing space and resuming the run",
                )
            )
        except Exception as error:
            met = error
        if met is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
        self.world.agree(met)

    def begin(self) -> Path:
        """Make ``partial``, empty, on the main process; returns it."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        return self.partial

    def finish(self) -> None:
        """Put ``partial`` in the folder's place, on the main process; none by its name is ever half there."""
        for path in self.partial.rglob("*"):
            _sync(path)
        replaced = self.folder.with_name(f".{self.folder.name}.removed")
        shutil.rmtree(replaced, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(replaced)
        self.partial.rename(self.folder)
        sync_folder(self.folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` last."""
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
