"""The individuals of a model as a Bayesian program sees them: likely or not, and drawn."""

# N individuals, V coefficients, M base variates a draw, P parameters.

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from mixlogit_align.distributions import ImportanceSampling, Integration, MonteCarlo, QuasiMonteCarlo
from mixlogit_align.distributions.mixing import SampledFamily, family_of
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.likelihood import PanelData, SimulatedLoglik
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.nodes import NodeMaker, default_maker, enough_effective, first_maker
from mixlogit_align.econometrics.priors import correlation_sites
from mixlogit_align.econometrics.strength_likelihood import Chunk, chunks, compressed, compressed_chunk

Params = Mapping[str, Tensor]

_MEDIAN_DRAWS = 201


class Population(Protocol):
    """Individuals whose coefficients follow a distribution with parameters.

    Attributes
    ----------
    variables : tuple of str
        The V attributes with a coefficient.
    names : tuple of str
        The P natural parameters.
    site : str
        What the program calls the latents of individuals.
    """

    variables: tuple[str, ...]
    names: tuple[str, ...]
    site: str

    @property
    def rule(self) -> str:
        """How individuals are integrated out."""

    def parameters(self, sites: Params) -> dict[str, Tensor]:
        """Natural parameters (...) from what the program samples (...)."""

    def place(self, params: Params | None) -> bool:
        """Make integration ready for parameters near these; whether it depends on them."""

    def total(self, params: Params) -> Tensor:
        """Log-likelihood (), frequencies counted."""

    def loglik(self, params: Params) -> Tensor:
        """Log-likelihoods of individuals (N,), frequencies not counted."""

    def total_anew(self, params: Params) -> Tensor | None:
        """The log-likelihood by other draws or nodes, made for these parameters; None where there are no others."""

    def latent(self, params: Params) -> TorchDistribution:
        """Of one individual."""

    def likely_latents(self, params: Params) -> Tensor:
        """Of every individual, (N,) or (N, M)."""

    def sample_latents(self, params: Params, num: int) -> Tensor:
        """Those of ``num`` individuals for each of D draws of parameters (D,): (D, num) or (D, num, M)."""

    def coefficients(self, params: Params, latent: Tensor, data: ChoiceData) -> Tensor:
        """Coefficients (..., N, V) of latents (..., N, M) or (..., N) and parameters (...); covariates of ``data``."""


# ---------------------------------------------------------------------- a specification


class _Logliks(torch.autograd.Function):
    """Log-likelihoods of individuals (N,) at theta (P,), with analytic scores."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, loglik: SimulatedLoglik) -> Tensor:
        ctx.save_for_backward(theta)
        ctx.loglik = loglik
        return loglik.scores(theta)[0].clone()

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor, None]:
        return _Gradient.apply(*ctx.saved_tensors, *weights, ctx.loglik), None


class _Gradient(torch.autograd.Function):
    """Scores weighted by (N,) and summed, (P,), with the analytic Hessian."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, weights: Tensor, loglik: SimulatedLoglik) -> Tensor:
        ctx.save_for_backward(theta, weights)
        ctx.loglik, ctx.hessian = loglik, None
        return weights @ loglik.scores(theta)[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor, Tensor, None]:
        theta, weights = ctx.saved_tensors
        if ctx.hessian is None:  # one for all directions; of frequencies, which are not negative
            ctx.hessian = torch.zeros(len(theta), len(theta), dtype=theta.dtype)
            for sign in (1.0, -1.0):
                part = (sign * weights).clamp_min(0.0)
                if bool(part.any()):
                    ctx.hessian += sign * ctx.loglik.weighted(part).derivatives(theta).hessian
        return ctx.hessian @ direction, ctx.loglik.scores(theta)[1] @ direction, None


