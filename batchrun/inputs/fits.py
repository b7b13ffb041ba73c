"""Values put into a pinned type: what a row carries, as `Request.carried` holds it.

A value that does not fit ends the run before it starts: a column has one type in every part.
"""

from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from batchrun.errors import InputError
from batchrun.inputs.columns import JSON, unite
from batchrun.inputs.json_text import json_text
from batchrun.inputs.rows import RowProblem
from batchrun.inputs.stored import carried_type, own_type, plain_values, sendable, unpack
from batchrun.records import Column

Fit = Callable[[Any], Any]


class Misfit(Exception):  # noqa: N818 - told where the row is known
    """A value that does not fit; what it is stands in the message."""


def json_fit(column: Column, *, explicit: bool) -> Fit:
    """From a JSON value, not null, to the stored one; the fit raises `Misfit`.

    `explicit`: `[input] types` asks for this type, so that text takes any value, as JSON.
    """
    if column.type == JSON:
        return _as_json
    kind = unpack(column.arrow)
    if pa.types.is_boolean(kind):
        return _as_bool
    if pa.types.is_integer(kind):
        return _integers(kind)
    if pa.types.is_floating(kind):
        return _as_float
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _as_any_text if explicit else _as_text
    return _refuse


def arrow_fit(column: Column, kind: pa.DataType, *, explicit: bool) -> Callable[[pa.Array], Any]:
    """From an array of the file's type `kind` to the list of stored values.

    Raises `Misfit` where the type cannot be put into the pinned one; so may the fit.
    """
    own = carried_type(own_type(kind))
    if column.type == JSON or (explicit and column.type == "string" and not _is_text(own)):
        make = sendable(own)
        text = _as_json if column.type == JSON else _as_any_text
        return lambda array: [
            None if value is None else text(make(value) if make else value)
            for value in plain_values(array)
        ]
    pinned = unpack(column.arrow)
    united = unite([kind, pinned])
    if not explicit and (isinstance(united, str) or united is None or not united.equals(pinned)):
        raise Misfit(str(own))

    def fit(array: pa.Array) -> list[Any]:
        try:
            return plain_values(array, pinned)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise Misfit(f"{own} ({error})") from error

    return fit


def misfit(place: str, column: Column, what: object) -> InputError:
    """The error for a value at `place` that does not fit."""
    return InputError(
        f"{place}: column `{column.column}` holds {what}, but it is carried as {column.type}. Mend "
        f"the value; or say [input] types = {{ {column.column} = 'json' }} (or 'string') and start "
        "a new run directory with -o; or leave the column out with [input] carry"
    )


def not_pinned(place: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a column that came up after the run had begun."""
    there = ", ".join(known) or "none"
    return InputError(
        f"{place}: column `{name}` is new; this run carries {there} since it began, and its "
        "columns are fixed. List the columns to keep in [input] carry, or start a new run "
        "directory with -o"
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _as_bool(value: Any) -> bool:
    if type(value) is bool:
        return value
    raise Misfit(_shown(value))


def _integers(kind: pa.DataType) -> Fit:
    signed = pa.types.is_signed_integer(kind)
    least = -(1 << (kind.bit_width - 1)) if signed else 0
    most = (1 << (kind.bit_width - signed)) - 1

    def fit(value: Any) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is int and least <= value <= most:
            return value
        raise Misfit(_shown(value))

    return fit


def _as_float(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int and abs(value) <= 1 << 53:
        return float(value)
    raise Misfit(_shown(value))


def _as_text(value: Any) -> str:
    if type(value) is str:
        return value
    raise Misfit(_shown(value))


def _as_json(value: Any) -> str:
    try:
        return json_text(value)
    except RowProblem as problem:
        raise Misfit(f"a value {problem.message}") from None


def _as_any_text(value: Any) -> str:
    return value if type(value) is str else _as_json(value)


def _refuse(value: Any) -> Any:
    raise Misfit(_shown(value))


def _shown(value: Any) -> str:
    text = _as_json(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
