"""Names, coordinates, moments and refusals of specifications; the coefficients themselves are in test_likelihood.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from mixlogit_align.econometrics import MixedLogitModel, Random
from mixlogit_align.econometrics.specification import Specification
from mixlogit_align.errors import InvalidInputError
from tests.econometrics.brute import CASES, Case, choices, read

by_name = {"ids": lambda case: case.name}


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def specified(case: Case) -> Specification:
    model = case.model
    return Specification.of(
        model.get("fixed", ()),
        model.get("random", {}),
        model.get("correlated", False),
        model.get("wtp_space"),
        model.get("scale_heterogeneity", False),
    )


NAMED = {case.name: case for case in CASES}


@pytest.mark.parametrize("case", CASES, **by_name)
def test_names_and_coordinates(case: Case) -> None:
    spec = specified(case)
    assert spec.names == tuple(case.params)
    assert spec.index == {name: i for i, name in enumerate(case.params)}
    assert spec.logged == case.logged
    assert spec.num_dims == len(case.bases)
    natural = f64(*case.params.values())
    expected = [math.log(value) if name in case.logged else value for name, value in case.params.items()]
    torch.testing.assert_close(spec.theta(natural), f64(*expected), rtol=1e-15, atol=0)
    torch.testing.assert_close(spec.natural(spec.theta(natural)), natural, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("conditional logit", ()),
        ("one block of all", ("chol.b.b", "chol.c.c", "chol.d.d")),
        ("a block across another coefficient", ("c.scale", "chol.b.b", "chol.d.d")),
        ("gamma", ()),
        ("-truncated_normal", ("b.scale",)),
        ("everything at once", ("d.scale", "chol.a.a", "chol.c.c", "tau")),
    ],
)
def test_scales_have_0_as_their_boundary(name: str, scales: tuple[str, ...]) -> None:
    assert specified(NAMED[name]).scales == scales


@pytest.mark.parametrize("case", [case for case in CASES if specified(case).mirrored], **by_name)
def test_a_negative_scale_is_a_reversed_draw(case: Case) -> None:
    spec = specified(case)
    base, covariates = case.base(1, 5), torch.randn(1, 2, dtype=torch.float64)[:, : len(spec.covariates)]
    natural = f64(*case.params.values())
    constant, varying = spec.coefficients(spec.theta(natural)[None], base, covariates)
    assert set(spec.mirrored) == set(spec.scales) - set(spec.logged)
    for column, together in spec.mirrored.values():
        base[..., column] *= -1.0
        for name in together:
            natural[spec.index[name]] *= -1.0
    again = spec.coefficients(spec.theta(natural)[None], base, covariates)
    torch.testing.assert_close(again, (constant, varying), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("conditional logit", "a, b"),
        ("-lognormal", "a, b -lognormal"),
        ("a block across another coefficient", "b uniform, c triangular, d johnson_sb; correlated: b, d"),
        ("WTP space, fixed price", "a, b normal; in WTP space, price a"),
        ("scale heterogeneity alone", "a, b; scale heterogeneity"),
    ],
)
def test_a_specification_in_words(name: str, text: str) -> None:
    assert str(specified(NAMED[name])) == text


# ------------------------------------------------------------------ moments


def moments(random: Random, first: float, second: float) -> dict[str, float]:
    spec = Specification.of((), {"b": random}, False, None, False)
    names, values = spec.moments(f64(first, second), f64())
    return dict(zip(names, values.tolist(), strict=True))


LOC, SCALE = 0.3, 0.8


def of_transformed(transform: Any) -> tuple[float, float]:
    """Mean and standard deviation of a function of a standard normal, by quadrature in pieces."""
    z, weight = np.polynomial.legendre.leggauss(200)
    # pieces that end where the censored normal bends
    ends = np.array([-12.0, -LOC / SCALE, 12.0])
    half = np.diff(ends)[:, None] / 2
    z = ends[:-1, None] + half * (z + 1)
    weight = half * weight * scipy.stats.norm.pdf(z)
    raw = [float((weight * transform(z) ** k).sum()) for k in (1, 2)]
    return raw[0], math.sqrt(raw[1] - raw[0] ** 2)


def of_scipy(distribution: Any) -> tuple[float, float]:
    return distribution.mean(), distribution.std()


EXACT = {
    "normal": (LOC, SCALE),
    "lognormal": of_scipy(scipy.stats.lognorm(SCALE, scale=math.exp(LOC))),
    "uniform": of_scipy(scipy.stats.uniform(LOC - SCALE, 2 * SCALE)),
    "triangular": of_scipy(scipy.stats.triang(0.5, LOC - SCALE, 2 * SCALE)),
    "truncated_normal": of_scipy(scipy.stats.truncnorm(-LOC / SCALE, math.inf, LOC, SCALE)),
    "censored_normal": of_transformed(lambda z: np.maximum(0.0, LOC + SCALE * z)),
    "johnson_sb": of_transformed(lambda z: 1 / (1 + np.exp(-LOC - SCALE * z))),
    "gamma": of_scipy(scipy.stats.gamma(LOC, scale=1 / SCALE)),
}


@pytest.mark.parametrize("family", EXACT)
def test_moments_are_scipys(family: str) -> None:
    """The kink of the censored normal costs the fixed rule of 512 nodes 1e-4 of the standard deviation at most."""
    mean, sd = EXACT[family]
    tolerance = 1e-4 if family == "censored_normal" else 1e-8
    assert moments(Random(family), LOC, SCALE) == pytest.approx({"b.mean": mean, "b.sd": sd}, rel=tolerance)
    if Random(family).positive:
        found = moments(Random(family, sign=-1), LOC, SCALE)
        assert found == pytest.approx({"b.mean": -mean, "b.sd": sd}, rel=tolerance)


@pytest.mark.parametrize(
    ("random", "exact"),
    [
        (
            Random("truncated_normal", bounds=(-1.0, 1.5)),
            of_scipy(scipy.stats.truncnorm((-1 - LOC) / SCALE, (1.5 - LOC) / SCALE, LOC, SCALE)),
        ),
        (
            Random("johnson_sb", bounds=(0.5, 2.0), sign=-1),
            of_transformed(lambda z: -0.5 - 1.5 / (1 + np.exp(-LOC - SCALE * z))),
        ),
    ],
)
def test_moments_within_bounds(random: Random, exact: tuple[float, float]) -> None:
    assert tuple(moments(random, LOC, SCALE).values()) == pytest.approx(exact, rel=1e-8)


FACTOR = np.array([[0.7, 0.0, 0.0], [-0.3, 0.5, 0.0], [0.2, -0.4, 0.6]])
NODES = {
    "normal": np.polynomial.hermite_e.hermegauss(40),
    "uniform": np.polynomial.legendre.leggauss(40),
    "triangular": tuple(  # two triangles, each with its own nodes
        np.concatenate(parts)
        for parts in zip(
            *(
                (half * (x + 1) / 2, w * (1 - (x + 1) / 2) / 2)
                for half in (-1, 1)
                for x, w in [np.polynomial.legendre.leggauss(40)]
            ),
            strict=True,
        )
    ),
}
TRANSFORMS = {
    "lognormal": np.exp,
    "censored_normal": lambda x: np.maximum(x, 0.0),
    "johnson_sb": lambda x: 1 / (1 + np.exp(-x)),
}


def block_moments(random: dict[str, str]) -> dict[str, float]:
    """By Gauss rules over three standard variables, 40 or 80 nodes each."""
    bases = [NODES[family if family in NODES else "normal"] for family in (f.strip("-") for f in random.values())]
    v = np.stack([x.ravel() for x in np.meshgrid(*(nodes for nodes, _ in bases), indexing="ij")], -1)
    weight = np.prod(np.stack(np.meshgrid(*(w / w.sum() for _, w in bases), indexing="ij")), axis=0).ravel()
    latent = np.array([0.1, 0.2, 0.3]) + v @ FACTOR.T
    values = np.stack(
        [
            (-1 if family[0] == "-" else 1) * TRANSFORMS.get(family.strip("-"), lambda x: x)(latent[:, i])
            for i, family in enumerate(random.values())
        ]
    )
    mean, cov = values @ weight, np.cov(values, aweights=weight, ddof=0)
    found = {f"{name}.mean": mean[i] for i, name in enumerate(random)}
    found |= {f"{name}.sd": math.sqrt(cov[i, i]) for i, name in enumerate(random)}
    pairs = [(i, j) for i in range(3) for j in range(i)]
    return found | {f"cor.{'bcd'[i]}.{'bcd'[j]}": cov[i, j] / math.sqrt(cov[i, i] * cov[j, j]) for i, j in pairs}


@pytest.mark.parametrize(
    ("random", "tolerance"),
    [
        ({"b": "normal", "c": "normal", "d": "normal"}, 1e-9),
        ({"b": "uniform", "c": "triangular", "d": "normal"}, 1e-9),
        ({"b": "lognormal", "c": "-lognormal", "d": "normal"}, 1e-9),
        ({"b": "triangular", "c": "-lognormal", "d": "uniform"}, 1e-7),
        ({"b": "uniform", "c": "lognormal", "d": "-lognormal"}, 1e-7),
        # 2**14 Sobol draws; and Gauss rules at a kink
        ({"b": "triangular", "c": "johnson_sb", "d": "-censored_normal"}, 3e-3),
        ({"b": "lognormal", "c": "johnson_sb", "d": "censored_normal"}, 3e-3),
    ],
    ids=lambda value: ", ".join(value.values()) if isinstance(value, dict) else "",
)
def test_moments_of_correlated_coefficients_by_gauss_rules(random: dict[str, str], tolerance: float) -> None:
    spec = Specification.of((), random, True, None, False)
    params = {"b.loc": 0.1, "c.loc": 0.2, "d.loc": 0.3}
    params |= {f"chol.{x}.{y}": FACTOR[i, j] for i, x in enumerate("bcd") for j, y in enumerate("bcd") if j <= i}
    names, values = spec.moments(f64(*(params[name] for name in spec.names)), f64())
    assert names[:6] == ("b.mean", "b.sd", "c.mean", "c.sd", "d.mean", "d.sd")
    found = dict(zip(names, values.tolist(), strict=True))
    assert found == pytest.approx(block_moments(random), rel=tolerance, abs=tolerance)


@pytest.mark.parametrize(
    "random",
    [{"b": "normal", "c": "-lognormal"}, {"b": "uniform", "c": "lognormal"}, {"b": "triangular", "c": "johnson_sb"}],
    ids=lambda random: ", ".join(random.values()),
)
def test_derivatives_of_moments_of_a_block_are_numerical_ones(random: dict[str, str]) -> None:
    spec = Specification.of((), random, True, None, False)
    params = f64(0.1, -0.4, 0.7, -0.3, 0.5).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: spec.moments(x, f64())[1], params)


@pytest.mark.parametrize("case", [case for case in CASES if specified(case).random], **by_name)
def test_derivatives_of_moments_are_numerical_ones(case: Case) -> None:
    """So that their standard errors, by the delta method, are right."""
    spec = specified(case)
    covariates = f64(*range(1, len(spec.covariates) + 1))
    params = f64(*case.params.values()).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: spec.moments(x, covariates)[1], params)


@pytest.mark.parametrize("family", ["normal", "lognormal", "censored_normal", "johnson_sb"])
def test_a_spread_of_0_has_an_sd_of_0_that_moves_nowhere(family: str) -> None:
    """So that its standard error is 0, where it is held there."""
    spec = Specification.of((), {"b": family}, False, None, False)
    jacobian = torch.autograd.functional.jacobian(lambda x: spec.moments(x, f64())[1], f64(0.3, 0.0))
    assert jacobian[1].tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert bool(jacobian.isfinite().all())


def test_moments_are_taken_at_the_given_covariates() -> None:
    spec = Specification.of((), {"b": Random("lognormal", mean_covariates=("age",))}, False, None, False)
    _, values = spec.moments(f64(0.3, -0.5, 0.8), f64(2.0))
    exact = of_scipy(scipy.stats.lognorm(0.8, scale=math.exp(0.3 - 0.5 * 2.0)))
    assert values.tolist() == pytest.approx(exact, rel=1e-12)


# ------------------------------------------------------------------ standard variables


QUANTILES = {
    "normal": scipy.stats.norm.ppf,
    "uniform": lambda u: 2 * u - 1,
    "triangular": scipy.stats.triang(0.5, -1, 2).ppf,
    "gamma": lambda u: u,
}


@pytest.mark.parametrize("family", QUANTILES)
def test_standard_variables_of_uniforms_and_of_normals(family: str) -> None:
    spec = Specification.of((), {"a": "normal", "b": family}, False, None, True)
    u = np.random.default_rng(0).uniform(size=(4, 6, 3))
    expected = np.stack(
        [scipy.stats.norm.ppf(u[..., 0]), QUANTILES[family](u[..., 1]), scipy.stats.norm.ppf(u[..., 2])], -1
    )
    of_normals = spec.base_of_normal(torch.from_numpy(scipy.stats.norm.ppf(u)))
    np.testing.assert_allclose(of_normals.numpy(), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(spec.base(torch.from_numpy(u.copy())).numpy(), expected, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "no coefficient"),
        ({"fixed": ["a"], "random": {"a": "normal"}}, r"\['a'\] more than once"),
        ({"fixed": ["a", "a"]}, r"\['a'\] more than once"),
        ({"fixed": ["nothing"]}, "nothing"),
        ({"random": {"nothing": "normal"}}, "nothing"),
        ({"random": {"a": "cauchy"}}, "cauchy"),
        ({"fixed": ["a"], "wtp_space": "b"}, "wtp_space: got 'b'"),
        ({"random": {"a": "normal", "b": "gamma"}, "correlated": True}, "'b', which is gamma"),
        ({"random": {"a": "normal"}, "correlated": True}, "two or more"),
        ({"fixed": ["a"], "correlated": True}, "two or more"),
        ({"random": {"a": "normal", "b": "normal"}, "correlated": [["a"]]}, "two or more"),
        ({"random": {"a": "normal", "b": "normal"}, "correlated": [["a", "c"]]}, "correlated"),
        (
            {"random": dict.fromkeys("abc", "normal"), "correlated": [["a", "b"], ["b", "c"]]},
            "each in one block",
        ),
        ({"random": {"a": Random("normal", mean_covariates=("b",))}}, "individual"),
        ({"random": {"a": Random("normal", mean_covariates=("nothing",))}}, "nothing"),
        ({"fixed": ["age"]}, "age"),
    ],
)
def test_specifications_that_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        MixedLogitModel(read(choices()), **arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"family": "gamma", "mean_covariates": ("age",)}, "a family with a loc"),
        ({"family": "normal", "bounds": (0.0, 1.0)}, "bounds"),
        ({"family": "truncated_normal", "bounds": (1.0, 0.0)}, "low < high"),
        ({"family": "truncated_normal", "bounds": (-math.inf, math.inf)}, "bounds"),
        ({"family": "johnson_sb", "bounds": (0.0, math.inf)}, "two finite numbers"),
        ({"family": "johnson_sb", "sign": -1, "bounds": (-1.0, 1.0)}, "sign"),
        ({"family": "truncated_normal", "sign": -1, "bounds": (-1.0, 1.0)}, "sign"),
    ],
)
def test_random_coefficients_that_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        Random(**arguments)


def test_one_name_is_as_good_as_a_list() -> None:
    model = MixedLogitModel(read(choices()), "a", {"b": Random("normal", mean_covariates="age")})
    assert model.specification.names == ("a", "b.loc", "b.loc:age", "b.scale")
