"""Estimation of mixed logit models from choices. Importing this package loads no pandas."""

from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.families import Random
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.results import FixedStrength, IntegrationReport, MixedLogitResult
from mixlogit_align.econometrics.simulate import SimulatedChoices, simulate_choices

__all__ = [
    "ChoiceData",
    "FixedStrength",
    "IntegrationReport",
    "MixedLogitModel",
    "MixedLogitResult",
    "Random",
    "SimulatedChoices",
    "simulate_choices",
]
