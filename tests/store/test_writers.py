"""Several writers in one run directory: what each does, what is left of one, what others see."""

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from batchrun.errors import Interrupted, JobError, StoreError
from batchrun.progress.status import read_status
from batchrun.records import Answered, Outcome, Resend, UnreadableBody
from batchrun.store.files import Flock, is_driven, is_locked, live_workers
from batchrun.store.reading import (
    find_row,
    is_planning,
    may_have_lost,
    read_totals,
    read_unknown_usd,
    responses,
    state_now,
)
from batchrun.store.run_dir import RunDir
from batchrun.store.unfinished import read_answered, read_open
from batchrun.store.unreadable import read_unreadable
from batchrun.store.verify import verify
from batchrun.store.workers.worker_dir import WorkerDir
from tests.runs import run_record, standing_rows
from tests.waiting import HANG_S

Make = Callable[..., Outcome]
Query = Callable[..., list[tuple[int, ...]]]


class Team:
    """A run directory with a driver, and workers as it starts them."""

    def __init__(self, path: Path, flock: Flock = fcntl.flock) -> None:
        self.path, self._flock = path, flock
        self.driver = RunDir.open(path, flock=flock)
        self.driver.save(run_record())
        self.workers: list[WorkerDir] = []

    def worker(self, *, part_rows: int = 3, replaces: bool = False) -> WorkerDir:
        assert self.driver.record is not None
        writer = self.driver.new_writer()
        one = WorkerDir.open(self.path, writer, self.driver.record, self._flock)
        one.start(part_rows=part_rows, part_bytes=1 << 26, replaces=replaces)
        self.workers.append(one)
        return one

    def close(self) -> None:
        for one in self.workers:
            with suppress(StoreError):
                one.close()
        self.driver.close()


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    one = Team(tmp_path / "run")
    yield one
    one.close()


def files(path: Path) -> list[str]:
    return sorted(str(one.relative_to(path)) for one in path.glob("*/*"))


def test_readers_see_the_rows_of_all_writers_while_they_live(
    team: Team, answered: Make, failed: Make
) -> None:
    path = team.path
    team.driver.start(part_rows=100, part_bytes=1 << 26)
    team.driver.store(failed(0))
    first, second = team.worker(), team.worker()
    for row in range(1, 6):
        first.store(answered(row, calls=1))
    for row in range(6, 10):
        second.store(failed(row) if row == 7 else answered(row))
    assert is_driven(path)
    assert live_workers(path) == [1, 2]
    assert read_totals(path).rows == 10
    assert [row["row"] for row in find_row(path, "id-4")] == [4]
    proof = verify(path)
    assert (proof.state, proof.problems) == ("live", [])
    assert proof.rows_in_parts + proof.rows_in_journal == 10
    assert len(standing_rows(path)) == 10
    first.close(has_drained=True)
    second.close(has_drained=True)
    assert json.loads((path / "journal/w1.drained").read_bytes()) == {"rows": 5}
    team.driver.finish()  # which adopts both
    assert responses(path).count_rows() == 10
    assert files(path) == [
        "responses/w0-000001-not_ok.parquet",
        "responses/w1-000001.parquet",
        "responses/w1-000002.parquet",
        "responses/w2-000001-not_ok.parquet",
        "responses/w2-000001.parquet",
        "responses/w2-000002.parquet",
        "tool_calls/w0-000001.parquet",
        "tool_calls/w1-000001.parquet",
        "tool_calls/w1-000002.parquet",
        "tool_calls/w2-000001.parquet",
        "tool_calls/w2-000002.parquet",
    ]
    assert verify(path).problems == []


