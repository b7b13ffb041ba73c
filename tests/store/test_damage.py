"""Journals cut at every byte, and ten thousand flipped bits: recovered or named, never a wrong row.

A flip costs the rows of the record it hits, and no other; see docs/durability.md.
"""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun.errors import BatchrunError, StoreError
from batchrun.records import Outcome, RunRecord
from batchrun.store.files import FileId
from batchrun.store.journal import Frame, read_outcomes, scan
from batchrun.store.parts import read_part
from batchrun.store.run_dir import RunDir
from batchrun.store.sealing import delete_segments, recover, rename_parts, write_temporaries
from batchrun.store.snapshot import read_intent, write_intent
from batchrun.store.unfinished import read_open
from tests.store.crashes import Tree, read_tree, write_tree

Make = Callable[..., Outcome]
Begin = Callable[..., RunDir]
Query = Callable[..., list[tuple[int, ...]]]

ROWS = 30
SEGMENT = "journal/w0-000001.log"
INTENT = "journal/w0-000001.intent"
STARTED = "journal/w0.open"
SHARES = range(4)  # of the work, for tests that run at the same time


@pytest.fixture(scope="module")
def made(answered: Make, failed: Make) -> list[Outcome]:
    """Small ones, one in four failed, one in six large."""
    return [
        failed(row)
        if row % 4 == 3
        else answered(row, calls=row % 3, text="t" * (1_500 if row % 6 == 0 else 5 * row))
        for row in range(ROWS)
    ]


@pytest.fixture(scope="module")
def unsealed(tmp_path_factory: pytest.TempPathFactory, made: list[Outcome], begin: Begin) -> Tree:
    """All rows in one segment, and three background responses begun."""
    path = tmp_path_factory.mktemp("damage") / "run"
    run_dir = begin(path)
    for outcome in made:
        run_dir.store(outcome)
    for row in range(ROWS, ROWS + 3):
        run_dir.unfinished.begin(made[row - ROWS].request, "https://example.test/v1", f"resp_{row}")
    run_dir.close(seal=False)
    return read_tree(path)


