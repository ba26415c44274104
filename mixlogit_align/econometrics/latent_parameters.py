"""Parameters of latent classes: one specification in every class, what is common to all, and membership."""

# C classes, P parameters of a class, Q parameters in all, D membership covariates.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.specification import Specification
from mixlogit_align.errors import InvalidInputError, explain, require_count

CONSTANT = "constant"
# Covariates are collinear where the smallest singular value of their centred columns of unit length is below this.
_COLLINEAR = 1e-8


def label(c: int) -> str:
    """What class c = 0, 1, ... is called."""
    return f"class{c + 1}"


@dataclass(frozen=True)
class LatentParameters:
    """Names and places of the parameters of a finite mixture.

    ``class1.price`` is the parameter ``price`` of the specification in class 1, ``price`` one that all classes share,
    ``membership.2.income`` the coefficient of income in the log odds of class 2 against class 1.

    Attributes
    ----------
    specification : Specification
        Of every class.
    num_classes : int
    membership : tuple of str
        Covariates of the individual, beside a constant.
    common : tuple of str
        Parameters of the specification with one value for all classes.
    """

    specification: Specification
    num_classes: int
    membership: tuple[str, ...] = ()
    common: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count, names = self.num_classes, self.specification.names
        require_count("num_classes", count, hint="num_classes=2")
        wrong = [name for name in self.common if name not in names]
        if wrong or len(set(self.common)) < len(self.common) or (count > 1 and len(self.common) == len(names)):
            raise InvalidInputError(
                explain(
                    "common",
                    got=list(self.common),
                    expected=f"some of the parameters {list(names)} of a class, each once, but not all of them",
                    hint="common=()",
                )
            )
        if len(set(self.membership)) < len(self.membership) or CONSTANT in self.membership:
            raise InvalidInputError(
                explain(
                    "membership",
                    got=list(self.membership),
                    expected="each covariate once; the constant is there by itself",
                    hint="membership=()",
                )
            )
        if len(set(self.names)) < len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise InvalidInputError(
                explain("attributes", got=f"parameters {twice} twice", expected="each name once", hint="other names")
            )

    @cached_property
    def own(self) -> tuple[str, ...]:
        """Parameters of the specification with a value in each class."""
        return tuple(name for name in self.specification.names if name not in self.common)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all parameters, in order: those of the classes, common ones, membership."""
        odds = (CONSTANT, *self.membership)
        return (
            *(f"{label(c)}.{name}" for c in range(self.num_classes) for name in self.own),
            *self.common,
            *(f"membership.{c + 1}.{name}" for c in range(1, self.num_classes) for name in odds),
        )

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of every parameter."""
        return {name: i for i, name in enumerate(self.names)}

    def of_class(self, c: int, name: str) -> str:
        """What a parameter of the specification is called in class c."""
        return name if name in self.common else f"{label(c)}.{name}"

    @cached_property
    def positions(self) -> Tensor:
        """Where the parameters of each class are, (C, P)."""
        names = self.specification.names
        rows = [[self.index[self.of_class(c, name)] for name in names] for c in range(self.num_classes)]
        return torch.tensor(rows, dtype=torch.int64).reshape(self.num_classes, len(names))

    @cached_property
    def odds(self) -> Tensor:
        """Where the coefficients of membership are, (C - 1, D + 1): the last ones."""
        count = (self.num_classes - 1) * (len(self.membership) + 1)
        return torch.arange(len(self.names) - count, len(self.names)).reshape(
            self.num_classes - 1, len(self.membership) + 1
        )

    def _everywhere(self, names: Sequence[str]) -> tuple[str, ...]:
        """Parameters of the specification, in all classes."""
        found = [self.of_class(c, name) for c in range(self.num_classes) for name in names]
        return tuple(dict.fromkeys(found))

    @cached_property
    def scales(self) -> tuple[str, ...]:
        """Parameters bounded by 0 because they are scales."""
        return self._everywhere(self.specification.scales)

    @cached_property
    def logged_names(self) -> tuple[str, ...]:
        """Parameters that are estimated by their logarithm."""
        return self._everywhere(self.specification.logged)

    @cached_property
    def logged(self) -> Tensor:
        """Which parameters these are, (Q,)."""
        return torch.tensor([name in self.logged_names for name in self.names])

    def checked(self, what: str, values: Mapping[str, float] | None) -> dict[str, float]:
        """Natural values of some parameters.

        Parameters
        ----------
        what : str
            The argument; values of ``"hold"`` are not searched over, so that scales must have their sign.
        values : mapping of str to float, optional

        Returns
        -------
        dict of str to float

        Raises
        ------
        InvalidInputError
            If there is no such parameter, or it cannot have this value.
        """
        found = {name: float(value) for name, value in (values or {}).items()}
        unknown = [name for name in found if name not in self.index]
        if unknown:
            expected = f"parameters of {list(self.names)}"
            raise InvalidInputError(explain(what, got=unknown, expected=expected, hint=f"{what}=None"))
        for name, value in found.items():
            positive = name in self.logged_names
            least = 0.0 if positive or (what == "hold" and name in self.scales) else -math.inf
            if not math.isfinite(value) or value < least or (positive and value == 0.0):
                raise InvalidInputError(
                    explain(f"{what}[{name!r}]", got=value, expected="a finite value of this parameter", hint="1.0")
                )
        return found

    def all_of(self, what: str, values: Mapping[str, float]) -> dict[str, float]:
        """Natural values of all parameters, in order.

        Raises
        ------
        InvalidInputError
            As :meth:`checked`; if one is missing.
        """
        found = self.checked(what, values)
        missing = [name for name in self.names if name not in found]
        if missing:
            expected, hint = "every parameter of the model", "result.params"
            raise InvalidInputError(explain(what, got=f"no {missing}", expected=expected, hint=hint))
        return {name: found[name] for name in self.names}

    def natural(self, theta: Tensor) -> Tensor:
        """Estimated coordinates (Q,) to parameters."""
        return torch.where(self.logged, torch.where(self.logged, theta, 0.0).exp(), theta)

    def theta(self, natural: Tensor) -> Tensor:
        """Parameters to estimated coordinates, the inverse of :meth:`natural`."""
        return torch.where(self.logged, torch.where(self.logged, natural, 1.0).log(), natural)

    def log_membership(self, theta: Tensor, covariates: Tensor) -> Tensor:
        """log of the probability of each class, (N, C); theta (Q,), covariates (N, D)."""
        gamma = torch.cat([theta.new_zeros(1, self.odds.shape[1]), theta[self.odds]])
        return torch.log_softmax(gamma[:, 0] + covariates @ gamma[:, 1:].T, 1)

    def relabelled(self, theta: Tensor, order: Sequence[int]) -> Tensor:
        """The same mixture with class ``order[c]`` as class c, (Q,)."""
        found = theta.clone()
        found[self.positions] = theta[self.positions[list(order)]]
        if self.num_classes > 1:
            odds = torch.cat([theta.new_zeros(1, self.odds.shape[1]), theta[self.odds]])[list(order)]
            found[self.odds] = odds[1:] - odds[:1]
        return found

    def __str__(self) -> str:
        parts = [f"{self.num_classes} class{'es' * (self.num_classes > 1)} of {self.specification}"]
        parts += [f"common to all: {', '.join(self.common)}"] * bool(self.common)
        parts += [f"membership by {', '.join(self.membership)}"] * bool(self.membership)
        return "; ".join(parts)


