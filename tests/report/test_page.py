"""The page: self-contained, complete, and made of the files alone."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mixlogit_align.alignment.config import AlignmentConfig, PreferenceConfig
from mixlogit_align.alignment.data.config import HHData
from mixlogit_align.alignment.settings import dump_config
from mixlogit_align.errors import InvalidInputError
from mixlogit_align.report import build_page, read_evidence, write_report
from mixlogit_align.report import measured as tables_of_measures
from mixlogit_align.report import page as page_module

from .conftest import DATA, STRENGTHS, losses, recovery_row, write_preference_run, write_recovery, write_run
from .measures import write_evaluation, write_heterogeneity, write_winrate
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


def test_alarms_leave_the_verdict_open_and_are_told_below_it(tmp_path: Path) -> None:
    folder = write_preference_run(tmp_path / "run", "MixDPO gamma")
    alarm = {"name": "both_logps_falling", "stage": "preference", "step": 4, "message": "both responses < before"}
    state = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(state | {"alarms": [alarm, alarm]}))
    page = build_page(read_evidence([folder]))
    assert '<header class="open">' in page
    assert "The one check passed; 2 alarms to look at." in page
    assert "No alarm" not in page
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


# --- what was measured ---


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, evaluated, one against the other; judged; with the strength fitted to the log-ratios of one."""
    folder = tmp_path_factory.mktemp("measured")
    dpo = write_preference_run(folder / "dpo", "DPO")
    gamma = write_preference_run(folder / "gamma", "MixDPO gamma")
    write_evaluation(dpo, "DPO", 0.0)
    write_evaluation(gamma, "MixDPO gamma", 0.3, against="DPO")
    write_winrate(dpo, 0.4, lengths=False)
    write_winrate(gamma, 0.8)
    write_heterogeneity(gamma)
    state = json.loads((gamma / "run.json").read_text())
    more = {"processes": 2, "precision": "bfloat16", "versions": {"torch": "9.9.9"}, "machine": "a big <machine>"}
    (gamma / "run.json").write_text(json.dumps(state | more))
    counts = {"prompts": {"texts": 128, "cut": 3}, "responses": {"texts": 256, "cut": 0}}
    data = {"reader": {"bad_rows": {"empty": 7}}, "tokenization": {"train": counts, "eval": counts}}
    (gamma / "data.json").write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="session")
def measured_page(measured: Path) -> str:
    return build_page(read_evidence([measured]))


def test_sections_stand_in_the_order_of_questions(measured_page: str) -> None:
    assert re.findall(r"<h2>(.*?)</h2>", measured_page) == [
        "What was trained",
        "Alignment: simulated annotators, strength lognormal, cv 1",
        "Margins on held-out pairs",
        "Subgroups",
        "Gains over other runs",
        "Strength",
        "Win rates",
        "The loss",
        "Not measured yet",
        "Settings and versions",
    ]


def cells_of(page: str, first: str) -> list[str]:
    """The cells of the first row that begins so."""
    row = re.search(rf'<tr><th scope="row">{re.escape(first)}.*?</tr>', page, re.DOTALL)
    assert row is not None, first
    return [re.sub(r"<.*?>", " ", cell).strip() for cell in re.findall(r"<td>(.*?)</td>", row[0])]


def test_numbers_are_those_of_the_files(measured: Path, measured_page: str) -> None:
    """Means with standard errors and intervals, beside the files' own."""
    content = [json.loads((measured / name / "evaluation.json").read_text()) for name in ("dpo", "gamma")]
    found = [evaluation["averages"][0]["estimates"]["margin/sum"] for evaluation in content]
    assert cells_of(measured_page, "margin/sum<br>") == [
        f"{e['value']:.3f} ({e['standard_error']:.3f})  {e['lower']:.3f} to {e['upper']:.3f}" for e in found
    ]
    assert cells_of(measured_page, "Brier") == [f"{each['calibration']['brier']:.4f}" for each in content]
    gains = json.loads((measured / "gamma" / "gains-over-dpo.json").read_text())
    (gain,) = (average["estimates"]["margin/sum"] for average in gains["averages"] if average["kind"] == "all")
    wanted = f"{gain['value']:+.3f} ({gain['standard_error']:.3f})**"
    assert wanted in measured_page
    school = next(average for average in content[0]["averages"] if average["level"] == "school")
    estimate = school["estimates"]["margin/sum"]
    cells = cells_of(measured_page, "school")
    assert cells[:2] == [str(school["num_pairs"]), str(school["num_clusters"])]
    assert cells[2] == f"{estimate['value']:.3f} ({estimate['standard_error']:.3f})"


