import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.limits import tuning
from batchrun.limits.answer_sizes import (
    AnswerSizes,
    input_size,
    is_bounded,
    measure,
    tier_asked,
)
from batchrun.records import Largest


def body(**fields: Any) -> bytes:
    return msgspec.json.encode({"model": "m", "input": "hello", **fields})


def item(**part: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "input_text", "text": "hello"}, part]}]


def test_before_any_answer_the_request_s_bound_is_expected_or_a_stated_number() -> None:
    sizes = AnswerSizes()
    assert sizes.expected_output(None) == tuning.FIRST_OUTPUT
    assert sizes.expected_output(1_000) == 1_000
    assert sizes.largest_output(None) == tuning.FIRST_MOST_OUTPUT
    assert sizes.largest_output(1_000) == 1_000


@given(st.lists(st.integers(0, 5_000), min_size=1, max_size=600))
def test_the_expectation_is_a_high_quantile_of_the_last_answers(outputs: list[int]) -> None:
    sizes = AnswerSizes()
    for tokens in outputs:
        sizes.record(tokens)
    expected, recent = sizes.expected_output(None), []
    for left_out in range(len(outputs[-256:]) // tuning.RENEWED + 1):  # since it was calculated
        last = sorted(outputs[: len(outputs) - left_out][-256:])
        recent.append(last[math.ceil(0.95 * len(last)) - 1])
    assert expected in recent
    assert sizes.expected_output(100) == min(100, expected)
    assert sizes.largest_output(None) == (max(outputs) or tuning.FIRST_MOST_OUTPUT)
    assert sizes.largest_output(100) == 100


def test_an_answer_without_a_count_changes_nothing() -> None:
    sizes = AnswerSizes()
    sizes.record(None)
    assert sizes.expected_output(None) == tuning.FIRST_OUTPUT
    sizes.record(-5)
    assert sizes.expected_output(None) == 0


def test_text_with_a_bound_on_the_output_is_bounded() -> None:
    assert is_bounded(body(), 100)
    assert not is_bounded(body(), None)
    assert measure(body()).text_bytes == len(body())


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tools": None},
        {"tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "c"}]},
        {"prompt": None, "conversation": None, "previous_response_id": None},
        {"input": 'they wrote "input_image" and {"type":"input_file"}'},
        {"metadata": {"prompt": "p-1"}},
        {
            "tools": [
                {"type": "function", "name": "f", "parameters": {"properties": {"prompt": {}}}}
            ]
        },
    ],
)
def test_what_stands_in_the_body_as_text_is_bounded(fields: dict[str, Any]) -> None:
    assert is_bounded(body(**fields), 100)


@pytest.mark.parametrize(
    "fields",
    [
        {"input": item(type="input_image", image_url="https://example.test/a.png")},
        {"input": item(type="input_file", file_id="file-1")},
        {"input": item(type="input_audio", input_audio={"data": "AAAA", "format": "wav"})},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot"}}]},
        {"tools": [{"type": "function", "name": "f"}, {"type": "web_search"}]},
        {"tools": [{}]},
        {"tools": {"type": "function"}},
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"conversation": {"id": "conv_1"}},
        {"prompt": {"id": "pmpt_1"}},
    ],
)
def test_what_the_body_only_refers_to_is_not_bounded(fields: dict[str, Any]) -> None:
    assert not is_bounded(body(**fields), 100)


def test_a_body_that_cannot_be_read_is_not_bounded() -> None:
    assert not is_bounded(b'{"tools":[' + b"[" * 5_000, 100)
    assert not is_bounded(b'{"tools":"\xff"}', 100)


def test_answers_to_earlier_commands_count_in_what_is_reserved_alone() -> None:
    sizes = AnswerSizes(Largest(input_tokens=700, output_tokens=90))
    assert sizes.largest_output(None) == 90
    assert sizes.largest_input(measure(body(input=item(type="input_image")))) >= 700
    assert sizes.expected_output(None) == tuning.FIRST_OUTPUT


def test_the_input_reserved_for_is_the_bytes_where_they_bound_it() -> None:
    sizes = AnswerSizes()
    sizes.record(10, 50_000)
    assert sizes.largest_input(measure(body())) == len(body())


