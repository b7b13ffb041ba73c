"""Answers that were paid for and hold nothing, or not what was asked for, are not ok."""

from collections.abc import Callable
from typing import Any

import pytest

from batchrun.errors import ErrorKind
from batchrun.job.sections import RetryJob

pytestmark = pytest.mark.usefixtures("transport")

Complete = Callable[..., Any]
Make = Callable[..., dict[str, Any]]

MODES = ["plain", "stream", "background"]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ASKED = {
    "model": "m",
    "input": "x",
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
}
REASONING = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Let me see."}]}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}


def _message(*texts: str | None) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text} for text in texts]
    return {"type": "message", "role": "assistant", "content": content}


def _script(whole: dict[str, Any], mode: str) -> list[dict[str, Any]]:
    """The answer as it comes in a mode."""
    if mode == "stream":
        return [{"events": [{"type": "response.completed", "response": whole}]}]
    return [{"body": whole}]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "output",
    [
        [],
        [REASONING],
        [_message()],
        [_message("")],
        [REASONING, _message(None)],
        [{"type": "message", "content": None}],
        [{"type": "message", "content": [{"type": "reasoning_text", "text": "Hm."}]}],
        [{"type": "mcp_list_tools", "server_label": "docs", "tools": []}, REASONING],
        [{}],
    ],
)
async def test_an_answer_that_holds_nothing_is_empty_output(
    complete: Complete, answer: Make, output: list[Any], mode: str
) -> None:
    outcome = await complete(_script(answer(output=output), mode), mode=mode)
    assert (outcome.ok, outcome.result.status) == (False, "completed")
    assert outcome.failure.kind is ErrorKind.EMPTY_OUTPUT
    assert "output tokens: 18, of reasoning: 4" in outcome.failure.message
    # It has been paid for, and is not asked for again.
    (attempt,) = outcome.attempts
    assert (attempt.error_kind, attempt.output_tokens) == (None, 18)


@pytest.mark.parametrize("usage", [None, {"input_tokens": 0, "output_tokens": 0}, {}])
async def test_an_answer_without_usage_that_holds_nothing_is_empty_output(
    complete: Complete, answer: Make, usage: Any
) -> None:
    outcome = await complete([{"body": answer(output=[REASONING], usage=usage)}])
    assert (outcome.ok, outcome.failure.kind) == (False, ErrorKind.EMPTY_OUTPUT)


@pytest.mark.parametrize("mode", MODES)
async def test_white_space_alone_is_empty_output_and_is_stored(
    complete: Complete, answer: Make, mode: str
) -> None:
    outcome = await complete(_script(answer("\n\n \t\n"), mode), mode=mode)
    assert (outcome.ok, outcome.failure.kind) == (False, ErrorKind.EMPTY_OUTPUT)
    assert "white space" in outcome.failure.message
    assert outcome.result.output_text == "\n\n \t\n"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "item",
    [
        CALL,
        {"type": "custom_tool_call", "call_id": "c", "name": "sql", "input": "SELECT 1"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {}},
        {"type": "image_generation_call", "id": "ig_1", "result": "iVBORw0KGgo="},
        {"type": "compaction", "id": "cmp_1", "encrypted_content": "gAAA"},
        {"type": "mcp_approval_request", "id": "mcpr_1", "name": "find", "arguments": "{}"},
        {"type": "a_kind_of_next_year", "x": 1},
        {"type": "message", "content": [{"type": "output_audio", "data": "AAAA"}]},
        {"type": "message", "content": "plain text"},
    ],
)
async def test_a_call_an_image_or_another_result_is_an_answer_without_text(
    complete: Complete, answer: Make, item: dict[str, Any], mode: str
) -> None:
    outcome = await complete(_script(answer(output=[REASONING, item]), mode), mode=mode)
    assert outcome.ok
    assert outcome.failure is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "text", ['{"a": "x"}', "{}", "Here it is.", '```json\n{"a": 1}\n```', "[]"]
)
async def test_text_that_does_not_fit_its_schema_is_invalid_output(
    complete: Complete, answer: Make, text: str, mode: str
) -> None:
    outcome = await complete(_script(answer(text), mode), ASKED, mode=mode)
    assert (outcome.ok, outcome.result.output_parsed_ok) == (False, False)
    assert outcome.failure.kind is ErrorKind.INVALID_OUTPUT
    assert outcome.result.output_text == text
    assert len(outcome.attempts) == 1


async def test_a_schema_is_for_the_text_that_is_the_answer(
    complete: Complete, answer: Make
) -> None:
    """Not for what a model says before it, or beside a call."""
    fitting = await complete([{"body": answer('{"a": 1}')}], ASKED)
    assert (fitting.ok, fitting.result.output_parsed_ok) == (True, True)
    told = answer(output=[_message("I shall count."), _message('{"a": 1}')])
    outcome = await complete([{"body": told}], ASKED)
    assert (outcome.ok, outcome.result.output_parsed_ok) == (True, True)
    called = answer(output=[_message("Let me look."), CALL])
    settings = RetryJob(on_invalid_output=3)
    outcome = await complete([{"body": called}], ASKED, retry=settings)
    assert (outcome.ok, len(outcome.attempts)) == (True, 1)
    without = await complete([{"body": answer("no JSON")}])
    assert without.ok


