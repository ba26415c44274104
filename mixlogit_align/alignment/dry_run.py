"""A run tried out before it costs anything: every setting through the real code, and what the run itself would take.

Two steps of each stage are run on a small model of the policy's own class, with a tokenizer made on the spot and
made-up rows in the data's schema. Memory and operations are counted from the architecture at its real size, whose
weights are never loaded. Nothing is downloaded, and nothing is kept.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mixlogit_align.alignment.adapters import add_adapters, require_peft
from mixlogit_align.alignment.config import (
    AlignmentConfig,
    ModelConfig,
    NewModel,
    PreferenceConfig,
    PretrainedModel,
    StageConfig,
)
from mixlogit_align.alignment.data.config import CommunityData, DataConfig, HHData, PrismData, SimulatedData
from mixlogit_align.alignment.data.synthetic import WORDS, write_synthetic
from mixlogit_align.alignment.footprint import Memory, Pass, count_pass, training_memory
from mixlogit_align.alignment.parallel import World, resolved
from mixlogit_align.alignment.recipes import architectures
from mixlogit_align.alignment.reference import require_cache
from mixlogit_align.alignment.runner import run_alignment
from mixlogit_align.alignment.tracking import require_packages
from mixlogit_align.alignment.trainer import check_batch_size
from mixlogit_align.errors import InvalidInputError, explain

SMALL_LAYERS, SMALL_HEADS, SMALL_HEAD_SIZE, SMALL_VOCABULARY = 2, 2, 16, 400
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
NUM_EVAL = 16  # held-out rows
# Rows of the matrices by device: large enough to keep it busy.
BENCHMARK_SIZES, BENCHMARK_SECONDS = {"cpu": 1024, "cuda": 8192}, 0.3
UNITS = 1 << 30  # bytes in a GiB


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """What one stage would take.

    Parameters
    ----------
    steps : int or None
        None where the number of comparisons is not among the settings.
    memory : Memory
        Of each process.
    step_flops : int
        Of one step, all processes together.
    stage_flops : int or None
        Of all steps, evaluations and the scoring by the reference.
    """

    steps: int | None
    memory: Memory
    step_flops: int
    stage_flops: int | None


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a dry run found.

    Parameters
    ----------
    name, model, data : str
        Of the configuration; where the policy's sizes are from, and the rows that were tried.
    parameters : int
        Of the policy at its real size.
    processes : int
    device, wanted, precision : str
        Where the two steps ran and the rate was measured, where the run itself would, and in which type.
    length : int
        Tokens of every sequence that is counted.
    compiled : bool
        Whether the small model's blocks were.
    tried : mapping
        Stage -> held-out loss before and after two steps of the small model.
    seconds : float
        That these steps took.
    stages : mapping
        Stage -> what it would take.
    flops_per_second : float
        Of a matrix product on the device.
    """

    name: str
    model: str
    data: str
    parameters: int
    processes: int
    device: str
    wanted: str
    precision: str
    length: int
    compiled: bool
    tried: Mapping[str, tuple[float, float]]
    seconds: float
    stages: Mapping[str, StageEstimate]
    flops_per_second: float

    def hours(self, flops: int) -> float:
        """What so many operations take at the measured rate, shared by all processes."""
        return flops / self.flops_per_second / self.processes / 3600

    @property
    def where(self) -> str:
        """The device, and for which one it stands in."""
        return self.device if self.device == self.wanted else f"{self.device} (there is no {self.wanted} here)"

    def __str__(self) -> str:
        tried = ", ".join(f"{stage} loss {a:.4f} to {b:.4f}" for stage, (a, b) in self.tried.items())
        names = [field.name for field in dataclasses.fields(Memory)]
        columns = ["GiB a process", *names]
        table = [
            [stage, *(f"{getattr(found.memory, name) / UNITS:.2f}" for name in names)]
            for stage, found in self.stages.items()
        ]
        rate = f"{self.flops_per_second / 1e12:.3g} TFLOP/s"
        times = []
        for stage, found in self.stages.items():
            whole = "how many steps is unknown: the number of comparisons is not among the settings"
            if found.steps is not None and found.stage_flops is not None:
                hours = f"{self.hours(found.stage_flops):.3g} hours"
                whole = f"about {hours} for up to {found.steps} steps, evaluations included"
            times.append(f"  {stage:<12} {found.step_flops / 1e12:.4g} TFLOP a step; {whole}")
        return "\n".join(
            [
                f"dry run of {self.name}",
                f"  policy       {self.parameters:,} parameters: {self.model}",
                f"  rows         {self.data}",
                f"  two steps    {tried}; a small model of the same class on {self.where}"
                f"{', its blocks compiled' if self.compiled else ''}, {self.seconds:.0f} s",
                "",
                f"memory, estimated for {self.processes} process{'es' if self.processes > 1 else ''}, "
                f"sequences of {self.length} tokens, {self.precision}",
                *_aligned([columns, *table]),
                "",
                f"time, at the {rate} of a bare matrix product on this {self.where}",
                *times,
                "  Training is slower than a bare matrix product, and most sequences are shorter than the longest:",
                "  these are orders of magnitude. The first steps of the run itself tell more.",
            ]
        )


