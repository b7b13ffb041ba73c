import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.dialects.responses import Unreadable, parse_response
from batchrun.errors import ErrorKind
from batchrun.records import Request, Response
from batchrun.retry.error_kinds import ErrorBody

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "forty-two", "annotations": []}],
}


def _request(max_output_tokens: int | None = None, **body: Any) -> Request:
    text = json.dumps({"model": "m", "input": "x", **body}).encode()
    return Request(0, "0", "file", text, "0" * 16, "m", max_output_tokens, ())


def _body(**fields: Any) -> bytes:
    answer = {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": "m-2026",
        "output": [MESSAGE],
        "usage": {
            "input_tokens": 62,
            "input_tokens_details": {"cached_tokens": 8},
            "output_tokens": 18,
            "output_tokens_details": {"reasoning_tokens": None},
            "total_tokens": 80,
        },
    }
    return json.dumps({**answer, **fields}).encode()


def _parsed(body: bytes, request: Request | None = None) -> Response:
    answer = parse_response(body, request or _request())
    assert isinstance(answer, Response)
    return answer


def test_an_answer_is_read_whole() -> None:
    answer = _parsed(_body())
    assert answer.ok
    assert (answer.id, answer.model, answer.output_text) == ("resp_1", "m-2026", "forty-two")
    assert (answer.usage.input_tokens, answer.usage.cached_tokens) == (62, 8)
    assert (answer.usage.output_tokens, answer.usage.total_tokens) == (18, 80)
    assert answer.usage.reasoning_tokens is None
    assert json.loads(answer.output) == [MESSAGE]


def test_the_output_is_kept_verbatim_to_the_byte() -> None:
    spaced = b'[ {"type":"message", "content":[]},\n{"type":"new_kind", "x":1.50} ]'
    body = b'{"object":"response","status":"completed","output": ' + spaced + b"}"
    assert _parsed(body).output == spaced.decode()


def test_a_refusal_is_an_answer_but_not_ok() -> None:
    part = {"type": "refusal", "refusal": "I will not."}
    answer = _parsed(_body(output=[{**MESSAGE, "content": [part]}]))
    assert (answer.status, answer.refusal, answer.output_text) == ("completed", "I will not.", None)
    assert not answer.ok


def test_an_answer_cut_at_the_limit_is_truncated_whatever_the_server_calls_it() -> None:
    cut = _parsed(_body(status="incomplete", incomplete_details={"reason": "max_output_tokens"}))
    assert (cut.truncated, cut.incomplete_reason, cut.ok) == (True, "max_output_tokens", False)
    said_completed = _parsed(_body(), _request(max_output_tokens=18))
    assert said_completed.truncated
    assert not said_completed.ok
    filtered = _parsed(_body(status="incomplete", incomplete_details={"reason": "content_filter"}))
    assert (filtered.truncated, filtered.ok) == (False, False)


def test_tool_calls_are_listed_with_their_position_and_checked_against_their_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    tools = [{"type": "function", "name": "f", "parameters": schema}]
    calls = [
        {"type": "function_call", "call_id": str(number), "name": "f", "arguments": arguments}
        for number, arguments in enumerate(['{"a": 1}', '{"a": "1"}', '{"a": 1', "{}"])
    ]
    answer = _parsed(_body(output=[MESSAGE, *calls]), _request(tools=tools))
    assert [call.position for call in answer.tool_calls] == [1, 2, 3, 4]
    assert [call.arguments_valid for call in answer.tool_calls] == [True, False, False, False]
    assert answer.tool_calls[2].arguments == '{"a": 1'


def test_arguments_of_a_schema_that_is_none_are_not_judged() -> None:
    tools = [{"type": "function", "name": "f", "parameters": {"type": "dict"}}]
    call = {"type": "function_call", "name": "f", "arguments": "{}"}
    answer = _parsed(_body(output=[call]), _request(tools=tools))
    assert answer.tool_calls[0].arguments_valid is None


def test_a_schema_that_points_elsewhere_opens_no_connection() -> None:
    schema = {"$ref": "http://127.0.0.1:9/schema.json"}
    tools = [{"type": "function", "name": "f", "parameters": schema}]
    call = {"type": "function_call", "name": "f", "arguments": "{}"}
    answer = _parsed(_body(output=[call]), _request(tools=tools))
    assert answer.tool_calls[0].arguments_valid is None


