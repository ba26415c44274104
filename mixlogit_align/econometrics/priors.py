"""Priors of the parameters of a mixed logit, weakly informative in the units of the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import biject_to, constraints

from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.specification import TAU, Specification
from mixlogit_align.errors import InvalidInputError, explain

CORRELATION = "correlation"

# How far defaults let a location and a scale move utility, for a typical difference of the attribute.
_LOCATION, _SPREAD = 5.0, 2.5
# The same for parameters of the logarithm of a coefficient (or of its log-odds between bounds).
_LOG_LOCATION, _LOG_SPREAD = 2.0, 1.5


class CorrelationFactor(dist.LKJCholesky):  # type: ignore[misc] # pyro makes the class as it is imported
    """Cholesky factors (b, b) of correlation matrices R of density proportional to ``det(R)^(concentration - 1)``.

    ``torch.distributions.LKJCholesky`` (up to 2.13 at least) has this density, but for b > 2 its draws have another:
    in the onion method row i = 1..b-1 has a squared length Beta(i/2, concentration + (b - 1 - i)/2) below the diagonal
    (Lewandowski, Kurowicka and Joe 2009, section 3.2), as here.
    """

    def __init__(self, dim: int, concentration: Tensor | float = 1.0, validate_args: bool | None = None) -> None:
        super().__init__(dim, concentration, validate_args=validate_args)
        row = torch.arange(dim, dtype=self.concentration.dtype).clamp_min(1.0)  # the first has nothing below
        self._beta = dist.Beta(row / 2, self.concentration[..., None] + (dim - 1 - row) / 2)


def default_priors(data: ChoiceData, specification: Specification) -> dict[str, TorchDistribution]:
    """Weakly informative priors in the units of the data.

    With ``d_x`` the root mean square difference of attribute x between alternatives offered together, so that
    ``1 / d_x`` is a coefficient that moves utility by 1 for a typical difference:

    - fixed coefficients, and ``loc`` of normal, uniform, triangular, truncated and censored normal:
      ``Normal(0, 5 / d)``; their ``scale``: ``HalfNormal(2.5 / d)``;
    - ``loc`` of lognormal: ``Normal(-log d, 2)``, of johnson_sb ``Normal(0, 2)``; their ``scale``:
      ``HalfNormal(1.5)``;
    - gamma: ``concentration ~ LogNormal(0, 1.5)``, ``rate ~ LogNormal(log d, 2)``;
    - ``loc:covariate``: the standard deviation of the loc's prior over that of the covariate, about 0;
    - correlated blocks: ``scale`` of each coefficient as without correlation, the norm of its row of the Cholesky
      factor of the latents' covariance; and one site ``correlation`` (``correlation.1``, ``correlation.2``, ... where
      there are several blocks), the Cholesky factor of their correlations, :class:`CorrelationFactor` of concentration
      1: all correlation matrices are equally likely;
    - ``tau``: ``HalfNormal(1)``;
    - in WTP space, coefficients other than the price's are divided by a price coefficient: ``d_x`` is then that of
      x over that of the price.

    Parameters
    ----------
    data : ChoiceData
    specification : Specification

    Returns
    -------
    dict of str to pyro.distributions.TorchDistribution
        By the name of what is sampled: the parameters, but for correlated blocks as above.
    """
    found: dict[str, TorchDistribution] = {}
    sizes = {name: _typical_difference(data, name) for name in specification.variables}
    price = specification.wtp_space
    if price is not None:
        sizes = {name: size if name == price else size / sizes[price] for name, size in sizes.items()}
    for name in specification.fixed:
        found[name] = _normal(0.0, _LOCATION / sizes[name])
    for name, random in specification.random.items():
        d = sizes[name]
        if random.family == "gamma":
            found[f"{name}.concentration"] = _positive(dist.LogNormal, 0.0, _LOG_SPREAD)
            found[f"{name}.rate"] = _positive(dist.LogNormal, math.log(d), _LOG_LOCATION)
            continue
        centre, location, spread = 0.0, _LOCATION / d, _SPREAD / d
        if random.family in ("lognormal", "johnson_sb"):
            location, spread = _LOG_LOCATION, _LOG_SPREAD
        if random.family == "lognormal":
            centre = -math.log(d)
        found[f"{name}.loc"] = _normal(centre, location)
        for covariate in random.mean_covariates:
            sd = float(data.covariate(covariate).std()) or 1.0
            found[f"{name}.loc:{covariate}"] = _normal(0.0, location / sd)
        found[f"{name}.scale"] = _positive(dist.HalfNormal, spread)
    for site, block in correlation_sites(specification).items():
        found[site] = CorrelationFactor(len(block), _double(1.0))
    if specification.scale_heterogeneity:
        found[TAU] = _positive(dist.HalfNormal, 1.0)
    return found


def correlation_sites(specification: Specification) -> dict[str, tuple[str, ...]]:
    """The site of each correlated block's correlations.

    Parameters
    ----------
    specification : Specification

    Returns
    -------
    dict of str to tuple of str
    """
    blocks = specification.blocks
    names = [CORRELATION] if len(blocks) == 1 else [f"{CORRELATION}.{i}" for i in range(1, len(blocks) + 1)]
    return dict(zip(names, blocks, strict=True))


def _typical_difference(data: ChoiceData, variable: str) -> float:
    """Root mean square difference of an attribute over pairs of alternatives that are offered together."""
    values, offered = data.attribute(variable), data.available
    count = offered.sum(1)
    centre = values.where(offered, 0.0).sum(1) / count
    squares = (values - centre[:, None]).where(offered, 0.0).square().sum(1)
    # the squared differences of all pairs add up to count * squares
    return math.sqrt(float((count * squares).sum() / (count * (count - 1) / 2).sum()))


def _double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _normal(loc: float, scale: float) -> TorchDistribution:
    return dist.Normal(_double(loc), _double(scale))


def _positive(kind: Callable[..., TorchDistribution], *args: float) -> TorchDistribution:
    return kind(*map(_double, args))


def check_prior(name: str, prior: TorchDistribution, *, nonnegative: bool = False, correlated: int = 0) -> None:
    """Refuse a prior that does not fit what it is about.

    Parameters
    ----------
    name : str
    prior : pyro.distributions.TorchDistribution
        Scalar and continuous, without negative values where ``nonnegative``; or, where ``correlated`` is not 0, of
        Cholesky factors of that many rows.
    nonnegative : bool
    correlated : int

    Raises
    ------
    InvalidInputError
        Naming the parameter.
    """
    known = isinstance(prior, TorchDistributionMixin) and not isinstance(prior, dist.Delta)
    if correlated:
        size = torch.Size([correlated, correlated])
        fits = known and prior.shape() == size and prior.support is constraints.corr_cholesky
        expected, hint = "a distribution of Cholesky factors of correlations", f"dist.LKJCholesky({correlated}, 2.0)"
    else:
        lowest = _lowest(prior) if known and prior.shape() == torch.Size() else math.nan
        fits = not math.isnan(lowest)
        expected, hint = "a scalar continuous distribution of Pyro", "dist.Normal(0.0, 1.0)"
        if fits and nonnegative and lowest < 0.0:
            fits, expected, hint = False, "a distribution of positive numbers", "dist.HalfNormal(1.0)"
    if not fits:
        raise InvalidInputError(explain(f"priors[{name!r}]", got=repr(prior), expected=expected, hint=hint))


def with_right_draws(prior: TorchDistribution) -> TorchDistribution:
    """The same prior; torch's LKJCholesky replaced by :class:`CorrelationFactor`, of the same density."""
    if type(prior) is dist.LKJCholesky:
        return CorrelationFactor(prior.dim, prior.concentration)
    return prior


def _lowest(prior: TorchDistribution) -> float:
    """The lower end of a scalar distribution's support; NaN where it is discrete."""
    with suppress(NotImplementedError):
        return float(biject_to(prior.support)(torch.tensor([-100.0, 100.0], dtype=torch.float64)).min())
    return math.nan
