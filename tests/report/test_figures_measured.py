"""Figures of what was measured of runs: subgroups, gains, variance and run time say what the files say."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import scipy.stats

from mixlogit_align.alignment.config import (
    FrozenUpdate,
    GammaStrength,
    LearnedUpdate,
    LogNormalStrength,
    OptimConfig,
    PreferenceConfig,
)
from mixlogit_align.alignment.data.config import SimulatedData
from mixlogit_align.alignment.strength import constant_gradient_drift
from mixlogit_align.errors import InvalidInputError
from mixlogit_align.report.figures import (
    gains_figure,
    gains_of,
    heterogeneity_figure,
    runtime_figure,
    subgroup_margins_figure,
    trajectory_figure,
    variance_figure,
)
from mixlogit_align.report.figures.runtime import relative_seconds
from mixlogit_align.report.figures.subgroups import MACRO, MACRO_ALL, MICRO
from mixlogit_align.report.figures.trajectories import states_of, under_constant_gradient
from mixlogit_align.report.files import FITTED, Run

from .made_up import DATA, DPO, GAMMA, LOGNORMAL, axes_of, evaluation, gains, measured_run, steps


def marks(axes: Any, marker: str) -> list[tuple[float, float, bool, float]]:
    """Places of markers, whether they are hollow, and their size; from the first row down."""
    found = [(x, float(y), line.get_markerfacecolor() == "#ffffff", line.get_markersize())
             for line in axes.get_lines() if line.get_marker() == marker
             for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]  # fmt: skip
    return sorted(found, key=lambda mark: mark[1])


def upright(axes: Any, color: str) -> list[float]:
    return [line.get_xdata()[0] for line in axes.get_lines()
            if line.get_color() == color and list(line.get_ydata()) == [0, 1]]  # fmt: skip


def bars(axes: Any) -> dict[float, tuple[float, float]]:
    """Ends of horizontal bars by where they stand."""
    return {round(float(line.get_ydata()[0]), 9): tuple(line.get_xdata()) for line in axes.get_lines()
            if line.get_marker() in ("None", "") and len(line.get_xdata()) == 2
            and line.get_ydata()[0] == line.get_ydata()[1]}  # fmt: skip


# --- margins by subgroup -----------------------------------------------------------------------------


def test_subgroups_stand_by_size_and_small_ones_apart(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "a", "DPO", DPO, evaluated=evaluation("DPO"))
    figure = subgroup_margins_figure([run], "education")
    assert figure is not None
    (panel,) = figure.panels
    axes = axes_of(panel)
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["primary (4)", "secondary (100)", "degree (400)", "(unknown) (6)"]
    found = marks(axes, "o")
    assert [(x, hollow) for x, _, hollow, _ in found] == [(-1.0, True), (1.0, False), (3.0, False), (0.0, True)]
    # areas in proportion, down to what can be seen
    assert [size for *_, size in found] == pytest.approx([3.0, 5.0, 10.0, 3.0])
    assert bars(axes)[1.0] == (0.5, 1.5)
    lines = [upright(axes, str(style["color"])) for style in (MICRO, MACRO, MACRO_ALL)]
    assert lines == [[2.6], [2.0], [1.0]]
    assert [key.label for key in figure.keys] == [
        "subgroup ± s.e.", "fewer than 10 clusters, or unknown", "micro average", "macro average",
        "macro average, small ones too",
    ]  # fmt: skip
    assert "over clusters by annotator" in figure.caption


def test_seeds_share_a_panel_and_methods_have_their_own(tmp_path: Path) -> None:
    made = (("DPO", DPO, 0, 0.0), ("DPO", DPO, 1, 1.0), ("Mix", GAMMA, 0, 9.0))
    runs = [measured_run(tmp_path / f"{name}{seed}", name, strength, seed=seed, evaluated=evaluation(name, gain))
            for name, strength, seed, gain in made]  # fmt: skip
    figure = subgroup_margins_figure(runs)
    assert figure is not None
    assert [panel.title for panel in figure.panels] == ["DPO", "MixDPO Gamma, 1e-4"]
    first, second = (axes_of(panel) for panel in figure.panels)
    assert [x for x, *_ in marks(first, "o")] == [-0.5, 1.5, 3.5, 0.5]
    assert [x for x, *_ in marks(first, "|")][:2] == [-1.0, 0.0]
    assert upright(first, str(MICRO["color"])) == [3.1]
    assert first.get_xlim() == second.get_xlim()
    assert first.get_xlim()[1] > 12.5
    assert "one seed" in [key.label for key in figure.keys]


def test_attributes_have_panels(tmp_path: Path) -> None:
    both = evaluation("DPO")
    both["averages"] += [{**a, "attribute": "age"} for a in both["averages"] if a["attribute"] is not None]
    figure = subgroup_margins_figure([measured_run(tmp_path / "a", "DPO", DPO, evaluated=both)])
    assert figure is not None
    assert [panel.title for panel in figure.panels] == ["education", "age"]


def test_pairs_without_groups_have_no_figure(tmp_path: Path) -> None:
    alone = evaluation("DPO")
    alone["averages"] = alone["averages"][:1]
    assert subgroup_margins_figure([measured_run(tmp_path / "a", "DPO", DPO, evaluated=alone)]) is None


@pytest.mark.parametrize(
    "evaluated, arguments, error",
    [
        (None, {}, "got no evaluation.json; .* Try `mixlogit-align evaluate "),
        (evaluation("DPO"), {"attribute": "age"}, "got 'age'; expected one of education"),
        (evaluation("DPO"), {"metric": "accuracy"}, "got 'accuracy'; .* of DPO: margin/sum"),
    ],
    ids=["not evaluated", "attribute", "metric"],
)
def test_what_was_not_measured_is_named(
    tmp_path: Path, evaluated: dict[str, Any] | None, arguments: dict[str, str], error: str
) -> None:
    run = measured_run(tmp_path / "a", "DPO", DPO, evaluated=evaluated)
    with pytest.raises(InvalidInputError, match=error):
        subgroup_margins_figure([run], **arguments)


# --- gains -------------------------------------------------------------------------------------------


def held(tmp_path: Path, name: str, strength: Any, gain: float, pvalue: float, seed: int = 0) -> Run:
    result = gains(name, gain, pvalue)
    return measured_run(tmp_path / f"{name}{seed}", name, strength, seed=seed, held={f"dpo{seed}": result})


def write_groups(run: Run) -> None:
    """One annotator under two framings, of one education."""
    groups = [json.dumps({"framing": framing, "education": "degree"}) for framing in ("guided", "free")]
    table = {"annotator_id": ["a", "a"], "groups": groups, "logratio_diff": [0.1, 0.2], "pair_id": [0, 1]}
    pyarrow.parquet.write_table(pyarrow.table(table), run.path / "log_ratios.parquet")


def test_gains_by_subgroup_then_by_context_then_on_average(tmp_path: Path) -> None:
    runs = [held(tmp_path, "normal", LOGNORMAL, 1.0, 0.001), held(tmp_path, "gamma", GAMMA, 2.0, 0.02)]
    write_groups(runs[0])
    figure = gains_figure(runs)
    assert figure is not None
    assert [panel.title for panel in figure.panels] == ["education", "framing (of the occasion)", "on average"]
    assert [key.label for key in figure.keys] == [
        "MixDPO LogNormal, 1e-4", "MixDPO Gamma, 1e-4", "no interval: too few clusters", "no gain over DPO",
    ]  # fmt: skip
    education, _, averages = (axes_of(panel) for panel in figure.panels)
    assert [tick.get_text() for tick in education.get_yticklabels()] == [
        "primary (4)", "secondary (100)", "degree (400)",
    ]  # fmt: skip
    first, second = marks(education, "o"), marks(education, "s")
    assert [(x, hollow) for x, _, hollow, _ in first] == [(1.0, True), (1.0, False), (1.0, False)]
    assert [x for x, *_ in second] == [2.0, 2.0, 2.0]
    assert [y for _, y, *_ in first] == pytest.approx([-0.18, 0.82, 1.82])  # half of the step of 0.72 / 2 above
    assert bars(education)[0.82] == (0.8, 1.2)
    assert len(bars(education)) == 4  # none of the small cell
    # adjusted by three: 0.003 and 0.06; on average as they are: 0.001 and 0.02
    assert [text.get_text() for text in education.texts] == ["**", "**"]
    assert [text.get_text() for text in averages.texts] == ["**", "**", "*", "*"]
    assert [tick.get_text() for tick in averages.get_yticklabels()] == ["all pairs (510)", "education, macro (500)"]
    assert education.get_xlim() == averages.get_xlim()
    assert "adjusted for their number (holm)" in figure.caption


def test_a_star_is_that_of_every_seed(tmp_path: Path) -> None:
    runs = [held(tmp_path, "gamma", GAMMA, float(seed), pvalue, seed) for seed, pvalue in ((1, 0.001), (2, 0.04))]
    figure = gains_figure(runs)
    assert figure is not None
    averages = axes_of(figure.panels[-1])
    assert [x for x, *_ in marks(averages, "o")] == [1.5, 1.5]
    assert next(iter(bars(averages).values())) == pytest.approx((1.3, 1.7))
    assert [text.get_text() for text in averages.texts] == ["*", "*"]
    assert "the stars that every seed has" in figure.caption


def test_without_annotators_no_attribute_is_called_one_of_the_occasion(tmp_path: Path) -> None:
    figure = gains_figure([held(tmp_path, "gamma", GAMMA, 1.0, 0.5)])
    assert figure is not None
    assert {panel.title for panel in figure.panels} == {"education", "framing", "on average"}


def test_what_runs_are_held_against(tmp_path: Path) -> None:
    assert gains_figure([measured_run(tmp_path / "a", "gamma", GAMMA)]) is None
    results = {"one": gains("gamma", 1.0, 0.5), "two": gains("gamma", 2.0, 0.5), "sft": gains("gamma", 3.0, 0.5, "SFT")}
    run = measured_run(tmp_path / "b", "gamma", GAMMA, held=results)
    assert list(gains_of([run])) == ["DPO (one)", "SFT", "DPO (two)"]
    with pytest.raises(InvalidInputError, match=r"got None; expected one of 'DPO \(one\)', 'SFT', 'DPO \(two\)'"):
        gains_figure([run])
    figure = gains_figure([run], "DPO (two)")
    assert figure is not None
    assert {x for x, *_ in marks(axes_of(figure.panels[-1]), "o")} == {2.0}


# --- the strength ------------------------------------------------------------------------------------


def gamma_fits(tmp_path: Path, **fits: tuple[float, float]) -> Run:
    """A run with gamma densities of these means and cvs, on the points that are written."""
    low = 0.01 * min(mean for mean, _ in fits.values())
    points = np.geomspace(low, max(mean * (1 + 4 * cv) for mean, cv in fits.values()), 200)
    found = dict.fromkeys(FITTED) | {
        "family": "gamma",
        "fits": {kind: {"mean": mean, "cv": cv} for kind, (mean, cv) in fits.items()},
        "density": {"strength": points.tolist()} | {
            kind: scipy.stats.gamma(cv**-2, scale=mean * cv**2).pdf(points).tolist()
            for kind, (mean, cv) in fits.items()
        },
    }  # fmt: skip
    run = measured_run(tmp_path / "run", "run", GAMMA)
    (run.path / "heterogeneity").mkdir()
    (run.path / "heterogeneity" / "heterogeneity.json").write_text(json.dumps(found))
    return run


@pytest.mark.parametrize(
    ("fits", "last", "beyond"),
    [
        # exponential distributions: 95 % are below mean * ln 20, and exp(-x / mean) above x
        ({"comparison": (1.0, 1.0)}, math.log(20), ["5.0%"]),
        ({"comparison": (1.0, 1.0), "annotator": (1.5, 1.0)}, 1.5 * math.log(20), ["1.1%", "5.0%"]),
        # a gamma of shape 1/9 and scale 72: by mpmath, 1 - P(1/9, 2 ln 20 / 72) = 0.2054
        ({"comparison": (8.0, 3.0), "annotator": (2.0, 1.0)}, 2 * math.log(20), ["20.5%", "5.0%"]),
        # of a cv of 20 the 95 % quantile is far below the mean, where the axis ends then
        ({"comparison": (1.0, 20.0)}, 1.0, None),
    ],
    ids=["one", "two", "a wide one", "a wide one alone"],
)
def test_the_axis_of_the_densities_ends_where_most_is_drawn(
    fits: dict[str, tuple[float, float]], last: float, beyond: list[str] | None, tmp_path: Path
) -> None:
    figure = heterogeneity_figure(gamma_fits(tmp_path, **fits))
    assert figure is not None
    axes = axes_of(figure.panels[0])
    assert axes.get_xlim() == pytest.approx((0.0, last), rel=1e-12)
    told = re.findall(r"[\d.]+% of", figure.caption.partition("Densities are drawn")[2])
    assert beyond is None or told == [f"{share} of" for share in beyond]


def test_a_peak_beside_zero_leaves_the_other_density_its_room(tmp_path: Path) -> None:
    """The exponential density begins at 0.5, the other one at 2.4 where the strength is 0.02."""
    figure = heterogeneity_figure(gamma_fits(tmp_path, comparison=(8.0, 3.0), annotator=(2.0, 1.0)))
    assert figure is not None
    assert 0.45 < axes_of(figure.panels[0]).get_ylim()[1] < 1.0
    assert "beside 0 they may rise above the panel" in figure.caption


def test_training_logs_the_strength_before_its_step(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "a", "gamma", GAMMA, metrics=steps([1.0, 1.0], [4.0, 9.0, 16.0]))
    found = [(state.step, state.examples_seen, state.sd) for state in states_of(run)]
    assert found == [(0, 0.0, 2.0), (1, 64, 3.0), (2, 128, 4.0)]


@pytest.mark.parametrize("num_steps", [1, 859])
def test_how_far_a_constant_gradient_takes_the_lognormal(num_steps: int) -> None:
    """Moments of a LogNormal whose loc and log of scale go up, or down, by the drift."""
    config = PreferenceConfig(strength=LOGNORMAL)
    drift = constant_gradient_drift(config.optim, 1e-4, num_steps)
    found = under_constant_gradient(config, num_steps)

    def moments(sign: float) -> tuple[float, float]:
        loc, scale = -2.3 + sign * drift, 0.6 * math.exp(sign * drift)
        mean = math.exp(loc + scale**2 / 2)
        return mean, mean**2 * math.expm1(scale**2)

    least, most = moments(-1.0), moments(1.0)
    # parameters are float32: a relative error of 1e-7 in each
    assert (found["mean/least"], found["variance/least"]) == pytest.approx(least, rel=2e-6)
    assert (found["mean/most"], found["variance/most"]) == pytest.approx(most, rel=2e-6)


def test_how_far_a_constant_gradient_takes_the_gamma() -> None:
    """Its variance k / r^2 goes at most by exp(3 d), its cv by exp(d / 2); d is 983 times the rate in 859 steps."""
    config = PreferenceConfig(strength=GAMMA, optim=OptimConfig(warmup_steps=0))
    found = under_constant_gradient(config, 859)
    drift = 983 * 1e-4
    # 983 is rounded: d to 5e-4 relatively
    assert found["variance/most"] == pytest.approx(2 / 16.7**2 * math.exp(3 * drift), rel=2e-4)
    assert found["variance/least"] == pytest.approx(2 / 16.7**2 * math.exp(-3 * drift), rel=2e-4)
    assert found["cv/most"] == pytest.approx(2**-0.5 * math.exp(drift / 2), rel=2e-4)


def test_a_raw_scale_goes_no_further_than_zero() -> None:
    strength = LogNormalStrength(transform="raw", update=LearnedUpdate(lr=0.1))
    found = under_constant_gradient(PreferenceConfig(strength=strength), 859)
    assert found["variance/least"] == pytest.approx(0.0, abs=1e-12)  # a scale of 1e-6
    assert math.isfinite(found["cv/least"])


def test_variances_by_data_with_seeds_and_how_far_a_gradient_goes(tmp_path: Path) -> None:
    other = SimulatedData(**{**vars(DATA), "strength_cv": 0.0})
    runs = [
        measured_run(tmp_path / "a", "gamma", GAMMA, metrics=steps([1.0], [4.0, 2.0])),
        measured_run(tmp_path / "b", "gamma", GAMMA, seed=1, metrics=steps([1.0], [4.0, 3.0])),
        measured_run(tmp_path / "c", "gamma", GAMMA, data=other, metrics=steps([1.0], [4.0, 1.0])),
        measured_run(tmp_path / "d", "normal", LOGNORMAL, metrics=steps([1.0], [5.0, 1.0])),
        measured_run(tmp_path / "e", "frozen", GammaStrength(update=FrozenUpdate()), metrics=steps([1.0], [4.0, 4.0])),
    ]
    figure = variance_figure(runs)
    assert figure is not None
    assert [panel.title for panel in figure.panels] == ["MixDPO Gamma, 1e-4", "MixDPO LogNormal, 1e-4"]
    assert [key.label for key in figure.keys][-1] == "as far as a constant gradient goes"
    axes = axes_of(figure.panels[0])
    drawn = {(line.get_linewidth(), line.get_color(), tuple(round(y, 12) for y in line.get_ydata()))
             for line in axes.get_lines()}  # fmt: skip
    first, second = (str(key.style["color"]) for key in figure.keys[:2])
    assert drawn == {
        (0.7, first, (4.0, 2.0)), (0.7, first, (4.0, 3.0)), (1.7, first, (4.0, 2.5)), (1.7, second, (4.0, 1.0)),
    }  # fmt: skip
    assert len(axes.collections) == 1  # one band: the same start, rate and steps
    assert "thin lines are up to 2 seeds" in figure.caption


@pytest.mark.parametrize("draw", [variance_figure, lambda runs: trajectory_figure("world", runs)], ids=["all", "world"])
def test_a_strength_that_stays_is_not_drawn(tmp_path: Path, draw: Any) -> None:
    assert draw([measured_run(tmp_path / "a", "DPO", DPO, metrics=steps([1.0], [0.0, 0.0]))]) is None


def test_trajectories_show_mean_sd_variance_and_cv(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "a", "gamma", GAMMA, metrics=steps([1.0], [4.0, 1.0], mean=2.0))
    figure = trajectory_figure("world", [run])
    assert figure is not None
    drawn = [list(axes_of(panel).get_lines()[0].get_ydata()) for panel in figure.panels]
    assert drawn == [[2.0, 2.0], [2.0, 1.0], [4.0, 1.0], [1.0, 0.5]]


# --- run time ----------------------------------------------------------------------------------------


def test_run_time_is_that_of_steps_relative_to_the_dpo_beside(tmp_path: Path) -> None:
    """Two seeds: 3 s against 2 s, and 5 s against 4 s: 1.375 on average, and an sd of 0.125 sqrt 2."""
    taken = {(DPO, 0): [1.0, 1.0], (GAMMA, 0): [1.0, 2.0], (DPO, 1): [2.0, 2.0], (GAMMA, 1): [2.0, 3.0]}
    runs = [measured_run(tmp_path / str(i), "run", strength, seed=seed, metrics=steps(seconds))
            for i, ((strength, seed), seconds) in enumerate(taken.items())]  # fmt: skip
    assert relative_seconds(runs) == {"MixDPO Gamma, 1e-4": pytest.approx([1.5, 1.25])}
    figure = runtime_figure(runs)
    assert figure is not None
    axes = axes_of(figure.panels[0])
    assert [x for x, *_ in marks(axes, "s")] == pytest.approx([1.375])
    assert [x for x, *_ in marks(axes, "o")] == pytest.approx([1.5, 1.25])
    ends = axes.collections[0].get_segments()[0][:, 0]
    assert ends.tolist() == pytest.approx([1.375 - 0.125 * 2**0.5, 1.375 + 0.125 * 2**0.5])
    assert [text.get_text() for text in axes.texts] == ["1.38×"]
    assert "over 2 pairs of runs" in figure.caption


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"data": SimulatedData(**{**vars(DATA), "num_train": 16})},
        {"precision": "bfloat16"},
        {"status": "interrupted"},
        {"metrics": [{**row, "examples_per_second": 0.0} for row in steps([1.0])]},
    ],
    ids=["seed", "data", "precision", "unfinished", "not timed"],
)
def test_runs_that_differ_in_more_are_not_compared(tmp_path: Path, other: dict[str, Any]) -> None:
    dpo = measured_run(tmp_path / "a", "DPO", DPO, metrics=steps([1.0]))
    gamma = measured_run(tmp_path / "b", **{"name": "g", "strength": GAMMA, "metrics": steps([1.0]), **other})
    assert runtime_figure([dpo, gamma]) is None


# --- on a page ---------------------------------------------------------------------------------------


def test_all_follow_the_theme_of_a_page_with_ids_of_their_own(tmp_path: Path) -> None:
    dpo = measured_run(tmp_path / "a", "DPO", DPO, evaluated=evaluation("DPO"), metrics=steps([1.0]))
    gamma = measured_run(tmp_path / "b", "gamma", GAMMA, metrics=steps([1.0], [4.0, 1.0]),
                         held={"a": gains("gamma", 1.0, 0.001)})  # fmt: skip
    made = [subgroup_margins_figure([dpo]), gains_figure([gamma]), variance_figure([gamma]),
            runtime_figure([dpo, gamma]), trajectory_figure("world", [gamma])]  # fmt: skip
    panels = [panel.svg for figure in made if figure is not None for panel in figure.panels]
    assert len(panels) == 1 + 3 + 1 + 1 + 4
    assert [ElementTree.fromstring(svg).tag for svg in panels] == ["svg"] * len(panels)
    joined = "\n".join(panels)
    assert re.findall(r"#[0-9a-f]{6}\b", joined) == []
    assert "var(--page)" in joined  # hollow points
    ids = re.findall(r' id="([^"]+)"', joined)
    assert len(ids) == len(set(ids))
