"""Readers: simulated annotators against their truth, HH and humour with their traps."""

from __future__ import annotations

import math

import pytest
import torch

from mixlogit_align import MixedLogit
from mixlogit_align.alignment.data import Comparison, load_data
from mixlogit_align.alignment.data.config import HHData, HumourData, SimulatedData
from mixlogit_align.alignment.data.hh import split_transcript
from mixlogit_align.alignment.data.simulated import DEGREES, NOUNS, QUALITIES
from mixlogit_align.errors import InvalidInputError
from tests.alignment.datafiles import TURN, asked, write

# --- schema ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [{"responses": ("a",)}, {"choice": 2}, {"choice": -1}, {"weight": 0.0}, {"weight": math.nan}],
    ids=str,
)
def test_a_comparison_must_be_a_choice(bad):
    good = {"prompt": "p", "responses": ("a", "b"), "choice": 0, "pair_id": 31, "split": "train"}
    with pytest.raises(InvalidInputError, match="pair_id 31"):
        Comparison(**{**good, **bad})


def test_only_a_pair_has_a_rejected_response():
    row = Comparison(prompt="p", responses=("a", "b", "c"), choice=1, pair_id=0, split="train")
    assert row.chosen == "b"
    with pytest.raises(InvalidInputError, match="pair"):
        _ = row.rejected


# --- simulated -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "cv"), [("lognormal", 1.0), ("gamma", 0.7), ("lognormal", 0.0)])
def test_simulated_choices_follow_their_truth(family, cv):
    data = load_data(SimulatedData(num_train=20_000, num_eval=100, strength_family=family, strength_cv=cv))
    truth = data.truth
    assert truth.summary()["mean"] == pytest.approx(0.1, rel=1e-6)
    assert truth.summary()["sd"] == pytest.approx(0.1 * cv, rel=1e-6, abs=1e-12)
    rows = data.comparisons
    shown = torch.tensor([truth.utility_diff[row.pair_id] * (1 if row.choice == 0 else -1) for row in rows])
    first = torch.tensor([float(row.choice == 0) for row in rows])
    probability = MixedLogit(shown.double(), truth.mixing()).log_prob(torch.ones(len(rows)).double()).exp()
    distance = (shown.abs() / 10).long().clamp(max=4)
    # one z for each distance between the responses, and for each who is ahead: 9 bins; |z| > 4.4 in any of them
    # happens by chance once in 10,000 seeds (annotators repeat, but their strengths are quantiles, not draws)
    for ahead in (True, False):
        for bin_ in distance.unique().tolist():
            rows_of_bin = (distance == bin_) & ((shown > 0) == ahead)
            p = probability[rows_of_bin]
            z = (first[rows_of_bin].double() - p).sum() / (p * (1 - p)).sum().sqrt()
            assert abs(z.item()) < 4.4, (ahead, bin_)


def test_data_that_differ_in_strength_share_everything_else():
    narrow, wide = (load_data(SimulatedData(num_train=500, num_eval=50, strength_cv=cv)) for cv in (0.0, 1.0))
    assert [(r.prompt, r.responses, r.annotator_id) for r in narrow.comparisons] == [
        (r.prompt, r.responses, r.annotator_id) for r in wide.comparisons
    ]
    changed = sum(a.choice != b.choice for a, b in zip(narrow.comparisons, wide.comparisons, strict=True))
    assert 0 < changed < 100


def test_simulated_texts_and_utilities_are_those_of_the_grammar():
    data = load_data(SimulatedData(num_train=2000, num_eval=10, utility_scale=20.0))
    row = data.comparisons[0]
    noun = row.prompt.removeprefix("Describe the ").removesuffix(".")
    assert noun in NOUNS

    def raw(response: str) -> float:
        *_, degree, first, _, second = response.removesuffix(".").split()
        return DEGREES[degree] * QUALITIES[first] + QUALITIES[second]

    ratio = {
        round(data.truth.utility_diff[r.pair_id] / (raw(r.chosen) - raw(r.rejected)), 9)
        for r in data.comparisons
        if abs(raw(r.chosen) - raw(r.rejected)) > 0.01
    }
    assert len(ratio) == 1
    # 4,020 responses drawn from the grammar: their spread is 20 within 5 of its standard errors, 20 / sqrt(2 * 4020)
    spread = torch.tensor([raw(t) for r in data.comparisons for t in r.responses]).std().item() * ratio.pop()
    assert spread == pytest.approx(20.0, abs=1.2)


def test_splits_cohorts_and_ids():
    data = load_data(SimulatedData(num_train=300, num_eval=40, num_annotators=10))
    assert (len(data.split("train")), len(data.split("eval"))) == (300, 40)
    assert [row.pair_id for row in data.comparisons] == list(range(340))
    cohorts = {row.annotator_id: row.groups["cohort"] for row in data.comparisons}
    assert sorted(cohorts.values()) == ["stronger"] * 5 + ["weaker"] * 5
    assert data.report["rows_used"] == 340
    train, evaluated = ({row.prompt for row in data.split(name)} for name in ("train", "eval"))
    assert data.report["prompts_in_both_splits"] == len(train & evaluated) > 10


