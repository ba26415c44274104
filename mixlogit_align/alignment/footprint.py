"""Memory and floating-point operations of a training step, counted from an architecture before any weight is loaded."""

# Letters: P parameters, W processes, R sequences that a process passes at a time, L tokens, V vocabulary, H hidden
# size.

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mixlogit_align.alignment.config import OptimConfig
from mixlogit_align.alignment.logratios import CHUNK_LOGITS
from mixlogit_align.alignment.parallel import transformer_blocks

FLOAT32 = 4  # bytes
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # not among those the counter knows
STATES = {"rmsprop": 1, "adamw": 2}  # numbers that an optimiser keeps of every parameter
# Arrays of a chunk's size that the projection on the vocabulary holds at once beside the logits as computed: their
# float32 copy, its exponentials, and a gradient.
LOGIT_COPIES = 3


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward pass of ``sequences`` of ``length`` tokens, with gradients to come.

    Parameters
    ----------
    model : str
        The class of the model.
    parameters, trained, largest_block, outside : int
        Numbers in all parameters, in those that are trained, in the largest transformer block, and outside of blocks.
    num_blocks, hidden_size, vocab_size : int
    sequences, length : int
    itemsize : int
        Bytes of a number as it is computed.
    saved_bytes : int
        What autograd keeps for the backward pass of everything below the head, parameters aside.
    flops : int
        Of everything below the head, a multiplication and an addition being two.
    """

    model: str
    parameters: int
    trained: int
    largest_block: int
    outside: int
    num_blocks: int
    hidden_size: int
    vocab_size: int
    sequences: int
    length: int
    itemsize: int
    saved_bytes: int
    flops: int

    def of(self, sequences: int) -> Pass:
        """The pass of another number of sequences, to which its bytes and operations are in proportion."""
        return replace(
            self,
            sequences=sequences,
            saved_bytes=self.saved_bytes * sequences // self.sequences,
            flops=self.flops * sequences // self.sequences,
        )

    @property
    def head_flops(self) -> int:
        """2 R L H V: of the projection of every token on the vocabulary."""
        return 2 * self.sequences * self.length * self.hidden_size * self.vocab_size

    def forward_flops(self) -> int:
        """Of a pass without gradients."""
        return self.flops + self.head_flops

    def training_flops(self, *, recomputed: bool) -> int:
        """Of a training step's pass: forward, as much again for what gradients pass through, and for what is trained.

        The head's logits are computed twice where they do not fit into one chunk, and with ``recomputed`` activations
        everything is.
        """
        chunked = self.sequences * self.length > CHUNK_LOGITS // self.vocab_size
        forward = self.forward_flops()
        trained = forward * self.trained // self.parameters
        return 2 * forward + trained + recomputed * self.flops + chunked * self.head_flops


@torch.no_grad()
def count_pass(model: Any, sequences: int, length: int, dtype: torch.dtype) -> Pass:
    """Count one forward pass through ``model`` with tensors that have sizes and no content.

    Saved bytes are those of the tensors that autograd packs (`torch.autograd.graph.saved_tensors_hooks`), operations
    those that `torch.utils.flop_counter` counts, both with the attention that a CPU takes. It keeps no L x L matrix, as
    a GPU's keeps none; its operations are counted as if it were not causal.

    Parameters
    ----------
    model : nn.Module
        A causal language model with its parameters on the meta device; it is unusable afterwards.
    sequences, length : int
        R and L.
    dtype : torch.dtype
        In which is computed.
    """
    parameters = list(model.parameters())
    blocks = [sum(p.numel() for p in block.parameters()) for block in transformer_blocks(model)]
    total = sum(p.numel() for p in parameters)
    head = model.get_output_embeddings().weight
    vocab_size, hidden_size = head.shape
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    kept: dict[int, Tensor] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fill(model, dtype)
        own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}

        def pack(tensor: Tensor) -> Tensor:
            if _storage(tensor) not in own:
                kept[_storage(tensor)] = tensor
            return tensor

        input_ids = torch.zeros(sequences, length, dtype=torch.long)
        counter = FlopCounterMode(display=False, custom_mapping={CPU_ATTENTION: _attention_flops})
        with torch.enable_grad(), counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            # held until the bytes are added up, so that no storage is counted under another's address
            state = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        saved_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        del state
    return Pass(
        model=type(model).__name__,
        parameters=total,
        trained=trained,
        largest_block=max(blocks, default=0),
        outside=total - sum(blocks),
        num_blocks=len(blocks),
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        sequences=sequences,
        length=length,
        itemsize=dtype.itemsize,
        saved_bytes=saved_bytes,
        flops=counter.get_total_flops(),
    )


def _fill(model: nn.Module, dtype: torch.dtype) -> None:
    """Give a model on the meta device parameters of no content that autograd treats as real; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    names = model.state_dict(keep_vars=True)
    for tensor in names.values():
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
    model.load_state_dict({name: made[id(tensor)] for name, tensor in names.items()}, assign=True)


