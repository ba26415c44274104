"""Win rates, plain and length-controlled: AlpacaEval's published numbers, scipy's optimum, and known truths."""

# N prompts.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import sklearn
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import make_scorer
from sklearn.model_selection import GroupKFold

from mixlogit_align.alignment.winrate import (
    LengthWeights,
    Preferences,
    bootstrap_win_rates,
    fit_length_control,
    leaderboard_row,
    sign_flip,
    win_rate,
)
from mixlogit_align.alignment.winrate.length_control import INVERSE_PENALTIES
from mixlogit_align.errors import InvalidInputError
from tests.alignment.alpaca import NUM_MODELS, NUM_PROMPTS, difficulty, published, published_weights, tables


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "alpaca_eval"


def table(values: Sequence[float], model: str = "a", **columns: Any) -> Preferences:
    return Preferences(
        model=model,
        opponent="b",
        prompts=[f"prompt {i}" for i in range(len(values))],
        values=np.array(values),
        **columns,
    )


def simulated(n: int, quality: float, length: float, hardness: float, seed: int) -> tuple[Preferences, np.ndarray]:
    """Certain verdicts by a judge whose GLM is known, and the difficulties."""
    rng = np.random.default_rng(seed)
    z, lengths = rng.normal(size=n), rng.normal(100.0, 400.0, size=n).round()
    p = expit(quality + length * np.tanh(lengths / lengths.std(ddof=1)) + hardness * z)
    values = (rng.random(n) < p).astype(float)
    return table(values, model_lengths=np.full(n, 2000.0), opponent_lengths=2000.0 + lengths), z


# --- published numbers ---


def test_every_model_s_row_of_the_leaderboard(folder: Path) -> None:
    """Rates within 1e-8 (the tables carry 9 decimals of them and 10 of the preferences), counts and lengths exact."""
    rows = published(folder)
    assert len(rows) == NUM_MODELS
    found = {model: leaderboard_row(tables(folder)[model]) for model in rows}
    rates = ("win_rate", "standard_error", "discrete_win_rate")
    assert max(abs(found[model][name] - row[name]) for model, row in rows.items() for name in rates) < 1e-8
    counts = ("n_wins", "n_wins_base", "n_draws", "n_total")
    assert [(m, n) for m, row in rows.items() for n in counts if found[m][n] != row[n]] == []
    complete = [m for m, row in rows.items() if row["n_total"] == NUM_PROMPTS]
    assert [m for m in complete if found[m]["avg_length"] != rows[m]["avg_length"]] == []


def test_length_controlled_rates_from_published_weights(folder: Path) -> None:
    rows = published(folder)
    complete = [model for model, row in rows.items() if row["n_total"] == NUM_PROMPTS]
    assert len(complete) == NUM_MODELS - 3
    errors, spreads = [], []
    for model in complete:
        z = difficulty(folder, tables(folder)[model])
        preferences = 100 * published_weights(folder)[model].preferences(z)
        errors.append(abs(preferences.mean() - rows[model]["length_controlled_winrate"]))
        if rows[model]["lc_standard_error"] is not None:
            spreads.append(abs(preferences.std(ddof=1) / NUM_PROMPTS**0.5 - rows[model]["lc_standard_error"]))
    # weights and difficulties are rounded at 1e-12 and 1e-9
    assert max(errors) < 1e-6
    assert len(spreads) == 3
    assert max(spreads) < 1e-6


def test_independent_refit(folder: Path) -> None:
    """Without AlpacaEval's stored judgments of the brief and the verbose baseline: see `fit_length_control`.

    At the penalty that cross-validation chooses for most models; validation/winrate.py lets it choose for each.
    """
    rows = published(folder)
    off = {}
    for model, row in rows.items():
        preferences = tables(folder)[model]
        found = fit_length_control(preferences, difficulty(folder, preferences), inverse_penalty=INVERSE_PENALTIES[5])
        off[model] = found.percent - row["length_controlled_winrate"]
    assert median(map(abs, off.values())) < 2.0
    # the one whose lengths do not overlap with the baseline's (it always answers in one short line)
    assert [model for model, points in off.items() if abs(points) > 4.0] == ["gpt4_gamed"]


