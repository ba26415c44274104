"""Typed settings of an alignment run, validated where they are made.

A section that can be one of several kinds (the data, the model, the loss, the strength and how it is updated, the
integration rule) is told apart by its first field, e.g. ``source: hh`` or ``family: gamma``. `settings` reads and
writes them.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

from mixlogit_align.alignment.checks import counts, positive, require
from mixlogit_align.alignment.data.config import DataConfig, SimulatedData
from mixlogit_align.alignment.loss_config import LossConfig, MixDPO
from mixlogit_align.errors import InvalidInputError, explain

if typing.TYPE_CHECKING:
    from mixlogit_align.distributions import LearnableMixing

# --- policy ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NewModel:
    """A GPT-NeoX built from these sizes, with random weights, and a byte-level BPE tokenizer.

    Parameters
    ----------
    hidden_size, num_layers, num_heads : int
        ``hidden_size`` must be divisible by ``num_heads``.
    max_positions : int
        Longest sequence; at least the tokenization's ``max_length``.
    vocab_size : int
        Size of the tokenizer trained on the training texts; 258 is bytes and two special tokens alone.
    """

    kind: Literal["new"] = "new"
    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    max_positions: int = 512
    vocab_size: int = 384

    def __post_init__(self) -> None:
        counts(hidden_size=self.hidden_size, num_layers=self.num_layers, num_heads=self.num_heads)
        counts(max_positions=self.max_positions, vocab_size=self.vocab_size)
        require(
            self.hidden_size % self.num_heads == 0,
            "hidden_size",
            self.hidden_size,
            f"a multiple of num_heads={self.num_heads}",
        )
        require(
            self.vocab_size >= 258,
            "vocab_size",
            self.vocab_size,
            "at least 258: 256 bytes, the padding and the end-of-text token",
        )


@dataclass(frozen=True, kw_only=True)
class PretrainedModel:
    """A causal language model and its tokenizer.

    Parameters
    ----------
    path : str
        A Hugging Face folder, or a hub name.
    """

    kind: Literal["pretrained"] = "pretrained"
    path: str


ModelConfig = NewModel | PretrainedModel


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters, trained in place of the policy's weights; see `mixlogit_align.alignment.adapters`.

    Parameters
    ----------
    rank : int
        Of the change that an adapter makes to its layer.
    alpha : int
        The change is scaled by ``alpha / rank``.
    targets : tuple of str
        Names of the linear layers that get one, e.g. ``q_proj``; "all" alone means every one in the transformer blocks.
    export : {"merged", "adapter"}
        What a run leaves: the policy with the changes added to its weights, as ``policy/``; or the adapters alone, as
        ``adapter/``, for peft to load beside the pretrained model.
    """

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ("all",)
    export: Literal["merged", "adapter"] = "merged"

    def __post_init__(self) -> None:
        counts(rank=self.rank, alpha=self.alpha)
        require(
            len(self.targets) > 0 and (self.targets == ("all",) or "all" not in self.targets),
            "targets",
            self.targets,
            "names of linear layers, or all alone",
            "`targets: [all]`",
        )


@dataclass(frozen=True, kw_only=True)
class TokenizationConfig:
    """The truncation policy; see `mixlogit_align.alignment.tokenization`.

    Parameters
    ----------
    max_length : int
        Most tokens in prompt and response together, end-of-text included.
    max_prompt_length : int
        Tokens that a prompt keeps for certain when the two do not fit; at most ``max_length - 1``.
    truncation : {"keep_end", "keep_start", "paper", "refuse"}
        Which part of a prompt that is cut survives (responses are cut at their end); or what the public DPO reference
        code does; or an error where anything would be cut.
    bos : {"tokenizer", "never"}
        What precedes a plain prompt: the beginning-of-text token where the tokenizer puts one before a text by itself,
        as Llama's and Gemma's do, or nothing (the reference code's way). Conversations have their template's.
    chat_date : str
        ISO date that a chat template writes where it would write the day's, which would change the data overnight.
    """

    max_length: int = 128
    max_prompt_length: int = 64
    truncation: Literal["keep_end", "keep_start", "paper", "refuse"] = "keep_end"
    bos: Literal["tokenizer", "never"] = "tokenizer"
    chat_date: str = "2024-07-26"

    def __post_init__(self) -> None:
        counts(max_prompt_length=self.max_prompt_length, max_length=self.max_length)
        require(
            self.max_prompt_length < self.max_length,
            "max_prompt_length",
            self.max_prompt_length,
            f"below max_length={self.max_length}, so that no response is emptied",
        )
        require(_is_date(self.chat_date), "chat_date", self.chat_date, "a date as in 2024-07-26")


