"""Preference losses of fixed strength, to compare `mixdpo_loss` with: pure functions on (B,) tensors.

Each takes the log-probabilities as `mixdpo_loss` does (policy chosen, policy rejected, reference chosen, reference
rejected; `simpo_loss` needs no reference) with ``weights``, its own settings by keyword, and returns the same
`PreferenceLoss`, so that a run, which takes one by ``preference.loss``, logs the same metrics whatever it optimises.
Write r for the log-ratio log policy - log reference of a response, and ``delta = r_chosen - r_rejected``, in nats:

=========================  ==========================================================  =========================
function                   choice model P(chosen)                                      fitted by
=========================  ==========================================================  =========================
`dpo_loss`                 sigma(beta delta)                                           likelihood
`conservative_dpo_loss`    sigma(beta delta)                                           likelihood of soft labels
`robust_dpo_loss`          sigma(beta delta), labels flipped at a known rate           an unbiased estimate
`ipo_loss`                 1/2 + beta delta, linear                                    least squares
`simpo_loss`               sigma(beta delta - gamma), delta per token, no reference    likelihood
`kto_loss`                 none: each response is judged against a reference point    prospect-theoretic value
`beta_dpo_loss`            sigma(beta_batch delta), beta_batch from the batch          likelihood
`adaptive_dpo_loss`        sigma(beta delta / tau), tau from delta itself              distributional robustness
`mallows_dpo_loss`         sigma(beta_x delta), beta_x from the prompt's dispersion    likelihood
=========================  ==========================================================  =========================

In all of them the strength is a number that is set or computed, never a distribution; at a point, `mixdpo_loss` is
`dpo_loss`. ``strength/mean`` is that number, averaged where it varies by pair, and rewards are it times the log-ratio.
``pair_weight`` compares a pair's pull with DPO's at that strength, as in `mixdpo_loss`, where the pull is the fall of
the loss as delta rises and the sum of the two log-ratios stays. It is negative where a loss holds a well-fitted pair
back, and grows without bound there, since DPO's pull has gone.

Every function raises `InvalidInputError` where `mixdpo_loss` does, and for a setting outside its range.
"""

# Shapes: B pairs.

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import scipy.optimize
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mixlogit_align.alignment.checks import below_half, not_negative, positive, require
from mixlogit_align.alignment.losses import PreferenceLoss, check_pairs, widened


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    weights: Tensor | None = None,
) -> PreferenceLoss:
    """Direct preference optimisation: ``-log sigma(beta * delta)``.

    Choice model: Bradley-Terry, P(chosen) = sigma(beta * delta).

    Parameters
    ----------
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, weights : Tensor
        (B,); see `mixdpo_loss`.
    beta : float
        The strength, the same for every pair.

    Returns
    -------
    PreferenceLoss

    References
    ----------
    Rafailov et al. (2023), Direct preference optimization, eq. 7.
    """
    positive(beta=beta)
    pairs = _pairs(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, weights=weights
    )
    return pairs.loss(lambda chosen, rejected: -logsigmoid(beta * (chosen - rejected)), strength=beta)


def conservative_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
    weights: Tensor | None = None,
) -> PreferenceLoss:
    """DPO with soft labels: ``-(1 - e) * log sigma(beta * delta) - e * log sigma(-beta * delta)``.

    Choice model: P(chosen) = sigma(beta * delta), as DPO's, fitted to labels that are right with probability 1 - e. The
    loss of a pair is least where P(chosen) = 1 - e, beyond which it is held back; DPO's never is.

    Parameters
    ----------
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, weights : Tensor
        (B,); see `mixdpo_loss`.
    beta : float
    label_smoothing : float
        e, from 0 (DPO) to below 1/2.

    Returns
    -------
    PreferenceLoss

    References
    ----------
    Mitchell (2023), A note on DPO with noisy preferences and relationship to IPO.
    """
    positive(beta=beta)
    below_half(label_smoothing=label_smoothing)
    pairs = _pairs(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, weights=weights
    )

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        z = beta * (chosen - rejected)
        return -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)

    return pairs.loss(loss, strength=beta)


