"""Tables whose columns the settings name: texts and messages, pairs and choice sets, and every way to be wrong."""

from __future__ import annotations

import re

import pytest

from mixlogit_align.alignment.data import Message, load_data
from mixlogit_align.alignment.data.config import TableData
from mixlogit_align.errors import InvalidInputError
from tests.alignment.datafiles import asked, write


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def table(tmp_path):
    def read(*rows, ending="jsonl", **settings):
        return load_data(TableData(path=str(write(tmp_path / f"rows.{ending}", rows)), **settings))

    return read


def only(data):
    (row,) = data.comparisons
    return row


# --- columns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_every_column_can_be_named(table, ending):
    rows = [
        {"ask": "q1", "yes": "a", "no": "b", "who": "w7", "n": 2.5, "id": 41, "part": "train", "sex": "f", "age": 30},
        {"ask": "q2", "yes": "c", "no": "d", "who": "w8", "n": 1.0, "id": 7, "part": "test", "sex": "", "age": 31},
    ]
    columns = {"prompt": "ask", "chosen": "yes", "rejected": "no", "annotator_id": "who", "weight": "n"}
    data = table(*rows, ending=ending, **columns, pair_id="id", split="part", groups=("sex", "age"))
    (train,), (evaluated,) = data.split("train"), data.split("eval")
    assert (train.prompt, train.chosen, train.rejected) == ("q1", "a", "b")
    assert (train.annotator_id, train.weight, train.pair_id) == ("w7", 2.5, 41)
    assert train.groups == {"sex": "f", "age": "30"}
    assert (evaluated.pair_id, evaluated.groups) == (7, {"age": "31"})


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"all": ["a", "b", "c"], "best": 1}, {"responses": ("all",)}),
        ({"all": ["a", "b", "c"], "best": "b"}, {"responses": ("all",), "choice_by": "text"}),
        ({"x": "a", "y": "b", "z": "c", "best": 1}, {"responses": ("x", "y", "z")}),
        ({"x": "a", "y": "b", "z": "c", "best": "y"}, {"responses": ("x", "y", "z"), "choice_by": "column"}),
    ],
    ids=["index", "text", "columns", "column"],
)
def test_sets_of_responses(table, ending, row, settings):
    row = {"prompt": "q", **row}
    one = only(table(row, ending=ending, choice="best", sets="sets", **settings))
    assert (one.responses, one.choice, one.pair_id) == (("a", "b", "c"), 1, 0)
    pairs = table(row, ending=ending, choice="best", **settings).comparisons
    assert [(pair.chosen, pair.rejected, pair.pair_id) for pair in pairs] == [("b", "a", 0), ("b", "c", 2)]


def test_pairs_of_named_rows(table):
    rows = [{"prompt": "q", "all": ["a", "b", "c"], "best": 0, "id": i} for i in (5, 6)]
    data = table(*rows, responses=("all",), choice="best", pair_id="id")
    assert [row.pair_id for row in data.comparisons] == [501, 502, 601, 602]


def test_a_column_that_few_rows_have_is_known(table):
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}] * 5
    data = table(*rows, {**rows[0], "who": "w"}, annotator_id="who")
    assert [row.annotator_id for row in data.comparisons] == [None] * 5 + ["w"]


@pytest.mark.parametrize(
    "settings",
    [{"prompt": "questoin"}, {"chosen": "choosen", "rejected": "b"}, {"weight": "wieght"}, {"groups": ("sexx",)}],
    ids=str,
)
def test_an_unknown_column_is_refused_with_the_nearest(table, settings):
    row = {"question": "q", "prompt": "p", "chosen": "a", "rejected": "b", "weight": 1, "sex": "f", "b": "b"}
    wrong = next(iter(settings.values()))
    wrong = wrong if isinstance(wrong, str) else wrong[0]
    near = {"questoin": "question", "choosen": "chosen", "wieght": "weight", "sexx": "sex"}[wrong]
    with pytest.raises(InvalidInputError, match=rf"unknown column '{wrong}'.*Try '{near}'"):
        table(row, bad_rows="leave_out", **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"chosen": "a"},
        {"responses": ("a", "b")},
        {"choice": "best"},
        {"chosen": "a", "rejected": "b", "responses": ("c",), "choice": "d"},
        {"choice_by": "text"},
        {"sets": "sets"},
        {"responses": ("a",), "choice": "b", "choice_by": "column"},
        {"split": "part", "eval_split": "test"},
        {"split": "part", "eval_fraction": 0.1},
        {"eval_fraction": 1.5},
        {"max_train": 0},
        {"path": ""},
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(settings):
    with pytest.raises(InvalidInputError):
        TableData(**{"path": "x", **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chosen": "a"}, "rejected: got None beside chosen='a'"),
        ({"choice": "best"}, "responses: got () beside choice='best'"),
        (
            {"chosen": "a", "rejected": "b", "responses": ("c",), "choice": "d"},
            "responses: got ('c',) beside chosen='a', rejected='b', choice='d'",
        ),
        ({"split": "part", "eval_split": "test"}, "split: got 'part'"),
    ],
    ids=str,
)
def test_a_contradiction_is_told_by_the_name_of_a_setting(settings, message):
    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}"):
        TableData(path="x", **settings)


