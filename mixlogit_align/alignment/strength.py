"""The strength beside the policy: learned, frozen or solved; how far it could go, and what is recorded of it."""

# B comparisons.

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mixlogit_align.alignment.config import (
    LearnedUpdate,
    OptimConfig,
    PointStrength,
    PreferenceConfig,
    SolvedUpdate,
    StrengthConfig,
)
from mixlogit_align.alignment.data.schema import StrengthTruth
from mixlogit_align.alignment.loss_config import MixDPO
from mixlogit_align.alignment.losses import MixDPOLoss, PreferenceLoss
from mixlogit_align.alignment.trainer import RMSPROP_SMOOTHING
from mixlogit_align.distributions import LearnableMixing, MixedLogit
from mixlogit_align.distributions.learnable import mixing_of_mean_cv
from mixlogit_align.errors import InvalidInputError, explain
from mixlogit_align.inference import derivatives, hessian_covariance, standard_errors
from mixlogit_align.inference.bounded import maximize_in_box

CAUTIONS = {
    "learned": "A loss that sees one comparison at a time identifies the spread of strength only weakly, and "
    "its learning rate, more than the data, says how far it moves; the spread is no measurement of heterogeneity.",
    "frozen": "The strength was given, not learned.",
    "computed": "The strength is the loss's own, given or computed for each batch or pair; mean over held-out pairs.",
    "solved": "Maximum of likelihood on the policy's own log-ratio differences: the strength that makes its choice "
    "probabilities fit, on comparisons that it has, after the first epoch, been trained on before. One comparison at a "
    "time identifies the spread of strength only weakly; the spread is no measurement of heterogeneity.",
}


def build_preference_loss(config: PreferenceConfig) -> MixDPOLoss | Callable[..., PreferenceLoss]:
    """The loss that ``config`` describes; gradients reach the strength where it is learned by them."""
    if not isinstance(config.loss, MixDPO):
        return config.loss.build()
    assert config.strength is not None
    assert config.integration is not None
    learned = isinstance(config.strength.update, LearnedUpdate)
    strength = config.strength.build().requires_grad_(learned)
    return MixDPOLoss(strength, config.integration.build())


# --- learned: what the learning rate allows --------------------------------------------------------


def constant_gradient_drift(optim: OptimConfig, lr: float, num_steps: int) -> float:
    """How far an unconstrained strength parameter moves in ``num_steps`` under a constant gradient.

    Both optimisers normalise the gradient away, so the learning rate says how far a parameter goes:
    RMSprop moves ``sum_t lr_t / sqrt(1 - 0.99**t)``, Adam ``sum_t lr_t``, with ``lr_t`` in the warm-up.
    A growing gradient moves RMSprop further, at most ``10 * lr`` a step.

    Parameters
    ----------
    optim : OptimConfig
    lr : float
        The strength's own learning rate.
    num_steps : int

    Returns
    -------
    float
        In units of the unconstrained parameter, e.g. the LogNormal's loc or the log of its scale.
    """
    steps = torch.arange(1, num_steps + 1, dtype=torch.float64)
    rates = lr * (steps / max(optim.warmup_steps, 1)).clamp_max(1.0)
    if optim.name == "rmsprop":
        rates = rates / (1 - RMSPROP_SMOOTHING**steps).sqrt()
    return rates.sum().item()


def drift_metrics(strength: LearnableMixing, config: PreferenceConfig, step: int) -> dict[str, float]:
    """``strength/drift_share`` of a learned strength after ``step`` steps; nothing for the other kinds.

    The way that its parameters have gone from the start, on the unconstrained scale on which they are learned and for
    the one that went furthest, over `constant_gradient_drift`. Near 1 the gradient has pulled one way all along: the
    learning rate, not the likelihood, decides how far the strength has come. Above 1 (RMSprop) the gradient also grew.
    """
    update = config.update
    if not isinstance(update, LearnedUpdate):
        return {}
    assert config.strength is not None
    drift = constant_gradient_drift(config.optim, update.lr, step)
    furthest = max(abs(moved) for moved in _moved(strength, config.strength).values())
    return {"strength/drift_share": furthest / drift if step else 0.0}


