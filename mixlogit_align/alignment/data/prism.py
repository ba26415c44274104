"""Reader of PRISM (Kirk et al. 2024, arXiv 2404.16019): conversations whose every turn is judged by who leads them.

An opening turn has up to four candidates, a later one two; each has a ``score`` of 1 to 100, and ``if_chosen`` marks
the one that the conversation went on with. The two need not agree, and a turn can have two chosen or none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from mixlogit_align.alignment.data.columns import with_columns
from mixlogit_align.alignment.data.config import PrismData
from mixlogit_align.alignment.data.files import read_table
from mixlogit_align.alignment.data.people import read_people
from mixlogit_align.alignment.data.reading import SplitOf, read_rows
from mixlogit_align.alignment.data.rows import BadRow, BadRows, Row, as_number, as_text, as_whole, once
from mixlogit_align.alignment.data.schema import Comparison, Message, PreferenceData
from mixlogit_align.alignment.data.sets import SLOTS, distinct, numbered
from mixlogit_align.alignment.data.turns import wanted, written


@dataclass(frozen=True, slots=True)
class Candidate:
    """A response and how it was judged."""

    text: str
    score: float | None
    chosen: bool


MOST = 10  # candidates of a turn, whose pairs, twice where they tie, fit into the numbers of one
Turn = tuple[str, list[Candidate]]  # what the person wrote, and the candidates to answer it


def read_prism(config: PrismData) -> PreferenceData:
    """Read the tables ``survey``, one row a person, and ``conversations``, one row a conversation with all its turns.

    The data have no split of their own. A turn that breaks a rule is named as "conversations.jsonl:17 turn 2", and so
    is each later one, whose prompt is then not known.
    """
    bad = BadRows(source="prism", policy=config.bad_rows)
    counts: Counter[str] = Counter()
    survey = read_table(config.path, bad, name="survey", streaming=config.streaming)
    people = read_people(survey, config.groups, bad, key="user_id", what="groups of PRISM")
    seen: dict[str, str] = {}

    def comparisons_of(row: Row, split_of: SplitOf) -> Iterator[Comparison]:
        conversation, person = row.text("conversation_id"), row.text("user_id")
        once(seen, conversation, row.where, "conversation_id")
        if person not in people:
            raise BadRow("unknown_id", f"{person} is not in the survey")
        if config.balanced and not row.flag("included_in_balanced_subset"):
            counts["conversations_outside_subset"] += 1
            return
        groups = {**people[person], **row.labels(("conversation_type",))}
        history: list[Message] | None = []
        for turn, entries in enumerate(_entries_by_turn(row.value("conversation_history"))):
            if turn and config.turns == "first":
                break
            so_far, history = history, None
            with bad.leaving_out(f"{row.where} turn {turn + 1}"):
                if so_far is None:
                    raise BadRow("history_unclear")
                user, candidates = _turn(entries)
                asked = [*so_far, Message("user", user)]
                chosen = [candidate.text for candidate in candidates if candidate.chosen]
                if len(chosen) == 1:
                    history = [*asked, Message("assistant", chosen[0])]
                if not wanted(config, turn):
                    continue
                candidates = _distinct(config, candidates, counts)
                prompt, responses = written(config, asked, [candidate.text for candidate in candidates])
                for index, (among, choice, weight) in enumerate(_judgements(config, candidates, counts)):
                    shown = [candidates[i] for i in among]
                    scores = tuple(candidate.score for candidate in shown if candidate.score is not None)
                    yield Comparison(
                        prompt=prompt,
                        responses=tuple(responses[i] for i in among),
                        choice=among.index(choice),
                        pair_id=numbered(row.number, turn, index),
                        split=split_of(row, prompt),
                        annotator_id=person,
                        groups={**groups, "choice_and_score": _agreement(shown)},
                        weight=weight,
                        scores=scores if len(scores) == len(shown) else None,
                    )

    columns = ["conversation_id", "user_id", "conversation_history"]
    columns += ["included_in_balanced_subset"] if config.balanced else []
    lines = read_table(config.path, bad, name="conversations", streaming=config.streaming)
    return read_rows(
        config,
        [(None, with_columns(lines, columns, "columns of PRISM's conversations"))],
        comparisons_of,
        bad=bad,
        counts=counts,
        eval_fraction=config.eval_fraction,
    )


def _entries_by_turn(history: Any) -> list[list[Mapping[str, Any]]]:
    if not isinstance(history, list) or not all(isinstance(entry, Mapping) for entry in history):
        raise BadRow("wrong_type", "conversation_history is not a list of messages")
    turns: dict[int, list[Mapping[str, Any]]] = {}
    for entry in history:
        turns.setdefault(as_whole(entry.get("turn"), "turn"), []).append(entry)
    if len(turns) > SLOTS:
        raise BadRow("wrong_type", f"{len(turns)} turns, more than {SLOTS}")
    return [turns[turn] for turn in sorted(turns)]


def _turn(entries: Sequence[Mapping[str, Any]]) -> Turn:
    asked = [entry for entry in entries if entry.get("role") == "user"]
    answers = [entry for entry in entries if entry.get("role") == "model"]
    if len(asked) != 1 or len(asked) + len(answers) != len(entries):
        raise BadRow("wrong_type", "a turn is one message of the user and those of models")
    if len(answers) < 2:
        raise BadRow("too_few_candidates", f"{len(answers)}")
    if len(answers) > MOST:
        raise BadRow("wrong_type", f"{len(answers)} candidates, more than {MOST}")
    candidates = []
    for answer in answers:
        if not isinstance(answer.get("if_chosen"), bool):
            raise BadRow("wrong_type", f"if_chosen is {answer.get('if_chosen')!r}")
        score = answer.get("score")
        candidates.append(
            Candidate(
                text=as_text(answer.get("content"), "response", "empty_response"),
                score=None if score is None else as_number(score, "score"),
                chosen=answer["if_chosen"],
            )
        )
    return as_text(asked[0].get("content"), "prompt", "empty_prompt"), candidates


def _distinct(config: PrismData, candidates: list[Candidate], counts: Counter[str]) -> list[Candidate]:
    chosen = [i for i, candidate in enumerate(candidates) if candidate.chosen]
    kept = distinct([candidate.text for candidate in candidates], chosen, config.identical, counts)
    return [candidates[i] for i in kept]


def _judgements(
    config: PrismData, candidates: Sequence[Candidate], counts: Counter[str]
) -> Iterator[tuple[tuple[int, ...], int, float]]:
    """Who was preferred among whom, and how much it counts: indices of candidates, one of them, a weight."""
    everyone = tuple(range(len(candidates)))
    if len(everyone) < 2:
        return
    chosen = [i for i in everyone if candidates[i].chosen]
    contests: list[tuple[int, ...]] = [everyone]
    if config.preference == "if_chosen":
        if len(chosen) != 1:
            raise BadRow("several_chosen" if chosen else "none_chosen", f"{len(chosen)} of {len(everyone)}")
        if config.sets == "pairs":
            contests = [(chosen[0], i) for i in everyone if i != chosen[0]]
    else:
        if any(candidate.score is None for candidate in candidates):
            raise BadRow("missing_field", "score")
        if config.sets == "pairs":
            contests = list(combinations(everyone, 2))
    for among in contests:
        if config.preference == "if_chosen":
            best = candidates[chosen[0]].score
        else:
            best = max(score for i in among if (score := candidates[i].score) is not None)
        # By choice, the chosen one and those of its score; by score, those of the highest.
        leaders = [i for i in among if candidates[i].score == best] if best is not None else chosen
        if len(leaders) == 1:
            yield among, leaders[0], 1.0
            continue
        counts["score_ties"] += 1
        match config.ties:
            case "both":
                preferred = leaders
            case "if_chosen" if len(taken := [i for i in leaders if i in chosen]) == 1:
                preferred = taken
            case _:
                preferred = []
        counts["score_ties_left_out"] += not preferred
        for leader in preferred:
            yield among, leader, 1 / len(preferred)


def _agreement(shown: Sequence[Candidate]) -> str:
    """Whether the chosen one of the candidates also has the highest score."""
    chosen = [candidate.score for candidate in shown if candidate.chosen]
    others = [candidate.score for candidate in shown if not candidate.chosen]
    if len(chosen) != 1:
        return "several chosen" if chosen else "none chosen"
    if chosen[0] is None or None in others:
        return "no score"
    best = max(score for score in others if score is not None)
    return "agree" if chosen[0] > best else "tie" if chosen[0] == best else "disagree"
