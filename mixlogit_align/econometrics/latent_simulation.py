"""Choices of individuals whose latent classes are known."""

# N individuals, C classes.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.families import Random
from mixlogit_align.econometrics.latent_parameters import LatentParameters, membership_covariates
from mixlogit_align.econometrics.simulate import SimulatedChoices, simulate_choices
from mixlogit_align.econometrics.specification import Specification
from mixlogit_align.errors import InvalidInputError, explain


@dataclass(frozen=True, eq=False)
class SimulatedClasses(SimulatedChoices):
    """Choices, and the classes and coefficients behind them.

    Attributes
    ----------
    classes : torch.Tensor, shape (N,), int64
        0..C-1.
    """

    classes: Tensor


def simulate_latent_classes(
    truth: Mapping[str, float],
    *,
    num_classes: int,
    fixed: Sequence[str] = (),
    random: Mapping[str, str | Random | TorchDistribution] | None = None,
    correlated: bool | Sequence[Sequence[str]] = False,
    membership: Sequence[str] = (),
    common: Sequence[str] = (),
    wtp_space: str | None = None,
    scale_heterogeneity: bool = False,
    data: ChoiceData | None = None,
    num_individuals: int | None = None,
    num_situations: int | None = None,
    num_alternatives: int | None = None,
    attributes: Mapping[str, TorchDistribution] | None = None,
    seed: int,
) -> SimulatedClasses:
    """Draw attributes, classes, coefficients and choices.

    Parameters
    ----------
    truth : mapping of str to float
        Every natural parameter of the model, such as ``result.params``.
    num_classes, fixed, random, correlated, membership, common, wtp_space, scale_heterogeneity
        The model, as of :class:`LatentClassModel`.
    data : ChoiceData, optional
        Keep these attributes, choice sets, panels and weights.
    num_individuals, num_situations, num_alternatives, attributes
        Without ``data``: as of :func:`simulate_choices`; attributes of membership covariates are one value an
        individual, of batch shape () or (N,).
    seed : int
        The same seed gives the same choices; torch's global generator is left as it was.

    Returns
    -------
    SimulatedClasses

    Raises
    ------
    InvalidInputError
        As of :func:`simulate_choices` and :class:`LatentClassModel`.
    """
    spec = Specification.of(fixed, random or {}, correlated, wtp_space, scale_heterogeneity)
    parameters = LatentParameters(spec, num_classes, tuple(membership), tuple(common))
    counts = {
        "num_individuals": num_individuals,
        "num_situations": num_situations,
        "num_alternatives": num_alternatives,
        "attributes": attributes,
    }
    used = [name for name, given in counts.items() if given is not None]
    if data is None:
        data = _design(spec, parameters.membership, {name: counts[name] for name in used}, seed)
    elif used:
        raise InvalidInputError(
            explain("arguments", got=f"{used} beside data=", expected="one of the two", hint="data= alone")
        )
    return draw_classes(parameters, data, truth, seed)


def _design(spec: Specification, membership: Sequence[str], options: dict[str, Any], seed: int) -> ChoiceData:
    """Attributes and covariates drawn, with choices that mean nothing."""
    covariates = tuple(dict.fromkeys([*spec.covariates, *membership]))
    first, *others = spec.variables
    carrier = {first: Random("normal", mean_covariates=covariates)} if covariates else {}
    model = Specification.of(others if carrier else spec.variables, carrier, False, None, False)
    nothing = dict.fromkeys(model.names, 0.0)
    return simulate_choices(nothing, fixed=model.fixed, random=model.random, **options, seed=seed).data


def draw_classes(
    parameters: LatentParameters, data: ChoiceData, truth: Mapping[str, float], seed: int
) -> SimulatedClasses:
    """Draw classes, coefficients and choices for given attributes.

    Parameters
    ----------
    parameters : LatentParameters
    data : ChoiceData
        Its choices are not read.
    truth : mapping of str to float
        Natural parameters.
    seed : int

    Returns
    -------
    SimulatedClasses

    Raises
    ------
    InvalidInputError
        If a parameter is missing, unknown or out of its domain.
    """
    params = parameters.all_of("truth", truth)
    natural = torch.tensor(list(params.values()), dtype=torch.float64)
    spec = parameters.specification
    # streams that have nothing in common: one for classes, one for choices within each
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**62, (parameters.num_classes,), generator=generator).tolist()
    probability = parameters.log_membership(natural, membership_covariates(data, parameters.membership)).exp()
    classes = torch.multinomial(probability, 1, generator=generator)[:, 0]
    within = [
        simulate_choices(
            dict(zip(spec.names, natural[at].tolist(), strict=True)),
            **spec.arguments,
            data=data,
            seed=own,
        )
        for at, own in zip(parameters.positions, seeds, strict=True)
    ]
    choice = torch.stack([one.data.choice for one in within])
    everyone = torch.arange(data.num_individuals)
    return SimulatedClasses(
        data=replace(data, choice=choice[classes[data.individual], torch.arange(data.num_situations)]),
        coefficients={
            name: torch.stack([one.coefficients[name] for one in within])[classes, everyone] for name in spec.variables
        },
        params=params,
        classes=classes,
    )
