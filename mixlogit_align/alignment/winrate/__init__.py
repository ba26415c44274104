"""Win rates of a model against an opponent: plain, and at equal length; whose verdicts; how sure they are."""

from __future__ import annotations

from mixlogit_align.alignment.winrate.alpaca_eval import (
    leaderboard_row,
    read_annotations,
    read_leaderboard,
    read_outputs,
    read_stored_judge,
    read_weights,
    write_annotations,
    write_leaderboard,
    write_outputs,
)
from mixlogit_align.alignment.winrate.command import JudgedRun, judge_run, make_judge
from mixlogit_align.alignment.winrate.comparison import PairedComparison, compare_results
from mixlogit_align.alignment.winrate.endpoint import EndpointConfig, EndpointError
from mixlogit_align.alignment.winrate.endpoint_judge import CostEstimate, EndpointJudge, Usage
from mixlogit_align.alignment.winrate.generation import Generated, GenerationConfig, generate, sample_prompts
from mixlogit_align.alignment.winrate.judges import (
    Judge,
    Judged,
    JudgeError,
    RewardJudge,
    TableJudge,
    Verdict,
    judge_outputs,
)
from mixlogit_align.alignment.winrate.length_control import LengthControl, LengthWeights, fit_length_control
from mixlogit_align.alignment.winrate.pairs import Outputs, ResponsePair, pair_outputs
from mixlogit_align.alignment.winrate.preferences import Preferences, WinRate, win_rate
from mixlogit_align.alignment.winrate.uncertainty import (
    BootstrapWinRates,
    Estimate,
    SignFlipComparison,
    bootstrap_win_rates,
    sign_flip,
)

__all__ = [
    "BootstrapWinRates",
    "CostEstimate",
    "EndpointConfig",
    "EndpointError",
    "EndpointJudge",
    "Estimate",
    "Generated",
    "GenerationConfig",
    "Judge",
    "Judged",
    "JudgeError",
    "JudgedRun",
    "LengthControl",
    "LengthWeights",
    "Outputs",
    "PairedComparison",
    "Preferences",
    "ResponsePair",
    "RewardJudge",
    "SignFlipComparison",
    "TableJudge",
    "Usage",
    "Verdict",
    "WinRate",
    "bootstrap_win_rates",
    "compare_results",
    "fit_length_control",
    "generate",
    "judge_outputs",
    "judge_run",
    "leaderboard_row",
    "make_judge",
    "pair_outputs",
    "read_annotations",
    "read_leaderboard",
    "read_outputs",
    "read_stored_judge",
    "read_weights",
    "sample_prompts",
    "sign_flip",
    "win_rate",
    "write_annotations",
    "write_leaderboard",
    "write_outputs",
]
