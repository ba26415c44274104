"""Figures as data: panels that are drawn as inline SVG for a page, or together on one canvas for a file.

A panel is drawn in the colours of the light theme. In a page's SVG every colour becomes a CSS variable, so that one
drawing serves both themes and print; in a file the colours stay, on white.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, Literal

from mixlogit_align.report.files import Run

# Okabe and Ito's palette, safe for colour-blind readers; page.css has the variables in both themes.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, GRID, PAPER = "#1b1b1b", "#6b6b6b", "#dcdcdc", "#ffffff"
VARIABLES = {
    **{color: f"var(--series-{i})" for i, color in enumerate(SERIES, 1)},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--page)",
}
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (5, 1.4, 1.4, 1.4)))
MARKERS = "osD^vPX"
Style = Mapping[str, Any]
Draw = Callable[[Any], None]
TRUTH: Style = {"color": INK, "linestyle": (0, (3, 2)), "linewidth": 1.3}
OTHER: Style = {"color": MUTED, "linestyle": (0, (1, 1.5)), "linewidth": 1.4}
# Inches. A panel this narrow keeps its letters legible on a phone, where panels stand below each other.
PANEL = (4.2, 2.9)
# A file has two panels beside each other at this scale: 7 inches, a page's width, with letters of 8 points.
FILE_SCALE, FILE_DPI = 0.8, 300
AROUND = 0.5  # inches of a panel in a file that its title and its horizontal axis take
Format = Literal["pdf", "svg", "png"]
FORMATS: tuple[Format, ...] = ("pdf", "svg", "png")


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Parameters
    ----------
    name : str
        Unique on a page.
    title : str
    draw : callable
        Draws on matplotlib's axes.
    size : pair of float
        Inches on a page.
    """

    name: str
    title: str
    draw: Draw
    size: tuple[float, float] = PANEL

    @cached_property
    def svg(self) -> str:
        """SVG fit to stand inside HTML."""
        return _svg(self.name, self.title, self.draw, size=self.size)


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    label: str
    style: Style

    @cached_property
    def svg(self) -> str:
        """SVG fit to stand inside HTML."""

        def draw(axes: Any) -> None:
            axes.set_axis_off()
            axes.plot([0, 0.5, 1], [0, 0, 0], **{**self.style, "markevery": [1]})

        return _svg(f"key-{slug(self.label)}", "", draw, size=(0.42, 0.14))

    def handle(self) -> Any:
        """What stands for it in matplotlib's legend."""
        from matplotlib.lines import Line2D

        return Line2D([], [], **self.style)


