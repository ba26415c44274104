"""Tables of estimates as text, HTML and LaTeX."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

# What a dagger means, which stands where the spread is 0.
BOUNDARY_ERROR = "no standard error, but the spread at which the log-likelihood has fallen by 1/2"
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the head of a row it would be the optional argument of the row before
    "†": r"$\dagger$",
}


def _latex(text: str) -> str:
    return re.sub(".", lambda found: _LATEX.get(found[0], found[0]), text)


@dataclass(frozen=True)
class Table:
    """Words above, rows of cells, words below.

    Attributes
    ----------
    title : str
    columns : tuple of str
        The first stands over the labels.
    blocks : tuple of tuples of rows
        A row is a tuple of cells as text, its label first; a rule or a blank line parts the blocks.
    foot : tuple of str
    """

    title: str
    columns: tuple[str, ...]
    blocks: tuple[tuple[tuple[str, ...], ...], ...]
    foot: tuple[str, ...]

    def as_text(self) -> str:
        """Aligned columns: labels to the left, the rest to the right."""
        rows = [self.columns, *(row for block in self.blocks for row in block)]
        first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))

        def line(cells: Sequence[str]) -> str:
            label, *rest = cells
            aligned = (f"{cell:>{width + 2}}" for cell, width in zip(rest, others, strict=True))
            return (f"{label:{first}}" + "".join(aligned)).rstrip()

        blocks = ("\n".join(map(line, block)) for block in self.blocks if block)
        return "\n".join([self.title, line(self.columns), "\n\n".join(blocks), *self.foot])

    def as_html(self) -> str:
        """One ``<table>``, everything escaped."""

        def row(cells: Sequence[str], tag: str) -> str:
            label, *rest = (html.escape(cell.strip()) for cell in cells)
            inner = "".join(f'<{tag} style="text-align:right">{cell}</{tag}>' for cell in rest)
            return f'<tr><th style="text-align:left">{label}</th>{inner}</tr>'

        bodies = "".join(
            "<tbody>\n" + "\n".join(row(cells, "td") for cells in block) + "\n</tbody>\n"
            for block in self.blocks
            if block
        )
        foot = "<br>\n".join(map(html.escape, self.foot))
        return (
            f"<table>\n<caption>{html.escape(self.title)}</caption>\n<thead>\n{row(self.columns, 'th')}\n</thead>\n"
            f'{bodies}<tfoot>\n<tr><td colspan="{len(self.columns)}" style="text-align:left">{foot}</td></tr>\n'
            "</tfoot>\n</table>"
        )

    def as_latex(self) -> str:
        """One ``tabular`` that needs no package, everything escaped."""

        def row(cells: Sequence[str]) -> str:
            return " & ".join(_latex(cell.strip()) for cell in cells) + r" \\"

        def wide(text: str) -> str:
            return rf"\multicolumn{{{len(self.columns)}}}{{p{{\linewidth}}}}{{{_latex(text)}}} \\"

        body = [line for block in self.blocks if block for line in (*map(row, block), r"\hline")]
        lines = [
            rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
            wide(self.title),
            r"\hline",
            row(self.columns),
            r"\hline",
            *body,
            *map(wide, self.foot),
            r"\end{tabular}",
        ]
        return "\n".join(lines)


class Summary(str):
    """A table as text, which also writes itself as HTML and LaTeX.

    Parameters
    ----------
    table : Table
    """

    __slots__ = ("table",)

    table: Table

    def __new__(cls, table: Table) -> Self:
        """The text of the table."""
        self = super().__new__(cls, table.as_text())
        self.table = table
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.table,)

    def as_html(self) -> str:
        """One HTML table."""
        return self.table.as_html()

    def as_latex(self) -> str:
        """One LaTeX tabular."""
        return self.table.as_latex()

    def _repr_html_(self) -> str:
        return self.as_html()


def number(value: float, digits: int = 6) -> str:
    """A number for a cell; nothing for NaN.

    Parameters
    ----------
    value : float
    digits : int
        Significant ones.

    Returns
    -------
    str
    """
    return "" if value != value else f"{value:.{digits}g}"


def probability(value: float) -> str:
    """A p-value for a cell; nothing for NaN.

    Parameters
    ----------
    value : float

    Returns
    -------
    str
    """
    return "" if value != value else f"{value:.4f}" if value >= 1e-4 else "<0.0001"
