"""What the command that has a run does with the files of its workers.

A worker whose lock can be taken is dead, or has ended by itself: what it left is put in order under
its own name while the others go on. Only this command writes parts anew, so it also seals what
workers leave in their journals where rows are sent again.

Where the file system cannot lock, nobody can know that a worker is dead. Each is to stop by itself
when it has heard nothing for long enough, and whoever takes it for dead waits longer. If two rows
stand in the end even so, the one of the lower writer wins.
"""

import fcntl
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from batchrun.records import Layout, RowKey, RunRecord, Totals
from batchrun.store.columns import KEY, response_schema, tool_call_schema
from batchrun.store.complete_rows import hash_keys, sum_totals
from batchrun.store.files import (
    JOURNAL,
    RESPONSES,
    TABLES,
    TOOL_CALLS,
    Flock,
    drained_name,
    id_of,
    lock_name,
    make_folders,
    numbered,
    owner_in_words,
    part_names,
    replace_file,
    see_all,
    storing,
    try_lock,
    workers_of,
)
from batchrun.store.journal import READ_BYTES, may_replace
from batchrun.store.parts import keys_of, new_files, read_part, rewrite_part
from batchrun.store.sealing import finish, recover, seal
from batchrun.store.snapshot import Intent, Snapshot, write_intent
from batchrun.store.unfinished import UnfinishedRows

_LOOK_EVERY_S = 0.2
_SILENT_S = 60.0  # where nothing can be locked: a worker renews the time of its lock twice a second

Place = tuple[int, int, str | None]  # `row`, `sample` and `variant` of a row


class Adopted(Struct, frozen=True):
    """What a dead worker has left, now in parts of its name."""

    complete: frozenset[Place]  # of the rows asked about
    totals: Totals  # of all rows that it completed
    warnings: tuple[str, ...]  # what was damaged and set aside
    is_certain: bool = True  # that it is dead: else only its silence says so


def adopt(
    folder: Path,
    record: RunRecord,
    unfinished: UnfinishedRows,
    worker: int,
    rows: Collection[int] = (),
    *,
    is_silent: bool = False,
    flock: Flock = fcntl.flock,
) -> Adopted | None:
    """Puts in order what a worker left, if it is dead; null where it lives, or may.

    `rows`: those that it had, as the tables number them. `is_silent`: where its lock says nothing,
    the caller knows that it has stopped by itself. Raises `StoreError`.
    """
    if not (folder / JOURNAL).is_dir():
        with storing(folder / JOURNAL, "make this folder"):
            make_folders(folder / JOURNAL)
    lock = try_lock(folder / lock_name(worker), flock)
    if lock is None:
        return None
    try:
        if lock.warning is not None and not (is_silent or _has_drained(folder, worker)):
            return None
        with storing(folder, "list"):
            see_all(folder)
        found = recover(folder, worker)
        for segment in found.segments:  # one by one, as the worker would: its parts have the names
            seal(folder, record, (segment,))
        now = _only(folder, worker)
        unfinished.take_over(worker, now)
        complete = frozenset(_among(now, rows)) if rows else frozenset()
        is_certain = lock.warning is None
        adopted = Adopted(complete, sum_totals(now), found.warnings, is_certain=is_certain)
        with storing(folder / JOURNAL, "write"):  # it may be about to begin, which is too late
            replace_file(folder / drained_name(worker), b"{}\n", durable=False)
            (folder / lock_name(worker)).unlink(missing_ok=True)
    finally:
        os.close(lock.handle)
    return adopted


def _only(folder: Path, worker: int) -> Snapshot:
    """What a worker has completed, all in parts."""
    with storing(folder, "list"):
        parts = [name for name in part_names(folder, *TABLES) if id_of(name).writer == worker]
    responses, calls = (
        tuple(folder / name for name in parts if name.startswith(f"{table}/")) for table in TABLES
    )
    return Snapshot(responses, calls, (), frozenset(), ())


def _among(now: Snapshot, rows: Collection[int]) -> Iterator[Place]:
    wanted = pa.array(sorted(rows), pa.int64())
    columns = ("row", *KEY[1:])
    for batch in now.batches(columns):
        found = batch.filter(pc.is_in(batch["row"], value_set=wanted))
        yield from zip(*(found[name].to_pylist() for name in columns), strict=True)


