"""The oracle against itself, mpmath.quad and elementary formulas. Nothing of the package is used."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from mpmath import mp, mpf

sys.path.insert(0, str(Path(__file__).parent))  # the oracle is a script's neighbour, not an installed module

import generate
import oracle
from oracle import INF, alternating, binary, by_quad, choice_set, integrate, panel, ranking


def worst(a: oracle.Reference, b: oracle.Reference) -> float:
    pairs = zip((a.log_prob, *a.by_params, *a.by_inputs), (b.log_prob, *b.by_params, *b.by_inputs), strict=True)
    return max(float(abs(x - y) / abs(y)) if y else float(abs(x)) for x, y in pairs)


TWO_METHODS = [
    ("Gamma", (2.0, 16.7), 1.5),
    ("Gamma", (0.01, 3.0), -40.0),
    ("Gamma", (1e-3, 1e6), 1e6),
    ("Gamma", (5000.0, 1e3), -2.0),
    ("Exponential", (3.0,), -4.0),
    ("InverseGaussian", (2.0, 0.5), -3.0),
    ("InverseGaussian", (0.3, 20.0), 300.0),
    ("HalfNormal", (2.0,), -100.0),
    ("TruncatedNormal", (-1.0, 0.5, 0.2, 2.0), 3.0),
    ("TruncatedNormal", (1.0, 0.5, 0.2, INF), -30.0),
    ("Uniform", (0.5, 2.0), -7.0),
    ("Triangular", (0.0, 2.0), 700.0),
]


@pytest.mark.parametrize("y", [0, 1])
@pytest.mark.parametrize("name, params, delta", TWO_METHODS)
def test_alternating_sum_agrees_with_trapezoid_rule(name, params, delta, y):
    family = oracle.FAMILIES[name]
    # 1e-20: the trapezoid rule stops when a halving moves it by 1e-18; the error is then about its square.
    assert worst(alternating(family, params, delta, y), integrate(family, params, binary(delta, y))) < 1e-20


QUAD = [
    ("LogNormal", (-2.3, 0.6), binary(-50.0, 1)),
    ("LogNormal", (0.5, 1.5), panel([1.0, -0.5], [1, 1])),
    ("Normal", (0.5, 2.0), binary(3.0, 1)),
    ("Normal", (-0.5, 1.0), choice_set([0.3, -1.0, 0.0], 1)),
    ("Weibull", (2.0, 1.5), binary(3.0, 0)),
    ("GeneralizedGamma", (2.0, 0.5, 1.3), ranking([0.3, -1.0, 2.0], [2, 0, 1])),
    ("Gamma", (2.0, 1.0), panel([4.0, 5.0], [1, 1])),
    ("Uniform", (-1.0, 2.0), binary(3.0, 1)),
    ("Triangular", (-1.0, 2.0), binary(-3.0, 1)),
    ("TruncatedNormal", (0.5, 1.0, -1.0, 2.0), binary(2.0, 0)),
    ("TruncatedNormal", (-0.5, 1.0, -1.0, INF), binary(2.0, 1)),
]


@pytest.mark.parametrize("name, params, kernel", QUAD)
def test_trapezoid_rule_agrees_with_quad_and_differences(name, params, kernel):
    family = oracle.FAMILIES[name]
    # 1e-13: central differences of step 1e-9 err by about 1e-18 times the third derivative.
    assert worst(integrate(family, params, kernel), by_quad(family, params, kernel)) < 1e-13


@pytest.mark.parametrize("rate, delta", [(3.0, 4.0), (0.02, 100.0), (50.0, 0.1)])
def test_exponential_in_digamma_functions(rate, delta):
    with mp.workdps(50):
        a = mpf(rate) / mpf(delta)
        expected = mp.log(a / 2 * (mp.digamma((a + 2) / 2) - mp.digamma((a + 1) / 2)))
        assert abs(alternating(oracle.Exponential, (rate,), -delta, 1).log_prob / expected - 1) < 1e-40


@pytest.mark.parametrize("low, high", [(0.25, 2.0), (-1.0, 2.0), (-3.0, 0.5)])
@pytest.mark.parametrize("delta", [0.3, -5.0])
def test_uniform_and_triangular_in_logarithms(low, high, delta):
    with mp.workdps(50):
        low, high, middle, delta = mpf(low), mpf(high), mpf(low + high) / 2, mpf(delta)

        def once(x):  # integral of sigma
            return mp.log1p(mp.exp(x))

        def twice(x):  # integral of that
            return -mp.polylog(2, -mp.exp(x)).real

        flat = (once(delta * high) - once(delta * low)) / (delta * (high - low))
        tent = (twice(delta * high) - 2 * twice(delta * middle) + twice(delta * low)) / (delta * (high - low) / 2) ** 2
        kernel = binary(delta, 1)
        # As above; polylog at 50 digits is far below it.
        assert abs(integrate(oracle.Uniform, (low, high), kernel).log_prob / mp.log(flat) - 1) < 1e-20
        assert abs(integrate(oracle.Triangular, (low, high), kernel).log_prob / mp.log(tent) - 1) < 1e-20


@pytest.mark.parametrize("name, params, mean", [("Gamma", (2.0, 16.0), 0.125), ("Uniform", (0.5, 2.0), 1.25)])
def test_no_utility_difference_is_one_half(name, params, mean):
    value = alternating(oracle.FAMILIES[name], params, 0.0, 1)
    assert abs(value.log_prob + mp.log(2)) < 1e-14
    assert value.by_inputs == (mean / 2,)
    assert not any(value.by_params)


def test_small_utility_difference_approaches_it():
    near = alternating(oracle.InverseGaussian, (0.7, 0.2), 1e-12, 1)
    assert abs(near.by_inputs[0] / 0.35 - 1) < 1e-11  # the next term is of order delta


def test_concentrated_gamma_is_a_fixed_strength():
    k = 1e12
    value = alternating(oracle.Gamma, (k, k / 0.5), 3.0, 1).log_prob
    assert abs(value + math.log1p(math.exp(-1.5))) < 1e-11  # variance 0.25 / k


SAME = [
    ("GeneralizedGamma", (2.5, 0.5, 1.0), "Gamma", (2.5, 2.0)),
    ("GeneralizedGamma", (1.0, 0.5, 1.7), "Weibull", (0.5, 1.7)),
    ("Weibull", (0.25, 1.0), "Exponential", (4.0,)),
    ("GeneralizedGamma", (0.5, 4.0, 2.0), "HalfNormal", (math.sqrt(8.0),)),
    ("TruncatedNormal", (0.0, 0.5, 0.0, INF), "HalfNormal", (0.5,)),
    ("TruncatedNormal", (0.5, 0.25, -9.5, 10.5), "Normal", (0.5, 0.25)),
]


@pytest.mark.parametrize("one, a, other, b", SAME)
@pytest.mark.parametrize("delta", [2.0, -70.0])
def test_families_meet_where_they_should(one, a, other, b, delta):
    x = integrate(oracle.FAMILIES[one], a, binary(delta, 1))
    z = integrate(oracle.FAMILIES[other], b, binary(delta, 1))
    # sqrt(8) is rounded to a double; the rest agrees to 1e-20.
    tolerance = 1e-14 if b == (math.sqrt(8.0),) else 1e-20
    assert abs(x.log_prob / z.log_prob - 1) < tolerance
    assert abs(x.by_inputs[0] / z.by_inputs[0] - 1) < tolerance


@pytest.mark.parametrize("kernel", [choice_set([2.5, 1.0], 0), ranking([2.5, 1.0], [0, 1])])
def test_two_alternatives_are_one_comparison(kernel):
    two = integrate(oracle.LogNormal, (0.1, 0.8), kernel)
    one = integrate(oracle.LogNormal, (0.1, 0.8), binary(1.5, 1))
    assert abs(two.log_prob / one.log_prob - 1) < 1e-20
    assert abs(two.by_inputs[0] / one.by_inputs[0] - 1) < 1e-20
    assert abs(two.by_inputs[1] / one.by_inputs[0] + 1) < 1e-20


def test_probabilities_of_a_choice_set_sum_to_one():
    utilities = [0.2, -3.0, 1.5, 40.0]
    values = [integrate(oracle.Gamma, (0.5, 2.0), choice_set(utilities, j)).log_prob for j in range(4)]
    assert abs(mp.fsum(mp.exp(v) for v in values) - 1) < 1e-14  # summed in doubles


@pytest.mark.parametrize("name", generate.GROUPS)
def test_golden_file_is_what_the_generator_writes(name):
    group = generate.GROUPS[name]
    with np.load(generate.GOLDEN / f"{name}.npz") as golden:
        meta = json.loads(str(golden["meta"]))
        assert meta["seed"] == generate.SEED
        assert golden["log_prob"].shape == (group.count,)
        if group.method == "alternating":
            assert meta["largest_difference_of_methods"] < 1e-20
        rows = [p for p in generate.points(name) if len(p.inputs) <= 5][:2]
        starts = np.concatenate([[0], np.cumsum(golden["sizes"])])
        index = [i for i, size in enumerate(golden["sizes"]) if size <= 5][:2]
        for i, point in zip(index, rows, strict=True):
            assert tuple(golden["params"][i]) == point.params
            assert tuple(golden["inputs"][starts[i] : starts[i + 1]]) == point.inputs
            value = generate.reference(group, point)
            assert golden["log_prob"][i] == float(value.log_prob)
            assert tuple(golden["by_params"][i]) == tuple(map(float, value.by_params))
            assert tuple(golden["by_inputs"][starts[i] : starts[i + 1]]) == tuple(map(float, value.by_inputs))