def _moved(strength: LearnableMixing, start: StrengthConfig) -> dict[str, float]:
    """Each parameter's distance from where it started, on its unconstrained scale."""
    initial = dict(start.build().named_parameters())
    return {name: value.item() - initial[name].item() for name, value in strength.named_parameters()}


# --- solved: maximum of likelihood between bounds --------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StrengthBounds:
    """What a solved strength is kept between: its mean, and its coefficient of variation; held where two are equal."""

    mean: tuple[float, float]
    cv: tuple[float, float]

    @classmethod
    def of(cls, config: StrengthConfig) -> StrengthBounds:
        """As a solved strength's settings have them, around the mean it starts with.

        Parameters
        ----------
        config : section
            Its ``update`` is `SolvedUpdate`.
        """
        update, start = config.update, config.build().summary()["mean"]
        assert isinstance(update, SolvedUpdate), "other kinds have no bounds"
        factor = update.max_mean_factor
        return cls(mean=(start / factor, start * factor), cv=(update.min_cv, update.max_cv))


@dataclass(frozen=True, kw_only=True)
class StrengthSolution:
    """What `solve_strength` found.

    Attributes
    ----------
    comparisons : int
        Those with a weight above 0.
    mean, cv : float
        Of the strength afterwards; where the solve failed, as it was.
    std_error_log_mean, std_error_log_cv : float
        From the inverse of minus the Hessian, of what is free to move, else NaN. For weights that count
        comparisons; they take the log-ratio differences as given.
    loglik_before, loglik : float
        Weighted sums of log P, in nats, before and after.
    iterations : int
    converged : bool
        False: the solve failed, and the strength is as it was.
    mean_at_bound, cv_at_bound : int
        -1 at the lower bound, 1 at the upper one, else 0, as also where both are equal.
    """

    comparisons: int
    mean: float
    cv: float
    std_error_log_mean: float
    std_error_log_cv: float
    loglik_before: float
    loglik: float
    iterations: int
    converged: bool
    mean_at_bound: int
    cv_at_bound: int

    @property
    def at_bound(self) -> bool:
        """Whether the likelihood would rise beyond a bound."""
        return bool(self.mean_at_bound or self.cv_at_bound)

    def as_dict(self) -> dict[str, Any]:
        """As it stands in ``strength.json``: None where there is no standard error."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


def solve_strength(
    mixing: LearnableMixing, logratio_diff: Tensor, weights: Tensor, bounds: StrengthBounds
) -> StrengthSolution:
    """Set a strength to the maximum of ``sum_i w_i log E[sigma(strength * logratio_diff_i)]`` between bounds.

    Newton steps with exact Hessians in log mean and log cv, in float64, from where the strength stands
    (:func:`mixlogit_align.inference.bounded.maximize_in_box`). The expectation is exact (the best rule of the family)
    whatever rule the policy's loss uses: the maximum over few draws is biased towards too narrow a strength. The same
    input gives the same bits.

    What it means: with the log-ratio differences as given, this strength makes the policy's choice probabilities fit
    best; for a point it is temperature scaling. What it does not mean: that people are so. Strength times
    log-ratio is identified, not the strength, so the mean follows how far the policy has gone from its reference (while
    that is next to nothing the differences say next to nothing, and the maximum lies at a bound); and a policy's
    log-ratios of comparisons that it was trained on fit better than those of others, so that on them the
    strength runs up with the training fit. Held-out comparisons are safer.

    Parameters
    ----------
    mixing : LearnableMixing
        Its parameters are set in place, on any device, whether they take gradients or not; left as they are where the
        search does not converge, or where no comparison of weight above 0 has a log-ratio difference other than 0.
    logratio_diff : Tensor
        (B,) log-ratio of the chosen less that of the rejected response, in nats.
    weights : Tensor
        (B,) at least 0.
    bounds : StrengthBounds
        A maximum at a bound counts as converged; where all differences are of one sign there is no other.

    Returns
    -------
    StrengthSolution

    Raises
    ------
    InvalidInputError
        For a Weibull, whose parameters have no derivative by mean and cv.

    References
    ----------
    Guo et al. (2017), *On Calibration of Modern Neural Networks*, for temperature scaling.
    """
    if mixing.family == "weibull":
        raise InvalidInputError(
            explain("strength to solve for", got="weibull", expected="another family", hint="lognormal or gamma")
        )
    delta, weight = (x.detach().to("cpu", torch.float64) for x in (logratio_diff, weights))
    start = mixing.summary()
    present = torch.tensor([start["mean"], start["sd"] / start["mean"]], dtype=torch.float64)
    low, high = torch.tensor([bounds.mean, bounds.cv], dtype=torch.float64).log().T
    used = slice(1 if mixing.family == "point" else 2)
    ones = torch.ones_like(delta)

    def loglik(params: Tensor) -> Tensor:
        mean, cv = params[0].exp(), params[-1].exp()
        return weight * MixedLogit(delta, mixing_of_mean_cv(mixing.family, mean, cv)).log_prob(ones)

    before = derivatives(loglik, present[used].log()).value
    unchanged = StrengthSolution(
        comparisons=int((weight > 0).sum()),
        mean=present[0].item(),
        cv=present[1].item(),
        std_error_log_mean=float("nan"),
        std_error_log_cv=float("nan"),
        loglik_before=before,
        loglik=before,
        iterations=0,
        converged=False,
        mean_at_bound=0,
        cv_at_bound=0,
    )
    if not bool((weight * delta != 0).any()):
        return unchanged
    found = maximize_in_box(loglik, present[used].log(), low[used], high[used])
    if not found.converged:
        return replace(unchanged, iterations=found.iterations)
    present[used] = found.params.exp()
    mean, cv = present.tolist()
    mixing.load_state_dict(LearnableMixing.from_mean_cv(mixing.family, mean, cv, mixing.transform).state_dict())
    has_room = (low < high)[used]
    held, errors = torch.zeros(2, dtype=torch.int64), torch.full_like(present, torch.nan)
    held[used] = found.at_bound * has_room
    free = (has_room & (found.at_bound == 0)).nonzero()[:, 0]
    errors[free] = standard_errors(hessian_covariance(found.hessian[free][:, free]))
    return StrengthSolution(
        comparisons=unchanged.comparisons,
        mean=mean,
        cv=cv,
        std_error_log_mean=errors[0].item(),
        std_error_log_cv=errors[1].item(),
        loglik_before=before,
        loglik=found.loglik,
        iterations=found.iterations,
        converged=True,
        mean_at_bound=int(held[0]),
        cv_at_bound=int(held[1]),
    )


class StrengthBuffer(nn.Module):
    """The most recent comparisons' log-ratio differences and weights, on the CPU, in float64.

    Its state is of one shape however full it is, so that a checkpoint loads into it.

    Parameters
    ----------
    size : int
        Comparisons it holds; older ones are given up.
    """

    rows: Tensor
    count: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, 2, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def add(self, logratio_diff: Tensor, weights: Tensor) -> None:
        """Take in a batch, (B,) each: that of all processes together, in the same order on each."""
        new = torch.stack([logratio_diff, weights], 1).detach().to(self.rows)
        self.count.add_(len(new)).clamp_(max=len(self.rows))
        self.rows.copy_(torch.cat([self.rows, new])[-len(self.rows) :])

    @property
    def logratio_diff(self) -> Tensor:
        """(B,), oldest first."""
        return self._held[:, 0]

    @property
    def weights(self) -> Tensor:
        """(B,), oldest first."""
        return self._held[:, 1]

    @property
    def _held(self) -> Tensor:
        return self.rows[len(self.rows) - int(self.count) :]


class StrengthSolver(nn.Module):
    """Solves for the strength every so many steps, and remembers how it went.

    The buffer holds each comparison's log-ratio difference from before the step that trained on it. In the first epoch
    the policy had not seen it then: the solve is out of sample, though of policies up to ``buffer_examples``
    comparisons behind the present one. In later epochs it had, and the strength runs up with the training fit.

    ``state_dict()`` holds tensors of fixed shape on the CPU, from which a resumed run goes on with the same bits. The
    strength itself is not among them. Every process solves the same buffer.

    Parameters
    ----------
    config : section
        The strength; its ``update`` is `SolvedUpdate`.
    """

    tally: Tensor
    last: Tensor

    def __init__(self, config: StrengthConfig) -> None:
        super().__init__()
        assert isinstance(config.update, SolvedUpdate), "other kinds are not solved for"
        self.every_steps = config.update.every_steps
        self.bounds = StrengthBounds.of(config)
        self.buffer = StrengthBuffer(config.update.buffer_examples)
        self.register_buffer("tally", torch.zeros(3, dtype=torch.int64))  # solves, failed, at a bound
        self.register_buffer("last", torch.zeros(len(_kinds()), dtype=torch.float64))

    @property
    def solution(self) -> StrengthSolution | None:
        """The last one."""
        if self.tally[0] == 0:
            return None
        values = zip(_kinds().items(), self.last.tolist(), strict=True)
        return StrengthSolution(**{name: kind(value) for (name, kind), value in values})

    def after_step(self, mixing: LearnableMixing, logratio_diff: Tensor, weights: Tensor, step: int) -> None:
        """Take in a step's comparisons, and set ``mixing`` where a solve is due.

        Parameters
        ----------
        mixing : LearnableMixing
        logratio_diff, weights : Tensor
            (B,) of the whole batch, the same on every process; as they were before the step.
        step : int
            Steps taken, this one included.
        """
        self.buffer.add(logratio_diff, weights)
        if step % self.every_steps == 0:
            solution = solve_strength(mixing, self.buffer.logratio_diff, self.buffer.weights, self.bounds)
            self.tally += self.tally.new_tensor([1, not solution.converged, solution.at_bound])
            self.last.copy_(self.last.new_tensor(astuple(solution)))

    def metrics(self) -> dict[str, float]:
        """What `strength_metrics` lists for a solved strength."""
        last = self.solution
        return {
            "strength/solves": float(self.tally[0]),
            "strength/failed_solves": float(self.tally[1]),
            "strength/at_bound": float(last is not None and last.at_bound),
        }

    def record(self) -> dict[str, Any]:
        """What ``strength.json`` holds of it."""
        solves, failed, at_bound = self.tally.tolist()
        return {
            "bounds": asdict(self.bounds),
            "solves": solves,
            "failed_solves": failed,
            "solves_at_bound": at_bound,
            "last_solve": None if self.solution is None else self.solution.as_dict(),
        }


def _kinds() -> dict[str, Callable[[float], Any]]:
    """The solution's numbers and their types, in order."""
    return typing.get_type_hints(StrengthSolution)


