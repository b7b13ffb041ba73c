import hashlib
import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.simulator.errors import ApiError
from batchrun.simulator.requests import check_request, read_body

_FUNCTION = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def _body(**fields: Any) -> bytes:
    return json.dumps({"model": "gpt-4.1", "input": "hello", **fields}).encode()


def _refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        check_request(read_body(_body(**fields)))
    return caught.value


def test_the_key_is_the_hash_of_sorted_json_without_stream_and_background() -> None:
    body = {"model": "m", "input": [{"role": "user", "content": "é"}], "metadata": {"b": "1"}}
    sorted_json = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    expected = hashlib.sha256(sorted_json.encode()).hexdigest()
    for sent in (
        body,
        dict(reversed(body.items())),
        {**body, "stream": False},
        {**body, "background": True, "stream": True},
    ):
        assert read_body(json.dumps(sent).encode()).key.hex() == expected


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=5))
def test_spaces_and_order_do_not_change_the_key(fields: dict[str, str]) -> None:
    there = json.dumps(fields).encode()
    back = json.dumps(dict(reversed(fields.items())), indent=2, ensure_ascii=False).encode()
    assert read_body(there).key == read_body(back).key


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"hello",
        b"[1]",
        b"null",
        b'{"a":NaN}',
        b'{"a":1e400}',
        b'{"a":1} {}',
        b'{"a":"\xff"}',
        b"[" * 100_000,
        b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    ],
)
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read_body(data)
    assert caught.value.status == 400
    assert caught.value.message.startswith("We could not parse the JSON body of your request")
    assert set(json.loads(caught.value.render())["error"]) == {"message", "type", "param", "code"}


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(ApiError):
        assert len(read_body(data).key) == 32


def test_lone_surrogates_and_large_numbers_are_taken() -> None:
    assert read_body(b'{"input":"\\ud83d"}').fields == {"input": "?"}
    assert read_body(b'{"n":123456789012345678901234567890}').key


