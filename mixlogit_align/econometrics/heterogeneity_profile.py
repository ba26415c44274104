"""How the log-likelihood of choices depends on how much strengths vary, their mean being estimated anew."""

# C values of the cv.

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from scipy.optimize import brentq
from scipy.stats import chi2
from torch import Tensor

from mixlogit_align.distributions.learnable import mixing_of_mean_cv
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.strength_likelihood import Chunk, chunks, compressed, compressed_chunk
from mixlogit_align.errors import ConvergenceError, explain
from mixlogit_align.inference.bounded import maximize_in_box

# A mean is sought within this factor of the fixed strength: a gamma of large cv lies near 0 but for a few.
_FACTOR = 1e30
# Of the mean, in standard errors: the log-likelihood is then right to half its square.
_TOLERANCE = 1e-3
# Of the ends of an interval, as a share of the cv, and near 0 in itself.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4


class ProfilePoint(NamedTuple):
    """The log-likelihood at one cv.

    Attributes
    ----------
    loglik : float
    mean : float
        Of the strength: the most likely one at this cv.
    """

    loglik: float
    mean: float


class CvProfile:
    """``max over the mean of loglik(mean, cv)`` as a function of the coefficient of variation, sd / mean.

    Points are computed once. The cv, not the sd, since it has no unit and is what the mean does not move.

    Parameters
    ----------
    data : ChoiceData
        Pairs; a panel has one strength an individual, a cross-section one a comparison.
    variable : str
        The attribute that the strength multiplies.
    family : {"lognormal", "gamma"}
    fixed : float
        The most likely fixed strength, above 0: where the search for the first mean begins.
    """

    def __init__(self, data: ChoiceData, variable: str, family: str, fixed: float) -> None:
        compression = compressed(data, variable, 1)
        self._chunks = chunks(data, variable, 1) if compression is None else [compressed_chunk(compression)]
        self._family = family
        self._fixed = math.log(fixed)
        self._points: dict[float, ProfilePoint] = {}

    def at(self, cv: float) -> ProfilePoint:
        """The profile at one cv.

        Parameters
        ----------
        cv : float
            0 (one strength for all) or above.

        Returns
        -------
        ProfilePoint

        Raises
        ------
        ConvergenceError
            If no mean is most likely.
        """
        if cv not in self._points:
            self._points[cv] = self._maximum(cv)
        return self._points[cv]

    def interval(self, top: ProfilePoint, cv: float, highest: float, level: float) -> tuple[float, float]:
        """The cvs that a likelihood-ratio test at 1 - ``level`` does not reject.

        ``2 (l_max - l(cv)) <= chi2_1(level)``. Where the true cv is 0, on its boundary, it is covered more often than
        told: 97.5 % of the time at 95 %.

        Parameters
        ----------
        top : ProfilePoint
            The maximum, at ``cv``.
        cv, highest : float
            Where the search ends upwards.
        level : float

        Returns
        -------
        low : float
            0 where no spread is not rejected.
        high : float
            Infinite where ``highest`` is not rejected.
        """

        def excess(at: float) -> float:
            return 2.0 * (top.loglik - self.at(at).loglik) - float(chi2.ppf(level, 1))

        def end(one: float, other: float) -> float:
            return float(brentq(excess, one, other, xtol=_ABSOLUTE, rtol=_RELATIVE))

        low = 0.0 if excess(0.0) <= 0.0 else end(0.0, cv)
        return low, math.inf if excess(highest) <= 0.0 else end(cv, highest)

    def _mixing(self, cv: float, params: Tensor) -> TorchDistribution:
        mean = params[0].exp()
        if cv == 0.0:
            return dist.Delta(mean)
        mixing: TorchDistribution = mixing_of_mean_cv(self._family, mean, mean.new_tensor(cv))
        return mixing

    def _maximum(self, cv: float) -> ProfilePoint:
        def part(chunk: Chunk, params: Tensor) -> Tensor:
            return chunk.weights * chunk.loglik(self._mixing(cv, params))

        parts: list[Callable[[Tensor], Tensor]] = [partial(part, chunk) for chunk in self._chunks]
        # the mean grows with the cv: the nearest cv knows it best
        nearest = min(self._points, key=lambda known: abs(known - cv), default=None)
        start = self._fixed if nearest is None else math.log(self._points[nearest].mean)
        middle = torch.tensor([self._fixed], dtype=torch.float64)
        reach = math.log(_FACTOR)
        found = maximize_in_box(
            parts, middle.new_tensor([start]), middle - reach, middle + reach, gradient_tolerance=_TOLERANCE
        )
        if not found.converged or bool(found.at_bound.any()):
            raise ConvergenceError(
                explain(
                    f"mean strength at a cv of {cv:g}",
                    got=f"none that is most likely within {_FACTOR:g} times the fixed strength",
                    expected="choices that tell the mean",
                    hint="more comparisons",
                )
            )
        return ProfilePoint(found.loglik, math.exp(float(found.params)))
