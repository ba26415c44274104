"""Estimation of mixed logit models from choices. Importing this package loads no pandas."""

from mixlogit_align.econometrics.bayes import BayesianMixedLogit, BayesianStrength
from mixlogit_align.econometrics.comparison import Comparison, LikelihoodRatioTest, WaldTest, compare
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.effects import Effects, elasticities, marginal_effects
from mixlogit_align.econometrics.families import Random
from mixlogit_align.econometrics.heterogeneity import strength_heterogeneity
from mixlogit_align.econometrics.heterogeneity_results import StrengthHeterogeneity
from mixlogit_align.econometrics.heterogeneity_test import HeterogeneityTest, mcfadden_train_test
from mixlogit_align.econometrics.latent_choice import ClassChoice, choose_classes
from mixlogit_align.econometrics.latent_class import LatentClassModel
from mixlogit_align.econometrics.latent_results import LatentClassResult
from mixlogit_align.econometrics.latent_simulation import SimulatedClasses, simulate_latent_classes
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.posteriors import IndividualPosteriors, individual_posteriors
from mixlogit_align.econometrics.predictions import Prediction, predict, scenario
from mixlogit_align.econometrics.priors import default_priors
from mixlogit_align.econometrics.results import FixedStrength, IntegrationReport, MixedLogitResult, Optimum
from mixlogit_align.econometrics.scoring import CrossValidation, PairedDifference, cross_validate
from mixlogit_align.econometrics.simulate import SimulatedChoices, simulate_choices
from mixlogit_align.econometrics.study import recovery_study
from mixlogit_align.econometrics.study_results import RecoveryStudy
from mixlogit_align.econometrics.welfare import ConsumerSurplus, consumer_surplus
from mixlogit_align.econometrics.willingness_to_pay import WillingnessToPay, willingness_to_pay

__all__ = [
    "BayesianMixedLogit",
    "BayesianStrength",
    "ChoiceData",
    "ClassChoice",
    "Comparison",
    "ConsumerSurplus",
    "CrossValidation",
    "Effects",
    "FixedStrength",
    "HeterogeneityTest",
    "IndividualPosteriors",
    "IntegrationReport",
    "LatentClassModel",
    "LatentClassResult",
    "LikelihoodRatioTest",
    "MixedLogitModel",
    "MixedLogitResult",
    "Optimum",
    "PairedDifference",
    "Prediction",
    "Random",
    "RecoveryStudy",
    "SimulatedChoices",
    "SimulatedClasses",
    "StrengthHeterogeneity",
    "WaldTest",
    "WillingnessToPay",
    "choose_classes",
    "compare",
    "consumer_surplus",
    "cross_validate",
    "default_priors",
    "elasticities",
    "individual_posteriors",
    "marginal_effects",
    "mcfadden_train_test",
    "predict",
    "scenario",
    "recovery_study",
    "simulate_choices",
    "simulate_latent_classes",
    "strength_heterogeneity",
    "willingness_to_pay",
]
