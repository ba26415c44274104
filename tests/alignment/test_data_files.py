"""Where rows come from: formats, folders, several files, hubs by way of local ones; and splits by prompt."""

from __future__ import annotations

import gzip
import json

import pytest

from mixlogit_align.alignment.data import Message, load_data
from mixlogit_align.alignment.data.config import (
    CommunityData,
    HHData,
    HumourData,
    Mg2019Data,
    Mms2019Data,
    PrismData,
    TableData,
)
from mixlogit_align.alignment.data.rows import FIRST, RULES, BadRow, BadRows, Row, as_whole
from mixlogit_align.alignment.data.schema import transcript
from mixlogit_align.alignment.data.sets import numbered
from mixlogit_align.alignment.data.splits import held_out, opening
from mixlogit_align.errors import InvalidInputError
from tests.alignment.datafiles import asked, write

ROWS = [{"prompt": f"question {i}", "chosen": f" good, {i}", "rejected": " bad"} for i in range(40)]
FORMATS = ("jsonl", "jsonl.gz", "json", "json.gz", "csv", "csv.gz", "parquet")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in the place of a hub's data set: `datasets` loads both alike."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "hub"
    folder.mkdir()
    return folder


def texts(data):
    return sorted((row.prompt, *row.responses) for row in data.comparisons)


WANTED = sorted((row["prompt"], row["chosen"], row["rejected"]) for row in ROWS)

# --- local files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path, ending):
    path = write(tmp_path / f"rows.{ending}", ROWS)
    data = load_data(TableData(path=str(path)))
    assert texts(data) == WANTED
    assert data.report["rows_read"] == data.report["rows_used"] == 40


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_a_mark_of_the_byte_order_is_no_text(tmp_path, ending):
    path = write(tmp_path / f"rows.{ending}", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert texts(load_data(TableData(path=str(path)))) == WANTED


@pytest.mark.parametrize("place", ["", "*.jsonl"], ids=["folder", "pattern"])
def test_several_files_are_one_table(tmp_path, place):
    for i in range(4):
        write(tmp_path / f"part-{i}.jsonl", ROWS[10 * i : 10 * i + 10])
    data = load_data(TableData(path=str(tmp_path / place)))
    assert texts(data) == WANTED
    assert sorted(row.pair_id for row in data.comparisons) == list(range(40))


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for folder in ("a", "b"):
        write(tmp_path / folder / "rows.jsonl", [ROWS[0], "not a row"])
    with pytest.raises(InvalidInputError, match=r"unparsable_line: 2 \(a/rows.jsonl:2 .*, b/rows.jsonl:2 "):
        load_data(TableData(path=str(tmp_path / "*" / "rows.jsonl")))


def test_shards_of_a_split_are_found_by_its_name(tmp_path):
    for i in range(2):
        write(tmp_path / f"train-0000{i}-of-00002.parquet", ROWS[10 * i : 10 * i + 10])
    write(tmp_path / "test.parquet", ROWS[20:])
    data = load_data(TableData(path=str(tmp_path), train_split="train", eval_split="test"))
    assert [len(data.split(name)) for name in ("train", "eval")] == [20, 20]


def test_files_of_splits_are_not_silently_pooled(tmp_path):
    write(tmp_path / "train.jsonl", ROWS[:20])
    write(tmp_path / "test.jsonl", ROWS[20:])
    with pytest.raises(InvalidInputError, match=r"test, train.*eval_split: test"):
        load_data(TableData(path=str(tmp_path)))


def test_one_table_in_two_formats_is_refused(tmp_path):
    write(tmp_path / "rows.jsonl", ROWS)
    write(tmp_path / "rows.csv", ROWS)
    with pytest.raises(InvalidInputError, match="rows in two formats"):
        load_data(TableData(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.txt", b"text", "unknown format"),
        ("rows.parquet", b"no parquet", "rows.parquet"),
        ("rows.jsonl.gz", gzip.compress(json.dumps(ROWS[0]).encode())[:-9], "rows.jsonl.gz"),
        ("rows.json", b'[{"prompt": ', "rows.json"),
        ("rows.json", b"[" * 100_000, "rows.json"),
        ("rows.csv", b"prompt,chosen,rejected\nq,\xff,b\n", "rows.csv"),
        ("rows.csv", b"prompt,chosen,rejected,chosen\nq,a,b,c\n", "column 'chosen' twice"),
        ("rows.csv", b"prompt;chosen;rejected\nq;a;b\n", "one column, 'prompt;chosen;rejected'; .*the separator"),
    ],
    ids=["ending", "parquet", "cut", "json", "depth", "bytes", "columns", "separator"],
)
def test_an_unreadable_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match=message):
        load_data(TableData(path=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("rows.jsonl", '{"prompt": "q", "chosen": "a", "rejected": "b"}\n\n{"prompt": \n[1]\n', "rows.jsonl:3"),
        ("rows.json", '[{"prompt": "q", "chosen": "a", "rejected": "b"}, 1, 2]', "rows.json:2"),
        ("rows.csv", "prompt,chosen,rejected\nq,a,b\nq,a\nq,a,b,c\n", "rows.csv:3"),
    ],
    ids=["jsonl", "json", "csv"],
)
def test_lines_that_are_no_rows_are_counted_and_named(tmp_path, name, content, where):
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInputError, match=rf"unparsable_line: 2 \({where}"):
        load_data(TableData(path=str(tmp_path / name)))
    data = load_data(TableData(path=str(tmp_path / name), bad_rows="leave_out"))
    assert data.report["bad_rows"] == {"unparsable_line": 2}
    assert data.report["first_bad_rows"]["unparsable_line"][0].startswith(where)
    assert len(data.comparisons) == 1


