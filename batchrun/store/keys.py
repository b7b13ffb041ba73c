"""Rows known by their exact keys, to be told from others in the batches of a table."""

import pyarrow as pa
import pyarrow.compute as pc

from batchrun.records import RowKey

KEY = ("custom_id", "sample", "variant")  # the columns of a `RowKey`


class Keys:
    """A set of keys, as large as what a journal segment or two can hold."""

    def __init__(self) -> None:
        self._keys: set[RowKey] = set()
        self._ids: pa.Array | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: RowKey) -> bool:
        return key in self._keys

    def add(self, key: RowKey) -> None:
        self._keys.add(key)
        self._ids = None

    def table(self) -> pa.Table:
        """All of them, in the columns of `KEY`."""
        columns = zip(*self._keys, strict=True) if self._keys else ((), (), ())
        types = (pa.string(), pa.int32(), pa.string())
        return pa.table(dict(zip(KEY, map(pa.array, columns, types), strict=True)))

    def found_in(self, batch: pa.RecordBatch) -> pa.BooleanArray | None:
        """True for each row of the batch that is one of these; null where none is."""
        if not self._keys or not batch.num_rows:
            return None
        if self._ids is None:
            self._ids = pa.array(sorted({custom_id for custom_id, *_ in self._keys}), pa.string())
        same_id = pc.is_in(batch["custom_id"], value_set=self._ids)
        places = pc.indices_nonzero(same_id).to_pylist()
        if not places:
            return None
        near = batch.select(KEY).take(places)
        columns = (near[name].to_pylist() for name in KEY)
        keys = zip(*columns, strict=True)
        found = [at for at, key in zip(places, keys, strict=True) if key in self._keys]
        if len(found) == len(places):
            return same_id
        marks = bytearray(batch.num_rows)
        for at in found:
            marks[at] = 1
        return as_mask(marks) if found else None

    def left_of(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch without these rows."""
        found = self.found_in(batch)
        return batch if found is None else batch.filter(pc.invert(found))


def hash_key(key: RowKey) -> int:
    """This process's hash of a key; of a row without samples and variants that of its id."""
    custom_id, sample, variant = key
    return hash(key) if sample or variant is not None else hash(custom_id)


def hash_keys(batch: pa.RecordBatch) -> list[int]:
    """The same of each row of a batch; files of schema 1 may have no column `variant`."""
    ids = batch["custom_id"].to_pylist()
    columns = [name for name in KEY[1:] if name in batch.schema.names]
    if all(_is_plain(batch[name]) for name in columns):
        return [hash(custom_id) for custom_id in ids]
    others = [batch[n].to_pylist() if n in columns else [None] * len(ids) for n in KEY[1:]]
    return [hash_key(key) for key in zip(ids, *others, strict=True)]


def _is_plain(column: pa.Array) -> bool:
    """Whether no row has a sample but the first, or a variant."""
    if pa.types.is_string(column.type):
        return bool(column.null_count == len(column))
    return not pc.any(pc.not_equal(column, 0)).as_py()


def as_mask(marks: "bytearray | memoryview") -> pa.BooleanArray:
    """One byte for each row, as Arrow wants it."""
    values = pa.Array.from_buffers(pa.uint8(), len(marks), [None, pa.py_buffer(marks)])
    return pc.not_equal(values, 0)
