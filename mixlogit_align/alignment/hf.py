"""Policies and tokenizers of transformers, which beside this only `hf_reward` imports: built small, loaded, exported.

A pretrained model is built without its weights (`skeleton`), sharded, and only then filled (`load_weights`): each
process reads its own slice of every weight. `export` gathers one weight at a time. So no process ever holds the model.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub import snapshot_download, split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import logging

from mixlogit_align.alignment.config import ModelConfig, NewModel, PretrainedModel
from mixlogit_align.alignment.durable import WholeFolder
from mixlogit_align.alignment.parallel import World
from mixlogit_align.errors import InvalidInputError, MixlogitError, explain

PAD, END = "<|pad|>", "<|endoftext|>"
HUB_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "model*.safetensors")
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PART_BYTES = 2 * 10**9
# What config.json says that changes no logit.
COSMETIC = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
MOST_NUMBERS = 10**9  # parameters of the largest model that is built whole, to look at its logits


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; every text round-trips, whatever its language.

    Parameters
    ----------
    texts : iterable of str
    vocab_size : int
        At least 258: bytes, padding and end of text, without any merge. A text that spells a special
        token is encoded letter by letter, so that no response can end itself.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, bos_token=END, split_special_tokens=True
    )


def build_policy(config: NewModel, tokenizer: PreTrainedTokenizerFast, seed: int) -> GPTNeoXForCausalLM:
    """A GPT-NeoX in evaluation mode with random float32 weights fixed by ``seed``; the caller's generator stays."""
    sizes = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=4 * config.hidden_size,
        max_position_embeddings=config.max_positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy: GPTNeoXForCausalLM = GPTNeoXForCausalLM(sizes).eval()
    policy.config.use_cache = False
    return policy


