"""Reader of pairs of short humorous texts with vote counts (Simpson, Do Dinh, Miller, Gurevych, ACL 2019)."""

from __future__ import annotations

import random

from mixlogit_align.alignment.data.config import HumourData
from mixlogit_align.alignment.data.files import data_folder, read_table
from mixlogit_align.alignment.data.rows import BadRow, BadRows, Row, as_whole, once
from mixlogit_align.alignment.data.schema import Comparison, PreferenceData, Split
from mixlogit_align.alignment.data.splits import keep_random

PROMPT = "Write something funny."


def read_humour(config: HumourData) -> PreferenceData:
    """Read the tables ``items`` (item, text) and ``pair_counts`` (item_a, item_b, n_a, n_b).

    ``n_a`` and ``n_b`` count the votes for either text of one unordered pair: the pair becomes one row for
    each text that got votes, chosen there, with its votes as weight; that is the exact likelihood of the
    votes. All rows share the prompt "Write something funny.", so splits are by text, see `HumourData`.
    """
    folder = str(data_folder(config.path))
    bad = BadRows(source="humour", policy=config.bad_rows)
    texts: dict[int, str] = {}
    seen: dict[int, str] = {}
    for number, (where, values) in enumerate(read_table(folder, bad, name="items")):
        row = Row(number=number, where=where, values=values)
        with bad.leaving_out(where):
            item, text = as_whole(row.value("item"), "item"), row.text("text", "empty_response")
            once(seen, item, where, "item")
            texts[item] = text.strip()
    held_out = set(random.Random(config.seed).sample(sorted(texts), round(config.eval_fraction * len(texts))))

    rows_read = across = 0
    by_split: dict[Split, list[list[Comparison]]] = {"train": [], "eval": []}
    for number, (where, values) in enumerate(read_table(folder, bad, name="pair_counts")):
        rows_read += 1
        row = Row(number=number, where=where, values=values)
        with bad.leaving_out(where):
            a, b, n_a, n_b = (as_whole(row.value(name), name) for name in ("item_a", "item_b", "n_a", "n_b"))
            if not (a in texts and b in texts):
                raise BadRow("unknown_id", f"item {a if b in texts else b}")
            if a == b:
                raise BadRow("conflicting_ids", f"item {a} twice")
            if min(n_a, n_b) < 0 or n_a + n_b == 0:
                raise BadRow("weight_not_positive", f"{n_a} and {n_b} votes")
            if (a in held_out) != (b in held_out):
                across += 1
                continue
            split: Split = "eval" if a in held_out else "train"
            by_split[split].append(
                [
                    Comparison(
                        prompt=PROMPT,
                        responses=(f" {texts[a]}", f" {texts[b]}"),
                        choice=choice,
                        pair_id=2 * number + choice,
                        split=split,
                        weight=votes,
                    )
                    for choice, votes in enumerate((n_a, n_b))
                    if votes
                ]
            )
    problems = bad.settle()
    kept = keep_random(by_split["train"], config.max_train, config.seed) + keep_random(
        by_split["eval"], config.max_eval, config.seed
    )
    rows = [comparison for pair in kept for comparison in pair]
    report = {
        "source": "humour",
        "path": config.path,
        "rows_read": rows_read,
        "pairs_across_splits": across,
        "pairs_used": len(kept),
        "rows_used": len(rows),
        "votes_used": sum(row.weight for row in rows),
        **problems,
    }
    return PreferenceData(comparisons=tuple(rows), report=report)
