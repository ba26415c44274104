"""Which coefficients vary over individuals: the score test of McFadden and Train on the conditional logit."""

# S situations, J alternatives, V coefficients, Q tested.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from scipy.stats import chi2
from torch import Tensor

from mixlogit_align.econometrics.estimation import fit_logit
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.rendering import Summary, Table, number, probability
from mixlogit_align.econometrics.specification import Specification
from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.numerics.threads import own_threads

if TYPE_CHECKING:
    import pandas as pd

# Information about an artificial variable, the others given, below this share of its own: they go together.
_REDUNDANT = 1e-10


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class HeterogeneityTest:
    """The hypothesis that coefficients are the same for all.

    Attributes
    ----------
    statistic : float
        Of all tested coefficients together.
    dof : int
    pvalue : float
        Under chi-square.
    statistics, pvalues : dict of str to float
        Of each coefficient by itself, one degree of freedom, the others taken as fixed.
    """

    statistic: float
    dof: int
    pvalue: float
    statistics: dict[str, float]
    pvalues: dict[str, float]

    def to_frame(self) -> pd.DataFrame:
        """One row a coefficient, then one for all together.

        Returns
        -------
        pandas.DataFrame
            Columns statistic, dof, pvalue.
        """
        import pandas as pd

        rows = [(value, 1, self.pvalues[name]) for name, value in self.statistics.items()]
        index = [*self.statistics, "all"]
        return pd.DataFrame([*rows, (self.statistic, self.dof, self.pvalue)], index, ["statistic", "dof", "pvalue"])

    @property
    def summary(self) -> Summary:
        """Table of statistics."""
        each = tuple(
            (name, number(value), "1", probability(self.pvalues[name])) for name, value in self.statistics.items()
        )
        joint = (("all", number(self.statistic), str(self.dof), probability(self.pvalue)),)
        title = "Score test of fixed against random coefficients (McFadden and Train)"
        return Summary(Table(title, ("", "chi-square", "dof", "p"), (each, joint), ()))

    def __repr__(self) -> str:
        return self.summary


@own_threads()
def mcfadden_train_test(model: MixedLogitModel, variables: Sequence[str] | None = None) -> HeterogeneityTest:
    """Score (Lagrange multiplier) test for random coefficients on the conditional logit of the model's variables.

    The slope of the log-likelihood in the variance of a coefficient, at 0, is that in the coefficient of an artificial
    variable ``z_sj = (x_sj - sum_k P_sk x_sk)^2 / 2``, P at the conditional logit; the test asks whether it would enter
    the logit (McFadden and Train 2000). ``s' V^-1 s`` with ``s = sum_s w_s (z_s,chosen - sum_j P_sj z_sj)`` and V the
    information about the coefficients of z, those of x partialled out.

    Right for any distribution of the coefficients, with no mixed model fitted; two-sided, so that less variation than
    the logit's counts, too. It reads situations as independent, which they are under the hypothesis, and so leaves
    unused what a panel says of heterogeneity between individuals. Means that depend on covariates, WTP space and scale
    heterogeneity of the model are not in the logit.

    Parameters
    ----------
    model : MixedLogitModel
        Its data and variables; which are random makes no difference.
    variables : sequence of str, optional
        Coefficients to test; None: all.

    Returns
    -------
    HeterogeneityTest

    Raises
    ------
    InvalidInputError
        For a variable without a coefficient, or artificial variables that go together, as squares of constants do.
    ConvergenceError
        If the conditional logit has no finite maximum.
    """
    spec, data = model.specification, model.data
    tested = spec.variables if variables is None else tuple(dict.fromkeys(variables))
    unknown = [name for name in tested if name not in spec.variables]
    if unknown or not tested:
        expected = f"some of {list(spec.variables)}"
        raise InvalidInputError(explain("variables", got=unknown or "none", expected=expected, hint="variables=None"))
    logit = fit_logit(data, Specification(spec.variables, {}), None)
    x = torch.stack([data.attribute(name) for name in spec.variables], -1)
    beta = torch.tensor([logit.coefficients[name] for name in spec.variables], dtype=torch.float64)
    p = torch.softmax((x @ beta).masked_fill(~data.available, -torch.inf), 1)
    weights = data.situation_weights
    own = x[..., [spec.variables.index(name) for name in tested]]
    z = 0.5 * (own - _mean(p, own)) ** 2
    both = torch.cat([x, z], -1)
    both = both - _mean(p, both)
    information = torch.einsum("sj,sja,sjb->ab", weights[:, None] * p, both, both)
    score = torch.einsum("s,sa->a", weights, both[torch.arange(len(p)), data.choice])[x.shape[-1] :]
    v = x.shape[-1]
    across = information[:v, v:]
    variance = information[v:, v:] - across.T @ torch.linalg.solve(information[:v, :v], across)
    _require_separate(variance, information[v:, v:].diagonal(), tested)
    statistic = float(score @ torch.linalg.solve(variance, score))
    each = (score**2 / variance.diagonal()).tolist()
    return HeterogeneityTest(
        statistic=statistic,
        dof=len(tested),
        pvalue=float(chi2.sf(statistic, len(tested))),
        statistics=dict(zip(tested, each, strict=True)),
        pvalues={name: float(chi2.sf(value, 1)) for name, value in zip(tested, each, strict=True)},
    )


def _mean(p: Tensor, values: Tensor) -> Tensor:
    """(S, 1, ...) of values (S, J, V)."""
    return (p[..., None] * values).sum(1, keepdim=True)


def _require_separate(variance: Tensor, own: Tensor, tested: Sequence[str]) -> None:
    """Raise if the information (Q, Q) about artificial variables is singular beside their own (Q,)."""
    size = own.clamp_min(1e-300).rsqrt()
    spectrum = torch.linalg.eigh(size[:, None] * variance * size)
    if float(spectrum.eigenvalues[0]) < _REDUNDANT:
        weakest = spectrum.eigenvectors[:, 0].abs()
        names = [name for name, share in zip(tested, (weakest / weakest.max()).tolist(), strict=True) if share > 0.1]
        raise InvalidInputError(
            explain(
                "variables",
                got=f"{names}, whose artificial variables the others or the utilities make up",
                expected="coefficients whose variances the data tell apart",
                hint="variables= without one of them",
            )
        )
