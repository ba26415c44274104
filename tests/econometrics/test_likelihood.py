"""The fused kernel against the model written out (tests/econometrics/brute.py), the distributions and xlogit."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import scipy.special
import torch

from mixlogit_align import FixedDraws, MixedLogit, MixedMultinomialLogit, PanelMixedLogit, Quadrature, QuasiMonteCarlo
from mixlogit_align.distributions import Triangular
from mixlogit_align.econometrics import MixedLogitModel, likelihood
from mixlogit_align.econometrics.likelihood import Nodes, PanelData, SimulatedLoglik, node_derivatives
from mixlogit_align.econometrics.nodes import NodeMaker
from mixlogit_align.errors import InvalidInputError
from tests.econometrics import brute
from tests.econometrics.brute import CASES, Case, choices, choose, read

KINDS = ("panel", "cross-section")
names = {"ids": lambda case: case.name}


def kernel(case: Case, frame: pd.DataFrame, *, draws: int = 5, seed: int = 0) -> tuple[SimulatedLoglik, torch.Tensor]:
    """Nodes of unequal weights, each individual's own; and the estimated coordinates of the case's parameters."""
    model = case.of(read(frame))
    people = model.data.num_individuals
    if case.bases:
        base = case.base(people, draws, seed)
        log_weight = torch.log_softmax(torch.randn(people, draws, dtype=torch.float64), 1)
    else:
        base, log_weight = torch.zeros(1, 1, 0, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    spec = model.specification
    assert spec.names == tuple(case.params)
    theta = spec.theta(torch.tensor(list(case.params.values()), dtype=torch.float64))
    return SimulatedLoglik(PanelData(model.data, spec), spec, Nodes(base, log_weight)), theta


def written_out(case: Case, frame: pd.DataFrame, nodes: Nodes) -> Callable[[torch.Tensor], torch.Tensor]:
    """Estimated coordinates to individuals' log-likelihoods."""
    return lambda theta: brute.loglik(frame, case, case.natural(theta), nodes.base, nodes.log_weight)


