"""Results set against each other and against hypotheses: likelihood ratios, Wald tests, tables side by side."""

# P parameters, Q restrictions.

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch

from mixlogit_align.econometrics.rendering import BOUNDARY_ERROR, Summary, Table, number
from mixlogit_align.econometrics.restrictions import read_restrictions
from mixlogit_align.errors import ConvergenceError, ConvergenceWarning, InvalidInputError, explain
from mixlogit_align.inference import likelihood_ratio_pvalue, mixture_weights, wald

if TYPE_CHECKING:
    import pandas as pd

    from mixlogit_align.econometrics.results import MixedLogitResult

# Twice the difference of two log-likelihoods below this is rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class LikelihoodRatioTest:
    """Twice the difference of two maximised log-likelihoods.

    Attributes
    ----------
    statistic : float
    dof : int
        Restrictions.
    pvalue : float
    weights : dict of int to float
        Of the chi-squares in the null distribution, by degrees of freedom.
    tested : tuple of str
        What the smaller model restricts.
    error : float
        How far integration may have moved the statistic: twice the integration errors of both models.
    note : str
        How the null distribution was chosen.
    """

    statistic: float
    dof: int
    pvalue: float
    weights: dict[int, float]
    tested: tuple[str, ...]
    error: float
    note: str

    def __str__(self) -> str:
        mixture = " + ".join((f"{w:g} " if w != 1 else "") + f"chi2({dof})" for dof, w in self.weights.items())
        return (
            f"likelihood ratio {self.statistic:.4f} (integration error up to {self.error:.1e}), "
            f"null distribution {mixture}, p-value {self.pvalue:.4g}\n"
            f"tested: {', '.join(self.tested)}\n{self.note}"
        )


@dataclass(frozen=True)
class WaldTest:
    """Linear restrictions against the estimates and their covariance.

    Attributes
    ----------
    statistic : float
    dof : int
        Restrictions.
    pvalue : float
        Under chi-square.
    cov_type : str
    """

    statistic: float
    dof: int
    pvalue: float
    cov_type: str

    def __str__(self) -> str:
        return f"Wald statistic {self.statistic:.4f}, chi2({self.dof}), p-value {self.pvalue:.4g} ({self.cov_type})"


def likelihood_ratio_test(unrestricted: MixedLogitResult, restricted: MixedLogitResult) -> LikelihoodRatioTest:
    """Test the smaller of two nested models; see :meth:`MixedLogitResult.likelihood_ratio_test`.

    Parameters
    ----------
    unrestricted, restricted : MixedLogitResult

    Returns
    -------
    LikelihoodRatioTest
    """
    data = [(r.nobs, r.n_individuals, r.null_loglik) for r in (restricted, unrestricted)]
    if not all(math.isclose(one, other, rel_tol=1e-9) for one, other in zip(*data, strict=True)):
        raise InvalidInputError(
            explain(
                "restricted",
                got=f"situations, individuals and null log-likelihood {data[0]}, and here {data[1]}",
                expected="both models of the same choices",
                hint="the same ChoiceData for both",
            )
        )
    for name, result in (("restricted", restricted), ("unrestricted", unrestricted)):
        if not result.converged:
            warnings.warn(f"the {name} model did not converge: {result.message}", ConvergenceWarning, stacklevel=3)
    interior, boundary = _tested(unrestricted, restricted)
    off_by = abs(unrestricted.integration.error) + abs(restricted.integration.error)
    return ratio_test(unrestricted.loglik, restricted.loglik, off_by, interior, boundary)


