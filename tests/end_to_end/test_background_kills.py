"""Background work that has begun is taken up after a kill, not paid for again."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL, CompletedProcess, Popen
from typing import Any

import msgspec
import pytest

from batchrun.store.snapshot import snapshot
from batchrun.store.unfinished import read_open
from tests.runs import read_record

_IN_FLIGHT = 24
_COMMAND = (
    *("run", "prompts.jsonl", "--prompt", "{{ question }}", "--model", "gpt-4.1", "-o", "run"),
    *("--mode", "background", "--concurrency", str(_IN_FLIGHT)),
)


def _key(question: str) -> str:
    """How the simulator's table of bodies names the request that was sent for a question."""
    fields = {"model": "gpt-4.1", "input": question, "store": True}
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()


def _begun(run: Path) -> set[str]:
    """The custom_ids of background responses whose ids are on disk and that have no outcome."""
    if not (run / "journal").exists():
        return set()
    with snapshot(run) as now:
        settled = {outcome.request.custom_id for outcome in now.outcomes()}
    return {one.key[0] for one in read_open(run)} - settled


@pytest.mark.parametrize(
    ("kills", "count"), [(3, 50), pytest.param(20, 400, marks=pytest.mark.long)]
)
def test_kills_create_no_response_again_whose_id_was_on_disk(
    kills: int,
    count: int,
    tmp_path: Path,
    write_rows: Any,
    questions: Any,
    simulator: Any,
    begin: Callable[..., "Popen[str]"],
    batchrun: Callable[..., CompletedProcess[str]],
    stats: Callable[..., dict[str, Any]],
    wait_until: Callable[..., None],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    rows = list(questions(count))
    write_rows(rows)
    by_id = {str(row.get("id", number)): row["question"] for number, row in enumerate(rows)}
    base_url: str = simulator("--latency", "3", "--latency-spread", "0.3")
    run = tmp_path / "run"
    begun: dict[str, dict[str, int]] = {}  # at some kill: what the server had counted of it then
    continued: set[str] = set()  # of them, those that another process polled

    def look() -> dict[str, Any]:
        """Nothing that was begun is created again."""
        bodies = stats(base_url, by="body")
        for key, then in begun.items():
            now = bodies[key]["background"]
            assert now["created"] == then["created"]
            if now["polls"] > then["polls"]:
                continued.add(key)
        return bodies

    for kill in range(kills):
        before = stats(base_url)["background"]
        process = begin(*_COMMAND, "--base-url", base_url, stdout=DEVNULL, stderr=DEVNULL)
        what = "created" if kill % 2 else "polls"
        wait_until(lambda b=before, w=what: stats(base_url)["background"][w] > b[w], process)
        time.sleep(0.05 * (kill % 5))
        process.kill()
        process.wait()
        bodies = look()
        keys = {_key(by_id[custom_id]) for custom_id in _begun(run)}
        begun.update((key, bodies[key]["background"]) for key in keys)
    done = batchrun(*_COMMAND[:-1], count, "--base-url", base_url)  # more in flight
    assert done.returncode == 0, done.stderr
    assert totals()[0] == count
    bodies = look()
    assert continued == begun.keys() != set()
    assert len(bodies) == count
    assert not list((run / "journal").iterdir())
    assert read_record(run)["state"] == "finished"


def test_hundreds_of_responses_begun_at_once_are_all_taken_down(
    tmp_path: Path,
    write_rows: Any,
    questions: Any,
    simulator: Any,
    batchrun: Callable[..., CompletedProcess[str]],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    """Threads put ids on disk while others take them out, and the file is written anew."""
    rows = 600
    write_rows(questions(rows))
    words = (
        "run",
        "prompts.jsonl",
        "--prompt",
        "{{ question }}",
        "--model",
        "gpt-4.1",
        "-o",
        "run",
    )
    url = simulator("--latency", "0.2", "--latency-spread", "1")
    done = batchrun(*words, "--mode", "background", "--concurrency", rows, "--base-url", url)
    assert done.returncode == 0, done.stderr
    assert totals() == (rows, rows, rows)
    assert not list((tmp_path / "run" / "journal").iterdir())
