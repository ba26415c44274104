"""Seeded points for the accuracy bars, and the golden files made from them.

    python tests/oracle/generate.py            # writes tests/oracle/golden/*.npz
    python tests/oracle/generate.py gamma panel_normal

Points are doubles, taken as exact. Ranges are stated beside each generator; "log" means log-uniform.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mpmath
import numpy as np
from oracle import (
    FAMILIES,
    Kernel,
    Mixture,
    Reference,
    alternating,
    binary,
    choice_set,
    integrate,
    mixed,
    panel,
    ranking,
)

GOLDEN = Path(__file__).parent / "golden"
SEED = 20240607
Rng = np.random.Generator


@dataclass(frozen=True)
class Point:
    """`inputs`: utility differences or utilities; `choice`: y, the ys, an index or a ranking."""

    params: tuple[float, ...]
    inputs: tuple[float, ...]
    choice: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """A golden file: where its points come from and how they are computed."""

    family: str
    kind: str  # binary, panel, choice_set or ranking
    count: int
    points: Callable[[Rng], Point]
    method: str  # alternating or integrate


def log_uniform(rng: Rng, low: float, high: float) -> float:
    return float(10 ** rng.uniform(math.log10(low), math.log10(high)))


def sign(rng: Rng) -> float:
    return float(rng.choice([-1.0, 1.0]))


def coin(rng: Rng) -> int:
    return int(rng.integers(2))


def single(rng: Rng, params: tuple[float, ...], size: float) -> Point:
    return Point(params, (sign(rng) * size,), (coin(rng),))


# -- binary choices ----------------------------------------------------------------------------------


def gamma_point(rng: Rng) -> Point:
    """Concentration log 1e-3..1e4, rate log 1e-4..1e6, |delta| / rate log 1e-6..1e4."""
    rate = log_uniform(rng, 1e-4, 1e6)
    return single(rng, (log_uniform(rng, 1e-3, 1e4), rate), rate * log_uniform(rng, 1e-6, 1e4))


def gamma32_point(rng: Rng) -> Point:
    """As gamma, every number a float32."""
    point = gamma_point(rng)
    return Point(*(tuple(float(np.float32(v)) for v in x) for x in (point.params, point.inputs)), point.choice)


def lognormal_point(rng: Rng) -> Point:
    """loc -3..1, scale log .01..5, |delta| log 1e-3..1e3."""
    return single(rng, (rng.uniform(-3, 1), log_uniform(rng, 0.01, 5)), log_uniform(rng, 1e-3, 1e3))


def normal_point(rng: Rng) -> Point:
    """loc -3..3, scale log .01..5, |delta| log 1e-3..1e3."""
    return single(rng, (rng.uniform(-3, 3), log_uniform(rng, 0.01, 5)), log_uniform(rng, 1e-3, 1e3))


def weibull_point(rng: Rng) -> Point:
    """scale log .01..10, concentration log .3..20, |delta| log 1e-3..1e3."""
    return single(rng, (log_uniform(rng, 0.01, 10), log_uniform(rng, 0.3, 20)), log_uniform(rng, 1e-3, 1e3))


def generalized_gamma_point(rng: Rng) -> Point:
    """concentration log .1..50, scale log .01..10, power log .3..5, |delta| log 1e-3..1e3."""
    params = (log_uniform(rng, 0.1, 50), log_uniform(rng, 0.01, 10), log_uniform(rng, 0.3, 5))
    return single(rng, params, log_uniform(rng, 1e-3, 1e3))


def exponential_point(rng: Rng) -> Point:
    """rate log 1e-4..1e6, |delta| / rate log 1e-6..1e4."""
    rate = log_uniform(rng, 1e-4, 1e6)
    return single(rng, (rate,), rate * log_uniform(rng, 1e-6, 1e4))


def inverse_gaussian_point(rng: Rng) -> Point:
    """mean log 1e-3..1e3, concentration / mean log 1e-4..1e4, |delta| mean log 1e-6..1e4."""
    mean = log_uniform(rng, 1e-3, 1e3)
    return single(rng, (mean, mean * log_uniform(rng, 1e-4, 1e4)), log_uniform(rng, 1e-6, 1e4) / mean)


def half_normal_point(rng: Rng) -> Point:
    """scale log 1e-3..1e3, |delta| scale log 1e-6..1e4."""
    scale = log_uniform(rng, 1e-3, 1e3)
    return single(rng, (scale,), log_uniform(rng, 1e-6, 1e4) / scale)


def truncated_normal_point(rng: Rng) -> Point:
    """scale log .01..10, loc -8..8 scales, low 0 or log .01..10 scales, high inf or log .1..10 scales above,
    |delta| scale log 1e-6..1e3."""
    scale = log_uniform(rng, 0.01, 10)
    low = coin(rng) * scale * log_uniform(rng, 0.01, 10)
    high = low + scale * log_uniform(rng, 0.1, 10) if coin(rng) else math.inf
    return single(rng, (scale * rng.uniform(-8, 8), scale, low, high), log_uniform(rng, 1e-6, 1e3) / scale)


def bounded_point(rng: Rng) -> Point:
    """low 0 (one in four) or log 1e-3..10, width log 1e-3..10, |delta| high log 1e-6..1e4."""
    low = 0.0 if rng.uniform() < 0.25 else log_uniform(rng, 1e-3, 10)
    high = low + log_uniform(rng, 1e-3, 10)
    return single(rng, (low, high), log_uniform(rng, 1e-6, 1e4) / high)


def bounded_signed_point(rng: Rng) -> Point:
    """low -(log .01..10), high log .01..10, |delta| log 1e-3..1e3."""
    bounds = (-log_uniform(rng, 0.01, 10), log_uniform(rng, 0.01, 10))
    return single(rng, bounds, log_uniform(rng, 1e-3, 1e3))


def truncated_normal_signed_point(rng: Rng) -> Point:
    """low -(log .1..10), high log .1..10 or inf, scale log .05..5, loc up to 8 scales outside,
    |delta| log 1e-3..1e3."""
    low, high = -log_uniform(rng, 0.1, 10), log_uniform(rng, 0.1, 10)
    scale = log_uniform(rng, 0.05, 5)
    loc = rng.uniform(low - 8 * scale, high + 8 * scale)
    return single(rng, (loc, scale, low, high if coin(rng) else math.inf), log_uniform(rng, 1e-3, 1e3))


def zero_inflated_gamma_point(rng: Rng) -> Point:
    """gate .01..0.99; the rest as gamma with concentration log .01..1e3."""
    params, _, _ = gamma_params(rng)
    return single(rng, (rng.uniform(0.01, 0.99), *params), params[1] * log_uniform(rng, 1e-6, 1e4))


def gamma_mixture_point(rng: Rng) -> Point:
    """weight .01..0.99, concentrations log .01..1e3, rates log .01..100, |delta| / first rate log 1e-6..1e4."""
    first, second = gamma_params(rng)[0], gamma_params(rng)[0]
    return single(rng, (rng.uniform(0.01, 0.99), *first, *second), first[1] * log_uniform(rng, 1e-6, 1e4))


def gaussian_uniform_mixture_point(rng: Rng) -> Point:
    """weight .01..0.99, inverse Gaussian and uniform as alone, |delta| that of the uniform."""
    gaussian, uniform = inverse_gaussian_point(rng), bounded_point(rng)
    return Point((rng.uniform(0.01, 0.99), *gaussian.params, *uniform.params), uniform.inputs, uniform.choice)


# -- several choices, several alternatives -----------------------------------------------------------


def lognormal_params(rng: Rng) -> tuple[tuple[float, ...], float, float]:
    loc, scale = rng.uniform(-3, 1), log_uniform(rng, 0.01, 5)
    return (loc, scale), math.exp(loc), math.exp(rng.normal(loc, scale))


def gamma_params(rng: Rng) -> tuple[tuple[float, ...], float, float]:
    k, rate = log_uniform(rng, 0.01, 1e3), log_uniform(rng, 1e-2, 1e2)
    return (k, rate), k / rate, rng.gamma(k) / rate


def normal_params(rng: Rng) -> tuple[tuple[float, ...], float, float]:
    loc, scale = rng.uniform(-3, 3), log_uniform(rng, 0.01, 5)
    return (loc, scale), max(abs(loc), scale), rng.normal(loc, scale)


MIXING = {"LogNormal": lognormal_params, "Gamma": gamma_params, "Normal": normal_params}


def short(values: np.ndarray) -> tuple[float, ...]:
    """Numbers of 24 bits: they pack well, and are doubles all the same."""
    return tuple(float(v) for v in np.float32(values))


def panel_point(family: str) -> Callable[[Rng], Point]:
    """T of 1, 2, 5, 20, 100, 200; |delta| typical strength log 1e-3..1e3, spread by exp(0, 1 or 3 N(0,1));
    outcomes drawn from the model, all expected, all surprising, or by coin."""

    def draw(rng: Rng) -> Point:
        params, typical, strength = MIXING[family](rng)
        length = int(rng.choice([1, 2, 5, 20, 100, 200]))
        spread = np.exp(rng.choice([0.0, 1.0, 3.0]) * rng.normal(size=length))
        direction = rng.choice([-1.0, 1.0], size=length)
        deltas = short(log_uniform(rng, 1e-3, 1e3) / typical * spread * direction)
        chance = 1 / (1 + np.exp(-np.clip(strength * np.array(deltas), -700, 700)))
        modelled = rng.uniform(size=length) < chance
        expected = np.array(deltas) > 0
        by_coin = rng.uniform(size=length) < 0.5
        ys = [modelled, modelled, expected, ~expected, by_coin][int(rng.integers(5))]
        return Point(params, deltas, tuple(int(y) for y in ys))

    return draw


def utilities(rng: Rng, count: int, typical: float) -> np.ndarray:
    """Spread log 1e-2..1e2 in units of 1 / typical strength, normal or heavy-tailed."""
    noise = rng.normal(size=count) * np.exp(rng.choice([0.0, 2.0]) * rng.normal(size=count))
    return np.array(short(log_uniform(rng, 1e-2, 1e2) / typical * noise))


def choice_set_point(family: str) -> Callable[[Rng], Point]:
    """J of 2, 3, 5, 10, 30, 100; the choice the best, the worst or any."""

    def draw(rng: Rng) -> Point:
        params, typical, _ = MIXING[family](rng)
        count = int(rng.choice([2, 3, 5, 10, 30, 100]))
        v = utilities(rng, count, typical)
        choice = [int(v.argmax()), int(v.argmin()), int(rng.integers(count))][int(rng.integers(3))]
        return Point(params, tuple(float(x) for x in v), (choice,))

    return draw


def ranking_point(family: str) -> Callable[[Rng], Point]:
    """J of 2, 3, 5, 8, 10; best first, worst first, drawn from the model or shuffled."""

    def draw(rng: Rng) -> Point:
        params, typical, strength = MIXING[family](rng)
        count = int(rng.choice([2, 3, 5, 8, 10]))
        v = utilities(rng, count, typical)
        drawn = np.argsort(-(strength * v + rng.gumbel(size=count)))
        order = [np.argsort(-v), np.argsort(v), drawn, rng.permutation(count)][int(rng.integers(4))]
        return Point(params, tuple(float(x) for x in v), tuple(int(i) for i in order))

    return draw


GROUPS = {
    "gamma": Group("Gamma", "binary", 400, gamma_point, "alternating"),
    "gamma_float32": Group("Gamma", "binary", 200, gamma32_point, "alternating"),
    "exponential": Group("Exponential", "binary", 100, exponential_point, "alternating"),
    "inverse_gaussian": Group("InverseGaussian", "binary", 100, inverse_gaussian_point, "alternating"),
    "half_normal": Group("HalfNormal", "binary", 100, half_normal_point, "alternating"),
    "truncated_normal": Group("TruncatedNormal", "binary", 100, truncated_normal_point, "alternating"),
    "uniform": Group("Uniform", "binary", 100, bounded_point, "alternating"),
    "triangular": Group("Triangular", "binary", 100, bounded_point, "alternating"),
    "zero_inflated_gamma": Group("ZeroInflatedGamma", "binary", 60, zero_inflated_gamma_point, "alternating"),
    "gamma_mixture": Group("GammaMixture", "binary", 60, gamma_mixture_point, "alternating"),
    "gaussian_uniform_mixture": Group(
        "GaussianUniformMixture", "binary", 60, gaussian_uniform_mixture_point, "alternating"
    ),
    "lognormal": Group("LogNormal", "binary", 300, lognormal_point, "integrate"),
    "normal": Group("Normal", "binary", 150, normal_point, "integrate"),
    "weibull": Group("Weibull", "binary", 150, weibull_point, "integrate"),
    "generalized_gamma": Group("GeneralizedGamma", "binary", 150, generalized_gamma_point, "integrate"),
    "uniform_signed": Group("Uniform", "binary", 80, bounded_signed_point, "integrate"),
    "triangular_signed": Group("Triangular", "binary", 80, bounded_signed_point, "integrate"),
    "truncated_normal_signed": Group("TruncatedNormal", "binary", 80, truncated_normal_signed_point, "integrate"),
    **{f"panel_{f.lower()}": Group(f, "panel", 60, panel_point(f), "integrate") for f in MIXING},
    **{f"choice_set_{f.lower()}": Group(f, "choice_set", 60, choice_set_point(f), "integrate") for f in MIXING},
    **{f"ranking_{f.lower()}": Group(f, "ranking", 60, ranking_point(f), "integrate") for f in MIXING},
}


def points(name: str, count: int | None = None, seed: int = SEED) -> Iterator[Point]:
    """The first `count` points of a group; the golden ones are the first of the default seed."""
    group = GROUPS[name]
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    for _ in range(group.count if count is None else count):
        yield group.points(rng)


def kernel(kind: str, point: Point) -> Kernel:
    if kind == "binary":
        return binary(point.inputs[0], point.choice[0])
    if kind == "panel":
        return panel(point.inputs, point.choice)
    if kind == "choice_set":
        return choice_set(point.inputs, point.choice[0])
    return ranking(point.inputs, point.choice)


def reference(group: Group, point: Point, stable: float = 1e-18) -> Reference:
    """The reference by the group's method."""
    family = FAMILIES[group.family]
    if group.method == "alternating":
        return alternating(family, point.params, point.inputs[0], point.choice[0])
    return integrate(family, point.params, kernel(group.kind, point), stable=stable)


