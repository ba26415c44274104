"""Estimates with their evidence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro.distributions import TorchDistribution

# What stands in place of the standard error of a spread of 0.
BOUNDARY_ERROR = "no standard error, but the spread at which the log-likelihood has fallen by 1/2"


@dataclass(frozen=True)
class IntegrationReport:
    """Which rule integrated the strength out, and how far its log-likelihood may be off.

    Attributes
    ----------
    rule : str
    error : float
        Log-likelihood under ``reference`` less that under ``rule``, at the estimates.
    reference : str
        The finer rule.
    ess : float, optional
        Effective sample size of importance weights, the smallest over individuals; None for other rules.
    """

    rule: str
    error: float
    reference: str
    ess: float | None = None


@dataclass(frozen=True)
class Optimum:
    """Where one start of several ended.

    Attributes
    ----------
    params : dict of str to float
        Natural parameters.
    loglik : float
    converged : bool
    """

    params: dict[str, float]
    loglik: float
    converged: bool


@dataclass(frozen=True)
class FixedStrength:
    """The model without heterogeneity, a logit.

    Attributes
    ----------
    estimate, std_error, loglik : float
    """

    estimate: float
    std_error: float
    loglik: float


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class MixedLogitResult:
    """Maximum-likelihood estimates of a mixed logit, with their evidence.

    N individuals, P parameters.

    Attributes
    ----------
    params, std_errors : dict of str to float
        Natural parameters: ``"price"`` of a fixed coefficient, ``"time.loc"`` and ``"time.scale"`` of a random one.
        Standard errors are NaN only where ``converged`` is False.
    cov : torch.Tensor, shape (P, P)
        Of ``params``, in their order; zero in the rows of held ones.
    moments, moment_std_errors : dict of str to float
        ``"time.mean"`` and ``"time.sd"`` of every random coefficient, its sign included; ``"cor.time.cost"`` where
        correlated.
    loglik : float
    null_loglik : float
        With equal shares: no coefficient at all.
    converged : bool
    gradient_norm : float
        Remaining Newton step in standard errors.
    hessian_eigenvalues : torch.Tensor, shape (P,)
        Of minus the Hessian in the coordinates of estimation; in (centre, spread) at the boundary of a scalar
        strength.
    message : str
        The grounds for ``converged``.
    at_boundary : bool
        The likelihood is largest without heterogeneity of some coefficient. Its spread is then 0 and in place of
        its standard error stands the spread at which the log-likelihood has fallen by 1/2 (the centre held): what
        the data would notice, not the width of a normal distribution. The gamma's concentration and rate are
        infinite there, and so are their standard errors; its moments are finite.
    mixing : pyro.distributions.TorchDistribution or None
        Where one strength is all there is: its fitted distribution, before the sign; ``Delta`` at the boundary.
    fixed : FixedStrength or None
        The same data with one strength for all, where one strength is all there is.
    integration : IntegrationReport
    simulation_sd : dict of str to float
        Standard deviation over fresh draws of each parameter, and of ``"loglik"``; empty where the rule draws
        nothing.
    cov_type : str
    specification : str
    not_in_model : tuple of str
        Attributes of the data without a coefficient.
    held : dict of str to float
        Parameters that were not estimated.
    scales : tuple of str
        Parameters bounded by 0 because they are scales.
    n_individuals, nobs : float
        Individuals and choice situations, frequencies counted.
    iterations, evaluations : int
    hessian : torch.Tensor, shape (P, P)
        Of the log-likelihood, in ``params``.
    scores : torch.Tensor, shape (N, P)
        One row an individual, in ``params``; frequencies not counted.
    weights : torch.Tensor, shape (N,)
        Frequencies.
    optima : tuple of Optimum
        Where every start ended, if there were several.
    """

    params: dict[str, float]
    std_errors: dict[str, float]
    cov: torch.Tensor
    moments: dict[str, float]
    moment_std_errors: dict[str, float]
    loglik: float
    null_loglik: float
    converged: bool
    gradient_norm: float
    hessian_eigenvalues: torch.Tensor
    message: str
    at_boundary: bool
    mixing: TorchDistribution | None
    fixed: FixedStrength | None
    integration: IntegrationReport
    simulation_sd: dict[str, float]
    cov_type: str
    specification: str
    not_in_model: tuple[str, ...]
    held: dict[str, float]
    scales: tuple[str, ...]
    n_individuals: float
    nobs: float
    iterations: int
    evaluations: int
    hessian: torch.Tensor
    scores: torch.Tensor
    weights: torch.Tensor
    optima: tuple[Optimum, ...]

    @property
    def summary(self) -> str:
        """Table of estimates and evidence; a dagger marks what is no standard error."""
        spreads = (".scale", ".sd") if self.at_boundary else ()
        rows = [
            (name, value, errors[name], "†" if name.endswith(spreads) else "")
            for values, errors in (
                (self.params, self.std_errors),
                (self.moments, self.moment_std_errors),
            )
            for name, value in values.items()
        ]
        width = max(len("fixed strength"), *(len(name) for name, *_ in rows)) + 2
        lines = [
            f"Mixed logit, {self.specification}: {self.n_individuals:g} individuals, {self.nobs:g} situations",
            f"{'':{width}}{'estimate':>12}{'std. error':>12}  ({self.cov_type})",
            *(f"{name:{width}}{value:12.6g}{error:12.4g}{mark}" for name, value, error, mark in rows),
            *(
                [f"{'fixed strength':{width}}{self.fixed.estimate:12.6g}{self.fixed.std_error:12.4g}"]
                if self.fixed
                else []
            ),
            *([f"† {BOUNDARY_ERROR}"] if self.at_boundary else []),
            *([f"not in the model: {', '.join(self.not_in_model)}"] if self.not_in_model else []),
            f"log-likelihood {self.loglik:.6f}"
            + (f"; with a fixed strength {self.fixed.loglik:.6f}" if self.fixed else ""),
            f"{'converged' if self.converged else 'NOT converged'}: {self.message}",
            f"integration: {self.integration.rule}, error of the log-likelihood {self.integration.error:.1e} "
            f"(against {self.integration.reference})",
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary
