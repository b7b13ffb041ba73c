"""A gateway's documented example, through a whole `batchrun run` and out of the tables.

Its answer is to another request than the one it stands beside: the model has another name, and the
tool that is called is none of those that were given (PROTOCOL 0.1, B.6).
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest


def _tool(name: str, description: str, required: list[str], **properties: str) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
    }
    if required:
        schema["required"] = required
    return {"type": "function", "name": name, "description": description, "parameters": schema}


REQUEST: dict[str, Any] = {
    "input": [{"role": "user", "content": "请同时完成: 时间, 系统信息, 123.5 + 456.7, 3 个随机数"}],
    "metadata": {"model_id": "32"},
    "model": "gpt-4.1",
    "tool_choice": "auto",
    "tools": [
        _tool("random_generator", "随机数", [], min="integer", max="integer", count="integer"),
        _tool("system_info", "系统信息", []),
        _tool(
            "math_calculator",
            "运算",
            ["operation", "a", "b"],
            a="number",
            b="number",
            operation="string",
        ),
        _tool("current_time", "当前时间", []),
    ],
}
CALL = {
    "id": "fc_68ac",
    "type": "function_call",
    "status": "completed",
    "arguments": '{"sign":"Aquarius"}',
    "call_id": "call_6kbB",
    "name": "get_horoscope",
}
ANSWER: dict[str, Any] = {
    "id": "resp_68ac",
    "object": "response",
    "created_at": 1756108120,
    "status": "completed",
    "background": False,
    "content_filters": None,  # the gateway's own
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "model": "gpt-4.1-data",
    "output": [CALL],
    "parallel_tool_calls": True,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [_tool("get_horoscope", "Today's horoscope for a sign.", ["sign"], sign="string")],
    "usage": {
        "input_tokens": 62,
        "input_tokens_details": {"cached_tokens": 0},  # and no cache_write_tokens
        "output_tokens": 18,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 80,
    },
    "user": None,
    "metadata": {},
}


def _rows(run: Path, table: str) -> list[dict[str, Any]]:
    (part,) = (run / table).glob("*.parquet")
    rows: list[dict[str, Any]] = pq.read_table(part).to_pylist()
    return rows


@pytest.mark.parametrize("mode", ["plain", "stream"])
async def test_the_call_the_arguments_and_the_tokens_stand_in_the_tables(
    serve: Callable[..., Any], tmp_path: Path, mode: str
) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": REQUEST}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    step: dict[str, Any] = {"body": ANSWER, "headers": {"X-Oneapi-Request-Id": "2026-1"}}
    if mode == "stream":
        created = {"type": "response.created", "response": {**ANSWER, "output": []}}
        step |= {"events": [created, {"type": "response.completed", "response": ANSWER}]}
    environment = {name: value for name, value in os.environ.items() if "OPENAI" not in name}
    async with serve([step]) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "batchrun", "run", "prompts.jsonl", "-o", "run", "--quiet"),
            *("--base-url", f"{server.base_url}/responses", "--mode", mode),
            cwd=tmp_path,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, said.decode()
    (seen,) = server.requests
    assert seen.body == {**REQUEST, "stream": mode == "stream"}

    (row,) = _rows(tmp_path / "run", "responses")
    assert (row["custom_id"], row["ok"], row["status"]) == ("a", True, "completed")
    assert (row["model_requested"], row["model"]) == ("gpt-4.1", "gpt-4.1-data")
    assert (row["input_tokens"], row["output_tokens"], row["total_tokens"]) == (62, 18, 80)
    assert (row["cached_tokens"], row["cache_write_tokens"], row["reasoning_tokens"]) == (
        0,
        None,
        0,
    )
    assert (row["response_id"], row["request_id"]) == ("resp_68ac", "2026-1")
    assert (row["tool_call_count"], row["output_text"]) == (1, None)
    assert (row["service_tier"], row["via"]) == ("default", mode)
    assert json.loads(row["output"]) == [CALL]
    assert json.loads(row["request"]) == REQUEST

    (call,) = _rows(tmp_path / "run", "tool_calls")
    assert (call["custom_id"], call["position"], call["type"]) == ("a", 0, "function_call")
    assert (call["name"], call["arguments"]) == ("get_horoscope", '{"sign":"Aquarius"}')
    assert (call["call_id"], call["status"]) == ("call_6kbB", "completed")
    assert call["arguments_valid"] is False  # the request does not offer this tool
    assert json.loads(call["item"]) == CALL
