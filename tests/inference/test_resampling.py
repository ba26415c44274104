from __future__ import annotations

import pytest
import torch

from mixlogit_align.errors import ConvergenceError, InvalidInputError
from mixlogit_align.inference import bootstrap, bootstrap_covariance, bootstrap_weights

ONES = torch.ones(40, dtype=torch.float64)


def test_every_replication_draws_as_many_individuals_as_there_are() -> None:
    weights = bootstrap_weights(ONES, 25, seed=1)
    assert weights.shape == (25, 40)
    assert weights.dtype == torch.float64
    torch.testing.assert_close(weights.sum(1), torch.full((25,), 40.0, dtype=torch.float64))
    torch.testing.assert_close(weights, weights.round())


def test_a_seed_fixes_the_draws_and_more_replications_only_add() -> None:
    first = bootstrap_weights(ONES, 10, seed=1)
    assert torch.equal(first, bootstrap_weights(ONES, 30, seed=1)[:10])
    assert not torch.equal(first, bootstrap_weights(ONES, 10, seed=2))


def test_individuals_behind_the_rows_are_drawn() -> None:
    frequencies = torch.tensor([1.0, 9.0, 90.0, 0.0], dtype=torch.float64)
    weights = bootstrap_weights(frequencies, 4000, seed=3)
    assert set(weights.sum(1).tolist()) == {100.0}
    assert float(weights[:, 3].max()) == 0.0
    share = frequencies / 100
    deviation = (weights.mean(0) - frequencies)[:3] / (100 * share * (1 - share) / 4000).sqrt()[:3]
    assert float(deviation.abs().max()) < 5.0  # by chance once in 600,000
    # relative sd of a variance of 4000 draws 2-3%; the first row is nearly Poisson
    torch.testing.assert_close(weights.var(0)[:3], (100 * share * (1 - share))[:3], rtol=0.15, atol=0)


def test_the_bootstrap_of_a_mean_has_the_variance_of_a_mean() -> None:
    values = torch.randn(40, 2, dtype=torch.float64)
    found = bootstrap(lambda w: w @ values / w.sum(), ONES, num_replications=3000, seed=4)
    assert found.num_failed == 0
    deviations = values - values.mean(0)
    expected = deviations.T @ deviations / 40**2
    # sd of an entry 1/sqrt(3000) to sqrt(2/3000) of the variances: 15% is 5 of them, once in 10^6
    torch.testing.assert_close(
        bootstrap_covariance(found.estimates), expected, rtol=0, atol=0.15 * float(expected.diagonal().max())
    )


@pytest.mark.parametrize("refusal", ["none", "error"])
def test_failed_replications_are_counted(refusal: str) -> None:
    calls = []

    def refit(weights: torch.Tensor) -> torch.Tensor | None:
        calls.append(weights)
        if len(calls) % 4:
            return weights[:2]
        if refusal == "error":
            raise ConvergenceError("no maximum")
        return None

    found = bootstrap(refit, ONES, num_replications=20, seed=0)
    assert (found.num_failed, tuple(found.estimates.shape)) == (5, (15, 2))
    kept = torch.stack([weights[:2] for i, weights in enumerate(calls, 1) if i % 4])
    assert torch.equal(found.estimates, kept)


@pytest.mark.parametrize(("succeed", "replications"), [(4, 10), (1, 2), (0, 5)])
def test_too_many_failures_are_no_answer(succeed: int, replications: int) -> None:
    left = iter(range(succeed))
    with pytest.raises(ConvergenceError, match=f"{replications - succeed} of {replications}"):
        bootstrap(
            lambda w: w[:2] if next(left, None) is not None else None, ONES, num_replications=replications, seed=0
        )


@pytest.mark.parametrize("frequencies", [[0.5, 1.5], [1.0], [-1.0, 5.0], [[1.0, 2.0]], [0.0, 0.0]])
def test_what_is_no_frequency_is_refused(frequencies: list[float]) -> None:
    with pytest.raises(InvalidInputError, match="frequencies"):
        bootstrap_weights(torch.tensor(frequencies), 5, seed=0)


def test_sizes_that_say_nothing_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="num_replications"):
        bootstrap_weights(ONES, 0, seed=0)
    with pytest.raises(InvalidInputError, match="estimates"):
        bootstrap_covariance(torch.ones(1, 3))