def resolve(path: str) -> Path:
    """The local folder of a model: ``path`` itself, or the files behind a hub name, downloaded where not cached.

    Raises
    ------
    InvalidInputError
        When it is neither a folder nor a model that the hub, or its cache, has.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(path, allow_patterns=list(HUB_FILES), ignore_patterns="*/*"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            explain(
                "model.path",
                got=f"{path!r}, which is no folder, and no model that the hub gives ({_brief(error)})",
                expected="a Hugging Face folder or a hub name",
                hint="a folder that `save_pretrained` wrote; a hub name needs a network, or a download made before",
            )
        ) from error


def load_tokenizer(config: ModelConfig, texts: Iterable[str]) -> Any:
    """The tokenizer that ``config`` describes.

    Parameters
    ----------
    config : ModelConfig
    texts : iterable of str
        A new model's tokenizer is trained on them; a pretrained one does not read them.

    Returns
    -------
    tokenizer
        Of transformers; where it has no padding token, the end of text pads.

    Raises
    ------
    InvalidInputError
        When there is no such model, or no tokenizer in its folder.
    """
    if isinstance(config, NewModel):
        return build_tokenizer(texts, config.vocab_size)
    with _without_bars(), _refusing("a folder with a tokenizer", config.path):
        tokenizer = AutoTokenizer.from_pretrained(resolve(config.path), trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def skeleton(config: ModelConfig, tokenizer: Any, seed: int) -> nn.Module:
    """The model that ``config`` describes, in evaluation mode, a pretrained one without its weights.

    Parameters
    ----------
    config : ModelConfig
    tokenizer : tokenizer of transformers
        A new model takes its vocabulary and special tokens from it.
    seed : int
        Fixes a new model's weights; the caller's generator is left alone.

    Returns
    -------
    nn.Module
        A new model has its random float32 weights. A pretrained one has float32 parameters on the meta device, for
        `load_weights` to fill, tied ones being one object, and its buffers on the CPU as they must be.

    Raises
    ------
    InvalidInputError
        When there is no such model; when it is quantized, or needs code of its own; or when its logits are not its
        head applied to its hidden states, which `mixlogit_align.alignment.sequence_logprobs` relies on.
    """
    if isinstance(config, NewModel):
        return build_policy(config, tokenizer, seed)
    folder = resolve(config.path)
    with _refusing("a causal language model that transformers knows", config.path):
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model: nn.Module = _without_weights(settings)
        if (folder / "generation_config.json").exists():
            model.generation_config = GenerationConfig.from_pretrained(folder)  # type: ignore[assignment]
    if getattr(settings, "quantization_config", None) is not None:
        raise InvalidInputError(
            explain(
                f"model {config.path}",
                got="quantized weights",
                expected="weights that can be trained",
                hint="the model that it was quantized from",
            )
        )
    _check_projection(settings, config.path)
    model.config.use_cache = False  # type: ignore[union-attr]
    return model


def require_positions(model: Any, longest: int) -> None:
    """Refuse sequences that are longer than a model knows positions.

    Parameters
    ----------
    model : nn.Module
        What `skeleton` gave.
    longest : int
        Tokens of the longest sequence.

    Raises
    ------
    InvalidInputError
    """
    known = getattr(model.config, "max_position_embeddings", None)
    if known is not None and longest > known:
        raise InvalidInputError(
            explain(
                "tokenization.max_length",
                got=f"sequences of up to {longest} tokens",
                expected=f"at most the {known} positions of the model",
                hint=f"tokenization.max_length={known}",
            )
        )


@torch.no_grad()
def load_weights(model: nn.Module, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Fill a `skeleton` with its weights, in place, before or after it is sharded.

    Parameters
    ----------
    model : nn.Module
        What `skeleton` gave for ``config``; modules above and inside it may have been through
        `torch.distributed.fsdp.fully_shard`. Of a sharded parameter a process reads its own slice alone.
    config : ModelConfig
        A new model has its weights already; they are moved and cast.
    device : torch.device
        Where parameters and buffers go; of a sharded parameter, this process's slice.
    dtype : torch.dtype
        Of the parameters, whatever the files hold. Buffers keep theirs.

    Raises
    ------
    InvalidInputError
        When there are no safetensors files, or one is damaged; when weights are missing, unexpected, of another shape,
        or would have to be merged or split.
    """
    tensors = _tensors(model)
    filled = {}
    with contextlib.ExitStack() as files:
        sources = {}
        if not isinstance(config, NewModel):
            sources = _locate(model, tensors, resolve(config.path), files)
        for names, tensor in tensors:
            local = _read(tensor, [sources[name] for name in names if name in sources])
            if not isinstance(tensor, nn.Parameter):
                value = local.to(device, tensor.dtype, copy=True)
            else:
                # A copy, since what is read may be the file itself, mapped to memory.
                value = local.to(device, dtype, copy=True)
                if isinstance(tensor, DTensor):
                    value = DTensor.from_local(
                        value, tensor.device_mesh, tensor.placements, shape=tensor.shape, stride=tensor.stride()
                    )
                value = nn.Parameter(value, requires_grad=tensor.requires_grad)
            filled.update(dict.fromkeys(names, value))
    model.load_state_dict(filled, assign=True)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


@torch.no_grad()
def fingerprint(model: Any, config: ModelConfig | None = None, world: World | None = None) -> dict[str, str]:
    """What names a model by its content, the same in memory, however it is sharded, and in files.

    Parameters
    ----------
    model : nn.Module
        What `skeleton` gave. Every process that it is sharded over must call this: one weight at a time is gathered.
    config : PretrainedModel, optional
        Read the weights from its files, one at a time, instead of from ``model``, which needs none then.
    world : World, optional
        The processes that ``model`` is sharded over; one process without it.

    Returns
    -------
    dict
        "weights" and "architecture" -> SHA-256: of all weights as float32, whatever holds them, under the names that
        the model has for them; and of what config.json says beside types and versions.

    Raises
    ------
    InvalidInputError
        As `load_weights` does.
    """
    world = world or World()
    said = {name: value for name, value in model.config.to_diff_dict().items() if name not in COSMETIC}
    architecture = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    weights = hashlib.sha256()
    tensors = _tensors(model)
    with contextlib.ExitStack() as files:
        sources = {}
        if config is not None and not isinstance(config, NewModel):
            sources = _locate(model, tensors, resolve(config.path), files)
        for names, tensor in sorted(tensors, key=lambda each: each[0][0]):
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if world.is_main:
                value = _read(whole, [sources[name] for name in names if name in sources])
                value = value.float() if value.is_floating_point() else value
                weights.update(f"{names[0]} {tuple(value.shape)}".encode())
                weights.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return world.tell({"weights": weights.hexdigest(), "architecture": architecture.hexdigest()})


