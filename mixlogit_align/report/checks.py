"""The verdict: what was asked of recoveries and runs, and whether it came out so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixlogit_align.alignment.loss_config import DPO, MixDPO
from mixlogit_align.report.files import Evidence, Recovery, Run, data_names, labels, strength_distribution
from mixlogit_align.report.measured import main_metric

# What a recovery allows itself, in standard errors; the report may not import the room that recovers.
Z_BOUND = 4.5
# A process that is killed leaves no word of it.
STATES = {"running": "running, or killed"}
# Runs that a line of the verdict tells one by one; of more it counts those that passed.
FEW = 6


@dataclass(frozen=True)
class Check:
    """One thing that was asked.

    Parameters
    ----------
    passed : bool or None
        None where an interruption left it open, a loss moved too little to tell, or an interval holds the null.
    text : str
        What came out, with its numbers.
    """

    passed: bool | None
    text: str


def checks(evidence: Evidence) -> list[Check]:
    """Judge every recovery, then the runs on each kind of data together, then each against what it was compared with.

    Nothing here speaks of heterogeneity: a spread of strength that training has learned is no evidence of it.
    """
    tuned = [run for run in evidence.runs if run.config.preference is None]
    gained: dict[str, list[Check]] = {}
    won: dict[str, list[Check]] = {}
    for world, runs in evidence.by_data.items():
        where = f" on {world}" if len(evidence.by_data) > 1 else ""
        for label, run in zip(labels(runs), runs, strict=True):
            for found in run.gains.values():
                pairs = f"{found['averages'][0]['num_pairs']:,} held-out pairs{where}"
                gained.setdefault(f"Gains over {found['against']} ({pairs})", []).append(_gained(label, found))
            for found in run.winrates.values():
                won.setdefault(f"Win rates against {found['opponent']}{where}", []).append(_won(label, found))
    return [
        *(check for recovery in evidence.recoveries for check in _recovered(recovery)),
        *([_trained(f"Supervised fine-tuning on {data_names(tuned)}", "sft", tuned)] if tuned else []),
        *(_trained(f"Aligned on {world}", "preference", runs) for world, runs in evidence.worlds.items()),
        *(_together(what, together) for what, together in {**gained, **won}.items()),
    ]


def _together(what: str, found: Sequence[Check]) -> Check:
    """Checks of several runs as one: what each says or, of more than a few, what those say that did not pass."""
    outcomes = [check.passed for check in found]
    passed = False if False in outcomes else None if None in outcomes else True
    if len(found) <= FEW:
        return Check(passed, f"{what}: {'; '.join(check.text for check in found)}.")
    text = f"{what}: {outcomes.count(True)} of {len(found)} runs passed"
    for outcome, word in ((False, "failed"), (None, "open")):
        named = [check.text for check in found if check.passed is outcome]
        more = f" and {len(named) - FEW} more" if len(named) > FEW else ""
        text += f"; {word}: {'; '.join(named[:FEW])}{more}" if named else ""
    return Check(passed, f"{text}.")


def _recovered(recovery: Recovery) -> list[Check]:
    good = sum(row["passed"] for row in recovery.rows)
    total = len(recovery.rows)
    complete = recovery.passed or good < total
    aside = "" if complete else "; interrupted before the rest"
    against = ", with xlogit beside it" if recovery.beside_xlogit else ""
    found = [
        Check(
            recovery.passed if complete else None,
            f"Known strengths recovered{against}: {good} of {total} cases, the worst estimate "
            f"{recovery.largest_z:.1f} standard errors from the truth (allowed: {Z_BOUND}){aside}.",
        )
    ]
    compared = [row for row in recovery.rows if row["xlogit_estimate"] is not None]
    if compared:
        loglik, gradient, fit = (
            max(row[name] for row in compared) for name in ("loglik_rel_diff", "gradient_rel_diff", "fit_abs_diff")
        )
        found.append(
            Check(
                all(row["passed"] for row in compared),
                f"Same as xlogit on xlogit's own draws, in {len(compared)} cases: log-likelihood to {loglik:.0e} and "
                f"gradient to {gradient:.0e} relative, estimates to {fit:.0e}.",
            )
        )
    return found


def _trained(what: str, stage: str, runs: Sequence[Run]) -> Check:
    """Every run finished, with a lower held-out loss than it began with; open where it hardly moved."""
    found = []
    for label, run in zip(labels(runs), runs, strict=True):
        losses = run.series(stage, "eval", "loss")[1]
        outcome = {"finished": bool(losses) and losses[-1] < losses[0], "failed": False}.get(run.status)
        reached = f"{losses[0]:.4f} to {losses[-1]:.4f}" if losses else "not measured"
        aside = "" if run.status == "finished" else f" ({run.error or STATES.get(run.status, run.status)})"
        if outcome and stage == "preference" and losses[0] - losses[-1] < (least := _least_gain(run)):
            outcome, aside = None, f" (hardly moved: a fall below {least:.4f} may be chance)"
        found.append(Check(outcome, f"{label} {reached}{aside}"))
    return _together(f"{what}, held-out loss", found)


def _gained(label: str, found: Mapping[str, Any]) -> Check:
    """A larger margin than another run's, by its interval; open where the likelihood says the opposite."""
    overall = found["averages"][0]
    metric = main_metric(found)
    judged = [name for name in (metric, "loglik") if name in overall["estimates"]]
    sides = [_side(overall["estimates"][name], 0.0) for name in judged]
    contrary = " (margin and likelihood disagree)" if -sides[0] in sides[1:] and sides[0] else ""
    outcome = _outcome(sides)
    parts = [f"{name} {_estimate(overall['estimates'][name])}" for name in dict.fromkeys(judged)]
    return Check(outcome, f"{label} {', '.join(parts)}{contrary}")


