"""Which coefficients a model has, and how parameters and base variates make them."""

# N individuals, K draws, C varying and F fixed coefficients, M base variates a draw, P parameters.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from mixlogit_align.distributions import TruncatedNormal
from mixlogit_align.econometrics.families import Random
from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.numerics import draws
from mixlogit_align.numerics.quadrature import trapezoid_normal
from mixlogit_align.numerics.threads import in_threads

TAU = "tau"
# Families whose latent is loc + deviation: only these can be correlated or have a mean that depends on covariates.
LOCATED = ("normal", "lognormal", "uniform", "triangular", "censored_normal", "johnson_sb")
# The standard variable that draws of a family are made of, from uniforms on (0, 1).
BASE = {
    "normal": draws.standard_normal,
    "lognormal": draws.standard_normal,
    "censored_normal": draws.standard_normal,
    "johnson_sb": draws.standard_normal,
    "uniform": draws.symmetric_uniform,
    "triangular": draws.symmetric_triangular,
    "truncated_normal": lambda u: u,
    "gamma": lambda u: u,
}
_LINEAR = ("normal", "uniform", "triangular")
# Variance of the standard variable of a located family, where it is not a standard normal.
_DEVIATE_VARIANCE = {"uniform": 1 / 3, "triangular": 1 / 6}
# Nodes and draws of moments.
_NODES = 512
_DRAWS = 2**14