# --- prompts and responses -------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_messages(table, ending):
    prompt = [{"role": "system", "content": "be kind"}, user("q")]
    row = {"prompt": prompt, "chosen": [assistant("a")], "rejected": [assistant("b")]}
    one = only(table(row, ending=ending))
    assert one.prompt == (Message("system", "be kind"), Message("user", "q"))
    assert one.responses == ("a", "b")


def test_messages_and_texts_may_be_mixed(table):
    one = only(table({"prompt": [user("q")], "chosen": "a", "rejected": assistant("b")}))
    assert (one.prompt, one.responses) == ((Message("user", "q"),), ("a", "b"))


@pytest.mark.parametrize("text", ['{"role": "wizard"}', '[{"role": 1}]', "[1, 2]", '{"a": 1}', "[" * 5000, "12"])
def test_texts_that_look_like_messages_stay_texts(table, text):
    assert only(table({"prompt": "q", "chosen": text, "rejected": "b"})).chosen == text


def test_texts_are_taken_as_they_are(table):
    one = only(table({"prompt": " q\n", "chosen": "a ", "rejected": "\tb"}))
    assert (one.prompt, *one.responses) == (" q\n", "a ", "\tb")


@pytest.mark.parametrize(
    ("row", "settings", "expected"),
    [
        (
            {"chosen": [user("q"), assistant("x"), user("r"), assistant("a")], "rejected": None},
            {},
            ((Message("user", "q"), Message("assistant", "x"), Message("user", "r")), ("a", "b")),
        ),
        ({"chosen": asked("q", "a"), "rejected": asked("q", "b")}, {}, ("\n\nHuman: q\n\nAssistant:", (" a", " b"))),
        ({"prompt": "Q: q", "chosen": "Q: q a", "rejected": "Q: q b"}, {"prompt": "prompt"}, ("Q: q", (" a", " b"))),
    ],
    ids=["messages", "transcripts", "texts"],
)
def test_responses_that_repeat_the_prompt(table, row, settings, expected):
    if row["rejected"] is None:
        row = {**row, "rejected": [*row["chosen"][:-1], assistant("b")]}
    one = only(table(row, prompt_in="responses", **settings))
    assert (one.prompt, one.responses) == expected


# --- rows that break a rule ------------------------------------------------------------------------

GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}
SETS = {"responses": ("all",), "choice": "best"}
REPEATED = {"prompt_in": "responses"}
BAD = {
    "empty response": ("empty_response", {**GOOD, "chosen": " "}, {}),
    "empty message": ("empty_response", {**GOOD, "chosen": [assistant("")]}, {}),
    "empty prompt": ("empty_prompt", {**GOOD, "prompt": ""}, {}),
    "no question": ("empty_prompt", {**GOOD, "prompt": [assistant("hi")]}, {}),
    "missing": ("missing_field", {"prompt": "q", "chosen": "a"}, {}),
    "null": ("missing_field", {**GOOD, "rejected": None}, {}),
    "number": ("wrong_type", {**GOOD, "rejected": 3}, {}),
    "role": ("wrong_type", {**GOOD, "prompt": [{"role": "wizard", "content": "q"}]}, {}),
    "content": ("wrong_type", {**GOOD, "prompt": [{"role": "user", "content": 5}]}, {}),
    "conversation": ("wrong_type", {**GOOD, "chosen": [user("q"), assistant("a")]}, {}),
    "no list": ("wrong_type", {"prompt": "q", "all": "a", "best": 0}, SETS),
    "one": ("too_few_candidates", {"prompt": "q", "all": ["a"], "best": 0}, SETS),
    "many": ("wrong_type", {"prompt": "q", "all": ["a"] * 101, "best": 0}, SETS),
    "index": ("choice_not_in_set", {"prompt": "q", "all": ["a", "b"], "best": 2}, SETS),
    "negative": ("choice_not_in_set", {"prompt": "q", "all": ["a", "b"], "best": -1}, SETS),
    "fraction": ("wrong_type", {"prompt": "q", "all": ["a", "b"], "best": 0.5}, SETS),
    "text": ("choice_not_in_set", {"prompt": "q", "all": ["a", "b"], "best": "c"}, {**SETS, "choice_by": "text"}),
    "weight": ("weight_not_positive", {**GOOD, "n": 0}, {"weight": "n"}),
    "weight type": ("wrong_type", {**GOOD, "n": "much"}, {"weight": "n"}),
    "id": ("conflicting_ids", {**GOOD, "id": 1}, {"pair_id": "id"}),
    "id type": ("wrong_type", {**GOOD, "id": "x1"}, {"pair_id": "id"}),
    "id size": ("wrong_type", {**GOOD, "id": 2**60}, {"pair_id": "id"}),
    "split": ("wrong_type", {**GOOD, "part": "dev"}, {"split": "part"}),
    "group": ("wrong_type", {**GOOD, "sex": ["f"]}, {"groups": ("sex",)}),
    "prefix": ("prompts_differ", {"prompt": "q", "chosen": "q a", "rejected": "r b"}, {**REPEATED, "prompt": "prompt"}),
    "messages": (
        "prompts_differ",
        {"chosen": [user("q"), assistant("a")], "rejected": [user("r"), assistant("b")]},
        REPEATED,
    ),
    "transcripts": ("prompts_differ", {"chosen": asked("q", "a"), "rejected": asked("r", "b")}, REPEATED),
    "no transcript": ("wrong_type", {"chosen": "a", "rejected": "b"}, REPEATED),
    "question last": ("wrong_type", {"chosen": [user("q")], "rejected": [user("q"), assistant("b")]}, REPEATED),
    "repeated": ("empty_response", {"chosen": asked("q", ""), "rejected": asked("q", "b")}, REPEATED),
}


def good_row(settings):
    """A row that keeps the rules under the same settings."""
    row = {"id": 1, "n": 2, "part": "train", "sex": "f"}
    if settings.get("prompt_in"):
        prefix = "q" if settings.get("prompt") else ""
        return row | {"prompt": "q"} | {k: prefix + asked("q", v) for k, v in (("chosen", "a"), ("rejected", "b"))}
    return row | {**GOOD, "all": ["a", "b"], "best": "a" if settings.get("choice_by") else 0}


@pytest.mark.parametrize("case", BAD)
def test_rows_that_break_a_rule(table, case):
    rule, row, settings = BAD[case]
    good = good_row(settings)
    with pytest.raises(InvalidInputError, match=rf"{rule}: 1 \(rows.jsonl:2"):
        table(good, row, **settings)
    data = table(good, row, bad_rows="leave_out", **settings)
    assert data.report["bad_rows"] == {rule: 1}
    assert data.report["rows_read"] == 2
    assert len(data.comparisons) == 1


@pytest.mark.parametrize(
    ("case", "detail"),
    [
        ("empty response", "(chosen)"),
        ("empty message", "(chosen)"),
        ("number", "(rejected is of type int)"),
        ("repeated", "(chosen)"),
        ("id", "(id 1, as in rows.jsonl:1)"),
    ],
)
def test_a_bad_row_is_told_with_its_column_and_its_double(table, case, detail):
    rule, row, settings = BAD[case]
    with pytest.raises(InvalidInputError, match=re.escape(f"{rule}: 1 (rows.jsonl:2 {detail}). Rule: ")):
        table(good_row(settings), row, **settings)


def test_a_bad_candidate_of_a_list_is_told_by_its_index(table):
    with pytest.raises(InvalidInputError, match=r"empty_response: 1 \(rows.jsonl:1 \(all\[1\]\)\)"):
        table({"prompt": "q", "all": ["a", " "], "best": 0}, **SETS)


def test_identical_candidates(table):
    rows = [{**GOOD, "chosen": "b"}, GOOD]
    assert [len(table(*rows, identical=rule).comparisons) for rule in ("keep", "pool")] == [2, 1]
    report = table(*rows, identical="pool").report
    assert (report["identical_responses"], report["only_identical_responses"]) == (1, 1)
