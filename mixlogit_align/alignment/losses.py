"""The preference loss: a mixed logit over policy log-ratios, as pure functions on (B,) tensors."""

# Shapes: B pairs.

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mixlogit_align.distributions import LearnableMixing, MixedLogit
from mixlogit_align.distributions.mixing import check_mixing
from mixlogit_align.errors import InvalidInputError, explain


@dataclass(frozen=True)
class PreferenceLoss:
    """What `mixdpo_loss` returns; unpacks into ``per_example, logratio_diff, metrics``.

    Attributes
    ----------
    per_example : Tensor
        (B,) weighted negative log-likelihood of each choice; its sum over the weights' sum is the loss.
    logratio_diff : Tensor
        (B,) log-ratio of the chosen less that of the rejected response, in nats.
    pair_weight : Tensor
        (B,) detached; see `mixdpo_loss`.
    values : dict of str to Tensor
        (B,) detached; what `preference_metrics` takes, so that the values of several batches, or of several processes,
        can be joined before the metrics are computed.
    """

    per_example: Tensor
    logratio_diff: Tensor
    pair_weight: Tensor
    values: dict[str, Tensor]

    @cached_property
    def metrics(self) -> dict[str, Tensor]:
        """Detached scalars, see `mixdpo_loss`."""
        return preference_metrics(self.values)

    @classmethod
    def of(
        cls,
        loss: Tensor,
        *,
        weights: Tensor | None,
        policy: tuple[Tensor, Tensor],
        log_ratios: tuple[Tensor, Tensor],
        pull: Tensor,
        mean: Tensor,
        variance: Tensor,
    ) -> PreferenceLoss:
        """A loss of pairs with what is logged about it, whatever its choice model.

        Parameters
        ----------
        loss : Tensor
            (B,) unweighted; gives the result its dtype.
        weights : Tensor or None
            (B,).
        policy, log_ratios : pair of Tensor
            (B,) each, of the chosen and of the rejected response: the policy's log-probabilities, and what is compared.
        pull : Tensor
            (B,) fall of the loss as the difference of the log-ratios rises.
        mean, variance : Tensor
            (B,) or 0-d, of the strength.
        """
        logratio_diff = log_ratios[0] - log_ratios[1]
        with torch.no_grad():
            slope, strength = pull.double(), mean.detach().expand(loss.shape).double()
            # In logs: far out both pulls underflow long before their ratio does.
            log_dpo_pull = strength.log() + nn.functional.logsigmoid(-strength * logratio_diff.double())
            pair_weight = slope.sign() * (slope.abs().log() - log_dpo_pull).exp()
            values = {
                "weight": torch.ones_like(loss) if weights is None else weights,
                "loss": loss,
                "policy_chosen": policy[0],
                "policy_rejected": policy[1],
                "log_ratio_chosen": log_ratios[0],
                "log_ratio_rejected": log_ratios[1],
                "strength_mean": strength,
                "strength_variance": variance.expand(loss.shape),
                "pull": slope,
                "dpo_pull": log_dpo_pull.exp(),
            }
        return cls(
            per_example=loss if weights is None else loss * weights,
            logratio_diff=logratio_diff.to(loss.dtype),
            pair_weight=pair_weight.to(loss.dtype),
            values={name: value.detach() for name, value in values.items()},
        )

    def __iter__(self) -> Iterator[Any]:
        return iter((self.per_example, self.logratio_diff, self.metrics))


def mixdpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    mixing: LearnableMixing | Any,
    integration: Any = None,
    weights: Tensor | None = None,
    step: int | None = None,
    pair_ids: Tensor | None = None,
) -> PreferenceLoss:
    """Mixed-logit DPO: ``-log E_{strength ~ mixing}[sigma(strength * logratio_diff)]`` for each pair.

    ``logratio_diff = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)``. The
    expectation is `mixlogit_align.MixedLogit`'s ``log_prob``. With ``Delta(0.1)`` as mixing this is DPO
    with beta 0.1, in value and gradient.

    Parameters
    ----------
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps : Tensor
        (B,) log-probabilities of the responses, in nats; half precision is widened to float32 first.
    mixing : LearnableMixing or Pyro distribution
        The distribution of strength; a module is called, once, and gives the distribution.
    integration : rule, optional
        How the expectation is computed; None takes the exact or most accurate rule of the family.
    weights : Tensor, optional
        (B,) at least 0, multiply ``per_example``; 1 where not given.
    step : int, optional
    pair_ids : Tensor, optional
        (B,) int64. A rule with draws, given as ``integration``, takes those of this step and these pairs,
        whatever the order of the batch; without them every step sees the same draws.

    Returns
    -------
    PreferenceLoss
        Its metrics are means over pairs, weighted by ``weights``: ``loss``; ``rewards/accuracies``, the share with
        ``logratio_diff`` above 0 (a tie counts one half); ``log_ratio/margins``, the mean of ``logratio_diff``, and
        ``log_ratio/sd``; ``rewards/chosen``, ``rewards/rejected`` and ``rewards/margins``, log-ratios times the mean
        strength; ``margin/sum``, the policy's own log-probability difference; ``logps/chosen``, ``logps/rejected``;
        ``strength/mean`` and ``strength/sd``; and ``pair_weight``.

        ``pair_weight`` compares a pair's pull on the policy with DPO's at the same mean strength m:
        ``(d log P / d logratio_diff) / (m * sigma(-m * logratio_diff))``. It is 1 where ``logratio_diff``
        is 0, below 1 for confidently wrong pairs, above 1 for well-fitted ones, and 1 everywhere for a point.
        The metric of this name is the ratio of the two pulls' means, not the mean of the ratios, which
        well-fitted pairs without any pull would dominate.

    Raises
    ------
    InvalidInputError
        When an argument is no tensor or ``mixing`` no distribution, shapes differ, a value is not finite (the message
        names the pairs), or the mean strength is not a finite number above 0, without which no pair pulls the
        policy where it was preferred.

    References
    ----------
    MixDPO, eq. 3; Rafailov et al. (2023), eq. 7, for DPO.
    """
    given = {
        "policy_chosen_logps": policy_chosen_logps,
        "policy_rejected_logps": policy_rejected_logps,
        "reference_chosen_logps": reference_chosen_logps,
        "reference_rejected_logps": reference_rejected_logps,
    }
    check_pairs(given, weights=weights, pair_ids=pair_ids)
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = map(widened, given.values())
    log_ratio_chosen = policy_chosen - reference_chosen
    log_ratio_rejected = policy_rejected - reference_rejected
    logratio_diff = log_ratio_chosen - log_ratio_rejected
    distribution = mixing() if isinstance(mixing, nn.Module) else mixing
    check_mixing(distribution)
    mean = distribution.mean.detach().expand(logratio_diff.shape)
    if not bool(((mean > 0) & mean.isfinite()).all()):
        raise InvalidInputError(
            explain("mean strength", got=mean.tolist()[:8], expected="finite, above 0", hint="a nonnegative family")
        )
    if integration is not None and (step is not None or pair_ids is not None):
        integration = integration.at(step=step, rows=pair_ids)

    # The slope needs a graph even where the caller wants no gradient.
    with torch.enable_grad():
        delta = logratio_diff if logratio_diff.requires_grad else logratio_diff.detach().requires_grad_()
        log_prob = MixedLogit(delta, distribution, integration).log_prob(torch.ones_like(delta))
        (slope,) = torch.autograd.grad(log_prob.sum(), delta, retain_graph=True)
    if not torch.is_grad_enabled():
        log_prob = log_prob.detach()

    return PreferenceLoss.of(
        -log_prob,
        weights=weights,
        policy=(policy_chosen, policy_rejected),
        log_ratios=(log_ratio_chosen, log_ratio_rejected),
        pull=slope,
        mean=distribution.mean,
        variance=distribution.variance,
    )


