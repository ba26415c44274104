"""Laplace proposals and importance weights against exact Gaussian integrals and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch

from mixlogit_align.errors import InvalidInputError
from mixlogit_align.numerics.draws import BaseDraws, standard_normal
from mixlogit_align.numerics.importance import (
    Proposals,
    effective_sample_size,
    importance_nodes,
    laplace_proposals,
)
from mixlogit_align.numerics.quadrature import product_rule, trapezoid_normal


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(center: torch.Tensor, precision: torch.Tensor):
    """log N(z; 0, I) - (z - center)' precision (z - center) / 2, with its derivatives."""

    def log_target(z):
        gap = z - center
        pull = (precision @ gap[..., None]).squeeze(-1)
        value = -0.5 * (z * z).sum(-1) - 0.5 * (gap * pull).sum(-1)
        return value, -z - pull, -torch.eye(z.shape[-1], dtype=z.dtype) - precision

    return log_target


def panel(diff: torch.Tensor, strength):
    """log N(z; 0, I) + sum_t log sigma(diff_t' strength(z)), derivatives by autograd."""

    def value_of(z):
        return -0.5 * (z * z).sum(-1) + torch.nn.functional.logsigmoid((diff * strength(z)[..., None, :]).sum(-1)).sum(
            -1
        )

    @torch.enable_grad()
    def log_target(z):
        z = z.detach().requires_grad_()
        value = value_of(z)
        (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True)
        hessian = [torch.autograd.grad(gradient[:, m].sum(), z, retain_graph=True)[0] for m in range(z.shape[-1])]
        return value.detach(), gradient.detach(), torch.stack(hessian, -1)

    log_target.value_of = value_of
    return log_target


def precisions(n: int, m: int) -> torch.Tensor:
    a = random(n, m, m, seed=1)
    return 3.0 * a @ a.mT


