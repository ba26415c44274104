"""The mixed logit model of choices, estimated by maximum likelihood."""

# N individuals, T situations of an individual, J alternatives, K draws, P parameters.

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from mixlogit_align.distributions import ImportanceSampling, Integration, Quadrature
from mixlogit_align.econometrics.cov_types import check_cov_type, covariance_or_doubt
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.estimation import (
    Found,
    Logit,
    Search,
    Watch,
    check_names,
    fit_logit,
    least_sizes,
    no_watch,
    starting_values,
)
from mixlogit_align.econometrics.families import Random
from mixlogit_align.econometrics.integration_error import IntegrationError
from mixlogit_align.econometrics.likelihood import Nodes, PanelData, SimulatedLoglik
from mixlogit_align.econometrics.nodes import NodeMaker, default_maker, effective_draws
from mixlogit_align.econometrics.reported import reported
from mixlogit_align.econometrics.results import IntegrationReport, MixedLogitResult, Optimum
from mixlogit_align.econometrics.specification import Specification
from mixlogit_align.econometrics.strength import StrengthModel
from mixlogit_align.errors import ConvergenceError, ConvergenceWarning, InvalidInputError, explain, require_count
from mixlogit_align.inference import (
    Restricted,
    refine_loglik,
)
from mixlogit_align.numerics.threads import own_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

# How far a random start goes: standard deviations of locations, and of the logarithm of scales.
_JITTER = 1.0


