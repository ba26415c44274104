"""Win rates of runs: responses against transformers' own, kept and continued; and the command's function, whole."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mixlogit_align.alignment import dump_config, load_config
from mixlogit_align.alignment.config import PreferenceConfig, PretrainedModel, TokenizationConfig
from mixlogit_align.alignment.data import load_data
from mixlogit_align.alignment.data.config import SimulatedData
from mixlogit_align.alignment.data.schema import Comparison, Message
from mixlogit_align.alignment.winrate import (
    JudgeError,
    Outputs,
    read_annotations,
    read_leaderboard,
    read_outputs,
    write_outputs,
)
from mixlogit_align.alignment.winrate.command import as_text, judge_run, make_judge
from mixlogit_align.alignment.winrate.comparison import compare_results
from mixlogit_align.alignment.winrate.generation import (
    GenerationConfig,
    _respond,
    generate,
    prompt_text,
    sample_prompts,
)
from mixlogit_align.alignment.winrate.judges import RewardJudge
from mixlogit_align.cli import main
from mixlogit_align.errors import InvalidInputError
from tests.alignment.chat_server import says, serving, verdict
from tests.alignment.processes import tiny_policy, tiny_run

TOKENIZATION = TokenizationConfig(max_length=48, max_prompt_length=24)
GREEDY = GenerationConfig(temperature=0.0, batch_size=3, max_new_tokens=8)


@pytest.fixture(scope="module")
def held_out() -> list[Comparison]:
    return load_data(SimulatedData(num_train=8, num_eval=40, num_annotators=8)).split("eval")


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("policies")
    return {name: tiny_policy(folder / name, name) for name in ("gpt_neox", "llama")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two finished runs in everything that matters here: settings and policies. The second began with the first."""
    folder = tmp_path_factory.mktemp("runs")
    before = ""
    for seed, name in enumerate(("SFT", "DPO")):
        path = folder / name.lower()
        policy = tiny_policy(path / "policy", "gpt_neox", seed=seed)
        stages = {} if name == "SFT" else {"sft": None, "model": PretrainedModel(path=before)}
        config = tiny_run(
            path, policy, num_train=8, num_eval=40, stage={"eval_every_examples": 64}, name=name, **stages
        )
        assert isinstance(config.preference, PreferenceConfig)
        (path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        before = policy
    return folder / "sft", folder / "dpo"


# --- prompts ---


def test_sampled_prompts_are_distinct_seeded_and_held_out(held_out: list[Comparison]) -> None:
    every = list(dict.fromkeys(row.prompt for row in held_out))
    first, again, other = (sample_prompts(held_out, len(every) // 2, seed) for seed in (0, 0, 1))
    prompts = [row.prompt for row in first]
    assert prompts == [row.prompt for row in again]
    assert prompts != [row.prompt for row in other]
    assert len(set(prompts)) == len(every) // 2
    assert [p for p in every if p in prompts] == prompts
    assert [row.prompt for row in sample_prompts(held_out, len(every), 0)] == every


@pytest.mark.parametrize("sample", [0, 1000])
def test_sample_of_more_than_there_is_is_refused(sample: int, held_out: list[Comparison]) -> None:
    with pytest.raises(InvalidInputError, match="distinct prompts of the split"):
        sample_prompts(held_out, sample, 0)


def test_conversations_are_told_apart_and_shown_as_transcripts() -> None:
    rows = [
        Comparison(prompt=(Message("user", text),), responses=("a", "b"), choice=0, pair_id=i, split="eval")
        for i, text in enumerate(("one", "two", "one"))
    ]
    assert [row.pair_id for row in sample_prompts(rows, 2, 0)] == [0, 1]
    assert prompt_text(rows[0].prompt) == "Human: one\n\nAssistant:"


# --- responses ---


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_likeliest_responses_are_transformers_own(
    architecture: str, policies: dict[str, str], held_out: list[Comparison]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = sample_prompts(held_out, 5, 0)
    made = generate(policies[architecture], rows, TOKENIZATION, GREEDY)
    model = AutoModelForCausalLM.from_pretrained(policies[architecture]).eval()
    tokenizer = AutoTokenizer.from_pretrained(policies[architecture])
    theirs = []
    for row in rows:
        ids = tokenizer(row.prompt, return_tensors="pt")
        found = model.generate(**ids, do_sample=False, max_new_tokens=8, pad_token_id=tokenizer.pad_token_id)
        theirs.append(tokenizer.decode(found[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    assert list(made.outputs.responses) == theirs
    assert list(made.outputs.prompts) == [row.prompt for row in rows]


def test_same_seed_same_responses_and_another_seed_others(policies: dict[str, str], held_out: list[Comparison]) -> None:
    rows, state = sample_prompts(held_out, 5, 0), torch.get_rng_state()
    first, again, other = (
        generate(policies["gpt_neox"], rows, TOKENIZATION, GenerationConfig(batch_size=2, max_new_tokens=8, seed=seed))
        for seed in (0, 0, 1)
    )
    assert first.outputs == again.outputs
    assert first.outputs != other.outputs
    assert torch.equal(torch.get_rng_state(), state)


def test_interrupted_generation_goes_on_and_is_the_uninterrupted_one(
    policies: dict[str, str], held_out: list[Comparison], tmp_path: Path
) -> None:
    rows, config = sample_prompts(held_out, 7, 0), GenerationConfig(batch_size=2, max_new_tokens=8)
    cache = tmp_path / "model.jsonl"

    def stop(task: str, done: int, total: int, _: Any) -> None:
        if done == 4:
            raise KeyboardInterrupt

    whole = generate(policies["gpt_neox"], rows, TOKENIZATION, config)
    with pytest.raises(KeyboardInterrupt):
        generate(policies["gpt_neox"], rows, TOKENIZATION, config, cache=cache, progress=stop)
    assert len(cache.read_text().splitlines()) == 2
    resumed = generate(policies["gpt_neox"], rows, TOKENIZATION, config, cache=cache)
    assert resumed.outputs == whole.outputs
    assert len(cache.read_text().splitlines()) == 4
    # another policy's responses are not taken
    other = generate(policies["llama"], rows, TOKENIZATION, config, cache=cache)
    assert len(cache.read_text().splitlines()) == 8
    assert other.outputs.responses != whole.outputs.responses


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        pytest.param([5, 6, 1, 0, 0], ([5, 6], True), id="ends"),
        pytest.param([1, 0, 0, 0, 0], ([], True), id="empty"),
        pytest.param([5, 6, 7, 8, 9], ([5, 6, 7, 8, 9], False), id="unfinished"),
        pytest.param([5, 2, 1, 6, 7], ([5], True), id="the first of two ends"),
    ],
)
def test_response_is_what_stands_before_its_end(tokens: list[int], expected: tuple[list[int], bool]) -> None:
    model = SimpleNamespace(
        parameters=lambda: iter([torch.zeros(1)]),
        generate=lambda input_ids, **_: torch.cat([input_ids, torch.tensor([tokens])], 1),
    )
    assert _respond(model, [[3, 4]], 0, {1, 2}, 5, GenerationConfig(), 0) == [expected]


def test_prompts_and_responses_beyond_the_positions_are_refused(
    policies: dict[str, str], held_out: list[Comparison]
) -> None:
    with pytest.raises(InvalidInputError, match="128"):
        generate(policies["gpt_neox"], held_out[:1], TOKENIZATION, GenerationConfig(max_new_tokens=128))


@pytest.mark.parametrize(
    "settings", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_new_tokens": 0}, {"batch_size": 0}]
)
def test_bad_settings_of_generation_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(settings))):
        GenerationConfig(**settings)


# --- the command's function ---


def longer(_: Path) -> RewardJudge:
    return RewardJudge(name="longer", score=lambda texts: [float(len(r)) for _, r in texts], soft=False)


def test_run_against_the_policy_it_began_with(runs: tuple[Path, Path]) -> None:
    found = judge_run(runs[1], None, longer, sample=12, generation=GREEDY, num_replications=50)
    assert (found.model, found.opponent, found.judge) == ("DPO", "sft", "longer")
    assert found.out == runs[1] / "winrate-sft"
    ours, theirs = read_outputs(found.out / "model_outputs.json"), read_outputs(found.out / "opponent_outputs.json")
    lengths = np.array([[len(r) for r in side.responses] for side in (ours, theirs)])
    by_hand = 50 * (1 + np.sign(lengths[0] - lengths[1])).mean()
    assert found.win_rate.percent == pytest.approx(by_hand, abs=1e-12)
    assert read_annotations(found.out / "annotations.json").win_rate().percent == pytest.approx(by_hand, abs=1e-12)
    assert read_leaderboard(found.out / "leaderboard.csv")["DPO"]["n_total"] == 12.0
    record = json.loads((found.out / "winrate.json").read_text())
    assert record["win_rate"]["percent"] == found.win_rate.percent
    assert record["generation"]["model"]["generation"]["max_new_tokens"] == 8
    assert set(record["generation"]) == {"model", "opponent"}
    text = as_text(found)
    assert f"win rate {by_hand:.2f} %" in text
    # random policies do not end
    assert "model: 12 of 12 responses reached max_new_tokens without an end" in text


def test_run_judged_by_an_endpoint_costs_nothing_again(runs: tuple[Path, Path], tmp_path: Path) -> None:
    told: list[str] = []
    with serving(lambda *_: verdict("A")) as server:
        judge = make_judge(server.url, model="local", key_variable=None, input_price=1.0, output_price=1.0)
        settings = {"sample": 12, "generation": GREEDY, "num_replications": 50, "out": tmp_path}
        first = judge_run(runs[1], runs[0], judge, told=told.append, **settings)
        again = judge_run(runs[1], runs[0], judge, told=told.append, **settings)
        assert len(server.requests) == first.usage["num_requests"]
    assert told[0].startswith(f"{first.usage['num_requests']} requests to come, 0 answered before")
    assert told[1].startswith("0 requests to come")
    # one who always takes the first is undecided over both orders
    assert (first.win_rate.percent, first.win_rate.num_ties, first.opponent) == (50.0, 12, "SFT")
    assert again.win_rate == first.win_rate
    assert again.usage["num_requests"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"sample": 11}, r"the model: got sample=12; expected sample=11", id="sample"),
        pytest.param({"seed": 1}, "sample_seed=0", id="seed"),
        pytest.param(
            {"generation": dataclasses.replace(GREEDY, temperature=1.0, batch_size=4)},
            "got temperature=0.0, batch_size=3; expected temperature=1.0, batch_size=4",
            id="temperature and batch size",
        ),
        pytest.param({"generation": dataclasses.replace(GREEDY, max_new_tokens=None)}, "max_new_tokens=8", id="room"),
        pytest.param({"judge": "shorter"}, "the judge: got judge='longer'; expected judge='shorter'", id="judge"),
        pytest.param({"opponent": 1}, "the opponent: got policy=", id="another opponent"),
    ],
)
def test_results_of_other_settings_are_not_replaced(
    runs: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    settings: dict[str, Any] = {"sample": 12, "generation": GREEDY, "num_replications": 20, "out": tmp_path}
    judge_run(runs[1], runs[0], longer, **settings)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    name, opponent = changes.pop("judge", "longer"), runs[changes.pop("opponent", 0)]

    def judge(folder: Path) -> RewardJudge:
        return dataclasses.replace(longer(folder), name=name)

    with pytest.raises(InvalidInputError, match=message):
        judge_run(runs[1], opponent, judge, **{**settings, **changes})
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json")} == before
    found = judge_run(runs[1], opponent, judge, overwrite=True, **{**settings, **changes})
    assert found.win_rate.num_judged == changes.get("sample", 12)


def test_sample_is_what_there_is_unless_more_is_asked_for(runs: tuple[Path, Path], tmp_path: Path) -> None:
    told: list[str] = []
    settings: dict[str, Any] = {"generation": GREEDY, "num_replications": 20, "told": told.append}
    held_out = load_data(load_config(runs[1] / "config.yaml").data).split("eval")
    distinct = len({row.prompt for row in held_out})
    found = judge_run(runs[1], runs[0], longer, out=tmp_path / "all", **settings)
    assert found.win_rate.num_judged == found.generation["model"]["sample"] == distinct
    assert told == [f"all {distinct} distinct held-out prompts: there are not 425"]

    def never(_: Path) -> RewardJudge:
        raise AssertionError("a judge is loaded for a sample that is refused")

    with pytest.raises(InvalidInputError, match=f"Try --sample {distinct}"):
        judge_run(runs[1], runs[0], never, sample=425, out=tmp_path / "more", **settings)
    assert not (tmp_path / "more").exists()


def test_files_of_outputs_are_judged_by_stored_annotations(tmp_path: Path) -> None:
    prompts = [f"p{i}" for i in range(12)]
    for name in ("ours", "them"):
        outputs = Outputs(name=name, prompts=prompts, responses=[name * (1 + i % 3 + len(name) % 2) for i in range(12)])
        write_outputs(tmp_path / f"{name}.json", outputs)
    rows = [
        {"instruction": p, "output_1": "ours" * (1 + i % 3), "generator_1": "ours", "output_2": "them" * (1 + i % 3),
         "generator_2": "them", "annotator": "people", "preference": 1.25}
        for i, p in enumerate(prompts[:11])
    ]  # fmt: skip
    (tmp_path / "stored.json").write_text(json.dumps(rows))
    judge = make_judge(str(tmp_path / "stored.json"))
    found = judge_run(tmp_path / "ours.json", tmp_path / "them.json", judge, num_replications=20)
    assert (found.win_rate.percent, found.win_rate.num_missing, found.judge) == (75.0, 1, "people")
    assert (found.generation, found.usage) == ({}, None)
    # both answer at the same length: there is nothing to control for
    assert found.controlled is None
    assert "the same difference" in found.not_controlled
    text = as_text(found)
    assert "1 prompts without a verdict, not_annotated" in text
    assert json.loads((found.out / "winrate.json").read_text())["controlled"] is None


def test_preference_that_the_penalty_has_shrunk_away_has_no_interval(tmp_path: Path) -> None:
    """Soft preferences around 1/2: cross-validation takes the strongest penalty, and every replication says 50 %."""
    draw = np.random.default_rng(60)
    values, lengths = draw.normal(0.5, 0.02, 60), draw.integers(10, 200, (2, 60))
    prompts = [f"p{i}" for i in range(60)]
    files = []
    for name, each in zip(("ours", "them"), lengths, strict=True):
        files.append(tmp_path / f"{name}.json")
        write_outputs(files[-1], Outputs(name=name, prompts=prompts, responses=[name[0] * n for n in each]))
    rows = [
        {"instruction": p, "output_1": "t" * int(b), "generator_1": "them", "output_2": "o" * int(a),
         "generator_2": "ours", "annotator": "people", "preference": 1 + v}
        for p, v, a, b in zip(prompts, values, *lengths, strict=True)
    ]  # fmt: skip
    (tmp_path / "stored.json").write_text(json.dumps(rows))
    found = judge_run(*files, make_judge(str(tmp_path / "stored.json")), num_replications=20)
    told = "not told apart from 50 %: the penalty left nothing of the preference"
    assert found.controlled is None
    assert told in as_text(found)
    assert "at equal lengths 50" not in as_text(found)
    record = json.loads((found.out / "winrate.json").read_text())
    assert record["controlled"] is None
    assert told in record["not_controlled"]
    assert read_leaderboard(found.out / "leaderboard.csv")["ours"]["length_controlled_winrate"] is None
    paired = compare_results(found.out, found.out, num_replications=20)
    assert paired.controlled is None
    assert told in paired.not_controlled


def results(folder: Path, name: str, values: list[float], judge: str = "people", them: str = "them") -> Path:
    """A folder of results: one model's preferences over 'them', prompts in an order of its own."""
    folder.mkdir()
    rows = [
        {"instruction": f"p{i}", "output_1": them * (1 + i % 3), "generator_1": "them", "output_2": "x" * (i % 5),
         "generator_2": name, "annotator": judge, "preference": 1 + value}
        for i, value in enumerate(values)
    ]  # fmt: skip
    (folder / "annotations.json").write_text(json.dumps(rows if name == "ours" else rows[::-1]))
    return folder


def test_two_models_against_one_opponent_are_paired_by_prompt(tmp_path: Path) -> None:
    base = np.linspace(0.1, 0.7, 12)
    ours, other = results(tmp_path / "a", "ours", list(base + 0.25)), results(tmp_path / "b", "other", list(base))
    found = compare_results(ours, other, num_replications=50)
    assert (found.model, found.other, found.opponent) == ("ours", "other", "them")
    # every prompt differs by the same: no resample can change it, and only two of 2^12 patterns are as far
    d = found.difference
    assert (d.value, d.lower, d.upper) == pytest.approx((25.0, 25.0, 25.0), abs=1e-9)
    assert found.test.test.pvalue == 2 / 2**12
    # both have the same lengths
    assert found.controlled is not None
    assert found.controlled.value > 0
    turned = compare_results(other, ours, num_replications=50)
    assert turned.difference.value == pytest.approx(-25.0, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"judge": "machine"}, "judges of .*'people' and 'machine'", id="another judge"),
        pytest.param({"them": "Them"}, "the opponent's responses of .*'them' and 'Them'", id="other responses"),
        pytest.param({"values": [0.5] * 13}, "1 of 'other' alone", id="other prompts"),
    ],
)
def test_results_that_are_not_comparable_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    ours = results(tmp_path / "a", "ours", [0.5] * 12)
    other = results(tmp_path / "b", "other", **{"values": [0.5] * 12, **changes})
    with pytest.raises(InvalidInputError, match=message):
        compare_results(ours, other)


