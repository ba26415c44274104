"""The command ``mixlogit-align``. What a sub-command needs is imported when it runs, so that help is instant."""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mixlogit_align import __version__
from mixlogit_align.errors import IntegrationError, InvalidInputError, MixlogitError, explain

if TYPE_CHECKING:
    from mixlogit_align.alignment import AlignmentConfig, RunResult

PASSED, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

# Where processes train together: how long the others leave an error to the first, whose end ends them too.
TURN_SECONDS = 15.0

EXAMPLES = """examples:
  mixlogit-align demo                                  everything once, on simulated choices; then open the report
  mixlogit-align simulate --fixed price=-1 --random "time=normal(-0.5, 0.8)" --individuals 500 --out choices.csv
  mixlogit-align fit choices.csv --fixed price --random time=normal
  mixlogit-align study --random "x=lognormal(0, 0.5)" --individuals 300 --situations 10 --out study
  mixlogit-align sft --config run.yaml --out runs/sft  the supervised stage of a configuration
  mixlogit-align train --config run.yaml --preference.optim.lr 1e-6
  mixlogit-align evaluate runs/gamma --against runs/dpo
  mixlogit-align winrate runs/gamma --judge http://localhost:8000/v1 --judge-model NAME
  mixlogit-align report runs/dpo runs/gamma --out report.html

exit status:
  0 done, every check passed; 1 a check or a run failed, or a fit did not converge;
  2 wrong usage, settings or data; 130 interrupted by Ctrl-C
"""

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

TRAIN = """\
Any setting of the file can be replaced: --section.setting value, for example --preference.optim.lr 1e-6;
--settings shows them all. A recipe stands in for the file; --dry-run tries either without data or network.
Under torchrun the processes train one policy together, sharded over them, and the main one prints and writes."""

TRAIN_EXAMPLES = """examples:
  mixlogit-align COMMAND --config run.yaml
  mixlogit-align COMMAND --config run.yaml --out runs/two --STAGE.optim.lr 1e-6
  mixlogit-align COMMAND --config run.yaml --resume            begin, or go on from the last checkpoint
  mixlogit-align COMMAND --config run.yaml --print-config      every setting as this command resolves it
  mixlogit-align COMMAND --settings data                       what settings there are, and what they mean
  mixlogit-align COMMAND --recipe prism/pythia-2.8b/gamma      the MixDPO paper's settings; --recipe lists all
  mixlogit-align COMMAND --recipe prism/pythia-2.8b/gamma --dry-run 8
  torchrun --standalone --nproc-per-node 8 -m mixlogit_align COMMAND --config run.yaml --resume

exit status: 0 done; 1 the run failed; 2 wrong usage, settings or data;
130 interrupted: the same command with --resume goes on

a complete configuration:

"""

EVALUATE = """\
Tells how far a run prefers what people preferred, on its held-out pairs: margins, accuracy, likelihood and calibration,
over all pairs and by subgroup, micro and macro, with standard errors by annotator; and, with --against, what it gains
over another run on the same pairs. RUN is the folder of a finished run, or a Parquet table of pairs. Subgroups of few
annotators stand apart. Writes evaluation.json, pair by pair pairs.parquet, and with --against gains-over-NAME.json.

Stars: a gain with p below 0.05 (*) or 0.01 (**), of a subgroup adjusted for their number."""

EVALUATE_EXAMPLES = """examples:
  mixlogit-align evaluate runs/gamma
  mixlogit-align evaluate runs/gamma --against runs/dpo --by education framing --out gamma-over-dpo
  mixlogit-align evaluate runs/gamma --metrics margin/sum accuracy --clusters prompt --minimum 20
  mixlogit-align evaluate ours.parquet --against theirs.parquet --shared --adjustment benjamini_hochberg

exit status: 0 done; 2 wrong usage, no finished run, or pairs that differ; 130 interrupted: a policy that has been
scored is not scored again
"""

