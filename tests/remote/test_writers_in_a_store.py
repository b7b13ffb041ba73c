"""Several writers of one run in a store: whose parts are where, and who has which number."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from batchrun.errors import StoreError
from batchrun.records import Totals, UnreadableBody
from batchrun.remote.access import SECRETS, own_access, take_access, why_not_written
from batchrun.store.complete_rows import EarlierRows, Span
from batchrun.store.reading import read_totals, run_folder
from batchrun.store.run_dir import RunDir
from batchrun.store.snapshot import snapshot
from batchrun.store.unreadable import read_unreadable
from batchrun.store.verify import verify
from batchrun.store.workers.worker_dir import WorkerDir
from tests.remote.object_server import Bucket
from tests.runs import refused, run_record


class Machine:
    """A folder for journals, and the command on it that has the run."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.driver = RunDir.open(folder, url)
        if self.driver.record is None:
            self.driver.save(run_record(rows=40))
        self._workers: list[WorkerDir] = []

    def worker(self, *rows: int) -> WorkerDir:
        """One that has completed these."""
        assert self.driver.record is not None
        one = WorkerDir.open(self.folder, self.driver.new_writer(), self.driver.record)
        one.start(part_rows=4, part_bytes=1 << 26)
        self._workers.append(one)
        for row in rows:
            one.store(refused(row))
        return one

    def close(self) -> None:
        for one in self._workers:
            with suppress(StoreError):
                one.close()
        with suppress(StoreError):
            self.driver.close()


@pytest.fixture
def machine(
    bucket: Bucket, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[str], Machine]]:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    made: list[Machine] = []

    def make(name: str) -> Machine:
        made.append(Machine(tmp_path / name, f"{bucket.url}/run"))
        return made[-1]

    yield make
    for one in made:
        one.close()


def rows_of(folder: Path) -> list[str]:
    """Of all writers, in parts and in journals."""
    with snapshot(folder) as now:
        return sorted(
            name for batch in now.batches(("custom_id",)) for name in batch["custom_id"].to_pylist()
        )


def writers(bucket: Bucket) -> set[str]:
    return {name.rpartition("/")[2].partition("-")[0] for name in bucket.names("run/responses/")}


def test_each_writer_has_parts_of_its_own_and_what_a_dead_one_left_is_adopted(
    bucket: Bucket, machine: Callable[[str], Machine]
) -> None:
    here = machine("here")
    first, second = here.worker(*range(6)), here.worker(*range(6, 9))
    first.unreadable.add(UnreadableBody(("q1", 0, None), None, 1, 200, None, b"<html>"))
    first.close(has_drained=True)  # its rows are in the store, all of them
    assert bucket.names("run/responses/") == [
        f"run/responses/w1-{number:06}-not_ok.parquet" for number in (1, 2)
    ]
    second.close()  # as if it was killed
    assert writers(bucket) == {"w1"}
    adopted = here.driver.adopt(second.writer, [6, 7, 30])
    assert adopted is not None
    assert {row for row, _, _ in adopted.complete} == {6, 7}
    assert writers(bucket) == {"w1", "w2"}
    here.driver.close(seal=True)
    assert bucket.names("run/journal/") == ["run/journal/w0.started"]
    with run_folder(f"{bucket.url}/run") as seen:
        assert seen != here.folder
        assert read_totals(seen).rows == 9
        assert rows_of(seen) == rows_of(here.folder) == [f"q{row}" for row in range(9)]
        assert verify(seen).problems == []
        assert len(read_unreadable(seen, "q1")) == 1


def test_no_two_machines_give_the_same_number(
    bucket: Bucket, machine: Callable[[str], Machine]
) -> None:
    """Also where workers have journals alone, which no other machine sees."""
    here = machine("here")
    here.worker(*range(3))
    here.worker(*range(3, 6)).close()
    here.close()  # as if all were killed
    there = machine("there")
    there.worker(*range(2)).close()
    there.close()
    assert "w3.started" in {name.rpartition("/")[2] for name in bucket.names("run/journal/")}
    back = machine("here")
    last = back.worker(10)
    assert last.writer == 5
    last.close(has_drained=True)
    back.driver.close(seal=True)
    again = machine("there")
    again.driver.close(seal=True)
    assert rows_of(again.folder) == sorted(f"q{row}" for row in (*range(6), 10))


