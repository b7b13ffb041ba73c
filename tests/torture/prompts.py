"""A prompt set, the job that runs it, and the tables of a run of it that nobody killed."""

import gzip
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from tests.processes import run_batchrun
from tests.runs import read_record
from tests.torture.server import Server
from tests.torture.shapes import STRUCK, Shape

_PLAN_TURNS = 1_000_000  # turns of a template's loop, over all rows: the plan takes its time
_JOB = """
[input]
path = "{source}"

[request]
model = "gpt-4.1"
temperature = 0
{limit}
input = "{{% for turn in range({turns}) %}}{{% endfor %}}{{{{ question }}}}"

[[request.tools]]
type = "function"
name = "count_things"
[request.tools.parameters]
type = "object"
required = ["kind", "number"]
[request.tools.parameters.properties]
kind = {{ type = "string" }}
number = {{ type = "integer" }}

[endpoint]
base_url = "{base_url}"
mode = "{mode}"

[limits]
concurrency = {concurrency}

[retry]
max_wait_s = 0.3
{ask_again}

[output]
path = "run"
part_rows = {part_rows}
"""
# What does not depend on which of its tries a row was answered at.
_ANSWERS = """
SELECT row, custom_id, level, status, ok, output_text, tool_call_count, request, request_hash,
       input_tokens, output_tokens
FROM read_parquet(?) ORDER BY ALL
"""
_CALLS = "SELECT row, position, name, arguments, status FROM read_parquet(?) ORDER BY ALL"
_SUMS = """
SELECT count(*), count(*) FILTER (ok), sum(len(attempts)), sum(tool_call_count), sum(input_tokens),
       sum(output_tokens), sum(cost_usd)
FROM read_parquet(?)
"""


class Prompts:
    """The prompt set of one shape."""

    def __init__(self, folder: Path, environment: Mapping[str, str], shape: Shape) -> None:
        """Runs it once, in `folder`, against a server without faults."""
        self._shape = shape
        self._questions = [
            f"A shelf has {number} books and {number % 7} vases: how many things?"
            for number in range(shape.rows)
        ]
        folder.mkdir(parents=True)
        answers = shape.faults[len(STRUCK) :] if shape.asks_again else ()
        server = Server(folder, environment, "--latency", "0", *answers)
        try:
            self.write(folder, server.base_url)
            done = run_batchrun(folder, environment, "run", "job.toml", "--quiet")
            assert done.returncode == 0, done.stderr
            bodies = server.requests_by_body()
        finally:
            server.close()
        run = folder / "run"
        self._answers, self._calls = _ask(_ANSWERS, run), _ask(_CALLS, run, "tool_calls")
        self.keys = {row: _key(body) for row, body in _ask("SELECT row, request " + _FROM, run)}
        # What is asked for again goes out with another limit, and so with another body.
        assert set(self.keys.values()) <= set(bodies)
        assert len(bodies) == shape.rows or shape.asks_again

    def write(self, folder: Path, base_url: str) -> None:
        """The prompt set and the job file."""
        shape = self._shape
        rows = [{"question": text, "level": at % 5} for at, text in enumerate(self._questions)]
        source = folder / f"prompts{shape.ending}"
        if shape.ending == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), source)
        else:
            lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
            source.write_bytes(gzip.compress(lines) if shape.ending.endswith(".gz") else lines)
        job = _JOB.format(
            source=source.name,
            turns=_PLAN_TURNS // shape.rows,
            base_url=base_url,
            mode=shape.mode,
            concurrency=shape.concurrency,
            limit='max_output_tokens = 16\ntool_choice = "none"' if shape.asks_again else "",
            ask_again='on_incomplete = "raise_limit"' if shape.asks_again else "",
            part_rows=shape.part_rows,
        )
        (folder / "job.toml").write_text(job)

    def check(self, run: Path) -> None:
        """The tables of a run that ended are those of the run that nobody killed."""
        assert _ask(_ANSWERS, run) == self._answers
        assert _ask(_CALLS, run, "tool_calls") == self._calls
        ((rows, ok, attempts, calls, tokens_in, tokens_out, cost_usd),) = _ask(_SUMS, run)
        record = read_record(run)
        totals = record["totals"]
        assert (record["state"], record["exit_code"], totals["statuses"]) == (
            "finished",
            0,
            {"completed": self._shape.rows},
        )
        assert (totals["rows"], totals["ok"], totals["attempts"]) == (rows, ok, attempts)
        assert (totals["tool_calls"], totals["input_tokens"]) == (calls, tokens_in)
        assert totals["output_tokens"] == tokens_out
        assert abs(totals["cost_usd"] - cost_usd) < 1e-6
        assert list((run / "journal").iterdir()) == []
        assert not list(run.rglob("*.tmp"))


_FROM = "FROM read_parquet(?)"


def _ask(sql: str, run: Path, table: str = "responses") -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(sql, [f"{run}/{table}/*.parquet"]).fetchall()


def _key(body: str) -> str:
    """How the simulator's table of bodies names a request."""
    return hashlib.sha256(msgspec.json.encode(json.loads(body), order="sorted")).hexdigest()
