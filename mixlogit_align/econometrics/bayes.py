"""The mixed logit as a Pyro program with priors on its parameters; a scalar strength of any distribution of Pyro."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin

from mixlogit_align.distributions import Integration
from mixlogit_align.econometrics.bayesian_model import BayesianModel, require
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.population import Coefficients, Strengths
from mixlogit_align.econometrics.priors import check_prior, correlation_sites, default_priors, with_right_draws
from mixlogit_align.econometrics.sampling import seeded
from mixlogit_align.errors import InvalidInputError, explain

if TYPE_CHECKING:
    import arviz as az
    import xarray as xr


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
        require(not unknown, "priors", unknown, f"some of {list(defaults)}", "their names")
        blocks = correlation_sites(spec)
        for name, prior in given.items():
            nonnegative = name.endswith(".scale") or name in (*spec.scales, *spec.logged)
            check_prior(name, prior, nonnegative=nonnegative, correlated=len(blocks.get(name, ())))
        require(
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
        require(sign in (1, -1), "sign", sign, "1 or -1", "-1 for a coefficient that is minus the strength")
        data.validate((variable,))
        strange = [name for name in priors if not name.startswith(f"{variable}.")]
        expected = f"one for every argument of the mixing, named {variable}.argument"
        require(bool(priors) and not strange, "priors", strange or "none", expected, f"{variable}.loc")
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
        require(scalar, "mixing", repr(made), "a scalar distribution of Pyro", "dist.LogNormal")
        super().__init__(data, population, priors, individuals)
