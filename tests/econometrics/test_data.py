from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mixlogit_align.econometrics import ChoiceData
from mixlogit_align.errors import InvalidInputError

PANEL = {"choice": "choice", "alternative": "alt", "situation": "task", "individual": "who"}
CROSS_SECTION = {"choice": "choice", "alternative": "alt", "situation": "task"}


def long_table() -> pd.DataFrame:
    """Two people, three situations (tasks are numbered anew for each), options car and bus."""
    return pd.DataFrame(
        {
            "who": ["ann", "ann", "bob", "bob", "ann", "ann"],
            "task": [1, 1, 1, 1, 2, 2],
            "alt": ["car", "bus", "bus", "car", "car", "bus"],
            "time": [1.0, 2.0, 5.0, 3.0, 4.0, 9.0],
            "cost": [7, 8, 9, 10, 11, 12],
            "colour": ["red"] * 6,
            "choice": [1, 0, 1, 0, 0, 1],
        },
        index=list("abcdef"),
    )


def test_a_panel_becomes_tensors() -> None:
    data = ChoiceData.from_long(long_table(), **PANEL)
    assert data.variables == ("time", "cost")  # numeric columns without a role
    assert data.alternatives == ("car", "bus")
    assert data.individuals == ("ann", "bob")
    assert (data.num_individuals, data.num_situations, data.num_alternatives) == (2, 3, 2)
    assert data.is_panel
    assert data.is_binary
    assert data.attribute("time").tolist() == [[1.0, 2.0], [3.0, 5.0], [4.0, 9.0]]
    assert data.attributes.dtype == torch.float64
    assert data.choice.tolist() == [0, 1, 1]
    assert data.individual.tolist() == [0, 1, 0]
    assert data.weights.tolist() == [1.0, 1.0]
    assert repr(data).startswith("ChoiceData(panel: 2 individuals, 3 situations, 2 alternatives")


def test_pairs_and_their_layout_by_individual() -> None:
    data = ChoiceData.from_long(long_table(), **PANEL)
    difference, second = data.pairs("time")
    assert difference.tolist() == [1.0, 2.0, 5.0]  # bus less car
    assert second.tolist() == [0.0, 1.0, 1.0]
    rows, observed = data.by_individual(difference)
    assert rows.tolist() == [[1.0, 5.0], [2.0, 0.0]]
    assert observed.tolist() == [[True, True], [True, False]]


def test_a_cross_section_has_as_many_individuals_as_situations() -> None:
    frame = long_table().assign(task=["x", "x", "y", "y", "z", "z"])
    data = ChoiceData.from_long(frame, **CROSS_SECTION, variables=["time"])
    assert not data.is_panel
    assert data.individuals == ("x", "y", "z")
    assert data.variables == ("time",)


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param({"ann": 70, "bob": -3}, id="integers"),
        pytest.param({"ann": 0.5, "bob": 0.25}, id="fractions"),
        pytest.param({"ann": ("a", 1), "bob": ("b", 2)}, id="tuples"),
        pytest.param({"ann": pd.Timestamp("2024-01-02"), "bob": pd.Timestamp("2024-01-01")}, id="dates"),
    ],
)
def test_ids_of_any_type(ids: dict[str, Any]) -> None:
    named = ChoiceData.from_long(long_table(), **PANEL)
    other = ChoiceData.from_long(long_table().assign(who=lambda f: f["who"].map(ids)), **PANEL)
    assert other.individuals == tuple(ids.values())
    torch.testing.assert_close(other.attributes, named.attributes)
    assert other.individual.tolist() == named.individual.tolist()


def test_categories_are_ids_too() -> None:
    frame = long_table()
    frame["who"] = pd.Categorical(frame["who"], categories=["nobody", "bob", "ann"])
    assert ChoiceData.from_long(frame, **PANEL).individuals == ("ann", "bob")


def test_rows_in_any_order_are_the_same_data() -> None:
    frame = long_table()
    shuffled = ChoiceData.from_long(frame.sample(frac=1.0, random_state=3), **PANEL)
    data = ChoiceData.from_long(frame, **PANEL)

    def facts(d: ChoiceData) -> set[tuple[Any, ...]]:
        rows = zip(d.individual.tolist(), d.choice.tolist(), d.attribute("time").tolist(), strict=True)
        return {(d.individuals[n], d.alternatives[c], *sorted(zip(d.alternatives, x, strict=True))) for n, c, x in rows}

    assert facts(shuffled) == facts(data)


