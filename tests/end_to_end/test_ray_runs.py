"""Runs with workers on a real Ray cluster on loopback; skipped where the extra is absent."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.flaky_proxy import LATE, Asked, FlakyProxy, Way, flaky_proxy
from tests.processes import has_ended, read_rest
from tests.ray_cluster import folder_of_cluster, standing_cluster, wait_for_none, worker_pids
from tests.waiting import HANG_S, wait_until

pytest.importorskip("ray", reason="the extra `ray` is not installed")
ROWS = 400
CUT_OFF = (sys.executable, str(Path(__file__).parent / "cut_off_driver.py"))
_STALLS = (Way.STALL, Way.STALL_LATE)


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with standing_cluster(4) as found:
        yield found


@pytest.fixture
def run_words(
    write_rows: Any, questions: Any, simulator: Any
) -> Callable[..., tuple[str, list[str]]]:
    """A prompt set and a simulator: its base URL, and the words of a run with three workers."""

    def make(*more: str, rows: int = ROWS, latency_s: float = 0.05) -> tuple[str, list[str]]:
        source, base_url = write_rows(questions(rows)), simulator("--latency", latency_s)
        words = ["run", str(source), "--prompt", "{{ question }}", "--model", "m", "-o", "run"]
        return base_url, [
            *(*words, "--base-url", base_url, "--concurrency", "12"),
            *("--executor", "ray", "--workers", "3", *more),
        ]

    return make


@pytest.fixture
def live(tmp_path: Path) -> Callable[[], dict[str, Any]]:
    def read() -> dict[str, Any]:
        path = tmp_path / "run/live.json"
        found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {"workers": []}
        return found

    return read


def completed(live: dict[str, Any]) -> int:
    return sum(one["completed"] for one in live["workers"])


@pytest.mark.long
def test_three_workers_complete_each_row_once(
    tmp_path: Path,
    cluster: dict[str, str],
    run_words: Any,
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
    stats: Any,
    totals: Any,
) -> None:
    base_url, words = run_words()
    done = batchrun(*words, "--json", env=cluster)
    assert done.returncode == 0, done.stderr
    assert totals() == (ROWS, ROWS, ROWS)
    served = stats(base_url)
    assert (served["completions"], served["most_in_flight"] <= 12) == (ROWS, True)
    summary = json.loads(done.stdout)
    assert (summary["ok"], summary["left"], summary["state"]) == (ROWS, 0, "finished")
    assert [one["state"] for one in summary["workers"]] == ["ended"] * 3
    assert all(one["completed"] for one in summary["workers"])
    record = json.loads((tmp_path / "run/run.json").read_bytes())
    assert (record["executor"], record["workers"]) == ("ray", 3)
    assert not list((tmp_path / "run/journal").glob("w[1-9]*"))
    verified = batchrun("verify", "run")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    again = batchrun(*words, env=cluster)
    assert (again.returncode, stats(base_url)["completions"]) == (0, ROWS), again.stderr


def test_a_killed_worker_costs_what_it_had_in_flight_and_no_worker_is_exit_3(
    cluster: dict[str, str],
    run_words: Any,
    write_job: Any,
    tmp_path: Path,
    begin: Callable[..., "subprocess.Popen[str]"],
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
    live: Callable[[], dict[str, Any]],
    stats: Any,
    totals: Any,
) -> None:
    base_url, words = run_words(latency_s=0.2)
    large = write_job('[input]\npath = "prompts.jsonl"\n[cluster]\ncpus_per_worker = 64\n')
    waited = batchrun("run", large, *words[2:], "--give-up-after", "1", env=cluster)
    assert waited.returncode == 3, waited.stderr
    assert "no worker was available for 1" in waited.stderr
    assert "each worker needs 64" in waited.stderr
    assert not (tmp_path / "run").exists()

    process = begin(*words, "--json", env=cluster)
    wait_until(lambda: completed(live()) >= 60 and worker_pids(live(), "running"), process)
    os.kill(worker_pids(live(), "running")[0], signal.SIGKILL)
    shown = batchrun("status", "run")
    assert "workers:" in shown.stdout
    out, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, said
    assert totals() == (ROWS, ROWS, ROWS)
    assert ROWS <= stats(base_url)["completions"] <= ROWS + 12
    assert stats(base_url)["most_in_flight"] <= 12
    summary = json.loads(out)
    assert (summary["ok"], summary["left"], summary["state"]) == (ROWS, 0, "finished")
    states = [one["state"] for one in summary["workers"]]
    assert (states.count("adopted"), states.count("ended") >= 2) == (1, True), states
    record = json.loads((tmp_path / "run/run.json").read_bytes())
    assert (record["executor"], record["workers"]) == ("ray", 3)
    assert not list((tmp_path / "run/journal").iterdir())
    verified = batchrun("verify", "run")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    report = batchrun("report", "run").stdout
    assert re.search(r"Workers.*w1 .*(adopted|drained)", report, re.DOTALL), report
    answered = stats(base_url)["completions"]
    again = batchrun(*words, env=cluster)
    assert (again.returncode, stats(base_url)["completions"]) == (0, answered), again.stderr


def test_a_worker_cut_off_and_one_stopped_for_longer_than_silence_cost_nothing(
    tmp_path: Path,
    cluster: dict[str, str],
    run_words: Any,
    write_job: Any,
    begin: Callable[..., "subprocess.Popen[str]"],
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
    live: Callable[[], dict[str, Any]],
    stats: Any,
    totals: Any,
) -> None:
    """Both are given up and others begin; both land what they had once, and nothing after it."""
    base_url, words = run_words(latency_s=0.2)
    words[1] = write_job('[input]\npath = "prompts.jsonl"\n[cluster]\nsilence_s = 3.0\n')
    (tmp_path / "cut").mkdir()
    process = begin(*words, "--json", env=cluster, command=CUT_OFF)
    wait_until(
        lambda: completed(live()) >= 60 and len(worker_pids(live(), "running")) == 3, process
    )
    cut, stopped, _ = worker_pids(live(), "running")
    (tmp_path / "cut" / str(cut)).touch()
    os.kill(stopped, signal.SIGSTOP)
    try:
        wait_until(lambda: cut in worker_pids(live(), "adopted"), process)
        (tmp_path / "cut" / str(cut)).unlink()
        assert stopped in worker_pids(live(), "lost")
    finally:
        with suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGCONT)
    out, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, said
    wait_until(lambda: has_ended(cut) and has_ended(stopped))
    assert totals() == (ROWS, ROWS, ROWS)
    served = stats(base_url)
    assert (served["completions"], served["most_in_flight"] <= 12) == (ROWS, True), served
    states = [one["state"] for one in json.loads(out)["workers"]]
    assert states.count("adopted") >= 2, states
    verified = batchrun("verify", "run")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert not list((tmp_path / "run/journal").iterdir())


@pytest.mark.long
def test_a_worker_that_never_begins_is_replaced(
    tmp_path: Path,
    cluster: dict[str, str],
    run_words: Any,
    begin: Callable[..., "subprocess.Popen[str]"],
    totals: Any,
) -> None:
    _, words = run_words(rows=200, latency_s=0.5)
    (tmp_path / "hang").write_text("2.0")
    process = begin(*words, "--json", env=cluster, command=CUT_OFF)
    out, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, said
    assert totals() == (200, 200, 200)
    states = [one["state"] for one in json.loads(out)["workers"]]
    assert (states.count("adopted"), states.count("ended")) == (1, 3), states
    assert '"why":"it did not begin within 2.0 s"' in (tmp_path / "run/events.jsonl").read_text()


def _ways_of_a_bad_night(seed: int, refused: set[int]) -> Callable[[Asked, FlakyProxy], Way]:
    """What befalls each request, drawn from the seed; the first of each worker is refused for ever.

    But for that of the whole run: a run whose first request is refused stops.
    """
    is_over = False

    def say(asked: Asked, proxy: FlakyProxy) -> Way:
        nonlocal is_over
        if not proxy.answered or asked.attempt > 1:  # so that no row uses up its attempts
            return Way.NOT_FOUND if asked.row in refused else Way.ANSWER
        if asked.nth == 0 or asked.row in refused:
            refused.add(asked.row)
            return Way.NOT_FOUND
        if proxy.answered > ROWS / 2 and not is_over:
            is_over = True
            proxy.cut(1.0)
        draw = random.Random(f"{seed} {asked.row} {asked.attempt}")
        ways = [way for way in Way if way not in (Way.ANSWER, Way.NOT_FOUND, Way.KEY)]
        if asked.attempt:  # of time-outs a row has two
            ways = [way for way in ways if way not in _STALLS]
        return draw.choice(ways) if draw.random() < 0.15 else Way.ANSWER

    return say


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 4))]
)
def test_stalls_cuts_and_refusals_between_workers_and_server_cost_what_was_in_flight(
    seed: int,
    cluster: dict[str, str],
    run_words: Any,
    write_job: Any,
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
    stats: Any,
    totals: Any,
) -> None:
    base_url, words = run_words()
    words[1] = write_job(
        '[input]\npath = "prompts.jsonl"\n[endpoint]\ntimeout_s = 5\n[retry]\nmax_wait_s = 0.5\n'
    )
    refused: set[int] = set()
    with flaky_proxy(base_url, _ways_of_a_bad_night(seed, refused)) as proxy:
        words[words.index("--base-url") + 1] = proxy.base_url
        done = batchrun(*words, "--json", env=cluster)
    assert done.returncode == 4, done.stderr
    assert refused
    assert totals() == (ROWS, ROWS, ROWS - len(refused))
    assert json.loads(done.stdout)["statuses"] == {
        "completed": ROWS - len(refused),
        "failed": len(refused),
    }
    # The server has seen each row once, and once more for each time that its answer was lost.
    too_often = {
        row: (seen, proxy.lost[row])
        for row, seen in proxy.forwarded.items()
        if seen > 1 + proxy.lost[row]
    }
    assert not too_often
    assert stats(base_url)["completions"] == proxy.forwarded.total()
    assert all(proxy.ways[way] for way in (*LATE, Way.STALL, Way.RESET, Way.HALF_CLOSE))
    verified = batchrun("verify", "run")
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.parametrize(
    ("way", "told"),
    [
        (Way.KEY, "this key was revoked this morning"),
        pytest.param(Way.NOT_FOUND, "there is no such prompt", marks=pytest.mark.long),
        pytest.param(Way.UNAVAILABLE, "no server is ready", marks=pytest.mark.long),
    ],
)
def test_what_stops_one_worker_for_the_endpoint_stops_all_in_its_words(
    cluster: dict[str, str],
    run_words: Any,
    tmp_path: Path,
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
    stats: Any,
    totals: Any,
    way: Way,
    told: str,
) -> None:
    """The key is refused to one of them from a moment on, and anything else to all."""
    more = () if way is Way.KEY else ("--give-up-after", "20")  # workers too are waited for so long
    base_url, words = run_words(*more, latency_s=0.2)
    victims: list[str] = []

    def say(asked: Asked, proxy: FlakyProxy) -> Way:
        if proxy.answered < 60:
            return Way.ANSWER
        victims.append(asked.client)
        return way if asked.client == victims[0] or way is not Way.KEY else Way.ANSWER

    with flaky_proxy(base_url, say) as proxy:
        words[words.index("--base-url") + 1] = proxy.base_url
        done = batchrun(*words, "--json", env=cluster)
    assert done.returncode == 3, done.stderr
    assert told in done.stderr, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["state"], told in summary["message"]) == ("stopped", True), summary
    assert not {"running", "silent"} & {one["state"] for one in summary["workers"]}
    rows, _, ok = totals()
    assert 60 <= rows == ok == summary["ok"] == stats(base_url)["completions"] < ROWS
    assert not list((tmp_path / "run/journal").glob("*.log"))
    assert batchrun("verify", "run").returncode == 0


@pytest.mark.long
def test_a_worker_that_alone_reaches_no_server_leaves_its_rows_to_others(
    cluster: dict[str, str],
    run_words: Any,
    write_job: Any,
    tmp_path: Path,
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
    stats: Any,
    totals: Any,
) -> None:
    base_url, words = run_words(latency_s=0.2)
    words[1] = write_job('[input]\npath = "prompts.jsonl"\n[cluster]\nsilence_s = 3.0\n')
    victims: list[str] = []

    def say(asked: Asked, proxy: FlakyProxy) -> Way:
        if proxy.answered < 60:
            return Way.ANSWER
        victims.append(asked.client)
        return Way.RESET if asked.client == victims[0] else Way.ANSWER

    with flaky_proxy(base_url, say) as proxy:
        words[words.index("--base-url") + 1] = proxy.base_url
        done = batchrun(*words, "--json", env=cluster)
    assert done.returncode == 0, done.stderr
    assert totals() == (ROWS, ROWS, ROWS)
    assert stats(base_url)["completions"] == ROWS
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    stopped = [event for event in events if event["event"] == "worker_stopped"]
    assert len(stopped) == 1
    assert "the endpoint answers other workers, and not this one" in stopped[0]["why"]
    assert proxy.of_clients[victims[0]] < ROWS


@pytest.mark.long
def test_a_worker_that_stands_still_for_good_is_killed_and_its_rows_go_to_others(
    cluster: dict[str, str],
    run_words: Any,
    write_job: Any,
    begin: Callable[..., "subprocess.Popen[str]"],
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
    live: Callable[[], dict[str, Any]],
    stats: Any,
    totals: Any,
) -> None:
    """Its lock cannot be taken while it lives."""
    base_url, words = run_words(latency_s=0.2)
    words[1] = write_job(
        '[input]\npath = "prompts.jsonl"\n[endpoint]\ntimeout_s = 2\n[cluster]\nsilence_s = 2.0\n'
    )
    process = begin(*words, env=cluster)
    wait_until(lambda: completed(live()) >= 60 and worker_pids(live(), "running"), process)
    stopped = worker_pids(live(), "running")[0]
    os.kill(stopped, signal.SIGSTOP)
    _, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, said
    assert has_ended(stopped)
    assert totals() == (ROWS, ROWS, ROWS)
    assert ROWS <= stats(base_url)["completions"] <= ROWS + 12
    assert batchrun("verify", "run").returncode == 0


@pytest.mark.long
def test_a_killed_driver_costs_nothing(
    cluster: dict[str, str],
    run_words: Any,
    write_job: Any,
    begin: Callable[..., "subprocess.Popen[str]"],
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
    live: Callable[[], dict[str, Any]],
    stats: Any,
    totals: Any,
) -> None:
    base_url, words = run_words(latency_s=0.2)
    job = write_job('[input]\npath = "prompts.jsonl"\n[cluster]\nsilence_s = 2.0\n')
    words[1] = job
    process = begin(*words, env=cluster)
    wait_until(lambda: completed(live()) >= 60, process)
    process.kill()
    process.wait(HANG_S)
    done = batchrun(*words, env=cluster)
    assert done.returncode == 0, done.stderr
    assert "waiting for workers" in done.stderr
    assert totals() == (ROWS, ROWS, ROWS)
    assert stats(base_url)["completions"] == ROWS
    assert batchrun("verify", "run").returncode == 0


@pytest.mark.long
def test_ctrl_c_lands_what_is_in_flight_of_all_workers(
    cluster: dict[str, str],
    run_words: Any,
    begin: Callable[..., "subprocess.Popen[str]"],
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
    live: Callable[[], dict[str, Any]],
    stats: Any,
    totals: Any,
) -> None:
    base_url, words = run_words(latency_s=0.2)
    process = begin(*words, env=cluster)
    wait_until(lambda: completed(live()) >= 60, process)
    process.send_signal(signal.SIGINT)
    said = read_rest(process)
    assert process.returncode == 130, said
    rows, _, ok = totals()
    assert rows == ok == stats(base_url)["completions"] < ROWS
    assert batchrun(*words, env=cluster).returncode == 0
    assert (totals(), stats(base_url)["completions"]) == ((ROWS, ROWS, ROWS), ROWS)


@pytest.mark.long
def test_limits_and_failures_are_those_of_the_whole_run(
    cluster: dict[str, str],
    run_words: Any,
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
    simulator: Any,
    stats: Any,
) -> None:
    _, words = run_words("--max-attempts", "1")
    failing = simulator("--fault", "422_text=1")
    words[words.index("--base-url") + 1] = failing
    done = batchrun(*words, env=cluster)
    assert done.returncode == 3, done.stderr
    assert "the first 20 rows all failed the same way" in done.stderr
    assert stats(failing)["requests"] < 100


def test_a_cluster_of_a_killed_run_ends_once_its_workers_have_stored_what_was_in_flight(
    run_words: Any,
    write_job: Any,
    begin: Callable[..., "subprocess.Popen[str]"],
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
    live: Callable[[], dict[str, Any]],
    stats: Any,
    totals: Any,
) -> None:
    base_url, words = run_words(latency_s=0.2)
    words[1] = write_job('[input]\npath = "prompts.jsonl"\n[cluster]\nsilence_s = 2.0\n')
    key = "a-secret-of-thirty-letters-000"
    local = {"RAY_ADDRESS": "local", "OPENAI_API_KEY": key}
    process = begin(*words, env=local)
    wait_until(lambda: completed(live()) >= 60, process)
    (pid, *_) = worker_pids(live(), "running")
    assert key.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    root = folder_of_cluster(pid)
    process.kill()
    process.wait(HANG_S)
    assert wait_for_none(root, HANG_S) == []
    assert not Path(root).exists()
    done = batchrun(*words, env=local)
    assert done.returncode == 0, done.stderr
    assert (totals(), stats(base_url)["completions"]) == ((ROWS, ROWS, ROWS), ROWS)
    assert batchrun("verify", "run").returncode == 0


def test_what_cannot_be_joined_is_exit_2(
    run_words: Any, tmp_path: Path, batchrun: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    _, words = run_words()
    for address, told in (
        ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"),
        ("ray://127.0.0.1:10001", "is for Ray's client"),
        ("somewhere", "is not of the form HOST:PORT"),
    ):
        done = batchrun(*words, env={"RAY_ADDRESS": address})
        assert (done.returncode, told in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_without_workers_does_not_import_ray(tmp_path: Path) -> None:
    code = (
        "import sys, batchrun; from batchrun.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'ray', 'huggingface_hub'} & sys.modules.keys()"
    )
    (tmp_path / "rows.jsonl").write_text('{"prompt": "one"}\n')
    words = ("run", "rows.jsonl", "--model", "m", "--simulate", "--quiet")
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr
