"""Covariance matrices by name, the same for every model."""

# N individuals, P parameters.

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.errors import ConvergenceError, ConvergenceWarning, InvalidInputError, explain
from mixlogit_align.inference import (
    MaximumLikelihood,
    bhhh_covariance,
    bootstrap,
    bootstrap_covariance,
    clustered_covariance,
    hessian_covariance,
    robust_covariance,
)

NAMES = ("hessian", "bhhh", "robust", "clustered(column)", "bootstrap")


def check_cov_type(cov_type: str, data: ChoiceData) -> None:
    """Refuse an unknown type, or clusters that the data do not have.

    Raises
    ------
    InvalidInputError
        If ``cov_type`` is none of :data:`NAMES`, or its column is not one label an individual.
    """
    if cov_type in NAMES and "(" not in cov_type:
        return
    column = _column(cov_type)
    if column is None:
        raise InvalidInputError(
            explain("cov_type", got=repr(cov_type), expected=f"one of {list(NAMES)}", hint="'hessian'")
        )
    data.cluster(column)


def _column(cov_type: str) -> str | None:
    inside = cov_type.removeprefix("clustered(")
    return inside[:-1] if inside != cov_type and inside.endswith(")") else None


def covariance(cov_type: str, data: ChoiceData, hessian: Tensor, scores: Tensor) -> Tensor:
    """Covariance (P, P) of estimates.

    Parameters
    ----------
    cov_type : str
        One of :data:`NAMES` but the bootstrap, which refits.
    data : ChoiceData
    hessian : Tensor, shape (P, P)
        Of the log-likelihood at its maximum.
    scores : Tensor, shape (N, P)
        Of individuals, frequencies not counted.

    Raises
    ------
    ConvergenceError
        If a matrix is not positive definite.
    """
    if cov_type == "hessian":
        return hessian_covariance(hessian)
    if cov_type == "bhhh":
        return bhhh_covariance(scores, data.weights)
    if cov_type == "robust":
        return robust_covariance(hessian, scores, data.weights)
    column = _column(cov_type)
    assert column is not None, "checked before the fit"
    return clustered_covariance(hessian, scores, data.cluster(column), data.weights)


def covariance_or_doubt(
    cov_type: str,
    data: ChoiceData,
    maximum: MaximumLikelihood,
    scores: Tensor,
    refit: Callable[[Tensor], Tensor | None],
    num_replications: int,
    seed: int,
) -> tuple[Tensor, str]:
    """Covariance (P, P) of estimates of any type, and why it is not to be had, then NaN.

    Parameters
    ----------
    cov_type, data, scores
        As in :func:`covariance`; the bootstrap, too.
    maximum : MaximumLikelihood
    refit : callable
        Weights (N,) to estimates (P,), None where there are none.
    num_replications, seed : int
        Of the bootstrap.

    Returns
    -------
    covariance : Tensor, shape (P, P)
    doubt : str
        Empty where all is well.

    Warns
    -----
    ConvergenceWarning
        For bootstrap replications that are left out.
    """
    try:
        if cov_type != "bootstrap":
            return covariance(cov_type, data, maximum.hessian, scores), ""
        if not maximum.converged:
            raise ConvergenceError("the bootstrap refits a maximum, and there is none")
        found = bootstrap(refit, data.weights, num_replications=num_replications, seed=seed)
    except ConvergenceError as error:
        return torch.full_like(maximum.hessian, math.nan), f"no standard errors: {error}"
    if found.num_failed:
        warnings.warn(
            f"{found.num_failed} of {num_replications} bootstrap replications did not converge and "
            "are not in the standard errors",
            ConvergenceWarning,
            stacklevel=4,
        )
    return bootstrap_covariance(found.estimates), ""
