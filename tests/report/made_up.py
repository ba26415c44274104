"""Folders of runs that were evaluated and judged, with numbers that can be followed by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixlogit_align.alignment.config import (
    AlignmentConfig,
    GammaStrength,
    LearnedUpdate,
    LogNormalStrength,
    PointStrength,
    PreferenceConfig,
)
from mixlogit_align.alignment.data.config import SimulatedData
from mixlogit_align.report.files import Run, read_run

from .conftest import write_run

DATA = SimulatedData(num_train=8, num_eval=8, num_annotators=4)
DPO = PointStrength()
LOGNORMAL = LogNormalStrength(update=LearnedUpdate(lr=1e-4))
GAMMA = GammaStrength(update=LearnedUpdate(lr=1e-4))
# label, kind, pairs, value of DPO
EDUCATION = (("primary", "small", 4, -1.0), ("degree", "cell", 400, 3.0), ("secondary", "cell", 100, 1.0))


def estimate(value: float | None, error: float | None = 0.5, **more: Any) -> dict[str, Any]:
    """An estimate whose interval is two standard errors wide on each side."""
    ends: dict[str, Any] = {"lower": None, "upper": None}
    if value is not None and error is not None:
        ends = {"lower": value - 2 * error, "upper": value + 2 * error}
    return {"value": value, "standard_error": error, **ends, **more}


def average(attribute: str | None, kind: str, label: str, num_pairs: int, found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attribute": attribute, "kind": kind, "level": label if kind in ("cell", "small") else None, "label": label,
        "num_pairs": num_pairs, "num_clusters": max(num_pairs // 10, 1), "num_levels": 1, "weight": float(num_pairs),
        "estimates": {"margin/sum": dict(found)},
    }  # fmt: skip


def evaluation(name: str, gain: float = 0.0) -> dict[str, Any]:
    """Margins by education: micro 2.6, macro 2 (small ones apart), 1 with them; all higher by the gain."""
    return {
        "name": name, "level": 0.95, "clusters": "50 clusters by annotator", "minimum": 10, "num_ties": 0,
        "left_out": [], "calibration": None,
        "averages": [
            average(None, "all", "all pairs", 510, estimate(2.5 + gain)),
            average("education", "micro", "micro", 504, estimate(2.6 + gain)),
            average("education", "macro", "macro", 500, estimate(2.0 + gain)),
            average("education", "macro_all", "macro, small ones too", 504, estimate(1.0 + gain)),
            *(average("education", kind, label, n, estimate(value + gain)) for label, kind, n, value in EDUCATION),
            average("education", "missing", "(unknown)", 6, estimate(0.0 + gain)),
        ],
    }  # fmt: skip


def gains(name: str, gain: float, pvalue: float, against: str = "DPO", context: bool = True) -> dict[str, Any]:
    """Gains over a run of the same pairs; of the small cell neither interval nor test."""
    tested = estimate(gain, 0.1, pvalue=pvalue, adjusted_pvalue=None)
    adjusted = {**tested, "adjusted_pvalue": min(3 * pvalue, 1.0)}
    untested = {**estimate(gain, None), "pvalue": None, "adjusted_pvalue": None}
    levels = [average("education", kind, label, n, untested if kind == "small" else adjusted)
              for label, kind, n, _ in EDUCATION]  # fmt: skip
    if context:
        levels.insert(0, average("framing", "cell", "guided", 510, adjusted))
    return {
        "name": name, "against": against, "level": 0.95, "clusters": "50 clusters by annotator", "minimum": 10,
        "adjustment": "holm", "num_tests": 3,
        "averages": [
            average(None, "all", "all pairs", 510, tested),
            average("education", "micro", "micro", 510, tested),
            average("education", "macro", "macro", 500, tested),
            *levels,
        ],
    }  # fmt: skip


def winrate(percent: float, pvalue: float | None = None, lower: float = -1.0) -> dict[str, Any]:
    """A win rate against the supervised policy, compared with DPO where a p-value is given."""
    compared = None
    if pvalue is not None:
        compared = {
            "model": "run", "other": "DPO", "opponent": "SFT", "difference": estimate(3.0, 2.0),
            "test": {"difference": 3.0, "test": {"pvalue": pvalue}, "num_left_out": 0},
            "controlled": {"value": 3.0, "standard_error": 2.0, "lower": lower, "upper": 7.0}, "not_controlled": None,
        }  # fmt: skip
    counts = {"num_wins": 9, "num_losses": 8, "num_ties": 1, "num_missing": 0}
    return {
        "model": "run", "opponent": "SFT", "judge": "a judge", "interval": estimate(percent, 2.5),
        "test": {"difference": percent - 50.0, "test": {"pvalue": 0.5, "exact": True}, "num_left_out": 0},
        "win_rate": {"percent": percent, "standard_error": 2.5, **counts}, "controlled": estimate(percent - 1, 2.0),
        "not_controlled": None, "compared": compared, "faults": {}, "generation": {}, "usage": None,
    }  # fmt: skip


def steps(seconds: Sequence[float], variances: Sequence[float] = (), mean: float = 0.12) -> list[dict[str, Any]]:
    """Training steps of 64 examples that took so long, under a strength of these variances before each and at last."""
    rows: list[dict[str, Any]] = []
    for i, took in enumerate(seconds):
        row = {"stage": "preference", "split": "train", "step": i + 1, "examples_seen": 64 * (i + 1), "loss": 0.6}
        rows.append({**row, "examples_per_second": 64 / took, **_strength(variances, i, mean)})
    last = {"stage": "preference", "split": "eval", "step": len(seconds), "examples_seen": 64 * len(seconds)}
    rows.append({**last, "loss": 0.5, **_strength(variances, len(seconds), mean)})
    return rows


def measured_run(
    folder: Path,
    name: str,
    strength: Any,
    *,
    seed: int = 0,
    metrics: list[dict[str, Any]] | None = None,
    evaluated: Mapping[str, Any] | None = None,
    held: Mapping[str, Mapping[str, Any]] | None = None,
    judged: Mapping[str, Any] | None = None,
    status: str = "finished",
    **settings: Any,
) -> Run:
    """Write a run's folder with what was measured of it, and read it."""
    preference = PreferenceConfig(strength=strength) if strength is not None else None
    config = AlignmentConfig(
        **{"out": str(folder), "name": name, "data": DATA, "preference": preference, "seed": seed, **settings}
    )
    write_run(folder, config, metrics or [], status)
    if evaluated is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluated))
    for other, result in (held or {}).items():
        (folder / f"gains-over-{other}.json").write_text(json.dumps(result))
    if judged is not None:
        (folder / "winrate-sft").mkdir()
        (folder / "winrate-sft" / "winrate.json").write_text(json.dumps(judged))
    return read_run(folder)


def _strength(variances: Sequence[float], i: int, mean: float) -> dict[str, float]:
    return {"strength/mean": mean, "strength/sd": variances[i] ** 0.5} if variances else {}


def axes_of(panel: Any) -> Any:
    """A panel drawn on axes of its own."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    panel.draw(axes)
    return axes
