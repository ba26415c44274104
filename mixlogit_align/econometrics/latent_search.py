"""The search for the maximum of latent classes: EM from many starts, then Newton steps."""

# N individuals, C classes, P parameters of a class, Q parameters in all.

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mixlogit_align.distributions import ImportanceSampling, Integration
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.estimation import fit_logit, least_sizes, starting_values
from mixlogit_align.econometrics.evidence import few_effective, running_away, tolerance_of
from mixlogit_align.econometrics.latent_likelihood import LatentLoglik
from mixlogit_align.econometrics.latent_parameters import LatentParameters, label
from mixlogit_align.econometrics.likelihood import Nodes, PanelData, SimulatedLoglik
from mixlogit_align.econometrics.nodes import NodeMaker, default_maker, first_maker
from mixlogit_align.econometrics.specification import Specification
from mixlogit_align.inference import MaximumLikelihood, Restricted, maximize_loglik, refine_loglik
from mixlogit_align.numerics.importance import effective_sample_size

# EM ends where a step gains less log-likelihood than this: Newton steps find the maximum from there.
_LITTLE = 0.1
_EM_STEPS = 500
# Classes start this far from the logit of all towards one Newton step for a single individual, and a little noise, in
# standard errors, tells apart those that start at individuals alike or where a family has only one sign.
_TOWARDS, _NOISE = 0.3, 0.2
# Nodes that depend on parameters follow the estimates until these move by less, in standard errors.
_SETTLED, _ROUNDS = 0.05, 4
# Largest remaining Newton step of a maximum of an exact log-likelihood, in standard errors.
_TOLERANCE_EXACT = 1e-6
# Classes between which no individual's log-likelihood differs by more are one.
_ALIKE = 1e-3
# Parameters with this share of the largest part in a flat direction are told.
_PART = 0.2


@dataclass(frozen=True)
class LatentFound:
    """Where a search ended.

    Attributes
    ----------
    maximum : MaximumLikelihood
        In the free coordinates.
    params : Tensor, shape (Q,)
        Estimated coordinates, held ones included.
    loglik : LatentLoglik
        The function that was maximised.
    makers : tuple of NodeMaker
        One a class.
    em : tuple of float
        Log-likelihoods along the steps of EM.
    degenerate : tuple of str
        Classes with fewer members than parameters, or alike.
    """

    maximum: MaximumLikelihood
    params: Tensor
    loglik: LatentLoglik
    makers: tuple[NodeMaker, ...]
    em: tuple[float, ...]
    degenerate: tuple[str, ...] = ()


