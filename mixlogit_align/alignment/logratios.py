"""Log-probabilities of responses under a policy, without holding all logits at once."""

# Shapes: R sequences, L tokens, V vocabulary.

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixlogit_align.alignment.data.batches import Collator, TokenizedComparison
from mixlogit_align.alignment.parallel import World
from mixlogit_align.errors import InvalidInputError, explain

CHUNK_LOGITS = 1 << 26


def sequence_logprobs(
    policy: nn.Module,
    input_ids: Tensor,
    response_mask: Tensor,
    attention_mask: Tensor | None = None,
    *,
    chunk_size: int | None = None,
) -> Tensor:
    """Sum of the log-probabilities of the response tokens of each sequence.

    ``log pi(y | x) = sum over response tokens t of log softmax(logits at t - 1)[token t]``, the softmax in
    float32 whatever the policy's dtype, the sum in float64: a response has hundreds of nats, of which a log-ratio
    difference leaves a tenth.

    Parameters
    ----------
    policy : nn.Module
        A causal language model with ``base_model`` (token ids to ``last_hidden_state``) and
        ``get_output_embeddings()`` (hidden states to logits), as those of transformers have.
    input_ids : Tensor
        (R, L) int64.
    response_mask : Tensor
        (R, L) bool; the first token of a sequence cannot be a response token.
    attention_mask : Tensor, optional
        (R, L), passed on to the policy. Not needed with padding on the right, which a causal model's
        earlier tokens never see.
    chunk_size : int, optional
        Response tokens that are projected on the vocabulary at a time; by default as many as have 256 MiB of float32
        logits. When they do not fit into one chunk, gradients recompute each chunk's logits instead of storing them.

    Returns
    -------
    Tensor
        (R,) float64; 0 for a sequence without response tokens.
    """
    return _summed(_token_logprobs, policy, input_ids, response_mask, attention_mask, chunk_size)


def sequence_entropies(
    policy: nn.Module,
    input_ids: Tensor,
    response_mask: Tensor,
    attention_mask: Tensor | None = None,
    *,
    chunk_size: int | None = None,
) -> Tensor:
    """Sum over the response tokens of the entropy of what the policy expected there, as a share of the largest.

    The largest is log V, so every token's share lies between 0, where the policy was sure, and 1.

    Parameters
    ----------
    policy, input_ids, response_mask, attention_mask, chunk_size
        See `sequence_logprobs`.

    Returns
    -------
    Tensor
        (R,) float64; 0 for a sequence without response tokens.
    """
    return _summed(_token_entropies, policy, input_ids, response_mask, attention_mask, chunk_size)


def _summed(
    of: Callable[[Any, Tensor, Tensor], Tensor],
    policy: nn.Module,
    input_ids: Tensor,
    response_mask: Tensor,
    attention_mask: Tensor | None,
    chunk_size: int | None,
) -> Tensor:
    """The sum over response tokens of ``of(head, states, targets)``."""
    if input_ids.shape != response_mask.shape or input_ids.ndim != 2:
        raise InvalidInputError(
            explain(
                "response_mask",
                got=f"shape {tuple(response_mask.shape)}",
                expected=f"the shape (R, L) of input_ids, {tuple(input_ids.shape)}",
                hint="one sequence a row",
            )
        )
    if bool(response_mask[:, 0].any()):
        raise InvalidInputError(
            explain(
                "response_mask",
                got="a response that starts at the first token",
                expected="at least one prompt token before it",
                hint="putting the end-of-text token in place of an empty prompt",
            )
        )
    hidden = _base(policy)(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    predicts = response_mask[:, 1:]
    states, targets = hidden[:, :-1][predicts], input_ids[:, 1:][predicts]
    head: Any = policy.get_output_embeddings()  # type: ignore[operator]
    chunk_size = chunk_size or max(CHUNK_LOGITS // head.weight.shape[0], 1)
    chunks = list(zip(states.split(chunk_size), targets.split(chunk_size), strict=True))
    if len(chunks) > 1 and torch.is_grad_enabled():
        values = [checkpoint(of, head, *chunk, use_reentrant=False) for chunk in chunks]
    else:
        values = [of(head, *chunk) for chunk in chunks]
    rows = predicts.nonzero()[:, 0]
    total = torch.zeros(len(input_ids), dtype=torch.float64, device=input_ids.device)
    return total.index_add(0, rows, torch.cat(values).double())


def _base(policy: nn.Module) -> Any:
    base = getattr(policy, "base_model", policy)
    if base is policy:
        raise InvalidInputError(
            explain(
                "policy",
                got=type(policy).__name__,
                expected="a language model whose `base_model` gives hidden states",
                hint="a causal language model of transformers",
            )
        )
    return base


def _token_logprobs(head: Any, states: Tensor, targets: Tensor) -> Tensor:
    logits = head(states).float()
    token: Tensor = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
    return token


def _token_entropies(head: Any, states: Tensor, targets: Tensor) -> Tensor:
    probs = head(states).float().softmax(-1)
    share: Tensor = torch.special.entr(probs).sum(-1) / math.log(probs.shape[-1])
    return share


class SequenceLogProbs(nn.Module):
    """A policy that maps candidate sets to log-probabilities, all candidates in one forward pass.

    The projection on the vocabulary happens inside ``forward``, so that a policy whose parameters are
    sharded can be wrapped as a whole.

    Parameters
    ----------
    policy : nn.Module
        See `sequence_logprobs`.
    chunk_size : int, optional
        See `sequence_logprobs`.
    """

    def __init__(self, policy: nn.Module, *, chunk_size: int | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.chunk_size = chunk_size

    def forward(self, input_ids: Tensor, response_mask: Tensor, *, entropy: bool = False) -> Tensor:
        """Log-probabilities, or `sequence_entropies`: (B, J) float64, of (B, J, L) sequences padded on the right."""
        measure = sequence_entropies if entropy else sequence_logprobs
        values = measure(self.policy, input_ids.flatten(0, 1), response_mask.flatten(0, 1), chunk_size=self.chunk_size)
        return values.view(input_ids.shape[:2]).clone()  # no view: FSDP2 hooks what is returned


@torch.no_grad()
def candidate_logprobs(
    model: SequenceLogProbs,
    rows: Sequence[TokenizedComparison],
    collator: Collator,
    *,
    batch_size: int,
    world: World | None = None,
    entropy: bool = False,
) -> Tensor:
    """Log-probabilities, or `sequence_entropies`, of every candidate, without gradient: (N, J) float64, 0 for none.

    Rows go through the model in order of length, which keeps padding small. Each process scores its share of every
    batch, and all of them get all values.
    """
    world = world or World()
    measured = {"entropy": True} if entropy else {}
    order = sorted(range(len(rows)), key=lambda i: max(map(len, rows[i].input_ids)))
    logps = torch.zeros(len(rows), max(len(row.input_ids) for row in rows), dtype=torch.float64, device=collator.device)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        # a sharded model runs on every process or on none
        mine = world.share(indices) or indices[:1]
        batch = collator([rows[i] for i in mine])
        values = model(batch.input_ids, batch.response_mask, **measured)
        if world.share(indices):
            logps[mine, : values.shape[1]] = values
    return world.add_up(logps)