def membership_covariates(data: ChoiceData, names: Sequence[str]) -> Tensor:
    """Covariates of membership, which must be linearly independent of each other and of a constant.

    Parameters
    ----------
    data : ChoiceData
    names : sequence of str

    Returns
    -------
    Tensor, shape (N, D)

    Raises
    ------
    InvalidInputError
        If one varies within an individual, or they are collinear.
    """
    if not names:
        return torch.zeros(data.num_individuals, 0, dtype=torch.float64)
    values = torch.stack([data.covariate(name) for name in names], 1)
    centred = values - values.mean(0)
    size = centred.norm(dim=0)
    flat = [name for name, own, all_ in zip(names, size.tolist(), values.norm(dim=0).tolist(), strict=True)
            if own <= _COLLINEAR * all_]  # fmt: skip
    if not flat:
        scaled = torch.linalg.svd(centred / size, full_matrices=False)
        if len(scaled.S) < len(names) or float(scaled.S[-1]) < _COLLINEAR:
            flat = [name for name, part in zip(names, scaled.Vh[-1].abs().tolist(), strict=True) if part > 0.01]
    if flat:
        raise InvalidInputError(
            explain(
                f"membership by {flat}",
                got="covariates that are collinear with each other or with the constant",
                expected="covariates whose coefficients the data tell apart",
                hint="leaving out one of them",
            )
        )
    return values