def ratio_test(
    loglik: float, restricted_loglik: float, off_by: float, interior: tuple[str, ...], boundary: tuple[str, ...]
) -> LikelihoodRatioTest:
    """The test of two log-likelihoods, the larger model's first.

    Parameters
    ----------
    loglik, restricted_loglik : float
    off_by : float
        How far the difference may be off by integration.
    interior, boundary : tuple of str
        The tested parameters; ``boundary``: restricted to the boundary.

    Returns
    -------
    LikelihoodRatioTest

    Raises
    ------
    ConvergenceError
        If the larger model is less likely.
    """
    statistic, error = 2.0 * (loglik - restricted_loglik), 2.0 * off_by
    if statistic < -error - _ROUNDING:
        raise ConvergenceError(
            explain(
                "likelihood ratio",
                got=f"{statistic:.4g}: log-likelihood {loglik:.6f} of the larger model, {restricted_loglik:.6f} "
                "of the smaller",
                expected="the larger model at least as likely, since it holds the smaller",
                hint="fitting the larger model, which did not reach its maximum, from the estimates of the smaller or "
                "with num_starts=10, and the same integration rule for both",
            )
        )
    tested = interior + boundary
    if boundary and any(name.startswith("chol.") for name in tested):
        weights = {len(tested): 1.0}
        note = (
            "conservative: a whole spread of correlated coefficients is tested, and its covariances vanish with it; "
            "the p-value is no smaller than the right one"
        )
    else:
        weights = mixture_weights(len(interior), len(boundary))
        note = f"{', '.join(boundary)} on the boundary" if boundary else "nothing on the boundary"
        if len(boundary) > 1:
            note += "; binomial weights, right where the information about them is diagonal"
    statistic = max(statistic, 0.0)
    return LikelihoodRatioTest(
        statistic, len(tested), likelihood_ratio_pvalue(statistic, weights), weights, tested, error, note
    )


