"""How runs learn: the loss of supervised fine-tuning; held-out loss, accuracy and margin of the methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixlogit_align.report.figures.drawing import TRUTH, Draw, Figure, Key, Panel, run_keys, run_styles, slug
from mixlogit_align.report.files import Run, data_names


def sft_figure(runs: Sequence[Run]) -> Figure:
    """Loss of supervised fine-tuning."""
    styles = run_styles(runs)

    def draw(axes: Any) -> None:
        for run in runs:
            faint = {**styles[run.name], "alpha": 0.35, "linewidth": 0.9, "marker": ""}
            axes.plot(*run.series("sft", "train", "loss"), **faint)
            axes.plot(*run.series("sft", "eval", "loss"), **styles[run.name])
        axes.set_xlabel("examples seen")
        axes.set_ylabel("nats per token")

    return Figure(
        "sft",
        "First the policy learns to write",
        [Panel("sft", "negative log-likelihood of the chosen responses", draw)],
        run_keys(styles, runs),
        f"Supervised fine-tuning on the chosen responses of {data_names(runs)}: the faint line is the "
        "training loss, the marked one is held out. It should fall and flatten. The policy that comes out is where "
        "every method below starts, and the reference that it is held against.",
    )


def curves_figure(world: str, runs: Sequence[Run]) -> Figure:
    """Held-out loss, accuracy and margin of the methods while they train."""
    styles = run_styles(runs)
    held_out: Mapping[str, float] = next((run.truth["held_out"] for run in runs if run.truth), {})

    def curve(metric: str, label: str, truth: str | None = None) -> Draw:
        def draw(axes: Any) -> None:
            for run in runs:
                axes.plot(*run.series("preference", "eval", metric), **styles[run.name])
            if truth is not None and truth in held_out:
                axes.axhline(held_out[truth], **TRUTH)
            axes.set_xlabel("examples seen")
            axes.set_ylabel(label)

        return draw

    name = f"curves-{slug(world)}"
    attainable = ""
    if held_out:
        attainable = (
            f" The dashed line is what the truth itself would score on average ({held_out['attainable/loss']:.4f} and "
            f"{held_out['attainable/accuracy']:.1%}): annotators err, so nobody does better, save by luck."
        )
    return Figure(
        name,
        "Learning on held-out pairs",
        [
            Panel(f"{name}-loss", "loss", curve("loss", "nats per comparison", "attainable/loss")),
            Panel(
                f"{name}-accuracy",
                "accuracy",
                curve("rewards/accuracies", "share ranked as chosen", "attainable/accuracy"),
            ),
            Panel(f"{name}-margin", "reward margin", curve("rewards/margins", "mean strength × nats")),
        ],
        [*run_keys(styles, runs), *([Key("attainable under the truth", TRUTH)] if held_out else [])],
        "DPO and MixDPO start at a loss of log 2 = 0.6931, a coin. Loss should fall, accuracy and margin rise. "
        "Late in training the margin may fall again while the loss still improves: it is in the unit of the strength, "
        f"which moves, too.{attainable} Where accuracies are close and margins are not, methods rank responses "
        "alike and differ in how sure they are.",
    )
