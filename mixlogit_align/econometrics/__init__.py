"""Estimation of mixed logit models from choices. Importing this package loads no pandas."""

from mixlogit_align.econometrics.comparison import Comparison, LikelihoodRatioTest, WaldTest, compare
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.families import Random
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.results import FixedStrength, IntegrationReport, MixedLogitResult, Optimum
from mixlogit_align.econometrics.simulate import SimulatedChoices, simulate_choices

__all__ = [
    "ChoiceData",
    "Comparison",
    "FixedStrength",
    "IntegrationReport",
    "LikelihoodRatioTest",
    "MixedLogitModel",
    "MixedLogitResult",
    "Optimum",
    "Random",
    "SimulatedChoices",
    "WaldTest",
    "compare",
    "simulate_choices",
]
