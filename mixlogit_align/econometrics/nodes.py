"""Integration rules for several coefficients: where a rule puts its nodes, and which rule is the default."""

# N individuals, T situations of an individual, J alternatives, K draws or nodes, M base variates a draw, P parameters.

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mixlogit_align.distributions import (
    FixedDraws,
    ImportanceSampling,
    Integration,
    MonteCarlo,
    Quadrature,
    QuasiMonteCarlo,
)
from mixlogit_align.econometrics.likelihood import Nodes, PanelData, SimulatedLoglik, node_derivatives
from mixlogit_align.econometrics.specification import Specification
from mixlogit_align.errors import IntegrationError, InvalidInputError, explain
from mixlogit_align.numerics.importance import effective_sample_size, importance_nodes, laplace_proposals
from mixlogit_align.numerics.quadrature import product_rule, trapezoid_normal

# Default nodes a dimension of quadrature: about the prior where individuals choose once, about each one's mode else.
_NODES = 64
_CENTRED_NODES = 64
# Nodes of lower weight are left out; all together they weigh less than 1e-17.
_NEGLIGIBLE = 1e-24
# Length of a grid of quadrature, in standard deviations.
_RANGE = 17.0
# Default number of draws.
_CENTRED_DRAWS = 128
_PRIOR_SHARE = 0.1
# Where these do not do: draws and share of the prior for posteriors unlike a normal.
_MORE = ImportanceSampling(512, prior_share=0.25)
_DRAWS = 1024
# Largest work, utilities times nodes, of quadrature in two dimensions by default.
_AFFORDABLE = 2e7
# Importance sampling is trusted if 19 of 20 individuals keep this share of their draws effective.
_LEAST_EFFECTIVE = 0.1
# Draws, and nodes a dimension, to begin with.
_FEW = 64
_FEW_NODES = 12
# A mode's width understates heavier tails than the normal's.
_WIDTH = 1.2


