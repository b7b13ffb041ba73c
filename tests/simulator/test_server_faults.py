"""Each fault as it looks on the wire, and how it is counted."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from batchrun.simulator.server import serve
from batchrun.simulator.settings import SPREAD, Fault, SimulatorSettings

Start = Callable[..., Awaitable[str]]
Stats = Callable[..., Awaitable[dict[str, Any]]]
Http = aiohttp.ClientSession

_BODY = json.dumps({"model": "gpt-4.1", "input": "hello"}).encode()


async def _send(http: Http, base_url: str, body: bytes = _BODY) -> tuple[int, Any, bytes]:
    async with http.post(f"{base_url}/responses", data=body) as response:
        return response.status, response.headers, await response.read()


async def _open(base_url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A raw connection on which the request has been sent."""
    host, port = base_url.removeprefix("http://").removesuffix("/v1").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(_BODY) + _BODY
    )
    return reader, writer


@pytest.mark.parametrize("kind", [fault for fault in SPREAD if fault[0] in "45"])
async def test_an_error_fault_answers_with_its_status_and_completes_nothing(
    kind: Fault, start: Start, http: Http, stats: Stats
) -> None:
    base_url = await start(fault_rates={kind: 1})
    status, headers, body = await _send(http, base_url)
    assert status == int(kind[:3])
    form = kind[4:]
    if form == "html":
        assert headers["Content-Type"] == "text/html"
        assert b"</html>" in body
    elif form == "empty":
        assert body == b""
    else:
        assert headers["Content-Type"] == "application/json"
        assert headers["x-request-id"]
        assert json.loads(body)["error"]["message"]
    assert ("Retry-After" in headers) is (form == "hint")
    counts = await stats(base_url)
    assert (counts["requests"], counts["completions"]) == (1, 0)
    assert counts["faults"] == {kind: 1}


async def test_an_error_may_come_with_status_200(start: Start, http: Http, stats: Stats) -> None:
    base_url = await start(fault_rates={"error_200": 1})
    status, _, body = await _send(http, base_url)
    assert status == 200
    assert json.loads(body)["error"]["type"] == "server_error"
    assert (await stats(base_url))["completions"] == 0


async def test_quota_may_be_used_up_by_name(start: Start, http: Http) -> None:
    status, headers, body = await _send(http, await start(fault_rates={"quota": 1}))
    assert status == 429
    assert json.loads(body)["error"]["code"] == "insufficient_quota"
    assert "Retry-After" not in headers


async def test_a_reset_before_the_answer_sends_nothing_and_completes_nothing(
    start: Start, http: Http, stats: Stats
) -> None:
    base_url = await start(fault_rates={"reset_before": 1})
    reader, writer = await _open(base_url)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    with pytest.raises(aiohttp.ClientConnectionError):
        await _send(http, base_url)
    counts = await stats(base_url)
    assert (counts["requests"], counts["completions"], counts["in_flight"]) == (2, 0, 0)


async def test_a_reset_within_the_body_destroys_a_completed_answer(
    start: Start, http: Http, stats: Stats
) -> None:
    base_url = await start(fault_rates={"reset_within": 1})
    reader, writer = await _open(base_url)
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"HTTP/1.1 200 OK" in head
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    with pytest.raises(aiohttp.ClientError):
        await _send(http, base_url)
    counts = await stats(base_url)
    assert (counts["completions"], counts["destroyed_by"]) == (2, {"reset_within": 2})


async def test_truncated_json_is_whole_by_http(start: Start, http: Http, stats: Stats) -> None:
    base_url = await start(fault_rates={"truncated_json": 1})
    status, headers, body = await _send(http, base_url)
    assert status == 200
    assert int(headers["Content-Length"]) == len(body)
    assert body.startswith(b'{"id":"resp_')
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)
    counts = await stats(base_url)
    assert (counts["completions"], counts["destroyed_by"]) == (1, {"truncated_json": 1})


async def test_headers_may_never_come(start: Start, stats: Stats) -> None:
    base_url = await start(fault_rates={"no_headers": 1})
    reader, writer = await _open(base_url)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.3)
    assert (await stats(base_url))["in_flight"] == 1
    writer.close()
    while (await stats(base_url))["in_flight"]:
        await asyncio.sleep(0.01)
    assert (await stats(base_url))["completions"] == 0


async def test_a_body_may_stall_after_its_first_piece(
    start: Start, http: Http, stats: Stats
) -> None:
    base_url = await start(fault_rates={"stalled_body": 1})
    async with http.post(f"{base_url}/responses", data=_BODY) as response:
        length = int(response.headers["Content-Length"])
        piece = await response.content.readany()
        assert 0 < len(piece) < length
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(response.content.readany(), 0.3)
    counts = await stats(base_url)
    assert (counts["completions"], counts["destroyed_by"]) == (1, {"stalled_body": 1})


async def test_a_body_may_go_on_without_end(start: Start, http: Http, stats: Stats) -> None:
    base_url = await start(fault_rates={"endless_body": 1})
    async with http.post(f"{base_url}/responses", data=_BODY) as response:
        assert "Content-Length" not in response.headers
        for _ in range(6):
            assert await response.content.readany()
    counts = await stats(base_url)
    assert (counts["completions"], counts["destroyed_by"]) == (1, {"endless_body": 1})
    while (await stats(base_url))["in_flight"]:
        await asyncio.sleep(0.01)


async def test_a_connection_may_never_come_about() -> None:
    async with serve(SimulatorSettings(accepts=False)) as base_url:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_open(base_url), 0.5)


@pytest.mark.parametrize("kind", ["no_headers", "stalled_body", "endless_body"])
async def test_a_server_ends_though_an_answer_never_does(kind: str, http: Http) -> None:
    async with serve(SimulatorSettings(latency_s=0, fault_rates={kind: 1})) as base_url:
        sent = asyncio.create_task(_send(http, base_url))
        await asyncio.sleep(0.1)
    with pytest.raises(aiohttp.ClientError):
        await sent


async def _fates(http: Http, order: list[int]) -> tuple[dict[int, list[str]], dict[str, Any]]:
    """What each attempt at each body met, sent in the order given, each until it is whole."""
    fates: dict[int, list[str]] = {}
    async with serve(SimulatorSettings(latency_s=0, faults=0.5, retry_after_s=0)) as base_url:
        for row in order:
            body = json.dumps({"model": "m", "input": f"row {row}"}).encode()
            met = fates.setdefault(row, [])
            while not met or met[-1] != "whole":
                try:
                    status, _, raw = await _send(http, base_url, body)
                    answer = json.loads(raw)
                    met.append("whole" if "output" in answer else f"{status} in JSON")
                except json.JSONDecodeError:
                    met.append(f"{status} {len(raw)}")
                except aiohttp.ClientError as error:
                    met.append(type(error).__name__)
        async with http.get(base_url.removesuffix("/v1") + "/stats") as response:
            return fates, await response.json()


async def test_faults_repeat_whatever_the_order_and_the_counts_add_up(http: Http) -> None:
    rows = list(range(60))
    fates, counts = await _fates(http, rows)
    again, _ = await _fates(http, rows[::-1])
    assert {row: len(met) for row, met in fates.items()} == {
        row: len(met) for row, met in again.items()
    }
    assert counts["requests"] == sum(len(met) for met in fates.values())
    assert sum(counts["faults"].values()) == counts["requests"] - len(rows)
    assert counts["completions"] == len(rows) + counts["destroyed"]
    assert counts["destroyed"] == sum(
        counts["faults"].get(kind, 0) for kind in ("reset_within", "truncated_json")
    )
    assert len(counts["faults"]) > 10
