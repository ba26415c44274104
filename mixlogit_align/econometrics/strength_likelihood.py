"""The likelihood of choice data, handed to the distributions in chunks of individuals."""

# N individuals, T situations of an individual, J alternatives, K draws, G points that stand for comparisons.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from pyro.distributions import TorchDistribution

from mixlogit_align.distributions import (
    FixedDraws,
    Integration,
    MixedLogit,
    MixedMultinomialLogit,
    PanelMixedLogit,
)
from mixlogit_align.distributions.mixed_logit import StrengthMixture
from mixlogit_align.econometrics.compression import STEP, Compression, compress
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.errors import InvalidInputError, explain

# Utilities at a time: with the nodes of a quadrature rule some 10^5 numbers, which stay in the cache, and second
# derivatives keep below 300 MB.
_CHUNK = 1024


@dataclass(frozen=True)
class Chunk:
    """The choices of some individuals.

    Attributes
    ----------
    rows : slice
        Which individuals.
    distribution : callable
        (mixing, rule) to the distribution of their choices.
    choices : torch.Tensor
        What they chose, one row an individual.
    weights : torch.Tensor
        Their frequencies.
    """

    rows: slice
    distribution: Callable[[TorchDistribution, Integration | None], StrengthMixture]
    choices: torch.Tensor
    weights: torch.Tensor

    def loglik(self, mixing: TorchDistribution, rule: Integration | None = None) -> torch.Tensor:
        """Log-likelihood of each individual of the chunk, frequencies not counted."""
        result: torch.Tensor = self.distribution(mixing, self._own(rule)).log_prob(self.choices)
        return result

    def rule_used(self, mixing: TorchDistribution) -> Integration:
        """The rule that is picked where none is given."""
        rule: Integration = self.distribution(mixing, None).rules_used(self.choices)[0]
        return rule

    def _own(self, rule: Integration | None) -> Integration | None:
        """The rule with the draws that belong to these individuals."""
        if isinstance(rule, FixedDraws):
            if rule.base.dim() == 1:
                return rule
            weights = None if rule.weights is None else rule.weights[self.rows]
            return FixedDraws(rule.base[self.rows], weights)
        return None if rule is None else rule.at(rows=torch.arange(self.rows.start, self.rows.stop))


def chunks(data: ChoiceData, variable: str, sign: int) -> list[Chunk]:
    """Split data by individuals, with the distribution that fits: pairs, a panel of pairs, choices among several.

    Parameters
    ----------
    data : ChoiceData
    variable : str
        The attribute whose coefficient is ``sign`` times the strength.
    sign : int

    Returns
    -------
    list of Chunk

    Raises
    ------
    InvalidInputError
        For an unknown variable, or a panel with more than two alternatives in a situation.
    """
    if data.is_binary:
        difference, second = data.pairs(variable)
        difference = sign * difference
        if data.is_panel:
            utility, observed = data.by_individual(difference)
            choices, _ = data.by_individual(second)

            def distribution(rows: slice) -> Callable[..., StrengthMixture]:
                return partial(PanelMixedLogit, utility[rows], observed=observed[rows], validate_args=False)

        else:
            utility, choices = difference, second

            def distribution(rows: slice) -> Callable[..., StrengthMixture]:
                return partial(MixedLogit, utility[rows], validate_args=False)

    elif data.is_panel:
        raise InvalidInputError(
            explain(
                "data",
                got="a panel with more than two alternatives in a situation",
                expected="pairs, or a cross-section",
                hint="individual=None, if a fresh strength in each situation is what you mean",
            )
        )
    else:
        utility, available, choices = sign * data.attribute(variable), data.available, data.choice

        def distribution(rows: slice) -> Callable[..., StrengthMixture]:
            return partial(MixedMultinomialLogit, utility[rows], available=available[rows], validate_args=False)

    size = max(1, _CHUNK // max(1, utility[0].numel()))
    starts = range(0, data.num_individuals, size)
    parts = [slice(start, min(start + size, data.num_individuals)) for start in starts]
    return [Chunk(rows, distribution(rows), choices[rows], data.weights[rows]) for rows in parts]


def compressed(data: ChoiceData, variable: str, sign: int, step: float = STEP) -> Compression | None:
    """A cross-section of pairs as fewer comparisons.

    Parameters
    ----------
    data, variable, sign
        As in :func:`chunks`.
    step : float
        Of the grid, see :func:`mixlogit_align.econometrics.compression.compress`.

    Returns
    -------
    Compression or None
        None where the data are no such cross-section, or too few.
    """
    if data.is_panel or not data.is_binary:
        return None
    difference, second = data.pairs(variable)
    return compress(sign * torch.where(second > 0.5, difference, -difference), data.weights, step)


def compressed_chunk(compression: Compression) -> Chunk:
    """Points of a compression as individuals, each of whom chose the first alternative.

    Parameters
    ----------
    compression : Compression

    Returns
    -------
    Chunk
        Of G individuals.
    """
    differences = compression.differences
    return Chunk(
        slice(0, len(differences)),
        partial(MixedLogit, differences, validate_args=False),
        torch.ones_like(differences),
        compression.weights,
    )