def robust_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
    weights: Tensor | None = None,
) -> PreferenceLoss:
    """DPO with label noise taken out: ``(-(1-e) * log sigma(z) + e * log sigma(-z)) / (1 - 2e)``, z = beta * delta.

    Choice model: P(chosen) = sigma(z) for the true label, which is recorded the wrong way round with probability e. It
    is not fitted by the likelihood of what was recorded: the loss is the combination of the two labels' losses whose
    mean over the noise is DPO's loss of the true label. So it has no lower bound.

    Parameters
    ----------
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, weights : Tensor
        (B,); see `mixdpo_loss`.
    beta : float
    label_smoothing : float
        e, the share of flipped labels, from 0 (DPO) to below 1/2.

    Returns
    -------
    PreferenceLoss

    References
    ----------
    Chowdhury, Kini and Natarajan (2024), Provably robust DPO: aligning language models with noisy feedback.
    """
    positive(beta=beta)
    below_half(label_smoothing=label_smoothing)
    pairs = _pairs(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, weights=weights
    )

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        z = beta * (chosen - rejected)
        return (-(1 - label_smoothing) * logsigmoid(z) + label_smoothing * logsigmoid(-z)) / (1 - 2 * label_smoothing)

    return pairs.loss(loss, strength=beta)


def ipo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    per: Literal["token", "sequence"] = "token",
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    weights: Tensor | None = None,
) -> PreferenceLoss:
    """Identity preference optimisation: ``(delta - 1 / (2 * beta))**2``.

    Choice model: linear, P(chosen) = 1/2 + beta * delta, fitted by least squares: the loss is ((1 - P) / beta)^2. A
    response that is always preferred has its optimum at delta = 1 / (2 * beta), not at infinity; one preferred with
    probability p at (p - 1/2) / beta.

    Parameters
    ----------
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, weights : Tensor
        (B,); see `mixdpo_loss`.
    beta : float
        The paper's tau.
    per : {"token", "sequence"}
        Whether log-ratios are means over a response's tokens, so that the target does not depend on its length (what
        the authors computed, by TRL's account), or sums (the paper's equation). All log-ratios of the result are these.
    chosen_lengths, rejected_lengths : Tensor, optional
        (B,) response tokens, 1 or more; needed for, and only for, "token".

    Returns
    -------
    PreferenceLoss

    References
    ----------
    Azar et al. (2023), A general theoretical paradigm to understand learning from human preferences, eq. 17.
    """
    positive(beta=beta)
    require(per in ("token", "sequence"), "per", per, "'token' or 'sequence'", "per='token'")
    lengths = {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths}
    if per == "sequence":
        for name, value in lengths.items():
            require(value is None, name, "a value", "none with per='sequence'", "per='token'")
        lengths = {}
    pairs = _pairs(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        weights=weights,
        **lengths,
    )
    return pairs.loss(lambda chosen, rejected: (chosen - rejected - 1 / (2 * beta)) ** 2, strength=beta)


def simpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    *,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float = 2.0,
    gamma: float = 1.0,
    weights: Tensor | None = None,
) -> PreferenceLoss:
    """SimPO: ``-log sigma(beta * delta - gamma)`` with delta the difference in mean log-probability per token.

    Choice model: Rao and Kupper's (1967), P(chosen) = sigma(beta * delta - gamma); the two orders' probabilities do not
    sum to 1, the rest being ties, which the data do not have. There is no reference: the log-ratios of the result are
    the policy's log-probabilities per token.

    Parameters
    ----------
    policy_chosen_logps, policy_rejected_logps, weights : Tensor
        (B,) sums over tokens; see `mixdpo_loss`.
    chosen_lengths, rejected_lengths : Tensor
        (B,) response tokens, 1 or more.
    beta : float
    gamma : float
        Target margin of the reward beta * log-probability per token, 0 or more. (The paper also quotes gamma / beta.)

    Returns
    -------
    PreferenceLoss

    References
    ----------
    Meng, Xia and Chen (2024), SimPO: simple preference optimization with a reference-free reward.
    """
    positive(beta=beta)
    not_negative(gamma=gamma)
    pairs = _pairs(
        policy_chosen_logps,
        policy_rejected_logps,
        weights=weights,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    return pairs.loss(lambda chosen, rejected: -logsigmoid(beta * (chosen - rejected) - gamma), strength=beta)


def kto_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    reference_point: Tensor | float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    weights: Tensor | None = None,
) -> PreferenceLoss:
    """Kahneman-Tversky optimisation of a pair: the mean of its two responses' losses.

    ``desirable_weight * sigma(beta * (z - r_chosen))`` and ``undesirable_weight * sigma(beta * (r_rejected - z))``.

    Choice model: none. A response is judged alone: its value is sigma(beta * (r - z)) if it is wanted and
    sigma(beta * (z - r)) if not, with a reference point z common to all. The mean over pairs is the mean over
    responses, half of which are wanted.

    Parameters
    ----------
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, weights : Tensor
        (B,); see `mixdpo_loss`.
    reference_point : Tensor or float
        z, a number of 0 or more, in nats, through which no gradient flows: `kto_reference_point` of the whole batch.
    beta : float
    desirable_weight, undesirable_weight : float
        Losses of wanted and unwanted responses are multiplied by these.

    Returns
    -------
    PreferenceLoss

    References
    ----------
    Ethayarajh et al. (2024), KTO: model alignment as prospect theoretic optimization, section 4.
    """
    positive(beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    pairs = _pairs(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, weights=weights
    )
    z = _number("reference_point", reference_point)
    not_negative(reference_point=z)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        wanted = desirable_weight * torch.sigmoid(beta * (z - chosen))
        unwanted = undesirable_weight * torch.sigmoid(beta * (rejected - z))
        return (wanted + unwanted) / 2

    return pairs.loss(loss, strength=beta)


@torch.no_grad()
def kto_reference_point(log_ratios: Tensor, weights: Tensor | None = None) -> Tensor:
    """KTO's reference point: KL(policy, reference) estimated by ``max(0, mean log-ratio)`` of mismatched responses.

    A mismatched response is one to another prompt of the batch: prompt i with the response to prompt i - 1. The
    estimate is biased, and cheap: no response needs to be sampled.

    Parameters
    ----------
    log_ratios : Tensor
        (M,) log policy(y_j | x_i) - log reference(y_j | x_i), in nats, of the whole batch, all processes together.
    weights : Tensor, optional
        (M,) at least 0; 1 where not given.

    Returns
    -------
    Tensor
        0-d, without gradient.

    References
    ----------
    Ethayarajh et al. (2024), section 4.
    """
    for name, value in {"log_ratios": log_ratios, "weights": weights}.items():
        if value is not None:
            fits = value.ndim == 1 and value.shape == log_ratios.shape and bool(value.isfinite().all())
            require(fits, name, value, "(M,) finite numbers, one a mismatched response")
    require(weights is None or bool((weights >= 0).all()), "weights", weights, "0 or more")
    return _average(log_ratios.double(), weights).clamp(min=0)


def beta_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    threshold: Tensor | float,
    beta: float = 0.1,
    alpha: float = 0.6,
    batch_margin: Tensor | float | None = None,
    min_beta: float = 1e-3,
    weights: Tensor | None = None,
) -> PreferenceLoss:
    """DPO with a beta for each batch: ``beta_batch = max(beta * (1 + alpha * (M - threshold)), min_beta)``.

    Choice model: Bradley-Terry, P(chosen) = sigma(beta_batch * delta), where M is the batch's mean of delta. No
    gradient flows through beta_batch. The authors also leave a random fifth of the pairs out of a batch, mostly those
    with delta far from the threshold; weights of 0 do that, also in M.

    Parameters
    ----------
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, weights : Tensor
        (B,); see `mixdpo_loss`.
    threshold : Tensor or float
        In nats; the authors keep a running mean of M, starting from 0:
        ``threshold = 0.9 * threshold + 0.1 * M``, this batch's M (before any pair is left out) included.
    beta : float
        beta_batch where M is at the threshold.
    alpha : float
        Relative change of beta per nat of M, 0 (DPO) or more. (With M in units of reward, beta * delta, this is
        the alpha for that times beta.)
    batch_margin : Tensor or float, optional
        M of the whole batch that these pairs are a part of; the weighted mean of these pairs' delta where not given.
    min_beta : float
        Lower bound; without it beta_batch could turn negative.

    Returns
    -------
    PreferenceLoss

    References
    ----------
    Wu et al. (2024), beta-DPO: direct preference optimization with dynamic beta, and their code for the lower
    bound and for M in nats.
    """
    positive(beta=beta, min_beta=min_beta)
    not_negative(alpha=alpha)
    pairs = _pairs(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, weights=weights
    )
    margin = _average(pairs.delta.detach(), weights) if batch_margin is None else batch_margin
    excess = _number("batch_margin", margin) - _number("threshold", threshold)
    strength = max(beta * (1 + alpha * excess), min_beta)
    return pairs.loss(lambda chosen, rejected: -logsigmoid(strength * (chosen - rejected)), strength=strength)


