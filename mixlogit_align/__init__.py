"""Mixed logit as a Pyro distribution, for choices and for preference alignment.

P(y = 1) = E_{strength ~ mixing}[sigma(strength * utility_diff)], exact where it can be, honest about its error where
it cannot. Importing this package loads nothing heavy: public names are resolved when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_DISTRIBUTIONS = (
    "MixedLogit",
    "PanelMixedLogit",
    "MixedMultinomialLogit",
    "MixedPlackettLuce",
    "LearnableMixing",
    "ClosedForm",
    "Quadrature",
    "MonteCarlo",
    "QuasiMonteCarlo",
    "ImportanceSampling",
    "FixedDraws",
)

__all__ = [*_DISTRIBUTIONS, "__version__"]

if TYPE_CHECKING:
    from mixlogit_align.distributions import (
        ClosedForm,
        FixedDraws,
        ImportanceSampling,
        LearnableMixing,
        MixedLogit,
        MixedMultinomialLogit,
        MixedPlackettLuce,
        MonteCarlo,
        PanelMixedLogit,
        Quadrature,
        QuasiMonteCarlo,
    )


def __getattr__(name: str) -> Any:
    if name in _DISTRIBUTIONS:
        return getattr(importlib.import_module("mixlogit_align.distributions"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_DISTRIBUTIONS])
