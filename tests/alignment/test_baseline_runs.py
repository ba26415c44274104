"""Runs with a loss of fixed strength: chosen by config, trained, resumed, shared out, recorded and reported."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from torch.distributions import Categorical

from mixlogit_align.alignment import (
    AlignmentConfig,
    NonFiniteLossError,
    dump_config,
    export_checkpoint,
    load_config,
    parse_config,
    run_alignment,
)
from mixlogit_align.alignment.baseline_objectives import mismatched
from mixlogit_align.alignment.config import (
    FrozenUpdate,
    LogNormalStrength,
    NewModel,
    OptimConfig,
    PointStrength,
    PreferenceConfig,
    PretrainedModel,
    TokenizationConfig,
)
from mixlogit_align.alignment.conversations import texts
from mixlogit_align.alignment.data import load_data
from mixlogit_align.alignment.data.batches import TokenizedComparison
from mixlogit_align.alignment.data.config import SimulatedData
from mixlogit_align.alignment.data.schema import Comparison
from mixlogit_align.alignment.evaluation import read_pairs, run_pairs
from mixlogit_align.alignment.hf import load
from mixlogit_align.alignment.logratios import _token_entropies, sequence_entropies
from mixlogit_align.alignment.loss_config import (
    DPO,
    IPO,
    KTO,
    AdaptiveDPO,
    BetaDPO,
    ConservativeDPO,
    LossConfig,
    MallowsDPO,
    RobustDPO,
    SimPO,
)
from mixlogit_align.alignment.manual import manual
from mixlogit_align.alignment.tokenization import tokenize
from mixlogit_align.cli import _print_result
from mixlogit_align.econometrics import ChoiceData
from mixlogit_align.errors import InvalidInputError
from mixlogit_align.report import write_report
from tests.alignment.processes import largest_differences, on_ranks, train, trajectory

LOSSES: dict[str, LossConfig] = {
    "dpo": DPO(),
    "conservative_dpo": ConservativeDPO(),
    "robust_dpo": RobustDPO(),
    "ipo": IPO(),
    "ipo_sequence": IPO(per="sequence"),
    "simpo": SimPO(),
    "kto": KTO(),
    "beta_dpo": BetaDPO(),
    "adaptive_dpo": AdaptiveDPO(),
    "mallows_dpo": MallowsDPO(),
}
# The last of four steps has a single row.
ROWS = {"num_train": 19, "num_eval": 7}
PLAIN = {
    "loss", "rewards/accuracies", "rewards/chosen", "rewards/rejected", "rewards/margins", "log_ratio/margins",
    "log_ratio/sd", "margin/sum", "logps/chosen", "logps/rejected", "strength/mean", "strength/sd", "pair_weight",
}  # fmt: skip
OF_BATCH = {"kto": {"kto/reference_point"}, "beta_dpo": {"beta_dpo/threshold", "beta_dpo/batch_margin"}}
WHERE = {"stage", "split", "step", "examples_seen"}


def config(out: Path, loss: LossConfig | None = None, **changes: Any) -> AlignmentConfig:
    stage: dict[str, Any] = {"batch_size": 6, "eval_every_examples": 12, "eval_batch_size": 4, **changes}
    optim = OptimConfig(name="adamw", lr=3e-3, warmup_steps=2)
    method = {} if loss is None else {"loss": loss}
    return AlignmentConfig(
        out=str(out),
        name=out.name,
        data=SimulatedData(**ROWS, num_annotators=4),
        model=NewModel(hidden_size=16, num_layers=1, num_heads=2, vocab_size=300),
        tokenization=TokenizationConfig(max_length=48, max_prompt_length=24),
        preference=PreferenceConfig(optim=optim, **method, **stage),
        precision="float32",
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: run_alignment(config(folder / name, loss)).path for name, loss in LOSSES.items()}


def split(run: Path, name: str) -> list[dict[str, Any]]:
    return [record for record in trajectory(run) if record["split"] == name]


@dataclasses.dataclass(frozen=True)
class Known:
    """What a run began with and left, to compute its numbers again with transformers alone."""

    start: Any
    end: Any
    train: list[TokenizedComparison]
    held_out: list[TokenizedComparison]

    @classmethod
    def of(cls, run: Path) -> Known:
        settings = load_config(run / "config.yaml")
        data = load_data(settings.data)
        start, tokenizer = load(settings.model, (text for row in data.split("train") for text in texts(row)), 0)
        end = load(PretrainedModel(path=str(run / "policy")), [], 0)[0]
        rows = [tokenize(data.split(name), tokenizer, settings.tokenization)[0] for name in ("train", "eval")]
        return cls(start.eval(), end.eval(), *rows)


@torch.no_grad()
def predicted(policy: Any, ids: list[int], prompt_length: int) -> Categorical:
    """What the policy expects at each response token of one sequence."""
    logits = policy(input_ids=torch.tensor([ids])).logits[0, prompt_length - 1 : -1]
    return Categorical(logits=logits.double())


def log_prob(policy: Any, ids: list[int], prompt_length: int) -> float:
    return predicted(policy, ids, prompt_length).log_prob(torch.tensor(ids[prompt_length:])).sum().item()


# --- one run of each -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains(runs, name):
    train, held_out = split(runs[name], "train"), split(runs[name], "eval")
    expected = PLAIN | OF_BATCH.get(name, set()) | WHERE
    assert {frozenset(record) for record in held_out} == {frozenset(expected)}
    assert {frozenset(record) for record in train} == {frozenset(expected | {"grad_norm", "learning_rate", "tokens"})}
    assert [record["examples_seen"] for record in train] == [6, 12, 18, 19]
    assert all(math.isfinite(value) for record in train for value in record.values() if not isinstance(value, str))
    assert min(record["grad_norm"] for record in train) > 0


@pytest.mark.parametrize("name", LOSSES)
def test_the_settings_say_what_counts_and_nothing_else(runs, name):
    settings = load_config(runs[name] / "config.yaml")
    assert settings == config(runs[name], LOSSES[name])
    assert settings.preference.strength is settings.preference.integration is None
    assert (settings.preference.reference_precision is None) == (name == "simpo")


@pytest.mark.parametrize("name", LOSSES)
def test_the_record_names_the_loss_and_its_strength(runs, name):
    record = json.loads((runs[name] / "strength.json").read_text())
    assert record["loss"] == dataclasses.asdict(LOSSES[name])
    last = split(runs[name], "eval")[-1]["strength/mean"]
    constant = name in ("dpo", "conservative_dpo", "robust_dpo")
    assert (record["family"], record["update"]) == (("point", "frozen") if constant else (None, "computed"))
    assert record["mean"] == pytest.approx(last, rel=1e-7)  # a point is float32


@pytest.mark.parametrize("name", LOSSES)
def test_differences_stand_under_a_name_that_says_what_they_are(runs, name):
    table = pyarrow.parquet.read_table(runs[name] / "log_ratios.parquet")
    column = {"simpo": "logp_diff_per_token", "ipo": "logratio_diff_per_token"}.get(name, "logratio_diff")
    assert set(table.column_names) == {"pair_id", "annotator_id", "groups", "weight", column, "pair_weight"}
    run = json.loads((runs[name] / "run.json").read_text())
    assert read_pairs(runs[name] / "log_ratios.parquet").name == run["name"]
    mean = table[column].to_numpy().mean()
    assert mean == pytest.approx(split(runs[name], "eval")[-1]["log_ratio/margins"], abs=1e-12)


@pytest.mark.parametrize("name", ["simpo", "ipo"])
def test_estimation_does_not_take_values_per_token_for_nats(runs, name):
    with pytest.raises(InvalidInputError, match="logratio_diff"):
        ChoiceData.from_logratios(runs[name] / "log_ratios.parquet")


def test_probabilities_are_held_against_the_truth_where_there_are_any(runs):
    judged = {name: json.loads((run / "truth.json").read_text())["held_out"] for name, run in runs.items()}
    assert {name for name, values in judged.items() if "kl" in values} == {
        "dpo", "conservative_dpo", "robust_dpo", "beta_dpo", "adaptive_dpo", "mallows_dpo",
    }  # fmt: skip


def test_one_page_reports_them_all(runs, tmp_path, capsys):
    write_report(list(runs.values()), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert [name for name in ("none (kto)", "none (simpo)", "none (beta dpo)") if name not in page] == []


@pytest.mark.parametrize(("name", "said"), [("kto", "strength: computed, mean 0.1000\n"), ("dpo", "strength: point, ")])
def test_the_command_line_says_where_it_ended(runs, capsys, name, said):
    _print_result(config(runs[name], LOSSES[name]), run_alignment(config(runs[name], LOSSES[name]), resume=True))
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "known"),
    [("dpo", (True, True)), ("kto", (True, False)), ("ipo", (False, False)), ("simpo", (False, False))],
)
def test_evaluation_takes_what_the_loss_has(runs, name, known):
    table = run_pairs(runs[name])
    assert (table.logratio_diff is not None, table.loglik is not None) == known
    assert table.policy_chosen is not None


# --- the numbers -----------------------------------------------------------------------------------


def test_dpo_by_name_is_a_frozen_point_to_the_bit(runs, tmp_path):
    point = PointStrength(value=0.1, update=FrozenUpdate())
    beta = point.build()().mean.item()  # a point is stored in float32
    one = run_alignment(config(tmp_path / "point", strength=point)).path
    other = run_alignment(config(tmp_path / "dpo", DPO(beta=beta))).path
    records = [{name: value for name, value in record.items() if name != "strength/v"} for record in trajectory(one)]
    assert trajectory(other) == records
    assert (one / "policy" / "model.safetensors").read_bytes() == (other / "policy" / "model.safetensors").read_bytes()
    # and nothing else is: another loss goes elsewhere
    assert trajectory(runs["robust_dpo"])[-1]["loss"] != records[-1]["loss"]


def test_beta_follows_the_batches(runs):
    """Beta and threshold of every step by the formula, from the mean log-ratio difference that the step logged."""
    train, loss, threshold = split(runs["beta_dpo"], "train"), BetaDPO(), 0.0
    expected, found = [], []
    for record in train:
        margin = record["log_ratio/margins"]
        threshold = 0.9 * threshold + 0.1 * margin
        expected += [margin, threshold, loss.beta * (1 + loss.alpha * (margin - threshold))]
        found += [record[name] for name in ("beta_dpo/batch_margin", "beta_dpo/threshold", "strength/mean")]
    # the mean is taken once in float64 sums over processes, once from gathered shares
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert train[-1]["strength/mean"] != train[0]["strength/mean"]
    last = split(runs["beta_dpo"], "eval")[-1]
    assert last["beta_dpo/threshold"] == train[-1]["beta_dpo/threshold"]
    assert last["beta_dpo/batch_margin"] == pytest.approx(last["log_ratio/margins"], abs=1e-12)


def test_the_reference_point_is_the_mean_log_ratio_of_responses_to_other_prompts(runs):
    known = Known.of(runs["kto"])
    log_ratios = [
        log_prob(known.end, ids, row.prompt_length) - log_prob(known.start, ids, row.prompt_length)
        for row in mismatched(known.held_out)
        for ids in row.input_ids
    ]
    found = split(runs["kto"], "eval")[-1]["kto/reference_point"]
    assert found > 0.05
    # float32 log-probabilities of 100 nats a response, each 1e-5 off at most
    assert found == pytest.approx(sum(log_ratios) / len(log_ratios), abs=2e-5)


def test_a_prompts_strength_follows_the_references_entropy(runs):
    known = Known.of(runs["mallows_dpo"])

    def log_dispersion(row: TokenizedComparison) -> float:
        means = [predicted(known.start, ids, row.prompt_length).entropy().mean() for ids in row.input_ids]
        return math.log(sum(means) / len(means) / math.log(300))

    scale = len(known.train) / -sum(map(log_dispersion, known.train))
    expected = -0.1 * scale * sum(map(log_dispersion, known.held_out)) / len(known.held_out)
    found = split(runs["mallows_dpo"], "eval")
    # near 1, where an untrained reference's dispersion lies, its log has lost two digits of float32
    assert found[0]["strength/mean"] == pytest.approx(expected, rel=1e-4)
    assert found[-1]["strength/mean"] == found[0]["strength/mean"]


@pytest.mark.parametrize("chunk_size", [None, 3], ids=["whole", "chunks"])
def test_entropies_are_shares_of_the_largest(runs, chunk_size):
    known = Known.of(runs["dpo"])
    rows = [(row.input_ids[0], row.prompt_length) for row in known.held_out[:3]]
    expected = [predicted(known.end, *row).entropy().sum().item() / math.log(300) for row in rows]
    found = []
    for ids, prompt_length in rows:
        tokens = torch.tensor([ids])
        mask = (torch.arange(len(ids)) >= prompt_length)[None]
        found.append(sequence_entropies(known.end, tokens, mask, chunk_size=chunk_size).item())
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_sure_policy_has_no_entropy_and_an_undecided_one_all():
    head = torch.nn.Linear(1, 4, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0], [0.0], [0.0], [0.0]]))
    states = torch.tensor([[0.0], [200.0]])
    assert _token_entropies(head, states, torch.zeros(2, dtype=torch.int64)).tolist() == pytest.approx([1.0, 0.0])


def row(pair_id: int, prompt: list[int], *responses: list[int]) -> TokenizedComparison:
    comparison = Comparison(prompt="", responses=("a", "b"), choice=1, pair_id=pair_id, split="train")
    candidates = tuple(prompt + response for response in responses)
    return TokenizedComparison(comparison=comparison, input_ids=candidates, prompt_length=len(prompt))


def test_mismatched_responses_are_to_another_prompt_and_never_too_long():
    rows = [
        row(0, [1], [10], [11, 12]),
        row(1, [1], [13], [14]),
        row(2, [2, 2, 2], [20, 21, 22], [23]),
        row(3, [3, 3, 3, 3], [30, 31], [32]),
    ]
    found = mismatched(rows)
    home = {10: 0, 13: 0, 20: 2, 30: 3}
    donors = [home[given.input_ids[0][given.prompt_length]] for given in found]
    assert [donor == home[own.input_ids[0][own.prompt_length]] for donor, own in zip(donors, rows, strict=True)] == [
        False, False, False, False,
    ]  # fmt: skip
    assert [given.comparison.pair_id for given in found] == [0, 1, 2, 3]
    assert [given.input_ids[0][: given.prompt_length] for given in found] == [[1], [1], [2, 2, 2], [3, 3, 3, 3]]
    assert max(len(ids) for given in found for ids in given.input_ids) <= 6
    assert mismatched(rows) == found


def test_one_prompt_alone_has_no_mismatched_responses():
    with pytest.raises(InvalidInputError, match="prompts: got 'one in 2 comparisons'; expected two or more"):
        mismatched([row(0, [1], [2], [3]), row(1, [1], [4], [5])])


# --- many processes, breaks, failures --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "accumulation"), [("beta_dpo", 2, 1), ("beta_dpo", 1, 2), ("kto", 2, 3), ("mallows_dpo", 2, 1)]
)
def test_processes_and_accumulation_leave_the_trajectory_alone(runs, tmp_path, name, size, accumulation):
    on_ranks(size, train, config(tmp_path / "run", LOSSES[name], accumulation=accumulation))
    one, other = trajectory(runs[name]), trajectory(tmp_path / "run")
    # float32 sums in another order, carried on by four steps of AdamW
    differences = largest_differences(one, other)
    assert max(differences.values()) < 1e-4, differences
    of_batch = [
        [record[key] for record in records for key in sorted(OF_BATCH.get(name, ()))] for records in (one, other)
    ]
    # the same sums; a log-ratio of about 1 is a difference of log-probabilities a hundred times as large
    assert of_batch[1] == pytest.approx(of_batch[0], rel=1e-4, abs=1e-5)


class Break:
    """A progress that ends the run after its third step, which is after the last checkpoint."""

    def __call__(self, stage: str, done: int, total: int, metrics: object) -> None:
        if done == 18:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["beta_dpo", "kto", "simpo", "mallows_dpo"])
def test_a_run_with_a_break_is_the_run_without(runs, tmp_path, name):
    settings = config(tmp_path / name, LOSSES[name])
    with pytest.raises(KeyboardInterrupt):
        run_alignment(settings, progress=Break())
    exported = export_checkpoint(settings.out, tmp_path / "out").parent / "strength.json"
    assert json.loads(exported.read_text())["loss"] == dataclasses.asdict(LOSSES[name])
    resumed = run_alignment(settings, resume=True).path
    assert trajectory(resumed) == trajectory(runs[name])
    same = [(resumed / file).read_bytes() == (runs[name] / file).read_bytes() for file in
            ("strength.json", "log_ratios.parquet", "policy/model.safetensors")]  # fmt: skip
    assert same == [True, True, True]


@pytest.mark.parametrize(
    ("name", "accumulation", "what"),
    [("kto", 1, "log-probability of responses to other prompts"), ("beta_dpo", 2, "log-prob"), ("beta_dpo", 1, "loss")],
    ids=["kto", "beta_dpo in parts", "beta_dpo"],
)
def test_a_policy_that_broke_stops_the_run(tmp_path, name, accumulation, what):
    broken = config(tmp_path, LOSSES[name], accumulation=accumulation, eval_every_examples=24)
    optim = OptimConfig(name="adamw", lr=1e30, warmup_steps=0)
    broken = dataclasses.replace(broken, preference=dataclasses.replace(broken.preference, optim=optim))
    with pytest.raises(NonFiniteLossError, match=f"preference {what}.* after step 1: got NaN or infinity, pair_ids"):
        run_alignment(broken)


# --- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_settings_are_written_and_read_back(tmp_path, name):
    (tmp_path / "config.yaml").write_text(dump_config(config(tmp_path, LOSSES[name])))
    assert load_config(tmp_path / "config.yaml") == config(tmp_path, LOSSES[name])


def test_without_a_word_the_loss_is_a_distribution_of_strength():
    plain = parse_config({"out": "o", "preference": {}}).preference
    named = parse_config({"out": "o", "preference": {"loss": {"kind": "mixdpo"}, "strength": None}}).preference
    assert plain == named
    assert (plain.loss.kind, plain.strength, plain.integration.rule) == ("mixdpo", LogNormalStrength(), "best")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": {"kind": "dpo"}, "strength": {"family": "gamma"}}, r"^preference\.strength: got given.*kind: dpo"),
        ({"loss": {"kind": "ipo"}, "integration": {"rule": "best"}}, r"integration: got given.*\.integration null"),
        ({"loss": {"kind": "simpo"}, "reference_precision": "match"}, r"reference_precision: got 'match'.*kind: simpo"),
        ({"loss": {"kind": "simpo"}, "reference_path": "x"}, r"reference_path: got 'x'.*kind: simpo"),
        ({"loss": {"kind": "kto"}, "reference_cache": "x"}, r"reference_cache: got 'x'.*kind: kto"),
        ({"loss": {"kind": "mallows_dpo"}, "reference_cache": "x"}, r"reference_cache: got 'x'.*kind: mallows_dpo"),
        ({"loss": {"kind": "dpo", "gamma": 1}}, r"unknown preference\.loss\.gamma.*Try `kind: simpo`, which knows it"),
        ({"loss": {"kind": "dppo"}}, r"preference\.loss\.kind: got 'dppo'.*Try `kind: dpo`"),
        ({"loss": {"beta": 0.1}}, r"preference\.loss\.kind: got nothing; expected one of mixdpo, dpo"),
        ({"loss": {"kind": "dpo", "beta": 0}}, r"^preference\.loss\.beta: got 0"),
        ({"loss": {"kind": "conservative_dpo", "label_smoothing": 0.5}}, "label_smoothing: got 0.5.*below 1/2"),
        ({"loss": {"kind": "robust_dpo", "label_smoothing": -0.1}}, "label_smoothing: got -0.1"),
        ({"loss": {"kind": "ipo", "per": "word"}}, r"loss\.per: got 'word'; expected one of token, sequence"),
        ({"loss": {"kind": "simpo", "gamma": -1}}, "gamma: got -1"),
        ({"loss": {"kind": "kto", "undesirable_weight": 0}}, "undesirable_weight: got 0"),
        ({"loss": {"kind": "beta_dpo", "alpha": -1}}, "alpha: got -1"),
        ({"loss": {"kind": "adaptive_dpo", "min_scale": 9}}, "min_scale: got 9.*at most max_scale=5"),
        ({"loss": {"kind": "mallows_dpo", "scale": 0}}, "scale: got 0"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_loss_has_no_use_for_is_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        parse_config({"out": "o", "preference": settings})


def test_an_override_may_choose_the_loss(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("out: o\npreference: {strength: {family: gamma}}\n")
    overrides = ["preference.loss.kind=ipo", "preference.loss.beta=0.5", "preference.strength=null"]
    assert load_config(path, overrides).preference == PreferenceConfig(loss=IPO(beta=0.5))


def test_the_manual_shows_every_loss_and_its_settings():
    text = manual("preference.loss")
    kinds = {loss.kind for loss in LOSSES.values()} | {"mixdpo"}
    assert [kind for kind in kinds if f"preference.loss: with `kind: {kind}`\n" not in text] == []
    settings = {field.name for loss in LOSSES.values() for field in dataclasses.fields(loss)} - {"kind"}
    assert [name for name in settings if f"\npreference.loss.{name}: " not in text] == []
    assert "(default: null)" in manual("preference.strength").splitlines()[0]
