"""Expectations over the mixing distribution, with derivatives: what predictions, effects and welfare stand on."""

# S situations of N individuals, J alternatives, K nodes, V coefficients, P parameters.

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mixlogit_align.distributions import (
    ImportanceSampling,
    Integration,
    MonteCarlo,
    Quadrature,
    QuasiMonteCarlo,
)
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.likelihood import Nodes, PanelData
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.nodes import NodeMaker, default_maker
from mixlogit_align.econometrics.results import MixedLogitResult
from mixlogit_align.econometrics.specification import Specification
from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.numerics.threads import in_threads

# Utilities at a time: 1 MB of doubles.
_CHUNK = 2**17
# Where a rule lies about individuals' modes and expectations are those of the population: nodes in two dimensions are
# the square of this, about as many as draws beyond.
_NODES = 32
_DRAWS = 1024
_RULES = {rule.__name__: rule for rule in (Quadrature, MonteCarlo, QuasiMonteCarlo, ImportanceSampling)}


def specification_of(model: MixedLogitModel) -> Specification:
    """That of a mixed logit; InvalidInputError for another kind of model."""
    spec: object = getattr(model, "specification", None)
    if not isinstance(spec, Specification):
        expected, hint = "a MixedLogitModel", "model.within and model.class_result(result, 1) for latent classes"
        raise InvalidInputError(explain("model", got=type(model).__name__, expected=expected, hint=hint))
    return spec


@dataclass(frozen=True, eq=False)
class Estimates:
    """What a result says of a specification.

    Attributes
    ----------
    specification : Specification
        Without heterogeneity where the parameters that describe none are infinite.
    params : Tensor, shape (P,)
        Natural parameters.
    cov : Tensor, shape (P, P)
    """

    specification: Specification
    params: Tensor
    cov: Tensor

    @classmethod
    def of(cls, model: MixedLogitModel, result: MixedLogitResult) -> Estimates:
        """Read a result of a model.

        Raises
        ------
        InvalidInputError
            If the result is of another model, or the model no :class:`MixedLogitModel`.
        """
        spec = specification_of(model)
        # names of parameters do not tell families
        if result.specification != str(spec) or tuple(result.params) != spec.names:
            raise InvalidInputError(
                explain(
                    "result",
                    got=f"{result.specification}, parameters {list(result.params)}",
                    expected=f"one of the model, {spec}, parameters {list(spec.names)}",
                    hint="the model that was fitted",
                )
            )
        params = torch.tensor(list(result.params.values()), dtype=torch.float64)
        if bool(params.isfinite().all()):
            return cls(spec, params, result.cov)
        # a gamma at the boundary: one strength for all
        (variable,) = spec.random
        mean, error = result.moments[f"{variable}.mean"], result.moment_std_errors[f"{variable}.mean"]
        value = torch.tensor([mean], dtype=torch.float64)
        return cls(Specification((variable,), {}), value, torch.tensor([[error**2]], dtype=torch.float64))

    @property
    def theta(self) -> Tensor:
        """Estimated coordinates, (P,)."""
        return self.specification.theta(self.params)


def rule_of(result: MixedLogitResult) -> Integration | None:
    """The rule with which a result was estimated, from its name; None where it was exact.

    Raises
    ------
    InvalidInputError
        If the rule cannot be told from its name: given draws.
    """
    text = result.integration.rule
    if text == "exact" or text.startswith("ClosedForm"):
        return None
    call = ast.parse(text, mode="eval").body
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in _RULES:
        named = {str(key.arg): ast.literal_eval(key.value) for key in call.keywords}
        return _RULES[call.func.id](*map(ast.literal_eval, call.args), **named)
    raise InvalidInputError(
        explain("integration", got=f"None for a result of {text}", expected="the draws again", hint="integration=")
    )


def likelihood_maker(
    data: PanelData, estimates: Estimates, result: MixedLogitResult, integration: Integration | None
) -> NodeMaker:
    """The nodes of the likelihood: those of the result's rule, or of the one given."""
    rule = integration or (rule_of(result) if estimates.specification.num_dims else None)
    if rule is None:
        return default_maker(data, estimates.specification, estimates.theta)
    return NodeMaker(rule, data, estimates.specification)


def _prior_maker(
    data: PanelData, estimates: Estimates, result: MixedLogitResult, integration: Integration | None
) -> NodeMaker:
    """Nodes over the population: the rule, or where this one lies about individuals' modes, one that does not."""
    spec = estimates.specification
    rule = integration or (rule_of(result) if spec.num_dims else None)
    if rule is None or isinstance(rule, ImportanceSampling):
        beyond = Quadrature(_NODES) if spec.num_dims == 2 else QuasiMonteCarlo("sobol", _DRAWS)
        rule = Quadrature() if spec.num_dims <= 1 else beyond
    return NodeMaker(rule, data, spec)


