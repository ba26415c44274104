"""What is measured of each pair."""

# N pairs.

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from mixlogit_align.alignment.data.columns import require_known
from mixlogit_align.alignment.evaluation.pairs import PairTable, Vector
from mixlogit_align.errors import InvalidInputError, explain

Metric = Callable[[PairTable], Vector | None]


def _margin_sum(table: PairTable) -> Vector | None:
    if table.policy_chosen is None or table.policy_rejected is None:
        return None
    return table.policy_chosen - table.policy_rejected


def _margin_avg(table: PairTable) -> Vector | None:
    if table.policy_chosen is None or table.policy_rejected is None:
        return None
    if table.chosen_tokens is None or table.rejected_tokens is None:
        return None
    return table.policy_chosen / table.chosen_tokens - table.policy_rejected / table.rejected_tokens


def _margin_reward(table: PairTable) -> Vector | None:
    if table.logratio_diff is None or table.strength_mean is None:
        return None
    return table.strength_mean * table.logratio_diff


def _log_ratio_margins(table: PairTable) -> Vector | None:
    return table.logratio_diff


def _accuracy(table: PairTable) -> Vector | None:
    return _ranked(table.logratio_diff)


def _accuracy_sum(table: PairTable) -> Vector | None:
    return _ranked(_margin_sum(table))


def _loglik(table: PairTable) -> Vector | None:
    return table.loglik


def _ranked(margin: Vector | None) -> Vector | None:
    """1 where the chosen response is ahead, 0 where it is behind, 1/2 for a tie."""
    return None if margin is None else (np.sign(margin) + 1.0) / 2.0


METRICS: dict[str, Metric] = {
    "margin/sum": _margin_sum,
    "margin/avg": _margin_avg,
    "margin/reward": _margin_reward,
    "log_ratio/margins": _log_ratio_margins,
    "accuracy": _accuracy,
    "accuracy/sum": _accuracy_sum,
    "loglik": _loglik,
}


def pair_metrics(table: PairTable, names: Iterable[str] | None = None) -> dict[str, Vector]:
    """The metrics of each pair.

    Parameters
    ----------
    table : PairTable
    names : iterable of str, optional
        By default all that the table's columns allow:

        - ``margin/sum``: ``log pi(chosen) - log pi(rejected)`` under the policy alone, in nats (Meng et al. 2024, and
          the paper's preference margin). It favours pairs whose rejected response is long.
        - ``margin/avg``: the same with each log-probability divided by its response's tokens; nats a token. Policies
          of different tokenizers have different tokens.
        - ``margin/reward``: mean strength times the log-ratio difference to the reference, DPO's implicit reward.
        - ``log_ratio/margins``: the log-ratio difference itself, in nats, free of the strength.
        - ``accuracy``: 1 where the log-ratio difference favours the chosen response, 0 where it favours the other, 1/2
          for a tie (equal responses tie).
        - ``accuracy/sum``: the same by ``margin/sum``; for policies without a reference.
        - ``loglik``: ``log P(chosen) = log E sigma(strength * logratio_diff)``, the marginal log-likelihood, in nats;
          -log 2 is a coin.

    Returns
    -------
    dict of str to array, shape (N,)

    Raises
    ------
    InvalidInputError
        For an unknown metric, or one whose columns the table lacks; for a table that allows none.
    """
    wanted = METRICS if names is None else list(names)
    require_known(wanted, METRICS, "metrics", "metric")
    found = {name: values for name in wanted if (values := METRICS[name](table)) is not None}
    lacking = [] if names is None else [name for name in wanted if name not in found]
    if lacking or not found:
        raise InvalidInputError(
            explain(
                f"metrics of {table.name}",
                got=f"too few columns for {', '.join(lacking) or 'any'}",
                expected="log-probabilities of the policy, or log-ratio differences with their strength",
                hint="scoring the policy, see `mixlogit_align.alignment.evaluation.run_pairs`",
            )
        )
    return found