class LatentSearch:
    """Maximum likelihood from one start or many.

    Parameters
    ----------
    data : ChoiceData
    parameters : LatentParameters
    covariates : Tensor, shape (N, D)
        Of membership.
    held : dict of str to float
        Natural parameters that do not move.

    Raises
    ------
    ConvergenceError
        If the conditional logit of all has no finite maximum: coefficients are not identified.
    """

    def __init__(
        self, data: ChoiceData, parameters: LatentParameters, covariates: Tensor, held: dict[str, float]
    ) -> None:
        self.data = data
        self.parameters = parameters
        self.covariates = covariates
        self.held = held
        self.free = torch.tensor([i for i, name in enumerate(parameters.names) if name not in held], dtype=torch.int64)
        # what tells classes apart must not be renamed
        self.keeps_labels = any(name not in parameters.common for name in held)
        self.logit = fit_logit(data, parameters.specification, None)
        self.panels = latent_panels(data, parameters)

    # ------------------------------------------------------------------ starts

    @cached_property
    def _individuals(self) -> Tensor:
        """Logit coefficients after one Newton step for each individual alone, (N, V)."""
        spec = Specification(self.parameters.specification.variables, {})
        loglik = SimulatedLoglik(PanelData(self.data, spec), spec, _no_nodes())
        beta = torch.tensor([self.logit.coefficients[name] for name in spec.names], dtype=torch.float64)
        information = -loglik.derivatives(beta).hessian / self.data.weights.sum()
        steps: Tensor = torch.linalg.solve(information, loglik.scores(beta)[1].T).T
        return beta + steps

    def start(self, seed: int) -> Tensor:
        """Classes near individuals drawn by lot, equal shares: estimated coordinates (Q,)."""
        parameters, spec, logit = self.parameters, self.parameters.specification, self.logit
        generator = torch.Generator().manual_seed(seed)
        each = [torch.tensor([logit.coefficients[name] for name in spec.variables], dtype=torch.float64)]
        if parameters.num_classes > 1:
            chosen = torch.multinomial(self.data.weights, parameters.num_classes, generator=generator)
            each = list(each[0] + _TOWARDS * (self._individuals[chosen] - each[0]))
        natural = torch.zeros(len(parameters.names), dtype=torch.float64)
        for c, coefficients in enumerate(each):
            named = dict(zip(spec.variables, coefficients.tolist(), strict=True))
            values = starting_values(self.data, spec, replace(logit, coefficients=named))
            natural[parameters.positions[c]] = torch.tensor([values[name] for name in spec.names], dtype=torch.float64)
        theta = parameters.theta(natural)
        if parameters.num_classes > 1:
            shape = theta[parameters.positions].shape
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
            theta[parameters.positions] += _NOISE * self._sizes[parameters.positions] * noise
        values = starting_values(self.data, spec, logit)
        known = {name: values[name] for name in parameters.common} | self.held
        at = torch.tensor([parameters.index[name] for name in known], dtype=torch.int64)
        natural[at] = torch.tensor(list(known.values()), dtype=torch.float64)
        return theta.index_copy(0, at, parameters.theta(natural)[at])

    # ------------------------------------------------------------------ the search

    def run(self, start: Tensor, rule: Integration | None) -> LatentFound:
        """Search from estimated coordinates (Q,)."""
        spec = self.parameters.specification
        makers = self._makers(start, rule)
        if not spec.num_dims:
            loglik = self._loglik(makers, start)
            near, em = self._em(loglik, start)
            restricted = Restricted(loglik, self.free, near)
            maximum = maximize_loglik(restricted, near[self.free], gradient_tolerance=self._tolerance)
            found = LatentFound(maximum, restricted.full(maximum.params), loglik, makers, em)
            return self._doubted(self._in_order(found))
        if rule is None:
            few = tuple(first_maker(panel, spec) for panel in self.panels)
        else:
            few = tuple(maker.few() for maker in makers)
        coarse = self._loglik(few, start)
        near, em = self._em(coarse, start)
        restricted = Restricted(coarse, self.free, near)
        begun = maximize_loglik(restricted, near[self.free], polish=False)
        theta = restricted.full(begun.params)
        found = self._climb(self._makers(theta, rule), theta, begun)
        return self._doubted(self._in_order(replace(found, em=em)))

    @property
    def _tolerance(self) -> float:
        spec = self.parameters.specification
        return tolerance_of(spec) if spec.num_dims else _TOLERANCE_EXACT

    def _makers(self, theta: Tensor, rule: Integration | None) -> tuple[NodeMaker, ...]:
        return latent_makers(self.panels, self.parameters, theta, rule)

    def _loglik(self, makers: Sequence[NodeMaker], theta: Tensor) -> LatentLoglik:
        """With nodes made for ``theta`` (Q,)."""
        nodes = latent_nodes(makers, self.parameters, theta)
        return latent_loglik(self.parameters, [maker.data for maker in makers], nodes, self.covariates)

    def _em(self, loglik: LatentLoglik, theta: Tensor) -> tuple[Tensor, tuple[float, ...]]:
        """Parameters (Q,) where EM gains little, and the log-likelihoods on the way."""
        values: list[float] = []
        for at, value in loglik.em_steps(theta, self.free):
            theta = at
            values.append(value)
            if len(values) > _EM_STEPS or (len(values) > 1 and value - values[-2] < _LITTLE):
                break
        return theta, tuple(values)

    def _climb(self, makers: tuple[NodeMaker, ...], theta: Tensor, begun: MaximumLikelihood) -> LatentFound:
        """From near the maximum to it; nodes about individuals' modes follow."""
        while True:
            for _ in range(_ROUNDS if makers[0].centred else 1):
                loglik = self._loglik(makers, theta)
                restricted = Restricted(loglik, self.free, theta)
                spread = torch.linalg.pinv(torch.nan_to_num(-begun.hessian), hermitian=True)
                there = refine_loglik(restricted, theta[self.free], spread, gradient_tolerance=self._tolerance)
                step = there.params - theta[self.free]
                settled = not makers[0].centred or float(step @ -there.hessian @ step) < _SETTLED**2
                begun, theta = _and_before(there, begun), restricted.full(there.params)
                if settled:
                    break
            finer = [maker.finer() for maker in makers]
            if settled or None in finer:
                return LatentFound(begun, theta, loglik, makers, ())
            makers = tuple(maker for maker in finer if maker is not None)

    # ------------------------------------------------------------------ what was found

    def _in_order(self, found: LatentFound) -> LatentFound:
        """The same maximum with the largest class first and positive scales."""
        theta, classes, makers = found.params, found.loglik.classes, found.makers
        if not self.keeps_labels:
            shares = found.loglik.weights @ found.loglik.log_membership(theta).exp()
            order = shares.argsort(descending=True, stable=True).tolist()
            theta = self.parameters.relabelled(theta, order)
            classes, makers = tuple(classes[c] for c in order), tuple(makers[c] for c in order)
        theta, classes = self._positive(theta, classes)
        if torch.equal(theta, found.params):
            return found
        loglik = LatentLoglik(self.parameters, classes, self.covariates)
        restricted = Restricted(loglik, self.free, theta)
        again = maximize_loglik(restricted, theta[self.free], gradient_tolerance=self._tolerance)
        maximum = _and_before(again, found.maximum)
        return replace(found, maximum=maximum, params=restricted.full(again.params), loglik=loglik, makers=makers)

    def _positive(
        self, theta: Tensor, classes: tuple[SimulatedLoglik, ...]
    ) -> tuple[Tensor, tuple[SimulatedLoglik, ...]]:
        """The same mixture without negative scales; the base variates of reversed ones are reversed with them."""
        parameters, signs, reversed_ = self.parameters, torch.ones_like(theta), []
        everyone = range(parameters.num_classes)
        for name, (column, together) in parameters.specification.mirrored.items():
            shared = any(other in parameters.common for other in together)
            for group in [everyone] if shared else [[c] for c in everyone]:
                scales = [parameters.index[parameters.of_class(c, name)] for c in group]
                at = [parameters.index[parameters.of_class(c, other)] for c in group for other in together]
                if bool((theta[scales] < 0.0).all()) and set(at) <= set(self.free.tolist()):
                    signs[at] = -1.0
                    reversed_ += [(c, column) for c in group]
        found = list(classes)
        for c in {c for c, _ in reversed_}:
            base = classes[c].nodes.base.clone()
            base[..., [column for d, column in reversed_ if d == c]] *= -1.0
            nodes = replace(classes[c].nodes, base=base)
            found[c] = SimulatedLoglik(classes[c].data, parameters.specification, nodes)
        return theta * signs, tuple(found)

    def _doubted(self, found: LatentFound) -> LatentFound:
        """Not converged where parameters run away, classes are alike or draws are few; says which."""
        few, alike = self._without_members(found), self._alike(found)
        doubts = [] if found.maximum.converged else [found.maximum.message]
        doubts += [*alike, self._undetermined(found.maximum)]
        if isinstance(found.makers[0].rule, ImportanceSampling):
            doubts.append(few_effective(effective_sample_size(found.loglik.joint(found.params))))
        maximum, doubts = found.maximum, [doubt for doubt in doubts if doubt]
        if doubts:
            maximum = replace(maximum, converged=False, message="; ".join([*doubts, *few]))
        return replace(found, maximum=maximum, degenerate=(*few, *alike))

    def _undetermined(self, maximum: MaximumLikelihood) -> str:
        """Parameters that still go far, or that a flat log-likelihood says nothing about."""
        if not (torch.isfinite(maximum.hessian).all() and torch.isfinite(maximum.gradient).all()):
            return ""
        names = [self.parameters.names[i] for i in self.free.tolist()]
        if math.isfinite(maximum.gradient_norm):
            return running_away(maximum, names, self._sizes[self.free], self._tolerance)
        scale = maximum.hessian.diagonal().abs().clamp_min(1e-300).rsqrt()
        flattest = torch.linalg.eigh(-scale[:, None] * maximum.hessian * scale).eigenvectors[:, 0].abs()
        flat = (flattest > _PART * flattest.max()).tolist()
        return f"{[name for name, part in zip(names, flat, strict=True) if part]} are not told apart by the data"

    @cached_property
    def _sizes(self) -> Tensor:
        """What counts as large in each estimated coordinate, at least, (Q,)."""
        parameters = self.parameters
        found = torch.ones(len(parameters.names), dtype=torch.float64)
        found[parameters.positions] = least_sizes(parameters.specification, self.logit)
        if self.covariates.shape[1]:
            found[parameters.odds[:, 1:]] = 1.0 / self.covariates.std(0)
        return found

    def _without_members(self, found: LatentFound) -> list[str]:
        """Classes with fewer members than parameters of their own."""
        counts = (found.loglik.weights @ found.loglik.posteriors(found.params)).tolist()
        said = []
        for c, count in enumerate(counts):
            own = sum(f"{label(c)}.{name}" not in self.held for name in self.parameters.own)
            said += [f"{label(c)} has {count:.3g} members for {own} parameters of its own"] * (count < own)
        return said

    def _alike(self, found: LatentFound) -> list[str]:
        """Groups of classes that no individual's choices tell apart."""
        groups: list[list[int]] = []
        by_class = found.loglik.by_class(found.params).unbind(1)
        for c, own in enumerate(by_class):
            near = (group for group in groups if float((by_class[group[0]] - own).abs().max()) < _ALIKE)
            group = next(near, None)
            if group is None:
                groups.append([c])
            else:
                group.append(c)
        return [f"{', '.join(map(label, group))} are alike" for group in groups if len(group) > 1]


