"""Chunks of work side by side, in threads of our own with one torch thread each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

# Threads of our own that stand in for torch's; 0 where torch has its own.
_OWN: ContextVar[int] = ContextVar("threads of our own", default=0)


@contextmanager
def own_threads() -> Iterator[None]:
    """One torch thread, and for chunks as many of our own as torch had.

    Operations on chunks are too small to be split: torch's threads then wait for each other more than they work, and
    where another process holds a core, most of the time.
    """
    threads = torch.get_num_threads()
    if _OWN.get() or threads == 1:
        yield
        return
    token = _OWN.set(threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _OWN.reset(token)


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``[work(item) for item in items]``, side by side.

    Parameters
    ----------
    work : callable
        Of tensors on the CPU, each call by itself.
    items : sequence

    Returns
    -------
    list
        In the order of the items, as one thread would make it.
    """
    with own_threads():
        threads = min(_OWN.get(), len(items))
        if threads < 2:
            return [work(item) for item in items]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, items))
