"""Figures: SVG fit to stand in a page, and curves that say what is so."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock
from xml.etree import ElementTree

import pytest
import torch

from mixlogit_align.report import Evidence, figures, read_evidence
from mixlogit_align.report.figures import calibration, drawing, strength
from mixlogit_align.report.figures.weights import _slope
from mixlogit_align.report.files import read_run, strength_distribution

from .conftest import STRENGTHS, write_preference_run

DRAWN: dict[str, Callable[[str, list], figures.Figure | None]] = {
    "curves": figures.curves_figure,
    "strength": figures.strength_figure,
    "trajectory": figures.trajectory_figure,
    "weights": lambda world, runs: figures.weight_figure(runs),
    "calibration": figures.calibration_figure,
}


def drawings(evidence: Evidence) -> list[figures.Figure]:
    """Every figure there is."""
    made = [figures.recovery_figure(recovery) for recovery in evidence.recoveries]
    made.append(figures.sft_figure([run for run in evidence.runs if run.name == "SFT"]))
    for world, runs in evidence.worlds.items():
        drawn = [draw(world, runs) for draw in DRAWN.values()]
        made += [figure for figure in drawn if figure is not None]
    return made


@pytest.fixture(scope="module")
def made(demonstration: Path) -> list[figures.Figure]:
    """Drawn once."""
    return drawings(read_evidence([demonstration]))


def test_svg_is_well_formed_and_follows_the_theme(made: list[figures.Figure]) -> None:
    assert len(made) == 2 + 1 + 2 * 5
    svgs = [panel.svg for figure in made for panel in figure.panels] + [key.svg for f in made for key in f.keys]
    trees = [ElementTree.fromstring(svg) for svg in svgs]
    assert {tree.tag for tree in trees} == {"svg"}
    assert [tree for tree in trees if "viewBox" not in tree.attrib] == []
    joined = "\n".join(svgs)
    assert "http" not in joined
    assert set(re.findall(r"#[0-9a-f]{6}\b", joined)) == set()
    assert "var(--ink)" in joined
    references = re.findall(r'(?:url\(|href=")#([^")]+)', joined)
    assert references
    assert set(references) <= set(re.findall(r' id="([^"]+)"', joined))


def test_ids_are_unique_over_the_panels(made: list[figures.Figure]) -> None:
    worlds = [figure for figure in made if figure.name != "weights"]  # drawn once on a page
    ids = [name for f in worlds for panel in f.panels for name in re.findall(r' id="([^"]+)"', panel.svg)]
    assert len(ids) == len(set(ids))


def test_methods_are_not_told_apart_by_colour_alone(demonstration: Path) -> None:
    runs = read_evidence([demonstration]).worlds["simulated annotators, strength lognormal, cv 1"]
    styles = drawing.run_styles(runs).values()
    assert len({str(style["linestyle"]) for style in styles}) == len({style["marker"] for style in styles}) == 3


def test_what_the_truth_would_score_is_drawn(demonstration: Path) -> None:
    runs = read_evidence([demonstration]).worlds["simulated annotators, strength lognormal, cv 1"]
    seen = []
    for panel in figures.curves_figure("world", runs).panels:
        axes = MagicMock()
        panel.draw(axes)
        seen.append([call.args for call in axes.axhline.call_args_list])
    assert seen == [[(0.4991,)], [(0.770,)], []]


@pytest.mark.parametrize("name", [name for name in DRAWN if name != "curves"])
def test_nothing_to_draw_is_no_figure(demonstration: Path, name: str) -> None:
    sft = [run for run in read_evidence([demonstration]).runs if run.name == "SFT"]
    assert DRAWN[name]("nowhere", sft) is None


@pytest.mark.parametrize(
    "delta, weight",
    # scipy.integrate.quad of E[b sigma'(b delta)] / E[sigma(b delta)] over Gamma(2, 16.7), to four digits
    [(-10.0, 0.06203), (-50.0, 0.02892), (-200.0, 0.009153), (50.0, 0.001478)],
)
def test_weight_of_a_pair(delta: float, weight: float) -> None:
    at = torch.tensor([delta], dtype=torch.float64)
    assert _slope(at, strength_distribution(STRENGTHS["MixDPO gamma"][1])).item() == pytest.approx(weight, rel=5e-4)


def test_weights_at_zero_are_half_the_mean() -> None:
    at = torch.zeros(1, dtype=torch.float64)
    weights = [_slope(at, strength_distribution(record)).item() for _, record in STRENGTHS.values()]
    # means 0.1, exp(loc + scale^2 / 2) and 2 / 16.7; float64 rounding
    assert weights == pytest.approx([0.05, math.exp(-2.3 + 0.18) / 2, 1 / 16.7], rel=1e-12)


class Recorder:
    """Axes that keep what is drawn."""

    def __init__(self) -> None:
        self.curves: list[tuple[list[float], list[float]]] = []
        self.lines: list[float] = []

    def plot(self, x: list[float], y: list[float], **style: object) -> None:
        self.curves.append((x, y))

    def fill_between(self, *_: object, **style: object) -> None:
        pass

    def axvline(self, x: float, **style: object) -> None:
        self.lines.append(x)


def test_densities_stand_in_the_truths_unit(tmp_path: Path) -> None:
    run = read_run(write_preference_run(tmp_path / "run", "MixDPO gamma"))
    curves = strength.strength_curves(run, {}, known=True)
    scaled, plain, truth = (record for record, _ in curves)
    assert (scaled["mean"], scaled["sd"]) == pytest.approx((2 * plain["mean"], 2 * plain["sd"]))
    assert truth["cv"] == 1.0
    axes = Recorder()
    strength._density(axes, scaled, {}, top=4.0)
    x, y = (torch.tensor(values, dtype=torch.float64) for values in axes.curves[0])
    # a gamma of mean 0.24 ends before 4; 400 points integrate it to 1e-3
    assert torch.trapezoid(y, x).item() == pytest.approx(1.0, abs=2e-3)
    assert torch.trapezoid(x * y, x).item() == pytest.approx(scaled["mean"], rel=2e-3)


def test_a_strength_that_does_not_vary_is_a_line() -> None:
    axes = Recorder()
    strength._density(axes, STRENGTHS["DPO"][1], {}, top=1.0)
    assert (axes.lines, axes.curves) == ([0.1], [])


def test_probabilities_are_oriented_as_shown(tmp_path: Path) -> None:
    """A policy with the true utilities in twice their unit, and half the true strength, is the truth."""
    run = read_run(write_preference_run(tmp_path / "run", "MixDPO gamma"))
    assert run.simulated is not None
    assert run.simulated.truth is not None
    truth = run.simulated.truth.summary()
    parameters = truth["parameters"] | {"loc": truth["parameters"]["loc"] - math.log(2.0)}
    halved = truth | {"parameters": parameters}
    object.__setattr__(run, "strength", {**halved, "learning_rate": 1.0})
    learned, true = calibration._probabilities(run)
    torch.testing.assert_close(learned, true, rtol=1e-12, atol=1e-12)  # rounding of log 2
    assert 0.2 < (true > 0.5).double().mean() < 0.8  # shown first, not chosen first
