"""What is missing or damaged in the folder of a run in a store: the store has it whole."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from batchrun.errors import StoreError
from batchrun.remote.run_link import change_link
from batchrun.store.run_dir import RunDir
from tests.remote.object_server import Bucket
from tests.remote.test_store_kills import check


def test_a_record_that_is_not_here_comes_from_the_store_and_is_never_deleted_there(
    bucket: Bucket,
    s3: dict[str, str],
    killed_at: Callable[..., bool],
    batchrun: Callable[..., CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    write_run: Callable[..., str],
    tmp_path: Path,
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    url = f"{bucket.url}/run"
    words = ("run", write_run(20, url, ""), "--simulate", "--quiet")
    assert killed_at(1, "before", *words, counts="/responses/")
    (scratch,) = (tmp_path / "state/batchrun").iterdir()
    (claim,) = bucket.names("run/claims/")
    record, claimant = bucket.get("run/run.json"), bucket.get(claim)
    assert record is not None
    assert claimant is not None
    for damage in (None, b'{"schema_ver'):
        if damage is None:
            (scratch / "run.json").unlink()
        else:
            (scratch / "run.json").write_bytes(damage)
        run_dir = RunDir.open(scratch, url)
        assert len(run_dir.complete_rows().rows) == 20
        assert bucket.get("run/run.json") == record
        run_dir.close()
        bucket.put(claim, claimant)  # as if it had been killed again
        change_link(scratch, claim=claim)
    run_dir = RunDir.open(scratch, url)
    (scratch / "events.jsonl").unlink()
    run_dir.close()
    assert bucket.get("run/events.jsonl")
    (scratch / "run.json").unlink()
    bucket.delete("run/run.json")
    before = {name: bucket.get(name) for name in bucket.names()}
    with pytest.raises(StoreError, match=r"run\.json is missing, but there are stored rows"):
        RunDir.open(scratch, url)
    assert {name: bucket.get(name) for name in bucket.names()} == before
    bucket.put("run/run.json", record)
    done = batchrun(*words, env=s3)
    assert done.returncode == 0, done.stderr
    check(bucket, tmp_path, 20)