def adaptive_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    rho: float = 0.1,
    min_scale: float = 0.1,
    max_scale: float = 5.0,
    weights: Tensor | None = None,
) -> PreferenceLoss:
    """DPO with adaptive preference scaling: ``min over tau of -tau * log sigma(u / tau) + (rho - log 2) * tau``.

    Here u = beta * delta and tau lies between ``min_scale`` and ``max_scale``. Choice model: P(chosen) =
    sigma(u / tau), a strength beta / tau for each pair; ``pair_weight`` is tau.

    The objective is convex in tau, with derivative H(sigma(u / tau)) - (log 2 - rho), H the entropy of a coin in nats.
    So its minimum has a closed form: tau = abs(u) / s, put between the bounds, where s > 0 solves
    H(sigma(s)) = log 2 - rho, that is KL(sigma(s), 1/2) = rho. Between the bounds P(chosen) is therefore sigma(s) for
    every pair with u > 0, and the loss is linear in u: -u * sigma(-s), and -u * sigma(s) where u < 0. It is the worst
    mean of (0, -u) over coins within KL divergence ``rho`` of a fair one. Beyond the bounds it is DPO's with beta / tau
    and a factor tau. For ``rho`` of log 2 or more, s is infinite and tau is ``min_scale`` throughout.

    Parameters
    ----------
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, weights : Tensor
        (B,); see `mixdpo_loss`.
    beta : float
    rho : float
        Radius of the KL ball, in nats, above 0; the larger, the smaller the scales.
    min_scale, max_scale : float
        Bounds of tau. Where both are 1 this is DPO plus the constant rho - log 2.

    Returns
    -------
    PreferenceLoss

    References
    ----------
    Hong et al. (2024), Adaptive preference scaling for reinforcement learning with human feedback. They take Newton
    steps to the same minimum and leave out the term (rho - log 2) * tau once tau is found, which changes the loss that
    is reported, and not its gradient.
    """
    positive(beta=beta, rho=rho, min_scale=min_scale, max_scale=max_scale)
    require(min_scale <= max_scale, "min_scale", min_scale, f"at most max_scale={max_scale}", "min_scale=0.1")
    pairs = _pairs(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, weights=weights
    )
    logit = _logit_at_divergence(rho)

    def scale(u: Tensor) -> Tensor:
        return (u.abs() / logit).clamp(min_scale, max_scale)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        u = beta * (chosen - rejected)
        tau = scale(u)
        return tau * (rho - math.log(2) - logsigmoid(u / tau))

    return pairs.loss(loss, strength=beta / scale(beta * pairs.delta.detach()))


def mallows_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    dispersion: Tensor,
    beta: float = 0.1,
    scale: float = 1.0,
    weights: Tensor | None = None,
) -> PreferenceLoss:
    """Mallows-DPO (theta): ``-log sigma(beta * scale * -log(dispersion) * delta)``.

    Choice model: Mallows' for two responses, whose log-odds are proportional to -log of the prompt's dispersion: near
    0 everyone agrees, at 1 the choice is a coin's. P(chosen) = sigma(strength * delta) with the strength
    beta * scale * -log(dispersion) of the pair's prompt.

    Parameters
    ----------
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, weights : Tensor
        (B,); see `mixdpo_loss`.
    dispersion : Tensor
        (B,) above 0 and below 1; no gradient flows through it. The authors estimate it by the reference's mean entropy
        per response token over the log of the vocabulary's size, averaged over the two responses.
    beta : float
    scale : float
        Above 0. With 1 / mean(-log(dispersion)) the mean strength is beta, so that runs compare with DPO's.

    Returns
    -------
    PreferenceLoss

    References
    ----------
    Chen et al. (2024), Mallows-DPO: fine-tune your LLM with preference dispersions, and their code for the estimate.
    """
    positive(beta=beta, scale=scale)
    pairs = _pairs(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        weights=weights,
        dispersion=dispersion,
    )
    phi = dispersion.detach().double()
    inside = (phi > 0) & (phi < 1)
    require(bool(inside.all()), "dispersion", phi[~inside].tolist()[:8], "numbers above 0 and below 1")
    strength = -beta * scale * phi.log()
    return pairs.loss(lambda chosen, rejected: -logsigmoid(strength * (chosen - rejected)), strength=strength)


