"""Each kind of output item arrives whole (PROTOCOL A.4)."""

import json
from collections.abc import Callable
from typing import Any, get_args

import pytest
from openai.types.responses import ResponseOutputItem

Complete = Callable[..., Any]
Make = Callable[..., dict[str, Any]]

_SCREENSHOT = {"type": "computer_screenshot", "image_url": "data:image/png;base64,AA=="}
_PATCH = {"type": "update_file", "path": "a.py", "diff": "@@"}
_EXEC = {"type": "exec", "command": ["ls"], "env": {}}
ITEMS: dict[str, dict[str, Any]] = {
    "message": {
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "phase": "final_answer",
        "content": [
            {"type": "output_text", "text": "hi", "annotations": [], "logprobs": [{"token": "h"}]},
            {"type": "refusal", "refusal": "no"},
        ],
    },
    "function_call": {
        "id": "fc_1",
        "call_id": "call_1",
        "name": "f",
        "arguments": '{"a": 1.50}',
        "status": "completed",
        "namespace": "crm",
        "caller": {"type": "direct"},
        "async": False,
    },
    "function_call_output": {"call_id": "call_1", "output": "2"},
    "reasoning": {
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "thought"}],
        "content": [{"type": "reasoning_text", "text": "long thought"}],
        "encrypted_content": "gAAA",
        "status": "completed",
    },
    "web_search_call": {
        "id": "ws_1",
        "status": "completed",
        "action": {
            "type": "search",
            "query": "weather",
            "queries": ["weather", "rain"],
            "sources": [{"type": "url", "url": "https://example.com"}],
        },
    },
    "file_search_call": {
        "id": "fs_1",
        "queries": ["a", "b"],
        "status": "completed",
        "results": [{"file_id": "file_1", "score": 0.90}],
    },
    "code_interpreter_call": {
        "id": "ci_1",
        "container_id": "cntr_1",
        "code": "print(1)",
        "outputs": [{"type": "logs", "logs": "1"}, {"type": "image", "url": "https://x"}],
        "status": "completed",
    },
    "image_generation_call": {
        "id": "ig_1",
        "status": "completed",
        "result": "iVBORw0KGgo=",
        "revised_prompt": "a grey cat",
        "output_format": "png",
        "size": "1024x1024",
        "quality": "high",
    },
    "mcp_call": {
        "id": "mcp_1",
        "server_label": "docs",
        "name": "find",
        "arguments": '{"q":"x"}',
        "output": "found",
        "error": None,
        "status": "completed",
        "approval_request_id": None,
    },
    "mcp_list_tools": {"id": "mcpl_1", "server_label": "docs", "tools": [{"name": "find"}]},
    "mcp_approval_request": {
        "id": "mcpr_1",
        "server_label": "docs",
        "name": "find",
        "arguments": "{}",
    },
    "mcp_approval_response": {"approval_request_id": "mcpr_1", "approve": True},
    "custom_tool_call": {"id": "ctc_1", "call_id": "call_2", "name": "sql", "input": "SELECT 1"},
    "custom_tool_call_output": {"call_id": "call_2", "output": "1"},
    "computer_call": {
        "id": "cu_1",
        "call_id": "call_3",
        "action": {"type": "click", "x": 1, "y": 2, "button": "left"},
        "actions": [{"type": "click", "x": 1, "y": 2, "button": "left"}],
        "pending_safety_checks": [],
        "status": "completed",
    },
    "computer_call_output": {"call_id": "call_3", "output": _SCREENSHOT},
    "local_shell_call": {"id": "l_1", "call_id": "call_4", "action": _EXEC, "status": "completed"},
    "local_shell_call_output": {"id": "l_1", "output": "a b"},
    "shell_call": {
        "id": "sh_1",
        "call_id": "call_5",
        "action": {"commands": ["ls", "pwd"], "timeout_ms": 1000},
        "status": "completed",
    },
    "shell_call_output": {"call_id": "call_5", "output": [{"stdout": "x"}]},
    "apply_patch_call": {
        "id": "ap_1",
        "call_id": "call_6",
        "operation": _PATCH,
        "status": "completed",
    },
    "apply_patch_call_output": {"call_id": "call_6", "status": "failed", "output": "no"},
    "tool_search_call": {"id": "ts_1", "call_id": "call_7", "arguments": {"q": "crm"}},
    "tool_search_output": {"call_id": "call_7", "tools": []},
    "additional_tools": {"role": "developer", "tools": []},
    "compaction": {"id": "cmp_1", "encrypted_content": "gAAA"},
    "program": {"id": "p_1", "call_id": "call_8", "code": "1", "fingerprint": "f"},
    "program_output": {"call_id": "call_8", "result": "1", "status": "completed"},
    "a_kind_of_next_year": {"id": "x_1", "deep": {"er": [1.50, None, "é\u2028"]}},
}
# kind: what stands in `tool_calls` as call_id, name and arguments
CALLS: dict[str, tuple[str | None, str | None, Any]] = {
    "function_call": ("call_1", "f", '{"a": 1.50}'),
    "web_search_call": (None, "weather; rain", ITEMS["web_search_call"]["action"]),
    "file_search_call": (None, "a; b", ["a", "b"]),
    "code_interpreter_call": (None, "cntr_1", "print(1)"),
    "image_generation_call": (None, None, "a grey cat"),
    "mcp_call": (None, "docs.find", '{"q":"x"}'),
    "custom_tool_call": ("call_2", "sql", "SELECT 1"),
    "computer_call": ("call_3", "click", ITEMS["computer_call"]["action"]),
    "local_shell_call": ("call_4", "exec", _EXEC),
    "shell_call": ("call_5", "ls; pwd", ITEMS["shell_call"]["action"]),
    "apply_patch_call": ("call_6", "update_file", _PATCH),
    "tool_search_call": ("call_7", None, {"q": "crm"}),
}


