"""The search for the maximum: starting values, few draws before many, held and bounded parameters."""

# N individuals, P parameters of which Q are free.

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from mixlogit_align.distributions import ImportanceSampling
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.evidence import few_effective, running_away, tolerance_of
from mixlogit_align.econometrics.families import Random
from mixlogit_align.econometrics.likelihood import Nodes, PanelData, SimulatedLoglik
from mixlogit_align.econometrics.nodes import NodeMaker, effective_draws, enough_effective, first_maker
from mixlogit_align.econometrics.specification import TAU, Specification
from mixlogit_align.errors import ConvergenceError, InvalidInputError, explain
from mixlogit_align.inference import (
    Approach,
    Derivatives,
    MaximumLikelihood,
    Restricted,
    approach_loglik,
    maximize_loglik,
    refine_loglik,
)

# A fixed coefficient whose information falls below this share of that at zero coefficients separates the choices.
_SEPARATED = 1e-7
# Nodes about individuals' modes follow the estimates until these move by less, in standard errors; where they still
# move by more than the second when rounds end, the default rule takes more draws.
_SETTLED, _UNSETTLED = 0.05, 0.3
_ROUNDS = 3
# Families whose parameters have the units of the coefficient.
_IN_UNITS = ("normal", "uniform", "triangular", "censored_normal", "truncated_normal")
# Individuals a parameter above which the outer product of scores stands for the Hessian: with few draws, from where
# all draws go on, and with all draws, from where steps adapt it.
_ENOUGH = 5
_PLENTY = 100
# Few draws are left when two steps running gained less than this: all draws have their maximum elsewhere.
_LITTLE = 1.0

Watch = Callable[[str, int, float], None]
_Counted = TypeVar("_Counted", Approach, MaximumLikelihood)


def no_watch(stage: str, evaluations: int, loglik: float) -> None:
    """Watch nothing."""


@dataclass
class _Watched:
    """A log-likelihood that reports every evaluation."""

    loglik: SimulatedLoglik
    stage: str
    watch: Watch
    outer_product: bool = False
    evaluations: int = 0

    def gradient(self, params: Tensor) -> tuple[float, Tensor]:
        """Log-likelihood and gradient (P,)."""
        found = self.loglik.gradient(params)
        self._seen(found[0])
        return found

    def derivatives(self, params: Tensor) -> Derivatives:
        """Log-likelihood, gradient and Hessian, or what stands for it."""
        found = self.loglik.outer_product(params) if self.outer_product else self.loglik.derivatives(params)
        self._seen(found.value)
        return found

    def _seen(self, value: float) -> None:
        self.evaluations += 1
        self.watch(self.stage, self.evaluations, value)


@dataclass(frozen=True)
class Logit:
    """The conditional logit: the same variables, no heterogeneity.

    Attributes
    ----------
    coefficients : dict of str to float
    std_errors : dict of str to float
    """

    coefficients: dict[str, float]
    std_errors: dict[str, float]


def fit_logit(data: ChoiceData, specification: Specification, device: torch.device | None) -> Logit:
    """Fit the conditional logit of all variables.

    Raises
    ------
    ConvergenceError
        If there is no finite maximum: variables separate the choices, or are collinear.
    """
    plain = Specification(specification.variables, {})
    loglik = SimulatedLoglik(
        PanelData(data, plain, device),
        plain,
        Nodes(
            torch.zeros(1, 1, 0, dtype=torch.float64, device=device),
            torch.zeros(1, 1, dtype=torch.float64, device=device),
        ),
    )
    zero = torch.zeros(len(plain.names), dtype=torch.float64)
    before = -loglik.derivatives(zero).hessian
    scale = before.diagonal().clamp_min(1e-300).rsqrt()
    flat = torch.linalg.eigh(scale[:, None] * before * scale)
    hint = "leaving out one of the variables that go together, or a constant for each alternative but one"
    if float(flat.eigenvalues[0]) < 1e-12:
        raise ConvergenceError(_not_identified(plain, flat.eigenvectors[:, 0], "nothing: they are collinear", hint))
    found = maximize_loglik(loglik, zero)
    # information left at the maximum, as a share of that at 0, along its weakest direction
    half = torch.linalg.cholesky(before)
    inner = torch.linalg.solve_triangular(half, -found.hessian, upper=False)
    share = torch.linalg.eigh(torch.linalg.solve_triangular(half, inner.T, upper=False))
    if not found.converged or float(share.eigenvalues[0]) < _SEPARATED:
        direction = torch.linalg.solve_triangular(half.T, share.eigenvectors[:, :1], upper=True)[:, 0] / scale
        got = f"no finite maximum of the conditional logit ({found.message}): they separate the choices"
        raise ConvergenceError(_not_identified(plain, direction, got, "leaving out a variable, or more data"))
    errors = torch.linalg.inv(-found.hessian).diagonal().sqrt()
    return Logit(
        dict(zip(plain.names, found.params.tolist(), strict=True)), dict(zip(plain.names, errors.tolist(), strict=True))
    )