def _aligned(rows: list[list[str]]) -> list[str]:
    """Rows as lines whose columns stand below one another, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def dry_run(config: AlignmentConfig, *, processes: int = 1) -> DryRun:
    """Try a configuration without its data, its weights or a network.

    Parameters
    ----------
    config : AlignmentConfig
        Of HH, PRISM and Community Alignment made-up rows are read, of simulated data a few; other data are read where
        they lie. The sizes of a policy are those in its folder, or for the models of recipes those that the package
        knows.
    processes : int
        For how many memory and time are estimated.

    Returns
    -------
    DryRun
        Prints itself. Where torch cannot use ``config.device``, the CPU stands in.

    Raises
    ------
    InvalidInputError
        For settings that the run itself would refuse; for a policy of unknown size.
    """
    if processes < 1:
        raise InvalidInputError(explain("processes", got=processes, expected="1 or more", hint="1"))
    stages: dict[str, StageConfig] = {
        name: stage for name, stage in (("sft", config.sft), ("preference", config.preference)) if stage is not None
    }
    for name, stage in stages.items():
        check_batch_size(name, stage, World(size=processes))
    require_packages(config.tracking)
    if config.lora is not None:
        require_peft()
    require_cache(config.preference)
    device, precision = _usable(config.device), resolved(config.precision, config.device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        known = _described(config.model, folder / "described")
        begun = time.perf_counter()
        data, told = _few_rows(config.data, folder / "data", 2 * max(stage.batch_size for stage in stages.values()))
        tried = _tried(
            dataclasses.replace(config, device=device, precision=precision, data=data, out=str(folder / "run")),
            known,
            folder,
        )
        seconds = time.perf_counter() - begun
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        parts = {
            name: (1 if name == "sft" else 2) * stage.batch_size // (processes * stage.accumulation)
            for name, stage in stages.items()
        }
        policy = _skeleton(known)
        if config.lora is not None:
            add_adapters(policy, config.lora, config.seed)
        counted = count_pass(policy, max(parts.values()), config.tokenization.max_length, dtype)
        estimates = {
            name: _estimate(config, stages[name], counted.of(sequences), processes, precision)
            for name, sequences in parts.items()
        }
    return DryRun(
        name=config.named().name,
        model=f"{counted.model} as in {_source(config.model)}",
        data=told,
        parameters=counted.parameters,
        processes=processes,
        device=device,
        wanted=config.device,
        precision=precision,
        length=config.tokenization.max_length,
        compiled=config.compile,
        tried=tried,
        seconds=seconds,
        stages=estimates,
        flops_per_second=matmul_rate(device, dtype),
    )


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a product of two square matrices, a multiplication and an addition being two.

    The best of the products within a third of a second, after one that is not counted.
    """
    size = BENCHMARK_SIZES.get(torch.device(device).type, BENCHMARK_SIZES["cpu"])
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    (left @ right)[0, 0].item()
    until = time.perf_counter() + BENCHMARK_SECONDS
    while time.perf_counter() < until or best == float("inf"):
        begun = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - begun)
    return float(2 * size**3 / best)


