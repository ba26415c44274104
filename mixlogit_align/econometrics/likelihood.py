"""The simulated log-likelihood of models with several coefficients: one fused kernel, in chunks of individuals."""

# N individuals, T situations of an individual (at most), J alternatives, K draws or nodes, C varying and F fixed
# coefficients, M base variates a draw, P parameters. E = T (J - 1) alternatives not chosen, of an individual.

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.specification import Specification
from mixlogit_align.inference.derivatives import Derivatives
from mixlogit_align.numerics.threads import in_threads

Result = TypeVar("Result")

# Utilities of a chunk: about 2 MB of doubles, which stays in the cache; on a CUDA device enough to keep it busy.
_CHUNK, _CHUNK_ON_CUDA = 2**18, 2**23
# Individuals with this share of the situations of another are padded to its length.
_PADDED = 0.6
# Utility differences below this have an exponential that no sum of them can make overflow.
_SAFE = 600.0
# Likelihoods and weights above exp(-_DEEP) need no logarithms: neither they nor their products underflow.
_DEEP = 300.0


def _utilities(beta: Tensor, offset: Tensor | None, x: Tensor, others: int) -> Tensor:
    """Utility differences (n, T, others, K): beta (n, C, K), offset (n, E), x (n, E, C) with E = T * others."""
    u = torch.bmm(x, beta) if offset is None else torch.baddbmm(offset[..., None], x, beta)
    return u.view(len(x), x.shape[1] // others, others, beta.shape[2])


def _denominators(odds: Tensor) -> Tensor:
    """1 + sum of the odds (n, T, others, K) of a situation: (n, T, K)."""
    total = odds[:, :, 0] + 1.0
    for other in range(1, odds.shape[2]):
        total += odds[:, :, other]
    return total


def _choice_probabilities(u: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihoods (n, K) and probabilities (n, T, others, K) of the alternatives not chosen; destroys u."""
    if u.amax() < _SAFE:  # the usual case saves a pass over u
        odds = u.exp_()
        total = _denominators(odds)
        return total.log().sum(1).neg_(), odds.div_(total[:, :, None])
    peak = u.amax(2).clamp_min_(0.0)
    odds = u.sub_(peak[:, :, None]).exp_()
    total = odds.sum(2).add_((-peak).exp())
    return (total.log() + peak).sum(1).neg_(), odds.div_(total[:, :, None])


def _deviations(weighted: Tensor, probability: Tensor, direction: Tensor) -> Tensor:
    """w p (h - mean of h over the situation), all (n, T, others, K) with w p given, h the utilities' direction."""
    moved = weighted * direction
    return moved.addcmul_(probability, moved.sum(2, keepdim=True), value=-1.0)


def _chained(values: Tensor, jacobian: Tensor, column: list[int]) -> Tensor:
    """Row r of ``jacobian`` (n, R, K) times row column[r], ascending, of ``values`` (n, C, K)."""
    found = torch.empty_like(jacobian)
    start = 0
    for c in range(values.shape[1]):
        own = slice(start, start + column.count(c))
        torch.mul(jacobian[:, own], values[:, c, None], out=found[:, own])
        start = own.stop
    return found


def _corners(base: Tensor) -> Tensor:
    """Base variates (1, M + 1, M) at 0 and at the units, which tell all that is linear in them."""
    units = torch.eye(base.shape[2], dtype=base.dtype, device=base.device)
    return torch.cat((torch.zeros_like(units[:1]), units))[None]


@dataclass(frozen=True)
class Nodes:
    """Where the mixing distribution is evaluated.

    Attributes
    ----------
    base : Tensor, shape (N or 1, K, M)
        Standard variables; one row for all, or one an individual.
    log_weight : Tensor, shape (N or 1, K)
        log of the weights, which sum to about 1.
    bend : float
        Width of the bend that stands for the break of a censored normal in second derivatives, in standard deviations.
    """

    base: Tensor
    log_weight: Tensor
    bend: float = 0.05

    @property
    def num(self) -> int:
        """K."""
        return self.base.shape[1]

    def of(self, rows: Tensor) -> Nodes:
        """Those of some individuals; each base variate's draws lie side by side in memory."""
        if len(self.base) > 1:
            base = self.base.mT[rows].mT
            return replace(self, base=base, log_weight=self.log_weight[rows if len(self.log_weight) > 1 else slice(1)])
        return self if len(self.log_weight) == 1 else replace(self, log_weight=self.log_weight[rows])


@dataclass(frozen=True)
class _Group:
    """Individuals with about equally many situations: differences (n, E, .) to the chosen alternative."""

    rows: Tensor
    fixed: Tensor
    varying: Tensor
    missing: Tensor | None

    def offset(self, constant: Tensor) -> Tensor | None:
        """Utility differences (n, E) that do not vary, of fixed coefficients (F,)."""
        if not len(constant):
            return self.missing
        offset = self.fixed @ constant
        return offset if self.missing is None else offset + self.missing


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
class _Posterior:
    """Individuals' log-likelihoods (n,), probabilities of their nodes (n, K) and of choices (n, T, others, K)."""

    loglik: Tensor
    weight: Tensor
    probability: Tensor


@dataclass(frozen=True)
class _Chunk(_Group):
    """Some individuals of one group, with their nodes."""

    covariates: Tensor
    nodes: Nodes
    others: int

    def _varying(self, specification: Specification, theta: Tensor, bend: float | None = None) -> Tensor:
        """Coefficients (n, C, K) that vary; theta (P,), ``bend`` as of :meth:`Specification.varying`."""
        n = len(self.rows)
        columns = specification.varying(theta.expand(n, -1).unbind(1), self.nodes.base, self.covariates, bend)
        return torch.stack(columns, 1) if columns else self.varying.new_zeros(n, 0, self.nodes.num)

    @torch.no_grad()
    def joint(self, specification: Specification, theta: Tensor) -> Tensor:
        """log of weight times likelihood at every node, (n, K); theta (P,)."""
        offset = self.offset(theta[: specification.num_constant])
        value, _ = _choice_probabilities(
            _utilities(self._varying(specification, theta), offset, self.varying, self.others)
        )
        return value + self.nodes.log_weight

    def _posterior(self, u: Tensor) -> _Posterior:
        """Of utility differences (n, T, others, K), which it destroys."""
        if self._shallow and u.shape[1] * (float(u.amax()) + math.log(self.others + 1)) < _DEEP:
            odds = u.exp_()
            total = _denominators(odds)
            joint = self.nodes.log_weight.exp() / (total.prod(1) if total.shape[1] > 1 else total[:, 0])
            likelihood = joint.sum(1)
            joint /= likelihood[:, None]
            return _Posterior(likelihood.log(), joint, odds.div_(total[:, :, None]))
        value, probability = _choice_probabilities(u)
        value += self.nodes.log_weight
        return _Posterior(torch.logsumexp(value, 1), torch.softmax(value, 1), probability)

    @cached_property
    def _shallow(self) -> bool:
        return float(self.nodes.log_weight.abs().amax()) < _DEEP

    def scores(self, specification: Specification, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihoods (n,) and scores (n, P); theta (P,).

        Coefficients linear in the base variates are made at M + 1 corners instead of K nodes.
        """
        n, f, base = len(self.rows), specification.num_constant, self.nodes.base
        corners = _corners(base) if specification.is_linear else None
        with torch.enable_grad():
            leaf = theta.detach().expand(n, -1).clone().requires_grad_(True)
            columns = specification.varying(leaf.unbind(1), base if corners is None else corners, self.covariates)
        beta = torch.stack([column.detach() for column in columns], 1) if columns else self.varying.new_zeros(n, 0, 1)
        offset = self.offset(theta[:f])
        if corners is None:
            u = _utilities(beta, offset, self.varying, self.others)
        else:
            along = torch.bmm(self.varying, beta)
            offset = along[..., 0] if offset is None else along[..., 0] + offset
            u = _utilities(base.mT.expand(n, -1, -1), offset, along[..., 1:] - along[..., :1], self.others)
        at = self._posterior(u)
        probability = at.probability.flatten(1, 2)
        if corners is None:
            by_offset = torch.bmm(probability, at.weight[..., None])
            by_beta = torch.bmm(self.varying.mT, probability).mul_(at.weight[:, None])
        else:
            probability *= at.weight[:, None]
            by_offset = probability.sum(2, keepdim=True)
            by_units = torch.bmm(base.mT.expand(n, -1, -1), probability.mT).mT
            by_beta = torch.bmm(self.varying.mT, torch.cat((by_offset - by_units.sum(2, keepdim=True), by_units), 2))
        scores = torch.zeros_like(leaf, requires_grad=False)
        if columns:
            (scores,) = torch.autograd.grad(columns, leaf, list(by_beta.neg_().unbind(1)))
        if f:
            scores[:, :f] -= torch.bmm(self.fixed.mT, by_offset).squeeze(2)
        return at.loglik, scores

    def derivatives(self, specification: Specification, theta: Tensor, weights: Tensor) -> Derivatives:
        """Log-likelihood, gradient and Hessian in theta (P,), individuals weighted by ``weights`` (n,).

        With s_k and H_k the score and Hessian of the log-likelihood at node k, and pi_k its posterior probability,
        an individual's Hessian is ``sum_k pi_k (s_k s_k' + H_k) - s s'``, ``s = sum_k pi_k s_k`` (Louis 1982).
        """
        f = specification.num_constant
        beta, column, parameter, jacobian = self._jacobian(specification, theta)
        at = self._posterior(_utilities(beta, self.offset(theta[:f]), self.varying, self.others))
        probability = at.probability.flatten(1, 2)
        weighted = weights[:, None] * at.weight
        by_beta = torch.bmm(self.varying.mT, probability).neg_()
        varying = _chained(by_beta, jacobian, column)
        # parameters that vary may share a coordinate (several coefficients of one), so that rows are added
        rows = torch.tensor([*range(f), *parameter], dtype=torch.int64, device=theta.device)
        mean = torch.cat(
            (
                torch.bmm(self.fixed.mT, torch.bmm(probability, at.weight[..., None])).squeeze(2).neg_(),
                torch.bmm(varying, at.weight[..., None]).squeeze(2),
            ),
            1,
        )
        curvature = self._curvature_of_choice if at.probability.shape[1] == 1 else self._curvature_of_panel
        expanded = curvature(at.probability, weighted, varying, column, jacobian)
        expanded -= (weights[:, None] * mean).T @ mean
        p = len(theta)
        hessian = expanded.new_zeros(len(rows), p).index_add_(1, rows, expanded)
        hessian = hessian.new_zeros(p, p).index_add_(0, rows, hessian)
        if not specification.is_linear:
            hessian += self._map_curvature(specification, theta, by_beta.mul_(weighted[:, None]))
        gradient = mean.new_zeros(p).index_add_(0, rows, weights @ mean)
        return Derivatives(float(weights @ at.loglik), gradient, hessian)

    def _curvature_of_panel(
        self, probability: Tensor, weighted: Tensor, varying: Tensor, column: list[int], jacobian: Tensor
    ) -> Tensor:
        """sum_k pi_k (s_k s_k' + H_k), summed over individuals, in the fixed coefficients and the rows of ``jacobian``.

        probability (n, T, others, K), weighted (n, K), varying and jacobian (n, R, K): (F + R, F + R).
        """
        f, c = self.fixed.shape[2], self.varying.shape[2]
        scores = varying
        if f:
            scores = torch.cat((torch.bmm(self.fixed.mT, probability.flatten(1, 2)).neg_(), varying), 1)
        result = torch.bmm(scores * weighted[:, None], scores.mT).sum(0)
        posterior = probability * weighted[:, None, None]
        if f:  # x'(diag p - p p')x of every situation, by situation and node
            by_situation = self.fixed.view(-1, probability.shape[2], f).mT
            mean = torch.bmm(by_situation, probability.flatten(0, 1))
            share = weighted[:, None].expand(-1, probability.shape[1], -1).flatten(0, 1).sqrt()
            mean = (mean * share[:, None]).transpose(0, 1).flatten(1)
            flat = self.fixed.flatten(0, 1)
            result[:f, :f] += mean @ mean.T - (flat * posterior.sum(3).flatten()[:, None]).T @ flat
        # the curvature in the coefficients that vary, one direction at a time
        for d in range(c):
            own = slice(f + column.index(d), f + column.index(d) + column.count(d))
            direction = self.varying[..., d].view(*probability.shape[:3], 1)
            moved = _deviations(posterior, probability, direction).flatten(1, 2)
            across = _chained(torch.bmm(self.varying.mT, moved), jacobian, column)
            slopes = jacobian[:, own.start - f : own.stop - f]
            result[own, f:] -= torch.bmm(slopes, across.mT).sum(0)
            if f:
                mixed = torch.bmm(torch.bmm(self.fixed.mT, moved), slopes.mT).sum(0)
                result[:f, own] -= mixed
                result[own, :f] -= mixed.T
        return result

    def _curvature_of_choice(
        self, probability: Tensor, weighted: Tensor, varying: Tensor, column: list[int], jacobian: Tensor
    ) -> Tensor:
        """As :meth:`_curvature_of_panel` for one situation: s_k s_k' + H_k = x' (2 p p' - diag p) x, x by parameter."""
        p = probability[:, 0]
        f, r = self.fixed.shape[2], jacobian.shape[1]
        result = p.new_zeros(f + r, f + r)
        posterior = p * weighted[:, None]
        for e in range(p.shape[1]):
            moved = posterior * (2.0 * p[:, e, None])
            moved[:, e] -= posterior[:, e]
            across = _chained(torch.bmm(self.varying.mT, moved), jacobian, column)
            fixed = self.fixed[:, e]
            result[:f, :f] += fixed.T @ torch.bmm(moved.sum(2)[:, None], self.fixed)[:, 0]
            mixed = fixed.T @ across.sum(2)
            result[:f, f:] += mixed
            result[f:, :f] += mixed.T
            block = torch.bmm(jacobian, across.mT).mul_(self.varying[:, e, column][..., None])
            result[f:, f:] += block.sum(0)
        return result

    @torch.enable_grad()
    def _jacobian(self, specification: Specification, theta: Tensor) -> tuple[Tensor, list[int], list[int], Tensor]:
        """Varying coefficients (n, C, K); and d coefficient column[r] / d theta[parameter[r]] as row r of (n, R, K)."""
        n, f = len(self.rows), specification.num_constant
        nodes = _corners(self.nodes.base) if specification.is_linear else self.nodes.base
        k = nodes.shape[1]
        base = nodes.expand(n, k, -1).reshape(n * k, 1, nodes.shape[2])
        theta = theta.detach()
        leaves = [x.expand(n * k).clone().requires_grad_(True) for x in theta[f:]]
        constant = [x.expand(n * k) for x in theta[:f]]
        columns = specification.varying([*constant, *leaves], base, self.covariates.repeat_interleave(k, 0))
        ones = theta.new_ones(n * k, 1)
        column, parameter, slopes = [], [], []
        for c, values in enumerate(columns):
            found = torch.autograd.grad(values, leaves, ones, allow_unused=True, retain_graph=True)
            for q, slope in enumerate(found):
                if slope is not None:
                    column.append(c)
                    parameter.append(f + q)
                    slopes.append(slope.view(n, k))
        none = self.nodes.base.new_zeros(n, 0, self.nodes.num)
        if not columns:
            return none, [], [], none
        beta, jacobian = torch.stack([values.detach().view(n, k) for values in columns], 1), torch.stack(slopes, 1)
        if specification.is_linear:
            beta, jacobian = self._between(beta), self._between(jacobian)
        return beta, column, parameter, jacobian

    def _between(self, values: Tensor) -> Tensor:
        """At the nodes (n, C, K) what is linear in the base variates and given at the corners (n, C, M + 1)."""
        slopes = values[..., 1:] - values[..., :1]
        return torch.baddbmm(values[..., :1], slopes, self.nodes.base.mT.expand(len(self.rows), -1, -1))

    @torch.enable_grad()
    def _map_curvature(self, specification: Specification, theta: Tensor, by_beta: Tensor) -> Tensor:
        """sum over nodes of by_beta (n, C, K) times the second derivatives of the coefficients, (P, P).

        Where a coefficient breaks, these are 0 at every node, yet not on average: there it bends.
        """
        leaf = theta.detach().clone().requires_grad_(True)
        beta = self._varying(specification, leaf, self.nodes.bend)
        (first,) = torch.autograd.grad((by_beta * beta).sum(), leaf, create_graph=True)
        rows = [torch.autograd.grad(x, leaf, retain_graph=True, materialize_grads=True)[0] for x in first]
        return torch.stack(rows)


class _ScaledChunk(_Chunk):
    """Coefficients that all are fixed times one factor ``s = exp(tau z - tau^2 / 2)``, of scale heterogeneity alone.

    Utilities are then ``s v`` with v = x'b, and no coefficient is written out at every node.
    """

    def _scaled(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """v (n, E), s (n, K), and z - tau (n, K), with which ds/dtau = s (z - tau)."""
        z, tau = self.nodes.base[..., 0], theta[-1]
        n = len(self.rows)
        factor = torch.exp(tau * z - tau * tau / 2).expand(n, -1)
        return self.varying @ theta[:-1], factor, (z - tau).expand(n, -1)

    def _scaled_utilities(self, v: Tensor, factor: Tensor) -> Tensor:
        """(n, T, others, K)."""
        u = v[..., None] * factor[:, None]
        if self.missing is not None:
            u += self.missing[..., None]
        return u.view(len(v), v.shape[1] // self.others, self.others, factor.shape[1])

    @torch.no_grad()
    def joint(self, specification: Specification, theta: Tensor) -> Tensor:
        """As of all chunks."""
        v, factor, _ = self._scaled(theta)
        value, _ = _choice_probabilities(self._scaled_utilities(v, factor))
        return value + self.nodes.log_weight

    def scores(self, specification: Specification, theta: Tensor) -> tuple[Tensor, Tensor]:
        """As of all chunks."""
        v, factor, slope = self._scaled(theta)
        at = self._posterior(self._scaled_utilities(v, factor))
        weighted = at.weight * factor
        probability = at.probability.flatten(1, 2)
        by_v = torch.bmm(probability, weighted[..., None])
        by_factor = torch.bmm(v[:, None], probability)[:, 0]
        by_tau = (weighted * slope * by_factor).sum(1, keepdim=True)
        return at.loglik, torch.cat((torch.bmm(self.varying.mT, by_v)[..., 0], by_tau), 1).neg_()

    def derivatives(self, specification: Specification, theta: Tensor, weights: Tensor) -> Derivatives:
        """As of all chunks: with p_k the probabilities of the alternatives not chosen and a_k = v'p_k, at node k

        the score is ``-(s_k x'p_k, s_k' a_k)`` and the Hessian that of ``sum_t log(1 + sum_j exp(s_k v_tj))``.
        """
        v, factor, slope = self._scaled(theta)
        at = self._posterior(self._scaled_utilities(v, factor))
        x, others = self.varying, self.others
        p = at.probability.flatten(1, 2)
        weighted = weights[:, None] * at.weight * factor
        a = torch.bmm(v[:, None], p)[:, 0]
        by_situation = (v.view(*at.probability.shape[:3], 1) * at.probability).sum(2)
        # one block for the fixed coefficients, (n, E, E): pairs in one situation count twice
        same = torch.arange(x.shape[1], device=x.device) // others
        root = p * (weights[:, None] * at.weight).sqrt()[:, None] * factor[:, None]
        block = torch.bmm(root, root.mT) * (1.0 + (same[:, None] == same).to(x))
        block.diagonal(dim1=1, dim2=2).sub_(torch.bmm(p, (weighted * factor)[..., None])[..., 0])
        flat = x.flatten(0, 1)
        fixed = flat.T @ torch.bmm(block, x).flatten(0, 1)
        inner = by_situation.repeat_interleave(others, 1) - v[..., None] + a[:, None]
        across = (p * (weighted * slope)[:, None] * (factor[:, None] * inner - 1.0)).sum(2)
        mixed = flat.T @ across.flatten()
        spread = torch.bmm((v * v)[:, None], p)[:, 0] - (by_situation * by_situation).sum(1)
        tau = weighted * (factor * slope * slope * (a * a - spread) - (slope * slope - 1.0) * a)
        mean = torch.cat(
            (
                torch.bmm(x.mT, torch.bmm(p, (at.weight * factor)[..., None]))[..., 0],
                (at.weight * factor * slope * a).sum(1, keepdim=True),
            ),
            1,
        ).neg_()
        hessian = -(weights[:, None] * mean).T @ mean
        hessian[:-1, :-1] += fixed
        hessian[:-1, -1] += mixed
        hessian[-1, :-1] += mixed
        hessian[-1, -1] += tau.sum()
        return Derivatives(float(weights @ at.loglik), weights @ mean, hessian)


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
    everyone, theta = data.everyone, theta.to(data.weights)
    x, (n, m) = everyone.varying, z.shape
    with torch.enable_grad():
        leaf = z.detach().to(data.weights, copy=True).requires_grad_(True)
        base = specification.base_of_normal(leaf)[:, None]
        columns = specification.varying(theta.expand(n, -1).unbind(1), base, data.covariates)
        slopes = [
            torch.autograd.grad(column.sum(), leaf, create_graph=True)[0]
            if column.requires_grad
            else leaf.new_zeros(n, m)
            for column in columns
        ]
    beta = torch.stack([column.detach() for column in columns], 1)
    jacobian = torch.stack([slope.detach() for slope in slopes], 1)
    u = _utilities(beta, everyone.offset(theta[: specification.num_constant]), x, data.others)
    value, probability = _choice_probabilities(u)
    weighted = x * probability.flatten(1, 2)
    mean = weighted.view(n, -1, data.others, x.shape[2]).sum(2)
    by_beta = mean.sum(1).neg_()
    curvature = torch.bmm(mean.mT, mean).sub_(torch.bmm(x.mT, weighted))
    point = leaf.detach()
    gradient = (by_beta[:, None] @ jacobian).squeeze(1) - point
    hessian = jacobian.mT @ curvature @ jacobian - torch.eye(m, dtype=point.dtype, device=point.device)
    bent = [(c, slope) for c, slope in enumerate(slopes) if slope.requires_grad]
    if bent:
        with torch.enable_grad():
            totals = torch.stack([by_beta[:, c, None] * slope for c, slope in bent]).sum((0, 1))
            hessian += torch.stack([torch.autograd.grad(c, leaf, retain_graph=True)[0] for c in totals], 1)
    return value[:, 0] - 0.5 * (point * point).sum(-1), gradient, hessian


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
        # where scores were last wanted, and what they were
        self._latest: tuple[Tensor, Tensor, Tensor] | None = None

    def _split(self) -> Iterator[_Chunk]:
        kind = _ScaledChunk if self.specification.only_scaled else _Chunk
        chunk = _CHUNK_ON_CUDA if self.data.weights.is_cuda else _CHUNK
        for group in self.data.groups:
            size = max(1, chunk // (group.varying.shape[1] * self.nodes.num))
            for start in range(0, len(group.rows), size):
                part = slice(start, start + size)
                rows = group.rows[part]
                yield kind(
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
        for chunk in self._chunks:
            result[chunk.rows] = chunk.joint(self.specification, theta)
        return result

    def _map(self, work: Callable[[_Chunk], Result]) -> list[Result]:
        return [work(chunk) for chunk in self._chunks] if self.weights.is_cuda else in_threads(work, self._chunks)

    def values(self, theta: Tensor) -> Tensor:
        """Log-likelihood of each individual, (N,), frequencies not counted."""
        theta = theta.to(self.weights)
        result = torch.empty_like(self.weights)
        for chunk in self._chunks:
            result[chunk.rows] = torch.logsumexp(chunk.joint(self.specification, theta), 1)
        return result

    def scores(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihoods (N,) and scores (N, P) of individuals, frequencies not counted."""
        theta = theta.to(self.weights)
        if self._latest is not None and torch.equal(self._latest[0], theta):
            return self._latest[1:]
        values = torch.empty_like(self.weights)
        scores = self.weights.new_empty(self.data.num_individuals, self.num_params)

        def work(chunk: _Chunk) -> tuple[Tensor, Tensor, Tensor]:
            return chunk.rows, *chunk.scores(self.specification, theta)

        for rows, value, score in self._map(work):
            values[rows], scores[rows] = value, score
        self._latest = theta.clone(), values, scores
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
