"""MixDPO in TRL: its DPO at a point, else a loop written out; however batches are cut; saved, resumed, refused."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import tomllib
import warnings
from pathlib import Path
from typing import Any

import datasets
import pyro.distributions as dist
import pytest
import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from packaging.requirements import Requirement
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from mixlogit_align import ClosedForm, LearnableMixing, MonteCarlo
from mixlogit_align.alignment import CheckpointError, mixdpo_loss, sequence_logprobs
from mixlogit_align.alignment import trl as adapter
from mixlogit_align.alignment.trl import MixDPOTrainer
from mixlogit_align.errors import InvalidInputError
from tests.alignment.processes import on_ranks, tiny_policy

# This trl still uses names that this transformers deprecates.
DEPRECATED = r".*is deprecated and will be removed in v6"
pytestmark = pytest.mark.filterwarnings(f"ignore:{DEPRECATED}:FutureWarning")

# Float32 adds up in another order, 6e-8 a sum, carried on by a few steps. A pair counted twice
# moves losses by percents.
TOLERANCE = 1e-5

STEPS = 4
SETTINGS = {
    "optim": "rmsprop", "learning_rate": 1e-3, "lr_scheduler_type": "constant", "max_steps": STEPS, "logging_steps": 1,
    "per_device_train_batch_size": 6, "per_device_eval_batch_size": 4, "save_strategy": "no", "report_to": "none",
    "use_cpu": True, "bf16": False, "activation_checkpointing": False, "dataloader_pin_memory": False,
    "disable_tqdm": True,
}  # fmt: skip


def data(count: int) -> Dataset:
    """Pairs of responses of one to four words."""
    rows = [
        {"prompt": f"the fox {i}", "chosen": " jumps over" + " dog" * (i % 3), "rejected": " lazy" * (1 + i % 4)}
        for i in range(count)
    ]
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "policy", "gpt_neox")


@pytest.fixture(autouse=True)
def quiet() -> Any:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def trainer(
    policy: str, out: Path, settings: dict | None = None, *, kind: type = MixDPOTrainer, rows: int = 10, **options: Any
) -> Any:
    return kind(
        policy,
        args=DPOConfig(output_dir=str(out), **{**SETTINGS, **(settings or {})}),
        train_dataset=data(rows),
        processing_class=AutoTokenizer.from_pretrained(policy),
        **options,
    )


def records(trained: Any, name: str = "loss") -> list[float]:
    return [record[name] for record in trained.state.log_history if name in record]


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def strength(trained: MixDPOTrainer) -> torch.Tensor:
    return torch.stack([parameter.detach() for parameter in trained.mixing.parameters()])


# --- what it computes ------------------------------------------------------------------------------


class WithMixDPO(DPOTrainer):
    """The loss in a trainer of one's own, as the README has it."""

    mixing = LearnableMixing.point(0.1).requires_grad_(False)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        ids = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        chosen, rejected = model(**ids, labels=labels, fused_lm_head=True).log_probs.sum(1).chunk(2)
        reference = self.compute_ref_log_probs(self.ref_model, inputs)
        per_example, _, _ = mixdpo_loss(chosen, rejected, *reference, mixing=self.mixing)
        return per_example.mean()


@pytest.mark.parametrize("kind", [MixDPOTrainer, WithMixDPO], ids=["trainer", "override"])
def test_a_point_is_the_dpo_of_trl(kind: type, policy: str, tmp_path: Path) -> None:
    options = {"mixing": LearnableMixing.point(0.1), "strength_lr": None} if kind is MixDPOTrainer else {}
    theirs = trainer(policy, tmp_path / "theirs", kind=DPOTrainer, eval_dataset=data(8))
    ours = trainer(policy, tmp_path / "ours", kind=kind, eval_dataset=data(8), **options)
    theirs.train()
    ours.train()
    assert records(theirs)[-1] < 0.5  # something was learned
    assert records(ours) == pytest.approx(records(theirs), abs=TOLERANCE)
    assert records(ours, "grad_norm") == pytest.approx(records(theirs, "grad_norm"), rel=TOLERANCE)
    held_out = theirs.evaluate()
    shared = {name for name in held_out if not name.endswith(("runtime", "second"))}
    if kind is WithMixDPO:
        shared = {"eval_loss", "epoch"}
    found = ours.evaluate()
    assert {name: found[name] for name in shared} == pytest.approx(
        {name: held_out[name] for name in shared}, rel=TOLERANCE, abs=TOLERANCE
    )


