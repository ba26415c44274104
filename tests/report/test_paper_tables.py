"""The tables of results: what is in a cell, which marks it has, and that text, HTML and LaTeX agree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mixlogit_align.alignment.config import FrozenUpdate, GammaStrength, LearnedUpdate
from mixlogit_align.alignment.data.config import SimulatedData
from mixlogit_align.errors import InvalidInputError
from mixlogit_align.report.files import Run
from mixlogit_align.report.grid import Grid, escape_latex
from mixlogit_align.report.paper_tables import results_table

from .made_up import DATA, DPO, GAMMA, evaluation, gains, measured_run, winrate

FAST = GammaStrength(update=LearnedUpdate(lr=1e-2))


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """DPO and a Gamma of two seeds on one world; the Gamma, judged alone, and one that was not measured on another."""
    other = SimulatedData(**{**vars(DATA), "strength_cv": 0.0})

    def gamma(folder: str, seed: int, gain: float, pvalue: float, judged: Any) -> Run:
        return measured_run(tmp_path / folder, "gamma", GAMMA, seed=seed, evaluated=evaluation("gamma", gain),
                            held={f"dpo{seed}": gains("gamma", gain, pvalue)}, judged=judged)  # fmt: skip

    return [
        gamma("g0", 0, 1.0, 0.002, winrate(61.0, 0.004, lower=0.5)),
        gamma("g1", 1, 2.0, 0.03, winrate(63.0, 0.006, lower=0.1)),
        *(measured_run(tmp_path / f"d{seed}", "DPO", DPO, seed=seed, evaluated=evaluation("DPO"), judged=judged)
          for seed, judged in enumerate((winrate(50.0), None))),
        measured_run(tmp_path / "f", "frozen", GammaStrength(update=FrozenUpdate())),
        measured_run(tmp_path / "o", "gamma", GAMMA, data=other, judged=winrate(48.0, 0.5)),
        measured_run(tmp_path / "fast", "gamma", FAST, evaluated=evaluation("gamma", -1.0)),
    ]  # fmt: skip


def rows(grid: Grid) -> dict[tuple[str, str], list[str]]:
    return {(row[0], row[1]): list(row[2:]) for row in grid.rows}


def test_cells(runs: list[Run]) -> None:
    grid = results_table(runs)
    assert [title for title, _ in grid.heads[2]] == ["margin", "WR", "LC-WR"] * 2
    assert [span for _, span in grid.heads[0]] == [3, 3]
    none = ["–"] * 3
    assert rows(grid) == {
        ("DPO", "–"): ["2", "2.50 (0.50; 0.00)", "50.00 (2.50) [1 of 2]", "49.00 (2.00) [1 of 2]", *none],
        ("MixDPO Gamma", "frozen"): ["1", *none, *none],
        # stars that both seeds have: one of 0.002 and 0.03, two of 0.004 and 0.006, one at most of an interval;
        # 0.71 and 1.41 are the sds of (3.5, 4.5) and of (61, 63)
        ("MixDPO Gamma", "1e-4"): [
            "1–2", "4.00* (0.50; 0.71)", "62.00** (2.50; 1.41)", "61.00* (2.00; 1.41)",
            "–", "48.00 (2.50)", "47.00 (2.00)",
        ],
        ("MixDPO Gamma", "1e-2"): ["1", "1.50 (0.50)", "–", "–", *none],
    }  # fmt: skip
    assert "against SFT, judged by a judge" in grid.caption
    assert "sign-flip test" in grid.caption
    assert "how many of the seeds have been measured" in grid.caption


def test_the_text_of_a_table(tmp_path: Path) -> None:
    """Written by hand; the data's name, of 46 letters, widens the last of the columns that it is over."""
    judged = measured_run(tmp_path / "a", "DPO", DPO, evaluated=evaluation("DPO"), judged=winrate(50.0))
    gamma = measured_run(tmp_path / "b", "gamma", GAMMA, evaluated=evaluation("gamma", 1.0),
                         held={"dpo": gains("gamma", 1.0, 0.002)})  # fmt: skip
    assert results_table([judged, gamma]).text().split("\n\n")[:2] == [
        "Margins and win rates of methods",
        """\
                                  simulated annotators, strength lognormal, cv 1
                                  new GPT-NeoX, 2 × 64
method        strength lr  seeds         margin            WR              LC-WR
------------  -----------  -----  -------------  ------------  -----------------
DPO           –            1        2.50 (0.50)  50.00 (2.50)       49.00 (2.00)
MixDPO Gamma  1e-4         1      3.50** (0.50)             –                  –""",
    ]


