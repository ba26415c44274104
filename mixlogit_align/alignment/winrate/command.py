"""What ``mixlogit-align winrate`` does: responses, verdicts, win rates; all kept in one folder, and as text."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mixlogit_align.alignment.config import AlignmentConfig, PretrainedModel
from mixlogit_align.alignment.data import load_data
from mixlogit_align.alignment.data.schema import Comparison
from mixlogit_align.alignment.durable import write_durably
from mixlogit_align.alignment.finished import SUPERVISED, policy_of, run_config
from mixlogit_align.alignment.progress import Progress
from mixlogit_align.alignment.settings import load_config
from mixlogit_align.alignment.winrate.alpaca_eval import (
    leaderboard_row,
    read_outputs,
    read_stored_judge,
    write_annotations,
    write_leaderboard,
    write_outputs,
)
from mixlogit_align.alignment.winrate.comparison import ANNOTATIONS, PairedComparison, compare_results
from mixlogit_align.alignment.winrate.endpoint import EndpointConfig
from mixlogit_align.alignment.winrate.endpoint_judge import EndpointJudge, FormName, Order
from mixlogit_align.alignment.winrate.generation import GenerationConfig, generate, prompt_text, sample_prompts
from mixlogit_align.alignment.winrate.judges import Judge, RewardJudge, judge_outputs
from mixlogit_align.alignment.winrate.length_control import LengthControl, fit_length_control
from mixlogit_align.alignment.winrate.pairs import Outputs, pair_outputs
from mixlogit_align.alignment.winrate.preferences import Preferences, WinRate
from mixlogit_align.alignment.winrate.uncertainty import (
    Estimate,
    SignFlipComparison,
    bootstrap_win_rates,
    sign_flip,
)
from mixlogit_align.errors import ConvergenceError, InvalidInputError, explain
from mixlogit_align.inference import SignFlip

RESULT = "winrate.json"
SAMPLE = 425  # prompts where no other number is asked for, or all where there are fewer: the paper's


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """The win rate of a run against an opponent.

    Parameters
    ----------
    model, opponent, judge : str
    win_rate : WinRate
    interval : Estimate
        Of the win rate, by the bootstrap.
    test : SignFlipComparison
        Against 50 %.
    controlled : Estimate or None
        The length-controlled win rate, by the minimal form of the GLM, with refitted intervals; none where the penalty
        has left nothing of it, see `LengthControl.require_weight`.
    not_controlled : str or None
        Why there is none.
    compared : PairedComparison or None
        With another model against the same opponent.
    faults : dict
        Prompts without a verdict, by rule; see `Judged.faults`.
    generation : dict
        How the responses of each side were made; empty for responses from files.
    usage : dict or None
        What an endpoint took.
    out : Path
    """

    model: str
    opponent: str
    judge: str
    win_rate: WinRate
    interval: Estimate
    test: SignFlipComparison
    controlled: Estimate | None
    not_controlled: str | None
    compared: PairedComparison | None
    faults: dict[str, Any]
    generation: dict[str, Any]
    usage: dict[str, Any] | None
    out: Path


def judge_run(
    run: str | Path,
    opponent: str | Path | None,
    make_judge: Callable[[Path], Judge],
    *,
    sample: int | None = None,
    seed: int = 0,
    generation: GenerationConfig | None = None,
    compare: str | Path | None = None,
    num_replications: int = 1000,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    told: Callable[[str], object] | None = None,
) -> JudgedRun:
    """Have a judge compare a run with an opponent on a sample of held-out prompts, and write what was found.

    Every response and every answer of an endpoint is kept when it comes: the same call goes on after an interruption.

    Parameters
    ----------
    run : path
        The folder of a finished run, or AlpacaEval's model_outputs.json.
    opponent : path or None
        Another run, a policy in Hugging Face format, or a file of outputs. None takes the policy that the run's
        preference stage began with, which for the paper's recipe is the supervised one.
    make_judge : callable
        Given the folder of results, where its cache may lie, the judge; called when run, opponent and sample are known
        to be fit, and before anything is generated.
    sample : int, optional
        How many held-out prompts of the run's data, see `sample_prompts`; 425 where not given, or all where there are
        fewer. Not used where ``run`` is a file.
    seed : int
        Which prompts.
    generation : GenerationConfig, optional
    compare : path, optional
        A folder of results of another model against this opponent, see `compare_results`.
    num_replications : int
        Of the bootstrap.
    out : path, optional
        By default ``winrate-OPPONENT`` in the run's folder, or beside the file.
    overwrite : bool
        Replace results that stand there by another judge or other settings; otherwise they are refused.
    device : str
        Where policies answer.
    progress : Progress, optional
    told : callable, optional
        Given a line on what the judge will cost, before it begins, and on a split of fewer prompts than 425.

    Returns
    -------
    JudgedRun

    Raises
    ------
    InvalidInputError
        As `generate`, `pair_outputs` and `sample_prompts`; where no opponent is given and none is known; where results
        of other settings stand in the folder.
    EndpointError
        As `EndpointJudge.judge`.
    JudgeError
        Where the judge has no verdict on any prompt.
    """
    run = Path(run)
    config = None if run.is_file() else run_config(run)
    against = Path(opponent) if opponent is not None else _began_with(run, config)
    folder = Path(out) if out is not None else (run.parent if run.is_file() else run) / f"winrate-{_slug(against)}"
    sides = {"model": run, "opponent": against}
    generated = {side: path for side, path in sides.items() if not path.is_file()}
    if config is None and generated:
        raise InvalidInputError(
            explain(str(against), got="a policy against a file of outputs", expected="two files", hint="its outputs")
        )
    generation = generation or GenerationConfig()
    policies: dict[str, Path] = {}
    rows: list[Comparison] = []
    asked: dict[str, Any] = {}
    if config is not None:
        from mixlogit_align.alignment import hf

        policies = {side: hf.resolve(str(policy_of(path))) for side, path in generated.items()}
        rows = _sampled(load_data(config.data).split("eval"), sample, seed, told)
        room = config.tokenization.max_length - config.tokenization.max_prompt_length
        asked = {
            "sample": len(rows), "sample_seed": seed, "device": torch.device(device).type,
            **dataclasses.asdict(generation), "max_new_tokens": generation.max_new_tokens or room,
        }  # fmt: skip
    stored = {} if overwrite else _stored(folder)
    for side in generated:
        _refuse_other(folder, stored.get(side, {}), side, asked)
    judge = make_judge(folder)
    _refuse_other(folder, stored.get("judge", {}), "judge", {"judge": judge.name})
    folder.mkdir(parents=True, exist_ok=True)
    how: dict[str, Any] = {}

    def outputs_of(path: Path, side: str) -> Outputs:
        if config is None or side not in generated:
            return read_outputs(path)
        made = generate(
            policies[side], rows, config.tokenization, generation, name=_name(path), source=config.data.source,
            device=device, cache=folder / f"{side}.jsonl", progress=_named(progress, f"answers of the {side}"),
        )  # fmt: skip
        how[side] = {
            **made.settings, "sample": len(rows), "sample_seed": seed, "num_unfinished": made.num_unfinished,
            "truncation": made.truncation.as_dict(),
        }  # fmt: skip
        weights = {name: made.settings[name] for name in ("policy", "tokenizer")}
        _refuse_other(folder, stored.get(side, {}), side, weights)
        write_outputs(folder / f"{side}_outputs.json", made.outputs)
        return made.outputs

    ours, theirs = outputs_of(run, "model"), outputs_of(against, "opponent")
    if ours.name == theirs.name:
        theirs = dataclasses.replace(theirs, name=f"{theirs.name} (opponent)")
    if told is not None and isinstance(judge, EndpointJudge):
        told(_told(judge, pair_outputs(ours, theirs)))
    judged = judge_outputs(judge, ours, theirs, progress)
    judged.require_a_verdict()
    table = judged.preferences
    control, controlled, why = _controlled(table, num_replications, seed)
    write_annotations(folder / ANNOTATIONS, judged.pairs, table, judge.name, control=control)
    write_leaderboard(folder / "leaderboard.csv", {table.model: leaderboard_row(table, control)})
    usage = judge.usage if isinstance(judge, EndpointJudge) else None
    found = JudgedRun(
        model=table.model,
        opponent=table.opponent,
        judge=judge.name,
        win_rate=table.win_rate(),
        interval=bootstrap_win_rates([table], num_replications=num_replications, seed=seed).win_rate(table.model),
        test=sign_flip(table, seed=seed),
        controlled=controlled,
        not_controlled=why,
        compared=None
        if compare is None
        else compare_results(folder, compare, num_replications=num_replications, seed=seed),
        faults=judged.faults(),
        generation=how,
        usage=None if usage is None else dataclasses.asdict(usage),
        out=folder,
    )  # fmt: skip
    write_durably(folder / RESULT, json.dumps(as_json(found), indent=1, allow_nan=False) + "\n")
    return found


def make_judge(
    spec: str,
    *,
    form: FormName = "json",
    order: Order = "both",
    seed: int = 0,
    budget: float | None = None,
    device: str = "cpu",
    **endpoint: Any,
) -> Callable[[Path], Judge]:
    """A judge by the words of a command line; what is wrong with it is told before any response is generated.

    A reward model is loaded when the judge is asked for.

    Parameters
    ----------
    spec : str
        A file of annotations; ``reward:PATH``, a reward model in Hugging Face format; or the URL of an endpoint.
    form, order, seed, budget
        See `EndpointJudge`.
    device : str
        Of a reward model.
    **endpoint
        Settings of `EndpointConfig` beside the URL, ``model`` among them.

    Returns
    -------
    callable
        Of the folder of results, which keeps the answers of an endpoint as ``answers.jsonl``.

    Raises
    ------
    InvalidInputError
        As `read_stored_judge`, `RewardModel` and `EndpointConfig`; for an endpoint without a model.
    EndpointError
        If there is no key.
    """
    if spec.startswith(("http://", "https://")):
        if not endpoint.get("model"):
            raise InvalidInputError(
                explain("judge", got="an endpoint without a model", expected="one", hint="--judge-model NAME")
            )
        config = EndpointConfig(url=spec, **endpoint)
        config.require_key()
        asked = EndpointJudge(endpoint=config, form=form, order=order, seed=seed, budget=budget)
        return lambda folder: dataclasses.replace(asked, cache=folder / "answers.jsonl")
    if spec.startswith("reward:"):
        from mixlogit_align.alignment.hf_reward import RewardModel

        path = spec.removeprefix("reward:")
        return lambda _: RewardJudge(name=path, score=RewardModel(path, device=device))
    if not Path(spec).is_file():
        raise InvalidInputError(
            explain(
                "judge",
                got=f"{spec!r}, which is no file",
                expected="the URL of an endpoint, reward:FOLDER, or a file of annotations",
                hint=f"reward:{spec}" if Path(spec).is_dir() else "reward:FOLDER for a reward model",
            )
        )
    stored = read_stored_judge(spec)
    return lambda _: stored


def as_json(found: JudgedRun) -> dict[str, Any]:
    """A result as JSON holds it: paths as text, NaN as null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        if isinstance(value, SignFlip):
            return plain(value._asdict())
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        if isinstance(value, Path):
            return str(value)
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(value) for name, value in dataclasses.asdict(found).items() if name != "out"}


