"""Checkpoints that a killed run resumes from to the bit.

A checkpoint is a folder ``checkpoints/<stage>-<step>`` of `torch.distributed.checkpoint` files, which load on any
number of processes, and a ``manifest.json`` with every file's size and CRC-32. It is written under another name and
renamed when it is whole, so that a kill at any moment leaves the one before it.
"""

from __future__ import annotations

import json
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from mixlogit_align.alignment.durable import sync_folder
from mixlogit_align.alignment.durable import write_durably as write_durably
from mixlogit_align.alignment.parallel import World
from mixlogit_align.errors import InvalidInputError, MixlogitError, explain

MANIFEST = "manifest.json"
MANIFEST_KEYS = ("stage", "step", "log_bytes", "held_out", "processes", "identity", "files")
STAGES = ("sft", "preference")  # in the order in which a run goes through them
PARTIAL, REMOVED = ".partial", ".removed"
CHUNK_BYTES = 1 << 24


class CheckpointError(MixlogitError, RuntimeError):
    """A checkpoint could not be written, or is not whole."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What a checkpoint restores: a module, its optimizer, and tensors of fixed shape beside them.

    Parameters
    ----------
    module : nn.Module
        All parameters that are trained, the strength's among them.
    optimizer : torch.optim.Optimizer
    extra : mapping of str to Tensor
        Loaded in place; the same on every process.
    fixed : set of str
        Names of what in the module never changes, and is not saved.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    fixed: Set[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a checkpoint stands in its run.

    Parameters
    ----------
    stage : str
    step : int
        Steps done in the stage.
    log_bytes : int
        Length of ``metrics.jsonl`` then.
    held_out : mapping of str to mapping
        Stage -> its last held-out metrics.
    """

    stage: str
    step: int
    log_bytes: int
    held_out: Mapping[str, Mapping[str, float]]