def test_a_worker_is_adopted_once_its_lock_can_be_taken(team: Team, answered: Make) -> None:
    one, other = team.worker(), team.worker()
    for row in range(5):
        one.store(answered(row))
    other.store(answered(9))
    assert team.driver.adopt(1, range(10)) is None
    one.close()  # as a kill: the last rows are in its journal
    assert "journal/w1-000002.log" in files(team.path)
    adopted = team.driver.adopt(1, range(2, 20))
    assert adopted is not None
    assert adopted.complete == {(row, 0, None) for row in (2, 3, 4)}
    assert (adopted.totals.rows, adopted.totals.ok, adopted.warnings) == (5, 5, ())
    assert [name for name in files(team.path) if "w1" in name] == [
        *("journal/w1.drained", "responses/w1-000001.parquet", "responses/w1-000002.parquet"),
        *("tool_calls/w1-000001.parquet", "tool_calls/w1-000002.parquet"),
    ]
    assert team.driver.record is not None
    with pytest.raises(JobError, match="began too late: its rows were given to others"):
        WorkerDir.open(team.path, 1, team.driver.record)
    other.store(answered(10))
    assert read_totals(team.path).rows == 7
    again = team.driver.adopt(1, range(5))  # no harm
    assert again is not None
    assert len(again.complete) == 5


def test_damage_in_the_journal_of_a_dead_worker_is_told(team: Team, answered: Make) -> None:
    for worker in (team.worker(part_rows=9), team.worker(part_rows=9)):
        for row in range(3):
            worker.store(answered(row + 3 * len(team.workers)))
        worker.close()
    for path in (team.path / "journal").glob("w?-000001.log"):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + bytes(9) + data[len(data) // 2 + 9 :])
    adopted = team.driver.adopt(1)
    assert adopted is not None
    assert len(adopted.warnings) == 1
    assert "w1-000001.log" in adopted.warnings[0]
    assert team.driver.warnings == adopted.warnings
    team.driver.finish()
    assert [re.search(r"w\d-000001.log", one)[0] for one in team.driver.warnings] == [  # type: ignore[index]
        "w1-000001.log",
        "w2-000001.log",
    ]


def test_what_workers_stored_after_a_kill_is_in_the_tables_and_not_reserved_too(
    team: Team,
) -> None:
    """`w2` was killed with its command: what it may have spent stays reserved, and once."""
    path = team.path
    drained, _, later = team.worker(), team.worker(), team.worker()
    workers = [
        {"id": "w1", "state": "running", "unknown_usd": 0.25, "reserved_usd": 1.0},
        {"id": "w2", "state": "running", "unknown_usd": 0.25, "reserved_usd": 2.0},
        {"id": "w9", "state": "adopted", "unknown_usd": 0.0, "reserved_usd": 0.0},
    ]
    team.driver.write_live({"unknown_usd": 0.75, "reserved_usd": 3.0, "workers": workers})
    record = team.driver.record
    assert record is not None
    assert read_unknown_usd(path, record) == 3.75
    assert may_have_lost(path)
    drained.close(has_drained=True, unknown_usd=0.375)
    later.close(has_drained=True, unknown_usd=0.125)  # it began after `live.json` was written
    assert read_unknown_usd(path, record) == 0.75 + 0.125 + 0.125 + 2.0
    team.close()
    for _ in range(2):  # each is killed before it has written anything
        again = RunDir.open(path)
        assert again.record is not None
        assert read_unknown_usd(path, again.record) == 3.0
        assert is_planning(path)
        assert not list(path.glob("journal/*.drained"))
        assert may_have_lost(path)
        again.close()


def test_a_number_is_never_given_again(team: Team, answered: Make) -> None:
    assert team.driver.new_writer() == 1
    team.worker().store(answered(0))
    assert team.driver.record is not None
    stale = msgspec.structs.replace(team.driver.record, writers=1)
    team.driver.save(stale)
    assert team.driver.new_writer() == 3
    team.close()
    for name in files(team.path):
        (team.path / name).unlink()
    team.driver = RunDir.open(team.path)
    assert team.driver.new_writer() == 4


def test_a_worker_that_sees_another_directory_is_refused(team: Team, tmp_path: Path) -> None:
    record = team.driver.record
    assert record is not None
    with pytest.raises(JobError, match=r"does not see this run directory \(run.json is missing"):
        WorkerDir.open(tmp_path / "other", 1, record)
    with pytest.raises(JobError, match="is another one"):
        WorkerDir.open(team.path, 1, record)  # nobody gave this number
    number = team.driver.new_writer()
    first = WorkerDir.open(team.path, number, record)
    with pytest.raises(JobError, match="in use by process"):
        WorkerDir.open(team.path, number, record)
    first.close()


def test_recovery_leaves_alone_what_living_writers_have_half_done(
    team: Team, answered: Make
) -> None:
    dead, alive = team.worker(), team.worker()
    dead.store(answered(0))
    dead.close()
    alive.store(answered(1))
    folder = team.path
    half = [
        "journal/.w2-000001.intent.tmp",
        "responses/.w2-000001.parquet.tmp",
        "tool_calls/.w2-000001.parquet.tmp",
    ]
    own = [name.replace("w2", "w1") for name in half]
    for name in (*half, *own):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"half")
    segment = folder / "journal/w2-000001.log"
    with segment.open("ab") as file:
        file.write(b"\xf6BR\xff half a frame")
    size = segment.stat().st_size
    assert team.driver.adopt(1) is not None
    assert segment.stat().st_size == size
    assert [(folder / name).exists() for name in (*half, *own)] == [True] * 3 + [False] * 3


