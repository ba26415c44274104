"""One table of mixing families and one of choice distributions; every generic property runs over both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from mixlogit_align import MixedLogit, MixedMultinomialLogit, MixedPlackettLuce, PanelMixedLogit
from mixlogit_align.distributions import (
    ClosedForm,
    FiniteMixture,
    GeneralizedGamma,
    InverseGaussian,
    Quadrature,
    Triangular,
    TruncatedNormal,
)


def double(*values: float) -> list[Tensor]:
    return [torch.tensor(v, dtype=torch.float64) for v in values]


@dataclass(frozen=True)
class FamilyCase:
    name: str
    make: Callable[..., Any]
    parameters: tuple[float, ...]
    rule: type
    nonnegative: bool = True

    def __call__(self, *parameters: Tensor) -> Any:
        return self.make(*(parameters or double(*self.parameters)))


def _zero_inflated(gate: Tensor, concentration: Tensor, rate: Tensor) -> Any:
    shares = torch.stack([gate, 1.0 - gate], -1)
    return FiniteMixture(shares, [dist.Delta(torch.zeros_like(gate)), dist.Gamma(concentration, rate)])


def _classes(share: Tensor, low: Tensor, high: Tensor) -> Any:
    return FiniteMixture(torch.stack([share, 1.0 - share], -1), [dist.Delta(low), dist.Delta(high)])


def _half_line(loc: Tensor, scale: Tensor) -> Any:
    return TruncatedNormal(loc, scale)


FAMILIES = [
    FamilyCase("delta", dist.Delta, (0.4,), ClosedForm),
    FamilyCase("gamma", dist.Gamma, (2.0, 3.0), ClosedForm),
    FamilyCase("exponential", dist.Exponential, (1.7,), ClosedForm),
    FamilyCase("inverse_gaussian", InverseGaussian, (0.6, 0.9), ClosedForm),
    FamilyCase("half_normal", dist.HalfNormal, (0.8,), ClosedForm),
    FamilyCase("truncated_normal", TruncatedNormal, (0.3, 0.7, 0.1, 1.9), ClosedForm),
    FamilyCase("truncated_normal_half_line", _half_line, (0.3, 0.7), ClosedForm),
    FamilyCase("uniform", dist.Uniform, (0.2, 1.4), ClosedForm),
    FamilyCase("triangular", Triangular, (0.2, 1.4), ClosedForm),
    FamilyCase("zero_inflated_gamma", _zero_inflated, (0.3, 2.0, 3.0), ClosedForm),
    FamilyCase("two_classes", _classes, (0.3, 0.2, 1.5), ClosedForm),
    FamilyCase("lognormal", dist.LogNormal, (-0.5, 0.8), Quadrature),
    FamilyCase("weibull", dist.Weibull, (0.7, 1.6), Quadrature),
    FamilyCase("generalized_gamma", GeneralizedGamma, (1.5, 0.6, 1.3), Quadrature),
    FamilyCase("inverse_gamma", dist.InverseGamma, (3.0, 1.2), Quadrature),
    FamilyCase("normal", dist.Normal, (0.4, 0.7), Quadrature, nonnegative=False),
    FamilyCase("uniform_signed", dist.Uniform, (-0.6, 1.4), Quadrature, nonnegative=False),
    FamilyCase("triangular_signed", Triangular, (-0.6, 1.4), Quadrature, nonnegative=False),
    FamilyCase("truncated_normal_signed", TruncatedNormal, (0.3, 0.7, -0.5, 1.9), Quadrature, nonnegative=False),
    FamilyCase("gumbel", dist.Gumbel, (0.2, 0.4), Quadrature, nonnegative=False),
    FamilyCase("logistic", dist.Logistic, (0.2, 0.3), Quadrature, nonnegative=False),
]
SMOOTH = [case for case in FAMILIES if case.name not in ("delta", "two_classes", "zero_inflated_gamma")]


@dataclass(frozen=True)
class ChoiceCase:
    name: str
    make: Callable[..., Any]
    utility_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    values: Callable[[], Tensor]
    """All values of one row, leading."""


def _binary_panel(t: int) -> Callable[[], Tensor]:
    return lambda: torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * t)


def _rankings() -> Tensor:
    return torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])


CHOICES = [
    ChoiceCase("MixedLogit", MixedLogit, (), (), lambda: torch.tensor([0.0, 1.0], dtype=torch.float64)),
    ChoiceCase("PanelMixedLogit", PanelMixedLogit, (3,), (3,), _binary_panel(3)),
    ChoiceCase("MixedMultinomialLogit", MixedMultinomialLogit, (4,), (), lambda: torch.arange(4)),
    ChoiceCase("MixedPlackettLuce", MixedPlackettLuce, (3,), (3,), _rankings),
]


def utilities(case: ChoiceCase, *batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn((*batch, *case.utility_shape), generator=generator, dtype=torch.float64)


def lognormal() -> Any:
    return dist.LogNormal(*double(-0.5, 0.8))


def ids(case: Any) -> str:
    return str(case.name)
