"""Processes that train together: shares of rows, collectives that fail on all, blocks, precision."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from mixlogit_align.alignment.parallel import World, join, recompute_activations, resolved, transformer_blocks
from mixlogit_align.errors import InvalidInputError, MixlogitError

from .processes import ProcessDied, apart, on_ranks


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_are_the_rows_in_order(size):
    shares = [list(World(rank=rank, size=size).share(range(7))) for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def collectives() -> dict[str, object]:
    with join("cpu", "float32") as world:
        mine = torch.tensor([[float(row), 10.0 * row] for row in world.share(range(3))]).reshape(-1, 2)
        met: dict[str, object] = {
            "gathered": world.gather(mine, 3)[:, 1].tolist(),
            "sum": world.add_up(torch.tensor(float(world.rank))).item(),
            "told": world.tell(world.rank),
            "found": world.on_main(lambda: f"by {world.rank}"),
        }
        for name, error in (("one", ValueError("bad row")), ("none", None)):
            try:
                world.agree(error if world.rank == 1 else None)
                met[name] = "nothing"
            except (MixlogitError, ValueError) as raised:
                met[name] = f"{type(raised).__name__}: {raised}"
        return met


def test_collectives_say_the_same_everywhere():
    first, second = on_ranks(2, collectives)
    same = {"gathered": [0.0, 10.0, 20.0], "sum": 1.0, "told": 0, "found": "by 0", "none": "nothing"}
    assert first == same | {"one": "MixlogitError: process 1 of 2 failed: ValueError: bad row"}
    assert second == same | {"one": "ValueError: bad row"}


# The group's threads have 2000 tensors to let go of, for each of which they need the interpreter; the main thread parts
# with that only where it waits, so that they are not done when it comes to its end. Something keeps the group.
LEAVING = """
import sys
import torch
import torch.distributed as dist
from mixlogit_align.alignment.parallel import join
with join("cpu", "bfloat16"):
    group = dist.group.WORLD
    many = [torch.ones(1) for _ in range(2000)]
    sys.setswitchinterval(100)
    group.allreduce_coalesced(many, dist.AllreduceCoalescedOptions()).wait()
    del many
"""


def test_a_process_with_a_group_comes_to_its_end():
    ended = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")


def fall() -> None:
    os.abort()


def test_a_process_that_is_aborted_says_where():
    with pytest.raises(ProcessDied, match=r"(?s)signal 6 .* in fall"):
        apart(fall)


def test_alone_there_is_nothing_to_wait_for():
    world = World()
    world.agree(None)
    rows = torch.ones(2, 3)
    assert world.gather(rows, 2) is rows
    with pytest.raises(KeyError):
        world.on_main(lambda: {}["absent"])


class Model(nn.Module):
    """An embedding, two blocks with lists of their own, a small list beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.layers = nn.ModuleList(nn.Sequential(nn.ModuleList([nn.Linear(8, 8)])[0], nn.Tanh()) for _ in range(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states = self.embedding(ids)
        for layer in self.layers:
            states = layer(states)
        return states


def test_blocks_are_the_list_that_holds_most():
    model = Model()
    assert transformer_blocks(model) == list(model.layers)
    assert transformer_blocks(nn.Linear(2, 2)) == []


def test_recomputed_activations_are_the_same_and_not_stored():
    plain, saving = Model(), Model()
    saving.load_state_dict(plain.state_dict())
    recompute_activations(saving)
    kept: dict[str, list[int]] = {"plain": [], "saving": []}
    for name, model in (("plain", plain), ("saving", saving)):

        def keep(tensor: torch.Tensor, name: str = name) -> torch.Tensor:
            kept[name].append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = model(torch.arange(6)).square().sum()
        total.backward()
    assert torch.equal(plain.embedding.weight.grad, saving.embedding.weight.grad)
    assert sum(kept["saving"]) < sum(kept["plain"])


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [("auto", "cpu", "float32"), ("auto", "cuda:1", "bfloat16"), ("float32", "cuda", "float32")],
)
def test_precision_follows_the_device_where_it_is_left_open(precision, device, expected):
    assert resolved(precision, device) == expected


@pytest.mark.parametrize("device", ["no-device", "meta:x", "cuda:77"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(InvalidInputError, match=rf"device: got '{device}'.*Try `device: cpu`"), join(device, "float32"):
        pass
