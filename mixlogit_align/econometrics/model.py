"""The mixed logit model of choices, estimated by maximum likelihood."""

from __future__ import annotations

from collections.abc import Mapping

from pyro.distributions import TorchDistribution

from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.families import Random
from mixlogit_align.econometrics.strength import StrengthModel
from mixlogit_align.errors import InvalidInputError, explain


class MixedLogitModel(StrengthModel):
    """Mixed logit with one random coefficient; see :class:`StrengthModel`."""

    def __init__(self, data: ChoiceData, *, random: Mapping[str, str | Random | TorchDistribution]) -> None:
        if len(random) != 1:
            raise InvalidInputError(
                explain(
                    "random",
                    got=f"{len(random)} coefficients {list(random)}",
                    expected="one",
                    hint="the coefficient whose heterogeneity matters most",
                )
            )
        ((variable, spec),) = random.items()
        super().__init__(data, variable, Random.of(spec))
