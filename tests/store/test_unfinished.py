"""What is on disk of rows without an outcome: background work begun, answers asked for again."""

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from batchrun.errors import StoreError
from batchrun.records import Answered, Begun, Outcome, Request
from batchrun.store.journal import frame_of
from batchrun.store.run_dir import RunDir
from batchrun.store.unfinished import UnfinishedRows, read_open

Make = Callable[..., Outcome]
OPEN = "journal/w0.open"
URL = "https://example.test/v1"


def _request(row: int) -> Request:
    return Request(row, f"id-{row}", "file", b"{}", f"{row:016x}", "m", None, ())


def _key(row: int) -> tuple[str, int, None]:
    return f"id-{row}", 0, None


def _begun(folder: Path) -> dict[str, str]:
    return {one.key[0]: one.response_id for one in read_open(folder) if isinstance(one, Begun)}


def _answered(outcome: Outcome, raised: int = 0) -> Answered:
    return Answered(outcome.request.key, 0, outcome, 100, raised)


def test_what_has_begun_is_known_to_the_next_process(tmp_path: Path) -> None:
    rows = UnfinishedRows(tmp_path, 0)
    rows.begin(_request(1), URL, "resp_1")
    rows.begin(_request(2), URL, "resp_2")
    # no close: the process was killed
    after = UnfinishedRows(tmp_path, 0)
    assert after.begun(_key(1)) == Begun(_key(1), f"{1:016x}", URL, "resp_1")
    assert _begun(tmp_path) == {"id-1": "resp_1", "id-2": "resp_2"}


def test_a_row_that_was_begun_again_has_its_last_response(tmp_path: Path) -> None:
    rows = UnfinishedRows(tmp_path, 0)
    rows.begin(_request(1), URL, "resp_1")
    rows.begin(_request(1), URL, "resp_9")
    begun = UnfinishedRows(tmp_path, 0).begun(_key(1))
    assert begun is not None
    assert begun.response_id == "resp_9"


def test_what_has_an_outcome_is_forgotten_and_the_file_with_it(tmp_path: Path) -> None:
    rows = UnfinishedRows(tmp_path, 0)
    rows.begin(_request(1), URL, "resp_1")
    rows.begin(_request(2), URL, "resp_2")
    rows.drop(_key(1))
    rows.close()
    assert _begun(tmp_path) == {"id-2": "resp_2"}
    after = UnfinishedRows(tmp_path, 0)
    after.drop(_key(2))
    after.close()
    assert not (tmp_path / OPEN).exists()


def test_a_torn_record_costs_only_itself_and_later_ones_are_not_lost(tmp_path: Path) -> None:
    rows = UnfinishedRows(tmp_path, 0)
    rows.begin(_request(1), URL, "resp_1")
    path = tmp_path / OPEN
    whole = path.read_bytes()
    rows.begin(_request(2), URL, "resp_2")
    path.write_bytes(path.read_bytes()[: len(whole) + 7])
    after = UnfinishedRows(tmp_path, 0)
    assert after.begun(_key(2)) is None
    after.begin(_request(3), URL, "resp_3")
    assert list(_begun(tmp_path)) == ["id-1", "id-3"]


def test_an_answer_that_is_asked_for_again_is_whole_after_a_kill(
    tmp_path: Path, answered: Make
) -> None:
    rows = UnfinishedRows(tmp_path, 0)
    first = msgspec.structs.replace(answered(1, truncated=True), cost_usd=0.25)
    rows.record(_answered(first))
    rows.record(_answered(first, raised=1))
    rows.record(_answered(answered(2)))
    after = UnfinishedRows(tmp_path, 0)
    assert (after.answers, after.cost_usd) == (2, 0.25)
    assert after.answered(_key(1)) == _answered(first, raised=1)
    assert after.answered(_key(3)) is None


def test_work_begun_to_ask_again_is_known_beside_the_answer_and_older_work_is_not(
    tmp_path: Path, answered: Make
) -> None:
    rows = UnfinishedRows(tmp_path, 0)
    request, record = answered(1).request, _answered(answered(1))
    rows.begin(request, URL, "resp_first")
    rows.record(record)
    for known in (rows, UnfinishedRows(tmp_path, 0)):
        assert known.begun(_key(1)) is None  # it has come to this answer
        assert known.answered(_key(1)) == record
    rows.begin(request, URL, "resp_second")
    rows.close()
    after = UnfinishedRows(tmp_path, 0)
    after.begin(_request(2), URL, "resp_2")  # the file is written anew
    for known in (after, UnfinishedRows(tmp_path, 0)):
        begun = known.begun(_key(1))
        assert begun is not None
        assert begun.response_id == "resp_second"
        assert known.answered(_key(1)) == record


def test_the_file_is_rewritten_when_most_of_it_is_obsolete(tmp_path: Path, answered: Make) -> None:
    rows = UnfinishedRows(tmp_path, 0)
    kept = _answered(answered(0, text="kept"))
    rows.record(kept)
    for row in range(1, 60):
        rows.record(_answered(answered(row, text="t" * 1_000_000)))
        rows.drop(_key(row))
    assert (tmp_path / OPEN).stat().st_size < 30_000_000
    assert rows.answered(_key(0)) == kept
    assert UnfinishedRows(tmp_path, 0).answered(_key(0)) == kept


