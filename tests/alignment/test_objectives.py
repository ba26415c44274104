"""What the stages optimise, where the policy broke: held-out comparisons say so, whatever the objective."""

from __future__ import annotations

import json

import pytest

from mixlogit_align.alignment import AlignmentConfig, NonFiniteLossError, run_alignment
from mixlogit_align.alignment.config import NewModel, OptimConfig, PreferenceConfig, StageConfig, TokenizationConfig
from mixlogit_align.alignment.data.config import SimulatedData
from mixlogit_align.alignment.loss_config import KTO, BetaDPO

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