WINRATE = """\
Has a run and an opponent answer held-out prompts, a judge compare the responses, and tells how often the run wins:
plainly and at equal lengths, as AlpacaEval 2.0 does, with intervals. The judge is a model behind an OpenAI-compatible
endpoint, a reward model, or a table of stored annotations. Responses, verdicts and results are kept in one folder, in
AlpacaEval's formats; what is there is not made again, so that the same command goes on after an interruption.

An endpoint sees each pair in both orders. Its key is taken from an environment variable, and appears nowhere else;
what the requests will cost is told before the first is sent."""

WINRATE_EXAMPLES = """examples:
  mixlogit-align winrate runs/gamma --judge http://localhost:8000/v1 --judge-model NAME --no-key
  mixlogit-align winrate runs/gamma --opponent runs/dpo --sample 200 --judge reward:FOLDER
  mixlogit-align winrate runs/gamma --judge https://HOST/v1 --judge-model NAME --key-variable JUDGE_KEY \\
    --input-price 2.5 --output-price 10 --budget 5 --requests-per-minute 60
  mixlogit-align winrate runs/gamma --judge reward:FOLDER --compare runs/dpo/winrate-sft
  mixlogit-align winrate ours.json --opponent theirs.json --judge annotations.json

exit status: 0 done; 1 the endpoint cannot be used, or the budget does not suffice; 2 wrong usage, settings or data;
130 interrupted: the same command goes on
"""

EXAMPLE_CONFIG = """\
out: runs/first                   # the run folder
name: first
data:
  source: simulated               # or hh, prism, community, table, mg2019, mms2019, humour: see --settings data
  num_train: 2048
  num_eval: 512
model: {kind: new, hidden_size: 64, num_layers: 2}       # or {kind: pretrained, path: FOLDER}
tokenization: {max_length: 128, max_prompt_length: 64}
sft:                              # either stage may be left out
  optim: {name: adamw, lr: 3e-3, warmup_steps: 20}
  eval_every_examples: 512
preference:
  optim: {name: rmsprop, lr: 1e-3, warmup_steps: 20}
  num_epochs: 2
  eval_every_examples: 512
  loss: {kind: mixdpo}            # or dpo, ipo, simpo, kto and others, without the next two: see --settings preference
  strength: {family: gamma, update: {kind: learned, lr: 1e-2}}    # or point (DPO), lognormal; frozen, solved
  integration: {rule: best}              # or closed_form, quadrature, monte_carlo
"""

# An option that takes several words, and may be repeated.
_MANY: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; those of the process if None.

    Raises
    ------
    SystemExit
        From ``--help``, ``--version`` and wrong arguments.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    parser = _parser(words)
    options, rest = parser.parse_known_args(words)
    if options.run in (_sft, _train):
        options.settings, options.again = _overrides(parser, rest), _again(words)
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        status: int = options.run(options)
    except KeyboardInterrupt:
        print("interrupted; what was written so far is kept", file=sys.stderr)
        return INTERRUPTED
    except (InvalidInputError, IntegrationError, OSError) as error:
        _complain(f"error: {_in_our_words(error)}")
        return USAGE
    except MixlogitError as error:
        _complain(f"failed: {error}")
        return FAILED
    return status


def _in_our_words(error: Exception) -> str:
    """The message of an error; that of the operating system about a file says what to try, as ours do."""
    if not isinstance(error, OSError) or error.filename is None or not error.strerror:
        return str(error)
    got = f"{error.strerror[0].lower()}{error.strerror[1:]}"
    expected = "a place that can be read, or written to"
    return explain(str(error.filename), got=got, expected=expected, hint="another path, or its permissions")


def _rank() -> int:
    """This process among those that torchrun started; 0 alone."""
    return int(os.environ.get("RANK", "0"))


