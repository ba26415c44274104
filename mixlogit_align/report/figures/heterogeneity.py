"""What was fitted to the log-ratios of a run: the profile of the spread, the densities, and single annotators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mixlogit_align.report.figures.drawing import GRID, TRUTH, Draw, Figure, Key, Panel, lines_only, slug, styles_of
from mixlogit_align.report.files import Run

# Fits with a distribution of strength, by their name in heterogeneity.json.
WORDS = {"comparison": "a fresh strength for each comparison", "annotator": "one strength for each annotator"}
DRAWN = 0.95  # of a density, at least
WIDE = 2.0  # cv of a density whose tail, and whose peak beside 0, would leave no room for another
EDGE = 0.02  # of the axis, beside 0, where a density may rise above the panel


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
    profiles, densities = found["profile"], found["density"]
    if profiles is not None:
        panels.append(Panel(f"{name}-profile", "how far the data hold the spread", _profile(found, styles)))
    if densities:
        panels.append(Panel(f"{name}-density", "fitted densities", _densities(found, styles)))
    if run.annotators is not None:
        panels.append(Panel(f"{name}-annotators", "strength of each annotator", _annotators(run.annotators, styles)))
    if not panels:
        return None
    shown = [kind for kind in WORDS if found["fits"].get(kind) is not None]
    return Figure(
        name,
        f"What the choices say of the strength: {label or run.name}",
        panels,
        [
            *(Key(WORDS[kind], styles[kind]) for kind in shown),
            *([Key(f"bound of the {profiles['level']:.0%} interval", TRUTH)] if profiles is not None else []),
        ],
        "Profile: the log-likelihood, below its maximum, with the spread held at each value and the mean fitted anew. "
        "A curve that hardly falls says that the data do not tell the spread; what lies above the dashed line is in "
        "its interval. With a fresh strength for each comparison the curve tells the shape of the log-ratios, "
        "which a policy can bend, not how people differ. Means of single annotators, given their choices, lie closer "
        "together than the annotators do: who made few choices is drawn to the common mean." + _cut(found),
    )


def _profile(found: Mapping[str, Any], styles: Mapping[str, Any]) -> Draw:
    from scipy.stats import chi2

    profile = found["profile"]
    drop = float(chi2.ppf(profile["level"], 1)) / 2
    widest = max(found["fits"][kind]["cv"] or 0.0 for kind in profile["loglik"])

    def draw(axes: Any) -> None:
        lowest = 0.0
        for kind, values in profile["loglik"].items():
            points = [(x, y) for x, y in zip(profile["cv"], values, strict=True) if y is not None]
            highest = max(y for _, y in points)
            below = [y - highest for _, y in points]
            lowest = min(lowest, *below)
            axes.plot([x for x, _ in points], below, **styles[kind])
        axes.axhline(-drop, **TRUTH)
        axes.set_ylim(max(1.05 * lowest, -4 * drop) if lowest < -drop else -1.5 * drop, 0.15)
        axes.set_xlim(0, min(max(2.5, 2.5 * widest), profile["cv"][-1]))
        axes.set_xlabel("cv (sd / mean) of strength")
        axes.set_ylabel("log-likelihood below its maximum")

    return draw


def _densities(found: Mapping[str, Any], styles: Mapping[str, Any]) -> Draw:
    densities, last = found["density"], _last(found)
    grid = densities["strength"]
    drawn = [kind for kind in WORDS if kind in densities]
    seen = [densities[kind][i] for kind in drawn for i, x in enumerate(grid) if EDGE * last <= x <= last]

    def draw(axes: Any) -> None:
        for kind in drawn:
            axes.plot(grid, densities[kind], **styles[kind])
        axes.set_ylim(0, 1.05 * max(seen))
        axes.set_xlim(0, last)
        axes.set_xlabel("strength")
        axes.set_ylabel("density")

    return draw


def _last(found: Mapping[str, Any]) -> float:
    """Where the densities' axis ends: most of each is before it, but of those that are too wide."""
    fitted = _fitted(found)
    ends = {kind: float(max(fit.ppf(DRAWN), fit.mean())) for kind, fit in fitted.items()}
    narrow = [end for kind, end in ends.items() if found["fits"][kind]["cv"] <= WIDE]
    return min(max(narrow) if narrow else min(ends.values()), float(found["density"]["strength"][-1]))


def _cut(found: Mapping[str, Any]) -> str:
    """How much of each density is not drawn."""
    if not found["density"]:
        return ""
    last = _last(found)
    beyond = " and ".join(f"{fit.sf(last):.1%} of {WORDS[kind]}" for kind, fit in _fitted(found).items())
    return f" Densities are drawn up to {last:.3g}, beyond which lie {beyond}; beside 0 they may rise above the panel."


def _fitted(found: Mapping[str, Any]) -> dict[str, Any]:
    """The distributions whose densities there are, by their mean and cv."""
    from scipy import stats

    made = {}
    for kind in (kind for kind in WORDS if kind in found["density"]):
        mean, square = found["fits"][kind]["mean"], found["fits"][kind]["cv"] ** 2
        if found["family"] == "gamma":
            made[kind] = stats.gamma(1 / square, scale=mean * square)
        else:
            made[kind] = stats.lognorm(math.log1p(square) ** 0.5, scale=mean / (1 + square) ** 0.5)
    return made


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
