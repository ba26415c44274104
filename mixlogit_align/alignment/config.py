"""Typed settings of an alignment run, validated where they are made, read from and written to YAML.

A section that can be one of several kinds (the data, the model, the strength, the integration rule) is
told apart by its first field, e.g. ``source: hh`` or ``family: gamma``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mixlogit_align.errors import InvalidInputError, explain

if typing.TYPE_CHECKING:
    from mixlogit_align.distributions import LearnableMixing

T = TypeVar("T")


def _require(condition: bool, name: str, got: Any, expected: str, hint: str = "another value") -> None:
    if not condition:
        raise InvalidInputError(explain(name, got=repr(got), expected=expected, hint=hint))


def _positive(**settings: float) -> None:
    for name, value in settings.items():
        _require(value > 0 and math.isfinite(value), name, value, "a finite number above 0")


def _not_negative(**settings: float) -> None:
    for name, value in settings.items():
        _require(value >= 0 and math.isfinite(value), name, value, "a finite number, 0 or more")


# --- data ------------------------------------------------------------------------------------------


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
        _positive(num_train=self.num_train, num_eval=self.num_eval, num_annotators=self.num_annotators)
        _positive(strength_mean=self.strength_mean, utility_scale=self.utility_scale)
        _not_negative(strength_cv=self.strength_cv)


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
        _positive(**{k: v for k in ("max_train", "max_eval") if (v := getattr(self, k)) is not None})


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
        _require(0 < self.eval_fraction < 1, "eval_fraction", self.eval_fraction, "a share between 0 and 1")
        _positive(**{k: v for k in ("max_train", "max_eval") if (v := getattr(self, k)) is not None})


DataConfig = SimulatedData | HHData | HumourData

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
        _positive(hidden_size=self.hidden_size, num_layers=self.num_layers, num_heads=self.num_heads)
        _positive(max_positions=self.max_positions)
        _require(
            self.hidden_size % self.num_heads == 0,
            "hidden_size",
            self.hidden_size,
            f"a multiple of num_heads={self.num_heads}",
        )
        _require(
            self.vocab_size >= 258,
            "vocab_size",
            self.vocab_size,
            "at least 258: 256 bytes, the padding and the end-of-text token",
        )


@dataclass(frozen=True, kw_only=True)
class PretrainedModel:
    """A causal language model and its tokenizer from a Hugging Face folder (or a hub name)."""

    kind: Literal["pretrained"] = "pretrained"
    path: str


ModelConfig = NewModel | PretrainedModel


@dataclass(frozen=True, kw_only=True)
class TokenizationConfig:
    """The truncation policy; see `mixlogit_align.alignment.tokenization`.

    Parameters
    ----------
    max_length : int
        Most tokens in prompt and response together, end-of-text included.
    max_prompt_length : int
        Tokens that a prompt keeps for certain when the two do not fit; at most ``max_length - 1``.
    prompt_cut : {"keep_end", "keep_start"}
        Which part of a prompt that is cut survives. Responses are cut at their end.
    """

    max_length: int = 128
    max_prompt_length: int = 64
    prompt_cut: Literal["keep_end", "keep_start"] = "keep_end"

    def __post_init__(self) -> None:
        _positive(max_prompt_length=self.max_prompt_length)
        _require(
            self.max_prompt_length < self.max_length,
            "max_prompt_length",
            self.max_prompt_length,
            f"below max_length={self.max_length}, so that no response is emptied",
        )


# --- strength and integration ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PointStrength:
    """One fixed strength: DPO with this beta. ``lr`` above 0 learns it."""

    family: Literal["point"] = "point"
    value: float = 0.1
    lr: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _positive(value=self.value, max_grad_norm=self.max_grad_norm)
        _not_negative(lr=self.lr)

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
    lr : float
        Learning rate of the strength; 0 freezes it.
    max_grad_norm : float
        The strength's own gradient norm is clipped here, apart from the policy's.
    """

    family: Literal["lognormal"] = "lognormal"
    loc: float = -2.3
    scale: float = 0.6
    transform: Literal["log", "softplus", "raw"] = "log"
    lr: float = 1e-4
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _positive(scale=self.scale, max_grad_norm=self.max_grad_norm)
        _not_negative(lr=self.lr)

    def build(self) -> LearnableMixing:
        from mixlogit_align.distributions import LearnableMixing

        return LearnableMixing.lognormal(loc=self.loc, scale=self.scale, transform=self.transform)


