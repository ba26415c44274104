"""From rows to preference data: what all readers that go row by row do alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mixlogit_align.alignment.data.config import StreamedSettings
from mixlogit_align.alignment.data.files import Line
from mixlogit_align.alignment.data.rows import BadRows, Row
from mixlogit_align.alignment.data.schema import SPLITS, Comparison, PreferenceData, Prompt, Split
from mixlogit_align.alignment.data.splits import held_out, keep_random, opening

SplitOf = Callable[[Row, Prompt], Split]


def read_rows(
    config: StreamedSettings,
    tables: Sequence[tuple[Split | None, Iterable[Line]]],
    comparisons_of: Callable[[Row, SplitOf], Iterable[Comparison]],
    *,
    bad: BadRows,
    counts: Counter[str],
    eval_fraction: float | None = None,
    prompts_in_both: bool = False,
    notes: Mapping[str, Any] | None = None,
) -> PreferenceData:
    """Read tables row by row.

    Parameters
    ----------
    config : StreamedSettings
    tables : sequence of (split, rows)
        The split that all rows of a table stand in; None where they say it themselves, or are held out by prompt.
    comparisons_of : callable
        Makes comparisons of a row, given what tells the split of a row and its prompt; raises `BadRow`.
    bad : BadRows
    counts : Counter
        What ``comparisons_of`` counts beside; part of the report.
    eval_fraction : float or None
        Share of prompts held out; None where every row has a split.
    prompts_in_both : bool
        What is held out is not prompts, which then stand in both splits: the report counts them.
    notes : mapping, optional
        Further entries of the report.

    Raises
    ------
    InvalidInputError
        For rows that break a rule, unless they are to be left out.
    """

    def split_of(row: Row, prompt: Prompt) -> Split:
        if row.split is not None:
            return row.split
        assert eval_fraction is not None
        return held_out(prompt, eval_fraction, config.seed)

    limits: dict[Split, int | None] = {"train": config.max_train, "eval": config.max_eval}
    made: dict[Split, list[tuple[Comparison, str]]] = {split: [] for split in SPLITS}

    def full(split: Split) -> bool:
        limit = limits[split]
        return config.streaming and limit is not None and len(made[split]) >= limit

    rows_read = 0
    for t, (table_split, lines) in enumerate(tables):
        for i, (where, values) in enumerate(lines):
            rows_read += 1
            # Interleaved, so that the number does not depend on how much of the other tables is read.
            row = Row(number=i * len(tables) + t, where=where, values=values, split=table_split)
            with bad.leaving_out(where):
                for comparison in comparisons_of(row, split_of):
                    if not full(comparison.split):
                        made[comparison.split].append((comparison, where))
            if all(full(split) for split in ((table_split,) if table_split else SPLITS)):
                break

    evaluated = {comparison.prompt for comparison, _ in made["eval"]}
    if prompts_in_both:
        shared_prompts = evaluated & {comparison.prompt for comparison, _ in made["train"]}
        notes, evaluated = {"prompts_in_both_splits": len(shared_prompts), **(notes or {})}, set()
    openings = {opening(prompt) for prompt in evaluated}
    begun = {prompt for prompt in {comparison.prompt for comparison, _ in made["train"]} if opening(prompt) in openings}
    for where in dict.fromkeys(where for comparison, where in made["train"] if comparison.prompt in evaluated):
        bad.add(where, "prompt_in_both_splits")
    train = [comparison for comparison, _ in made["train"] if comparison.prompt not in evaluated]
    shared = sum(comparison.prompt in begun for comparison in train)
    problems = bad.settle()
    used = keep_random(train, limits["train"], config.seed)
    used += keep_random([comparison for comparison, _ in made["eval"]], limits["eval"], config.seed)
    report = {
        "source": config.source,
        "path": config.path,
        "rows_read": rows_read,
        "rows_used": len(used),
        **{name: count for name, count in sorted(counts.items()) if count},
        **({"train_openings_in_eval": shared} if shared else {}),
        **(notes or {}),
        **problems,
    }
    return PreferenceData(comparisons=tuple(used), report=report)