@pytest.mark.parametrize(
    "config",
    [HHData, PrismData, CommunityData, TableData, Mg2019Data, Mms2019Data, HumourData],
    ids=lambda config: config.__name__,
)
def test_a_missing_file_is_named(config):
    with pytest.raises(InvalidInputError, match="NO_SUCH_VARIABLE"):
        load_data(config(path="$NO_SUCH_VARIABLE/data"))


# --- hubs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl.gz"])
def test_a_hub_gives_the_rows_of_its_files(hub, ending, streaming):
    write(hub / f"train.{ending}", ROWS)
    data = load_data(TableData(path=f"hub:{hub}", streaming=streaming))
    assert texts(data) == WANTED
    local = load_data(TableData(path=str(hub / f"train.{ending}")))
    assert data.comparisons == local.comparisons


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
def test_a_hub_s_splits(hub, streaming):
    write(hub / "train.parquet", ROWS[:30])
    write(hub / "test.parquet", ROWS[30:])
    both = TableData(path=f"hub:{hub}", eval_split="test", streaming=streaming)
    assert [len(load_data(both).split(name)) for name in ("train", "eval")] == [30, 10]
    one = TableData(path=f"hub:{hub}#test", eval_fraction=0.5, streaming=streaming)
    assert len(load_data(one).comparisons) == 10


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
def test_a_hub_s_configurations(hub, streaming):
    for name, rows in (("one", ROWS[:10]), ("two", ROWS[10:])):
        write(hub / f"{name}.jsonl", rows)
    names = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("one", "two"))
    (hub / "README.md").write_text(f"---\nconfigs:\n{names}---\n")
    data = load_data(TableData(path=f"hub:{hub}:two", streaming=streaming))
    assert len(data.comparisons) == 30


def test_streaming_a_hub_reads_no_further_than_asked(hub):
    write(hub / "train.jsonl", ROWS)
    part = load_data(TableData(path=f"hub:{hub}", streaming=True, max_train=5, max_eval=1, eval_fraction=0.3))
    assert part.report["rows_read"] < 40
    assert [len(part.split(name)) for name in ("train", "eval")] == [5, 1]


