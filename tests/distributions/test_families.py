"""The distributions that torch and Pyro lack, against scipy and their own densities."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch

from mixlogit_align.distributions import (
    FiniteMixture,
    GeneralizedGamma,
    InverseGaussian,
    Triangular,
    TruncatedNormal,
)
from mixlogit_align.errors import InvalidInputError
from tests.distributions.cases import double

INF = math.inf
CASES = {
    "inverse_gaussian": (InverseGaussian, (0.6, 0.9), scipy.stats.invgauss(mu=0.6 / 0.9, scale=0.9)),
    "generalized_gamma": (GeneralizedGamma, (1.5, 0.6, 1.3), scipy.stats.gengamma(a=1.5, c=1.3, scale=0.6)),
    "triangular": (Triangular, (-0.6, 1.4), scipy.stats.triang(c=0.5, loc=-0.6, scale=2.0)),
    "truncated": (TruncatedNormal, (0.3, 0.7, 0.1, 1.9), scipy.stats.truncnorm(-2 / 7, 16 / 7, loc=0.3, scale=0.7)),
    "half_line": (TruncatedNormal, (0.3, 0.7, 0.0, INF), scipy.stats.truncnorm(-3 / 7, np.inf, loc=0.3, scale=0.7)),
    "far_tail": (TruncatedNormal, (-5.0, 0.7, 0.0, INF), scipy.stats.truncnorm(50 / 7, np.inf, loc=-5.0, scale=0.7)),
    "deep_tail": (TruncatedNormal, (-45.0, 1.0, 0.0, INF), scipy.stats.truncnorm(45, np.inf, loc=-45.0, scale=1.0)),
    "left_tail": (TruncatedNormal, (5.0, 0.7, -1.0, 1.0), scipy.stats.truncnorm(-60 / 7, -40 / 7, loc=5.0, scale=0.7)),
}
each = pytest.mark.parametrize(("make", "parameters", "reference"), CASES.values(), ids=CASES)
GRID = np.array([0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98])


@each
def test_density(make, parameters, reference):
    x = torch.tensor(reference.ppf(GRID))
    # scipy's truncnorm and gengamma lose up to 1e-9 in the tails
    torch.testing.assert_close(
        make(*double(*parameters)).log_prob(x), torch.tensor(reference.logpdf(x.numpy())), rtol=1e-8, atol=1e-8
    )


@each
def test_moments(make, parameters, reference):
    d = make(*double(*parameters))
    x, w = np.polynomial.legendre.leggauss(400)
    low, high = reference.support()
    high = min(high, reference.ppf(1 - 1e-15))
    x = torch.tensor(0.5 * (high - low) * (x + 1) + low)
    mass = d.log_prob(x).exp() * torch.tensor(w) * 0.5 * (high - low)
    # the kink of the triangle and the cut at 1e-15 limit the rule
    torch.testing.assert_close(d.mean, (mass * x).sum(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(d.variance, (mass * (x - d.mean) ** 2).sum(), rtol=1e-5, atol=1e-7)


@each
def test_samples(make, parameters, reference):
    sample = make(*double(*parameters)).sample((20_000,)).numpy()
    # Kolmogorov-Smirnov, false-failure rate 1e-6
    assert scipy.stats.kstest(sample, reference.cdf).pvalue > 1e-6


@each
def test_quantiles(make, parameters, reference):
    x = make(*double(*parameters)).icdf(torch.tensor(GRID))
    np.testing.assert_allclose(x, reference.ppf(GRID), rtol=1e-7)


@each
def test_shapes_copies_and_expand(make, parameters, reference):
    d = make(*[p.expand(4) for p in double(*parameters)])
    wide = d.expand((3, 4))
    x = d.sample((2, 3))
    assert d.batch_shape == (4,)
    assert wide.batch_shape == (3, 4)
    assert wide.sample((2,)).shape == (2, 3, 4)
    torch.testing.assert_close(wide.log_prob(x), d.log_prob(x), rtol=0, atol=0)
    for clone in (copy.deepcopy(d), pickle.loads(pickle.dumps(d))):
        torch.testing.assert_close(clone.log_prob(x), d.log_prob(x), rtol=0, atol=0)
    assert torch.isfinite(d.mean).all()


@each
def test_gradients_of_the_density(make, parameters, reference):
    x = torch.tensor(reference.ppf([0.1, 0.3, 0.45, 0.7, 0.9]))
    finite = [p.requires_grad_(math.isfinite(p)) for p in double(*parameters)]
    assert torch.autograd.gradcheck(lambda *p: make(*p).log_prob(x), finite)


REPARAMETRISED = [k for k, (make, _, _) in CASES.items() if make.has_rsample]


@pytest.mark.parametrize("name", REPARAMETRISED)
def test_reparametrised_gradient_of_the_mean(name):
    """d E[x] / d parameter by draws against the exact one: z below 5, false-failure rate 1e-6 a parameter."""
    make, values, _ = CASES[name]
    parameters = [p.requires_grad_(math.isfinite(p)) for p in double(*values)]
    leaves = [p for p in parameters if p.requires_grad]
    n = 20_000
    wide = [p.detach().expand(n).clone().requires_grad_(p.requires_grad) for p in parameters]
    x = make(*wide).rsample()
    each_draw = torch.autograd.grad(x.sum(), [w for w in wide if w.requires_grad])
    exact = torch.autograd.grad(make(*parameters).mean, leaves)
    z = [(g.mean() - e) / (g.std() / math.sqrt(n) + 1e-9) for g, e in zip(each_draw, exact, strict=True)]
    assert max(abs(float(v)) for v in z) < 5.0


@pytest.mark.parametrize(
    ("make", "bad", "message"),
    [
        (InverseGaussian, (-1.0, 1.0), "loc"),
        (GeneralizedGamma, (1.0, 0.0, 1.0), "scale"),
        (Triangular, (1.0, 1.0), "low < high"),
        (TruncatedNormal, (0.0, 1.0, 2.0, 1.0), "low < high"),
    ],
    ids=["inverse_gaussian", "generalized_gamma", "triangular", "truncated_normal"],
)
def test_bad_parameters_are_refused(make, bad, message):
    with pytest.raises(ValueError, match=message):
        make(*double(*bad), validate_args=True)


def test_finite_mixture_moments_and_samples():
    shares = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    d = FiniteMixture(shares, [dist.Delta(*double(0.0)), dist.Gamma(*double(2.0, 3.0)), dist.Delta(*double(1.5))])
    n = 40_000
    x = d.sample((n,))
    # three shares and two moments: P(any |z| > 4.5) < 5 * 7e-6
    z = [
        ((x == 0).double().mean() - 0.2) / math.sqrt(0.16 / n),
        ((x == 1.5).double().mean() - 0.5) / math.sqrt(0.25 / n),
    ]
    z.append((x.mean() - d.mean) / (d.variance.sqrt() / math.sqrt(n)))
    assert max(abs(float(v)) for v in z) < 4.5
    torch.testing.assert_close(x.var(), d.variance, rtol=0.05, atol=0)


def test_finite_mixture_of_densities():
    shares = torch.tensor([[0.2, 0.8], [0.6, 0.4]], dtype=torch.float64)
    parts = [dist.Gamma(*double(2.0, 3.0)), dist.LogNormal(*double(0.1, 0.4))]
    d = FiniteMixture(shares, parts)
    assert d.batch_shape == (2,)
    assert d.expand((5, 2)).sample((3,)).shape == (3, 5, 2)
    total, _ = scipy.integrate.quad(lambda v: float(d.log_prob(torch.tensor(v).double()).exp()[1]), 0, 40)
    assert total == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize(
    ("probs", "components"),
    [
        (torch.tensor([0.5, 0.5]), [dist.Gamma(1.0, 1.0)]),
        (torch.tensor([1.0]), []),
        (torch.tensor([1.0]), [dist.Normal(torch.zeros(2), 1.0).to_event(1)]),
    ],
    ids=["too_few", "none", "vector"],
)
def test_bad_mixtures_are_refused(probs, components):
    with pytest.raises(InvalidInputError):
        FiniteMixture(probs, components)
