"""Sources that are not on this machine: files, folders and globs of a store and of the Hub."""

import gzip
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.remote.hub_server import Hub
from tests.remote.object_server import Bucket, Proxy

Command = Callable[..., subprocess.CompletedProcess[str]]
PROMPT = ("--prompt", "{{ question }}", "--model", "m", "--simulate", "--quiet")


def rows_of(run: Path) -> list[dict[str, Any]]:
    table = pq.read_table(run / "responses")
    return sorted(table.to_pylist(), key=lambda row: row["row"])


def parquet_of(first: int, count: int) -> bytes:
    rows = range(first, first + count)
    table = pa.table(
        {"id": [f"q{row}" for row in rows], "question": [f"{row}?" for row in rows], "n": rows}
    )
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=max(count // 3, 1))
    return file.getvalue()


def test_a_file_of_a_store_is_read(
    bucket: Bucket, s3: dict[str, str], batchrun: Command, tmp_path: Path, questions: Any
) -> None:
    bucket.put("in/prompts.jsonl", questions(40))
    source = f"{bucket.url}/in/prompts.jsonl"
    done = batchrun("run", source, *PROMPT, env=s3)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "runs/prompts-simulated")
    assert [row["custom_id"] for row in rows] == [f"q{row}" for row in range(40)]
    assert {row["source"] for row in rows} == {"prompts.jsonl"}
    record = json.loads((tmp_path / "runs/prompts-simulated/run.json").read_bytes())
    assert record["source"] == record["source_path"] == source
    again = batchrun("run", source, *PROMPT, env=s3)
    assert again.returncode == 0, again.stderr
    assert len(rows_of(tmp_path / "runs/prompts-simulated")) == 40


def test_globs_and_folders_of_packed_and_parquet_files(
    bucket: Bucket, s3: dict[str, str], batchrun: Command, tmp_path: Path, questions: Any
) -> None:
    bucket.put("d/lang=de/a.jsonl.gz", gzip.compress(questions(5).encode()))
    bucket.put("d/lang=en/b.parquet", parquet_of(100, 9))
    bucket.put("d/lang=en/_SUCCESS", "")
    bucket.put("d/.hidden/c.jsonl", questions(5))
    bucket.put("d/notes.txt", "nothing")
    bucket.put("d2/e.jsonl", questions(5))
    done = batchrun("run", f"{bucket.url}/d/", *PROMPT, "-o", "folder", env=s3)
    assert done.returncode == 0, done.stderr
    assert "1 file or run directory not read (notes.txt)" in done.stderr
    rows = rows_of(tmp_path / "folder")
    assert [row["lang"] for row in rows] == ["de"] * 5 + ["en"] * 9
    assert rows[5]["source"] == "lang=en/b.parquet"
    glob = f"{bucket.url}/d/lang=*/*.parquet"
    done = batchrun("run", glob, *PROMPT, "-o", "glob", "--where", "n < 103", env=s3)
    assert done.returncode == 0, done.stderr
    assert [row["n"] for row in rows_of(tmp_path / "glob")] == [100, 101, 102]


def test_what_is_not_there_is_named(bucket: Bucket, s3: dict[str, str], batchrun: Command) -> None:
    for source in (f"{bucket.url}/in/none.jsonl", "s3://no-such-bucket-anywhere/a.jsonl"):
        done = batchrun("run", source, *PROMPT, env=s3)
        assert done.returncode == 2
        assert source in done.stderr


def test_a_store_that_cannot_be_reached_is_said(s3: dict[str, str], batchrun: Command) -> None:
    closed = {**s3, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    done = batchrun("run", "s3://bucket/a.jsonl", *PROMPT, env=closed)
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr
    assert "AWS_ENDPOINT_URL" in done.stderr


@pytest.mark.parametrize("fault", [pytest.param("fail", marks=pytest.mark.long), "cut"])
def test_a_read_that_fails_is_tried_again(
    fault: str,
    bucket: Bucket,
    proxy: Proxy,
    s3: dict[str, str],
    batchrun: Command,
    tmp_path: Path,
    questions: Any,
) -> None:
    bucket.put("in/a.jsonl", questions(2000))
    bucket.put("in/b.parquet", parquet_of(2000, 300))
    failed: set[str] = set()

    def once(call: Any) -> str | None:
        if call.method != "GET" or "?" in call.path or call.path in failed:
            return None
        failed.add(call.path)
        return fault

    proxy.rule = once
    env = {**s3, "AWS_ENDPOINT_URL": proxy.address}
    done = batchrun("run", f"{bucket.url}/in", *PROMPT, env=env)
    assert done.returncode == 0, done.stderr
    assert len(failed) == 2
    assert len(rows_of(tmp_path / "runs/in-simulated")) == 2300


def test_a_file_that_changes_meanwhile_stops_the_plan(
    bucket: Bucket,
    proxy: Proxy,
    s3: dict[str, str],
    batchrun: Command,
    questions: Any,
) -> None:
    bucket.put("a.jsonl", questions(10))
    reads = []

    def change(call: Any) -> None:
        if call.method == "GET" and call.path.endswith("/a.jsonl"):
            reads.append(call)
            if len(reads) == 1:
                bucket.put("a.jsonl", questions(11))

    proxy.after = change
    env = {**s3, "AWS_ENDPOINT_URL": proxy.address}
    done = batchrun("run", f"{bucket.url}/a.jsonl", *PROMPT, env=env)
    assert done.returncode == 2
    assert "changed while it was being read" in done.stderr


def test_a_data_set_of_the_hub_is_read_at_one_commit(
    hub: Hub, hub_environment: dict[str, str], batchrun: Command, tmp_path: Path, questions: Any
) -> None:
    pytest.importorskip("huggingface_hub")
    first = hub.commit({"data/a.jsonl": questions(6).encode(), "README.md": b"about"})
    source = "hf://datasets/somebody/questions/data"
    done = batchrun("run", source, *PROMPT, "--limit", "3", env=hub_environment)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/data-simulated"
    assert json.loads((run / "run.json").read_bytes())["source_commit"] == first
    # The branch moves on; the run does not.
    hub.commit({"data/a.jsonl": questions(6, 100).encode()})
    done = batchrun("run", source, *PROMPT, env=hub_environment)
    assert done.returncode == 0, done.stderr
    assert f"stays with commit {first}" in done.stderr
    assert [row["custom_id"] for row in rows_of(run)] == [f"q{row}" for row in range(6)]
    other = batchrun(
        "run",
        f"hf://datasets/somebody/questions@{first}/data/*.jsonl",
        *PROMPT,
        "-o",
        "other",
        env=hub_environment,
    )
    assert other.returncode == 0, other.stderr


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf://datasets/somebody/nothing/a.jsonl", "no such data set"),
        ("hf://datasets/somebody/questions@old/a.jsonl", "no such revision"),
        ("hf://datasets/somebody/questions/none.jsonl", "no prompt set there"),
        ("hf://somebody/questions", "write hf://datasets/OWNER/NAME"),
    ],
)
def test_what_the_hub_does_not_have_is_named(
    source: str, said: str, hub: Hub, hub_environment: dict[str, str], batchrun: Command
) -> None:
    pytest.importorskip("huggingface_hub")
    hub.commit({"a.jsonl": b"{}"})
    done = batchrun("run", source, *PROMPT, env=hub_environment)
    assert done.returncode == 2
    assert said in done.stderr
