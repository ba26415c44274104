"""Choices of individuals whose strength is known."""

# N individuals, T situations each, J alternatives.

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution

from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.errors import InvalidInputError, explain

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class SimulatedChoices:
    """Choices, and the truth behind them.

    Attributes
    ----------
    attributes : torch.Tensor, shape (N, T, J), float64
        The attribute ``x`` of each alternative.
    choice : torch.Tensor, shape (N, T), int64
        Index of the alternative chosen.
    strength : torch.Tensor, shape (N,), float64
        The strength of each individual, as drawn.
    """

    attributes: torch.Tensor
    choice: torch.Tensor
    strength: torch.Tensor

    @property
    def frame(self) -> pd.DataFrame:
        """Long table: individual, situation, alternative, x, choice; one row an alternative."""
        import pandas as pd

        n, t, j = self.attributes.shape
        index = torch.cartesian_prod(torch.arange(n), torch.arange(t), torch.arange(j))
        chosen = self.choice[..., None] == torch.arange(j)
        return pd.DataFrame(
            {
                "individual": index[:, 0].numpy(),
                "situation": (index[:, 0] * t + index[:, 1]).numpy(),
                "alternative": index[:, 2].numpy(),
                "x": self.attributes.reshape(-1).numpy(),
                "choice": chosen.reshape(-1).long().numpy(),
            }
        )

    @property
    def data(self) -> ChoiceData:
        """The same as :class:`ChoiceData`: a cross-section if T = 1, else a panel; variable ``"x"``."""
        return ChoiceData.from_long(
            self.frame,
            choice="choice",
            alternative="alternative",
            situation="situation",
            individual="individual" if self.choice.shape[1] > 1 else None,
            variables=["x"],
        )


def simulate_choices(
    mixing: TorchDistribution,
    *,
    num_individuals: int,
    num_situations: int = 1,
    num_alternatives: int = 2,
    attribute: TorchDistribution | None = None,
    seed: int,
) -> SimulatedChoices:
    """Draw strengths, attributes and logit choices.

    Individual n has one strength b_n for all situations and chooses alternative j with probability
    ``softmax_j(b_n * x_ntj)``; with two alternatives ``sigma(b_n * (x_nt1 - x_nt0))``.

    Parameters
    ----------
    mixing : pyro.distributions.TorchDistribution, univariate
        Distribution of the strength; one for all (batch shape ()) or one an individual (N,). ``Delta`` has no
        heterogeneity.
    num_individuals, num_situations, num_alternatives : int
        N, T and J. T = 1 is a cross-section.
    attribute : pyro.distributions.TorchDistribution, univariate, optional
        Distribution of x, in units of 1/strength; standard normal if None.
    seed : int
        The same seed gives the same choices; torch's global generator is left as it was.

    Returns
    -------
    SimulatedChoices

    Raises
    ------
    InvalidInputError
        If a count is too small or the mixing is not univariate with batch shape () or (N,).
    """
    counts = {"num_individuals": num_individuals, "num_situations": num_situations}
    for name, count, least in [
        *((k, v, 1) for k, v in counts.items()),
        ("num_alternatives", num_alternatives, 2),
    ]:
        if count < least:
            raise InvalidInputError(explain(name, got=count, expected=f"at least {least}", hint="a larger count"))
    shape = tuple(mixing.shape())
    if shape not in ((), (num_individuals,)):
        raise InvalidInputError(
            explain(
                "mixing",
                got=f"shape {shape}",
                expected=f"a univariate distribution of batch shape () or ({num_individuals},)",
                hint="one set of parameters for all individuals, or one for each",
            )
        )
    if attribute is None:
        attribute = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    size = torch.Size((num_individuals, num_situations, num_alternatives))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        strength = mixing.expand(torch.Size((num_individuals,))).sample().to(torch.float64)
        x = attribute.expand(size).sample().to(torch.float64)
        choice = dist.Categorical(logits=strength[:, None, None] * x).sample()
    return SimulatedChoices(attributes=x, choice=choice, strength=strength)
