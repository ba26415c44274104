"""Choices against the choice probabilities on held-out pairs, bin by bin: the reliability curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixlogit_align.report.figures.drawing import TRUTH, Figure, Key, Panel, slug, styles_of

EVENTS = {"favoured": "the response that the policy favours", "shown": "the response shown first"}


def reliability_figure(world: str, labels: Sequence[str], found: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Reliability curves, one a run; None where no evaluation has choice probabilities.

    Parameters
    ----------
    world : str
        The data.
    labels : sequence of str
        Of the runs.
    found : sequence of mapping
        Their ``evaluation.json``.
    """
    styles = styles_of(labels)
    curves = {label: result["calibration"] for label, result in zip(labels, found, strict=True)
              if result.get("calibration")}  # fmt: skip
    if not curves:
        return None
    events = list(dict.fromkeys(curve["orientation"] for curve in curves.values()))

    def draw(axes: Any) -> None:
        axes.axline((0.5, 0.5), slope=1.0, **TRUTH)
        for label, curve in curves.items():
            bins = curve["bins"]
            for one in bins:
                if one["gap"]["lower"] is not None:
                    ends = [one["predicted"] + one["gap"][end] for end in ("lower", "upper")]
                    axes.plot([one["predicted"]] * 2, ends, color=styles[label]["color"], linewidth=1.0, alpha=0.6)
            axes.plot([one["predicted"] for one in bins], [one["observed"] for one in bins], **styles[label])
        axes.set_xlabel(f"P({' or '.join(EVENTS.get(event, event) for event in events)})")
        axes.set_ylabel("share chosen")

    name = f"reliability-{slug(world)}"
    return Figure(
        name,
        "Do choices come out as often as the probabilities say?",
        [Panel(name, "held-out pairs in bins of equal size", draw)],
        [*(Key(label, styles[label]) for label in curves), Key("as often as they say", TRUTH)],
        "Each point is a tenth or so of the held-out pairs, the bar its interval. On the diagonal the probabilities "
        "P = E σ(strength × log-ratio difference) are right; below it the policy and its strength are too sure, above "
        "it too timid.",
    )
