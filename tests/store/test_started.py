from pathlib import Path

from batchrun.records import Request
from batchrun.store.started import STARTED, StartedLog


def _request(row: int) -> Request:
    return Request(row, f"id-{row}", "file", b"{}", f"{row:016x}", "m", None, ())


def test_what_has_begun_is_known_to_the_next_process(tmp_path: Path) -> None:
    log = StartedLog(tmp_path)
    log.begin(_request(1), "resp_1")
    log.begin(_request(2), "resp_2")
    # no close: the process was killed
    after = StartedLog(tmp_path)
    assert {key: begun.response_id for key, begun in after.open.items()} == {
        "id-1": "resp_1",
        "id-2": "resp_2",
    }
    assert after.open["id-2"].hash == f"{2:016x}"


def test_a_row_that_was_begun_again_has_its_last_response(tmp_path: Path) -> None:
    log = StartedLog(tmp_path)
    log.begin(_request(1), "resp_1")
    log.begin(_request(1), "resp_9")
    assert StartedLog(tmp_path).open["id-1"].response_id == "resp_9"


def test_what_is_settled_is_forgotten_and_the_file_with_it(tmp_path: Path) -> None:
    log = StartedLog(tmp_path)
    log.begin(_request(1), "resp_1")
    log.begin(_request(2), "resp_2")
    log.settle("id-1")
    log.close()
    after = StartedLog(tmp_path)
    assert list(after.open) == ["id-2"]
    after.settle("id-2")
    after.close()
    assert not (tmp_path / "journal" / STARTED).exists()


def test_a_torn_record_costs_only_itself_and_later_ones_are_not_lost(tmp_path: Path) -> None:
    log = StartedLog(tmp_path)
    log.begin(_request(1), "resp_1")
    path = tmp_path / "journal" / STARTED
    whole = path.read_bytes()
    log.begin(_request(2), "resp_2")
    path.write_bytes(path.read_bytes()[: len(whole) + 7])
    after = StartedLog(tmp_path)
    assert list(after.open) == ["id-1"]
    after.begin(_request(3), "resp_3")
    assert list(StartedLog(tmp_path).open) == ["id-1", "id-3"]
