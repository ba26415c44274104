"""Responses of a policy to held-out prompts: batched, seeded, kept as they come."""

# B prompts of a batch, T tokens.

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mixlogit_align.alignment.checks import counts, not_negative, positive, require
from mixlogit_align.alignment.config import PretrainedModel, TokenizationConfig
from mixlogit_align.alignment.data.schema import Comparison, Prompt, transcript
from mixlogit_align.alignment.progress import Progress
from mixlogit_align.alignment.tokenization import TruncationReport, tokenize
from mixlogit_align.alignment.winrate.cache import AnswerCache, fingerprint
from mixlogit_align.alignment.winrate.pairs import Outputs


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How responses are drawn.

    Parameters
    ----------
    temperature : float
        0 takes the likeliest token each time.
    top_p : float
        The smallest set of tokens with this probability is drawn from; 1 for all.
    max_new_tokens : int or None
        Most tokens of a response; None leaves it what ``max_prompt_length`` leaves of ``max_length`` in the
        tokenization.
    batch_size : int
        Prompts answered at a time. Draws go by seed and batch, so another size gives other responses.
    seed : int
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        not_negative(temperature=self.temperature)
        counts(batch_size=self.batch_size)
        positive(top_p=self.top_p)
        require(self.top_p <= 1.0, "top_p", self.top_p, "at most 1")
        if self.max_new_tokens is not None:
            counts(max_new_tokens=self.max_new_tokens)


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Responses, and what is to know of them.

    Parameters
    ----------
    outputs : Outputs
    settings : dict
        What the responses depend on: fingerprints of policy and tokenizer, tokenization, `GenerationConfig`, device.
    num_unfinished : int
        Responses that reached ``max_new_tokens`` without an end.
    truncation : TruncationReport
        What was cut of the prompts before they were answered; a judge sees them whole.
    """

    outputs: Outputs
    settings: dict[str, Any]
    num_unfinished: int
    truncation: TruncationReport


def sample_prompts(rows: Sequence[Comparison], sample: int, seed: int) -> list[Comparison]:
    """Draw prompts, each once, whatever the number of comparisons it has.

    Parameters
    ----------
    rows : sequence of Comparison
        Of a held-out split.
    sample : int
        How many.
    seed : int
        The same rows and seed, the same prompts.

    Returns
    -------
    list of Comparison
        The first comparison of each prompt drawn, in the order of ``rows``.

    Raises
    ------
    InvalidInputError
        If there are fewer prompts.
    """
    first = {prompt_text(row.prompt): row for row in reversed(rows)}
    every = list({prompt_text(row.prompt): None for row in rows})
    require(
        0 < sample <= len(every),
        "sample",
        sample,
        f"between 1 and the {len(every)} distinct prompts of the split",
        f"--sample {len(every)}",
    )
    drawn = set(random.Random(seed).sample(range(len(every)), sample))
    return [first[prompt] for i, prompt in enumerate(every) if i in drawn]


def prompt_text(prompt: Prompt) -> str:
    """A prompt as a judge reads it: a conversation as a transcript."""
    return prompt if isinstance(prompt, str) else transcript(prompt)


def generate(
    policy: str | Path,
    rows: Sequence[Comparison],
    tokenization: TokenizationConfig,
    config: GenerationConfig | None = None,
    *,
    name: str | None = None,
    source: str | None = None,
    device: str = "cpu",
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Generated:
    """Have a policy answer prompts, in float32.

    Parameters
    ----------
    policy : path
        A Hugging Face folder, or a hub name, with its tokenizer.
    rows : sequence of Comparison
        Their prompts, each once, encoded as for training; their responses are not looked at, but where they are long
        the truncation policy cuts the prompt as it does in training.
    tokenization : TokenizationConfig
    config : GenerationConfig, optional
    name : str, optional
        By default the policy's path.
    source : str, optional
        Of the data; the truncation policy "paper" goes by it.
    device : str
    cache : path, optional
        A file that keeps each batch as soon as it is answered, by all that it depends on: a rerun, also one after an
        interruption, generates only what is missing.
    progress : Progress, optional
        Called after each batch, in prompts.

    Returns
    -------
    Generated

    Raises
    ------
    InvalidInputError
        When the policy cannot be read, or has too few positions; as `tokenize` and `Outputs`.
    """
    from mixlogit_align.alignment import hf

    config = config or GenerationConfig()
    room = config.max_new_tokens or tokenization.max_length - tokenization.max_prompt_length
    model_config = PretrainedModel(path=str(policy))
    tokenizer = hf.load_tokenizer(model_config, [])
    tokenized, truncation = tokenize(rows, tokenizer, tokenization, source=source)
    prompts = [row.input_ids[0][: row.prompt_length] for row in tokenized]
    model: Any = hf.skeleton(model_config, tokenizer, 0)
    hf.require_positions(model, max(map(len, prompts)) + room)
    hf.load_weights(model, model_config, torch.device(device), torch.float32)
    settings = {
        "policy": hf.fingerprint(model),
        "tokenizer": hf.tokenizer_fingerprint(tokenizer),
        "generation": {**dataclasses.asdict(config), "max_new_tokens": room},
        "device": torch.device(device).type,
    }
    ends = _ends(tokenizer, model, truncation.turn_end)
    responses: list[str] = []
    num_unfinished = 0
    with AnswerCache(cache) as answers:
        for start in range(0, len(prompts), config.batch_size):
            batch = prompts[start : start + config.batch_size]
            key = fingerprint({**settings, "start": start, "prompts": batch, "ends": sorted(ends)})
            answer = answers.get(key)
            if answer is None:
                found = _respond(model.eval(), batch, tokenizer.pad_token_id, ends, room, config, start)
                answer = {
                    "responses": [tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in found],
                    "unfinished": sum(not finished for _, finished in found),
                }
                answers.put(key, answer)
            responses += answer["responses"]
            num_unfinished += answer["unfinished"]
            if progress is not None:
                progress("generate", len(responses), len(prompts), {})
    return Generated(
        outputs=Outputs(
            name=name or str(policy), prompts=[prompt_text(row.prompt) for row in rows], responses=responses
        ),
        settings=settings | {"tokenization": dataclasses.asdict(tokenization)},
        num_unfinished=num_unfinished,
        truncation=truncation,
    )


def _ends(tokenizer: Any, model: Any, turn_end: str | None) -> set[int]:
    """Tokens that end a response: the end of text, those that the model names, and one that begins a turn's end."""
    named = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    if turn_end:
        first = tokenizer(turn_end, add_special_tokens=False, split_special_tokens=False)["input_ids"][0]
        ends |= {first} & set(tokenizer.added_tokens_decoder)
    return ends


@torch.inference_mode()
def _respond(
    model: Any, batch: list[list[int]], pad: int, ends: set[int], room: int, config: GenerationConfig, start: int
) -> list[tuple[list[int], bool]]:
    """Token ids of each response without what ends it, and whether it has ended."""
    longest = max(map(len, batch))
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in batch], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch], device=device)
    drawn = config.temperature > 0.0
    how = {"temperature": config.temperature, "top_p": config.top_p, "top_k": 0} if drawn else {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(fingerprint({"seed": config.seed, "start": start})[:15], 16))
        found = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=drawn, max_new_tokens=room, use_cache=True,
            pad_token_id=pad, eos_token_id=sorted(ends), **how,
        )  # fmt: skip
    responses = []
    for row in found[:, longest:].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), None)
        responses.append((row[:end], end is not None))
    return responses
