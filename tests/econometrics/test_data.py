from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
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


@pytest.mark.parametrize(
    "labels", [{}, {"car": 1, "bus": 2}, {"car": 0, "bus": 1}, {"car": ("a", 1), "bus": ("b", 1)}], ids=str
)
def test_the_choice_may_be_the_label_of_the_alternative(labels: dict[str, Any]) -> None:
    frame = long_table().assign(alt=lambda f: f["alt"].map(lambda label: labels.get(label, label)))
    frame["chosen"] = frame["alt"].where(frame["choice"] == 1).groupby([frame["who"], frame["task"]]).transform("first")
    flagged = ChoiceData.from_long(frame, **PANEL, variables=["time"])
    if set(labels.values()) == {0, 1}:  # an indicator as well, by which all or none of a situation are chosen
        with pytest.raises(InvalidInputError, match="one chosen alternative"):
            ChoiceData.from_long(frame, **PANEL | {"choice": "chosen"}, variables=["time"])
    else:
        labelled = ChoiceData.from_long(frame, **PANEL | {"choice": "chosen"}, variables=["time"])
        assert labelled.choice.tolist() == flagged.choice.tolist() == [0, 1, 1]


def test_categories_may_be_the_choice() -> None:
    frame = long_table().assign(chosen=pd.Categorical(["car", "car", "bus", "bus", "bus", "bus"]))
    frame["alt"] = pd.Categorical(frame["alt"], categories=["taxi", "car", "bus"])
    data = ChoiceData.from_long(frame, **PANEL | {"choice": "chosen"})
    assert [data.alternatives[c] for c in data.choice.tolist()] == ["car", "bus", "bus"]


def test_choice_sets_may_differ_by_lacking_rows() -> None:
    frame = pd.concat(
        [
            long_table(),
            pd.DataFrame(
                {"who": ["cy"] * 3, "task": [1] * 3, "alt": ["taxi", "bus", "car"], "time": 1.5, "choice": [1, 0, 0]}
            ),
        ],
        ignore_index=True,
    )
    data = ChoiceData.from_long(frame.sample(frac=1.0, random_state=1), **PANEL, variables=["time"])
    sizes = {data.individuals[n]: size for n, size in zip(data.individual.tolist(), data.available.sum(1), strict=True)}
    assert sizes == {"ann": 2, "bob": 2, "cy": 3}
    assert not data.attributes[~data.available].any()
    data.validate(["time"])


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
        pytest.param(change(who="bob", task=9), {}, r"got 1 .*two or more", id="its own situation"),
        pytest.param(change(who="bob", task=1, alt="taxi"), {}, r"who='ann', task=1.*got 1", id="numbered anew"),
        pytest.param(
            lambda f: change(who="bob")(f.assign(task=[1, 1, 2, 2, 3, 3])),
            {},
            r"task=1, from row 'a'.*under 2 individuals, 'ann', 'bob'.*under one individual",
            id="two individuals",
        ),
        pytest.param(lambda f: f, {"choice": "colour"}, "'colour'.*'red'.*label of column 'alt'", id="no label"),
        pytest.param(lambda f: f, {"clusters": ["alt"]}, r"'alt'.*'bus' in row 'b'.*one value", id="uneven cluster"),
        pytest.param(change(colour=None), {"clusters": ["colour"]}, r"'colour'.*row 'b'.*label", id="no cluster"),
        pytest.param(lambda f: f, {"variables": ["time", "time"]}, "each attribute once", id="attribute twice"),
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


def wide_table() -> pd.DataFrame:
    """The same choices as :func:`long_table`, one row each, and one more with a taxi."""
    return pd.DataFrame(
        {
            "who": ["ann", "bob", "ann", "cy"],
            "time_car": [1.0, 3.0, 4.0, 2.0],
            "time_bus": [2.0, 5.0, 9.0, 8.0],
            "time_taxi": [np.nan, np.nan, np.nan, 1.0],
            "fare": [7, 8, 9, 10],
            "income": [3.0, 4.0, 3.0, 5.0],
            "taxi_AV": [0, 0, 0, 1],
            "mode": ["car", "bus", "bus", "taxi"],
            "code": [1, 2, 2, 3],
            "region": ["n", "s", "n", "s"],
        },
        index=list("pqrs"),
    )


WIDE = {
    "choice": "mode",
    "alternatives": ["car", "bus", "taxi"],
    "varying": {"time": "time_{alternative}", "cost": {"bus": "fare"}},
    "constant": ["income"],
    "individual": "who",
    "availability": {"taxi": "taxi_AV"},
}


