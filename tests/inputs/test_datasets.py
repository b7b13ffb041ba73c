"""Rows of public datasets and of chat requests, as requests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchrun.inputs.forms.tools import flat_tools

Read = Callable[..., Any]
Write = Callable[..., Path]

USER = {"role": "user", "content": "hi"}


def bodies(rows: list[Any]) -> list[Any]:
    return [json.loads(row.body) for row in rows]


def test_alpaca_rows_join_instruction_and_input(write: Write, read: Read) -> None:
    path = write(
        {"instruction": "Translate", "input": "hello", "output": "hallo"},
        {"instruction": "Name colours", "input": "", "output": "…"},
        {"instruction": "Sum", "input": None, "system": "Be brief", "history": [["a", "b"]]},
        {"instruction": "x", "input": [{"role": "user", "content": "own"}]},
    )
    survey, rows = read(path)
    assert dict(zip(survey.carried, rows[0].carried, strict=True))["output"] == "hallo"
    assert [one["input"] for one in bodies(rows)] == [
        "Translate\n\nhello",
        "Name colours",
        [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "Sum"},
        ],
        [{"role": "user", "content": "own"}],
    ]


def test_sharegpt_rows_become_conversations(write: Write, read: Read) -> None:
    talk = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "u"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "42"},
        {"from": "gpt", "value": "done"},
    ]
    path = write(
        {"conversations": talk},
        {"conversations": json.dumps(talk[1:2]), "system": "first", "max_tokens": 5},
        {"conversations": [{"from": "alien", "value": "x"}]},
    )
    _, rows = read(path)
    first, second = bodies(rows[:2])
    assert first["input"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"a":1}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "42"},
        {"role": "assistant", "content": "done"},
    ]
    assert second["input"][0] == {"role": "system", "content": "first"}
    assert second["max_output_tokens"] == 5
    assert 'conversations[0] is from "alien"; known are human' in rows[2].message


def test_xlam_rows_send_the_query_with_tools_that_the_api_takes(write: Write, read: Read) -> None:
    tool = {
        "name": "get.weather now",
        "description": "d",
        "parameters": {
            "city": {"type": "str", "description": "where"},
            "days": {"type": "List[int], optional", "default": None},
            "unit": {"type": "Union[str, int]", "default": "C"},
        },
    }
    _, rows = read(write({"query": "Oslo?", "tools": json.dumps([tool]), "answers": "[]"}))
    (body,) = bodies(rows)
    assert body["input"] == "Oslo?"
    assert body["tools"] == [
        {
            "type": "function",
            "name": "get_weather_now",
            "description": "d",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "where"},
                    "days": {"type": "array", "items": {"type": "integer"}, "default": None},
                    "unit": {"type": ["string", "integer"], "default": "C"},
                },
                "required": ["city"],
            },
            "strict": False,
        }
    ]


def test_rows_of_the_berkeley_leaderboard_fill_templates(write: Write, read: Read) -> None:
    """Turns of messages, and functions without a type, with types of Python, at any depth."""
    parameters = {
        "type": "dict",
        "properties": {
            "point": {"type": "tuple", "items": {"type": "float"}},
            "type": {"type": "any", "description": "a property that is called so"},
            "deep": {"type": "dict", "properties": {"list": {"type": "array"}}},
        },
        "required": ["point"],
    }
    row = {
        "id": "r1",
        "question": [[{"role": "user", "content": "one"}], [{"role": "user", "content": "two"}]],
        "function": [{"name": "geo.point", "description": "d", "parameters": parameters}],
    }
    request = {"model": "m", "input": "{{ question | sum(start=[]) }}", "tools": "{{ function }}"}
    _, rows = read(write(row), request)
    (body,) = bodies(rows)
    assert [message["content"] for message in body["input"]] == ["one", "two"]
    assert body["tools"] == [
        {
            "type": "function",
            "name": "geo_point",
            "description": "d",
            "parameters": {
                "type": "object",
                "properties": {
                    "point": {"type": "array", "items": {"type": "number"}},
                    "type": {"description": "a property that is called so"},
                    "deep": {"type": "object", "properties": {"list": {"type": "array"}}},
                },
                "required": ["point"],
            },
            "strict": False,
        }
    ]


def test_turns_that_are_sent_as_they_are_or_not_at_all_are_told_what_to_do(
    write: Write, read: Read
) -> None:
    turns = [[{"role": "user", "content": "one"}]]
    row = {"id": "a", "question": turns, "function": [{"name": "f", "parameters": {}}]}
    said = "{{ question | sum(start=[]) }}"
    survey, _ = read(write(row, {**row, "id": "b"}), {"model": "m"})
    assert all(one.message.endswith(f"--prompt '{said}'") for one in survey.problems)
    survey, _ = read(write(row), {"model": "m", "input": "{{ question }}"})
    assert "`input` is a list of lists" in survey.problems[0].message
    survey, _ = read(write(row), {"model": "m", "input": said})
    assert not survey.problems


def test_tools_of_anthropic_and_flat_ones_without_a_type_are_converted() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "function", "name": "f", "parameters": schema, "strict": False}
    assert flat_tools([{"name": "f", "input_schema": schema}]) == [wanted]
    assert flat_tools([{"name": "f", "type": "custom", "input_schema": schema}]) == [wanted]
    assert flat_tools([{"name": "f", "parameters": schema}]) == [wanted]
    for own in ({"type": "web_search"}, {"type": "function", "name": "f", "parameters": {}}):
        assert flat_tools([own]) == [own]


def test_chat_lines_of_batches_are_converted_with_their_settings(write: Write, read: Read) -> None:
    chat = {
        "model": "own",
        "messages": [{"role": "system", "content": "s"}, USER],
        "temperature": 0.5,
        "max_tokens": 7,
        "reasoning_effort": "low",
        "verbosity": "high",
        "response_format": {"type": "json_object"},
        "logprobs": True,
        "top_logprobs": 2,
        "metadata": {"a": "b"},
        "seed": 1,
        "n": 1,
        "user": None,
        "stream": True,
    }
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat}
    survey, rows = read(write(line, {"body": {"messages": [USER]}}))
    first, second = bodies(rows)
    assert first == {
        "model": "own",
        "input": [{"role": "system", "content": "s"}, USER],
        "temperature": 0.5,
        "max_output_tokens": 7,
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_object"}, "verbosity": "high"},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "metadata": {"a": "b"},
    }
    assert second == {"input": [USER], "model": "m"}
    assert any("seed, n (1 row): fields of chat requests" in one for one in survey.warnings)
    _, rows = read(write(line), send=("seed",))
    assert bodies(rows)[0]["seed"] == 1


@pytest.mark.parametrize(
    ("send", "row", "sent"),
    [
        (("max_tokens",), {"max_tokens": 5}, {"max_output_tokens": 5}),
        (("reasoning_effort",), {"reasoning_effort": "low"}, {"reasoning": {"effort": "low"}}),
        (
            ("functions", "function_call"),
            {"functions": [{"name": "f", "parameters": {}}], "function_call": {"name": "f"}},
            {
                "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": False}],
                "tool_choice": {"type": "function", "name": "f"},
            },
        ),
        (
            ("response_format", "text"),
            {"response_format": "json_object", "text": {"verbosity": "low"}},
            {"text": {"verbosity": "low", "format": {"type": "json_object"}}},
        ),
    ],
)
def test_chat_names_in_send_are_converted_once(
    write: Write, read: Read, send: tuple[str, ...], row: dict[str, Any], sent: dict[str, Any]
) -> None:
    _, rows = read(write({"q": "a", **row}), {"input": "{{ q }}", "model": "m"}, send=send)
    assert bodies(rows) == [{**sent, "input": "a", "model": "m"}]
    for form in ({"prompt": "a"}, {"input": "a"}):
        _, rows = read(write({**form, **row}), send=send)
        assert bodies(rows) == [{**sent, "input": "a", "model": "m"}]


def test_objects_of_the_job_are_merged_and_the_row_wins(write: Write, read: Read) -> None:
    request = {
        "model": "m",
        "reasoning": {"effort": "low", "summary": "auto"},
        "metadata": {"row": "{{ custom_id }}", "lost": "{{ gone }}"},
        "tool_choice": {"type": "function", "name": "f"},
    }
    row = {"custom_id": "a", "input": "x", "reasoning": {"effort": "high"}}
    row |= {"metadata": {"lost": "own"}, "tool_choice": {"type": "web_search"}}
    _, rows = read(write(row), request)
    (body,) = bodies(rows)
    assert body["reasoning"] == {"effort": "high", "summary": "auto"}
    assert body["metadata"] == {"lost": "own", "row": "a"}
    assert body["tool_choice"] == {"type": "web_search"}


def test_a_template_may_give_chat_messages_and_items(write: Write, read: Read) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    talk = [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
    ]
    own = [{"type": "message", "role": "user", "content": "x", "phase": "y"}]
    path = write({"talk": talk, "own": own, "text": json.dumps(talk[:1])})
    wanted = {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    _, rows = read(path, {"input": "{{ talk }}", "model": "m"})
    assert bodies(rows)[0]["input"] == [
        wanted,
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
    ]
    _, rows = read(path, {"input": "{{ own }}", "model": "m"})
    assert bodies(rows)[0]["input"] == own
    _, rows = read(path, {"input": "{{ text | fromjson }}", "model": "m"})
    assert bodies(rows)[0]["input"] == [wanted]


@pytest.mark.parametrize("value", [5, 0.5, "text", [1], {"x": 1}, True])
def test_a_column_named_row_leaves_the_row_reachable(write: Write, read: Read, value: Any) -> None:
    template = "{{ row['a name'] }} {{ row }}" if value is not True else "{{ row }}"
    request = {"input": template, "model": "m", "metadata": {"row": "{{ row }}"}}
    _, rows = read(write({"row": value, "a name": "A"}), request)
    (body,) = bodies(rows)
    assert body["metadata"]["row"] == value
    shown = value if type(value) is str else json.dumps(value, separators=(", ", ": "))
    assert body["input"] == (f"A {shown}" if value is not True else "True")


def test_no_message_shows_an_object_of_python(write: Write, read: Read) -> None:
    deep = {"a": None, "b": True}
    path = write(
        {"input": deep},
        {"messages": [{"role": deep, "content": "x"}]},
        {"prompt": "x", "max_tokens": deep},
        {"url": None, "method": deep, "body": {"input": "x"}},
        {"prompt": "x", "tools": deep},
        {"body": {"input": "x", "model": deep}},
        {"messages": {"long": "x" * 999}},
    )
    _, rows = read(path)
    for row in rows:
        assert "None" not in row.message
        assert "True" not in row.message
        assert "'" not in row.message
        assert len(row.message) < 400
    assert '{"a": null, "b": true}' in rows[0].message