def test_no_kind_of_item_that_the_sdk_knows_is_missing_here() -> None:
    members = get_args(get_args(ResponseOutputItem)[0])
    known = {get_args(member.model_fields["type"].annotation)[0] for member in members}
    assert known <= set(ITEMS)


@pytest.mark.parametrize("mode", ["plain", "stream"])
@pytest.mark.parametrize("kind", ITEMS)
async def test_an_item_of_any_kind_is_kept_to_the_byte(
    complete: Complete, answer: Make, kind: str, mode: str
) -> None:
    item = {"type": kind, **ITEMS[kind]}
    before = {"type": "message", "content": []}
    written = json.dumps([before, item], ensure_ascii=False, indent=1)
    marked = json.dumps(answer(output="HERE"))
    body = marked.replace('"HERE"', written)
    step: dict[str, Any] = {"body": body.encode()}
    if mode == "stream":
        event = f'{{"type":"response.completed","response":{body}}}'
        step = {"events": ["".join(f"data: {line}\n" for line in event.split("\n")).encode()]}
    outcome = await complete([step], mode=mode)
    assert outcome.result.output == written
    calls = outcome.result.tool_calls
    assert [call.type for call in calls] == ([kind] if kind in CALLS else [])
    if kind in CALLS:
        call_id, name, arguments = CALLS[kind]
        (call,) = calls
        assert (call.position, call.call_id, call.name) == (1, call_id, name)
        assert call.status == item.get("status")
        assert json.loads(call.item) == item
        if isinstance(arguments, str):
            assert call.arguments == arguments
        else:
            assert json.loads(call.arguments) == arguments


@pytest.mark.parametrize(
    ("action", "name"),
    [
        ({"type": "search"}, "search"),
        ({"type": "search", "query": "a"}, "a"),
        ({"type": "search", "queries": ["a", "b"]}, "a; b"),
        ({"type": "open_page", "url": "https://x"}, "https://x"),
        ({"type": "open_page", "url": None}, "open_page"),
        ({"type": "find_in_page", "pattern": "p", "url": "https://x"}, "https://x"),
    ],
)
async def test_a_web_search_is_named_by_what_it_looked_for(
    complete: Complete, answer: Make, action: dict[str, Any], name: str
) -> None:
    for status in ("in_progress", "searching", "completed", "failed", "incomplete"):
        item = {"type": "web_search_call", "id": "ws_1", "status": status, "action": action}
        (call,) = (await complete([{"body": answer(output=[item])}])).result.tool_calls
        assert (call.name, call.status) == (name, status)


