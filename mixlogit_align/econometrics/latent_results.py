"""Estimates of latent classes with their evidence."""

# N individuals, C classes.

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from mixlogit_align.econometrics.comparison import LikelihoodRatioTest
from mixlogit_align.econometrics.latent_parameters import label
from mixlogit_align.econometrics.rendering import Summary, number
from mixlogit_align.econometrics.results import MixedLogitResult
from mixlogit_align.errors import InvalidInputError, explain

if TYPE_CHECKING:
    import pandas as pd

# Starts whose log-likelihoods differ by less ended at one optimum.
_SAME = 1e-3


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class LatentClassResult(MixedLogitResult):
    """Maximum-likelihood estimates of latent classes: those of :class:`MixedLogitResult`, and classes.

    N individuals, C classes. ``params`` are named ``class1.price`` within a class, ``price`` where one value serves all
    classes, ``membership.2.constant`` and ``membership.2.income`` for the log odds of class 2 against class 1.
    ``moments`` hold ``class1.share``, the mean membership probability over individuals, and in each class the moments
    of its random coefficients.

    Attributes
    ----------
    num_classes : int
    membership, common : tuple of str
        Covariates of membership; parameters with one value for all classes.
    prior : torch.Tensor, shape (N, C)
        Probability of each class before the choices are seen.
    loglik_by_class : torch.Tensor, shape (N, C)
        Log-likelihood of an individual's choices in each class.
    degenerate : tuple of str
        Classes with fewer members than parameters, or alike: there is nothing to be learned from them.
    em_logliks : tuple of float
        Log-likelihood along the steps of EM from the best start; it never falls.
    individuals : tuple
        Labels along N.
    """

    num_classes: int
    membership: tuple[str, ...]
    common: tuple[str, ...]
    prior: Tensor
    loglik_by_class: Tensor
    degenerate: tuple[str, ...]
    em_logliks: tuple[float, ...]
    individuals: tuple[Any, ...]

    @property
    def posterior(self) -> Tensor:
        """Probability of each class given an individual's choices, (N, C): ``prior * likelihood``, scaled to 1."""
        return torch.softmax(self.prior.log() + self.loglik_by_class, 1)

    def posterior_frame(self) -> pd.DataFrame:
        """Probability of each class given an individual's choices, by label.

        Returns
        -------
        pandas.DataFrame
            One row an individual, one column a class.
        """
        import pandas as pd

        index = pd.Index(list(self.individuals), name="individual", tupleize_cols=False)
        return pd.DataFrame(self.posterior.numpy(), index, [label(c) for c in range(self.num_classes)])

    @property
    def shares(self) -> dict[str, float]:
        """Mean membership probability of each class, frequencies counted."""
        return {label(c): self.moments[f"{label(c)}.share"] for c in range(self.num_classes)}

    @property
    def entropy(self) -> float:
        """How well individuals are told apart, 1 where each surely is in one class: ``1 - EN / (N log C)``.

        ``EN = -sum_n sum_c h_nc log h_nc`` (Celeux and Soromenho 1996), frequencies counted; NaN for one class.
        """
        if self.num_classes == 1:
            return math.nan
        return 1.0 - self._doubt / (self.n_individuals * math.log(self.num_classes))

    @property
    def _doubt(self) -> float:
        """EN."""
        return float(self.weights @ torch.special.entr(self.posterior).sum(1))

    @property
    def bic_individuals(self) -> float:
        """``n_params log(n_individuals) - 2 loglik``: counts individuals, who are independent, where ``bic`` counts
        situations."""
        return self.n_params * math.log(self.n_individuals) - 2.0 * self.loglik

    @property
    def caic(self) -> float:
        """``n_params (log(n_individuals) + 1) - 2 loglik`` (Bozdogan 1987)."""
        return self.bic_individuals + self.n_params

    @property
    def icl(self) -> float:
        """``bic_individuals + 2 EN`` (Biernacki, Celeux and Govaert 2000): classes that overlap cost."""
        return self.bic_individuals + 2.0 * self._doubt

    def likelihood_ratio_test(self, restricted: MixedLogitResult | None = None) -> LikelihoodRatioTest:
        """Test a smaller model of as many classes: without a covariate of membership, or with parameters held.

        Parameters
        ----------
        restricted : LatentClassResult

        Returns
        -------
        LikelihoodRatioTest

        Raises
        ------
        InvalidInputError
            If the models are not nested or not of the same data; or differ in the number of classes: a share of 0 is a
            boundary at which the coefficients of the class are not identified, and the statistic is no chi-square.
        ConvergenceError
            As of :meth:`MixedLogitResult.likelihood_ratio_test`.
        """
        if not isinstance(restricted, LatentClassResult) or restricted.num_classes != self.num_classes:
            got = restricted.num_classes if isinstance(restricted, LatentClassResult) else type(restricted).__name__
            raise InvalidInputError(
                explain(
                    "restricted",
                    got=got,
                    expected=f"a result of {self.num_classes} classes; their number has no chi-square test",
                    hint="choose_classes, which compares numbers of classes by information criteria",
                )
            )
        if restricted.common != self.common:
            raise InvalidInputError(
                explain(
                    "restricted",
                    got=f"{list(restricted.common)} common to all classes",
                    expected=f"{list(self.common)}, so that parameters have the same names",
                    hint="wald_test('class1.price = class2.price')",
                )
            )
        return super().likelihood_ratio_test(restricted)

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to one file, without pickle; :meth:`load` reads it back.

        Parameters
        ----------
        path : path
            Overwritten.

        Raises
        ------
        InvalidInputError
            If the file cannot be written, or individuals have other labels than text and numbers.
        """
        odd = next((one for one in self.individuals if not isinstance(one, str | int | float)), None)
        if odd is not None:
            raise InvalidInputError(
                explain("individuals", got=repr(odd), expected="labels that are text or numbers", hint="str(label)")
            )
        super().save(path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a result that :meth:`save` wrote.

        Parameters
        ----------
        path : path

        Returns
        -------
        LatentClassResult

        Raises
        ------
        InvalidInputError
            If there is no such file, or it is damaged, foreign or of another version.
        """
        found = super().load(path)
        assert isinstance(found, cls)
        names = ("membership", "common", "degenerate", "em_logliks", "individuals")
        tuples: dict[str, Any] = {name: tuple(getattr(found, name)) for name in names}
        return replace(found, **tuples)

    @property
    def summary(self) -> Summary:
        """Table of estimates and evidence, printed as text; ``as_html()``, ``as_latex()``."""
        title = f"Latent classes, {self.specification}: {self.n_individuals:g} individuals, {self.nobs:g} situations"
        return Summary(replace(super().summary.table, title=title))

    def _foot(self) -> list[str]:
        lines = super()._foot()
        if self.num_classes > 1:
            lines.append(
                f"by individuals: BIC {self.bic_individuals:.3f}, CAIC {self.caic:.3f}, ICL {self.icl:.3f}; "
                f"entropy {number(self.entropy, 4)}"
            )
        if self.optima:
            there = sum(abs(end.loglik - self.loglik) < _SAME for end in self.optima)
            lines.append(f"{there} of {len(self.optima)} starts ended at this maximum")
        return [*lines, *(f"degenerate: {what}" for what in self.degenerate)]
