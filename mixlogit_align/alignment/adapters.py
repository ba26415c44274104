"""Low-rank adapters (LoRA, by peft) in a policy: trained in place of its weights, merged or written out at the end.

A linear layer ``W x`` of a transformer block becomes ``W x + (alpha / rank) B A x`` (Hu et al. 2021, equation 3), with
W frozen and sharded as ever. A and B are float32 and whole on every process, being small; B begins at 0, so that a
policy with fresh adapters is the policy without, to the bit. Dropout there is none, as in any policy trained here. Only
this module imports peft.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from mixlogit_align.alignment.config import LoRAConfig
from mixlogit_align.alignment.durable import WholeFolder
from mixlogit_align.alignment.parallel import World, transformer_blocks
from mixlogit_align.errors import InvalidInputError, explain

NAME = "default"  # peft's own for the only adapter
WEIGHTS = "adapter_model.safetensors"


def require_peft() -> None:
    """Refuse adapters where peft cannot be imported; to be called before anything is written."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise InvalidInputError(
            explain(
                "lora",
                got=f"a section, and no package peft ({error})",
                expected="peft, installed",
                hint='pip install "mixlogit_align[lora]"',
            )
        ) from error


def add_adapters(policy: nn.Module, config: LoRAConfig, seed: int) -> None:
    """Put adapters into a policy, in place, and freeze all else.

    Parameters
    ----------
    policy : nn.Module
        A model of transformers with its weights; after it is sharded, so that the adapters are not.
    config : LoRAConfig
    seed : int
        Fixes the A of each adapter; the caller's generator is left alone.

    Raises
    ------
    InvalidInputError
        When a target names no linear layer of the transformer blocks.
    """
    from peft import inject_adapter_in_model

    settings = _peft_config(config, _targets(policy, config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, policy, adapter_name=NAME)
    policy.eval()


def merge_adapters(policy: nn.Module) -> None:
    """Add ``(alpha / rank) B A`` to each adapted weight, in place, and take the adapters out."""
    policy.state_dict()  # FSDP2 then puts back what a forward pass left gathered
    for name, layer in list(_adapted(policy)):
        base = layer.get_base_layer()
        change: Tensor = layer.get_delta_weight(NAME).detach().to(base.weight.dtype)
        if isinstance(base.weight, DTensor):
            mesh, placements = base.weight.device_mesh, base.weight.placements
            change = distribute_tensor(change, mesh, placements, src_data_rank=None)
        base.weight.detach().add_(change)
        policy.set_submodule(name, base)


def export_adapters(policy: nn.Module, config: LoRAConfig, base: str, folder: Path, world: World) -> None:
    """Write the adapters as a folder that ``peft.PeftModel.from_pretrained`` reads.

    Parameters
    ----------
    policy : nn.Module
        With adapters.
    config : LoRAConfig
    base : str
        Folder or hub name of the model without them.
    folder : Path
        Replaced where it exists.
    world : World
        The main process writes.

    Raises
    ------
    MixlogitError
        When it cannot be written; what stood there before still does.
    """
    whole = WholeFolder(folder, f"writing the adapters to {folder}", world)
    with whole.step():
        if world.is_main:
            settings = _peft_config(config, _targets(policy, config))
            settings.base_model_name_or_path, settings.inference_mode = base, True
            weights = {
                f"base_model.model.{name.replace(f'.{NAME}.', '.')}": parameter.detach().cpu().contiguous()
                for name, parameter in policy.named_parameters()
                if parameter.requires_grad
            }
            partial = whole.begin()
            settings.save_pretrained(str(partial))
            save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
            whole.finish()


def _peft_config(config: LoRAConfig, targets: list[str]) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"
    )


def _adapted(policy: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in policy.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _targets(policy: nn.Module, config: LoRAConfig) -> list[str]:
    """The last names of the layers that get adapters; each stands for linear layers of the blocks alone."""
    inside = {id(module) for block in transformer_blocks(policy) for module in block.modules()}
    linear: dict[str, list[bool]] = {}
    for name, module in policy.named_modules():
        base = getattr(module, "base_layer", module)
        if isinstance(base, nn.Linear) and not name.endswith(".base_layer") and ".lora_" not in name:
            linear.setdefault(name.rpartition(".")[2], []).append(id(module) in inside)
    known = sorted(name for name, places in linear.items() if all(places))
    wanted = known if config.targets == ("all",) else list(config.targets)
    unknown = [name for name in wanted if name not in known]
    if unknown or not known:
        raise InvalidInputError(
            explain(
                "lora.targets",
                got=", ".join(unknown) or "all",
                expected=f"linear layers of the transformer blocks: {', '.join(known) or 'this model has none'}",
                hint="`targets: [all]`" if known else "training the model without `lora`",
            )
        )
    return wanted