def checked(name: str, point: Point) -> tuple[Reference, float]:
    """The reference, and for the alternating sum its distance from `integrate`."""
    group = GROUPS[name]
    value = reference(group, point)
    if group.method == "integrate":
        return value, 0.0
    family = FAMILIES[group.family]
    other = (mixed if issubclass(family, Mixture) else integrate)(family, point.params, kernel(group.kind, point))
    pairs = [(value.log_prob, other.log_prob, abs(value.log_prob))]
    pairs += zip(value.by_params, other.by_params, value.condition_params, strict=True)
    pairs += zip(value.by_inputs, other.by_inputs, value.condition_inputs, strict=True)
    distance = max(float(abs(a - b) / c) if c else float(abs(a - b)) for a, b, c in pairs)
    return value, distance


def arrays(rows: Sequence[Point], results: Sequence[Reference]) -> dict[str, np.ndarray]:
    """Points and references as tables; what varies in length by row is joined, `sizes` parts it again."""

    def table(field: str) -> np.ndarray:
        return np.array([[float(x) for x in getattr(r, field)] for r in results])

    def flat(field: str) -> np.ndarray:
        return np.array([float(x) for r in results for x in getattr(r, field)])

    return {
        "params": np.array([p.params for p in rows]),
        "sizes": np.array([len(p.inputs) for p in rows], dtype=np.int16),
        "inputs": np.concatenate([p.inputs for p in rows]),
        "choice": np.concatenate([p.choice for p in rows]).astype(np.int16),
        "log_prob": np.array([float(r.log_prob) for r in results]),
        "by_params": table("by_params"),
        "by_inputs": flat("by_inputs"),
        "condition_params": table("condition_params"),
        "condition_inputs": flat("condition_inputs").astype(np.float32).astype(np.float64),
    }


def write(name: str) -> None:
    group, rows = GROUPS[name], list(points(name))
    results = [checked(name, point) for point in rows]
    alternates = group.method == "alternating"
    difference = max(d for _, d in results) if alternates else None
    meta = {
        "family": group.family,
        "parameters": FAMILIES[group.family].names,
        "kind": group.kind,
        "ranges": (group.points.__doc__ or globals()[f"{group.kind}_point"].__doc__),
        "seed": SEED,
        "method": "alternating sum, 60 digits, 80 terms; every point also by the trapezoid rule"
        if alternates
        else "trapezoid rule, 40 digits, last halving changed less than 1e-18",
        "largest_difference_of_methods": difference,
        "versions": {
            "python": platform.python_version(),
            "mpmath": mpmath.__version__,
            "numpy": np.__version__,
        },
    }
    GOLDEN.mkdir(exist_ok=True)
    tables = arrays(rows, [r for r, _ in results])
    np.savez_compressed(GOLDEN / f"{name}.npz", meta=np.array(json.dumps(meta, indent=1)), **tables)
    print(f"{name}: {len(rows)} points, methods differ by {difference}", flush=True)


if __name__ == "__main__":
    for requested in sys.argv[1:] or GROUPS:
        write(requested)