def _wait_for_turn() -> None:
    """Let the first process of this machine speak before this one.

    What all meet is then told once, as torchrun ends the others when one has failed; what this one meets alone is told
    a moment later.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(TURN_SECONDS)


def _complain(message: str) -> None:
    _wait_for_turn()
    rank = _rank()
    print(f"mixlogit-align: {f'process {rank}: ' if rank else ''}{message}", file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    hint = ""  # what to try, behind every error

    def error(self, message: str) -> NoReturn:
        _wait_for_turn()
        super().error(f"{message}{self.hint}")


def _hint(words: Sequence[str]) -> str:
    """What to try where a file of settings stands without ``--config``."""
    if any(word.partition("=")[0] in ("--config", "--recipe") for word in words):
        return ""
    file = next((word for word in words if word.endswith((".yaml", ".yml"))), None)
    return "" if file is None else f"; try --config {file}"


class _Settings(argparse.Action):
    """Prints the manual of settings and stops, as ``--help`` does."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> NoReturn:
        from mixlogit_align.alignment.manual import manual

        try:
            print(manual(values, width=min(shutil.get_terminal_size().columns, 100)), end="")
        except InvalidInputError as error:
            _complain(f"error: {error}")
            parser.exit(USAGE)
        parser.exit()


class _Once(argparse.Action):
    """Keeps a value, and refuses a second: which of the two is meant is unknown."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        if (before := getattr(namespace, self.dest)) is not None:
            parser.error(f"{option_string} given twice, {before} and {values}; try one of them")
        setattr(namespace, self.dest, values)


class _Recipe(_Once):
    """Keeps the name of a recipe; without one, prints what there are and stops."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        if values is None:
            from mixlogit_align.alignment.recipes import catalogue

            print(catalogue(), end="")
            parser.exit()
        super().__call__(parser, namespace, values, option_string)


