"""Policies of transformers: built without weights, filled as `from_pretrained` fills them, exported for it to read."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import resource
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mixlogit_align.alignment import hf
from mixlogit_align.alignment.config import NewModel, PretrainedModel
from mixlogit_align.alignment.logratios import SequenceLogProbs
from mixlogit_align.alignment.parallel import World, shard
from mixlogit_align.errors import InvalidInputError, MixlogitError
from tests.alignment.processes import ARCHITECTURES, on_ranks, tiny_policy

CPU = torch.device("cpu")
IDS = torch.arange(2, 14).view(2, 6)

# How transformers writes the folders: what the name begins with is the architecture.
FOLDERS = {
    "gpt_neox": {"max_shard_size": "10KB"},  # the head as `embed_out.weight`, like on the hub
    "gpt_neox_as_here": {"save_original_format": False},  # the head as `lm_head.weight`
    "llama": {"max_shard_size": "10KB"},
    "llama_bfloat16": {},
    "gemma": {},
    "phi": {},
    "phi_float16": {"max_shard_size": "10KB"},
}


def architecture(folder: str) -> str:
    return next(name for name in ARCHITECTURES if folder.startswith(name))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Tiny models, written by transformers' own ``save_pretrained``."""
    root = tmp_path_factory.mktemp("models")
    plain = {name: tiny_policy(root / "plain" / name, name) for name in ARCHITECTURES}
    for name, settings in FOLDERS.items():
        dtype = getattr(torch, name.rpartition("_")[2], torch.float32)
        model = AutoModelForCausalLM.from_pretrained(plain[architecture(name)], dtype=dtype)
        model.save_pretrained(root / name, **settings)
        AutoTokenizer.from_pretrained(plain[architecture(name)]).save_pretrained(root / name)
    return {name: str(root / name) for name in FOLDERS}


def theirs(folder: str | Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def ours(folder: str | Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    config = PretrainedModel(path=str(folder))
    model = hf.skeleton(config, hf.load_tokenizer(config, []), seed=0)
    hf.load_weights(model, config, CPU, dtype)
    return model


def different(one: torch.nn.Module, other: torch.nn.Module) -> list[str]:
    """Names of parameters and buffers that are not equal to the bit and of one type, or in one model alone."""
    a, b = (dict([*m.named_parameters(remove_duplicate=False), *m.named_buffers()]) for m in (one, other))
    shared = a.keys() & b.keys()
    return sorted(a.keys() ^ b.keys()) + [
        name for name in sorted(shared) if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])
    ]


# --- loading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_skeleton_has_its_buffers_and_no_weights(folders, folder):
    config = PretrainedModel(path=folders[folder])
    state = torch.get_rng_state()
    model, reference = hf.skeleton(config, hf.load_tokenizer(config, []), seed=0), theirs(folders[folder])
    assert torch.equal(torch.get_rng_state(), state)
    assert {(p.is_meta, p.dtype) for p in model.parameters()} == {(True, torch.float32)}
    buffers, expected = dict(model.named_buffers()), dict(reference.named_buffers())
    assert {name for name in buffers if torch.equal(buffers[name], expected[name])} == expected.keys() != set()
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in reference.named_parameters()}
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (architecture(folder) in {"llama", "gemma"})
    assert not model.training
    assert not model.config.use_cache


@pytest.mark.parametrize("folder", FOLDERS)
def test_loaded_weights_and_logits_are_those_of_from_pretrained(folders, folder):
    model, reference = ours(folders[folder]), theirs(folders[folder])
    assert different(model, reference) == []
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, reference(input_ids=IDS).logits)
    assert all(p.requires_grad for p in model.parameters())
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (architecture(folder) in {"llama", "gemma"})


def test_a_skeleton_of_any_size_needs_no_memory(tmp_path):
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    AutoConfig.for_model("llama", vocab_size=128256, **sizes).save_pretrained(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = hf.skeleton(PretrainedModel(path=str(tmp_path)), None, seed=0)
    assert sum(p.numel() for p in model.parameters()) > 7e10
    # kB; its weights would be 313 GB, one layer's 4 GB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_parameters_are_cast_and_buffers_are_not(folders):
    model, reference = ours(folders["llama"], torch.bfloat16), theirs(folders["llama"])
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers()} == {torch.float32}
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    assert all(torch.equal(p, q.to(torch.bfloat16)) for p, q in pairs)


def test_a_loaded_model_is_free_of_its_files(folders, tmp_path):
    folder = shutil.copytree(folders["llama_bfloat16"], tmp_path / "model")
    hf.export(theirs(folder), AutoTokenizer.from_pretrained(folder), folder)  # in float32, where nothing need be cast
    model = ours(folder)
    with (folder / "model.safetensors").open("r+b") as file:  # in place: a file mapped to memory changes the tensors
        file.write(bytes((folder / "model.safetensors").stat().st_size))
    assert different(model, theirs(folders["llama_bfloat16"])) == []


