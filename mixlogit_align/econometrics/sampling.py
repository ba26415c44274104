"""Samplers of a posterior in whitened coordinates, in which it is about standard normal: NUTS, and guides for SVI."""

# P unconstrained parameters.

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoMultivariateNormal, AutoNormal, init_to_value
from pyro.infer.autoguide.guides import AutoGuide
from pyro.optim import ClippedAdam
from torch import Tensor

# The block of parameters; its mass matrix is full.
PARAMETERS = "parameters"
# Pyro's phases of a warm-up that also adapts mass matrices, 75 + 25 + 50 transitions; a shorter one is all step size.
_LONG = 150


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's generator seeded, and afterwards as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def progress_bar(shown: bool, description: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar, if it is wanted, and what moves it by one step."""
    if not shown:
        yield lambda: None
        return
    from rich.progress import Progress

    with Progress() as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)


# ---------------------------------------------------------------------- NUTS


@dataclass(frozen=True)
class Chain:
    """One chain.

    Attributes
    ----------
    draws : dict of str to Tensor, (D, ...)
        By block.
    stats : dict of str to Tensor, (D,)
        lp, energy, n_steps, diverging.
    """

    draws: dict[str, Tensor]
    stats: dict[str, Tensor]


class _Watched(NUTS):
    """Pyro's sampler, which tells the energy and the number of leapfrog steps of its last transition."""

    energy = torch.tensor(torch.nan)
    num_steps_taken = 0

    def _sample_r(self, name: str) -> Any:
        momentum, unscaled = super()._sample_r(name)
        self.energy = self._kinetic_energy(unscaled) + self._potential_energy_last
        self.num_steps_taken = 0
        return momentum, unscaled

    def _build_basetree(self, *args: Any) -> Any:
        self.num_steps_taken += 1
        return super()._build_basetree(*args)


def sample_chain(
    potential: Callable[[Mapping[str, Tensor]], Tensor],
    initial: dict[str, Tensor],
    *,
    num_samples: int,
    num_warmup: int,
    target_accept: float,
    seed: int,
    advance: Callable[[], None],
) -> Chain:
    """Run the no-U-turn sampler (Hoffman and Gelman 2014), Pyro's, with multinomial sampling.

    Parameters
    ----------
    potential : callable
        Blocks to minus the log density.
    initial : dict of str to Tensor
        With a block ``PARAMETERS``, (P,); other blocks have diagonal mass matrices.
    num_samples, num_warmup, seed : int
    target_accept : float
    advance : callable
        Called after every transition.

    Returns
    -------
    Chain
    """
    kernel = _Watched(
        potential_fn=potential,
        full_mass=[(PARAMETERS,)],
        adapt_mass_matrix=num_warmup >= _LONG,
        target_accept_prob=target_accept,
    )
    rows: list[tuple[float, float, int]] = []

    def keep(kernel: _Watched, samples: Any, stage: str, i: int) -> None:
        advance()
        if not stage.lower().startswith("warm"):
            _, potential_energy, _ = kernel._fetch_from_cache()
            rows.append((-float(potential_energy), float(kernel.energy), kernel.num_steps_taken))

    mcmc = MCMC(
        kernel,
        num_samples=num_samples,
        warmup_steps=num_warmup,
        initial_params=initial,
        hook_fn=keep,
        disable_progbar=True,
    )
    # what is not finite far from everything likely is a divergence, not an error
    with seeded(seed), pyro.validation_enabled(False):
        mcmc.run()
    lp, energy, n_steps = zip(*rows, strict=True)
    diverging = torch.zeros(num_samples, dtype=torch.bool)
    diverging[mcmc.diagnostics()["divergences"]["chain 0"]] = True
    stats = {
        "lp": torch.tensor(lp, dtype=torch.float64),
        "energy": torch.tensor(energy, dtype=torch.float64),
        "n_steps": torch.tensor(n_steps),
        "diverging": diverging,
    }
    return Chain({name: draws.detach() for name, draws in mcmc.get_samples().items()}, stats)


