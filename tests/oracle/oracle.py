"""Reference values of mixed logit probabilities and their gradients, at high precision, with mpmath alone.

Independent of the package: nothing here imports it. Two methods, written so that they share nothing but the
formula of the family:

``alternating``   E sigma(-beta s) = sum_j (-1)^j L((j+1) s), L the Laplace transform of a nonnegative
                  strength, summed by Cohen, Rodriguez Villegas and Zagier (2000), Algorithm 1; 60 digits,
                  80 terms (truncation below 1e-60), each differentiated analytically. Binary choices only.
``integrate``     E[p(choice | beta)] by a trapezoid rule on an analytic coordinate, its step halved until
                  value and gradients are stable. Any family here, binary choices, panels, choice sets and
                  rankings. Gradients are means over the posterior of beta of d log(density * kernel).

``by_quad`` is a third, slower one for checks: mpmath.quad on the density itself, and central differences.

Notation: beta the strength; a kernel is a product of stages; at a stage the chosen item wins with probability
p = exp(beta v_c) / sum_j exp(beta v_j). Parameters are doubles, taken as exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from mpmath import mp, mpf

Number = float | mpf
INF = math.inf

# ----------------------------------------------------------------------------------------------------
# Families. `log_density` is log p(beta). `moves(beta)` gives for each parameter the pair (score, d beta): the
# derivative of E h is E[h * score + h' * d beta], with whichever of the two suits the parameter. `laplace(t)`
# gives L(t), d log L / dt and d log L / d parameter. `center` is a typical strength, where the search for the
# mode starts.
# ----------------------------------------------------------------------------------------------------


class Family:
    names: tuple[str, ...]
    ordered: tuple[str, ...] = ()  # of the parameters done by score: those in which strength only grows, or shrinks

    def __init__(self, *values: Number) -> None:
        self.values = tuple(mpf(v) for v in values)
        self.prepare(*self.values)

    def prepare(self, *values: mpf) -> None:
        raise NotImplementedError

    def breakpoints(self) -> list[Number]:
        return [mpf(0), INF]

    def edges(self) -> dict[int, tuple[Number, mpf]]:
        """Parameters that cut the support: index -> (b, +-p(b)), d E h = +-p(b) (h(b) - E h)."""
        return {}


class Gamma(Family):
    names = ("concentration", "rate")

    def prepare(self, k, lam):
        self.k, self.lam = k, lam
        self.constant = k * mp.log(lam) - mp.loggamma(k)
        self.digamma = mp.digamma(k) - mp.log(lam)
        self.center, self.mean = k / lam, k / lam

    def log_density(self, x):
        return self.constant + (self.k - 1) * mp.log(x) - self.lam * x

    def moves(self, x):
        return [(mp.log(x) - self.digamma, 0), (0, -x / self.lam)]

    def laplace(self, t):
        log = mp.log1p(t / self.lam)
        slope = self.k / (self.lam + t)
        return mp.exp(-self.k * log), -slope, [-log, slope * t / self.lam]


class Exponential(Family):
    names = ("rate",)

    def prepare(self, lam):
        self.lam, self.center, self.mean = lam, 1 / lam, 1 / lam

    def log_density(self, x):
        return mp.log(self.lam) - self.lam * x

    def moves(self, x):
        return [(0, -x / self.lam)]

    def laplace(self, t):
        total = self.lam + t
        return self.lam / total, -1 / total, [t / (self.lam * total)]


class InverseGaussian(Family):
    names = ("mean", "concentration")

    def prepare(self, m, c):
        self.m, self.c = m, c
        self.center, self.mean = min(m, c), m

    def log_density(self, x):
        m, c = self.m, self.c
        return mp.log(c / (2 * mp.pi * x**3)) / 2 - c * (x - m) ** 2 / (2 * m**2 * x)

    def moves(self, x):
        m, c = self.m, self.c
        return [(c * (x - m) / m**3, 0), (1 / (2 * c) - (x - m) ** 2 / (2 * m**2 * x), 0)]

    def laplace(self, t):
        m, c = self.m, self.c
        root = mp.sqrt(1 + 2 * m**2 * t / c)
        by_mean = -c * (1 - root) / m**2 - 2 * t / root
        by_concentration = (1 - root) / m + m * t / (c * root)
        return mp.exp(c / m * (1 - root)), -m / root, [by_mean, by_concentration]


class HalfNormal(Family):
    names = ("scale",)

    def prepare(self, s):
        self.s, self.center, self.mean = s, s, s * mp.sqrt(2 / mp.pi)

    def log_density(self, x):
        return mp.log(2 / mp.pi) / 2 - mp.log(self.s) - (x / self.s) ** 2 / 2

    def moves(self, x):
        return [(0, x / self.s)]

    def laplace(self, t):
        u = self.s * t
        tail, growth = mp.erfc(u / mp.sqrt(2)), mp.exp(u**2 / 2)
        slope = u - mp.sqrt(2 / mp.pi) / (growth * tail)
        return growth * tail, self.s * slope, [t * slope]


def normal_mass(a: Number, b: Number) -> mpf:
    """Phi(b) - Phi(a) from whichever tail keeps its digits."""
    root = mp.sqrt(2)
    if a > 0:
        return (mp.erfc(a / root) - (0 if b == INF else mp.erfc(b / root))) / 2
    if b < 0:
        return (mp.erfc(-b / root) - mp.erfc(-a / root)) / 2
    return ((1 if b == INF else mp.erf(b / root)) - mp.erf(a / root)) / 2


class TruncatedNormal(Family):
    names = ("loc", "scale", "low", "high")
    ordered = ("loc", "low", "high")

    def prepare(self, loc, scale, low, high):
        self.loc, self.scale, self.low = loc, scale, low
        self.high = INF if mp.isinf(high) else high
        self.mass = normal_mass(*self.standard(mpf(0)))
        self.center = max(loc, low + scale / 10)
        self.at_low, self.at_high = (0 if x == INF else mp.exp(self.log_density(x)) for x in (low, self.high))
        self.mean = loc + scale**2 * (self.at_low - self.at_high)

    def standard(self, t):
        """Bounds on the standard normal axis after tilting by exp(-t beta)."""
        shift = self.scale * t
        upper = INF if self.high == INF else (self.high - self.loc) / self.scale + shift
        return (self.low - self.loc) / self.scale + shift, upper

    def breakpoints(self):
        return [self.low, mpf(0), self.high] if self.low < 0 < self.high else [self.low, self.high]

    def log_density(self, x):
        z = (x - self.loc) / self.scale
        return -(z**2) / 2 - mp.log(self.scale * mp.sqrt(2 * mp.pi) * self.mass)

    def moves(self, x):
        z = (x - self.loc) / self.scale
        z_low, z_high = self.standard(mpf(0))
        p_low, p_high = self.at_low, self.at_high
        by_loc = z / self.scale - (p_low - p_high)
        by_scale = (z**2 - 1) / self.scale - p_low * z_low + (0 if z_high == INF else p_high * z_high)
        return [(by_loc, 0), (by_scale, 0), (0, 0), (0, 0)]

    def edges(self):
        return {2: (self.low, -self.at_low), 3: (self.high, self.at_high)}

    def laplace(self, t):
        s = self.scale
        a, b = self.standard(t)
        a0, b0 = self.standard(mpf(0))
        mass = normal_mass(a, b)

        def pull(x, total):
            return 0 if x == INF else mp.npdf(x) / total

        pa, pb, pa0, pb0 = pull(a, mass), pull(b, mass), pull(a0, self.mass), pull(b0, self.mass)
        value = mp.exp(-self.loc * t + (s * t) ** 2 / 2) * mass / self.mass
        by_t = -self.loc + s**2 * t + s * (pb - pa)
        by_loc = -t + ((pa - pb) - (pa0 - pb0)) / s

        def stretch(x, x0, p, p0):  # d x / d scale = t - x0 / scale
            return 0 if x == INF else p * (t - x0 / s) + p0 * x0 / s

        by_scale = s * t**2 + stretch(b, b0, pb, pb0) - stretch(a, a0, pa, pa0)
        return value, by_t, [by_loc, by_scale, (pa0 - pa) / s, (pb - pb0) / s]


class Uniform(Family):
    names = ("low", "high")

    def prepare(self, low, high):
        self.low, self.high, self.width = low, high, high - low
        self.mean = self.center = (low + high) / 2

    def breakpoints(self):
        return sorted({self.low, self.high} | ({mpf(0)} if self.low < 0 < self.high else set()))

    def log_density(self, x):
        return -mp.log(self.width)

    def moves(self, x):
        return [(0, (self.high - x) / self.width), (0, (x - self.low) / self.width)]

    def laplace(self, t):
        at_low, at_high = mp.exp(-self.low * t), mp.exp(-self.high * t)
        gap = at_low - at_high
        by_low = 1 / self.width - t * at_low / gap
        by_high = t * at_high / gap - 1 / self.width
        by_t = (self.high * at_high - self.low * at_low) / gap - 1 / t
        return gap / (self.width * t), by_t, [by_low, by_high]


class Triangular(Uniform):
    """Symmetric on [low, high]: the sum of two independent uniforms on [low/2, high/2]."""

    def prepare(self, low, high):
        super().prepare(low, high)
        self.half = Uniform(low / 2, high / 2)

    def breakpoints(self):
        return sorted({*super().breakpoints(), self.mean})

    def log_density(self, x):
        return mp.log(4 * min(x - self.low, self.high - x) / self.width**2)

    def laplace(self, t):
        value, by_t, by_bounds = self.half.laplace(t)
        return value**2, 2 * by_t, by_bounds


class Normal(Family):
    names = ("loc", "scale")

    def prepare(self, loc, scale):
        self.loc, self.scale, self.center, self.mean = loc, scale, loc, loc

    def breakpoints(self):
        return [-INF, INF]

    def log_density(self, x):
        return -(((x - self.loc) / self.scale) ** 2) / 2 - mp.log(self.scale * mp.sqrt(2 * mp.pi))

    def moves(self, x):
        return [(0, 1), (0, (x - self.loc) / self.scale)]


class LogNormal(Family):
    names = ("loc", "scale")

    def prepare(self, loc, scale):
        self.loc, self.scale, self.center = loc, scale, mp.exp(loc)
        self.mean = mp.exp(loc + scale**2 / 2)

    def log_density(self, x):
        log = mp.log(x)
        return -(((log - self.loc) / self.scale) ** 2) / 2 - log - mp.log(self.scale * mp.sqrt(2 * mp.pi))

    def moves(self, x):
        return [(0, x), (0, x * (mp.log(x) - self.loc) / self.scale)]


class GeneralizedGamma(Family):
    """beta = scale * G^(1/power), G ~ Gamma(concentration, 1)."""

    names = ("concentration", "scale", "power")
    ordered = ("concentration",)

    def prepare(self, a, scale, c):
        self.a, self.scale, self.c = a, scale, c
        self.log_scale, self.digamma = mp.log(scale), mp.digamma(a)
        self.constant = mp.log(c) - mp.loggamma(a)
        self.center = scale * a ** (1 / c)
        self.mean = scale * mp.exp(mp.loggamma(a + 1 / c) - mp.loggamma(a))

    def log_density(self, x):
        log = mp.log(x)
        u = self.c * (log - self.log_scale)
        return self.constant - log + self.a * u - mp.exp(u)

    def moves(self, x):
        log = mp.log(x) - self.log_scale
        return [(self.c * log - self.digamma, 0), (0, x / self.scale), (0, -x * log / self.c)]


class Weibull(GeneralizedGamma):
    names = ("scale", "concentration")
    ordered = ()

    def prepare(self, scale, c):
        super().prepare(mpf(1), scale, c)

    def moves(self, x):
        return super().moves(x)[1:]


class AtZero(Family):
    """A point mass: a strength of 0."""

    names = ()

    def prepare(self):
        self.mean = mpf(0)

    def laplace(self, t):
        return mpf(1), mpf(0), []


class Mixture(Family):
    """weight * the first part + (1 - weight) * the second. For the alternating sum, and `mixed` beside it."""

    parts: tuple[type[Family], type[Family]]

    def prepare(self, weight, *values):
        cut = len(self.parts[0].names)
        self.weights = (weight, 1 - weight)
        self.components = (self.parts[0](*values[:cut]), self.parts[1](*values[cut:]))
        self.mean = mp.fdot(self.weights, [part.mean for part in self.components])

    def laplace(self, t):
        parts = [(w, *part.laplace(t)) for w, part in zip(self.weights, self.components, strict=True)]
        total = mp.fsum(w * value for w, value, _, _ in parts)
        by_t = mp.fsum(w * value * slope for w, value, slope, _ in parts) / total
        by_weight = (parts[0][1] - parts[1][1]) / total
        return total, by_t, [by_weight, *(w * value * g / total for w, value, _, by in parts for g in by)]


class ZeroInflatedGamma(Mixture):
    names = ("gate", "concentration", "rate")
    parts = (AtZero, Gamma)


class GammaMixture(Mixture):
    names = ("weight", "concentration", "rate", "concentration_2", "rate_2")
    parts = (Gamma, Gamma)


class GaussianUniformMixture(Mixture):
    names = ("weight", "mean", "concentration", "low", "high")
    parts = (InverseGaussian, Uniform)


FAMILIES = {
    cls.__name__: cls
    for cls in (
        *(Gamma, Exponential, InverseGaussian, HalfNormal, TruncatedNormal, Uniform, Triangular),
        *(ZeroInflatedGamma, GammaMixture, GaussianUniformMixture),
        *(Normal, LogNormal, Weibull, GeneralizedGamma),
    )
}

# ----------------------------------------------------------------------------------------------------
# Kernels: p(choice | beta) as a product of stages.
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """A product of stages over items of known utility.

    items : utilities, the inputs by which the gradient is taken.
    stages : per stage the index of the chosen item and of those it beats; index -1 is an item of utility 0.
    """

    items: tuple[Number, ...]
    stages: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def gaps(self) -> list[mpf]:
        """|utility of the chosen item - utility of a beaten one|, those that are not 0."""
        value = [*(mpf(v) for v in self.items), mpf(0)]
        gaps = (abs(value[chosen] - value[j]) for chosen, beaten in self.stages for j in beaten)
        return [gap for gap in gaps if gap > 0]

    def __call__(self, beta: mpf, complement: bool) -> tuple[mpf, mpf, list[mpf]]:
        """h(beta), d log h / d beta, d log h / d items; h is 1 - p(choice | beta) for the complement."""
        value = [*(mpf(v) for v in self.items), mpf(0)]
        power = [mp.exp(beta * v) for v in value]
        hit, miss, slope, pulls = mpf(1), mpf(0), mpf(0), [mpf(0)] * len(value)
        for chosen, beaten in self.stages:
            others = mp.fsum(power[j] for j in beaten)
            total = power[chosen] + others
            miss += hit * others / total  # 1 - prod(1 - q) without cancellation
            hit *= power[chosen] / total
            pulls[chosen] += beta * others / total
            for j in beaten:
                share = power[j] / total
                slope += share * (value[chosen] - value[j])
                pulls[j] -= beta * share
        pulls.pop()
        if complement:
            odds = -hit / miss
            return miss, odds * slope, [odds * pull for pull in pulls]
        return hit, slope, pulls


def binary(delta: Number, y: int) -> Kernel:
    return panel([delta], [y])


def panel(deltas: Sequence[Number], ys: Sequence[int]) -> Kernel:
    return Kernel(tuple(deltas), tuple((t, (-1,)) if y else (-1, (t,)) for t, y in enumerate(ys)))


def choice_set(utilities: Sequence[Number], y: int) -> Kernel:
    return Kernel(tuple(utilities), ((y, tuple(j for j in range(len(utilities)) if j != y)),))


def ranking(utilities: Sequence[Number], order: Sequence[int]) -> Kernel:
    """Plackett-Luce: `order` lists indices best first."""
    return Kernel(tuple(utilities), tuple((order[i], tuple(order[i + 1 :])) for i in range(len(order) - 1)))


# ----------------------------------------------------------------------------------------------------
# Results
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """log P, its gradients by the mixing's parameters and by the inputs.

    condition_* is the gradient with every contribution taken in absolute value (of a term of the alternating sum
    of 22 terms, or of a strength): what any sum has to add up. Where it exceeds the gradient by far, contributions
    cancel, and a small relative error of the gradient cannot be had.
    """

    log_prob: mpf
    by_params: tuple[mpf, ...]
    by_inputs: tuple[mpf, ...]
    condition_params: tuple[mpf, ...]
    condition_inputs: tuple[mpf, ...]


# ----------------------------------------------------------------------------------------------------
# Method 1: alternating sum
# ----------------------------------------------------------------------------------------------------


@cache
def alternating_weights(terms: int, digits: int) -> tuple[mpf, ...]:
    """w with sum_j w_j a_j ~ sum_j (-1)^j a_j for totally monotone a."""
    with mp.workdps(digits):
        d = (3 + mp.sqrt(8)) ** terms
        d = (d + 1 / d) / 2
        b, c, weights = mpf(-1), -d, []
        for k in range(terms):
            c = b - c
            weights.append(c / d)
            b *= mpf((k + terms) * (k - terms)) / ((k + mpf(1) / 2) * (k + 1))
    return tuple(weights)


def alternating(
    family: type[Family], params: Sequence[Number], delta: Number, y: int, digits: int = 60, terms: int = 80
) -> Reference:
    """Binary choice, nonnegative strength."""
    with mp.workdps(digits + 15):
        mixing, s = family(*params), abs(mpf(delta))
        side = 1 if delta >= 0 else -1
        if s == 0:
            zero = (mpf(0),) * len(params)
            return Reference(-mp.log(2), zero, ((2 * y - 1) * mixing.mean / 2,), zero, (mixing.mean / 2,))
        total, sums, scale = mpf(0), [mpf(0)] * (1 + len(params)), [mpf(0)] * (1 + len(params))
        in_doubles = [abs(w) for w in alternating_weights(22, 20)]  # as many terms as double precision asks for
        for j, weight in enumerate(alternating_weights(terms, digits + 15), start=1):
            value, slope, slopes = mixing.laplace(j * s)
            total += weight * value
            contributions = [value * x for x in (*slopes, slope * j)]
            sums = [old + weight * new for old, new in zip(sums, contributions, strict=True)]
            if j <= len(in_doubles):
                size = in_doubles[j - 1]
                scale = [old + size * abs(new) for old, new in zip(scale, contributions, strict=True)]
        if issubclass(family, Mixture):  # by the weight: a difference of two expectations
            scale[0] = 2 * total + (1 - 2 * mixing.weights[0]) * sums[0]
        wins = (delta > 0) == bool(y)
        log_prob = mp.log1p(-total) if wins else mp.log(total)
        factor = -1 / (1 - total) if wins else 1 / total
        *by_params, by_delta = (factor * g for g in sums)
        *condition, condition_delta = (abs(factor) * g for g in scale)
        return Reference(log_prob, tuple(by_params), (side * by_delta,), tuple(condition), (condition_delta,))


# ----------------------------------------------------------------------------------------------------
# Method 2: trapezoid rule, step halved until stable
# ----------------------------------------------------------------------------------------------------

Map = Callable[[mpf], tuple[mpf, mpf]]  # coordinate -> (beta, d beta / d coordinate)


def whole_line(unit: mpf) -> Map:
    """beta = unit * sinh(v): the kernel's poles, |Im beta| >= unit, stay off the strip |Im v| < pi/2."""

    def at(v):
        grow = mp.exp(v)
        return unit * (grow - 1 / grow) / 2, unit * (grow + 1 / grow) / 2

    return at


