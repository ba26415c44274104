"""Recovery studies: a known truth, simulated and estimated many times, in parallel and resumable."""

# N individuals, T situations each, J alternatives, R replications.

from __future__ import annotations

import inspect
import math
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution

from mixlogit_align import __version__
from mixlogit_align.distributions import Integration
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.description import describe
from mixlogit_align.econometrics.families import Random
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.results import MixedLogitResult
from mixlogit_align.econometrics.simulate import SimulatedChoices, simulate_choices
from mixlogit_align.econometrics.specification import Specification
from mixlogit_align.econometrics.study_folder import Quantity, Replication, StudyFolder
from mixlogit_align.econometrics.study_results import FIXED_STRENGTH, RecoveryStudy
from mixlogit_align.errors import (
    ConvergenceError,
    ConvergenceWarning,
    IntegrationError,
    IntegrationWarning,
    InvalidInputError,
    MixlogitError,
    explain,
    require_count,
)

# Torch's generator and the filters of warnings belong to a process, whose threads may have a replication each.
_ONE_AT_A_TIME = threading.Lock()
# Tasks a worker in one wave, for a backend that hands back whole waves only.
_WAVE = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyDesign:
    """What determines every replication.

    Attributes
    ----------
    truth : pyro.distributions.TorchDistribution or dict of str to float
    specification : Specification
        Of the model that is estimated; where the truth is a mapping, of the one that is simulated, too.
    sizes : dict of str to object
        ``data`` or ``num_individuals``, ``num_situations``, ``num_alternatives``, ``attributes``, as
        :func:`simulate_choices` takes them.
    fit : dict of str to object
        Options of :meth:`MixedLogitModel.fit`, all of them.
    seed : int
    """

    truth: TorchDistribution | Mapping[str, float]
    specification: Specification
    sizes: Mapping[str, Any]
    fit: Mapping[str, Any]
    seed: int

    def __post_init__(self) -> None:
        require_count("seed", self.seed, 0)
        if not isinstance(self.truth, Mapping):
            spec = self.specification
            if spec.fixed or len(spec.random) != 1 or spec.all_vary:
                expected = "one random coefficient, as the strength is one"
                hint = "natural parameters by name as truth"
                raise InvalidInputError(explain("model", got=str(spec), expected=expected, hint=hint))
            try:
                known = math.isfinite(_mean_sd(self.truth)[1])
            except NotImplementedError:
                known = False
            if not known:
                got, hint = f"{self.truth!r}, without moments", "a distribution that has them"
                raise InvalidInputError(explain("truth", got=got, expected="a mean and variance", hint=hint))

    # ------------------------------------------------------------------ one replication

    def check(self) -> None:
        """Raise InvalidInputError for what cannot be simulated, or does not fit together, before any work."""
        MixedLogitModel(self.simulate(0).data, **self.specification.arguments)

    def simulate(self, number: int) -> SimulatedChoices:
        """The choices of one replication.

        Parameters
        ----------
        number : int

        Returns
        -------
        SimulatedChoices
        """
        model = self.specification.arguments if isinstance(self.truth, Mapping) else {}
        return simulate_choices(self.truth, **model, **self.sizes, seed=self._seed(number))

    def replicate(self, number: int) -> Replication:
        """Simulate, estimate and compare; a fit that fails is a replication, too.

        Parameters
        ----------
        number : int

        Returns
        -------
        Replication
        """
        begun, seed = time.perf_counter(), self._seed(number)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", ConvergenceWarning)  # the result says it
            try:
                data = self.simulate(number).data
                result = MixedLogitModel(data, **self.specification.arguments).fit(**self._options(number))
                pvalue = _homogeneity(result)
            except (MixlogitError, ArithmeticError, RuntimeError) as error:
                why, seconds = f"{type(error).__name__}: {error}", time.perf_counter() - begun
                return Replication(number=number, seed=seed, seconds=seconds, failure=why, quantities={})
        return Replication(
            number=number,
            seed=seed,
            seconds=time.perf_counter() - begun,
            converged=result.converged,
            at_boundary=result.at_boundary,
            message=result.message,
            loglik=result.loglik,
            pvalue=pvalue,
            quantities=self._quantities(result, data),
            warnings=tuple(dict.fromkeys(str(warning.message) for warning in caught)),
        )

    def _seed(self, number: int) -> int:
        """Independent streams for replications, whatever the study's seed."""
        (word,) = np.random.SeedSequence(self.seed, spawn_key=(number,)).generate_state(1, np.uint64)
        return int(word) >> 1

    def _options(self, number: int) -> dict[str, Any]:
        """Draws are made anew for each replication, where they are random: their error is part of the estimator's."""
        rule = self.fit["integration"]
        if getattr(rule, "seed", None) is None:
            return dict(self.fit)
        assert isinstance(rule, Integration)
        return {**self.fit, "integration": rule.reseeded(number)}

    def _quantities(self, result: MixedLogitResult, data: ChoiceData) -> dict[str, Quantity]:
        estimates, errors = result.params | result.moments, result.std_errors | result.moment_std_errors
        truths = self._truths(data)
        held = self._held
        # a parameter that ended at a bound has no standard error, nor has a spread of 0
        without = {*result.without_std_error, *result.held, *(name for name, error in errors.items() if error == 0.0)}
        found = {
            name: Quantity(truths.get(name, math.nan), value, math.nan if name in without else errors[name])
            for name, value in estimates.items()
            if name not in held
        }
        if result.fixed is not None and self.zero_spreads:
            (variable,) = self.specification.random
            found[FIXED_STRENGTH] = Quantity(truths[f"{variable}.mean"], result.fixed.estimate, result.fixed.std_error)
        return found

    def _truths(self, data: ChoiceData) -> dict[str, float]:
        """Of parameters and moments; the moments at the means of the data's covariates."""
        if not isinstance(self.truth, Mapping):
            (variable,) = self.specification.random
            return {
                f"{variable}.{what}": value for what, value in zip(("mean", "sd"), _mean_sd(self.truth), strict=True)
            }
        spec = self.specification
        params = torch.tensor([float(self.truth[name]) for name in spec.names], dtype=torch.float64)
        share = data.weights / data.weights.sum()
        covariates = [(share * data.covariate(name)).sum() for name in spec.covariates]
        names, values = spec.moments(params, torch.stack(covariates) if covariates else params.new_zeros(0))
        return dict(zip((*spec.names, *names), (*params.tolist(), *values.tolist()), strict=True))

    # ------------------------------------------------------------------ as a whole

    @property
    def _held(self) -> set[str]:
        """Parameters and moments that no data can move."""
        spec, held = self.specification, set(self.fit["hold"] or {})
        prefixes = {name: (f"{name}.", f"chol.{name}.") for name in spec.random}
        own = {name: {param for param in spec.names if param.startswith(prefixes[name])} for name in spec.random}
        whole = [name for name in spec.random if own[name] <= held]
        moments = {f"{name}.{what}" for name in whole for what in ("mean", "sd")}
        return held | moments | {f"cor.{row}.{col}" for row in whole for col in whole}

    @property
    def zero_spreads(self) -> list[str]:
        """Parameters and moments that are a spread whose truth is 0, or are infinite with it."""
        spec = self.specification
        if not isinstance(self.truth, Mapping):
            (variable,) = spec.random
            parts = (part for part in spec.random[variable].parameters if part != "loc")
            return [] if _mean_sd(self.truth)[1] > 0.0 else [f"{variable}.{part}" for part in (*parts, "sd")]
        params = torch.tensor([float(self.truth[name]) for name in spec.names], dtype=torch.float64)
        names, moments = spec.moments(params, params.new_zeros(len(spec.covariates)))
        spreads = {name: float(self.truth[name]) for name in spec.scales}
        spreads |= {name: value for name, value in zip(names, moments.tolist(), strict=True) if name.endswith(".sd")}
        return [name for name, value in spreads.items() if value == 0.0 and name not in self._held]

    @property
    def settings(self) -> dict[str, Any]:
        """All of it as JSON, with the versions that compute it."""
        given = {name: value for name, value in self.sizes.items() if value is not None}
        spec = self.specification
        truth = describe("truth", self.truth)
        return {
            "title": f"{spec}; {self._size()}",
            "truth": truth,
            "model": describe("model", spec),
            "parameters": list(spec.names),
            "zero_spreads": self.zero_spreads,
            "design": {name: describe(name, value) for name, value in given.items()},
            "fit": describe("fit", dict(self.fit)),
            "seed": self.seed,
            "versions": {"mixlogit_align": __version__, "torch": version("torch")},
        }

    def _size(self) -> str:
        data = self.sizes["data"]
        if data is not None:
            return f"{data.num_individuals} individuals, {data.num_situations} situations in all"
        n, t, j = (self.sizes[f"num_{what}"] for what in ("individuals", "situations", "alternatives"))
        return f"{n} individuals, {t} situations each, {j} alternatives"