@dataclass(frozen=True)
class Figure:
    """Panels under a title, with a legend above and below them sentences that say what to see."""

    name: str
    title: str
    panels: Sequence[Panel]
    keys: Sequence[Key]
    caption: str

    def canvas(self) -> Any:
        """All panels and the legend as one `matplotlib.figure.Figure`."""
        with _settings(font_size=10 * FILE_SCALE):
            return self._canvas()

    def save(self, folder: str | Path, formats: Sequence[Format] = FORMATS) -> list[Path]:
        """Write NAME.pdf, NAME.svg and NAME.png; title and caption go into their metadata, and no date.

        Parameters
        ----------
        folder : path
            Made where it is not there.
        formats : sequence of {"pdf", "svg", "png"}

        Returns
        -------
        list of Path
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about: Mapping[Format, dict[str, Any]] = {
            "pdf": {"Title": self.title, "Subject": self.caption, "CreationDate": None},
            "svg": {"Title": self.title, "Description": self.caption, "Date": None},
            "png": {"Title": self.title, "Description": self.caption},
        }
        written = [folder / f"{self.name}.{form}" for form in formats]
        with _settings(font_size=10 * FILE_SCALE, font_type="path", salt=self.name):
            canvas = self._canvas()
            for path, form in zip(written, formats, strict=True):
                canvas.savefig(path, format=form, dpi=FILE_DPI, metadata=about[form])
        return written

    def _canvas(self) -> Any:
        from matplotlib.figure import Figure as Canvas

        columns = _columns(self.panels)
        height = max(sum(panel.size[1] for panel in column) for column in columns) * FILE_SCALE
        width = len(columns) * max(panel.size[0] for panel in self.panels) * FILE_SCALE
        labels = [textwrap.fill(key.label, 60) for key in self.keys]
        # inches of the longest entry, of which as many stand beside each other as fit
        entry = 0.5 + 0.062 * max((len(line) for label in labels for line in label.split("\n")), default=0)
        beside = max(min(int(width / entry), len(labels)), 1)
        rows = math.ceil(sum(label.count("\n") + 1 for label in labels) / beside)
        legend = 0.19 * rows + 0.1 if labels else 0.0
        canvas = Canvas(figsize=(width, height + legend), layout="constrained")
        placed: list[list[tuple[Any, Any]]] = []
        if labels:
            canvas.legend(
                [key.handle() for key in self.keys], labels, loc="outside upper left", ncols=beside, frameon=False,
                borderpad=0.2, columnspacing=1.4, handlelength=2.4,
            )  # fmt: skip
        for column, slots in zip(columns, _slots(canvas, columns, height), strict=True):
            titles = []
            for panel, slot in zip(column, slots, strict=False):
                axes = slot.get_gridspec().figure.add_subplot(slot)
                panel.draw(axes)
                title = axes.set_title(textwrap.fill(panel.title, 52), loc="left", fontsize="medium", color=INK)
                titles.append((axes, title))
            placed.append(titles)
        # once all has its place, titles begin where the names beside the axes of their column do
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")
        for titles in placed:
            left = min(axes.get_tightbbox().x0 for axes, _ in titles)
            for axes, title in titles:
                title.set_x(axes.transAxes.inverted().transform((left, 0.0))[0])
        return canvas


def _slots(canvas: Any, columns: Sequence[Sequence[Panel]], height: float) -> list[list[Any]]:
    """Places for the panels of each column: on one grid where all are of one height, else on a grid for each column."""
    longest = max(map(len, columns))
    if len({panel.size[1] for column in columns for panel in column}) == 1:
        grid = canvas.add_gridspec(longest, len(columns))
        return [[grid[row, i] for row in range(longest)] for i in range(len(columns))]
    found = []
    for part, column in zip(canvas.subfigures(1, len(columns), squeeze=False)[0], columns, strict=True):
        heights = [panel.size[1] * FILE_SCALE for panel in column]
        below = height - sum(heights)
        ratios = [*(max(inches - AROUND, 0.3) for inches in heights), *([below] if below > 0.2 else [])]
        grid = part.add_gridspec(len(ratios), 1, height_ratios=ratios)
        found.append([grid[row] for row in range(len(ratios))])
    return found


def _columns(panels: Sequence[Panel]) -> list[Sequence[Panel]]:
    """Panels of one height row by row; others down the first column, then the second, about as long as each other."""
    if len(panels) == 1:
        return [panels]
    heights = [panel.size[1] for panel in panels]
    if len(set(heights)) == 1:
        return [panels[::2], panels[1::2]]
    cut = min(range(1, len(panels)), key=lambda i: max(sum(heights[:i]), sum(heights[i:])))
    return [panels[:cut], panels[cut:]]


def styles_of(names: Sequence[str]) -> dict[str, Style]:
    """Colour, dashes and marker of every name; never told apart by colour alone."""
    styles = zip(*map(itertools.cycle, (SERIES, DASHES, MARKERS)), strict=False)
    return {name: {"color": color, "linestyle": dashes, "marker": marker, "markersize": 4.5, "linewidth": 1.7}
            for name, (color, dashes, marker) in zip(dict.fromkeys(names), styles, strict=False)}  # fmt: skip


def run_styles(runs: Sequence[Run]) -> dict[str, Style]:
    """Those of every run's name."""
    return styles_of([run.name for run in runs])


def lines_only(styles: Mapping[str, Style]) -> dict[str, Style]:
    """The same without markers, for curves of many points."""
    return {name: {**style, "marker": ""} for name, style in styles.items()}


def run_keys(styles: Mapping[str, Style], runs: Sequence[Run]) -> list[Key]:
    """The legend of the runs that a figure shows."""
    return [Key(name, style) for name, style in styles.items() if name in {run.name for run in runs}]


def slug(text: str) -> str:
    """A word that may stand in an id or a file's name."""
    return re.sub(r"\W+", "-", text.lower()).strip("-")


@contextmanager
def _settings(*, font_size: float, font_type: str = "none", salt: str | None = None) -> Iterator[None]:
    import matplotlib

    settings: Any = {
        "svg.fonttype": font_type, "svg.hashsalt": salt, "pdf.fonttype": 42,
        "font.family": "sans-serif", "font.size": font_size,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "axes.linewidth": 0.8,
        "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
        "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.unicode_minus": True,
        "axes.formatter.use_mathtext": False,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield


def _svg(name: str, title: str, draw: Draw, *, size: tuple[float, float]) -> str:
    """Draw on one pair of axes and return SVG fit to stand inside HTML."""
    from matplotlib.figure import Figure as Canvas

    with _settings(font_size=10, salt=name):
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
    # a hundredth of a point cannot be seen; six decimals double a page's size
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    # the view box scales it; a label takes its place for readers who do not see it
    head = f'<svg role="img" aria-label="{escape(title)}"' if title else '<svg aria-hidden="true"'
    return re.sub(r"\s*\n\s*", "\n", svg.replace("<svg", head, 1))