def test_rows_that_are_sent_again_are_replaced_by_the_driver_alone(
    team: Team, answered: Make, failed: Make, query: Query
) -> None:
    path = team.path
    for rows in (range(6), range(6, 12)):
        one = team.worker(part_rows=100)
        for row in rows:
            one.store(failed(row))
        one.close(has_drained=True)
    team.driver.finish()
    again = team.driver.complete_rows(Resend(failed=True)).again
    assert len(again) == sum(again) == 12
    workers = [team.worker(part_rows=2, replaces=True) for _ in range(2)]
    for row in range(12):
        new = answered(row, calls=1)
        workers[row % 2].store(msgspec.structs.replace(new, replaces=True))
        assert read_totals(path).ok == row + 1
        assert len(standing_rows(path)) == 12
    assert not list(path.glob("responses/w[34]*"))
    team.driver.seal_full_segments()
    # Of each worker's four segments, the last being empty, two.
    assert [name for name in files(path) if "/w3" in name or "/w4" in name] == [
        "journal/w3-000003.log",
        "journal/w3-000004.log",
        "journal/w3.lock",
        "journal/w4-000003.log",
        "journal/w4-000004.log",
        "journal/w4.lock",
        *(f"responses/w{worker}-00000{part}.parquet" for worker in (3, 4) for part in (1, 2)),
        *(f"tool_calls/w{worker}-00000{part}.parquet" for worker in (3, 4) for part in (1, 2)),
    ]
    assert verify(path).problems == []
    workers[0].close(has_drained=True)
    workers[1].close()
    team.driver.finish()
    assert query("select count(*), sum(ok::int) from read_parquet(?)", path) == [(12, 12)]
    assert query("select count(*) from read_parquet(?)", path, "tool_calls") == [(12,)]
    assert not [name for name in files(path) if re.match("journal|responses/w[12]", name)]


