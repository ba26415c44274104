"""What the documents promise is there: files, commands, extras, examples; and nothing names one machine."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
GENERATED = ("demo_output/", "build/", "runs/", ".venv")  # written by the commands, so absent from a clone
RUN_FOLDER = {
    "config.yaml",
    "run.json",
    "data.json",
    "metrics.jsonl",
    "strength.json",
    "log_ratios.parquet",
    "report.html",
}
SUFFIXES = "py|md|toml|txt|yaml|yml|json|jsonl|html|ipynb|parquet|csv"


def read(name: str) -> str:
    """The text of a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def fences(text: str, language: str) -> list[str]:
    """The fenced blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """The back-ticked spans outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def named_paths(text: str) -> set[str]:
    """Relative links, and back-ticked words that look like a path or a file."""
    links = {link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link}
    words = {word for word in spans(text) if re.fullmatch(rf"[\w.-]+/[\w./-]*|[\w-]+\.(?:{SUFFIXES})|\.[\w.-]+", word)}
    return {path for path in (links | words) - RUN_FOLDER if not path.startswith(GENERATED)}


def named_commands(text: str, program: str) -> set[str]:
    """Command lines that begin with a program, in shell blocks and back-ticked spans."""
    lines = [line for block in fences(text, "(?:sh|bash|console)") for line in block.splitlines()] + spans(text)
    commands = {line.partition("#")[0].removeprefix("$ ").strip() for line in lines}
    return {command for command in commands if command.split(" ")[0] == program and " " in command}


def cases(find: str, *arguments: str) -> list[tuple[str, str]]:
    """(document, thing it names) for every document, as parameters of a test."""
    finder = globals()[find]
    return [(name, thing) for name in DOCUMENTS for thing in sorted(finder(read(name), *arguments))]


@functools.cache
def tracked() -> list[str]:
    """The files of the repository, those about to be added included."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout, so there is no list of its files")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("document, path", cases("named_paths"))
def test_named_file_exists(document: str, path: str) -> None:
    assert (ROOT / path).exists(), f"{document} names {path}"


@pytest.mark.parametrize("document, command", cases("named_commands", "make"))
def test_named_target_exists(document: str, command: str) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", read("Makefile"), flags=re.MULTILINE))
    wanted = {word for word in shlex.split(command)[1:] if "=" not in word}
    assert wanted <= targets, f"{document} names {command}"


@pytest.mark.parametrize("document, command", cases("named_commands", "mixlogit-align"))
def test_named_subcommand_exists(document: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    subcommand = [] if words[1].startswith("-") else [words[1]]
    monkeypatch.setattr("sys.argv", ["mixlogit-align", *subcommand, "--help"])
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as stop:
        importlib.import_module("mixlogit_align.cli").main()
    assert not stop.value.code, f"{document} names {command}"
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert {option for option in options if option not in out.getvalue()} == set(), f"{document} names {command}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_extras_exist(document: str) -> None:
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    named = re.findall(r"(?:\.|mixlogit[_-]align)\[([\w,-]+)\]", read(document))
    assert {extra for group in named for extra in group.split(",")} <= set(extras)


@pytest.mark.parametrize("number, example", list(enumerate(fences(read("README.md"), "python"), 1)))
def test_readme_example_runs(number: int, example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    exec(compile(example, f"README.md, example {number}", "exec"), {"__name__": "example"})


COMMANDS_THAT_RUN = ("simulate", "fit")  # in order; the others need minutes or a run folder


def commands_to_run() -> list[list[str]]:
    """Words of the commands in shell blocks of the README that take no time."""
    lines = [
        shlex.split(line)
        for block in fences(read("README.md"), "sh")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [words[1:] for words in lines if words[0] == "mixlogit-align" and words[1] in COMMANDS_THAT_RUN]


def test_readme_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = importlib.import_module("mixlogit_align.cli").main
    monkeypatch.chdir(tmp_path)
    commands = commands_to_run()
    assert [words[0] for words in commands] == ["simulate", "fit", "fit"]
    assert [main(words) for words in commands] == [0, 0, 0]


def test_finders_find() -> None:
    """The tests above are generated, so an empty list would pass unseen."""
    text = "[a](x/y.md) `tests/` `run.py` `.ci/run` `beta * x` `build/a.html`\n```sh\n$ make demo  # hm\n```\n"
    assert named_paths(text) == {"x/y.md", "tests/", "run.py", ".ci/run"}
    assert named_commands(text, "make") == {"make demo"}
    assert fences("```python\na = 1\n```\n", "python") == ["a = 1\n"]
    readme = read("README.md")
    assert named_paths(readme)
    assert named_commands(readme, "make")
    assert named_commands(readme, "mixlogit-align")
    assert fences(readme, "python")


def test_no_notebook_has_outputs() -> None:
    cells = {
        f"{name}, cell {number}": cell
        for name in tracked()
        if name.endswith(".ipynb")
        for number, cell in enumerate(json.loads(read(name))["cells"])
        if cell["cell_type"] == "code"
    }
    assert [name for name, cell in cells.items() if cell["outputs"] or cell["execution_count"]] == []


def test_nothing_names_a_path_of_one_machine() -> None:
    machine = re.compile(r"(?<![\w.~-])/(?:work|tmp|root|home|Users)/")
    found = []
    for name in tracked():
        with contextlib.suppress(UnicodeDecodeError):
            lines = enumerate(read(name).splitlines(), 1)
            found += [f"{name}:{number}: {line.strip()[:80]}" for number, line in lines if machine.search(line)]
    assert found == []


def test_constraints_are_exact_pins() -> None:
    pins = [line for line in read("constraints.txt").splitlines() if not line.startswith("#")]
    assert pins[0].startswith("torch==")
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][\w.]*", pin)] == []


@pytest.mark.parametrize("block", fences((ROOT / "README.md").read_text(), "yaml"), ids=lambda block: block.split()[1])
def test_configurations_of_the_readme_are_valid(block: str, tmp_path: Path) -> None:
    from mixlogit_align.alignment import load_config

    file = tmp_path / "run.yaml"
    file.write_text(block)
    config = load_config(file)
    assert config.sft is not None
    assert config.preference is not None
