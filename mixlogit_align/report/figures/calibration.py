"""Learned choice probabilities against the true ones of simulated annotators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixlogit_align.report.figures.drawing import TRUTH, Figure, Key, Panel, run_keys, run_styles, slug
from mixlogit_align.report.files import Run, strength_distribution


def calibration_figure(world: str, runs: Sequence[Run], *, num_bins: int = 10) -> Figure | None:
    """Learned choice probabilities against the true ones; None where the truth is unknown."""
    styles = run_styles(runs)
    runs = [run for run in runs if run.truth is not None and run.log_ratios is not None and run.simulated is not None]
    runs = [run for run in runs if run.strength is not None and run.strength["family"] is not None]
    if not runs:
        return None

    def draw(axes: Any) -> None:
        for run in runs:
            learned, true = _probabilities(run)
            order = learned.argsort()
            bins = [(learned[rows].mean().item(), true[rows].mean().item()) for rows in order.chunk(num_bins)]
            axes.plot(*zip(*bins, strict=True), **styles[run.name])
        axes.plot([0, 1], [0, 1], **TRUTH)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("learned probability")
        axes.set_ylabel("true probability")

    name = f"calibration-{slug(world)}"
    errors = "; ".join(f"{run.name} {run.truth['held_out']['probability/rmse']:.3f}" for run in runs if run.truth)
    return Figure(
        name,
        "Are the choice probabilities right?",
        [Panel(name, "that the response shown first is chosen, by tenths of the held-out pairs", draw)],
        [*run_keys(styles, runs), Key("perfectly calibrated", TRUTH)],
        "On the diagonal, the probabilities that the policy and its strength imply are the annotators' own. Flatter "
        "than the diagonal means overconfident, steeper means too timid. The root mean squared error over single "
        f"pairs, which also counts scatter within a tenth: {errors}.",
    )


def _probabilities(run: Run) -> tuple[Any, Any]:
    """Learned and true probability that the response shown first is chosen, (held-out pairs,) each."""
    import torch

    from mixlogit_align.distributions import MixedLogit

    assert run.log_ratios is not None
    assert run.simulated is not None
    assert run.simulated.truth is not None
    assert run.strength is not None
    truth = run.simulated.truth
    first = {row.pair_id: row.choice == 0 for row in run.simulated.comparisons}
    pairs = run.log_ratios["pair_id"]
    sign = torch.tensor([1.0 if first[pair] else -1.0 for pair in pairs], dtype=torch.float64)
    logratio_diff = sign * torch.tensor(run.log_ratios["logratio_diff"], dtype=torch.float64)
    utility_diff = sign * torch.tensor([truth.utility_diff[pair] for pair in pairs], dtype=torch.float64)
    learned = MixedLogit(logratio_diff, strength_distribution(run.strength)).probs
    return learned, MixedLogit(utility_diff, strength_distribution(truth.summary())).probs
