"""Maximum likelihood of six normal coefficients on 100 households of the electricity data, without the package.

    python tests/econometrics/golden/electricity.py FOLDER/choice/electricity_long.csv

Writes electricity.json beside this file. Only numpy, scipy and pandas: the log-likelihood is integrated by importance
sampling, each household's draws from a normal with the mean and 1.3 times the standard deviation of its posterior,
a tenth of them from the prior; twice, each time with new Sobol points and moments of the previous round. Estimates of
the last two rounds differ by ``rounds_differ`` standard errors at most.

Tolerances are five standard deviations of the package's default, importance sampling with 128 draws, of this model and
data: 0.055 standard errors of an estimate (root mean square over estimates, measured) make 0.3, 0.15 of the
log-likelihood (over fresh draws) make 0.75. Standard errors, which vary with the Hessian's own draws, to 15 %. A wrong
weight, prior or sign moves estimates by standard errors.
"""

# N households, T situations each, R draws, 6 coefficients b = loc + scale * z.

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
from scipy.optimize import minimize
from scipy.special import ndtri
from scipy.stats import qmc

VARIABLES = ("pf", "cl", "loc", "wk", "tod", "seas")
HOUSEHOLDS, DRAWS, ROUNDS = 100, 8192, 3
PRIOR_SHARE, WIDTH = 0.1, 1.3


def households(file: str) -> list[np.ndarray]:
    """Attributes of the alternatives not chosen less those of the one chosen, (T, 3, 6) each."""
    frame = pd.read_csv(file).sort_values(["id", "chid", "alt"], kind="stable")
    found = []
    for _, rows in list(frame.groupby("id"))[:HOUSEHOLDS]:
        x = rows[list(VARIABLES)].to_numpy(float).reshape(-1, 4, 6)
        chosen = rows["choice"].to_numpy(bool).reshape(-1, 4)
        found.append(x[~chosen].reshape(-1, 3, 6) - x[chosen][:, None])
    return found


def log_joint(differences: np.ndarray, z: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of a household's choices at z (R, 6), and its derivatives with respect to b, (R, 6)."""
    b = theta[:6] + theta[6:] * z
    u = np.exp(np.einsum("tjk,rk->rtj", differences, b))
    total = 1.0 + u.sum(-1)
    slopes = -(u / total[..., None]).reshape(len(z), -1) @ differences.reshape(-1, 6)
    return -np.log(total).sum(-1), slopes


def minus_loglik(theta: np.ndarray, data: list[np.ndarray], nodes: list[tuple[np.ndarray, np.ndarray]]):
    """Minus the log-likelihood, its gradient, and each household's scores (N, 12)."""
    value, scores = 0.0, []
    for differences, (z, log_weight) in zip(data, nodes, strict=True):
        log_p, slopes = log_joint(differences, z, theta)
        joint = log_p + log_weight
        top = joint.max()
        share = np.exp(joint - top)
        value += top + np.log(share.sum())
        share /= share.sum()
        scores.append(np.concatenate([share @ slopes, share @ (slopes * z)]))
    return -value, -np.sum(scores, 0), np.array(scores)


def prior_nodes(seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    z = ndtri(qmc.Sobol(6, seed=seed).random(DRAWS))
    return [(z, np.full(DRAWS, -np.log(DRAWS)))] * HOUSEHOLDS


def posterior_nodes(theta: np.ndarray, data: list[np.ndarray], nodes: list, seed: int) -> list:
    """Draws about each household's posterior, with the weights of a mixture with the prior."""
    found = []
    from_prior = int(PRIOR_SHARE * DRAWS)
    for n, (differences, (z, log_weight)) in enumerate(zip(data, nodes, strict=True)):
        joint = log_joint(differences, z, theta)[0] + log_weight
        share = np.exp(joint - joint.max())
        share /= share.sum()
        mean = share @ z
        factor = np.linalg.cholesky((z - mean).T @ (share[:, None] * (z - mean)) + 1e-4 * np.eye(6)) * WIDTH
        eps = ndtri(qmc.Sobol(6, seed=seed + n).random(DRAWS))
        new = np.where(np.arange(DRAWS)[:, None] < from_prior, eps, mean + eps @ factor.T)
        there = np.linalg.solve(factor, (new - mean).T)
        log_prior = -0.5 * (new**2).sum(-1)
        log_normal = -0.5 * (there**2).sum(0) - np.log(factor.diagonal()).sum()
        share_of_prior = from_prior / DRAWS
        mixture = np.logaddexp(np.log(share_of_prior) + log_prior, np.log1p(-share_of_prior) + log_normal)
        found.append((new, log_prior - mixture - np.log(DRAWS)))
    return found


def hessian(theta: np.ndarray, data: list[np.ndarray], nodes: list) -> np.ndarray:
    """Of the log-likelihood, by central differences of the gradient."""
    rows = []
    for i in range(12):
        step = np.zeros(12)
        step[i] = 1e-4 * max(1.0, abs(theta[i]))
        ends = [minus_loglik(theta + sign * step, data, nodes)[1] for sign in (1, -1)]
        rows.append(-(ends[0] - ends[1]) / (2 * step[i]))
    return (np.array(rows) + np.array(rows).T) / 2


def main() -> None:
    data = households(sys.argv[1])
    theta = np.array([-1.0, -0.2, 2.3, 1.7, -9.7, -9.7, 0.2, 0.4, 1.8, 1.2, 2.3, 1.5])
    nodes, found = prior_nodes(0), []
    for seed in range(ROUNDS):
        if seed:
            nodes = posterior_nodes(theta, data, nodes, 1000 * seed)
        units = np.sqrt(np.abs(1.0 / hessian(theta, data, nodes).diagonal()))
        end = minimize(
            lambda x, nodes=nodes, units=units: (
                (at := minus_loglik(x * units, data, nodes))[0],
                at[1] * units,
            ),
            theta / units,
            jac=True,
            method="BFGS",
            options={"gtol": 1e-4},
        )
        theta = end.x * units
        found.append((theta, -end.fun))
        print(seed, end.message, end.nfev, -end.fun, theta)
    information = -hessian(theta, data, nodes)
    scores = minus_loglik(theta, data, nodes)[2]
    bread = np.linalg.inv(information)
    errors = np.sqrt(bread.diagonal())
    names = [f"{name}.loc" for name in VARIABLES] + [f"{name}.scale" for name in VARIABLES]
    record = {
        "file": Path(sys.argv[1]).name,
        "households": HOUSEHOLDS,
        "draws": DRAWS,
        "loglik": found[-1][1],
        "params": dict(zip(names, theta.tolist(), strict=True)),
        "std_errors": dict(zip(names, errors.tolist(), strict=True)),
        "robust_errors": dict(
            zip(names, np.sqrt((bread @ scores.T @ scores @ bread).diagonal()).tolist(), strict=True)
        ),
        "rounds_differ": float(np.abs((found[-1][0] - found[-2][0]) / errors).max()),
        "loglik_rounds_differ": abs(found[-1][1] - found[-2][1]),
        "tolerance": {"estimates in standard errors": 0.3, "loglik": 0.75, "standard errors, relative": 0.15},
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "pandas": pd.__version__,
        },
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
