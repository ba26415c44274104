"""With which software and on what machine: what a result is traced back to."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import torch

from mixlogit_align import __version__

PACKAGES = ("torch", "pyro-ppl", "transformers", "numpy", "scipy")


def versions() -> dict[str, str]:
    """This package, Python, and the packages that numbers may depend on: name -> version."""
    packages = {name: version(name) for name in PACKAGES}
    return {"mixlogit_align": __version__, "python": platform.python_version(), **packages}


def machine(device: str = "cpu") -> str:
    """The machine in a few words; with a GPU, where that is the device."""
    words = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    return f"{words}, {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else words
