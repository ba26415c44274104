"""Tables of pairs from policies: of a finished run, of any folder in Hugging Face format, and of a run's own values."""

# N pairs.

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixlogit_align.alignment.config import PretrainedModel, TokenizationConfig
from mixlogit_align.alignment.data import load_data
from mixlogit_align.alignment.data.batches import Collator, TokenizedComparison
from mixlogit_align.alignment.data.config import DataConfig
from mixlogit_align.alignment.data.schema import Prompt, Split
from mixlogit_align.alignment.evaluation.metrics import pair_metrics
from mixlogit_align.alignment.evaluation.pairs import NonFinite, PairTable, Vector, listed, read_pairs, write_pairs
from mixlogit_align.alignment.finished import run_config
from mixlogit_align.alignment.logratios import SequenceLogProbs, candidate_logprobs
from mixlogit_align.alignment.losses import PreferenceLoss, mixdpo_loss
from mixlogit_align.alignment.objectives import HeldOut
from mixlogit_align.alignment.tokenization import tokenize
from mixlogit_align.distributions import LearnableMixing
from mixlogit_align.errors import InvalidInputError, explain

Progress = Callable[[int, int], None]
PAIRS = "pairs.parquet"
BLOCK = 16  # batches between two calls of the progress


def held_out_pairs(held_out: HeldOut, name: str) -> PairTable:
    """The table of what a run has evaluated.

    Parameters
    ----------
    held_out : HeldOut
        Of rows with reference log-probabilities.
    name : str
    """
    rows, values = held_out.rows, held_out.loss.values
    reference = np.array([row.reference_logps for row in rows])
    return PairTable(
        name=name,
        **_described(rows),
        policy_chosen=_array(values["policy_chosen"]),
        policy_rejected=_array(values["policy_rejected"]),
        **_by_choice(rows, reference, "reference"),
        **_judged(held_out.loss),
    )


def policy_pairs(
    policy: str | Path,
    data: DataConfig,
    tokenization: TokenizationConfig,
    *,
    name: str | None = None,
    split: Split = "eval",
    reference: str | Path | None = None,
    strength: Any = None,
    integration: Any = None,
    device: str = "cpu",
    batch_size: int = 32,
    non_finite: NonFinite = "refuse",
    progress: Progress | None = None,
) -> PairTable:
    """Score a split under a policy, and where it is given under a reference, in float32.

    Parameters
    ----------
    policy : path
        A Hugging Face folder, or a hub name, with its tokenizer.
    data : section
        Of a configuration.
    tokenization : TokenizationConfig
    name : str, optional
        By default the policy's path.
    split : {"train", "eval"}
    reference : path, optional
        A model of the same vocabulary.
    strength : Pyro distribution, optional
        Of the strength; needs a reference.
    integration : rule, optional
        How the mean over the strength is computed, draws as of step 0.
    device : str
    batch_size : int
        Pairs that go through a model at a time.
    non_finite : {"refuse", "leave_out"}
        See `PairTable.of`.
    progress : callable, optional
        Called as ``progress(done, total)``, in pairs and models.

    Returns
    -------
    PairTable

    Raises
    ------
    InvalidInputError
        When data or a model cannot be read, a comparison is no pair, the vocabularies differ, or a strength comes
        without a reference.
    """
    from mixlogit_align.alignment import hf

    if strength is not None and reference is None:
        raise InvalidInputError(
            explain("strength", got="no reference", expected="one, to which log-ratios are", hint="reference=FOLDER")
        )
    models = [PretrainedModel(path=str(path)) for path in (policy, reference) if path is not None]
    tokenizer = hf.load_tokenizer(models[0], [])
    if reference is not None:
        hf.require_vocabulary(models[1], tokenizer)
    rows, _ = tokenize(load_data(data).split(split), tokenizer, tokenization, source=data.source)
    longest = max(len(ids) for row in rows for ids in row.input_ids)
    collator = Collator(pad_id=tokenizer.pad_token_id, device=device)
    columns = _described(rows)
    for i, (model, what) in enumerate(zip(models, ("policy", "reference"), strict=False)):
        built = hf.skeleton(model, tokenizer, 0)
        hf.require_positions(built, longest)
        hf.load_weights(built, model, torch.device(device), torch.float32)
        scored, found = SequenceLogProbs(built.eval()), []
        for start in range(0, len(rows), batch_size * BLOCK):
            if progress is not None:
                progress(i * len(rows) + start, len(models) * len(rows))
            block = rows[start : start + batch_size * BLOCK]
            found.append(candidate_logprobs(scored, block, collator, batch_size=batch_size).cpu())
        columns |= _by_choice(rows, torch.cat(found).numpy(), what)
    if progress is not None:
        progress(len(models) * len(rows), len(models) * len(rows))
    table = PairTable.of(non_finite=non_finite, name=name or str(policy), **columns)
    return table if strength is None else with_strength(table, strength, integration)


