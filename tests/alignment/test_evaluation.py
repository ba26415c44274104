"""Preference margins: tables of pairs, averages with clustered errors, calibration, gains, and what runs give."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
from collections import Counter

import numpy as np
import pyarrow
import pyarrow.parquet
import pyro.distributions as dist
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from mixlogit_align import cli
from mixlogit_align.alignment import AlignmentConfig, MixDPOLoss, SequenceLogProbs, hf, load_config, run_alignment
from mixlogit_align.alignment.config import (
    LearnedUpdate,
    LogNormalStrength,
    NewModel,
    OptimConfig,
    PreferenceConfig,
    PretrainedModel,
    StageConfig,
)
from mixlogit_align.alignment.data import load_data
from mixlogit_align.alignment.data.batches import Collator, TokenizedComparison
from mixlogit_align.alignment.data.config import HumourData, SimulatedData
from mixlogit_align.alignment.evaluation import (
    METRICS,
    PairTable,
    as_text,
    calibrate,
    evaluate,
    evaluate_run,
    find_clusters,
    gains,
    held_out_pairs,
    pair_metrics,
    policy_pairs,
    read_pairs,
    run_pairs,
    scoring,
    with_strength,
    write_pairs,
)
from mixlogit_align.alignment.evaluation.averages import Selection
from mixlogit_align.alignment.evaluation.paired import _replicated
from mixlogit_align.alignment.objectives import PreferenceObjective
from mixlogit_align.alignment.strength import build_preference_loss
from mixlogit_align.alignment.tokenization import tokenize
from mixlogit_align.errors import InvalidInputError
from mixlogit_align.inference import adjusted_pvalues, bootstrap_weights

EXACT = 1e-12  # relative: the same sums in float64, in another order


def some_pairs(num: int = 200, seed: int = 0, shift: float = 0.0, num_annotators: int = 40, **changes) -> PairTable:
    """Pairs of people who differ, with an attribute of theirs and one of the prompt; the same pairs for every shift."""
    rng = np.random.default_rng(seed)
    people = rng.integers(num_annotators, size=num)
    own = rng.normal(size=num_annotators)[people]
    logps = -rng.gamma(20.0, size=(4, num)) - 5.0
    logps[0] = np.minimum(logps[0] + own + shift, 0.0)
    degrees = np.array(["school", "college", "degree", "degree", "degree"])
    columns = {
        "name": f"shift {shift:g}",
        "pair_ids": 10 + np.arange(num),
        "annotator_ids": [f"a{person}" for person in people],
        "groups": [
            {"education": str(degrees[person % 5]), "framing": str(framing)}
            for person, framing in zip(people, rng.choice(["free", "guided"], size=num), strict=True)
        ],
        "prompts": [f"p{i}" for i in rng.integers(num, size=num)],
        "chosen_first": rng.random(num) < 0.5,
        "weights": rng.integers(1, 4, size=num).astype(float),
        **dict(zip(("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected"), logps, strict=True)),
        "chosen_tokens": rng.integers(1, 30, size=num),
        "rejected_tokens": rng.integers(1, 30, size=num),
    }
    table = PairTable(**{**columns, **changes})
    return table if "loglik" in changes else with_strength(table, dist.Delta(torch.tensor(0.1)))


def bare(values, **changes) -> PairTable:
    """Pairs whose log-ratio differences are ``values``, and of which nothing else is known."""
    values = np.asarray(values, dtype=float)
    return PairTable(**{"name": "bare", "pair_ids": np.arange(len(values)), "logratio_diff": values, **changes})


# --- tables ----------------------------------------------------------------------------------------


def test_metrics_by_hand():
    table = PairTable(
        name="two",
        pair_ids=[1, 2],
        policy_chosen=[-6.0, -8.0],
        policy_rejected=[-9.0, -4.0],
        reference_chosen=[-7.0, -8.0],
        reference_rejected=[-8.0, -4.0],
        chosen_tokens=[3, 4],
        rejected_tokens=[9, 4],
    )
    table = with_strength(table, dist.Delta(torch.tensor(0.5)))
    assert {name: values.tolist() for name, values in pair_metrics(table).items()} == {
        "margin/sum": [3.0, -4.0],
        "margin/avg": [-1.0, -1.0],
        "margin/reward": [1.0, 0.0],
        "log_ratio/margins": [2.0, 0.0],
        "accuracy": [1.0, 0.5],
        "accuracy/sum": [1.0, 0.0],
        "loglik": pytest.approx([-math.log1p(math.exp(-1.0)), -math.log(2.0)], rel=EXACT),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pair_ids": [1, 2, 2]}, "1 ids more than once"),
        ({"pair_ids": []}, "expected"),
        ({"weights": [1.0, 2.0]}, r"weight of bare: got shape \(2,\)"),
        ({"weights": [1.0, 0.0, 1.0]}, "pair_id 8"),
        ({"logratio_diff": [1.0, math.nan, math.inf]}, r"2 of 3 pairs \(pair_id 8, 9\)"),
        ({"policy_chosen": [-1.0] * 3}, "no policy_rejected"),
        ({"policy_chosen": [-1.0, 0.5, -1.0], "policy_rejected": [-1.0] * 3}, "pair_id 8"),
        ({"chosen_tokens": [1, 0, 1], "rejected_tokens": [1, 1, 1]}, "pair_id 8"),
        (
            {
                "policy_chosen": [-1.0] * 3,
                "policy_rejected": [-2.0] * 3,
                "reference_chosen": [-2.0] * 3,
                "reference_rejected": [-1.0] * 3,
            },
            r"1.0 where the log-probabilities give 2.0 \(pair_id 7",
        ),
    ],
    ids=["twice", "none", "length", "weight", "nan", "half", "positive", "tokens", "contradiction"],
)
def test_what_is_no_table_of_pairs_is_refused(changes, message):
    with pytest.raises(InvalidInputError, match=message):
        bare([1.0, 2.0, 3.0][: len(changes.get("pair_ids", [0] * 3))], **{"pair_ids": [7, 8, 9], **changes})


def test_values_that_are_not_finite_can_be_set_aside_and_stay_named():
    columns = {"pair_ids": [7, 8, 9], "logratio_diff": [1.0, math.nan, 2.0], "annotator_ids": ["a", "b", None]}
    table = PairTable.of(name="run", non_finite="leave_out", **columns)
    assert (table.pair_ids.tolist(), table.annotator_ids, table.left_out) == ([7, 9], ("a", None), (8,))
    assert evaluate(table).left_out == (8,)


def test_a_weight_in_the_gradient_may_overflow():
    assert evaluate(bare([1.0, 1e6], pair_weight=[1.0, math.inf])).overall.num_pairs == 2


def test_a_table_comes_back_from_its_file(tmp_path):
    table = some_pairs(30, left_out=(3, 5))
    write_pairs(table, tmp_path / "pairs.parquet", pair_metrics(table))
    again = read_pairs(tmp_path / "pairs.parquet")
    file = pyarrow.parquet.read_table(tmp_path / "pairs.parquet")
    assert np.array_equal(file["margin/sum"].to_numpy(), table.policy_chosen - table.policy_rejected)
    assert np.array_equal(file["probability"].to_numpy(), np.exp(table.loglik))
    assert (again.name, again.left_out, again.groups) == (table.name, (3, 5), table.groups)
    assert [n for n in scoring.pair_metrics(table) if not np.array_equal(METRICS[n](again), METRICS[n](table))] == []
    assert find_clusters(again).codes.tolist() == find_clusters(table).codes.tolist()
    assert np.array_equal(again.chosen_first, table.chosen_first)


def test_columns_of_anyones_table_become_attributes(tmp_path):
    file = pyarrow.table({"pair_id": [1, 2], "logratio_diff": [0.5, -0.5], "age": [30, None], "groups": [None, "{}"]})
    pyarrow.parquet.write_table(file, tmp_path / "mine.parquet")
    table = read_pairs(tmp_path / "mine.parquet", groups=["age"])
    assert (table.name, table.levels("age")) == ("mine", ("30", None))


def test_attributes_can_be_added_by_pair():
    table = bare([1.0, 2.0], groups=[{"age": "30"}, {"age": "40"}]).with_groups({1: {"sex": "f", "age": "41"}, 7: {}})
    assert (table.attributes, table.levels("sex"), table.levels("age")) == (("age", "sex"), (None, "f"), ("30", "41"))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"pair_id": [1, None]}, "1 nulls of 2"),
        ({"pair_id": [1, 2], "chosen_first": [True, None]}, "true or false in every row"),
        ({"pair_id": [1, 2], "weight": [1.0, None]}, r"pair_id 2\)"),
        ({"pair_id": [1, 2], "loglik": ["a", "b"]}, "type string"),
        ({"pair_id": [1, 2], "groups": ["{", "{}"]}, "JSONDecodeError"),
        ({"pair": [1, 2]}, "unknown column 'pair_id'"),
    ],
    ids=["id", "first", "weight", "text", "json", "no-id"],
)
def test_a_file_that_is_no_table_of_pairs_is_refused(tmp_path, column, message):
    pyarrow.parquet.write_table(pyarrow.table({"logratio_diff": [1.0, 2.0], **column}), tmp_path / "x.parquet")
    with pytest.raises(InvalidInputError, match=message):
        read_pairs(tmp_path / "x.parquet")


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "x.parquet").write_text("pair_id\n1\n")
    with pytest.raises(InvalidInputError, match="got no whole Parquet file; expected a Parquet table"):
        read_pairs(tmp_path / "x.parquet")


# --- clusters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "by", "codes", "unknown"),
    [
        ({"annotator_ids": ["a", "b", "a"], "prompts": ["p", "q", "q"]}, "annotator", [0, 1, 0], 0),
        ({"annotator_ids": ["a", None, None], "prompts": ["p", "q", "q"]}, "annotator", [0, 1, 1], 2),
        ({"annotator_ids": ["a", None, None]}, "annotator", [0, 1, 2], 2),
        ({"annotator_ids": [None] * 3, "prompts": ["p", "q", "p"]}, "prompt", [0, 1, 0], 0),
        ({"prompts": ["p", None, "p"]}, "prompt", [0, 1, 0], 1),
        ({"prompts": ["p"] * 3}, "pair", [0, 1, 2], 0),
        ({"prompts": ["p"] * 3, "items": ["x", "x", "y"]}, "pair", [0, 0, 1], 0),
        ({}, "pair", [0, 1, 2], 0),
    ],
    ids=["annotators", "by-prompt", "alone", "prompts", "prompt-unknown", "one-prompt", "votes", "pairs"],
)
def test_clusters_are_annotators_then_prompts_then_pairs(columns, by, codes, unknown):
    found = find_clusters(bare([1.0, 2.0, 3.0], **columns))
    assert (found.by, found.codes.tolist(), found.num_unknown) == (by, codes, unknown)


def test_clusters_that_the_table_does_not_know_are_refused():
    with pytest.raises(InvalidInputError, match="no annotator of any pair"):
        evaluate(bare([1.0, 2.0]), clusters="annotator")
    with pytest.raises(InvalidInputError, match="'person'"):
        evaluate(bare([1.0, 2.0]), clusters="person")


# --- averages --------------------------------------------------------------------------------------


def test_a_clustered_error_by_hand():
    table = bare([1.0, 2.0, 4.0, 7.0], annotator_ids=["a", "a", "b", "c"], weights=[1.0, 1.0, 2.0, 1.0])
    found = evaluate(table).overall.estimates["log_ratio/margins"]
    # mean 18/5; residuals add up to -4.2, 0.8, 3.4 by cluster; 3/2 x 29.84 / 25
    assert found.value == pytest.approx(3.6, rel=EXACT)
    assert found.standard_error == pytest.approx(math.sqrt(1.7904), rel=EXACT)
    # Student's t of two degrees of freedom, from a printed table
    assert found.upper - found.value == pytest.approx(4.3027 * math.sqrt(1.7904), rel=2e-5)


def test_without_clusters_or_weights_the_error_is_sd_over_root_n():
    values = np.random.default_rng(0).normal(size=50)
    found = evaluate(bare(values)).overall.estimates["log_ratio/margins"]
    assert found.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(50), rel=EXACT)


@pytest.mark.parametrize("attribute", ["education", "framing"])
def test_macro_averages_are_contrasts_of_a_regression_on_levels(attribute):
    """Levels of one person's own (education), and levels that each person meets (framing)."""
    table = some_pairs()
    clusters, levels = find_clusters(table), np.array(table.levels(attribute))
    names = sorted(set(levels))
    x, y, w = (levels[:, None] == names).astype(float), table.logratio_diff, table.weights
    bread = np.linalg.inv(x.T @ (w[:, None] * x))
    coefficients = bread @ x.T @ (w * y)
    indicator = np.eye(len(clusters))[clusters.codes]
    scores = indicator.T @ (x * (w * (y - x @ coefficients))[:, None])
    covariance = bread @ scores.T @ scores @ bread * len(clusters) / (len(clusters) - 1)
    found = next(a for a in evaluate(table, minimum=2).averages if (a.attribute, a.kind) == (attribute, "macro"))
    estimate = found.estimates["log_ratio/margins"]
    assert estimate.value == pytest.approx(coefficients.mean(), rel=EXACT)
    assert estimate.standard_error == pytest.approx(math.sqrt(covariance.mean()), rel=EXACT)
    assert found.num_levels == len(names)


