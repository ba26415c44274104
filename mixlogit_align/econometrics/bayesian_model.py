"""A Bayesian model of choices as a Pyro program, whichever individuals it has: NUTS, SVI and predictions."""

# C chains, D draws, N individuals, S situations, J alternatives, V coefficients, P parameters.

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide import init_to_value
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

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
from mixlogit_align.econometrics.normal_approximation import Coordinates, NormalApproximation, approximate_normally
from mixlogit_align.econometrics.population import Coefficients, Params, Population, Strengths, each_draw
from mixlogit_align.econometrics.sampling import (
    PARAMETERS,
    Chain,
    fit_guide,
    normal_guide,
    progress_bar,
    sample_chain,
    seeded,
)
from mixlogit_align.errors import IntegrationWarning, InvalidInputError, explain, require_count

if TYPE_CHECKING:
    import arviz as az

_RESERVED = (
    *(INDIVIDUAL, SITUATION, ATTRIBUTE, CHOICE, COEFFICIENT, Coefficients.site, Strengths.site),
    *("chain", "draw", "loglik"),
)
# Chains start this many posterior standard deviations about the mode.
_DISPERSION = 1.5
# Draws at which the likelihood is compared with that by other nodes, and what difference is told.
_COMPARED, _ROUGH = 16, 0.5
_PRIOR_DRAWS = 500
# Attributes of all draws at a time.
_CHUNK = 2**22


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
        self._coordinates = Coordinates(self.priors)
        require(individuals in ("integrated", "sampled"), "individuals", repr(individuals), "'integrated', 'sampled'")
        frequencies = not bool((data.weights == 1).all())
        require(
            not (frequencies and individuals == "sampled"),
            "weights",
            "frequencies, where individuals are sampled",
            "one row an individual",
            "individuals='integrated'",
        )
        clash = [name for name in population.variables if name in _RESERVED]
        require(not clash, "attributes", clash, f"other names than {list(_RESERVED)}", "renaming the columns")

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

    @cached_property
    def normal_approximation(self) -> NormalApproximation:
        """Mode and curvature of the posterior, individuals integrated out; found once, the likelihood made ready."""
        return approximate_normally(self._coordinates, self._population)

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
        require_counts(num_samples=num_samples)
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
        require_counts(num_samples=num_samples, num_warmup=num_warmup, num_chains=num_chains, num_workers=num_workers)
        require(0.0 < target_accept < 1.0, "target_accept", target_accept, "between 0 and 1", "0.8")
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
        sites = self._coordinates.sites(self.normal_approximation.coordinates(white))
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
            begin = init_to_value(values=approximation.sites)
            _, pyro_potential, transforms, _ = initialize_model(self.program, init_strategy=begin)
            initial = {PARAMETERS: _DISPERSION * torch.randn(len(approximation.mode), dtype=torch.float64)}
        if self.individuals == "sampled":
            likely = population.likely_latents(population.parameters(approximation.sites))
            site = population.site
            initial[site] = transforms[site](likely) if site in transforms else likely

        def potential(blocks: Mapping[str, Tensor]) -> Tensor:
            others = {name: value for name, value in blocks.items() if name != PARAMETERS}
            at = self._coordinates.by_site(approximation.coordinates(blocks[PARAMETERS]))
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
        require_counts(num_steps=num_steps, num_samples=num_samples)
        require(learning_rate > 0.0, "learning_rate", learning_rate, "a positive number", "0.01")
        self.normal_approximation  # noqa: B018 - makes integration ready
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
        name = "normal" if guide is None else type(made).__name__
        attrs = {"inference": "SVI (Pyro)", "guide": name, "elbo": bound, "pareto_k": pareto_k}
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
        require(not missing, "posterior", f"no {missing}", "draws of this model", "its own nuts() or svi()")
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
        if coefficients is not None:
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

    def _simulate(self, params: Params, latent: Tensor | None, data: ChoiceData) -> tuple[Tensor, Tensor | None]:
        """Choices (D, S) of D draws of parameters (D,); and coefficients (D, N, V) where latents (D, N, ...) are given.

        Without latents individuals are drawn from the mixing distribution.
        """
        population, attributes = self._population, _attributes(data, self._population.variables)
        num_draws = len(next(iter(params.values())))
        choices, kept = [], []
        for draws in torch.arange(num_draws).split(max(1, _CHUNK // attributes.numel())):
            at = {name: values[draws] for name, values in params.items()}
            own = population.sample_latents(at, data.num_individuals) if latent is None else latent[draws]
            coefficients = population.coefficients(at, own, data)
            utilities = _utilities(coefficients, data, attributes)
            # the largest of utilities plus Gumbel variates
            noise = -torch.empty_like(utilities).exponential_().log()
            choices.append((utilities + noise).argmax(-1).to(torch.int16))
            kept += [] if latent is None else [coefficients]
        return torch.cat(choices), torch.cat(kept) if kept else None

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


def _attributes(data: ChoiceData, variables: Sequence[str]) -> Tensor:
    return torch.stack([data.attribute(name) for name in variables], -1)


def _utilities(coefficients: Tensor, data: ChoiceData, attributes: Tensor) -> Tensor:
    """(..., S, J) of coefficients (..., N, V), minus infinity where not available."""
    utilities = (attributes @ coefficients[..., data.individual, :, None])[..., 0]
    return utilities.masked_fill(~data.available, -torch.inf)


def require(holds: bool, what: str, got: object, expected: str, hint: str | None = None) -> None:
    """Refuse an argument by :func:`explain`, but where something holds."""
    if not holds:
        raise InvalidInputError(explain(what, got=got, expected=expected, hint=hint or expected))


def require_counts(**counts: int) -> None:
    """Refuse a number that is not whole, or below 1."""
    for name, count in counts.items():
        require_count(name, count, hint=f"{name}=1000")
