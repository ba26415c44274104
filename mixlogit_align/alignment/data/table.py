"""Reader of any table of comparisons whose columns the settings name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mixlogit_align.alignment.data.columns import with_columns
from mixlogit_align.alignment.data.config import TableData
from mixlogit_align.alignment.data.files import HUB, Line, local_files, read_table
from mixlogit_align.alignment.data.hh import split_transcript
from mixlogit_align.alignment.data.reading import SplitOf, read_rows
from mixlogit_align.alignment.data.rows import BadRow, BadRows, Row, as_text, as_whole, once
from mixlogit_align.alignment.data.schema import Comparison, Message, PreferenceData, Prompt, Split
from mixlogit_align.alignment.data.sets import SLOTS, compare
from mixlogit_align.alignment.data.splits import SPLIT_NAMES
from mixlogit_align.errors import InvalidInputError, explain

EVAL_FRACTION = 0.1
MOST = 2**56  # pair ids of several pairs a row fit into 64 bits
ROLES = ("system", "user", "assistant")


def read_table_data(config: TableData) -> PreferenceData:
    """Read a table, see `TableData`.

    Texts are taken as they are: whether a space stands between prompt and response is up to the two.
    """
    bad = BadRows(source="table", policy=config.bad_rows)
    counts: Counter[str] = Counter()
    prompt_column = config.prompt or ("prompt" if config.prompt_in == "column" else None)
    candidates = config.responses or (config.chosen or "chosen", config.rejected or "rejected")
    columns = [
        name
        for name in (
            prompt_column,
            *candidates,
            config.choice,
            config.annotator_id,
            config.weight,
            config.pair_id,
            config.split,
            *config.groups,
        )
        if name is not None
    ]
    seen: dict[int, str] = {}

    def comparisons_of(row: Row, split_of: SplitOf) -> Iterator[Comparison]:
        pair_id = row.number if config.pair_id is None else as_whole(row.value(config.pair_id), config.pair_id)
        if abs(pair_id) >= MOST:
            raise BadRow("wrong_type", f"{config.pair_id} is {pair_id}, not below 2**56")
        once(seen, pair_id, row.where, config.pair_id or "row")
        values = _candidates(row, candidates)
        prompt = None if prompt_column is None else _prompt(row.value(prompt_column), prompt_column)
        if config.prompt_in == "responses":
            prompt, responses = _common_prompt(prompt, values)
        else:
            assert prompt is not None
            responses = [_response(value, name) for name, value in values]
        if len(responses) > SLOTS:
            raise BadRow("wrong_type", f"{len(responses)} candidates, more than {SLOTS}")
        weight = 1.0 if config.weight is None else row.number_in(config.weight)
        if weight <= 0:
            raise BadRow("weight_not_positive", f"{config.weight} is {weight}")
        if config.split is not None:
            part = row.text(config.split)
            if part not in SPLIT_NAMES:
                raise BadRow("wrong_type", f"{config.split} is {part!r}, none of {', '.join(SPLIT_NAMES)}")
            row = replace(row, split=SPLIT_NAMES[part])
        choice = Comparison(
            prompt=prompt,
            responses=tuple(responses),
            choice=_choice(row, config, responses),
            pair_id=pair_id * SLOTS if config.responses and config.sets == "pairs" else pair_id,
            split=split_of(row, prompt),
            annotator_id=None if config.annotator_id is None else row.label(config.annotator_id),
            groups=row.labels(config.groups),
            weight=weight,
        )
        yield from compare(choice, sets=config.sets, identical=config.identical, counts=counts)

    own_split = bool(config.eval_split) or config.split is not None
    return read_rows(
        config,
        [(split, with_columns(lines, columns, "columns of the table")) for split, lines in _tables(config, bad)],
        comparisons_of,
        bad=bad,
        counts=counts,
        eval_fraction=None if own_split else config.eval_fraction or EVAL_FRACTION,
    )


def _tables(config: TableData, bad: BadRows) -> list[tuple[Split | None, Iterable[Line]]]:
    """The tables of a folder or hub that the settings name as splits; else all in one."""
    names: dict[Split | None, str | None] = {None: config.train_split}
    if config.eval_split:
        names = {"train": config.train_split or "train", "eval": config.eval_split}
    tables: list[tuple[Split | None, Iterable[Line]]] = []
    for split, name in names.items():
        if config.path.startswith(HUB):
            path, _, own = config.path.partition("#")
            if own and name:
                raise InvalidInputError(
                    explain("path", got=config.path, expected="no # beside train_split or eval_split", hint=path)
                )
            lines = read_table(f"{path}#{own or name or 'train'}", bad, streaming=config.streaming)
        else:
            if name is None:
                _require_one_split(config.path)
            lines = read_table(config.path, bad, name=name)
        tables.append((split, lines))
    return tables


def _require_one_split(path: str) -> None:
    """A folder of "train" and "test" files is not silently read as one table."""
    stems = {file.name.partition(".")[0].partition("-")[0] for file in local_files(path)}
    if len(stems) > 1 and stems & SPLIT_NAMES.keys():
        raise InvalidInputError(
            explain(
                f"data {path!r}",
                got=f"files named {', '.join(sorted(stems))}",
                expected="train_split and eval_split, where files are splits",
                hint="`train_split: train` and `eval_split: test`, or the path of one file",
            )
        )


def _candidates(row: Row, columns: Sequence[str]) -> list[tuple[str, Any]]:
    """Name and value of the candidates: a column each, or one column that lists them."""
    if len(columns) > 1:
        return [(name, row.value(name)) for name in columns]
    values = _from_json(row.value(columns[0]))
    if not isinstance(values, list):
        raise BadRow("wrong_type", f"{columns[0]} is no list")
    if len(values) < 2:
        raise BadRow("too_few_candidates", f"{columns[0]} lists {len(values)}")
    return [(f"{columns[0]}[{i}]", value) for i, value in enumerate(values)]


def _from_json(value: Any) -> Any:
    """What a text holds as JSON, where it does."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _messages(value: Any, name: str) -> tuple[Message, ...] | None:
    """A list of messages, or one alone, as such; None for anything else, texts that look like neither included."""
    items = _from_json(value)
    items = [items] if isinstance(items, Mapping) else items
    if not (isinstance(items, list) and items and all(isinstance(i, Mapping) and "role" in i for i in items)):
        return None
    for item in items:
        if item["role"] not in ROLES:
            if isinstance(value, str):
                return None
            raise BadRow("wrong_type", f"{name}: role {item['role']!r} is none of {', '.join(ROLES)}")
    return tuple(Message(item["role"], as_text(item.get("content"), f"content in {name}")) for item in items)


