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
    """

    rule: str
    error: float
    reference: str


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


@dataclass(frozen=True, repr=False)
class MixedLogitResult:
    """Maximum-likelihood estimates of a mixed logit with one random coefficient.

    Attributes
    ----------
    params, std_errors : dict of str to float
        Natural parameters, ``"<variable>.<parameter>"``. Standard errors are NaN only where ``converged`` is
        False.
    covariance : torch.Tensor, shape (P, P)
        Of ``params``, in their order.
    moments, moment_std_errors : dict of str to float
        ``"<variable>.mean"`` and ``"<variable>.sd"`` of the coefficient, its sign included.
    mixing : pyro.distributions.TorchDistribution
        The fitted distribution of the strength, before the sign; ``Delta`` at the boundary.
    loglik : float
    converged : bool
    gradient_norm : float
        Remaining Newton step in standard errors.
    hessian_eigenvalues : torch.Tensor, shape (P,)
        Of minus the Hessian in (centre, log spread); in (centre, spread) at the boundary.
    at_boundary : bool
        The likelihood is largest without heterogeneity. The spread is then 0 and in place of its standard
        error stands the spread at which the log-likelihood has fallen by 1/2 (the centre held): what the
        data would notice, not the width of a normal distribution. The gamma's concentration and rate are
        infinite there, and so are their standard errors; its moments are finite.
    message : str
        The grounds for ``converged``.
    fixed : FixedStrength
        The same data with one strength for all.
    integration : IntegrationReport
    cov_type : str
    specification : str
    not_in_model : tuple of str
        Attributes of the data without a coefficient.
    num_individuals : float
        Frequencies counted.
    num_situations : int
    iterations, evaluations : int
    """

    params: dict[str, float]
    std_errors: dict[str, float]
    covariance: torch.Tensor
    moments: dict[str, float]
    moment_std_errors: dict[str, float]
    mixing: TorchDistribution
    loglik: float
    converged: bool
    gradient_norm: float
    hessian_eigenvalues: torch.Tensor
    at_boundary: bool
    message: str
    fixed: FixedStrength
    integration: IntegrationReport
    cov_type: str
    specification: str
    not_in_model: tuple[str, ...]
    num_individuals: float
    num_situations: int
    iterations: int
    evaluations: int

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
            f"Mixed logit, {self.specification}: "
            f"{self.num_individuals:g} individuals, {self.num_situations} situations",
            f"{'':{width}}{'estimate':>12}{'std. error':>12}  ({self.cov_type})",
            *(f"{name:{width}}{value:12.6g}{error:12.4g}{mark}" for name, value, error, mark in rows),
            f"{'fixed strength':{width}}{self.fixed.estimate:12.6g}{self.fixed.std_error:12.4g}",
            *([f"† {BOUNDARY_ERROR}"] if self.at_boundary else []),
            *([f"not in the model: {', '.join(self.not_in_model)}"] if self.not_in_model else []),
            f"log-likelihood {self.loglik:.6f}; with a fixed strength {self.fixed.loglik:.6f}",
            f"{'converged' if self.converged else 'NOT converged'}: {self.message}",
            f"integration: {self.integration.rule}, error of the log-likelihood {self.integration.error:.1e} "
            f"(against {self.integration.reference})",
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary
