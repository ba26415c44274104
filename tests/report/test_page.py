"""The page: self-contained, complete, and made of the files alone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mixlogit_align.alignment.config import AlignmentConfig, PreferenceConfig
from mixlogit_align.alignment.data.config import HHData
from mixlogit_align.alignment.settings import dump_config
from mixlogit_align.report import build_page, read_evidence, write_report

from .conftest import DATA, STRENGTHS, losses, recovery_row, write_preference_run, write_recovery, write_run
from .test_files import SFT

VOID = {"meta", "br", "link", "img", "input", "hr", "path", "use"}


class Reader(HTMLParser):
    """Text, addresses and unbalanced tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["text"]):
            self.words.append(data)


@pytest.fixture(scope="session")
def page(demonstration: Path) -> str:
    return build_page(read_evidence([demonstration]))


def test_it_is_self_contained(page: str) -> None:
    reader = Reader(page)
    assert [address for address in reader.addresses if not address.startswith("#")] == []
    assert "://" not in page
    assert set(reader.tags) & {"script", "link", "iframe", "img", "object", "embed"} == set()
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    assert len(page.encode()) < 5_000_000


def test_it_is_well_formed(page: str) -> None:
    reader = Reader(page)
    assert (reader.unbalanced, reader.open) == ([], [])
    ids = re.findall(r' id="([^"]+)"', page)
    keys = [name for name in ids if "key-" in name]  # legends of equal entries are equal
    assert len(set(ids) - set(keys)) == len(ids) - len(keys)


def test_the_verdict_comes_first(page: str) -> None:
    text = Reader(page).text
    assert text.index("All 6 checks passed") < text.index("Known strengths recovered, beside xlogit")


@pytest.mark.parametrize(
    "words",
    [
        "1.2345 (0.1000)",  # an estimate and its standard error
        "+2.35",  # its z, rounded
        "1.2301",  # xlogit's
        "failed: Local search could not find a higher log likelihood value",
        "xlogit failed in 1 of 2 cases",
        "here 2 of 4 do",  # |z| > 2
        "0.9870 (0.0200)",  # without heterogeneity
        "a & b",  # a note
        "0.5221",  # a final loss
        "0.0367",  # excess loss
        "0.4991",  # attainable
        "MixDPO <lognormal>",  # a name, escaped
        "mean 0.240, sd 0.169",  # the gamma in the truth's unit
        "a parameter moves 0.321",
        "says little about it",  # what the spread is not
        "ambiguous pairs are not weighted down",
        "0.123",  # probability error
        "0.2.7",  # xlogit's version
        "a machine",
        "Data: simulated annotators, strength lognormal, cv 1; simulated annotators, strength the same for all (cv 0).",
        "on the chosen responses of simulated annotators, strength lognormal, cv 1: the faint line",
        "First the likelihood of this model is held against known truths",
        "margin may fall again while the loss still improves",
        "Strength mean: as it stands",
        "strength_cv: 0.0",  # the configuration
    ],
)
def test_it_says(page: str, words: str) -> None:
    assert words in Reader(page).text


def test_every_figure_says_what_to_see(page: str) -> None:
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert len(captions) == page.count("<figure") == 2 + 1 + 2 * 4 + 1
    assert [caption for caption in captions if len(caption.split()) < 20] == []


def test_light_and_dark_define_every_colour_used(page: str) -> None:
    used = set(re.findall(r"var\((--[\w-]+)\)", page))
    roots = [set(re.findall(r"(--[\w-]+):", root)) for root in re.findall(r":root \{(.*?)\}", page, re.DOTALL)]
    assert len(roots) == 3  # light, dark, print
    assert [used - root for root in roots] == [set(), set(), set()]
    assert "prefers-color-scheme: dark" in page


def test_it_is_a_function_of_the_files(demonstration: Path, page: str, tmp_path: Path) -> None:
    found = write_report([demonstration], tmp_path / "new" / "report.html")
    assert all(check.passed for check in found)
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == page


def test_an_interrupted_demonstration_is_readable(tmp_path: Path) -> None:
    write_recovery(tmp_path / "recovery.json", [recovery_row("normal, panel")], passed=False)
    write_run(tmp_path / "alignment" / "sft", SFT, losses("sft", [5.0, 4.0]), status="interrupted")
    text = Reader(build_page(read_evidence([tmp_path]))).text
    assert "1 of 3 checks passed" in text
    assert "SFT 5.0000 to 4.0000 (interrupted)" in text


def test_a_failure_is_told_first(tmp_path: Path) -> None:
    write_recovery(tmp_path / "recovery.json", [recovery_row("normal, panel", passed=False)], passed=False)
    page = build_page(read_evidence([tmp_path]))
    assert "2 of 2 checks failed" in Reader(page).text
    assert '<header class="bad">' in page


def test_nothing_recovered_yet(tmp_path: Path) -> None:
    write_recovery(tmp_path / "recovery.json", [], passed=False)
    assert "0 of 0 cases" in Reader(build_page(read_evidence([tmp_path]))).text


def test_alarms_are_told_below_the_verdict(tmp_path: Path) -> None:
    folder = write_preference_run(tmp_path / "run", "MixDPO gamma")
    alarm = {"name": "both_logps_falling", "stage": "preference", "step": 4, "message": "both responses < before"}
    state = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(state | {"alarms": [alarm]}))
    page = build_page(read_evidence([folder]))
    assert "both responses &lt; before" in page
    assert page.index("<h1>") < page.index("both_logps_falling") < page.index("<figure")


def test_runs_on_real_data_have_no_truth_to_show(tmp_path: Path) -> None:
    """Nor a fixed strength to compare with: the start stands in for the truth, and no data is read."""
    folder = write_preference_run(tmp_path / "gamma", "MixDPO gamma")
    strength, _ = STRENGTHS["MixDPO gamma"]
    config = AlignmentConfig(out="x", name="real", data=HHData(), preference=PreferenceConfig(strength=strength))
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "truth.json").unlink()
    text = Reader(build_page(read_evidence([folder]))).text
    assert "Alignment: hh" in text
    assert "moved from its dotted start" in text
    assert "all scaled to mean strength 0.12" in text
    assert [words for words in ("attainable", "calibrated", "annotators' own", "excess loss") if words in text] == []


def test_a_run_stopped_before_its_strength_was_written(tmp_path: Path) -> None:
    strength, _ = STRENGTHS["MixDPO gamma"]
    config = AlignmentConfig(out="x", name="cut", data=DATA, preference=PreferenceConfig(strength=strength))
    write_run(tmp_path / "cut", config, losses("preference", [0.69, 0.6]), status="interrupted")
    text = Reader(build_page(read_evidence([tmp_path]))).text
    assert "cut 0.6900 to 0.6000 (interrupted)" in text
    assert "Learning on held-out pairs" in text
    assert "The strength that was learned" not in text


def test_a_single_run_names_its_data_and_claims_no_recovery(tmp_path: Path) -> None:
    text = Reader(build_page(read_evidence([write_preference_run(tmp_path / "a", "DPO")]))).text
    assert "The one check passed" in text
    assert "Data: simulated annotators" in text
    assert "known truths" not in text
