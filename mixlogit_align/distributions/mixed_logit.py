"""Binary choices whose strength is random: one comparison, and a panel that shares one strength.

Shapes: B the batch shape (utility_diff broadcast with mixing), T situations of an individual.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from mixlogit_align.distributions import integration as rules
from mixlogit_align.distributions.families import Size
from mixlogit_align.distributions.integration import Conditional, Integration
from mixlogit_align.distributions.mixing import check_mixing
from mixlogit_align.errors import InvalidInputError, explain


def upcast(x: Tensor | float, name: str) -> Tensor:
    """Return a floating tensor of at least single precision: half precision and integers are converted, exactly."""
    tensor = x if isinstance(x, Tensor) else torch.as_tensor(x)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise InvalidInputError(
            explain(name, got=f"dtype {tensor.dtype}", expected="real numbers", hint="a floating-point tensor")
        )
    if not tensor.is_floating_point():
        return tensor.to(torch.get_default_dtype())
    return tensor.to(torch.float32) if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def check_finite(x: Tensor, name: str, where: Tensor | None = None) -> None:
    """Raise InvalidInputError naming the first NaN or infinite element (among those where ``where`` is true)."""
    bad = ~torch.isfinite(x)
    if where is not None:
        bad = bad & where
    if bool(bad.any()):
        index = tuple(torch.nonzero(bad)[0].tolist())
        raise InvalidInputError(
            explain(
                f"{name} at index {index}",
                got=x[index].item(),
                expected="a finite number",
                hint="looking for NaN or overflow upstream; 0 says that nothing distinguishes the alternatives",
            )
        )


class StrengthMixture(TorchDistribution):
    """What the four choice distributions share: utilities, a mixing distribution, a rule that integrates it out.

    A subclass says how an observed value depends on the strength (``_conditional``) and how to draw a choice given it.
    """

    has_rsample = False
    has_enumerate_support = False
    _utility_name: ClassVar[str] = "utilities"
    _utility_dims: ClassVar[int] = 0

    mixing: Any
    integration: Integration | None
    _row_shape: torch.Size

    def __init__(
        self,
        utility: Tensor | float,
        mixing: Any,
        integration: Integration | None,
        event_shape: torch.Size,
        mask: Tensor | None,
        validate_args: bool | None,
    ) -> None:
        check_mixing(mixing)
        if integration is not None and not isinstance(integration, Integration):
            raise InvalidInputError(
                explain(
                    "integration",
                    got=repr(integration),
                    expected="None or a rule: ClosedForm, Quadrature, MonteCarlo, QuasiMonteCarlo, "
                    "ImportanceSampling, FixedDraws",
                    hint="integration=None, which picks the best rule for the family",
                )
            )
        utility = upcast(utility, self._utility_name)
        own_shape = utility.shape[: utility.dim() - self._utility_dims]
        setattr(self, self._utility_name, utility)
        self.mixing = mixing
        self.integration = integration
        self._row_shape = own_shape
        batch_shape = torch.broadcast_shapes(own_shape, mixing.batch_shape)
        if self._validate_args if validate_args is None else validate_args:
            check_finite(utility, self._utility_name, mask)
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def _utility(self) -> Tensor:
        return cast(Tensor, getattr(self, self._utility_name))

    def expand(self, batch_shape: Size, _instance: Any = None) -> Any:
        new = self._get_checked_instance(type(self), _instance)
        batch_shape = torch.Size(batch_shape)
        trailing = self._utility.shape[self._utility.dim() - self._utility_dims :]
        setattr(new, self._utility_name, self._utility.expand(batch_shape + trailing))
        new.mixing = self.mixing
        new.integration = self.integration
        new._row_shape = self._row_shape
        self._expand_mask(new, batch_shape)
        TorchDistribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _expand_mask(self, new: Any, batch_shape: torch.Size) -> None:
        """Copy what else the subclass holds."""

    def _conditional(self, value: Tensor) -> Conditional:
        raise NotImplementedError

    def _rows(self) -> Tensor:
        # draws belong to the rows of the data: expand() widens the utilities, never the draws
        count = math.prod(self._row_shape)
        return torch.arange(count, device=self._utility.device).reshape(self._row_shape)

    def _log_marginal(self, conditional: Conditional) -> Tensor:
        return rules.log_marginal(self.integration, self.mixing, conditional, self._rows())

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value), strength integrated out; float64 inside, the dtype of the utilities out."""
        if self._validate_args:
            self._validate_sample(value)
        conditional = self._conditional(value)
        result = self._log_marginal(conditional)
        return result.to(self._utility.dtype)

    def strength_posterior(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the strength given the observed choices, each (*batch).

        E[strength | y] = E[strength P(y | strength)] / P(y), and likewise the variance: the conditional distribution
        of the individual of Revelt and Train (2000).
        """
        if self._validate_args:
            self._validate_sample(value)
        mean, variance = rules.posterior_moments(self.integration, self.mixing, self._conditional(value), self._rows())
        dtype = self._utility.dtype
        return mean.to(dtype), torch.sqrt(variance).to(dtype)

    def integration_error(self, value: Tensor) -> Tensor:
        """Estimate of |error of log P(value)| made by the integration rule, (*batch), float64.

        Closed form: the bound 1 / T_22(3) of its truncation. Quadrature: the change when the nodes are doubled. Draws:
        the distance to the best deterministic rule, or, where the family has none, the standard deviation over eight
        other seeds.
        """
        if self._validate_args:
            self._validate_sample(value)
        return rules.integration_error(self.integration, self.mixing, self._conditional(value), self._rows())

    def rules_used(self, value: Tensor) -> tuple[Integration, ...]:
        """Rules that ``log_prob(value)`` uses: one, or one a component of a finite mixture."""
        return rules.resolved(self.integration, self.mixing, self._conditional(value))

    def _sample_strength(self, sample_shape: torch.Size) -> Tensor:
        strength: Tensor = self.mixing.expand(self.batch_shape).sample(sample_shape)
        return strength.to(self._utility.dtype)


class _Binary(StrengthMixture):
    _utility_name = "utility_diff"

    @property
    def probs(self) -> Tensor:
        """P(y = 1)."""
        raise NotImplementedError

    @property
    def mean(self) -> Tensor:
        """P(y = 1)."""
        return self.probs

    @property
    def variance(self) -> Tensor:
        """P(y = 1) P(y = 0), marginally for each choice."""
        p = self.probs
        return p * (1.0 - p)


def boolean_mask(mask: Tensor, name: str, utility: Tensor) -> Tensor:
    """Check a bool mask of the shape of ``utility``, broadcast where needed."""
    mask = torch.as_tensor(mask, device=utility.device)
    hint = f"{name}.bool()" if mask.dtype != torch.bool else "one entry for each utility, or a shape that broadcasts"
    try:
        if mask.dtype != torch.bool:
            raise RuntimeError
        return mask.expand(utility.shape)
    except RuntimeError:
        raise InvalidInputError(
            explain(
                name,
                got=f"{mask.dtype} of shape {tuple(mask.shape)}",
                expected=f"bool of shape {tuple(utility.shape)}",
                hint=hint,
            )
        ) from None


def refuse_first(bad: Tensor, value: Tensor, *, expected: str, hint: str, what: str = "choice") -> None:
    """Raise InvalidInputError naming the first element (or row) where ``bad``; do nothing where there is none."""
    if bool(bad.any()):
        index = tuple(torch.nonzero(bad)[0].tolist())
        got = value.expand(bad.shape + value.shape[bad.dim() :])[index].tolist()
        raise InvalidInputError(explain(f"{what} at index {index}", got=got, expected=expected, hint=hint))


def _towards(value: Tensor, diff: Tensor) -> Tensor:
    """Return the utility difference in favour of what was chosen."""
    return torch.where(value > 0.5, diff, -diff)


class MixedLogit(_Binary):
    """One binary choice: P(y = 1) = E_{strength ~ mixing}[sigma(strength * utility_diff)].

    In a preference loss utility_diff is the log-ratio difference and y = 1 says that ``chosen`` was preferred. With a
    point mixing, ``Delta(b)``, this is the logit, and the DPO loss with beta = b is ``-log_prob(1)``.

    Parameters
    ----------
    utility_diff : Tensor
        (*batch), utility of the first alternative less that of the second; any real number.
    mixing : Distribution
        Univariate distribution of strength; its batch shape broadcasts with utility_diff, so that its parameters may
        vary by row. A finite mixture is integrated component by component.
    integration : Integration, optional
        Rule for the expectation. None picks ``ClosedForm`` where the strength is nonnegative with a known Laplace
        transform (error of log P about 1e-13, from rounding), ``Quadrature`` for other listed families, and
        ``MonteCarlo(1024)`` for a family known only through ``rsample``.
    validate_args : bool, optional
        Check inputs and values; raises InvalidInputError (a ValueError) naming the index of a NaN or infinity.

    Notes
    -----
    Draws of a rule belong to the elements of ``utility_diff`` as given here: ``expand`` does not redraw, and under
    ``torch.vmap`` every instance sees the draws of its own first row.

    Under ``torch.vmap`` and ``torch.compile(fullgraph=True)`` pass ``validate_args=False``. Not there: uniform,
    triangular and truncated normal mixing (the rules look at the sign of their parameters; vmap over ``utility_diff``
    alone works), and draws of gamma-type families under ``fullgraph=True`` (their quantiles are scipy's). Compiling
    anything makes torch switch its default of ``validate_args`` off for the whole process.

    References
    ----------
    McFadden and Train (2000), Mixed MNL models for discrete response; Train (2009), Discrete choice methods, ch. 6.
    """

    arg_constraints = {"utility_diff": constraints.real}
    support = constraints.boolean
    has_enumerate_support = True

    utility_diff: Tensor

    def __init__(
        self,
        utility_diff: Tensor | float,
        mixing: Any,
        integration: Integration | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(utility_diff, mixing, integration, torch.Size(), None, validate_args)

    def _validate_sample(self, value: Tensor) -> None:
        value = torch.as_tensor(value)
        refuse_first((value != 0) & (value != 1), value, expected="0 or 1", hint="1 where the first was chosen")
        torch.broadcast_shapes(value.shape, self.batch_shape)

    def _conditional(self, value: Tensor) -> Conditional:
        value, diff = torch.broadcast_tensors(torch.as_tensor(value), self.utility_diff.to(torch.float64))
        return Conditional.of_comparison(_towards(value, diff))

    @property
    def probs(self) -> Tensor:
        """P(y = 1), (*batch)."""
        return torch.exp(self._log_marginal(self._conditional(torch.ones(())))).to(self.utility_diff.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Size = torch.Size()) -> Tensor:
        strength = self._sample_strength(torch.Size(sample_shape))
        return torch.bernoulli(torch.sigmoid(strength * self.utility_diff))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = torch.arange(2, dtype=self.utility_diff.dtype, device=self.utility_diff.device)
        values = values.reshape((2,) + (1,) * len(self.batch_shape))
        return values.expand((2, *self.batch_shape)) if expand else values


class PanelMixedLogit(_Binary):
    """T binary choices of one individual, who has one strength: P(y) = E[prod_t sigma(+-strength * utility_diff_t)].

    Parameters
    ----------
    utility_diff : Tensor
        (..., T).
    mixing : Distribution
        Univariate; batch shape broadcasts with (...).
    integration : Integration, optional
        As in :class:`MixedLogit`; ``ClosedForm`` serves point masses only, quadrature the rest.
    observed : Tensor, optional
        (..., T), bool: which choices were observed. Others may hold anything, NaN included, and do not count.
    validate_args : bool, optional
        As in :class:`MixedLogit`.

    Notes
    -----
    Error of log P by quadrature below 1e-9 up to T = 200 (relative, or absolute where P is below 1e-300). An individual
    with nothing observed has log P = 0.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.boolean, 1)
    _utility_dims = 1

    utility_diff: Tensor
    observed: Tensor | None

    def __init__(
        self,
        utility_diff: Tensor,
        mixing: Any,
        integration: Integration | None = None,
        observed: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        utility_diff = upcast(utility_diff, "utility_diff")
        if utility_diff.dim() < 1:
            raise InvalidInputError(
                explain("utility_diff", got="a number", expected="(..., T)", hint="MixedLogit for a single choice")
            )
        if observed is not None:
            observed = boolean_mask(observed, "observed", utility_diff)
        self.observed = observed
        super().__init__(utility_diff, mixing, integration, utility_diff.shape[-1:], observed, validate_args)

    def _expand_mask(self, new: Any, batch_shape: torch.Size) -> None:
        new.observed = None if self.observed is None else self.observed.expand(batch_shape + self.event_shape)

    def _validate_sample(self, value: Tensor) -> None:
        if not isinstance(value, Tensor) or value.dim() < 1 or value.shape[-1] != self.event_shape[0]:
            raise InvalidInputError(
                explain(
                    "choices of a panel",
                    got=f"shape {tuple(getattr(value, 'shape', ()))}",
                    expected=f"(..., {self.event_shape[0]}), one a situation",
                    hint="`observed` for individuals with fewer situations",
                )
            )
        bad = (value != 0) & (value != 1)
        if self.observed is not None:
            bad = bad & self.observed
        refuse_first(bad, value, expected="0 or 1", hint="`observed` for missing choices")

    def _conditional(self, value: Tensor) -> Conditional:
        value, diff = torch.broadcast_tensors(torch.as_tensor(value), self.utility_diff.to(torch.float64))
        towards = _towards(value, diff)
        if self.observed is not None:
            towards = torch.where(self.observed, towards, torch.zeros_like(towards))
        if diff.shape[-1] == 1 and self.observed is None:
            return Conditional.of_comparison(towards.squeeze(-1))
        observed = self.observed
        gaps = towards.detach().abs()

        def loglik(strength: Tensor) -> Tensor:
            each = logsigmoid(strength.unsqueeze(-1) * towards)
            if observed is not None:
                each = torch.where(observed, each, torch.zeros_like(each))
            return each.sum(-1)

        if diff.shape[-1] == 0:
            nothing = towards.sum(-1)
            return Conditional(loglik, nothing.shape, nothing, nothing)
        narrowest = torch.where(gaps > 0, gaps, math.inf).amin(-1)
        return Conditional(loglik, towards.shape[:-1], gaps.amax(-1), narrowest)

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value), (*batch): value (..., T) of zeros and ones; unobserved choices do not count."""
        result = super().log_prob(value)
        if self.event_shape[0] == 0:
            return torch.zeros_like(result)
        if self.observed is None:
            return result
        return torch.where(self.observed.any(-1), result, torch.zeros_like(result))

    @property
    def probs(self) -> Tensor:
        """P(y_t = 1) of every choice by itself, (..., T); NaN where utility_diff is NaN (unobserved)."""
        diff = self.utility_diff.to(torch.float64).expand(self.batch_shape + self.event_shape)
        by_situation = torch.nan_to_num(diff).movedim(-1, 0)
        each = self._log_marginal(Conditional.of_comparison(by_situation)).movedim(0, -1)
        return torch.where(torch.isnan(diff), math.nan, torch.exp(each)).to(self.utility_diff.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Size = torch.Size()) -> Tensor:
        strength = self._sample_strength(torch.Size(sample_shape)).unsqueeze(-1)
        probability = torch.sigmoid(strength * torch.nan_to_num(self.utility_diff))
        return torch.bernoulli(probability.expand(self._extended_shape(torch.Size(sample_shape))))
