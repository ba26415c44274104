"""The strength that runs learned: its density beside the truth, or else beside the start."""

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
    slug,
    styles_of,
)
from mixlogit_align.report.files import Run, labels, strength_distribution


def strength_figure(world: str, runs: Sequence[Run]) -> Figure | None:
    """Learned strength densities beside the truth, or else beside the start; None where no strength was learned."""
    named = dict(zip(labels(runs), runs, strict=True))
    styles = lines_only(styles_of(list(named)))
    shown = {label: run for label, run in named.items() if is_learned(run)}
    if not shown:
        return None
    known = all(run.truth is not None for run in shown.values())
    curves = {label: strength_curves(run, styles[label], known=known) for label, run in shown.items()}
    # the curves that are compared are seen whole, the dotted ones at least to their bulk
    top = max(record["mean"] + (1 if style is OTHER else 4) * record["sd"]
              for each in curves.values() for record, style in each)  # fmt: skip

    def panel(label: str) -> Draw:
        def draw(axes: Any) -> None:
            for record, style in curves[label]:
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
    drift = max(run.strength["constant_gradient_drift"] for run in shown.values() if run.strength)
    bound = (
        "and the learning rate says how far it goes. Under a constant gradient a parameter moves "
        f"{drift:.3g} in the whole run, on the scale on which it is learned (logs of positive parameters)."
        if drift
        else "and the mean of a solved strength follows how far the policy has gone."
    )
    return Figure(
        name,
        "The strength that was learned",
        [Panel(f"{name}-{i}", _moments(curves[label][0][0], label), panel(label)) for i, label in enumerate(shown)],
        [*(Key(label, styles[label]) for label in shown), *keys],
        f"{see} Do not read the spread as measured heterogeneity: a loss that sees one comparison at a time says "
        f"little about it, {bound}",
    )


def is_learned(run: Run) -> bool:
    """Whether its strength was free to move, and is known."""
    return run.strength is not None and run.strength["update"] in ("learned", "solved")


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