def as_text(found: JudgedRun) -> str:
    """What was found, for a terminal."""
    rate, test = found.win_rate, found.test.test
    lines = [
        f"{found.model} against {found.opponent}, judged by {found.judge}",
        f"win rate {rate.percent:.2f} % (s.e. {rate.standard_error:.2f}; 95 % interval {found.interval.lower:.2f} to "
        f"{found.interval.upper:.2f}): {rate.num_wins} wins, {rate.num_losses} losses, {rate.num_ties} ties",
        f"against 50 %: p = {test.pvalue:.4g} (sign-flip test, {'exact' if test.exact else 'sampled'})",
    ]
    if found.controlled is None:
        lines.append(f"no length-controlled win rate: {found.not_controlled}")
    else:
        c = found.controlled
        lines.append(
            f"at equal lengths {c.value:.2f} % (s.e. {c.standard_error:.2f}; {c.lower:.2f} to {c.upper:.2f}), by the "
            "minimal form of the GLM"
        )
    if found.compared is not None:
        paired = found.compared
        equal = "" if paired.controlled is None else f", at equal lengths {_points(paired.controlled)}"
        lines.append(
            f"less {paired.other}, paired: {_points(paired.difference)}, p = {paired.test.test.pvalue:.4g}{equal}"
        )
    for side, how in found.generation.items():
        total, cut = found.win_rate.num_judged + found.win_rate.num_missing, how["truncation"]["prompts"]["cut"]
        if how["num_unfinished"] or cut:
            lines.append(
                f"{side}: {how['num_unfinished']} of {total} responses reached max_new_tokens without an end, {cut} "
                "prompts were cut before they were answered (the judge sees them whole)"
            )
    for fault, seen in found.faults.items():
        lines.append(f"{seen['count']} prompts without a verdict, {fault}: not so that {seen['rule']}")
    if found.usage is not None:
        used = found.usage
        cost = "" if used["cost"] is None else f", cost {used['cost']:.4g}"
        lines.append(
            f"{used['num_requests']} requests ({used['num_retries']} of them again), {used['input_tokens']} tokens in, "
            f"{used['output_tokens']} out{cost}"
        )
    return "\n".join([*lines, f"written to {found.out}"]) + "\n"


