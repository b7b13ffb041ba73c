"""What one pass finds out about columns: which are sent, which carried, and the types they need.

Nothing here grows with the rows, only with the columns.
"""

from contextlib import suppress
from typing import Any

import pyarrow as pa
from msgspec import Struct

from batchrun.dialects.responses import TRANSPORT_FIELDS
from batchrun.errors import InputError
from batchrun.inputs.carried import JSON, Fit, Misfit, json_fit, make_column, misfit, unite
from batchrun.inputs.chat import BATCH_COLUMNS
from batchrun.inputs.parquet import FileColumns
from batchrun.inputs.rows import RowProblem, SourceRow, to_json_text
from batchrun.job.sections import InputJob
from batchrun.records import Column
from batchrun.store.columns import name_columns

_EXACT = 1 << 53  # below this a double holds every integer
_LONG = 1 << 63
_TYPE_NAMES = {str: "string", bool: "bool", float: "double"}
# Columns that steer how a row is read: neither sent nor carried.
_CONTROLS = (BATCH_COLUMNS - {"body"}) | set(TRANSPORT_FIELDS)


class _Seen(Struct):
    """The values of one column so far."""

    kinds: set[type]  # of JSON values
    arrow: list[pa.DataType]  # one for each Parquet file that has the column
    least: int = 0
    most: int = 0
    carried: bool = False  # some row has it, not null, and does not send it

    def json_type(self) -> str | None:
        """The narrowest of the named types that holds every JSON value; null: all are null."""
        kinds, least, most = self.kinds, self.least, self.most
        if kinds == {int}:
            return "int64" if least >= -_LONG and most < _LONG else JSON
        if kinds == {int, float}:
            return "double" if least >= -_EXACT and most <= _EXACT else JSON
        if len(kinds) == 1:
            (kind,) = kinds
            return _TYPE_NAMES.get(kind, JSON)
        return JSON if kinds else None


class ColumnTally:
    """Counts columns row by row. With a pinned layout, values are checked against it instead."""

    def __init__(
        self, input_job: InputJob, identity: frozenset[str], pinned: tuple[Column, ...] | None
    ) -> None:
        self._carry = input_job.carry
        self._types = input_job.types
        self._identity = identity
        self._pinned = None if pinned is None else {column.column: column for column in pinned}
        if pinned is None:
            pinned = tuple(make_column(name, name, kind) for name, kind in self._types.items())
        self.fixed = pinned  # columns whose type is known before the pass
        self._fits: dict[str, tuple[Column, Fit]] = {
            one.column: (one, json_fit(one, explicit=one.column in self._types)) for one in pinned
        }
        self._columns: dict[str, _Seen] = {}
        self._sent: dict[str, None] = {}
        self._sizes: dict[str, int] = {}  # Parquet: bytes of each column
        self._bytes = 0
        self._file: tuple[str, ...] | None = None  # columns of the Parquet file last seen
        self.objects = 0  # rows that could be decoded

    @property
    def columns(self) -> list[str]:
        """All that rows have, in order of first appearance."""
        return list(self._columns)

    @property
    def carried_bytes(self) -> int:
        return self._bytes + sum(self._sizes.get(name, 0) for name in self.carried())

    def add_file(self, columns: FileColumns, source: str) -> None:
        """Counts the columns of a Parquet file in."""
        for name, kind in columns.types.items():
            seen = self._seen(name)
            seen.arrow.append(kind)
            self._sizes[name] = self._sizes.get(name, 0) + columns.sizes.get(name, 0)
            if self._carry is not None and name in self._carry:
                self._note(name, seen, source)

    def add_parquet(
        self, row: SourceRow, consumed: frozenset[str], used: frozenset[str] | None
    ) -> None:
        """Counts a row of Parquet in; columns outside of `used` are never sent."""
        self.objects += 1
        for name in row.data or ():
            if name in consumed:
                self._sent[name] = None
            elif self._carry is None and not self._columns[name].carried:
                self._note(name, self._columns[name], row.where)
        if row.columns is not self._file:
            self._file = row.columns
            for name in row.columns:
                if used is not None and name not in used and self._carry is None:
                    self._note(name, self._columns[name], row.where)

    def add_json(self, row: SourceRow, consumed: frozenset[str]) -> None:
        """Counts a row of JSON Lines in. Raises `InputError` where a value does not fit."""
        self.objects += 1
        columns, carry = self._columns, self._carry
        for name, value in (row.data or {}).items():
            seen = columns.get(name) or self._seen(name)
            if name in consumed:
                if value is not None and name not in self._sent:
                    self._sent[name] = None
                if carry is None:
                    continue
            if carry is not None and name not in carry:
                continue
            if value is None or name in self._identity:
                continue
            if not seen.carried:
                self._note(name, seen, row.where)
            if name in self._fits:
                column, fit = self._fits[name]
                try:
                    fit(value)
                except Misfit as what:
                    raise misfit(row.where, column, what) from None
            kind = type(value)
            if kind is str:
                self._bytes += len(value)
            elif kind is int:
                self._bytes += 8
                if value < seen.least:
                    seen.least = value
                elif value > seen.most:
                    seen.most = value
            else:
                self._bytes += 8 if kind in (bool, float) else _json_bytes(value)
            seen.kinds.add(kind)

    def sent(self, in_templates: set[str]) -> tuple[str, ...]:
        """The source columns of which something is sent."""
        hidden = self._identity | _CONTROLS
        return tuple(
            name
            for name in self._columns
            if (name in self._sent and name not in hidden) or name in in_templates
        )

    def carried(self) -> list[str]:
        """The source columns that are carried, in order of first appearance or as asked for."""
        if self._carry is not None:
            return [name for name in dict.fromkeys(self._carry) if name not in self._identity]
        return [
            name
            for name, seen in self._columns.items()
            if name not in self._identity and (seen.carried or name not in self._sent)
        ]

    def layout(self) -> tuple[Column, ...]:
        """The carried columns with the types that hold all values. Raises `InputError`."""
        if self._pinned is not None:
            return self.fixed
        names = self.carried()
        return tuple(
            make_column(name, column, self._type(column))
            for name, column in zip(name_columns(names), names, strict=True)
        )

    def _seen(self, name: str) -> _Seen:
        return self._columns.setdefault(name, _Seen(kinds=set(), arrow=[]))

    def _note(self, name: str, seen: _Seen, where: str) -> None:
        """The column is carried; a run that has begun must know it."""
        if name in self._identity:
            return
        if self._pinned is not None and name not in self._pinned:
            raise InputError(
                f"{where}: column `{name}` is new; this run carries "
                f"{', '.join(self._pinned) or 'none'} since it began, and its columns are fixed. "
                "List the columns to carry in [input] carry, or start a new run directory with -o"
            )
        seen.carried = True

    def _type(self, column: str) -> pa.DataType | str:
        if column in self._types:
            return self._types[column]
        seen = self._seen(column)
        kinds: list[pa.DataType | str] = [*seen.arrow]
        if (json_type := seen.json_type()) is not None:
            kinds.append(json_type)
        united = unite(kinds) if kinds else "string"
        if united is None:
            found = ", ".join(sorted({str(kind) for kind in kinds}))
            raise InputError(
                f"column `{column}` has types that fit into no one column ({found}); choose "
                f"one with [input] types = {{ {column} = 'json' }} (or 'string'), or leave the "
                "column out with [input] carry"
            )
        return united


def _json_bytes(value: Any) -> int:
    with suppress(RowProblem):  # an estimate; a value that cannot be carried is an error later
        return len(to_json_text(value, leniently=True))
    return 0