def _is_date(text: str) -> bool:
    try:
        return bool(date.fromisoformat(text))
    except ValueError:
        return False


# --- strength and integration ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LearnedUpdate:
    """The strength takes a gradient step of its own with every step of the policy.

    Parameters
    ----------
    lr : float
        Its learning rate. The optimisers normalise the gradient away, so this rate and the number of steps, more than
        the gradient, say how far the strength goes: about `constant_gradient_drift` of ``strength.json`` where the
        gradient is constant, farther under RMSprop where it grows.
    max_grad_norm : float
        The strength's gradient norm is clipped here, apart from the policy's.
    """

    kind: Literal["learned"] = "learned"
    lr: float = 1e-4
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        positive(lr=self.lr, max_grad_norm=self.max_grad_norm)


@dataclass(frozen=True, kw_only=True)
class FrozenUpdate:
    """The strength stays where it starts (the paper's ablation; for a point, DPO)."""

    kind: Literal["frozen"] = "frozen"


@dataclass(frozen=True, kw_only=True)
class SolvedUpdate:
    """The strength is set, every so many steps, to its maximum of likelihood on recent log-ratio differences.

    See `mixlogit_align.alignment.strength.solve_strength` for what that means and does not mean. Log-ratio differences
    and strength are identified by their product alone, and the spread by little: without bounds the likelihood can run
    away, so the search is kept between these, and a solve that ends at one says so (metric ``strength/at_bound``).

    Parameters
    ----------
    every_steps : int
        Steps from one solution to the next.
    buffer_examples : int
        The most recent comparisons, with the log-ratio differences they had when they were trained on.
    max_mean_factor : float
        The mean strength stays within this factor of where it started, above and below. From the paper's start of
        0.12, a factor of 5 spans 0.024 to 0.6, and so most betas in use for DPO. 1 holds the mean, so that the spread
        alone is solved for.
    min_cv, max_cv : float
        Bounds of the coefficient of variation (standard deviation over mean), which is held where they are equal; a
        point has none. At 0.05 no choice probability differs by more than 0.0005 from a point's (by its second-order
        term). At 2 one strength in twenty is above 8 times the median (LogNormal); a policy can make up for a still
        wider one by the shape of its log-ratios, so that the likelihood hardly holds it back.
    """

    kind: Literal["solved"] = "solved"
    every_steps: int = 20
    buffer_examples: int = 4096
    max_mean_factor: float = 5.0
    min_cv: float = 0.05
    max_cv: float = 2.0

    def __post_init__(self) -> None:
        counts(every_steps=self.every_steps, buffer_examples=self.buffer_examples)
        positive(max_mean_factor=self.max_mean_factor, min_cv=self.min_cv, max_cv=self.max_cv)
        require(self.max_mean_factor >= 1, "max_mean_factor", self.max_mean_factor, "1 or more", "max_mean_factor=5")
        require(self.min_cv <= self.max_cv, "min_cv", self.min_cv, f"at most max_cv={self.max_cv}", "min_cv=0.05")
        require(
            self.max_mean_factor > 1 or self.min_cv < self.max_cv,
            "max_mean_factor, min_cv, max_cv",
            (self.max_mean_factor, self.min_cv, self.max_cv),
            "room for the mean or for the spread",
            "update: {kind: frozen}",
        )


UpdateConfig = LearnedUpdate | FrozenUpdate | SolvedUpdate


def _starts_in_bounds(strength: LogNormalStrength | GammaStrength) -> None:
    """Refuse a solved strength that starts beyond its bounds, to the precision of its float32 parameters."""
    update = strength.update
    if isinstance(update, SolvedUpdate):
        start = strength.build().summary()
        cv = start["sd"] / start["mean"]
        require(
            update.min_cv * (1 - 1e-5) <= cv <= update.max_cv * (1 + 1e-5),
            f"cv of the {strength.family} strength at the start",
            cv,
            f"from update.min_cv={update.min_cv} to update.max_cv={update.max_cv}",
            "a wider bound, another start, or `family: point` for a strength that does not vary",
        )


