from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from mixlogit_align import cli

VALIDATION = Path(__file__).resolve().parents[2] / "validation"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a script of validation/, whose siblings lie beside it."""

    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(VALIDATION)
        return sys.modules[name] if name in sys.modules else importlib.import_module(name)

    return load


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[int, str, str]]:
    """Run a command line in an empty folder: its exit status and what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(line: str) -> tuple[int, str, str]:
        status = cli.main(shlex.split(line))
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call
