"""Where rules put their nodes, how well they integrate, and which rule is the default."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch

from mixlogit_align import ClosedForm, FixedDraws, ImportanceSampling, MonteCarlo, Quadrature, QuasiMonteCarlo
from mixlogit_align.econometrics import MixedLogitModel, nodes
from mixlogit_align.econometrics.likelihood import PanelData, SimulatedLoglik
from mixlogit_align.econometrics.nodes import NodeMaker, default_maker, effective_draws, first_maker
from mixlogit_align.errors import IntegrationError, InvalidInputError
from tests.econometrics.brute import choices, choose, read


def maker(rule: Any, random: dict[str, str], kind: str = "panel", **options: Any) -> NodeMaker:
    model = MixedLogitModel(read(choices(kind)), ["a"], random, **options)
    return NodeMaker(rule, PanelData(model.data, model.specification), model.specification)


def theta(made: NodeMaker) -> torch.Tensor:
    return torch.full((len(made.specification.names),), 0.4, dtype=torch.float64)


# ------------------------------------------------------------------ halves of the draws


@pytest.mark.parametrize(
    "rule",
    [
        MonteCarlo(33),
        MonteCarlo(32, kind="stratified"),
        MonteCarlo(32, kind="antithetic"),
        MonteCarlo(32, sharing="batch"),
        QuasiMonteCarlo("halton", 32),
        QuasiMonteCarlo("mlhs", 32),
        QuasiMonteCarlo("sobol", 32),
        ImportanceSampling(32, prior_share=0.0),
        ImportanceSampling(64, prior_share=0.25),
        FixedDraws(torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))),
    ],
    ids=repr,
)
def test_halves_are_the_draws_and_integrate_as_they_do(rule: Any) -> None:
    made = maker(rule, {"b": "normal", "c": "normal"})
    whole = made.nodes(theta(made))
    halves = made.halves(whole)
    assert {half.num for half in halves} <= {whole.num // 2, (whole.num + 1) // 2}
    both = torch.cat([half.base for half in halves], 1)
    assert torch.equal(both.sum(-1).sort(1).values, whole.base.sum(-1).sort(1).values)
    weights = torch.stack([half.log_weight.exp().sum(1) for half in halves])
    # equal weights sum to one; those of 32 and more draws about the modes nearly
    torch.testing.assert_close(weights, torch.ones_like(weights), rtol=0.0, atol=0.25 if made.centred else 1e-12)
    shares = torch.tensor([half.num / whole.num for half in halves], dtype=torch.float64)
    total = sum(share * half.log_weight.exp().sum(1) for share, half in zip(shares, halves, strict=True))
    torch.testing.assert_close(total, whole.log_weight.exp().sum(1), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("kind", ["stratified", "mlhs"])
def test_each_half_covers_the_first_dimension(kind: str) -> None:
    rule = MonteCarlo(32, kind="stratified") if kind == "stratified" else QuasiMonteCarlo("mlhs", 32)
    made = maker(rule, {"b": "normal", "c": "normal"})
    for half in made.halves(made.nodes(theta(made))):
        cell = (torch.special.ndtr(half.base[..., 0]) * 16).floor().long().sort(1).values
        assert torch.equal(cell, torch.arange(16).expand_as(cell))


def test_each_half_of_antithetic_draws_is_antithetic() -> None:
    made = maker(MonteCarlo(32, kind="antithetic"), {"b": "normal", "c": "normal"})
    sums = torch.stack([half.base.sum(1) for half in made.halves(made.nodes(theta(made)))])
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(
    "rule",
    [Quadrature(16), FixedDraws(torch.zeros(2, 2), torch.tensor([0.25, 0.75])), FixedDraws(torch.zeros(1, 2))],
    ids=["quadrature", "weighted", "one draw"],
)
def test_what_is_no_sample_has_no_halves(rule: Any) -> None:
    made = maker(rule, {"b": "normal", "c": "normal"})
    assert made.halves(made.nodes(theta(made))) == []


# ------------------------------------------------------------------ accuracy


COEFFICIENTS = {
    "normal": lambda z: 0.4 + 0.6 * z,
    "lognormal": lambda z: np.exp(0.4 + 0.6 * z),
    "-lognormal": lambda z: -np.exp(0.4 + 0.6 * z),
    "uniform": lambda z: 0.4 + 0.6 * (2 * scipy.stats.norm.cdf(z) - 1),
    "triangular": lambda z: 0.4 + 0.6 * scipy.stats.triang(0.5, -1, 2).ppf(scipy.stats.norm.cdf(z)),
    "truncated_normal": lambda z: scipy.stats.truncnorm(-0.4 / 0.6, np.inf, 0.4, 0.6).ppf(scipy.stats.norm.cdf(z)),
    "censored_normal": lambda z: np.maximum(0.0, 0.4 + 0.6 * z),
    "johnson_sb": lambda z: scipy.special.expit(0.4 + 0.6 * z),
    "gamma": lambda z: scipy.special.gammaincinv(0.4, scipy.stats.norm.cdf(z)) / 0.6,
}
# smooth in z: geometric convergence; with bends: the square of the step
SMOOTH = ("normal", "lognormal", "-lognormal", "johnson_sb")


def probabilities(rows: pd.DataFrame, a: float, *coefficients: tuple[str, Any]) -> Any:
    """Probability of an individual's choices; coefficients are arrays that broadcast."""
    result: Any = 1.0
    for _, offered in rows[rows["offered"] == 1].groupby("situation"):
        utility = [a * row.a + sum(np.asarray(value) * getattr(row, name) for name, value in coefficients)
                   for row in offered.itertuples()]  # fmt: skip
        chosen = int(offered["chosen"].to_numpy().argmax())
        result = result * scipy.special.softmax(np.stack(np.broadcast_arrays(*utility)), 0)[chosen]
    return result


