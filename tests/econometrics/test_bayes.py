from __future__ import annotations

import math
import pickle
import warnings
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import cloudpickle
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from joblib import parallel_config
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoDelta, AutoNormal
from scipy import stats
from torch import Tensor

from mixlogit_align import QuasiMonteCarlo
from mixlogit_align.econometrics import (
    BayesianMixedLogit,
    BayesianStrength,
    ChoiceData,
    MixedLogitModel,
    Random,
    scenario,
    simulate_choices,
)
from mixlogit_align.errors import ConvergenceWarning, IntegrationWarning, InvalidInputError

# Gauss-Hermite nodes for z ~ N(0, 1): exact to 1e-9 for the smooth, short likelihoods here.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(120)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()

PRIORS = {"x.loc": dist.Normal(0.0, 1.0), "x.scale": dist.HalfNormal(1.0)}


def panel(num_individuals: int = 40, num_situations: int = 6, seed: int = 4) -> ChoiceData:
    mixing = dist.LogNormal(0.2, 0.8)
    return simulate_choices(mixing, num_individuals=num_individuals, num_situations=num_situations, seed=seed).data


def differences(data: ChoiceData) -> np.ndarray:
    """Attribute of the chosen alternative less the other's, (N, T)."""
    x = data.attribute("x")
    chosen = x.gather(1, data.choice[:, None])[:, 0]
    return (2 * chosen - x.sum(1)).reshape(data.num_individuals, -1).numpy()


def loglik(data: ChoiceData, loc: float, scale: float) -> float:
    """Of a panel of pairs with a lognormal strength, by Gauss-Hermite."""
    strength = np.exp(loc + scale * _NODES)
    likelihood = stats.logistic.cdf(differences(data)[..., None] * strength).prod(1)
    return float(np.log(likelihood @ _WEIGHTS).sum())


class Grid(NamedTuple):
    """Log density of loc and scale of a lognormal given a panel, priors as above, on a grid (L, 1) and (1, C)."""

    loc: np.ndarray
    scale: np.ndarray
    log_density: np.ndarray

    @property
    def log_evidence(self) -> float:
        cell = (self.loc[1, 0] - self.loc[0, 0]) * (self.scale[0, 1] - self.scale[0, 0])
        return float(np.logaddexp.reduce(self.log_density, axis=None)) + math.log(cell)

    def moments(self) -> dict[str, tuple[float, float]]:
        """Means and standard deviations."""
        weight = np.exp(self.log_density - self.log_density.max())
        weight /= weight.sum()
        found = {}
        for name, values in (("x.loc", self.loc), ("x.scale", self.scale)):
            mean = float((weight * values).sum())
            found[name] = mean, math.sqrt(float((weight * (values - mean) ** 2).sum()))
        return found


@cache
def grid() -> Grid:
    """Of the panel: steps of a third of a standard deviation, out to six of them."""
    loc, scale = np.linspace(-1.0, 1.6, 40)[:, None], np.linspace(0.03, 2.4, 40)[None]
    data = panel()
    likelihood = np.array([[loglik(data, a, b) for b in scale[0]] for a in loc[:, 0]])
    return Grid(loc, scale, likelihood + stats.norm.logpdf(loc) + stats.halfnorm.logpdf(scale))


def lognormal(data: ChoiceData | None = None, priors=PRIORS, **options) -> BayesianMixedLogit:
    return BayesianMixedLogit(MixedLogitModel(panel() if data is None else data, random={"x": "lognormal"}), priors,
                              **options)  # fmt: skip


def log_joint(program, **sites: Tensor) -> float:
    with pyro.poutine.block():
        trace = poutine.trace(poutine.condition(program, data=sites)).get_trace()
    return float(trace.log_prob_sum())


