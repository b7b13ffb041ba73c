"""Leases of a source in a store or on the Hub, read by several workers: each row once.

Only the driver lists, and finds the commit of a branch.
"""

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun.remote.remote_files import PART_BUFFER
from tests.remote.hub_server import Hub
from tests.remote.object_server import Bucket, Call, Proxy
from tests.waiting import HANG_S

WORKERS = 3
_SCRIPT = Path(__file__).parent / "remote_leases.py"
_ROWS = 300


@pytest.fixture
def leases(environment: dict[str, str], tmp_path: Path) -> Callable[..., Any]:
    """What `remote_leases.py` says."""

    def run(variables: dict[str, str], *words: object) -> Any:
        done = subprocess.run(
            [sys.executable, _SCRIPT, *map(str, words)],
            cwd=tmp_path,
            env={**environment, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=HANG_S,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def _forms(lines: str) -> dict[str, bytes]:
    """The same rows in each format, in one folder, as the files of the source are in order."""
    table = pa.table({"question": [json.loads(line)["question"] for line in lines.splitlines()]})
    parquet = io.BytesIO()
    pq.write_table(table, parquet, row_group_size=len(table) // 3)
    packed = pa.Codec("zstd").compress(lines.encode(), asbytes=True)
    return {
        "a.jsonl": lines.encode(),
        "b.jsonl.gz": gzip.compress(lines.encode()),
        "c.jsonl.zst": packed,
        "d.parquet": parquet.getvalue(),
    }


def test_workers_read_their_rows_from_a_store(
    bucket: Bucket,
    proxy: Proxy,
    s3: dict[str, str],
    leases: Callable[..., Any],
    tmp_path: Path,
) -> None:
    rows = [{"id": f"q{row}", "question": f"{row} {'word ' * 1000}"} for row in range(_ROWS)]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    for name, data in _forms(lines).items():
        bucket.put(f"in/{name}", data)
    variables = {**s3, "AWS_ENDPOINT_URL": proxy.address}
    planned = leases(variables, "plan", f"{bucket.url}/in", tmp_path / "plan")
    offsets = {offset for offset, _ in planned if offset}
    assert len(offsets) == _ROWS // 50 - 1  # every 50th row of the lines here, and of them alone
    assert [rows for _, rows in planned].count(_ROWS) == 2  # of each packed file, one lease
    calls = len(proxy.calls)
    said = leases(variables, "read", tmp_path / "plan", WORKERS)
    assert said == {
        "leases": len(planned),
        "rows": 4 * _ROWS,
        "are_the_same": True,
        "problems": [],
    }
    reads = [call for call in proxy.calls[calls:] if call.method == "GET"]
    assert not [call for call in reads if "list-type" in call.path]
    ranges = dict(_range(call) for call in reads if call.path.endswith("a.jsonl"))
    assert ranges.keys() >= offsets  # nobody passes over what stands before, ...
    most = max(ranges[offset] - offset for offset in offsets) + 1
    assert most == PART_BUFFER < len(lines) // 2  # ... or reads far on
    bucket.put("in/a.jsonl", lines[1:])
    said = leases(variables, "read", tmp_path / "plan", WORKERS)
    assert [problem.partition(";")[0] for problem in said["problems"]] == [
        f"{bucket.url}/in/a.jsonl: changed while it was being read"
    ] * WORKERS


def _range(call: Call) -> tuple[int, int]:
    first, _, last = call.headers["range"].removeprefix("bytes=").partition("-")
    return int(first), int(last)


def test_workers_read_the_commit_of_the_plan_from_the_hub(
    hub: Hub,
    hub_environment: dict[str, str],
    leases: Callable[..., Any],
    tmp_path: Path,
    questions: Callable[..., str],
) -> None:
    pytest.importorskip("huggingface_hub")
    commit = hub.commit({f"data/{name}": data for name, data in _forms(questions(_ROWS)).items()})
    source = "hf://datasets/somebody/questions/data"
    leases(hub_environment, "plan", source, tmp_path / "plan")
    api = [asked for asked in hub.asked if "/api/" in asked]
    assert len([asked for asked in api if "/tree/" in asked]) == 1
    hub.commit({"data/a.jsonl": questions(_ROWS, 1000).encode()})
    hub.asked.clear()
    said = leases(hub_environment, "read", tmp_path / "plan", WORKERS)
    assert (said["are_the_same"], said["problems"]) == (True, [])
    loads = [asked for asked in hub.asked if asked.startswith("GET")]
    assert len(set(loads)) == 4  # files
    assert 4 < len(loads) <= 4 * WORKERS < said["leases"]  # each worker has a cache, and uses it
    assert all(f"/resolve/{commit}/data/" in asked for asked in hub.asked)
