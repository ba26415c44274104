"""The commands that measure a run: ``evaluate`` and ``winrate``. What one needs is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from mixlogit_align.cli.shared import MANY, PASSED

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

Judges:
  http://HOST/v1     an endpoint, up to /chat/completions, which sees each pair in both orders. Its key is taken from an
                     environment variable, and appears nowhere else; what the requests will cost is told before the
                     first is sent.
  reward:FOLDER      a Hugging Face sequence classifier with one output. It scores prompt and response by its chat
                     template, or as a pair of texts where it has none, and nothing is cut. Its preferences are soft,
                     sigma(reward - opponent's reward): the win rate is their mean, not the share of prompts won.
  annotations.json   stored preferences between the very responses, a list of {"instruction": PROMPT, "output_1":
                     OPPONENT'S, "generator_1": NAME, "output_2": RUN'S, "generator_2": NAME, "annotator": JUDGE,
                     "preference": 1 to 2}: 1 is for output_1, 2 for output_2, and null no verdict."""

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


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """The options of ``mixlogit-align evaluate``."""
    parser.add_argument("policy", metavar="RUN", type=Path, help="a run's folder, or a table of pairs")
    parser.add_argument("--against", metavar="RUN", type=Path, help="another, of the same pairs")
    parser.add_argument("--by", metavar="ATTRIBUTE", **MANY, help="subgroups (default: all that the data have)")
    parser.add_argument(
        "--metrics", metavar="NAME", **MANY,
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


def add_winrate(parser: argparse.ArgumentParser) -> None:
    """The options of ``mixlogit-align winrate``."""
    parser.add_argument("model", metavar="RUN", type=Path, help="a run's folder, or a file as model_outputs.json")
    parser.add_argument(
        "--opponent", metavar="RUN", type=Path,
        help="a run, a policy, or a file of outputs (default: the policy that RUN's preference stage began with)",
    )  # fmt: skip
    parser.add_argument(
        "--compare", metavar="RESULTS", type=Path,
        help="folder of results of another run against this opponent: the difference, paired by prompt",
    )  # fmt: skip
    parser.add_argument(
        "--sample", metavar="N", type=int, help="held-out prompts (default: 425, or all where there are fewer)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: %(default)s)")
    parser.add_argument(
        "--replications", metavar="B", type=int, default=1000, help="of the bootstrap (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder of the results (default: winrate-OPPONENT in RUN)")
    parser.add_argument(
        "--overwrite", action="store_true",
        help="replace results there by another judge or other settings, which are refused otherwise; responses that "
        "fit are not made again",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="where models run (default: %(default)s)")
    how = parser.add_argument_group("the responses")
    how.add_argument("--temperature", type=float, default=1.0, help="0: the likeliest (default: %(default)s)")
    how.add_argument("--top-p", type=float, default=1.0, help="(default: %(default)s)")
    how.add_argument(
        "--max-new-tokens", metavar="T", type=int, help="(default: what max_prompt_length leaves of max_length)"
    )
    how.add_argument(
        "--batch-size", metavar="B", type=int, default=16,
        help="prompts answered at a time; draws go by seed and batch, so another size makes other responses "
        "(default: %(default)s)",
    )  # fmt: skip
    judge = parser.add_argument_group("the judge")
    judge.add_argument(
        "--judge", metavar="JUDGE", required=True,
        help="URL of an endpoint, reward:FOLDER, or a file as annotations.json: see above",
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
            overwrite=options.overwrite,
            device=options.device,
            progress=progress,
            told=print,
        )
    print(as_text(found), end="")
    return PASSED
