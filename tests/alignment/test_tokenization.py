"""The truncation policy does what its name says and reports what it did."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import struct
from dataclasses import replace

import pytest
import torch

from mixlogit_align.alignment import hf
from mixlogit_align.alignment.config import TokenizationConfig
from mixlogit_align.alignment.data import Comparison
from mixlogit_align.alignment.data.batches import Collator, TokenizedComparison
from mixlogit_align.alignment.data.schema import Message
from mixlogit_align.alignment.tokenization import Cuts, content_hash, tokenize
from mixlogit_align.errors import InvalidInputError
from tests.alignment.tokenizers import chatml, llama_like

POLICIES = ("keep_end", "keep_start", "paper")


@pytest.fixture(scope="module")
def byte_tokenizer():
    return hf.build_tokenizer([], 258)


@pytest.fixture(scope="module")
def llama():
    return llama_like()


def comparison(prompt, *responses: str, **other) -> Comparison:
    return Comparison(
        **{"prompt": prompt, "responses": responses, "choice": 0, "pair_id": 7, "split": "train", **other}
    )


def one(tokenizer, row, *, source=None, **config):
    rows, report = tokenize([row], tokenizer, TokenizationConfig(**config), source=source)
    return rows[0], report


def text(tokenizer, ids):
    return tokenizer.decode(ids)


# --- keep_end, keep_start --------------------------------------------------------------------------


@pytest.mark.parametrize("truncation", [*POLICIES, "refuse"])
def test_what_fits_is_left_alone(byte_tokenizer, truncation):
    row, report = one(
        byte_tokenizer,
        comparison("0123456789", "ab", "cde"),
        max_length=14,
        max_prompt_length=2,
        truncation=truncation,
        source="hh",
    )
    assert [text(byte_tokenizer, ids) for ids in row.input_ids] == [
        "0123456789ab<|endoftext|>",
        "0123456789cde<|endoftext|>",
    ]
    assert row.prompt_length == 10
    assert (report.prompts.cut, report.responses.cut, report.ends_lost) == (0, 0, 0)
    assert (report.prompts.longest, report.responses.longest) == (10, 4)


@pytest.mark.parametrize(("truncation", "kept"), [("keep_end", "56789"), ("keep_start", "01234")])
def test_a_prompt_loses_what_is_needed_and_no_more(byte_tokenizer, truncation, kept):
    row, report = one(
        byte_tokenizer, comparison("0123456789", "ab", "cde"), max_length=9, max_prompt_length=2, truncation=truncation
    )
    assert text(byte_tokenizer, row.input_ids[1]) == f"{kept}cde<|endoftext|>"
    assert text(byte_tokenizer, row.input_ids[0]) == f"{kept}ab<|endoftext|>"
    assert (report.prompts.cut, report.prompts.tokens_cut, report.responses.cut) == (1, 5, 0)


def test_a_response_loses_its_end_when_the_prompt_is_down_to_its_share(byte_tokenizer):
    row, report = one(byte_tokenizer, comparison("0123456789", "ab", "cdefgh"), max_length=7, max_prompt_length=3)
    assert [text(byte_tokenizer, ids) for ids in row.input_ids] == ["789ab<|endoftext|>", "789cdef"]
    assert (report.prompts.cut, report.prompts.tokens_cut) == (1, 7)
    assert (report.responses.texts, report.responses.cut, report.responses.tokens_cut, report.ends_lost) == (2, 1, 3, 1)


def test_a_short_prompt_leaves_its_room_to_the_response(byte_tokenizer):
    row, report = one(byte_tokenizer, comparison("01", "ab", "cdefghij"), max_length=10, max_prompt_length=5)
    assert text(byte_tokenizer, row.input_ids[1]) == "01cdefghij"
    assert (report.prompts.cut, report.responses.cut, report.responses.tokens_cut) == (0, 1, 1)


# --- paper -----------------------------------------------------------------------------------------

# With max_length 10 and max_prompt_length 4, by hand from the reference code's rule: if prompt + longest response > 10,
# the prompt is cut to 4; if it is still > 10, both responses are cut to 10 - 4 = 6. Lengths of responses count their
# end-of-text token.
REFERENCE = {
    "all fits": ((4, 6, 3), (4, 6, 3)),
    "a long prompt fits": ((7, 3, 2), (7, 3, 2)),
    "a prompt one too long": ((5, 6, 3), (4, 6, 3)),
    "a prompt loses more than is needed": ((7, 4, 2), (4, 4, 2)),
    "prompt and response": ((9, 9, 3), (4, 6, 3)),
    "both responses": ((9, 9, 8), (4, 6, 6)),
    "a response that would have had room": ((2, 10, 3), (2, 6, 3)),
    "a shorter response that fitted": ((2, 10, 7), (2, 6, 6)),
    "an empty response": ((9, 9, 1), (4, 6, 1)),
}


@pytest.mark.parametrize(("before", "after"), REFERENCE.values(), ids=REFERENCE)
@pytest.mark.parametrize(("source", "kept"), [("hh", slice(-4, None)), ("humour", slice(4))], ids=["hh", "other data"])
def test_paper_cuts_as_the_reference_code(byte_tokenizer, before, after, source, kept):
    prompt, *responses = before
    letters = "abcdefghi"[:prompt]
    row, report = one(
        byte_tokenizer,
        comparison(letters, *("x" * (length - 1) for length in responses)),
        max_length=10,
        max_prompt_length=4,
        truncation="paper",
        source=source,
    )
    assert (row.prompt_length, *(len(ids) - row.prompt_length for ids in row.input_ids)) == after
    assert text(byte_tokenizer, row.input_ids[0][: row.prompt_length]) == (
        letters[kept] if after[0] < prompt else letters
    )
    lost = [b - a for b, a in zip(before, after, strict=True)]
    assert (report.prompts.tokens_cut, report.responses.tokens_cut) == (lost[0], sum(lost[1:]))
    assert report.ends_lost == sum(loss > 0 for loss in lost[1:])
    assert report.prompts_keep == ("end" if source == "hh" else "start")


def test_paper_needs_to_know_the_data(byte_tokenizer):
    with pytest.raises(InvalidInputError, match=r"paper, for data of unknown source.*source=\"hh\""):
        one(byte_tokenizer, comparison("p", "a", "b"), truncation="paper")


# --- refuse ----------------------------------------------------------------------------------------


def test_refuse_says_what_does_not_fit_and_what_would(byte_tokenizer):
    rows = [
        comparison("p" * 30, "a", "b", pair_id=3),
        comparison("p", "a", "b", pair_id=4),
        comparison("p", "a" * 40, "b" * 35, pair_id=5),
        comparison("p" * 25, "a" * 20, "b", pair_id=6),
    ]
    config = TokenizationConfig(max_length=20, max_prompt_length=10, truncation="refuse")
    with pytest.raises(InvalidInputError) as error:
        tokenize(rows, byte_tokenizer, config)
    message = str(error.value)
    assert "3 of 4 comparisons that do not fit" in message
    assert "2 prompts (the longest of 30 tokens) and 3 responses (the longest of 41)" in message
    assert "pair_id 3, 5, 6;" in message
    fits = int(re.search(r"Try max_length=(\d+)", message)[1])
    assert fits == 46
    _, report = tokenize(rows, byte_tokenizer, replace(config, max_length=fits))
    assert (report.prompts.cut, report.responses.cut, report.prompts_keep) == (0, 0, None)
    with pytest.raises(InvalidInputError, match="1 of 4 comparisons"):
        tokenize(rows, byte_tokenizer, replace(config, max_length=fits - 1))


# --- every policy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("truncation", POLICIES)
def test_nothing_is_ever_emptied_or_too_long(byte_tokenizer, truncation):
    rows = [
        comparison("p" * prompt, "a" * a, "b" * b, pair_id=i)
        for i, (prompt, a, b) in enumerate(itertools.product((0, 1, 2, 5, 30), repeat=3))
    ]
    outcomes = [
        (length, *tokenize(rows, byte_tokenizer, config, source="hh"))
        for length, prompt in [(2, 1), (3, 1), (3, 2), (5, 3), (8, 2), (40, 39)]
        for config in [TokenizationConfig(max_length=length, max_prompt_length=prompt, truncation=truncation)]
    ]
    assert all(
        0 < row.prompt_length < len(ids) <= length
        for length, tokenized, _ in outcomes
        for row in tokenized
        for ids in row.input_ids
    )
    assert all(min(report.prompts.shortest_left, report.responses.shortest_left) == 1 for _, _, report in outcomes)
    assert [row.comparison for row in outcomes[0][1]] == rows


@pytest.mark.parametrize("truncation", POLICIES)
def test_the_end_of_text_is_kept_where_the_response_fits(byte_tokenizer, truncation):
    rows = [comparison("p" * 12, "a" * a, "b") for a in range(12)]
    tokenized, report = tokenize(
        rows, byte_tokenizer, TokenizationConfig(max_length=10, max_prompt_length=4, truncation=truncation), source="hh"
    )
    ended = [row.input_ids[0][-1] == byte_tokenizer.eos_token_id for row in tokenized]
    assert ended == [True] * 6 + [False] * 6
    assert (report.ends_lost, report.responses.texts) == (6, 24)


def test_empty_texts_are_counted(byte_tokenizer):
    row, report = one(byte_tokenizer, comparison("", "", "a"))
    assert text(byte_tokenizer, row.input_ids[0]) == "<|endoftext|><|endoftext|>"
    assert (report.prompts.empty, report.responses.empty, report.prompts.texts) == (1, 1, 1)


def test_a_special_token_in_a_text_is_only_letters(byte_tokenizer):
    row, report = one(byte_tokenizer, comparison("p", "<|endoftext|>", "b"))
    assert row.input_ids[0].count(byte_tokenizer.eos_token_id) == 1
    assert len(row.input_ids[0]) == 1 + len("<|endoftext|>") + 1
    assert report.spelled == 1
    assert "1 comparisons spell a special token, encoded as letters" in str(report)


def test_a_special_token_is_only_letters_also_where_the_tokenizer_would_not_split_it(llama):
    row, _ = one(llama, comparison("p <|eot_id|>", "a <|begin_of_text|>", "b"))
    assert [sum(token in llama.all_special_ids for token in ids) for ids in row.input_ids] == [2, 2]
    assert text(llama, row.input_ids[0]) == "<|begin_of_text|>p <|eot_id|>a <|begin_of_text|><|eot_id|>"


@pytest.mark.parametrize("vocab_size", [258, 300])
def test_every_text_round_trips(vocab_size):
    texts = ["plain words", "größer 東京 🎈", "tabs\tand\n\nlines "]
    tokenizer = hf.build_tokenizer(texts, vocab_size)
    assert len(tokenizer) <= vocab_size
    assert [tokenizer.decode(tokenizer(t).input_ids) for t in texts] == texts


def test_the_tokenizer_is_called_for_many_texts_at_once(byte_tokenizer):
    class Counting:
        calls = 0

        def __getattr__(self, name):
            return getattr(byte_tokenizer, name)

        def __call__(self, *args, **options):
            self.calls += 1
            return byte_tokenizer(*args, **options)

    tokenizer = Counting()
    rows, _ = tokenize([comparison("p", "a", "b")] * 3000, tokenizer, TokenizationConfig())
    assert len(rows) == 3000
    assert tokenizer.calls <= 5


# --- beginning of text -----------------------------------------------------------------------------


@pytest.mark.parametrize("truncation", POLICIES)
def test_the_tokenizers_own_beginning_of_text_survives_every_cut(llama, truncation):
    row, report = one(
        llama,
        comparison("0123456789", "ab", "cd"),
        max_length=8,
        max_prompt_length=4,
        truncation=truncation,
        source="hh",
    )
    kept = {"keep_end": "6789", "keep_start": "0123", "paper": "789"}[truncation]
    assert text(llama, row.input_ids[0]) == f"<|begin_of_text|>{kept}ab<|eot_id|>"
    assert row.prompt_length == 1 + len(kept)
    assert report.opening == "<|begin_of_text|>"
    assert report.prompts.longest == 11


def test_plain_texts_begin_as_the_tokenizer_itself_begins_them(llama):
    row, _ = one(llama, comparison("a lamp", "x", "y"))
    assert row.input_ids[0][: row.prompt_length] == llama("a lamp").input_ids


def test_beginning_of_text_can_be_left_out(llama):
    row, report = one(llama, comparison("0123456789", "ab", "cd"), bos="never")
    assert text(llama, row.input_ids[0]) == "0123456789ab<|eot_id|>"
    assert report.opening == ""


def test_a_tokenizer_whose_own_tokens_change_the_text_is_refused(byte_tokenizer):
    class Changing:
        def __getattr__(self, name):
            return getattr(byte_tokenizer, name)

        def __call__(self, texts, *, add_special_tokens, **options):
            upper = [one.upper() for one in texts]
            return byte_tokenizer(upper if add_special_tokens else texts, **options)

    with pytest.raises(InvalidInputError, match=r"tokenizer: got the ids .* Try tokenization.bos='never'"):
        tokenize([comparison("p", "a", "b")], Changing(), TokenizationConfig())


def test_an_empty_prompt_is_the_beginning_of_text(llama):
    row, report = one(llama, comparison("", "ab", "cd"))
    assert text(llama, row.input_ids[0]) == "<|begin_of_text|>ab<|eot_id|>"
    assert report.prompts.empty == 1


# --- conversations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("truncation", ["keep_end", "keep_start"])
def test_conversations_are_cut_by_the_same_policies(llama, truncation):
    row = comparison((Message("user", "What is a lamp?"),), "A lamp.", "Light")
    whole, uncut = one(llama, row)
    prompt = whole.input_ids[0][: whole.prompt_length]
    longest = max(map(len, whole.input_ids)) - whole.prompt_length
    cut, report = one(llama, row, max_length=7 + longest, max_prompt_length=7, truncation=truncation)
    expected = [prompt[0], *prompt[-6:]] if truncation == "keep_end" else prompt[:7]
    assert [ids[:7] for ids in cut.input_ids] == [expected, expected]
    assert [ids[7:] for ids in cut.input_ids] == [ids[whole.prompt_length :] for ids in whole.input_ids]
    assert (uncut.conversations, uncut.prompts.cut, uncut.turn_end) == (1, 0, "<|eot_id|>")
    assert (report.prompts.cut, report.prompts.tokens_cut, report.responses.cut) == (1, len(prompt) - 7, 0)


def test_texts_and_conversations_may_be_mixed(llama):
    chat = comparison((Message("user", "What is a lamp?"),), "A lamp.", "Light")
    plain = comparison("What is a lamp?", " A lamp.", " Light")
    rows, report = tokenize([plain, chat, plain], llama, TokenizationConfig())
    assert [row.input_ids for row in rows] == [one(llama, row)[0].input_ids for row in (plain, chat, plain)]
    assert (report.conversations, report.prompts.texts) == (1, 3)


def test_without_conversations_no_template_is_asked_for():
    _, report = one(chatml(None), comparison("p", "a", "b"))
    assert (report.conversations, report.turn_end) == (0, None)


# --- report ----------------------------------------------------------------------------------------


def test_cuts_are_counted_by_hand():
    cuts = Cuts.of([10, 20, 30, 40, 5], [10, 15, 10, 10, 1], empty=2)
    assert cuts == Cuts(
        texts=5,
        empty=2,
        tokens=105,
        longest=40,
        cut=4,
        tokens_cut=59,
        median_cut=5,
        ninth_decile_cut=30,
        largest_cut=30,
        shortest_left=1,
    )


def test_the_report_is_json_and_a_sentence(byte_tokenizer):
    _, report = one(byte_tokenizer, comparison("0123456789", "ab", "cdefgh"), max_length=7, max_prompt_length=3)
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()
    assert report.as_dict()["prompts"]["tokens_cut"] == 7
    assert str(report) == (
        "truncation keep_end to 7 tokens (prompts 3), prompts keep their end. Prompts: 1 of 1 cut (7 of 10 tokens; "
        "median 7, at most 7), the longest of 10 tokens, 0 empty. Responses: 1 of 2 cut (3 of 10 tokens; median 3, "
        "at most 3), the longest of 7 tokens, 0 empty; 1 lost the token that ends them. None was emptied."
    )


def test_no_comparisons_are_no_error(byte_tokenizer):
    rows, report = tokenize([], byte_tokenizer, TokenizationConfig())
    assert (rows, report.prompts.texts, report.responses.longest) == ([], 0, 0)


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 64, "max_prompt_length": 64}, "no response is emptied"),
        ({"max_prompt_length": 0}, "max_prompt_length: got 0; expected 1 or more"),
        ({"chat_date": "26 Jul 2024"}, "a date as in 2024-07-26"),
    ],
    ids=["no room for a response", "no room for a prompt", "not a date"],
)
def test_settings_that_cannot_serve_are_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        TokenizationConfig(**settings)


def test_a_prompt_must_have_room_beside_the_beginning_of_text(llama):
    with pytest.raises(InvalidInputError, match=r"more than the 1 tokens.*max_prompt_length=2"):
        one(llama, comparison("p", "a", "b"), max_prompt_length=1)


def test_a_tokenizer_without_an_end_of_text_is_refused():
    tokenizer = chatml()
    tokenizer.eos_token = None
    with pytest.raises(InvalidInputError, match=r'no end-of-text token.*"eos_token" in tokenizer_config.json'):
        one(tokenizer, comparison("p", "a", "b"))


def test_conversations_without_a_template_are_refused(byte_tokenizer):
    with pytest.raises(InvalidInputError, match="a tokenizer without a chat template"):
        one(byte_tokenizer, comparison((Message("user", "a?"),), "a", "b"))


# --- content hash ----------------------------------------------------------------------------------


def hashed() -> list[TokenizedComparison]:
    return [
        TokenizedComparison(comparison=comparison("p", "a", "b"), input_ids=([1, 2, 300], [1, 4]), prompt_length=1),
        TokenizedComparison(
            comparison=comparison("q", "a", "b", "c", choice=2, pair_id=8, weight=2.5),
            input_ids=([5, 6, 7], [5, 6, 70_000], [5, 6, 8]),
            prompt_length=2,
        ),
    ]


def test_the_hash_is_of_these_bytes():
    integers = [[7, 0, 1, 2, 3, 2, 1, 2, 300, 1, 4], [8, 2, 2, 3, 3, 3, 3, 5, 6, 7, 5, 6, 70_000, 5, 6, 8]]
    content = b"".join(
        struct.pack(f"<{len(row)}qd", *row, weight) for row, weight in zip(integers, (1.0, 2.5), strict=True)
    )
    assert content_hash(hashed()) == hashlib.sha256(content).hexdigest()
    assert content_hash(hashed()) == "36b908eb252ea814a122308a3fdcc1119345ef558eefd00ee0535b43cc8e099b"


CHANGES = {
    "a token": {"input_ids": ([1, 2, 301], [1, 4])},
    "a token moved to the other response": {"input_ids": ([1, 2], [300, 1, 4])},
    "the prompt's length": {"prompt_length": 2},
    "the choice": {"comparison": comparison("p", "a", "b", choice=1)},
    "the weight": {"comparison": comparison("p", "a", "b", weight=1.0000001)},
    "the pair's name": {"comparison": comparison("p", "a", "b", pair_id=9)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_change_changes_the_hash(change):
    first, second = hashed()
    assert content_hash([replace(first, **change), second]) != content_hash([first, second])


def test_the_order_is_hashed_and_what_training_does_not_see_is_not():
    first, second = hashed()
    assert content_hash([second, first]) != content_hash([first, second])
    scored = replace(first, reference_logps=(-1.0, -2.0), comparison=comparison("other words", "c", "d"))
    assert content_hash([scored, second]) == content_hash([first, second])


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