def half_line(start: mpf, unit: mpf) -> Map:
    """beta = start + unit * exp(v - exp(-v)): log(beta) to the right, doubly exponential to the start."""

    def at(v):
        shrink = mp.exp(-v)
        offset = unit * mp.exp(v - shrink)
        return start + offset, offset * (1 + shrink)

    return at


def interval(a: mpf, b: mpf) -> Map:
    """Tanh-sinh."""

    def at(v):
        grow = mp.exp(v)
        odds = mp.exp(mp.pi * (grow - 1 / grow) / 2)
        slope = (b - a) * odds / (1 + odds) ** 2 * mp.pi * (grow + 1 / grow) / 2
        beta = a + (b - a) * odds / (1 + odds) if odds < 1 else b - (b - a) / (1 + odds)
        return beta, slope

    return at


def _first_guess(a: Number, b: Number, center: mpf, gaps: Sequence[mpf], unit: mpf) -> tuple[float, float]:
    """A range of the coordinate that reaches from the prior's centre to where the kernel saturates."""
    scales = [1 / (4 * mp.fsum(gaps)), 50 / min(gaps)]
    if a == -INF:
        points = [center, scales[1], -scales[1]]
        marks = [float(mp.asinh(x / unit)) for x in points]
    elif b == INF:
        marks = []
        for x in (*scales, max(center - a, unit * mpf(10) ** -8)):
            w = float(mp.log(x / unit))
            marks.append(w if w > 0 else -math.log1p(-w))  # about the inverse of v - exp(-v)
    else:
        marks = [-3.5, 3.5]
    return min(marks) - 1, max(marks) + 1


