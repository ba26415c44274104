"""Community Alignment: synthetic rows in its exact schema, with the traps of the real ones."""

from __future__ import annotations

import pytest

from mixlogit_align.alignment.data import Message, load_data
from mixlogit_align.alignment.data.config import CommunityData
from mixlogit_align.errors import InvalidInputError
from tests.alignment.datafiles import write

ORDINALS = ("first", "second", "third", "fourth")
ANNOTATOR = {
    "annotator_age": "25-34",
    "annotator_gender": "female",
    "annotator_education_level": "college",
    "annotator_political": "moderate",
    "annotator_ethnicity": None,
    "annotator_country": "india",
}


def conversation(conversation_id, *turns, annotator="w1", lang="en", **fields):
    """A row whose turns are (prompt, [four responses], letter of the preferred)."""
    row = {"conversation_id": conversation_id, "assigned_lang": lang, "annotator_id": annotator}
    for i, name in enumerate(ORDINALS):
        prompt, responses, preferred = turns[i] if i < len(turns) else (None, [None] * 4, None)
        row[f"{name}_turn_prompt"] = prompt
        row |= {f"{name}_turn_response_{letter}": text for letter, text in zip("abcd", responses, strict=True)}
        row[f"{name}_turn_preferred_response"] = preferred and f"response_{preferred}"
        row[f"{name}_turn_feedback"] = "because"
    subsets = {"is_pregenerated_first_prompt": True, "in_balanced_subset": False, "in_balanced_subset_10": False}
    return row | ANNOTATOR | subsets | fields


TURN = ("q", ["A", "B", "C<|end_of_text|>", "D"], "c")
NEXT = ("more", ["E", "F", "G", "H"], "a")


@pytest.fixture
def community(tmp_path):
    def read(*rows, ending="parquet", **settings):
        path = write(tmp_path / f"train.{ending}", rows)
        return load_data(CommunityData(path=str(path), **settings))

    return read


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv.gz"])
def test_four_responses_and_a_preferred_slot(community, ending):
    pairs = community(conversation("x", TURN), ending=ending)
    assert [(row.chosen, row.rejected) for row in pairs.comparisons] == [("C", "A"), ("C", "B"), ("C", "D")]
    assert [row.pair_id for row in pairs.comparisons] == [0, 1, 3]
    (row,) = community(conversation("x", TURN), ending=ending, sets="sets").comparisons
    assert (row.prompt, row.responses, row.choice) == ((Message("user", "q"),), ("A", "B", "C", "D"), 2)
    assert row.annotator_id == "w1"
    # an unknown ethnicity is no group
    known = {name: value for name, value in ANNOTATOR.items() if value}
    assert row.groups == {**known, "is_pregenerated_first_prompt": "True"}


def test_all_turns_or_some(community):
    row = conversation("x", TURN, NEXT)
    assert {turns: len(community(row, turns=turns).comparisons) for turns in ("first", "later", "all")} == {
        "first": 3,
        "later": 3,
        "all": 6,
    }
    later = community(row, turns="later").comparisons[0]
    assert later.prompt == (Message("user", "q"), Message("assistant", "C"), Message("user", "more"))
    assert (later.chosen, later.pair_id) == ("E", 101)
    written = community(row, turns="later", prompts="transcript").comparisons[0]
    assert written.prompt == "Human: q\n\nAssistant: C\n\nHuman: more\n\nAssistant:"
    assert written.chosen == " E"


def test_languages(community):
    rows = [conversation(lang, TURN, lang=lang) for lang in ("en", "hi", "fr")]
    data = community(*rows)
    assert (len(data.comparisons), data.report["conversations_in_other_languages"]) == (3, 2)
    assert len(community(*rows, languages=("fr", "hi")).comparisons) == 6
    assert len(community(*rows, languages=()).comparisons) == 9


@pytest.mark.parametrize(("subset", "rows"), [("all", 3), ("balanced", 2), ("balanced_10", 1)])
def test_subsets(community, subset, rows):
    marks = [
        {"in_balanced_subset": True, "in_balanced_subset_10": True},
        {"in_balanced_subset": True, "in_balanced_subset_10": False},
        {"in_balanced_subset": False, "in_balanced_subset_10": None},
    ]
    data = community(*[conversation(i, TURN, **mark) for i, mark in enumerate(marks)], subset=subset, sets="sets")
    assert len(data.comparisons) == rows
    assert data.report.get("conversations_outside_subset", 0) == 3 - rows