def test_micro_counts_pairs_alike_and_macro_levels():
    table = bare([1.0, 1.0, 1.0, 5.0, 7.0], groups=[{"x": "many"}] * 3 + [{"x": "few"}] * 2)
    found = {a.kind: a.estimates["log_ratio/margins"].value for a in evaluate(table, minimum=2).averages}
    assert found["all"] == found["micro"] == 3.0
    assert found["macro"] == pytest.approx((1.0 + 6.0) / 2, rel=EXACT)


def test_small_levels_stand_apart_and_nothing_is_lost():
    people = [f"a{i}" for i in range(12)] * 2 + ["b"] * 30 + ["c", "d"]
    levels = [{"x": "large"}] * 24 + [{"x": "one person"}] * 30 + [{"x": "one pair"}, {}]
    table = bare(np.arange(56.0), annotator_ids=people, groups=levels)
    found = evaluate(table).averages
    assert [(a.kind, a.level, a.num_pairs, a.num_clusters, a.num_levels) for a in found] == [
        ("all", None, 56, 15, 1),
        ("micro", None, 55, 14, 1),
        ("macro", None, 24, 12, 1),
        ("macro_all", None, 55, 14, 3),
        ("small", "one person", 30, 1, 1),
        ("cell", "large", 24, 12, 1),
        ("small", "one pair", 1, 1, 1),
        ("missing", None, 1, 1, 1),
    ]
    alone = found[6].estimates["log_ratio/margins"]
    assert alone.value == 54.0
    assert math.isnan(alone.standard_error)
    assert math.isnan(alone.lower)
    held = Counter({kind: sum(a.num_pairs for a in found if a.kind == kind) for kind in ("cell", "small", "missing")})
    assert held.total() == len(table)