def require_vocabulary(config: PretrainedModel, tokenizer: Any) -> None:
    """Refuse a reference that knows other tokens than the policy, whose ids it is to score.

    Raises
    ------
    InvalidInputError
        Also when there is no such model, or no tokenizer in its folder.
    """
    try:
        own = load_tokenizer(config, [])
    except InvalidInputError as error:
        raise InvalidInputError(f"preference.reference_path: {error}") from error
    if own.get_vocab() != tokenizer.get_vocab():
        raise InvalidInputError(
            explain(
                "preference.reference_path",
                got=f"{config.path}, with a vocabulary of {len(own)} tokens that are not the policy's {len(tokenizer)}",
                expected="a model with the policy's vocabulary, so that it can score the same token ids",
                hint="a reference of the policy's own family",
            )
        )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of what decides which ids a text becomes: vocabulary, rules, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [
        tokenizer.get_vocab(),
        None if backend is None else json.loads(backend.to_str()) | {"truncation": None, "padding": None},
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        tokenizer.chat_template,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def export(model: Any, tokenizer: Any, folder: Path, world: World | None = None) -> None:
    """Write model and tokenizer as a Hugging Face folder that ``from_pretrained`` and `load_weights` read.

    The folder is written under another name and renamed when it is whole. Weights go to safetensors files of at most
    `PART_BYTES` (a larger single weight has its own), under the names that ``save_pretrained`` gives them, tied ones
    once. Every process must call this: each weight is gathered by all, and the main process writes.

    Parameters
    ----------
    model : nn.Module
        What `skeleton` gave, with its weights, sharded or not.
    tokenizer : tokenizer of transformers
    folder : Path
        Replaced where it exists.
    world : World, optional
        The processes that ``model`` is sharded over; one process without it.

    Raises
    ------
    MixlogitError
        When the folder cannot be written, e.g. because the disk is full; what stood there before still does.
    """
    world = world or World()
    whole = WholeFolder(folder, f"exporting the policy to {folder.parent}", world)
    settings = copy.deepcopy(model.config)
    blueprint = _without_weights(settings)
    settings.architectures = [type(blueprint).__name__]
    settings.dtype = next(model.parameters()).dtype
    settings.use_cache = True  # off for training alone
    names = _file_names(blueprint)
    tensors = {names[known[0]]: tensor for known, tensor in _tensors(model)}
    sizes = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()}
    parts = split_torch_state_dict_into_shards(
        sizes, filename_pattern=WEIGHTS.replace(".", "{suffix}."), max_shard_size=PART_BYTES
    )
    with whole.step():
        if world.is_main:
            partial = whole.begin()
            settings.save_pretrained(partial)
            model.generation_config.to_json_file(partial / "generation_config.json")
            tokenizer.save_pretrained(partial)
    for file, held in parts.filename_to_tensors.items():
        part = {}
        for name in held:
            tensor = tensors[name].detach()
            gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if world.is_main:
                part[name] = gathered.cpu().contiguous()
        with whole.step():
            if world.is_main:
                save_file(part, whole.partial / file, metadata={"format": "pt"})
    with whole.step():
        if world.is_main:
            if parts.is_sharded:
                index = json.dumps({"metadata": parts.metadata, "weight_map": parts.tensor_to_filename}, indent=2)
                (whole.partial / WEIGHTS_INDEX).write_text(index + "\n", encoding="utf-8")
            whole.finish()


