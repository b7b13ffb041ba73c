"""What came of a few rows by their numbers: their tokens, cost and time; journal included."""

from collections.abc import Collection
from pathlib import Path

import duckdb
from msgspec import Struct

from batchrun.store.sql import ask

_ROWS = """
    SELECT "row", ok, input_tokens, output_tokens, cost_usd, latency_s
    FROM responses WHERE "row" IN (SELECT unnest($rows)) AND sample = 0 ORDER BY "row"
"""


class SampledRow(Struct, frozen=True):
    """One settled row; null where the server said nothing, and cost where there is no price."""

    row: int
    ok: bool
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None  # of all its attempts
    latency_s: float | None  # of the try that counted


def read_sampled(path: Path, rows: Collection[int]) -> tuple[SampledRow, ...]:
    """Those of the rows that are settled, in their order. Raises `JobError`, `StoreError`."""

    def read(database: duckdb.DuckDBPyConnection, _files: object) -> tuple[SampledRow, ...]:
        found = database.execute(_ROWS, {"rows": sorted(rows)}).fetchall()
        return tuple(SampledRow(*values) for values in found)

    return ask(path, read)