def test_every_subgroup_is_there_and_small_ones_stand_apart(measured_page: str) -> None:
    table = measured_page[measured_page.index("<h3>education</h3>") :]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>', table[: table.index("</table>")])
    assert rows == [
        "<b>micro</b>", "<b>macro</b>", "<b>macro, small ones too</b>", "degree", "school",
        "doctorate &lt;rare&gt; <small>(few)</small>", "(unknown)",
    ]  # fmt: skip
    assert "Levels of fewer than 10 clusters (few) stand apart" in Reader(measured_page).text


@pytest.mark.parametrize(
    "words",
    [
        "MixDPO Gamma: a strength of mean 0.12 and sd 0.0847 at the start, learned at rate 0.0001",
        "a new GPT-NeoX, random weights: 2 layers of width 64, 4 heads",
        "128 comparisons to train on, 128 held out; rows left out: empty 7; 6 prompts cut to fit",
        "preference stage: 2 steps of 64 comparisons (1 epoch), RMSprop at rate 5e-07 after 150 steps of warm-up",
        "2 processes, the policy sharded over them on cpu, bfloat16 (MixDPO gamma)",
        "240 pairs, standard errors over 60 clusters by annotator, 95% intervals.",
        "MixDPO gamma over DPO",
        "of a level adjusted over 2 levels (Holm)",
        "What is identified. A spread of strengths between annotators is identified",
        "is no measure of how people differ",
        "480 comparisons of 60 annotators, family lognormal",
        "0.5 chi2(0) + 0.5 chi2(1)",
        "against the <opponent>",
        "judge & co",
        "80.0 (6.4)",  # a win rate
        "DPO: no win rate at equal lengths:",
        "9.9.9",
        "a big <machine>",
        "mixlogit-align strength",  # what would add to the page
        "No alarm was raised while training.",
    ],
)
def test_it_says_what_was_measured(measured_page: str, words: str) -> None:
    assert words in Reader(measured_page).text


def test_what_is_identified_stands_before_every_fitted_number(measured_page: str) -> None:
    assert measured_page.index("What is identified") < measured_page.index("a fresh strength for each comparison")


def test_with_many_runs_each_is_a_row(measured: Path) -> None:
    """The same cells, turned: nine runs are more columns than a sheet of paper has room for."""
    run = read_evidence([measured / "gamma"]).runs[0]
    assert run.evaluation is not None
    names = [f"run <{i}>" for i in range(9)]
    upright = tables_of_measures.margins_table(names[:2], [run.evaluation] * 2)
    turned = tables_of_measures.margins_table(names, [run.evaluation] * 9)
    cells = cells_of(turned, "run &lt;3&gt;")
    assert cells == [cells_of(upright, name)[1] for name in ("margin/sum", "margin/avg", "margin/reward",
                     "log_ratio/margins", "accuracy<", "accuracy/sum", "loglik", "Brier", "calibration")]  # fmt: skip
    assert '<th scope="col">calibration error</th>' in turned


def test_figures_of_measurements_are_there(measured_page: str) -> None:
    titles = re.findall(r"<figure.*?<h3>(.*?)</h3>", measured_page)
    wanted = {
        "Do choices come out as often as the probabilities say?",
        "Margins by subgroup, and what averages make of them",
        "Gains over DPO",
        "What the choices say of the strength: MixDPO gamma",
    }
    assert wanted <= set(titles)
    assert len(re.findall(r' id="[^"]*profile-[^"]*"', measured_page)) > 0


def test_without_annotators_there_is_one_fit_less(tmp_path: Path) -> None:
    folder = write_preference_run(tmp_path / "a", "DPO")
    write_heterogeneity(folder, with_annotators=False)
    page = build_page(read_evidence([folder]))
    found = json.loads((folder / "heterogeneity" / "heterogeneity.json").read_text())["fits"]["comparison"]
    cells = cells_of(page, "a fresh strength for each comparison")
    assert cells[0] == f"{found['mean']:.3g} ({found['std_errors']['mean']:.2g})"
    assert cells[3].startswith("0 to ")
    assert '<th scope="row">one strength for each annotator' not in page
    assert "How people differ is NOT identified: no annotator ids were given." in page


