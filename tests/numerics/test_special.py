"""Stable logarithms and alternating sums against mpmath."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

from mixlogit_align.numerics import special

mpmath.mp.dps = 50


def derivatives(function, x: float) -> list[float]:
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = function(t)
    (first,) = torch.autograd.grad(value, t, create_graph=True)
    (second,) = torch.autograd.grad(first, t)
    return [value.item(), first.item(), second.item()]


@pytest.mark.parametrize("y", [1e-12, 1e-6, 1e-3, 0.1, 0.5, 0.999, 1.0, 1.001, 3.0, 40.0, 800.0])
def test_log_exponential_mean(y):
    def exact(t):
        return mpmath.log(-mpmath.expm1(-t) / t)

    got = derivatives(special.log_exponential_mean, y)
    for order, (value, tolerance) in enumerate(zip(got, [1e-15, 1e-14, 1e-12], strict=True)):
        assert value == pytest.approx(float(mpmath.diff(exact, mpmath.mpf(y), order)), rel=tolerance)


@pytest.mark.parametrize("x", [-60.0, -8.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 6.0, 13.99, 14.01, 50.0, 1e5])
def test_log_mills(x):
    def exact(t):
        return mpmath.log(mpmath.erfc(t / mpmath.sqrt(2)) * mpmath.exp(t * t / 2) * mpmath.sqrt(mpmath.pi / 2))

    with mpmath.workdps(60):
        expected = [float(mpmath.diff(exact, mpmath.mpf(x), n)) for n in range(2)]
    got = derivatives(special.log_mills, x)
    assert got[0] == pytest.approx(expected[0], rel=1e-14, abs=1e-15)
    # erfcx is differentiated by a difference that loses x^2 ulp up to x = 14
    assert got[1] == pytest.approx(expected[1], rel=3e-14)


@pytest.mark.parametrize("d", [-1e-300, -1e-17, -1e-5, -0.5, -math.log(2), -1.0, -40.0, -800.0])
def test_log1mexp(d):
    got = float(special.log1mexp(torch.tensor(d, dtype=torch.float64)))
    assert got == pytest.approx(float(mpmath.log(-mpmath.expm1(mpmath.mpf(d)))), rel=1e-15, abs=1e-300)


@pytest.mark.parametrize("q", [-math.log(2), -1.0, -30.0, -700.0])
def test_log_complement(q):
    got = float(special.log_complement(torch.tensor(q, dtype=torch.float64)))
    assert got == pytest.approx(float(mpmath.log(-mpmath.expm1(mpmath.mpf(q)))), rel=1e-15)


@pytest.mark.parametrize("n", [4, 10, 16, 22])
@pytest.mark.parametrize("u", [0.0, 0.3, 0.999, 1.0])
def test_alternating_weights_meet_their_bound(n, u):
    """Moments u^j of a point mass at u: the sum is 1 / (1 + u), and point masses are the extreme case."""
    x = torch.zeros((), dtype=torch.float64)
    got = float((special.alternating_weights(n, x) * torch.tensor(u, dtype=torch.float64) ** torch.arange(n)).sum())
    assert abs(got * (1 + u) - 1) <= special.alternating_error_bound(n) + 4e-16


@pytest.mark.parametrize("n", [1, 5, 11, 22])
def test_error_bound_is_the_chebyshev_polynomial(n):
    assert special.alternating_error_bound(n) == pytest.approx(float(1 / mpmath.chebyt(n, 3)), rel=1e-13)


@pytest.mark.parametrize("x", [-2.0, 0.0, 3.0])
def test_absolute_has_a_live_gradient_at_zero(x):
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(special.absolute(t), t)
    assert float(slope) == (1.0 if x >= 0 else -1.0)


INTERVALS = [
    (-1.0, 2.0),
    (-40.0, 30.0),
    (0.0, 1e-3),
    (0.5, 0.5001),
    (3.0, math.inf),
    (9.0, 9.5),
    (30.0, 31.0),
    (-7.0, -6.0),
]


@pytest.mark.parametrize(("low", "high"), [*INTERVALS, (-1e-4, 2e-4), (-math.inf, 1.0)][:-1])
def test_log_normal_interval(low, high):
    ends = [torch.tensor(v, dtype=torch.float64) for v in (low, high)]
    c, rest = special.log_normal_interval(*ends, ends[1] - ends[0])
    exact = (
        mpmath.log(mpmath.ncdf(-low) - mpmath.ncdf(-high))
        if low > 0
        else mpmath.log(mpmath.ncdf(high) - mpmath.ncdf(low))
    )
    width = min(high - low, 1.0)
    assert float(rest - 0.5 * c * c) == pytest.approx(float(exact), rel=2e-15, abs=1e-15 / width)


def test_log_expected_sigmoid_is_exact_for_a_sum_of_atoms():
    strengths = torch.tensor([0.0, 0.3, 2.0, 50.0], dtype=torch.float64)
    s = torch.tensor([0.0, 1e-8, 0.7, 30.0], dtype=torch.float64)

    def log_laplace(t):
        return torch.logsumexp(-t.unsqueeze(-1) * strengths, -1) - math.log(4.0)

    got = special.log_expected_sigmoid(log_laplace, s)
    torch.testing.assert_close(got.exp(), torch.sigmoid(-s[:, None] * strengths).mean(-1), rtol=1e-14, atol=0)
