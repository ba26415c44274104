"""biogeme and jaxlogit on a panel with normal coefficients, by an interpreter that has them.

    python validation/benchmarks/_peers.py NAME IN.npz OUT.json

IN holds x (S * J, M), choice (S * J,), individual (S * J,), start (2 M,), names (M,), and the numbers alternatives,
draws and repeats. OUT gets versions, seconds of every fit, the log-likelihood and the estimates. Nothing here needs
mixlogit_align.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import logging
import sys
import time
import warnings
from typing import Any

import numpy as np


def jaxlogit(given: Any) -> dict[str, Any]:
    """Halton draws; every fit but the first finds its functions compiled."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from jaxlogit._config_data import ConfigData
    from jaxlogit.mixed_logit import MixedLogit

    rows, j = np.arange(len(given["choice"])), int(given["alternatives"])
    names = [str(name) for name in given["names"]]
    seconds = []
    for _ in range(1 + int(given["repeats"])):
        start = time.perf_counter()
        found = MixedLogit().fit(
            given["x"],
            given["choice"],
            varnames=names,
            alts=rows % j,
            ids=rows // j,
            randvars=dict.fromkeys(names, "n"),
            config=ConfigData(
                panels=given["individual"],
                n_draws=int(given["draws"]),
                init_coeff=given["start"],
                force_positive_chol_diag=False,
            ),
            verbose=0,
        )
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "loglik": -float(found.fun), "params": np.asarray(found.x).tolist()}


def biogeme(given: Any) -> dict[str, Any]:
    """Its own modified Latin hypercube draws."""
    import pandas as pd
    from biogeme import models
    from biogeme.biogeme import BIOGEME
    from biogeme.database import Database
    from biogeme.expressions import Beta, Draws, MonteCarlo, PanelLikelihoodTrajectory, Variable, log

    names, j = [str(name) for name in given["names"]], int(given["alternatives"])
    x = given["x"].reshape(-1, j, len(names))
    wide = pd.DataFrame({f"{name}_{a}": x[:, a, v] for v, name in enumerate(names) for a in range(j)})
    wide["chosen"] = given["choice"].reshape(-1, j).argmax(1)
    wide["person"] = given["individual"][::j]
    m = len(names)
    seconds = []
    for _ in range(int(given["repeats"])):
        start = time.perf_counter()
        database = Database("panel", wide)
        database.panel("person")
        beta = {
            name: Beta(f"{name}.loc", float(given["start"][v]), None, None, 0)
            + Beta(f"{name}.scale", float(given["start"][m + v]), None, None, 0) * Draws(f"{name}.z", "NORMAL_MLHS")
            for v, name in enumerate(names)
        }
        utilities = {a: sum(beta[name] * Variable(f"{name}_{a}") for name in names) for a in range(j)}
        one = models.logit(utilities, None, Variable("chosen"))
        loglik = log(MonteCarlo(PanelLikelihoodTrajectory(one)))
        model = BIOGEME(
            database,
            loglik,
            number_of_draws=int(given["draws"]),
            generate_html=False,
            generate_yaml=False,
            save_iterations=False,
        )
        model.model_name = "panel"
        found = model.estimate()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": seconds,
        "loglik": float(found.final_log_likelihood),
        "params": {name: float(value) for name, value in found.get_beta_values().items()},
    }


def main() -> int:
    name, source, target = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        found = {"biogeme": biogeme, "jaxlogit": jaxlogit}[name](np.load(source))
    with open(target, "w") as file:
        json.dump(found | {"version": importlib.metadata.version(name)}, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