def test_what_is_known_of_unfinished_rows_goes_from_worker_to_worker(
    team: Team, answered: Make
) -> None:
    def asked_again(row: int, raised: int = 0) -> Answered:
        outcome = answered(row)
        attempt = msgspec.structs.replace(
            outcome.attempts[0], client_request_id=f"c-{row}-{raised}"
        )
        outcome = msgspec.structs.replace(outcome, attempts=(attempt,), cost_usd=0.5)
        return Answered(outcome.request.key, 0, outcome, 100, raised)

    url = "https://example.test/v1"
    request = [answered(row).request for row in range(6)]
    first, second = team.worker(), team.worker()
    first.unfinished.begin(request[0], url, "resp_a")
    first.unfinished.begin(request[1], url, "resp_b")
    first.unfinished.record(asked_again(2))
    first.unfinished.record(asked_again(3))
    done = msgspec.structs.replace(
        answered(1), result=msgspec.structs.replace(answered(1).result, id="resp_b")
    )
    first.store(done)
    second.unfinished.begin(request[4], url, "resp_c")
    assert {one.key[0] for one in read_open(team.path)} == {f"id-{row}" for row in range(5)}
    assert len(read_answered(team.path)) == 2
    first.close()
    assert team.driver.adopt(1) is not None
    assert not (team.path / "journal/w1.open").exists()
    assert (team.path / "journal/w2.open").exists()
    assert team.driver.unfinished.answers == 2
    assert team.driver.unfinished.cost_usd == 1.0

    # The rows go to the second worker, which goes on from there.
    assert second.unfinished.answered(request[2].key) is None
    second.unfinished.refresh()
    assert second.unfinished.answered(request[2].key) == asked_again(2)
    begun = second.unfinished.begun(request[0].key)
    assert begun is not None
    assert begun.response_id == "resp_a"
    assert second.unfinished.begun(request[1].key) is None
    second.unfinished.record(asked_again(2, raised=1))
    team.driver.unfinished.begin(request[5], url, "resp_d")  # its file is another one now
    assert second.unfinished.answered(request[3].key) == asked_again(3)
    second.unfinished.refresh()
    assert second.unfinished.answered(request[2].key) == asked_again(2, raised=1)
    last = {one.key[0]: one for one in read_answered(team.path)}
    assert last["id-2"].raised == 1

    second.store(answered(0, id="resp_a"))
    second.close()
    assert team.driver.adopt(2) is not None
    assert team.driver.unfinished.begun(request[0].key) is None
    assert team.driver.unfinished.answered(request[2].key) == asked_again(2, raised=1)
    assert [one.name for one in team.path.glob("journal/*.open")] == ["w0.open"]
    assert {one.key[0] for one in read_open(team.path)} == {"id-2", "id-3", "id-4", "id-5"}


def test_bodies_that_nobody_could_read_are_shown_whoever_got_them(team: Team) -> None:
    key = ("id-1", 0, None)
    bodies = [UnreadableBody(key, f"c{at}", at * 10**6, 200, None, b"?") for at in range(1, 4)]
    writers = [one.unreadable for one in (team.driver, team.worker(), team.worker())]
    for writer, body in zip(writers, reversed(bodies), strict=True):
        writer.add(body)
    found = read_unreadable(team.path, "id-1")
    assert [line["client_request_id"] for line in found] == ["c1", "c2", "c3"]


def test_the_next_command_waits_for_workers_that_land_what_they_have(
    team: Team, answered: Make
) -> None:
    one, dead = team.worker(), team.worker()
    one.store(answered(0))
    dead.store(answered(1))
    dead.close()
    team.driver.close()
    assert is_locked(team.path)
    assert not is_driven(team.path)
    status = read_status(team.path)
    assert (status.state, status.ok, status.next_command) == ("stopping", 2, None)
    assert "1 worker (w1) still waits for requests in flight" in str(status.message)
    assert verify(team.path).state == "live"
    assert team.driver.record is not None
    assert state_now(team.path, team.driver.record) == "running"

    def give_up(_what: str) -> None:
        raise Interrupted("stop", 130)

    with pytest.raises(Interrupted):
        RunDir.open(team.path, waiting=give_up)
    said: list[str] = []

    def land(what: str) -> None:
        if not said:
            one.store(answered(2))
            one.close(has_drained=True)
        said.append(what)

    team.driver = RunDir.open(team.path, waiting=land)
    assert (
        "waiting for workers of the last command, which have requests in flight (process" in said[0]
    )
    assert sorted(team.driver.complete_rows().rows) == [0, 1, 2]
    assert [name for name in files(team.path) if "journal" in name] == ["journal/w2-000001.log"]
    team.driver.finish()
    assert verify(team.path).problems == []


