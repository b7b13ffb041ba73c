"""Rows without a variant become those of one: all at once, whenever it dies."""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batchrun.records import Answered, Outcome
from batchrun.store.parts import keys_of
from batchrun.store.run_dir import RunDir
from batchrun.store.snapshot import snapshot
from batchrun.store.unfinished import read_open
from batchrun.store.verify import verify
from tests.store.crashes import Disk, Loss, Tree, read_tree, write_tree
from tests.store.recording import Recording

Make = Callable[..., Outcome]
ROWS = 9


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder where syncs cost nothing, if there is one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture
def run(folder: Path, begin: Callable[..., RunDir], answered: Make, failed: Make) -> Path:
    """A run of three parts, and of two rows without an outcome."""
    run_dir = begin(folder / "run", part_rows=4)
    for row in range(ROWS):
        run_dir.store(failed(row) if row % 3 == 0 else answered(row))
    run_dir.unfinished.begin(answered(ROWS).request, "e", "resp_1")
    again = answered(ROWS + 1)
    run_dir.unfinished.record(Answered(again.request.key, 0, again, None))
    run_dir.close(seal=True)
    return folder / "run"


def _name(path: Path) -> None:
    run_dir = RunDir.open(path)
    run_dir.name_variant("a")
    run_dir.close()


def _variants(path: Path) -> set[str | None]:
    """Of all rows, each of which is there once, and of its tool calls."""
    found: list[tuple[str, str | None]] = []
    with snapshot(path) as now:
        for batch in now.batches(("custom_id", "sample", "variant")):
            found += [(key, variant) for key, _, variant in keys_of(batch)]
    assert sorted(key for key, _ in found) == sorted(f"id-{row}" for row in range(ROWS))
    return {variant for _, variant in found}


@pytest.mark.parametrize("loss", Loss)
def test_a_crash_at_any_step_names_all_rows_or_none(run: Path, loss: Loss) -> None:
    recording = Recording(run)
    assert _variants(run) == {None}
    with recording:
        _name(run)
    disk, dice = Disk(recording.start), random.Random(3)
    seen: list[Tree] = []
    ends: list[Tree] = []
    for number, step in enumerate(recording.steps):
        disk.take(step)
        tree = disk.after(loss, dice)
        if tree in seen:
            continue
        seen.append(tree)
        crashed = run.parent / f"crashed{number}"
        write_tree(tree, crashed)
        assert len(_variants(crashed)) == 1
        _name(crashed)
        end = read_tree(crashed)
        if end not in ends:
            ends.append(end)
            _check_end(crashed)
        shutil.rmtree(crashed)
    assert len(seen) > 5


def _check_end(path: Path) -> None:
    assert _variants(path) == {"a"}
    assert {one.key for one in read_open(path)} == {
        (f"id-{ROWS}", 0, "a"), (f"id-{ROWS + 1}", 0, "a"),
    }  # fmt: skip
    assert not [*path.glob("*/.*.tmp"), *path.glob("journal/*.intent")]
    assert verify(path).problems == []