def test_the_input_reserved_for_is_what_answers_took_where_bytes_say_nothing() -> None:
    sizes = AnswerSizes()
    picture = "data:image/png;base64," + "A" * 100_000
    size = measure(body(input=item(type="input_image", image_url=picture)))
    assert size.text_bytes < 300
    assert sizes.largest_input(size) == tuning.FIRST_UNSEEN_INPUT
    sizes.record(10, 1_500)
    sizes.record(10, 900)
    assert sizes.largest_input(size) == 1_500
    long = measure(body(input="x" * 9_000, tools=[{"type": "web_search"}]))
    assert sizes.largest_input(long) == long.text_bytes > 9_000


@given(st.lists(st.sampled_from(['"data:', '"', "AAAA", "\\", "data:", "x"])))
def test_measuring_ends_whatever_the_bytes(pieces: list[str]) -> None:
    data = "".join(pieces).encode() + b'"input_image"'
    assert 0 <= measure(data).text_bytes <= len(data)
    whole = json.dumps("".join(pieces)).encode()
    assert measure(whole).text_bytes == len(whole)


def test_the_tier_that_a_body_names_is_read() -> None:
    assert tier_asked(b'{"input":"a","service_tier":"priority"}') == "priority"
    assert tier_asked(b'{"input":"say \\"service_tier\\":\\"flex\\""}') is None
    for body in (b"{}", b'{"service_tier":null}', b'{"service_tier":4}', b'{"service_tier"', b""):
        assert tier_asked(body) is None


def picture(size: int = 100_000, **part: Any) -> bytes:
    url = "data:image/png;base64," + "A" * size
    return body(input=item(type="input_image", image_url=url, **part))


def tokens_of(sizes: AnswerSizes, data: bytes) -> int:
    return sizes.expected_input(data, sizes.size_of(data))


def answered(sizes: AnswerSizes, data: bytes, tokens: int) -> None:
    sizes.record_input(data, sizes.size_of(data), tokens)


def test_tokens_of_images_are_what_answers_of_this_run_needed() -> None:
    sizes = AnswerSizes()
    data = picture(1_000_000)
    text = (len(data) - 1_000_022) // 4
    assert text <= tokens_of(sizes, data) - tuning.FIRST_UNSEEN_INPUT <= text + 10
    answered(sizes, data, text + 800)
    assert abs(tokens_of(sizes, data) - text - 800) <= 10
    two = body(input=item(type="input_image", image_url="data:," + "A" * 9_000) * 2)
    assert 1_600 <= tokens_of(sizes, two) <= 1_700
    for tokens in 2 * list(range(100)):
        answered(sizes, data, text + tokens)
    assert text + 90 <= tokens_of(sizes, data) <= text + 110  # 95 % of the last


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_file", "filename": "a.pdf", "file_data": "JVBERi0x" * 10_000},
        {"type": "input_file", "file_data": "data:application/pdf;base64," + "J" * 80_000},
        {"type": "input_audio", "input_audio": {"data": "UklGR" * 16_000, "format": "wav"}},
    ],
)
def test_files_and_sounds_are_no_text_either(part: dict[str, Any]) -> None:
    size = input_size(body(input=item(**part)))
    assert size.parts == 1
    assert size.text_bytes < 300


def test_a_short_body_is_text_until_an_answer_needed_more_tokens_than_it_has_bytes() -> None:
    sizes = AnswerSizes()
    link = body(input=item(type="input_image", image_url="https://example.test/a.png"))
    assert sizes.size_of(link) is None
    assert tokens_of(sizes, link) == len(link) // 4
    answered(sizes, body(), 50)
    answered(sizes, link, 30)
    assert sizes.size_of(link) is None
    answered(sizes, link, 1_500)
    assert 1_480 <= tokens_of(sizes, link) <= 1_520
    assert tokens_of(sizes, body()) == len(body()) // 4


def test_long_text_counts_by_its_bytes() -> None:
    sizes = AnswerSizes()
    answered(sizes, picture(), 900)
    text = body(input="x" * 9_000)
    answered(sizes, text, 3_000)
    assert tokens_of(sizes, text) == len(text) // 4
    quoted = body(input='"type":"input_image","image_url":"data:' + "A" * 9_000)
    assert tokens_of(sizes, quoted) == len(quoted) // 4