def seal_full_segments(folder: Path, record: RunRecord) -> None:
    """Seals what living workers leave to this command: rows that replace others. `StoreError`.

    Of each, all segments but the last two: it may be writing the last, and not have closed the one
    before, of which another host then sees a part alone.
    """
    with storing(folder / JOURNAL, "list"):
        workers = set(workers_of(folder))
        segments = numbered(folder / JOURNAL, ".log")
    names = [name for name in segments if id_of(name).writer in workers]
    for name, later in zip(names, names[2:], strict=False):
        if id_of(later).writer != id_of(name).writer:
            continue
        path = folder / JOURNAL / name
        with storing(path, "read"):
            try:
                with path.open("rb", buffering=READ_BYTES) as file:
                    is_ours = may_replace(file)
            except FileNotFoundError:  # the worker has sealed it
                continue
        if is_ours:
            seal(folder, record, (name,))


def forget(folder: Path, workers: Sequence[int] = ()) -> None:
    """Nothing says any more that there were these, or any that were adopted. `StoreError`."""
    with storing(folder / JOURNAL, "write"):
        names = [folder / lock_name(worker) for worker in workers]
        names += (folder / JOURNAL).glob("w*.drained")
        names += (folder / JOURNAL).glob("probe-*.tmp")  # of a command that was killed
        for name in names:
            name.unlink(missing_ok=True)


def wait_for_workers(
    folder: Path, waiting: Callable[[str], None], flock: Flock = fcntl.flock
) -> tuple[int, ...]:
    """The workers that earlier commands left, once each is dead or has ended by itself.

    A worker whose command is gone lands what it has in flight. `waiting`: called a few times a
    second with what is waited for, in words; what it raises ends the waiting. Raises `StoreError`.
    """
    with storing(folder / JOURNAL, "list"):
        workers = workers_of(folder)
    alive = workers
    silence: dict[int, tuple[int, float]] = {}  # time of a lock that proves nothing, seen since
    while True:
        alive = [one for one in alive if not _is_dead(folder, one, silence, flock)]
        if not alive:
            if workers:
                with storing(folder, "list"):
                    see_all(folder)
            return tuple(workers)
        owners = " and ".join(owner_in_words(folder / lock_name(one)) for one in alive)
        waiting(
            f"waiting for workers of the last command, which have requests in flight ({owners})"
        )
        time.sleep(_LOOK_EVERY_S)


def _is_dead(
    folder: Path, worker: int, silence: dict[int, tuple[int, float]], flock: Flock
) -> bool:
    lock = try_lock(folder / lock_name(worker), flock)
    if lock is None:
        return False
    try:
        if lock.warning is None or _has_drained(folder, worker):
            return True
        touched, now_s = os.fstat(lock.handle).st_mtime_ns, time.monotonic()
        before, since_s = silence.setdefault(worker, (touched, now_s))
        if before != touched:
            silence[worker] = (touched, now_s)
            return False
        return now_s - since_s > _SILENT_S
    finally:
        os.close(lock.handle)


def _has_drained(folder: Path, worker: int) -> bool:
    return (folder / drained_name(worker)).exists()


def drop_doubles(folder: Path, layout: Layout) -> int:
    """Each row stands in one part; how many had to be taken out. Raises `StoreError`.

    Where workers were taken for dead that were not. The journal must be empty.
    """
    with storing(folder, "list"):
        parts = part_names(folder, RESPONSES)
    seen, suspects = set[int](), set[int]()
    for part in parts:
        for batch in read_part(folder / part, KEY):
            for mark in hash_keys(batch):
                (suspects if mark in seen else seen).add(mark)
    if not suspects:
        return 0
    first, doubled = set[RowKey](), dict[str, set[RowKey]]()
    for part in parts:  # in the order of writers: the lowest one's row stays
        for batch in read_part(folder / part, KEY):
            for mark, key in zip(hash_keys(batch), keys_of(batch), strict=True):
                if mark in suspects:
                    (doubled.setdefault(part, set()) if key in first else first).add(key)
    if not doubled:
        return 0
    schema = response_schema(layout)
    with storing(folder / RESPONSES, "write parts"):
        with new_files() as files:
            rewrites = []
            for part, keys in doubled.items():
                rewrites.append(rewrite_part(files, folder, part, schema, layout, dropped=keys))
            for of in {id_of(part): None for part in doubled}:  # with its calls in one part
                keys = set().union(*(doubled[part] for part in doubled if id_of(part) == of))
                if (folder / (calls := of.part(TOOL_CALLS))).exists():
                    kind = tool_call_schema()
                    rewrites.append(rewrite_part(files, folder, calls, kind, dropped=keys))
        of = id_of(rewrites[0].to)
        write_intent(folder, of, Intent((), (), tuple(rewrites)))
    finish(folder, of.intent)
    return sum(map(len, doubled.values()))
