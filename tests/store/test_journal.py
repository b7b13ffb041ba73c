import io
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.errors import StoreError
from batchrun.records import Outcome
from batchrun.store.columns import SCHEMA_VERSION
from batchrun.store.journal import (
    HEAD_BYTES,
    Damage,
    Frame,
    Header,
    Segment,
    Torn,
    frame_of,
    read_outcomes,
    scan,
)

HEADER = Header(SCHEMA_VERSION, 1, ())
Make = Callable[..., Outcome]


def segment_of(path: Path, outcomes: list[Outcome]) -> list[int]:
    """Writes a segment; the offsets at which its frames begin, and its end."""
    segment = Segment(path, HEADER)
    offsets = [0]
    for outcome in outcomes:
        offsets.append(segment.bytes)
        segment.append([outcome])
    offsets.append(segment.bytes)
    segment.sync()
    segment.close()
    return offsets


def frames(data: bytes) -> list[Frame | Damage | Torn]:
    return list(scan(io.BytesIO(data)))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, answered: Make, failed: Make) -> bytes:
    path = tmp_path_factory.mktemp("journal") / "w0-000001.log"
    segment_of(path, [answered(0), failed(1), answered(2, calls=2), answered(3, text="é" * 40)])
    return path.read_bytes()


def test_what_was_appended_is_read_in_order(tmp_path: Path, answered: Make, failed: Make) -> None:
    outcomes = [answered(0, calls=1), failed(1), answered(2)]
    segment_of(tmp_path / "s", outcomes)
    with (tmp_path / "s").open("rb") as file:
        assert list(read_outcomes(file)) == outcomes


def test_a_cut_at_any_byte_loses_no_frame_but_the_torn_one(written: bytes) -> None:
    whole = frames(written)
    ends = [frame.offset for frame in whole[1:]] + [len(written)]
    for cut in range(len(written)):
        *kept, last = [*frames(written[:cut]), None]
        expected = [frame for frame, end in zip(whole, ends, strict=True) if end <= cut]
        at_an_end = cut == 0 or cut in ends
        if not at_an_end:
            assert last is None
            last = kept.pop()
            assert last == Torn(expected[-1].offset + len_of(expected[-1]) if expected else 0)
        assert kept == expected


def len_of(frame: Frame | Damage | Torn) -> int:
    assert isinstance(frame, Frame)
    return HEAD_BYTES + len(frame.payload)


def test_a_flipped_bit_costs_only_the_frame_it_is_in(written: bytes) -> None:
    whole = frames(written)
    dice = random.Random(5)
    for _ in range(3_000):
        at = dice.randrange(len(written))
        flipped = bytearray(written)
        flipped[at] ^= 1 << dice.randrange(8)
        hit = max(frame.offset for frame in whole if frame.offset <= at)
        expected = [
            Damage(frame.offset, len_of(frame)) if frame.offset == hit else frame for frame in whole
        ]
        assert frames(bytes(flipped)) == expected


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_garbage_over_a_segment_gives_no_wrong_frame(
    written: bytes, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(written)))
    end = data.draw(st.integers(start, len(written)))
    garbage = data.draw(st.binary(max_size=400))
    mangled = written[:start] + garbage + written[end:]
    payloads = [frame.payload for frame in frames(written) if isinstance(frame, Frame)]
    found = [piece.payload for piece in frames(mangled) if isinstance(piece, Frame)]
    assert all(payload in payloads for payload in found)
    before = [frame for frame in frames(written) if frame.offset + len_of(frame) <= start]
    assert frames(mangled)[: len(before)] == before


def test_damage_before_a_far_frame_is_one_piece(tmp_path: Path, answered: Make) -> None:
    path = tmp_path / "s"
    offsets = segment_of(path, [answered(0, text="x" * 3_000_000), answered(1)])
    data = bytearray(path.read_bytes())
    data[offsets[1]] ^= 1
    assert frames(bytes(data))[1] == Damage(offsets[1], offsets[2] - offsets[1])
    assert isinstance(frames(bytes(data))[2], Frame)


def test_a_segment_carried_inside_a_row_is_not_taken_for_frames(
    tmp_path: Path, answered: Make, written: bytes
) -> None:
    path = tmp_path / "s"
    offsets = segment_of(path, [answered(0, (written,)), answered(1)])
    data = bytearray(path.read_bytes())
    data[offsets[1]] ^= 1  # so that the reader looks for the next frame inside the row
    assert frames(bytes(data))[1] == Damage(offsets[1], offsets[2] - offsets[1])


def test_zeros_after_a_loss_of_power_are_a_torn_end(written: bytes) -> None:
    assert frames(written + bytes(5_000)) == [*frames(written), Torn(len(written))]


def test_a_tail_that_is_no_frame_and_no_zeros_is_damage(written: bytes) -> None:
    assert frames(written + b"?" * 50) == [*frames(written), Damage(len(written), 50)]


def test_lone_surrogates_are_replaced(tmp_path: Path, answered: Make) -> None:
    segment_of(tmp_path / "s", [answered(0, ("ok \ud83d\ude00", ["\udfff"]), text="a\ud800b")])
    with (tmp_path / "s").open("rb") as file:
        (back,) = read_outcomes(file)
    assert isinstance(back, Outcome)
    assert back == answered(0, ("ok 😀", ["\ufffd"]), text="a\ufffdb")


def test_integers_that_no_file_holds_become_null(tmp_path: Path, answered: Make) -> None:
    segment_of(tmp_path / "s", [answered(0, (2**64, 2**63 - 1, b"\xff"))])
    with (tmp_path / "s").open("rb") as file:
        assert list(read_outcomes(file)) == [answered(0, (None, 2**63 - 1, b"\xff"))]


def test_a_segment_is_never_written_over(tmp_path: Path, answered: Make) -> None:
    path = tmp_path / "s"
    segment_of(path, [answered(0)])
    with pytest.raises(StoreError, match="cannot make this journal segment"):
        Segment(path, HEADER)
    assert len(frames(path.read_bytes())) == 2


@pytest.mark.parametrize("payload", [{"record": "later"}, {"record": "header"}, [1]])
def test_a_record_of_another_version_is_named(payload: object) -> None:
    class Later(msgspec.Struct):
        value: object

    file = io.BytesIO(frame_of(Later(payload), 0))
    file.name = "w0-000009.log"
    with pytest.raises(StoreError, match=r"w0-000009.log, byte 0: .* continue with the version"):
        list(read_outcomes(file))


def test_a_newer_schema_is_refused() -> None:
    file = io.BytesIO(frame_of(Header(SCHEMA_VERSION + 1, 1, ()), 0))
    file.name = "s"
    with pytest.raises(StoreError, match=f"schema {SCHEMA_VERSION + 1}"):
        list(read_outcomes(file))


def test_a_frame_holds_its_place_in_the_file(answered: Make) -> None:
    frame = frame_of(answered(0), 77)
    assert frames(frame) == [Damage(0, len(frame))]
