"""How rows are named, and the proof that each name is one row's, without an object for each.

`custom_id` names a row, or the column of `input.id`, or `id` where it can; else its number does.
Eight bytes a row stay in memory: Python's hash of the name. Equal hashes are looked up in the
files.
"""

from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any
from zlib import crc32

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct, field
from msgspec.structs import replace

from batchrun.errors import InputError
from batchrun.formats.json_text import shown
from batchrun.formats.printable import cut
from batchrun.inputs.rows import RowProblem, SourceRow, Unsendable, encode_leniently

# What named a row; nameless is a bad row that gives no name and goes by its number.
# ODD_ID goes by its number too, although it has an `id`: one that is no text and no integer.
BY_NUMBER, BY_CUSTOM_ID, BY_COLUMN, NAMELESS, ODD_ID = 0, 1, 2, 3, 4
FALLBACK = "id"

_PARTITION = 50_000  # rows whose hashes are compared at a time,
_PARTITIONS = 64  # or a 64th of all: each partition is one more pass over the hashes
_SLICE = 250_000  # rows looked at in one step while a partition is gathered

# Between the place and the checksum of a nameless bad row where rows are appended.
BAD_ROW = " (bad row"

NamedRow = tuple[SourceRow, str]
Pair = tuple[NamedRow, NamedRow]
ReadRows = Callable[[set[int]], Iterator[SourceRow]]  # the rows of these numbers, in order


class Identity(Struct, frozen=True):
    """The rule that names rows."""

    explicit: str | None  # `input.id`
    fallback: str | None  # the column used without
    pinned: bool = False  # a run has begun with this rule
    # After the number of a nameless row, so that ids from 1 to n and one broken line do not stop a
    # run that passes over bad rows. Empty where no name is such a number.
    bad_row_suffix: str = " (bad row)"
    is_appended: bool = False  # rows of other sources stand beside these, so no number names one

    @property
    def consumed(self) -> frozenset[str]:
        """The column that becomes `custom_id` under that very name is not carried again."""
        return frozenset({"custom_id"} if self.explicit in (None, "custom_id") else ())

    def name(self, row: SourceRow) -> tuple[str, int]:
        """The row's name, and what gave it. Raises `RowProblem`, and `InputError` as pinned."""
        data = row.data or {}
        if self.explicit is not None:
            if self.explicit not in data and self.explicit not in row.columns:
                raise RowProblem(f"column `{self.explicit}`, which names the rows, is missing")
            return _name(data.get(self.explicit), self.explicit), BY_COLUMN
        value = data.get("custom_id")
        if value is not None:
            return (value if type(value) is str else _name(value, "custom_id")), BY_CUSTOM_ID
        if self.fallback is not None:
            value = data.get(self.fallback)
            try:
                return _name(value, self.fallback), BY_COLUMN
            except RowProblem as problem:
                if self.pinned:
                    raise InputError(
                        f"{row}: {problem.message}; this run has named its rows by that "
                        "column since it began. Give the row one, or start a new run directory "
                        "with -o"
                    ) from None
            return str(row.row), BY_NUMBER if value is None else ODD_ID
        return str(row.row), BY_NUMBER

    def name_or_number(self, row: SourceRow) -> tuple[str, int]:
        """The same for a row that may be bad. Raises `InputError`."""
        with suppress(RowProblem):
            if row.data is not None:
                name, named_by = self.name(row)
                if not (self.is_appended and named_by in (BY_NUMBER, ODD_ID)):
                    return name, named_by
        if self.is_appended:  # a later source may have a file of the same name
            mark = f" {crc32(row.raw.strip()):08x}" if row.raw else ""
            return f"{row}{BAD_ROW}{mark})", NAMELESS
        return f"{row.row}{self.bad_row_suffix}", NAMELESS


def _name(value: Any, column: str) -> str:
    if type(value) is str:
        return value
    if type(value) is int or (isinstance(value, Decimal) and value == value.to_integral_value()):
        return str(int(value))
    what = "null; it names the row, so it" if value is None else f"{_shown(value)}; it"
    raise RowProblem(f"`{column}` is {what} must be text or an integer")


def _shown(value: Any) -> str:
    return (
        value.what if isinstance(value, Unsendable) else cut(encode_leniently(value).decode(), 60)
    )