# ------------------------------------------------------------------ values and derivatives


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, **names)
def test_values_are_those_written_out(case: Case, kind: str) -> None:
    frame = choices(kind)
    fused, theta = kernel(case, frame)
    expected = written_out(case, frame, fused.nodes)(theta)
    torch.testing.assert_close(fused.values(theta), expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(fused.scores(theta)[0], expected, rtol=1e-12, atol=1e-13)
    weights = torch.tensor(frame.groupby("person", sort=False)["frequency"].first().to_numpy())
    assert fused.gradient(theta)[0] == pytest.approx(float(weights @ expected), rel=1e-13)
    assert fused.derivatives(theta).value == pytest.approx(float(weights @ expected), rel=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [case for case in CASES if case.differentiable], **names)
def test_derivatives_are_those_written_out(case: Case, kind: str) -> None:
    frame = choices(kind)
    fused, theta = kernel(case, frame)
    value = written_out(case, frame, fused.nodes)
    scores = torch.autograd.functional.jacobian(value, theta)
    torch.testing.assert_close(fused.scores(theta)[1], scores, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(fused.gradient(theta)[1], fused.weights @ scores, rtol=1e-10, atol=1e-11)
    at = fused.derivatives(theta)
    torch.testing.assert_close(at.gradient, fused.weights @ scores, rtol=1e-10, atol=1e-11)
    if not fused.specification.breaks:  # the curvature of a break is no draw's, see test_a_censored_normal
        hessian = torch.autograd.functional.hessian(lambda t: fused.weights @ value(t), theta)
        torch.testing.assert_close(at.hessian, hessian, rtol=1e-9, atol=1e-10)
    outer = fused.outer_product(theta)
    torch.testing.assert_close(outer.hessian, -scores.T @ (fused.weights[:, None] * scores), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [case for case in CASES if not case.differentiable], **names)
def test_derivatives_are_differences_of_what_is_written_out(case: Case, kind: str) -> None:
    frame = choices(kind)
    fused, theta = kernel(case, frame)
    value = written_out(case, frame, fused.nodes)
    steps = 1e-4 * torch.eye(len(theta), dtype=torch.float64)
    # four-point rule: error of order 1e-16 from the step and 1e-12 from rounding
    scores = torch.stack(
        [
            (8.0 * (value(theta + h) - value(theta - h)) - value(theta + 2 * h) + value(theta - 2 * h)) / 12e-4
            for h in steps
        ],
        -1,
    )
    torch.testing.assert_close(fused.scores(theta)[1], scores, rtol=1e-7, atol=1e-9)
    rows = [(fused.gradient(theta + h)[1] - fused.gradient(theta - h)[1]) / 2e-4 for h in steps]
    torch.testing.assert_close(fused.derivatives(theta).hessian, torch.stack(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES, **names)
def test_scores_of_the_model_are_in_natural_parameters(case: Case) -> None:
    frame = choices()
    model = case.of(read(frame))
    rule = FixedDraws(case.base(1, 4)[0]) if case.bases else None
    scores = model.scores(case.params, rule)
    sizes = dict.fromkeys(case.params, 1e-5)
    differences = []
    for name, step in sizes.items():
        up, down = (model.loglik(case.params | {name: case.params[name] + sign * step}, rule) for sign in (1, -1))
        differences.append((up - down) / (2 * step))
    torch.testing.assert_close(scores, torch.stack(differences, -1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", [case for case in CASES if case.bases], **names)
def test_derivatives_in_the_node_are_those_written_out(case: Case) -> None:
    """The density whose mode centres the draws: log N(z; 0, I) + log-likelihood."""
    frame = choices()
    model = case.of(read(frame))
    spec = model.specification
    theta = spec.theta(torch.tensor(list(case.params.values()), dtype=torch.float64))
    z = 0.5 * torch.randn(model.data.num_individuals, len(case.bases), dtype=torch.float64)
    value, gradient, hessian = node_derivatives(PanelData(model.data, spec), spec, theta, z)

    def density(point: torch.Tensor) -> torch.Tensor:
        u = torch.special.ndtr(point)
        made = {"z": point, "u": 2 * u - 1, "p": u}
        made["t"] = torch.where(u < 0.5, (2 * u).sqrt() - 1, 1 - (2 - 2 * u).sqrt())
        base = torch.stack([made[letter][:, m] for m, letter in enumerate(case.bases)], -1)[:, None]
        one = torch.zeros(1, 1, dtype=torch.float64)
        return brute.loglik(frame, case, case.natural(theta), base, one) - 0.5 * (point**2).sum(1)

    torch.testing.assert_close(value, density(z), rtol=1e-12, atol=1e-12)
    steps = 1e-4 * torch.eye(z.shape[1], dtype=torch.float64)
    slopes = torch.stack([(density(z + h) - density(z - h)) / 2e-4 for h in steps], -1)
    torch.testing.assert_close(gradient, slopes, rtol=1e-5, atol=1e-6)
    pairs = [
        [density(z + g + h) - density(z + g - h) - density(z - g + h) + density(z - g - h) for h in steps]
        for g in steps
    ]
    curvature = torch.stack([torch.stack(row, -1) for row in pairs], -1) / 4e-8
    torch.testing.assert_close(hessian, curvature, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("draws", [1, 2, 7])
def test_one_set_of_draws_for_all(draws: int) -> None:
    (case,) = (case for case in CASES if case.name == "one block of all")
    frame = choices()
    model = case.of(read(frame))
    base = case.base(1, draws)
    for rule in (FixedDraws(base[0]), FixedDraws(base.expand(model.data.num_individuals, -1, -1))):
        expected = brute.loglik(
            frame, case, case.natural(torch.tensor(list(case.params.values()), dtype=torch.float64)), base,
            torch.full((1, draws), -math.log(draws), dtype=torch.float64),
        )  # fmt: skip
        torch.testing.assert_close(model.loglik(case.params, rule), expected, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------ extremes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["conditional logit", "all random", "-lognormal", "everything at once"])
@pytest.mark.parametrize("units", [30.0, 1e3])
def test_extreme_utilities_are_no_nan(name: str, units: float, kind: str) -> None:
    (case,) = (case for case in CASES if case.name == name)
    frame = choices(kind, units=units)
    fused, theta = kernel(case, frame)
    expected = written_out(case, frame, fused.nodes)(theta)
    assert float(expected.min()) < -units / 10
    torch.testing.assert_close(fused.values(theta), expected, rtol=1e-12, atol=1e-12)
    values, scores = fused.scores(theta)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    by_hand = torch.autograd.functional.jacobian(written_out(case, frame, fused.nodes), theta)
    torch.testing.assert_close(scores, by_hand, rtol=1e-8, atol=1e-8 * units)
    assert fused.derivatives(theta).finite


def test_conditional_logit_by_scipy() -> None:
    frame = choices("balanced", units=20.0)
    case = next(case for case in CASES if case.name == "conditional logit")
    fused, theta = kernel(case, frame)
    utility = (0.4 * frame["a"] - 0.7 * frame["b"]).to_numpy().reshape(-1, 3)
    chosen = frame["chosen"].to_numpy().reshape(-1, 3)
    by_situation = (scipy.special.log_softmax(utility, 1) * chosen).sum(1)
    np.testing.assert_allclose(fused.values(theta), by_situation.reshape(-1, 3).sum(1), rtol=1e-12)


def test_an_alternative_of_no_chance_counts_nothing() -> None:
    """Utilities of -inf where absent are as good as no row."""
    frame = choices()
    case = next(case for case in CASES if case.name == "all random")
    rule = FixedDraws(case.base(1, 6)[0])
    listed, lacking = case.of(read(frame)), case.of(read(frame[frame["offered"] == 1]))
    torch.testing.assert_close(listed.loglik(case.params, rule), lacking.loglik(case.params, rule), rtol=1e-14, atol=0)


# ------------------------------------------------------------------ chunks, groups, threads


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, **names)
def test_chunks_do_not_change_numbers(case: Case, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = choices(kind)
    whole, theta = kernel(case, frame)
    monkeypatch.setattr(likelihood, "_CHUNK", 1)
    torch.manual_seed(0)
    single = SimulatedLoglik(whole.data, whole.specification, whole.nodes)
    assert len(single._chunks) == 9
    assert len(whole._chunks) == len(whole.data.groups) < 9
    # other sizes of matrix products may round otherwise
    torch.testing.assert_close(single.values(theta), whole.values(theta), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(single.scores(theta)[1], whole.scores(theta)[1], rtol=1e-12, atol=1e-13)
    at, expected = single.derivatives(theta), whole.derivatives(theta)
    torch.testing.assert_close(at.hessian, expected.hessian, rtol=1e-11, atol=1e-12)


def test_individuals_of_similar_length_share_a_group() -> None:
    case = next(case for case in CASES if case.name == "all random")
    model = case.of(read(choices(people=14)))
    data = PanelData(model.data, model.specification)
    rows = [sorted(group.rows.tolist()) for group in data.groups]
    # lengths are 1 + n % 7: 5 to 7 situations are padded to 7, 3 and 4 to 4, 2 and 1 stay alone
    assert rows == [[4, 5, 6, 11, 12, 13], [2, 3, 9, 10], [1, 8], [0, 7]]
    assert [group.varying.shape[1] // data.others for group in data.groups] == [7, 4, 2, 1]


def test_threads_do_not_change_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.name == "everything at once")
    alone, theta = kernel(case, choices())
    monkeypatch.setattr(likelihood, "_CHUNK", 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        both = SimulatedLoglik(alone.data, alone.specification, alone.nodes)
        torch.testing.assert_close(both.scores(theta)[1], alone.scores(theta)[1], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(both.derivatives(theta).hessian, alone.derivatives(theta).hessian)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_other_frequencies_of_the_same_individuals() -> None:
    case = next(case for case in CASES if case.name == "all random")
    fused, theta = kernel(case, choices())
    twice = fused.weighted(2.0 * fused.weights)
    assert twice.gradient(theta)[0] == pytest.approx(2.0 * fused.gradient(theta)[0], rel=1e-14)
    torch.testing.assert_close(twice.derivatives(theta).hessian, 2.0 * fused.derivatives(theta).hessian)


# ------------------------------------------------------------------ the exact distributions


LOC, SCALE = torch.tensor([0.4, 0.8], dtype=torch.float64)
MIXING: dict[str, Any] = {
    "normal": dist.Normal(LOC, SCALE),
    "lognormal": dist.LogNormal(LOC, SCALE),
    "uniform": dist.Uniform(LOC - SCALE, LOC + SCALE),
    "triangular": Triangular(LOC - SCALE, LOC + SCALE),
}


# The kernel's default rule is of the normal variable behind the draw, in which the ends and the centre of a uniform
# and a triangular are bends: its 64 nodes resolve them less well than the distributions' rule, which knows their
# support. Of a normal the distributions' rule differs from scipy's by 4e-16, the kernel's by 3e-9.
BY_QUADRATURE = {"normal": 1e-8, "lognormal": 1e-8, "uniform": 1e-5, "triangular": 1e-4}


def pairs(situations: int) -> tuple[pd.DataFrame, torch.Tensor, torch.Tensor]:
    """Binary choices, utility differences (N, T) and whether the second was chosen."""
    rng = np.random.default_rng(3)
    people = 12
    rows = pd.DataFrame(
        [(f"p{n}", f"{n}-{t}", j) for n in range(people) for t in range(situations) for j in (0, 1)],
        columns=["person", "situation", "alternative"],
    )
    rows = rows.assign(b=rng.standard_normal(len(rows)), offered=1, frequency=1.0)
    second = rng.integers(0, 2, people * situations)
    rows["chosen"] = np.stack([1 - second, second], 1).reshape(-1)
    values = torch.tensor(rows["b"].to_numpy().reshape(people, situations, 2))
    return rows, values[..., 1] - values[..., 0], torch.from_numpy(second.reshape(people, situations)).double()


@pytest.mark.parametrize("situations", [1, 4])
@pytest.mark.parametrize("family", MIXING)
def test_with_one_coefficient_the_kernel_is_the_distribution(family: str, situations: int) -> None:
    rows, difference, second = pairs(situations)
    mixing = MIXING[family]
    base = Case("", {}, lambda p, v, z: {}, {}, bases={"uniform": "u", "triangular": "t"}.get(family, "z")).base(12, 6)
    at = {"b.loc": 0.4, "b.scale": 0.8}
    model = MixedLogitModel(read(rows, variables=["b"]), random={"b": family})

    def exact(rule: Any) -> torch.Tensor:
        if situations == 1:
            return MixedLogit(difference[:, 0], mixing, rule).log_prob(second[:, 0])
        return PanelMixedLogit(difference, mixing, rule).log_prob(second)

    same_nodes = model.loglik(at, FixedDraws(base))
    torch.testing.assert_close(same_nodes, exact(FixedDraws(base[..., 0])), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.loglik(at, Quadrature()), exact(Quadrature()), rtol=0, atol=BY_QUADRATURE[family])


@pytest.mark.parametrize("family", MIXING)
def test_with_one_coefficient_and_several_alternatives_too(family: str) -> None:
    frame = choices("cross-section")
    model = MixedLogitModel(read(frame, panel=False), random={"b": family})
    data = model.data
    mixing = MIXING[family]
    base = torch.rand(9, 6, dtype=torch.float64) - 0.5
    exact = {
        rule: MixedMultinomialLogit(
            data.attribute("b"), mixing, rule, available=data.available
        ).log_prob(data.choice)
        for rule in (FixedDraws(base), Quadrature())
    }  # fmt: skip
    drawn, quadrature = exact.values()
    at = {"b.loc": 0.4, "b.scale": 0.8}
    torch.testing.assert_close(model.loglik(at, FixedDraws(base[..., None])), drawn, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.loglik(at, Quadrature()), quadrature, rtol=0, atol=BY_QUADRATURE[family])


# ------------------------------------------------------------------ xlogit


SPECIFICATIONS = {
    "normal": {"b": "normal", "c": "normal"},
    "lognormal": {"b": "lognormal", "c": "-lognormal"},
    "uniform": {"b": "uniform", "c": "normal"},
    "triangular": {"b": "triangular", "c": "uniform"},
    "censored_normal": {"b": "censored_normal", "c": "-censored_normal"},
    "all": {"a": "normal", "b": "lognormal", "c": "uniform", "d": "triangular"},
}


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
@pytest.mark.parametrize("kind", ["panel", "cross-section", "balanced"])
@pytest.mark.parametrize("specification", SPECIFICATIONS)
def test_on_xlogits_draws_log_likelihood_and_gradient_are_xlogits(
    study: Callable[[str], ModuleType], specification: str, kind: str, weighted: bool
) -> None:
    """Relative 1e-8; choice sets vary in the panel and the cross-section."""
    pytest.importorskip("xlogit")
    random = SPECIFICATIONS[specification]
    fixed = [name for name in "ad" if name not in random]
    # xlogit wants every alternative in every situation
    frame = choices(kind, people=30).sort_values(["person", "situation", "alternative"])
    frame = choose(frame, {"a": 0.5, "b": 1.0, "c": -0.5}, seed=5)
    if not weighted:
        frame["frequency"] = 1.0
    params = dict.fromkeys(fixed, 0.3)
    params |= {f"{name}.loc": 0.2 - 0.1 * i for i, name in enumerate(random)}
    params |= {f"{name}.scale": 0.5 + 0.1 * i for i, name in enumerate(random)}
    peer = study("_choice_cases").Peer(
        {name: frame[name].to_numpy() for name in (*fixed, *random)},
        frame["chosen"].to_numpy(),
        frame["alternative"].nunique(),
        random,
        individual=None if kind == "cross-section" else frame["person"].to_numpy(),
        available=None if kind == "balanced" else frame["offered"].to_numpy(),
        weights=frame["frequency"].to_numpy() if weighted else None,
    )
    draws = peer.draws(40)
    expected, slopes = peer.loglik_gradient(params, draws)

    model = MixedLogitModel(read(frame, panel=kind != "cross-section"), fixed, random)
    for rule in (FixedDraws(torch.from_numpy(draws).mT), QuasiMonteCarlo("halton", 40, seed=None)):
        found = model.data.weights @ model.loglik(params, rule)
        assert float(found) == pytest.approx(expected, rel=1e-8)
        gradient = model.data.weights @ model.scores(params, rule)
        by_name = dict(zip(model.specification.names, gradient.tolist(), strict=True))
        size = max(abs(slopes))
        assert [by_name[name] for name in peer.names] == pytest.approx(slopes.tolist(), rel=1e-8, abs=1e-8 * size)


@pytest.mark.parametrize(
    ("random", "tolerance"),
    [
        pytest.param(dict.fromkeys("abcd", "uniform"), 0.0, id="the uniforms, bit by bit"),
        # quantiles by another library
        pytest.param(SPECIFICATIONS["all"], 1e-13, id="four families"),
        pytest.param(SPECIFICATIONS["censored_normal"], 1e-13, id="censored_normal"),
    ],
)
def test_the_plain_halton_sequence_is_xlogits(
    study: Callable[[str], ModuleType], random: dict[str, str], tolerance: float
) -> None:
    pytest.importorskip("xlogit")
    frame = choices("balanced", people=50)
    columns = {name: frame[name].to_numpy() for name in random}
    peer = study("_choice_cases").Peer(columns, frame["chosen"], 3, random, frame["person"].to_numpy())
    model = MixedLogitModel(read(frame), random=random)
    data, spec = PanelData(model.data, model.specification), model.specification
    ours = NodeMaker(QuasiMonteCarlo("halton", 60, seed=None), data, spec).nodes(torch.zeros(len(spec.names)))
    torch.testing.assert_close(ours.base, torch.from_numpy(peer.draws(60)).mT, rtol=tolerance, atol=0)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("at", "says"),
    [
        ({"a": 0.1}, r"no \['b.loc', 'b.scale'\]"),
        ({"a": 0.1, "b.loc": 0.2, "b.scale": 1.0, "c": 2.0}, r"at.*'c'"),
        (dist.Normal(0.0, 1.0), "natural parameters"),
    ],
)
def test_parameters_that_are_none(at: Any, says: str) -> None:
    model = MixedLogitModel(read(choices()), ["a"], {"b": "normal"})
    with pytest.raises(InvalidInputError, match=says):
        model.loglik(at)