def _parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of every command; ``words`` are those that it will be given, for its hints."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="mixlogit-align",
        description="Mixed logit for choices and for preference alignment.",
        epilog=EXAMPLES,
        formatter_class=plain,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, what: str, more: str, epilog: str | None = None) -> _Parser:
        added = commands.add_parser(
            name, help=what, description=f"{what[0].upper()}{what[1:]}.\n\n{more}", epilog=epilog,
            formatter_class=plain, allow_abbrev=False,
        )  # fmt: skip
        return added

    demo = command(
        "demo",
        "recover known strengths, align a small policy, write a report",
        "Needs no data and no network. Recovers known strengths from simulated choices; if that fails, nothing is\n"
        "aligned. Then trains a small policy by DPO and MixDPO on simulated annotators and holds it against the truth.",
    )
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="folder to write to (default: %(default)s)")
    demo.add_argument("--quick", action="store_true", help="fewer cases and examples: that it runs, not what it learns")
    demo.set_defaults(run=_demo)

    _add_simulate(command("simulate", "write choices whose truth is known", SIMULATE, SIMULATE_EXAMPLES))
    _add_study(command("study", "recover a known truth many times: bias and coverage", STUDY, STUDY_EXAMPLES))
    _add_fit(command("fit", "estimate a mixed logit from a table of choices", FIT, FIT_EXAMPLES))

    for name, stage, what, run in (
        ("sft", "sft", "run the supervised stage of a configuration", _sft),
        ("train", "preference", "run the stages of a configuration", _train),
    ):
        examples = TRAIN_EXAMPLES.replace("COMMAND", name).replace("STAGE", stage)
        train = command(name, what, TRAIN, examples + textwrap.indent(EXAMPLE_CONFIG, "  "))
        train.hint = _hint(words)
        source = train.add_mutually_exclusive_group(required=True)
        source.add_argument("--config", metavar="FILE", type=Path, action=_Once, help="YAML file of settings")
        source.add_argument(
            "--recipe", metavar="NAME", nargs="?", action=_Recipe,
            help="settings of the MixDPO paper, e.g. prism/pythia-2.8b/gamma; without NAME, list them and stop",
        )  # fmt: skip
        earlier = train.add_mutually_exclusive_group()
        earlier.add_argument(
            "--resume", action="store_true",
            help="go on from the last checkpoint of the run in the folder; where there is none, begin",
        )  # fmt: skip
        earlier.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
        train.add_argument(
            "--settings", metavar="SECTION", nargs="?", action=_Settings,
            help="show every setting, or those of a section, with type, default and meaning, and stop",
        )  # fmt: skip
        train.add_argument(
            "--print-config", "--print_config", action="store_true",
            help="show the resolved settings as YAML that --config reads, a recipe's with where each is from, and stop",
        )  # fmt: skip
        train.add_argument(
            "--dry-run", "--dry_run", metavar="PROCESSES", nargs="?", const=1, type=int,
            help="try two steps on a small model of the same kind and made-up rows, then tell the memory and time that "
            "the run would take on so many processes (default: 1); no network, and nothing is written",
        )  # fmt: skip
        train.set_defaults(run=run)

    _add_evaluate(command("evaluate", "measure preference margins on held-out pairs", EVALUATE, EVALUATE_EXAMPLES))
    _add_winrate(command("winrate", "tell how often a run wins against an opponent", WINRATE, WINRATE_EXAMPLES))

    report = command(
        "report",
        "write one self-contained HTML page about runs",
        "RUN is the folder of a run, of a demonstration, or one that holds several. The page needs no network.",
    )
    report.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    report.add_argument("--out", type=Path, help="the page (default: report.html in RUN, where there is one)")
    report.set_defaults(run=_report)
    return parser


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", metavar="RUN", type=Path, help="a run's folder, or a table of pairs")
    parser.add_argument("--against", metavar="RUN", type=Path, help="another, of the same pairs")
    parser.add_argument("--by", metavar="ATTRIBUTE", **_MANY, help="subgroups (default: all that the data have)")
    parser.add_argument(
        "--metrics", metavar="NAME", **_MANY,
        help="of margin/sum, margin/avg, margin/reward, log_ratio/margins, accuracy, accuracy/sum and loglik "
        "(default: all that can be told)",
    )  # fmt: skip
    parser.add_argument(
        "--clusters", choices=["annotator", "prompt", "pair"],
        help="what is independent of each other (default: annotators where known, else prompts, else pairs)",
    )  # fmt: skip
    parser.add_argument(
        "--minimum", metavar="N", type=int, default=10,
        help="annotators (or other clusters) below which a subgroup stands apart (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--level", type=float, default=0.95, help="of the intervals (default: %(default)s)")
    parser.add_argument(
        "--orientation", choices=["favoured", "shown"], default="favoured",
        help="calibrate the probability of the response that the policy favours, or that was shown first "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--adjustment", choices=["holm", "benjamini_hochberg"], default="holm",
        help="of the subgroups' p-values (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--replications", metavar="B", type=int, default=2000, help="of the bootstrap (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: %(default)s)")
    parser.add_argument("--shared", action="store_true", help="compare on the pairs of both, where they differ")
    parser.add_argument(
        "--leave-out", action="store_true", help="set pairs aside whose values are not finite, and name them"
    )
    parser.add_argument("--out", type=Path, help="folder of the results (default: RUN's own)")
    parser.add_argument("--device", default="cpu", help="where a policy is scored (default: %(default)s)")
    parser.set_defaults(run=_evaluate)


