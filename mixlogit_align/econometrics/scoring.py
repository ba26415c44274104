"""How well a model predicts individuals whom it has not seen."""

# N individuals, F folds.

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from scipy.stats import norm
from torch import Tensor

from mixlogit_align.distributions import Integration
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.rendering import Summary, Table, number
from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.numerics.threads import own_threads

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PairedDifference:
    """Out-of-sample log-likelihood of one model less that of another, over the same individuals.

    Attributes
    ----------
    difference : float
    std_error : float
        From the spread of differences over individuals; it leaves out that folds share data.
    z, pvalue : float
        Two-sided, normal.
    """

    difference: float
    std_error: float
    z: float
    pvalue: float

    def __str__(self) -> str:
        return (
            f"difference of out-of-sample log-likelihoods {self.difference:.4f}, standard error {self.std_error:.4f}, "
            f"z {self.z:.2f}, p-value {self.pvalue:.4g}"
        )


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class CrossValidation:
    """Log-likelihoods of individuals at estimates from the others.

    Attributes
    ----------
    loglik : float
        Sum over individuals, frequencies counted.
    std_error : float
        Of the sum, from the spread over individuals.
    null_loglik : float
        With equal shares.
    by_individual : torch.Tensor, shape (N,)
        Frequencies not counted.
    fold : torch.Tensor, shape (N,), int64
        0..F-1: the fold in which each individual was left out.
    fold_params : tuple of dict of str to float
        Estimates without each fold.
    converged : tuple of bool
        Of each fold's fit.
    individuals : tuple
    weights : torch.Tensor, shape (N,)
    nobs : float
        Situations, frequencies counted.
    specification : str
    """

    loglik: float
    std_error: float
    null_loglik: float
    by_individual: Tensor
    fold: Tensor
    fold_params: tuple[dict[str, float], ...]
    converged: tuple[bool, ...]
    individuals: tuple[Any, ...]
    weights: Tensor
    nobs: float
    specification: str

    def to_frame(self) -> pd.DataFrame:
        """One row an individual.

        Returns
        -------
        pandas.DataFrame
            Indexed by the labels of the data; columns fold, loglik.
        """
        import pandas as pd

        index = pd.Index(list(self.individuals), name="individual", tupleize_cols=False)
        return pd.DataFrame({"fold": self.fold.numpy(), "loglik": self.by_individual.numpy()}, index)

    def versus(self, other: CrossValidation) -> PairedDifference:
        """Compare with another model of the same individuals, paired.

        Parameters
        ----------
        other : CrossValidation
            With the same folds: the same ``num_folds`` and ``seed``.

        Returns
        -------
        PairedDifference
            Positive where this model predicts better.

        Raises
        ------
        InvalidInputError
            If individuals, frequencies, situations or folds differ.
        """
        same = (
            self.individuals == other.individuals
            and torch.equal(self.weights, other.weights)
            and torch.equal(self.fold, other.fold)
            and self.nobs == other.nobs
        )
        if not same:
            raise InvalidInputError(
                explain(
                    "other",
                    got="other individuals, frequencies, situations or folds",
                    expected="the same, so that differences are paired",
                    hint="the same data, num_folds and seed for both models",
                )
            )
        total, error = _total(self.by_individual - other.by_individual, self.weights)
        z = total / error if error > 0.0 else math.nan
        return PairedDifference(total, error, z, 2.0 * float(norm.sf(abs(z))))

    @property
    def summary(self) -> Summary:
        """Table of folds, and the sum."""
        rows = []
        for f, converged in enumerate(self.converged):
            out = self.fold == f
            value = float(self.weights[out] @ self.by_individual[out])
            rows.append((f"fold {f}", str(int(out.sum())), number(value, 7), "yes" if converged else "NO"))
        everyone = (("all", str(len(self.fold)), number(self.loglik, 7), ""),)
        foot = (
            f"standard error over individuals {self.std_error:.4g}; {self.loglik / self.nobs:.5f} a situation, with "
            f"equal shares {self.null_loglik / self.nobs:.5f}",
        )
        title = f"Out-of-sample log-likelihood, {self.specification}"
        return Summary(Table(title, ("", "individuals", "log-likelihood", "converged"), (tuple(rows), everyone), foot))

    def __repr__(self) -> str:
        return self.summary


@own_threads()
def cross_validate(
    model: MixedLogitModel,
    num_folds: int = 5,
    *,
    seed: int = 0,
    integration: Integration | None = None,
    start: Mapping[str, float] | None = None,
) -> CrossValidation:
    """Log-likelihood of every individual at the estimates from the other folds.

    Folds are of whole individuals, of sizes that differ by one at most, drawn by lot.

    Parameters
    ----------
    model : MixedLogitModel
    num_folds : int
        2 to N.
    seed : int
        Of the lot.
    integration : integration rule, optional
        Of fits and scores; None: the model's choice for each.
    start : mapping of str to float, optional
        Where the fits start: ``result.params`` of all data saves time.

    Returns
    -------
    CrossValidation

    Warns
    -----
    ConvergenceWarning
        For a fold whose fit did not converge.

    Raises
    ------
    InvalidInputError
        If the number of folds does not fit, or a coefficient is not identified without a fold.
    ConvergenceError
        As of :meth:`MixedLogitModel.fit`.
    """
    data = model.data
    n = data.num_individuals
    if isinstance(num_folds, bool) or not isinstance(num_folds, int) or not 2 <= num_folds <= n:
        raise InvalidInputError(
            explain("num_folds", got=repr(num_folds), expected=f"2 to {n}, the number of individuals", hint="5")
        )
    generator = torch.Generator().manual_seed(seed)
    fold = torch.empty(n, dtype=torch.int64)
    fold[torch.randperm(n, generator=generator)] = torch.arange(n) % num_folds
    by_individual = torch.empty(n, dtype=torch.float64)
    params, converged = [], []
    for f in range(num_folds):
        out = fold == f
        result = model.with_data(_kept(data, ~out)).fit(integration=integration, start=start, num_redraws=0)
        at = result.params if result.mixing is None else result.mixing
        by_individual[out] = model.loglik(at, integration)[out]
        params.append(result.params)
        converged.append(result.converged)
    total, error = _total(by_individual, data.weights)
    return CrossValidation(
        loglik=total,
        std_error=error,
        null_loglik=data.null_loglik,
        by_individual=by_individual,
        fold=fold,
        fold_params=tuple(params),
        converged=tuple(converged),
        individuals=data.individuals,
        weights=data.weights,
        nobs=float(data.situation_weights.sum()),
        specification=str(model.specification),
    )


def _total(values: Tensor, weights: Tensor) -> tuple[float, float]:
    """Sum of values (N,) and its standard error, individuals independent, frequencies counted."""
    size = weights.sum()
    mean = (weights @ values) / size
    variance = weights @ (values - mean) ** 2 / (size - 1.0)
    return float(weights @ values), float((size * variance).sqrt())


def _kept(data: ChoiceData, people: Tensor) -> ChoiceData:
    """The data of some individuals, (N,) bool."""
    rows = people[data.individual]
    index = people.cumsum(0) - 1
    return replace(
        data,
        attributes=data.attributes[rows],
        available=data.available[rows],
        choice=data.choice[rows],
        individual=index[data.individual[rows]],
        weights=data.weights[people],
        individuals=tuple(label for label, kept in zip(data.individuals, people.tolist(), strict=True) if kept),
        clusters={name: codes[people] for name, codes in data.clusters.items()},
    )
