"""Simulated prompts, responses and annotators whose strength distribution is known.

A response praises or blames a thing, e.g. " The lamp is very lovely and plain."; its utility is
``scale * (degree * quality_1 + quality_2)`` of the words in it. An annotator of strength b prefers the first of two
responses with probability sigma(b * (u_1 - u_2)), so over annotators the choice probability is the mixed
logit E sigma(b * utility_diff). Nothing here comes from real people.

The twenty prompts, one a thing, stand in both splits: what is held out are comparisons, not prompts.
"""

from __future__ import annotations

import itertools
import math

import torch

from mixlogit_align.alignment.data.config import SimulatedData
from mixlogit_align.alignment.data.schema import SPLITS, Comparison, PreferenceData, Split, StrengthTruth
from mixlogit_align.distributions import LearnableMixing

NOUNS = (
    "lamp",
    "garden",
    "river",
    "market",
    "violin",
    "bridge",
    "kettle",
    "museum",
    "bakery",
    "harbour",
    "meadow",
    "library",
    "tower",
    "blanket",
    "recipe",
    "window",
    "island",
    "theatre",
    "bicycle",
    "orchard",
)
DEGREES = {"slightly": 0.5, "rather": 1.0, "very": 1.5, "truly": 2.0}
QUALITIES = {
    "dreadful": -1.5,
    "ugly": -1.2,
    "broken": -0.9,
    "dull": -0.7,
    "noisy": -0.5,
    "cold": -0.3,
    "plain": -0.1,
    "common": 0.1,
    "tidy": 0.3,
    "quiet": 0.5,
    "bright": 0.7,
    "warm": 0.9,
    "lovely": 1.2,
    "splendid": 1.5,
}


def _raw_utility(degree: str, first: str, second: str) -> float:
    return DEGREES[degree] * QUALITIES[first] + QUALITIES[second]


# Spread of the raw utility over the grammar, by which it is scaled.
_RAW_SD = math.sqrt(
    torch.tensor(
        [_raw_utility(*words) for words in itertools.product(DEGREES, QUALITIES, QUALITIES)], dtype=torch.float64
    )
    .var(correction=0)
    .item()
)


def read_simulated(config: SimulatedData) -> PreferenceData:
    """Simulate comparisons.

    Parameters
    ----------
    config : SimulatedData

    Returns
    -------
    PreferenceData
        With its `StrengthTruth`. Annotators carry the group ``cohort``: the "weaker" or "stronger" half by rank of true
        strength (at cv 0 the ranks say nothing). Two settings that differ only in the strength's distribution share
        prompts, responses, annotators' ranks and the uniform number behind every choice.
    """
    generator = torch.Generator().manual_seed(config.seed)
    num_rows = config.num_train + config.num_eval

    def words(options: tuple[str, ...]) -> list[str]:
        return [options[i] for i in torch.randint(len(options), (num_rows,), generator=generator).tolist()]

    nouns = words(NOUNS)
    candidates = [
        list(zip(words(tuple(DEGREES)), words(tuple(QUALITIES)), words(tuple(QUALITIES)), strict=True))
        for _ in range(2)
    ]
    annotators = torch.randint(config.num_annotators, (num_rows,), generator=generator)
    uniform = torch.rand(num_rows, generator=generator, dtype=torch.float64)
    ranks = torch.randperm(config.num_annotators, generator=generator)
    strengths = _strengths(config, (ranks.double() + 0.5) / config.num_annotators)

    scale = config.utility_scale / _RAW_SD
    utility = torch.tensor(
        [[scale * _raw_utility(*words) for words in column] for column in candidates], dtype=torch.float64
    )
    prefers_first = uniform < torch.sigmoid(strengths[annotators] * (utility[0] - utility[1]))

    rows, utility_diff = [], {}
    for i, noun in enumerate(nouns):
        choice = 0 if prefers_first[i] else 1
        split: Split = "train" if i < config.num_train else "eval"
        rows.append(
            Comparison(
                prompt=f"Describe the {noun}.",
                responses=tuple(f" The {noun} is {d} {q} and {r}." for d, q, r in (c[i] for c in candidates)),
                choice=choice,
                pair_id=i,
                split=split,
                annotator_id=f"annotator-{int(annotators[i])}",
                groups={"cohort": "weaker" if ranks[annotators[i]] < config.num_annotators // 2 else "stronger"},
            )
        )
        utility_diff[i] = float(utility[choice, i] - utility[1 - choice, i])
    truth = StrengthTruth(
        family=config.strength_family, mean=config.strength_mean, cv=config.strength_cv, utility_diff=utility_diff
    )
    same = sum(row.responses[0] == row.responses[1] for row in rows)
    prompts = [{row.prompt for row in rows if row.split == split} for split in SPLITS]
    report = {
        "source": "simulated annotators",
        "rows_read": num_rows,
        "rows_used": num_rows,
        "identical_responses": same,
        "annotators": config.num_annotators,
        "prompts_in_both_splits": len(set.intersection(*prompts)),
    }
    return PreferenceData(comparisons=tuple(rows), report=report, truth=truth)


def _strengths(config: SimulatedData, levels: torch.Tensor) -> torch.Tensor:
    """(num_annotators,) strengths at the given quantiles.

    Evenly spread quantiles rather than draws, so that the annotators' mean and spread are close to the stated ones
    (256 annotators at cv 1: the mean is 0.4 % and the cv 3 % below) and not a sample's.
    """
    from scipy import stats

    mixing = LearnableMixing.from_mean_cv(config.strength_family, config.strength_mean, config.strength_cv)
    p = mixing.summary()["parameters"]
    match mixing.family:
        case "lognormal":
            quantiles = stats.lognorm.ppf(levels.numpy(), p["scale"], scale=math.exp(p["loc"]))
        case "gamma":
            quantiles = stats.gamma.ppf(levels.numpy(), p["concentration"], scale=1 / p["rate"])
        case _:
            return torch.full_like(levels, config.strength_mean)
    return torch.from_numpy(quantiles)
