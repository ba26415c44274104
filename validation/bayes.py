"""The posterior: NUTS on electricity beside maximum likelihood, and simulation-based calibration of a binary panel.

    python validation/bayes.py [--quick] [--out validation/reports]

Electricity needs MIXLOGIT_DATA; without it that part is left out, and the report says so. Quick: few draws and 20
simulations, to see that it runs. Writes bayes.md, bayes.json and bayes.png, and exits with 1 if a claim fails.
"""

# R replications, L thinned draws of each, B bins, N individuals.

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import arviz as az
import matplotlib
import numpy as np
import pyro.distributions as dist
import torch
from _choice_cases import BY_NAME
from _report import REPORTS, Report
from matplotlib.figure import Figure
from scipy import stats

from mixlogit_align.econometrics import BayesianMixedLogit, MixedLogitModel, simulate_choices
from mixlogit_align.errors import ConvergenceWarning

matplotlib.use("Agg")

# ---- calibration
PRIORS = {
    "x.loc": dist.Normal(torch.tensor(0.0, dtype=torch.float64), 0.75),
    "x.scale": dist.HalfNormal(torch.tensor(1.0, dtype=torch.float64)),
}
INDIVIDUALS, SITUATIONS = 30, 6
REPLICATIONS, QUICK_REPLICATIONS = 200, 20
WARMUP, KEPT, THIN, ACCEPT = 40, 39, 3, 0.7
BINS = 10
FAMILYWISE = 0.01
NARROW = 0.7
# ---- electricity
CHAINS, DRAWS, LONG_WARMUP = 4, 250, 100
WITHIN, SD_RATIO = 0.5, 0.2


# ---------------------------------------------------------------------- calibration


@dataclass(frozen=True)
class Calibration:
    """Ranks of truths among draws.

    Attributes
    ----------
    ranks : dict of str to array, shape (R,)
        Of parameters and of the log-likelihood, 0..L: how many thinned draws lie below the truth.
    narrow : dict of str to array, shape (R,)
        Ranks of the parameters had the draws been NARROW times as far from their mean.
    kept : int
        L.
    """

    ranks: dict[str, np.ndarray]
    narrow: dict[str, np.ndarray]
    kept: int


def calibrate(
    replications: int, *, kept: int = KEPT, warmup: int = WARMUP, seed: int = 0, told: bool = False
) -> Calibration:
    """Draw a truth from the priors, choices given the truth, and the posterior given the choices; again and again.

    Where the posterior is right, the rank of the truth among independent draws is uniform on 0..L (Talts, Betancourt,
    Simpson, Vehtari and Gelman 2018); that of the log-likelihood, too, which tells a posterior that overlooks the data
    (Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman and Vehtari 2023). Attributes are the same throughout.
    """
    design = simulate_choices(dist.LogNormal(0.0, 0.5), num_individuals=INDIVIDUALS, num_situations=SITUATIONS, seed=99)
    ranks: dict[str, list[int]] = {name: [] for name in (*PRIORS, "log-likelihood")}
    narrow: dict[str, list[int]] = {name: [] for name in PRIORS}
    for r in range(replications):
        own = 3 * (10**6 * seed + r)  # truth, choices and chain have a seed each
        torch.manual_seed(own)
        truth = {name: float(prior.sample()) for name, prior in PRIORS.items()}
        random = {"x": "lognormal"}
        data = simulate_choices(truth, random=random, data=design.data, seed=own + 1).data
        model = MixedLogitModel(data, random=random)
        with warnings.catch_warnings():  # chains are short on purpose; ranks judge them
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = BayesianMixedLogit(model, PRIORS).nuts(
                kept * THIN, warmup, num_chains=1, seed=own + 2, target_accept=ACCEPT
            )
        drawn = found.posterior.isel(chain=0, draw=slice(THIN - 1, None, THIN))
        for name, value in truth.items():
            values = drawn[name].values
            ranks[name].append(int((values < value).sum()))
            narrow[name].append(int((values.mean() + NARROW * (values - values.mean()) < value).sum()))
        logliks = found.log_likelihood["choice"].sum("individual").isel(chain=0, draw=slice(THIN - 1, None, THIN))
        ranks["log-likelihood"].append(int((logliks.values < float(model.loglik(truth).sum())).sum()))
        if told and (r + 1) % 20 == 0:
            print(f"{r + 1} of {replications} simulations", flush=True)
    as_arrays = [{name: np.array(values) for name, values in each.items()} for each in (ranks, narrow)]
    return Calibration(*as_arrays, kept)


