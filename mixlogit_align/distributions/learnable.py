"""A mixing distribution whose parameters are learned beside a policy, and constructors from mean and cv."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pyro.distributions as dist
import scipy.optimize
import scipy.special
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mixlogit_align.distributions.families import InverseGaussian
from mixlogit_align.errors import InvalidInputError, explain

Transform = Literal["log", "softplus", "raw"]


def _weibull_shape(cv: float) -> float:
    def gap(log_shape: float) -> float:
        k = math.exp(log_shape)
        log_ratio = scipy.special.gammaln(1 + 2 / k) - 2 * scipy.special.gammaln(1 + 1 / k)
        return float(log_ratio - math.log1p(cv * cv))

    if not 2e-4 <= cv <= 700.0:
        raise InvalidInputError(
            explain("cv of a weibull", got=cv, expected="from 2e-4 to 700", hint="cv=0 for one strength, or gamma")
        )
    return math.exp(scipy.optimize.brentq(gap, math.log(0.05), math.log(1e4), xtol=1e-13))


def _weibull_from(mean: Tensor, cv: Tensor) -> dict[str, Tensor]:
    k = _weibull_shape(float(cv))
    return {"scale": mean / math.gamma(1 + 1 / k), "concentration": torch.full_like(cv, k)}


@dataclass(frozen=True)
class _Kind:
    """A family that can be learned: its distribution, which parameters are positive, its mean/cv solution."""

    distribution: Callable[..., Any]
    positive: tuple[str, ...]
    from_mean_cv: Callable[[Tensor, Tensor], dict[str, Tensor]]
    free: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.free, *self.positive)


_KINDS: dict[str, _Kind] = {
    "lognormal": _Kind(
        dist.LogNormal,
        ("scale",),
        lambda m, cv: {
            "loc": torch.log(m) - 0.5 * torch.log1p(cv * cv),
            "scale": torch.sqrt(torch.log1p(cv * cv)),
        },
        free=("loc",),
    ),
    "gamma": _Kind(dist.Gamma, ("concentration", "rate"), lambda m, cv: {"concentration": cv**-2, "rate": cv**-2 / m}),
    "inverse_gaussian": _Kind(
        InverseGaussian, ("loc", "concentration"), lambda m, cv: {"loc": m, "concentration": m / (cv * cv)}
    ),
    "weibull": _Kind(dist.Weibull, ("scale", "concentration"), _weibull_from),
    "normal": _Kind(dist.Normal, ("scale",), lambda m, cv: {"loc": m, "scale": abs(m) * cv}, free=("loc",)),
    "point": _Kind(dist.Delta, ("v",), lambda m, cv: {"v": m}),
}


def mixing_of_mean_cv(family: str, mean: Tensor, cv: Tensor) -> Any:
    """The distribution with this mean and coefficient of variation, differentiable in both.

    Parameters
    ----------
    family : {"lognormal", "gamma", "inverse_gaussian", "normal", "point"}
        A weibull's shape is found by a search that has no derivative.
    mean, cv : Tensor
        0-d float64, above 0; a point has no use for ``cv``.
    """
    assert family != "weibull", "its shape has no derivative by the cv"
    kind = _KINDS[family]
    return kind.distribution(**kind.from_mean_cv(mean, cv), validate_args=False)


class LearnableMixing(nn.Module):
    """A mixing distribution with learnable parameters: unconstrained float32 tensors, a Pyro distribution when called.

    Use the constructors :meth:`lognormal`, :meth:`gamma`, :meth:`point` and :meth:`from_mean_cv`.

    Parameters
    ----------
    family : {"lognormal", "gamma", "inverse_gaussian", "weibull", "normal", "point"}
        Family of strength.
    transform : {"log", "softplus", "raw"}
        How a positive parameter p depends on its unconstrained tensor u: exp(u), log(1 + exp(u)) (the paper's scale),
        or u itself, which an optimiser may push out of its domain: calling the module then raises InvalidInputError.
        Under the same learning rate they learn at different speeds: a step du moves p by p du, (1 - exp(-p)) du, du.
    **values : float
        Initial parameters in natural units; ``v`` of a point.
    """

    def __init__(self, family: str, transform: Transform = "log", **values: float) -> None:
        super().__init__()
        if family not in _KINDS:
            raise InvalidInputError(
                explain("family", got=repr(family), expected=f"one of {sorted(_KINDS)}", hint="'lognormal'")
            )
        if transform not in get_args(Transform):
            raise InvalidInputError(
                explain("transform", got=repr(transform), expected=f"one of {get_args(Transform)}", hint="'log'")
            )
        kind = _KINDS[family]
        if set(values) != set(kind.names):
            raise InvalidInputError(
                explain(
                    f"parameters of {family}",
                    got=sorted(values),
                    expected=f"{sorted(kind.names)}",
                    hint="naming each",
                )
            )
        self.family = family
        self.transform = transform
        for name in kind.names:
            value = float(values[name])
            if not math.isfinite(value) or (name in kind.positive and value <= 0):
                raise InvalidInputError(
                    explain(
                        f"{family} {name}",
                        got=value,
                        expected="a positive number" if name in kind.positive else "a finite number",
                        hint="point(...) for a strength that does not vary",
                    )
                )
            self.register_parameter(name, nn.Parameter(self._inverse(name, value)))

    @classmethod
    def lognormal(cls, loc: float = -2.3, scale: float = 0.6, transform: Transform = "log") -> LearnableMixing:
        """LogNormal(loc, scale of the log); the defaults are the paper's start, with mean 0.120."""
        return cls("lognormal", transform, loc=loc, scale=scale)

    @classmethod
    def gamma(cls, concentration: float = 2.0, rate: float = 16.7, transform: Transform = "log") -> LearnableMixing:
        """Gamma(concentration, rate); the defaults are the paper's start, with mean 0.120."""
        return cls("gamma", transform, concentration=concentration, rate=rate)

    @classmethod
    def point(cls, value: float = 0.1, transform: Transform = "log") -> LearnableMixing:
        """One strength for all: DPO with beta = value, learned unless frozen."""
        return cls("point", transform, v=value)

    @classmethod
    def from_mean_cv(cls, family: str, mean: float, cv: float, transform: Transform = "log") -> LearnableMixing:
        """Build a family with given mean and coefficient of variation (sd / mean); cv = 0 gives the point.

        Parameters
        ----------
        family : str
            As in the class.
        mean : float
            Positive, save for ``"normal"``.
        cv : float
            Nonnegative; for weibull at most about 1e4 in shape terms (0.0002 <= cv <= 700).
        transform : str
            As in the class.
        """
        if not (cv >= 0 and math.isfinite(cv)) or not math.isfinite(mean) or (family != "normal" and mean <= 0):
            raise InvalidInputError(
                explain("mean, cv", got=(mean, cv), expected="mean > 0 and cv >= 0", hint="mean=0.1, cv=0.7")
            )
        if family not in _KINDS:
            return cls(family, transform)
        if cv == 0 or family == "point":
            if cv != 0:
                raise InvalidInputError(explain("cv of a point", got=cv, expected="0", hint="another family, or cv=0"))
            return cls.point(mean, transform)
        values = _KINDS[family].from_mean_cv(*torch.tensor([mean, cv], dtype=torch.float64))
        return cls(family, transform, **{name: float(value) for name, value in values.items()})

    def _inverse(self, name: str, value: float) -> Tensor:
        if name in _KINDS[self.family].positive:
            if self.transform == "log":
                value = math.log(value)
            elif self.transform == "softplus":
                value = value + math.log(-math.expm1(-value))
        return torch.tensor(value, dtype=torch.float32)

    def values(self) -> dict[str, Tensor]:
        """Parameters in natural units, float32, with gradient."""
        kind = _KINDS[self.family]
        out = {}
        for name in kind.names:
            raw: Tensor = getattr(self, name)
            if name in kind.positive and self.transform == "log":
                raw = torch.exp(raw)
            elif name in kind.positive and self.transform == "softplus":
                raw = softplus(raw)
            out[name] = raw
        return out

    def forward(self) -> Any:
        """Return the distribution at the present parameters.

        Raises
        ------
        InvalidInputError
            A parameter is not finite, or a positive one no longer is (possible with ``transform="raw"``).
        """
        values = self.values()
        for name, value in values.items():
            number = float(value.detach())
            if not math.isfinite(number) or (name in _KINDS[self.family].positive and number <= 0):
                raise InvalidInputError(
                    explain(
                        f"learned {self.family} {name}",
                        got=number,
                        expected="a finite, positive number",
                        hint="transform='log', or a smaller learning rate of the strength",
                    )
                )
        return _KINDS[self.family].distribution(**values, validate_args=False)

    def summary(self) -> dict[str, Any]:
        """Return family, mean, sd and parameters in natural units, as plain numbers."""
        with torch.no_grad():
            values = {name: value.detach().double() for name, value in self.values().items()}
            d = _KINDS[self.family].distribution(**values, validate_args=False)
            mean, sd = float(d.mean), math.sqrt(float(d.variance))
        return {
            "family": self.family,
            "mean": mean,
            "sd": sd,
            "parameters": {name: float(value) for name, value in values.items()},
        }

    def extra_repr(self) -> str:
        parameters = ", ".join(f"{k}={v:.4g}" for k, v in self.summary()["parameters"].items())
        return f"{self.family}, {parameters}, transform={self.transform!r}"
