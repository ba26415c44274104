"""The distributions inside Pyro programs: plates, conditioning, SVI, NUTS, Predictive, enumeration."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta
from pyro.optim import Adam
from torch.distributions import constraints

from mixlogit_align import LearnableMixing, MixedLogit, MixedMultinomialLogit, MonteCarlo, PanelMixedLogit
from tests.distributions.cases import CHOICES, ids, lognormal, utilities

N, T = 200, 6


def panel_data(loc: float = 0.0, scale: float = 0.5, n: int = N):
    generator = torch.Generator().manual_seed(3)
    diff = 2.0 * torch.randn((n, T), generator=generator, dtype=torch.float64)
    pyro.set_rng_seed(11)
    y = PanelMixedLogit(diff, dist.LogNormal(torch.tensor(loc).double(), torch.tensor(scale).double())).sample()
    return diff, y


def panel_model(diff, y=None):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(()).double(), 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones(()).double()))
    with pyro.plate("individuals", len(diff)):
        return pyro.sample("y", PanelMixedLogit(diff, dist.LogNormal(loc, scale)), obs=y)


@pytest.mark.parametrize("case", CHOICES, ids=ids)
def test_plate_and_condition(case):
    u = utilities(case, 5)
    value = case.make(u, lognormal()).sample()

    def model():
        with pyro.plate("rows", 5):
            return pyro.sample("y", case.make(u, lognormal()))

    trace = poutine.trace(pyro.condition(model, {"y": value})).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), case.make(u, lognormal()).log_prob(value).sum())
    assert model().shape == (5, *case.event_shape)


@pytest.mark.parametrize("case", CHOICES, ids=ids)
def test_nested_plates_widen_by_expand(case):
    u = utilities(case, 5)

    def model():
        with pyro.plate("draws", 3, dim=-2), pyro.plate("rows", 5, dim=-1):
            return pyro.sample("y", case.make(u, lognormal(), MonteCarlo(4)))

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    value = trace.nodes["y"]["value"]
    assert value.shape == (3, 5, *case.event_shape)
    expected = case.make(u, lognormal(), MonteCarlo(4)).log_prob(value)
    torch.testing.assert_close(trace.nodes["y"]["log_prob"], expected)


def test_to_event_inside_a_plate():
    u = utilities(CHOICES[0], 5, 4)

    def model():
        with pyro.plate("rows", 5):
            return pyro.sample("y", MixedLogit(u, lognormal()).to_event(1))

    assert model().shape == (5, 4)


def test_subsampled_plate_scales_the_log_prob():
    diff, y = panel_data(n=40)

    def model():
        with pyro.plate("individuals", 40, subsample_size=10) as index:
            pyro.sample("y", PanelMixedLogit(diff[index], lognormal()), obs=y[index])

    trace = poutine.trace(model).get_trace()
    index = trace.nodes["individuals"]["value"]
    expected = 4.0 * PanelMixedLogit(diff[index], lognormal()).log_prob(y[index]).sum()
    torch.testing.assert_close(trace.log_prob_sum(lambda name, site: name == "y"), expected)


def test_svi_with_sample_sites_recovers_the_strength():
    diff, y = panel_data(n=1000)
    guide = AutoDelta(panel_model)
    svi = SVI(panel_model, guide, Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(diff, y) for _ in range(150)]
    estimate = guide.median()
    assert losses[-1] < losses[0]
    # standard errors of about 0.03 and 0.04 at N = 1000, T = 6: five of them
    assert abs(float(estimate["loc"])) < 0.15
    assert abs(float(estimate["scale"]) - 0.5) < 0.2


def test_svi_with_params_and_learnable_mixing():
    diff, y = panel_data()
    module = LearnableMixing.gamma(1.0, 1.0)

    def by_param():
        k = pyro.param("k", torch.tensor(1.0).double(), constraint=constraints.positive)
        rate = pyro.param("rate", torch.tensor(1.0).double(), constraint=constraints.positive)
        with pyro.plate("individuals", N):
            pyro.sample("y", PanelMixedLogit(diff, dist.Gamma(k, rate)), obs=y)

    def by_module():
        strength = pyro.module("strength", module)
        with pyro.plate("individuals", N):
            pyro.sample("y", PanelMixedLogit(diff, strength()), obs=y)

    final = []
    for model in (by_param, by_module):
        svi = SVI(model, lambda: None, Adam({"lr": 0.05}), Trace_ELBO())
        final.append([svi.step() for _ in range(60)][-1])
    # the same likelihood in float64 and in float32 parameters, the same optimiser
    assert final[0] == pytest.approx(final[1], rel=1e-4)


def test_nuts_agrees_with_maximum_likelihood():
    """Posterior means against maximum likelihood: the priors are wide, 60 draws leave an error of 0.3 sd."""
    diff, y = panel_data()
    mcmc = MCMC(NUTS(panel_model, max_tree_depth=3), num_samples=60, warmup_steps=40, disable_progbar=True)
    mcmc.run(diff, y)
    draws = mcmc.get_samples()
    parameters = torch.tensor([0.0, math.log(0.5)], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -PanelMixedLogit(diff, dist.LogNormal(parameters[0], parameters[1].exp())).log_prob(y).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert abs(float(draws["loc"].mean() - parameters[0].detach())) < 2.0 * float(draws["loc"].std())
    assert abs(float(draws["scale"].mean() - parameters[1].detach().exp())) < 2.0 * float(draws["scale"].std())


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(parallel):
    diff, _ = panel_data(n=10)
    posterior = {"loc": torch.zeros(7).double(), "scale": torch.full((7,), 0.5, dtype=torch.float64)}
    if parallel:
        posterior = {name: x.unsqueeze(-1) for name, x in posterior.items()}
    predicted = Predictive(panel_model, posterior, parallel=parallel)(diff)["y"]
    assert predicted.shape == (7, 10, T)


def test_a_choice_can_be_enumerated():
    """A latent choice summed out exactly: log sum_y P(y) P(x | y)."""
    u = utilities(CHOICES[2])
    means = torch.tensor([-1.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    x = torch.tensor(0.4, dtype=torch.float64)

    @config_enumerate
    def model():
        y = pyro.sample("y", MixedMultinomialLogit(u, lognormal()))
        pyro.sample("x", dist.Normal(means[y], 1.0), obs=x)

    loss = TraceEnum_ELBO(max_plate_nesting=0).loss(model, lambda: None)
    joint = MixedMultinomialLogit(u, lognormal()).log_prob(torch.arange(4)) + dist.Normal(means, 1.0).log_prob(x)
    assert loss == pytest.approx(-float(torch.logsumexp(joint, 0)), rel=1e-10)
