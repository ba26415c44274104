"""The commands on choices: ``simulate``, ``study`` and ``fit``. What one needs is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from mixlogit_align.cli.shared import FAILED, MANY, PASSED

SIMULATE = """\
Draws choices of individuals whose coefficients are known, and writes them as a long table (columns individual,
situation, alternative, the attributes, choice) with the truth beside it as JSON.

A random coefficient is NAME=FAMILY(A, B), in quotes because of the brackets:
  normal(loc, scale)            loc + scale z, z standard normal
  lognormal(loc, scale)         exp(loc + scale z); -lognormal(loc, scale) is minus that
  uniform(loc, scale)           between loc - scale and loc + scale; triangular(loc, scale) likewise
  gamma(concentration, rate)    also -gamma
  truncated_normal(loc, scale), censored_normal(loc, scale), johnson_sb(loc, scale)
with behind it, where wanted: in LOW..HIGH (bounds of truncated_normal and johnson_sb), then
by COVARIATE=SLOPE, ... (loc moves by SLOPE times an attribute of the individual)."""

SIMULATE_EXAMPLES = """examples:
  mixlogit-align simulate --random "x=lognormal(0, 0.5)" --individuals 300 --situations 10 --out choices.csv
  mixlogit-align simulate --fixed asc.1=0.4 price=-1 --random "time=normal(-0.5, 0.8)" "comfort=normal(1, 0.5)" \\
    --correlation time,comfort=0.4 --attribute asc.1=0,1,0 "price=uniform(2, 1)" \\
    --individuals 500 --situations 8 --alternatives 3 --seed 1 --out choices.parquet
  mixlogit-align simulate --random "time=normal(-1, 0.5) by income=0.3" --fixed price=-1 --individuals 2000 --out c.csv
"""

STUDY = """\
Simulates choices of a known truth and estimates it, many times: bias, RMSE, coverage of confidence intervals, and
standard errors over the estimates' standard deviation, each with its Monte Carlo error. The truth and the design are
written as for `mixlogit-align simulate`. Every replication is kept in the folder from the moment it is done: the same
command continues where it was, with more --replications, too; another study is refused there."""

STUDY_EXAMPLES = """examples:
  mixlogit-align study --random "x=lognormal(0, 0.5)" --individuals 300 --situations 10 --out study
  mixlogit-align study --fixed price=-1 --random "time=normal(-0.5, 0.8)" "comfort=normal(1, 0.5)" \\
    --correlation time,comfort=0.4 --individuals 500 --situations 8 --alternatives 3 --replications 500 --jobs 4
  mixlogit-align study --random "x=gamma(2, 1.5)" --individuals 1000 --situations 8 --integration pseudo:16 --out few

exit status: 0 done; 1 fewer than three replications converged; 2 wrong usage, or a folder of another study;
130 interrupted: the same command continues
"""

FIT = """\
Estimates a mixed logit by maximum likelihood from a long table (CSV or Parquet), one row for each alternative of
each situation, or with --logratios from a table of judged pairs. Prints estimates and the evidence behind them.

A random coefficient is NAME=FAMILY, families as in `mixlogit-align simulate --help`; a leading - is minus a
positive family. FAMILY(A, B) starts the search there; in LOW..HIGH sets bounds; by COVARIATE, ... lets its loc
depend on attributes of the individual."""

FIT_EXAMPLES = """examples:
  mixlogit-align fit choices.csv --individual individual --fixed price --random time=normal
  mixlogit-align fit choices.csv --individual person --alternative mode --situation trip --choice chosen \\
    --fixed price --random time=normal cost=-lognormal --correlated --cov-type robust --out fit.safetensors
  mixlogit-align fit choices.csv --formula "choice ~ price + time | income" --random time=normal
  mixlogit-align fit choices.csv --individual individual --random price=-lognormal "time=normal by income" \\
    --wtp-space price --integration halton:500
  mixlogit-align fit log_ratios.parquet --logratios --individual annotator_id --random logratio_diff=lognormal

