import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.dialects.output_items import count_searches
from batchrun.dialects.responses import parse_response
from batchrun.records import NO_SEARCHES, Request, Response, Searches, ToolCall

REQUEST = Request(0, "0", "file", b'{"model":"m","input":"x"}', "0" * 16, "m", None, ())


def _call(item: dict[str, Any]) -> ToolCall:
    body = json.dumps({"object": "response", "status": "completed", "output": [item]}).encode()
    answer = parse_response(body, REQUEST)
    assert isinstance(answer, Response)
    assert len(answer.tool_calls) == 1
    return answer.tool_calls[0]


@pytest.mark.parametrize(
    ("item", "name", "arguments"),
    [
        (
            {"type": "web_search_call", "action": {"type": "search", "queries": ["a", "b"]}},
            "a; b",
            {"type": "search", "queries": ["a", "b"]},
        ),
        (
            {"type": "web_search_call", "action": {"type": "search", "query": "a"}},
            "a",
            {"type": "search", "query": "a"},
        ),
        (
            {"type": "web_search_call", "action": {"type": "open_page", "url": "https://x"}},
            "https://x",
            {"type": "open_page", "url": "https://x"},
        ),
        (
            {"type": "mcp_call", "server_label": "docs", "name": "find", "arguments": '{"q":1}'},
            "docs.find",
            {"q": 1},
        ),
        ({"type": "file_search_call", "queries": ["a"]}, "a", ["a"]),
        (
            {"type": "computer_call", "call_id": "c", "action": {"type": "click", "x": 1}},
            "click",
            {"type": "click", "x": 1},
        ),
        (
            {"type": "apply_patch_call", "operation": {"type": "update_file", "path": "p"}},
            "update_file",
            {"type": "update_file", "path": "p"},
        ),
    ],
)
def test_each_kind_of_call_has_what_names_it(
    item: dict[str, Any], name: str, arguments: Any
) -> None:
    call = _call(item)
    assert (call.type, call.name) == (item["type"], name)
    assert json.loads(call.arguments or "") == arguments
    assert call.arguments_valid is None
    assert json.loads(call.item) == item


@pytest.mark.parametrize(
    ("item", "name", "arguments"),
    [
        ({"type": "custom_tool_call", "name": "sql", "input": "SELECT 1"}, "sql", "SELECT 1"),
        (
            {"type": "code_interpreter_call", "container_id": "cntr_1", "code": "1 + 1"},
            "cntr_1",
            "1 + 1",
        ),
        ({"type": "image_generation_call", "revised_prompt": "a cat"}, None, "a cat"),
        ({"type": "some_new_call", "x": 1}, None, None),
    ],
)
def test_calls_whose_input_is_text_keep_it_as_it_is(
    item: dict[str, Any], name: str | None, arguments: str | None
) -> None:
    call = _call(item)
    assert (call.name, call.arguments) == (name, arguments)


def _formatted(output: str, schema: Any) -> bool | None:
    text = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    body = json.dumps({"model": "m", "input": "x", "text": text}).encode()
    request = Request(0, "0", "file", body, "0" * 16, "m", None, ())
    message = {"type": "message", "content": [{"type": "output_text", "text": output}]}
    answer = {"object": "response", "status": "completed", "output": [message]}
    parsed = parse_response(json.dumps(answer).encode(), request)
    assert isinstance(parsed, Response)
    return parsed.output_parsed_ok


def test_output_is_checked_against_the_schema_that_was_asked_for() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert _formatted('{"a": 1}', schema) is True
    assert _formatted('{"a": "1"}', schema) is False
    assert _formatted('{"a": 1', schema) is False
    assert _formatted('{"a": 1}', {"type": "dict"}) is None


SEARCH = ("web_search_call", "completed", '{"action":{"type":"search","query":"a"}}')
PAGE = ("web_search_call", "completed", '{"action":{"type":"open_page","url":"a"}}')
FILES = ("file_search_call", "completed", '{"queries":["a"]}')
FUNCTION = ("function_call", "completed", '{"name":"web_search_call"}')


def test_searches_are_counted_and_pages_read_are_not() -> None:
    assert count_searches(None, [SEARCH, PAGE, SEARCH, FILES, FUNCTION]) == Searches(2, 1)
    assert count_searches(None, [PAGE, FUNCTION]) is NO_SEARCHES


def test_a_search_that_failed_is_not_billed() -> None:
    assert count_searches(None, [("web_search_call", "failed", "{}")]) is NO_SEARCHES
    assert count_searches(None, [("file_search_call", "failed", "{}"), FILES]) == Searches(0, 1)


@pytest.mark.parametrize("item", ["{}", '{"action":null}', '{"action":{"type', "[]", "\x00"])
def test_a_search_of_unknown_shape_or_cut_is_a_search(item: str) -> None:
    assert count_searches(None, [("web_search_call", None, item)]) == Searches(1, 0)


@pytest.mark.parametrize(
    ("usage", "web"),
    [
        ('{"input_tokens":1,"tool_usage":{"web_search":{"num_requests":7}}}', 7),
        ('{"tool_usage":{"web_search":{"num_requests":0}}}', 0),
        ('{"tool_usage":{"web_search":{"num_requests":-1}}}', 1),
        ('{"tool_usage":{"web_search":{"num_requests":true}}}', 1),
        ('{"tool_usage":{"web_search":null}}', 1),
        ('{"tool_usage":null}', 1),
        ('{"tool_usage":[]}', 1),
        ('{"tool_usage"', 1),
        ('{"input_tokens":1}', 1),
        (None, 1),
    ],
)
def test_the_server_s_own_count_comes_first(usage: str | None, web: int) -> None:
    assert count_searches(usage, [SEARCH]).web == web


@given(st.none() | st.text(), st.lists(st.tuples(st.text(), st.none() | st.text(), st.text())))
def test_any_text_is_counted(usage: str | None, calls: list[tuple[str, str | None, str]]) -> None:
    count_searches(usage, [*calls, *(("web_search_call", None, call[2]) for call in calls)])
