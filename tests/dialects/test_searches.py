import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.dialects.output_items import count_searches
from batchrun.records import NO_SEARCHES, Searches

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
