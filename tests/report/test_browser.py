"""The page in a real browser: quiet, without a network, on a phone, in both themes and on paper."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixlogit_align.report import write_report

from .browser import Browser, browser, find_browser
from .conftest import losses, recovery_row, write_preference_run, write_recovery, write_run
from .measures import write_evaluation, write_heterogeneity, write_winrate
from .test_files import SFT

PHONE, DESKTOP = 375, 1280
SHEET = 718  # pixels that A4 leaves between margins of 1 cm, at 96 to the inch

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium, e.g. Debian's package chromium")

# Elements that reach beyond the window and do not lie in a part that scrolls by itself.
OVERFLOWING = """
[...document.querySelectorAll('body *')]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, pre, svg'))
  .map(e => e.tagName + '.' + e.className)
"""
# Text that is smaller than this, in pixels as they are seen, that of pictures included.
SMALLEST = """
Math.min(...[...document.querySelectorAll('svg text')].filter(e => e.textContent.trim())
  .map(e => parseFloat(getComputedStyle(e).fontSize) * Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b)))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of every section that a page can have."""
    folder = tmp_path_factory.mktemp("page")
    failed = "failed: Local search could not find a higher log likelihood value"
    write_recovery(folder / "first_light.json", [recovery_row("lognormal, panel", xlogit_default_start=failed)])
    write_run(folder / "sft", SFT, losses("sft", [5.9534, 2.0, 0.6638]))
    for name, method, gain in (("dpo", "DPO", 0.0), ("gamma", "MixDPO gamma", 0.3)):
        run = write_preference_run(folder / name, method)
        write_evaluation(run, method, gain, against=None if name == "dpo" else "DPO")
    write_winrate(folder / "gamma", 0.8)
    write_heterogeneity(folder / "gamma")
    write_report([folder], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_browser()
    assert executable is not None
    with browser(executable, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_it_is_quiet_asks_for_nothing_and_fits(
    window: Browser, page: Path, width: int, scheme: str, tmp_path: Path
) -> None:
    window.open(page, width=width, scheme=scheme)
    asked = [event["request"]["url"] for event in window.happened("Network.requestWillBeSent")]
    assert asked == [page.resolve().as_uri()]
    assert window.happened("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded") == []
    assert window.value("document.documentElement.scrollWidth") == width
    assert window.value(OVERFLOWING) == []
    assert window.value("document.querySelectorAll('section').length") >= 10
    background = {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 27)"}[scheme]
    assert window.value("getComputedStyle(document.body).backgroundColor") == background
    window.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_are_drawn_in_the_colours_of_the_theme(window: Browser, page: Path) -> None:
    colors = []
    for scheme in ("light", "dark"):
        window.open(page, width=DESKTOP, scheme=scheme)
        colors.append(window.value("getComputedStyle(document.querySelector('svg text')).fill"))
    assert colors == ["rgb(27, 27, 27)", "rgb(232, 232, 230)"]


def test_letters_in_pictures_are_legible_on_a_phone(window: Browser, page: Path) -> None:
    """9 pixels are the least that browsers let a reader set."""
    window.open(page, width=PHONE)
    assert window.value(SMALLEST) >= 9.0


def test_wide_tables_scroll_by_themselves(window: Browser, page: Path) -> None:
    window.open(page, width=PHONE)
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    assert window.value(f"{wide}.length") > 0
    assert window.value(f"{wide}.every(e => getComputedStyle(e).overflowX === 'auto' && e.tabIndex === 0)")


def test_on_paper_nothing_is_cut_and_details_are_open(window: Browser, page: Path, tmp_path: Path) -> None:
    window.open(page, width=SHEET)
    window.ask("Emulation.setEmulatedMedia", media="print")
    try:
        assert window.value("document.documentElement.scrollWidth") <= SHEET
        reach = (
            "Math.max(...[...document.querySelectorAll('table, pre, svg')].map(e => e.getBoundingClientRect().right))"
        )
        assert window.value(reach) <= SHEET
        heights = window.value("[...document.querySelectorAll('section details pre')].map(e => e.offsetHeight)")
        assert len(heights) == 3
        assert min(heights) > 100
        window.pdf(tmp_path / "page.pdf")
    finally:
        window.ask("Emulation.setEmulatedMedia", media="")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no pdftotext, of Debian's package poppler-utils")
def test_paper_holds_the_words_of_details(window: Browser, page: Path, tmp_path: Path) -> None:
    window.open(page, width=DESKTOP)
    window.pdf(tmp_path / "page.pdf")
    text = subprocess.run(["pdftotext", str(tmp_path / "page.pdf"), "-"], capture_output=True, check=True, text=True)
    wanted = ["num_annotators: 4", "doctorate <rare>", "a & b", "What is identified."]
    assert [words for words in wanted if words not in text.stdout] == []
