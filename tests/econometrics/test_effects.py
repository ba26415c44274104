from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mixlogit_align import FixedDraws, Quadrature
from mixlogit_align.econometrics import Effects, MixedLogitModel, elasticities, marginal_effects, predict, scenario
from mixlogit_align.errors import InvalidInputError
from tests.econometrics import brute
from tests.econometrics.given import (
    LOGIT,
    LOGIT_MODEL,
    MIXED,
    MIXED_MODEL,
    PANEL,
    given,
    numbers,
    slopes,
    softmax,
)

BOTH = (PANEL.available[:, :, None] & PANEL.available[:, None]).numpy()
WEIGHTS = PANEL.weights[PANEL.individual].numpy()
KINDS: dict[str, Callable[..., Effects]] = {"elasticities": elasticities, "marginal_effects": marginal_effects}


def test_elasticities_of_the_conditional_logit_by_hand() -> None:
    found = elasticities(LOGIT_MODEL, LOGIT, "b")
    p, x = softmax(PANEL, LOGIT.params), PANEL.attribute("b").numpy()
    expected = LOGIT.params["b"] * x[:, None] * (np.eye(4) - p[:, None])  # b x_k (1{j = k} - P_k)
    np.testing.assert_allclose(found.each, np.where(BOTH, expected, np.nan), atol=1e-13)
    weighted = WEIGHTS[:, None] * p
    aggregate = np.einsum("sj,sjk->jk", weighted, expected) / weighted.sum(0)[:, None]
    np.testing.assert_allclose(found.aggregate, aggregate, rtol=1e-10)
    mean = np.einsum("s,sjk->jk", WEIGHTS, np.where(BOTH, expected, 0.0)) / np.einsum("s,sjk->jk", WEIGHTS, BOTH)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-10)


def test_marginal_effects_of_the_conditional_logit_by_hand() -> None:
    found = marginal_effects(LOGIT_MODEL, LOGIT, "b")
    p = softmax(PANEL, LOGIT.params)
    expected = LOGIT.params["b"] * p[:, :, None] * (np.eye(4) - p[:, None])  # b P_j (1{j = k} - P_k)
    np.testing.assert_allclose(found.each, np.where(BOTH, expected, np.nan), atol=1e-13)
    aggregate = np.einsum("s,sjk->jk", WEIGHTS, expected) / WEIGHTS.sum()
    np.testing.assert_allclose(found.aggregate, aggregate, atol=1e-14)
    # shares sum to 1 whatever moves
    torch.testing.assert_close(found.aggregate.sum(0), torch.zeros(4, dtype=torch.float64), atol=1e-14, rtol=0.0)


