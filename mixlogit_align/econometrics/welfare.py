"""Consumer surplus: the logsum in units of the price, and what a scenario changes of it."""

# S situations.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mixlogit_align.distributions import Integration
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.expectations import Estimates, Expectations
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.rendering import Summary, Table, number
from mixlogit_align.econometrics.results import MixedLogitResult
from mixlogit_align.econometrics.specification import Specification
from mixlogit_align.econometrics.willingness_to_pay import inverse_moments, price_of
from mixlogit_align.errors import InvalidInputError, explain

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class ConsumerSurplus:
    """Expected consumer surplus in units of the price, up to a constant: only ``change`` means something by itself.

    Attributes
    ----------
    before, after, change : torch.Tensor, shape (S,)
        Of every situation.
    means, std_errors : dict of str to float
        Of the three, a situation, frequencies counted; errors by the delta method.
    price : str
    integration : str
    data : ChoiceData
        The situations before.
    """

    before: Tensor
    after: Tensor
    change: Tensor
    means: dict[str, float]
    std_errors: dict[str, float]
    price: str
    integration: str
    data: ChoiceData

    def to_frame(self) -> pd.DataFrame:
        """One row a situation.

        Returns
        -------
        pandas.DataFrame
            Columns individual (labels of the data), situation (numbered in the order of the data), before, after,
            change.
        """
        import pandas as pd

        people = [self.data.individuals[n] for n in self.data.individual.tolist()]
        columns = {"before": self.before, "after": self.after, "change": self.change}
        return pd.DataFrame(
            {"individual": people, "situation": range(len(people))}
            | {name: values.numpy() for name, values in columns.items()}
        )

    @property
    def summary(self) -> Summary:
        """Table of means."""
        rows = tuple(
            (name, number(value), number(self.std_errors[name], 4), number(value * float(self._size), 6))
            for name, value in self.means.items()
        )
        title = f"Consumer surplus in units of {self.price!r}: {len(self.change)} situations"
        foot = ("before and after up to the same constant", f"integration: {self.integration}")
        return Summary(Table(title, ("", "mean", "std. error", "total"), (rows,), foot))

    @property
    def _size(self) -> Tensor:
        return self.data.weights[self.data.individual].sum()

    def __repr__(self) -> str:
        return self.summary


def consumer_surplus(
    model: MixedLogitModel,
    result: MixedLogitResult,
    data_before: ChoiceData | None,
    data_after: ChoiceData,
    price: str | None = None,
    *,
    conditional: bool = False,
    integration: Integration | None = None,
) -> ConsumerSurplus:
    """``E[log sum_j exp(x_sj' b) / -b_price]`` before and after, and the change (Small and Rosen 1981).

    Parameters
    ----------
    model : MixedLogitModel
    result : MixedLogitResult
        Of this model, possibly read from a file.
    data_before : ChoiceData or None
        None: the model's.
    data_after : ChoiceData
        The same situations with other attributes or choice sets, as
        :func:`mixlogit_align.econometrics.predictions.scenario` makes them.
    price : str, optional
        None: that of WTP space. Its coefficient must be negative for everybody.
    conditional, integration
        As of :func:`mixlogit_align.econometrics.predictions.predict`.

    Returns
    -------
    ConsumerSurplus

    Raises
    ------
    InvalidInputError
        If the coefficient of the price may be positive, or near 0 so often that the expectation does not exist; if
        the situations differ.
    """
    spec = model.specification
    price = price_of(spec, price)
    estimates = Estimates.of(model, result)
    _require_negative(estimates.specification, estimates.params, price)
    before = Expectations(model, result, data_before, integration, conditional)
    after = Expectations(model, result, data_after, integration, conditional)
    same = (
        torch.equal(before.data.individual, after.data.individual)
        and before.data.individuals == after.data.individuals
        and torch.equal(before.data.weights, after.data.weights)
    )
    if not same:
        raise InvalidInputError(
            explain(
                "data_after",
                got=f"{after.data!r}",
                expected=f"the situations of {before.data!r}, one by one",
                hint="scenario(data, {...})",
            )
        )
    column = spec.variables.index(price)
    first, second = (expectations.of(lambda at: at.logsum / -at.beta[..., column]) for expectations in (before, after))
    size = before.situation_weights.sum()
    found = {
        "before": (first.total, first.jacobian),
        "after": (second.total, second.jacobian),
        "change": (second.total - first.total, second.jacobian - first.jacobian),
    }
    return ConsumerSurplus(
        before=first.each,
        after=second.each,
        change=second.each - first.each,
        means={name: float(total / size) for name, (total, _) in found.items()},
        std_errors={name: float(before.standard_errors(slope / size)) for name, (_, slope) in found.items()},
        price=price,
        integration=before.rule,
        data=before.data,
    )


def _require_negative(spec: Specification, params: Tensor, price: str) -> None:
    random = spec.random.get(price)
    if random is None:
        value = float(params[spec.index[price]])
        negative, what = value < 0.0, f"{value:.6g}"
    else:
        centre = math.nan if "loc" not in random.parameters else float(params[spec.index[f"{price}.loc"]])
        negative = random.sign < 0 or (
            random.limits[1] <= 0.0 if random.family in ("truncated_normal", "johnson_sb") else centre < 0.0
        )
        what = f"{random} and may be positive" if random.family in ("normal", "uniform", "triangular") else f"{random}"
    if not negative:
        raise InvalidInputError(
            explain(
                f"coefficient of the price {price!r}",
                got=what,
                expected="a negative one for everybody",
                hint="'-lognormal', or a price with the other sign",
            )
        )
    if inverse_moments(spec, params, price) < 1.0:
        raise InvalidInputError(
            explain(
                f"coefficient of the price {price!r}",
                got=f"{random}, for which E[1 / coefficient] does not exist: surplus has no mean",
                expected="one that is fixed, or random but bounded away from 0 or lognormal",
                hint="'-lognormal'",
            )
        )
