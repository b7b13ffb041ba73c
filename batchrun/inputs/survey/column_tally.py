"""What one pass finds out about columns: which are sent, which carried, and the types they need.

Nothing here grows with the rows, only with the columns.
"""

import shlex
from collections import Counter, defaultdict
from typing import Any

import pyarrow as pa
from msgspec import Struct

from batchrun.dialects.responses import TRANSPORT_FIELDS
from batchrun.errors import InputError
from batchrun.formats.printable import cut, listed
from batchrun.inputs.carried import (
    JSON,
    PinnedColumn,
    carry_options,
    make_column,
    pinned_columns,
    problem_of,
    unite,
)
from batchrun.inputs.forms.chat import BATCH_COLUMNS
from batchrun.inputs.parquet import read_columns
from batchrun.inputs.rows import (
    NO_COLUMNS,
    RowProblem,
    SourceFile,
    SourceRow,
    Unsendable,
    to_json_text,
)
from batchrun.job.sections import InputJob
from batchrun.records import Column, Layout
from batchrun.store.columns import name_columns

_EXACT = 1 << 53  # below this a double holds every integer
_LONG = 1 << 63
_NUMBERS = {int, float}
_WORDS = {str: "text", bool: "a truth value", dict: "an object", list: "a list"}
_TYPE_NAMES = {str: "string", bool: "bool", float: "double"}
Names = frozenset[str] | None
# Columns that steer how a row is read: neither sent nor carried.
_CONTROLS = (BATCH_COLUMNS - {"body"}) | set(TRANSPORT_FIELDS)


