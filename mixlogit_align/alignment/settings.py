"""Settings from YAML and dotted overrides, and back: unknown names are refused with the nearest known one."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from mixlogit_align.alignment.checks import require
from mixlogit_align.alignment.config import AlignmentConfig
from mixlogit_align.errors import InvalidInputError, explain

T = TypeVar("T")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> AlignmentConfig:
    """Read an `AlignmentConfig` from a YAML file.

    Parameters
    ----------
    path : path
    overrides : sequence of str
        Settings that replace the file's, as ``"preference.optim.lr=1e-6"``; values are read as YAML.

    Raises
    ------
    InvalidInputError
        For an unknown setting (with the nearest known name), a value of the wrong type or out of range.
    """
    import yaml

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
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        for override in overrides:
            name, equals, value = override.partition("=")
            require(bool(equals), "override", override, "section.setting=value")
            section = settings
            *parents, last = name.split(".")
            for parent in parents:
                if section.get(parent) is None:
                    section[parent] = {}
                section = section[parent]
            section[last] = yaml.safe_load(value)
    except (OSError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise InvalidInputError(
            explain(
                str(path),
                got=str(error),
                expected="nested YAML settings",
                hint="checking the indentation and each override's path",
            )
        ) from error
    return parse_config(settings)


def parse_config(settings: Mapping[str, Any]) -> AlignmentConfig:
    """Make an `AlignmentConfig` of nested mappings; errors as for `load_config`."""
    return _section(AlignmentConfig, settings, "")


def dump_config(config: AlignmentConfig) -> str:
    """Return the resolved settings as YAML that `load_config` reads back to an equal object."""
    import yaml

    text: str = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    return text


def _section(cls: type[T], settings: Any, where: str) -> T:
    if not isinstance(settings, Mapping):
        raise InvalidInputError(
            explain(
                where.rstrip(".") or "config",
                got=repr(settings),
                expected="a section of settings",
                hint="indenting its settings below it",
            )
        )
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in settings:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"{where}{near[0]}" if near else "one of these"
            raise InvalidInputError(
                explain("settings", got=f"unknown {where}{name}", expected=f"one of {', '.join(fields)}", hint=hint)
            )
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in settings:
            raise InvalidInputError(
                explain(f"{where}{name}", got="nothing", expected="a value", hint=f"a line `{name}:`")
            )
    values = {name: _value(hints[name], value, f"{where}{name}") for name, value in settings.items()}
    try:
        return cls(**values)
    except InvalidInputError as error:
        raise InvalidInputError(f"{where.rstrip('.')}: {error}" if where else str(error)) from error


def _value(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the annotated type ``hint``, or an error naming the setting ``where``."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    sections = [option for option in options if dataclasses.is_dataclass(option)]
    if len(sections) == 1:
        return _section(sections[0], value, f"{where}.")  # type: ignore[arg-type]
    if sections:
        return _tagged_section(sections, value, where)
    scalar = next(option for option in options if option is not type(None))
    if typing.get_origin(scalar) is tuple:
        require(isinstance(value, list | tuple), where, value, "a list")
        return tuple(_value(typing.get_args(scalar)[0], item, f"{where}.{i}") for i, item in enumerate(value))
    if typing.get_origin(scalar) is Literal:
        choices = typing.get_args(scalar)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)
            raise InvalidInputError(
                explain(where, got=repr(value), expected=f"one of {', '.join(choices)}", hint=near[0])
            )
        return value
    # YAML 1.1 reads 1e-6 as a string.
    if scalar is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, scalar) or (isinstance(value, bool) and scalar is not bool):
        raise InvalidInputError(
            explain(where, got=repr(value), expected=f"a value of type {scalar.__name__}", hint="another value")
        )
    return value


def _tagged_section(sections: Sequence[Any], value: Any, where: str) -> Any:
    """The section among ``sections`` that its first field (the tag) names."""
    tag = dataclasses.fields(sections[0])[0].name
    by_tag = {section.__dataclass_fields__[tag].default: section for section in sections}
    got = value.get(tag) if isinstance(value, Mapping) else value
    if got not in by_tag:
        near = difflib.get_close_matches(str(got), by_tag, n=1, cutoff=0.0)
        raise InvalidInputError(
            explain(f"{where}.{tag}", got=repr(got), expected=f"one of {', '.join(by_tag)}", hint=f"`{tag}: {near[0]}`")
        )
    return _section(by_tag[got], value, f"{where}.")