def _not_identified(specification: Specification, direction: Tensor, got: str, hint: str) -> str:
    size = direction.abs() / direction.abs().max()
    names = [name for name, share in zip(specification.names, size.tolist(), strict=True) if share > 0.1]
    expected = "variables whose coefficients the choices tell apart"
    return explain(f"coefficients of {names}", got=got, expected=expected, hint=hint)


def starting_values(data: ChoiceData, specification: Specification, logit: Logit) -> dict[str, float]:
    """Natural parameters to begin with: the conditional logit, with moderate heterogeneity of the same mean.

    Parameters
    ----------
    data : ChoiceData
    specification : Specification
    logit : Logit

    Returns
    -------
    dict of str to float
    """
    price = specification.wtp_space
    coefficients = dict(logit.coefficients)
    if price is not None:
        coefficients = {
            name: value if name == price else -value / coefficients[price] for name, value in coefficients.items()
        }
    found = dict.fromkeys(specification.names, 0.0)
    found.update({name: coefficients[name] for name in specification.fixed})
    errors = _errors(specification, logit)
    for name, random in specification.random.items():
        if random.start is not None:
            first, second = random.start
        else:
            first, second = _start(random, random.sign * coefficients[name], errors[name])
        found[f"{name}.{random.parameters[0]}"] = first
        second_name = f"{name}.{random.parameters[1]}"
        found[second_name if second_name in found else f"chol.{name}.{name}"] = second
    if specification.scale_heterogeneity:
        found[TAU] = 0.5
    return found


def _errors(specification: Specification, logit: Logit) -> dict[str, float]:
    """Standard errors of the logit's coefficients, of willingness to pay with the price held in WTP space."""
    price = specification.wtp_space
    unit = 1.0 if price is None else abs(logit.coefficients[price])
    return {name: error if name == price else error / unit for name, error in logit.std_errors.items()}


def least_sizes(specification: Specification, logit: Logit) -> Tensor:
    """What counts as large in each estimated coordinate, at least.

    Parameters
    ----------
    specification : Specification
    logit : Logit

    Returns
    -------
    Tensor, shape (P,)
        A standard error of the conditional logit's coefficient; 1 for logarithms and what an exponential is taken of.
    """
    errors = _errors(specification, logit)
    sizes = {name: errors.get(name, 1.0) for name in specification.names}
    for name, random in specification.random.items():
        if random.family in _IN_UNITS:
            own = tuple(f"{name}.{parameter}" for parameter in random.parameters)
            parts = (*own, f"{own[0]}:", f"chol.{name}.")
            sizes |= {key: errors[name] for key in sizes if key.startswith(parts) and key not in specification.logged}
    return torch.tensor(list(sizes.values()), dtype=torch.float64)


def _start(random: Random, value: float, error: float) -> tuple[float, float]:
    """Two parameters whose mean is about ``value``, a fixed coefficient with its standard error."""
    family = random.family
    if family in _IN_UNITS and family != "truncated_normal":
        return value, max(0.5 * abs(value), 2.0 * error)
    if family == "johnson_sb":
        low, high = random.limits
        share = min(max((value - low) / (high - low), 0.1), 0.9)
        return math.log(share / (1.0 - share)), 1.0
    if family == "truncated_normal":
        low, high = random.limits
        return min(max(value, low), high), max(0.5 * abs(value), 2.0 * error)
    positive = max(value, error)  # of the wrong sign: small, and the fit says where it goes
    if family == "lognormal":
        return math.log(positive) - 0.125, 0.5
    return 4.0, 4.0 / positive


@dataclass(frozen=True)
class Found:
    """Where a search ended.

    Attributes
    ----------
    maximum : MaximumLikelihood
        In the free coordinates.
    params : Tensor, shape (P,)
        Estimated coordinates, held ones included.
    free : Tensor, shape (Q,), int64
    loglik : SimulatedLoglik
        The function that was maximised.
    maker : NodeMaker
    at_bound : tuple of str
        Parameters that ended at a bound.
    evaluations, iterations : int
        Over all stages.
    """

    maximum: MaximumLikelihood
    params: Tensor
    free: Tensor
    loglik: SimulatedLoglik
    maker: NodeMaker
    at_bound: tuple[str, ...]
    evaluations: int
    iterations: int