@dataclass(frozen=True, kw_only=True)
class GammaStrength:
    """Gamma strength, started at ``concentration`` and ``rate`` (the paper's by default).

    ``lr`` and ``max_grad_norm`` as for `LogNormalStrength`.
    """

    family: Literal["gamma"] = "gamma"
    concentration: float = 2.0
    rate: float = 16.7
    lr: float = 1e-4
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _positive(concentration=self.concentration, rate=self.rate, max_grad_norm=self.max_grad_norm)
        _not_negative(lr=self.lr)

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
    """`mixlogit_align.Quadrature`."""

    rule: Literal["quadrature"] = "quadrature"
    num_nodes: int | None = None

    def build(self) -> Any:
        from mixlogit_align.distributions import Quadrature

        return Quadrature(self.num_nodes)


@dataclass(frozen=True, kw_only=True)
class MonteCarloRule:
    """`mixlogit_align.MonteCarlo`, redrawn at every step for every pair."""

    rule: Literal["monte_carlo"] = "monte_carlo"
    num_draws: int = 16
    sharing: Literal["row", "batch"] = "row"
    draws: Literal["pseudo", "stratified", "antithetic"] = "pseudo"
    seed: int = 0

    def __post_init__(self) -> None:
        _positive(num_draws=self.num_draws)

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
        _positive(lr=self.lr, max_grad_norm=self.max_grad_norm)
        _not_negative(warmup_steps=self.warmup_steps)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of training: supervised fine-tuning on the chosen responses.

    Parameters
    ----------
    optim : OptimConfig
    num_epochs, batch_size, eval_batch_size : int
    eval_every_examples : int
        A multiple of ``batch_size``. The stage also evaluates before its first and after its last step.
    """

    optim: OptimConfig = field(default_factory=OptimConfig)
    num_epochs: int = 1
    batch_size: int = 64
    eval_batch_size: int = 64
    eval_every_examples: int = 1984

    def __post_init__(self) -> None:
        _positive(num_epochs=self.num_epochs, batch_size=self.batch_size)
        _positive(eval_batch_size=self.eval_batch_size, eval_every_examples=self.eval_every_examples)
        nearest = max(round(self.eval_every_examples / self.batch_size), 1) * self.batch_size
        _require(
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
    """The preference stage: a `StageConfig` with the strength's family and the integration rule."""

    strength: StrengthConfig = field(default_factory=LogNormalStrength)
    integration: IntegrationConfig = field(default_factory=BestRule)


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """Everything an alignment run needs; written, resolved, to ``config.yaml`` in its folder.

    Parameters
    ----------
    out : str
        The run folder.
    name : str
        What reports call the run, e.g. "DPO" or "MixDPO gamma".
    data, model, tokenization : section
    sft, preference : section or None
        The stages to run, in this order; at least one.
    seed : int
        Fixes the initial weights and the order of the examples.
    device : str
        A torch device, e.g. "cpu" or "cuda".
    """

    out: str
    name: str = "run"
    data: DataConfig = field(default_factory=SimulatedData)
    model: ModelConfig = field(default_factory=NewModel)
    tokenization: TokenizationConfig = field(default_factory=TokenizationConfig)
    sft: StageConfig | None = None
    preference: PreferenceConfig | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        _require(
            self.sft is not None or self.preference is not None,
            "sft, preference",
            None,
            "at least one stage",
            "a section `sft:` or `preference:`",
        )
        if isinstance(self.model, NewModel):
            _require(
                self.model.max_positions >= self.tokenization.max_length,
                "model.max_positions",
                self.model.max_positions,
                f"at least max_length={self.tokenization.max_length}",
            )


