"""Two models against one opponent: paired differences of their win rates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mixlogit_align.alignment.winrate.alpaca_eval import read_annotations, read_stored_judge
from mixlogit_align.alignment.winrate.length_control import fit_length_control
from mixlogit_align.alignment.winrate.preferences import Preferences, shown
from mixlogit_align.alignment.winrate.uncertainty import (
    Estimate,
    SignFlipComparison,
    bootstrap_win_rates,
    sign_flip,
)
from mixlogit_align.errors import ConvergenceError, InvalidInputError, explain

ANNOTATIONS = "annotations.json"


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """The win rate of a model less another's, on the same prompts against the same responses.

    Parameters
    ----------
    model, other, opponent : str
    difference : Estimate
        In percentage points, by the paired bootstrap.
    test : SignFlipComparison
    controlled : Estimate or None
        The difference of the length-controlled win rates, both refitted in each replication.
    not_controlled : str or None
        Why there is none.
    """

    model: str
    other: str
    opponent: str
    difference: Estimate
    test: SignFlipComparison
    controlled: Estimate | None
    not_controlled: str | None


def compare_results(
    results: str | Path, other: str | Path, *, num_replications: int = 1000, seed: int = 0
) -> PairedComparison:
    """Compare two folders of results of `judge_run`.

    Parameters
    ----------
    results, other : path
        With annotations.json, by one judge, of one opponent's responses to the same prompts.
    num_replications, seed : int
        Of the bootstrap and the test.

    Returns
    -------
    PairedComparison

    Raises
    ------
    InvalidInputError
        If the prompts, the opponent's responses or the judge differ.
    """
    paths = [Path(folder) / ANNOTATIONS for folder in (results, other)]
    judges = [read_stored_judge(path) for path in paths]
    tables = [read_annotations(path) for path in paths]
    ours, theirs = tables[0], tables[1].reordered(tables[0].prompts)
    answers = [{pair.prompt: pair.opponent_response for pair in judge.annotations} for judge in judges]
    for what, first, second in (
        ("judges", judges[0].name, judges[1].name),
        *(("the opponent's responses", answers[0][prompt], answers[1][prompt]) for prompt in ours.prompts),
    ):
        if first != second:
            raise InvalidInputError(
                explain(
                    f"{what} of {paths[0].parent} and {paths[1].parent}",
                    got=f"{shown(first)} and {shown(second)}",
                    expected="the same",
                    hint="judging both against one opponent, with one judge, sample and seed",
                )
            )
    if ours.model == theirs.model:
        theirs = replace(theirs, model=f"{theirs.model} ({paths[1].parent})")
    controlled, why = None, None
    try:
        for table in (ours, theirs):
            fit_length_control(table).require_weight()
        controlled = _difference(ours, theirs, True, num_replications, seed)
    except (InvalidInputError, ConvergenceError) as error:
        why = str(error)
    return PairedComparison(
        model=ours.model,
        other=theirs.model,
        opponent=ours.opponent,
        difference=_difference(ours, theirs, False, num_replications, seed),
        test=sign_flip(ours, theirs, seed=seed),
        controlled=controlled,
        not_controlled=why,
    )


def _difference(
    ours: Preferences, theirs: Preferences, length_control: bool, num_replications: int, seed: int
) -> Estimate:
    found = bootstrap_win_rates(
        [ours, theirs], length_control=length_control, num_replications=num_replications, seed=seed
    )
    return found.difference(ours.model, theirs.model)