# --- what is logged and recorded --------------------------------------------------------------------


@torch.no_grad()
def strength_metrics(strength: LearnableMixing) -> dict[str, float]:
    """``strength/mean``, ``strength/sd`` and ``strength/<parameter>`` as numbers.

    Beside them a run logs, of a learned strength, ``strength/drift_share`` (`drift_metrics`), and of a solved one
    (`StrengthSolver.metrics`) ``strength/solves`` and ``strength/failed_solves``, counts so far, and
    ``strength/at_bound``: 1 where the last solve ended at a bound of mean or cv, else 0. A failed solve, which leaves
    the strength as it was, counts as 0 there.
    """
    summary = strength.summary()
    named = {"mean": summary["mean"], "sd": summary["sd"], **summary["parameters"]}
    return {f"strength/{name}": float(value) for name, value in named.items()}


def strength_record(
    strength: LearnableMixing,
    config: PreferenceConfig,
    num_steps: int,
    truth: StrengthTruth | None,
    solver: StrengthSolver | None = None,
) -> dict[str, Any]:
    """What ``strength.json`` holds: the strength's summary, where it started, how it was updated and what that allows.

    Parameters
    ----------
    strength : LearnableMixing
    config : PreferenceConfig
    num_steps : int
        Steps the stage takes.
    truth : StrengthTruth or None
        The simulated annotators' own distribution, where there is one.
    solver : StrengthSolver, optional
        Of a solved strength.

    Returns
    -------
    dict
        Family, mean, sd, cv and parameters, the same of ``initial``; ``moved``, each parameter's way on its
        unconstrained scale; for a learned strength its ``learning_rate``, the ``constant_gradient_drift`` of the
        whole stage, and ``share_of_drift``, by parameter (rate and drift are 0 for the other kinds, which no
        gradient moves); for a solved one ``StrengthSolver.record``; ``caution``.
    """
    assert config.strength is not None
    update = config.strength.update
    assert isinstance(update, SolvedUpdate) == (solver is not None)
    lr = update.lr if isinstance(update, LearnedUpdate) else 0.0
    drift = constant_gradient_drift(config.optim, lr, num_steps)
    moved = _moved(strength, config.strength)
    beside: dict[str, Any] = {}
    if isinstance(update, LearnedUpdate):
        beside["share_of_drift"] = {name: abs(way) / drift for name, way in moved.items()}
    if solver is not None:
        beside |= solver.record()
    now, initial = (_with_cv(mixing.summary()) for mixing in (strength, config.strength.build()))
    return _record(now, initial, update.kind, num_steps, truth, lr=lr, drift=drift, moved=moved, **beside)