def test_hh_through_a_hub(hub):
    for name, start in (("train", 0), ("test", 100)):
        rows = [{"chosen": asked(start + i, "a"), "rejected": asked(start + i, "b")} for i in range(5)]
        write(hub / "harmless-base" / f"{name}.jsonl.gz", rows)
    config = {"subsets": ("harmless-base",)}
    data = load_data(HHData(path=f"hub:{hub}", streaming=True, **config))
    assert data.comparisons == load_data(HHData(path=str(hub), **config)).comparisons
    assert len(data.comparisons) == 10


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
@pytest.mark.parametrize(
    "path",
    ["hub:nobody/no-such-data@main", "hub:/no/such/folder"],
    ids=["name", "folder"],
)
def test_a_hub_that_cannot_be_reached_is_named(path, streaming):
    with pytest.raises(InvalidInputError, match=r"no.such.*expected a data set that can be read"):
        load_data(TableData(path=path, streaming=streaming))


def test_a_hub_s_unknown_split_and_broken_file_are_named(hub):
    write(hub / "train.jsonl", [*ROWS, '{"prompt": '])
    with pytest.raises(InvalidInputError, match="nosplit"):
        load_data(TableData(path=f"hub:{hub}#nosplit"))
    with pytest.raises(InvalidInputError, match="hub"):
        load_data(TableData(path=f"hub:{hub}"))


@pytest.mark.parametrize("config", [Mg2019Data, Mms2019Data, HumourData], ids=lambda config: config.__name__)
def test_folders_of_several_files_are_local(config):
    with pytest.raises(InvalidInputError, match="expected a local folder"):
        load_data(config(path="hub:some/name"))


# --- how much is read ------------------------------------------------------------------------------


def test_streaming_reads_no_further_than_asked(tmp_path):
    path = write(tmp_path / "rows.jsonl", [*ROWS, "not a row"])
    part = load_data(TableData(path=str(path), streaming=True, max_train=5, max_eval=1, eval_fraction=0.3))
    whole = load_data(TableData(path=str(path), bad_rows="leave_out", eval_fraction=0.3))
    # the broken last line would have been refused
    assert part.report["rows_read"] < 40
    assert part.split("train") == whole.split("train")[:5]
    assert part.split("eval") == whole.split("eval")[:1]


def test_streaming_without_limits_reads_everything(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    assert load_data(TableData(path=str(path), streaming=True, max_eval=1)).report["rows_read"] == 40


def test_a_limit_keeps_a_seeded_random_part(tmp_path):
    path = str(write(tmp_path / "rows.jsonl", ROWS))
    parts = [load_data(TableData(path=path, max_train=10, seed=seed)).split("train") for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]
    assert [len(part) for part in parts] == [10, 10, 10]
    whole = load_data(TableData(path=path)).split("train")
    assert {row.pair_id for row in parts[0]} < {row.pair_id for row in whole}
    assert parts[0] != whole[:10]


# --- splits by prompt ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "begins"),
    [
        ("Name a  colour.\n", "Name a colour."),
        (asked("hi", "hello") + "\n\nHuman: more\n\nAssistant:", "Human: hi"),
        (
            (Message("system", "be kind"), Message("user", "hi "), Message("assistant", "yes"), Message("user", "?")),
            "hi",
        ),
    ],
    ids=["text", "transcript", "messages"],
)
def test_openings(prompt, begins):
    assert opening(prompt) == begins


def test_a_share_of_the_prompts_is_held_out_and_stays_so():
    splits = {i: held_out(f"prompt {i}", 0.2, seed=0) for i in range(5000)}
    # fixed seed; over seeds the count is binomial with standard deviation 28: 4.4 of them are left once in 100,000
    assert abs(sum(split == "eval" for split in splits.values()) - 1000) < 124
    more = {i: held_out(f"prompt {i}", 0.3, seed=0) for i in range(5000)}
    assert all(more[i] == "eval" for i, split in splits.items() if split == "eval")
    assert splits != {i: held_out(f"prompt {i}", 0.2, seed=1) for i in range(5000)}


def test_rows_of_one_prompt_are_on_one_side(tmp_path):
    rows = [{**row, "prompt": f"question {i % 20}"} for i, row in enumerate(ROWS * 5)]
    path = str(write(tmp_path / "rows.jsonl", rows))
    data = load_data(TableData(path=path, eval_fraction=0.4))
    train, evaluated = ({row.prompt for row in data.split(name)} for name in ("train", "eval"))
    assert not train & evaluated
    assert len(train | evaluated) == 20
    write(tmp_path / "rows.jsonl", rows[::-1])
    assert {row.prompt for row in load_data(TableData(path=path, eval_fraction=0.4)).split("eval")} == evaluated