def counts(ranks: np.ndarray, kept: int) -> np.ndarray:
    """Histogram of ranks in BINS equal bins."""
    return np.bincount(ranks * BINS // (kept + 1), minlength=BINS)


def band(replications: int, histograms: int) -> tuple[int, int]:
    """Least and largest count that all bins of all histograms keep to, but for a familywise rate (Bonferroni)."""
    tail = FAMILYWISE / (2 * BINS * histograms)
    law = stats.binom(replications, 1 / BINS)
    return int(law.ppf(tail)), int(law.isf(tail))


def calibration(report: Report, found: Calibration, out: Path) -> None:
    replications = len(found.ranks["x.loc"])
    low, high = band(replications, len(found.ranks))
    report.section(
        "Simulation-based calibration",
        f"A panel of {INDIVIDUALS} individuals with {SITUATIONS} choices between two, a lognormal strength, "
        f"loc ~ N(0, 0.75), scale ~ HalfNormal(1). {replications} times: a truth from the priors, choices from the "
        f"truth, the posterior by NUTS (individuals integrated out, one chain of {KEPT * THIN} draws, every third "
        f"kept), the rank of the truth among the {KEPT} draws kept. If all is right ranks are uniform: each of {BINS} "
        f"bins expects {replications / BINS:g}, and all bins of all histograms lie within {low} to {high} with "
        f"probability {1 - FAMILYWISE:g} or more.",
    )
    rows = []
    for name, ranks in found.ranks.items():
        histogram = counts(ranks, found.kept)
        inside = bool((histogram >= low).all() and (histogram <= high).all())
        claim = f"every bin of the rank histogram within {low} to {high}"
        report.claim(name, claim, [int(histogram.min()), int(histogram.max())], inside)
        pvalue = float(stats.chisquare(histogram).pvalue)
        rows.append([name, ", ".join(map(str, histogram)), float(ranks.mean() / found.kept), pvalue])
    columns = ["", "counts by bin", "mean rank / L", "chi-square p"]
    report.table("calibration", "Ranks of the truth", columns, rows)
    rows = []
    for name, ranks in found.narrow.items():
        histogram = counts(ranks, found.kept)
        pvalue = float(stats.chisquare(histogram).pvalue)
        rows.append([name, ", ".join(map(str, histogram)), pvalue])
    caption = f"What it would see: the same draws {NARROW:g} times as far from their mean"
    report.table("narrow", caption, ["", "counts by bin", "chi-square p"], rows)
    if replications == REPLICATIONS:
        smallest = max(float(stats.chisquare(counts(ranks, found.kept)).pvalue) for ranks in found.narrow.values())
        report.claim(
            "power", f"draws {NARROW:g} times as wide are seen, p < {FAMILYWISE:g}", smallest, smallest < FAMILYWISE
        )
    report.text("![Rank histograms](bayes.png)")
    picture(found, low, high, out / "bayes.png")


def picture(found: Calibration, low: int, high: int, path: Path) -> None:
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for axes, (name, ranks) in zip(figure.subplots(1, len(found.ranks), sharey=True), found.ranks.items(), strict=True):
        axes.axhspan(low, high, color="0.9", label=f"{1 - FAMILYWISE:.0%} of all three")
        axes.axhline(len(ranks) / BINS, color="0.5", linewidth=0.8)
        axes.bar((np.arange(BINS) + 0.5) / BINS, counts(ranks, found.kept), width=0.9 / BINS, color="C0")
        axes.set(title=name, xlabel="rank of the truth / L", xlim=(0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


# ---------------------------------------------------------------------- electricity


def electricity(report: Report, folder: Path, quick: bool) -> None:
    case = BY_NAME["P1"]
    data = case.data(folder)
    model = case.model(data)
    result = model.fit(num_redraws=0)
    bayes = BayesianMixedLogit(model)
    settings: dict[str, Any] = {"num_samples": DRAWS, "num_warmup": LONG_WARMUP, "num_chains": CHAINS, "seed": 1}
    if quick:
        settings |= {"num_samples": 30, "num_warmup": 20, "num_chains": 2}
    start = time.process_time()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ConvergenceWarning)
        found = bayes.nuts(**settings)
    seconds = time.process_time() - start
    attrs = found.posterior.attrs
    report.section(
        "Electricity",
        f"{data.num_individuals} individuals, {data.num_situations} choices among four suppliers, six normal "
        "coefficients; the package's default priors. "
        f"NUTS with individuals integrated out: {settings['num_chains']} chains of {settings['num_samples']} draws "
        f"after {settings['num_warmup']}, {seconds:.0f} CPU-seconds with all that the InferenceData holds; the "
        f"likelihood by {attrs['integration']}. Maximum likelihood by {result.integration.rule}: log-likelihood "
        f"{result.loglik:.3f}.",
    )
    summary = az.summary(found, round_to=6)
    rows, distances, ratios = [], [], []
    for name, value in result.params.items():
        mean, sd, error = summary["mean"][name], summary["sd"][name], result.std_errors[name]
        distances.append(abs(mean - value) / sd)
        ratios.append(abs(sd / error - 1))
        diagnostics = [float(summary["ess_bulk"][name]), f"{summary['r_hat'][name]:.4f}"]
        rows.append([name, value, error, float(mean), float(sd), float((mean - value) / sd), *diagnostics])
    columns = ["", "estimate", "standard error", "posterior mean", "posterior sd", "difference / sd", "ESS", "R-hat"]
    report.table("electricity", "Maximum likelihood and posterior", columns, rows)
    if quick:
        return
    claim = f"posterior means within {WITHIN:g} posterior sds of the estimates"
    report.claim("means", claim, float(max(distances)), max(distances) <= WITHIN)
    claim = f"posterior sds within {SD_RATIO:.0%} of the Hessian's standard errors"
    report.claim("sds", claim, float(max(ratios)), max(ratios) <= SD_RATIO)
    diverging, rhat = int(found.sample_stats["diverging"].sum()), float(summary["r_hat"].max())
    report.claim("chains", "no divergence, R-hat at most 1.02", [diverging, rhat], not diverging and rhat <= 1.02)
    report.text("Warnings: " + ("; ".join(str(each.message) for each in told) or "none") + ".")
    error = attrs["integration_sd"]
    report.claim("integration", "error of the log-likelihood over the posterior at most 0.5", error, error <= 0.5)
    criteria(report, data, found)
    variational(report, bayes, summary, list(result.params))


def criteria(report: Report, data: Any, mixed: Any) -> None:
    """Leave-one-individual-out beside a logit, and shares that the posterior foresees."""
    variables = [name.removesuffix(".loc") for name in mixed.posterior if name.endswith(".loc")]
    rows = []
    with warnings.catch_warnings(record=True):  # arviz's use of pandas; the logit's chains are as long
        plain = BayesianMixedLogit(MixedLogitModel(data, variables)).nuts(DRAWS, LONG_WARMUP, CHAINS, seed=1)
        table = az.compare({"six normals": mixed, "conditional logit": plain}, ic="loo")
        for name, each in (("six normals", mixed), ("conditional logit", plain)):
            loo, waic = az.loo(each, pointwise=True), az.waic(each)
            rows.append([name, float(loo.elpd_loo), float(loo.p_loo), float(loo.se), float(waic.elpd_waic),
                         float(loo.pareto_k.max())])  # fmt: skip
    columns = ["", "elpd (LOO)", "p (LOO)", "se", "elpd (WAIC)", "largest Pareto k"]
    report.table("loo", "Expected log predictive density, leaving out one individual", columns, rows)
    gain, error = float(table["elpd_diff"].iloc[1]), float(table["dse"].iloc[1])
    report.claim("az.compare", "the mixed logit foresees individuals better, by 10 standard errors or more",
                 [gain, error], table.index[0] == "six normals" and gain >= 10 * error)  # fmt: skip
    observed = np.bincount(mixed.observed_data["choice"].values, minlength=4) / data.num_situations
    drawn = mixed.posterior_predictive["choice"].values
    shares = np.stack([(drawn == j).mean(-1).ravel() for j in range(4)])
    rows = [[j + 1, float(observed[j]), float(shares[j].mean()), *np.quantile(shares[j], [0.025, 0.975]).tolist()]
            for j in range(4)]  # fmt: skip
    columns = ["alternative", "observed", "posterior predictive", "2.5 %", "97.5 %"]
    report.table("shares", "Shares, and those of as many new individuals", columns, rows)


def variational(report: Report, bayes: BayesianMixedLogit, summary: Any, names: list[str]) -> None:
    """The default guide beside NUTS."""
    start = time.process_time()
    found = bayes.svi(500, num_samples=400, seed=1)
    seconds = time.process_time() - start
    rows, far = [], []
    for name in names:
        values = found.posterior[name]
        mean, sd = float(values.mean()), float(values.std())
        far.append(abs(mean - summary["mean"][name]) / summary["sd"][name])
        rows.append([name, mean, sd, float(far[-1]), sd / float(summary["sd"][name])])
    caption = f"Variational inference: a normal guide of 500 steps, {seconds:.0f} CPU-seconds"
    columns = ["", "mean", "sd", "difference from NUTS / sd", "sd / that of NUTS"]
    report.table("svi", f"{caption}, Pareto k {found.posterior.attrs['pareto_k']:.2f}", columns, rows)
    report.claim("SVI", "means within 0.3 posterior sds of NUTS", float(max(far)), max(far) <= 0.3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few draws and simulations")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the reports")
    options = parser.parse_args()
    intro = "Posteriors of mixed logits by Pyro's no-U-turn sampler, against what is known by other ways."
    report = Report("bayes", "Bayesian estimation", intro, "pyro-ppl", "arviz")
    named = os.environ.get("MIXLOGIT_DATA")
    if named and (Path(named) / "choice").is_dir():
        electricity(report, Path(named) / "choice", options.quick)
        print("electricity done", flush=True)
    elif os.environ.get("MIXLOGIT_REQUIRE_DATA") == "1":
        print(f"MIXLOGIT_DATA: got {named!r}; expected a folder that holds choice/", file=sys.stderr)
        return 2
    else:
        report.section("Electricity", "Left out: MIXLOGIT_DATA names no folder that holds choice/.")
    found = calibrate(QUICK_REPLICATIONS if options.quick else REPLICATIONS, told=True)
    calibration(report, found, options.out)
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
