"""What goes over the wire: bodies untouched, headers, addresses, proxies (PROTOCOL A.2, B.4)."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from batchrun.errors import EndpointError, ErrorKind
from batchrun.inputs.prompt_set import PromptSet, find_source
from batchrun.job.credentials import header_values
from batchrun.job.job_file import load_job
from batchrun.job.sections import EndpointJob, InputJob
from batchrun.records import Request
from batchrun.transport.client import Client
from tests.waiting import HANG_S

pytestmark = pytest.mark.usefixtures("transport")

Connect = Callable[..., Any]
Make = Callable[..., dict[str, Any]]
RequestOf = Callable[..., Request]

# Every field that the API knows, and some that it does not.
BODY: dict[str, Any] = {
    "model": "m",
    "input": [{"role": "user", "content": [{"type": "input_text", "text": "é\u2028 \\u0000"}]}],
    "instructions": "be brief",
    "max_output_tokens": 64,
    "temperature": 0.10,
    "top_p": 1e-7,
    "store": True,
    "stream_options": {"include_obfuscation": False},
    "background_options": {"completion_window": "2h"},
    "service_tier": "flex",
    "previous_response_id": "resp_0",
    "metadata": {"model_id": "32"},
    "include": ["reasoning.encrypted_content"],
    "text": {"format": {"type": "text"}, "verbosity": "low"},
    "tools": [{"type": "web_search"}, {"type": "kind_of_next_year", "x": [1.50]}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []},
    "parallel_tool_calls": False,
    "max_tool_calls": 3,
    "reasoning": {"effort": "xhigh", "summary": "auto", "mode": "x", "context": "y"},
    "truncation": "disabled",
    "top_logprobs": 2,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "x", "ttl": "30m"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "u",
    "user": "u",
    "context_management": [{"type": "compaction", "compact_threshold": 9}],
    "moderation": {"model": "m", "policy": "p"},
    "access_programs": ["a"],
    "image": {"context_compression": "auto"},
    "conversation": None,
}
UNKNOWN = {"field_of_next_year": {"a": [None, True, 1.50, "x"]}, "enable_thinking": False}


def _requests(folder: Path, *rows: dict[str, Any]) -> list[Request]:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    job = InputJob(path=str(path))
    prompts = PromptSet(find_source(job), job, {})
    survey = prompts.survey(None)
    made = list(prompts.requests(survey.layout, bytearray(survey.rows)))
    return [request for request in made if isinstance(request, Request)]


@pytest.mark.parametrize("mode", ["plain", "stream", "background"])
async def test_a_batch_lines_body_goes_out_as_it_is_known_fields_or_not(
    endpoint: Connect, answer: Make, tmp_path: Path, mode: str
) -> None:
    body = {**BODY, **UNKNOWN, "stream": True, "background": True}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body}
    (request,) = _requests(tmp_path, line)
    async with endpoint([{"body": answer()}], mode=mode) as connected:
        assert (await connected.outcome(request)).ok
    (seen,) = connected.server.requests
    ours = {"stream": mode == "stream"}
    if mode == "background":
        ours |= {"background": True, "store": True}
    assert seen.body == {**BODY, **UNKNOWN, **ours}


async def test_a_responses_bodys_fields_go_out_as_they_are(
    endpoint: Connect, answer: Make, tmp_path: Path
) -> None:
    (request,) = _requests(tmp_path, {**BODY, "my_label": "carried, not sent"})
    async with endpoint([{"body": answer()}]) as connected:
        assert (await connected.outcome(request)).ok
    (seen,) = connected.server.requests
    assert seen.body == {**BODY, "stream": False}
    assert (seen.method, seen.target) == ("POST", "/v1/responses")


async def test_nothing_is_added_but_what_the_mode_needs(
    endpoint: Connect, request_of: RequestOf, answer: Make
) -> None:
    """No `store`, no `stream_options`: the first is the user's, the second OpenAI's alone."""
    for mode in ("plain", "stream"):
        async with endpoint([{"body": answer()}], mode=mode) as connected:
            await connected.outcome(request_of())
        assert set(connected.server.requests[0].body) == {"model", "input", "stream"}


async def test_each_attempt_has_a_client_request_id_that_is_stored_and_none_says_idempotent(
    endpoint: Connect, request_of: RequestOf, answer: Make
) -> None:
    script = [{"status": 500}, {"status": 429}, {"body": answer()}]
    async with endpoint(script) as connected:
        outcome = await connected.outcome(request_of())
    sent = [seen.headers["x-client-request-id"] for seen in connected.server.requests]
    assert sent == [attempt.client_request_id for attempt in outcome.attempts]
    assert len(set(sent)) == 3
    for seen in connected.server.requests:
        assert "idempotency-key" not in seen.headers
        assert seen.body == connected.server.requests[0].body


async def test_our_own_headers_are_few_and_small(
    endpoint: Connect, request_of: RequestOf, answer: Make
) -> None:
    async with endpoint([{"body": answer()}], key="k" * 200) as connected:
        await connected.outcome(request_of())
    headers = connected.server.requests[0].headers
    assert headers["authorization"] == "Bearer " + "k" * 200
    assert headers["content-type"] == "application/json"
    assert sum(len(name) + len(value) for name, value in headers.items()) < 2048


async def test_azures_key_header_and_version_come_from_the_job(
    endpoint: Connect,
    request_of: RequestOf,
    answer: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AZURE_KEY", "secret-7")
    job_file = tmp_path / "job.toml"
    job_file.write_text(
        """
        [input]
        path = "p.jsonl"
        [endpoint]
        base_url = "http://127.0.0.1:1/openai/v1/responses"
        api_key_env = "none"
        query = { "api-version" = "preview" }
        [endpoint.headers]
        "api-key" = "env:AZURE_KEY"
        "OpenAI-Organization" = "org-1"
        "OpenAI-Project" = "proj-1"
        """,
        encoding="utf-8",
    )
    settings = load_job(job_file).endpoint
    script = [{"body": answer(status="queued")}, {"body": answer()}]
    async with endpoint(
        script,
        mode="background",
        headers=header_values(settings),
        query=settings.query,
    ) as connected:
        await connected.outcome(request_of())
    assert settings.base_url == "http://127.0.0.1:1/openai/v1"
    for seen in connected.server.requests:  # polls too
        assert seen.target.endswith("?api-version=preview")
        assert seen.headers["api-key"] == "secret-7"
        assert seen.headers["openai-organization"] == "org-1"
        assert seen.headers["openai-project"] == "proj-1"
        assert "authorization" not in seen.headers


async def test_a_header_of_the_job_replaces_ours_in_any_spelling(
    endpoint: Connect, request_of: RequestOf, answer: Make
) -> None:
    headers = {"authorization": "Token t", "USER-AGENT": "mine"}
    async with endpoint([{"body": answer()}], key="k", headers=headers) as connected:
        await connected.outcome(request_of())
    seen = connected.server.requests[0].headers
    assert (seen["authorization"], seen["user-agent"]) == ("Token t", "mine")


async def test_cookies_are_not_kept(endpoint: Connect, request_of: RequestOf, answer: Make) -> None:
    step = {"body": answer(), "headers": {"Set-Cookie": "a=b"}}
    async with endpoint([step]) as connected:
        await connected.outcome(request_of())
        await connected.outcome(request_of())
    assert "cookie" not in connected.server.requests[1].headers


_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*_PROXIES, *(name.upper() for name in _PROXIES)):
        monkeypatch.delenv(name, raising=False)


async def _sent(base_url: str, request: Request) -> bytes:
    async with Client(EndpointJob(base_url=base_url), "k-1", {}, "test") as client:
        async with asyncio.timeout(HANG_S):
            return (await client.send(request, "client-1", 60.0)).body


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("credentials", ["", "me:pass%40word@"])
async def test_a_proxy_of_the_environment_carries_requests(
    serve: Connect,
    request_of: RequestOf,
    answer: Make,
    monkeypatch: pytest.MonkeyPatch,
    credentials: str,
) -> None:
    async with serve([{"body": answer()}]) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{credentials}127.0.0.1:{proxy.port}")
        body = await _sent("http://api.example.invalid/v1", request_of())
    assert b"forty-two" in body
    (seen,) = proxy.requests
    assert (seen.method, seen.target) == ("POST", "http://api.example.invalid/v1/responses")
    assert seen.headers["host"] == "api.example.invalid"
    assert seen.headers["authorization"] == "Bearer k-1"
    if credentials:
        sent = seen.headers["proxy-authorization"].removeprefix("Basic ")
        assert base64.b64decode(sent) == b"me:pass@word"


@contextlib.asynccontextmanager
async def _tunnel(lines: list[str]) -> AsyncIterator[int]:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.mark.usefixtures("no_proxies")
async def test_an_https_address_goes_through_a_tunnel_and_its_refusal_is_a_connection_error(
    request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    async with _tunnel(lines) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:word@127.0.0.1:{port}")
        with pytest.raises(EndpointError) as caught:
            await _sent("https://api.example.invalid/v1", request_of())
    assert caught.value.kind is ErrorKind.CONNECTION
    assert lines[0].startswith("CONNECT api.example.invalid:443 ")
    assert "Proxy-Authorization: Basic bWU6d29yZA==" in lines[0]
    assert "k-1" not in lines[0]  # the key is for the server alone


@pytest.mark.usefixtures("no_proxies")
async def test_loopback_and_what_the_environment_excepts_need_no_proxy(
    serve: Connect, request_of: RequestOf, answer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve([{"body": answer()}]) as proxy, serve([{"body": answer()}]) as server:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        await _sent(server.base_url, request_of())
        monkeypatch.setenv("no_proxy", "example.invalid")
        with pytest.raises(EndpointError, match=r"api\.example\.invalid"):
            await _sent("http://api.example.invalid/v1", request_of())
    assert proxy.requests == []
    assert len(server.requests) == 1
