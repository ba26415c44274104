"""Draws as arviz InferenceData, and what must be said of them."""

# C chains, D draws of each, N individuals, S situations.

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.errors import ConvergenceWarning

if TYPE_CHECKING:
    import arviz as az
    import xarray as xr

Arrays = Mapping[str, np.ndarray[Any, Any]]

INDIVIDUAL, SITUATION, ATTRIBUTE = "individual", "situation", "attribute"
CHOICE, COEFFICIENT = "choice", "coefficient"

# Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021): R-hat, and effective draws a chain.
_RHAT, _EFFECTIVE = 1.01, 100
# Betancourt (2016).
_BFMI = 0.3
# Vehtari, Simpson, Gelman, Yao and Gabry (2024); of variational approximations Yao et al. (2018).
_PARETO_K = 0.7


def inference_data(
    data: ChoiceData,
    variables: tuple[str, ...],
    groups: Mapping[str, Arrays],
    attrs: Mapping[str, Any] | None = None,
) -> az.InferenceData:
    """Groups with the coordinates of choice data.

    Parameters
    ----------
    data : ChoiceData
    variables : tuple of str
        Attributes along which coefficients lie.
    groups : mapping of str to mapping of str to array
        posterior, sample_stats, log_likelihood, prior, prior_predictive, posterior_predictive: arrays (C, D, ...) by
        variable, ``choice`` along individuals in log_likelihood and along situations elsewhere.
    attrs : mapping, optional
        Of the posterior.

    Returns
    -------
    arviz.InferenceData
        With observed_data and constant_data besides.
    """
    import arviz as az
    import pandas as pd

    person = pd.Index(list(data.individuals), tupleize_cols=False)
    coords = {INDIVIDUAL: person, SITUATION: np.arange(data.num_situations), ATTRIBUTE: list(variables)}
    dims = {CHOICE: [SITUATION], COEFFICIENT: [INDIVIDUAL, ATTRIBUTE], "individual_index": [SITUATION]}
    constant = {"observed_data": {CHOICE: data.choice}, "constant_data": {"individual_index": data.individual}}
    found = az.InferenceData()
    for name, values in (*groups.items(), *constant.items()):
        made = az.dict_to_dataset(
            {key: np.asarray(value) for key, value in values.items()},
            coords=coords,
            dims={CHOICE: [INDIVIDUAL]} if name == "log_likelihood" else dims,
            default_dims=[] if name in constant else None,
            attrs=attrs if name == "posterior" else None,
        )
        found.add_groups({name: made}, warn_on_custom_groups=True)
    return found


def warn_of_chains(data: az.InferenceData) -> None:
    """Tell divergences, chains that disagree, few effective draws and energies that hardly change.

    Parameters
    ----------
    data : arviz.InferenceData
        With sample_stats.

    Warns
    -----
    ConvergenceWarning
        One, with all there is to say.
    """
    import arviz as az

    posterior, stats = data["posterior"], data["sample_stats"]
    scalars = posterior[[name for name, values in posterior.items() if values.ndim == 2]]
    chains = scalars.sizes["chain"]
    doubts = []
    diverging = int(stats["diverging"].sum())
    if diverging:
        doubts.append(
            f"{diverging} of {stats['diverging'].size} transitions diverged: the posterior is explored incompletely "
            "there; try target_accept=0.95, or narrower priors"
        )
    if scalars.sizes["draw"] >= 4:  # fewer tell nothing
        if chains > 1:
            name, rhat = _worst(az.rhat(scalars), -1.0)
            if not rhat <= _RHAT:
                doubts.append(f"chains disagree: R-hat of {name} is {rhat:.3f}; try more warm-up and more draws")
        name, effective = min(
            (_worst(az.ess(scalars, method=method), 1.0) for method in ("bulk", "tail")), key=lambda found: found[1]
        )
        if not effective >= _EFFECTIVE * chains:
            doubts.append(f"the effective sample size of {name} is only {effective:.0f}; try more draws")
        bfmi = float(np.min(az.bfmi(data)))
        if not bfmi >= _BFMI:
            doubts.append(f"energy hardly changes between transitions (BFMI {bfmi:.2f}); try narrower priors")
    if doubts:
        warnings.warn("; ".join(doubts), ConvergenceWarning, stacklevel=3)


def _worst(values: xr.Dataset, sign: float) -> tuple[str, float]:
    """The variable of the least value times ``sign``, NaN counting as least, and its value."""
    found = {str(name): float(value) for name, value in values.items()}
    name = min(found, key=lambda key: -math.inf if math.isnan(found[key]) else sign * found[key])
    return name, found[name]


def warn_of_guide(elbo: np.ndarray[Any, Any], log_ratio: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Tell an evidence lower bound that still rises, and a guide that is not close to the posterior.

    Parameters
    ----------
    elbo : array, shape (I,)
        Of every step.
    log_ratio : array, shape (D,)
        Log density of program less that of guide at draws of the guide.

    Returns
    -------
    bound : float
        Average over the last tenth of the steps.
    pareto_k : float
        Of the importance ratios (Yao, Vehtari, Simpson and Gelman 2018).

    Warns
    -----
    ConvergenceWarning
        One, with all there is to say.
    """
    import arviz as az

    last = max(1, len(elbo) // 10)
    now, before = elbo[-last:], elbo[-2 * last : -last]
    rise = float(now.mean() - before.mean()) if len(before) else math.inf
    noise = math.sqrt((now.var() + before.var()) / last) if len(before) else 0.0
    pareto_k = float(az.psislw(log_ratio)[1])
    doubts = []
    if rise > 3.0 * noise + 0.1:
        doubts.append(f"the evidence lower bound still rises, by {rise:.2g} over the last steps; try more steps")
    if not pareto_k <= _PARETO_K:
        doubts.append(
            f"the guide is not close to the posterior (Pareto k {pareto_k:.2f}, at most {_PARETO_K} where it is); try "
            "nuts(), or trust means more than standard deviations"
        )
    if doubts:
        warnings.warn("; ".join(doubts), ConvergenceWarning, stacklevel=3)
    return float(now.mean()), pareto_k