@pytest.mark.parametrize(
    ("fields", "code", "param", "message"),
    [
        ({"model": None}, "missing_required_parameter", "model", "'model'"),
        ({"input": None}, "missing_required_parameter", "input", "'input'"),
        ({"model": 3}, "invalid_type", "model", "expected a string, but got an integer"),
        ({"input": 3}, "invalid_type", "input", "one of a string or array of objects"),
        ({"input": ["x"]}, "invalid_type", "input[0]", "an object, but got a string"),
        ({"input": [{"content": "x"}]}, "missing_required_parameter", "input[0].role", "role"),
        ({"input": [{"role": "robot", "content": "x"}]}, "invalid_value", "input[0].role", "robot"),
        ({"input": [{"role": "user"}]}, "missing_required_parameter", "input[0].content", ""),
        ({"input": [{"role": "user", "content": 1}]}, "invalid_type", "input[0].content", ""),
        ({"temperature": "hot"}, "invalid_type", "temperature", "a decimal"),
        ({"temperature": 3}, "integer_above_max_value", "temperature", "<= 2, but got 3"),
        ({"top_p": -0.5}, "decimal_below_min_value", "top_p", ">= 0"),
        ({"presence_penalty": 2.5}, "decimal_above_max_value", "presence_penalty", "<= 2"),
        ({"frequency_penalty": "x"}, "invalid_type", "frequency_penalty", "a decimal"),
        ({"max_output_tokens": 3}, "integer_below_min_value", "max_output_tokens", ">= 16"),
        ({"max_output_tokens": 20.5}, "invalid_type", "max_output_tokens", "got a decimal"),
        ({"max_output_tokens": True}, "invalid_type", "max_output_tokens", "got a boolean"),
        ({"parallel_tool_calls": 1}, "invalid_type", "parallel_tool_calls", "a boolean"),
        ({"messages": []}, "unsupported_parameter", "messages", "has moved to 'input'"),
        ({"max_tokens": 9}, "unsupported_parameter", "max_tokens", "'max_output_tokens'"),
        ({"bogus": 1}, "unknown_parameter", "bogus", "Unknown parameter: 'bogus'."),
        (
            {"background": True, "store": False},
            "unsupported_value",
            "store",
            "requires 'store' to be true",
        ),
        ({"truncation": "often"}, "invalid_value", "truncation", "'auto', 'disabled'"),
        ({"reasoning": {"effort": "huge"}}, "invalid_value", "reasoning.effort", "'minimal'"),
        ({"reasoning": {"summary": 3}}, "invalid_type", "reasoning.summary", "a string"),
        ({"text": {"verbosity": "x"}}, "invalid_value", "text.verbosity", "'low'"),
        ({"text": {"format": {}}}, "missing_required_parameter", "text.format.type", ""),
        ({"text": {"format": {"type": "xml"}}}, "invalid_value", "text.format.type", "xml"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x"}}},
            "missing_required_parameter",
            "text.format.schema",
            "",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "array"}}}},
            "invalid_json_schema",
            "text.format.schema",
            "response_format 'x'",
        ),
        ({"text": {"format": {"type": "json_object"}}}, None, "input", "the word 'json'"),
        ({"metadata": {"a": 1}}, "invalid_type", "metadata.a", "a string"),
        (
            {"metadata": {str(n): "" for n in range(17)}},
            "object_above_max_properties",
            "metadata",
            "17",
        ),
        (
            {"previous_response_id": "a", "conversation": "b"},
            "mutually_exclusive_parameters",
            None,
            "",
        ),
        ({"model": "o4-mini", "temperature": 1}, "unsupported_parameter", "temperature", "model"),
        ({"model": "gpt-6-astra", "top_p": 0.5}, "unsupported_parameter", "top_p", "model"),
        (
            {"model": "gpt-5-mini", "include": ["message.output_text.logprobs"]},
            "unsupported_parameter",
            "include",
            "logprobs are not supported with reasoning models",
        ),
        ({"model": "o3", "top_logprobs": 2}, "unsupported_parameter", "top_logprobs", "reasoning"),
        ({"tools": [3]}, "invalid_type", "tools[0]", "an object"),
        ({"tools": [{}]}, "missing_required_parameter", "tools[0].type", ""),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].name", ""),
        ({"tools": [{"type": "function", "name": "a.b"}]}, "invalid_value", "tools[0].name", ""),
        ({"tool_choice": "required"}, None, "tool_choice", "must be specified with 'tools'"),
        ({"tool_choice": "some"}, "invalid_value", "tool_choice", "'required'"),
        (
            {"tools": [_FUNCTION], "tool_choice": {"type": "function", "name": "other"}},
            None,
            "tool_choice",
            "'other' not found",
        ),
        (
            {"tools": [_FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "x"}},
            "invalid_value",
            "tool_choice.mode",
            "",
        ),
        (
            {
                "tools": [_FUNCTION],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "other"}],
                },
            },
            None,
            "tool_choice.tools[0]",
            "'other' not found",
        ),
    ],
)
def test_a_bad_request_is_refused_in_the_api_s_words(
    fields: dict[str, Any], code: str | None, param: str | None, message: str
) -> None:
    error = _refused(**fields)
    assert (error.status, error.type) == (400, "invalid_request_error")
    assert (error.code, error.param) == (code, param)
    assert message in error.message


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "dict"}, "got 'type: \"dict\"'"),
        ({}, "got 'type: \"None\"'"),
        ({"type": "object", "properties": {"a": {"type": "float"}}}, "'float' is not valid"),
        ({"type": "object", "properties": {"a": {"items": {"type": "any"}}}}, "'any'"),
        ({"type": "object", "properties": {"a": {"type": ["string", 3]}}}, "3 is not valid"),
        ({"type": "object", "properties": {"a": 3}}, "3 is not a schema"),
        ({"type": "object", "properties": ["a"]}, "is not valid for 'properties'"),
        ({"type": "object", "required": True}, "is not valid for 'required'"),
        ({"type": "object", "required": [1]}, "is not valid for 'required'"),
        ({"type": "object", "anyOf": [{"minimum": "3"}]}, "'3' is not valid for 'minimum'"),
    ],
)
def test_a_schema_that_is_none_is_refused(schema: dict[str, Any], message: str) -> None:
    error = _refused(tools=[{"type": "function", "name": "f", "parameters": schema}])
    assert (error.code, error.param) == ("invalid_function_parameters", "tools[0].parameters")
    assert error.message.startswith("Invalid schema for function 'f': ")
    assert message in error.message


