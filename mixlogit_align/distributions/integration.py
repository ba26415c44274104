"""Integration rules as value objects, and how each computes log E[likelihood(strength)].

Shapes: N rows (individuals, comparisons) in ``batch``; K draws or n nodes lead, (n, *batch). All float64.

A rule never changes: draws are functions of (seed, step, row). ``rule.at(step=..., rows=...)`` is another value.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mixlogit_align.distributions.mixing import (
    Family,
    LogNormalFamily,
    PointFamily,
    SampledFamily,
    components_of,
    family_of,
    sampling_refusal,
)
from mixlogit_align.errors import IntegrationError, IntegrationWarning, InvalidInputError, explain
from mixlogit_align.numerics import draws, importance, quadrature, special
from mixlogit_align.numerics.special import lead

_MARGIN = 4.0  # e-folds beyond which a tail is simple to float64 accuracy
_CERTAIN = -0.05  # log P above which P is computed from its complement
_LEAST = -1e-320  # stands for a log-likelihood that rounds to 0
_REDRAWS = 8
_NEARBY = 1e-3  # step of the differences in z behind a proposal


@dataclass(frozen=True)
class Conditional:
    """What was observed, as a function of the strength.

    Attributes
    ----------
    loglik : callable
        Strength (n, *batch) to log-likelihood (n, *batch).
    batch_shape : torch.Size
        Of the observations.
    widest, narrowest : Tensor
        Largest and smallest nonzero utility gap, (*batch): where on the axis of strength the likelihood bends.
    comparison : Tensor or None
        For a single binary comparison, the utility difference in favour of what was chosen, (*batch).
    """

    loglik: Callable[[Tensor], Tensor]
    batch_shape: torch.Size
    widest: Tensor
    narrowest: Tensor
    comparison: Tensor | None = None

    @staticmethod
    def of_comparison(diff: Tensor) -> Conditional:
        """Build the conditional of one binary comparison: sigma(strength * diff)."""
        gap = diff.detach().abs()
        return Conditional(lambda strength: logsigmoid(strength * diff), diff.shape, gap, gap, diff)

    @property
    def ndim(self) -> int:
        return len(self.batch_shape)


@dataclass(frozen=True)
class Integration:
    """Base class of the rules; see :class:`ClosedForm`, :class:`Quadrature`, :class:`MonteCarlo` and the others."""

    def at(self, *, step: int | None = None, rows: Tensor | None = None) -> Integration:
        """Return the same rule with the draws of another step, for given integer row ids.

        Deterministic rules return themselves.
        """
        return self

    def refined(self, conditional: Conditional, family: Family) -> Integration:
        """Return a rule to hold this one against: itself where it is exact."""
        return self

    def reseeded(self, seed: int) -> Integration:
        """Return the rule with ``seed`` added to its own: itself where there are no draws."""
        return self

    @staticmethod
    def _shape(conditional: Conditional, family: Family) -> torch.Size:
        shape: torch.Size = torch.broadcast_shapes(conditional.batch_shape, family.mixing.batch_shape)
        return shape

    def nodes(self, conditional: Conditional, family: Family, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Strengths (n, *batch) and log-weights that broadcast with them."""
        raise NotImplementedError

    def log_expectation(self, conditional: Conditional, family: Family, rows: Tensor) -> Tensor:
        """log E[exp(loglik(strength))], (*batch)."""
        strength, log_weight = self.nodes(conditional, family, rows)
        return torch.logsumexp(log_weight + conditional.loglik(strength), 0)

    def moments(self, conditional: Conditional, family: Family, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log E[likelihood], and mean and variance of the strength given what was observed."""
        strength, log_weight = self.nodes(conditional, family, rows)
        joint = log_weight + conditional.loglik(strength)
        total = torch.logsumexp(joint, 0)
        weight = torch.exp(joint - total)
        mean = (weight * strength).sum(0)
        return total, mean, (weight * (strength - mean) ** 2).sum(0)


@dataclass(frozen=True)
class ClosedForm(Integration):
    """Exact: a point mass, or an accelerated alternating sum of the Laplace transform.

    E[sigma(-s strength)] = sum_j w_j L((j + 1) s) with 22 terms, relative error at most 1 / T_22(3) = 2.9e-17 before
    rounding. For one binary comparison and a nonnegative strength with a known Laplace transform: Gamma, Exponential,
    InverseGaussian, HalfNormal, TruncatedNormal, Uniform, Triangular, and finite mixtures of these and point masses.
    """

    def log_expectation(self, conditional: Conditional, family: Family, rows: Tensor) -> Tensor:
        if isinstance(family, PointFamily):
            return conditional.loglik(family.value.expand(1, *self._shape(conditional, family))).squeeze(0)
        if conditional.comparison is None or not family.has_laplace:
            what = "several choices at one strength" if conditional.comparison is None else "no Laplace transform here"
            raise IntegrationError(
                explain(
                    f"ClosedForm() for {type(family.mixing).__name__}",
                    got=what,
                    expected="one binary comparison and a nonnegative strength with a known Laplace transform",
                    hint="Quadrature(), or integration=None, which picks the best rule",
                )
            )
        diff = conditional.comparison
        s = special.absolute(diff).expand(self._shape(conditional, family))
        q = family.log_expected_sigmoid(s)
        return torch.where(diff < 0, q, special.log_complement(q))

    def moments(self, conditional: Conditional, family: Family, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(family, PointFamily):
            total = self.log_expectation(conditional, family, rows)
            return total, family.value.expand(total.shape), torch.zeros_like(total)
        return Quadrature().moments(conditional, family, rows)


@dataclass(frozen=True)
class Quadrature(Integration):
    """Trapezoid rule on an axis that follows the integrand (see ``mixlogit_align.numerics.quadrature``).

    Parameters
    ----------
    num_nodes : int, optional
        Nodes an interval of smoothness (two for strengths of both signs). By default 48 for one comparison under a
        LogNormal, else 192. Error falls geometrically with it; ``integration_error`` compares with twice as many.

    Notes
    -----
    A strength narrower than 1e-7 of its centre counts as that wide. Known to be less accurate: LogNormal where
    |utility_diff| exp(loc) exceeds 1e13, and Weibull of shape near 0.1 in long panels; more nodes mend both.
    """

    num_nodes: int | None = None

    def __post_init__(self) -> None:
        n = self.num_nodes
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 8):
            raise InvalidInputError(
                explain(
                    "num_nodes",
                    got=repr(n),
                    expected="an integer of at least 8",
                    hint="num_nodes=64, or None",
                )
            )

    _FAST_NODES = 48
    _FAST_DROP = 34.0
    _NODES = 192
    _DROP = 38.0

    def log_expectation(self, conditional: Conditional, family: Family, rows: Tensor) -> Tensor:
        if isinstance(family, PointFamily):
            return ClosedForm().log_expectation(conditional, family, rows)
        self._require_density(family)
        diff = conditional.comparison
        if diff is not None and family.nonnegative:
            # the unlikely side keeps relative accuracy, the other follows by complement
            s = special.absolute(diff)
            q = self._log_integral(Conditional.of_comparison(-s), family, fast=True)
            return torch.where(diff < 0, q, special.log_complement(q))
        direct = self._log_integral(conditional, family)
        certain = direct > _CERTAIN
        if not _holds_somewhere(certain):
            return direct
        # P close to 1: its logarithm keeps digits only through 1 - P
        opposite = dataclasses.replace(
            conditional,
            loglik=lambda strength: special.log1mexp(conditional.loglik(strength).clamp_max(_LEAST)),
        )
        complement = self._log_integral(opposite, family)
        safe = torch.where(certain, complement, -1.0)
        return torch.where(certain, torch.log1p(-torch.exp(safe)), direct)

    def nodes(self, conditional: Conditional, family: Family, rows: Tensor) -> tuple[Tensor, Tensor]:
        self._require_density(family)
        return self._nodes(conditional, family)

    def moments(self, conditional: Conditional, family: Family, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(family, PointFamily):
            return ClosedForm().moments(conditional, family, rows)
        return super().moments(conditional, family, rows)

    def refined(self, conditional: Conditional, family: Family) -> Quadrature:
        fast = conditional.comparison is not None and isinstance(family, LogNormalFamily)
        return Quadrature(2 * (self.num_nodes or (self._FAST_NODES if fast else self._NODES)))

    def _require_density(self, family: Family) -> None:
        if not family.has_density:
            raise IntegrationError(
                explain(
                    f"Quadrature() for {type(family.mixing).__name__}",
                    got="a family whose density is not known to be smooth",
                    expected="LogNormal, Gamma, Weibull, Normal or another family that the documentation lists",
                    hint="MonteCarlo(1024), or integration=None",
                )
            )

    def _log_integral(self, conditional: Conditional, family: Family, fast: bool = False) -> Tensor:
        if fast and isinstance(family, LogNormalFamily) and conditional.comparison is not None:
            s = -conditional.comparison
            with torch.no_grad():
                log_s = torch.log(s.clamp_min(1e-300))
                z, log_weight = quadrature.lognormal_nodes(
                    log_s + family.loc, family.scale, self.num_nodes or self._FAST_NODES, self._FAST_DROP
                )
            return torch.logsumexp(log_weight + logsigmoid(-s * family.from_base(z)), 0)
        strength, log_weight = self._nodes(conditional, family)
        return torch.logsumexp(log_weight + conditional.loglik(strength), 0)

    def _nodes(self, conditional: Conditional, family: Family) -> tuple[Tensor, Tensor]:
        shape = self._shape(conditional, family)
        family = family.for_nodes()
        parts = [self._piece(conditional, family, near, far, shape) for near, far in family.pieces()]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([strength for strength, _ in parts]), torch.cat([weight for _, weight in parts])

    def _piece(
        self, conditional: Conditional, family: Family, near: Tensor, far: Tensor, shape: torch.Size
    ) -> tuple[Tensor, Tensor]:
        """Nodes on one interval of smoothness, on an axis that is logarithmic near its end closer to 0."""
        sign = torch.where(far < near, -1.0, 1.0).to(torch.float64)
        bounded = torch.where(torch.isinf(far), near, far)
        width = torch.where(torch.isinf(far), math.inf, (bounded - near) * sign)
        empty = width <= 0
        axis = quadrature.Axis(torch.where(empty, 1.0, width), family.spread())

        def strength_at(x: Tensor) -> tuple[Tensor, Tensor]:
            strength = near + sign * axis.distance(x)
            if axis.unit is not None:
                return strength, torch.log(strength.abs())
            from_zero = axis.unbounded & (near == 0)
            return strength, torch.where(from_zero, x, torch.log(torch.where(from_zero, 1.0, strength.abs())))

        def log_slope(x: Tensor) -> Tensor:
            return torch.where(empty, -math.inf, axis.log_slope(x))

        def log_target(x: Tensor) -> Tensor:
            strength, log_strength = strength_at(x)
            return family.log_density(strength, log_strength) + log_slope(x) + conditional.loglik(strength)

        with torch.no_grad():
            center = axis.coordinate(((family.center() - near) * sign).abs()).expand(shape)
            left, right = quadrature.find_window(
                log_target,
                lambda x: 2.0 * strength_at(x)[1],
                center,
                -1e6,
                700.0 if axis.unit is None else 1e9,
                self._DROP,
            )
            # the likelihood has poles from pi / (widest gap) on, and is flat beyond 40 / (narrowest gap)
            first = torch.log(math.pi / conditional.widest.clamp_min(1e-300)) - _MARGIN
            last = torch.log(40.0 / conditional.narrowest.clamp_min(1e-300)) + _MARGIN
            bend_left, bend_right = family.bends()
            left_at = torch.minimum(first, bend_left) - axis.origin
            # near the far end of an interval the axis is logarithmic again
            right_at = torch.where(axis.unbounded, torch.maximum(last, bend_right), axis.far_end + _MARGIN)
            if axis.unit is not None:
                right_at = torch.where(axis.unbounded, math.inf, right_at)
            else:
                left_at = torch.where(axis.unbounded, left_at, left_at.clamp_max(-_MARGIN))
            x, log_step = quadrature.stretched_trapezoid(
                left, right, left_at, right_at, 8.0, self.num_nodes or self._NODES
            )
            fixed, log_fixed = strength_at(x)
            fixed_weight = family.log_density(fixed, log_fixed) + log_slope(x) + log_step
        placed = family.place(fixed, log_fixed)
        if placed is not None:
            return placed[0], fixed_weight + placed[1]
        strength, log_strength = strength_at(x)
        return strength, family.log_density(strength, log_strength) + log_slope(x) + log_step


@dataclass(frozen=True)
class _Drawn(Integration):
    """Rules that average over base draws: the log of a mean, consistent, biased by O(1 / K) for independent draws."""

    def strengths(self, family: Family, rows: Tensor) -> tuple[Tensor, Tensor | float]:
        """Strengths (K, *batch) and log-weights, which sum to one over K."""
        raise NotImplementedError

    def refined(self, conditional: Conditional, family: Family) -> Integration:
        return best_rule(conditional, family)

    def nodes(self, conditional: Conditional, family: Family, rows: Tensor) -> tuple[Tensor, Tensor]:
        strength, log_weight = self.strengths(family, rows)
        strength = lead(strength, conditional.ndim)
        if isinstance(log_weight, Tensor):
            return strength, lead(log_weight, conditional.ndim)
        return strength, torch.full_like(strength, log_weight)


_STANDARD: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": draws.standard_normal,
    "uniform": draws.symmetric_uniform,
    "triangular": draws.symmetric_triangular,
    "probability": lambda u: u,
}


@dataclass(frozen=True)
class _Seeded(_Drawn):
    """Draws made here, as functions of (seed, step, row)."""

    step: int = field(default=0, kw_only=True)
    rows: Tensor | None = field(default=None, kw_only=True, compare=False, repr=False)

    def __repr__(self) -> str:
        own = [f.name for f in dataclasses.fields(self) if f.name not in ("step", "rows")]
        names = [*own, "step"] if self.step else own
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def at(self, *, step: int | None = None, rows: Tensor | None = None) -> _Seeded:
        changes: dict[str, Any] = {}
        if step is not None and self.base_draws().seed is not None:
            changes["step"] = step
        if rows is not None:
            changes["rows"] = torch.as_tensor(rows)
        changed = dataclasses.replace(self, **changes)
        changed.base_draws()  # refuses a step that is no integer
        return changed

    def base_draws(self) -> draws.BaseDraws:
        """Return the base draws behind the rule."""
        raise NotImplementedError

    def reseeded(self, seed: int) -> _Seeded:
        return dataclasses.replace(self, seed=(self.base_draws().seed or 0) + seed)  # type: ignore[call-arg]

    def _row_ids(self, rows: Tensor) -> Tensor:
        if self.rows is None:
            return rows
        if self.rows.shape != rows.shape or self.rows.is_floating_point():
            raise InvalidInputError(
                explain(
                    "row ids of the draws",
                    got=f"{self.rows.dtype} of shape {tuple(self.rows.shape)}",
                    expected=f"integers of shape {tuple(rows.shape)}, one a row of utility_diff",
                    hint="a LongTensor of pair or individual ids",
                )
            )
        return self.rows.to(rows.device)

    def strengths(self, family: Family, rows: Tensor) -> tuple[Tensor, float]:
        base = self.base_draws()
        log_weight = -math.log(base.num_draws)
        rows = self._row_ids(rows)
        if not isinstance(family, SampledFamily):
            ndim = max(rows.dim(), len(family.mixing.batch_shape))
            u = lead(base.uniforms(rows), ndim)
            return family.from_base(_STANDARD[family.base](u)), log_weight
        return self._sampled(family.mixing, base, rows), log_weight

    def _sampled(self, mixing: Any, base: draws.BaseDraws, rows: Tensor) -> Tensor:
        """Draws of a family without a base-draw transform: a forked generator, seeded by (seed, step)."""
        if not mixing.has_rsample:
            raise sampling_refusal(mixing, "no transform from base draws and no rsample")
        if base.kind != "pseudo" or base.seed is None or self.rows is not None:
            raise sampling_refusal(mixing, f"rsample alone, asked for {base.kind} draws by row id")
        shape = torch.broadcast_shapes(rows.shape, mixing.batch_shape)
        with torch.random.fork_rng():
            torch.manual_seed(int(draws.stream_seed(base.seed, base.step)))
            sample: Tensor = mixing.expand(shape).rsample((base.num_draws,))
        return sample.to(torch.float64)


@dataclass(frozen=True, repr=False)
class MonteCarlo(_Seeded):
    """Average over K draws: log P ~ log (1/K) sum_k likelihood(strength_k).

    Consistent, not unbiased: the log of a mean is biased by O(1 / K), and so are its gradients.

    Parameters
    ----------
    num_draws : int
        K; 16 is the paper's.
    sharing : {"row", "batch"}
        Own draws for every row, or one set for all.
    seed : int
        Draws are a function of (seed, step, row) and of nothing else.
    kind : {"pseudo", "stratified", "antithetic"}
        Independent; one in each of K cells of equal probability; in pairs u, 1 - u.
    """

    num_draws: int = 16
    sharing: Literal["row", "batch"] = "row"
    seed: int = 0
    kind: Literal["pseudo", "stratified", "antithetic"] = "pseudo"

    def __post_init__(self) -> None:
        if self.sharing not in ("row", "batch"):
            raise InvalidInputError(
                explain("sharing", got=repr(self.sharing), expected="'row' or 'batch'", hint="sharing='row'")
            )
        if self.kind not in ("pseudo", "stratified", "antithetic"):
            raise InvalidInputError(
                explain(
                    "kind",
                    got=repr(self.kind),
                    expected="'pseudo', 'stratified' or 'antithetic'",
                    hint="QuasiMonteCarlo for halton, sobol or mlhs",
                )
            )
        self.base_draws()

    def base_draws(self) -> draws.BaseDraws:
        return draws.BaseDraws(self.kind, self.num_draws, self.seed, self.step)

    def _row_ids(self, rows: Tensor) -> Tensor:
        own = super()._row_ids(rows)
        return torch.zeros((), dtype=torch.int64, device=rows.device) if self.sharing == "batch" else own


@dataclass(frozen=True, repr=False)
class QuasiMonteCarlo(_Seeded):
    """Average over K quasi-random draws a row.

    Parameters
    ----------
    kind : {"halton", "sobol", "mlhs"}
        See :class:`mixlogit_align.numerics.draws.BaseDraws`.
    num_draws : int
        K.
    seed : int or None
        Of the rotation (halton), the scrambling (sobol), the offset (mlhs). None is the plain Halton sequence that
        xlogit and mlogit use: one set of draws whatever the step; its ``reseeded`` is the rotated sequence.
    """

    kind: Literal["halton", "sobol", "mlhs"] = "sobol"
    num_draws: int = 128
    seed: int | None = 0

    def __post_init__(self) -> None:
        if self.kind not in ("halton", "sobol", "mlhs"):
            raise InvalidInputError(
                explain(
                    "kind",
                    got=repr(self.kind),
                    expected="'halton', 'sobol' or 'mlhs'",
                    hint="MonteCarlo for pseudo-random, stratified or antithetic draws",
                )
            )
        self.base_draws()

    def base_draws(self) -> draws.BaseDraws:
        return draws.BaseDraws(self.kind, self.num_draws, self.seed, self.step)


@dataclass(frozen=True, repr=False)
class ImportanceSampling(_Seeded):
    """Average over K weighted draws near the mode of each row's posterior (``mixlogit_align.numerics.importance``).

    The strength is written as a function of z ~ N(0, 1); draws come from N(mode, (scale * sd)^2) with mode and sd of
    Laplace's approximation to the density of z given what was observed, at the parameters of the moment. Gradients are
    taken at these nodes held fixed.

    Parameters
    ----------
    num_draws : int
        K; with ``kind="sobol"`` preferably a power of 2.
    scale : float
        Proposals are that much wider than Laplace's approximation.
    kind : {"sobol", "halton", "pseudo"}
        Of the base draws, see :class:`mixlogit_align.numerics.draws.BaseDraws`.
    seed : int or None
        As in :class:`QuasiMonteCarlo`.
    prior_share : float
        Of the draws, taken from N(0, 1) itself: bounds the weights at 1 / (K prior_share), which a lognormal or gamma
        strength near 0 needs. 0 is twice as accurate where every posterior is close to normal.

    Notes
    -----
    For panels, where a likelihood is narrower than the mixing distribution: the fewer draws, the longer the panel. On
    single comparisons (T = 1) tails of the likelihood do not decay, weights are uneven, and ``Quadrature`` is right.

    The search for the mode looks at values: not under ``torch.vmap`` or ``torch.compile``.
    """

    num_draws: int = 64
    scale: float = 1.2
    kind: Literal["sobol", "halton", "pseudo"] = "sobol"
    seed: int | None = 0
    prior_share: float = 0.25

    def __post_init__(self) -> None:
        if self.kind not in ("sobol", "halton", "pseudo"):
            raise InvalidInputError(
                explain(
                    "kind",
                    got=repr(self.kind),
                    expected="'sobol', 'halton' or 'pseudo', of which a part is a sample too",
                    hint="kind='sobol'",
                )
            )
        if not 0 <= self.prior_share < 1:
            raise InvalidInputError(
                explain("prior_share", got=repr(self.prior_share), expected="in [0, 1)", hint="prior_share=0.25")
            )
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float) or not 0 < self.scale < math.inf:
            raise InvalidInputError(
                explain("scale", got=repr(self.scale), expected="a positive number", hint="scale=1.2")
            )
        self.base_draws()

    def base_draws(self) -> draws.BaseDraws:
        return draws.BaseDraws(self.kind, self.num_draws, self.seed, self.step)

    def log_expectation(self, conditional: Conditional, family: Family, rows: Tensor) -> Tensor:
        if isinstance(family, PointFamily):
            return ClosedForm().log_expectation(conditional, family, rows)
        return super().log_expectation(conditional, family, rows)

    def moments(self, conditional: Conditional, family: Family, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(family, PointFamily):
            return ClosedForm().moments(conditional, family, rows)
        return super().moments(conditional, family, rows)

    def nodes(self, conditional: Conditional, family: Family, rows: Tensor) -> tuple[Tensor, Tensor]:
        z, log_weight = self.place(conditional, family, rows)
        return self._strength(family, z), log_weight

    @torch.no_grad()
    def place(self, conditional: Conditional, family: Family, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes z (K, *batch) and log-weights (K, *batch) of E f(z), z standard normal, without gradients."""
        if isinstance(family, SampledFamily):
            raise sampling_refusal(family.mixing, "no transform from base draws")
        shape = self._shape(conditional, family)
        u = lead(self.base_draws().uniforms(self._row_ids(rows)), len(shape)).expand(-1, *shape)
        eps = draws.standard_normal(u).reshape(len(u), -1).T[..., None]
        sides = torch.tensor([-_NEARBY, 0.0, _NEARBY], dtype=torch.float64, device=rows.device)

        def log_target(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            # by differences: quantiles of gamma-type families have no derivative in z
            points = lead(sides, len(shape)) + z.reshape(shape)
            below, value, above = conditional.loglik(self._strength(family, points)).reshape(3, -1)
            slope = (above - below) / (2.0 * _NEARBY)
            curvature = (above - 2.0 * value + below) / _NEARBY**2
            z = z.squeeze(-1)
            return value - 0.5 * z * z, (slope - z)[:, None], (curvature - 1.0)[:, None, None]

        proposals = importance.laplace_proposals(log_target, torch.zeros_like(eps[:, 0]))
        z, log_weight = importance.importance_nodes(proposals, eps, self.scale, prior_share=self.prior_share)
        return z.squeeze(-1).T.reshape(-1, *shape), log_weight.T.reshape(-1, *shape)

    @staticmethod
    def _strength(family: Family, z: Tensor) -> Tensor:
        """Strength at standard normal z, whatever the family's own standard variable."""
        if family.base == "normal":
            return family.from_base(z)
        return family.from_base(_STANDARD[family.base](draws.probability(z)))


@dataclass(frozen=True, eq=False)
class FixedDraws(_Drawn):
    """Average over draws given by the user, for example another package's.

    Parameters
    ----------
    base : Tensor
        (K,), shared by all rows, or (*row_shape, K), e.g. (N, K). Draws of the family's standard variable z: N(0, 1)
        for Normal and LogNormal, U(-1, 1) for Uniform, Tri(-1, 0, 1) for Triangular, U(0, 1) for any other. For the M
        random coefficients of a model, (K, M) or (N, K, M), each in its own standard variable.
    weights : Tensor, optional
        Shape of ``base`` (of several coefficients: without M), positive, summing to one over K; by default 1 / K.
    """

    base: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        base = torch.as_tensor(self.base).to(torch.float64)
        if base.dim() < 1 or base.shape[-1] < 1 or not bool(torch.isfinite(base).all()):
            raise InvalidInputError(
                explain(
                    "base",
                    got=f"shape {tuple(base.shape)}" + ("" if base.numel() == 0 else ", some values not finite"),
                    expected="finite draws of shape (K,) or (N, K), of M coefficients (K, M) or (N, K, M), K >= 1",
                    hint="draws of the family's standard variable",
                )
            )
        object.__setattr__(self, "base", base)
        if self.weights is None:
            return
        weights = torch.as_tensor(self.weights).to(base)
        if weights.shape not in (base.shape, base.shape[:-1]) or not bool(
            (weights > 0).all() and ((weights.sum(-1) - 1.0).abs() < 1e-6).all()
        ):
            raise InvalidInputError(
                explain(
                    "weights",
                    got=f"shape {tuple(weights.shape)}, smallest {weights.min().item():.3g}",
                    expected=f"positive weights of shape {tuple(base.shape)}, or {tuple(base.shape[:-1])} for several "
                    "coefficients, that sum to one over the last axis",
                    hint="weights / weights.sum(-1, keepdim=True)",
                )
            )
        object.__setattr__(self, "weights", weights)

    def __repr__(self) -> str:
        weighted = "" if self.weights is None else ", weighted"
        return f"FixedDraws(shape={tuple(self.base.shape)}{weighted})"

    def strengths(self, family: Family, rows: Tensor) -> tuple[Tensor, Tensor | float]:
        if isinstance(family, SampledFamily):
            raise sampling_refusal(family.mixing, "no transform from base draws")
        if self.base.dim() > 1 and self.base.shape[:-1] != rows.shape:
            raise InvalidInputError(
                explain(
                    "FixedDraws",
                    got=f"base draws of shape {tuple(self.base.shape)}",
                    expected=f"({self.base.shape[-1]},) or {(*rows.shape, self.base.shape[-1])}",
                    hint="one row of draws a row of utility_diff; (N, K, M) is for models of M coefficients",
                )
            )
        if self.weights is not None and self.weights.shape != self.base.shape:
            raise InvalidInputError(
                explain(
                    "weights of FixedDraws",
                    got=f"shape {tuple(self.weights.shape)}",
                    expected=f"{tuple(self.base.shape)}, the shape of the draws of a single strength",
                    hint="weights.expand(base.shape)",
                )
            )
        low, high = {"probability": (0.0, 1.0), "normal": (-math.inf, math.inf)}.get(family.base, (-1.0, 1.0))
        if not low <= float(self.base.min()) <= float(self.base.max()) <= high:
            raise InvalidInputError(
                explain(
                    f"FixedDraws for {type(family.mixing).__name__}",
                    got=f"draws from {float(self.base.min()):.3g} to {float(self.base.max()):.3g}",
                    expected=f"draws of its standard variable, within [{low:g}, {high:g}]",
                    hint="normal draws for Normal and LogNormal, U(-1, 1) for Uniform, U(0, 1) for most others",
                )
            )
        ndim = max(rows.dim(), len(family.mixing.batch_shape))
        strength = family.from_base(lead(self.base.to(rows.device).movedim(-1, 0), ndim))
        if self.weights is None:
            return strength, -math.log(self.base.shape[-1])
        return strength, torch.log(lead(self.weights.to(rows.device).movedim(-1, 0), ndim))


def _holds_somewhere(mask: Tensor) -> bool:
    """Whether any element is true; True where it cannot be asked, as under vmap or while compiling."""
    if torch.compiler.is_compiling():
        return True
    try:
        return bool(mask.any())
    except RuntimeError:
        return True


def best_rule(conditional: Conditional, family: Family) -> Integration:
    """Pick the exact rule, else the most accurate one, for a family and what was observed."""
    if isinstance(family, PointFamily) or (conditional.comparison is not None and family.has_laplace):
        return ClosedForm()
    return Quadrature() if family.has_density else MonteCarlo(1024)


_Parts = list[tuple[Tensor | None, Integration, Family]]


def _by_component(rule: Integration | None, mixing: Any, conditional: Conditional) -> _Parts:
    """(share, rule, family) of each component; one with share None where the mixing is no mixture."""
    parts = components_of(mixing)
    if parts is None:
        family = family_of(mixing)
        chosen = rule or best_rule(conditional, family)
        if rule is None and isinstance(chosen, MonteCarlo) and mixing.has_rsample:
            warnings.warn(
                f"{type(mixing).__name__} has no exact rule here: {chosen!r} is used, errors of log P around 1e-2. "
                "Name a rule to say how many draws, or take a family of mixlogit_align.distributions",
                IntegrationWarning,
                stacklevel=2,
            )
        return [(None, chosen, family)]
    flat: _Parts = []
    for share, component in parts:
        for inner, part_rule, family in _by_component(rule, component, conditional):
            flat.append((share if inner is None else share * inner, part_rule, family))
    return flat


def _average(parts: _Parts, conditional: Conditional, rows: Tensor) -> Tensor:
    shares, values = [], []
    for share, rule, family in parts:
        value = rule.log_expectation(conditional, family, rows)
        if share is None:
            return value
        shares.append(share)
        values.append(value)
    stacked = torch.stack(torch.broadcast_tensors(*values))
    share = lead(torch.stack(torch.broadcast_tensors(*shares)), stacked.dim() - 1)
    direct = special.log_weighted_sum(share, stacked)
    certain = direct > _CERTAIN
    if not _holds_somewhere(certain):
        return direct
    contrary = special.log_weighted_sum(share, special.log1mexp(stacked.clamp_max(_LEAST)))
    return torch.where(certain, torch.log1p(-torch.exp(torch.where(certain, contrary, -1.0))), direct)


def resolved(rule: Integration | None, mixing: Any, conditional: Conditional) -> tuple[Integration, ...]:
    """Return the rule of each component, one where the mixing is no mixture."""
    return tuple(part_rule for _, part_rule, _ in _by_component(rule, mixing, conditional))


def log_marginal(rule: Integration | None, mixing: Any, conditional: Conditional, rows: Tensor) -> Tensor:
    """log E_{strength ~ mixing}[likelihood], (*batch); finite mixtures are averaged component by component."""
    return _average(_by_component(rule, mixing, conditional), conditional, rows)


def posterior_moments(
    rule: Integration | None, mixing: Any, conditional: Conditional, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the strength given what was observed, (*batch)."""
    parts = []
    for share, part_rule, family in _by_component(rule, mixing, conditional):
        total, mean, variance = part_rule.moments(conditional, family, rows)
        if share is None:
            return mean, variance
        parts.append(torch.broadcast_tensors(share, total, mean, variance))
    shares, totals, means, variances = (torch.stack(x) for x in zip(*parts, strict=True))
    weights = shares * torch.exp((totals - special.log_weighted_sum(shares, totals)).clamp_max(700.0))
    mean = (weights * means).sum(0)
    return mean, (weights * (variances + (means - mean) ** 2)).sum(0)


def integration_error(rule: Integration | None, mixing: Any, conditional: Conditional, rows: Tensor) -> Tensor:
    """Estimate |error of log P|, (*batch); see ``MixedLogit.integration_error``."""
    parts = _by_component(rule, mixing, conditional)
    value = _average(parts, conditional, rows)
    if all(isinstance(part_rule, ClosedForm) for _, part_rule, _ in parts):
        return torch.full_like(value, special.alternating_error_bound(special.NUM_TERMS))
    finer = [(share, part_rule.refined(conditional, family), family) for share, part_rule, family in parts]
    if not any(isinstance(part_rule, _Seeded) for _, part_rule, _ in finer):
        return (value - _average(finer, conditional, rows)).abs()
    redraws = []
    for seed in range(1, _REDRAWS + 1):
        others = [(share, part_rule.reseeded(seed), family) for share, part_rule, family in parts]
        redraws.append(_average(others, conditional, rows))
    return torch.stack(redraws).std(0)