@pytest.mark.parametrize("m", [1, 3])
def test_a_gaussian_target_is_found_exactly(m):
    center, precision = random(5, m), precisions(5, m)
    proposals = laplace_proposals(gaussian(center, precision), torch.zeros(5, m, dtype=torch.float64))
    total = precision + torch.eye(m, dtype=torch.float64)
    assert proposals.found.all()
    mode = torch.linalg.solve(total, (precision @ center[..., None]).squeeze(-1))
    torch.testing.assert_close(proposals.mode, mode, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(proposals.factor @ proposals.factor.mT, torch.linalg.inv(total), rtol=1e-11, atol=1e-13)
    assert torch.equal(proposals.factor, proposals.factor.tril())


@pytest.mark.parametrize("strength", [lambda z: 1.0 + 1.5 * z, lambda z: torch.exp(0.5 + 1.5 * z)], ids=["n", "ln"])
def test_modes_against_scipy(strength):
    """The lognormal target is not concave where the search starts, 3 standard deviations away."""
    diff = 2.0 * random(8, 12, 2, seed=2) + 0.5
    log_target = panel(diff, strength)
    proposals = laplace_proposals(log_target, torch.full((8, 2), -3.0, dtype=torch.float64), 200)
    assert proposals.found.all()
    for n in range(8):
        value_of = panel(diff[n], strength).value_of
        best = scipy.optimize.minimize(
            lambda z, value_of=value_of: -float(value_of(torch.tensor(z))), np.zeros(2), method="BFGS", tol=1e-9
        )
        own = float(value_of(proposals.mode[n]))
        assert own >= -best.fun - 1e-6
    _, gradient, hessian = log_target(proposals.mode)
    covariance = proposals.factor @ proposals.factor.mT
    torch.testing.assert_close(covariance @ -hessian, torch.eye(2).double().expand(8, 2, 2), rtol=0, atol=1e-9)
    assert float((gradient[:, None] @ covariance @ gradient[..., None]).max()) < 1e-6


@pytest.mark.parametrize(
    ("value", "curvature"), [(0.0, 1.0), (math.nan, -1.0), (-math.inf, -1.0)], ids=["convex", "nan", "impossible"]
)
def test_without_a_mode_the_prior_is_the_proposal(value, curvature):
    """Row 0 has no mode, row 1 is Gaussian: each for itself."""
    ordinary = gaussian(torch.ones(2, 2).double(), torch.eye(2).double().expand(2, 2, 2))

    def log_target(z):
        values, gradients, hessians = ordinary(z)
        broken = torch.tensor([True, False])
        convex = value + 0.5 * curvature * (z * z).sum(-1) + z.sum(-1)
        values = torch.where(broken, convex, values)
        gradients = torch.where(broken[:, None], curvature * z + 1.0, gradients)
        return values, gradients, torch.where(broken[:, None, None], curvature * torch.eye(2).double(), hessians)

    proposals = laplace_proposals(log_target, torch.zeros(2, 2, dtype=torch.float64), 30)
    assert proposals.found.tolist() == [False, True]
    assert torch.equal(proposals.mode[0], torch.zeros(2).double())
    assert torch.equal(proposals.factor[0], torch.eye(2).double())
    torch.testing.assert_close(proposals.mode[1], torch.full((2,), 0.5).double(), rtol=1e-12, atol=0)


def test_a_search_cut_short_says_so():
    log_target = panel(3.0 * random(4, 9, 2), lambda z: torch.exp(1.0 + 2.0 * z))
    proposals = laplace_proposals(log_target, torch.full((4, 2), 2.5, dtype=torch.float64), 1)
    assert not proposals.found.any()


@pytest.mark.parametrize("scale", [0.9, 1.2, 2.0])
@pytest.mark.parametrize("shared", [True, False])
def test_a_quadrature_rule_around_the_mode_is_exact(scale, shared):
    """Against the Gaussian integral |I + P|^(-1/2) exp(-c' (I + P^-1)^-1 c / 2), trapezoid rule in eps, 40 nodes."""
    center, precision = random(3, 2), precisions(3, 2) + 0.1 * torch.eye(2).double()
    log_target = gaussian(center, precision)
    proposals = laplace_proposals(log_target, torch.zeros(3, 2, dtype=torch.float64))
    nodes, log_weight = product_rule(*trapezoid_normal(40), 2)
    eps = nodes[None] if shared else nodes.expand(3, -1, -1)
    z, log_weights = importance_nodes(proposals, eps, scale, log_weight)
    assert z.shape == (3, 1600, 2)
    gap = z - center[:, None]
    loglik = -0.5 * (gap * (gap @ precision)).sum(-1)
    eye = torch.eye(2).double()
    quadratic = (center[:, None] @ torch.linalg.inv(eye + torch.linalg.inv(precision)) @ center[..., None]).reshape(-1)
    exact = -0.5 * torch.logdet(eye + precision) - 0.5 * quadratic
    torch.testing.assert_close(torch.logsumexp(log_weights + loglik, -1), exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prior_share", [0.0, 0.25])
@pytest.mark.parametrize("kind", ["pseudo", "halton", "sobol"])
def test_draws_are_unbiased(kind, prior_share):
    """Mean over 400 rows of draws of the integral and of the weights: five standard errors, false-failure 1e-6."""
    proposals = laplace_proposals(
        gaussian(torch.tensor([[1.0, -0.5]]).double(), torch.diag(torch.tensor([8.0, 2.0])).double()[None]),
        torch.zeros(1, 2, dtype=torch.float64),
    )
    eps = standard_normal(BaseDraws(kind, 64).uniforms_nd(torch.arange(400), 2))
    same = Proposals(proposals.mode.expand(400, 2), proposals.factor.expand(400, 2, 2), proposals.found.expand(400))
    z, log_weights = importance_nodes(same, eps, 1.2, prior_share=prior_share)
    gap = z - torch.tensor([1.0, -0.5]).double()
    integral = torch.exp(log_weights - 4.0 * gap[..., 0] ** 2 - gap[..., 1] ** 2).sum(-1)
    exact = math.exp(-0.5 * 8 / 9) / 3.0 * math.exp(-0.5 * 0.25 * 2 / 3) / math.sqrt(3.0)
    # points of one halton sequence spread over all rows are better than their spread among rows tells
    assert float((integral.mean() - exact).abs()) < 5.0 * float(integral.std()) / math.sqrt(400) + 1e-12
    if prior_share:
        assert float(log_weights.max()) <= -math.log(64 * prior_share) + 1e-12
        total = torch.exp(log_weights).sum(-1)
        assert float((total.mean() - 1.0).abs()) < 5.0 * float(total.std()) / math.sqrt(400) + 1e-12


def test_a_share_of_the_prior_mends_a_skewed_posterior():
    """A likelihood flat to the left, steep to the right: the proposal alone misses the left tail."""
    cut = torch.tensor([[-0.5]]).double()
    steep = 12.0

    def log_target(z):
        x = steep * (z - cut).squeeze(-1)
        p = torch.sigmoid(x)
        value = -0.5 * (z * z).squeeze(-1) + torch.nn.functional.logsigmoid(-x)
        return value, -z - steep * p[:, None], (-1.0 - steep**2 * p * (1.0 - p))[:, None, None]

    nodes, log_weight = trapezoid_normal(400)
    exact = torch.logsumexp(log_weight + torch.nn.functional.logsigmoid(-steep * (nodes - cut[0, 0])), 0)
    proposals = laplace_proposals(log_target, torch.zeros(1, 1, dtype=torch.float64))
    assert proposals.found.all()
    eps = standard_normal(BaseDraws("sobol", 256).uniforms_nd(torch.arange(50), 1))
    same = Proposals(proposals.mode.expand(50, 1), proposals.factor.expand(50, 1, 1), proposals.found.expand(50))
    errors = []
    for prior_share in (0.0, 0.25):
        z, log_weights = importance_nodes(same, eps, 1.2, prior_share=prior_share)
        loglik = torch.nn.functional.logsigmoid(-steep * (z - cut[0, 0])).squeeze(-1)
        errors.append(float((torch.logsumexp(log_weights + loglik, -1) - exact).square().mean().sqrt()))
    assert errors[1] < 0.01
    assert errors[1] < 0.2 * errors[0]


def test_weights_behind_nodes_leave_no_room_for_the_prior():
    proposals = Proposals(torch.zeros(1, 1).double(), torch.ones(1, 1, 1).double(), torch.tensor([True]))
    nodes, log_weight = trapezoid_normal(8)
    with pytest.raises(InvalidInputError, match="prior_share"):
        importance_nodes(proposals, nodes[None, :, None], 1.2, log_weight, prior_share=0.25)


def test_effective_sample_size():
    weights = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0]]).double()
    got = effective_sample_size(torch.log(weights) - 900.0)
    torch.testing.assert_close(got, torch.tensor([4.0, 1.0, 1.6], dtype=torch.float64), rtol=1e-12, atol=0)
