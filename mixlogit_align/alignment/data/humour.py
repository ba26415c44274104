"""Reader of pairs of short humorous texts with vote counts (Simpson, Do Dinh, Miller, Gurevych, ACL 2019)."""

from __future__ import annotations

import csv
import random

from mixlogit_align.alignment.data.config import HumourData
from mixlogit_align.alignment.data.files import data_folder, keep_random, open_text
from mixlogit_align.alignment.data.schema import Comparison, PreferenceData, Split

PROMPT = "Write something funny."


def read_humour(config: HumourData) -> PreferenceData:
    """Read ``items.csv`` (item, text) and ``pair_counts.csv`` (item_a, item_b, n_a, n_b), with or without ``.gz``.

    ``n_a`` and ``n_b`` count the votes for either text of one unordered pair: the pair becomes one row for
    each text that got votes, chosen there, with its votes as weight; that is the exact likelihood of the
    votes. All rows share the prompt "Write something funny.". Splits are by text, see `HumourData`.
    """
    folder = data_folder(config.folder)
    with open_text(folder, "items.csv") as file:
        texts = {int(row["item"]): row["text"].strip() for row in csv.DictReader(file)}
    with open_text(folder, "pair_counts.csv") as file:
        pairs = [tuple(int(row[name]) for name in ("item_a", "item_b", "n_a", "n_b")) for row in csv.DictReader(file)]

    held_out = set(random.Random(config.seed).sample(sorted(texts), round(config.eval_fraction * len(texts))))
    across = 0
    by_split: dict[Split, list[list[Comparison]]] = {"train": [], "eval": []}
    for index, (a, b, n_a, n_b) in enumerate(pairs):
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
                    pair_id=2 * index + choice,
                    split=split,
                    weight=votes,
                )
                for choice, votes in enumerate((n_a, n_b))
                if votes
            ]
        )
    kept = keep_random(by_split["train"], config.max_train, config.seed) + keep_random(
        by_split["eval"], config.max_eval, config.seed
    )
    rows = [row for pair in kept for row in pair]
    report = {
        "source": "humour",
        "rows_read": len(pairs),
        "pairs_across_splits": across,
        "pairs_used": len(kept),
        "rows_used": len(rows),
        "votes_used": sum(row.weight for row in rows),
    }
    return PreferenceData(comparisons=tuple(rows), report=report)
