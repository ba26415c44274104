from __future__ import annotations

import math

import pytest
import torch

from mixlogit_align.errors import ConvergenceError, InvalidInputError
from mixlogit_align.inference import (
    bhhh_covariance,
    clustered_covariance,
    delta_method,
    hessian_covariance,
    robust_covariance,
    standard_errors,
)


@pytest.fixture
def scores() -> torch.Tensor:
    return torch.randn(30, 2, dtype=torch.float64)


HESSIAN = -torch.tensor([[20.0, 3.0], [3.0, 10.0]], dtype=torch.float64)


def test_hessian_covariance_is_the_inverse_information() -> None:
    torch.testing.assert_close(hessian_covariance(HESSIAN), torch.linalg.inv(-HESSIAN))
    by_hand = math.sqrt(10.0 / (20.0 * 10.0 - 9.0))
    assert float(standard_errors(hessian_covariance(HESSIAN))[0]) == pytest.approx(by_hand, rel=1e-12)


def test_the_sandwich_is_the_inverse_information_where_both_informations_agree(scores: torch.Tensor) -> None:
    outer = scores.T @ scores
    torch.testing.assert_close(bhhh_covariance(scores), torch.linalg.inv(outer))
    torch.testing.assert_close(robust_covariance(-outer, scores), torch.linalg.inv(outer))


def test_the_sandwich_of_twice_the_scores_is_four_times_as_wide(scores: torch.Tensor) -> None:
    torch.testing.assert_close(robust_covariance(HESSIAN, 2 * scores), 4 * robust_covariance(HESSIAN, scores))


@pytest.mark.parametrize("estimator", [bhhh_covariance, lambda s, w=None: robust_covariance(HESSIAN, s, w)])
def test_a_frequency_is_so_many_rows_alike(estimator: object, scores: torch.Tensor) -> None:
    counts = torch.randint(1, 5, (30,))
    repeated = scores.repeat_interleave(counts, 0)
    torch.testing.assert_close(estimator(scores, counts.double()), estimator(repeated))  # type: ignore[operator]


@pytest.mark.parametrize(
    "hessian", [HESSIAN.neg(), torch.zeros(2, 2, dtype=torch.float64), torch.full((2, 2), math.nan)]
)
def test_no_covariance_without_a_maximum(hessian: torch.Tensor, scores: torch.Tensor) -> None:
    with pytest.raises(ConvergenceError, match="positive definite"):
        hessian_covariance(hessian)
    with pytest.raises(ConvergenceError, match="positive definite"):
        robust_covariance(hessian, scores)


def test_collinear_scores_have_no_inverse(scores: torch.Tensor) -> None:
    with pytest.raises(ConvergenceError, match="scores"):
        bhhh_covariance(scores[:, :1] * torch.tensor([1.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("rows", "weights"),
    [((30,), None), ((30, 2), (29,)), ((30, 2), (30, 1))],
    ids=["vector", "short", "column"],
)
def test_shapes_that_disagree_are_refused(rows: tuple[int, ...], weights: tuple[int, ...] | None) -> None:
    with pytest.raises(InvalidInputError, match="scores and weights"):
        bhhh_covariance(torch.ones(rows), None if weights is None else torch.ones(weights))


def test_clusters_of_one_give_the_sandwich(scores: torch.Tensor) -> None:
    found = clustered_covariance(HESSIAN, scores, torch.randperm(30))
    torch.testing.assert_close(found, 30 / 29 * robust_covariance(HESSIAN, scores))


def test_scores_are_summed_within_clusters(scores: torch.Tensor) -> None:
    clusters = torch.arange(30) % 4 * 10 - 7
    sums = torch.stack([scores[clusters == label].sum(0) for label in (-7, 3, 13, 23)])
    torch.testing.assert_close(
        clustered_covariance(HESSIAN, scores, clusters), 4 / 3 * robust_covariance(HESSIAN, sums)
    )


def test_copies_of_an_individual_in_its_cluster_are_no_news(scores: torch.Tensor) -> None:
    clusters = torch.arange(30)
    twice = clustered_covariance(2 * HESSIAN, scores.repeat(2, 1), clusters.repeat(2))
    torch.testing.assert_close(twice, clustered_covariance(HESSIAN, scores, clusters))


def test_a_frequency_is_so_many_rows_of_one_cluster(scores: torch.Tensor) -> None:
    counts, clusters = torch.randint(1, 5, (30,)), torch.arange(30) % 7
    repeated = clustered_covariance(HESSIAN, scores.repeat_interleave(counts, 0), clusters.repeat_interleave(counts))
    torch.testing.assert_close(clustered_covariance(HESSIAN, scores, clusters, counts.double()), repeated)


@pytest.mark.parametrize(
    ("clusters", "message"), [(torch.zeros(30), "one cluster"), (torch.arange(29), r"shape \(29,\) for 30 scores")]
)
def test_clusters_that_cannot_be_used(scores: torch.Tensor, clusters: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        clustered_covariance(HESSIAN, scores, clusters)


def test_delta_method_of_exp_and_a_ratio() -> None:
    params = torch.tensor([math.log(2.0), 4.0], dtype=torch.float64)
    covariance = torch.tensor([[0.04, 0.01], [0.01, 0.09]], dtype=torch.float64)
    values, spread = delta_method(lambda t: torch.stack([t[0].exp(), t[1] / t[0]]), params, covariance)
    a, b = params.tolist()
    jacobian = torch.tensor([[2.0, 0.0], [-b / a**2, 1.0 / a]], dtype=torch.float64)
    torch.testing.assert_close(values, torch.tensor([2.0, b / a], dtype=torch.float64))
    torch.testing.assert_close(spread, jacobian @ covariance @ jacobian.T)


def test_delta_method_of_nothing_is_nothing() -> None:
    values, spread = delta_method(lambda t: t[:0], torch.ones(2).double(), torch.eye(2).double())
    assert (tuple(values.shape), tuple(spread.shape)) == ((0,), (0, 0))
