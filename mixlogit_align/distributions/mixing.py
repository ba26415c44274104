"""What each mixing family offers to an integration rule: Laplace transform, quadrature axis, base-draw transform.

Shapes: B the batch shape of the mixing distribution, n nodes or draws leading, (n, *batch). All float64.

A family answers four questions:

* ``log_laplace(s)``: log E[exp(-s * strength)], s >= 0, where the strength is nonnegative and the transform is known;
* ``pieces()``: the intervals, each on one side of 0, on which its density is smooth;
* ``place(strength)``: the nodes of an integral, re-expressed so that derivatives with respect to the parameters are
  taken along paths (scale families) or through the density, whichever keeps digits;
* ``from_base(z)``: its strength as a function of a standard variable z.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mixlogit_align.distributions.families import (
    FiniteMixture,
    GeneralizedGamma,
    InverseGaussian,
    Triangular,
    TruncatedNormal,
    standardised_ends,
    truncated_normal_nodes,
)
from mixlogit_align.errors import IntegrationError, InvalidInputError, explain
from mixlogit_align.numerics import draws, special

Base = Literal["normal", "uniform", "triangular", "probability"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_NARROWEST = 1e-7
_MARGIN = 4.0  # e-folds of strength beyond a bend after which the tail is simple to 1e-16


def _double(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(torch.float64)


class Family:
    """A mixing distribution seen by the integration rules; subclasses hold float64 parameters."""

    base: ClassVar[Base] = "probability"

    def __init__(self, mixing: Any):
        self.mixing = mixing

    @property
    def nonnegative(self) -> bool:
        """Whether strength >= 0 almost surely, in every row."""
        return False

    @property
    def has_laplace(self) -> bool:
        """Whether ``log_laplace`` is known, in every row."""
        return False

    @property
    def has_density(self) -> bool:
        """Whether ``pieces`` and ``place`` serve a quadrature rule."""
        return True

    def log_laplace(self, s: Tensor) -> Tensor:
        """log E[exp(-s * strength)] for s >= 0."""
        raise NotImplementedError

    def log_expected_sigmoid(self, s: Tensor) -> Tensor:
        """log E[sigma(-s * strength)] for s >= 0, in closed form."""
        return special.log_expected_sigmoid(self.log_laplace, s)

    def pieces(self) -> list[tuple[Tensor, Tensor]]:
        """Intervals (near, far), ``near`` the end closer to 0; ``far`` may be infinite."""
        raise NotImplementedError

    def center(self) -> Tensor:
        """Return a typical strength, where a search for the mass starts."""
        raise NotImplementedError

    def spread(self) -> Tensor | None:
        """Distance over which the density varies everywhere, as a normal's scale; None where it varies by ratios."""
        return None

    def bends(self) -> tuple[Tensor, Tensor]:
        """Where log |strength - near| leaves its simple tails: the density is a power of the strength outside.

        A quadrature rule may lengthen its steps to the left of the first and to the right of the second.
        """
        center = self.center()
        return torch.full_like(center, math.inf), torch.full_like(center, -math.inf)

    def log_density(self, strength: Tensor, log_strength: Tensor) -> Tensor:
        """Log density with respect to strength; ``log_strength`` is log |strength|, exact where exp underflows."""
        raise NotImplementedError

    def for_nodes(self) -> Family:
        """Return the family as a quadrature rule sees it: not narrower than nodes can tell."""
        return self

    def place(self, strength: Tensor, log_strength: Tensor) -> tuple[Tensor, Tensor] | None:
        """Re-attach nodes to the parameters along paths.

        Returns (strength, log-weight of value 0 carrying the rest of the derivative), or None where the derivative
        is to be taken through ``log_density`` alone.
        """
        return None

    def from_base(self, z: Tensor) -> Tensor:
        """Strength from the standard variable z of this family (see ``base``)."""
        raise NotImplementedError


def _floored(scale: Tensor, size: Tensor | float) -> Tensor:
    """A scale of at least 1e-7 of ``size``: below, nodes lose digits, and what a scale adds to log P is under 1e-14."""
    return torch.maximum(scale, torch.as_tensor(_NARROWEST * size, dtype=torch.float64, device=scale.device))


