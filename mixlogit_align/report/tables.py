"""Tables of a report, as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from mixlogit_align.alignment.config import PreferenceConfig
from mixlogit_align.report.files import Recovery, Run, labels

NONE = "–"
MANY = 8  # columns: more need smaller letters on a sheet of paper


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """An HTML table.

    Parameters
    ----------
    head : sequence of str
        Column titles; the first column names its row.
    rows : sequence of sequence of str
        Cells, HTML already.
    caption : str
        What stands below, HTML already. It is no caption element, which would be as wide as the table.
    """
    many = ' class="many"' if len(head) > MANY else ""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return (
        f'<div class="scroll" role="group" aria-label="Table: {escape(head[0])}" tabindex="0"><table{many}>\n'
        f"<thead><tr>{titles}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
        f'<p class="note">{caption}</p>'
    )


def recovery_table(recovery: Recovery) -> str:
    """Truth, estimate and, where it ran, xlogit beside it; one row a case, one line a parameter."""
    columns = ["case", "truth", "estimate (s.e.)", "z"]
    caption = (
        "Known strengths, estimated from choices simulated under them. z: distance from the truth in standard errors."
    )
    rows = []
    for row in recovery.rows:
        names = list(row["true"])
        rows.append([
            f"{mark(row['passed'])} {escape(row['case'])}",
            _lines(f"{escape(name.partition('.')[2])} {row['true'][name]:g}" for name in names),
            _lines(_estimate(row["estimate"].get(name), row["std_error"].get(name)) for name in names),
            _lines(number(row["z"].get(name), "+.2f") for name in names),
        ])  # fmt: skip
    if recovery.beside_xlogit:
        columns += ["xlogit", "loglik", "gradient", "fit", "xlogit from its default start"]
        caption += (
            " xlogit: its estimate, with the error of its own draws, where ours integrates exactly. On the same draws, "
            "loglik and gradient: largest relative differences at fixed parameters; fit: largest difference of the "
            "estimates."
        )
        for row, cells in zip(recovery.rows, rows, strict=True):
            cells += [
                _lines(number((row["xlogit_estimate"] or {}).get(name), ".4f") for name in row["true"]),
                *(number(row[key], ".0e") for key in ("loglik_rel_diff", "gradient_rel_diff", "fit_abs_diff")),
                _default_start(row["xlogit_default_start"]),
            ]
    return table(columns, rows, caption)


def recovery_notes(recovery: Recovery) -> str:
    """What each case added in words."""
    items = "".join(f"<li><b>{escape(row['case'])}</b>: {escape(row['note'])}</li>" for row in recovery.rows)
    return f"<ul>{items}</ul>"


def methods_table(runs: Sequence[Run]) -> str:
    """Where every method ended on held-out pairs; beside the truth, where it is known."""
    columns = ["method", "integration", "loss", "accuracy", "reward margin", "strength mean", "strength cv", "seconds"]
    rows = [_method_row(run, label) for run, label in zip(runs, labels(runs), strict=True)]
    caption = (
        "Held-out pairs, at the end of training. Strength mean: as it stands, in the unit of the run's log-ratios."
    )
    if truth := next((run.truth for run in runs if run.truth), None):
        columns += ["excess loss", "correlation"]
        caption += (
            " The figures of learned strengths give them in the truth's unit instead. Excess loss: expected nats a "
            "comparison beyond what the truth itself would score. Correlation: of mean strength times log-ratio "
            "difference with the true utility difference."
        )
        for run, row in zip(runs, rows, strict=True):
            held_out = run.truth["held_out"] if run.truth else {}
            row += [number(held_out.get("kl"), ".4f"), number(held_out.get("utility/correlation"), ".3f")]
        attainable, strength = truth["held_out"], truth["strength"]
        rows.append(["the truth itself", NONE, number(attainable["attainable/loss"], ".4f"),
                     number(attainable["attainable/accuracy"], ".1%"), NONE, number(strength["mean"], ".3f"),
                     number(strength["cv"], ".2f"), NONE, "0", "1"])  # fmt: skip
    return table(columns, rows, caption)


def _method_row(run: Run, label: str) -> list[str]:
    preference = run.config.preference
    assert preference is not None
    shapes = {"loss": ".4f", "rewards/accuracies": ".1%", "rewards/margins": ".3f", "strength/mean": ".3f"}
    return [
        escape(label),
        _integration(preference),
        *(number(run.final("preference", metric), shape) for metric, shape in shapes.items()),
        number(run.strength["cv"] if run.strength else None, ".2f"),
        number(run.seconds, ".0f"),
    ]


def _integration(preference: PreferenceConfig) -> str:
    """The rule; of a loss without a distribution of strength its kind, which the run's name may not say."""
    if preference.integration is None:
        return f"none ({preference.loss.kind.replace('_', ' ')})"
    return {"best": "automatic"}.get(preference.integration.rule, preference.integration.rule.replace("_", " "))


def versions_table(versions: Mapping[str, str], machine: str, caption: str) -> str:
    """Which software on which machine."""
    rows = [[escape(name), escape(value)] for name, value in {**versions, "machine": machine}.items()]
    return table(["what", "which"], rows, caption)


def mark(passed: bool | None) -> str:
    """A sign that reads without colour."""
    kind, sign, word = {True: ("good", "✓", "passed"), False: ("bad", "✗", "failed"), None: ("open", "…", "open")}[
        passed
    ]
    return f'<span class="mark {kind}" role="img" aria-label="{word}">{sign}</span>'


def number(value: float | None, shape: str) -> str:
    """A number; a dash where there is none."""
    return NONE if value is None else f"{value:{shape}}"


def _lines(cells: Iterable[str]) -> str:
    return "<br>".join(cells)


def _estimate(estimate: float | None, error: float | None) -> str:
    return number(estimate, ".4f") + ("" if error is None else f" ({error:.4f})")


def _default_start(outcome: str | None) -> str:
    words = NONE if outcome is None else escape(outcome)
    if words.startswith("failed"):
        words = f'<b class="bad">{words}</b>'
    return f'<div class="words">{words}</div>'
