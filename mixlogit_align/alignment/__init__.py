"""Preference alignment of language models with a distribution of preference strength.

`mixdpo_loss` and `sequence_logprobs` fit into any training loop; `run_alignment` runs a whole configuration.
Importing this package does not import transformers.
"""

from __future__ import annotations

from mixlogit_align.alignment.checkpoint import CheckpointError
from mixlogit_align.alignment.config import AlignmentConfig
from mixlogit_align.alignment.demo import demo_runs
from mixlogit_align.alignment.logratios import SequenceLogProbs, sequence_logprobs
from mixlogit_align.alignment.losses import MixDPOLoss, PreferenceLoss, mixdpo_loss
from mixlogit_align.alignment.progress import RichProgress
from mixlogit_align.alignment.runner import RunResult, export_checkpoint, run_alignment
from mixlogit_align.alignment.settings import dump_config, load_config, parse_config
from mixlogit_align.alignment.trainer import NonFiniteLossError

__all__ = [
    "AlignmentConfig",
    "CheckpointError",
    "MixDPOLoss",
    "NonFiniteLossError",
    "PreferenceLoss",
    "RichProgress",
    "RunResult",
    "SequenceLogProbs",
    "demo_runs",
    "dump_config",
    "export_checkpoint",
    "load_config",
    "mixdpo_loss",
    "parse_config",
    "run_alignment",
    "sequence_logprobs",
]