def test_a_wide_table_is_the_same_as_its_long_form() -> None:
    wide = ChoiceData.from_wide(wide_table(), **WIDE, clusters=["region"])
    rows = [
        {
            "who": row.who,
            "task": task,
            "alt": alternative,
            "time": row[f"time_{alternative}"],
            "cost": row.fare if alternative == "bus" else 0.0,
            "income": row.income,
            "there": alternative != "taxi" or row.taxi_AV == 1,
            "choice": row["mode"] == alternative,
            "region": row.region,
        }
        for task, (_, row) in enumerate(wide_table().iterrows())
        for alternative in WIDE["alternatives"]
    ]
    long = ChoiceData.from_long(
        pd.DataFrame(rows), **PANEL, variables=["time", "cost", "income"], availability="there", clusters=["region"]
    )
    tensors = attrgetter("attributes", "available", "choice", "individual", "weights")
    torch.testing.assert_close(tensors(wide), tensors(long), rtol=0, atol=0)
    names = attrgetter("variables", "alternatives", "individuals", "is_panel")
    assert names(wide) == names(long)
    assert wide.cluster("region").tolist() == long.cluster("region").tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"choice": "code", "alternatives": {1: "car", 2: "bus", 3: "taxi"}},
        {"availability": "{alternative}_AV"},
    ],
    ids=["coded choices", "pattern"],
)
def test_ways_to_say_the_same_of_a_wide_table(options: dict[str, Any]) -> None:
    frame = wide_table().assign(car_AV=True, bus_AV=1)
    ours, theirs = ChoiceData.from_wide(frame, **WIDE | options), ChoiceData.from_wide(frame, **WIDE)
    assert ours.alternatives == theirs.alternatives == ("car", "bus", "taxi")
    assert ours.choice.tolist() == theirs.choice.tolist() == [0, 1, 1, 2]
    torch.testing.assert_close(ours.attributes, theirs.attributes)


def test_a_wide_cross_section_is_named_by_its_situations() -> None:
    frame = wide_table().assign(chid=list("wxyz"))
    assert ChoiceData.from_wide(frame, **WIDE | {"individual": None}).individuals == (0, 1, 2, 3)
    data = ChoiceData.from_wide(frame, **WIDE | {"individual": None, "situation": "chid"})
    assert data.individuals == ("w", "x", "y", "z")
    assert not data.is_panel


@pytest.mark.parametrize(
    ("cells", "options", "says"),
    [
        ({"time_bus": np.nan}, {}, r"'time_bus'.*nan in row 'q'"),
        ({"income": np.inf}, {}, r"'income'.*inf in row 'q'"),
        ({"mode": "boat"}, {}, r"'mode'.*'boat' in row 'q'.*one of the alternatives"),
        ({"mode": None}, {}, r"'mode'.*in row 'q'.*one of the alternatives"),
        ({"mode": "taxi"}, {}, r"'mode'.*'taxi' in row 'q'.*to be available"),
        ({}, {"alternatives": ["car", "bus"]}, r"availability: got columns of \['taxi'\]"),
        ({}, {"alternatives": ["car"]}, "alternatives.*two or more"),
        ({}, {"varying": {"time": "time_car"}}, "a pattern with {alternative}.*constant="),
        ({}, {"varying": {"cost": "cost_{alternative}"}}, "'cost_car'"),
        ({}, {"varying": {}, "constant": []}, r"attributes \[\]"),
        ({}, {"situation": "taxi_AV"}, r"'taxi_AV'.*0 in row 'r'.*one row a situation"),
        ({}, {"availability": {"car": "taxi_AV", "bus": "taxi_AV"}}, "'mode'.*'car' in row 'p'.*available"),
        ({}, {"availability": {"car": "none", "taxi": "none"}, "choice": "busy"}, "'busy'.*row 'p'.*two or more"),
    ],
)
def test_errors_name_the_row_of_a_wide_table(cells: dict[str, Any], options: dict[str, Any], says: str) -> None:
    frame = wide_table().assign(none=0, busy="bus")
    for column, value in cells.items():
        frame.loc["q", column] = value
    with pytest.raises(InvalidInputError, match=says):
        ChoiceData.from_wide(frame, **WIDE | options)


def test_clusters_and_covariates_belong_to_individuals() -> None:
    frame = long_table().assign(
        town=lambda f: f["who"].map({"ann": "york", "bob": "leeds"}),
        age=lambda f: f["who"].map({"ann": 40, "bob": 30}),
        since=pd.Timestamp("2024-01-01"),
    )
    data = ChoiceData.from_long(frame, **PANEL, clusters=["town", "since"])
    assert data.variables == ("time", "cost", "age")
    assert {name: codes.tolist() for name, codes in data.clusters.items()} == {"town": [0, 1], "since": [0, 0]}
    assert data.cluster("town").tolist() == [0, 1]
    assert data.cluster("age").tolist() == [1, 0]  # a numeric attribute will do
    assert data.covariate("age").tolist() == [40.0, 30.0]
    assert data.covariate("age").dtype == torch.float64
    with pytest.raises(InvalidInputError, match=r"'time'.*individual 'ann' \(2 such.*within an individual"):
        data.covariate("time")
    with pytest.raises(InvalidInputError, match=r"cluster: got column 'who'.*\['town', 'since'\].*clusters=\['who'\]"):
        data.cluster("who")


