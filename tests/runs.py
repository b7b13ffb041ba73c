"""What tests of several families make runs of."""

import base64
from typing import Any

import msgspec
import pyarrow as pa

from batchrun.records import Column, Layout, RunRecord
from batchrun.store.run_dir import SCHEMA_VERSION

EMPTY = Layout(None, ())


def column(name: str, kind: pa.DataType, stored: pa.DataType | None = None) -> Column:
    """A carried column, pinned."""
    pinned = pa.schema({"type": kind, "stored": stored or kind})
    return Column(name, name, str(kind), base64.b64encode(pinned.serialize()).decode())


def run_record(layout: Layout = EMPTY, **changes: Any) -> RunRecord:
    """What `run.json` says of a run that goes on."""
    record = RunRecord(
        schema_version=SCHEMA_VERSION,
        hash_rule=1,
        batchrun="0.1.0",
        python="3.11",
        state="running",
        command="batchrun run prompts.jsonl",
        simulated=False,
        source="../prompts.jsonl",
        job={},
        layout=layout,
        store_request=True,
        rows=10,
        started_at=0,
        updated_at=0,
    )
    return msgspec.structs.replace(record, **changes)
