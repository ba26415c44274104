from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch

from mixlogit_align.distributions import Triangular
from mixlogit_align.econometrics import Random
from mixlogit_align.econometrics.families import FAMILIES
from mixlogit_align.errors import InvalidInputError


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


NATURAL = {name: f64(1.3, 0.4) for name in FAMILIES} | {"gamma": f64(2.0, 16.7)}


@pytest.mark.parametrize("name", FAMILIES)
def test_natural_parameters_and_theta_are_inverse(name: str) -> None:
    family = FAMILIES[name]
    theta = family.theta(NATURAL[name])
    torch.testing.assert_close(family.natural(theta), NATURAL[name], rtol=1e-14, atol=0)
    torch.testing.assert_close(family.theta(family.natural(theta)), theta, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_distribution_has_the_natural_parameters(name: str) -> None:
    family = FAMILIES[name]
    mixing = family.mixing(family.theta(NATURAL[name]))
    assert isinstance(mixing, family.kind)
    torch.testing.assert_close(torch.stack(family.read(mixing)), NATURAL[name], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_spread_is_the_deviation_to_second_order(name: str) -> None:
    # strength(centre, spread * z), E z = 0 and Var z = deviate_variance: mean and variance up to O(spread^3)
    family, spread = FAMILIES[name], 1e-3
    centre = f64(0.2)[0]
    mixing = family.mixing(torch.stack([centre, f64(spread).log()[0]]))
    first = f64(0.0)[0].requires_grad_()
    value = family.strength(centre, first)
    (slope,) = torch.autograd.grad(value, first, create_graph=True)
    curvature = torch.autograd.grad(slope, first)[0] if slope.requires_grad else torch.zeros_like(slope)
    variance = spread**2 * family.deviate_variance
    assert float(mixing.variance) == pytest.approx(slope.item() ** 2 * variance, rel=1e-4)
    assert (mixing.mean - value).item() == pytest.approx(curvature.item() * variance / 2, rel=1e-2, abs=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_centre_of_a_fixed_strength_gives_it_back(name: str) -> None:
    family = FAMILIES[name]
    strength = f64(0.7)[0]
    torch.testing.assert_close(family.strength(family.centre(strength), torch.zeros_like(strength)), strength)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("normal", Random("normal")),
        ("-lognormal", Random("lognormal", sign=-1)),
        (Random("gamma", sign=-1), Random("gamma", sign=-1)),
        (dist.Gamma(2.0, 16.5), Random("gamma", start=(2.0, 16.5))),
        (dist.LogNormal(-2.0, 0.5), Random("lognormal", start=(-2.0, 0.5))),
        (dist.Normal(1.0, 0.5), Random("normal", start=(1.0, 0.5))),
        (dist.Uniform(-1.0, 4.0), Random("uniform", start=(1.5, 2.5))),
        (Triangular(-1.0, 4.0), Random("triangular", start=(1.5, 2.5))),
    ],
)
def test_specifications(spec: Any, expected: Random) -> None:
    assert Random.of(spec) == expected


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("cauchy", "'cauchy'.*normal"),
        ("-normal", "sign.*-1 for normal"),
        ("--gamma", "'-gamma'"),
        (3, "random: got 3"),
        (dist.Cauchy(0.0, 1.0), "Cauchy"),
        (dist.Normal(torch.zeros(2), 1.0), "scalar"),
    ],
)
def test_specifications_that_are_none(spec: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        Random.of(spec)


def test_a_sign_is_one_or_minus_one() -> None:
    with pytest.raises(InvalidInputError, match="sign"):
        Random("gamma", sign=0)
