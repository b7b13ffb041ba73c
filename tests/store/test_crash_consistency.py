"""A crash after every step of real runs, with what was not synced lost or kept in any order.

The steps are those that the store really made, taken down by a `Recording`; what a disk may hold
after a crash at each of them is built, and opened as the next process would.
"""

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun.records import Outcome, RunRecord
from batchrun.store.run_dir import RunDir
from batchrun.store.snapshot import snapshot
from tests.store.crashes import Disk, Loss, Tree, read_tree, write_tree
from tests.store.recording import Noted, Recording, Step

Make = Callable[..., Outcome]
Record = Callable[..., RunRecord]
Made = dict[int, tuple[Outcome, Outcome]]  # by row: when first sent, when sent again
Found = frozenset[tuple[int, int]]  # rows, and which of their two outcomes

PART_ROWS = 6
FULL_EVERY = 7  # crashes between two whose run is sealed to its end, which takes long
DRAWS = {Loss.SOME: 4, Loss.BLOCKS: 2, Loss.HALF_A_WRITE: 2}  # crashes at each step
COLUMNS = ("row", "custom_id", "sample", "request_hash", "output_text", "error_message")


@dataclass(frozen=True)
class Script:
    """A recorded run."""

    start: tuple[Step, ...]
    steps: tuple[Step, ...]
    held: Found  # what was on disk before the first step


class Run:
    """A run directory at work under a recording."""

    def __init__(self, path: Path, made: Made, record: RunRecord) -> None:
        self.path, self.recording = path, Recording(path)
        self._made, self._record = made, record
        self._kept: list[tuple[int, int]] = []
        self.dir: RunDir

    def open(self, *, replaces: bool = False) -> None:
        self.dir = RunDir.open(self.path)
        if replaces:
            self.dir.finish()
        self.dir.save(self._record)
        self.dir.start(part_rows=PART_ROWS, part_bytes=1 << 20, replaces=replaces)

    def keep(self, *rows: int, version: int = 0) -> None:
        for row in rows:
            self.recording.note("keeping", (row, version))
            self.dir.store(self._made[row][version])
            self.recording.note("kept", (row, version))
            self._kept.append((row, version))

    def keep_and_wait(self, *rows: int) -> None:
        """Keeps two rows or more in one segment; all but the last are then on disk."""
        *most, last = rows
        self.keep(*most)
        kept = tuple(self._kept)
        self._wait_for_sync()
        self.keep(last)
        self._wait_for_sync()  # one round of syncing comes after the other: the first is over
        self.recording.note("on disk", kept)

    def close(self, *, seal: bool) -> None:
        self.dir.close(seal=seal)
        self.recording.note("on disk", tuple(self._kept))

    def script(self, held: Found = frozenset()) -> Script:
        return Script(self.recording.start, tuple(self.recording.steps), held)

    def held_after(self, held: Found) -> Found:
        last = dict(sorted(held | set(self._kept)))
        return frozenset(last.items())

    def _wait_for_sync(self) -> None:
        name = max(path.name for path in (self.path / "journal").glob("*.log"))
        times = self.recording.synced(f"journal/{name}")
        while self.recording.synced(f"journal/{name}") == times:
            time.sleep(0.01)


class Known:
    """Which outcomes must be found after a crash, and which may."""

    def __init__(self, held: Found) -> None:
        self.may = set(held)
        self.kept, self.on_disk = dict(held), dict(held)

    def take(self, step: Step) -> None:
        match step:
            case Noted("keeping", outcome):
                self.may.add(outcome)
            case Noted("kept", (row, version)):
                self.kept[row] = version
            case Noted("on disk", outcomes):
                self.on_disk.update(outcomes)

    def allows(self, found: Found, *, is_death: bool) -> bool:
        must, there = self.kept if is_death else self.on_disk, dict(found)
        return found <= self.may and all(there.get(row, -1) >= must[row] for row in must)


@pytest.fixture(scope="module")
def made(answered: Make, failed: Make) -> Made:
    """Small ones, one in four failed when first sent, one in five large."""

    def first(row: int) -> Outcome:
        size = 30_000 if row % 5 == 0 else 40 * row
        return failed(row) if row % 4 == 3 else answered(row, calls=row % 3, text="t" * size)

    def again(row: int) -> Outcome:
        outcome = failed(row, message="no again") if row % 8 == 7 else answered(row, calls=2)
        return msgspec.structs.replace(outcome, replaces=True)

    return {row: (first(row), again(row)) for row in range(30)}


@pytest.fixture(scope="module")
def scripts(
    tmp_path_factory: pytest.TempPathFactory, made: Made, record: Record
) -> dict[str, list[Script]]:
    """A first run; a second one that goes on to its end; a third that sends again what failed."""
    path = tmp_path_factory.mktemp("crashes") / "run"
    path.mkdir(mode=0o700)
    first = Run(path, made, record())
    with first.recording:
        first.open()
        first.keep(0, 1, 2, 3, 4, 5)  # a part
        first.keep_and_wait(6, 7, 8, 9)
        first.keep(10, 11, 12)
        first.close(seal=False)
    held = first.held_after(frozenset())
    second = Run(path, made, record())
    with second.recording:
        second.open()
        second.keep(*range(13, 21))
        second.close(seal=True)
    scripts = {"first": [first.script()], "second": [second.script(held)]}
    held = second.held_after(held)
    third = Run(path, made, record())
    with third.recording:
        third.open(replaces=True)
        third.keep(3, 7, version=1)
        third.keep(21)
        third.keep(11, 15, 19, version=1)
        third.keep(22)
        third.close(seal=True)
    scripts["resending"] = [third.script(held)]
    return scripts


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder where syncs cost nothing, if there is one: what they do is not the question here."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


