"""What was trained, in words: from a run's settings and what it wrote of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from html import escape

from mixlogit_align.alignment.config import LearnedUpdate, NewModel, PointStrength, SolvedUpdate, StageConfig
from mixlogit_align.report.comparable import is_dpo, method_of
from mixlogit_align.report.files import Run

OPTIMISERS = {"rmsprop": "RMSprop", "adamw": "AdamW"}
RULES = {"best": "the most accurate rule", "closed_form": "the closed form", "monte_carlo": "Monte Carlo"}
STAGES = {"sft": "supervised fine-tuning", "preference": "preference stage"}


def described(runs: Sequence[Run]) -> str:
    """Topic by topic what the runs are, as an HTML list; where they differ, with the runs that each line is about."""
    parts = []
    everyone = list(dict.fromkeys(run.name for run in runs))
    for topic, words in TOPICS.items():
        said: dict[str, list[str]] = {}
        for run in runs:
            for line in words(run):
                said.setdefault(line, []).append(run.name)
        if said:
            lines = "".join(
                f"<dd>{escape(line)}{_whose(names, everyone) if len(names) < len(runs) else ''}</dd>"
                for line, names in sorted(said.items(), key=lambda item: len(item[1]) < len(runs))
            )
            parts.append(f"<div><dt>{topic}</dt>{lines}</div>")
    return f'<dl class="facts">{"".join(parts)}</dl>'


def _whose(names: Sequence[str], everyone: Sequence[str]) -> str:
    """Whom a line is about; the others, where they are fewer."""
    others = [name for name in everyone if name not in names]
    said = f"all but {'; '.join(others)}" if 0 < len(others) < len(everyone) / 2 else "; ".join(dict.fromkeys(names))
    return f" <small>({escape(said)})</small>"


def _method(run: Run) -> list[str]:
    preference = run.config.preference
    if preference is None:
        return ["supervised fine-tuning on the chosen responses; no preference stage"]
    method, strength = method_of(run.config), preference.strength
    if strength is None:
        settings = {name: value for name, value in dataclasses.asdict(preference.loss).items() if name != "kind"}
        return [f"{method}: {', '.join(f'{name} {value}' for name, value in settings.items())}"]
    if isinstance(strength, PointStrength):
        start, integral = f"strength {strength.value:g}", ""
    else:
        moments = strength.build().summary()
        start = f"strength of mean {moments['mean']:.3g} and sd {moments['sd']:.3g}"
        assert preference.integration is not None
        rule = preference.integration.rule
        how = RULES.get(rule, rule)
        integral = f"; the mean over it by {how}"
    update = strength.update
    if isinstance(update, LearnedUpdate):
        return [f"{method}: a {start} at the start, learned at rate {update.lr:g}{integral}"]
    if isinstance(update, SolvedUpdate):
        return [f"{method}: a {start} at the start, solved for every {update.every_steps} steps{integral}"]
    return [f"{method}: {start}" if is_dpo(run.config) else f"{method}: a {start}, frozen{integral}"]


def _policy(run: Run) -> list[str]:
    model, lora = run.config.model, run.config.lora
    if isinstance(model, NewModel):
        sizes = f"{model.num_layers} layers of width {model.hidden_size}, {model.num_heads} heads"
        words = f"a new GPT-NeoX, random weights: {sizes}"
    else:
        words = f"begins as {model.path}"
    if lora is not None:
        words += f"; adapters of rank {lora.rank} on {', '.join(lora.targets)} layers are trained in its place"
    if run.num_parameters is not None:
        what = "parameters in the adapters" if lora is not None and lora.export == "adapter" else "parameters"
        words += f"; {run.num_parameters:,} {what}"
    return [words]


def _reference(run: Run) -> list[str]:
    preference = run.config.preference
    if preference is None:
        return []
    if not preference.loss.has_reference:
        return ["none: the loss needs none"]
    return [preference.reference_path or "the policy as the preference stage found it"]


def _data(run: Run) -> list[str]:
    words = run.data_name
    if run.data is not None:
        counts = {split: report["prompts"]["texts"] for split, report in run.data["tokenization"].items()}
        words += f": {counts['train']:,} comparisons to train on, {counts['eval']:,} held out"
        left_out = run.data["reader"].get("bad_rows") or {}
        if left_out:
            words += f"; rows left out: {', '.join(f'{rule} {count:,}' for rule, count in left_out.items())}"
        for what in ("prompts", "responses"):
            cut = sum(report[what]["cut"] for report in run.data["tokenization"].values())
            words += f"; {cut:,} {what} cut to fit" if cut else ""
    return [words]


def _training(run: Run) -> list[str]:
    stages: tuple[tuple[str, StageConfig | None], ...] = (
        ("sft", run.config.sft),
        ("preference", run.config.preference),
    )
    return [_stage(run, name, stage) for name, stage in stages if stage is not None]


def _stage(run: Run, name: str, stage: StageConfig) -> str:
    done = max((row["step"] for row in run.metrics if row["stage"] == name), default=0)
    planned = "" if run.data is None else stage.num_steps(run.data["tokenization"]["train"]["prompts"]["texts"])
    steps = f"{done:,} of {planned:,} steps" if isinstance(planned, int) and done < planned else f"{done:,} steps"
    epochs = f"{stage.num_epochs} epoch{'s' if stage.num_epochs > 1 else ''}"
    optim = stage.optim
    warmup = f" after {optim.warmup_steps} steps of warm-up" if optim.warmup_steps else ""
    return (
        f"{STAGES[name]}: {steps} of {stage.batch_size} comparisons ({epochs}), {OPTIMISERS[optim.name]} at rate "
        f"{optim.lr:g}{warmup}"
    )


def _computed(run: Run) -> list[str]:
    if run.processes is None:
        return []
    processes = "1 process" if run.processes == 1 else f"{run.processes} processes, the policy sharded over them"
    compiled = ", transformer blocks compiled" if run.config.compile else ""
    return [f"{processes} on {run.config.device}, {run.precision}{compiled}"]


TOPICS: dict[str, Callable[[Run], list[str]]] = {
    "Method": _method,
    "Policy": _policy,
    "Reference": _reference,
    "Data": _data,
    "Training": _training,
    "Computed": _computed,
}
