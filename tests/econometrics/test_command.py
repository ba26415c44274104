"""``mixlogit-align simulate`` and ``fit``: what they write, what they say, and how they end."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mixlogit_align import ImportanceSampling, MonteCarlo, Quadrature, QuasiMonteCarlo, cli
from mixlogit_align.econometrics import ChoiceData, MixedLogitModel, MixedLogitResult, Random, simulate_choices
from mixlogit_align.econometrics.command import read_rule
from mixlogit_align.errors import ConvergenceWarning, InvalidInputError

Run = Callable[[str], tuple[int, str, str]]


def one_line(text: str) -> bool:
    return text.count("\n") == 1 and text.endswith("\n") and "Traceback" not in text


IDS = ["individual", "situation", "alternative"]
SMALL = (
    'simulate --fixed price=-1 --random "time=normal(-0.5, 0.8)" '
    "--individuals 60 --situations 5 --alternatives 3 --seed 4"
)


@pytest.mark.parametrize(
    "truth",
    [
        '--fixed price=-1 --random "time=normal(-0.5, 0.8)" "comfort=-lognormal(0, 0.4)" '
        "--correlation time,comfort=0.5",
        '--fixed asc.1=0.5 --attribute asc.1=0,1 "price=uniform(2, 1)" --random "price=-lognormal(0, 0.3)" '
        '"time=normal(1, 0.4) by income=0.5" --wtp-space price',
        '--fixed price=-1 --random "time=johnson_sb(0.5, 1) in -1..3" --scale-heterogeneity 0.3',
    ],
)
def test_the_command_that_simulate_suggests_recovers_the_truth(truth: str, run: Run, tmp_path: Path) -> None:
    """Every |z| <= 5: by chance 6e-7 for each of at most 7 estimates, if they were normal."""
    status, out, _ = run(f"simulate {truth} --individuals 250 --situations 6 --seed 5 --out c.parquet")
    assert status == cli.PASSED
    suggested = out.splitlines()[-1].removeprefix("to estimate it: mixlogit-align ")
    status, out, err = run(f"{suggested} --out fit.safetensors --html fit.html --latex fit.tex")
    assert (status, err) == (cli.PASSED, "")
    params = json.loads((tmp_path / "c.truth.json").read_text())["params"]
    result = MixedLogitResult.load(tmp_path / "fit.safetensors")
    assert list(result.params) == list(params)
    z = {name: (value - params[name]) / result.std_errors[name] for name, value in result.params.items()}
    assert {name: value for name, value in z.items() if abs(value) > 5} == {}
    assert result.summary in out
    assert result.summary.as_html() in (tmp_path / "fit.html").read_text(encoding="utf-8")
    assert (tmp_path / "fit.tex").read_text(encoding="utf-8").strip() == result.summary.as_latex()


def test_simulate_writes_what_the_function_draws(run: Run, tmp_path: Path) -> None:
    line = (
        'simulate --fixed one=0.5 two=-1 --random "a=lognormal(0.2, 0.5)" "b=normal(1, 2)" "c=uniform(0, 1) by z=0.25" '
        '--correlation a,b=-0.6 --attribute one=0,1 "two=gamma(2, 3)" --individuals 30 --situations 4 --seed 9 '
        "--scale-heterogeneity 0.2 --out table.csv"
    )
    assert run(line)[0] == cli.PASSED
    record = json.loads((tmp_path / "table.truth.json").read_text())
    # the Cholesky factor of scales (0.5, 2) and correlation -0.6: 2 sqrt(1 - 0.36) = 1.6
    assert record["params"] == pytest.approx(
        {
            "one": 0.5, "two": -1.0, "a.loc": 0.2, "b.loc": 1.0, "c.loc": 0.0, "c.loc:z": 0.25, "c.scale": 1.0,
            "chol.a.a": 0.5, "chol.b.a": -1.2, "chol.b.b": 1.6, "tau": 0.2,
        }
    )  # fmt: skip
    assert record["model"]["correlated"] == [["a", "b"]]
    frame = pd.read_csv(tmp_path / "table.csv")
    assert list(frame.columns) == [*IDS, "one", "two", "a", "b", "c", "z", "choice"]
    data = ChoiceData.from_long(
        frame, choice="choice", alternative="alternative", situation="situation", individual="individual"
    )
    again = simulate_choices(
        record["params"],
        fixed=["one", "two"],
        random={"a": "lognormal", "b": "normal", "c": Random("uniform", mean_covariates="z")},
        correlated=[["a", "b"]],
        scale_heterogeneity=True,
        data=data,
        seed=1,
    )
    assert again.params == record["params"]
    assert frame.groupby("alternative")["one"].agg(["min", "max"]).to_numpy().tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert (frame["two"] > 0.0).all()
    first = (tmp_path / "table.csv").read_bytes()
    assert run(line)[0] == cli.PASSED
    assert (tmp_path / "table.csv").read_bytes() == first


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (
            '--cov-type "clustered(town)" --starts 2 --seed 3 --redraws 2',
            {"cov_type": "clustered(town)", "num_starts": 2, "seed": 3, "num_redraws": 2},
        ),
        (
            "--hold time.scale=0.7 --bounds time.loc=..0.5 price=-2..2 --redraws 0",
            {"hold": {"time.scale": 0.7}, "bounds": {"time.loc": (-math.inf, 0.5), "price": (-2, 2)}, "num_redraws": 0},
        ),
        (
            "--cov-type bootstrap --replications 12 --seed 4",
            {"cov_type": "bootstrap", "num_replications": 12, "seed": 4},
        ),
    ],
)
def test_fit_is_the_fit_of_the_model(run: Run, tmp_path: Path, words: str, options: dict[str, Any]) -> None:
    assert run(SMALL + " --out c.csv.gz")[0] == cli.PASSED
    frame = pd.read_csv(tmp_path / "c.csv.gz")
    frame["label"] = frame["alternative"].map({0: "bus", 1: "car", 2: "rail"})
    frame["picked"] = frame["situation"].map(frame[frame["choice"] == 1].set_index("situation")["label"])
    frame["offered"] = ((frame["situation"] % 3 > 0) | (frame["alternative"] != 2) | (frame["choice"] == 1)).astype(int)
    frame["many"] = 1.0 + frame["individual"] % 3
    frame["town"] = frame["individual"] // 4
    frame = frame.rename(columns={"situation": "trip", "individual": "who"}).drop(columns="choice")
    frame.to_parquet(tmp_path / "own.parquet")
    line = (
        "fit own.parquet --choice picked --alternative label --situation trip --individual who --availability offered "
        '--weights many --fixed price --random "time=normal" --integration halton:100:3 --device cpu '
        f"--out fit.safetensors {words}"
    )
    assert run(line)[0] == cli.PASSED
    ours = MixedLogitResult.load(tmp_path / "fit.safetensors")
    data = ChoiceData.from_long(
        frame, choice="picked", alternative="label", situation="trip", individual="who", availability="offered",
        weights="many", clusters=["town"], variables=["price", "time"],
    )  # fmt: skip
    theirs = MixedLogitModel(data, ["price"], {"time": "normal"}).fit(
        integration=QuasiMonteCarlo("halton", 100, 3), device="cpu", **options
    )
    assert ours.params == theirs.params
    assert ours.held == theirs.held
    assert ours.simulation_sd == theirs.simulation_sd
    assert ours.std_errors == pytest.approx(theirs.std_errors, nan_ok=True)
    assert [optimum.loglik for optimum in ours.optima] == [optimum.loglik for optimum in theirs.optima]


def test_fit_by_formula(run: Run, tmp_path: Path) -> None:
    assert run(SMALL + " --out c.csv")[0] == cli.PASSED
    line = 'fit c.csv --formula "choice ~ price + time | 1" --random time=normal --individual individual --out f'
    assert run(line)[0] == cli.PASSED
    theirs = MixedLogitModel.from_formula(
        "choice ~ price + time | 1", pd.read_csv(tmp_path / "c.csv"), alternative="alternative",
        situation="situation", individual="individual", random={"time": "normal"},
    ).fit()  # fmt: skip
    assert MixedLogitResult.load(tmp_path / "f").params == theirs.params


def test_fit_of_log_ratios(run: Run, tmp_path: Path) -> None:
    sample = simulate_choices({"x.loc": 0.0, "x.scale": 0.5}, random={"x": "lognormal"}, num_individuals=80,
                              num_situations=6, seed=2)  # fmt: skip
    sample.logratios.to_parquet(tmp_path / "log_ratios.parquet")
    line = "fit log_ratios.parquet --logratios --individual annotator_id --random logratio_diff=lognormal --out f"
    assert run(line)[0] == cli.PASSED
    theirs = MixedLogitModel(sample.data, random={"x": "lognormal"}).fit()
    ours = MixedLogitResult.load(tmp_path / "f")
    assert list(ours.params.values()) == pytest.approx(list(theirs.params.values()), rel=1e-6)


def test_a_cross_section_says_so(run: Run) -> None:
    assert run(SMALL + " --out c.csv")[0] == cli.PASSED
    status, out, err = run("fit c.csv --fixed price time")
    assert (status, err) == (cli.PASSED, "")
    assert "every situation has its own individual, since --individual was not given" in out


def test_what_did_not_converge_fails(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(SMALL + " --out c.csv")[0] == cli.PASSED
    fitted = MixedLogitModel.fit

    def short(self: MixedLogitModel, **options: Any) -> MixedLogitResult:
        warnings.warn("stopped early", ConvergenceWarning, stacklevel=2)
        return replace(fitted(self, **options), converged=False)

    monkeypatch.setattr(MixedLogitModel, "fit", short)
    status, out, err = run("fit c.csv --individual individual --fixed price --random time=normal --out f")
    assert status == cli.FAILED
    assert err == "mixlogit-align: warning: stopped early\n"
    assert "NOT converged" in out
    assert not MixedLogitResult.load(tmp_path / "f").converged


@pytest.fixture
def tables(run: Run, tmp_path: Path) -> None:
    """Tables, most of them with a fault."""
    assert run(SMALL + " --out c.csv")[0] == cli.PASSED
    good = pd.read_csv(tmp_path / "c.csv")
    twice = good.copy()
    twice.loc[twice["situation"] == 7, "choice"] = 1
    twice.to_csv("twice.csv", index=False)
    good.assign(choice=0).to_csv("never.csv", index=False)
    good.assign(price=good["price"].where(good.index != 8)).to_csv("missing.csv", index=False)
    good.assign(price=good["price"].astype(str) + " EUR").to_csv("text.csv", index=False)
    good.assign(price=1.0 * good["choice"]).to_csv("separated.csv", index=False)
    (tmp_path / "empty.csv").touch()
    (tmp_path / "latin.csv").write_bytes(b"a,b\n\xe9,1\n")
    (tmp_path / "ragged.csv").write_text("a,b\n1,2\n1,2,3\n")
    (tmp_path / "text.parquet").write_text("no parquet")


FIT_ERRORS = [
    ("nowhere.csv --fixed price", "table: got 'nowhere.csv', which is not there"),
    ("c.xlsx --fixed price", "expected a file .csv, .csv.gz or .parquet"),
    ("c.gz --fixed price", "expected a file .csv, .csv.gz or .parquet"),
    ("empty.csv --fixed price", "which cannot be read (No columns"),
    ("latin.csv --fixed price", "which cannot be read ('utf-8' codec"),
    ("ragged.csv --fixed price", "Expected 2 fields in line 3"),
    ("text.parquet --fixed price", "'text.parquet', which cannot be read"),
    ("c.csv", "expected --fixed, --random or --formula"),
    ("c.csv --fixed cost", "--fixed: got column 'cost'"),
    ("c.csv --fixed price --choice chosen", "choice: got column 'chosen'"),
    ("c.csv --fixed price --alternative mode", "alternative: got column 'mode'"),
    ("c.csv --fixed price --situation trip", "situation: got column 'trip'"),
    ("c.csv --fixed price --individual person", "individual: got column 'person'"),
    ("c.csv --fixed price --weights w", "weights: got column 'w'"),
    ("c.csv --fixed price --availability av", "availability: got column 'av'"),
    ("c.csv --fixed price --cov-type 'clustered(town)'", "clusters: got column 'town'"),
    ("c.csv --fixed price --cov-type sandwich", "cov_type: got 'sandwich'"),
    ("c.csv --random time", "--random: got 'time'; expected NAME=FAMILY"),
    ("c.csv --random time=cauchy", "--random time, family: got 'cauchy'; expected one of ['normal'"),
    ("c.csv --random time=-normal", "--random time, sign: got -1 for normal"),
    ("c.csv --random 'time=normal(1)'", "--random time: got 'normal(1)'; expected two numbers, loc and scale"),
    ("c.csv --random 'time=normal(1, b)'", "--random time: got 'b'; expected a number"),
    ("c.csv --random 'time=normal(1, 2'", "--random time: got 'normal(1, 2'; expected NAME=FAMILY"),
    ("c.csv --random 'time=normal in 0..1'", "--random time, bounds: got (0.0, 1.0) for normal"),
    ("c.csv --random 'time=normal by wealth'", "--random ... by: got column 'wealth'"),
    ("c.csv --random 'time=normal by price'", "attribute 'price': got different values for individual 0"),
    ("c.csv --random 'time=normal by price=2'", "expected names of covariates alone"),
    ("c.csv --random time=normal time=gamma", "--random: got 'time' twice"),
    ("c.csv --fixed time --random time=normal", "coefficients: got ['time'] more than once"),
    ("c.csv --fixed price --random time=normal --correlated time,price", "correlated: got [['time', 'price']]"),
    ("c.csv --fixed price --wtp-space time", "wtp_space: got 'time'"),
    ("c.csv --fixed price --integration halton", "--integration: got 'halton'; expected KIND:DRAWS"),
    ("c.csv --fixed price --integration halton:0", "num_draws: got 0"),
    ("c.csv --fixed price --starts 0", "num_starts: got 0"),
    ("c.csv --fixed price --device abacus", "--device: got 'abacus'"),
    ("c.csv --fixed price --out nofolder/f", "output: got 'nofolder/f'"),
    ("c.csv --fixed price --html .", "output: got '.'"),
    ("c.csv --formula 'choice ~ price +'", "formula: got 'choice ~ price +'"),
    ("c.csv --formula 'choice ~ cost'", "formula: got column 'cost'"),
    ("c.csv --formula 'choice ~ price' --fixed price", "--formula: got also --fixed"),
    ("c.csv --formula 'choice ~ price' --random time=normal", "random: got ['time']; expected terms of the formula"),
    ("c.csv --logratios --random x=normal", "got column 'logratio_diff'"),
    ("c.csv --logratios --random x=normal --situation situation", "--logratios: got also"),
    ("twice.csv --fixed price --individual individual", "situation=7, from row 21: got 3 (1 such situations)"),
    ("never.csv --fixed price", "situation=0, from row 0: got 0"),
    ("missing.csv --fixed price", "column 'price': got nan in row 8"),
    ("text.csv --fixed price", "column 'price': got type"),
]


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(("line", "says"), FIT_ERRORS, ids=[line for line, _ in FIT_ERRORS])
def test_what_cannot_be_fitted_is_one_line(line: str, says: str, run: Run) -> None:
    status, out, err = run(f"fit {line}")
    assert (status, out) == (cli.USAGE, "")
    assert says in err
    assert one_line(err)


@pytest.mark.usefixtures("tables")
def test_separated_choices_have_no_estimate(run: Run) -> None:
    status, _, err = run("fit separated.csv --fixed price")
    assert status == cli.FAILED
    assert "separate the choices" in err
    assert one_line(err)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--random x=normal", "--random x: got normal; expected every parameter of the truth"),
        ("--random 'x=normal(0, 1) by z'", "expected every parameter of the truth"),
        ("--random 'x=normal(0, -1)'", "truth['x.scale']: got -1.0"),
        ("", "coefficients: got no coefficient"),
        ("--fixed price", "--fixed: got 'price'; expected NAME=NUMBER"),
        ("--fixed price=a", "--fixed price: got 'a'; expected a number"),
        ("--fixed price=1 --out x.txt", "table: got 'x.txt'"),
        ("--fixed price=1 --situations 0", "num_situations: got 0"),
        ("--fixed price=1 --attribute cost=0,1", "attributes: got ['cost']"),
        ("--fixed price=1 --attribute price=0,1,2", "attributes['price']: got shape (3,)"),
        ("--fixed price=1 --attribute price=1,1", "attribute 'price': got one value"),
        ("--fixed price=1 --attribute 'price=gamma(-1, 2)'", "--attribute price: got 'gamma(-1, 2)'"),
        ("--fixed price=1 --attribute 'price=zeta(1, 2)'", "--attribute price: got 'zeta(1, 2)'"),
        ("--fixed p=1 --random 'x=normal(0, 1)' --correlation x,p=0.1", "--correlation: got x,p=0.1"),
        ("--random 'x=normal(0, 1)' 'y=normal(0, 1)' --correlation x,y=1", "--correlation: got x,y=1"),
        (
            "--random 'x=normal(0, 1)' 'y=normal(0, 1)' 'z=normal(0, 1)' --correlation x,y=0.9 y,z=0.9 x,z=-0.9",
            "a matrix of ['x', 'y', 'z'] that is not positive definite",
        ),
        ("--fixed choice=1", "attributes: got ['choice']"),
    ],
)
def test_what_cannot_be_simulated_is_one_line(line: str, says: str, run: Run, tmp_path: Path) -> None:
    status, out, err = run(f"simulate --individuals 10 {line}")
    assert (status, out) == (cli.USAGE, "")
    assert says in err
    assert one_line(err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (None, None),
        ("quadrature", Quadrature()),
        ("quadrature:40", Quadrature(40)),
        ("importance:64", ImportanceSampling(64)),
        ("importance:64:2", ImportanceSampling(64, seed=2)),
        ("halton:500", QuasiMonteCarlo("halton", 500)),
        ("halton:500:plain", QuasiMonteCarlo("halton", 500, None)),
        ("sobol:256:7", QuasiMonteCarlo("sobol", 256, 7)),
        ("mlhs:50", QuasiMonteCarlo("mlhs", 50)),
        ("pseudo:100:3", MonteCarlo(100, seed=3)),
    ],
)
def test_rules_of_the_command_line(text: str | None, rule: Any) -> None:
    assert read_rule(text) == rule


@pytest.mark.parametrize(
    "text", ["", "halton", "halton:", "halton:5.5", "simpson:5", "pseudo:5:plain", "quadrature:5:1"]
)
def test_a_rule_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InvalidInputError, match="--integration: got"):
        read_rule(text)
