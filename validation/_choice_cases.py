"""Published and exact estimates of mixed logits on classic data, as cases for studies and tests; xlogit beside them.

The values are those that mlogit's and xlogit's documentation print for these data and draws (both use the same plain
Halton sequence); E7 is exact, by quadrature in two dimensions.
"""

# N individuals, S situations, J alternatives, M random coefficients, R draws.

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mixlogit_align import FixedDraws, QuasiMonteCarlo
from mixlogit_align.distributions import Integration
from mixlogit_align.econometrics import ChoiceData, MixedLogitModel

if TYPE_CHECKING:
    import pandas as pd

XLOGIT_FAMILIES = {"normal": "n", "lognormal": "ln", "uniform": "u", "triangular": "t", "censored_normal": "tn"}


@dataclass(frozen=True)
class ChoiceCase:
    """One published estimation.

    Attributes
    ----------
    name, title : str
    file : str
        Below the folder of the data.
    situation, individual : str
        Columns; ``individual=None``: a cross-section.
    fixed : tuple of str
    random : dict of str to str
        In the order of the dimensions of the draws.
    correlated : bool
    draws : int or None
        Of the plain Halton sequence; None: the default integration.
    loglik : float
    params, std_errors, robust_errors : dict of str to float
        Published ones, by the names of MixedLogitModel.
    tolerance, param_tolerance : float
        Absolute.
    prepare : callable, optional
        Columns to add.
    reversed : tuple of str
        Random coefficients whose published scale is negative: its optimum is ours with these draws reversed.
    multimodal : bool
        Whether there are several optima even in one pattern of signs.
    start : dict of str to float
        Near the published optimum, where it is not the one that a search from the default start finds.
    """

    name: str
    title: str
    file: str
    situation: str
    individual: str | None
    fixed: tuple[str, ...]
    random: dict[str, str]
    draws: int | None
    loglik: float
    params: dict[str, float] = field(default_factory=dict)
    std_errors: dict[str, float] = field(default_factory=dict)
    robust_errors: dict[str, float] = field(default_factory=dict)
    correlated: bool = False
    tolerance: float = 1e-4
    param_tolerance: float = 1e-4
    prepare: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    reversed: tuple[str, ...] = ()
    multimodal: bool = False
    start: dict[str, float] = field(default_factory=dict)

    @property
    def variables(self) -> tuple[str, ...]:
        return (*self.fixed, *self.random)

    def frame(self, folder: Path) -> pd.DataFrame:
        """Long rows, every situation with all alternatives in one order."""
        import pandas as pd

        frame = pd.read_csv(folder / self.file)
        return frame if self.prepare is None else self.prepare(frame)

    def data(self, folder: Path) -> ChoiceData:
        return self.read(self.frame(folder))

    def read(self, frame: pd.DataFrame) -> ChoiceData:
        """The rows as our data."""
        return ChoiceData.from_long(
            frame,
            choice="choice",
            alternative="alt",
            situation=self.situation,
            individual=self.individual,
            variables=list(self.variables),
        )

    def model(self, data: ChoiceData) -> MixedLogitModel:
        return MixedLogitModel(data, list(self.fixed), self.random, self.correlated)

    @property
    def integration(self) -> Integration | None:
        """The rule by name: the plain sequence, scales positive."""
        return None if self.draws is None else QuasiMonteCarlo("halton", self.draws, seed=None)

    def published_draws(self, folder: Path) -> FixedDraws:
        """xlogit's own draws in the published pattern of signs."""
        if self.draws is None:
            raise ValueError(f"{self.name} has no draws")
        sign = torch.tensor([-1.0 if name in self.reversed else 1.0 for name in self.random], dtype=torch.float64)
        draws = torch.from_numpy(self.peer(folder).draws(self.draws)).to(torch.float64)
        return FixedDraws(draws.mT * sign)

    def peer(self, folder: Path) -> Peer:
        return self.beside(self.frame(folder))

    def beside(self, frame: pd.DataFrame) -> Peer:
        """The rows as xlogit's."""
        return Peer(
            {name: frame[name].to_numpy(float) for name in self.variables},
            frame["choice"].to_numpy(),
            frame["alt"].nunique(),
            self.random,
            None if self.individual is None else frame[self.individual].to_numpy(),
        )


