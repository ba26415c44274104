"""The paper's evaluation as validation/paper.py states it, on few points; and the report it writes."""

from __future__ import annotations

import json
import math

import pyro.distributions as dist
import pytest
import torch

from mixlogit_align import MonteCarlo
from validation import paper
from validation._report import Report

F64 = torch.float64


@pytest.mark.parametrize("concentration", [0.5, 2.0, 10.0])
def test_error_law_of_the_truncated_zetas(concentration):
    grid = paper.truncation_error([concentration], num_sizes=25)
    # 1e-9: rounding of sums a thousand times their difference; 5e-3: the law's own next term at k = 10, and two digits
    visible = grid["law"] > 1e-9
    assert visible.sum() >= 15
    torch.testing.assert_close(grid["error"][visible], grid["law"][visible], rtol=5e-3, atol=0.0)


def test_more_terms_make_the_paper_agree_with_the_closed_form():
    delta = torch.tensor([-30.0, -2.0, 0.5, 8.0], dtype=F64)
    k, rate = paper.gamma_start()
    exact = torch.exp(paper.exact(delta, dist.Gamma(k, rate)))
    # the law: below 2e-6 at the smallest |delta| with 10,000 terms
    torch.testing.assert_close(paper.paper_probability(delta, k, rate, 10_000), exact, rtol=0.0, atol=2e-6)


def test_its_gradient_at_zero_is_not_a_number_where_ours_is_half_the_mean():
    k, rate = paper.gamma_start()
    assert math.isnan(paper.slope(lambda x: torch.log(paper.paper_probability(x, k, rate)), 0.0))
    ours = paper.slope(lambda x: paper.exact(x, dist.Gamma(k, rate)), 0.0)
    assert ours == pytest.approx(float(k / rate / 2), rel=1e-13)


def test_its_gradient_near_zero_is_minus_2000_times_the_right_one():
    k, rate = paper.gamma_start()
    found = paper.slope(lambda x: torch.log(paper.paper_probability(x, k, rate)), 1e-9)
    # -2N to first order in 2001 |delta| / rate, which is 1e-7
    assert found / paper.slope(lambda x: paper.exact(x, dist.Gamma(k, rate)), 1e-9) == pytest.approx(-2000.0, rel=1e-3)


@pytest.mark.parametrize(("dtype", "finite"), [(torch.float32, False), (F64, True)])
def test_single_precision_overflows_from_ten_on(dtype, finite):
    k, rate = torch.tensor(10.0, dtype=dtype), torch.tensor(10.0 / 0.12, dtype=dtype)
    value = paper.paper_probability(torch.tensor(-0.005, dtype=dtype), k, rate)
    assert bool(torch.isfinite(value)) is finite


@pytest.mark.parametrize(
    ("delta", "gamma", "dpo"),
    [(-200.0, 0.009, 0.120), (-50.0, 0.029, 0.119), (-10.0, 0.062, 0.092), (0.0, 0.060, 0.060), (50.0, 0.0015, 0.0003)],
)
def test_weight_curve(delta, gamma, dpo):
    curve = paper.weights([delta])
    digits = 4 if delta > 0 else 3
    assert round(curve["Gamma(2, 16.7)"][0], digits) == gamma
    assert round(curve["DPO at the same mean"][0], digits) == dpo


def test_sixteen_draws_are_biased_and_stratified_ones_less():
    plain = paper.study_of_draws(MonteCarlo(16), -50.0, 20_000)
    stratified = paper.study_of_draws(MonteCarlo(16, kind="stratified"), -50.0, 20_000)
    # fixed draws; under fresh ones 5 standard errors are passed once in 2 million
    assert abs(plain.bias + 0.0966) < 5.0 * plain.bias_se
    assert abs(plain.gradient_bias["delta"] - 0.085) < 5.0 * plain.gradient_se["delta"] + 5e-4
    assert abs(stratified.bias) < abs(plain.bias) / 5.0


def test_statements_of_the_text_and_equations_hold():
    report = Report("small", "Small", "A report.")
    paper.study_equations(report)
    paper.study_statements(report)
    assert [claim for claim in report.claims if not claim["passed"]] == []
    errata = {claim["about"] for claim in report.claims}
    assert {f"erratum {n}" for n in (1, 2, 3, 6, 7, 8, 10, 11)} <= errata


def test_a_failed_claim_fails_the_report(tmp_path):
    report = Report("small", "Small", "A report.")
    report.claim("a", "true", 1.0, True)
    assert report.passed
    report.claim("b", "false", 2.0, False)
    path = report.write(tmp_path)
    written = json.loads((tmp_path / "small.json").read_text())
    assert not report.passed
    assert (written["passed"], written["command"].startswith("python ")) == (False, True)
    assert "**FAILS** (b): false — measured: 2" in path.read_text()
