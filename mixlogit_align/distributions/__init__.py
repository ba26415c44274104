"""The four choice distributions, their mixing families, and the rules that integrate the strength out."""

from mixlogit_align.distributions.choice_sets import MixedMultinomialLogit, MixedPlackettLuce
from mixlogit_align.distributions.families import (
    FiniteMixture,
    GeneralizedGamma,
    InverseGaussian,
    Triangular,
    TruncatedNormal,
)
from mixlogit_align.distributions.integration import (
    ClosedForm,
    FixedDraws,
    ImportanceSampling,
    Integration,
    MonteCarlo,
    Quadrature,
    QuasiMonteCarlo,
)
from mixlogit_align.distributions.learnable import LearnableMixing
from mixlogit_align.distributions.mixed_logit import MixedLogit, PanelMixedLogit

__all__ = [
    "ClosedForm",
    "FiniteMixture",
    "FixedDraws",
    "GeneralizedGamma",
    "ImportanceSampling",
    "Integration",
    "InverseGaussian",
    "LearnableMixing",
    "MixedLogit",
    "MixedMultinomialLogit",
    "MixedPlackettLuce",
    "MonteCarlo",
    "PanelMixedLogit",
    "Quadrature",
    "QuasiMonteCarlo",
    "Triangular",
    "TruncatedNormal",
]