def test_a_learned_strength_is_that_of_a_loop_written_out(policy: str, tmp_path: Path) -> None:
    """Two parameter groups clipped apart, on batches of all the data, log-probabilities from another path."""
    lr, norm = 1e-2, 0.05
    ours = trainer(policy, tmp_path, rows=6, strength_lr=lr, strength_max_grad_norm=norm)
    model, reference = (AutoModelForCausalLM.from_pretrained(policy).eval() for _ in range(2))
    batch = ours.data_collator([ours.train_dataset[i] for i in range(6)])
    ids, mask = batch["input_ids"], batch["completion_mask"].bool()
    mixing = LearnableMixing.lognormal()
    optimizer = torch.optim.RMSprop(
        [{"params": model.parameters(), "lr": 1e-3}, {"params": mixing.parameters(), "lr": lr}]
    )
    losses, norms = [], []
    with torch.no_grad():
        fixed = sequence_logprobs(reference, ids, mask).chunk(2)
    for _ in range(STEPS):
        loss = mixdpo_loss(*sequence_logprobs(model, ids, mask).chunk(2), *fixed, mixing=mixing).per_example.mean()
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        norms.append(torch.nn.utils.clip_grad_norm_(mixing.parameters(), norm).item())
        optimizer.step()
        optimizer.zero_grad()
    ours.train()
    assert max(norms) > norm  # clipping was tried
    assert records(ours) == pytest.approx(losses, abs=TOLERANCE)
    assert records(ours, "grad_norm/strength") == pytest.approx(norms, abs=TOLERANCE)
    assert records(ours, "learning_rate/strength") == [lr] * STEPS
    assert strength(ours).tolist() == pytest.approx([value.item() for value in mixing.parameters()], abs=TOLERANCE)
    assert abs(ours.mixing.loc.item() + 2.3) > 1e-2


CUTS = {
    "parts": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2},  # the last step: 3 pairs and 1
    "precomputed reference": {"precompute_ref_log_probs": True},
    "recomputed activations": {"activation_checkpointing": True},
}


@pytest.mark.parametrize("cut", CUTS)
def test_batches_however_cut_give_one_trajectory(cut: str, policy: str, tmp_path: Path) -> None:
    """With draws, too: they belong to a pair's place in the step."""
    whole, parts = (
        trainer(policy, tmp_path / name, settings, integration=MonteCarlo(num_draws=16), strength_lr=1e-2)
        for name, settings in (("whole", {}), ("parts", CUTS[cut]))
    )
    whole.train()
    parts.train()
    # the rows of a step follow one another in the same order, so that the places are the same
    assert records(parts) == pytest.approx(records(whole), abs=TOLERANCE)
    assert strength(parts) == pytest.approx(strength(whole), abs=TOLERANCE)


def test_a_rule_takes_new_draws_with_every_step(policy: str, tmp_path: Path) -> None:
    seen = []
    ours = trainer(policy, tmp_path, integration=MonteCarlo(num_draws=4))
    ask = ours.preference_loss.forward
    ours.preference_loss.forward = lambda *logps, **at: (seen.append(at), ask(*logps, **at))[1]
    ours.train()
    assert [(at["step"], at["pair_ids"].tolist()) for at in seen] == [
        (0, [0, 1, 2, 3, 4, 5]), (1, [0, 1, 2, 3]), (2, [0, 1, 2, 3, 4, 5]), (3, [0, 1, 2, 3]),
    ]  # fmt: skip


def test_every_held_out_set_has_its_own_metrics(policy: str, tmp_path: Path) -> None:
    """Those of a set alone, the last batch having one row; draws are those of step 0 and of the place in the set."""
    both = trainer(policy, tmp_path, eval_dataset={"five": data(5), "nine": data(9)}, integration=MonteCarlo(16))
    both.train()
    together = both.evaluate()
    alone = {size: both.evaluate(data(count)) for size, count in (("five", 5), ("nine", 9))}
    names = ("loss", "rewards/margins", "log_ratio/sd", "pair_weight", "logps/rejected", "strength/mean")
    found = {(size, name): together[f"eval_{size}_{name}"] for size in alone for name in names}
    assert found == {(size, name): alone[size][f"eval_{name}"] for size in alone for name in names}


