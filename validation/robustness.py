"""Random specifications, many of them unkind, estimated here and by xlogit: crashes, NaN and false convergence counted.

    python validation/robustness.py [--count 100] [--only SEED ...] [--workers 2] [--out validation/reports]

Every specification is made from its seed: 1 to 5 random coefficients of all families, up to 2 fixed ones, attributes
scaled by 1e-3 to 1e3, 1 to 100 situations an individual, choice sets of 2 to 10, some with missing alternatives,
frequencies, correlated blocks, WTP space, scale heterogeneity, and choices that attributes nearly separate. Convergence
is verified from outside, by one rule for both: the gradient in the metric of the inverse Hessian, the Hessian by finite
differences, and finite standard errors. Writes robustness.md and robustness.json and exits with 1 if an estimation here
crashes, returns NaN or is falsely declared converged.
"""

# N individuals, T situations, J alternatives, S situations in all, V attributes, M random coefficients.

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from _choice_cases import XLOGIT_FAMILIES, Peer
from _convergence import TOLERANCE, TOLERANCE_ANEW, Observed, evidence, evidence_anew, hessian_by_differences, judge
from _report import REPORTS, Report
from scipy import special, stats

from mixlogit_align.econometrics import ChoiceData, Random
from mixlogit_align.errors import ConvergenceWarning, MixlogitError

if TYPE_CHECKING:
    import pandas as pd

FAMILIES = (*XLOGIT_FAMILIES, "truncated_normal", "johnson_sb", "gamma")
USUAL = ("normal", "normal", "lognormal", "uniform", "triangular")  # half of the specifications have these only
POSITIVE = ("lognormal", "censored_normal", "truncated_normal", "gamma")
LOCATED = tuple(XLOGIT_FAMILIES)
ROWS = 4000  # alternatives of a data set, about
DRAWS = 200  # of xlogit
LIMIT = 30  # seconds of an estimation
GOOD = (
    "converged",
    "converged, draws too few, and said so",
    "named failure",
    "not converged, and said so",
    "out of time",
)
BAD = ("error not told", "false convergence", "NaN", "crash")


@dataclass
class Specification:
    """One data set and the model to be fitted to it.

    Attributes
    ----------
    seed : int
    attributes : array (S, J, V)
    available : array (S, J)
    choice, individual : array (S,)
    weights : array (N,)
    fixed : list of str
    random : dict of str to Random
    options : dict
        Of the model.
    traits : list of str
    """

    seed: int
    attributes: np.ndarray
    available: np.ndarray
    choice: np.ndarray
    individual: np.ndarray
    weights: np.ndarray
    fixed: list[str]
    random: dict[str, Random]
    panel: bool
    options: dict[str, Any] = field(default_factory=dict)
    traits: list[str] = field(default_factory=list)

    @property
    def variables(self) -> list[str]:
        return [*self.fixed, *self.random]

    def frame(self) -> pd.DataFrame:
        """Long, individuals by labels out of order."""
        import pandas as pd

        s, j, _ = self.attributes.shape
        labels = np.array([f"p{(7919 * i) % 10007}" for i in range(len(self.weights))])
        frame = pd.DataFrame(self.attributes.reshape(s * j, -1), columns=self.variables)
        return frame.assign(
            chosen=(np.arange(j) == self.choice[:, None]).ravel().astype(int),
            alternative=np.tile(np.arange(j), s),
            situation=np.repeat(np.arange(s), j),
            person=np.repeat(labels[self.individual], j),
            offered=self.available.ravel().astype(int),
            frequency=np.repeat(self.weights[self.individual], j),
        )

    def model(self) -> Observed:
        data = ChoiceData.from_long(
            self.frame(),
            choice="chosen",
            alternative="alternative",
            situation="situation",
            individual="person" if self.panel else None,
            variables=self.variables,
            availability="offered",
            weights="frequency",
        )
        return Observed(data, self.fixed, self.random, **self.options)

    def peer(self) -> Peer | None:
        """xlogit on the same data, where it has the model."""
        if self.options or any(random.family not in XLOGIT_FAMILIES for random in self.random.values()):
            return None
        s, j, _ = self.attributes.shape
        missing, weighted = not self.available.all(), bool((self.weights != 1.0).any())
        return Peer(
            dict(zip(self.variables, self.attributes.reshape(s * j, -1).T, strict=True)),
            (np.arange(j) == self.choice[:, None]).ravel(),
            j,
            {name: str(random) for name, random in self.random.items()},
            np.repeat(self.individual, j) if self.panel else None,
            self.available.ravel().astype(int) if missing else None,
            np.repeat(self.weights[self.individual], j) if weighted else None,
        )


