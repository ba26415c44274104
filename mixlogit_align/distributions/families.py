"""Univariate distributions of strength that torch and Pyro lack, as ordinary Pyro distributions.

Shapes: parameters broadcast to ``batch_shape``; ``event_shape`` is ().
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import scipy.stats
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.numerics.draws import gamma_quantile, symmetric_triangular
from mixlogit_align.numerics.special import log_normal_interval

Size = torch.Size | list[int] | tuple[int, ...]
_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def _expanded(instance: TorchDistribution, new: TorchDistribution, batch_shape: Size, names: Sequence[str]) -> None:
    for name in names:
        setattr(new, name, getattr(instance, name).expand(torch.Size(batch_shape)))
    TorchDistribution.__init__(new, torch.Size(batch_shape), validate_args=False)
    new._validate_args = instance._validate_args


class InverseGaussian(TorchDistribution):
    """Inverse Gaussian (Wald) distribution.

    Density sqrt(c / (2 pi x^3)) exp(-c (x - m)^2 / (2 m^2 x)), x > 0; variance m^3 / c.

    Parameters
    ----------
    loc : Tensor
        Mean m > 0.
    concentration : Tensor
        Shape c > 0.
    """

    arg_constraints = {"loc": constraints.positive, "concentration": constraints.positive}
    support = constraints.positive
    has_rsample = False

    loc: Tensor
    concentration: Tensor

    def __init__(self, loc: Tensor | float, concentration: Tensor | float, *, validate_args: bool | None = None):
        self.loc, self.concentration = broadcast_all(loc, concentration)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> InverseGaussian:
        new = cast(InverseGaussian, self._get_checked_instance(InverseGaussian, _instance))
        _expanded(self, new, batch_shape, ("loc", "concentration"))
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        ratio = (value - self.loc) / self.loc
        return (
            0.5 * torch.log(self.concentration)
            - _HALF_LOG_TWO_PI
            - 1.5 * torch.log(value)
            - 0.5 * self.concentration * ratio * ratio / value
        )

    def cdf(self, value: Tensor) -> Tensor:
        root = torch.sqrt(self.concentration / value)
        lower = -root * (value / self.loc + 1.0)
        upper = torch.exp(torch.special.log_ndtr(root * (value / self.loc - 1.0)))
        return upper + torch.exp(2.0 * self.concentration / self.loc + torch.special.log_ndtr(lower))

    def icdf(self, value: Tensor) -> Tensor:
        """Quantile by scipy on the CPU, without gradient."""
        loc, c, u = torch.broadcast_tensors(self.loc.detach(), self.concentration.detach(), value.detach())
        x = scipy.stats.invgauss.ppf(u.cpu().double().numpy(), mu=(loc / c).cpu().double().numpy())
        quantile: Tensor = torch.as_tensor(x, dtype=torch.float64).to(loc.device) * c
        return quantile

    @torch.no_grad()
    def sample(self, sample_shape: Size = torch.Size()) -> Tensor:
        # Michael, Schucany, Haas (1976), with the smaller root in its stable form
        shape = self._extended_shape(torch.Size(sample_shape))
        loc, c = self.loc.expand(shape), self.concentration.expand(shape)
        y = loc * torch.randn(shape, dtype=loc.dtype, device=loc.device) ** 2 / (2.0 * c)
        small = loc / (1.0 + y + torch.sqrt(y * (2.0 + y)))
        swap = torch.rand(shape, dtype=loc.dtype, device=loc.device) * (loc + small) > loc
        return torch.where(swap, loc * loc / small, small)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.loc**3 / self.concentration


class GeneralizedGamma(TorchDistribution):
    """Generalised gamma (Stacy) distribution: scale * G^(1 / power), G ~ Gamma(concentration, 1).

    Density power x^(concentration power - 1) exp(-(x / scale)^power) / (scale^(concentration power)
    Gamma(concentration)); Weibull at concentration 1, gamma at power 1, half-normal at (1/2, sqrt 2 sd, 2).

    Parameters
    ----------
    concentration, scale, power : Tensor
        All positive.
    """

    arg_constraints = {
        "concentration": constraints.positive,
        "scale": constraints.positive,
        "power": constraints.positive,
    }
    support = constraints.positive
    has_rsample = True

    def __init__(
        self,
        concentration: Tensor | float,
        scale: Tensor | float,
        power: Tensor | float,
        *,
        validate_args: bool | None = None,
    ):
        self.concentration, self.scale, self.power = broadcast_all(concentration, scale, power)
        super().__init__(self.concentration.shape, validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> GeneralizedGamma:
        new = cast(GeneralizedGamma, self._get_checked_instance(GeneralizedGamma, _instance))
        _expanded(self, new, batch_shape, ("concentration", "scale", "power"))
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        v = self.power * (torch.log(value) - torch.log(self.scale))
        return (
            torch.log(self.power)
            - torch.log(value)
            + self.concentration * v
            - torch.exp(v)
            - torch.lgamma(self.concentration)
        )

    def rsample(self, sample_shape: Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        g = torch._standard_gamma(self.concentration.expand(shape))
        return self.scale * g.clamp_min(torch.finfo(g.dtype).tiny) ** (1.0 / self.power)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantile, once differentiable in the parameters (see ``gamma_quantile``)."""
        u, concentration = torch.broadcast_tensors(value, self.concentration)
        return self.scale * gamma_quantile(u, concentration) ** (1.0 / self.power)

    def _moment(self, order: int) -> Tensor:
        shifted = self.concentration + order / self.power
        return self.scale**order * torch.exp(torch.lgamma(shifted) - torch.lgamma(self.concentration))

    @property
    def mean(self) -> Tensor:
        return self._moment(1)

    @property
    def variance(self) -> Tensor:
        return self._moment(2) - self._moment(1) ** 2


