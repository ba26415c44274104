"""Preference margins on held-out pairs: overall, by subgroup, calibrated, and held against another run's.

Everything is worked out from a `PairTable`, one row a judged pair: of a finished run (`run_pairs`), of any policy
(`policy_pairs`), of a file (`read_pairs`). `evaluate` measures one policy, `gains` one against another, and
`evaluate_run` does both and writes them.
"""

from __future__ import annotations

from mixlogit_align.alignment.evaluation.averages import MINIMUM, Average, Estimate
from mixlogit_align.alignment.evaluation.calibration import Calibration, ReliabilityBin, calibrate
from mixlogit_align.alignment.evaluation.clusters import Clusters, find_clusters
from mixlogit_align.alignment.evaluation.command import Evaluated, as_json, as_text, evaluate_run
from mixlogit_align.alignment.evaluation.metrics import METRICS, pair_metrics
from mixlogit_align.alignment.evaluation.paired import Gain, Gains, gains
from mixlogit_align.alignment.evaluation.pairs import PairTable, read_pairs, write_pairs
from mixlogit_align.alignment.evaluation.scoring import (
    held_out_pairs,
    policy_pairs,
    read_strength,
    run_pairs,
    with_strength,
)
from mixlogit_align.alignment.evaluation.summary import Evaluation, evaluate

__all__ = [
    "METRICS",
    "MINIMUM",
    "Average",
    "Calibration",
    "Clusters",
    "Estimate",
    "Evaluated",
    "Evaluation",
    "Gain",
    "Gains",
    "PairTable",
    "ReliabilityBin",
    "as_json",
    "as_text",
    "calibrate",
    "evaluate",
    "evaluate_run",
    "find_clusters",
    "gains",
    "held_out_pairs",
    "pair_metrics",
    "policy_pairs",
    "read_pairs",
    "read_strength",
    "run_pairs",
    "with_strength",
    "write_pairs",
]