class Coefficients:
    """Individuals of a :class:`MixedLogitModel`, made of independent standard normals.

    The simulated likelihood has nodes that do not move with the parameters but by :meth:`place`.

    Parameters
    ----------
    model : MixedLogitModel
    integration : integration rule, optional
        None: the default of :meth:`MixedLogitModel.fit`.
    """

    site = "standard_normals"

    def __init__(self, model: MixedLogitModel, integration: Integration | None) -> None:
        self.specification = model.specification
        self.variables = model.specification.variables
        self.names = model.specification.names
        self.integration = integration
        self.panel = PanelData(model.data, model.specification)
        self._blocks = correlation_sites(model.specification)
        self._maker: NodeMaker | None = None
        self._loglik: SimulatedLoglik | None = None

    @property
    def rule(self) -> str:
        return repr(self._maker.rule) if self._maker is not None and self.specification.num_dims else "exact"

    def parameters(self, sites: Params) -> dict[str, Tensor]:
        """Cholesky factors are the scales times the factors of the latents' correlations."""
        found = {name: value.to(torch.float64) for name, value in sites.items()}
        for site, block in self._blocks.items():
            factor = found.pop(site) * torch.stack([found[f"{name}.scale"] for name in block], -1)[..., None]
            for i, row in enumerate(block):
                found |= {f"chol.{row}.{col}": factor[..., i, j] for j, col in enumerate(block[: i + 1])}
        return found

    def theta(self, params: Params) -> Tensor:
        """Estimated coordinates (..., P)."""
        return self.specification.theta(torch.stack([params[name] for name in self.names], -1))

    def place(self, params: Params | None) -> bool:
        data, spec = self.panel, self.specification
        if params is None:
            theta = torch.zeros(len(spec.names), dtype=torch.float64)
            self._loglik = SimulatedLoglik(data, spec, first_maker(data, spec).nodes(theta))
            return True
        theta = self.theta(params).detach()
        if self._maker is None:
            known = self.integration
            self._maker = default_maker(data, spec, theta) if known is None else NodeMaker(known, data, spec)
        self._loglik = SimulatedLoglik(data, spec, self._maker.nodes(theta))
        finer = self._maker.finer() if self.integration is None else None
        if finer is not None and not enough_effective(self._maker, self._loglik, theta):
            self._maker = finer
            self._loglik = SimulatedLoglik(data, spec, finer.nodes(theta))
        return self._maker.centred

    def total(self, params: Params) -> Tensor:
        return self.panel.weights @ self.loglik(params)

    def loglik(self, params: Params) -> Tensor:
        assert self._loglik is not None, "place comes first"
        theta = self.theta(params)
        if not theta.requires_grad:
            return self._loglik.values(theta)
        values: Tensor = _Logliks.apply(theta, self._loglik)
        return values

    def total_anew(self, params: Params) -> Tensor | None:
        other = None if self._maker is None else self._maker.again(1)
        if other is None:
            return None
        theta = self.theta(params)
        values = SimulatedLoglik(self.panel, self.specification, other.nodes(theta)).values(theta)
        return self.panel.weights @ values

    def latent(self, params: Params) -> TorchDistribution:
        zero = torch.zeros(self.specification.num_dims, dtype=torch.float64)
        law: TorchDistribution = dist.Normal(zero, 1.0).to_event(1)
        return law

    def likely_latents(self, params: Params) -> Tensor:
        """(N, M): where the likelihood's nodes lie, if about individuals."""
        modes = self.panel.modes
        size = self.panel.num_individuals, self.specification.num_dims
        return torch.zeros(size, dtype=torch.float64) if modes is None else modes.clone()

    def sample_latents(self, params: Params, num: int) -> Tensor:
        size = len(next(iter(params.values()))), num, self.specification.num_dims
        return torch.randn(size, dtype=torch.float64)

    def coefficients(self, params: Params, latent: Tensor, data: ChoiceData) -> Tensor:
        spec, lead = self.specification, latent.shape[:-1]
        z = latent.flatten(0, -2)
        base = spec.base_of_normal(z)[:, None] if spec.num_dims else z[:, None]
        theta = self.theta(params)[..., None, :].expand(*lead, -1).flatten(0, -2)
        columns = [data.covariate(name).expand(lead).flatten() for name in spec.covariates]
        covariates = torch.stack(columns, 1) if columns else z.new_zeros(len(z), 0)
        constant, varying = spec.coefficients(theta, base, covariates)
        found: Tensor = torch.cat([constant, varying[:, 0]], 1).unflatten(0, lead)
        return found