def test_a_macro_average_without_a_large_level_is_unknown():
    table = bare([1.0, 2.0, 3.0], groups=[{"x": "a"}, {"x": "a"}, {"x": "b"}])
    found = {a.kind: a for a in evaluate(table).averages}
    assert math.isnan(found["macro"].estimates["log_ratio/margins"].value)
    assert found["macro_all"].estimates["log_ratio/margins"].value == pytest.approx(2.25, rel=EXACT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attributes": ["educatoin"]}, "unknown attribute 'educatoin'.*Try 'education'"),
        ({"metrics": ["margin/total"]}, "margin/"),
        ({"minimum": 1}, "minimum"),
        ({"num_bins": 0}, "num_bins"),
        ({"level": 95.0}, "level"),
        ({"bins": "count"}, "'count'"),
        ({"orientation": "chosen"}, "'chosen'"),
    ],
    ids=["attribute", "metric", "minimum", "num_bins", "level", "bins", "orientation"],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        evaluate(some_pairs(30), **settings)


def test_a_table_without_groups_says_that_it_has_none():
    with pytest.raises(InvalidInputError, match="unknown attribute 'age'; expected none: there is no attribute"):
        evaluate(bare([1.0, 2.0]), attributes=["age"])


def test_metrics_that_the_columns_do_not_allow_are_left_out_or_refused():
    table = bare([1.0, -2.0])
    assert list(pair_metrics(table)) == ["log_ratio/margins", "accuracy"]
    with pytest.raises(InvalidInputError, match="too few columns for margin/sum"):
        pair_metrics(table, ["margin/sum"])
    assert evaluate(table).calibration is None