def test_what_old_files_hold_beside_the_weights_is_left_out(folders, tmp_path):
    folder = shutil.copytree(folders["gpt_neox_as_here"], tmp_path / "old")
    weights = load_file(folder / "model.safetensors")
    weights["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 8, 8)
    weights["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    weights["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert different(ours(folder), theirs(folders["gpt_neox"])) == []


def test_files_of_the_bare_model_fill_one_with_a_tied_head(folders, tmp_path):
    """As on the hub for GPT-2: names without the prefix of the base model, and no head."""
    folder = shutil.copytree(folders["gemma"], tmp_path / "bare")
    weights = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): value for name, value in weights.items()}, folder / "model.safetensors")
    assert different(ours(folder), theirs(folders["gemma"])) == []


# --- sharded ---------------------------------------------------------------------------------------


class CountedFile:
    """An open safetensors file that counts the bytes read from it."""

    read = 0

    def __init__(self, *args, **kwargs):
        self.file = safe_open(*args, **kwargs)

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        self.file.__exit__(*error)

    def keys(self):
        return self.file.keys()

    def get_slice(self, name):
        return CountedSlice(self.file.get_slice(name))

    def get_tensor(self, name):
        tensor = self.file.get_tensor(name)
        CountedFile.read += tensor.nbytes
        return tensor


class CountedSlice:
    def __init__(self, part):
        self.get_shape, self.part = part.get_shape, part

    def __getitem__(self, window):
        tensor = self.part[window]
        CountedFile.read += tensor.nbytes
        return tensor


def here() -> World:
    return World(rank=dist.get_rank(), size=dist.get_world_size(), grouped=True)


def log_probs(model: SequenceLogProbs) -> torch.Tensor:
    mask = torch.ones_like(IDS, dtype=torch.bool)
    mask[:, 0] = False
    with torch.no_grad():
        return model(IDS[:, None], mask[:, None])


def load_and_export(folders: dict[str, str], out: Path) -> dict[str, tuple[int, int, int, torch.Tensor]]:
    """On one rank, for each folder: bytes read, numbers held, parameters with no row here, log-probabilities."""
    hf.safe_open = CountedFile
    found = {}
    for name, folder in folders.items():
        config = PretrainedModel(path=folder)
        tokenizer = hf.load_tokenizer(config, [])
        model = hf.skeleton(config, tokenizer, seed=0)
        scorer = SequenceLogProbs(model)
        shard(scorer, here(), "float32")
        CountedFile.read = 0
        hf.load_weights(model, config, CPU, torch.float32)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        mine = [parameter.to_local().numel() for parameter in model.parameters()]
        read = CountedFile.read
        logps = log_probs(scorer)
        hf.export(model, tokenizer, out / name, here())
        found[name] = (read, sum(mine), mine.count(0), logps)
    return found


# Processes -> what they load. Over 5, the 16 rows of many weights are 4 each, and none for the last process.
SHARDED = {2: ("gpt_neox", "llama_bfloat16", "gemma", "phi"), 5: ("gpt_neox",)}
CASES = [pytest.param(size, name, id=f"{size}-{name}") for size, names in SHARDED.items() for name in names]


@pytest.fixture(scope="module")
def sharded(folders, tmp_path_factory):
    """Number of processes -> the folder that they exported to, and what each of them found."""

    @functools.cache
    def run(size):
        out = tmp_path_factory.mktemp("exported")
        return out, on_ranks(size, load_and_export, {name: folders[name] for name in SHARDED[size]}, out)

    return run


@pytest.mark.parametrize(("size", "folder"), CASES)
def test_processes_read_their_own_slices_alone(folders, sharded, size, folder):
    _, ranks = sharded(size)
    weights = list(theirs(folders[folder]).parameters())  # tied ones once
    most = sum(math.ceil(weight.shape[0] / size) * weight[0].numel() for weight in weights)
    width = 2 if "float16" in folder else 4
    reads, held, without_rows, logps = zip(*(rank[folder] for rank in ranks), strict=True)
    assert sum(held) == sum(weight.numel() for weight in weights)
    assert max(held) == most
    assert list(reads) == [width * numbers for numbers in held]
    assert (max(without_rows) > 0) == (size == 5)
    expected = log_probs(SequenceLogProbs(ours(folders[folder])))
    # Gathered weights are the same numbers, and the same operations follow.
    assert all(torch.equal(values, expected) for values in logps)


@pytest.mark.parametrize(("size", "folder"), CASES)
def test_what_processes_export_together_is_the_model(folders, sharded, size, folder):
    out, _ = sharded(size)
    assert different(theirs(out / folder), theirs(folders[folder])) == []
    assert different(ours(out / folder), theirs(folders[folder])) == []


