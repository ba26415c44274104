"""What was fitted to the log-ratios of a run: the profile of the spread, the densities, and single annotators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixlogit_align.report.figures.drawing import GRID, TRUTH, Draw, Figure, Key, Panel, lines_only, slug, styles_of
from mixlogit_align.report.files import Run

# Fits with a distribution of strength, by their name in heterogeneity.json.
WORDS = {"comparison": "a fresh strength for each comparison", "annotator": "one strength for each annotator"}
# Half the 95 % quantile of chi-squared with one degree of freedom: what lies above it is in the profile interval.
DROP = 1.92
AXES = {"cv": "cv (sd / mean) of strength", "sd": "sd of strength"}


def heterogeneity_figure(run: Run, label: str | None = None) -> Figure | None:
    """The profile log-likelihood of the spread, the fitted densities and the annotators' means; None before a fit.

    Parameters
    ----------
    run : Run
        With what ``mixlogit-align strength RUN`` wrote.
    label : str, optional
        What to call the run; by default its name.
    """
    found = run.heterogeneity
    if found is None:
        return None
    name = f"heterogeneity-{slug(label or run.name)}"
    styles = lines_only(styles_of(list(WORDS)))
    panels = []
    if profiles := {kind: values for kind, values in (found["profile"] or {}).get("loglik", {}).items() if values}:
        panels.append(Panel(f"{name}-profile", "how far the data hold the spread", _profile(found, profiles, styles)))
    if fits := {kind: fit for kind in WORDS if (fit := found["fits"].get(kind)) is not None}:
        panels.append(Panel(f"{name}-density", "fitted densities", _densities(found["family"], fits, styles)))
    if run.annotators is not None:
        panels.append(Panel(f"{name}-annotators", "strength of each annotator", _annotators(run.annotators, styles)))
    if not panels:
        return None
    shown = [kind for kind in WORDS if kind in fits or kind in profiles]
    return Figure(
        name,
        f"What the choices say of the strength: {label or run.name}",
        panels,
        [Key(WORDS[kind], styles[kind]) for kind in shown] + [Key("bound of the 95 % interval; one strength", TRUTH)],
        "Profile: the log-likelihood, below its maximum, with the spread held at each value and the mean fitted anew. "
        "A curve that hardly falls says that the data do not tell the spread; what lies above the dashed line is in "
        "its 95 % interval. With a fresh strength for each comparison the curve tells the shape of the log-ratios, "
        "which a policy can bend, not how people differ. Means of single annotators, given their choices, lie closer "
        "together than the annotators do: who made few choices is drawn to the common mean.",
    )


def _profile(found: Mapping[str, Any], profiles: Mapping[str, Any], styles: Mapping[str, Any]) -> Draw:
    axis = next(name for name in AXES if name in found["profile"])

    def draw(axes: Any) -> None:
        lowest = 0.0
        for kind, values in profiles.items():
            points = [(x, y) for x, y in zip(found["profile"][axis], values, strict=True) if y is not None]
            highest = max(y for _, y in points)
            below = [y - highest for _, y in points]
            lowest = min(lowest, *below)
            axes.plot([x for x, _ in points], below, **styles[kind])
        axes.axhline(-DROP, **TRUTH)
        axes.set_ylim(max(lowest * 1.05, -12.0) if lowest < -DROP else -2 * DROP, 0.3)
        axes.set_xlim(0, None)
        axes.set_xlabel(AXES[axis])
        axes.set_ylabel("log-likelihood below its maximum")

    return draw


def _densities(family: str, fits: Mapping[str, Any], styles: Mapping[str, Any]) -> Draw:
    import torch

    from mixlogit_align.distributions import LearnableMixing

    curves, spikes = {}, {}
    top = max(fit["mean"] + 3 * fit["sd"] for fit in fits.values())
    for kind, fit in fits.items():
        if fit["sd"] <= 1e-3 * fit["mean"]:
            spikes[kind] = fit["mean"]
            continue
        with torch.no_grad():
            mixing = LearnableMixing.from_mean_cv(family, mean=fit["mean"], cv=fit["sd"] / fit["mean"])()
            grid = torch.linspace(top / 400, top, 400)
            curves[kind] = (grid.tolist(), mixing.log_prob(grid).exp().tolist())

    def draw(axes: Any) -> None:
        for kind, (x, y) in curves.items():
            axes.plot(x, y, **styles[kind])
        for kind, at in spikes.items():
            axes.axvline(at, **styles[kind])
        # a density that grows without bound at 0 leaves room for the others
        inside = [value for x, y in curves.values() for at, value in zip(x, y, strict=True) if at > 0.02 * top]
        axes.set_ylim(0, 1.1 * max(inside) if inside else None)
        axes.set_xlim(0, top)
        axes.set_xlabel("strength")
        axes.set_ylabel("density")

    return draw


def _annotators(columns: Mapping[str, Any], styles: Mapping[str, Any]) -> Draw:
    order = sorted(range(len(columns["mean"])), key=lambda i: columns["mean"][i])
    means = [columns["mean"][i] for i in order]
    sds = [columns["sd"][i] for i in order]

    def draw(axes: Any) -> None:
        ranks = list(range(1, len(means) + 1))
        lower = [mean - sd for mean, sd in zip(means, sds, strict=True)]
        upper = [mean + sd for mean, sd in zip(means, sds, strict=True)]
        axes.fill_between(ranks, lower, upper, color=GRID, linewidth=0)
        axes.plot(ranks, means, **styles["annotator"])
        axes.set_xlabel("annotators, by their mean")
        axes.set_ylabel("strength: mean ± sd")

    return draw
