"""Covariances by name against sandwiches by hand, from individuals' scores of the model written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.special
import torch

from mixlogit_align import FixedDraws
from mixlogit_align.econometrics import MixedLogitModel
from mixlogit_align.econometrics.cov_types import check_cov_type
from mixlogit_align.errors import InvalidInputError
from mixlogit_align.inference.resampling import bootstrap_weights
from tests.econometrics import brute
from tests.econometrics.brute import MIXTURES, choices, choose, read


def sample(frequencies: bool = True) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    frame = choices(people=60, seed=2)
    frame = choose(frame, {"a": 0.5, "b": rng.uniform(-0.9, 1.5, 60), "c": rng.normal(-0.5, 0.8, 60)}, seed=3)
    number = pd.factorize(frame["person"])[0]
    return frame.assign(
        village=[f"v{n % 7}" for n in number], district=number % 5, frequency=1.0 + number % 3 if frequencies else 1.0
    )


CASE = brute.Case(
    "",
    {},
    lambda p, v, z: {
        "a": p["a.loc"] + p["a.scale"] * v[0],
        "b": brute.truncated(p["b.loc"], p["b.scale"], 0.0, torch.inf, v[1]),
    },
    {"random": {"a": "normal", "b": "truncated_normal"}},
    bases="zp",
)


@pytest.fixture(scope="module")
def by_hand() -> dict[str, Any]:
    """One fit, and Hessian and scores in natural parameters at its estimates by autograd."""
    frame = sample()
    data = read(frame, clusters=["village"], variables=["a", "b", "c", "district"])
    base = CASE.base(60, 30)
    model = MixedLogitModel(data, **CASE.model)
    options = {"integration": FixedDraws(base), "num_redraws": 0}
    fitted = model.fit(**options)
    assert fitted.converged
    at = torch.tensor(list(fitted.params.values()), dtype=torch.float64)
    log_weight = torch.full((1, 30), -np.log(30.0), dtype=torch.float64)

    def value(params: torch.Tensor) -> torch.Tensor:
        return brute.loglik(frame, CASE, dict(zip(fitted.params, params, strict=True)), base, log_weight)

    people = frame.groupby("person", sort=False)
    weights = people["frequency"].first().to_numpy(copy=True)
    assert float(torch.from_numpy(weights) @ value(at)) == pytest.approx(fitted.loglik, abs=1e-8)
    return {
        "model": model,
        "options": options,
        "fitted": fitted,
        "hessian": torch.autograd.functional.hessian(lambda p: torch.from_numpy(weights) @ value(p), at).numpy(),
        "scores": torch.autograd.functional.jacobian(value, at).numpy(),
        "weights": weights,
        "village": people["village"].first().to_numpy(),
        "district": people["district"].first().to_numpy(),
    }


def covariance(kind: str, at: dict[str, Any]) -> np.ndarray:
    bread = np.linalg.inv(-at["hessian"])
    scores, weights = at["scores"], at["weights"]
    meat = sum(w * np.outer(s, s) for w, s in zip(weights, scores, strict=True))
    if kind == "hessian":
        return bread
    if kind == "bhhh":
        return np.linalg.inv(meat)
    if kind == "robust":
        return bread @ meat @ bread
    labels = at[kind.removeprefix("clustered(").removesuffix(")")]
    sums = [(weights[:, None] * scores)[labels == label].sum(0) for label in np.unique(labels)]
    return len(sums) / (len(sums) - 1) * bread @ sum(np.outer(s, s) for s in sums) @ bread


@pytest.mark.parametrize("kind", ["hessian", "bhhh", "robust", "clustered(village)", "clustered(district)"])
def test_covariances_by_hand(by_hand: dict[str, Any], kind: str) -> None:
    """To 1e-3: the Hessian of the fit is taken within 0.02 standard errors of the estimates, 7e-4 here."""
    result = by_hand["model"].fit(**by_hand["options"], cov_type=kind)
    expected = covariance(kind, by_hand)
    size = np.sqrt(expected.diagonal())
    np.testing.assert_allclose(
        result.cov.numpy() / size[:, None] / size, expected / size[:, None] / size, rtol=0, atol=1e-3
    )
    assert list(result.std_errors.values()) == pytest.approx(size.tolist(), rel=1e-3)
    assert result.cov_type == kind
    assert result.loglik == by_hand["fitted"].loglik


def test_the_result_holds_hessian_and_scores_in_natural_parameters(by_hand: dict[str, Any]) -> None:
    result = by_hand["fitted"]
    np.testing.assert_allclose(result.scores.numpy(), by_hand["scores"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(result.hessian.numpy(), by_hand["hessian"], rtol=1e-3, atol=0)
    np.testing.assert_array_equal(result.weights.numpy(), by_hand["weights"])


def test_the_bootstrap_refits_every_resample() -> None:
    """The same resamples of individuals refitted by scipy: a conditional logit, so that no draws are in between."""
    frame = sample()
    case = next(case for case in MIXTURES if case.name == "conditional logit")
    result = case.of(read(frame)).fit(cov_type="bootstrap", num_replications=12, seed=5)
    offered = frame[frame["offered"] == 1]
    x = offered[["a", "b"]].to_numpy()
    situation, person = pd.factorize(offered["situation"])[0], pd.factorize(offered["person"])[0]
    chosen = offered["chosen"].to_numpy() == 1
    frequencies = torch.tensor(offered.groupby(person)["frequency"].first().to_numpy())

    def refit(weights: np.ndarray) -> np.ndarray:
        def minus(b: np.ndarray) -> float:
            u = x @ b
            total = np.log(np.bincount(situation, np.exp(u)))
            return -float(weights[person[chosen]] @ (u[chosen] - total[situation[chosen]]))

        return scipy.optimize.minimize(minus, np.zeros(2), method="BFGS", options={"gtol": 1e-7}).x

    estimates = [refit(weights.numpy()) for weights in bootstrap_weights(frequencies, 12, 5)]
    np.testing.assert_allclose(result.cov.numpy(), np.cov(estimates, rowvar=False), rtol=1e-4)
    assert list(result.params.values()) == pytest.approx(refit(frequencies.numpy()).tolist(), abs=1e-5)


def test_the_bootstrap_of_a_mixed_model_agrees_with_the_robust_covariance() -> None:
    """Within a factor of 2: that of 60 replications of 60 individuals; chance would exceed it in 1e-7 of the cases.

    60 draws tell a standard error to 9 %, and log 2 is 7 of these.
    """
    model = MixedLogitModel(read(sample(frequencies=False)), ["a"], {"b": "normal"})
    options = {"integration": FixedDraws(torch.randn(60, 40, 1, dtype=torch.float64)), "num_redraws": 0}
    drawn, robust = (model.fit(cov_type=kind, num_replications=60, **options) for kind in ("bootstrap", "robust"))
    for name, error in robust.std_errors.items():
        assert 0.5 < drawn.std_errors[name] / error < 2.0, name


def test_frequencies_that_are_not_whole_cannot_be_redrawn() -> None:
    model = MixedLogitModel(read(choices(people=30)), ["a", "b"])
    with pytest.raises(InvalidInputError, match="whole number"):
        model.fit(cov_type="bootstrap")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("sandwich", "one of"),
        ("clustered", "one of"),
        ("clustered()", "cluster"),
        ("clustered(nothing)", "nothing"),
        ("clustered(a)", "individual"),
        ("clustered(column)", "column"),
    ],
)
def test_types_that_are_refused(kind: str, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        check_cov_type(kind, read(choices()))