def test_a_page_of_one_run_is_called_by_its_name(measured: Path) -> None:
    page = build_page(read_evidence([measured / "gamma"]))
    assert "<title>MixDPO gamma</title>" in page
    assert "<h1>MixDPO gamma</h1>" in page
    assert "4 of 4" not in page
    assert "All 3 checks passed" in page
    assert "Not measured yet" not in page


@pytest.mark.parametrize("which", ["page", "measured_page"])
def test_it_can_be_read_without_seeing_it(which: str, request: pytest.FixtureRequest) -> None:
    """No level of headings is skipped, pictures have words, links have targets, columns of tables have titles."""
    page = request.getfixturevalue(which)
    levels = [int(level) for level in re.findall(r"<h(\d)>", page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert [pair for pair in itertools.pairwise(levels) if pair[1] > pair[0] + 1] == []
    assert re.findall(r"<svg(?! role=\"img\" aria-label=\"[^\"]+\"| aria-hidden)", page) == []
    assert set(re.findall(r'<a href="#([^"]+)"', page)) <= set(re.findall(r' id="([^"]+)"', page))
    assert re.findall(r"<th(?! scope)", page.replace("<thead>", "")) == []
    assert 'lang="en"' in page


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * channel for weight, channel in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first: str, second: str) -> float:
    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


def test_contrast_by_hand() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21.0, rel=1e-12)
    # the lightest grey that WCAG's 4.5 allows on white
    assert contrast("#ffffff", "#767676") == pytest.approx(4.54, abs=5e-3)


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_stands_out(page: str, theme: int) -> None:
    """4.5 for text, and 3 for lines that carry meaning (WCAG 2.2, 1.4.3 and 1.4.11)."""
    root = re.findall(r":root \{(.*?)\}", page, re.DOTALL)[theme]
    colors = dict(re.findall(r"--([\w-]+): (#\w{6})", root))
    texts = ("ink", "muted", "good", "bad", "open", "series-1")
    low = [(name, ground) for name in texts for ground in ("page", "card")
           if contrast(colors[name], colors[ground]) < 4.5]  # fmt: skip
    assert low == []
    lines = [name for name in colors if name.startswith("series")]
    assert len(lines) == 6
    assert [name for name in lines if contrast(colors[name], colors["page"]) < 3.0] == []


# --- writing ---


def test_a_page_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "sft", SFT, [])
    monkeypatch.setattr(page_module, "MOST_BYTES", 5_000)
    with pytest.raises(InvalidInputError, match=r"got a page of 0\.0 MB \(runs: 1\).*Try fewer RUNs"):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_of_many_runs_fits_are_told_and_not_drawn(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "MOST_SINGLE", 0)
    page = build_page(read_evidence([measured / "gamma"]))
    assert "Of more than 0 runs the figures of these fits are on pages of fewer runs." in page
    assert "What is identified" in page
    assert "What the choices say of the strength" not in page


def test_long_runs_do_not_make_it_large(tmp_path: Path) -> None:
    """Twenty thousand logged steps, more than the paper's 859 and than a page has pixels."""
    folder = write_preference_run(tmp_path / "run", "MixDPO gamma")
    rows = [{"stage": "preference", "split": "train", "step": step, "examples_seen": 64 * step,
             "loss": 0.69 + 0.01 * (step % 7), "strength/mean": 0.12 + 0.001 * (step % 5),
             "strength/sd": 0.08 + 0.001 * (step % 3)} for step in range(1, 20_001)]  # fmt: skip
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(lines + "".join(json.dumps(row) + "\n" for row in rows))
    write_report([folder], tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


def test_a_folder_in_its_place_is_refused(demonstration: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"got a folder; .*Try .*report\.html"):
        write_report([demonstration], tmp_path)


def test_a_page_is_replaced_whole(tmp_path: Path) -> None:
    folder = write_preference_run(tmp_path / "run", "DPO")
    (tmp_path / "page.html").write_text("before")
    write_report([folder], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "run"]