# --- reading and writing ---------------------------------------------------------------------------


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> AlignmentConfig:
    """Read an `AlignmentConfig` from a YAML file.

    Parameters
    ----------
    path : path
    overrides : sequence of str
        Settings that replace the file's, as ``"preference.optim.lr=1e-6"``; values are read as YAML.

    Raises
    ------
    InvalidInputError
        For an unknown setting (with the nearest known name), a value of the wrong type or out of range.
    """
    import yaml

    if not Path(path).is_file():
        raise InvalidInputError(
            explain(
                str(path),
                got="a folder" if Path(path).is_dir() else "no such file",
                expected="a YAML file of settings",
                hint="the path of one; `mixlogit-align train --help` shows a complete example",
            )
        )
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        for override in overrides:
            name, equals, value = override.partition("=")
            _require(bool(equals), "override", override, "section.setting=value")
            section = settings
            *parents, last = name.split(".")
            for parent in parents:
                if section.get(parent) is None:
                    section[parent] = {}
                section = section[parent]
            section[last] = yaml.safe_load(value)
    except (OSError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise InvalidInputError(
            explain(
                str(path),
                got=str(error),
                expected="nested YAML settings",
                hint="checking the indentation and each override's path",
            )
        ) from error
    return parse_config(settings)


def parse_config(settings: Mapping[str, Any]) -> AlignmentConfig:
    """Make an `AlignmentConfig` of nested mappings; errors as for `load_config`."""
    return _section(AlignmentConfig, settings, "")


def dump_config(config: AlignmentConfig) -> str:
    """Return the resolved settings as YAML that `load_config` reads back to an equal object."""
    import yaml

    text: str = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    return text


def _section(cls: type[T], settings: Any, where: str) -> T:
    if not isinstance(settings, Mapping):
        raise InvalidInputError(
            explain(
                where.rstrip(".") or "config",
                got=repr(settings),
                expected="a section of settings",
                hint="indenting its settings below it",
            )
        )
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in settings:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"{where}{near[0]}" if near else "one of these"
            raise InvalidInputError(
                explain("settings", got=f"unknown {where}{name}", expected=f"one of {', '.join(fields)}", hint=hint)
            )
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in settings:
            raise InvalidInputError(
                explain(f"{where}{name}", got="nothing", expected="a value", hint=f"a line `{name}:`")
            )
    values = {name: _value(hints[name], value, f"{where}{name}") for name, value in settings.items()}
    try:
        return cls(**values)
    except InvalidInputError as error:
        raise InvalidInputError(f"{where.rstrip('.')}: {error}" if where else str(error)) from error


def _value(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the annotated type ``hint``, or an error naming the setting ``where``."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    sections = [option for option in options if dataclasses.is_dataclass(option)]
    if len(sections) == 1:
        return _section(sections[0], value, f"{where}.")  # type: ignore[arg-type]
    if sections:
        return _tagged_section(sections, value, where)
    scalar = next(option for option in options if option is not type(None))
    if typing.get_origin(scalar) is Literal:
        choices = typing.get_args(scalar)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)
            raise InvalidInputError(
                explain(where, got=repr(value), expected=f"one of {', '.join(choices)}", hint=near[0])
            )
        return value
    # YAML 1.1 reads 1e-6 as a string.
    if scalar is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, scalar) or (isinstance(value, bool) and scalar is not bool):
        raise InvalidInputError(
            explain(where, got=repr(value), expected=f"a value of type {scalar.__name__}", hint="another value")
        )
    return value


def _tagged_section(sections: Sequence[Any], value: Any, where: str) -> Any:
    """The section among ``sections`` that its first field (the tag) names."""
    tag = dataclasses.fields(sections[0])[0].name
    by_tag = {section.__dataclass_fields__[tag].default: section for section in sections}
    got = value.get(tag) if isinstance(value, Mapping) else value
    if got not in by_tag:
        near = difflib.get_close_matches(str(got), by_tag, n=1, cutoff=0.0)
        raise InvalidInputError(
            explain(f"{where}.{tag}", got=repr(got), expected=f"one of {', '.join(by_tag)}", hint=f"`{tag}: {near[0]}`")
        )
    return _section(by_tag[got], value, f"{where}.")