def _prompt(value: Any, name: str) -> Prompt:
    messages = _messages(value, name)
    return as_text(value, name, "empty_prompt") if messages is None else _asked(messages, name)


def _asked(messages: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    if not any(message.role == "user" and message.content.strip() for message in messages):
        raise BadRow("empty_prompt", name)
    return messages


def _response(value: Any, name: str) -> str:
    messages = _messages(value, name)
    if messages is None:
        return as_text(value, name, "empty_response")
    if len(messages) != 1 or messages[0].role != "assistant":
        raise BadRow("wrong_type", f"{name}: {len(messages)} messages where one of the assistant is a response")
    return as_text(messages[0].content, name, "empty_response")


def _common_prompt(prompt: Prompt | None, values: Sequence[tuple[str, Any]]) -> tuple[Prompt, list[str]]:
    """Prompt and responses of candidates that each repeat the whole conversation."""
    repeated = [(name, *_prompt_and_response(prompt, value, name)) for name, value in values]
    prompts = {found for _, found, _ in repeated} | ({prompt} if prompt is not None else set())
    if len(prompts) > 1:
        raise BadRow("prompts_differ")
    return prompts.pop(), [as_text(response, name, "empty_response") for name, _, response in repeated]


def _prompt_and_response(prompt: Prompt | None, value: Any, name: str) -> tuple[Prompt, str]:
    messages = _messages(value, name)
    if messages is not None:
        if messages[-1].role != "assistant":
            raise BadRow("wrong_type", f"{name}: a conversation that does not end in an answer of the assistant")
        return _asked(messages[:-1], name), messages[-1].content
    text = as_text(value, name, "empty_response")
    if prompt is None:
        return split_transcript(text, name)
    if isinstance(prompt, str) and text.startswith(prompt):
        return prompt, text.removeprefix(prompt)
    raise BadRow("prompts_differ", f"{name} does not begin with the prompt")


def _choice(row: Row, config: TableData, responses: Sequence[str]) -> int:
    if config.choice is None:
        return 0
    value = row.value(config.choice)
    if config.choice_by == "index":
        index = as_whole(value, config.choice)
        if not 0 <= index < len(responses):
            raise BadRow("choice_not_in_set", f"{index} of {len(responses)}")
        return index
    among = list(config.responses) if config.choice_by == "column" else list(responses)
    if value not in among:
        raise BadRow("choice_not_in_set", repr(value)[:60])
    return among.index(value)
