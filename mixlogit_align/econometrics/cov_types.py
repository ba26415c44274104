"""Covariance matrices by name, the same for every model."""

# N individuals, P parameters.

from __future__ import annotations

from torch import Tensor

from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.inference import (
    bhhh_covariance,
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
