"""The distribution of strength behind a table of judged pairs: does it vary, and does that show between people?"""

# S comparisons, N annotators.

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from mixlogit_align.econometrics.columns import Array, require_columns, require_frame
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.families import FAMILIES
from mixlogit_align.econometrics.heterogeneity_identification import FEW
from mixlogit_align.econometrics.heterogeneity_profile import CvProfile, ProfilePoint
from mixlogit_align.econometrics.heterogeneity_results import (
    StrengthEstimate,
    StrengthHeterogeneity,
    StrengthProfile,
    StrengthTest,
)
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.posteriors import individual_posteriors
from mixlogit_align.econometrics.results import MixedLogitResult
from mixlogit_align.errors import ConvergenceError, InvalidInputError, explain
from mixlogit_align.inference import delta_method
from mixlogit_align.numerics.threads import own_threads

if TYPE_CHECKING:
    import pandas as pd

# Families of strength, and up to which cv an estimate stretches a profile, to twice as far. Beyond, no double holds the
# mean of a gamma, nearly all of which lies at 0.
_FARTHEST = {"lognormal": 50.0, "gamma": 5.0}
VARIABLE = "logratio_diff"
WEIGHT = "weight"
_PERSON = "numbered annotator"
# The cvs of a profile, beside the estimates and the ends of their intervals.
_GRID = (0.0, *np.geomspace(0.1, 10.0, 13).tolist())

# (what, how many of it are done, how many there are)
Progress = Callable[[str, int, int], None]


def no_progress(what: str, done: int, total: int) -> None:
    """Tell nobody."""


class _Annotators(NamedTuple):
    """Who judged: (S,) numbers from 0, of the N known ones first; comparisons of unknown ones have each its own."""

    codes: Array
    ids: pd.Index


@own_threads()
def strength_heterogeneity(
    frame: pd.DataFrame,
    *,
    annotator: str | None = None,
    family: str = "lognormal",
    weights: str | None = None,
    level: float = 0.95,
    profiled: bool = True,
    held_out: bool | None = None,
    progress: Progress = no_progress,
) -> StrengthHeterogeneity:
    """Fit the distribution of strength to log-ratio differences, and tell what of it is identified.

    Pair s was chosen with probability ``sigma(b d_s)``, d_s the difference in favour of the chosen response. Three
    models: b is the same for all (fixed); drawn anew for each comparison; drawn once for each annotator. All are
    :class:`MixedLogitModel` with its evidence; standard errors of the first two are clustered by annotator where ten
    or more are known, since their likelihood takes comparisons as independent.

    Where strengths do not vary, comparisons are independent, and twice the gain in log-likelihood is 0 or chi-square
    with one degree of freedom, half and half (Self and Liang 1987): the tests of the fixed strength. The profile of the
    cv, the mean estimated anew at each, gives intervals that need no standard error.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row a judged pair, with a column ``logratio_diff``, in nats, as of
        :meth:`ChoiceData.from_logratios`.
    annotator : str, optional
        Column of who judged; rows where it is missing count as somebody's only comparison. None: nobody is known.
    family : {"lognormal", "gamma"}
        Of the strength.
    weights : str, optional
        Column of frequencies, as of :meth:`ChoiceData.from_logratios`; one value an annotator.
    level : float
        Of the intervals, between 0 and 1.
    profiled : bool
        False: no profile and no intervals, which take most of the time.
    held_out : bool, optional
        Whether the policy behind the log-ratios was not trained on these pairs, where that is known.
    progress : callable, optional
        Told what is being done, how many of it are done, and how many there are.

    Returns
    -------
    StrengthHeterogeneity
        What fits warned of is in its ``warnings``.

    Raises
    ------
    InvalidInputError
        If a column is missing, a number is not finite (naming the row), every difference is 0, or an argument is not
        as above.
    ConvergenceError
        If no positive finite strength is most likely: all choices agree with the log-ratios, or most disagree.
    """
    if family not in _FARTHEST:
        raise InvalidInputError(
            explain("family", got=repr(family), expected=f"one of {list(_FARTHEST)}", hint="family='lognormal'")
        )
    if not 0.0 < level < 1.0:
        raise InvalidInputError(explain("level", got=level, expected="between 0 and 1", hint="0.95"))
    require_comparisons(frame, annotator, weights)
    people = None if annotator is None else _annotators(frame[annotator])
    clustered = people is not None and len(people.ids) >= FEW
    numbered = frame if people is None else frame.assign(**{_PERSON: people.codes})
    comparisons = ChoiceData.from_logratios(numbered, weights=weights, clusters=[_PERSON] if clustered else ())
    difference = comparisons.attribute(VARIABLE)[:, 1]
    _require_both_signs(difference)
    repeated = 0
    if people is not None:
        informative = np.bincount(people.codes[difference.numpy() != 0.0], minlength=len(people.ids))
        repeated = int((informative[: len(people.ids)] >= 2).sum())

    told = _unused_weights(frame, weights)
    cov_type = f"clustered({_PERSON})" if clustered else "hessian"
    total = 2 + (repeated > 0)
    progress("fits", 0, total)
    fixed = _fit(MixedLogitModel(comparisons, [VARIABLE]), "fixed", cov_type, told)
    _require_positive(fixed)
    progress("fits", 1, total)
    random = {VARIABLE: family}
    models = {"comparison": MixedLogitModel(comparisons, random=random)}
    results = {"comparison": _fit(models["comparison"], "comparison", cov_type, told)}
    progress("fits", 2, total)
    posteriors = None
    if repeated:
        assert people is not None
        panel = ChoiceData.from_logratios(numbered, individual=_PERSON, weights=weights)
        models["annotator"] = MixedLogitModel(panel, random=random)
        results["annotator"] = _fit(models["annotator"], "annotator", "hessian", told)
        if results["annotator"].converged:
            posteriors = _posteriors(models["annotator"], results["annotator"], people)
        else:
            told.append("no posterior strengths of annotators, since their fit did not converge")
        progress("fits", 3, total)
    estimates = {name: _varying(result, family) for name, result in results.items()}
    data = {name: model.data for name, model in models.items()}
    profile = None
    try:
        if profiled:
            profile = _profile(data, estimates, family, fixed.params[VARIABLE], level, progress)
    except ConvergenceError as error:
        told.append(f"no profile: {error}")
    return StrengthHeterogeneity(
        family=family,
        rows=len(frame),
        ties=int((difference == 0.0).sum()),
        annotators=None if people is None else len(people.ids),
        repeated=repeated,
        unknown=0 if people is None else int((people.codes >= len(people.ids)).sum()),
        held_out=held_out,
        fits={
            "fixed": _not_varying(fixed),
            "comparison": estimates["comparison"],
            "annotator": estimates.get("annotator"),
        },
        tests=tuple(_test(name, result) for name, result in results.items()),
        profile=profile,
        annotator_posteriors=posteriors,
        warnings=tuple(told),
    )