@pytest.mark.parametrize("kind", ["panel", "cross-section"])
@pytest.mark.parametrize("family", COEFFICIENTS)
def test_quadrature_is_that_of_gauss_and_legendre(family: str, kind: str) -> None:
    frame = choices(kind, people=4)
    model = MixedLogitModel(read(frame), ["a"], {"b": family})
    first, second = ("concentration", "rate") if family == "gamma" else ("loc", "scale")
    found = model.loglik({"a": 0.5, f"b.{first}": 0.4, f"b.{second}": 0.6}, Quadrature())
    # Gauss and Legendre's rule in pieces between the bends
    ends = np.array([-7.5, -0.4 / 0.6, 0.0, 7.5])
    nodes, weight = np.polynomial.legendre.leggauss(200)
    half = np.diff(ends)[:, None] / 2
    z = ends[:-1, None] + half * (nodes + 1)
    weight = half * weight * scipy.stats.norm.pdf(z)
    exact = [
        (weight * probabilities(rows, 0.5, ("b", COEFFICIENTS[family](z)))).sum() for _, rows in frame.groupby("person")
    ]
    np.testing.assert_allclose(found.numpy(), np.log(exact), atol=1e-7 if family in SMOOTH else 2e-3)


def test_a_product_of_nodes_is_a_fine_grid() -> None:
    frame = choices("cross-section", people=5)
    model = MixedLogitModel(read(frame), ["a"], {"b": "normal", "c": "-lognormal"})
    at = {"a": 0.5, "b.loc": 0.4, "b.scale": 0.8, "c.loc": 0.1, "c.scale": 0.5}
    found = model.loglik(at, Quadrature())
    z, weight = np.polynomial.hermite_e.hermegauss(120)
    weight = weight / weight.sum()
    coefficients = ("b", (0.4 + 0.8 * z)[:, None]), ("c", -np.exp(0.1 + 0.5 * z))
    exact = [weight @ probabilities(rows, 0.5, *coefficients) @ weight for _, rows in frame.groupby("person")]
    np.testing.assert_allclose(found.numpy(), np.log(exact), atol=1e-7)


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        # 4 times the largest of nine individuals' errors under 50 other seeds
        (ImportanceSampling(1024), 2e-3),
        (ImportanceSampling(1024, prior_share=0.1), 4e-3),
        (QuasiMonteCarlo("sobol", 4096), 8e-3),
        (QuasiMonteCarlo("halton", 4096, seed=None), 2e-2),
        (QuasiMonteCarlo("mlhs", 4096), 0.1),
        (MonteCarlo(4096), 0.1),
        (MonteCarlo(4096, sharing="batch"), 0.1),
    ],
    ids=repr,
)
def test_draws_in_two_dimensions_of_a_panel(rule: Any, error: float) -> None:
    frame = choices("panel")
    model = MixedLogitModel(read(frame), ["a"], {"b": "normal", "c": "-lognormal"})
    at = {"a": 0.5, "b.loc": 0.4, "b.scale": 0.8, "c.loc": 0.1, "c.scale": 0.5}
    exact = model.loglik(at, Quadrature(200))
    torch.testing.assert_close(model.loglik(at, rule), exact, rtol=0, atol=error)


