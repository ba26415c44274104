"""Choices among several alternatives whose strength is random: one of J, and a ranking.

Shapes: B the batch shape, J alternatives, k <= J ranked; strengths lead, (n, *B).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from mixlogit_align.distributions.families import Size
from mixlogit_align.distributions.integration import Conditional, Integration
from mixlogit_align.distributions.mixed_logit import StrengthMixture, boolean_mask, refuse_first, upcast
from mixlogit_align.errors import InvalidInputError, explain

_UNAVAILABLE = {"expected": "available alternatives", "hint": "checking `available` against the choices"}
_ABSENT = -1e300  # utility of what cannot be chosen; finite, so that gradients stay 0 and not NaN


class _ChoiceSet(StrengthMixture):
    _utility_dims = 1

    utilities: Tensor
    available: Tensor | None

    def __init__(
        self,
        utilities: Tensor,
        mixing: Any,
        integration: Integration | None,
        available: Tensor | None,
        event_dim: int,
        validate_args: bool | None,
    ) -> None:
        utilities = upcast(utilities, "utilities")
        if utilities.dim() < 1 or utilities.shape[-1] < 1:
            raise InvalidInputError(
                explain(
                    "utilities",
                    got=f"shape {tuple(utilities.shape)}",
                    expected="(..., J) with J >= 1",
                    hint="a row",
                )
            )
        if available is not None:
            available = boolean_mask(available, "available", utilities)
        self.available = available
        event_shape = utilities.shape[-1:] if event_dim else torch.Size()
        super().__init__(utilities, mixing, integration, event_shape, available, validate_args)
        if self._validate_args and available is not None:
            empty = torch.nonzero(~available.any(-1))
            if len(empty):
                raise InvalidInputError(
                    explain(
                        f"available at index {tuple(empty[0].tolist())}",
                        got="no alternative",
                        expected="at least one available alternative",
                        hint="removing the situation",
                    )
                )

    def _expand_mask(self, new: Any, batch_shape: torch.Size) -> None:
        if self.available is None:
            new.available = None
        else:
            new.available = self.available.expand(batch_shape + self.available.shape[-1:])

    @property
    def num_alternatives(self) -> int:
        """J."""
        return self.utilities.shape[-1]

    def _offered(self) -> Tensor:
        if self.available is None:
            return torch.ones_like(self.utilities, dtype=torch.bool)
        return self.available

    def _gaps(self, utilities: Tensor, offered: Tensor) -> tuple[Tensor, Tensor]:
        """Widest and narrowest nonzero gap between offered alternatives."""
        with torch.no_grad():
            low = torch.where(offered, utilities, math.inf)
            high = torch.where(offered, utilities, -math.inf)
            ordered = torch.sort(low, -1).values
            steps = torch.nan_to_num(ordered[..., 1:] - ordered[..., :-1], nan=math.inf)
            steps = torch.where((steps > 0) & torch.isfinite(steps), steps, math.inf)
            narrowest = steps.amin(-1) if steps.shape[-1] else torch.full_like(ordered[..., 0], math.inf)
            return high.amax(-1) - low.amin(-1), narrowest

    @property
    def probs(self) -> Tensor:
        """P(alternative is chosen first), (..., J); 0 where it is not available."""
        index = torch.arange(self.num_alternatives, device=self.utilities.device)
        index = index.reshape((-1,) + (1,) * len(self.batch_shape))
        value = torch.exp(self._log_marginal(self._first_choice(index))).movedim(0, -1)
        return torch.where(self._offered(), value, 0.0).to(self.utilities.dtype)

    def _first_choice(self, value: Tensor) -> Conditional:
        """Conditional of choosing ``value`` out of what is offered; an alternative not offered counts as if it were."""
        utilities = self.utilities.to(torch.float64)
        shape = torch.broadcast_shapes(value.shape, utilities.shape[:-1])
        index = value.to(torch.int64).expand(shape).unsqueeze(-1)
        utilities = utilities.expand(shape + utilities.shape[-1:])
        offered = self._offered().expand(utilities.shape)
        utilities = torch.where(offered, utilities, torch.zeros_like(utilities))
        chosen = torch.gather(utilities, -1, index)
        if self.num_alternatives == 2 and self.available is None:
            return Conditional.of_comparison((chosen - torch.gather(utilities, -1, 1 - index)).squeeze(-1))
        rival = offered & (torch.arange(self.num_alternatives, device=index.device) != index)
        behind = utilities - chosen

        def loglik(strength: Tensor) -> Tensor:
            scaled = torch.where(rival, strength.unsqueeze(-1) * behind, _ABSENT)
            return logsigmoid(-torch.logsumexp(scaled, -1))

        return Conditional(loglik, shape, *self._gaps(utilities, offered))

    def _perturbed(self, sample_shape: torch.Size) -> Tensor:
        """Random utilities strength * utility + Gumbel noise; -inf where not available."""
        strength = self._sample_strength(sample_shape).unsqueeze(-1)
        offered = self._offered()
        mean = strength * torch.where(offered, self.utilities, torch.zeros_like(self.utilities))
        noise = -torch.log(torch.empty_like(mean).exponential_().clamp_min(torch.finfo(mean.dtype).tiny))
        return torch.where(offered, mean + noise, -math.inf)


class MixedMultinomialLogit(_ChoiceSet):
    """One choice among J: P(j) = E_{strength ~ mixing}[softmax(strength * utilities)_j].

    Parameters
    ----------
    utilities : Tensor
        (..., J).
    mixing : Distribution
        Univariate; batch shape broadcasts with (...).
    integration : Integration, optional
        As in :class:`MixedLogit`; with two alternatives it is that class.
    available : Tensor, optional
        (..., J), bool; utilities of others may hold anything, NaN included.
    validate_args : bool, optional
        As in :class:`MixedLogit`; a choice that is not available is refused, too.

    Notes
    -----
    Values are indices 0..J-1, (*batch). ``probs`` is (*batch, J).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_enumerate_support = True

    def __init__(
        self,
        utilities: Tensor,
        mixing: Any,
        integration: Integration | None = None,
        available: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(utilities, mixing, integration, available, 0, validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.num_alternatives - 1)

    def _validate_sample(self, value: Tensor) -> None:
        value = torch.as_tensor(value)
        j = self.num_alternatives
        outside = (value < 0) | (value >= j) | (value != torch.floor(value))
        refuse_first(outside, value, expected=f"an index in 0..{j - 1}", hint="counting alternatives from 0")
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        if self.available is not None:
            index = value.to(torch.int64).expand(shape).unsqueeze(-1)
            offered = torch.gather(self.available.expand((*shape, j)), -1, index).squeeze(-1)
            refuse_first(~offered, value.expand(shape), **_UNAVAILABLE)

    def _conditional(self, value: Tensor) -> Conditional:
        return self._first_choice(torch.as_tensor(value))

    @torch.no_grad()
    def sample(self, sample_shape: Size = torch.Size()) -> Tensor:
        return self._perturbed(torch.Size(sample_shape)).argmax(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = torch.arange(self.num_alternatives, device=self.utilities.device)
        values = values.reshape((-1,) + (1,) * len(self.batch_shape))
        return values.expand((self.num_alternatives, *self.batch_shape)) if expand else values


class MixedPlackettLuce(_ChoiceSet):
    """A ranking of J alternatives, best first: E_{strength ~ mixing}[prod_i softmax over what remains].

    P(r_1, ..., r_k) = E[prod_{i <= k} exp(strength u_{r_i}) / sum_{j not ranked before i} exp(strength u_j)].

    Parameters
    ----------
    utilities : Tensor
        (..., J).
    mixing : Distribution
        Univariate; batch shape broadcasts with (...).
    integration : Integration, optional
        As in :class:`MixedLogit`; ``ClosedForm`` serves point masses only, quadrature the rest.
    available : Tensor, optional
        (..., J), bool.
    validate_args : bool, optional
        As in :class:`MixedLogit`.

    Notes
    -----
    A value is (..., k) with k <= J: indices of the k best, all different. Shorter rankings within a batch end with -1.
    Samples rank all that is available, (..., J), and end with -1 where something is not. ``probs`` is the probability
    of being ranked first, (*batch, J).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        utilities: Tensor,
        mixing: Any,
        integration: Integration | None = None,
        available: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(utilities, mixing, integration, available, 1, validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(-1, self.num_alternatives - 1), 1)

    def _positions(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values (*shape, k) padded to J ranks: ranks (*shape, J) of the alternatives, J if unranked; and the shape."""
        value = torch.as_tensor(value).to(torch.int64)
        j = self.num_alternatives
        shape = torch.broadcast_shapes(value.shape[:-1], self.utilities.shape[:-1])
        value = value.expand(shape + value.shape[-1:])
        ranked = value >= 0
        # one spare column takes the padding
        rank = torch.full((*shape, j + 1), j, dtype=torch.int64, device=value.device)
        places = torch.arange(value.shape[-1], device=value.device).expand(value.shape)
        rank = rank.scatter(-1, torch.where(ranked, value, j), places)[..., :j]
        return value, ranked, rank

    def _validate_sample(self, value: Tensor) -> None:
        j = self.num_alternatives
        if not isinstance(value, Tensor) or value.dim() < 1 or value.shape[-1] > j or value.shape[-1] < 1:
            raise InvalidInputError(
                explain(
                    "ranking",
                    got=f"shape {tuple(getattr(value, 'shape', ()))}",
                    expected=f"(..., k) with 1 <= k <= {j}: indices, best first",
                    hint="torch.tensor([2, 0, 1])",
                )
            )
        torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        rule = {
            "what": "ranking",
            "expected": f"different indices in 0..{j - 1}, best first, -1 only after the last",
            "hint": "ranking only what was ranked",
        }
        outside = (value < -1) | (value >= j) | (value != torch.floor(value))
        refuse_first(outside.any(-1), value, **rule)
        index, ranked, _ = self._positions(value)
        clipped = index.clamp_min(0)
        counts = torch.zeros((*index.shape[:-1], j), dtype=torch.int64, device=index.device)
        counts = counts.scatter_add(-1, clipped, ranked.to(torch.int64))
        gap = (ranked[..., 1:] & ~ranked[..., :-1]).any(-1)
        refuse_first((counts > 1).any(-1) | gap | ~ranked[..., 0], index, **rule)
        if self.available is not None:
            offered = torch.gather(self._offered().expand((*index.shape[:-1], j)), -1, clipped) | ~ranked
            refuse_first(~offered.all(-1), index, **_UNAVAILABLE)

    def _conditional(self, value: Tensor) -> Conditional:
        index, ranked, rank = self._positions(value)
        shape, j = index.shape[:-1], self.num_alternatives
        utilities = self.utilities.to(torch.float64).expand((*shape, j))
        offered = self._offered().expand((*shape, j))
        utilities = torch.where(offered, utilities, torch.zeros_like(utilities))
        widest, narrowest = self._gaps(utilities, offered)
        # ranked ones first, then the rest, then what was never offered; centred, so that large utilities keep digits
        order = torch.argsort(torch.where(offered, rank, j + 1), dim=-1, stable=True)
        utilities = torch.gather(utilities, -1, order)
        offered = torch.gather(offered, -1, order)
        utilities = utilities - utilities[..., :1].detach()
        k = min(index.shape[-1], j - 1)
        left_behind = offered.flip(-1).cumsum(-1).flip(-1)[..., 1 : k + 1] > 0
        counted = ranked[..., :k] & left_behind

        def loglik(strength: Tensor) -> Tensor:
            scaled = torch.where(offered, strength.unsqueeze(-1) * utilities, _ABSENT)
            # log of the summed weights of all that come after place i
            after = torch.logcumsumexp(scaled.flip(-1), -1).flip(-1)[..., 1 : k + 1]
            # masked before it is used: the second derivative of logcumsumexp is NaN where no gradient comes in
            after = torch.where(counted, after, torch.zeros_like(after))
            each = logsigmoid(scaled[..., :k] - after)
            return torch.where(counted, each, torch.zeros_like(each)).sum(-1)

        return Conditional(loglik, shape, widest, narrowest)

    @torch.no_grad()
    def sample(self, sample_shape: Size = torch.Size()) -> Tensor:
        perturbed = self._perturbed(torch.Size(sample_shape))
        order = torch.argsort(perturbed, dim=-1, descending=True)
        chosen = torch.gather(perturbed, -1, order)
        return torch.where(torch.isinf(chosen), -1, order)
