from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from mixlogit_align.econometrics import ChoiceData, simulate_choices
from mixlogit_align.econometrics.inference_data import inference_data, warn_of_chains, warn_of_guide
from mixlogit_align.errors import ConvergenceWarning

CHAINS, DRAWS = 4, 300


def some_data() -> ChoiceData:
    return simulate_choices({"x": 1.0}, fixed=["x"], num_individuals=3, num_situations=2, seed=0).data


def drawn(
    *, shift: float = 0.0, persistence: float = 0.0, diverging: int = 0, energy: float = 0.0, chains: int = CHAINS
):
    """Draws of two parameters: the last chain shifted, successive draws alike, energies alike."""
    rng = np.random.default_rng(1)

    def walk(persistence: float) -> np.ndarray:
        values = rng.standard_normal((chains, DRAWS))
        for d in range(1, DRAWS):
            values[:, d] = persistence * values[:, d - 1] + np.sqrt(1 - persistence**2) * values[:, d]
        return values

    values = walk(persistence)
    values[-1] += shift
    marks = np.zeros((chains, DRAWS), bool)
    marks[0, :diverging] = True
    groups = {
        "posterior": {"a": walk(0.0), "b": values},
        "sample_stats": {"diverging": marks, "energy": walk(energy)},
    }
    return inference_data(some_data(), ("x",), groups)


def test_good_chains_are_passed_over() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_chains(drawn())
        warn_of_chains(drawn(chains=1))


@pytest.mark.parametrize(
    "fault, message",
    [
        pytest.param({"diverging": 3}, r"3 of 1200 transitions diverged.*target_accept=0.95", id="divergences"),
        pytest.param({"shift": 1.0}, r"R-hat of b is 1\.\d+; try more warm-up", id="chains that disagree"),
        pytest.param({"persistence": 0.9}, r"effective sample size of b is only \d+; try more draws", id="few draws"),
        pytest.param({"energy": 0.95}, r"BFMI 0\.\d+\); try narrower priors", id="energies alike"),
        pytest.param({"shift": np.nan}, r"R-hat of b is nan", id="not a number"),
    ],
)
def test_faults_of_chains_are_told(fault, message: str) -> None:
    with pytest.warns(ConvergenceWarning, match=message):
        warn_of_chains(drawn(**fault))


def test_faults_come_together() -> None:
    with pytest.warns(ConvergenceWarning) as told:
        warn_of_chains(drawn(diverging=1, shift=2.0))
    assert len(told) == 1
    assert str(told[0].message).count("; try") == 3  # diverged, disagree, and so few effective draws


def test_good_guides_are_passed_over() -> None:
    rng = np.random.default_rng(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound, pareto_k = warn_of_guide(-50.0 + rng.standard_normal(500), 0.3 * rng.standard_normal(500))
    assert bound == pytest.approx(-50.0, abs=0.6)  # the average of 50, 4 standard errors
    assert pareto_k < 0.7


@pytest.mark.parametrize(
    "rise, spread, message",
    [
        (5.0, 0.3, r"still rises, by 0\.\d+ over the last steps; try more steps"),
        (0.0, 6.0, r"Pareto k \d\.\d+.*nuts\(\)"),
    ],
    ids=["rising", "far"],
)
def test_faults_of_guides_are_told(rise: float, spread: float, message: str) -> None:
    rng = np.random.default_rng(1)
    elbo = -50.0 + rise * np.linspace(0.0, 1.0, 500) + 0.1 * rng.standard_normal(500)
    with pytest.warns(ConvergenceWarning, match=message):
        warn_of_guide(elbo, spread * rng.standard_normal(500))


@pytest.mark.parametrize(
    "labels", [("ann", "bob", "cy"), (3, 1, 2), (("a", 1), ("a", 2), ("b", 1))], ids=["words", "numbers", "pairs"]
)
def test_labels_of_individuals_are_kept(labels) -> None:
    data = replace(some_data(), individuals=labels)
    groups = {"log_likelihood": {"choice": np.zeros((1, 4, 3))}, "posterior": {"coefficient": np.zeros((1, 4, 3, 1))}}
    found = inference_data(data, ("x",), groups, {"inference": "none"})
    assert list(found.log_likelihood["individual"].values) == list(labels)
    assert list(found.posterior["individual"].values) == list(labels)
    assert list(found.posterior["attribute"].values) == ["x"]
    assert found.posterior.attrs["inference"] == "none"
    assert found.observed_data["choice"].values.tolist() == data.choice.tolist()
    assert found.constant_data["individual_index"].values.tolist() == [0, 0, 1, 1, 2, 2]