def coefficients(specification: Specification, params: Tensor, base: Tensor, covariates: Tensor) -> Tensor:
    """All coefficients at nodes, differentiable in the parameters.

    Parameters
    ----------
    specification : Specification
    params : Tensor, shape (P,)
        Natural.
    base : Tensor, shape (n or 1, K, M)
    covariates : Tensor, shape (n, D)

    Returns
    -------
    Tensor, shape (n or 1, K, V)
        In the order of ``specification.variables``; one row where nothing differs between individuals.
    """
    n = len(covariates) if specification.covariates else len(base)
    theta = specification.theta(params).expand(n, -1)
    constant, varying = specification.coefficients(theta, base, covariates[:n])
    return torch.cat([constant[:, None].expand(-1, base.shape[1], -1), varying.expand(n, -1, -1)], -1)


@dataclass(frozen=True, eq=False)
class _Choices:
    """Attributes of the utilities, by situation."""

    x: Tensor
    available: Tensor
    choice: Tensor
    individual: Tensor
    covariates: Tensor

    @classmethod
    def of(cls, data: ChoiceData, specification: Specification) -> _Choices:
        x = torch.stack([data.attribute(name) for name in specification.variables], -1)
        covariates = [data.covariate(name) for name in specification.covariates]
        none = data.weights.new_zeros(data.num_individuals, 0)
        return cls(x, data.available, data.choice, data.individual, torch.stack(covariates, -1) if covariates else none)

    def utilities(self, situations: Tensor, beta: Tensor) -> Tensor:
        """(s, J, K) of coefficients (s, K, V); minus infinity where not available."""
        u = torch.bmm(self.x[situations], beta.mT)
        return u.masked_fill(~self.available[situations][..., None], -torch.inf)


@dataclass(frozen=True, eq=False)
class Situations:
    """Some situations at the nodes.

    Attributes
    ----------
    x : Tensor, shape (s, J, V)
    beta : Tensor, shape (s, K, V)
    utilities : Tensor, shape (s, J, K)
    """

    x: Tensor
    beta: Tensor
    utilities: Tensor

    @cached_property
    def probabilities(self) -> Tensor:
        """(s, J, K)."""
        return torch.softmax(self.utilities, 1)

    @cached_property
    def logsum(self) -> Tensor:
        """log of the sum of exponentials of utilities, (s, K)."""
        return torch.logsumexp(self.utilities, 1)


# One function f after the other, (s, K): a backward pass goes through what this one needs, and through nothing else.
Functional = Callable[[Situations], Iterable[Tensor]]


@dataclass(frozen=True, eq=False)
class Expected:
    """Expectations of Q functions.

    Attributes
    ----------
    each : Tensor, shape (S, Q)
        Of every situation.
    total : Tensor, shape (Q,)
        Their sum, frequencies counted.
    jacobian : Tensor, shape (Q, P)
        Of the sum, in natural parameters.
    """

    each: Tensor
    total: Tensor
    jacobian: Tensor


