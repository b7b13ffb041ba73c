"""What the command that has a run does with the files of its workers.

A worker whose lock can be taken is dead, or has ended by itself. Its files are put in order, under
its own number, while other workers continue. Only the command rewrites parts, so it also seals the
journals of workers if rows are sent again.

If the file system cannot lock, nobody can know that a worker is dead. A worker then stops by itself
when it has had no message for some time, and it is adopted only after a longer time. If a row is
there twice even so, the one of the lower writer wins.
"""

import fcntl
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from batchrun.job.sections import ClusterJob, EndpointJob
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
from batchrun.store.reading import read_run_record
from batchrun.store.sealing import finish, recover, seal
from batchrun.store.snapshot import Intent, Snapshot, write_intent
from batchrun.store.unfinished import UnfinishedRows
from batchrun.store.workers.worker_dir import last_write_s

_LOOK_EVERY_S = 0.2
# Without locks, a worker renews the time of its lock file twice a second. One that stands still may
# continue for as long as it may store answers, and so long its lock is looked at, and a bit longer.
_SPARE_S = 5.0

Place = tuple[int, int, str | None]  # `row`, `sample` and `variant` of a row


class Adopted(Struct, frozen=True):
    """What a dead worker had stored, now in parts with its number."""

    complete: frozenset[Place]  # those of the rows asked about
    totals: Totals  # of all rows that it completed
    warnings: tuple[str, ...]  # about damaged bytes that were moved
    is_certain: bool = True  # it is dead for certain, not only silent


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
    """Takes over the files of a dead worker; None if it is alive, or may be.

    `rows`: the rows that it had, by their numbers in the tables. `is_silent`: if its lock proves
    nothing, the caller knows that it has stopped by itself. Raises `StoreError`.
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
        for segment in found.segments:  # one by one, for the names that the worker would give
            seal(folder, record, (segment,))
        now = _only(folder, worker)
        unfinished.take_over(worker, now)
        complete = frozenset(_among(now, rows)) if rows else frozenset()
        is_certain = lock.warning is None
        adopted = Adopted(complete, sum_totals(now), found.warnings, is_certain=is_certain)
        with storing(folder / JOURNAL, "write"):  # if it is only about to begin, it must not
            if not _has_drained(folder, worker):
                replace_file(folder / drained_name(worker), b"{}\n", durable=False)
            (folder / lock_name(worker)).unlink(missing_ok=True)
    finally:
        os.close(lock.handle)
    return adopted


def _only(folder: Path, worker: int) -> Snapshot:
    """What a worker has completed, if all of it is in parts."""
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
    """Seals rows of living workers that replace others, which this command must do. `StoreError`.

    It leaves the last two segments of each: the worker may be writing the last one, and may not
    have closed the one before, which another host may then see only in part.
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
    """Deletes the marks of these workers and of all that were adopted. `StoreError`."""
    with storing(folder / JOURNAL, "write"):
        names = [folder / lock_name(worker) for worker in workers]
        names += (folder / JOURNAL).glob("w*.drained")
        names += (folder / JOURNAL).glob("probe-*.tmp")  # of a command that was killed
        for name in names:
            name.unlink(missing_ok=True)


def wait_for_workers(
    folder: Path, waiting: Callable[[str], None], flock: Flock = fcntl.flock
) -> tuple[int, ...]:
    """Waits until all workers of earlier commands are dead or have ended; returns them.

    A worker whose command has ended finishes its requests in flight. `waiting`: called several
    times a second with what it waits for; what it raises ends the wait. Raises `StoreError`, and
    `JobError` if a newer batchrun wrote the run.
    """
    with storing(folder / JOURNAL, "list"):
        workers = workers_of(folder)
    alive = workers
    silent_s = _longest_write_s(folder) + _SPARE_S if workers else 0.0
    # The time of a lock file that proves nothing, and since when it was seen.
    silence: dict[int, tuple[int, float]] = {}
    while True:
        alive = [one for one in alive if not _is_dead(folder, one, silence, silent_s, flock)]
        if not alive:
            if workers:
                with storing(folder, "list"):
                    see_all(folder)
            return tuple(workers)
        owners = " and ".join(
            owner_in_words(folder / lock_name(one))
            + (f", taken for dead after {silent_s:.0f} s of silence" if one in silence else "")
            for one in alive
        )
        waiting(
            f"waiting for workers of the last command, which have requests in flight ({owners})"
        )
        time.sleep(_LOOK_EVERY_S)


def _longest_write_s(folder: Path) -> float:
    """How long workers of the last command may store answers after its end, by its job.

    Raises `JobError`, `StoreError`.
    """
    record = read_run_record(folder)
    job = {} if record is None else record.job
    endpoints = [job.get("endpoint"), *(one.get("endpoint") for one in job.get("variants", ()))]
    default_s = EndpointJob("").timeout_s
    timeouts_s = [one.get("timeout_s", default_s) for one in endpoints if one is not None]
    silence_s = job.get("cluster", {}).get("silence_s", ClusterJob().silence_s)
    return last_write_s(silence_s, timeouts_s or [default_s])


def _is_dead(
    folder: Path,
    worker: int,
    silence: dict[int, tuple[int, float]],
    silent_s: float,
    flock: Flock,
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
        return now_s - since_s > silent_s
    finally:
        os.close(lock.handle)


def _has_drained(folder: Path, worker: int) -> bool:
    return (folder / drained_name(worker)).exists()


def drop_doubles(folder: Path, layout: Layout) -> int:
    """Removes double rows, so that each is in one part; how many. Raises `StoreError`.

    They come from workers that were adopted and were not dead. The journal must be empty.
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
    for part in parts:  # in the order of writers: the lowest writer's row stays
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
            for of in {id_of(part): None for part in doubled}:  # a part together with its calls
                keys = set().union(*(doubled[part] for part in doubled if id_of(part) == of))
                if (folder / (calls := of.part(TOOL_CALLS))).exists():
                    kind = tool_call_schema()
                    rewrites.append(rewrite_part(files, folder, calls, kind, dropped=keys))
        of = id_of(rewrites[0].to)
        write_intent(folder, of, Intent((), (), tuple(rewrites)))
    finish(folder, of.intent)
    return sum(map(len, doubled.values()))
