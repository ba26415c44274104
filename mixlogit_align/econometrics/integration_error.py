"""How far a rule of integration may have moved a maximum."""

# Q free parameters.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixlogit_align.distributions import FixedDraws, Integration, Quadrature
from mixlogit_align.econometrics.results import IntegrationReport
from mixlogit_align.inference import Differentiated, MaximumLikelihood


@dataclass(frozen=True)
class IntegrationError:
    """Errors of log-likelihood and estimates, from the log-likelihood under other draws or more nodes at the maximum.

    Each estimate is taken to move by one Newton step.

    Attributes
    ----------
    rule : Integration
    maximum : MaximumLikelihood
        Under ``rule``.
    names : sequence of str
        The Q free parameters.
    slopes : Tensor, shape (Q,)
        d natural parameter / d estimated coordinate.
    """

    rule: Integration
    maximum: MaximumLikelihood
    names: Sequence[str]
    slopes: Tensor

    def _moved(self, others: Sequence[Differentiated]) -> tuple[Tensor, Tensor]:
        """Steps (R, Q) of natural parameters, and rises of the log-likelihood (R,)."""
        found = [other.gradient(self.maximum.params) for other in others]
        rises = torch.tensor([value - self.maximum.loglik for value, _ in found], dtype=torch.float64)
        gradients = torch.stack([gradient for _, gradient in found], 1)
        return torch.linalg.solve(-self.maximum.hessian, gradients).T * self.slopes, rises

    def _named(self, values: Tensor, loglik: float) -> dict[str, float]:
        return {**dict(zip(self.names, values.tolist(), strict=True)), "loglik": loglik}

    def spread(
        self, others: Sequence[Differentiated], finer: Integration | None, ess: float | None
    ) -> tuple[IntegrationReport, dict[str, float]]:
        """The report, and standard deviations over draws or movements with more nodes; empty without ``others``.

        Parameters
        ----------
        others : sequence of Differentiated
            The log-likelihood (Q,) with other draws, or once with the nodes of ``finer``.
        finer : Integration or None
        ess : float, optional
            Smallest effective sample size.
        """
        if not others:
            why = "no other draws to compare with" if isinstance(self.rule, FixedDraws) else "not computed"
            return IntegrationReport(rule=repr(self.rule), error=math.nan, reference=why, ess=ess), {}
        moves, rises = self._moved(others)
        if isinstance(self.rule, Quadrature):
            told, error, size = repr(finer), float(rises[0]), moves[0].abs()
        else:
            told = f"{len(others)} fresh sets of draws"
            error = float(torch.cat([rises.new_zeros(1), rises]).std())
            size = torch.cat([torch.zeros_like(moves[:1]), moves]).std(0)
        report = IntegrationReport(rule=repr(self.rule), error=error, reference=told, ess=ess)
        return report, self._named(size, abs(error))

    def bias(self, halves: Sequence[Differentiated]) -> dict[str, float]:
        """Mean movement with the halves of the draws; empty without them."""
        if not halves:
            return {}
        moves, rises = self._moved(halves)
        return self._named(moves.mean(0), float(rises.mean()))