class RowNames(Struct):
    """The names that a pass gave to the rows."""

    ids: "array[int]" = field(default_factory=lambda: array("q"))  # hash(custom_id) of each row
    named_by: bytearray = field(default_factory=bytearray)  # what named each row

    @property
    def any_named(self) -> bool:
        """Whether any row has a name of its own."""
        return BY_COLUMN in self.named_by or BY_CUSTOM_ID in self.named_by

    def prove(self, identity: Identity, read: ReadRows) -> tuple[Identity, tuple[str, ...]]:
        """The rule that gives each row a name of its own, and warnings.

        Raises `InputError` for a duplicate.
        """
        warning = ""
        pair = self._duplicate(identity, read)
        if identity.fallback is not None and not identity.pinned:
            reason = self._why_not_by_fallback(pair, read)
            if reason is not None:
                identity = replace(identity, fallback=None)
                for row, named_by in enumerate(self.named_by):
                    if named_by == BY_COLUMN:
                        self.ids[row] = hash(str(row))
                        self.named_by[row] = BY_NUMBER
                pair = self._duplicate(identity, read)
            if reason:
                warning = (
                    f"{reason}, so rows without `custom_id` are known by their number: rows may be "
                    "added at the end later, but not between others. Name a better column with "
                    "--id COLUMN"
                )
        if identity.is_appended:
            self._refuse_numbers(warning, read)
        elif not identity.pinned:
            identity = self._without_suffix(identity)
        if pair is not None:
            raise InputError(self._twice(pair, identity))
        numbered = self.named_by.count(BY_NUMBER) + self.named_by.count(ODD_ID)
        if self.any_named and numbered and identity.explicit is None and not warning:
            warning = (
                f"{numbered:,} of {len(self.ids):,} rows have no `custom_id` and are known by "
                "their number"
            )
        return identity, (warning,) if warning else ()

    def _refuse_numbers(self, reason: str, read: ReadRows) -> None:
        """Raises `InputError` where a row that may be sent has no name."""
        found = (self.named_by.find(BY_NUMBER), self.named_by.find(ODD_ID))
        numbered = [row for row in found if row >= 0]
        if numbered:
            row = next(read({min(numbered)}))
            why = f" ({reason.partition(',')[0]})" if reason else ""
            raise InputError(
                f"--append needs rows with ids, and {row} has none{why}: numbers begin anew with "
                "each input. Name a column that has an id in each row with --id COLUMN (id in "
                "[input])"
            )

    def _duplicate(self, identity: Identity, read: ReadRows) -> Pair | None:
        def named(numbers: set[int]) -> Iterator[NamedRow]:
            return ((row, identity.name_or_number(row)[0]) for row in read(numbers))

        return find_duplicate(self.ids, named) if self.any_named else None

    def _why_not_by_fallback(self, pair: Pair | None, read: ReadRows) -> str | None:
        """Why `id` names no rows; empty where there is no such column, None where it does."""
        if (odd := self.named_by.find(ODD_ID)) >= 0:
            row = next(read({odd}))
            value = _shown((row.data or {}).get(FALLBACK))
            return f"column `{FALLBACK}` is {value} in {row}, which is neither text nor an integer"
        if BY_COLUMN not in self.named_by:
            return ""
        if (numbered := self.named_by.find(BY_NUMBER)) >= 0:
            row = next(read({numbered}))
            return f"column `{FALLBACK}` is missing or null in {row}"
        if pair is None:
            return None
        (one, name), (other, _) = pair
        if BY_COLUMN not in (self.named_by[one.row], self.named_by[other.row]):
            return None  # two of the same `custom_id`: an error in any case
        return f"column `{FALLBACK}` is not unique ({shown(name, 60)} in {one} and {other})"

    def _without_suffix(self, identity: Identity) -> Identity:
        """The rule under which nameless rows go by their number, unless it may be a name."""
        without = replace(identity, bad_row_suffix="")
        if NAMELESS not in self.named_by:
            return without
        numbers = {hash(str(row)): row for row, by in enumerate(self.named_by) if by == NAMELESS}
        named = zip(self.ids, self.named_by, strict=True)
        if any(by in (BY_COLUMN, BY_CUSTOM_ID) and key in numbers for key, by in named):
            return identity
        for key, row in numbers.items():
            self.ids[row] = key
        return without

    def _twice(self, pair: Pair, identity: Identity) -> str:
        (one, name), (other, _) = pair
        for row in (one, other):
            if self.named_by[row.row] in (BY_NUMBER, NAMELESS, ODD_ID):
                return (
                    f"{one} and {other} would both be known as {shown(name, 80)}: "
                    f"{row} has no name and is known by its number. Give that row a name, or "
                    "fix or take out the row"
                )
        column = identity.explicit or "custom_id"
        return (
            f"duplicate {column} {shown(name, 80)}: {one} and {other}. It names the row in "
            "the results, so each must have its own"
        )


def find_duplicate(
    ids: "array[int]", read: Callable[[set[int]], Iterator[NamedRow]]
) -> Pair | None:
    """The first two rows of the same name, with it; None where all names differ.

    `read` gives the rows of those numbers, in order, with their names.
    """
    suspects = repeated_hashes(ids)
    if not suspects:
        return None
    first: dict[int, list[int]] = {}  # hash to rows that were not confirmed as duplicates
    for row, key in enumerate(ids):
        if key not in suspects:
            continue
        before = first.setdefault(key, [])
        if before:
            *others, last = read({*before, row})
            for other in others:
                if other[1] == last[1]:
                    return other, last
        before.append(row)
    return None


def repeated_hashes(ids: "array[int]") -> set[int]:
    """Hashes that occur more than once. What is held besides `ids` does not grow with them."""
    whole = pa.Array.from_buffers(pa.int64(), len(ids), [None, pa.py_buffer(ids)])
    parts = min(max(-(-len(ids) // _PARTITION), 1), _PARTITIONS)
    mask = (1 << (parts - 1).bit_length()) - 1
    repeated: set[int] = set()
    for part in range(mask + 1):
        slices = (whole.slice(at, _SLICE) for at in range(0, len(ids), _SLICE))
        partition = [one.filter(pc.equal(pc.bit_wise_and(one, mask), part)) for one in slices]
        counts = pc.value_counts(pa.chunked_array(partition, pa.int64()))
        often = counts.filter(pc.greater(counts.field("counts"), 1))
        repeated.update(often.field("values").to_pylist())
    return repeated