def with_strength(table: PairTable, strength: Any, integration: Any = None) -> PairTable:
    """The table with the choice probabilities that a strength gives its log-ratio differences.

    Parameters
    ----------
    table : PairTable
        With ``logratio_diff``.
    strength : Pyro distribution
    integration : rule, optional
    """
    if table.logratio_diff is None:
        raise InvalidInputError(
            explain(table.name, got="no logratio_diff", expected="log-ratios to a reference", hint="a reference")
        )
    delta = torch.tensor(table.logratio_diff)  # a copy: columns of a file are read-only
    nothing = torch.zeros_like(delta)
    ids = torch.tensor(table.pair_ids)
    loss = mixdpo_loss(delta, nothing, nothing, nothing, mixing=strength, integration=integration, step=0, pair_ids=ids)
    return dataclasses.replace(table, **_judged(loss))


def run_pairs(
    run: str | Path,
    *,
    device: str = "cpu",
    batch_size: int = 32,
    non_finite: NonFinite = "refuse",
    progress: Progress | None = None,
) -> PairTable:
    """The held-out pairs of a finished run.

    Read from its ``log_ratios.parquet``. Where that lacks log-probabilities, and where there is none since the run had
    no preference stage, ``policy/`` scores the pairs, in float32; the table is kept as ``pairs.parquet`` in the run
    folder and read from there for as long as it is newer than what it was made of. Another table that was written
    there, or one that lacks pairs which are now to be refused, is not taken for it.

    Parameters
    ----------
    run : path
        The run folder.
    device, batch_size, progress
        See `policy_pairs`.
    non_finite : {"refuse", "leave_out"}
        See `PairTable.of`.

    Returns
    -------
    PairTable

    Raises
    ------
    InvalidInputError
        When there is no run, it has not finished, or its data are no longer those it was run on; and as `policy_pairs`.
    """
    folder = Path(run)
    config = run_config(folder)
    path = folder / "log_ratios.parquet"
    known = read_pairs(path, name=config.name, non_finite=non_finite) if path.exists() else None
    if known is not None and known.policy_chosen is not None:
        return known
    if not (folder / "policy").is_dir() or (known is None and config.preference is not None):
        raise InvalidInputError(
            explain(
                str(folder),
                got="no whole run: it has not finished, or has no policy/ of its own",
                expected="policy/ and, of a preference stage, log_ratios.parquet",
                hint="`mixlogit-align train --resume`, or `export_checkpoint` and its policy in `policy_pairs`",
            )
        )
    stored = folder / PAIRS
    if stored.exists():
        made_of = [folder / "config.yaml", path, *(folder / "policy").glob("*")]
        if all(file.stat().st_mtime_ns < stored.stat().st_mtime_ns for file in made_of if file.exists()):
            table = read_pairs(stored, non_finite=non_finite)
            whole = table.policy_chosen is not None and (non_finite == "leave_out" or not table.left_out)
            if whole and table.name == config.name:
                return table
    table = policy_pairs(
        folder / "policy", config.data, config.tokenization, name=config.name,
        device=device, batch_size=batch_size, non_finite=non_finite, progress=progress,
    )  # fmt: skip
    if known is not None:
        _require_same_pairs(folder, known, table)
        place = {pair: i for i, pair in enumerate(known.pair_ids.tolist())}
        rows = np.array([place[pair] for pair in table.pair_ids.tolist()])
        assert config.preference is not None
        if known.logratio_diff is not None:  # some losses compare values per token, or without a reference
            table = dataclasses.replace(table, logratio_diff=known.logratio_diff[rows])
            strength, rule = read_strength(folder / "strength.json"), config.preference.integration
            if strength is not None:
                table = with_strength(table, strength, None if rule is None else rule.build())
    write_pairs(table, stored, pair_metrics(table))
    return table