def _score(log_density: Tensor) -> Tensor:
    """Return a zero that differentiates like ``log_density``."""
    return log_density - log_density.detach()


class PointFamily(Family):
    """A point mass: every likelihood is exact."""

    def __init__(self, mixing: Any):
        super().__init__(mixing)
        self.value = _double(mixing.v)

    @property
    def has_density(self) -> bool:
        return False

    def from_base(self, z: Tensor) -> Tensor:
        return self.value + torch.zeros_like(z)


class LogNormalFamily(Family):
    """exp(loc + scale * z), z standard normal; nodes move as z."""

    base = "normal"
    nonnegative = True

    def __init__(self, mixing: Any):
        super().__init__(mixing)
        self.loc, self.scale = _double(mixing.loc), _floored(_double(mixing.scale), 1.0)

    def pieces(self) -> list[tuple[Tensor, Tensor]]:
        return [(torch.zeros_like(self.loc), torch.full_like(self.loc, math.inf))]

    def center(self) -> Tensor:
        return torch.exp(self.loc)

    def log_density(self, strength: Tensor, log_strength: Tensor) -> Tensor:
        z = (log_strength - self.loc) / self.scale
        return -0.5 * z * z - _HALF_LOG_TWO_PI - torch.log(self.scale) - log_strength

    def place(self, strength: Tensor, log_strength: Tensor) -> tuple[Tensor, Tensor]:
        z = ((log_strength - self.loc) / self.scale).detach()
        return self.from_base(z), torch.zeros_like(z)

    def from_base(self, z: Tensor) -> Tensor:
        return torch.exp(self.loc + self.scale * z)


