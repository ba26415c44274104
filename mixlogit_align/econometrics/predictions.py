"""Predicted choices: probabilities and shares, and the data of a scenario."""

# S situations, J alternatives.

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mixlogit_align.distributions import Integration
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.expectations import Expectations
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.rendering import Summary, Table, number
from mixlogit_align.econometrics.results import MixedLogitResult
from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.numerics.threads import own_threads

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Prediction:
    """Probabilities of choice.

    Attributes
    ----------
    probabilities : torch.Tensor, shape (S, J)
        0 where not available.
    shares, share_std_errors : dict
        By alternative: mean probability over situations, frequencies counted, with its error by the delta method.
    conditional : bool
        Given the past choices of the same individuals.
    integration : str
        The rule.
    data : ChoiceData
        What was predicted.
    """

    probabilities: Tensor
    shares: dict[Any, float]
    share_std_errors: dict[Any, float]
    conditional: bool
    integration: str
    data: ChoiceData

    def to_frame(self) -> pd.DataFrame:
        """One row an available alternative.

        Returns
        -------
        pandas.DataFrame
            Columns individual and alternative (labels of the data), situation (numbered in the order of the data),
            probability.
        """
        import pandas as pd

        data = self.data
        situation, alternative = data.available.nonzero().unbind(1)
        return pd.DataFrame(
            {
                "individual": [data.individuals[n] for n in data.individual[situation].tolist()],
                "situation": situation.numpy(),
                "alternative": [data.alternatives[j] for j in alternative.tolist()],
                "probability": self.probabilities[situation, alternative].numpy(),
            }
        )

    @property
    def summary(self) -> Summary:
        """Table of shares, printed as text; ``as_html()``, ``as_latex()``."""
        kind = "given individuals' past choices" if self.conditional else "over the population"
        rows = tuple(
            (str(label), number(share), number(self.share_std_errors[label], 4)) for label, share in self.shares.items()
        )
        title = f"Predicted shares {kind}: {len(self.probabilities)} situations"
        return Summary(Table(title, ("", "share", "std. error"), (rows,), (f"integration: {self.integration}",)))

    def __repr__(self) -> str:
        return self.summary


@own_threads()
def predict(
    model: MixedLogitModel,
    result: MixedLogitResult,
    data: ChoiceData | None = None,
    *,
    conditional: bool = False,
    integration: Integration | None = None,
) -> Prediction:
    """Probabilities ``P_sj = E[softmax_j(x_s' b)]`` and shares.

    Parameters
    ----------
    model : MixedLogitModel
    result : MixedLogitResult
        Of this model, possibly read from a file.
    data : ChoiceData, optional
        Situations to predict, those of :func:`scenario` for instance; its choices are not read. None: the model's.
    conditional : bool
        E over the distribution of an individual's coefficients given its choices in the model's data, which are then
        known, instead of the population's: for further choices of the same individuals (Revelt and Train 2000).
    integration : integration rule, optional
        None: the rule of the result; over the population, where that one lies about individuals' modes, quadrature up
        to two random coefficients and 1,024 Sobol draws beyond.

    Returns
    -------
    Prediction

    Raises
    ------
    InvalidInputError
        If the result is of another model, an attribute is missing, or an individual has no past.
    """
    expectations = Expectations(model, result, data, integration, conditional)
    found = expectations.of(lambda at: at.probabilities.unbind(1))
    size = expectations.situation_weights.sum()
    errors = expectations.standard_errors(found.jacobian / size)
    labels = expectations.data.alternatives
    return Prediction(
        probabilities=found.each,
        shares=dict(zip(labels, (found.total / size).tolist(), strict=True)),
        share_std_errors=dict(zip(labels, errors.tolist(), strict=True)),
        conditional=conditional,
        integration=expectations.rule,
        data=expectations.data,
    )


Change = Tensor | float | Callable[[Tensor], Tensor]


def scenario(
    data: ChoiceData,
    changes: Mapping[str, Change | Mapping[Any, Change]] | None = None,
    *,
    without: Collection[Any] = (),
) -> ChoiceData:
    """The same situations with other attributes, or fewer alternatives.

    Parameters
    ----------
    data : ChoiceData
    changes : mapping of str to values or callable, optional
        By attribute: new values, (S, J) or what broadcasts to it; or a function of the old ones,
        ``{"price": lambda price: 1.1 * price}``. Or, by alternative, the same of this alternative's values (S,):
        ``{"price": {"bus": lambda price: price + 1.0, "car": 20.0}}``. An attribute computed from a changed one (its
        square, an interaction) stays as it is, unless it is changed too.
    without : collection of labels
        Alternatives that nobody is offered any more; two must be left in every situation.

    Returns
    -------
    ChoiceData
        Values of alternatives that are not available are 0. Its choices are not those of the scenario, which are
        unknown: they stay what they were or, where the chosen alternative is gone, name the first that is left.

    Raises
    ------
    InvalidInputError
        If there is no such attribute or alternative, a shape does not fit, a value is not finite, or too few
        alternatives are left.
    """
    available = data.available.clone()
    for label in without:
        available[:, _position(data, label)] = False
    attributes = data.attributes.clone()
    for name, change in (changes or {}).items():
        old = data.attribute(name)
        if isinstance(change, Mapping):
            new = old.clone()
            for label, own in change.items():
                j = _position(data, label)
                new[:, j] = _changed(f"{name!r} of {label!r}", old[:, j], own)
        else:
            new = _changed(repr(name), old, change)
        attributes[..., data.variables.index(name)] = new
    left = available.gather(1, data.choice[:, None])[:, 0]
    changed = replace(
        data,
        attributes=torch.where(available[..., None], attributes, 0.0),
        available=available,
        choice=torch.where(left, data.choice, available.to(torch.int64).argmax(1)),
    )
    changed.validate()
    return changed


def _position(data: ChoiceData, label: Any) -> int:
    if label not in data.alternatives:
        expected = f"one of {list(data.alternatives)}"
        raise InvalidInputError(explain("alternative", got=repr(label), expected=expected, hint="one of these"))
    return data.alternatives.index(label)


def _changed(what: str, old: Tensor, change: Change) -> Tensor:
    new = torch.as_tensor(change(old) if callable(change) else change, dtype=torch.float64)
    try:
        return new.expand_as(old)
    except RuntimeError as error:
        got, expected = f"shape {tuple(new.shape)}", f"one that broadcasts to {tuple(old.shape)}"
        raise InvalidInputError(explain(f"changes of {what}", got=got, expected=expected, hint="a number")) from error
