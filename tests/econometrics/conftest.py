from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

VALIDATION = Path(__file__).resolve().parents[2] / "validation"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a script of validation/, whose siblings lie beside it."""

    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(VALIDATION)
        return sys.modules[name] if name in sys.modules else importlib.import_module(name)

    return load
