"""A few rows of each outcome, picked by chance that is the same each time."""

import duckdb
from msgspec import Struct

from batchrun.report.conversation import Turn, turns_of
from batchrun.report.printable import printable

_OF_EACH = 3
_MOST_KINDS = 12
_SHOWN = 1_000  # characters of one turn
_TURNS = 6  # the last of a conversation

_PICKED = """
    SELECT outcome, error_kind, unnest(arg_min(
        {'row': "row", 'custom_id': custom_id, 'sample': sample, 'variant': variant},
        hash(custom_id), ?))
    FROM answers GROUP BY outcome, error_kind ORDER BY outcome <> 'ok', count(*) DESC, 1, 2 LIMIT ?
"""
_WHOLE = """
    SELECT custom_id, sample, variant, error_message, request, output
    FROM responses WHERE "row" IN (SELECT unnest(?)) AND custom_id IN (SELECT unnest(?))
"""


class Sample(Struct, frozen=True):
    """One row, its texts cut to what a page can hold."""

    outcome: str
    error_kind: str | None
    row: int
    custom_id: str
    message: str | None  # why it is not ok
    turns: tuple[Turn, ...]


def read_samples(database: duckdb.DuckDBPyConnection) -> tuple[Sample, ...]:
    """By outcome and kind of error, the most frequent first, `ok` before all."""
    picked = database.execute(_PICKED, [_OF_EACH, _MOST_KINDS * _OF_EACH]).fetchall()
    rows, ids = ([one[name] for _, _, one in picked] for name in ("row", "custom_id"))
    found = {
        (custom_id, sample, variant): rest
        for custom_id, sample, variant, *rest in database.execute(_WHOLE, [rows, ids]).fetchall()
    }
    samples = []
    for outcome, kind, one in picked:
        message, request, output = found[one["custom_id"], one["sample"], one["variant"]]
        turns = tuple(
            Turn(_cut(turn.who), _cut(turn.text)) for turn in turns_of(request, output)[-_TURNS:]
        )
        name, why = _cut(one["custom_id"]), message and _cut(message)
        samples.append(Sample(outcome, kind, one["row"], name, why, turns))
    return tuple(samples)


def _cut(text: str) -> str:
    """The beginning, harmless, and how much more there is."""
    shown = printable(text[:_SHOWN])[:_SHOWN]  # codes are longer than what they stand for
    return shown if len(text) <= _SHOWN else f"{shown} … ({len(text) - _SHOWN:,} more characters)"