# --- win rate by hand ---


def test_win_rate_by_hand() -> None:
    found = win_rate(np.array([1.0, 0.0, 0.5, 0.9, np.nan]))
    assert found.percent == pytest.approx(60.0, abs=1e-12)
    # deviations 0.4, -0.6, -0.1, 0.3: squares sum to 0.62; sqrt(0.62 / 3 / 4)
    assert found.standard_error == pytest.approx(100 * (0.62 / 12) ** 0.5, abs=1e-12)
    assert (found.num_wins, found.num_losses, found.num_ties, found.num_missing) == (2, 1, 1, 1)
    assert (found.num_judged, found.discrete_percent) == (4, 62.5)


def test_one_verdict_has_a_rate_without_an_error() -> None:
    found = win_rate(np.array([1.0]))
    assert found.percent == 100.0
    assert np.isnan(found.standard_error)


def test_swapping_sides_mirrors_the_rate() -> None:
    values = np.random.default_rng(0).random(50)
    ours, theirs = win_rate(values), win_rate(1.0 - values)
    assert ours.percent + theirs.percent == pytest.approx(100.0, abs=1e-12)
    assert (ours.num_wins, ours.num_losses) == (theirs.num_losses, theirs.num_wins)


# --- length control ---


def penalised_loss(weights: np.ndarray, x: np.ndarray, y: np.ndarray, c: float) -> float:
    u = x @ weights
    return float(np.abs(weights).sum() + c * (np.logaddexp(0.0, u) - y * u).sum())


@pytest.mark.parametrize("c", [0.02, 1.0, 1e4])
@pytest.mark.parametrize("full", [True, False], ids=["full", "minimal"])
def test_fit_is_the_optimum_of_its_objective(full: bool, c: float) -> None:
    """Scipy's, on the penalty's two halves: weights = plus - minus, both at least 0."""
    preferences, z = simulated(200, -0.3, -1.2, 0.8, seed=1)
    found = fit_length_control(preferences, z if full else None, inverse_penalty=c).weights
    lengths = preferences.opponent_lengths - preferences.model_lengths
    columns = [np.tanh(lengths / lengths.std(ddof=1)), np.ones(200), *([z] if full else [])]
    x, y, k = np.stack(columns, 1), preferences.values, len(columns)
    theirs = minimize(
        lambda halves: penalised_loss(halves[:k] - halves[k:], x, y, c) + 1e-9 * halves.sum(),
        np.zeros(2 * k),
        bounds=[(0, None)] * (2 * k),
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 10_000, "maxfun": 100_000},
    )
    ours = np.array([found.length, found.quality, *([found.difficulty] if full else [])])
    # no worse than scipy's, and nearly the same point: its gradients by differences stop at about 1e-5
    assert penalised_loss(ours, x, y, c) <= penalised_loss(theirs.x[:k] - theirs.x[k:], x, y, c) * (1 + 1e-8)
    assert np.abs(ours - (theirs.x[:k] - theirs.x[k:])).max() < 1e-3


def minus_log_loss(y: np.ndarray, p: np.ndarray, share: np.ndarray) -> float:
    target = np.where(y == 1, share, 1 - share)
    return float((target * np.log(p) + (1 - target) * np.log(1 - p)).mean())


@pytest.mark.parametrize("seed", range(4))
def test_penalty_is_the_one_scikit_learn_chooses(seed: int) -> None:
    """Its `LogisticRegressionCV` with AlpacaEval's settings, on rows that stand once as a win and once as a loss."""
    preferences, z = simulated(60, 0.1, -0.4, 0.3, seed=seed)
    soft = 0.8 * preferences.values + 0.1
    preferences = table(soft, model_lengths=preferences.model_lengths, opponent_lengths=preferences.opponent_lengths)
    lengths = preferences.opponent_lengths - preferences.model_lengths
    x = np.stack([np.tanh(lengths / lengths.std(ddof=1)), np.ones(60), z], axis=1)
    shares, labels = np.r_[soft, 1 - soft], np.repeat([1, 0], 60)
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_scorer(minus_log_loss, response_method="predict_proba").set_score_request(share=True)
        theirs = LogisticRegressionCV(
            Cs=10, cv=GroupKFold(5), scoring=scorer, l1_ratios=(1.0,), solver="liblinear", fit_intercept=False,
            tol=1e-8, max_iter=100_000, random_state=123, use_legacy_attributes=False,
        ).set_fit_request(sample_weight=True)  # fmt: skip
        theirs.fit(np.r_[x, x], labels, groups=np.r_[:60, :60], sample_weight=shares, share=shares)
    ours = fit_length_control(preferences, z)
    assert ours.inverse_penalty == pytest.approx(float(theirs.C_), rel=1e-12)
    weights = [ours.weights.length, ours.weights.quality, ours.weights.difficulty]
    assert weights == pytest.approx(theirs.coef_[0], abs=1e-6)