def test_the_papers_first_table_is_of_one_learning_rate(runs: list[Run]) -> None:
    assert list(rows(results_table(runs, rate="1e-4"))) == [("DPO", "–"), ("MixDPO Gamma", "1e-4")]
    with pytest.raises(InvalidInputError, match="got '1e-9'; expected one of '1e-4', '–', 'frozen', '1e-2'"):
        results_table(runs, rate="1e-9")


def test_nothing_measured_is_an_error(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "a", "gamma", GAMMA)
    with pytest.raises(InvalidInputError, match=r"got no evaluation.json and no winrate.json; .* evaluate RUN"):
        results_table([run])


def test_a_gain_over_something_else_gives_no_star(tmp_path: Path) -> None:
    """Over a run that is not DPO, whatever its p-value; nor a win rate that was not compared with DPO's."""
    dpo = measured_run(tmp_path / "d", "DPO", DPO, evaluated=evaluation("DPO"))
    judged = winrate(80.0, 0.001)
    judged["compared"]["other"] = "SFT"
    run = measured_run(tmp_path / "a", "gamma", GAMMA, evaluated=evaluation("gamma"), judged=judged,
                       held={"sft": gains("gamma", 5.0, 1e-4, "SFT")})  # fmt: skip
    assert rows(results_table([dpo, run]))["MixDPO Gamma", "1e-4"][1:] == [
        "2.50 (0.50)", "80.00 (2.50)", "79.00 (2.00)",
    ]  # fmt: skip


def test_what_is_below_dpo_has_daggers(tmp_path: Path) -> None:
    """The method loses by 1 nat and 3 points, its length-controlled difference from -7 to -1."""
    dpo = measured_run(tmp_path / "d", "DPO", DPO, evaluated=evaluation("DPO"), judged=winrate(50.0))
    judged = winrate(47.0, 0.03)
    judged["compared"]["test"]["difference"] = -3.0
    judged["compared"]["controlled"] = {"value": -4.0, "standard_error": 2.0, "lower": -7.0, "upper": -1.0}
    run = measured_run(tmp_path / "a", "gamma", GAMMA, evaluated=evaluation("gamma", -1.0), judged=judged,
                       held={"dpo": gains("gamma", -1.0, 0.002)})  # fmt: skip
    grid = results_table([dpo, run])
    assert rows(grid)["MixDPO Gamma", "1e-4"][1:] == ["1.50†† (0.50)", "47.00† (2.50)", "46.00† (2.00)"]
    assert "daggers: below DPO with p below 0.05 (†) or 0.01 (††)" in grid.caption
    assert (r"1.50$^{\dagger\dagger}$" in grid.latex(), "1.50†† (0.50)" in grid.html()) == (True, True)


def test_seeds_on_both_sides_of_dpo_have_no_mark(tmp_path: Path) -> None:
    dpo = [measured_run(tmp_path / f"d{seed}", "DPO", DPO, seed=seed, evaluated=evaluation("DPO")) for seed in (0, 1)]
    own = [measured_run(tmp_path / f"g{seed}", "gamma", GAMMA, seed=seed, evaluated=evaluation("gamma", gain),
                        held={f"dpo{seed}": gains("gamma", gain, 0.001)})
           for seed, gain in enumerate((1.0, -1.0))]  # fmt: skip
    assert rows(results_table([*dpo, *own]))["MixDPO Gamma", "1e-4"][1] == "2.50 (0.50; 1.41)"