# --- calibration -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("bins", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_the_reliability_curve_and_brier_score_are_sklearns(bins, strategy):
    table = some_pairs(weights=None)
    found = calibrate(table, find_clusters(table), orientation="shown", num_bins=8, bins=bins)
    probability = np.where(table.chosen_first, np.exp(table.loglik), -np.expm1(table.loglik))
    observed, predicted = calibration_curve(table.chosen_first, probability, n_bins=8, strategy=strategy)
    np.testing.assert_allclose([b.observed for b in found.bins], observed, rtol=EXACT)
    np.testing.assert_allclose([b.predicted for b in found.bins], predicted, rtol=EXACT)
    assert found.brier == pytest.approx(brier_score_loss(table.chosen_first, probability), rel=EXACT)
    shares = np.array([b.num_pairs for b in found.bins]) / len(table)
    assert found.expected_calibration_error == pytest.approx((shares * abs(observed - predicted)).sum(), rel=EXACT)


def test_favoured_responses_give_half_the_curve_and_the_same_brier_score():
    table = some_pairs()
    clusters = find_clusters(table)
    favoured, shown = (calibrate(table, clusters, orientation=o) for o in ("favoured", "shown"))
    assert favoured.brier == pytest.approx(shown.brier, rel=EXACT)
    assert min(b.predicted for b in favoured.bins) > 0.5
    total = sum(b.share * b.observed for b in favoured.bins)
    assert total == pytest.approx(evaluate(table).overall.estimates["accuracy"].value, rel=EXACT)
    assert sum(b.num_pairs for b in favoured.bins) == len(table)


def test_ties_count_one_half_on_either_side():
    table = with_strength(bare([0.0, 0.0, 3.0]), dist.Delta(torch.tensor(1.0)))
    found = evaluate(table)
    assert (found.num_ties, found.overall.estimates["accuracy"].value) == (2, pytest.approx(2 / 3, rel=EXACT))
    first = found.calibration.bins[0]
    assert (first.num_pairs, first.predicted, first.observed) == (2, 0.5, 0.5)


def test_choices_that_are_certain_are_calibrated_without_chance():
    """Rounding may take the logarithm of a mean of ones above 0."""
    found = evaluate(bare(np.full(20, 800.0), loglik=np.full(20, 2e-16))).calibration
    errors = (found.brier, found.expected_calibration_error, found.expected_by_chance)
    assert errors == pytest.approx((0.0, 0.0, 0.0), abs=1e-15)


@pytest.mark.parametrize("first", [None, [True] * 3], ids=["unknown", "always"])
def test_the_place_of_a_response_must_be_known_to_go_by_it(first):
    table = with_strength(bare([1.0, 2.0, -1.0], chosen_first=first), dist.Delta(torch.tensor(1.0)))
    with pytest.raises(InvalidInputError, match="chosen_first"):
        evaluate(table, orientation="shown")


