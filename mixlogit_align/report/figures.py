"""Figures, one function each: panels of inline SVG that follow the page's light or dark colours.

A panel is drawn in the colours of the light theme; in its SVG every colour becomes a CSS variable, so that
one drawing serves both themes and print.
"""

from __future__ import annotations

import io
import itertools
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from mixlogit_align.report.files import Recovery, Run, data_names, strength_distribution

# Okabe and Ito's palette, safe for colour-blind readers; page.css has the variables in both themes.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, GRID = "#1b1b1b", "#6b6b6b", "#dcdcdc"
VARIABLES = {
    **{color: f"var(--series-{i})" for i, color in enumerate(SERIES, 1)},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
}
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (5, 1.4, 1.4, 1.4)))
MARKERS = "osD^vP"
Style = Mapping[str, Any]
TRUTH: Style = {"color": INK, "linestyle": (0, (3, 2)), "linewidth": 1.3}
OTHER: Style = {"color": MUTED, "linestyle": (0, (1, 1.5)), "linewidth": 1.4}
# Inches. A panel this narrow keeps its letters legible on a phone, where panels stand below each other.
PANEL = (4.2, 2.9)


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    svg: str


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    label: str
    svg: str


@dataclass(frozen=True)
class Figure:
    """Panels under a title, with a legend above and below them sentences that say what to see."""

    name: str
    title: str
    panels: Sequence[Panel]
    keys: Sequence[Key]
    caption: str


def recovery_figure(recovery: Recovery) -> Figure:
    """Distance of every estimate from its truth, in standard errors; one line a case."""
    marks = [(y, z, row["passed"]) for y, row in enumerate(recovery.rows) for z in row["z"].values()]

    def draw(axes: Any) -> None:
        axes.axvspan(-2, 2, color=GRID, alpha=0.5, linewidth=0)
        axes.axvline(0, **TRUTH)
        for y, z, passed in marks:
            axes.plot(z, y, color=SERIES[0 if passed else 1], marker="o" if passed else "X", markersize=5.5, alpha=0.85)
        labels = [textwrap.fill(row["case"], 26, break_on_hyphens=False) for row in recovery.rows]
        axes.set_yticks(range(len(labels)), labels, linespacing=0.95)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        reach = max(3.2, recovery.largest_z * 1.1)
        axes.set_xlim(-reach, reach)
        axes.set_xlabel("z = (estimate − truth) / s.e.")
        axes.grid(axis="y", visible=False)

    outside = sum(abs(z) > 2 for _, z, _ in marks)
    name = f"recovery-{_slug(recovery.path.stem)}"
    return Figure(
        name,
        "Every estimate against its truth",
        [_panel(name, "", draw, size=(PANEL[0], 0.8 + 0.33 * len(recovery.rows)))],
        [],
        f"Each dot is one parameter, estimated from simulated choices. If the method is right, dots scatter around 0 "
        f"and about 1 in 20 falls outside the grey band; here {outside} of {len(marks)} do. A dot far outside, or "
        f"nearly all dots on one side, would be a fault.",
    )


def sft_figure(runs: Sequence[Run]) -> Figure:
    """Loss of supervised fine-tuning."""
    styles = _styles(runs)

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
        [_panel("sft", "negative log-likelihood of the chosen responses", draw)],
        _keys(styles, runs),
        f"Supervised fine-tuning on the chosen responses of {data_names(runs)}: the faint line is the "
        "training loss, the marked one is held out. It should fall and flatten. The policy that comes out is where "
        "every method below starts, and the reference that it is held against.",
    )


def curves_figure(world: str, runs: Sequence[Run]) -> Figure:
    """Held-out loss, accuracy and margin of the methods while they train."""
    styles = _styles(runs)
    held_out: Mapping[str, float] = next((run.truth["held_out"] for run in runs if run.truth), {})

    def curve(metric: str, label: str, truth: str | None = None) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            for run in runs:
                axes.plot(*run.series("preference", "eval", metric), **styles[run.name])
            if truth is not None and truth in held_out:
                axes.axhline(held_out[truth], **TRUTH)
            axes.set_xlabel("examples seen")
            axes.set_ylabel(label)

        return draw

    name = f"curves-{_slug(world)}"
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
            _panel(f"{name}-loss", "loss", curve("loss", "nats per comparison", "attainable/loss")),
            _panel(
                f"{name}-accuracy",
                "accuracy",
                curve("rewards/accuracies", "share ranked as chosen", "attainable/accuracy"),
            ),
            _panel(f"{name}-margin", "reward margin", curve("rewards/margins", "mean strength × nats")),
        ],
        [*_keys(styles, runs), *([_key("attainable under the truth", TRUTH)] if held_out else [])],
        "DPO and MixDPO start at a loss of log 2 = 0.6931, a coin. Loss should fall, accuracy and margin rise. "
        "Late in training the margin may fall again while the loss still improves: it is in the unit of the strength, "
        f"which moves, too.{attainable} Where accuracies are close and margins are not, methods rank responses "
        "alike and differ in how sure they are.",
    )


