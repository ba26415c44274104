"""Fixtures for every test: the shared data, fixed seeds, no network, and modest threads."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

# Before any import that reads them: nothing may reach for a hub, open a window or fork worker threads.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; a test that asks for it is skipped, or fails, where there is none."""
    named = os.environ.get("MIXLOGIT_DATA")
    if named and Path(named).is_dir():
        return Path(named).resolve()
    reason = f"MIXLOGIT_DATA: got {named!r}; expected the folder of the real data sets"
    if os.environ.get("MIXLOGIT_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def reproducible() -> Iterator[None]:
    """Every test starts from the same seeds and leaves the global state of torch and pyro as it was."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - some peers draw from the global generator
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    assert torch.get_default_dtype() == dtype, "a test changed the default dtype and did not put it back"
    if "pyro" in sys.modules:
        sys.modules["pyro"].clear_param_store()