def test_a_covariate_is_not_read_where_an_alternative_is_absent() -> None:
    data = ChoiceData.from_wide(wide_table(), **WIDE)
    assert data.covariate("income").tolist() == [3.0, 4.0, 5.0]  # the attribute is 0 for the absent taxi


def test_constants_and_interactions_of_alternatives() -> None:
    data = ChoiceData.from_wide(wide_table(), **WIDE)
    more = data.with_constants().with_interactions("income", base="bus")
    new = ("asc.bus", "asc.taxi", "income:car", "income:taxi")
    assert more.variables == (*data.variables, *new)
    assert more.attribute("asc.bus").tolist() == [[0.0, 1.0, 0.0]] * 4
    assert more.attribute("asc.taxi").tolist() == [[0.0, 0.0, 0.0]] * 3 + [[0.0, 0.0, 1.0]]  # 0 where absent
    assert more.attribute("income:car").tolist() == [[3.0, 0, 0], [4.0, 0, 0], [3.0, 0, 0], [5.0, 0, 0]]
    assert more.attribute("income:taxi").tolist() == [[0.0, 0.0, 0.0]] * 3 + [[0.0, 0.0, 5.0]]
    torch.testing.assert_close(more.attributes[..., :3], data.attributes)
    more.validate(["time", "cost", *new])


@pytest.mark.parametrize(
    ("add", "says"),
    [
        (lambda d: d.with_constants(base="boat"), r"base: got 'boat'.*\['car', 'bus', 'taxi'\]"),
        (lambda d: d.with_constants().with_constants(), r"asc\.bus.*twice"),
        (lambda d: d.with_interactions("time"), "'time'.*individual 'ann' in situation 0.*over the alternatives"),
        (lambda d: d.with_interactions("age"), "'age'.*one of"),
    ],
)
def test_constants_and_interactions_that_make_no_sense(add: Callable[[ChoiceData], ChoiceData], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        add(ChoiceData.from_wide(wide_table(), **WIDE))


def test_an_attribute_needs_to_vary_over_alternatives() -> None:
    data = ChoiceData.from_wide(wide_table(), **WIDE)
    data.validate(["time", "cost"])
    with pytest.raises(InvalidInputError, match=r"'income'.*not identified.*with_interactions\('income'\)"):
        data.validate(["time", "income"])


def spoilt(name: str, index: Any, value: Any) -> Callable[[ChoiceData], ChoiceData]:
    def apply(data: ChoiceData) -> ChoiceData:
        tensor = getattr(data, name).clone()
        tensor[index] = value
        return replace(data, **{name: tensor})

    return apply


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoilt("attributes", (1, 0, 0), np.nan), "attributes.*nan.*individual 'bob' in situation 1.*finite"),
        (spoilt("attributes", (1, 2, 0), 3.0), "absent alternatives for individual 'bob' in situation 1"),
        (spoilt("available", (2, slice(1)), False), "fewer than two.*individual 'ann' in situation 2"),
        (spoilt("choice", 0, 2), "choice.*absent.*individual 'ann' in situation 0"),
        (spoilt("choice", 0, 3), r"choice.*another index.*0\.\.2"),
        (spoilt("individual", 3, -1), "individual.*nobody in situation 3"),
        (spoilt("individual", 1, 0), "no situation for individual 'bob'"),
        (spoilt("weights", 2, 0.0), "weights.*individual 'cy'.*positive"),
        (lambda d: replace(d, weights=d.weights[:2]), r"weights: got shape \(2,\)"),
        (lambda d: replace(d, attributes=d.attributes.float()), "attributes.*float32.*float64"),
        (lambda d: replace(d, variables=("time", "time", "cost")), "variables.*each name once"),
        (lambda d: replace(d, alternatives=("car", "car", "bus")), "alternatives.*each name once"),
        (lambda d: replace(d, clusters={"town": d.choice}), r"clusters\['town'\]: got shape \(4,\)"),
    ],
)
def test_data_made_by_hand_are_checked(spoil: Callable[[ChoiceData], ChoiceData], says: str) -> None:
    data = ChoiceData.from_wide(wide_table(), **WIDE)
    data.validate()
    bad = spoil(data)
    with pytest.raises(InvalidInputError, match=says):
        bad.validate()


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
    fresh = ChoiceData.from_logratios(source, clusters=["annotator_id"])
    assert fresh.num_individuals == 3
    assert fresh.cluster("annotator_id").tolist() == [0, 1, 0]
    fresh.validate(["logratio_diff"])


@pytest.mark.parametrize(
    ("table", "options", "says"),
    [
        ({"margin": [1.0]}, {}, "logratio_diff"),
        ({"logratio_diff": [1.0, np.nan]}, {}, "nan in row 1"),
        ({"logratio_diff": [1.0, 2.0], "who": ["u", None]}, {"individual": "who"}, "'who'.*row 1"),
        ({"logratio_diff": [1.0]}, {"weights": "times"}, "'times'"),
        ({"logratio_diff": [1.0]}, {"clusters": ["town"]}, "'town'"),
        ({"logratio_diff": []}, {}, "0 rows"),
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