def _tested(unrestricted: MixedLogitResult, restricted: MixedLogitResult) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Parameters of the larger model that the smaller one fixes: in the interior, and on the boundary."""
    partner = {_counterpart(name, unrestricted.params): name for name in restricted.params}
    # what the smaller model has and the larger has not must be 0, and what the larger holds must be held alike
    wrong = [
        name
        for name in restricted.params
        if _counterpart(name, unrestricted.params) not in unrestricted.params and restricted.held.get(name) != 0.0
    ]
    interior: list[str] = []
    boundary: list[str] = []
    for name in unrestricted.params:
        theirs = partner.get(name)
        value = 0.0 if theirs is None else restricted.held.get(theirs)  # None: estimated there, too
        if name in unrestricted.held:
            if value != unrestricted.held[name]:
                wrong.append(name)
        elif value is not None:
            on_boundary = name in unrestricted.scales and value == 0.0
            # a gamma loses its spread as the rate grows
            on_boundary |= name.endswith(".rate") and name.removesuffix(".rate") in restricted.params
            (boundary if on_boundary else interior).append(name)
    if wrong or not interior + boundary:
        raise InvalidInputError(
            explain(
                "restricted",
                got=f"parameters {list(restricted.params)} (held: {restricted.held})",
                expected=f"a model inside that of {list(unrestricted.params)} (held: {unrestricted.held}), and smaller",
                hint=f"the same coefficients less some; {wrong} do not fit" if wrong else "a smaller model",
            )
        )
    return tuple(interior), tuple(boundary)


def _counterpart(name: str, names: dict[str, float]) -> str:
    """What a parameter of the smaller model is called in the larger one."""
    variable, _, suffix = name.rpartition(".")
    candidates = [name, f"{name}.loc", f"{name}.concentration"]
    if suffix == "scale":
        candidates.append(f"chol.{variable}.{variable}")
    return next((candidate for candidate in candidates if candidate in names), name)


def wald_test(
    result: MixedLogitResult,
    restrictions: str | Sequence[str] | torch.Tensor,
    values: float | Sequence[float] | torch.Tensor = 0.0,
) -> WaldTest:
    """Test linear restrictions; see :meth:`MixedLogitResult.wald_test`.

    Parameters
    ----------
    result : MixedLogitResult
    restrictions : str, sequence of str, or torch.Tensor of shape (Q, P) or (P,)
    values : float, sequence of float, or torch.Tensor of shape (Q,)

    Returns
    -------
    WaldTest
    """
    right = torch.as_tensor(values, dtype=torch.float64)
    if isinstance(restrictions, torch.Tensor):
        matrix = torch.atleast_2d(restrictions.to(torch.float64))
    else:
        texts = [restrictions] if isinstance(restrictions, str) else list(restrictions)
        if bool((right != 0.0).any()) and any("=" in text for text in texts):
            raise InvalidInputError(
                explain(
                    "values",
                    got=f"{values} beside restrictions with '='",
                    expected="the right-hand sides in one place",
                    hint="leaving values out",
                )
            )
        matrix, constants = read_restrictions(texts, list(result.params))
        right = constants + right
    right = right.expand(len(matrix)) if right.ndim == 0 else right
    estimates = torch.tensor(list(result.params.values()), dtype=torch.float64)
    return WaldTest(*wald(estimates, result.cov, matrix, right), cov_type=result.cov_type)


class Comparison(Summary):
    """Estimates of several models side by side; prints as text.

    Parameters
    ----------
    results : sequence of MixedLogitResult
    names : sequence of str
    """

    __slots__ = ("names", "results")

    results: tuple[MixedLogitResult, ...]
    names: tuple[str, ...]

    def __new__(cls, results: Sequence[MixedLogitResult], names: Sequence[str]) -> Self:
        """The table of all parameters and moments of all models."""
        data = {(result.nobs, result.n_individuals) for result in results}
        marked = any(result.without_std_error for result in results)
        blocks = [
            tuple((name, *(_cell(result, name) for result in results)) for name in rows)
            for rows in (_names([r.params for r in results]), _names([r.moments for r in results]))
        ]
        statistics = (
            *((label, *map(_statistic_cell, values)) for label, values in _statistics(results).items()),
            ("covariance", *(result.cov_type for result in results)),
        )
        foot = (
            *(f"{name}: {result.specification}" for name, result in zip(names, results, strict=True)),
            "standard errors in parentheses",
            *([f"† {BOUNDARY_ERROR}"] if marked else []),
            *(["not the same data: log-likelihoods and criteria do not compare"] if len(data) > 1 else []),
        )
        table = Table("Mixed logit models", ("", *names), (*blocks, statistics), foot)
        self = super().__new__(cls, table)
        self.results, self.names = tuple(results), tuple(names)
        return self

    def __reduce__(self) -> tuple[type[Comparison], tuple[object, object]]:
        return type(self), (self.results, self.names)

    def to_frame(self) -> pd.DataFrame:
        """Numbers: parameters, moments, statistics, by (model, "estimate" or "std_error"); NaN where there is none."""
        import pandas as pd

        statistics = _statistics(self.results)
        rows = [*_names([r.params for r in self.results]), *_names([r.moments for r in self.results]), *statistics]
        columns = {}
        for i, (name, result) in enumerate(zip(self.names, self.results, strict=True)):
            below = {label: float(values[i]) for label, values in statistics.items()}
            errors = result.std_errors | dict.fromkeys(result.held, math.nan) | result.moment_std_errors
            columns[name, "estimate"] = result.params | result.moments | below
            columns[name, "std_error"] = errors
        return pd.DataFrame({key: pd.Series(values, dtype=float) for key, values in columns.items()}, index=rows)


def compare(results: Sequence[MixedLogitResult], names: Sequence[str] | None = None) -> Comparison:
    """Several models side by side.

    Parameters
    ----------
    results : sequence of MixedLogitResult
    names : sequence of str, optional
        Their headings; None: (1), (2), ...

    Returns
    -------
    Comparison
        Prints as text; ``as_html()``, ``as_latex()``, ``to_frame()``. Every parameter of every model has a row.

    Raises
    ------
    InvalidInputError
        If there is no result, or not one distinct name each.
    """
    results = list(results)
    headings = [f"({i})" for i in range(1, len(results) + 1)] if names is None else list(names)
    if not results or len(headings) != len(results) or len(set(headings)) != len(headings):
        raise InvalidInputError(
            explain(
                "compare",
                got=f"{len(results)} results and names {headings}",
                expected="one result or more, and one distinct name each",
                hint="names=None",
            )
        )
    return Comparison(results, headings)


def _names(estimates: Sequence[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for one in estimates for name in one))


def _cell(result: MixedLogitResult, name: str) -> str:
    estimates, errors = result.params | result.moments, result.std_errors | result.moment_std_errors
    if name not in estimates:
        return ""
    mark = "†" if name in result.without_std_error else ""
    return f"{estimates[name]:.6g} ({'held' if name in result.held else f'{errors[name]:.4g}{mark}'})"


def _statistics(results: Sequence[MixedLogitResult]) -> dict[str, list[float | bool]]:
    return {
        "log-likelihood": [r.loglik for r in results],
        "null log-likelihood": [r.null_loglik for r in results],
        "rho-squared": [r.rho_squared for r in results],
        "AIC": [r.aic for r in results],
        "BIC": [r.bic for r in results],
        "parameters": [r.n_params for r in results],
        "individuals": [r.n_individuals for r in results],
        "situations": [r.nobs for r in results],
        "converged": [r.converged for r in results],
    }


def _statistic_cell(value: float | bool) -> str:
    return ("yes" if value else "NO") if isinstance(value, bool) else number(value, 8)
