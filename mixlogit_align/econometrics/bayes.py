"""The mixed logit as a Pyro program: priors, NUTS and variational inference, reported as arviz InferenceData."""

# C chains, D draws, N individuals, S situations, J alternatives, V coefficients, P parameters.

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.distributions import biject_to

from mixlogit_align.distributions import Integration
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.inference_data import (
    ATTRIBUTE,
    CHOICE,
    COEFFICIENT,
    INDIVIDUAL,
    SITUATION,
    inference_data,
    warn_of_chains,
    warn_of_guide,
)
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.population import Coefficients, Params, Population, Strengths, each_draw
from mixlogit_align.econometrics.priors import check_prior, correlation_sites, default_priors, with_right_draws
from mixlogit_align.econometrics.sampling import (
    PARAMETERS,
    Chain,
    fit_guide,
    normal_guide,
    progress_bar,
    sample_chain,
    seeded,
)
from mixlogit_align.errors import IntegrationWarning, InvalidInputError, explain
from mixlogit_align.inference import MaximumLikelihood, maximize_loglik

if TYPE_CHECKING:
    import arviz as az
    import xarray as xr

_RESERVED = (
    *(INDIVIDUAL, SITUATION, ATTRIBUTE, CHOICE, COEFFICIENT, Coefficients.site, Strengths.site),
    *("chain", "draw", "loglik"),
)
# Draws of a prior that tell where and how wide it is in unconstrained coordinates.
_WIDTH_DRAWS = 201
# Nodes about individuals' modes follow the posterior mode until it moves by less, in posterior sds, or rounds end.
_SETTLED, _ROUNDS = 0.05, 3
# Chains start this many posterior standard deviations about the mode.
_DISPERSION = 1.5
# Draws at which the likelihood is compared with that by other nodes, and what difference is told.
_COMPARED, _ROUGH = 16, 0.5
_PRIOR_DRAWS = 500
# Utilities at a time.
_CHUNK = 2**22


@dataclass(frozen=True)
class NormalApproximation:
    """The posterior near its mode, in unconstrained coordinates (P,).

    Attributes
    ----------
    mode : Tensor, shape (P,)
    covariance : Tensor, shape (P, P)
        Inverse of minus the Hessian of the log posterior density, its eigenvalues taken positive.
    sites : dict of str to Tensor
        The mode by site of the program, constrained.
    """

    mode: Tensor
    covariance: Tensor
    sites: dict[str, Tensor]

    @cached_property
    def half(self) -> Tensor:
        """Cholesky factor of the covariance, (P, P)."""
        half: Tensor = torch.linalg.cholesky(self.covariance)
        return half

    def coordinates(self, white: Tensor) -> Tensor:
        """Unconstrained coordinates (..., P) of those (..., P) in which the approximation is standard normal."""
        return self.mode + white @ self.half.T