class Triangular(TorchDistribution):
    """Symmetric triangular distribution on [low, high]: loc + scale * Tri(-1, 0, 1).

    Parameters
    ----------
    low, high : Tensor
        Ends; loc = (low + high) / 2, scale = (high - low) / 2, variance scale^2 / 6.
    """

    arg_constraints = {"low": constraints.dependent, "high": constraints.dependent}
    has_rsample = True

    def __init__(self, low: Tensor | float, high: Tensor | float, *, validate_args: bool | None = None):
        self.low, self.high = broadcast_all(low, high)
        super().__init__(self.low.shape, validate_args=validate_args)
        _check_order(self)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.interval(self.low, self.high)

    def expand(self, batch_shape: Size, _instance: Any = None) -> Triangular:
        new = cast(Triangular, self._get_checked_instance(Triangular, _instance))
        _expanded(self, new, batch_shape, ("low", "high"))
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        nearer = torch.minimum(value - self.low, self.high - value).clamp_min(0.0)
        return torch.log(4.0 * nearer) - 2.0 * torch.log(self.high - self.low)

    def icdf(self, value: Tensor) -> Tensor:
        return self.mean + 0.5 * (self.high - self.low) * symmetric_triangular(value)

    def rsample(self, sample_shape: Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.icdf(torch.rand(shape, dtype=self.low.dtype, device=self.low.device))

    @property
    def mean(self) -> Tensor:
        return 0.5 * (self.low + self.high)

    @property
    def variance(self) -> Tensor:
        return (self.high - self.low) ** 2 / 24.0


def standardised_ends(loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(low - loc) / scale, (high - loc) / scale, their distance; an infinite ``high`` makes no NaN in derivatives."""
    unbounded = torch.isinf(high)
    finite = torch.where(unbounded, low + scale, high)
    omega = (finite - loc) / scale
    return (low - loc) / scale, torch.where(unbounded, math.inf, omega), (finite - low) / scale


class TruncatedNormal(TorchDistribution):
    """Normal(loc, scale) conditioned on [low, high].

    Parameters
    ----------
    loc, scale : Tensor
        Of the normal before truncation.
    low, high : Tensor
        Ends; ``high`` may be ``inf``. For a normal truncated above only, mirror it.
    """

    arg_constraints = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "low": constraints.dependent,
        "high": constraints.dependent,
    }
    has_rsample = True

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        low: Tensor | float = 0.0,
        high: Tensor | float = math.inf,
        *,
        validate_args: bool | None = None,
    ):
        self.loc, self.scale, self.low, self.high = broadcast_all(loc, scale, low, high)
        super().__init__(self.loc.shape, validate_args=validate_args)
        _check_order(self)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.interval(self.low, self.high)

    def expand(self, batch_shape: Size, _instance: Any = None) -> TruncatedNormal:
        new = cast(TruncatedNormal, self._get_checked_instance(TruncatedNormal, _instance))
        _expanded(self, new, batch_shape, ("loc", "scale", "low", "high"))
        return new

    def _ends(self) -> tuple[Tensor, Tensor, Tensor]:
        return standardised_ends(self.loc, self.scale, self.low, self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        z = (value - self.loc) / self.scale
        c, rest = log_normal_interval(*self._ends())
        return -0.5 * (z - c) * (z + c) - rest - torch.log(self.scale) - _HALF_LOG_TWO_PI

    def icdf(self, value: Tensor) -> Tensor:
        alpha, omega, _ = self._ends()
        # beyond 40 standard deviations there is nothing to draw, and no infinity in the derivatives
        omega = torch.where(torch.isinf(omega), alpha.abs() + 40.0, omega)
        # work in the tail that keeps digits: mirror when the interval lies to the right of 0
        flip = alpha + omega > 0
        left = torch.where(flip, -omega, alpha)
        right = torch.where(flip, -alpha, omega)
        u = torch.where(flip, 1.0 - value, value)
        # ndtr itself has only absolute accuracy in the tail
        below, up_to = torch.exp(torch.special.log_ndtr(left)), torch.exp(torch.special.log_ndtr(right))
        p = below + u * (up_to - below)
        z = torch.special.ndtri(p.clamp_min(torch.finfo(p.dtype).tiny))
        z = torch.maximum(torch.minimum(torch.where(flip, -z, z), omega), alpha)
        return self.loc + self.scale * z

    def rsample(self, sample_shape: Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.icdf(u.clamp_min(torch.finfo(u.dtype).tiny))

    def _hazards(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        alpha, omega, width = self._ends()
        c, rest = log_normal_interval(alpha, omega, width)
        log_mass = rest - 0.5 * c * c

        def ratio(z: Tensor) -> Tensor:
            finite = torch.isfinite(z)
            safe = torch.where(finite, z, torch.zeros_like(z))
            return torch.where(finite, torch.exp(-0.5 * safe * safe - _HALF_LOG_TWO_PI - log_mass), 0.0)

        return alpha, torch.where(torch.isfinite(omega), omega, 0.0), ratio(alpha), ratio(omega)

    @property
    def mean(self) -> Tensor:
        _, _, at_low, at_high = self._hazards()
        return self.loc + self.scale * (at_low - at_high)

    @property
    def variance(self) -> Tensor:
        alpha, omega, at_low, at_high = self._hazards()
        shift = at_low - at_high
        return self.scale**2 * (1.0 + alpha * at_low - omega * at_high - shift * shift)


class FiniteMixture(TorchDistribution):
    """Finite mixture of any univariate distributions, point masses included: latent classes of strength.

    A zero-inflated family is ``FiniteMixture(probs, [Delta(0.), family])``.

    Parameters
    ----------
    probs : Tensor
        (*batch, C) class shares on the simplex.
    components : sequence of Distribution
        C univariate distributions, each with a batch shape that broadcasts to (*batch).
    """

    arg_constraints = {"probs": constraints.simplex}
    support = constraints.real
    has_rsample = False

    def __init__(
        self,
        probs: Tensor,
        components: Sequence[torch.distributions.Distribution],
        *,
        validate_args: bool | None = None,
    ):
        components = tuple(components)
        probs = torch.as_tensor(probs)
        if not components or probs.dim() < 1 or probs.shape[-1] != len(components):
            raise InvalidInputError(
                explain(
                    "FiniteMixture",
                    got=f"probs of shape {tuple(probs.shape)} and {len(components)} components",
                    expected="probs (..., C) with C components, C >= 1",
                    hint="one share a component",
                )
            )
        for i, component in enumerate(components):
            if component.event_shape:
                raise InvalidInputError(
                    explain(
                        f"components[{i}]",
                        got=f"event_shape {tuple(component.event_shape)}",
                        expected="a univariate distribution",
                        hint="a distribution with event_shape ()",
                    )
                )
        batch_shape = torch.broadcast_shapes(probs.shape[:-1], *(c.batch_shape for c in components))
        self.probs = probs.expand(batch_shape + probs.shape[-1:])
        self.components = components
        super().__init__(batch_shape, validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> FiniteMixture:
        new = cast(FiniteMixture, self._get_checked_instance(FiniteMixture, _instance))
        new.probs = self.probs.expand(torch.Size(batch_shape) + self.probs.shape[-1:])
        new.components = self.components
        TorchDistribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density; with point masses the density is with respect to counting measure at their atoms."""
        values = torch.broadcast_tensors(*(c.log_prob(value) for c in self.components))
        return torch.logsumexp(torch.log(self.probs) + torch.stack(values, -1), -1)

    @torch.no_grad()
    def sample(self, sample_shape: Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        label = torch.distributions.Categorical(self.probs).sample(torch.Size(sample_shape))
        draws = [c.expand(self.batch_shape).sample(torch.Size(sample_shape)) for c in self.components]
        stacked = torch.stack([d.expand(shape) for d in draws], -1)
        return torch.gather(stacked, -1, label.unsqueeze(-1)).squeeze(-1)

    def _stack(self, name: str) -> Tensor:
        return torch.stack([getattr(c, name).expand(self.batch_shape) for c in self.components], -1)

    @property
    def mean(self) -> Tensor:
        return (self.probs * self._stack("mean")).sum(-1)

    @property
    def variance(self) -> Tensor:
        means = self._stack("mean")
        spread = means - self.mean.unsqueeze(-1)
        return (self.probs * (self._stack("variance") + spread * spread)).sum(-1)


def _check_order(distribution: Triangular | TruncatedNormal) -> None:
    if not distribution._validate_args:
        return
    bad = torch.nonzero(~(distribution.low < distribution.high))
    if len(bad):
        i = tuple(bad[0].tolist())
        raise InvalidInputError(
            explain(
                f"{type(distribution).__name__} at index {i}",
                got=f"low {distribution.low[i].item()}, high {distribution.high[i].item()}",
                expected="low < high",
                hint="exchanging them",
            )
        )


__all__ = ["FiniteMixture", "GeneralizedGamma", "InverseGaussian", "Triangular", "TruncatedNormal"]