# --- the table -------------------------------------------------------------------------------------


def require_comparisons(frame: pd.DataFrame, annotator: str | None, weights: str | None) -> None:
    """Raise if it is no table, lacks a column, or has no rows."""
    require_frame(frame, "frame")
    if VARIABLE not in frame.columns:
        raise InvalidInputError(
            explain(
                "table",
                got=f"no column {VARIABLE}; its columns are {', '.join(map(str, frame.columns)) or 'none'}",
                expected=f"{VARIABLE}, in nats, in favour of the chosen response",
                hint="a table as of a run's log_ratios.parquet",
            )
        )
    named = {VARIABLE: VARIABLE, "annotator": annotator, "weights": weights}
    require_columns(frame, {role: [name] for role, name in named.items() if name is not None})
    if frame.empty:
        raise InvalidInputError(
            explain("table", got="no rows", expected="one row a comparison", hint="a table with comparisons")
        )


def _annotators(column: pd.Series) -> _Annotators:
    import pandas as pd

    codes, ids = pd.factorize(column)
    unknown = codes < 0
    codes[unknown] = len(ids) + np.arange(unknown.sum())
    return _Annotators(codes.astype(np.int64, copy=False), pd.Index(ids))


def _require_both_signs(difference: torch.Tensor) -> None:
    """Raise where no finite strength can be most likely."""
    agree, disagree, num = int((difference > 0).sum()), int((difference < 0).sum()), len(difference)
    if not agree + disagree:
        raise InvalidInputError(
            explain(
                VARIABLE,
                got=f"0 in all of {num} rows",
                expected="differences that tell the responses apart",
                hint="log-ratios of a policy that is no longer its reference",
            )
        )
    if not agree or not disagree:
        raise ConvergenceError(
            explain(
                "strength",
                got=f"choices that all {'agree' if agree else 'disagree'} with the log-ratios ({agree + disagree} of "
                f"{num} rows, {num - agree - disagree} ties)",
                expected="some that agree and some that do not: else no finite strength is most likely",
                hint="more comparisons, held-out ones above all",
            )
        )


def _require_positive(fixed: MixedLogitResult) -> None:
    strength = fixed.params[VARIABLE]
    if not strength > 0.0:
        raise ConvergenceError(
            explain(
                "strength",
                got=f"{strength:.4g} (standard error {fixed.std_errors[VARIABLE]:.2g}) where it is the same for all: "
                "the rejected responses are favoured",
                expected="log-ratios that favour what was chosen, on the whole",
                hint="checking which response is which, or another policy",
            )
        )


def _unused_weights(frame: pd.DataFrame, weights: str | None) -> list[str]:
    if weights is not None or WEIGHT not in frame.columns or bool((frame[WEIGHT] == 1).all()):
        return []
    return [f"column {WEIGHT!r} is not used: every row counts once, unless it is named as the weights"]


# --- the fits --------------------------------------------------------------------------------------