def _add_winrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN", type=Path, help="a run's folder, or a file as model_outputs.json")
    parser.add_argument(
        "--opponent", metavar="RUN", type=Path,
        help="a run, a policy, or a file of outputs (default: the policy that RUN's preference stage began with)",
    )  # fmt: skip
    parser.add_argument(
        "--compare", metavar="RESULTS", type=Path,
        help="folder of results of another run against this opponent: the difference, paired by prompt",
    )  # fmt: skip
    parser.add_argument("--sample", metavar="N", type=int, default=425, help="held-out prompts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: %(default)s)")
    parser.add_argument(
        "--replications", metavar="B", type=int, default=1000, help="of the bootstrap (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder of the results (default: winrate-OPPONENT in RUN)")
    parser.add_argument("--device", default="cpu", help="where models run (default: %(default)s)")
    how = parser.add_argument_group("the responses")
    how.add_argument("--temperature", type=float, default=1.0, help="0: the likeliest (default: %(default)s)")
    how.add_argument("--top-p", type=float, default=1.0, help="(default: %(default)s)")
    how.add_argument(
        "--max-new-tokens", metavar="T", type=int, help="(default: what max_prompt_length leaves of max_length)"
    )
    how.add_argument("--batch-size", metavar="B", type=int, default=16, help="prompts (default: %(default)s)")
    judge = parser.add_argument_group("the judge")
    judge.add_argument(
        "--judge", metavar="JUDGE", required=True,
        help="URL of an endpoint up to /chat/completions, reward:FOLDER, or a file as annotations.json",
    )  # fmt: skip
    judge.add_argument("--judge-model", metavar="NAME", help="the endpoint's name for the model that judges")
    judge.add_argument(
        "--verdict", choices=["json", "weighted"], default="json",
        help="a verdict with its reason, or the probability of a letter, as AlpacaEval 2.0 (default: %(default)s)",
    )  # fmt: skip
    judge.add_argument(
        "--order", choices=["both", "random"], default="both",
        help="show each pair in both orders, or once in an order by the seed (default: %(default)s)",
    )  # fmt: skip
    key = judge.add_mutually_exclusive_group()
    key.add_argument(
        "--key-variable", metavar="NAME", default="OPENAI_API_KEY", help="environment variable (default: %(default)s)"
    )
    key.add_argument("--no-key", action="store_true", help="the endpoint asks for none")
    judge.add_argument("--max-tokens", metavar="T", type=int, default=512, help="of a verdict (default: %(default)s)")
    judge.add_argument("--requests-per-minute", metavar="R", type=float, help="(default: no limit)")
    judge.add_argument("--concurrency", metavar="K", type=int, default=4, help="requests (default: %(default)s)")
    judge.add_argument("--input-price", metavar="P", type=float, help="per million tokens")
    judge.add_argument("--output-price", metavar="P", type=float, help="per million tokens")
    judge.add_argument("--budget", metavar="COST", type=float, help="do not begin where the estimated cost is above")
    parser.set_defaults(run=_winrate)


def _add_truth(parser: argparse.ArgumentParser) -> None:
    truth = parser.add_argument_group("the truth")
    truth.add_argument("--fixed", metavar="NAME=VALUE", **_MANY, help="coefficients that do not vary")
    truth.add_argument("--random", metavar="NAME=FAMILY(A,B)", **_MANY, help="coefficients that vary over individuals")
    truth.add_argument(
        "--correlation", metavar="NAME,NAME=R", **_MANY,
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
        "--attribute", metavar="NAME=FAMILY(A,B)", **_MANY,
        help="distribution of an attribute (default: normal(0, 1)), or its value for each alternative: asc.1=0,1,0",
    )  # fmt: skip


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    _add_truth(parser)
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same choices (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("choices.csv"),
        help="the table, .csv, .csv.gz or .parquet (default: %(default)s); the truth is choices.truth.json beside it",
    )  # fmt: skip
    parser.set_defaults(run=_simulate)


def _add_study(parser: argparse.ArgumentParser) -> None:
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