def test_weights_of_a_known_judge_are_recovered() -> None:
    truth = np.array([-0.5, -1.5, 0.7])
    samples = [simulated(1000, *truth, seed=seed) for seed in range(10, 40)]
    fits = [fit_length_control(preferences, z, inverse_penalty=100.0) for preferences, z in samples]
    weights = np.array([[w.quality, w.length, w.difficulty] for w in (fit.weights for fit in fits)])
    errors = weights.std(0, ddof=1) / len(fits) ** 0.5
    # the maximum-likelihood estimate is biased by about 1 / n of itself, a twentieth of these errors;
    # |t| > 5 with 29 degrees: 3e-5 for each of three, at fixed seeds
    assert np.abs((weights.mean(0) - truth) / errors).max() < 5.0
    rates = [
        fit.percent - 100 * expit(truth[0] + truth[2] * z).mean() for fit, (_, z) in zip(fits, samples, strict=True)
    ]
    assert abs(np.mean(rates)) < 5 * np.std(rates, ddof=1) / len(fits) ** 0.5


def test_swapping_sides_mirrors_the_controlled_rate() -> None:
    ours, z = simulated(300, 0.4, -1.0, 0.5, seed=3)
    theirs = table(1 - ours.values, model_lengths=ours.opponent_lengths, opponent_lengths=ours.model_lengths)
    a, b = fit_length_control(ours, z, inverse_penalty=10.0), fit_length_control(theirs, z, inverse_penalty=10.0)
    # liblinear stops at 1e-8 of its first gradient
    assert a.preferences + b.preferences == pytest.approx(np.ones(300), abs=1e-5)
    assert a.weights.length == pytest.approx(b.weights.length, abs=1e-4)


def test_minimal_form_gives_every_prompt_the_same_preference() -> None:
    preferences, _ = simulated(100, 0.4, -1.0, 0.0, seed=4)
    found = fit_length_control(preferences)
    assert found.weights.difficulty is None
    assert len(found.preferences) == 100
    assert np.ptp(found.preferences) == 0.0
    assert found.spread_error < 1e-12  # of the mean's rounding


def test_prompts_without_a_verdict_are_predicted_and_do_not_enter_the_fit() -> None:
    whole, z = simulated(120, 0.2, -1.0, 0.6, seed=5)
    values = whole.values.copy()
    values[:20] = np.nan
    with_gaps = table(values, model_lengths=whole.model_lengths, opponent_lengths=whole.opponent_lengths)
    found = fit_length_control(with_gaps, z, inverse_penalty=10.0)
    counted = fit_length_control(whole, z, inverse_penalty=10.0, frequencies=np.r_[np.zeros(20), np.ones(100)])
    assert len(found.preferences) == 120
    assert len(counted.preferences) == 100
    # the scale of lengths is of 120 prompts and of 100: the fits are close, not equal
    assert found.weights.quality == pytest.approx(counted.weights.quality, abs=0.1)


def test_frequencies_are_repeated_rows() -> None:
    preferences, z = simulated(60, 0.2, -1.0, 0.6, seed=6)
    counts = np.random.default_rng(0).integers(0, 3, 60)
    rows = np.repeat(np.arange(60), counts)
    repeated = table(
        preferences.values[rows],
        model_lengths=preferences.model_lengths[rows],
        opponent_lengths=preferences.opponent_lengths[rows],
    )
    a = fit_length_control(preferences, z, inverse_penalty=5.0, frequencies=counts.astype(float))
    b = fit_length_control(repeated, z[rows], inverse_penalty=5.0)
    # liblinear's stopping rule
    assert a.preferences == pytest.approx(b.preferences, abs=1e-5)


