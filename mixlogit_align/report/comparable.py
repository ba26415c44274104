"""Which runs may stand beside each other: those that differ in their seeds alone are one setting, seen again."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mixlogit_align.alignment.config import (
    AlignmentConfig,
    LearnedUpdate,
    NewModel,
    PointStrength,
    PretrainedModel,
    SolvedUpdate,
)
from mixlogit_align.alignment.loss_config import DPO
from mixlogit_align.alignment.settings import load_config
from mixlogit_align.report.files import Run

NONE = "–"
# Settings that say where and how fast a run was made, and what draws it is; not what it is.
APART = ("out", "name", "seed", "device", "checkpoint", "tracking", "activation_checkpointing", "compile")
LOSSES = {"dpo": "DPO", "ipo": "IPO", "kto": "KTO", "simpo": "SimPO"}
FAMILIES = {"lognormal": "LogNormal", "gamma": "Gamma", "point": "DPO"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Runs of one method on one data set and model.

    Parameters
    ----------
    data, model : str
        In a word or two; of different settings different.
    method : str
        The loss, with the family of its strength.
    rate : str
        The strength's learning rate, "frozen" or "solved"; `NONE` for a strength that is a number.
    runs : tuple of Run
        Alike in everything but their seeds.
    """

    data: str
    model: str
    method: str
    rate: str
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """Method and learning rate."""
        return self.method if self.rate == NONE else f"{self.method}, {self.rate}"

    @property
    def place(self) -> str:
        """Data and model."""
        return f"{self.data}, {self.model}"


def settings_of(runs: Iterable[Run]) -> list[Setting]:
    """Group runs by what they are, whatever they are called.

    Two runs are of one setting if their ``config.yaml`` differ in nothing but folder, name, device, seeds, checkpoints
    and tracking; policies and references that other runs made are compared by those runs' settings. Where methods that
    differ would bear one label, the name of the run is added, and its folder where that is the same, too.

    Parameters
    ----------
    runs : iterable of Run

    Returns
    -------
    list of Setting
        In the order of the first run of each.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_key(run.config), []).append(run)
    groups = list(found.values())
    firsts = [group[0] for group in groups]
    data = _told_apart([run.data_name for run in firsts], [_data(run.config) for run in firsts], firsts)
    models = _models(data, firsts)
    methods = [(method_of(run.config), rate_of(run.config)) for run in firsts]
    cells = list(zip(data, models, methods, strict=True))
    crowded = {cell[2] for cell in cells if cells.count(cell) > 1}
    named = [run.name for run in firsts]
    labels = []
    for cell, (method, rate), run in zip(cells, methods, firsts, strict=True):
        if (method, rate) in crowded:
            same = [name for other, name in zip(cells, named, strict=True) if other == cell]
            method = f"{method} ({run.name if len(set(same)) == len(same) else run.path.name})"
        labels.append((method, rate))
    return [
        Setting(data=d, model=m, method=method, rate=rate, runs=tuple(group))
        for d, m, (method, rate), group in zip(data, models, labels, groups, strict=True)
    ]


def data_of(settings: Sequence[Setting]) -> str:
    """The data where all settings share it, else ""; for names of figures."""
    names = {setting.data for setting in settings}
    return names.pop() if len(names) == 1 else ""


def differences(settings: Sequence[Setting]) -> list[str]:
    """What tells each setting from the others, of data, model and method; "" for one alone."""
    names = [(setting.data, setting.model, setting.label) for setting in settings]
    varies = [len(set(column)) > 1 for column in zip(*names, strict=True)]
    return [", ".join(itertools.compress(each, varies)) for each in names]


def in_common(settings: Sequence[Setting]) -> str:
    """What all settings share, of data, model and method, as the last sentence of a caption; "" for nothing."""
    columns = zip(*((setting.label, setting.data, setting.model) for setting in settings), strict=True)
    shared = ", ".join(column[0] for column in columns if len(set(column)) == 1)
    return f" All are of {shared}." if shared else ""


def method_of(config: AlignmentConfig) -> str:
    """The loss, with the family of its strength."""
    preference = config.preference
    if preference is None:
        return "SFT"
    if preference.strength is None:
        kind = preference.loss.kind
        return LOSSES.get(kind, kind.replace("_dpo", " DPO").replace("_", " ").capitalize().replace("dpo", "DPO"))
    family = FAMILIES[preference.strength.family]
    if not isinstance(preference.strength, PointStrength):
        return f"MixDPO {family}"
    return family if rate_of(config) == NONE else f"{family} with a learned strength"


def rate_of(config: AlignmentConfig) -> str:
    """The strength's learning rate, "frozen" or "solved"; `NONE` for a strength that is a number throughout."""
    strength = None if config.preference is None else config.preference.strength
    if strength is None:
        return NONE
    if isinstance(strength.update, LearnedUpdate):
        return _power_of_ten(strength.update.lr)
    if isinstance(strength.update, SolvedUpdate):
        return "solved"
    return NONE if isinstance(strength, PointStrength) else "frozen"


def is_dpo(config: AlignmentConfig) -> bool:
    """Whether the run is standard DPO: a strength that is one number and stays it."""
    preference = config.preference
    return preference is not None and (
        isinstance(preference.loss, DPO) or (isinstance(preference.strength, PointStrength) and rate_of(config) == NONE)
    )


def without_method(config: AlignmentConfig) -> str:
    """All settings but the method's own, as text: equal for runs that differ in the method alone; seeds count."""
    own = _plain(config)
    own["preference"] = {name: value for name, value in (own["preference"] or {}).items()
                         if name not in ("loss", "strength", "integration")}  # fmt: skip
    return json.dumps([own, config.seed, getattr(config.data, "seed", None)], sort_keys=True, default=str)