@dataclass(frozen=True, kw_only=True)
class PointStrength:
    """One strength for all: DPO, unless its ``update`` moves it.

    Parameters
    ----------
    value : float
        DPO's beta.
    update : section
        Whether and how the strength changes in training.
    """

    family: Literal["point"] = "point"
    value: float = 0.1
    update: UpdateConfig = field(default_factory=FrozenUpdate)

    def __post_init__(self) -> None:
        positive(value=self.value)
        require(
            not isinstance(self.update, SolvedUpdate) or self.update.max_mean_factor > 1,
            "update.max_mean_factor of a point",
            1,
            "above 1: a point has no spread to solve for",
            "update: {kind: frozen}",
        )

    def build(self) -> LearnableMixing:
        from mixlogit_align.distributions import LearnableMixing

        return LearnableMixing.point(self.value)


@dataclass(frozen=True, kw_only=True)
class LogNormalStrength:
    """LogNormal strength, started at ``loc`` and ``scale`` (the paper's by default).

    Parameters
    ----------
    loc, scale : float
        Mean and standard deviation of log strength at the start.
    transform : {"log", "softplus", "raw"}
        How the positive ``scale`` is parametrised while it is learned.
    update : section
        Whether and how the strength changes in training.
    """

    family: Literal["lognormal"] = "lognormal"
    loc: float = -2.3
    scale: float = 0.6
    transform: Literal["log", "softplus", "raw"] = "log"
    update: UpdateConfig = field(default_factory=LearnedUpdate)

    def __post_init__(self) -> None:
        positive(scale=self.scale)
        _starts_in_bounds(self)

    def build(self) -> LearnableMixing:
        from mixlogit_align.distributions import LearnableMixing

        return LearnableMixing.lognormal(loc=self.loc, scale=self.scale, transform=self.transform)


@dataclass(frozen=True, kw_only=True)
class GammaStrength:
    """Gamma strength, started at ``concentration`` and ``rate`` (the paper's by default).

    Parameters
    ----------
    concentration, rate : float
        The mean strength is concentration / rate, its coefficient of variation 1 / sqrt(concentration).
    update : section
        Whether and how the strength changes in training.
    """

    family: Literal["gamma"] = "gamma"
    concentration: float = 2.0
    rate: float = 16.7
    update: UpdateConfig = field(default_factory=LearnedUpdate)

    def __post_init__(self) -> None:
        positive(concentration=self.concentration, rate=self.rate)
        _starts_in_bounds(self)

    def build(self) -> LearnableMixing:
        from mixlogit_align.distributions import LearnableMixing

        return LearnableMixing.gamma(concentration=self.concentration, rate=self.rate)


StrengthConfig = PointStrength | LogNormalStrength | GammaStrength


@dataclass(frozen=True, kw_only=True)
class BestRule:
    """The exact or most accurate rule for the family."""

    rule: Literal["best"] = "best"

    def build(self) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class ClosedFormRule:
    """`mixlogit_align.ClosedForm`."""

    rule: Literal["closed_form"] = "closed_form"

    def build(self) -> Any:
        from mixlogit_align.distributions import ClosedForm

        return ClosedForm()


@dataclass(frozen=True, kw_only=True)
class QuadratureRule:
    """`mixlogit_align.Quadrature`.

    Parameters
    ----------
    num_nodes : int or None
        Nodes of the rule; None takes 48 under a LogNormal, else 192.
    """

    rule: Literal["quadrature"] = "quadrature"
    num_nodes: int | None = None

    def build(self) -> Any:
        from mixlogit_align.distributions import Quadrature

        return Quadrature(self.num_nodes)


@dataclass(frozen=True, kw_only=True)
class MonteCarloRule:
    """`mixlogit_align.MonteCarlo`, redrawn at every step for every pair.

    Parameters
    ----------
    num_draws : int
        Of the strength, for each comparison.
    sharing : {"row", "batch"}
        Own draws for every comparison, or one set for all.
    draws : {"pseudo", "stratified", "antithetic"}
        Independent; one in each of ``num_draws`` equally likely intervals; or in pairs u, 1 - u.
    seed : int
        Of the draws.
    """

    rule: Literal["monte_carlo"] = "monte_carlo"
    num_draws: int = 16
    sharing: Literal["row", "batch"] = "row"
    draws: Literal["pseudo", "stratified", "antithetic"] = "pseudo"
    seed: int = 0

    def __post_init__(self) -> None:
        counts(num_draws=self.num_draws)

    def build(self) -> Any:
        from mixlogit_align.distributions import MonteCarlo

        return MonteCarlo(self.num_draws, sharing=self.sharing, seed=self.seed, kind=self.draws)


IntegrationConfig = BestRule | ClosedFormRule | QuadratureRule | MonteCarloRule