def _window(log_g: Callable[[float], float], low: float, high: float, drop: float) -> tuple[float, float, float]:
    """The coordinates between which log g is within `drop` of its maximum, and the maximum.

    log g has one mode or a few broad ones: a grid finds the best, golden section sharpens it.
    """
    count = 64
    while True:
        step = (high - low) / count
        grid = [low + i * step for i in range(count + 1)]
        values = [log_g(v) for v in grid]
        best = max(range(count + 1), key=values.__getitem__)
        if 0 < best < count or high - low > 1e4:
            break
        low, high = (low - (high - low), high) if best == 0 else (low, high + (high - low))
    mode, top = grid[best], values[best]
    left, right = grid[max(best - 1, 0)], grid[min(best + 1, count)]
    ratio = (math.sqrt(5) - 1) / 2
    while min(log_g(left), log_g(right)) < top - 1 and right - left > 1e-9 * (1 + abs(mode)):
        a, b = right - ratio * (right - left), left + ratio * (right - left)
        fa, fb = log_g(a), log_g(b)
        if max(fa, fb) > top:
            mode, top = (a, fa) if fa > fb else (b, fb)
        left, right = (left, b) if fa > fb else (a, right)
    start = max(right - left, 1e-12 * (1 + abs(mode)))

    def edge(direction: int) -> float:
        near, far = mode, mode + direction * start
        outer = [v for v, f in zip(grid, values, strict=True) if f > top - drop and (v - mode) * direction > 0]
        if outer:
            near = outer[-1 if direction > 0 else 0]
            far = near + direction * start
        while log_g(far) > top - drop:
            near, far = far, far + 2 * (far - mode)
        for _ in range(5):
            middle = (near + far) / 2
            near, far = (middle, far) if log_g(middle) > top - drop else (near, middle)
        return far

    return edge(-1), edge(1), top