class BayesianModel:
    """A population of individuals, priors on its parameters, and what individuals chose, as a Pyro program.

    What :class:`BayesianMixedLogit` and :class:`BayesianStrength` share.
    """

    def __init__(
        self, data: ChoiceData, population: Population, priors: Mapping[str, TorchDistribution], individuals: str
    ) -> None:
        self.data = data
        self.priors = dict(priors)
        self.individuals = individuals
        self._population = population
        _require(individuals in ("integrated", "sampled"), "individuals", repr(individuals), "'integrated', 'sampled'")
        frequencies = not bool((data.weights == 1).all())
        _require(
            not (frequencies and individuals == "sampled"),
            "weights",
            "frequencies, where individuals are sampled",
            "one row an individual",
            "individuals='integrated'",
        )
        clash = [name for name in population.variables if name in _RESERVED]
        _require(not clash, "attributes", clash, f"other names than {list(_RESERVED)}", "renaming the columns")

    # ------------------------------------------------------------------ the program

    def program(self, predict: bool = False) -> None:
        """The Pyro model; any inference of Pyro may take it.

        Parameters are sampled from their priors at sites named as in ``priors``. With ``individuals="integrated"`` the
        log-likelihood is a factor; with "sampled", individuals' latents are sampled and choices observed.

        Parameters
        ----------
        predict : bool
            True: individuals and their choices are sampled (site ``"choice"``, shape (S,), indices of alternatives),
            so that ``pyro.infer.Predictive(b.program, ...)(predict=True)`` runs the model forwards.
        """
        sampled = predict or self.individuals == "sampled"
        if not sampled:
            self.normal_approximation  # noqa: B018 - makes integration ready
        self._program(sampled=sampled, predict=predict)

    def _program(self, *, sampled: bool, predict: bool = False) -> None:
        params = self._population.parameters({name: pyro.sample(name, prior) for name, prior in self.priors.items()})
        if not sampled:
            pyro.factor("loglik", self._population.total(params))
            return
        with pyro.plate(INDIVIDUAL, self.data.num_individuals):
            latent = pyro.sample(self._population.site, self._population.latent(params))
        logits = _utilities(self._population.coefficients(params, latent, self.data), self.data, self._attributes)
        with pyro.plate(SITUATION, self.data.num_situations):
            pyro.sample(CHOICE, dist.Categorical(logits=logits), obs=None if predict else self.data.choice)

    @cached_property
    def _attributes(self) -> Tensor:
        return _attributes(self.data, self._population.variables)

    # ------------------------------------------------------------------ coordinates and the mode

    @cached_property
    def _prior_points(self) -> dict[str, Tensor]:
        """Draws of priors in unconstrained coordinates."""
        with seeded(0):
            return {
                name: biject_to(prior.support).inv(prior.sample(torch.Size([_WIDTH_DRAWS])).to(torch.float64))
                for name, prior in self.priors.items()
            }

    def _unconstrained(self, flat: Tensor) -> dict[str, Tensor]:
        """Coordinates (..., P) by site."""
        shapes = {name: points.shape[1:] for name, points in self._prior_points.items()}
        parts = flat.split([shape.numel() for shape in shapes.values()], -1)
        return {
            name: part.reshape(flat.shape[:-1] + shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }

    def _sites(self, flat: Tensor) -> dict[str, Tensor]:
        """Values of sites (..., event) at coordinates (..., P)."""
        return {name: biject_to(self.priors[name].support)(x) for name, x in self._unconstrained(flat).items()}

    def _log_density(self, flat: Tensor) -> Tensor:
        """Log density () of the posterior at coordinates (P,), up to a constant, individuals integrated out.

        The same as the program's, and free of what handles it: it is asked for while the program runs.
        """
        unconstrained = self._unconstrained(flat)
        sites = self._sites(flat)
        total = self._population.total(self._population.parameters(sites))
        for name, prior in self.priors.items():
            slope = biject_to(prior.support).log_abs_det_jacobian(unconstrained[name], sites[name])
            total = total + prior.log_prob(sites[name]) + slope
        return total

    @cached_property
    @torch.enable_grad()
    def normal_approximation(self) -> NormalApproximation:
        """Mode and curvature of the posterior with individuals integrated out; found once.

        The nodes of the likelihood are placed here, where individuals are likely at the mode.
        """
        points = torch.cat([points.reshape(_WIDTH_DRAWS, -1) for points in self._prior_points.values()], 1)
        # in coordinates in which the priors are about as wide
        width, start = points.std(0), points.median(0).values
        self._population.place(None)

        def log_density(x: Tensor) -> Tensor:
            return self._log_density(x * width)

        def place(found: MaximumLikelihood) -> bool:
            return self._population.place(self._population.parameters(self._sites(found.params * width)))

        found = maximize_loglik(log_density, start / width, polish=False)
        follows = place(found)
        for _ in range(_ROUNDS):
            before = found.params
            found = maximize_loglik(log_density, before)
            step = found.params - before
            if not follows or float(-step @ found.hessian @ step) < _SETTLED**2:
                break
            place(found)
        values, vectors = torch.linalg.eigh(-found.hessian)
        inverse = vectors / values.abs().clamp_min(1e-3) @ vectors.T
        mode = found.params * width
        return NormalApproximation(mode, width[:, None] * inverse * width, self._sites(mode))

    # ------------------------------------------------------------------ inference

    def prior_predictive(self, num_samples: int = _PRIOR_DRAWS, *, seed: int = 0) -> az.InferenceData:
        """Draw parameters from their priors, and what new individuals would choose.

        Parameters
        ----------
        num_samples, seed : int

        Returns
        -------
        arviz.InferenceData
            prior, prior_predictive, observed_data and constant_data, as of :meth:`nuts`.
        """
        _require_counts(num_samples=num_samples)
        return inference_data(self.data, self._population.variables, self._prior_groups(num_samples, seed))

    def nuts(
        self,
        num_samples: int = 1000,
        num_warmup: int = 500,
        num_chains: int = 4,
        *,
        seed: int = 0,
        target_accept: float = 0.8,
        num_workers: int = 1,
        progress: bool = False,
    ) -> az.InferenceData:
        """Sample the posterior by the no-U-turn sampler (Hoffman and Gelman 2014), Pyro's.

        Chains start about the mode, 1.5 posterior standard deviations away, in coordinates in which the normal
        approximation of the parameters is standard. The step size is adapted during the warm-up; so is the mass matrix,
        if that has 150 transitions or more.

        Parameters
        ----------
        num_samples, num_warmup : int
            Of each chain.
        num_chains : int
        seed : int
            The same seed gives the same draws; torch's global generator is left as it was.
        target_accept : float
            Larger where there are divergences, 0.9 or 0.95.
        num_workers : int
            Processes among which joblib shares the chains.
        progress : bool
            Show a bar.

        Returns
        -------
        arviz.InferenceData
            posterior: natural parameters by name, the scales of correlated blocks besides, and ``coefficient``
            (individual, attribute) where individuals are sampled; sample_stats: ``lp``, ``energy``, ``n_steps``,
            ``diverging``; log_likelihood: ``choice`` (individual), individuals integrated out and frequencies counted,
            which is what az.loo and az.waic are about; posterior_predictive: ``choice`` (situation), index of the
            alternative, of the same individuals where they are sampled, of new ones else; prior and prior_predictive:
            500 draws; observed_data: ``choice``; constant_data: ``individual_index`` of each situation. Attributes of
            the posterior say which rule integrates, and its error: the standard deviation over the posterior of the
            log-likelihood's difference from that by other draws or nodes, made for the draw.

        Warns
        -----
        ConvergenceWarning
            For divergences, R-hat above 1.01, fewer than 100 effective draws a chain (of scalars), BFMI below 0.3.
        IntegrationWarning
            If the error of integration exceeds 0.5.
        """
        _require_counts(num_samples=num_samples, num_warmup=num_warmup, num_chains=num_chains, num_workers=num_workers)
        _require(0.0 < target_accept < 1.0, "target_accept", target_accept, "between 0 and 1", "0.8")
        self.normal_approximation  # noqa: B018 - found once, not in every worker
        settings = {"num_samples": num_samples, "num_warmup": num_warmup, "target_accept": target_accept}
        seeds = [seed + 7919 * chain for chain in range(num_chains)]
        in_turn = num_workers == 1
        with progress_bar(progress, "chains", num_chains * (num_samples + num_warmup if in_turn else 1)) as advance:
            if in_turn:
                chains = [self._chain(each, settings, advance) for each in seeds]
            else:
                from joblib import Parallel, delayed

                chains = []
                runs = (delayed(self._chain)(each, settings) for each in seeds)
                for chain in Parallel(n_jobs=num_workers, return_as="generator")(runs):
                    chains.append(chain)
                    advance()
        white = torch.stack([chain.draws[PARAMETERS] for chain in chains])
        sites = self._sites(self.normal_approximation.coordinates(white))
        latent = None
        if self.individuals == "sampled":
            latent = torch.stack([chain.draws[self._population.site] for chain in chains])
        stats = {name: torch.stack([chain.stats[name] for chain in chains]).numpy() for name in chains[0].stats}
        found = self._posterior_data(sites, latent, {"inference": "NUTS (Pyro)"}, seed, progress, stats)
        warn_of_chains(found)
        return found

    def _chain(self, seed: int, settings: Mapping[str, Any], advance: Callable[[], None] = lambda: None) -> Chain:
        approximation, population = self.normal_approximation, self._population
        with seeded(seed):
            _, pyro_potential, transforms, _ = initialize_model(self.program)
            initial = {PARAMETERS: _DISPERSION * torch.randn(len(approximation.mode), dtype=torch.float64)}
        if self.individuals == "sampled":
            likely = population.likely_latents(population.parameters(approximation.sites))
            site = population.site
            initial[site] = transforms[site](likely) if site in transforms else likely

        def potential(blocks: Mapping[str, Tensor]) -> Tensor:
            others = {name: value for name, value in blocks.items() if name != PARAMETERS}
            at = self._unconstrained(approximation.coordinates(blocks[PARAMETERS]))
            value: Tensor = pyro_potential({**at, **others})
            return value

        chain = sample_chain(potential, initial, **settings, seed=seed + 1, advance=advance)
        if self.individuals == "sampled" and site in transforms:
            chain.draws[site] = transforms[site].inv(chain.draws[site])
        return chain

    def svi(
        self,
        num_steps: int = 2000,
        *,
        guide: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
        learning_rate: float = 0.01,
        num_samples: int = 1000,
        seed: int = 0,
        progress: bool = False,
    ) -> az.InferenceData:
        """Approximate the posterior by stochastic variational inference.

        Parameters
        ----------
        num_steps : int
            Of ClippedAdam, one draw of the guide each; the learning rate falls tenfold on the way.
        guide : callable, optional
            Program to guide, such as an autoguide class of Pyro. None: a normal distribution with any covariance, begun
            at the normal approximation at the mode; where individuals are sampled, their latents are independent of it
            and of each other, which understates the uncertainty.
        learning_rate : float
            In posterior standard deviations, for the default guide.
        num_samples : int
            Draws from the guide.
        seed, progress
            As of :meth:`nuts`.

        Returns
        -------
        arviz.InferenceData
            As of :meth:`nuts`, one chain and no sample_stats. Attributes of the posterior have ``elbo``, the average
            over the last tenth of the steps, and ``pareto_k`` of the importance ratios: how close the guide is.

        Warns
        -----
        ConvergenceWarning
            If the evidence lower bound still rises, or ``pareto_k`` exceeds 0.7.
        IntegrationWarning
            As of :meth:`nuts`.
        """
        _require_counts(num_steps=num_steps, num_samples=num_samples)
        _require(learning_rate > 0.0, "learning_rate", learning_rate, "a positive number", "0.01")
        made = self._normal_guide() if guide is None else guide(self.program)
        site = self._population.site
        sampled = [site] if self.individuals == "sampled" else []
        with progress_bar(progress, "variational inference", num_steps) as advance:
            found = fit_guide(
                self.program,
                made,
                [*self.priors, *sampled],
                num_steps=num_steps,
                learning_rate=learning_rate,
                num_samples=num_samples,
                seed=seed,
                advance=advance,
            )
        bound, pareto_k = warn_of_guide(found.elbo.numpy(), found.log_ratio.numpy())
        attrs = {"inference": "SVI (Pyro)", "guide": type(made).__name__, "elbo": bound, "pareto_k": pareto_k}
        sites = {name: found.draws[name][None] for name in self.priors}
        latent = found.draws[site][None] if sampled else None
        return self._posterior_data(sites, latent, attrs, seed, progress)

    def _normal_guide(self) -> Callable[..., Any]:
        approximation, population = self.normal_approximation, self._population
        values, apart = dict(approximation.sites), None
        if self.individuals == "sampled":
            apart = population.site
            values[apart] = population.likely_latents(population.parameters(approximation.sites))
        guide: Callable[..., Any] = normal_guide(self.program, approximation.mode, approximation.half, values, apart)
        return guide

    def posterior_predictive(
        self, posterior: az.InferenceData, data: ChoiceData | None = None, *, seed: int = 0
    ) -> az.InferenceData:
        """What new individuals would choose, for every draw of the posterior.

        Parameters
        ----------
        posterior : arviz.InferenceData
            Of this model.
        data : ChoiceData, optional
            Other situations, those of :func:`mixlogit_align.econometrics.predictions.scenario` for instance; its
            choices are not read. None: the model's.
        seed : int

        Returns
        -------
        arviz.InferenceData
            posterior_predictive: ``choice`` (situation); observed_data and constant_data of the situations.

        Raises
        ------
        InvalidInputError
            If an attribute or a parameter is missing.
        """
        drawn = posterior["posterior"]
        shape = drawn.sizes["chain"], drawn.sizes["draw"]
        missing = [name for name in self._population.names if name not in drawn]
        _require(not missing, "posterior", f"no {missing}", "draws of this model", "its own nuts() or svi()")
        params = {name: torch.from_numpy(drawn[name].values.reshape(-1)) for name in self._population.names}
        with seeded(seed):
            choices, _ = self._simulate(params, None, data or self.data)
        return inference_data(
            data or self.data,
            self._population.variables,
            {"posterior_predictive": {CHOICE: choices.unflatten(0, shape).numpy()}},
        )

    # ------------------------------------------------------------------ what is made of draws

    def _prior_groups(self, num_samples: int, seed: int) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
        with seeded(seed):
            sites = {name: prior.sample(torch.Size([num_samples])) for name, prior in self.priors.items()}
            params = self._population.parameters(sites)
            choices, _ = self._simulate(params, None, self.data)
        return {
            "prior": {name: values[None].numpy() for name, values in params.items()},
            "prior_predictive": {CHOICE: choices[None].numpy()},
        }

    @torch.no_grad()
    def _posterior_data(
        self,
        sites: Params,
        latent: Tensor | None,
        attrs: dict[str, Any],
        seed: int,
        progress: bool,
        stats: dict[str, np.ndarray[Any, Any]] | None = None,
    ) -> az.InferenceData:
        """All groups, from draws (C, D, ...) of sites and, where these are sampled, of latents."""
        params = self._population.parameters(sites)
        shape = next(iter(params.values())).shape
        flat = {name: values.flatten() for name, values in params.items()}
        logliks = []
        with progress_bar(progress, "log-likelihoods", shape.numel()) as advance:
            for at in each_draw(flat):
                logliks.append(self.data.weights * self._population.loglik(at))
                advance()
        with seeded(seed):
            choices, coefficients = self._simulate(flat, None if latent is None else latent.flatten(0, 1), self.data)
        posterior = {name: values.numpy() for name, values in params.items()}
        if latent is not None:
            posterior[COEFFICIENT] = coefficients.unflatten(0, shape).numpy()
        error = self._integration_sd(flat, torch.stack([values.sum() for values in logliks]))
        groups = {
            "posterior": posterior,
            **({} if stats is None else {"sample_stats": stats}),
            "log_likelihood": {CHOICE: torch.stack(logliks).unflatten(0, shape).numpy()},
            "posterior_predictive": {CHOICE: choices.unflatten(0, shape).numpy()},
            **self._prior_groups(_PRIOR_DRAWS, seed + 1),
        }
        attrs = {**attrs, "integration": self._population.rule, "integration_sd": error}
        return inference_data(self.data, self._population.variables, groups, attrs)

    def _simulate(self, params: Params, latent: Tensor | None, data: ChoiceData) -> tuple[Tensor, Tensor]:
        """Choices (D, S) and coefficients (D, N, V) of D draws of parameters (D,) and latents (D, N, ...).

        Without latents individuals are drawn from the mixing distribution.
        """
        if latent is None:
            latent = self._population.sample_latents(params, data.num_individuals)
        coefficients = self._population.coefficients(params, latent, data)
        attributes = _attributes(data, self._population.variables)
        size = max(1, _CHUNK // data.available.numel())
        # the largest of utilities plus Gumbel variates
        choices = [
            (utilities - torch.empty_like(utilities).exponential_().log()).argmax(-1).to(torch.int16)
            for utilities in (_utilities(part, data, attributes) for part in coefficients.split(size))
        ]
        return torch.cat(choices), coefficients

    def _integration_sd(self, params: Params, logliks: Tensor) -> float:
        """Standard deviation, over some draws, of what other nodes add to the log-likelihood; NaN without others."""
        differences = []
        for d in np.linspace(0, len(logliks) - 1, _COMPARED).round().astype(int).tolist():
            anew = self._population.total_anew({name: values[d] for name, values in params.items()})
            if anew is None:
                return math.nan
            differences.append(float(anew - logliks[d]))
        error = float(np.std(differences))
        if error > _ROUGH:
            warnings.warn(
                f"the log-likelihood by {self._population.rule} errs with a standard deviation of {error:.2g} over the "
                "posterior. Try integration= with more draws",
                IntegrationWarning,
                stacklevel=5,  # past torch's wrapper of _posterior_data
            )
        return error


class BayesianMixedLogit(BayesianModel):
    """A mixed logit as a Pyro program, with priors on its parameters.

    What individuals chose enters in one of two ways:

    - ``individuals="integrated"``: by the simulated likelihood of the package, individuals integrated out, with its
      analytic gradient and Hessian. Only the parameters are sampled, which NUTS does fast.
    - ``individuals="sampled"``: every individual's standard normals are sampled too (site ``"standard_normals"``, a
      non-centred parametrisation), choices are observed. No integration rule, many coordinates; the InferenceData then
      has every individual's coefficients.

    The integrated likelihood uses nodes that do not move, placed where individuals' coefficients are likely at the
    posterior mode; after sampling they are compared with nodes made for draws of the posterior.

    Parameters
    ----------
    model : MixedLogitModel
    priors : mapping of str to pyro.distributions.TorchDistribution, optional
        Instead of those of :func:`default_priors`; scalar and continuous, not negative for scales. In correlated
        blocks of scales and ``"correlation"``.
    individuals : str
        "integrated" or "sampled".
    integration : integration rule, optional
        As of :meth:`MixedLogitModel.fit`.

    Attributes
    ----------
    priors : dict of str to pyro.distributions.TorchDistribution
        All of them.

    Raises
    ------
    InvalidInputError
        For an unknown parameter or a prior that does not fit it, frequencies or no random coefficients where
        individuals are sampled, or an attribute named as a site of the program.
    """

    def __init__(
        self,
        model: MixedLogitModel,
        priors: Mapping[str, TorchDistribution] | None = None,
        *,
        individuals: str = "integrated",
        integration: Integration | None = None,
    ) -> None:
        self.model = model
        spec = model.specification
        defaults, given = default_priors(model.data, spec), dict(priors or {})
        unknown = [name for name in given if name not in defaults]
        _require(not unknown, "priors", unknown, f"some of {list(defaults)}", "their names")
        blocks = correlation_sites(spec)
        for name, prior in given.items():
            nonnegative = name.endswith(".scale") or name in (*spec.scales, *spec.logged)
            check_prior(name, prior, nonnegative=nonnegative, correlated=len(blocks.get(name, ())))
        _require(
            spec.num_dims > 0 or individuals != "sampled",
            "individuals",
            "'sampled' without random coefficients",
            "individuals that differ",
            "individuals='integrated'",
        )
        priors = {name: with_right_draws(prior) for name, prior in (defaults | given).items()}
        super().__init__(model.data, Coefficients(model, integration), priors, individuals)

    def moments(self, data: az.InferenceData) -> xr.Dataset:
        """Posterior of means, standard deviations and correlations of random coefficients.

        Parameters
        ----------
        data : arviz.InferenceData
            From :meth:`nuts` or :meth:`svi`.

        Returns
        -------
        xarray.Dataset
            ``"time.mean"``, ``"time.sd"``, ``"cor.time.cost"``, as ``result.moments``, for every draw; where means
            depend on covariates, at the covariates' mean.
        """
        import xarray as xr

        spec, posterior = self.model.specification, data["posterior"]
        weights = self.data.weights / self.data.weights.sum()
        covariates = [weights @ self.data.covariate(name) for name in spec.covariates]
        at = torch.stack(covariates) if covariates else torch.zeros(0, dtype=torch.float64)
        shape = posterior.sizes["chain"], posterior.sizes["draw"]
        params = np.stack([posterior[name].values.reshape(-1) for name in spec.names], -1)
        made = [spec.moments(row, at) for row in torch.from_numpy(params)]
        values = np.stack([each[1].numpy() for each in made], -1)
        columns = zip(made[0][0], values, strict=True)
        coords = {name: posterior[name] for name in ("chain", "draw")}
        return xr.Dataset({name: (("chain", "draw"), x.reshape(shape)) for name, x in columns}, coords)


class BayesianStrength(BayesianModel):
    """A scalar strength with any mixing distribution of Pyro, as a Pyro program with priors on its parameters.

    Individual n has a coefficient ``sign * b_n``, ``b_n ~ mixing(**parameters)``, one for all its situations, through
    :class:`MixedLogit`, :class:`PanelMixedLogit` or :class:`MixedMultinomialLogit`.

    Parameters
    ----------
    data : ChoiceData
        Pairs, or a cross-section.
    variable : str
        The attribute whose coefficient is random.
    mixing : callable
        A Pyro distribution class, or a function that returns a scalar distribution.
    priors : mapping of str to pyro.distributions.TorchDistribution
        One for every argument of the mixing: ``{"x.scale": ..., "x.concentration": ...}`` for ``dist.Weibull`` and the
        attribute x.
    sign : int
        -1 for a coefficient that is minus a positive strength.
    individuals : str
        As of :class:`BayesianMixedLogit`; the site of individuals is ``"strength"``.
    integration : integration rule, optional
        None: the most accurate one for the mixing, as of :class:`MixedLogit`.

    Raises
    ------
    InvalidInputError
        For data that are no pairs and no cross-section, or a mixing and priors that do not fit each other.
    """

    def __init__(
        self,
        data: ChoiceData,
        variable: str,
        mixing: Callable[..., TorchDistribution],
        priors: Mapping[str, TorchDistribution],
        *,
        sign: int = 1,
        individuals: str = "integrated",
        integration: Integration | None = None,
    ) -> None:
        _require(sign in (1, -1), "sign", sign, "1 or -1", "-1 for a coefficient that is minus the strength")
        data.validate((variable,))
        strange = [name for name in priors if not name.startswith(f"{variable}.")]
        expected = f"one for every argument of the mixing, named {variable}.argument"
        _require(bool(priors) and not strange, "priors", strange or "none", expected, f"{variable}.loc")
        for name, prior in priors.items():
            check_prior(name, prior)
        population = Strengths(data, variable, mixing, tuple(priors), sign, integration)
        with seeded(0):
            drawn = population.parameters({name: prior.sample() for name, prior in priors.items()})
        try:
            made = population.latent(drawn)
        except (TypeError, ValueError) as error:
            hint = "the names of its arguments after the attribute's and a dot, and priors of allowed values"
            text = explain("priors", got=f"{list(priors)} ({error})", expected="what the mixing takes", hint=hint)
            raise InvalidInputError(text) from error
        scalar = isinstance(made, TorchDistributionMixin) and made.shape() == torch.Size()
        _require(scalar, "mixing", repr(made), "a scalar distribution of Pyro", "dist.LogNormal")
        super().__init__(data, population, priors, individuals)


def _attributes(data: ChoiceData, variables: Sequence[str]) -> Tensor:
    return torch.stack([data.attribute(name) for name in variables], -1)


def _utilities(coefficients: Tensor, data: ChoiceData, attributes: Tensor) -> Tensor:
    """(..., S, J) of coefficients (..., N, V), minus infinity where not available."""
    utilities = (attributes @ coefficients[..., data.individual, :, None])[..., 0]
    return utilities.masked_fill(~data.available, -torch.inf)


def _require(holds: bool, what: str, got: object, expected: str, hint: str | None = None) -> None:
    if not holds:
        raise InvalidInputError(explain(what, got=got, expected=expected, hint=hint or expected))


def _require_counts(**counts: int) -> None:
    for name, count in counts.items():
        whole = isinstance(count, int) and not isinstance(count, bool)
        _require(whole and count >= 1, name, repr(count), "1 or more", f"{name}=1000")
