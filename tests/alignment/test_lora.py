"""Adapters: what they compute, that they alone are trained and saved, and the two ways in which they are exported."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pandas
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM

from mixlogit_align.alignment import AlignmentConfig, export_checkpoint, hf, run_alignment, sequence_logprobs
from mixlogit_align.alignment.adapters import add_adapters, merge_adapters
from mixlogit_align.alignment.checkpoint import Checkpoints, Position, TrainingState
from mixlogit_align.alignment.config import LoRAConfig, NewModel, OptimConfig, PretrainedModel
from mixlogit_align.errors import InvalidInputError
from tests.alignment.processes import largest_differences, on_ranks, tiny_policy, tiny_run, trajectory

RANK, SCALE = 3, 2.0
LORA = LoRAConfig(rank=RANK, alpha=6)
# Three steps a stage, the last of a single row, so that one process of two has none; evaluated and saved after each.
ROWS = {"num_train": 25, "num_eval": 9}
STAGE = {"batch_size": 12, "eval_every_examples": 12, "optim": OptimConfig(name="adamw", lr=1e-2, warmup_steps=2)}
IDS = torch.arange(2, 14).view(2, 6)
ATTENTION = {"llama": "q_proj", "gpt_neox": "query_key_value", "gemma": "q_proj"}  # gemma's embeddings are tied


def config(out: Path, policy: str, **changes) -> AlignmentConfig:
    return tiny_run(out, policy, **ROWS, stage=STAGE, **{"lora": LORA, **changes})


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("policies")
    return {architecture: tiny_policy(folder / architecture, architecture) for architecture in ATTENTION}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, policies) -> dict[str, Path]:
    """Runs of one process, exported as merged policies."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: run_alignment(config(folder / name, policies[name])).path for name in policies}


def loaded(folder: str) -> torch.nn.Module:
    source = PretrainedModel(path=folder)
    model = hf.skeleton(source, None, seed=0)
    hf.load_weights(model, source, torch.device("cpu"), torch.float32)
    return model


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "policy" / "model.safetensors")


# --- what an adapter is ----------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ATTENTION)
def test_fresh_adapters_change_nothing_and_alone_are_trained(policies, architecture):
    model, plain = loaded(policies[architecture]), loaded(policies[architecture])
    state = torch.get_rng_state()
    add_adapters(model, LORA, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}
    linear = [m for block in model.base_model.layers for m in block.modules() if isinstance(m, torch.nn.Linear)]
    assert len(trained) == 2 * len([m for m in linear if m.weight.requires_grad is False])
    mask = torch.ones_like(IDS, dtype=torch.bool)
    mask[:, 0] = False
    assert torch.equal(sequence_logprobs(model, IDS, mask), sequence_logprobs(plain, IDS, mask))


def test_gradients_are_those_of_the_weight_through_the_product(policies):
    # W + (alpha / rank) B A: B has the gradient (alpha / rank) G A^T where W has G, and A, at B = 0, has 0
    model, plain = loaded(policies["llama"]), loaded(policies["llama"])
    add_adapters(model, LORA, seed=0)
    for each in (model, plain):
        each(input_ids=IDS).logits.log_softmax(-1)[..., 5].sum().backward()
    layer, whole = (each.model.layers[1].self_attn.q_proj for each in (model, plain))
    expected = SCALE * whole.weight.grad @ layer.lora_A["default"].weight.detach().T
    torch.testing.assert_close(layer.lora_B["default"].weight.grad, expected)
    assert layer.lora_A["default"].weight.grad.abs().max() == 0
    assert layer.base_layer.weight.grad is None


