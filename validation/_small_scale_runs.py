"""The runs of the paper at small scale: data sets, methods, seeds, and their training, resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import joblib
import torch

from mixlogit_align.alignment import AlignmentConfig, run_alignment
from mixlogit_align.alignment.config import (
    BestRule,
    CheckpointConfig,
    ClosedFormRule,
    FrozenUpdate,
    GammaStrength,
    IntegrationConfig,
    LearnedUpdate,
    LogNormalStrength,
    MonteCarloRule,
    NewModel,
    OptimConfig,
    PointStrength,
    PreferenceConfig,
    PretrainedModel,
    StageConfig,
    StrengthConfig,
    TokenizationConfig,
)
from mixlogit_align.alignment.data.config import DataConfig, HHData, Mg2019Data, SimulatedData

# The paper's and a hundred times it: a run here has an eighth of the paper's steps, and the learning rate bounds how
# far the strength can move.
PAPER_RATE, FAST_RATE = 1e-4, 1e-2
PAPER, FAST = "1e-4", "1e-2"
UPDATES = {"frozen": FrozenUpdate(), PAPER: LearnedUpdate(lr=PAPER_RATE), FAST: LearnedUpdate(lr=FAST_RATE)}
FAMILIES = ("LogNormal", "Gamma")
METHODS: Mapping[str, tuple[StrengthConfig, IntegrationConfig]] = {
    "DPO": (PointStrength(value=0.1), BestRule()),
    **{f"LogNormal {name}": (LogNormalStrength(update=update), MonteCarloRule(num_draws=16))
       for name, update in UPDATES.items()},
    **{f"Gamma {name}": (GammaStrength(update=update), ClosedFormRule()) for name, update in UPDATES.items()},
}  # fmt: skip

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much each run reads, and how many seeds there are."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    train: int = 2560
    held_out_hh: int = 425  # the paper's
    held_out_mg2019: int = 4096
    held_out_simulated: int = 2048
    sft_epochs: int = 2


FULL, QUICK = Sizes(), Sizes(seeds=(0, 1), train=128, held_out_mg2019=512, held_out_simulated=256, sft_epochs=1)


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set and the policy that fits it.

    Parameters
    ----------
    data : callable
        Seed and sizes -> settings of the reader. The seed fixes what is sampled, and who is held out.
    vocab_size : int
        Of the policy's tokenizer.
    """

    data: Callable[[int, Sizes], DataConfig]
    vocab_size: int = 512


def _hh(seed: int, sizes: Sizes) -> DataConfig:
    return HHData(max_train=sizes.train, max_eval=sizes.held_out_hh, seed=seed)


def _mg2019(seed: int, sizes: Sizes) -> DataConfig:
    return Mg2019Data(hold_out="people", max_train=sizes.train, max_eval=sizes.held_out_mg2019, seed=seed)


def _simulated(name: str) -> Callable[[int, Sizes], DataConfig]:
    return lambda seed, sizes: SimulatedData(
        num_train=sizes.train, num_eval=sizes.held_out_simulated, strength_cv=TRUE_CV[name], seed=seed
    )


SIMULATED = ("simulated, cv 0", "simulated, cv 1")
TRUE_CV = dict(zip(SIMULATED, (0.0, 1.0), strict=True))
DATA: Mapping[str, DataSet] = {
    "HH": DataSet(data=_hh, vocab_size=1024),
    "mg2019": DataSet(data=_mg2019),
    **{name: DataSet(data=_simulated(name)) for name in SIMULATED},
}
# The same for all data, as in the paper; only HH's texts are longer, and cut.
HIDDEN, LAYERS = 32, 2
TOKENIZATION = TokenizationConfig(max_length=96, max_prompt_length=48)
OPTIM = OptimConfig(name="rmsprop", lr=3e-3, warmup_steps=10)

Key = tuple[str, str, int]  # data set, method, seed


def folder_of(runs: Path, data: str, what: str, seed: int) -> Path:
    """The folder of a run."""
    return runs / f"{data}-{what}-{seed}".lower().replace(",", "").replace(" ", "-")


def sft_config(runs: Path, data: str, seed: int, sizes: Sizes) -> AlignmentConfig:
    """The stage that all methods start from."""
    return AlignmentConfig(
        out=str(folder_of(runs, data, "sft", seed)),
        name="SFT",
        data=DATA[data].data(seed, sizes),
        model=NewModel(hidden_size=HIDDEN, num_layers=LAYERS, vocab_size=DATA[data].vocab_size, max_positions=96),
        tokenization=TOKENIZATION,
        sft=StageConfig(
            optim=OptimConfig(name="adamw", lr=3e-3, warmup_steps=20),
            num_epochs=sizes.sft_epochs,
            batch_size=BATCH,
            eval_every_examples=sizes.sft_epochs * sizes.train,
            eval_batch_size=256,
        ),
        seed=seed,
        checkpoint=CheckpointConfig(keep=0),  # a run takes seconds
    )


def preference_config(runs: Path, key: Key, sizes: Sizes) -> AlignmentConfig:
    """One epoch of preferences, as in the paper, from the policy of the SFT stage, which is the reference too."""
    data, method, seed = key
    sft = folder_of(runs, data, "sft", seed)
    strength, integration = METHODS[method]
    return AlignmentConfig(
        out=str(folder_of(runs, data, method, seed)),
        name=method,
        data=DATA[data].data(seed, sizes),
        model=PretrainedModel(path=str(sft / "policy")),
        tokenization=TOKENIZATION,
        preference=PreferenceConfig(
            optim=OPTIM,
            batch_size=BATCH,
            eval_every_examples=sizes.train,
            eval_batch_size=256,
            strength=strength,
            integration=integration,
            reference_cache=str(sft.with_suffix(".reference")),
        ),
        seed=seed,
        checkpoint=CheckpointConfig(keep=0),
    )


def train(config: AlignmentConfig) -> None:
    """One run on one thread; one that has finished is not made again."""
    torch.set_num_threads(1)
    state = Path(config.out) / "run.json"
    finished = state.exists() and json.loads(state.read_text())["status"] == "finished"
    result = run_alignment(config, resume=finished, overwrite=not finished)
    print(f"{result.path.name}: {result.seconds:.0f} s" + (", before" if finished else ""), flush=True)


def keys(sizes: Sizes) -> Iterator[Key]:
    """Every preference run, seed by seed: what is cut short still holds whole seeds."""
    return ((data, method, seed) for seed in sizes.seeds for data in DATA for method in METHODS)


def train_all(runs: Path, sizes: Sizes, jobs: int) -> dict[Key, Path]:
    """Every run, on ``jobs`` processes of one thread; the folders of the preference runs."""
    with joblib.parallel_config("loky", inner_max_num_threads=1):
        parallel = joblib.Parallel(n_jobs=jobs)
        for seed in sizes.seeds:
            parallel(joblib.delayed(train)(sft_config(runs, data, seed, sizes)) for data in DATA)
            of_seed = [key for key in keys(sizes) if key[2] == seed]
            first = [key for key in of_seed if key[1] == "DPO"]  # they write the reference's scores for the others
            parallel(joblib.delayed(train)(preference_config(runs, key, sizes)) for key in first)
            parallel(joblib.delayed(train)(preference_config(runs, key, sizes)) for key in of_seed if key not in first)
    return {key: folder_of(runs, *key) for key in keys(sizes)}