# --- HH --------------------------------------------------------------------------------------------


def write_hh(folder, train, test=({"prompt": "p", "chosen": "a", "rejected": "b"},)):
    write(folder / "train.jsonl.gz", train)
    write(folder / "test.jsonl.gz", test)


def test_transcripts_split_at_the_last_turn():
    transcript = f"\n\nHuman: a{TURN} b\n\nHuman: c{TURN} the model says\n\nHuman: itself{TURN} reply"
    prompt, response = split_transcript(transcript)
    assert response == " reply"
    assert prompt.endswith(f"itself{TURN}")
    assert prompt + response == transcript


BAD_TRANSCRIPTS = {
    "wrong_type": {"chosen": "Human: hello", "rejected": asked("q", "bad")},
    "prompts_differ": {"chosen": asked("q", "good"), "rejected": asked("other", "bad")},
    "empty_response": {"chosen": asked("q", ""), "rejected": asked("q", "bad")},
    "empty_prompt": {"prompt": " ", "chosen": "a", "rejected": "b"},
    "missing_field": {"prompt": "q", "chosen": "a"},
    "prompt_in_both_splits": {"prompt": "p", "chosen": "a", "rejected": "b"},
}


@pytest.mark.parametrize("rule", BAD_TRANSCRIPTS)
def test_hh_rows_that_break_a_rule(tmp_path, rule):
    good = {"chosen": asked("q", "good"), "rejected": asked("q", "bad")}
    write_hh(tmp_path, [good, BAD_TRANSCRIPTS[rule], good])
    with pytest.raises(InvalidInputError, match=rf"{rule}: 1 \(train\.jsonl\.gz:2"):
        load_data(HHData(path=str(tmp_path)))
    data = load_data(HHData(path=str(tmp_path), bad_rows="leave_out"))
    assert data.report["bad_rows"] == {rule: 1}
    assert [row.pair_id for row in data.split("train")] == [0, 4]
    assert [row.pair_id for row in data.split("eval")] == [1]


def test_hh_texts_and_groups(tmp_path):
    same = {"prompt": f"Human: q{TURN}", "chosen": "same ", "rejected": "same", "subset": "helpful"}
    write_hh(tmp_path, [{"chosen": asked("q", "good"), "rejected": asked("q", "bad ")}, same])
    data = load_data(HHData(path=str(tmp_path)))
    assert [row.responses for row in data.split("train")] == [(" good", " bad"), (" same", " same")]
    assert {row.prompt for row in data.split("train")} == {f"Human: q{TURN}"}
    assert data.split("train")[1].groups == {"subset": "helpful"}
    assert data.report["identical_responses"] == 1
    pooled = load_data(HHData(path=str(tmp_path), identical="pool"))
    assert [row.pair_id for row in pooled.split("train")] == [0]
    assert pooled.report["only_identical_responses"] == 1


def test_hh_subsets_are_folders_and_groups(tmp_path):
    for name in ("harmless-base", "helpful-base"):
        write_hh(tmp_path / name, [{"prompt": name, "chosen": "a", "rejected": "b"}] * 2)
    data = load_data(HHData(path=str(tmp_path), subsets=("harmless-base", "helpful-base")))
    assert [row.groups["subset"] for row in data.split("train")] == [*["harmless-base"] * 2, *["helpful-base"] * 2]
    assert len({row.pair_id for row in data.comparisons}) == 6


def test_bad_rows_of_hh_subsets_are_told_apart(tmp_path):
    bad = {"chosen": asked("q", "good"), "rejected": asked("q", "")}
    for name in ("harmless-base", "helpful-base"):
        write_hh(tmp_path / name, [bad])
    rows = r"harmless-base/train.jsonl.gz:1 \(rejected\), helpful-base/train.jsonl.gz:1 \(rejected\)"
    with pytest.raises(InvalidInputError, match=rf"empty_response: 2 \({rows}"):
        load_data(HHData(path=str(tmp_path), subsets=("harmless-base", "helpful-base")))


def test_hh_sample(shared_data):
    data = load_data(HHData(path=str(shared_data / "hh_rlhf")))
    assert (len(data.split("train")), len(data.split("eval"))) == (3644, 643)
    assert {row.groups["subset"] for row in data.comparisons} == {"harmless", "helpful"}
    assert not {row.prompt for row in data.split("train")} & {row.prompt for row in data.split("eval")}
    assert all(row.prompt.endswith("Assistant:") for row in data.comparisons)
    assert any("Assistant: Human:" in row.prompt for row in data.comparisons)
    assert data.report["bad_rows"] == {}
    # counted apart from the reader, by the text up to the first answer
    assert data.report["train_openings_in_eval"] == 65