def test_command_compares_with_earlier_results(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"sample": 12, "generation": GREEDY, "num_replications": 20}
    other = judge_run(runs[0], runs[0], longer, out=tmp_path / "other", **settings)
    found = judge_run(runs[1], runs[0], longer, out=tmp_path / "ours", compare=other.out, **settings)
    # a model against itself is at 50 %
    assert found.compared.difference.value == pytest.approx(found.win_rate.percent - 50.0, abs=1e-9)
    assert "less SFT, paired: " in as_text(found)
    record = json.loads((tmp_path / "ours" / "winrate.json").read_text())
    assert record["compared"]["test"]["test"]["pvalue"] == found.compared.test.test.pvalue


def test_judge_without_any_verdict_is_told_with_its_faults(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with serving(lambda *_: says("I would rather not.")) as server:
        judge = make_judge(server.url, model="local", key_variable=None)
        with pytest.raises(JudgeError, match=r"malformed_verdict: 12 \(first: I would rather not\.\)"):
            judge_run(runs[1], runs[0], judge, sample=12, generation=GREEDY, out=tmp_path)


def test_run_that_does_not_name_its_supervised_policy_needs_an_opponent(runs: tuple[Path, Path]) -> None:
    with pytest.raises(InvalidInputError, match="--opponent"):
        judge_run(runs[0], None, longer, sample=12)


def test_run_of_both_stages_is_held_against_the_policy_between_them(runs: tuple[Path, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "both")
    shutil.copytree(runs[1] / "policy", run / "sft" / "policy")
    found = judge_run(run, None, longer, sample=12, generation=GREEDY, num_replications=50)
    assert (found.opponent, found.out) == ("sft", run / "winrate-sft")
    theirs = generate(
        run / "sft" / "policy", sample_prompts(load_data(load_config(run / "config.yaml").data).split("eval"), 12, 0),
        load_config(run / "config.yaml").tokenization, GREEDY, name="sft",
    )  # fmt: skip
    assert list(read_outputs(found.out / "opponent_outputs.json").responses) == list(theirs.outputs.responses)


def test_unfinished_opponent_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.yaml").write_text((runs[0] / "config.yaml").read_text())
    with pytest.raises(InvalidInputError, match="a run without policy/"):
        judge_run(runs[1], tmp_path / "half", longer, sample=12, generation=GREEDY, out=tmp_path / "out")


def test_policy_against_a_file_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    write_outputs(tmp_path / "ours.json", Outputs(name="ours", prompts=["p"], responses=["r"]))
    with pytest.raises(InvalidInputError, match="a policy against a file of outputs"):
        judge_run(tmp_path / "ours.json", runs[0], longer)


def test_endpoint_without_a_model_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="--judge-model"):
        make_judge("http://127.0.0.1:1/v1")


def test_reward_model_is_told_missing_before_anything_is_made(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no-such-model"):
        judge_run(runs[1], runs[0], make_judge("reward:no-such-model"), sample=12, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_opponent_and_sample_are_checked_before_a_judge_is_loaded(runs: tuple[Path, Path], tmp_path: Path) -> None:
    judge = make_judge("reward:no-such-model")
    with pytest.raises(InvalidInputError, match="absent"):
        judge_run(runs[1], tmp_path / "absent", judge, sample=12, out=tmp_path / "out")
    with pytest.raises(InvalidInputError, match="sample: got 1000"):
        judge_run(runs[1], runs[0], judge, sample=1000, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the command ---


def test_command_tells_the_cost_and_the_rates_and_goes_on(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda *_: verdict("A")) as server:
        words = [
            "winrate", str(runs[1]), "--opponent", str(runs[0]), "--sample", "12", "--temperature", "0",
            "--max-new-tokens", "8", "--replications", "20", "--judge", server.url, "--judge-model", "local",
            "--no-key",
            "--input-price", "1", "--output-price", "2", "--out", str(tmp_path / "results"),
        ]  # fmt: skip
        assert main(words) == 0
        first, sent = capsys.readouterr().out, len(server.requests)
        assert main(words) == 0
        assert len(server.requests) == sent
    assert f"{sent} requests to come, 0 answered before" in first
    assert "cost at most about" in first
    assert "win rate 50.00 %" in first
    assert "DPO against SFT, judged by local (json, both)" in first
    assert f"0 requests to come, {sent} answered before" in capsys.readouterr().out


def test_command_without_a_key_ends_before_anything_is_made(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MIXLOGIT_TEST_KEY", raising=False)
    words = ["winrate", str(runs[1]), "--judge", "http://127.0.0.1:9/v1", "--judge-model", "local"]
    assert main([*words, "--key-variable", "MIXLOGIT_TEST_KEY", "--out", str(tmp_path / "out")]) == 1
    assert "environment variable MIXLOGIT_TEST_KEY: got nothing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(
            ["absent", "--judge", "absent.json"],
            "judge: got 'absent.json', which is no file; expected the URL of an endpoint, reward:FOLDER",
            id="no annotations",
        ),
        pytest.param(["absent", "--judge", "."], "Try reward:.", id="a folder without its kind"),
        pytest.param(["absent", "--judge", "http://host/v1"], "--judge-model", id="no model"),
        pytest.param(
            ["absent", "--judge", "http://host/v1?key=x", "--judge-model", "m"], "url", id="a key in the address"
        ),
        pytest.param(
            ["absent", "--judge", "http://host/v1", "--judge-model", "m", "--no-key", "--budget", "1"],
            "budget",
            id="no prices",
        ),
        pytest.param(["absent", "--judge", "reward:unread"], "absent: got no such folder", id="no run, unread judge"),
        pytest.param(
            ["absent", "--judge", "http://host/v1", "--judge-model", "m", "--no-key"],
            "absent: got no such folder or file",
            id="no run",
        ),
    ],
)
def test_wrong_usage_of_the_command_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["winrate", *words]) == 2
    assert message in capsys.readouterr().err
