"""Reward models of transformers, as scores for a judge of win rates."""

# B texts of a batch, T tokens.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from mixlogit_align.alignment.hf import resolve
from mixlogit_align.errors import InvalidInputError, explain


class RewardModel:
    """A sequence classifier with one output; calling it gives rewards. For `RewardJudge`.

    A conversation is written by the tokenizer's chat template where it has one; otherwise prompt and response are
    encoded as a pair, which puts a separator between them where the model was trained with one.

    Parameters
    ----------
    path : str
        A Hugging Face folder, or a hub name.
    device : str
    dtype : torch.dtype

    Raises
    ------
    InvalidInputError
        If there is no such model, it lacks weights, or it does not have exactly one output.
    """

    def __init__(self, path: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        folder = resolve(path)
        try:
            num_outputs = AutoConfig.from_pretrained(folder, trust_remote_code=False).num_labels
            if num_outputs != 1:
                raise _unfit(path, f"{num_outputs} outputs")
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder, trust_remote_code=False, dtype=dtype, output_loading_info=True
            )
        except InvalidInputError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise _unfit(path, f"{type(error).__name__}: {error}") from error
        if info["missing_keys"]:
            raise _unfit(path, f"no weights for {', '.join(sorted(info['missing_keys'])[:3])}")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model.config.pad_token_id = self.tokenizer.pad_token_id  # by it the model finds the last token of a text
        self.tokenizer.padding_side = "right"
        self.model, self.device = model.eval().to(device), device
        self.max_tokens: int | None = getattr(model.config, "max_position_embeddings", None)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        """Rewards of (prompt, response), one a pair; NaN for a text longer than the model takes.

        Nothing is cut: a reward for part of a response is a reward for another response.
        """
        ids = [self._ids(prompt, response) for prompt, response in texts]
        fitting = [i for i, row in enumerate(ids) if self.max_tokens is None or len(row) <= self.max_tokens]
        rewards = [math.nan] * len(ids)
        if fitting:
            batch = self.tokenizer.pad({"input_ids": [ids[i] for i in fitting]}, return_tensors="pt").to(self.device)
            for i, reward in zip(fitting, self.model(**batch).logits[:, 0].double().tolist(), strict=True):
                rewards[i] = reward
        return rewards

    def _ids(self, prompt: str, response: str) -> list[int]:
        if self.tokenizer.chat_template is None:
            encoded: Any = self.tokenizer(prompt, response)
        else:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            text = self.tokenizer.apply_chat_template(turns, tokenize=False)
            encoded = self.tokenizer(text, add_special_tokens=False)
        return list(encoded["input_ids"])


def _unfit(path: str, got: str) -> InvalidInputError:
    return InvalidInputError(
        explain(
            f"reward model {path!r}",
            got=got,
            expected="a sequence classifier with one output, its weights and its tokenizer",
            hint="a reward model of the Bradley-Terry kind",
        )
    )
