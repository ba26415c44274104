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
from mixlogit_align.numerics.special import gauss_legendre, log_normal_interval

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


def truncated_normal_nodes(
    loc: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gauss-Legendre nodes of a truncated normal where it has its mass, to 1e-16 of it.

    Returns
    -------
    tuple of Tensor
        Nodes and shares (64, *batch), which carry the gradients by the parameters; the mode, without gradient, and the
        width of the interval of the nodes, (*batch).
    """
    alpha, omega, _ = standardised_ends(loc, scale, low, high)
    mode = alpha.clamp_min(0.0).minimum(omega)
    reach = torch.sqrt(mode * mode + 76.0).detach()
    left = torch.where(alpha > -reach, low, loc - reach * scale)
    right = torch.where(omega < reach, high, loc + reach * scale)
    t, log_weight = gauss_legendre(64, loc)
    shape = (64,) + (1,) * left.dim()
    fraction = t.reshape(shape) * (right - left)
    # distances from the mode, so that nothing is lost where it is far from loc
    offset = torch.where(mode > 0, fraction, torch.where(omega < 0, fraction - (right - left), left - loc + fraction))
    z = offset / scale
    share = torch.softmax(log_weight.reshape(shape) - 0.5 * z * z - mode * z, 0)
    return left + fraction, share, (loc + mode * scale).detach(), right - left


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
        # work in the left tail, in logarithms: mirror when the interval lies to the right of 0
        flip = alpha + omega > 0
        left, right = torch.where(flip, -omega, alpha), torch.where(flip, -alpha, omega)
        u = torch.where(flip, 1.0 - value, value)
        u = u.clamp(torch.finfo(u.dtype).tiny, 1.0 - torch.finfo(u.dtype).eps / 2)
        # not logaddexp, whose second derivative is NaN where one term vanishes
        ends = (torch.special.log_ndtr(left) + torch.log1p(-u), torch.special.log_ndtr(right) + torch.log(u))
        log_p = torch.logsumexp(torch.stack(ends), 0)
        with torch.no_grad():
            size = torch.sqrt(-2.0 * log_p.clamp_max(-600.0))
            deep = -torch.sqrt(size * size - 2.0 * torch.log(size) - 2.0 * _HALF_LOG_TWO_PI)
            z = torch.where(log_p > -600.0, torch.special.ndtri(log_p.clamp_min(-600.0).exp()), deep)
        for _ in range(3):  # Newton's steps on log Phi(z) = log p, which also bring the derivatives
            log_cdf = torch.special.log_ndtr(z)
            z = z - (log_cdf - log_p) * torch.exp(log_cdf + 0.5 * z * z + _HALF_LOG_TWO_PI)
        z = torch.maximum(torch.minimum(torch.where(flip, -z, z), omega), alpha)
        return self.loc + self.scale * z

    def rsample(self, sample_shape: Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.icdf(u.clamp_min(torch.finfo(u.dtype).tiny))

    @property
    def mean(self) -> Tensor:
        strength, share, about, _ = truncated_normal_nodes(self.loc, self.scale, self.low, self.high)
        return about + (share * (strength - about)).sum(0)

    @property
    def variance(self) -> Tensor:
        strength, share, _, _ = truncated_normal_nodes(self.loc, self.scale, self.low, self.high)
        return (share * (strength - self.mean) ** 2).sum(0)


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
    bad = torch.nonzero(~(distribution.low < distribution.high) | torch.isinf(distribution.low))
    if len(bad):
        i = tuple(bad[0].tolist())
        raise InvalidInputError(
            explain(
                f"{type(distribution).__name__} at index {i}",
                got=f"low {distribution.low[i].item()}, high {distribution.high[i].item()}",
                expected="low < high, low finite",
                hint="exchanging them; for a normal truncated above only, its mirror image",
            )
        )


__all__ = ["FiniteMixture", "GeneralizedGamma", "InverseGaussian", "Triangular", "TruncatedNormal"]