@pytest.mark.parametrize("levels", [100, 480, 900, 985])
def test_a_deep_schema_is_taken_or_refused(levels: int) -> None:
    deep = '{"not":' * levels + "{}" + "}" * levels
    schema = f'{{"type":"object","properties":{{"a":{deep}}}}}'
    tool = f'{{"type":"function","name":"f","parameters":{schema}}}'
    body = f'{{"model":"m","input":"x","tools":[{tool}]}}'
    with suppress(ApiError):
        assert check_request(read_body(body.encode())).model == "m"


def test_properties_may_be_called_as_keywords_are() -> None:
    schema = {
        "type": "object",
        "properties": {"type": {"type": "string"}, "required": {"enum": [{"type": "dict"}]}},
    }
    check_request(read_body(_body(tools=[{"type": "function", "name": "f", "parameters": schema}])))


def test_an_unknown_model_is_404_where_the_models_are_known() -> None:
    body = read_body(_body(model="gpt-9"))
    assert check_request(body).model == "gpt-9"
    with pytest.raises(ApiError) as caught:
        check_request(body, models=("gpt-4.1",))
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_stored_context_takes_the_place_of_an_input() -> None:
    for fields in ({"prompt": {"id": "pmpt_1"}}, {"previous_response_id": "resp_1"}):
        check_request(read_body(_body(input=None, **fields)))


def test_nulls_and_hosted_tools_are_taken() -> None:
    nothing = dict.fromkeys(("stream", "background", "tools", "text", "temperature", "metadata"))
    check_request(read_body(_body(**nothing)))
    check_request(
        read_body(_body(tools=[{"type": "web_search"}], tool_choice={"type": "web_search"}))
    )


@pytest.mark.parametrize(
    ("model", "reasoning", "reasons"),
    [
        ("gpt-4.1", None, False),
        ("gpt-4.1", {"effort": "low"}, True),
        ("gpt-4.1", {"effort": "none"}, False),
        ("gpt-5-mini", None, True),
        ("openai/gpt-5", None, True),
        ("gpt-5.1", {"effort": "none"}, False),
        ("gpt-5.6-sol", None, True),
        ("gpt-5-chat-latest", None, False),
        ("gpt-6-astra", None, True),
        ("gpt-6.1-terra", None, True),
        ("vendor/gpt-6", None, True),
        ("gpt-6.1-terra", {"effort": "none"}, False),
        ("gpt-35-turbo", None, False),
        ("o3", None, True),
        ("o4-mini-2025-04-16", {}, True),
        ("gpt-4o", None, False),
    ],
)
def test_a_model_reasons_by_wish_or_by_name(
    model: str, reasoning: dict[str, Any] | None, reasons: bool
) -> None:
    assert check_request(read_body(_body(model=model, reasoning=reasoning))).reasons is reasons


def test_input_tokens_grow_with_the_input() -> None:
    short = check_request(read_body(_body(input="x" * 10))).input_tokens
    assert check_request(read_body(_body(input="x" * 4_010))).input_tokens == short + 1_000


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
    ),
    st.sampled_from(["tools", "tool_choice", "text", "reasoning", "input", "metadata", "include"]),
)
def test_any_json_in_a_parameter_is_taken_or_refused(value: Any, name: str) -> None:
    body = msgspec.json.encode({"model": "m", "input": "x", name: value})
    with suppress(ApiError):
        assert check_request(read_body(body)).model == "m"
