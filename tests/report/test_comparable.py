"""Runs that differ in their seeds alone are one setting; what others are called tells them apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixlogit_align.alignment.config import (
    AlignmentConfig,
    FrozenUpdate,
    GammaStrength,
    LearnedUpdate,
    LogNormalStrength,
    MonteCarloRule,
    OptimConfig,
    PointStrength,
    PreferenceConfig,
    PretrainedModel,
    SolvedUpdate,
    StageConfig,
)
from mixlogit_align.alignment.data.config import SimulatedData
from mixlogit_align.alignment.loss_config import DPO as FixedDPO
from mixlogit_align.alignment.loss_config import IPO, ConservativeDPO
from mixlogit_align.report.comparable import (
    differences,
    in_common,
    is_dpo,
    method_of,
    over_seeds,
    rate_of,
    settings_of,
    stars,
)

from .made_up import DATA, DPO, GAMMA, measured_run

SAME: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "name": {"name": "another"},
    "device": {"device": "cuda"},
    "seed of the data": {"data": SimulatedData(**{**vars(DATA), "seed": 7})},
    "cache": {"preference": PreferenceConfig(strength=GAMMA, reference_cache="a.pt")},
}
OTHER: dict[str, dict[str, Any]] = {
    "size of the data": {"data": SimulatedData(**{**vars(DATA), "num_train": 16})},
    "learning rate": {"preference": PreferenceConfig(strength=GAMMA, optim=OptimConfig(lr=1e-6))},
    "rule": {"preference": PreferenceConfig(strength=GAMMA, integration=MonteCarloRule())},
    "precision": {"precision": "bfloat16"},
    "supervised stage": {"sft": StageConfig()},
}


@pytest.mark.parametrize("settings", [*SAME.values(), *OTHER.values()], ids=[*SAME, *OTHER])
def test_what_makes_a_setting(tmp_path: Path, settings: dict[str, Any]) -> None:
    runs = [
        measured_run(tmp_path / "a", "run", GAMMA),
        measured_run(tmp_path / "b", **{"name": "run", "strength": GAMMA, **settings}),
    ]
    assert len(settings_of(runs)) == (1 if settings in SAME.values() else 2)


def test_draws_of_another_seed_are_the_same_setting(tmp_path: Path) -> None:
    runs = [measured_run(tmp_path / str(seed), "run", None,
                         preference=PreferenceConfig(strength=GAMMA, integration=MonteCarloRule(seed=seed)))
            for seed in range(3)]  # fmt: skip
    assert [setting.runs for setting in settings_of(runs)] == [tuple(runs)]


def test_policies_are_what_made_them(tmp_path: Path) -> None:
    """Two that begin with the policies of supervised runs of two seeds are one setting; one of a hub is another."""
    for seed in range(2):
        measured_run(tmp_path / f"sft{seed}", "SFT", None, sft=StageConfig(), seed=seed)
    paths = [str(tmp_path / "sft0" / "policy"), str(tmp_path / "sft1"), "somebody/pythia"]
    runs = [measured_run(tmp_path / str(i), "run", GAMMA, model=PretrainedModel(path=path), seed=i)
            for i, path in enumerate(paths)]  # fmt: skip
    assert [(setting.model, len(setting.runs)) for setting in settings_of(runs)] == [
        ("new GPT-NeoX, 2 × 64", 2),
        ("pythia", 1),
    ]


@pytest.mark.parametrize(
    "preference, method, rate, standard",
    [
        (PreferenceConfig(strength=PointStrength()), "DPO", "–", True),
        (PreferenceConfig(loss=FixedDPO()), "DPO", "–", True),
        (PreferenceConfig(strength=PointStrength(update=LearnedUpdate(lr=2.5e-3))),
         "DPO with a learned strength", "2.5e-3", False),
        (PreferenceConfig(strength=LogNormalStrength(update=FrozenUpdate())), "MixDPO LogNormal", "frozen", False),
        (PreferenceConfig(strength=GammaStrength(update=SolvedUpdate())), "MixDPO Gamma", "solved", False),
        (PreferenceConfig(strength=GammaStrength(update=LearnedUpdate(lr=1e-4))), "MixDPO Gamma", "1e-4", False),
        (PreferenceConfig(loss=IPO()), "IPO", "–", False),
        (PreferenceConfig(loss=ConservativeDPO(label_smoothing=0.1)), "Conservative DPO", "–", False),
        (None, "SFT", "–", False),
    ],
    ids=["point", "dpo", "learned point", "frozen", "solved", "learned", "ipo", "conservative", "sft"],
)  # fmt: skip
def test_methods_by_name(preference: PreferenceConfig | None, method: str, rate: str, standard: bool) -> None:
    config = AlignmentConfig(out="x", data=DATA, preference=preference, sft=None if preference else StageConfig())
    assert (method_of(config), rate_of(config), is_dpo(config)) == (method, rate, standard)


def test_one_label_for_two_methods_is_told_apart_by_name_then_by_folder(tmp_path: Path) -> None:
    def run(folder: str, name: str, beta: float) -> Any:
        return measured_run(tmp_path / folder, name, PointStrength(value=beta))

    named = settings_of([run("a", "low", 0.1), run("b", "high", 0.5)])
    assert [setting.method for setting in named] == ["DPO (low)", "DPO (high)"]
    placed = settings_of([run("c", "same", 0.1), run("d", "same", 0.5)])
    assert [setting.method for setting in placed] == ["DPO (c)", "DPO (d)"]


def test_data_of_one_name_are_told_apart(tmp_path: Path) -> None:
    sizes = [8, 16]
    runs = [measured_run(tmp_path / f"n{n}", "run", DPO, data=SimulatedData(**{**vars(DATA), "num_train": n}))
            for n in sizes]  # fmt: skip
    found = settings_of(runs)
    assert [setting.data.rpartition(" ")[2] for setting in found] == ["(n8)", "(n16)"]
    assert differences(found) == [setting.data for setting in found]
    assert in_common(found) == " All are of DPO, new GPT-NeoX, 2 × 64."


def test_one_setting_differs_in_nothing(tmp_path: Path) -> None:
    found = settings_of([measured_run(tmp_path / "a", "run", DPO)])
    assert differences(found) == [""]


def test_seeds_are_joined() -> None:
    each = [
        {"value": 1.0, "standard_error": 0.2, "lower": 0.5, "upper": 1.5, "pvalue": 0.001},
        {"value": 2.0, "standard_error": 0.4, "lower": 1.0, "upper": 3.5, "pvalue": 0.03},
    ]
    seen = over_seeds(each)
    assert seen is not None
    assert (seen.value, seen.lower, seen.upper, seen.each) == (1.5, 0.75, 2.5, (1.0, 2.0))
    assert seen.standard_error == pytest.approx(0.3, rel=1e-15)  # rounding
    assert (seen.pvalue, seen.stars) == (0.03, "*")
    assert seen.spread == pytest.approx(0.5**0.5, rel=1e-15)


def test_what_one_seed_lacks_none_has() -> None:
    seen = over_seeds([{"value": 1.0, "standard_error": None}, {"value": 2.0, "standard_error": 0.1, "pvalue": 0.5}])
    assert seen is not None
    assert (seen.standard_error, seen.pvalue, seen.stars) == (None, None, "")
    assert over_seeds([{"value": None}, {"value": 1.0}]) is None
    assert over_seeds([]) is None


@pytest.mark.parametrize("pvalue, marks", [(None, ""), (0.05, ""), (0.049, "*"), (0.01, "*"), (0.0099, "**")])
def test_stars(pvalue: float | None, marks: str) -> None:
    assert stars(pvalue) == marks
