"""Known strengths recovered from choices: the cases, their simulation, their estimates and the checks of these."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from mixlogit_align.econometrics import MixedLogitModel, MixedLogitResult, SimulatedChoices

# |z| beyond this happens by chance once in 150,000 estimates; the seeds are fixed, so it happens always or never.
Z_BOUND = 4.5
# With no heterogeneity, 2 (loglik - fixed loglik) exceeds this in 1 of 100,000 data sets (half of chi-squared, 1 df).
LIKELIHOOD_RATIO_BOUND = 18.2


@dataclass(frozen=True, kw_only=True)
class Case:
    """A known strength, and how many choices are made under it.

    Parameters
    ----------
    family : str
        As ``MixedLogitModel`` names it.
    true : dict
        Natural parameters of the family, or mean and an sd of 0: a strength that does not vary.
    panel : bool
        10 choices by each individual; else one, a cross-section.
    num_individuals : int
    seed : int
    quick : bool
        Whether a short demonstration has it too.
    """

    family: str
    true: dict[str, float]
    panel: bool
    num_individuals: int
    seed: int
    quick: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        kind = "panel" if self.panel else "cross-section"
        return f"{self.family}, {kind}" + ("" if self.heterogeneous else ", cv 0")

    @property
    def heterogeneous(self) -> bool:
        """Whether the strength varies."""
        return self.true.get("x.sd") != 0.0

    def mixing(self, *params: torch.Tensor) -> Any:
        """The family at two natural parameters, scalar tensors; without any, the true distribution of strength."""
        import pyro.distributions as dist
        import torch

        from mixlogit_align.distributions import Triangular

        first, second = params or (torch.tensor(value, dtype=torch.float64) for value in self.true.values())
        if not params and not self.heterogeneous:
            return dist.Delta(first)
        return {
            "normal": dist.Normal,
            "lognormal": dist.LogNormal,
            "uniform": lambda loc, scale: dist.Uniform(loc - scale, loc + scale),
            "triangular": lambda loc, scale: Triangular(loc - scale, loc + scale),
            "gamma": dist.Gamma,
        }[self.family](first, second)


TRUTHS = {
    "normal": {"x.loc": 1.0, "x.scale": 1.0},
    "lognormal": {"x.loc": 0.3, "x.scale": 0.7},
    "uniform": {"x.loc": 1.0, "x.scale": 1.8},
    "triangular": {"x.loc": 1.0, "x.scale": 2.4},
    "gamma": {"x.concentration": 2.0, "x.rate": 1.5},
}
FIXED = {"x.mean": 1.0, "x.sd": 0.0}
# Individuals; strengths of both signs take the slower quadrature.
CROSS_SECTION = {"normal": 2000, "lognormal": 4000, "uniform": 2000, "triangular": 2000, "gamma": 4000}
# (family, panel, heterogeneous)
QUICK = {("lognormal", False, True), ("gamma", False, True), ("normal", True, True), ("lognormal", True, False)}
CASES = tuple(
    Case(
        family=family,
        true=true,
        panel=panel,
        num_individuals=400 if panel else CROSS_SECTION[family],
        seed=100 + 100 * panel + 200 * (not heterogeneous) + i,
        quick=(family, panel, heterogeneous) in QUICK,
    )
    for heterogeneous, truths in ((True, TRUTHS), (False, dict.fromkeys(("normal", "lognormal", "gamma"), FIXED)))
    for i, (family, true) in enumerate(truths.items())
    for panel in (False, True)
)


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What one case gave.

    Parameters
    ----------
    row : dict
        As `mixlogit_align.report.Recovery` has it, without xlogit; ``passed`` if every check is.
    checks : dict
        By name: the fit converged, every estimate is within 4.5 standard errors of its truth, and no heterogeneity
        is found where there is none.
    simulated : SimulatedChoices
    model : MixedLogitModel
    fit : MixedLogitResult
    integration : str
        The rule and its error, for a note.
    likelihood_ratio : float
        Against a strength that does not vary: 2 (loglik - fixed loglik).
    """

    row: dict[str, Any]
    checks: dict[str, bool]
    simulated: SimulatedChoices
    model: MixedLogitModel
    fit: MixedLogitResult
    integration: str
    likelihood_ratio: float


def simulate(case: Case) -> SimulatedChoices:
    """The choices of a case, always the same ones."""
    import pyro.distributions as dist
    import torch

    from mixlogit_align.econometrics import simulate_choices

    return simulate_choices(
        case.mixing(),
        num_individuals=case.num_individuals,
        num_situations=10 if case.panel else 1,
        # a wide attribute: choices from nearly indifferent to nearly certain are what tell the spread
        attribute=dist.Normal(torch.zeros((), dtype=torch.float64), 1.5),
        seed=case.seed,
    )


def recover(case: Case) -> Recovered:
    """Simulate choices of a known strength, estimate it, and say how far off the estimate is."""
    from mixlogit_align.econometrics import MixedLogitModel
    from mixlogit_align.econometrics.rendering import BOUNDARY_ERROR

    start = time.perf_counter()
    simulated = simulate(case)
    model = MixedLogitModel(simulated.data, random={"x": case.family})
    fit = model.fit()
    if case.heterogeneous:
        estimate, errors, judged = fit.params, fit.std_errors, list(case.true)
    else:  # the spread's error is no normal one at the boundary; the likelihood ratio judges it
        estimate, errors, judged = fit.moments, fit.moment_std_errors, ["x.mean"]
    z = {name: (estimate[name] - case.true[name]) / errors[name] for name in judged}
    ratio = fit.likelihood_ratio_test().statistic
    checks = {"converged": fit.converged, "truth recovered": all(abs(value) <= Z_BOUND for value in z.values())}
    integration = f"{fit.integration.rule}, integration error {fit.integration.error:.0e}"
    note = f"{integration}; {fit.message}"
    if not case.heterogeneous:
        checks["no heterogeneity found"] = ratio <= LIKELIHOOD_RATIO_BOUND
        note += f"; likelihood ratio against a fixed strength {ratio:.2f}"
        if fit.at_boundary:
            note += f"; beside the sd of 0 stands {BOUNDARY_ERROR}"
    unknown = ("xlogit_estimate", "xlogit_loglik", "loglik_rel_diff", "gradient_rel_diff", "fit_abs_diff",
               "xlogit_default_start")  # fmt: skip
    row = {
        "case": case.name,
        "family": case.family,
        "panel": case.panel,
        "n_individuals": case.num_individuals,
        "n_choices": simulated.choice.numel(),
        "true": case.true,
        "estimate": estimate,
        "std_error": errors,
        "z": z,
        "loglik": fit.loglik,
        **dict.fromkeys(unknown),
        "note": note,
        "seconds": time.perf_counter() - start,
        "passed": all(checks.values()),
    }
    return Recovered(
        row=row,
        checks=checks,
        simulated=simulated,
        model=model,
        fit=fit,
        integration=integration,
        likelihood_ratio=ratio,
    )