def integrate(
    family: type[Family],
    params: Sequence[Number],
    kernel: Kernel,
    digits: int = 40,
    stable: float = 1e-18,
) -> Reference:
    """Any family and kernel; `stable` bounds the last change, relative to the contributions' absolute sum.

    The error falls like the square of the last change, as the rule converges geometrically. The integrand is
    cut where it falls below exp(-90) of its maximum. With several inputs that becomes exp(-720): the gradient
    by one input may come from strengths that matter to nothing else, such as the few under which an easy
    choice is not.
    """
    drop = 90.0 if len(kernel.items) == 1 else 720.0
    with mp.workdps(digits):
        if not kernel.gaps:
            raise ValueError("got a kernel without any difference of utility; expected one at least")
        coarse, _ = _integrate(family, params, kernel, False, 1e-3, 12.0, watch=1)
        complement = coarse[0] > 0.5
        sums, scale = _integrate(family, params, kernel, complement, stable, drop)
        total = sums[0]
        log_prob = mp.log1p(-total) if complement else mp.log(total)
        factor = -1 / (1 - total) if complement else 1 / total
        count = len(params) + 1
        gradient = tuple(factor * g for g in sums[1:])
        condition = [abs(factor) * g for g in scale[1:]]
        if len(kernel.items) == 1:  # the kernel is monotone: the gradient has one sign, nothing need cancel
            for i, name in enumerate(family.names):
                condition[i] = abs(gradient[i]) if name in family.ordered else condition[i]
        return Reference(
            log_prob,
            gradient[: count - 1],
            gradient[count - 1 :],
            tuple(condition[: count - 1]),
            tuple(condition[count - 1 :]),
        )