def test_the_error_by_chance_is_that_of_right_probabilities():
    rng, num = np.random.default_rng(1), 400
    delta = rng.normal(size=num)
    errors = []
    for _ in range(100):
        sign = np.where(rng.random(num) < 1 / (1 + np.exp(-delta)), 1.0, -1.0)
        table = with_strength(bare(sign * delta), dist.Delta(torch.tensor(1.0)))
        errors.append(calibrate(table, find_clusters(table), num_bins=5))
    found = np.array([c.expected_calibration_error for c in errors])
    chance = errors[0].expected_by_chance
    # 5 standard errors of the mean: once in 10^6; and 2 % for the normal approximation of 80 pairs a bin
    assert abs(found.mean() - chance) < 5 * found.std() / math.sqrt(100) + 0.02 * chance


# --- gains -----------------------------------------------------------------------------------------


def gain(found, metric="log_ratio/margins", **selection):
    kinds = {"kind": "all", "attribute": None, "level": None, **selection}
    (one,) = (a for a in found.averages if all(getattr(a, name) == value for name, value in kinds.items()))
    return one.estimates[metric]


def test_a_run_gains_nothing_over_itself():
    table = some_pairs()
    found = gain(gains(table, table.take(np.arange(len(table))[::-1]), num_replications=200))
    assert (found.value, found.standard_error, found.lower, found.upper, found.pvalue) == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_a_constant_gain_is_certain():
    found = gain(gains(bare(np.full(30, 0.3)), bare(np.zeros(30)), num_replications=200))
    # the pull of 30 clusters has one sign in two of 2^30 patterns
    assert (found.value, found.lower, found.upper) == pytest.approx((0.3, 0.3, 0.3), rel=EXACT)
    assert found.pvalue == 1 / 10_001


@pytest.mark.parametrize("kind", ["all", "macro"])
def test_gains_are_paired_resampled_and_flipped_by_cluster(kind):
    """Against resampling and flipping written out, replication by replication and pattern by pattern."""
    one, two = (some_pairs(60, num_annotators=12, shift=shift) for shift in (0.8, 0.0))
    found = gains(one, two, minimum=2, num_replications=200, attributes=["framing"], metrics=["accuracy"])
    clusters, levels = find_clusters(one), np.array(one.levels("framing"))
    difference = pair_metrics(one)["accuracy"] - pair_metrics(two)["accuracy"]
    parts = [np.full(60, True)] if kind == "all" else [levels == level for level in sorted(set(levels))]

    def mean(weights, values):
        return np.mean([np.average(values[part], weights=weights[part]) for part in parts])

    drawn = [mean(one.weights * counts[clusters.codes], difference) for counts in
             bootstrap_weights(torch.ones(len(clusters)), 200, 0).numpy()]  # fmt: skip
    middle = gain(found, "accuracy", kind=kind, attribute=None if kind == "all" else "framing")
    assert middle.value == pytest.approx(mean(one.weights, difference), rel=EXACT)
    assert min(drawn) <= middle.lower < middle.value < middle.upper <= max(drawn)
    flipped = [
        abs(mean(one.weights, difference * np.array(signs)[clusters.codes]))
        for signs in itertools.product([-1.0, 1.0], repeat=len(clusters))
    ]
    assert middle.exact
    assert middle.pvalue == np.mean(np.array(flipped) >= abs(middle.value) * (1 - 1e-9))
    selection = Selection(parts=tuple(np.flatnonzero(part) for part in parts))
    replicated = _replicated(
        selection, {"accuracy": difference}, one.weights, clusters,
        bootstrap_weights(torch.ones(len(clusters)), 200, 0).numpy(),
    )  # fmt: skip
    np.testing.assert_allclose(replicated.drawn[:, 0], drawn, rtol=1e-10, atol=1e-14)  # sums of 60 in another order
    without = [mean(one.weights * (clusters.codes != g), difference) for g in range(len(clusters))]
    np.testing.assert_allclose(replicated.without[:, 0], without, rtol=1e-10, atol=1e-14)


def test_subgroups_are_one_family_and_small_ones_are_no_part_of_it():
    one, two = some_pairs(shift=0.4, num_annotators=45), some_pairs(num_annotators=45)
    found = gains(one, two, num_replications=200, metrics=["accuracy"])
    cells = [a.estimates["accuracy"] for a in found.averages if a.kind == "cell"]
    small = [a.estimates["accuracy"] for a in found.averages if a.kind == "small"]
    assert (len(cells), len(small), found.num_tests) == (3, 2, 3)
    raw = torch.tensor([g.pvalue for g in cells], dtype=torch.float64)
    assert [g.adjusted_pvalue for g in cells] == adjusted_pvalues(raw).tolist()
    assert [(math.isnan(g.pvalue), math.isnan(g.lower), g.standard_error > 0) for g in small] == [
        (True, True, True)
    ] * 2
    aggregates = [a.estimates["accuracy"] for a in found.averages if a.kind in ("all", "micro", "macro")]
    assert [math.isnan(g.adjusted_pvalue) for g in aggregates] == [True] * len(aggregates)


