"""Estimations beside published, exact and xlogit's values: same draws, default starts, fixed parameters.

    python validation/estimation.py [--quick] [--out validation/reports]

The data are read from MIXLOGIT_DATA. Quick: few cases, and no case of scale heterogeneity. Writes estimation.md and
estimation.json and exits with 1 if a check fails.
"""

# N individuals, S situations, J alternatives, R draws, P parameters.

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from _choice_cases import BY_NAME, CASES, XLOGIT_FAMILIES, ChoiceCase, Peer
from _convergence import TOLERANCE, TOLERANCE_ANEW, Observed, evidence, evidence_anew, reversals
from _report import REPORTS, Report, data_folder

from mixlogit_align import FixedDraws, Quadrature
from mixlogit_align.econometrics import ChoiceData, MixedLogitModel
from mixlogit_align.errors import ConvergenceWarning

QUICK = ("P3", "P4", "E7", "P12")
# Standard errors: relative, and half a unit of the last printed digit.
SAME_ERROR, PRINTED = 0.01, 5e-5
SAME_AT_FIXED = 1e-8
# A restart: standard deviation of its starting point about the estimates, in standard errors; how many; what counts as
# a better optimum, in log-likelihood: with the same nodes, and where the nodes follow the estimates.
SHIFT, RESTARTS, BETTER, BETTER_CENTRED = 2.0, 2, 1e-4, 0.3
MG2019 = {  # minus log-likelihood, standard deviation of the logarithm
    "one strength for all": (48_105.5, None),
    "a fresh strength each choice": (48_070.5, 1.30),
    "one strength an individual": (47_990.0, 0.48),
}


