"""Claims in a store whose clock the tests set: who has a run, and who gives way."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from batchrun.errors import JobError, StoreError
from batchrun.job.job_file import LONGEST_SILENCE_S
from batchrun.remote import claims
from batchrun.remote.claims import RENEW_S, STALE_S, Claim
from batchrun.remote.run_link import Link, place_of, read_link, write_link
from batchrun.store.run_dir import RunDir
from tests.remote.object_server import Bucket, Call, Clock, Proxy
from tests.runs import refused, run_record
from tests.waiting import HANG_S, wait_until

Make = Callable[[str], Claim]
CLAIMS = "run/claims/"


@pytest.fixture
def claim(
    bucket: Bucket,
    proxy: Proxy,
    s3: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Make:
    """The claim of a command whose journal is in a folder of this name."""
    for name, value in {**s3, "AWS_ENDPOINT_URL": proxy.address}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(claims, "_PAUSE_S", 0.01)
    return lambda name: Claim(*place_of(Link(f"{bucket.url}/run")), tmp_path / name)


def test_a_claim_that_is_renewed_keeps_others_out(
    bucket: Bucket, claim: Make, store_clock: Clock
) -> None:
    first, second = claim("first"), claim("second")
    first.take("s3://a/run")
    for ahead_s in (0, STALE_S - 5, 2 * STALE_S - 10):
        store_clock.ahead_s = ahead_s
        with pytest.raises(JobError, match=r"run is in use by process \d+ on .*/first there"):
            second.take("s3://a/run")
        assert bucket.names(CLAIMS) == [first.key]
        first.renew()


def test_a_claim_that_was_not_renewed_is_deleted_and_the_run_taken(
    bucket: Bucket, claim: Make, store_clock: Clock
) -> None:
    first, second = claim("first"), claim("second")
    first.take("s3://a/run")
    store_clock.ahead_s = STALE_S + 2
    second.take("s3://a/run")
    assert bucket.names(CLAIMS) == [second.key]
    assert first.written_at() is None
    assert second.is_alone()
    with pytest.raises(JobError, match="in use by process"):
        first.take("s3://a/run")


def test_a_claim_of_the_same_names_is_not_taken_for_ones_own(bucket: Bucket, claim: Make) -> None:
    """Two containers may have one host name, and each a folder of its own at one path."""
    first, second = claim("first"), claim("first")
    first.take("s3://a/run")
    with pytest.raises(JobError, match="its claim expires after 60 s"):
        second.take("s3://a/run")
    assert bucket.names(CLAIMS) == [first.key]


@pytest.mark.usefixtures("claim")
def test_what_a_killed_command_left_does_not_keep_out_the_next_one_from_its_folder(
    bucket: Bucket, tmp_path: Path
) -> None:
    """Whether it was killed while it took the claim, or later."""
    url = f"{bucket.url}/run"
    key = f"{CLAIMS}0123456789abcdef"
    for name, link in (("a", Link(url, begun=key)), ("b", Link(url, claim=key))):
        (tmp_path / name).mkdir()
        bucket.put(key, b'{"host": "h", "pid": 1, "scratch": "s"}')
        write_link(tmp_path / name, link)
        RunDir.open(tmp_path / name, url).close()
        assert bucket.names(CLAIMS) == []


@pytest.mark.parametrize("look", [1, 2, 3])
def test_a_claim_that_is_released_while_it_is_looked_at_is_skipped(
    look: int, bucket: Bucket, claim: Make, proxy: Proxy
) -> None:
    """It was listed; before the request of this number, which reads it, it is deleted."""
    first, second = claim("first"), claim("second")
    first.take("s3://a/run")
    looks: list[Call] = []

    def rule(call: Call) -> None:
        if call.method in ("GET", "HEAD") and call.path.endswith(first.key):
            looks.append(call)
            if len(looks) == look:
                bucket.delete(first.key)

    proxy.rule = rule
    second.take("s3://a/run")
    assert looks
    bucket.delete(first.key)  # where it takes fewer requests to read it
    assert bucket.names(CLAIMS) == [second.key]


def test_of_two_that_begin_at_the_same_time_one_has_the_run(
    bucket: Bucket, claim: Make, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_PAUSE_S", 2.0)  # the other one has deleted its claim by then
    both = threading.Barrier(2)
    lists: list[Call] = []

    def rule(call: Call) -> None:
        if call.method == "GET" and "list-type" in call.path:
            lists.append(call)
            if len(lists) <= 2:  # both claims are there by then
                both.wait(HANG_S)

    proxy.rule = rule
    made = [claim("first"), claim("second")]

    def take(one: Claim) -> bool:
        try:
            one.take("s3://a/run")
        except JobError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        taken = [one.key for one, has_it in zip(made, pool.map(take, made), strict=True) if has_it]
    assert taken == [min(one.key for one in made)]
    assert bucket.names(CLAIMS) == taken


@pytest.mark.usefixtures("claim")
def test_a_part_that_arrives_after_the_claim_was_lost_does_not_stay(
    bucket: Bucket, proxy: Proxy, tmp_path: Path
) -> None:
    run = RunDir.open(tmp_path / "here", f"{bucket.url}/run")
    run.save(run_record(rows=40))
    run.start(part_rows=10, part_bytes=1 << 26)
    run.store(refused(0))

    def rule(call: Call) -> None:
        if call.method == "PUT" and "/responses/" in call.path:
            for key in bucket.names(CLAIMS):  # another command takes the run over
                bucket.delete(key)

    proxy.rule = rule
    with pytest.raises(StoreError, match="another command has taken this run over"):
        run.finish()
    assert bucket.names("run/responses/") == bucket.names("run/tool_calls/") == []
    with suppress(StoreError):
        run.close()
    proxy.rule = lambda _call: None
    again = RunDir.open(tmp_path / "here", f"{bucket.url}/run")
    assert sorted(again.complete_rows().rows) == [0]
    again.close(seal=True)
    assert len(bucket.names("run/responses/")) == 1


def test_workers_whose_driver_died_begin_nothing_once_its_claim_has_expired() -> None:
    """The driver may have died just before it would have renewed it."""
    assert LONGEST_SILENCE_S <= STALE_S - RENEW_S - 5


@pytest.mark.usefixtures("claim")
def test_nothing_arrives_after_a_claim_was_lost_even_if_a_late_renewal_puts_it_back(
    bucket: Bucket, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The network keeps a renewal for so long that the run has given up."""
    for name, value in (("STALE_S", 3.0), ("SPARE_S", 0.5), ("RENEW_S", 0.3), ("_AGAIN_S", 0.1)):
        monkeypatch.setattr(claims, name, value)
    let_go = threading.Event()
    run = RunDir.open(tmp_path / "here", f"{bucket.url}/run")
    try:
        run.save(run_record(rows=40))
        run.start(part_rows=10, part_bytes=1 << 26)
        run.store(refused(0))
        record = bucket.get("run/run.json")
        (key,) = bucket.names(CLAIMS)

        def rule(call: Call) -> None:
            if call.method == "PUT" and "/claims/" in call.path:
                let_go.wait(HANG_S)

        proxy.rule = rule

        def has_no_claim() -> bool:
            link = read_link(run.path)
            return link is not None and link.claim is None

        wait_until(has_no_claim)
        with pytest.raises(StoreError, match="so another machine may continue this run"):
            run.write_live({})
        let_go.set()
        wait_until(lambda: bucket.names(CLAIMS) == [key])
        with pytest.raises(StoreError, match="another command has taken this run over"):
            run.finish()
        with pytest.raises(StoreError, match="another machine may continue this run"):
            run.save(run_record(rows=40, state="failed"))
    finally:
        let_go.set()
        with suppress(StoreError):
            run.close()
    assert bucket.names("run/responses/") == []
    assert bucket.get("run/run.json") == record
    again = RunDir.open(tmp_path / "here", f"{bucket.url}/run")
    assert sorted(again.complete_rows().rows) == [0]
    again.close(seal=True)
    assert len(bucket.names("run/responses/")) == 1
