import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from batchrun.records import Outcome
from batchrun.store.reading import read_totals
from batchrun.store.run_dir import RunDir

Make = Callable[..., Outcome]
Begin = Callable[..., RunDir]

SEGMENT = "w0-000001.log"


@pytest.fixture(scope="module")
def unsealed(
    tmp_path_factory: pytest.TempPathFactory, begin: Begin, answered: Make
) -> tuple[Path, list[int]]:
    """A run directory with four rows in its journal, and where each of them ends."""
    path = tmp_path_factory.mktemp("recover") / "run"
    run_dir = begin(path)
    ends = [(path / "journal" / SEGMENT).stat().st_size]
    for row in range(4):
        run_dir.store(answered(row))
        ends.append((path / "journal" / SEGMENT).stat().st_size)
    run_dir.close(seal=False)
    return path, ends


def changed(unsealed: Path, copy: Path, data: bytes) -> Path:
    shutil.copytree(unsealed, copy)
    (copy / "journal" / SEGMENT).write_bytes(data)
    return copy


def test_a_torn_tail_is_dropped_at_every_position(
    unsealed: tuple[Path, list[int]], tmp_path: Path
) -> None:
    path, ends = unsealed
    data = (path / "journal" / SEGMENT).read_bytes()
    for cut in range(0, len(data), 7):
        copy = changed(path, tmp_path / str(cut), data[:cut])
        whole = sum(end <= cut for end in ends[1:])
        assert read_totals(copy).rows == whole
        run_dir = RunDir.open(copy)
        assert list(run_dir.complete_rows().rows) == list(range(whole))
        assert run_dir.warnings == ()
        run_dir.close(seal=False)
        segment = copy / "journal" / SEGMENT
        assert segment.exists() == (whole > 0)
        if whole:
            assert segment.stat().st_size == ends[whole]


def test_a_flipped_bit_costs_its_row_alone_and_is_named(
    unsealed: tuple[Path, list[int]], tmp_path: Path
) -> None:
    path, ends = unsealed
    data = (path / "journal" / SEGMENT).read_bytes()
    dice = random.Random(11)
    for turn in range(60):
        at = dice.randrange(ends[0], len(data))
        row = sum(end <= at for end in ends[1:])
        flipped = bytearray(data)
        flipped[at] ^= 1 << dice.randrange(8)
        copy = changed(path, tmp_path / str(turn), bytes(flipped))
        assert read_totals(copy).rows == 3
        run_dir = RunDir.open(copy)
        assert list(run_dir.complete_rows().rows) == [r for r in range(4) if r != row]
        (warning,) = run_dir.warnings
        assert (
            f"{SEGMENT}: {ends[row + 1] - ends[row]} damaged bytes at offset {ends[row]},"
            in warning
        )
        aside = copy / "journal" / f"damaged-{SEGMENT}-{ends[row]}"
        assert aside.read_bytes() == flipped[ends[row] : ends[row + 1]]
        run_dir.close(seal=False)


def test_damage_is_warned_of_once_and_outlives_the_seal(
    unsealed: tuple[Path, list[int]], tmp_path: Path, answered: Make
) -> None:
    path, ends = unsealed
    data = bytearray((path / "journal" / SEGMENT).read_bytes())
    data[ends[1] + 3] ^= 1
    copy = changed(path, tmp_path / "run", bytes(data))
    first = RunDir.open(copy)
    assert len(first.warnings) == 1
    first.close(seal=False)
    second = RunDir.open(copy)
    assert second.warnings == ()
    second.start(part_rows=100, part_bytes=1 << 20)
    second.store(answered(1))  # sent again
    second.close(seal=True)
    assert sorted(RunDir.open(copy).complete_rows().rows) == [0, 1, 2, 3]
    assert [p.name for p in (copy / "journal").iterdir()] == [f"damaged-{SEGMENT}-{ends[1]}"]


def test_a_damaged_header_costs_no_row(unsealed: tuple[Path, list[int]], tmp_path: Path) -> None:
    path, _ = unsealed
    data = bytearray((path / "journal" / SEGMENT).read_bytes())
    data[20] ^= 1
    run_dir = RunDir.open(changed(path, tmp_path / "run", bytes(data)))
    assert list(run_dir.complete_rows().rows) == [0, 1, 2, 3]
    run_dir.close(seal=True)
    assert read_totals(run_dir.path).rows == 4


def test_a_segment_of_garbage_is_set_aside_whole(
    unsealed: tuple[Path, list[int]], tmp_path: Path
) -> None:
    run_dir = RunDir.open(changed(unsealed[0], tmp_path / "run", b"garbage" * 100))
    assert list(run_dir.complete_rows().rows) == []
    assert "700 damaged bytes at offset 0" in run_dir.warnings[0]
    run_dir.close(seal=True)
    assert [p.name for p in (run_dir.path / "journal").iterdir()] == [f"damaged-{SEGMENT}-0"]
