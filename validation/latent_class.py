"""Latent classes: gmnl's printed output, electricity by number of classes, and recovery of known truths.

    python validation/latent_class.py [--quick] [--workers 1] [--out validation/reports]

The data are read from MIXLOGIT_DATA. Quick: 10 replications, three numbers of classes. Writes latent_class.md and
latent_class.json and exits with 1 if a claim fails.
"""

# R replications, N individuals, T situations each, J alternatives, C classes.

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from _convergence import Evidence, gradient_by_differences, hessian_by_differences, judge
from _report import REPORTS, Report, data_folder

from mixlogit_align.econometrics import (
    ChoiceData,
    LatentClassModel,
    LatentClassResult,
    choose_classes,
    simulate_latent_classes,
)
from mixlogit_align.econometrics.recovery_statistics import Chance, Recovery, Share
from mixlogit_align.errors import ConvergenceWarning

if TYPE_CHECKING:
    import pandas as pd

ATTRIBUTES = ["pf", "cl", "loc", "wk", "tod", "seas"]
GMNL = {  # printed by gmnl 1.1 for its documented example: Electricity, rows 1 to 3000, model = "lc", Q = 2
    **dict(
        zip((f"class1.{x}" for x in ATTRIBUTES), (-0.445822, -0.184654, 1.214376, 0.964074, -3.218417, -3.486496),
            strict=True)
    ),
    **dict(
        zip((f"class2.{x}" for x in ATTRIBUTES), (-0.843079, -0.124183, 1.644477, 1.413870, -9.373176, -9.264694),
            strict=True)
    ),
    "membership.2.constant": -0.220005,
}  # fmt: skip
GMNL_LOGLIK = -792.86
LEVEL, FAMILYWISE = 0.95, 0.01