def fixed_strength_record(
    config: PreferenceConfig, num_steps: int, truth: StrengthTruth | None, held_out: Mapping[str, float]
) -> dict[str, Any]:
    """What ``strength.json`` holds of a loss of fixed strength, in the form of `strength_record`.

    Parameters
    ----------
    config : PreferenceConfig
        Its loss is none of a distribution.
    num_steps, truth
        As of `strength_record`.
    held_out : mapping
        The last held-out metrics; empty before the first.

    Returns
    -------
    dict
        ``loss``, its settings. A strength that is the same for all pairs throughout is a frozen point. Where the loss
        computes one, or has another choice model, ``update`` is "computed", ``mean`` is the mean over held-out pairs
        (None before it was known), and there is no family.
    """
    settings = asdict(config.loss)
    if config.loss.is_constant:
        update, initial = "frozen", _with_cv(PointStrength(value=settings["beta"]).build().summary())
        now = initial
    else:
        update, initial = "computed", dict.fromkeys(("family", "mean", "sd", "cv", "parameters"))
        now = {**initial, "mean": held_out.get("strength/mean")}
    return {"loss": settings, **_record(now, initial, update, num_steps, truth)}


def _record(
    now: Mapping[str, Any],
    initial: Mapping[str, Any],
    update: str,
    num_steps: int,
    truth: StrengthTruth | None,
    *,
    lr: float = 0.0,
    drift: float = 0.0,
    moved: Mapping[str, float] | None = None,
    **beside: Any,
) -> dict[str, Any]:
    """What every ``strength.json`` holds, in its order; that of a strength which no gradient moves by default."""
    record = {
        **now,
        "initial": initial,
        "update": update,
        "learning_rate": lr,
        "planned_steps": num_steps,
        "constant_gradient_drift": drift,
        "moved": dict(moved or {}),
        "caution": CAUTIONS[update],
        **beside,
    }
    return record if truth is None else {**record, "truth": truth.summary()}


def _with_cv(summary: dict[str, Any]) -> dict[str, Any]:
    return {**summary, "cv": summary["sd"] / summary["mean"]}