# --- what they share -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pairs:
    """Log-probabilities of pairs, and the log-ratios that a loss takes (float64)."""

    policy_chosen: Tensor
    policy_rejected: Tensor
    chosen: Tensor
    rejected: Tensor
    weights: Tensor | None
    dtype: torch.dtype

    @property
    def delta(self) -> Tensor:
        return self.chosen - self.rejected

    def loss(self, of: Callable[[Tensor, Tensor], Tensor], *, strength: Tensor | float) -> PreferenceLoss:
        """The loss ``of(chosen, rejected)``, row by row, with what is logged about it."""
        loss = of(self.chosen, self.rejected).to(self.dtype)
        # The slope needs a graph even where the caller wants no gradient.
        with torch.enable_grad():
            chosen, rejected = self.chosen.detach().requires_grad_(), self.rejected.detach().requires_grad_()
            slope_chosen, slope_rejected = torch.autograd.grad(of(chosen, rejected).sum(), (chosen, rejected))
        mean = torch.as_tensor(strength, dtype=chosen.dtype, device=chosen.device)
        return PreferenceLoss.of(
            loss,
            weights=self.weights,
            policy=(self.policy_chosen, self.policy_rejected),
            log_ratios=(self.chosen, self.rejected),
            pull=(slope_rejected - slope_chosen) / 2,
            mean=mean,
            variance=torch.zeros_like(mean),
        )


_LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")


def _pairs(*logps: Tensor, weights: Tensor | None, **beside: Any) -> _Pairs:
    """Checked pairs: the policy's log-probabilities, the reference's if any; with lengths, log-ratios per token."""
    given = {**dict(zip(_LOGPS, logps, strict=False)), **beside}
    check_pairs(given, weights=weights)
    policy_chosen, policy_rejected, *reference = map(widened, logps)
    chosen, rejected = policy_chosen, policy_rejected
    if reference:
        chosen, rejected = chosen - reference[0], rejected - reference[1]
    dtype = (chosen - rejected).dtype
    chosen, rejected = chosen.double(), rejected.double()
    if "chosen_lengths" in given:
        for name in ("chosen_lengths", "rejected_lengths"):
            empty = given[name] < 1
            require(not bool(empty.any()), name, given[name][empty].tolist()[:8], "response tokens, 1 or more")
        chosen, rejected = chosen / given["chosen_lengths"], rejected / given["rejected_lengths"]
    return _Pairs(policy_chosen, policy_rejected, chosen, rejected, weights, dtype)


def _average(x: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return x.mean()
    total = weights.sum().item()
    require(total > 0, "sum of weights", total, "above 0, so that there is a mean", "the mean of the whole batch")
    return (x * weights).sum() / weights.sum()


def _number(name: str, value: Tensor | float) -> float:
    number = float(value.detach()) if isinstance(value, Tensor) and value.numel() == 1 else value
    require(isinstance(number, int | float) and math.isfinite(number), name, value, "one finite number")
    return float(number)


def _logit_at_divergence(rho: float) -> float:
    """s > 0 with KL(sigma(s), 1/2) = rho nats; infinite where ``rho`` is log 2 or more, which no finite s reaches."""
    if rho >= math.log(2):
        return math.inf

    def excess(s: float) -> float:
        tail = math.exp(-s) / (1 + math.exp(-s))
        return math.log(2) - math.log1p(math.exp(-s)) - s * tail - rho

    return float(scipy.optimize.brentq(excess, 0.0, 800.0, xtol=1e-14, rtol=1e-14))
