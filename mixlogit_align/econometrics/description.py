"""What the arguments of a study are, as JSON: so that a folder can tell whether it holds the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch.distributions import Distribution, Transform
from torch.distributions.constraints import Constraint

from mixlogit_align.errors import InvalidInputError, explain

# Tensors of at most so many elements are written out; larger ones by their digest.
_WRITTEN_OUT = 16
_PLAIN = (str, bool, int, float, type(None))


def describe(what: str, value: Any) -> Any:
    """A value as JSON: equal for equal arguments, in this process or another.

    Dataclasses by their fields, distributions and transforms by their parameters, tensors by their elements or, where
    they are large, by a digest of them.

    Parameters
    ----------
    what : str
        What the value is called in an error.
    value : object

    Returns
    -------
    JSON

    Raises
    ------
    InvalidInputError
        If there is a value in it whose parts cannot be told.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, torch.Tensor):
        return _tensor(value)
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): describe(f"{what}[{name!r}]", part) for name, part in value.items()}
    if isinstance(value, Sequence):
        return [describe(what, part) for part in value]
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"type": _name(value), **{name: describe(f"{what}.{name}", part) for name, part in parts.items()}}
    if isinstance(value, Distribution | Transform):
        parts = dict(_parts(value))
        if parts or isinstance(value, Transform):
            return {"type": _name(value), **{name: describe(f"{what}.{name}", part) for name, part in parts.items()}}
    expected = "numbers, text, tensors, data and distributions with parameters"
    raise InvalidInputError(explain(what, got=repr(value), expected=expected, hint="one of these"))


def differences(one: Any, other: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two descriptions differ.

    Parameters
    ----------
    one, other : JSON
    where : str
        Name of the place so far.

    Yields
    ------
    (str, JSON, JSON)
        The place, and what stands there in either; None where nothing does.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in dict.fromkeys((*one, *other)):
            yield from differences(one.get(name), other.get(name), f"{where}.{name}" if where else name)
    elif one != other:
        yield where, one, other


def _parts(value: Distribution | Transform) -> Iterator[tuple[str, Any]]:
    """Parameters; of what declares none, the distributions, transforms and numbers that it is made of."""
    declared: Mapping[str, Constraint] = getattr(value, "arg_constraints", {})
    if declared:
        # a distribution of probabilities has both forms, one made from the other when it is asked for
        yield from ((name, getattr(value, name)) for name in declared if not (name == "logits" and "probs" in declared))
        return
    for name, part in vars(value).items():
        own = isinstance(part, Distribution | Transform | torch.Tensor) or name in ("loc", "scale", "exponent")
        if own or (isinstance(part, list) and part and all(isinstance(each, Transform) for each in part)):
            yield name.removeprefix("_"), part


def _tensor(value: torch.Tensor) -> Any:
    plain = value.detach().cpu().contiguous()
    if plain.numel() <= _WRITTEN_OUT:
        return plain.tolist()
    digest = hashlib.sha256(plain.numpy().tobytes()).hexdigest()
    return {"shape": list(plain.shape), "dtype": str(plain.dtype).removeprefix("torch."), "sha256": digest}


def _name(value: object) -> str:
    return type(value).__name__