class MixedLogitModel:
    """Mixed logit: fixed coefficients, and random ones of any family of :class:`Random`, independent or correlated.

    Individual n chooses alternative j of situation t with probability ``softmax_j(x_ntj' b_n)``; in a panel b_n is
    one for all situations of an individual. Without random coefficients this is the conditional logit. Attributes
    of the data without a coefficient are left out, and the result's summary names them.

    A single random coefficient and nothing else goes through the exact distributions (:class:`MixedLogit`,
    :class:`PanelMixedLogit`, :class:`MixedMultinomialLogit`), where these know its family.

    Parameters
    ----------
    data : ChoiceData
    fixed : sequence of str
        Attributes with one coefficient for all; alternative-specific constants come from
        :meth:`ChoiceData.with_constants`.
    random : mapping of str to specification
        ``{"time": "normal", "cost": "-lognormal", "x": Random("normal", mean_covariates=("income",))}``, or for a
        scalar strength a Pyro distribution.
    correlated : bool or sequence of sequences of str
        True: all random coefficients, by the Cholesky factor of their latents' covariance; or blocks of them.
    wtp_space : str, optional
        The price. Every other coefficient is then a willingness to pay w_x, ``b_x = -b_price w_x``; the price's is
        fixed or random (``"-lognormal"``).
    scale_heterogeneity : bool
        Multiply all coefficients by ``exp(tau z - tau^2 / 2)``, z ~ N(0, 1), one an individual.

    Raises
    ------
    InvalidInputError
        For an unknown variable or family, a variable twice, a constant attribute, or a specification that does not
        fit together.
    """

    def __init__(
        self,
        data: ChoiceData,
        fixed: Sequence[str] = (),
        random: Mapping[str, str | Random | TorchDistribution] | None = None,
        correlated: bool | Sequence[Sequence[str]] = False,
        *,
        wtp_space: str | None = None,
        scale_heterogeneity: bool = False,
    ) -> None:
        self.data = data
        self.specification = Specification.of(fixed, random or {}, correlated, wtp_space, scale_heterogeneity)
        data.validate(self.specification.variables)
        for covariate in self.specification.covariates:
            data.covariate(covariate)
        self._strength = self._scalar_strength()

    def _scalar_strength(self) -> StrengthModel | None:
        spec = self.specification
        if spec.fixed or len(spec.random) != 1 or spec.all_vary or not (self.data.is_binary or not self.data.is_panel):
            return None
        ((variable, random),) = spec.random.items()
        return StrengthModel(self.data, variable, random) if random.is_scalar_strength else None

    @classmethod
    def from_formula(
        cls,
        formula: str,
        frame: pd.DataFrame,
        *,
        alternative: str,
        situation: str,
        individual: str | None = None,
        random: Mapping[str, str | Random] | None = None,
        correlated: bool | Sequence[Sequence[str]] = False,
        wtp_space: str | None = None,
        scale_heterogeneity: bool = False,
        availability: str | None = None,
        weights: str | None = None,
        clusters: Sequence[str] = (),
        base: Any = None,
    ) -> MixedLogitModel:
        """Read data and coefficients from a formula ``"choice ~ price + time | income"``.

        Parameters
        ----------
        formula : str
            Choice column, attributes of alternatives and, after the bar, variables of the individual, one
            coefficient for each alternative but the base; as in
            :func:`mixlogit_align.econometrics.formula.data_from_formula`.
        frame : pandas.DataFrame
            Long.
        random, correlated, wtp_space, scale_heterogeneity
            As of the class; a term that is not in ``random`` has a fixed coefficient.
        alternative, situation, individual, availability, weights, clusters, base
            As in :meth:`ChoiceData.from_long` and :meth:`ChoiceData.with_constants`.

        Returns
        -------
        MixedLogitModel
        """
        from mixlogit_align.econometrics.formula import data_from_formula

        specs = {name: Random.of(spec) for name, spec in (random or {}).items()}
        data, names = data_from_formula(
            formula,
            frame,
            alternative=alternative,
            situation=situation,
            individual=individual,
            availability=availability,
            weights=weights,
            clusters=clusters,
            base=base,
            others=sorted({c for spec in specs.values() for c in spec.mean_covariates}),
        )
        unknown = [name for name in specs if name not in names]
        if unknown:
            raise InvalidInputError(
                explain("random", got=unknown, expected=f"terms of the formula: {names}", hint="adding them to it")
            )
        return cls(
            data,
            [name for name in names if name not in specs],
            specs,
            correlated,
            wtp_space=wtp_space,
            scale_heterogeneity=scale_heterogeneity,
        )

    def with_data(self, data: ChoiceData) -> MixedLogitModel:
        """The same specification on other data.

        Parameters
        ----------
        data : ChoiceData

        Returns
        -------
        MixedLogitModel

        Raises
        ------
        InvalidInputError
            As of the class.
        """
        return MixedLogitModel(data, **self.specification.arguments)

    # ------------------------------------------------------------------ the likelihood at given parameters

    def loglik(self, at: Mapping[str, float] | TorchDistribution, integration: Integration | None = None) -> Tensor:
        """Log-likelihood of each individual.

        Parameters
        ----------
        at : mapping of str to float, or TorchDistribution
            Natural parameters, all of them; or, for a scalar strength, any mixing distribution of batch shape ().
        integration : integration rule, optional

        Returns
        -------
        torch.Tensor, shape (N,)
            Frequencies not counted.
        """
        if not isinstance(at, Mapping):
            if self._strength is None:
                raise InvalidInputError(
                    explain("at", got=repr(at), expected="natural parameters", hint="result.params")
                )
            return self._strength.loglik(at, integration)
        loglik, theta = self._simulated(at, integration)
        return loglik.values(theta)

    def scores(self, at: Mapping[str, float], integration: Integration | None = None) -> Tensor:
        """Score of each individual in natural parameters.

        Parameters
        ----------
        at : mapping of str to float
        integration : integration rule, optional

        Returns
        -------
        torch.Tensor, shape (N, P)
        """
        loglik, theta = self._simulated(at, integration)
        _, scores = loglik.scores(theta)
        return scores / self._slopes(theta)

    def _simulated(self, at: Mapping[str, float], integration: Integration | None) -> tuple[SimulatedLoglik, Tensor]:
        spec = self.specification
        check_names("at", at, spec)
        missing = [name for name in spec.names if name not in at]
        if missing:
            raise InvalidInputError(explain("at", got=f"no {missing}", expected="all parameters", hint="result.params"))
        theta = spec.theta(torch.tensor([float(at[name]) for name in spec.names], dtype=torch.float64))
        data = PanelData(self.data, spec)
        maker = NodeMaker(integration, data, spec) if integration else default_maker(data, spec, theta)
        return SimulatedLoglik(data, spec, maker.nodes(theta)), theta

    def _slopes(self, theta: Tensor) -> Tensor:
        """d natural / d estimated coordinate, (P,)."""
        return torch.where(self.specification._log_mask, self.specification.natural(theta), 1.0)

    # ------------------------------------------------------------------ estimation

    def fit(
        self,
        *,
        integration: Integration | None = None,
        cov_type: str = "hessian",
        start: Mapping[str, float] | None = None,
        hold: Mapping[str, float] | None = None,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        num_starts: int = 1,
        num_redraws: int = 4,
        num_replications: int = 200,
        seed: int = 0,
        progress: bool = False,
        device: str | torch.device | None = None,
    ) -> MixedLogitResult:
        """Maximise the log-likelihood.

        From the conditional logit, with few draws first. Scales are estimated with either sign and reported
        positive, the base draws reversed with them (except in a column of ``chol`` of which another entry is held), so
        that no heterogeneity is no boundary of the search; the parameters of gamma and the scale of truncated_normal
        are estimated by their logarithms.

        Parameters
        ----------
        integration : integration rule, optional
            None: quadrature for one random coefficient (and two in a cross-section where affordable),
            Laplace-centred importance sampling for panels where effective sample sizes allow, quasi-random draws
            else; the result says which.
        cov_type : str
            "hessian", "bhhh", "robust", "clustered(column)" or "bootstrap" (individuals redrawn, refitted); scores
            are those of individuals.
        start : mapping, optional
            Natural parameters at which to start; those not named start as by default.
        hold : mapping, optional
            Parameters that keep the given values.
        bounds : mapping of str to (low, high), optional
            Of natural parameters; one that ends at a bound is held there and has no standard error.
        num_starts : int
            More than 1: further random starts; every optimum found is in ``result.optima``, the best is the result.
        num_redraws : int
            Fresh draws from which ``simulation_sd`` is computed, a Newton step each; a rule without draws is compared
            with more nodes, once. 0: neither it nor ``simulation_bias``, from half the draws, is computed.
        num_replications : int
            Of the bootstrap.
        seed : int
            Of random starts and the bootstrap.
        progress : bool
            Show stages, evaluations and the log-likelihood.
        device : str or torch.device, optional
            Where the likelihood is computed, "cuda" for instance; same numbers to rounding.

        Returns
        -------
        MixedLogitResult

        Warns
        -----
        ConvergenceWarning
            If the evidence of convergence is incomplete.
        IntegrationWarning
            If the rule that was chosen here leaves an estimate uncertain by more than half a standard error.

        Raises
        ------
        InvalidInputError
            If an argument does not fit the model.
        ConvergenceError
            If the conditional logit has no finite maximum, so that neither has the mixed one; or if the search ran to
            where the log-likelihood is not finite.

        Notes
        -----
        Uses as many threads as torch does, ``torch.set_num_threads``.
        """
        check_cov_type(cov_type, self.data)
        require_count("num_starts", num_starts)
        require_count("num_redraws", num_redraws, 0)
        require_count("num_replications", num_replications, 2)
        plain = not hold and not bounds and num_starts == 1 and device is None and cov_type != "bootstrap"
        if self._strength is not None and plain and not isinstance(integration, ImportanceSampling):
            with own_threads(), _watching(progress) as watch:
                return self._strength.fit(
                    integration=integration, cov_type=cov_type, start=start, num_redraws=num_redraws, watch=watch
                )

        spec, held = self.specification, self._held(hold)
        place = None if device is None else _device(device)
        with own_threads(), _watching(progress) as watch:
            data = PanelData(self.data, spec, place)
            logit = fit_logit(self.data, spec, place)
            first = self._start(start, starting_values(self.data, spec, logit))
            sizes, limits = least_sizes(spec, logit), self._bounds(bounds, held)
            search = Search(data, spec, lambda theta: default_maker(data, spec, theta), held, sizes, limits, watch)
            known = integration or (None if spec.num_dims else Quadrature())
            maker = None if known is None else NodeMaker(known, data, spec)
            runs: list[Found] = []
            nowhere: dict[int, Exception] = {}
            for i in range(num_starts):
                begin = self._jittered(first, logit.std_errors, seed + i) if i else first
                try:
                    runs.append(search.run(begin, runs[0].maker if runs else maker))
                except (ConvergenceError, InvalidInputError) as error:
                    nowhere[i] = error
            if not runs:
                raise nowhere[0]
            best = max(runs, key=lambda run: (run.maximum.converged, run.maximum.loglik))
            ends = [self._optimum(run) for run in runs] if num_starts > 1 else []
            if nowhere:
                first_of_them = next(iter(nowhere.values()))
                warnings.warn(
                    f"{len(nowhere)} of {num_starts} starts led nowhere; one of them: {first_of_them}",
                    ConvergenceWarning,
                    stacklevel=2,
                )
            signs = _other_signs(spec, logit)
            result = self._result(best, ends, held, cov_type, num_redraws, num_replications, seed, signs)
        return result.told_if_coarse() if integration is None else result

    def _held(self, hold: Mapping[str, float] | None) -> dict[str, float]:
        held = {name: float(value) for name, value in (hold or {}).items()}
        check_names("hold", held, self.specification)
        for name, value in held.items():
            least = 0.0 if name in self.specification.scales else -math.inf
            strictly = name in self.specification.logged
            if not math.isfinite(value) or value < least or (strictly and value <= 0.0):
                raise InvalidInputError(
                    explain(f"hold[{name!r}]", got=value, expected="a finite value of this parameter", hint="1.0")
                )
        if len(held) == len(self.specification.names):
            raise InvalidInputError(
                explain("hold", got="all parameters", expected="at least one that is free", hint="model.loglik(params)")
            )
        return held

    def _bounds(
        self, bounds: Mapping[str, tuple[float, float]] | None, held: Mapping[str, float]
    ) -> dict[str, tuple[float, float]]:
        found = {name: (float(low), float(high)) for name, (low, high) in (bounds or {}).items()}
        check_names("bounds", found, self.specification)
        for name, (low, high) in found.items():
            positive = name in self.specification.scales or name in self.specification.logged
            if not low < high or (positive and high <= 0.0) or name in held:
                got = f"({low:g}, {high:g})" + (" for a held parameter" if name in held else "")
                raise InvalidInputError(
                    explain(
                        f"bounds[{name!r}]",
                        got=got,
                        expected=f"low < high{', high > 0' if positive else ''}, of a free parameter",
                        hint="hold=",
                    )
                )
        return found

    def _start(self, start: Mapping[str, float] | None, default: dict[str, float]) -> dict[str, float]:
        given = {name: float(value) for name, value in (start or {}).items()}
        check_names("start", given, self.specification)
        bad = [
            name
            for name, value in given.items()
            if not math.isfinite(value) or (name in self.specification.logged and value <= 0.0)
        ]
        if bad:
            raise InvalidInputError(
                explain(
                    "start",
                    got={name: given[name] for name in bad},
                    expected="finite values, positive where they must be",
                    hint="start=None",
                )
            )
        return {**default, **given}

    def _jittered(self, first: dict[str, float], errors: dict[str, float], seed: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed)
        noise = dict(
            zip(first, torch.randn(len(first), generator=generator, dtype=torch.float64).tolist(), strict=True)
        )
        found = {}
        for name, value in first.items():
            if name in self.specification.scales or name in self.specification.logged:
                found[name] = value * math.exp(_JITTER * noise[name])
            else:
                width = max(abs(value), errors.get(name.split(".")[0].split(":")[0], 0.0), 0.1)
                found[name] = value + _JITTER * width * noise[name]
        return found

    # ------------------------------------------------------------------ the result

    def _result(
        self,
        best: Found,
        optima: list[Optimum],
        held: dict[str, float],
        cov_type: str,
        num_redraws: int,
        num_replications: int,
        seed: int,
        signs: str,
    ) -> MixedLogitResult:
        spec = self.specification
        found = _positive(best, spec)
        maximum, theta, free = found.maximum, found.params, found.free
        natural, slopes = spec.natural(theta), self._slopes(theta)
        scores = found.loglik.scores(theta)[1].cpu()

        def refit(weights: Tensor) -> Tensor | None:
            loglik = found.loglik.weighted(weights)
            again = refine_loglik(Restricted(loglik, free, theta), theta[free], torch.linalg.inv(-maximum.hessian))
            return again.params if again.converged else None

        free_cov, doubt = covariance_or_doubt(
            cov_type, self.data, maximum, scores[:, free], refit, num_replications, seed
        )
        message = doubt if doubt and maximum.converged else maximum.message
        converged = maximum.converged and not doubt
        if not converged:
            warnings.warn(
                f"not converged: {message}. Try {signs}fewer random coefficients, another start, more draws or "
                "num_starts=5",
                ConvergenceWarning,
                stacklevel=3,
            )
        integration, simulation_sd, simulation_bias = self._integration(found, slopes, num_redraws)
        covariates = self._mean_covariates()
        return MixedLogitResult(
            **reported(
                self.data,
                maximum,
                names=spec.names,
                natural=natural,
                slopes=slopes,
                free=free,
                free_cov=free_cov,
                hessian=lambda: found.loglik.derivatives(theta).hessian,
                scores=scores,
                moments=lambda params: spec.moments(params, covariates),
                scales=spec.scales,
                logged=spec.logged,
                held={**held, **{name: float(natural[spec.index[name]]) for name in found.at_bound}},
            ),
            converged=converged,
            message=message,
            integration=integration,
            simulation_sd=simulation_sd,
            simulation_bias=simulation_bias,
            cov_type=cov_type,
            specification=str(spec),
            not_in_model=self._unused(),
            iterations=best.iterations,
            evaluations=best.evaluations,
            optima=tuple(optima),
        )

    def _unused(self, used: Sequence[str] = ()) -> tuple[str, ...]:
        """Attributes of the data without a coefficient, but for those that are ``used`` otherwise."""
        spec = self.specification
        parts = {part for name in spec.variables for part in (name, *name.split(":"))} | {*spec.covariates, *used}
        return tuple(name for name in self.data.variables if name not in parts)

    def _optimum(self, run: Found) -> Optimum:
        spec = self.specification
        natural = spec.natural(_positive(run, spec).params)
        return Optimum(
            params=dict(zip(spec.names, natural.tolist(), strict=True)),
            loglik=run.maximum.loglik,
            converged=run.maximum.converged,
        )

    def _mean_covariates(self) -> Tensor:
        weights = self.data.weights / self.data.weights.sum()
        columns = [(weights * self.data.covariate(name)).sum() for name in self.specification.covariates]
        return torch.stack(columns) if columns else torch.zeros(0, dtype=torch.float64)

    def _integration(
        self, found: Found, slopes: Tensor, num_redraws: int
    ) -> tuple[IntegrationReport, dict[str, float], dict[str, float]]:
        """How far log-likelihood and estimates move with other draws or twice the nodes, and with half the draws."""
        spec, rule, theta, free = self.specification, found.maker.rule, found.params, found.free
        if not spec.num_dims:
            return IntegrationReport(rule="exact", error=0.0, reference="no random coefficient"), {}, {}
        ess = float(effective_draws(found.loglik, theta).min()) if isinstance(rule, ImportanceSampling) else None
        redraws = range(1, num_redraws + 1) if found.maximum.converged else ()
        others = [maker for maker in map(found.maker.again, redraws) if maker is not None]

        def on(nodes: Nodes) -> Restricted:
            return Restricted(SimulatedLoglik(found.loglik.data, spec, nodes), free, theta)

        found.maker.data.modes = None  # an individual's posterior may have another mode, which a new search finds
        error = IntegrationError(rule, found.maximum, [spec.names[i] for i in free.tolist()], slopes[free])
        finer = others[0].rule if others else None
        report, spread = error.spread([on(maker.nodes(theta)) for maker in others], finer, ess)
        halves = found.maker.halves(found.loglik.nodes) if redraws else []
        return report, spread, error.bias([on(half) for half in halves])