def test_published_weights_have_no_part_for_length_at_equal_lengths() -> None:
    weights = LengthWeights(quality=0.0, length=-3.0, difficulty=2.0)
    assert weights.preferences(np.array([0.0, 1.0])) == pytest.approx([0.5, expit(2.0)], abs=1e-15)


@pytest.mark.parametrize(
    ("columns", "z", "message"),
    [
        pytest.param({}, None, "no lengths of the responses", id="no lengths"),
        pytest.param(
            {"model_lengths": np.arange(20.0), "opponent_lengths": np.arange(20.0) + 7},
            None,
            r"the same difference \(7 characters\)",
            id="one difference of lengths",
        ),
        pytest.param(
            {"model_lengths": np.arange(20.0), "opponent_lengths": np.ones(20)},
            np.ones(19),
            r"difficulty: got shape \(19,\)",
            id="difficulties of other prompts",
        ),
        pytest.param(
            {"model_lengths": np.arange(20.0), "opponent_lengths": np.ones(20)},
            np.full(20, np.nan),
            "20 not finite",
            id="unknown difficulties",
        ),
    ],
)
def test_what_cannot_be_controlled_is_refused(columns: dict[str, Any], z: np.ndarray | None, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        fit_length_control(table(np.linspace(0.1, 0.9, 20).tolist(), **columns), z)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param([1.0] * 20, "certain to win on every prompt", id="always won"),
        pytest.param([0.3] * 9 + [np.nan] * 11, "9 prompts with a verdict", id="few verdicts"),
    ],
)
def test_preferences_without_variation_or_number_are_refused(values: list[float], message: str) -> None:
    preferences = table(values, model_lengths=np.arange(20.0), opponent_lengths=np.zeros(20))
    with pytest.raises(InvalidInputError, match=message):
        fit_length_control(preferences)


# --- uncertainty ---


def test_bootstrap_of_a_plain_rate_is_its_standard_error() -> None:
    values = np.random.default_rng(1).random(200)
    found = bootstrap_win_rates([table(values.tolist())], num_replications=2000, seed=0).win_rate("a")
    closed = win_rate(values).standard_error * (199 / 200) ** 0.5
    # the sd of B replications is off by 1 / sqrt(2 B) of itself: 5 of those, a rate of 6e-7
    assert found.standard_error == pytest.approx(closed, rel=5 / (2 * 2000) ** 0.5)
    assert found.lower < found.value < found.upper


def test_paired_difference_knows_that_prompts_are_shared() -> None:
    base = np.random.default_rng(2).random(100) * 0.9
    found = bootstrap_win_rates(
        [table(base.tolist()), table((base + 0.1).tolist(), model="better")], num_replications=100, seed=0
    )
    difference = found.difference("better", "a")
    assert (difference.value, difference.lower, difference.upper) == pytest.approx((10.0, 10.0, 10.0), abs=1e-9)
    assert found.win_rate("a").standard_error > 1.0


def test_bootstrap_refits_the_length_control(folder: Path) -> None:
    names = ["claude-2", "gpt4_0613_concise"]
    models = [tables(folder)[name] for name in names]
    z = difficulty(folder, models[0])
    found = bootstrap_win_rates(models, length_control=True, difficulty=z, num_replications=60, seed=0)
    assert found.num_failed == 0
    assert found.percent.tolist() == [fit_length_control(model, z).percent for model in models]
    # AlpacaEval's error takes the weights as known: of claude-2 it is 0.65, a refit finds 1.5 or so
    assert found.win_rate("claude-2").standard_error > 1.5 * fit_length_control(models[0], z).spread_error
    again = bootstrap_win_rates(models, length_control=True, difficulty=z, num_replications=5, seed=0)
    assert (again.replications == found.replications[:5]).all()