def read_strength(path: str | Path) -> Any:
    """The distribution that a run's ``strength.json`` describes, without gradient; None where its loss has none."""
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    if record["family"] is None:
        return None
    # raw: the parameters stay to the bit what the file says
    return LearnableMixing(record["family"], "raw", **record["parameters"]).requires_grad_(False)()


def _require_same_pairs(folder: Path, known: PairTable, scored: PairTable) -> None:
    """What a run has written and what its data settings give now are the same pairs, those set aside included."""
    before, now = ({*table.pair_ids.tolist(), *table.left_out} for table in (known, scored))
    usable = set(known.pair_ids.tolist()) >= set(scored.pair_ids.tolist())
    if before != now or not usable:
        differing = sorted(before ^ now) or sorted(set(scored.pair_ids.tolist()) - set(known.pair_ids.tolist()))
        raise InvalidInputError(
            explain(
                f"held-out pairs of {folder}",
                got=f"{len(differing)} pairs that are in log_ratios.parquet or in the data, not in both "
                f"(pair_id {listed(differing)})",
                expected="the data that the run was run on",
                hint="the data of that day, or running it again",
            )
        )


def _described(rows: Sequence[TokenizedComparison]) -> dict[str, Any]:
    """Whom and what pairs are from; an error for larger sets."""
    comparisons = [row.comparison for row in rows]
    for comparison in comparisons:
        _ = comparison.rejected
    lengths = np.array([[len(ids) - row.prompt_length for ids in row.input_ids] for row in rows])
    return {
        "pair_ids": np.array([comparison.pair_id for comparison in comparisons]),
        "annotator_ids": [comparison.annotator_id for comparison in comparisons],
        "groups": [dict(comparison.groups) for comparison in comparisons],
        "prompts": [_named(comparison.prompt) for comparison in comparisons],
        "items": [_named(comparison.prompt, *sorted(comparison.responses)) for comparison in comparisons],
        "chosen_first": np.array([comparison.choice == 0 for comparison in comparisons]),
        "weights": np.array([comparison.weight for comparison in comparisons]),
        "chosen_tokens": _chosen_rejected(rows, lengths)[0],
        "rejected_tokens": _chosen_rejected(rows, lengths)[1],
    }


def _named(prompt: Prompt, *responses: str) -> str:
    """A name for a prompt, and responses to it, by their content."""
    text = prompt if isinstance(prompt, str) else [[turn.role, turn.content] for turn in prompt]
    return hashlib.blake2b(json.dumps([text, *responses]).encode(), digest_size=8).hexdigest()


def _chosen_rejected(rows: Sequence[TokenizedComparison], values: Any) -> tuple[Any, Any]:
    """(N, 2) values of the candidates as (N,) of the chosen and (N,) of the rejected one."""
    choice, every = np.array([row.comparison.choice for row in rows]), np.arange(len(rows))
    return values[every, choice], values[every, 1 - choice]


def _by_choice(rows: Sequence[TokenizedComparison], logps: Vector, what: str) -> dict[str, Any]:
    chosen, rejected = _chosen_rejected(rows, logps)
    return {f"{what}_chosen": chosen, f"{what}_rejected": rejected}


def _judged(loss: PreferenceLoss) -> dict[str, Any]:
    """What a loss says of each pair."""
    return {
        "logratio_diff": _array(loss.logratio_diff),
        "loglik": -_array(loss.values["loss"]),
        "strength_mean": _array(loss.values["strength_mean"]),
        "pair_weight": _array(loss.pair_weight),
    }


def _array(values: Tensor) -> Vector:
    found: Vector = values.detach().double().cpu().numpy()
    return found
