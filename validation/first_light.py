"""First light: the likelihood beside xlogit on xlogit's own draws, and known strengths recovered.

    python validation/first_light.py [--out DIR] [--quick]

Writes DIR/first_light.json, prints a table, and exits with 1 if any check fails, with 130 on Ctrl-C: the file then
holds the cases done and says "interrupted". For every case:

1. given xlogit's Halton draws through FixedDraws, MixedLogit and PanelMixedLogit themselves have xlogit's
   log-likelihood and gradient, at several parameters;
2. the fit on those draws is xlogit's fit;
3. MixedLogitModel has the log-likelihood of those distributions;
4. with its own, accurate integration it recovers the truth: |estimate - truth| <= 4.5 standard errors. Seeds are
   fixed; over other seeds a normal z would exceed 4.5 in 7e-6 of the estimates. The gamma's z are skewed: in 900
   simulated repetitions of the lognormal and gamma cases the largest |z| was 3.7.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import REPORTS, provenance
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mixlogit_align import ClosedForm, FixedDraws, MixedLogit, PanelMixedLogit, Quadrature
from mixlogit_align.cli import FAILED, INTERRUPTED, PASSED
from mixlogit_align.econometrics import MixedLogitModel, SimulatedChoices
from mixlogit_align.recovery import CASES, Case, recover

# Two different summations of the same terms in float64.
SAME_LOGLIK = 1e-8
SAME_MODEL = 1e-10
# Both optimisers stop within 1e-3 standard errors of the top; standard errors here are below 0.1.
SAME_FIT = 1e-4

XLOGIT_NAMES = {"normal": "n", "lognormal": "ln", "uniform": "u", "triangular": "t"}


class Peer:
    """xlogit on one binary data set, with its own draws.

    ``_loglik_gradient`` is what xlogit minimises: minus the log-likelihood and minus its gradient in (loc,
    scale), from attribute differences, panel indices and draws (individuals, 1, R).
    """

    def __init__(self, simulated: SimulatedChoices, family: str, num_draws: int) -> None:
        from xlogit import MixedLogit as XlogitMixedLogit

        self.new = XlogitMixedLogit
        self.frame, self.family, self.num_draws = simulated.frame, XLOGIT_NAMES[family], num_draws
        self.num_situations = simulated.choice.shape[1]
        model = self.new()
        model._rvidx, model._rvdist = np.array([True]), [self.family]
        self.draws = model._generate_draws(len(simulated.strength), num_draws, True)
        self._model = model
        x, chosen = simulated.attributes.flatten(0, 1).numpy(), simulated.choice.flatten().numpy()
        rows = np.arange(len(x))
        self._difference = (x[rows, 1 - chosen] - x[rows, chosen])[:, None, None]
        self._panels = np.repeat(np.arange(len(simulated.strength)), self.num_situations)

    def loglik_gradient(self, params: list[float]) -> tuple[float, np.ndarray]:
        """Log-likelihood and gradient at (loc, scale)."""
        panels = self._panels if self.num_situations > 1 else None
        draws = self.draws if panels is None else self.draws[panels]
        value, gradient, _ = self._model._loglik_gradient(
            np.array(params), self._difference, panels, draws, None, None, None, None, None
        )
        return -float(value), -gradient

    def fit(self, **options: Any) -> Any:
        """xlogit's own fit, silenced."""
        model, frame = self.new(), self.frame
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            model.fit(
                X=frame[["x"]],
                y=frame["choice"],
                varnames=["x"],
                alts=frame["alternative"],
                ids=frame["situation"],
                panels=frame["individual"] if self.num_situations > 1 else None,
                randvars={"x": self.family},
                n_draws=self.num_draws,
                verbose=0,
                **options,
            )
        return model

    def default_fit(self, best: float) -> str:
        """What happens from xlogit's default start, given the log-likelihood that can be reached."""
        try:
            model = self.fit()
        except Exception as error:  # any failure of the peer is a finding, not an end
            return f"failed: {type(error).__name__}: {error}"
        if not model.convergence:
            return f"failed: {model.estimation_message}"
        if not model.loglikelihood > best - 1e-3:
            return f"failed: 'converged' at log-likelihood {model.loglikelihood:.3f}, {best:.3f} can be reached"
        return "converged"