def recovery_study(
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
    attributes: Mapping[str, TorchDistribution] | None = None,
    num_replications: int = 200,
    fit: Mapping[str, Any] | None = None,
    level: float = 0.95,
    seed: int = 0,
    out: str | PathLike[str] | None = None,
    n_jobs: int | None = None,
    progress: bool = False,
) -> RecoveryStudy:
    """Simulate choices of a known truth and estimate it, many times: bias, RMSE, coverage and standard errors.

    Replications are shared out by joblib, one thread each. Without more said its processes (loky) on this machine are
    used; ``with joblib.parallel_config(backend="dask"):`` around the call, or ``"ray"``, puts them on a cluster. A
    process does one replication at a time: workers are to be processes, of one thread. Results are the same whatever
    the backend and the number of workers.

    Parameters
    ----------
    truth : pyro.distributions.TorchDistribution or mapping of str to float
        Every natural parameter of the model; or the distribution of a scalar strength, of any family, beside a model
        of one random coefficient: its mean and sd are then what estimates are held against.
    fixed, random, correlated, wtp_space, scale_heterogeneity
        The model that is estimated, as of :class:`MixedLogitModel`; it is the one simulated, too, unless the truth is a
        distribution.
    data : ChoiceData, optional
        Keep these attributes, choice sets, panels and weights, and draw only the choices anew.
    num_individuals, num_situations, num_alternatives, attributes
        As of :func:`simulate_choices`: attributes are drawn anew in each replication.
    num_replications : int
        R. A study in a folder may be continued with more.
    fit : mapping, optional
        Options of :meth:`MixedLogitModel.fit`; ``num_redraws`` is 0 unless it is given. An integration rule with a
        seed gets other draws in each replication, so that simulation error is part of what is studied.
    level : float
        Of the confidence intervals: normal, estimate plus and minus so many standard errors.
    seed : int
        With the number of a replication it determines its data.
    out : path, optional
        A folder that holds every replication from the moment it is done. The same call continues there; another
        study is refused.
    n_jobs : int, optional
        Workers; -1: one a core. None: as joblib is configured, else 1.
    progress : bool
        Show a bar.

    Returns
    -------
    RecoveryStudy

    Raises
    ------
    InvalidInputError
        If an argument does not fit the others, or the folder holds another study. A replication whose data or search
        fail is recorded and counted; the study goes on.
    """
    require_count("num_replications", num_replications)
    if isinstance(n_jobs, bool) or not (n_jobs is None or (isinstance(n_jobs, int) and n_jobs != 0)):
        expected = "1 or more, or -1 for one a core"
        raise InvalidInputError(explain("n_jobs", got=repr(n_jobs), expected=expected, hint="n_jobs=1"))
    specification = Specification.of(fixed, random or {}, correlated, wtp_space, scale_heterogeneity)
    if isinstance(truth, Mapping):
        truth = {name: float(value) for name, value in truth.items()}
    elif data is None and not attributes:
        attributes = dict.fromkeys(specification.random, dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
    if data is None:  # what is left out is the same study as what is written out
        num_situations = 1 if num_situations is None else num_situations
        num_alternatives = 2 if num_alternatives is None else num_alternatives
    design = StudyDesign(
        truth=truth,
        specification=specification,
        sizes={
            "data": data,
            "num_individuals": num_individuals,
            "num_situations": num_situations,
            "num_alternatives": num_alternatives,
            "attributes": attributes or None,
        },
        fit=_fit_options(fit or {}),
        seed=seed,
    )
    design.check()
    settings = design.settings
    study = RecoveryStudy(settings, (), level)  # and so is a level that is none
    with ExitStack() as stack:
        folder = None if out is None else stack.enter_context(StudyFolder(Path(out), settings))
        done: dict[int, Replication] = {} if folder is None else folder.done
        missing = [number for number in range(num_replications) if number not in done]
        advance = stack.enter_context(_bar(num_replications, num_replications - len(missing), progress))
        succeeded = any(each.failure is None for each in done.values())
        for replication in stack.enter_context(_closing(_parallel(design, missing, n_jobs))):
            if not succeeded and _misused(replication.failure):
                raise InvalidInputError(str(replication.failure).partition(": ")[2])
            succeeded |= replication.failure is None
            if folder is None:
                done[replication.number] = replication
            else:
                folder.append(replication)
            advance(replication)
    return RecoveryStudy(study.settings, tuple(done[number] for number in range(num_replications)), level)


def _homogeneity(result: MixedLogitResult) -> float | None:
    """p-value of one strength for all, where that can be tested."""
    if result.fixed is None or not result.converged:
        return None
    try:
        return result.likelihood_ratio_test().pvalue
    except ConvergenceError as error:  # less likely with heterogeneity than without, by the draws
        warnings.warn(f"no likelihood-ratio test: {error}", IntegrationWarning, stacklevel=2)
        return None


def _mean_sd(truth: TorchDistribution) -> tuple[float, float]:
    """Of a strength that may have another distribution for each individual."""
    mean, variance = truth.mean.double(), truth.variance.double()
    return float(mean.mean()), float((variance.mean() + mean.var(correction=0)).sqrt())


def _fit_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a fit, those given among them."""
    own = inspect.signature(MixedLogitModel.fit).parameters
    options = {name: option.default for name, option in own.items() if name not in ("self", "progress")}
    unknown = [name for name in given if name not in options]
    if unknown:
        hint = "progress= of the study" if "progress" in unknown else "one of these"
        raise InvalidInputError(explain("fit", got=unknown, expected=f"some of {list(options)}", hint=hint))
    return {**options, "num_redraws": 0, **given}


def _misused(failure: str | None) -> bool:
    """Whether the arguments are at fault, rather than the data."""
    return failure is not None and failure.startswith((InvalidInputError.__name__, IntegrationError.__name__))


def _parallel(design: StudyDesign, numbers: Sequence[int], n_jobs: int | None) -> Generator[Replication]:
    """Replications as they are done, in any order."""
    if not numbers:
        return
    from joblib import Parallel, delayed, effective_n_jobs

    threads = torch.get_num_threads()
    try:  # by one task at a time, so that what a worker has done is never held back by what it does
        shared = Parallel(n_jobs=n_jobs, batch_size=1, return_as="generator_unordered")
        waves = [numbers]
    except ValueError:  # the backend hands back lists only
        shared = Parallel(n_jobs=n_jobs, batch_size=1)
        size = _WAVE * effective_n_jobs(n_jobs)
        waves = [numbers[i : i + size] for i in range(0, len(numbers), size)]
    try:
        for wave in waves:
            yield from shared(delayed(_replicate)(design, number) for number in wave)
    finally:
        torch.set_num_threads(threads)  # a worker may have been this process


@contextmanager
def _closing(running: Generator[Replication]) -> Iterator[Iterator[Replication]]:
    """Whatever ends a study ends the work for it."""
    try:
        yield running
    finally:
        # no thread of ours is within filters of warnings meanwhile, which are the process's and would undo these
        with _ONE_AT_A_TIME, warnings.catch_warnings():
            # what joblib warns of: unfinished tasks, which the next call begins anew
            warnings.filterwarnings("ignore", ".* still being processed by the workers", UserWarning)
            running.close()


def _replicate(design: StudyDesign, number: int) -> Replication:
    """One replication in one thread, and no other in this process meanwhile."""
    with _ONE_AT_A_TIME:
        torch.set_num_threads(1)
        return design.replicate(number)


@contextmanager
def _bar(total: int, done: int, progress: bool) -> Iterator[Any]:
    """A callable that shows one more replication."""
    if not progress:
        yield lambda replication: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns) as bar:
        task = bar.add_task("replications", total=total, completed=done)
        bad = 0

        def advance(replication: Replication) -> None:
            nonlocal bad
            bad += not replication.converged
            bar.update(task, advance=1, description=f"replications ({bad} without estimates)" if bad else None)

        yield advance
