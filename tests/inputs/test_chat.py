import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.inputs.forms.chat import (
    batch_body,
    chat_settings,
    input_items,
    is_batch_line,
)
from batchrun.inputs.forms.tools import flat_choice, flat_tools
from batchrun.inputs.rows import RowProblem, decode

Read = Callable[..., Any]
Write = Callable[..., Path]

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def test_a_conversation_with_tools_becomes_input_items() -> None:
    items = input_items(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "Really."}]},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            {"role": "assistant", "content": [{"type": "text", "text": "Sunny."}]},
            {"role": "assistant", "content": "Anything else?", "refusal": None},
        ]
    )
    assert items == [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "input_text", "text": "Really."}]},
        {"role": "user", "content": "Weather?"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Sunny."}]},
        {"role": "assistant", "content": "Anything else?"},
    ]


def test_parts_of_all_kinds_are_converted() -> None:
    (item,) = input_items(
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look"},
                    {"type": "image_url", "image_url": {"url": "http://x/a.png", "detail": "low"}},
                    {"type": "image_url", "image_url": "http://x/b.png"},
                    {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
                    {"type": "file", "file": {"file_id": "f1", "filename": "a.pdf"}},
                    {"type": "input_text", "text": "as it is"},
                    "bare text",
                ],
            }
        ]
    )
    assert item["content"] == [
        {"type": "input_text", "text": "Look"},
        {"type": "input_image", "image_url": "http://x/a.png", "detail": "low"},
        {"type": "input_image", "image_url": "http://x/b.png"},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "input_file", "file_id": "f1", "filename": "a.pdf"},
        {"type": "input_text", "text": "as it is"},
        {"type": "input_text", "text": "bare text"},
    ]


def test_a_refusal_is_converted() -> None:
    user = {"role": "user", "content": "x"}
    refusal = {"type": "refusal", "refusal": "No."}
    for message, parts in (
        ({"content": None, "refusal": "No."}, [refusal]),
        ({"content": [refusal]}, [refusal]),
        (
            {"content": "Well.", "refusal": "No."},
            [{"type": "output_text", "text": "Well."}, refusal],
        ),
    ):
        items = input_items([user, {"role": "assistant", **message}])
        assert items[1] == {"role": "assistant", "content": parts}


def test_arguments_as_an_object_become_text() -> None:
    call = {"function": {"name": "f", "arguments": {"città": "Roma"}}}
    items = input_items([{"role": "assistant", "tool_calls": [call]}])
    assert items[0]["arguments"] == '{"città":"Roma"}'
    assert items[0]["call_id"] == "call_1"


def test_results_without_ids_answer_the_calls_in_order() -> None:
    calls = [{"function": {"name": name, "arguments": "{}"}} for name in ("f", "g", "f")]
    items = input_items(
        [
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "name": "g", "content": "G"},
            {"role": "tool", "content": {"x": 1}},
            {"role": "tool", "content": [{"type": "text", "text": "F2"}]},
        ]
    )
    assert [item["type"] for item in items] == ["function_call"] * 3 + ["function_call_output"] * 3
    assert [(item["call_id"], item["output"]) for item in items[3:]] == [
        ("call_2", "G"),
        ("call_1", '{"x":1}'),
        ("call_3", [{"type": "input_text", "text": "F2"}]),
    ]


def test_the_older_function_call_is_converted_too() -> None:
    items = input_items(
        [
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "f", "arguments": "{}"},
            },
            {"role": "function", "name": "f", "content": "done"},
        ]
    )
    assert [item["type"] for item in items] == ["function_call", "function_call_output"]
    assert items[0]["call_id"] == items[1]["call_id"]


def test_custom_tools_are_called_and_answered() -> None:
    call = {"id": "c", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}
    items = input_items(
        [
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "1"},
        ]
    )
    assert items == [
        {"type": "custom_tool_call", "call_id": "c", "name": "sql", "input": "select 1"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "1"},
    ]


