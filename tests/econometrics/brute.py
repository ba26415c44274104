"""The mixed logit written out row by row, for tests: one softmax a situation, one loop over individuals, autograd.

Shares nothing with the package but the names of parameters.
"""

# N individuals, K draws, M base variates.

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy.special
import torch
from torch import Tensor

from mixlogit_align.econometrics import ChoiceData, MixedLogitModel, Random

VARIABLES = ("a", "b", "c", "d")
Params = Mapping[str, Tensor]
# Parameters, base variates (M of them, (K,) each), covariates of the individual -> coefficients, scalar or (K,).
Coefficients = Callable[[Params, Any, Mapping[str, float]], dict[str, Tensor]]


@dataclass(frozen=True)
class Case:
    """A specification for the package and, by hand, the coefficients that it means."""

    name: str
    params: dict[str, float]
    coefficients: Coefficients
    model: dict[str, Any]
    logged: tuple[str, ...] = ()
    differentiable: bool = True
    bases: str = "z"
    options: dict[str, Any] = field(default_factory=dict)

    def of(self, data: ChoiceData) -> MixedLogitModel:
        return MixedLogitModel(data, **self.model)

    def base(self, rows: int, draws: int, seed: int = 0) -> Tensor:
        """Standard variables (rows, draws, M): standard normals, U(-1, 1), triangular or U(0, 1), one letter each."""
        rng = np.random.default_rng(seed)
        make = {
            "z": rng.standard_normal,
            "u": lambda size: rng.uniform(-1.0, 1.0, size),
            "t": lambda size: rng.triangular(-1.0, 0.0, 1.0, size),
            "p": lambda size: rng.uniform(0.01, 0.99, size),
        }
        return torch.from_numpy(np.stack([make[letter]((rows, draws)) for letter in self.bases], -1))

    def natural(self, theta: Tensor) -> dict[str, Tensor]:
        """Parameters from estimated coordinates."""
        values = zip(self.params, theta, strict=True)
        return {name: value.exp() if name in self.logged else value for name, value in values}


def truncated(loc: Tensor, scale: Tensor, low: float, high: float, u: Tensor) -> Tensor:
    below = torch.special.ndtr((low - loc) / scale)
    # autograd of a quantile at infinity is 0 * inf
    above = torch.special.ndtr((high - loc) / scale) if high < torch.inf else torch.ones_like(loc)
    return loc + scale * torch.special.ndtri(below + u * (above - below))


def gamma(concentration: Tensor, rate: Tensor, u: Tensor) -> Tensor:
    """Values alone: no derivatives."""
    return torch.from_numpy(scipy.special.gammaincinv(float(concentration), u.numpy())) / rate


def _one(
    name: str,
    random: str | Random,
    params: dict[str, float],
    coefficient: Callable[[Params, Tensor], Tensor],
    **more: Any,
) -> Case:
    """One fixed coefficient and one random one."""
    return Case(
        name,
        {"a": 0.4} | params,
        lambda p, v, z: {"a": p["a"], "b": coefficient(p, v[0])},
        {"fixed": ["a"], "random": {"b": random}},
        **more,
    )


def _located(p: Params, v: Tensor) -> Tensor:
    return p["b.loc"] + p["b.scale"] * v


_SPREAD = {"b.loc": 0.3, "b.scale": 0.8}

FAMILIES = (
    _one("normal", "normal", _SPREAD, _located),
    _one("lognormal", "lognormal", _SPREAD, lambda p, v: _located(p, v).exp()),
    _one("-lognormal", "-lognormal", _SPREAD, lambda p, v: -_located(p, v).exp()),
    _one("uniform", "uniform", _SPREAD, _located, bases="u"),
    _one("triangular", "triangular", _SPREAD, _located, bases="t"),
    _one("censored_normal", "censored_normal", _SPREAD, lambda p, v: _located(p, v).clamp_min(0.0)),
    _one("-censored_normal", "-censored_normal", _SPREAD, lambda p, v: -_located(p, v).clamp_min(0.0)),
    _one("johnson_sb", "johnson_sb", _SPREAD, lambda p, v: torch.sigmoid(_located(p, v))),
    _one(
        "-johnson_sb within bounds",
        Random("johnson_sb", sign=-1, bounds=(0.5, 2.0)),
        _SPREAD,
        lambda p, v: -(0.5 + 1.5 * torch.sigmoid(_located(p, v))),
    ),
    _one(
        "-truncated_normal",
        "-truncated_normal",
        _SPREAD,
        lambda p, v: -truncated(p["b.loc"], p["b.scale"], 0.0, torch.inf, v),
        bases="p",
        logged=("b.scale",),
    ),
    _one(
        "truncated_normal within bounds",
        Random("truncated_normal", bounds=(-1.0, 1.5)),
        _SPREAD,
        lambda p, v: truncated(p["b.loc"], p["b.scale"], -1.0, 1.5, v),
        bases="p",
        logged=("b.scale",),
    ),
    *(
        _one(
            f"{sign}gamma",
            f"{sign}gamma",
            {"b.concentration": 2.3, "b.rate": 1.7},
            lambda p, v, factor=factor: factor * gamma(p["b.concentration"], p["b.rate"], v),
            bases="p",
            logged=("b.concentration", "b.rate"),
            differentiable=False,
        )
        for sign, factor in (("", 1.0), ("-", -1.0))
    ),
)


