"""The strength beside the policy: frozen, learned or solved, what holds it back, and what is recorded of it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from torch.distributed import checkpoint

from mixlogit_align import LearnableMixing
from mixlogit_align.alignment.config import (
    BestRule,
    FrozenUpdate,
    GammaStrength,
    LearnedUpdate,
    LogNormalStrength,
    OptimConfig,
    PointStrength,
    PreferenceConfig,
    SolvedUpdate,
)
from mixlogit_align.alignment.data import StrengthTruth
from mixlogit_align.alignment.strength import (
    StrengthBounds,
    StrengthBuffer,
    StrengthSolver,
    build_preference_loss,
    constant_gradient_drift,
    drift_metrics,
    solve_strength,
    strength_metrics,
    strength_record,
)
from mixlogit_align.alignment.trainer import GRADIENT_EPS, ParameterGroup, build_optimizer
from mixlogit_align.errors import InvalidInputError

WIDE = StrengthBounds(mean=(0.005, 5.0), cv=(0.01, 5.0))


def solved(**settings):
    return LogNormalStrength(update=SolvedUpdate(**settings))


# --- learned -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("warmup_steps", "factor"), [(0, 983), (150, 822)])
def test_drift_of_a_run_of_the_papers_length(warmup_steps, factor):
    drift = constant_gradient_drift(OptimConfig(warmup_steps=warmup_steps), lr=1e-4, num_steps=859)
    assert drift == pytest.approx(factor * 1e-4, abs=0.6e-4)


@pytest.mark.parametrize("name", ["rmsprop", "adamw"])
@pytest.mark.parametrize("warmup_steps", [0, 7])
def test_drift_is_what_the_optimiser_does_under_a_constant_gradient(name, warmup_steps):
    config = OptimConfig(name=name, warmup_steps=warmup_steps)
    parameter = torch.nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
    group = ParameterGroup(name="strength", parameters=[parameter], lr=1e-2, max_grad_norm=1.0, eps=GRADIENT_EPS)
    optimizer = build_optimizer([group], config)
    for step in range(30):
        optimizer.param_groups[0]["lr"] = 1e-2 * min((step + 1) / max(warmup_steps, 1), 1.0)
        parameter.grad = torch.full_like(parameter, -3.0)
        optimizer.step()
    # the optimisers add 1e-6 to the gradient's size of 3, of which RMSprop sees a tenth at first
    assert parameter.item() == pytest.approx(constant_gradient_drift(config, 1e-2, 30), rel=5e-6)


@pytest.mark.parametrize(
    ("update", "learned"),
    [
        pytest.param(FrozenUpdate(), False, id="frozen"),
        pytest.param(LearnedUpdate(lr=1e-3), True, id="learned"),
        pytest.param(SolvedUpdate(), False, id="solved"),
    ],
)
def test_gradients_reach_a_learned_strength_only(update, learned):
    loss = build_preference_loss(PreferenceConfig(strength=LogNormalStrength(update=update), integration=BestRule()))
    assert {p.requires_grad for p in loss.mixing.parameters()} == {learned}


@pytest.mark.parametrize(
    ("update", "share"),
    [
        pytest.param(FrozenUpdate(), {}, id="frozen"),
        pytest.param(LearnedUpdate(lr=1e-2), {"strength/drift_share": 0.5}, id="learned"),
        pytest.param(SolvedUpdate(), {}, id="solved"),
    ],
)
def test_drift_share_is_of_the_parameter_that_went_furthest(update, share):
    config = PreferenceConfig(strength=LogNormalStrength(update=update), optim=OptimConfig(warmup_steps=3))
    mixing = config.strength.build()
    assert drift_metrics(mixing, config, 0) == dict.fromkeys(share, 0.0)
    drift = constant_gradient_drift(config.optim, 1e-2, 20)
    with torch.no_grad():
        mixing.loc.add_(0.2 * drift)
        mixing.scale.sub_(0.5 * drift)
    # parameters of size 2 in float32 against a way of 0.1
    assert drift_metrics(mixing, config, 20) == pytest.approx(share, rel=1e-5)


# --- solved ------------------------------------------------------------------------------------------


def simulate(cv, size, seed, sd=15.0):
    """Log-ratio differences of comparisons whose strength is Gamma of mean 0.1 (a point where cv is 0)."""
    rng = np.random.default_rng(seed)
    strength = np.full(size, 0.1) if cv == 0 else rng.gamma(cv**-2, 0.1 * cv**2, size)
    utility_diff = sd * rng.normal(size=size)
    prefers_first = rng.random(size) < scipy.special.expit(strength * utility_diff)
    return torch.from_numpy(np.where(prefers_first, utility_diff, -utility_diff))


def scipy_loglik(family, log_params, delta, weights):
    """The likelihood in log mean and log cv: a strength is a function of z ~ N(0, 1), at 100 nodes of Gauss-Hermite."""
    mean, cv = np.exp(log_params[0]), np.exp(log_params[-1])
    z, share = np.polynomial.hermite_e.hermegauss(100)
    if family == "point":
        strength = np.full_like(z, mean)
    elif family == "lognormal":
        variance = np.log1p(cv**2)
        strength = mean * np.exp(np.sqrt(variance) * z - variance / 2)
    else:
        below = scipy.special.gammaincinv(cv**-2, scipy.special.ndtr(z))
        above = scipy.special.gammainccinv(cv**-2, scipy.special.ndtr(-z))
        strength = mean * cv**2 * np.where(z < 0, below, above)
    probability = scipy.special.expit(np.outer(delta, strength)) @ (share / share.sum())
    return float(weights @ np.log(probability))


def scipy_maximum(family, delta, weights, bounds):
    box = [bounds.mean, bounds.cv][: 1 if family == "point" else 2]
    return scipy.optimize.minimize(
        lambda x: -scipy_loglik(family, x, delta.numpy(), weights.numpy()),
        [math.log(0.12), math.log(0.7)][: len(box)],
        bounds=np.log(box),
        method="L-BFGS-B",
        options={"ftol": 1e-13, "gtol": 1e-5},
    )


BOUNDS = {
    "wide": WIDE,
    "near": StrengthBounds(mean=(0.11, 0.13), cv=(0.65, 0.9)),
    "low-cv": StrengthBounds(mean=(0.02, 0.6), cv=(1.2, 3.0)),
}


@pytest.mark.parametrize("bounds", list(BOUNDS))
@pytest.mark.parametrize("family", ["point", "gamma", "lognormal"])
def test_the_maximum_is_scipys(family, bounds):
    delta = simulate(cv=0.8, size=300, seed=1)
    weights = torch.from_numpy(np.random.default_rng(2).uniform(0.0, 2.0, 300))
    mixing = LearnableMixing.from_mean_cv(family, 0.12, 0.0 if family == "point" else 0.7)
    bounds = BOUNDS[bounds]
    expected = scipy_maximum(family, delta, weights, bounds)
    solution = solve_strength(mixing, delta, weights, bounds)
    assert solution.converged
    # the log-likelihood is 150 nats: its rounding in float64, and that of scipy's numerical gradients
    assert solution.loglik == pytest.approx(-expected.fun, abs=1e-6)
    found = [solution.mean, solution.cv][: len(expected.x)]
    # flat by a standard error of 0.1 or more, in which 1e-6 nats are 1.4e-3
    assert found == pytest.approx(np.exp(expected.x), rel=1e-3)


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("transform", ["log", "softplus", "raw"])
@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_what_is_set_is_the_solution_as_float32_holds_it(family, transform, requires_grad):
    delta = simulate(cv=0.8, size=300, seed=1)
    mixing = LearnableMixing.from_mean_cv(family, 0.12, 0.7, transform).requires_grad_(requires_grad)
    parameters = list(mixing.parameters())
    solution = solve_strength(mixing, delta, torch.ones(300), BOUNDS["near"])
    summary = mixing.summary()
    assert summary["mean"] == pytest.approx(solution.mean, rel=1e-6)
    assert summary["sd"] == pytest.approx(solution.mean * solution.cv, rel=1e-6)
    assert solution.mean != 0.12
    # in place: an optimiser or a wrapper that holds the parameters goes on with the same ones
    assert [id(p) for p in mixing.parameters()] == [id(p) for p in parameters]
    assert {(p.dtype, p.requires_grad) for p in parameters} == {(torch.float32, requires_grad)}


@pytest.mark.parametrize(("mean", "cv"), [(0.03, 0.05), (0.6, 0.05), (0.03, 2.0), (0.6, 2.0)])
@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_the_start_does_not_decide_the_maximum(family, mean, cv):
    """Where the spread is narrow, the likelihood curves upwards in its log: plain Newton steps go the wrong way."""
    delta = simulate(cv=1.0, size=1000, seed=11)
    expected = solve_strength(LearnableMixing.from_mean_cv(family, 0.12, 0.7), delta, torch.ones(1000), WIDE)
    solution = solve_strength(LearnableMixing.from_mean_cv(family, mean, cv), delta, torch.ones(1000), WIDE)
    assert solution.converged
    assert not solution.at_bound
    # converged to 1e-5 standard errors of about 0.2
    assert (solution.mean, solution.cv) == pytest.approx((expected.mean, expected.cv), rel=1e-5)


@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_no_parameter_would_rather_be_elsewhere(family):
    delta, mixing = simulate(cv=1.0, size=2000, seed=3), LearnableMixing.from_mean_cv(family, 0.12, 0.7)
    solution = solve_strength(mixing, delta, torch.ones(2000), WIDE)
    assert not solution.at_bound
    parameters = dict(mixing.named_parameters())
    loglik = (
        -build_preference_loss(PreferenceConfig()).__class__(mixing)(delta, *torch.zeros(3, 2000)).per_example.sum()
    )
    gradient = torch.autograd.grad(loglik, list(parameters.values()))
    # a parameter's distance from the maximum in float32, 1e-7 of its size of up to 3, times a curvature below 2000
    assert torch.stack(gradient).abs().max() < 2e-3
    assert loglik.item() == pytest.approx(solution.loglik, rel=1e-9)


@pytest.mark.parametrize("seed", [4, 5])
def test_recovers_the_simulated_strength(seed):
    """|z| below 4 for mean and cv: two cases with two each fail once in 4,000 seeds."""
    solution = solve_strength(
        LearnableMixing.gamma(), simulate(cv=1.0, size=5000, seed=seed, sd=30.0), torch.ones(5000), WIDE
    )
    assert not solution.at_bound
    assert abs(math.log(solution.mean / 0.1)) < 4 * solution.std_error_log_mean < 0.6
    assert abs(math.log(solution.cv / 1.0)) < 4 * solution.std_error_log_cv < 0.6


@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_one_strength_for_all_leaves_the_spread_nothing_to_gain(family):
    """Twice the gain over a point is half 0, half chi-squared: above 16 once in 30,000 seeds."""
    delta, weights = simulate(cv=0, size=3000, seed=6), torch.ones(3000)
    point = solve_strength(LearnableMixing.point(0.12), delta, weights, WIDE)
    spread = solve_strength(LearnableMixing.from_mean_cv(family, 0.12, 0.7), delta, weights, WIDE)
    assert abs(math.log(point.mean / 0.1)) < 4 * point.std_error_log_mean < 0.3  # once in 16,000
    # the narrowest spread costs next to nothing against none
    assert -0.01 < spread.loglik - point.loglik < 8


@pytest.mark.parametrize(
    ("delta", "mean_at_bound", "cv_at_bound"),
    [
        pytest.param([3.0, 1.0, 20.0, 4.0], 1, -1, id="all-positive"),
        pytest.param([-3.0, -1.0, -20.0, -4.0], -1, 1, id="all-negative"),
        pytest.param([2.0], 1, -1, id="one-row"),
        pytest.param([-2.0], -1, 1, id="one-row-lost"),
        pytest.param([2.0, -2.0], -1, 1, id="a-draw"),
    ],
)
@pytest.mark.parametrize("family", ["point", "gamma", "lognormal"])
def test_a_likelihood_that_runs_away_ends_at_the_bounds(family, delta, mean_at_bound, cv_at_bound):
    mixing = LearnableMixing.from_mean_cv(family, 0.12, 0.0 if family == "point" else 0.7)
    bounds = StrengthBounds(mean=(0.024, 0.6), cv=(0.05, 2.0))
    solution = solve_strength(mixing, torch.tensor(delta), torch.ones(len(delta)), bounds)
    assert solution.converged
    assert solution.at_bound
    assert solution.mean_at_bound == mean_at_bound
    assert solution.cv_at_bound == (0 if family == "point" else cv_at_bound)
    assert math.isnan(solution.std_error_log_mean)
    summary = mixing.summary()
    assert summary["mean"] == pytest.approx(bounds.mean[max(mean_at_bound, 0)], rel=1e-6)
    expected_cv = 0.0 if family == "point" else bounds.cv[max(cv_at_bound, 0)]
    assert summary["sd"] == pytest.approx(summary["mean"] * expected_cv, rel=1e-5)


@pytest.mark.parametrize("held", ["mean", "cv"])
@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_what_has_no_room_is_held_and_is_at_no_bound(family, held):
    delta, weights = simulate(cv=1.0, size=1000, seed=10), torch.ones(1000)
    mixing = LearnableMixing.from_mean_cv(family, 0.12, 0.7)
    bounds = replace(WIDE, **{held: {"mean": (0.12, 0.12), "cv": (0.7, 0.7)}[held]})
    for _ in range(3):  # rounding does not carry it away
        solution = solve_strength(mixing, delta, weights, bounds)
    free = "cv" if held == "mean" else "mean"
    assert getattr(solution, held) == pytest.approx({"mean": 0.12, "cv": 0.7}[held], rel=1e-12)
    assert math.isnan(getattr(solution, f"std_error_log_{held}"))
    assert getattr(solution, f"std_error_log_{free}") > 0
    assert not solution.at_bound
    column = scipy.optimize.minimize_scalar(
        lambda x: (
            -scipy_loglik(family, np.log([0.12, x] if held == "mean" else [x, 0.7]), delta.numpy(), weights.numpy())
        ),
        bounds=getattr(WIDE, free),
        method="bounded",
        options={"xatol": 1e-6},
    )
    assert getattr(solution, free) == pytest.approx(column.x, rel=1e-3)  # as above
    assert solution.loglik == pytest.approx(-column.fun, abs=1e-6)


@pytest.mark.parametrize(
    ("delta", "weights"),
    [
        pytest.param([0.0, 0.0], [1.0, 1.0], id="all-zero"),
        pytest.param([1.0, -3.0], [0.0, 0.0], id="no-weight"),
        pytest.param([0.0, 5.0], [2.0, 0.0], id="zero-or-no-weight"),
        pytest.param([], [], id="empty"),
    ],
)
def test_where_nothing_is_said_the_strength_stays(delta, weights):
    mixing = LearnableMixing.lognormal()
    before = {name: value.clone() for name, value in mixing.state_dict().items()}
    solution = solve_strength(mixing, torch.tensor(delta), torch.tensor(weights), WIDE)
    torch.testing.assert_close(mixing.state_dict(), before, rtol=0, atol=0)
    assert (solution.converged, solution.at_bound, solution.iterations) == (False, False, 0)
    assert solution.loglik == solution.loglik_before
    assert (solution.mean, solution.mean * solution.cv) == pytest.approx(
        (mixing.summary()["mean"], mixing.summary()["sd"])
    )


def test_a_search_that_fails_leaves_the_strength(monkeypatch):
    from mixlogit_align.alignment import strength as module
    from mixlogit_align.inference.bounded import maximize_in_box

    monkeypatch.setattr(module, "maximize_in_box", lambda *box: maximize_in_box(*box, max_iterations=1))
    mixing = LearnableMixing.lognormal()
    before = {name: value.clone() for name, value in mixing.state_dict().items()}
    solution = solve_strength(mixing, simulate(cv=1, size=200, seed=7), torch.ones(200), WIDE)
    torch.testing.assert_close(mixing.state_dict(), before, rtol=0, atol=0)
    assert (solution.converged, solution.iterations, solution.comparisons) == (False, 1, 200)
    assert solution.loglik == solution.loglik_before


def test_a_weight_counts_comparisons():
    delta = simulate(cv=1, size=300, seed=8)
    counts = torch.arange(300) % 3
    weighted = solve_strength(LearnableMixing.gamma(), delta, counts, WIDE)
    repeated = solve_strength(LearnableMixing.gamma(), delta.repeat_interleave(counts), torch.ones(300), WIDE)
    assert (weighted.comparisons, repeated.comparisons) == (200, 300)
    # the order of summation; NaN is the standard error of what is held at a bound
    assert asdict(weighted) == pytest.approx(asdict(repeated) | {"comparisons": 200}, rel=1e-8, nan_ok=True)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_input_gives_the_same_bits(threads):
    delta = simulate(cv=1, size=3000, seed=9)
    first, second = LearnableMixing.lognormal(), LearnableMixing.lognormal()
    expected = solve_strength(first, delta, torch.ones(3000), WIDE)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        again = solve_strength(second, delta, torch.ones(3000), WIDE)
    finally:
        torch.set_num_threads(before)
    assert again == expected
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)


def test_a_weibull_is_not_solved_for():
    with pytest.raises(InvalidInputError, match="weibull"):
        solve_strength(LearnableMixing.from_mean_cv("weibull", 0.1, 0.7), torch.ones(2), torch.ones(2), WIDE)


# --- the buffer and the solver -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param([3], [0, 1, 2], id="not-full"),
        pytest.param([3, 2], [0, 1, 2, 3, 4], id="full"),
        pytest.param([3, 3], [1, 2, 3, 4, 5], id="oldest-given-up"),
        pytest.param([2, 12, 1], [10, 11, 12, 13, 14], id="batch-larger-than-buffer"),
        pytest.param([], [], id="empty"),
    ],
)
def test_the_buffer_holds_the_most_recent_comparisons(sizes, expected):
    buffer = StrengthBuffer(5)
    for batch in torch.arange(sum(sizes)).split(sizes):
        buffer.add(batch.float().requires_grad_(), 100.0 + batch)
    assert buffer.logratio_diff.tolist() == expected
    assert buffer.weights.tolist() == [100 + i for i in expected]
    assert {(value.device.type, value.requires_grad) for value in buffer.state_dict().values()} == {("cpu", False)}


def run(solver, mixing, steps):
    """Metrics of steps on the same batches whenever they are asked for."""
    metrics = []
    for step in steps:
        delta = simulate(cv=1, size=32, seed=step).float()
        solver.after_step(mixing, delta, torch.ones(32), step)
        metrics.append({**solver.metrics(), **strength_metrics(mixing)})
    return metrics


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # one process is meant
@pytest.mark.parametrize("stop", [1, 6, 7])
def test_a_resumed_solver_goes_on_with_the_same_bits(stop, tmp_path):
    config = solved(every_steps=3, buffer_examples=100)
    whole, mixing = StrengthSolver(config), config.build()
    metrics = run(whole, mixing, range(1, 11))
    first, first_mixing = StrengthSolver(config), config.build()
    run(first, first_mixing, range(1, stop + 1))
    checkpoint.save(
        {"solver": first.state_dict(), "strength": first_mixing.state_dict()},
        checkpoint_id=tmp_path / "c",
        no_dist=True,
    )
    second, second_mixing = StrengthSolver(config), config.build()
    state = {"solver": second.state_dict(), "strength": second_mixing.state_dict()}
    checkpoint.load(state, checkpoint_id=tmp_path / "c", no_dist=True)
    second.load_state_dict(state["solver"])
    second_mixing.load_state_dict(state["strength"])
    assert run(second, second_mixing, range(stop + 1, 11)) == metrics[stop:]
    assert second.record() == whole.record()
    torch.testing.assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_the_solver_solves_when_it_is_due_and_counts():
    config = solved(every_steps=2, buffer_examples=64)
    solver, mixing = StrengthSolver(config), config.build()
    assert solver.metrics() == {"strength/solves": 0, "strength/failed_solves": 0, "strength/at_bound": 0}
    assert solver.record() == {
        "bounds": {"mean": pytest.approx((0.12 / 5, 0.12 * 5), rel=1e-3), "cv": (0.05, 2.0)},
        "solves": 0,
        "failed_solves": 0,
        "solves_at_bound": 0,
        "last_solve": None,
    }
    means = []
    batches = [torch.zeros(32), torch.zeros(32), simulate(1, 32, 0), 5 + torch.arange(32), simulate(1, 64, 0, sd=20)]
    at_bound = []
    for step, delta in enumerate([*batches, batches[-1]], 1):
        solver.after_step(mixing, delta, torch.ones(len(delta)), step)
        means.append(mixing.summary()["mean"])
        at_bound.append(solver.metrics()["strength/at_bound"])
    start = config.build().summary()["mean"]
    assert means[:3] == [start] * 3  # nothing is said, then nothing is due
    assert means[3] == means[4] != start
    assert means[5] != means[4]
    assert at_bound[:3] == [0, 0, 0]
    record = solver.record()
    assert (record["solves"], record["failed_solves"]) == (3, 1)
    assert record["solves_at_bound"] == sum(at_bound[3::2])
    assert record["last_solve"]["comparisons"] == 64
    assert record["last_solve"]["mean"] == pytest.approx(means[5], rel=1e-6)


# --- settings and records ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"max_mean_factor": 0.5}, "max_mean_factor: got 0.5; expected 1 or more", id="factor"),
        pytest.param({"min_cv": 3.0}, "min_cv: got 3.0; expected at most max_cv=2.0", id="crossed"),
        pytest.param(
            {"max_mean_factor": 1.0, "min_cv": 2.0}, "expected room for the mean or for the spread", id="no-room"
        ),
        pytest.param({"min_cv": 0.0}, "min_cv: got 0.0; expected a finite number above 0", id="no-spread"),
        pytest.param({"every_steps": 0}, "every_steps: got 0", id="never"),
    ],
)
def test_settings_of_a_solve_are_held_to(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        SolvedUpdate(**settings)


@pytest.mark.parametrize(
    ("strength", "settings"),
    [
        pytest.param(LogNormalStrength, {"scale": 0.04}, id="narrow"),
        pytest.param(LogNormalStrength, {"scale": 50.0}, id="wide"),
        pytest.param(GammaStrength, {"concentration": 0.2}, id="gamma"),
    ],
)
def test_a_solved_strength_starts_between_its_bounds(strength, settings):
    with pytest.raises(InvalidInputError, match=r"at the start: got .* expected from update.min_cv=0.05"):
        strength(update=SolvedUpdate(), **settings)


def test_a_point_has_its_mean_alone_to_solve_for():
    with pytest.raises(InvalidInputError, match="of a point: got 1; expected above 1"):
        PointStrength(update=SolvedUpdate(max_mean_factor=1))


@pytest.mark.parametrize("concentration", [0.25, 400.0])
def test_a_bound_is_a_place_to_start(concentration):
    assert GammaStrength(update=SolvedUpdate(), concentration=concentration).concentration == concentration


def test_the_record_has_start_end_reach_and_truth():
    strength = LogNormalStrength(update=LearnedUpdate(lr=1e-2))
    config = PreferenceConfig(strength=strength, optim=OptimConfig(warmup_steps=0))
    mixing = build_preference_loss(config).mixing
    with torch.no_grad():
        mixing.loc.add_(0.5)
    truth = StrengthTruth(family="gamma", mean=0.2, cv=0.5, utility_diff={})
    record = strength_record(mixing, config, num_steps=10, truth=truth)
    assert record["parameters"]["loc"] == pytest.approx(-1.8, abs=1e-6)
    assert record["initial"]["parameters"]["loc"] == pytest.approx(-2.3, abs=1e-6)
    assert record["cv"] == pytest.approx(record["initial"]["cv"], rel=1e-6)
    drift = constant_gradient_drift(config.optim, 1e-2, 10)
    assert record["constant_gradient_drift"] == drift > 0.1
    assert record["moved"] == pytest.approx({"loc": 0.5, "scale": 0.0}, abs=1e-6)
    assert record["share_of_drift"] == pytest.approx({"loc": 0.5 / drift, "scale": 0.0}, abs=1e-5)
    assert record["truth"]["parameters"] == pytest.approx({"concentration": 4.0, "rate": 20.0}, rel=1e-6)
    assert record["truth"]["cv"] == 0.5
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_a_frozen_strength_and_no_truth_claim_nothing():
    config = PreferenceConfig(strength=PointStrength())
    mixing = build_preference_loss(config).mixing
    record = strength_record(mixing, config, num_steps=10, truth=None)
    assert record.keys().isdisjoint({"truth", "share_of_drift", "solves"})
    assert (record["update"], record["constant_gradient_drift"], record["moved"]) == ("frozen", 0.0, {"v": 0.0})
    assert record["caution"] == "The strength was given, not learned."
    assert strength_metrics(mixing) == pytest.approx({"strength/mean": 0.1, "strength/sd": 0.0, "strength/v": 0.1})


def test_the_record_of_a_solved_strength_has_its_last_solve():
    config = PreferenceConfig(strength=solved(every_steps=1, buffer_examples=100))
    mixing, solver = build_preference_loss(config).mixing, StrengthSolver(config.strength)
    solver.after_step(mixing, torch.arange(1.0, 9.0), torch.ones(8), 1)
    record = strength_record(mixing, config, num_steps=1, truth=None, solver=solver)
    assert (record["update"], record["learning_rate"], record["constant_gradient_drift"]) == ("solved", 0.0, 0.0)
    assert (record["solves"], record["solves_at_bound"], record["last_solve"]["mean_at_bound"]) == (1, 1, 1)
    assert record["last_solve"]["std_error_log_mean"] is None
    assert record["mean"] == pytest.approx(record["bounds"]["mean"][1], rel=1e-6)
    assert record["moved"]["loc"] > math.log(5)  # the mean's factor, and a narrower spread at a given mean
    json.dumps(record, allow_nan=False)