def test_tools_become_flat_and_flat_ones_stay() -> None:
    chat = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
    flat = {"type": "function", "name": "g", "parameters": SCHEMA, "strict": True}
    hosted = {"type": "web_search"}
    assert flat_tools(json.dumps([chat, flat, hosted])) == [
        {"type": "function", "name": "f", "parameters": SCHEMA, "strict": False},
        flat,
        hosted,
    ]
    assert flat_tools([{"name": "f", "parameters": SCHEMA}], "functions") == [
        {"type": "function", "name": "f", "parameters": SCHEMA, "strict": False}
    ]


@pytest.mark.parametrize(
    ("choice", "flat"),
    [
        ("auto", "auto"),
        ({"type": "function", "function": {"name": "f"}}, {"type": "function", "name": "f"}),
        ('{"type":"function","function":{"name":"f"}}', {"type": "function", "name": "f"}),
        ({"type": "function", "name": "f"}, {"type": "function", "name": "f"}),
        ({"name": "f"}, {"type": "function", "name": "f"}),
        ({"type": "web_search"}, {"type": "web_search"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [{"type": "function", "function": {"name": "f"}}],
                },
            },
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "f"}],
            },
        ),
    ],
)
def test_tool_choices_become_flat(choice: Any, flat: Any) -> None:
    assert flat_choice(choice) == flat


@pytest.mark.parametrize(
    ("form", "flat"),
    [
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
            {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True},
        ),
        ({"type": "json_object"}, {"type": "json_object"}),
        ('{"type": "text"}', {"type": "text"}),
        ("json_object", {"type": "json_object"}),
    ],
)
def test_response_formats_become_text_formats(form: Any, flat: Any) -> None:
    assert chat_settings({"response_format": form}) == {"text": {"format": flat}}


def test_limits_on_tokens_become_one(write: Write, read: Read) -> None:
    assert chat_settings({"max_tokens": 5}) == {"max_output_tokens": 5}
    assert chat_settings({"max_tokens": 5, "max_completion_tokens": 7.0}) == {
        "max_output_tokens": 7
    }
    _, rows = read(write({"prompt": "a", "max_tokens": 5}, {"prompt": "a", "max_tokens": "five"}))
    assert rows[0].max_output_tokens == 5
    assert '`max_tokens` is "five"' in rows[1].message


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("no json", "`messages` is text that holds no JSON"),
        ({}, "must be a list"),
        ([], "is empty"),
        (["x"], r"messages\[0\] must be an object"),
        ([{"role": "user"}], r"messages\[0\] has no `content`"),
        ([{"role": "robot", "content": "x"}], 'the role "robot"'),
        ([{"role": ["user"], "content": "x"}], "the role"),
        ([{"role": "user", "content": 5}], "content must be text or a list"),
        ([{"role": "user", "content": [{"type": "video"}]}], 'the type "video"'),
        ([{"role": "user", "content": [{"type": ["x"]}]}], "the type"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"a": 1}}]}], "no `url`"),
        (
            [{"role": "assistant", "content": [{"type": "image_url", "image_url": "x"}]}],
            "assistant",
        ),
        ([{"role": "assistant"}], "neither `content` nor `tool_calls`"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "is not a tool call"),
        ([{"role": "assistant", "tool_calls": {"a": 1}}], "must be a list"),
        ([{"role": "tool", "content": "x"}], "no call waits for a result"),
    ],
)
def test_what_cannot_be_converted_is_named_in_the_problem(messages: Any, message: str) -> None:
    with pytest.raises(RowProblem, match=message):
        input_items(messages)


WORDS = st.sampled_from(
    [
        "role",
        "content",
        "type",
        "text",
        "user",
        "assistant",
        "tool",
        "function",
        "name",
        "custom",
        "tool_calls",
        "image_url",
        "json_schema",
        "arguments",
        "allowed_tools",
        "tools",
        "tool_call_id",
    ]
)
ANY = st.recursive(
    st.none() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=20,
)