def _points(found: Estimate) -> str:
    return f"{found.value:+.2f} points ({found.lower:+.2f} to {found.upper:+.2f})"


def _named(progress: Progress | None, task: str) -> Progress | None:
    """The progress of one task under another name."""
    if progress is None:
        return None
    return lambda _, done, total, metrics: progress(task, done, total, metrics)


def _told(judge: EndpointJudge, pairs: Any) -> str:
    estimate = judge.estimate(pairs)
    cost = "" if estimate.cost is None else f"; cost at most about {estimate.cost:.4g}"
    return (
        f"{estimate.num_requests} requests to come, {estimate.num_cached} answered before; about "
        f"{estimate.input_tokens} tokens in, at most {estimate.output_tokens} out{cost}"
    )


def _controlled(
    table: Preferences, num_replications: int, seed: int
) -> tuple[LengthControl | None, Estimate | None, str | None]:
    """The length control of a table and its uncertainty, or why there is none."""
    try:
        control = fit_length_control(table)
        control.require_weight()
        found = bootstrap_win_rates(
            [table],
            length_control=True,
            inverse_penalty=control.inverse_penalty,
            num_replications=num_replications,
            seed=seed,
        )
    except (InvalidInputError, ConvergenceError) as error:
        return None, None, str(error)
    return control, found.win_rate(table.model), None


