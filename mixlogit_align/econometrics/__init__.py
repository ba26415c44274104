"""Estimation of mixed logit models from choices. Importing this package loads no pandas."""

from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.simulate import SimulatedChoices, simulate_choices

__all__ = ["ChoiceData", "SimulatedChoices", "simulate_choices"]
