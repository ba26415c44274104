"""The folder of a run: who may write it, what the run says of itself there, and whether it may be resumed."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixlogit_align.alignment.config import AlignmentConfig
from mixlogit_align.alignment.durable import write_durably
from mixlogit_align.alignment.finished import SUPERVISED
from mixlogit_align.alignment.parallel import World, resolved
from mixlogit_align.alignment.settings import dump_config, load_config
from mixlogit_align.errors import InvalidInputError, explain

# What may change when a run is resumed: the trajectory stays the same, up to rounding.
FREE = {"out", "name", "device", "checkpoint", "tracking", "activation_checkpointing"}
FREE_OF_A_STAGE = {"accumulation", "eval_batch_size", "reference_cache"}
# What a run and the commands about it write into its folder; a folder with winrate.json counts, too.
WRITTEN = (
    "config.yaml", "run.json", "data.json", "metrics.jsonl", "checkpoints", "policy", "adapter", SUPERVISED.parts[0],
    "strength.json", "log_ratios.parquet", "truth.json", "tensorboard", "wandb", "wandb_id.txt",
    "evaluation.json", "pairs.parquet", "gains-over-*.json", "winrate-*", "heterogeneity", "report.html",
    ".*.new", ".*.partial",
)  # fmt: skip
BEGUN = ".config.yaml.new"  # all that there is of a run that was killed before it had settings


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
            When the folder holds a run that is neither to be replaced nor resumed, or was begun with other settings;
            when it holds something else, or is to be replaced and holds something beside a run.
        """
        return self.world.on_main(lambda: self._found(overwrite, resume))

    def _found(self, overwrite: bool, resume: bool) -> str:
        if overwrite and resume:
            raise InvalidInputError(
                explain("overwrite, resume", got="both", expected="one of them", hint="resume to go on with the run")
            )
        holds_run = (self.path / "config.yaml").exists()
        self._refuse_others(holds_run=holds_run, replace=overwrite)
        if overwrite or not holds_run:
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
        """Make the folder ready to be written; with ``replace`` nothing of an earlier run stays, and all else does."""

        def act() -> None:
            if replace and (self.path / "config.yaml").exists():
                for path in self.path.iterdir():
                    if _of_a_run(path):
                        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
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

    def _refuse_others(self, *, holds_run: bool, replace: bool) -> None:
        """Nobody's files are in the way: a run neither moves in with them nor takes them away."""
        if self.path.exists() and not self.path.is_dir():
            raise InvalidInputError(
                explain("out", got=f"{self.path}, which is a file", expected="a new folder", hint="another `out`")
            )
        found = sorted(self.path.iterdir()) if self.path.exists() else []
        others = [path.name for path in found if not (_of_a_run(path) if holds_run else path.name == BEGUN)]
        if others and (replace or not holds_run):
            named = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
            raise InvalidInputError(
                explain(
                    "out",
                    got=f"{self.path}, which holds {f'beside a run {named}' if holds_run else f'no run, but {named}'}",
                    expected="a folder that holds nothing but a run" if holds_run else "a new or an empty folder",
                    hint="moving them elsewhere, or another `out`" if holds_run else "another `out`",
                )
            )

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


def _of_a_run(path: Path) -> bool:
    """Whether a file or folder in a run's folder is the run's, or of a command about it."""
    return (path / "winrate.json").is_file() or any(fnmatch.fnmatchcase(path.name, name) for name in WRITTEN)


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
