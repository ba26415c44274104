from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mixlogit_align.econometrics import ChoiceData
from mixlogit_align.econometrics.formula import data_from_formula
from mixlogit_align.errors import InvalidInputError

COLUMNS = {"alternative": "alt", "situation": "trip"}
ALTERNATIVES = ("beach", "boat", "pier")


def trips(number: int = 6) -> pd.DataFrame:
    """A cross-section of trips to one of three places, with an attribute of each kind."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "trip": np.repeat(np.arange(number), 3),
            "alt": list(ALTERNATIVES) * number,
            "price": rng.uniform(1.0, 5.0, 3 * number).round(2),
            "catch": rng.uniform(0.0, 1.0, 3 * number).round(2),
            "shade": rng.choice(["none", "some", "much"], 3 * number),
            "income": np.repeat(rng.uniform(10, 20, number).round(1), 3),
            "region": np.repeat(["north", "south", "east"] * (number // 3), 3),
            "choice": np.tile([0, 1, 0], number),
        }
    )
    return frame.assign(**{"entry fee": frame["price"] / 2})


def read(formula: str, frame: pd.DataFrame | None = None, **options: Any) -> tuple[ChoiceData, list[str]]:
    return data_from_formula(formula, trips() if frame is None else frame, **COLUMNS | options)


CONSTANTS = ["asc.boat", "asc.pier"]
INCOME = ["income:boat", "income:pier"]


@pytest.mark.parametrize(
    ("formula", "names"),
    [
        ("choice ~ price + catch", ["price", "catch"]),
        ("choice ~ 0 + price", ["price"]),
        ("choice ~ price | 1", ["price", *CONSTANTS]),
        ("choice ~ price | 0", ["price"]),
        ("choice ~ price | income", ["price", *CONSTANTS, *INCOME]),
        ("choice ~ price | income - 1", ["price", *INCOME]),
        ("choice ~ price | 0 + income", ["price", *INCOME]),
        ("choice ~ 1 | income", [*CONSTANTS, *INCOME]),
        ("choice ~ price + I(price**2) + price:income", ["price", "I(price ** 2)", "price:income"]),
        ("choice ~ C(alt):catch", [f"C(alt)[{label}]:catch" for label in ALTERNATIVES]),
        ("choice ~ shade", ["shade[T.none]", "shade[T.some]"]),
        ("choice ~ 0 + shade", ["shade[T.none]", "shade[T.some]"]),
        ("choice ~ `entry fee`", ["entry fee"]),
        (
            "choice ~ price | region",
            ["price", *CONSTANTS, *(f"region[T.{r}]:{a}" for r in ("north", "south") for a in ("boat", "pier"))],
        ),
        (
            "choice ~ price | 0 + region",
            ["price", *(f"region[{r}]:{a}" for r in ("east", "north", "south") for a in ("boat", "pier"))],
        ),
    ],
)
def test_names_of_the_coefficients(formula: str, names: list[str]) -> None:
    data, found = read(formula)
    assert found == names
    data.validate(found)  # every one of them varies over alternatives


def test_values_are_those_of_the_expressions() -> None:
    frame = trips()
    data, _ = read("choice ~ log(price) + np.exp(catch) + price:income + {price / income} + C(alt):catch | income")
    price, catch, income = (torch.tensor(frame[c].to_numpy().reshape(-1, 3)) for c in ("price", "catch", "income"))
    torch.testing.assert_close(data.attribute("log(price)"), price.log())
    torch.testing.assert_close(data.attribute("np.exp(catch)"), catch.exp())
    torch.testing.assert_close(data.attribute("price:income"), price * income)
    torch.testing.assert_close(data.attribute("price / income"), price / income)
    own = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(data.attribute("C(alt)[pier]:catch"), catch * own)
    torch.testing.assert_close(data.attribute("income:pier"), income * own)
    assert data.attribute("asc.pier").tolist() == [[0.0, 0.0, 1.0]] * 6


def test_the_base_and_other_columns() -> None:
    data, names = read("choice ~ price | income", base="boat", others=["catch", "price"], clusters=["region"])
    assert names == ["price", "asc.beach", "asc.pier", "income:beach", "income:pier"]
    assert data.variables == ("price", "income", "catch", *names[1:])
    assert data.cluster("region").tolist() == [0, 1, 2, 0, 1, 2]
    torch.testing.assert_close(data.covariate("income"), torch.tensor(trips()["income"].to_numpy()[::3]))


def test_the_reader_is_the_one_of_long_tables() -> None:
    frame = trips().assign(who=lambda f: f["trip"] // 2, times=lambda f: 1.0 + f["who"])
    formula, names = read("choice ~ price + catch", frame, individual="who", weights="times")
    plain = ChoiceData.from_long(
        frame, choice="choice", individual="who", weights="times", variables=["price", "catch"], **COLUMNS
    )
    assert names == list(plain.variables)
    assert formula.individuals == plain.individuals == (0, 1, 2)
    torch.testing.assert_close(formula.attributes, plain.attributes)
    torch.testing.assert_close(formula.weights, plain.weights)


def test_rows_of_absent_alternatives_are_not_read() -> None:
    frame = trips().assign(there=1)
    gone = frame.index[[0, 5]]
    frame.loc[gone, "there"] = 0
    frame.loc[gone, ["price", "shade"]] = [np.nan, None]
    data, names = read("choice ~ log(price) + shade | income", frame, availability="there", clusters=["income"])
    without, other = read("choice ~ log(price) + shade | income", frame.drop(gone))
    assert names != other  # the base is the first alternative, which is now another
    assert data.alternatives == ALTERNATIVES
    order = [without.alternatives.index(label) for label in data.alternatives]
    torch.testing.assert_close(data.attribute("log(price)"), without.attribute("log(price)")[:, order])
    torch.testing.assert_close(data.available, without.available[:, order])


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("choice ~ price + gap", r"column 'gap': got nan in row 7 \(1 such rows\)"),
        ("choice ~ price + word", r"column 'word': got .* in row 7"),
        ("choice ~ price | gap", r"column 'gap': got nan in row 7"),
        ("choice ~ log(catch - 2)", r"column 'log\(catch - 2\)': got nan in row 0 .*finite"),
        ("choice ~ price + speed", "formula: got column 'speed'"),
        ("won ~ price", "formula: got column 'won'"),
        ("log(choice) ~ price", r"formula: got column 'log\(choice\)'"),
        ("choice + trip ~ price", "formula: got 'choice [+] trip ~ price'.*expected 'choice ~ terms"),
        ("choice ~ price | income | catch", "expected 'choice ~ terms"),
        ("price + catch", "expected 'choice ~ terms"),
        ("choice ~ price +", r"formula: got 'choice ~ price \+': Operator"),
        ("choice ~ price.nothing", "Unable to evaluate factor"),
        ("choice ~ 0 | 1", "no attribute"),
        (5, "of type int"),
        ("choice ~ price | catch", "attribute 'catch'.*one value over the alternatives"),
        ("word ~ price", "'word'.*0 or 1"),
    ],
)
def test_errors_name_the_formula_or_the_row(formula: Any, says: str) -> None:
    frame = trips().assign(gap=1.0, word="a")
    frame.loc[7, ["gap", "word"]] = [np.nan, None]
    with pytest.raises(InvalidInputError, match=says):
        read(formula, frame)


def test_variables_of_the_caller_are_out_of_reach() -> None:
    secret = np.arange(18.0)
    assert len(secret) == len(trips())
    with pytest.raises(InvalidInputError, match="'secret'"):
        read("choice ~ price + secret")


def test_a_real_table(shared_data: Path) -> None:
    frame = pd.read_csv(shared_data / "choice" / "fishing_long.csv")
    data, names = data_from_formula("choice ~ price + catch | income", frame, alternative="alt", situation="id")
    others = ["boat", "charter", "pier"]
    assert names == ["price", "catch", *(f"asc.{a}" for a in others), *(f"income:{a}" for a in others)]
    assert (data.num_situations, data.num_alternatives) == (1182, 4)
    # the maximum of the conditional logit, as mlogit's documentation prints it for this formula
    printed = [-2.5117e-02, 3.5778e-01, 5.2728e-01, 1.6944, 7.7796e-01, 8.9440e-05, -3.3292e-05, -1.2758e-04]
    columns = torch.stack([data.attribute(name) for name in names], -1)
    logs = (columns @ torch.tensor(printed, dtype=torch.float64)).log_softmax(1)
    assert logs.gather(1, data.choice[:, None]).sum().item() == pytest.approx(-1215.1376, abs=1e-3)
