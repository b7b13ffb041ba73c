"""A run in a store killed before and after its writes: the next command goes on, each row once."""

import json
import os
from base64 import b64encode
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.remote.object_server import Bucket, Proxy


def check(bucket: Bucket, tmp_path: Path, rows: int, prefix: str = "run") -> None:
    """Each row once, nothing left over."""
    found: list[str] = []
    for key in bucket.names(f"{prefix}/responses/"):
        path = tmp_path / "copy.parquet"
        path.write_bytes(bucket.get(key) or b"")
        found += pq.read_table(path, columns=["custom_id"])["custom_id"].to_pylist()
    assert sorted(found) == sorted(f"q{row}" for row in range(rows))
    assert bucket.open_uploads() == []
    left = [key for key in bucket.names() if key.endswith((".tmp", ".intent")) or "/claims/" in key]
    assert left == []
    assert json.loads(bucket.get(f"{prefix}/run.json") or b"")["state"] == "finished"


_WRITES = 18  # of a run with four parts


@pytest.mark.long
def test_no_write_of_a_run_is_left_out(bucket: Bucket, killed_at: Any, write_run: Any) -> None:
    job = write_run(12_000, f"{bucket.url}/run", "part_rows = 3000")
    assert not killed_at(1000, "before", "run", job, "--simulate", "--quiet")
    assert killed_at.has_writes(_WRITES), [call.path for call in killed_at.writes]


@pytest.mark.parametrize(
    ("number", "moment", "rows"),
    [
        *((3, "before", 60), (4, "after", 60), (7, "before", 60)),
        *(
            pytest.param(number, moment, 12_000, marks=pytest.mark.long)
            for number in range(1, _WRITES + 1)
            for moment in ("before", "after")
        ),
    ],
)
def test_killed_at_a_write(
    number: int,
    moment: str,
    rows: int,
    bucket: Bucket,
    s3: dict[str, str],
    killed_at: Any,
    batchrun: Any,
    verify: Any,
    tmp_path: Path,
    write_run: Any,
) -> None:
    job = write_run(rows, f"{bucket.url}/run", f"part_rows = {max(rows // 4, 10)}")
    words = ("run", job, "--simulate", "--quiet")
    assert killed_at(number, moment, *words)
    done = batchrun(*words, env=s3)
    assert done.returncode == 0, done.stderr
    check(bucket, tmp_path, rows)
    verify(f"{bucket.url}/run", env=s3)


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (1, "before"),
        pytest.param(1, "after", marks=pytest.mark.long),
        pytest.param(2, "before", marks=pytest.mark.long),
        pytest.param(3, "before", marks=pytest.mark.long),
    ],
)
def test_large_parts_leave_no_open_upload(
    number: int,
    moment: str,
    bucket: Bucket,
    proxy: Proxy,
    s3: dict[str, str],
    killed_at: Any,
    batchrun: Any,
    tmp_path: Path,
) -> None:
    """Of 24 MB that no packing makes smaller; each upload is one request, which a kill undoes."""
    with (tmp_path / "prompts.jsonl").open("w") as file:
        for row in range(24):
            noise = b64encode(os.urandom(750_000)).decode()
            question = f"How much is {row}?"
            line = {"id": f"q{row}", "question": question, "noise": noise}
            file.write(json.dumps(line) + "\n")
    words = ["run", "prompts.jsonl", "--prompt", "{{ question }}", "--model", "m", "--simulate"]
    words += ["--quiet", "-o", f"{bucket.url}/run"]
    assert killed_at(number, moment, *words, counts="/responses/")
    assert bucket.open_uploads() == []
    done = batchrun(*words, env={**s3, "AWS_ENDPOINT_URL": proxy.address})
    assert done.returncode == 0, done.stderr
    check(bucket, tmp_path, 24)
    assert len(bucket.names("run/responses/")) >= 3
    assert [call for call in proxy.calls if "upload" in call.path.partition("?")[2]] == []
    assert batchrun("verify", f"{bucket.url}/run", env=s3).returncode == 0


@pytest.mark.parametrize(
    ("number", "moment"),
    [(2, "after"), pytest.param(5, "after", marks=pytest.mark.long), (6, "before")],
)
def test_killed_while_parts_are_replaced(
    number: int,
    moment: str,
    bucket: Bucket,
    s3: dict[str, str],
    killed_at: Any,
    batchrun: Any,
    tmp_path: Path,
    questions: Any,
) -> None:
    """Seen from another machine, each row is there once at any moment."""
    (tmp_path / "prompts.jsonl").write_text(questions(30))
    words = ["run", "prompts.jsonl", "--model", "m", "--simulate", "--quiet"]
    words += ["-o", f"{bucket.url}/run", "--prompt"]
    assert batchrun(*words, "{{ question }}", env=s3).returncode == 0
    again = (*words, "{{ question }}!", "--rerun-changed")
    assert killed_at(number, moment, *again, counts=".parquet")
    other = {**s3, "XDG_STATE_HOME": str(tmp_path / "other")}
    sql = "SELECT count(*), count(DISTINCT custom_id) FROM responses"
    seen = batchrun("sql", f"{bucket.url}/run", sql, "--format", "csv", env=other)
    assert seen.stdout.splitlines()[-1] == "30,30", seen.stderr
    done = batchrun(*again, env=s3)
    assert done.returncode == 0, done.stderr
    check(bucket, tmp_path, 30)


def test_rows_of_a_journal_that_another_machine_has_completed_since_stand_once(
    bucket: Bucket,
    s3: dict[str, str],
    killed_at: Any,
    batchrun: Any,
    tmp_path: Path,
    questions: Any,
) -> None:
    """The first machine is killed with its rows in the journal, and comes back after the second."""
    (tmp_path / "prompts.jsonl").write_text(questions(20))
    words = ["run", "prompts.jsonl", "--prompt", "{{ question }}", "--model", "m", "--simulate"]
    words += ["--quiet", "-o", f"{bucket.url}/run"]
    assert killed_at(1, "before", *words, counts="/responses/")
    (scratch,) = (tmp_path / "state/batchrun").iterdir()
    assert list((scratch / "journal").glob("*.log"))
    other = {**s3, "XDG_STATE_HOME": str(tmp_path / "other")}
    refused = batchrun(*words, env=other)
    assert refused.returncode == 2
    assert "its claim expires after 60 s" in refused.stderr
    for claim in bucket.names("run/claims/"):
        bucket.delete(claim)  # as if a minute had passed
    done = batchrun(*words, env=other)
    assert done.returncode == 0, done.stderr
    check(bucket, tmp_path, 20)
    again = batchrun(*words, env=s3)
    assert again.returncode == 0, again.stderr
    check(bucket, tmp_path, 20)
    assert not list((scratch / "journal").glob("*.log"))
    assert batchrun("verify", f"{bucket.url}/run", env=other).returncode == 0
