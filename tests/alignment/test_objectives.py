"""What the stages optimise, where the policy broke: held-out comparisons say so, whatever the objective."""

from __future__ import annotations

import json

import pytest

from mixlogit_align.alignment import AlignmentConfig, run_alignment
from mixlogit_align.alignment.config import NewModel, OptimConfig, PreferenceConfig, StageConfig, TokenizationConfig
from mixlogit_align.alignment.data.config import SimulatedData
from mixlogit_align.alignment.loss_config import KTO
from mixlogit_align.errors import InvalidInputError

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
        pytest.param({"sft": StageConfig(**BREAKS)}, "policy_chosen_logps", id="sft"),
        pytest.param({"preference": PreferenceConfig(**BREAKS)}, "policy_chosen_logps", id="mixdpo"),
        pytest.param({"preference": PreferenceConfig(loss=KTO(), **BREAKS)}, "responses to other prompts", id="kto"),
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
    with pytest.raises(InvalidInputError, match=rf"{what}: got nan in rows \[0, 1, 2, 3\], pair_ids \[6, 7, 8, 9\]"):
        run_alignment(config)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
