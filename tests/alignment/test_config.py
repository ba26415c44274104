"""Settings: typed, validated where they are made, and back and forth through YAML."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from mixlogit_align.alignment import AlignmentConfig, dump_config, load_config, parse_config
from mixlogit_align.alignment.config import (
    ClosedFormRule,
    GammaStrength,
    LearnedUpdate,
    LogNormalStrength,
    MonteCarloRule,
    NewModel,
    OptimConfig,
    PointStrength,
    PreferenceConfig,
    PretrainedModel,
    QuadratureRule,
    StageConfig,
    TokenizationConfig,
)
from mixlogit_align.alignment.data.config import HHData, HumourData, SimulatedData
from mixlogit_align.distributions import ClosedForm, MonteCarlo, Quadrature
from mixlogit_align.errors import InvalidInputError

FULL = AlignmentConfig(
    out="runs/one",
    data=HHData(max_train=100),
    model=PretrainedModel(path="somewhere"),
    tokenization=TokenizationConfig(truncation="keep_start"),
    sft=StageConfig(optim=OptimConfig(name="adamw", lr=1e-3)),
    preference=PreferenceConfig(strength=GammaStrength(update=LearnedUpdate(lr=1e-3)), integration=ClosedFormRule()),
    seed=3,
)


@pytest.mark.parametrize(
    "config",
    [FULL, AlignmentConfig(out="o", sft=StageConfig()), dataclasses.replace(FULL, data=HumourData(), sft=None)],
)
def test_written_and_read_back(tmp_path, config):
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_overrides_replace_what_the_file_says(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(FULL))
    overrides = ["preference.optim.lr=1e-6", "seed=4", "data={source: simulated, strength_cv: 0}", "sft=null"]
    config = load_config(path, overrides)
    assert config.preference is not None
    assert config.preference.optim.lr == 1e-6
    assert (config.seed, config.sft) == (4, None)
    assert config.data == SimulatedData(strength_cv=0.0)


def test_an_override_may_open_a_section(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("out: o\n")
    config = load_config(path, ["preference.strength.family=gamma"])
    assert config.preference == PreferenceConfig(strength=GammaStrength())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preference": {"optim": {"learningrate": 1}}}, r"unknown preference\.optim\.learningrate.*Try one of these"),
        ({"prefrence": {}}, "Try preference"),
        ({"preference": {"strength": {"family": "lognormal", "sigma": 1.0}}}, r"strength\.sigma"),
        ({"preference": {"strength": {"family": "gama"}}}, r"preference\.strength\.family.*Try `family: gamma`"),
        ({"preference": {"strength": {"loc": 1.0}}}, r"preference\.strength\.family: got None"),
        ({"preference": {"strength": {"family": "gamma", "rate": -1.0}}}, r"rate: got -1"),
        ({"preference": {"integration": {"rule": "monte_carlo", "num_draws": 0}}}, "num_draws: got 0"),
        ({"preference": {"batch_size": 2.5}}, r"preference\.batch_size: got 2\.5; expected a value of type int"),
        ({"preference": {"batch_size": True}}, "batch_size: got True"),
        ({"preference": {"optim": {"lr": "fast"}}}, r"optim\.lr: got 'fast'; expected a value of type float"),
        ({"preference": {"optim": {"name": "rmspop"}}}, "Try rmsprop"),
        ({"preference": {"eval_every_examples": 2000}}, "Try eval_every_examples=1984"),
        ({"preference": []}, "preference: got .*expected a section"),
        ({"preference": {}, "data": {"source": "humour", "eval_fraction": 1.0}}, "eval_fraction"),
        ({"preference": {}, "data": {"source": "hh", "max_train": 0}}, "max_train"),
        ({"preference": {}, "data": {"source": "simulated", "strength_cv": float("nan")}}, "strength_cv"),
        ({"preference": {}, "model": {"kind": "new", "hidden_size": 30}}, "multiple of num_heads"),
        ({"preference": {}, "model": {"kind": "new", "vocab_size": 100}}, "at least 258"),
        ({"preference": {}, "model": {"kind": "new", "max_positions": 64}}, "max_length=128"),
        ({"preference": {}, "model": {"kind": "pretrained"}}, r"model\.path: got nothing"),
        ({}, "at least one stage.*Try a section `sft:` or `preference:`"),
        ({"data": {"source": "hh", "path": "x"}}, r"unknown data\.path; expected one of source, .*Try one of"),
    ],
    ids=str,
)  # fmt: skip
def test_errors_name_the_setting_and_what_to_try(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        parse_config({"out": "o", **settings})


def test_out_is_required():
    with pytest.raises(InvalidInputError, match="out: got nothing"):
        parse_config({"preference": {}})


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "preference: 3\n"])
def test_text_that_is_no_settings(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match="expected"):
        load_config(path, ["preference.batch_size=1"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidInputError, match=r"absent\.yaml: got no such file; expected a YAML file"):
        load_config(tmp_path / "absent.yaml")


def test_a_folder_is_no_configuration(tmp_path):
    with pytest.raises(InvalidInputError, match="got a folder; expected a YAML file"):
        load_config(tmp_path)


def test_an_override_needs_a_value(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("out: o\n")
    with pytest.raises(InvalidInputError, match=r"section\.setting=value"):
        load_config(path, ["preference"])


def test_yaml_reads_small_numbers_however_they_are_written():
    settings = yaml.safe_load("{out: o, preference: {optim: {lr: 1e-6}}}")
    assert settings["preference"]["optim"]["lr"] == "1e-6"
    config = parse_config(settings)
    assert config.preference is not None
    assert config.preference.optim.lr == 1e-6


@pytest.mark.parametrize(
    ("section", "built"),
    [
        (ClosedFormRule(), ClosedForm()),
        (QuadratureRule(num_nodes=40), Quadrature(40)),
        (MonteCarloRule(num_draws=8, draws="antithetic", seed=2), MonteCarlo(8, seed=2, kind="antithetic")),
        (MonteCarloRule(sharing="batch"), MonteCarlo(16, sharing="batch")),
    ],
)
def test_rules_build_the_rules_they_name(section, built):
    assert section.build() == built


@pytest.mark.parametrize(
    ("section", "parameters"),
    [
        (PointStrength(value=0.2), {"v": 0.2}),
        (LogNormalStrength(loc=-1.0, scale=0.3, transform="softplus"), {"loc": -1.0, "scale": 0.3}),
        (GammaStrength(concentration=3.0, rate=20.0), {"concentration": 3.0, "rate": 20.0}),
    ],
)
def test_strengths_build_the_mixing_they_name(section, parameters):
    assert section.build().summary()["parameters"] == pytest.approx(parameters, rel=1e-6)


def test_the_number_of_steps_counts_a_last_short_batch():
    assert StageConfig(batch_size=64, num_epochs=3).num_steps(100) == 5
    assert NewModel().kind == "new"
