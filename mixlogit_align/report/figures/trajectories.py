"""How the strength moved while it was learned, beside how far a constant gradient would have moved it.

`variance_figure` is the MixDPO paper's figures 4 and 7, with what they lack: how far the variance would go if the data
pulled one way all along, whatever they are. A variance that falls as far as that says nothing of heterogeneity.
"""

# T points of a trajectory.

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mixlogit_align.alignment.config import LearnedUpdate, PreferenceConfig
from mixlogit_align.alignment.strength import constant_gradient_drift
from mixlogit_align.report.comparable import Setting, data_of, in_common, mean, settings_of
from mixlogit_align.report.figures.drawing import (
    MUTED,
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
    styles_of,
)
from mixlogit_align.report.files import Run

BAND: Style = {"color": MUTED, "alpha": 0.2, "linewidth": 7, "solid_capstyle": "butt"}
GRID_POINTS = 48  # of a band
Statistic = Callable[[float, float], float]  # of mean and sd
STATISTICS: dict[str, tuple[str, Statistic]] = {
    "mean": ("mean strength", lambda mean, sd: mean),
    "sd": ("sd of strength", lambda mean, sd: sd),
    "variance": ("variance of strength", lambda mean, sd: sd * sd),
    "cv": ("cv (sd / mean) of strength", lambda mean, sd: sd / mean),
}
DRIFT = (
    "The shaded band is as far as a gradient goes that never changes at this learning rate, up or down, whatever the "
    "data; one that grows goes further under RMSprop. A curve along its edge, or beyond, was still on its way when "
    "training ended: where it ended is set by the learning rate and the number of steps, not measured."
)


@dataclass(frozen=True)
class State:
    """The strength after some steps."""

    step: int
    examples_seen: float
    mean: float
    sd: float


def trajectory_figure(world: str, runs: Sequence[Run]) -> Figure | None:
    """Mean, sd, variance and relative spread of the strength over training; None where no strength was learned."""
    styles = lines_only(run_styles(runs))
    runs = [run for run in runs if _moves(run.config.preference) and states_of(run)]
    if not runs:
        return None
    truth = next((run.truth["strength"] for run in runs if run.truth), None)
    lines = [(states_of(run), styles[run.name]) for run in runs]
    bands = _bands(runs, styles)

    def panel(statistic: str, title: str) -> Panel:
        limit = truth["cv"] if truth and statistic == "cv" else None
        return Panel(f"{name}-{statistic}", title, _drawing(statistic, lines, bands, limit))

    name = f"trajectory-{slug(world)}"
    return Figure(
        name,
        "How the strength moved",
        [
            panel("mean", "mean, as it stands"),
            panel("sd", "standard deviation"),
            panel("variance", "variance"),
            panel("cv", "relative spread"),
        ],
        [
            *run_keys(styles, runs),
            *([Key("as far as a constant gradient goes", BAND)] if bands else []),
            *([Key("the annotators' own", TRUTH)] if truth else []),
        ],
        "Mean, standard deviation and variance have no truth of their own to reach, since the policy's log-ratios can "
        "make up for the mean; the relative spread has. A spread that ends near the truth is no proof that it was "
        "measured: look whether it was still moving when training ended, and whether it ends elsewhere when the truth "
        f"is another.{f' {DRIFT}' if bands else ''}",
    )


def variance_figure(runs: Sequence[Run]) -> Figure | None:
    """The variance of the strength against examples seen: a panel for each method and model, a colour a data set.

    Parameters
    ----------
    runs : sequence of Run
        Those whose strength is neither learned nor solved are not drawn. Runs that differ in their seeds alone are
        thin lines about their mean.

    Returns
    -------
    Figure or None
        None where no strength moves.
    """
    settings = settings_of(run for run in runs if _moves(run.config.preference) and states_of(run))
    if not settings:
        return None
    styles = lines_only(styles_of([setting.data for setting in settings]))
    panels: dict[str, list[Setting]] = {}
    models = len({setting.model for setting in settings}) > 1
    for setting in settings:
        panels.setdefault(f"{setting.label}{f'; {setting.model}' if models else ''}", []).append(setting)
    name = slug(f"variance-{data_of(settings)}")
    seeds = max(len(setting.runs) for setting in settings)
    banded = any(_bands(setting.runs) for setting in settings)
    return Figure(
        name,
        "Variance of the strength while it is learned",
        [
            Panel(f"{name}-{i}", title, _variances(shown, styles))
            for i, (title, shown) in enumerate(panels.items())
        ],
        [
            *(Key(data, style) for data, style in styles.items()),
            *([Key("as far as a constant gradient goes", BAND)] if banded else []),
        ],
        "The variance of the learned strength, as it stands, after so many examples"
        + (f"; thin lines are up to {seeds} seeds, thick ones their mean" if seeds > 1 else "")
        + f".{f' {DRIFT}' if banded else ''} Lower on one data set than on another is no evidence of less "
        "heterogeneity: the strength is in the unit of the policy's log-ratios, and a loss that sees one comparison at "
        "a time hardly tells its spread. `mixlogit-align strength` fits it with a standard error, by annotator where "
        "they are known."
        + in_common(settings),
    )  # fmt: skip


