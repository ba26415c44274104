"""Consumer surplus: the logsum in units of the price, and what a scenario changes of it."""

# S situations.

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mixlogit_align.distributions import Integration
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.expectations import Expectations, specification_of
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.rendering import Summary, Table, number
from mixlogit_align.econometrics.results import MixedLogitResult
from mixlogit_align.econometrics.willingness_to_pay import inverse_moments, price_of, support
from mixlogit_align.errors import IntegrationWarning, InvalidInputError, explain
from mixlogit_align.numerics.threads import own_threads

if TYPE_CHECKING:
    import pandas as pd

# E[1 / b] of a gamma with this concentration lies to 1e-6 above what quadrature resolves, u > Phi(-8.3).
_LEAST_CONCENTRATION = 1.6


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class ConsumerSurplus:
    """Expected consumer surplus in units of the price, up to a constant: only a change means something by itself.

    Attributes
    ----------
    each : dict of str to torch.Tensor, shape (S,)
        Of every situation: ``"before"``, and where there is a scenario ``"after"`` and ``"change"``.
    means, std_errors : dict of str to float
        Of the same, a situation, frequencies counted; errors by the delta method.
    price : str
    conditional : bool
        Given the past choices of the same individuals.
    integration : str
    data : ChoiceData
        The situations before.
    """

    each: dict[str, Tensor]
    means: dict[str, float]
    std_errors: dict[str, float]
    price: str
    conditional: bool
    integration: str
    data: ChoiceData

    def to_frame(self) -> pd.DataFrame:
        """One row a situation.

        Returns
        -------
        pandas.DataFrame
            Columns individual (labels of the data), situation (numbered in the order of the data), and those of
            :attr:`each`.
        """
        import pandas as pd

        people = [self.data.individuals[n] for n in self.data.individual.tolist()]
        return pd.DataFrame(
            {"individual": people, "situation": range(len(people))}
            | {name: values.numpy() for name, values in self.each.items()}
        )

    @property
    def summary(self) -> Summary:
        """Table of means, and of the sum over situations."""
        size = float(self.data.situation_weights.sum())
        rows = tuple(
            (name, number(value), number(self.std_errors[name], 4), number(value * size))
            for name, value in self.means.items()
        )
        kind = "given individuals' past choices" if self.conditional else "over the population"
        title = f"Consumer surplus in units of {self.price!r} {kind}: {self.data.num_situations} situations"
        foot = ("levels up to the same constant", f"integration: {self.integration}")
        return Summary(Table(title, ("", "mean", "std. error", "total"), (rows,), foot))

    def __repr__(self) -> str:
        return self.summary


@own_threads()
def consumer_surplus(
    model: MixedLogitModel,
    result: MixedLogitResult,
    price: str | None = None,
    data: ChoiceData | None = None,
    *,
    after: ChoiceData | None = None,
    conditional: bool = False,
    integration: Integration | None = None,
) -> ConsumerSurplus:
    """``E[log sum_j exp(x_sj' b) / -b_price]``, and how a scenario changes it (Small and Rosen 1981).

    Parameters
    ----------
    model : MixedLogitModel
    result : MixedLogitResult
        Of this model, possibly read from a file.
    price : str, optional
        None: that of WTP space. Its coefficient must be negative for everybody.
    data : ChoiceData, optional
        The situations before; None: the model's.
    after : ChoiceData, optional
        The same situations with other attributes or choice sets, as
        :func:`mixlogit_align.econometrics.predictions.scenario` makes them.
    conditional, integration
        As of :func:`mixlogit_align.econometrics.predictions.predict`.

    Returns
    -------
    ConsumerSurplus

    Warns
    -----
    IntegrationWarning
        For a gamma price coefficient that is so often near 0 that nodes miss a part of the expectation.

    Raises
    ------
    InvalidInputError
        If the coefficient of the price may be positive, or near 0 so often that the expectation does not exist; if
        the situations after are not those before; or as of ``predict``.
    """
    price = price_of(specification_of(model), price)
    before = Expectations(model, result, data, integration, conditional)
    scenarios = {"before": before}
    if after is not None:
        scenarios["after"] = Expectations(model, result, after, integration, conditional)
        _require_same(before.data, after)
    for expectations in scenarios.values():
        _require_negative(expectations, price)
    column = before.estimates.specification.variables.index(price)
    found = {name: each.of(lambda at: [at.logsum / -at.beta[..., column]]) for name, each in scenarios.items()}
    each = {name: one.each[:, 0] for name, one in found.items()}
    totals = {name: one.total[0] for name, one in found.items()}
    jacobians = {name: one.jacobian[0] for name, one in found.items()}
    if after is not None:
        for values in (each, totals, jacobians):
            values["change"] = values["after"] - values["before"]
    size = before.situation_weights.sum()
    return ConsumerSurplus(
        each=each,
        means={name: float(total / size) for name, total in totals.items()},
        std_errors={name: float(before.standard_errors(slope / size)) for name, slope in jacobians.items()},
        price=price,
        conditional=conditional,
        integration=before.rule,
        data=before.data,
    )


def _require_same(before: ChoiceData, after: ChoiceData) -> None:
    """Raise if the situations are not those of the same individuals, one by one."""
    same = (
        torch.equal(before.individual, after.individual)
        and before.individuals == after.individuals
        and torch.equal(before.weights, after.weights)
    )
    if not same:
        raise InvalidInputError(
            explain(
                "after",
                got=repr(after),
                expected=f"the situations of {before!r}, one by one",
                hint="scenario(data, {...})",
            )
        )


def _require_negative(expectations: Expectations, price: str) -> None:
    """Raise if the coefficient of the price may be positive or has no inverse moment."""
    spec, params, covariates = (
        expectations.estimates.specification,
        expectations.estimates.params,
        expectations.covariates,
    )
    kind = spec.random.get(price, "fixed")
    low, high = support(spec, params, price, covariates)
    if high > 0.0 or low == 0.0:
        raise InvalidInputError(
            explain(
                f"coefficient of the price {price!r}",
                got=f"{kind}, between {low:.6g} and {high:.6g}",
                expected="a negative one for everybody",
                hint="'-lognormal', or a price with the other sign",
            )
        )
    if inverse_moments(spec, params, price, covariates) < 1.0:
        raise InvalidInputError(
            explain(
                f"coefficient of the price {price!r}",
                got=f"{kind}, for which E[1 / coefficient] does not exist: surplus has no mean",
                expected="one that is fixed, or random but bounded away from 0 or lognormal",
                hint="'-lognormal'",
            )
        )
    concentration = spec.index.get(f"{price}.concentration")
    if concentration is not None and float(params[concentration]) < _LEAST_CONCENTRATION:
        warnings.warn(
            f"the coefficient of the price {price!r} is gamma with concentration {float(params[concentration]):.3g}: "
            "E[1 / coefficient] exists, but rests on values near 0 where integration has no nodes; surplus is too "
            "small. Try '-lognormal'",
            IntegrationWarning,
            stacklevel=4,
        )
