"""Settings: typed, validated where they are made, and back and forth through YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

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
from mixlogit_align.alignment.data.config import HHData, HumourData, SimulatedData, TableData
from mixlogit_align.alignment.manual import manual, settings, spelled
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


@pytest.mark.parametrize("text", ["2024", "1e-6", "yes", "null", "", "a: b", "[1", "$MIXLOGIT_DATA/x", "Ångström\n"])
def test_any_text_is_read_back(tmp_path, text):
    config = dataclasses.replace(FULL, name=text, data=TableData(path="x", prompt=text, groups=(text, "b")))
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("name=2024", {"name": "2024"}),  # YAML alone makes this a number
        ("name=yes", {"name": "yes"}),
        ("name=a=b: c", {"name": "a=b: c"}),
        ("seed=7", {"seed": 7}),
        ("activation_checkpointing=true", {"activation_checkpointing": True}),
        ("tracking=[wandb, tensorboard]", {"tracking": ("wandb", "tensorboard")}),
        ("sft={}", {"sft": StageConfig()}),
        ("preference=null", {"preference": None}),
        ("checkpoint.every_examples=null", {}),
        ("data={source: table, path: x, prompt: 'null'}", {"data": TableData(path="x", prompt="null")}),
    ],
    ids=str,
)
def test_an_override_is_read_by_the_type_of_its_setting(tmp_path, override, expected):
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(FULL))
    assert load_config(path, [override]) == dataclasses.replace(FULL, **expected)


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
        ({"preference": {"strength": {"loc": 1.0}}}, r"strength\.family: got nothing.*Try `family: lognormal`"),
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
        ({"preference": {"strength": {"famly": "gamma"}}}, r"unknown preference\.strength\.famly.*Try .*\.family"),
        ({"data": {"source": "hh", "folder": "x"}}, r"unknown data\.folder; expected one of source, .*Try one of"),
        ({"data": {"source": "hh", "max_trian": 9}}, r"unknown data\.max_trian; .*Try data\.max_train"),
        ({"data": 3}, "data: got 3; expected a section of settings"),
        ({"data": {"source": ["hh"]}}, r"data\.source: got \['hh'\]; expected one of simulated, hh"),
        ({"optim": {"lr": 1}}, r"unknown optim; .*Try sft\.optim or preference\.optim\."),
        ({"data": {"source": "hh", "utility_scale": 9}}, r"data\.utility_scale; .*Try `source: simulated`, which"),
        ({"preference": {"strength": {"family": "gamma", "update": {"kind": "frozen", "lr": 1}}}}, "`kind: learned`, "),
        ({"preference": {"lr": 1}}, r"Try preference\.optim\.lr or preference\.strength\.update\.lr\."),
        ({"preference": {"strength": {"family": "gamma", "rate": 0}}}, r"^preference\.strength\.rate: got 0\.0;"),
        ({"preference": {"batch_size": None}}, r"batch_size: got None; expected a value of type int"),
        ({"preference": {"batch_size": [8]}}, r"batch_size: got \[8\]; expected a value of type int"),
        ({"preference": {"optim": {"lr": "nan"}}}, r"lr: got 'nan'; .* --settings preference\.optim\.lr`"),
        ({"activation_checkpointing": 1}, r"activation_checkpointing: got 1; expected a value of type bool"),
        ({"name": 5}, r"name: got 5; expected a value of type str"),
        ({"tracking": ["wandb", "tensorbord"]}, r"got .*; expected list of one of tensorboard, wandb\. Try tensorb"),
        ({"tracking": "wandb"}, r"tracking: got 'wandb'; expected list of .*Try `\[wandb\]`"),
        ({"checkpoint": {"every_examples": 2.5}}, r"every_examples: got 2\.5; expected a value of type int or null"),
        ({"checkpoint": None}, r"checkpoint: got None; expected a section of settings"),
        ({1: 2}, r"unknown 1; expected one of out"),
    ],
    ids=str,
)  # fmt: skip
def test_errors_name_the_setting_and_what_to_try(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        parse_config({"out": "o", **settings})


def test_a_kind_may_be_given_by_its_name_alone():
    by_name = parse_config({"out": "o", "preference": {"loss": "ipo"}, "data": "simulated"})
    assert by_name == parse_config({"out": "o", "preference": {"loss": {"kind": "ipo"}}})
    assert by_name == parse_config({"out": "o"}, ["preference.loss=ipo"])


def test_what_another_loss_does_not_use_is_named_at_once_with_the_way_out():
    settings = {"loss": "dpo", "strength": {"family": "gamma"}, "integration": {"rule": "closed_form"}}
    words = r"strength and integration: got given.*--preference\.strength null --preference\.integration null"
    with pytest.raises(InvalidInputError, match=words):
        parse_config({"out": "o", "preference": settings})


def test_out_is_required():
    with pytest.raises(InvalidInputError, match="out: got nothing"):
        parse_config({"preference": {}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"config\.yaml: got expected the node content, .* \(line 1, column 5\); expected YAML settings"),
        ("- 1\n- 2\n", r"config\.yaml: got \[1, 2\]; expected a section of settings"),
        ("just words", r"config\.yaml: got 'just words'; expected a section"),
        ("false", r"config\.yaml: got False; expected a section"),
        ("preference: 3\n", "preference: got 3; expected a section of settings"),
        ("preference:\n  batch_size: 8\n  batch_size: 16\n", r"got batch_size is set twice \(line 3, column 3\);"),
        ("[a]: 1\n", r"config\.yaml: got found unhashable key \(line 1, column 1\); expected YAML settings"),
    ],
    ids=["unfinished", "list", "words", "false", "scalar", "twice", "no name"],
)
def test_text_that_is_no_settings(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=message) as error:
        load_config(path, ["preference.batch_size=1"])
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"out: \xff\n")
    with pytest.raises(InvalidInputError, match="expected a text that can be read"):
        load_config(path)


def test_yaml_may_repeat_a_section_by_name(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "out: o\nsft: &s {optim: &o {lr: 1e-3}, batch_size: 64}\npreference: {<<: *s, optim: {<<: *o, lr: 2e-3}}\n"
    )
    config = load_config(path)
    assert (config.sft.optim.lr, config.preference.optim.lr) == (1e-3, 2e-3)


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
    with pytest.raises(InvalidInputError, match=r"^seed: got ''; expected a value of type int"):
        load_config(path, ["preference={}", "seed="])


def test_an_override_below_a_value_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("out: o\n")
    with pytest.raises(InvalidInputError, match=r"^out: got 'o'; expected a section of settings"):
        load_config(path, ["out.x.y=1"])


def test_overrides_build_on_one_another(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("out: o\n")
    config = load_config(path, ["sft={batch_size: 8}", "sft.num_epochs=2", "sft.eval_every_examples=8"])
    assert config.sft == StageConfig(batch_size=8, num_epochs=2, eval_every_examples=8)
    with pytest.raises(InvalidInputError, match=r"^sft: got expected ',' or '}'.*; expected YAML"):
        load_config(path, ["sft={batch_size: 8"])


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


SETTINGS = list(settings())


def test_the_manual_has_every_setting_with_a_meaning():
    assert [item.path for item in SETTINGS if not item.meaning] == []
    leaves = set(yaml.safe_load(dump_config(FULL))) | {"preference.strength.update.lr", "data.source"}
    assert leaves - {item.path for item in SETTINGS} == {"data.source"}  # the tag stands with its section


@pytest.mark.parametrize(
    ("section", "lines"),
    [
        ("out", ["out: str, required"]),
        ("preference.optim.lr", ["preference.optim.lr: float (default: 5e-07)"]),
        ("checkpoint.every_examples", ["checkpoint.every_examples: int or null (default: null)"]),
        ("model", ["model: a section, one of kind: new, pretrained (default: new)"]),
        (
            "preference.integration",
            [
                "preference.integration: with `rule: monte_carlo`",
                "preference.integration.draws: one of pseudo, stratified, antithetic (default: pseudo)",
            ],
        ),
    ],
    ids=["required", "float", "optional", "tagged", "kind"],
)
def test_the_manual_tells_type_and_default(section, lines):
    text = manual(section)
    assert [line for line in lines if line not in text.splitlines()] == []
    assert all(line.startswith((section, " ")) or not line for line in text.splitlines())


@pytest.mark.parametrize(
    ("section", "hint"),
    [
        ("lr", r"Try sft\.optim\.lr or preference"),
        ("preference.optm", r"Try preference\.optim"),
        ("xyz", "Try the name"),
    ],
    ids=["deeper", "misspelt", "unlike any"],
)
def test_the_manual_refuses_a_name_that_it_does_not_know(section, hint):
    with pytest.raises(InvalidInputError, match=hint):
        manual(section)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | None, "int or null"),
        (Literal["a", "b"] | None, "one of a, b or null"),
        (tuple[str, ...], "list of str"),
        (Mapping[str, float], "mapping of str to float"),
    ],
    ids=["optional", "literal", "list", "mapping"],
)
def test_types_in_words(hint, words):
    assert spelled(hint) == words


@pytest.mark.parametrize(
    ("made", "message"),
    [
        pytest.param(lambda: NewModel(num_layers=2.5), "num_layers: got 2.5; expected a whole number", id="model"),
        pytest.param(lambda: StageConfig(batch_size=6.0), "batch_size: got 6.0; expected a whole number", id="stage"),
        pytest.param(lambda: OptimConfig(warmup_steps=-1), "warmup_steps: got -1; expected 0 or more", id="warm-up"),
        pytest.param(lambda: SimulatedData(num_eval=True), "num_eval: got True; expected a whole number", id="data"),
        pytest.param(lambda: HHData(max_train=0.5), "max_train: got 0.5; expected a whole number", id="reader"),
    ],
)
def test_a_count_is_a_whole_number_also_from_python(made, message):
    with pytest.raises(InvalidInputError, match=message):
        made()


@pytest.mark.parametrize(
    ("out", "name", "expected"),
    [("runs/one", "", "one"), ("runs/one/", "", "one"), ("runs/../two", "", "two"), ("runs/one", "DPO", "DPO")],
)
def test_a_run_is_called_as_its_folder_where_it_has_no_name(out, name, expected):
    assert dataclasses.replace(FULL, out=out, name=name).named().name == expected
