"""The settings of the MixDPO paper, ready to run, each line with where it is from.

A recipe is DATA/MODEL/METHOD, put together from the YAML files beside this one: ``base``, then one each of ``data/``,
``models/`` and ``strengths/``, and where the strength is one of MixDPO's, one of ``updates/``. The first line of a file
says what it is; a comment behind a setting says where the setting is from. No file is read that is not part of the
package, so that recipes work without a network.

They are the paper's settings, not its results: its Tables 1 and 2 tell different win rates of the same settings, and
what it leaves open (which comparisons of a data set, how SFT is run) was chosen here.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from mixlogit_align.alignment.config import AlignmentConfig
from mixlogit_align.alignment.settings import dump_config, parse_config
from mixlogit_align.errors import InvalidInputError, explain

DATA = ("prism", "community", "hh")
MODELS = ("pythia-2.8b", "llama-3.2-1b", "gemma-2b", "phi-2")
FAMILIES = ("lognormal", "gamma")
LEARNED = "lr1e-4"  # the paper's main setting, which a method's name need not say
UPDATES = (LEARNED, "lr1e-3", "lr1e-5", "frozen")

# The parts of each method: a strength, and how it is updated.
METHODS: Mapping[str, tuple[str, ...]] = {"dpo": ("strengths/dpo",)} | {
    (family if update == LEARNED else f"{family}-{update}"): (f"strengths/{family}", f"updates/{update}")
    for family in FAMILIES
    for update in UPDATES
}
NAMES = tuple("/".join(parts) for parts in itertools.product(DATA, MODELS, METHODS))
# The paper's Table 1.
MAIN = tuple("/".join(parts) for parts in itertools.product(DATA, MODELS[:2], ("dpo", *FAMILIES)))

GIVEN, DEFAULT = "[given]", "[ours] the package's default"
HEADER = """\
# Recipe {name}
# {about}
#
# Where each line is from:
#   [paper ...]           the MixDPO paper states it there
#   [DPO reference code]  the paper is silent or unclear, and its other numbers are those of the public reference code
#                         of DPO, from which this one is inherited
#   [ours]                neither says; chosen for this recipe
#   [given]               replaced when the recipe was loaded
# One supervised stage serves all methods of a data set and a model:
#   mixlogit-align sft --recipe {name} --out runs/{start}/sft
#   mixlogit-align train --recipe {name} --sft null --model.path runs/{start}/sft/policy
"""
COLUMN = 44  # where comments begin, at the least


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings, and where each one is from.

    Parameters
    ----------
    name : str
        DATA/MODEL/METHOD, e.g. "prism/pythia-2.8b/gamma".
    about : str
        What it is, in words.
    settings : mapping
        Nested, as `mixlogit_align.alignment.settings.parse_config` reads them.
    origins : mapping
        Dotted name of a setting -> where it is from, e.g. "[paper App. E]".
    """

    name: str
    about: str
    settings: Mapping[str, Any]
    origins: Mapping[str, str]

    def config(self, overrides: Sequence[str] = ()) -> AlignmentConfig:
        """The recipe as a configuration; overrides and errors as for `mixlogit_align.alignment.load_config`."""
        return parse_config(self.settings, overrides)

    def annotated(self, config: AlignmentConfig, overrides: Sequence[str] = ()) -> str:
        """Every setting of ``config`` as YAML that can be read back, each line with where it is from.

        Parameters
        ----------
        config : AlignmentConfig
            What `config` gave, whole or with a stage left out.
        overrides : sequence of str
            Those that it was made with; the settings below them are marked as given.
        """
        given = [override.partition("=")[0] for override in overrides]
        lines = dump_config(config).splitlines()
        for path, last in _settings_of(yaml.compose("\n".join(lines))):
            is_given = any(f"{path}.".startswith(f"{name}.") for name in given)
            origin = GIVEN if is_given else self.origins.get(path, DEFAULT)
            lines[last] = f"{lines[last]:<{COLUMN}}  # {origin}"
        header = HEADER.format(name=self.name, about=self.about, start=self.name.rpartition("/")[0])
        return "\n".join([header, *lines]) + "\n"


def load_recipe(name: str) -> Recipe:
    """The recipe called ``name``.

    Parameters
    ----------
    name : str
        DATA/MODEL/METHOD; `catalogue` lists them.

    Raises
    ------
    InvalidInputError
        For an unknown name, with the nearest known one.
    """
    if name not in NAMES:
        near = next((known for known in NAMES if known.startswith(f"{name.rstrip('/')}/")), None)
        near = near or difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
        raise InvalidInputError(
            explain(
                "recipe",
                got=repr(name),
                expected="DATA/MODEL/METHOD; `--recipe` without a name lists them",
                hint=f"`--recipe {near}`",
            )
        )
    data, model, method = name.split("/")
    parts = [_part("base"), *map(_part, (f"data/{data}", f"models/{model}", *METHODS[method]))]
    settings: dict[str, Any] = {"out": f"runs/{name}", "name": name}
    origins = {"out": "[ours]", "name": "[ours]"}
    for part in parts:
        settings = _joined(settings, part.settings)
        origins |= part.origins
    return Recipe(name=name, about="; ".join(part.about for part in parts[1:]), settings=settings, origins=origins)


def catalogue() -> str:
    """What recipes there are, as text."""
    rows = [
        ("DATA", {name: f"data/{name}" for name in DATA}),
        ("MODEL", {name: f"models/{name}" for name in MODELS}),
        ("METHOD", METHODS),
    ]
    text = "A recipe is DATA/MODEL/METHOD, for example prism/pythia-2.8b/gamma.\n"
    for heading, parts in rows:
        text += f"\n{heading}\n"
        for name, files_ in parts.items():
            words = [_part(file).about for file in ([files_] if isinstance(files_, str) else files_)]
            text += f"  {name:<18}  {', '.join(words)}\n"
    return text


@cache
def architectures() -> Mapping[str, Mapping[str, Any]]:
    """Hub names of the recipes' models -> what their ``config.json`` says of their architecture."""
    found: Mapping[str, Mapping[str, Any]] = json.loads(_read("architectures.json"))
    return found


def _read(file: str) -> str:
    return files(__name__).joinpath(*file.split("/")).read_text(encoding="utf-8")


@cache
def _part(name: str) -> Recipe:
    """One of the files that recipes are put together from."""
    text = _read(f"{name}.yaml")
    lines = text.splitlines()
    return Recipe(
        name=name,
        about=lines[0].removeprefix("# "),
        settings=yaml.safe_load(text),
        origins={path: lines[last].partition("  # ")[2].strip() for path, last in _settings_of(yaml.compose(text))},
    )


def _joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings of both; none is in both."""
    joined = dict(first)
    for name, value in second.items():
        assert name not in joined or isinstance(value, Mapping), f"{name} stands in two parts of a recipe"
        joined[name] = _joined(joined.get(name, {}), value) if isinstance(value, Mapping) else value
    return joined


def _settings_of(node: Any, above: str = "") -> Iterator[tuple[str, int]]:
    """Dotted name of every setting of a YAML document, and the number of the line that a comment may end."""
    for key, value in node.value:
        path = f"{above}{key.value}"
        if isinstance(value, yaml.MappingNode):
            yield from _settings_of(value, f"{path}.")
        else:
            line = key if isinstance(value, yaml.SequenceNode) else value
            yield path, line.end_mark.line
