"""What one pass finds out about columns: which are sent, which carried, and the types they need.

Nothing here grows with the rows, only with the columns.
"""

from collections import defaultdict
from contextlib import suppress

import pyarrow as pa
from msgspec import Struct

from batchrun.dialects.responses import TRANSPORT_FIELDS
from batchrun.errors import InputError
from batchrun.inputs.carried import JSON, make_column, pinned_columns, unite
from batchrun.inputs.chat import BATCH_COLUMNS
from batchrun.inputs.parquet import read_columns
from batchrun.inputs.rows import RowProblem, SourceFile, SourceRow, to_json_text
from batchrun.job.sections import InputJob
from batchrun.records import Column, Layout
from batchrun.store.columns import name_columns

_EXACT = 1 << 53  # below this a double holds every integer
_LONG = 1 << 63
_TYPE_NAMES = {str: "string", bool: "bool", float: "double"}
Names = frozenset[str] | None
# Columns that steer how a row is read: neither sent nor carried.
_CONTROLS = (BATCH_COLUMNS - {"body"}) | set(TRANSPORT_FIELDS)


class _Seen(Struct):
    """What was found out about one column so far."""

    kinds: set[type] = set()  # of JSON values
    arrow: list[pa.DataType] = []  # one for each Parquet file that has the column
    least: int = 0
    most: int = 0
    bytes: int = 0
    sent: bool = False  # some row has it, not null, and sends it
    carried: bool = False  # some row has it, not null, and does not send it

    def json_type(self) -> str | None:
        """The narrowest of the named types that holds every JSON value; None where all are null."""
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
    """Counts columns row by row. With a pinned layout, values are checked against it instead.

    Columns outside of `used` are never sent; None: all may be.
    """

    def __init__(
        self, job: InputJob, identity: frozenset[str], pinned: Layout | None, used: Names
    ) -> None:
        self._carry = job.carry
        self._types = job.types
        self._identity = identity
        self._pinned = pinned
        self._used = used
        named = (make_column(name, name, kind) for name, kind in job.types.items())
        # Columns whose type is known before the pass.
        self.fixed = pinned_columns(pinned.columns if pinned else tuple(named), job)
        # All that rows have, in order of first appearance.
        self.columns: defaultdict[str, _Seen] = defaultdict(_Seen)

    @property
    def carried_bytes(self) -> int:
        return sum(self.columns[n].bytes for n in self.carried() if n in self.columns)

    def add_file(self, file: SourceFile) -> None:
        """Counts the columns of a Parquet file in. Raises `InputError`."""
        carry, used = self._carry, self._used
        for name, (kind, size) in read_columns(file).items():
            seen = self.columns[name]
            seen.arrow.append(kind)
            seen.bytes += size
            if (name in carry) if carry is not None else (used is not None and name not in used):
                self._note(name, seen, file)

    def add(self, row: SourceRow, consumed: frozenset[str]) -> None:
        """Counts a row in. Raises `InputError` where a value does not fit."""
        columns, carry, is_json = self.columns, self._carry, not row.columns
        for name, value in (row.data or {}).items():
            seen = columns[name]
            if value is None:
                continue
            if name in consumed:
                seen.sent = True
                if carry is None:
                    continue
            if (carry is not None and name not in carry) or name in self._identity:
                continue
            if not seen.carried:
                self._note(name, seen, row)
            if not is_json:  # the file says what its columns are
                continue
            if name in self.fixed:
                self.fixed[name].fit(value, row)
            kind = type(value)
            if kind is str:
                seen.bytes += len(value)
            elif kind is int:
                seen.bytes += 8
                if value < seen.least:
                    seen.least = value
                elif value > seen.most:
                    seen.most = value
            elif kind is bool or kind is float:
                seen.bytes += 8
            else:
                with suppress(RowProblem):  # an error later if it cannot be carried
                    seen.bytes += len(to_json_text(value, leniently=True))
            seen.kinds.add(kind)

    def sent(self, fills: frozenset[str] | None) -> tuple[str, ...]:
        """The source columns of which something is sent; `fills`: by templates, None: all."""
        hidden = self._identity | _CONTROLS
        return tuple(
            name
            for name, seen in self.columns.items()
            if (seen.sent and name not in hidden) or fills is None or name in fills
        )

    def carried(self) -> list[str]:
        """The source columns that are carried, in order of first appearance or as asked for."""
        asked = self._carry
        if asked is None:
            asked = tuple(n for n, seen in self.columns.items() if seen.carried or not seen.sent)
        return [name for name in dict.fromkeys(asked) if name not in self._identity]

    def layout(self) -> tuple[Column, ...]:
        """The carried columns with the types that hold all values. Raises `InputError`."""
        if self._pinned is not None:
            return self._pinned.columns
        names = self.carried()
        return tuple(
            make_column(name, column, self._type(column))
            for name, column in zip(name_columns(names), names, strict=True)
        )

    def _note(self, name: str, seen: _Seen, source: SourceRow | SourceFile) -> None:
        """The column is carried; a run that has begun must know it."""
        if name in self._identity:
            return
        if self._pinned is not None and name not in self.fixed:
            raise InputError(
                f"{source}: column `{name}` is new; this run carries "
                f"{', '.join(self.fixed) or 'none'} since it began, and its columns are fixed. "
                "List the columns to carry in [input] carry, or start a new run directory with -o"
            )
        seen.carried = True

    def _type(self, column: str) -> pa.DataType | str:
        if column in self._types:
            return self._types[column]
        seen = self.columns[column]
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