def load(config: ModelConfig, texts: Iterable[str], seed: int) -> tuple[nn.Module, Any]:
    """The policy in float32 on the CPU and its tokenizer that ``config`` describes.

    `load_tokenizer`, `skeleton` and `load_weights` one after the other; see there.
    """
    tokenizer = load_tokenizer(config, texts)
    model = skeleton(config, tokenizer, seed)
    load_weights(model, config, torch.device("cpu"), torch.float32)
    return model, tokenizer


# --- building --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers' progress bars out of the run's own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _refusing(expected: str, path: str) -> Iterator[None]:
    """Say what transformers cannot read, whatever it raises of it."""
    try:
        yield
    except InvalidInputError:
        raise
    except Exception as error:
        raise InvalidInputError(
            explain(
                "model.path",
                got=f"{path!r} ({_brief(error)})",
                expected=expected,
                hint="GPT-NeoX, Llama or another model of transformers, as `save_pretrained` writes it",
            )
        ) from error


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"


def _without_weights(settings: Any) -> Any:
    """A model in evaluation mode, its float32 parameters on the meta device and its buffers real."""
    with torch.random.fork_rng(devices=[]), _parameters_on_meta():
        settings = copy.deepcopy(settings)
        return AutoModelForCausalLM.from_config(settings, dtype=torch.float32, trust_remote_code=False).eval()


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """A parameter moves to the meta device as a module registers it, before anything initialises it."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _check_projection(settings: Any, name: str) -> None:
    """Refuse a model whose logits are not its head applied to its hidden states."""
    try:
        plain = _is_plain(settings)
        why = "logits that its head does not give from its hidden states"
    except Exception as error:  # what cannot be tried is not vouched for, whatever the reason
        plain, why = False, f"no way to see whether its head gives its logits ({_brief(error)})"
    if not plain:
        raise InvalidInputError(
            explain(
                f"policy {name}",
                got=why,
                expected="a model without scaling or capping of logits",
                hint="GPT-NeoX, Llama or another plain causal model",
            )
        )


@torch.no_grad()
def _is_plain(settings: Any) -> bool:
    """Whether logits are the head applied to the hidden states, tried without layers and with a small vocabulary.

    What such a model does around its layers is what the large one does. Its head is large, so that a cap shows.
    """
    small = copy.deepcopy(settings)
    text = small.get_text_config()
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = 0, 8, None
    numbers = sum(parameter.numel() for parameter in _without_weights(small).parameters())
    if numbers > MOST_NUMBERS:
        raise MixlogitError(f"{numbers} parameters beside its layers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(small, dtype=torch.float32, trust_remote_code=False).eval()
        head = model.get_output_embeddings()
        head.weight.normal_(std=10.0)
    ids = torch.arange(8)[None]
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    # Float32 rounding lies below this; a scale or a cap is far off.
    return torch.allclose(head(hidden), model(input_ids=ids, use_cache=False).logits, rtol=1e-4, atol=1e-4)


# --- weights ---------------------------------------------------------------------------------------


def _tensors(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Parameters and persistent buffers, each once, with all its names: several where it is tied."""
    found: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(found.values())


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_INDEX).exists():
        try:
            index = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))
            return [folder / name for name in sorted(set(index["weight_map"].values()))]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise _damaged(folder / WEIGHTS_INDEX, error) from error
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    raise InvalidInputError(
        explain(
            f"model {folder}",
            got=f"weights as {', '.join(pickled)} alone" if pickled else "a folder without weights",
            expected=f"{WEIGHTS}, or {WEIGHTS_INDEX} and what it names",
            hint="`AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)`, which writes safetensors",
        )
    )


def _entries(folder: Path, files: contextlib.ExitStack) -> Iterator[tuple[Any, str]]:
    """Every open file and name in it."""
    for path in _weight_files(folder):
        try:
            file = files.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from error
        for key in file.keys():  # noqa: SIM118
            yield file, key


