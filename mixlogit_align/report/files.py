"""The files that recoveries and runs leave, read back; those of an interrupted run as far as they go."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mixlogit_align.alignment.config import AlignmentConfig
from mixlogit_align.alignment.data import load_data
from mixlogit_align.alignment.data.config import SimulatedData
from mixlogit_align.alignment.data.schema import PreferenceData
from mixlogit_align.alignment.settings import load_config
from mixlogit_align.errors import InvalidInputError, explain

RECOVERY_FILES = ("first_light.json", "recovery.json")
HETEROGENEITY = "heterogeneity"  # a run's folder for what was fitted to its log-ratios

# What a report reads in results of measurements.
EVALUATION = ("name", "level", "clusters", "minimum", "averages")
GAINS = (*EVALUATION, "against", "adjustment", "num_tests")
WINRATE = ("model", "opponent", "judge", "win_rate", "interval", "test", "controlled", "not_controlled", "compared")
FITTED = ("rows", "annotators", "family", "fits", "tests", "profile", "density", "identification", "warnings")


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Known strengths and what was estimated from choices made under them.

    Parameters
    ----------
    path : Path
        The file.
    versions : mapping of str to str
    machine : str
    rows : sequence of mapping
        One a case: ``case``, ``true``, ``estimate``, ``std_error``, ``z`` (by parameter), ``loglik``, ``note``,
        ``seconds``, ``passed`` and, where xlogit ran, ``xlogit_estimate``, ``loglik_rel_diff``,
        ``gradient_rel_diff``, ``fit_abs_diff``, ``xlogit_default_start``.
    passed : bool
        Whether every case was run and passed.
    """

    path: Path
    versions: Mapping[str, str]
    machine: str
    rows: Sequence[Mapping[str, Any]]
    passed: bool

    @property
    def beside_xlogit(self) -> bool:
        """Whether any case was compared with xlogit."""
        return any(row["xlogit_estimate"] is not None for row in self.rows)

    @property
    def largest_z(self) -> float:
        """Largest distance from the truth, in standard errors."""
        return max((abs(z) for row in self.rows for z in row["z"].values()), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One alignment run's folder.

    Parameters
    ----------
    path : Path
    config : AlignmentConfig
    status : str
        "finished", "interrupted", "failed" or "running".
    error : str or None
        Why it failed.
    seconds : float
    alarms : sequence of mapping
        What the run noticed: name, stage, step, message.
    metrics : sequence of mapping
        The lines of ``metrics.jsonl``.
    strength, truth, data : mapping or None
        ``strength.json``, ``truth.json`` and ``data.json``.
    processes : int or None
        That trained together.
    precision, machine : str or None
    versions : mapping of str to str
        Of the software, as the run itself wrote them.
    """

    path: Path
    config: AlignmentConfig
    status: str
    error: str | None
    seconds: float
    alarms: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]
    strength: Mapping[str, Any] | None
    truth: Mapping[str, Any] | None
    data: Mapping[str, Any] | None = None
    processes: int | None = None
    precision: str | None = None
    machine: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the configuration calls the run."""
        return self.config.name

    def series(self, stage: str, split: str, metric: str) -> tuple[list[float], list[float]]:
        """Examples seen, and the metric there; empty lists where it was never logged."""
        rows = [row for row in self.metrics if row["stage"] == stage and row["split"] == split and metric in row]
        return [row["examples_seen"] for row in rows], [row[metric] for row in rows]

    def final(self, stage: str, metric: str) -> float | None:
        """The last held-out value."""
        values = self.series(stage, "eval", metric)[1]
        return values[-1] if values else None

    @cached_property
    def log_ratios(self) -> dict[str, list[Any]] | None:
        """The columns of ``log_ratios.parquet``: held-out pairs."""
        return _read_columns(self.path / "log_ratios.parquet", hint="running it again")

    @cached_property
    def evaluation(self) -> Mapping[str, Any] | None:
        """``evaluation.json``, as `mixlogit_align.alignment.evaluation.Evaluation` has it; None before any."""
        return _measured(self.path / "evaluation.json", EVALUATION, hint=f"`mixlogit-align evaluate {self.path}`")

    @cached_property
    def gains(self) -> dict[str, Mapping[str, Any]]:
        """Each ``gains-over-NAME.json``, by NAME, as `mixlogit_align.alignment.evaluation.Gains` has it."""
        return self._each("gains-over-*.json", GAINS, lambda file: file.stem.removeprefix("gains-over-"), "evaluate")

    @cached_property
    def winrates(self) -> dict[str, Mapping[str, Any]]:
        """Each ``winrate.json``, by its folder's name, as `mixlogit_align.alignment.winrate.JudgedRun` has it."""
        return self._each("*/winrate.json", WINRATE, lambda file: file.parent.name, "winrate")

    @cached_property
    def heterogeneity(self) -> Mapping[str, Any] | None:
        """``heterogeneity/heterogeneity.json``: distributions of strength, fitted to the log-ratios; None before."""
        hint = f"`mixlogit-align strength {self.path}`"
        return _measured(self.path / HETEROGENEITY / "heterogeneity.json", FITTED, hint=hint)

    @cached_property
    def annotators(self) -> dict[str, list[Any]] | None:
        """The columns of ``heterogeneity/annotators.parquet``: the strength of each annotator, given the choices."""
        path = self.path / HETEROGENEITY / "annotators.parquet"
        return _read_columns(path, hint=f"`mixlogit-align strength {self.path}`")

    @cached_property
    def num_parameters(self) -> int | None:
        """Of the policy that the run left, or of its adapters; None before."""
        files = sorted(file for name in ("policy", "adapter") for file in (self.path / name).glob("*.safetensors"))
        return sum(map(_num_values, files)) if files else None

    def _each(
        self, pattern: str, keys: Sequence[str], name: Callable[[Path], str], command: str
    ) -> dict[str, Mapping[str, Any]]:
        hint = f"`mixlogit-align {command} {self.path}` once more"
        found = {name(file): _measured(file, keys, hint=hint) for file in sorted(self.path.glob(pattern))}
        return {name: content for name, content in found.items() if content is not None}

    @cached_property
    def simulated(self) -> PreferenceData | None:
        """The simulated comparisons and their truth, made again from the configuration."""
        return load_data(self.config.data) if isinstance(self.config.data, SimulatedData) else None

    @property
    def data_name(self) -> str:
        """The data in a few words."""
        data = self.config.data
        if isinstance(data, SimulatedData):
            spread = (
                f"{data.strength_family}, cv {data.strength_cv:g}" if data.strength_cv else "the same for all (cv 0)"
            )
            return f"simulated annotators, strength {spread}"
        return data.source


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a report is made of: recoveries in the order of proof, and runs."""

    recoveries: Sequence[Recovery]
    runs: Sequence[Run]

    @property
    def by_data(self) -> dict[str, list[Run]]:
        """Runs that may be compared, for they saw the same kind of data."""
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.data_name, []).append(run)
        return found

    @property
    def worlds(self) -> dict[str, list[Run]]:
        """Runs with a preference stage, by the data they saw."""
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            if run.config.preference is not None:
                found.setdefault(run.data_name, []).append(run)
        return found


def labels(runs: Sequence[Run]) -> list[str]:
    """What tells the runs apart: their names; where two share one the data, too; where that does not do, the folder."""
    found = [run.name for run in runs]
    for more in (lambda run: run.data_name, lambda run: run.path.name, lambda run: str(run.path)):
        found = [f"{run.name} ({more(run)})" if found.count(label) > 1 else label
                 for run, label in zip(runs, found, strict=True)]  # fmt: skip
    return found


def data_names(runs: Sequence[Run]) -> str:
    """The data of all runs, each named once."""
    return "; ".join(dict.fromkeys(run.data_name for run in runs))


def strength_distribution(record: Mapping[str, Any]) -> Any:
    """The distribution that a strength record describes, in float64."""
    import pyro.distributions as dist
    import torch

    from mixlogit_align.distributions import InverseGaussian

    families = {"point": dist.Delta, "lognormal": dist.LogNormal, "gamma": dist.Gamma, "weibull": dist.Weibull,
                "normal": dist.Normal, "inverse_gaussian": InverseGaussian}  # fmt: skip
    values = [torch.tensor(value, dtype=torch.float64) for value in record["parameters"].values()]
    return families[record["family"]](*values)


def read_evidence(paths: Sequence[Path]) -> Evidence:
    """Read run folders, recovery files, and folders that hold such.

    Parameters
    ----------
    paths : sequence of Path
        Each a run folder (it has a ``config.yaml``), a ``first_light.json`` or ``recovery.json``, or a folder
        with these in it or one folder further down.

    Returns
    -------
    Evidence
        Runs in the order of the paths, below one path in that in which they were begun; each once.

    Raises
    ------
    InvalidInputError
        If a path holds neither, or a file is not what its name says.
    """
    recoveries: list[Recovery] = []
    runs: list[Run] = []
    for path in paths:
        files = [path] if path.is_file() else [path / name for name in RECOVERY_FILES if (path / name).is_file()]
        folders = [file.parent for pattern in ("config.yaml", "*/config.yaml", "*/*/config.yaml")
                   for file in path.glob(pattern)]  # fmt: skip
        if not files and not folders:
            raise InvalidInputError(
                explain(
                    str(path),
                    got="no config.yaml, first_light.json or recovery.json there" if path.exists() else "nothing there",
                    expected="the folder of a run or of a demonstration",
                    hint="the `out` of the run's configuration",
                )
            )
        recoveries += [read_recovery(file) for file in files]
        seen = {run.path.resolve() for run in runs}
        new = [folder for folder in folders if folder.resolve() not in seen]
        runs += [read_run(folder) for folder in sorted(new, key=lambda f: (f / "config.yaml").stat().st_mtime_ns)]
    return Evidence(recoveries=recoveries, runs=runs)


def read_recovery(path: Path) -> Recovery:
    """Read a recovery file; errors as for `read_evidence`."""
    content = _read_json(path)
    try:
        return Recovery(path=path, **{name: content[name] for name in ("versions", "machine", "rows", "passed")})
    except (KeyError, TypeError) as error:
        raise InvalidInputError(
            explain(str(path), got=f"no {error}", expected="a recovery file", hint="running it again")
        ) from error


def read_run(path: Path) -> Run:
    """Read a run folder, complete or not; errors as for `read_evidence`."""
    state = _read_json(path / "run.json") if (path / "run.json").exists() else {}
    optional = {name: _read_json(path / f"{name}.json") if (path / f"{name}.json").exists() else None
                for name in ("strength", "truth", "data")}  # fmt: skip
    return Run(
        path=path,
        config=load_config(path / "config.yaml"),
        status=state.get("status", "running"),
        error=state.get("error"),
        seconds=state.get("seconds", 0.0),
        alarms=state.get("alarms", []),
        processes=state.get("processes"),
        precision=state.get("precision"),
        machine=state.get("machine"),
        versions=state.get("versions", {}),
        metrics=_read_lines(path / "metrics.jsonl"),
        **optional,
    )


def _read_json(path: Path, hint: str = "running it again") -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInputError(explain(str(path), got=str(error), expected="JSON", hint=hint)) from error
    if not isinstance(content, dict):
        raise InvalidInputError(explain(str(path), got=type(content).__name__, expected="a JSON object", hint=hint))
    return content


def _measured(path: Path, keys: Sequence[str], *, hint: str) -> dict[str, Any] | None:
    """The result of a measurement, with the keys that a report reads; None where there is none."""
    if not path.exists():
        return None
    content = _read_json(path, hint)
    if lacking := [key for key in keys if key not in content]:
        got = f"no {', '.join(lacking)}"
        raise InvalidInputError(explain(str(path), got=got, expected="what this version writes", hint=hint))
    return content


def _read_columns(path: Path, *, hint: str) -> dict[str, list[Any]] | None:
    """The columns of a Parquet file; None where there is none."""
    import pyarrow.parquet

    if not path.exists():
        return None
    try:
        columns: dict[str, list[Any]] = pyarrow.parquet.read_table(path).to_pydict()
    except pyarrow.ArrowInvalid as error:
        raise InvalidInputError(explain(str(path), got=str(error), expected="a Parquet table", hint=hint)) from error
    return columns


def _num_values(file: Path) -> int:
    """Numbers in a safetensors file, by its header: 8 bytes of length, then JSON."""
    with file.open("rb") as stream:
        head = stream.read(int.from_bytes(stream.read(8), "little"))
    try:
        tensors = json.loads(head)
        return sum(math.prod(tensor["shape"]) for name, tensor in tensors.items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInputError(
            explain(str(file), got=f"a damaged header ({error})", expected="safetensors", hint="exporting it again")
        ) from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """One JSON object a line. What follows the last line end was cut short when the run was killed."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            what = f"{path}, line {number}"
            hint = "going on from the last checkpoint: `mixlogit-align train --resume`"
            raise InvalidInputError(explain(what, got=str(error), expected="JSON", hint=hint)) from error
    return rows
