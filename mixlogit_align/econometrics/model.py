"""The mixed logit model of choices, estimated by maximum likelihood."""

# N individuals, T situations of an individual, J alternatives.

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from scipy.optimize import brentq

from mixlogit_align.distributions import (
    ClosedForm,
    MixedLogit,
    MixedMultinomialLogit,
    PanelMixedLogit,
    Quadrature,
)
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.families import FAMILIES, Family, Random
from mixlogit_align.econometrics.results import FixedStrength, IntegrationReport, MixedLogitResult
from mixlogit_align.errors import (
    ConvergenceError,
    ConvergenceWarning,
    IntegrationError,
    InvalidInputError,
    explain,
)
from mixlogit_align.inference import (
    MaximumLikelihood,
    bhhh_covariance,
    delta_method,
    hessian_covariance,
    individual_scores,
    maximize_loglik,
    robust_covariance,
    standard_errors,
)

CovType = Literal["hessian", "bhhh", "robust"]
# A gain in log-likelihood over a fixed strength below this is rounding, not evidence of heterogeneity.
_NO_GAIN = 1e-7
# A search whose spread has shrunk by this factor, with no gain over a fixed strength, is on its way to 0.
_LOG_FAR = math.log(30.0)
_USUAL_NODES = 128
_BOUNDARY = (
    "at the boundary: no heterogeneity is most likely; beside a spread of 0 stands, in place of a standard "
    "error, the spread at which the log-likelihood has fallen by 1/2"
)
_LOST = (
    "no spread above 0 was found more likely than 0, yet the log-likelihood rises there (slope {:.1e} in the "
    "squared spread): try a finer integration rule or another start"
)


class _Estimates(NamedTuple):
    """Natural parameters (2,) and moments (2,) with their covariances (2, 2), and the evidence for them."""

    natural: torch.Tensor
    covariance: torch.Tensor
    moments: torch.Tensor
    moment_covariance: torch.Tensor
    converged: bool
    gradient_norm: float
    eigenvalues: torch.Tensor
    message: str


