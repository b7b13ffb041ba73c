"""What driver and worker must agree on, and what is said where they do not."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from batchrun.errors import JobError
from batchrun.executors.worker_process import (
    Greeting,
    WorkerFailed,
    check_greeting,
    check_machines,
    decode_greeting,
    encode_greeting,
    greeting,
    write_probe,
)
from batchrun.remote.run_link import Link, write_link

LOOPBACK = ["http://127.0.0.1:8000/v1"]


@pytest.fixture
def said(tmp_path: Path) -> Greeting:
    write_probe(tmp_path, "token")
    return greeting(str(tmp_path), "token")


def test_a_worker_that_agrees_takes_part(said: Greeting, tmp_path: Path) -> None:
    assert said.sees_run
    check_greeting(decode_greeting(encode_greeting(said)), tmp_path)
    check_machines([said, said], LOOPBACK, simulated=False)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batchrun": "0.0.1"}, "has batchrun 0.0.1, and this machine has"),
        ({"python": "3.9"}, "has Python 3.9"),
        ({"schema": 99}, "has schema 99"),
        ({"hash_rule": 99}, "has rule for hashes 99"),
        ({"sees_run": False}, "does not see the run directory"),
        ({"store_problem": "s3://a: refused"}, "cannot write to the store of this run: s3://a: r"),
    ],
)
def test_one_that_does_not_is_named(
    said: Greeting, tmp_path: Path, change: dict[str, object], told: str
) -> None:
    with pytest.raises(JobError, match=told):
        check_greeting(replace(replace(said, host="far"), **change), tmp_path)


def test_of_a_run_in_a_store_all_must_see_the_journals(said: Greeting, tmp_path: Path) -> None:
    """Else nobody could take over what a worker had not uploaded when it died."""
    write_link(tmp_path, Link("s3://bucket/run"))
    unseen = replace(said, host="far", sees_run=False)
    with pytest.raises(JobError, match=r"the journals of s3://bucket/run; .* scratch in"):
        check_greeting(unseen, tmp_path)


def test_loopback_is_refused_on_several_machines(said: Greeting) -> None:
    other = replace(said, machine="other", host="other")
    with pytest.raises(JobError, match="per_node_endpoint"):
        check_machines([said, other], LOOPBACK, simulated=False)
    with pytest.raises(JobError, match="the simulator of --simulate answers on one machine only"):
        check_machines([said, other], LOOPBACK, simulated=True)
    check_machines([said, other], [], simulated=False)


def test_a_worker_of_another_kind_of_program_is_no_crash() -> None:
    for words in (b"no JSON", b"{}", None):
        with pytest.raises(WorkerFailed):
            decode_greeting(words)