def test_a_long_tool_call_is_cut_in_its_row_and_whole_in_the_output() -> None:
    arguments = json.dumps({"text": "é" * 50_000})
    call = {"type": "function_call", "name": "f", "arguments": arguments}
    body = json.dumps(json.loads(_body(output=[call])), ensure_ascii=False).encode()
    answer = _parsed(body)
    assert len(answer.tool_calls[0].item.encode()) <= 64 * 1024
    assert json.loads(answer.output)[0]["arguments"] == arguments


def test_citations_and_reasoning_summaries_are_gathered() -> None:
    note = {"type": "url_citation", "url": "u", "title": "t", "start_index": 1, "end_index": 5}
    part = {"type": "output_text", "text": "hello", "annotations": [note]}
    reasoning = {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": text} for text in ("first", "second")],
    }
    answer = _parsed(_body(output=[reasoning, {**MESSAGE, "content": [part]}]))
    assert answer.reasoning_summary == "first\n\nsecond"
    assert (answer.citations[0].url, answer.citations[0].end_index) == ("u", 5)


def test_usage_of_hosted_tools_goes_along() -> None:
    answer = _parsed(_body(tool_usage={"web_search": {"num_requests": 2}}))
    usage = json.loads(answer.usage_json or "")
    assert usage["input_tokens"] == 62
    assert usage["tool_usage"]["web_search"]["num_requests"] == 2


@pytest.mark.parametrize("usage", [None, {}, {"input_tokens": "many"}, [], 5])
def test_missing_usage_is_null_and_never_zero(usage: Any) -> None:
    assert _parsed(_body(usage=usage)).usage.input_tokens is None


def test_an_error_in_a_200_is_an_error() -> None:
    error = {"code": "server_error", "message": "oops", "type": "server_error"}
    assert parse_response(json.dumps({"error": error}).encode(), _request()) == ErrorBody(
        "oops", "server_error", "server_error"
    )


def test_a_failed_response_keeps_its_usage_and_says_why() -> None:
    error = {"code": "server_error", "message": "oops"}
    answer = _parsed(_body(status="failed", error=error))
    assert answer.failure is not None
    assert answer.failure.code == "server_error"
    assert answer.usage.total_tokens == 80


def test_a_cancelled_response_has_a_kind_of_its_own() -> None:
    answer = _parsed(_body(status="cancelled"))
    assert answer.failure is not None
    assert answer.failure.kind is ErrorKind.CANCELLED


def test_lone_surrogates_and_nan_do_not_lose_an_answer() -> None:
    body = _body().replace(b"forty-two", rb"bad \ud83d end").replace(b": 62", b": NaN")
    answer = _parsed(body)
    assert answer.output_text == "bad � end"
    assert answer.usage.input_tokens is None


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"{}", b"5", b"<html>", _body()[:-10], b"[" * 100_000, b"\xff"]
)
def test_what_is_no_response_is_unreadable_and_shows_its_beginning(body: bytes) -> None:
    answer = parse_response(body, _request())
    assert isinstance(answer, Unreadable)
    assert body[:20].decode(errors="replace") in answer.message


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
_FIELDS = ["output", "usage", "error", "status", "model", "incomplete_details", "id", "tool_usage"]
_PART = {"type": _JSON, "text": _JSON, "refusal": _JSON, "annotations": _JSON}
_ITEM = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "reasoning", "function_call", "x_call", 5])},
    optional={
        "content": st.lists(st.fixed_dictionaries(_PART)) | _JSON,
        "summary": _JSON,
        "arguments": _JSON,
        "name": _JSON,
        "call_id": _JSON,
        "status": _JSON,
    },
)


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(_FIELDS, _JSON)),
    st.none() | st.lists(_ITEM | _JSON),
)
def test_any_json_is_an_answer_an_error_or_unreadable(fields: dict[str, Any], items: Any) -> None:
    value = {"object": "response", "status": "completed", **fields}
    if items is not None:
        value["output"] = items
    answer = parse_response(json.dumps(value).encode(), _request())
    assert isinstance(answer, Response | ErrorBody | Unreadable)


@given(st.binary())
def test_any_bytes_are_an_answer_an_error_or_unreadable(body: bytes) -> None:
    assert isinstance(parse_response(body, _request()), Response | ErrorBody | Unreadable)
