"""Policies and tokenizers of transformers: built small from sizes, loaded, saved. Only this module imports it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from mixlogit_align.alignment.config import ModelConfig, NewModel
from mixlogit_align.errors import InvalidInputError, explain

PAD, END = "<|pad|>", "<|endoftext|>"


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; every text round-trips, whatever its language.

    Parameters
    ----------
    texts : iterable of str
    vocab_size : int
        At least 258: bytes, padding and end of text, without any merge. A text that spells a special
        token is encoded letter by letter, so that no response can end itself.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, bos_token=END, split_special_tokens=True
    )


def build_policy(config: NewModel, tokenizer: PreTrainedTokenizerFast, seed: int) -> GPTNeoXForCausalLM:
    """A GPT-NeoX with random float32 weights fixed by ``seed``; the caller's generator is left alone."""
    sizes = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=4 * config.hidden_size,
        max_position_embeddings=config.max_positions,
        use_cache=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPTNeoXForCausalLM(sizes)


def load(config: ModelConfig, texts: Iterable[str], seed: int) -> tuple[nn.Module, Any]:
    """The policy in float32 and its tokenizer that ``config`` describes.

    Parameters
    ----------
    config : ModelConfig
    texts : iterable of str
        A new model's tokenizer is trained on them; a pretrained one does not read them.
    seed : int
        Fixes a new model's weights.

    Raises
    ------
    InvalidInputError
        When a pretrained model's logits are not its head applied to its hidden states, which
        `mixlogit_align.alignment.sequence_logprobs` relies on.
    """
    if isinstance(config, NewModel):
        new = build_tokenizer(texts, config.vocab_size)
        return build_policy(config, new, seed), new
    with _without_bars():
        tokenizer = AutoTokenizer.from_pretrained(config.path)
        policy = AutoModelForCausalLM.from_pretrained(config.path, dtype=torch.float32)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    _check_projection(policy.eval(), config.path)
    return policy, tokenizer


def save(policy: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write policy and tokenizer as a Hugging Face folder."""
    with _without_bars():
        policy.save_pretrained(folder)  # type: ignore[operator]
        tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers' progress bars out of the run's own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@torch.no_grad()
def _check_projection(policy: Any, name: str) -> None:
    ids = torch.arange(4)[None]
    hidden = policy.base_model(input_ids=ids).last_hidden_state
    if not torch.allclose(policy.get_output_embeddings()(hidden), policy(input_ids=ids).logits, rtol=1e-4, atol=1e-4):
        raise InvalidInputError(
            explain(
                f"policy {name}",
                got="logits that its head does not give from its hidden states",
                expected="a model without scaling or capping of logits",
                hint="GPT-NeoX, Llama or another plain causal model",
            )
        )
