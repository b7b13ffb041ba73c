"""Every shape of an error body yields a readable message (PROTOCOL B.1)."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from batchrun.errors import ErrorKind
from batchrun.records import Failure

Complete = Callable[..., Any]

_CLOUDFLARE = {
    "type": "https://developers.cloudflare.com/support/error-524/",
    "title": "Error 524: A timeout occurred",
    "status": 524,
    "detail": "The origin web server timed out.",
}
_NGINX = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n"
    b"<center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>"
)
_FASTAPI = {
    "detail": [
        {"loc": ["body", "input"], "msg": "Field required", "type": "missing", "input": {"a": 1}},
        {"loc": ["body", "tools", 0], "msg": "Bad tool", "type": "value_error"},
    ]
}
_CONTEXT = {
    "error": {
        "code": 400,
        "message": "the request exceeds the available context size",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 9000,
        "n_ctx": 4096,
    }
}

# status, body, content type, message, code
SHAPES: dict[str, tuple[int, Any, str, str, str | None]] = {
    "B.1.1 a code": (
        400,
        {"error": {"message": "bad", "type": "invalid_request_error", "param": None, "code": "c"}},
        "application/json",
        "bad",
        "c",
    ),
    "B.1.1 no code": (
        400,
        {"error": {"message": "bad", "type": "invalid_request_error", "param": None, "code": None}},
        "application/json",
        "bad",
        None,
    ),
    "B.1.2 text code": (
        400,
        {
            "error": {
                "message": "bad (request id: 20260102)",
                "type": "new_api_error",
                "param": "",
                "code": "model_price_error",
            }
        },
        "application/json",
        "bad (request id: 20260102)",
        "model_price_error",
    ),
    "B.1.2 whole code": (
        400,
        {"error": {"message": "bad", "type": "upstream_error", "param": "", "code": 400}},
        "application/json",
        "bad",
        "400",
    ),
    "B.1.2 empty code": (
        400,
        {"error": {"message": "bad", "type": "openai_error", "param": "", "code": ""}},
        "application/json",
        "bad",
        None,
    ),
    "B.1.3": (400, _CONTEXT, "application/json", _CONTEXT["error"]["message"], "400"),  # type: ignore[dict-item]
    "B.1.4 text": (
        422,
        {"detail": "Unexpected fields in the request: {'bogus_field'}"},
        "application/json",
        "Unexpected fields in the request: {'bogus_field'}",
        None,
    ),
    "B.1.4 list": (
        422,
        _FASTAPI,
        "application/json",
        "body.input: Field required; body.tools.0: Bad tool",
        None,
    ),
    "B.1.5": (422, b"Internal Server Error", "text/plain", "Internal Server Error", None),
    "B.1.6": (413, _NGINX, "text/html", "502 Bad Gateway", None),
    "B.1.7": (
        400,
        _CLOUDFLARE,
        "application/problem+json",
        "The origin web server timed out.",
        None,
    ),
    "B.1.8": (400, b"", "text/plain", "the answer had no body", None),
    "B.1.9 success": (400, {"success": False, "message": "no"}, "application/json", "no", None),
    "B.1.9 error": (400, {"error": "no"}, "application/json", "no", None),
    "B.1.9 message": (400, {"message": "no"}, "application/json", "no", None),
    "B.1.9 msg": (400, {"msg": "no"}, "application/json", "no", None),
    "B.1.9 error_msg": (400, {"error_msg": "no"}, "application/json", "no", None),
    "B.1.9 response": (
        400,
        {"response": {"error": {"message": "no", "code": "c"}}},
        "application/json",
        "no",
        "c",
    ),
    "B.1.10": (
        400,
        b'data: {"error":{"message":"no","code":"400"}}\n\ndata: [DONE]\n\n',
        "text/event-stream",
        "no",
        "400",
    ),
    "B.1.11": (
        400,
        {"error": {"code": "400", "message": "no. Please retry after 6 seconds."}},
        "application/json",
        "no. Please retry after 6 seconds.",
        "400",
    ),
}


@pytest.mark.parametrize("mode", ["plain", "stream", "background"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_an_error_of_any_shape_is_reported_in_its_own_words(
    complete: Complete, shape: str, mode: str
) -> None:
    status, body, kind, message, code = SHAPES[shape]
    outcome = await complete([{"status": status, "body": body, "type": kind}], mode=mode)
    assert isinstance(outcome.result, Failure)
    assert (outcome.result.message, outcome.result.code) == (message, code)
    assert (outcome.result.http_status, outcome.result.status) == (status, "failed")
    assert outcome.attempts[0].error_message == message


# Text and pages within a 200 are answers that cannot be read.
_STRUCTURED = [
    shape
    for shape, (_, body, kind, _, _) in SHAPES.items()
    if not isinstance(body, bytes) or kind == "text/event-stream"
]


@pytest.mark.parametrize("shape", _STRUCTURED)
async def test_the_same_shapes_are_understood_within_a_200(complete: Complete, shape: str) -> None:
    _, body, kind, message, _ = SHAPES[shape]
    outcome = await complete([{"body": body, "type": kind}])
    assert isinstance(outcome.result, Failure)
    assert message in outcome.result.message
    assert outcome.attempts[0].http_status == 200


async def test_an_empty_429_waits_and_an_azure_429_says_how_long(
    endpoint: Callable[..., Any], request_of: Callable[..., Any], answer: Callable[..., Any]
) -> None:
    azure = {"error": {"code": "429", "message": "Slow. Please retry after 1 second."}}
    script = [{"status": 429, "body": b"", "type": None}, {"status": 429, "body": azure}]
    async with endpoint([*script, {"body": answer()}]) as connected:
        outcome = await connected.outcome(request_of())
    first, second, third = outcome.attempts
    assert (first.error_kind, second.error_kind) == (ErrorKind.RATE_LIMIT, ErrorKind.RATE_LIMIT)
    assert third.started_at - second.started_at >= 1_000_000
    assert outcome.ok


async def test_a_message_that_sends_the_whole_input_back_is_cut(complete: Complete) -> None:
    for body in ({"error": {"message": "x" * 100_000}}, {"detail": "x" * 100_000}):
        outcome = await complete([{"status": 400, "body": body}])
        assert outcome.result.message == "x" * 8_000


async def test_a_body_that_is_no_text_at_all_is_reported_too(complete: Complete) -> None:
    for body in (b"\xff\xfe\x00", b"[[[[", json.dumps({"error": {"x": 1}}).encode(), b"{}"):
        outcome = await complete([{"status": 400, "body": body}])
        assert outcome.result.message
        assert outcome.result.kind is ErrorKind.BAD_REQUEST