@pytest.mark.parametrize("architecture", ATTENTION)
def test_merged_weights_are_the_sum(policies, architecture):
    model = loaded(policies[architecture])
    add_adapters(model, LoRAConfig(rank=RANK, alpha=6, targets=(ATTENTION[architecture],)), seed=0)
    factors = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in factors.values():
            parameter.normal_(generator=torch.Generator().manual_seed(len(factors)))
    before = loaded(policies[architecture]).state_dict()
    logits = model(input_ids=IDS).logits.detach()
    merge_adapters(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    adapted = {name.partition(".lora_")[0] + ".weight" for name in factors}
    assert {name for name in after if not torch.equal(after[name], before[name])} == adapted
    name = min(adapted)
    a, b = (factors[name.replace(".weight", f".lora_{part}.default.weight")].detach() for part in "AB")
    torch.testing.assert_close(after[name] - before[name], SCALE * b @ a, rtol=1e-5, atol=1e-5)
    # float32: two products against one
    torch.testing.assert_close(model(input_ids=IDS).logits, logits, rtol=1e-3, atol=1e-3)


# --- a run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ATTENTION)
def test_a_run_changes_adapted_weights_alone_and_by_the_rank(policies, alone, architecture):
    before, after = load_file(Path(policies[architecture]) / "model.safetensors"), weights(alone[architecture])
    assert before.keys() == after.keys()
    changes = {name: after[name].double() - before[name].double() for name in after}
    changed = {name for name, change in changes.items() if change.abs().max() > 0}
    assert changed == {name for name in after if after[name].ndim == 2 and ".layers." in name and "rotary" not in name}
    # rounding of the merged weights is 1e-8 and less; what training did 1e-2
    assert {int(torch.linalg.matrix_rank(changes[name], atol=1e-5)) for name in changed} == {RANK}
    first, *_, last = (record for record in trajectory(alone[architecture]) if record["stage"] == "sft")
    assert last["loss"] < first["loss"]


def reference(out: Path, policy: str, **changes) -> torch.Tensor:
    """Log-probabilities of all responses under the reference of a run."""
    settings = config(out, policy, **changes)
    assert settings.preference is not None
    preference = dataclasses.replace(settings.preference, reference_cache=str(out.with_suffix(".parquet")))
    run_alignment(dataclasses.replace(settings, preference=preference))
    logps = pandas.read_parquet(out.with_suffix(".parquet")).logps
    return torch.tensor(logps.map(list).tolist(), dtype=torch.float64)


def test_the_reference_is_the_policy_without_fresh_adapters(policies, tmp_path):
    adapted = reference(tmp_path / "adapted", policies["llama"], sft=None)
    plain = reference(tmp_path / "plain", policies["llama"], sft=None, lora=None)
    assert torch.equal(adapted, plain)
    # and so one cache serves both
    shutil.copy(tmp_path / "adapted.parquet", tmp_path / "shared.parquet")
    assert torch.equal(reference(tmp_path / "shared", policies["llama"], sft=None, lora=None), plain)
    assert trajectory(tmp_path / "shared") == trajectory(tmp_path / "plain")


def test_a_float32_reference_has_the_adapters_of_the_first_stage(policies, tmp_path):
    tuned = tmp_path / "tuned"
    run_alignment(config(tuned, policies["llama"], precision="bfloat16", preference=None))
    one = reference(tmp_path / "both", policies["llama"], precision="bfloat16")
    other = reference(tmp_path / "one", str(tuned / "policy"), sft=None, lora=None)
    before = reference(tmp_path / "none", policies["llama"], sft=None, lora=None)
    # float32, adapters merged or not: 1e-5 a token; in bfloat16 it would be 1e-2 and more
    torch.testing.assert_close(one, other, rtol=0, atol=5e-4)
    assert (one - before).abs().mean() > 0.1


def train_and_train_with_a_break(unbroken: AlignmentConfig, broken: AlignmentConfig) -> None:
    run_alignment(unbroken)
    save = Checkpoints.save

    def save_and_stop(self: Checkpoints, state: TrainingState, position: Position) -> None:
        save(self, state, position)
        if (position.stage, position.step) == ("preference", 2):
            raise KeyboardInterrupt  # on every process at once

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run_alignment(broken)
    run_alignment(broken, resume=True)


def test_two_processes_train_as_one_and_resume(policies, alone, tmp_path):
    both = [config(tmp_path / name, policies["gemma"], activation_checkpointing=True) for name in ("one", "other")]
    on_ranks(2, train_and_train_with_a_break, *both)
    assert trajectory(tmp_path / "other") == trajectory(tmp_path / "one")
    # as in test_distributed: sums in another order
    assert max(largest_differences(trajectory(alone["gemma"]), trajectory(tmp_path / "one")).values()) < 1e-5
    one, other = weights(alone["gemma"]), weights(tmp_path / "one")
    # AdamW moves each number by up to 1e-2 a step; where its gradient is rounding alone, the direction is too
    distances = [float((one[name] - other[name]).norm() / one[name].norm()) for name in one]
    assert max(distances) < 1e-3


# --- checkpoints -----------------------------------------------------------------------------------


def interrupt(stage: str, done: int, total: int, metrics: object) -> None:
    if (stage, done) == ("preference", 24):
        raise KeyboardInterrupt


@pytest.mark.parametrize("architecture", ["llama", "gemma"])
def test_a_resumed_run_is_the_run_without_a_break(policies, alone, tmp_path, architecture):
    settings = config(tmp_path, policies[architecture])
    with pytest.raises(KeyboardInterrupt):
        run_alignment(settings, progress=interrupt)
    run_alignment(settings, resume=True)
    assert trajectory(tmp_path) == trajectory(alone[architecture])
    files = ("policy/model.safetensors", "log_ratios.parquet", "strength.json")
    assert [f for f in files if (tmp_path / f).read_bytes() != (alone[architecture] / f).read_bytes()] == []


def test_checkpoints_hold_adapters_and_strength_alone(alone):
    (checkpoint,) = (alone["gemma"] / "checkpoints").iterdir()
    names = set(FileSystemReader(checkpoint).read_metadata().state_dict_metadata)
    module = {name for name in names if name.startswith("module.")}
    assert (
        {name for name in module if ".lora_" not in name}
        == {name for name in module if name.startswith("module.preference_loss.")}
        != set()
    )
    adapters = {name.removeprefix("module.policy.") for name in module if ".lora_" in name}
    assert len(adapters) == 2 * 2 * 7  # A and B of seven layers in two blocks
    state = {name.partition(".policy.")[2].rpartition(".")[0] for name in names if name.startswith("optimizer.state.")}
    assert state - {""} == adapters


def test_a_changed_base_is_refused(policies, tmp_path):
    shutil.copytree(policies["llama"], tmp_path / "policy")
    settings = config(tmp_path / "run", str(tmp_path / "policy"))
    with pytest.raises(KeyboardInterrupt):
        run_alignment(settings, progress=interrupt)
    file = tmp_path / "policy" / "model.safetensors"
    changed = load_file(file)
    changed["model.norm.weight"] = changed["model.norm.weight"] * 1.5
    save_file(changed, file, metadata={"format": "pt"})
    with pytest.raises(InvalidInputError, match="another base"):
        run_alignment(settings, resume=True)


# --- exports ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # what peft asks transformers
def test_an_adapter_folder_is_read_by_peft(policies, alone, tmp_path):
    run_alignment(config(tmp_path, policies["llama"], lora=dataclasses.replace(LORA, export="adapter")))
    assert not (tmp_path / "policy").exists()
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["base_model_name_or_path"]) == (RANK, 6, policies["llama"])
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policies["llama"]), tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(alone["llama"] / "policy")
    with torch.no_grad():
        one, other = theirs(input_ids=IDS).logits, merged(input_ids=IDS).logits
    # float32: two products against one
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("export", ["merged", "adapter"])
def test_the_last_checkpoint_is_exported_as_the_run_would(policies, tmp_path, export):
    settings = config(tmp_path / "run", policies["llama"], lora=dataclasses.replace(LORA, export=export))
    run_alignment(settings)
    folder = export_checkpoint(tmp_path / "run", tmp_path / "exported")
    ours = tmp_path / "run" / folder.name
    assert folder == tmp_path / "exported" / {"merged": "policy", "adapter": "adapter"}[export]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in ours.iterdir()
    }


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "bfloat16_parameters"}, r"precision: got 'bfloat16_parameters'; expected float32 parameters"),
        (
            {"model": NewModel(), "lora": LoRAConfig(export="adapter")},
            r"lora\.export: got 'adapter'; expected merged, for a new model",
        ),
    ],
    ids=["bfloat16_parameters", "adapter-of-a-new-model"],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(InvalidInputError, match=message):
        config(tmp_path, "anywhere", **changes)


@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0}, {"targets": ()}, {"targets": ("all", "q_proj")}])
def test_adapters_that_cannot_be_are_refused(settings):
    with pytest.raises(InvalidInputError, match=next(iter(settings))):
        LoRAConfig(**settings)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "query"])
def test_targets_are_linear_layers_of_the_blocks(policies, tmp_path, target):
    lora = dataclasses.replace(LORA, targets=("q_proj", target))
    message = rf"lora\.targets: got {target}; expected linear layers .*: down_proj, .*, up_proj"
    with pytest.raises(InvalidInputError, match=message):
        run_alignment(config(tmp_path / "run", policies["llama"], lora=lora))
    assert not (tmp_path / "run").exists()


def test_without_peft_they_are_refused(policies, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InvalidInputError, match=r"lora: got .*no package peft.*mixlogit_align\[lora\]"):
        run_alignment(config(tmp_path / "run", policies["llama"]))
    assert not (tmp_path / "run").exists()