# --- export ----------------------------------------------------------------------------------------


def exported(folder: str | Path, out: Path) -> Path:
    config = PretrainedModel(path=str(folder))
    hf.export(ours(folder), hf.load_tokenizer(config, []), out)
    return out


def names_in(folder: Path) -> set[str]:
    return {name for file in folder.glob("*.safetensors") for name in load_file(file)}


@pytest.mark.parametrize("folder", ["gpt_neox", "llama", "gemma", "phi"])
@pytest.mark.parametrize("part_bytes", [hf.PART_BYTES, 10_000], ids=["one-file", "parts"])
def test_from_pretrained_and_load_weights_read_an_export(folders, tmp_path, monkeypatch, folder, part_bytes):
    monkeypatch.setattr(hf, "PART_BYTES", part_bytes)
    out = exported(folders[folder], tmp_path / "policy")
    assert different(theirs(out), theirs(folders[folder])) == []
    assert different(ours(out), theirs(folders[folder])) == []
    # the names that transformers writes, e.g. the head of GPT-NeoX as other programs know it; tied weights once
    assert names_in(out) == names_in(Path(folders[folder]))
    assert (out / "model.safetensors.index.json").exists() == (part_bytes == 10_000)
    text = "a quick fox; tschüß"
    assert AutoTokenizer.from_pretrained(out)(text) == AutoTokenizer.from_pretrained(folders[folder])(text)


def test_an_exports_settings_are_the_models_own(folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "model")
    generation = json.loads((folder / "generation_config.json").read_text()) | {"temperature": 0.7, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    out = exported(folder, tmp_path / "policy")
    assert AutoConfig.from_pretrained(out).to_diff_dict() == AutoConfig.from_pretrained(folder).to_diff_dict()
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.7


def test_bfloat16_parameters_are_exported_as_they_are(folders, tmp_path):
    config = PretrainedModel(path=folders["phi"])
    model = ours(folders["phi"], torch.bfloat16)
    hf.export(model, hf.load_tokenizer(config, []), tmp_path / "policy")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters(), strict=True))


