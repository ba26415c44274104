from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from mixlogit_align import MixedLogit
from mixlogit_align.econometrics import simulate_choices
from mixlogit_align.errors import InvalidInputError


def f64(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def test_the_seed_decides_and_the_global_generator_does_not() -> None:
    torch.manual_seed(1)
    first = simulate_choices(dist.LogNormal(*f64(0.0, 0.5)), num_individuals=20, num_situations=3, seed=7)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)  # untouched
    again = simulate_choices(dist.LogNormal(*f64(0.0, 0.5)), num_individuals=20, num_situations=3, seed=7)
    other = simulate_choices(dist.LogNormal(*f64(0.0, 0.5)), num_individuals=20, num_situations=3, seed=8)
    assert torch.equal(first.choice, again.choice)
    assert torch.equal(first.strength, again.strength)
    assert not torch.equal(first.strength, other.strength)


def test_the_table_holds_what_was_drawn() -> None:
    simulated = simulate_choices(dist.Gamma(*f64(2.0, 1.0)), num_individuals=4, num_situations=3, seed=1)
    frame, data = simulated.frame, simulated.data
    assert list(frame.columns) == ["individual", "situation", "alternative", "x", "choice"]
    assert len(frame) == 4 * 3 * 2
    assert frame.groupby("situation")["choice"].sum().eq(1).all()
    torch.testing.assert_close(data.attribute("x"), simulated.attributes.flatten(0, 1))
    assert data.choice.tolist() == simulated.choice.flatten().tolist()
    assert data.is_panel
    assert not simulate_choices(dist.Gamma(*f64(2.0, 1.0)), num_individuals=4, seed=1).data.is_panel


def test_one_distribution_for_each_individual() -> None:
    strengths = torch.arange(1.0, 6.0, dtype=torch.float64)
    simulated = simulate_choices(dist.Delta(strengths), num_individuals=5, num_situations=2, seed=0)
    assert torch.equal(simulated.strength, strengths)


@pytest.mark.parametrize("mixing", [dist.LogNormal(*f64(0.3, 0.8)), dist.Normal(*f64(0.5, 1.0)), dist.Delta(*f64(1.0))])
def test_strengths_are_drawn_from_the_mixing(mixing: dist.TorchDistribution) -> None:
    # The mean of sigma(strength) estimates P(1) at a difference of 1: |z| <= 5 fails by chance in 6e-7 of the runs.
    simulated = simulate_choices(mixing, num_individuals=40_000, seed=5)
    probability = MixedLogit(torch.ones((), dtype=torch.float64), mixing).probs
    drawn = torch.sigmoid(simulated.strength)
    spread = float(drawn.std()) / math.sqrt(40_000)
    assert abs(float(drawn.mean() - probability)) <= 5.0 * spread + 1e-12  # a point mass has no spread


@pytest.mark.parametrize("num_alternatives", [2, 4])
def test_choices_follow_the_softmax_of_strength_times_attribute(num_alternatives: int) -> None:
    # Sum of (chosen - P) * x over 20,000 choices has variance sum of Var_P(x): |z| <= 5, by chance 6e-7.
    simulated = simulate_choices(
        dist.LogNormal(*f64(0.0, 0.7)), num_individuals=20_000, num_alternatives=num_alternatives, seed=11
    )
    x = simulated.attributes[:, 0]
    p = torch.softmax(simulated.strength[:, None] * x, -1)
    chosen = x.gather(1, simulated.choice)[:, 0]
    mean = (p * x).sum(-1)
    variance = (p * x**2).sum(-1) - mean**2
    assert abs(float((chosen - mean).sum() / variance.sum().sqrt())) <= 5.0
    assert set(simulated.choice.flatten().tolist()) == set(range(num_alternatives))


@pytest.mark.parametrize(
    ("mixing", "counts", "says"),
    [
        (dist.Delta(*f64(1.0)), {"num_individuals": 0}, "num_individuals"),
        (dist.Delta(*f64(1.0)), {"num_individuals": 5, "num_situations": 0}, "num_situations"),
        (dist.Delta(*f64(1.0)), {"num_individuals": 5, "num_alternatives": 1}, "num_alternatives"),
        (dist.Delta(torch.ones(3)), {"num_individuals": 5}, r"shape \(3,\)"),
        (dist.Normal(torch.zeros(5), 1.0).to_event(1), {"num_individuals": 3}, r"shape \(5,\)"),
    ],
)
def test_what_cannot_be_simulated_is_refused(mixing: dist.TorchDistribution, counts: dict[str, int], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        simulate_choices(mixing, **counts, seed=0)