class Expectations:
    """E[f] for every situation, over the population or given an individual's past choices.

    Parameters
    ----------
    model : MixedLogitModel
    result : MixedLogitResult
        Of this model, possibly read from a file.
    data : ChoiceData, optional
        Situations to predict; None: those of the model. Its choices are not read.
    integration : integration rule, optional
        None: the rule of the result; over the population, where that one lies about individuals' modes, quadrature up
        to two random coefficients and 1,024 Sobol draws beyond.
    conditional : bool
        Given the choices of the same individuals in the model's data.

    Raises
    ------
    InvalidInputError
        If the result is of another model, an attribute is missing, or an individual has no past.
    """

    def __init__(
        self,
        model: MixedLogitModel,
        result: MixedLogitResult,
        data: ChoiceData | None = None,
        integration: Integration | None = None,
        conditional: bool = False,
    ) -> None:
        self.estimates = Estimates.of(model, result)
        self.data = model.data if data is None else data
        self.conditional = conditional
        self.data.validate()
        spec = self.estimates.specification
        self._choices = _Choices.of(self.data, spec)
        self._past: _Choices | None = None
        if conditional:
            past = PanelData(model.data, spec)
            maker = likelihood_maker(past, self.estimates, result, integration)
            self._nodes = maker.nodes(self.estimates.theta)
            self._past, self._person = _Choices.of(model.data, spec), _matched(self.data, model.data)
        else:
            maker = _prior_maker(PanelData(self.data, spec), self.estimates, result, integration)
            self._nodes = maker.prior()
            self._person = torch.arange(self.data.num_individuals)
        self.rule = repr(maker.rule) if spec.num_dims else "exact"

    @property
    def situation_weights(self) -> Tensor:
        """Frequencies of situations, (S,)."""
        return self.data.situation_weights

    @property
    def covariates(self) -> Tensor:
        """Of means, (N, D)."""
        return self._choices.covariates

    def of(self, functional: Functional) -> Expected:
        """Evaluate.

        Parameters
        ----------
        functional : callable
            :class:`Situations` to Q tensors (s, K), differentiable.

        Returns
        -------
        Expected
        """
        parts = list(self._parts())
        each, totals, jacobians = zip(*in_threads(lambda part: self._of(functional, *part), parts), strict=True)
        back = torch.argsort(torch.cat([situations for _, situations in parts]))
        return Expected(torch.cat(each)[back], torch.stack(totals).sum(0), torch.stack(jacobians).sum(0))

    def _of(self, functional: Functional, people: Tensor, situations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :class:`Expected`, of some individuals."""
        counts = self.situation_weights[situations]
        values, slopes = [], []
        with torch.enable_grad():
            params = self.estimates.params.clone().requires_grad_(True)
            at, weight = self._at(params, people, situations)
            for function in functional(at):
                value = (function * weight).sum(-1)
                (slope,) = torch.autograd.grad(counts @ value, params, retain_graph=True, materialize_grads=True)
                slopes.append(slope)
                values.append(value.detach())
        each = torch.stack(values, 1)
        return each, counts @ each, torch.stack(slopes)

    def standard_errors(self, jacobian: Tensor) -> Tensor:
        """Delta method: of functions with derivatives (..., P)."""
        variance: Tensor = ((jacobian @ self.estimates.cov) * jacobian).sum(-1)
        return variance.sqrt()

    def _parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Individuals and their situations, few enough at a time."""
        counts = torch.bincount(self.data.individual, minlength=self.data.num_individuals)
        size = max(1, _CHUNK // (self._nodes.num * self.data.num_alternatives))
        part = (counts.cumsum(0) - counts) // size
        for p in part.unique():
            people = part == p
            yield people.nonzero()[:, 0], people[self.data.individual].nonzero()[:, 0]

    def _at(self, params: Tensor, people: Tensor, situations: Tensor) -> tuple[Situations, Tensor]:
        """Situations of some individuals at the nodes, and weights (s, K) of these."""
        choices = self._choices
        nodes = self._nodes.of(self._person[people])
        position = torch.empty(self.data.num_individuals, dtype=torch.int64)
        position[people] = torch.arange(len(people))
        own = position[choices.individual[situations]]
        beta = self._coefficients(params, nodes, choices.covariates[people])[own]
        weight = self._weights(params, nodes, people).expand(len(people), -1)[own]
        return Situations(choices.x[situations], beta, choices.utilities(situations, beta)), weight

    def _coefficients(self, params: Tensor, nodes: Nodes, covariates: Tensor) -> Tensor:
        """(n, K, V) of individuals with covariates (n, D)."""
        beta = coefficients(self.estimates.specification, params, nodes.base, covariates)
        return beta.expand(len(covariates), -1, -1)

    def _weights(self, params: Tensor, nodes: Nodes, people: Tensor) -> Tensor:
        """Of the nodes, (n or 1, K): those of the rule, times the likelihood of the past."""
        if self._past is None:
            return nodes.log_weight.exp()
        past = self._past
        person = self._person[people]
        position = torch.full((len(past.covariates),), -1)
        position[person] = torch.arange(len(person))
        own = position[past.individual]
        situations = (own >= 0).nonzero()[:, 0]
        beta = self._coefficients(params, nodes, past.covariates[person])
        u = past.utilities(situations, beta[own[situations]])
        chosen = past.choice[situations][:, None, None].expand(-1, 1, u.shape[2])
        loglik = u.gather(1, chosen)[:, 0] - torch.logsumexp(u, 1)
        total = nodes.log_weight.expand(len(person), -1).index_add(0, own[situations], loglik)
        return torch.softmax(total, 1)


def _matched(data: ChoiceData, past: ChoiceData) -> Tensor:
    """Index in ``past`` of every individual of ``data``, (N,)."""
    if not (data.is_panel and past.is_panel) and data.individuals != past.individuals:
        raise InvalidInputError(
            explain(
                "conditional",
                got="other situations, of individuals without names",
                expected="named individuals, or the situations of the model's data",
                hint="conditional=False, or individual= where the data are read",
            )
        )
    known = {label: n for n, label in enumerate(past.individuals)}
    unknown = [label for label in data.individuals if label not in known]
    if unknown:
        raise InvalidInputError(
            explain(
                "conditional",
                got=f"individual {unknown[0]!r} ({len(unknown)} such), without choices in the model's data",
                expected="individuals whose past choices the model knows",
                hint="conditional=False",
            )
        )
    return torch.tensor([known[label] for label in data.individuals])


def check_level(level: float) -> None:
    """Refuse a confidence level outside (0, 1)."""
    if not 0.0 < level < 1.0 or math.isnan(level):
        raise InvalidInputError(explain("level", got=level, expected="between 0 and 1", hint="0.95"))
