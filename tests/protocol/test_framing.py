"""One whole JSON answer is the answer, whatever the frame around it says."""

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from batchrun.errors import ErrorKind
from batchrun.records import Outcome, Response
from tests.both_transports import only_fast

pytestmark = pytest.mark.usefixtures("transport")
Make = Callable[..., dict[str, Any]]
Complete = Callable[..., Any]
MODES = pytest.mark.parametrize("mode", ["plain", "stream", "background"])


def _is_answered(outcome: Outcome, text: str = "forty-two") -> None:
    assert outcome.ok, outcome.failure
    assert isinstance(outcome.result, Response)
    assert outcome.result.output_text == text
    assert len(outcome.attempts) == 1


def _sized(body: bytes, more: int, **fields: Any) -> dict[str, Any]:
    return {"raw": [body], "headers": {"Content-Length": str(len(body) + more)}, **fields}


@MODES
@pytest.mark.parametrize("end", ["clean", "reset", "open"])
@pytest.mark.parametrize("after", [b"", b"\n", b"\r\n \n"], ids=["", "line", "blanks"])
async def test_a_body_shorter_than_its_length_is_whole(
    complete: Complete, answer: Make, mode: str, end: str, after: bytes
) -> None:
    step = _sized(json.dumps(answer()).encode() + after, 100, end=end)
    _is_answered(await complete([step], mode=mode))


@MODES
@pytest.mark.parametrize("end", ["cut", "reset", "open"])
async def test_a_body_without_its_last_chunk_is_whole(
    complete: Complete, answer: Make, mode: str, end: str
) -> None:
    _is_answered(await complete([{"body": answer(), "end": end, "cuts": 400}], mode=mode))


@only_fast
@pytest.mark.parametrize("transport", ["fast"], indirect=True)
@MODES
@pytest.mark.parametrize("apart", [False, True], ids=["at once", "apart"])
@pytest.mark.parametrize("end", ["clean", "open"])
async def test_a_body_longer_than_its_length_is_whole(
    complete: Complete, answer: Make, mode: str, apart: bool, end: str
) -> None:
    """A length in letters, not in bytes, is too short. aiohttp's session passes over the rest."""
    text = "quarante-deux, à peu près" * 20
    whole = json.dumps(answer(text), ensure_ascii=False)
    body = whole.encode()
    size = len(whole) if not apart else len(body) - 3
    assert size < len(body)
    pieces = [body[:size], 0.05, body[size:]] if apart else [body]
    step = {"raw": pieces, "headers": {"Content-Length": str(size)}, "end": end}
    _is_answered(await complete([step], mode=mode), text)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "utf-8"])
@MODES
async def test_a_body_that_is_called_packed_and_is_not_is_read(
    complete: Complete, answer: Make, mode: str, encoding: str
) -> None:
    step = {"body": answer(), "headers": {"Content-Encoding": encoding}}
    _is_answered(await complete([step], mode=mode))


@pytest.mark.parametrize("encoding", ["gzip", "br"])
async def test_a_stream_that_is_called_packed_and_is_not_is_read(
    complete: Complete, answer: Make, events: Make, encoding: str
) -> None:
    step = {"events": events(answer()), "headers": {"Content-Encoding": encoding}}
    _is_answered(await complete([step], mode="stream"))


@pytest.mark.parametrize("encoding", [None, "identity", "deflate", "br"])
@pytest.mark.parametrize("cuts", [1, 100_000])
@MODES
async def test_a_body_that_is_packed_and_is_not_called_so_is_read(
    complete: Complete, answer: Make, mode: str, encoding: str | None, cuts: int
) -> None:
    body = gzip.compress(json.dumps(answer()).encode())
    step = {"body": body, "headers": {"Content-Encoding": encoding}, "cuts": cuts}
    _is_answered(await complete([step], mode=mode))


async def test_a_packed_stream_that_is_not_called_so_is_read(
    complete: Complete, answer: Make
) -> None:
    event = {"type": "response.completed", "response": answer()}
    body = gzip.compress(b"data: " + json.dumps(event).encode() + b"\n\n")
    step = {"body": body, "type": "text/event-stream"}
    _is_answered(await complete([step], mode="stream"))


async def test_a_packed_body_without_its_end_is_whole(complete: Complete, answer: Make) -> None:
    body = gzip.compress(json.dumps(answer()).encode())[:-8]
    _is_answered(await complete([{"body": body, "headers": {"Content-Encoding": "gzip"}}]))


