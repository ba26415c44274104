"""The posterior near its mode, in unconstrained coordinates."""

# D draws, P unconstrained parameters.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to

from mixlogit_align.econometrics.population import Population
from mixlogit_align.econometrics.sampling import seeded
from mixlogit_align.inference import MaximumLikelihood, maximize_loglik

# Draws of a prior that tell where and how wide it is.
_DRAWS = 201
# Nodes about individuals' modes follow the posterior mode until it moves by less, in posterior sds, or rounds end.
_SETTLED, _ROUNDS = 0.05, 3


@dataclass(frozen=True)
class Coordinates:
    """Unconstrained coordinates (P,) of what a program samples, one site after the other.

    Attributes
    ----------
    priors : mapping of str to pyro.distributions.TorchDistribution
        By site.
    """

    priors: Mapping[str, TorchDistribution]

    @cached_property
    def _draws(self) -> dict[str, Tensor]:
        """From the priors, unconstrained, (D, ...)."""
        with seeded(0):
            return {
                name: biject_to(prior.support).inv(prior.sample(torch.Size([_DRAWS])).to(torch.float64))
                for name, prior in self.priors.items()
            }

    @cached_property
    def typical(self) -> tuple[Tensor, Tensor]:
        """Medians and standard deviations of the priors, (P,) each."""
        draws = torch.cat([draws.reshape(_DRAWS, -1) for draws in self._draws.values()], 1)
        return draws.median(0).values, draws.std(0)

    def by_site(self, flat: Tensor) -> dict[str, Tensor]:
        """Coordinates (..., P) in parts."""
        shapes = {name: draws.shape[1:] for name, draws in self._draws.items()}
        parts = flat.split([shape.numel() for shape in shapes.values()], -1)
        return {
            name: part.reshape(flat.shape[:-1] + shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }

    def sites(self, flat: Tensor) -> dict[str, Tensor]:
        """Values of sites (..., event) at coordinates (..., P)."""
        return {name: biject_to(self.priors[name].support)(x) for name, x in self.by_site(flat).items()}

    def log_prior(self, flat: Tensor) -> Tensor:
        """Log density () of the priors at coordinates (P,)."""
        terms = []
        for name, x in self.by_site(flat).items():
            transform = biject_to(self.priors[name].support)
            value = transform(x)
            terms.append(self.priors[name].log_prob(value) + transform.log_abs_det_jacobian(x, value))
        return torch.stack(terms).sum()


@dataclass(frozen=True)
class NormalApproximation:
    """A normal distribution of unconstrained coordinates (P,), about the mode of the posterior.

    Attributes
    ----------
    mode : Tensor, shape (P,)
    covariance : Tensor, shape (P, P)
        Inverse of minus the Hessian of the log posterior density, its eigenvalues taken positive.
    sites : dict of str to Tensor
        The mode by site of the program, constrained.
    """

    mode: Tensor
    covariance: Tensor
    sites: dict[str, Tensor]

    @cached_property
    def half(self) -> Tensor:
        """Cholesky factor of the covariance, (P, P)."""
        half: Tensor = torch.linalg.cholesky(self.covariance)
        return half

    def coordinates(self, white: Tensor) -> Tensor:
        """Unconstrained coordinates (..., P) of those (..., P) in which the approximation is standard normal."""
        return self.mode + white @ self.half.T


@torch.enable_grad()
def approximate_normally(coordinates: Coordinates, population: Population) -> NormalApproximation:
    """Find the mode of a posterior, individuals integrated out, and place the nodes of the likelihood there.

    Parameters
    ----------
    coordinates : Coordinates
    population : Population

    Returns
    -------
    NormalApproximation
    """
    start, width = coordinates.typical  # in units of which the priors are about as wide

    def log_density(x: Tensor) -> Tensor:
        params = population.parameters(coordinates.sites(x * width))
        return population.total(params) + coordinates.log_prior(x * width)

    def place(found: MaximumLikelihood) -> bool:
        return population.place(population.parameters(coordinates.sites(found.params * width)))

    population.place(None)
    found = maximize_loglik(log_density, start / width, polish=False)
    follows = place(found)
    for _ in range(_ROUNDS):
        before = found.params
        found = maximize_loglik(log_density, before)
        step = found.params - before
        if not follows or float(-step @ found.hessian @ step) < _SETTLED**2:
            break
        place(found)
    values, vectors = torch.linalg.eigh(-found.hessian)
    inverse = vectors / values.abs().clamp_min(1e-3) @ vectors.T
    mode = found.params * width
    return NormalApproximation(mode, width[:, None] * inverse * width, coordinates.sites(mode))