# ---------------------------------------------------------------------- a scalar strength


class Strengths:
    """Individuals with one strength, of any distribution.

    Parameters
    ----------
    data : ChoiceData
        Pairs, or a cross-section.
    variable : str
        The attribute that ``sign`` times the strength multiplies.
    mixing : callable
        Arguments by name to a Pyro distribution.
    names : tuple of str
        Its arguments, after the variable and a dot.
    sign : int
    integration : integration rule, optional
        None: the most accurate one for the mixing; 1,024 draws where none is known.
    """

    site = "strength"

    def __init__(
        self,
        data: ChoiceData,
        variable: str,
        mixing: Callable[..., TorchDistribution],
        names: tuple[str, ...],
        sign: int,
        integration: Integration | None,
    ) -> None:
        self.variables: tuple[str, ...] = (variable,)
        self.mixing = mixing
        self.names = names
        self.sign = sign
        self.integration = integration
        self._num_individuals = data.num_individuals
        self._by_row = True
        self._chunks = chunks(data, variable, sign)
        compression = compressed(data, variable, sign) if integration is None else None
        self._fast = self._chunks if compression is None else [compressed_chunk(compression)]

    @property
    def rule(self) -> str:
        return "the most accurate one for the mixing" if self.integration is None else repr(self.integration)

    def parameters(self, sites: Params) -> dict[str, Tensor]:
        return {name: value.to(torch.float64) for name, value in sites.items()}

    def place(self, params: Params | None) -> bool:
        """Where samples are all that is known of the mixing, their rule is named, and told of, once."""
        if params is not None:
            mixing = self.latent(params)
            self._by_row = not isinstance(family_of(mixing), SampledFamily)
            if not self._by_row and self.integration is None:
                self.integration, self._fast = self._chunks[0].rule_used(mixing), self._chunks
        return False

    def _logliks(self, params: Params, chunks: list[Chunk], rule: Integration | None) -> list[Tensor]:
        mixing = self.latent(params)
        if self._by_row:
            return [chunk.loglik(mixing, rule) for chunk in chunks]
        # such samples are not of given rows
        return [chunk.distribution(mixing, rule).log_prob(chunk.choices) for chunk in chunks]

    def total(self, params: Params) -> Tensor:
        return self._sum(params, self._fast, self.integration)

    def _sum(self, params: Params, chunks: list[Chunk], rule: Integration | None) -> Tensor:
        logliks = self._logliks(params, chunks, rule)
        return torch.stack([chunk.weights @ each for chunk, each in zip(chunks, logliks, strict=True)]).sum()

    def loglik(self, params: Params) -> Tensor:
        return torch.cat(self._logliks(params, self._chunks, self.integration))

    def total_anew(self, params: Params) -> Tensor | None:
        rule = self.integration
        if not isinstance(rule, MonteCarlo | QuasiMonteCarlo | ImportanceSampling):
            return None
        return self._sum(params, self._chunks, rule.reseeded(1))

    def latent(self, params: Params) -> TorchDistribution:
        prefix = len(self.variables[0]) + 1
        return self.mixing(**{name[prefix:]: params[name] for name in self.names})

    def likely_latents(self, params: Params) -> Tensor:
        """(N,): the median for all."""
        median = self.latent(params).sample(torch.Size([_MEDIAN_DRAWS])).median()
        return median.expand(self._num_individuals).clone()

    def sample_latents(self, params: Params, num: int) -> Tensor:
        laws = [self.latent(at) for at in each_draw(params)]
        return torch.stack([law.expand(torch.Size([num])).sample() for law in laws])

    def coefficients(self, params: Params, latent: Tensor, data: ChoiceData) -> Tensor:
        return self.sign * latent[..., None]


def each_draw(params: Params) -> list[dict[str, Tensor]]:
    """Parameters () of each of D draws (D,)."""
    rows = zip(*(values.unbind() for values in params.values()), strict=True)
    return [dict(zip(params, row, strict=True)) for row in rows]
