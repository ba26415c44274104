"""Settings of the data sets, one section a reader, told apart by ``source``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mixlogit_align.alignment.checks import not_negative, positive, require


@dataclass(frozen=True, kw_only=True)
class SimulatedData:
    """Simulated annotators who choose between responses of known utility.

    Parameters
    ----------
    num_train, num_eval : int
        Number of comparisons in each split.
    num_annotators : int
        Annotators; each has one strength and judges in both splits.
    strength_family : {"lognormal", "gamma"}
        Family of the annotators' strength; at ``strength_cv`` 0 both are a point.
    strength_mean, strength_cv : float
        Mean of the strength, and its standard deviation over its mean.
    utility_scale : float
        Standard deviation of the utility of one response, in the unit that makes the strength
        comparable with a preference loss's: nats of log-ratio.
    seed : int
        Fixes prompts, responses, annotators and choices. Prompts and responses do not depend on the
        strength's distribution, so that two runs that differ in it share everything but the choices.
    """

    source: Literal["simulated"] = "simulated"
    num_train: int = 8192
    num_eval: int = 1024
    num_annotators: int = 256
    strength_family: Literal["lognormal", "gamma"] = "lognormal"
    strength_mean: float = 0.1
    strength_cv: float = 1.0
    utility_scale: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        positive(num_train=self.num_train, num_eval=self.num_eval, num_annotators=self.num_annotators)
        positive(strength_mean=self.strength_mean, utility_scale=self.utility_scale)
        not_negative(strength_cv=self.strength_cv)


@dataclass(frozen=True, kw_only=True)
class HHData:
    """Anthropic HH pairs: a folder with ``train.jsonl.gz`` and ``test.jsonl.gz`` (or uncompressed).

    Parameters
    ----------
    folder : str
        Where the files lie. Environment variables are expanded; a relative path is taken from the
        working folder.
    max_train, max_eval : int or None
        Keep a random part of this size (fixed by ``seed``); None keeps all.
    seed : int
    """

    source: Literal["hh"] = "hh"
    folder: str = "$MIXLOGIT_DATA/hh_rlhf"
    max_train: int | None = None
    max_eval: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        positive(**{k: v for k in ("max_train", "max_eval") if (v := getattr(self, k)) is not None})


@dataclass(frozen=True, kw_only=True)
class HumourData:
    """Pairs of short texts with vote counts: a folder with ``items.csv.gz`` and ``pair_counts.csv.gz``.

    Parameters
    ----------
    folder : str
        As for `HHData`.
    eval_fraction : float
        Share of the texts held out. Pairs of two held-out texts are evaluated, pairs of two others
        are trained on; pairs across the two are set aside and counted.
    max_train, max_eval : int or None
        Keep a random part of this many pairs.
    seed : int
    """

    source: Literal["humour"] = "humour"
    folder: str = "$MIXLOGIT_DATA/humour_pairs"
    eval_fraction: float = 0.15
    max_train: int | None = None
    max_eval: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.eval_fraction < 1, "eval_fraction", self.eval_fraction, "a share between 0 and 1")
        positive(**{k: v for k in ("max_train", "max_eval") if (v := getattr(self, k)) is not None})


DataConfig = SimulatedData | HHData | HumourData