def states_of(run: Run) -> list[State]:
    """The strength after each step that was logged: training logs it before the step, evaluation after it."""
    rows = [row for row in run.metrics if row["stage"] == "preference"]
    seen = {0: 0.0, **{row["step"]: row["examples_seen"] for row in rows}}
    found: dict[int, State] = {}
    for row in rows:
        step = row["step"] - (row["split"] == "train")
        if "strength/sd" in row and step in seen:
            found[step] = State(step, seen[step], row["strength/mean"], row["strength/sd"])
    return [found[step] for step in sorted(found)]


def under_constant_gradient(config: PreferenceConfig, num_steps: int) -> dict[str, float]:
    """Least and largest mean, sd, variance and cv after so many steps of a gradient that does not change its sign.

    Each unconstrained parameter of a learned strength is moved by `constant_gradient_drift`, in both directions; mean,
    sd, variance and cv are monotone in each parameter of the LogNormal and the Gamma, so that corners are extremes.

    Parameters
    ----------
    config : PreferenceConfig
        Its strength is learned.
    num_steps : int

    Returns
    -------
    dict of str to float
        ``"mean/least"``, ``"mean/most"`` and so on.
    """
    strength = config.strength
    assert strength is not None
    assert isinstance(strength.update, LearnedUpdate)
    drift = constant_gradient_drift(config.optim, strength.update.lr, num_steps)
    mixing = strength.build()
    parameters = dict(mixing.named_parameters())
    start = {name: value.detach().clone() for name, value in parameters.items()}
    # a positive parameter that is learned as it is would end at 0
    floor = 1e-6 if mixing.transform == "raw" else -math.inf
    corners = []
    with torch.no_grad():
        for signs in itertools.product((-1.0, 1.0), repeat=len(parameters)):
            for sign, (name, value) in zip(signs, parameters.items(), strict=True):
                value.copy_((start[name] + sign * drift).clamp_min(-math.inf if name == "loc" else floor))
            corners.append(mixing.summary())
    found: dict[str, float] = {}
    for statistic, (_, of) in STATISTICS.items():
        values = [of(corner["mean"], corner["sd"]) for corner in corners]
        found |= {f"{statistic}/least": min(values), f"{statistic}/most": max(values)}
    return found


Band = tuple[list[float], list[dict[str, float]], str]  # examples seen, how far a constant gradient goes, a colour


def _bands(runs: Sequence[Run], styles: Mapping[str, Style] | None = None) -> list[Band]:
    """Of runs with a learned strength, each start and rate once, as far as the longest; grey, or in their colours."""
    found: dict[str, Band] = {}
    for run in runs:
        config = run.config.preference
        states = states_of(run)
        if config is None or not isinstance(config.update, LearnedUpdate) or not states:
            continue
        chosen = states[:: max(len(states) // GRID_POINTS, 1)]
        chosen += [states[-1]] if chosen[-1] is not states[-1] else []
        key = f"{config.strength} {config.optim} {config.batch_size}"
        if key not in found or found[key][0][-1] < chosen[-1].examples_seen:
            color = MUTED if styles is None else styles[run.name]["color"]
            reach = [under_constant_gradient(config, state.step) for state in chosen]
            found[key] = [state.examples_seen for state in chosen], reach, color
    return list(found.values())


def _moves(config: PreferenceConfig | None) -> bool:
    return config is not None and config.update is not None and config.update.kind in ("learned", "solved")


def _drawing(
    statistic: str, lines: Sequence[tuple[Sequence[State], Style]], bands: Sequence[Band], truth: float | None = None
) -> Draw:
    label, of = STATISTICS[statistic]

    def draw(axes: Any) -> None:
        ends = [] if truth is None else [truth]
        for states, style in lines:
            values = [of(state.mean, state.sd) for state in states]
            ends += values
            axes.plot([state.examples_seen for state in states], values, **style)
        low, high = min(ends), max(ends)
        room = max(high - low, 0.05 * high)
        limits = [low, high]
        for seen, reach, color in bands:
            least, most = ([point[f"{statistic}/{end}"] for point in reach] for end in ("least", "most"))
            axes.fill_between(seen, least, most, color=color, alpha=BAND["alpha"], linewidth=0, zorder=0)
            limits += [max(min(least), low - room), min(max(most), high + room)]
        if truth is not None:
            axes.axhline(truth, **TRUTH)
        axes.set_ylim(min(limits) - 0.05 * room, max(limits) + 0.05 * room)
        axes.set_xlabel("examples seen")
        axes.set_ylabel(label)

    return draw


def _variances(settings: Sequence[Setting], styles: Mapping[str, Style]) -> Draw:
    """One panel: the settings of one method and model, a line a data set."""
    lines: list[tuple[Sequence[State], Style]] = []
    for setting in settings:
        style, seeds = styles[setting.data], [states_of(run) for run in setting.runs]
        if len(seeds) > 1:
            lines += [(states, {**style, "linewidth": 0.7, "alpha": 0.6}) for states in seeds]
        lines.append((_mean(seeds), style))
    return _drawing("variance", lines, _bands([run for setting in settings for run in setting.runs]))


def _mean(seeds: Sequence[Sequence[State]]) -> list[State]:
    """The mean over seeds of mean and variance, at the steps that all have; the sd is the root of that variance."""
    by_step = [{state.step: state for state in states} for states in seeds]
    shared = [state.step for state in seeds[0] if all(state.step in found for found in by_step)]
    joined = []
    for step in shared:
        states = [found[step] for found in by_step]
        variance = mean([state.sd**2 for state in states])
        joined.append(State(step, states[0].examples_seen, mean([s.mean for s in states]), math.sqrt(variance)))
    return joined