def _cannot_lock(_handle: int, _how: int) -> None:
    raise OSError(errno.ENOTSUP, "no locks here")


def test_where_nothing_can_be_locked_two_rows_become_the_lower_writers(
    tmp_path: Path, answered: Make, query: Query
) -> None:
    team = Team(tmp_path / "run", _cannot_lock)
    path, driver, record = team.path, team.driver, team.driver.record
    assert record is not None
    zombie, other, last, late = (team.worker(part_rows=4) for _ in range(4))
    assert not any(one.can_lock for one in team.workers)
    for row in range(3):
        zombie.store(answered(row, calls=1))
    assert driver.adopt(1, range(9)) is None  # it may live
    adopted = driver.adopt(1, range(9), is_silent=True)
    assert adopted is not None
    assert len(adopted.complete) == 3
    # It does: what it still writes is lost, or stands beside what others write.
    for row in range(3, 9):
        with suppress(StoreError):
            zombie.store(answered(row, calls=2, text="zombie"), anyway=True)
    zombie.write_until(0.0)
    with pytest.raises(StoreError, match="was silent for too long"):
        zombie.store(answered(9))
    for row in range(3, 9):
        (other if row % 2 else last).store(answered(row, calls=1))
    for row in range(3):
        late.store(answered(row, calls=2, text="late"))
    for one in (other, last, late):
        one.close(has_drained=True)
    with suppress(StoreError):
        zombie.close(has_drained=True)
    driver.finish()
    assert query("select count(*), count(distinct row) from read_parquet(?)", path) == [(9, 9)]
    found = query("select row from read_parquet(?) where output_text = 'zombie'", path)
    assert not query("select row from read_parquet(?) where output_text = 'late'", path)
    calls = query("select row, count(*) from read_parquet(?) group by row", path, "tool_calls")
    assert sorted(calls) == [(row, 2 if (row,) in found else 1) for row in range(9)]
    driver.save(msgspec.structs.replace(record, writers=4, rows=9, totals=read_totals(path)))
    driver.close()
    assert verify(path).problems == []


def test_what_a_worker_wrote_too_late_is_found_by_the_next_command(
    tmp_path: Path, answered: Make
) -> None:
    team = Team(tmp_path / "run", _cannot_lock)
    path, driver = team.path, team.driver
    zombie, other = team.worker(part_rows=10), team.worker(part_rows=10)
    for one in team.workers:
        one.store(answered(0))
    other.close(has_drained=True)
    driver.adopt(2)
    driver.close()
    zombie.close(has_drained=True)
    driver = RunDir.open(path, flock=_cannot_lock)
    assert list(driver.complete_rows().rows) == [0]
    driver.finish()
    driver.close()
    assert [name for name in files(path) if "responses" in name] == ["responses/w1-000001.parquet"]


def test_where_nothing_can_be_locked_a_worker_lives_as_long_as_it_renews_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.store.workers.adoption._SPARE_S", 0.1)
    path = tmp_path / "run"
    driver = RunDir.open(path, flock=_cannot_lock)
    driver.save(run_record(job={"endpoint": {"timeout_s": 0.1}, "cluster": {"silence_s": 0.1}}))
    record = driver.record
    assert record is not None
    worker = WorkerDir.open(path, driver.new_writer(), record, flock=_cannot_lock)
    driver.close()
    (path / "journal/w1.lock").write_text("elsewhere 17\n")
    times: list[float] = []

    def look(what: str) -> None:
        assert "process 17 on elsewhere" in what
        times.append(time.monotonic())
        if len(times) < 6:  # as the thread that syncs does
            os.utime(path / "journal/w1.lock")

    RunDir.open(path, waiting=look, flock=_cannot_lock).close()
    assert times[-1] - times[5] >= 0.2
    assert not (path / "journal/w1.lock").exists()
    worker.close()


