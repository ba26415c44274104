"""Every setting with its type, default and meaning: what the dataclasses and their docstrings say of themselves."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from mixlogit_align.alignment.config import AlignmentConfig
from mixlogit_align.errors import InvalidInputError, explain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting, or one section of settings.

    Parameters
    ----------
    path : str
        Its dotted name, e.g. ``"preference.optim.lr"``.
    summary : str
        What follows the name: type and default; of a kind of section, the tag that chooses it.
    meaning : str
        From the docstring of its dataclass.
    tag : str
        Of the section it stands in, where that is one of several kinds, e.g. ``"family: gamma"``.
    """

    path: str
    summary: str
    meaning: str
    tag: str


def options_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union; any other type alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def sections_of(hint: Any) -> list[Any]:
    """The dataclasses among the members of a type."""
    return [option for option in options_of(hint) if dataclasses.is_dataclass(option)]


def tag_of(section: Any) -> str:
    """The name of the first field, by whose default sections of a union are told apart."""
    return dataclasses.fields(section)[0].name


def by_tag(sections: list[Any]) -> dict[str, Any]:
    """Sections of a union by the value of their tag."""
    return {str(dataclasses.fields(section)[0].default): section for section in sections}


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def choices_of(hint: Any) -> list[str]:
    """Every word that a type names literally, those in a list of words included."""
    if typing.get_origin(hint) is Literal:
        return [str(choice) for choice in typing.get_args(hint)]
    return [choice for argument in typing.get_args(hint) for choice in choices_of(argument)]


def spelled(hint: Any) -> str:
    """A type in words, e.g. "int or null", "one of rmsprop, adamw"."""
    arguments = typing.get_args(hint)
    if len(options_of(hint)) > 1:
        return " or ".join(spelled(option) for option in arguments)
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(choices_of(hint))}" if len(arguments) > 1 else str(arguments[0])
    if typing.get_origin(hint) is tuple:
        return f"list of {spelled(arguments[0])}"
    if arguments:
        return f"mapping of {spelled(arguments[0])} to {spelled(arguments[1])}"
    return "null" if hint is type(None) else str(hint.__name__)


def settings(
    section: Any = AlignmentConfig, where: str = "", tag: str = "", seen: set[Any] | None = None
) -> Iterator[Setting]:
    """Every setting of a section and of those below it; sections of a union one after the other.

    Parameters
    ----------
    section : dataclass
    where : str
        The dotted name of the section and a dot.
    tag : str
        As of `Setting`.
    seen : set, optional
        Sections that are described already, and are not again (three families of strength share one `update`).
    """
    seen = set() if seen is None else seen
    hints, meanings = typing.get_type_hints(section), _meanings(section)
    for field in dataclasses.fields(section):
        path, hint = f"{where}{field.name}", hints[field.name]
        sections = sections_of(hint)
        tagged = len(sections) > 1
        if not sections and choices_of(hint) == [field.default]:
            continue  # the tag
        kind = "a section" if sections else spelled(hint)
        if tagged:
            kind = f"a section, one of {tag_of(sections[0])}: {', '.join(by_tag(sections))}"
        meaning = meanings.get(field.name) or (_summary(sections[0]) if sections and not tagged else "")
        yield Setting(path=path, summary=f"{kind}{_default(field, tagged)}", meaning=meaning, tag=tag)
        for option in sections:
            if (path, option) in seen:
                continue
            seen.add((path, option))
            chosen = f"{tag_of(option)}: {dataclasses.fields(option)[0].default}" if tagged else ""
            if tagged:
                yield Setting(path=path, summary=f"with `{chosen}`", meaning=_summary(option), tag=chosen)
            yield from settings(option, f"{path}.", chosen, seen)


def known_as(name: str, where: str = "") -> str:
    """Where a name that is unknown in a section is known: in another kind of it, or further below; or an empty word."""
    everything = list(settings())
    kinds = dict.fromkeys(f"`{item.tag}`" for item in everything if item.path == f"{where}{name}")
    if kinds:
        return f"{' or '.join(kinds)}, which knows it"
    below = (item.path for item in everything if item.path.startswith(where))
    return " or ".join(dict.fromkeys(path for path in below if path.endswith(f".{name}")))


def manual(section: str | None = None, *, width: int = 100) -> str:
    """Every setting with its type, default and meaning, as text.

    Parameters
    ----------
    section : str, optional
        Only this section or setting, by its dotted name.
    width : int
        Of a line, in characters.

    Raises
    ------
    InvalidInputError
        For a name that is unknown, with the nearest known one.
    """
    everything = list(settings())
    chosen = [item for item in everything if section is None or f"{item.path}.".startswith(f"{section}.")]
    if not chosen:
        paths = [item.path for item in everything]
        above, dot, last = str(section).rpartition(".")
        near = difflib.get_close_matches(str(section), paths, n=1)
        hint = known_as(last, above + dot) or (near[0] if near else "the name of a section, or none for all")
        raise InvalidInputError(explain("settings", got=f"unknown {section}", expected="a known setting", hint=hint))
    indent = " " * 4
    text = "".join(
        ("\n" if item.summary.startswith(("with ", "a section")) else "")
        + f"{item.path}: {item.summary}\n"
        + textwrap.fill(item.meaning, width, initial_indent=indent, subsequent_indent=indent)
        + ("\n" if item.meaning else "")
        for item in chosen
    )
    return text.lstrip("\n")


def _default(field: dataclasses.Field[Any], tagged: bool) -> str:
    """The default as it is written in YAML; of a section of a union its tag, of another section nothing."""
    if is_required(field):
        return ", required"
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if tagged and default is not None:
        default = getattr(default, tag_of(default))
    if dataclasses.is_dataclass(default):
        return ""
    return f" (default: {default if default and isinstance(default, str) else json.dumps(default)})"


def _summary(section: Any) -> str:
    return " ".join(inspect.cleandoc(section.__doc__).partition("\n\n")[0].split())


def _meanings(section: Any) -> dict[str, str]:
    """What the numpydoc ``Parameters`` of a dataclass and its bases say, by name."""
    found = {}
    for base in reversed(section.__mro__):
        entries = inspect.cleandoc(base.__doc__ or "").partition("\nParameters\n----------\n")[2]
        for entry in re.split(r"\n(?=\S)", entries):
            names, _, meaning = entry.partition("\n")
            for name in names.partition(" : ")[0].split(", "):
                found[name] = " ".join(meaning.split())
    return found