def test_shuffled_slots_are_told_apart_by_text(community):
    """Two annotators prefer the same text, which stands in other slots."""
    shuffled = ("q", ["D", "C", "B", "A"], "b")
    data = community(conversation("x", TURN), conversation("y", shuffled, annotator="w2"))
    assert {row.chosen for row in data.comparisons} == {"C"}
    assert len({row.pair_id for row in data.comparisons}) == 6


def test_identical_candidates(community):
    row = conversation("x", ("q", ["A", "B", "A<|end_of_text|>", "B"], "c"))
    kept = community(row)
    assert [(r.chosen, r.rejected) for r in kept.comparisons] == [("A", "A"), ("A", "B"), ("A", "B")]
    pooled = community(row, identical="pool")
    assert [(r.chosen, r.rejected) for r in pooled.comparisons] == [("A", "B")]
    (one,) = community(row, identical="pool", sets="sets").comparisons
    assert (one.responses, one.chosen) == (("B", "A"), "A")
    assert kept.report["identical_responses"] == pooled.report["identical_responses"] == 1


@pytest.mark.parametrize(("double_votes", "rows"), [("keep", 3), ("first", 2)])
def test_an_annotator_who_votes_twice(community, double_votes, rows):
    again = ("q", ["D", "A", "B", "C"], "a")  # the same candidates in other slots, another choice
    data = community(
        conversation("x", TURN),
        conversation("x", again),
        conversation("z", again, annotator="w2"),
        double_votes=double_votes,
        sets="sets",
    )
    assert (len(data.comparisons), data.report["double_votes"]) == (rows, 1)


BAD = {
    "choice_not_in_set": (("q", ["A", "B", "C", "D"], "e"), {}),
    "none_chosen": (("q", ["A", "B", "C", "D"], None), {}),
    "missing_field": (("q", ["A", "B", "C", None], "a"), {}),
    "empty_response": (("q", ["A", "B", "C", "<|end_of_text|>"], "a"), {}),
    "empty_prompt": ((" ", ["A", "B", "C", "D"], "a"), {}),
    "conflicting_ids": (("other", ["A", "B", "C", "D"], "a"), {"conversation_id": "good"}),
}


@pytest.mark.parametrize("rule", BAD)
def test_rows_that_break_a_rule(community, rule):
    turn, fields = BAD[rule]
    rows = [conversation("good", TURN), conversation("bad", turn) | fields]
    with pytest.raises(InvalidInputError, match=rf"{rule}: 1 \(train.parquet:2"):
        community(*rows)
    data = community(*rows, bad_rows="leave_out", sets="sets")
    assert data.report["bad_rows"] == {rule: 1}
    assert [row.pair_id for row in data.comparisons] == [0]


def test_turns_after_a_bad_one_are_left_out_too(community):
    row = conversation("x", TURN, (None, ["A", "B", "C", "D"], "a"), NEXT)
    data = community(row, turns="all", sets="sets", bad_rows="leave_out")
    assert data.report["bad_rows"] == {"missing_field": 1, "history_unclear": 1}
    assert len(data.comparisons) == 1


def test_an_unknown_column_is_refused_with_the_nearest(community):
    with pytest.raises(InvalidInputError, match=r"'annotator_politics'.*Try 'annotator_political'"):
        community(conversation("x", TURN), groups=("annotator_politics",))


def test_another_table_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(InvalidInputError, match="unknown column 'conversation_id'"):
        load_data(CommunityData(path=str(path)))


def test_one_prompt_is_on_one_side(community):
    """A prompt made beforehand goes to many annotators."""
    rows = [
        conversation(i, (f"question {i % 10}", ["A", "B", "C", "D"], "a"), NEXT, annotator=f"w{i}") for i in range(60)
    ]
    data = community(*rows, turns="all", eval_fraction=0.4)
    openings = [{row.prompt[0].content for row in data.split(name)} for name in ("train", "eval")]
    assert not openings[0] & openings[1]
    assert len(openings[0] | openings[1]) == 10


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
def test_through_datasets(tmp_path, monkeypatch, streaming):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [conversation(i, TURN, NEXT, annotator=f"w{i}") for i in range(8)]
    path = write(tmp_path / "hub" / "train.parquet", rows)
    data = load_data(CommunityData(path=f"hub:{path.parent}", turns="all", streaming=streaming))
    assert data.comparisons == load_data(CommunityData(path=str(path), turns="all")).comparisons
    assert len(data.comparisons) == 48
