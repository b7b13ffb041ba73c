from random import Random

from hypothesis import given
from hypothesis import strategies as st

from batchrun.simulator import sse
from batchrun.simulator.kinds import Quirk

_FRAMES = st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=80)


@given(_FRAMES, st.integers(0, 3), st.floats(0, 2))
def test_bursts_hold_everything_in_order_and_end_with_the_latency(
    frames: list[bytes], opening: int, latency_s: float
) -> None:
    planned = list(sse.bursts(frames, opening, latency_s))
    assert b"".join(data for _, data in planned) == b"".join(frames)
    times = [at_s for at_s, _ in planned]
    assert times == sorted(times)
    assert times[-1] == latency_s
    assert len(planned) <= 21


@given(st.binary(), st.integers(0, 9))
def test_cuts_joined_are_what_was_cut(data: bytes, seed: int) -> None:
    pieces = list(sse.cuts(data, Random(seed)))
    assert b"".join(pieces) == data
    assert all(pieces)


def test_an_event_is_a_name_a_line_of_data_and_a_blank_line() -> None:
    event = {"type": "response.queued", "sequence_number": 1}
    assert sse.frames([event], ()) == [
        b'event: response.queued\ndata: {"type":"response.queued","sequence_number":1}\n\n'
    ]


def test_what_ends_a_stream_is_left_out_where_a_fault_ends_it() -> None:
    event = {"type": "a"}
    whole = b'event: a\ndata: {"type":"a"}\n\n'
    assert sse.frames([event], (Quirk.DONE,)) == [whole + b"data: [DONE]\n\n"]
    assert sse.frames([event], (Quirk.DONE,), is_whole=False) == [whole]
    assert sse.frames([event], (Quirk.NO_LAST_BLANK,)) == [whole[:-1]]
