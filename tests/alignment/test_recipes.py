"""The paper's recipes: every one is a valid configuration whose every line says where it is from."""

from __future__ import annotations

import dataclasses
import re

import pytest

from mixlogit_align.alignment import dump_config, load_config
from mixlogit_align.alignment.config import (
    ClosedFormRule,
    FrozenUpdate,
    GammaStrength,
    LearnedUpdate,
    LogNormalStrength,
    MonteCarloRule,
    PointStrength,
    PretrainedModel,
)
from mixlogit_align.alignment.recipes import MAIN, NAMES, catalogue, load_recipe
from mixlogit_align.errors import InvalidInputError

ORIGIN = re.compile(r"\[(paper (Sec\. \d\.\d|App\. [A-H])|DPO reference code|ours|given)\]")


def values_without_origin(text: str) -> list[str]:
    """Lines of YAML that hold a value and do not say where it is from."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    sections = re.compile(r" *(- .*|\w+:)$")  # items stand below the line that is marked
    return [line for line in lines if not sections.match(line) and not ORIGIN.search(line.partition("  # ")[2])]


def test_the_names_are_the_paper_s_grid() -> None:
    assert len(MAIN) == 18  # 3 data sets, 2 models, 3 methods: Table 1
    assert set(MAIN) <= set(NAMES)
    # Table 2 has 9 rows for each of 3 data sets and 2 models; Appendix H adds two models
    assert len(set(NAMES)) == len(NAMES) == 9 * 3 * 4


@pytest.mark.parametrize("name", NAMES)
def test_every_line_says_where_it_is_from(name: str) -> None:
    recipe = load_recipe(name)
    config = recipe.config()
    text = recipe.annotated(config)
    assert values_without_origin(text) == []
    bare = [line.partition("  # ")[0].rstrip() for line in text.splitlines() if line and not line.startswith("#")]
    assert bare == dump_config(config).splitlines()
    assert [path for path, origin in recipe.origins.items() if not ORIGIN.match(origin)] == []


@pytest.mark.parametrize(
    ("method", "strength", "integration"),
    [
        ("dpo", PointStrength(value=0.1), None),
        (
            "lognormal",
            LogNormalStrength(loc=-2.3, scale=0.6, transform="softplus", update=LearnedUpdate(lr=1e-4)),
            MonteCarloRule(num_draws=16),
        ),
        ("gamma", GammaStrength(concentration=2.0, rate=16.7, update=LearnedUpdate(lr=1e-4)), ClosedFormRule()),
        ("gamma-lr1e-3", GammaStrength(update=LearnedUpdate(lr=1e-3)), ClosedFormRule()),
        ("gamma-lr1e-5", GammaStrength(update=LearnedUpdate(lr=1e-5)), ClosedFormRule()),
        ("gamma-frozen", GammaStrength(update=FrozenUpdate()), ClosedFormRule()),
        (
            "lognormal-frozen",
            LogNormalStrength(transform="softplus", update=FrozenUpdate()),
            MonteCarloRule(num_draws=16),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_methods_are_those_of_section_4(method: str, strength: object, integration: object) -> None:
    preference = load_recipe(f"hh/llama-3.2-1b/{method}").config().preference
    assert preference is not None
    assert preference.strength == strength
    assert integration in (None, preference.integration)


def test_the_policy_s_training_is_that_of_appendix_e() -> None:
    config = load_recipe("community/pythia-2.8b/dpo").config()
    preference = config.preference
    assert preference is not None
    assert dataclasses.asdict(preference.optim) == {
        "name": "rmsprop",
        "lr": 5e-7,
        "warmup_steps": 150,
        "max_grad_norm": 1.0,
    }
    assert (preference.batch_size, preference.eval_batch_size, preference.accumulation) == (64, 32, 1)
    assert (preference.num_epochs, preference.reference_precision) == (1, "float32")
    assert (config.tokenization.max_length, config.tokenization.max_prompt_length) == (128, 64)
    assert config.model == PretrainedModel(path="EleutherAI/pythia-2.8b")
    # "approximately 55k" comparisons are 860 steps: 1,984 can only be examples, 31 steps
    assert preference.num_steps(55_000) == 860
    assert preference.eval_every_examples == 31 * preference.batch_size


def test_methods_of_one_data_set_and_model_share_all_but_the_strength() -> None:
    one, other = (load_recipe(f"prism/phi-2/{method}").config() for method in ("dpo", "gamma-lr1e-3"))
    assert one.preference is not None
    assert other.preference is not None
    strength, integration = other.preference.strength, other.preference.integration
    preference = dataclasses.replace(one.preference, strength=strength, integration=integration)
    assert dataclasses.replace(one, out=other.out, name=other.name, preference=preference) == other


def test_an_override_is_marked_as_given() -> None:
    recipe = load_recipe("hh/pythia-2.8b/gamma")
    given = ["seed=3", "preference.strength={family: point}", "sft=null"]
    text = recipe.annotated(recipe.config(given), given)
    marked = [line.partition(":")[0].strip() for line in text.splitlines() if line.endswith("# [given]")]
    assert marked == ["sft", "family", "value", "kind", "seed"]
    assert values_without_origin(text) == []


def test_what_is_shown_can_be_loaded(tmp_path) -> None:
    recipe = load_recipe("prism/llama-3.2-1b/lognormal")
    (tmp_path / "run.yaml").write_text(recipe.annotated(recipe.config()))
    assert dump_config(load_config(tmp_path / "run.yaml")) == dump_config(recipe.config())


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("prism/pythia-2.8b/gama", "prism/pythia-2.8b/gamma"),
        ("prism/pythia-2.8b", "prism/pythia-2.8b/dpo"),
        ("hh/", "hh/pythia-2.8b/dpo"),
        ("hh/llama/dpo", "hh/llama-3.2-1b/dpo"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(f"`--recipe {near}`")):
        load_recipe(name)


def test_the_catalogue_names_every_part() -> None:
    first = {line.split()[0] for line in catalogue().splitlines() if line.startswith("  ")}
    assert first == {part for name in NAMES for part in name.split("/")}
