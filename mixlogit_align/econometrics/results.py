"""Estimates with their evidence."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from typing import TYPE_CHECKING, Self

import torch
from pyro.distributions import TorchDistribution
from scipy.stats import norm

from mixlogit_align.econometrics.comparison import (
    LikelihoodRatioTest,
    WaldTest,
    likelihood_ratio_test,
    ratio_test,
    wald_test,
)
from mixlogit_align.econometrics.rendering import BOUNDARY_ERROR, Summary, Table, number, probability
from mixlogit_align.econometrics.storage import not_a_result, read, write
from mixlogit_align.errors import IntegrationWarning, InvalidInputError, explain

if TYPE_CHECKING:
    import pandas as pd

# Draws are too few where they leave an estimate uncertain by more than this, in standard errors.
_COARSE = 0.5


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

    What follows from them is in functions of the model and the result, which knows no data: ``predict``,
    ``elasticities``, ``marginal_effects``, ``willingness_to_pay``, ``consumer_surplus`` and ``individual_posteriors``.

    N individuals, P parameters.

    Attributes
    ----------
    params, std_errors : dict of str to float
        Natural parameters: ``"price"`` of a fixed coefficient, ``"time.loc"`` and ``"time.scale"`` of a random one.
        Standard errors are NaN only where ``converged`` is False.
    cov : torch.Tensor, shape (P, P)
        Of ``params``, in their order; zero in the rows of held ones.
    moments, moment_std_errors : dict of str to float
        ``"time.mean"`` and ``"time.sd"`` of every random coefficient, transformed and its sign included, and
        ``"cor.time.cost"`` where correlated, errors by the delta method. In WTP space, of willingness to pay; where
        means depend on covariates, at the covariates' mean; without the factor of scale heterogeneity, of mean 1.
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
        Standard deviation over fresh draws of each parameter, and of ``"loglik"``; with a rule without draws, how far
        they move with more nodes. Empty where this was not computed.
    simulation_bias : dict of str to float
        How far parameters and ``"loglik"`` move with half the draws. An error that falls with 1 / K, as that of pseudo
        draws does, is as large; one that falls faster is smaller. Empty with a rule without draws, or not computed.
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
    simulation_bias: dict[str, float] = field(default_factory=dict)
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
    def n_params(self) -> int:
        """Parameters that were estimated."""
        return len(self.params) - len(self.held)

    @property
    def without_std_error(self) -> tuple[str, ...]:
        """Parameters and moments whose ``std_errors`` entry is the noticed spread: scales and sds of 0."""
        if not self.at_boundary:
            return ()
        spreads = {name: self.params[name] for name in self.scales}
        spreads |= {name: value for name, value in self.moments.items() if name.endswith(".sd")}
        return tuple(name for name, value in spreads.items() if value == 0.0 and name not in self.held)

    @property
    def zstats(self) -> dict[str, float]:
        """Estimates in standard errors; NaN where there is no standard error."""
        known = {
            name: error > 0.0 and name not in self.held and name not in self.without_std_error
            for name, error in self.std_errors.items()
        }
        return {name: value / self.std_errors[name] if known[name] else math.nan for name, value in self.params.items()}

    @property
    def pvalues(self) -> dict[str, float]:
        """Two-sided, normal, of the hypothesis that a parameter is 0.

        They do not hold for a scale, whose 0 lies on the boundary: there :meth:`likelihood_ratio_test`.
        """
        return {name: 2.0 * float(norm.sf(abs(z))) for name, z in self.zstats.items()}

    @property
    def simulation_error(self) -> dict[str, float]:
        """How uncertain draws leave each estimate, ``sqrt(sd^2 + bias^2)`` of the simulation in standard errors.

        Where this is not small, take more draws. Empty where it was not computed.
        """
        return {
            name: math.hypot(self.simulation_sd[name], self.simulation_bias.get(name, 0.0)) / self.std_errors[name]
            for name in self.params
            if name in self.simulation_sd and self.std_errors[name] > 0.0
        }

    @property
    def coarse(self) -> tuple[str, ...]:
        """Parameters that draws leave uncertain by more than half a standard error."""
        return tuple(name for name, error in self.simulation_error.items() if error > _COARSE)

    def conf_int(self, level: float = 0.95) -> pd.DataFrame:
        """Normal confidence intervals of the parameters.

        Symmetric in the parameters as reported: the lower end of a small scale may fall below 0.

        Parameters
        ----------
        level : float
            Between 0 and 1.

        Returns
        -------
        pandas.DataFrame
            Columns ``lower``, ``upper``; NaN where there is no standard error.

        Raises
        ------
        InvalidInputError
            If the level is not between 0 and 1.
        """
        import pandas as pd

        if not 0.0 < level < 1.0:
            raise InvalidInputError(explain("level", got=level, expected="between 0 and 1", hint="0.95"))
        width = float(norm.isf((1.0 - level) / 2.0))
        # a missing z marks a missing standard error
        half = {name: width * self.std_errors[name] + 0.0 * z for name, z in self.zstats.items()}
        ends = [(value - half[name], value + half[name]) for name, value in self.params.items()]
        return pd.DataFrame(ends, index=list(self.params), columns=["lower", "upper"])

    @property
    def aic(self) -> float:
        """``2 n_params - 2 loglik`` (Akaike)."""
        return 2.0 * self.n_params - 2.0 * self.loglik

    @property
    def bic(self) -> float:
        """``n_params log(nobs) - 2 loglik`` (Schwarz); counts choice situations, not individuals."""
        return self.n_params * math.log(self.nobs) - 2.0 * self.loglik

    @property
    def rho_squared(self) -> float:
        """``1 - loglik / null_loglik`` (McFadden)."""
        return 1.0 - self.loglik / self.null_loglik

    @property
    def adjusted_rho_squared(self) -> float:
        """``1 - (loglik - n_params) / null_loglik``."""
        return 1.0 - (self.loglik - self.n_params) / self.null_loglik

    def to_frame(self) -> pd.DataFrame:
        """One row a parameter.

        Returns
        -------
        pandas.DataFrame
            Columns ``estimate``, ``std_error``, ``z``, ``pvalue``, ``lower``, ``upper`` (95%), ``simulation_sd``,
            ``simulation_bias``; NaN where there is none.
        """
        import pandas as pd

        columns = {
            "estimate": self.params,
            "std_error": self.std_errors,
            "z": self.zstats,
            "pvalue": self.pvalues,
            **self.conf_int(),
            "simulation_sd": {name: self.simulation_sd.get(name, math.nan) for name in self.params},
            "simulation_bias": {name: self.simulation_bias.get(name, math.nan) for name in self.params},
        }
        return pd.DataFrame(columns, index=list(self.params))

    def likelihood_ratio_test(self, restricted: MixedLogitResult | None = None) -> LikelihoodRatioTest:
        """Test a smaller model inside this one, of the same data.

        A smaller model without the spread of a coefficient sets a scale to 0, the boundary of what it may be. The
        null distribution is then a mixture of chi-squares: with one scale and q other restrictions
        ``chi2(q)/2 + chi2(q+1)/2`` (Self and Liang 1987; Stram and Lee 1994); with several scales of uncorrelated
        coefficients binomial weights, which are right where the information about the scales is diagonal and
        approximate elsewhere. Where a whole spread of a correlated block is tested, the chi-square with all degrees
        of freedom is taken: conservative, its p-value is no smaller than the right one.

        Parameters are matched by name; a fixed ``"time"`` is the random ``"time.loc"`` without spread, an
        uncorrelated ``"time.scale"`` is ``"chol.time.time"``. Names cannot tell families: the same random coefficient
        must have the same one in both models. A positive family never reaches a coefficient of 0, so leaving such a
        coefficient out altogether gives no model inside.

        Parameters
        ----------
        restricted : MixedLogitResult, optional
            None: the model with one strength for all, ``fixed``.

        Returns
        -------
        LikelihoodRatioTest

        Warns
        -----
        ConvergenceWarning
            If either model did not converge.

        Raises
        ------
        InvalidInputError
            If the models are not nested, or not of the same data, or there is no ``fixed``.
        ConvergenceError
            If the larger model is less likely, by more than rounding and both integration errors.
        """
        if restricted is not None:
            return likelihood_ratio_test(self, restricted)
        if self.fixed is None:
            raise InvalidInputError(
                explain(
                    "restricted",
                    got="None, where several coefficients are in the model",
                    expected="the result of a smaller model",
                    hint="fitting one",
                )
            )
        spread = next(name for name in self.moments if name.endswith(".sd"))
        return ratio_test(self.loglik, self.fixed.loglik, abs(self.integration.error), (), (spread,))

    def wald_test(
        self,
        restrictions: str | Sequence[str] | torch.Tensor,
        values: float | Sequence[float] | torch.Tensor = 0.0,
    ) -> WaldTest:
        """Test linear restrictions on the parameters with their covariance, jointly.

        Not for a scale against 0: that hypothesis lies on the boundary, where the statistic is no chi-square; there
        :meth:`likelihood_ratio_test`.

        Parameters
        ----------
        restrictions : str, sequence of str, or torch.Tensor of shape (Q, P) or (P,)
            ``"time.loc = price"``, ``["2*time.loc - cost.loc = 1", "price = 0"]``, or the matrix R of
            ``R params = values`` in the order of ``params``.
        values : float, sequence of float, or torch.Tensor of shape (Q,)
            Right-hand sides of a matrix, or of texts without ``=``.

        Returns
        -------
        WaldTest

        Raises
        ------
        InvalidInputError
            If a restriction cannot be read, follows from the others, or is about parameters without a variance.
        """
        return wald_test(self, restrictions, values)

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to one file, without pickle; :meth:`load` reads it back.

        Tensors are stored in the safetensors format, all else as JSON in its header.

        Parameters
        ----------
        path : path
            Overwritten.

        Raises
        ------
        InvalidInputError
            If the mixing distribution is of a family that cannot be rebuilt.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "mixing"}
        values["fixed"] = self.fixed and asdict(self.fixed)
        values["integration"] = asdict(self.integration)
        values["optima"] = [asdict(optimum) for optimum in self.optima]
        write(path, values, self.mixing)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a result that :meth:`save` wrote.

        Parameters
        ----------
        path : path

        Returns
        -------
        MixedLogitResult

        Raises
        ------
        InvalidInputError
            If there is no such file, or it is damaged, foreign or of another version.
        """
        values, mixing = read(path)
        try:
            values["fixed"] = values["fixed"] and FixedStrength(**values["fixed"])
            values["integration"] = IntegrationReport(**values["integration"])
            values["optima"] = tuple(Optimum(**optimum) for optimum in values["optima"])
            values |= {name: tuple(values[name]) for name in ("not_in_model", "scales")}
            return cls(mixing=mixing, **values)
        except (KeyError, TypeError) as error:
            raise not_a_result(path, f"other fields ({error})") from error

    @property
    def summary(self) -> Summary:
        """Table of estimates and evidence, printed as text; ``as_html()``, ``as_latex()``.

        A dagger marks what is no standard error.
        """
        simulated = {"sd": self.simulation_sd, "bias": self.simulation_bias}
        simulated = {what: values for what, values in simulated.items() if values}
        columns = ("", "estimate", "std. error", "z", "p", *(f"simulation {what}" for what in simulated))
        zstats, pvalues = self.zstats, self.pvalues

        def row(name: str, value: float, error: float) -> tuple[str, ...]:
            mark = "†" if name in self.without_std_error else " " if self.without_std_error else ""
            cells = (
                name,
                number(value),
                "held" if name in self.held else f"{number(error, 4)}{mark}",
                f"{zstats[name]:.2f}" if not math.isnan(zstats.get(name, math.nan)) else "",
                probability(pvalues.get(name, math.nan)),
            )
            return (*cells, *(number(values.get(name, math.nan), 2) for values in simulated.values()))

        moments = [row(name, value, self.moment_std_errors[name]) for name, value in self.moments.items()]
        if self.fixed:
            moments.append(row("fixed strength", self.fixed.estimate, self.fixed.std_error))
        table = Table(
            title=f"Mixed logit, {self.specification}: {self.n_individuals:g} individuals, {self.nobs:g} situations",
            columns=columns,
            blocks=(
                tuple(row(name, value, self.std_errors[name]) for name, value in self.params.items()),
                tuple(moments),
            ),
            foot=tuple(self._foot()),
        )
        return Summary(table)

    def _foot(self) -> list[str]:
        smallest = min(self.hessian_eigenvalues.tolist(), default=math.nan)
        fixed = f"; with a fixed strength {self.fixed.loglik:.6f}" if self.fixed else ""
        ess = self.integration.ess
        nearly = self.at_boundary and not self.without_std_error
        lines = [
            *([f"† {BOUNDARY_ERROR}"] if self.without_std_error else []),
            *(["at the boundary: a scale is 0 but for rounding"] if nearly else []),
            *([f"not in the model: {', '.join(self.not_in_model)}"] if self.not_in_model else []),
            f"log-likelihood {self.loglik:.6f}; with equal shares {self.null_loglik:.6f}{fixed}",
            f"rho-squared {self.rho_squared:.4f}, adjusted {self.adjusted_rho_squared:.4f}; "
            f"AIC {self.aic:.3f}, BIC {self.bic:.3f}; {self.n_params} parameters estimated",
            f"covariance: {self.cov_type}",
            f"{'converged' if self.converged else 'NOT converged'}: {self.message}",
            f"gradient norm {self.gradient_norm:.1e}, smallest eigenvalue of minus the Hessian {smallest:.3g}; "
            f"{self.iterations} iterations, {self.evaluations} evaluations",
            f"integration: {self.integration.rule}, error of the log-likelihood {self.integration.error:.1e} "
            f"(against {self.integration.reference})",
        ]
        if ess is not None:
            lines.append(f"smallest effective sample size {ess:.1f}")
        if "loglik" in self.simulation_sd:
            bias = f", bias {self.simulation_bias['loglik']:.2g}" if self.simulation_bias else ""
            lines.append(f"simulation sd of the log-likelihood {self.simulation_sd['loglik']:.2g}{bias}")
        if self.coarse:
            lines.append(f"TOO FEW DRAWS: {self.too_coarse}")
        if self.optima:
            ends = (f"{end.loglik:.4f}" + ("" if end.converged else " (not converged)") for end in self.optima)
            lines.append(f"log-likelihoods from {len(self.optima)} starts: {', '.join(ends)}")
        return lines

    def told_if_coarse(self) -> Self:
        """Itself, with an IntegrationWarning, two calls up, where draws are too few."""
        if self.coarse:
            warnings.warn(
                f"too few draws in {self.integration.rule}: {self.too_coarse}. Try integration= with more draws, or "
                "fewer random coefficients",
                IntegrationWarning,
                stacklevel=3,
            )
        return self

    @property
    def too_coarse(self) -> str:
        """What draws leave uncertain, in words; empty if nothing."""
        if not self.coarse:
            return ""
        worst = max(self.coarse, key=self.simulation_error.__getitem__)
        others = f" (and {len(self.coarse) - 1} more)" if len(self.coarse) > 1 else ""
        return f"they leave {worst}{others} uncertain by {self.simulation_error[worst]:.2g} standard errors"

    def __repr__(self) -> str:
        return self.summary
