"""Work that was begun in background outlives the process that began it (PROTOCOL A.6)."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.waiting import HANG_S

Make = Callable[..., dict[str, Any]]


async def _begun(folder: Path, base_url: str, *options: str) -> asyncio.subprocess.Process:
    environment = {name: value for name, value in os.environ.items() if "OPENAI" not in name}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "batchrun", "run", "prompts.jsonl", "-o", "run", "--quiet"),
        *("--model", "gpt-4.1", "--base-url", base_url, "--mode", "background", *options),
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )


async def _ended(process: asyncio.subprocess.Process) -> int | None:
    _, said = await asyncio.wait_for(process.communicate(), 60)
    assert b"Traceback" not in said, said.decode()
    return process.returncode


async def _killed_and_resumed(
    folder: Path, serve: Callable[..., Any], script: list[dict[str, Any]]
) -> tuple[list[str], dict[str, Any]]:
    """What the server was asked, and the row that came of it."""
    (folder / "prompts.jsonl").write_text('{"input": "x"}\n', encoding="utf-8")
    async with serve(script) as server:
        process = await _begun(folder, server.base_url)
        async with asyncio.timeout(HANG_S):
            while len(server.requests) < 2:  # the first poll: the id is on disk
                await asyncio.sleep(0.01)
        process.kill()
        await _ended(process)
        assert await _ended(await _begun(folder, server.base_url)) == 0
    assert not list((folder / "run" / "journal").glob("*"))
    (part,) = (folder / "run" / "responses").glob("*.parquet")
    (row,) = pq.read_table(part).to_pylist()
    return server.asked, row


async def test_what_was_begun_before_a_kill_is_continued_or_counted_where_the_server_lost_it(
    serve: Callable[..., Any], answer: Make, tmp_path_factory: pytest.TempPathFactory
) -> None:
    begun = [
        {"body": answer(status="queued")},
        {"body": answer(status="in_progress", output=[])},
    ]
    gone = {"status": 410, "body": {"error": {"message": "not found", "code": None}}}
    (known_asked, known), (gone_asked, sent_again) = await asyncio.gather(
        _killed_and_resumed(tmp_path_factory.mktemp("known"), serve, [*begun, {"body": answer()}]),
        _killed_and_resumed(
            tmp_path_factory.mktemp("gone"), serve, [*begun, gone, {"body": answer(id="resp_2")}]
        ),
    )
    assert known_asked == ["POST /v1/responses", *["GET /v1/responses/resp_1"] * 2]
    assert (known["ok"], known["response_id"], known["via"]) == (True, "resp_1", "background")
    assert json.loads(known["output"]) == answer()["output"]

    assert gone_asked == [*known_asked, "POST /v1/responses"]
    assert sent_again["response_id"] == "resp_2"
    attempts = sent_again["attempts"]
    kinds = [(attempt["error_kind"], attempt["response_id"]) for attempt in attempts]
    assert kinds == [("gone", "resp_1"), (None, "resp_2")]


async def test_a_key_refused_at_a_poll_leaves_the_row_with_its_id_for_the_next_command(
    serve: Callable[..., Any], answer: Make, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"input": "x"}\n', encoding="utf-8")
    refused = {"status": 401, "body": {"error": {"message": "expired", "code": "invalid_api_key"}}}
    async with serve([{"body": answer(status="queued")}, refused, {"body": answer()}]) as server:
        assert await _ended(await _begun(tmp_path, server.base_url, "--max-cost", "1")) == 3
        record = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
        assert (record["state"], record["totals"]["rows"]) == ("stopped", 0)
        assert "expired" in record["message"]
        assert record["unknown_usd"] > 0  # what has begun counts under a cap
        assert await _ended(await _begun(tmp_path, server.base_url, "--max-cost", "1")) == 0
        assert server.asked == ["POST /v1/responses", *["GET /v1/responses/resp_1"] * 2]
