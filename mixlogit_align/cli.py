"""The command ``mixlogit-align``. What a sub-command needs is imported when it runs, so that help is instant."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from mixlogit_align import __version__
from mixlogit_align.errors import InvalidInputError, MixlogitError, explain

PASSED, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

EXAMPLES = """examples:
  mixlogit-align demo                                  everything once, on simulated choices; then open the report
  mixlogit-align sft --config run.yaml --out runs/sft  the supervised stage of a configuration
  mixlogit-align train --config run.yaml --preference.optim.lr 1e-6
  mixlogit-align report runs/dpo runs/gamma --out report.html

exit status:
  0 done, every check passed; 1 a check or a run failed; 2 wrong usage or settings; 130 interrupted by Ctrl-C
"""

EXAMPLE_CONFIG = """\
out: runs/first                   # the run folder
name: first
data:
  source: simulated               # or hh, humour: with folder, max_train, max_eval in place of what follows
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
  strength: {family: gamma, lr: 1e-2}    # or point (DPO), lognormal
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
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    options.settings = _overrides(parser, rest) if options.run in (_sft, _train) else []
    if rest and not options.settings:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        status: int = options.run(options)
    except KeyboardInterrupt:
        print("interrupted; what was done so far is kept", file=sys.stderr)
        return INTERRUPTED
    except (InvalidInputError, OSError) as error:
        print(f"mixlogit-align: error: {error}", file=sys.stderr)
        return USAGE
    except MixlogitError as error:
        print(f"mixlogit-align: failed: {error}", file=sys.stderr)
        return FAILED
    return status


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="mixlogit-align",
        description="Mixed logit for choices and for preference alignment.",
        epilog=EXAMPLES,
        formatter_class=plain,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, what: str, more: str, epilog: str | None = None) -> argparse.ArgumentParser:
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

    for name, what, run in (
        ("sft", "run the supervised stage of a configuration", _sft),
        ("train", "run the stages of a configuration", _train),
    ):
        train = command(
            name,
            what,
            "Any setting of the file can be replaced: --section.setting value, for example --out runs/two\n"
            "or --preference.optim.lr 1e-6.",
            f"a complete configuration:\n\n{textwrap.indent(EXAMPLE_CONFIG, '  ')}",
        )
        train.add_argument("--config", type=Path, required=True, help="YAML file of settings")
        train.add_argument("--overwrite", action="store_true", help="replace an earlier run in the same folder")
        train.set_defaults(run=run)

    report = command(
        "report",
        "write one self-contained HTML page about runs",
        "RUN is the folder of a run, of a demonstration, or one that holds several. The page needs no network.",
    )
    report.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    report.add_argument("--out", type=Path, help="the page (default: report.html in the first RUN)")
    report.set_defaults(run=_report)
    return parser


def _overrides(parser: argparse.ArgumentParser, rest: Sequence[str]) -> list[str]:
    """``--section.setting value`` and ``--section.setting=value`` as ``section.setting=value``."""
    found: list[str] = []
    words = iter(rest)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            parser.error(f"unrecognized argument: {word}; settings are --section.setting value")
        if not equals:
            value = next(words, "")
            if not value:
                parser.error(f"no value for --{name}")
        found.append(f"{name}={value}")
    return found


def _demo(options: argparse.Namespace) -> int:
    from mixlogit_align.demo import run_demo

    return PASSED if run_demo(options.out, quick=options.quick) else FAILED


def _sft(options: argparse.Namespace) -> int:
    return _align(options, supervised_only=True)


def _train(options: argparse.Namespace) -> int:
    return _align(options, supervised_only=False)


def _align(options: argparse.Namespace, *, supervised_only: bool) -> int:
    import dataclasses

    from mixlogit_align.alignment import RichProgress, load_config, run_alignment
    from mixlogit_align.report import write_report

    config = load_config(options.config, options.settings)
    if supervised_only:
        if config.sft is None:
            raise InvalidInputError(
                explain(
                    str(options.config),
                    got="no section `sft:`",
                    expected="the settings of the supervised stage",
                    hint="adding `sft: {}`, or `mixlogit-align train` for the preference stage alone",
                )
            )
        config = dataclasses.replace(config, preference=None)
    with RichProgress() as progress:
        result = run_alignment(config, progress=progress, overwrite=options.overwrite)
    print(f"data: {config.data.source}")
    for stage, metrics in result.metrics.items():
        print(
            f"{stage}: held-out "
            + ", ".join(f"{name} {metrics[name]:.4f}" for name in ("loss", "accuracy") if name in metrics)
        )
    write_report([result.path], result.path / "report.html")
    print(f"run folder: {result.path}, with a report.html ({result.seconds:.0f} s)")
    return PASSED


def _report(options: argparse.Namespace) -> int:
    from mixlogit_align.report import write_report

    out = options.out or options.runs[0] / "report.html"
    found = write_report(options.runs, out)
    for check in found:
        print({True: "passed", False: "FAILED", None: "open"}[check.passed], check.text)
    print(f"report: {out}")
    return FAILED if any(check.passed is False for check in found) else PASSED


if __name__ == "__main__":
    sys.exit(main())