# --- several seeds -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An estimate that several seeds have made.

    Parameters
    ----------
    value : float
        The mean of the seeds' values.
    standard_error : float or None
        The mean of theirs. The sd of a mean is never above the mean of the sds, whatever pairs the seeds share: it is
        an upper bound of what the sampling of pairs adds.
    lower, upper : float or None
        Means of the ends of their intervals; None where any has none.
    pvalue : float or None
        The largest of theirs: small where every seed's is. None where any has none.
    each : tuple of float
        The seeds' values.
    """

    value: float
    standard_error: float | None
    lower: float | None
    upper: float | None
    pvalue: float | None
    each: tuple[float, ...]

    @property
    def stars(self) -> str:
        """Two for p below 0.01, one below 0.05."""
        return stars(self.pvalue)

    @property
    def spread(self) -> float | None:
        """The standard deviation between seeds; None for one."""
        return sd(self.each)


def over_seeds(estimates: Sequence[Mapping[str, Any]]) -> Seen | None:
    """Join what each seed has found, mappings with ``value`` and what else of `Seen` there is; None for none."""
    values = [estimate["value"] for estimate in estimates]
    if not values or None in values:
        return None

    def joined(name: str, how: Callable[[Sequence[float]], float]) -> float | None:
        found = [estimate.get(name) for estimate in estimates]
        known = [number for number in found if number is not None]
        return how(known) if len(known) == len(found) else None

    return Seen(
        value=mean(values), standard_error=joined("standard_error", mean), lower=joined("lower", mean),
        upper=joined("upper", mean), pvalue=joined("pvalue", max), each=tuple(values),
    )  # fmt: skip


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return math.fsum(values) / len(values)


def sd(values: Sequence[float]) -> float | None:
    """Their standard deviation, with divisor n - 1; None for fewer than two."""
    if len(values) < 2:
        return None
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def stars(pvalue: float | None) -> str:
    """Two for p below 0.01, one below 0.05."""
    return "" if pvalue is None or pvalue >= 0.05 else "*" if pvalue >= 0.01 else "**"


# --- what a run is -----------------------------------------------------------------------------------


def _key(config: AlignmentConfig) -> str:
    return json.dumps(_plain(config), sort_keys=True, default=str)


def _plain(config: AlignmentConfig) -> dict[str, Any]:
    """The settings that make a run what it is."""
    own = {name: value for name, value in dataclasses.asdict(config).items() if name not in APART}
    own |= {"data": _data(config), "model": _origin(config).history}
    if own["preference"] is not None:
        own["preference"].pop("reference_cache")
        (own["preference"]["integration"] or {}).pop("seed", None)
        reference = own["preference"]["reference_path"]
        own["preference"]["reference_path"] = None if reference is None else _policy(reference).history
    return own


def _data(config: AlignmentConfig) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(config.data).items() if name != "seed"}


@dataclass(frozen=True)
class _Origin:
    """Where a policy is from: the model at the very beginning, in words and as settings, and all that became of it."""

    label: str
    model: Any
    history: Any


def _origin(config: AlignmentConfig) -> _Origin:
    model = config.model
    if isinstance(model, PretrainedModel):
        return _policy(model.path)
    assert isinstance(model, NewModel)
    sizes = dataclasses.asdict(model)
    return _Origin(f"new GPT-NeoX, {model.num_layers} × {model.hidden_size}", sizes, sizes)


def _policy(path: str) -> _Origin:
    """Of the policy in a folder or at a hub; one that another run made is that run's."""
    folder = Path(path).parent if Path(path).name in ("policy", "adapter") else Path(path)
    settings = folder / "config.yaml"
    if settings.is_file():
        return _made_by(settings, settings.stat().st_mtime_ns)
    return _Origin(folder.name or path, path, path)


@lru_cache
def _made_by(settings: Path, changed: int) -> _Origin:
    """Of the policy of the run with these settings, read once as long as the file does not change."""
    earlier = load_config(settings)
    origin = _origin(earlier)
    return _Origin(origin.label, origin.model, _plain(earlier))


def _models(data: Sequence[str], firsts: Sequence[Run]) -> list[str]:
    """Labels of the models, told apart within each data set: sizes may follow the data's lengths."""
    found = [""] * len(firsts)
    for name in dict.fromkeys(data):
        places = [i for i, other in enumerate(data) if other == name]
        runs = [firsts[i] for i in places]
        origins = [_origin(run.config) for run in runs]
        labels = _told_apart([origin.label for origin in origins], [origin.model for origin in origins], runs)
        for i, label in zip(places, labels, strict=True):
            found[i] = label
    return found


def _told_apart(labels: Sequence[str], identities: Sequence[Any], firsts: Sequence[Run]) -> list[str]:
    """The labels; those that stand for several things with the folder of the first run that has it."""
    pairs = [(label, json.dumps(identity, sort_keys=True, default=str))
             for label, identity in zip(labels, identities, strict=True)]  # fmt: skip
    owners: dict[tuple[str, str], str] = {}
    for pair, run in zip(pairs, firsts, strict=True):
        owners.setdefault(pair, run.path.name)
    shared = [label for label, _ in owners]
    return [f"{label} ({owners[label, key]})" if shared.count(label) > 1 else label for label, key in pairs]


def _power_of_ten(rate: float) -> str:
    """0.0001 as 1e-4."""
    mantissa, exponent = f"{rate:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
