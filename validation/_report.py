"""A dated report of a study: JSON for machines, Markdown for readers, and an exit status."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
REPORTS = Path(__file__).resolve().parent / "reports"
SOURCES = ("mixlogit_align", "validation", "tests", ":!validation/reports")


def data_folder(name: str) -> Path:
    """The folder of a real data set below MIXLOGIT_DATA; without it the study ends here, told as skipped."""
    named = os.environ.get("MIXLOGIT_DATA")
    if named is not None and (Path(named) / name).is_dir():
        return Path(named) / name
    message = f"MIXLOGIT_DATA: got {named!r}; expected a folder that holds {name}/. Try naming where the data lie"
    required = os.environ.get("MIXLOGIT_REQUIRE_DATA") == "1"
    print(message if required else f"skipped. {message}", file=sys.stderr)
    sys.exit(2 if required else 0)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "from source"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.machine())


def provenance(*packages: str) -> dict[str, Any]:
    """When, from which sources, with what, on what and how: the head of every report.

    ``dirty`` says that the sources or tests differ from the commit; reports themselves do not count.
    """
    changes = _git("status", "--porcelain", "--", *SOURCES)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("mixlogit_align", "torch", *packages)},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "load_at_start": load,
        },
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
    }


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown_table(columns: list[str], rows: list[list[Any]]) -> str:
    """Rows as a Markdown table; floats to four digits."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(x).replace("|", "\\|") for x in line) + " |" for line in lines)


class Report:
    """Claims, each checked, and tables; ``write`` makes NAME.json and NAME.md.

    Parameters
    ----------
    name, title, intro : str
        File name, heading and first paragraph.
    *packages : str
        Whose versions matter beyond mixlogit_align's and torch's.
    """

    def __init__(self, name: str, title: str, intro: str, *packages: str) -> None:
        self.name, self.title, self.intro = name, title, intro
        self.provenance = provenance(*packages)
        self.claims: list[dict[str, Any]] = []
        self.tables: dict[str, dict[str, Any]] = {}
        self._body: list[str] = []

    @property
    def passed(self) -> bool:
        return all(claim["passed"] for claim in self.claims)

    def section(self, heading: str, text: str = "") -> None:
        self._body.append(f"## {heading}" + (f"\n\n{text}" if text else ""))

    def text(self, text: str) -> None:
        self._body.append(text)

    def claim(self, about: str, claim: str, measured: Any, passed: bool) -> bool:
        """Record one checked statement; the report fails if any fails."""
        self.claims.append({"about": about, "claim": claim, "measured": measured, "passed": bool(passed)})
        shown = ", ".join(map(_cell, measured)) if isinstance(measured, list | tuple) else _cell(measured)
        self._body.append(f"- {'holds' if passed else '**FAILS**'} ({about}): {claim} — measured: {shown}")
        return bool(passed)

    def table(self, key: str, caption: str, columns: list[str], rows: list[list[Any]]) -> None:
        self.tables[key] = {"caption": caption, "columns": columns, "rows": rows}
        self._body.append(f"**{caption}**\n\n{markdown_table(columns, rows)}")

    def write(self, folder: Path = REPORTS) -> Path:
        """Write both files and return the Markdown's path."""
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"study": self.name, "title": self.title, "passed": self.passed, **self.provenance}
        record = facts | {"claims": self.claims, "tables": self.tables}
        (folder / f"{self.name}.json").write_text(json.dumps(record, indent=1) + "\n")
        path = folder / f"{self.name}.md"
        path.write_text(self.markdown())
        return path

    def finish(self, folder: Path = REPORTS) -> int:
        """Write both files, print what they say, and return the exit status of the study."""
        path = self.write(folder)
        print(self.markdown())
        print(f"{'All claims hold' if self.passed else 'NOT all claims hold'}: {path}")
        return 0 if self.passed else 1

    def markdown(self) -> str:
        known, machine = self.provenance, self.provenance["machine"]
        failed = sum(not claim["passed"] for claim in self.claims)
        verdict = f"{len(self.claims)} claims checked, {failed} failed." if self.claims else ""
        sources = "with local changes" if known["dirty"] else "clean"
        head = [
            f"- date: {known['date']}",
            f"- commit: {known['commit']} ({sources})" if known["commit"] else "- commit: unknown",
            "- versions: " + ", ".join(f"{name} {number}" for name, number in known["versions"].items()),
            f"- machine: {machine['system']}, {machine['processor']}, {machine['cores']} cores, "
            f"{machine['torch_threads']} torch threads, load at start {_cell(machine['load_at_start'])}",
            *([f"- device: {machine['device']}"] if "device" in machine else []),
            f"- command: `{known['command']}`",
        ]
        body: list[str] = []
        for block in self._body:  # consecutive claims form one list
            joined = body and body[-1].startswith("- ") and block.startswith("- ")
            if joined:
                body[-1] += "\n" + block
            else:
                body.append(block)
        blocks = [f"# {self.title}", self.intro, verdict, "\n".join(head), *body]
        return "\n\n".join(filter(None, blocks)) + "\n"
