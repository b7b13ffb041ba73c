"""What tests of several families make runs of."""

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from batchrun.errors import ErrorKind
from batchrun.records import (
    Attempt,
    Column,
    Failure,
    Layout,
    Outcome,
    Request,
    Response,
    RunRecord,
    Usage,
)
from batchrun.remote.part_stubs import part_file
from batchrun.store.run_dir import SCHEMA_VERSION
from batchrun.store.snapshot import snapshot

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


def refused(row: int) -> Outcome:
    """The outcome of a row that the endpoint did not accept."""
    return Outcome(
        request=Request(row, f"q{row}", "prompts.jsonl", b"{}", f"{row:016x}", "m", None, ()),
        result=Failure(ErrorKind.BAD_REQUEST, "no", "bad", 400, "failed"),
        attempts=(Attempt(1_700_000_000_000_000, 0.5, "first", 400),),
        endpoint="https://example.test/v1",
        via="plain",
    )


_RESPONSE = Response(
    id="resp_1",
    status="completed",
    model="m",
    service_tier=None,
    output="[]",
    output_text="an answer",
    refusal=None,
    reasoning_summary=None,
    citations=(),
    tool_calls=(),
    usage=Usage(),
    usage_json=None,
    truncated=False,
    incomplete_reason=None,
)


def response(**changes: Any) -> Response:
    """A plain answer, but for these fields."""
    return msgspec.structs.replace(_RESPONSE, **changes)


def read_record(run: Path) -> dict[str, Any]:
    """`run.json` as any program reads it."""
    record: dict[str, Any] = json.loads((run / "run.json").read_bytes())
    return record


def standing_rows(run: Path) -> dict[str, tuple[bool, int]]:
    """Each row that counts, which stands once: whether it is ok, and how many attempts it had."""
    found: dict[str, tuple[bool, int]] = {}
    columns = ["custom_id", "sample", "variant", "ok", "attempts"]
    with snapshot(run) as now:
        for part in now.responses:
            for row in pq.read_table(part_file(part), columns=columns).to_pylist():
                if (row["custom_id"], row["sample"], row["variant"]) not in now.replaced:
                    assert row["custom_id"] not in found
                    found[row["custom_id"]] = row["ok"], len(row["attempts"])
        for outcome in now.outcomes():
            assert outcome.request.custom_id not in found
            found[outcome.request.custom_id] = outcome.ok, len(outcome.attempts)
    return found
