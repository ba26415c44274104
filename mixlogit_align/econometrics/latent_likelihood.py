"""The log-likelihood of latent classes, its derivatives, and the steps of EM."""

# N individuals, C classes, P parameters of a class, Q parameters in all, D membership covariates.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy

import torch
from torch import Tensor

from mixlogit_align.econometrics.latent_parameters import LatentParameters
from mixlogit_align.econometrics.likelihood import SimulatedLoglik
from mixlogit_align.inference import Derivatives

# Halvings of a step before the log-likelihood counts as being at its top.
_HALVINGS = 30


class LatentLoglik:
    """Log-likelihood ``sum_n w_n log sum_c pi_nc L_nc``, with ``pi_nc = softmax_c(z_n' gamma_c)``, ``gamma_1 = 0``.

    L_nc is the likelihood of an individual's choices in class c, a conditional or a mixed logit. Everything follows
    from individuals' log-likelihoods and scores by class and from the posteriors
    ``h_nc = pi_nc L_nc / sum_d pi_nd L_nd``.

    Parameters
    ----------
    parameters : LatentParameters
    classes : sequence of SimulatedLoglik
        One a class, of the same data, each with its own nodes.
    covariates : Tensor, shape (N, D)
        z_n without its constant.
    """

    def __init__(self, parameters: LatentParameters, classes: Sequence[SimulatedLoglik], covariates: Tensor) -> None:
        self.parameters = parameters
        self.classes = tuple(classes)
        self.covariates = covariates
        self.odds = torch.cat([covariates.new_ones(len(covariates), 1), covariates], 1)
        self.weights = classes[0].weights

    def weighted(self, weights: Tensor) -> LatentLoglik:
        """The same with other frequencies of individuals, (N,)."""
        other = copy(self)
        other.weights = weights.to(self.weights)
        return other

    def log_membership(self, theta: Tensor) -> Tensor:
        """log pi_nc, (N, C)."""
        return self.parameters.log_membership(theta, self.covariates)

    def by_class(self, theta: Tensor) -> Tensor:
        """log L_nc, (N, C)."""
        positions = self.parameters.positions
        return torch.stack([part.values(theta[at]) for part, at in zip(self.classes, positions, strict=True)], 1)

    def values(self, theta: Tensor) -> Tensor:
        """Log-likelihood of each individual, (N,), frequencies not counted."""
        return torch.logsumexp(self.log_membership(theta) + self.by_class(theta), 1)

    def value(self, theta: Tensor) -> float:
        """The log-likelihood."""
        return float(self.weights @ self.values(theta))

    def posteriors(self, theta: Tensor) -> Tensor:
        """h_nc, (N, C)."""
        return torch.softmax(self.log_membership(theta) + self.by_class(theta), 1)

    def joint(self, theta: Tensor) -> Tensor:
        """log of weight times likelihood at every node of every class, (N, K_1 + ... + K_C)."""
        membership = self.log_membership(theta)
        parts = [
            part.joint(theta[at]) + membership[:, c, None]
            for c, (part, at) in enumerate(zip(self.classes, self.parameters.positions, strict=True))
        ]
        return torch.cat(parts, 1)

    def _complete(self, theta: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Log-likelihoods (N,), posteriors (N, C), and by class the scores (N, Q) of log pi_nc + log L_nc."""
        membership = self.log_membership(theta)
        found = [part.scores(theta[at]) for part, at in zip(self.classes, self.parameters.positions, strict=True)]
        joint = membership + torch.stack([value for value, _ in found], 1)
        scores = []
        for c, (_, own) in enumerate(found):
            score = own.new_zeros(len(own), len(theta))
            score[:, self.parameters.positions[c]] = own
            residual = -membership[:, 1:].exp()
            if c:
                residual[:, c - 1] += 1.0
            score[:, self.parameters.odds.flatten()] = (residual[..., None] * self.odds[:, None]).flatten(1)
            scores.append(score)
        return torch.logsumexp(joint, 1), torch.softmax(joint, 1), scores

    def scores(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihoods (N,) and scores ``s_n = sum_c h_nc s_nc`` (N, Q) of individuals, frequencies not counted."""
        values, posterior, scores = self._complete(theta)
        return values, torch.stack([posterior[:, c, None] * score for c, score in enumerate(scores)]).sum(0)

    def gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """The log-likelihood and its gradient (Q,)."""
        values, scores = self.scores(theta)
        return float(self.weights @ values), self.weights @ scores

    def derivatives(self, theta: Tensor) -> Derivatives:
        """Log-likelihood, gradient and Hessian: complete data's less what membership leaves open (Louis 1982).

        ``sum_n w_n [sum_c h_nc (H_nc + s_nc s_nc') - s_n s_n']``, s_nc and H_nc those of log pi_nc + log L_nc.
        """
        values, posterior, scores = self._complete(theta)
        hessian = self._complete_hessian(theta, posterior)
        mean = torch.zeros_like(scores[0])
        for c, score in enumerate(scores):
            part = posterior[:, c, None] * score
            hessian += (self.weights[:, None] * part).T @ score
            mean += part
        hessian -= (self.weights[:, None] * mean).T @ mean
        return Derivatives(float(self.weights @ values), self.weights @ mean, (hessian + hessian.T) / 2)

    def _complete_hessian(self, theta: Tensor, posterior: Tensor) -> Tensor:
        """``sum_n w_n sum_c h_nc H_nc``, (Q, Q)."""
        q = len(theta)
        hessian = theta.new_zeros(q, q)
        for c, (part, at) in enumerate(zip(self.classes, self.parameters.positions, strict=True)):
            own = part.weighted(self.weights * posterior[:, c]).derivatives(theta[at]).hessian
            hessian[at[:, None], at] += own
        pi = self.log_membership(theta)[:, 1:].exp()
        spread = torch.diag_embed(pi) - pi[:, :, None] * pi[:, None]
        blocks = torch.einsum("n,ncd,ni,nj->cidj", self.weights, spread, self.odds, self.odds)
        where = self.parameters.odds.flatten()
        hessian[where[:, None], where] -= blocks.reshape(len(where), len(where))
        return hessian

    def em_steps(self, theta: Tensor, free: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Parameters and log-likelihoods that never fall, beginning with the first.

        At given posteriors the expected log-likelihood of the complete data is that of weighted logits. Maximisation
        is one Newton step of it, which has the rate of EM (Lange 1995); a step that does not raise the log-likelihood
        is halved. Ends where none does.

        Parameters
        ----------
        theta : Tensor, shape (Q,)
        free : Tensor, int64
            Positions of the parameters that move.
        """
        value = self.value(theta)
        while True:
            yield theta, value
            _, posterior, scores = self._complete(theta)
            gradient = sum(
                ((self.weights * posterior[:, c]) @ score for c, score in enumerate(scores)), torch.zeros_like(theta)
            )
            information = -self._complete_hessian(theta, posterior)[free][:, free]
            step = torch.zeros_like(theta)
            step[free] = _ascent(information, gradient[free])
            for _ in range(_HALVINGS):
                there = self.value(theta + step)
                if there > value:
                    break
                step = step / 2
            else:
                return
            theta, value = theta + step, there


def _ascent(information: Tensor, gradient: Tensor) -> Tensor:
    """Newton step with the information's negative and vanishing eigenvalues raised, free of units."""
    scale = information.diagonal().abs().clamp_min(1e-300).rsqrt()
    flat = torch.linalg.eigh(torch.nan_to_num(scale[:, None] * information * scale))
    size = flat.eigenvalues.abs().clamp_min(1e-6)
    step: Tensor = scale * (flat.eigenvectors @ ((flat.eigenvectors.T @ (scale * gradient)) / size))
    return step
