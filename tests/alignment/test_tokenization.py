"""The truncation policy does what its name says and reports what it did."""

from __future__ import annotations

import pytest
import torch

from mixlogit_align.alignment import hf
from mixlogit_align.alignment.config import TokenizationConfig
from mixlogit_align.alignment.data import Comparison
from mixlogit_align.alignment.data.batches import Collator
from mixlogit_align.alignment.tokenization import tokenize
from mixlogit_align.errors import InvalidInputError


@pytest.fixture(scope="module")
def byte_tokenizer():
    return hf.build_tokenizer([], 258)


def comparison(prompt: str, *responses: str, **other) -> Comparison:
    return Comparison(prompt=prompt, responses=responses, choice=0, pair_id=7, split="train", **other)


def one(tokenizer, row, **config):
    rows, report = tokenize([row], tokenizer, TokenizationConfig(**config))
    return rows[0], report


def text(tokenizer, ids):
    return tokenizer.decode(ids)


def test_what_fits_is_left_alone(byte_tokenizer):
    row, report = one(byte_tokenizer, comparison("0123456789", "ab", "cde"), max_length=14, max_prompt_length=2)
    assert [text(byte_tokenizer, ids) for ids in row.input_ids] == [
        "0123456789ab<|endoftext|>",
        "0123456789cde<|endoftext|>",
    ]
    assert row.prompt_length == 10
    assert (report.prompts_cut, report.responses_cut) == (0, 0)
    assert (report.longest_prompt, report.longest_response) == (10, 4)


@pytest.mark.parametrize(("truncation", "kept"), [("keep_end", "56789"), ("keep_start", "01234")])
def test_a_prompt_loses_what_is_needed_and_no_more(byte_tokenizer, truncation, kept):
    row, report = one(
        byte_tokenizer, comparison("0123456789", "ab", "cde"), max_length=9, max_prompt_length=2, truncation=truncation
    )
    assert text(byte_tokenizer, row.input_ids[1]) == f"{kept}cde<|endoftext|>"
    assert text(byte_tokenizer, row.input_ids[0]) == f"{kept}ab<|endoftext|>"
    assert (report.prompts_cut, report.prompt_tokens_cut, report.responses_cut) == (1, 5, 0)
    assert truncation in str(report)


def test_a_response_loses_its_end_when_the_prompt_is_down_to_its_share(byte_tokenizer):
    row, report = one(byte_tokenizer, comparison("0123456789", "ab", "cdefgh"), max_length=7, max_prompt_length=3)
    assert [text(byte_tokenizer, ids) for ids in row.input_ids] == ["789ab<|endoftext|>", "789cdef"]
    assert (report.prompts_cut, report.prompt_tokens_cut) == (1, 7)
    assert (report.responses, report.responses_cut, report.response_tokens_cut) == (2, 1, 3)


def test_a_short_prompt_leaves_its_room_to_the_response(byte_tokenizer):
    row, report = one(byte_tokenizer, comparison("01", "ab", "cdefghij"), max_length=10, max_prompt_length=5)
    assert text(byte_tokenizer, row.input_ids[1]) == "01cdefghij"
    assert (report.prompts_cut, report.responses_cut, report.response_tokens_cut) == (0, 1, 1)


@pytest.mark.parametrize("length", [2, 3, 5, 40])
def test_nothing_is_ever_emptied(byte_tokenizer, length):
    row, _ = one(byte_tokenizer, comparison("p" * 30, "", "r" * 30), max_length=length, max_prompt_length=length - 1)
    assert all(row.prompt_length < len(ids) <= length for ids in row.input_ids)


def test_empty_texts_are_counted(byte_tokenizer):
    row, report = one(byte_tokenizer, comparison("", "", "a"))
    assert text(byte_tokenizer, row.input_ids[0]) == "<|endoftext|><|endoftext|>"
    assert (report.prompts_padded, report.responses_of_end_only, report.prompts) == (1, 1, 1)
    assert report.as_dict()["responses_of_end_only"] == 1


def test_a_special_token_in_a_text_is_only_letters(byte_tokenizer):
    row, _ = one(byte_tokenizer, comparison("p", "<|endoftext|>", "b"))
    assert row.input_ids[0].count(byte_tokenizer.eos_token_id) == 1
    assert len(row.input_ids[0]) == 1 + len("<|endoftext|>") + 1


@pytest.mark.parametrize("vocab_size", [258, 300])
def test_every_text_round_trips(vocab_size):
    texts = ["plain words", "größer 東京 🎈", "tabs\tand\n\nlines "]
    tokenizer = hf.build_tokenizer(texts, vocab_size)
    assert len(tokenizer) <= vocab_size
    assert [tokenizer.decode(tokenizer(t).input_ids) for t in texts] == texts


def test_a_prompt_must_leave_room_for_a_response():
    with pytest.raises(InvalidInputError, match="no response is emptied"):
        TokenizationConfig(max_length=64, max_prompt_length=64)


# --- batches ---------------------------------------------------------------------------------------


def test_batches_carry_who_chose_how_often_and_among_what(byte_tokenizer):
    comparisons = [
        comparison("pp", "a", "bcd", annotator_id="ann", groups={"age": "old"}, weight=3.0),
        Comparison(prompt="q", responses=("e", "f", "gg"), choice=2, pair_id=8, split="train"),
    ]
    rows, _ = tokenize(comparisons, byte_tokenizer, TokenizationConfig())
    batch = Collator(pad_id=byte_tokenizer.pad_token_id)(rows)
    assert batch.input_ids.shape == (2, 3, 6)
    assert batch.available.tolist() == [[True, True, False], [True, True, True]]
    assert batch.choice.tolist() == [0, 2]
    assert batch.weights.tolist() == [3.0, 1.0]
    assert batch.pair_ids.tolist() == [7, 8]
    assert batch.annotator_ids == ("ann", None)
    assert batch.groups == ({"age": "old"}, {})
    assert batch.response_mask.sum(-1).tolist() == [[2, 4, 0], [2, 2, 3]]
    assert batch.response_mask[0, 1].tolist() == [False, False, True, True, True, True]
    assert bool((batch.input_ids[~batch.available] == byte_tokenizer.pad_token_id).all())
    assert batch.reference_logps is None
    assert len(batch) == 2


def test_chosen_and_rejected_follow_the_choice(byte_tokenizer):
    comparisons = [
        comparison("p", "a", "b"),
        Comparison(prompt="p", responses=("a", "b"), choice=1, pair_id=1, split="train"),
    ]
    rows, _ = tokenize(comparisons, byte_tokenizer, TokenizationConfig())
    batch = Collator(pad_id=0)([row.with_reference([1.0, 2.0]) for row in rows])
    chosen, rejected = batch.chosen_rejected(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert chosen.tolist() == [1.0, 4.0]
    assert rejected.tolist() == [2.0, 3.0]
    assert batch.reference_logps.tolist() == [[1.0, 2.0], [1.0, 2.0]]


def test_larger_sets_are_not_taken_for_pairs(byte_tokenizer):
    rows, _ = tokenize(
        [comparison("p", "a", "b", "c"), comparison("p", "a", "b")], byte_tokenizer, TokenizationConfig()
    )
    batch = Collator(pad_id=0)(rows)
    with pytest.raises(InvalidInputError, match=r"sets of \[2, 3\] responses"):
        batch.chosen_rejected(torch.zeros(2, 3))