def mixed(family: type[Mixture], params: Sequence[Number], kernel: Kernel, digits: int = 40) -> Reference:
    """A mixture from `integrate` of its parts: a check of its alternating sum. Conditions are not given."""
    with mp.workdps(digits):
        mixing = family(*params)
        parts = [
            Reference(-mp.log(2), (), (mpf(0),), (), ())
            if isinstance(part, AtZero)
            else integrate(type(part), part.values, kernel, digits)
            for part in mixing.components
        ]
        miss = mp.fsum(-w * mp.expm1(part.log_prob) for w, part in zip(mixing.weights, parts, strict=True))
        chances = [mp.exp(part.log_prob) for part in parts]
        chance = mp.fdot(mixing.weights, chances)
        shares = [w * p / chance for w, p in zip(mixing.weights, chances, strict=True)]
        if chance < 0.5:
            log_prob, by_weight = mp.log(chance), (chances[0] - chances[1]) / chance
        else:  # chances near 1 differ by their misses
            log_prob = mp.log1p(-miss)
            by_weight = (mp.expm1(parts[0].log_prob) - mp.expm1(parts[1].log_prob)) / chance
        by_params = [share * g for share, part in zip(shares, parts, strict=True) for g in part.by_params]
        by_input = mp.fsum(share * part.by_inputs[0] for share, part in zip(shares, parts, strict=True))
        return Reference(log_prob, (by_weight, *by_params), (by_input,), (), ())