def test_a_prompt_in_both_of_the_data_s_own_splits(tmp_path):
    write(tmp_path / "train.jsonl", [*ROWS[:20], ROWS[30]])
    write(tmp_path / "test.jsonl", ROWS[30:])
    config = {"path": str(tmp_path), "train_split": "train", "eval_split": "test"}
    with pytest.raises(InvalidInputError, match=r"prompt_in_both_splits: 1 \(train.jsonl:21\)"):
        load_data(TableData(**config))
    data = load_data(TableData(**config, bad_rows="leave_out"))
    assert [len(data.split(name)) for name in ("train", "eval")] == [20, 10]
    assert data.report["bad_rows"] == {"prompt_in_both_splits": 1}


def test_an_empty_split_says_what_to_try(tmp_path):
    data = load_data(TableData(path=str(write(tmp_path / "rows.jsonl", ROWS[:2])), eval_fraction=0.001))
    with pytest.raises(InvalidInputError, match="eval_fraction"):
        data.split("eval")


# --- rows and rules --------------------------------------------------------------------------------


def test_all_are_counted_and_the_first_are_named():
    bad = BadRows(source="x", policy="leave_out")
    for i in range(8):
        with bad.leaving_out(f"file:{i}"):
            raise BadRow("empty_response", "chosen" if i else "")
    report = bad.settle()
    assert report["bad_rows"] == {"empty_response": 8}
    assert report["first_bad_rows"]["empty_response"] == ["file:0", *[f"file:{i} (chosen)" for i in range(1, FIRST)]]
    assert json.loads(json.dumps(report)) == report


def test_a_refusal_lists_every_rule_and_says_what_to_try():
    bad = BadRows(source="x", policy="refuse")
    for rule in RULES:
        bad.add("file:1", rule)
    with pytest.raises(InvalidInputError, match="leave_out") as error:
        bad.settle()
    assert str(error.value).splitlines()[1:] == [f"  {rule}: 1 (file:1). Rule: {RULES[rule]}." for rule in RULES]


@pytest.mark.parametrize(
    ("value", "whole"),
    [(3, 3), ("3", 3), (3.0, 3), ("3.0", 3), ("9007199254740993", 9007199254740993)],
    ids=str,
)
def test_whole_numbers(value, whole):
    assert as_whole(value, "n") == whole


@pytest.mark.parametrize("value", [True, "x", 1.5, "1.5", float("inf"), [], {}], ids=str)
def test_what_is_no_whole_number(value):
    with pytest.raises(BadRow) as bad:
        as_whole(value, "n")
    assert bad.value.rule == "wrong_type"


@pytest.mark.parametrize(
    ("value", "flag"),
    [(True, True), ("true", True), (1, True), (1.0, True), (False, False), ("False", False), (0, False), (None, False)],
    ids=str,
)
def test_flags(value, flag):
    assert Row(number=0, where="x", values={"a": value}).flag("a") is flag


def test_what_is_no_flag():
    with pytest.raises(BadRow):
        Row(number=0, where="x", values={"a": "maybe"}).flag("a")


def test_labels_leave_out_what_is_empty():
    row = Row(number=0, where="x", values={"a": "", "b": None, "c": float("nan"), "d": 0, "e": False, "f": "text"})
    assert row.labels(("a", "b", "c", "d", "e", "f", "g")) == {"d": "0", "e": "False", "f": "text"}


def test_numbers_of_comparisons_can_be_read():
    assert (numbered(17), numbered(17, 2, 3)) == (170000, 170203)


def test_transcripts_of_messages():
    messages = (Message("user", "hi "), Message("assistant", "hello"), Message("user", "more"))
    assert transcript(messages) == "Human: hi\n\nAssistant: hello\n\nHuman: more\n\nAssistant:"
