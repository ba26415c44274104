"""Maximum likelihood with its evidence: arrays and callables only, no probability distributions."""

from mixlogit_align.inference.covariance import (
    bhhh_covariance,
    clustered_covariance,
    delta_method,
    hessian_covariance,
    robust_covariance,
    standard_errors,
)
from mixlogit_align.inference.derivatives import (
    Derivatives,
    Differentiated,
    Restricted,
    derivatives,
    gradient_of,
    individual_scores,
)
from mixlogit_align.inference.hypothesis import WaldStatistic, likelihood_ratio_pvalue, mixture_weights, wald
from mixlogit_align.inference.multiplicity import adjusted_pvalues
from mixlogit_align.inference.optimize import (
    Approach,
    MaximumLikelihood,
    approach_loglik,
    gradient_norm,
    maximize_loglik,
    refine_loglik,
)
from mixlogit_align.inference.permutation import SignFlip, sign_flip_test
from mixlogit_align.inference.resampling import (
    Bootstrap,
    bca_interval,
    bootstrap,
    bootstrap_covariance,
    bootstrap_weights,
)

__all__ = [
    "Approach",
    "Bootstrap",
    "Derivatives",
    "Differentiated",
    "MaximumLikelihood",
    "Restricted",
    "SignFlip",
    "WaldStatistic",
    "adjusted_pvalues",
    "approach_loglik",
    "bca_interval",
    "bhhh_covariance",
    "bootstrap",
    "bootstrap_covariance",
    "bootstrap_weights",
    "clustered_covariance",
    "delta_method",
    "derivatives",
    "gradient_norm",
    "gradient_of",
    "hessian_covariance",
    "individual_scores",
    "likelihood_ratio_pvalue",
    "maximize_loglik",
    "mixture_weights",
    "refine_loglik",
    "robust_covariance",
    "sign_flip_test",
    "standard_errors",
    "wald",
]