def fitted(model: MixedLogitModel, **options: Any) -> Any:
    """The result; that it did not converge is checked, not warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(**options)


def largest_difference(found: dict[str, float], expected: dict[str, float]) -> float:
    return max((abs(found[name] - value) for name, value in expected.items()), default=0.0)


def same_draws(report: Report, cases: list[ChoiceCase], folder: Path) -> None:
    """The published rows on the draws of the publications, and the exact one."""
    report.section(
        "Published values, same draws",
        "The draws are xlogit's own Halton array, a column reversed where the published scale is negative; E7 is "
        "exact, by the default rule. The search begins near the published estimates where a scale is reversed or there "
        "are several optima, else where it always does.",
    )
    rows = []
    for case in cases:
        start = time.perf_counter()
        rule = None if case.draws is None else case.published_draws(folder)
        begin = case.start or (case.params if case.reversed else None)
        model = case.model(case.data(folder))
        result = fitted(model, integration=rule, start=begin, num_redraws=0)
        loglik = abs(result.loglik - case.loglik)
        params = largest_difference(result.params, case.params)
        report.claim(
            case.name, f"log-likelihood within {case.tolerance:g} of {case.loglik}", loglik, loglik <= case.tolerance
        )
        if case.params:
            bar = max(case.tolerance, case.param_tolerance) if case.tolerance > 1e-4 else case.param_tolerance
            report.claim(case.name, f"{len(case.params)} estimates within {bar:g}", params, params <= bar)
        for kind, printed in (("hessian", case.std_errors), ("robust", case.robust_errors)):
            if not printed:
                continue
            found = result if kind == "hessian" else fitted(model, integration=rule, cov_type=kind, num_redraws=0)
            errors = {name: abs(found.std_errors[name] - value) for name, value in printed.items()}
            good = all(errors[name] <= SAME_ERROR * value + PRINTED for name, value in printed.items())
            worst = max(errors[name] / value for name, value in printed.items())
            report.claim(case.name, f"{kind} standard errors within 1 % of the printed digits", worst, good)
        rows.append(
            [
                case.name,
                case.title,
                case.draws or result.integration.rule,
                f"{case.loglik}",
                f"{result.loglik:.6f}",
                f"{params:.1e}" if case.params else "",
                result.converged,
                f"{time.perf_counter() - start:.1f}",
            ]
        )
    columns = ["case", "", "draws", "published", "here", "largest difference of estimates", "converged", "s"]
    report.table("same_draws", "Published and found", columns, rows)


def default_starts(report: Report, cases: list[ChoiceCase], folder: Path) -> None:
    """From default starts, by the default rule and by the rule by name: converged, verified, and not bettered."""
    report.section(
        "Default starts",
        "Convergence is verified by finite differences of the log-likelihood at the estimates: a gradient below "
        f"{TOLERANCE:g} standard errors in the metric of the inverse Hessian, and a definite Hessian. {RESTARTS} "
        f"restarts begin {SHIFT:g} standard errors away (normal, each parameter). Every sign of a scale is an optimum "
        "with draws reversed; of the restarts that end with the same reversals none may be better by more than "
        f"{BETTER:g} ({BETTER_CENTRED:g} where nodes follow the estimates), but in the cases said to have several "
        "optima.",
    )
    rows = []
    for case in cases:
        model = Observed(case.data(folder), case.fixed, case.random, case.correlated)
        for rule in dict.fromkeys((None, case.integration)):
            start = time.perf_counter()
            result = fitted(model, integration=rule, num_redraws=0)
            seconds = time.perf_counter() - start
            found, anew = evidence(model, result), evidence_anew(model, result)
            name = f"{case.name}, {'default rule' if rule is None else f'{case.draws} Halton'}"
            report.claim(
                name, "converged, and so say finite differences", found.norm, result.converged and not found.why_not
            )
            if anew is not None:
                settled = anew.norm <= TOLERANCE_ANEW
                claim = (
                    f"on nodes made anew at the estimates the gradient is at most {TOLERANCE_ANEW:g} standard errors"
                )
                report.claim(name, claim, anew.norm, settled)
            pattern, again = reversals(model), []
            for seed in range(RESTARTS):
                other = fitted(model, integration=rule, start=shifted(result, seed), num_redraws=0)
                again.append((other.loglik - result.loglik, reversals(model) == pattern, other.converged))
            bar = BETTER if anew is None else BETTER_CENTRED
            gain = max((gain for gain, same, _ in again if same), default=0.0)
            if not case.multimodal:
                report.claim(name, f"no restart is better by {bar:g}", gain, gain <= bar)
            gains = ", ".join(f"{gain:+.4f}{'' if same else ' (other signs)'}" for gain, same, _ in again)
            rows.append(
                [
                    name,
                    result.integration.rule,
                    f"{result.loglik:.4f}",
                    f"{found.norm:.1e}",
                    "" if anew is None else f"{anew.norm:.1e}",
                    f"{found.eigenvalue:.1e}",
                    gains,
                    "several optima" if case.multimodal else "",
                    f"{seconds:.2f}",
                ]
            )
    columns = [
        "case",
        "rule",
        "log-likelihood",
        "gradient, standard errors",
        "on nodes anew",
        "smallest scaled eigenvalue",
    ]
    columns += ["restarts less this", "", "s"]
    report.table("default_starts", "From default starts", columns, rows)


def shifted(result: Any, seed: int) -> dict[str, float]:
    """A start some standard errors away."""
    rng = np.random.default_rng(seed)
    return {
        name: value + SHIFT * result.std_errors[name] * rng.standard_normal() for name, value in result.params.items()
    }


def fixed_parameters(report: Report, quick: bool) -> None:
    """Log-likelihood and gradient beside xlogit's on simulated data of every shape."""
    report.section(
        "Fixed parameters, same draws, beside xlogit",
        "Simulated: 90 individuals, 4 alternatives, two random coefficients of the family and a fixed one, 60 of "
        "xlogit's Halton draws, at three points. Differences of log-likelihoods are relative; those of gradients are "
        "relative to the gradient's largest entry.",
    )
    shapes = {
        "cross-section": {},
        "panel": {"panel": True},
        "availability": {"missing": True},
        "weights": {"weighted": True},
        "panel, availability, weights": {"panel": True, "missing": True, "weighted": True},
    }
    rows, worst = [], {"log-likelihood": 0.0, "gradient": 0.0}
    for family in list(XLOGIT_FAMILIES)[: 2 if quick else None]:
        for shape, options in shapes.items():
            differences = beside_xlogit(family, **options)
            rows.append([family, shape, *(f"{x:.1e}" for x in differences)])
            for what, difference in zip(worst, differences, strict=True):
                worst[what] = max(worst[what], difference)
    columns = ["family", "data", "log-likelihood", "gradient"]
    report.table("fixed_parameters", "Relative differences from xlogit", columns, rows)
    for what, difference in worst.items():
        report.claim("xlogit", f"{what} the same to {SAME_AT_FIXED:g}", difference, difference <= SAME_AT_FIXED)


