"""How many latent classes: fits of every number side by side."""

# N individuals, C classes.

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from mixlogit_align.distributions import Integration
from mixlogit_align.econometrics.latent_class import LatentClassModel
from mixlogit_align.econometrics.latent_results import LatentClassResult
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.rendering import Summary, Table, number
from mixlogit_align.econometrics.scoring import CrossValidation, cross_validate
from mixlogit_align.errors import ConvergenceWarning, InvalidInputError, explain, require_count

if TYPE_CHECKING:
    import pandas as pd

# Criteria, smaller is better; by their names as attributes of a result.
CRITERIA = ("aic", "bic", "bic_individuals", "caic", "icl")
# A log-likelihood below that of fewer classes by more is a maximum that was missed.
_MISSED = 1e-3


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class ClassChoice:
    """Latent classes of every number 1, 2, ..., side by side.

    Attributes
    ----------
    results : tuple of LatentClassResult
    cross_validation : tuple of CrossValidation
        One a number of classes; empty where none was asked for.
    said : tuple of str
        What was warned of in the fits, with the number of classes.
    """

    results: tuple[LatentClassResult, ...]
    cross_validation: tuple[CrossValidation, ...]
    said: tuple[str, ...]

    def best(self, criterion: str = "bic") -> LatentClassResult:
        """The result with the smallest criterion among those that converged without a degenerate class.

        Parameters
        ----------
        criterion : str
            "aic", "bic" (situations counted), "bic_individuals", "caic", "icl", or "cross_validation" (the largest
            out-of-sample log-likelihood).

        Returns
        -------
        LatentClassResult

        Raises
        ------
        InvalidInputError
            If there is no such criterion, or no result to choose.
        """
        names = (*CRITERIA, *["cross_validation"] * bool(self.cross_validation))
        if criterion not in names:
            raise InvalidInputError(
                explain("criterion", got=repr(criterion), expected=f"one of {list(names)}", hint="'bic'")
            )
        sound = [i for i, result in enumerate(self.results) if result.converged and not result.degenerate]
        if not sound:
            raise InvalidInputError(
                explain("results", got="none that converged", expected="one at least", hint="more starts")
            )

        def loss(i: int) -> float:
            if criterion == "cross_validation":
                return -self.cross_validation[i].loglik
            value: float = getattr(self.results[i], criterion)
            return value

        return self.results[min(sound, key=loss)]

    def to_frame(self) -> pd.DataFrame:
        """One row a number of classes.

        Returns
        -------
        pandas.DataFrame
            Columns loglik, n_params, the criteria, entropy, smallest (share), converged, degenerate (how many
            complaints) and, if there was one, cross_validation and cross_validation_error.
        """
        import pandas as pd

        rows = []
        for i, result in enumerate(self.results):
            row = {"loglik": result.loglik, "n_params": result.n_params}
            row |= {name: getattr(result, name) for name in CRITERIA}
            row |= {"entropy": result.entropy, "smallest": min(result.shares.values())}
            row |= {"converged": result.converged, "degenerate": len(result.degenerate)}
            if self.cross_validation:
                fold = self.cross_validation[i]
                row |= {"cross_validation": fold.loglik, "cross_validation_error": fold.std_error}
            rows.append(row)
        return pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name="classes"))

    @property
    def summary(self) -> Summary:
        """Table of numbers of classes, an asterisk at the smallest of each criterion."""
        known = [*CRITERIA, *["cross_validation"] * bool(self.cross_validation)]
        best: dict[str, LatentClassResult] = {}
        if any(result.converged and not result.degenerate for result in self.results):
            best = {name: self.best(name) for name in known}

        def cell(name: str, value: float, result: LatentClassResult) -> str:
            return f"{number(value, 8)}{'*' if best.get(name) is result else ' '}"

        rows = []
        for i, result in enumerate(self.results):
            cells = [str(result.num_classes), number(result.loglik, 8), str(result.n_params)]
            cells += [cell(name, getattr(result, name), result) for name in CRITERIA]
            cells += [number(result.entropy, 3), number(min(result.shares.values()), 3)]
            cells += (
                [cell("cross_validation", self.cross_validation[i].loglik, result)] if self.cross_validation else []
            )
            rows.append((*cells, "yes" if result.converged and not result.degenerate else "NO"))
        columns = (
            *("classes", "log-likelihood", "parameters", "AIC", "BIC", "BIC (individuals)", "CAIC", "ICL", "entropy"),
            *("smallest share", *["cross-validation"] * bool(self.cross_validation), "sound"),
        )
        foot = (
            "* best among sound ones: converged, no class degenerate; BIC counts situations",
            *(f"{result.num_classes} classes: {what}" for result in self.results for what in result.degenerate),
            *self.said,
        )
        title = f"Numbers of latent classes, {self.results[0].n_individuals:g} individuals"
        return Summary(Table(title, columns, (tuple(rows),), foot))

    def __repr__(self) -> str:
        return self.summary


def choose_classes(
    model: LatentClassModel,
    max_classes: int,
    *,
    num_starts: int = 10,
    num_folds: int = 0,
    integration: Integration | None = None,
    cov_type: str = "hessian",
    seed: int = 0,
) -> ClassChoice:
    """Fit 1 to ``max_classes`` classes.

    Parameters
    ----------
    model : LatentClassModel
        Its own number of classes does not matter.
    max_classes : int
    num_starts : int
        Of every fit.
    num_folds : int
        2 or more: also the log-likelihood of individuals left out (:func:`cross_validate`), each fit without a fold
        from the estimates of all. 0: none.
    integration, cov_type, seed
        As of :meth:`LatentClassModel.fit`.

    Returns
    -------
    ClassChoice
        Prints as a table; what fits warned of is told there.

    Raises
    ------
    InvalidInputError
        If there is no class to fit.
    ConvergenceError
        As of :meth:`LatentClassModel.fit`.
    """
    require_count("max_classes", max_classes, hint="5")
    results, folds = [], []
    said: list[str] = []
    highest = -math.inf
    for c in range(1, max_classes + 1):
        one = model.with_classes(c)
        with _noted(said, f"{c} classes"):
            result = one.fit(
                integration=integration, cov_type=cov_type, num_starts=num_starts if c > 1 else 1, seed=seed
            )
        if num_folds:
            with _noted(said, f"{c} classes, without a fold"):
                other = cast(MixedLogitModel, one)  # whatever the kind, it asks only for what both have
                folds.append(cross_validate(other, num_folds, seed=seed, integration=integration, start=result.params))
        if result.loglik < highest - _MISSED:
            said.append(f"{c} classes: less likely than fewer classes: a maximum was missed, try more starts")
        highest = max(highest, result.loglik)
        results.append(result)
    return ClassChoice(results=tuple(results), cross_validation=tuple(folds), said=tuple(said))


@contextmanager
def _noted(said: list[str], where: str) -> Iterator[None]:
    """Write down warnings of convergence, once each; others go on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        yield
    told = [str(warning.message) for warning in caught if issubclass(warning.category, ConvergenceWarning)]
    said += [f"{where}: {text}" for text in dict.fromkeys(told)]
    for warning in caught:
        if not issubclass(warning.category, ConvergenceWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