def test_centred_quadrature_follows_long_panels() -> None:
    """200 choices of one individual: a posterior a twentieth as wide as the prior."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame([("p", t, j, rng.standard_normal()) for t in range(200) for j in range(2)],
                        columns=["person", "situation", "alternative", "b"])  # fmt: skip
    frame = choose(rows.assign(offered=1, frequency=1.0, a=rng.standard_normal(400)), {"a": 0.5, "b": 2.5}, seed=1)
    model = MixedLogitModel(read(frame, variables=["a", "b"]), ["a"], {"b": "normal"})
    found = model.loglik({"a": 0.5, "b.loc": 0.0, "b.scale": 4.0}, Quadrature())
    z = np.linspace(-0.5, 2.0, 5001)
    values = probabilities(frame, 0.5, ("b", 4.0 * z)) * scipy.stats.norm.pdf(z)
    assert float(found[0]) == pytest.approx(math.log(scipy.integrate.simpson(values, x=z)), abs=1e-8)


# ------------------------------------------------------------------ nodes of the rules


@pytest.mark.parametrize(
    ("rule", "rows", "draws"),
    [
        (QuasiMonteCarlo("sobol", 16), 9, 16),
        (MonteCarlo(10), 9, 10),
        (MonteCarlo(10, sharing="batch"), 1, 10),
        (ImportanceSampling(32), 9, 32),
    ],
    ids=repr,
)
def test_one_row_an_individual_or_one_for_all(rule: Any, rows: int, draws: int) -> None:
    made = maker(rule, {"b": "normal", "c": "uniform"})
    found = made.nodes(theta(made))
    assert found.base.shape == (rows, draws, 2)
    assert found.num == draws


@pytest.mark.parametrize("rule", [Quadrature(), QuasiMonteCarlo("sobol", 16), MonteCarlo(10)], ids=repr)
def test_weights_sum_to_one(rule: Any) -> None:
    made = maker(rule, {"b": "normal", "c": "uniform"}, "cross-section")
    assert float(made.nodes(theta(made)).log_weight.exp().sum()) == pytest.approx(1.0, rel=1e-12)


def test_nodes_of_no_weight_are_left_out() -> None:
    made = maker(Quadrature(64), {"b": "normal", "c": "normal"}, "cross-section")
    found = made.nodes(theta(made))
    assert 1000 < found.num < 64**2


def test_given_draws_of_one_set_or_one_an_individual_and_their_weights() -> None:
    base = torch.randn(9, 4, 2, dtype=torch.float64)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    shared = maker(FixedDraws(base[0], weights[:, None].expand(4, 2)[:, 0]), {"b": "normal", "c": "normal"})
    found = shared.nodes(theta(shared))
    torch.testing.assert_close(found.base, base[:1], rtol=0, atol=0)
    torch.testing.assert_close(found.log_weight.exp(), weights[None], rtol=1e-15, atol=0)
    own = maker(FixedDraws(base), {"b": "normal", "c": "normal"})
    assert own.nodes(theta(own)).base.shape == (9, 4, 2)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (8, 4, 2), (9, 2, 4), (1, 9, 4, 2)])
def test_given_draws_of_another_shape(shape: tuple[int, ...]) -> None:
    made = maker(FixedDraws(torch.zeros(shape)), {"b": "normal", "c": "normal"})
    with pytest.raises(InvalidInputError, match=r"\(9, K, 2\) or \(K, 2\)"):
        made.nodes(theta(made))


@pytest.mark.parametrize(
    ("rule", "random", "says"),
    [
        (ClosedForm(), {"b": "normal"}, "QuasiMonteCarlo"),
        (Quadrature(), dict.fromkeys("bcd", "normal") | {"a": "normal"}, "at most a million nodes"),
        (Quadrature(1001), dict.fromkeys("bc", "normal"), "1002001 nodes"),
    ],
)
def test_rules_that_are_refused(rule: Any, random: dict[str, str], says: str) -> None:
    model = MixedLogitModel(read(choices()), [name for name in "a" if name not in random], random)
    with pytest.raises(IntegrationError, match=says):
        NodeMaker(rule, PanelData(model.data, model.specification), model.specification)


@pytest.mark.parametrize(
    ("rule", "few"),
    [
        (Quadrature(), Quadrature(12)),
        (Quadrature(10), Quadrature(10)),
        (QuasiMonteCarlo("halton", 500, seed=None), QuasiMonteCarlo("halton", 64, seed=None)),
        (QuasiMonteCarlo("mlhs", 500, 7), QuasiMonteCarlo("mlhs", 64, 7)),
        (MonteCarlo(500), MonteCarlo(64)),
        (ImportanceSampling(128), QuasiMonteCarlo("sobol", 64)),
        (QuasiMonteCarlo("halton", 100), QuasiMonteCarlo("sobol", 64)),
    ],
    ids=repr,
)
def test_few_draws_to_begin_with(rule: Any, few: Any) -> None:
    assert maker(rule, {"b": "normal", "c": "normal"}).few().rule == few


def test_few_of_given_draws_are_the_first() -> None:
    rule = FixedDraws(torch.randn(100, 2))
    found = maker(rule, {"b": "normal", "c": "normal"}).few().rule
    torch.testing.assert_close(found.base, rule.base[:64], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("rule", "again"),
    [
        (Quadrature(20), [Quadrature(40), None]),
        (
            QuasiMonteCarlo("halton", 64, seed=None),
            [QuasiMonteCarlo("halton", 64, 1), QuasiMonteCarlo("halton", 64, 2)],
        ),
        (QuasiMonteCarlo("sobol", 64, 5), [QuasiMonteCarlo("sobol", 64, 6), QuasiMonteCarlo("sobol", 64, 7)]),
        (ImportanceSampling(64), [ImportanceSampling(64, seed=1), ImportanceSampling(64, seed=2)]),
        (FixedDraws(torch.zeros(5, 2)), [None, None]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_other_draws_or_twice_the_nodes(rule: Any, again: list[Any]) -> None:
    made = maker(rule, {"b": "normal", "c": "normal"}, "cross-section")
    found = [made.again(redraw) for redraw in (1, 2)]
    assert [other and other.rule for other in found] == again


def test_effective_draws_are_those_of_the_weights() -> None:
    made = maker(MonteCarlo(50, sharing="batch"), {"b": "normal", "c": "normal"})
    loglik = SimulatedLoglik(made.data, made.specification, made.nodes(theta(made)))
    weight = loglik.joint(theta(made)).softmax(1)
    torch.testing.assert_close(effective_draws(loglik, theta(made)), 1 / (weight**2).sum(1))


# ------------------------------------------------------------------ the default


SOBOL = QuasiMonteCarlo("sobol", 1024)
CENTRED = ImportanceSampling(128, prior_share=0.1)


@pytest.mark.parametrize(
    ("random", "kind", "rule"),
    [
        ({}, "panel", Quadrature(64)),
        ({"b": "normal"}, "panel", Quadrature(64)),
        ({"b": "lognormal"}, "cross-section", Quadrature(64)),
        ({"b": "normal", "c": "normal"}, "cross-section", Quadrature(64)),
        ({"b": "normal", "c": "normal"}, "panel", CENTRED),
        ({"b": "normal", "c": "normal", "d": "lognormal"}, "panel", CENTRED),
        ({"b": "normal", "c": "normal", "d": "normal"}, "cross-section", SOBOL),
    ],
)
def test_which_rule_for_which_data(random: dict[str, str], kind: str, rule: Any) -> None:
    made = maker(Quadrature(12) if len(random) < 2 else SOBOL, random, kind)
    assert default_maker(made.data, made.specification, theta(made)).rule == rule
    few = Quadrature(12) if len(random) < 2 else QuasiMonteCarlo("sobol", 64)
    assert first_maker(made.data, made.specification).rule == few


def test_scale_heterogeneity_is_a_dimension() -> None:
    made = maker(SOBOL, {"b": "normal"}, "cross-section", scale_heterogeneity=True)
    assert default_maker(made.data, made.specification, theta(made)).rule == Quadrature(64)
    made = maker(SOBOL, {"b": "normal", "c": "normal"}, "cross-section", scale_heterogeneity=True)
    assert default_maker(made.data, made.specification, theta(made)).rule == SOBOL


@pytest.mark.parametrize(
    ("kind", "constant", "value"),
    [("panel", "_LEAST_EFFECTIVE", 0.99), ("cross-section", "_AFFORDABLE", 1.0)],
    ids=["importance weights too uneven", "nodes too many"],
)
def test_quasi_random_draws_where_better_is_out_of_reach(
    kind: str, constant: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, constant, value)
    made = maker(SOBOL, {"b": "normal", "c": "normal"}, kind)
    assert default_maker(made.data, made.specification, theta(made)).rule == SOBOL
