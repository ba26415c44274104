"""Settings from YAML and dotted overrides, and back: unknown names are refused with the nearest known one.

jsonargparse reads each value by its type. Which dataclass a section is, by its tag, and errors that name a setting by
its dotted path are this module's: jsonargparse tries the members of a union in turn and reports all that failed.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from mixlogit_align.alignment.checks import require
from mixlogit_align.alignment.config import AlignmentConfig
from mixlogit_align.alignment.manual import (
    by_tag,
    choices_of,
    is_required,
    known_as,
    options_of,
    sections_of,
    spelled,
    tag_of,
)
from mixlogit_align.errors import InvalidInputError, explain

T = TypeVar("T")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> AlignmentConfig:
    """Read an `AlignmentConfig` from a YAML file.

    Parameters
    ----------
    path : path
    overrides : sequence of str
        Settings that replace the file's, as ``"preference.optim.lr=1e-6"``: a word or number as it stands, a list or
        section as YAML, ``null`` for none.

    Raises
    ------
    InvalidInputError
        For an unknown setting (with the nearest known name), one that is set twice, a value of the wrong type or out
        of range.
    """
    if not Path(path).is_file():
        raise InvalidInputError(
            explain(
                str(path),
                got="a folder" if Path(path).is_dir() else "no such file",
                expected="a YAML file of settings",
                hint="the path of one; `mixlogit-align train --help` shows a complete example",
            )
        )
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            explain(str(path), got=str(error), expected="a text that can be read", hint="another file")
        ) from error
    return parse_config(_mapping(_yaml(text, str(path)) if text.strip() else {}, str(path)), overrides)


def parse_config(settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> AlignmentConfig:
    """Make an `AlignmentConfig` of nested mappings; overrides and errors as for `load_config`."""
    replaced = copy.deepcopy(dict(settings))
    for override in overrides:
        _put(replaced, override)
    return _section(AlignmentConfig, replaced, "")


def dump_config(config: AlignmentConfig) -> str:
    """Return the resolved settings as YAML that `load_config` reads back to an equal object."""
    text: str = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    return text


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML that refuses a name given twice in one section, where PyYAML keeps the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        names = set()
        for name in (name for name, _ in node.value if isinstance(name, yaml.ScalarNode)):
            if name.value in names:
                raise yaml.MarkedYAMLError(problem=f"{name.value} is set twice", problem_mark=name.start_mark)
            names.add(name.value)
        return node


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        got = f"{getattr(error, 'problem', error)}{place}"
        raise InvalidInputError(explain(where, got=got, expected="YAML settings", hint="correcting it")) from error


class _Text(str):
    """The value of an override: read by the type of its setting, so that ``name=2024`` is a name."""


def _put(settings: dict[str, Any], override: str) -> None:
    """Replace one setting, opening the sections above it where there are none."""
    name, equals, text = override.partition("=")
    require(bool(equals), "override", override, "section.setting=value")
    *parents, last = name.split(".")
    section, where = settings, ""
    for parent in parents:
        where = f"{where}.{parent}".lstrip(".")
        below = section.get(parent)
        if isinstance(below, _Text):
            below = _yaml(below, where)
        section[parent] = {} if below is None else _mapping(below, where)
        section = section[parent]
    section[last] = _Text(text)


def _mapping(value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise InvalidInputError(
            explain(
                where, got=repr(value), expected="a section of settings", hint="`name: value` lines, indented below it"
            )
        )
    return value


def _section(cls: type[T], settings: Any, where: str) -> T:
    """The dataclass ``cls`` of ``settings``; ``where`` is its dotted name and a dot."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    _refuse_unknown(_mapping(settings, where.rstrip(".") or "config"), list(fields), where)
    for name, f in fields.items():
        if is_required(f) and name not in settings:
            raise InvalidInputError(
                explain(f"{where}{name}", got="nothing", expected=spelled(hints[name]), hint=f"a line `{name}:`")
            )
    values = {name: _value(hints[name], value, f"{where}{name}") for name, value in settings.items()}
    try:
        return cls(**values)
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}{error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the annotated type ``hint``, or an error naming the setting ``where``."""
    sections, optional = sections_of(hint), type(None) in options_of(hint)
    is_list = any(typing.get_origin(option) is tuple for option in options_of(hint))
    if isinstance(value, _Text):
        written = sections or is_list or (optional and value in ("null", "~", ""))
        value = _yaml(value, where) if written else str(value)
    if value is None and optional:
        return None
    if len(sections) > 1 and isinstance(value, str) and value in by_tag(sections):
        value = {tag_of(sections[0]): value}  # `loss: dpo` for `loss: {kind: dpo}`
    if sections:
        return _section(sections[0] if len(sections) == 1 else _chosen(sections, value, where), value, f"{where}.")
    given = tuple(option for option in options_of(hint) if option is not type(None))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=Union[given])  # noqa: UP007 - of a tuple
    try:
        read = parser.parse_object({"value": value}).value
    except ArgumentError:
        read = None
    if read is None:  # also where None is given: jsonargparse lets it pass for any type
        words = choices_of(hint)
        got = [item for item in value if item not in words] if isinstance(value, list | tuple) else value
        near = difflib.get_close_matches(str(got), words, n=1, cutoff=0.0)
        hint_ = near[0] if near else f"another value; `mixlogit-align train --settings {where}` explains it"
        if is_list and isinstance(value, str):
            hint_ = f"`[{value}]`"
        expected = spelled(hint) if words else f"a value of type {spelled(hint)}"
        raise InvalidInputError(explain(where, got=repr(value), expected=expected, hint=hint_))
    return read


def _chosen(sections: list[Any], value: Any, where: str) -> Any:
    """The section among ``sections`` that its tag names."""
    tag, known = tag_of(sections[0]), by_tag(sections)
    got = _mapping(value, where).get(tag)
    if isinstance(got, str) and got in known:
        return known[got]
    names = {kind: [field.name for field in dataclasses.fields(section)] for kind, section in known.items()}
    if tag in value:
        near = difflib.get_close_matches(str(got), known, n=1, cutoff=0.0)
    else:  # it may be misspelt, or what else is set tells the section
        _refuse_unknown(value, list(dict.fromkeys(name for kind in names.values() for name in kind)), f"{where}.")
        near = [kind for kind in known if set(value) <= set(names[kind])] or list(known)
    raise InvalidInputError(
        explain(
            f"{where}.{tag}",
            got=repr(got) if tag in value else "nothing",
            expected=f"one of {', '.join(known)}",
            hint=f"`{tag}: {near[0]}`",
        )
    )


def _refuse_unknown(settings: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = known_as(str(name), where) or (f"{where}{near[0]}" if near else "one of these")
            raise InvalidInputError(
                explain("settings", got=f"unknown {where}{name}", expected=f"one of {', '.join(known)}", hint=hint)
            )
