"""The largest answers of a run so far, by model: what the next ones are reserved by."""

from collections.abc import Mapping
from pathlib import Path

import duckdb

from batchrun.records import Largest
from batchrun.store.sql import ask

_BY_MODEL = """
    SELECT coalesce(model_requested, ''), coalesce(max(input_tokens), 0),
        coalesce(max(output_tokens), 0)
    FROM responses GROUP BY ALL
"""


def read_largest(path: Path) -> Mapping[str, Largest]:
    """By the model that was asked for, empty where none was. Raises `JobError`, `StoreError`."""

    def read(database: duckdb.DuckDBPyConnection, _files: object) -> dict[str, Largest]:
        rows = database.execute(_BY_MODEL).fetchall()
        return {model: Largest(*most) for model, *most in rows}

    return ask(path, read)
