"""How probabilities of choice respond to attributes: elasticities and marginal effects."""

# S situations, J alternatives, P parameters. Matrices (J, J): row the alternative whose probability moves, column the
# one whose attribute moves.

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mixlogit_align.distributions import Integration
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.expectations import Expectations, Situations
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.rendering import Summary, Table, number
from mixlogit_align.econometrics.results import MixedLogitResult
from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.numerics.threads import own_threads

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Effects:
    """Responses of every alternative's probability to an attribute of every alternative.

    Attributes
    ----------
    attribute : str
    kind : str
        ``"elasticity"`` or ``"marginal effect"``.
    each : torch.Tensor, shape (S, J, J)
        Of every situation; ``each[s, j, k]`` is the response of P_sj to x_sk. NaN where j or k is not available.
    aggregate, std_errors : torch.Tensor, shape (J, J)
        Response of the predicted share of j, by sample enumeration: to one more percent (elasticity) or one more unit
        (marginal effect) of k's attribute in every situation. For elasticities this is the mean of ``each`` weighted
        by P_sj. Errors by the delta method.
    mean : torch.Tensor, shape (J, J)
        Plain mean of ``each`` over the situations that offer both j and k, frequencies counted: the response of a
        typical situation, not of the share.
    alternatives : tuple
    conditional : bool
    integration : str
    data : ChoiceData
    """

    attribute: str
    kind: str
    each: Tensor
    aggregate: Tensor
    std_errors: Tensor
    mean: Tensor
    alternatives: tuple[Any, ...]
    conditional: bool
    integration: str
    data: ChoiceData

    @property
    def own(self) -> dict[Any, float]:
        """Aggregate response of every alternative to its own attribute."""
        return dict(zip(self.alternatives, self.aggregate.diagonal().tolist(), strict=True))

    def to_frame(self) -> pd.DataFrame:
        """One row a pair of alternatives.

        Returns
        -------
        pandas.DataFrame
            Columns alternative (whose probability moves), of (whose attribute moves), aggregate, std_error, mean.
        """
        import pandas as pd

        j = len(self.alternatives)
        return pd.DataFrame(
            {
                "alternative": [label for label in self.alternatives for _ in range(j)],
                "of": [label for _ in range(j) for label in self.alternatives],
                "aggregate": self.aggregate.flatten().numpy(),
                "std_error": self.std_errors.flatten().numpy(),
                "mean": self.mean.flatten().numpy(),
            }
        )

    @property
    def summary(self) -> Summary:
        """Table of aggregate responses, rows by alternative, a column for the attribute of each."""
        names = [str(label) for label in self.alternatives]
        rows = [
            row
            for name, values, errors in zip(names, self.aggregate.tolist(), self.std_errors.tolist(), strict=True)
            for row in (
                (name, *(number(value, 4) for value in values)),
                ("", *(f"({number(error, 3)})" for error in errors)),
            )
        ]
        title = f"{self.kind.capitalize()} of predicted shares with respect to {self.attribute!r} of"
        foot = ("standard errors in parentheses", f"integration: {self.integration}")
        return Summary(Table(title, ("", *names), (tuple(rows),), foot))

    def __repr__(self) -> str:
        return self.summary


@own_threads()
def elasticities(
    model: MixedLogitModel,
    result: MixedLogitResult,
    attribute: str,
    data: ChoiceData | None = None,
    *,
    conditional: bool = False,
    integration: Integration | None = None,
) -> Effects:
    """Own and cross elasticities ``(x_sk / P_sj) dP_sj / dx_sk``.

    ``dP_sj / dx_sk = E[b (1{j = k} P_j - P_j P_k)]`` with the probabilities given the coefficients inside.

    Parameters
    ----------
    model : MixedLogitModel
    result : MixedLogitResult
        Of this model, possibly read from a file.
    attribute : str
        With a coefficient in the model. Another attribute computed from it (its square, an interaction) stays as it
        is.
    data, conditional, integration
        As of :func:`mixlogit_align.econometrics.predictions.predict`.

    Returns
    -------
    Effects

    Raises
    ------
    InvalidInputError
        If the attribute has no coefficient, or as of ``predict``.
    """
    expectations = Expectations(model, result, data, integration, conditional)
    c, j = _column(model, attribute), expectations.data.num_alternatives
    found = expectations.of(lambda at: itertools.chain(at.probabilities.unbind(1), _responses(at, c, relative=True)))
    probability, share = found.each[:, :j, None], found.total[:j, None]
    each = found.each[:, j:].unflatten(1, (j, j)) / probability
    aggregate = found.total[j:].unflatten(0, (j, j)) / share
    # d (a / b) = (da - (a / b) db) / b
    moved = found.jacobian[j:].unflatten(0, (j, j)) - aggregate[..., None] * found.jacobian[:j, None]
    return _effects(expectations, attribute, "elasticity", each, aggregate, moved / share[..., None])


@own_threads()
def marginal_effects(
    model: MixedLogitModel,
    result: MixedLogitResult,
    attribute: str,
    data: ChoiceData | None = None,
    *,
    conditional: bool = False,
    integration: Integration | None = None,
) -> Effects:
    """Own and cross marginal effects ``dP_sj / dx_sk``, of one unit of the attribute.

    Parameters
    ----------
    model, result, attribute, data, conditional, integration
        As of :func:`elasticities`.

    Returns
    -------
    Effects

    Raises
    ------
    InvalidInputError
        If the attribute has no coefficient, or as of ``predict``.
    """
    expectations = Expectations(model, result, data, integration, conditional)
    c, j = _column(model, attribute), expectations.data.num_alternatives
    found = expectations.of(lambda at: _responses(at, c, relative=False))
    size = expectations.situation_weights.sum()
    each, aggregate = found.each.unflatten(1, (j, j)), found.total.unflatten(0, (j, j)) / size
    jacobian = found.jacobian.unflatten(0, (j, j)) / size
    return _effects(expectations, attribute, "marginal effect", each, aggregate, jacobian)


def _column(model: MixedLogitModel, attribute: str) -> int:
    variables = model.specification.variables
    if attribute not in variables:
        raise InvalidInputError(
            explain(
                "attribute", got=repr(attribute), expected=f"one of {list(variables)}", hint="one with a coefficient"
            )
        )
    return variables.index(attribute)


def _responses(at: Situations, column: int, *, relative: bool) -> Iterator[Tensor]:
    """dP_j / dx_k given the coefficients, times x_k where relative, (s, K) each: j by j, k within."""
    p, b = at.probabilities.unbind(1), at.beta[..., column]
    for j, k in itertools.product(range(len(p)), repeat=2):
        moved = b * p[j] * ((1.0 if j == k else 0.0) - p[k])
        yield moved * at.x[:, k, column, None] if relative else moved


def _effects(
    expectations: Expectations, attribute: str, kind: str, each: Tensor, aggregate: Tensor, jacobian: Tensor
) -> Effects:
    data = expectations.data
    both = data.available[:, :, None] & data.available[:, None]
    weights = expectations.situation_weights[:, None, None] * both
    return Effects(
        attribute=attribute,
        kind=kind,
        each=each.where(both, torch.nan),
        aggregate=aggregate,
        std_errors=expectations.standard_errors(jacobian),
        mean=(weights * each.where(both, 0.0)).sum(0) / weights.sum(0),
        alternatives=data.alternatives,
        conditional=expectations.conditional,
        integration=expectations.rule,
        data=data,
    )
