"""Choices of individuals whose coefficients are known."""

# N individuals, T situations each, S situations in all, J alternatives, V attributes.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.estimation import check_names
from mixlogit_align.econometrics.families import Random
from mixlogit_align.econometrics.specification import Specification
from mixlogit_align.errors import InvalidInputError, explain, require_count

if TYPE_CHECKING:
    import pandas as pd

# The attribute of a scalar strength, where none is named.
_ATTRIBUTE = "x"
# Of the long table, beside the attributes.
_COLUMNS = ("individual", "situation", "alternative", "choice")


@dataclass(frozen=True, eq=False)
class SimulatedChoices:
    """Choices, and the truth behind them.

    Attributes
    ----------
    data : ChoiceData
        What an estimator may see.
    coefficients : dict of str to torch.Tensor, shape (N,), float64
        Of each individual, as drawn, by attribute: what multiplies the attribute in utility (in WTP space too).
    params : dict of str to float
        The natural parameters they were drawn from; empty where the truth was given as a distribution.
    """

    data: ChoiceData
    coefficients: dict[str, Tensor]
    params: dict[str, float]

    @property
    def strength(self) -> Tensor:
        """The only coefficient of each individual, (N,).

        Raises
        ------
        InvalidInputError
            If there are several.
        """
        return self.coefficients[self._only()]

    @property
    def attributes(self) -> Tensor:
        """The attribute that the strength multiplies, (N, T, J); raises as :attr:`strength`, :attr:`choice` do."""
        return self._rows(self.data.attribute(self._only()))

    @property
    def choice(self) -> Tensor:
        """Index of the alternative chosen, (N, T).

        Raises
        ------
        InvalidInputError
            If individuals face different numbers of situations.
        """
        return self._rows(self.data.choice)

    @property
    def frame(self) -> pd.DataFrame:
        """Long table: individual, situation, alternative, the attributes, choice; one row an available alternative.

        Weights and clusters of data that were given are not in it.

        Raises
        ------
        InvalidInputError
            If an attribute has the name of another column.
        """
        import pandas as pd

        data = self.data
        taken = [name for name in data.variables if name in _COLUMNS]
        if taken:
            expected = f"names other than those of the columns {', '.join(_COLUMNS)}"
            raise InvalidInputError(explain("attributes", got=taken, expected=expected, hint="other names"))
        situation, alternative = data.available.nonzero().unbind(1)
        person = data.individual[situation].tolist()
        columns = {
            "individual": [data.individuals[n] for n in person],
            "situation": situation.numpy(),
            "alternative": [data.alternatives[j] for j in alternative.tolist()],
        }
        columns |= {name: data.attribute(name)[situation, alternative].numpy() for name in data.variables}
        return pd.DataFrame(columns | {"choice": (data.choice[situation] == alternative).long().numpy()})

    @property
    def logratios(self) -> pd.DataFrame:
        """Judged pairs, as :meth:`ChoiceData.from_logratios` reads them: annotator_id, and logratio_diff in utilities.

        One row a situation; the difference in the attribute is that of the chosen less that of the other alternative.

        Raises
        ------
        InvalidInputError
            If there are several coefficients, or situations with other than two alternatives.
        """
        import pandas as pd

        data, x = self.data, self.data.attribute(self._only())
        if data.available.shape[1] != 2 or not bool(data.available.all()):
            got = f"{data.available.shape[1]} alternatives, {int(data.available.sum(1).min())} or more available"
            raise InvalidInputError(explain("situations", got=got, expected="two in each", hint="num_alternatives=2"))
        difference = (x[:, 1] - x[:, 0]) * (2 * data.choice - 1)
        people = [data.individuals[n] for n in data.individual.tolist()]
        return pd.DataFrame({"annotator_id": people, "logratio_diff": difference.numpy()})

    def _only(self) -> str:
        if len(self.coefficients) != 1:
            raise InvalidInputError(
                explain(
                    "coefficients",
                    got=list(self.coefficients),
                    expected="one, the strength",
                    hint="coefficients[name] and data.attribute(name)",
                )
            )
        return next(iter(self.coefficients))

    def _rows(self, values: Tensor) -> Tensor:
        """(S, ...) as (N, T, ...)."""
        n, s = self.data.num_individuals, len(values)
        if s % n or not torch.equal(self.data.individual, torch.arange(n).repeat_interleave(s // n)):
            raise InvalidInputError(
                explain(
                    "situations",
                    got="different numbers of them, or individuals in turns",
                    expected="the same number for each individual, one individual after the other",
                    hint="data, whose rows are situations",
                )
            )
        return values.reshape(n, s // n, *values.shape[1:])


def simulate_choices(
    truth: TorchDistribution | Mapping[str, float],
    *,
    fixed: Sequence[str] = (),
    random: Mapping[str, str | Random | TorchDistribution] | None = None,
    correlated: bool | Sequence[Sequence[str]] = False,
    wtp_space: str | None = None,
    scale_heterogeneity: bool = False,
    data: ChoiceData | None = None,
    num_individuals: int | None = None,
    num_situations: int | None = None,
    num_alternatives: int | None = None,
    attribute: TorchDistribution | None = None,
    attributes: Mapping[str, TorchDistribution] | None = None,
    seed: int,
) -> SimulatedChoices:
    """Draw coefficients, attributes and logit choices.

    Individual n has coefficients b_n for all situations and chooses alternative j with probability
    ``softmax_j(x_ntj' b_n)``. The truth is either the distribution of a scalar strength b_n, which multiplies one
    attribute, or the natural parameters of a model, ``{"price": -1.0, "time.loc": -0.5, "time.scale": 0.8}``, with
    the arguments that :class:`MixedLogitModel` takes; its coefficients are those that the estimator assumes.

    Parameters
    ----------
    truth : pyro.distributions.TorchDistribution or mapping of str to float
        A univariate distribution of the strength, one for all (batch shape ()) or one an individual (N,); ``Delta``
        has no heterogeneity. Or every natural parameter of a model, such as ``result.params``.
    fixed, random, correlated, wtp_space, scale_heterogeneity
        The model whose parameters are given, as of :class:`MixedLogitModel`; not for a distribution.
    data : ChoiceData, optional
        Keep these attributes, choice sets, panels and weights, and draw only the choices anew: the parametric
        bootstrap. A scalar strength multiplies its only attribute.
    num_individuals, num_situations, num_alternatives : int
        N, T (1 by default: a cross-section) and J (2 by default) where ``data`` is None.
    attribute : pyro.distributions.TorchDistribution, univariate, optional
        Of the attribute ``"x"`` that a scalar strength multiplies, in units of 1/strength; short for
        ``attributes={"x": attribute}``.
    attributes : mapping of str to pyro.distributions.TorchDistribution, optional
        Distributions of attributes whose batch shape broadcasts to (N, T, J), ``Delta(torch.tensor([0.0, 1.0]))``
        for the constant of the second alternative; those of covariates of means, one value an individual, to (N,).
        Standard normal where not named.
    seed : int
        The same seed gives the same choices; torch's global generator is left as it was.

    Returns
    -------
    SimulatedChoices

    Raises
    ------
    InvalidInputError
        If a count is too small, a parameter is missing, unknown or out of its domain, a distribution has another
        shape, or an argument has no use beside the others.
    """
    read: _Strength | _Model
    if isinstance(truth, Mapping):
        _refuse("attribute=, which belongs to a strength", attribute is not None, "attributes={name: distribution}")
        read = _Model.of(truth, Specification.of(fixed, random or {}, correlated, wtp_space, scale_heterogeneity))
    else:
        model = bool(fixed or random or correlated or wtp_space or scale_heterogeneity)
        _refuse("a model beside the distribution of a strength", model, "natural parameters by name as truth")
        _refuse("attribute= and attributes=", None not in (attribute, attributes), "one of the two")
        if attribute is not None:
            attributes = {_ATTRIBUTE: attribute}
        read = _Strength.of(truth, tuple(attributes or (_ATTRIBUTE,)) if data is None else data.variables)

    counts = {
        "num_individuals": num_individuals,
        "num_situations": num_situations,
        "num_alternatives": num_alternatives,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if data is None:
            size = _size(counts)
            variates = read.variates(size[0])
            data = _design(read.variables, read.covariates, attributes or {}, size)
        else:
            used = [name for name, given in (counts | {"attributes": attributes}).items() if given is not None]
            _refuse(f"{', '.join(used)} beside data=", bool(used), "data= alone, which has all of them")
            variates = read.variates(data.num_individuals)
        data.validate(read.variables)
        coefficients = read.coefficients(variates, [data.covariate(name) for name in read.covariates])
        x = torch.stack([data.attribute(name) for name in read.variables], -1)
        utilities = (x * coefficients[data.individual][:, None]).sum(-1)
        choice = dist.Categorical(logits=utilities.masked_fill(~data.available, -torch.inf)).sample()
    return SimulatedChoices(
        data=replace(data, choice=choice),
        coefficients=dict(zip(read.variables, coefficients.unbind(1), strict=True)),
        params=read.params,
    )


@dataclass(frozen=True)
class _Strength:
    """A scalar strength of any distribution."""

    mixing: TorchDistribution
    variables: tuple[str, ...]
    covariates = ()

    @classmethod
    def of(cls, mixing: TorchDistribution, variables: tuple[str, ...]) -> _Strength:
        if len(variables) != 1:
            hint = "natural parameters by name as truth, or data with this attribute alone"
            raise InvalidInputError(
                explain("attributes", got=list(variables), expected="one, which the strength multiplies", hint=hint)
            )
        return cls(mixing, variables)

    @property
    def params(self) -> dict[str, float]:
        return {}

    def variates(self, n: int) -> Tensor:
        """The strengths themselves, (N, 1)."""
        shape = tuple(self.mixing.shape())
        if shape not in ((), (n,)):
            raise InvalidInputError(
                explain(
                    "truth",
                    got=f"shape {shape}",
                    expected=f"a univariate distribution of batch shape () or ({n},)",
                    hint="one set of parameters for all individuals, or one for each",
                )
            )
        strength: Tensor = self.mixing.expand(torch.Size((n,))).sample()
        return strength.to(torch.float64)[:, None]

    def coefficients(self, variates: Tensor, covariates: Sequence[Tensor]) -> Tensor:
        return variates


@dataclass(frozen=True)
class _Model:
    """A specification and its parameters."""

    specification: Specification
    params: dict[str, float]

    @classmethod
    def of(cls, truth: Mapping[str, float], spec: Specification) -> _Model:
        check_names("truth", truth, spec)
        missing = [name for name in spec.names if name not in truth]
        if missing:
            got, hint = f"no {missing}", f"a mapping of {list(spec.names)}"
            raise InvalidInputError(explain("truth", got=got, expected="every parameter of the model", hint=hint))
        params = {name: float(truth[name]) for name in spec.names}
        for name, value in params.items():
            positive = name in spec.logged
            if not math.isfinite(value) or (name in spec.scales and value < 0.0) or (positive and value <= 0.0):
                least = "a positive number" if positive else "0 or more" if name in spec.scales else "a finite number"
                raise InvalidInputError(explain(f"truth[{name!r}]", got=value, expected=least, hint="1.0"))
        return cls(spec, params)

    @property
    def variables(self) -> tuple[str, ...]:
        return self.specification.variables

    @property
    def covariates(self) -> tuple[str, ...]:
        return self.specification.covariates

    def variates(self, n: int) -> Tensor:
        """Independent standard normals, (N, 1, M)."""
        return torch.randn(n, 1, self.specification.num_dims, dtype=torch.float64)

    def coefficients(self, variates: Tensor, covariates: Sequence[Tensor]) -> Tensor:
        """Those of individuals, (N, V); covariates are columns (N,)."""
        spec, n = self.specification, len(variates)
        theta = spec.theta(torch.tensor(list(self.params.values()), dtype=torch.float64)).expand(n, -1)
        base = spec.base_of_normal(variates) if spec.num_dims else variates
        known = torch.stack(list(covariates), 1) if covariates else variates.new_zeros(n, 0)
        constant, varying = spec.coefficients(theta, base, known)
        return torch.cat([constant, varying[:, 0]], 1)


def _refuse(what: str, given: bool, hint: str) -> None:
    if given:
        raise InvalidInputError(explain("arguments", got=what, expected="arguments that go together", hint=hint))


def _size(counts: Mapping[str, int | None]) -> torch.Size:
    """(N, T, J)."""
    least = {"num_individuals": 1, "num_situations": 1, "num_alternatives": 2}
    found = []
    for name, given in counts.items():
        count = least[name] if given is None and name != "num_individuals" else given
        hint = "data=, if the attributes are there" if count is None else None
        found.append(require_count(name, count, least[name], hint=hint))
    return torch.Size(found)


def _design(
    variables: Sequence[str],
    covariates: Sequence[str],
    attributes: Mapping[str, TorchDistribution],
    size: torch.Size,
) -> ChoiceData:
    """Attributes drawn, and no choices yet."""
    names = [*variables, *(name for name in covariates if name not in variables)]
    unknown = [name for name in attributes if name not in names]
    if unknown:
        hint = "the names of coefficients and of covariates of means"
        raise InvalidInputError(explain("attributes", got=unknown, expected=f"some of {names}", hint=hint))
    n, t, j = size
    normal = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    columns = []
    for name in names:
        shape = size if name in variables else size[:1]
        given = attributes.get(name, normal)
        if given.event_shape or not _broadcasts(given.batch_shape, shape):
            raise InvalidInputError(
                explain(
                    f"attributes[{name!r}]",
                    got=f"shape {tuple(given.shape())}",
                    expected=f"a univariate distribution whose batch shape broadcasts to {tuple(shape)}",
                    hint="batch shape ()",
                )
            )
        values = given.expand(shape).sample().to(torch.float64)
        columns.append(values if name in variables else values[:, None, None].expand(size))
    return ChoiceData(
        attributes=torch.stack(columns, -1).flatten(0, 1),
        available=torch.ones(n * t, j, dtype=torch.bool),
        choice=torch.zeros(n * t, dtype=torch.int64),
        individual=torch.arange(n).repeat_interleave(t),
        weights=torch.ones(n, dtype=torch.float64),
        variables=tuple(names),
        alternatives=tuple(range(j)),
        individuals=tuple(range(n)),
        is_panel=t > 1,
    )


def _broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    tail = target[len(target) - len(shape) :]
    return len(shape) <= len(target) and all(size in (1, whole) for size, whole in zip(shape, tail, strict=True))