def strength_figure(world: str, runs: Sequence[Run]) -> Figure | None:
    """Learned strength densities beside the truth, or else beside the start; None where no strength was learned."""
    styles, runs = _lines_only(_styles(runs)), _learned(runs)
    if not runs:
        return None
    known = all(run.truth is not None for run in runs)
    curves = {run.name: _strength_curves(run, styles[run.name], known=known) for run in runs}
    # the curves that are compared are seen whole, the dotted ones at least to their bulk
    top = max(record["mean"] + (1 if style is OTHER else 4) * record["sd"]
              for each in curves.values() for record, style in each)  # fmt: skip

    def panel(run: Run) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            for record, style in curves[run.name]:
                _density(axes, record, style, top)
            axes.set_ylim(0, None)
            axes.set_xlim(0, top)
            axes.set_xlabel("strength")
            axes.set_ylabel("density")

        return draw

    name = f"strength-{_slug(world)}"
    if known:
        keys = [_key("the annotators' own", TRUTH), _key("learned, as it stands", OTHER)]
        see = (
            "Compare each coloured curve, the learned strength in the truth's unit, with the dashed truth. Only the "
            "product of strength and log-ratio is identified: a policy that has gone half as far with twice "
            "the strength makes the same choices. So the dotted curve, the strength as it stands, may lie elsewhere "
            "without fault; it is multiplied by the nats of log-ratio that the policy gives a unit of true utility."
        )
    else:
        keys = [_key("at the start", OTHER)]
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
        [_panel(f"{name}-{i}", _moments(curves[run.name][0][0], run.name), panel(run)) for i, run in enumerate(runs)],
        [*_keys(styles, runs), *keys],
        f"{see} Do not read the spread as measured heterogeneity: a loss that sees one comparison at a time says "
        f"little about it, {bound}",
    )


def trajectory_figure(world: str, runs: Sequence[Run]) -> Figure | None:
    """Mean and relative spread of the strength over training; None where no strength was learned."""
    styles, runs = _lines_only(_styles(runs)), _learned(runs)
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

    name = f"trajectory-{_slug(world)}"
    return Figure(
        name,
        "How the strength moved",
        [_panel(f"{name}-mean", "mean, as it stands", draw_mean), _panel(f"{name}-cv", "relative spread", draw_cv)],
        [*_keys(styles, runs), *([_key("the annotators' own", TRUTH)] if truth else [])],
        "The mean has no truth of its own to reach, since the policy's log-ratios can make up for it; the relative "
        "spread has. A spread that ends near the truth is no proof that it was measured: look whether it was still "
        "moving when training ended, and whether it ends elsewhere when the truth is another.",
    )


def weight_figure(runs: Sequence[Run]) -> Figure | None:
    """How hard a pair pulls on the policy, for every learned strength and DPO at the same mean; None without any.

    The weight is d log P / d logratio_diff. A strength of mean m and weight w(delta) has, scaled to mean m', the
    weight (m'/m) w(delta m'/m).
    """
    import torch

    point = next((run.strength["mean"] for run in runs if run.strength and run.strength["sd"] == 0), None)
    styles, runs = _lines_only(_styles(runs)), _learned(runs)
    if not runs:
        return None
    means = {run.name: run.strength["mean"] for run in runs if run.strength}
    mean = point or next(iter(means.values()))
    delta = torch.linspace(-8 / mean, 8 / mean, 321, dtype=torch.float64)
    dpo = mean * torch.sigmoid(-mean * delta)
    weights = {
        run.name: mean / means[run.name] * _slope(delta * mean / means[run.name], strength_distribution(run.strength))
        for run in runs
        if run.strength
    }

    def draw_reach(axes: Any) -> None:
        """Bars over the x axis: where nine in ten held-out pairs lie."""
        for row, run in enumerate(runs):
            if run.log_ratios is not None:
                values = torch.tensor(run.log_ratios["logratio_diff"], dtype=torch.float64) * means[run.name] / mean
                ends = values.quantile(values.new_tensor([0.05, 0.95])).tolist()
                height = [0.03 + 0.03 * row] * 2
                style = {"color": styles[run.name]["color"], "linewidth": 2.5, "solid_capstyle": "butt"}
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
            _panel("weights-absolute", f"weight, all scaled to mean strength {mean:.3g}", draw),
            _panel("weights-relative", "relative to DPO", draw_ratio),
        ],
        [_key("DPO", TRUTH), *_keys(styles, runs)],
        "The weight is minus the slope of the loss in the log-ratio difference: how hard a pair pulls. All curves meet "
        f"DPO's at 0, at half the mean strength: ambiguous pairs are not weighted down. At −{far:.0f} nats {first} "
        f"pulls with {at(weights[first], -far):.2g} where DPO pulls with {at(dpo, -far):.2g}; at +{far:.0f} with "
        f"{at(weights[first], far):.2g} against {at(dpo, far):.2g}. Confidently wrong pairs "
        "lose weight; right beside 0 the pull is a little below DPO's, and well-fitted pairs, far to the right, keep "
        "more. It is a robust loss. The bars at the bottom span nine in ten held-out pairs at the end of training; "
        "outside them the curves hardly mattered.",
    )