def test_bootstrap_error_of_the_controlled_rate_is_the_sd_over_samples() -> None:
    """Minimal form; the sds of 200 replications and of 100 samples are each off by 5 % and 7 % of themselves."""
    one, _ = simulated(400, 0.3, -1.0, 0.0, seed=7)
    found = bootstrap_win_rates([one], length_control=True, num_replications=200, seed=0).win_rate("a")
    samples = [simulated(400, 0.3, -1.0, 0.0, seed=1000 + seed)[0] for seed in range(100)]
    sd = np.std([fit_length_control(sample, inverse_penalty=100.0).percent for sample in samples], ddof=1)
    # 0.4 is 4.6 of their combined error: a rate of 4e-6, at fixed seeds
    assert found.standard_error == pytest.approx(sd, rel=0.4)


def test_sign_flip_between_models_and_against_the_opponent() -> None:
    ours, theirs = table([1.0, 1.0, 1.0, np.nan, 0.5]), table([0.0, 0.0, 0.0, 1.0, 0.5], model="c")
    found = sign_flip(ours, theirs)
    assert found.difference == pytest.approx(75.0, abs=1e-12)
    assert (found.test.pvalue, found.test.exact, found.num_left_out) == (2 / 8, True, 1)
    alone = sign_flip(ours)
    assert alone.difference == pytest.approx(37.5, abs=1e-12)
    assert (alone.test.pvalue, alone.test.num_nonzero) == (2 / 8, 3)


# --- bad input ---


def test_models_on_other_prompts_are_not_compared() -> None:
    other = Preferences(model="c", opponent="b", prompts=["prompt 0", "x"], values=np.ones(2))
    with pytest.raises(InvalidInputError, match=r"1 of 'a' alone, such as 'prompt 1'; 1 of 'c' alone, such as 'x'"):
        sign_flip(table([1.0, 0.0]), other)


def test_another_order_is_refused_and_can_be_mended() -> None:
    ours = table([1.0, 0.25], model_lengths=[1, 2], opponent_lengths=[3, 4])
    other = Preferences(model="c", opponent="b", prompts=["prompt 1", "prompt 0"], values=np.ones(2))
    with pytest.raises(InvalidInputError, match="different orders"):
        bootstrap_win_rates([ours, other])
    turned = ours.reordered(other.prompts)
    assert (turned.prompts, turned.values.tolist()) == (("prompt 1", "prompt 0"), [0.25, 1.0])
    assert (turned.model_lengths.tolist(), turned.opponent_lengths.tolist()) == ([2.0, 1.0], [4.0, 3.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            {"prompts": ["x", "y", "x"], "values": [1, 1, 1]}, "1 prompts more than once, such as 'x'", id="twice"
        ),
        pytest.param({"prompts": ["x", "y"], "values": [0.5, 1.5]}, "1.5 for prompt 'y'", id="out of range"),
        pytest.param({"prompts": ["x", "y"], "values": [0.5]}, r"shape \(1,\)", id="missing values"),
        pytest.param(
            {"prompts": ["x"], "values": [0.5], "model_lengths": [1, 2]}, "model_lengths of 'a'", id="other lengths"
        ),
    ],
)
def test_bad_preferences_are_refused(make: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Preferences(model="a", opponent="b", **make)


def test_no_verdict_at_all_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="2 prompts, none with a verdict"):
        win_rate(np.full(2, np.nan))


@pytest.mark.parametrize(
    ("models", "settings", "message"),
    [
        pytest.param(["a", "a"], {}, "each once", id="one name twice"),
        pytest.param([], {}, "one or more", id="no models"),
        pytest.param(["a"], {"difficulty": [0.0, 1.0]}, "length_control=True", id="difficulties without use"),
        pytest.param(["a"], {"inverse_penalty": 1.0}, "length_control=True", id="a penalty without use"),
    ],
)
def test_bad_bootstraps_are_refused(models: list[str], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        bootstrap_win_rates([table([1.0, 0.0], model=model) for model in models], **settings)


def test_unknown_model_and_level_are_refused() -> None:
    found = bootstrap_win_rates([table([1.0, 0.0])], num_replications=5)
    with pytest.raises(InvalidInputError, match="one of a"):
        found.win_rate("z")
    with pytest.raises(InvalidInputError, match="level"):
        found.win_rate("a", level=95)
