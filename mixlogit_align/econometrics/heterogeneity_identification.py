"""What a distribution of strength stands on, in plain sentences, each from a number that was measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mixlogit_align.econometrics.rendering import probability

if TYPE_CHECKING:
    from mixlogit_align.econometrics.heterogeneity_results import StrengthHeterogeneity

# Annotators with two comparisons or more below which asymptotic statements are rough.
FEW = 10

# A difference in log-likelihood.
_WORTH_TELLING = 0.1
_BEND = (
    "how the share of agreement bends as the log-ratio grows, which a log-ratio that is a bent measure of utility "
    "explains as well"
)


def identification(found: StrengthHeterogeneity) -> str:
    """What is identified of how strengths vary, and what is not.

    A strength of its own for each comparison says only that the share of pairs on which choice and log-ratio agree
    follows ``E sigma(strength * difference)``, a function of one difference. Whether people differ shows in what the
    comparisons of one annotator share; that needs annotators with two comparisons or more.

    Parameters
    ----------
    found : StrengthHeterogeneity

    Returns
    -------
    str
        A few sentences.
    """
    sentences = [_people(found), *_bend(found), *_few(found)]
    if found.held_out:
        sentences.append("The policy was not trained on these pairs: they are held out.")
    elif found.held_out is None:
        sentences.append(
            "If a policy was trained on these very pairs, its log-ratios were fitted to these choices, and the "
            "strength is overstated."
        )
    sentences.append(
        "The mean is in the unit of these log-ratios, and moves with how sharp the policy is; the cv has no unit."
    )
    return " ".join(sentences)


def _people(found: StrengthHeterogeneity) -> str:
    """Whether annotators differ."""
    if found.annotators is None:
        return (
            "How people differ is NOT identified: no annotator ids were given. A spread of strengths then shows only "
            f"in {_BEND}."
        )
    if found.fits["annotator"] is None:
        return (
            f"How people differ is NOT identified: none of the {found.annotators} annotators has two comparisons that "
            f"are no ties. A spread of strengths then shows only in {_BEND}."
        )
    fit, profile = found.fits["annotator"], found.profile
    rest = f"{found.repeated} of {found.annotators} annotators, who have two comparisons or more"
    if not fit.converged:
        return f"How people differ is NOT told: one strength an annotator has no estimate to rely on ({fit.message})."
    if profile is None:
        return f"A cv of {fit.cv:.3g} between annotators; it rests on {rest}."
    (low, high), level = profile.interval["annotator"], profile.level
    inside = f"{level:.0%} interval"
    if _flat(found, "annotator"):
        return f"How people differ is NOT identified: the likelihood is flat, every cv is within the {inside} ({rest})."
    pvalue = _p(found, "annotator")
    to = "without an upper end" if math.isinf(high) else f"to {high:.3g}"
    if pvalue >= 1.0 - level:
        seen = (
            "is the most likely" if fit.at_boundary else f"is not rejected (cv {fit.cv:.3g}, p {probability(pvalue)})"
        )
        return (
            f"That people differ is NOT established: no spread between annotators {seen}; the {inside} of the cv goes "
            f"from {low:.3g} {to}, and rests on {rest}."
        )
    return (
        f"A spread of strengths between annotators is identified: cv {fit.cv:.3g}, {inside} from {low:.3g} {to}, "
        f"p {probability(pvalue)} for none; it rests on {rest}. A taste that the policy does not share counts as a low "
        "strength, too."
    )


def _bend(found: StrengthHeterogeneity) -> list[str]:
    """What one strength a comparison adds."""
    fit, annotator = found.fits["comparison"], found.fits["annotator"]
    assert fit is not None, "always fitted"
    sentences = []
    if annotator is not None and fit.loglik > annotator.loglik + _WORTH_TELLING:
        sentences.append(
            "One strength a comparison is the more likely of the two, by "
            f"{fit.loglik - annotator.loglik:.3g} in log-likelihood: the spread is asked for by {_BEND}, more than by "
            "what annotators share."
        )
    if not fit.converged:
        sentences.append(f"One strength a comparison has no estimate to rely on ({fit.message}).")
    elif _flat(found, "comparison"):
        sentences.append("For one strength a comparison the likelihood is flat: these pairs tell no cv from another.")
    elif fit.at_boundary:
        sentences.append("With one strength a comparison no spread is the most likely.")
    else:
        sentences.append(f"The cv of {fit.cv:.3g} with one strength a comparison is no measure of how people differ.")
    return sentences


def _few(found: StrengthHeterogeneity) -> list[str]:
    if found.fits["annotator"] is None or found.repeated >= FEW:
        return []
    return [f"With fewer than {FEW} such annotators the intervals and p-values, right for many, are rough."]


def _flat(found: StrengthHeterogeneity, name: str) -> bool:
    """Neither the interval nor the test at its level excludes anything."""
    if found.profile is None:
        return False
    low, high = found.profile.interval[name]
    return low == 0.0 and math.isinf(high) and _p(found, name) >= 1.0 - found.profile.level


def _p(found: StrengthHeterogeneity, alternative: str) -> float:
    return next(test.p for test in found.tests if test.alternative == alternative)
