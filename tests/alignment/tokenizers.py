"""Small tokenizers with the ways of well-known ones: their special tokens, beginning-of-text and chat templates."""

from __future__ import annotations

import string

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mixlogit_align.alignment import hf

LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] | trim + eos_token }}{% endif %}"
    "{% endfor %}"
)
TEXTS = ["user\n\n\nassistant\n\n\nsystem\n", "What is a lamp? A lamp gives light to the room."]


def llama_like(template: str | None = LLAMA) -> PreTrainedTokenizerFast:
    """Puts a beginning-of-text token before every text and keeps new lines together, as Llama 3 does."""
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = _chatting(special, template)
    tokenizer.bos_token, tokenizer.eos_token = "<|begin_of_text|>", "<|eot_id|>"
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[^\s\p{L}]+|[^\r\n\p{L}]?\p{L}+|\s*[\r\n]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", tokenizer.bos_token_id)]
    )
    return tokenizer


def chatml(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Puts nothing before a text; its template ends a turn with <|im_end|> and a new line."""
    tokenizer = _chatting(["<|im_start|>", "<|im_end|>"], template)
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def mistral_like() -> PreTrainedTokenizerFast:
    """Marks the beginning of a text with a space, as SentencePiece does; its template ends an answer with </s>."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    alphabet = sorted(set(string.printable) | set("ößü東京🎈"))
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=MISTRAL
    )


def _chatting(special: list[str], template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = hf.build_tokenizer(TEXTS, 300)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.split_special_tokens = False
    tokenizer.chat_template = template
    return tokenizer