@dataclass(frozen=True)
class NodeMaker:
    """One rule for one model.

    Attributes
    ----------
    rule : Integration
    data : PanelData
    specification : Specification
    """

    rule: Integration
    data: PanelData
    specification: Specification

    def __post_init__(self) -> None:
        dims = self.specification.num_dims
        if self.rule == Quadrature():  # as it will be reported
            usual = Quadrature(_CENTRED_NODES if self.data.is_panel else _NODES)
            object.__setattr__(self, "rule", usual)
        if dims and not isinstance(
            self.rule, Quadrature | MonteCarlo | QuasiMonteCarlo | FixedDraws | ImportanceSampling
        ):
            raise IntegrationError(
                explain(
                    "integration",
                    got=f"{self.rule!r} for {dims} random coefficients beside others",
                    expected="Quadrature, MonteCarlo, QuasiMonteCarlo, ImportanceSampling or FixedDraws",
                    hint="integration=None",
                )
            )
        if isinstance(self.rule, Quadrature) and self._per_dimension**dims > 10**6:
            raise IntegrationError(
                explain(
                    "integration",
                    got=f"{self.rule!r} in {dims} dimensions, {self._per_dimension**dims} nodes",
                    expected="at most a million nodes",
                    hint="ImportanceSampling(128) in panels, QuasiMonteCarlo('sobol', 1024) else",
                )
            )

    @property
    def centred(self) -> bool:
        """Whether nodes lie about the mode of each individual, so that they depend on parameters."""
        if isinstance(self.rule, ImportanceSampling):
            return self.specification.num_dims > 0
        return isinstance(self.rule, Quadrature) and self.specification.num_dims == 1 and self.data.is_panel

    @property
    def _per_dimension(self) -> int:
        assert isinstance(self.rule, Quadrature)
        assert self.rule.num_nodes is not None
        return self.rule.num_nodes

    def few(self) -> NodeMaker:
        """A cheap rule of the same kind, to begin with."""
        if isinstance(self.rule, Quadrature):
            few: Integration = Quadrature(min(_FEW_NODES, self._per_dimension))
        elif isinstance(self.rule, FixedDraws):
            few = FixedDraws(self.rule.base[..., :_FEW, :])
        elif isinstance(self.rule, MonteCarlo | QuasiMonteCarlo) and self.rule.num_draws > 2 * _FEW:
            few = type(self.rule)(kind=self.rule.kind, num_draws=_FEW, seed=self.rule.seed)  # type: ignore[arg-type]
        else:
            few = QuasiMonteCarlo("sobol", _FEW)
        return NodeMaker(few, self.data, self.specification)

    def finer(self) -> NodeMaker | None:
        """More importance sampling, for posteriors unlike a normal; None where there is no more."""
        if not isinstance(self.rule, ImportanceSampling) or self.rule.num_draws >= _MORE.num_draws:
            return None
        return NodeMaker(_MORE, self.data, self.specification)

    def again(self, redraw: int) -> NodeMaker | None:
        """The rule with other draws (redraw = 1, 2, ...), or with twice the nodes; None where there is no other."""
        rule = self.rule
        if isinstance(rule, FixedDraws) or not self.specification.num_dims:
            return None
        if isinstance(rule, Quadrature):
            finer = Quadrature(2 * self._per_dimension)
            if redraw > 1 or finer.num_nodes is None or finer.num_nodes**self.specification.num_dims > 10**6:
                return None
            return NodeMaker(finer, self.data, self.specification)
        return NodeMaker(rule.reseeded(redraw), self.data, self.specification)

    def halves(self, nodes: Nodes) -> list[Nodes]:
        """The draws of ``nodes`` as two samples of half the size; none where they are no sample."""
        if nodes.num < 2 or isinstance(self.rule, Quadrature) or not self.specification.num_dims:
            return []
        if isinstance(self.rule, FixedDraws) and self.rule.weights is not None:
            return []
        first = _first_half(self.rule, nodes.num)
        gain = [math.log(nodes.num / int(half.sum())) for half in (first, ~first)]
        return [
            replace(nodes, base=nodes.base.mT[..., half].mT, log_weight=nodes.log_weight[:, half] + more)
            for half, more in zip((first, ~first), gain, strict=True)
        ]

    def nodes(self, theta: Tensor) -> Nodes:
        """Nodes for parameters near ``theta`` (P,)."""
        made = self._centred(theta) if self.centred else self.prior()
        device = self.data.weights.device
        return Nodes(made.base.to(device), made.log_weight.to(device), self._bend(made.num))

    def _bend(self, num_nodes: int) -> float:
        """As of :class:`Nodes`: as wide as a grid's step, or so wide that some hundred draws fall into it."""
        if isinstance(self.rule, Quadrature):
            return _RANGE / self._per_dimension
        return min(0.1, max(0.01, 10.0 / math.sqrt(self.data.num_individuals * num_nodes)))

    def prior(self) -> Nodes:
        """Nodes that know nothing of choices."""
        spec, rule = self.specification, self.rule
        if not spec.num_dims:
            return Nodes(torch.zeros(1, 1, 0, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
        if isinstance(rule, FixedDraws):
            return self._given(rule)
        if isinstance(rule, Quadrature):
            z, log_weight = product_rule(*trapezoid_normal(self._per_dimension), spec.num_dims)
            kept = log_weight > math.log(_NEGLIGIBLE)
            return Nodes(spec.base_of_normal(z[kept])[None], log_weight[kept][None])
        assert isinstance(rule, MonteCarlo | QuasiMonteCarlo)
        draws = rule.base_draws()
        shared = isinstance(rule, MonteCarlo) and rule.sharing == "batch"
        rows = torch.arange(1 if shared else self.data.num_individuals)
        base = spec.base(draws.uniforms_nd(rows, spec.num_dims))
        return Nodes(base, _equal(draws.num_draws))

    def _given(self, rule: FixedDraws) -> Nodes:
        base = rule.base.to(torch.float64)
        n, m = self.data.num_individuals, self.specification.num_dims
        if base.dim() == 2 and base.shape[-1] == m:
            base = base[None]
        if base.dim() != 3 or base.shape[-1] != m or base.shape[0] not in (1, n):
            raise InvalidInputError(
                explain(
                    "FixedDraws",
                    got=f"base draws of shape {tuple(rule.base.shape)}",
                    expected=f"({n}, K, {m}) or (K, {m}): individuals, draws, random coefficients",
                    hint="draws.transpose(0, 2, 1) for xlogit's layout (N, M, K)",
                )
            )
        if rule.weights is None:
            return Nodes(base, _equal(base.shape[1]))
        return Nodes(base, rule.weights.to(torch.float64).log().reshape(-1, base.shape[1]))

    def _centred(self, theta: Tensor) -> Nodes:
        spec, rule, n = self.specification, self.rule, self.data.num_individuals
        m = spec.num_dims
        modes = self.data.modes
        start = self.data.weights.new_zeros(n, m) if modes is None else modes
        proposals = laplace_proposals(lambda z: node_derivatives(self.data, spec, theta, z), start)
        self.data.modes = proposals.mode
        if isinstance(rule, Quadrature):
            points, log_weights = _stretched(proposals.mode, proposals.factor[..., 0], self._per_dimension)
        else:
            assert isinstance(rule, ImportanceSampling)
            eps = torch.special.ndtri(rule.base_draws().uniforms_nd(torch.arange(n), m)).to(proposals.mode)
            points, log_weights = importance_nodes(proposals, eps, rule.scale, prior_share=rule.prior_share)
        return Nodes(spec.base_of_normal(points), log_weights)


def _stretched(mode: Tensor, sd: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Trapezoid nodes for E f(z), z ~ N(0, 1), dense about each individual's mode, out to where the prior ends.

    ``z = mode + sd * sinh(a t) / a`` at equal steps of t, a such that the ends reach 8.3 beyond 0 and mode: a skewed
    likelihood's tail is the prior's, however narrow its mode.

    Parameters
    ----------
    mode, sd : Tensor, shape (N, 1)
    num_nodes : int

    Returns
    -------
    nodes : Tensor, shape (N, K, 1)
    log_weights : Tensor, shape (N, K)
    """
    last = 7.0  # sd of the narrower side that is resolved evenly
    far = ((8.3 + mode.abs()) / (_WIDTH * sd)).clamp_min(last)
    low, high = torch.full_like(far, 1e-3), torch.full_like(far, 10.0)
    for _ in range(50):  # sinh(a t) / a grows with a
        a = (low + high) / 2
        short = torch.sinh(a * last) / a < far
        low, high = torch.where(short, a, low), torch.where(short, high, a)
    t = torch.linspace(-last, last, num_nodes, dtype=mode.dtype, device=mode.device)
    z = mode + _WIDTH * sd * torch.sinh(a * t) / a
    log_slope = torch.log(_WIDTH * sd * torch.cosh(a * t))
    log_weights = -0.5 * z * z + log_slope + math.log(2.0 * last / (num_nodes - 1) / math.sqrt(2.0 * math.pi))
    return z[..., None], log_weights


def _first_half(rule: Integration, num_draws: int) -> Tensor:
    """Which draws (K,), bool, are a sample as the others are."""
    index = torch.arange(num_draws)
    kind = getattr(rule, "kind", None)
    if kind in ("stratified", "mlhs"):  # ordered by cell
        return index % 2 == 0
    parts = [num_draws]
    if kind == "antithetic":
        parts = [num_draws // 2, num_draws // 2]
    elif isinstance(rule, ImportanceSampling):
        from_prior = round(rule.prior_share * num_draws)
        parts = [num_draws - from_prior, from_prior]
    return torch.cat([torch.arange(part) < part // 2 for part in parts])


def _equal(num_draws: int) -> Tensor:
    return torch.full((1, num_draws), -math.log(num_draws), dtype=torch.float64)


def effective_draws(loglik: SimulatedLoglik, theta: Tensor) -> Tensor:
    """Effective sample size of every individual's weighted nodes, (N,)."""
    return effective_sample_size(loglik.joint(theta))


def enough_effective(maker: NodeMaker, loglik: SimulatedLoglik, theta: Tensor) -> bool:
    """Whether 19 of 20 individuals have their share of effective draws; quadrature needs none."""
    if not isinstance(maker.rule, ImportanceSampling):
        return True
    effective = effective_draws(loglik, theta)
    return float(effective.quantile(0.05)) >= _LEAST_EFFECTIVE * maker.rule.num_draws


def first_maker(data: PanelData, specification: Specification) -> NodeMaker:
    """A cheap rule to begin with, where the rule is yet to be chosen."""
    smooth = specification.num_dims <= 1 and not specification.breaks
    rule = Quadrature(_FEW_NODES) if smooth else QuasiMonteCarlo("sobol", _FEW)
    return NodeMaker(rule, data, specification)


def default_maker(data: PanelData, specification: Specification, theta: Tensor) -> NodeMaker:
    """Pick the rule for a model near parameters ``theta``.

    One random coefficient: quadrature, in panels about each individual's mode. Two in a cross-section: quadrature on a
    product of nodes where affordable. Panels: Laplace-centred importance sampling, if effective sample sizes are large
    enough (the search takes four times the draws where these have not settled at the maximum). Else quasi-random
    draws. Where a coefficient breaks, four times the draws and no quadrature, whose nodes meet the break at the same
    parameters for many individuals.

    Parameters
    ----------
    data : PanelData
    specification : Specification
    theta : Tensor, shape (P,)

    Returns
    -------
    NodeMaker
    """
    dims = specification.num_dims
    if dims <= 1 and not specification.breaks:
        return NodeMaker(Quadrature(), data, specification)
    if data.is_panel:
        usual = ImportanceSampling(_CENTRED_DRAWS, prior_share=_PRIOR_SHARE)
        maker = NodeMaker(_MORE if specification.breaks else usual, data, specification)
        if enough_effective(maker, SimulatedLoglik(data, specification, maker.nodes(theta)), theta):
            return maker
    elif dims == 2 and not specification.breaks and data.num_utilities * _NODES**2 <= _AFFORDABLE:
        return NodeMaker(Quadrature(), data, specification)
    return NodeMaker(QuasiMonteCarlo("sobol", _DRAWS), data, specification)
