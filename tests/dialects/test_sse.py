import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from batchrun.dialects.sse import Event, SseParser


def _events(*pieces: bytes) -> list[Event]:
    parser = SseParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.end()


def test_an_event_has_a_name_and_data() -> None:
    assert _events(b'event: a\ndata: {"x":1}\n\n') == [Event("a", b'{"x":1}')]


def test_a_missing_event_line_is_an_empty_name() -> None:
    assert _events(b"data: 1\n\n") == [Event("", b"1")]


def test_a_name_does_not_outlive_its_event() -> None:
    assert _events(b"event: a\ndata: 1\n\ndata: 2\n\n") == [Event("a", b"1"), Event("", b"2")]


def test_comments_and_unknown_fields_are_passed_over() -> None:
    text = b": PING\n\nid: 7\nretry: 5\ndata: 1\nwhatever\n\n: PING\n\n"
    assert _events(text) == [Event("", b"1")]


def test_several_data_lines_make_one_event() -> None:
    assert _events(b"data: a\ndata: b\n\n") == [Event("", b"a\nb")]


def test_lines_end_in_crlf_cr_or_lf() -> None:
    for end in (b"\n", b"\r\n", b"\r"):
        text = b"event: a" + end + b"data: 1" + end + end + b"data: 2" + end + end
        assert _events(text) == [Event("a", b"1"), Event("", b"2")]


def test_a_bom_is_no_part_of_the_first_line() -> None:
    assert _events(b"\xef\xbb\xbfdata: 1\n\n") == [Event("", b"1")]


def test_a_last_event_without_its_blank_line_is_not_lost() -> None:
    assert _events(b"data: 1\n\ndata: 2") == [Event("", b"1"), Event("", b"2")]
    assert _events(b"data: 1\n\ndata: 2\n") == [Event("", b"1"), Event("", b"2")]


def test_an_event_of_many_megabytes_in_small_pieces() -> None:
    text = b"data: " + b"x" * 20_000_000 + b"\n\n"
    pieces = [text[start : start + 4096] for start in range(0, len(text), 4096)]
    assert [len(event.data) for event in _events(*pieces)] == [20_000_000]


_LINES = st.sampled_from(
    [
        "data: " + json.dumps({"type": "é中", "delta": "🙂"}, ensure_ascii=False),
        "data:x",
        "event: response.created",
        ": PING",
        "",
        "id: 4",
        "data",
    ]
)


@given(
    st.lists(st.tuples(_LINES, st.sampled_from(["\n", "\r\n", "\r"]))),
    st.lists(st.integers(0, 400)),
)
def test_the_events_are_the_same_for_any_chunking(
    lines: list[tuple[str, str]], cuts: list[int]
) -> None:
    text = "".join(line + end for line, end in lines).encode()
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(places)]
    assert _events(*pieces) == _events(text)
    assert _events(*(bytes([byte]) for byte in text)) == _events(text)
