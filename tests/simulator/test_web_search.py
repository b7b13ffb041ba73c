"""Web search: calls, citations whose indexes are right, and what is billed besides."""

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from batchrun.simulator.replies import cite_pages, make_answer
from batchrun.simulator.requests import check_request, read_body
from batchrun.simulator.settings import SimulatorSettings

_TOOL = {"type": "web_search"}


def _answer(**fields: Any) -> dict[str, Any]:
    body = {"model": "gpt-4.1", "input": "hello", "tools": [_TOOL], **fields}
    asked = check_request(read_body(json.dumps(body).encode()))
    raw = make_answer(asked, SimulatorSettings(), 0, 1_700_000_000.5, 0.7).body
    Response.model_validate_json(raw, strict=True)
    answer: dict[str, Any] = json.loads(raw)
    return answer


def _searches(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for item in answer["output"] if item["type"] == "web_search_call"]


@pytest.mark.parametrize(
    "type_",
    ["web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11"],
)
def test_the_tool_of_any_date_is_used_and_its_pages_are_cited(type_: str) -> None:
    for row in range(20):
        tools = [{"type": type_}]
        answer = _answer(input=f"row {row}", tools=tools, tool_choice="required")
        *calls, message = answer["output"]
        assert calls == _searches(answer)
        assert calls[0]["action"]["type"] == "search"
        assert calls[0]["action"]["query"] in calls[0]["action"]["queries"]
        (part,) = message["content"]
        assert part["annotations"]
        for mark in part["annotations"]:
            link = part["text"][mark["start_index"] : mark["end_index"]]
            assert link == f"([{mark['title']}]({mark['url']}))"


def test_searches_are_billed_and_opening_a_page_is_not() -> None:
    answers = [_answer(input=f"row {row}", tool_choice="required") for row in range(40)]
    kinds = {call["action"]["type"] for answer in answers for call in _searches(answer)}
    assert kinds == {"search", "open_page", "find_in_page"}
    for answer in answers:
        assert answer["tool_usage"]["web_search"]["num_requests"] == 1
    assert _answer(tool_choice="none")["tool_usage"]["web_search"]["num_requests"] == 0
    assert "tool_usage" not in _answer(tools=[])


def test_sources_are_sent_where_they_are_asked_for() -> None:
    assert "sources" not in _searches(_answer(tool_choice="required"))[0]["action"]
    action = _searches(_answer(tool_choice="required", include=["web_search_call.action.sources"]))[
        0
    ]["action"]
    assert all(source["type"] == "url" and source["url"] for source in action["sources"])


def test_the_model_decides_where_the_choice_is_its_own() -> None:
    used = sum(bool(_searches(_answer(input=f"row {row}"))) for row in range(60))
    assert 30 < used < 60
    assert not any(_searches(_answer(input=f"row {row}", tool_choice="none")) for row in range(20))
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [_TOOL]}
    assert _searches(_answer(tool_choice=allowed))


def test_structured_output_is_not_cited() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    format_ = {"type": "json_schema", "name": "a", "schema": schema}
    answer = _answer(text={"format": format_}, tool_choice="required")
    (part,) = answer["output"][-1]["content"]
    assert json.loads(part["text"])
    assert part["annotations"] == []
    assert _searches(answer)


def test_a_cut_text_keeps_the_citations_that_it_still_holds() -> None:
    for row in range(30):
        answer = _answer(input=f"row {row}", tool_choice="required", max_output_tokens=60)
        for item in answer["output"]:
            for part in item.get("content", ()):
                assert all(m["end_index"] <= len(part["text"]) for m in part["annotations"])


@given(st.text(), st.integers(0, 99))
def test_indexes_count_characters_of_any_text(text: str, seed: int) -> None:
    pages = [{"url": "https://a.example/1", "title": "Ein Café 🙂"}]
    made, marks = cite_pages(text, pages, Random(seed))
    for mark in marks:
        link = made[mark["start_index"] : mark["end_index"]]
        assert link == "([Ein Café 🙂](https://a.example/1))"