@dataclass
class Search:
    """Maximum likelihood by stages: few nodes from far away, then all nodes from close by.

    Attributes
    ----------
    data : PanelData
    specification : Specification
    make : callable
        Parameters (P,) near the maximum to the rule that integrates.
    held : dict of str to float
        Natural parameters that do not move.
    sizes : Tensor, shape (P,)
        As :func:`least_sizes`.
    bounds : mapping of str to (float, float)
        Of natural parameters.
    watch : callable
    """

    data: PanelData
    specification: Specification
    make: Callable[[Tensor], NodeMaker]
    held: dict[str, float]
    sizes: Tensor
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    watch: Watch = no_watch
    _counts: list[int] = field(default_factory=lambda: [0, 0])

    def run(self, start: Mapping[str, float], maker: NodeMaker | None) -> Found:
        """Search from natural parameters; ``maker`` if the rule is known, else it is chosen after the first stage."""
        self._counts = [0, 0]
        at_bound: dict[str, float] = {}
        point = dict(start)
        tried = set()
        while True:
            found = self._run(point, maker, {**self.held, **at_bound})
            natural = self.specification.natural(self._oriented(found.params, {**self.held, **at_bound}))
            values = dict(zip(self.specification.names, natural.tolist(), strict=True))
            outside = {
                name: low if values[name] < low else high
                for name, (low, high) in self.bounds.items()
                if name not in self.held and not low <= values[name] <= high
            }
            state = frozenset(at_bound.items())
            released = self._released(found, at_bound) if not outside and state not in tried else None
            tried.add(state)
            if outside:
                at_bound.update(outside)
                if len(self.held) + len(at_bound) == len(values):
                    got, hint = f"a maximum beyond the bounds of all of {list(at_bound)}", "wider bounds"
                    raise InvalidInputError(explain("bounds", got=got, expected="one that is free", hint=hint))
            elif released is not None:
                del at_bound[released]
            else:
                return Found(
                    found.maximum,
                    found.params,
                    found.free,
                    found.loglik,
                    found.maker,
                    tuple(at_bound),
                    self._counts[0],
                    self._counts[1],
                )
            point = {**values, **at_bound}

    def _released(self, found: Found, at_bound: dict[str, float]) -> str | None:
        """A parameter held at its bound whose gradient points inside."""
        if not at_bound:
            return None
        _, gradient = found.loglik.gradient(found.params)
        for name, value in at_bound.items():
            low, _ = self.bounds[name]
            slope = float(gradient[self.specification.index[name]])
            if (slope if value == low else -slope) > 1e-6:
                return name
        return None

    def _run(self, start: Mapping[str, float], maker: NodeMaker | None, held: dict[str, float]) -> Found:
        names = self.specification.names
        natural = torch.tensor([{**start, **held}[name] for name in names], dtype=torch.float64)
        theta = self.specification.theta(natural)
        free = torch.tensor([i for i, name in enumerate(names) if name not in held], dtype=torch.int64)
        maker_of_few = maker.few() if maker else first_maker(self.data, self.specification)
        # scores cost no more than a gradient; of few individuals they do not tell the curvature
        cheap = self.data.num_individuals >= _ENOUGH * len(free)
        watched, coarse = self._at(maker_of_few, theta, free, "few draws")
        watched.outer_product = cheap
        begun = self._counted(maximize_loglik(coarse, theta[free], polish=False, give_up=_gains_little()))
        theta = self._oriented(coarse.full(begun.params), held)
        if maker is not None:
            return self._doubted(self._climb(maker, theta, free, -begun.hessian)[0])
        found, settled = self._climb(self.make(theta), theta, free, -begun.hessian)
        finer = None if settled else found.maker.finer()
        if finer is not None:
            found, _ = self._climb(finer, found.params, free, -found.maximum.hessian)
        return self._doubted(found)

    def _climb(self, maker: NodeMaker, theta: Tensor, free: Tensor, information: Tensor) -> tuple[Found, bool]:
        """From near the maximum to it; and whether nodes that depend on parameters have settled, with draws enough."""
        watched, restricted = self._at(maker, theta, free, repr(maker.rule))
        watched.outer_product = self.data.num_individuals >= _PLENTY * len(free)
        at = restricted.derivatives(theta[free])
        watched.outer_product = False
        self._counts[0] += 1
        if not at.finite:
            raise ConvergenceError(self._ran_away(theta))
        spread = _inverse(-at.hessian, information)
        newton = restricted.full(theta[free] + spread @ at.gradient)
        if restricted.gradient(newton[free])[0] > at.value:  # kept for the next evaluation, which begins there
            theta = newton
        for _ in range(_ROUNDS if maker.centred else 0):
            before = theta
            near = self._counted(approach_loglik(restricted, theta[free], spread, tolerance=_SETTLED / 2))
            theta, spread = restricted.full(near.params), near.covariance
            watched, restricted = self._at(maker, theta, free, repr(maker.rule))
            step = (theta - before)[free]
            if float(step @ torch.linalg.pinv(spread, hermitian=True) @ step) < _SETTLED**2:
                break
        maximum = self._counted(refine_loglik(restricted, theta[free], spread, gradient_tolerance=self._tolerance))
        found = Found(maximum, restricted.full(maximum.params), free, watched.loglik, maker, (), *self._counts)
        moved = maximum.params - theta[free]
        settled = float(moved @ -maximum.hessian @ moved) < _UNSETTLED**2
        return found, not maker.centred or (settled and enough_effective(maker, found.loglik, found.params))

    @property
    def _tolerance(self) -> float:
        return tolerance_of(self.specification)

    def _ran_away(self, theta: Tensor) -> str:
        natural = self.specification.natural(theta).tolist()
        reached = ", ".join(
            f"{name} = {value:.3g}" for name, value in zip(self.specification.names, natural, strict=True)
        )
        return explain(
            "search",
            got=f"{reached}, where the log-likelihood is not finite",
            expected="a maximum at parameters that utilities can be computed from",
            hint="bounds= or start= for the parameters that ran away, or fewer random coefficients",
        )

    def _doubted(self, found: Found) -> Found:
        """Not converged where parameters run away, or importance sampling rests on next to no draws."""
        if not found.maximum.converged:
            return found
        names = [self.specification.names[i] for i in found.free.tolist()]
        message = running_away(found.maximum, names, self.sizes[found.free], self._tolerance)
        if not message and isinstance(found.maker.rule, ImportanceSampling):
            message = few_effective(effective_draws(found.loglik, found.params))
        return replace(found, maximum=replace(found.maximum, converged=False, message=message)) if message else found

    def _at(self, maker: NodeMaker, theta: Tensor, free: Tensor, stage: str) -> tuple[_Watched, Restricted]:
        """The log-likelihood with nodes made for ``theta``, of all parameters and of the free ones."""
        watched = _Watched(SimulatedLoglik(self.data, self.specification, maker.nodes(theta)), stage, self.watch)
        return watched, Restricted(watched, free, theta)

    def _counted(self, found: _Counted) -> _Counted:
        self._counts[0] += found.evaluations
        self._counts[1] += found.iterations
        return found

    def _oriented(self, theta: Tensor, held: dict[str, float]) -> Tensor:
        """Scales made positive: a reversed base variate is as good a draw."""
        theta = theta.clone()
        index = self.specification.index
        for name, (_, together) in self.specification.mirrored.items():
            if float(theta[index[name]]) < 0.0 and not set(together) & set(held):
                for other in together:
                    theta[index[other]] *= -1.0
        return theta


