"""Readers of choices among short texts: McCausland and Gerringer 2019; McCausland, Marley and Davis-Stober 2019.

``trials`` has one row a choice: who (``subject``), the ``domain``, the options shown (``set``, letters) and the one
taken (``choice``). What the letters stand for is in ``domains.json`` (with the question) or ``objects.json`` (without).
"""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterator, Mapping

from mixlogit_align.alignment.data.columns import with_columns
from mixlogit_align.alignment.data.config import Mg2019Data, Mms2019Data
from mixlogit_align.alignment.data.files import data_folder, open_text, read_table, readable
from mixlogit_align.alignment.data.people import read_people
from mixlogit_align.alignment.data.reading import SplitOf, read_rows
from mixlogit_align.alignment.data.rows import BadRow, BadRows, Row
from mixlogit_align.alignment.data.schema import Comparison, PreferenceData
from mixlogit_align.alignment.data.sets import compare, numbered
from mixlogit_align.errors import InvalidInputError, explain

COLUMNS = ("subject", "domain", "set", "choice")
Domain = tuple[str, Mapping[str, str]]  # the question, and letter -> text


def read_mg2019(config: Mg2019Data) -> PreferenceData:
    """Read ``trials``, ``subjects`` and ``domains.json``; the prompt is the question as it was asked."""
    domains: dict[str, Domain] = {}
    for name, entries in _entries(config.path, "domains.json").items():
        if not entries.get("prompt"):
            raise InvalidInputError(
                explain(f"{config.path}/domains.json", got=f"no prompt of {name!r}", expected="one", hint="adding it")
            )
        domains[name] = (entries["prompt"], _options(entries))
    return _read(config, domains, {}, {})


def read_mms2019(config: Mms2019Data) -> PreferenceData:
    """Read ``trials``, ``subjects`` and ``objects.json``.

    The data hold no questions, so that ``question`` is asked. Domains of images, and unless ``options`` says otherwise
    those of numbers, are set aside; the report names them and counts their choices.
    """
    domains: dict[str, Domain] = {}
    set_aside: dict[str, list[str]] = {"images": [], "numbers": []}
    for name, entries in _entries(config.path, "objects.json").items():
        texts = _options(entries)
        if any(text.startswith(("http://", "https://")) for text in texts.values()):
            set_aside["images"].append(name)
        elif config.options == "words" and not all(any(map(str.isalpha, text)) for text in texts.values()):
            set_aside["numbers"].append(name)
        else:
            domains[name] = (config.question.replace("{domain}", name), texts)
    return _read(config, domains, set_aside, {"question_asked": config.question})


def _entries(path: str, name: str) -> dict[str, dict[str, str]]:
    """Domain -> its texts by name, without the entities of HTML."""
    with readable(f"{path}/{name}"), open_text(data_folder(path), name) as file:
        domains = json.load(file)
    return {
        domain: {key: html.unescape(text).strip() for key, text in entries.items() if isinstance(text, str)}
        for domain, entries in domains.items()
    }


def _options(entries: Mapping[str, str]) -> dict[str, str]:
    """Letter -> text."""
    return {letter: text for letter, text in entries.items() if len(letter) == 1}


def _read(
    config: Mg2019Data | Mms2019Data,
    domains: Mapping[str, Domain],
    set_aside: Mapping[str, list[str]],
    notes: Mapping[str, str],
) -> PreferenceData:
    bad = BadRows(source=config.source, policy=config.bad_rows)
    counts: Counter[str] = Counter()
    folder = str(data_folder(config.path))
    people = read_people(
        read_table(folder, bad, name="subjects"), config.groups, bad, key="subject", what=f"groups of {config.source}"
    )
    by_person = config.hold_out == "people"
    reason = {name: why for why, names in set_aside.items() for name in names}

    def comparisons_of(row: Row, split_of: SplitOf) -> Iterator[Comparison]:
        subject, domain, shown, taken = (row.text(name) for name in COLUMNS)
        if domain in reason:
            counts[f"choices_among_{reason[domain]}"] += 1
            return
        if domain not in domains or subject not in people:
            raise BadRow("unknown_id", f"subject {subject}, domain {domain}")
        question, texts = domains[domain]
        if len(shown) < 2:
            raise BadRow("too_few_candidates", repr(shown))
        if len(taken) != 1 or taken not in shown or not set(shown) <= texts.keys():
            raise BadRow("choice_not_in_set", f"{taken!r} of {shown!r}")
        choice = Comparison(
            prompt=question,
            responses=tuple(f" {texts[letter]}" for letter in shown),
            choice=shown.index(taken),
            pair_id=numbered(row.number),
            split=split_of(row, subject if by_person else question),
            annotator_id=subject,
            groups={**people[subject], "domain": domain},
        )
        yield from compare(choice, sets=config.sets, identical=config.identical, counts=counts)

    return read_rows(
        config,
        [(None, with_columns(read_table(folder, bad, name="trials"), COLUMNS, f"columns of {config.source}'s trials"))],
        comparisons_of,
        bad=bad,
        counts=counts,
        eval_fraction=config.eval_fraction,
        prompts_in_both=by_person,
        notes={**notes, **{f"domains_of_{why}": names for why, names in set_aside.items() if names}},
    )
