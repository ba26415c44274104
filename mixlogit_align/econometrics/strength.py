"""One random coefficient and nothing else: the distribution of strength, through the exact distributions."""

# N individuals, T situations of an individual, J alternatives.

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution

from mixlogit_align.distributions import (
    ClosedForm,
    FixedDraws,
    Integration,
    MonteCarlo,
    Quadrature,
    QuasiMonteCarlo,
)
from mixlogit_align.econometrics.boundary import noticed_spread, spread_slope
from mixlogit_align.econometrics.compression import STEP, Compression
from mixlogit_align.econometrics.cov_types import covariance
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.estimation import Watch, no_watch
from mixlogit_align.econometrics.families import FAMILIES, Random
from mixlogit_align.econometrics.results import FixedStrength, IntegrationReport, MixedLogitResult
from mixlogit_align.econometrics.strength_likelihood import Chunk, chunks, compressed, compressed_chunk
from mixlogit_align.errors import (
    ConvergenceError,
    ConvergenceWarning,
    InvalidInputError,
    explain,
)
from mixlogit_align.inference import (
    MaximumLikelihood,
    delta_method,
    gradient_of,
    individual_scores,
    maximize_loglik,
    standard_errors,
)

Mixing = Callable[[torch.Tensor], TorchDistribution]
# A gain in log-likelihood over a fixed strength below this is rounding, not evidence of heterogeneity.
_NO_GAIN = 1e-7
# A search whose spread has shrunk by this factor, with no gain over a fixed strength, is on its way to 0.
_LOG_FAR = math.log(30.0)
_USUAL_NODES = 192
_BOUNDARY = "at the boundary: no heterogeneity is most likely"
_LOST = (
    "no spread above 0 was found more likely than 0, yet the log-likelihood rises there: try a finer integration "
    "rule or another start"
)
_SILENT = "the data do not tell heterogeneity from none: the attribute takes too few values"


def _fixed(params: torch.Tensor) -> TorchDistribution:
    return dist.Delta(params[0])


class _Estimates(NamedTuple):
    """Natural parameters (2,) and moments (2,) with their covariances (2, 2), and the evidence for them.

    Hessian (2, 2) and scores (N, 2) are in the natural parameters; NaN where these are infinite.
    """

    natural: torch.Tensor
    covariance: torch.Tensor
    hessian: torch.Tensor
    scores: torch.Tensor
    moments: torch.Tensor
    moment_covariance: torch.Tensor
    converged: bool
    gradient_norm: float
    eigenvalues: torch.Tensor
    message: str


