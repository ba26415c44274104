"""The command ``strength``. What it needs is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from mixlogit_align.cli.shared import FAILED, PASSED

STRENGTH = """\
Fits the distribution of strength to log-ratio differences: one strength for all, one drawn anew for each comparison,
and, where annotators are known, one for each of them; with standard errors, likelihood-ratio tests that know that no
spread is a boundary, the profile of the cv (sd / mean) with its interval, and every annotator's strength given its
comparisons. Says in plain words what of it is identified. A table has a column logratio_diff, in favour of the chosen
response, one row a comparison; RUN is the folder of a finished run, whose held-out pairs are taken.

Writes heterogeneity.json and annotators.parquet. Nothing needs to be resumed: some thousand comparisons take seconds,
a hundred thousand some minutes."""

STRENGTH_EXAMPLES = """examples:
  mixlogit-align strength runs/gamma
  mixlogit-align strength log_ratios.csv --annotator judge --family gamma --out judges
  mixlogit-align strength log_ratios.parquet --no-annotator --weights votes --level 0.9 --out votes

exit status: 0 done; 1 no strength is most likely, or a fit did not converge (what was found is written);
2 wrong usage or data; 130 interrupted
"""


def add_strength(parser: argparse.ArgumentParser) -> None:
    """The options of ``mixlogit-align strength``."""
    parser.add_argument(
        "table", metavar="TABLE|RUN", type=Path, help=".csv, .csv.gz or .parquet, or the folder of a run"
    )
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--annotator", metavar="COLUMN", help="who judged (default: annotator_id where there is one)")
    who.add_argument("--no-annotator", action="store_true", help="as if nobody were known")
    parser.add_argument(
        "--family", choices=["lognormal", "gamma"], default="lognormal", help="of the strength (default: %(default)s)"
    )
    parser.add_argument(
        "--weights", metavar="COLUMN", help="how often a comparison counts, one value an annotator (default: once)"
    )
    parser.add_argument("--level", type=float, default=0.95, help="of the intervals (default: %(default)s)")
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help="folder of the results (default: heterogeneity in RUN, NAME-heterogeneity beside a TABLE NAME.csv)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results in the folder")
    parser.set_defaults(run=_strength)


def _strength(options: argparse.Namespace) -> int:
    from mixlogit_align.alignment import RichProgress
    from mixlogit_align.econometrics.heterogeneity_command import measure_strength

    with RichProgress() as progress:
        found, folder = measure_strength(options, lambda what, done, total: progress(what, done, total, {}))
    print(found.summary)
    print(f"written to {folder}")
    return PASSED if found.converged else FAILED
