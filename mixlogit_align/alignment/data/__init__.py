"""Preference data: one reader a data set, one schema."""

from __future__ import annotations

from mixlogit_align.alignment.data.config import DataConfig, HHData, HumourData, SimulatedData
from mixlogit_align.alignment.data.hh import read_hh
from mixlogit_align.alignment.data.humour import read_humour
from mixlogit_align.alignment.data.schema import Comparison, PreferenceData, StrengthTruth
from mixlogit_align.alignment.data.simulated import read_simulated

__all__ = ["Comparison", "PreferenceData", "StrengthTruth", "load_data", "read_hh", "read_humour", "read_simulated"]


def load_data(config: DataConfig) -> PreferenceData:
    """Read or simulate the data that ``config`` describes."""
    match config:
        case SimulatedData():
            return read_simulated(config)
        case HHData():
            return read_hh(config)
        case HumourData():
            return read_humour(config)
