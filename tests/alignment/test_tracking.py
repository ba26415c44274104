"""Trackers: TensorBoard's event files read back by TensorBoard; W&B through a stand-in that records its calls."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from mixlogit_align.alignment import AlignmentConfig, run_alignment
from mixlogit_align.alignment.config import NewModel, StageConfig
from mixlogit_align.alignment.data.config import SimulatedData
from mixlogit_align.alignment.tracking import TensorBoardTracker, open_trackers, require_packages
from mixlogit_align.errors import InvalidInputError

CONFIG = {"out": "run", "sft": {"batch_size": 16}}
PLACES = pytest.mark.parametrize(
    "place",
    [("sft", "train"), ("sft", "eval"), ("preference", "train"), ("preference", "eval")],
    ids=["sft train", "sft eval", "preference train", "preference eval"],
)


def record(stage: str, split: str, step: int, **metrics: float) -> dict:
    return {"stage": stage, "split": split, "step": step, "examples_seen": 16 * step, "loss": 1 / (step + 1), **metrics}


def stage(name: str, steps: int, start: int = 0) -> list[dict]:
    """Training records of steps start + 1 ... steps, and an evaluation at every second step."""
    records = [record(name, "eval", 0)] if start == 0 else []
    for step in range(start + 1, steps + 1):
        records.append(record(name, "train", step, **{"logps/chosen": -float(step)}))
        if step % 2 == 0:
            records.append(record(name, "eval", step))
    return records


def track(folder, records, *, kept=(), close=True, **changes):
    (tracker,) = open_trackers(["tensorboard"], folder, config=CONFIG, name="DPO", kept=kept)
    for item in records:
        tracker.write(item)
    if close:
        tracker.close()


def curve(folder, *place: str, metric: str = "loss") -> dict[int, float]:
    """Examples seen -> value, as TensorBoard shows it; a doubled point fails."""
    events = EventAccumulator(str(folder.joinpath("tensorboard", *place)))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars(metric)]
    assert len(points) == len(dict(points))
    return dict(points)


def expected(records, *place: str, metric: str = "loss") -> dict[int, float]:
    mine = [item for item in records if (item["stage"], item["split"]) == place]
    # event files hold float32
    return {item["examples_seen"]: pytest.approx(item[metric], rel=1e-7) for item in mine}


@pytest.fixture(autouse=True)
def ordered_event_files(monkeypatch):
    """TensorBoard reads event files in the order of their names: second, host, process, number.

    A resumed run is another process in a later second; here both are one, and a tenth file would be read as the second.
    """
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


# --- TensorBoard -----------------------------------------------------------------------------------


@PLACES
def test_every_record_is_in_its_event_file(tmp_path, place):
    records = stage("sft", 6) + stage("preference", 4)
    track(tmp_path, records)
    assert curve(tmp_path, *place) == expected(records, *place)


def test_metrics_keep_their_names_and_places_are_none(tmp_path):
    track(tmp_path, stage("preference", 2))
    events = EventAccumulator(str(tmp_path / "tensorboard" / "preference" / "train"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss", "logps/chosen"]


def test_a_record_is_on_disk_once_it_is_written(tmp_path):
    records = stage("preference", 3)
    track(tmp_path, records, close=False)
    assert curve(tmp_path, "preference", "train") == expected(records, "preference", "train")


@PLACES
@pytest.mark.parametrize("kept", [0, 4, 10, 13, 14, 15, 16], ids="kept={}".format)
def test_a_resumed_run_draws_no_point_twice(tmp_path, place, kept):
    """Cut back to ``kept`` records: none, within the first stage, at its end, within the second."""
    first = stage("sft", 6) + stage("preference", 5)
    track(tmp_path, first, close=False)  # killed
    # Other values, so that what was superseded is told from what replaced it.
    again = first[:kept] + [item | {"loss": item["loss"] + 1} for item in first[kept:]]
    again.append(record("preference", "eval", 6))
    track(tmp_path, again[kept:], kept=again[:kept])
    assert curve(tmp_path, *place) == expected(again, *place)


def test_a_run_that_is_resumed_before_its_second_stage_hides_what_that_had_written(tmp_path):
    track(tmp_path, stage("sft", 4) + stage("preference", 8))
    kept = stage("sft", 4)
    track(tmp_path, stage("preference", 2), kept=kept)
    assert curve(tmp_path, "preference", "train") == expected(stage("preference", 2), "preference", "train")
    assert curve(tmp_path, "sft", "train") == expected(kept, "sft", "train")


def test_event_files_of_a_resumed_run_are_its_metrics(tmp_path):
    stage = StageConfig(batch_size=8, eval_every_examples=16)
    config = AlignmentConfig(
        out=str(tmp_path / "run"),
        data=SimulatedData(num_train=48, num_eval=8, num_annotators=4),
        model=NewModel(hidden_size=16, num_layers=1, num_heads=2, vocab_size=300),
        sft=stage,
        tracking=("tensorboard",),
    )

    def interrupt(task, done, total, metrics):
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_alignment(config, progress=interrupt)
    run_alignment(config, resume=True)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert curve(tmp_path / "run", "sft", "train") == expected(records, "sft", "train")
    assert curve(tmp_path / "run", "sft", "eval") == expected(records, "sft", "eval")
    assert len(records) == 6 + 4


# --- W&B -------------------------------------------------------------------------------------------


class Run:
    """What `wandb.init` returns: it drops, as W&B does, rows before its step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.rows: dict[int, dict] = {}
        self.axes: dict[str, str] = {}
        self.exit_code: int | None = None

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.axes[name] = step_metric

    def log(self, values: dict, *, step: int) -> None:
        assert step >= self.step, "W&B would drop this row and say so"
        self.rows[step] = values
        self.step = step

    def finish(self, *, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package; ``runs`` and ``asked`` have what was opened, ``step`` where W&B goes on."""
    module = ModuleType("wandb")
    module.runs, module.asked, module.step, module.refuses = [], [], 0, None
    module.Error = type("Error", (Exception,), {})
    module.Settings = lambda **settings: SimpleNamespace(**settings)

    def init(**options):
        if module.refuses is not None:
            raise module.Error(module.refuses)
        module.asked.append(options)
        module.runs.append(Run(module.step))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


def log_to_wandb(folder, records, *, kept=(), failed=False):
    (tracker,) = open_trackers(["wandb"], folder, config=CONFIG, name="DPO", kept=kept)
    for item in records:
        tracker.write(item)
    tracker.close(failed=failed)


def test_wandb_gets_every_record_over_its_stages_examples(wandb, tmp_path):
    records = stage("sft", 2) + stage("preference", 2)
    log_to_wandb(tmp_path, records)
    (run,) = wandb.runs
    assert list(run.rows) == list(range(len(records)))
    assert run.rows[1] == {"sft/examples_seen": 16, "sft/train/loss": 0.5, "sft/train/logps/chosen": -1.0}
    assert run.rows[4] == {"preference/examples_seen": 0, "preference/eval/loss": 1.0}
    assert run.axes == {"sft/*": "sft/examples_seen", "preference/*": "preference/examples_seen"}


def test_wandb_is_told_what_it_may_record(wandb, tmp_path):
    log_to_wandb(tmp_path, [])
    (options,) = wandb.asked
    assert options["config"] == CONFIG
    assert (options["name"], options["project"], options["dir"]) == ("DPO", "mixlogit_align", str(tmp_path))
    assert vars(options["settings"]) == {"console": "off", "disable_git": True, "disable_code": True}


def test_the_project_is_the_users(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    log_to_wandb(tmp_path, [])
    assert wandb.asked[0]["project"] == "mine"


# W&B's own step when it goes on with the run: offline it knows nothing, online it is one beyond the last row it has,
# which can be more than was kept (killed after the checkpoint) or less (killed before it had sent them).
@pytest.mark.parametrize("sent", [0, 3, 4, 6, 9], ids="sent={}".format)
def test_a_resumed_run_goes_on_under_its_id(wandb, tmp_path, sent):
    records = stage("preference", 6)
    kept = records[:4]
    log_to_wandb(tmp_path, records[:6])
    wandb.step = sent
    log_to_wandb(tmp_path, records[4:], kept=kept)
    first, second = wandb.asked
    assert first["id"] == second["id"] == (tmp_path / "wandb_id.txt").read_text().strip()
    assert second["resume"] == "allow"
    assert list(wandb.runs[1].rows) == list(range(max(sent, 4), len(records)))
    assert wandb.runs[1].rows[len(records) - 1]["preference/examples_seen"] == records[-1]["examples_seen"]


@pytest.mark.parametrize(("failed", "code"), [(False, 0), (True, 1)], ids=["finished", "failed"])
def test_wandb_learns_how_the_run_ended(wandb, tmp_path, failed, code):
    log_to_wandb(tmp_path, stage("sft", 1), failed=failed)
    assert wandb.runs[0].exit_code == code


def test_a_wandb_that_cannot_start_says_what_to_do(wandb, tmp_path):
    wandb.refuses = "No API key configured. Use `wandb login` to log in.\nmore"
    with pytest.raises(InvalidInputError, match=r"'wandb', which says: No API key.* log in; .*WANDB_MODE=offline"):
        log_to_wandb(tmp_path, [])


# --- packages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")], ids=["tensorboard", "wandb"]
)
def test_a_missing_package_is_named_with_the_extra(name, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    message = rf"tracking: got '{name}'.*pip install \"mixlogit_align\[tracking\]\""
    with pytest.raises(InvalidInputError, match=message):
        require_packages([name])
    with pytest.raises(InvalidInputError, match=message):
        open_trackers([name], tmp_path, config=CONFIG, name="DPO")
    assert list(tmp_path.iterdir()) == []


def test_no_tracker_needs_no_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert open_trackers([], tmp_path, config=CONFIG, name="DPO") == []


def test_both_at_once(wandb, tmp_path):
    trackers = open_trackers(["tensorboard", "wandb"], tmp_path, config=CONFIG, name="DPO")
    assert isinstance(trackers[0], TensorBoardTracker)
    for tracker in trackers:
        tracker.write(record("sft", "train", 1))
        tracker.close()
    assert curve(tmp_path, "sft", "train") == {16: 0.5}
    assert wandb.runs[0].rows[0]["sft/train/loss"] == 0.5
