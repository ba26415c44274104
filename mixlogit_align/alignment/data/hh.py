"""Reader of Anthropic HH pairs (Bai et al. 2022, arXiv 2204.05862)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixlogit_align.alignment.data.config import HHData
from mixlogit_align.alignment.data.files import data_folder, keep_random, open_text
from mixlogit_align.alignment.data.schema import Comparison, PreferenceData, Split
from mixlogit_align.errors import InvalidInputError, explain

_TURN = "\n\nAssistant:"


def split_transcript(transcript: str) -> tuple[str, str]:
    """Split a transcript at its last ``"\\n\\nAssistant:"`` into prompt (ending there) and response.

    Earlier ones belong to the prompt, and so does a "Human:" that the assistant wrote itself.
    """
    prompt, turn, response = transcript.rpartition(_TURN)
    if not turn:
        raise InvalidInputError(
            explain(
                "transcript",
                got=repr(transcript[:80]),
                expected=f"a transcript with {_TURN!r}",
                hint="rows of prompt, chosen, rejected",
            )
        )
    return prompt + turn, response


def read_hh(config: HHData) -> PreferenceData:
    """Read ``train`` and ``test`` files of JSON lines, with or without ``.gz``.

    A line has ``chosen`` and ``rejected``: whole transcripts, or responses alone beside a ``prompt``; a
    ``subset`` becomes a group. Outer white space of a response is normalised to one leading space, as in
    the transcripts. An empty response stays (the policy scores the end of text alone) and is counted;
    two transcripts that differ before the last turn are no comparison, are set aside and counted.
    """
    folder = data_folder(config.folder)
    counts: Counter[str] = Counter()
    rows: list[Comparison] = []
    limits: dict[Split, int | None] = {"train": config.max_train, "eval": config.max_eval}
    stems: dict[Split, str] = {"train": "train", "eval": "test"}
    pair_id = 0
    for split, stem in stems.items():
        kept = []
        for line in _lines(folder, stem):
            counts["rows_read"] += 1
            row = _comparison(line, pair_id, split)
            pair_id += 1
            if row is None:
                counts["prompts_differ"] += 1
                continue
            counts["empty_responses"] += sum(not response for response in row.responses)
            counts["identical_responses"] += row.responses[0] == row.responses[1]
            kept.append(row)
        rows += keep_random(kept, limits[split], config.seed)
    counts["rows_used"] = len(rows)
    names = ("rows_read", "rows_used", "prompts_differ", "empty_responses", "identical_responses")
    return PreferenceData(comparisons=tuple(rows), report={"source": "hh", **{name: counts[name] for name in names}})


def _lines(folder: Path, stem: str) -> Iterator[dict[str, Any]]:
    with open_text(folder, f"{stem}.jsonl") as file:
        for line in file:
            yield json.loads(line)


def _comparison(line: dict[str, Any], pair_id: int, split: Split) -> Comparison | None:
    if "prompt" in line:
        prompt, chosen, rejected = line["prompt"], line["chosen"], line["rejected"]
    else:
        prompt, chosen = split_transcript(line["chosen"])
        other_prompt, rejected = split_transcript(line["rejected"])
        if prompt != other_prompt:
            return None
    responses = tuple(f" {text.strip()}" if text.strip() else "" for text in (chosen, rejected))
    groups = {"subset": line["subset"]} if "subset" in line else {}
    return Comparison(
        prompt=prompt.lstrip("\n"), responses=responses, choice=0, pair_id=pair_id, split=split, groups=groups
    )