# ---------------------------------------------------------------------- SVI


class _WhitenedNormal(AutoMultivariateNormal):
    """A normal distribution of any covariance in whitened coordinates, begun as the standard one."""

    def __init__(self, program: Callable[..., Any], mode: Tensor, half: Tensor, init_loc_fn: Any) -> None:
        super().__init__(program, init_loc_fn=init_loc_fn, init_scale=1.0)
        self._mode, self._half = mode, half

    def _init_loc(self) -> Tensor:
        return torch.zeros_like(self._mode)

    def get_posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution:
        """Of the unconstrained parameters."""
        white = super().get_posterior(*args, **kwargs)
        law: TorchDistribution = dist.MultivariateNormal(
            self._mode + self._half @ white.loc, scale_tril=self._half @ white.scale_tril
        )
        return law


def normal_guide(
    program: Callable[..., Any], mode: Tensor, half: Tensor, values: Mapping[str, Tensor], apart: str | None
) -> AutoGuide:
    """A normal distribution of any covariance of the parameters; independent normals of individuals' latents.

    Parameters
    ----------
    program : callable
        A Pyro model.
    mode : Tensor, shape (P,)
        Where it begins, unconstrained.
    half : Tensor, shape (P, P)
        Lower triangular, ``half @ half.T`` the covariance with which it begins.
    values : mapping of str to Tensor
        Of all sites.
    apart : str, optional
        The site of latents.

    Returns
    -------
    pyro.infer.autoguide.AutoGuide
    """
    begin = init_to_value(values=dict(values))
    if apart is None:
        return _WhitenedNormal(program, mode, half, begin)
    guide = AutoGuideList(program)
    guide.append(_WhitenedNormal(poutine.block(program, hide=[apart]), mode, half, begin))
    guide.append(AutoNormal(poutine.block(program, expose=[apart]), init_loc_fn=begin, init_scale=0.5))
    return guide


@dataclass(frozen=True)
class Approximation:
    """Draws of a guide after its optimisation.

    Attributes
    ----------
    draws : dict of str to Tensor, (D, ...)
        Of the sites.
    log_ratio : Tensor, (D,)
        Log density of program less that of the guide.
    elbo : Tensor, (I,)
        Of every step.
    """

    draws: dict[str, Tensor]
    log_ratio: Tensor
    elbo: Tensor


def fit_guide(
    program: Callable[..., Any],
    guide: Callable[..., Any],
    sites: Sequence[str],
    *,
    num_steps: int,
    learning_rate: float,
    num_samples: int,
    seed: int,
    advance: Callable[[], None],
) -> Approximation:
    """Maximise the evidence lower bound by ClippedAdam, the learning rate falling tenfold, and draw from the guide.

    Parameters
    ----------
    program, guide : callable
    sites : sequence of str
        What to draw.
    num_steps, num_samples, seed : int
    learning_rate : float
    advance : callable
        Called after every step.

    Returns
    -------
    Approximation
    """
    optimiser = ClippedAdam({"lr": learning_rate, "lrd": 0.1 ** (1.0 / num_steps)})
    elbo = torch.empty(num_steps, dtype=torch.float64)
    traces: list[Any] = []
    log_ratio = torch.empty(num_samples, dtype=torch.float64)
    with seeded(seed), pyro.get_param_store().scope():
        inference = SVI(program, guide, optimiser, Trace_ELBO())
        for step in range(num_steps):
            elbo[step] = -inference.step()
            advance()
        with torch.no_grad():
            for d in range(num_samples):
                drawn = poutine.trace(guide).get_trace()
                joint = poutine.trace(poutine.replay(program, drawn)).get_trace()
                log_ratio[d] = joint.log_prob_sum() - drawn.log_prob_sum()
                traces.append(drawn)
    draws = {name: torch.stack([trace.nodes[name]["value"] for trace in traces]) for name in sites}
    return Approximation(draws, log_ratio, elbo)