def _locate(
    model: Any, tensors: list[tuple[list[str], Tensor]], folder: Path, files: contextlib.ExitStack
) -> dict[str, tuple[Any, str]]:
    """Where each weight lies: name -> open file and its name there; what does not fit is refused."""
    blueprint = _without_weights(model.config)
    wanted = blueprint.state_dict()
    conversions = get_model_conversion_mapping(blueprint)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    sources: dict[str, tuple[Any, str]] = {}
    unexpected: dict[str, str] = {}
    converted, twice = [], []
    for file, key in _entries(folder, files):
        name, pattern = rename_source_key(key, renamings, converters, blueprint.base_model_prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = key, None
        if pattern is not None:
            converted.append(key)
        elif name not in wanted:
            unexpected[name] = key
        elif name in sources:
            twice.append(key)
        else:
            sources[name] = (file, key)
    lacking = [(names[0], tensor) for names, tensor in tensors if not any(name in sources for name in names)]
    # The model's own rules for what old files hold beside the weights, and for buffers that they lack.
    keys = SimpleNamespace(missing_keys={name for name, _ in lacking}, unexpected_keys=set(unexpected))
    blueprint._adjust_missing_and_unexpected_keys(keys)
    faults = {
        "merged or split by transformers as it loads": converted,
        "missing": [name for name, tensor in lacking if isinstance(tensor, nn.Parameter) or name in keys.missing_keys],
        "unexpected": [unexpected[name] for name in sorted(keys.unexpected_keys)],
        "twice": twice,
        "of another shape": [
            f"{name} {found} instead of {tuple(tensor.shape)}"
            for names, tensor in tensors
            for name in names
            if name in sources and (found := _shape(*sources[name])) != tuple(tensor.shape)
        ],
    }
    if any(faults.values()):
        again = "`AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder, save_original_format=False)`"
        raise InvalidInputError(
            explain(
                f"weights in {folder}",
                got="; ".join(f"{what}: {_listed(found)}" for what, found in faults.items() if found),
                expected=f"exactly the weights of the {type(blueprint).__name__} that config.json describes",
                hint=again if converted else "the config.json and the weights of one model",
            )
        )
    return sources


def _damaged(path: Path, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        explain(
            f"weights {path}", got=_brief(error), expected="a whole file", hint="downloading or saving the model again"
        )
    )


def _shape(file: Any, key: str) -> tuple[int, ...]:
    return tuple(file.get_slice(key).get_shape())


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _read(like: Tensor, sources: list[tuple[Any, str]]) -> Tensor:
    """This process's part of one weight, as its file has it; the weight's present value where no file has it."""
    if not sources:
        return like.to_local() if isinstance(like, DTensor) else like
    first, *others = (_slice(like, file, key) for file, key in sources)
    if not all(torch.equal(first, other) for other in others):
        raise InvalidInputError(
            explain(
                " and ".join(key for _, key in sources),
                got="different weights in the files",
                expected="equal ones: config.json ties them",
                hint="`tie_word_embeddings: false` in config.json, where the model has a head of its own",
            )
        )
    return first


def _slice(like: Tensor, file: Any, key: str) -> Tensor:
    if not isinstance(like, DTensor):
        whole: Tensor = file.get_tensor(key)
        return whole
    sizes, offsets = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    if 0 in sizes:
        return torch.empty(sizes)
    part: Tensor = file.get_slice(key)[tuple(slice(start, start + n) for start, n in zip(offsets, sizes, strict=True))]
    return part


def _file_names(blueprint: Any) -> dict[str, str]:
    """Name -> name in files, as ``save_pretrained`` has it; the name itself in models whose weights it would merge."""
    conversions = get_model_conversion_mapping(blueprint, add_legacy=False)
    back: list[Any] = [each.reverse_transform() for each in reversed(conversions) if not isinstance(each, PrefixChange)]
    if any(isinstance(each, WeightConverter) for each in conversions):
        back = []
    return {name: rename_source_key(name, back, [])[0] for name in blueprint.state_dict()}
