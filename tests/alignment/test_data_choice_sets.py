"""Choices among two to five short texts: the real data sets, and their rules on small ones."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter

import pytest

from mixlogit_align.alignment.data import load_data
from mixlogit_align.alignment.data.config import Mg2019Data, Mms2019Data
from mixlogit_align.alignment.data.splits import held_out
from mixlogit_align.errors import InvalidInputError
from tests.alignment.datafiles import write

# --- small ones ------------------------------------------------------------------------------------

DOMAINS = {
    "City": {"prompt": "Which city?", "a": "Seattle", "b": "Portland", "c": "Montr&eacute;al", "labels": ["S", "P"]},
    "Beer": {"prompt": "Which beer?", "a": "Guinness", "b": "Sam &amp; Adams", "c": "Bud", "labels": ["G", "S"]},
}
OBJECTS = {
    "Films": {"a": "L&eacute;on", "b": "Alien", "c": "Alien"},
    "Travel": {"a": "http://site/1.jpg", "b": "http://site/2.jpg", "c": "http://site/3.jpg"},
    "Coffee": {"a": "18.71", "b": "9.99", "c": "9.99"},
}


def folder(tmp_path, trials, objects=None):
    (tmp_path / "domains.json").write_text(json.dumps(DOMAINS))
    (tmp_path / "objects.json").write_text(json.dumps(objects or OBJECTS))
    write(tmp_path / "subjects.csv", [{"subject": i, "sex": "Female", "age": "" if i == 2 else "55+"} for i in (1, 2)])
    names = ("subject", "domain", "set", "choice")
    write(tmp_path / "trials.csv.gz", [dict(zip(names, trial, strict=True)) for trial in trials])
    return str(tmp_path)


def mg(tmp_path, *trials, **settings):
    return load_data(Mg2019Data(path=folder(tmp_path, trials), **{"groups": ("sex", "age"), **settings}))


def mms(tmp_path, *trials, **settings):
    return load_data(Mms2019Data(path=folder(tmp_path, trials), **{"groups": ("sex", "age"), **settings}))


def test_pairs_and_sets(tmp_path):
    trials = [(1, "City", "abc", "c"), (2, "Beer", "ab", "b")]
    pairs = mg(tmp_path, *trials).comparisons
    assert sorted((row.prompt, row.chosen, row.rejected) for row in pairs) == [
        ("Which beer?", " Sam & Adams", " Guinness"),
        ("Which city?", " Montréal", " Portland"),
        ("Which city?", " Montréal", " Seattle"),
    ]
    assert sorted(row.pair_id for row in pairs) == [0, 1, 10000]
    sets = sorted(mg(tmp_path, *trials, sets="sets").comparisons, key=lambda row: row.pair_id)
    assert [(row.responses, row.choice) for row in sets] == [
        ((" Seattle", " Portland", " Montréal"), 2),
        ((" Guinness", " Sam & Adams"), 1),
    ]
    assert [row.annotator_id for row in sets] == ["1", "2"]
    assert [row.groups for row in sets] == [
        {"sex": "Female", "age": "55+", "domain": "City"},
        {"sex": "Female", "domain": "Beer"},
    ]


@pytest.mark.parametrize(
    ("rule", "trial"),
    [
        ("choice_not_in_set", (1, "City", "ab", "c")),
        ("choice_not_in_set", (1, "City", "az", "a")),
        ("too_few_candidates", (1, "City", "a", "a")),
        ("unknown_id", (9, "City", "ab", "a")),
        ("unknown_id", (1, "Town", "ab", "a")),
    ],
)
def test_rows_that_break_a_rule(tmp_path, rule, trial):
    with pytest.raises(InvalidInputError, match=rf"{rule}: 1 \(trials.csv.gz:3"):
        mg(tmp_path, (1, "City", "ab", "a"), trial)
    data = mg(tmp_path, (1, "City", "ab", "a"), trial, bad_rows="leave_out")
    assert data.report["bad_rows"] == {rule: 1}
    assert len(data.comparisons) == 1


def test_an_unknown_group_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(InvalidInputError, match=r"'gender'.*one of subject, sex, age"):
        mg(tmp_path, (1, "City", "ab", "a"), groups=("gender",))


def test_domains_without_words_are_set_aside_and_named(tmp_path):
    trials = [(1, "Films", "ab", "a"), (1, "Travel", "ab", "a"), (2, "Coffee", "abc", "b"), (2, "Coffee", "bc", "b")]
    data = mms(tmp_path, *trials)
    assert [(row.prompt, row.chosen) for row in data.comparisons] == [("Films: which one do you choose?", " Léon")]
    assert data.report["question_asked"] == "{domain}: which one do you choose?"
    assert data.report["domains_of_images"] == ["Travel"]
    assert data.report["domains_of_numbers"] == ["Coffee"]
    assert (data.report["choices_among_images"], data.report["choices_among_numbers"]) == (1, 2)
    numbers = mms(tmp_path, *trials, options="words_and_numbers", identical="pool")
    # b and c are one text: {a, b, c} leaves one pair, {b, c} none
    assert sorted(row.responses for row in numbers.comparisons) == [(" 9.99", " 18.71"), (" Léon", " Alien")]
    assert numbers.report["only_identical_responses"] == 1


def test_the_question_is_a_setting(tmp_path):
    data = mms(tmp_path, (1, "Films", "ab", "a"), question="Choose ({domain}):")
    assert data.comparisons[0].prompt == "Choose (Films):"
    with pytest.raises(InvalidInputError, match="question"):
        Mms2019Data(question="Choose:")


@pytest.mark.parametrize(
    "content", ['{"City": ', '{"City": {"a": "Seattle", "b": "Portland"}}'], ids=["json", "prompt"]
)
def test_unusable_texts_are_named(tmp_path, content):
    path = folder(tmp_path, [(1, "City", "ab", "a")])
    (tmp_path / "domains.json").write_text(content)
    with pytest.raises(InvalidInputError, match=r"domains\.json"):
        load_data(Mg2019Data(path=path, groups=()))


def test_people_are_held_out(tmp_path):
    """Each person stands on one side, and every prompt on both."""
    trials = [(person, domain, "ab", "a") for person in (1, 2) for domain in DOMAINS]
    seed = next(s for s in range(100) if len({held_out(str(person), 0.5, s) for person in (1, 2)}) == 2)
    data = mg(tmp_path, *trials, hold_out="people", eval_fraction=0.5, seed=seed)
    sides = {name: {row.annotator_id for row in data.split(name)} for name in ("train", "eval")}
    assert {len(people) for people in sides.values()} == {1}
    assert sides["train"] != sides["eval"]
    assert [len({row.prompt for row in data.split(name)}) for name in ("train", "eval")] == [2, 2]
    assert data.report["prompts_in_both_splits"] == 2
    assert data.report["bad_rows"] == {}


# --- the real ones ---------------------------------------------------------------------------------


def trials_of(path):
    with gzip.open(path / "trials.csv.gz", "rt", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def mg2019(shared_data):
    return load_data(Mg2019Data(path=str(shared_data / "mg2019")))


@pytest.fixture(scope="module")
def mg2019_choices(mg2019):
    """Row of the trials -> its pairs."""
    choices = {}
    for pair in mg2019.comparisons:
        choices.setdefault(pair.pair_id // 10_000, []).append(pair)
    return choices


def test_mg2019_pairs(mg2019):
    assert len(mg2019.comparisons) == 87_040
    assert len({row.pair_id for row in mg2019.comparisons}) == 87_040
    assert (mg2019.report["rows_read"], mg2019.report["bad_rows"]) == (56_320, {})


def test_mg2019_choices(mg2019_choices, shared_data):
    trials = trials_of(shared_data / "mg2019")
    domains = json.loads((shared_data / "mg2019" / "domains.json").read_text())
    assert Counter(len(pairs) for pairs in mg2019_choices.values()) == {1: 30_720, 2: 20_480, 3: 5_120}
    expected = {row: {(t["subject"], " " + domains[t["domain"]][t["choice"]])} for row, t in enumerate(trials)}
    assert {row: {(p.annotator_id, p.chosen) for p in pairs} for row, pairs in mg2019_choices.items()} == expected
    alone = [pairs[0] for pairs in mg2019_choices.values() if len(pairs) == 1]
    assert set(Counter((pair.prompt, frozenset(pair.responses)) for pair in alone).values()) == {320}


def test_mg2019_sets(shared_data):
    """As they were shown, in a part of the data."""
    path = shared_data / "mg2019"
    data = load_data(Mg2019Data(path=str(path), sets="sets", streaming=True, max_train=500, max_eval=50))
    trials = trials_of(path)[: data.report["rows_read"]]
    rows = [trials[row.pair_id // 10_000] for row in data.comparisons]
    assert [len(row.responses) for row in data.comparisons] == [len(row["set"]) for row in rows]
    assert [row.choice for row in data.comparisons] == [row["set"].index(row["choice"]) for row in rows]


def test_mg2019_people(mg2019):
    people = {row.annotator_id: row.groups for row in mg2019.comparisons}
    cells = Counter(tuple(groups[k] for k in ("sex", "educ", "region", "race", "age")) for groups in people.values())
    # cells of one or two people are kept as they are
    assert min(cells.values()) == 1
    assert sum(cells.values()) == 1760


def test_mg2019_questions_are_on_one_side(mg2019):
    train, evaluated = ({row.prompt for row in mg2019.split(name)} for name in ("train", "eval"))
    assert not train & evaluated
    assert len(train | evaluated) == 16


def test_mms2019(shared_data):
    data = load_data(Mms2019Data(path=str(shared_data / "mms2019"), sets="sets"))
    report = data.report
    assert (len(report["domains_of_images"]), len(report["domains_of_numbers"])) == (5, 7)
    assert report["choices_among_images"] == 5 * 1042
    assert report["choices_among_numbers"] == 7 * 1042
    assert report["rows_read"] == 33_344 == report["rows_used"] + 12 * 1042
    assert {len(row.responses) for row in data.comparisons} == {2, 3, 4, 5}
    texts = " ".join(text for row in data.comparisons[:20_000] for text in row.responses)
    assert "Léon" in texts
    assert "&eacute;" not in texts
    assert not any(response.startswith(" http") for row in data.comparisons for response in row.responses)