def _normal_bends(distance: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    # in the tail, ``distance`` away, a normal density falls like exp(-distance x / scale^2)
    left = torch.log(scale) - torch.log((distance / scale).clamp_min(1.0))
    return left - _MARGIN, torch.log(torch.maximum(distance, scale)) + _MARGIN


class SignedFamily(Family):
    """loc and scale on the whole line, smooth on each side of 0, where the poles of the likelihood gather.

    Gumbel and logistic are seen through their own ``log_prob`` and ``icdf``.
    """

    def __init__(self, mixing: Any):
        super().__init__(mixing)
        self.loc = _double(mixing.loc)
        self.scale = _floored(_double(mixing.scale), self.loc.detach().abs())

    def pieces(self) -> list[tuple[Tensor, Tensor]]:
        zero = torch.zeros_like(self.loc)
        return [(zero, zero + math.inf), (zero, zero - math.inf)]

    def center(self) -> Tensor:
        return self.loc

    def spread(self) -> Tensor:
        return 1.5 * self.scale

    def bends(self) -> tuple[Tensor, Tensor]:
        return _normal_bends(self.loc.abs(), self.scale)

    def log_density(self, strength: Tensor, log_strength: Tensor) -> Tensor:
        density: Tensor = type(self.mixing)(self.loc, self.scale, validate_args=False).log_prob(strength)
        return density

    def from_base(self, z: Tensor) -> Tensor:
        return _double(self.mixing.icdf(z))


class NormalFamily(SignedFamily):
    """loc + scale * z, z standard normal; nodes move as z."""

    base = "normal"

    def log_density(self, strength: Tensor, log_strength: Tensor) -> Tensor:
        z = (strength - self.loc) / self.scale
        return -0.5 * z * z - _HALF_LOG_TWO_PI - torch.log(self.scale)

    def place(self, strength: Tensor, log_strength: Tensor) -> tuple[Tensor, Tensor]:
        z = ((strength - self.loc) / self.scale).detach()
        return self.from_base(z), torch.zeros_like(z)

    def from_base(self, z: Tensor) -> Tensor:
        return self.loc + self.scale * z


class GammaFamily(Family):
    """scale * G^(1 / power), G ~ Gamma(concentration, 1): gamma, exponential, Weibull, half-normal, generalised gamma.

    Power -1 is the inverse gamma.

    Nodes move with the parameters as tau = (log G - log k) / sd(k), sd(k)^2 = (k + 1) / k^2, which is nearly free of
    k for large k (normal) and for small (exponential on the left): little of the derivative is left to the density.
    """

    nonnegative = True

    def __init__(self, mixing: Any, concentration: Tensor, scale: Tensor, power: Tensor | None):
        super().__init__(mixing)
        self.concentration, self.scale, self.power = concentration, scale, power

    def for_nodes(self) -> Family:
        # sd / mean at least 1e-7, as for the other families, at the same centre
        power = None if self.power is None else self.power.clamp_max(1.0 / _NARROWEST)
        concentration = self.concentration.clamp_max(_NARROWEST**-2)
        scale = self.scale * torch.exp(self._raise(torch.log(self.concentration / concentration)))
        return GammaFamily(self.mixing, concentration, scale, power)

    @property
    def has_laplace(self) -> bool:
        return self.power is None

    def log_expected_sigmoid(self, s: Tensor) -> Tensor:
        return special.log_expected_sigmoid_gamma(s, self.concentration, self.scale)

    def pieces(self) -> list[tuple[Tensor, Tensor]]:
        return [(torch.zeros_like(self.scale), torch.full_like(self.scale, math.inf))]

    def _raise(self, g: Tensor) -> Tensor:
        return g if self.power is None else g / self.power

    def _log_unit(self, log_strength: Tensor) -> Tensor:
        v = log_strength - torch.log(self.scale)
        return v if self.power is None else v * self.power

    def center(self) -> Tensor:
        return self.scale * torch.exp(self._raise(torch.log(self.concentration)))

    def bends(self) -> tuple[Tensor, Tensor]:
        middle = torch.log(self.scale) + self._raise(torch.log(self.concentration.clamp_min(1.0)))
        margin = _MARGIN * self._raise(torch.ones_like(self.scale)).abs().clamp_min(1.0)
        return middle - margin, middle + margin

    def log_density(self, strength: Tensor, log_strength: Tensor) -> Tensor:
        v = self._log_unit(log_strength)
        k = self.concentration
        log_power = 0.0 if self.power is None else torch.log(self.power.abs())
        t = v - torch.log(k)
        return k * (t - torch.expm1(t)) + special.gamma_peak(k) - log_strength + log_power

    def place(self, strength: Tensor, log_strength: Tensor) -> tuple[Tensor, Tensor]:
        k = self.concentration
        sd = torch.sqrt(k + 1.0) / k
        tau = ((self._log_unit(log_strength) - torch.log(k)) / sd).detach()
        t = sd * tau
        log_density = k * (t - torch.expm1(t)) + special.gamma_peak(k) + torch.log(sd)
        return self.scale * torch.exp(self._raise(torch.log(k) + t)), _score(log_density)

    def from_base(self, z: Tensor) -> Tensor:
        g = draws.gamma_quantile(z, self.concentration)
        return self.scale * (g if self.power is None else g ** (1.0 / self.power))


class HalfNormalFamily(GammaFamily):
    """Half-normal with its own Laplace transform, erfcx(s * scale / sqrt 2)."""

    def __init__(self, mixing: Any):
        self.sd = _double(mixing.scale)
        half = torch.full_like(self.sd, 0.5)
        super().__init__(mixing, half, self.sd * math.sqrt(2.0), torch.full_like(self.sd, 2.0))

    @property
    def has_laplace(self) -> bool:
        return True

    def log_laplace(self, s: Tensor) -> Tensor:
        return special.log_mills(s * self.sd) - 0.5 * math.log(math.pi / 2.0)

    def log_expected_sigmoid(self, s: Tensor) -> Tensor:
        return special.log_expected_sigmoid(self.log_laplace, s)


class InverseGaussianFamily(Family):
    """Nodes move as tau = 2 sqrt(phi) sinh(u / 2), u = log(strength / mean), phi = concentration / mean.

    On that axis the density is exp(-tau^2 / 2) times a factor that varies slowly in phi.
    """

    nonnegative = True
    has_laplace = True

    def __init__(self, mixing: Any):
        super().__init__(mixing)
        self.loc = _double(mixing.loc)
        self.concentration = torch.minimum(_double(mixing.concentration), self.loc.detach() * _NARROWEST**-2)

    def log_laplace(self, s: Tensor) -> Tensor:
        inverse = 1.0 / self.loc
        return -2.0 * s / (inverse + torch.sqrt(inverse * inverse + 2.0 * s / self.concentration))

    def pieces(self) -> list[tuple[Tensor, Tensor]]:
        return [(torch.zeros_like(self.loc), torch.full_like(self.loc, math.inf))]

    def center(self) -> Tensor:
        return self.loc

    def bends(self) -> tuple[Tensor, Tensor]:
        left = torch.log(torch.minimum(self.loc, self.concentration))
        right = torch.log(torch.maximum(self.loc, self.loc * (self.loc / self.concentration)))
        return left - _MARGIN, right + _MARGIN

    def log_density(self, strength: Tensor, log_strength: Tensor) -> Tensor:
        phi = self.concentration / self.loc
        u = log_strength - torch.log(self.loc)
        tau = 2.0 * torch.sqrt(phi) * torch.sinh(0.5 * u)
        return 0.5 * torch.log(phi) - _HALF_LOG_TWO_PI - 0.5 * u - 0.5 * tau * tau - log_strength

    def place(self, strength: Tensor, log_strength: Tensor) -> tuple[Tensor, Tensor]:
        phi = self.concentration / self.loc
        tau = (2.0 * torch.sqrt(phi) * torch.sinh(0.5 * (log_strength - torch.log(self.loc)))).detach()
        u = 2.0 * torch.asinh(0.5 * tau / torch.sqrt(phi))
        return self.loc * torch.exp(u), _score(-0.5 * u - 0.5 * torch.log1p(0.25 * tau * tau / phi))

    def from_base(self, z: Tensor) -> Tensor:
        x: Tensor = self.mixing.icdf(z)
        # Newton's steps for cdf(x) = z: x stays, and gains its first three derivatives by the parameters
        for _ in range(2):
            x = x - (self.mixing.cdf(x) - z) / torch.exp(self.mixing.log_prob(x))
        return x


class IntervalFamily(Family):
    """Families on a bounded or half-bounded interval [low, high], smooth inside but for given knots."""

    low: Tensor
    high: Tensor

    def __init__(self, mixing: Any, low: Tensor, high: Tensor):
        super().__init__(mixing)
        self.low, self.high = torch.broadcast_tensors(low, high)

    @property
    def nonnegative(self) -> bool:
        return bool((self.low >= 0).all())

    @property
    def has_laplace(self) -> bool:
        return self.nonnegative

    def knots(self) -> list[Tensor]:
        """Interior points where the density is not smooth."""
        return []

    def pieces(self) -> list[tuple[Tensor, Tensor]]:
        low, high = self.low, self.high
        pieces = []
        ends = [low, *self.knots(), high]
        for a, b in itertools.pairwise(ends):
            pieces.append((a.clamp_min(0.0), b.clamp_min(0.0)))
            if not self.nonnegative:
                pieces.append((b.clamp_max(0.0), a.clamp_max(0.0)))
        return pieces


class UniformFamily(IntervalFamily):
    """Uniform on [low, high]."""

    base: ClassVar[Base] = "uniform"

    def __init__(self, mixing: Any):
        super().__init__(mixing, _double(mixing.low), _double(mixing.high))

    def log_laplace(self, s: Tensor) -> Tensor:
        return -self.low * s + special.log_exponential_mean((self.high - self.low) * s)

    def center(self) -> Tensor:
        return 0.5 * (self.low + self.high)

    def log_density(self, strength: Tensor, log_strength: Tensor) -> Tensor:
        return -torch.log(self.high - self.low) + torch.zeros_like(strength)

    def from_base(self, z: Tensor) -> Tensor:
        return self.center() + 0.5 * (self.high - self.low) * z


class TriangularFamily(UniformFamily):
    """Symmetric triangular on [low, high]: the mean of two independent uniforms there."""

    base: ClassVar[Base] = "triangular"

    def log_laplace(self, s: Tensor) -> Tensor:
        return -self.low * s + 2.0 * special.log_exponential_mean(0.5 * (self.high - self.low) * s)

    def knots(self) -> list[Tensor]:
        return [self.center()]

    def log_density(self, strength: Tensor, log_strength: Tensor) -> Tensor:
        nearer = torch.minimum(strength - self.low, self.high - strength).clamp_min(torch.finfo(torch.float64).tiny)
        return torch.log(4.0 * nearer) - 2.0 * torch.log(self.high - self.low)


class TruncatedNormalFamily(IntervalFamily):
    """Normal(loc, scale) on [low, high], ``high`` possibly infinite."""

    def __init__(self, mixing: Any):
        super().__init__(mixing, _double(mixing.low), _double(mixing.high))
        self.loc = _double(mixing.loc)
        self.scale = _floored(_double(mixing.scale), self.loc.detach().abs())

    def log_laplace(self, s: Tensor) -> Tensor:
        # -s loc + (s scale)^2 / 2 cancels against half the square of the shifted end c: done by hand
        alpha, omega, width = standardised_ends(self.loc, self.scale, self.low, self.high)
        shift = s * self.scale
        _, rest = special.log_normal_interval(alpha + shift, omega + shift, width)
        c, rest0 = special.log_normal_interval(alpha, omega, width)
        unbounded = torch.isinf(omega)
        omega = torch.where(unbounded, alpha, omega)
        high = torch.where(unbounded, self.low, self.high)
        by_low = -s * self.low - 0.5 * (alpha - c) * (alpha + c)
        by_high = -s * high - 0.5 * (omega - c) * (omega + c)
        is_low, is_high = alpha + shift > 0, (omega + shift < 0) & ~unbounded
        moderate = torch.where(is_low | is_high, 0.0, shift)
        around = -s * self.loc + 0.5 * (moderate * moderate + c * c)
        return torch.where(is_low, by_low, torch.where(is_high, by_high, around)) + rest - rest0

    def log_expected_sigmoid(self, s: Tensor) -> Tensor:
        # where strength hardly matters, derivatives by the parameters are small differences of tails: there the mean of
        # sigma is taken about one of its values, h E[1 + (sigma - h) / h], by a Gauss-Legendre rule
        strength, share, about, width = truncated_normal_nodes(self.loc, self.scale, self.low, self.high)
        weak = s * width < 0.5
        small = torch.where(weak, s, 0.0)
        strength, share = special.lead(strength, small.dim()), special.lead(share, small.dim())
        relative = torch.sigmoid(small * strength) * torch.expm1(small * (about - strength))
        centred = logsigmoid(-small * about) + torch.log1p((share * relative).sum(0))
        return torch.where(weak, centred, super().log_expected_sigmoid(s))

    def center(self) -> Tensor:
        return torch.minimum(torch.maximum(self.loc, self.low), self.high)

    def spread(self) -> Tensor:
        return 1.5 * self.scale

    def bends(self) -> tuple[Tensor, Tensor]:
        return _normal_bends((self.loc - self.low).abs(), self.scale)

    def log_density(self, strength: Tensor, log_strength: Tensor) -> Tensor:
        z = (strength - self.loc) / self.scale
        near, rest = special.log_normal_interval(*standardised_ends(self.loc, self.scale, self.low, self.high))
        return -0.5 * (z - near) * (z + near) - rest - torch.log(self.scale) - _HALF_LOG_TWO_PI

    def from_base(self, z: Tensor) -> Tensor:
        return TruncatedNormal(self.loc, self.scale, self.low, self.high, validate_args=False).icdf(z)


class SampledFamily(Family):
    """Any other family: known only through ``rsample``."""

    @property
    def has_density(self) -> bool:
        return False


def _gamma(d: Any) -> Family:
    return GammaFamily(d, _double(d.concentration), 1.0 / _double(d.rate), None)


def _exponential(d: Any) -> Family:
    scale = 1.0 / _double(d.rate)
    return GammaFamily(d, torch.ones_like(scale), scale, None)


def _weibull(d: Any) -> Family:
    power = _double(d.concentration)
    return GammaFamily(d, torch.ones_like(power), _double(d.scale), power)


def _generalized_gamma(d: Any) -> Family:
    return GammaFamily(d, _double(d.concentration), _double(d.scale), _double(d.power))


def _inverse_gamma(d: Any) -> Family:
    scale = _double(d.rate)
    return GammaFamily(d, _double(d.concentration), scale, torch.full_like(scale, -1.0))


_FAMILIES: list[tuple[type, Callable[[Any], Family]]] = [
    (dist.Delta, PointFamily),
    (torch.distributions.LogNormal, LogNormalFamily),
    (torch.distributions.Gamma, _gamma),
    (torch.distributions.Exponential, _exponential),
    (torch.distributions.HalfNormal, HalfNormalFamily),
    (torch.distributions.Weibull, _weibull),
    (torch.distributions.Normal, NormalFamily),
    (torch.distributions.Uniform, UniformFamily),
    (GeneralizedGamma, _generalized_gamma),
    (InverseGaussian, InverseGaussianFamily),
    (TruncatedNormal, TruncatedNormalFamily),
    (Triangular, TriangularFamily),
    (dist.InverseGamma, _inverse_gamma),
    (torch.distributions.Gumbel, SignedFamily),
    (dist.Logistic, SignedFamily),
]


def family_of(mixing: Any) -> Family:
    """Return what the integration rules need to know of ``mixing``; families not listed are sampled."""
    for kind, adapter in _FAMILIES:
        if isinstance(mixing, kind):
            return adapter(mixing)
    return SampledFamily(mixing)


def components_of(mixing: Any) -> list[tuple[Tensor, Any]] | None:
    """(share, component) of a finite mixture, zero-inflation included; None for anything else."""
    if isinstance(mixing, FiniteMixture):
        shares = _double(mixing.probs)
        return [(shares[..., c], component) for c, component in enumerate(mixing.components)]
    if isinstance(mixing, dist.ZeroInflatedDistribution):
        gate = _double(mixing.gate)
        zero = dist.Delta(torch.zeros_like(gate), validate_args=False)
        return [(gate, zero), (1.0 - gate, mixing.base_dist)]
    if isinstance(mixing, torch.distributions.MixtureSameFamily):
        shares = _double(mixing.mixture_distribution.probs)
        many = mixing.component_distribution
        return [
            (
                shares[..., c],
                type(many)(**{k: getattr(many, k)[..., c] for k in many.arg_constraints}, validate_args=False),
            )
            for c in range(shares.shape[-1])
        ]
    return None


def check_mixing(mixing: Any) -> None:
    """Raise InvalidInputError unless ``mixing`` is a univariate distribution."""
    if not isinstance(mixing, torch.distributions.Distribution):
        raise InvalidInputError(
            explain(
                "mixing",
                got=f"an object of type {type(mixing).__name__}",
                expected="a univariate Pyro or torch distribution of strength",
                hint="pyro.distributions.LogNormal(-2.3, 0.6), or calling a LearnableMixing: mixing()",
            )
        )
    if mixing.event_shape:
        raise InvalidInputError(
            explain(
                "mixing",
                got=f"{type(mixing).__name__} with event_shape {tuple(mixing.event_shape)}",
                expected="a univariate distribution, event_shape ()",
                hint="removing .to_event(); parameters that vary by row belong into the batch shape",
            )
        )
    if isinstance(mixing, dist.MaskedDistribution | dist.ExpandedDistribution):
        raise InvalidInputError(
            explain(
                "mixing",
                got=f"a {type(mixing).__name__}",
                expected="the distribution it wraps",
                hint="passing .base_dist; MixedLogit broadcasts it by itself",
            )
        )


def sampling_refusal(mixing: Any, why: str) -> IntegrationError:
    """Return the error for a family that draws cannot serve."""
    return IntegrationError(
        explain(
            f"mixing {type(mixing).__name__}",
            got=why,
            expected="a family with a transform from base draws, or with rsample",
            hint="Quadrature() where the family has it, or a family of mixlogit_align.distributions",
        )
    )
