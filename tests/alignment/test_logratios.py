"""Sequence log-probabilities against the full softmax, and what must not change them."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from mixlogit_align.alignment import SequenceLogProbs, sequence_logprobs
from mixlogit_align.errors import InvalidInputError


def neox(vocab_size: int, hidden_size: int, layers: int, intermediate_size: int) -> GPTNeoXForCausalLM:
    sizes = {"num_hidden_layers": layers, "num_attention_heads": 2, "max_position_embeddings": 32}
    config = GPTNeoXConfig(vocab_size=vocab_size, hidden_size=hidden_size, intermediate_size=intermediate_size, **sizes)
    return GPTNeoXForCausalLM(config).eval()


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    model = neox(vocab_size=29, hidden_size=16, layers=2, intermediate_size=32)
    # weights of a fresh model are so small that every token looks alike
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    return model


@pytest.fixture
def sequences():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(29, (5, 12), generator=generator)
    mask = torch.zeros(5, 12, dtype=torch.bool)
    for row, (start, end) in enumerate([(1, 12), (4, 9), (11, 12), (3, 4), (6, 6)]):
        mask[row, start:end] = True
    return ids, mask


def full_softmax(policy, ids, mask):
    logps = policy(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
    token = logps.gather(-1, ids[:, 1:, None])[..., 0]
    return (token * mask[:, 1:]).double().sum(1)


@pytest.mark.parametrize("chunk_size", [1, 7, 4096])
def test_against_the_full_softmax_in_value_and_gradient(policy, sequences, chunk_size):
    ids, mask = sequences
    parameters = list(policy.parameters())
    got = sequence_logprobs(policy, ids, mask, chunk_size=chunk_size)
    expected = full_softmax(policy, ids, mask)
    # sums of up to 11 float32 terms of size 10
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    weights = torch.arange(1.0, 6.0)
    for mine, theirs in zip(
        torch.autograd.grad((got * weights).sum(), parameters),
        torch.autograd.grad((expected * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_no_response_token_no_log_probability(policy, sequences):
    assert sequence_logprobs(policy, *sequences)[4].item() == 0.0


def test_padding_on_the_right_changes_nothing(policy, sequences):
    ids, mask = sequences
    padded = torch.cat([ids, torch.zeros(5, 6, dtype=torch.int64)], 1)
    wide = torch.cat([mask, torch.zeros(5, 6, dtype=torch.bool)], 1)
    torch.testing.assert_close(
        sequence_logprobs(policy, padded, wide), sequence_logprobs(policy, ids, mask), rtol=1e-5, atol=1e-4
    )


def test_candidates_come_back_as_sets(policy, sequences):
    ids, mask = sequences
    sets = SequenceLogProbs(policy)(ids[:4].view(2, 2, 12), mask[:4].view(2, 2, 12))
    torch.testing.assert_close(sets, sequence_logprobs(policy, ids[:4], mask[:4]).view(2, 2), rtol=1e-5, atol=1e-4)


def test_the_softmax_is_float32_and_its_sum_float64_under_a_bfloat16_policy(policy, sequences):
    ids, mask = sequences
    half = GPTNeoXForCausalLM(policy.config).to(torch.bfloat16)
    half.load_state_dict(policy.state_dict())
    got = sequence_logprobs(half, ids, mask)
    assert got.dtype == torch.float64
    # bfloat16 has 8 bits: logits of size 10 are off by up to 0.05 each, and 11 of them are added
    torch.testing.assert_close(got, sequence_logprobs(policy, ids, mask), rtol=0.1, atol=2.0)


def test_a_response_needs_a_token_before_it(policy, sequences):
    ids, mask = sequences
    mask[0, 0] = True
    with pytest.raises(InvalidInputError, match="starts at the first token"):
        sequence_logprobs(policy, ids, mask)


def test_mask_and_ids_have_one_shape(policy, sequences):
    ids, mask = sequences
    with pytest.raises(InvalidInputError, match="response_mask: got shape"):
        sequence_logprobs(policy, ids, mask[:, :-1])


def test_a_policy_without_hidden_states_is_refused(sequences):
    with pytest.raises(InvalidInputError, match="hidden states"):
        sequence_logprobs(torch.nn.Linear(2, 2), *sequences)


class LargestFloat32(TorchDispatchMode):
    """The most numbers that a float32 tensor made meanwhile has had."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.largest = max(self.largest, tensor.numel())
        return made


def test_logits_are_never_all_in_float32_at_once(monkeypatch):
    """Nor their gradients: a vocabulary of 3,000 under a bfloat16 policy, in chunks of at most 40,000 logits."""
    half = neox(vocab_size=3000, hidden_size=8, layers=1, intermediate_size=8).to(torch.bfloat16)
    ids = torch.randint(3000, (6, 32))
    mask = torch.arange(32).expand(6, 32) >= 4
    expected = sequence_logprobs(half, ids, mask)
    monkeypatch.setattr("mixlogit_align.alignment.logratios.CHUNK_LOGITS", 40_000)
    with LargestFloat32() as seen:
        got = sequence_logprobs(half, ids, mask)
        got.sum().backward()
    assert seen.largest <= 13 * 3000 < 40_000 < 6 * 28 * 3000
    # chunks change the order of bfloat16 products alone
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
