"""Settings of the preference loss: a distribution of strength, or one of the losses of fixed strength beside it.

Each is told apart by its ``kind``, and says of itself what its loss asks of a run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from mixlogit_align.alignment.checks import below_half, not_negative, positive, require

if TYPE_CHECKING:
    from mixlogit_align.alignment.losses import PreferenceLoss


class _Loss:
    """What a loss asks of a run, and says of choices."""

    @property
    def per_token(self) -> bool:
        """Whether it takes means over a response's tokens, not sums."""
        return False

    @property
    def compares(self) -> str:
        """What it compares, as a column of ``log_ratios.parquet``: in nats, or in nats per token."""
        return ("logratio_diff" if self.has_reference else "logp_diff") + ("_per_token" if self.per_token else "")

    @property
    def has_reference(self) -> bool:
        """Whether it takes log-ratios to a reference, not the policy's log-probabilities alone."""
        return True

    @property
    def is_cacheable(self) -> bool:
        """Whether the log-probabilities of the responses are all that it asks of the reference."""
        return self.has_reference

    @property
    def is_logit(self) -> bool:
        """Whether its choice model is P(chosen) = sigma(strength * logratio_diff)."""
        return True

    @property
    def is_constant(self) -> bool:
        """Whether the strength of that model is one number throughout, ``beta``."""
        return False


@dataclass(frozen=True, kw_only=True)
class MixDPO(_Loss):
    """A distribution of strength, `mixlogit_align.alignment.mixdpo_loss`: as ``strength`` and ``integration`` say."""

    kind: Literal["mixdpo"] = "mixdpo"


@dataclass(frozen=True, kw_only=True)
class _FixedStrength(_Loss):
    """A loss of `mixlogit_align.alignment.baselines`, of the name of its kind.

    Parameters
    ----------
    beta : float
        The strength.
    """

    kind: str
    beta: float = 0.1

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    def build(self) -> Callable[..., PreferenceLoss]:
        """The loss with these settings, in want of the pairs."""
        from mixlogit_align.alignment import baselines

        settings: dict[str, Any] = asdict(self)
        loss: Callable[..., PreferenceLoss] = getattr(baselines, f"{settings.pop('kind')}_loss")
        return functools.partial(loss, **{name: value for name, value in settings.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class DPO(_FixedStrength):
    """`baselines.dpo_loss`: one strength for all."""

    kind: Literal["dpo"] = "dpo"

    @property
    def is_constant(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class _NoisyLabels(_FixedStrength):
    """DPO of labels that can be wrong.

    Parameters
    ----------
    label_smoothing : float
        Probability that a label is wrong, from 0 (DPO) to below 1/2.
    """

    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        below_half(label_smoothing=self.label_smoothing)

    @property
    def is_constant(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class ConservativeDPO(_NoisyLabels):
    """`baselines.conservative_dpo_loss`: DPO with soft labels."""

    kind: Literal["conservative_dpo"] = "conservative_dpo"


@dataclass(frozen=True, kw_only=True)
class RobustDPO(_NoisyLabels):
    """`baselines.robust_dpo_loss`: DPO with label noise of a known rate taken out."""

    kind: Literal["robust_dpo"] = "robust_dpo"


@dataclass(frozen=True, kw_only=True)
class IPO(_FixedStrength):
    """`baselines.ipo_loss`: least squares, with an optimum at a finite log-ratio difference.

    Parameters
    ----------
    beta : float
        The optimum lies at 1 / (2 * beta).
    per : {"token", "sequence"}
        Whether log-ratios are means over a response's tokens, or sums.
    """

    kind: Literal["ipo"] = "ipo"
    per: Literal["token", "sequence"] = "token"

    @property
    def per_token(self) -> bool:
        return self.per == "token"

    @property
    def is_logit(self) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class SimPO(_FixedStrength):
    """`baselines.simpo_loss`: log-probabilities per token, without a reference.

    Parameters
    ----------
    beta : float
        The strength, of log-probabilities per token.
    gamma : float
        Target margin of the reward beta * log-probability per token, 0 or more.
    """

    kind: Literal["simpo"] = "simpo"
    beta: float = 2.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(gamma=self.gamma)

    @property
    def per_token(self) -> bool:
        return True

    @property
    def has_reference(self) -> bool:
        return False

    @property
    def is_logit(self) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class KTO(_FixedStrength):
    """`baselines.kto_loss`: each response is judged alone, against a reference point common to the batch.

    The point is estimated by responses to other prompts, which go through the policy at every step, without gradient.

    Parameters
    ----------
    beta : float
        The strength; with it a log-ratio is held against the reference point.
    desirable_weight, undesirable_weight : float
        Losses of chosen and rejected responses are multiplied by these.
    """

    kind: Literal["kto"] = "kto"
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(desirable_weight=self.desirable_weight, undesirable_weight=self.undesirable_weight)

    @property
    def is_logit(self) -> bool:
        return False

    @property
    def is_cacheable(self) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class BetaDPO(_FixedStrength):
    """`baselines.beta_dpo_loss`: DPO with a beta for each batch, all processes together.

    The threshold starts at 0 and follows the batches' mean log-ratio differences; held-out comparisons, which are one
    batch, leave it as it is. No pairs are left out of a batch, as the authors' filter does. With ``accumulation`` above
    1 a batch goes through the policy once more, without gradient, before its parts do.

    Parameters
    ----------
    beta : float
        Where the batch's mean is at the threshold.
    alpha : float
        Relative change of beta per nat of the batch's mean, 0 (DPO) or more.
    min_beta : float
        Lower bound.
    """

    kind: Literal["beta_dpo"] = "beta_dpo"
    alpha: float = 0.6
    min_beta: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(min_beta=self.min_beta)
        not_negative(alpha=self.alpha)


@dataclass(frozen=True, kw_only=True)
class AdaptiveDPO(_FixedStrength):
    """`baselines.adaptive_dpo_loss`: adaptive preference scaling, a strength beta / tau for each pair.

    Parameters
    ----------
    beta : float
        The strength where tau is 1.
    rho : float
        Radius of the KL ball, in nats; the larger, the smaller the scales tau.
    min_scale, max_scale : float
        Bounds of tau.
    """

    kind: Literal["adaptive_dpo"] = "adaptive_dpo"
    rho: float = 0.1
    min_scale: float = 0.1
    max_scale: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(rho=self.rho, min_scale=self.min_scale, max_scale=self.max_scale)
        require(
            self.min_scale <= self.max_scale, "min_scale", self.min_scale, f"at most max_scale={self.max_scale}",
            "min_scale=0.1",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MallowsDPO(_FixedStrength):
    """`baselines.mallows_dpo_loss`: a strength for each prompt, from its dispersion.

    That is estimated as its authors do, by the reference's mean entropy per response token over the log of the
    vocabulary's size, averaged over the two responses.

    Parameters
    ----------
    beta : float
        The mean strength, or the strength where scale * -log(dispersion) is 1.
    scale : float or None
        The strength is beta * scale * -log(dispersion). None takes 1 / mean(-log(dispersion)) of the training
        comparisons, whose mean strength is then beta.
    """

    kind: Literal["mallows_dpo"] = "mallows_dpo"
    scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None:
            positive(scale=self.scale)

    @property
    def is_cacheable(self) -> bool:
        return False


LossConfig = (
    MixDPO | DPO | ConservativeDPO | RobustDPO | IPO | SimPO | KTO | BetaDPO | AdaptiveDPO | MallowsDPO
)  # fmt: skip
