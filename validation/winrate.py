"""Win rates against AlpacaEval's published leaderboard.

    MIXLOGIT_DATA=FOLDER python validation/winrate.py [--out validation/reports] [--replications 1000]

Writes winrate.json and .md; exits with 1 if a claim fails. A few minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median

import numpy as np
from scipy.special import expit

from mixlogit_align.alignment.winrate import (
    Preferences,
    bootstrap_win_rates,
    fit_length_control,
    leaderboard_row,
    sign_flip,
)

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from _report import REPORTS, Report, data_folder

from tests.alignment.alpaca import NUM_PROMPTS, difficulty, published, published_weights, tables

TRUTH, PROMPTS, SAMPLES = 0.3, 200, 200  # of the simulated coverage: log-odds at equal lengths


def plain(report: Report, folder: Path) -> None:
    """Win rate, standard error and counts."""
    report.section("Win rate and standard error")
    rows, line = published(folder), []
    for model, row in rows.items():
        found = leaderboard_row(tables(folder)[model])
        line.append(
            [
                model, row["n_total"], found["win_rate"], found["win_rate"] - row["win_rate"],
                found["standard_error"], found["standard_error"] - row["standard_error"],
                found["n_wins"] == row["n_wins"] and found["n_draws"] == row["n_draws"],
            ]
        )  # fmt: skip
    for name, place in (("win rate", 3), ("standard error", 5)):
        worst = max(abs(cells[place]) for cells in line)
        report.claim(
            f"{len(line)} models", f"{name} within 1e-8 of the published one, in percent (worst)", worst, worst < 1e-8
        )
    report.claim("counts", "wins and draws are the published ones", len(line), all(cells[6] for cells in line))
    report.table(
        "plain",
        "Every model with a published row (percent)",
        ["model", "prompts", "win rate", "less published", "standard error", "less published", "counts equal"],
        line,
    )


def controlled(report: Report, folder: Path) -> None:
    """The length-controlled rate from published weights, and by a fit of our own."""
    report.section(
        "Length-controlled win rate",
        "The refit is of the published preferences alone. AlpacaEval adds its stored judgments of the brief and the "
        "verbose baseline at weight 0.1, which hold the length weight near a value typical of the judge; they are not "
        "in these tables. The minimal form leaves out the instructions' difficulties.",
    )
    line = []
    for model, row in published(folder).items():
        table, weights = tables(folder)[model], published_weights(folder)[model]
        z, target = difficulty(folder, table), float(row["length_controlled_winrate"])
        refit, minimal = fit_length_control(table, z), fit_length_control(table)
        line.append(
            [
                model, len(table.prompts), target, 100 * float(weights.preferences(z).mean()) - target,
                refit.percent - target, refit.weights.length, weights.length, refit.inverse_penalty,
                minimal.percent - target,
            ]
        )  # fmt: skip
    complete = [cells for cells in line if cells[1] == NUM_PROMPTS]
    worst = max(abs(cells[3]) for cells in complete)
    report.claim(
        f"{len(complete)} models with all {NUM_PROMPTS} prompts",
        "the rate from published weights is within 1e-6 of the published one (worst)",
        worst,
        worst < 1e-6,
    )
    others = [f"{cells[0]} ({cells[1]} prompts: off by {cells[3]:.2g})" for cells in line if cells[1] != NUM_PROMPTS]
    report.text(f"Models without all prompts, whose published rate is over other prompts: {', '.join(others)}.")
    middle = median(abs(cells[4]) for cells in line)
    report.claim(f"{len(line)} models", "an independent refit is within 2 points at the median", middle, middle < 2.0)
    far = [f"{cells[0]} ({cells[4]:+.2f})" for cells in line if abs(cells[4]) > 2.0]
    report.text(f"Refits more than 2 points off: {', '.join(far)}.")
    report.table(
        "controlled",
        "Every model (percent; differences in points)",
        [
            "model", "prompts", "published", "from published weights", "refit", "length weight",
            "published length weight", "C", "minimal form",
        ],
        line,
    )  # fmt: skip


def uncertainty(report: Report, folder: Path, replications: int) -> None:
    """Intervals of models and of a difference, and the coverage of the intervals where the truth is known."""
    report.section("Uncertainty")
    names = ["claude-2", "gpt-3.5-turbo-1106_verbose", "vicuna-7b", "vicuna-7b-v1.5"]
    models = [tables(folder)[name] for name in names]
    z = difficulty(folder, models[0])
    plain = bootstrap_win_rates(models, num_replications=replications)
    control = bootstrap_win_rates(models, length_control=True, difficulty=z, num_replications=replications)
    line = []
    for name, table in zip(names, models, strict=True):
        one, two = plain.win_rate(name), control.win_rate(name)
        line.append(
            [
                name, one.value, one.standard_error, table.win_rate().standard_error, two.value, two.standard_error,
                fit_length_control(table, z).spread_error, f"{two.lower:.2f} to {two.upper:.2f}",
            ]
        )  # fmt: skip
    worst = max(abs(cells[2] / cells[3] - 1) for cells in line)
    report.claim(
        "plain win rates", "the bootstrap's error is the closed form's within 10 % (worst)", worst, worst < 0.1
    )
    report.table(
        "uncertainty",
        f"{replications} replications (percent). AlpacaEval's error of the controlled rate takes the weights as known",
        ["model", "win rate", "bootstrap se", "closed-form se", "controlled", "refitted se", "AlpacaEval's se", "95 %"],
        line,
    )
    pairs = []
    for a, b in (names[:2], names[2:]):
        one, two = plain.difference(a, b), control.difference(a, b)
        pairs.append(
            [
                f"{a} less {b}", one.value, f"{one.lower:.2f} to {one.upper:.2f}",
                sign_flip(tables(folder)[a], tables(folder)[b]).test.pvalue, two.value,
                f"{two.lower:.2f} to {two.upper:.2f}",
            ]
        )  # fmt: skip
    report.table(
        "paired",
        "Differences on the same prompts (points)",
        ["models", "win rate", "95 %", "sign-flip p", "controlled", "95 %"],
        pairs,
    )
    shares = {
        penalty: sum(covers(seed, penalty, replications=200) for seed in range(SAMPLES)) / SAMPLES
        for penalty in (1e4, None)
    }
    # at 95 % the binomial's lower tail beyond it is 1e-4 or so
    report.claim(
        "simulated judge",
        f"almost without penalty (C = 1e4), 95 % intervals of the controlled rate (minimal form, {PROMPTS} prompts) "
        f"cover the truth in at least 89 % of {SAMPLES} samples",
        shares[1e4],
        shares[1e4] >= 0.89,
    )
    report.text(
        f"With the penalty cross-validated on each sample they cover in {100 * shares[None]:.1f} %: an interval takes "
        "the penalty as given, and a strong one now and then pulls the rate towards 50 %."
    )


def covers(seed: int, inverse_penalty: float | None, replications: int) -> bool:
    """Whether the interval of one simulated sample holds the truth."""
    rng = np.random.default_rng(seed)
    lengths = rng.normal(100.0, 400.0, PROMPTS).round()
    wins = rng.random(PROMPTS) < expit(TRUTH - np.tanh(lengths / lengths.std(ddof=1)))
    table = Preferences(
        model="a", opponent="b", prompts=[str(i) for i in range(PROMPTS)], values=wins.astype(float),
        model_lengths=np.full(PROMPTS, 2000.0), opponent_lengths=2000.0 + lengths,
    )  # fmt: skip
    found = bootstrap_win_rates(
        [table], length_control=True, inverse_penalty=inverse_penalty, num_replications=replications, seed=seed
    )
    interval = found.win_rate("a")
    return interval.lower <= 100 * expit(TRUTH) <= interval.upper


def main() -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPORTS)
    parser.add_argument("--replications", type=int, default=1000)
    arguments = parser.parse_args()
    folder = data_folder("alpaca_eval")
    report = Report(
        "winrate",
        "Win rates against AlpacaEval 2.0's leaderboard",
        "Preferences of the weighted GPT-4-turbo annotator over the GPT-4-1106-preview baseline, with the rows and GLM "
        "weights that AlpacaEval published for these models.",
        "numpy",
        "scipy",
        "scikit-learn",
    )
    plain(report, folder)
    controlled(report, folder)
    uncertainty(report, folder, arguments.replications)
    return report.finish(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