async def test_the_first_reason_is_the_rows_error_kind(complete: Complete, answer: Make) -> None:
    refusal = {"type": "message", "content": [{"type": "refusal", "refusal": "I will not."}]}
    full = {"input_tokens": 5, "output_tokens": 18, "total_tokens": 23}
    limited = {**ASKED, "max_output_tokens": 18}
    for output, asked, kind in (
        ([refusal], limited, ErrorKind.REFUSAL),
        ([_message("no JSON")], limited, ErrorKind.TRUNCATED),
        ([_message("")], limited, ErrorKind.TRUNCATED),
        ([_message(" ")], ASKED, ErrorKind.EMPTY_OUTPUT),
        ([_message("no JSON")], ASKED, ErrorKind.INVALID_OUTPUT),
    ):
        outcome = await complete([{"body": answer(output=output, usage=full)}], asked)
        assert (outcome.ok, outcome.failure.kind) == (False, kind)
    cut = answer(status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    outcome = await complete([{"body": cut}])
    assert outcome.failure.kind is ErrorKind.TRUNCATED
    filtered = answer(status="incomplete", incomplete_details={"reason": "content_filter"})
    outcome = await complete([{"body": filtered}])
    assert (outcome.ok, outcome.failure) == (False, None)  # `incomplete_reason` says it


async def test_an_empty_answer_is_asked_for_again_where_a_schema_is_to_be_fitted(
    complete: Complete, answer: Make
) -> None:
    script = [{"body": answer(output=[REASONING])}, {"body": answer('{"a": 1}')}]
    settings = RetryJob(on_invalid_output=1)
    outcome = await complete(script, ASKED, retry=settings)
    assert (outcome.ok, [one.kind for one in outcome.attempts]) == (True, ["first", "reask"])
    outcome = await complete(script, retry=settings)  # nothing was to be fitted
    assert (outcome.ok, len(outcome.attempts)) == (False, 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "error",
    [
        {"message": "", "type": "", "param": None, "code": None},
        {"code": 0, "message": " "},
        {"code": "", "details": [], "inner": {"message": None}},
        "",
        [],
    ],
)
async def test_an_error_of_empty_fields_in_a_healthy_200_is_none(
    complete: Complete, answer: Make, error: Any, mode: str
) -> None:
    outcome = await complete(_script(answer(error=error), mode), mode=mode)
    assert (outcome.ok, outcome.result.output_text) == (True, "forty-two")
    assert len(outcome.attempts) == 1


async def test_an_empty_error_of_a_failed_response_says_no_more_than_its_status(
    complete: Complete, answer: Make
) -> None:
    failed = answer(status="failed", output=[], error={"message": "", "code": None})
    outcome = await complete([{"body": failed}], retry=RetryJob(max_attempts=1))
    assert outcome.failure.message.startswith("the response is failed")


def _tool(name: str, parameters: Any = None, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, "parameters": parameters, **fields}


NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
OFFERED = [
    _tool("now"),
    _tool("today", NO_PARAMETERS),
    _tool("add", SCHEMA),
    {"type": "function", "function": {"name": "nested", "parameters": SCHEMA}},
    {"type": "namespace", "name": "crm", "tools": [_tool("find", SCHEMA)]},
    {"type": "custom", "name": "sql"},
    {"type": "web_search"},
    "?",
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("call", "is_valid"),
    [
        ({"name": "now", "arguments": ""}, True),
        ({"name": "now", "arguments": None}, True),
        ({"name": "now"}, True),
        ({"name": "now", "arguments": "{}"}, True),
        ({"name": "now", "arguments": "{"}, False),
        ({"name": "today", "arguments": " "}, True),
        ({"name": "today", "arguments": '{"a": 1}'}, False),
        ({"name": "add", "arguments": ""}, False),
        ({"name": "add", "arguments": '{"a": 1}'}, True),
        ({"name": "nested", "arguments": '{"a": 1}'}, True),
        ({"name": "nested", "arguments": "{}"}, False),
        ({"name": "find", "namespace": "crm", "arguments": '{"a": 1}'}, True),
        ({"name": "find", "arguments": "{}"}, False),
        ({"name": "find", "namespace": "erp", "arguments": '{"a": 1}'}, False),
        ({"name": "delete_all", "arguments": "{}"}, False),
        ({"name": "", "arguments": "{}"}, False),
        ({"arguments": "{}"}, False),
        ({"type": "custom_tool_call", "name": "sql", "input": "SELECT 1"}, None),
        ({"type": "custom_tool_call", "name": "rm", "input": "-rf"}, False),
        ({"type": "web_search_call", "action": {"type": "search"}}, None),
    ],
)
async def test_a_call_is_valid_if_the_tool_was_offered_and_takes_the_arguments(
    complete: Complete, answer: Make, call: dict[str, Any], is_valid: bool | None, mode: str
) -> None:
    item = {"type": "function_call", "call_id": "c", **call}
    asked = {"model": "m", "input": "x", "tools": OFFERED}
    outcome = await complete(_script(answer(output=[item]), mode), asked, mode=mode)
    assert [one.arguments_valid for one in outcome.result.tool_calls] == [is_valid]
    assert outcome.ok  # a wrong call is an answer


@pytest.mark.parametrize(
    ("asked", "is_valid"),
    [
        ({"model": "m", "input": "x"}, False),
        ({"model": "m", "input": "x", "tools": None}, False),
        ({"prompt": {"id": "pmpt_1"}}, True),
        ({"model": "m", "input": "x", "tools": [{"type": "tool_search"}]}, True),
        ({"model": "m", "input": [{"type": "additional_tools", "tools": []}]}, True),
    ],
)
async def test_a_tool_may_have_been_offered_by_a_stored_prompt_or_a_search_for_tools(
    complete: Complete, answer: Make, asked: dict[str, Any], is_valid: bool
) -> None:
    outcome = await complete([{"body": answer(output=[CALL])}], asked)
    assert [one.arguments_valid for one in outcome.result.tool_calls] == [is_valid]
