"""A table with columns under common heads, as text, HTML and LaTeX."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH = 100  # characters of a caption's line
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "–": "--", "−": "$-$", "×": r"$\times$", "±": r"$\pm$", "π": r"$\pi$",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table.

    Parameters
    ----------
    name : str
        Of its files, and its label in LaTeX.
    title : str
    stubs : sequence of str
        Titles of the columns that name a row.
    heads : sequence of sequence of (str, int)
        Of the other columns: lines of titles, each with how many columns it spans; the last line has one a column.
    rows : sequence of sequence of str
        Plain text; stars and daggers after a number are marks of significance.
    caption : str

    Raises
    ------
    AssertionError
        If a line does not span what the rows have.
    """

    name: str
    title: str
    stubs: Sequence[str]
    heads: Sequence[Sequence[tuple[str, int]]]
    rows: Sequence[Sequence[str]]
    caption: str

    def __post_init__(self) -> None:
        columns = len(self.stubs) + len(self.heads[-1])
        assert all(len(row) == columns for row in self.rows)
        assert all(sum(span for _, span in line) == len(self.heads[-1]) for line in self.heads)

    def text(self) -> str:
        """For a terminal; the caption below."""
        last = [title for title, _ in self.heads[-1]]
        columns = list(zip([*self.stubs, *last], *self.rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        first = len(self.stubs)
        for line in self.heads[:-1]:  # a head that is wider than its columns widens the last of them
            at = first
            for title, span in line:
                widths[at + span - 1] += max(len(title) - sum(widths[at : at + span]) - 2 * (span - 1), 0)
                at += span
        lines = []
        for line in self.heads[:-1]:
            at, cells = first, [" " * width for width in widths[:first]]
            for title, span in line:
                cells.append(title.ljust(sum(widths[at : at + span]) + 2 * (span - 1)))
                at += span
            lines.append(cells)
        for row in ([*self.stubs, *last], ["-" * width for width in widths], *self.rows):
            lines.append([cell.ljust(width) if i < first else cell.rjust(width)
                          for i, (cell, width) in enumerate(zip(row, widths, strict=True))])  # fmt: skip
        body = "\n".join("  ".join(cells).rstrip() for cells in lines)
        return f"{self.title}\n\n{body}\n\n{textwrap.fill(self.caption, WIDTH, break_long_words=False)}\n"

    def html(self) -> str:
        """To stand in a page, as `mixlogit_align.report.tables.table`."""
        head = ""
        for i, line in enumerate(self.heads):
            stubs = "".join(f'<th scope="col" rowspan="{len(self.heads)}">{escape(title)}</th>' for title in self.stubs)
            cells = "".join(
                f'<th scope="colgroup" colspan="{span}">{escape(title)}</th>'
                if span > 1
                else f'<th scope="col">{escape(title)}</th>'
                for title, span in line
            )
            head += f"<tr>{stubs if i == 0 else ''}{cells}</tr>"
        first = len(self.stubs)
        body = "\n".join(
            f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
            if first
            else f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
            for row in self.rows
        )
        return (
            f'<div class="scroll" tabindex="0"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody></table></div>'
            f'<p class="note">{escape(self.caption)}</p>'
        )

    def latex(self) -> str:
        """A ``table`` environment that needs no package."""
        first = len(self.stubs)
        lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{'l' * first}{'r' * len(self.heads[-1])}}}",
                 r"\hline"]  # fmt: skip
        for i, line in enumerate(self.heads):
            cells = [escape_latex(stub) if i == len(self.heads) - 1 else "" for stub in self.stubs]
            cells += [
                rf"\multicolumn{{{span}}}{{c}}{{{escape_latex(title)}}}" if span > 1 else escape_latex(title)
                for title, span in line
            ]
            lines.append(" & ".join(cells) + r" \\")
        lines += [r"\hline", *(" & ".join(map(escape_latex, row)) + r" \\" for row in self.rows), r"\hline"]
        lines += [r"\end{tabular}", rf"\caption{{\textbf{{{escape_latex(self.title)}.}} {escape_latex(self.caption)}}}",
                  rf"\label{{tab:{self.name}}}", r"\end{table}"]  # fmt: skip
        return "\n".join(lines) + "\n"

    def save(self, folder: str | Path) -> list[Path]:
        """Write NAME.txt, NAME.html and NAME.tex, and return where they are; the folder is made where it is not."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        page = (
            '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
            f"<title>{escape(self.title)}</title></head>\n<body>\n<h1>{escape(self.title)}</h1>\n{self.html()}\n"
            "</body>\n</html>\n"
        )
        written = []
        for ending, content in (("txt", self.text()), ("html", page), ("tex", self.latex())):
            written.append(folder / f"{self.name}.{ending}")
            written[-1].write_text(content, encoding="utf-8")
        return written


def escape_latex(text: str) -> str:
    """Plain text as LaTeX; stars and daggers are raised."""
    escaped = "".join(LATEX.get(character, character) for character in text)
    return re.sub(r"[*†]+", lambda found: "$^{" + found[0].replace("†", r"\dagger") + "}$", escaped)