class Peer:
    """xlogit on rows of situations times alternatives, in our names and signs.

    Parameters
    ----------
    columns : mapping of str to array (S * J,)
        Attributes, those with a fixed coefficient first.
    choice : array (S * J,)
        0 or 1.
    num_alternatives : int
        J.
    random : mapping of str to str
        Specifications as of MixedLogitModel; a minus reverses the column.
    individual : array (S * J,), optional
        Ascending.
    available : array (S * J,), optional
    weights : array (S * J,), optional
        One value an individual.
    """

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        choice: np.ndarray,
        num_alternatives: int,
        random: Mapping[str, str],
        individual: np.ndarray | None = None,
        available: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        from xlogit import MixedLogit

        self.new = MixedLogit
        self.variables, self.random = tuple(columns), dict(random)
        if list(random) != [name for name in columns if name in random] or any(
            name in random for name in self.variables[: len(columns) - len(random)]
        ):
            raise ValueError("fixed columns first, random ones in the order of random")
        sign = {name: -1.0 if spec.startswith("-") else 1.0 for name, spec in random.items()}
        self.families = {name: XLOGIT_FAMILIES[spec.removeprefix("-")] for name, spec in random.items()}
        self.x = np.stack([sign.get(name, 1.0) * values for name, values in columns.items()], 1)
        self.choice, self.num_alternatives = np.asarray(choice).astype(int), num_alternatives
        self.individual, self.available, self.weights = individual, available, weights
        self.names = [f"{name}.loc" if name in random else name for name in columns]
        self.names += [f"{name}.scale" for name in random]

    @property
    def num_situations(self) -> int:
        return len(self.choice) // self.num_alternatives

    def _person(self) -> np.ndarray:
        first = slice(None, None, self.num_alternatives)
        if self.individual is None:
            return np.arange(self.num_situations)
        return np.unique(self.individual[first], return_inverse=True)[1]

    def _model(self) -> Any:
        model = self.new()
        model._rvidx = np.array([name in self.random for name in self.variables])
        model._rvdist = list(self.families.values())
        return model

    def draws(self, num_draws: int) -> np.ndarray:
        """xlogit's own Halton draws, (N, M, R)."""
        return np.asarray(self._model()._generate_draws(int(self._person()[-1]) + 1, num_draws, True))

    def loglik_gradient(self, params: Mapping[str, float], draws: np.ndarray) -> tuple[float, np.ndarray]:
        """Log-likelihood and gradient, in the order of ``names``."""
        s, j, k = self.num_situations, self.num_alternatives, len(self.variables)
        x, chosen = self.x.reshape(s, j, k), self.choice.reshape(s, j).astype(bool)
        difference = x[~chosen].reshape(s, j - 1, k) - x[chosen].reshape(s, 1, k)
        available = None
        if self.available is not None:
            available = self.available.reshape(s, j)[~chosen].reshape(s, j - 1).astype(float)
        person = self._person()
        weights = None
        if self.weights is not None:
            weights = self.weights[:: self.num_alternatives][np.unique(person, return_index=True)[1]]
        panels = None if self.individual is None else person
        value, gradient, _ = self._model()._loglik_gradient(
            np.array([params[name] for name in self.names]), difference, panels, draws[person], weights, available,
            None, None, None
        )  # fmt: skip
        return -float(value), -np.asarray(gradient)

    def fit(self, num_draws: int, start: Mapping[str, float] | None = None, **options: Any) -> Any:
        """xlogit's fit, silenced; whatever it raises goes through."""
        model, rows = self.new(), np.arange(len(self.choice))
        if start is not None:
            options["init_coeff"] = np.array([start[name] for name in self.names])
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            model.fit(
                X=self.x,
                y=self.choice,
                varnames=list(self.variables),
                alts=rows % self.num_alternatives,
                ids=rows // self.num_alternatives,
                panels=self.individual,
                avail=self.available,
                weights=self.weights,
                randvars=self.families,
                n_draws=num_draws,
                verbose=0,
                **options,
            )
        return model

    def params(self, model: Any) -> dict[str, float]:
        """xlogit's coefficients in our names, scales of either sign."""
        return dict(zip(self.names, model.coeff_.tolist(), strict=True))