async def test_a_computer_call_of_several_actions_is_named_by_the_first(
    complete: Complete, answer: Make
) -> None:
    actions = [{"type": "move", "x": 1}, {"type": "click"}]
    item = {"type": "computer_call", "call_id": "c", "actions": actions}
    (call,) = (await complete([{"body": answer(output=[item])}])).result.tool_calls
    assert call.name == "move"
    assert json.loads(call.arguments) == actions


async def test_annotations_of_every_kind_are_citations(complete: Complete, answer: Make) -> None:
    notes = [
        {"type": "url_citation", "url": "u", "title": "t", "start_index": 1, "end_index": 5},
        {"type": "file_citation", "file_id": "f", "filename": "n", "index": 3},
        {
            "type": "container_file_citation",
            "container_id": "c",
            "file_id": "f",
            "filename": "n",
            "start_index": 0,
            "end_index": 2,
        },
        {"type": "file_path", "file_id": "f", "index": 4},
        {"type": "new_kind"},
    ]
    part = {"type": "output_text", "text": "hello", "annotations": notes}
    item = {"type": "message", "content": [part]}
    citations = (await complete([{"body": answer(output=[item])}])).result.citations
    assert [
        (note.type, note.url, note.title, note.file_id, note.start_index, note.end_index)
        for note in citations
    ] == [
        ("url_citation", "u", "t", None, 1, 5),
        ("file_citation", None, "n", "f", 3, None),
        ("container_file_citation", None, "n", "f", 0, 2),
        ("file_path", None, None, "f", 4, None),
        ("new_kind", None, None, None, None, None),
    ]


async def test_a_refusal_is_an_end_of_its_own_and_no_error(
    complete: Complete, answer: Make
) -> None:
    part = {"type": "refusal", "refusal": "I will not."}
    outcome = await complete([{"body": answer(output=[{"type": "message", "content": [part]}])}])
    assert (outcome.result.status, outcome.result.refusal) == ("completed", "I will not.")
    assert (outcome.ok, outcome.result.failure, len(outcome.attempts)) == (False, None, 1)


async def test_text_and_summaries_are_joined_over_all_items(
    complete: Complete, answer: Make
) -> None:
    def message(*texts: str) -> dict[str, Any]:
        parts = [{"type": "output_text", "text": text} for text in texts]
        return {"type": "message", "content": parts}

    summary = [{"type": "summary_text", "text": text} for text in ("a", "b")]
    thought = {"type": "reasoning", "summary": summary}
    output = [thought, message("1", "2"), thought, message("3")]
    outcome = await complete([{"body": answer(output=output)}])
    assert outcome.result.output_text == "123"
    assert outcome.result.reasoning_summary == "a\n\nb\n\na\n\nb"


async def test_arguments_are_checked_against_the_tool_of_their_name_and_namespace(
    complete: Complete, answer: Make
) -> None:
    def tool(kind: str) -> dict[str, Any]:
        schema = {"type": "object", "properties": {"a": {"type": kind}}, "required": ["a"]}
        return {"type": "function", "name": "f", "parameters": schema}

    tools = [tool("string"), {"type": "namespace", "name": "crm", "tools": [tool("integer")]}]
    call = {"type": "function_call", "name": "f", "call_id": "c", "arguments": '{"a": 1}'}
    output = [call, {**call, "namespace": "crm"}, {**call, "name": "unknown"}]
    body = {"model": "m", "input": "x", "tools": tools}
    outcome = await complete([{"body": answer(output=output)}], body)
    assert [call.arguments_valid for call in outcome.result.tool_calls] == [False, True, False]


@pytest.mark.parametrize("mode", ["plain", "stream"])
async def test_reasoning_that_is_given_in_full_has_a_column_of_its_own(
    complete: Complete, answer: Make, mode: str
) -> None:
    parts = [{"type": "reasoning_text", "text": text} for text in ("first", "", "second")]
    summary = [{"type": "summary_text", "text": "in short"}]
    items = [
        {"type": "reasoning", "summary": summary, "content": parts},
        {"type": "reasoning", "summary": [], "content": "third"},
        *answer()["output"],
    ]
    result = (await complete([{"body": answer(output=items)}], mode=mode)).result
    assert result.reasoning_text == "first\n\nsecond\n\nthird"
    assert (result.reasoning_summary, result.output_text) == ("in short", "forty-two")
    plain = (await complete([{"body": answer()}], mode=mode)).result
    assert plain.reasoning_text is None