@dataclass(frozen=True, kw_only=True)
class Case:
    """One truth, and how often it is estimated."""

    name: str
    truth: dict[str, float]
    model: dict[str, Any]
    individuals: int
    replications: int
    num_starts: int
    situations: int = 8
    alternatives: int = 3

    def simulate(self, seed: int) -> Any:
        return simulate_latent_classes(
            self.truth,
            **self.model,
            num_individuals=self.individuals,
            num_situations=self.situations,
            num_alternatives=self.alternatives,
            seed=seed,
        )

    def estimate(self, seed: int) -> dict[str, Any]:
        """Estimates, standard errors, and how many individuals their posteriors put into the right class."""
        torch.set_num_threads(1)
        sim = self.simulate(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            result = LatentClassModel(sim.data, **self.model).fit(num_starts=self.num_starts, num_redraws=0)
        return {
            "params": result.params,
            "std_errors": result.std_errors,
            "converged": result.converged,
            "right": float((result.posterior.argmax(1) == sim.classes).double().mean()),
        }

    def choose(self, seed: int) -> dict[str, int]:
        """Numbers of classes that criteria choose among one to three."""
        torch.set_num_threads(1)
        model = LatentClassModel(self.simulate(seed).data, **self.model)
        found = choose_classes(model, 3, num_starts=self.num_starts)
        return {name: found.best(name).num_classes for name in ("aic", "bic", "bic_individuals", "caic", "icl")}


PANEL: dict[str, Any] = {"fixed": ["price", "time"], "num_classes": 2, "membership": ["income"]}
TRUTH = {
    "class1.price": -1.0,
    "class1.time": 0.5,
    "class2.price": -0.3,
    "class2.time": -0.9,
    "membership.2.constant": -0.4,
    "membership.2.income": 0.8,
}
CASES = (
    Case(
        name="two classes, one covariate of membership",
        truth=TRUTH,
        model=PANEL,
        individuals=1000,
        replications=200,
        num_starts=2,
    ),
    Case(
        name="mixed logits within two classes",
        truth={
            "class1.price": -1.0,
            "class1.time.loc": 1.5,
            "class1.time.scale": 0.5,
            "class2.price": -0.3,
            "class2.time.loc": -1.5,
            "class2.time.scale": 0.5,
            "membership.2.constant": -0.6,
        },
        model={"fixed": ["price"], "random": {"time": "normal"}, "num_classes": 2},
        individuals=800,
        replications=60,
        num_starts=1,
    ),
)
CHOICE = Case(name="number of classes", truth=TRUTH, model=PANEL, individuals=300, replications=50, num_starts=3)


def electricity(frame: pd.DataFrame) -> LatentClassModel:
    data = ChoiceData.from_long(
        frame, choice="choice", alternative="alt", situation="chid", individual="id", variables=ATTRIBUTES
    )
    return LatentClassModel(data, ATTRIBUTES, num_classes=2)


def evidence(model: LatentClassModel, result: LatentClassResult) -> Evidence:
    """Whether a result is a maximum, by differences of the log-likelihood and of its scores."""
    names = list(result.params)
    at, errors = np.array(list(result.params.values())), np.array(list(result.std_errors.values()))

    def value(point: np.ndarray) -> float:
        return float(model.data.weights @ model.loglik(dict(zip(names, point.tolist(), strict=True))))

    def score(point: np.ndarray) -> np.ndarray:
        return (model.data.weights @ model.scores(dict(zip(names, point.tolist(), strict=True)))).numpy()

    steps = 1e-3 * errors
    gradient = gradient_by_differences(value, at, steps)
    return judge(gradient, hessian_by_differences(score, at, steps), errors.tolist())


def published(report: Report, frame: pd.DataFrame) -> None:
    """The likelihood at estimates that gmnl printed, its maximum, and a better one."""
    report.section(
        "gmnl's printed output",
        "gmnl (Sarrias and Daziano 2017) prints this model for the first 3,000 rows of the electricity data, 63 "
        "individuals, from one start.",
    )
    model = electricity(frame.iloc[:3000])
    there = float(model.loglik(GMNL).sum())
    about = "at gmnl's estimates"
    report.claim(about, f"log-likelihood {GMNL_LOGLIK}, as printed", f"{there:.4f}", abs(there - GMNL_LOGLIK) < 5e-3)
    near = model.fit(start=GMNL)
    gaps = {name: abs(near.params[name] - value) / near.std_errors[name] for name, value in GMNL.items()}
    constant = gaps.pop("membership.2.constant")
    worst = max(gaps.values())
    report.claim(
        "the maximum nearest to gmnl's", "its coefficients within 0.02 standard errors", f"{worst:.4f}", worst < 0.02
    )
    best = model.fit(num_starts=10)
    claim = "more likely than gmnl's from ten starts"
    report.claim("the best maximum", claim, f"{best.loglik:.4f}", best.loglik > near.loglik + 1.0)
    slope = float(model.scores(GMNL).sum(0)[-1])
    report.text(
        f"gmnl's constant of membership is {constant:.2f} standard errors from the maximum: the derivative of the "
        f"log-likelihood there is {slope:.3f}."
    )


def by_number(report: Report, frame: pd.DataFrame, most: int) -> None:
    """All electricity data with one class, two, ..."""
    report.section(
        "Electricity by number of classes",
        "361 individuals, 4,308 situations; ten starts for every number. BIC counts situations; its other form, CAIC "
        "and ICL count individuals. Out of sample: log-likelihood of individuals left out, five folds. Evidence from "
        "outside: the gradient by differences of the log-likelihood, in the metric of the inverse Hessian, which is by "
        "differences of scores.",
    )
    model = electricity(frame)
    found = choose_classes(model, most, num_folds=5)
    rows, checked, logliks = [], [], []
    for result, fold in zip(found.results, found.cross_validation, strict=True):
        seen = evidence(model.with_classes(result.num_classes), result) if result.converged else None
        checked.append(seen is None or not seen.why_not)
        logliks.append(result.loglik)
        reached = sum(abs(end.loglik - result.loglik) < 1e-3 for end in result.optima) if result.optima else 1
        rows.append(
            [
                result.num_classes,
                f"{result.loglik:.3f}",
                result.n_params,
                *(f"{getattr(result, name):.1f}" for name in ("aic", "bic", "bic_individuals", "caic", "icl")),
                f"{result.entropy:.3f}" if result.num_classes > 1 else "",
                f"{min(result.shares.values()):.3f}",
                f"{fold.loglik:.1f} ({fold.std_error:.0f})",
                f"{reached} of {max(len(result.optima), 1)}",
                f"{seen.norm:.1e}" if seen is not None else result.message,
            ]
        )
    columns = ["classes", "log-likelihood", "parameters", "AIC", "BIC", "BIC by individuals", "CAIC", "ICL", "entropy"]
    columns += ["smallest share", "out of sample (error)", "starts at this maximum", "gradient from outside"]
    report.table("electricity", "Electricity", columns, rows)
    report.claim("electricity", "every fit that says it converged is a maximum", all(checked), all(checked))
    rising = all(after > before for before, after in pairwise(logliks))
    report.claim("electricity", "the log-likelihood rises with the number of classes", rising, rising)
    falls = [after < before for result in found.results for before, after in pairwise(result.em_logliks)]
    report.claim(
        "electricity", "no step of EM lowers the log-likelihood", f"{sum(falls)} of {len(falls)}", not any(falls)
    )
    for text in found.said:
        report.text(f"Said: {text}")


def recovered(report: Report, case: Case, runs: list[dict[str, Any]], comparisons: int) -> None:
    """Bias and coverage of every parameter against what chance does."""
    good = [run for run in runs if run["converged"]]
    report.claim(case.name, f"all {len(runs)} replications converged", len(good), len(good) == len(runs))
    found = {}
    for name, truth in case.truth.items():
        estimates = np.array([run["params"][name] for run in good])
        errors = np.array([run["std_errors"][name] for run in good])
        found[name] = Recovery.of(np.full(len(good), truth), estimates, errors, LEVEL)
    band = Chance.of(len(good), comparisons, LEVEL, FAMILYWISE)
    shares = [one.coverage.value for one in found.values()]
    claim = f"coverage of {LEVEL:.0%} intervals between {band.lowest:.3f} and {band.highest:.3f}"
    inside = band.lowest <= min(shares) and max(shares) <= band.highest
    report.claim(case.name, claim, f"{min(shares):.3f} to {max(shares):.3f}", inside)
    worst = max(found, key=lambda name: abs(found[name].bias_z))
    z = found[worst].bias_z
    claim = f"bias below {band.z:.2f} Monte Carlo errors"
    report.claim(case.name, claim, f"{z:+.2f} ({worst})", abs(z) <= band.z)
    rows = [
        [
            name,
            f"{one.truth:g}",
            f"{one.bias:+.2g} ({one.bias_error:.1g})",
            f"{one.bias_z:+.2f}",
            f"{one.rmse:.3g} ({one.rmse_error:.1g})",
            f"{one.coverage.value:.3f} ({one.coverage.error:.2g})",
            f"{one.se_ratio:.3f} ({one.se_ratio_error:.2g})",
        ]
        for name, one in found.items()
    ]
    columns = ["", "truth", "bias", "z of bias", "RMSE", f"coverage of {LEVEL:.0%}", "standard error / sd"]
    report.table(case.name, case.name, columns, rows)
    right = np.array([run["right"] for run in good])
    report.text(
        f"{len(runs)} replications of {case.individuals} individuals in {case.situations} situations of "
        f"{case.alternatives} alternatives, starts of each: {case.num_starts}. Their posteriors put {right.mean():.1%} "
        "of individuals into the right class."
    )


def chosen(report: Report, case: Case, runs: list[dict[str, int]]) -> None:
    """How often criteria choose the two classes there are."""
    total = len(runs)
    rows = []
    for name in runs[0]:
        counts = [sum(run[name] == c for run in runs) for c in (1, 2, 3)]
        rows.append([name, *counts])
    report.table(
        "chosen", f"Numbers of classes chosen in {total} replications; two are true", ["", "1", "2", "3"], rows
    )
    right = Share(sum(run["bic"] == 2 for run in runs), total)
    report.claim(case.name, "BIC chooses two classes in nine replications of ten", right.value, right.value >= 0.9)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 replications, three numbers of classes")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the replications")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args()
    import pandas as pd
    from joblib import Parallel, delayed

    torch.set_num_threads(1)
    frame = pd.read_csv(data_folder("choice") / "electricity_long.csv")
    report = Report(
        "latent_class",
        "Latent classes",
        "Finite mixtures of logits by EM and Newton steps: against another program's printed output, on real data by "
        "number of classes, and on simulated choices whose classes are known. Monte Carlo standard errors stand in "
        "parentheses.",
        "scipy",
    )
    published(report, frame)
    by_number(report, frame, 3 if options.quick else 6)
    comparisons = sum(len(case.truth) for case in CASES)
    report.section(
        "Recovery",
        f"Bands are familywise over all {comparisons} comparisons at {FAMILYWISE:.0%}, for bias and for coverage each.",
    )
    pool = Parallel(options.workers)
    for case in CASES:
        seeds = range(10 if options.quick else case.replications)
        recovered(report, case, pool(delayed(case.estimate)(seed) for seed in seeds), comparisons)
    report.section("The number of classes", f"{CHOICE.individuals} individuals; fits of one, two and three classes.")
    seeds = range(10 if options.quick else CHOICE.replications)
    chosen(report, CHOICE, pool(delayed(CHOICE.choose)(seed) for seed in seeds))
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