def test_hh_verbatim_transcripts_have_empty_responses_and_foreign_prompts(shared_data, tmp_path):
    write_hh(tmp_path, [])
    (tmp_path / "train.jsonl.gz").unlink()
    (tmp_path / "train.jsonl.gz").symlink_to(shared_data / "hh_rlhf" / "harmless-base_test.jsonl.gz")
    with pytest.raises(
        InvalidInputError, match=r"(?s)prompts_differ: 5 .*empty_response: 4 |empty_response: 4 .*differ: 5 "
    ):
        load_data(HHData(path=str(tmp_path)))
    report = load_data(HHData(path=str(tmp_path), bad_rows="leave_out")).report
    assert report["bad_rows"] == {"prompts_differ": 5, "empty_response": 4}
    assert (report["rows_read"], report["rows_used"]) == (2312 + 1, 2312 - 9 + 1)


# --- humour ----------------------------------------------------------------------------------------


def write_humour(folder, num_items, pairs):
    write(folder / "items.csv", [{"item": i, "text": f"text, {i}"} for i in range(num_items)])
    names = ("item_a", "item_b", "n_a", "n_b")
    write(folder / "pair_counts.csv", [dict(zip(names, pair, strict=True)) for pair in pairs])


def test_votes_of_an_unordered_pair_become_weighted_choices(tmp_path):
    pairs = [(a, b, 3, (a + b) % 2) for a in range(20) for b in range(a)] + [(0, 1, 0, 2)]
    write_humour(tmp_path, 20, pairs)
    data = load_data(HumourData(path=str(tmp_path), eval_fraction=0.25))
    held_out = {t for row in data.split("eval") for t in row.responses}
    assert not held_out & {t for row in data.split("train") for t in row.responses}
    assert len(held_out) == 5
    assert data.report["pairs_across_splits"] + data.report["pairs_used"] == len(pairs) == data.report["rows_read"]
    assert data.report["pairs_across_splits"] in range(5 * 15, 5 * 15 + 2)
    assert data.report["votes_used"] == sum(row.weight for row in data.comparisons)
    used = {row.pair_id // 2 for row in data.comparisons}
    assert len(used) == data.report["pairs_used"]
    # a row for each text of a pair that has votes
    assert {(row.pair_id, row.chosen, row.weight) for row in data.comparisons} == {
        (2 * i + k, f" text, {pair[k]}", float(pair[2 + k]))
        for i, pair in enumerate(pairs)
        for k in (0, 1)
        if i in used and pair[2 + k]
    }
    assert len({row.pair_id for row in data.comparisons}) == len(data.comparisons)


@pytest.mark.parametrize(
    ("rule", "pair"),
    [
        ("wrong_type", (0, 1, "many", 1)),
        ("unknown_id", (0, 99, 1, 1)),
        ("conflicting_ids", (1, 1, 1, 1)),
        ("weight_not_positive", (0, 1, 0, 0)),
        ("weight_not_positive", (0, 1, -1, 3)),
    ],
)
def test_humour_rows_that_break_a_rule(tmp_path, rule, pair):
    write_humour(tmp_path, 8, [(a, b, 2, 1) for a in range(8) for b in range(a)] + [pair])
    with pytest.raises(InvalidInputError, match=rf"{rule}: 1 \(pair_counts.csv:30"):
        load_data(HumourData(path=str(tmp_path)))
    report = load_data(HumourData(path=str(tmp_path), bad_rows="leave_out")).report
    assert report["bad_rows"] == {rule: 1}
    assert report["rows_read"] == 29
    assert report["pairs_used"] + report["pairs_across_splits"] == 28


def test_humour_sample(shared_data):
    data = load_data(HumourData(path=str(shared_data / "humour_pairs")))
    assert data.report["rows_read"] == 28118
    assert data.report["pairs_used"] + data.report["pairs_across_splits"] == 28118
    assert len({row.prompt for row in data.comparisons}) == 1


# --- shared by the readers -------------------------------------------------------------------------


def test_folders_may_name_environment_variables(monkeypatch, tmp_path):
    write_hh(tmp_path, [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    monkeypatch.setenv("SOME_DATA", str(tmp_path))
    assert load_data(HHData(path="$SOME_DATA")).report["rows_read"] == 2


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidInputError, match=r"train\.jsonl"):
        load_data(HHData(path=str(tmp_path)))


def test_a_split_without_rows_is_refused(tmp_path):
    write_humour(tmp_path, 8, [(0, 1, 1, 1)])
    data = load_data(HumourData(path=str(tmp_path), eval_fraction=0.1))
    with pytest.raises(InvalidInputError, match="'eval'"):
        data.split("eval")