def loglik(simulated: SimulatedChoices, mixing: Any, rule: Any = None) -> torch.Tensor:
    """Log-likelihood by the distributions themselves, from the simulated arrays."""
    first, second = simulated.attributes.unbind(-1)
    chosen = simulated.choice.to(torch.float64)
    if simulated.choice.shape[1] > 1:
        return PanelMixedLogit(second - first, mixing, rule).log_prob(chosen).sum()
    return MixedLogit((second - first)[:, 0], mixing, rule).log_prob(chosen[:, 0]).sum()


def compare_at_fixed_parameters(case: Case, simulated: SimulatedChoices, peer: Peer) -> tuple[float, float]:
    """Largest relative differences of log-likelihood and gradient from xlogit's, at three parameters."""
    rule = FixedDraws(torch.from_numpy(peer.draws[:, 0]))
    loc, scale = case.true.values()
    values, gradients = [], []
    for point in ([loc, scale], [0.5 * loc + 0.2, 1.5 * scale], [-0.4, 0.3]):
        params = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        ours = loglik(simulated, case.mixing(*params), rule)
        (gradient,) = torch.autograd.grad(ours, params)
        theirs, their_gradient = peer.loglik_gradient(point)
        values.append(abs(ours.item() - theirs) / abs(theirs))
        gradients.append(float(np.abs(gradient.numpy() - their_gradient).max() / np.abs(their_gradient).max()))
    return max(values), max(gradients)


def against_xlogit(case: Case, simulated: SimulatedChoices, num_draws: int, model: MixedLogitModel) -> dict[str, Any]:
    """Checks 1 and 2."""
    peer = Peer(simulated, case.family, num_draws)
    loglik_difference, gradient_difference = compare_at_fixed_parameters(case, simulated, peer)
    ours = model.fit(integration=FixedDraws(torch.from_numpy(peer.draws[:, 0])))
    # a start that works, and tolerances below the comparison's
    theirs = peer.fit(
        init_coeff=np.array(list(case.true.values())),
        optim_method="L-BFGS-B",
        tol_opts={"ftol": 1e-14, "gtol": 1e-6},
        skip_std_errs=True,
    )
    fit_difference = float(np.abs(np.array(list(ours.params.values())) - theirs.coeff_).max())
    return {
        "xlogit_estimate": dict(zip(case.true, theirs.coeff_.tolist(), strict=True)),
        "xlogit_loglik": float(theirs.loglikelihood),
        "loglik_rel_diff": loglik_difference,
        "gradient_rel_diff": gradient_difference,
        "fit_abs_diff": fit_difference,
        "xlogit_default_start": peer.default_fit(float(theirs.loglikelihood)),
    }


def run(case: Case, num_draws: int) -> dict[str, Any]:
    """One row: simulate, compare, recover."""
    start = time.perf_counter()
    recovered = recover(case)
    row, fit, model, checks = recovered.row, recovered.fit, recovered.model, dict(recovered.checks)
    notes = [recovered.integration]

    mixing = case.mixing(*torch.tensor([1.1, 0.6], dtype=torch.float64))
    by_model = float(model.loglik(mixing).sum())
    by_distribution = float(loglik(recovered.simulated, mixing))
    checks["model is the distribution"] = abs(by_model / by_distribution - 1.0) <= SAME_MODEL

    if case.heterogeneous and case.family in XLOGIT_NAMES:
        row = row | against_xlogit(case, recovered.simulated, num_draws, model)
        checks["xlogit's log-likelihood"] = row["loglik_rel_diff"] <= SAME_LOGLIK
        checks["xlogit's gradient"] = row["gradient_rel_diff"] <= SAME_LOGLIK
        checks["xlogit's fit"] = row["fit_abs_diff"] <= SAME_FIT
        if row["xlogit_default_start"] != "converged":
            notes.append(
                f"xlogit from its default start {row['xlogit_default_start']}; fitted from the truth, L-BFGS-B"
            )
    if case.heterogeneous and case.family == "gamma":
        other = Quadrature(300) if case.panel else Quadrature()
        first = "Quadrature()" if case.panel else repr(ClosedForm())
        second = model.fit(integration=other)
        apart = max(abs(second.params[k] - fit.params[k]) / fit.std_errors[k] for k in fit.params)
        notes.append(f"{first} and {other!r}: estimates {apart:.0e} standard errors apart")
        checks["two rules agree"] = apart <= 1e-5 and abs(second.loglik / fit.loglik - 1.0) <= SAME_MODEL
    if not case.heterogeneous:
        ratio = f"likelihood ratio against a fixed strength {recovered.likelihood_ratio:.2f}"
        notes.append("at the boundary" if fit.at_boundary else ratio)

    failed = [name for name, good in checks.items() if not good]
    if failed:
        notes.append("FAILED: " + ", ".join(failed))
    return row | {"note": "; ".join(notes), "seconds": time.perf_counter() - start, "passed": not failed}