def _electricity(name: str, title: str, **options: Any) -> ChoiceCase:
    return ChoiceCase(name, title, "electricity_long.csv", "chid", "id", **options)


def _fishing(name: str, title: str, **options: Any) -> ChoiceCase:
    random = {"price": "normal", "catch": "normal"}
    return ChoiceCase(name, title, "fishing_long.csv", "id", None, (), random, **options)


def _cars(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(price=-frame["price"] / 10_000, opcost=-frame["opcost"])


def _brands(frame: pd.DataFrame) -> pd.DataFrame:
    brands = ("yoplait", "hiland", "weight")
    return frame.assign(**{brand: (frame["alt"] == brand).astype(float) for brand in brands})


_FIVE = {"cl": "normal", "loc": "normal", "wk": "uniform", "tod": "-lognormal", "seas": "-lognormal"}

CASES = (
    _electricity(
        "P1",
        "electricity, six normals",
        fixed=(),
        random=dict.fromkeys(("pf", "cl", "loc", "wk", "tod", "seas"), "normal"),
        draws=600,
        loglik=-3888.465070,
        params={
            "pf.loc": -0.9972102,
            "cl.loc": -0.2196812,
            "loc.loc": 2.2901807,
            "wk.loc": 1.6943247,
            "tod.loc": -9.6752279,
            "seas.loc": -9.6961836,
            "pf.scale": 0.2207255,
            "cl.scale": 0.4115547,
            "loc.scale": 1.7840255,
            "wk.scale": 1.2296227,
            "tod.scale": 2.2757059,
            "seas.scale": 1.4862206,
        },
        std_errors={
            "pf.loc": 0.0378,
            "cl.loc": 0.0255,
            "loc.loc": 0.1263,
            "wk.loc": 0.0962,
            "tod.loc": 0.3351,
            "seas.loc": 0.3247,
            "pf.scale": 0.0191,
            "cl.scale": 0.0255,
            "loc.scale": 0.1181,
            "wk.scale": 0.0944,
            "tod.scale": 0.1738,
            "seas.scale": 0.1638,
        },
    ),
    _electricity(
        "P1b",
        "electricity, six normals",
        fixed=(),
        random=dict.fromkeys(("pf", "cl", "loc", "wk", "tod", "seas"), "normal"),
        draws=500,
        loglik=-3891.7177,
    ),
    _electricity(
        "P2",
        "electricity, pf fixed, five normals",
        fixed=("pf",),
        random=dict.fromkeys(("cl", "loc", "wk", "tod", "seas"), "normal"),
        draws=100,
        loglik=-3961.7353,
        params={
            "pf": -0.879902,
            "cl.loc": -0.217059,
            "loc.loc": 2.092298,
            "wk.loc": 1.490902,
            "tod.loc": -8.581835,
            "seas.loc": -8.583281,
            "cl.scale": 0.373477,
            "loc.scale": 1.558857,
            "wk.scale": 1.050810,
            "tod.scale": 2.694660,
            "seas.scale": 1.950728,
        },
    ),
    _electricity(
        "P3",
        "electricity, two normals, one uniform, two lognormals",
        fixed=("pf",),
        random=_FIVE,
        draws=100,
        loglik=-3976.5325,
        params={
            "pf": -0.868985,
            "cl.loc": -0.211334,
            "loc.loc": 2.023876,
            "wk.loc": 1.479118,
            "tod.loc": 2.112378,
            "seas.loc": 2.124205,
            "cl.scale": 0.373120,
            "loc.scale": 1.548511,
            "wk.scale": 1.521790,
            "tod.scale": 0.367077,
            "seas.scale": 0.275352,
        },
    ),
    _electricity(
        "P3c",
        "P3, its five random coefficients correlated",
        # mlogit makes every latent normal where coefficients are correlated, wk's too
        fixed=("pf",),
        random={**_FIVE, "wk": "normal"},
        correlated=True,
        draws=100,
        loglik=-3851.4,
        params={
            "pf": -0.917703974,
            "cl.loc": -0.215851727,
            "loc.loc": 2.392570989,
            "wk.loc": 1.747531863,
            "tod.loc": 2.155462393,
            "seas.loc": 2.169548103,
            "chol.cl.cl": 0.396252325,
            "chol.loc.cl": 0.617497150,
            "chol.loc.loc": 2.071718067,
            "chol.wk.cl": 0.195238185,
            "chol.wk.loc": 1.236664544,
            "chol.wk.wk": 0.643190285,
            "chol.tod.cl": 0.001982314,
            "chol.tod.loc": -0.062508396,
            "chol.tod.wk": 0.160672338,
            "chol.tod.tod": 0.375855648,
            "chol.seas.cl": 0.025996362,
            "chol.seas.loc": 0.001225349,
            "chol.seas.wk": 0.141381623,
            "chol.seas.tod": 0.089990150,
            "chol.seas.seas": 0.211244575,
        },
        tolerance=0.1,
        reversed=("loc",),
    ),
    _fishing(
        "P4",
        "fishing, price and catch normal",
        draws=1000,
        reversed=("catch",),
        loglik=-1300.5113,
        params={
            "price.loc": -0.0272460,
            "catch.loc": 1.3271150,
            "price.scale": 0.0102130,
            "catch.scale": 1.5706825,
        },
    ),
    _fishing(
        "E7",
        "fishing, exact",
        draws=None,
        loglik=-1300.57594,
        params={
            "price.loc": -0.0272547,
            "catch.loc": 1.3260424,
            "price.scale": 0.0102657,
            "catch.scale": 1.5669977,
        },
        std_errors={
            "price.loc": 0.0022841,
            "catch.loc": 0.1738699,
            "price.scale": 0.0021235,
            "catch.scale": 0.3750574,
        },
        robust_errors={
            "price.loc": 0.0021034,
            "catch.loc": 0.1837072,
            "price.scale": 0.0021258,
            "catch.scale": 0.2995603,
        },
        param_tolerance=1e-5,
    ),
    ChoiceCase(
        "P5",
        "artificial, three normals, seven fixed",
        "artificial_long.csv",
        "id",
        None,
        fixed=("price", "time", "conven", "comfort", "nonsig1", "nonsig2", "nonsig3"),
        random=dict.fromkeys(("meals", "petfr", "emipp"), "normal"),
        draws=500,
        loglik=-2278.897780,
        params={
            "price": -1.03374,
            "time": -1.46147,
            "conven": 0.89478,
            "comfort": 1.06387,
            "meals.loc": 1.70994,
            "petfr.loc": 3.87864,
            "emipp.loc": -2.02467,
            "nonsig1": 0.06770,
            "nonsig2": 0.01363,
            "nonsig3": 0.02103,
            "meals.scale": 0.70175,
            "petfr.scale": 1.22305,
            "emipp.scale": 1.03390,
        },
    ),
    ChoiceCase(
        "P6",
        "cars, price and range lognormal, three normals, two fixed",
        "car100_long.csv",
        "choice_id",
        "person_id",
        fixed=("hiperf", "medhiperf"),
        random={"price": "lognormal", "opcost": "normal", "range": "lognormal", "ev": "normal", "hybrid": "normal"},
        draws=100,
        loglik=-1302.682761,
        params={
            "price.loc": -0.7871346,
            "range.loc": -0.6857957,
            "price.scale": 0.8666443,
            "range.scale": 0.5527011,
        },
        prepare=_cars,
        reversed=("range",),
        multimodal=True,
    ),
    ChoiceCase(
        "P12",
        "yogurt, price fixed, four normals",
        "yogurt_long.csv",
        "chid",
        "id",
        fixed=("price",),
        random=dict.fromkeys(("feat", "yoplait", "hiland", "weight"), "normal"),
        draws=1000,
        loglik=-1247.1991,
        params={"price": -0.4564785, "feat.loc": 1.0826681},
        prepare=_brands,
        multimodal=True,
        start={
            "price": -0.456,
            "feat.loc": 1.083,
            "feat.scale": 1.078,
            "yoplait.loc": 0.892,
            "yoplait.scale": 3.782,
            "hiland.loc": -5.541,
            "hiland.scale": 2.820,
            "weight.loc": -3.945,
            "weight.scale": 3.787,
        },
    ),
)

BY_NAME = {case.name: case for case in CASES}
