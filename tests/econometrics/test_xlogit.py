"""On xlogit's own Halton draws, at fixed parameters and at the maximum; the functions are those of first_light."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mixlogit_align import recovery
from mixlogit_align.econometrics import MixedLogitModel

pytest.importorskip("xlogit")
NUM_DRAWS = 25


def good_row(case: recovery.Case) -> dict[str, Any]:
    empty = dict.fromkeys(("xlogit_estimate", "note"))
    return empty | {
        "case": case.name,
        "true": case.true,
        "estimate": case.true,
        "std_error": case.true,
        "z": dict.fromkeys(case.true, 0.0),
        "passed": True,
    }


@pytest.mark.parametrize("panel", [False, True], ids=["cross-section", "panel"])
@pytest.mark.parametrize("family", ["normal", "lognormal", "uniform", "triangular"])
def test_log_likelihood_gradient_and_fit_are_xlogits(
    study: Callable[[str], ModuleType], family: str, panel: bool
) -> None:
    first_light = study("first_light")
    (case,) = (c for c in recovery.CASES if c.family == family and c.panel == panel and c.heterogeneous)
    case = replace(case, num_individuals=100 if panel else 1000)
    simulated = recovery.simulate(case)
    peer = first_light.Peer(simulated, family, NUM_DRAWS)
    loglik, gradient = first_light.compare_at_fixed_parameters(case, simulated, peer)
    assert loglik <= first_light.SAME_LOGLIK
    assert gradient <= first_light.SAME_LOGLIK
    model = MixedLogitModel(simulated.data, random={"x": family})
    row = first_light.against_xlogit(case, simulated, NUM_DRAWS, model)
    assert row["fit_abs_diff"] <= first_light.SAME_FIT
    assert row["xlogit_default_start"].startswith(("converged", "failed: "))


@pytest.mark.parametrize(("loc", "status"), [(0.3, 0), (1.5, 1)], ids=["truth", "another truth"])
def test_first_light_passes_or_fails(
    study: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loc: float, status: int
) -> None:
    first_light = study("first_light")
    (case,) = (c for c in recovery.CASES if c.name == "lognormal, panel")
    case = replace(case, num_individuals=100)
    simulated = recovery.simulate(case)
    claimed = replace(case, true={"x.loc": loc, "x.scale": 0.7})
    monkeypatch.setattr(recovery, "simulate", lambda _: simulated)
    monkeypatch.setattr(first_light, "CASES", [claimed])
    monkeypatch.setattr("sys.argv", ["first_light.py", "--out", str(tmp_path)])
    assert first_light.main() == status
    report = json.loads((tmp_path / "first_light.json").read_text())
    assert report["passed"] == (status == 0)
    assert not report["interrupted"]
    (row,) = report["rows"]
    assert ("FAILED: truth recovered" in row["note"]) == (status == 1)


@pytest.mark.parametrize("done", [0, 1])
def test_an_interrupted_first_light_says_so(
    study: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    done: int,
) -> None:
    first_light = study("first_light")
    rows = iter([good_row(recovery.CASES[0])] * done)

    def run(*_: object, **__: object) -> object:
        for row in rows:
            return row
        raise KeyboardInterrupt

    earlier = tmp_path / "first_light.json"
    earlier.write_text("earlier")
    monkeypatch.setattr(first_light, "run", run)
    monkeypatch.setattr("sys.argv", ["first_light.py", "--out", str(tmp_path)])
    assert first_light.main() == 130
    assert "Interrupted" in capsys.readouterr().out
    if done:
        report = json.loads(earlier.read_text())
        assert (len(report["rows"]), report["passed"], report["interrupted"]) == (1, False, True)
    else:
        assert earlier.read_text() == "earlier"


def test_the_draws_are_standard(study: Callable[[str], ModuleType]) -> None:
    """Quasi-random draws of the standard variable: mean 0 and the family's variance, to a few per cent."""
    first_light = study("first_light")
    simulated = recovery.simulate(recovery.CASES[0])
    for family, variance in {"normal": 1.0, "lognormal": 1.0, "uniform": 1 / 3, "triangular": 1 / 6}.items():
        draws = torch.from_numpy(first_light.Peer(simulated, family, NUM_DRAWS).draws)
        assert abs(float(draws.mean())) < 0.01
        assert float(draws.var()) == pytest.approx(variance, rel=0.02)