def test_bfloat16_follows_float32(policy: str, tmp_path: Path) -> None:
    """Products of bfloat16 are off by a relative 0.4 %, and so are log-ratios of a few nats: losses by 0.05 at most."""
    full, half = (trainer(policy, tmp_path / name, {"bf16": name == "half"}) for name in ("full", "half"))
    full.train()
    half.train()
    assert records(half)[0] == pytest.approx(records(full)[0], abs=TOLERANCE)
    assert records(half) == pytest.approx(records(full), abs=0.05)


# --- several processes -----------------------------------------------------------------------------


def train_on_a_rank(policy: str, out: Path, rows: int, settings: dict[str, Any]) -> dict[str, Any]:
    """A rank's part of a run; the strength begins elsewhere on each, and ends alike."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0", OMP_NUM_THREADS="1")  # the group is there
    warnings.filterwarnings("ignore", DEPRECATED, FutureWarning)
    datasets.disable_progress_bars()
    mixing = LearnableMixing.lognormal(loc=-2.3 + rank)
    options = {"mixing": mixing, "integration": MonteCarlo(num_draws=16), "strength_lr": 1e-2}
    ours = trainer(policy, out, settings, rows=rows, eval_dataset=data(5), **options)
    ours.train()
    return {
        "loss": records(ours),
        "norms": records(ours, "grad_norm/strength"),
        "strength": strength(ours).tolist(),
        "weights": weights(ours.model).numpy(),
        "held_out": ours.evaluate(),
    }


def test_two_processes_train_what_one_does(policy: str, tmp_path: Path) -> None:
    whole = trainer(
        policy, tmp_path / "one", rows=12, eval_dataset=data(5), integration=MonteCarlo(num_draws=16), strength_lr=1e-2
    )
    whole.train()
    settings = {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 2, "save_strategy": "steps"}
    one, other = on_ranks(2, train_on_a_rank, policy, tmp_path / "two", 12, {**settings, "save_steps": STEPS})
    assert one["strength"] == other["strength"]
    assert (one["weights"] == other["weights"]).all()
    for found in (one, other):
        assert found["loss"] == pytest.approx(records(whole), abs=TOLERANCE)
        assert found["norms"] == pytest.approx(records(whole, "grad_norm/strength"), abs=TOLERANCE)
        assert found["strength"] == pytest.approx(strength(whole).tolist(), abs=TOLERANCE)
    # 5 rows on two processes: one is there twice, and counts once
    held_out = whole.evaluate()
    names = ("loss", "rewards/margins", "log_ratio/sd", "logps/chosen", "pair_weight", "strength/scale")
    # log-ratios are differences of sums of a hundred nats
    assert [one["held_out"][f"eval_{name}"] for name in names] == pytest.approx(
        [held_out[f"eval_{name}"] for name in names], rel=1e-4
    )
    saved = json.loads((tmp_path / "two" / f"checkpoint-{STEPS}" / "strength.json").read_text())
    assert list(saved["unconstrained"].values()) == one["strength"]


# --- saved and resumed -----------------------------------------------------------------------------

SAVING = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}


@pytest.fixture(scope="module")
def saved(policy: str, tmp_path_factory: pytest.TempPathFactory) -> MixDPOTrainer:
    """A run with a checkpoint after every step."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", DEPRECATED, FutureWarning)
        ours = trainer(policy, tmp_path_factory.mktemp("saved"), SAVING, eval_dataset=data(5), strength_lr=1e-2)
        ours.train()
    return ours


def test_training_resumes_to_the_bit(saved: MixDPOTrainer, policy: str, tmp_path: Path) -> None:
    """The head of GPT-NeoX, which the Trainer of transformers leaves at its initial weights, included."""
    checkpoint = Path(saved.args.output_dir, "checkpoint-2")
    resumed = trainer(policy, tmp_path, SAVING, eval_dataset=data(5), strength_lr=1e-2)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    # TRL counts tokens from the start of each process
    clock = ("runtime", "second", "num_tokens")
    kept = [
        [{name: value for name, value in record.items() if not name.endswith(clock)} for record in log[:-1]]
        for log in (saved.state.log_history, resumed.state.log_history)
    ]
    assert kept[0] == kept[1]
    assert torch.equal(weights(saved.model), weights(resumed.model))
    assert torch.equal(strength(saved), strength(resumed))
    named = load_file(checkpoint / "model.safetensors")
    assert "embed_out.weight" in named, "the head's name in files is the model's own: nothing to repair any more"


