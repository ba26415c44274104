from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from mixlogit_align.errors import ConvergenceError, InvalidInputError
from mixlogit_align.inference import bca_interval, bootstrap, bootstrap_covariance, bootstrap_weights

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


# --- BCa intervals ---------------------------------------------------------------------------------

VALUES = np.random.default_rng(5).exponential(size=(25, 2)) * [1.0, -3.0]


def leave_one_out(values: np.ndarray) -> torch.Tensor:
    return torch.tensor((values.sum(0) - values) / (len(values) - 1))


@pytest.mark.parametrize("level", [0.9, 0.99])
def test_bca_ends_are_scipys(level: float) -> None:
    peer = [
        stats.bootstrap((x,), np.mean, n_resamples=999, confidence_level=level, method="BCa", rng=0) for x in VALUES.T
    ]
    drawn = torch.tensor(np.stack([found.bootstrap_distribution for found in peer], axis=1))
    ends = bca_interval(torch.tensor(VALUES.mean(0)), drawn, leave_one_out(VALUES), level)
    expected = torch.tensor(np.array([found.confidence_interval for found in peer]).T)
    torch.testing.assert_close(ends, expected, rtol=1e-12, atol=0)  # the same formula on the same replications


def test_bca_ends_of_a_symmetric_sample_are_percentiles() -> None:
    drawn = torch.arange(-500, 501, dtype=torch.float64)[:, None] / 500
    ends = bca_interval(drawn.new_zeros(1), drawn, drawn.new_tensor([[-1.0], [0.0], [1.0]]), 0.9)
    torch.testing.assert_close(ends[:, 0], drawn.new_tensor([-0.9, 0.9]), rtol=0, atol=1e-12)  # no bias, no skew


def test_bca_of_what_does_not_vary_is_a_point_and_of_what_lies_on_one_side_unknown() -> None:
    value = torch.tensor([0.1 + 0.2, 0.5], dtype=torch.float64)
    drawn = torch.tensor([[0.3, 0.6]] * 20, dtype=torch.float64)  # 0.3 but for rounding
    ends = bca_interval(value, drawn, value.expand(3, 2))
    assert ends[:, 0].tolist() == [0.1 + 0.2] * 2
    assert bool(ends[:, 1].isnan().all())


@pytest.mark.parametrize("fault", ["shape", "nan", "level"])
def test_what_is_no_bootstrap_is_refused(fault: str) -> None:
    value, drawn = torch.zeros(2), torch.zeros(10, 2)
    wrong = {
        "shape": (value, drawn[:, :1], drawn, 0.9),
        "nan": (value, drawn / 0.0, drawn, 0.9),
        "level": (value, drawn, drawn, 95.0),
    }[fault]
    with pytest.raises(InvalidInputError, match="level" if fault == "level" else "replications"):
        bca_interval(*wrong)
