"""A whole run: what its folder holds, what it learns, and what is left when it is interrupted or fails."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import torch

from mixlogit_align.alignment import (
    AlignmentConfig,
    NonFiniteLossError,
    demo_runs,
    export_checkpoint,
    load_config,
    metrics_log,
    run_alignment,
    runner,
    sequence_logprobs,
)
from mixlogit_align.alignment.config import (
    CheckpointConfig,
    ClosedFormRule,
    FrozenUpdate,
    GammaStrength,
    LearnedUpdate,
    LogNormalStrength,
    MonteCarloRule,
    NewModel,
    OptimConfig,
    PointStrength,
    PreferenceConfig,
    PretrainedModel,
    QuadratureRule,
    StageConfig,
    TokenizationConfig,
)
from mixlogit_align.alignment.data import load_data
from mixlogit_align.alignment.data.config import HHData, HumourData, SimulatedData, TableData
from mixlogit_align.alignment.evaluation import policy_pairs, run_pairs
from mixlogit_align.alignment.finished import SUPERVISED
from mixlogit_align.alignment.folder import RunFolder
from mixlogit_align.alignment.hf import load
from mixlogit_align.alignment.parallel import World
from mixlogit_align.alignment.tokenization import tokenize
from mixlogit_align.errors import InvalidInputError, MixlogitError

TINY = NewModel(hidden_size=16, num_layers=1, num_heads=2, vocab_size=300)
PREFERENCE_KEYS = {
    "stage", "split", "step", "examples_seen", "loss", "rewards/accuracies", "rewards/margins", "margin/sum",
    "log_ratio/margins", "log_ratio/sd", "pair_weight",
    "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected",
    "strength/mean", "strength/sd", "strength/drift_share", "seconds",
}  # fmt: skip
STEP_KEYS = {
    "grad_norm", "grad_norm/strength", "learning_rate", "learning_rate/strength", "tokens", "examples_per_second",
    "tokens_per_second",
}  # fmt: skip


def tiny_config(out: Path, **changes) -> AlignmentConfig:
    optim = OptimConfig(name="adamw", lr=3e-3, warmup_steps=2)
    stage = {"optim": optim, "batch_size": 16, "eval_every_examples": 32}
    settings = {
        "out": str(out),
        "data": SimulatedData(num_train=64, num_eval=24, num_annotators=8),
        "model": TINY,
        "sft": StageConfig(**stage),
        "preference": PreferenceConfig(**stage, strength=LogNormalStrength(update=LearnedUpdate(lr=1e-2))),
    }
    return AlignmentConfig(**{**settings, **changes})


def records(folder: Path, stage: str, split: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if (line["stage"], line["split"]) == (stage, split)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    return run_alignment(tiny_config(out))


# --- the run folder --------------------------------------------------------------------------------


def test_the_folder_says_how_it_was_made(finished):
    config = load_config(finished.path / "config.yaml")
    assert config == dataclasses.replace(tiny_config(finished.path), name="tiny")  # as its folder is called
    status = json.loads((finished.path / "run.json").read_text())
    assert status["status"] == "finished"
    assert status["metrics"] == finished.metrics
    assert status["versions"]["torch"] == importlib.metadata.version("torch")
    assert f"{torch.get_num_threads()} torch threads" in status["machine"]
    report = json.loads((finished.path / "data.json").read_text())
    assert report["reader"]["rows_used"] == 88
    assert report["tokenization"]["train"]["responses"]["texts"] == 128


def test_metrics_have_the_promised_names(finished):
    train, held_out = records(finished.path, "preference", "train"), records(finished.path, "preference", "eval")
    parameters = {"strength/loc", "strength/scale"}
    assert {frozenset(r) for r in train} == {frozenset(PREFERENCE_KEYS | STEP_KEYS | parameters)}
    assert {frozenset(r) for r in held_out} == {frozenset(PREFERENCE_KEYS | parameters)}
    assert [r["examples_seen"] for r in held_out] == [0, 32, 64]
    sft = records(finished.path, "sft", "eval")
    assert sft[-1]["loss"] < sft[0]["loss"]


def test_training_starts_where_policy_and_reference_agree(finished):
    start = records(finished.path, "preference", "eval")[0]
    assert start["loss"] == pytest.approx(math.log(2), abs=1e-5)
    # float32 sums of ten log-probabilities
    assert abs(start["log_ratio/margins"]) < 1e-4
    assert start["log_ratio/sd"] < 1e-4
    assert start["pair_weight"] == pytest.approx(1.0, abs=1e-4)


def test_the_strength_record_is_the_trajectorys_end(finished):
    strength = json.loads((finished.path / "strength.json").read_text())
    last = records(finished.path, "preference", "eval")[-1]
    assert strength["mean"] == last["strength/mean"] != strength["initial"]["mean"]
    assert strength["truth"]["cv"] == 1.0
    assert strength == finished.strength
    moved = abs(strength["parameters"]["loc"] - strength["initial"]["parameters"]["loc"])
    assert 0 < moved <= 1.01 * strength["constant_gradient_drift"]


def test_log_ratios_are_the_held_out_ones(finished):
    table = pyarrow.parquet.read_table(finished.path / "log_ratios.parquet")
    data = load_data(load_config(finished.path / "config.yaml").data).split("eval")
    promised = {"pair_id", "annotator_id", "groups", "weight", "logratio_diff", "pair_weight", "policy_chosen"}
    assert promised <= set(table.column_names)
    assert table["pair_id"].to_pylist() == [row.pair_id for row in data]
    assert table["annotator_id"].to_pylist() == [row.annotator_id for row in data]
    assert [json.loads(g) for g in table["groups"].to_pylist()] == [dict(row.groups) for row in data]
    delta = torch.tensor(table["logratio_diff"].to_pylist(), dtype=torch.float64)
    assert delta.mean().item() == pytest.approx(finished.metrics["preference"]["log_ratio/margins"], abs=1e-9)


def test_the_policy_comes_back_from_its_folder_as_it_was_judged(finished):
    config = load_config(finished.path / "config.yaml")
    policy, tokenizer = load(PretrainedModel(path=str(finished.path / "policy")), [], seed=0)
    rows, _ = tokenize(load_data(config.data).split("eval"), tokenizer, config.tokenization)
    chosen = []
    for row in rows:
        ids = torch.tensor([row.input_ids[row.comparison.choice]])
        with torch.no_grad():
            chosen.append(sequence_logprobs(policy, ids, torch.arange(ids.shape[1])[None] >= row.prompt_length))
    assert torch.cat(chosen).mean().item() == pytest.approx(finished.metrics["preference"]["logps/chosen"], rel=1e-5)


def test_the_policy_between_the_stages_is_kept_and_is_the_reference(finished):
    config = load_config(finished.path / "config.yaml")
    between = policy_pairs(finished.path / SUPERVISED, config.data, config.tokenization)
    found = run_pairs(finished.path)
    # float32 sums of a few dozen nats
    assert between.policy_chosen == pytest.approx(found.reference_chosen, rel=1e-5)
    assert between.policy_rejected == pytest.approx(found.reference_rejected, rel=1e-5)
    assert not np.allclose(between.policy_chosen, found.policy_chosen, rtol=1e-3)


def test_a_run_repeats_itself(finished, tmp_path):
    again = run_alignment(dataclasses.replace(load_config(finished.path / "config.yaml"), out=str(tmp_path / "again")))
    assert again.metrics == finished.metrics
    assert again.strength == finished.strength


def test_a_run_can_start_from_anothers_policy(finished, tmp_path):
    config = tiny_config(tmp_path / "next", model=PretrainedModel(path=str(finished.path / "policy")), sft=None)
    result = run_alignment(config)
    assert result.metrics.keys() == {"preference"}
    assert records(result.path, "preference", "eval")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_a_folder_that_holds_a_run_is_not_written_over(finished):
    with pytest.raises(InvalidInputError, match="which holds a run"):
        run_alignment(tiny_config(finished.path))
    assert (finished.path / "policy").is_dir()


def test_overwriting_is_asked_for(tmp_path):
    out = tmp_path / "run"
    config = tiny_config(out, sft=None)
    run_alignment(config)
    run_alignment(dataclasses.replace(config, preference=None, sft=StageConfig()), overwrite=True)
    assert not (out / "strength.json").exists()


# --- methods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strength", "integration", "learned"),
    [
        (PointStrength(), None, False),
        (PointStrength(update=LearnedUpdate(lr=1e-2)), None, True),
        (LogNormalStrength(update=LearnedUpdate(lr=1e-2)), MonteCarloRule(num_draws=16), True),
        (LogNormalStrength(update=LearnedUpdate(lr=1e-2)), QuadratureRule(), True),
        (GammaStrength(update=LearnedUpdate(lr=1e-2)), ClosedFormRule(), True),
        (GammaStrength(update=FrozenUpdate()), None, False),
    ],
    ids=str,
)
def test_every_method_trains(tmp_path, strength, integration, learned):
    rule = {} if integration is None else {"integration": integration}
    preference = PreferenceConfig(strength=strength, batch_size=16, eval_every_examples=64, **rule,
                                  optim=OptimConfig(name="adamw", lr=1e-3, warmup_steps=1))  # fmt: skip
    result = run_alignment(tiny_config(tmp_path / "run", sft=None, preference=preference))
    train = records(result.path, "preference", "train")
    assert train[-1]["loss"] < math.log(2) + 0.05
    assert ("grad_norm/strength" in train[0]) == learned
    assert (result.strength["mean"] != result.strength["initial"]["mean"]) == learned


def test_a_small_policy_learns_what_simulated_annotators_prefer(tmp_path):
    optim = OptimConfig(name="adamw", lr=3e-3, warmup_steps=5)
    stage = {"optim": optim, "batch_size": 32, "eval_every_examples": 1024}
    config = tiny_config(
        tmp_path / "run",
        data=SimulatedData(num_train=1024, num_eval=512, strength_cv=0.0),
        model=NewModel(hidden_size=32, num_layers=1, num_heads=2, vocab_size=512),
        sft=StageConfig(**stage),
        preference=PreferenceConfig(**stage, num_epochs=2, strength=GammaStrength(update=LearnedUpdate(lr=1e-2))),
    )
    held_out = run_alignment(config).truth["held_out"]
    # one seed, so no false failures by chance; the margins leave room for other BLAS libraries
    assert held_out["utility/correlation"] > 0.85
    assert held_out["accuracy"] > held_out["attainable/accuracy"] - 0.08
    assert held_out["attainable/accuracy"] > 0.75
    assert 0.0 < held_out["kl"] < 0.15


@pytest.mark.parametrize("source", ["hh", "humour"])
def test_shared_data_through_a_config(shared_data, tmp_path, source):
    data = {
        "hh": HHData(path=str(shared_data / "hh_rlhf"), max_train=32, max_eval=16),
        "humour": HumourData(path=str(shared_data / "humour_pairs"), max_train=32, max_eval=16),
    }[source]
    result = run_alignment(
        tiny_config(tmp_path / "run", data=data, tokenization=TokenizationConfig(max_length=96, max_prompt_length=32))
    )
    assert result.truth is None
    assert not (result.path / "truth.json").exists()
    report = json.loads((result.path / "data.json").read_text())
    assert (report["tokenization"]["train"]["responses"]["cut"] > 0) == (source == "hh")
    assert math.isfinite(result.metrics["preference"]["loss"])


# --- interruption and failure ----------------------------------------------------------------------


def test_an_interrupted_run_stays_readable(tmp_path):
    out = tmp_path / "run"

    def interrupt(task, done, total, metrics):
        if task == "preference" and done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_alignment(tiny_config(out), progress=interrupt)
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    assert [r["step"] for r in records(out, "preference", "train")] == [1, 2]
    assert load_config(out / "config.yaml") == tiny_config(out).named()
    assert json.loads((out / "strength.json").read_text())["family"] == "lognormal"


def test_nan_stops_the_run_and_its_pairs_are_saved(tmp_path):
    optim = OptimConfig(name="adamw", lr=1e30, warmup_steps=0)
    config = tiny_config(tmp_path / "run", preference=None, sft=StageConfig(optim=optim, batch_size=16,
                                                                            eval_every_examples=64))  # fmt: skip
    with pytest.raises(NonFiniteLossError) as raised:
        run_alignment(config)
    status = json.loads((tmp_path / "run" / "run.json").read_text())
    assert status["status"] == "failed"
    assert status["pair_ids"] == raised.value.pair_ids != []
    assert not (tmp_path / "run" / "policy").exists()


def test_a_policy_that_is_not_its_own_reference_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "FLOAT32_SPREAD", -1.0)
    with pytest.raises(MixlogitError, match="before the first step"):
        run_alignment(tiny_config(tmp_path / "run", sft=None))
    status = json.loads((tmp_path / "run" / "run.json").read_text())
    assert status["status"] == "failed"
    assert "before the first step" in status["error"]


def test_a_rule_that_does_not_fit_is_refused_before_any_training(tmp_path):
    preference = PreferenceConfig(strength=LogNormalStrength(), integration=ClosedFormRule())
    with pytest.raises(InvalidInputError, match=r"got `rule: closed_form` .*Try `integration: \{rule: best\}`"):
        run_alignment(tiny_config(tmp_path / "run", preference=preference))
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_is_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(InvalidInputError, match=r"device: got 'cuda:99' .*Try `device: cpu`"):
        run_alignment(tiny_config(tmp_path / "run", device="cuda:99"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("state", "status"), [('{"status": "failed"}', "failed"), ("{", "unknown"), (None, "unknown")])
def test_a_run_in_the_way_says_how_it_ended(tmp_path, state, status):
    (tmp_path / "config.yaml").touch()
    if state is not None:
        (tmp_path / "run.json").write_text(state)
    with pytest.raises(InvalidInputError, match=rf"status: {status}.*--overwrite"):
        run_alignment(tiny_config(tmp_path))


@pytest.mark.parametrize("option", ["new", "overwrite", "resume"])
def test_a_folder_that_holds_no_run_is_refused_and_left_alone(tmp_path, option):
    """Taken for a run's, it would be emptied when the run is replaced."""
    (tmp_path / "figs").mkdir()
    (tmp_path / "figs" / "thesis.pdf").write_text("years of work")
    with pytest.raises(InvalidInputError, match=r"holds no run, but thesis\.pdf; expected a new or an empty folder"):
        run_alignment(tiny_config(tmp_path / "figs"), **({} if option == "new" else {option: True}))
    assert [path.name for path in (tmp_path / "figs").iterdir()] == ["thesis.pdf"]


