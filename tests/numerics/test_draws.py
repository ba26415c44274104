"""Base draws: distribution, structure, and that they depend on nothing but their coordinates."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from xlogit import MixedLogit as XlogitMixedLogit

from mixlogit_align.errors import IntegrationError, InvalidInputError
from mixlogit_align.numerics import draws
from mixlogit_align.numerics.draws import BaseDraws

KINDS = ["pseudo", "stratified", "antithetic", "halton", "sobol", "mlhs"]
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
def test_one_draw_of_many_rows_is_uniform(kind):
    u = BaseDraws(kind, 8, seed=5).uniforms(torch.arange(20_000))
    # Kolmogorov-Smirnov, false-failure rate 1e-6; a random draw of each row
    pick = torch.randint(8, (20_000,), generator=torch.Generator().manual_seed(0))
    one = u[pick, torch.arange(20_000)]
    assert scipy.stats.kstest(one.numpy(), "uniform").pvalue > 1e-6
    assert float(u.min()) > 0.0
    assert float(u.max()) < 1.0


@each_kind
def test_same_coordinates_same_draws(kind):
    base = BaseDraws(kind, 8, seed=5, step=2)
    many = base.uniforms(torch.arange(100).reshape(10, 10))
    assert many.shape == (8, 10, 10)
    assert torch.equal(base.uniforms(torch.tensor(37)), many[:, 3, 7])
    assert torch.equal(base.uniforms(torch.tensor([99, 0])), many[:, [9, 0], [9, 0]])


@each_kind
@pytest.mark.parametrize("change", [{"seed": 6}, {"step": 3}, {"seed": -1}, {"seed": 2**63}])
def test_other_seed_or_step_other_draws(kind, change):
    rows = torch.arange(50)
    base = {"seed": 5, "step": 2}
    same = BaseDraws(kind, 8, **base).uniforms(rows) == BaseDraws(kind, 8, **{**base, **change}).uniforms(rows)
    assert not same.any()


@pytest.mark.parametrize("kind", ["stratified", "sobol", "mlhs", "halton"])
def test_one_draw_in_each_cell(kind):
    u = BaseDraws(kind, 16, seed=1).uniforms(torch.arange(200))
    cells = torch.sort((u * 16).long() if kind != "halton" else ((u - u[:1]) % 1.0 * 16 + 1e-9).long(), 0).values
    assert torch.equal(cells, torch.arange(16)[:, None].expand(16, 200))


def test_antithetic_pairs():
    u = BaseDraws("antithetic", 6).uniforms(torch.arange(5))
    assert torch.equal(u[3:], 1.0 - u[:3])


def test_halton_is_the_van_der_corput_sequence_up_to_a_rotation():
    u = BaseDraws("halton", 8).uniforms(torch.arange(4)).T.reshape(-1)
    expected = torch.tensor(scipy.stats.qmc.Halton(1, scramble=False).random(32)[:, 0])
    torch.testing.assert_close((u - u[0]) % 1.0, expected, rtol=0, atol=1e-15)


@each_kind
def test_the_first_dimension_is_the_one_dimensional_rule(kind):
    base, rows = BaseDraws(kind, 12, seed=3, step=1), torch.tensor([4, 0, 977])
    many = base.uniforms_nd(rows, 3)
    assert many.shape == (3, 12, 3)
    assert many.dtype == torch.float64
    assert torch.equal(many[..., 0], base.uniforms(rows).T)
    assert torch.equal(many[..., :2], base.uniforms_nd(rows, 2))
    assert torch.equal(many[1:2], base.uniforms_nd(rows[1:2], 3))


@each_kind
def test_every_dimension_is_uniform_and_free_of_the_others(kind):
    """Kolmogorov-Smirnov, and correlations of 3 pairs of dimensions: false-failure rate about 1e-5."""
    u = BaseDraws(kind, 16, seed=5).uniforms_nd(torch.arange(4000), 3)
    assert float(u.min()) > 0.0
    assert float(u.max()) < 1.0
    pick = torch.randint(16, (4000,), generator=torch.Generator().manual_seed(0))
    one = u[torch.arange(4000), pick]
    for dim in range(3):
        assert scipy.stats.kstest(one[:, dim].numpy(), "uniform").pvalue > 1e-6
    z = np.corrcoef(one.T.numpy()) * np.sqrt(4000)
    assert abs(z[~np.eye(3, dtype=bool)]).max() < 4.9


@each_kind
@pytest.mark.parametrize("change", [{"seed": 6}, {"step": 3}])
def test_other_seed_or_step_other_draws_in_every_dimension(kind, change):
    rows, base = torch.arange(50), {"seed": 5, "step": 2}
    first = BaseDraws(kind, 8, **base).uniforms_nd(rows, 3)
    second = BaseDraws(kind, 8, **{**base, **change}).uniforms_nd(rows, 3)
    same = first == second
    assert not same.any()


@pytest.mark.parametrize("kind", ["stratified", "sobol", "mlhs"])
def test_one_draw_in_each_cell_of_every_dimension(kind):
    u = BaseDraws(kind, 16, seed=1).uniforms_nd(torch.arange(100), 4)
    cells = torch.sort((u * 16).long(), 1).values
    assert torch.equal(cells, torch.arange(16)[None, :, None].expand(100, 16, 4))


def test_scrambled_sobol_points_stay_a_net():
    """The first two dimensions are a (0, 4, 2)-net: one of 16 points in each of the cells 2 x 8, 4 x 4, 8 x 2."""
    u = BaseDraws("sobol", 16, seed=1).uniforms_nd(torch.arange(100), 2)
    for across in (1, 2, 3):
        cell = (u[..., 0] * 2**across).long() * 2 ** (4 - across) + (u[..., 1] * 2 ** (4 - across)).long()
        assert torch.equal(torch.sort(cell, 1).values, torch.arange(16).expand(100, 16))


def test_antithetic_draws_are_mirrored_in_all_dimensions_together():
    u = BaseDraws("antithetic", 6).uniforms_nd(torch.arange(5), 3)
    assert torch.equal(u[:, 3:], 1.0 - u[:, :3])


@pytest.mark.parametrize(("num_rows", "num_draws", "num_dims"), [(7, 50, 63), (361, 100, 6), (3, 1, 2)])
def test_plain_halton_draws_are_those_of_xlogit(num_rows, num_draws, num_dims):
    u = BaseDraws("halton", num_draws, seed=None).uniforms_nd(torch.arange(num_rows), num_dims)
    expected = XlogitMixedLogit()._generate_halton_draws(num_rows, num_draws, num_dims)
    assert np.array_equal(u.numpy(), expected.transpose(0, 2, 1))
    alone = BaseDraws("halton", num_draws, seed=None).uniforms(torch.arange(num_rows))
    assert np.array_equal(alone.numpy(), expected[:, 0].T)


def test_halton_in_three_dimensions_is_the_sequence_up_to_a_rotation():
    u = BaseDraws("halton", 8, seed=4).uniforms_nd(torch.arange(4), 3).reshape(32, 3)
    expected = torch.tensor(scipy.stats.qmc.Halton(3, scramble=False).random(32))
    gap = (u - u[0] - expected + 0.5) % 1.0
    torch.testing.assert_close(gap, torch.full_like(gap, 0.5), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("kind", "step", "message"), [("sobol", 0, "plain Halton"), ("pseudo", 0, "None"), ("halton", 2, "no steps")]
)
def test_no_seed_is_for_plain_halton_draws_alone(kind, step, message):
    with pytest.raises(InvalidInputError, match=message):
        BaseDraws(kind, 8, seed=None, step=step)


def test_more_dimensions_than_halton_bases_are_refused():
    with pytest.raises(InvalidInputError, match="at most 63"):
        BaseDraws("halton", 8).uniforms_nd(torch.arange(2), 64)


@pytest.mark.parametrize(("kind", "rate"), [("pseudo", 0.5), ("mlhs", 0.5), ("halton", 0.7), ("sobol", 0.9)])
def test_quasi_random_draws_converge_faster(kind, rate):
    """Sd over 200 rows of the mean of a smooth function of 3 normals falls at least like K^-rate from 64 to 1024."""
    spread = []
    for k in (64, 1024):
        z = draws.standard_normal(BaseDraws(kind, k, seed=2).uniforms_nd(torch.arange(200), 3))
        spread.append(torch.sigmoid(z.sum(-1) + 1.0).mean(1).std())
    # an sd from 200 rows is itself uncertain by 5 per cent
    assert float(spread[1] / spread[0]) < 1.25 * (64 / 1024) ** rate


def test_neighbouring_rows_and_draws_are_uncorrelated():
    u = BaseDraws("pseudo", 4, seed=2).uniforms(torch.arange(100_000))
    z = np.corrcoef(np.vstack([u[:, :-1], u[:1, 1:]])) * np.sqrt(1e5)
    off = z[~np.eye(5, dtype=bool)]
    # ten pairs: P(max |z| > 5.2) < 4e-6
    assert abs(off).max() < 5.2


@pytest.mark.parametrize(
    ("transform", "reference"),
    [
        (draws.standard_normal, scipy.stats.norm()),
        (draws.symmetric_uniform, scipy.stats.uniform(-1, 2)),
        (draws.symmetric_triangular, scipy.stats.triang(0.5, -1, 2)),
    ],
)
def test_standard_variables_by_inversion(transform, reference):
    u = torch.linspace(1e-9, 1 - 1e-9, 101, dtype=torch.float64)
    np.testing.assert_allclose(transform(u).numpy(), reference.ppf(u.numpy()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("concentration", [1e-2, 0.3, 1.0, 7.0, 500.0])
def test_gamma_quantile(concentration):
    u = torch.tensor([0.02, 0.4, 0.9, 0.999], dtype=torch.float64)
    k = torch.tensor(concentration, dtype=torch.float64, requires_grad=True)
    expected = scipy.stats.gamma(concentration).ppf(u.numpy())
    np.testing.assert_allclose(draws.gamma_quantile(u, k).detach().numpy(), expected, rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("concentration", [0.05, 0.3, 1.0, 7.0, 500.0])
def test_derivatives_of_the_gamma_quantile(concentration):
    """Against implicit differentiation of the distribution function in mpmath."""
    with mpmath.workdps(30):
        for u in (0.02, 0.4, 0.999):
            x0 = mpmath.mpf(float(scipy.stats.gamma(concentration).ppf(u)))

            def quantile(k, u=u, x0=x0):
                def gap(log_x):
                    return mpmath.log(mpmath.gammainc(k, 0, mpmath.exp(log_x), regularized=True)) - mpmath.log(u)

                return mpmath.exp(mpmath.findroot(gap, mpmath.log(x0)))

            exact = [float(mpmath.diff(quantile, concentration, n, h=1e-6 * concentration)) for n in (1, 2)]
            k = torch.tensor(concentration, dtype=torch.float64, requires_grad=True)
            (first,) = torch.autograd.grad(
                draws.gamma_quantile(torch.tensor(u, dtype=torch.float64), k), k, create_graph=True
            )
            (second,) = torch.autograd.grad(first, k)
            scale = float(x0)
            assert first.item() == pytest.approx(exact[0], rel=1e-8, abs=1e-9 * scale / concentration)
            assert second.item() == pytest.approx(exact[1], rel=1e-5, abs=1e-6 * scale / concentration**2)


def test_gamma_quantile_passes_gradcheck():
    u = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    k = torch.tensor([0.4, 2.0, 30.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: draws.gamma_quantile(u, k), k)
    assert torch.autograd.gradgradcheck(lambda k: draws.gamma_quantile(u, k), k)


def test_third_derivative_of_the_gamma_quantile_is_refused():
    k = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    value = draws.gamma_quantile(torch.tensor(0.3, dtype=torch.float64), k)
    for _ in range(2):
        (value,) = torch.autograd.grad(value, k, create_graph=True)
    with pytest.raises(IntegrationError, match="third derivative"):
        torch.autograd.grad(value, k)


@pytest.mark.parametrize(
    ("kind", "num_draws"), [("sobel", 4), ("pseudo", 0), ("pseudo", 1.5), ("pseudo", True), ("antithetic", 5)]
)
def test_bad_arguments(kind, num_draws):
    with pytest.raises(InvalidInputError):
        BaseDraws(kind, num_draws)


def test_probability_inverts_the_standard_normal_and_stays_inside():
    z = torch.tensor([-40.0, -7.0, -1.0, 0.0, 2.5, 6.0, 40.0], dtype=torch.float64)
    u = draws.probability(z)
    assert float(u.min()) > 0.0
    assert float(u.max()) < 1.0
    torch.testing.assert_close(draws.standard_normal(u[1:-1]), z[1:-1], rtol=1e-7, atol=1e-15)