def _other_signs(spec: Specification, logit: Logit) -> str:
    """What to try first: families of the other sign, where the conditional logit has one."""
    if spec.wtp_space is not None:
        return ""
    found = [
        f"{name}={'' if random.sign < 0 else '-'}{random.family}, since the conditional logit's coefficient is "
        f"{logit.coefficients[name]:.3g}; "
        for name, random in spec.random.items()
        if random.positive and random.sign * logit.coefficients[name] < 0.0
    ]
    return "".join(found)


def _device(device: str | torch.device) -> torch.device:
    try:
        torch.zeros((), device=device).item()
    except (RuntimeError, AssertionError) as error:
        expected = "a device that torch can compute on here"
        raise InvalidInputError(explain("device", got=repr(device), expected=expected, hint="device=None")) from error
    return torch.device(device)


def _positive(found: Found, spec: Specification) -> Found:
    """The same maximum with positive scales and the base variates of negative ones reversed."""
    theta = found.params
    signs = torch.ones_like(theta)
    base = found.loglik.nodes.base
    free = set(found.free.tolist())
    for name, (column, together) in spec.mirrored.items():
        # a held covariance keeps its sign, and with it the scale of its column
        if float(theta[spec.index[name]]) < 0.0 and free.issuperset(spec.index[other] for other in together):
            for other in together:
                signs[spec.index[other]] = -1.0
            base = base.clone()
            base[..., column] *= -1.0
    if bool((signs > 0).all()):
        return found
    own = signs[found.free]
    maximum = replace(
        found.maximum,
        params=found.maximum.params * own,
        gradient=found.maximum.gradient * own,
        hessian=own[:, None] * found.maximum.hessian * own,
    )
    nodes = replace(found.loglik.nodes, base=base)
    loglik = SimulatedLoglik(found.loglik.data, spec, nodes)
    return replace(found, params=theta * signs, maximum=maximum, loglik=loglik)


@contextmanager
def _watching(progress: bool) -> Iterator[Watch]:
    if not progress:
        yield no_watch
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns) as bar:
        tasks: dict[str, Any] = {}

        def watch(stage: str, evaluations: int, loglik: float) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=None)
            bar.update(tasks[stage], description=f"{stage}: {evaluations} evaluations, log-likelihood {loglik:.4f}")

        yield watch