def test_a_run_that_was_killed_before_it_had_settings_is_begun_again(tmp_path):
    (tmp_path / ".config.yaml.new").write_text("data: {sou")
    assert RunFolder(tiny_config(tmp_path), World()).found(overwrite=False, resume=True) == "new"


def test_the_seconds_of_a_run_hold_those_of_compiling(tmp_path, monkeypatch):
    """Also the first, of the line that shows whether this machine can compile; here it takes 1000 seconds."""
    ahead = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + ahead[0])
    for module in (runner, metrics_log):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(runner, "require_compiler", lambda world: ahead.append(ahead.pop() + 1000.0))
    for name in ("compile_blocks", "try_compiled"):
        monkeypatch.setattr(runner, name, lambda *args, **options: None)
    result = run_alignment(tiny_config(tmp_path / "run", sft=None, compile=True))
    assert result.seconds > 1000.0


def test_a_file_is_no_folder_for_a_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match="which is a file; expected a new folder"):
        run_alignment(tiny_config(tmp_path / "file"))


def results_beside(folder: Path) -> None:
    """What other commands write into a run's folder by default, and a win rate under a name of one's own."""
    for name in ("evaluation.json", "pairs.parquet", "gains-over-dpo.json", "report.html", ".run.json.new"):
        (folder / name).touch()
    for name in ("winrate-dpo", "heterogeneity", "wins"):
        (folder / name).mkdir()
    (folder / "wins" / "winrate.json").touch()