@pytest.mark.parametrize(
    "job",
    [
        {"endpoint": {"timeout_s": 600.0}, "cluster": {"silence_s": 30.0}},
        {
            "endpoint": {"timeout_s": 1.0},
            "variants": [{"endpoint": None}, {"endpoint": {"timeout_s": 600.0}}],
        },
        {},  # the defaults are the same
    ],
)
def test_where_nothing_can_be_locked_a_worker_is_waited_for_as_long_as_it_may_store_answers(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that stands still renews nothing, and may go on."""
    path = tmp_path / "run"
    driver = RunDir.open(path, flock=_cannot_lock)
    driver.save(run_record(job=job))
    assert driver.record is not None
    worker = WorkerDir.open(path, driver.new_writer(), driver.record, flock=_cannot_lock)
    driver.close()
    (path / "journal/w1.lock").write_text("elsewhere 17\n")
    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += 20 * seconds

    clock = SimpleNamespace(monotonic=lambda: now_s, sleep=sleep)
    monkeypatch.setattr("batchrun.store.workers.adoption.time", clock)
    said: set[str] = set()
    RunDir.open(path, waiting=said.add, flock=_cannot_lock).close()
    assert 30 + 1.05 * 600 < now_s < 700
    assert "process 17 on elsewhere, taken for dead after 665 s of silence" in said.pop()
    worker.close()


def test_a_damaged_intent_takes_only_the_segments_that_its_parts_hold(
    team: Team, answered: Make
) -> None:
    """The segments of a worker whose rows are sent again wait in the journal; others do not."""
    one = team.worker(part_rows=2, replaces=False)
    for row in range(2):
        one.store(answered(row))
    one.close(has_drained=True)
    path = team.path
    older = team.worker(part_rows=100, replaces=True)
    older.store(answered(5))
    older.close()
    (path / "journal/w2-000001.log").rename(path / "journal/w1-000000.log")
    (path / "journal/w1-000001.intent").write_bytes(b"damaged")
    assert team.driver.adopt(1) is not None
    assert read_totals(path).rows == 3


def _torture(folder: Path, seed: int, rows: int, kills: int, *more: str) -> dict[str, int]:
    """What was killed; each law that does not hold fails."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.store.writer_processes", str(folder)),
            *(*map(str, (seed, rows, kills)), *more),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_S,
    )
    notes = [line.split(maxsplit=1) for line in (folder / "notes").read_text().splitlines()]
    assert [words for words in notes if words[0] == "wrong"] == []
    assert done.returncode == 0, done.stderr
    killed: dict[str, int] = json.loads(done.stdout)
    ends = [at for at, words in enumerate(notes) if words[0] == "ended"]
    again = 0
    for first, end, asked in ((0, ends[0], range(rows)), (ends[0], ends[1], range(0, rows, 3))):
        begun = [int(w[1].split()[0]) for w in notes[first:end] if w[0] == "begun"]
        stored = [int(w[1].split()[0]) for w in notes[first:end] if w[0] == "stored"]
        assert set(begun) == set(asked)
        assert len(stored) == len(set(stored))
        again += len(begun) - len(set(begun))
    assert again <= killed.get("worker", 0)  # what each had in flight; for a driver nothing
    run = folder / "run"
    assert len(standing_rows(run)) == rows
    assert all(ok for ok, _ in standing_rows(run).values())
    proof = verify(run)
    assert (proof.state, proof.problems, proof.notes) == ("finished", [], [])
    assert proof.rows_in_parts == proof.tool_calls == rows
    return killed


def test_kills_of_three_workers_and_their_driver(tmp_path: Path) -> None:
    killed = _torture(tmp_path, 1, 240, 5)
    assert killed


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_many_kills_of_three_workers_and_their_driver(tmp_path: Path, seed: int) -> None:
    killed = _torture(tmp_path, seed, 3_000, 60, *(["in_process"] if seed == 3 else []))
    assert min(killed["worker"], killed["driver"]) > 0
