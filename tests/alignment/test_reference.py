"""Log-probabilities of a reference kept in a file: the same trajectory without the reference; any other is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pandas
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mixlogit_align.alignment import AlignmentConfig, hf, run_alignment
from mixlogit_align.alignment.config import NewModel, PretrainedModel, TokenizationConfig
from mixlogit_align.alignment.data import load_data
from mixlogit_align.alignment.data.batches import TokenizedComparison
from mixlogit_align.alignment.data.schema import Comparison
from mixlogit_align.alignment.logratios import SequenceLogProbs
from mixlogit_align.alignment.parallel import World, shard
from mixlogit_align.alignment.reference import HEADER, ReferenceKey, read_reference, write_reference
from mixlogit_align.alignment.runner import Run
from mixlogit_align.errors import InvalidInputError, MixlogitError
from tests.alignment.processes import (
    ARCHITECTURES,
    largest_differences,
    on_ranks,
    tiny_policy,
    tiny_run,
    train,
    trajectory,
)

# Three steps a stage, the last of a single row; evaluated and saved after each.
ROWS = {"num_train": 25, "num_eval": 9}
STAGE = {"batch_size": 12, "eval_every_examples": 12}


def config(out: Path, policy: str, *, path: str | None = None, cache: Path | None = None, **changes) -> AlignmentConfig:
    settings = tiny_run(out, policy, **ROWS, stage=STAGE, **changes)
    assert settings.preference is not None
    reference = {"reference_path": path, "reference_cache": None if cache is None else str(cache)}
    return dataclasses.replace(settings, preference=dataclasses.replace(settings.preference, **reference))


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("policies")
    return {name: tiny_policy(folder / name, "llama", seed=seed) for seed, name in enumerate(("start", "other"))}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, policies) -> Path:
    """A run without a cache."""
    return run_alignment(config(tmp_path_factory.mktemp("plain"), policies["start"])).path


def outcome(run: Path) -> tuple[list[dict], bytes, bytes]:
    """What training came to, to the bit."""
    return (
        trajectory(run),
        (run / "log_ratios.parquet").read_bytes(),
        (run / "policy" / "model.safetensors").read_bytes(),
    )


def no_reference(self: Run, config: object) -> None:
    raise AssertionError("a reference was built")


def train_with_and_without(plain: AlignmentConfig, writes: AlignmentConfig, reads: AlignmentConfig) -> None:
    run_alignment(plain)
    run_alignment(writes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_reference", no_reference)
        run_alignment(reads)


# --- the same trajectory ---------------------------------------------------------------------------

# What the reference is: the policy after supervised training; another model; the policy in another precision.
REFERENCES = {
    "own": {},
    "other": {"path": "other", "sft": None},
    "float32-of-bfloat16": {"precision": "bfloat16", "sft": None},
}


@pytest.mark.parametrize(
    ("size", "reference"), [(1, "own"), (1, "other"), (1, "float32-of-bfloat16"), (2, "own"), (2, "other")]
)
def test_the_trajectory_is_the_same_with_and_without(policies, tmp_path, size, reference):
    changes = dict(REFERENCES[reference])
    changes["path"] = policies.get(changes.get("path"))
    cache = tmp_path / "folder" / "reference.parquet"
    caches = {"plain": None, "writes": cache, "reads": cache}
    settings = [config(tmp_path / name, policies["start"], cache=at, **changes) for name, at in caches.items()]
    if size == 1:
        train_with_and_without(*settings)
    else:
        on_ranks(size, train_with_and_without, *settings)
    one, *others = (outcome(tmp_path / name) for name in caches)
    assert others == [one, one]
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    start = next(record for record in one[0] if record["stage"] == "preference")
    assert (start["log_ratio/sd"] == 0) == (reference == "own")


def test_one_process_reads_what_two_wrote(policies, tmp_path):
    # supervised training by one and by two processes would end a rounding apart
    both, alone = (
        config(tmp_path / name, policies["start"], cache=tmp_path / "cache", sft=None) for name in ("both", "alone")
    )
    on_ranks(2, train, both)
    written = (tmp_path / "cache").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_reference", no_reference)
        run_alignment(alone)
    assert (tmp_path / "cache").read_bytes() == written
    # as in test_distributed: sums in another order
    assert max(largest_differences(trajectory(Path(both.out)), trajectory(Path(alone.out))).values()) < 1e-5


def test_a_policy_in_memory_and_its_folder_are_one_reference(policies, tmp_path):
    cache = tmp_path / "reference.parquet"
    run_alignment(config(tmp_path / "own", policies["start"], cache=cache, sft=None))
    run_alignment(config(tmp_path / "named", policies["start"], path=policies["start"], cache=cache, sft=None))
    assert outcome(tmp_path / "named") == outcome(tmp_path / "own")


def interrupt(stage: str, step: int) -> Callable[..., None]:
    def progress(now: str, done: int, total: int, metrics: object) -> None:
        if (now, done) == (stage, min(step * STAGE["batch_size"], total)):
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(("stage", "step"), [("sft", 2), ("preference", 0), ("preference", 2)])
def test_a_resumed_run_is_the_run_without_a_break(policies, plain, tmp_path, stage, step):
    cache = tmp_path / "reference.parquet"
    settings = config(tmp_path / "run", policies["start"], cache=cache)
    with pytest.raises(KeyboardInterrupt):
        run_alignment(settings, progress=interrupt(stage, step))
    assert cache.exists() == (stage == "preference")
    run_alignment(settings, resume=True)
    assert outcome(tmp_path / "run") == outcome(plain)


def test_a_refused_cache_can_be_left_behind(policies, plain, tmp_path):
    cache = tmp_path / "reference.parquet"
    write_reference(cache, KEY, TWO, LOGPS)  # of another reference, which shows when this one is there
    before = cache.read_bytes()
    with pytest.raises(InvalidInputError, match="reference cache"):
        run_alignment(config(tmp_path / "run", policies["start"], cache=cache))
    assert cache.read_bytes() == before
    run_alignment(config(tmp_path / "run", policies["start"]), resume=True)
    assert outcome(tmp_path / "run") == outcome(plain)


def test_a_file_that_is_no_cache_is_refused_before_anything_is_written(policies, tmp_path):
    cache = tmp_path / "reference.parquet"
    cache.write_bytes(b"nothing")
    with pytest.raises(InvalidInputError, match=r"reference cache .* expected a whole file"):
        run_alignment(config(tmp_path / "run", policies["start"], cache=cache))
    assert cache.read_bytes() == b"nothing"
    assert not (tmp_path / "run").exists()


# --- the file --------------------------------------------------------------------------------------

KEY = ReferenceKey(
    weights="1" * 64,
    architecture="2" * 64,
    precision="float32",
    tokenizer="3" * 64,
    truncation=dataclasses.asdict(TokenizationConfig()),
)


def row(pair_id: int, *candidates: list[int], prompt_length: int = 1) -> TokenizedComparison:
    comparison = Comparison(prompt="p", responses=("a",) * len(candidates), choice=0, pair_id=pair_id, split="train")
    return TokenizedComparison(comparison=comparison, input_ids=candidates, prompt_length=prompt_length)


TWO = [row(7, [1, 2], [1, 3, 4]), row(9, [5, 6, 7], [5, 8], prompt_length=1)]
# beyond float32, and no short decimal
LOGPS = torch.tensor([[-1.0000000001, -2.5], [-1e-300, -1 / 3]], dtype=torch.float64)


@pytest.fixture
def cache(tmp_path) -> Path:
    write_reference(tmp_path / "reference.parquet", KEY, TWO, LOGPS)
    return tmp_path / "reference.parquet"


def test_it_comes_back_to_the_bit_in_the_order_asked_for(cache):
    assert torch.equal(read_reference(cache, KEY, TWO), LOGPS)
    assert torch.equal(read_reference(cache, KEY, TWO[::-1]), LOGPS.flip(0))
    assert torch.equal(read_reference(cache, KEY, TWO[1:]), LOGPS[1:])


def test_sets_of_several_sizes(tmp_path):
    rows, logps = [row(1, [1, 2], [1, 3], [1, 4]), *TWO], torch.tensor([[-1.0, -2, -3], [-4, -5, 0], [-6, -7, 0]])
    write_reference(tmp_path / "cache", KEY, rows, logps.double())
    assert torch.equal(read_reference(tmp_path / "cache", KEY, rows), logps.double())


def test_who_chose_and_how_much_it_counts_do_not_matter(cache):
    turned = [
        dataclasses.replace(each, comparison=dataclasses.replace(each.comparison, choice=1, weight=3.0)) for each in TWO
    ]
    assert torch.equal(read_reference(cache, KEY, turned), LOGPS)


def test_others_read_it(cache):
    frame = pandas.read_parquet(cache)
    assert list(frame.columns) == ["pair_id", "tokens", "logps"]
    assert frame.pair_id.tolist() == [7, 9]
    assert [list(values) for values in frame.logps] == LOGPS.tolist()
    # prompt length, candidates, length of each, their ids
    expected = hashlib.sha256(struct.pack("<9q", 1, 2, 2, 3, 1, 2, 1, 3, 4)).hexdigest()
    assert frame.tokens[0] == expected
    header = json.loads(pyarrow.parquet.read_schema(cache).metadata[HEADER])
    assert header.pop("libraries")["torch"] == str(torch.__version__)
    assert header == dataclasses.asdict(KEY)


def test_it_holds_what_transformers_says(policies, tmp_path):
    settings = config(tmp_path / "run", policies["start"], path=policies["other"], cache=tmp_path / "cache", sft=None)
    run_alignment(settings)
    run = Run(settings, None, World(), print)  # type: ignore[arg-type]
    run.data = load_data(settings.data)
    run._tokenize()
    rows = [each for split in ("train", "eval") for each in run.rows[split]]
    model = AutoModelForCausalLM.from_pretrained(policies["other"], dtype=torch.float64)
    expected = []
    with torch.no_grad():
        for each in rows:
            for ids in each.input_ids:
                tokens = torch.tensor([ids])
                logps = model(input_ids=tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])
                expected.append(logps[each.prompt_length - 1 :].sum())
    found = pandas.read_parquet(tmp_path / "cache")
    assert found.pair_id.tolist() == [each.comparison.pair_id for each in rows]
    # float32 rounding of some 30 tokens of about 6 nats
    found = torch.tensor(found.logps.map(list).tolist(), dtype=torch.float64).flatten()
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=2e-4)


# --- what is refused -------------------------------------------------------------------------------

CUT = KEY.truncation | {"max_length": 96, "bos": "never"}
CHANGED = [row(7, [1, 2], [1, 3, 5]), TWO[1]]
FOREIGN = {
    "weights": (KEY, {"weights": "9" * 64}, TWO, r"of weights 111111111111.*run's reference, weights 999999999999"),
    "architecture": (KEY, {"architecture": "9" * 64}, TWO, r"another reference's, of architecture 222222222222"),
    "precision": (KEY, {"precision": "bfloat16"}, TWO, r"of precision float32; expected .* precision bfloat16"),
    "all": (KEY, {"weights": "9" * 64, "precision": "bfloat16"}, TWO, r"of weights 111111111111, precision float32"),
    "tokenizer": (KEY, {"tokenizer": "9" * 64}, CHANGED, r"tokens of 1 pairs \(pair_id 7\) \(another tokenizer\)"),
    "truncation": (KEY, {"truncation": CUT}, CHANGED, r"truncation: max_length=128, now 96.*bos='tokenizer', now 'n"),
    "texts": (KEY, {}, CHANGED, r"other tokens of 1 pairs \(pair_id 7\) \(other texts\)"),
    "prompt": (KEY, {}, [dataclasses.replace(TWO[0], prompt_length=0)], r"other tokens of 1 pairs \(pair_id 7\)"),
    "order": (KEY, {}, [row(7, [1, 3, 4], [1, 2])], r"other tokens of 1 pairs \(pair_id 7\)"),
    "pairs": (KEY, {}, [*TWO, *(row(i, [1], [2]) for i in range(20, 27))],
              r"no log-probabilities of 7 pairs \(pair_id 20, 21, 22, 23, 24, \.\.\.\); expected all 9 comparisons"),
    "pairs-and-texts": (KEY, {}, [*CHANGED, row(8, [1], [2])], r"1 pairs \(pair_id 8\), and other tokens of 1 pairs"),
}  # fmt: skip


@pytest.mark.parametrize(("key", "change", "rows", "message"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_cache_is_refused_by_name(cache, key, change, rows, message):
    before = cache.read_bytes()
    with pytest.raises(InvalidInputError, match=message) as caught:
        read_reference(cache, dataclasses.replace(key, **change), rows)
    assert "reference.parquet" in str(caught.value)
    assert "`preference.reference_cache`; or removing reference.parquet" in str(caught.value)
    assert cache.read_bytes() == before


def test_another_tokenizer_that_gives_the_same_tokens_will_do(cache):
    key = dataclasses.replace(KEY, tokenizer="9" * 64, truncation=CUT)
    assert torch.equal(read_reference(cache, key, TWO), LOGPS)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_parquet(path: Path) -> None:
    pandas.DataFrame({"pair_id": [1]}).to_parquet(path)


def other_header(path: Path) -> None:
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.replace_schema_metadata({HEADER: b'{"weights": "1"}'}), path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [truncate, empty, other_parquet, other_header, folder])
def test_a_damaged_file_is_refused(cache, damage):
    damage(cache)
    with pytest.raises(InvalidInputError, match=r"reference cache .*reference\.parquet: got .*; expected a whole file"):
        read_reference(cache, KEY, TWO)


def misread(path: Path, flipped: int) -> bool:
    """Whether the file, with a bit flipped, is read as other numbers than it held."""
    content = bytearray(path.read_bytes())
    content[flipped] ^= 1
    path.with_name("flipped").write_bytes(content)
    try:
        found = read_reference(path.with_name("flipped"), KEY, TWO)
    except InvalidInputError:
        return False
    return not torch.equal(found, LOGPS)


def test_a_flipped_bit_never_passes_for_other_numbers(cache):
    # every 31st byte; of all bytes none passes
    assert [i for i in range(0, cache.stat().st_size, 31) if misread(cache, i)] == []


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MixlogitError, match=r"reference cache .*Error.*another `preference\.reference_cache`"):
        write_reference(tmp_path / "file" / "reference.parquet", KEY, TWO, LOGPS)


def nudge(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    weights[name][0, 0] = torch.nextafter(weights[name][0, 0], torch.tensor(torch.inf))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def turn(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-2}))


RUNS = {
    "one-bit-of-a-weight": (nudge, {}, "another reference's, of weights"),
    "config.json": (turn, {}, "another reference's, of architecture"),
    "precision": (None, {"precision": "bfloat16_parameters"}, "another reference's, of weights"),
    "truncation": (None, {"tokenization": TokenizationConfig(max_length=40, max_prompt_length=24)}, r"th=48, now 40"),
    "pairs": (None, {"data": {"num_eval": 10}}, r"no log-probabilities of 1 pairs"),
}  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory, policies) -> AlignmentConfig:
    """A run that wrote a cache."""
    folder = tmp_path_factory.mktemp("kept")
    settings = config(folder / "run", policies["start"], cache=folder / "cache", sft=None)
    run_alignment(settings)
    return settings


@pytest.mark.filterwarnings("ignore:precision. bfloat16_parameters stores")
@pytest.mark.parametrize(("change_policy", "change", "message"), RUNS.values(), ids=RUNS)
def test_a_run_refuses_the_cache_of_another(policies, kept, tmp_path, change_policy, change, message):
    shutil.copytree(policies["start"], tmp_path / "policy")
    if change_policy is not None:
        change_policy(tmp_path / "policy")
    changes = {"out": str(tmp_path / "run"), "model": PretrainedModel(path=str(tmp_path / "policy")), **change}
    if "data" in changes:
        changes["data"] = dataclasses.replace(kept.data, **changes["data"])
    with pytest.raises(InvalidInputError, match=message):
        run_alignment(dataclasses.replace(kept, **changes))


def test_two_processes_refuse_together(policies, tmp_path):
    (tmp_path / "cache").write_bytes(b"nothing")
    settings = config(tmp_path / "run", policies["start"], cache=tmp_path / "cache", sft=None)
    with pytest.raises(MixlogitError, match="reference cache"):
        on_ranks(2, train, settings)


def test_a_reference_of_another_vocabulary_is_refused_before_anything_is_written(policies, tmp_path):
    run_alignment(config(tmp_path / "new", "", sft=None, model=NewModel(hidden_size=16, num_layers=1, num_heads=2)))
    another = config(tmp_path / "run", policies["start"], path=str(tmp_path / "new" / "policy"))
    with pytest.raises(InvalidInputError, match=r"reference_path: got .*policy, with a vocabulary of \d+ tokens"):
        run_alignment(another)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InvalidInputError, match=r"preference\.reference_path: model\.path: got .*nowhere"):
        run_alignment(config(tmp_path / "run", policies["start"], path=str(tmp_path / "nowhere")))


# --- what names a model ----------------------------------------------------------------------------


def sharded_fingerprints(sources: list[PretrainedModel]) -> list[dict[str, str]]:
    world = World(rank=torch.distributed.get_rank(), size=torch.distributed.get_world_size(), grouped=True)
    found = []
    for source in sources:
        model = hf.skeleton(source, None, seed=0)
        shard(SequenceLogProbs(model), world, "float32")
        hf.load_weights(model, source, world.device, torch.float32)
        found.append(hf.fingerprint(model, world=world))
    return found


def test_a_model_has_one_name_in_memory_in_files_and_sharded(tmp_path):
    sources = [PretrainedModel(path=tiny_policy(tmp_path / name, name)) for name in ARCHITECTURES]
    models = [hf.skeleton(source, None, seed=0) for source in sources]
    names = [hf.fingerprint(model, source) for model, source in zip(models, sources, strict=True)]
    assert len({name["weights"] for name in names}) == len({name["architecture"] for name in names}) == len(names)
    assert on_ranks(2, sharded_fingerprints, sources) == [names, names]
    again = [PretrainedModel(path=str(tmp_path / f"{name}-again")) for name in ARCHITECTURES]
    for model, source, copy in zip(models, sources, again, strict=True):
        hf.load_weights(model, source, torch.device("cpu"), torch.float32)
        hf.export(model, hf.load_tokenizer(source, []), Path(copy.path))
    assert [hf.fingerprint(model) for model in models] == names
    assert [hf.fingerprint(hf.skeleton(copy, None, seed=0), copy) for copy in again] == names


def test_the_type_of_a_file_does_not_matter_where_its_numbers_are_the_same(policies, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(policies["start"], dtype=torch.bfloat16)
    for name in ("bfloat16", "float32"):
        model.to(getattr(torch, name)).save_pretrained(tmp_path / name)
    paths = (str(tmp_path / "bfloat16"), str(tmp_path / "float32"), policies["start"])
    sources = [PretrainedModel(path=path) for path in paths]
    rounded, same, unrounded = (hf.fingerprint(hf.skeleton(source, None, seed=0), source) for source in sources)
    assert rounded == same
    assert rounded["weights"] != unrounded["weights"]


def test_a_tokenizer_has_one_name_however_it_was_used(policies):
    one, other = (hf.load_tokenizer(PretrainedModel(path=policies[name]), []) for name in ("start", "other"))
    name = hf.tokenizer_fingerprint(one)
    one(["some text"], padding=True, truncation=True, max_length=1)
    assert hf.tokenizer_fingerprint(one) == hf.tokenizer_fingerprint(other) == name
    other.add_tokens(["one more"])
    assert hf.tokenizer_fingerprint(other) != name