def test_unavailable_and_absent_rows_are_the_same() -> None:
    frame = long_table().assign(available=1)
    taxi = pd.DataFrame(
        {"who": "ann", "task": 1, "alt": "taxi", "time": np.nan, "cost": 99, "choice": 0, "available": 0},
        index=["g"],
    )
    marked = ChoiceData.from_long(pd.concat([frame, taxi]), **PANEL, variables=["time"], availability="available")
    assert marked.alternatives == ("car", "bus", "taxi")
    assert marked.available.tolist() == [[True, True, False]] * 3
    absent = ChoiceData.from_long(frame, **PANEL, variables=["time"])
    for ours, theirs in zip(marked.pairs("time"), absent.pairs("time"), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_frequencies_belong_to_individuals() -> None:
    frame = long_table().assign(times=lambda f: f["who"].map({"ann": 2.5, "bob": 4}))
    data = ChoiceData.from_long(frame, **PANEL, weights="times")
    assert data.weights.tolist() == [2.5, 4.0]
    assert "times" not in data.variables


def change(**cells: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Put a value into row b of a column."""

    def apply(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.astype({column: object for column in cells if isinstance(cells[column], str | None)})
        for column, value in cells.items():
            frame.loc["b", column] = value
        return frame

    return apply


@pytest.mark.parametrize(
    ("spoil", "options", "says"),
    [
        pytest.param(change(time=np.nan), {}, r"'time'.*nan in row 'b'.*finite", id="nan"),
        pytest.param(change(time=np.inf), {}, r"'time'.*inf in row 'b'", id="infinite"),
        pytest.param(change(who=None), {}, r"'who'.*row 'b'.*label", id="no individual"),
        pytest.param(change(alt=None), {}, r"'alt'.*row 'b'.*label", id="no alternative"),
        pytest.param(change(choice=2), {}, r"'choice'.*2 in row 'b'.*0 or 1", id="choice is a number"),
        pytest.param(change(choice=1), {}, r"who='ann', task=1.*row 'a'.*got 2.*one chosen", id="two chosen"),
        pytest.param(lambda f: f.assign(choice=0), {}, r"got 0 \(3 such situations\)", id="none chosen"),
        pytest.param(lambda f: f.drop("b"), {}, r"got 1 .*two or more alternatives", id="alone"),
        pytest.param(change(alt="car"), {}, r"'alt'.*'car' in row 'b'.*once in a situation", id="twice"),
        pytest.param(lambda f: f.iloc[:0], {}, "0 rows.*at least one", id="empty"),
        pytest.param(lambda f: f, {"variables": []}, "attributes", id="no attribute"),
        pytest.param(lambda f: f, {"variables": ["speed"]}, r"'speed'.*expected one of", id="unknown column"),
        pytest.param(lambda f: f, {"individual": "name"}, r"individual.*'name'", id="unknown individual"),
        pytest.param(lambda f: f, {"variables": ["colour"]}, "'colour'.*numbers", id="words"),
        pytest.param(lambda f: f, {"choice": "alt"}, "'alt'.*'bus' in row 'b'.*every row of", id="labels differ"),
        pytest.param(lambda f: f, {"availability": "no"}, "'choice'.*row 'a'.*to be available", id="not available"),
        pytest.param(lambda f: f, {"weights": "uneven"}, "'uneven'.*within an individual", id="uneven weights"),
        pytest.param(lambda f: f, {"weights": "no"}, "'no'.*positive frequency", id="weight of 0"),
    ],
)
def test_errors_name_the_row_and_the_rule(
    spoil: Callable[[pd.DataFrame], pd.DataFrame], options: Any, says: str
) -> None:
    frame = spoil(long_table()).assign(no=0, uneven=range(1, 7) if "uneven" in options.values() else 1)
    frame = frame if len(frame) else long_table().iloc[:0]
    with pytest.raises(InvalidInputError, match=says):
        ChoiceData.from_long(frame, **{**PANEL, "variables": ["time"], **options})


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        pytest.param(CROSS_SECTION, "'alt'.*once in a situation.*individual=.*numbered anew", id="nobody named"),
        pytest.param(PANEL | {"individual": "all"}, "differ within an individual", id="one and the same"),
    ],
)
def test_situations_numbered_anew_for_each_need_the_individual(columns: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        ChoiceData.from_long(long_table().assign(all="we"), **columns, variables=["time"])
    assert ChoiceData.from_long(long_table(), **PANEL).num_situations == 3


@pytest.mark.parametrize("rows", [[{"task": 1}], {"task": [1]}, None], ids=["list", "dict", "none"])
@pytest.mark.parametrize("read", [lambda x: ChoiceData.from_long(x, **PANEL), ChoiceData.from_logratios])
def test_what_is_no_table_is_refused(read: Callable[[Any], ChoiceData], rows: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"a {type(rows).__name__};.*DataFrame.*Try pandas\.DataFrame\(rows\)"):
        read(rows)


@pytest.mark.parametrize("content", [None, "pair_id,logratio_diff\n"], ids=["missing", "another format"])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "nope.parquet"
    if content is not None:
        file.write_text(content)
    for source in (file, str(file)):
        with pytest.raises(InvalidInputError, match=r"nope\.parquet'.*expected a Parquet file.*Try"):
            ChoiceData.from_logratios(source)


def test_pairs_of_larger_sets_are_refused() -> None:
    third = long_table().iloc[[0]].assign(alt="taxi", choice=0)
    data = ChoiceData.from_long(pd.concat([long_table(), third]), **PANEL)
    assert not data.is_binary
    with pytest.raises(InvalidInputError, match=r"sizes \[2, 3\]"):
        data.pairs("time")


@pytest.mark.parametrize("suffix", ["frame", "parquet"])
def test_logratios_are_choices_of_chosen_over_rejected(tmp_path: Path, suffix: str) -> None:
    table = pd.DataFrame(
        {
            "pair_id": ["p1", "p2", "p3"],
            "annotator_id": ["u", "v", "u"],
            "logratio_diff": np.array([0.5, -2.0, 3.0], dtype=np.float32),
            "pair_weight": [0.1, 0.2, 0.3],
        }
    )
    source: Any = table
    if suffix == "parquet":
        source = tmp_path / "log_ratios.parquet"
        table.to_parquet(source)
    panel = ChoiceData.from_logratios(source, individual="annotator_id")
    difference, chosen = panel.pairs("logratio_diff")
    assert difference.tolist() == [0.5, -2.0, 3.0]
    assert chosen.tolist() == [1.0, 1.0, 1.0]
    assert panel.individuals == ("u", "v")
    assert panel.individual.tolist() == [0, 1, 0]
    assert panel.weights.tolist() == [1.0, 1.0]  # pair_weight is no frequency
    assert panel.variables == ("logratio_diff",)
    assert ChoiceData.from_logratios(source).num_individuals == 3


@pytest.mark.parametrize(
    ("table", "options", "says"),
    [
        ({"margin": [1.0]}, {}, "logratio_diff"),
        ({"logratio_diff": [1.0, np.nan]}, {}, "nan in row 1"),
        ({"logratio_diff": [1.0, 2.0], "who": ["u", None]}, {"individual": "who"}, "'who'.*row 1"),
        ({"logratio_diff": [1.0]}, {"weights": "times"}, "'times'"),
    ],
)
def test_logratios_that_are_none_are_refused(table: dict[str, Any], options: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        ChoiceData.from_logratios(pd.DataFrame(table), **options)


@pytest.mark.parametrize(
    ("name", "columns", "sizes"),
    [
        ("electricity", {"alternative": "alt", "situation": "chid", "individual": "id"}, (361, 4308, 4)),
        ("fishing", {"alternative": "alt", "situation": "id"}, (1182, 1182, 4)),
        ("car100", {"alternative": "alt", "situation": "choice_id", "individual": "person_id"}, (100, 1484, 3)),
        ("yogurt", {"alternative": "alt", "situation": "chid", "individual": "id"}, (100, 2412, 4)),
    ],
)
def test_real_tables_are_read(shared_data: Path, name: str, columns: Any, sizes: tuple[int, int, int]) -> None:
    frame = pd.read_csv(shared_data / "choice" / f"{name}_long.csv")
    data = ChoiceData.from_long(frame, choice="choice", **columns)
    assert (data.num_individuals, data.num_situations, data.num_alternatives) == sizes