exit status: 0 converged; 1 not converged or no estimate; 2 wrong usage or data; 130 interrupted
"""


def add_simulate(parser: argparse.ArgumentParser) -> None:
    """The options of ``mixlogit-align simulate``."""
    _add_truth(parser)
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same choices (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("choices.csv"),
        help="the table, .csv, .csv.gz or .parquet (default: %(default)s); the truth is choices.truth.json beside it",
    )  # fmt: skip
    parser.set_defaults(run=_simulate)


def add_study(parser: argparse.ArgumentParser) -> None:
    """The options of ``mixlogit-align study``."""
    _add_truth(parser)
    how = parser.add_argument_group("the estimation")
    how.add_argument(
        "--integration", metavar="KIND:DRAWS", help="as of `mixlogit-align fit`; draws are made anew each time"
    )
    how.add_argument(
        "--cov-type",
        default="hessian",
        metavar="TYPE",
        help="hessian, bhhh, robust or bootstrap (default: %(default)s)",
    )
    how.add_argument("--level", type=float, default=0.95, help="of the confidence intervals (default: %(default)s)")
    parser.add_argument("--replications", metavar="R", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--jobs", metavar="K", type=int, default=-1, help="processes; -1: one a core (default)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same study (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("study"), help="folder of the study (default: %(default)s)")
    parser.set_defaults(run=_study)


def add_fit(parser: argparse.ArgumentParser) -> None:
    """The options of ``mixlogit-align fit``."""
    parser.add_argument("table", metavar="TABLE", type=Path, help=".csv, .csv.gz or .parquet")
    columns = parser.add_argument_group("columns of the table")
    columns.add_argument(
        "--choice", metavar="COLUMN", help="1 where chosen, else 0; or the label chosen (default: choice)"
    )
    columns.add_argument("--alternative", metavar="COLUMN", help="labels of what may be chosen (default: alternative)")
    columns.add_argument("--situation", metavar="COLUMN", help="which rows are one choice (default: situation)")
    columns.add_argument("--individual", metavar="COLUMN", help="who chose: makes a panel (default: a cross-section)")
    columns.add_argument("--availability", metavar="COLUMN", help="0 where an alternative could not be chosen")
    columns.add_argument("--weights", metavar="COLUMN", help="how many individuals alike each one stands for")
    columns.add_argument("--logratios", action="store_true", help="rows are judged pairs, with a column logratio_diff")
    model = parser.add_argument_group("the model")
    model.add_argument("--formula", help="'choice ~ price + time | income', in place of --choice and --fixed")
    model.add_argument("--fixed", metavar="NAME", **MANY, help="attributes with one coefficient for all")
    model.add_argument("--random", metavar="NAME=FAMILY", **MANY, help="attributes whose coefficient varies")
    model.add_argument(
        "--correlated", metavar="NAME,NAME,...", nargs="*",
        help="random coefficients are correlated: all of them, or only those of each block named",
    )  # fmt: skip
    model.add_argument("--wtp-space", metavar="PRICE", help="estimate willingness to pay in units of this attribute")
    model.add_argument("--scale-heterogeneity", action="store_true", help="individuals differ in scale, too")
    how = parser.add_argument_group("the estimation")
    how.add_argument(
        "--integration", metavar="KIND:DRAWS",
        help="quadrature:64, importance:64, halton:500, sobol:1024, mlhs:500 or pseudo:500, where wanted with :SEED, "
        "or :plain for an unscrambled Halton sequence (default: chosen for the model)",
    )  # fmt: skip
    how.add_argument(
        "--cov-type", default="hessian", metavar="TYPE",
        help="hessian, bhhh, robust, 'clustered(COLUMN)' or bootstrap (default: %(default)s)",
    )  # fmt: skip
    how.add_argument("--starts", metavar="K", type=int, default=1, help="of the search; all optima are reported")
    how.add_argument("--hold", metavar="PARAMETER=VALUE", **MANY, help="parameters that keep a value, time.scale=1")
    how.add_argument(
        "--bounds",
        metavar="PARAMETER=LOW..HIGH",
        **MANY,
        help="parameters that stay within, price=-5..0 or price=..0",
    )
    how.add_argument(
        "--redraws", metavar="K", type=int, default=4,
        help="fresh sets of draws that tell the error of integration (default: %(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--replications", metavar="K", type=int, default=200, help="of the bootstrap (default: %(default)s)"
    )
    how.add_argument(
        "--seed", type=int, default=0, help="of further starts and of the bootstrap (default: %(default)s)"
    )
    how.add_argument("--device", help="cpu, cuda, ...")
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="FILE", type=Path, help="the result, read by MixedLogitResult.load")
    output.add_argument("--html", metavar="FILE", type=Path, help="the summary as a page")
    output.add_argument("--latex", metavar="FILE", type=Path, help="the summary as a LaTeX table")
    parser.set_defaults(run=_fit)


def _add_truth(parser: argparse.ArgumentParser) -> None:
    truth = parser.add_argument_group("the truth")
    truth.add_argument("--fixed", metavar="NAME=VALUE", **MANY, help="coefficients that do not vary")
    truth.add_argument("--random", metavar="NAME=FAMILY(A,B)", **MANY, help="coefficients that vary over individuals")
    truth.add_argument(
        "--correlation", metavar="NAME,NAME=R", **MANY,
        help="correlation of two random coefficients (of their logs, where lognormal)",
    )  # fmt: skip
    truth.add_argument(
        "--wtp-space", metavar="PRICE", help="the other coefficients are willingness to pay: times -PRICE's"
    )
    truth.add_argument(
        "--scale-heterogeneity", metavar="TAU", type=float, help="all coefficients times exp(TAU z - TAU^2 / 2)"
    )
    design = parser.add_argument_group("the design")
    design.add_argument("--individuals", metavar="N", type=int, required=True)
    design.add_argument(
        "--situations", metavar="T", type=int, default=1, help="of each individual (default: %(default)s)"
    )
    design.add_argument(
        "--alternatives", metavar="J", type=int, default=2, help="to choose from (default: %(default)s)"
    )
    design.add_argument(
        "--attribute", metavar="NAME=FAMILY(A,B)", **MANY,
        help="distribution of an attribute (default: normal(0, 1)), or its value for each alternative: asc.1=0,1,0",
    )  # fmt: skip


def _simulate(options: argparse.Namespace) -> int:
    from mixlogit_align.econometrics.command import simulate

    simulate(options)
    return PASSED


def _study(options: argparse.Namespace) -> int:
    from mixlogit_align.econometrics.command import study

    return PASSED if study(options) else FAILED


def _fit(options: argparse.Namespace) -> int:
    from mixlogit_align.econometrics.command import fit

    return PASSED if fit(options) else FAILED
