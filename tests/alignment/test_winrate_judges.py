"""Judges without an endpoint: stored annotations, and reward models against transformers called by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.special import expit

from mixlogit_align.alignment.winrate import (
    Outputs,
    ResponsePair,
    RewardJudge,
    TableJudge,
    judge_outputs,
    pair_outputs,
    read_stored_judge,
    write_annotations,
)
from mixlogit_align.errors import InvalidInputError

A = Outputs(name="a", prompts=["p0", "p1", "p2"], responses=["long answer", "", "same"])
B = Outputs(name="b", prompts=["p2", "p1", "p0"], responses=["same", "b1", "b"])


def length(texts: Sequence[tuple[str, str]]) -> list[float]:
    """A reward model that likes length."""
    return [float(len(response)) for _, response in texts]


# --- stored annotations ---


def stored(**changes: float) -> TableJudge:
    values = {"p0": 0.75, "p1": 0.0, "p2": 0.5, **changes}
    return TableJudge(name="stored", annotations={pair: values[pair.prompt] for pair in pair_outputs(A, B)})


def test_stored_verdicts_are_found_and_mirrored() -> None:
    assert judge_outputs(stored(), A, B).preferences.values.tolist() == [0.75, 0.0, 0.5]
    assert judge_outputs(stored(), B, A).preferences.values.tolist() == [0.5, 1.0, 0.25]


def test_verdicts_on_other_responses_are_not_taken() -> None:
    changed = Outputs(name="a", prompts=["p0", "p1", "p9"], responses=["longer answer", "", "same"])
    against = Outputs(name="b", prompts=["p0", "p1", "p9"], responses=["b", "b1", "same"])
    judged = judge_outputs(stored(), changed, against)
    assert [math.isnan(value) for value in judged.preferences.values] == [True, False, True]
    found = judged.faults()["not_annotated"]
    assert found["count"] == 2
    assert [(row["prompt"], row["detail"]) for row in found["first"]] == [
        ("p0", "a stored preference of null, or other responses: another seed, temperature or batch size makes other "
         "responses"),
        ("p9", "no such prompt"),
    ]  # fmt: skip


def test_stored_null_is_no_verdict() -> None:
    judged = judge_outputs(stored(p1=math.nan), A, B)
    assert judged.preferences.win_rate().num_missing == 1
    assert list(judged.faults()) == ["not_annotated"]


def test_written_annotations_judge_again(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    judged = judge_outputs(stored(), A, B)
    write_annotations(path, judged.pairs, judged.preferences, "stored")
    again = read_stored_judge(path)
    assert again.name == "stored"
    assert judge_outputs(again, A, B).preferences.values == pytest.approx(judged.preferences.values, abs=1e-15)
    assert json.loads(path.read_text())[1]["output_2"] == ""


def test_lengths_are_of_the_responses() -> None:
    preferences = judge_outputs(stored(), A, B).preferences
    assert preferences.model_lengths.tolist() == [11.0, 0.0, 4.0]
    assert preferences.opponent_lengths.tolist() == [1.0, 2.0, 4.0]


# --- rewards ---


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_preferences_of_rewards(batch_size: int) -> None:
    soft = judge_outputs(RewardJudge(name="length", score=length, batch_size=batch_size), A, B).preferences.values
    assert soft == pytest.approx([expit(10.0), expit(-2.0), 0.5], abs=1e-15)
    hard = RewardJudge(name="length", score=length, soft=False, batch_size=batch_size)
    assert judge_outputs(hard, A, B).preferences.values.tolist() == [1.0, 0.0, 0.5]


def test_rewards_that_are_not_finite_are_counted() -> None:
    judged = judge_outputs(RewardJudge(name="odd", score=lambda texts: [math.nan, *length(texts[1:])]), A, B)
    assert [math.isnan(value) for value in judged.preferences.values] == [True, False, False]
    assert judged.faults()["score_not_finite"]["first"] == [{"prompt": "p0", "detail": "rewards nan and 1.0"}]


def test_progress_is_told_in_pairs() -> None:
    seen: list[tuple[Any, ...]] = []
    judge_outputs(RewardJudge(name="length", score=length, batch_size=2), A, B, lambda *told: seen.append(told))
    assert seen == [("judge", 2, 3, {}), ("judge", 3, 3, {})]


def test_score_of_another_length_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="1 rewards for 6 responses"):
        judge_outputs(RewardJudge(name="bad", score=lambda _: [1.0]), A, B)


def test_batch_size_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="batch_size"):
        RewardJudge(name="length", score=length, batch_size=0)


# --- reward models of transformers ---


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sequence classifier with one output, 24 positions."""
    from transformers import GPTNeoXConfig, GPTNeoXForSequenceClassification

    from mixlogit_align.alignment.hf import build_tokenizer

    folder = tmp_path_factory.mktemp("reward")
    tokenizer = build_tokenizer(["a prompt and a response"], 270)
    torch.manual_seed(0)
    sizes = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, num_labels=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    GPTNeoXForSequenceClassification(sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TEXTS = [("a prompt", " and a response"), ("a", ""), ("prompt", " \u00fc")]


def test_rewards_are_transformers_own(reward_folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from mixlogit_align.alignment.hf_reward import RewardModel

    model = AutoModelForSequenceClassification.from_pretrained(reward_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(reward_folder)
    with torch.no_grad():
        alone = [model(**tokenizer(p + r, return_tensors="pt")).logits.item() for p, r in TEXTS]
    # padded together or alone: float32 rounding of sums of 16
    assert RewardModel(str(reward_folder))(TEXTS) == pytest.approx(alone, abs=1e-5)


def test_chat_template_is_used_where_there_is_one(reward_folder: Path) -> None:
    from mixlogit_align.alignment.hf_reward import RewardModel

    plain, chat = RewardModel(str(reward_folder)), RewardModel(str(reward_folder))
    chat.tokenizer.chat_template = "{% for turn in messages %}{{ turn['role'][0] }}:{{ turn['content'] }}{% endfor %}"
    assert chat([("x", "y")]) == pytest.approx(plain([("u:x", "a:y")]), abs=1e-6)


def test_text_longer_than_the_model_takes_has_no_verdict(reward_folder: Path) -> None:
    from mixlogit_align.alignment.hf_reward import RewardModel

    judge = RewardJudge(name="tiny", score=RewardModel(str(reward_folder)))
    pairs = [
        ResponsePair(prompt="a", response="z" * 30, opponent_response="b"),
        ResponsePair(prompt="b", response="x", opponent_response="y"),
    ]
    assert [verdict.fault for verdict in judge.judge(pairs)] == ["score_not_finite", None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"id2label": {"0": "x", "1": "y"}}, "2 outputs", id="two outputs"),
        pytest.param({"model_type": "nonsense"}, "reward model", id="unknown kind"),
    ],
)
def test_models_that_give_no_reward_are_refused(
    change: dict[str, Any], message: str, reward_folder: Path, tmp_path: Path
) -> None:
    import shutil

    from mixlogit_align.alignment.hf_reward import RewardModel

    folder = tmp_path / "changed"
    shutil.copytree(reward_folder, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises(InvalidInputError, match=message):
        RewardModel(str(folder))


def test_policy_is_no_reward_model(tmp_path: Path) -> None:
    from mixlogit_align.alignment.config import NewModel
    from mixlogit_align.alignment.hf import build_policy, build_tokenizer
    from mixlogit_align.alignment.hf_reward import RewardModel

    tokenizer = build_tokenizer(["text"], 270)
    policy = build_policy(NewModel(hidden_size=16, num_layers=1, num_heads=2, max_positions=16), tokenizer, seed=0)
    policy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match="2 outputs"):
        RewardModel(str(tmp_path))
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"id2label": {"0": "reward"}}))
    with pytest.raises(InvalidInputError, match=r"no weights for score\.weight"):
        RewardModel(str(tmp_path))