def beside_xlogit(
    family: str, panel: bool = False, missing: bool = False, weighted: bool = False
) -> tuple[float, float]:
    """Largest relative differences over three points."""
    import pandas as pd

    rng = np.random.default_rng(1)
    n, t, j = 90, 5 if panel else 1, 4
    s = n * t
    x = rng.standard_normal((s * j, 3))
    utilities = (x @ [-0.7, 0.8, 0.5]).reshape(s, j) + rng.gumbel(size=(s, j))
    available = np.ones((s, j), int)
    if missing:
        available = (rng.random((s, j)) < 0.7).astype(int)
        available[:, :2] = 1
    chosen = np.where(available == 1, utilities, -np.inf).argmax(1)
    weights = rng.uniform(0.5, 2.0, n) if weighted else np.ones(n)
    person = np.repeat(np.arange(n), t)
    frame = pd.DataFrame(x, columns=["a", "b", "c"]).assign(
        chosen=(np.arange(j) == chosen[:, None]).ravel().astype(int),
        alternative=np.tile(np.arange(j), s),
        situation=np.repeat(np.arange(s), j),
        person=np.repeat(person, j),
        offered=available.ravel(),
        frequency=np.repeat(weights[person], j),
    )
    data = ChoiceData.from_long(
        frame,
        choice="chosen",
        alternative="alternative",
        situation="situation",
        individual="person" if panel else None,
        variables=["a", "b", "c"],
        availability="offered",
        weights="frequency",
    )
    random = {"b": family, "c": family}
    model = MixedLogitModel(data, ["a"], random)
    peer = Peer(
        {name: frame[name].to_numpy() for name in ("a", "b", "c")},
        frame["chosen"].to_numpy(),
        j,
        random,
        frame["person"].to_numpy() if panel else None,
        frame["offered"].to_numpy() if missing else None,
        frame["frequency"].to_numpy() if weighted else None,
    )
    draws = peer.draws(60)
    rule = FixedDraws(torch.from_numpy(draws).mT)
    found = []
    for point in ([-0.7, 0.3, 0.2, 0.8, 0.5], [0.4, -0.5, 0.6, 1.3, 0.2], [-1.5, 0.1, -0.4, 0.3, 1.1]):
        at = dict(zip(peer.names, point, strict=True))
        loglik, gradient = peer.loglik_gradient(at, draws)
        scores = data.weights @ model.scores(at, rule)
        mine = dict(zip(model.specification.names, scores.tolist(), strict=True))
        value = float(data.weights @ model.loglik(at, rule))
        apart = np.abs([mine[name] for name in peer.names] - gradient).max() / np.abs(gradient).max()
        found.append((abs(value - loglik) / abs(loglik), float(apart)))
    return max(x for x, _ in found), max(x for _, x in found)


def mg2019(folder: Path, panel: bool) -> ChoiceData:
    """Choices among 2 to 4 of the 4 texts of a question; a constant for each text but the first of each question."""
    import pandas as pd

    trials = pd.read_csv(folder / "trials.csv.gz")
    letters = "abcd"
    s = len(trials)
    available = np.stack([trials["set"].str.contains(letter).to_numpy() for letter in letters], 1)
    question, names = pd.factorize(trials["domain"], sort=True)
    x = np.zeros((s, 4, 3 * len(names)))
    for other in range(1, 4):
        x[np.arange(s), other, 3 * question + other - 1] = available[:, other]
    person = pd.factorize(trials["subject"])[0] if panel else np.arange(s)
    n = int(person.max()) + 1
    return ChoiceData(
        attributes=torch.from_numpy(x),
        available=torch.tensor(available),
        choice=torch.tensor(trials["choice"].map(letters.index).to_numpy()),
        individual=torch.tensor(person),
        weights=torch.ones(n, dtype=torch.float64),
        variables=tuple(f"{name}.{letter}" for name in names for letter in letters[1:]),
        alternatives=tuple(letters),
        individuals=tuple(range(n)),
        is_panel=panel,
    )


def scale_heterogeneity(report: Report, folder: Path) -> None:
    """How strongly people choose, where all utilities are free."""
    report.section(
        "Scale heterogeneity",
        "16 questions with 4 texts each (McCausland and Gerringer 2019), 56,320 choices among 2 to 4 of them by 1,760 "
        "people; the utilities are free, one text of each question at 0. The strength here has mean 1, that of the "
        "reference log-mean 0: the free utilities absorb the difference.",
    )
    rows = []
    for name, (expected, expected_sd) in MG2019.items():
        start = time.perf_counter()
        data = mg2019(folder, panel=expected_sd is not None and "individual" in name)
        model = MixedLogitModel(data, data.variables, scale_heterogeneity=expected_sd is not None)
        result = fitted(model, integration=None if expected_sd is None else Quadrature(), num_redraws=0)
        difference = -result.loglik - expected
        report.claim(name, f"minus log-likelihood within 0.5 of {expected}", difference, abs(difference) <= 0.5)
        if expected_sd is not None:
            sd = result.params["tau"]
            report.claim(name, f"sd of the logarithm within 0.03 of {expected_sd}", sd, abs(sd - expected_sd) <= 0.03)
        report.claim(name, "converged", result.gradient_norm, result.converged)
        shown = f"{result.params['tau']:.4f} ({result.std_errors['tau']:.4f})" if expected_sd is not None else ""
        rows.append([name, f"{expected:.1f}", f"{-result.loglik:.2f}", shown, time.perf_counter() - start])
    columns = ["", "minus log-likelihood, reference", "here", "sd of the logarithm (standard error)", "s"]
    report.table("mg2019", "Scale heterogeneity", columns, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few cases")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the reports")
    options = parser.parse_args()
    folder = data_folder("choice")
    report = Report(
        "estimation",
        "Estimations beside published, exact and xlogit's values",
        "Published: the documentation of mlogit and xlogit on classic data. Tolerances are absolute.",
        "xlogit",
        "scipy",
    )
    cases = [BY_NAME[name] for name in QUICK] if options.quick else list(CASES)
    same_draws(report, cases, folder)
    print("same draws done", flush=True)
    fixed_parameters(report, options.quick)
    print("fixed parameters done", flush=True)
    default_starts(report, cases, folder)
    print("default starts done", flush=True)
    if not options.quick:
        scale_heterogeneity(report, data_folder("mg2019"))
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
