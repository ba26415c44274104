"""The import picture, read from the syntax trees; and what stays unloaded until it is used."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mixlogit_align"
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).rglob("*.py"))

# A room is a subpackage or a module at the top of the package; "" is the package root itself.
BELOW = {
    "errors": set(),
    "numerics": set(),
    "distributions": {"numerics"},
    "inference": {"numerics"},
    "econometrics": {"numerics", "distributions", "inference"},
    "recovery": {"distributions", "econometrics"},
    "alignment": {"numerics", "distributions", "inference"},
    "report": {"numerics", "distributions", "inference", "econometrics", "alignment"},
}
TOP = {"", "__main__", "cli", "demo"}  # these may import every room
FREE = {"errors"}  # every room may import these

# What a room may import from outside the standard library, where design narrows it.
LIBRARIES = {
    "errors": set(),
    "numerics": {"torch", "numpy"},
    "distributions": {"torch", "numpy", "scipy", "pyro"},
    "inference": {"torch", "numpy", "scipy", "joblib"},
}
EXTRA_LIBRARIES = {"mixlogit_align/numerics/draws.py": {"scipy"}}  # quasi-random sequences

PEERS = {"xlogit", "mpmath", "biogeme", "jaxlogit", "choice_learn", "pylogit", "pytest", "hypothesis"}
INSIDE_FUNCTIONS = {"pandas", "arviz", "joblib", "matplotlib", "xarray", "datasets"}
ONLY_IN = {
    "transformers": {"mixlogit_align/alignment/hf.py", "mixlogit_align/alignment/hf_reward.py"},  # policies; rewards
    "trl": {"mixlogit_align/alignment/trl.py"},
}

FILE_MODULES = {"pathlib", "os", "io", "json", "pickle", "shutil", "tempfile", "csv", "sqlite3"}
FILE_CALLS = {"open", "save", "load", "savetxt", "loadtxt", "savez", "to_csv", "read_csv"}


@dataclass(frozen=True)
class Import:
    """One imported dotted name, where it stands, and whether it runs when its file is imported."""

    name: str
    line: int
    at_import: bool

    @property
    def library(self) -> str:
        """The top-level package."""
        return self.name.partition(".")[0]


def imports_of(source: str, file: str) -> Iterator[Import]:
    """Every import of a file: plain, relative, and `import_module` with a literal name."""
    package = file.removesuffix("/__init__.py").split("/") if file.endswith("__init__.py") else file.split("/")[:-1]

    def visit(node: ast.AST, at_import: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_import)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(f"{module}.{alias.name}", node.lineno, at_import)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith(("import_module", "__import__"))
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield Import(str(node.args[0].value), node.lineno, at_import)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                yield from visit(child, False)
            for child in node.orelse:
                yield from visit(child, at_import)
            return
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_import and not inside)

    return visit(ast.parse(source), True)


def room_of(file: str) -> str:
    """The room that a file of the package belongs to."""
    first = file.split("/")[1].removesuffix(".py")
    return "" if first == "__init__" else first


def rooms() -> set[str]:
    """Every room there is."""
    return {room_of(file) for file in FILES}


def offences(source: str, file: str) -> list[str]:
    """Everything in a file that runs against the picture, as 'line: what'."""
    room = room_of(file)
    found = []
    for item in imports_of(source, file):

        def bad(why: str, item: Import = item) -> None:
            found.append(f"{file}:{item.line}: imports {item.name}: {why}")

        if item.library == PACKAGE:
            parts = item.name.split(".")
            target = parts[1] if len(parts) > 1 else ""
            known = set(BELOW) | TOP | FREE
            if room in TOP or target in FREE or target == room or item.name == f"{PACKAGE}.__version__":
                continue
            if target not in known - {""}:
                bad("inside the package, import from the room that defines the name")
            elif target not in BELOW[room]:
                bad(f"{room} may import {sorted(BELOW[room] | FREE)}")
            continue
        if item.library in sys.stdlib_module_names:
            if room == "numerics" and item.library in FILE_MODULES:
                bad("numerics touches no files")
            continue
        allowed = LIBRARIES.get(room)
        if allowed is not None and item.library not in allowed | EXTRA_LIBRARIES.get(file, set()):
            bad(f"{room} may import {sorted(allowed)} and the standard library")
        if item.library in PEERS:
            bad("peers and test tools stay in validation/, tests/ and tutorials/")
        if item.library in INSIDE_FUNCTIONS and item.at_import:
            bad("import it inside the function that needs it")
        if file not in ONLY_IN.get(item.library, {file}):
            bad(f"only {' and '.join(sorted(ONLY_IN[item.library]))} may import it")
        if room == "numerics" and item.name.startswith("torch.nn") and "functional" not in item.name:
            bad("numerics has no nn.Module")
    if room == "numerics":
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in {"torch.nn.Module", "nn.Module"}:
                found.append(f"{file}:{node.lineno}: numerics has no nn.Module")
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in FILE_CALLS:
                found.append(f"{file}:{node.lineno}: numerics touches no files")
    return found


@pytest.mark.parametrize("file", FILES)
def test_file_keeps_to_the_import_picture(file: str) -> None:
    assert offences((ROOT / file).read_text(encoding="utf-8"), file) == []


@pytest.mark.parametrize("room", sorted(rooms()))
def test_room_has_its_place_in_the_picture(room: str) -> None:
    assert room in set(BELOW) | TOP


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("numerics/a.py", "import pyro"),
        ("numerics/a.py", "from torch import nn\nclass A(nn.Module): pass"),
        ("numerics/a.py", "from torch.nn import Module"),
        ("numerics/a.py", "from pathlib import Path"),
        ("numerics/a.py", "def f(p):\n    return open(p)"),
        ("numerics/a.py", "import scipy.special"),
        ("numerics/a.py", "from ..distributions import mixing"),
        ("numerics/a.py", "from mixlogit_align import MixedLogit"),
        ("distributions/a.py", "import mixlogit_align.inference.optimize"),
        ("distributions/a.py", "def f():\n    import pandas"),
        ("inference/a.py", "from mixlogit_align import distributions"),
        ("inference/a.py", "import pyro.distributions as dist"),
        ("econometrics/a.py", "from mixlogit_align.alignment import mixdpo_loss"),
        ("econometrics/a.py", "import pandas as pd"),
        ("econometrics/a.py", "import importlib\nimportlib.import_module('mixlogit_align.alignment')"),
        ("econometrics/sub/a.py", "from ...alignment import losses"),
        ("econometrics/__init__.py", "from ..alignment import losses"),
        ("alignment/a.py", "def f():\n    from mixlogit_align.econometrics import ChoiceData"),
        ("alignment/a.py", "def f():\n    import transformers"),
        ("alignment/a.py", "from mixlogit_align import cli"),
        ("report/a.py", "def f():\n    import xlogit"),
        ("cli.py", "from transformers import AutoTokenizer"),
        ("demo.py", "import mpmath"),
        ("errors.py", "import torch"),
    ],
)
def test_checker_sees_an_offence(file: str, source: str) -> None:
    assert len(offences(source, f"{PACKAGE}/{file}")) >= 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("numerics/a.py", "import math\nimport torch.nn.functional as F\nfrom .special import log_mean"),
        ("numerics/draws.py", "from scipy.stats import qmc"),
        ("distributions/a.py", "import pyro.distributions\nfrom mixlogit_align.numerics import special"),
        ("inference/a.py", "from mixlogit_align.errors import ConvergenceError\nfrom scipy import optimize"),
        ("econometrics/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas"),
        ("econometrics/a.py", "def f():\n    import arviz\nfrom mixlogit_align import __version__"),
        ("alignment/hf.py", "import transformers"),
        ("report/a.py", "from mixlogit_align.alignment import losses\nfrom ..econometrics import model"),
        ("cli.py", "def main():\n    from mixlogit_align import report, demo, MixedLogit"),
    ],
)
def test_checker_lets_pass(file: str, source: str) -> None:
    assert offences(source, f"{PACKAGE}/{file}") == []


@pytest.mark.parametrize("file", FILES)
def test_module_imports(file: str) -> None:
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert importlib.import_module(name).__name__ == name


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith("__init__.py")])
def test_public_names_resolve(file: str) -> None:
    module = importlib.import_module(file.removesuffix("/__init__.py").replace("/", "."))
    names = getattr(module, "__all__", [])
    assert [name for name in names if not hasattr(module, name)] == []
    assert len(set(names)) == len(names)


HEAVY = {"transformers", "datasets", "pandas", "arviz", "matplotlib", "scipy", "sklearn", "pyro", "torch"}


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("import mixlogit_align", id="import"),
        pytest.param("import mixlogit_align; dir(mixlogit_align); mixlogit_align.__version__", id="look around"),
        pytest.param(
            """
            import contextlib, io
            from mixlogit_align.cli import main
            sys.argv = ["mixlogit-align", "--help"]
            with contextlib.redirect_stdout(io.StringIO()) as out:
                try:
                    code = main()
                except SystemExit as stop:
                    code = stop.code
            assert not code, code
            assert "demo" in out.getvalue(), out.getvalue()
            """,
            id="--help",
        ),
    ],
)
def test_loads_nothing_heavy(program: str) -> None:
    script = f"import json, sys\n{textwrap.dedent(program)}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert PACKAGE in loaded
    assert loaded & HEAVY == set()


def test_console_script_points_at_a_function() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, _, function = scripts["mixlogit-align"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_version_is_the_distribution_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert importlib.import_module(PACKAGE).__version__ == project["version"]
