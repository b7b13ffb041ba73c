"""Rows known by their exact keys, to be told from others in the batches of a table."""

import pyarrow as pa
import pyarrow.compute as pc

KEY = ("custom_id", "sample")


class Keys:
    """A set of keys (`custom_id`, `sample`); as large as what a journal segment or two can hold."""

    def __init__(self) -> None:
        self._keys: set[tuple[str, int]] = set()
        self._ids: pa.Array | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._keys

    def add(self, custom_id: str, sample: int) -> None:
        self._keys.add((custom_id, sample))
        self._ids = None

    def table(self) -> pa.Table:
        """All of them, in the columns of `KEY`."""
        ids, samples = zip(*self._keys, strict=True) if self._keys else ((), ())
        return pa.table(
            {"custom_id": pa.array(ids, pa.string()), "sample": pa.array(samples, pa.int32())}
        )

    def found_in(self, batch: pa.RecordBatch) -> pa.BooleanArray | None:
        """True for each row of the batch that is one of these; null where none is."""
        if not self._keys or not batch.num_rows:
            return None
        if self._ids is None:
            self._ids = pa.array(sorted({custom_id for custom_id, _ in self._keys}), pa.string())
        same_id = pc.is_in(batch["custom_id"], value_set=self._ids)
        places = pc.indices_nonzero(same_id).to_pylist()
        if not places:
            return None
        ids, samples = batch["custom_id"], batch["sample"]
        found = [at for at in places if (ids[at].as_py(), samples[at].as_py()) in self._keys]
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


def as_mask(marks: "bytearray | memoryview") -> pa.BooleanArray:
    """One byte for each row, as Arrow wants it."""
    values = pa.Array.from_buffers(pa.uint8(), len(marks), [None, pa.py_buffer(marks)])
    return pc.not_equal(values, 0)
