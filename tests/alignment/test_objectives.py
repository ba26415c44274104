"""What the stages optimise, where the policy broke: held-out comparisons say so, whatever the objective."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from mixlogit_align.alignment import AlignmentConfig, NonFiniteLossError, baseline_objectives, run_alignment
from mixlogit_align.alignment.baseline_objectives import build_objective, mismatched
from mixlogit_align.alignment.config import NewModel, OptimConfig, PreferenceConfig, StageConfig, TokenizationConfig
from mixlogit_align.alignment.data import Comparison
from mixlogit_align.alignment.data.batches import Collator, TokenizedComparison
from mixlogit_align.alignment.data.config import SimulatedData
from mixlogit_align.alignment.loss_config import KTO, BetaDPO
from mixlogit_align.alignment.strength import build_preference_loss

# one step, after which no log-probability is a number
BREAKS = {
    "optim": OptimConfig(name="adamw", lr=1e30, warmup_steps=0),
    "batch_size": 6,
    "eval_every_examples": 6,
    "eval_batch_size": 4,
}


@pytest.mark.parametrize(
    ("stages", "what"),
    [
        pytest.param({"sft": StageConfig(**BREAKS)}, "held-out log-probability", id="sft"),
        pytest.param({"preference": PreferenceConfig(**BREAKS)}, "held-out log-probability", id="mixdpo"),
        pytest.param({"preference": PreferenceConfig(loss=KTO(), **BREAKS)}, "responses to other prompts", id="kto"),
        pytest.param({"preference": PreferenceConfig(loss=BetaDPO(), **BREAKS)}, "held-out log-prob", id="beta-dpo"),
    ],
)
def test_a_policy_that_broke_in_the_last_step_does_not_finish(tmp_path, stages, what):
    config = AlignmentConfig(
        out=str(tmp_path / "run"),
        data=SimulatedData(num_train=6, num_eval=4, num_annotators=4),
        model=NewModel(hidden_size=16, num_layers=1, num_heads=2, vocab_size=300),
        tokenization=TokenizationConfig(max_length=48, max_prompt_length=24),
        **stages,
    )
    with pytest.raises(
        NonFiniteLossError, match=rf"{what}.* after step 1: got NaN or infinity, pair_ids \[6, 7, 8, 9\]"
    ):
        run_alignment(config)
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    (alarm,) = [alarm for alarm in told["alarms"] if alarm["name"] == "non_finite"]
    assert (told["status"], told["pair_ids"]) == ("failed", [6, 7, 8, 9])
    assert (alarm["stage"], alarm["step"]) == (*stages, 1)


def test_responses_to_other_prompts_are_put_together_once_a_split(monkeypatch):
    asked = []
    monkeypatch.setattr(
        baseline_objectives, "mismatched", lambda rows, make=mismatched: asked.append(len(rows)) or make(rows)
    )
    config = PreferenceConfig(loss=KTO())
    objective = build_objective(nn.Identity(), build_preference_loss(config), Collator(pad_id=0), config=config)
    objective.logps = lambda model, rows: torch.zeros(len(rows), 2, dtype=torch.float64)
    rows = [
        TokenizedComparison(
            comparison=Comparison(prompt=str(i), responses=("a", "b"), choice=0, pair_id=i, split="train"),
            input_ids=([i, 7], [i, 8]),
            prompt_length=1,
        )
        for i in range(3)
    ]
    objective.with_scores(rows, objective.scores(nn.Identity(), rows))
    assert asked == [3]
    assert all(row.reference_logps == (0.0, 0.0) for row in objective.mismatched.values())