def specification(seed: int) -> Specification:
    """The specification of a seed."""
    rng = np.random.default_rng(seed)

    def chance(probability: float) -> bool:
        return bool(rng.random() < probability)

    m, f, j = int(rng.integers(1, 6)), int(rng.integers(0, 3)), int(rng.integers(2, 11))
    families = [str(family) for family in rng.choice(USUAL if chance(0.5) else FAMILIES, m)]
    signs = [-1 if family in POSITIVE and chance(0.4) else 1 for family in families]
    panel = chance(0.65)
    t = round(math.exp(rng.uniform(0.0, math.log(100.0)))) if panel else 1
    # quantiles of the gamma take the most time by far
    least, most = (15, 600) if panel else (150, 600)
    most = max(least + 5, min(40 if "gamma" in families else most, ROWS // (t * j)))
    n = round(math.exp(rng.uniform(math.log(least), math.log(most))))
    counts = rng.integers(1, t + 1, n) if panel and chance(0.5) else np.full(n, t)
    individual = np.repeat(np.arange(n), counts)
    s = len(individual)
    traits = ["panel" if panel else "cross-section", *(["T > 30"] if t > 30 else []), *(["N < 30"] if n < 30 else [])]
    hard = 6.0 if chance(0.15) else 1.0
    traits += ["nearly separated"] * (hard > 1.0)

    names = [f"x{v}" for v in range(f + m)]
    units = 10.0 ** rng.uniform(-3.0, 3.0, f + m) if chance(0.7) else np.ones(f + m)
    traits += ["scaled attributes"] * bool((units != 1.0).any())
    x = rng.standard_normal((s, j, f + m))
    if chance(0.3):  # zeros and ones
        x[..., -1] = x[..., -1] > 0.5
    random = {}
    for name, family, sign, unit in zip(names[f:], families, signs, units[f:], strict=True):
        bounds = (0.0, 4.0 * hard / unit) if family == "johnson_sb" else None
        random[name] = Random(family, sign=sign, bounds=bounds)

    options: dict[str, Any] = {}
    located = [name for name in names[f:] if random[name].family in LOCATED]
    z = rng.standard_normal((n, m))
    if len(located) > 1 and chance(0.3):
        options["correlated"] = True if len(located) == m else [located]
        z = z @ np.linalg.cholesky(0.5 * np.eye(m) + 0.5).T
        traits.append("correlated")
    elif f and chance(0.08):
        options["wtp_space"] = names[0]
        traits.append("WTP space")
    elif chance(0.08):
        options["scale_heterogeneity"] = True
        traits.append("scale heterogeneity")

    fixed = rng.uniform(0.5, 1.5, f) * rng.choice([-1.0, 1.0], f)
    drawn = [sign * _coefficient(family, z[:, i]) for i, (family, sign) in enumerate(zip(families, signs, strict=True))]
    beta = hard * np.concatenate([np.tile(fixed, (n, 1)), np.stack(drawn, 1)], 1)
    utilities = (x * beta[individual][:, None]).sum(-1) + rng.gumbel(size=(s, j))
    available = np.ones((s, j), bool)
    if j > 2 and chance(0.4):
        available = rng.random((s, j)) < 0.7
        available[np.arange(s)[:, None], rng.random((s, j)).argsort(1)[:, :2]] = True
        traits.append("missing alternatives")
    weights = np.ones(n)
    if chance(0.25):
        weights = rng.uniform(0.5, 3.0, n)
        traits.append("weights")
    return Specification(
        seed,
        np.where(available[..., None], x * units, 0.0),
        available,
        np.where(available, utilities, -np.inf).argmax(1),
        individual,
        weights,
        names[:f],
        random,
        panel,
        options,
        traits,
    )


def _coefficient(family: str, z: np.ndarray) -> np.ndarray:
    """True coefficients of individuals, before sign and unit."""
    u = special.ndtr(z)
    found: np.ndarray = {
        "normal": lambda: 0.5 + z,
        "lognormal": lambda: np.exp(-0.3 + 0.6 * z),
        "uniform": lambda: 0.5 + 1.5 * (2.0 * u - 1.0),
        "triangular": lambda: 0.5 + 2.0 * stats.triang.ppf(u, 0.5, -1.0, 2.0),
        "censored_normal": lambda: np.maximum(0.0, 0.5 + z),
        "truncated_normal": lambda: stats.truncnorm.ppf(u, -0.5, np.inf, 0.5, 1.0),
        "johnson_sb": lambda: 4.0 * special.expit(z),
        "gamma": lambda: stats.gamma.ppf(u, 2.0) / 2.0,
    }[family]()
    return found


class OutOfTime(BaseException):
    """Not an error that anybody handles."""


@contextmanager
def limited() -> Iterator[None]:
    """At most LIMIT seconds."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ours(spec: Specification) -> dict[str, Any]:
    """Outcome here."""
    start = time.perf_counter()
    said = ""
    try:
        with limited(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = spec.model()
            result = model.fit()
        said = "; ".join(str(w.message) for w in caught if issubclass(w.category, ConvergenceWarning))
        others = [f"{w.category.__name__}: {w.message}" for w in caught if w.category is not ConvergenceWarning]
    except OutOfTime:
        return _outcome("out of time", start, f"stopped after {LIMIT} s")
    except MixlogitError as error:
        return _outcome("named failure", start, f"{type(error).__name__}: {error}")
    except Exception:
        return _outcome("crash", start, traceback.format_exc(limit=-2).strip().replace("\n", " "))
    seconds = time.perf_counter()
    numbers = [*result.params.values(), result.loglik, *(result.std_errors.values() if result.converged else ())]
    rule = result.integration.rule
    common = {"loglik": result.loglik, "rule": rule, "seconds": seconds - start, "other_warnings": others}
    if any(math.isnan(x) for x in numbers):
        return _outcome("NaN", start, said) | common
    if not result.converged:
        return _outcome("not converged, and said so" if said else "crash", start, said) | common
    found, anew = evidence(model, result), evidence_anew(model, result)
    common |= {"norm": found.norm, "eigenvalue": found.eigenvalue, "norm_anew": anew and anew.norm}
    if found.why_not:
        return _outcome("false convergence", start, found.why_not) | common
    if anew is not None and not anew.norm <= TOLERANCE_ANEW:
        told = math.hypot(*result.simulation_error.values())
        said = (
            f"on nodes made anew: {anew.why_not}; told: draws leave estimates uncertain by {told:.1g} standard errors"
        )
        enough = told >= TOLERANCE_ANEW / 2
        return _outcome("converged, draws too few, and said so" if enough else "error not told", start, said) | common
    return _outcome("converged", start, "") | common


def xlogits(spec: Specification) -> dict[str, Any] | None:
    """Outcome of xlogit by its default start and optimiser; None where it has no such model."""
    peer = spec.peer()
    if peer is None:
        return None
    start = time.perf_counter()
    try:
        with limited():
            model = peer.fit(DRAWS)
    except OutOfTime:
        return _outcome("out of time", start, f"stopped after {LIMIT} s")
    except Exception as error:
        return _outcome("crash", start, f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - start
    params = peer.params(model)
    common = {"loglik": float(model.loglikelihood), "seconds": seconds}
    at = np.array(list(params.values()))
    if np.isnan([*at, model.loglikelihood]).any() or (model.convergence and np.isnan(model.stderr).any()):
        return _outcome("NaN", start, "standard errors" if np.isfinite(at).all() else "estimates") | common
    if not model.convergence:
        return _outcome("not converged, and said so", start, "convergence=False") | common
    draws = peer.draws(DRAWS)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def gradient(point: np.ndarray) -> np.ndarray:
            return peer.loglik_gradient(dict(zip(peer.names, point, strict=True)), draws)[1]

        # a step in units of the coefficient, then in standard errors
        units = dict(zip(spec.variables, 1.0 / peer.x.std(0), strict=True))
        log = [name for name, random in spec.random.items() if random.family == "lognormal"]
        first = [1.0 if name.split(".")[0] in log else units[name.split(".")[0]] for name in peer.names]
        rough = -hessian_by_differences(gradient, at, 1e-4 * np.array(first)).diagonal()
        steps = 1e-3 * np.where(rough > 0.0, np.abs(rough) ** -0.5, first)
        found = judge(gradient(at), hessian_by_differences(gradient, at, steps), model.stderr.tolist())
    status = "false convergence" if found.why_not else "converged"
    return _outcome(status, start, found.why_not) | common | {"norm": found.norm, "eigenvalue": found.eigenvalue}


def _outcome(status: str, start: float, note: str) -> dict[str, Any]:
    return {"status": status, "note": note[:400], "seconds": time.perf_counter() - start}


def study(seed: int) -> dict[str, Any]:
    """Both outcomes of one seed."""
    torch.set_num_threads(1)
    spec = specification(seed)
    s, j, _ = spec.attributes.shape
    described = ", ".join([*spec.fixed, *(f"{name} {random}" for name, random in spec.random.items())])
    return {
        "seed": seed,
        "coefficients": described,
        "N": len(spec.weights),
        "S": s,
        "J": j,
        "T": int(np.bincount(spec.individual).max()),
        "traits": spec.traits,
        "ours": ours(spec),
        "xlogit": xlogits(spec),
    }


def new_report() -> Report:
    """Dated now."""
    return Report(
        "robustness",
        "Robustness: random specifications, many of them unkind",
        "Each specification is made from its seed and estimated from the default start with the default rule; by "
        f"xlogit, where it has the model, from its default start, with its default optimiser and {DRAWS} draws. "
        "‘Converged’ is verified from outside and ‘false convergence’ is a declared convergence where that fails: a "
        f"gradient above {TOLERANCE:g} standard errors in the metric of the inverse Hessian, a Hessian by finite "
        "differences that is not definite, or standard errors that are not finite. For estimates here the gradient "
        "too is by finite differences of the log-likelihood, and differences are over a thousandth of a standard "
        "error; where a censored normal breaks at 0 and gradients jump from draw to draw, the gradient's over a "
        "ten-thousandth, and the Hessian's over a tenth may do. ‘Draws too "
        f"few’: importance sampling by whose nodes made anew estimates would move by more than {TOLERANCE_ANEW:g} "
        "standard errors, in the metric of the inverse Hessian; ‘error not told’ where, moreover, the result's own "
        f"simulation_error, its root sum of squares, is below {TOLERANCE_ANEW / 2:g}. A named failure is an "
        f"error that says what is wrong with data or model. An estimation is stopped after {LIMIT} s.",
        "xlogit",
        "scipy",
    )


def fill(report: Report, rows: list[dict[str, Any]]) -> None:
    """Counts, claims and every odd row."""
    peers = [row for row in rows if row["xlogit"] is not None]
    counts = {
        "here, all": Counter(row["ours"]["status"] for row in rows),
        "here, where xlogit has the model": Counter(row["ours"]["status"] for row in peers),
        "xlogit": Counter(row["xlogit"]["status"] for row in peers),
    }
    table = [[who, sum(found.values()), *(found[status] for status in (*GOOD, *BAD))] for who, found in counts.items()]
    report.table("counts", "Outcomes", ["", "specifications", *GOOD, *BAD], table)
    for status in BAD:
        number = counts["here, all"][status]
        report.claim(f"{len(rows)} specifications", f"no {status} here", number, number == 0)
    gentle = [row for row in rows if "nearly separated" not in row["traits"]]
    good = sum(row["ours"]["status"] == "converged" for row in gentle)
    report.text(
        f"Of the {len(gentle)} that are not nearly separated {good} converged here. Median seconds here "
        f"{np.median([row['ours']['seconds'] for row in rows]):.2f}, longest "
        f"{max(row['ours']['seconds'] for row in rows):.1f}; xlogit "
        f"{np.median([row['xlogit']['seconds'] for row in peers] or [math.nan]):.2f}, longest "
        f"{max([row['xlogit']['seconds'] for row in peers] or [math.nan]):.1f}."
    )
    traits = sorted({trait for row in rows for trait in row["traits"]})
    by_trait = []
    for trait in traits:
        of = [row for row in rows if trait in row["traits"]]
        here = Counter(row["ours"]["status"] for row in of)
        there = Counter(row["xlogit"]["status"] for row in of if row["xlogit"] is not None)
        by_trait.append([trait, len(of), here["converged"], sum(there.values()), there["converged"]])
    columns = ["trait", "specifications", "converged here", "xlogit has the model", "converged in xlogit"]
    report.table("traits", "Verified convergence by trait", columns, by_trait)
    odd = [row for row in rows if row["ours"]["status"] != "converged" or row["ours"].get("other_warnings")]
    if odd:
        columns = ["seed", "coefficients", "N, S, J", "traits", "outcome", "what was said"]
        report.table(
            "odd",
            "Here, not converged or warned",
            columns,
            [
                [
                    row["seed"],
                    row["coefficients"],
                    f"{row['N']}, {row['S']}, {row['J']}",
                    ", ".join(row["traits"]),
                    row["ours"]["status"],
                    "; ".join([row["ours"]["note"], *row["ours"].get("other_warnings", [])]),
                ]
                for row in odd
            ],
        )
    failed = [row for row in peers if row["xlogit"]["status"] != "converged"]
    if failed:
        report.table(
            "xlogit",
            "xlogit, not converged",
            ["seed", "coefficients", "traits", "outcome", "what was found", "outcome here"],
            [
                [
                    row["seed"],
                    row["coefficients"],
                    ", ".join(row["traits"]),
                    row["xlogit"]["status"],
                    row["xlogit"]["note"],
                    row["ours"]["status"],
                ]
                for row in failed
            ],
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="seeds 0, 1, ...")
    parser.add_argument("--only", type=int, nargs="+", help="these seeds, without a report")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the reports")
    options = parser.parse_args()
    from joblib import Parallel, delayed

    start, report = time.perf_counter(), new_report()
    seeds = options.only or range(options.count)
    rows = []
    for row in Parallel(options.workers, return_as="generator")(delayed(study)(seed) for seed in seeds):
        rows.append(row)
        peer = row["xlogit"] or {"status": "-", "seconds": 0.0, "note": ""}
        print(
            f"{row['seed']:3d} {row['ours']['status']} ({row['ours']['seconds']:.1f} s) {row['ours']['note'][:150]} | "
            f"xlogit {peer['status']} ({peer['seconds']:.1f} s) {peer['note'][:60]}",
            flush=True,
        )
    print(f"{time.perf_counter() - start:.0f} s")
    if options.only:
        return 0
    fill(report, rows)
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
