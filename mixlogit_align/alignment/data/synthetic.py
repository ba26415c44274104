"""Made-up rows in the schemas of real data sets, by which settings can be tried where the data are not at hand."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mixlogit_align.alignment.data.community import END_OF_TEXT, FIELDS, SLOTS, TURNS
from mixlogit_align.alignment.data.config import CommunityData, HHData, PrismData
from mixlogit_align.alignment.data.hh import FILES
from mixlogit_align.alignment.data.schema import Message, transcript

WORDS = ("people", "should", "think", "about", "fair", "work", "money", "family", "green", "city", "vote", "music")
SHORTEST, LONGEST = 3, 90  # words of a text: some fit into the usual limits, some are cut
AGES = ("18-24 years old", "25-34 years old", "65+ years old")
NUM_PEOPLE = 20
Row = dict[str, Any]


def write_synthetic(
    config: HHData | PrismData | CommunityData, folder: Path, num_train: int, num_eval: int
) -> HHData | PrismData | CommunityData:
    """Write a data set of made-up texts in the schema of a real one.

    Parameters
    ----------
    config : HHData, PrismData or CommunityData
    folder : Path
        Gets the files.
    num_train, num_eval : int
        How many comparisons are kept of each split.

    Returns
    -------
    section
        ``config`` with the path, and as many comparisons; every other setting is as it was.
    """
    generator = random.Random(0)
    rows = num_train + num_eval
    if isinstance(config, HHData):
        path = folder
        for subset in config.subsets or ("",):
            for name in FILES.values():
                _write(folder / subset / f"{name}.jsonl", (_hh(generator, i) for i in range(rows)))
    else:
        # every conversation has a comparison of either kind of turn, and the openings that are held out are as good as
        # drawn: 4 standard deviations more than wanted
        shares = ((1 - config.eval_fraction, num_train), (config.eval_fraction, num_eval))
        numbers = range(max(math.ceil((wanted + 4 * math.sqrt(wanted) + 16) / p) for p, wanted in shares))
        if isinstance(config, PrismData):
            path = folder
            _write(folder / "survey.jsonl", (_person(i) for i in range(NUM_PEOPLE)))
            _write(folder / "conversations.jsonl", (_prism(generator, i) for i in numbers))
        else:
            path = folder / "train.jsonl"
            _write(path, (_community(generator, i, config) for i in numbers))
    return dataclasses.replace(config, path=str(path), max_train=num_train, max_eval=num_eval)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _text(generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randint(SHORTEST, LONGEST)))


def _texts(generator: random.Random, number: int) -> list[str]:
    """Different texts."""
    return [f"{_text(generator)} {i}" for i in range(number)]


def _hh(generator: random.Random, number: int) -> Row:
    # the generator goes on from file to file, so that no prompt stands in two
    prompt = transcript((Message("user", f"{_text(generator)} {number}?"),))
    chosen, rejected = (f"\n\n{prompt} {text}" for text in _texts(generator, 2))
    return {"chosen": chosen, "rejected": rejected}


def _person(number: int) -> Row:
    return {
        "user_id": f"user{number}",
        "survey_only": False,
        "num_completed_conversations": 1,
        "age": AGES[number % len(AGES)],
        "gender": ("Female", "Male")[number % 2],
        "education": "University Bachelors Degree",
        "employment_status": "Working full-time",
        "marital_status": "Never been married",
        "english_proficiency": "Fluent",
        "lm_familiarity": "Somewhat familiar",
        "religion": {"self_described": "none", "categorised": "Non-religious", "simplified": "No Affiliation"},
        "ethnicity": {"self_described": "mixed", "categorised": "Mixed", "simplified": "Mixed"},
        "location": {"birth_region": "Europe", "reside_region": "Europe", "special_region": "Europe"},
        "included_in_balanced_subset": True,
    }


def _prism(generator: random.Random, number: int) -> Row:
    history: list[Row] = []
    for turn, candidates in enumerate((4, 2)):
        history.append({"turn": turn, "role": "user", "content": f"{_text(generator)} {number}?"})
        chosen = generator.randrange(candidates)
        for i, text in enumerate(_texts(generator, candidates)):
            said = {"content": text, "model_name": f"model{i}", "score": 60 + 10 * (i == chosen) + i}
            history.append({"turn": turn, "role": "model", "within_turn_id": i, "if_chosen": i == chosen, **said})
    return {
        "conversation_id": f"c{number}",
        "user_id": f"user{number % NUM_PEOPLE}",
        "conversation_type": ("unguided", "values guided", "controversy guided")[number % 3],
        "opening_prompt": history[0]["content"],
        "conversation_turns": 2,
        "conversation_history": history,
        "included_in_balanced_subset": True,
    }


def _community(generator: random.Random, number: int, config: CommunityData) -> Row:
    row: Row = {
        "conversation_id": f"c{number}",
        "assigned_lang": (config.languages or ("en",))[number % max(len(config.languages), 1)],
        "annotator_id": f"annotator{number % NUM_PEOPLE}",
        "annotator_age": AGES[number % len(AGES)],
        "annotator_gender": "female",
        "annotator_education_level": "college",
        "annotator_political": "moderate",
        "annotator_ethnicity": None,
        "annotator_country": "india",
        "is_pregenerated_first_prompt": True,
        "in_balanced_subset": True,
        "in_balanced_subset_10": True,
    }
    for turn, name in enumerate(TURNS):
        values = _turn(generator, number) if turn < 2 else [None] * len(FIELDS)
        row |= zip((f"{name}_turn_{what}" for what in FIELDS), values, strict=True)
    return row


def _turn(generator: random.Random, number: int) -> list[str]:
    """A prompt, the responses, and which one is preferred."""
    responses = [text + END_OF_TEXT for text in _texts(generator, len(SLOTS))]
    return [f"{_text(generator)} {number}?", *responses, generator.choice(SLOTS)]
