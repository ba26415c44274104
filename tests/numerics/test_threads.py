"""Chunks side by side: as one thread would do them, and torch's threads as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from mixlogit_align.numerics.threads import in_threads, own_threads


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_are_in_the_order_of_the_items(threads: int) -> None:
    assert in_threads(lambda x: x * x, range(7)) == [0, 1, 4, 9, 16, 25, 36]
    assert in_threads(lambda x: x, []) == []
    assert torch.get_num_threads() == threads


def test_each_of_our_threads_has_one_of_torch(threads: int) -> None:
    together = threading.Barrier(threads, timeout=30.0)

    def work(_: int) -> tuple[int, int]:
        together.wait()  # so that no thread does two
        return threading.get_ident(), torch.get_num_threads()

    found = in_threads(work, range(threads))
    assert len({ident for ident, _ in found}) == threads
    assert {count for _, count in found} == {1}


def test_torch_has_one_thread_for_as_long_as_we_have_ours(threads: int) -> None:
    with own_threads():
        with own_threads():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
        in_threads(lambda x: x, range(5))
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads


def test_an_error_reaches_the_caller_and_leaves_threads_as_they_were(threads: int) -> None:
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda x: 1 // x, [2, 1, 0, 3])
    assert torch.get_num_threads() == threads


def test_work_within_work_is_done(threads: int) -> None:
    assert in_threads(lambda x: sum(in_threads(lambda y: x * y, range(4))), range(4)) == [0, 6, 12, 18]
    assert torch.get_num_threads() == threads