def doubles(**values: float) -> dict[str, Tensor]:
    return {name.replace("_", "."): torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


@pytest.fixture(scope="module")
def posterior():
    """NUTS of the panel: some 200 effective draws."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # more would take time
        return lognormal().nuts(num_samples=150, num_warmup=40, num_chains=2, seed=1, target_accept=0.6)


# ---------------------------------------------------------------------- the program


@pytest.mark.parametrize("loc, scale", [(0.2, 0.6), (-0.5, 1.2), (1.0, 0.1)])
def test_program_has_the_density_of_priors_and_integrated_likelihood(loc: float, scale: float) -> None:
    expected = loglik(panel(), loc, scale) + stats.norm.logpdf(loc) + stats.halfnorm.logpdf(scale)
    # 64 nodes placed about individuals' modes elsewhere: 1e-8 for each of 40
    found = log_joint(lognormal().program, **doubles(x_loc=loc, x_scale=scale))
    assert found == pytest.approx(expected, abs=1e-6)


def test_program_with_individuals_sampled_has_the_density_of_all() -> None:
    data = panel()
    z = np.linspace(-2.0, 2.0, data.num_individuals)
    at = doubles(x_loc=0.3, x_scale=0.8)
    at["standard_normals"] = torch.from_numpy(z)[:, None]
    strength = np.exp(0.3 + 0.8 * z)
    expected = stats.norm.logpdf(0.3) + stats.halfnorm.logpdf(0.8) + stats.norm.logpdf(z).sum()
    expected += stats.logistic.logcdf(strength[:, None] * differences(data)).sum()
    found = log_joint(lognormal(individuals="sampled").program, **at)
    assert found == pytest.approx(float(expected), rel=1e-12)


def weibull(data: ChoiceData | None = None, **options) -> BayesianStrength:
    priors = {"x.scale": dist.LogNormal(0.0, 0.5), "x.concentration": dist.LogNormal(0.5, 0.5)}
    return BayesianStrength(panel() if data is None else data, "x", dist.Weibull, priors, **options)


def test_any_mixing_has_the_density_of_its_integral() -> None:
    data = panel(8)
    # Gauss-Legendre on quantiles of the Weibull distribution
    nodes, weights = np.polynomial.legendre.leggauss(400)
    strength = stats.weibull_min(1.7, scale=1.3).ppf((nodes + 1) / 2)
    likelihood = stats.logistic.cdf(differences(data)[..., None] * strength).prod(1) @ (weights / 2)
    expected = (
        np.log(likelihood).sum() + stats.lognorm(0.5).logpdf(1.3) + stats.lognorm(0.5, 0, math.exp(0.5)).logpdf(1.7)
    )
    found = log_joint(weibull(data).program, **doubles(x_scale=1.3, x_concentration=1.7))
    assert found == pytest.approx(float(expected), abs=1e-5)  # the tail of the quantiles


def test_signs_and_functions_as_mixings() -> None:
    data = panel(8)
    reverse = replace(data, attributes=-data.attributes)
    priors = {"x.mean": dist.Normal(0.0, 1.0)}
    other = BayesianStrength(reverse, "x", lambda mean: dist.LogNormal(mean, 0.5), priors, sign=-1)
    one = BayesianStrength(data, "x", lambda mean: dist.LogNormal(mean, 0.5), priors)
    at = doubles(x_mean=0.4)
    assert log_joint(other.program, **at) == log_joint(one.program, **at)
    assert log_joint(one.program, **at) == pytest.approx(loglik(data, 0.4, 0.5) + stats.norm.logpdf(0.4), abs=1e-6)


@pytest.mark.parametrize("individuals", ["integrated", "sampled"])
def test_predictive_of_pyro_runs_the_program_forwards(individuals: str) -> None:
    model = lognormal(individuals=individuals)
    drawn = Predictive(model.program, num_samples=3)(predict=True)
    assert drawn["choice"].shape == (3, model.data.num_situations)
    assert set(drawn["choice"].unique().tolist()) <= {0, 1}


def test_program_serves_other_inference_of_pyro() -> None:
    model = lognormal()
    guide = AutoDelta(model.program)
    svi = pyro.infer.SVI(model.program, guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
    for _ in range(60):
        svi.step()
    # constrained modes: the peak in (loc, scale), not in log scale
    loc, scale = np.unravel_index(grid().log_density.argmax(), grid().log_density.shape)
    found = guide.median()
    # half a step of the grid, and Adam's own
    assert float(found["x.loc"]) == pytest.approx(grid().loc[loc, 0], abs=0.06)
    assert float(found["x.scale"]) == pytest.approx(grid().scale[0, scale], abs=0.06)


# ---------------------------------------------------------------------- the posterior


def test_mode_is_where_the_density_is_highest() -> None:
    model = lognormal()
    found = model.normal_approximation
    at = found.mode.clone().requires_grad_(True)

    def log_density(x: Tensor) -> Tensor:
        loc, log_scale = x.unbind()
        scale = log_scale.exp()
        nodes = torch.exp(loc + scale * torch.from_numpy(_NODES))
        utility = torch.from_numpy(differences(model.data))[..., None] * nodes
        value = torch.log(torch.sigmoid(utility).prod(1) @ torch.from_numpy(_WEIGHTS)).sum()
        return value - 0.5 * loc**2 - 0.5 * scale**2 + log_scale

    (gradient,) = torch.autograd.grad(log_density(at), at)
    hessian = torch.autograd.functional.hessian(log_density, found.mode)
    # in posterior standard deviations; the nodes moved less than 0.05 in the last round
    assert float(gradient @ found.covariance @ gradient) < 1e-8
    torch.testing.assert_close(torch.linalg.inv(-hessian), found.covariance, rtol=1e-4, atol=1e-8)


def test_nuts_against_a_grid(posterior) -> None:
    import arviz as az

    summary = az.summary(posterior, round_to=8)
    means = [
        (summary["mean"][name] - mean) / summary["mcse_mean"][name] for name, (mean, _) in grid().moments().items()
    ]
    sds = [(summary["sd"][name] - sd) / summary["mcse_sd"][name] for name, (_, sd) in grid().moments().items()]
    # Monte Carlo errors: four tests of false-failure rate 6e-5
    assert max(map(abs, means + sds)) < 4.0


@pytest.mark.parametrize(
    "made",
    [lambda: lognormal(panel(5, 3), individuals="sampled"), lambda: weibull(panel(5, 3), individuals="sampled")],
    ids=["normals", "strengths"],
)
def test_individuals_may_be_sampled(made) -> None:
    """Chains walk in unconstrained coordinates of the density of the program."""
    model = made()
    with pytest.warns(ConvergenceWarning):  # 6 draws
        chain = model.nuts(num_samples=6, num_warmup=6, num_chains=1, seed=1)
    drawn = chain.posterior.isel(chain=0, draw=4)
    sites = {name: torch.tensor(float(drawn[name]), dtype=torch.float64) for name in model.priors}
    strength = torch.from_numpy(drawn["coefficient"].values[:, 0].copy())
    slope = sum(float(value.log()) for name, value in sites.items() if name != "x.loc")  # positive by an exponential
    if "x.loc" in sites:
        latent = {"standard_normals": ((strength.log() - sites["x.loc"]) / sites["x.scale"])[:, None]}
    else:
        latent, slope = {"strength": strength}, slope + float(strength.log().sum())
    expected = log_joint(model.program, **sites, **latent) + slope
    assert float(chain.sample_stats["lp"].isel(chain=0, draw=4)) == pytest.approx(expected, abs=1e-9)
    assert chain.posterior["coefficient"].dims == ("chain", "draw", "individual", "attribute")
    # likelihoods of individuals are integrated all the same
    at = {name: float(value) for name, value in sites.items()}
    if "x.loc" in at:
        each = model.model.loglik(at)
        np.testing.assert_allclose(chain.log_likelihood["choice"].isel(chain=0, draw=4), each, atol=1e-7)


def test_variational_inference_against_a_grid() -> None:
    found = lognormal().svi(num_steps=100, num_samples=300, seed=1)
    moments = grid().moments()
    # 300 draws: errors of 0.06 sd by chance; a normal in log scale is off by some 0.1 sd
    off = [(float(found.posterior[name].mean()) - mean) / sd for name, (mean, sd) in moments.items()]
    assert max(map(abs, off)) < 0.3
    ratios = [float(found.posterior[name].std()) / sd for name, (_, sd) in moments.items()]
    assert ratios == pytest.approx([1.0, 1.0], abs=0.25)
    assert found.posterior.attrs["pareto_k"] < 0.7
    # the bound lies below the evidence, and not far; the Monte Carlo error of its 10 steps is 0.2
    assert grid().log_evidence - 0.7 < found.posterior.attrs["elbo"] < grid().log_evidence + 0.4


@pytest.mark.parametrize("individuals", ["integrated", "sampled"])
def test_a_guide_of_one_s_own_and_its_warnings(individuals: str) -> None:
    model = lognormal(panel(6, 3), individuals=individuals)
    with pytest.warns(ConvergenceWarning, match=r"guide is not close to the posterior.*nuts\(\)"):
        found = model.svi(num_steps=20, guide=AutoNormal, num_samples=50)
    assert found.posterior.attrs["guide"] == "AutoNormal"


def test_variational_inference_with_individuals_sampled() -> None:
    with pytest.warns(ConvergenceWarning):  # 5 steps
        found = lognormal(panel(5, 3), individuals="sampled").svi(num_steps=5, num_samples=20, seed=1)
    assert found.posterior["coefficient"].shape == (1, 20, 5, 1)
    loc, scale = (found.posterior[name].values[..., None] for name in ("x.loc", "x.scale"))
    standard = (np.log(found.posterior["coefficient"].values[..., 0]) - loc) / scale
    assert abs(float(standard.mean())) < 1.0  # standard normals, given three choices each


def test_units_do_not_matter() -> None:
    """Attributes in other units: the same variates give the same utilities."""
    data = panel(6, 4)
    tiny = replace(data, attributes=data.attributes * 1e-4)
    found = []
    for each in (data, tiny):
        model = BayesianMixedLogit(MixedLogitModel(each, random={"x": "normal"}))
        with pytest.warns(ConvergenceWarning):  # 6 draws
            found.append(model.nuts(num_samples=6, num_warmup=6, num_chains=1, seed=3).posterior["x.loc"])
    np.testing.assert_allclose(found[1], found[0] * 1e4, rtol=1e-3)  # the mode is found to 1e-6 sds


# ---------------------------------------------------------------------- the InferenceData


GROUPS = {
    "posterior": {"x.loc": ("chain", "draw"), "x.scale": ("chain", "draw")},
    "sample_stats": dict.fromkeys(("lp", "energy", "n_steps", "diverging"), ("chain", "draw")),
    "log_likelihood": {"choice": ("chain", "draw", "individual")},
    "posterior_predictive": {"choice": ("chain", "draw", "situation")},
    "prior": {"x.loc": ("chain", "draw"), "x.scale": ("chain", "draw")},
    "prior_predictive": {"choice": ("chain", "draw", "situation")},
    "observed_data": {"choice": ("situation",)},
    "constant_data": {"individual_index": ("situation",)},
}


@pytest.mark.parametrize("group", GROUPS)
def test_groups(posterior, group: str) -> None:
    assert {name: values.dims for name, values in posterior[group].items()} == GROUPS[group]


def test_log_likelihood_is_that_of_individuals(posterior) -> None:
    drawn = posterior.posterior.isel(chain=1, draw=17)
    at = {name: float(drawn[name]) for name in PRIORS}
    expected = MixedLogitModel(panel(), random={"x": "lognormal"}).loglik(at)
    # nodes placed at the mode against nodes placed here
    np.testing.assert_allclose(posterior.log_likelihood["choice"].isel(chain=1, draw=17), expected, atol=1e-7)
    assert list(posterior.log_likelihood["individual"].values) == list(panel().individuals)
    total = posterior.sample_stats["lp"] - posterior.log_likelihood["choice"].sum("individual")
    log_scale = np.log(posterior.posterior["x.scale"])
    prior = stats.norm.logpdf(posterior.posterior["x.loc"]) + stats.halfnorm.logpdf(posterior.posterior["x.scale"])
    np.testing.assert_allclose(total, prior + log_scale, atol=1e-9)


def test_attributes_tell_the_rule_and_its_error(posterior) -> None:
    attrs = posterior.posterior.attrs
    assert attrs["inference"] == "NUTS (Pyro)"
    assert attrs["integration"] == "Quadrature(num_nodes=64)"
    assert attrs["integration_sd"] < 1e-6


@pytest.mark.parametrize("criterion", ["loo", "waic"])
def test_criteria_and_comparison(posterior, criterion: str) -> None:
    import arviz as az

    exact = getattr(az, criterion)(posterior, pointwise=True)
    assert exact.n_data_points == 40
    # about two parameters
    assert 0.5 < exact[f"p_{criterion}"] < 4.0
    flat = BayesianMixedLogit(MixedLogitModel(panel(), fixed=["x"]), {"x": dist.Normal(0.0, 0.1)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 20 draws; and arviz's use of pandas
        other = flat.nuts(num_samples=20, num_warmup=20, num_chains=1, seed=1)
        table = az.compare({"mixed": posterior, "flat": other}, ic=criterion)
    assert list(table.index) == ["mixed", "flat"]


PLOTS = "autocorr bpv density elpd energy ess forest khat mcse pair posterior ppc rank trace"


@pytest.mark.parametrize("plot", PLOTS.split())
@pytest.mark.filterwarnings("ignore::DeprecationWarning:arviz", "ignore::DeprecationWarning:matplotlib")
def test_plots(posterior, plot: str) -> None:
    import arviz as az
    import matplotlib.pyplot as plt

    draw = getattr(az, f"plot_{plot}")
    if plot == "khat":
        draw(az.loo(posterior, pointwise=True))
    elif plot == "elpd":
        draw(dict.fromkeys(("one", "another"), posterior))
    elif plot == "density":
        draw(posterior, var_names=["x.loc"])
    elif plot in ("ppc", "bpv"):
        draw(posterior, num_pp_samples=20) if plot == "ppc" else draw(posterior)
    else:
        draw(posterior)
    assert plt.get_fignums()
    plt.close("all")


def test_a_file_keeps_all(posterior, tmp_path) -> None:
    import arviz as az

    posterior.to_netcdf(str(tmp_path / "posterior.nc"))
    again = az.from_netcdf(str(tmp_path / "posterior.nc"))
    assert again.groups() == posterior.groups()
    assert bool((again.posterior["x.loc"] == posterior.posterior["x.loc"]).all())
    assert again.posterior.attrs["integration"] == posterior.posterior.attrs["integration"]


def test_frequencies_count_individuals_so_often() -> None:
    data = panel(6)
    weights = torch.tensor([3.0, 1.0, 1.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    model = lognormal(replace(data, weights=weights))
    at = doubles(x_loc=0.3, x_scale=0.8)
    each = MixedLogitModel(data, random={"x": "lognormal"}).loglik({"x.loc": 0.3, "x.scale": 0.8})
    expected = float(weights @ each) + stats.norm.logpdf(0.3) + stats.halfnorm.logpdf(0.8)
    assert log_joint(model.program, **at) == pytest.approx(expected, abs=1e-6)
    with pytest.warns(ConvergenceWarning):  # 4 draws
        found = model.nuts(num_samples=4, num_warmup=4, num_chains=1)
    drawn = found.posterior.isel(chain=0, draw=0)
    counted = weights * model.model.loglik({name: float(drawn[name]) for name in PRIORS})
    np.testing.assert_allclose(found.log_likelihood["choice"].isel(chain=0, draw=0), counted, atol=1e-7)


def test_correlated_blocks_and_their_moments() -> None:
    truth = {"x.loc": 0.5, "y.loc": -0.3, "chol.x.x": 0.8, "chol.y.x": 0.3, "chol.y.y": 0.5}
    random = {"x": "normal", "y": "normal"}
    data = simulate_choices(truth, random=random, correlated=True, num_individuals=20, num_situations=4, seed=1).data
    model = BayesianMixedLogit(MixedLogitModel(data, random=random, correlated=True), {
        "correlation": dist.LKJCholesky(2, 2.0)})  # fmt: skip
    with pytest.warns(ConvergenceWarning):  # 6 draws
        found = model.nuts(num_samples=6, num_warmup=6, num_chains=1, seed=2)
    drawn = {name: values.values for name, values in found.posterior.items()}
    assert set(drawn) == {*model.model.specification.names, "x.scale", "y.scale"}
    np.testing.assert_allclose(np.hypot(drawn["chol.y.x"], drawn["chol.y.y"]), drawn["y.scale"], rtol=1e-12)
    moments = model.moments(found)
    np.testing.assert_allclose(moments["y.sd"], drawn["y.scale"], rtol=1e-12)
    np.testing.assert_allclose(moments["cor.y.x"], drawn["chol.y.x"] / drawn["y.scale"], rtol=1e-12)
    np.testing.assert_allclose(moments["x.mean"], drawn["x.loc"], rtol=1e-12)


def test_moments_are_at_the_covariates_mean() -> None:
    random = {"x": Random("lognormal", mean_covariates=["age"])}
    truth = {"x.loc": 0.1, "x.loc:age": 0.2, "x.scale": 0.5}
    data = simulate_choices(truth, random=random, num_individuals=15, num_situations=3, seed=1).data
    model = BayesianMixedLogit(MixedLogitModel(data, random=random))
    with pytest.warns(ConvergenceWarning):  # 4 draws
        found = model.nuts(num_samples=4, num_warmup=4, num_chains=1)
    at = found.posterior["x.loc"] + found.posterior["x.loc:age"] * float(data.covariate("age").mean())
    expected = np.exp(at + found.posterior["x.scale"] ** 2 / 2)
    np.testing.assert_allclose(model.moments(found)["x.mean"], expected, rtol=1e-12)


# ---------------------------------------------------------------------- predictions


def test_prior_predictive() -> None:
    found = lognormal(panel(6)).prior_predictive(num_samples=2000, seed=3)
    assert found.groups() == ["prior", "prior_predictive", "observed_data", "constant_data"]
    pvalues = [
        stats.kstest(found.prior["x.loc"].values[0], stats.norm.cdf).pvalue,
        stats.kstest(found.prior["x.scale"].values[0], stats.halfnorm.cdf).pvalue,
    ]
    assert min(pvalues) > 1e-3  # false-failure rate 2e-3
    # the share of the first alternative by nodes over both parameters and the strength
    rng = np.random.default_rng(0)
    loc, scale, z = rng.standard_normal(200_000), np.abs(rng.standard_normal(200_000)), rng.standard_normal(200_000)
    x = panel(6).attribute("x")
    utility = float(x[0, 0] - x[0, 1]) * np.exp(np.minimum(loc + scale * z, 50.0))
    expected = float(stats.logistic.cdf(utility).mean())
    share = float((found.prior_predictive["choice"].isel(situation=0) == 0).mean())
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 2000))  # rate 6e-5


def test_posterior_predictive_of_a_scenario(posterior) -> None:
    data = panel()
    both = scenario(data, {"x": torch.tensor([1.0, 0.0])})
    found = lognormal().posterior_predictive(posterior, both, seed=5)
    assert found.posterior_predictive["choice"].shape == (2, 150, data.num_situations)
    drawn = {name: posterior.posterior[name].values.reshape(-1, 1) for name in PRIORS}
    probability = stats.logistic.cdf(np.exp(drawn["x.loc"] + drawn["x.scale"] * _NODES)) @ _WEIGHTS
    share = float((found.posterior_predictive["choice"] == 0).mean())
    # 300 draws of 40 new individuals, several choices of each: 12,000 independent strengths; rate 6e-5
    assert share == pytest.approx(float(probability.mean()), abs=4 * 0.5 / math.sqrt(12_000))
    anew = lognormal().posterior_predictive(posterior, both, seed=5)
    assert found.posterior_predictive.equals(anew.posterior_predictive)


def test_predictions_want_draws_of_the_model(posterior) -> None:
    with pytest.raises(InvalidInputError, match=r"posterior: got no \['x.concentration'\]"):
        weibull().posterior_predictive(posterior)


# ---------------------------------------------------------------------- seeds, workers, progress


def test_a_seed_gives_the_same_draws_and_leaves_the_generator() -> None:
    data, settings = panel(6, 3), {"num_samples": 5, "num_warmup": 5, "num_chains": 2}
    before = torch.random.get_rng_state()
    found = []
    for seed in (1, 1, 2):
        with pytest.warns(ConvergenceWarning):  # 5 draws
            found.append(lognormal(data).nuts(**settings, seed=seed))
    assert torch.equal(before, torch.random.get_rng_state())
    first, again, other = found
    assert first.posterior.equals(again.posterior)
    assert first.posterior_predictive.equals(again.posterior_predictive)
    assert not first.posterior.equals(other.posterior)
    assert not np.array_equal(first.posterior["x.loc"][0], first.posterior["x.loc"][1])


def test_workers_do_not_matter() -> None:
    """Through joblib, in this process; and a model that went through pickle, as it does to another."""
    data, settings = panel(6, 3), {"num_samples": 5, "num_warmup": 5, "num_chains": 2, "seed": 1}
    model = lognormal(data)
    with pytest.warns(ConvergenceWarning):
        one = model.nuts(**settings)
    again = pickle.loads(cloudpickle.dumps(model))
    with pytest.warns(ConvergenceWarning), parallel_config(backend="sequential"):
        two = again.nuts(**settings, num_workers=2)
    assert one.posterior.equals(two.posterior)
    assert one.sample_stats.equals(two.sample_stats)


@pytest.mark.parametrize("method, shown", [("nuts", ["chains", "log-likelihoods"]), ("svi", ["variational inference"])])
def test_progress_is_shown(capsys, method: str, shown: list[str]) -> None:
    settings = (
        {"num_samples": 4, "num_warmup": 4, "num_chains": 1}
        if method == "nuts"
        else {"num_steps": 5, "num_samples": 20}
    )
    with pytest.warns(ConvergenceWarning):
        getattr(lognormal(panel(6, 3)), method)(**settings, progress=True)
    text = capsys.readouterr().out
    assert [words in text for words in shown] == [True] * len(shown)


# ---------------------------------------------------------------------- warnings and refusals


def test_a_coarse_rule_is_told() -> None:
    truth = {"x.loc": 1.0, "x.scale": 3.0}
    data = simulate_choices(truth, random={"x": "normal"}, num_individuals=60, num_situations=20, seed=1).data
    model = BayesianMixedLogit(MixedLogitModel(data, random={"x": "normal"}), integration=QuasiMonteCarlo("sobol", 8))
    with (
        pytest.warns(IntegrationWarning, match=r"errs with a standard deviation.*more draws"),
        pytest.warns(ConvergenceWarning),  # 8 draws
    ):
        found = model.nuts(num_samples=8, num_warmup=8, num_chains=1)
    assert found.posterior.attrs["integration_sd"] > 0.5


def two_coefficients() -> MixedLogitModel:
    data = simulate_choices({"x": 1.0, "y": 0.5}, fixed=["x", "y"], num_individuals=20, num_alternatives=3, seed=1).data
    return MixedLogitModel(data, ["x"], {"y": "normal"})


@pytest.mark.parametrize(
    "arguments, message",
    [
        pytest.param({"priors": {"z": dist.Normal(0.0, 1.0)}}, r"priors: got \['z'\].*'y.scale'", id="no parameter"),
        pytest.param({"priors": {"y.scale": dist.Normal(0.0, 1.0)}}, "positive numbers", id="a negative scale"),
        pytest.param({"individuals": "marginalised"}, "'integrated', 'sampled'", id="no such way"),
    ],
)
def test_refusals(arguments, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        BayesianMixedLogit(two_coefficients(), **arguments)


def test_individuals_that_do_not_differ_are_not_sampled() -> None:
    plain = MixedLogitModel(two_coefficients().data, ["x", "y"])
    with pytest.raises(InvalidInputError, match="without random coefficients"):
        BayesianMixedLogit(plain, individuals="sampled")


def test_frequencies_are_not_sampled() -> None:
    data = replace(panel(6), weights=torch.full((6,), 2.0, dtype=torch.float64))
    with pytest.raises(InvalidInputError, match=r"frequencies.*integrated"):
        lognormal(data, individuals="sampled")


def test_names_of_the_program_are_taken() -> None:
    data = replace(panel(6), variables=("choice",))
    with pytest.raises(InvalidInputError, match=r"\['choice'\].*renaming"):
        BayesianMixedLogit(MixedLogitModel(data, fixed=["choice"]))


POSITIVE = dist.LogNormal(0.0, 1.0)


@pytest.mark.parametrize(
    "mixing, priors, message",
    [
        pytest.param(dist.Weibull, {}, "got none.*x.argument", id="no priors"),
        pytest.param(dist.Weibull, {"scale": POSITIVE}, r"\['scale'\].*x.argument", id="no attribute"),
        pytest.param(dist.Weibull, {"x.scale": POSITIVE}, "concentration", id="an argument less"),
        pytest.param(dist.Weibull, {"x.scale": POSITIVE, "x.shape": POSITIVE}, "shape", id="another argument"),
        pytest.param(dist.Exponential, {"x.rate": dist.Uniform(-2.0, -1.0)}, "rate", id="values out of range"),
        pytest.param(dist.Exponential, {"x.rate": 1.0}, "scalar continuous", id="a number"),
    ],
)
def test_refusals_of_a_mixing(mixing, priors, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        BayesianStrength(panel(6), "x", mixing, priors)


def test_a_mixing_is_scalar_and_has_a_sign() -> None:
    priors = {"x.loc": dist.Normal(0.0, 1.0)}

    def vector(loc: Tensor) -> dist.TorchDistribution:
        return dist.Normal(loc.expand(2), 1.0)

    with pytest.raises(InvalidInputError, match="a scalar distribution"):
        BayesianStrength(panel(6), "x", vector, priors)
    with pytest.raises(InvalidInputError, match="sign: got 2"):
        BayesianStrength(panel(6), "x", vector, priors, sign=2)


@pytest.mark.parametrize(
    "call, settings, message",
    [
        ("nuts", {"num_samples": 0}, "num_samples: got 0"),
        ("nuts", {"num_chains": 1.5}, "num_chains: got 1.5"),
        ("nuts", {"num_workers": 0}, "num_workers: got 0"),
        ("nuts", {"target_accept": 1.0}, "target_accept: got 1.0"),
        ("svi", {"num_steps": True}, "num_steps: got True"),
        ("svi", {"learning_rate": 0.0}, "learning_rate: got 0.0"),
        ("prior_predictive", {"num_samples": -1}, "num_samples: got -1"),
    ],
)
def test_refusals_of_settings(call: str, settings, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        getattr(lognormal(panel(6)), call)(**settings)


# ---------------------------------------------------------------------- calibration, in small


def test_simulation_based_calibration(study) -> None:
    """Five of the simulations of validation/bayes.py, nine draws kept of each: large biases are seen."""
    replications = 5
    found = study("bayes").calibrate(replications, kept=9, warmup=15)

    def score(ranks: np.ndarray) -> float:
        """About N(0, 1) where ranks are uniform on 0..9, a little less wide."""
        return float(stats.norm.ppf((ranks + 0.5) / 10).sum()) / math.sqrt(replications)

    # three scores of false-failure rate 1e-3
    assert max(abs(score(ranks)) for ranks in found.ranks.values()) < 3.3
    assert score(np.zeros(replications)) < -3.3  # were the truth below all draws each time


def test_band_of_histograms(study) -> None:
    script = study("bayes")
    low, high = script.band(200, 3)
    rng = np.random.default_rng(0)
    histograms = rng.multinomial(200, [1 / script.BINS] * script.BINS, size=(4000, 3))
    outside = float(((histograms < low) | (histograms > high)).any((1, 2)).mean())
    # at most 1 % by construction, and not much less, since counts are whole numbers; errors of 4,000 below 0.2 %
    assert 0.002 < outside < 0.013
    ranks = np.arange(40)
    assert script.counts(ranks, 39).tolist() == [4] * 10