def _won(label: str, found: Mapping[str, Any]) -> Check:
    """More than half of the prompts won, by the interval; open where the rate at equal lengths says the opposite."""
    estimates = [{**found["interval"], "value": found["win_rate"]["percent"]}]
    text = f"{label} {_percent(estimates[0])}"
    if found["controlled"] is not None:
        estimates.append(found["controlled"])
        text += f", at equal lengths {_percent(found['controlled'])}"
    outcome = _outcome([_side(estimate, 50.0) for estimate in estimates])
    return Check(outcome, f"{text}, judged by {found['judge']}")


def _side(estimate: Mapping[str, Any], null: float) -> int:
    """On which side of the null the interval lies; 0 where it holds it, or there is none."""
    if estimate["lower"] is None or estimate["upper"] is None:
        return 0
    return int(estimate["lower"] > null) - int(estimate["upper"] < null)


def _outcome(sides: Sequence[int]) -> bool | None:
    """By the first, unless another lies on the opposite side."""
    first = sides[0]
    return None if first == 0 or -first in sides else first > 0


def _estimate(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "unknown"
    interval = "no interval" if found["lower"] is None else f"{found['lower']:+.3g} to {found['upper']:+.3g}"
    return f"{found['value']:+.3g} ({interval})"


def _percent(found: Mapping[str, Any]) -> str:
    return f"{found['value']:.1f} % ({found['lower']:.1f} to {found['upper']:.1f})"


def _least_gain(run: Run) -> float:
    """Two standard errors of the paired fall in held-out loss (each pair began at log 2).

    1 % of where it began without log-ratios, and for losses that are no likelihood of one strength.
    """
    import torch

    from mixlogit_align.distributions import MixedLogit

    preference = run.config.preference
    likelihood = preference is not None and isinstance(preference.loss, MixDPO | DPO)
    if run.log_ratios is None or run.strength is None or not likelihood:
        return 0.01 * abs(run.series("preference", "eval", "loss")[1][0])
    delta, weights = (torch.tensor(run.log_ratios[name], dtype=torch.float64) for name in ("logratio_diff", "weight"))
    gain = MixedLogit(delta, strength_distribution(run.strength)).log_prob(torch.ones_like(delta)) + math.log(2)
    share = weights / weights.sum()
    return 2 * math.sqrt((share * (gain - (share * gain).sum())).square().sum().item())