def _attention_flops(query: Any, key: Any, value: Any, *others: Any, out_shape: Any, **options: Any) -> int:
    """Of attention, from the shapes of its arguments."""
    flops: int = sdpa_flop_count(query, key, value)
    return flops


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that one process needs at most in a training step.

    Parameters
    ----------
    parameters, gradients, optimizer : int
        Of this process's share.
    gathered : int
        Whole blocks and their gradients, where parameters are sharded or computed in another type.
    activations : int
        What the backward pass needs below the head.
    logits : int
        Of the chunk of tokens that is projected on the vocabulary.
    peak : int
        See `training_memory`.
    """

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    logits: int
    peak: int


def training_memory(
    counted: Pass,
    optim: OptimConfig,
    *,
    processes: int,
    stored: int,
    sharded: bool = False,
    accumulated: bool = False,
    recomputed: bool = False,
    together: bool = False,
    adapted: bool = False,
) -> Memory:
    """Memory of a training step on each process.

    With p bytes a stored and c bytes a computed number, s numbers of state (RMSprop 1, AdamW 2), B numbers in the
    largest block and O outside of blocks, of which T are trained:

        parameters   p P / W
        gradients    p T / W
        optimizer    s p T / W
        gathered     c (O + 2 B) for this block and the next, (c + 4) max(O, B) for gradients on their way
        activations  as counted; recomputed: c R L H for each block, and the activations of one
        logits       (c + 3 * 4) V for each token of a chunk, and twice the head's gradient where none is gathered
        peak         parameters + optimizer + the larger of
                     (a) what the backward pass begins with: gathered + activations + logits, and gradients where parts
                         of a batch are accumulated
                     (b) what the optimiser's step ends with: gradients, and as much again where it goes together

    Left out: what torch, the libraries of a device and a fragmented allocator take beside it (1 to 2 GiB on a GPU), and
    evaluation, which keeps no activations.

    Parameters
    ----------
    counted : Pass
        Of the sequences that one process passes at a time.
    optim : OptimConfig
    processes : int
        W.
    stored : int
        Bytes of a stored number.
    sharded : bool
        Whether FSDP2 gathers parameters.
    accumulated : bool
        Whether a batch is cut into parts.
    recomputed : bool
        Whether activations are.
    together : bool
        Whether the optimiser steps all parameters at once, as torch does on a GPU, instead of one by one.
    adapted : bool
        Whether adapters are trained, which every process has whole: their gradients and state are not shared.
    """
    trained = stored * counted.trained // (1 if adapted else processes)
    shares = {
        "parameters": stored * counted.parameters // processes,
        "gradients": trained,
        "optimizer": STATES[optim.name] * trained,
    }
    gathered = 0
    if sharded:
        largest = max(counted.outside, counted.largest_block)
        moving = (counted.itemsize + FLOAT32) * largest
        gathered = counted.itemsize * (counted.outside + 2 * counted.largest_block) + moving
    tokens = counted.sequences * counted.length
    activations = counted.saved_bytes
    if recomputed and counted.num_blocks:
        inputs = counted.num_blocks * tokens * counted.hidden_size * counted.itemsize
        activations = activations // counted.num_blocks + inputs
    chunk = min(tokens, max(CHUNK_LOGITS // counted.vocab_size, 1))
    logits = chunk * counted.vocab_size * (counted.itemsize + LOGIT_COPIES * FLOAT32)
    if not sharded and not adapted:
        logits += 2 * stored * counted.hidden_size * counted.vocab_size
    begin = gathered + activations + logits + accumulated * shares["gradients"]
    end = (1 + together) * shares["gradients"]
    return Memory(
        **shares,
        gathered=gathered,
        activations=activations,
        logits=logits,
        peak=shares["parameters"] + shares["optimizer"] + max(begin, end),
    )
