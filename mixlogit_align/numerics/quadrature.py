"""Trapezoid rules on mapped axes: nodes that follow the integrand wherever data and parameters put it.

Shapes: nodes lead, (n, *batch). Nodes and step weights carry no gradient: derivatives of an integral are taken under
the integral sign, at fixed nodes.

Why trapezoid: on an axis where the integrand is analytic in a strip of half-width a and has decayed to exp(-drop) at
both ends, n equal steps h have error about exp(-2 pi a / h) + exp(-drop). On the axis log(strength) every factor
sigma(strength * utility_diff) has its poles at height pi/2, at log(pi / |utility_diff|) and to the right of it. So
steps are equal where there are poles, and stretched smoothly on both sides of them, where there are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from mixlogit_align.numerics.special import log1mexp

_ZOOMS = 3
_ZOOM_POINTS = 17
_FINEST = 1e-9


def _scan(log_target: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.nan_to_num(log_target(x), nan=-math.inf, posinf=math.inf, neginf=-math.inf)


def _at(x: Tensor, index: Tensor) -> Tensor:
    return torch.gather(x, 0, index.clamp(0, x.shape[0] - 1).unsqueeze(0)).squeeze(0)


def find_window(
    log_target: Callable[[Tensor], Tensor],
    log_tilt: Callable[[Tensor], Tensor],
    center: Tensor,
    lower: float,
    upper: float,
    drop: float,
) -> tuple[Tensor, Tensor]:
    """Smallest window (to a few per cent) outside which the target is ``drop`` below its maximum, tilted or not.

    Parameters
    ----------
    log_target : callable
        Maps (m, *batch) to (m, *batch); may have several modes, the window then covers all that matter.
    log_tilt : callable
        Likewise; the window also covers ``log_target + log_tilt``, within ``drop`` of its own maximum. Derivatives and
        moments of the integral weight the target by powers of the strength.
    center : Tensor
        (*batch), a guess of where the mass is; peaks down to 1e-9 wide are found near it.
    lower, upper : float
        Ends of the axis.
    drop : float
        In nats.

    Returns
    -------
    tuple of Tensor
        left, right, each (*batch).
    """
    shape = (-1,) + (1,) * center.dim()
    grid = torch.logspace(
        math.log10(_FINEST), math.log10(upper - lower), 44, dtype=torch.float64, device=center.device
    ).reshape(shape)
    x = (center + torch.cat((-grid.flip(0), torch.zeros_like(grid[:1]), grid))).clamp(lower, upper)
    value = _scan(log_target, x)
    fractions = torch.linspace(0.0, 1.0, _ZOOM_POINTS, dtype=torch.float64, device=center.device).reshape(shape)
    for _ in range(_ZOOMS):
        best = value.argmax(0)
        left, right = _at(x, best - 1), _at(x, best + 1)
        x = left + (right - left) * fractions
        value = _scan(log_target, x)
    best = value.argmax(0)
    mode, floor = _at(x, best), _at(value, best) - drop

    steps = torch.cat((torch.zeros_like(grid[:1]), grid)).expand(len(grid) + 1, *mode.shape)
    outward = [(mode + side * steps).clamp(lower, upper) for side in (-1.0, 1.0)]
    values = [_scan(log_target, points) for points in outward]
    tilted = [value + log_tilt(points) for value, points in zip(values, outward, strict=True)]
    tilted_floor = torch.maximum(tilted[0].amax(0), tilted[1].amax(0)) - drop

    def last_inside(value: Tensor, tilted_value: Tensor) -> Tensor:
        inside = (value >= floor) | (tilted_value >= tilted_floor)
        return (inside * torch.arange(1, len(inside) + 1, device=mode.device).reshape(shape)).amax(0) - 1

    edges = []
    for side, value, tilted_value in zip((-1.0, 1.0), values, tilted, strict=True):
        last = last_inside(value, tilted_value)
        inner, outer = _at(steps, last), _at(steps, last + 1)
        finer = inner + (outer - inner) * fractions
        points = (mode + side * finer).clamp(lower, upper)
        value = _scan(log_target, points)
        last = last_inside(value, value + log_tilt(points))
        edges.append((mode + side * _at(finer, last + 1)).clamp(lower, upper))
    return edges[0], edges[1]


def _stretched_left(w: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """u(w) with slope tending to ``rate`` left of 0 and to 1 right of it, and that slope."""
    return w - (rate - 1.0) * softplus(-w, threshold=50.0), 1.0 + (rate - 1.0) * torch.sigmoid(-w)


def _uniform(start: Tensor, stop: Tensor, n: int) -> tuple[Tensor, Tensor]:
    fractions = torch.linspace(0.0, 1.0, n, dtype=torch.float64, device=start.device)
    return start + (stop - start) * fractions.reshape((n,) + (1,) * start.dim()), (stop - start) / (n - 1)


def left_stretched_trapezoid(
    left: Tensor, right: Tensor, left_at: Tensor, rate: Tensor, n: int
) -> tuple[Tensor, Tensor]:
    """n nodes on [left, right]: equal steps right of ``left_at``, up to ``rate`` times longer to the left of it.

    Returns
    -------
    tuple of Tensor
        Nodes u (n, *batch) and log(du/dw * h) (n, *batch).
    """
    ends = torch.stack((left - left_at, right - left_at))
    # one Newton step from the piecewise-linear inverse: the ends need not be met exactly
    w = torch.where(ends < 0, ends / rate, ends)
    value, slope = _stretched_left(w, rate)
    w = w - (value - ends) / slope
    nodes, step = _uniform(w[0], w[1], n)
    u, slope = _stretched_left(nodes, rate)
    return u + left_at, torch.log(slope * step)


def stretched(w: Tensor, left_at: Tensor, left_rate: Tensor, right_at: Tensor, right_rate: Tensor) -> Tensor:
    """u(w) with slope 1 between ``left_at`` and ``right_at``, tending to the two rates outside."""
    return (
        w
        - (left_rate - 1.0) * softplus(left_at - w, threshold=50.0)
        + (right_rate - 1.0) * softplus(w - right_at, threshold=50.0)
    )


def _stretched_inverse(u: Tensor, left_at: Tensor, left_rate: Tensor, right_at: Tensor, right_rate: Tensor) -> Tensor:
    # slopes lie in [1, max rate] and change within a few units: Newton from the piecewise-linear inverse
    w = torch.where(
        u < left_at,
        left_at + (u - left_at) / left_rate,
        torch.where(u > right_at, right_at + (u - right_at) / right_rate, u),
    )
    for _ in range(4):
        slope = 1.0 + (left_rate - 1.0) * torch.sigmoid(left_at - w) + (right_rate - 1.0) * torch.sigmoid(w - right_at)
        w = w - (stretched(w, left_at, left_rate, right_at, right_rate) - u) / slope
    return w


def stretched_trapezoid(
    left: Tensor, right: Tensor, left_at: Tensor, right_at: Tensor, span: float, n: int
) -> tuple[Tensor, Tensor]:
    """n nodes on [left, right]: equal steps between ``left_at`` and ``right_at``, longer ones outside.

    Each stretched side is given about ``span`` units of the stretched axis, whatever its length.

    Returns
    -------
    tuple of Tensor
        Nodes u (n, *batch) and log(du/dw * h) (n, *batch), both without gradient.
    """
    left, right, left_at, right_at = torch.broadcast_tensors(left, right, left_at, right_at)
    # a bend outside the window is no better than one at its edge, and far away costs digits
    left_at = torch.minimum(left_at, right)
    right_at = torch.maximum(right_at, left_at)
    left_rate = ((left_at - left) / span).clamp_min(1.0)
    right_rate = ((right - right_at) / span).clamp_min(1.0)
    maps = (left_at, left_rate, right_at, right_rate)
    start, stop = _stretched_inverse(left, *maps), _stretched_inverse(right, *maps)
    fractions = torch.linspace(0.0, 1.0, n, dtype=torch.float64, device=left.device)
    w = start + (stop - start) * fractions.reshape((n,) + (1,) * left.dim())
    slope = 1.0 + (left_rate - 1.0) * torch.sigmoid(left_at - w) + (right_rate - 1.0) * torch.sigmoid(w - right_at)
    return stretched(w, *maps), torch.log(slope * ((stop - start) / (n - 1)))


class Axis:
    """Coordinate x in R of a distance in (0, width): logarithmic near 0 and, where bounded, near the far end.

    Three shapes, by row: exp(x) on a half-line; width * sigma(x) on an interval; and, with a ``unit`` of distance over
    which the integrand varies, unit * (softplus(x) - softplus(x - width / unit)), linear between the two ends.

    Parameters
    ----------
    width : Tensor
        (*batch), > 0, may be infinite.
    unit : Tensor, optional
        (*batch), > 0.
    """

    def __init__(self, width: Tensor, unit: Tensor | None) -> None:
        self.unbounded = torch.isinf(width)
        self.width = torch.where(self.unbounded, torch.ones_like(width), width)
        self.unit = unit
        if unit is None:
            self.origin = torch.log(self.width)
            self.far_end = torch.where(self.unbounded, math.inf, torch.zeros_like(width))
        else:
            self.unit = torch.where(self.unbounded, unit, torch.minimum(unit, self.width))
            self.origin = torch.log(self.unit)
            self.far_end = torch.where(self.unbounded, math.inf, self.width / self.unit)

    def distance(self, x: Tensor) -> Tensor:
        """Distance at x."""
        if self.unit is None:
            return torch.where(self.unbounded, torch.exp(x), self.width * torch.sigmoid(x))
        beyond = softplus(x - torch.where(self.unbounded, 0.0, self.far_end), threshold=50.0)
        return self.unit * (softplus(x, threshold=50.0) - torch.where(self.unbounded, 0.0, beyond))

    def log_slope(self, x: Tensor) -> Tensor:
        """Log of the derivative of ``distance``."""
        if self.unit is None:
            return torch.where(self.unbounded, x, self.origin + logsigmoid(x) + logsigmoid(-x))
        end = torch.where(self.unbounded, 1.0, self.far_end)
        bounded = logsigmoid(end - x) + torch.log(-torch.expm1(-end))
        return self.origin + logsigmoid(x) + torch.where(self.unbounded, 0.0, bounded)

    def coordinate(self, distance: Tensor) -> Tensor:
        """Return x of a distance, kept inside the axis: a point to start a search from."""
        if self.unit is None:
            fraction = (distance / self.width).clamp(1e-300, 1.0 - 1e-12)
            return torch.where(
                self.unbounded, torch.log(distance.clamp_min(1e-300)), torch.log(fraction) - torch.log1p(-fraction)
            )
        y = torch.minimum((distance / self.unit).clamp_min(1e-300), self.far_end * (1.0 - 1e-12))
        gap = torch.where(self.unbounded, -1.0, y - self.far_end)
        return y + log1mexp(-y) - torch.where(self.unbounded, 0.0, log1mexp(gap))


def lognormal_nodes(log_a: Tensor, scale: Tensor, n: int, drop: float) -> tuple[Tensor, Tensor]:
    """Nodes for E[sigma(-a exp(scale * z))], z standard normal, with the window in closed form.

    Parameters
    ----------
    log_a : Tensor
        (*batch), log(|utility_diff|) + loc.
    scale : Tensor
        (*batch), > 0.
    n : int
        Nodes: with ``drop=26`` n = 32 gives 4e-13 (log P) and 2e-10 (gradients); n = 48 with 32: 1e-13.
    drop : float
        Nats at which the tails are cut.

    Returns
    -------
    tuple of Tensor
        z (n, *batch) and log(phi(z) dz) (n, *batch), both without gradient.
    """
    log_a, scale = torch.broadcast_tensors(log_a, scale)
    # the mode of -z^2/2 - a exp(scale z) is -W(a scale^2) / scale, W = Lambert's function: Newton on W + log W = c
    c = log_a + 2.0 * torch.log(scale)
    size = softplus(c, threshold=50.0)
    lambert = size * (1.0 - torch.log1p(size) / (2.0 + size))
    lambert = lambert * (1.0 + c - torch.log(lambert)) / (1.0 + lambert)
    mode = -lambert / scale
    reach = math.sqrt(2.0 * drop)
    # to the right the likelihood may cut sooner than the density; gradients weight by strength, which shifts a normal
    # density by one scale
    cut = (torch.log(drop + 3.0 + lambert / (scale * scale) + 0.5 * mode * mode) - log_a) / scale
    right = torch.minimum(mode + reach + scale, cut) * scale
    # no poles this side of log(pi / a): longer steps there, unless the window ends before
    poles_from = torch.minimum(math.log(math.pi) - 4.0 - log_a, right)
    u, log_step = left_stretched_trapezoid((mode - reach) * scale, right, poles_from, (2.0 * scale).clamp_min(1.0), n)
    z = u / scale
    return z, log_step - torch.log(scale) - 0.5 * z * z - 0.5 * math.log(2.0 * math.pi)


_FARTHEST = 8.3  # beyond it a standard normal has 1e-16 of its mass


def trapezoid_normal(num_nodes: int) -> tuple[Tensor, Tensor]:
    """Trapezoid rule for E f(z), z standard normal: equal steps h on [-L, L], L = min(8.3, sqrt(pi (n - 1))).

    For f analytic and bounded by B in |Im z| < a the error is about 2 B exp(a^2 / 2 - 2 pi a / h), geometric in 1 / h
    for every a; for an entire f of moderate growth exp(-2 pi^2 / h^2). What lies beyond L adds P(|z| > L): 1e-16 from
    n = 23 on, of the size of the other error (exp(-pi (n - 1) / 2) for a constant f) below.

    Parameters
    ----------
    num_nodes : int
        n >= 2.

    Returns
    -------
    tuple of Tensor
        z (n,) and log-weights (n,), weights summing to one.
    """
    reach = min(_FARTHEST, math.sqrt(math.pi * (num_nodes - 1)))
    z = torch.linspace(-reach, reach, num_nodes, dtype=torch.float64)
    return z, torch.log_softmax(-0.5 * z * z, 0)


def product_rule(z: Tensor, log_weight: Tensor, num_dims: int) -> tuple[Tensor, Tensor]:
    """All combinations of the nodes of a rule in M dimensions: nodes (n^M, M) and log-weights (n^M,)."""
    nodes = torch.cartesian_prod(*[z] * num_dims).reshape(-1, num_dims)
    return nodes, torch.cartesian_prod(*[log_weight] * num_dims).reshape(-1, num_dims).sum(-1)