@pytest.mark.parametrize("k", range(4))
@pytest.mark.parametrize("conditional", [False, True], ids=["population", "conditional"])
@pytest.mark.parametrize("attribute", ["a", "b", "c"])
def test_effects_are_finite_differences_of_shares(attribute: str, conditional: bool, k: int) -> None:
    """Central differences of step 1e-5: truncation 1e-10, rounding 1e-11."""
    h, options = 1e-5, {"conditional": conditional, "integration": Quadrature(20)}
    unit = torch.zeros(4, dtype=torch.float64)
    unit[k] = h

    def shares(change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return numbers(predict(MIXED_MODEL, MIXED, scenario(PANEL, {attribute: change}), **options).shares)

    level = (shares(lambda x: x + unit) - shares(lambda x: x - unit)) / (2 * h)
    percent = (shares(lambda x: x * (1 + unit)) - shares(lambda x: x * (1 - unit))) / (2 * h) / shares(lambda x: x)
    found = {name: kind(MIXED_MODEL, MIXED, attribute, **options).aggregate[:, k] for name, kind in KINDS.items()}
    torch.testing.assert_close(found["marginal_effects"], level, atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(found["elasticities"], percent, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("situation", [0, 11])
def test_elasticities_of_one_situation_are_finite_differences_of_its_probabilities(situation: int) -> None:
    h, options = 1e-5, {"integration": Quadrature(20)}
    offered = PANEL.available[situation]

    def log_probabilities(k: int, step: float) -> torch.Tensor:
        factor = torch.ones(4, dtype=torch.float64)
        factor[k] += step
        return predict(MIXED_MODEL, MIXED, scenario(PANEL, {"c": lambda x: x * factor}), **options).probabilities.log()

    columns = [(log_probabilities(k, h) - log_probabilities(k, -h))[situation] / (2 * h) for k in range(4)]
    expected = torch.stack(columns, 1)[offered][:, offered]
    found = elasticities(MIXED_MODEL, MIXED, "c", **options).each[situation][offered][:, offered]
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("conditional", [False, True], ids=["population", "conditional"])
@pytest.mark.parametrize("kind", KINDS)
def test_standard_errors_are_those_of_numerical_derivatives(kind: str, conditional: bool) -> None:
    # nodes that stay where they are when parameters move
    draws = torch.randn(1, 40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"conditional": conditional, "integration": FixedDraws(draws)}
    slope = slopes(lambda result: KINDS[kind](MIXED_MODEL, result, "c", **options).aggregate.flatten(), MIXED)
    expected = ((slope @ MIXED.cov) * slope).sum(1).sqrt().reshape(4, 4)
    found = KINDS[kind](MIXED_MODEL, MIXED, "c", **options).std_errors
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("case", brute.MIXTURES[-4:], ids=lambda case: case.name)
def test_effects_in_wtp_space_and_with_scale_heterogeneity(case: brute.Case) -> None:
    """The coefficient in utility counts, whatever its parameters: finite differences again."""
    model = case.of(PANEL)
    result, h = given(model, case.params), 1e-5
    options = {"integration": FixedDraws(case.base(1, 30))}
    attribute = "b"
    ups = [numbers(predict(model, result, scenario(PANEL, {attribute: {"w": lambda x, step=step: x + step}}),
                           **options).shares) for step in (h, -h)]  # fmt: skip
    found = marginal_effects(model, result, attribute, **options).aggregate[:, PANEL.alternatives.index("w")]
    torch.testing.assert_close(found, (ups[0] - ups[1]) / (2 * h), atol=1e-9, rtol=1e-7)


def test_tables_carry_the_labels_of_the_data() -> None:
    found = elasticities(MIXED_MODEL, MIXED, "b", integration=Quadrature(16))
    table = found.to_frame().set_index(["alternative", "of"])
    w, y = (found.alternatives.index(label) for label in "wy")
    assert table.loc[("w", "y"), "aggregate"] == float(found.aggregate[w, y])
    assert table.loc[("w", "y"), "std_error"] == float(found.std_errors[w, y])
    assert found.own["y"] == float(found.aggregate[y, y])
    assert repr(found) == found.summary
    assert "Elasticity of predicted shares with respect to 'b'" in found.summary
    assert "Quadrature(num_nodes=16)" in found.summary


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attribute", ["d", "nothing"])
def test_an_attribute_without_a_coefficient_is_refused(kind: str, attribute: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"attribute: got '{attribute}'; expected one of \['a', 'b', 'c'\]"):
        KINDS[kind](MIXED_MODEL, MIXED, attribute)


def test_alternatives_never_offered_together_have_no_effect_on_each_other() -> None:
    frame = brute.choices()
    frame = frame[~((frame["alternative"] == "z") & (frame["person"] > "p03"))]
    frame = frame[~((frame["alternative"] == "w") & (frame["person"] <= "p03"))]
    kept = frame.groupby("situation")["offered"].transform("sum") >= 2
    frame = frame[kept & (frame.groupby("situation")["chosen"].transform("sum") == 1)]
    data = brute.read(frame)
    model = MixedLogitModel(data, ["a", "b"])
    found = elasticities(model, given(model, LOGIT.params, rule="exact"), "a")
    w, z = (data.alternatives.index(label) for label in "wz")
    assert found.aggregate[w, z] == 0.0
    assert bool(found.mean[w, z].isnan())
