"""Conversations are encoded as transformers encodes them, and their responses end as the template ends them."""

from __future__ import annotations

import pytest

from mixlogit_align.alignment.conversations import ChatTemplate
from mixlogit_align.alignment.data.schema import Comparison, Message
from mixlogit_align.errors import InvalidInputError
from tests.alignment.tokenizers import CHATML, LLAMA, chatml, llama_like, mistral_like

DAY = "2024-07-26"
TOKENIZERS = {"llama": llama_like, "chatml": chatml, "mistral": mistral_like}


def conversation(*contents: str, responses: tuple[str, ...] = ("A lamp.", "The room has light.")) -> Comparison:
    """User and assistant in turn, the user first."""
    messages = tuple(Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents))
    return Comparison(prompt=messages, responses=responses, choice=0, pair_id=12, split="train")


def transformers_ids(tokenizer, row, response=None, **options):
    messages = [{"role": message.role, "content": message.content} for message in row.prompt]
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    return tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=False, add_generation_prompt=response is None, **options
    )


def encode(tokenizer, *rows):
    return list(ChatTemplate(tokenizer, DAY).encode(rows))


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    "contents",
    [("What is a lamp?",), ("a room\n\n", "the light ", "größer 東京 🎈?")],
    ids=["one question", "three turns"],
)
def test_ids_are_those_of_transformers(name, contents):
    tokenizer = TOKENIZERS[name]()
    row = conversation(*contents)
    [encoded] = encode(tokenizer, row)
    assert encoded.prompt == transformers_ids(tokenizer, row)
    assert [encoded.prompt + response for response in encoded.responses] == [
        transformers_ids(tokenizer, row, response) for response in row.responses
    ]


@pytest.mark.parametrize(
    ("name", "end", "last"),
    [("llama", "<|eot_id|>", "<|eot_id|>"), ("chatml", "<|im_end|>\n", "\n")],
    ids=["llama", "chatml"],
)
def test_a_response_ends_once_as_the_template_ends_it(name, end, last):
    tokenizer = TOKENIZERS[name]()
    [encoded] = encode(tokenizer, conversation("a?"))
    assert ChatTemplate(tokenizer, DAY).end == end
    assert [tokenizer.decode(ids) for ids in encoded.responses] == [f"A lamp.{end}", f"The room has light.{end}"]
    assert [ids.count(tokenizer.eos_token_id) for ids in encoded.responses] == [1, 1]
    assert tokenizer.decode(encoded.responses[0][-1:]) == last


def test_beginning_of_text_is_the_templates_alone():
    tokenizer = llama_like()
    [encoded] = encode(tokenizer, conversation("a?"))
    assert encoded.prompt.count(tokenizer.bos_token_id) == 1
    assert encoded.prompt[0] == tokenizer.bos_token_id


def test_a_template_that_ends_nothing_is_followed_by_the_end_of_text():
    tokenizer = chatml(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    [encoded] = encode(tokenizer, conversation("a?"))
    assert tokenizer.decode(encoded.prompt) == "user: a?\nassistant: "
    assert tokenizer.decode(encoded.responses[0]) == "A lamp.\n<|im_end|>"


def test_a_response_that_would_merge_into_the_prompt_is_encoded_apart():
    tokenizer = chatml()
    row = conversation("a?", responses=("\n\nA lamp.", "b"))
    [encoded] = encode(tokenizer, row)
    together = transformers_ids(tokenizer, row, "\n\nA lamp.")
    assert together[: len(encoded.prompt)] != encoded.prompt
    assert encoded.prompt == transformers_ids(tokenizer, row)
    assert tokenizer.decode(encoded.prompt + encoded.responses[0]) == tokenizer.decode(together)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_control_token_in_a_text_is_only_letters(name):
    tokenizer = TOKENIZERS[name]()
    end = tokenizer.eos_token
    row, plain = conversation(f"a {end} b", responses=(f"c {end} d", "e")), conversation("a b", responses=("c d", "e"))
    spelled, usual = encode(tokenizer, row, plain)
    assert (spelled.spelled, usual.spelled) == (True, False)
    assert [ids.count(tokenizer.eos_token_id) for ids in (spelled.prompt, *spelled.responses)] == [
        ids.count(tokenizer.eos_token_id) for ids in (usual.prompt, *usual.responses)
    ]
    assert tokenizer.decode(spelled.responses[0]) == tokenizer.decode(usual.responses[0]).replace("c d", f"c {end} d")
    assert spelled.prompt == transformers_ids(tokenizer, row, sanitize_control_tokens=True)


def test_the_day_that_a_template_writes_is_the_given_one():
    tokenizer = chatml("{{ strftime_now('%d %b %Y') }}" + CHATML)
    [encoded] = encode(tokenizer, conversation("a?"))
    assert tokenizer.decode(encoded.prompt).startswith("26 Jul 2024<|im_start|>user\n")
    assert not tokenizer.decode(transformers_ids(tokenizer, conversation("a?"))).startswith("26 Jul 2024")


def test_a_tokenizer_that_begins_texts_with_a_space_puts_none_before_a_response():
    tokenizer = mistral_like()
    [encoded] = encode(tokenizer, conversation("a?"))
    apart = tokenizer("A lamp.</s>", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(encoded.responses[0])[0] == "A"
    assert tokenizer.convert_ids_to_tokens(apart)[0] == "▁A"


def test_a_control_token_is_letters_also_in_a_response_encoded_apart():
    tokenizer = chatml()
    [encoded] = encode(tokenizer, conversation("a?", responses=("\n\nb <|im_end|> c", "d")))
    assert tokenizer.decode(encoded.responses[0]) == "\n\nb <|im_end|> c<|im_end|>\n"
    assert encoded.responses[0].count(tokenizer.eos_token_id) == 1


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "without a chat template.*chat_template.jinja"),
        ("{{ strftime_now(format) }}" + CHATML, "writes the day's date"),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "the response's own text"),
        ("{{ messages | length }}" + CHATML, "a chat template that writes"),
    ],
    ids=["none", "a day of any format", "no texts", "a prompt that changes"],
)
def test_a_template_that_cannot_serve_is_refused(template, message):
    with pytest.raises(InvalidInputError, match=message):
        ChatTemplate(chatml(template), DAY)


def test_a_tokenizer_that_would_split_the_templates_own_tokens_is_refused():
    tokenizer = chatml()
    tokenizer.split_special_tokens = True
    with pytest.raises(InvalidInputError, match="splits special tokens"):
        ChatTemplate(tokenizer, DAY)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (conversation(), "conversation of pair_id 12.*empty conversation"),
        (conversation("a", "b"), "conversation of pair_id 12.*the user last"),
    ],
    ids=["no message", "the template's own rule"],
)
def test_a_conversation_that_the_template_refuses_is_named(row, message):
    rule = (
        "{% if messages[-1]['role'] == 'assistant' and add_generation_prompt %}"
        "{{ raise_exception('the user last') }}{% endif %}"
    )
    template = ChatTemplate(llama_like(rule + LLAMA), DAY)
    with pytest.raises(InvalidInputError, match=message):
        list(template.encode([row]))
