"""One drawing for page and file: saved figures hold all panels and the legend, and are the same bytes each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixlogit_align.report.figures.drawing import FORMATS, TRUTH, Figure, Key, Panel, styles_of


def draw(axes: Any) -> None:
    axes.plot([0.0, 1.0], [2.0, 3.0])
    axes.set_xlabel("x")


def figure(*heights: float) -> Figure:
    panels = [Panel(f"p{i}", f"panel {i}", draw, size=(4.2, height)) for i, height in enumerate(heights)]
    keys = [Key(label, style) for label, style in styles_of(["first", "second"]).items()]
    return Figure("a-figure", "A figure", panels, [*keys, Key("the truth", TRUTH)], "What to see: α < β.")


def test_saved_figures_are_the_same_bytes_and_say_what_they_are(tmp_path: Path) -> None:
    made = figure(2.0)
    first, second = made.save(tmp_path / "one"), made.save(tmp_path / "two")
    assert [path.name for path in first] == [f"a-figure.{form}" for form in FORMATS]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    pdf, svg, png = (path.read_bytes() for path in first)
    assert pdf.startswith(b"%PDF")
    assert b"CreationDate" not in pdf
    assert b"A figure" in pdf
    assert png.startswith(b"\x89PNG")
    assert "What to see: α < β.".encode() in png
    assert "What to see: α &lt; β." in svg.decode()
    assert "<text" not in svg.decode()  # letters are drawn, whatever fonts a reader has


def test_one_format_alone(tmp_path: Path) -> None:
    assert figure(2.0).save(tmp_path, ["svg"]) == [tmp_path / "a-figure.svg"]
    assert [path.name for path in tmp_path.iterdir()] == ["a-figure.svg"]


def test_a_canvas_has_all_panels_with_their_titles_and_the_legend() -> None:
    canvas = figure(2.0, 2.0, 2.0).canvas()
    assert [axes.get_title(loc="left") for axes in canvas.axes] == ["panel 0", "panel 2", "panel 1"]
    assert [text.get_text() for text in canvas.legends[0].get_texts()] == ["first", "second", "the truth"]
    left, below, right = (axes.get_position() for axes in canvas.axes)
    assert left.y0 == pytest.approx(right.y0)  # a row
    assert left.x0 == pytest.approx(below.x0)  # a column
    assert left.x1 < right.x0
    assert canvas.get_size_inches()[0] == pytest.approx(2 * 4.2 * 0.8)


@pytest.mark.parametrize(
    "heights, columns",
    [((2.0,), [[0]]), ((2.0, 2.0), [[0], [1]]), ((1.0, 1.0, 2.0), [[0, 1], [2]]), ((3.0, 1.0, 1.5), [[0], [1, 2]])],
    ids=["one", "equal", "last", "first"],
)
def test_panels_of_several_heights_fill_columns(heights: tuple[float, ...], columns: list[list[int]]) -> None:
    canvas = figure(*heights).canvas()
    parts = canvas.subfigs or [canvas]
    if len(set(heights)) > 1:
        found = [[axes.get_title(loc="left") for axes in part.axes] for part in parts]
    else:
        found = [[axes.get_title(loc="left")] for axes in canvas.axes]
    assert found == [[f"panel {i}" for i in column] for column in columns]


def test_styles_do_not_come_again() -> None:
    styles = styles_of([str(i) for i in range(84)])  # the least common multiple of 6 colours, 4 dashes and 7 markers
    assert len({f"{s['color']} {s['linestyle']} {s['marker']}" for s in styles.values()}) == 84
