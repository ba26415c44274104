from __future__ import annotations

import pytest
import torch

from mixlogit_align.inference import derivatives, individual_scores


@pytest.fixture
def logit() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(40, 3, dtype=torch.float64)
    y = torch.bernoulli(torch.full((40,), 0.5, dtype=torch.float64))
    return x, y


def individual_loglik(x: torch.Tensor, y: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.logsigmoid((2 * y - 1) * (x @ params))


def test_derivatives_of_a_logit_are_the_textbook_ones(logit: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = logit
    params = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    p = torch.sigmoid(x @ params)
    at = derivatives(lambda t: individual_loglik(x, y, t), params)
    assert at.value == pytest.approx(float((y * p.log() + (1 - y) * (1 - p).log()).sum()), rel=1e-12)
    torch.testing.assert_close(at.gradient, x.T @ (y - p))
    torch.testing.assert_close(at.hessian, -(x * (p * (1 - p))[:, None]).T @ x)
    assert at.finite


def test_scores_are_each_individuals_own_gradient(logit: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = logit
    params = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    scores = individual_scores(lambda t: individual_loglik(x, y, t), params)
    torch.testing.assert_close(scores, x * (y - torch.sigmoid(x @ params))[:, None])


@pytest.mark.parametrize("shape", [(), (4,)])
def test_a_linear_loglik_has_no_curvature(shape: tuple[int, ...]) -> None:
    at = derivatives(lambda t: t.sum() * torch.ones(shape, dtype=torch.float64), torch.zeros(2))
    torch.testing.assert_close(at.hessian, torch.zeros(2, 2, dtype=torch.float64))


def test_one_parameter_may_be_absent_from_the_gradient() -> None:
    at = derivatives(lambda t: t[0] - t[1] ** 2, torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(at.gradient, torch.tensor([1.0, -4.0], dtype=torch.float64))
    torch.testing.assert_close(at.hessian, torch.tensor([[0.0, 0.0], [0.0, -2.0]], dtype=torch.float64))


@pytest.mark.parametrize("loglik", [lambda t: (t - 1).log().sum(), lambda t: -t.abs().sqrt().sum()])
def test_what_is_not_finite_is_told(loglik: object) -> None:
    assert not derivatives(loglik, torch.zeros(2)).finite  # type: ignore[arg-type]
