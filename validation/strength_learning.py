"""What the preference loss learns of the strength when the utilities are known, by integration rule.

    python validation/strength_learning.py [--out validation/reports]

The log-ratio differences are set to the simulated annotators' true utility differences and only the LogNormal strength
is learned. What is left is the rule's own bias: the log of a mean of K draws is biased downwards by the spread of the
draws, so that maximising it prefers too narrow a strength. Writes strength_learning.json and .md; exits with 1 if a
claim fails. About a minute.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from mixlogit_align import LearnableMixing, MonteCarlo, Quadrature
from mixlogit_align.alignment import mixdpo_loss
from mixlogit_align.alignment.data import load_data
from mixlogit_align.alignment.data.config import SimulatedData

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _report import REPORTS, Report

RULES: dict[str, Any] = {
    "quadrature": Quadrature(),
    "Monte Carlo 16": MonteCarlo(16),
    "Monte Carlo 64": MonteCarlo(64),
    "Monte Carlo 256": MonteCarlo(256),
    "stratified 16": MonteCarlo(16, kind="stratified"),
}
NUM_STEPS = 300


def learn(utility_diff: torch.Tensor, rule: Any) -> tuple[float, float]:
    """Mean and cv of a LogNormal strength learned from utility differences (chosen less rejected)."""
    strength = LearnableMixing.lognormal()
    optimizer = torch.optim.Adam(strength.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS)
    zero, ids = torch.zeros_like(utility_diff), torch.arange(len(utility_diff))
    for step in range(NUM_STEPS):
        loss = mixdpo_loss(
            utility_diff, zero, zero, zero, mixing=strength, integration=rule, step=step, pair_ids=ids
        ).per_example.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    summary = strength.summary()
    return summary["mean"], summary["sd"] / summary["mean"]


def main() -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPORTS)
    arguments = parser.parse_args()
    report = Report(
        "strength_learning",
        "Strength learned by the preference loss at known utilities",
        "8,192 simulated choices of 256 annotators, LogNormal strength of mean 0.1. Only the strength is learned.",
        "pyro-ppl",
    )
    rows = []
    learned: dict[tuple[float, str], float] = {}
    for cv in (1.0, 0.5):
        data = load_data(SimulatedData(num_train=8192, num_eval=1, strength_cv=cv))
        assert data.truth is not None
        diffs = torch.tensor([data.truth.utility_diff[row.pair_id] for row in data.split("train")]).double()
        for name, rule in RULES.items():
            mean, learned[cv, name] = learn(diffs, rule)
            rows.append([cv, name, mean, learned[cv, name]])
    report.section("Learned strength")
    report.table("learned", "Mean (true: 0.1) and cv by rule", ["true cv", "rule", "learned mean", "learned cv"], rows)
    quadrature, draws = learned[1.0, "quadrature"], learned[1.0, "Monte Carlo 16"]
    report.section("Claims")
    report.claim("true cv 1", "quadrature finds the cv within 0.2", quadrature, abs(quadrature - 1.0) < 0.2)
    report.claim(
        "true cv 1", "K=16 draws a pair find less than 0.75 of it", draws / quadrature, draws < 0.75 * quadrature
    )
    by_draws = [learned[1.0, f"Monte Carlo {k}"] for k in (16, 64, 256)]
    report.claim("true cv 1", "the bias falls with K = 16, 64, 256", by_draws, by_draws == sorted(by_draws))
    stratified = learned[1.0, "stratified 16"]
    report.claim("true cv 1", "16 stratified draws come nearer than 16 plain ones", stratified,
                 abs(stratified - quadrature) < abs(draws - quadrature))  # fmt: skip
    return report.finish(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