class StrengthModel:
    """Mixed logit with one random coefficient.

    Individual n has a coefficient ``sign * b_n``, b_n drawn from the mixing distribution, and chooses
    alternative j of situation t with probability ``softmax_j(sign * b_n * x_ntj)``; in a panel b_n is one for
    all situations. The likelihood is that of :class:`MixedLogit` (pairs), :class:`PanelMixedLogit`
    (pairs, panel) or :class:`MixedMultinomialLogit` (more alternatives, cross-section). Other attributes of the data
    have no coefficient: they are left out, and the result's summary names them.

    Parameters
    ----------
    data : ChoiceData
    variable : str
        The attribute whose coefficient is random.
    random : Random
        normal, lognormal, uniform, triangular or gamma.

    Raises
    ------
    InvalidInputError
        For an unknown variable, or a panel with more than two alternatives in a situation.
    """

    def __init__(self, data: ChoiceData, variable: str, random: Random) -> None:
        self.data = data
        self.variable = variable
        self.random = random
        self._family = FAMILIES[self.random.family]
        self._chunks = chunks(data, self.variable, self.random.sign)

    def loglik(self, mixing: TorchDistribution, integration: Integration | None = None) -> torch.Tensor:
        """Log-likelihood of each individual under any mixing distribution.

        Parameters
        ----------
        mixing : pyro.distributions.TorchDistribution
            Of the strength b (before the sign), one for all: batch shape ().
        integration : integration rule, optional
            None: the most accurate one for this mixing.

        Returns
        -------
        torch.Tensor, shape (N,)
            Frequencies not counted.
        """
        return torch.cat([chunk.loglik(mixing, integration) for chunk in self._chunks])

    def fit(
        self,
        *,
        integration: Integration | None = None,
        cov_type: str = "hessian",
        start: Mapping[str, float] | None = None,
        num_redraws: int = 4,
        watch: Watch = no_watch,
    ) -> MixedLogitResult:
        """Maximise the log-likelihood.

        Positive parameters are estimated by their logarithms and reported, with standard errors by the delta
        method, as themselves. A fixed strength is fitted first: it gives the start and tells the boundary,
        where no spread above 0 is more likely.

        Parameters
        ----------
        integration : integration rule, optional
            None: the most accurate one for the family.
        cov_type : str
            As :meth:`MixedLogitModel.fit`, but for the bootstrap.
        start : mapping, optional
            Natural parameters, ``{"x.loc": 0.0, "x.scale": 1.0}``.
        num_redraws : int
            As :meth:`MixedLogitModel.fit`; a rule without draws is compared with more nodes instead.
        watch : callable
            Told of every step: its stage, its number, the log-likelihood.

        Returns
        -------
        MixedLogitResult

        Warns
        -----
        ConvergenceWarning
            If the evidence of convergence is incomplete.

        Raises
        ------
        InvalidInputError
            If ``start`` is not as above, or a positive family meets a negative strength.
        ConvergenceError
            If no finite strength maximises the likelihood (the attribute separates the choices).
        """
        point = self._fit_fixed()
        centre = self._family.centre(point.params[0])
        slope = spread_slope(self._used(None), self._family, centre)
        best = self._search(point, slope, self._starts(centre, start), integration, watch)
        at_boundary = best.loglik <= point.loglik + _NO_GAIN
        if at_boundary:
            estimates = self._at_boundary(point, centre, slope, cov_type, integration)
            loglik, mixing = point.loglik, dist.Delta(point.params[0])
        else:
            estimates = self._inside(best, cov_type, integration)
            loglik, mixing = best.loglik, self._family.mixing(best.params)
        if not estimates.converged:
            warnings.warn(estimates.message, ConvergenceWarning, stacklevel=2)
        simulation = self._simulation(None if at_boundary else best, estimates, integration, num_redraws)

        natural = self._names(self._family.names)
        moments = self._names(("mean", "sd"))
        errors, moment_errors = map(standard_errors, (estimates.covariance, estimates.moment_covariance))
        return MixedLogitResult(
            params=dict(zip(natural, estimates.natural.tolist(), strict=True)),
            std_errors=dict(zip(natural, errors.tolist(), strict=True)),
            cov=estimates.covariance,
            moments=dict(zip(moments, estimates.moments.tolist(), strict=True)),
            moment_std_errors=dict(zip(moments, moment_errors.tolist(), strict=True)),
            mixing=mixing,
            loglik=loglik,
            null_loglik=self.data.null_loglik,
            converged=estimates.converged,
            gradient_norm=estimates.gradient_norm,
            hessian_eigenvalues=estimates.eigenvalues,
            at_boundary=at_boundary,
            message=estimates.message,
            fixed=FixedStrength(
                estimate=self.random.sign * float(point.params[0]),
                std_error=float((-point.hessian[0, 0]).rsqrt()),
                loglik=point.loglik,
            ),
            integration=self._integration_report(mixing, integration),
            cov_type=cov_type,
            specification=f"{self.variable} {self.random}",
            not_in_model=tuple(name for name in self.data.variables if name != self.variable),
            held={},
            scales=tuple(name for name in natural if name.endswith(".scale")),
            simulation_sd=simulation[0],
            simulation_bias=simulation[1],
            n_individuals=float(self.data.weights.sum()),
            nobs=float(self.data.situation_weights.sum()),
            iterations=best.iterations,
            evaluations=best.evaluations,
            hessian=estimates.hessian,
            scores=estimates.scores,
            weights=self.data.weights,
            optima=(),
        )

    @cached_property
    def _compressed(self) -> Compression | None:
        return compressed(self.data, self.variable, self.random.sign)

    def _compression(self, integration: Integration | None) -> Compression | None:
        """A cross-section of many pairs in short, unless its rows have draws, which then define the likelihood."""
        return self._compressed if isinstance(integration, ClosedForm | Quadrature | None) else None

    def _used(self, integration: Integration | None) -> list[Chunk]:
        compression = self._compression(integration)
        return self._chunks if compression is None else [compressed_chunk(compression)]

    def _names(self, suffixes: tuple[str, str]) -> list[str]:
        return [f"{self.variable}.{suffix}" for suffix in suffixes]

    def _parts(
        self,
        mixing: Mixing,
        integration: Integration | None,
        *,
        weighted: bool,
        chunks: list[Chunk] | None = None,
    ) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """Log-likelihoods of the chunks' individuals as functions of parameters."""

        def part(chunk: Chunk, params: torch.Tensor) -> torch.Tensor:
            loglik = chunk.loglik(mixing(params), integration)
            return chunk.weights * loglik if weighted else loglik

        return [partial(part, chunk) for chunk in chunks or self._used(integration)]

    def _scores(self, mixing: Mixing, integration: Integration | None, params: torch.Tensor) -> torch.Tensor:
        """One score an individual, (N, P)."""
        scores = individual_scores(self._parts(mixing, integration, weighted=False), params)
        compression = self._compression(integration)
        return scores if compression is None else compression.expand(scores)

    def _fit_fixed(self) -> MaximumLikelihood:
        """The logit: one strength for all."""
        zero = torch.zeros(1, dtype=torch.float64)
        point = maximize_loglik(self._parts(_fixed, None, weighted=True), zero)
        strength = float(point.params)
        if not point.converged:
            raise ConvergenceError(
                explain(
                    f"fixed strength of {self.variable!r}",
                    got=f"{strength:g} and no maximum ({point.message})",
                    expected="choices that do not all follow the attribute, and an attribute that varies",
                    hint="more data, or another variable",
                )
            )
        if self._family.positive and not strength > 0.0:
            raise InvalidInputError(
                explain(
                    f"random[{self.variable!r}]",
                    got=f"{self.random}, where a fixed strength would be {self.random.sign * strength:g}",
                    expected="a family whose sign the data support",
                    hint=f"Random({self.random.family!r}, sign={-self.random.sign}) or 'normal'",
                )
            )
        return point

    def _starts(self, centre: torch.Tensor, start: Mapping[str, float] | None) -> list[torch.Tensor]:
        given = self.random.start
        if start is not None:
            names = self._names(self._family.names)
            if set(start) != set(names):
                raise InvalidInputError(
                    explain("start", got=list(start), expected=f"values for {names}", hint="start=None")
                )
            given = (start[names[0]], start[names[1]])
        if given is None:
            return [torch.stack([centre, log_spread]) for log_spread in self._log_spreads(centre)]
        theta = self._family.theta(torch.tensor(given, dtype=torch.float64))
        if not bool(torch.isfinite(theta).all()):
            raise InvalidInputError(
                explain(
                    "start",
                    got=list(given),
                    expected=f"finite {self._family.names}, positive where they must be",
                    hint="start=None",
                )
            )
        return [theta]

    def _log_spreads(self, centre: torch.Tensor) -> torch.Tensor:
        """A moderate spread and a small one."""
        if self._family.positive:
            moderate = 0.5
        else:  # half the fixed strength, or where that is nearly 0, a strength that moves utility by 1/2
            values = self.data.attribute(self.variable)[self.data.available]
            moderate = 0.5 * max(abs(float(centre)), 1.0 / float(values.square().mean().sqrt()))
        return torch.tensor([moderate, moderate / 10], dtype=torch.float64).log()

    def _search(
        self,
        point: MaximumLikelihood,
        slope: float,
        starts: list[torch.Tensor],
        integration: Integration | None,
        watch: Watch,
    ) -> MaximumLikelihood:
        """The best maximum found from the starts, which may be on its way to no heterogeneity."""
        parts = self._parts(self._family.mixing, integration, weighted=True)
        found = []
        steps = itertools.count(1)
        for theta in starts:
            least = float(theta[1]) - _LOG_FAR

            def fallen_back(at: torch.Tensor, loglik: float, least: float = least) -> bool:
                watch("search", next(steps), loglik)
                return slope <= 0.0 and float(at[1]) < least and loglik <= point.loglik

            found.append(maximize_loglik(parts, theta, give_up=fallen_back))
            # another start only where this one fell back although some heterogeneity must be better
            if found[-1].loglik > point.loglik + _NO_GAIN or slope <= 0.0:
                break
        return max(found, key=lambda maximum: maximum.loglik)

    def _inside(self, best: MaximumLikelihood, cov_type: str, integration: Integration | None) -> _Estimates:
        family = self._family

        def moments(theta: torch.Tensor) -> torch.Tensor:
            mixing = family.mixing(theta)
            return torch.stack([self.random.sign * mixing.mean, mixing.stddev])

        scores = self._scores(family.mixing, integration, best.params)
        covariance = self._covariance(best, scores, cov_type)
        to_theta = torch.linalg.inv(torch.autograd.functional.jacobian(family.natural, best.params))
        natural, natural_covariance = delta_method(family.natural, best.params, covariance)
        moment, moment_covariance = delta_method(moments, best.params, covariance)
        known = bool(torch.isfinite(torch.cat([natural_covariance, moment_covariance])).all())
        return _Estimates(
            natural=natural,
            covariance=natural_covariance,
            # the gradient is 0 at the maximum, so the curvature of the transformation adds nothing
            hessian=to_theta.T @ best.hessian @ to_theta,
            scores=scores @ to_theta,
            moments=moment,
            moment_covariance=moment_covariance,
            converged=best.converged and known,
            gradient_norm=best.gradient_norm,
            eigenvalues=best.eigenvalues,
            message=best.message if known else f"{best.message}; no finite standard errors",
        )

    def _at_boundary(
        self,
        point: MaximumLikelihood,
        centre: torch.Tensor,
        slope: float,
        cov_type: str,
        integration: Integration | None,
    ) -> _Estimates:
        """No heterogeneity: the logit's estimate and spread 0, in the coordinates (centre, spread).

        The log-likelihood is even in the spread, so its cross-derivative is 0 there and its second derivative
        is twice the slope in the squared spread.
        """
        family = self._family
        parts = self._parts(family.mixing, integration, weighted=True)

        @torch.no_grad()
        def loglik(log_spread: float) -> float:
            theta = torch.stack([centre, centre.new_tensor(log_spread)])
            return sum(float(part(theta).sum()) for part in parts)

        score = self._scores(_fixed, None, point.params)
        variance = self._covariance(point, score, cov_type)[0, 0]
        converged = slope < 0.0 and bool(torch.isfinite(variance))
        start = float(self._log_spreads(centre)[0])
        spread = noticed_spread(loglik, point.loglik, start) if converged else math.nan
        origin = torch.zeros_like(centre)
        to_centre, to_deviation = torch.autograd.functional.jacobian(family.strength, (centre, origin))
        spread_variance = centre.new_tensor(spread) ** 2
        natural = family.natural(torch.stack([centre, centre.new_tensor(-math.inf)]))
        curvature = torch.stack([-point.hessian[0, 0] * to_centre**2, centre.new_tensor(-2.0 * slope)])
        score = score * to_centre
        if bool(torch.isfinite(natural).all()):
            covariance = torch.stack([variance / to_centre**2, spread_variance]).diag()
            hessian, scores = -curvature.diag(), torch.cat([score, torch.zeros_like(score)], 1)
        else:  # concentration and rate go to infinity
            covariance = torch.full_like(natural, math.inf).diag()
            hessian, scores = torch.full_like(covariance, math.nan), score.new_full((len(score), 2), math.nan)
        sd_variance = spread_variance * to_deviation**2 * family.deviate_variance
        return _Estimates(
            natural=natural,
            covariance=covariance,
            hessian=hessian,
            scores=scores,
            moments=torch.stack([self.random.sign * point.params[0], origin]),
            moment_covariance=torch.stack([variance, sd_variance]).diag(),
            converged=converged,
            gradient_norm=point.gradient_norm,
            eigenvalues=curvature.sort().values,
            message=_BOUNDARY if converged else _LOST if slope > 0.0 else _SILENT,
        )

    def _covariance(self, best: MaximumLikelihood, scores: torch.Tensor, cov_type: str) -> torch.Tensor:
        try:
            return covariance(cov_type, self.data, best.hessian, scores)
        except ConvergenceError:  # told by the result: not converged, standard errors unknown
            return torch.full_like(best.hessian, math.nan)

    @torch.no_grad()
    def _integration_report(self, mixing: TorchDistribution, rule: Integration | None) -> IntegrationReport:
        """The rule by name, and its log-likelihood against quadrature with at least twice the usual nodes.

        Where comparisons were compressed the reference has a grid of half the step, or all comparisons if that would
        not shorten them: the difference is the error of both.
        """
        reference = _finer(rule)
        if rule is None:
            rule = self._chunks[0].rule_used(mixing)

        def total(chunks: list[Chunk], rule: Integration) -> float:
            return math.fsum(float((chunk.weights * chunk.loglik(mixing, rule)).sum()) for chunk in chunks)

        error = total(self._reference_chunks, reference) - total(self._used(rule), rule)
        grid = "" if self._reference_chunks is self._chunks else " on a grid twice as fine"
        return IntegrationReport(rule=repr(rule), error=error, reference=f"{reference!r}{grid}")

    @cached_property
    def _reference_chunks(self) -> list[Chunk]:
        finer = None if self._compressed is None else compressed(self.data, self.variable, self.random.sign, STEP / 2)
        return self._chunks if finer is None else [compressed_chunk(finer)]

    def _simulation(
        self, best: MaximumLikelihood | None, estimates: _Estimates, rule: Integration | None, num_redraws: int
    ) -> tuple[dict[str, float], dict[str, float]]:
        """How far log-likelihood and parameters move, by a Newton step: with other draws or nodes, with half the draws.

        None of them at the boundary: a fixed strength needs no integral.
        """
        if best is None or not (num_redraws and estimates.converged) or isinstance(rule, FixedDraws):
            return {}, {}
        names = [*self._names(self._family.names), "loglik"]
        to_natural = torch.autograd.functional.jacobian(self._family.natural, best.params)

        def move(chunks: list[Chunk], other: Integration) -> torch.Tensor:
            parts = self._parts(self._family.mixing, other, weighted=True, chunks=chunks)
            value, gradient = gradient_of(parts, best.params)
            step = to_natural @ torch.linalg.solve(-best.hessian, gradient)
            return torch.cat([step, step.new_tensor([value - best.loglik])])

        if isinstance(rule, MonteCarlo | QuasiMonteCarlo):
            moves = [move(self._chunks, rule.reseeded(i)) for i in range(1, num_redraws + 1)]
            spread = torch.stack([torch.zeros_like(moves[0]), *moves]).std(0)
        else:
            spread = move(self._reference_chunks, _finer(rule)).abs()
        sd = dict(zip(names, spread.tolist(), strict=True))
        if not isinstance(rule, MonteCarlo | QuasiMonteCarlo) or rule.num_draws < 4:
            return sd, {}
        half = replace(rule, num_draws=2 * (rule.num_draws // 4))  # even, as antithetic draws are
        return sd, dict(zip(names, move(self._chunks, half).tolist(), strict=True))


def _finer(rule: Integration | None) -> Quadrature:
    nodes = rule.num_nodes if isinstance(rule, Quadrature) else None
    return Quadrature(2 * max(nodes or 0, _USUAL_NODES))
