"""How hard a pair pulls on the policy under a distribution of strength."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixlogit_align.report.figures.drawing import TRUTH, Figure, Key, Panel, lines_only, styles_of
from mixlogit_align.report.figures.strength import is_learned
from mixlogit_align.report.files import Run, labels, strength_distribution


def weight_figure(runs: Sequence[Run]) -> Figure | None:
    """How hard a pair pulls on the policy, for every learned strength and DPO at the same mean; None without any.

    The weight is d log P / d logratio_diff. A strength of mean m and weight w(delta) has, scaled to mean m', the
    weight (m'/m) w(delta m'/m).
    """
    import torch

    point = next((run.strength["mean"] for run in runs if run.strength and run.strength["sd"] == 0), None)
    named = dict(zip(labels(runs), runs, strict=True))
    styles = lines_only(styles_of(list(named)))
    shown = {label: run for label, run in named.items() if is_learned(run)}
    if not shown:
        return None
    means = {label: run.strength["mean"] for label, run in shown.items() if run.strength}
    mean = point or next(iter(means.values()))
    delta = torch.linspace(-8 / mean, 8 / mean, 321, dtype=torch.float64)
    dpo = mean * torch.sigmoid(-mean * delta)
    weights = {
        label: mean / means[label] * _slope(delta * mean / means[label], strength_distribution(run.strength))
        for label, run in shown.items()
        if run.strength
    }

    def draw_reach(axes: Any) -> None:
        """Bars over the x axis: where nine in ten held-out pairs lie."""
        for row, (label, run) in enumerate(shown.items()):
            if run.log_ratios is not None:
                values = torch.tensor(run.log_ratios["logratio_diff"], dtype=torch.float64) * means[label] / mean
                ends = values.quantile(values.new_tensor([0.05, 0.95])).tolist()
                height = [0.03 + 0.03 * row] * 2
                style = {"color": styles[label]["color"], "linewidth": 2.5, "solid_capstyle": "butt"}
                axes.plot(ends, height, transform=axes.get_xaxis_transform(), **style)

    def draw(axes: Any) -> None:
        draw_reach(axes)
        for name, values in weights.items():
            axes.plot(delta.tolist(), values.tolist(), **styles[name])
        axes.plot(delta.tolist(), dpo.tolist(), **TRUTH)
        axes.set_ylim(-0.16 * mean, 1.05 * mean)
        axes.set_xlabel("log-ratio difference, nats")
        axes.set_ylabel("weight of a pair")

    def draw_ratio(axes: Any) -> None:
        for name, values in weights.items():
            axes.plot(delta.tolist(), (values / dpo).tolist(), **styles[name])
        axes.axhline(1.0, **TRUTH)
        axes.set_yscale("log")
        axes.set_xlabel("log-ratio difference, nats")
        axes.set_ylabel("weight relative to DPO's")

    first, far = next(iter(weights)), 5 / mean

    def at(values: Any, x: float) -> float:
        return float(values[(delta - x).abs().argmin()])

    return Figure(
        "weights",
        "What a distribution of strength does to the loss",
        [
            Panel("weights-absolute", f"weight, all scaled to mean strength {mean:.3g}", draw),
            Panel("weights-relative", "relative to DPO", draw_ratio),
        ],
        [Key("DPO", TRUTH), *(Key(label, styles[label]) for label in shown)],
        "The weight is minus the slope of the loss in the log-ratio difference: how hard a pair pulls. All curves meet "
        f"DPO's at 0, at half the mean strength: ambiguous pairs are not weighted down. At −{far:.0f} nats {first} "
        f"pulls with {at(weights[first], -far):.2g} where DPO pulls with {at(dpo, -far):.2g}; at +{far:.0f} with "
        f"{at(weights[first], far):.2g} against {at(dpo, far):.2g}. Confidently wrong pairs "
        "lose weight; right beside 0 the pull is a little below DPO's, and well-fitted pairs, far to the right, keep "
        "more. It is a robust loss. The bars at the bottom span nine in ten held-out pairs at the end of training; "
        "outside them the curves hardly mattered.",
    )


def _slope(delta: Any, mixing: Any) -> Any:
    """d log P / d delta of the chosen response."""
    import torch

    from mixlogit_align.distributions import MixedLogit

    delta = delta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(MixedLogit(delta, mixing).log_prob(torch.ones_like(delta)).sum(), delta)
    return slope
