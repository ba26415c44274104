"""Learnable mixing: constructors, transforms, what it refuses, that it learns."""

from __future__ import annotations

import copy
import math

import pyro.distributions as dist
import pytest
import torch

from mixlogit_align import LearnableMixing, MixedLogit
from mixlogit_align.distributions.learnable import mixing_of_mean_cv
from mixlogit_align.errors import InvalidInputError

FAMILIES = ["lognormal", "gamma", "inverse_gaussian", "weibull", "normal"]


def test_the_papers_starts():
    assert LearnableMixing.lognormal().summary()["parameters"] == pytest.approx({"loc": -2.3, "scale": 0.6}, rel=1e-6)
    assert LearnableMixing.gamma().summary()["parameters"] == pytest.approx(
        {"concentration": 2.0, "rate": 16.7}, rel=1e-6
    )
    # both means are 0.120, not the 0.1 of a fixed strength
    assert LearnableMixing.lognormal().summary()["mean"] == pytest.approx(math.exp(-2.3 + 0.18), rel=1e-6)
    assert LearnableMixing.gamma().summary()["mean"] == pytest.approx(2.0 / 16.7, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cv", [0.05, 0.7, 2.0])
@pytest.mark.parametrize("transform", ["log", "softplus", "raw"])
def test_mean_and_cv(family, cv, transform):
    module = LearnableMixing.from_mean_cv(family, mean=0.1, cv=cv, transform=transform)
    summary = module.summary()
    # parameters are float32, and a softplus or a large concentration loses a little more
    assert summary["mean"] == pytest.approx(0.1, rel=2e-4)
    assert summary["sd"] == pytest.approx(0.1 * cv, rel=2e-4)
    assert all(p.dtype == torch.float32 and p.dim() == 0 for p in module.parameters())
    assert module().mean.item() == pytest.approx(summary["mean"], rel=1e-5)


@pytest.mark.parametrize("family", ["lognormal", "gamma", "inverse_gaussian", "normal"])
@pytest.mark.parametrize("cv", [0.05, 0.7, 2.0])
def test_a_distribution_of_mean_and_cv_has_them_and_their_derivatives(family, cv):
    def moments(mean_cv):
        mixing = mixing_of_mean_cv(family, *mean_cv)
        return torch.stack([mixing.mean, mixing.variance.sqrt() / mixing.mean])

    given = torch.tensor([0.1, cv], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(moments(given), given, rtol=1e-12, atol=0.0)
    # the identity, whose derivatives are known; rounding of a cv from a variance
    jacobian = torch.autograd.functional.jacobian(moments, given)
    torch.testing.assert_close(jacobian, torch.eye(2, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    assert torch.autograd.gradgradcheck(moments, given)


def test_no_variation_is_a_point():
    module = LearnableMixing.from_mean_cv("gamma", 0.1, 0.0)
    assert module.family == "point"
    assert isinstance(module(), dist.Delta)
    assert module.summary() == {
        "family": "point",
        "mean": pytest.approx(0.1),
        "sd": 0.0,
        "parameters": {"v": pytest.approx(0.1)},
    }


@pytest.mark.parametrize("transform", ["log", "softplus", "raw"])
@pytest.mark.parametrize("make", [LearnableMixing.lognormal, LearnableMixing.gamma, LearnableMixing.point])
def test_every_parameter_receives_a_gradient_and_survives_a_state_dict(make, transform):
    module = make(transform=transform)
    loss = -MixedLogit(torch.linspace(-3, 3, 8), module()).log_prob(torch.ones(8)).sum()
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad) and p.grad != 0 for p in module.parameters())
    other = make(transform=transform)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1)
    other.load_state_dict(module.state_dict())
    assert other.summary() == module.summary()
    assert copy.deepcopy(module).summary() == module.summary()


def test_transforms_have_the_slopes_they_state():
    slopes = {}
    for transform in ("log", "softplus", "raw"):
        module = LearnableMixing.gamma(2.0, 0.8, transform)
        slopes[transform] = float(torch.autograd.grad(module().rate, module.rate)[0])
    assert slopes == pytest.approx({"log": 0.8, "softplus": 1 - math.exp(-0.8), "raw": 1.0}, rel=1e-5)


def test_a_raw_parameter_that_left_its_domain_is_named():
    module = LearnableMixing.gamma(transform="raw")
    with torch.no_grad():
        module.rate.fill_(-0.3)
    with pytest.raises(InvalidInputError, match="gamma rate"):
        module()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearnableMixing.gamma(0.0, 1.0), "concentration"),
        (lambda: LearnableMixing.lognormal(scale=-1.0), "scale"),
        (lambda: LearnableMixing.lognormal(loc=math.nan), "loc"),
        (lambda: LearnableMixing.point(0.0), "point v"),
        (lambda: LearnableMixing.gamma(transform="exp"), "transform"),
        (lambda: LearnableMixing("beta", a=1.0), "family"),
        (lambda: LearnableMixing("gamma", rate=1.0), "parameters of gamma"),
        (lambda: LearnableMixing.from_mean_cv("gamma", -0.1, 0.5), "mean, cv"),
        (lambda: LearnableMixing.from_mean_cv("gamma", 0.1, -0.5), "mean, cv"),
        (lambda: LearnableMixing.from_mean_cv("point", 0.1, 0.5), "cv of a point"),
        (lambda: LearnableMixing.from_mean_cv("beta", 0.1, 0.5), "family"),
    ],
    ids=lambda value: value if isinstance(value, str) else "call",
)
def test_bad_arguments(make, message):
    with pytest.raises(InvalidInputError, match=message):
        make()


def test_it_prints_itself():
    assert repr(LearnableMixing.lognormal()) == "LearnableMixing(lognormal, loc=-2.3, scale=0.6, transform='log')"


def test_it_learns_a_known_strength():
    """Maximum likelihood from 20,000 comparisons, one strength each; the mean's standard error is about 0.012."""
    generator = torch.Generator().manual_seed(0)
    delta = 4.0 * torch.randn(20_000, generator=generator, dtype=torch.float64)
    torch.manual_seed(1)
    y = MixedLogit(delta, dist.Gamma(torch.tensor(4.0).double(), torch.tensor(8.0).double())).sample()
    module = LearnableMixing.gamma()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss = -MixedLogit(delta, module()).log_prob(y).mean()
        loss.backward()
        optimizer.step()
    assert abs(module.summary()["mean"] - 0.5) < 0.06