@pytest.fixture
def run(unsealed: Tree) -> Iterator[Path]:
    """A copy of it, in a folder where syncs cost nothing, if there is one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        write_tree(unsealed, Path(name) / "run")
        yield Path(name) / "run"


def frame_starts(segment: bytes) -> list[int]:
    """Where the frames of a segment begin, and at last where they end."""
    with tempfile.TemporaryFile() as file:
        file.write(segment)
        starts = [piece.offset for piece in scan(file) if isinstance(piece, Frame)]
    return [*starts, len(segment)]


def flips(content: bytes, times: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """The content with one bit flipped, and the offset of the byte."""
    dice = random.Random(seed)
    for _ in range(times):
        at = dice.randrange(len(content))
        flipped = bytearray(content)
        flipped[at] ^= 1 << dice.randrange(8)
        yield at, bytes(flipped)


def rows_in(segment: Path, made: list[Outcome]) -> list[int]:
    """The rows of a segment, each of them as it was kept."""
    with segment.open("rb") as file:
        found = [piece for piece in read_outcomes(file) if isinstance(piece, Outcome)]
    assert found == [made[outcome.request.row] for outcome in found]
    return [outcome.request.row for outcome in found]


@pytest.mark.parametrize("share", SHARES)
def test_a_journal_cut_at_any_byte_keeps_every_record_before(
    unsealed: Tree, run: Path, share: int
) -> None:
    data = unsealed[SEGMENT]
    assert data is not None
    starts = frame_starts(data)
    for cut in range(share, len(data) + 1, len(SHARES)):
        (run / SEGMENT).write_bytes(data[:cut])
        found = recover(run)
        whole = max((start for start in starts if start <= cut), default=0)
        assert found.warnings == ()
        if whole > starts[1]:
            assert (run / SEGMENT).read_bytes() == data[:whole]
        else:
            assert not (run / SEGMENT).exists()


@pytest.mark.parametrize("share", SHARES)
def test_a_flipped_bit_in_a_journal_costs_its_record_and_is_named(
    unsealed: Tree, made: list[Outcome], run: Path, share: int
) -> None:
    data = unsealed[SEGMENT]
    assert data is not None
    starts = frame_starts(data)
    for at, flipped in flips(data, 2_000, share):
        (run / SEGMENT).write_bytes(flipped)
        found = recover(run)
        hit = sum(start <= at for start in starts) - 1  # 0 is the header, which holds no row
        assert rows_in(run / SEGMENT, made) == [row for row in range(ROWS) if row != hit - 1]
        aside = run / f"journal/damaged-w0-000001.log-{starts[hit]}"
        assert aside.read_bytes() == flipped[starts[hit] : starts[hit + 1]]
        (warning,) = found.warnings
        assert f"{run / SEGMENT}: " in warning
        assert f"at offset {starts[hit]}, set aside in {aside.name}" in warning
        aside.unlink()


@pytest.fixture(scope="module")
def half_sealed(
    tmp_path_factory: pytest.TempPathFactory, unsealed: Tree, record: Callable[..., RunRecord]
) -> list[Tree]:
    """A seal that stopped after its intent, after its renames, after its deletions."""
    path = tmp_path_factory.mktemp("half_sealed") / "run"
    write_tree(unsealed, path)
    intent = write_temporaries(path, record(), [Path(SEGMENT).name])
    write_intent(path, FileId(0, 1), intent)
    trees = [read_tree(path)]
    intent = read_intent(path, Path(INTENT).name)
    assert rename_parts(path, intent)
    trees.append(read_tree(path))
    delete_segments(path, intent)
    return [*trees, read_tree(path)]


@pytest.mark.parametrize("step", range(3))
def test_a_flipped_bit_in_an_intent_costs_nothing(
    half_sealed: list[Tree], run: Path, query: Query, step: int
) -> None:
    tree = half_sealed[step]
    content = tree[INTENT]
    assert content is not None
    for _, flipped in flips(content, 300, step):
        shutil.rmtree(run)
        write_tree(tree | {INTENT: flipped}, run)
        run_dir = RunDir.open(run)
        assert sorted(run_dir.complete_rows().rows) == list(range(ROWS))
        assert run_dir.warnings == ()
        run_dir.close(seal=False)
    rows = query("select row from read_parquet(?) order by row", run)
    assert rows == [(row,) for row in range(ROWS)]


def test_a_flipped_bit_among_begun_responses_costs_one_of_them(unsealed: Tree, run: Path) -> None:
    content = unsealed[STARTED]
    assert content is not None
    whole = list(read_open(run))
    assert len(whole) == 3
    first = frame_starts(content)[1]  # before it is the header, which nothing depends on
    for at, flipped in flips(content, 600, 0):
        (run / STARTED).write_bytes(flipped)
        found = list(read_open(run))
        assert len(found) == (2 if at >= first else 3)
        assert all(one in whole for one in found)


def test_a_flipped_bit_in_what_was_asked_never_surprises(unsealed: Tree, run: Path) -> None:
    content = unsealed["run.json"]
    assert content is not None
    for _, flipped in flips(content, 500, 0):
        (run / "run.json").write_bytes(flipped)
        with suppress(BatchrunError):
            run_dir = RunDir.open(run)
            assert sorted(run_dir.complete_rows().rows) == list(range(ROWS))
            run_dir.close(seal=False)


def test_a_flipped_bit_in_a_part_is_reported_or_changes_no_row(
    half_sealed: list[Tree], run: Path
) -> None:
    shutil.rmtree(run)
    write_tree(half_sealed[2], run)
    RunDir.open(run).close(seal=False)
    parts = sorted(run.glob("*/*.parquet"))
    assert len(parts) == 3
    settled = settled_rows(run)
    for number, part in enumerate(parts):
        content, schema, rows = part.read_bytes(), pq.read_schema(part), table_of(part)
        for _, flipped in flips(content, 250, number):
            part.write_bytes(flipped)
            with suppress(StoreError):
                assert settled_rows(run) == settled
            with suppress(StoreError):
                found = table_of(part)
                # A column of another name or type is what `batchrun verify` reports.
                assert found.schema != schema or found == rows
        part.write_bytes(content)


def settled_rows(run: Path) -> tuple[Any, ...]:
    run_dir = RunDir.open(run)
    try:
        settled = run_dir.complete_rows()
        return settled.rows, settled.ids, settled.hashes, settled.totals
    finally:
        run_dir.close(seal=False)


def table_of(part: Path) -> pa.Table:
    return pa.Table.from_batches(read_part(part, None))
