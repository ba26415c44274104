"""The simulated log-likelihood of models with several coefficients: one fused kernel, in chunks of individuals."""

# N individuals, T situations of an individual (at most), J alternatives, K draws or nodes, C varying and F fixed
# coefficients, M base variates a draw, P parameters. E = T (J - 1) alternatives not chosen, of an individual.

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.specification import Specification
from mixlogit_align.inference.derivatives import Derivatives

# Utilities of a chunk: about 1 MB of doubles, which stays in the cache.
_CHUNK = 2**17
# Individuals with this share of the situations of another are padded to its length.
_PADDED = 0.6
# Utility differences below this have an exponential that no sum of them can make overflow.
_SAFE = 600.0


def _choice_probabilities(beta: Tensor, offset: Tensor, x: Tensor, others: int) -> tuple[Tensor, Tensor]:
    """Log-likelihoods (n, K) and probabilities (n, E, K) of the alternatives not chosen.

    beta (n, K, C), offset (n, E), x (n, E, C) with E = T * others.
    """
    n, e = offset.shape
    u = torch.baddbmm(offset[..., None], x, beta.mT).view(n, e // others, others, beta.shape[1])
    if u.amax() < _SAFE:  # the usual case saves a pass over u
        odds = u.exp_()
        total = odds.sum(2).add_(1.0)
        value = total.log().sum(1).neg_()
    else:
        peak = u.amax(2, keepdim=True).clamp_min_(0.0)
        odds = u.sub_(peak).exp_()
        peak = peak.squeeze(2)
        total = odds.sum(2).add_((-peak).exp())
        value = (total.log() + peak).sum(1).neg_()
    return value, odds.div_(total[:, :, None]).view(n, e, beta.shape[1])


def _deviations(probability: Tensor, direction: Tensor, others: int) -> Tensor:
    """p (h - mean of h over the situation), all (n, E, K): how probabilities move along utilities h."""
    n, e, k = probability.shape
    sets = (n, e // others, others, k)
    weighted = probability * direction
    mean = weighted.view(sets).sum(2, keepdim=True)
    return weighted.view(sets).addcmul_(probability.view(sets), mean, value=-1.0).view(n, e, k)


class _PanelLoglik(torch.autograd.Function):
    """sum_t -log(1 + sum_j exp(u_tj)) with u = x beta + offset, u the differences to the chosen alternative.

    Twice differentiable in beta (n, K, C) and offset (n, E); x is (n, E, C), E = T * others.
    """

    @staticmethod
    def forward(ctx: Any, beta: Tensor, offset: Tensor, x: Tensor, others: int) -> Tensor:
        value, probability = _choice_probabilities(beta, offset, x, others)
        ctx.save_for_backward(beta, offset, x, probability)
        ctx.others = others
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        beta, offset, x, probability = ctx.saved_tensors
        by_beta, by_offset = _PanelScore.apply(grads[0], beta, offset, x, probability, ctx.others)
        return by_beta, by_offset, None, None


class _PanelScore(torch.autograd.Function):
    """The gradient of :class:`_PanelLoglik`, weighted by g (n, K): -sum_e g p_e x_e, and -sum_k g p_e."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, beta: Tensor, offset: Tensor, x: Tensor, probability: Tensor, others: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(g, x, probability)
        ctx.others = others
        weighted = probability * g[:, None]
        return torch.bmm(weighted.mT, x).neg_(), weighted.sum(2).neg_()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        g, x, probability = ctx.saved_tensors
        by_beta, by_offset = grads
        h = torch.baddbmm(by_offset[..., None], x, by_beta.mT)
        to_g = (probability * h).sum(1).neg_()
        q = _deviations(probability, h, ctx.others).mul_(g[:, None])
        return to_g, torch.bmm(q.mT, x).neg_(), q.sum(2).neg_(), None, None, None


@dataclass(frozen=True)
class Nodes:
    """Where the mixing distribution is evaluated.

    Attributes
    ----------
    base : Tensor, shape (N or 1, K, M)
        Standard variables; one row for all, or one an individual.
    log_weight : Tensor, shape (N or 1, K)
        log of the weights, which sum to about 1.
    """

    base: Tensor
    log_weight: Tensor

    @property
    def num(self) -> int:
        """K."""
        return self.base.shape[1]

    def of(self, rows: Tensor) -> Nodes:
        """Those of some individuals."""
        return Nodes(*(part if len(part) == 1 else part[rows] for part in (self.base, self.log_weight)))


@dataclass(frozen=True)
class _Group:
    """Individuals with about equally many situations: differences (n, E, .) to the chosen alternative."""

    rows: Tensor
    fixed: Tensor
    varying: Tensor
    missing: Tensor | None


class PanelData:
    """Choice data as the kernel reads them.

    Parameters
    ----------
    data : ChoiceData
    specification : Specification
    device : torch.device, optional
    """

    def __init__(self, data: ChoiceData, specification: Specification, device: torch.device | None = None) -> None:
        columns = [data.variables.index(name) for name in specification.variables]
        others = data.num_alternatives - 1
        # the alternatives not chosen, in their order, less the chosen one
        index = torch.arange(others)[None, :] + (torch.arange(others)[None, :] >= data.choice[:, None]).long()
        values = data.attributes[..., columns]
        chosen = values.gather(1, data.choice[:, None, None].expand(-1, 1, len(columns)))
        difference = values.gather(1, index[..., None].expand(-1, -1, len(columns))) - chosen
        offered = data.available.gather(1, index)
        difference = difference * offered[..., None]
        # alternatives that nobody is offered take no room
        others = max(1, int(offered.sum(1).max()))
        if others < index.shape[1]:
            order = (~offered).to(torch.int8).argsort(dim=1, stable=True)[:, :others]
            difference = difference.gather(1, order[..., None].expand(-1, -1, len(columns)))
            offered = offered.gather(1, order)
        self.others = others
        self.num_individuals = data.num_individuals
        self.is_panel = bool(torch.bincount(data.individual).max() > 1)
        self.num_utilities = int(offered.sum())
        # where the last search for individuals' modes ended, (N, M): the next begins there
        self.modes: Tensor | None = None
        self.weights = data.weights.to(device)
        self.covariates = torch.stack(
            [data.covariate(name) for name in specification.covariates]
            or [torch.zeros(data.num_individuals, dtype=torch.float64)],
            dim=-1,
        ).to(device)
        counts = torch.bincount(data.individual, minlength=data.num_individuals)
        order = torch.argsort(data.individual, stable=True)
        starts = counts.cumsum(0) - counts
        split = specification.num_constant

        def group(rows: Tensor, t: int) -> _Group:
            position = torch.arange(t)
            made = position < counts[rows][:, None]
            situations = order[torch.where(made, starts[rows][:, None] + position, 0)]
            present = (offered[situations] & made[..., None]).reshape(len(rows), t * others)
            x = difference[situations].reshape(len(rows), t * others, -1) * present[..., None]
            missing = None if bool(present.all()) else torch.where(present, 0.0, -torch.inf).to(torch.float64)
            return _Group(
                rows=rows.to(device),
                fixed=x[..., :split].contiguous().to(device),
                varying=x[..., split:].contiguous().to(device),
                missing=None if missing is None else missing.to(device),
            )

        self.groups = []
        sizes = counts.unique().tolist()
        while sizes:  # those with nearly as many situations are padded with the largest
            t = sizes[-1]
            least = min(size for size in sizes if size >= _PADDED * t)
            self.groups.append(group(((counts >= least) & (counts <= t)).nonzero()[:, 0], t))
            sizes = [size for size in sizes if size < least]
        # one padded group, for work so small that calls cost more than numbers
        self.everyone = group(torch.arange(data.num_individuals), int(counts.max()))


@dataclass(frozen=True)
class _Chunk:
    """Some individuals of one group, with their nodes."""

    rows: Tensor
    fixed: Tensor
    varying: Tensor
    missing: Tensor | None
    covariates: Tensor
    nodes: Nodes
    others: int

    def loglik(self, specification: Specification, theta: Tensor) -> Tensor:
        """Log-likelihood (n, K) given the nodes; theta (n, P)."""
        constant, varying = specification.coefficients(theta, self.nodes.base, self.covariates)
        value: Tensor = _PanelLoglik.apply(varying, self._offset(constant), self.varying, self.others)
        return value

    def _offset(self, constant: Tensor) -> Tensor:
        offset = (self.fixed @ constant[..., None]).squeeze(-1)
        return offset if self.missing is None else offset + self.missing

    def derivatives(self, specification: Specification, theta: Tensor, weights: Tensor) -> Derivatives:
        """Log-likelihood, gradient and Hessian in theta (P,), individuals weighted by ``weights`` (n,).

        With s_k and H_k the score and Hessian of the log-likelihood at node k, and pi_k its posterior probability,
        an individual's Hessian is ``sum_k pi_k (s_k s_k' + H_k) - s s'``, ``s = sum_k pi_k s_k`` (Louis 1982).
        """
        n, p = len(self.rows), len(theta)
        varying, column, parameter, jacobian = self._jacobian(specification, theta)
        f, c = specification.num_constant, varying.shape[2]
        offset = self._offset(theta[:f].expand(n, f))
        value, probability = _choice_probabilities(varying, offset, self.varying, self.others)
        joint = value + self.nodes.log_weight
        total = torch.logsumexp(joint, 1)
        posterior = torch.exp(joint - total[:, None])
        weighted = weights[:, None] * posterior
        by_beta = torch.bmm(self.varying.mT, probability).neg_()
        scores = probability.new_zeros(n, p, posterior.shape[1])
        scores[:, :f] = torch.bmm(self.fixed.mT, probability).neg_()
        for r, (at, which) in enumerate(zip(column, parameter, strict=True)):
            scores[:, which].addcmul_(by_beta[:, at], jacobian[:, r])
        mean = (scores * posterior[:, None]).sum(2)
        hessian = torch.bmm(scores * weighted[:, None], scores.mT).sum(0) - (weights[:, None] * mean).T @ mean
        # the curvature of the log-likelihood in the coefficients, one direction at a time
        rows = torch.tensor(parameter, dtype=torch.int64, device=theta.device)
        for d in range(f + c):
            x = self.fixed[..., d] if d < f else self.varying[..., d - f]
            moved = _deviations(probability, x[..., None], self.others).mul_(weighted[:, None])
            across = torch.bmm(self.varying.mT, moved)[:, column].mul_(jacobian)
            if d < f:
                hessian[d, :f] -= (moved.sum(2)[..., None] * self.fixed).sum((0, 1))
                mixed = across.sum((0, 2))
                hessian[d].index_add_(0, rows, mixed, alpha=-1.0)
                hessian[:, d].index_add_(0, rows, mixed, alpha=-1.0)
            else:
                own = [r for r, at in enumerate(column) if at == d - f]
                block = torch.bmm(jacobian[:, own], across.mT).sum(0)
                full = block.new_zeros(len(own), p).index_add_(1, rows, block)
                hessian.index_add_(0, rows[own], full, alpha=-1.0)
        if not specification.is_linear:
            hessian += self._map_curvature(specification, theta, (by_beta * weighted[:, None]).mT)
        return Derivatives(float(weights @ total), weights @ mean, hessian)

    @torch.enable_grad()
    def _jacobian(self, specification: Specification, theta: Tensor) -> tuple[Tensor, list[int], list[int], Tensor]:
        """Varying coefficients (n, K, C); and d coefficient column[r] / d theta[parameter[r]] as row r of (n, R, K)."""
        n, k = len(self.rows), self.nodes.num
        base = self.nodes.base.expand(n, k, -1).reshape(n * k, 1, -1)
        leaves = [x.expand(n * k).clone().requires_grad_(True) for x in theta.detach()]
        columns = specification.varying(leaves, base, self.covariates.repeat_interleave(k, 0))
        column, parameter, slopes = [], [], []
        for c, values in enumerate(columns):
            for q, slope in enumerate(torch.autograd.grad(values.sum(), leaves, allow_unused=True, retain_graph=True)):
                if slope is not None:
                    column.append(c)
                    parameter.append(q)
                    slopes.append(slope.view(n, k))
        if not columns:
            return theta.new_zeros(n, k, 0), [], [], theta.new_zeros(n, 0, k)
        varying = torch.cat(columns, 1).detach().view(n, k, len(columns))
        return varying, column, parameter, torch.stack(slopes, 1)

    @torch.enable_grad()
    def _map_curvature(self, specification: Specification, theta: Tensor, by_beta: Tensor) -> Tensor:
        """sum over nodes of by_beta times the second derivatives of the coefficients, (P, P)."""
        leaf = theta.detach().clone().requires_grad_(True)
        _, varying = specification.coefficients(leaf.expand(len(self.rows), -1), self.nodes.base, self.covariates)
        (first,) = torch.autograd.grad((by_beta * varying).sum(), leaf, create_graph=True)
        if not first.requires_grad:  # piecewise linear
            return first.new_zeros(len(first), len(first))
        rows = [torch.autograd.grad(x, leaf, retain_graph=True, materialize_grads=True)[0] for x in first]
        return torch.stack(rows)


@torch.enable_grad()
def node_derivatives(
    data: PanelData, specification: Specification, theta: Tensor, z: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """log N(z; 0, I) + log-likelihood at one node of each individual, with derivatives in the node.

    Parameters
    ----------
    data : PanelData
    specification : Specification
    theta : Tensor, shape (P,)
    z : Tensor, shape (N, M)
        Standard normals behind the base variates.

    Returns
    -------
    value : Tensor, shape (N,)
    gradient : Tensor, shape (N, M)
    hessian : Tensor, shape (N, M, M)
    """
    m = z.shape[1]
    leaf = z.detach().to(data.weights, copy=True).requires_grad_(True)
    everyone = data.everyone
    chunk = _Chunk(
        rows=everyone.rows,
        fixed=everyone.fixed,
        varying=everyone.varying,
        missing=everyone.missing,
        covariates=data.covariates,
        nodes=Nodes(specification.base_of_normal(leaf)[:, None], leaf.new_zeros(1, 1)),
        others=data.others,
    )
    loglik = chunk.loglik(specification, theta.to(leaf).expand(len(leaf), -1))[:, 0]
    value = loglik - 0.5 * (leaf * leaf).sum(-1)
    (gradient,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    rows = [torch.autograd.grad(gradient[:, i].sum(), leaf, retain_graph=True)[0] for i in range(m)]
    return value.detach(), gradient.detach(), torch.stack(rows, 1)


class SimulatedLoglik:
    """Log-likelihood ``sum_n w_n log sum_k omega_nk prod_t P(choice_nt | base_nk)`` and its derivatives.

    The derivatives with respect to the coefficients are analytic, those of coefficients with respect to parameters
    automatic: one backward pass gives every individual's score.

    Parameters
    ----------
    data : PanelData
    specification : Specification
    nodes : Nodes
    """

    def __init__(self, data: PanelData, specification: Specification, nodes: Nodes) -> None:
        self.data = data
        self.specification = specification
        self.nodes = nodes
        self.num_params = len(specification.names)
        self.weights = data.weights
        self._chunks = list(self._split())

    def _split(self) -> Iterator[_Chunk]:
        for group in self.data.groups:
            size = max(1, _CHUNK // (group.varying.shape[1] * self.nodes.num))
            for start in range(0, len(group.rows), size):
                part = slice(start, start + size)
                rows = group.rows[part]
                yield _Chunk(
                    rows=rows,
                    fixed=group.fixed[part],
                    varying=group.varying[part],
                    missing=None if group.missing is None else group.missing[part],
                    covariates=self.data.covariates[rows],
                    nodes=self.nodes.of(rows),
                    others=self.data.others,
                )

    def weighted(self, weights: Tensor) -> SimulatedLoglik:
        """The same with other frequencies of individuals, (N,)."""
        other = copy(self)
        other.weights = weights.to(self.weights)
        return other

    def joint(self, theta: Tensor) -> Tensor:
        """log of weight times likelihood at every node, (N, K)."""
        theta = theta.to(self.weights)
        result = self.weights.new_empty(self.data.num_individuals, self.nodes.num)
        with torch.no_grad():
            for chunk in self._chunks:
                one = theta.expand(len(chunk.rows), -1)
                result[chunk.rows] = chunk.loglik(self.specification, one) + chunk.nodes.log_weight
        return result

    def _individual(self, theta: Tensor, chunk: _Chunk) -> Tensor:
        return torch.logsumexp(chunk.loglik(self.specification, theta) + chunk.nodes.log_weight, 1)

    def _map(self, work: Callable[[_Chunk], Any]) -> Iterator[Any]:
        threads = torch.get_num_threads()
        if threads == 1 or len(self._chunks) < 2 * threads or self.weights.is_cuda:
            return map(work, self._chunks)
        return _in_threads(work, self._chunks, threads)

    def values(self, theta: Tensor) -> Tensor:
        """Log-likelihood of each individual, (N,), frequencies not counted."""
        theta = theta.to(self.weights)
        result = torch.empty_like(self.weights)

        @torch.no_grad()
        def work(chunk: _Chunk) -> tuple[Tensor, Tensor]:
            return chunk.rows, self._individual(theta.expand(len(chunk.rows), -1), chunk)

        for rows, value in self._map(work):
            result[rows] = value
        return result

    def scores(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihoods (N,) and scores (N, P) of individuals, frequencies not counted."""
        theta = theta.to(self.weights)
        values = torch.empty_like(self.weights)
        scores = self.weights.new_empty(self.data.num_individuals, self.num_params)

        def work(chunk: _Chunk) -> tuple[Tensor, Tensor, Tensor]:
            leaf = theta.detach().expand(len(chunk.rows), -1).clone().requires_grad_(True)
            value = self._individual(leaf, chunk)
            (score,) = torch.autograd.grad(value.sum(), leaf)
            return chunk.rows, value.detach(), score

        for rows, value, score in self._map(work):
            values[rows], scores[rows] = value, score
        return values, scores

    def gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """The log-likelihood and its gradient (P,)."""
        values, scores = self.scores(theta)
        return float(self.weights @ values), (self.weights @ scores).cpu()

    def outer_product(self, theta: Tensor) -> Derivatives:
        """Log-likelihood, gradient, and minus the outer product of scores in place of the Hessian (BHHH)."""
        values, scores = self.scores(theta)
        weighted = self.weights[:, None] * scores
        return Derivatives(float(self.weights @ values), weighted.sum(0).cpu(), -(weighted.T @ scores).cpu())

    def derivatives(self, theta: Tensor) -> Derivatives:
        """Log-likelihood, gradient and Hessian."""

        theta = theta.detach().to(self.weights)

        def work(chunk: _Chunk) -> Derivatives:
            return chunk.derivatives(self.specification, theta, self.weights[chunk.rows])

        values, gradients, hessians = zip(*self._map(work), strict=True)
        hessian = torch.stack(hessians).sum(0).cpu()
        return Derivatives(math.fsum(values), torch.stack(gradients).sum(0).cpu(), (hessian + hessian.T) / 2)


def _in_threads(work: Callable[[_Chunk], Any], chunks: list[_Chunk], threads: int) -> Iterator[Any]:
    """Chunks side by side, one torch thread each: operations of a chunk are too small to be split."""
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(work, chunks)
    finally:
        torch.set_num_threads(threads)
