"""What was paid for and cannot be read is stored, and shown with its attempt."""

import base64
import gzip
import json
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import batchrun
from batchrun.cli.look import show
from batchrun.records import STORED_BODY_BYTES
from batchrun.store.verify import verify

pytestmark = pytest.mark.usefixtures("transport")
Make = Callable[..., dict[str, Any]]
Serve = Callable[..., AbstractAsyncContextManager[Any]]
KEY = "sk-the-key-of-this-test-0123456789"
_CHUNK = {"object": "chat.completion.chunk", "choices": [{"delta": {"content": "forty-two"}}]}


async def _run(folder: Path, base_url: str, mode: str = "plain", rows: int = 1) -> Any:
    source = folder / "prompts.jsonl"
    source.write_text("".join(f'{{"custom_id": "a-{n}", "input": "x"}}\n' for n in range(rows)))
    settings = {
        "request.model": "gpt-4.1",
        "endpoint.base_url": base_url,
        "endpoint.mode": mode,
        "endpoint.idle_timeout_s": 0.3,
        "output.path": str(folder / "run"),
        "retry.max_wait_s": 0.01,
        "retry.max_attempts": 2,
    }
    return await batchrun.run_async(batchrun.load_job(source, settings))


def _lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "run" / "unreadable.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _show(folder: Path, *options: str) -> str:
    done = CliRunner().invoke(show, [str(folder / "run"), "a-0", *options])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


_HALF = b'{"id": "resp_1", "object": "response", "output": [{"text": "forty-tw'


@pytest.mark.parametrize(
    ("step", "body"),
    [
        ({"body": _HALF}, _HALF),
        ({"body": _HALF, "end": "cut"}, _HALF),
        ({"body": _HALF, "end": "open"}, _HALF),
        ({"body": gzip.compress(_HALF)}, _HALF),
        ({"body": b"forty-two", "type": "text/plain"}, b"forty-two"),
        ({"events": [b"data: " + json.dumps(_CHUNK).encode() + b"\n\n"]}, b"forty-two"),
        ({"body": b"\x8b\x02\x80{}\x03", "headers": {"Content-Encoding": "br"}}, None),
    ],
    ids=["half", "cut", "stalled", "packed", "text", "chunks", "br"],
)
@pytest.mark.parametrize("mode", ["plain", "stream", "background"])
async def test_a_paid_body_that_cannot_be_read_is_stored_and_shown_with_its_attempt(
    serve: Serve, tmp_path: Path, step: dict[str, Any], body: bytes | None, mode: str
) -> None:
    async with serve([step]) as server:
        summary = await _run(tmp_path, server.base_url, mode)
    assert summary.exit_code == 4
    row = json.loads(_show(tmp_path, "--json"))
    lines = _lines(tmp_path)
    ids = [attempt["client_request_id"] for attempt in row["attempts"]]
    assert [line["client_request_id"] for line in lines] == ids
    assert [seen.headers["x-client-request-id"] for seen in server.requests] == ids
    assert row["unreadable"] == lines
    said = _show(tmp_path)
    for number, line in enumerate(lines, 1):
        assert (line["custom_id"], line["sample"], line["variant"]) == ("a-0", 0, None)
        assert (line["http_status"], line["truncated"]) == (200, False)
        assert f"the answer to attempt {number} could not be read" in said
        if body is None:
            assert base64.b64decode(line["body_base64"]) == step["body"]
            assert line["body_base64"] in said
        else:
            assert body.decode() in line["body"]
            assert line["body"].splitlines()[0] in said
    assert verify(tmp_path / "run").problems == []


async def test_no_file_is_made_where_all_can_be_read(
    serve: Serve, tmp_path: Path, answer: Make
) -> None:
    failed = {"status": 500, "body": b"<html>no</html>"}
    error = {"body": {"error": {"message": "no", "code": "server_error"}}}
    async with serve([failed, error, {"body": answer()}]) as server:
        await _run(tmp_path, server.base_url, rows=2)
    assert not (tmp_path / "run" / "unreadable.jsonl").exists()
    assert "could not be read" not in _show(tmp_path)
    assert "unreadable" not in json.loads(_show(tmp_path, "--json"))


async def test_a_secret_in_such_a_body_is_masked_and_its_end_is_cut_off(
    serve: Serve, tmp_path: Path
) -> None:
    body = (f"your key {KEY}, " + "ä" * STORED_BODY_BYTES).encode()
    step = {"body": body, "type": f"text/{KEY}"}
    async with serve([step]) as server:
        await _run(tmp_path, server.base_url)
    text = (tmp_path / "run" / "unreadable.jsonl").read_text()
    assert KEY not in text
    assert "your key ***, ä" in text
    line = _lines(tmp_path)[0]
    assert line["truncated"] is True
    assert STORED_BODY_BYTES - 4 < len(line["body"].encode()) <= STORED_BODY_BYTES
    assert "its first 64 kB" in _show(tmp_path)


async def test_half_a_line_of_a_killed_run_is_passed_over(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    async with serve([{"body": _HALF}]) as server:
        await _run(tmp_path, server.base_url)
        path = tmp_path / "run" / "unreadable.jsonl"
        path.write_bytes(path.read_bytes() + b'{"custom_id":"a-0","bo')
        (tmp_path / "prompts.jsonl").write_text("")
        await _run(tmp_path, server.base_url, rows=2)
    assert "the answer to attempt 2 could not be read" in _show(tmp_path)
    good = [line for line in path.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["custom_id"] for line in good] == ["a-0"] * 2 + ["a-1"] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
async def test_a_disk_that_refuses_such_a_body_stops_the_run(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.runner.recorder.DISK_PATIENCE_S", 0.0)
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "unreadable.jsonl"
    async with serve([{"body": _HALF}]) as server:
        await _run(tmp_path, server.base_url)
        path.unlink()
        path.symlink_to("/dev/full")
        (tmp_path / "prompts.jsonl").write_text("")
        with pytest.raises(batchrun.BatchrunError, match=r"unreadable\.jsonl: cannot write") as end:
            await _run(tmp_path, server.base_url, rows=5)
    assert end.value.exit_code == 1
    assert "1 unreadable body that had arrived could not be stored" in str(end.value)
