"""Which split a prompt belongs to, and keeping a part of one.

Where data have no split of their own, a prompt is held out by its opening: the first message of the user, for a
transcript the text up to the assistant's first turn, else the whole text, white space aside. So all turns of one
conversation and all conversations with one opening are on one side. The opening's hash, with the seed, decides: what is
held out stays so when rows are added, moved or left out.

Where data have a split of their own, it is kept; a prompt that stands in both is a bad row of the training part, and
training prompts that share no more than their opening with the other side are counted.

Some sources are split otherwise, and say so: simulated annotators (by comparison), humour (by response), and choices
among a few prompts with ``hold_out: people`` (by annotator, whose id is hashed in the opening's place).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

from mixlogit_align.alignment.data.schema import TURN, Prompt, Split

T = TypeVar("T")
SPLIT_NAMES: dict[str, Split] = {"train": "train", "eval": "eval", "test": "eval", "validation": "eval"}


def opening(prompt: Prompt) -> str:
    """What a prompt begins with, see above."""
    if isinstance(prompt, str):
        text = prompt.split(TURN)[0]
    else:
        text = next((message.content for message in prompt if message.role == "user"), "")
    return " ".join(text.split())


def held_out(prompt: Prompt, eval_fraction: float, seed: int) -> Split:
    """The split of a prompt: a share ``eval_fraction`` of all openings is evaluated on."""
    digest = hashlib.blake2b(f"{seed}:{opening(prompt)}".encode(errors="surrogatepass"), digest_size=8).digest()
    return "eval" if int.from_bytes(digest) < eval_fraction * 2**64 else "train"


def keep_random(rows: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """A random part of ``rows`` of size ``limit``, in their order; all of them when ``limit`` is None."""
    if limit is None or limit >= len(rows):
        return list(rows)
    kept = sorted(random.Random(seed).sample(range(len(rows)), limit))
    return [rows[i] for i in kept]