def test_where_few_replications_draw_every_part_there_is_no_interval():
    # 80 levels of two annotators: one replication in 10^5 draws all of them
    people = np.arange(160)
    groups = [{"country": str(person // 2)} for person in people]
    one, two = (bare(x, annotator_ids=[str(i) for i in people], groups=groups) for x in (people - 70.0, 0.0 * people))
    found = gain(gains(one, two, minimum=2, num_replications=200), kind="macro", attribute="country")
    assert (math.isnan(found.lower), math.isnan(found.upper), found.num_replications) == (True, True, 0)
    assert 0.0 < found.pvalue < 1.0


def test_benjamini_and_hochberg_reject_no_less_than_holm():
    one, two = some_pairs(shift=0.3), some_pairs()
    found = [
        gains(one, two, minimum=2, num_replications=200, metrics=["margin/sum"], adjustment=adjustment)
        for adjustment in ("holm", "benjamini_hochberg")
    ]
    holm, other = (
        np.array([a.estimates["margin/sum"].adjusted_pvalue for a in each.averages if a.kind == "cell"])
        for each in found
    )
    assert (other <= holm).all()


def test_intervals_cover_and_tests_hold_their_level():
    """Skewed gains of 30 people with unlike numbers of pairs: coverage of 95 % intervals, and size at 5 %."""
    rng, covered, rejected, trials = np.random.default_rng(3), 0, 0, 250
    people = np.repeat(np.arange(30), rng.integers(1, 9, size=30))
    for _ in range(trials):
        own = rng.exponential(size=30) - 1.0
        values = own[people] + rng.normal(size=len(people))
        one = bare(values, annotator_ids=[f"a{i}" for i in people])
        other = bare(np.zeros(len(people)), annotator_ids=[f"a{i}" for i in people])
        found = gain(gains(one, other, metrics=["log_ratio/margins"], num_replications=400, num_permutations=400))
        covered += found.lower <= 0.0 <= found.upper
        rejected += found.pvalue <= 0.05
    # binomial tails of 1e-4 at 95 % are 87.2 and 99.2 % of 250; 4 points below for 30 clusters of a skewed law
    assert 0.83 <= covered / trials <= 0.995
    # at 5 %: 0.8 and 12.8 % of 250; the null of symmetric pulls is wrong here, which costs some more
    assert 0.0 < rejected / trials <= 0.15


def test_pairs_of_one_run_alone_are_refused_or_named():
    one, two = bare([1.0, 2.0, 3.0], pair_ids=[1, 2, 3]), bare([1.0, 1.0, 1.0], pair_ids=[4, 3, 2])
    with pytest.raises(
        InvalidInputError, match=r"1 pairs of bare alone \(pair_id 1\); 1 pairs of bare alone \(pair_id 4"
    ):
        gains(one, two)
    found = gains(one, two, mismatched="shared", num_replications=200)
    assert (found.only, found.only_against, found.averages[0].num_pairs) == ((1,), (4,), 2)
    assert gain(found).value == 1.5
    aside = PairTable.of(name="x", non_finite="leave_out", pair_ids=[1, 2, 3], logratio_diff=[0.0, math.nan, 0.0])
    found = gains(one, aside, mismatched="shared", num_replications=200)
    assert (found.only, found.left_out) == ((2,), (2,))
    with pytest.raises(InvalidInputError, match="0 of both"):
        gains(one, bare([1.0], pair_ids=[9]), mismatched="shared")


@pytest.mark.parametrize(
    ("column", "other"),
    [("weights", [1.0, 2.0]), ("annotator_ids", ["a", "c"]), ("chosen_first", [True, True]), ("items", ["p", "r"])],
    ids=["weights", "annotators", "place", "items"],
)
def test_equal_ids_of_other_pairs_are_refused(column, other):
    columns = {"weights": [1.0, 1.0], "annotator_ids": ["a", "b"], "chosen_first": [True, False], "items": ["p", "q"]}
    with pytest.raises(InvalidInputError, match=f"{column} of bare"):
        gains(bare([1.0, 2.0], **columns), bare([1.0, 2.0], **{**columns, column: other}))


def test_policies_without_a_metric_in_common_are_refused():
    policy = PairTable(name="sft", pair_ids=[0, 1], policy_chosen=[-1.0, -2.0], policy_rejected=[-2.0, -2.0])
    with pytest.raises(InvalidInputError, match="none in common"):
        gains(bare([1.0, 2.0]), policy)


# --- runs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A supervised run and a run of both stages."""
    folder = tmp_path_factory.mktemp("evaluation")
    optim = OptimConfig(name="adamw", lr=3e-3, warmup_steps=2)
    stage = {"optim": optim, "batch_size": 16, "eval_every_examples": 64}
    settings = {
        "data": SimulatedData(num_train=64, num_eval=60, num_annotators=12),
        "model": NewModel(hidden_size=16, num_layers=1, num_heads=2, vocab_size=300),
        "sft": StageConfig(**stage),
    }
    preference = PreferenceConfig(**stage, strength=LogNormalStrength(update=LearnedUpdate(lr=1e-2)))
    return {
        name: run_alignment(AlignmentConfig(out=str(folder / name), name=name, **settings, **more))
        for name, more in (("sft", {}), ("both", {"preference": preference}))
    }


def test_a_runs_table_says_what_the_run_said(runs):
    metrics, values = runs["both"].metrics["preference"], pair_metrics(run_pairs(runs["both"].path))
    names = {
        "margin/sum": "margin/sum",
        "margin/reward": "rewards/margins",
        "log_ratio/margins": "log_ratio/margins",
        "accuracy": "rewards/accuracies",
    }
    found = {name: values[name].mean() for name in names}
    # float32 sums of ten log-probabilities where the policy was scored again
    assert found == pytest.approx({name: metrics[logged] for name, logged in names.items()}, abs=1e-4)
    assert -values["loglik"].mean() == pytest.approx(metrics["loss"], abs=1e-5)
    weights = pyarrow.parquet.read_table(runs["both"].path / "log_ratios.parquet")["pair_weight"].to_numpy()
    np.testing.assert_allclose(run_pairs(runs["both"].path).pair_weight, weights, rtol=1e-5)  # a float32 strength


def test_what_a_run_has_evaluated_is_the_same_table(runs, tmp_path):
    """The values of a preference stage, written as its log-ratios, and read without a policy."""
    path = runs["both"].path
    config = load_config(path / "config.yaml")
    policy, tokenizer = hf.load(PretrainedModel(path=str(path / "policy")), [], 0)
    rows, _ = tokenize(load_data(config.data).split("eval"), tokenizer, config.tokenization)
    loss = MixDPOLoss(build_preference_loss(config.preference).mixing)
    objective = PreferenceObjective(
        SequenceLogProbs(policy), loss, Collator(pad_id=tokenizer.pad_token_id), config=config.preference
    )
    reference = hf.load(PretrainedModel(path=str(runs["sft"].path / "policy")), [], 0)[0]
    scored = objective.logps(SequenceLogProbs(reference), rows).tolist()
    rows = [row.with_reference(logps) for row, logps in zip(rows, scored, strict=True)]
    table = held_out_pairs(objective.held_out(rows, step=0), "both")
    found, expected = pair_metrics(table), pair_metrics(run_pairs(path))
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(found["margin/avg"], expected["margin/avg"], rtol=1e-5)  # float32 log-probabilities
    np.testing.assert_allclose(found["log_ratio/margins"], expected["log_ratio/margins"], atol=1e-4)
    assert (table.groups, table.items) == (run_pairs(path).groups, run_pairs(path).items)
    write_pairs(table, tmp_path / "log_ratios.parquet")
    (tmp_path / "config.yaml").write_text((path / "config.yaml").read_text())
    again = run_pairs(tmp_path)
    assert np.array_equal(again.loglik, table.loglik)
    assert not (tmp_path / "pairs.parquet").exists()


def test_votes_for_either_of_two_texts_are_one_cluster(shared_data):
    data = load_data(HumourData(path=str(shared_data / "humour_pairs"), max_eval=20)).split("eval")
    rows = [TokenizedComparison(comparison=row, input_ids=([1, 2], [1, 3]), prompt_length=1) for row in data]
    columns = scoring._described(rows)
    found = find_clusters(PairTable(name="humour", logratio_diff=np.zeros(len(rows)), **columns))
    assert (found.by, len(found)) == ("pair", len({frozenset(row.responses) for row in data}))
    assert len(found) < len(rows)


def test_a_supervised_run_has_a_policy_and_no_reference(runs):
    table = run_pairs(runs["sft"].path)
    assert list(pair_metrics(table)) == ["margin/sum", "margin/avg", "accuracy/sum"]
    assert table.attributes == ("cohort",)
    found = gains(run_pairs(runs["both"].path), table, num_replications=200)
    assert list(found.averages[0].estimates) == ["margin/sum", "margin/avg", "accuracy/sum"]


def test_a_runs_log_ratios_are_a_table_by_themselves(runs):
    table = read_pairs(runs["both"].path / "log_ratios.parquet")
    assert find_clusters(table).by == "annotator"
    assert "accuracy" in pair_metrics(table)


def test_any_policy_is_scored_against_any_reference(runs):
    folders = [runs[name].path / "policy" for name in ("both", "sft")]
    config = load_config(runs["both"].path / "config.yaml")
    seen = []
    table = policy_pairs(
        folders[0], config.data, config.tokenization, reference=folders[1], strength=dist.Gamma(2.0, 20.0),
        batch_size=2, progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(0, 120), (32, 120), (60, 120), (92, 120), (120, 120)]
    assert calibrate(table, find_clusters(table), orientation="shown").brier < 1.0
    # the run's reference was the policy of its own supervised stage: the same settings, the same weights
    np.testing.assert_allclose(table.logratio_diff, run_pairs(runs["both"].path).logratio_diff, atol=1e-4)
    with pytest.raises(InvalidInputError, match="no reference"):
        policy_pairs(folders[0], config.data, config.tokenization, strength=dist.Gamma(2.0, 20.0))


def test_an_evaluation_is_written_and_not_scored_again(runs, monkeypatch, tmp_path):
    tasks = []
    found = evaluate_run(
        runs["both"].path, runs["sft"].path, out=tmp_path / "out", num_replications=200,
        progress=lambda task, done, total, metrics: tasks.append(task),
    )  # fmt: skip
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["averages"][0]["num_pairs"] == 60
    assert json.loads((tmp_path / "out" / "gains-over-sft.json").read_text())["against"] == "sft"
    assert "resampling" in tasks
    assert read_pairs(tmp_path / "out" / "pairs.parquet").name == "both"
    text = as_text(found)
    assert "gains of both over sft" in text
    assert "cohort" in text

    def refused(*args, **settings):
        raise AssertionError("scored again")

    monkeypatch.setattr(scoring, "policy_pairs", refused)
    again = evaluate_run(tmp_path / "out" / "pairs.parquet", runs["sft"].path, num_replications=200)
    assert again.gains.averages[0].estimates == found.gains.averages[0].estimates
    config = runs["sft"].path / "config.yaml"
    os.utime(config, (config.stat().st_atime, config.stat().st_mtime + 3600))
    with pytest.raises(AssertionError, match="scored again"):
        run_pairs(runs["sft"].path)


@pytest.mark.parametrize(
    "changes",
    [{"name": "other"}, {"policy_chosen": None, "policy_rejected": None}, {"left_out": (7,)}],
    ids=["another run's", "log-ratios alone", "fewer pairs"],
)
def test_another_table_in_a_runs_folder_is_not_taken_for_its_own(runs, tmp_path, changes):
    folder = shutil.copytree(runs["sft"].path, tmp_path / "sft")
    table = run_pairs(folder)
    write_pairs(dataclasses.replace(table, **changes), folder / "pairs.parquet")
    found = run_pairs(folder)
    assert (found.name, found.left_out) == ("sft", ())
    np.testing.assert_array_equal(found.policy_chosen, table.policy_chosen)


def test_a_run_that_has_not_finished_is_refused(runs, tmp_path):
    config = (runs["both"].path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(InvalidInputError, match="no whole run"):
        run_pairs(tmp_path)
    with pytest.raises(InvalidInputError, match="no such folder or file"):
        run_pairs(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="no run: no config"):
        run_pairs(tmp_path / "empty")


def test_a_run_on_other_data_than_its_settings_give_now_is_refused(runs, tmp_path):
    for name in ("config.yaml", "strength.json"):
        (tmp_path / name).write_text((runs["both"].path / name).read_text())
    (tmp_path / "policy").symlink_to(runs["both"].path / "policy")
    columns = pyarrow.parquet.read_table(runs["both"].path / "log_ratios.parquet")
    kept = columns.select(["pair_id", "annotator_id", "groups", "weight", "logratio_diff"])
    pyarrow.parquet.write_table(kept.slice(1), tmp_path / "log_ratios.parquet")
    with pytest.raises(InvalidInputError, match="1 pairs that are in log_ratios"):
        run_pairs(tmp_path)


# --- the command -----------------------------------------------------------------------------------


def test_the_command_tells_and_writes(runs, tmp_path, capsys):
    paths = [str(runs[name].path) for name in ("both", "sft")]
    settings = ["--metrics", "margin/sum", "--by", "cohort", "--minimum", "5", "--replications", "200"]
    assert cli.main(["evaluate", paths[0], "--against", paths[1], *settings, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "gains of both over sft" in text
    assert f"written to {tmp_path}" in text
    record = json.loads((tmp_path / "gains-over-sft.json").read_text())
    assert list(record["averages"][0]["estimates"]) == ["margin/sum"]


@pytest.mark.parametrize(
    ("num_annotators", "words"),
    [
        (1, ["no standard error and no interval (-): all pairs are of one cluster", "1 clusters, where 10 are the"]),
        (5, ["no interval and no p-value (-) over all pairs: 5 clusters, where 10 are the least (--minimum)"]),
        (40, []),
    ],
)
def test_where_there_is_no_interval_it_is_told_why(tmp_path, num_annotators, words):
    for name, shift in (("one", 0.4), ("two", 0.0)):
        table = some_pairs(shift=shift, num_annotators=num_annotators, groups=None)
        write_pairs(table, tmp_path / name / f"{name}.parquet")
    paths = [tmp_path / name / f"{name}.parquet" for name in ("one", "two")]
    text = as_text(evaluate_run(*paths, num_replications=200))
    assert [word for word in words if word not in text] == []
    assert "nan" not in text
    assert ("(-)" in text) == bool(words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--by", "cohrt"], "Try 'cohort'"),
        (["RUN", "--metrics", "margin"], "unknown metric 'margin'"),
        (["RUN", "--minimum", "1"], "minimum: got 1"),
        (["nowhere"], "nowhere: got no such folder or file; expected the folder of a run"),
        (["RUN", "--against", "RUN"], "which is the run itself"),
    ],
    ids=["attribute", "metric", "minimum", "run", "itself"],
)
def test_wrong_usage_of_the_command_is_told(runs, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    arguments = [str(runs["both"].path) if word == "RUN" else word for word in arguments]
    assert cli.main(["evaluate", *arguments]) == 2
    assert message in capsys.readouterr().err
