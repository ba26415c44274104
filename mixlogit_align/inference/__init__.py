"""Maximum likelihood with its evidence: arrays and callables only, no probability distributions."""

from mixlogit_align.inference.covariance import (
    bhhh_covariance,
    delta_method,
    hessian_covariance,
    robust_covariance,
    standard_errors,
)
from mixlogit_align.inference.derivatives import Derivatives, derivatives, individual_scores
from mixlogit_align.inference.optimize import MaximumLikelihood, gradient_norm, maximize_loglik

__all__ = [
    "Derivatives",
    "MaximumLikelihood",
    "bhhh_covariance",
    "delta_method",
    "derivatives",
    "gradient_norm",
    "hessian_covariance",
    "individual_scores",
    "maximize_loglik",
    "robust_covariance",
    "standard_errors",
]
