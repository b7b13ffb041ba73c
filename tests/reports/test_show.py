"""One row as a person reads it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.errors import ErrorKind
from batchrun.records import Failure, Outcome
from batchrun.reports.show import Turn, render_row, turns_of
from batchrun.store.columns import own_columns
from batchrun.store.reading import find_row

# Columns that are not shown: others say the same, or nothing fills them yet.
_LEFT_OUT = {
    *("output_text", "reasoning_summary", "reasoning_text", "citations", "tool_call_count"),
    *("total_tokens", "usage", "finished_at", "request_hash"),
    *("api", "endpoint_name", "embedding", "turn_count"),
}
_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("type", "role", "content", "text", "input", "summary", "name", "arguments"),
                    *("instructions", "output", "call_id", "refusal", "prompt"),
                ]
            ),
            inner
            | st.sampled_from(["message", "reasoning", "function_call", "refusal", "output_text"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(request=_JSON, output=_JSON)
@settings(max_examples=60, deadline=None)
def test_any_json_has_turns(request: object, output: object) -> None:
    for turn in turns_of(json.dumps(request), json.dumps(output)):
        assert type(turn.who) is str
        assert type(turn.text) is str


def test_what_is_no_json_and_what_is_not_there_has_none() -> None:
    assert turns_of(None, None) == []
    assert turns_of("no JSON", "") == []


def test_a_conversation_with_tools_reads_in_order() -> None:
    request = {
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "function_call", "name": "look", "call_id": "c1", "arguments": '{"a":1}'},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {
                "role": "user",
                "content": [{"type": "input_image", "image_url": "data:" + "x" * 999}],
            },
        ],
    }
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Rain."}]},
        {"type": "message", "content": [{"type": "refusal", "refusal": "No."}]},
        {"type": "web_search_call", "id": "w"},
    ]
    turns = turns_of(json.dumps(request), json.dumps(output))
    image = turns.pop(4)
    assert image.who == "user"
    assert len(image.text) < 400
    assert turns == [
        Turn("instructions", "Be brief."),
        Turn("user", "Weather?"),
        Turn("assistant calls look (c1)", '{"a":1}'),
        Turn("result of c1", "rain"),
        Turn("reasoning", "Hm."),
        Turn("assistant", "Rain."),
        Turn("assistant refuses", "No."),
        Turn("web_search_call", '{"type": "web_search_call", "id": "w"}'),
    ]


@pytest.mark.parametrize("number", [0, 2, 4, 5, 6, 7, 11])
def test_a_row_of_each_outcome_reads_well_and_is_harmless(
    number: int, run: Path, outcome: Callable[..., Outcome]
) -> None:
    expected = outcome(number)
    (row,) = find_row(run, expected.request.custom_id)
    text = render_row(row)
    lines = text.splitlines()
    assert lines[0].endswith(f": row {number} of prompts.jsonl")
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert f"    level: {-number}" in lines
    assert f"  Question {number}?" in lines
    count = len(expected.attempts)
    said = "1 attempt in " if count == 1 else f"{count} attempts in "
    assert any(line.startswith(said) for line in lines)
    assert sum("━" in line for line in lines) == count


def test_the_reason_is_shown_where_something_is_missing(
    tmp_path: Path, write: Callable[..., Path], outcome: Callable[..., Outcome]
) -> None:
    lost = Failure(ErrorKind.INVALID_ROW, "not JSON", status="invalid")
    bare = msgspec.structs.replace(outcome(0).request, body=b"")
    failed = outcome(5)
    free = tuple(msgspec.structs.replace(one, cost_usd=0.0) for one in failed.attempts)
    refused = msgspec.structs.replace(failed, cost_usd=0.0, priced_as=None, attempts=free)
    path = write(tmp_path / "run", [outcome(0, request=bare, result=lost, attempts=()), refused])
    invalid, paid_nothing = (render_row(find_row(path, name)[0]) for name in ("q0", "q5"))
    assert "(there is no request: none can be made of the row)" in invalid
    assert "store_request" not in invalid
    assert "  cost:     $0.00\n" in paid_nothing


def test_the_time_line_shows_a_backoff(run: Path) -> None:
    (row,) = find_row(run, "q2")
    first, second = [line for line in render_row(row).splitlines() if "━" in line]
    assert "429 rate_limit: Wait" in first
    assert first.strip().startswith("━")
    assert second.strip().startswith("·")
    assert "retry at 1.00 s" in second


class _Read(dict[str, Any]):
    """A row that knows which of its columns were asked for."""

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(row)
        self.columns: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.columns.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.columns.add(name)
        return super().get(name, default)


def test_each_column_is_shown_or_left_out_on_purpose(run: Path) -> None:
    shown: set[str] = set()
    for name in ("q0", "q4", "q5"):  # ok, refused, failed
        row = _Read(find_row(run, name)[0])
        render_row(row)
        shown |= row.columns
    assert shown | _LEFT_OUT == {*own_columns(), "tool_calls"}
    assert not shown & _LEFT_OUT
