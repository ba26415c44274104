"""A result in one file, without pickle: tensors in the safetensors format, all else as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mixlogit_align.distributions import Triangular
from mixlogit_align.errors import InvalidInputError, explain

_FORMAT = "mixlogit_align result 1"
_MIXINGS: dict[str, tuple[type[TorchDistribution], tuple[str, ...]]] = {
    "Delta": (dist.Delta, ("v",)),
    "Normal": (dist.Normal, ("loc", "scale")),
    "LogNormal": (dist.LogNormal, ("loc", "scale")),
    "Gamma": (dist.Gamma, ("concentration", "rate")),
    "Uniform": (dist.Uniform, ("low", "high")),
    "Triangular": (Triangular, ("low", "high")),
}


def write(path: str | PathLike[str], fields: Mapping[str, Any], mixing: TorchDistribution | None) -> None:
    """Write fields and a mixing distribution.

    Parameters
    ----------
    path : path
    fields : mapping
        Tensors, or what JSON can hold; tuples come back as lists.
    mixing : pyro.distributions.TorchDistribution or None

    Raises
    ------
    InvalidInputError
        If the file cannot be written, or the family of the mixing distribution is not among those that can be rebuilt.
    """
    tensors = {name: value for name, value in fields.items() if isinstance(value, torch.Tensor)}
    record: dict[str, Any] = {name: value for name, value in fields.items() if name not in tensors}
    family = None if mixing is None else type(mixing).__name__
    if mixing is not None:
        if family not in _MIXINGS:
            raise InvalidInputError(
                explain("mixing", got=repr(mixing), expected=f"one of {list(_MIXINGS)}", hint="one of these families")
            )
        tensors |= {f"mixing.{name}": getattr(mixing, name) for name in _MIXINGS[family][1]}
    header = {"format": _FORMAT, "mixing": json.dumps(family), "record": json.dumps(record)}
    # copies: the format refuses tensors that share memory
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        save_file(copies, fspath(path), header)
    except (OSError, SafetensorError) as error:
        raise InvalidInputError(
            explain(
                "path", got=f"{fspath(path)!r} ({error})", expected="a file that can be written", hint="another path"
            )
        ) from error


def read(path: str | PathLike[str]) -> tuple[dict[str, Any], TorchDistribution | None]:
    """Read what :func:`write` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    fields : dict
    mixing : pyro.distributions.TorchDistribution or None

    Raises
    ------
    InvalidInputError
        If there is no such file, or it is damaged or foreign.
    """
    try:
        with safe_open(fspath(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise not_a_result(path, str(error)) from error
    if header.get("format") != _FORMAT:
        raise not_a_result(path, f"the format {header.get('format')!r}")
    try:
        family = json.loads(header["mixing"])
        mixing = None
        if family is not None:
            kind, names = _MIXINGS[family]
            mixing = kind(**{name: tensors.pop(f"mixing.{name}") for name in names}, validate_args=False)
        return {**json.loads(header["record"]), **tensors}, mixing
    except (KeyError, TypeError, ValueError) as error:
        raise not_a_result(path, f"a damaged header ({error!r})") from error


def not_a_result(path: str | PathLike[str], got: str) -> InvalidInputError:
    """The error for a file that holds no result.

    Parameters
    ----------
    path : path
    got : str

    Returns
    -------
    InvalidInputError
    """
    expected = "a file that `MixedLogitResult.save` of this version wrote"
    return InvalidInputError(explain(f"result in {fspath(path)}", got=got, expected=expected, hint="saving it again"))