def test_two_judges_have_columns_of_their_own(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "a", "gamma", GAMMA, judged=winrate(60.0))
    other = measured_run(tmp_path / "b", "fast", FAST, judged=winrate(55.0) | {"judge": "another"})
    heads = [title for title, _ in results_table([run, other]).heads[2]]
    assert heads == [
        "WR against SFT, by a judge", "LC-WR against SFT, by a judge",
        "WR against SFT, by another", "LC-WR against SFT, by another",
    ]  # fmt: skip


# --- text, HTML and LaTeX ----------------------------------------------------------------------------

NASTY = Grid(
    name="nasty", title="5 % of A & B", stubs=["name"],
    heads=[[("x_1 <of> {two} columns", 2)], [("#a", 1), ("b^2 ~ $c", 1)]],
    rows=[["back\\slash", "1.00** (2)", "−3 × π"], ["pipe | –", "4", "±5"]], caption="100 % & more_of *it*",
)  # fmt: skip


def test_latex_is_balanced_and_escaped() -> None:
    text = NASTY.latex()
    unescaped = re.sub(r"\\[\\{}]", "", text)
    assert unescaped.count("{") == unescaped.count("}")
    assert [text.count(rf"\{word}{{{name}}}") for word in ("begin", "end") for name in ("table", "tabular")] == [1] * 4
    lines = [line for line in text.split("\n") if line.endswith(r"\\")]
    assert len(lines) == 4
    separators = [len(re.findall(r"(?<!\\)&", line)) for line in lines]
    assert separators == [1, 2, 2, 2]  # the first spans two columns
    math = re.sub(r"\\\$", "", text)
    assert math.count("$") % 2 == 0
    for raw in ("%", "_", "#", "&"):
        assert re.findall(rf"(?<!\\){raw}", text.replace(" & ", " ")) == []


@pytest.mark.parametrize(
    "plain, latex",
    [
        ("3.50** (0.5)", "3.50$^{**}$ (0.5)"),
        ("1.00†† (0.5)", r"1.00$^{\dagger\dagger}$ (0.5)"),
        ("a_b & c% #1 {x}", r"a\_b \& c\% \#1 \{x\}"),
        ("\\ ~ ^", r"\textbackslash{} \textasciitilde{} \textasciicircum{}"),
        ("< > |", r"\textless{} \textgreater{} \textbar{}"),
        ("– − × π", r"-- $-$ $\times$ $\pi$"),
    ],
    ids=["stars", "daggers", "special", "spelled", "compared", "signs"],
)
def test_latex_of_plain_text(plain: str, latex: str) -> None:
    assert escape_latex(plain) == latex


def test_html_is_well_formed_and_spans_what_it_says() -> None:
    tree = ElementTree.fromstring(f"<div>{NASTY.html()}</div>")
    head, *_ = tree.iter("thead")
    spans = [sum(int(cell.get("colspan", "1")) for cell in line) for line in head]
    assert spans == [3, 2]  # the name's title spans both lines
    assert [[cell.text for cell in line] for body in tree.iter("tbody") for line in body] == [
        ["back\\slash", "1.00** (2)", "−3 × π"], ["pipe | –", "4", "±5"],
    ]  # fmt: skip


def test_a_table_is_saved_three_ways(tmp_path: Path) -> None:
    files = NASTY.save(tmp_path / "new")
    assert [path.name for path in files] == ["nasty.txt", "nasty.html", "nasty.tex"]
    text, page, latex = (path.read_text(encoding="utf-8") for path in files)
    assert (text, latex) == (NASTY.text(), NASTY.latex())
    assert page.startswith("<!DOCTYPE html>")
    assert NASTY.html() in page
