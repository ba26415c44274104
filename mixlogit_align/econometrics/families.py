"""Mixing families as an estimator sees them: a centre and a spread, standing for natural parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution

from mixlogit_align.distributions import Triangular
from mixlogit_align.errors import InvalidInputError, explain


@dataclass(frozen=True)
class Family:
    """One mixing family in the coordinates of its estimation, ``theta = (centre, log spread)``.

    The spread is what goes to 0 when there is no heterogeneity; its logarithm makes any theta valid.

    Attributes
    ----------
    names : tuple of two str
        The natural parameters.
    positive : bool
        Whether the strength is positive, so that a sign must be chosen.
    natural : callable
        theta (2,) to the natural parameters (2,).
    theta : callable
        Its inverse.
    mixing : callable
        theta (2,) to the distribution.
    strength : callable
        (centre, deviation) to a strength: the strength's distribution for a small spread is that of
        ``strength(centre, spread * z)`` to second order in the spread, with E z = 0.
    deviate_variance : float
        Var z.
    centre : callable
        A fixed strength to the centre that gives it.
    kind : type
        The Pyro distribution that specifies this family and a start.
    read : callable
        Such a distribution to natural parameters.
    """

    names: tuple[str, str]
    positive: bool
    natural: Callable[[torch.Tensor], torch.Tensor]
    theta: Callable[[torch.Tensor], torch.Tensor]
    mixing: Callable[[torch.Tensor], TorchDistribution]
    strength: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    deviate_variance: float
    centre: Callable[[torch.Tensor], torch.Tensor]
    kind: type[TorchDistribution]
    read: Callable[[TorchDistribution], tuple[torch.Tensor, torch.Tensor]]


def _loc_scale(
    kind: type[TorchDistribution],
    mixing: Callable[[torch.Tensor, torch.Tensor], TorchDistribution],
    variance: float,
    read: Callable[[TorchDistribution], tuple[torch.Tensor, torch.Tensor]],
    *,
    log: bool = False,
) -> Family:
    """Strength ``loc + scale * z``, or its exponential."""
    return Family(
        names=("loc", "scale"),
        positive=log,
        natural=lambda theta: torch.stack([theta[0], theta[1].exp()]),
        theta=lambda natural: torch.stack([natural[0], natural[1].log()]),
        mixing=lambda theta: mixing(theta[0], theta[1].exp()),
        strength=(lambda c, d: torch.exp(c + d)) if log else (lambda c, d: c + d),
        deviate_variance=variance,
        centre=torch.log if log else (lambda strength: strength),
        kind=kind,
        read=read,
    )


def _between(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (low + high) / 2, (high - low) / 2


FAMILIES: dict[str, Family] = {
    "normal": _loc_scale(
        dist.Normal,
        lambda loc, scale: dist.Normal(loc, scale, validate_args=False),
        1.0,
        lambda d: (d.loc, d.scale),
    ),
    "lognormal": _loc_scale(
        dist.LogNormal,
        lambda loc, scale: dist.LogNormal(loc, scale, validate_args=False),
        1.0,
        lambda d: (d.loc, d.scale),
        log=True,
    ),
    "uniform": _loc_scale(
        dist.Uniform,
        lambda loc, scale: dist.Uniform(loc - scale, loc + scale, validate_args=False),
        1 / 3,
        lambda d: _between(d.low, d.high),
    ),
    "triangular": _loc_scale(
        Triangular,
        lambda loc, scale: Triangular(loc - scale, loc + scale, validate_args=False),
        1 / 6,
        lambda d: _between(d.low, d.high),
    ),
    # centre: log of the mean; spread: coefficient of variation
    "gamma": Family(
        names=("concentration", "rate"),
        positive=True,
        natural=lambda theta: torch.stack([(-2 * theta[1]).exp(), (-2 * theta[1] - theta[0]).exp()]),
        theta=lambda natural: torch.stack([(natural[0] / natural[1]).log(), -natural[0].log() / 2]),
        mixing=lambda theta: dist.Gamma((-2 * theta[1]).exp(), (-2 * theta[1] - theta[0]).exp(), validate_args=False),
        strength=lambda c, d: torch.exp(c) * (1 + d),
        deviate_variance=1.0,
        centre=torch.log,
        kind=dist.Gamma,
        read=lambda d: (d.concentration, d.rate),
    ),
}


# Families and their natural parameters: loc + scale * v, v the standard variable (transformed where the name says so).
PARAMETERS = {
    "normal": ("loc", "scale"),
    "lognormal": ("loc", "scale"),
    "uniform": ("loc", "scale"),
    "triangular": ("loc", "scale"),
    "truncated_normal": ("loc", "scale"),
    "censored_normal": ("loc", "scale"),
    "johnson_sb": ("loc", "scale"),
    "gamma": ("concentration", "rate"),
}
_LIMITS = {"truncated_normal": (0.0, math.inf), "johnson_sb": (0.0, 1.0)}
_POSITIVE = ("lognormal", "gamma", "censored_normal")


@dataclass(frozen=True)
class Random:
    """How one coefficient varies over individuals.

    Attributes
    ----------
    family : str
        normal: loc + scale z; lognormal: exp(loc + scale z); uniform: loc + scale U(-1, 1); triangular:
        loc + scale Tri(-1, 0, 1); truncated_normal: N(loc, scale) given that it lies within ``bounds``;
        censored_normal: max(0, loc + scale z); johnson_sb: low + (high - low) sigma(loc + scale z); gamma:
        concentration and rate.
    sign : int
        -1 for a coefficient that is minus a variable of a family that is not negative.
    start : tuple of two float, optional
        Natural parameters at which estimation starts.
    mean_covariates : sequence of str
        Attributes of the individual on which loc depends linearly (of exp(loc + ...) for a lognormal).
    bounds : tuple of two float, optional
        Of truncated_normal (0, inf) and johnson_sb (0, 1).

    Raises
    ------
    InvalidInputError
        If the family is unknown, or another argument does not fit it.
    """

    family: str
    sign: int = 1
    start: tuple[float, float] | None = None
    mean_covariates: Sequence[str] = ()
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.family not in PARAMETERS:
            raise InvalidInputError(
                explain(
                    "family",
                    got=repr(self.family),
                    expected=f"one of {list(PARAMETERS)}",
                    hint="a family of this list, with a leading '-' for minus a positive one",
                )
            )
        given = self.mean_covariates
        object.__setattr__(self, "mean_covariates", (given,) if isinstance(given, str) else tuple(given))
        if self.mean_covariates and "loc" not in PARAMETERS[self.family]:
            raise InvalidInputError(
                explain(
                    "mean_covariates",
                    got=f"{list(self.mean_covariates)} for {self.family}",
                    expected="a family with a loc",
                    hint="'lognormal'",
                )
            )
        if self.bounds is not None:
            low, high = self.bounds
            if self.family not in _LIMITS or not low < high or not math.isfinite(low if low != -math.inf else high):
                raise InvalidInputError(
                    explain(
                        "bounds",
                        got=f"{self.bounds} for {self.family}",
                        expected=f"low < high, for one of {list(_LIMITS)}",
                        hint="bounds=None",
                    )
                )
            if self.family == "johnson_sb" and not math.isfinite(high - low):
                raise InvalidInputError(
                    explain("bounds", got=self.bounds, expected="two finite numbers", hint="(0.0, 1.0)")
                )
        if self.sign not in (1, -1) or (self.sign == -1 and not self.positive):
            raise InvalidInputError(
                explain(
                    "sign",
                    got=f"{self.sign} for {self.family}",
                    expected="1, or -1 for a family that is not negative",
                    hint="sign=1: the other families take both signs by themselves",
                )
            )

    @property
    def parameters(self) -> tuple[str, str]:
        """Names of the natural parameters."""
        return PARAMETERS[self.family]

    @property
    def limits(self) -> tuple[float, float]:
        """The bounds in force."""
        return self.bounds or _LIMITS[self.family]

    @property
    def positive(self) -> bool:
        """Whether the family is never negative before the sign."""
        return self.family in _POSITIVE or (self.family in _LIMITS and self.limits[0] >= 0.0)

    def transform(self, latent: torch.Tensor, bend: torch.Tensor | None = None) -> torch.Tensor:
        """The coefficient before its sign from loc + scale * v.

        ``bend``, for censored_normal: the width over which max(0, .) bends, ``E max(0, latent + bend z)``.
        """
        if self.family == "lognormal":
            return latent.exp()
        if self.family == "censored_normal":
            if bend is None:
                return latent.clamp_min(0.0)
            z = latent / bend
            bent: torch.Tensor = latent * torch.special.ndtr(z) + bend * torch.exp(-0.5 * z * z) / math.sqrt(
                2 * math.pi
            )
            return bent
        if self.family == "johnson_sb":
            low, high = self.limits
            return low + (high - low) * torch.sigmoid(latent)
        return latent

    @property
    def is_scalar_strength(self) -> bool:
        """Whether the exact distributions know the family by itself."""
        return self.family in FAMILIES and not self.mean_covariates

    @classmethod
    def of(cls, spec: str | Random | TorchDistribution) -> Random:
        """Read a specification.

        Parameters
        ----------
        spec : str, Random or pyro.distributions.TorchDistribution
            ``"normal"``; ``"-lognormal"``, short for ``Random("lognormal", sign=-1)``; or a scalar Pyro
            distribution of a family, whose parameters are the start.

        Returns
        -------
        Random

        Raises
        ------
        InvalidInputError
            If it is none of these.
        """
        if isinstance(spec, Random):
            return spec
        if isinstance(spec, str):
            return cls(spec.removeprefix("-"), sign=-1 if spec.startswith("-") else 1)
        for name, family in FAMILIES.items():
            if isinstance(spec, family.kind) and spec.shape() == torch.Size():
                first, second = family.read(spec)
                return cls(name, start=(float(first), float(second)))
        kinds = [family.kind.__name__ for family in FAMILIES.values()]
        raise InvalidInputError(
            explain(
                "random",
                got=repr(spec),
                expected=f"a name of {list(PARAMETERS)}, a Random, or a scalar distribution of {kinds}",
                hint="Random('normal')",
            )
        )

    def __str__(self) -> str:
        sign = "-" if self.sign < 0 else ""
        inside = "" if self.bounds is None else f" in {self.bounds[0]:g}..{self.bounds[1]:g}"
        by = f" by {', '.join(self.mean_covariates)}" if self.mean_covariates else ""
        return f"{sign}{self.family}{inside}{by}"
