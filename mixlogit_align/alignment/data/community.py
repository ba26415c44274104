"""Reader of Community Alignment (Zhang et al. 2025, arXiv 2507.09650): up to four turns of four responses each.

The slots are shuffled between annotators, so that candidates are told apart by their text, never by their letter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from mixlogit_align.alignment.data.columns import with_columns
from mixlogit_align.alignment.data.config import CommunityData
from mixlogit_align.alignment.data.files import read_table
from mixlogit_align.alignment.data.reading import SplitOf, read_rows
from mixlogit_align.alignment.data.rows import BadRow, BadRows, Row
from mixlogit_align.alignment.data.schema import Comparison, Message, PreferenceData
from mixlogit_align.alignment.data.sets import compare, numbered
from mixlogit_align.alignment.data.turns import wanted, written

TURNS = ("first", "second", "third", "fourth")
SLOTS = ("response_a", "response_b", "response_c", "response_d")
FIELDS = ("prompt", *SLOTS, "preferred_response")
END_OF_TEXT = "<|end_of_text|>"
SUBSETS = {"balanced": "in_balanced_subset", "balanced_10": "in_balanced_subset_10"}


def read_community(config: CommunityData) -> PreferenceData:
    """Read a table of conversations.

    A conversation ends with the last turn that has a prompt. The data have no split of their own. A turn that breaks a
    rule is named as "train.parquet:17 turn 2", and so is each later one, whose prompt is then not known.
    """
    bad = BadRows(source="community", policy=config.bad_rows)
    counts: Counter[str] = Counter()
    first_prompts: dict[str, str | None] = {}
    votes: set[tuple[str, tuple[Message, ...], frozenset[str]]] = set()

    columns = ["conversation_id", "annotator_id", *(f"first_turn_{name}" for name in FIELDS), *config.groups]
    columns += ["assigned_lang"] if config.languages else []
    columns += [SUBSETS[config.subset]] if config.subset != "all" else []

    def comparisons_of(row: Row, split_of: SplitOf) -> Iterator[Comparison]:
        conversation, annotator = row.label("conversation_id"), row.label("annotator_id")
        if conversation is None or annotator is None:
            raise BadRow("missing_field", "conversation_id" if conversation is None else "annotator_id")
        first_prompt = row.label("first_turn_prompt")
        if first_prompts.setdefault(conversation, first_prompt) != first_prompt:
            raise BadRow("conflicting_ids", conversation)
        if config.languages and row.text("assigned_lang") not in config.languages:
            counts["conversations_in_other_languages"] += 1
            return
        if config.subset != "all" and not row.flag(SUBSETS[config.subset]):
            counts["conversations_outside_subset"] += 1
            return
        groups = row.labels(config.groups)
        history: list[Message] | None = []
        last = max((turn for turn, name in enumerate(TURNS) if row.label(f"{name}_turn_prompt")), default=0)
        for turn, name in enumerate(TURNS[: 1 if config.turns == "first" else last + 1]):
            so_far, history = history, None
            with bad.leaving_out(f"{row.where} turn {turn + 1}"):
                if so_far is None:
                    raise BadRow("history_unclear")
                asked = [*so_far, Message("user", row.text(f"{name}_turn_prompt", "empty_prompt"))]
                texts = [_response(row, f"{name}_turn_{slot}") for slot in SLOTS]
                preferred = row.label(f"{name}_turn_preferred_response")
                if preferred not in SLOTS:
                    raise BadRow("choice_not_in_set" if preferred else "none_chosen", preferred or "")
                choice = SLOTS.index(preferred)
                history = [*asked, Message("assistant", texts[choice])]
                if not wanted(config, turn):
                    continue
                vote = (annotator, tuple(asked), frozenset(texts))
                if vote in votes:
                    counts["double_votes"] += 1
                    if config.double_votes == "first":
                        continue
                votes.add(vote)
                prompt, responses = written(config, asked, texts)
                yield from compare(
                    Comparison(
                        prompt=prompt,
                        responses=responses,
                        choice=choice,
                        pair_id=numbered(row.number, turn),
                        split=split_of(row, prompt),
                        annotator_id=annotator,
                        groups=groups,
                    ),
                    sets=config.sets,
                    identical=config.identical,
                    counts=counts,
                )

    lines = read_table(config.path, bad, streaming=config.streaming)
    lines = with_columns(lines, columns, "columns of Community Alignment")
    return read_rows(
        config, [(None, lines)], comparisons_of, bad=bad, counts=counts, eval_fraction=config.eval_fraction
    )


def _response(row: Row, name: str) -> str:
    text = row.text(name).rstrip().removesuffix(END_OF_TEXT).rstrip()
    if not text:
        raise BadRow("empty_response", name)
    return text