def _gains_little() -> Callable[[Tensor, float], bool]:
    """Whether the log-likelihood rose by little in the last two steps; a step refused does not count."""
    logliks: list[float] = []

    def little(params: Tensor, loglik: float) -> bool:
        if not logliks or loglik > logliks[-1]:
            logliks.append(loglik)
        return len(logliks) > 2 and logliks[-1] - logliks[-3] < 2 * _LITTLE and logliks[-1] - logliks[-2] < _LITTLE

    return little


def _inverse(*information: Tensor) -> Tensor:
    """Inverse of the first matrix that is positive definite, else of the last one's positive part."""
    for matrix in information:
        factor, failed = torch.linalg.cholesky_ex(torch.nan_to_num(matrix))
        if not failed:
            inverse: Tensor = torch.cholesky_inverse(factor)
            return inverse
    pseudo: Tensor = torch.linalg.pinv(torch.nan_to_num(information[-1]), hermitian=True)
    return pseudo


def check_names(what: str, given: Mapping[str, object], specification: Specification) -> None:
    """Refuse values for parameters that the model does not have."""
    unknown = [name for name in given if name not in specification.index]
    if unknown:
        raise InvalidInputError(
            explain(what, got=unknown, expected=f"parameters of {list(specification.names)}", hint=f"{what}=None")
        )