@torch.no_grad()
def preference_metrics(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The metrics of `mixdpo_loss` over pairs.

    Parameters
    ----------
    values : mapping of str to Tensor
        (B,) each, as `PreferenceLoss.values` holds them; pairs of weight 0 do not count.

    Returns
    -------
    dict of str to Tensor
        0-d float64.
    """
    values = {name: value.double() for name, value in values.items()}
    share = values["weight"] / values["weight"].sum()

    def average(x: Tensor) -> Tensor:
        return (share * x).sum()

    logratio_diff, mean = values["log_ratio_chosen"] - values["log_ratio_rejected"], values["strength_mean"]
    center = average(logratio_diff)
    return {
        "loss": average(values["loss"]),
        "rewards/accuracies": average((logratio_diff.sign() + 1) / 2),
        "rewards/chosen": average(mean * values["log_ratio_chosen"]),
        "rewards/rejected": average(mean * values["log_ratio_rejected"]),
        "rewards/margins": average(mean * logratio_diff),
        "log_ratio/margins": center,
        "log_ratio/sd": average((logratio_diff - center) ** 2).sqrt(),
        "margin/sum": average(values["policy_chosen"] - values["policy_rejected"]),
        "logps/chosen": average(values["policy_chosen"]),
        "logps/rejected": average(values["policy_rejected"]),
        "strength/mean": average(mean),
        "strength/sd": average(values["strength_variance"]).sqrt(),
        "pair_weight": average(values["pull"]) / average(values["dpo_pull"]),
    }


class MixDPOLoss(nn.Module):
    """`mixdpo_loss` with a strength of its own to learn, and an integration rule.

    Parameters
    ----------
    mixing : LearnableMixing or Pyro distribution
        The starting point is LogNormal(-2.3, 0.6) where not given.
    integration : rule, optional

    Examples
    --------
    In any training loop on pairs the loss is the one line that changes; the optimiser also gets its parameters.

    >>> import torch
    >>> from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    >>> from mixlogit_align.alignment import MixDPOLoss, sequence_logprobs
    >>> sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> policy = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=64, **sizes)).eval()
    >>> chosen, rejected = torch.randint(64, (2, 8, 12))    # 8 pairs of 12 tokens, of which ...
    >>> response = torch.arange(12).expand(8, 12) >= 5      # ... the last 7 are the response
    >>> with torch.no_grad():                               # the policy as it starts is the reference
    ...     reference_chosen = sequence_logprobs(policy, chosen, response)
    ...     reference_rejected = sequence_logprobs(policy, rejected, response)
    >>> preference_loss = MixDPOLoss()
    >>> optimizer = torch.optim.RMSprop([
    ...     {"params": policy.parameters(), "lr": 1e-3},
    ...     {"params": preference_loss.parameters(), "lr": 1e-4},
    ... ])
    >>> for step in range(5):
    ...     policy_chosen = sequence_logprobs(policy, chosen, response)
    ...     policy_rejected = sequence_logprobs(policy, rejected, response)
    ...     out = preference_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    ...     optimizer.zero_grad()
    ...     out.per_example.mean().backward()
    ...     optimizer.step()
    >>> bool(out.metrics["rewards/accuracies"] > 0.9)
    True
    """

    def __init__(self, mixing: LearnableMixing | Any = None, integration: Any = None) -> None:
        super().__init__()
        self.mixing = LearnableMixing.lognormal() if mixing is None else mixing
        self.integration = integration

    def forward(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor,
        reference_rejected_logps: Tensor,
        *,
        weights: Tensor | None = None,
        step: int | None = None,
        pair_ids: Tensor | None = None,
    ) -> PreferenceLoss:
        """See `mixdpo_loss`."""
        return mixdpo_loss(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
            mixing=self.mixing,
            integration=self.integration,
            weights=weights,
            step=step,
            pair_ids=pair_ids,
        )

    def extra_repr(self) -> str:
        """Show the rule beside the mixing."""
        return f"integration={self.integration!r}"


def widened(x: Tensor) -> Tensor:
    """Float32 for half precision: a difference of two sums of hundreds of nats would be noise of half a nat in it."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def check_pairs(pairs: Mapping[str, Tensor | None], *, weights: Tensor | None, pair_ids: Tensor | None = None) -> None:
    """Refuse values of pairs unless all are (B,) tensors of finite numbers.

    Parameters
    ----------
    pairs : mapping of str to Tensor
        What every pair must have; messages take the shape of the first as the others' measure.
    weights, pair_ids : Tensor, optional
        Weights are also 0 or more; the ids name the pairs at fault.

    Raises
    ------
    InvalidInputError
    """
    optional = {"weights": weights, "pair_ids": pair_ids}
    given: dict[str, Any] = {**pairs, **{name: value for name, value in optional.items() if value is not None}}
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise InvalidInputError(
                explain(
                    name,
                    got="None" if value is None else f"an object of type {type(value).__name__}",
                    expected="a tensor of shape (B,), one number a pair",
                    hint="torch.tensor(...)",
                )
            )
    first = next(iter(given))
    shape = given[first].shape
    for name, value in given.items():
        if value.shape != shape or value.ndim != 1:
            beside = f"; {first} has {tuple(shape)}" if len(shape) == 1 else ""
            raise InvalidInputError(
                explain(
                    name,
                    got=f"shape {tuple(value.shape)}",
                    expected=f"shape (B,), one number a pair{beside}",
                    hint="summing log-probabilities over tokens first",
                )
            )
    given.pop("pair_ids", None)
    for name, value in given.items():
        bad = ~value.detach().isfinite()
        if name == "weights":
            bad |= value < 0
        if bool(bad.any()):
            rows = bad.nonzero()[:, 0].tolist()
            ids = "" if pair_ids is None else f", pair_ids {pair_ids[rows[:8]].tolist()}"
            raise InvalidInputError(
                explain(
                    name,
                    got=f"{value[rows[0]].item()} in rows {rows[:8]}{ids}",
                    expected="finite numbers" + (", 0 or more" if name == "weights" else ""),
                    hint="looking at these pairs, a smaller learning rate, or clipping",
                )
            )
