"""Trapezoid rules on mapped axes: windows, axes, and integrals with known values."""

from __future__ import annotations

import math

import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch

from mixlogit_align.numerics.quadrature import (
    Axis,
    find_window,
    lognormal_nodes,
    product_rule,
    stretched_trapezoid,
    trapezoid_normal,
)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("center", [0.0, -3.0, 200.0])
@pytest.mark.parametrize("sd", [1e-8, 1e-3, 1.0, 30.0])
def test_window_of_a_normal(center, sd):
    mode = double(center + 2.0 * sd)
    left, right = find_window(
        lambda x: -0.5 * ((x - mode) / sd) ** 2, torch.zeros_like, double(center), -1e6, 1e3, 32.0
    )
    for edge in (mode - left, right - mode):
        # 8 standard deviations hold a drop of 32; the last refinement is 1/16 of a factor of two
        assert 8.0 * sd * (1 - 1e-6) <= float(edge) <= 8.0 * sd * 1.15 + 1e-12


def test_window_covers_two_modes_and_the_tilt():
    def two(x):
        return torch.logaddexp(-0.5 * (x + 4.0) ** 2, -0.5 * ((x - 9.0) / 0.1) ** 2 - 10.0)

    left, right = find_window(two, torch.zeros_like, double(0.0), -1e6, 1e3, 32.0)
    assert float(left) < -11.5
    assert float(right) > 9.5
    left, right = find_window(lambda x: -0.5 * x**2, lambda x: 5.0 * x, double(0.0), -1e6, 1e3, 32.0)
    assert float(left) < -7.9
    assert float(right) > 12.9


AXES = [
    (math.inf, None),
    (2.5, None),
    (math.inf, 0.3),
    (2.5, 0.3),
    (2.5, 0.01),
    (2.5, 40.0),
]


@pytest.mark.parametrize(("width", "unit"), AXES)
def test_axis_is_an_increasing_map_onto_the_interval(width, unit):
    axis = Axis(double(width), None if unit is None else double(unit))
    x = torch.linspace(-30.0, 30.0, 201, dtype=torch.float64).unsqueeze(-1).requires_grad_()
    distance = axis.distance(x)
    assert (distance[1:] >= distance[:-1]).all()
    assert float(distance.detach().min()) > 0.0
    assert float(distance.detach().max()) <= width
    (slope,) = torch.autograd.grad(distance.sum(), x)
    inside = slope > 1e-9
    torch.testing.assert_close(axis.log_slope(x)[inside].exp(), slope[inside], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("width", "unit"), AXES)
@pytest.mark.parametrize("distance", [1e-8, 0.02, 1.3])
def test_coordinate_inverts_distance(width, unit, distance):
    axis = Axis(double(width), None if unit is None else double(unit))
    torch.testing.assert_close(axis.distance(axis.coordinate(double(distance))), double(distance), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("left_at", "right_at"), [(-2.0, 3.0), (50.0, 60.0), (-90.0, -80.0), (-1e3, 1e3)])
@pytest.mark.parametrize("sd", [0.5, 3.0, 20.0])
def test_stretched_trapezoid_integrates_a_normal(left_at, right_at, sd):
    u, log_step = stretched_trapezoid(double(-9 * sd), double(9 * sd), double(left_at), double(right_at), 8.0, 192)
    total = torch.exp(log_step - 0.5 * (u / sd) ** 2).sum(0) / (sd * math.sqrt(2 * math.pi))
    torch.testing.assert_close(total, double(1.0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 5.0])
def test_lognormal_nodes_without_data_are_a_normal(scale):
    z, log_weight = lognormal_nodes(double(-700.0), double(scale), 48, 34.0)
    weight = log_weight.exp()
    torch.testing.assert_close(weight.sum(0), double(1.0), rtol=1e-13, atol=0)
    torch.testing.assert_close((weight * z * z).sum(0), double(1.0), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        (weight * torch.exp(scale * z)).sum(0), torch.exp(double(0.5 * scale**2)), rtol=1e-10, atol=0
    )


def test_nodes_carry_no_gradient():
    log_a, scale = double(0.3).requires_grad_(), double(0.7).requires_grad_()
    with torch.no_grad():
        z, log_weight = lognormal_nodes(log_a, scale, 32, 26.0)
    assert not z.requires_grad
    assert not log_weight.requires_grad


@pytest.mark.parametrize(("num_nodes", "error"), [(8, 1e-2), (16, 1e-6), (32, 1e-13), (64, 1e-15)])
def test_trapezoid_rule_of_a_standard_normal(num_nodes, error):
    z, log_weight = trapezoid_normal(num_nodes)
    assert float(torch.exp(log_weight).sum()) == pytest.approx(1.0, abs=1e-15)
    got = (torch.exp(log_weight) * torch.cos(1.5 * z)).sum()
    assert float(got) == pytest.approx(math.exp(-1.125), abs=error)


def test_trapezoid_rule_converges_geometrically_where_there_are_poles():
    """E sigma(2 z)^2: double poles at height pi / 2, error at most 2 pi (2 pi / h + 2) phi(i pi / 2) exp(-pi^2 / h)."""
    exact, _ = scipy.integrate.quad(
        lambda z: scipy.special.expit(2 * z) ** 2 * scipy.stats.norm.pdf(z), -12, 12, epsabs=1e-14
    )
    for num_nodes in (12, 24, 48):
        z, log_weight = trapezoid_normal(num_nodes)
        error = abs(float((torch.exp(log_weight) * torch.sigmoid(2.0 * z) ** 2).sum()) - exact)
        h = float(z[1] - z[0])
        assert error < 2.0 * math.pi * (2.0 * math.pi / h + 2.0) * 1.37 * math.exp(-(math.pi**2) / h) + 1e-13


def test_product_rule_integrates_products():
    z, log_weight = trapezoid_normal(24)
    nodes, log_weights = product_rule(z, log_weight, 3)
    assert nodes.shape == (24**3, 3)
    assert log_weights.shape == (24**3,)
    got = (torch.exp(log_weights) * torch.exp(nodes @ torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64))).sum()
    assert float(got) == pytest.approx(math.exp(0.5 * 0.98), rel=1e-10)
    alone, weights = product_rule(z, log_weight, 1)
    assert torch.equal(alone[:, 0], z)
    assert torch.equal(weights, log_weight)
