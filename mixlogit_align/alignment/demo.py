"""The alignment part of the demonstration: simulated annotators of known strength, four methods, held to the truth."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from mixlogit_align.alignment.config import (
    AlignmentConfig,
    BestRule,
    CheckpointConfig,
    ClosedFormRule,
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
    QuadratureRule,
    StageConfig,
    StrengthConfig,
)
from mixlogit_align.alignment.data.config import SimulatedData
from mixlogit_align.alignment.progress import Progress
from mixlogit_align.alignment.runner import RunResult, run_alignment

# Learned 100 times faster than in the paper: a run here has some 200 steps, not 859, and the learning rate says
# how far the strength moves.
STRENGTH_UPDATE = LearnedUpdate(lr=1e-2)

METHODS: Mapping[str, tuple[StrengthConfig, IntegrationConfig]] = {
    "DPO": (PointStrength(value=0.1), BestRule()),
    "MixDPO lognormal, Monte Carlo 16": (LogNormalStrength(update=STRENGTH_UPDATE), MonteCarloRule(num_draws=16)),
    "MixDPO lognormal, quadrature": (LogNormalStrength(update=STRENGTH_UPDATE), QuadratureRule()),
    "MixDPO gamma, closed form": (GammaStrength(update=STRENGTH_UPDATE), ClosedFormRule()),
}
TRUE_CVS = (1.0, 0.0)


def demo_runs(out: Path, progress: Progress | None = None, quick: bool = False) -> list[RunResult]:
    """One supervised stage, then each of `METHODS` at each of `TRUE_CVS`, as run folders below ``out``.

    The annotators' strength is LogNormal with mean 0.1 and the given cv; data of both cvs share prompts, responses
    and annotators, and all runs share the policy they start from.

    Parameters
    ----------
    out : Path
        Gets ``sft/`` and one folder a run, e.g. ``cv1-mixdpo-gamma-closed-form/``; earlier ones are replaced.
    progress : callable, optional
        See `run_alignment`; a task is named after the run's folder, since each run has one stage.
    quick : bool
        Fewer examples: shows that everything runs, not what is learned.

    Returns
    -------
    list of RunResult
        The supervised run, then the others; ``out/truth.json`` has each one's comparison with the truth.
    """
    num_train, num_epochs = (256, 1) if quick else (6144, 2)
    size = SimulatedData(num_train=num_train, num_eval=128 if quick else 1024)
    every = 128 if quick else 2048
    sft = AlignmentConfig(
        out=str(out / "sft"),
        name="SFT",
        data=dataclasses.replace(size, strength_cv=TRUE_CVS[0]),
        model=NewModel(vocab_size=512),
        sft=StageConfig(
            optim=OptimConfig(name="adamw", lr=3e-3, warmup_steps=20), eval_every_examples=every, eval_batch_size=256
        ),
        checkpoint=CheckpointConfig(keep=0),  # a run takes seconds
    )
    results = [_run(sft, progress)]
    for cv in TRUE_CVS:
        for name, (strength, integration) in METHODS.items():
            slug = name.lower().replace(",", "").replace(" ", "-")
            config = AlignmentConfig(
                out=str(out / f"cv{cv:g}-{slug}"),
                name=name,
                data=dataclasses.replace(size, strength_cv=cv),
                model=PretrainedModel(path=str(out / "sft" / "policy")),
                preference=PreferenceConfig(
                    optim=OptimConfig(name="rmsprop", lr=1e-3, warmup_steps=20),
                    num_epochs=num_epochs,
                    eval_every_examples=every,
                    eval_batch_size=256,
                    strength=strength,
                    integration=integration,
                ),
                checkpoint=sft.checkpoint,
            )
            results.append(_run(config, progress))
    truths = {result.path.name: {"name": result.name, **result.truth} for result in results if result.truth}
    (out / "truth.json").write_text(json.dumps(truths, indent=2) + "\n", encoding="utf-8")
    return results


def _run(config: AlignmentConfig, progress: Progress | None) -> RunResult:
    def named(_: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        if progress is not None:
            progress(Path(config.out).name.replace("-", " "), done, total, metrics)

    return run_alignment(config, progress=named, overwrite=True)