class MixedLogitModel:
    """Mixed logit with one random coefficient.

    Individual n has a coefficient ``sign * b_n``, b_n drawn from the mixing distribution, and chooses
    alternative j of situation t with probability ``softmax_j(sign * b_n * x_ntj)``; in a panel b_n is one for
    all situations. The likelihood is that of :class:`MixedLogit` (pairs), :class:`PanelMixedLogit`
    (pairs, panel) or :class:`MixedMultinomialLogit` (more alternatives, cross-section).

    Parameters
    ----------
    data : ChoiceData
    random : mapping of one variable to its specification
        ``{"x": "lognormal"}``, ``{"x": "-gamma"}``, ``{"x": Random("normal")}`` or
        ``{"x": dist.Gamma(2., 16.7)}``;
        families: normal, lognormal, uniform, triangular, gamma.

    Raises
    ------
    InvalidInputError
        For another number of random coefficients than one, an unknown variable or family, or a panel with
        more than two alternatives in a situation.
    """

    def __init__(self, data: ChoiceData, *, random: Mapping[str, str | Random | TorchDistribution]) -> None:
        if len(random) != 1:
            raise InvalidInputError(
                explain(
                    "random",
                    got=f"{len(random)} coefficients {list(random)}",
                    expected="one",
                    hint="the coefficient whose heterogeneity matters most",
                )
            )
        self.data = data
        ((self.variable, spec),) = random.items()
        self.random = Random.of(spec)
        self._likelihood, self._choices = self._delegate()

    @property
    def _family(self) -> Family:
        return FAMILIES[self.random.family]

    def _delegate(self) -> tuple[Callable[[TorchDistribution, Any], TorchDistribution], torch.Tensor]:
        """The likelihood, given a mixing and a rule, and the choices it is of, a row an individual."""
        data, sign = self.data, self.random.sign
        if not data.is_binary:
            if data.is_panel:
                raise InvalidInputError(
                    explain(
                        "data",
                        got="a panel with more than two alternatives in a situation",
                        expected="pairs, or a cross-section",
                        hint="individual=None, if a fresh strength in each situation is what you mean",
                    )
                )
            utilities, available = sign * data.attribute(self.variable), data.available
            return partial(MixedMultinomialLogit, utilities, available=available), data.choice
        difference, second = data.pairs(self.variable)
        if not data.is_panel:
            return partial(MixedLogit, sign * difference), second
        rows, observed = data.by_individual(sign * difference)
        return partial(PanelMixedLogit, rows, observed=observed), data.by_individual(second)[0]

    def loglik(self, mixing: TorchDistribution, integration: Any = None) -> torch.Tensor:
        """Log-likelihood of each individual under any mixing distribution.

        Parameters
        ----------
        mixing : pyro.distributions.TorchDistribution
            Of the strength b (before the sign).
        integration : integration rule, optional
            None: the most accurate one for this mixing.

        Returns
        -------
        torch.Tensor, shape (N,)
            Not multiplied by the data's frequencies.
        """
        return self._likelihood(mixing, integration).log_prob(self._choices)

    def fit(
        self,
        *,
        integration: Any = None,
        cov_type: CovType = "hessian",
        start: Mapping[str, float] | None = None,
    ) -> MixedLogitResult:
        """Maximise the log-likelihood.

        Positive parameters are estimated by their logarithms and reported, with standard errors by the delta
        method, as themselves. A fixed strength is fitted first: it gives the start and tells the boundary,
        where no spread above 0 is more likely.

        Parameters
        ----------
        integration : integration rule, optional
            None: the most accurate one for the family.
        cov_type : {"hessian", "bhhh", "robust"}
            One score an individual in the latter two.
        start : mapping, optional
            Natural parameters, ``{"x.loc": 0.0, "x.scale": 1.0}``.

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
            If ``cov_type`` or ``start`` is not as above, or a positive family meets a negative strength.
        ConvergenceError
            If no finite strength maximises the likelihood (the attribute separates the choices).
        """
        if cov_type not in get_args(CovType):
            raise InvalidInputError(
                explain(
                    "cov_type",
                    got=repr(cov_type),
                    expected=f"one of {list(get_args(CovType))}",
                    hint="'hessian'",
                )
            )
        family, weights = self._family, self.data.weights
        point = self._fit_fixed()
        centre = family.centre(point.params[0])
        slope = self._spread_slope(centre)

        def individual(theta: torch.Tensor) -> torch.Tensor:
            return self.loglik(family.mixing(theta), integration)

        def total(theta: torch.Tensor) -> torch.Tensor:
            return weights * individual(theta)

        best = None
        for theta in self._starts(centre, start):
            least = float(theta[1]) - _LOG_FAR

            def fallen_back(at: torch.Tensor, loglik: float, least: float = least) -> bool:
                return slope <= 0.0 and float(at[1]) < least and loglik <= point.loglik

            best = maximize_loglik(total, theta, give_up=fallen_back)
            # a second start only where the first fell back to no heterogeneity though some must be better
            if best.loglik > point.loglik + _NO_GAIN or slope <= 0.0:
                break
        assert best is not None
        at_boundary = best.loglik <= point.loglik + _NO_GAIN
        if at_boundary:
            estimates = self._at_boundary(point, centre, slope, total, cov_type)
            loglik, mixing = point.loglik, dist.Delta(point.params[0])
        else:
            estimates = self._inside(best, individual, cov_type)
            loglik, mixing = best.loglik, family.mixing(best.params)
        if not estimates.converged:
            warnings.warn(estimates.message, ConvergenceWarning, stacklevel=2)

        natural = [f"{self.variable}.{name}" for name in family.names]
        moments = [f"{self.variable}.mean", f"{self.variable}.sd"]
        return MixedLogitResult(
            params=dict(zip(natural, estimates.natural.tolist(), strict=True)),
            std_errors=dict(zip(natural, standard_errors(estimates.covariance).tolist(), strict=True)),
            covariance=estimates.covariance,
            moments=dict(zip(moments, estimates.moments.tolist(), strict=True)),
            moment_std_errors=dict(
                zip(moments, standard_errors(estimates.moment_covariance).tolist(), strict=True)
            ),
            loglik=loglik,
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
            num_individuals=float(weights.sum()),
            num_situations=self.data.num_situations,
            iterations=best.iterations,
            evaluations=best.evaluations,
        )

    def _fixed(self, strength: torch.Tensor) -> torch.Tensor:
        return self.loglik(dist.Delta(strength[0]))

    def _fit_fixed(self) -> MaximumLikelihood:
        """The logit: one strength for all."""
        weights = self.data.weights
        point = maximize_loglik(lambda b: weights * self._fixed(b), torch.zeros(1, dtype=torch.float64))
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
        if self.random.positive and not strength > 0.0:
            raise InvalidInputError(
                explain(
                    f"random[{self.variable!r}]",
                    got=f"{self.random}, where a fixed strength would be {self.random.sign * strength:g}",
                    expected="a family whose sign the data support",
                    hint=f"Random({self.random.family!r}, sign={-self.random.sign}) or 'normal'",
                )
            )
        return point

    def _spread_slope(self, centre: torch.Tensor) -> float:
        """Derivative of the maximised log-likelihood in the squared spread at 0.

        With f_n the likelihood of individual n at one strength, E f_n = f_n + spread^2 Var(z)
        f_n'' / 2 + ...,
        so the derivative is Var(z) / 2 * sum_n (l_n'' + l_n'^2), l = log f: the score against neglected
        heterogeneity of Chesher (1984).
        """
        deviation = torch.zeros(self.data.num_individuals, dtype=torch.float64, requires_grad=True)
        loglik = self.loglik(dist.Delta(self._family.strength(centre, deviation)))
        (first,) = torch.autograd.grad(loglik.sum(), deviation, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), deviation)
        terms = self.data.weights * (second + first.detach() ** 2)
        return float(terms.sum()) * self._family.deviate_variance / 2

    def _starts(self, centre: torch.Tensor, start: Mapping[str, float] | None) -> list[torch.Tensor]:
        family = self._family
        given = self.random.start
        if start is not None:
            names = [f"{self.variable}.{name}" for name in family.names]
            if set(start) != set(names):
                raise InvalidInputError(
                    explain("start", got=list(start), expected=f"values for {names}", hint="start=None")
                )
            given = (start[names[0]], start[names[1]])
        if given is not None:
            return [family.theta(torch.tensor(given, dtype=torch.float64))]
        if family.positive:
            spread = 0.5
        else:  # half the fixed strength, or where that is nearly 0, a strength that moves utility by 1/2
            typical = float(self.data.attribute(self.variable)[self.data.available].square().mean().sqrt())
            spread = 0.5 * max(abs(float(centre)), 1.0 / typical)
        return [torch.stack([centre, centre.new_tensor(s).log()]) for s in (spread, spread / 10)]

    def _inside(
        self, best: MaximumLikelihood, individual: Callable[[torch.Tensor], torch.Tensor], cov_type: CovType
    ) -> _Estimates:
        family = self._family

        def moments(theta: torch.Tensor) -> torch.Tensor:
            mixing = family.mixing(theta)
            return torch.stack([self.random.sign * mixing.mean, mixing.stddev])

        covariance = self._covariance(best, individual, cov_type)
        natural, natural_covariance = delta_method(family.natural, best.params, covariance)
        moment, moment_covariance = delta_method(moments, best.params, covariance)
        known = bool(torch.isfinite(torch.cat([natural_covariance, moment_covariance])).all())
        return _Estimates(
            natural=natural,
            covariance=natural_covariance,
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
        total: Callable[[torch.Tensor], torch.Tensor],
        cov_type: CovType,
    ) -> _Estimates:
        """No heterogeneity: the logit's estimate and spread 0, in the coordinates (centre, spread).

        The log-likelihood is even in the spread, so its cross-derivative is 0 there and its second derivative
        is twice the slope in the squared spread. That may be close to 0, where a standard error from it would
        say nothing; the fall by 1/2, which one standard error means inside, is looked up instead.
        """
        family = self._family
        origin = torch.zeros_like(centre)
        to_centre, to_deviation = torch.autograd.functional.jacobian(family.strength, (centre, origin))
        variance = self._covariance(point, self._fixed, cov_type)[0, 0]
        curvature = centre.new_tensor(-2.0 * slope)
        noticed = self._noticed_spread(point.loglik, centre, total) if slope < 0.0 else float("nan")
        spread_variance = centre.new_tensor(noticed) ** 2
        natural = family.natural(torch.stack([centre, centre.new_tensor(float("-inf"))]))
        if bool(torch.isfinite(natural).all()):
            covariance = torch.stack([variance / to_centre**2, spread_variance]).diag()
        else:  # concentration and rate go to infinity
            covariance = torch.full((2,), float("inf"), dtype=torch.float64).diag()
        sd_variance = spread_variance * to_deviation**2 * family.deviate_variance
        converged = slope < 0.0 and bool(torch.isfinite(variance))
        return _Estimates(
            natural=natural,
            covariance=covariance,
            moments=torch.stack([self.random.sign * point.params[0], origin]),
            moment_covariance=torch.stack([variance, sd_variance]).diag(),
            converged=converged,
            gradient_norm=point.gradient_norm,
            eigenvalues=torch.stack([-point.hessian[0, 0] * to_centre**2, curvature]).sort().values,
            message=_BOUNDARY if converged else _LOST.format(slope),
        )

    def _noticed_spread(
        self, top: float, centre: torch.Tensor, total: Callable[[torch.Tensor], torch.Tensor]
    ) -> float:
        """Spread at which the log-likelihood, the centre held, has fallen by 1/2; infinite if there is none."""

        @torch.no_grad()
        def fall(log_spread: float) -> float:
            theta = torch.stack([centre, centre.new_tensor(log_spread)])
            return top - 0.5 - float(total(theta).sum())

        start = float(self._starts(centre, None)[0][1])
        bracket = (start - 10.0, start + 5.0)
        if fall(bracket[0]) > 0.0 or not fall(bracket[1]) > 0.0:
            return float("inf")
        return math.exp(brentq(fall, *bracket, xtol=1e-3))

    def _covariance(
        self,
        best: MaximumLikelihood,
        individual: Callable[[torch.Tensor], torch.Tensor],
        cov_type: CovType,
    ) -> torch.Tensor:
        try:
            if cov_type == "hessian":
                return hessian_covariance(best.hessian)
            scores = individual_scores(individual, best.params)
            if cov_type == "bhhh":
                return bhhh_covariance(scores, self.data.weights)
            return robust_covariance(best.hessian, scores, self.data.weights)
        except ConvergenceError:  # told by the result: not converged, standard errors unknown
            return torch.full_like(best.hessian, float("nan"))

    def _integration_report(self, mixing: TorchDistribution, rule: Any) -> IntegrationReport:
        """The rule by name, and its log-likelihood against quadrature with at least twice the usual nodes."""
        nodes = rule.num_nodes if isinstance(rule, Quadrature) else None
        reference = Quadrature(2 * max(nodes or 0, _USUAL_NODES))
        if rule is None:
            rule = ClosedForm()
            try:
                self.loglik(mixing, rule)
            except IntegrationError:
                rule = Quadrature()
        weights = self.data.weights
        with torch.no_grad():
            error = (weights * (self.loglik(mixing, reference) - self.loglik(mixing, rule))).sum()
        return IntegrationReport(rule=repr(rule), error=float(error), reference=repr(reference))
