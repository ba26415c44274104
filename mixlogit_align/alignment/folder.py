"""The folder of a run: who may write it, what the run says of itself there, and whether it may be resumed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixlogit_align.alignment.config import AlignmentConfig
from mixlogit_align.alignment.durable import write_durably
from mixlogit_align.alignment.parallel import World, resolved
from mixlogit_align.alignment.settings import dump_config, load_config
from mixlogit_align.errors import InvalidInputError, explain

# What may change when a run is resumed: the trajectory stays the same, up to rounding.
FREE = {"out", "name", "device", "checkpoint", "tracking", "activation_checkpointing"}
FREE_OF_A_STAGE = {"accumulation", "eval_batch_size", "reference_cache"}


class RunFolder:
    """The folder of a run. Only the main process writes; what it raises is raised on every process.

    Parameters
    ----------
    config : AlignmentConfig
    world : World
    """

    def __init__(self, config: AlignmentConfig, world: World) -> None:
        self.path, self.config, self.world = Path(config.out), config, world

    def found(self, *, overwrite: bool, resume: bool) -> str:
        """What stands in the way, before anything is written.

        Parameters
        ----------
        overwrite : bool
            An earlier run may be replaced.
        resume : bool
            An earlier run may be gone on with, if there is one.

        Returns
        -------
        str
            What the run there says of itself; "new" where there is none, or none that is kept.

        Raises
        ------
        InvalidInputError
            When the folder holds a run that is neither to be replaced nor resumed, or was begun with other settings.
        """
        return self.world.on_main(lambda: self._found(overwrite, resume))

    def _found(self, overwrite: bool, resume: bool) -> str:
        if overwrite and resume:
            raise InvalidInputError(
                explain("overwrite, resume", got="both", expected="one of them", hint="resume to go on with the run")
            )
        if overwrite or not (self.path / "config.yaml").exists():
            return "new"
        if not resume:
            raise InvalidInputError(
                explain(
                    "out",
                    got=f"{self.path}, which holds a run (status: {self.status()})",
                    expected="a new folder",
                    hint="another `out`, --resume to go on with that run, or --overwrite to replace it "
                    "(in Python, resume=True or overwrite=True)",
                )
            )
        self._check_settings()
        return self.status()

    def begin(self, *, replace: bool) -> None:
        """Make the folder ready to be written; with ``replace`` nothing of an earlier run stays."""

        def act() -> None:
            if replace and (self.path / "config.yaml").exists():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            write_durably(self.path / "config.yaml", dump_config(self.config))

        self.world.on_main(act)

    def status(self) -> str:
        """What the run in the folder says of itself; a run that was killed still says "running"."""
        try:
            return str(self.read("run.json")["status"])
        except (OSError, ValueError, KeyError):
            return "unknown"

    def read(self, name: str) -> Any:
        """The content of a JSON file."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        if self.world.is_main:
            write_durably(self.path / name, json.dumps(content, indent=2) + "\n")

    def _check_settings(self) -> None:
        """The run was begun with the same settings, those aside that do not change its trajectory."""
        before, now = (_flat(_compared(config)) for config in (load_config(self.path / "config.yaml"), self.config))
        differing = [
            f"{name}={now.get(name)!r}, was {before.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
            and name.split(".")[0] not in FREE
            and name.split(".")[-1] not in FREE_OF_A_STAGE
        ]
        if differing:
            raise InvalidInputError(
                explain(
                    f"settings to resume {self.path}",
                    got="; ".join(differing),
                    expected="those it was begun with",
                    hint=f"--config {self.path / 'config.yaml'}, or another `out`",
                )
            )


def _compared(config: AlignmentConfig) -> dict[str, Any]:
    """Settings by what they mean here: what is compiled differs by rounding alone, which counts in bfloat16."""
    precision = resolved(config.precision, config.device)
    return {
        **dataclasses.asdict(config),
        "precision": precision,
        "compile": config.compile and precision != "float32",
    }


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found