class _Seen(Struct):
    """What was found out about one column so far."""

    kinds: dict[type, str] = {}  # of JSON values, with the first row of each
    arrow: dict[pa.DataType, str] = {}  # in Parquet, with the first file of each
    least: int = 0
    most: int = 0
    bytes: int = 0
    large: str = ""  # the first row with an integer that a double does not hold,
    huge: str = ""  # and that 64 bits do not hold
    sent: bool = False  # some row has it, not null, and sends it
    carried: bool = False  # some row has it, not null, and does not send it

    def add(self, value: Any, row: SourceRow) -> None:
        """Counts a JSON value in, not null. Raises `RowProblem` where it is nested too deeply."""
        kind = type(value)
        if kind is str:
            self.bytes += len(value)
        elif kind is int:
            self.bytes += 8
            if value < self.least:
                self.least = value
                self._note_large(value, row)
            elif value > self.most:
                self.most = value
                self._note_large(value, row)
        elif kind is bool or kind is float:
            self.bytes += 8
        elif kind is Unsendable:
            if value.value is None:  # NaN
                return
            kind = float
        else:
            self.bytes += len(to_json_text(value, leniently=True))
        if kind not in self.kinds:
            self.kinds[kind] = str(row)

    def _note_large(self, value: int, row: SourceRow) -> None:
        if not self.large and not -_EXACT <= value <= _EXACT:
            self.large = str(row)
        if not self.huge and not -_LONG <= value < _LONG:
            self.huge = str(row)

    def words(self) -> dict[str, str]:
        """What JSON values it holds, in words, with the first row of each."""
        first: dict[str, str] = {}
        for kind, row in self.kinds.items():
            first.setdefault(_WORDS.get(kind, "a number"), row)
        return first

    def json_type(self) -> str | None:
        """The narrowest of the named types that holds every JSON value; None where all are null."""
        kinds, least, most = self.kinds.keys(), self.least, self.most
        if kinds == {int}:
            return "int64" if least >= -_LONG and most < _LONG else JSON
        if kinds == _NUMBERS:
            return "double" if least >= -_EXACT and most <= _EXACT else JSON
        if str in kinds and kinds <= {str, *_NUMBERS}:
            return "string"
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
        # Columns that rows of a form send, by all that the form may send.
        self._sent: defaultdict[frozenset[str], set[str]] = defaultdict(set)
        self._carry = job.carry
        self._types = job.types
        self._identity = identity
        self._pinned = pinned
        self._used = used
        named = (make_column(name, name, kind) for name, kind in job.types.items())
        # Columns whose type is known before the pass.
        columns = pinned.columns if pinned else tuple(named)
        self.fixed = pinned_columns(columns, job, begun=pinned is not None)
        self.sizes: Counter[str] = Counter()  # bytes of columns in Parquet files
        # All that rows have, in order of first appearance.
        self.columns: defaultdict[str, _Seen] = defaultdict(_Seen)

    @property
    def carried_bytes(self) -> int:
        known = [name for name in self.carried() if name in self.columns]
        return sum(self.columns[name].bytes + self.sizes[name] for name in known)

    def add_file(self, file: SourceFile) -> frozenset[str]:
        """Counts the columns of a Parquet file in, and returns them. Raises `InputError`."""
        carry, used = self._carry, self._used
        types, twice = read_columns(file)
        for name in twice:
            is_used = used is None or name in used
            if is_used or carry is None or name in carry:
                others = [other for other in types if other != name]
                cure = "" if is_used else f", or leave it out with {carry_options(others)}"
                raise InputError(
                    f"{file.path}: two columns are called `{name}`, and only one of them could be "
                    f"meant; write the file again with a name for each{cure}"
                )
        partitions = dict(file.partitions)
        for name, kind in types.items():
            is_new = self._pinned is not None and name not in self.fixed
            if name in partitions and is_new and not self._is_listed(name):
                continue  # a run of an earlier version, which did not see these columns
            seen = self.columns[name]
            seen.arrow.setdefault(kind, str(file))
            if (name in carry) if carry is not None else (used is not None and name not in used):
                self._note(name, seen, file)
        return frozenset(types)

    def expected(self) -> dict[str, PinnedColumn]:
        """Columns that may be carried, with the types that their values must fit.

        Those of Parquet files are known before the pass, unless lines add to them.
        """
        carry = self._carry
        found = {n: one for n, one in self.fixed.items() if carry is None or n in carry}
        names = [
            name
            for name, seen in self.columns.items()
            if name not in self._identity and (carry is None or name in carry) and seen.arrow
        ]
        if self._pinned is not None:
            names = [name for name in names if self._is_listed(name)]
        for name in names:
            united = unite([*self.columns[name].arrow])
            if name not in found and united is not None:
                others = [other for other in names if other != name]
                found[name] = PinnedColumn(make_column(name, name, united), others=others)
        return found

    def add(self, row: SourceRow, consumed: frozenset[str]) -> str:
        """Counts a row in. What of it cannot be stored, and why; empty: all can.

        Raises `InputError` for a column that the run does not know.
        """
        columns, carry, is_json = self.columns, self._carry, not row.columns
        sent = self._sent[consumed]
        if not row.misfits and carry is None and row.data is not None and row.data.keys() <= sent:
            return ""  # nothing that is not known of it
        problem = ""
        if row.misfits:
            problem = problem_of(row, NO_COLUMNS if carry is not None else consumed)
        for name, value in (row.data or {}).items():
            seen = columns[name]
            if value is None:
                continue
            if name in consumed:
                seen.sent = True
                sent.add(name)
                if carry is None:
                    continue
            if (carry is not None and name not in carry) or name in self._identity:
                continue
            if not seen.carried:
                self._note(name, seen, row)
            if not is_json:  # the file says what its columns are
                continue
            try:
                if name in self.fixed:
                    self.fixed[name].stored(value)
                seen.add(value, row)
            except RowProblem as error:
                column = self.fixed.get(name) or PinnedColumn(make_column(name, name, JSON))
                problem = problem or column.misfit(error.message)
        return problem

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
        pinned = self._pinned.columns if self._pinned is not None else ()
        known = [column.column for column in pinned]
        new = self.carried() if self._pinned is None else self._new_columns()
        names = name_columns([*known, *new], pinned=pinned)[len(known) :]
        return (
            *pinned,
            *(
                make_column(name, one, self._type(one))
                for name, one in zip(names, new, strict=True)
            ),
        )

    def _new_columns(self) -> list[str]:
        """Columns that a run which has begun carries from now on, as they are carried by name."""
        return [name for name in self.carried() if name in self.columns and self._is_listed(name)]

    def _is_listed(self, name: str) -> bool:
        """Whether it is carried by name, and the run has not carried it so far."""
        return self._carry is not None and name in self._carry and name not in self.fixed

    def _note(self, name: str, seen: _Seen, source: SourceRow | SourceFile) -> None:
        """The column is carried; a run that has begun must know it."""
        if name in self._identity:
            return
        if self._pinned is not None and name not in self.fixed and not self._is_listed(name):
            raise InputError(
                f"{source}: column `{name}` is new; this run carries "
                f"{', '.join(self.fixed) or 'none'} since it began. Carry it too, with null for "
                f"the rows before, with {carry_options((*self.fixed, name))}; or leave it out with "
                f"{carry_options(tuple(self.fixed))}; or start a new run directory with -o"
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
            found = [f"{cut(str(kind), 80)} ({file})" for kind, file in seen.arrow.items()]
            found += [f"{word} ({row})" for word, row in seen.words().items()]
            others = [name for name in self.carried() if name != column]
            raise InputError(
                f"[input] column `{column}` has types that do not fit into one column "
                f"({listed(found)}); say "
                f"{shlex.join(['--type', f'{column}=string'])}, or leave the column out with "
                f"{carry_options(others)}"
            )
        return united

    def warnings(self) -> list[str]:
        """What made a column text of which most values may be something else."""
        if self._pinned is not None:
            return []
        said = []
        for name in self.carried():
            seen = self.columns.get(name)
            kinds = seen.kinds if seen is not None and name not in self._types else {}
            if seen is None or not kinds.keys() - {dict, list}:
                continue
            if len(kinds) < 2 and not seen.huge:
                continue
            kind = seen.json_type()
            if kind in ("double", "int64") or seen.arrow:
                continue
            found = " and ".join(f"{word} ({row})" for word, row in seen.words().items())
            if seen.huge:
                found = f"an integer of more than 64 bits ({seen.huge})"
            elif kinds.keys() == _NUMBERS:
                found = f"fractions and an integer that a double does not hold ({seen.large})"
            what = "text, numbers without quotes" if kind == "string" else "JSON text"
            said.append(f"column `{name}` holds {found}: it is carried as {what}")
        return said