def test_the_strength_lies_beside_every_saved_model(saved: MixDPOTrainer, tmp_path: Path) -> None:
    saved.save_model(str(tmp_path))
    record = json.loads((tmp_path / "strength.json").read_text())
    assert {name: record[name] for name in ("family", "mean", "sd", "parameters")} == saved.mixing.summary()
    assert record["initial"]["mean"] == pytest.approx(0.120, abs=5e-4)
    assert record["settings"]["update"]["lr"] == 1e-2
    assert "no measurement of heterogeneity" in record["caution"]


def test_the_best_model_comes_with_its_strength(policy: str, tmp_path: Path) -> None:
    """The judge is the strength's mean, which falls here: the first checkpoint has the highest."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_strength/loc", "greater_is_better": True}
    mixing = LearnableMixing.lognormal(loc=1.0)  # too strong for log-ratios of several nats the wrong way
    ours = trainer(policy, tmp_path, {**SAVING, **best}, eval_dataset=data(5), mixing=mixing, strength_lr=1e-2)
    ours.train()
    means = records(ours, "eval_strength/loc")
    folder = Path(ours.state.best_model_checkpoint)
    assert folder.name == f"checkpoint-{means.index(max(means)) + 1}"
    unconstrained = json.loads((folder / "strength.json").read_text())["unconstrained"]
    assert strength(ours).tolist() == list(unconstrained.values())
    assert torch.equal(weights(ours.model), weights(AutoModelForCausalLM.from_pretrained(folder)))


OTHER_SETTINGS = {
    "learning rate": ({"strength_lr": 1e-3}, "update of the strength: got .*0.001.*expected .*0.01"),
    "frozen": ({"strength_lr": None}, "update of the strength"),
    "family": ({"mixing": LearnableMixing.gamma()}, "family of the strength: got gamma; expected lognormal"),
    "transform": ({"mixing": LearnableMixing.lognormal(transform="raw")}, "transform of the strength"),
    "rule": ({"integration": MonteCarlo(num_draws=8)}, "integration of the strength"),
}


@pytest.mark.parametrize("case", OTHER_SETTINGS)
def test_another_strength_is_not_resumed(case: str, saved: MixDPOTrainer, policy: str, tmp_path: Path) -> None:
    options, message = OTHER_SETTINGS[case]
    other = trainer(policy, tmp_path, **{"strength_lr": 1e-2, **options})
    with pytest.raises(InvalidInputError, match=message):
        other.train(resume_from_checkpoint=str(Path(saved.args.output_dir, "checkpoint-2")))


@pytest.mark.parametrize("lacking", ["strength", "a weight"])
def test_an_incomplete_checkpoint_is_not_resumed(
    lacking: str, saved: MixDPOTrainer, policy: str, tmp_path: Path
) -> None:
    saved.save_model(str(tmp_path))
    if lacking == "strength":
        (tmp_path / "strength.json").unlink()
    else:
        named = load_file(tmp_path / "model.safetensors")
        named.pop("embed_out.weight")
        save_file(named, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no strength\.json|missing_keys: lm_head\.weight"):
        trainer(policy, tmp_path / "out", strength_lr=1e-2).train(resume_from_checkpoint=str(tmp_path))


# --- what is refused -------------------------------------------------------------------------------

REFUSED_SETTINGS = {
    "beta": ({"beta": 0.2}, r"args\.beta: got 0\.2; expected 0\.1\. Try the strength"),
    "loss_type": ({"loss_type": ["ipo"]}, r"args\.loss_type: got \['ipo'\]"),
    "loss_weights": ({"loss_weights": [2.0]}, r"args\.loss_weights"),
    "label_smoothing": ({"label_smoothing": 0.1}, r"args\.label_smoothing"),
    "f_divergence_type": ({"f_divergence_type": "forward_kl"}, r"args\.f_divergence_type"),
    "ld_alpha": ({"ld_alpha": 0.5}, r"args\.ld_alpha"),
    "use_weighting": ({"use_weighting": True}, r"args\.use_weighting"),
    "sync_ref_model": ({"sync_ref_model": True}, r"args\.sync_ref_model"),
    "padding_free": ({"padding_free": True}, r"args\.padding_free"),
    "use_liger_kernel": ({"use_liger_kernel": True}, r"args\.use_liger_kernel"),
    "activation_offloading": ({"activation_offloading": True}, r"args\.activation_offloading"),
    "torch_compile": ({"torch_compile": True}, r"args\.torch_compile"),
    "auto_find_batch_size": ({"auto_find_batch_size": True}, r"args\.auto_find_batch_size"),
    "optim": ({"optim": "sgd"}, r"args\.optim"),
    "split_batches": ({"accelerator_config": {"split_batches": True}}, "accelerator_config"),
    "uneven batches": ({"accelerator_config": {"even_batches": False}}, "accelerator_config"),
}


@pytest.mark.parametrize("case", REFUSED_SETTINGS)
def test_a_setting_that_would_be_ignored_is_refused(case: str, policy: str, tmp_path: Path) -> None:
    settings, message = REFUSED_SETTINGS[case]
    with pytest.raises(InvalidInputError, match=message):
        trainer(policy, tmp_path, settings)


def test_half_precision_with_scaling_is_refused() -> None:
    """A machine without a GPU cannot ask for it."""
    args = DPOConfig(output_dir="unused", use_cpu=True, bf16=False, activation_checkpointing=False)
    args.fp16 = True
    with pytest.raises(InvalidInputError, match=r"args\.fp16"):
        adapter._check_settings(args)


def test_a_cache_that_does_not_know_the_truncation_is_refused(policy: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*keep_end", FutureWarning)
        settings = {"precompute_ref_log_probs": True, "truncation_mode": "keep_end"}
        with pytest.raises(InvalidInputError, match="precompute_ref_log_probs"):
            trainer(policy, tmp_path, settings)


REFUSED_OPTIONS = {
    "peft_config": ({"peft_config": object()}, "peft_config: got object"),
    "optimizers": ({"optimizers": (None, None)}, "optimizers: got tuple"),
    "compute_metrics": ({"compute_metrics": print}, "compute_metrics"),
    "mixing": ({"mixing": dist.Gamma(2.0, 16.7)}, "mixing: got Gamma; expected a LearnableMixing"),
    "rule": ({"integration": ClosedForm()}, "integration: got ClosedForm.* for a lognormal strength"),
    "strength_lr": ({"strength_lr": -1.0}, "lr: got -1.0"),
    "stream": ({"eval_dataset": data(2).to_iterable_dataset()}, "dataset: got IterableDataset"),
}


@pytest.mark.parametrize("case", REFUSED_OPTIONS)
def test_an_argument_that_is_not_supported_is_refused(case: str, policy: str, tmp_path: Path) -> None:
    options, message = REFUSED_OPTIONS[case]
    with pytest.raises(InvalidInputError, match=message):
        trainer(policy, tmp_path, **options)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "TP"])
def test_a_sharded_model_is_refused(kind: str, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate tells of it; none of them runs on CPUs."""
    ours = trainer(policy, tmp_path)
    found = getattr(DistributedType, kind, None) or type("Kind", (), {"name": kind})
    monkeypatch.setattr(type(ours.accelerator), "distributed_type", property(lambda _: found))
    with pytest.raises(InvalidInputError, match=f"distributed training: got {kind}; expected one process, or DDP"):
        ours._check_built()


@pytest.mark.parametrize("version, tested", [("1.15.2", False), ("1.16.0", True), ("1.16.4", True), ("1.17.0", False)])
def test_versions_that_were_not_tested_are_refused(version: str, tested: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "version", lambda _: version)
    refused = pytest.raises(InvalidInputError, match=rf"trl: got {version}; expected trl>=1\.16,<1\.17")
    with contextlib.nullcontext() if tested else refused:
        adapter._check_version()


def test_the_extra_names_the_versions_that_are_tested() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extra,) = map(Requirement, project["optional-dependencies"]["trl"])
    low, high = adapter.TESTED
    assert extra == Requirement(f"trl>={low},<{high}")
    assert importlib.metadata.version("trl") in extra.specifier


def test_logits_are_refused(policy: str, tmp_path: Path) -> None:
    ours = trainer(policy, tmp_path)
    with pytest.raises(InvalidInputError, match="a call for logits"):
        ours.predict(ours.train_dataset)