def _add_fit(parser: argparse.ArgumentParser) -> None:
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
    model.add_argument("--fixed", metavar="NAME", **_MANY, help="attributes with one coefficient for all")
    model.add_argument("--random", metavar="NAME=FAMILY", **_MANY, help="attributes whose coefficient varies")
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
    how.add_argument("--hold", metavar="PARAMETER=VALUE", **_MANY, help="parameters that keep a value, time.scale=1")
    how.add_argument(
        "--bounds",
        metavar="PARAMETER=LOW..HIGH",
        **_MANY,
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


FLAGS = ("config", "recipe", "resume", "overwrite", "settings", "print-config", "dry-run", "help")


def _overrides(parser: argparse.ArgumentParser, rest: Sequence[str]) -> list[str]:
    """``--section.setting value`` and ``--section.setting=value`` as ``section.setting=value``."""
    found: list[str] = []
    words = iter(rest)
    word = next(words, None)
    while word is not None:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            parser.error(f"unrecognized argument: {word}; settings are --section.setting value")
        if near := difflib.get_close_matches(name, FLAGS, n=1, cutoff=0.8):
            parser.error(f"unrecognized argument: --{name}; try --{near[0]}")
        word = next(words, None)
        if not equals:
            if word is None or word.startswith("--"):
                parser.error(f"no value for --{name}; a value that begins with -- is written --{name}=VALUE")
            value, word = word, next(words, None)
        found.append(f"{name}={value}")
    return found


def _again(words: Sequence[str]) -> str:
    """The command that goes on with this one's run."""
    arguments = [*(word for word in words if word not in ("--overwrite", "--resume")), "--resume"]
    launcher = "mixlogit-align"
    if "RANK" in os.environ:
        processes = f"--standalone --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', '1')}"
        alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
        launcher = f"torchrun {processes if alone else '... (as before, on every node)'} -m mixlogit_align"
    return f"{launcher} {shlex.join(arguments)}"


def _demo(options: argparse.Namespace) -> int:
    from mixlogit_align.demo import run_demo

    return PASSED if run_demo(options.out, quick=options.quick) else FAILED


def _simulate(options: argparse.Namespace) -> int:
    from mixlogit_align.econometrics.command import simulate

    simulate(options)
    return PASSED


def _fit(options: argparse.Namespace) -> int:
    from mixlogit_align.econometrics.command import fit

    return PASSED if fit(options) else FAILED


def _study(options: argparse.Namespace) -> int:
    from mixlogit_align.econometrics.command import study

    return PASSED if study(options) else FAILED


def _sft(options: argparse.Namespace) -> int:
    return _align(options, supervised_only=True)


def _train(options: argparse.Namespace) -> int:
    return _align(options, supervised_only=False)


def _align(options: argparse.Namespace, *, supervised_only: bool) -> int:
    import contextlib
    import dataclasses
    import warnings

    from mixlogit_align.alignment import RichProgress, dump_config, load_config, run_alignment
    from mixlogit_align.alignment.recipes import load_recipe
    from mixlogit_align.report import write_report

    recipe = None if options.recipe is None else load_recipe(options.recipe)
    config = load_config(options.config, options.settings) if recipe is None else recipe.config(options.settings)
    if supervised_only:
        if config.sft is None:
            raise InvalidInputError(
                explain(
                    str(options.config or options.recipe),
                    got="no section `sft:`",
                    expected="the settings of the supervised stage",
                    hint="adding `sft: {}`, or `mixlogit-align train` for the preference stage alone",
                )
            )
        config = dataclasses.replace(config, preference=None)
    is_main = _rank() == 0
    if options.print_config:
        if is_main:
            given = [*options.settings, *(["preference=null"] if supervised_only else [])]
            print(dump_config(config) if recipe is None else recipe.annotated(config, given), end="")
        return PASSED
    if options.dry_run is not None:
        return _dry_run(config, options.dry_run)
    try:
        with warnings.catch_warnings(), RichProgress() if is_main else contextlib.nullcontext() as progress:
            if not is_main:
                warnings.simplefilter("ignore")  # the main process has them, too
            result = run_alignment(config, progress=progress, overwrite=options.overwrite, resume=options.resume)
    except KeyboardInterrupt:
        if "RANK" in os.environ:  # torchrun passes the signal on once more
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if is_main:
            print(f"interrupted; the run so far is in {config.out}. To go on:\n  {options.again}", file=sys.stderr)
        return INTERRUPTED
    if is_main:
        _print_result(config, result)
        write_report([result.path], result.path / "report.html")
        print(f"run folder: {result.path}, with a report.html ({result.seconds:.0f} s)")
    return PASSED


def _dry_run(config: AlignmentConfig, processes: int) -> int:
    from mixlogit_align.alignment.dry_run import dry_run

    if "RANK" in os.environ:
        raise InvalidInputError(
            explain(
                "--dry-run", got="torchrun", expected="one process", hint="`mixlogit-align train --dry-run PROCESSES`"
            )
        )
    print(dry_run(config, processes=processes))
    return PASSED


def _rows_of(file: Path) -> str:
    """How many comparisons a run had, and the rows that were left out, as its ``data.json`` has them."""
    import json

    if not file.exists():
        return ""
    data = json.loads(file.read_text(encoding="utf-8"))
    sizes = {split: report["prompts"]["texts"] for split, report in data["tokenization"].items()}
    left_out = [f"{rule} {count}" for rule, count in (data["reader"].get("bad_rows") or {}).items()]
    aside = f"; rows left out: {', '.join(left_out)}" if left_out else ""
    return f", {sizes['train']} comparisons to train on, {sizes['eval']} held out{aside}"


def _print_result(config: AlignmentConfig, result: RunResult) -> None:
    print(f"data: {config.data.source}{_rows_of(result.path / 'data.json')}")
    for stage, metrics in result.metrics.items():
        print(
            f"{stage}: held-out "
            + ", ".join(f"{name} {metrics[name]:.4f}" for name in ("loss", "rewards/accuracies") if name in metrics)
        )
    if result.strength is not None:
        now, first = result.strength, result.strength["initial"]
        at_first = {name: f" (at first {value:.4f})" for name in ("mean", "sd") if (value := first[name]) is not None}
        known = [f"{name} {now[name]:.4f}{at_first.get(name, '')}" for name in ("mean", "sd") if now[name] is not None]
        print(f"strength: {', '.join([now['family'] or now['update'], *known])}")
    for alarm in result.alarms:
        print(f"ALARM {alarm['name']} ({alarm['stage']}, step {alarm['step']}): {alarm['message']}")


def _evaluate(options: argparse.Namespace) -> int:
    from mixlogit_align.alignment import RichProgress
    from mixlogit_align.alignment.evaluation import as_text, evaluate_run

    with RichProgress() as progress:
        found = evaluate_run(
            options.policy,
            options.against,
            out=options.out,
            metrics=options.metrics or None,
            attributes=options.by or None,
            clusters=options.clusters,
            minimum=options.minimum,
            level=options.level,
            orientation=options.orientation,
            adjustment=options.adjustment,
            num_replications=options.replications,
            seed=options.seed,
            mismatched="shared" if options.shared else "refuse",
            non_finite="leave_out" if options.leave_out else "refuse",
            device=options.device,
            progress=progress,
        )
    print(as_text(found), end="")
    print(f"written to {found.out}")
    return PASSED


def _winrate(options: argparse.Namespace) -> int:
    from mixlogit_align.alignment import RichProgress
    from mixlogit_align.alignment.winrate import GenerationConfig, judge_run, make_judge
    from mixlogit_align.alignment.winrate.command import as_text

    judge = make_judge(
        options.judge,
        form=options.verdict,
        order=options.order,
        seed=options.seed,
        budget=options.budget,
        device=options.device,
        model=options.judge_model,
        key_variable=None if options.no_key else options.key_variable,
        max_tokens=options.max_tokens,
        requests_per_minute=options.requests_per_minute,
        concurrency=options.concurrency,
        input_price=options.input_price,
        output_price=options.output_price,
    )
    with RichProgress() as progress:
        found = judge_run(
            options.model,
            options.opponent,
            judge,
            sample=options.sample,
            seed=options.seed,
            generation=GenerationConfig(
                temperature=options.temperature,
                top_p=options.top_p,
                max_new_tokens=options.max_new_tokens,
                batch_size=options.batch_size,
                seed=options.seed,
            ),
            compare=options.compare,
            num_replications=options.replications,
            out=options.out,
            device=options.device,
            progress=progress,
            told=print,
        )
    print(as_text(found), end="")
    return PASSED


def _report(options: argparse.Namespace) -> int:
    from mixlogit_align.report import write_report

    if options.out is None and len(options.runs) > 1:
        raise InvalidInputError(
            explain(
                "--out",
                got=f"nothing, with {len(options.runs)} RUNs",
                expected="a page for all of them: the report.html in a run's folder is about that run",
                hint="--out report.html",
            )
        )
    only = options.runs[0]
    out = options.out or (only.parent if only.is_file() else only) / "report.html"
    found = write_report(options.runs, out)
    for check in found:
        print({True: "passed", False: "FAILED", None: "open"}[check.passed], check.text)
    print(f"report: {out}")
    return FAILED if any(check.passed is False for check in found) else PASSED


if __name__ == "__main__":
    sys.exit(main())