# --- the policy at its real size -------------------------------------------------------------------


def _described(model: ModelConfig, folder: Path) -> Path:
    """A folder whose ``config.json`` says the policy's sizes."""
    from mixlogit_align.alignment import hf

    if isinstance(model, NewModel):
        with torch.device("meta"):
            built: Any = hf.skeleton(model, _Vocabulary(model.vocab_size), 0)
        built.config.save_pretrained(folder)
        return folder
    if Path(model.path).is_dir():
        return Path(model.path)
    if model.path not in architectures():
        raise InvalidInputError(
            explain(
                "model.path of a dry run",
                got=f"{model.path!r}, which is no folder",
                expected=f"a folder with a config.json, or one of {', '.join(architectures())}, whose sizes are known",
                hint="a folder with the model's config.json alone: its weights are not read",
            )
        )
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(architectures()[model.path]), encoding="utf-8")
    return folder


class _Vocabulary:
    """Stands for a tokenizer where its size alone matters."""

    bos_token_id = eos_token_id = pad_token_id = 0

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


def _skeleton(described: Path) -> Any:
    from mixlogit_align.alignment import hf

    return hf.skeleton(PretrainedModel(path=str(described)), None, 0)


def _source(model: ModelConfig) -> str:
    if isinstance(model, NewModel):
        return "the settings"
    return f"{model.path}/config.json" if Path(model.path).is_dir() else f"{model.path}, whose sizes the package knows"


def _estimate(
    config: AlignmentConfig, stage: StageConfig, counted: Pass, processes: int, precision: str
) -> StageEstimate:
    memory = training_memory(
        counted,
        stage.optim,
        processes=processes,
        stored=2 if precision == "bfloat16_parameters" else 4,
        sharded=processes > 1 or precision == "bfloat16",
        accumulated=stage.accumulation > 1,
        recomputed=config.activation_checkpointing,
        together=torch.device(config.device).type != "cpu",
        adapted=config.lora is not None,
    )
    step_flops = counted.training_flops(recomputed=config.activation_checkpointing) * processes * stage.accumulation
    num_train, num_eval = _sizes(config.data)
    steps = stage_flops = None
    if num_train is not None and num_eval is not None:
        steps = stage.num_steps(num_train)
        judged = num_eval * (num_train * stage.num_epochs // stage.eval_every_examples + 2)
        has_reference = isinstance(stage, PreferenceConfig) and stage.loss.has_reference
        scored = num_train + num_eval if has_reference else 0
        a_row = counted.forward_flops() * processes * stage.accumulation // stage.batch_size
        stage_flops = steps * step_flops + (judged + scored) * a_row
    return StageEstimate(steps=steps, memory=memory, step_flops=step_flops, stage_flops=stage_flops)


def _sizes(data: DataConfig) -> tuple[int | None, int | None]:
    """Comparisons in each split, at the most, where the settings say so."""
    if isinstance(data, SimulatedData):
        return data.num_train, data.num_eval
    return data.max_train, data.max_eval


# --- two steps of a small model ------------------------------------------------------------------------


def _usable(device: str) -> str:
    """The device, or the CPU where torch cannot use it here."""
    try:
        torch.device(device)
    except RuntimeError as error:
        raise InvalidInputError(
            explain("device", got=repr(device), expected="a device that torch knows", hint="`device: cuda`")
        ) from error
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError):  # torch raises either
        return "cpu"
    return device