def _fit(model: MixedLogitModel, name: str, cov_type: str, told: list[str]) -> MixedLogitResult:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = model.fit(cov_type=cov_type, num_redraws=0)
    told += [f"{name}: {warning.message}" for warning in caught]
    return result


def _not_varying(result: MixedLogitResult) -> StrengthEstimate:
    strength, error = result.params[VARIABLE], result.std_errors[VARIABLE]
    return _estimate(
        result,
        params={"strength": strength},
        std_errors={"strength": error, "mean": error, "sd": math.nan, "cv": math.nan},
        moments=(strength, 0.0, 0.0),
    )


def _varying(result: MixedLogitResult, family: str) -> StrengthEstimate:
    def own(values: Mapping[str, float]) -> dict[str, float]:
        return {name.removeprefix(f"{VARIABLE}."): value for name, value in values.items()}

    def cv(natural: torch.Tensor) -> torch.Tensor:
        mixing = FAMILIES[family].mixing(FAMILIES[family].theta(natural))
        return (mixing.stddev / mixing.mean).reshape(1)

    moments = own(result.moments)
    value, error = 0.0, math.nan
    if not result.at_boundary:
        natural = torch.tensor(list(result.params.values()), dtype=torch.float64)
        found, variance = delta_method(cv, natural, result.cov)
        value, error = float(found), float(variance.sqrt())
    errors = own(result.std_errors | result.moment_std_errors | dict.fromkeys(result.without_std_error, math.nan))
    return _estimate(
        result,
        params=own(result.params),
        std_errors=errors | {"cv": error},
        moments=(moments["mean"], moments["sd"], value),
    )


def _estimate(
    result: MixedLogitResult,
    params: dict[str, float],
    std_errors: dict[str, float],
    moments: tuple[float, float, float],
) -> StrengthEstimate:
    mean, sd, cv = moments
    return StrengthEstimate(
        loglik=result.loglik,
        params=params,
        std_errors=std_errors,
        mean=mean,
        sd=sd,
        cv=cv,
        at_boundary=result.at_boundary,
        converged=result.converged,
        message=result.message,
        aic=result.aic,
        bic=result.bic,
        cov_type=result.cov_type.partition("(")[0],
        integration=result.integration.rule,
        integration_error=result.integration.error,
    )


def _test(name: str, result: MixedLogitResult) -> StrengthTest:
    found = result.likelihood_ratio_test()
    mixture = " + ".join(f"{weight:g} chi2({dof})" for dof, weight in found.weights.items())
    return StrengthTest(null="fixed", alternative=name, statistic=found.statistic, p=found.pvalue, distribution=mixture)


def _posteriors(model: MixedLogitModel, result: MixedLogitResult, people: _Annotators) -> pd.DataFrame:
    import pandas as pd

    found = individual_posteriors(model, result)
    codes = np.asarray(found.individuals)
    mean, sd = (dict(zip(codes.tolist(), values[:, 0].tolist(), strict=True)) for values in (found.mean, found.sd))
    num = len(people.ids)
    return pd.DataFrame(
        {
            "annotator_id": people.ids,
            "comparisons": np.bincount(people.codes, minlength=num)[:num],
            "mean": [mean[code] for code in range(num)],
            "sd": [sd[code] for code in range(num)],
        }
    )


# --- the profile -----------------------------------------------------------------------------------


def _profile(
    data: Mapping[str, ChoiceData],
    estimates: Mapping[str, StrengthEstimate],
    family: str,
    fixed: float,
    level: float,
    progress: Progress,
) -> StrengthProfile:
    """On one grid for all models; the best of it stands in for an estimate too far out, or that did not converge."""
    known = {name: fit.cv for name, fit in estimates.items() if fit.converged and fit.cv <= _FARTHEST[family]}
    highest = max([_GRID[-1], *(2.0 * cv for cv in known.values())])
    grid = sorted({*_GRID, *known.values(), highest})
    profiles = {name: CvProfile(own, VARIABLE, family, fixed) for name, own in data.items()}
    steps = len(profiles) * (len(grid) + 1)
    done = 0
    interval, ends = {}, set[float]()
    for name, profile in profiles.items():
        for cv in grid:
            progress("profile", done, steps)
            profile.at(cv)
            done += 1
        best = known[name] if name in known else max(grid, key=lambda cv: profile.at(cv).loglik)
        fit = estimates[name]
        top = ProfilePoint(fit.loglik, fit.mean) if name in known else profile.at(best)
        progress("profile", done, steps)
        interval[name] = profile.interval(top, best, highest, level)
        done += 1
        ends |= {end for end in interval[name] if math.isfinite(end)}
    cvs = tuple(sorted({*grid, *ends}))
    points = {name: [profile.at(cv) for cv in cvs] for name, profile in profiles.items()}
    progress("profile", steps, steps)
    return StrengthProfile(
        cv=cvs,
        loglik={name: tuple(point.loglik for point in own) for name, own in points.items()},
        mean={name: tuple(point.mean for point in own) for name, own in points.items()},
        interval=interval,
        level=level,
    )
