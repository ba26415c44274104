"""What the choices of an individual say of its coefficients."""

# N individuals, V coefficients, K nodes.

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mixlogit_align.distributions import Integration
from mixlogit_align.econometrics.expectations import Estimates, coefficients, likelihood_maker
from mixlogit_align.econometrics.likelihood import PanelData, SimulatedLoglik
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.rendering import Summary, Table, number
from mixlogit_align.econometrics.results import MixedLogitResult
from mixlogit_align.econometrics.willingness_to_pay import inverse_moments, price_of
from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.numerics.threads import own_threads

if TYPE_CHECKING:
    import pandas as pd

# Coefficients at nodes at a time.
_CHUNK = 2**20


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class IndividualPosteriors:
    """Every individual's coefficients given its choices, at the estimates, whose own error is not counted.

    Attributes
    ----------
    mean, sd : torch.Tensor, shape (N, V)
        Of the coefficients in utility, or of willingness to pay, minus their ratio to the price's; sd 0 where fixed.
    positive : torch.Tensor, shape (N, V)
        Posterior probability of a positive one.
    effective : torch.Tensor, shape (N,)
        Effective number of nodes: few of them, a coarse posterior.
    variables, individuals : tuple
        Along V and N.
    weights : torch.Tensor, shape (N,)
        Frequencies.
    price : str or None
        In units of which willingness to pay is; None: coefficients.
    integration : str
    """

    mean: Tensor
    sd: Tensor
    positive: Tensor
    effective: Tensor
    variables: tuple[str, ...]
    individuals: tuple[Any, ...]
    weights: Tensor
    price: str | None
    integration: str

    def to_frame(self) -> pd.DataFrame:
        """One row an individual.

        Returns
        -------
        pandas.DataFrame
            Indexed by the labels of the data; columns ``time.mean``, ``time.sd``, ``time.positive`` for each
            coefficient.
        """
        import pandas as pd

        columns = {
            f"{name}.{what}": values[:, v].numpy()
            for v, name in enumerate(self.variables)
            for what, values in (("mean", self.mean), ("sd", self.sd), ("positive", self.positive))
        }
        index = pd.Index(list(self.individuals), name="individual", tupleize_cols=False)
        return pd.DataFrame(columns, index=index)

    @property
    def summary(self) -> Summary:
        """Table of the coefficients: how individuals' means spread, and how sure they are."""
        weights = self.weights / self.weights.sum()
        centre = self.mean[0] + weights @ (self.mean - self.mean[0])  # without rounding where fixed
        between = (weights @ (self.mean - centre) ** 2).sqrt()
        within = (weights @ self.sd**2).sqrt()
        rows = tuple(
            (name, *(number(float(values[v]), 5) for values in (centre, between, within, weights @ self.positive)))
            for v, name in enumerate(self.variables)
        )
        columns = ("", "mean of means", "sd of means", "posterior sd", "share positive")
        what = "Coefficients" if self.price is None else f"Willingness to pay in units of {self.price!r}"
        title = f"{what} given choices: {len(self.individuals)} individuals"
        foot = (f"integration: {self.integration}; fewest effective nodes {float(self.effective.min()):.1f}",)
        return Summary(Table(title, columns, (rows,), foot))

    def __repr__(self) -> str:
        return self.summary


@own_threads()
def individual_posteriors(
    model: MixedLogitModel,
    result: MixedLogitResult,
    price: str | None = None,
    *,
    integration: Integration | None = None,
) -> IndividualPosteriors:
    """Mean and standard deviation of every coefficient of every individual of the model's data.

    ``E[b | y_n] = sum_k pi_nk b_k``, ``pi_nk`` proportional to the weight of node k times the likelihood of the
    individual's choices there: the conditional distribution of Revelt and Train (2000), on the nodes of the
    likelihood.

    Parameters
    ----------
    model : MixedLogitModel
    result : MixedLogitResult
        Of this model, possibly read from a file.
    price : str, optional
        Of willingness to pay ``-b / b_price`` instead, of all other attributes; in WTP space its coefficients as
        estimated.
    integration : integration rule, optional
        None: that of the result.

    Returns
    -------
    IndividualPosteriors

    Raises
    ------
    InvalidInputError
        If the result is of another model, or was estimated on draws that are not given again; if there is no such
        price, or ``E[1 / b_price^2]`` does not exist.
    """
    estimates = Estimates.of(model, result)
    spec, theta = estimates.specification, estimates.theta
    data = PanelData(model.data, spec)
    if price is not None:
        _require_moments(estimates, price_of(spec, price), data.covariates)
    maker = likelihood_maker(data, estimates, result, integration)
    loglik = SimulatedLoglik(data, spec, maker.nodes(theta))
    weight = torch.softmax(loglik.joint(theta), 1)
    columns = [v for v, name in enumerate(spec.variables) if name != price]
    found = []
    size = max(1, _CHUNK // (loglik.nodes.num * len(spec.variables)))
    for rows in torch.arange(data.num_individuals).split(size):
        nodes, own = loglik.nodes.of(rows), weight[rows][:, None]
        beta = coefficients(spec, estimates.params, nodes.base, data.covariates[rows])
        if price is not None:
            beta = -beta[..., columns] / beta[..., [spec.variables.index(price)]]
        first = beta[:, 0]  # so that what is fixed keeps its value and an sd of 0, without rounding
        mean = first + (own @ (beta - beta[:, :1]))[:, 0]
        sd = (own @ (beta - mean[:, None]) ** 2)[:, 0].sqrt()
        found.append((mean, sd, (own @ (beta > 0).to(own))[:, 0]))
    mean, sd, positive = (torch.cat(parts) for parts in zip(*found, strict=True))
    return IndividualPosteriors(
        mean=mean,
        sd=sd,
        positive=positive,
        effective=1.0 / weight.square().sum(1),
        variables=tuple(spec.variables[v] for v in columns),
        individuals=model.data.individuals,
        weights=model.data.weights,
        price=price,
        integration=repr(maker.rule) if spec.num_dims else "exact",
    )


def _require_moments(estimates: Estimates, price: str, covariates: Tensor) -> None:
    """Raise if willingness to pay has no variance."""
    spec = estimates.specification
    if price != spec.wtp_space and inverse_moments(spec, estimates.params, price, covariates) < 2.0:
        raise InvalidInputError(
            explain(
                f"price {price!r}",
                got=f"{spec.random.get(price, 'a coefficient of 0')}, for which E[1 / coefficient^2] does not exist",
                expected="one that is fixed, or random but bounded away from 0 or lognormal",
                hint="'-lognormal', or a model in WTP space",
            )
        )
