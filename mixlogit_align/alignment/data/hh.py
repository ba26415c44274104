"""Reader of Anthropic HH pairs (Bai et al. 2022, arXiv 2204.05862)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from mixlogit_align.alignment.data.config import HHData
from mixlogit_align.alignment.data.files import Line, read_table
from mixlogit_align.alignment.data.reading import SplitOf, read_rows
from mixlogit_align.alignment.data.rows import BadRow, BadRows, Row, as_text
from mixlogit_align.alignment.data.schema import TURN, Comparison, PreferenceData, Split
from mixlogit_align.alignment.data.sets import compare

FILES: dict[Split, str] = {"train": "train", "eval": "test"}
NAMES = ("chosen", "rejected")


def split_transcript(transcript: str, name: str = "transcript") -> tuple[str, str]:
    """Split a transcript at its last ``"\\n\\nAssistant:"`` into prompt (ending there) and response.

    Earlier ones belong to the prompt, and so does a "Human:" that the assistant wrote itself.
    """
    prompt, turn, response = transcript.rpartition(TURN)
    if not turn:
        raise BadRow("wrong_type", f"{name} has no {TURN!r}")
    return prompt + turn, response


def read_hh(config: HHData) -> PreferenceData:
    """Read the tables ``train`` and ``test``.

    A row has ``chosen`` and ``rejected``: whole transcripts, or responses alone beside a ``prompt``; a
    ``subset`` becomes a group. Outer white space of a response is normalised to one leading space, as in
    the transcripts. The split is the data's own.
    """
    bad = BadRows(source="hh", policy=config.bad_rows)
    counts: Counter[str] = Counter()

    def comparisons_of(row: Row, split_of: SplitOf) -> Iterator[Comparison]:
        if "prompt" in row.values and row.values["prompt"] is not None:
            prompt = row.text("prompt", "empty_prompt")
            responses = tuple(row.text(name) for name in NAMES)
        else:
            (prompt, chosen), (other, rejected) = (split_transcript(row.text(name), name) for name in NAMES)
            if prompt != other:
                raise BadRow("prompts_differ")
            responses = (chosen, rejected)
        responses = tuple(
            f" {as_text(text, name, 'empty_response').strip()}" for name, text in zip(NAMES, responses, strict=True)
        )
        choice = Comparison(
            prompt=prompt.lstrip("\n"),
            responses=responses,
            choice=0,
            pair_id=row.number,
            split=split_of(row, prompt),
            groups=row.labels(("subset",)),
        )
        yield from compare(choice, sets="pairs", identical=config.identical, counts=counts)

    tables = [
        (split, _with_subset(subset, read_table(config.path, bad, name=name, streaming=config.streaming)))
        for subset in config.subsets or ("",)
        for split, stem in FILES.items()
        for name in [f"{subset}/{stem}" if subset else stem]
    ]
    return read_rows(config, tables, comparisons_of, bad=bad, counts=counts)


def _with_subset(subset: str, lines: Iterable[Line]) -> Iterable[Line]:
    return ((where, {"subset": subset, **values}) for where, values in lines) if subset else lines