def _sampled(
    held_out: Sequence[Comparison], sample: int | None, seed: int, told: Callable[[str], object] | None
) -> list[Comparison]:
    """Prompts as asked for, or 425, or all where there are fewer."""
    distinct = len({prompt_text(row.prompt) for row in held_out})
    if sample is None and told is not None and distinct < SAMPLE:
        told(f"all {distinct} distinct held-out prompts: there are not {SAMPLE}")
    return sample_prompts(held_out, min(SAMPLE, distinct) if sample is None else sample, seed)


def _stored(folder: Path) -> dict[str, dict[str, Any]]:
    """Settings of the results that stand in a folder: of each side that was generated, and of the judge."""
    file = folder / RESULT
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        sides = {side: {**how, **how["generation"]} for side, how in found["generation"].items()}
        return {**sides, "judge": {"judge": found["judge"]}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(
            explain(
                str(file),
                got=f"{type(error).__name__}: {error}",
                expected="results of this command",
                hint="--out with another folder, or --overwrite to replace them",
            )
        ) from error


def _refuse_other(folder: Path, stored: Mapping[str, Any], whose: str, asked: Mapping[str, Any]) -> None:
    """Refuse to replace results of other settings, naming those that differ."""
    other = [name for name, value in asked.items() if name in stored and stored[name] != value]
    if other:
        raise InvalidInputError(
            explain(
                f"results in {folder}, the {whose}",
                got=", ".join(f"{name}={stored[name]!r}" for name in other),
                expected=", ".join(f"{name}={asked[name]!r}" for name in other) + ", as asked for now",
                hint="--out with another folder, or --overwrite to replace them",
            )
        )


def _began_with(run: Path, config: AlignmentConfig | None) -> Path:
    """The policy that a run's preference stage began with, where it lies in a folder."""
    if config is not None and config.preference is not None:
        if config.sft is not None and (run / SUPERVISED).is_dir():
            return run / SUPERVISED
        if config.sft is None and isinstance(config.model, PretrainedModel):
            return Path(config.model.path)
    raise InvalidInputError(
        explain(
            "opponent",
            got=f"none, and {run} neither names nor keeps the policy that its preference stage began with",
            expected="an opponent",
            hint="--opponent with another run, a policy, or a file of outputs",
        )
    )


def _name(path: Path) -> str:
    """What a run is called: by its settings, and a policy by its folder (that of a run by the run)."""
    settings = path / "config.yaml"
    return (
        load_config(settings).name if settings.is_file() else path.parent.name if path.name == "policy" else path.name
    )


def _slug(path: Path) -> str:
    """A word for a path: of a policy in a run's folder, the run's."""
    stem = path.parent.name if path.name == "policy" else path.stem if path.is_file() else path.name
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in stem) or "opponent"