def calibration_figure(world: str, runs: Sequence[Run], *, num_bins: int = 10) -> Figure | None:
    """Learned choice probabilities against the true ones; None where the truth is unknown."""
    styles = _styles(runs)
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

    name = f"calibration-{_slug(world)}"
    errors = "; ".join(f"{run.name} {run.truth['held_out']['probability/rmse']:.3f}" for run in runs if run.truth)
    return Figure(
        name,
        "Are the choice probabilities right?",
        [_panel(name, "that the response shown first is chosen, by tenths of the held-out pairs", draw)],
        [*_keys(styles, runs), _key("perfectly calibrated", TRUTH)],
        "On the diagonal, the probabilities that the policy and its strength imply are the annotators' own. Flatter "
        "than the diagonal means overconfident, steeper means too timid. The root mean squared error over single "
        f"pairs, which also counts scatter within a tenth: {errors}.",
    )


def _learned(runs: Sequence[Run]) -> list[Run]:
    """Those whose strength was free to move."""
    return [run for run in runs if run.strength is not None and run.strength["update"] in ("learned", "solved")]


def _strength_curves(run: Run, style: Style, *, known: bool) -> list[tuple[Mapping[str, Any], Style]]:
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


def _slope(delta: Any, mixing: Any) -> Any:
    """d log P / d delta of the chosen response."""
    import torch

    from mixlogit_align.distributions import MixedLogit

    delta = delta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(MixedLogit(delta, mixing).log_prob(torch.ones_like(delta)).sum(), delta)
    return slope


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


def _moments(record: Mapping[str, Any], name: str) -> str:
    return f"{name}: mean {record['mean']:.3f}, sd {record['sd']:.3f}"


def _styles(runs: Sequence[Run]) -> dict[str, Style]:
    """Colour, dashes and marker of every run name; never told apart by colour alone."""
    styles = itertools.cycle(zip(SERIES, itertools.cycle(DASHES), MARKERS, strict=False))
    names = dict.fromkeys(run.name for run in runs)
    return {name: {"color": color, "linestyle": dashes, "marker": marker, "markersize": 4.5, "linewidth": 1.7}
            for name, (color, dashes, marker) in zip(names, styles, strict=False)}  # fmt: skip


def _lines_only(styles: Mapping[str, Style]) -> dict[str, Style]:
    """The same without markers, for curves of many points."""
    return {name: {**style, "marker": ""} for name, style in styles.items()}


def _keys(styles: Mapping[str, Style], runs: Sequence[Run]) -> list[Key]:
    """The legend of the runs that a figure shows."""
    return [_key(name, style) for name, style in styles.items() if name in {run.name for run in runs}]


def _key(label: str, style: Style) -> Key:
    def draw(axes: Any) -> None:
        axes.set_axis_off()
        axes.plot([0, 0.5, 1], [0, 0, 0], **{**style, "markevery": [1]})

    return Key(label, _svg(f"key-{_slug(label)}", "", draw, size=(0.42, 0.14)))


def _panel(name: str, title: str, draw: Callable[[Any], None], *, size: tuple[float, float] = PANEL) -> Panel:
    return Panel(title, _svg(name, title, draw, size=size))


def _svg(name: str, title: str, draw: Callable[[Any], None], *, size: tuple[float, float]) -> str:
    """Draw on one pair of axes and return SVG fit to stand inside HTML."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 10,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "axes.linewidth": 0.8,
        "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
        "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.unicode_minus": True,
        "axes.formatter.use_mathtext": False,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        canvas = Canvas(figsize=size, layout="constrained")
        draw(canvas.subplots())
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", transparent=True)
    return _inline(buffer.getvalue(), name, title)


def _inline(svg: str, name: str, title: str) -> str:
    """Matplotlib's SVG file as an element of a page: its own ids, theme colours, no foreign addresses."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(?::\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'( id="|="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"#[0-9a-f]{6}", lambda color: VARIABLES.get(color[0], color[0]), svg)
    # the view box scales it; a label takes its place for readers who do not see it
    head = f'<svg role="img" aria-label="{escape(title)}"' if title else '<svg aria-hidden="true"'
    return re.sub(r"\s*\n\s*", "\n", svg.replace("<svg", head, 1))


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")