def test_replacing_a_run_leaves_no_result_of_the_earlier_one(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "run")
    results_beside(tmp_path / "run")
    folder = RunFolder(tiny_config(tmp_path / "run"), World())
    assert folder.found(overwrite=True, resume=False) == "new"
    folder.begin(replace=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_replacing_a_run_is_refused_where_it_would_take_what_is_not_the_runs(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "run")
    results_beside(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    config = tiny_config(tmp_path / "run")
    with pytest.raises(InvalidInputError, match=r"holds beside a run notes\.txt; .*Try moving them elsewhere"):
        run_alignment(config, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
    # nor is what comes while the new run reads its data
    RunFolder(config, World()).begin(replace=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "notes.txt"]


# --- demonstration ---------------------------------------------------------------------------------


def test_demo_runs(tmp_path):
    tasks = []
    results = demo_runs(tmp_path, progress=lambda task, *_: tasks.append(task), quick=True)
    assert len(results) == 9
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert truth.keys() == {result.path.name for result in results[1:]}
    assert {run["strength"]["cv"] for run in truth.values()} == {0.0, 1.0}
    assert len({result.path for result in results}) == 9
    assert tasks[0] == "sft"
    assert tasks[-1] == "cv0 mixdpo gamma closed form"
    assert all(result.truth["held_out"]["accuracy"] > 0.6 for result in results[1:])


def test_the_last_checkpoint_is_exported_as_the_run_would(finished, tmp_path):
    policy = export_checkpoint(finished.path, tmp_path / "exported")
    assert json.loads((policy.parent / "strength.json").read_text()) == finished.strength
    weights = [
        load(PretrainedModel(path=str(path)), [], seed=0)[0].state_dict() for path in (policy, finished.path / "policy")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert [name for name, value in weights[0].items() if not torch.equal(value, weights[1][name])] == []


def test_a_run_that_saved_nothing_has_nothing_to_export(tmp_path):
    config = tiny_config(tmp_path / "run", sft=None, checkpoint=CheckpointConfig(keep=0))
    run_alignment(config)
    with pytest.raises(InvalidInputError, match="no checkpoint"):
        export_checkpoint(tmp_path / "run", tmp_path / "exported")


def test_parameters_in_bfloat16_are_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="bfloat16_parameters stores the policy in bfloat16"):
        run_alignment(tiny_config(tmp_path / "run", sft=None, precision="bfloat16_parameters"))
    assert records(tmp_path / "run", "preference", "eval")[-1]["loss"] < math.log(2) + 0.05


def test_a_float32_reference_of_a_bfloat16_policy(tmp_path):
    spreads = {}
    for reference in ("float32", "match"):
        base = tiny_config(tmp_path / reference, sft=None, precision="bfloat16")
        preference = dataclasses.replace(base.preference, reference_precision=reference)
        run_alignment(dataclasses.replace(base, preference=preference))
        spreads[reference] = records(tmp_path / reference, "preference", "eval")[0]["log_ratio/sd"]
    # the policy against itself, and against itself without rounding to 8 bits
    assert spreads["match"] == 0.0
    assert 1e-3 < spreads["float32"] < 0.5


def test_sequences_longer_than_the_models_positions_are_refused(finished, tmp_path):
    few = tmp_path / "few"
    shutil.copytree(finished.path / "policy", few)
    settings = json.loads((few / "config.json").read_text())
    (few / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 10}))
    with pytest.raises(InvalidInputError, match=r"expected at most the 10 positions.*max_length=10"):
        run_alignment(tiny_config(tmp_path / "run", model=PretrainedModel(path=str(few))))


@pytest.mark.parametrize(
    ("wrong", "message"), [("data", "absent"), ("model", "absent"), ("sets", "expected pairs in a preference stage")]
)
def test_what_cannot_be_read_leaves_the_folder_alone(finished, tmp_path, wrong, message):
    """Neither a folder that a corrected command would stumble over, nor the loss of a run that was to be replaced."""
    kept = tmp_path / "kept"
    shutil.copytree(finished.path, kept)
    changes = {
        "data": {"data": HHData(path="absent")},
        "model": {"model": PretrainedModel(path="absent")},
        "sets": {"data": three_responses(tmp_path)},
    }[wrong]
    with pytest.raises(InvalidInputError, match=message):
        run_alignment(tiny_config(tmp_path / "new", **changes))
    with pytest.raises(InvalidInputError, match=message):
        run_alignment(tiny_config(kept, **changes), overwrite=True)
    assert not (tmp_path / "new").exists()
    assert json.loads((kept / "run.json").read_text())["status"] == "finished"
    assert (kept / "policy" / "model.safetensors").exists()


def three_responses(folder: Path) -> TableData:
    """A table of comparisons of three responses, kept as sets."""
    rows = [{"prompt": f"number {i}", "responses": [" a", " b", " c"], "choice": 0} for i in range(20)]
    (folder / "sets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"prompt": "prompt", "responses": ("responses",), "choice": "choice"}
    return TableData(path=str(folder / "sets.jsonl"), sets="sets", eval_fraction=0.3, **columns)


def test_a_run_does_not_go_on_in_another_precision_on_another_device(finished):
    """`precision: auto` means float32 on a CPU and bfloat16 on a GPU."""
    config = dataclasses.replace(load_config(finished.path / "config.yaml"), device="cuda")
    with pytest.raises(InvalidInputError, match="precision='bfloat16', was 'float32'"):
        RunFolder(config, World()).found(overwrite=False, resume=True)
    same = dataclasses.replace(config, precision="float32")
    assert RunFolder(same, World()).found(overwrite=False, resume=True) == "finished"
