"""Latent classes: a finite mixture of logits, conditional or mixed, estimated by EM and Newton steps."""

# N individuals, C classes, D membership covariates, P parameters of a class, Q parameters in all.

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from mixlogit_align.distributions import ImportanceSampling, Integration, Quadrature
from mixlogit_align.econometrics.cov_types import check_cov_type, covariance_or_doubt
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.families import Random
from mixlogit_align.econometrics.integration_error import IntegrationError
from mixlogit_align.econometrics.latent_likelihood import LatentLoglik
from mixlogit_align.econometrics.latent_parameters import LatentParameters, label, membership_covariates
from mixlogit_align.econometrics.latent_results import LatentClassResult
from mixlogit_align.econometrics.latent_search import (
    LatentFound,
    LatentSearch,
    latent_loglik,
    latent_makers,
    latent_nodes,
    latent_panels,
)
from mixlogit_align.econometrics.latent_simulation import SimulatedClasses, draw_classes
from mixlogit_align.econometrics.likelihood import Nodes
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.nodes import NodeMaker
from mixlogit_align.econometrics.posteriors import IndividualPosteriors, individual_posteriors
from mixlogit_align.econometrics.predictions import predict
from mixlogit_align.econometrics.reported import reported
from mixlogit_align.econometrics.results import IntegrationReport, MixedLogitResult, Optimum
from mixlogit_align.errors import ConvergenceError, ConvergenceWarning, InvalidInputError, explain, require_count
from mixlogit_align.inference import Restricted, refine_loglik
from mixlogit_align.numerics.importance import effective_sample_size

# Starts, where none is given.
_STARTS = 10
# Log-likelihoods closer than this are the same.
_HIGHER = 1e-3


