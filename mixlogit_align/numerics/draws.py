"""Base draws as value objects: uniforms that depend on (seed, step, row, dimension) and on nothing else.

K draws in M dimensions, rows (*row_shape) of integers: a pair, an individual. A row has the same draws whatever batch
or process it lands in, because every uniform is a hash of its coordinates (the finaliser of SplitMix64), not the state
of a generator.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import scipy.special
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

from mixlogit_align.errors import IntegrationError, InvalidInputError, explain
from mixlogit_align.numerics.threads import in_threads

Array = npt.NDArray[np.float64]
DrawKind = Literal["pseudo", "stratified", "antithetic", "halton", "sobol", "mlhs"]

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_A = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_B = -7723592293110705685  # 0x94D049BB133111EB

# bases of Halton's sequences in the order of xlogit and mlogit: without 67, and none after 311
_BASES = tuple(b for b in range(2, 312) if b != 67 and all(b % d for d in range(2, math.isqrt(b) + 1)))
_DROPPED = 100


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_A
    x = (x ^ _shift_right(x, 27)) * _MIX_B
    return x ^ _shift_right(x, 31)


def _signed(key: int) -> int:
    return (key + 2**63) % 2**64 - 2**63


def _hash(rows: Tensor, *keys: int) -> Tensor:
    state = rows.to(torch.int64)
    for key in keys:
        state = _mix(state * _GOLDEN + _signed(key) + _MIX_B)  # no fixed point at row, seed and step 0
    return state


def stream_seed(seed: int, step: int) -> int:
    """Seed of an ordinary generator for (seed, step), in [0, 2^63)."""
    return int(_hash(torch.zeros((), dtype=torch.int64), seed, step)) & (2**63 - 1)


def _to_unit(bits: Tensor) -> Tensor:
    """Turn the 52 high bits of a 64-bit integer into a float64 strictly inside (0, 1)."""
    return (_shift_right(bits, 12).to(torch.float64) + 0.5) * 2.0**-52


def _inside(u: Tensor) -> Tensor:
    return u.clamp(2.0**-54, 1.0 - 2.0**-53)


def _reverse_bits(x: Tensor) -> Tensor:
    """Reverse all 64 bits: read as a fraction of 2^64, the base-2 radical inverse."""
    masks = ((1, 0x5555555555555555), (2, 0x3333333333333333), (4, 0x0F0F0F0F0F0F0F0F))
    for bits, mask in masks:
        x = ((x >> bits) & mask) | ((x & mask) << bits)
    for bits, mask in ((8, 0x00FF00FF00FF00FF), (16, 0x0000FFFF0000FFFF)):
        x = ((x >> bits) & mask) | ((x & mask) << bits)
    return _shift_right(x, 32) | (x << 32)


def _radical_inverse(index: Tensor, base: int) -> Tensor:
    """Digits of ``index`` >= 0 mirrored at the point, float64; digits are added from the first on, as xlogit does."""
    rest = index.to(torch.float64)
    value = torch.zeros_like(rest)
    place, largest = 1, int(index.max()) if index.numel() else 0
    while place <= largest:
        place *= base
        quotient = (rest / base).floor_()
        value += rest.sub_(quotient * base).mul_(1.0 / place)
        rest = quotient
    return value


def _radical_inverses(count: int, base: int, device: torch.device) -> Tensor:
    """:func:`_radical_inverse` of 0 .. count - 1: each digit is added to all beginnings at once."""
    values = torch.zeros(1, dtype=torch.float64, device=device)
    place = 1
    while len(values) < count:
        place *= base
        digits = torch.arange(min(base, -(-count // len(values))), dtype=torch.float64, device=device)
        values = (digits.mul_(1.0 / place)[:, None] + values).reshape(-1)
    return values[:count]


def _nested_scramble(x: Tensor, key: Tensor) -> Tensor:
    """Owen's scrambling of 64-bit fractions, bits reversed: every bit is flipped by a hash of the bits above it.

    After Laine and Karras (2011): sums, and products with odd or by even factors under xor, carry upwards only.
    """
    x = x + key
    x = x ^ (x * 0x3D20ADEA7A1B5C46)
    x = x * ((key >> 16) | 1)
    x = x ^ (x * 0x05526C56FD1C3A5E)
    return x ^ (x * 0x53A22864B2E0D3F2)


@functools.lru_cache(maxsize=8)
def _sobol_points(num_draws: int, num_dims: int) -> Tensor:
    """First points of Sobol's sequence (Joe and Kuo's directions), bits reversed: (M, K), int64."""
    power = max(num_draws - 1, 1).bit_length()
    gray = torch.quasirandom.SobolEngine(num_dims).draw(2**power, dtype=torch.float64)
    order = torch.arange(2**power)
    points = torch.empty((num_dims, 2**power), dtype=torch.int64)
    # torch counts along a Gray code: put back, the first dimension is the radical inverse
    points[:, order ^ (order >> 1)] = (gray * 2.0**30).to(torch.int64).T << 34
    return _reverse_bits(points[:, :num_draws])


@dataclass(frozen=True)
class BaseDraws:
    """K uniforms a row.

    Parameters
    ----------
    kind : str
        ``pseudo``: independent. ``stratified``: one in each of K equal cells. ``antithetic``: u and 1 - u, K even.
        ``halton``: row r takes elements r*K .. r*K + K - 1 of one base-2 sequence, rotated by (seed, step).
        ``sobol``: the first K points of the base-2 sequence, Owen-scrambled by (seed, step, row): one in each of K
        cells if K is a power of 2.
        ``mlhs``: K equally spaced points under one random shift a row (modified Latin hypercube).
    num_draws : int
        K.
    seed, step : int
        Draws are a function of (seed, step, row). ``seed=None``, for halton alone: the plain sequence of xlogit and
        mlogit, not rotated, without its first 100 elements.
    """

    kind: DrawKind
    num_draws: int
    seed: int | None = 0
    step: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(DrawKind):
            raise InvalidInputError(
                explain(
                    "kind of draws",
                    got=repr(self.kind),
                    expected=f"one of {get_args(DrawKind)}",
                    hint="'sobol'",
                )
            )
        if self.seed is None and (self.kind != "halton" or self.step != 0):
            raise InvalidInputError(
                explain(
                    "seed",
                    got=f"None for {self.kind} draws of step {self.step}",
                    expected="an integer; None stands for the plain Halton sequence, which has no steps",
                    hint="seed=0",
                )
            )
        for name in ("step",) if self.seed is None else ("seed", "step"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise InvalidInputError(explain(name, got=repr(value), expected="an integer", hint=f"{name}=0"))
        if isinstance(self.num_draws, bool) or not isinstance(self.num_draws, int) or self.num_draws < 1:
            raise InvalidInputError(
                explain("num_draws", got=repr(self.num_draws), expected="a positive integer", hint="num_draws=16")
            )
        if self.kind == "antithetic" and self.num_draws % 2:
            raise InvalidInputError(
                explain(
                    "num_draws",
                    got=self.num_draws,
                    expected="an even number, because antithetic draws come in pairs",
                    hint=f"num_draws={self.num_draws + 1}",
                )
            )

    def uniforms(self, rows: Tensor) -> Tensor:
        """Uniforms in (0, 1) for integer ``rows`` (*row_shape): (K, *row_shape), float64."""
        if torch.compiler.is_compiling():
            seed = None if self.seed is None else _signed(self.seed)
            opaque: Tensor = _opaque_uniforms(rows, self.kind, self.num_draws, seed, _signed(self.step))
            return opaque
        return self._uniforms(rows)

    def uniforms_nd(self, rows: Tensor, num_dims: int) -> Tensor:
        """Uniforms in (0, 1) in M = ``num_dims`` dimensions.

        The first dimension holds ``uniforms(rows)``. Further ones: halton takes the next prime as its base (those of
        xlogit and mlogit, at most 63 dimensions), sobol the next of Joe and Kuo's directions, each scrambled anew
        for every row; stratified and mlhs put their cells in an order drawn for every row and dimension; antithetic
        draws are mirrored in all dimensions together.

        Parameters
        ----------
        rows : Tensor
            (N,), int64.
        num_dims : int
            M.

        Returns
        -------
        Tensor
            (N, K, M), float64, a function of (seed, step, row, dimension) alone; draws of a dimension lie side by side
            in memory.
        """
        if self.kind == "halton" and num_dims > len(_BASES):
            raise InvalidInputError(
                explain(
                    "dimensions of halton draws",
                    got=num_dims,
                    expected=f"at most {len(_BASES)}: in more, sequences of such large bases move together",
                    hint="kind 'sobol' or 'mlhs'",
                )
            )
        u = torch.empty((len(rows), num_dims, self.num_draws), dtype=torch.float64, device=rows.device)
        consecutive = self.kind == "halton" and len(rows) > 0 and bool((rows.diff() == 1).all())

        def fill(dim: int) -> None:
            if consecutive:
                start = int(rows[0]) * self.num_draws + (_DROPPED if self.seed is None else 0)
                points = _radical_inverses(start + len(rows) * self.num_draws, _BASES[dim], rows.device)[start:]
                if dim == 0 and self.seed is not None:
                    points = points + 2.0**-53  # the middle of the cell, as _to_unit has it
                u[:, dim] = self._rotated(points, dim).view(len(rows), -1)
            else:
                u[:, dim] = self._uniforms(rows, dim, num_dims).T

        in_threads(fill, range(num_dims))
        return u.mT

    def _key(self, rows: Tensor, dim: int) -> Tensor:
        assert self.seed is not None
        return _hash(rows, self.seed, self.step, *((dim,) if dim else ()))

    def _uniforms(self, rows: Tensor, dim: int = 0, num_dims: int = 1) -> Tensor:
        k = self.num_draws
        index = torch.arange(k, dtype=torch.int64, device=rows.device).reshape((k,) + (1,) * rows.dim())
        rows = rows.to(torch.int64)
        if self.kind == "halton":
            return self._halton(rows * k + index, dim)
        key = self._key(rows, dim)
        cell = _shuffled(key, k) if dim and self.kind in ("stratified", "mlhs") else index
        if self.kind == "mlhs":
            return _inside((cell + _to_unit(key)) / k)
        fresh = _mix(key + (index + 1) * _GOLDEN)
        if self.kind == "sobol":
            # Owen's scrambling in base 2: leading digits shifted or flipped by row, the rest drawn anew for each point
            trailing = (1 << (64 - (k - 1).bit_length())) - 1 if k > 1 else -1
            if dim:
                points = _sobol_points(k, num_dims)[dim].to(rows.device)
                leading = _reverse_bits(_nested_scramble(points.reshape(index.shape), key))
            else:
                leading = _reverse_bits(index) ^ key
            return _inside(_to_unit((leading & ~trailing) | (fresh & trailing)))
        if self.kind == "antithetic":
            half = _to_unit(fresh[: k // 2])
            return torch.cat((half, 1.0 - half))
        return _inside((cell + _to_unit(fresh)) / k) if self.kind == "stratified" else _to_unit(fresh)

    def _halton(self, element: Tensor, dim: int) -> Tensor:
        if self.seed is None:
            return _radical_inverse(element + _DROPPED, _BASES[dim])
        return self._rotated(_radical_inverse(element, _BASES[dim]) if dim else _to_unit(_reverse_bits(element)), dim)

    def _rotated(self, points: Tensor, dim: int) -> Tensor:
        if self.seed is None:
            return points
        shift = _to_unit(self._key(torch.zeros((), dtype=torch.int64, device=points.device), dim))
        return _inside((points + shift) % 1.0)


def _shuffled(key: Tensor, k: int) -> Tensor:
    """Orders of 0 .. k - 1, one for each of the keys (*shape), none tied to the others: (k, *shape)."""
    index = torch.arange(k, dtype=torch.int64, device=key.device)
    low = (1 << (k - 1).bit_length()) - 1
    # sorted with their places in the low bits, the hashes need no argsort
    return (torch.sort((_mix(_mix(key)[..., None] ^ (index + 1) * _GOLDEN) & ~low) | index).values & low).movedim(-1, 0)


@torch.library.custom_op(
    "mixlogit_align::base_uniforms",
    mutates_args=(),
    schema="(Tensor rows, str kind, int num_draws, int? seed, int step) -> Tensor",
)
def _opaque_uniforms(rows: Tensor, kind: DrawKind, num_draws: int, seed: int | None, step: int) -> Tensor:
    # compiled to C++, the wrapping products of the hash would be undefined behaviour
    return BaseDraws(kind, num_draws, seed, step)._uniforms(rows)


@_opaque_uniforms.register_fake
def _(rows: Tensor, kind: DrawKind, num_draws: int, seed: int | None, step: int) -> Tensor:
    return rows.new_empty((num_draws, *rows.shape), dtype=torch.float64)


def standard_normal(u: Tensor) -> Tensor:
    """N(0, 1) by inversion of uniforms."""
    z: Tensor = torch.special.ndtri(u)
    return z


def probability(z: Tensor) -> Tensor:
    """Uniforms from N(0, 1), kept inside (0, 1): the inverse of :func:`standard_normal`."""
    return _inside(torch.special.ndtr(z))


def symmetric_uniform(u: Tensor) -> Tensor:
    """U(-1, 1) from uniforms on (0, 1)."""
    return 2.0 * u - 1.0


def symmetric_triangular(u: Tensor) -> Tensor:
    """Tri(-1, 0, 1) by inversion of uniforms."""
    return torch.where(u < 0.5, torch.sqrt(2.0 * u) - 1.0, 1.0 - torch.sqrt(2.0 - 2.0 * u))


def _gamma_quantile_derivative(u: Array, k: Array, order: int) -> Array:
    """d^order x / d k^order of the quantile x(u, k) of Gamma(k, 1), order 0, 1 or 2.

    By central differences of log x in log k, five points a relative step of 1e-3 apart: error about 1e-10 (first order)
    and 1e-7 (second), relative to x / k^order. One k for many u: these logarithms are interpolated in the normal
    quantile of u, by splines of degree 7 whose relative error is below 1e-12.
    """
    parts = None
    if u.size > 4 * len(_GRID) and np.ptp(k) == 0.0:
        one = np.asarray(k.flat[0])
        table = _log_quantiles(lambda shape: _at_normal_quantiles(shape, _GRID), one, order)
        if table[0][0] > _LOG_TINY / 2:  # with room for the differences: no corner within the grid
            parts = np.moveaxis(make_interp_spline(_GRID, np.stack(table, -1), k=7)(scipy.special.ndtri(u)), -1, 0)
    if parts is None:
        parts = np.stack(_log_quantiles(lambda shape: scipy.special.gammaincinv(shape, u), k, order))
    x: Array = np.exp(parts[0])
    if order == 0:
        return x
    if order == 1:
        return np.asarray(x / k * parts[1])
    return np.asarray(x / k**2 * (parts[2] + parts[1] * parts[1] - parts[1]))


# Normal quantiles of all doubles in (0, 1) lie within.
_GRID = np.linspace(-8.4, 8.4, 512)
_LOG_TINY = float(np.log(np.finfo(np.float64).tiny))


def _at_normal_quantiles(k: Array, z: Array) -> Array:
    """Quantiles of Gamma(k, 1) at the probabilities of normal quantiles, exact in both tails."""
    lower, upper = scipy.special.ndtr(z), scipy.special.ndtr(-z)
    x: Array = np.where(z < 0.0, scipy.special.gammaincinv(k, lower), scipy.special.gammainccinv(k, upper))
    return x


def _log_quantiles(quantile: Callable[[Array], Array], k: Array, order: int) -> list[Array]:
    """log of a quantile x(k), and its derivatives in log k up to ``order``."""
    h = 1e-3
    steps = (0,) if order == 0 else (-2, -1, 0, 1, 2)
    # below the smallest normal number a strength is 0 for every purpose
    y = [np.log(np.maximum(quantile(k * np.exp(m * h)), np.finfo(np.float64).tiny)) for m in steps]
    if order == 0:
        return y
    first = (y[0] - 8.0 * y[1] + 8.0 * y[3] - y[4]) / (12.0 * h)
    second = (-y[0] + 16.0 * y[1] - 30.0 * y[2] + 16.0 * y[3] - y[4]) / (12.0 * h * h)
    return [y[2], first, second][: order + 1]


class _GammaQuantile(torch.autograd.Function):
    @staticmethod
    def forward(u: Tensor, concentration: Tensor, order: int) -> Tensor:
        value = _gamma_quantile_derivative(
            u.detach().cpu().double().numpy(), concentration.detach().cpu().double().numpy(), order
        )
        return torch.as_tensor(value, dtype=u.dtype).to(u.device)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, concentration, ctx.order = inputs
        ctx.slope = None
        ctx.save_for_backward(u, concentration)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], u: Tensor, concentration: Tensor, order: int
    ) -> tuple[Tensor, int]:
        u, concentration = (
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip((u, concentration), in_dims[:2], strict=True)
        )
        return _GammaQuantile.apply(u, concentration, order), 0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        if ctx.order == 2:
            raise IntegrationError(
                explain(
                    "third derivative of gamma draws",
                    got="draws by inversion of a gamma-type distribution, differentiated three times",
                    expected="first and second derivatives",
                    hint="ClosedForm() or Quadrature(), which have all derivatives",
                )
            )
        u, k = ctx.saved_tensors
        by_u = None
        if ctx.needs_input_grad[0]:
            if ctx.order:
                raise IntegrationError(
                    explain(
                        "gamma draws",
                        got="a derivative in uniforms and parameters together",
                        expected="derivatives in one of them",
                        hint="detached uniforms",
                    )
                )
            x = _GammaQuantile.apply(u, k, 0)
            by_u = grad * torch.exp(x + torch.lgamma(k) - (k - 1) * torch.log(x))  # 1 / density
        if torch.is_grad_enabled():
            return by_u, grad * _GammaQuantile.apply(u, k, ctx.order + 1), None
        if ctx.slope is None:  # for every row of a Hessian anew, and always the same
            ctx.slope = _GammaQuantile.apply(u, k, ctx.order + 1)
        return by_u, grad * ctx.slope, None


def gamma_quantile(u: Tensor, concentration: Tensor) -> Tensor:
    """Quantile of Gamma(concentration, 1) at ``u``, twice differentiable in ``concentration``.

    scipy's ``gammaincinv`` on the CPU; its derivatives by differences of it, relative error about 1e-10 and 1e-7.
    """
    u, concentration = torch.broadcast_tensors(u, concentration)
    quantile: Tensor = _GammaQuantile.apply(u.contiguous(), concentration.contiguous(), 0)
    return quantile
