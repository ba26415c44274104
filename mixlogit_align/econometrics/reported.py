"""From a maximum in the coordinates of the search to what every result reports of it."""

# N individuals, P parameters of which Q are free.

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.inference import MaximumLikelihood, delta_method, standard_errors

# A scale within this many standard errors of 0 is at its boundary.
_AT_ZERO = 1e-3


def reported(
    data: ChoiceData,
    maximum: MaximumLikelihood,
    *,
    names: Sequence[str],
    natural: Tensor,
    slopes: Tensor,
    free: Tensor,
    free_cov: Tensor,
    hessian: Callable[[], Tensor],
    scores: Tensor,
    moments: Callable[[Tensor], tuple[Sequence[str], Tensor]],
    scales: tuple[str, ...],
    logged: Collection[str],
    held: Mapping[str, float],
) -> dict[str, Any]:
    """Fields of a :class:`MixedLogitResult` that estimates and their derivatives determine.

    Parameters
    ----------
    data : ChoiceData
    maximum : MaximumLikelihood
        In the free coordinates.
    names : sequence of str
    natural, slopes : Tensor, shape (P,)
        Natural parameters, and their derivatives in the coordinates of the search.
    free : Tensor, shape (Q,), int64
    free_cov : Tensor, shape (Q, Q)
        Of the free coordinates.
    hessian : callable
        Of all coordinates, (P, P); asked for where some are held.
    scores : Tensor, shape (N, P)
        In the coordinates of the search.
    moments : callable
        Natural parameters (P,) to names and values.
    scales, logged : collections of str
        Parameters that are scales; those estimated by their logarithm, which have no boundary.
    held : mapping of str to float
        Parameters that were not estimated.

    Returns
    -------
    dict
    """
    cov_of_search = torch.zeros(len(names), len(names), dtype=torch.float64)
    cov_of_search[free[:, None], free] = free_cov
    cov = slopes[:, None] * cov_of_search * slopes
    estimates = dict(zip(names, natural.tolist(), strict=True))
    errors = dict(zip(names, standard_errors(cov).tolist(), strict=True))
    moment_names = moments(natural)[0]
    values, moment_cov = delta_method(lambda params: moments(params)[1], natural, cov)
    near = {name for name in scales if abs(estimates[name]) < _AT_ZERO * errors[name]} - {*held, *logged}
    curvature = maximum.hessian if len(free) == len(names) else hessian()
    return {
        "params": estimates,
        "std_errors": errors,
        "cov": cov,
        "moments": dict(zip(moment_names, values.tolist(), strict=True)),
        "moment_std_errors": dict(zip(moment_names, standard_errors(moment_cov).tolist(), strict=True)),
        "mixing": None,
        "fixed": None,
        "loglik": maximum.loglik,
        "null_loglik": data.null_loglik,
        "gradient_norm": maximum.gradient_norm,
        "hessian_eigenvalues": maximum.eigenvalues,
        "at_boundary": bool(near),
        "held": dict(held),
        "scales": scales,
        "n_individuals": float(data.weights.sum()),
        "nobs": float(data.situation_weights.sum()),
        "hessian": curvature / slopes[:, None] / slopes,
        "scores": scores / slopes,
        "weights": data.weights,
    }