def _integrate(family, params, kernel, complement, stable, drop, watch=None):
    """E h and its derivatives, and the same sums over absolute values, stable in the first `watch`."""
    mixing = family(*params)
    gaps = kernel.gaps
    unit = 1 / max(gaps)
    ends = mixing.breakpoints()
    pieces = []
    for a, b in pairwise(ends):
        at = whole_line(unit) if a == -INF else half_line(a, unit) if b == INF else interval(a, b)

        def log_g(v, at=at):
            with mp.workdps(20):
                beta, slope = at(mpf(v))
                return float(mixing.log_density(beta) + mp.log(slope) + mp.log(kernel(beta, complement)[0]))

        pieces.append((at, *_window(log_g, *_first_guess(a, b, mixing.center, gaps, unit), drop)))
    top = max(piece[3] for piece in pieces)
    pieces = [piece[:3] for piece in pieces if piece[3] > top - drop]

    def contributions(at, v):
        beta, slope = at(v)
        h, by_beta, by_items = kernel(beta, complement)
        weight = h * slope * mp.exp(mixing.log_density(beta))
        terms = [score + by_beta * move for score, move in mixing.moves(beta)] + by_items
        return [weight] + [weight * term for term in terms]

    size = 1 + len(params) + len(kernel.items)
    steps = [(mpf(high) - mpf(low)) / 16 for _, low, high in pieces]
    sums = [[mpf(0)] * size for _ in pieces]
    scales = [[mpf(0)] * size for _ in pieces]
    previous = None
    for level in range(14):
        total, scale = [mpf(0)] * size, [mpf(0)] * size
        for p, (at, low, _high) in enumerate(pieces):
            if level:
                steps[p] /= 2
            count = 16 * 2**level
            for i in range(0, count + 1) if level == 0 else range(1, count, 2):
                for j, term in enumerate(contributions(at, mpf(low) + i * steps[p])):
                    sums[p][j] += term
                    scales[p][j] += abs(term)
            total = [t + steps[p] * x for t, x in zip(total, sums[p], strict=True)]
            scale = [t + steps[p] * x for t, x in zip(scale, scales[p], strict=True)]
        for i, (end, density) in mixing.edges().items():
            total[1 + i] = density * (kernel(end, complement)[0] - total[0]) if density else mpf(0)
            scale[1 + i] = abs(total[1 + i])
        floor = mpf(10) ** -310 * scale[0]  # below any double once divided by E h
        if previous and all(
            abs(x - y) <= stable * z + floor for x, y, z in zip(total[:watch], previous, scale, strict=False)
        ):
            return total, scale
        previous = total
    raise ArithmeticError(f"not stable after {level} halvings: {family.__name__}{tuple(params)}, {kernel}")


