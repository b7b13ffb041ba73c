"""100,000 answers, errors and streams with bytes flipped, cut, doubled and spliced.

Whatever comes of them is an answer or a failure that can be stored, and never an exception. Each
case is drawn from its seed alone, so that a failure names what to run again.
"""

import json
import random
from collections import Counter
from typing import Any

import msgspec
import pytest

from batchrun.dialects.responses import StreamAnswer
from batchrun.dialects.sse import SseParser
from batchrun.dispatch.attempt_result import read_reply
from batchrun.records import Failure, Reply, Request, Response
from batchrun.retry.error_kinds import hint_in

CASES, SHARES = 100_000, 8

_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
REQUEST = Request(
    0,
    "0",
    "f",
    json.dumps(
        {
            "model": "m",
            "input": "x",
            "tools": [{"type": "function", "name": "f", "parameters": _SCHEMA}],
            "text": {"format": {"type": "json_schema", "name": "n", "schema": _SCHEMA}},
        }
    ).encode(),
    "0" * 16,
    "m",
    18,
    (),
)
_USAGE: dict[str, Any] = {
    "input_tokens": 62,
    "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 1},
    "output_tokens": 17,
    "output_tokens_details": {"reasoning_tokens": None},
    "total_tokens": 79,
    "cost": 1.5e-3,
}
_NOTE = {"type": "url_citation", "url": "https://x", "title": "é", "start_index": 0, "end_index": 2}
_PART = {"type": "output_text", "text": '{"a": 1} 中文 🙂 \\ud83d', "annotations": [_NOTE]}
_MESSAGE = {"type": "message", "id": "m", "role": "assistant", "content": [_PART]}
_CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'}


def _whole(**fields: Any) -> dict[str, Any]:
    base = {"id": "resp_1", "object": "response", "status": "completed", "error": None}
    return {**base, "model": "m", "output": [_MESSAGE], "usage": _USAGE, **fields}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _stream(*events: dict[str, Any], end: str = "\n", named: bool = True) -> bytes:
    lines = []
    for event in events:
        if named:
            lines.append(f"event: {event.get('type', 'error')}")
        lines += [f"data: {json.dumps(event, ensure_ascii=False)}", ""]
    return (end.join(lines) + end).encode()


def _events(last: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "response.created", "response": _whole(status="in_progress", output=[])},
        {"type": "response.output_text.delta", "output_index": 0, "delta": "hi 中", "x": 1.5},
        {"type": "response.output_item.done", "output_index": 0, "item": _MESSAGE},
        {"type": "response.output_item.done", "output_index": 1, "item": _CALL},
        last,
    ]