def latent_panels(data: ChoiceData, parameters: LatentParameters) -> tuple[PanelData, ...]:
    """The data for each class, which remembers individuals' modes of its own."""
    panel = PanelData(data, parameters.specification)
    return tuple(copy(panel) for _ in range(parameters.num_classes))


def latent_makers(
    panels: Sequence[PanelData], parameters: LatentParameters, theta: Tensor, rule: Integration | None
) -> tuple[NodeMaker, ...]:
    """The same rule in every class; None: a default that serves all of them near ``theta`` (Q,)."""
    spec = parameters.specification
    if rule is None:
        found = [default_maker(panel, spec, theta[at]) for panel, at in zip(panels, parameters.positions, strict=True)]
        rule = next((maker.rule for maker in found if not maker.centred), found[0].rule)
    return tuple(NodeMaker(rule, panel, spec) for panel in panels)


def latent_nodes(makers: Sequence[NodeMaker], parameters: LatentParameters, theta: Tensor) -> list[Nodes]:
    """Each class's nodes for its parameters in ``theta`` (Q,)."""
    return [maker.nodes(theta[at]) for maker, at in zip(makers, parameters.positions, strict=True)]


def latent_loglik(
    parameters: LatentParameters, panels: Sequence[PanelData], nodes: Sequence[Nodes], covariates: Tensor
) -> LatentLoglik:
    """The log-likelihood with these nodes in the classes."""
    classes = [SimulatedLoglik(panel, parameters.specification, own) for panel, own in zip(panels, nodes, strict=True)]
    return LatentLoglik(parameters, classes, covariates)


def _and_before(maximum: MaximumLikelihood, before: MaximumLikelihood) -> MaximumLikelihood:
    """With the steps and evaluations of an earlier search counted."""
    return replace(
        maximum,
        iterations=maximum.iterations + before.iterations,
        evaluations=maximum.evaluations + before.evaluations,
    )


def _no_nodes() -> Nodes:
    return Nodes(torch.zeros(1, 1, 0, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
