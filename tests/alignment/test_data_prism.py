"""PRISM in its exact schema: hand-made turns, and the generator of synthetic rows with its traps."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mixlogit_align.alignment.data import Message, load_data
from mixlogit_align.alignment.data.config import PrismData
from mixlogit_align.errors import InvalidInputError
from tests.alignment.datafiles import write

PERSON = {
    "user_id": "user0",
    "survey_only": False,
    "age": "25-34 years old",
    "religion": {"self_described": "x", "categorised": "Jewish", "simplified": "Jewish"},
    "location": {"special_region": "UK"},
}
GROUPS = ("age", "religion_simplified", "location_special_region")
FIRST = [("a", 70, True), ("b", 70, False), ("c", 90, False), ("d", 10, False)]  # chosen though not the best, and tied
SECOND = [("e", 55, False), ("f", 60, True)]


def conversation(*turns, **fields):
    """A conversation whose turns are lists of (response, score, if_chosen)."""
    history = []
    for turn, candidates in enumerate(turns):
        history.append({"turn": turn, "role": "user", "content": f"question {turn}"})
        for i, (text, score, chosen) in enumerate(candidates):
            answer = {"content": text, "model_name": f"m{i}", "score": score, "if_chosen": chosen}
            history.append({"turn": turn, "role": "model", "within_turn_id": i, **answer})
    return {
        "conversation_id": "c0",
        "user_id": "user0",
        "conversation_type": "unguided",
        "opening_prompt": "question 0",
        "conversation_turns": len(turns),
        "conversation_history": history,
        "included_in_balanced_subset": True,
        **fields,
    }


@pytest.fixture
def prism(tmp_path):
    """Reads conversations of one person."""

    def read(*conversations, people=(PERSON,), **settings):
        write(tmp_path / "survey.jsonl", people)
        write(tmp_path / "conversations.jsonl", conversations)
        return load_data(PrismData(path=str(tmp_path), **{"groups": GROUPS, **settings}))

    return read


def judged(data):
    """(chosen, others, weight) of every comparison."""
    return [
        (row.chosen, "".join(text for i, text in enumerate(row.responses) if i != row.choice), row.weight)
        for row in data.comparisons
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [("a", "b", 1), ("a", "c", 1), ("a", "d", 1)]),
        ({"ties": "leave_out"}, [("a", "c", 1), ("a", "d", 1)]),
        ({"ties": "both"}, [("a", "b", 0.5), ("b", "a", 0.5), ("a", "c", 1), ("a", "d", 1)]),
        ({"sets": "sets"}, [("a", "bcd", 1)]),
        ({"sets": "sets", "ties": "leave_out"}, []),
        ({"sets": "sets", "ties": "both"}, [("a", "bcd", 0.5), ("b", "acd", 0.5)]),
        (
            {"preference": "score"},
            [("a", "b", 1), ("c", "a", 1), ("a", "d", 1), ("c", "b", 1), ("b", "d", 1), ("c", "d", 1)],
        ),
        (
            {"preference": "score", "ties": "leave_out"},
            [("c", "a", 1), ("a", "d", 1), ("c", "b", 1), ("b", "d", 1), ("c", "d", 1)],
        ),
        ({"preference": "score", "sets": "sets"}, [("c", "abd", 1)]),
    ],
    ids=str,
)
def test_who_is_preferred(prism, settings, expected):
    data = prism(conversation(FIRST, SECOND), **settings)
    assert judged(data) == expected
    assert len({row.pair_id for row in data.comparisons}) == len(expected)
    assert {row.prompt for row in data.comparisons} <= {(Message("user", "question 0"),)}


def test_a_tie_without_the_chosen_one_is_left_out_and_counted(prism):
    turn = [("a", 90, True), ("b", 50, False), ("c", 50, False)]
    data = prism(conversation(turn), preference="score")
    assert judged(data) == [("a", "b", 1), ("a", "c", 1)]
    assert (data.report["score_ties"], data.report["score_ties_left_out"]) == (1, 1)


def test_scores_and_choices_are_both_kept(prism):
    rows = prism(conversation(FIRST), preference="score").comparisons
    assert {row.responses: (row.scores, row.groups["choice_and_score"]) for row in rows} == {
        ("a", "b"): ((70, 70), "tie"),
        ("a", "c"): ((70, 90), "disagree"),
        ("a", "d"): ((70, 10), "agree"),
        ("b", "c"): ((70, 90), "none chosen"),
        ("b", "d"): ((70, 10), "none chosen"),
        ("c", "d"): ((90, 10), "none chosen"),
    }


def test_a_choice_needs_no_score(prism):
    row = prism(conversation([("a", None, True), ("b", 3, False)])).comparisons[0]
    assert (row.chosen, row.scores, row.groups["choice_and_score"]) == ("a", None, "no score")


def test_later_turns_follow_the_conversation_so_far(prism):
    data = prism(conversation(FIRST, SECOND), turns="later")
    assert judged(data) == [("f", "e", 1)]
    assert data.comparisons[0].prompt == (
        Message("user", "question 0"),
        Message("assistant", "a"),
        Message("user", "question 1"),
    )
    assert len(prism(conversation(FIRST, SECOND), turns="all").comparisons) == 4


def test_transcripts(prism):
    row = prism(conversation(FIRST, SECOND), turns="later", prompts="transcript").comparisons[0]
    assert row.prompt == "Human: question 0\n\nAssistant: a\n\nHuman: question 1\n\nAssistant:"
    assert set(row.responses) == {" e", " f"}


def test_people_are_groups(prism):
    row = prism(conversation(SECOND)).comparisons[0]
    assert row.annotator_id == "user0"
    assert row.groups == {
        "age": "25-34 years old",
        "religion_simplified": "Jewish",
        "location_special_region": "UK",
        "conversation_type": "unguided",
        "choice_and_score": "agree",
    }


def test_an_unknown_group_is_refused_with_the_nearest(prism):
    with pytest.raises(InvalidInputError, match=r"'religion_simple'.*Try 'religion_simplified'"):
        prism(conversation(SECOND), groups=("religion_simple",))


def test_identical_candidates(prism):
    turn = [("same", 50, False), ("same", 70, True), ("other", 60, False)]
    kept = prism(conversation(turn))
    assert judged(kept) == [("same", "same", 1), ("same", "other", 1)]
    pooled = prism(conversation(turn), identical="pool")
    assert judged(pooled) == [("same", "other", 1)]
    assert kept.report["identical_responses"] == pooled.report["identical_responses"] == 1
    alone = prism(conversation([("same", 50, False), ("same", 70, True)]), identical="pool")
    assert alone.report["only_identical_responses"] == 1
    assert alone.comparisons == ()


def test_the_balanced_subset(prism):
    outside = conversation(SECOND, conversation_id="c1", included_in_balanced_subset=False)
    data = prism(conversation(SECOND), outside, balanced=True)
    assert (len(data.comparisons), data.report["conversations_outside_subset"]) == (1, 1)


def broken(**fields):
    return conversation(SECOND, **fields)


BAD = {
    "several_chosen": (conversation([("a", 1, True), ("b", 2, True)]), {}, " turn 1"),
    "none_chosen": (conversation([("a", 1, False), ("b", 2, False)]), {}, " turn 1"),
    "too_few_candidates": (conversation([("a", 1, True)]), {}, " turn 1"),
    "empty_response": (conversation([("a", 1, True), (" ", 2, False)]), {}, " turn 1"),
    "history_unclear": (
        conversation([("a", 1, True), ("b", 2, True)], SECOND),
        {"turns": "later"},
        " turn 2",
    ),
    "missing_field": (conversation([("a", None, True), ("b", 2, False)]), {"preference": "score"}, " turn 1"),
    "wrong_type": (broken(conversation_history="none"), {}, ""),
    "conflicting_ids": (broken(conversation_id="good"), {}, ""),
    "unknown_id": (broken(user_id="user9"), {}, ""),
}


@pytest.mark.parametrize("rule", BAD)
def test_rows_that_break_a_rule(prism, rule):
    row, settings, where = BAD[rule]
    good = conversation(SECOND, SECOND, conversation_id="good")
    with pytest.raises(InvalidInputError, match=rf"{rule}: 1 \(conversations.jsonl:2{where}"):
        prism(good, row, **settings)
    data = prism(good, row, bad_rows="leave_out", **settings)
    assert data.report["bad_rows"] == {rule: 1}
    assert judged(data) == [("f", "e", 1)]


def test_only_the_turn_that_breaks_a_rule_and_those_after_it_are_left_out(prism):
    data = prism(conversation(FIRST, [("e", 1, True), ("", 2, False)], SECOND), turns="all", bad_rows="leave_out")
    assert data.report["bad_rows"] == {"empty_response": 1, "history_unclear": 1}
    assert [row.pair_id for row in data.comparisons] == [0, 1, 2]


def test_a_person_twice_in_the_survey_is_refused(prism):
    with pytest.raises(
        InvalidInputError, match=r"conflicting_ids: 1 \(survey.jsonl:2 \(user_id user0, as in survey.jsonl:1\)"
    ):
        prism(conversation(SECOND), people=(PERSON, PERSON))


# --- synthetic rows in the exact schema ------------------------------------------------------------


@pytest.fixture(scope="module")
def fixture_folder(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prism")
    script = shared_data / "prism_schema" / "make_fixture.py"
    subprocess.run([sys.executable, str(script), str(folder), "150", "3"], check=True, capture_output=True)
    return folder


def utterances(folder):
    return [json.loads(line) for line in (folder / "utterances.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("turns", ["first", "later"])
def test_choices_are_those_of_the_utterances(fixture_folder, turns):
    """The third table of PRISM, which the reader does not read, has one row a response."""
    data = load_data(PrismData(path=str(fixture_folder), turns=turns, sets="sets"))
    shown = {}
    for row in utterances(fixture_folder):
        if (row["turn"] == 0) == (turns == "first"):
            shown.setdefault(row["interaction_id"], []).append(row)
    expected = [
        (
            rows[0]["user_id"],
            rows[0]["user_prompt"],
            tuple(row["model_response"] for row in rows),
            [row["if_chosen"] for row in rows].index(True),
            tuple(row["score"] for row in rows),
            rows[0]["conversation_type"],
        )
        for rows in shown.values()
    ]
    read = [
        (
            row.annotator_id,
            row.prompt[-1].content,
            row.responses,
            row.choice,
            row.scores,
            row.groups["conversation_type"],
        )
        for row in data.comparisons
    ]
    assert sorted(read) == sorted(expected)
    assert data.report["bad_rows"] == {}


def test_the_traps_are_in_the_synthetic_rows(fixture_folder):
    data = load_data(PrismData(path=str(fixture_folder), turns="all", sets="sets"))
    assert {len(row.responses) for row in data.comparisons} == {2, 4}
    assert {row.groups["choice_and_score"] for row in data.comparisons} == {"agree", "tie", "disagree"}
    assert data.report["score_ties"] > 0


def test_conversations_and_openings_are_on_one_side(fixture_folder):
    data = load_data(PrismData(path=str(fixture_folder), turns="all", eval_fraction=0.3))
    openings = [{row.prompt[0].content for row in data.split(name)} for name in ("train", "eval")]
    assert not openings[0] & openings[1]


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
def test_through_datasets(fixture_folder, streaming, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    settings = {"turns": "all", "preference": "score", "ties": "both"}
    data = load_data(PrismData(path=f"hub:{fixture_folder}", streaming=streaming, **settings))
    assert data.comparisons == load_data(PrismData(path=str(fixture_folder), **settings)).comparisons


def test_real_utterances(shared_data, prism):
    """The real rows at hand, cut off as they are: one interaction of two candidates."""
    snippets = json.loads((shared_data / "prism_schema" / "real_snippets.json").read_text())
    rows = snippets["utterances_head"]
    history = [{"turn": 0, "role": "user", "content": rows[0]["user_prompt"]}] + [
        {"role": "model", "content": row["model_response"], **{k: row[k] for k in ("turn", "score", "if_chosen")}}
        for row in rows
    ]
    row = prism(conversation(conversation_history=history)).comparisons[0]
    assert row.chosen.startswith("As an AI language model")
    assert row.scores == (92, 17)