def test_a_worker_puts_nothing_into_a_run_that_another_command_has_taken(
    bucket: Bucket, machine: Callable[[str], Machine]
) -> None:
    here = machine("here")
    one = here.worker(0, 1)
    for claim in bucket.names("run/claims/"):
        bucket.delete(claim)
    with pytest.raises(StoreError, match="another command has taken this run"):
        one.close(has_drained=True)
    assert bucket.names("run/responses/") == []
    assert rows_of(here.folder) == ["q0", "q1"]


def test_a_worker_tries_the_store_and_leaves_nothing_there(
    bucket: Bucket, machine: Callable[[str], Machine]
) -> None:
    here = machine("here")
    keys = bucket.names()
    assert why_not_written(here.folder, "token") is None
    assert bucket.names() == keys
    assert why_not_written(here.folder.parent, "token") is None


def test_a_part_that_the_store_has_anew_is_read_once_its_stub_has_come(
    machine: Callable[[str], Machine],
) -> None:
    """Parts that are replaced get their names in the store first, and then stubs here."""
    here = machine("here")
    here.worker(*range(4)).close(has_drained=True)
    (part,) = here.folder.glob("responses/*.parquet")
    old = part.read_bytes()
    here.driver.close(seal=True)
    here = machine("here")
    here.driver.drop_rows([("q1", 0, None)], read_totals(here.folder), Totals())
    new = part.read_bytes()
    part.write_bytes(old)  # as an instant before
    timer = threading.Timer(0.3, lambda: part.with_suffix(".new").replace(part))
    part.with_suffix(".new").write_bytes(new)
    timer.start()
    spans = [Span(part, 0, 3)]
    assert set(EarlierRows(spans).find({("q0", 0, None): 0, ("q3", 0, None): 3})) == {
        ("q0", 0, None),
        ("q3", 0, None),
    }
    timer.join()
    part.write_bytes(old)
    part.with_suffix(".new").write_bytes(new)
    timer = threading.Timer(0.3, lambda: part.with_suffix(".new").replace(part))
    timer.start()
    assert read_totals(here.folder).rows == 3
    timer.join()


@pytest.mark.parametrize(
    "intent",
    [
        b'{"puts": {"respon',
        # It arrived when its command had lost its claim, and another one had deleted the objects.
        b"""{"puts": {"responses/w0-000001.parquet": "responses/.w0-000001.parquet.tmp",
            "tool_calls/w0-000001.parquet": "tool_calls/.w0-000001.parquet.tmp"},
            "deletes": ["responses/w1-000001-not_ok.parquet"]}""",
    ],
    ids=["half", "late"],
)
def test_an_intent_that_is_half_or_late_changes_nothing(
    intent: bytes, bucket: Bucket, machine: Callable[[str], Machine]
) -> None:
    here = machine("here")
    here.worker(*range(4)).close(has_drained=True)
    here.driver.close(seal=True)
    assert "run/responses/w1-000001-not_ok.parquet" in bucket.names()
    bucket.put("run/journal/w0-000001.intent", intent)
    bucket.put("run/responses/.w0-000001.parquet.tmp", b"PAR1")
    with run_folder(f"{bucket.url}/run") as seen:
        assert read_totals(seen).rows == 4
    there = machine("there")
    assert read_totals(there.folder).rows == 4
    assert not [name for name in bucket.names() if name.endswith((".intent", ".tmp"))]


def test_what_opens_a_store_goes_to_workers_by_whole_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in own_access():
        monkeypatch.delenv(name, raising=False)
    assert own_access() == {}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ours")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret of ours")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/not/on/every/machine.json")
    access = own_access()
    assert {name for name, text in access.items() if text == "secret of ours"} <= {*SECRETS}
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another machine's key")
    monkeypatch.setenv("AZURE_STORAGE_KEY", "stays")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/of/this/machine.json")
    take_access(access)
    assert own_access() == {
        **access,
        "GOOGLE_APPLICATION_CREDENTIALS": "/of/this/machine.json",
        **dict.fromkeys(("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_KEY")),
        **dict.fromkeys(("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_ACCOUNT_NAME")),
        **dict.fromkeys(("AZURE_STORAGE_ACCOUNT",)),
        "AZURE_STORAGE_KEY": "stays",
    }
