"""The strength that runs learned: its density, and how its mean and spread moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixlogit_align.report.figures.drawing import (
    GRID,
    OTHER,
    TRUTH,
    Draw,
    Figure,
    Key,
    Panel,
    Style,
    lines_only,
    run_keys,
    run_styles,
    slug,
)
from mixlogit_align.report.files import Run, strength_distribution


def strength_figure(world: str, runs: Sequence[Run]) -> Figure | None:
    """Learned strength densities beside the truth, or else beside the start; None where no strength was learned."""
    styles, runs = lines_only(run_styles(runs)), learned(runs)
    if not runs:
        return None
    known = all(run.truth is not None for run in runs)
    curves = {run.name: strength_curves(run, styles[run.name], known=known) for run in runs}
    # the curves that are compared are seen whole, the dotted ones at least to their bulk
    top = max(record["mean"] + (1 if style is OTHER else 4) * record["sd"]
              for each in curves.values() for record, style in each)  # fmt: skip

    def panel(run: Run) -> Draw:
        def draw(axes: Any) -> None:
            for record, style in curves[run.name]:
                _density(axes, record, style, top)
            axes.set_ylim(0, None)
            axes.set_xlim(0, top)
            axes.set_xlabel("strength")
            axes.set_ylabel("density")

        return draw

    name = f"strength-{slug(world)}"
    if known:
        keys = [Key("the annotators' own", TRUTH), Key("learned, as it stands", OTHER)]
        see = (
            "Compare each coloured curve, the learned strength in the truth's unit, with the dashed truth. Only the "
            "product of strength and log-ratio is identified: a policy that has gone half as far with twice "
            "the strength makes the same choices. So the dotted curve, the strength as it stands, may lie elsewhere "
            "without fault; it is multiplied by the nats of log-ratio that the policy gives a unit of true utility."
        )
    else:
        keys = [Key("at the start", OTHER)]
        see = "See how far each coloured curve has moved from its dotted start."
    drift = max(run.strength["constant_gradient_drift"] for run in runs if run.strength)
    bound = (
        "and the learning rate bounds the way. Under a constant gradient a parameter moves "
        f"{drift:.3g} in the whole run, on the scale on which it is learned (logs of positive parameters)."
        if drift
        else "and the mean of a solved strength follows how far the policy has gone."
    )
    return Figure(
        name,
        "The strength that was learned",
        [Panel(f"{name}-{i}", _moments(curves[run.name][0][0], run.name), panel(run)) for i, run in enumerate(runs)],
        [*run_keys(styles, runs), *keys],
        f"{see} Do not read the spread as measured heterogeneity: a loss that sees one comparison at a time says "
        f"little about it, {bound}",
    )


def trajectory_figure(world: str, runs: Sequence[Run]) -> Figure | None:
    """Mean and relative spread of the strength over training; None where no strength was learned."""
    styles, runs = lines_only(run_styles(runs)), learned(runs)
    if not runs:
        return None
    truth = next((run.truth["strength"] for run in runs if run.truth), None)

    def draw_mean(axes: Any) -> None:
        for run in runs:
            axes.plot(*run.series("preference", "train", "strength/mean"), **styles[run.name])
        axes.set_ylabel("mean strength")
        axes.set_xlabel("examples seen")

    def draw_cv(axes: Any) -> None:
        for run in runs:
            seen, mean = run.series("preference", "train", "strength/mean")
            sd = run.series("preference", "train", "strength/sd")[1]
            axes.plot(seen, [s / m for s, m in zip(sd, mean, strict=True)], **styles[run.name])
        if truth:
            axes.axhline(truth["cv"], **TRUTH)
        axes.set_ylim(0, None)
        axes.set_ylabel("cv (sd / mean) of strength")
        axes.set_xlabel("examples seen")

    name = f"trajectory-{slug(world)}"
    return Figure(
        name,
        "How the strength moved",
        [Panel(f"{name}-mean", "mean, as it stands", draw_mean), Panel(f"{name}-cv", "relative spread", draw_cv)],
        [*run_keys(styles, runs), *([Key("the annotators' own", TRUTH)] if truth else [])],
        "The mean has no truth of its own to reach, since the policy's log-ratios can make up for it; the relative "
        "spread has. A spread that ends near the truth is no proof that it was measured: look whether it was still "
        "moving when training ended, and whether it ends elsewhere when the truth is another.",
    )


def learned(runs: Sequence[Run]) -> list[Run]:
    """Those whose strength was free to move."""
    return [run for run in runs if run.strength is not None and run.strength["update"] in ("learned", "solved")]


def strength_curves(run: Run, style: Style, *, known: bool) -> list[tuple[Mapping[str, Any], Style]]:
    """Records to draw as densities, each with its style; the first is what the run is about."""
    assert run.strength is not None
    if not known:
        return [(run.strength, style), (run.strength["initial"], OTHER)]
    assert run.truth is not None
    unit = run.truth["held_out"]["strength/mean"] / run.strength["mean"]
    scaled = {**run.strength, "mean": unit * run.strength["mean"], "sd": unit * run.strength["sd"], "unit": unit}
    return [(scaled, style), (run.strength, OTHER), (run.truth["strength"], TRUTH)]


def _density(axes: Any, record: Mapping[str, Any], style: Style, top: float) -> None:
    """Draw the density of a strength, multiplied by its "unit" if it has one; shaded if it is the truth's."""
    import torch

    if record["sd"] == 0:
        axes.axvline(record["mean"], **style)
        return
    unit = record.get("unit", 1.0)
    grid = torch.linspace(top / 800, top, 400, dtype=torch.float64)
    values = ((strength_distribution(record).log_prob(grid / unit)).exp() / unit).tolist()
    if style is TRUTH:
        axes.fill_between(grid.tolist(), values, color=GRID, alpha=0.6, linewidth=0)
    axes.plot(grid.tolist(), values, **style)


def _moments(record: Mapping[str, Any], name: str) -> str:
    return f"{name}: mean {record['mean']:.3f}, sd {record['sd']:.3f}"