def test_a_folder_that_cannot_be_synced_after_a_rewrite_moves_no_record_unseen(
    tmp_path: Path, answered: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file is there by then, and its records are at other places."""
    rows = UnfinishedRows(tmp_path, 0)
    for row in range(3):
        rows.record(_answered(answered(row, text="t" * (row + 1))))
    rows.drop(_key(0))

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as fails:
        fails.setattr(os, "fsync", fsync)
        with pytest.raises(StoreError, match="Too many open files"):
            rows.close()
    rows.begin(_request(3), URL, "resp_3")
    rows.close()
    for known in (rows, UnfinishedRows(tmp_path, 0)):
        for row in (1, 2):
            assert known.answered(_key(row)) == _answered(answered(row, text="t" * (row + 1)))


def test_records_of_another_writer_are_taken_over(tmp_path: Path, answered: Make) -> None:
    other = UnfinishedRows(tmp_path, 3)
    other.begin(_request(1), URL, "resp_1")
    other.record(_answered(answered(2)))
    mine = UnfinishedRows(tmp_path, 0)
    mine.begin(_request(3), URL, "resp_3")
    assert [path.name for path in (tmp_path / "journal").iterdir()] == ["w0.open"]
    assert _begun(tmp_path) == {"id-1": "resp_1", "id-3": "resp_3"}
    assert mine.answered(_key(2)) == _answered(answered(2))


def test_records_of_schema_1_are_read_and_taken_into_the_new_file(tmp_path: Path) -> None:
    class Started(msgspec.Struct):
        row: int
        custom_id: str
        hash: str
        response_id: str

    (tmp_path / "journal").mkdir()
    old = frame_of(Started(7, "id-7", "00ff", "resp_7"), 0)
    (tmp_path / "journal" / "w0.started").write_bytes(old)
    rows = UnfinishedRows(tmp_path, 0)
    assert rows.begun(_key(7)) == Begun(_key(7), "00ff", "", "resp_7")
    rows.close()  # nothing was said, so nothing is written
    assert (tmp_path / "journal" / "w0.started").read_bytes() == old
    rows.begin(_request(8), URL, "resp_8")
    assert _begun(tmp_path) == {"id-7": "resp_7", "id-8": "resp_8"}
    assert not (tmp_path / "journal" / "w0.started").exists()
    rows.begin(_request(7), URL, "resp_newer")
    (tmp_path / "journal" / "w0.started").write_bytes(old)  # as a kill may leave it
    begun = UnfinishedRows(tmp_path, 0).begun(_key(7))
    assert begun is not None
    assert begun.response_id == "resp_newer"


def test_many_threads_at_once_lose_nothing(tmp_path: Path) -> None:
    """Begun in threads, dropped in one, written anew meanwhile: as with a thousand in flight."""
    rows = UnfinishedRows(tmp_path, 0)

    def begin(first: int) -> None:
        for row in range(first, first + 100):
            rows.begin(_request(row), URL, f"resp_{row}")
            if row % 2:
                rows.drop(_key(row))
            rows.sync()

    threads = [threading.Thread(target=begin, args=(100 * at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert rows.answers == 0
        for row in range(0, 800, 7):
            rows.begun(_key(row))
    for thread in threads:
        thread.join()
    rows.close()
    assert set(_begun(tmp_path)) == {f"id-{row}" for row in range(0, 800, 2)}


def test_an_outcome_that_knows_the_answer_makes_its_record_obsolete(
    tmp_path: Path, begin: Callable[..., RunDir], answered: Make
) -> None:
    """A kill came between the outcome's record and the end of this one."""

    def tried(row: int, client_id: str) -> Outcome:
        outcome = answered(row)
        attempt = msgspec.structs.replace(outcome.attempts[0], client_request_id=client_id)
        return msgspec.structs.replace(outcome, attempts=(attempt,))

    run_dir = begin(tmp_path / "run")
    for row in range(3):
        run_dir.unfinished.record(_answered(tried(row, f"client-{row}")))
    run_dir.close()
    run_dir = RunDir.open(tmp_path / "run")
    assert run_dir.record is not None
    run_dir.start(part_rows=10, part_bytes=1 << 20)
    run_dir.unfinished = UnfinishedRows(tmp_path / "nowhere", 0)
    run_dir.store(tried(0, "client-0"))
    run_dir.store(tried(1, "another"))  # an older outcome, which the answer is to replace
    run_dir.close()
    run_dir = RunDir.open(tmp_path / "run")
    assert run_dir.unfinished.answers == 3
    run_dir.complete_rows()
    assert run_dir.unfinished.answered(_key(0)) is None
    assert run_dir.unfinished.answered(_key(1)) is not None
    assert run_dir.unfinished.answered(_key(2)) is not None
    run_dir.close()
    assert [one.key for one in read_open(tmp_path / "run")] == [_key(1), _key(2)]
