"""How rows are named, and duplicates found exactly without a Python object for each name.

`custom_id` names a row, or the column of `input.id`, or `id` where it can; else its number does.
Eight bytes a row are kept: Python's hash of the name. Equal hashes are looked up in the files.
"""

from array import array
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchrun.errors import InputError
from batchrun.inputs.rows import Row, RowProblem

# What named a row; nameless is a bad row that gives no name and goes by its number.
BY_NUMBER, BY_CUSTOM_ID, BY_COLUMN, NAMELESS = 0, 1, 2, 3
FALLBACK = "id"

_PARTITION = 50_000  # rows whose hashes are compared at a time,
_PARTITIONS = 64  # or a 64th of all: each partition is one more walk over the hashes
_SLICE = 250_000  # rows looked at in one step while a partition is gathered


class Identity:
    """The rule that names rows: `explicit` is `input.id`, `fallback` the column used without."""

    def __init__(
        self, explicit: str | None, fallback: str | None, *, pinned: bool, bad_row_suffix: str = ""
    ) -> None:
        self.bad_row_suffix = bad_row_suffix
        self.explicit = explicit
        self.fallback = fallback
        self._pinned = pinned
        # The column that becomes `custom_id` under that very name is not carried again.
        self.consumed = frozenset(
            {"custom_id"} if explicit is None or explicit == "custom_id" else ()
        )

    def of(self, row: Row) -> tuple[str, int]:
        """The row's name, and what gave it. Raises `RowProblem`, and `InputError` as pinned."""
        data = row.data
        if data is None:
            return self.nameless(row.row)
        if self.explicit is not None:
            if self.explicit not in data and self.explicit not in row.columns:
                raise RowProblem(f"column `{self.explicit}`, which names the rows, is missing")
            return _name(data.get(self.explicit), self.explicit), BY_COLUMN
        value = data.get("custom_id")
        if value is not None:
            return (value if type(value) is str else _name(value, "custom_id")), BY_CUSTOM_ID
        if self.fallback is not None:
            try:
                return _name(data.get(self.fallback), self.fallback), BY_COLUMN
            except RowProblem as problem:
                if self._pinned:
                    raise InputError(
                        f"{row.place}: {problem.message}; this run has named its rows by that "
                        "column since it began. Give the row one, or start a new run directory "
                        "with -o"
                    ) from None
        return str(row.row), BY_NUMBER

    def nameless(self, row: int) -> tuple[str, int]:
        """What a bad row without a name goes by."""
        return f"{row}{self.bad_row_suffix}", NAMELESS


def _name(value: Any, column: str) -> str:
    if type(value) is str:
        return value
    if type(value) is int or (isinstance(value, Decimal) and value == value.to_integral_value()):
        return str(int(value))
    if value is None:
        raise RowProblem(f"`{column}` is null; it names the row, so it must be text or an integer")
    raise RowProblem(f"`{column}` is {value!r:.60}; it must be text or an integer")


def find_duplicate(
    ids: "array[int]", read: Callable[[set[int]], Iterator[tuple[Row, str]]]
) -> tuple[tuple[Row, str], tuple[Row, str]] | None:
    """The first two rows of the same name, with it; null where all names differ.

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
            found = list(read({*before, row}))
            last = found[-1]
            for other in found[:-1]:
                if other[1] == last[1]:
                    return other, last
        before.append(row)
    return None


def repeated_hashes(ids: "array[int]") -> set[int]:
    """Hashes that stand more than once. What is held besides `ids` does not grow with them."""
    count = len(ids)
    parts = min(-(-count // _PARTITION), _PARTITIONS)
    whole = pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(ids)])
    if parts <= 1:
        return _repeated_in(whole)
    repeated: set[int] = set()
    mask = (1 << (parts - 1).bit_length()) - 1
    for part in range(mask + 1):
        gathered = []
        for at in range(0, count, _SLICE):
            some = whole.slice(at, _SLICE)
            gathered.append(some.filter(pc.equal(pc.bit_wise_and(some, mask), part)))
        repeated |= _repeated_in(pa.chunked_array(gathered))
    return repeated


def _repeated_in(hashes: pa.Array | pa.ChunkedArray) -> set[int]:
    if pc.count_distinct(hashes).as_py() == len(hashes):
        return set()
    counts = pc.value_counts(hashes)
    often = counts.filter(pc.greater(counts.field("counts"), 1))
    return set(often.field("values").to_pylist())