def _few_rows(data: DataConfig, folder: Path, num_train: int) -> tuple[DataConfig, str]:
    """Data with a few rows, and what they are."""
    if isinstance(data, HHData | PrismData | CommunityData):
        told = f"{data.source}: made up in its schema; all settings but path and number as they are"
        return write_synthetic(data, folder, num_train, NUM_EVAL), told
    if isinstance(data, SimulatedData):
        return dataclasses.replace(data, num_train=num_train, num_eval=NUM_EVAL), "simulated"
    few = dataclasses.replace(data, max_train=min(data.max_train or num_train, num_train), max_eval=NUM_EVAL)
    return few, f"{data.source}: some of its own"


def _tried(config: AlignmentConfig, described: Path, folder: Path) -> dict[str, tuple[float, float]]:
    """Run two steps of every stage on a small model; held-out losses before and after them."""
    model: ModelConfig
    reference = None  # a new model has its tokenizer from the few rows, which no other model shares
    if isinstance(config.model, NewModel):
        model = dataclasses.replace(
            config.model,
            hidden_size=SMALL_HEAD_SIZE * config.model.num_heads,
            num_layers=min(config.model.num_layers, SMALL_LAYERS),
            vocab_size=min(config.model.vocab_size, SMALL_VOCABULARY),
        )
    else:
        reference = str(_small(described, folder / "small"))
        model = PretrainedModel(path=reference)
    sft, preference = config.sft, config.preference
    if sft is not None:
        sft = dataclasses.replace(sft, num_epochs=1)
    if preference is not None:
        preference = dataclasses.replace(
            preference,
            num_epochs=1,
            reference_path=None if preference.reference_path is None else reference,
            reference_cache=None if preference.reference_cache is None else str(folder / "reference.parquet"),
        )
    result = run_alignment(dataclasses.replace(config, model=model, sft=sft, preference=preference, tracking=()))
    records = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    losses: dict[str, list[float]] = {}
    for record in records:
        if record["split"] == "eval":
            losses.setdefault(record["stage"], []).append(record["loss"])
    return {stage: (found[0], found[-1]) for stage, found in losses.items()}


def _small(described: Path, folder: Path) -> Path:
    """Write a model of the same class as the one described, with few and small layers, and a tokenizer of its own."""
    from mixlogit_align.alignment import hf

    tokenizer = hf.build_tokenizer([" ".join(WORDS)] * 2, SMALL_VOCABULARY)
    tokenizer.split_special_tokens = False  # a chat template's own must stay whole
    tokenizer.chat_template = CHAT_TEMPLATE
    settings = copy.deepcopy(_skeleton(described).config)
    kv_heads = getattr(settings, "num_key_value_heads", None)
    sizes = {
        "num_hidden_layers": SMALL_LAYERS,
        "num_attention_heads": SMALL_HEADS,
        "num_key_value_heads": max(SMALL_HEADS * (kv_heads or 0) // settings.num_attention_heads, 1),
        "hidden_size": SMALL_HEADS * SMALL_HEAD_SIZE,
        "head_dim": SMALL_HEAD_SIZE,
        "intermediate_size": 2 * SMALL_HEADS * SMALL_HEAD_SIZE,
        "vocab_size": len(tokenizer),
        "layer_types": (getattr(settings, "layer_types", None) or [])[:SMALL_LAYERS],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for name, value in sizes.items():
        if getattr(settings, name, None) is not None:
            setattr(settings, name, value)
    settings.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file(_weights(_skeleton(folder)), folder / hf.WEIGHTS, metadata={"format": "pt"})
    return folder


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Random weights by name, tied ones once: matrices normal, scales 1, other vectors 0."""
    generator = torch.Generator().manual_seed(0)
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in found or not tensor.is_meta:
            continue
        if tensor.ndim > 1:
            value = torch.randn(tensor.shape, generator=generator) * 0.02
        else:
            value = torch.ones(tensor.shape) if name.endswith("weight") else torch.zeros(tensor.shape)
        found[id(tensor)] = (name, value)
    return dict(found.values())
