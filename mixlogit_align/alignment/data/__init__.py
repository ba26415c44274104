"""Preference data: one reader a data set, one schema."""

from __future__ import annotations

from mixlogit_align.alignment.data.choice_sets import read_mg2019, read_mms2019
from mixlogit_align.alignment.data.community import read_community
from mixlogit_align.alignment.data.config import (
    CommunityData,
    DataConfig,
    HHData,
    HumourData,
    Mg2019Data,
    Mms2019Data,
    PrismData,
    SimulatedData,
    TableData,
)
from mixlogit_align.alignment.data.hh import read_hh
from mixlogit_align.alignment.data.humour import read_humour
from mixlogit_align.alignment.data.prism import read_prism
from mixlogit_align.alignment.data.schema import Comparison, Message, PreferenceData, StrengthTruth
from mixlogit_align.alignment.data.simulated import read_simulated
from mixlogit_align.alignment.data.table import read_table_data

__all__ = [
    "Comparison",
    "Message",
    "PreferenceData",
    "StrengthTruth",
    "load_data",
]


def load_data(config: DataConfig) -> PreferenceData:
    """Read or simulate the data that ``config`` describes."""
    match config:
        case SimulatedData():
            return read_simulated(config)
        case HHData():
            return read_hh(config)
        case PrismData():
            return read_prism(config)
        case CommunityData():
            return read_community(config)
        case TableData():
            return read_table_data(config)
        case Mg2019Data():
            return read_mg2019(config)
        case Mms2019Data():
            return read_mms2019(config)
        case HumourData():
            return read_humour(config)