@contextlib.contextmanager
def files_up_to(size: int):
    """As on a full disk: a file may have this many bytes, and writing more fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


FULL = {"before-the-settings": 10, "before-the-weights": 19_000}


@pytest.mark.parametrize("when", FULL)
def test_a_full_disk_leaves_the_earlier_export(folders, tmp_path, when):
    out = exported(folders["phi"], tmp_path / "policy")
    with files_up_to(FULL[when]), pytest.raises(MixlogitError, match="File too large"):
        exported(folders["llama"], out)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert different(ours(out), theirs(folders["phi"])) == []
    exported(folders["llama"], out)
    assert different(ours(out), theirs(folders["llama"])) == []


def test_what_a_killed_export_left_is_cleared_away(folders, tmp_path):
    (tmp_path / ".policy.partial").mkdir()
    (tmp_path / ".policy.partial" / "model-00001-of-00009.safetensors").write_bytes(b"half of it")
    out = exported(folders["phi"], tmp_path / "policy")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]


def export_on_a_full_disk(folder: str, out: Path) -> list[str]:
    config, found = PretrainedModel(path=folder), []
    model, tokenizer = ours(folder), hf.load_tokenizer(config, [])
    for size in FULL.values():
        with files_up_to(size), pytest.raises(MixlogitError) as raised:
            hf.export(model, tokenizer, out, here())
        found.append(str(raised.value))
    return found


def test_a_full_disk_stops_every_process(folders, tmp_path):
    first, second = on_ranks(2, export_on_a_full_disk, folders["phi"], tmp_path / "policy")
    assert all("File too large" in message for message in first)
    assert all("process 0 of 2 failed" in message for message in second)
    assert list(tmp_path.iterdir()) == []


# --- new models ------------------------------------------------------------------------------------


def test_a_new_model_is_fixed_by_its_seed_and_survives_its_export(tmp_path):
    config = NewModel(hidden_size=16, num_layers=1, num_heads=2, vocab_size=270)
    tokenizer = hf.load_tokenizer(config, ["some text to train on"])
    state = torch.get_rng_state()
    model, same, other = (hf.skeleton(config, tokenizer, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert different(model, same) == [] != different(model, other)
    assert not model.training
    hf.load_weights(model, config, CPU, torch.float32)
    assert different(model, same) == []
    hf.export(model, tokenizer, tmp_path / "policy")
    assert different(ours(tmp_path / "policy"), same) == []
    assert AutoConfig.from_pretrained(tmp_path / "policy").use_cache
    hf.load_weights(model, config, CPU, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


# --- refusals --------------------------------------------------------------------------------------


def edit_weights(edit):
    """A function that changes the weights of a folder."""

    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        edit(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def edit_config(**settings):
    """A function that changes settings in a folder's config.json."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **settings}))

    return change


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def lose_a_part(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"model.norm.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def drop_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def remove(name):
    return edit_weights(lambda weights: weights.pop(name))


def put(**tensors):
    return edit_weights(lambda weights: weights.update({name.replace("__", "."): t for name, t in tensors.items()}))


NORM = "model.norm.weight"
SPOILED = {
    "missing": (remove(NORM), r"missing: model\.norm\.weight"),
    "missing-both-tied": (remove("model.embed_tokens.weight"), r"missing: model\.embed_tokens\.weight"),
    "unexpected": (put(model__extra__weight=torch.ones(3)), r"unexpected: model\.extra\.weight"),
    "misshapen": (put(model__norm__weight=torch.ones(3)), r"shape: model\.norm\.weight \(3,\) instead of \(16,\)"),
    "twice": (put(norm__weight=torch.ones(16)), r"twice: norm\.weight"),
    "tied-but-different": (put(lm_head__weight=torch.ones(301, 16)), "tie_word_embeddings"),
    "more-layers": (
        edit_config(num_hidden_layers=3),
        r"missing: model\.layers\.2\S+(, model\.layers\.2\S+){4} and 4 more",
    ),
    "damaged": (cut, r"model\.safetensors: got SafetensorError"),
    "a-damaged-index": (
        lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}'),
        r"index\.json: got AttributeError",
    ),
    "a-part-lost": (lose_a_part, r"model-00002-of-00002\.safetensors: got FileNotFoundError"),
    "pickled": (pickle_weights, r"pytorch_model\.bin alone.*save_pretrained"),
    "no-weights": (lambda folder: (folder / "model.safetensors").unlink(), "a folder without weights"),
    "no-tokenizer": (drop_tokenizer, "expected a folder with a tokenizer"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), "expected a causal language model"),
    "unknown-architecture": (edit_config(model_type="unheard_of"), "expected a causal language model"),
    "no-language-model": (edit_config(model_type="vit"), "expected a causal language model"),
    "quantized": (edit_config(quantization_config={"quant_method": "fp8"}), "got quantized weights"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_folder_that_is_not_whole_is_refused_by_name(folders, tmp_path, fault):
    spoil, message = SPOILED[fault]
    folder = shutil.copytree(folders["llama_bfloat16"], tmp_path / "model")
    spoil(folder)
    with pytest.raises(InvalidInputError, match=message):
        ours(folder)


@pytest.mark.parametrize("path", ["nowhere/to-be-found", "not/a/folder", "runs that: are no name"])
def test_a_name_that_is_no_folder_and_not_cached_is_refused(path):
    with pytest.raises(InvalidInputError, match=r"model\.path: got .*no folder"):
        hf.resolve(path)


def test_a_hub_name_is_found_in_the_cache(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(folders["phi"], repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    assert hf.resolve("someone/tiny") == repository / "snapshots" / "0123abc"
    assert different(ours("someone/tiny"), theirs(folders["phi"])) == []


def tiny(model_type: str, **settings):
    sizes = {"vocab_size": 301, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return AutoConfig.for_model(model_type, **sizes, intermediate_size=32, **settings)


# Logits that are capped, or scaled by a setting; small initial weights alone would hide the cap.
SCALED = {
    "gemma2": {"num_key_value_heads": 1, "head_dim": 8},
    "cohere": {"logit_scale": 0.5},
    "granite": {"logits_scaling": 2.0},
}


@pytest.mark.parametrize("model_type", SCALED)
def test_models_that_scale_or_cap_their_logits_are_refused(tmp_path, model_type):
    tiny(model_type, **SCALED[model_type]).save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match="logits that its head does not give"):
        hf.skeleton(PretrainedModel(path=str(tmp_path)), None, seed=0)


def test_weights_that_would_be_merged_are_refused_and_the_advice_helps(folders, tmp_path):
    model = AutoModelForCausalLM.from_config(tiny("mixtral", num_key_value_heads=1, num_local_experts=2))
    for name, settings in (("hub", {}), ("advised", {"save_original_format": False})):
        model.save_pretrained(tmp_path / name, **settings)
        AutoTokenizer.from_pretrained(folders["llama"]).save_pretrained(tmp_path / name)
    with pytest.raises(InvalidInputError, match=r"merged or split.*experts\.0\.w1\.weight.*save_original_format=False"):
        ours(tmp_path / "hub")
    assert different(ours(tmp_path / "advised"), model) == []
    assert different(theirs(exported(tmp_path / "advised", tmp_path / "policy")), model) == []
