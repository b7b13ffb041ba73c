"""The older outcomes of rows that are sent again, read from their parts when they are needed."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import pyarrow as pa
from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import ErrorKind, StoreError
from batchrun.records import Attempt, Earlier, RowKey
from batchrun.store.keys import KEY
from batchrun.store.names import name_now
from batchrun.store.part_files import read_part
from batchrun.store.schema import ATTEMPT
from batchrun.store.settled import COUNTED, row_totals

_KEPT_BYTES = 32 << 20  # of parts that were read lately; one is kept in any case
_COLUMNS = (*KEY, "attempts", *(name for name in COUNTED if not name.startswith("attempts")))
_ATTEMPTS = pa.list_(
    pa.struct(
        [
            pa.field(field.name, pa.int64() if pa.types.is_timestamp(field.type) else field.type)
            for field in ATTEMPT
        ]
    )
)
_FIELDS = Attempt.__struct_fields__
_KINDS = {kind.value: kind for kind in ErrorKind}


class Span(Struct, frozen=True):
    """A part with rows that are sent again, and the places in the input where they stand."""

    path: Path
    first: int
    last: int


class Wanted(Struct, frozen=True):
    """A row whose older outcome is asked for."""

    row: int  # place in the input
    key: RowKey


class _Part(Struct, frozen=True):
    table: pa.Table
    places: dict[RowKey, int]


class EarlierRows:
    """Finds older outcomes, also while seals replace the parts they stand in.

    Rows are asked for in the order of the input, which is about that of the parts: so it reads
    each part about once.
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        # A run of schema 1 was rewritten since its parts were listed.
        self._spans = [replace(s, path=s.path.with_name(name_now(s.path.name))) for s in spans]
        self._parts: OrderedDict[Path, _Part] = OrderedDict()

    def find(self, wanted: Iterable[Wanted]) -> dict[int, Earlier]:
        """By place in the input. Raises `StoreError`, also where one is not there."""
        left = {row.key: row.row for row in wanted}
        found: dict[int, Earlier] = {}
        first, last = min(left.values(), default=0), max(left.values(), default=0)
        for span in self._spans:
            if left and span.first <= last and first <= span.last:
                found.update(self._found_in(span.path, left))
        if left:
            (custom_id, *_), row = next(iter(left.items()))
            raise StoreError(
                f"row {row} ({custom_id}): its older outcome is in no part any more; leave the "
                "run directory alone while it runs, then run the same command again"
            )
        return found

    def _found_in(self, path: Path, left: dict[RowKey, int]) -> dict[int, Earlier]:
        part = self._part(path)
        keys = [key for key in left if key in part.places]
        if not keys:
            return {}
        batch = part.table.take([part.places[key] for key in keys]).combine_chunks().to_batches()[0]
        at = batch.schema.get_field_index("attempts")
        attempts = _attempts(batch.column(at))
        rows = batch.remove_column(at).to_pylist()
        return {
            left.pop(key): Earlier(tries, row["cost_usd"], row_totals(row, tries))
            for key, row, tries in zip(keys, rows, attempts, strict=True)
        }

    def _part(self, path: Path) -> _Part:
        part = self._parts.get(path)
        if part is None:
            while self._parts and self._bytes() > _KEPT_BYTES:
                self._parts.popitem(last=False)
            part = self._parts[path] = _read(path)
        self._parts.move_to_end(path)
        return part

    def _bytes(self) -> int:
        return sum(part.table.nbytes for part in self._parts.values())


def _read(path: Path) -> _Part:
    """What is needed of a part; nothing where a seal has taken its last row away."""
    try:
        batches = [_with_plain_times(batch) for batch in read_part(path, _COLUMNS)]
    except StoreError:
        if path.exists():
            raise
        batches = []
    if not batches:
        return _Part(pa.table({}), {})
    # In one piece: `take` on many would join them each time.
    table = pa.Table.from_batches(batches).combine_chunks()
    keys = zip(*(table[name].to_pylist() for name in KEY), strict=True)
    return _Part(table, {key: at for at, key in enumerate(keys)})


def _with_plain_times(batch: pa.RecordBatch) -> pa.RecordBatch:
    at = batch.schema.get_field_index("attempts")
    return batch.set_column(at, "attempts", batch.column(at).cast(_ATTEMPTS))


def _attempts(lists: pa.ListArray) -> list[tuple[Attempt, ...]]:
    """Column by column, which takes half the time of row by row."""
    fields = [child.to_pylist() for child in lists.flatten().flatten()]
    kinds = _FIELDS.index("error_kind")
    fields[kinds] = [_KINDS.get(kind) for kind in fields[kinds]]
    every = [Attempt(*values) for values in zip(*fields, strict=True)]
    ends = list(accumulate(lists.value_lengths().to_pylist()))
    return [tuple(every[first:end]) for first, end in pairwise([0, *ends])]
