"""The MixDPO paper's claims, each as a quantity that is above 0 where the claim is right."""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _small_scale_measures import METRICS, Measured, Study, cells, excess_variance, one, over_seeds, verdict
from _small_scale_runs import DATA, FAMILIES, FAST, PAPER, SIMULATED, TRUE_CV

from mixlogit_align.alignment.evaluation import Average, Estimate

PEOPLE = ("educ", "sex", "age", "race", "region")
QUESTION = "domain"

# Why a claim need not show at this scale, by its words.
WHY = {
    "margins differ between subgroups": "a policy that is not told who asks has one order for all: groups differ only "
    "in how far they agree with it, and a few hundred held-out people show no small differences",
    "margins differ between questions": "the seeds' held-out votes on a question are few",
    "a check that has to show: margins differ between halves that differ": "the seeds differ by more than the halves",
    "a check that must not show: margins differ between halves that are alike": "as it has to be",
    "underrepresented groups have lower margins": "small groups have wide intervals, and nothing ties a group's margin "
    "to its size but how far its votes agree with everyone's",
    "macro averaged margin gains": "margins are in nats: they grow with the log-ratios that a loss asks for, and that "
    "follows the strength's mean and shape, not subgroups",
    "macro averaged gains that are no matter of scale": "which response is preferred is learned alike; a random "
    "strength changes how much a pair weighs",
    "micro averaged margin is kept": "seeds differ by more than the tolerance",
    "micro averaged accuracy is kept": "seeds differ by more than the tolerance",
    "no demographic group loses margin": "the smallest of many noisy gains is below 0 even where nothing is lost",
    "no context loses margin": "the smallest of many noisy gains is below 0 even where nothing is lost",
    "win rate above DPO's": "which response is preferred is learned alike, and seeds differ by more than methods",
    "win rate above DPO's at a faster rate": "a policy makes up for another strength by the scale of its log-ratios "
    "(larger ones make surer draws); which response is preferred is learned alike",
    "learning the strength at 1e-4 beats leaving it frozen": "at 1e-4 the strength moves by a few per cent in these "
    "steps, as its learning rate bounds",
    "1e-4 beats a faster rate": "a policy makes up for another strength by the scale of its log-ratios, which changes "
    "no order",
    "the gain is largest where preferences differ most": "gains over DPO are small beside their spread over seeds",
    "the variance ends higher where preferences differ more": "the variance is in the unit of the policy's "
    "log-ratios: it is the mean squared times the cv squared, and the mean falls where log-ratios are too large for "
    "the votes (pairs that are hard to learn) and rises where they are too small, alike or not",
    "the cv ends higher where preferences differ more": "one comparison at a time tells the cv through the shape of "
    "the log-ratios alone, and the learning rate bounds its way",
    "the distribution collapses where preferences are alike": "the learning rate bounds the way, and a policy makes up "
    "for a spread that is not there",
    "the learned spread measures heterogeneity": "one comparison at a time hardly tells the spread, and the learning "
    "rate bounds its way: it ends near where it began",
    "the overhead is modest": "the benchmark's policy or machine is another",
    "a random strength costs what the paper says": "the closed form and its derivative take the place of sums of 1,000 "
    "terms, and all of it is small beside a policy's passes",
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper as a quantity that is above 0 where the claim is right.

    Parameters
    ----------
    section : str
        Of the paper.
    claim : str
        In few words.
    data : str
    method : str
    quantity : str
        What stands for it here, and in which unit.
    values : sequence of float
        One a seed.
    least : float
        The smallest value that would matter.
    note : str
        What limits what it says at this scale.
    known : Estimate, optional
        Where it was measured elsewhere, and there are no values.
    """

    section: str
    claim: str
    data: str
    method: str
    quantity: str
    values: Sequence[float]
    least: float
    note: str
    known: Estimate | None = None

    @property
    def estimate(self) -> Estimate:
        return over_seeds(self.values) if self.known is None else self.known

    @property
    def verdict(self) -> str:
        return verdict(self.estimate, self.least)


def subgroup_claims(study: Study, seeds: Sequence[int]) -> list[Claim]:
    """Section 5.1: averages hide that margins differ between subgroups."""

    def dpo(data: str) -> list[Measured]:
        return [study[data, "DPO", seed] for seed in seeds]

    def spread(measured: Measured, attributes: Sequence[str]) -> float:
        overall = measured.mean("margin/sum").value
        found = []
        for attribute in attributes:
            levels = [average.estimates["margin/sum"] for average in cells(measured.evaluation.averages, attribute)]
            excess = excess_variance([x.value for x in levels], [x.standard_error for x in levels])
            found.append(excess / overall**2)
        return statistics.fmean(found)

    def behind(measured: Measured) -> float:
        averages = measured.evaluation.averages
        smallest = cells(averages, PEOPLE[0])[::-1]
        smallest = smallest[: len(smallest) // 2]
        macro = one(averages, PEOPLE[0], "macro").estimates["margin/sum"].value
        mean = statistics.fmean(average.estimates["margin/sum"].value for average in smallest)
        return (macro - mean) / measured.mean("margin/sum").value

    unit = "variance of true subgroup means beyond their standard errors, over the squared mean margin"
    found = [
        Claim(
            section="5.1, Fig. 2", claim=claim, data=data, method="DPO", quantity=f"{unit}; {what}",
            values=[spread(measured, attributes) for measured in dpo(data)], least=0.01,
            note=note,
        )
        for claim, data, what, attributes, note in (
            ("margins differ between subgroups", "mg2019", "education", PEOPLE[:1],
             "the policy is not told who asks: a group's margin is how far it agrees with everyone's order"),
            ("margins differ between subgroups", "mg2019", "five demographics", PEOPLE, "as above"),
            ("margins differ between questions", "mg2019", "question", (QUESTION,),
             "questions differ in texts and in how far people agree; their people are the same, which the variance "
             "leaves out"),
            ("a check that has to show: margins differ between halves that differ", SIMULATED[1],
             "weaker and stronger half of the annotators", ("cohort",),
             "the stronger half's votes follow the utilities more closely"),
            ("a check that must not show: margins differ between halves that are alike", SIMULATED[0],
             "halves of annotators who are all alike", ("cohort",), "any difference is by chance"),
        )
    ]  # fmt: skip
    found.append(
        Claim(
            section="5.1, Fig. 2", claim="underrepresented groups have lower margins", data="mg2019", method="DPO",
            quantity="macro average less the mean of the smaller half of education levels, over the mean margin",
            values=[behind(measured) for measured in dpo("mg2019")], least=0.05,
            note="three levels are the smaller half",
        )
    )  # fmt: skip
    return found


def gain_claims(study: Study, seeds: Sequence[int]) -> list[Claim]:
    """Section 5.2, margins: what MixDPO gains over DPO by subgroup and on average."""

    def averages(method: str, seed: int) -> Sequence[Average]:
        gains = study["mg2019", method, seed].gains
        assert gains is not None
        return gains.averages

    def macro(method: str, seed: int, metric: str) -> float:
        found = (one(averages(method, seed), attribute, "macro") for attribute in PEOPLE)
        return statistics.fmean(average.estimates[metric].value for average in found)

    def least(method: str, seed: int, attributes: Sequence[str]) -> float:
        return min(average.estimates["margin/sum"].value
                   for attribute in attributes for average in cells(averages(method, seed), attribute))  # fmt: skip

    found = []
    for family in FAMILIES:
        method = f"{family} {PAPER}"
        relative = [study["mg2019", "DPO", seed].mean("margin/sum").value for seed in seeds]

        def claim(
            text: str, quantity: str, values: Iterable[float], least: float, note: str,
            section: str = "5.2, Figs. 3, 6", method: str = method,
        ) -> Claim:  # fmt: skip
            return Claim(
                section=section, claim=text, data="mg2019", method=method, quantity=quantity, values=list(values),
                least=least, note=note,
            )  # fmt: skip

        overall = {metric: [averages(method, seed)[0].estimates[metric].value for seed in seeds] for metric in METRICS}
        scale = "a margin is in nats and grows as the loss asks for larger log-ratios: see accuracy beside it"
        found += [
            claim(
                "macro averaged margin gains", "gain in margin, mean of five demographics, over DPO's margin",
                (macro(method, seed, "margin/sum") / dpo for seed, dpo in zip(seeds, relative, strict=True)),
                0.05, scale,
            ),
            claim(
                "macro averaged gains that are no matter of scale",
                "gain in accuracy, mean of five demographics, points",
                (100 * macro(method, seed, "accuracy") for seed in seeds), 1.0, "free of the scale of log-ratios",
            ),
            claim(
                "micro averaged margin is kept", "gain in margin over DPO's margin, plus 5 %",
                (gain / dpo + 0.05 for gain, dpo in zip(overall["margin/sum"], relative, strict=True)), 0.0, scale,
            ),
            claim(
                "micro averaged accuracy is kept", "gain in accuracy, points, plus 1",
                (100 * gain + 1.0 for gain in overall["accuracy"]), 0.0, "a tolerance of one point",
            ),
            claim(
                "no demographic group loses margin", "smallest gain of any demographic group over DPO's margin",
                (least(method, seed, PEOPLE) / dpo for seed, dpo in zip(seeds, relative, strict=True)), 0.0,
                "the smallest of many estimates is low by noise alone", "App. G",
            ),
            claim(
                "no context loses margin", "smallest gain of any question over DPO's margin",
                (least(method, seed, (QUESTION,)) / dpo for seed, dpo in zip(seeds, relative, strict=True)), 0.0,
                "as above; the question stands for the paper's conversational framing", "5.2, Fig. 3",
            ),
        ]  # fmt: skip
    return found


def win_claims(study: Study, seeds: Sequence[int]) -> list[Claim]:
    """Tables 1 and 2: win rates."""

    def rate(data: str, method: str, seed: int) -> float:
        measured = study[data, method, seed]
        return measured.win if measured.true_win is None else measured.true_win

    def gain(data: str, method: str, against: str, seed: int) -> float:
        return rate(data, method, seed) - rate(data, against, seed)

    where = "win rate by held-out votes", "expected win rate under the truth"
    found = []
    for data in DATA:
        known = where[data in TRUE_CV]
        for family in FAMILIES:
            found += [
                Claim(
                    section=section, claim=claim, data=data, method=f"{family} {rate}",
                    quantity=f"{known}, less that of {against}, points",
                    values=[gain(data, f"{family} {rate}", against, seed) for seed in seeds], least=1.0, note=note,
                )
                for section, claim, rate, against, note in (
                    ("5.2, Table 1", "win rate above DPO's", PAPER, "DPO",
                     "the policies choose among two given responses and write none"),
                    ("App. F, Table 2", "win rate above DPO's at a faster rate", FAST, "DPO", "1e-2 here, 1e-3 there"),
                    ("4.3, App. F", "learning the strength at 1e-4 beats leaving it frozen", PAPER, f"{family} frozen",
                     "at the paper's rate the strength hardly moves in these steps"),
                    ("App. F", "1e-4 beats a faster rate", PAPER, f"{family} {FAST}", "1e-2 here, 1e-3 there"),
                )
            ]  # fmt: skip
    for more, less, kind in (("mg2019", "HH", "votes"), (SIMULATED[1], SIMULATED[0], "truth")):
        found += [
            Claim(
                section="5.2, 6", claim="the gain is largest where preferences differ most",
                data=f"{more} less {less}", method=f"{family} {PAPER}",
                quantity=f"difference of gains in win rate over DPO ({kind}), points",
                values=[gain(more, f"{family} {PAPER}", "DPO", seed) - gain(less, f"{family} {PAPER}", "DPO", seed)
                        for seed in seeds],
                least=1.0, note="at this size HH is hardly learned by any method" if less == "HH" else "known truth",
            )
            for family in FAMILIES
        ]  # fmt: skip
    return found


def strength_claims(study: Study, seeds: Sequence[int]) -> list[Claim]:
    """Section 5.3, Figures 4 and 7: the learned variance."""

    def log_variance(x: Measured) -> float:
        return math.log(x.variance())

    def log_cv(x: Measured) -> float:
        return math.log(x.strength["cv"])

    found = []
    for family in FAMILIES:
        for rate in (PAPER, FAST):
            method = f"{family} {rate}"
            drift = study["HH", method, seeds[0]].strength["constant_gradient_drift"]
            reach = f"a constant gradient moves a parameter by {drift:.2g} on the log scale in these steps"
            found += [
                Claim(
                    section="5.3, Figs. 4, 7", claim=f"the {what} ends higher where preferences differ more",
                    data=f"{more} over {less}", method=method, quantity=f"difference of log {what} at the end",
                    values=[of(study[more, method, seed]) - of(study[less, method, seed]) for seed in seeds],
                    least=0.05, note=reach,
                )
                for what, of in (("variance", log_variance), ("cv", log_cv))
                for more, less in (("mg2019", "HH"), (SIMULATED[1], SIMULATED[0]))
            ]  # fmt: skip
            found += [
                Claim(
                    section="1, 6", claim="the distribution collapses where preferences are alike", data=data,
                    method=method, quantity="half the initial cv less the final one",
                    values=[study[data, method, seed].strength["initial"]["cv"] / 2
                            - study[data, method, seed].strength["cv"] for seed in seeds],
                    least=0.0,
                    note=f"{reach}; " + ("nobody knows how alike they are" if data == "HH" else "known to be alike"),
                )
                for data in ("HH", SIMULATED[0])
            ]  # fmt: skip
            found.append(
                Claim(
                    section="5.3, 6", claim="the learned spread measures heterogeneity", data=SIMULATED[1],
                    method=method, quantity="0.25 less the distance of the learned cv from the true cv of 1",
                    values=[0.25 - abs(study[SIMULATED[1], method, seed].strength["cv"] - 1.0) for seed in seeds],
                    least=0.0,
                    note=f"starts at {study[SIMULATED[1], method, seeds[0]].strength['initial']['cv']:.2f}; {reach}",
                )
            )  # fmt: skip
    return found


def benchmarked(overhead: Path) -> tuple[str, list[str], list[list[Any]]]:
    """The benchmark's first table: what it was measured on, columns, and rows."""
    place, table = next(iter(json.loads(overhead.read_text())["tables"].items()))
    return place, table["columns"], table["rows"]


def runtime_claims(overhead: Path) -> list[Claim]:
    """Section 5.4, Figure 5: run time, from the report of the benchmark that measures it, ``overhead.json``."""
    place, columns, rows = benchmarked(overhead)
    found = []
    for method, family in (("LogNormal, Monte Carlo 16", "LogNormal"), ("Gamma, closed form", "Gamma")):
        row = next(row for row in rows if row[0] == method)
        ratio, lower, upper = map(float, re.findall(r"[0-9.]+", row[columns.index("step / DPO's")]))
        paper = row[columns.index("the paper's ratio")]
        found += [
            Claim(
                section="5.4, Fig. 5", claim=claim, data=place, method=family, quantity=quantity, values=(), least=0.0,
                note="overhead.md: alternating steps of a policy of 70 million parameters",
                known=Estimate(value=value, standard_error=math.nan, lower=ends[0], upper=ends[1]),
            )
            for claim, quantity, value, ends in (
                ("the overhead is modest", "1.10 less the step's time over DPO's",
                 1.1 - ratio, (1.1 - upper, 1.1 - lower)),
                ("a random strength costs what the paper says", f"0.01 less the distance of the ratio from {paper}",
                 0.01 - abs(ratio - paper), _distance(lower, upper, paper)),
            )
        ]  # fmt: skip
    return found


def _distance(lower: float, upper: float, paper: float) -> tuple[float, float]:
    """Ends of 0.01 less the distance from the paper's ratio, over an interval of the ratio."""
    ends = [0.01 - abs(lower - paper), 0.01 - abs(upper - paper)]
    return min(ends), 0.01 if lower <= paper <= upper else max(ends)