_ERROR = {"message": "m", "type": "server_error", "param": None, "code": None}
_RATE = "Rate limit reached: Limit 30000, Used 28770, Requested 3082. Please try again in 9.816s."
_LARGE = "Request too large for m (TPM): Limit 30000, Requested 36278. See"
_FAILED = {"type": "response.failed", "response": _whole(status="failed", error=_ERROR)}
_DONE = {"type": "response.completed", "response": _whole()}
_EMPTY = {"type": "response.completed", "response": _whole(output=[])}
_NESTED = {"type": "error", "error": {"type": "t", "code": "slow_down", "message": "m"}}
_FLAT = {"type": "error", "code": "rate_limit_exceeded", "message": _RATE, "sequence_number": 3}
_INNER = 'litellm.X: {"error": {"code": "insufficient_quota", "message": "m"}}'
_HOSTED = [
    {"type": "web_search_call", "action": {"type": "search", "queries": ["a", "b"]}},
    {"type": "mcp_call", "server_label": "s", "name": "n", "arguments": "{}"},
    {"type": "computer_call", "call_id": "c", "actions": [{"type": "click"}]},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "t"}]},
    {"type": "new_kind", "x": [1, 2.50, None]},
]
CORPUS: tuple[bytes, ...] = (
    _json(_whole()),
    _json(_whole(output=[_CALL, _MESSAGE, {**_CALL, "namespace": "ns"}])),
    _json(_whole(output=_HOSTED, tool_usage={"web_search": {"num_requests": 2}})),
    _json(_whole(status="incomplete", incomplete_details={"reason": "max_output_tokens"})),
    _json(_whole(status="failed", output=[], error={**_ERROR, "code": "invalid_prompt"})),
    _json(_whole(status="cancelled", usage=None)),
    _json(_whole(output=[{**_MESSAGE, "content": [{"type": "refusal", "refusal": "no"}]}])),
    _json(_whole(output=[], output_text="text", created_at=1.5)),
    json.dumps(_whole(temperature=float("nan"), model="\ud83d")).encode(),
    _json({"error": _ERROR}),
    _json({"error": {**_ERROR, "message": _RATE, "code": 429}}),
    _json({"error": {"message": _LARGE, "type": "tokens", "code": "rate_limit_exceeded"}}),
    _json({"error": {"message": _INNER, "type": "throttling_error", "code": "429"}}),
    _json({"error": {"code": "429", "message": "Slow. Please retry after 6 seconds."}}),
    _json({"detail": [{"loc": ["body", 0], "msg": "m", "type": "t"}, {"msg": "n"}]}),
    _json({"type": "https://x/error-524/", "title": "A timeout", "status": 524, "detail": "d"}),
    _json({"response": {"error": {"message": "用户额度不足", "code": "c"}}, "success": False}),
    b"<html><head><title>502 Bad Gateway</title></head><body><h1>x &amp; y</h1></body></html>",
    b"Internal Server Error",
    _stream(*_events(_DONE)),
    _stream(*_events(_DONE), end="\r\n", named=False),
    _stream(*_events(_EMPTY)) + b"data: [DONE]\n\n",
    _stream(*_events({"type": "response.incomplete", "response": _whole(status="incomplete")})),
    _stream(*_events(_NESTED), _FAILED),
    _stream(*_events(_FLAT)),
    _stream({"error": _ERROR}, named=False) + b"data: [DONE]\n\n",
    b": PING\n\n" + _stream(*_events({"type": "response.error", "error": "text"})),
    _stream({"type": "response.completed", "response": {}}),
    b"\xef\xbb\xbfdata: {\ndata: " + _json(_DONE)[1:] + b"\n\n: PING\n\n",
    b'event: error\r\ndata: {"message":"m","code":"server_error"}\r\n\r\n',
)
# Bytes that readers stumble over.
_SHARP = (
    *(b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\n", b"\r", b"\n\n", b"data:", b"null"),
    *(b"\\ud800", b"\x00", b"\xff", b"\xf0\x9f", b"NaN", b"-Infinity", b"1e999", b"true", b"-"),
    *(b"9" * 25, b"9" * 5000, b"[" * 2000, b'{"response":' * 300, b'{"error":', b'"output":[[1]],'),
    *(b"completed", b"error", b'"status":null', b"<", b"try again in 9", b"\xe2\x80\xa8"),
)


def _mutated(draw: random.Random) -> bytes:
    body = bytearray(draw.choice(CORPUS))
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 8))):
        place = draw.randrange(len(body) + 1)
        length = draw.choice((1, 1, 2, 8, 40, 400))
        match draw.randrange(7):
            case 0 if place < len(body):
                body[place] ^= 1 << draw.randrange(8)
            case 1:
                del body[place : place + length]
            case 2:
                del body[place:]
            case 3:
                body[place:place] = body[place : place + length]
            case 4:
                other = draw.choice(CORPUS)
                body[place:] = other[draw.randrange(len(other)) :]
            case 5:
                body[place : place + draw.choice((0, 1, 8))] = draw.choice(_SHARP)
            case _:
                there = draw.randrange(len(body) + 1)
                body[place:place] = body[there : there + length]
    return bytes(body)


def _streamed(body: bytes, draw: random.Random) -> bytes | None:
    parser, stream = SseParser(), StreamAnswer()
    cut = draw.randrange(len(body) + 1)
    for piece in (body[:cut], body[cut : cut + 7], body[cut + 7 :]):
        for event in parser.feed(piece):
            stream.take(event)
    for event in parser.end():
        stream.take(event)
    if said := stream.partial():
        assert _read(said, 200) == "incomplete"
    return stream.body()


def _read(body: bytes, http_status: int) -> str:
    reply = Reply(http_status, body, None, None, None)
    result = read_reply(reply, REQUEST)
    msgspec.msgpack.encode(result)  # as the journal does
    if isinstance(result, Response):
        return result.status
    assert isinstance(result, Failure)
    assert result.message
    hint_in(result.message)
    return result.kind


def test_the_corpus_itself_is_understood() -> None:
    assert len(CORPUS) == 30
    found = set()
    for body in CORPUS:
        streamed = _streamed(body, random.Random(0))
        found |= {_read(body, 200), _read(body, 500)}
        found.add("" if streamed is None else _read(streamed, 200))
    assert found >= {"completed", "incomplete", "failed", "cancelled", "quota", "rate_limit"}
    assert found >= {"over_limit", "server_error", "unreadable", "content_policy", ""}


@pytest.mark.parametrize(
    "share",
    [0, *(pytest.param(share, marks=pytest.mark.long) for share in range(1, SHARES))],
)
def test_mutated_answers_errors_and_streams_end_without_an_exception(share: int) -> None:
    found: Counter[str] = Counter()
    for seed in range(share, CASES, SHARES):
        draw = random.Random(seed)
        body = _mutated(draw)
        try:
            streamed = _streamed(body, draw)
            found[_read(body, draw.choice((200, 400, 401, 429, 500, 503)))] += 1
            if streamed is not None:
                found[_read(streamed, 200)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {body[:2000]!r}") from error
    # None of it is idle: each end is reached, the good one too.
    assert len(found) >= 12
    assert found["completed"] >= 200
    assert found["unreadable"] >= 200