@settings(deadline=None)
@given(ANY, ANY, ANY)
def test_any_json_is_converted_or_a_problem(one: Any, two: Any, three: Any) -> None:
    for convert in (
        lambda: input_items([one, two, three]),
        lambda: flat_tools([one, two, three]),
        lambda: flat_choice(one),
        lambda: chat_settings({"tools": one, "response_format": two, "function_call": three}),
    ):
        with suppress(RowProblem):  # anything else escapes
            convert()


def test_only_columns_that_are_asked_for_are_sent_besides(write: Write, read: Read) -> None:
    row = {
        "messages": [{"role": "user", "content": "x"}],
        "temperature": 0.5,
        "model": "maker",
        "top_p": 1,
    }
    survey, rows = read(write(row), send=("temperature",))
    assert json.loads(rows[0].body) == {
        "input": [{"role": "user", "content": "x"}],
        "temperature": 0.5,
        "model": "m",
    }
    assert survey.carried == ("model", "top_p")
    assert [column.name for column in survey.layout.columns] == ["model_input", "top_p"]
    assert rows[0].carried == ("maker", 1)


BODY = {"model": "own", "input": "hello", "unknown_field": {"x": None}, "temperature": None}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_the_whole_body_is_sent_and_defaults_fill_what_it_leaves_out(
    write: Write, read: Read
) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": BODY, "tag": 1}
    survey, rows = read(write(line), {"model": "default", "temperature": 0.5, "top_p": 0.1})
    assert json.loads(rows[0].body) == {**BODY, "top_p": 0.1}
    assert list(json.loads(rows[0].body)) == [*BODY, "top_p"]
    assert (rows[0].custom_id, rows[0].model, rows[0].carried) == ("a", "own", (1,))
    assert (survey.sent, survey.carried) == (("body",), ("tag",))


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.text(), JSON, max_size=6))
def test_any_json_passes_untouched(body: dict[str, Any]) -> None:
    line = json.dumps({"body": body}).encode()
    assert batch_body(decode(line)) == decode(json.dumps(body).encode())


def test_a_body_may_be_json_as_text(write: Write, read: Read) -> None:
    _, rows = read(write({"body": json.dumps(BODY)}))
    assert json.loads(rows[0].body) == BODY


def test_stream_and_background_are_dropped(write: Write, read: Read) -> None:
    _, rows = read(write({"body": {**BODY, "stream": True, "background": True}}))
    assert json.loads(rows[0].body) == BODY


def test_text_called_body_is_no_batch_line_unless_it_is_meant(write: Write, read: Read) -> None:
    assert not is_batch_line({"body": "Dear all", "prompt": "Summarize"})
    _, rows = read(write({"body": "Dear all", "prompt": "Summarize"}, {"body": "Dear all"}))
    assert rows[0].carried == ("Dear all",)
    assert "--prompt '{{ body }}'" in rows[1].message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"url": "/v1/embeddings", "body": {}}, "sends to /v1/responses alone, and converts what"),
        ({"url": 5, "body": {}}, "`url` is 5"),
        ({"method": "GET", "body": {}}, "must be POST"),
        ({"url": "/v1/responses", "body": "{"}, "text that holds no request"),
        ({"url": "/v1/responses", "body": [1]}, "must be an object"),
    ],
)
def test_a_batch_line_that_is_no_request_is_a_problem(line: dict[str, Any], message: str) -> None:
    assert is_batch_line(line)
    with pytest.raises(RowProblem, match=message):
        batch_body(line)


def test_a_chat_body_for_the_wrong_address_is_a_problem_with_a_hint(
    write: Write, read: Read
) -> None:
    _, rows = read(write({"url": "/v1/responses", "body": {"model": "m", "messages": []}}))
    assert "at the top level of the row" in rows[0].message