def recovery_table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(title="Known strengths recovered")
    for column in ("case", "parameter", "true", "estimate", "std. error", "z", ""):
        shown.add_column(column, justify="left" if column in ("case", "parameter") else "right")
    for row in rows:
        for i, (name, true) in enumerate(row["true"].items()):
            shown.add_row(
                row["case"] if i == 0 else "",
                name,
                f"{true:g}",
                f"{row['estimate'][name]:.4f}",
                f"{row['std_error'][name]:.4f}",
                f"{row['z'][name]:+.2f}" if name in row["z"] else "",
                ("ok" if row["passed"] else "FAILED") if i == 0 else "",
            )
    return shown


def xlogit_table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(title="Distance from xlogit on its own draws")
    for column in ("case", "log-likelihood", "gradient", "fit", "xlogit's default start"):
        shown.add_column(column, overflow="fold")
    for row in rows:
        if row["xlogit_estimate"] is not None:
            differences = (row[key] for key in ("loglik_rel_diff", "gradient_rel_diff", "fit_abs_diff"))
            start = row["xlogit_default_start"].partition(":")[0]
            shown.add_row(row["case"], *(f"{value:.0e}" for value in differences), start)
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder for first_light.json")
    parser.add_argument("--quick", action="store_true", help="four cases only")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    chosen = [case for case in CASES if case.quick or not options.quick]
    head = provenance("pyro-ppl", "numpy", "scipy", "xlogit")
    machine = head["machine"]
    report: dict[str, Any] = {
        **head,
        "machine": f"{machine['system']}, {machine['processor']}, {machine['cores']} cores, "
        f"{machine['torch_threads']} torch threads",
        "rows": [],
        "passed": False,
        "interrupted": True,  # until the last case is done
    }

    def save() -> None:  # after every case, so that an interrupted run leaves what it has
        (options.out / "first_light.json").write_text(json.dumps(report, indent=1) + "\n")

    with contextlib.suppress(KeyboardInterrupt), Progress(console=console, transient=True) as progress:
        task = progress.add_task("first light", total=len(chosen))
        for case in chosen:
            progress.update(task, description=case.name)
            report["rows"].append(run(case, num_draws=100))
            save()
            progress.advance(task)
        report["interrupted"] = False
        report["passed"] = all(row["passed"] for row in report["rows"])
        save()
    if not report["rows"]:
        console.print("Interrupted before the first case was done: nothing written")
        return INTERRUPTED
    console.print(recovery_table(report["rows"]), xlogit_table(report["rows"]))
    for row in report["rows"]:
        console.print(f"{row['case']}: {row['note']}", highlight=False)
    verdict = "Interrupted" if report["interrupted"] else "All checks passed" if report["passed"] else "NOT passed"
    done = f"{len(report['rows'])} of {len(chosen)} cases"
    console.print(f"{verdict} ({done}): {options.out / 'first_light.json'}", highlight=False)
    return INTERRUPTED if report["interrupted"] else PASSED if report["passed"] else FAILED


if __name__ == "__main__":
    sys.exit(main())