# --- stages ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The policy's optimiser; the strength takes the same one with its own learning rate.

    Parameters
    ----------
    name : {"rmsprop", "adamw"}
        RMSprop is the paper's (smoothing 0.99); AdamW is used without weight decay.
    lr : float
        Learning rate after the warm-up.
    warmup_steps : int
        Steps over which the learning rate rises linearly; it is constant afterwards.
    max_grad_norm : float
        The policy's gradient norm is clipped here.
    """

    name: Literal["rmsprop", "adamw"] = "rmsprop"
    lr: float = 5e-7
    warmup_steps: int = 150
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        positive(lr=self.lr, max_grad_norm=self.max_grad_norm)
        counts(0, warmup_steps=self.warmup_steps)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of training: supervised fine-tuning on the chosen responses.

    Parameters
    ----------
    optim : OptimConfig
    num_epochs : int
        How often each training row is seen.
    batch_size, eval_batch_size : int
        Rows in a batch of training or evaluation, all processes together.
    accumulation : int
        Parts that a batch is cut into, one after the other, to save memory; the result is the same up to rounding.
    eval_every_examples : int
        A multiple of ``batch_size``. The stage also evaluates before its first and after its last step.
    """

    optim: OptimConfig = field(default_factory=OptimConfig)
    num_epochs: int = 1
    batch_size: int = 64
    eval_batch_size: int = 64
    accumulation: int = 1
    eval_every_examples: int = 1984

    def __post_init__(self) -> None:
        counts(num_epochs=self.num_epochs, batch_size=self.batch_size, accumulation=self.accumulation)
        counts(eval_batch_size=self.eval_batch_size, eval_every_examples=self.eval_every_examples)
        nearest = max(round(self.eval_every_examples / self.batch_size), 1) * self.batch_size
        require(
            self.eval_every_examples % self.batch_size == 0,
            "eval_every_examples",
            self.eval_every_examples,
            f"a multiple of batch_size={self.batch_size}",
            f"eval_every_examples={nearest}",
        )

    def num_steps(self, num_rows: int) -> int:
        """Steps the stage takes over ``num_rows`` training rows."""
        return math.ceil(num_rows * self.num_epochs / self.batch_size)


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig(StageConfig):
    """The preference stage: a `StageConfig` with the loss, its strength and integration rule, and the reference.

    Parameters
    ----------
    loss : section
        A distribution of strength, or a loss of fixed strength to compare it with.
    strength : section or None
        With `kind: mixdpo` alone: the distribution of the strength where training begins, and how it changes; null
        is then `family: lognormal`.
    integration : section or None
        With `kind: mixdpo` alone: how the mean over the strength is computed; null is then `rule: best`.
    reference_precision : {"float32", "match"} or None
        The reference scores every comparison once before the first step: in float32 (the paper's, and what null
        means) or in the run's own ``precision``. `kind: simpo` has no reference.
    reference_path : str or None
        A Hugging Face folder or hub name of the reference, with the policy's vocabulary; None takes the policy as the
        stage finds it.
    reference_cache : str or None
        A file of the reference's log-probabilities. Where it does not exist, the run writes it; where it does, the run
        reads it, and no reference is computed. A file of another reference, or without all comparisons as they are
        tokenized, is refused. `kind: kto` and `kind: mallows_dpo` ask the reference for more than the file holds.
    """

    loss: LossConfig = field(default_factory=MixDPO)
    strength: StrengthConfig | None = None
    integration: IntegrationConfig | None = None
    reference_precision: Literal["float32", "match"] | None = None
    reference_path: str | None = None
    reference_cache: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        mixed = isinstance(self.loss, MixDPO)
        self._resolve("strength", mixed, LogNormalStrength())
        self._resolve("integration", mixed, BestRule())
        self._resolve("reference_precision", self.loss.has_reference, "float32")
        self._resolve("reference_path", self.loss.has_reference)
        self._resolve("reference_cache", self.loss.is_cacheable)

    def _resolve(self, name: str, used: bool, default: Any = None) -> None:
        """Give a setting that the loss has a use for its default; refuse another."""
        value = getattr(self, name)
        if value is not None and not used:
            unused = [other for other in ("strength", "integration") if getattr(self, other) is not None]
            unused = unused if name in unused else [name]
            raise InvalidInputError(
                explain(
                    " and ".join(unused),
                    got=repr(value) if isinstance(value, str) else "given",
                    expected=f"nothing there with `loss: {{kind: {self.loss.kind}}}`, which has no use for it",
                    hint=f"leaving out {' and '.join(unused)} (--preference.{' null --preference.'.join(unused)} null)",
                )
            )
        if value is None and used:
            object.__setattr__(self, name, default)

    @property
    def update(self) -> UpdateConfig | None:
        """How the strength changes; None where there is no distribution of it."""
        return None if self.strength is None else self.strength.update


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run is saved so that it can be resumed.

    Parameters
    ----------
    every_examples : int or None
        A multiple of the stages' ``batch_size``; None saves at every evaluation. The end of a stage is saved too.
    keep : int
        How many are kept, the most recent ones; 0 saves none.
    """

    every_examples: int | None = None
    keep: int = 1

    def __post_init__(self) -> None:
        if self.every_examples is not None:
            counts(every_examples=self.every_examples)
        counts(0, keep=self.keep)


Precision = Literal["auto", "float32", "bfloat16", "bfloat16_parameters"]
TrackerName = Literal["tensorboard", "wandb"]


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """Everything an alignment run needs; written, resolved, to ``config.yaml`` in its folder.

    Parameters
    ----------
    out : str
        The run folder.
    name : str
        What reports call the run, e.g. "DPO" or "MixDPO gamma"; by default as its folder is called.
    data : section
        The data set, by who reads it.
    model : section
        The policy before the first stage.
    lora : LoRAConfig or None
        Train adapters in place of the policy's weights.
    tokenization : section
        How many tokens a prompt and a response may have, and what is cut.
    sft, preference : section or None
        The stages to run, in this order; at least one.
    seed : int
        Fixes the initial weights and the order of the examples.
    device : str
        A torch device, e.g. "cpu" or "cuda"; under torchrun every process takes the GPU of its local rank.
    precision : {"auto", "float32", "bfloat16", "bfloat16_parameters"}
        "bfloat16" computes in bfloat16 over float32 parameters; "bfloat16_parameters" stores them in bfloat16 too,
        which loses most small updates, and warns. "auto" is "bfloat16" on CUDA devices, else "float32".
    activation_checkpointing : bool
        Recompute the activations of each transformer block in the backward pass: less memory, a third more time.
    compile : bool
        Compile each transformer block with torch (inductor: on CPUs it needs a C++ compiler, on GPUs Triton). Tried
        before anything is trained, and compared with the blocks as they are; a block that torch cannot compile whole is
        refused. The time it takes is metric ``seconds/compile`` and no part of ``examples_per_second``.
    checkpoint : CheckpointConfig
    tracking : tuple of {"tensorboard", "wandb"}
        Where metrics go beside ``metrics.jsonl``.
    """

    out: str
    name: str = ""
    data: DataConfig = field(default_factory=SimulatedData)
    model: ModelConfig = field(default_factory=NewModel)
    lora: LoRAConfig | None = None
    tokenization: TokenizationConfig = field(default_factory=TokenizationConfig)
    sft: StageConfig | None = None
    preference: PreferenceConfig | None = None
    seed: int = 0
    device: str = "cpu"
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    compile: bool = False
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: tuple[TrackerName, ...] = ()

    def __post_init__(self) -> None:
        for stage in (self.sft, self.preference):
            every = self.checkpoint.every_examples
            if stage is not None and every is not None:
                require(
                    every % stage.batch_size == 0,
                    "checkpoint.every_examples",
                    every,
                    f"a multiple of batch_size={stage.batch_size}",
                    f"checkpoint.every_examples={max(round(every / stage.batch_size), 1) * stage.batch_size}",
                )
        require(
            self.sft is not None or self.preference is not None,
            "sft, preference",
            None,
            "at least one stage",
            "a section `sft:` or `preference:`",
        )
        if self.lora is not None:
            require(
                self.precision != "bfloat16_parameters",
                "precision",
                self.precision,
                "float32 parameters beside `lora`, whose small changes merged weights in bfloat16 would lose",
                "`precision: bfloat16`",
            )
            require(
                self.lora.export == "merged" or isinstance(self.model, PretrainedModel),
                "lora.export",
                self.lora.export,
                "merged, for a new model, which is nowhere else for an adapter to be loaded beside",
                "`export: merged`",
            )
        if isinstance(self.model, NewModel):
            require(
                self.model.max_positions >= self.tokenization.max_length,
                "model.max_positions",
                self.model.max_positions,
                f"at least max_length={self.tokenization.max_length}",
            )

    def named(self) -> AlignmentConfig:
        """With a name: its own, or its run folder's."""
        return self if self.name else replace(self, name=Path(self.out).absolute().name or self.out)
