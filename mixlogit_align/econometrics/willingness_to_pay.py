"""Willingness to pay: minus the ratio of a coefficient to that of the price, and how it varies over individuals."""

# K nodes, M base variates, P parameters, R draws of the estimates.

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from scipy.stats import norm
from torch import Tensor

from mixlogit_align.distributions import QuasiMonteCarlo
from mixlogit_align.econometrics.expectations import Estimates, check_level, coefficients
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.rendering import Summary, Table, number
from mixlogit_align.econometrics.results import MixedLogitResult
from mixlogit_align.econometrics.specification import Specification
from mixlogit_align.errors import InvalidInputError, explain, require_count
from mixlogit_align.inference import delta_method, standard_errors
from mixlogit_align.numerics.quadrature import product_rule, trapezoid_normal
from mixlogit_align.numerics.threads import in_threads, own_threads

if TYPE_CHECKING:
    import pandas as pd

# Nodes a dimension of moments, where at most two base variates matter; Sobol draws else, and for quantiles.
_NODES = {1: 512, 2: 96}
_DRAWS = 2**12
# A quantile is the mean of this share of the draws about it, which makes it smooth in the parameters.
_WINDOW = 0.02


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class WillingnessToPay:
    """Units of the price that an individual would pay for one unit of the attribute: ``-b_attribute / b_price``.

    Attributes
    ----------
    attribute, price : str
    values, std_errors : dict of str to float
        ``"ratio"`` where it is one for all; else ``"median"``, ``"mean"`` and ``"sd"`` over individuals, NaN where
        the distribution has none. Errors by the delta method.
    delta, krinsky_robb : dict of str to tuple of two float
        Intervals: symmetric, normal; and quantiles over draws of the estimates from their normal distribution
        (Krinsky and Robb 1986), which need not be symmetric.
    level : float
    notes : tuple of str
        What does not exist and why.
    """

    attribute: str
    price: str
    values: dict[str, float]
    std_errors: dict[str, float]
    delta: dict[str, tuple[float, float]]
    krinsky_robb: dict[str, tuple[float, float]]
    level: float
    notes: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a value.

        Returns
        -------
        pandas.DataFrame
            Columns estimate, std_error, delta_lower, delta_upper, krinsky_robb_lower, krinsky_robb_upper.
        """
        import pandas as pd

        columns = [
            "estimate",
            "std_error",
            *(f"{kind}_{end}" for kind in ("delta", "krinsky_robb") for end in ("lower", "upper")),
        ]
        rows = [
            (value, self.std_errors[name], *self.delta[name], *self.krinsky_robb[name])
            for name, value in self.values.items()
        ]
        return pd.DataFrame(rows, index=list(self.values), columns=columns)

    @property
    def summary(self) -> Summary:
        """Table of values with both intervals."""

        def interval(ends: tuple[float, float]) -> str:
            return "" if math.isnan(ends[0]) else f"[{number(ends[0], 5)}, {number(ends[1], 5)}]"

        rows = tuple(
            (
                name,
                number(value),
                number(self.std_errors[name], 4),
                interval(self.delta[name]),
                interval(self.krinsky_robb[name]),
            )
            for name, value in self.values.items()
        )
        columns = ("", "estimate", "std. error", f"{self.level:.0%} delta", f"{self.level:.0%} Krinsky-Robb")
        title = f"Willingness to pay for {self.attribute!r}, in units of {self.price!r}"
        return Summary(Table(title, columns, (rows,), self.notes))

    def __repr__(self) -> str:
        return self.summary


@own_threads()
def willingness_to_pay(
    model: MixedLogitModel,
    result: MixedLogitResult,
    attribute: str,
    price: str | None = None,
    *,
    covariates: Mapping[str, float] | None = None,
    level: float = 0.95,
    num_draws: int = 1000,
    seed: int = 0,
) -> WillingnessToPay:
    """Distribution of ``-b_attribute / b_price`` over individuals, with intervals.

    In WTP space this is the coefficient as estimated; a scale factor common to all coefficients cancels. The mean
    exists if ``E[1 / b_price]`` does: for a price that is fixed, lognormal, gamma with concentration above 1 (above 2
    for the sd), johnson_sb, or bounded away from 0; never for a normal price, whose density at 0 is positive, however
    small (Daly, Hess and Train 2012). The median always exists but for a price that is 0 with positive probability.

    Parameters
    ----------
    model : MixedLogitModel
    result : MixedLogitResult
        Of this model, possibly read from a file.
    attribute : str
    price : str, optional
        None: that of WTP space.
    covariates : mapping of str to float, optional
        Values at which means that depend on covariates are taken; those not named at their means in the data.
    level : float
        Of the intervals.
    num_draws : int
        R, of the estimates.
    seed : int

    Returns
    -------
    WillingnessToPay

    Raises
    ------
    InvalidInputError
        For an unknown coefficient or covariate, one and the same twice, or a price that is 0 with positive
        probability.
    """
    check_level(level)
    require_count("num_draws", num_draws, 2, hint="1000")
    estimates = Estimates.of(model, result)
    price = price_of(estimates.specification, price)
    wtp_space = estimates.specification.wtp_space
    estimates = _without_factors(estimates)
    spec = estimates.specification
    if attribute not in spec.variables or attribute == price:
        others = [name for name in spec.variables if name != price]
        raise InvalidInputError(
            explain(
                "attribute",
                got=repr(attribute),
                expected=f"a coefficient beside the price: {others}",
                hint="one of these",
            )
        )
    ratio = _Ratio(spec, attribute, price, wtp_space, _covariates(model, covariates))
    order = ratio.order(estimates.params)
    if order < 0:
        raise InvalidInputError(
            explain(
                f"price {price!r}",
                got=f"{spec.random.get(price, 'a coefficient of 0')}, which is 0 with positive probability",
                expected="a price coefficient that is not 0",
                hint="'-lognormal' for the price, or wtp_space= with a fixed price",
            )
        )
    values, cov = delta_method(ratio.statistics, estimates.params, estimates.cov)
    known = ~values.isnan()
    errors = standard_errors(cov).where(known, math.nan)
    tail = (1.0 - level) / 2.0
    ends = torch.full((len(values), 2), math.nan, dtype=torch.float64)
    if bool(estimates.cov.isfinite().all()):
        sampled = torch.stack(in_threads(ratio.statistics, list(_redrawn(estimates, num_draws, seed))))
        ends = _ends(sampled, tail).where(known[:, None], math.nan)
    reason = f"the coefficient of {price!r} is {spec.random.get(price)}, too often near 0 at these parameters"
    notes = [
        f"the {name} does not exist: {reason}"
        for name, exists in zip(ratio.names, known.tolist(), strict=True)
        if not exists
    ]
    if not ratio.random and price != wtp_space and float(estimates.params[spec.index[price]]) > 0.0:
        notes.append("the coefficient of the price is positive")
    half = float(norm.isf(tail)) * errors
    delta = torch.stack([values - half, values + half], 1)

    def pairs(rows: Tensor) -> dict[str, tuple[float, float]]:
        return {name: (float(low), float(high)) for name, (low, high) in zip(ratio.names, rows, strict=True)}

    return WillingnessToPay(
        attribute=attribute,
        price=price,
        values=dict(zip(ratio.names, values.tolist(), strict=True)),
        std_errors=dict(zip(ratio.names, errors.tolist(), strict=True)),
        delta=pairs(delta),
        krinsky_robb=pairs(ends),
        level=level,
        notes=tuple(notes),
    )


def price_of(specification: Specification, price: str | None) -> str:
    """The price as given, or that of WTP space.

    Raises
    ------
    InvalidInputError
        If there is none, or it has no coefficient.
    """
    found = price or specification.wtp_space
    if found is None or found not in specification.variables:
        expected = f"one of {list(specification.variables)}"
        raise InvalidInputError(explain("price", got=repr(found), expected=expected, hint="the name of the price"))
    return found


def support(specification: Specification, params: Tensor, variable: str, covariates: Tensor) -> tuple[float, float]:
    """Between which values a coefficient lies.

    Parameters
    ----------
    specification : Specification
    params : Tensor, shape (P,)
        Natural.
    variable : str
    covariates : Tensor, shape (N, D)
        Of all individuals that count.

    Returns
    -------
    low, high : float
    """
    value = {name: float(params[i]) for name, i in specification.index.items()}
    if variable not in specification.random:
        return value[variable], value[variable]
    random = specification.random[variable]
    if random.family in ("lognormal", "gamma", "censored_normal", "johnson_sb", "truncated_normal"):
        low, high = random.limits if random.family in ("johnson_sb", "truncated_normal") else (0.0, math.inf)
        return (low, high) if random.sign > 0 else (-high, -low)
    block = specification.block_of(variable)
    if block is None:
        spreads = {variable: value[f"{variable}.scale"]}
    else:
        spreads = {name: value[f"chol.{variable}.{name}"] for name in block[: block.index(variable) + 1]}
    bounded = ("uniform", "triangular")
    reach = sum(
        abs(spread) if specification.random[name].family in bounded else math.inf
        for name, spread in spreads.items()
        if spread != 0.0
    )
    centres = torch.full((len(covariates),), value[f"{variable}.loc"], dtype=torch.float64)
    for covariate in random.mean_covariates:
        slope = value[f"{variable}.loc:{covariate}"]
        centres = centres + slope * covariates[:, specification.covariates.index(covariate)]
    return float(centres.min()) - reach, float(centres.max()) + reach


def inverse_moments(specification: Specification, params: Tensor, variable: str, covariates: Tensor) -> float:
    """How many moments of 1/b exist: infinity for all; 0 for none; -1 where b is 0 with positive probability.

    Parameters
    ----------
    specification, params, variable, covariates
        As of :func:`support`.

    Returns
    -------
    float
        The moments of order below or equal to it exist; for a gamma, those of order below its concentration.
    """
    low, high = support(specification, params, variable, covariates)
    if low > 0.0 or high < 0.0:
        return math.inf
    random = specification.random.get(variable)
    if random is None or random.family == "censored_normal":
        return -1.0
    if random.family == "gamma":
        return math.ceil(float(params[specification.index[f"{variable}.concentration"]])) - 1.0
    # exp and the logistic function reach 0 so seldom that 1/b has all moments; other densities are positive at 0
    near = random.family == "lognormal" or (random.family == "johnson_sb" and 0.0 in random.limits)
    return math.inf if near else 0.0


@dataclass(frozen=True)
class _Ratio:
    """-b_attribute / b_price as a function of parameters and base variates.

    The specification is without what multiplies all coefficients: in WTP space, of price q, its coefficients are
    those in units of -b_q, and that of q is -1.
    """

    specification: Specification
    attribute: str
    price: str
    wtp_space: str | None
    covariates: Tensor

    @cached_property
    def _used(self) -> tuple[str, ...]:
        """Coefficients that the ratio is of."""
        return tuple(name for name in (self.attribute, self.price) if name != self.wtp_space)

    @cached_property
    def _dims(self) -> list[int]:
        """Base variates that they are made of."""
        spec, position = self.specification, list(self.specification.random)
        found: set[str] = set()
        for name in self._used:
            block = spec.block_of(name) or (name,)
            found |= set(block[: block.index(name) + 1]) & set(position)
        return sorted(position.index(name) for name in found)

    @property
    def random(self) -> bool:
        """Whether it varies over individuals."""
        return bool(self._dims)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the statistics."""
        return ("median", "mean", "sd") if self.random else ("ratio",)

    def order(self, params: Tensor) -> float:
        """Moments of 1 / b_price that exist, as :func:`inverse_moments` counts."""
        if self.price == self.wtp_space:
            return math.inf
        return inverse_moments(self.specification, params, self.price, self.covariates[None])

    def statistics(self, params: Tensor) -> Tensor:
        """In the order of :attr:`names`, differentiable; NaN where they do not exist."""
        if not self.random:
            return self._values(params, torch.zeros(1, self.specification.num_dims, dtype=torch.float64))
        ordered = self._values(params, self._draws).sort().values
        around = max(1, round(len(ordered) * _WINDOW / 2))
        median = ordered[len(ordered) // 2 - around : len(ordered) // 2 + around].mean()
        order, missing = self.order(params.detach()), params.new_tensor(math.nan)
        mean, sd = self._mean_sd(params) if order >= 1.0 else (missing, missing)
        return torch.stack([median, mean, sd if order >= 2.0 else missing])

    def _values(self, params: Tensor, base: Tensor) -> Tensor:
        """At base variates (K, M): (K,)."""
        spec = self.specification
        beta = coefficients(spec, params, base[None], self.covariates[None])[0]
        one = torch.full((len(beta),), -1.0, dtype=beta.dtype)
        above, below = (
            one if name == self.wtp_space else beta[:, spec.variables.index(name)]
            for name in (self.attribute, self.price)
        )
        return -above / below

    def _mean_sd(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Where they exist: 1 / b_price has two moments, or the first alone."""
        spec = self.specification
        random = spec.random.get(self.price)
        if random is None or random.family != "gamma" or self.price == self.wtp_space:
            z, weight = self._nodes
            values = self._values(params, z)
            mean = weight @ values
            # a norm, whose derivative at 0 is 0: where nothing varies
            return mean, torch.linalg.vector_norm(weight.sqrt() * (values - mean))
        # independent of the numerator; 1/b times its density is a gamma density again, heavy where quadrature is not
        concentration, rate = (params[spec.index[f"{self.price}.{part}"]] for part in random.parameters)
        inverse = rate / (concentration - 1.0)
        square = inverse * rate / (concentration - 2.0)
        mean, sd = self._numerator(params)
        ratio = -random.sign * mean * inverse
        return ratio, ((mean**2 + sd**2) * square - ratio**2).sqrt()

    def _numerator(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation."""
        spec = self.specification
        if self.attribute == self.wtp_space:
            return params.new_tensor(-1.0), params.new_zeros(())
        if self.attribute in spec.fixed:
            return params[spec.index[self.attribute]], params.new_zeros(())
        names, values = spec.moments(params, self.covariates)
        first = names.index(f"{self.attribute}.mean")
        return values[first], values[first + 1]

    @cached_property
    def _draws(self) -> Tensor:
        """Base variates (K, M)."""
        spec = self.specification
        rule = QuasiMonteCarlo("sobol", _DRAWS).base_draws()
        return spec.base(rule.uniforms_nd(torch.zeros(1, dtype=torch.int64), spec.num_dims))[0]

    @cached_property
    def _nodes(self) -> tuple[Tensor, Tensor]:
        """Base variates (K, M) and weights (K,) of moments."""
        spec = self.specification
        if len(self._dims) > 2:
            return self._draws, torch.full((_DRAWS,), 1.0 / _DRAWS, dtype=torch.float64)
        points, log_weight = product_rule(*trapezoid_normal(_NODES[len(self._dims)]), len(self._dims))
        z = points.new_zeros(len(points), spec.num_dims)
        z[:, self._dims] = points
        return spec.base_of_normal(z), log_weight.exp()


def _without_factors(estimates: Estimates) -> Estimates:
    """Without WTP space and scale heterogeneity, which multiply all coefficients alike."""
    spec = estimates.specification
    plain = Specification(spec.fixed, spec.random, spec.blocks)
    p = len(plain.names)
    return Estimates(plain, estimates.params[:p], estimates.cov[:p, :p])


def _covariates(model: MixedLogitModel, given: Mapping[str, float] | None) -> Tensor:
    known = model.specification.covariates
    unknown = [name for name in given or {} if name not in known]
    if unknown:
        raise InvalidInputError(
            explain("covariates", got=unknown, expected=f"covariates of means: {list(known)}", hint="covariates=None")
        )
    weights = model.data.weights / model.data.weights.sum()
    means = {name: float(weights @ model.data.covariate(name)) for name in known}
    return torch.tensor([float(value) for value in (means | dict(given or {})).values()], dtype=torch.float64)


def _redrawn(estimates: Estimates, num_draws: int, seed: int) -> Tensor:
    """Natural parameters (R, P), normal in the coordinates of estimation."""
    spec, theta = estimates.specification, estimates.theta
    slopes = torch.tensor([name in spec.logged for name in spec.names])
    slopes = torch.where(slopes, estimates.params, 1.0)
    cov = estimates.cov / slopes[:, None] / slopes
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(num_draws, len(theta), generator=generator, dtype=torch.float64)
    spectrum = torch.linalg.eigh(cov)  # singular where parameters are held
    root = spectrum.eigenvectors * spectrum.eigenvalues.clamp_min(0.0).sqrt()
    return spec.natural(theta + z @ root.T)


def _ends(sampled: Tensor, tail: float) -> Tensor:
    """Quantiles (Q, 2) of draws (R, Q); a draw for which there is none (NaN) may lie anywhere."""
    last = len(sampled) - 1
    low, high = (sampled.where(~sampled.isnan(), end) for end in (-math.inf, math.inf))
    return torch.stack([low.sort(0).values[round(tail * last)], high.sort(0).values[round((1.0 - tail) * last)]], 1)