# ----------------------------------------------------------------------------------------------------
# Method 3, for checks: mpmath.quad and central differences
# ----------------------------------------------------------------------------------------------------


def by_quad(family: type[Family], params: Sequence[Number], kernel: Kernel, digits: int = 30) -> Reference:
    """Points of moderate size only. Differences of step 1e-9: about 16 digits of the gradient."""
    with mp.workdps(digits):

        def log_prob(values, items):
            mixing, shifted = family(*values), Kernel(tuple(items), kernel.stages)
            points = set(mixing.breakpoints())
            around = [float(mixing.center), *(float(1 / gap) for gap in kernel.gaps)]
            marks = {abs(x) * 10.0**e for x in around for e in (-2, -1, -0.3, 0.3, 0.7, 1.3)}
            points |= {s * m for m in marks for s in (1, -1) if min(points) < s * m < max(points)}

            def integrand(beta):
                return mp.exp(mixing.log_density(beta)) * shifted(beta, complement)[0]

            total = mp.quad(integrand, sorted(points))
            return mp.log1p(-total) if complement else mp.log(total)

        complement = False
        complement = log_prob(params, kernel.items) > mp.log(0.5)
        values, items, h = [mpf(p) for p in params], [mpf(v) for v in kernel.items], mpf(10) ** -9

        def slope(i):
            out = []
            for sign in (1, -1):
                moved = [*values, *items]
                moved[i] += sign * h * max(1, abs(moved[i]))
                out.append(log_prob(moved[: len(values)], moved[len(values) :]))
            return (out[0] - out[1]) / (2 * h * max(1, abs([*values, *items][i])))

        gradient = [mpf(0) if mp.isinf(x) else slope(i) for i, x in enumerate([*values, *items])]
        by_params, by_items = tuple(gradient[: len(values)]), tuple(gradient[len(values) :])
        return Reference(log_prob(values, items), by_params, by_items, (), ())