@dataclass(frozen=True)
class Specification:
    """Coefficients, their parameters and the map from one to the other.

    The coefficient of variable x for individual n is ``b_x`` where x is fixed, else ``sign * T(loc_n + d_n)`` with
    ``loc_n = loc + sum_c gamma_c z_cn`` over the covariates of its mean and ``d_n = scale * v_n`` or, in a correlated
    block, ``d_n = sum_k L_xk v_kn``, v the standard variables; T is the identity, exp (lognormal), max(0, .)
    (censored_normal) or ``low + (high - low) * sigma(.)`` (johnson_sb). gamma and truncated_normal are quantiles of
    v ~ U(0, 1). In WTP space all others are multiplied by minus the coefficient of the price; with scale
    heterogeneity all are multiplied by ``exp(tau * v - tau^2 / 2)``, of mean 1.

    Attributes
    ----------
    fixed : tuple of str
    random : dict of str to Random
    blocks : tuple of tuple of str
        Correlated random coefficients.
    wtp_space : str, optional
        The price.
    scale_heterogeneity : bool
    """

    fixed: tuple[str, ...]
    random: dict[str, Random]
    blocks: tuple[tuple[str, ...], ...] = ()
    wtp_space: str | None = None
    scale_heterogeneity: bool = False

    @classmethod
    def of(
        cls,
        fixed: Sequence[str],
        random: Mapping[str, str | Random | TorchDistribution],
        correlated: bool | Sequence[Sequence[str]],
        wtp_space: str | None,
        scale_heterogeneity: bool,
    ) -> Specification:
        """Read and check a user's specification.

        Raises
        ------
        InvalidInputError
            Naming the coefficient and the rule broken.
        """
        if isinstance(fixed, str):
            fixed = [fixed]
        specs = {name: Random.of(spec) for name, spec in random.items()}
        names = [*fixed, *specs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if not names or twice:
            got = f"{twice} more than once" if twice else "no coefficient"
            hint = "each variable in one of fixed= and random="
            raise InvalidInputError(explain("coefficients", got=got, expected="each variable once", hint=hint))
        if wtp_space is not None and wtp_space not in names:
            raise InvalidInputError(
                explain("wtp_space", got=repr(wtp_space), expected=f"the price, one of {names}", hint="its variable")
            )
        return cls(tuple(fixed), specs, _blocks(specs, correlated), wtp_space, scale_heterogeneity)

    # ------------------------------------------------------------------ names

    @property
    def variables(self) -> tuple[str, ...]:
        """Attributes with a coefficient: fixed ones, then random ones."""
        return (*self.fixed, *self.random)

    @property
    def num_dims(self) -> int:
        """M."""
        return len(self.random) + self.scale_heterogeneity

    @cached_property
    def bases(self) -> tuple[str, ...]:
        """The family that each base variate serves."""
        return (*(random.family for random in self.random.values()), *(["normal"] * self.scale_heterogeneity))

    @cached_property
    def covariates(self) -> tuple[str, ...]:
        """Covariates of means, each once."""
        return tuple(dict.fromkeys(c for random in self.random.values() for c in random.mean_covariates))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the parameters, in order."""
        found = list(self.fixed)
        for name, random in self.random.items():
            found += [f"{name}.{part}" for part in random.parameters[:1]]
            found += [f"{name}.loc:{covariate}" for covariate in random.mean_covariates]
            if self.block_of(name) is None:
                found += [f"{name}.{part}" for part in random.parameters[1:]]
        for block in self.blocks:
            found += [f"chol.{row}.{col}" for i, row in enumerate(block) for col in block[: i + 1]]
        return (*found, *([TAU] * self.scale_heterogeneity))

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of every parameter."""
        return {name: i for i, name in enumerate(self.names)}

    def block_of(self, name: str) -> tuple[str, ...] | None:
        """The correlated block of a random coefficient, if any."""
        return next((block for block in self.blocks if name in block), None)

    @cached_property
    def scales(self) -> tuple[str, ...]:
        """Parameters that are standard deviations or multiples of them: 0 is their boundary."""
        diagonal = {f"chol.{name}.{name}" for block in self.blocks for name in block}
        return tuple(n for n in self.names if n.endswith(".scale") or n in diagonal or n == TAU)

    @cached_property
    def logged(self) -> tuple[str, ...]:
        """Parameters that are estimated by their logarithm."""
        positive = ("truncated_normal", "gamma")
        return tuple(
            f"{name}.{part}"
            for name, random in self.random.items()
            if random.family in positive
            for part in random.parameters
            if part != "loc"
        )

    @cached_property
    def mirrored(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """Scales of either sign: reversing base variate m and the sign of these parameters changes nothing."""
        position = {name: m for m, name in enumerate(self.random)}
        found: dict[str, tuple[int, tuple[str, ...]]] = {}
        for name in self.scales:
            if name in self.logged:
                continue
            if name == TAU:
                found[name] = (len(self.random), (TAU,))
            elif name.startswith("chol."):
                (column,) = [c for block in self.blocks for c in block if name == f"chol.{c}.{c}"]
                block = self.block_of(column)
                assert block is not None
                below = block[block.index(column) :]
                found[name] = (position[column], tuple(f"chol.{row}.{column}" for row in below))
            else:
                found[name] = (position[name.removesuffix(".scale")], (name,))
        return found

    def __str__(self) -> str:
        parts = [*self.fixed, *(f"{name} {random}" for name, random in self.random.items())]
        extra = [f"correlated: {', '.join(block)}" for block in self.blocks]
        extra += [f"in WTP space, price {self.wtp_space}"] * (self.wtp_space is not None)
        extra += ["scale heterogeneity"] * self.scale_heterogeneity
        return "; ".join([", ".join(parts), *extra])

    # ------------------------------------------------------------------ parameters

    @cached_property
    def _log_mask(self) -> Tensor:
        return torch.tensor([name in self.logged for name in self.names])

    def natural(self, theta: Tensor) -> Tensor:
        """Estimated coordinates (..., P) to parameters."""
        if not self.logged:
            return theta
        mask = self._log_mask.to(theta.device)
        return torch.where(mask, torch.where(mask, theta, 0.0).exp(), theta)

    def theta(self, natural: Tensor) -> Tensor:
        """Parameters to estimated coordinates, the inverse of :meth:`natural`."""
        mask = self._log_mask
        return torch.where(mask, torch.where(mask, natural, 1.0).log(), natural)

    # ------------------------------------------------------------------ coefficients

    def base(self, uniforms: Tensor) -> Tensor:
        """Standard variables (..., M) from uniforms on (0, 1) of the same shape, in their place."""

        def fill(m: int) -> None:
            uniforms[..., m] = BASE[self.bases[m]](uniforms[..., m])

        in_threads(fill, range(len(self.bases)))
        return uniforms

    def base_of_normal(self, z: Tensor) -> Tensor:
        """Standard variables (..., M) from independent standard normals of the same shape."""
        columns = [
            z[..., m] if BASE[family] is draws.standard_normal else BASE[family](draws.probability(z[..., m]))
            for m, family in enumerate(self.bases)
        ]
        return torch.stack(columns, -2).mT if z.dim() > 2 else torch.stack(columns, -1)

    def coefficients(self, theta: Tensor, base: Tensor, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of individuals.

        Parameters
        ----------
        theta : Tensor, shape (N, P)
            Estimated coordinates, a row an individual, so that a backward pass gives individual scores.
        base : Tensor, shape (N or 1, K, M)
        covariates : Tensor, shape (N, D)
            In the order of :attr:`covariates`.

        Returns
        -------
        constant : Tensor, shape (N, F)
            Those of :attr:`fixed`, if no varying factor multiplies them; else F = 0.
        varying : Tensor, shape (N, K, C)
            The others.
        """
        columns = theta.unbind(1)
        varying = self.varying(columns, base, covariates)
        constant = theta[:, : self.num_constant]
        return constant, torch.stack(varying, -1) if varying else theta.new_zeros(len(theta), base.shape[1], 0)

    @property
    def num_constant(self) -> int:
        """F: fixed coefficients that no varying factor multiplies."""
        return 0 if self.all_vary else len(self.fixed)

    def varying(
        self, theta: Sequence[Tensor], base: Tensor, covariates: Tensor, bend: float | None = None
    ) -> list[Tensor]:
        """Columns (N, K) of the coefficients that vary; as :meth:`coefficients`, theta in columns (N,).

        ``bend``: the width, in standard deviations, over which a censored normal bends; by default it breaks.
        """
        params = [x.exp() if name in self.logged else x for name, x in zip(self.names, theta, strict=True)]
        random = self._random_coefficients(params, base, covariates, bend)
        if not self.all_vary:
            return random
        shape = (len(params[0]), base.shape[1])
        columns = [params[f][:, None].expand(shape) for f in range(len(self.fixed))] + random
        if self.wtp_space is not None:
            p = self.variables.index(self.wtp_space)
            columns = [column if c == p else -columns[p] * column for c, column in enumerate(columns)]
        if self.scale_heterogeneity:
            tau = params[self.index[TAU]][:, None]
            factor = torch.exp(tau * base[..., -1] - tau**2 / 2)
            columns = [column * factor for column in columns]
        return columns

    @property
    def is_linear(self) -> bool:
        """Whether coefficients are linear in the estimated coordinates."""
        return not self.all_vary and all(random.family in _LINEAR for random in self.random.values())

    @property
    def all_vary(self) -> bool:
        """Whether fixed coefficients are multiplied by what varies."""
        return self.wtp_space is not None or self.scale_heterogeneity

    @property
    def arguments(self) -> dict[str, Any]:
        """It again, as models and simulations take it."""
        return {
            "fixed": self.fixed,
            "random": self.random,
            "correlated": self.blocks,
            "wtp_space": self.wtp_space,
            "scale_heterogeneity": self.scale_heterogeneity,
        }

    @property
    def only_scaled(self) -> bool:
        """Whether all that varies is one factor of all coefficients."""
        return self.scale_heterogeneity and not self.random and self.wtp_space is None

    @property
    def breaks(self) -> bool:
        """Whether coefficients break, so that derivatives of a simulated log-likelihood jump from draw to draw."""
        return any(random.family == "censored_normal" for random in self.random.values())

    def _random_coefficients(
        self, params: Sequence[Tensor], base: Tensor, covariates: Tensor, bend: float | None
    ) -> list[Tensor]:
        """Columns (N, K) of the random coefficients; params are columns (N,)."""
        found = []
        variates = dict(zip(self.random, base.unbind(-1), strict=False))
        for name, random in self.random.items():
            first = params[self.index[f"{name}.{random.parameters[0]}"]]
            for covariate in random.mean_covariates:
                slope = params[self.index[f"{name}.loc:{covariate}"]]
                first = first + slope * covariates[:, self.covariates.index(covariate)]
            block = self.block_of(name)
            if random.family in LOCATED:
                weights = (
                    {name: params[self.index[f"{name}.{random.parameters[1]}"]]}
                    if block is None
                    else {col: params[self.index[f"chol.{name}.{col}"]] for col in block[: block.index(name) + 1]}
                )
                latent = first[:, None]
                for col, weight in weights.items():
                    latent = torch.addcmul(latent, weight[:, None], variates[col])
                width = None
                if bend is not None and random.family == "censored_normal":
                    sd = torch.stack(list(weights.values())).detach().square().sum(0).sqrt()
                    width = (bend * sd).clamp_min(1e-300)[:, None]
                value = random.transform(latent, width)
            else:
                second = params[self.index[f"{name}.{random.parameters[1]}"]]
                value = _quantile(random, first[:, None], second[:, None], variates[name])
            found.append(value if random.sign == 1 else -value)
        return found

    def moments(self, params: Tensor, covariates: Tensor) -> tuple[tuple[str, ...], Tensor]:
        """Mean and standard deviation of every random coefficient, and correlations of those in a block.

        Of the coefficients themselves, transformed and with their signs; in WTP space, of willingness to pay. The
        factor of scale heterogeneity, whose mean is 1, is left out.

        Parameters
        ----------
        params : Tensor, shape (P,)
            Natural parameters.
        covariates : Tensor, shape (D,)
            Where means depend on covariates: the values at which they are taken.

        Returns
        -------
        names : tuple of str
            ``"time.mean"``, ``"time.sd"``, ``"cor.tod.cl"``.
        values : Tensor
            NaN for a correlation with what does not vary.
        """
        found: dict[str, tuple[Tensor, Tensor]] = {}
        correlations: dict[str, Tensor] = {}
        for name, random in self.random.items():
            if self.block_of(name) is None:
                second = params[self.index[f"{name}.{random.parameters[1]}"]]
                mean, sd = _mean_sd(random, self._first(params, name, covariates), second)
                found[name] = random.sign * mean, sd
        for block in self.blocks:
            loc = torch.stack([self._first(params, name, covariates) for name in block])
            factor = params.new_zeros(len(block), len(block))
            for i, row in enumerate(block):
                for k, col in enumerate(block[: i + 1]):
                    factor[i, k] = params[self.index[f"chol.{row}.{col}"]]
            means, cov = _block_moments([self.random[name] for name in block], loc, factor)
            sds = _root(cov.diagonal())
            found |= dict(zip(block, zip(means, sds, strict=True), strict=True))
            for i, row in enumerate(block):
                correlations |= {f"cor.{row}.{col}": cov[i, j] / (sds[i] * sds[j]) for j, col in enumerate(block[:i])}
        names = [f"{name}.{what}" for name in self.random for what in ("mean", "sd")]
        values = [value for name in self.random for value in found[name]] + list(correlations.values())
        return (*names, *correlations), torch.stack(values) if values else params.new_zeros(0)

    def _first(self, params: Tensor, name: str, covariates: Tensor) -> Tensor:
        """The first parameter of a coefficient, at covariates (D,)."""
        random = self.random[name]
        first = params[self.index[f"{name}.{random.parameters[0]}"]]
        for covariate in random.mean_covariates:
            slope = params[self.index[f"{name}.loc:{covariate}"]]
            first = first + slope * covariates[self.covariates.index(covariate)]
        return first


def _blocks(specs: dict[str, Random], correlated: bool | Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    if correlated is False:
        return ()
    blocks = [tuple(specs)] if correlated is True else [tuple(block) for block in correlated]
    flat = [name for block in blocks for name in block]
    unknown = [name for name in flat if name not in specs]
    if unknown or len(set(flat)) < len(flat) or any(len(block) < 2 for block in blocks):
        raise InvalidInputError(
            explain(
                "correlated",
                got=[list(block) for block in blocks],
                expected=f"blocks of two or more of the random coefficients {list(specs)}, each in one block",
                hint="correlated=True for one block of all, or [['a', 'b'], ['c', 'd']]",
            )
        )
    for name in flat:
        if specs[name].family not in LOCATED:
            raise InvalidInputError(
                explain(
                    "correlated",
                    got=f"{name!r}, which is {specs[name].family}",
                    expected=f"families {LOCATED}",
                    hint="blocks that leave it out",
                )
            )
    # in the order of the random coefficients
    return tuple(tuple(name for name in specs if name in block) for block in blocks)


def _quantile(random: Random, first: Tensor, second: Tensor, u: Tensor) -> Tensor:
    if random.family == "gamma":
        return draws.gamma_quantile(u, first) / second
    low, high = random.limits
    return TruncatedNormal(first, second, low, high, validate_args=False).icdf(u)


def _mean_sd(random: Random, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Of the coefficient before its sign; ``second`` may have either sign."""
    family = random.family
    if family in _LINEAR:
        return first, second.abs() * math.sqrt(_DEVIATE_VARIANCE.get(family, 1.0))
    if family == "lognormal":
        mean = torch.exp(first + second**2 / 2)
        return mean, mean * _root(torch.expm1(second**2))
    if family == "gamma":
        return first / second, first.sqrt() / second
    z, log_weight = trapezoid_normal(_NODES)  # smooth or with one kink: 512 nodes give 1e-5 of the sd or better
    if family in LOCATED:
        values = random.transform(first + second * z)
    else:
        values = _quantile(random, first, second, draws.probability(z))
    weight = log_weight.exp()
    mean = (weight * values).sum()
    return mean, _root((weight * (values - mean) ** 2).sum())


def _root(variance: Tensor) -> Tensor:
    """Square root whose derivative at 0 is 0."""
    return torch.where(variance > 0.0, torch.where(variance > 0.0, variance, 1.0).sqrt(), 0.0)


def _block_moments(randoms: Sequence[Random], loc: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Means (B,) and covariance (B, B) of a correlated block: locs (B,), Cholesky factor (B, B) of the latents.

    By the cumulant functions of the standard variables v_k, ``c_k(t) = log E exp(t v_k)``, where coefficients are
    linear in these or exponentials; by Sobol draws, to about 1e-3 of the sds, where one of the two is a censored
    normal or a Johnson SB.
    """
    z, log_weight = trapezoid_normal(_NODES)
    v = torch.stack([BASE[random.family](draws.probability(z)) for random in randoms])
    normal = torch.tensor([random.family not in _DEVIATE_VARIANCE for random in randoms])
    variance = factor.new_tensor([_DEVIATE_VARIANCE.get(random.family, 1.0) for random in randoms])

    def cumulants(t: Tensor) -> tuple[Tensor, Tensor]:
        """c and c' of the columns at t (..., B)."""
        tilted = torch.where(normal, 0.0, t)[..., None] * v + log_weight
        slope = (torch.softmax(tilted, -1) * v).sum(-1)
        return torch.where(normal, t * t / 2.0, torch.logsumexp(tilted, -1)), torch.where(normal, t, slope)

    linear = torch.tensor([random.family in _LINEAR for random in randoms])
    logged = torch.tensor([random.family == "lognormal" for random in randoms])
    rate = torch.where(logged[:, None], factor, 0.0)
    growth, slope = cumulants(rate)
    growth = growth.sum(-1)
    size = torch.exp(torch.where(logged, loc, 0.0) + growth)
    together = cumulants(rate[:, None] + rate)[0].sum(-1) - growth[:, None] - growth
    mixed = factor @ slope.T * size
    cov = torch.where(
        linear[:, None],
        torch.where(linear, (factor * variance) @ factor.T, mixed),
        torch.where(linear, mixed.T, size[:, None] * size * torch.expm1(together)),
    )
    mean = torch.where(linear, loc, size)
    rest = ~(linear | logged)
    if bool(rest.any()):
        base = _block_draws(tuple(random.family for random in randoms))
        latent = loc + base @ factor.T
        values = torch.stack([random.transform(x) for random, x in zip(randoms, latent.unbind(-1), strict=True)], -1)
        mean = torch.where(rest, values.mean(0), mean)
        cov = torch.where(rest[:, None] | rest, torch.cov(values.T, correction=0), cov)
    sign = factor.new_tensor([random.sign for random in randoms])
    return sign * mean, sign[:, None] * sign * cov


@lru_cache(maxsize=8)
def _block_draws(families: tuple[str, ...]) -> Tensor:
    """Standard variables (K, B)."""
    uniforms = draws.BaseDraws("sobol", _DRAWS, 0, 0).uniforms_nd(torch.zeros(1, dtype=torch.int64), len(families))[0]
    return torch.stack([BASE[family](u) for family, u in zip(families, uniforms.unbind(-1), strict=True)], -1)