async def test_an_object_that_pauses_before_it_ends_is_waited_for(
    complete: Complete, answer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.transport.exchange._LINGER_S", 0.1)
    body = json.dumps(answer()).encode()
    middle = body.index(b"}") + 1
    step = {"pieces": [body[:middle], 1.0, body[middle:]]}
    _is_answered(await complete([step], idle_timeout_s=60.0))


@pytest.mark.parametrize("end", ["cut", "reset"])
async def test_half_a_body_is_no_answer(complete: Complete, answer: Make, end: str) -> None:
    half = json.dumps(answer()).encode()[:-1]
    outcome = await complete([{"body": half, "end": end}])
    assert outcome.failure.kind is ErrorKind.CUT
    assert len(outcome.attempts) == 6


@MODES
@pytest.mark.parametrize("end", ["cut", "reset"])
@pytest.mark.parametrize("body", [b"", b'{"error": {"mess', b"<html>"])
@pytest.mark.parametrize(
    ("status", "kind"), [(413, ErrorKind.TOO_LONG), (422, ErrorKind.BAD_REQUEST)]
)
async def test_the_status_of_an_error_counts_however_its_body_ends(
    complete: Complete, mode: str, end: str, body: bytes, status: int, kind: ErrorKind
) -> None:
    outcome = await complete([{"status": status, "body": body, "end": end}], mode=mode)
    assert (outcome.failure.kind, outcome.cost_usd, len(outcome.attempts)) == (kind, 0.0, 1)


async def test_an_error_in_a_coding_that_was_not_asked_for_has_its_status(
    complete: Complete, answer: Make
) -> None:
    step = {"status": 429, "body": b"\x8b\x00\x80\x03", "headers": {"Content-Encoding": "br"}}
    outcome = await complete([step, {"body": answer()}])
    assert outcome.attempts[0].error_kind is ErrorKind.RATE_LIMIT
    assert '"br"' in outcome.attempts[0].error_message
    assert outcome.ok


_CHUNK = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "choices": [{"index": 0, "delta": {"content": "forty-two"}}],
}
_CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "forty-two"}}],
}
_CLAUDE = {"type": "content_block_delta", "index": 0, "delta": {"text": "forty-two"}}


def _framed(*events: dict[str, Any], named: bool = False) -> bytes:
    lines = []
    for event in events:
        name = f"event: {event['type']}\n" if named else ""
        lines.append(f"{name}data: {json.dumps(event)}\n\n")
    return "".join(lines).encode()


@pytest.mark.parametrize(
    ("step", "named"),
    [
        ({"body": _CHAT}, "chat completion"),
        ({"body": {**_CHAT, "object": None}}, "chat completion"),
        ({"body": {"object": "text_completion", "choices": [{"text": "x"}]}}, "text_completion"),
        ({"body": {"type": "message", "content": [{"type": "text", "text": "x"}]}}, "Messages API"),
        ({"body": {"candidates": [{"content": {"parts": [{"text": "x"}]}}]}}, "Gemini"),
        ({"body": _framed(_CHUNK, _CHUNK) + b"data: [DONE]\n\n"}, "chat.completion.chunk"),
        ({"body": _framed(_CHUNK, _CHUNK), "end": "cut"}, "chat.completion.chunk"),
        ({"body": _framed(_CLAUDE, named=True)}, "Messages API"),
    ],
    ids=["chat", "nameless", "older", "messages", "gemini", "chunks", "cut", "deltas"],
)
@pytest.mark.parametrize("mode", ["plain", "stream"])
async def test_an_answer_of_another_api_is_named_and_asked_for_three_times(
    complete: Complete, step: dict[str, Any], named: str, mode: str
) -> None:
    step = {"type": "text/event-stream" if b"data:" in bytes(str(step), "utf-8") else None, **step}
    outcome = await complete([step], mode=mode)
    _is_unreadable(outcome, named)
    assert "--base-url" in outcome.failure.message


@pytest.mark.parametrize(
    ("encoding", "body", "named"),
    [
        ("br", b"\x8b\x02\x80{}\x03", '"br"'),
        ("zstd", b"\x28\xb5\x2f\xfd\x00", '"zstd"'),
        ("deflate", b"\xff\xff\xff\xff", "unpacked"),
        ("gzip", gzip.compress(b"x" * 99)[:10] + b"\xff" * 20, "unpacked"),
    ],
    ids=["br", "zstd", "deflate", "gzip"],
)
@MODES
async def test_a_coding_that_cannot_be_unpacked_is_named_and_asked_for_three_times(
    complete: Complete, encoding: str, body: bytes, named: str, mode: str
) -> None:
    step = {"body": body, "headers": {"Content-Encoding": encoding}}
    _is_unreadable(await complete([step], mode=mode), named)


def _is_unreadable(outcome: Outcome, named: str) -> None:
    failure = outcome.failure
    assert failure is not None
    assert failure.kind is ErrorKind.UNREADABLE
    assert named in failure.message
    assert failure.status == "no_answer"
    assert len(outcome.attempts) == 3


async def test_deflate_with_and_without_its_header_is_still_unpacked(
    complete: Complete, answer: Make
) -> None:
    for window in (15, -15):
        packer = zlib.compressobj(wbits=window)
        body = packer.compress(json.dumps(answer()).encode()) + packer.flush()
        step = {"body": body, "headers": {"Content-Encoding": "deflate"}, "cuts": 7}
        _is_answered(await complete([step]))
