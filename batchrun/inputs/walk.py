"""One walk over the rows of all files of a source, in order, as often as need be.

Every walk reads the same bytes: a file that changes between walks, or during one, is an error.
"""

import os
from collections.abc import Iterator

from batchrun.errors import InputError
from batchrun.inputs import jsonl, parquet
from batchrun.inputs.parquet import Wanted
from batchrun.inputs.rows import Row
from batchrun.inputs.sources import Source, SourceFile


class Walk:
    """Remembers each file's size, time and rows, so that later walks can trust and skip."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._stamps: dict[int, tuple[int, int]] = {}
        self._counts: dict[int, int] = {}  # rows of a file that was read to its end

    def rows(
        self, wanted: Wanted, settled: bytearray | None = None, limit: int | None = None
    ) -> Iterator[Row]:
        """Rows that `settled` does not mark, in order, up to `limit`. Raises `InputError`."""
        row = 0
        for index, file in enumerate(self.source.files):
            if limit is not None and row >= limit:
                return
            end = row + self._counts.get(index, 0)
            if row < end and settled is not None and settled.find(0, row, end) < 0:
                row = end
                continue
            handle = self._open(file)
            try:
                self._compare(index, file, handle)
                first = row
                if file.kind == "parquet":
                    row = yield from parquet.read_rows(file, row, settled, limit, wanted)
                else:
                    row = yield from jsonl.read_rows(file, row, settled, limit)
                self._compare(index, file, handle)
                if limit is None or row < limit:
                    self._counts[index] = row - first
            finally:
                os.close(handle)

    def _open(self, file: SourceFile) -> int:
        try:
            return os.open(file.path, os.O_RDONLY)
        except OSError as error:
            raise InputError(
                f"{file.path}: cannot be read ({error.strerror}); check the path and its rights"
            ) from error

    def _compare(self, index: int, file: SourceFile, handle: int) -> None:
        facts = os.fstat(handle)
        stamp = (facts.st_size, facts.st_mtime_ns)
        if self._stamps.setdefault(index, stamp) != stamp:
            raise InputError(
                f"{file.path}: changed while it was being read; leave the input as it is during a "
                "run, then give the same command again"
            )
