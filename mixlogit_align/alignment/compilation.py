"""Transformer blocks compiled by torch: tried before training, timed apart from it, never left uncompiled in silence.

The blocks hold nearly all of a policy's work, and all run the same code: compiled one by one, one graph serves them
all, and sharding, recomputation of activations and the names of parameters stay what they are.
"""

from __future__ import annotations

import contextlib
import functools
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mixlogit_align.alignment.data.batches import Batch
from mixlogit_align.alignment.logratios import SequenceLogProbs
from mixlogit_align.alignment.parallel import World, transformer_blocks
from mixlogit_align.errors import InvalidInputError, explain

BACKEND = "inductor"


class CompileClock:
    """How long torch has compiled on this process since `compiling` was entered; its own warnings are kept back.

    Attributes
    ----------
    seconds : float
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._begun = 0.0
        self._quiet = contextlib.ExitStack()

    def start(self, *_: Any) -> None:
        """Torch begins to compile."""
        self._quiet.enter_context(_quiet())
        self._begun = time.perf_counter()

    def stop(self, *_: Any) -> None:
        """Torch goes on with what it compiled."""
        self.seconds += time.perf_counter() - self._begun
        self._quiet.close()


@contextlib.contextmanager
def compiling() -> Iterator[CompileClock]:
    """Run a clock of what torch compiles; what was compiled before and within is forgotten, in the whole process.

    Torch keeps a few graphs for each function, and gives up at one more. Those of another model must not be among them.
    """
    from torch._dynamo.callback import callback_handler
    from torch.fx.experimental import _config as symbols

    torch.compiler.reset()
    clock = CompileClock()
    callback_handler.register_start_callback(clock.start)
    callback_handler.register_end_callback(clock.stop)
    try:
        # Sizes that happen to be equal (16 sequences, 16 rotary dimensions) are not taken for one and the same.
        with symbols.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            yield clock
    finally:
        torch.compiler.reset()  # the callbacks, too


def require_compiler(world: World) -> None:
    """Compile a line, to see whether this machine can; on every process.

    Raises
    ------
    InvalidInputError
        Where it cannot, e.g. for want of a C++ compiler, or of Triton for a GPU.
    """
    with _on_all(world), _refused(), _quiet():
        torch.compile(_line, backend=BACKEND, fullgraph=True)(torch.ones(2, device=world.device))


def compile_blocks(model: SequenceLogProbs) -> None:
    """Let every transformer block of a model be compiled when it is first run, in place.

    Before activations are recomputed and the model is sharded, so that both stay outside of what is compiled. Sizes
    are symbols, so that one graph serves all lengths; a pass that keeps gradients, one that does not, and either of a
    single sequence have graphs of their own. Code that does not go into one graph is refused, not run as it is.

    Raises
    ------
    InvalidInputError
        When the model has no blocks; and from a block, when it cannot be compiled.
    """
    blocks = transformer_blocks(model)
    if not blocks:
        raise InvalidInputError(
            explain("compile", got="true for a model without blocks", expected="transformer blocks in a list",
                    hint="`compile: false`")
        )  # fmt: skip
    with _refused(), _quiet():
        run = torch.compile(_call, backend=BACKEND, fullgraph=True, dynamic=True)
    for block in blocks:
        block.forward = functools.partial(_compiled, run, block.forward)


def try_compiled(model: SequenceLogProbs, batch: Batch, world: World, *, limit: float, training: bool) -> None:
    """Compile what scoring and training need, and compare log-probabilities with those of the blocks as they are.

    Parameters
    ----------
    model : SequenceLogProbs
        With `compile_blocks` and its weights, sharded or not; its gradients are empty, and are afterwards.
    batch : Batch
        A few rows, the same on every process.
    world : World
    limit : float
        Nats that a response's log-probability may differ by.
    training : bool
        Whether a backward pass is needed.

    Raises
    ------
    InvalidInputError
        When a block cannot be compiled, or does not give what it gives uncompiled; on every process.
    """
    with _on_all(world), _refused():
        with torch.no_grad():
            with torch.compiler.set_stance("force_eager"):
                plain = model(batch.input_ids, batch.response_mask)
            _compare(model(batch.input_ids, batch.response_mask), plain, limit)
        if training:
            found = model(batch.input_ids, batch.response_mask)
            found.sum().backward()
            model.zero_grad(set_to_none=True)
            _compare(found.detach(), plain, limit)


def _compare(found: Tensor, plain: Tensor, limit: float) -> None:
    largest = torch.where(plain.isfinite(), (found - plain).abs(), 0.0).max().item()
    if not largest <= limit:
        raise InvalidInputError(
            explain(
                "compile",
                got=f"true, which changes log-probabilities by up to {largest:.3g} nats",
                expected=f"what the blocks give as they are, within {limit:.3g}",
                hint="`compile: false`",
            )
        )


def _line(x: Tensor) -> Tensor:
    return x.sin() + 1


def _call(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What is compiled: one function for all blocks of a model."""
    return forward(*args, **kwargs)


def _compiled(run: Callable[..., Any], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _refused():
        return run(forward, *args, **kwargs)


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Say in the words of this package what torch cannot compile."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        said = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        raise InvalidInputError(
            explain(
                "compile",
                got=f"true, where torch cannot ({type(error).__name__}: {said.rstrip('.')})",
                expected="blocks that torch compiles whole, and what it compiles with: "
                "a C++ compiler for CPUs, Triton for GPUs",
                hint="`compile: false`",
            )
        ) from error


@contextlib.contextmanager
def _on_all(world: World) -> Iterator[None]:
    """What is refused on one process is refused on all."""
    met: InvalidInputError | None = None
    try:
        yield
    except InvalidInputError as error:
        met = error
    world.agree(met)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's own deprecations, and what it looks at while it compiles, are nothing to a user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.")
        yield
