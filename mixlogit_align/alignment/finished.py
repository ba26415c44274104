"""What is asked of the folder of a run that others evaluate: its settings, and the policy it became."""

from __future__ import annotations

from pathlib import Path

from mixlogit_align.alignment.config import AlignmentConfig
from mixlogit_align.alignment.settings import load_config
from mixlogit_align.errors import InvalidInputError, explain

# In the folder of a run of both stages, the policy between them.
SUPERVISED = Path("sft", "policy")


def run_config(run: str | Path) -> AlignmentConfig:
    """The settings of a run.

    Raises
    ------
    InvalidInputError
        Where there is no run.
    """
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise InvalidInputError(
            explain(
                str(run),
                got="no run: no config.yaml there" if Path(run).is_dir() else "no such folder or file",
                expected="the folder of a run",
                hint="the `out` of the run's configuration",
            )
        )
    return load_config(path)


def policy_of(run: str | Path) -> Path:
    """The policy of a finished run; anything that is no run is taken for a policy itself.

    Raises
    ------
    InvalidInputError
        For a run that has not finished.
    """
    folder = Path(run)
    if not (folder / "config.yaml").is_file():
        return folder
    if not (folder / "policy").is_dir():
        raise InvalidInputError(
            explain(
                str(folder),
                got="a run without policy/",
                expected="a run that has finished",
                hint="`mixlogit-align train --resume`",
            )
        )
    return folder / "policy"