class LatentClassModel:
    """Latent classes: individual n belongs to class c with probability ``pi_nc = softmax_c(gamma_c' (1, z_n))``.

    Within a class choices are those of a conditional logit with coefficients of its own or, with ``random``, of a mixed
    logit. One class is the model of :class:`MixedLogitModel`. In a panel an individual belongs to one class in all
    situations.

    Parameters
    ----------
    data : ChoiceData
    fixed, random, correlated, wtp_space, scale_heterogeneity
        The model within every class, as of :class:`MixedLogitModel`.
    num_classes : int
    membership : sequence of str
        Attributes of the individual on which membership depends, beside a constant.
    common : sequence of str
        Parameters with one value for all classes, such as ``"price"`` or ``"time.scale"``.

    Raises
    ------
    InvalidInputError
        As of :class:`MixedLogitModel`; if there are fewer individuals than classes, a covariate varies within an
        individual, or covariates are collinear.
    """

    def __init__(
        self,
        data: ChoiceData,
        fixed: Sequence[str] = (),
        random: Mapping[str, str | Random | TorchDistribution] | None = None,
        correlated: bool | Sequence[Sequence[str]] = False,
        *,
        num_classes: int,
        membership: Sequence[str] = (),
        common: Sequence[str] = (),
        wtp_space: str | None = None,
        scale_heterogeneity: bool = False,
    ) -> None:
        within = MixedLogitModel(
            data, fixed, random, correlated, wtp_space=wtp_space, scale_heterogeneity=scale_heterogeneity
        )
        for name, given in (("membership", membership), ("common", common)):
            if isinstance(given, str):
                raise InvalidInputError(
                    explain(name, got=repr(given), expected="a sequence of names", hint=f"{name}=[{given!r}]")
                )
        self._set(within, LatentParameters(within.specification, num_classes, tuple(membership), tuple(common)))

    def _set(self, within: MixedLogitModel, parameters: LatentParameters) -> None:
        self.data = within.data
        self.within = within
        self.parameters = parameters
        people = self.data.num_individuals
        if parameters.num_classes > people:
            raise InvalidInputError(
                explain(
                    "num_classes",
                    got=f"{parameters.num_classes} classes of {people} individuals",
                    expected="no more classes than individuals",
                    hint="num_classes=2",
                )
            )
        self._covariates = membership_covariates(self.data, parameters.membership)

    def _like(self, within: MixedLogitModel, parameters: LatentParameters) -> LatentClassModel:
        other = object.__new__(LatentClassModel)
        other._set(within, parameters)
        return other

    def with_data(self, data: ChoiceData) -> LatentClassModel:
        """The same model of other data.

        Parameters
        ----------
        data : ChoiceData

        Returns
        -------
        LatentClassModel
        """
        return self._like(self.within.with_data(data), self.parameters)

    def with_classes(self, num_classes: int) -> LatentClassModel:
        """The same model with another number of classes.

        Parameters
        ----------
        num_classes : int

        Returns
        -------
        LatentClassModel
        """
        return self._like(self.within, replace(self.parameters, num_classes=num_classes))

    @property
    def specification(self) -> LatentParameters:
        """What the model is."""
        return self.parameters

    # ------------------------------------------------------------------ the likelihood at given parameters

    def loglik(self, at: Mapping[str, float], integration: Integration | None = None) -> Tensor:
        """Log-likelihood of each individual.

        Parameters
        ----------
        at : mapping of str to float
            Natural parameters, all of them.
        integration : integration rule, optional
            Within classes.

        Returns
        -------
        torch.Tensor, shape (N,)
            Frequencies not counted.
        """
        loglik, theta = self._at(at, integration)
        return loglik.values(theta)

    def scores(self, at: Mapping[str, float], integration: Integration | None = None) -> Tensor:
        """Score of each individual in natural parameters.

        Parameters
        ----------
        at : mapping of str to float
        integration : integration rule, optional

        Returns
        -------
        torch.Tensor, shape (N, Q)
        """
        loglik, theta = self._at(at, integration)
        return loglik.scores(theta)[1] / self._slopes(theta)

    def _at(self, at: Mapping[str, float], integration: Integration | None) -> tuple[LatentLoglik, Tensor]:
        values = self.parameters.all_of("at", at).values()
        theta = self.parameters.theta(torch.tensor(list(values), dtype=torch.float64))
        panels = latent_panels(self.data, self.parameters)
        nodes = latent_nodes(latent_makers(panels, self.parameters, theta, integration), self.parameters, theta)
        return latent_loglik(self.parameters, panels, nodes, self._covariates), theta

    def _slopes(self, theta: Tensor) -> Tensor:
        """d natural / d estimated coordinate, (Q,)."""
        return torch.where(self.parameters.logged, self.parameters.natural(theta), 1.0)

    # ------------------------------------------------------------------ estimation

    def fit(
        self,
        *,
        integration: Integration | None = None,
        cov_type: str = "hessian",
        start: Mapping[str, float] | None = None,
        hold: Mapping[str, float] | None = None,
        num_starts: int | None = None,
        num_redraws: int = 4,
        num_replications: int = 200,
        seed: int = 0,
    ) -> LatentClassResult:
        """Maximise the log-likelihood: EM from several starts, from each on to the maximum by Newton steps.

        The likelihood of a mixture has many maxima. A start puts every class near the coefficients of an individual
        drawn by lot. The best maximum that has converged is the result, and all of them are in ``result.optima``.
        Classes are numbered by their shares, the largest first, unless ``hold`` tells them apart.

        Parameters
        ----------
        integration : integration rule, optional
            Within classes; None: as :meth:`MixedLogitModel.fit` chooses, one that serves every class.
        cov_type : str
            "hessian", "bhhh", "robust", "clustered(column)" or "bootstrap" (individuals redrawn, refitted from the
            estimates); scores are those of individuals.
        start : mapping, optional
            Natural parameters at which the first start begins; those not named begin as by default.
        hold : mapping, optional
            Parameters that keep the given values: ``{"class2.price": 0.0}`` for a class that does not attend to price.
        num_starts : int, optional
            None: 1 with ``start`` or with one class, else 10.
        num_redraws : int
            Of draws within classes, for ``simulation_sd``; as of :meth:`MixedLogitModel.fit`.
        num_replications : int
            Of the bootstrap.
        seed : int
            Of starts and the bootstrap.

        Returns
        -------
        LatentClassResult

        Warns
        -----
        ConvergenceWarning
            If the evidence of convergence is incomplete, a start led nowhere, or one reached a higher log-likelihood
            without converging.
        IntegrationWarning
            If the rule that was chosen here leaves an estimate uncertain by more than half a standard error.

        Raises
        ------
        InvalidInputError
            If an argument does not fit the model, or classes are alike at the start, so that nothing tells them apart.
        ConvergenceError
            If the conditional logit of all individuals has no finite maximum; or if no start leads anywhere.
        """
        check_cov_type(cov_type, self.data)
        given, held = self.parameters.checked("start", start), self.parameters.checked("hold", hold)
        if len(held) == len(self.parameters.names):
            raise InvalidInputError(
                explain("hold", got="all parameters", expected="at least one that is free", hint="model.loglik(params)")
            )
        usual = 1 if start or self.parameters.num_classes == 1 else _STARTS
        count = usual if num_starts is None else num_starts
        require_count("num_starts", count)
        require_count("num_redraws", num_redraws, 0)
        require_count("num_replications", num_replications, 2)
        usual_rule = integration is None
        if not self.within.specification.num_dims:
            integration = Quadrature()

        search = LatentSearch(self.data, self.parameters, self._covariates, held)
        runs: list[LatentFound] = []
        nowhere: list[Exception] = []
        for i in range(count):
            begin = search.start(seed + i)
            if i == 0:
                begin = self._placed(begin, {**given, **held})
            try:
                runs.append(search.run(begin, runs[0].makers[0].rule if runs else integration))
            except (ConvergenceError, InvalidInputError) as error:
                nowhere.append(error)
        if not runs:
            raise ConvergenceError(str(nowhere[0])) from nowhere[0]
        best = max(runs, key=lambda run: (run.maximum.converged, run.maximum.loglik))
        self._warn(runs, nowhere, best)
        ends = tuple(self._optimum(run) for run in runs) if count > 1 else ()
        result = self._result(search, best, ends, held, cov_type, num_redraws, num_replications, seed)
        return result.told_if_coarse() if usual_rule else result

    def _placed(self, theta: Tensor, values: Mapping[str, float]) -> Tensor:
        """Estimated coordinates (Q,) with the given natural parameters in place."""
        parameters, natural = self.parameters, self.parameters.natural(theta)
        for name, value in values.items():
            natural[parameters.index[name]] = value
        placed = parameters.theta(natural)
        classes = placed[parameters.positions]
        for c, d in combinations(range(len(classes)), 2):
            if torch.equal(classes[c], classes[d]):
                raise InvalidInputError(
                    explain(
                        "start",
                        got=f"the same parameters in {label(c)} and {label(d)}",
                        expected="classes that differ: between classes alike no step tells one from the other",
                        hint="start=None",
                    )
                )
        return placed

    def _warn(self, runs: list[LatentFound], nowhere: list[Exception], best: LatentFound) -> None:
        said = []
        if nowhere:
            said.append(f"{len(nowhere)} of {len(runs) + len(nowhere)} starts led nowhere; one of them: {nowhere[0]}")
        if not best.maximum.converged:
            said.append(
                f"not converged: {best.maximum.message}. Try fewer classes, coefficients common to all classes, more "
                "starts or another seed"
            )
        else:
            higher = max(runs, key=lambda run: run.maximum.loglik)
            if higher.maximum.loglik > best.maximum.loglik + _HIGHER:
                said.append(
                    f"a start reached a log-likelihood of {higher.maximum.loglik:.4f}, above {best.maximum.loglik:.4f} "
                    f"of the result, without converging: {higher.maximum.message}. Try fewer classes, or more starts"
                )
        for text in said:
            warnings.warn(text, ConvergenceWarning, stacklevel=3)

    # ------------------------------------------------------------------ the result

    def _result(
        self,
        search: LatentSearch,
        found: LatentFound,
        optima: tuple[Optimum, ...],
        held: dict[str, float],
        cov_type: str,
        num_redraws: int,
        num_replications: int,
        seed: int,
    ) -> LatentClassResult:
        parameters, maximum, theta, free = self.parameters, found.maximum, found.params, search.free
        natural, slopes = parameters.natural(theta), self._slopes(theta)
        scores = found.loglik.scores(theta)[1]

        def refit(weights: Tensor) -> Tensor | None:
            restricted = Restricted(found.loglik.weighted(weights), free, theta)
            again = refine_loglik(restricted, theta[free], torch.linalg.inv(-maximum.hessian))
            return again.params if again.converged else None

        free_cov, doubt = covariance_or_doubt(
            cov_type, self.data, maximum, scores[:, free], refit, num_replications, seed
        )
        message, converged = maximum.message, maximum.converged
        if doubt and converged:
            message, converged = doubt, False
            warnings.warn(f"not converged: {message}", ConvergenceWarning, stacklevel=3)
        report, simulation_sd, simulation_bias = self._integration(search, found, slopes, num_redraws)
        return LatentClassResult(
            **reported(
                self.data,
                maximum,
                names=parameters.names,
                natural=natural,
                slopes=slopes,
                free=free,
                free_cov=free_cov,
                hessian=lambda: found.loglik.derivatives(theta).hessian,
                scores=scores,
                moments=lambda params: self._moments(found.loglik, params),
                scales=parameters.scales,
                logged=parameters.logged_names,
                held=held,
            ),
            converged=converged,
            message=message,
            integration=report,
            simulation_sd=simulation_sd,
            simulation_bias=simulation_bias,
            cov_type=cov_type,
            specification=str(parameters),
            not_in_model=self.within._unused(parameters.membership),
            iterations=maximum.iterations + len(found.em) - 1,
            evaluations=maximum.evaluations + len(found.em),
            optima=optima,
            num_classes=parameters.num_classes,
            membership=parameters.membership,
            common=parameters.common,
            prior=found.loglik.log_membership(theta).exp(),
            loglik_by_class=found.loglik.by_class(theta),
            degenerate=found.degenerate,
            em_logliks=found.em,
            individuals=self.data.individuals,
        )

    def _optimum(self, run: LatentFound) -> Optimum:
        natural = self.parameters.natural(run.params).tolist()
        params = dict(zip(self.parameters.names, natural, strict=True))
        return Optimum(params=params, loglik=run.maximum.loglik, converged=run.maximum.converged)

    def _moments(self, loglik: LatentLoglik, natural: Tensor) -> tuple[tuple[str, ...], Tensor]:
        """Shares, and the moments of random coefficients in each class, of natural parameters (Q,)."""
        weights = self.data.weights / self.data.weights.sum()
        names, values = [], []
        shares = weights @ loglik.log_membership(self.parameters.theta(natural)).exp()
        spec = self.within.specification
        covariates = torch.stack(
            [weights @ self.data.covariate(name) for name in spec.covariates] or [natural[:0].sum()]
        )
        for c, at in enumerate(self.parameters.positions):
            own_names, own = spec.moments(natural[at], covariates)
            names += [f"{label(c)}.share", *(f"{label(c)}.{name}" for name in own_names)]
            values += [shares[c : c + 1], own]
        return tuple(names), torch.cat(values)

    def _integration(
        self, search: LatentSearch, found: LatentFound, slopes: Tensor, num_redraws: int
    ) -> tuple[IntegrationReport, dict[str, float], dict[str, float]]:
        """How far log-likelihood and estimates move with other draws, more nodes or half the draws, in all classes."""
        rule, theta, free = found.makers[0].rule, found.params, search.free
        if not self.within.specification.num_dims:
            return IntegrationReport(rule="exact", error=0.0, reference="no random coefficient"), {}, {}
        ess = None
        if isinstance(rule, ImportanceSampling):
            ess = float(effective_sample_size(found.loglik.joint(theta)).min())
        rounds = range(1, num_redraws + 1 if found.maximum.converged else 1)
        others = [again for again in (self._again(found, i) for i in rounds) if again is not None]
        by_class = [
            maker.halves(part.nodes) for maker, part in zip(found.makers, found.loglik.classes, strict=True) if rounds
        ]
        for maker in found.makers:
            maker.data.modes = None  # an individual's posterior may have another mode, which a new search finds
        error = IntegrationError(rule, found.maximum, [self.parameters.names[i] for i in free.tolist()], slopes[free])

        def at(nodes: Sequence[Nodes]) -> Restricted:
            return Restricted(latent_loglik(self.parameters, search.panels, nodes, self._covariates), free, theta)

        finer = others[0][0].rule if others else None
        nodes = [latent_nodes(makers, self.parameters, theta) for makers in others]
        report, spread = error.spread([at(each) for each in nodes], finer, ess)
        return report, spread, error.bias([at(each) for each in zip(*by_class, strict=True)])

    def _again(self, found: LatentFound, redraw: int) -> list[NodeMaker] | None:
        """The rules with other draws or more nodes, if there are any."""
        makers = [maker.again(redraw) for maker in found.makers]
        known = [maker for maker in makers if maker is not None]
        return known if len(known) == len(makers) else None

    # ------------------------------------------------------------------ after the fit

    def simulate(self, at: Mapping[str, float], *, seed: int) -> SimulatedClasses:
        """Draw classes, coefficients and choices anew, all else as it is: the parametric bootstrap.

        Parameters
        ----------
        at : mapping of str to float
            Natural parameters, all of them, such as ``result.params``.
        seed : int

        Returns
        -------
        SimulatedClasses
            ``model.with_data(simulated.data).fit()`` estimates them again.
        """
        return draw_classes(self.parameters, self.data, self.parameters.all_of("at", at), seed)

    def class_result(self, result: LatentClassResult, number: int) -> MixedLogitResult:
        """One class as a result of :attr:`within`: for willingness to pay, predictions or elasticities within it.

        Estimates and their covariance are those of the whole model. The log-likelihood is that of the class, every
        individual counted with its posterior probability: for comparisons that of the whole model.

        Parameters
        ----------
        result : LatentClassResult
            Of this model.
        number : int
            1 to C.

        Returns
        -------
        MixedLogitResult
        """
        self._own(result)
        parameters, spec = self.parameters, self.within.specification
        if isinstance(number, bool) or number not in range(1, parameters.num_classes + 1):
            raise InvalidInputError(
                explain("number", got=repr(number), expected=f"1 to {parameters.num_classes}", hint="number=1")
            )
        c = number - 1
        at = parameters.positions[c]
        theirs = dict(zip(spec.names, (parameters.names[i] for i in at.tolist()), strict=True))
        prefix = f"{label(c)}."
        moments = [name for name in result.moments if name.startswith(prefix) and name != f"{prefix}share"]
        members = replace(self.data, weights=result.weights * result.posterior[:, c])

        def own(values: Mapping[str, float]) -> dict[str, float]:
            return {name: values[full] for name, full in theirs.items() if full in values}

        return MixedLogitResult(
            params=own(result.params),
            std_errors=own(result.std_errors),
            cov=result.cov[at][:, at],
            moments={name.removeprefix(prefix): result.moments[name] for name in moments},
            moment_std_errors={name.removeprefix(prefix): result.moment_std_errors[name] for name in moments},
            mixing=None,
            loglik=float(members.weights @ result.loglik_by_class[:, c]),
            null_loglik=members.null_loglik,
            converged=result.converged,
            gradient_norm=result.gradient_norm,
            hessian_eigenvalues=result.hessian_eigenvalues,
            message=f"{label(c)} of {result.num_classes}: {result.message}",
            at_boundary=result.at_boundary,
            fixed=None,
            integration=result.integration,
            simulation_sd=own(result.simulation_sd),
            simulation_bias=own(result.simulation_bias),
            cov_type=result.cov_type,
            specification=str(spec),
            not_in_model=result.not_in_model,
            held=own(result.held),
            scales=spec.scales,
            n_individuals=float(members.weights.sum()),
            nobs=float(members.situation_weights.sum()),
            iterations=result.iterations,
            evaluations=result.evaluations,
            hessian=result.hessian[at][:, at],
            scores=result.scores[:, at],
            weights=result.weights,
            optima=(),
        )

    def individual_coefficients(
        self, result: LatentClassResult, *, integration: Integration | None = None
    ) -> IndividualPosteriors:
        """Mean and standard deviation of every coefficient of every individual, given its choices.

        Over classes by their posterior probabilities, and within a class over its mixing distribution.

        Parameters
        ----------
        result : LatentClassResult
            Of this model.
        integration : integration rule, optional
            None: that of the result.

        Returns
        -------
        IndividualPosteriors
        """
        found = [
            individual_posteriors(self.within, self.class_result(result, c + 1), integration=integration)
            for c in range(self.parameters.num_classes)
        ]
        weights = [h[:, None] for h in result.posterior.unbind(1)]
        mean = sum(h * one.mean for h, one in zip(weights, found, strict=True))
        assert isinstance(mean, Tensor)
        squares = [h * (one.sd**2 + (one.mean - mean) ** 2) for h, one in zip(weights, found, strict=True)]
        positive = [h * one.positive for h, one in zip(weights, found, strict=True)]
        # effective nodes of the mixture of the classes' nodes
        concentration = [h[:, 0] ** 2 / one.effective for h, one in zip(weights, found, strict=True)]
        return replace(
            found[0],
            mean=mean,
            sd=torch.stack(squares).sum(0).sqrt(),
            positive=torch.stack(positive).sum(0),
            effective=1.0 / torch.stack(concentration).sum(0),
        )

    def probabilities(
        self,
        result: LatentClassResult,
        data: ChoiceData | None = None,
        *,
        conditional: bool = False,
        integration: Integration | None = None,
    ) -> Tensor:
        """Probabilities of the alternatives, ``P_sj = sum_c pi_nc P_sjc``.

        Parameters
        ----------
        result : LatentClassResult
            Of this model.
        data : ChoiceData, optional
            Situations to predict, covariates of membership among their attributes; choices are not read. None: the
            model's.
        conditional : bool
            Given the choices in the model's data, for further choices of the same individuals: the posterior of classes
            and, within them, of coefficients takes the place of the population's.
        integration : integration rule, optional
            As of :func:`predict`.

        Returns
        -------
        torch.Tensor, shape (S, J)
            0 where not available.

        Raises
        ------
        InvalidInputError
            As of :func:`predict`.
        """
        predicted = self.data if data is None else data
        by_class = [
            predict(
                self.within, self.class_result(result, c + 1), data, conditional=conditional, integration=integration
            ).probabilities
            for c in range(self.parameters.num_classes)
        ]
        if conditional:
            place = {name: n for n, name in enumerate(self.data.individuals)}
            share = result.posterior[[place[name] for name in predicted.individuals]]
        else:
            theta = self.parameters.theta(torch.tensor(list(result.params.values()), dtype=torch.float64))
            columns = [predicted.covariate(name) for name in self.parameters.membership]
            known = torch.stack(columns, 1) if columns else theta.new_zeros(predicted.num_individuals, 0)
            share = self.parameters.log_membership(theta, known).exp()
        return torch.einsum("csj,sc->sj", torch.stack(by_class), share[predicted.individual])

    def _own(self, result: LatentClassResult) -> None:
        if tuple(result.params) != self.parameters.names or len(result.weights) != self.data.num_individuals:
            raise InvalidInputError(
                explain(
                    "result",
                    got=f"parameters {list(result.params)} and {len(result.weights)} individuals",
                    expected=f"those of the model, {list(self.parameters.names)}, and {self.data.num_individuals}",
                    hint="the model that was fitted",
                )
            )