def _correlated(p: Params, v: Any, z: Mapping[str, float]) -> dict[str, Tensor]:
    return {
        "a": p["a"],
        "b": p["b.loc"] + p["chol.b.b"] * v[0],
        "c": -torch.exp(p["c.loc"] + p["chol.c.b"] * v[0] + p["chol.c.c"] * v[1]),
        "d": p["d.loc"] + p["chol.d.b"] * v[0] + p["chol.d.c"] * v[1] + p["chol.d.d"] * v[2],
    }


_CHOLESKY = {"chol.b.b": 0.7, "chol.c.b": -0.3, "chol.c.c": 0.5, "chol.d.b": 0.2, "chol.d.c": -0.4, "chol.d.d": 0.6}


def _scaled(tau: Tensor, v: Tensor, coefficients: dict[str, Tensor]) -> dict[str, Tensor]:
    factor = torch.exp(tau * v - tau**2 / 2.0)
    return {name: factor * value for name, value in coefficients.items()}


def _in_wtp_space(price: str, coefficients: dict[str, Tensor]) -> dict[str, Tensor]:
    cost = coefficients[price]
    return {name: value if name == price else -cost * value for name, value in coefficients.items()}


MIXTURES = (
    Case("conditional logit", {"a": 0.4, "b": -0.7}, lambda p, v, z: dict(p), {"fixed": ["a", "b"]}, bases=""),
    Case(
        "all random",
        {"a.loc": 0.4, "a.scale": 0.9, "b.loc": -0.2, "b.scale": 0.5},
        lambda p, v, z: {x: p[f"{x}.loc"] + p[f"{x}.scale"] * v[i] for i, x in enumerate("ab")},
        {"random": {"a": "normal", "b": "uniform"}},
        bases="zu",
    ),
    Case(
        "one block of all",
        {"a": 0.4, "b.loc": 0.3, "c.loc": -0.2, "d.loc": 0.1} | _CHOLESKY,
        _correlated,
        {"fixed": ["a"], "random": {"b": "normal", "c": "-lognormal", "d": "normal"}, "correlated": True},
        bases="zzz",
    ),
    Case(
        "a block across another coefficient",
        {"b.loc": 0.3, "c.loc": -0.2, "c.scale": 0.5, "d.loc": 0.1}
        | {"chol.b.b": 0.7, "chol.d.b": 0.2, "chol.d.d": 0.6},
        lambda p, v, z: {
            "b": p["b.loc"] + p["chol.b.b"] * v[0],
            "c": p["c.loc"] + p["c.scale"] * v[1],
            "d": torch.sigmoid(p["d.loc"] + p["chol.d.b"] * v[0] + p["chol.d.d"] * v[2]),
        },
        {"random": {"b": "uniform", "c": "triangular", "d": "johnson_sb"}, "correlated": [["d", "b"]]},
        bases="utz",
    ),
    Case(
        "means that depend on covariates",
        {
            "a": 0.4,
            "b.loc": 0.3,
            "b.loc:age": -0.5,
            "b.loc:size": 0.3,
            "b.scale": 0.8,
            "c.loc": -0.4,
            "c.loc:size": 0.6,
            "c.scale": 0.5,
        },
        lambda p, v, z: {
            "a": p["a"],
            "b": p["b.loc"] + p["b.loc:age"] * z["age"] + p["b.loc:size"] * z["size"] + p["b.scale"] * v[0],
            "c": -torch.exp(p["c.loc"] + p["c.loc:size"] * z["size"] + p["c.scale"] * v[1]),
        },
        {
            "fixed": ["a"],
            "random": {
                "b": Random("normal", mean_covariates=("age", "size")),
                "c": Random("lognormal", sign=-1, mean_covariates="size"),
            },
        },
        bases="zz",
    ),
    Case(
        "WTP space, fixed price",
        {"a": -0.6, "b.loc": 0.5, "b.scale": 0.7},
        lambda p, v, z: _in_wtp_space("a", {"a": p["a"], "b": p["b.loc"] + p["b.scale"] * v[0]}),
        {"fixed": ["a"], "random": {"b": "normal"}, "wtp_space": "a"},
    ),
    Case(
        "WTP space, random price",
        {"b": 0.8, "a.loc": -0.4, "a.scale": 0.6, "c.loc": 0.5, "c.scale": 0.7},
        lambda p, v, z: _in_wtp_space(
            "a",
            {
                "b": p["b"],
                "a": -torch.exp(p["a.loc"] + p["a.scale"] * v[0]),
                "c": p["c.loc"] + p["c.scale"] * v[1],
            },
        ),
        {"fixed": ["b"], "random": {"a": "-lognormal", "c": "normal"}, "wtp_space": "a"},
        bases="zz",
    ),
    Case(
        "scale heterogeneity alone",
        {"a": 0.4, "b": -0.7, "tau": 0.6},
        lambda p, v, z: _scaled(p["tau"], v[0], {"a": p["a"], "b": p["b"]}),
        {"fixed": ["a", "b"], "scale_heterogeneity": True},
    ),
    Case(
        "everything at once",
        {"b": 0.8, "a.loc": -0.4, "c.loc": 0.5, "c.loc:age": -0.3, "d.loc": 0.3, "d.scale": 0.4}
        | {"chol.a.a": 0.6, "chol.c.a": -0.2, "chol.c.c": 0.5, "tau": 0.3},
        lambda p, v, z: _scaled(
            p["tau"],
            v[3],
            _in_wtp_space(
                "a",
                {
                    "b": p["b"],
                    "a": -torch.exp(p["a.loc"] + p["chol.a.a"] * v[0]),
                    "c": p["c.loc"] + p["c.loc:age"] * z["age"] + p["chol.c.a"] * v[0] + p["chol.c.c"] * v[1],
                    "d": truncated(p["d.loc"], p["d.scale"], 0.0, torch.inf, v[2]),
                },
            ),
        ),
        {
            "fixed": ["b"],
            "random": {
                "a": "-lognormal",
                "c": Random("normal", mean_covariates="age"),
                "d": "truncated_normal",
            },
            "correlated": [["a", "c"]],
            "wtp_space": "a",
            "scale_heterogeneity": True,
        },
        bases="zzpz",
        logged=("d.scale",),
    ),
)