def crashes(script: Script, loss: Loss) -> Iterator[tuple[Tree, Known]]:
    """Every crash of a script: what the disk may hold, and what is known of the rows then."""
    disk, known, dice = Disk(script.start), Known(script.held), random.Random(5)
    for step in script.steps:
        disk.take(step)
        known.take(step)
        for _ in range(0 if isinstance(step, Noted) else DRAWS.get(loss, 1)):
            yield disk.after(loss, dice), known


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        pytest.param(name, loss, marks=() if name != "second" or not loss_at else pytest.mark.long)
        for name in ("first", "second", "resending")
        for loss_at, loss in enumerate(Loss)
    ],
)
def test_a_crash_at_any_step_loses_nothing_that_was_promised(
    scripts: dict[str, list[Script]], made: Made, folder: Path, name: str, loss: Loss
) -> None:
    for script in scripts[name]:
        hold_after_crashes(script, loss, made, folder / "run")


@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("name", ["first", "second", "resending"])
def test_a_crash_within_the_recovery_loses_nothing_either(
    scripts: dict[str, list[Script]], made: Made, folder: Path, name: str, loss: Loss
) -> None:
    (script,) = scripts[name]
    for at, (tree, held) in enumerate(half_done(script, made, folder / "held")):
        write_tree(tree, folder / f"run{at}")
        recording = Recording(folder / f"run{at}")
        with recording:
            run_dir = RunDir.open(folder / f"run{at}")
            run_dir.close(seal=False)
        recovery = Script(recording.start, tuple(recording.steps), held)
        hold_after_crashes(recovery, loss, made, folder / "run")


def half_done(script: Script, made: Made, path: Path) -> Iterator[tuple[Tree, Found]]:
    """What processes left that died within a seal, a few of them; and the rows in it."""
    trees = [
        tree
        for tree, _ in crashes(script, Loss.NOTHING)
        if any(path.endswith((".intent", ".parquet.tmp")) for path in tree)
    ]
    for tree in trees[:: max(1, len(trees) // 4)]:
        yield tree, recovered(path, tree, made, is_death=True, to_end=False)


def hold_after_crashes(script: Script, loss: Loss, made: Made, path: Path) -> None:
    """Whatever a crash leaves, the next process finds what it must, and nothing it may not."""
    is_death = loss in (Loss.NOTHING, Loss.HALF_A_WRITE)
    seen: dict[frozenset[tuple[str, bytes | None]], Found] = {}
    for tree, known in crashes(script, loss):
        state = frozenset(tree.items())
        if state not in seen:
            to_end = len(seen) % FULL_EVERY == 1
            seen[state] = recovered(path, tree, made, is_death=is_death, to_end=to_end)
        assert known.allows(seen[state], is_death=is_death)
    assert seen


def recovered(path: Path, tree: Tree, made: Made, *, is_death: bool, to_end: bool) -> Found:
    """What the next process finds, each row once; the one after it finds nothing to do."""
    write_tree(tree, path)
    before = rows_of(path, made)
    assert read_tree(path) == tree
    run_dir = RunDir.open(path)
    rows = list(run_dir.complete_rows().rows)
    assert len(rows) == len(set(rows))
    found = rows_of(path, made)
    assert found == before
    assert set(rows) == dict(found).keys()
    assert not (run_dir.warnings and is_death)
    run_dir.close(seal=False)
    once = read_tree(path)
    again = RunDir.open(path)
    assert again.warnings == ()
    again.close(seal=to_end)
    assert to_end or read_tree(path) == once
    assert not to_end or rows_of(path, made) == found
    shutil.rmtree(path)
    return found


def rows_of(path: Path, made: Made) -> Found:
    """What a reader finds, after a look at each row: it is one that was kept."""
    with snapshot(path) as now:
        found = [(kept.request.row, made[kept.request.row].index(kept)) for kept in now.outcomes()]
        for part in now.responses:
            for row in rows_of_part(part.read_bytes()):
                if (row[1], row[2], None) not in now.replaced:
                    versions = [as_row(outcome) for outcome in made[row[0]]]
                    found.append((row[0], versions.index(row)))
    assert len(found) == len(dict(found))
    return frozenset(found)


@cache
def rows_of_part(content: bytes) -> list[tuple[Any, ...]]:
    table = pq.read_table(pa.BufferReader(content), columns=list(COLUMNS))
    return [tuple(row.values()) for row in table.to_pylist()]


def as_row(outcome: Outcome) -> tuple[Any, ...]:
    """The outcome as those columns say it."""
    request, result = outcome.request, outcome.result
    texts = (getattr(result, name, None) for name in ("output_text", "message"))
    return (request.row, request.custom_id, request.sample, request.hash, *texts)
