"""What a maximum of a simulated log-likelihood must show beyond a small gradient and a definite Hessian."""

# N individuals, Q free parameters.

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixlogit_align.econometrics.specification import Specification
from mixlogit_align.inference import MaximumLikelihood

# Largest remaining Newton step of a maximum, in standard errors; searches go on to a hundredth where they can. Where
# coefficients break, gradients jump from draw to draw.
TOLERANCE, _TOLERANCE_OF_BREAKS = 1e-3, 2e-2
# A remaining step is short in standard errors where nothing is known, too: it must be so as a share of the parameter.
_FAR = 5e-3
# Nothing has converged where importance sampling has fewer effective draws for one individual in 20.
_FEWEST = 4.0


def tolerance_of(specification: Specification) -> float:
    """Largest gradient norm of a maximum, in standard errors."""
    return _TOLERANCE_OF_BREAKS if specification.breaks else TOLERANCE


def running_away(maximum: MaximumLikelihood, names: Sequence[str], sizes: Tensor, tolerance: float = TOLERANCE) -> str:
    """Which parameters still go far, on a likelihood that is flat: it has no maximum but at infinity.

    Parameters
    ----------
    maximum : MaximumLikelihood
        Of a definite Hessian.
    names : sequence of str
        The Q free parameters.
    sizes : Tensor, shape (Q,)
        What counts as large in each, at least.
    tolerance : float
        Of the gradient norm.

    Returns
    -------
    str
        Empty where none does.
    """
    step = torch.linalg.solve(-maximum.hessian, maximum.gradient)
    share = _FAR * max(1.0, tolerance / TOLERANCE)
    far = step.abs() > share * torch.maximum(maximum.params.abs(), sizes)
    found = [name for name, away in zip(names, far.tolist(), strict=True) if away]
    return f"{found} move on without end, on a likelihood that hardly rises" if found else ""


def few_effective(effective: Tensor) -> str:
    """Whether effective draws (N,) of importance sampling are next to none; empty where they are not."""
    least = float(effective.quantile(0.05))
    few = f"one individual in 20 has no more than {least:.1f} effective draws of importance sampling"
    return few if least < _FEWEST else ""