CASES = (*FAMILIES, *MIXTURES)


def choices(kind: str = "panel", *, people: int = 9, units: float = 1.0, seed: int = 1) -> pd.DataFrame:
    """Rows of situations times alternatives; choices by lot, since derivatives need no truth.

    ``kind``: a panel of 1 to 7 situations and choice sets of 2 to 4, a cross-section of the same sets, or
    ``"balanced"``, 3 situations of 3 alternatives. Columns a to d are attributes, age and size belong to the person.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for person in range(people):
        lasts = {"panel": 1 + person % 7, "cross-section": 1, "balanced": 3}[kind]
        weight, age, size = rng.integers(1, 4), rng.standard_normal(), rng.standard_normal()
        for situation in range(lasts):
            offered = np.ones(3, bool) if kind == "balanced" else np.arange(4) < 2
            if kind != "balanced":
                offered[2:] = rng.random(2) < 0.6
                rng.shuffle(offered)
            chosen = rng.choice(np.flatnonzero(offered))
            for alternative, there in enumerate(offered):
                rows.append(
                    {
                        "person": f"p{person:02}",
                        "situation": f"{person}-{situation}",
                        "alternative": "wxyz"[alternative],
                        "chosen": int(alternative == chosen),
                        "offered": int(there),
                        "frequency": weight / 2,
                        "age": age,
                        "size": size,
                        **{name: units * rng.standard_normal() for name in VARIABLES},
                    }
                )
    return pd.DataFrame(rows)


def choose(frame: pd.DataFrame, coefficients: Mapping[str, Any], *, seed: int) -> pd.DataFrame:
    """Choices by utility plus Gumbel noise; coefficients are numbers, or arrays with one a person."""
    rng = np.random.default_rng(seed)
    person = pd.factorize(frame["person"])[0]
    utility = rng.gumbel(size=len(frame))
    for name, value in coefficients.items():
        utility += frame[name].to_numpy() * np.broadcast_to(value, person.max() + 1)[person]
    utility = pd.Series(np.where(frame["offered"] == 1, utility, -np.inf), frame.index)
    best = utility.groupby(frame["situation"]).transform("max")
    return frame.assign(chosen=(utility == best).astype(int))


def read(frame: pd.DataFrame, *, panel: bool = True, weighted: bool = True, **options: Any) -> ChoiceData:
    return ChoiceData.from_long(
        frame,
        choice="chosen",
        alternative="alternative",
        situation="situation",
        individual="person" if panel else None,
        availability="offered",
        weights="frequency" if weighted else None,
        **({"variables": [*VARIABLES, "age", "size"]} | options),
    )


def loglik(frame: pd.DataFrame, case: Case, params: Params, base: Tensor, log_weight: Tensor) -> Tensor:
    """Log-likelihood of each individual, (N,); base (N or 1, K, M), log_weight (N or 1, K)."""
    found = []
    for n, (_, rows) in enumerate(frame.groupby("person", sort=False)):
        covariates = {name: float(rows[name].iloc[0]) for name in ("age", "size")}
        beta = case.coefficients(params, base[n % len(base)].unbind(-1), covariates)
        total = log_weight[n % len(log_weight)]
        for _, offered in rows[rows["offered"] == 1].groupby("situation", sort=False):
            terms = [torch.tensor(offered[name].to_numpy())[:, None] * value for name, value in beta.items()]
            utility = torch.stack([term.expand(len(offered), len(total)) for term in terms]).sum(0)
            total = total + torch.log_softmax(utility, 0)[int(offered["chosen"].to_numpy().argmax())]
        found.append(torch.logsumexp(total, 0))
    return torch.stack(found)