class Checkpoints:
    """The checkpoints of a run.

    Parameters
    ----------
    folder : Path
        ``checkpoints/`` in the run folder; made when needed.
    keep : int
        How many to keep; 0 saves none.
    identity : mapping of str to str
        What a checkpoint must share with the run that loads it, e.g. the model's and the data's fingerprints.
    world : World
    """

    def __init__(self, folder: Path, *, keep: int, identity: Mapping[str, str], world: World) -> None:
        self.folder, self.keep, self.identity, self.world = folder, keep, dict(identity), world

    def save(self, state: TrainingState, position: Position) -> None:
        """Write a checkpoint and prune older ones; pending gradients are not saved.

        Raises
        ------
        CheckpointError
            When it cannot be written, e.g. because the disk is full; earlier checkpoints are untouched.
        """
        if self.keep == 0:
            return
        final = self.folder / f"{position.stage}-{position.step:08d}"
        partial = self.folder / f".{final.name}{PARTIAL}"
        with self._all_or_none(partial):
            if self.world.is_main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        with self._all_or_none(partial):
            with _quiet():
                save_distributed(self._tensors(state), checkpoint_id=partial, no_dist=not self.world.grouped)
            own = {path.name: _fingerprint(path) for path in sorted(self._own_files(partial))}
        files = self.world.each(own)
        with self._all_or_none(partial):
            if self.world.is_main:
                content = {
                    "stage": position.stage,
                    "step": position.step,
                    "log_bytes": position.log_bytes,
                    "held_out": position.held_out,
                    "processes": self.world.size,
                    "identity": self.identity,
                    "files": {name: mark for part in files for name, mark in part.items()},
                }
                write_durably(partial / MANIFEST, json.dumps(content, indent=1) + "\n")
                self._remove([final.name] if final.exists() else [])
                partial.rename(final)
                sync_folder(self.folder)
                self._remove(self.names()[: -self.keep])

    def names(self) -> list[str]:
        """Finished checkpoints in the order of the run; times of files do not count, which a copy does not keep."""
        return [
            name
            for stage in STAGES
            for name in sorted(path.name for path in self.folder.glob(f"{stage}-{'[0-9]' * 8}") if path.is_dir())
        ]

    def _remove(self, names: Sequence[str]) -> None:
        """Remove checkpoints; a kill leaves none by its name that is half there."""
        for name in names:
            shutil.rmtree((self.folder / name).rename(self.folder / f".{name}{REMOVED}"))

    def latest(self) -> Position | None:
        """Where the most recent checkpoint stands; None where there is none.

        Raises
        ------
        CheckpointError
            When its manifest cannot be read.
        InvalidInputError
            When it belongs to another model or other data.
        """
        names = self.world.tell(self.names())
        if not names:
            return None
        manifest = self._manifest(names[-1])
        for what, mark in self.identity.items():
            if manifest["identity"].get(what) != mark:
                raise InvalidInputError(
                    explain(
                        f"checkpoint {self.folder / names[-1]}",
                        got=f"one of another {what} ({manifest['identity'].get(what)})",
                        expected=f"this run's {what} ({mark})",
                        hint="the configuration and the data that the run began with, or another `out`",
                    )
                )
        return Position(**{name: manifest[name] for name in ("stage", "step", "log_bytes", "held_out")})

    def sweep(self) -> None:
        """Remove what kills left of saves and removals; for the run itself, which saves nothing at the moment."""
        if self.world.is_main:
            for path in [*self.folder.glob(f".*{PARTIAL}"), *self.folder.glob(f".*{REMOVED}")]:
                shutil.rmtree(path)

    def load(self, state: TrainingState, position: Position) -> None:
        """Restore ``state``, and the random states where the number of processes is the same.

        Raises
        ------
        CheckpointError
            When a file is missing or damaged.
        """
        name = f"{position.stage}-{position.step:08d}"
        folder, manifest = self.folder / name, self._manifest(name)
        with self._all_or_none(None):
            for file in self.world.share(sorted(manifest["files"])):
                self._check(folder / file, manifest["files"][file])
        tensors = self._tensors(state)
        if manifest["processes"] != self.world.size:
            del tensors["random"]
        with self._all_or_none(None), _quiet():
            load_distributed(tensors, checkpoint_id=folder, no_dist=not self.world.grouped)
            set_state_dict(
                state.module,
                state.optimizer,
                model_state_dict=tensors["module"],
                optim_state_dict=tensors["optimizer"],
                options=StateDictOptions(strict=not state.fixed),
            )
        for own, random in tensors.get("random", {}).items():
            if own == f"cpu{self.world.rank}":
                torch.set_rng_state(random)
            elif own == f"cuda{self.world.rank}":
                torch.cuda.set_rng_state(random)

    def _tensors(self, state: TrainingState) -> dict[str, Any]:
        with _quiet():
            module, optimizer = get_state_dict(state.module, state.optimizer)
        module = {name: value for name, value in module.items() if name not in state.fixed}
        random = {f"cpu{self.world.rank}": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            random[f"cuda{self.world.rank}"] = torch.cuda.get_rng_state()
        return {"module": module, "optimizer": optimizer, "extra": dict(state.extra), "random": random}

    def _own_files(self, folder: Path) -> Iterator[Path]:
        for path in folder.iterdir():
            if path.name.startswith(f"__{self.world.rank}_") or (self.world.is_main and not path.name.startswith("__")):
                yield path

    def _manifest(self, name: str) -> dict[str, Any]:
        path = self.folder / name / MANIFEST
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return {key: content[key] for key in MANIFEST_KEYS}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(path, f"{type(error).__name__}: {error}") from error

    def _check(self, path: Path, mark: Mapping[str, int]) -> None:
        try:
            found = _fingerprint(path)
        except OSError as error:
            raise self._damaged(path, f"{type(error).__name__}: {error}") from error
        if found != mark:
            raise self._damaged(path, f"{found['bytes']} bytes with CRC-32 {found['crc32']:08x}", mark)

    def _damaged(self, path: Path, got: str, mark: Mapping[str, int] | None = None) -> CheckpointError:
        earlier = [name for name in self.names() if name != path.parent.name]
        expected = "a whole checkpoint" if mark is None else f"{mark['bytes']} bytes with CRC-32 {mark['crc32']:08x}"
        hint = f"removing {path.parent}; " + (
            f"the run then resumes from {earlier[-1]}" if earlier else "there is no earlier one, so that it begins anew"
        )
        return CheckpointError(explain(f"checkpoint file {path}", got=got, expected=expected, hint=hint))

    @contextmanager
    def _all_or_none(self, partial: Path | None) -> Iterator[None]:
        """What fails on one process fails on all; with ``partial``, it is a save that failed."""
        met: Exception | None = None
        try:
            yield
        except CheckpointException as error:  # no Exception; it wraps those of all processes
            rank, (cause, _) = min(error.failures.items())
            met = CheckpointError(f"{type(cause).__name__} on process {rank}: {cause}")
        except (OSError, RuntimeError, InvalidInputError) as error:
            met = error
        if met is not None and partial is not None:
            free = shutil.disk_usage(self.folder.parent).free  # torch tells a full disk by a wrong position
            shutil.rmtree(partial, ignore_errors=True)
            kept = self.names()
            met = CheckpointError(
                explain(
                    f"saving {partial.name.strip('.').removesuffix(PARTIAL)}",
                    got=met if isinstance(met, CheckpointError) else f"{type(met).__name__}: {met}",
                    expected=f"room for it in {self.folder}, where {free} bytes were free",
                    hint="freeing space and resuming the run"
                    + (f" from {kept[-1]}, which is untouched" if kept else ""),
                )
            )
        self.world.agree(met)


def model_fingerprint(module: nn.Module) -> str:
    """Names a model by the names and shapes of its parameters."""
    shapes = sorted(f"{name} {tuple(parameter.shape)}" for name, parameter in module.named_parameters())
    total = sum(parameter.numel() for parameter in module.parameters())
    return f"{len(shapes)} parameters, {total} numbers, {zlib.crc32(' '.join(shapes).encode()):08x}"


def _fingerprint(path: Path) -> dict[str, int]:
    crc = size = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return {"bytes": size, "crc32": crc}


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's own deprecations inside torch.distributed.checkpoint are nothing to a user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.distributed")
        yield
