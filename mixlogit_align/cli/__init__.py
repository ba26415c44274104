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
from mixlogit_align.cli import choices, measures, strength
from mixlogit_align.cli.shared import FAILED, INTERRUPTED, PASSED, USAGE
from mixlogit_align.errors import IntegrationError, InvalidInputError, MixlogitError, explain

if TYPE_CHECKING:
    from mixlogit_align.alignment import AlignmentConfig, RunResult

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
  mixlogit-align strength runs/gamma
  mixlogit-align report runs/dpo runs/gamma --out report.html

exit status:
  0 done, every check passed; 1 a check or a run failed, or a fit did not converge;
  2 wrong usage, settings or data; 130 interrupted by Ctrl-C
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


REPORT = """\
RUN is the folder of a run, finished or not, of a demonstration, or one that holds several. The verdict comes first:
did held-out losses fall, are gains over other runs and win rates above chance, were there alarms. What evaluate,
winrate and strength have written in a run's folder is shown. The page needs no network, and is below 5 MB."""

REPORT_EXAMPLES = """examples:
  mixlogit-align report runs/gamma                     writes runs/gamma/report.html
  mixlogit-align report runs/dpo runs/gamma --out both.html
  mixlogit-align report runs --figures figures         also every figure and table as a file of its own

exit status: 0 done, no check failed (some may be open); 1 a check failed: a run, its held-out loss, or a run that is
below what it was held against; 2 no run there, damaged files, or a page that cannot be written
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

    choices.add_simulate(
        command("simulate", "write choices whose truth is known", choices.SIMULATE, choices.SIMULATE_EXAMPLES)
    )
    choices.add_study(
        command("study", "recover a known truth many times: bias and coverage", choices.STUDY, choices.STUDY_EXAMPLES)
    )
    choices.add_fit(command("fit", "estimate a mixed logit from a table of choices", choices.FIT, choices.FIT_EXAMPLES))

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
        earlier.add_argument(
            "--overwrite", action="store_true",
            help="replace the run in the folder, with its results; refused where the folder holds anything else",
        )  # fmt: skip
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

    measures.add_evaluate(
        command(
            "evaluate", "measure preference margins on held-out pairs", measures.EVALUATE, measures.EVALUATE_EXAMPLES
        )
    )
    measures.add_winrate(
        command("winrate", "tell how often a run wins against an opponent", measures.WINRATE, measures.WINRATE_EXAMPLES)
    )

    strength.add_strength(
        command("strength", "tell how strengths vary, and what is identified of it", strength.STRENGTH,
                strength.STRENGTH_EXAMPLES)
    )  # fmt: skip

    report = command(
        "report",
        "write one self-contained HTML page about runs",
        REPORT,
        REPORT_EXAMPLES,
    )
    report.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    report.add_argument(
        "--out", type=Path, help="the page (default: report.html in RUN, where there is one, else beside the figures)"
    )
    report.add_argument(
        "--figures", metavar="FOLDER", type=Path,
        help="also write every figure as PDF, SVG and PNG, and every table as text, HTML and LaTeX",
    )  # fmt: skip
    report.set_defaults(run=_report)
    return parser


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
        if result.was_finished:
            print(f"already finished: nothing was trained, and what follows is read from {result.path}")
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


def _report(options: argparse.Namespace) -> int:
    from mixlogit_align.report import read_evidence, write_figures, write_report

    if options.out is None and len(options.runs) > 1 and options.figures is None:
        raise InvalidInputError(
            explain(
                "--out",
                got=f"nothing, with {len(options.runs)} RUNs",
                expected="a page for all of them: the report.html in a run's folder is about that run",
                hint="--out report.html",
            )
        )
    only = options.runs[0]
    place = options.figures if len(options.runs) > 1 else only.parent if only.is_file() else only
    out = options.out or place / "report.html"
    found = write_report(options.runs, out)
    for check in found:
        print({True: "passed", False: "FAILED", None: "open"}[check.passed], check.text)
    print(f"report: {out}")
    if options.figures is not None:
        written, left_out = write_figures(read_evidence(options.runs), options.figures)
        for missing in left_out:
            print(f"left out: {missing.what}: {missing.why}")
        print(f"figures and tables: {len(written)} files in {options.figures}")
    return FAILED if any(check.passed is False for check in found) else PASSED
